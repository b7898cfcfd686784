//! What a [`KademliaNode`](super::KademliaNode) tells the layers above it, and is told by them.

use std::fmt;
use std::net::SocketAddr;

use crate::io::Monotonic;
use crate::kademlia::lookup::LookupCounters;
use crate::kademlia::{Contact, NodeId};

/// Names a lookup of a node; never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LookupId(pub u64);

/// Names a query that a layer above has sent; never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct QueryId(pub u64);

/// Too much is under way: try again when something has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("too much is under way")]
pub struct Busy;

/// What a lookup asks the nodes on its way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LookupKind {
    /// find_node: nodes alone.
    Nodes,
    /// Another method whose replies name nodes as those to find_node do: get, get_peers,
    /// find_value. Each reply comes out as [`NodeEvent::LookupResponse`].
    Method {
        /// Its name.
        method: &'static [u8],
        /// Its arguments, a bencoded dictionary with our id in it.
        arguments: Vec<u8>,
    },
}

/// Who is to get a reply, and to which query.
#[derive(Clone, PartialEq, Eq)]
pub struct Asker {
    /// Where the query came from.
    pub address: SocketAddr,
    /// Its transaction id.
    pub transaction: Vec<u8>,
}

impl fmt::Debug for Asker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.address, self.transaction.escape_ascii())
    }
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodeEvent {
    /// We have spoken to another node and know our neighbours, or we found a network. Told once.
    Ready,
    /// A query that is not for us to answer: `respond` or `respond_error` does, now or later.
    Query {
        /// Who is to get the reply.
        asker: Asker,
        /// The sender's id, as it says.
        sender: NodeId,
        /// The sender answers no queries.
        read_only: bool,
        /// What it asks.
        method: Vec<u8>,
        /// A bencoded dictionary.
        arguments: Vec<u8>,
    },
    /// A query of the layer above was answered.
    Answered {
        /// Which.
        query: QueryId,
        /// By whom.
        from: Contact,
        /// A bencoded dictionary.
        values: Vec<u8>,
    },
    /// A query of the layer above was refused by who got it.
    Refused {
        /// Which.
        query: QueryId,
        /// The code of the error.
        code: i64,
        /// Its text.
        text: Vec<u8>,
    },
    /// A query of the layer above had no answer.
    Unanswered {
        /// Which.
        query: QueryId,
        /// Where it went.
        to: SocketAddr,
    },
    /// A node on the way of a lookup by [`LookupKind::Method`] has answered.
    LookupResponse {
        /// Which.
        lookup: LookupId,
        /// Who.
        from: Contact,
        /// A bencoded dictionary.
        values: Vec<u8>,
    },
    /// A lookup of the layer above is over.
    LookupDone(LookupOutcome),
    /// Somebody says under which address it sees us.
    SeenAs {
        /// Who.
        by: SocketAddr,
        /// Our address.
        address: SocketAddr,
    },
}

/// Where a lookup may leave a copy of what it has found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CachePlace {
    /// The closest node that answered and has not got it.
    pub contact: Contact,
    /// How many that have answered are closer: see
    /// [`path_cache::ttl_ms`](crate::kademlia::path_cache::ttl_ms).
    pub between: u32,
}

/// What a lookup has come to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LookupOutcome {
    /// Which.
    pub lookup: LookupId,
    /// What was looked for.
    pub target: NodeId,
    /// The up to k closest nodes that have answered, the closest first.
    pub closest: Vec<Contact>,
    /// Nodes asked one after the other on the way to the closest.
    pub hops: u16,
    /// Nodes asked, and what they did.
    pub counters: LookupCounters,
    /// When it was begun.
    pub started: Monotonic,
    /// When it was over.
    pub ended: Monotonic,
    /// Where a copy may be left, if holders were marked.
    pub cache_at: Option<CachePlace>,
}

/// What a node has seen and done since its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NodeCounters {
    /// Datagrams that were no message.
    pub rejected: u64,
    /// Messages of another cluster, or of none where we have one.
    pub foreign: u64,
    /// Queries refused because their source sends too many.
    pub limited: u64,
    /// Queries taken.
    pub queries_in: u64,
    /// Responses that belong to a query of ours.
    pub responses_in: u64,
    /// Errors that belong to a query of ours.
    pub errors_in: u64,
    /// Replies that belong to none, forged ones among them.
    pub unexpected: u64,
    /// Queries sent, without resends.
    pub queries_out: u64,
    /// Queries sent again.
    pub resends: u64,
    /// Queries without answer.
    pub timeouts: u64,
    /// Datagrams or events that were dropped since nobody took those before them.
    pub dropped: u64,
    /// Lookups that have ended, our own among them.
    pub lookups: u64,
}
