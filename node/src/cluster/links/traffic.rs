//! What comes and goes on links: connections of strangers, bytes, frames, and links that come up.

use std::io;
use std::net::SocketAddr;

use bytes::Bytes;

use super::admission::NotAdmitted;
use super::dialing::value_len;
use super::handshake::{Handshake, HandshakeError, Role};
use super::link::{Ends, Link, Origin, Phase, Target};
use super::peers::{Dial, Wanted};
use super::{LinkEvent, PeerLinks};
use crate::cluster::message::codec::{Incoming, MessageError};
use crate::cluster::message::control::{ByeReason, ControlFrame, Hello, Refusal};
use crate::io::{ConnectionId, ReceiveBuffer, Request};
use crate::kademlia::NodeId;

/// Two links of a pair that came up within so long were made at the same moment.
const SIMULTANEOUS_MS: u64 = 5_000;

impl PeerLinks {
    pub(super) fn on_accepted(&mut self, connection: ConnectionId, remote: SocketAddr) {
        self.counters.accepted += 1;
        let is_taken = if self.is_draining || self.is_full() {
            Err(NotAdmitted::Full)
        } else {
            self.admission.admit(self.now, remote.ip(), &self.limits)
        };
        if let Err(reason) = is_taken {
            match reason {
                NotAdmitted::Full => self.counters.refused_full += 1,
                NotAdmitted::Source => self.counters.refused_source += 1,
            }
            if !self.is_draining && self.admission.is_news(remote.ip(), "not admitted") {
                tracing::warn!(%remote, ?reason, "a connection of a peer is not taken");
            }
            self.close_unknown(connection);
            return;
        }
        let (handshake, _) = Handshake::new(Role::Responder, self.identity.hello());
        let link = Link::new(self.now, Origin::Accepted, remote, handshake, &self.limits);
        self.links.insert(connection, link);
        self.receive(connection);
        self.settle(connection);
    }

    pub(super) fn receive(&mut self, connection: ConnectionId) {
        let may_receive = self.may_receive(connection);
        let Some(link) = self.links.get_mut(&connection) else { return };
        if link.is_receiving || matches!(link.phase, Phase::Refusing { .. }) {
            return;
        }
        if !may_receive {
            self.outputs.paused.insert(connection);
            return;
        }
        link.is_receiving = true;
        self.outputs.requests.push_back(Request::Receive(connection));
    }

    /// Above the budget of unfinished values one link goes on, so that its values end.
    fn may_receive(&self, connection: ConnectionId) -> bool {
        let is_much = self.outputs.events_bytes > self.limits.receive_bytes_max;
        if is_much || self.outputs.events.len() >= self.limits.events_max {
            return false;
        }
        if self.totals.held_bytes <= self.limits.receive_bytes_max {
            return true;
        }
        let first = self.links.iter().find(|(_, link)| link.held_bytes > 0);
        first.is_some_and(|(first, _)| *first == connection)
    }

    /// Lets links receive again, if what had paused them is over.
    pub(super) fn resume(&mut self) {
        if self.outputs.paused.is_empty() {
            return;
        }
        let paused = std::mem::take(&mut self.outputs.paused);
        for connection in paused {
            if let Some(link) = self.links.get_mut(&connection) {
                // That nothing came was our doing.
                link.pulse.heard_at = self.now;
            }
            self.receive(connection);
            self.set_timer(connection);
        }
    }

    pub(super) fn on_received(
        &mut self,
        connection: ConnectionId,
        result: io::Result<ReceiveBuffer>,
    ) -> Option<ReceiveBuffer> {
        let Some(link) = self.links.get_mut(&connection) else { return result.ok() };
        link.is_receiving = false;
        let Ok(buffer) = result else {
            self.lose(connection);
            return None;
        };
        if buffer.is_empty() {
            self.lose(connection);
            return Some(buffer);
        }
        link.pulse.heard_at = self.now;
        self.counters.bytes_received += buffer.len() as u64;
        let mut input = &buffer[..];
        while let Some(link) = self.links.get_mut(&connection) {
            if matches!(link.phase, Phase::Refusing { .. }) {
                break;
            }
            match link.reader.read(&mut input) {
                Ok(None) => break,
                Ok(Some(Incoming::Message(message))) => self.on_message(connection, message),
                Ok(Some(Incoming::Control(frame))) => self.on_control(connection, frame),
                Err(error) => {
                    self.on_garbage(connection, error);
                    break;
                }
            }
        }
        self.settle(connection);
        self.receive(connection);
        Some(buffer)
    }

    fn on_message(&mut self, connection: ConnectionId, message: super::PeerMessage) {
        let now = self.now;
        let Some(link) = self.links.get_mut(&connection) else { return };
        let Some(from) = link.ends().map(|ends| ends.peer) else { return };
        link.pulse.used_at = now;
        self.counters.messages_received += 1;
        self.outputs.events_bytes += value_len(&message);
        self.event(LinkEvent::Message { from, message });
    }

    fn on_control(&mut self, connection: ConnectionId, frame: ControlFrame) {
        let now = self.now;
        let Some(link) = self.links.get_mut(&connection) else { return };
        if let Phase::Handshake(handshake) = &mut link.phase {
            let key = self.identity.key.as_ref();
            match handshake.handle_frame(frame, key) {
                Ok((answer, peer)) => {
                    if let Some(answer) = answer {
                        let _fits = link.outbound.push_control(&answer);
                    }
                    if let Some(peer) = peer {
                        self.on_up(connection, &peer);
                    }
                }
                Err(error) => self.on_handshake_error(connection, error),
            }
            return;
        }
        match frame {
            ControlFrame::Beat { number, is_answer } => {
                if !link.on_beat(now, number, is_answer) {
                    self.counters.bad_messages += 1;
                    self.lose(connection);
                }
            }
            ControlFrame::Bye { reason } => self.on_bye(connection, reason),
            ControlFrame::Refused { refusal, version } => {
                self.on_refused(connection, refusal, version);
                self.lose(connection);
            }
            // The reader lets no other frames of a handshake through.
            ControlFrame::Hello(_)
            | ControlFrame::OtherHello { .. }
            | ControlFrame::Auth { .. } => self.lose(connection),
        }
    }

    /// The handshake is over, and it is known who is there.
    fn on_up(&mut self, connection: ConnectionId, hello: &Hello) {
        let now = self.now;
        let Some(link) = self.links.get_mut(&connection) else { return };
        let Phase::Handshake(handshake) = &link.phase else { return };
        let Some(address) = reachable(&hello.address, link.remote) else {
            self.counters.refused_garbage += 1;
            self.lose(connection);
            return;
        };
        let (role, nonce) = (handshake.role(), handshake.initiator_nonce(hello));
        let ends = Ends { peer: hello.node, boot: hello.boot, role, nonce, since: now };
        let origin = link.origin;
        link.phase = Phase::Up(ends);
        link.address = address;
        link.reader.open();
        link.begin_pulse(now, &self.limits);
        self.counters.up += 1;
        self.stranger_left(connection);
        if self.peer(hello.node).is_none() {
            // There is no room to remember it.
            self.counters.refused_full += 1;
            self.close(connection);
            self.origin_failed(origin);
            return;
        }
        match origin {
            Origin::Dialed(Target::Node(node)) if node == hello.node => {
                if let Some(peer) = self.peers.get_mut(&node) {
                    peer.dial = None;
                }
            }
            Origin::Dialed(Target::Node(node)) => {
                tracing::warn!(expected = %node, found = %hello.node, %address, "another node");
                if let Some(peer) = self.peers.get_mut(&node) {
                    peer.wanted = Wanted::No;
                }
                self.dial_failed(Target::Node(node));
            }
            Origin::Dialed(Target::Seed(address)) => {
                self.seeds.remove(&address);
            }
            Origin::Accepted => {}
        }
        self.choose(connection, ends);
    }

    /// Decides which link to a node is used from now on.
    fn choose(&mut self, connection: ConnectionId, ends: Ends) {
        let node = ends.peer;
        let old = self.peers.get(&node).and_then(|peer| peer.current);
        let old = old.and_then(|old| Some((old, *self.links.get(&old)?.ends()?)));
        match old {
            None => self.adopt(connection, node),
            Some((old, old_ends)) if old_ends.boot != ends.boot => {
                // The process at the other end of the old one is gone.
                self.counters.broken += 1;
                self.close(old);
                self.tell_down(node);
                self.adopt(connection, node);
            }
            Some((old, old_ends)) => {
                if self.prefers(&ends, &old_ends) {
                    self.adopt(connection, node);
                    self.part(old, ByeReason::Unneeded);
                } else {
                    self.part(connection, ByeReason::Unneeded);
                }
            }
        }
    }

    /// Whether the new link is kept. Both ends come to the same answer: of links made at the same
    /// moment, that of the node with the lower id; otherwise the newer one, since nobody makes one
    /// who knows of another.
    fn prefers(&self, new: &Ends, old: &Ends) -> bool {
        if self.now >= old.since.plus_millis(SIMULTANEOUS_MS) {
            return true;
        }
        if new.role == old.role {
            return new.nonce > old.nonce;
        }
        let is_lower = self.identity.node < new.peer;
        is_lower == (new.role == Role::Initiator)
    }

    /// Uses a link for everything from now on.
    pub(super) fn adopt(&mut self, connection: ConnectionId, node: NodeId) {
        let (Some(link), Some(peer)) = (self.links.get_mut(&connection), self.peers.get_mut(&node))
        else {
            return;
        };
        peer.current = Some(connection);
        peer.address = Some(link.address);
        peer.wanted = Wanted::No;
        let address = link.address;
        self.totals.waiting_bytes -= std::mem::take(&mut peer.queue_bytes);
        std::mem::take(&mut peer.queue).into_iter().for_each(|message| link.outbound.push(message));
        let dial = peer.dial;
        let is_news = !std::mem::replace(&mut peer.is_told_up, true);
        if let Some(Dial::Attempt(attempt)) = dial {
            peer.dial = None;
            self.cancel(attempt);
        }
        if is_news {
            self.event(LinkEvent::Up { node, address });
        }
        self.settle(connection);
    }

    fn on_handshake_error(&mut self, connection: ConnectionId, error: HandshakeError) {
        let Some(link) = self.links.get(&connection) else { return };
        let remote = link.remote;
        match error {
            HandshakeError::Refused(refusal) => {
                self.count_refusal(refusal);
                self.log_refusal(remote, refusal, None);
                self.refuse(connection, refusal);
            }
            HandshakeError::OtherVersion(version) => {
                self.count_refusal(Refusal::Version);
                self.log_refusal(remote, Refusal::Version, Some(version));
                self.refuse(connection, Refusal::Version);
            }
            HandshakeError::RefusedBy(refusal, version) => {
                self.on_refused(connection, refusal, version);
                self.lose(connection);
            }
            HandshakeError::Order => {
                self.counters.refused_garbage += 1;
                self.lose(connection);
            }
        }
    }

    fn on_refused(&mut self, connection: ConnectionId, refusal: Refusal, version: u32) {
        self.counters.refused_by_peer += 1;
        let Some(link) = self.links.get(&connection) else { return };
        let (remote, origin) = (link.remote, link.origin);
        if refusal == Refusal::Own {
            self.forget_self(origin);
        } else if self.admission.is_news(remote.ip(), refusal_name(refusal, true)) {
            let reason = refusal_name(refusal, true);
            tracing::warn!(%remote, reason, version, "a peer refuses this node");
        }
    }

    fn log_refusal(&mut self, remote: SocketAddr, refusal: Refusal, version: Option<u32>) {
        if refusal != Refusal::Own
            && self.admission.is_news(remote.ip(), refusal_name(refusal, false))
        {
            tracing::warn!(%remote, %refusal, version, "a peer is refused");
        }
    }

    fn count_refusal(&mut self, refusal: Refusal) {
        let counter = match refusal {
            Refusal::Version => &mut self.counters.refused_version,
            Refusal::Cluster => &mut self.counters.refused_cluster,
            Refusal::Own => &mut self.counters.refused_own,
            Refusal::Secret => &mut self.counters.refused_secret,
            Refusal::Proof => &mut self.counters.refused_proof,
            Refusal::Busy => &mut self.counters.refused_full,
        };
        *counter += 1;
    }

    /// A seed is this node itself: it is not asked again.
    pub(super) fn forget_self(&mut self, origin: Origin) {
        if let Origin::Dialed(Target::Seed(address)) = origin {
            self.seeds.remove(&address);
        }
    }

    fn on_garbage(&mut self, connection: ConnectionId, error: MessageError) {
        let Some(link) = self.links.get(&connection) else { return };
        let remote = link.remote;
        if matches!(link.phase, Phase::Handshake(_)) {
            self.counters.refused_garbage += 1;
        } else {
            self.counters.bad_messages += 1;
        }
        if self.admission.is_news(remote.ip(), "garbage") {
            tracing::warn!(%remote, %error, "a peer does not speak the protocol");
        }
        self.lose(connection);
    }

    /// What the driver is to send next on a link.
    pub(super) fn begin_send(&mut self, connection: ConnectionId) -> Option<Vec<Bytes>> {
        let link = self.links.get_mut(&connection)?;
        let batch = link.outbound.next_batch()?;
        link.sending = Some((batch.bytes, self.now));
        self.counters.messages_sent += batch.finished as u64;
        self.counters.bytes_sent += batch.bytes as u64;
        self.set_timer(connection);
        Some(batch.parts)
    }

    pub(super) fn on_sent(&mut self, connection: ConnectionId, result: &io::Result<()>) {
        let Some(link) = self.links.get_mut(&connection) else { return };
        link.sending = None;
        if result.is_err() {
            self.lose(connection);
        } else {
            self.settle(connection);
        }
    }
}

/// Names a refusal in the log, once for each direction.
fn refusal_name(refusal: Refusal, is_theirs: bool) -> &'static str {
    match (refusal, is_theirs) {
        (Refusal::Version, true) => "it speaks another protocol version",
        (Refusal::Cluster, true) => "it is of another cluster",
        (Refusal::Own, true) => "it has our id",
        (Refusal::Secret, true) => "only one of us has a cluster secret",
        (Refusal::Proof, true) => "it does not know our cluster secret",
        (Refusal::Busy, true) => "it takes no further links",
        (Refusal::Version, false) => "version",
        (Refusal::Cluster, false) => "cluster",
        (Refusal::Own, false) => "own",
        (Refusal::Secret, false) => "secret",
        (Refusal::Proof, false) => "proof",
        (Refusal::Busy, false) => "busy",
    }
}

/// Where a node can be reached that says so of itself: at the address that it has connected from,
/// where it names none but a port.
fn reachable(text: &[u8], remote: SocketAddr) -> Option<SocketAddr> {
    let address: SocketAddr = std::str::from_utf8(text).ok()?.parse().ok()?;
    let ip = if address.ip().is_unspecified() { remote.ip() } else { address.ip() };
    (address.port() != 0).then(|| SocketAddr::new(ip, address.port()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_completed_and_checked() {
        let remote = SocketAddr::from(([10, 0, 0, 7], 50_000));
        for (text, expected) in [
            ("10.1.2.3:7400", Some("10.1.2.3:7400")),
            ("0.0.0.0:7400", Some("10.0.0.7:7400")),
            ("[::]:7400", Some("10.0.0.7:7400")),
            ("[fd00::1]:7400", Some("[fd00::1]:7400")),
            ("10.1.2.3:0", None),
            ("10.1.2.3", None),
            ("", None),
        ] {
            let found = reachable(text.as_bytes(), remote).map(|address| address.to_string());
            assert_eq!(found.as_deref(), expected, "{text}");
        }
        assert_eq!(reachable(b"\xff:7400", remote), None);
    }
}
