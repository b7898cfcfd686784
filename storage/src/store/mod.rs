//! [`Store`]: one shard's commands, its log, and the routing of its disk work.

use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

use bytes::Bytes;
use wal::Lsn;
use wal::disk::{BufferSource, IoBuffer, RequestId};
use wal::disk::{DiskCompletion, DiskError, DiskOperation, DiskRequest, FileId, FileName};
use wal::group_commit::{GroupCommit, GroupCommitLimits, OpenSegment};
use wal::manifest::Manifest;
use wal::record::{Key, Version};
use wal::replay::Damage;
use wal::segment::Identity;

use crate::cache::ReadCache;
use crate::catalog::Catalog;
use crate::clock::Now;
use crate::error::ReadError;
use crate::hot::HotValues;
use crate::index::Cursor;
use crate::knowledge::{Recents, Resolved};
use crate::overwriters::Overwriters;
use crate::segments::{Segment, SegmentState};
use crate::value_chunks::ValueChunks;

mod by_id;
mod checkpointing;
mod compaction;
mod compaction_counters;
mod disk_read;
#[cfg(test)]
mod error_tests;
mod extent;
mod extent_compaction;
mod extent_copy;
#[cfg(test)]
mod extent_tests;
#[cfg(test)]
mod full_disk_tests;
mod manifest_keeper;
#[cfg(test)]
mod model_tests;
mod pace;
pub(crate) mod pool;
mod read;
mod retire;
mod scan;
mod scrub;
#[cfg(test)]
mod scrub_tests;
mod snapshot;
#[cfg(test)]
mod snapshot_tests;
mod status;
mod supply;
#[cfg(test)]
mod tests;
mod write;

pub use checkpointing::{CheckpointCounters, CheckpointLoader, CheckpointOptions};
pub use compaction_counters::CompactionCounters;
pub use extent::SharedPut;
pub(crate) use scrub::hides_extents;
pub use scrub::{Repair, RepairReason, ScrubStatus};
pub use snapshot::{FileContent, FileTail, SnapshotFile};
pub use status::StoreStatus;

use checkpointing::Checkpointing;
use compaction::{COPIES_LEN_MIN, Compaction};
use disk_read::Reads;
use extent::Extents;
pub(crate) use extent::base_len;
use manifest_keeper::ManifestKeeper;
use read::Jobs;
use retire::Retirement;
use scan::Scans;
use scrub::Scrub;
use snapshot::Snapshots;
use supply::{SegmentSupply, SupplyBasis};
pub(crate) use write::{REWRITTEN_LEN_MAX, parts_len, tombstone};

/// An idle log says that everything is durable after this many nanoseconds (DESIGN 3.4).
const IDLE_FRAME_AFTER_NS: u64 = 50_000_000;
/// Most keys that one step expires.
const EXPIRED_PER_STEP_MAX: usize = 1024;
/// Expiries known by their hints alone are looked for this often, in nanoseconds.
const SWEEP_EVERY_NS: u64 = 100_000_000;
/// The whole index is looked at in this many sweeps, if that takes no more slots per sweep than the
/// limit: a step stays below a millisecond.
const SWEEPS_PER_ROUND: u64 = 600;
const SWEEP_SLOTS_MIN: u64 = 256;
const SWEEP_SLOTS_MAX: u64 = 16 << 10;

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
    /// What it may take of the disk.
    pub limits: StoreLimits,
    /// Limits of the log.
    pub log: GroupCommitLimits,
    /// Where the memory of reads and frames comes from.
    pub buffers: Rc<dyn BufferSource>,
    /// When checkpoints are written and how they are read.
    pub checkpoints: CheckpointOptions,
    /// Whether recovery may go by segments' footers instead of scanning their frames.
    pub footers: bool,
}

/// What a store may take of the disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StoreLimits {
    /// Bytes of segment files, the spare included; at this limit the store behaves as on a full
    /// disk. At least [`StoreLimits::DISK_SEGMENTS_MIN`] segments of full size.
    pub disk_bytes_max: Option<u64>,
    /// Bytes that the scrub reads per second; 0 turns it off.
    pub scrub_bytes_per_second: u64,
    /// Bytes of keys of overwriting records that are remembered, so that compaction need not read
    /// them; 0: none.
    pub overwriter_bytes_max: usize,
    /// Dead bytes are compared with so many segments of live ones at least, before compaction
    /// begins.
    pub live_segments_min: u64,
    /// What has expired stays so long, and can be read, walked over and told apart by its expiry:
    /// it is evidence for other holders of the key.
    pub expired_stay_ms: u64,
}

impl StoreLimits {
    /// A store with fewer segments could not compact: one is in use, one is its spare, one is being
    /// compacted, and one holds what is live.
    pub const DISK_SEGMENTS_MIN: u64 = 4;
    /// What a node gives each shard as [`StoreLimits::overwriter_bytes_max`]: 1.6 million records.
    pub const OVERWRITER_BYTES: usize = 32 << 20;
    /// What a node gives each shard as [`StoreLimits::live_segments_min`].
    pub const LIVE_SEGMENTS_MIN: u64 = 24;
}

/// A key: its id, and the bytes its user knows it by.
#[derive(Clone, Copy, Debug)]
pub struct KeyRef<'a> {
    /// The key id.
    pub id: Key,
    /// The user key.
    pub user_key: &'a [u8],
    /// Whether `id` is SHA-1 of `user_key`: then records need not hold it.
    pub hashed: bool,
}

impl<'a> KeyRef<'a> {
    /// A key whose id is SHA-1 of the user key, as the caller knows.
    #[must_use]
    pub fn hashed(id: Key, user_key: &'a [u8]) -> Self {
        Self { id, user_key, hashed: true }
    }

    /// A key with an id of any other origin.
    #[must_use]
    pub fn given(id: Key, user_key: &'a [u8]) -> Self {
        Self { id, user_key, hashed: false }
    }
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

/// What a live key's newest record says besides its value.
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

/// The answer to a get by id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GetRecord {
    /// There is no such key.
    Missing,
    /// The value was in memory: the user key, and the value.
    Found(Bytes, Value),
    /// [`Event::Read`] will tell.
    Pending(ReadId),
}

/// The answer to a lookup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lookup {
    /// There is no such key.
    Missing,
    /// There is.
    Found(Entry),
    /// The disk must tell: after [`Event::Resolved`], ask again.
    Pending(ReadId),
}

/// What a write that needs to know the key's old state has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// It was written, as this record; `None` if there is no such key.
    Done(Option<Lsn>),
    /// Nothing has happened yet, the disk must tell: after [`Event::Resolved`], ask again.
    Pending(ReadId),
}

/// A live key, as a walk finds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScannedKey {
    /// The key id.
    pub key: Key,
    /// The user key.
    pub user_key: Bytes,
    /// The version.
    pub version: Version,
    /// Milliseconds since 1970, 0 = never.
    pub expiry_ms: u64,
}

/// What a store tells its owner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Everything up to this record may be acknowledged: it is durable, or as good as the log's
    /// [`CommitDurability`](wal::group_commit::CommitDurability) asks for.
    Durable(Lsn),
    /// A read has ended: user key and value. `None` if the key turned out to be another one.
    Read {
        /// Which read.
        id: ReadId,
        /// What it found.
        result: Result<Option<(Bytes, Value)>, ReadError>,
    },
    /// What was asked about a key can be answered now; ask again.
    Resolved {
        /// Which question.
        id: ReadId,
    },
    /// The answer to a scan.
    Scanned {
        /// Which scan.
        id: ReadId,
        /// Live keys, in key order.
        keys: Vec<ScannedKey>,
        /// Where to go on; `None` at the end of the key space.
        next: Option<Key>,
    },
    /// A snapshot has ended.
    Snapshotted {
        /// Its files, all of them durable, as is their directory.
        result: Result<Vec<SnapshotFile>, DiskError>,
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
        /// Its offset there, in bytes, rounded down to a multiple of 64.
        offset: u64,
    },
    /// The scrub found bytes that are not what was written; of damaged records whose keys are
    /// known, [`Event::Damaged`] tells as well.
    Flaw {
        /// The file.
        file: FileName,
        /// Where in it, in bytes.
        offset: u64,
        /// How many.
        len: u64,
        /// What is wrong.
        damage: Damage,
    },
}

/// What recovery hands over.
pub(crate) struct Foundation {
    pub(crate) options: StoreOptions,
    pub(crate) manifest: Manifest,
    pub(crate) catalog: Catalog,
    pub(crate) first: Option<OpenSegment>,
    pub(crate) shelved: Vec<pool::Shelved>,
    pub(crate) next_file: FileId,
    pub(crate) durable_lsn: Lsn,
    pub(crate) log_ms: u64,
    pub(crate) version_max: Version,
    pub(crate) suspect: bool,
    /// Bytes of log that no checkpoint covers.
    pub(crate) log_bytes: u64,
}

/// Who a disk request belongs to.
enum Source {
    Frame(u64),
    Supply(RequestId),
    Keeper(RequestId),
    /// Removing the segment of this id.
    Removal(u64, RequestId),
    Window(u64),
    Snapshot(RequestId),
    /// The checkpoint being written, or the removal of one.
    Checkpoint(Option<RequestId>),
    Read,
    Scrub,
    /// A piece of an extent that is moved.
    Extent(u64),
}

/// One shard: see the crate's documentation for how it is driven.
pub struct Store {
    directory: FileName,
    identity: Identity,
    segment_bytes: u64,
    buffers: Rc<dyn BufferSource>,
    now: Now,
    log: GroupCommit,
    catalog: Catalog,
    cache: ReadCache,
    hot: HotValues,
    recents: Recents,
    values: ValueChunks,
    resolved: Resolved,
    overwriters: Overwriters,
    jobs: Jobs,
    scans: Scans,
    reads: Reads,
    supply: SegmentSupply,
    keeper: ManifestKeeper,
    compaction: Compaction,
    extents: Extents,
    scrub: Scrub,
    checkpointing: Checkpointing,
    retirements: Vec<Retirement>,
    snapshots: Snapshots,
    sources: BTreeMap<RequestId, Source>,
    next_request: u64,
    outgoing: VecDeque<DiskRequest>,
    events: VecDeque<Event>,
    version_max: Version,
    suspect: bool,
    /// Whether a write was refused as busy and waits for [`Event::Writable`].
    starved: bool,
    idle_since_ns: Option<u64>,
    sweep_cursor: Cursor,
    sweep_at_ns: u64,
}

impl Store {
    pub(crate) fn new(foundation: Foundation) -> Self {
        let Foundation { options, manifest, mut catalog, first, next_file, .. } = foundation;
        let identity = manifest.identity;
        let (durable_lsn, log_ms) = (foundation.durable_lsn, foundation.log_ms);
        let mut log = GroupCommit::new(identity.store, options.log, durable_lsn, log_ms)
            .with_buffers(Rc::clone(&options.buffers));
        catalog.segments.note_start();
        if let Some(segment) = first
            && catalog.segments.add(Segment::new(segment, SegmentState::Open)).is_some()
        {
            log.add_segment(segment);
        }
        let checkpointing = Checkpointing::new(
            options.checkpoints,
            manifest.checkpoint,
            foundation.log_bytes,
            foundation.version_max,
        );
        let regular = manifest.segments.iter().map(|segment| segment.len);
        let regular = regular.filter(|len| *len <= options.segment_bytes);
        let basis = SupplyBasis {
            next_file,
            last_len: first.map_or(0, |segment| segment.len),
            longest_len: regular.max().unwrap_or(0),
            shelved: foundation.shelved,
        };
        let supply = SegmentSupply::new(
            options.directory.clone(),
            options.segment_bytes,
            options.limits.disk_bytes_max,
            basis,
        );
        catalog.expired_stay_ms = options.limits.expired_stay_ms;
        let hot = HotValues::new(options.cache_bytes);
        Self {
            directory: options.directory,
            identity,
            segment_bytes: options.segment_bytes,
            buffers: options.buffers,
            now: Now { monotonic_ns: 0, clock_ms: log_ms },
            log,
            catalog,
            cache: ReadCache::new(hot.rest(options.cache_bytes)),
            hot,
            recents: Recents::default(),
            values: ValueChunks::new(options.cache_bytes > 0),
            resolved: Resolved::default(),
            overwriters: Overwriters::new(options.limits.overwriter_bytes_max),
            jobs: Jobs::default(),
            scans: Scans::default(),
            reads: Reads::default(),
            supply,
            snapshots: Snapshots::new(manifest.next_segment),
            keeper: ManifestKeeper::new(manifest),
            compaction: Compaction::new(options.limits.live_segments_min),
            extents: Extents::new(&options.log),
            scrub: Scrub::new(options.limits.scrub_bytes_per_second),
            checkpointing,
            retirements: Vec::new(),
            sources: BTreeMap::new(),
            next_request: 0,
            outgoing: VecDeque::new(),
            events: VecDeque::new(),
            version_max: foundation.version_max,
            suspect: foundation.suspect,
            starved: false,
            idle_since_ns: None,
            sweep_cursor: Cursor::default(),
            sweep_at_ns: 0,
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

    /// Everything up to here may be acknowledged, as the log's durability promises; never below
    /// [`Store::durable_lsn`], and equal to it if the log promises to lose nothing.
    #[must_use]
    pub fn acknowledged_lsn(&self) -> Lsn {
        self.log.acknowledged_lsn()
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

    /// Why there is no further segment for the log, if none is to be had: values are refused once
    /// the last one is full. It is tried again all the time.
    #[must_use]
    pub fn shortage(&self) -> Option<DiskError> {
        self.supply.shortage()
    }

    /// Number of live keys, expired ones not yet collected included; off by those whose first 40
    /// bits coincide.
    #[must_use]
    pub fn len(&self) -> usize {
        usize::try_from(self.catalog.keys()).unwrap_or(usize::MAX)
    }

    /// Whether there is no live key.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.catalog.keys() == 0
    }

    /// Whether a segment of this id is part of the store, or still on its way out.
    #[must_use]
    pub fn has_segment(&self, id: u64) -> bool {
        self.catalog.segments.by_id(id).is_some()
    }

    /// The time by which records are gone: what has expired stays for a while.
    fn expiry_clock_ms(&self) -> u64 {
        self.now.clock_ms.saturating_sub(self.catalog.expired_stay_ms)
    }

    /// Sets the time that commands go by, and collects keys that have expired by then.
    pub fn set_now(&mut self, now: Now) {
        self.now = now;
        for _ in 0..EXPIRED_PER_STEP_MAX {
            if !self.catalog.expire_next(now.clock_ms) {
                break;
            }
        }
        if self.catalog.wants_sweep() && self.sweep_at_ns <= now.monotonic_ns {
            self.sweep_at_ns = now.monotonic_ns + SWEEP_EVERY_NS;
            let slots = self.catalog.index.len() / SWEEPS_PER_ROUND;
            let slots = slots.clamp(SWEEP_SLOTS_MIN, SWEEP_SLOTS_MAX);
            let slots = usize::try_from(slots).expect("the limit is small");
            self.sweep_cursor = self.catalog.sweep(self.sweep_cursor, slots, now.clock_ms);
        }
    }

    /// Ends a turn: what was appended goes out, an idle log says so, a spare segment is prepared,
    /// compaction goes on.
    pub fn end_turn(&mut self) {
        // After a clear, the memory is given back a little at a time.
        self.catalog.index.release();
        self.choose_victim();
        self.step_compaction();
        if self.log.wants_idle_frame() {
            let since = *self.idle_since_ns.get_or_insert(self.now.monotonic_ns);
            if self.now.monotonic_ns >= since + IDLE_FRAME_AFTER_NS {
                self.log.open_idle_frame();
                self.idle_since_ns = None;
            }
        } else {
            self.idle_since_ns = None;
        }
        self.pump_snapshot();
        self.pump_extents();
        self.log.hold_copies(if self.compaction.goes_on() { COPIES_LEN_MIN } else { 0 });
        self.log.submit(self.now.clock_ms);
        self.pump_log();
        self.pump_scrub();
        self.pump_retirements();
        self.step_checkpoint();
        self.pump_supply();
    }

    /// Makes everything durable whatever the log promises, writes the idle frame now if one is
    /// due, and a checkpoint if that makes the next start faster; starts nothing else before the
    /// next write. For an orderly shutdown.
    pub fn seal(&mut self) {
        self.compaction.pause();
        self.log.request_sync();
        self.checkpointing.close();
        self.log.open_idle_frame();
        self.end_turn();
    }

    /// Whether everything written is durable, said so on disk as far as there is room, and no disk
    /// work is under way.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        self.log.is_quiet()
            && self.sources.is_empty()
            && self.outgoing.is_empty()
            && !self.checkpointing.is_closing()
    }

    /// When [`Store::set_now`] and [`Store::end_turn`] are wanted next, if nothing else happens.
    #[must_use]
    pub fn deadline_ns(&self) -> Option<u64> {
        let idle = self.idle_since_ns.map(|since| since + IDLE_FRAME_AFTER_NS);
        let expiry = self.catalog.next_expiry_ms().map(|expiry_ms| {
            let left_ms = expiry_ms.saturating_sub(self.now.clock_ms);
            self.now.monotonic_ns.saturating_add(left_ms.saturating_mul(1_000_000))
        });
        let sweep = self.catalog.wants_sweep().then_some(self.sweep_at_ns);
        let compaction = self.can_compact().then_some(self.now.monotonic_ns);
        let retry = self.supply.retry_at_ns();
        let sync = self.sync_due_ns();
        let paused = self.compaction.is_paused();
        let scrub = self.scrub.due_at_ns().filter(|_| !paused);
        let checkpoint = self.checkpointing.deadline_ns();
        let refused = self.refused_until_ns();
        let background = [compaction, checkpoint, scrub, refused, self.extents.deadline_ns()];
        [idle, expiry, sweep, retry, sync].into_iter().chain(background).flatten().min()
    }

    /// When the log is to be synced. A sync that is due already waits for frames under way, and is
    /// started when they end.
    fn sync_due_ns(&self) -> Option<u64> {
        let due_ms = self.log.sync_due_ms().filter(|due_ms| *due_ms > self.now.clock_ms)?;
        let left_ms = due_ms - self.now.clock_ms;
        Some(self.now.monotonic_ns.saturating_add(left_ms.saturating_mul(1_000_000)))
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
            Source::Keeper(inner) => {
                self.keeper.handle_disk(DiskCompletion { id: inner, ..completion });
                self.pump_supply();
            }
            Source::Removal(segment, inner) => {
                self.handle_removal(segment, inner, completion);
                self.pump_supply();
            }
            Source::Window(number) => {
                self.handle_window(number, completion);
                self.step_compaction();
            }
            Source::Snapshot(inner) => {
                self.handle_snapshot(DiskCompletion { id: inner, ..completion });
            }
            Source::Checkpoint(inner) => {
                self.handle_checkpoint(inner, completion);
                self.pump_supply();
            }
            Source::Read => self.handle_read(completion),
            Source::Scrub => self.handle_scrub(completion),
            Source::Extent(number) => {
                self.handle_copy_read(number, completion);
                self.pump_log();
            }
        }
    }

    fn handle_frame(
        &mut self,
        number: u64,
        result: Result<(), DiskError>,
        buffer: Option<IoBuffer>,
    ) {
        let failed_before = self.log.failure().is_some();
        let acknowledged_before = self.log.acknowledged_lsn();
        self.log.handle_written(number, result, buffer);
        let acknowledged_lsn = self.log.acknowledged_lsn();
        if acknowledged_lsn > acknowledged_before {
            // Until then the values are read from memory: their frames may not be written yet.
            self.recents.settle(acknowledged_lsn, &mut self.cache);
            self.events.push_back(Event::Durable(acknowledged_lsn));
        }
        if let (false, Some(error)) = (failed_before, self.log.failure()) {
            self.events.push_back(Event::Failed(error));
        }
        self.pump_extents();
        self.pump_log();
        self.tell_writable();
    }

    fn pump_log(&mut self) {
        while let Some(write) = self.log.poll_write() {
            self.submit(Source::Frame(write.number), write.operation);
        }
        // From here on nothing is written to such a segment any more: it can be compacted.
        while let Some(sealed) = self.log.poll_sealed() {
            self.snapshots.note_sealed(&sealed);
            if let Some(segment) = self.catalog.segments.by_id_mut(sealed.segment.id)
                && segment.state == SegmentState::Open
            {
                segment.state = SegmentState::Sealed;
            }
        }
    }

    fn pump_supply(&mut self) {
        let wanted = self.log.failure().is_none()
            && self.log.spare_count() == 0
            && self.catalog.segments.has_room();
        self.supply.set_room(self.log.room());
        if self.supply.is_limited() {
            let lens = self.catalog.segments.iter().map(|(_, segment)| segment.len);
            self.supply.set_in_use(lens.sum());
        }
        self.supply.advance(self.now, wanted, &mut self.keeper);
        self.pump_keeper();
        while let Some(request) = self.supply.poll_request() {
            self.submit(Source::Supply(request.id), request.operation);
        }
        if let Some(segment) = self.supply.take_segment()
            && self.catalog.segments.add(Segment::new(segment, SegmentState::Open)).is_some()
        {
            self.log.add_segment(segment);
            self.tell_writable();
        }
        if self.supply.take_news() {
            self.tell_writable();
        }
    }

    fn pump_keeper(&mut self) {
        while let Some((id, result)) = self.keeper.take_done() {
            self.supply.handle_edit(self.now, id, result);
            self.handle_retirement_edit(id, result);
            self.handle_checkpoint_edit(id, result);
        }
        while let Some(request) = self.keeper.poll_request() {
            self.submit(Source::Keeper(request.id), request.operation);
        }
    }

    pub(super) fn tell_writable(&mut self) {
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
        write!(f, "Store({}, {} keys)", self.directory, self.catalog.keys())
    }
}
