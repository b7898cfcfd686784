//! How links end: refused, broken, or in order with a BYE from both sides.

use super::link::{Link, Origin, Phase};
use super::peers::Wanted;
use super::time::Timer;
use super::{LinkEvent, PeerLinks, handshake};
use crate::cluster::message::control::{ByeReason, ControlFrame, Refusal};
use crate::io::{ConnectionId, Request};
use crate::kademlia::NodeId;

impl PeerLinks {
    /// After anything was done with a link: counts anew, and goes on with what has become possible.
    pub(super) fn settle(&mut self, connection: ConnectionId) {
        self.recount(connection);
        let Some(link) = self.links.get(&connection) else { return };
        let is_over = match &link.phase {
            Phase::Refusing { .. } => link.is_flushed(),
            Phase::Parting { .. } => link.is_flushed() && link.has_heard_bye,
            Phase::Handshake(_) | Phase::Up(_) => false,
        };
        if is_over {
            if matches!(link.phase, Phase::Parting { .. }) {
                self.counters.closed += 1;
            }
            self.close(connection);
            return;
        }
        if link.can_send() {
            self.outputs.ready.insert(connection);
        }
        self.set_timer(connection);
    }

    fn recount(&mut self, connection: ConnectionId) {
        let Some(link) = self.links.get_mut(&connection) else { return };
        let (waiting, held) = link.budgets();
        let before = std::mem::replace(&mut link.waiting_bytes, waiting);
        self.totals.waiting_bytes = self.totals.waiting_bytes + waiting - before;
        let before = std::mem::replace(&mut link.held_bytes, held);
        self.totals.held_bytes = self.totals.held_bytes + held - before;
    }

    pub(super) fn stranger_left(&mut self, connection: ConnectionId) {
        if let Some(link) = self.links.get_mut(&connection)
            && std::mem::take(&mut link.is_stranger)
        {
            self.admission.leave(link.source());
        }
    }

    /// Closes a connection at once. What its end means is the caller's.
    pub(super) fn close(&mut self, connection: ConnectionId) {
        self.stranger_left(connection);
        let Some(link) = self.links.remove(&connection) else { return };
        self.totals.waiting_bytes -= link.waiting_bytes;
        self.totals.held_bytes -= link.held_bytes;
        if let Some(at) = link.timer {
            self.timers.remove(at, Timer::Link(connection));
        }
        self.outputs.ready.remove(&connection);
        self.outputs.paused.remove(&connection);
        self.close_unknown(connection);
        if let Some(ends) = link.ends()
            && let Some(peer) = self.peers.get_mut(&ends.peer)
            && peer.current == Some(connection)
        {
            peer.current = None;
        }
    }

    pub(super) fn close_unknown(&mut self, connection: ConnectionId) {
        self.closing.insert(connection);
        self.outputs.requests.push_back(Request::Close(connection));
    }

    pub(super) fn on_closed(&mut self, connection: ConnectionId) {
        self.closing.remove(&connection);
    }

    /// Tells the other side why there will be no link, and then closes.
    pub(super) fn refuse(&mut self, connection: ConnectionId, refusal: Refusal) {
        let until = self.now.plus_millis(self.limits.handshake_ms);
        let Some(link) = self.links.get_mut(&connection) else { return };
        let origin = link.origin;
        link.phase = Phase::Refusing { until };
        link.outbound.finish(handshake::refused(refusal));
        if refusal == Refusal::Own {
            self.forget_self(origin);
        }
        self.origin_failed(origin);
        self.settle(connection);
    }

    pub(super) fn origin_failed(&mut self, origin: Origin) {
        if let Origin::Dialed(target) = origin {
            self.dial_failed(target);
        }
    }

    /// A connection has ended, or cannot be used any more.
    pub(super) fn lose(&mut self, connection: ConnectionId) {
        self.recount(connection);
        let Some(link) = self.links.get(&connection) else { return };
        let origin = link.origin;
        match &link.phase {
            Phase::Handshake(_) => {
                self.close(connection);
                self.origin_failed(origin);
            }
            Phase::Refusing { .. } => self.close(connection),
            Phase::Parting { ends, .. } => {
                let node = ends.peer;
                let is_in_order = link.has_heard_bye && link.outbound.is_empty();
                self.counters.unsent_broken += link.outbound.waiting_count() as u64;
                self.close(connection);
                if is_in_order {
                    self.counters.closed += 1;
                } else {
                    self.counters.broken += 1;
                    self.lost(node);
                }
            }
            Phase::Up(ends) => {
                let (node, since) = (ends.peer, ends.since);
                self.counters.broken += 1;
                self.counters.unsent_broken += link.outbound.waiting_count() as u64;
                self.close(connection);
                let is_short_lived = self.now < since.plus_millis(self.limits.beat_every_ms);
                if let Some(peer) = self.peers.get_mut(&node) {
                    if is_short_lived {
                        peer.backoff.failed(self.now, &self.limits, &mut self.rng);
                    } else {
                        peer.backoff.succeeded();
                    }
                }
                self.lost(node);
            }
        }
    }

    /// Messages to or from a node may be lost with a link.
    fn lost(&mut self, node: NodeId) {
        if self.use_another(node) {
            self.unsent(node);
            return;
        }
        let (now, is_draining) = (self.now, self.is_draining);
        let Some(peer) = self.peers.get_mut(&node) else { return };
        if !is_draining && peer.dial.is_none() && peer.address.is_some() {
            // Both sides have seen it; who comes first makes the next one.
            let pause_ms = self.rng.u64(0..=self.limits.backoff_min_ms);
            peer.wanted = Wanted::again();
            let at = now.plus_millis(pause_ms).max(peer.backoff.until());
            self.timers.add(at, Timer::Node(node));
        }
        self.tell_down(node);
    }

    pub(super) fn tell_down(&mut self, node: NodeId) {
        if let Some(peer) = self.peers.get_mut(&node)
            && std::mem::take(&mut peer.is_told_up)
        {
            self.event(LinkEvent::Down { node });
        }
    }

    /// All connections with a node, whatever became of them.
    pub(super) fn links_to(&self, node: &NodeId) -> Vec<ConnectionId> {
        let is_its = |link: &Link| link.ends().is_some_and(|ends| ends.peer == *node);
        self.links.iter().filter(|(_, link)| is_its(link)).map(|(id, _)| *id).collect()
    }

    /// Whether a node has a link, perhaps one that was not used so far.
    fn use_another(&mut self, node: NodeId) -> bool {
        if self.peers.get(&node).is_some_and(|peer| peer.current.is_some()) {
            return true;
        }
        let is_up = |id: &ConnectionId| {
            self.links.get(id).is_some_and(|link| matches!(link.phase, Phase::Up(_)))
        };
        let Some(other) = self.links_to(&node).into_iter().find(is_up) else { return false };
        self.adopt(other, node);
        true
    }

    /// Ends a link in order. What is not begun on it goes over another one; at the end of the node,
    /// everything that waits still goes over this one.
    pub(super) fn part(&mut self, connection: ConnectionId, reason: ByeReason) {
        let until = self.now.plus_millis(self.limits.drain_ms);
        let Some(link) = self.links.get_mut(&connection) else { return };
        let Phase::Up(ends) = link.phase else { return };
        let node = ends.peer;
        link.phase = Phase::Parting { ends, until };
        link.has_said_bye = true;
        let bye = ControlFrame::Bye { reason }.encode();
        let rest = match reason {
            ByeReason::Stopping => {
                link.outbound.finish_all(bye);
                Vec::new()
            }
            ByeReason::Unneeded => link.outbound.finish(bye),
        };
        self.settle(connection);
        let Some(peer) = self.peers.get_mut(&node) else { return };
        if peer.current == Some(connection) {
            peer.current = None;
        }
        for message in rest {
            self.totals.waiting_bytes += message.bytes();
            peer.queue_bytes += message.bytes();
            peer.queue.push_back(message);
        }
        let has_rest = !peer.queue.is_empty();
        let current = peer.current;
        if let Some(current) = current {
            self.adopt(current, node);
        } else if !self.use_another(node) && has_rest && !self.dial_node_if_due(node) {
            self.drop_queue(&node);
            self.unsent(node);
        }
    }

    pub(super) fn on_bye(&mut self, connection: ConnectionId, reason: ByeReason) {
        let Some(link) = self.links.get_mut(&connection) else { return };
        link.has_heard_bye = true;
        let node = link.ends().map(|ends| ends.peer);
        if reason == ByeReason::Stopping
            && let Some(node) = node
        {
            // What waits would be answered by nobody.
            let dropped = link.outbound.take_waiting();
            self.counters.unsent_broken += dropped.len() as u64;
            self.part(connection, ByeReason::Unneeded);
            if !self.use_another(node) {
                self.tell_down(node);
            }
        } else {
            self.part(connection, ByeReason::Unneeded);
        }
        self.settle(connection);
    }

    pub(super) fn begin_drain(&mut self) {
        if self.is_draining {
            return;
        }
        self.is_draining = true;
        self.seeds.clear();
        let nodes: Vec<NodeId> = self.peers.keys().copied().collect();
        for node in nodes {
            self.drop_queue(&node);
            if let Some(peer) = self.peers.get_mut(&node) {
                (peer.wanted, peer.dial) = (Wanted::No, None);
            }
        }
        let attempts: Vec<_> = self.attempts.keys().copied().collect();
        attempts.into_iter().for_each(|attempt| self.cancel(attempt));
        let links: Vec<ConnectionId> = self.links.keys().copied().collect();
        for connection in links {
            match self.links.get(&connection).map(|link| &link.phase) {
                Some(Phase::Handshake(_)) => self.close(connection),
                Some(Phase::Up(_)) => self.part(connection, ByeReason::Stopping),
                _ => {}
            }
        }
        self.timers.add(self.now.plus_millis(self.limits.drain_ms), Timer::Drain);
    }

    pub(super) fn close_all(&mut self) {
        let links: Vec<ConnectionId> = self.links.keys().copied().collect();
        for connection in links {
            if let Some(link) = self.links.get(&connection) {
                self.counters.unsent_broken += link.outbound.waiting_count() as u64;
            }
            self.close(connection);
        }
    }
}
