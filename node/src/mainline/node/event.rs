//! What a [`MainlineNode`](super::MainlineNode) is asked for, and what it tells.

use std::net::SocketAddr;

use bytes::Bytes;

use crate::io::SocketId;
use crate::kademlia::NodeId;
use crate::kademlia::lookup::LookupCounters;
use crate::kademlia::node::LookupOutcome;
use crate::krpc::compact::Family;
use crate::mainline::outcome::{GetOutcome, PutOutcome};
use crate::mainline::reject::Reject;
use crate::mainline::retention::Page;

/// The socket of IPv4.
pub const SOCKET_V4: SocketId = SocketId(0);
/// The socket of IPv6.
pub const SOCKET_V6: SocketId = SocketId(1);

/// Names an operation of a client of ours; never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OperationId(pub u64);

/// What is looked for by a get.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Get {
    /// Where.
    pub target: NodeId,
    /// The salt of a mutable item; empty for others.
    pub salt: Vec<u8>,
    /// Only mutable items newer than this are wanted.
    pub newer_than: Option<i64>,
}

impl Get {
    /// The immutable item at a target, or the mutable one without salt.
    #[must_use]
    pub fn of(target: NodeId) -> Self {
        Self { target, salt: Vec::new(), newer_than: None }
    }
}

/// What is announced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Announce {
    /// The torrent.
    pub info_hash: NodeId,
    /// The peer's port; `None`: that of our socket.
    pub port: Option<u16>,
    /// Whether the peer has all of it.
    pub seed: bool,
}

/// Why an operation is not begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RefusedOperation {
    /// Too many are under way.
    #[error("too many operations are under way")]
    Busy,
    /// The item is too long or not written as bencode prescribes.
    #[error("no valid item: {0}")]
    Item(Reject),
    /// The node does not speak that family of addresses.
    #[error("no socket for this family of addresses")]
    Family,
}

/// Work for the engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreWork {
    /// Read the item's record: [`handle_loaded`](super::MainlineNode::handle_loaded) answers.
    Load {
        /// The target.
        target: NodeId,
    },
    /// Write the item's record: [`handle_stored`](super::MainlineNode::handle_stored) answers, once
    /// it is durable.
    Store {
        /// The key.
        target: NodeId,
        /// The record.
        record: Bytes,
        /// When it expires, in ms since 1970.
        expiry_ms: u64,
    },
    /// Remove an item, since there are too many; nobody waits for it.
    Remove {
        /// The key.
        target: NodeId,
    },
    /// Write a torrent's peers, or remove them; nobody waits for it.
    StorePeers {
        /// The torrent.
        info_hash: NodeId,
        /// The record and when it expires; `None`: there are no peers any more.
        record: Option<(Vec<u8>, u64)>,
    },
    /// Read items in the order of their keys, to be republished:
    /// [`handle_scanned`](super::MainlineNode::handle_scanned) answers. At most one at a time.
    Scan {
        /// Those after this one; `None`: from the first.
        after: Option<NodeId>,
        /// So many at most.
        count: usize,
    },
    /// List the keys of items in a part of the key space, since there are too many:
    /// [`handle_page`](super::MainlineNode::handle_page) answers. At most one at a time.
    List(Page),
    /// Write this where [`restore`](super::MainlineNode::restore) gets it from after the next
    /// start; nobody waits for it.
    SaveState(Vec<u8>),
}

/// An item that a scan has found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scanned {
    /// The key.
    pub target: NodeId,
    /// The record; `None`: it could not be read.
    pub record: Option<Bytes>,
}

/// What a lookup for an operation has come to, in one family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FamilyLookup {
    /// Which.
    pub family: Family,
    /// Nodes asked, and what they did.
    pub counters: LookupCounters,
    /// Nodes asked one after the other on the way to the closest.
    pub hops: u16,
    /// The up to k closest nodes that have answered, the closest first.
    pub closest: Vec<SocketAddr>,
}

impl FamilyLookup {
    pub(super) fn of(family: Family, outcome: &LookupOutcome) -> Self {
        Self {
            family,
            counters: outcome.counters,
            hops: outcome.hops,
            closest: outcome.closest.iter().map(|contact| contact.address).collect(),
        }
    }
}

/// How an operation has ended.
#[derive(Clone, Debug)]
pub enum Ended {
    /// A get: what was found, and what each replica said.
    Get(GetOutcome),
    /// A put or an announce: what each replica said.
    Put {
        /// Where.
        target: NodeId,
        /// Of each replica.
        outcome: PutOutcome,
    },
    /// A get_peers: how many different peers were handed out.
    Peers {
        /// So many.
        count: usize,
    },
    /// A walk for samples: how many different info hashes were handed out.
    Sample {
        /// So many.
        count: usize,
    },
    /// A ping: who answered, and after how many microseconds; `None`: nobody.
    Ping(Option<(NodeId, u64)>),
}

/// What has happened.
#[derive(Clone, Debug)]
pub enum MainlineEvent {
    /// The node knows its neighbours in a family. Told once for each.
    Ready(Family),
    /// The node has another id in a family, since its address has changed.
    IdChanged(Family, NodeId),
    /// Others reach us unasked.
    Reachable(Family),
    /// A get has found an item, or a better one than before.
    Found {
        /// Which operation.
        operation: OperationId,
        /// Who holds it.
        from: SocketAddr,
        /// The item as a [`Record`](crate::mainline::item::Record) with put time 0.
        record: Vec<u8>,
    },
    /// A get_peers has found peers that it has not handed out before.
    Peers {
        /// Which operation.
        operation: OperationId,
        /// Who named them.
        from: SocketAddr,
        /// The peers.
        peers: Vec<SocketAddr>,
    },
    /// A node has given a sample (BEP 51).
    Sampled {
        /// Which operation.
        operation: OperationId,
        /// Who.
        from: SocketAddr,
        /// Seconds until it gives another one.
        interval: i64,
        /// How many info hashes it knows.
        count: i64,
        /// Those that were not handed out before.
        info_hashes: Vec<NodeId>,
    },
    /// An operation is over. Told once for each.
    Ended {
        /// Which.
        operation: OperationId,
        /// With what.
        result: Ended,
        /// What its lookups have come to; none for a ping.
        lookups: Vec<FamilyLookup>,
        /// Whether it took too long, and this is what there was until then.
        is_late: bool,
    },
}
