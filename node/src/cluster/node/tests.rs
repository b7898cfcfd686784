//! Two cores and what is between them.

use super::*;
use crate::cluster::store::{ModelStore, execute};

const MS: u64 = 1_000_000;

struct Pair {
    now: Now,
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
        let mut pair = Self { now, nodes: [node(1), node(2)] };
        for (index, other) in [(0, 2_u8), (1, 1)] {
            let address = Bytes::from(format!("127.0.0.1:{other}"));
            pair.nodes[index].0.add_contact(now, NodeId([other; 20]), address);
        }
        pair
    }

    /// Hands everything over until nothing is left; loses what `is_lost` says.
    fn settle(&mut self, is_lost: &mut impl FnMut(&PeerMessage) -> bool) {
        let (now, mut has_moved) = (self.now, true);
        while std::mem::take(&mut has_moved) {
            for from in 0..2 {
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
                    self.nodes[1 - from].0.handle_message(now, sender, message);
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
            self.nodes.iter_mut().for_each(|(node, _)| node.handle_time(self.now));
            self.settle(&mut is_lost);
            let (node, _) = &self.nodes[1];
            if node.members().own().phase == Phase::Full && node.pending().is_empty() {
                return true;
            }
        }
        false
    }
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
