//! One store on the simulated disk, in virtual time, everything from one seed: random commands,
//! completions in random order, and at many disk requests a crash that is recovered from.
//!
//! ```text
//! generation: open -> (clock, commands, end of turn, requests, completions)* -> crash or seal
//!                  \____ at requests: clone the disk, crash it, recover, compare ____/
//! ```
//!
//! Each seed draws its own mix of configuration, commands and faults (`swarm`). The oracle is
//! [`model::Model`]: an acknowledged state is there or a later one of the same key is (after a
//! power loss a durable one, if the log promises no more); nothing else is ever seen; what an
//! answer rests on is named by `Store::observed`. Once faults heal, writing resumes or the store
//! says that it only reads.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};

use fastrand::Rng;
use storage::mutation::{self, Mutation};
use storage::{Now, Opened, ReadId, StoreOptions};
use wal::Lsn;
use wal::disk::{DiskError, DiskOperation, DiskRequest};
use wal::group_commit::CommitDurability;

mod adapter;
mod commands;
mod damage;
mod episodes;
pub mod errors;
pub mod model;
pub mod recovery;
mod snapshots;
mod swarm;
mod timeline;
mod wire;

use crate::disk::{OperationKind, SimulatedDisk};
use crate::tally::{Occurrence, Tally};
use adapter::{StoreUnderTest, Told};
use commands::Waiting;
use model::{CrashKind, KeyState, Model};
use recovery::{Again, Crash, Depth, Recovered, inspect};
use snapshots::Snapshots;
use swarm::Mix;
use timeline::Timeline;
use wire::Wire;

/// A defect that the oracle must notice: it shows that it can.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlantedBug {
    /// None: the disk keeps its promises, and the store is as it is.
    Nothing,
    /// Now and then a durable write reports success and lands nowhere.
    LosesDurableWrites,
    /// Durable writes are acknowledged while they are cached only.
    AcknowledgesCachedWrites,
    /// Directory syncs do nothing.
    IgnoresSyncDirectory,
    /// File syncs do nothing.
    IgnoresSync,
    /// Frames are acknowledged before their completion.
    AcknowledgesEarly,
    /// Frames call one record more durable than is.
    WatermarkOffByOne,
    /// Checksums do not depend on the segment: stale frames of other segments validate.
    ChecksumWithoutSegment,
    /// Compaction drops tombstones while older records of their keys may be around.
    DropsTombstonesEarly,
    /// A segment goes before the copies of what was live in it are durable.
    FreesSegmentsEarly,
    /// The file of a freed segment becomes another one although a snapshot has a link to it.
    RecyclesLinkedFiles,
    /// A key that takes no bytes is read as it was before it changed.
    KeepsEmptyHotValues,
}

impl PlantedBug {
    /// The bug as one of the store itself, if it is that.
    fn mutation(self) -> Option<Mutation> {
        match self {
            Self::DropsTombstonesEarly => Some(Mutation::TombstoneDroppedEarly),
            Self::FreesSegmentsEarly => Some(Mutation::SegmentFreedEarly),
            Self::RecyclesLinkedFiles => Some(Mutation::LinkedFileRecycled),
            Self::KeepsEmptyHotValues => Some(Mutation::EmptyHotValueKept),
            _ => None,
        }
    }
}

/// Where crashes are tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Crashes {
    /// Only those that end a generation.
    Never,
    /// At every disk request and every completion.
    Everywhere,
    /// At some of them: reading this many bytes in recoveries for each, on average.
    Sampled {
        /// Bytes.
        bytes_each: u64,
    },
    /// At some of them, with every image that a power loss can leave, and every second crash.
    Exhaustive {
        /// Images in all, at most.
        images_max: u64,
    },
}

/// A request that fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NthFailure {
    /// Which one, counted from 1.
    pub nth: u64,
    /// How.
    pub error: DiskError,
    /// Whether all after it fail as well.
    pub sticky: bool,
}

/// How much one seed tries.
#[derive(Clone, Copy, Debug)]
pub struct Trial {
    /// Commands, about.
    pub operations: u32,
    /// Where crashes are tried.
    pub crashes: Crashes,
    /// What is wrong.
    pub bug: PlantedBug,
    /// The one fault, if the seed shall draw none.
    pub failure: Option<NthFailure>,
}

impl Default for Trial {
    fn default() -> Self {
        Self {
            operations: 100,
            crashes: Crashes::Everywhere,
            bug: PlantedBug::Nothing,
            failure: None,
        }
    }
}

impl Trial {
    /// A trial of that many commands: crashes everywhere if they are few, else at some places.
    #[must_use]
    pub fn of(operations: u32) -> Self {
        let crashes = if operations <= 300 {
            Crashes::Everywhere
        } else {
            Crashes::Sampled { bytes_each: 48 << 10 }
        };
        Self { operations, crashes, ..Self::default() }
    }
}

/// What one seed has tried.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Commands carried out.
    pub operations: u64,
    /// Disk requests of the live store.
    pub requests: u64,
    /// Crash images recovered from.
    pub crashes: u64,
    /// Starts of the live store.
    pub generations: u64,
    /// Stores with damage at rest that were looked over.
    pub damaged: u64,
    /// What has gone wrong and what has been done.
    pub tally: Tally,
    /// Hash of everything that was done and of the disk at the end.
    pub trace: u64,
}

/// Runs one seed.
///
/// # Errors
/// What the oracle found, with the seed and the command that repeats it.
pub fn run(seed: u64, trial: Trial) -> Result<Summary, String> {
    if !mutation::plant(trial.bug.mutation()) {
        return Ok(Summary::default());
    }
    let mut world = StoreWorld::new(seed, trial);
    let outcome = world.live();
    // Without a bug there is nothing to take back.
    let _ = mutation::plant(None);
    outcome.map_err(|error| {
        let exhaustive =
            if matches!(trial.crashes, Crashes::Exhaustive { .. }) { " --exhaustive" } else { "" };
        format!(
            "{error}\n{:?}\nSEED={seed}\n\
             repeat: cargo run --release -p kadring-tests --bin sim -- \
             store --seeds 1 --from {seed} --operations {}{exhaustive}",
            world.mix, trial.operations
        )
    })
}

/// What may go wrong at the moment, and which answers are therefore in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Condition {
    Sound,
    /// Requests may fail: then some refusals are in order. Such a generation ends with a power
    /// loss, not a kill: the simulated disk would keep a failed write readable although no sync
    /// can save it any more, as a page cache does; the store reads the device itself.
    Faulty,
    /// Content at rest was damaged: reads may fail.
    Damaged,
}

/// A store, its disk, and what it may answer.
struct StoreWorld {
    trial: Trial,
    mix: Mix,
    options: StoreOptions,
    rng: Rng,
    crash_rng: Rng,
    wire: Wire,
    model: Model,
    store: Option<StoreUnderTest>,
    waiting: Waiting,
    time: Timeline,
    log_floor: LogFloor,
    window: SyncWindow,
    condition: Condition,
    crash_credit: u64,
    snapshots: Snapshots,
    tally: RefCell<Tally>,
    trace: DefaultHasher,
    summary: Summary,
}

/// The time that the log must know of: that of its newest durable record.
#[derive(Debug, Default)]
struct LogFloor {
    written: VecDeque<(Lsn, u64)>,
    ms: u64,
}

impl LogFloor {
    fn note_durable(&mut self, durable_lsn: Lsn) {
        while let Some((_, ms)) = self.written.pop_front_if(|(lsn, _)| *lsn <= durable_lsn) {
            self.ms = ms;
        }
    }
}

/// What was acknowledged before it was durable, and when: with an interval it must be durable soon.
#[derive(Debug, Default)]
struct SyncWindow {
    acknowledged: VecDeque<(Lsn, u64)>,
}

impl SyncWindow {
    /// Checks a store that has nothing under way after a turn.
    fn check(&self, store: &StoreUnderTest, ms: u32, now: Now) -> Result<(), String> {
        let Some((lsn, since_ms)) = self.acknowledged.front() else { return Ok(()) };
        let due_ms = since_ms + u64::from(ms);
        if due_ms <= now.clock_ms {
            return Err(format!(
                "LSN {lsn}, acknowledged at {since_ms}, is not durable at {now:?}"
            ));
        }
        let due_ns = now.monotonic_ns + (due_ms - now.clock_ms) * 1_000_000;
        if store.deadline_ns().is_none_or(|deadline_ns| deadline_ns > due_ns) {
            let deadline_ns = store.deadline_ns();
            return Err(format!("no turn is wanted by {due_ns} for a sync, but {deadline_ns:?}"));
        }
        Ok(())
    }
}

impl StoreWorld {
    fn new(seed: u64, trial: Trial) -> Self {
        let mut rng = Rng::with_seed(seed);
        let mut mix = Mix::draw(&mut rng, trial.operations);
        if trial.bug != PlantedBug::Nothing {
            // The bugs are of a log that promises to lose nothing.
            mix.options.log.durability = CommitDurability::Always;
            mix.options.limits.disk_bytes_max = None;
        }
        let mut disk = SimulatedDisk::new(rng.u64(..));
        disk.set_sector_size(mix.sector);
        if let Some(NthFailure { nth, error, sticky }) = trial.failure {
            disk.fail_nth_with(nth, OperationKind::Any, error, sticky);
        }
        Self {
            trial,
            options: mix.options.clone(),
            crash_rng: rng.fork(),
            wire: Wire::new(disk, mix.options.identity.store, trial.bug, rng.fork()),
            model: Model::new(mix.keys, mix.pattern, mix.key_lens),
            store: None,
            waiting: Waiting::default(),
            time: Timeline::new(mix.wall),
            log_floor: LogFloor::default(),
            window: SyncWindow::default(),
            condition: if trial.failure.is_some() { Condition::Faulty } else { Condition::Sound },
            crash_credit: 0,
            snapshots: Snapshots::default(),
            tally: RefCell::default(),
            trace: DefaultHasher::new(),
            summary: Summary::default(),
            mix,
            rng,
        }
    }

    fn live(&mut self) -> Result<Summary, String> {
        let generations = if self.trial.failure.is_some() { 1 } else { self.rng.u32(1..=4) };
        for generation in 0..generations {
            let last = generation + 1 == generations;
            self.open().map_err(|error| format!("generation {generation}, opening: {error}"))?;
            let count = self.trial.operations / generations;
            self.generation(count, last)
                .map_err(|error| format!("generation {generation}: {error}"))?;
            // A segment whose zeros went elsewhere is none of the store's making.
            if self.trial.bug == PlantedBug::Nothing
                && self.condition != Condition::Damaged
                && self.wire.disk.statistics().expensive_durable_writes > 0
            {
                return Err("a frame was written where nothing was before".to_owned());
            }
            self.count_deeds();
            let mut rng = self.rng.fork();
            self.check_snapshots(&mut rng)
                .map_err(|error| format!("generation {generation}, end: {error}"))?;
            if self.condition == Condition::Damaged {
                self.look_over().map_err(|error| format!("after live damage: {error}"))?;
                return Ok(self.finish());
            }
            self.crash_for_good();
        }
        self.open().map_err(|error| format!("after the last generation: {error}"))?;
        if self.trial.failure.is_none() {
            self.reread_one_key().map_err(|error| format!("one key at the end: {error}"))?;
        }
        Ok(self.finish())
    }

    fn finish(&mut self) -> Summary {
        (self.wire.disk.hash(), self.time.now.clock_ms).hash(&mut self.trace);
        self.absorb_live_disk();
        self.tally.get_mut().merge(&self.time.tally);
        self.summary.tally = *self.tally.get_mut();
        self.summary.trace = self.trace.finish();
        self.summary.requests = self.wire.disk.request_count();
        self.summary
    }

    fn count_deeds(&mut self) {
        let status = self.store().status();
        let counters = status.compaction;
        let deeds = [
            (Occurrence::SegmentFreed, counters.segments_freed),
            (Occurrence::SegmentRecycled, counters.segments_recycled),
            (Occurrence::SegmentUnfit, counters.segments_unfit),
            (Occurrence::BytesCopied, counters.bytes_copied),
            (Occurrence::TombstoneDropped, counters.tombstones_dropped),
            (Occurrence::CheckpointPublished, status.checkpoints.published),
            (Occurrence::ScrubPass, status.scrub.passes),
            (Occurrence::DiskRead, status.disk_reads),
            (Occurrence::ExtentWritten, status.log.extents),
        ];
        deeds.into_iter().for_each(|(what, count)| self.tally.get_mut().add(what, count));
    }

    /// Counts something that happened.
    fn note(&self, what: Occurrence) {
        self.tally.borrow_mut().note(what);
    }

    /// Counts what has gone wrong with a disk.
    fn absorb(&self, disk: &mut SimulatedDisk) {
        self.tally.borrow_mut().merge(&disk.take_tally());
    }

    fn absorb_live_disk(&mut self) {
        self.tally.get_mut().merge(&self.wire.disk.take_tally());
    }

    fn generation(&mut self, count: u32, last: bool) -> Result<(), String> {
        let heals = self.plan_faults();
        let before = self.rng.u32(..=count);
        self.work(before)?;
        let limited = self.is_limited() && self.rng.bool();
        if heals || limited || self.trial.failure.is_some() {
            self.heal().map_err(|error| format!("after healing: {error}"))?;
        }
        if last && self.wants_damage() && self.rng.u8(..4) == 0 {
            self.damage_live();
        }
        self.work(count - before)?;
        if last || self.condition == Condition::Damaged || self.rng.u8(..4) == 0 {
            self.seal().map_err(|error| format!("end: {error}"))?;
            if self.wants_damage() {
                self.damage_rounds()?;
            }
        }
        Ok(())
    }

    fn wants_damage(&self) -> bool {
        let planted =
            matches!(self.trial.bug, PlantedBug::Nothing | PlantedBug::ChecksumWithoutSegment);
        planted && self.mix.faults.damage && self.condition == Condition::Sound
    }

    fn crash_for_good(&mut self) {
        self.store = None;
        self.waiting = Waiting::default();
        self.snapshots.abandon();
        self.model.pin(None);
        self.absorb_live_disk();
        let mut rng = self.rng.fork();
        let mut disk = if rng.u8(..3) == 0 && self.condition == Condition::Sound {
            self.wire.disk.process_kill(&mut rng)
        } else {
            self.model.lose_power();
            let plan = self.mix.power_loss(&mut rng);
            self.wire.disk.crash_with(&mut rng, plan)
        };
        disk.set_capacity(None);
        self.wire.restart(disk);
        self.condition = Condition::Sound;
        self.time.pause(&mut self.rng);
    }

    fn open(&mut self) -> Result<(), String> {
        match self.try_open() {
            Err(_) if self.trial.failure.is_some() && self.condition == Condition::Faulty => {
                // It may refuse while its disk fails, not afterwards.
                self.wire.disk.clear_faults();
                self.crash_for_good();
                self.try_open().map_err(|error| format!("after healing: {error}"))
            }
            result => result,
        }
    }

    fn try_open(&mut self) -> Result<(), String> {
        let wall_ms = self.time.wall_ms;
        let mut opening = adapter::open(&self.options, wall_ms);
        let opened = loop {
            while let Some(request) = opening.poll_request() {
                self.submit(request)?;
            }
            if let Some(opened) = opening.take_output() {
                break opened;
            }
            let completion = self.wire.complete().ok_or("recovery waits for nothing")?;
            opening.handle_disk(completion);
            self.try_crash()?;
        };
        let opened: Opened = opened.map_err(|error| format!("refused to open: {error}"))?;
        let found = inspect(&mut self.wire.disk, opened, wall_ms, &self.model, Depth::Walk)?;
        let states = self.crash_point(CrashKind::ProcessKill).judge(&found)?;
        let Recovered { store, log_ms, now_ms, .. } = found;
        self.model.rebase(&states, store.durable_lsn(), now_ms);
        self.log_floor.written.clear();
        self.window.acknowledged.clear();
        self.waiting.next_version = u128::from_be_bytes(store.version_max().0) + 1;
        self.store = Some(store);
        self.options.must_exist = true;
        self.time.restart(log_ms);
        self.advance_clock(0);
        self.summary.generations += 1;
        states.iter().for_each(|state| state.brief().hash(&mut self.trace));
        Ok(())
    }

    fn work(&mut self, count: u32) -> Result<(), String> {
        let mut left = count;
        while left > 0 {
            self.time.pass(&mut self.rng);
            self.advance_clock(0);
            let batch = self.rng.u32(0..=self.mix.batch_max).min(left);
            for _ in 0..batch {
                self.command()?;
            }
            left -= batch;
            self.turn()?;
            for _ in 0..self.rng.usize(..=self.wire.in_flight() + 2) {
                if !self.complete_one()? {
                    break;
                }
            }
        }
        Ok(())
    }

    /// Lets everything end and the idle frame be written: then nothing but the newest states and
    /// no doubt may be left.
    fn seal(&mut self) -> Result<(), String> {
        self.wire.disk.set_capacity(None);
        self.wire.disk.clear_faults();
        self.advance_clock(1_100);
        // A large value may still be on its way, and is put when it is written.
        for round in 0..400 {
            let store = self.store();
            let settled = store.is_quiet() && self.waiting.complaint().is_none();
            if round >= 4 && settled && store.durable_lsn() == store.status().last_lsn {
                break;
            }
            self.store_mut().seal();
            self.submit_all()?;
            while self.complete_one()? {}
            self.advance_clock(60);
            self.turn()?;
            while self.complete_one()? {}
        }
        let store = self.store();
        let (status, failed) = (store.status(), store.failure().is_some());
        if failed {
            let cause = self.condition == Condition::Faulty;
            return if cause { Ok(()) } else { Err("failed without a cause".to_owned()) };
        }
        if !store.is_quiet() || status.durable_lsn != status.last_lsn {
            return Err(format!("does not come to rest: {status:?}"));
        }
        self.waiting.complaint().map_or(Ok(()), Err)?;
        if self.snapshots.is_under_way() {
            return Err("a snapshot never ended".to_owned());
        }
        self.acknowledge(status.durable_lsn);
        if self.condition == Condition::Damaged { Ok(()) } else { self.try_crash() }
    }

    fn store(&self) -> &StoreUnderTest {
        self.store.as_ref().expect("a generation has a store")
    }

    fn store_mut(&mut self) -> &mut StoreUnderTest {
        self.store.as_mut().expect("a generation has a store")
    }

    fn advance_clock(&mut self, elapsed_ms: u64) {
        self.time.advance(elapsed_ms);
        let now = self.time.now;
        self.store_mut().set_now(now);
    }

    fn turn(&mut self) -> Result<(), String> {
        self.store_mut().end_turn();
        self.submit_all()?;
        match self.options.log.durability {
            CommitDurability::Interval { ms }
                if self.wire.in_flight() == 0 && self.store().failure().is_none() =>
            {
                self.window.check(self.store(), ms, self.time.now)
            }
            _ => Ok(()),
        }
    }

    fn submit_all(&mut self) -> Result<(), String> {
        self.drain_told()?;
        while let Some(request) = self.store_mut().poll_request() {
            self.submit(request)?;
        }
        Ok(())
    }

    /// Hands a request to the disk, as far as that works, and tries a crash right after.
    fn submit(&mut self, request: DiskRequest) -> Result<(), String> {
        hash_operation(&request.operation, &mut self.trace);
        let changes = !matches!(request.operation, DiskOperation::Read { .. });
        self.wire.submit(request);
        if changes { self.try_crash() } else { Ok(()) }
    }

    /// Lets a request of the store end; false if none is under way.
    fn complete_one(&mut self) -> Result<bool, String> {
        let Some(completion) = self.wire.complete() else { return Ok(false) };
        (completion.id, completion.result.is_ok()).hash(&mut self.trace);
        self.store_mut().handle_disk(completion);
        self.drain_told()?;
        self.try_crash()?;
        self.submit_all()?;
        Ok(true)
    }

    fn acknowledge(&mut self, lsn: Lsn) {
        self.model.acknowledge(lsn);
        self.window.acknowledged.push_back((lsn, self.time.now.clock_ms));
        self.note_durable();
    }

    fn note_durable(&mut self) {
        let durable_lsn = self.store().durable_lsn();
        self.model.note_durable(durable_lsn);
        self.log_floor.note_durable(durable_lsn);
        let acknowledged = &mut self.window.acknowledged;
        while acknowledged.pop_front_if(|(lsn, _)| *lsn <= durable_lsn).is_some() {}
    }

    fn drain_told(&mut self) -> Result<(), String> {
        while let Some(told) = self.store_mut().poll_told() {
            match told {
                Told::Durable(lsn) if lsn <= self.model.acknowledged_lsn() => {
                    let before = self.model.acknowledged_lsn();
                    return Err(format!("acknowledged LSN {lsn} after {before}"));
                }
                Told::Durable(lsn) => self.acknowledge(lsn),
                Told::Read { id, result } => self.check_read(id, result)?,
                Told::Resolved { id } => self.redo(id)?,
                Told::Scanned { id, keys, next } => self.check_scan(id, &keys, next)?,
                Told::Snapshotted(result) => self.end_snapshot(result)?,
                Told::Writable => {
                    self.waiting.writer = false;
                    self.retry_stalled()?;
                }
                Told::Damaged if self.condition != Condition::Sound => {}
                Told::Failed(_) if self.condition == Condition::Faulty => {}
                other => return Err(format!("unexpected {other:?}")),
            }
        }
        self.note_durable();
        Ok(())
    }

    fn crash_point(&self, kind: CrashKind) -> Crash<'_> {
        Crash {
            mix: &self.mix,
            options: &self.options,
            model: &self.model,
            kind,
            wall_ms: self.time.wall_ms,
            seen_max_ms: self.time.seen_max_ms,
            log_floor_ms: self.log_floor.ms,
            tally: &self.tally,
        }
    }

    /// Crashes a copy of the disk as it is now, here and there, and checks what recovery makes of
    /// it.
    fn try_crash(&mut self) -> Result<(), String> {
        if self.condition == Condition::Damaged {
            return Ok(());
        }
        match self.trial.crashes {
            Crashes::Never => Ok(()),
            Crashes::Everywhere => self.crash_copy(),
            Crashes::Sampled { bytes_each } => {
                self.crash_credit += bytes_each;
                if self.crash_credit < 256 << 10 || self.crash_rng.u8(..4) > 0 {
                    return Ok(());
                }
                let bytes: u64 = self.wire.disk.files().iter().map(|(_, len)| len).sum();
                let cost = 2 * bytes + (64 << 10);
                if self.crash_credit < cost {
                    return Ok(());
                }
                self.crash_credit -= cost;
                self.crash_copy()
            }
            Crashes::Exhaustive { images_max } => {
                if self.summary.crashes >= images_max || self.crash_rng.u8(..8) > 0 {
                    return Ok(());
                }
                self.crash_in_every_way()
            }
        }
    }

    fn crash_copy(&mut self) -> Result<(), String> {
        self.summary.crashes += 2;
        let mut rng = self.crash_rng.fork();
        let killed = rng.u8(..8) == 0 && self.condition == Condition::Sound;
        let mut image = if killed {
            self.wire.disk.process_kill(&mut rng)
        } else {
            let plan = self.mix.power_loss(&mut rng);
            self.wire.disk.crash_with(&mut rng, plan)
        };
        image.set_capacity(None);
        self.absorb(&mut image);
        let request = self.wire.disk.request_count();
        self.sample_snapshot(&image, &mut rng)
            .map_err(|error| format!("at request {request}, killed: {killed}: {error}"))?;
        let (again, kind) = if killed {
            (Again::Sound, CrashKind::ProcessKill)
        } else {
            (Again::Same, CrashKind::PowerLoss)
        };
        self.crash_point(kind)
            .check(image, &mut rng, again)
            .map_err(|error| format!("at request {request}, killed: {killed}: {error}"))
    }

    /// Tries every image that a power loss can leave now, or as many as one boundary may have, and
    /// every second crash in the recovery of one of them.
    fn crash_in_every_way(&mut self) -> Result<(), String> {
        const IMAGES_EACH: usize = 4_096;
        const IMAGES_DRAWN: usize = 8;
        let mut rng = self.crash_rng.fork();
        let images = self.wire.disk.crash_images(IMAGES_EACH);
        let limit = if images.exhaustive_unit().is_some() { IMAGES_EACH } else { IMAGES_DRAWN };
        let request = self.wire.disk.request_count();
        let mut tried = 0;
        for (number, mut image) in images.take(limit).enumerate() {
            image.set_capacity(None);
            self.absorb(&mut image);
            if number == 0 {
                self.sample_snapshot(&image, &mut rng)?;
            }
            let crash = self.crash_point(CrashKind::PowerLoss);
            let result = if number == 0 {
                crash.check_every_second_crash(&image, &mut rng)
            } else {
                crash.check_once(image, Depth::Keys).map(drop)
            };
            result.map_err(|error| format!("at request {request}, image {number}: {error}"))?;
            tried += 1;
        }
        self.summary.crashes += tried;
        Ok(())
    }

    /// What a key holds now, and the record that says so.
    fn newest(&self, key: usize) -> (Lsn, KeyState) {
        let (lsn, state) = self.model.newest(key);
        if *state != KeyState::Absent && state.is_gone(self.time.now.clock_ms) {
            self.note(Occurrence::Expiry);
        }
        (lsn, state.seen_at(self.time.now.clock_ms))
    }
}

fn hash_operation(operation: &DiskOperation, trace: &mut DefaultHasher) {
    OperationKind::of(operation).hash(trace);
    match operation {
        DiskOperation::Read { file, offset, len, .. } => (file, offset, len).hash(trace),
        DiskOperation::Write { file, offset, buffer, .. } => {
            (file, offset, buffer.len()).hash(trace);
        }
        other => format!("{other:?}").hash(trace),
    }
}

/// Things under way, by the id of the read they wait for.
type ReadIds<T> = BTreeMap<ReadId, T>;
