//! Opening a store from a disk image, reading all of it, and the oracle for what was found.

use fastrand::Rng;
use storage::{Event, Get, Lookup, Now, Opened, RecoveryReport, Store, StoreOptions};
use wal::Lsn;

use super::model::{KeyState, Model};
use crate::disk::{CrashPlan, LostSector, SimulatedDisk, run_procedure, run_procedure_until};

/// The core that owns the store's requests.
pub(super) const OWNER: u16 = 0;

/// Draws the kind of a power loss; now and then torn sectors hold neither the old nor the new.
pub(super) fn draw_plan(rng: &mut Rng) -> CrashPlan {
    let lost = match rng.u8(..8) {
        0 => LostSector::SometimesZeros,
        1 => LostSector::SometimesGarbage,
        _ => LostSector::Old,
    };
    CrashPlan { lost, ..CrashPlan::draw(rng) }
}

/// A recovered store and everything in it.
#[derive(Debug)]
pub struct Recovered {
    /// The store.
    pub store: Store,
    /// What opening it found.
    pub report: RecoveryReport,
    /// What each key of the model holds.
    pub states: Vec<KeyState>,
    /// The moment it was opened at, in ms.
    pub now_ms: u64,
}

/// Opens the store on a disk and reads every key of the model.
///
/// # Errors
/// What must not be: a refusal to open, suspicion, a key that cannot be read.
pub fn recover(
    disk: &mut SimulatedDisk,
    options: &StoreOptions,
    wall_ms: u64,
    model: &Model,
) -> Result<Recovered, String> {
    let mut before = disk.clone();
    let mut opening = storage::open(options.clone(), wall_ms);
    let opened = run_procedure(disk, OWNER, &mut opening);
    let opened = opened.map_err(|error| format!("refused to open: {error}"))?;
    inspect(disk, opened, wall_ms, model).map_err(|error| {
        let mut checking =
            storage::check(options.directory.clone(), options.identity, wall_ms, false);
        let check = run_procedure(&mut before, OWNER, &mut checking);
        format!("{error}\na check says {check:#?}")
    })
}

/// Checks what opening a store after a crash has reported, and reads every key of the model.
///
/// # Errors
/// See [`recover`].
pub fn inspect(
    disk: &mut SimulatedDisk,
    opened: Opened,
    wall_ms: u64,
    model: &Model,
) -> Result<Recovered, String> {
    let Opened { mut store, report, log_ms } = opened;
    if report.suspect {
        return Err(format!("suspect after a crash: {report:?}"));
    }
    // A copy of the manifest may have been torn while it was written; the other one is whole.
    let torn_copy = |name: &str| name.contains("manifest-");
    let rotten = report.damage.iter().find(|damage| !torn_copy(damage.file.as_str()));
    if let Some(damage) = rotten {
        return Err(format!("damage after a crash: {damage:?}"));
    }
    let now_ms = wall_ms.max(log_ms);
    store.set_now(Now { monotonic_ns: 0, clock_ms: now_ms });
    let states = read_all(disk, &mut store, model)?;
    Ok(Recovered { store, report, states, now_ms })
}

/// Reads every key of the model in every way, which must agree.
fn read_all(
    disk: &mut SimulatedDisk,
    store: &mut Store,
    model: &Model,
) -> Result<Vec<KeyState>, String> {
    let mut states = Vec::new();
    for (index, key) in model.keys().iter().enumerate() {
        let failed = |error| format!("key {index} cannot be read: {error}");
        let entry = look_up(disk, store, &key.borrowed()).map_err(failed)?;
        let value = match store.get(&key.borrowed()).map_err(failed)? {
            Get::Missing => None,
            Get::Found(value) => Some(value),
            Get::Pending(_) => finish_read(disk, store).map_err(failed)?,
        };
        let summary = value.as_ref().map(|v| (v.value.len(), v.expiry_ms, v.version));
        if summary != entry.map(|e| (e.value_len, e.expiry_ms, e.version)) {
            return Err(format!("key {index}: entry is {entry:?}, get says {summary:?}"));
        }
        states.push(value.map_or(KeyState::Absent, |value| KeyState::Present {
            value: value.value,
            version: value.version,
            expiry_ms: value.expiry_ms,
        }));
    }
    let mut live: Vec<_> = model.keys().iter().zip(&states).collect();
    live.retain(|(_, state)| **state != KeyState::Absent);
    let mut live: Vec<_> = live.iter().map(|(key, _)| key.id).collect();
    live.sort();
    let mut walked = Vec::new();
    let mut from = Some(wal::record::Key([0; 20]));
    while let Some(first) = from.take() {
        store.scan(first, 3);
        for event in settle(disk, store) {
            if let Event::Scanned { keys, next, .. } = event {
                walked.extend(keys.iter().map(|key| key.key));
                from = next;
            }
        }
    }
    if walked != live {
        return Err(format!("the walk finds {walked:?}, gets find {live:?}"));
    }
    Ok(states)
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

/// Looks a key up, with all the reads that this takes.
fn look_up(
    disk: &mut SimulatedDisk,
    store: &mut Store,
    key: &storage::KeyRef<'_>,
) -> Result<Option<storage::Entry>, storage::ReadError> {
    loop {
        match store.lookup(key)? {
            Lookup::Missing => return Ok(None),
            Lookup::Found(entry) => return Ok(Some(entry)),
            Lookup::Pending(id) => {
                let events = settle(disk, store);
                assert!(events.contains(&Event::Resolved { id }), "{events:?}");
            }
        }
    }
}

/// Carries out the one read under way.
fn finish_read(
    disk: &mut SimulatedDisk,
    store: &mut Store,
) -> Result<Option<storage::Value>, storage::ReadError> {
    loop {
        while let Some(request) = store.poll_request() {
            disk.submit(OWNER, request);
        }
        let completion = disk.complete_one_of(OWNER).expect("a read is under way");
        store.handle_disk(completion);
        while let Some(event) = store.poll_event() {
            if let Event::Read { result, .. } = event {
                return result.map(|found| found.map(|(_, value)| value));
            }
        }
    }
}

/// What a crash at some moment is checked against.
#[derive(Debug)]
pub(super) struct Crash<'a> {
    pub(super) options: &'a StoreOptions,
    pub(super) model: &'a Model,
    pub(super) durable_lsn: Lsn,
    pub(super) wall_ms: u64,
}

impl Crash<'_> {
    /// Recovers from an image of the disk, and once more with a second crash in the middle.
    ///
    /// `settled`: nothing of the image is in doubt any more, so that both must find the same.
    pub(super) fn check(
        &self,
        mut image: SimulatedDisk,
        rng: &mut Rng,
        settled: bool,
    ) -> Result<(), String> {
        let twin = image.clone();
        let before = image.request_count();
        let first = self.recover(&mut image).map_err(|error| format!("crash: {error}"))?;
        let requests = image.request_count() - before;
        let second = self
            .crash_again(twin, rng, requests)
            .map_err(|error| format!("crash, then another during recovery: {error}"))?;
        if settled && first.states != second.states {
            let mut pairs = first.states.iter().zip(&second.states).enumerate();
            let differing = pairs.find(|(_, (first, second))| first != second);
            let differing = differing.map(|(key, (first, second))| {
                format!("key {key} was {} and then {}", first.brief(), second.brief())
            });
            return Err(format!("a second crash during recovery changed things: {differing:?}"));
        }
        if first.store.version_max() > second.store.version_max() && settled {
            return Err("a second crash during recovery lost the highest version".to_owned());
        }
        Ok(())
    }

    fn crash_again(
        &self,
        mut disk: SimulatedDisk,
        rng: &mut Rng,
        requests: u64,
    ) -> Result<Recovered, String> {
        let mut opening = storage::open(self.options.clone(), self.wall_ms);
        let completions_max = rng.u64(..=requests);
        drop(run_procedure_until(&mut disk, OWNER, &mut opening, completions_max));
        let plan = draw_plan(rng);
        let mut disk = disk.crash_with(rng, plan);
        self.recover(&mut disk)
    }

    fn recover(&self, disk: &mut SimulatedDisk) -> Result<Recovered, String> {
        let recovered = recover(disk, self.options, self.wall_ms, self.model)?;
        self.model.check(&recovered.states, self.durable_lsn, recovered.now_ms)?;
        Ok(recovered)
    }
}
