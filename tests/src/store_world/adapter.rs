//! [`StoreUnderTest`]: the one place that calls the store.

use bytes::Bytes;
pub(super) use storage::{Effect, Lookup, ScannedKey};
use storage::{
    Event, Get, LogClock, Now, Opened, ReadError, ReadId, RecoveryReport, SharedPut, SnapshotFile,
    Store, StoreOptions, StoreStatus, Value, WriteError,
};
use wal::Lsn;
use wal::disk::{DiskCompletion, DiskError, DiskRequest, FileName};
use wal::procedure::Procedure;
use wal::record::{Key, Version};

use super::model::ModelKey;

/// What the store tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Told {
    Durable(Lsn),
    Read { id: ReadId, result: Result<Option<(Bytes, Value)>, ReadError> },
    Resolved { id: ReadId },
    Scanned { id: ReadId, keys: Vec<ScannedKey>, next: Option<Key> },
    Snapshotted(Result<Vec<SnapshotFile>, DiskError>),
    Writable,
    Failed(DiskError),
    Damaged,
}

/// Begins to open a store.
pub(super) fn open(options: &StoreOptions, wall_ms: u64) -> Procedure<OpenResult> {
    storage::open(options.clone(), wall_ms)
}

type OpenResult = Result<Opened, storage::OpenError>;

/// A store, or what stands for one.
#[derive(Debug)]
pub(super) struct StoreUnderTest {
    store: Store,
}

impl StoreUnderTest {
    /// Takes an opened store; returns what recovery reported and the log's newest time too.
    pub(super) fn new(opened: Opened) -> (Self, RecoveryReport, u64) {
        let Opened { store, report, log_ms } = opened;
        (Self { store }, report, log_ms)
    }

    /// A clock for this store.
    pub(super) fn clock(log_ms: u64, wall_ms: u64, monotonic_ns: u64) -> LogClock {
        LogClock::new(log_ms, wall_ms, monotonic_ns)
    }

    pub(super) fn lookup(&mut self, key: &ModelKey) -> Result<Lookup, ReadError> {
        self.store.lookup(&key.borrowed())
    }

    pub(super) fn get(&mut self, key: &ModelKey) -> Result<Get, ReadError> {
        self.store.get(&key.borrowed())
    }

    pub(super) fn put(
        &mut self,
        key: &ModelKey,
        version: Version,
        expiry_ms: u64,
        value: &Bytes,
    ) -> Result<Effect, WriteError> {
        self.store.put_shared(&SharedPut { key: key.borrowed(), version, expiry_ms, value })
    }

    pub(super) fn remove(
        &mut self,
        key: &ModelKey,
        version: Version,
    ) -> Result<Effect, WriteError> {
        self.store.remove(key.borrowed(), version)
    }

    pub(super) fn touch(
        &mut self,
        key: &ModelKey,
        version: Version,
        expiry_ms: u64,
    ) -> Result<Effect, WriteError> {
        self.store.touch(key.borrowed(), version, expiry_ms)
    }

    pub(super) fn clear(&mut self, version: Version) -> Result<Lsn, WriteError> {
        self.store.clear(version)
    }

    /// Starts compaction by hand.
    pub(super) fn compact(&mut self) {
        self.store.compact();
    }

    /// Takes a snapshot into a new directory; [`Told::Snapshotted`] has its files.
    pub(super) fn snapshot(&mut self, into: FileName) {
        self.store.snapshot(into);
    }

    pub(super) fn observed(&self, key: &ModelKey) -> Lsn {
        self.store.observed(&key.borrowed())
    }

    /// Walks about `count` live keys from `from` on; [`Told::Scanned`] has them.
    pub(super) fn scan(&mut self, from: Key, count: usize) -> ReadId {
        self.store.scan(from, count)
    }

    /// Takes the next thing that the store tells.
    pub(super) fn poll_told(&mut self) -> Option<Told> {
        Some(match self.store.poll_event()? {
            Event::Durable(lsn) => Told::Durable(lsn),
            Event::Read { id, result } => Told::Read { id, result },
            Event::Resolved { id } => Told::Resolved { id },
            Event::Scanned { id, keys, next } => Told::Scanned { id, keys, next },
            Event::Writable => Told::Writable,
            Event::Snapshotted { result } => Told::Snapshotted(result),
            Event::Failed(error) => Told::Failed(error),
            Event::Damaged { .. } | Event::Flaw { .. } => Told::Damaged,
        })
    }

    pub(super) fn poll_request(&mut self) -> Option<DiskRequest> {
        self.store.poll_request()
    }

    pub(super) fn handle_disk(&mut self, completion: DiskCompletion) {
        self.store.handle_disk(completion);
    }

    pub(super) fn set_now(&mut self, now: Now) {
        self.store.set_now(now);
    }

    pub(super) fn deadline_ns(&self) -> Option<u64> {
        self.store.deadline_ns()
    }

    pub(super) fn end_turn(&mut self) {
        self.store.end_turn();
    }

    pub(super) fn seal(&mut self) {
        self.store.seal();
    }

    pub(super) fn is_quiet(&self) -> bool {
        self.store.is_quiet()
    }

    pub(super) fn status(&self) -> StoreStatus {
        self.store.status()
    }

    pub(super) fn failure(&self) -> Option<DiskError> {
        self.store.failure()
    }

    pub(super) fn last_lsn(&self) -> Lsn {
        self.store.last_lsn()
    }

    pub(super) fn durable_lsn(&self) -> Lsn {
        self.store.durable_lsn()
    }

    pub(super) fn version_max(&self) -> Version {
        self.store.version_max()
    }
}
