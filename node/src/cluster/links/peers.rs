//! [`Peer`]: what is known of another node, whether there is a link to it or not; [`Backoff`]: when
//! it may be tried again.

use std::collections::VecDeque;
use std::net::SocketAddr;

use fastrand::Rng;

use super::limits::LinkLimits;
use super::outbound::Encoded;
use crate::io::{AttemptId, ConnectionId, Monotonic};

/// Attempts after a link that broke; then only when there is something to send.
const RECONNECTS_MAX: u32 = 8;
/// Doublings after which a pause does not grow any more.
const DOUBLINGS_MAX: u32 = 16;

/// Pauses between attempts: each twice as long as the last one, less a random part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Backoff {
    failures: u32,
    until: Monotonic,
}

impl Backoff {
    pub(super) fn is_over(&self, now: Monotonic) -> bool {
        self.until <= now
    }

    pub(super) fn until(&self) -> Monotonic {
        self.until
    }

    pub(super) fn failed(&mut self, now: Monotonic, limits: &LinkLimits, rng: &mut Rng) {
        let doubled = limits.backoff_min_ms.saturating_mul(1 << self.failures.min(DOUBLINGS_MAX));
        let pause_ms = doubled.min(limits.backoff_max_ms).max(1);
        // Nodes that lost each other at the same moment do not meet again at the same moment.
        self.until = now.plus_millis(rng.u64(pause_ms.div_ceil(2)..=pause_ms));
        self.failures = self.failures.saturating_add(1);
    }

    pub(super) fn succeeded(&mut self) {
        *self = Self::default();
    }
}

/// Whether a link is to be made though nothing waits for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    No,
    /// So many attempts more.
    Tries(u32),
    UntilUp,
}

impl Wanted {
    /// After a link that broke.
    pub(super) fn again() -> Self {
        Self::Tries(RECONNECTS_MAX)
    }

    /// After a failed attempt.
    pub(super) fn less(self) -> Self {
        match self {
            Self::No | Self::Tries(0 | 1) => Self::No,
            Self::Tries(left) => Self::Tries(left - 1),
            Self::UntilUp => Self::UntilUp,
        }
    }
}

/// A link in the making.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dial {
    /// It is connecting.
    Attempt(AttemptId),
    /// It is connected, and its handshake is under way.
    Handshake(ConnectionId),
}

/// Another node.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) address: Option<SocketAddr>,
    /// The link that messages go over.
    pub(super) current: Option<ConnectionId>,
    pub(super) dial: Option<Dial>,
    pub(super) backoff: Backoff,
    pub(super) wanted: Wanted,
    /// Messages that wait for a link.
    pub(super) queue: VecDeque<Encoded>,
    pub(super) queue_bytes: usize,
    /// Whether the owner was told that there is a link, and not since that there is none.
    pub(super) is_told_up: bool,
}

impl Peer {
    pub(super) fn new(address: Option<SocketAddr>) -> Self {
        Self {
            address,
            current: None,
            dial: None,
            backoff: Backoff::default(),
            wanted: Wanted::No,
            queue: VecDeque::new(),
            queue_bytes: 0,
            is_told_up: false,
        }
    }

    /// Whether nothing is lost with it but an address.
    pub(super) fn is_idle(&self) -> bool {
        self.current.is_none()
            && self.dial.is_none()
            && self.queue.is_empty()
            && self.wanted == Wanted::No
            && !self.is_told_up
    }
}

/// An address of which it is not known who is there.
#[derive(Debug, Default)]
pub(super) struct Seed {
    pub(super) dial: Option<Dial>,
    pub(super) backoff: Backoff,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_up_to_their_limit_and_end_with_success() {
        let limits = LinkLimits::default();
        let mut rng = Rng::with_seed(1);
        let mut backoff = Backoff::default();
        let now = Monotonic(5);
        assert!(backoff.is_over(now));
        for pause_ms in [100, 200, 400, 800, 1_600, 3_200, 5_000, 5_000, 5_000] {
            backoff.failed(now, &limits, &mut rng);
            let until = backoff.until();
            assert!(until >= now.plus_millis(pause_ms / 2), "{pause_ms}: {until:?}");
            assert!(until <= now.plus_millis(pause_ms), "{pause_ms}: {until:?}");
            assert!(!backoff.is_over(now));
            assert!(backoff.is_over(until));
        }
        for _ in 0..100 {
            backoff.failed(now, &limits, &mut rng);
        }
        assert!(backoff.until() <= now.plus_millis(5_000));
        backoff.succeeded();
        assert!(backoff.is_over(now));
    }

    #[test]
    fn a_broken_link_is_tried_again_a_few_times() {
        let tries = std::iter::successors(Some(Wanted::again()), |wanted| {
            (*wanted != Wanted::No).then(|| wanted.less())
        });
        assert_eq!(tries.count(), 1 + RECONNECTS_MAX as usize);
        assert_eq!(Wanted::UntilUp.less(), Wanted::UntilUp);
    }
}
