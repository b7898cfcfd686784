//! [`Store`]: one shard's commands, its log, and the routing of its disk work.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use wal::Lsn;
use wal::disk::{DiskCompletion, DiskError, DiskOperation, DiskRequest, FileId, FileName};
use wal::disk::{IoBuffer, RequestId};
use wal::group_commit::{GroupCommit, GroupCommitCounters, GroupCommitLimits, OpenSegment};
use wal::manifest::Manifest;
use wal::record::{Key, Version};
use wal::segment::Identity;

use crate::cache::ReadCache;
use crate::clock::Now;
use crate::error::ReadError;
use crate::expiry::{EXPIRED_PER_STEP_MAX, ExpiryQueue};
use crate::index::{Index, Slot};

mod pace;
mod pool;
mod read;
mod supply;
#[cfg(test)]
mod tests;
mod write;

use read::Reads;
use supply::SegmentSupply;
use write::Unsettled;

/// An idle log says that everything is durable after this many nanoseconds (DESIGN 3.4).
const IDLE_FRAME_AFTER_NS: u64 = 50_000_000;

/// How a store is opened.
#[derive(Clone, Debug)]
pub struct StoreOptions {
    /// The shard's directory, below the data directory.
    pub directory: FileName,
    /// Whose store it is; used when it is made, compared when it is there.
    pub identity: Identity,
    /// Whether the shard was made before: one that is not there has lost everything.
    pub must_exist: bool,
    /// Largest regular segment in bytes.
    pub segment_bytes: u64,
    /// Budget of the read cache in bytes.
    pub cache_bytes: usize,
    /// Limits of the log.
    pub log: GroupCommitLimits,
}

/// A key: its id, and the bytes its user knows it by.
#[derive(Clone, Copy, Debug)]
pub struct KeyRef<'a> {
    /// The key id.
    pub id: Key,
    /// The user key.
    pub user_key: &'a [u8],
}

/// A value to be stored.
#[derive(Clone, Copy, Debug)]
pub struct Put<'a> {
    /// The key.
    pub key: KeyRef<'a>,
    /// The version; higher than any the key had.
    pub version: Version,
    /// Milliseconds since 1970, 0 = never.
    pub expiry_ms: u64,
    /// The value.
    pub value: &'a [u8],
}

/// What the index knows of a live key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Bytes of the value.
    pub value_len: usize,
    /// Milliseconds since 1970, 0 = never.
    pub expiry_ms: u64,
    /// The version.
    pub version: Version,
}

/// A value read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Value {
    /// The value, shared with the cache.
    pub value: Bytes,
    /// Milliseconds since 1970, 0 = never.
    pub expiry_ms: u64,
    /// The version.
    pub version: Version,
}

/// Names a read under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReadId(pub u64);

/// The answer to a get.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Get {
    /// There is no such key.
    Missing,
    /// The value was in memory.
    Found(Value),
    /// [`Event::Read`] will tell.
    Pending(ReadId),
}

/// The answer to the question for a key's user key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UserKey {
    /// There is no such key.
    Missing,
    /// The user key was in memory.
    Found(Bytes),
    /// [`Event::Read`] will tell, with an empty value.
    Pending(ReadId),
}

/// What a store tells its owner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Everything up to this record is durable.
    Durable(Lsn),
    /// A read has ended: user key and value. `None` if the key turned out to be another one.
    Read {
        /// Which read.
        id: ReadId,
        /// What it found.
        result: Result<Option<(Bytes, Value)>, ReadError>,
    },
    /// Writes that were refused as [`crate::WriteError::Busy`] may be tried again.
    Writable,
    /// A disk write has failed: the shard is read-only, records not yet durable are of unknown
    /// outcome.
    Failed(DiskError),
    /// A record was found damaged when it was read.
    Damaged {
        /// Its key.
        key: Key,
        /// The file it stands in.
        file: FileName,
        /// Its offset there, in bytes.
        offset: u64,
    },
}

/// Figures of a store, for INFO and metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StoreStatus {
    /// Live keys, expired ones not yet collected included.
    pub keys: u64,
    /// Of these, keys with an expiry.
    pub keys_expiring: u64,
    /// Segments, the active one and the spare included.
    pub segments: u64,
    /// Bytes of their files.
    pub segment_bytes: u64,
    /// Bytes in the read cache.
    pub cache_bytes: u64,
    /// Reads answered from it.
    pub cache_hits: u64,
    /// Reads it could not answer.
    pub cache_misses: u64,
    /// Reads sent to the disk.
    pub disk_reads: u64,
    /// Records found damaged since the start.
    pub damaged_reads: u64,
    /// Counters of the log.
    pub log: GroupCommitCounters,
    /// The newest record.
    pub last_lsn: Lsn,
    /// The newest durable record.
    pub durable_lsn: Lsn,
    /// Whether acknowledged records are lost and not known by key.
    pub suspect: bool,
    /// Whether the disk has no room for another segment.
    pub disk_full: bool,
}

/// What recovery hands over.
pub(crate) struct Foundation {
    pub(crate) options: StoreOptions,
    pub(crate) manifest: Manifest,
    pub(crate) kept: Vec<OpenSegment>,
    pub(crate) first: Option<OpenSegment>,
    pub(crate) next_file: FileId,
    pub(crate) durable_lsn: Lsn,
    pub(crate) log_ms: u64,
    pub(crate) version_max: Version,
    pub(crate) suspect: bool,
}

/// Who a disk request belongs to.
enum Source {
    Frame(u64),
    Supply(RequestId),
    Read,
}

/// One shard: see the crate's documentation for how it is driven.
pub struct Store {
    directory: FileName,
    identity: Identity,
    now: Now,
    log: GroupCommit,
    index: Index,
    expiry: ExpiryQueue,
    cache: ReadCache,
    unsettled: Unsettled,
    reads: Reads,
    supply: SegmentSupply,
    files: BTreeMap<u64, FileId>,
    sources: BTreeMap<RequestId, Source>,
    next_request: u64,
    outgoing: VecDeque<DiskRequest>,
    events: VecDeque<Event>,
    version_max: Version,
    suspect: bool,
    /// Whether a write was refused as busy and waits for [`Event::Writable`].
    starved: bool,
    idle_since_ns: Option<u64>,
}

impl Store {
    pub(crate) fn new(foundation: Foundation, live: impl Iterator<Item = (Key, Slot)>) -> Self {
        let Foundation { options, manifest, kept, first, next_file, .. } = foundation;
        let identity = manifest.identity;
        let (durable_lsn, log_ms) = (foundation.durable_lsn, foundation.log_ms);
        let mut log = GroupCommit::new(identity.store, options.log, durable_lsn, log_ms);
        let mut files: BTreeMap<u64, FileId> =
            kept.iter().map(|segment| (segment.id, segment.file)).collect();
        if let Some(segment) = first {
            files.insert(segment.id, segment.file);
            log.add_segment(segment);
        }
        let (mut index, mut expiry) = (Index::default(), ExpiryQueue::default());
        for (key, slot) in live {
            expiry.insert(key, slot.expiry_ms);
            index.insert(key, slot);
        }
        let supply = SegmentSupply::new(
            options.directory.clone(),
            manifest,
            options.segment_bytes,
            next_file,
            first.map_or(0, |segment| segment.len),
        );
        Self {
            directory: options.directory,
            identity,
            now: Now { monotonic_ns: 0, clock_ms: log_ms },
            log,
            index,
            expiry,
            cache: ReadCache::new(options.cache_bytes),
            unsettled: Unsettled::default(),
            reads: Reads::default(),
            supply,
            files,
            sources: BTreeMap::new(),
            next_request: 0,
            outgoing: VecDeque::new(),
            events: VecDeque::new(),
            version_max: foundation.version_max,
            suspect: foundation.suspect,
            starved: false,
            idle_since_ns: None,
        }
    }

    /// Whose shard it is.
    #[must_use]
    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// The highest version that recovery found; new ones must be above it.
    #[must_use]
    pub fn version_max(&self) -> Version {
        self.version_max
    }

    /// Everything up to here survives a crash.
    #[must_use]
    pub fn durable_lsn(&self) -> Lsn {
        self.log.durable_lsn()
    }

    /// The newest record, durable or not.
    #[must_use]
    pub fn last_lsn(&self) -> Lsn {
        self.log.last_lsn()
    }

    /// Why the shard is read-only, if it is.
    #[must_use]
    pub fn failure(&self) -> Option<DiskError> {
        self.log.failure()
    }

    /// Number of live keys, expired ones not yet collected included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.index.len()
    }

    /// Whether there is no live key.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.index.len() == 0
    }

    /// Figures for INFO and metrics.
    #[must_use]
    pub fn status(&self) -> StoreStatus {
        StoreStatus {
            keys: self.index.len() as u64,
            keys_expiring: self.expiry.len() as u64,
            segments: self.supply.manifest().segments.len() as u64,
            segment_bytes: self.supply.manifest().segments.iter().map(|s| s.len).sum(),
            cache_bytes: self.cache.bytes(),
            cache_hits: self.cache.hits,
            cache_misses: self.cache.misses,
            disk_reads: self.reads.started,
            damaged_reads: self.reads.damaged,
            log: self.log.counters(),
            last_lsn: self.log.last_lsn(),
            durable_lsn: self.log.durable_lsn(),
            suspect: self.suspect,
            disk_full: self.supply.is_disk_full(),
        }
    }

    /// Sets the time that commands go by, and collects keys that have expired by then.
    pub fn set_now(&mut self, now: Now) {
        self.now = now;
        for _ in 0..EXPIRED_PER_STEP_MAX {
            let Some(key) = self.expiry.pop_expired(now.clock_ms) else {
                break;
            };
            if let Some(slot) = self.index.remove(&key) {
                self.cache.remove(&slot.location);
                if slot.lsn > self.log.durable_lsn() {
                    // Without this record an older value would be back, so its absence rests on it.
                    self.unsettled.note_removal(slot.lsn, key);
                }
            }
        }
    }

    /// Ends a turn: what was appended goes out, an idle log says so, a spare segment is prepared.
    pub fn end_turn(&mut self) {
        if self.log.wants_idle_frame() {
            let since = *self.idle_since_ns.get_or_insert(self.now.monotonic_ns);
            if self.now.monotonic_ns >= since + IDLE_FRAME_AFTER_NS {
                self.log.open_idle_frame();
                self.idle_since_ns = None;
            }
        } else {
            self.idle_since_ns = None;
        }
        self.log.submit(self.now.clock_ms);
        self.pump_log();
        self.pump_supply();
    }

    /// Writes the idle frame now if one is due; for an orderly shutdown.
    pub fn seal(&mut self) {
        self.log.open_idle_frame();
        self.end_turn();
    }

    /// Whether everything written is durable, said so on disk as far as there is room, and no disk
    /// work is under way.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        self.log.is_quiet() && self.sources.is_empty() && self.outgoing.is_empty()
    }

    /// When [`Store::set_now`] and [`Store::end_turn`] are wanted next, if nothing else happens.
    #[must_use]
    pub fn deadline_ns(&self) -> Option<u64> {
        let idle = self.idle_since_ns.map(|since| since + IDLE_FRAME_AFTER_NS);
        let expiry = self.expiry.next_ms().map(|expiry_ms| {
            let left_ms = expiry_ms.saturating_sub(self.now.clock_ms);
            self.now.monotonic_ns.saturating_add(left_ms.saturating_mul(1_000_000))
        });
        [idle, expiry, self.supply.retry_at_ns()].into_iter().flatten().min()
    }

    /// Takes the next disk request to carry out.
    pub fn poll_request(&mut self) -> Option<DiskRequest> {
        self.outgoing.pop_front()
    }

    /// Takes the next event.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Whether there is an event to take.
    #[must_use]
    pub fn has_events(&self) -> bool {
        !self.events.is_empty()
    }

    /// Takes the end of a disk request.
    ///
    /// # Panics
    /// If no such request is under way.
    pub fn handle_disk(&mut self, completion: DiskCompletion) {
        let source = self.sources.remove(&completion.id);
        match source.expect("a driver completes each request once") {
            Source::Frame(number) => {
                let result = completion.result.map(|_| ());
                self.handle_frame(number, result, completion.buffer);
            }
            Source::Supply(inner) => {
                self.supply.handle_disk(DiskCompletion { id: inner, ..completion });
                self.pump_supply();
            }
            Source::Read => self.handle_read(completion),
        }
    }

    fn handle_frame(
        &mut self,
        number: u64,
        result: Result<(), DiskError>,
        buffer: Option<IoBuffer>,
    ) {
        let failed_before = self.log.failure().is_some();
        if self.log.handle_written(number, result, buffer) {
            let durable_lsn = self.log.durable_lsn();
            self.unsettled.settle(durable_lsn, &self.index, &mut self.cache);
            self.events.push_back(Event::Durable(durable_lsn));
        }
        if let (false, Some(error)) = (failed_before, self.log.failure()) {
            self.events.push_back(Event::Failed(error));
        }
        self.pump_log();
        self.tell_writable();
    }

    fn pump_log(&mut self) {
        while let Some(write) = self.log.poll_write() {
            self.submit(Source::Frame(write.number), write.operation);
        }
        // Segments that were left stay open for reads; nothing else is to be done for them here.
        while self.log.poll_left().is_some() {}
    }

    fn pump_supply(&mut self) {
        let wanted = self.log.failure().is_none() && self.log.spare_count() == 0;
        self.supply.set_room(self.log.room());
        self.supply.advance(self.now, wanted);
        while let Some(request) = self.supply.poll_request() {
            self.submit(Source::Supply(request.id), request.operation);
        }
        if let Some(segment) = self.supply.take_segment() {
            self.files.insert(segment.id, segment.file);
            self.log.add_segment(segment);
            self.tell_writable();
        }
        if self.supply.take_refusal() {
            self.tell_writable();
        }
    }

    fn tell_writable(&mut self) {
        if std::mem::take(&mut self.starved) {
            self.events.push_back(Event::Writable);
        }
    }

    fn submit(&mut self, source: Source, operation: DiskOperation) -> RequestId {
        let id = RequestId(self.next_request);
        self.next_request += 1;
        self.sources.insert(id, source);
        self.outgoing.push_back(DiskRequest { id, operation });
        id
    }
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Store({}, {} keys)", self.directory, self.index.len())
    }
}
