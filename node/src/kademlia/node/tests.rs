//! A few nodes that exchange real datagrams in steps of a virtual clock.

use super::saved::SavedTableError;
use super::*;
use crate::kademlia::k_bucket::Health;
use crate::krpc::bencode::Writer;
use std::collections::BTreeMap;
use std::net::Ipv4Addr;

const CLUSTER: Private = Private { protocol: 1, cluster: [7; 16] };

fn address(number: u32) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::from(0x0A00_0000 + number), 7400))
}

fn at(ms: u64) -> Monotonic {
    Monotonic(0).plus_millis(ms)
}

/// Nodes whose datagrams arrive 10 ms later.
#[derive(Default)]
struct Net {
    now: Monotonic,
    nodes: BTreeMap<SocketAddr, KademliaNode>,
    /// In order of arrival: all take as long.
    flying: VecDeque<(Monotonic, SocketAddr, SocketAddr, Vec<u8>)>,
    events: Vec<(SocketAddr, NodeEvent)>,
    /// Datagrams that left an address, by it.
    sent: BTreeMap<SocketAddr, u64>,
}

impl Net {
    fn add(&mut self, number: u32, seeds: &[u32]) -> SocketAddr {
        let id = NodeId::random(&mut Rng::with_seed(u64::from(number) + 1));
        let seeds = seeds.iter().map(|seed| address(*seed)).collect();
        self.add_node(number, NodeOptions::private(id, CLUSTER, seeds))
    }

    fn add_node(&mut self, number: u32, options: NodeOptions) -> SocketAddr {
        let node = KademliaNode::new(self.now, options, Rng::with_seed(u64::from(number)));
        self.nodes.insert(address(number), node);
        self.drain(address(number));
        address(number)
    }

    fn node(&mut self, at: SocketAddr) -> &mut KademliaNode {
        self.nodes.get_mut(&at).unwrap()
    }

    fn drain(&mut self, at: SocketAddr) {
        let Some(node) = self.nodes.get_mut(&at) else { return };
        while let Some((to, datagram)) = node.poll_transmit() {
            assert!(datagram.len() <= 1024, "{} bytes", datagram.len());
            *self.sent.entry(at).or_default() += 1;
            self.flying.push_back((self.now.plus_millis(10), at, to, datagram));
        }
        while let Some(event) = node.poll_event() {
            self.events.push((at, event));
        }
    }

    fn run(&mut self, ms: u64) {
        let end = self.now.plus_millis(ms);
        loop {
            let timers = self.nodes.iter().filter_map(|(at, node)| Some((node.deadline()?, *at)));
            let timer = timers.min();
            let arrival = self.flying.front().map(|flying| flying.0);
            let next = [timer.map(|timer| timer.0), arrival].into_iter().flatten().min();
            let Some(next) = next.filter(|next| *next <= end) else { break };
            self.now = self.now.max(next);
            if arrival == Some(next) {
                let (_, from, to, datagram) = self.flying.pop_front().unwrap();
                if let Some(node) = self.nodes.get_mut(&to) {
                    node.handle_datagram(self.now, from, &datagram);
                    self.drain(to);
                }
            } else if let Some((_, at)) = timer {
                let now = self.now;
                self.node(at).handle_time(now);
                assert!(self.node(at).deadline().is_none_or(|next| next > now), "no progress");
                self.drain(at);
            }
        }
        self.now = end;
    }

    fn lookup(&mut self, from: SocketAddr, target: NodeId, kind: LookupKind) -> LookupId {
        let now = self.now;
        let id = self.node(from).lookup(now, target, kind).unwrap();
        self.drain(from);
        id
    }

    fn outcome(&mut self, from: SocketAddr, id: LookupId) -> LookupOutcome {
        let done = self.events.iter().find_map(|(at, event)| match event {
            NodeEvent::LookupDone(outcome) if (*at, outcome.lookup) == (from, id) => {
                Some(outcome.clone())
            }
            _ => None,
        });
        done.expect("the lookup has ended")
    }
}

fn grown(count: u32) -> Net {
    let mut net = Net::default();
    net.add(0, &[]);
    for number in 1..count {
        net.add(number, &[0]);
        net.run(100);
    }
    net.run(5_000);
    net
}

#[test]
fn a_founder_is_ready_at_once_and_others_once_they_know_their_neighbours() {
    let mut net = Net::default();
    let founder = net.add(0, &[]);
    assert_eq!(net.events, [(founder, NodeEvent::Ready)]);
    let joiner = net.add(1, &[0]);
    assert!(!net.node(joiner).is_ready());
    net.run(1_000);
    assert!(net.events.contains(&(joiner, NodeEvent::Ready)));
    assert_eq!(net.node(joiner).table().len(), 1);
    assert_eq!(net.node(founder).table().len(), 1, "the founder has verified the joiner");
}

#[test]
fn seeds_that_do_not_answer_are_asked_for_ever() {
    let mut net = Net::default();
    let lonely = net.add(1, &[0, 2]);
    net.run(60 * 60 * 1000);
    assert!(!net.node(lonely).is_ready());
    let sent = net.sent[&lonely];
    assert!((500..1_500).contains(&sent), "{sent} datagrams in an hour");
    net.add(0, &[]);
    net.run(40_000);
    assert!(net.node(lonely).is_ready());
}

#[test]
fn nodes_that_start_at_once_with_each_other_as_seeds_find_each_other() {
    let mut net = Net::default();
    let all: Vec<u32> = (0..30).collect();
    for number in &all {
        net.add(*number, &all);
    }
    net.run(10_000);
    for node in net.nodes.values() {
        assert!(node.is_ready());
        assert!(node.table().len() >= 20, "{}", node.table().len());
    }
}

#[test]
fn lookups_find_the_closest_nodes() {
    let mut net = grown(60);
    let mut rng = Rng::with_seed(9);
    for _ in 0..20 {
        let target = NodeId::random(&mut rng);
        let from = address(rng.u32(..60));
        let id = net.lookup(from, target, LookupKind::Nodes);
        net.run(3_000);
        let outcome = net.outcome(from, id);
        let mut truth: Vec<NodeId> = net.nodes.values().map(KademliaNode::own).collect();
        truth.sort_by_key(|id| id.distance(&target));
        truth.retain(|id| *id != net.nodes[&from].own());
        truth.truncate(20);
        let found: Vec<NodeId> = outcome.closest.iter().map(|contact| contact.id).collect();
        assert_eq!(found, truth);
        assert!(outcome.hops >= 1);
    }
}

#[test]
fn lookups_of_dead_nodes_end() {
    let mut net = grown(30);
    for number in 1..29 {
        net.nodes.remove(&address(number));
    }
    let id = net.lookup(address(29), NodeId([3; 20]), LookupKind::Nodes);
    net.run(20_000);
    let outcome = net.outcome(address(29), id);
    assert_eq!(outcome.closest.len(), 1);
    assert!(outcome.counters.failures > 10);
}

#[test]
fn queries_of_layers_above_come_out_and_their_answers_come_back() {
    let mut net = grown(3);
    let (asker, holder) = (address(1), address(2));
    let own = net.node(asker).own();
    let mut arguments = Vec::new();
    Id { id: own }.encode(&mut arguments);
    let now = net.now;
    let query = net.node(asker).query(now, holder, b"get", &arguments).unwrap();
    net.drain(asker);
    net.run(12);
    let Some((at, NodeEvent::Query { asker: back, sender, method, .. })) = net.events.pop() else {
        panic!("no query")
    };
    assert_eq!((at, sender, &method[..]), (holder, own, &b"get"[..]));
    let id = net.node(holder).own();
    let mut values = Vec::new();
    Writer::new(&mut values).dictionary().bytes(b"id").bytes(&id.0).bytes(b"v").integer(7).end();
    net.node(holder).respond(&back, &values);
    net.drain(holder);
    net.run(12);
    let from = Contact { id, address: holder };
    assert_eq!(net.events.pop(), Some((asker, NodeEvent::Answered { query, from, values })));

    let now = net.now;
    let query = net.node(asker).query(now, holder, b"get", &arguments).unwrap();
    net.drain(asker);
    net.run(12);
    net.node(holder).respond_error(&back, code::SERVER, "not now");
    net.drain(holder);
    net.run(12);
    // The transaction is over: an answer of its name is none to the next query.
    assert!(!matches!(net.events.last(), Some((_, NodeEvent::Refused { .. }))));
    net.run(10_000);
    assert_eq!(net.events.pop(), Some((asker, NodeEvent::Unanswered { query, to: holder })));
}

#[test]
fn lookups_by_method_name_a_place_for_a_copy() {
    let mut net = grown(30);
    let own = net.node(address(5)).own();
    let target = NodeId([0x55; 20]);
    let mut arguments = Vec::new();
    crate::krpc::private::FindValue { id: own, target }.encode(&mut arguments);
    let kind = LookupKind::Method { method: b"find_value", arguments };
    let id = net.lookup(address(5), target, kind);
    let mut first = None;
    for _ in 0..200 {
        net.run(10);
        for (at, event) in std::mem::take(&mut net.events) {
            match event {
                NodeEvent::Query { asker, .. } => {
                    let own = net.node(at).own();
                    let now = net.now;
                    let lists =
                        net.node(at).compact_nodes(now, &target, Want::default(), &asker.address);
                    let nodes = Nodes { id: own, nodes: lists[0].as_deref(), nodes6: None };
                    let mut values = Vec::new();
                    nodes.encode(&mut values);
                    net.node(at).respond(&asker, &values);
                    net.drain(at);
                }
                NodeEvent::LookupResponse { from, .. } => {
                    // The closest of all has it.
                    let mut ids: Vec<NodeId> = net.nodes.values().map(KademliaNode::own).collect();
                    ids.sort_by_key(|id| id.distance(&target));
                    if from.id == ids[0] {
                        first = Some(ids[1]);
                        net.node(at).mark_holder(id, from.id);
                    }
                }
                NodeEvent::LookupDone(outcome) => {
                    let place = outcome.cache_at.expect("a holder was marked");
                    assert_eq!((Some(place.contact.id), place.between), (first, 1));
                    return;
                }
                _ => {}
            }
        }
    }
    panic!("the lookup has not ended");
}

#[test]
fn nodes_of_other_clusters_and_of_none_are_not_listened_to() {
    let mut net = grown(2);
    let id = NodeId([9; 20]);
    let elsewhere = Private { cluster: [8; 16], ..CLUSTER };
    let foreign = net.add_node(7, NodeOptions::private(id, elsewhere, vec![address(0)]));
    let mainline = NodeOptions::mainline(NodeId([8; 20]), Family::V4, vec![address(0)]);
    let public = net.add_node(8, mainline);
    net.run(30_000);
    for stranger in [foreign, public] {
        assert!(!net.node(stranger).is_ready());
        assert!(net.node(stranger).table().is_empty());
    }
    assert!(net.node(address(0)).counters().foreign > 5);
    assert_eq!(net.node(address(0)).table().len(), 1);
}

#[test]
fn who_asks_enters_only_by_answering() {
    let mut net = grown(1);
    let stranger = address(77);
    let id = NodeId([9; 20]);
    let mut arguments = Vec::new();
    Id { id }.encode(&mut arguments);
    let query = |read_only| {
        let mut datagram = Vec::new();
        let body = Body::Query { method: b"ping", arguments: &arguments };
        let (transaction, private) = (&b"xy"[..], Some(CLUSTER));
        let message = Message { transaction, version: None, read_only, ip: None, private, body };
        message.encode(&mut datagram);
        datagram
    };
    let now = net.now;
    let node = net.node(address(0));
    node.handle_datagram(now, stranger, &query(true));
    let (_, reply) = node.poll_transmit().unwrap();
    assert_eq!(Message::decode(&reply).unwrap().transaction, b"xy");
    assert_eq!(node.poll_transmit(), None, "a read-only node is not pinged");
    node.handle_datagram(now, stranger, &query(false));
    node.poll_transmit().unwrap();
    let (to, ping) = node.poll_transmit().unwrap();
    assert_eq!(to, stranger);
    assert!(node.table().is_empty());
    // An answer with the right transaction from another address is none.
    let ping = Message::decode(&ping).unwrap();
    let mut answer = Vec::new();
    let body = Body::Response { values: &arguments };
    Message { body, ..ping }.encode(&mut answer);
    node.handle_datagram(now, address(78), &answer);
    assert!(node.table().is_empty());
    node.handle_datagram(now, stranger, &answer);
    assert_eq!(node.table().len(), 1);
    assert_eq!(node.counters().unexpected, 1);
}

#[test]
fn strangers_cannot_make_a_node_ping_without_bound() {
    let mut net = grown(1);
    let now = net.now;
    let node = net.node(address(0));
    let mut rng = Rng::with_seed(5);
    for number in 0..10_000 {
        let mut arguments = Vec::new();
        Id { id: NodeId::random(&mut rng) }.encode(&mut arguments);
        let mut datagram = Vec::new();
        let body = Body::Query { method: b"what", arguments: &arguments };
        let (transaction, private) = (&b"xy"[..], Some(CLUSTER));
        let message =
            Message { transaction, version: None, read_only: false, ip: None, private, body };
        message.encode(&mut datagram);
        node.handle_datagram(now, address(100 + number), &datagram);
    }
    assert_eq!(node.under_way().0, VERIFIES_MAX);
    assert_eq!(std::iter::from_fn(|| node.poll_event()).count(), EVENTS_MAX);
    assert!(node.counters().dropped > 0);
}

/// Takes `left` queries, then none.
#[derive(Debug)]
struct Quota {
    left: u32,
}

impl QueryGate for Quota {
    fn admits(&mut self, _: Monotonic, _: IpAddr, _: usize) -> bool {
        self.left = self.left.saturating_sub(1);
        self.left > 0
    }
}

#[test]
fn a_gate_keeps_queries_out_and_lets_answers_in() {
    let mut net = grown(2);
    let gate: Option<Box<dyn QueryGate>> = Some(Box::new(Quota { left: 0 }));
    let options = NodeOptions::private(NodeId([9; 20]), CLUSTER, vec![address(0)]);
    let closed = net.add_node(9, NodeOptions { gate, ..options });
    net.run(5_000);
    assert!(net.node(closed).is_ready(), "answers come in");
    assert!(net.node(closed).counters().limited > 0);
    assert_eq!(net.node(closed).counters().queries_in, 0);
}

#[test]
fn dead_nodes_are_replaced_and_come_back() {
    let mut net = grown(3);
    let gone = net.nodes.remove(&address(2)).unwrap();
    net.run(30 * 60 * 1000);
    let now = net.now;
    let health = |net: &mut Net| {
        let node = net.node(address(1));
        let entry =
            node.table().find(&gone.own()).map(|entry| entry.health(now, node.limits.table.health));
        entry.unwrap()
    };
    assert_eq!(health(&mut net), Health::Bad);
    net.add(2, &[]);
    net.run(3 * 60 * 1000);
    assert_eq!(health(&mut net), Health::Good);
}

#[test]
fn a_node_without_seeds_comes_back_by_its_saved_table() {
    let mut net = grown(10);
    let saved = net.node(address(4)).save();
    let before = net.node(address(4)).table().len();
    net.nodes.remove(&address(4));
    net.run(60_000);
    let again = net.add(4, &[999]);
    let now = net.now;
    assert_eq!(net.node(again).restore(now, &saved), Ok(before));
    net.drain(again);
    net.run(1_000);
    assert!(net.node(again).is_ready());
    let other = net.add(5, &[]);
    let refused = net.node(other).restore(now, &saved);
    assert!(matches!(refused, Err(SavedTableError::OtherNode { .. })));
}

#[test]
fn bad_arguments_are_answered_with_203_and_noise_not_at_all() {
    let mut net = grown(1);
    let now = net.now;
    let node = net.node(address(0));
    let kr = [&b"2:kr17:"[..], &CLUSTER.encode()].concat();
    let datagram = [&b"d1:ad2:id3:abce"[..], &kr, &b"1:q4:ping1:t2:aa1:y1:qe"[..]].concat();
    node.handle_datagram(now, address(3), &datagram);
    let (_, reply) = node.poll_transmit().unwrap();
    let text = b"invalid value for 'id'";
    assert_eq!(Message::decode(&reply).unwrap().body, Body::Error { code: 203, text });
    for noise in [&b""[..], b"d", b"li1ee", b"d1:t2:aa1:y1:qe", &[0xff; 1400]] {
        node.handle_datagram(now, address(3), noise);
    }
    assert_eq!(node.poll_transmit(), None);
    assert_eq!(node.counters().rejected, 5);
    assert!(at(0) <= now);
}
