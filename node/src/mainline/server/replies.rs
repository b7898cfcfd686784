//! How long replies may be, and what is left out of them: nodes before values.

use crate::kademlia::Contact;
use crate::krpc::compact::{self, Family};
use crate::mainline::values::Values;

use super::Incoming;
use super::limits::ReplyLimits;

/// Bytes of a reply around its values, without the transaction id itself: `ip` of 18 bytes, `r`,
/// `t`, `v` of 4 bytes, `y`.
const ENVELOPE_LEN: usize = 56;
/// Bytes of `nodes6` and a length besides the nodes themselves.
const NODES_KEY_LEN: usize = 13;
/// Bytes of `token` and of `values` with its ends.
const PEERS_KEY_LEN: usize = 16 + 10;

/// How long the values of a reply may be.
#[derive(Clone, Copy, Debug)]
pub(super) struct Room {
    /// With nodes and peers.
    usual: usize,
    /// With an item's value.
    utmost: usize,
    is_proven: bool,
}

impl Room {
    /// For what goes to ourselves.
    pub(super) const UNBOUNDED: Self =
        Self { usual: usize::MAX, utmost: usize::MAX, is_proven: true };

    pub(super) fn of(incoming: &Incoming<'_>, limits: &ReplyLimits) -> Self {
        let envelope = ENVELOPE_LEN.saturating_add(incoming.transaction_len);
        let answerable = incoming.datagram_len.saturating_mul(limits.amplification_max);
        let is_proven = incoming.is_proven;
        let utmost = if is_proven { usize::MAX } else { answerable };
        Self {
            usual: utmost.min(limits.bytes_max).saturating_sub(envelope),
            utmost: utmost.saturating_sub(envelope),
            is_proven,
        }
    }

    pub(super) fn is_proven(&self) -> bool {
        self.is_proven
    }

    /// Tells whether the values may be sent, an item's among them.
    pub(super) fn fits(&self, values: &Values<'_>) -> bool {
        len(values) <= self.utmost
    }

    /// What nodes may take besides the values.
    pub(super) fn left(&self, values: &Values<'_>) -> usize {
        self.usual.saturating_sub(len(values))
    }

    /// How many peers fit beside the values, the token and the nodes.
    pub(super) fn peers(
        &self,
        values: &Values<'_>,
        nodes: &[Option<Vec<u8>>; 2],
        family: Family,
    ) -> usize {
        let nodes: usize = nodes.iter().flatten().map(|nodes| nodes.len() + NODES_KEY_LEN).sum();
        let peer_len = if family == Family::V4 { 8 } else { 21 };
        self.left(values).saturating_sub(nodes + PEERS_KEY_LEN) / peer_len
    }
}

/// The nodes that fit, the closest first.
pub(super) fn fit_nodes(nodes: &[u8], family: Family, room: usize) -> &[u8] {
    let count = room.saturating_sub(NODES_KEY_LEN) / family.node_len();
    &nodes[..nodes.len().min(count * family.node_len())]
}

pub(super) fn encode_nodes(contacts: &[Contact]) -> Vec<u8> {
    let mut nodes = Vec::with_capacity(contacts.len() * compact::NODE_V6_LEN);
    contacts.iter().for_each(|contact| compact::encode_node(contact, &mut nodes));
    nodes
}

/// Bytes of the values. What varies most is counted, the rest is bounded from above.
fn len(values: &Values<'_>) -> usize {
    let bytes = |name: usize, bytes: Option<usize>| bytes.map_or(0, |len| name + 2 + 5 + len);
    let integer = |name: usize, value: Option<i64>| value.map_or(0, |_| name + 2 + 22);
    let peers = values.peers.as_ref().map_or(0, |peers| {
        10 + peers.iter().map(|peer| if peer.is_ipv4() { 8 } else { 21 }).sum::<usize>()
    });
    // `d`, `2:id20:`, id and `e`.
    let fixed = 29;
    fixed
        + bytes(4, values.leeches.map(|filter| filter.len()))
        + bytes(4, values.seeds.map(|filter| filter.len()))
        + integer(8, values.interval)
        + bytes(1, values.key.map(|key| key.len()))
        + bytes(5, values.nodes.map(<[u8]>::len))
        + bytes(6, values.nodes6.map(<[u8]>::len))
        + integer(3, values.num)
        + bytes(7, values.samples.map(<[u8]>::len))
        + integer(3, values.seq)
        + bytes(3, values.signature.map(|signature| signature.len()))
        + bytes(5, values.token.map(<[u8]>::len))
        + values.value.map_or(0, |value| value.len() + 3)
        + peers
}
