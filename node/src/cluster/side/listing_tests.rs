//! SCAN over several nodes whose stores are maps, and DBSIZE of one.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use fastrand::Rng;
use storage::Now;
use wal::record::{Key, Namespace, Version};

use super::answer::Answer;
use super::listing::{Counted, Listings};
use crate::cluster::message::{Content, MemberEntry, Phase, Record, Standing};
use crate::cluster::mutation::Mutation;
use crate::cluster::node::{ClusterEvent, ClusterNode, Start};
use crate::cluster::placement::{replica_set, responsibility};
use crate::cluster::settings::ClusterSettings;
use crate::cluster::state::ClusterState;
use crate::cluster::store::{ModelStore, RecordStore, execute};
use crate::kademlia::NodeId;
use crate::resp::command::Scan;
use crate::resp::door::PeerToken;

const NOW: Now = Now { monotonic_ns: 1_000_000_000, clock_ms: 1_700_000_000_000 };
const REPLICAS: usize = 3;

struct Host {
    core: ClusterNode,
    store: ModelStore,
    is_down: bool,
}

struct World {
    ids: Vec<NodeId>,
    hosts: BTreeMap<NodeId, Host>,
    listings: Listings,
    answers: BTreeMap<PeerToken, Answer>,
    next: u64,
}

impl World {
    /// Nodes that have been a cluster for long.
    fn new(count: usize, rng: &mut Rng) -> Self {
        let ids: Vec<NodeId> = (0..count).map(|_| NodeId::random(rng)).collect();
        let entry = |node: &NodeId| {
            let (phase, standing) = (Phase::Full, Standing::Alive);
            MemberEntry { node: *node, address: Bytes::new(), incarnation: 1, phase, standing }
        };
        let members: Vec<MemberEntry> = ids.iter().map(entry).collect();
        let host = |id: &NodeId| {
            let held = responsibility(id, &ids, REPLICAS);
            let state = ClusterState { contact_ms: NOW.clock_ms, held, members: members.clone() };
            let start = Start {
                node: *id,
                address: Bytes::new(),
                settings: ClusterSettings { replicas: REPLICAS, ..ClusterSettings::default() },
                is_founder: false,
                state: Some(state),
                version_max: Version::default(),
                seed: 7,
                mutation: Mutation::Nothing,
            };
            let core = ClusterNode::new(start, NOW);
            (*id, Host { core, store: ModelStore::default(), is_down: false })
        };
        let hosts = ids.iter().map(host).collect();
        Self { ids, hosts, listings: Listings::default(), answers: BTreeMap::new(), next: 0 }
    }

    /// Stores a record on so many of its nodes.
    fn put(&mut self, name: &str, time_ms: u64, is_value: bool, copies: usize) {
        let mut version = Version::default();
        version.0[..8].copy_from_slice(&(time_ms << 16).to_be_bytes());
        let key = Key::of(name.as_bytes());
        let value = Content::Value(Bytes::from_static(b"v"));
        let record = Record {
            namespace: Namespace::PLAIN,
            key,
            user_key: if is_value { name.to_owned().into() } else { Bytes::new() },
            version,
            expiry_ms: 0,
            content: if is_value { value } else { Content::Tombstone },
        };
        for id in replica_set(&key, &self.ids, REPLICAS).into_iter().rev().take(copies) {
            self.hosts.get_mut(&id).unwrap().store.apply(record.clone(), NOW.clock_ms);
        }
    }

    /// Goes on until nothing moves; what goes to a node that is down is told as lost.
    fn run(&mut self) {
        loop {
            let mut messages = Vec::new();
            let mut has_moved = false;
            for (id, host) in self.hosts.iter_mut().filter(|(_, host)| !host.is_down) {
                while let Some((ticket, request)) = host.core.poll_store() {
                    has_moved = true;
                    let answer = execute(&mut host.store, request, NOW.clock_ms);
                    host.core.handle_store(NOW, ticket, answer);
                }
                while let Some((to, message)) = host.core.poll_send() {
                    messages.push((*id, to, message));
                }
                while let Some(event) = host.core.poll_event() {
                    has_moved = true;
                    let ClusterEvent::Decided { command, outcome } = event else { continue };
                    let core = &mut host.core;
                    let answer = self.listings.on_decided(core, NOW, command, outcome).unwrap();
                    self.answers.extend(answer);
                }
            }
            for (from, to, message) in messages {
                has_moved = true;
                let host = self.hosts.get_mut(&to).unwrap();
                if host.is_down {
                    self.hosts.get_mut(&from).unwrap().core.handle_unreachable(NOW, to);
                } else {
                    host.core.handle_message(NOW, from, message);
                }
            }
            if !has_moved {
                return;
            }
        }
    }

    fn scan_page(&mut self, at: usize, scan: &Scan<'_>) -> Answer {
        self.next += 1;
        let token = PeerToken(self.next);
        let core = &mut self.hosts.get_mut(&self.ids[at]).unwrap().core;
        self.listings.scan(core, NOW, token, scan);
        self.run();
        self.answers.remove(&token).expect("the command is answered")
    }

    /// All keys, in the order they come.
    fn scan(&mut self, at: usize, count: u64, pattern: Option<&'static [u8]>) -> Vec<String> {
        let (mut found, mut cursor) = (Vec::new(), 0);
        loop {
            let scan = Scan { cursor, pattern, count: Some(count), kind: None };
            let Answer::Page(next, names) = self.scan_page(at, &scan) else { panic!("no page") };
            assert!(next == 0 || next > cursor, "the walk goes on");
            found.extend(names.iter().map(|name| String::from_utf8(name.to_vec()).unwrap()));
            if next == 0 {
                return found;
            }
            cursor = next;
        }
    }
}

#[test]
fn every_node_lists_each_key_once_from_a_majority_of_its_holders() {
    for (seed, count) in [(1, 1), (2, 3), (3, 8), (4, 20)] {
        let mut rng = Rng::with_seed(seed);
        let mut world = World::new(count, &mut rng);
        let mut expected = BTreeSet::new();
        for number in 0..300 {
            let name = format!("key{number}");
            world.put(&name, NOW.clock_ms - 1_000, true, rng.usize(2..=REPLICAS));
            // Deleted by a majority, while one has not heard of it.
            let is_deleted = number % 5 == 0;
            if is_deleted {
                world.put(&name, NOW.clock_ms - 500, false, 2);
            } else {
                expected.insert(name);
            }
        }
        for page in [1, 7, 1_000] {
            let at = rng.usize(..count);
            let found = world.scan(at, page, None);
            let distinct: BTreeSet<String> = found.iter().cloned().collect();
            assert_eq!(found.len(), distinct.len(), "seed {seed}: a key comes twice");
            assert_eq!(distinct, expected, "seed {seed}");
        }
        let matching = expected.iter().filter(|name| name.starts_with("key1")).count();
        assert_eq!(world.scan(0, 50, Some(b"key1*")).len(), matching);
        let hidden = Scan { cursor: 0, pattern: None, count: Some(1_000), kind: Some(b"list") };
        let Answer::Page(_, names) = world.scan_page(0, &hidden) else { panic!("no page") };
        assert!(names.is_empty());
        assert_eq!(world.listings.len(), 0);
    }
}

#[test]
fn keys_are_listed_while_a_majority_is_there_and_not_without() {
    let mut rng = Rng::with_seed(5);
    let mut world = World::new(3, &mut rng);
    for number in 0..50 {
        world.put(&format!("key{number}"), NOW.clock_ms, true, 3);
    }
    world.hosts.get_mut(&world.ids[1]).unwrap().is_down = true;
    assert_eq!(world.scan(0, 10, None).len(), 50);
    world.hosts.get_mut(&world.ids[2]).unwrap().is_down = true;
    let scan = Scan { cursor: 0, pattern: None, count: None, kind: None };
    let Answer::Error(text) = world.scan_page(0, &scan) else { panic!("no error") };
    assert!(text.starts_with(b"NOREPLICAS"));
}

#[test]
fn dbsize_counts_what_lives_on_this_node() {
    let mut store = ModelStore::default();
    let mut world = World::new(1, &mut Rng::with_seed(6));
    for number in 0..10_000 {
        world.put(&format!("key{number}"), NOW.clock_ms - 1, number % 4 > 0, 1);
    }
    std::mem::swap(&mut store, &mut world.hosts.get_mut(&world.ids[0]).unwrap().store);
    let token = PeerToken(9);
    let mut asked = world.listings.count(token);
    loop {
        let answer = execute(&mut store, asked.1, NOW.clock_ms);
        match world.listings.on_stored(asked.0, answer).unwrap() {
            Counted::More(ticket, request) => asked = (ticket, request),
            Counted::Done(whose, answer) => {
                assert_eq!((whose, answer), (token, Answer::Integer(7_500)));
                return;
            }
        }
    }
}
