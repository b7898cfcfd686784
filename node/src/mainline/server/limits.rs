//! The limits of the server, in one place.

use crate::mainline::martian::Locals;
use crate::mainline::peer_store::PeerLimits;
use crate::mainline::rate_limit::RateLimits;

/// How long a peer may change before that is handed out to be written.
pub const FLUSH_AFTER_MS: u64 = 3_000;
/// Torrents handed out at once.
pub const FLUSH_TORRENTS_MAX: usize = 256;
/// Torrents swept at each flush.
pub const SWEEP_TORRENTS_MAX: usize = 1_024;

/// What the server allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServerLimits {
    /// Which addresses may ask.
    pub locals: Locals,
    /// Items.
    pub items: ItemLimits,
    /// Replies.
    pub replies: ReplyLimits,
    /// Peers.
    pub peers: PeerLimits,
    /// Queries.
    pub rates: RateLimits,
}

impl Default for ServerLimits {
    fn default() -> Self {
        Self {
            locals: Locals::Refused,
            items: ItemLimits::default(),
            replies: ReplyLimits::default(),
            peers: PeerLimits::default(),
            rates: RateLimits::default(),
        }
    }
}

/// What is allowed of items.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ItemLimits {
    /// An item not put for so long expires (BEP 44: 2 hours).
    pub ttl_ms: u64,
    /// Items held.
    pub count_max: u64,
    /// Queries that wait for the engine, or for a batch of signatures.
    pub pending_max: usize,
    /// The same for one target.
    pub target_pending_max: usize,
    /// A target is near if it shares at most so many bits less with us than with the k-th closest
    /// node that we know.
    pub near_slack_bits: u32,
}

impl Default for ItemLimits {
    fn default() -> Self {
        Self {
            ttl_ms: 2 * 60 * 60 * 1000,
            count_max: 1_000_000,
            pending_max: 4_096,
            target_pending_max: 128,
            near_slack_bits: 2,
        }
    }
}

/// What is allowed of replies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplyLimits {
    /// Bytes of a datagram (BEP 32); only an item's value may make it longer.
    pub bytes_max: usize,
    /// Times the bytes of its query, to a source that may be forged. The shortest get of the
    /// longest signed value needs 15; less withholds such values.
    pub amplification_max: usize,
    /// Nodes of a family.
    pub nodes_max: usize,
    /// Nodes of a family and network; loopback is exempt if queries from there are.
    pub nodes_per_subnet_max: usize,
    /// Peers.
    pub peers_max: usize,
}

impl Default for ReplyLimits {
    fn default() -> Self {
        Self {
            bytes_max: 1_024,
            amplification_max: 15,
            nodes_max: 8,
            nodes_per_subnet_max: 2,
            peers_max: 100,
        }
    }
}
