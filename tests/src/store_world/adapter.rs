//! [`StoreUnderTest`]: the one place that calls the store, in the words of the whole engine.
//!
//! Where the store of today answers at once what the engine may have to read first, this gives the
//! answer in the engine's form; the world handles both.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use storage::{
    Entry, Event, Get, KeyRef, LogClock, Now, Opened, Put, ReadError, ReadId, RecoveryReport,
    Store, StoreOptions, StoreStatus, UserKey, Value, WriteError,
};
use wal::Lsn;
use wal::disk::{DiskCompletion, DiskError, DiskRequest};
use wal::procedure::Procedure;
use wal::record::{Key, Version};

use super::model::ModelKey;

/// What the index knows of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lookup {
    Missing,
    Found(Entry),
    #[expect(dead_code, reason = "today's index knows every key; the engine's may have to read")]
    Pending(ReadId),
}

/// What a conditional write did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    /// Appended as this record, or nothing: there is no such key.
    Done(Option<Lsn>),
    /// Nothing yet: ask again after [`Told::Resolved`].
    #[expect(dead_code, reason = "today's index knows every key; the engine's may have to read")]
    Pending(ReadId),
}

/// A key met by a scan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ScannedKey {
    pub(super) key: Key,
    pub(super) user_key: Bytes,
    pub(super) version: Version,
    pub(super) expiry_ms: u64,
}

/// What the store tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Told {
    Durable(Lsn),
    Read { id: ReadId, result: Result<Option<(Bytes, Value)>, ReadError> },
    Resolved { id: ReadId },
    Scanned { id: ReadId, keys: Vec<ScannedKey>, next: Option<Key> },
    Writable,
    Failed(DiskError),
    Damaged,
}

/// Ids of scans start here, apart from those of reads.
const FIRST_SCAN: u64 = 1 << 63;

/// A scan that still waits for user keys.
#[derive(Debug)]
struct Scan {
    keys: Vec<(Key, Option<Bytes>)>,
    waiting: usize,
    next: Option<Key>,
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
    scans: BTreeMap<ReadId, Scan>,
    /// Reads of user keys for scans: which scan, which of its keys.
    user_keys: BTreeMap<ReadId, (ReadId, usize)>,
    told: VecDeque<Told>,
    next_scan: u64,
}

impl StoreUnderTest {
    /// Takes an opened store; returns what recovery reported and the log's newest time too.
    pub(super) fn new(opened: Opened) -> (Self, RecoveryReport, u64) {
        let Opened { store, report, log_ms } = opened;
        let adapter = Self {
            store,
            scans: BTreeMap::new(),
            user_keys: BTreeMap::new(),
            told: VecDeque::new(),
            next_scan: FIRST_SCAN,
        };
        (adapter, report, log_ms)
    }

    /// A clock for this store.
    pub(super) fn clock(log_ms: u64, wall_ms: u64, monotonic_ns: u64) -> LogClock {
        LogClock::new(log_ms, wall_ms, monotonic_ns)
    }

    pub(super) fn lookup(&mut self, key: &ModelKey) -> Result<Lookup, ReadError> {
        let entry = self.store.entry(&key.borrowed())?;
        Ok(entry.map_or(Lookup::Missing, Lookup::Found))
    }

    pub(super) fn get(&mut self, key: &ModelKey) -> Result<Get, ReadError> {
        self.store.get(&key.borrowed())
    }

    pub(super) fn put(
        &mut self,
        key: &ModelKey,
        version: Version,
        expiry_ms: u64,
        value: &[u8],
    ) -> Result<Lsn, WriteError> {
        self.store.put(&Put { key: key.borrowed(), version, expiry_ms, value })
    }

    pub(super) fn remove(
        &mut self,
        key: &ModelKey,
        version: Version,
    ) -> Result<Effect, WriteError> {
        self.store.remove(key.borrowed(), version).map(Effect::Done)
    }

    pub(super) fn touch(
        &mut self,
        key: &ModelKey,
        version: Version,
        expiry_ms: u64,
    ) -> Result<Effect, WriteError> {
        self.store.touch(key.borrowed(), version, expiry_ms).map(Effect::Done)
    }

    pub(super) fn clear(&mut self, version: Version) -> Result<Lsn, WriteError> {
        self.store.clear(version)
    }

    /// Starts compaction by hand; the store of today has none.
    #[expect(clippy::unused_self, reason = "the engine's compaction is started through the store")]
    pub(super) fn compact(&mut self) {}

    pub(super) fn observed(&self, key: &ModelKey) -> Lsn {
        self.store.observed(&key.borrowed())
    }

    /// Walks about `count` live keys from `from` on; [`Told::Scanned`] has them.
    pub(super) fn scan(&mut self, from: Key, count: usize) -> ReadId {
        let id = ReadId(self.next_scan);
        self.next_scan += 1;
        let mut keys: Vec<_> = self.store.keys_from(from).take(count + 1).collect();
        let next = (keys.len() > count).then(|| keys.pop()).flatten();
        let mut scan = Scan { keys: Vec::new(), waiting: 0, next };
        for (index, key) in keys.into_iter().enumerate() {
            let user_key = match self.store.user_key(key) {
                Ok(UserKey::Found(user_key)) => Some(user_key),
                Ok(UserKey::Pending(read)) => {
                    self.user_keys.insert(read, (id, index));
                    scan.waiting += 1;
                    None
                }
                Ok(UserKey::Missing) | Err(_) => None,
            };
            scan.keys.push((key, user_key));
        }
        self.scans.insert(id, scan);
        self.finish_scan(id);
        id
    }

    fn finish_scan(&mut self, id: ReadId) {
        if self.scans.get(&id).is_none_or(|scan| scan.waiting > 0) {
            return;
        }
        let Some(scan) = self.scans.remove(&id) else { return };
        let mut keys = Vec::new();
        for (key, user_key) in scan.keys {
            let Some(user_key) = user_key else { continue };
            let entry = self.store.entry(&KeyRef { id: key, user_key: &user_key });
            if let Ok(Some(Entry { version, expiry_ms, .. })) = entry {
                keys.push(ScannedKey { key, user_key, version, expiry_ms });
            }
        }
        self.told.push_back(Told::Scanned { id, keys, next: scan.next });
    }

    /// Takes the next thing that the store tells.
    pub(super) fn poll_told(&mut self) -> Option<Told> {
        loop {
            if let Some(told) = self.told.pop_front() {
                return Some(told);
            }
            match self.store.poll_event()? {
                Event::Durable(lsn) => return Some(Told::Durable(lsn)),
                Event::Read { id, result } => {
                    let Some((scan, index)) = self.user_keys.remove(&id) else {
                        return Some(Told::Read { id, result });
                    };
                    if let Some(scan) = self.scans.get_mut(&scan) {
                        scan.waiting -= 1;
                        scan.keys[index].1 = result.ok().flatten().map(|(user_key, _)| user_key);
                    }
                    self.finish_scan(scan);
                }
                Event::Writable => return Some(Told::Writable),
                Event::Failed(error) => return Some(Told::Failed(error)),
                Event::Damaged { .. } => return Some(Told::Damaged),
            }
        }
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

    pub(super) fn durable_lsn(&self) -> Lsn {
        self.store.durable_lsn()
    }

    pub(super) fn version_max(&self) -> Version {
        self.store.version_max()
    }
}
