//! [`Transactions`]: the queries under way, by transaction id and address.
//!
//! An answer counts only with the id of a query of ours and from the address it went to. A query
//! without answer is *slow* first, which is told once, and sent again with the same id, since
//! datagrams get lost; then it has *failed*.
//!
//! ```text
//! start ──> sent ── slow_after ──> slow, resent ── as long again ──> resent ── 4 x ──> failed
//!             │                      │                                 │
//!             └──────────────────────┴──────── on_reply ───────────────┘
//! ```
//!
//! The time of an answer is counted from the first sending, so that a peer whose answers cross our
//! resends is taken for slower than it is, never for faster.

pub mod rtt;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use fastrand::Rng;

use crate::io::Monotonic;

use rtt::RttEstimates;

/// A query is sent at most so many times more.
pub const RESENDS_MAX: u8 = 2;

/// Sizes of [`Transactions`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TransactionLimits {
    /// Queries under way.
    pub outstanding_max: usize,
    /// Peers whose round-trip times are remembered.
    pub peers_max: usize,
}

/// The queries under way; each has a `T` that says what it is for.
#[derive(Debug)]
pub struct Transactions<T> {
    limits: TransactionLimits,
    outstanding: BTreeMap<u32, Outstanding<T>>,
    timers: BTreeSet<(Monotonic, u32)>,
    estimates: RttEstimates,
}

#[derive(Debug)]
struct Outstanding<T> {
    to: SocketAddr,
    sent: Monotonic,
    slow_ms: u64,
    deadline: Monotonic,
    resends: u8,
    datagram: Vec<u8>,
    purpose: T,
}

/// An answer that belongs to a query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answered<T> {
    /// What the query was for.
    pub purpose: T,
    /// Time from its first sending.
    pub rtt_us: u32,
}

/// A query whose time has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Overdue<T> {
    /// It takes longer than usual; told once.
    Slow {
        /// Whom it went to.
        to: SocketAddr,
        /// To be sent again.
        datagram: Vec<u8>,
        /// What it is for.
        purpose: T,
    },
    /// It is to be sent again.
    Resend {
        /// Whom it went to.
        to: SocketAddr,
        /// To be sent again.
        datagram: Vec<u8>,
    },
    /// No answer came, and none will be taken.
    Failed {
        /// Whom it went to.
        to: SocketAddr,
        /// What it was for.
        purpose: T,
    },
}

impl<T: Copy> Transactions<T> {
    /// Nothing is under way.
    #[must_use]
    pub fn new(limits: TransactionLimits) -> Self {
        Self {
            limits,
            outstanding: BTreeMap::new(),
            timers: BTreeSet::new(),
            estimates: RttEstimates::new(limits.peers_max),
        }
    }

    /// Starts a query: `encode` makes the datagram with the transaction id it gets. Returns the
    /// datagram to send, or nothing when too many are under way.
    pub fn start(
        &mut self,
        now: Monotonic,
        to: SocketAddr,
        purpose: T,
        rng: &mut Rng,
        encode: impl FnOnce(&[u8; 4]) -> Vec<u8>,
    ) -> Option<Vec<u8>> {
        if self.is_full() {
            return None;
        }
        // At most `outstanding_max` of 2^32 are taken, so this ends soon.
        let id = std::iter::repeat_with(|| rng.u32(..))
            .find(|id| !self.outstanding.contains_key(id))
            .expect("it never ends without");
        let datagram = encode(&id.to_be_bytes());
        let slow_ms = self.estimates.slow_after_ms(&to);
        let deadline = now.plus_millis(slow_ms);
        self.timers.insert((deadline, id));
        let copy = datagram.clone();
        let sent = now;
        let query = Outstanding { to, sent, slow_ms, deadline, resends: 0, datagram, purpose };
        self.outstanding.insert(id, query);
        Some(copy)
    }

    /// Takes an answer, if it belongs to a query of ours.
    pub fn on_reply(
        &mut self,
        now: Monotonic,
        from: SocketAddr,
        transaction: &[u8],
    ) -> Option<Answered<T>> {
        let id = u32::from_be_bytes(transaction.try_into().ok()?);
        self.outstanding.get(&id).filter(|query| query.to == from)?;
        let query = self.outstanding.remove(&id)?;
        self.timers.remove(&(query.deadline, id));
        let rtt_us = u32::try_from(now.0.saturating_sub(query.sent.0) / 1000).unwrap_or(u32::MAX);
        self.estimates.add(from, rtt_us);
        Some(Answered { purpose: query.purpose, rtt_us })
    }

    /// Tells whether an answer of that name from there would be taken.
    #[must_use]
    pub fn expects(&self, from: SocketAddr, transaction: &[u8]) -> bool {
        let id = transaction.try_into().map(u32::from_be_bytes);
        id.is_ok_and(|id| self.outstanding.get(&id).is_some_and(|query| query.to == from))
    }

    /// Tells whether a query to that address is under way.
    #[must_use]
    pub fn is_asking(&self, address: &SocketAddr) -> bool {
        self.outstanding.values().any(|query| query.to == *address)
    }

    /// Returns a query whose time has come, if there is one.
    pub fn poll_overdue(&mut self, now: Monotonic) -> Option<Overdue<T>> {
        let (deadline, id) = *self.timers.first()?;
        if deadline > now {
            return None;
        }
        self.timers.pop_first();
        let query = self.outstanding.get_mut(&id)?;
        if query.resends >= RESENDS_MAX {
            let query = self.outstanding.remove(&id)?;
            return Some(Overdue::Failed { to: query.to, purpose: query.purpose });
        }
        query.resends += 1;
        let next_ms = match query.resends {
            RESENDS_MAX => RttEstimates::failed_after_ms(query.slow_ms),
            sent => query.slow_ms * (u64::from(sent) + 1),
        };
        // Never at once again, also if `now` is far beyond the deadline.
        let again = Monotonic(now.0 + 1).max(query.sent.plus_millis(next_ms));
        query.deadline = again;
        self.timers.insert((again, id));
        let (to, datagram, purpose) = (query.to, query.datagram.clone(), query.purpose);
        Some(match query.resends {
            1 => Overdue::Slow { to, datagram, purpose },
            _ => Overdue::Resend { to, datagram },
        })
    }

    /// Returns when [`poll_overdue`](Self::poll_overdue) has something next.
    #[must_use]
    pub fn deadline(&self) -> Option<Monotonic> {
        self.timers.first().map(|(deadline, _)| *deadline)
    }

    /// Counts the queries under way.
    #[must_use]
    pub fn len(&self) -> usize {
        self.outstanding.len()
    }

    /// Tells whether no query is under way.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.outstanding.is_empty()
    }

    /// Tells whether no further query can be started.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.outstanding.len() >= self.limits.outstanding_max
    }

    /// Returns what is known of round-trip times.
    #[must_use]
    pub fn estimates(&self) -> &RttEstimates {
        &self.estimates
    }
}
