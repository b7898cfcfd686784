//! One store on the simulated disk, in virtual time, everything from one seed: random commands,
//! completions in random order, and at every disk request a crash that is recovered from.
//!
//! ```text
//! generation: open -> (clock, commands, end of turn, requests, completions)* -> crash or seal
//!                  \____ at every request: clone the disk, crash it, recover, compare ____/
//! ```
//!
//! The oracle is [`model::Model`]: an acknowledged state is there or a later one of the same key
//! is; nothing else is ever seen; what an answer rests on is named by `Store::observed`.

use std::collections::{BTreeMap, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};

use bytes::Bytes;
use fastrand::Rng;
use storage::{
    Effect, Event, Get, LogClock, Now, Opened, Put, ReadId, Store, StoreOptions, UserKey,
    WriteError,
};
use wal::Lsn;
use wal::disk::{
    DiskCompletion, DiskErrorKind, DiskOperation, DiskOutput, DiskRequest, Durability, FileName,
};
use wal::group_commit::GroupCommitLimits;
use wal::record::Version;
use wal::segment::Identity;

pub mod model;
pub mod recovery;

use crate::disk::{OperationKind, SimulatedDisk};
use model::{KeyState, Model};
use recovery::{Crash, OWNER, Recovered, draw_plan, inspect};

/// A defect of the disk that the oracle must notice: it shows that it can.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlantedBug {
    /// None: the disk keeps its promises.
    Nothing,
    /// Now and then a durable write reports success and lands nowhere.
    LosesDurableWrites,
    /// Durable writes are acknowledged while they are cached only.
    AcknowledgesCachedWrites,
    /// Directory syncs do nothing.
    IgnoresSyncDirectory,
    /// File syncs do nothing.
    IgnoresSync,
}

/// How much one seed tries.
#[derive(Clone, Copy, Debug)]
pub struct Trial {
    /// Commands per generation, at most.
    pub operations_max: u32,
    /// Starts with writing in between, at most.
    pub generations_max: u32,
    /// Whether a crash is tried at every disk request.
    pub crash_everywhere: bool,
    /// What is wrong with the disk.
    pub bug: PlantedBug,
}

impl Default for Trial {
    fn default() -> Self {
        Self {
            operations_max: 60,
            generations_max: 3,
            crash_everywhere: true,
            bug: PlantedBug::Nothing,
        }
    }
}

/// What one seed has tried.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Commands carried out.
    pub operations: u64,
    /// Disk requests of the live store.
    pub requests: u64,
    /// Crashes recovered from twice.
    pub crashes: u64,
    /// Starts of the live store.
    pub generations: u64,
    /// Segments prepared.
    pub segments: u64,
    /// Hash of everything that was done and of the disk at the end.
    pub trace: u64,
}

/// Runs one seed.
///
/// # Errors
/// What the oracle found, with the seed and the command that repeats it.
pub fn run(seed: u64, trial: Trial) -> Result<Summary, String> {
    let mut world = StoreWorld::new(seed, trial);
    world.live().map_err(|error| {
        format!(
            "{error}\n{:?}\nSEED={seed}\n\
             repeat: cargo run --release -p kadring-tests --bin sim -- \
             store --seeds 1 --from {seed} --operations {}",
            world.options, trial.operations_max
        )
    })
}

const KEYS: usize = 20;
const START_MS: u64 = 1_700_000_000_000;
const MS: u64 = 1_000_000;

/// A store, its disk, and what it may answer.
struct StoreWorld {
    trial: Trial,
    rng: Rng,
    crash_rng: Rng,
    options: StoreOptions,
    disk: SimulatedDisk,
    /// Completions of requests that never reached the disk.
    faked: VecDeque<DiskCompletion>,
    model: Model,
    store: Option<Store>,
    durable_lsn: Lsn,
    reads: BTreeMap<ReadId, ExpectedRead>,
    next_version: u128,
    next_value: u64,
    clock: LogClock,
    wall_ms: u64,
    monotonic_ns: u64,
    now: Now,
    /// Whether requests may fail: then some refusals are in order. Such a generation ends with a
    /// power loss, not a kill: the simulated disk would keep a failed write readable although no
    /// sync can save it any more, as a page cache does; the store reads the device itself.
    faulty: bool,
    /// Whether a command was refused as busy, and no event has told that it may be repeated.
    waiting: bool,
    trace: DefaultHasher,
    summary: Summary,
}

struct ExpectedRead {
    key: usize,
    state: KeyState,
    user_key_only: bool,
}

impl StoreWorld {
    fn new(seed: u64, trial: Trial) -> Self {
        let mut rng = Rng::with_seed(seed);
        let options = draw_options(&mut rng);
        let disk = SimulatedDisk::new(rng.u64(..));
        Self {
            trial,
            crash_rng: rng.fork(),
            options,
            disk,
            faked: VecDeque::new(),
            model: Model::new(KEYS),
            store: None,
            durable_lsn: Lsn::ZERO,
            reads: BTreeMap::new(),
            next_version: 1,
            next_value: 0,
            clock: LogClock::new(0, START_MS, 0),
            wall_ms: START_MS,
            monotonic_ns: 0,
            now: Now { monotonic_ns: 0, clock_ms: START_MS },
            faulty: false,
            waiting: false,
            trace: DefaultHasher::new(),
            summary: Summary::default(),
            rng,
        }
    }

    fn live(&mut self) -> Result<Summary, String> {
        let generations = self.rng.u32(1..=self.trial.generations_max);
        for generation in 0..generations {
            let last = generation + 1 == generations;
            self.open().map_err(|error| format!("generation {generation}, opening: {error}"))?;
            self.plan_faults();
            let count = self.rng.u32(self.trial.operations_max / 2..=self.trial.operations_max);
            self.work(count).map_err(|error| format!("generation {generation}: {error}"))?;
            if last || self.rng.u8(..4) == 0 {
                self.seal().map_err(|error| format!("generation {generation}, end: {error}"))?;
            }
            if self.trial.bug == PlantedBug::Nothing
                && self.disk.statistics().expensive_durable_writes > 0
            {
                return Err("a frame was written where nothing was before".to_owned());
            }
            self.crash_for_good();
        }
        self.open().map_err(|error| format!("after the last generation: {error}"))?;
        (self.disk.hash(), self.now.clock_ms).hash(&mut self.trace);
        self.summary.trace = self.trace.finish();
        self.summary.requests = self.disk.request_count();
        Ok(self.summary)
    }

    fn crash_for_good(&mut self) {
        self.store = None;
        self.reads.clear();
        self.faked.clear();
        self.waiting = false;
        let mut rng = self.rng.fork();
        self.disk = if rng.u8(..3) == 0 && !self.faulty {
            self.disk.process_kill(&mut rng)
        } else {
            let plan = draw_plan(&mut rng);
            self.disk.crash_with(&mut rng, plan)
        };
        self.disk.set_capacity(None);
        self.faulty = false;
        // The wall clock may have been stepped back; only what time was seen may not come again.
        self.wall_ms = self.now.clock_ms;
    }

    /// Lets requests of this generation fail, in some.
    fn plan_faults(&mut self) {
        if self.rng.u8(..5) > 0 || self.trial.bug != PlantedBug::Nothing {
            return;
        }
        self.faulty = true;
        let used: u64 = self.disk.files().iter().map(|(_, len)| len).sum();
        if self.rng.bool() {
            self.disk.set_capacity(Some(used + self.rng.u64(..3 * self.options.segment_bytes)));
            return;
        }
        let kinds = [
            OperationKind::Write,
            OperationKind::Sync,
            OperationKind::SyncDirectory,
            OperationKind::Rename,
            OperationKind::Open,
            OperationKind::Read,
        ];
        let kind = kinds[self.rng.usize(..kinds.len())];
        let errors = [DiskErrorKind::Io, DiskErrorKind::ShortWrite, DiskErrorKind::NoSpace];
        let error = errors[self.rng.usize(..if kind == OperationKind::Write { 3 } else { 1 })];
        let nth = self.rng.u64(1..=12);
        self.disk.fail_nth(nth, kind, error, self.rng.u8(..3) == 0);
    }

    fn open(&mut self) -> Result<(), String> {
        let wall_ms = self.wall_ms;
        let mut opening = storage::open(self.options.clone(), wall_ms);
        let opened = loop {
            while let Some(request) = opening.poll_request() {
                self.submit(request)?;
            }
            if let Some(opened) = opening.take_output() {
                break opened;
            }
            let completion = self.complete().ok_or("recovery waits for nothing")?;
            opening.handle_disk(completion);
            self.try_crash()?;
        };
        let opened: Opened = opened.map_err(|error| format!("refused to open: {error}"))?;
        let log_ms = opened.log_ms;
        let found = inspect(&mut self.disk, opened, wall_ms, &self.model)?;
        let Recovered { store, states, now_ms, .. } = found;
        self.model.check(&states, self.durable_lsn, now_ms)?;
        if store.durable_lsn() < self.durable_lsn {
            return Err(format!(
                "the log restarts at LSN {}, below the acknowledged {}",
                store.durable_lsn(),
                self.durable_lsn
            ));
        }
        self.model.rebase(&states);
        self.durable_lsn = store.durable_lsn();
        self.next_version = u128::from_be_bytes(store.version_max().0) + 1;
        self.clock = LogClock::new(log_ms, wall_ms, self.monotonic_ns);
        self.store = Some(store);
        self.options.must_exist = true;
        self.advance_clock(0);
        self.summary.generations += 1;
        states.iter().for_each(|state| state.brief().hash(&mut self.trace));
        Ok(())
    }

    fn work(&mut self, count: u32) -> Result<(), String> {
        let mut left = count;
        while left > 0 {
            self.pass_time();
            let batch = self.rng.u32(0..=6).min(left);
            for _ in 0..batch {
                self.command()?;
            }
            left -= batch;
            self.turn()?;
            for _ in 0..self.rng.usize(..=self.disk.in_flight() + 2) {
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
        self.disk.set_capacity(None);
        self.disk.clear_faults();
        self.advance_clock(1_100);
        for _ in 0..4 {
            self.store_mut().seal();
            self.submit_all()?;
            while self.complete_one()? {}
            self.advance_clock(60);
            self.turn()?;
            while self.complete_one()? {}
        }
        let store = self.store.as_ref().expect("a generation has a store");
        let (status, failed) = (store.status(), store.failure().is_some());
        if failed {
            return if self.faulty { Ok(()) } else { Err("failed without a cause".to_owned()) };
        }
        if !store.is_quiet() || status.durable_lsn != status.last_lsn {
            return Err(format!("does not come to rest: {status:?}"));
        }
        if self.waiting {
            return Err("a refused writer was never told to try again".to_owned());
        }
        if !self.reads.is_empty() {
            return Err("a read was never answered".to_owned());
        }
        self.durable_lsn = status.durable_lsn;
        self.try_crash()
    }

    fn store_mut(&mut self) -> &mut Store {
        self.store.as_mut().expect("a generation has a store")
    }

    fn pass_time(&mut self) {
        let elapsed_ms = match self.rng.u8(..10) {
            0..6 => 0,
            6 | 7 => self.rng.u64(..5),
            8 => self.rng.u64(..80),
            _ => self.rng.u64(..1500),
        };
        self.wall_ms += elapsed_ms;
        match self.rng.u8(..40) {
            0 => self.wall_ms -= self.rng.u64(..5_000),
            1 => self.wall_ms += self.rng.u64(..5_000),
            _ => {}
        }
        self.advance_clock(elapsed_ms);
    }

    fn advance_clock(&mut self, elapsed_ms: u64) {
        self.monotonic_ns += elapsed_ms * MS;
        self.now = self.clock.read(self.wall_ms, self.monotonic_ns).now;
        let now = self.now;
        self.store_mut().set_now(now);
    }

    fn turn(&mut self) -> Result<(), String> {
        self.store_mut().end_turn();
        self.submit_all()
    }

    fn submit_all(&mut self) -> Result<(), String> {
        self.drain_events()?;
        while let Some(request) = self.store_mut().poll_request() {
            self.submit(request)?;
        }
        Ok(())
    }

    /// Hands a request to the disk, as far as that works, and tries a crash right after.
    fn submit(&mut self, mut request: DiskRequest) -> Result<(), String> {
        format!("{:?}", request.operation).hash(&mut self.trace);
        let changes = !matches!(request.operation, DiskOperation::Read { .. });
        let done = |id| DiskCompletion { id, result: Ok(DiskOutput::Done), buffer: None };
        match (self.trial.bug, &mut request.operation) {
            (PlantedBug::IgnoresSyncDirectory, DiskOperation::SyncDirectory { .. })
            | (PlantedBug::IgnoresSync, DiskOperation::Sync { .. }) => {
                self.faked.push_back(done(request.id));
                return Ok(());
            }
            (PlantedBug::AcknowledgesCachedWrites, DiskOperation::Write { durability, .. }) => {
                *durability = Durability::Cached;
            }
            (PlantedBug::LosesDurableWrites, DiskOperation::Write { durability, .. })
                if *durability == Durability::Durable && self.rng.u8(..4) == 0 =>
            {
                self.disk.lose_next_write();
            }
            _ => {}
        }
        self.disk.submit(OWNER, request);
        if changes { self.try_crash() } else { Ok(()) }
    }

    fn complete(&mut self) -> Option<DiskCompletion> {
        self.faked.pop_front().or_else(|| self.disk.complete_one_of(OWNER))
    }

    /// Lets a request of the store end; false if none is under way.
    fn complete_one(&mut self) -> Result<bool, String> {
        let Some(completion) = self.complete() else { return Ok(false) };
        (completion.id, completion.result.is_ok()).hash(&mut self.trace);
        self.store_mut().handle_disk(completion);
        self.drain_events()?;
        self.try_crash()?;
        self.submit_all()?;
        Ok(true)
    }

    fn drain_events(&mut self) -> Result<(), String> {
        while let Some(event) = self.store_mut().poll_event() {
            match event {
                Event::Durable(lsn) if lsn <= self.durable_lsn => {
                    return Err(format!("durable LSN {lsn} after {}", self.durable_lsn));
                }
                Event::Durable(lsn) => self.durable_lsn = lsn,
                Event::Read { id, result } => self.check_read(id, result)?,
                Event::Writable => self.waiting = false,
                Event::Failed(_) | Event::Damaged { .. } if self.faulty => {}
                other => return Err(format!("unexpected {other:?}")),
            }
        }
        Ok(())
    }

    fn check_read(
        &mut self,
        id: ReadId,
        result: Result<Option<(Bytes, storage::Value)>, storage::ReadError>,
    ) -> Result<(), String> {
        let expected = self.reads.remove(&id).ok_or("an answer to no question")?;
        let key = &self.model.keys()[expected.key];
        let (user_key, value) = match result {
            Ok(Some(found)) => found,
            Err(_) if self.faulty => return Ok(()),
            other => return Err(format!("key {} reads as {other:?}", expected.key)),
        };
        let found = state_of(value);
        if user_key != key.user_key || (!expected.user_key_only && found != expected.state) {
            let (found, wanted) = (found.brief(), expected.state.brief());
            return Err(format!("key {} reads as {found}, wanted {wanted}", expected.key));
        }
        Ok(())
    }

    /// Crashes a copy of the disk as it is now and checks what recovery makes of it.
    fn try_crash(&mut self) -> Result<(), String> {
        if !self.trial.crash_everywhere {
            return Ok(());
        }
        self.summary.crashes += 1;
        let mut rng = self.crash_rng.fork();
        let killed = rng.u8(..8) == 0 && !self.faulty;
        let mut image = if killed {
            self.disk.process_kill(&mut rng)
        } else {
            let plan = draw_plan(&mut rng);
            self.disk.crash_with(&mut rng, plan)
        };
        image.set_capacity(None);
        let crash = Crash {
            options: &self.options,
            model: &self.model,
            durable_lsn: self.durable_lsn,
            wall_ms: self.now.clock_ms,
        };
        let request = self.disk.request_count();
        crash
            .check(image, &mut rng, !killed)
            .map_err(|error| format!("at request {request}, killed: {killed}: {error}"))
    }

    fn command(&mut self) -> Result<(), String> {
        self.summary.operations += 1;
        let key = self.rng.usize(..KEYS);
        match self.rng.u8(..100) {
            0..45 => self.put(key),
            45..57 => self.remove(key),
            57..67 => self.touch(key),
            67..69 => self.clear(),
            69..90 => self.get(key),
            90..95 => self.entry(key),
            _ => self.user_key(key),
        }
    }

    fn draw_version(&mut self) -> Version {
        self.next_version += 1;
        Version((self.next_version - 1).to_be_bytes())
    }

    fn draw_expiry(&mut self) -> u64 {
        match self.rng.u8(..10) {
            0..6 => 0,
            6..9 => self.now.clock_ms + self.rng.u64(..200),
            _ => self.now.clock_ms + self.rng.u64(1_000..100_000),
        }
    }

    fn draw_value(&mut self) -> Bytes {
        let len = match self.rng.u16(..200) {
            0..10 => 0,
            10..120 => self.rng.usize(1..200),
            120..165 => self.rng.usize(200..5_000),
            165..199 => self.rng.usize(5_000..40_000),
            _ => 300 << 10,
        };
        self.next_value += 1;
        let mut value = vec![0; len];
        Rng::with_seed(self.next_value).fill(&mut value);
        value.into()
    }

    /// What a key holds now, and the record that says so.
    fn newest(&self, key: usize) -> (Lsn, KeyState) {
        let (lsn, state) = self.model.newest(key);
        (lsn, state.seen_at(self.now.clock_ms))
    }

    /// Notes the outcome of a write; false if it was refused.
    fn accept<T>(&mut self, result: Result<T, WriteError>) -> Result<Option<T>, String> {
        match result {
            Ok(outcome) => Ok(Some(outcome)),
            Err(WriteError::Busy) => {
                self.waiting = true;
                Ok(None)
            }
            Err(WriteError::DiskFull | WriteError::ReadOnly(_)) if self.faulty => Ok(None),
            Err(error) => Err(format!("a write is refused: {error}")),
        }
    }

    fn put(&mut self, key: usize) -> Result<(), String> {
        let (value, expiry_ms) = (self.draw_value(), self.draw_expiry());
        let version = self.draw_version();
        let store = self.store.as_mut().expect("a generation has a store");
        let key_ref = self.model.keys()[key].borrowed();
        let result = store.put(&Put { key: key_ref, version, expiry_ms, value: &value });
        if let Some(lsn) = self.accept(result)? {
            self.model.push(key, lsn, KeyState::Present { value, version, expiry_ms });
        }
        Ok(())
    }

    fn remove(&mut self, key: usize) -> Result<(), String> {
        let (_, state) = self.newest(key);
        let version = self.draw_version();
        let store = self.store.as_mut().expect("a generation has a store");
        let result = store.remove(self.model.keys()[key].borrowed(), version).map(Effect::done);
        match self.accept(result)? {
            Some(Some(lsn)) => self.model.push(key, lsn, KeyState::Absent),
            Some(None) if state != KeyState::Absent => {
                return Err(format!("key {key} is not there to be removed"));
            }
            _ => return self.check_observed(key),
        }
        Ok(())
    }

    fn touch(&mut self, key: usize) -> Result<(), String> {
        let (_, state) = self.newest(key);
        let (version, expiry_ms) = (self.draw_version(), self.draw_expiry());
        let store = self.store.as_mut().expect("a generation has a store");
        let result =
            store.touch(self.model.keys()[key].borrowed(), version, expiry_ms).map(Effect::done);
        match (self.accept(result)?, state) {
            (None, _) | (Some(None), KeyState::Absent) => self.check_observed(key),
            (Some(Some(lsn)), KeyState::Present { value, .. }) => {
                self.model.push(key, lsn, KeyState::Present { value, version, expiry_ms });
                Ok(())
            }
            (Some(found), state) => {
                Err(format!("key {key} is touched as {found:?} and holds {}", state.brief()))
            }
        }
    }

    fn clear(&mut self) -> Result<(), String> {
        let version = self.draw_version();
        let result = self.store_mut().clear(version);
        if let Some(lsn) = self.accept(result)? {
            self.model.clear(lsn);
        }
        Ok(())
    }

    /// An answer about a key must wait for the record that it rests on.
    fn check_observed(&mut self, key: usize) -> Result<(), String> {
        let (lsn, _) = self.model.newest(key);
        let store = self.store.as_ref().expect("a generation has a store");
        let observed = store.observed(&self.model.keys()[key].borrowed());
        if observed < lsn && lsn > self.durable_lsn {
            return Err(format!("key {key} rests on LSN {lsn}, the store says {observed}"));
        }
        Ok(())
    }

    fn get(&mut self, key: usize) -> Result<(), String> {
        let (_, state) = self.newest(key);
        self.check_observed(key)?;
        let store = self.store.as_mut().expect("a generation has a store");
        let found = match store.get(&self.model.keys()[key].borrowed()) {
            Ok(Get::Missing) => KeyState::Absent,
            Ok(Get::Found(value)) => state_of(value),
            Ok(Get::Pending(id)) => {
                self.reads.insert(id, ExpectedRead { key, state, user_key_only: false });
                return Ok(());
            }
            Err(_) if self.faulty => return Ok(()),
            Err(error) => return Err(format!("key {key} cannot be read: {error}")),
        };
        if found != state {
            return Err(format!("key {key} is {}, wanted {}", found.brief(), state.brief()));
        }
        Ok(())
    }

    fn entry(&mut self, key: usize) -> Result<(), String> {
        let (_, state) = self.newest(key);
        self.check_observed(key)?;
        let entry = self.store().entry(&self.model.keys()[key].borrowed());
        let entry = entry.map_err(|error| format!("key {key} has no entry: {error}"))?;
        let found = entry.map(|entry| (entry.value_len, entry.version, entry.expiry_ms));
        let wanted = match &state {
            KeyState::Absent => None,
            KeyState::Present { value, version, expiry_ms } => {
                Some((value.len(), *version, *expiry_ms))
            }
        };
        if found != wanted {
            return Err(format!("key {key} has entry {found:?}, wanted {}", state.brief()));
        }
        Ok(())
    }

    fn store(&self) -> &Store {
        self.store.as_ref().expect("a generation has a store")
    }

    fn user_key(&mut self, key: usize) -> Result<(), String> {
        let (_, state) = self.newest(key);
        let store = self.store.as_mut().expect("a generation has a store");
        let wanted = &self.model.keys()[key];
        match store.user_key(wanted.id) {
            Ok(UserKey::Missing) if state == KeyState::Absent => Ok(()),
            Ok(UserKey::Found(found)) if state != KeyState::Absent && found == wanted.user_key => {
                Ok(())
            }
            Ok(UserKey::Pending(id)) if state != KeyState::Absent => {
                self.reads.insert(id, ExpectedRead { key, state, user_key_only: true });
                Ok(())
            }
            Err(_) if self.faulty => Ok(()),
            other => Err(format!("key {key} has user key {other:?}, holds {}", state.brief())),
        }
    }
}

fn state_of(value: storage::Value) -> KeyState {
    let storage::Value { value, expiry_ms, version } = value;
    KeyState::Present { value, version, expiry_ms }
}

/// Small segments, frames and caches, so that a short trace meets every limit.
fn draw_options(rng: &mut Rng) -> StoreOptions {
    let pick = |rng: &mut Rng, choices: &[u64]| choices[rng.usize(..choices.len())];
    let bytes = |value: u64| usize::try_from(value).expect("sizes here are small");
    StoreOptions {
        directory: FileName::new("shard-00"),
        identity: Identity { store: [rng.u8(1..); 16], node_id: [7; 20], shard: 0, shard_count: 1 },
        must_exist: false,
        segment_bytes: pick(rng, &[64 << 10, 128 << 10, 256 << 10]),
        cache_bytes: bytes(pick(rng, &[0, 4 << 10, 64 << 10, 16 << 20])),
        log: GroupCommitLimits {
            frame_bytes_max: bytes(pick(rng, &[8 << 10, 32 << 10, 1 << 20])),
            frames_in_flight_max: rng.usize(1..=4),
            pending_bytes_max: bytes(pick(rng, &[16 << 10, 128 << 10, 64 << 20])),
        },
    }
}
