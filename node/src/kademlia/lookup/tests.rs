//! Lookups in networks of sorted lists.

use super::*;
use fastrand::Rng;
use proptest::prelude::*;
use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddr};

const K: usize = 8;

/// Nodes that each know some others: for every prefix shared with them up to K nodes, as full
/// k-buckets would hold.
struct Network {
    nodes: Vec<Contact>,
    known: Vec<Vec<usize>>,
    dead: Vec<bool>,
}

impl Network {
    fn new(rng: &mut Rng, count: u32) -> Self {
        let contact = |number: u32| Contact {
            id: NodeId::random(&mut Rng::with_seed(u64::from(number) + 77)),
            address: SocketAddr::from((Ipv4Addr::from(number), 1)),
        };
        let nodes: Vec<Contact> = (0..count).map(contact).collect();
        let known = nodes.iter().map(|own| {
            let mut buckets = vec![Vec::new(); 160];
            let mut others: Vec<usize> = (0..nodes.len()).collect();
            rng.shuffle(&mut others);
            for other in others {
                let shared = own.id.shared_bits(&nodes[other].id) as usize;
                if shared < 160 && buckets[shared].len() < K {
                    buckets[shared].push(other);
                }
            }
            buckets.concat()
        });
        let known = known.collect();
        Self { dead: vec![false; nodes.len()], nodes, known }
    }

    fn closest_known(&self, node: usize, target: &NodeId) -> Vec<Contact> {
        let mut known: Vec<Contact> =
            self.known[node].iter().map(|other| self.nodes[*other]).collect();
        known.sort_by_key(|contact| contact.id.distance(target));
        known.truncate(K);
        known
    }

    fn truth(&self, target: &NodeId, own: &Contact) -> Vec<Contact> {
        let alive = (0..self.nodes.len()).filter(|node| !self.dead[*node]);
        let mut alive: Vec<Contact> = alive.map(|node| self.nodes[node]).collect();
        alive.retain(|contact| contact != own);
        alive.sort_by_key(|contact| contact.id.distance(target));
        alive.truncate(K);
        alive
    }

    fn index(&self, contact: &Contact) -> usize {
        self.nodes.iter().position(|node| node == contact).unwrap()
    }

    /// Runs a lookup to its end; answers come in any order.
    fn run(&self, rng: &mut Rng, from: usize, target: NodeId) -> Lookup {
        let seeds = self.closest_known(from, &target);
        let own = self.nodes[from].id;
        let mut lookup = Lookup::new(own, target, LookupLimits::new(K), &seeds);
        let mut asked = Vec::new();
        loop {
            asked.extend(std::iter::from_fn(|| lookup.next_query()));
            assert!(asked.len() <= 4 || asked.iter().any(|node| self.dead[self.index(node)]));
            if lookup.is_done() {
                return lookup;
            }
            let contact = asked.swap_remove(rng.usize(..asked.len()));
            let node = self.index(&contact);
            if self.dead[node] {
                lookup.on_slow(&contact);
                lookup.on_failure(&contact);
            } else {
                assert!(lookup.on_response(&contact, &self.closest_known(node, &target)));
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn lookup_finds_exactly_the_closest_nodes_where_all_live(seed: u64, count in 2_u32..300) {
        let mut rng = Rng::with_seed(seed);
        let network = Network::new(&mut rng, count);
        for _ in 0..8 {
            let target = NodeId::random(&mut rng);
            let lookup = network.run(&mut rng, 0, target);
            let found: Vec<Contact> = lookup.closest().collect();
            prop_assert_eq!(found, network.truth(&target, &network.nodes[0]));
            prop_assert!(lookup.hops() <= 8);
        }
    }
}

/// The tables still name the dead, so of the eight closest one may now and then be known to nobody
/// who was asked; the closest of all is found every time.
#[test]
fn lookup_finds_the_closest_node_where_one_in_ten_is_dead() {
    let mut rng = Rng::with_seed(4);
    let mut network = Network::new(&mut rng, 500);
    for node in 1..network.dead.len() {
        network.dead[node] = rng.u8(..10) == 0;
    }
    let mut missed = 0;
    for _ in 0..200 {
        let target = NodeId::random(&mut rng);
        let lookup = network.run(&mut rng, 0, target);
        let found: Vec<Contact> = lookup.closest().collect();
        let truth = network.truth(&target, &network.nodes[0]);
        assert_eq!(found[0], truth[0]);
        missed += truth.iter().filter(|node| !found.contains(node)).count();
    }
    assert!(missed <= 200 * K / 20, "{missed} of {} missed", 200 * K);
}

fn contact(number: u8) -> Contact {
    let address = SocketAddr::from((Ipv4Addr::new(10, 0, 0, number), 1));
    Contact { id: NodeId([number; 20]), address }
}

/// A lookup of id 0 from node 255: a contact's number is its distance.
fn lookup(k: usize, known: &[u8]) -> Lookup {
    let known: Vec<Contact> = known.iter().map(|number| contact(*number)).collect();
    Lookup::new(NodeId([255; 20]), NodeId([0; 20]), LookupLimits::new(k), &known)
}

fn queries(lookup: &mut Lookup) -> Vec<u8> {
    std::iter::from_fn(|| lookup.next_query()).map(|contact| contact.id.0[0]).collect()
}

#[test]
fn a_slow_node_is_neither_waited_for_nor_lost() {
    let mut lookup = lookup(2, &[1, 2, 3, 4, 5, 6]);
    assert_eq!(queries(&mut lookup), [1, 2]);
    lookup.on_slow(&contact(1));
    assert_eq!(queries(&mut lookup), [3]);
    lookup.on_response(&contact(2), &[]);
    assert!(!lookup.is_done());
    lookup.on_response(&contact(3), &[]);
    assert!(lookup.is_done());
    assert!(lookup.on_response(&contact(1), &[]), "it may still answer");
    let closest: VecDeque<u8> = lookup.closest().map(|contact| contact.id.0[0]).collect();
    assert_eq!(closest, [1, 2]);
}

#[test]
fn only_who_was_asked_is_listened_to() {
    let mut lookup = lookup(4, &[10, 20]);
    assert_eq!(queries(&mut lookup), [10, 20]);
    assert!(!lookup.on_response(&contact(30), &[contact(1)]));
    let elsewhere = Contact { address: contact(99).address, ..contact(10) };
    assert!(!lookup.on_response(&elsewhere, &[contact(1)]));
    assert!(lookup.on_response(&contact(10), &[contact(1)]));
    assert!(!lookup.on_response(&contact(10), &[contact(2)]), "once only");
    assert_eq!(queries(&mut lookup), [1]);
}

#[test]
fn lies_fill_neither_memory_nor_the_list_of_whom_to_ask() {
    let mut lookup = lookup(4, &[100]);
    queries(&mut lookup);
    let mut named: Vec<Contact> = (0..10_000_u32)
        .map(|number| {
            let mut id = [0; 20];
            id[16..].copy_from_slice(&number.to_be_bytes());
            Contact { id: NodeId(id), address: contact(7).address }
        })
        .collect();
    named.push(contact(255));
    lookup.on_response(&contact(100), &named);
    assert_eq!(lookup.candidates.len(), 3, "two ids per address, and not ourselves");
    for number in 0..=255 {
        let limits = lookup.limits;
        lookup.add(contact(number), 1);
        assert!(lookup.candidates.len() <= limits.candidates_max);
    }
}

#[test]
fn the_nearest_are_kept_when_candidates_are_too_many() {
    let mut lookup = lookup(4, &[]);
    let max = u8::try_from(lookup.limits.candidates_max).unwrap();
    for number in (1..=max).rev() {
        lookup.add(contact(number + 50), 0);
    }
    lookup.add(contact(1), 0);
    lookup.add(contact(254), 0);
    let ids: Vec<u8> = lookup.candidates.iter().map(|known| known.contact.id.0[0]).collect();
    assert_eq!(ids.len(), usize::from(max));
    assert_eq!(ids[0], 1);
    assert!(!ids.contains(&254) && !ids.contains(&(max + 50)));
}

#[test]
fn a_lookup_that_knows_nobody_is_done_with_nothing() {
    let mut lookup = lookup(4, &[]);
    assert_eq!(lookup.next_query(), None);
    assert!(lookup.is_done());
    assert_eq!(lookup.closest().count(), 0);
    assert_eq!(lookup.hops(), 0);
}

#[test]
fn a_lookup_all_of_whose_nodes_are_slow_waits_for_them() {
    let mut lookup = lookup(4, &[1, 2]);
    queries(&mut lookup);
    lookup.on_slow(&contact(1));
    lookup.on_slow(&contact(2));
    assert!(!lookup.is_done());
    lookup.on_failure(&contact(1));
    assert!(!lookup.is_done());
    lookup.on_failure(&contact(2));
    assert!(lookup.is_done());
}

/// A node began anew with another id at the same address, and others still name the old one.
#[test]
fn a_node_that_began_anew_is_found_behind_its_old_id() {
    let mut lookup = lookup(4, &[100, 7]);
    let anew = Contact { address: contact(7).address, ..contact(8) };
    assert_eq!(queries(&mut lookup), [7, 100]);
    lookup.on_response(&contact(100), &[anew]);
    lookup.on_failure(&contact(7));
    assert_eq!(queries(&mut lookup), [8]);
    lookup.on_response(&anew, &[]);
    assert_eq!(lookup.closest().collect::<Vec<_>>(), [anew, contact(100)]);
}

#[test]
fn a_slow_node_among_the_closest_is_waited_for_until_it_fails() {
    let limits = LookupLimits { alpha: 4, waited_for: 1, ..LookupLimits::new(2) };
    let known = [1, 2, 3].map(contact);
    let mut lookup = Lookup::new(NodeId([255; 20]), NodeId([0; 20]), limits, &known);
    while lookup.next_query().is_some() {}
    lookup.on_slow(&contact(1));
    while lookup.next_query().is_some() {}
    lookup.on_response(&contact(2), &[]);
    lookup.on_response(&contact(3), &[]);
    assert!(!lookup.is_done(), "the closest may still answer");
    lookup.on_failure(&contact(1));
    assert!(lookup.is_done());
}

/// Nodes of few networks close to the target, honest ones farther away: who counts.
#[test]
fn one_network_counts_once_and_its_next_node_when_the_first_fails() {
    let limits = LookupLimits { per_subnet: Some(1), ..LookupLimits::new(3) };
    let node = |last: u8, ip: [u8; 4]| Contact {
        id: NodeId([&[0; 19][..], &[last]].concat().try_into().unwrap()),
        address: SocketAddr::from((Ipv4Addr::from(ip), 1)),
    };
    let crowd: Vec<Contact> = (1..=9).map(|last| node(last, [9, 9, 9, last])).collect();
    let others = [node(20, [1, 1, 1, 1]), node(21, [2, 2, 2, 2]), node(22, [3, 3, 3, 3])];
    let known = [&crowd[..], &others[..]].concat();
    let mut lookup = Lookup::new(NodeId([255; 20]), NodeId([0; 20]), limits, &known);
    let asked: Vec<Contact> = std::iter::from_fn(|| lookup.next_query()).collect();
    assert_eq!(asked, [crowd[0], others[0], others[1]]);
    lookup.on_failure(&crowd[0]);
    assert_eq!(lookup.next_query(), Some(crowd[1]), "one kept in its stead");
    for contact in [crowd[1], others[0], others[1]] {
        lookup.on_response(&contact, &[]);
    }
    assert!(lookup.is_done());
    assert_eq!(lookup.closest().collect::<Vec<_>>(), [crowd[1], others[0], others[1]]);
}

#[test]
fn nodes_that_are_not_preferred_are_asked_only_where_others_are_missing() {
    let is_preferred: fn(&Contact) -> bool = |contact| contact.address.port() == 1;
    let rules = ContactRules { is_preferred, ..ContactRules::NONE };
    let node = |last: u8, port: u16| Contact {
        id: NodeId([&[0; 19][..], &[last]].concat().try_into().unwrap()),
        address: SocketAddr::from((Ipv4Addr::from([9, 9, last, 1]), port)),
    };
    let (limits, own, target) = (LookupLimits::new(2), NodeId([255; 20]), NodeId([0; 20]));
    let known = [node(1, 2), node(2, 2), node(9, 1)];
    let mut lookup = Lookup::with_rules(own, target, limits, rules, &known);
    assert_eq!(lookup.next_query(), Some(known[2]));
    assert_eq!(lookup.next_query(), Some(known[0]), "there is only one other");
    assert_eq!(lookup.next_query(), None);
    // Once there are enough, it is no longer waited for.
    lookup.on_response(&known[2], &[node(8, 1)]);
    assert_eq!(lookup.next_query(), Some(node(8, 1)));
    lookup.on_response(&node(8, 1), &[]);
    assert!(lookup.is_done());
    assert_eq!(lookup.closest().collect::<Vec<_>>(), [node(8, 1), known[2]]);
}

/// Each names a closer one, for ever, and none is preferred.
#[test]
fn who_names_ever_closer_nodes_is_not_followed_for_ever() {
    let rules = ContactRules { is_preferred: |_| false, ..ContactRules::NONE };
    let node = |number: u32| {
        let mut id = [0; 20];
        id[..4].copy_from_slice(&(u32::MAX - number).to_be_bytes());
        Contact { id: NodeId(id), address: SocketAddr::from((Ipv4Addr::from(number), 1)) }
    };
    let (own, target) = (NodeId([255; 20]), NodeId([0; 20]));
    let limits = LookupLimits::new(4);
    let mut lookup = Lookup::with_rules(own, target, limits, rules, &[node(1)]);
    let mut next = 2;
    while let Some(contact) = lookup.next_query() {
        lookup.on_response(&contact, &[node(next), node(next + 1)]);
        next += 2;
        assert!(next < 1_000);
    }
    assert!(lookup.is_done());
    assert_eq!(lookup.counters().queries, 8);
    assert_eq!(lookup.closest().count(), 4);
}
