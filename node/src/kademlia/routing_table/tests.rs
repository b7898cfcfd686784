//! The table against what a sorted list of all nodes says.

use super::*;
use fastrand::Rng;
use proptest::prelude::*;
use std::net::SocketAddr;

fn contact(id: NodeId, number: u32) -> Contact {
    let address = SocketAddr::from((Ipv4Addr::from(0x0a00_0000 | number), 7400));
    Contact { id, address }
}

fn at(ms: u64) -> Monotonic {
    Monotonic(0).plus_millis(ms)
}

/// A table that has heard of `count` nodes, half of them near its own id.
fn filled(rng: &mut Rng, limits: TableLimits, count: u32) -> RoutingTable {
    let mut table = RoutingTable::new(NodeId::random(rng), limits, at(0));
    for number in 0..count {
        let id = if number % 2 == 0 {
            NodeId::random(rng)
        } else {
            table.own().random_sharing(rng.u32(0..ID_BITS), rng)
        };
        table.on_answer(at(0), contact(id, number), 100);
    }
    table
}

fn closest(table: &RoutingTable, target: &NodeId, count: usize) -> Vec<NodeId> {
    let mut found = Vec::new();
    table.closest(at(0), target, count, &mut found);
    found.iter().map(|contact| contact.id).collect()
}

proptest! {
    #[test]
    fn closest_is_what_sorting_all_nodes_gives(seed: u64, count in 0_u32..400, k in 1_usize..40) {
        let mut rng = Rng::with_seed(seed);
        let table = filled(&mut rng, TableLimits::PRIVATE, count);
        let known: Vec<NodeId> = table.entries().map(|entry| entry.contact.id).collect();
        prop_assert_eq!(known.len(), table.len());
        let own = table.own();
        let near = own.random_sharing(rng.u32(0..=ID_BITS), &mut rng);
        for target in [NodeId::random(&mut rng), near, own] {
            let mut sorted = known.clone();
            sorted.sort_by_key(|id| id.distance(&target));
            sorted.truncate(k);
            prop_assert_eq!(closest(&table, &target, k), sorted);
        }
    }

    #[test]
    fn table_stays_in_its_limits_whatever_happens(seed: u64, steps in 1_u32..600) {
        let mut rng = Rng::with_seed(seed);
        let limits = TableLimits { k: 4, first_buckets: [8, 0, 0, 0], ..TableLimits::MAINLINE };
        let mut table = RoutingTable::new(NodeId::random(&mut rng), limits, at(0));
        let mut heard = Vec::new();
        for step in 0..u64::from(steps) {
            let shared = rng.u32(0..12);
            let fresh = contact(table.own().random_sharing(shared, &mut rng), rng.u32(..2000));
            let known = if heard.is_empty() { fresh } else { heard[rng.usize(..heard.len())] };
            match rng.u8(..6) {
                0..=2 => {
                    table.on_answer(at(step), fresh, 10);
                    heard.push(fresh);
                }
                3 => { table.on_query(at(step), known); }
                4 => table.on_failure(at(step), &known),
                _ => { table.remove(&known.id); }
            }
            check_invariants(&table);
        }
    }
}

fn check_invariants(table: &RoutingTable) {
    let mut addresses = Vec::new();
    for shared in 0..ID_BITS {
        let bucket = table.bucket(shared);
        let sizes = table.limits.sizes(shared as usize);
        assert!(bucket.entries().len() <= sizes.capacity);
        assert!(bucket.replacements().len() <= sizes.waiting_max);
        let is_occupied = table.occupied[shared as usize / 64] & bit(shared as usize) != 0;
        assert_eq!(is_occupied, !bucket.entries().is_empty());
        for entry in bucket.entries() {
            assert_eq!(entry.contact.id.shared_bits(&table.own()), shared);
            addresses.push(entry.contact.address.ip());
        }
    }
    assert_eq!(table.len(), addresses.len());
    addresses.sort();
    addresses.dedup();
    assert_eq!(table.len(), addresses.len(), "one node per address");
}

#[test]
fn a_node_that_only_asks_is_not_let_in() {
    let mut rng = Rng::with_seed(5);
    let mut table = filled(&mut rng, TableLimits::PRIVATE, 0);
    let stranger = contact(NodeId::random(&mut rng), 1);
    assert_eq!(table.on_query(at(0), stranger), Admission::Verify);
    assert!(table.is_empty());
    assert_eq!(table.on_answer(at(1), stranger, 100), Admission::Present);
    assert_eq!(table.on_query(at(2), stranger), Admission::Present);
}

#[test]
fn our_own_id_is_refused() {
    let mut rng = Rng::with_seed(6);
    let mut table = filled(&mut rng, TableLimits::PRIVATE, 0);
    let own = contact(table.own(), 1);
    assert_eq!(table.on_answer(at(0), own, 1), Admission::Refused(Refusal::OwnId));
    assert_eq!(table.on_query(at(0), own), Admission::Refused(Refusal::OwnId));
}

#[test]
fn one_subnet_cannot_fill_a_bucket() {
    let mut rng = Rng::with_seed(7);
    let mut table = filled(&mut rng, TableLimits::MAINLINE, 0);
    let mut admitted = |number, port| {
        let mut node = contact(table.own().random_sharing(0, &mut rng), number);
        node.address.set_port(port);
        table.on_answer(at(0), node, 1)
    };
    assert_eq!(admitted(0x0001, 1), Admission::Present);
    assert_eq!(admitted(0x0001, 2), Admission::Refused(Refusal::Address));
    assert_eq!(admitted(0x0002, 1), Admission::Refused(Refusal::Subnet));
    assert_eq!(admitted(0x0101, 1), Admission::Present);
}

/// A node that draws another id, as BEP 42 has it, must not be shut out by its old one.
#[test]
fn new_id_of_an_address_takes_the_place_of_the_old_one() {
    let mut rng = Rng::with_seed(17);
    let mut table = filled(&mut rng, TableLimits::MAINLINE, 0);
    let [old, new] = [3, 0].map(|bits| contact(table.own().random_sharing(bits, &mut rng), 5));
    assert_eq!(table.on_answer(at(0), old, 1), Admission::Present);
    assert_eq!(table.on_answer(at(1), new, 1), Admission::Present);
    assert!(table.find(&old.id).is_none() && table.len() == 1);
    check_invariants(&table);
}

#[test]
fn another_own_id_keeps_the_nodes() {
    let mut rng = Rng::with_seed(18);
    let mut table = filled(&mut rng, TableLimits::PRIVATE, 0);
    for number in 0..20 {
        table.on_answer(at(0), contact(NodeId::random(&mut rng), number), 1);
    }
    let known: Vec<Contact> = table.entries().map(|entry| entry.contact).collect();
    let failing = known[3];
    table.on_failure(at(1), &failing);
    table.set_own(at(2), NodeId::random(&mut rng));
    check_invariants(&table);
    assert_eq!(table.len(), known.len(), "no bucket is too small for all");
    assert!(table.entries().all(|entry| known.contains(&entry.contact)));
    let failed = table.find(&failing.id).map(|entry| entry.failures);
    assert!(failed.is_none_or(|failures| failures == 1));
    let shares = |entry: &Entry| entry.last_seen == Some(at(0));
    assert!(table.entries().all(shares), "what is known of them stays");
}

#[test]
fn nodes_that_are_not_preferred_make_room_in_the_table() {
    let is_preferred: fn(&Contact) -> bool = |contact| contact.id.0[19] == 0;
    let rules = ContactRules { is_preferred, ..ContactRules::NONE };
    let mut rng = Rng::with_seed(19);
    let limits = TableLimits { k: 2, ..TableLimits::PRIVATE };
    let mut table = RoutingTable::new(NodeId::random(&mut rng), limits, at(0)).with_rules(rules);
    let mut node = |last: u8, number: u32| {
        let mut id = table.own().random_sharing(4, &mut rng);
        id.0[19] = last;
        contact(id, number)
    };
    let nodes = [node(1, 1), node(1, 2), node(1, 3), node(0, 4), node(0, 5), node(0, 6)];
    let admissions = nodes.map(|node| table.on_answer(at(0), node, 1));
    use Admission::{Present, Waiting};
    assert_eq!(admissions, [Present, Present, Waiting(None), Present, Present, Waiting(None)]);
    let stranger = Contact { address: contact(nodes[0].id, 7).address, ..nodes[0] };
    assert_eq!(table.on_query(at(1), stranger), Admission::Refused(Refusal::Full));
}

#[test]
fn loopback_may_be_exempt_from_the_caps() {
    let mut rng = Rng::with_seed(20);
    let mut admitted = |loopback_exempt| {
        let crowd = Some(CrowdLimits { loopback_exempt, ..CrowdLimits::MAINLINE });
        let limits = TableLimits { crowd, ..TableLimits::MAINLINE };
        let mut table = RoutingTable::new(NodeId::random(&mut rng), limits, at(0));
        for port in 1..=20 {
            let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
            table.on_answer(at(0), Contact { id: NodeId::random(&mut rng), address }, 1);
        }
        table.len()
    };
    assert_eq!((admitted(false), admitted(true)), (1, 20));
}

#[test]
fn waiting_nodes_obey_the_same_limits() {
    let mut rng = Rng::with_seed(8);
    let mut table = filled(&mut rng, TableLimits::MAINLINE, 0);
    let far = |table: &RoutingTable, rng: &mut Rng| table.own().random_sharing(5, rng);
    for number in 0..8 {
        let id = far(&table, &mut rng);
        assert_eq!(table.on_answer(at(0), contact(id, number << 8), 1), Admission::Present);
    }
    let waiting = contact(far(&table, &mut rng), 0x10_0000);
    assert_eq!(table.on_answer(at(0), waiting, 1), Admission::Waiting(None));
    // Its address gets in elsewhere before its turn comes.
    let elsewhere = contact(table.own().random_sharing(6, &mut rng), 0x10_0000);
    assert_eq!(table.on_answer(at(0), elsewhere, 1), Admission::Present);
    let failing = table.bucket(5).entries()[0].contact;
    table.on_failure(at(1), &failing);
    table.on_failure(at(1), &failing);
    check_invariants(&table);
}

#[test]
fn bad_nodes_are_not_handed_out() {
    let mut rng = Rng::with_seed(9);
    let mut table = filled(&mut rng, TableLimits::PRIVATE, 10);
    let victim = table.entries().next().unwrap().contact;
    table.on_failure(at(0), &victim);
    assert!(closest(&table, &victim.id, 20).contains(&victim.id));
    table.on_failure(at(0), &victim);
    assert!(!closest(&table, &victim.id, 20).contains(&victim.id));
}

#[test]
fn every_bucket_is_refreshed_when_its_time_comes_and_lookups_put_it_off() {
    let mut rng = Rng::with_seed(10);
    let mut table = filled(&mut rng, TableLimits::PRIVATE, 100);
    let hour = TableLimits::PRIVATE.refresh_after_ms;
    assert_eq!(table.poll_refresh(at(hour - 1), &mut rng), None);
    assert_eq!(table.refresh_deadline(), at(hour));
    let spared = table.own().random_sharing(2, &mut rng);
    table.on_lookup(at(1), &spared);
    let mut refreshed = Vec::new();
    while let Some(target) = table.poll_refresh(at(hour), &mut rng) {
        refreshed.push(target.shared_bits(&table.own()));
    }
    assert_eq!(refreshed[..3], [0, 1, 3]);
    assert_eq!(refreshed.len() + 1, table.refreshed());
    assert_eq!(table.refresh_deadline(), at(hour + 1));
}

#[test]
fn nodes_of_an_earlier_life_come_back_as_questionable() {
    let mut rng = Rng::with_seed(11);
    let mut table = filled(&mut rng, TableLimits::PRIVATE, 0);
    let old = contact(NodeId::random(&mut rng), 1);
    assert_eq!(table.restore(at(0), old), Admission::Present);
    let health = |table: &RoutingTable| {
        table.find(&old.id).unwrap().health(at(1), TableLimits::PRIVATE.health)
    };
    assert_eq!(health(&table), Health::Questionable);
    assert_eq!(closest(&table, &old.id, 1), [old.id]);
    table.on_answer(at(1), old, 1);
    assert_eq!(health(&table), Health::Good);
}
