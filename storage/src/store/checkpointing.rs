//! Checkpoints while the store is at work: when one is due, how fast it is written, and when it
//! counts.
//!
//! ```text
//! idle -> cut at L, written in steps -> L durable -> manifest -> the older one removed -> idle
//!                     \______ failed: counted, tried again later ______/
//! ```
//!
//! The cut holds what every record up to L did and nothing that a later one did; records not yet
//! durable among them become so before the manifest names the file, so that no checkpoint tells of
//! a record that a crash has taken.
//!
//! On an orderly shutdown the last one is written at full speed, if reading the log since would
//! take the next start longer.

use wal::Lsn;
use wal::disk::{DiskCompletion, DiskError, DiskOperation, RequestId};
use wal::manifest::CheckpointEntry;
use wal::procedure::Procedure;
use wal::record::Version;

use super::manifest_keeper::EditId;
use super::{Source, Store};
use crate::checkpoint::write::{CheckpointWriter, CompleteCheckpoint, Step};
use crate::checkpoint::{BASES_MAX, CheckpointFacts, CheckpointId, SegmentSummary, file_name};
use crate::recovery::CHECKPOINT_FILE;

/// A checkpoint is written at this many bytes per second.
const BYTES_PER_SECOND: u64 = 256 << 20;
/// One step copies at most this much, well below a millisecond's work.
const STEP_BYTES_MAX: u64 = 256 << 10;
/// It waits until it may copy this much.
const STEP_BYTES_MIN: u64 = 64 << 10;
/// On an orderly shutdown, less log than this is not worth a checkpoint…
const CLOSING_LOG_BYTES_MIN: u64 = 1 << 20;
/// …nor is less than this part of the index's bytes: both would be read about as fast.
const CLOSING_INDEX_SHARE: u64 = 4;
/// After a failure the next one is begun this many nanoseconds later.
const RETRY_AFTER_NS: u64 = 10_000_000_000;
const NS_PER_SECOND: u64 = 1_000_000_000;

/// How a checkpoint is read at the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CheckpointLoader {
    /// With several reads in flight, into the index's own memory.
    #[default]
    Direct,
    /// As a private mapping of the file that becomes the index's memory.
    Mapped,
}

/// When checkpoints are written and how they are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CheckpointOptions {
    /// One is due when the log since the last has grown by this many bytes…
    pub log_bytes_min: u64,
    /// …and by this many times the bytes of the index.
    pub index_bytes_factor: u64,
    /// How the newest one is read at the start.
    pub loader: CheckpointLoader,
}

impl CheckpointOptions {
    /// No checkpoint is ever due.
    pub const NEVER: Self =
        Self { log_bytes_min: u64::MAX, index_bytes_factor: 0, loader: CheckpointLoader::Direct };
}

impl Default for CheckpointOptions {
    fn default() -> Self {
        Self {
            log_bytes_min: 256 << 20,
            index_bytes_factor: 4,
            loader: CheckpointLoader::default(),
        }
    }
}

/// What has become of checkpoints since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CheckpointCounters {
    /// Checkpoints that count.
    pub published: u64,
    /// Bytes of these.
    pub bytes: u64,
    /// Checkpoints that could not be written, published, or removed when they were old.
    pub failed: u64,
    /// Why the last of those failed.
    pub failure: Option<DiskError>,
}

/// A checkpoint under way.
enum Stage {
    Idle,
    Writing(Box<CheckpointWriter>, Cut),
    /// Its file is complete; a record in it may not be durable yet.
    Complete(CompleteCheckpoint, Cut),
    Publishing(EditId, CheckpointEntry, Cut),
    /// A file that no manifest names goes.
    Removing(Procedure<Result<(), DiskError>>),
}

/// What the cut was made of.
#[derive(Clone, Copy)]
struct Cut {
    lsn: Lsn,
    /// Log bytes counted until then.
    log_bytes: u64,
    /// Freed numbers that only older checkpoints name.
    numbers: usize,
}

/// The state of checkpoints.
pub(super) struct Checkpointing {
    options: CheckpointOptions,
    stage: Stage,
    /// The one in the manifest.
    published: Option<CheckpointEntry>,
    /// Bytes of records appended since the cut of that one.
    log_bytes: u64,
    version_max: Version,
    retry_at_ns: u64,
    earned: u64,
    earned_at_ns: u64,
    /// The store is being shut down, until the next write.
    closing: bool,
    pub(super) counters: CheckpointCounters,
}

impl Checkpointing {
    pub(super) fn new(
        options: CheckpointOptions,
        published: Option<CheckpointEntry>,
        log_bytes: u64,
        version_max: Version,
    ) -> Self {
        Self {
            options,
            stage: Stage::Idle,
            published,
            log_bytes,
            version_max,
            retry_at_ns: 0,
            earned: 0,
            earned_at_ns: 0,
            closing: false,
            counters: CheckpointCounters::default(),
        }
    }

    /// Notes that a record was appended.
    pub(super) fn note_append(&mut self, len: u64) {
        self.log_bytes += len;
    }

    /// Notes a new record's version; a copy's is known.
    pub(super) fn note_write(&mut self, version: Version) {
        self.version_max = self.version_max.max(version);
        self.closing = false;
    }

    /// Nothing is to follow but an orderly end: what is worth it gets a checkpoint, without pacing.
    pub(super) fn close(&mut self) {
        self.closing = true;
    }

    /// Whether an orderly end has to wait.
    pub(super) fn is_closing(&self) -> bool {
        self.closing && !matches!(self.stage, Stage::Idle)
    }

    /// Log bytes since the last one from which on another is due.
    fn threshold(&self, index_bytes: u64) -> u64 {
        let CheckpointOptions { log_bytes_min, index_bytes_factor, .. } = self.options;
        let due = log_bytes_min.max(index_bytes.saturating_mul(index_bytes_factor));
        if self.closing && self.options.log_bytes_min < u64::MAX {
            due.min(CLOSING_LOG_BYTES_MIN.max(index_bytes / CLOSING_INDEX_SHARE))
        } else {
            due
        }
    }

    /// Whether an edit puts another checkpoint into the manifest right now.
    pub(super) fn is_publishing(&self) -> bool {
        matches!(self.stage, Stage::Publishing(..))
    }

    /// Takes what may be copied now; 0 if it is too little to bother.
    fn take_budget(&mut self, now_ns: u64) -> usize {
        if self.closing {
            return usize::MAX;
        }
        let elapsed = u128::from(now_ns.saturating_sub(self.earned_at_ns));
        let earned = elapsed * u128::from(BYTES_PER_SECOND) / u128::from(NS_PER_SECOND);
        if earned > 0 {
            let earned = u64::try_from(earned).unwrap_or(u64::MAX);
            self.earned = self.earned.saturating_add(earned).min(STEP_BYTES_MAX);
            self.earned_at_ns = now_ns;
        }
        if self.earned < STEP_BYTES_MIN {
            return 0;
        }
        usize::try_from(std::mem::take(&mut self.earned)).expect("a step is small")
    }

    /// When to go on, if that is only a matter of time.
    pub(super) fn deadline_ns(&self) -> Option<u64> {
        let Stage::Writing(writer, _) = &self.stage else { return None };
        let missing = STEP_BYTES_MIN.saturating_sub(self.earned);
        let wait_ns = (missing * NS_PER_SECOND).div_ceil(BYTES_PER_SECOND);
        writer.is_copying().then(|| self.earned_at_ns.saturating_add(wait_ns))
    }

    fn fail(&mut self, now_ns: u64, error: DiskError) {
        self.counters.failed += 1;
        self.counters.failure = Some(error);
        self.retry_at_ns = now_ns.saturating_add(RETRY_AFTER_NS);
    }
}

impl Store {
    /// Begins a checkpoint if one is due, and goes on with what is under way.
    pub(super) fn step_checkpoint(&mut self) {
        if let (Stage::Writing(writer, _), Some(error)) =
            (&mut self.checkpointing.stage, self.log.failure())
        {
            writer.cancel(error);
        }
        if matches!(self.checkpointing.stage, Stage::Idle) && self.is_checkpoint_due() {
            self.begin_checkpoint();
        }
        self.pump_checkpoint();
    }

    fn is_checkpoint_due(&self) -> bool {
        let checkpointing = &self.checkpointing;
        let published = checkpointing.published.map_or(Lsn::ZERO, |entry| entry.lsn);
        checkpointing.log_bytes >= checkpointing.threshold(self.catalog.index.bytes())
            && self.log.last_lsn() > published
            && self.log.failure().is_none()
            && checkpointing.retry_at_ns <= self.now.monotonic_ns
            && self.catalog.bases().len() <= BASES_MAX
    }

    fn begin_checkpoint(&mut self) {
        let lsn = self.log.last_lsn();
        let active = self.log.active().map(|(open, _)| open.id);
        let segments = self.catalog.segments.iter().map(|(number, segment)| SegmentSummary {
            number,
            id: segment.id,
            end: segment.end,
            lsns: segment.lsns,
            tombstone_bytes: segment.tombstone_bytes,
            complete: segment.lsns.is_some_and(|(_, last)| last < lsn)
                && Some(segment.id) != active,
            has_clear: segment.has_clear,
        });
        let facts = CheckpointFacts {
            id: CheckpointId {
                store: self.identity.store,
                shard: self.identity.shard,
                shard_count: self.identity.shard_count,
                lsn,
            },
            version_max: self.checkpointing.version_max,
            wall_ms: self.now.clock_ms,
            segments: segments.collect(),
            bases: self.catalog.bases().iter().map(|(key, slot)| (*key, *slot)).collect(),
        };
        let (index, directory) = (&mut self.catalog.index, self.directory.clone());
        let writer = CheckpointWriter::begin(index, facts, directory, CHECKPOINT_FILE);
        let log_bytes = self.checkpointing.log_bytes;
        let cut = Cut { lsn, log_bytes, numbers: self.catalog.segments.resting() };
        self.checkpointing.stage = Stage::Writing(Box::new(writer), cut);
    }

    fn pump_checkpoint(&mut self) {
        let stage = std::mem::replace(&mut self.checkpointing.stage, Stage::Idle);
        let stage = match stage {
            Stage::Writing(writer, cut) => self.step_writer(writer, cut),
            other => other,
        };
        self.checkpointing.stage = match stage {
            Stage::Complete(complete, cut) => self.publish(complete, cut),
            Stage::Removing(removing) => self.pump_old_checkpoint(removing),
            other => other,
        };
    }

    fn step_writer(&mut self, mut writer: Box<CheckpointWriter>, cut: Cut) -> Stage {
        loop {
            let copying = writer.is_copying();
            let now_ns = self.now.monotonic_ns;
            let budget = if copying { self.checkpointing.take_budget(now_ns) } else { 1 };
            if budget == 0 {
                return Stage::Writing(writer, cut);
            }
            match writer.step(&mut self.catalog.index, budget) {
                Step::Start(operation) => drop(self.submit(Source::Checkpoint(None), operation)),
                Step::Paused | Step::Waiting => return Stage::Writing(writer, cut),
                Step::Complete(complete) => return Stage::Complete(complete, cut),
                Step::Failed(error) => {
                    self.checkpointing.fail(now_ns, error);
                    return Stage::Idle;
                }
            }
        }
    }

    /// Names the checkpoint in the manifest, once all that it tells of is durable.
    fn publish(&mut self, complete: CompleteCheckpoint, cut: Cut) -> Stage {
        if let Some(error) = self.log.failure() {
            self.checkpointing.fail(self.now.monotonic_ns, error);
            return self.remove_checkpoint(cut.lsn);
        }
        // A snapshot may be about to link the one that this would replace.
        if self.log.durable_lsn() < cut.lsn || self.snapshots.holds_files() {
            return Stage::Complete(complete, cut);
        }
        self.snapshots.note_checkpoint(cut.lsn, complete.crc32);
        let entry = CheckpointEntry { lsn: cut.lsn, len: complete.len };
        let edit = self.keeper.edit(move |manifest| {
            manifest.checkpoint = Some(entry);
            manifest.durable_lsn = manifest.durable_lsn.max(entry.lsn);
        });
        Stage::Publishing(edit, entry, cut)
    }

    /// Takes the end of an edit of the manifest, if it is a checkpoint's.
    pub(super) fn handle_checkpoint_edit(&mut self, id: EditId, result: Result<(), DiskError>) {
        let Stage::Publishing(edit, entry, cut) = self.checkpointing.stage else { return };
        if edit != id {
            return;
        }
        let now_ns = self.now.monotonic_ns;
        let obsolete = match result {
            Ok(()) => {
                self.checkpointing.counters.published += 1;
                self.checkpointing.counters.bytes += entry.len;
                self.checkpointing.log_bytes -= cut.log_bytes;
                self.catalog.segments.wake(cut.numbers);
                self.checkpointing.published.replace(entry).map(|older| older.lsn)
            }
            Err(error) => {
                self.checkpointing.fail(now_ns, error);
                // If a copy names it all the same, recovery does without.
                Some(entry.lsn)
            }
        };
        self.checkpointing.stage = match obsolete {
            Some(lsn) => self.remove_checkpoint(lsn),
            None => Stage::Idle,
        };
        self.pump_checkpoint();
    }

    fn remove_checkpoint(&self, lsn: Lsn) -> Stage {
        let name = file_name(&self.directory, lsn);
        Stage::Removing(Procedure::new(move |port| async move {
            port.call(DiskOperation::Remove { name }).await.map(drop)
        }))
    }

    fn pump_old_checkpoint(&mut self, mut removing: Procedure<Result<(), DiskError>>) -> Stage {
        while let Some(request) = removing.poll_request() {
            self.submit(Source::Checkpoint(Some(request.id)), request.operation);
        }
        match removing.take_output() {
            None => return Stage::Removing(removing),
            Some(Ok(())) => {}
            // The next start removes it.
            Some(Err(error)) => {
                self.checkpointing.counters.failed += 1;
                self.checkpointing.counters.failure = Some(error);
            }
        }
        Stage::Idle
    }

    /// Takes the end of an operation of the writer, or of a removal (`inner`).
    pub(super) fn handle_checkpoint(
        &mut self,
        inner: Option<RequestId>,
        completion: DiskCompletion,
    ) {
        match (&mut self.checkpointing.stage, inner) {
            (Stage::Writing(writer, _), None) => writer.handle_disk(completion),
            (Stage::Removing(removing), Some(id)) => {
                removing.handle_disk(DiskCompletion { id, ..completion });
            }
            _ => panic!("a completion belongs to what is under way"),
        }
        self.pump_checkpoint();
    }
}
