//! [`MainlineSide`]: a node of BitTorrent's DHT in the process: its sockets, its records in the
//! engine, and the commands of clients.
//!
//! ```text
//! UDP ──> MainlineNode ──> StoreWork ──> Records ──> Keyspace (log, disk)
//!  ^          ^  │                          │
//!  └──────────┼──┘ <── loaded, durable ─────┘
//!             └── Operations <── client door (KAD.BEP44.*, KAD.MAINLINE.*)
//! ```
//!
//! It begins with [`start`], before the node says that it is ready: the sockets are bound, what was
//! known in an earlier life is read. A reply to a put leaves when the record is durable, because
//! the node sends it only then.

mod commands;
mod figures;
pub mod keys;
pub mod records;
mod starting;
mod walk;

use std::collections::VecDeque;
use std::net::SocketAddr;

use bytes::Bytes;
use storage::{Event, Now};

use super::node::MainlineNode;
use super::node::event::{MainlineEvent, StoreWork};
use crate::io::{Completion, ConnectionId, Monotonic, ReceiveBuffer, Request, SocketId};
use crate::kademlia::NodeId;
use crate::keyspace::{Keyspace, ShardIndex};
use crate::krpc::compact::Family;
use crate::peer::{Figure, PEER_SOCKET_V4, PEER_SOCKET_V6, PeerSide};
use crate::resp::door::Door;

use commands::Operations;
use records::{Outcome, Records};

pub use starting::{StartError, start};

/// How far it is on its way out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Serving,
    /// No more queries are taken; peers not yet written and the state are to be.
    Draining,
    /// What was promised is being made durable, the state with it.
    Saving,
    /// The sockets are being closed.
    Closing,
}

/// A node of BitTorrent's DHT in the process.
#[derive(Debug)]
pub struct MainlineSide {
    node: MainlineNode,
    records: Records,
    operations: Operations,
    /// The first address of the peer door.
    address: SocketAddr,
    /// Whether the sockets of IPv4 and IPv6 are open.
    open: [bool; 2],
    requests: VecDeque<Request>,
    phase: Phase,
    /// Items that the node has been told the engine holds.
    held: u64,
}

impl MainlineSide {
    /// The commands of clients that it answers, for [`Door::set_peer_commands`].
    pub const COMMANDS: crate::resp::door::PeerCommands = commands::answerer;

    /// The node, to look at.
    #[must_use]
    pub fn node(&self) -> &MainlineNode {
        &self.node
    }

    /// The address of the peer door; of IPv4, if it has two.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The node's id in the family of that address.
    #[must_use]
    pub fn id(&self) -> [u8; 20] {
        self.node.own(Family::of(&self.address)).unwrap_or(NodeId([0; 20])).0
    }

    fn handle_datagram(&mut self, now: Now, socket: SocketId, from: SocketAddr, bytes: &[u8]) {
        if self.phase == Phase::Serving {
            self.node.handle_datagram(now, socket, from, bytes);
        }
    }

    /// Lets node and engine talk until both are silent.
    fn exchange(&mut self, keyspace: &mut Keyspace) {
        let now = keyspace.now();
        loop {
            let mut is_silent = true;
            while let Some(outcome) = self.records.poll() {
                is_silent = false;
                self.take_outcome(now, outcome);
            }
            while let Some(work) = self.node.poll_store() {
                is_silent = false;
                self.records.take(keyspace, work);
            }
            if is_silent {
                return;
            }
        }
    }

    fn take_outcome(&mut self, now: Now, outcome: Outcome) {
        match outcome {
            Outcome::Loaded(target, record) => self.node.handle_loaded(now, target, record),
            Outcome::Stored(target, result) => self.node.handle_stored(now, target, result),
            Outcome::Scanned(items, is_last) => self.node.handle_scanned(now, &items, is_last),
            Outcome::Page(items, is_last) => self.node.handle_page(&items, is_last),
            Outcome::Peers(info_hash, record) => {
                self.node.restore_peers(&info_hash, &record);
            }
            Outcome::PeersRestored | Outcome::StateSaved | Outcome::State(_) => {}
        }
    }

    fn send(&mut self) {
        while let Some((socket, to, bytes)) = self.node.poll_transmit() {
            self.requests.push_back(Request::SendDatagram {
                socket,
                to,
                bytes: Bytes::from(bytes),
            });
        }
    }

    fn note_held(&mut self, keyspace: &Keyspace) {
        // What is neither an item nor peers does not count among so many.
        let torrents = self.node.server().peers().len();
        let held = keyspace.len().saturating_sub(torrents) as u64;
        if held != self.held {
            self.held = held;
            self.node.set_held(held);
        }
    }

    /// Goes on stopping, if it is.
    fn go_on_stopping(&mut self, keyspace: &mut Keyspace) {
        if self.phase == Phase::Draining && self.records.has_room() {
            // Peers of the last seconds: nobody has waited for them, but they are to survive.
            let is_flushed = self.node.flush_peers(keyspace.now());
            if is_flushed {
                self.phase = Phase::Saving;
                self.records.take(keyspace, StoreWork::SaveState(self.node.state()));
            }
            self.exchange(keyspace);
            self.send();
        }
        if self.phase == Phase::Saving && self.records.is_settled(keyspace) {
            self.phase = Phase::Closing;
            let sockets = [PEER_SOCKET_V4, PEER_SOCKET_V6].into_iter().zip(self.open);
            let open = sockets.filter(|(_, is_open)| *is_open);
            self.requests.extend(open.map(|(socket, _)| Request::CloseUdp(socket)));
        }
    }

    fn log(event: &MainlineEvent) {
        match event {
            MainlineEvent::Ready(family) => tracing::info!(?family, "joined the network"),
            MainlineEvent::IdChanged(family, id) => {
                tracing::info!(?family, %id, "another address, and so another node id");
            }
            MainlineEvent::Reachable(family) => tracing::info!(?family, "reached unasked"),
            _ => {}
        }
    }

    fn note_closed(&mut self, socket: SocketId) {
        if self.phase != Phase::Closing {
            tracing::error!(socket = socket.0, "a socket of the peer door has closed");
        }
        if let Some(open) = self.open.get_mut(usize::from(socket.0)) {
            *open = false;
        }
    }
}

impl PeerSide for MainlineSide {
    fn owns(&self, _connection: ConnectionId) -> bool {
        false
    }

    fn handle(&mut self, keyspace: &mut Keyspace, completion: Completion) -> Option<ReceiveBuffer> {
        match completion {
            Completion::Datagram { socket, from, bytes } => {
                self.handle_datagram(keyspace.now(), socket, from, &bytes);
                return Some(bytes);
            }
            Completion::UdpClosed(socket) | Completion::UdpBound(socket, Err(_)) => {
                self.note_closed(socket);
            }
            _ => {}
        }
        None
    }

    fn handle_event(&mut self, keyspace: &mut Keyspace, shard: ShardIndex, event: &Event) {
        self.records.handle_event(keyspace, shard, event);
    }

    fn add_seeds(&mut self, keyspace: &mut Keyspace, seeds: &[SocketAddr]) {
        self.node.add_seeds(keyspace.now(), seeds);
    }

    fn turn(&mut self, keyspace: &mut Keyspace, door: &mut Door) {
        let now = keyspace.now();
        self.operations.take(&mut self.node, keyspace, door);
        self.records.retry(keyspace);
        if self.phase == Phase::Serving {
            self.note_held(keyspace);
            self.node.end_turn(now);
            let is_due = self.node.deadline().is_some_and(|due| due.0 <= now.monotonic_ns);
            if is_due {
                self.node.handle_time(now);
            }
        }
        self.exchange(keyspace);
        while let Some(event) = self.node.poll_event() {
            Self::log(&event);
            self.operations.on_event(keyspace, door, event);
        }
        self.send();
        self.go_on_stopping(keyspace);
    }

    fn poll_request(&mut self) -> Option<Request> {
        self.requests.pop_front()
    }

    fn deadline(&self) -> Option<Monotonic> {
        match self.phase {
            Phase::Serving => self.node.deadline(),
            Phase::Draining if self.records.has_room() => Some(Monotonic(0)),
            // The log says when it has room, and when what was written is durable.
            Phase::Draining | Phase::Saving | Phase::Closing => None,
        }
    }

    fn drain(&mut self) {
        if self.phase == Phase::Serving {
            self.phase = Phase::Draining;
        }
    }

    fn is_drained(&self) -> bool {
        self.phase == Phase::Closing && self.open == [false; 2]
    }

    fn figures(&self) -> Vec<Figure> {
        figures::of(&self.node, &self.operations, self.held)
    }

    fn is_ready(&self) -> bool {
        self.phase == Phase::Serving && self.node.is_ready()
    }
}

/// The families whose sockets are open, with their names in labels.
const FAMILIES: [(Family, &str); 2] = [(Family::V4, "ipv4"), (Family::V6, "ipv6")];
