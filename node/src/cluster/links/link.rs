//! [`Link`]: one connection, from its handshake to its end.
//!
//! ```text
//! Handshake ──> Up ──> Parting (BYE said, or to be said) ──┐
//!     │          └──────────── broken ─────────────────────┤
//!     └──> Refusing (the reason goes out) ─────────────────┴──> closed
//! ```

use std::net::{IpAddr, SocketAddr};

use super::handshake::{Handshake, Role};
use super::limits::LinkLimits;
use super::outbound::Outbound;
use crate::cluster::message::codec::MessageReader;
use crate::cluster::message::control::{ControlFrame, NONCE_LEN};
use crate::io::Monotonic;
use crate::kademlia::NodeId;

/// Whom a connection was made to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Target {
    Node(NodeId),
    Seed(SocketAddr),
}

/// How a link came to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// A stranger has connected.
    Accepted,
    /// We have.
    Dialed(Target),
}

/// What is known of the other end of a link that is up.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ends {
    pub(super) peer: NodeId,
    pub(super) boot: u64,
    pub(super) role: Role,
    /// Of who has connected: it names the link among those of a pair.
    pub(super) nonce: [u8; NONCE_LEN],
    pub(super) since: Monotonic,
}

#[derive(Debug)]
pub(super) enum Phase {
    Handshake(Box<Handshake>),
    Up(Ends),
    /// The link is not used any more; it is closed when both sides have said so.
    Parting {
        ends: Ends,
        /// When it is closed all the same.
        until: Monotonic,
    },
    /// The reason for a refusal is on its way.
    Refusing {
        until: Monotonic,
    },
}

/// Whether the other side is still there.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Pulse {
    pub(super) heard_at: Monotonic,
    pub(super) used_at: Monotonic,
    /// The latest question, while it is not answered.
    pub(super) asked_at: Option<Monotonic>,
    pub(super) next_at: Monotonic,
    pub(super) number: u64,
    pub(super) rtt_ns: Option<u64>,
}

/// One connection.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) origin: Origin,
    /// The other end of the connection.
    pub(super) remote: SocketAddr,
    /// Where the other node says that it can be reached.
    pub(super) address: SocketAddr,
    pub(super) phase: Phase,
    pub(super) reader: MessageReader,
    pub(super) outbound: Outbound,
    pub(super) pulse: Pulse,
    pub(super) began_at: Monotonic,
    /// Whether it counts as a stranger's.
    pub(super) is_stranger: bool,
    pub(super) is_receiving: bool,
    /// Bytes that the driver has, and since when.
    pub(super) sending: Option<(usize, Monotonic)>,
    pub(super) has_said_bye: bool,
    pub(super) has_heard_bye: bool,
    /// The entry of the link among the timers.
    pub(super) timer: Option<Monotonic>,
    /// What counts against the limit of all links.
    pub(super) held_bytes: usize,
    pub(super) waiting_bytes: usize,
}

impl Link {
    pub(super) fn new(
        now: Monotonic,
        origin: Origin,
        remote: SocketAddr,
        handshake: Handshake,
        limits: &LinkLimits,
    ) -> Self {
        Self {
            origin,
            remote,
            address: remote,
            phase: Phase::Handshake(Box::new(handshake)),
            reader: MessageReader::new(limits.value_bytes_max),
            outbound: Outbound::new(limits.value_bytes_max),
            pulse: Pulse::default(),
            began_at: now,
            is_stranger: origin == Origin::Accepted,
            is_receiving: false,
            sending: None,
            has_said_bye: false,
            has_heard_bye: false,
            timer: None,
            held_bytes: 0,
            waiting_bytes: 0,
        }
    }

    pub(super) fn source(&self) -> IpAddr {
        self.remote.ip()
    }

    /// Who is at the other end of a link over which messages come.
    pub(super) fn ends(&self) -> Option<&Ends> {
        match &self.phase {
            Phase::Up(ends) | Phase::Parting { ends, .. } => Some(ends),
            _ => None,
        }
    }

    /// Whether all that was to be sent has left.
    pub(super) fn is_flushed(&self) -> bool {
        self.sending.is_none() && self.outbound.is_empty()
    }

    /// Whether anything is to be handed to the driver.
    pub(super) fn can_send(&self) -> bool {
        self.sending.is_none() && !self.outbound.is_empty()
    }

    /// The link is up, or something was done that shows that it is in use.
    pub(super) fn begin_pulse(&mut self, now: Monotonic, limits: &LinkLimits) {
        let next_at = now.plus_millis(limits.beat_every_ms);
        self.pulse = Pulse { heard_at: now, used_at: now, next_at, ..Pulse::default() };
    }

    /// What counts against the budgets of all links: bytes to be sent, and of unfinished values.
    pub(super) fn budgets(&self) -> (usize, usize) {
        let sending = self.sending.map_or(0, |(bytes, _)| bytes);
        (self.outbound.waiting_bytes() + sending, self.reader.held_bytes())
    }

    /// When something is to be looked at.
    pub(super) fn deadline(&self, limits: &LinkLimits, is_paused: bool) -> Option<Monotonic> {
        let stalled = self.sending.map(|(_, since)| since.plus_millis(limits.silent_ms));
        let silent = self.pulse.heard_at.plus_millis(limits.silent_ms);
        let silent = (!is_paused).then_some(silent);
        let own = match &self.phase {
            Phase::Handshake(_) => Some(self.began_at.plus_millis(limits.handshake_ms)),
            Phase::Up(ends) => {
                // Who has connected closes a link that nobody uses.
                let idle = (ends.role == Role::Initiator).then(|| self.idle_at(limits));
                [idle, silent, Some(self.pulse.next_at)].into_iter().flatten().min()
            }
            Phase::Parting { until, .. } | Phase::Refusing { until } => Some(*until),
        };
        [own, stalled].into_iter().flatten().min()
    }

    /// When nobody has used the link for long enough.
    pub(super) fn idle_at(&self, limits: &LinkLimits) -> Monotonic {
        self.pulse.used_at.plus_millis(limits.idle_ms)
    }

    /// Asks whether the other side is still there, unless that was asked already.
    #[must_use]
    pub(super) fn beat(&mut self, now: Monotonic, limits: &LinkLimits) -> bool {
        self.pulse.next_at = now.plus_millis(limits.beat_every_ms);
        if self.pulse.asked_at.is_some() {
            return true;
        }
        self.pulse.number += 1;
        self.pulse.asked_at = Some(now);
        let beat = ControlFrame::Beat { number: self.pulse.number, is_answer: false };
        self.outbound.push_control(&beat)
    }

    /// Takes a question, or an answer to ours. False: there are more questions than answers fit.
    #[must_use]
    pub(super) fn on_beat(&mut self, now: Monotonic, number: u64, is_answer: bool) -> bool {
        if is_answer {
            if number == self.pulse.number
                && let Some(asked_at) = self.pulse.asked_at.take()
            {
                self.pulse.rtt_ns = Some(now.0.saturating_sub(asked_at.0));
            }
            return true;
        }
        // After its last frame a link is silent.
        self.has_said_bye
            || self.outbound.push_control(&ControlFrame::Beat { number, is_answer: true })
    }
}
