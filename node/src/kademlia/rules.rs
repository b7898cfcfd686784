//! [`ContactRules`]: what a network demands of its nodes, beyond what Kademlia does.

use std::net::SocketAddr;

use super::k_bucket::Contact;

/// Tells which nodes may be known, and which are better than others.
#[derive(Clone, Copy, Debug)]
pub struct ContactRules {
    /// Whether a node at the address may be asked at all.
    pub is_allowed: fn(&SocketAddr) -> bool,
    /// Whether a node's id is what it ought to be at its address. Others stand back: they make room
    /// in the table, and in a lookup they are asked but do not count.
    pub is_preferred: fn(&Contact) -> bool,
}

impl ContactRules {
    /// All nodes are as good.
    pub const NONE: Self = Self { is_allowed: |_| true, is_preferred: |_| true };
}
