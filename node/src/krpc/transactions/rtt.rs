//! [`RttEstimates`]: how long peers take to answer, and so when one is slow.
//!
//! Mean and deviation are smoothed as TCP does (Jacobson and Karels, 1988). A peer that is not
//! known yet is expected to take as long as peers do in general.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::ops::Bound;

/// A peer that is not answering is slow no sooner than this.
pub const SLOW_AFTER_MIN_MS: u64 = 20;
/// And no later than this; also what is expected before anything was measured.
pub const SLOW_AFTER_MAX_MS: u64 = 500;
/// A query fails no sooner than this.
pub const FAILED_AFTER_MIN_MS: u64 = 250;
/// And no later than this.
pub const FAILED_AFTER_MAX_MS: u64 = 2_000;

/// Smoothed round-trip time, in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RttEstimate {
    /// Mean.
    pub mean_us: u32,
    /// Mean deviation from it.
    pub deviation_us: u32,
}

impl RttEstimate {
    fn first(rtt_us: u32) -> Self {
        Self { mean_us: rtt_us, deviation_us: rtt_us / 2 }
    }

    fn add(&mut self, rtt_us: u32) {
        let distance = rtt_us.abs_diff(self.mean_us);
        self.deviation_us = self.deviation_us - self.deviation_us / 4 + distance / 4;
        self.mean_us = self.mean_us - self.mean_us / 8 + rtt_us / 8;
    }

    fn slow_after_ms(self) -> u64 {
        let us = u64::from(self.mean_us) + 4 * u64::from(self.deviation_us);
        us.div_ceil(1000).clamp(SLOW_AFTER_MIN_MS, SLOW_AFTER_MAX_MS)
    }
}

/// What is known of round-trip times; of at most `peers_max` peers by name.
#[derive(Clone, Debug)]
pub struct RttEstimates {
    overall: Option<RttEstimate>,
    peers: BTreeMap<SocketAddr, RttEstimate>,
    peers_max: usize,
    /// The peer forgotten last: the next one in order is the next to go.
    forgotten: Option<SocketAddr>,
}

impl RttEstimates {
    /// Knows nothing.
    #[must_use]
    pub fn new(peers_max: usize) -> Self {
        Self { overall: None, peers: BTreeMap::new(), peers_max, forgotten: None }
    }

    /// Takes note of an answer.
    pub fn add(&mut self, peer: SocketAddr, rtt_us: u32) {
        self.overall.get_or_insert_with(|| RttEstimate::first(rtt_us)).add(rtt_us);
        if let Some(estimate) = self.peers.get_mut(&peer) {
            estimate.add(rtt_us);
            return;
        }
        if self.peers.len() >= self.peers_max {
            self.forget_one();
        }
        if self.peers_max > 0 {
            self.peers.insert(peer, RttEstimate::first(rtt_us));
        }
    }

    /// Returns what is known of a peer by name.
    #[must_use]
    pub fn of(&self, peer: &SocketAddr) -> Option<RttEstimate> {
        self.peers.get(peer).copied()
    }

    /// After how many milliseconds without answer the peer is slow.
    #[must_use]
    pub fn slow_after_ms(&self, peer: &SocketAddr) -> u64 {
        let estimate = self.of(peer).or(self.overall);
        estimate.map_or(SLOW_AFTER_MAX_MS, RttEstimate::slow_after_ms)
    }

    /// After how many milliseconds without answer a query fails that was slow after `slow_ms`.
    #[must_use]
    pub fn failed_after_ms(slow_ms: u64) -> u64 {
        (4 * slow_ms).clamp(FAILED_AFTER_MIN_MS, FAILED_AFTER_MAX_MS)
    }

    /// Counts the peers known by name.
    #[must_use]
    pub fn len(&self) -> usize {
        self.peers.len()
    }

    /// Tells whether no peer is known by name.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.peers.is_empty()
    }

    fn forget_one(&mut self) {
        let start = self.forgotten.map_or(Bound::Unbounded, Bound::Excluded);
        let next = self.peers.range((start, Bound::Unbounded)).next();
        let next = next.or_else(|| self.peers.first_key_value()).map(|(peer, _)| *peer);
        if let Some(peer) = next {
            self.peers.remove(&peer);
        }
        self.forgotten = next;
    }
}
