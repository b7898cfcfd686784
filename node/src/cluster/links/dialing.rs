//! Making links: whom to connect to and when, and messages that wait for that.

use std::io;
use std::net::SocketAddr;

use super::handshake::{Handshake, Role};
use super::link::{Link, Origin, Target};
use super::outbound::Encoded;
use super::peers::{Dial, Seed, Wanted};
use super::time::Timer;
use super::{LinkEvent, PeerLinks};
use crate::cluster::message::control::ByeReason;
use crate::cluster::message::{Content, Found, PeerMessage};
use crate::io::{AttemptId, ConnectionId, Request};
use crate::kademlia::NodeId;

/// An attempt to connect.
#[derive(Clone, Copy, Debug)]
pub(super) struct Attempt {
    /// None: it was cancelled.
    target: Option<Target>,
    address: SocketAddr,
}

pub(super) fn value_len(message: &PeerMessage) -> usize {
    match message {
        PeerMessage::Put { record, .. } | PeerMessage::Got { found: Found::Record(record), .. } => {
            match &record.content {
                Content::Value(value) => value.len(),
                Content::Tombstone => 0,
            }
        }
        _ => 0,
    }
}

impl PeerLinks {
    pub(super) fn push(&mut self, to: NodeId, message: &PeerMessage) {
        let is_sendable = value_len(message) <= self.limits.value_bytes_max;
        if self.is_draining || !is_sendable || !self.peers.contains_key(&to) {
            self.counters.unsent_no_link += 1;
            self.unsent(to);
            return;
        }
        let message = Encoded::new(message);
        let current = self.peers.get(&to).and_then(|peer| peer.current);
        if let Some(connection) = current {
            self.push_to_link(to, connection, message);
        } else if self.has_dial(to) || self.dial_node_if_due(to) {
            self.push_to_queue(to, message);
        } else {
            self.counters.unsent_no_link += 1;
            self.unsent(to);
        }
    }

    fn push_to_link(&mut self, to: NodeId, connection: ConnectionId, message: Encoded) {
        let waiting = self.links.get(&connection).map_or(0, |link| link.budgets().0);
        if !self.fits(waiting, &message) {
            self.counters.unsent_full += 1;
            self.unsent(to);
            return;
        }
        let now = self.now;
        if let Some(link) = self.links.get_mut(&connection) {
            link.pulse.used_at = now;
            link.outbound.push(message);
        }
        self.settle(connection);
    }

    fn push_to_queue(&mut self, to: NodeId, message: Encoded) {
        let waiting = self.peers.get(&to).map_or(0, |peer| peer.queue_bytes);
        if !self.fits(waiting, &message) {
            self.counters.unsent_full += 1;
            self.unsent(to);
            return;
        }
        self.totals.waiting_bytes += message.bytes();
        if let Some(peer) = self.peers.get_mut(&to) {
            peer.queue_bytes += message.bytes();
            peer.queue.push_back(message);
        }
    }

    /// Whether a message may wait beside so many bytes. The last eighth is for short ones: probes
    /// and answers go through when large values do not.
    fn fits(&self, waiting: usize, message: &Encoded) -> bool {
        let share = |max: usize| if message.is_short() { max } else { max - max / 8 };
        let bytes = message.bytes();
        waiting + bytes <= share(self.limits.link_send_bytes_max)
            && self.totals.waiting_bytes + bytes <= share(self.limits.send_bytes_max)
    }

    fn has_dial(&self, node: NodeId) -> bool {
        self.peers.get(&node).is_some_and(|peer| peer.dial.is_some())
    }

    pub(super) fn want_node(&mut self, node: NodeId, address: SocketAddr) {
        let is_draining = self.is_draining;
        let Some(peer) = self.peer(node) else { return };
        peer.address = Some(address);
        if peer.current.is_none() && !is_draining {
            peer.wanted = Wanted::UntilUp;
            self.dial_node_if_due(node);
        }
    }

    pub(super) fn want_seed(&mut self, address: SocketAddr) {
        let has_room = self.seeds.len() < self.limits.peers_max;
        if has_room && !self.is_draining && !self.seeds.contains_key(&address) {
            self.seeds.insert(address, Seed::default());
            self.dial_seed_if_due(address);
        }
    }

    /// Connects to a node that has no link, unless that has failed a moment ago. Whether a link is
    /// in the making.
    pub(super) fn dial_node_if_due(&mut self, node: NodeId) -> bool {
        let Some(peer) = self.peers.get(&node) else { return false };
        if peer.current.is_some() || peer.dial.is_some() {
            return peer.dial.is_some();
        }
        let Some(address) = peer.address else { return false };
        if !peer.backoff.is_over(self.now) {
            let until = peer.backoff.until();
            if peer.wanted != Wanted::No {
                self.timers.add(until, Timer::Node(node));
            }
            return false;
        }
        let attempt = self.attempt(Target::Node(node), address);
        if let Some(peer) = self.peers.get_mut(&node) {
            peer.dial = attempt.map(Dial::Attempt);
        }
        if attempt.is_none() {
            self.dial_failed(Target::Node(node));
        }
        attempt.is_some()
    }

    pub(super) fn dial_seed_if_due(&mut self, address: SocketAddr) {
        if self.links().any(|link| link.address == address) {
            self.seeds.remove(&address);
            return;
        }
        let Some(seed) = self.seeds.get(&address) else { return };
        if seed.dial.is_some() {
            return;
        }
        if !seed.backoff.is_over(self.now) {
            self.timers.add(seed.backoff.until(), Timer::Seed(address));
            return;
        }
        let attempt = self.attempt(Target::Seed(address), address);
        if let Some(seed) = self.seeds.get_mut(&address) {
            seed.dial = attempt.map(Dial::Attempt);
        }
        if attempt.is_none() {
            self.dial_failed(Target::Seed(address));
        }
    }

    fn attempt(&mut self, target: Target, address: SocketAddr) -> Option<AttemptId> {
        if self.is_draining || self.is_full() {
            return None;
        }
        self.last_attempt += 1;
        let attempt = AttemptId(self.last_attempt);
        self.attempts.insert(attempt, Attempt { target: Some(target), address });
        self.counters.attempts += 1;
        let deadline = self.now.plus_millis(self.limits.connect_ms);
        self.outputs.requests.push_back(Request::Connect { attempt, to: address, deadline });
        Some(attempt)
    }

    pub(super) fn is_full(&self) -> bool {
        self.links.len() + self.closing.len() + self.attempts.len() >= self.limits.links_max
    }

    /// Ends an attempt that is not needed any more.
    pub(super) fn cancel(&mut self, attempt: AttemptId) {
        if let Some(attempt) = self.attempts.get_mut(&attempt) {
            attempt.target = None;
        }
        self.outputs.requests.push_back(Request::CancelConnect(attempt));
    }

    pub(super) fn on_connected(&mut self, attempt: AttemptId, result: io::Result<ConnectionId>) {
        let attempt = self.attempts.remove(&attempt);
        let Some(Attempt { target: Some(target), address }) = attempt else {
            if let Ok(connection) = result {
                self.close_unknown(connection);
            }
            return;
        };
        let connection = match result {
            Ok(connection) => connection,
            Err(error) => {
                self.counters.attempts_failed += 1;
                if self.admission.is_news(address.ip(), "unreachable") {
                    tracing::info!(%address, %error, "a node cannot be reached");
                }
                self.dial_failed(target);
                return;
            }
        };
        let (handshake, first) = Handshake::new(Role::Initiator, self.identity.hello());
        let origin = Origin::Dialed(target);
        let mut link = Link::new(self.now, origin, address, handshake, &self.limits);
        if let Some(first) = first {
            let _fits = link.outbound.push_control(&first);
        }
        let dial = Some(Dial::Handshake(connection));
        match target {
            Target::Node(node) => {
                if let Some(peer) = self.peers.get_mut(&node) {
                    peer.dial = dial;
                }
            }
            Target::Seed(address) => {
                if let Some(seed) = self.seeds.get_mut(&address) {
                    seed.dial = dial;
                }
            }
        }
        self.links.insert(connection, link);
        self.receive(connection);
        self.settle(connection);
    }

    /// An attempt or its handshake has failed, or led to somebody else.
    pub(super) fn dial_failed(&mut self, target: Target) {
        let (now, limits) = (self.now, self.limits);
        match target {
            Target::Seed(address) => {
                let Some(seed) = self.seeds.get_mut(&address) else { return };
                seed.dial = None;
                seed.backoff.failed(now, &limits, &mut self.rng);
                self.timers.add(seed.backoff.until(), Timer::Seed(address));
            }
            Target::Node(node) => {
                let Some(peer) = self.peers.get_mut(&node) else { return };
                peer.dial = None;
                if peer.current.is_some() {
                    return;
                }
                peer.backoff.failed(now, &limits, &mut self.rng);
                peer.wanted = peer.wanted.less();
                if peer.wanted != Wanted::No {
                    self.timers.add(peer.backoff.until(), Timer::Node(node));
                }
                let was_up = std::mem::take(&mut peer.is_told_up);
                let has_lost = self.drop_queue(&node);
                if was_up {
                    self.event(LinkEvent::Down { node });
                } else if has_lost {
                    self.unsent(node);
                }
            }
        }
    }

    /// Drops what waits for a link; whether anything did.
    pub(super) fn drop_queue(&mut self, node: &NodeId) -> bool {
        let Some(peer) = self.peers.get_mut(node) else { return false };
        let count = std::mem::take(&mut peer.queue).len();
        self.totals.waiting_bytes -= std::mem::take(&mut peer.queue_bytes);
        self.counters.unsent_no_link += count as u64;
        count > 0
    }

    pub(super) fn forget_peer(&mut self, node: &NodeId) {
        self.drop_queue(node);
        let Some(peer) = self.peers.remove(node) else { return };
        match peer.dial {
            Some(Dial::Attempt(attempt)) => self.cancel(attempt),
            Some(Dial::Handshake(connection)) => self.close(connection),
            None => {}
        }
        for connection in self.links_to(node) {
            self.part(connection, ByeReason::Unneeded);
        }
    }
}
