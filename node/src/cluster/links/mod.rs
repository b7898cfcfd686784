//! [`PeerLinks`]: the TCP links of a node to the others of its cluster, without I/O.

mod counters;
mod limits;

use std::net::SocketAddr;

use bytes::Bytes;

pub use self::counters::LinkCounters;
pub use self::limits::LinkLimits;
use super::message::PeerMessage;
use super::secret::MacKey;
use crate::io::{Completion, ConnectionId, ListenerId, Monotonic, ReceiveBuffer, Request};
use crate::kademlia::NodeId;

/// How the links of a node are set up.
#[derive(Clone, Debug)]
pub struct LinkOptions {
    /// The node.
    pub node: NodeId,
    /// Its cluster.
    pub cluster: NodeId,
    /// Where others reach it: told to them in the handshake.
    pub address: SocketAddr,
    /// The listener whose connections are links. It is opened and closed by the owner.
    pub listener: ListenerId,
    /// The link key of the cluster's secret, if it has one.
    pub key: Option<MacKey>,
    /// Limits.
    pub limits: LinkLimits,
    /// Random bytes, secret and new in each process: nonces and jitter come from them.
    pub seed: [u8; 32],
}

/// What is told to the owner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkEvent {
    /// There is a link to a node to which there was none.
    Up {
        /// Who.
        node: NodeId,
        /// Where it says that it can be reached.
        address: SocketAddr,
    },
    /// A message came.
    Message {
        /// From whom.
        from: NodeId,
        /// Which.
        message: PeerMessage,
    },
    /// A message to the node could not be sent, or its link is full; a link may be up all the same.
    /// For `ClusterNode::handle_unreachable`.
    Unsent {
        /// To whom.
        node: NodeId,
    },
    /// There is no link to the node any more, and what was on its way may be lost. For
    /// `ClusterNode::handle_unreachable`.
    Down {
        /// Who.
        node: NodeId,
    },
}

/// A link that is up, for metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkInfo {
    /// To whom.
    pub node: NodeId,
    /// Where it says that it can be reached.
    pub address: SocketAddr,
    /// The latest round-trip time, once there was one.
    pub rtt_ns: Option<u64>,
    /// Bytes that wait to be sent.
    pub waiting_bytes: usize,
}

/// The links of one node.
#[derive(Debug)]
pub struct PeerLinks {}

impl PeerLinks {
    /// Starts without links.
    #[must_use]
    pub fn new(options: LinkOptions) -> Self;

    /// Says where others reach this node, once that is known.
    pub fn set_address(&mut self, address: SocketAddr);

    /// Notes where a node can be reached; it is connected to when there is something to send.
    pub fn learn(&mut self, node: NodeId, address: SocketAddr);

    /// Forgets a node's address, and closes its link.
    pub fn forget(&mut self, now: Monotonic, node: &NodeId);

    /// Makes a link to an address, unless there is one: to this node, or to whoever is there
    /// (seeds). Tried again, ever more rarely, until it is up.
    pub fn connect(&mut self, now: Monotonic, node: Option<NodeId>, address: SocketAddr);

    /// Sends a message, over a new link if there is none. Comes back as [`LinkEvent::Unsent`] if
    /// that is not possible now.
    pub fn send(&mut self, now: Monotonic, to: NodeId, message: PeerMessage);

    /// Takes a completion of its listener's connections, of its connections and attempts. Gives
    /// back a buffer to be released.
    pub fn handle(&mut self, now: Monotonic, completion: Completion) -> Option<ReceiveBuffer>;

    /// Whether a connection is one of these.
    #[must_use]
    pub fn owns(&self, connection: ConnectionId) -> bool;

    /// The time has come, or something else happened long enough after it.
    pub fn handle_time(&mut self, now: Monotonic);

    /// When [`PeerLinks::handle_time`] has something to do.
    #[must_use]
    pub fn deadline(&self) -> Option<Monotonic>;

    /// The next request for the driver. Poll once a turn, after all sends: what is sent in the
    /// meantime goes together.
    pub fn poll_request(&mut self) -> Option<Request>;

    /// The next event.
    pub fn poll_event(&mut self) -> Option<LinkEvent>;

    /// Takes no more links, sends what waits, and closes all.
    pub fn drain(&mut self, now: Monotonic);

    /// Whether everything is closed after [`PeerLinks::drain`].
    #[must_use]
    pub fn is_drained(&self) -> bool;

    /// Counters.
    #[must_use]
    pub fn counters(&self) -> LinkCounters;

    /// The links that are up.
    pub fn links(&self) -> impl Iterator<Item = LinkInfo>;
}
