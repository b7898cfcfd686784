//! The records of a Mainline node in real stores, on a simulated disk that loses power.
//!
//! What the engine answers is compared with a plain model. After a power loss an item must have a
//! state that it had since its last acknowledged one. Targets, info hashes and the ids that records
//! of peers are kept under are mixed as a stranger would mix them.

use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

use bytes::Bytes;
use fastrand::Rng;
use kadring::kademlia::NodeId;
use kadring::keyspace::{Keyspace, Spread};
use kadring::mainline::node::event::StoreWork;
use kadring::mainline::peer_side::keys::PeersKey;
use kadring::mainline::peer_side::records::{Outcome, Records};
use kadring::mainline::retention::Page;
use kadring_tests::disk::{SimulatedDisk, run_procedure};
use storage::{CheckpointOptions, Now, StoreLimits, StoreOptions};
use wal::disk::{FileName, HeapBuffers};
use wal::group_commit::GroupCommitLimits;
use wal::segment::Identity;

const SHARDS: u16 = 2;
const START_MS: u64 = 1_700_000_000_000;
const EXPIRY_MS: u64 = START_MS + 3_600_000;

/// States that a record may have after a power loss, the acknowledged one first, the newest last.
type States = Vec<Option<Bytes>>;

struct World {
    rng: Rng,
    disk: SimulatedDisk,
    keyspace: Keyspace,
    records: Records,
    turns: u64,
    ids: Vec<NodeId>,
    items: BTreeMap<NodeId, States>,
    peers: BTreeMap<NodeId, States>,
    /// What is being stored, and what loads under way must find.
    storing: BTreeMap<NodeId, Bytes>,
    loading: BTreeMap<NodeId, VecDeque<Option<Bytes>>>,
    answered: usize,
}

fn open(disk: &mut SimulatedDisk) -> Keyspace {
    let stores = (0..SHARDS).map(|shard| {
        let options = StoreOptions {
            directory: FileName::new(format!("shard-{shard:02}")),
            identity: Identity { store: [1; 16], node_id: [1; 20], shard, shard_count: SHARDS },
            must_exist: false,
            segment_bytes: 4 << 20,
            cache_bytes: 4 << 10,
            limits: StoreLimits::default(),
            log: GroupCommitLimits::default(),
            buffers: Rc::new(HeapBuffers),
            checkpoints: CheckpointOptions::default(),
            footers: true,
        };
        run_procedure(disk, shard, &mut storage::open(options, START_MS)).unwrap().store
    });
    let stores = stores.collect();
    let now = Now { monotonic_ns: 0, clock_ms: START_MS };
    Keyspace::new(Spread::on_one_thread(SHARDS), stores, now, 1)
}

/// Ids near each other and far, and some that lie where records of peers do.
fn draw_ids(rng: &mut Rng) -> Vec<NodeId> {
    let mut ids: Vec<NodeId> = (0..24).map(|_| NodeId::random(rng)).collect();
    let hidden: Vec<NodeId> =
        ids.iter().take(4).map(|id| PeersKey::of(id).key().id.0).map(NodeId).collect();
    ids.extend(hidden.iter().map(|id| {
        // Not the very key: nobody can find a target that is.
        let mut beside = *id;
        beside.0[19] ^= 1;
        beside
    }));
    ids.extend([NodeId([0; 20]), NodeId([0xFF; 20])]);
    ids
}

impl World {
    fn new(seed: u64) -> Self {
        let mut rng = Rng::with_seed(seed);
        let mut disk = SimulatedDisk::new(seed);
        let keyspace = open(&mut disk);
        let ids = draw_ids(&mut rng);
        let nothing: BTreeMap<_, States> = ids.iter().map(|id| (*id, vec![None])).collect();
        Self {
            rng,
            disk,
            keyspace,
            records: Records::default(),
            turns: 0,
            ids,
            items: nothing.clone(),
            peers: nothing,
            storing: BTreeMap::new(),
            loading: BTreeMap::new(),
            answered: 0,
        }
    }

    /// Lets up to so many disk requests end, and hands out what follows.
    fn pump(&mut self, completions: usize) -> Vec<Outcome> {
        self.turns += 1;
        let monotonic_ns = self.turns * 1_000_000;
        self.keyspace.set_now(Now { monotonic_ns, clock_ms: START_MS });
        for _ in 0..completions {
            let Some((shard, completion)) = self.disk.complete_one() else { break };
            self.keyspace.handle_disk(shard, completion);
        }
        loop {
            while let Some((shard, event)) = self.keyspace.poll_event() {
                self.records.handle_event(&mut self.keyspace, shard, &event);
            }
            self.records.retry(&mut self.keyspace);
            self.keyspace.end_turn();
            while let Some((shard, request)) = self.keyspace.poll_request() {
                self.disk.submit(shard, request);
            }
            if !self.keyspace.has_events() {
                break;
            }
        }
        std::iter::from_fn(|| self.records.poll()).collect()
    }

    fn turn(&mut self, completions: usize) {
        for outcome in self.pump(completions) {
            match outcome {
                Outcome::Stored(target, result) => {
                    assert_eq!(result, Ok(()));
                    let record = Some(self.storing.remove(&target).expect("stored once"));
                    let states = self.items.get_mut(&target).unwrap();
                    let at = states.iter().position(|state| *state == record);
                    states.drain(..at.unwrap_or(0));
                }
                Outcome::Loaded(target, found) => {
                    let expected = self.loading.get_mut(&target).and_then(VecDeque::pop_front);
                    assert_eq!(found, Ok(expected.expect("asked for")), "{target}");
                }
                other => panic!("{other:?}"),
            }
            self.answered += 1;
        }
    }

    /// Until the disk has nothing to do: everything is durable then.
    fn settle(&mut self) {
        for _ in 0..100_000 {
            self.turn(4);
            let waits = self.loading.values().any(|expected| !expected.is_empty());
            if self.disk.in_flight() == 0 && self.storing.is_empty() && !waits {
                for states in self.items.values_mut().chain(self.peers.values_mut()) {
                    states.drain(..states.len() - 1);
                }
                return;
            }
        }
        panic!("the stores do not come to rest");
    }

    fn draw_record(&mut self) -> Bytes {
        let len = self.rng.usize(1..600);
        std::iter::repeat_with(|| self.rng.u8(..)).take(len).collect::<Vec<_>>().into()
    }

    fn step(&mut self) {
        let id = self.ids[self.rng.usize(..self.ids.len())];
        match self.rng.u8(..10) {
            0..=3 if !self.storing.contains_key(&id) => {
                let record = self.draw_record();
                self.storing.insert(id, record.clone());
                self.items.get_mut(&id).unwrap().push(Some(record.clone()));
                let work = StoreWork::Store { target: id, record, expiry_ms: EXPIRY_MS };
                self.records.take(&mut self.keyspace, work);
            }
            4 | 5 => {
                let newest = self.items[&id].last().unwrap().clone();
                self.loading.entry(id).or_default().push_back(newest);
                self.records.take(&mut self.keyspace, StoreWork::Load { target: id });
            }
            6 | 7 => {
                let record = self.draw_record();
                self.peers.get_mut(&id).unwrap().push(Some(record.clone()));
                let record = Some((record.to_vec(), EXPIRY_MS));
                let work = StoreWork::StorePeers { info_hash: id, record };
                self.records.take(&mut self.keyspace, work);
            }
            8 => {
                // Nobody is told when it is gone: nothing else is under way meanwhile.
                self.settle();
                let (states, work) = if self.rng.bool() {
                    (self.items.get_mut(&id), StoreWork::Remove { target: id })
                } else {
                    let work = StoreWork::StorePeers { info_hash: id, record: None };
                    (self.peers.get_mut(&id), work)
                };
                states.unwrap().push(None);
                self.records.take(&mut self.keyspace, work);
                self.settle();
            }
            _ => {
                self.settle();
                self.compare_walks();
            }
        }
        let completions = self.rng.usize(..3);
        self.turn(completions);
    }

    fn await_one(&mut self) -> Outcome {
        for _ in 0..10_000 {
            let mut outcomes = self.pump(1);
            assert!(outcomes.len() < 2, "{outcomes:?}");
            if let Some(outcome) = outcomes.pop() {
                return outcome;
            }
        }
        panic!("no answer");
    }

    fn held(&self) -> Vec<(NodeId, Bytes)> {
        let newest = |(id, states): (&NodeId, &States)| Some((*id, states.last()?.clone()?));
        self.items.iter().filter_map(newest).collect()
    }

    /// Walks over all items, and over those of a prefix.
    fn compare_walks(&mut self) {
        let count = self.rng.usize(1..9);
        let (mut found, mut after) = (Vec::new(), None);
        loop {
            self.records.take(&mut self.keyspace, StoreWork::Scan { after, count });
            let Outcome::Scanned(items, is_last) = self.await_one() else { panic!("no scan") };
            assert!(items.len() <= count && (is_last || !items.is_empty()));
            after = items.last().map(|item| item.target).or(after);
            found.extend(items.into_iter().map(|item| (item.target, item.record.unwrap())));
            if is_last {
                break;
            }
        }
        assert_eq!(found, self.held());

        let prefix = self.ids[self.rng.usize(..self.ids.len())];
        let prefix_bits = self.rng.u32(..6);
        let (mut found, mut after) = (Vec::new(), None);
        loop {
            let page = Page { prefix, prefix_bits, after, count };
            self.records.take(&mut self.keyspace, StoreWork::List(page));
            let Outcome::Page(items, is_last) = self.await_one() else { panic!("no page") };
            assert!(items.iter().all(|item| item.expiry_ms == EXPIRY_MS));
            after = items.last().map(|item| item.target).or(after);
            found.extend(items.into_iter().map(|item| item.target));
            if is_last {
                break;
            }
        }
        let held = self.held().into_iter().map(|(id, _)| id);
        let expected: Vec<_> = held.filter(|id| id.shared_bits(&prefix) >= prefix_bits).collect();
        assert_eq!(found, expected, "{prefix} {prefix_bits}");
    }

    /// Cuts the power, and takes what is there then for the truth.
    fn crash(&mut self) {
        self.disk = self.disk.crash(&mut self.rng);
        self.keyspace = open(&mut self.disk);
        self.records = Records::default();
        (self.storing, self.loading) = Default::default();
        for id in self.ids.clone() {
            self.records.take(&mut self.keyspace, StoreWork::Load { target: id });
            let Outcome::Loaded(_, Ok(found)) = self.await_one() else { panic!("not loaded") };
            let possible = self.items.insert(id, vec![found.clone()]).unwrap();
            assert!(possible.contains(&found), "{id}: {found:?} of {possible:?}");
        }
        self.records.restore_peers(&mut self.keyspace);
        let mut restored = BTreeMap::new();
        'restoring: loop {
            for outcome in self.pump(1) {
                match outcome {
                    Outcome::Peers(info_hash, record) => {
                        assert!(restored.insert(info_hash, record).is_none(), "told twice");
                    }
                    Outcome::PeersRestored => break 'restoring,
                    other => panic!("{other:?}"),
                }
            }
        }
        for (info_hash, states) in &mut self.peers {
            let found = restored.remove(info_hash);
            assert!(states.contains(&found), "{info_hash}: {found:?} of {states:?}");
            *states = vec![found];
        }
        assert!(restored.is_empty(), "{restored:?}");
    }
}

#[test]
fn records_of_a_node_are_as_a_model_has_them_and_what_was_promised_outlives_a_power_loss() {
    let mut answered = 0;
    for seed in 0..10 {
        let mut world = World::new(seed);
        for _ in 0..4 {
            for _ in 0..120 {
                world.step();
            }
            world.crash();
        }
        answered += world.answered;
    }
    assert!(answered > 1_000, "{answered}");
}

#[test]
fn state_is_what_was_saved_last() {
    let mut world = World::new(1);
    world.records.load_state(&mut world.keyspace);
    assert_eq!(world.await_one(), Outcome::State(None));
    // The longest is written beside the log.
    for len in [100, 512 << 10, 10] {
        let state = vec![7; len];
        world.records.take(&mut world.keyspace, StoreWork::SaveState(state.clone()));
        assert!(!world.records.is_settled(&world.keyspace));
        assert_eq!(world.await_one(), Outcome::StateSaved);
        assert!(world.records.is_settled(&world.keyspace));
        world.crash();
        world.records.load_state(&mut world.keyspace);
        assert_eq!(world.await_one(), Outcome::State(Some(state.into())));
    }
}
