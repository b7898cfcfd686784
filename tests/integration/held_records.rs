//! The cluster core's requests on real stores, on a simulated disk that loses power.
//!
//! Each answer is compared with that of a plain model that does the same at once. After a power
//! loss a key must have a state that it had since its last acknowledged one.

use std::collections::BTreeMap;
use std::rc::Rc;

use bytes::Bytes;
use fastrand::Rng;
use kadring::cluster::message::{Content, Found, Record};
use kadring::cluster::prefix::Prefix;
use kadring::cluster::records::{HeldRecords, STATE_KEY, WALKED_AT_ONCE_MAX, WALKED_LATER_MAX};
use kadring::cluster::store::{
    ModelStore, RecordStore, StoreAnswer, StoreRequest, Ticket, execute,
};
use kadring::keyspace::{Keyspace, Spread};
use kadring_tests::disk::{SimulatedDisk, run_procedure};
use storage::{CheckpointOptions, Now, StoreLimits, StoreOptions};
use wal::disk::{FileName, HeapBuffers};
use wal::group_commit::GroupCommitLimits;
use wal::record::{Key, Namespace, Version};
use wal::segment::Identity;

const SHARDS: u16 = 2;
const START_MS: u64 = 1_700_000_000_000;
const STAY_MS: u64 = 3_600_000;
const KEYS: u64 = 40;

/// A key, and its version if it is there.
type State = (Key, Option<Version>);

struct World {
    rng: Rng,
    disk: SimulatedDisk,
    keyspace: Keyspace,
    records: HeldRecords,
    now_ms: u64,
    model: ModelStore,
    next: u64,
    /// What the answers under way must be, and which state each of them acknowledges.
    expected: BTreeMap<Ticket, (StoreAnswer, Option<State>)>,
    /// States that a key may have after a power loss, the acknowledged one first.
    possible: BTreeMap<Key, Vec<Option<Version>>>,
    answered: u64,
}

fn open(disk: &mut SimulatedDisk, now_ms: u64) -> Keyspace {
    let stores = (0..SHARDS).map(|shard| {
        let options = StoreOptions {
            directory: FileName::new(format!("shard-{shard:02}")),
            identity: Identity { store: [1; 16], node_id: [1; 20], shard, shard_count: SHARDS },
            must_exist: false,
            segment_bytes: 4 << 20,
            cache_bytes: 4 << 10,
            limits: StoreLimits { expired_stay_ms: STAY_MS, ..StoreLimits::default() },
            log: GroupCommitLimits::default(),
            buffers: Rc::new(HeapBuffers),
            checkpoints: CheckpointOptions::default(),
            footers: true,
        };
        run_procedure(disk, shard, &mut storage::open(options, now_ms)).unwrap().store
    });
    let stores = stores.collect();
    let now = Now { monotonic_ns: 0, clock_ms: now_ms };
    Keyspace::new(Spread::on_one_thread(SHARDS), stores, now, 1)
}

fn version_of(model: &ModelStore, key: &Key, now_ms: u64) -> Option<Version> {
    model.read(key, now_ms).map(|record| record.version)
}

impl World {
    fn new(seed: u64) -> Self {
        let mut disk = SimulatedDisk::new(seed);
        let keyspace = open(&mut disk, START_MS);
        Self {
            rng: Rng::with_seed(seed),
            disk,
            keyspace,
            records: HeldRecords::default(),
            now_ms: START_MS,
            model: ModelStore::default(),
            next: 0,
            expected: BTreeMap::new(),
            possible: BTreeMap::new(),
            answered: 0,
        }
    }

    /// Lets up to so many disk requests end, and takes what follows.
    fn pump(&mut self, completions: usize) {
        self.next += 1;
        let now = Now { monotonic_ns: self.next * 1_000_000, clock_ms: self.now_ms };
        self.keyspace.set_now(now);
        self.records.handle_time(&mut self.keyspace);
        for _ in 0..completions {
            let Some((shard, completion)) = self.disk.complete_one() else { break };
            self.keyspace.handle_disk(shard, completion);
        }
        loop {
            while let Some((shard, event)) = self.keyspace.poll_event() {
                self.records.handle_event(&mut self.keyspace, shard, &event);
            }
            self.keyspace.end_turn();
            while let Some((shard, request)) = self.keyspace.poll_request() {
                self.disk.submit(shard, request);
            }
            if !self.keyspace.has_events() {
                return;
            }
        }
    }

    fn turn(&mut self, completions: usize) {
        self.pump(completions);
        self.take_answers();
    }

    fn take_answers(&mut self) {
        while let Some((ticket, answer)) = self.records.poll_answer() {
            let (expected, acknowledged) = self.expected.remove(&ticket).expect("asked once");
            assert_eq!(answer, expected, "{ticket:?}");
            self.answered += 1;
            if let Some((key, version)) = acknowledged {
                let states = self.possible.get_mut(&key).unwrap();
                let at = states.iter().position(|state| *state == version);
                states.drain(..at.unwrap_or(0));
            }
        }
    }

    fn settle(&mut self) {
        for _ in 0..100_000 {
            if self.expected.is_empty() {
                return;
            }
            self.turn(4);
        }
        panic!("{} requests are not answered", self.expected.len());
    }

    fn ask(&mut self, request: StoreRequest) {
        self.next += 1;
        let ticket = Ticket(self.next);
        let answer = execute(&mut self.model, request.clone(), self.now_ms);
        let key = match &request {
            StoreRequest::Apply { record } => Some(record.key),
            StoreRequest::Discard { key, .. } | StoreRequest::Read { key, .. } => Some(*key),
            _ => None,
        };
        let acknowledged = key.map(|key| {
            let version = version_of(&self.model, &key, self.now_ms);
            let states = self.possible.entry(key).or_insert_with(|| vec![None]);
            if states.last() != Some(&version) {
                states.push(version);
            }
            (key, version)
        });
        self.expected.insert(ticket, (answer, acknowledged));
        self.records.ask(&mut self.keyspace, ticket, request);
    }

    fn record(&mut self) -> Record {
        let user_key = format!("key{}", self.rng.u64(..KEYS));
        let mut version = [0; 16];
        // Often older than what is there; never ahead of the clock.
        let time_ms = self.now_ms - self.rng.u64(..200_000);
        version[..8].copy_from_slice(&(time_ms << 16).to_be_bytes());
        version[15] = self.rng.u8(..3);
        let len = if self.rng.u8(..20) == 0 { 300_000 } else { self.rng.usize(..6_000) };
        let is_value = self.rng.u8(..4) > 0;
        let content = match is_value {
            true => Content::Value(vec![self.rng.u8(..); len].into()),
            false => Content::Tombstone,
        };
        Record {
            namespace: Namespace::PLAIN,
            key: Key::of(user_key.as_bytes()),
            user_key: if is_value { user_key.into() } else { Bytes::new() },
            version: Version(version),
            expiry_ms: match self.rng.u8(..4) {
                0 if is_value => self.now_ms + self.rng.u64(..20_000),
                _ => 0,
            },
            content,
        }
    }

    fn step(&mut self) {
        let record = self.record();
        let key = record.key;
        match self.rng.u8(..10) {
            0..5 => self.ask(StoreRequest::Apply { record }),
            5 => self.ask(StoreRequest::Read { key, wants_value: false }),
            6 | 7 => self.ask(StoreRequest::Read { key, wants_value: true }),
            8 => {
                let version = version_of(&self.model, &key, self.now_ms);
                let version = version.filter(|_| self.rng.bool()).unwrap_or(record.version);
                self.ask(StoreRequest::Discard { key, version });
            }
            _ => {
                // Walks are of many keys, and time concerns all: nothing else is under way.
                self.settle();
                self.now_ms += self.rng.u64(..5_000);
                self.turn(0);
                let prefix = Prefix::of(&key, self.rng.u8(..4));
                let count = self.rng.usize(1..30);
                let from = if self.rng.bool() { prefix.first_key() } else { key };
                let request = match self.rng.bool() {
                    true => StoreRequest::Walk { prefix, from, count },
                    false => StoreRequest::Names { prefix, from, count },
                };
                self.ask(request);
                self.settle();
            }
        }
        if self.rng.u8(..100) == 0 {
            self.settle();
            self.ask(StoreRequest::DiscardAll);
            self.settle();
            // What comes later may have lower versions than the end of all had.
            self.possible.values_mut().for_each(|states| *states = vec![None]);
        }
        let completions = self.rng.usize(..3);
        self.turn(completions);
    }

    /// Cuts the power, and takes what is there then for the truth.
    fn crash(&mut self) {
        self.disk = self.disk.crash(&mut self.rng);
        self.keyspace = open(&mut self.disk, self.now_ms);
        (self.records, self.expected) = (HeldRecords::default(), BTreeMap::new());
        self.turn(0);
        let mut model = ModelStore::default();
        for number in 0..KEYS {
            let key = Key::of(format!("key{number}").as_bytes());
            self.next += 1;
            let request = StoreRequest::Read { key, wants_value: true };
            self.records.ask(&mut self.keyspace, Ticket(self.next), request);
            let found = self.await_answer();
            let record = match found {
                StoreAnswer::Read(Found::Nothing) => None,
                StoreAnswer::Read(Found::Record(record)) => Some(record),
                other => panic!("{other:?}"),
            };
            let version = record.as_ref().map(|record| record.version);
            let possible = self.possible.get(&key).cloned().unwrap_or_else(|| vec![None]);
            assert!(possible.contains(&version), "key{number}: {version:?} of {possible:?}");
            if let Some(record) = record {
                let held = self.model.read(&key, self.now_ms);
                if held.as_ref().is_some_and(|held| held.version == record.version) {
                    assert_eq!(held, Some(record.clone()), "key{number}");
                }
                model.apply(record, self.now_ms);
            }
            self.possible.insert(key, vec![version]);
        }
        self.model = model;
    }

    fn await_answer(&mut self) -> StoreAnswer {
        for _ in 0..10_000 {
            if let Some((_, answer)) = self.records.poll_answer() {
                return answer;
            }
            self.pump(1);
        }
        panic!("a read is not answered");
    }
}

#[test]
fn the_store_answers_as_a_model_does_and_keeps_what_it_has_acknowledged() {
    for seed in 0..12 {
        let mut world = World::new(seed);
        for _ in 0..4 {
            for _ in 0..150 {
                world.step();
            }
            world.crash();
        }
        world.settle();
        assert!(world.answered > 200, "seed {seed}: {} answers", world.answered);
    }
}

/// What is known of a range stays known through every kind of change.
#[test]
fn a_second_walk_over_the_same_keys_reads_nothing_from_the_disk() {
    let mut world = World::new(3);
    for _ in 0..200 {
        let record = world.record();
        world.ask(StoreRequest::Apply { record });
        world.turn(2);
    }
    world.settle();
    // Nothing is in memory.
    world.crash();
    let walk = StoreRequest::Walk { prefix: Prefix::ALL, from: Key([0; 20]), count: 1_000 };
    let reads = |world: &World| -> u64 {
        world.keyspace.stores().map(|(_, store)| store.status().disk_reads).sum()
    };
    let before = reads(&world);
    world.ask(walk.clone());
    world.settle();
    let first = reads(&world);
    assert!(first > before + 10, "the first walk reads what there is");
    world.ask(walk.clone());
    world.settle();
    assert_eq!(reads(&world), first, "the second one does not");
    for _ in 0..50 {
        let mut record = world.record();
        record.version.0[..8].copy_from_slice(&(world.now_ms << 16).to_be_bytes());
        let discarded = StoreRequest::Discard { key: record.key, version: record.version };
        world.ask(StoreRequest::Apply { record });
        if world.rng.bool() {
            world.ask(discarded);
        }
        world.settle();
        let between = reads(&world);
        world.ask(walk.clone());
        world.settle();
        assert_eq!(reads(&world), between, "nor does one after a write");
    }
    world.ask(StoreRequest::DiscardAll);
    world.ask(walk);
    world.settle();
    assert_eq!(world.records.digests_known(), 0);
}

/// A comparison of all keys must not hold clients up: walks stop after some.
#[test]
fn walks_over_many_known_keys_stop_for_others() {
    let mut world = World::new(4);
    for number in 0..4 * WALKED_AT_ONCE_MAX {
        let mut record = world.record();
        record.user_key = format!("many{number}").into();
        record.key = Key::of(&record.user_key);
        record.content = Content::Value(Bytes::from_static(b"v"));
        record.expiry_ms = 0;
        world.ask(StoreRequest::Apply { record });
        world.turn(2);
    }
    let walk = StoreRequest::Walk { prefix: Prefix::ALL, from: Key([0; 20]), count: 1 << 20 };
    world.ask(walk);
    world.settle();
    assert!(world.records.digests_known() > WALKED_AT_ONCE_MAX);
    let page = StoreRequest::Walk { prefix: Prefix::ALL, from: Key([0; 20]), count: 200 };
    for _ in 0..40 {
        world.ask(page.clone());
    }
    world.take_answers();
    let mut turns = 0;
    while world.records.deadline_ns().is_some() {
        let before = world.answered;
        world.turn(1);
        let pages = usize::try_from(world.answered - before).unwrap();
        assert!((1..=WALKED_AT_ONCE_MAX / 200 + 1).contains(&pages), "{pages} pages at once");
        turns += 1;
    }
    assert!(turns >= 40 * 200 / (WALKED_AT_ONCE_MAX + 200), "{turns} turns");
    world.settle();
}

/// Others wait for the end of a long comparison, and give it up after some seconds.
#[test]
fn walks_that_go_on_for_a_second_hurry() {
    let mut world = World::new(5);
    for number in 0..300 {
        let mut record = world.record();
        record.user_key = format!("many{number}").into();
        record.key = Key::of(&record.user_key);
        record.content = Content::Value(Bytes::from_static(b"v"));
        record.expiry_ms = 0;
        world.ask(StoreRequest::Apply { record });
        world.turn(2);
    }
    let page = StoreRequest::Walk { prefix: Prefix::ALL, from: Key([0; 20]), count: 256 };
    world.ask(page.clone());
    world.settle();
    let (slow, fast) = (WALKED_AT_ONCE_MAX as u64 / 256, WALKED_LATER_MAX as u64 / 256);
    for _ in 0..2 {
        // A rest, then much work.
        (0..20).for_each(|_| world.turn(1));
        (0..6_000).for_each(|_| world.ask(page.clone()));
        let mut pages_of_turn = Vec::new();
        for _ in 0..1_500 {
            let before = world.answered;
            world.turn(1);
            pages_of_turn.push(world.answered - before);
        }
        assert_eq!((pages_of_turn[500], pages_of_turn[1_400]), (slow, fast));
        world.settle();
    }
}

#[test]
fn the_state_of_the_core_outlives_a_power_loss_and_the_loss_of_all_copies() {
    let mut world = World::new(1);
    let state = Bytes::from_static(b"state");
    world.ask(StoreRequest::Save { state: state.clone() });
    let record = world.record();
    let key = record.key;
    world.ask(StoreRequest::Apply { record });
    world.settle();
    world.ask(StoreRequest::DiscardAll);
    world.ask(StoreRequest::Read { key, wants_value: true });
    // What is saved again is not asked for by anybody.
    for _ in 0..2_000 {
        let answers: Vec<_> = std::iter::from_fn(|| world.records.poll_answer()).collect();
        for (ticket, answer) in answers {
            if let Some((expected, _)) = world.expected.remove(&ticket) {
                assert_eq!(answer, expected);
            }
        }
        if world.expected.is_empty() && world.records.under_way() == 0 {
            break;
        }
        world.pump(1);
    }
    assert!(world.expected.is_empty());
    world.disk = world.disk.crash(&mut world.rng);
    world.keyspace = open(&mut world.disk, world.now_ms);
    world.records = HeldRecords::default();
    let request = StoreRequest::Read { key: STATE_KEY, wants_value: true };
    world.records.ask(&mut world.keyspace, Ticket(1), request);
    let StoreAnswer::Read(Found::Record(found)) = world.await_answer() else { panic!("no state") };
    assert_eq!(found.content, Content::Value(state));
}
