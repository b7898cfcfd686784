//! Members among each other, over a network that loses what it is told to.

use super::*;

struct World {
    nodes: BTreeMap<NodeId, (Membership, Outbox)>,
    now: Now,
    /// Who hears nothing, and is not heard.
    cut: Vec<NodeId>,
}

fn id(index: u8) -> NodeId {
    NodeId([index; 20])
}

fn own(index: u8) -> MemberEntry {
    let (phase, standing) = (Phase::Full, Standing::Alive);
    MemberEntry { node: id(index), address: Bytes::new(), incarnation: 1, phase, standing }
}

impl World {
    /// `count` nodes that all know the first one.
    fn new(count: u8) -> Self {
        let now = Now { monotonic_ns: 0, clock_ms: 0 };
        let settings = ClusterSettings { down_after_ms: 20_000, ..ClusterSettings::default() };
        let mut nodes = BTreeMap::new();
        for index in 0..count {
            let mut rng = Rng::with_seed(u64::from(index));
            let mut out = Outbox::new(id(index), &mut rng);
            let mut node = Membership::new(own(index), Vec::new(), settings, rng, now);
            node.add(id(0), Bytes::new(), &mut out);
            nodes.insert(id(index), (node, out));
        }
        Self { nodes, now, cut: Vec::new() }
    }

    fn run(&mut self, seconds: u64) {
        for _ in 0..seconds * 20 {
            self.now.monotonic_ns += ns(50);
            let mut messages = Vec::new();
            for (from, (node, out)) in &mut self.nodes {
                node.handle_time(self.now, out);
                messages.extend(out.sends.drain(..).map(|(to, message)| (*from, to, message)));
            }
            for (from, to, message) in messages {
                let is_cut = self.cut.contains(&from) || self.cut.contains(&to);
                let Some((node, out)) = self.nodes.get_mut(&to).filter(|_| !is_cut) else {
                    continue;
                };
                node.handle_message(self.now, from, message, out);
            }
        }
    }

    fn of(&mut self, index: u8) -> &mut Membership {
        &mut self.nodes.get_mut(&id(index)).unwrap().0
    }
}

#[test]
fn all_nodes_hear_of_all() {
    let mut world = World::new(12);
    world.run(30);
    for index in 0..12 {
        assert_eq!(world.of(index).placed().len(), 12);
        assert!((0..12).all(|other| world.of(index).is_up(&id(other))));
    }
}

/// What happens when many nodes have started at the same moment.
#[test]
fn changes_of_all_at_once_are_known_to_all_within_two_seconds() {
    let mut world = World::new(50);
    (0..50).for_each(|index| world.of(index).set_phase(Phase::Joining));
    world.run(20);
    assert!((0..50).all(|index| world.of(index).full_count() == 0));
    (0..50).for_each(|index| world.of(index).set_phase(Phase::Full));
    world.run(2);
    for index in 0..50 {
        assert_eq!(world.of(index).full_count(), 50, "node {index}");
    }
}

#[test]
fn without_changes_all_is_told_seldom() {
    let mut world = World::new(5);
    world.run(20);
    let now = world.now;
    let (node, out) = world.nodes.get_mut(&id(1)).unwrap();
    let mut told = 0;
    for tick in 1..=60 * 20 {
        node.handle_time(Now { monotonic_ns: now.monotonic_ns + ns(50 * tick), ..now }, out);
        let is_all =
            |(_, message): &(NodeId, PeerMessage)| matches!(message, PeerMessage::Members { .. });
        told += out.sends.drain(..).filter(is_all).count();
        // Its probes are not answered, which would be news.
        node.probes.clear();
    }
    assert!((11..=13).contains(&told), "{told} times in a minute, every 5 s");
}

#[test]
fn a_silent_node_is_suspected_within_seconds_and_removed_after_long() {
    let mut world = World::new(7);
    world.run(15);
    world.cut = vec![id(3)];
    world.run(8);
    for index in [0, 1, 2, 4, 5, 6] {
        assert!(!world.of(index).is_up(&id(3)));
        assert_eq!(world.of(index).placed().len(), 7, "it still counts");
    }
    world.run(30);
    for index in [0, 1, 2, 4, 5, 6] {
        assert_eq!(world.of(index).placed().len(), 6);
    }
    assert_eq!(world.of(3).placed().len(), 7, "alone it removes nobody");
    world.cut.clear();
    world.run(15);
    assert!(world.of(3).take_removal());
    for index in 0..7 {
        assert_eq!(world.of(index).placed().len(), 7, "it comes back by itself");
        assert!(world.of(index).is_up(&id(3)));
    }
}

#[test]
fn a_node_that_only_one_cannot_reach_is_not_suspected() {
    let mut world = World::new(5);
    world.run(15);
    // The probes of node 1 to node 2 end without an answer; others can reach it.
    let now = world.now;
    let (node, out) = world.nodes.get_mut(&id(1)).unwrap();
    let request = out.take_id();
    let deadline_ns = now.monotonic_ns;
    node.probes.insert(request, Probe { target: id(2), is_indirect: false, deadline_ns });
    world.run(3);
    for index in 0..5 {
        assert!(world.of(index).is_up(&id(2)));
        assert_eq!(world.of(index).members[&id(2)].entry.incarnation, 1);
    }
}

#[test]
fn who_leaves_or_is_forgotten_is_removed_everywhere() {
    let mut world = World::new(6);
    world.run(15);
    world.of(2).set_phase(Phase::Leaving);
    world.run(6);
    assert_eq!(world.of(5).placed().len(), 5);
    assert_eq!(world.of(5).known().count(), 6);
    world.of(2).leave();
    world.cut = vec![id(1)];
    world.of(0).forget(id(1));
    world.run(15);
    for index in [0, 3, 4, 5] {
        assert_eq!(world.of(index).known().count(), 4);
    }
}

#[test]
fn the_member_table_is_bounded() {
    let mut world = World::new(1);
    let mut rng = Rng::with_seed(1);
    let entries: Vec<MemberEntry> = (0..3 * MEMBERS_MAX)
        .map(|_| MemberEntry { node: NodeId::random(&mut rng), ..own(0) })
        .collect();
    let now = world.now;
    world.of(0).merge(now, entries);
    assert_eq!(world.of(0).entries().count(), MEMBERS_MAX);
}

/// Seed 1106 of the simulated swarm: the only old member that two newcomers knew was cut off before
/// it had told them of the others. They removed it as two of three, and founded alone.
#[test]
fn newcomers_remove_nobody_before_a_full_member_has_told_them_of_all() {
    let mut world = World::new(2);
    for index in 0..2 {
        world.of(index).set_phase(Phase::Joining);
        let (node, out) = world.nodes.get_mut(&id(index)).unwrap();
        node.is_informed = false;
        out.sends.clear();
        // There was a link; what was said over it was lost.
        node.add(id(9), Bytes::new(), out);
    }
    world.run(60);
    for index in 0..2 {
        assert!(!world.of(index).is_up(&id(9)));
        assert_eq!(world.of(index).known().count(), 3, "it may stand for many");
        assert!(!world.of(index).knows_all());
    }
    // Nor when it is known to be full, by what somebody else has said.
    let now = world.now;
    world.of(0).merge(now, vec![own(9)]);
    world.run(60);
    assert_eq!(world.of(1).known().count(), 3);
    // Once it has told of all itself, most of them decide.
    let members = PeerMessage::Members { wants_answer: false, entries: vec![own(9)] };
    let (node, out) = world.nodes.get_mut(&id(0)).unwrap();
    node.handle_message(now, id(9), members, out);
    assert!(node.knows_all());
    world.run(60);
    assert_eq!(world.of(1).known().count(), 2);
}

#[test]
fn nodes_that_start_together_found_without_who_died_meanwhile() {
    let mut world = World::new(3);
    for index in 0..3 {
        world.of(index).set_phase(Phase::Joining);
        let (node, out) = world.nodes.get_mut(&id(index)).unwrap();
        node.is_informed = false;
        out.sends.clear();
    }
    world.run(10);
    (0..3).for_each(|index| assert!(!world.of(index).is_informed && world.of(index).knows_all()));
    world.cut = vec![id(2)];
    world.run(60);
    assert_eq!(world.of(0).known().count(), 2);
    assert_eq!(world.of(1).known().count(), 2);
    assert_eq!(world.of(2).known().count(), 3, "it is one of three");
}

/// Each side has removed whom it knew of the other one: without greetings nobody asks again.
#[test]
fn who_removed_each_other_meet_again_once_they_can() {
    let mut world = World::new(5);
    world.run(15);
    world.cut = vec![id(4)];
    (0..4).for_each(|index| world.of(4).forget(id(index)));
    (0..4).for_each(|index| world.of(index).forget(id(4)));
    world.run(30);
    assert_eq!(world.of(4).known().count(), 1);
    assert_eq!(world.of(0).known().count(), 4);
    world.cut.clear();
    world.run(40);
    for index in 0..5 {
        assert_eq!(world.of(index).placed().len(), 5);
        assert!((0..5).all(|other| world.of(index).is_up(&id(other))));
    }
    assert!(world.of(4).take_removal());
}

#[test]
fn who_has_left_is_not_greeted() {
    let mut world = World::new(4);
    world.run(15);
    world.of(3).set_phase(Phase::Leaving);
    world.of(3).leave();
    world.run(15);
    let now = world.now;
    let (node, out) = world.nodes.get_mut(&id(0)).unwrap();
    for tick in 1..=60 * 20 {
        node.handle_time(Now { monotonic_ns: now.monotonic_ns + ns(50 * tick), ..now }, out);
        assert!(out.sends.drain(..).all(|(to, _)| to != id(3)));
        node.probes.clear();
    }
}
