//! Time for links: beats, deadlines of handshakes and closings, attempts that are due.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use super::PeerLinks;
use super::handshake::Role;
use super::link::Phase;
use super::peers::Wanted;
use crate::cluster::message::control::ByeReason;
use crate::io::{ConnectionId, Monotonic};
use crate::kademlia::NodeId;

/// What there is to look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Timer {
    Link(ConnectionId),
    Node(NodeId),
    Seed(SocketAddr),
    Drain,
}

/// When to look at what.
#[derive(Debug, Default)]
pub(super) struct Timers(BTreeSet<(Monotonic, Timer)>);

impl Timers {
    pub(super) fn next(&self) -> Option<Monotonic> {
        self.0.first().map(|(at, _)| *at)
    }

    pub(super) fn add(&mut self, at: Monotonic, timer: Timer) {
        self.0.insert((at, timer));
    }

    pub(super) fn remove(&mut self, at: Monotonic, timer: Timer) {
        self.0.remove(&(at, timer));
    }

    fn take_due(&mut self, now: Monotonic) -> Option<Timer> {
        let (at, _) = self.0.first()?;
        if *at > now {
            return None;
        }
        self.0.pop_first().map(|(_, timer)| timer)
    }
}

impl PeerLinks {
    pub(super) fn run_timers(&mut self) {
        while let Some(timer) = self.timers.take_due(self.now) {
            match timer {
                Timer::Link(connection) => {
                    if let Some(link) = self.links.get_mut(&connection) {
                        link.timer = None;
                        self.on_link_time(connection);
                        self.settle(connection);
                    }
                }
                Timer::Node(node) => {
                    let is_wanted = |peer: &super::Peer| peer.wanted != Wanted::No;
                    if self.peers.get(&node).is_some_and(is_wanted) {
                        self.dial_node_if_due(node);
                    }
                }
                Timer::Seed(address) => self.dial_seed_if_due(address),
                Timer::Drain => self.close_all(),
            }
        }
    }

    fn on_link_time(&mut self, connection: ConnectionId) {
        let (now, limits) = (self.now, self.limits);
        let is_paused = self.outputs.paused.contains(&connection);
        let Some(link) = self.links.get_mut(&connection) else { return };
        let is_stalled =
            link.sending.is_some_and(|(_, since)| since.plus_millis(limits.silent_ms) <= now);
        let is_over = match &link.phase {
            Phase::Handshake(_) => link.began_at.plus_millis(limits.handshake_ms) <= now,
            Phase::Parting { until, .. } | Phase::Refusing { until } => *until <= now,
            Phase::Up(_) => !is_paused && link.pulse.heard_at.plus_millis(limits.silent_ms) <= now,
        };
        if is_over || is_stalled {
            match &link.phase {
                Phase::Handshake(_) => self.counters.refused_late += 1,
                Phase::Up(_) => self.counters.silent += 1,
                Phase::Parting { .. } | Phase::Refusing { .. } => {}
            }
            self.lose(connection);
            return;
        }
        let Phase::Up(ends) = &link.phase else { return };
        if ends.role == Role::Initiator && link.idle_at(&limits) <= now {
            if link.is_flushed() {
                self.part(connection, ByeReason::Unneeded);
                return;
            }
            link.pulse.used_at = now;
        }
        if link.pulse.next_at <= now && !link.beat(now, &limits) {
            self.counters.bad_messages += 1;
            self.lose(connection);
        }
    }

    /// Sets the link's timer as early as it has to be. One that is too early does no harm.
    pub(super) fn set_timer(&mut self, connection: ConnectionId) {
        let is_paused = self.outputs.paused.contains(&connection);
        let Some(link) = self.links.get_mut(&connection) else { return };
        let Some(at) = link.deadline(&self.limits, is_paused) else { return };
        if link.timer.is_some_and(|timer| timer <= at) {
            return;
        }
        if let Some(timer) = link.timer.replace(at) {
            self.timers.remove(timer, Timer::Link(connection));
        }
        self.timers.add(at, Timer::Link(connection));
    }
}
