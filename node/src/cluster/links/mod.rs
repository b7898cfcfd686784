//! [`PeerLinks`]: the TCP links of a node to the others of its cluster, without I/O.
//!
//! ```text
//! send ──> peers (who is where, what waits) ──> dialing ──> link: handshake ──> up ──> events
//!                 └────────────────────────────────────────> outbound ──> requests
//! ```
//!
//! Contract: one input (`handle*`, a command), then `poll_request` and `poll_event` until they are
//! empty, then `deadline` for the next [`PeerLinks::handle_time`]. The listener is the owner's.
//!
//! Invariants:
//! * nothing but a handshake is read or sent before the other side is known, and, in a cluster with
//!   a secret, has proven that it knows the secret (`handshake`);
//! * messages go over one link of a pair; of two that were made at the same moment both sides keep
//!   the same one, and the other is closed when what was begun on it has arrived;
//! * a message is sent whole, or the owner hears of it: [`LinkEvent::Unsent`], [`LinkEvent::Down`];
//! * what waits to be sent, what is unfinished, what nobody has taken, strangers, their handshakes
//!   in time: all have limits ([`LinkLimits`]).
//!
//! Same inputs, same outputs: time is given, and randomness comes from the seed.

mod admission;
mod counters;
mod dialing;
mod ending;
mod handshake;
mod limits;
mod link;
mod outbound;
mod peers;
#[cfg(test)]
mod tests;
mod time;
mod traffic;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;

use fastrand::Rng;

pub use self::counters::LinkCounters;
pub use self::limits::LinkLimits;
use super::message::PeerMessage;
use super::message::control::{Hello, feature};
use super::secret::MacKey;
use crate::io::{
    AttemptId, Completion, ConnectionId, ListenerId, Monotonic, ReceiveBuffer, Request,
};
use crate::kademlia::NodeId;
use admission::Admission;
use dialing::{Attempt, value_len};
use handshake::Nonces;
use link::{Link, Phase};
use peers::{Peer, Seed};
use time::Timers;

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
pub struct PeerLinks {
    identity: Identity,
    limits: LinkLimits,
    rng: Rng,
    links: BTreeMap<ConnectionId, Link>,
    /// Connections whose end was asked for.
    closing: BTreeSet<ConnectionId>,
    attempts: BTreeMap<AttemptId, Attempt>,
    last_attempt: u64,
    peers: BTreeMap<NodeId, Peer>,
    seeds: BTreeMap<SocketAddr, Seed>,
    admission: Admission,
    timers: Timers,
    outputs: Outputs,
    totals: Totals,
    counters: LinkCounters,
    /// The latest time that was given.
    now: Monotonic,
    is_draining: bool,
}

/// Who this node is to others.
#[derive(Debug)]
struct Identity {
    node: NodeId,
    cluster: NodeId,
    address: SocketAddr,
    listener: ListenerId,
    key: Option<MacKey>,
    boot: u64,
    nonces: Nonces,
}

/// What is to be taken.
#[derive(Debug, Default)]
struct Outputs {
    requests: VecDeque<Request>,
    events: VecDeque<LinkEvent>,
    /// Of the values in them.
    events_bytes: usize,
    /// Nodes of which it is said already that something was not sent.
    unsent: BTreeSet<NodeId>,
    /// Links with something to send that the driver can take.
    ready: BTreeSet<ConnectionId>,
    /// Links that do not receive because there is too much to be taken.
    paused: BTreeSet<ConnectionId>,
}

/// Sums over all links.
#[derive(Clone, Copy, Debug, Default)]
struct Totals {
    waiting_bytes: usize,
    held_bytes: usize,
}

impl Identity {
    /// The first frame of a further link.
    fn hello(&mut self) -> Hello {
        Hello {
            cluster: self.cluster,
            node: self.node,
            boot: self.boot,
            features: if self.key.is_some() { feature::SECRET } else { 0 },
            nonce: self.nonces.draw(),
            address: self.address.to_string().into(),
        }
    }
}

impl PeerLinks {
    /// Starts without links.
    #[must_use]
    pub fn new(options: LinkOptions) -> Self {
        let nonces = Nonces::new(options.seed);
        let mut rates_seed = [0; 16];
        rates_seed[..8].copy_from_slice(&nonces.number(b"rates 1").to_be_bytes());
        rates_seed[8..].copy_from_slice(&nonces.number(b"rates 2").to_be_bytes());
        Self {
            rng: Rng::with_seed(nonces.number(b"jitter")),
            identity: Identity {
                node: options.node,
                cluster: options.cluster,
                address: options.address,
                listener: options.listener,
                key: options.key,
                boot: nonces.number(b"boot"),
                nonces,
            },
            limits: options.limits,
            links: BTreeMap::new(),
            closing: BTreeSet::new(),
            attempts: BTreeMap::new(),
            last_attempt: 0,
            peers: BTreeMap::new(),
            seeds: BTreeMap::new(),
            admission: Admission::new(&options.limits, rates_seed),
            timers: Timers::default(),
            outputs: Outputs::default(),
            totals: Totals::default(),
            counters: LinkCounters::default(),
            now: Monotonic(0),
            is_draining: false,
        }
    }

    /// Says where others reach this node, once that is known.
    pub fn set_address(&mut self, address: SocketAddr) {
        self.identity.address = address;
    }

    /// Notes where a node can be reached; it is connected to when there is something to send.
    pub fn learn(&mut self, node: NodeId, address: SocketAddr) {
        if let Some(peer) = self.peer(node) {
            peer.address = Some(address);
        }
    }

    /// Whether there is a link to a node that messages go over.
    #[must_use]
    pub fn has_link(&self, node: &NodeId) -> bool {
        self.peers.get(node).is_some_and(|peer| peer.current.is_some())
    }

    /// Forgets a node's address, and closes its link.
    pub fn forget(&mut self, now: Monotonic, node: &NodeId) {
        self.now = now;
        self.forget_peer(node);
    }

    /// Makes a link to an address, unless there is one: to this node, or to whoever is there
    /// (seeds). Tried again, ever more rarely, until it is up.
    pub fn connect(&mut self, now: Monotonic, node: Option<NodeId>, address: SocketAddr) {
        self.now = now;
        match node {
            Some(node) => self.want_node(node, address),
            None => self.want_seed(address),
        }
    }

    /// Sends a message, over a new link if there is none. Comes back as [`LinkEvent::Unsent`] if
    /// that is not possible now.
    pub fn send(&mut self, now: Monotonic, to: NodeId, message: PeerMessage) {
        self.now = now;
        self.push(to, &message);
    }

    /// Takes a completion of its listener's connections, of its connections and attempts. Gives
    /// back a buffer to be released.
    pub fn handle(&mut self, now: Monotonic, completion: Completion) -> Option<ReceiveBuffer> {
        self.now = now;
        let mut buffer = None;
        match completion {
            Completion::Accepted { listener, connection, peer }
                if listener == self.identity.listener =>
            {
                self.on_accepted(connection, peer);
            }
            Completion::Connected { attempt, result } => self.on_connected(attempt, result),
            Completion::Received { connection, result } => {
                buffer = self.on_received(connection, result);
            }
            Completion::Sent { connection, result } => self.on_sent(connection, &result),
            Completion::Closed(connection) => self.on_closed(connection),
            _ => {}
        }
        self.resume();
        buffer
    }

    /// Whether a connection is one of these.
    #[must_use]
    pub fn owns(&self, connection: ConnectionId) -> bool {
        self.links.contains_key(&connection) || self.closing.contains(&connection)
    }

    /// The time has come, or something else happened long enough after it.
    pub fn handle_time(&mut self, now: Monotonic) {
        self.now = now;
        self.run_timers();
        self.resume();
    }

    /// When [`PeerLinks::handle_time`] has something to do.
    #[must_use]
    pub fn deadline(&self) -> Option<Monotonic> {
        self.timers.next()
    }

    /// The next request for the driver. Poll after all inputs of a turn: what was sent in the
    /// meantime goes together.
    pub fn poll_request(&mut self) -> Option<Request> {
        if let Some(request) = self.outputs.requests.pop_front() {
            return Some(request);
        }
        while let Some(connection) = self.outputs.ready.pop_first() {
            if let Some(parts) = self.begin_send(connection) {
                return Some(Request::Send(connection, parts));
            }
        }
        None
    }

    /// The next event.
    pub fn poll_event(&mut self) -> Option<LinkEvent> {
        let event = self.outputs.events.pop_front();
        match &event {
            Some(LinkEvent::Unsent { node }) => {
                self.outputs.unsent.remove(node);
            }
            Some(LinkEvent::Message { message, .. }) => {
                self.outputs.events_bytes -= value_len(message);
            }
            _ => {}
        }
        if self.outputs.events.len() <= self.limits.events_max / 2 {
            self.resume();
        }
        event
    }

    /// Takes no more links, sends what waits, and closes all.
    pub fn drain(&mut self, now: Monotonic) {
        self.now = now;
        self.begin_drain();
    }

    /// Whether everything is closed after [`PeerLinks::drain`].
    #[must_use]
    pub fn is_drained(&self) -> bool {
        self.is_draining
            && self.links.is_empty()
            && self.closing.is_empty()
            && self.attempts.is_empty()
    }

    /// Counters.
    #[must_use]
    pub fn counters(&self) -> LinkCounters {
        self.counters
    }

    /// Bytes that wait to be sent on all links, and those of unfinished values.
    #[must_use]
    pub fn waiting_and_held_bytes(&self) -> (usize, usize) {
        (self.totals.waiting_bytes, self.totals.held_bytes)
    }

    /// The links that are up.
    pub fn links(&self) -> impl Iterator<Item = LinkInfo> {
        self.links.values().filter_map(|link| {
            let Phase::Up(ends) = &link.phase else { return None };
            Some(LinkInfo {
                node: ends.peer,
                address: link.address,
                rtt_ns: link.pulse.rtt_ns,
                waiting_bytes: link.outbound.waiting_bytes(),
            })
        })
    }

    /// What is known of a node; none, if there is no room for another one.
    fn peer(&mut self, node: NodeId) -> Option<&mut Peer> {
        if node == self.identity.node {
            return None;
        }
        if !self.peers.contains_key(&node) && self.peers.len() >= self.limits.peers_max {
            let idle = self.peers.iter().find(|(_, peer)| peer.is_idle()).map(|(node, _)| *node);
            self.peers.remove(&idle?);
        }
        Some(self.peers.entry(node).or_insert_with(|| Peer::new(None)))
    }

    fn event(&mut self, event: LinkEvent) {
        self.outputs.events.push_back(event);
    }

    fn unsent(&mut self, node: NodeId) {
        if self.outputs.unsent.insert(node) {
            self.event(LinkEvent::Unsent { node });
        }
    }
}
