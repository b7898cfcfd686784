//! Two cores and what is between them.

use super::*;
use crate::cluster::message::Sum;
use crate::cluster::store::{ModelStore, execute};

const MS: u64 = 1_000_000;

struct Pair {
    now: Now,
    /// How far the clock of the second one is ahead.
    ahead_ms: u64,
    nodes: [(ClusterNode, ModelStore); 2],
}

impl Pair {
    /// A founder and a node that joins it.
    fn new() -> Self {
        let now = Now { clock_ms: 1_000_000, monotonic_ns: 1 };
        let node = |byte: u8| {
            let start = Start {
                node: NodeId([byte; 20]),
                address: Bytes::from(format!("127.0.0.1:{byte}")),
                settings: ClusterSettings::default(),
                is_founder: byte == 1,
                state: None,
                version_max: Version::default(),
                seed: byte.into(),
                mutation: Mutation::Nothing,
            };
            (ClusterNode::new(start, now), ModelStore::default())
        };
        let mut pair = Self { now, ahead_ms: 0, nodes: [node(1), node(2)] };
        for (index, other) in [(0, 2_u8), (1, 1)] {
            let address = Bytes::from(format!("127.0.0.1:{other}"));
            pair.nodes[index].0.add_contact(now, NodeId([other; 20]), address);
        }
        pair
    }

    fn now_of(&self, index: usize) -> Now {
        let ahead_ms = if index == 1 { self.ahead_ms } else { 0 };
        Now { clock_ms: self.now.clock_ms + ahead_ms, ..self.now }
    }

    /// Hands everything over until nothing is left; loses what `is_lost` says.
    fn settle(&mut self, is_lost: &mut impl FnMut(&PeerMessage) -> bool) {
        let mut has_moved = true;
        while std::mem::take(&mut has_moved) {
            for from in 0..2 {
                let (now, then) = (self.now_of(from), self.now_of(1 - from));
                let (node, store) = &mut self.nodes[from];
                while let Some((ticket, request)) = node.poll_store() {
                    let answer = execute(store, request, now.clock_ms);
                    node.handle_store(now, ticket, answer);
                    has_moved = true;
                }
                while let Some((to, message)) = self.nodes[from].0.poll_send() {
                    has_moved = true;
                    if is_lost(&message) {
                        self.nodes[from].0.handle_unreachable(now, to);
                        continue;
                    }
                    let sender = self.nodes[from].0.id();
                    self.nodes[1 - from].0.handle_message(then, sender, message);
                }
            }
        }
    }

    /// Lets time pass. Returns whether the newcomer holds all it should by then.
    fn joins_within(&mut self, ms: u64, mut is_lost: impl FnMut(&PeerMessage) -> bool) -> bool {
        let until_ns = self.now.monotonic_ns + ms * MS;
        self.settle(&mut is_lost);
        while self.now.monotonic_ns < until_ns {
            self.now.clock_ms += 50;
            self.now.monotonic_ns += 50 * MS;
            self.handle_time();
            self.settle(&mut is_lost);
            let (node, _) = &self.nodes[1];
            if node.members().own().phase == Phase::Full && node.pending().is_empty() {
                return true;
            }
        }
        false
    }
}

impl Pair {
    fn handle_time(&mut self) {
        for index in 0..2 {
            let now = self.now_of(index);
            self.nodes[index].0.handle_time(now);
        }
    }

    /// Lets time pass in small steps, and loses what `is_lost` says.
    fn run(&mut self, ms: u64, mut is_lost: impl FnMut(&PeerMessage) -> bool) {
        for _ in 0..ms / 50 {
            self.now.clock_ms += 50;
            self.now.monotonic_ns += 50 * MS;
            self.handle_time();
            self.settle(&mut is_lost);
        }
    }

    /// Writes at one of them. What became of it, if it is decided at once.
    fn write(&mut self, index: usize, value: &'static str) -> Option<Outcome> {
        let (user_key, value) =
            (Bytes::from_static(b"k"), Some(Bytes::from_static(value.as_ref())));
        let now = self.now_of(index);
        let (node, _) = &mut self.nodes[index];
        let id = node.write(now, WriteCommand { user_key, value, expiry_ms: 0 });
        self.settle(&mut |_| false);
        let (node, _) = &mut self.nodes[index];
        let events = std::iter::from_fn(|| node.poll_event());
        let mut decided = events.filter_map(|event| match event {
            ClusterEvent::Decided { command, outcome } if command == id => Some(outcome),
            _ => None,
        });
        decided.next()
    }
}

/// The node that is ahead kept its own copy of what the others had refused: above all that they
/// wrote, until its time had come.
#[test]
fn a_clock_far_ahead_leaves_nothing_that_stands_in_the_way_of_later_writes() {
    for has_written_before in [false, true] {
        let mut pair = Pair::new();
        assert!(pair.joins_within(3_000, |_| false));
        if has_written_before {
            assert!(matches!(pair.write(1, "old"), Some(Outcome::Written { copies: 2, .. })));
        }
        pair.ahead_ms = 3_600_000;
        assert_eq!(pair.write(1, "ahead"), Some(Outcome::ClockAhead));
        for value in ["new", "newer"] {
            let outcome = pair.write(0, value);
            assert!(matches!(outcome, Some(Outcome::Written { copies: 2, .. })), "{outcome:?}");
        }
    }
}

/// The founder's copies have 10 MiB: at 4 MiB per second they take two seconds and a half.
#[test]
fn a_newcomer_is_filled_at_its_pace() {
    for (per_second, takes) in [(4 << 20, 2_300..3_500), (0, 0..1_500)] {
        let mut pair = Pair::new();
        for number in 0..100 {
            let user_key = Bytes::from(format!("key{number}"));
            let record = Record {
                namespace: Namespace::PLAIN,
                key: Key::of(&user_key),
                user_key,
                version: Version(1_u128.to_be_bytes()),
                expiry_ms: 0,
                content: Content::Value(Bytes::from(vec![0; 100 << 10])),
            };
            let apply = StoreRequest::Apply { record };
            execute(&mut pair.nodes[0].1, apply, pair.now.clock_ms);
        }
        pair.nodes[1].0.settings.repair_bytes_per_second = per_second;
        let began_ms = pair.now.clock_ms;
        assert!(pair.joins_within(20_000, |_| false));
        let took_ms = pair.now.clock_ms - began_ms;
        assert!(takes.contains(&took_ms), "{per_second} per second: {took_ms} ms");
    }
}

#[test]
fn a_read_takes_the_value_from_its_own_node() {
    let mut pair = Pair::new();
    assert!(pair.joins_within(3_000, |_| false));
    assert!(matches!(pair.write(0, "value"), Some(Outcome::Written { .. })));
    for index in 0..2 {
        pair.nodes[index].0.read(pair.now, b"k", Consistency::Majority);
        let mut values = 0;
        pair.settle(&mut |message| {
            let is_value = matches!(message, PeerMessage::Got { found: Found::Record(_), .. });
            values += usize::from(is_value);
            false
        });
        let (node, _) = &mut pair.nodes[index];
        let mut events = std::iter::from_fn(|| node.poll_event());
        let is_found = |event: &ClusterEvent| match event {
            ClusterEvent::Decided { outcome, .. } => matches!(outcome, Outcome::Found(Some(_))),
            _ => false,
        };
        assert!(events.any(|event| is_found(&event)));
        assert_eq!(values, 0, "node {index}: a value has gone over");
    }
}

#[test]
fn queries_without_answer_are_forgotten_with_their_commands() {
    let mut pair = Pair::new();
    assert!(pair.joins_within(3_000, |_| false));
    pair.nodes[0].0.read(pair.now, b"k", Consistency::Majority);
    let (node, _) = &mut pair.nodes[0];
    while node.poll_send().is_some() {}
    assert!(node.under_way() > 0);
    pair.run(6_000, |_| false);
    assert_eq!(pair.nodes[0].0.commands.len(), 0);
    let is_of_command = |owner: &Owner| matches!(owner, Owner::Command(..));
    let queries = pair.nodes[0].0.queries.0.values();
    assert_eq!(queries.filter(|(owner, _)| is_of_command(owner)).count(), 0);
}

/// One of many nodes, that knows all others and hears nothing.
#[test]
fn a_settled_node_of_many_looks_through_few_ranges() {
    let mut rng = Rng::with_seed(7);
    let ids: Vec<NodeId> = (0..200).map(|_| NodeId::random(&mut rng)).collect();
    let (phase, standing) = (Phase::Full, Standing::Alive);
    let entry = |node: &NodeId| MemberEntry {
        node: *node,
        address: Bytes::new(),
        incarnation: 1,
        phase,
        standing,
    };
    let held = responsibility(&ids[0], &ids, 3);
    let members = ids.iter().map(entry).collect();
    let mut now = Now { clock_ms: 1_000_000, monotonic_ns: 1 };
    let start = Start {
        node: ids[0],
        address: Bytes::new(),
        settings: ClusterSettings::default(),
        is_founder: false,
        state: Some(ClusterState { contact_ms: now.clock_ms, held, members }),
        version_max: Version::default(),
        seed: 1,
        mutation: Mutation::Nothing,
    };
    let (mut node, mut store) = (ClusterNode::new(start, now), ModelStore::default());
    let (mut walks, mut sums) = (0, BTreeMap::<NodeId, usize>::new());
    for _ in 0..10 {
        now.monotonic_ns += 50 * MS;
        node.handle_time(now);
        let mut has_moved = true;
        while std::mem::take(&mut has_moved) {
            while let Some((ticket, request)) = node.poll_store() {
                has_moved = true;
                walks += usize::from(matches!(request, StoreRequest::Walk { .. }));
                let answer = execute(&mut store, request, now.clock_ms);
                node.handle_store(now, ticket, answer);
            }
            while let Some((to, message)) = node.poll_send() {
                let PeerMessage::Sums { request, prefix } = message else { continue };
                has_moved = true;
                *sums.entry(to).or_default() += 1;
                let sums = vec![Sum::default(); prefix.parts().len()];
                node.handle_message(now, to, PeerMessage::SumsAre { request, sums });
            }
        }
    }
    // Each range with each of its holders, and beside that what is outside, once.
    let compared: usize = sums.values().sum();
    let planned = node.shared_ranges();
    assert_eq!(sums.keys().collect::<Vec<_>>(), planned.keys().collect::<Vec<_>>());
    assert_eq!(compared, planned.values().map(PrefixSet::len).sum::<usize>());
    assert!(walks - compared < 100, "{walks} walks, {compared} comparisons");
}

#[test]
fn a_node_that_joins_is_full_within_moments() {
    assert!(Pair::new().joins_within(3_000, |_| false));
}

/// Two nodes that connect to each other at once may lose a link, and what was on it.
#[test]
fn a_claim_that_was_lost_is_made_again() {
    let mut claims = 0;
    let first_is_lost = |message: &PeerMessage| {
        let is_claim = matches!(message, PeerMessage::Claim { .. });
        claims += usize::from(is_claim);
        is_claim && claims == 1
    };
    assert!(Pair::new().joins_within(5_000, first_is_lost));
    assert!(claims > 1);
}

#[test]
fn a_claim_without_answer_is_made_again() {
    let mut answers = 0;
    let first_is_lost = |message: &PeerMessage| {
        let is_answer = matches!(message, PeerMessage::Claimed { .. });
        answers += usize::from(is_answer);
        is_answer && answers == 1
    };
    assert!(Pair::new().joins_within(8_000, first_is_lost));
    assert!(answers > 1);
}
