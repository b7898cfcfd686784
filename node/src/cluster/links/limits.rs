//! [`LinkLimits`]: what links may hold, and how long they may take.

use crate::mainline::rate_limit::{RateLimits, Tier};

/// Limits of the links of one node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkLimits {
    /// The longest value, sent or received; the same for all nodes of a cluster.
    pub value_bytes_max: usize,
    /// Links, accepted and made, those included that are not up yet.
    pub links_max: usize,
    /// Accepted links that have not yet said who they are.
    pub strangers_max: usize,
    /// Those of one IPv4 address or IPv6 /64. Loopback is not limited.
    pub strangers_per_source_max: usize,
    /// Accepted links of a source in time. Further ones are closed at once.
    pub rates: RateLimits,
    /// Bytes that wait to be sent on a link; what does not fit is not sent.
    pub link_send_bytes_max: usize,
    /// Bytes that wait to be sent on all links.
    pub send_bytes_max: usize,
    /// Bytes of unfinished values on all links; above, only one link with such a value receives.
    /// And bytes of values that nobody has taken yet; above, nothing is received.
    pub receive_bytes_max: usize,
    /// Messages that nobody has taken yet; above, nothing is received.
    pub events_max: usize,
    /// Nodes and addresses that are remembered.
    pub peers_max: usize,
    /// An attempt to connect ends after so long.
    pub connect_ms: u64,
    /// A link is up after so long, or closed.
    pub handshake_ms: u64,
    /// Each link is asked so often whether it still is one.
    pub beat_every_ms: u64,
    /// A link on which nothing came for so long is broken; so is one that takes nothing.
    pub silent_ms: u64,
    /// A link without messages is closed after so long.
    pub idle_ms: u64,
    /// After a failure the next attempt to connect comes no sooner; then twice as long.
    pub backoff_min_ms: u64,
    /// Nor later than that.
    pub backoff_max_ms: u64,
    /// At the end, what is not sent by then is not sent.
    pub drain_ms: u64,
}

impl Default for LinkLimits {
    fn default() -> Self {
        Self {
            value_bytes_max: 16 << 20,
            links_max: 4_096,
            strangers_max: 1_024,
            strangers_per_source_max: 64,
            rates: RateLimits {
                machine: Tier { per_second: 50, burst: 200 },
                subnet: Tier { per_second: 200, burst: 800 },
                rows: 256,
                loopback_exempt: true,
            },
            link_send_bytes_max: 64 << 20,
            send_bytes_max: 256 << 20,
            receive_bytes_max: 256 << 20,
            events_max: 8_192,
            peers_max: 4_096,
            connect_ms: 2_000,
            handshake_ms: 2_000,
            beat_every_ms: 5_000,
            silent_ms: 15_000,
            idle_ms: 300_000,
            backoff_min_ms: 100,
            backoff_max_ms: 5_000,
            drain_ms: 5_000,
        }
    }
}
