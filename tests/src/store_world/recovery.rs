//! Opening a store from a disk image, reading all of it, and the oracle for what was found.

use std::cell::RefCell;
use std::collections::BTreeMap;

use fastrand::Rng;
use storage::{Entry, Event, Get, Now, Opened, ReadId, RecoveryReport, Store, StoreOptions, Value};
use wal::record::Key;

use super::adapter::{self, Lookup, ScannedKey, StoreUnderTest, Told};
use super::model::{CrashKind, Found, KeyState, Model, ModelKey, Moment};
use super::swarm::Mix;
use crate::disk::{SimulatedDisk, run_procedure, run_procedure_until};
use crate::tally::{Occurrence, Tally};

/// The core that owns the store's requests.
pub(super) const OWNER: u16 = 0;

/// Asking again makes progress: nobody needs to ask more often.
const ASKS_MAX: u32 = 100;

/// A recovered store and everything in it.
#[derive(Debug)]
pub(super) struct Recovered {
    pub(super) store: StoreUnderTest,
    pub(super) report: RecoveryReport,
    /// What each key of the model holds.
    pub(super) found: Vec<Found>,
    /// The newest time in the log, in ms.
    pub(super) log_ms: u64,
    /// The moment it was opened at, in ms.
    pub(super) now_ms: u64,
}

impl Recovered {
    /// The states of a disk that is not damaged: every key can be read, nothing is suspect.
    pub(super) fn states(&self) -> Result<Vec<KeyState>, String> {
        let report = &self.report;
        if report.suspect {
            return Err(format!("suspect after a crash: {report:?}"));
        }
        // A copy of the manifest may have been torn while it was written; the other one is whole.
        let torn_copy = |name: &str| name.contains("manifest-");
        let rotten = report.damage.iter().find(|damage| !torn_copy(damage.file.as_str()));
        if let Some(damage) = rotten {
            return Err(format!("damage after a crash: {damage:?}"));
        }
        let state = |(index, found): (usize, &Found)| {
            found.clone().map_err(|error| format!("key {index} cannot be read: {error}"))
        };
        self.found.iter().enumerate().map(state).collect()
    }
}

/// How thoroughly a recovered store is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Depth {
    /// Every key by itself.
    Keys,
    /// And all of them by a walk.
    Walk,
}

/// Opens the store on a disk and reads every key of the model.
///
/// # Errors
/// A refusal to open, answers that do not agree.
pub(super) fn recover(
    disk: &mut SimulatedDisk,
    options: &StoreOptions,
    wall_ms: u64,
    model: &Model,
    depth: Depth,
) -> Result<Recovered, String> {
    let opened = run_procedure(disk, OWNER, &mut adapter::open(options, wall_ms));
    let opened = opened.map_err(|error| format!("refused to open: {error}"))?;
    inspect(disk, opened, wall_ms, model, depth)
}

/// What a check of the disk says, for messages.
fn describe(mut disk: SimulatedDisk, options: &StoreOptions, wall_ms: u64) -> String {
    let mut checking = storage::check(options.directory.clone(), options.identity, wall_ms, false);
    let check = run_procedure(&mut disk, OWNER, &mut checking);
    format!("a check says {check:#?}")
}

/// Reads every key of the model from a store just opened.
///
/// # Errors
/// Answers that do not agree.
pub(super) fn inspect(
    disk: &mut SimulatedDisk,
    opened: Opened,
    wall_ms: u64,
    model: &Model,
    depth: Depth,
) -> Result<Recovered, String> {
    let (mut store, report, log_ms) = StoreUnderTest::new(opened);
    let now_ms = wall_ms.max(log_ms);
    store.set_now(Now { monotonic_ns: 0, clock_ms: now_ms });
    let mut reader = Reader { disk, store: &mut store };
    let found = reader.read_all(model.keys())?;
    if depth == Depth::Walk && found.iter().all(Result::is_ok) {
        reader.walk(model.keys(), &found)?;
    }
    Ok(Recovered { store, report, found, log_ms, now_ms })
}

/// Asks a store that does nothing else.
struct Reader<'a> {
    disk: &'a mut SimulatedDisk,
    store: &'a mut StoreUnderTest,
}

impl Reader<'_> {
    /// Lets one request end and returns what the store tells; `None` if nothing is under way.
    fn step(&mut self) -> Option<Vec<Told>> {
        let mut told: Vec<_> = std::iter::from_fn(|| self.store.poll_told()).collect();
        while let Some(request) = self.store.poll_request() {
            self.disk.submit(OWNER, request);
        }
        match self.disk.complete_one_of(OWNER) {
            Some(completion) => {
                self.store.handle_disk(completion);
                told.extend(std::iter::from_fn(|| self.store.poll_told()));
                Some(told)
            }
            None => (!told.is_empty()).then_some(told),
        }
    }

    /// Reads every key by itself, in both ways, which must agree.
    fn read_all(&mut self, keys: &[ModelKey]) -> Result<Vec<Found>, String> {
        let mut found = vec![Ok(KeyState::Absent); keys.len()];
        let mut reads = BTreeMap::new();
        for (index, key) in keys.iter().enumerate() {
            match self.store.get(key) {
                Ok(Get::Missing) => {}
                Ok(Get::Found(value)) => found[index] = Ok(state_of(value)),
                Ok(Get::Pending(id)) => {
                    reads.insert(id, index);
                }
                Err(error) => found[index] = Err(error),
            }
        }
        while !reads.is_empty() {
            for told in self.step().ok_or("a read is never answered")? {
                let Told::Read { id, result } = told else { continue };
                let index = reads.remove(&id).ok_or("an answer to no question")?;
                found[index] = match result {
                    Ok(None) => Ok(KeyState::Absent),
                    Ok(Some((user_key, _))) if user_key != keys[index].user_key => {
                        return Err(format!("key {index} answers as {user_key:?}"));
                    }
                    Ok(Some((_, value))) => Ok(state_of(value)),
                    Err(error) => Err(error),
                };
            }
        }
        for (index, key) in keys.iter().enumerate() {
            let entry = self.lookup(key)?;
            let (Ok(entry), Ok(found)) = (entry, &found[index]) else { continue };
            if !agrees(entry.as_ref(), found) {
                let found = found.brief();
                return Err(format!("key {index}: entry is {entry:?}, get says {found}"));
            }
        }
        Ok(found)
    }

    fn lookup(
        &mut self,
        key: &ModelKey,
    ) -> Result<Result<Option<Entry>, storage::ReadError>, String> {
        for _ in 0..ASKS_MAX {
            match self.store.lookup(key) {
                Ok(Lookup::Missing) => return Ok(Ok(None)),
                Ok(Lookup::Found(entry)) => return Ok(Ok(Some(entry))),
                Ok(Lookup::Pending(id)) => self.resolve(id)?,
                Err(error) => return Ok(Err(error)),
            }
        }
        Err(format!("{key:?} is resolved {ASKS_MAX} times and never known"))
    }

    fn resolve(&mut self, wanted: ReadId) -> Result<(), String> {
        loop {
            let told = self.step().ok_or("a lookup is never resolved")?;
            if told.contains(&Told::Resolved { id: wanted }) {
                return Ok(());
            }
        }
    }

    /// Walks all keys in pages, which must find exactly the live ones, in order.
    fn walk(&mut self, keys: &[ModelKey], found: &[Found]) -> Result<(), String> {
        let is_live = |(_, found): &(&ModelKey, &Found)| !matches!(found, Ok(KeyState::Absent));
        let mut live: Vec<_> =
            keys.iter().zip(found).filter(is_live).map(|(key, _)| key.id).collect();
        live.sort();
        let (mut walked, mut from) = (Vec::new(), Some(Key([0; 20])));
        let page = keys.len() / 3 + 1;
        while let Some(first) = from {
            let id = self.store.scan(first, page);
            let (keys, next) = self.scanned(id)?;
            walked.extend(keys.into_iter().map(|found| found.key));
            if next.is_some_and(|next| next <= first) {
                return Err(format!("a scan from {first:?} goes on at {next:?}"));
            }
            from = next;
        }
        if walked != live {
            return Err(format!("the walk finds {walked:?}, gets find {live:?}"));
        }
        Ok(())
    }

    fn scanned(&mut self, wanted: ReadId) -> Result<(Vec<ScannedKey>, Option<Key>), String> {
        loop {
            for told in self.step().ok_or("a scan is never answered")? {
                if let Told::Scanned { id, keys, next } = told
                    && id == wanted
                {
                    return Ok((keys, next));
                }
            }
        }
    }
}

fn agrees(entry: Option<&Entry>, state: &KeyState) -> bool {
    match (entry, state) {
        (None, KeyState::Absent) => true,
        (Some(entry), KeyState::Present { value, version, expiry_ms }) => {
            *entry == Entry { value_len: value.len(), expiry_ms: *expiry_ms, version: *version }
        }
        _ => false,
    }
}

/// What a value says of its key.
pub(super) fn state_of(value: Value) -> KeyState {
    let Value { value, expiry_ms, version } = value;
    KeyState::Present { value, version, expiry_ms }
}

/// Carries out the store's requests until there is none; returns what it has told meanwhile.
pub fn settle(disk: &mut SimulatedDisk, store: &mut Store) -> Vec<Event> {
    let mut events = Vec::new();
    loop {
        while let Some(request) = store.poll_request() {
            disk.submit(OWNER, request);
        }
        events.extend(std::iter::from_fn(|| store.poll_event()));
        let Some(completion) = disk.complete_one_of(OWNER) else { return events };
        store.handle_disk(completion);
    }
}

/// What a crash at some moment is checked against.
#[derive(Clone, Copy, Debug)]
pub(super) struct Crash<'a> {
    pub(super) mix: &'a Mix,
    pub(super) options: &'a StoreOptions,
    pub(super) model: &'a Model,
    pub(super) kind: CrashKind,
    pub(super) wall_ms: u64,
    pub(super) seen_max_ms: u64,
    /// The newest time in the log is at least this.
    pub(super) log_floor_ms: u64,
    /// Counts what second crashes leave.
    pub(super) tally: &'a RefCell<Tally>,
}

/// Whether a second crash, in the middle of the recovery, must lead to the same result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Again {
    /// Nothing of the image is in doubt any more: it must.
    Same,
    /// The image still has work that may be lost.
    Sound,
}

/// What a recovery has found right.
#[derive(Debug)]
pub(super) struct Settled {
    states: Vec<KeyState>,
    log_ms: u64,
}

impl Crash<'_> {
    /// Recovers from an image of the disk, and once more with a second crash in the middle.
    pub(super) fn check(
        &self,
        image: SimulatedDisk,
        rng: &mut Rng,
        again: Again,
    ) -> Result<(), String> {
        let depth = if rng.u8(..4) == 0 { Depth::Walk } else { Depth::Keys };
        let (first, requests) = self.check_once(image.clone(), depth)?;
        let completions_max = rng.u64(..=requests);
        self.check_again(image, rng, again, &first, completions_max)
    }

    /// Recovers from an image, then again after each request of that recovery.
    pub(super) fn check_every_second_crash(
        &self,
        image: &SimulatedDisk,
        rng: &mut Rng,
    ) -> Result<(), String> {
        let (first, requests) = self.check_once(image.clone(), Depth::Walk)?;
        for completions in 0..=requests {
            self.check_again(image.clone(), rng, Again::Same, &first, completions)?;
        }
        Ok(())
    }

    /// Recovers from an image; returns what was found and how many requests that took.
    pub(super) fn check_once(
        &self,
        mut image: SimulatedDisk,
        depth: Depth,
    ) -> Result<(Settled, u64), String> {
        let before = image.request_count();
        let settled = self.recover(&mut image, depth).map_err(|error| format!("crash: {error}"))?;
        Ok((settled, image.request_count() - before))
    }

    fn check_again(
        &self,
        mut disk: SimulatedDisk,
        rng: &mut Rng,
        again: Again,
        first: &Settled,
        completions_max: u64,
    ) -> Result<(), String> {
        let mut opening = adapter::open(self.options, self.wall_ms);
        let ended = run_procedure_until(&mut disk, OWNER, &mut opening, completions_max);
        let is_midway = ended.is_none();
        drop(ended);
        let plan = self.mix.power_loss(rng);
        let mut disk = disk.crash_with(rng, plan);
        let mut tally = self.tally.borrow_mut();
        tally.add(Occurrence::DoubleCrash, u64::from(is_midway));
        tally.merge(&disk.take_tally());
        drop(tally);
        let lost = Crash { kind: CrashKind::PowerLoss, ..*self };
        let second = lost.recover(&mut disk, Depth::Keys).map_err(|error| {
            format!("crash, then another after {completions_max} requests of recovery: {error}")
        })?;
        if again == Again::Same && second.log_ms < first.log_ms {
            return Err(format!(
                "a second crash, after {completions_max} requests of recovery, turned the log's \
                 time back from {} to {}",
                first.log_ms, second.log_ms
            ));
        }
        let mut pairs = first.states.iter().zip(&second.states).enumerate();
        let differing =
            pairs.find(|(_, (first, second))| first != second && !self.may_differ(first, second));
        match differing {
            Some((key, (first, second))) if again == Again::Same => Err(format!(
                "a second crash, after {completions_max} requests of recovery, changed key {key} \
                 from {} to {}",
                first.brief(),
                second.brief()
            )),
            _ => Ok(()),
        }
    }

    /// What had expired by the newest time that any store knew may be seen again once, if the
    /// operator has set the clock back: that time need not be on disk.
    fn may_differ(&self, first: &KeyState, second: &KeyState) -> bool {
        let gone = |state: &KeyState| state.is_gone(self.seen_max_ms);
        self.wall_ms < self.seen_max_ms && gone(first) && gone(second)
    }

    fn recover(&self, disk: &mut SimulatedDisk, depth: Depth) -> Result<Settled, String> {
        let before = disk.clone();
        let states = recover(disk, self.options, self.wall_ms, self.model, depth);
        let states = states.and_then(|recovered| {
            Ok(Settled { states: self.judge(&recovered)?, log_ms: recovered.log_ms })
        });
        states.map_err(|error| format!("{error}\n{}", describe(before, self.options, self.wall_ms)))
    }

    /// Whether what was recovered is right, without damage.
    pub(super) fn judge(&self, recovered: &Recovered) -> Result<Vec<KeyState>, String> {
        let states = recovered.states()?;
        let moment = Moment { now_ms: recovered.now_ms, seen_max_ms: self.seen_max_ms };
        self.model.check(&states, moment, self.kind)?;
        let (floor, found) = (self.model.floor(self.kind), recovered.store.durable_lsn());
        if found < floor {
            return Err(format!("the log restarts at LSN {found}, {floor} had to survive"));
        }
        if recovered.log_ms < self.log_floor_ms {
            let (found, floor) = (recovered.log_ms, self.log_floor_ms);
            return Err(format!("the log's time is {found}, a record of {floor} acknowledged"));
        }
        Ok(states)
    }
}
