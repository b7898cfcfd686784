//! [`PeerSide`]: what a node is to other nodes, as the event loop sees it.
//!
//! The loop hands it the completions of its own listeners, sockets, attempts and connections, tells
//! it of the stores' events, and gives it a turn after all that. Which commands of clients it
//! answers is said to the client door ([`crate::resp::door::PeerCommands`]).

use std::fmt;
use std::net::SocketAddr;

use storage::Event;

use crate::io::{
    Completion, ConnectionId, ListenerId, Monotonic, ReceiveBuffer, Request, SocketId,
};
use crate::keyspace::{Keyspace, ShardIndex};
use crate::resp::door::Door;

/// The listener behind the peer door.
pub const PEER_DOOR: ListenerId = ListenerId(1);
/// The listener behind the admin door.
pub const ADMIN_DOOR: ListenerId = ListenerId(2);
/// The UDP socket of the peer door for IPv4.
pub const PEER_SOCKET_V4: SocketId = SocketId(0);
/// The UDP socket of the peer door for IPv6.
pub const PEER_SOCKET_V6: SocketId = SocketId(1);

/// What a node is to other nodes. One per node, on its first thread.
pub trait PeerSide: fmt::Debug {
    /// Whether a connection is one of its own: accepted by [`PEER_DOOR`], or made by its attempts.
    fn owns(&self, connection: ConnectionId) -> bool;

    /// Takes a completion of its listeners, connections, attempts and UDP sockets; gives back a
    /// buffer to be released.
    fn handle(&mut self, keyspace: &mut Keyspace, completion: Completion) -> Option<ReceiveBuffer>;

    /// Takes an event of the store, which may answer something it has asked. Events of others'
    /// questions come here, too.
    fn handle_event(&mut self, keyspace: &mut Keyspace, shard: ShardIndex, event: &Event);

    /// Takes addresses of nodes to start from, whose names were looked up meanwhile. Nobody looks
    /// names up for a peer side that is given none.
    fn add_seeds(&mut self, _keyspace: &mut Keyspace, _seeds: &[SocketAddr]) {}

    /// After all completions, at least once in each turn: time, replies, work for the store,
    /// commands of clients and answers to them.
    fn turn(&mut self, keyspace: &mut Keyspace, door: &mut Door);

    /// Takes the next request for the driver.
    fn poll_request(&mut self) -> Option<Request>;

    /// When a turn is wanted next.
    fn deadline(&self) -> Option<Monotonic>;

    /// The node stops, and has no clients any more: no new work. [`PeerSide::is_drained`] says when
    /// nothing is under way any more.
    fn drain(&mut self);

    /// Whether nothing is under way any more after [`PeerSide::drain`]: no connection, listener or
    /// socket is left.
    fn is_drained(&self) -> bool;

    /// What INFO and /metrics tell of it.
    fn figures(&self) -> Vec<Figure>;

    /// Whether clients can be served.
    fn is_ready(&self) -> bool;
}

/// How a figure changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FigureKind {
    /// It only grows while the process lives.
    Counter,
    /// It goes up and down.
    Gauge,
}

/// A number for INFO and /metrics.
#[derive(Clone, Debug, PartialEq)]
pub struct Figure {
    /// In the words of Prometheus, such as `kadring_lookups_total`.
    pub name: &'static str,
    /// What it counts, in one sentence.
    pub help: &'static str,
    /// How it changes.
    pub kind: FigureKind,
    /// Tells it from others of its name.
    pub labels: Vec<(&'static str, String)>,
    /// The number.
    pub value: f64,
}

impl Figure {
    /// A figure that only grows.
    #[must_use]
    pub fn counter(name: &'static str, help: &'static str, value: u64) -> Self {
        Self::new(name, help, FigureKind::Counter, value)
    }

    /// A figure that goes up and down.
    #[must_use]
    pub fn gauge(name: &'static str, help: &'static str, value: u64) -> Self {
        Self::new(name, help, FigureKind::Gauge, value)
    }

    #[expect(clippy::cast_precision_loss, reason = "figures are told, not counted with")]
    fn new(name: &'static str, help: &'static str, kind: FigureKind, value: u64) -> Self {
        Self { name, help, kind, labels: Vec::new(), value: value as f64 }
    }

    /// The figure in seconds, made of one in microseconds.
    #[must_use]
    pub fn micros_to_seconds(mut self) -> Self {
        self.value /= 1e6;
        self
    }

    /// The figure with a label.
    #[must_use]
    pub fn with(mut self, label: &'static str, value: impl Into<String>) -> Self {
        self.labels.push((label, value.into()));
        self
    }
}
