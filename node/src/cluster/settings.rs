//! [`ClusterSettings`]: the times and counts that the parts of the cluster go by.

use crate::kademlia::NodeId;

/// How a cluster behaves; all its nodes should have the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClusterSettings {
    /// Which cluster it is.
    pub cluster: NodeId,
    /// Copies of each key.
    pub replicas: usize,
    /// A write is refused when fewer than one more of its replica set are up.
    pub replicas_to_write_min: usize,
    /// Versions that are further ahead of the clock are refused.
    pub clock_skew_max_ms: u64,
    /// Tombstones stay so long.
    pub tombstone_grace_ms: u64,
    /// A node that is down for so long leaves the replica sets.
    pub down_after_ms: u64,
    /// One member is probed so often.
    pub probe_every_ms: u64,
    /// A probe that is not answered by then goes through others, and after the same time again
    /// makes the member suspected.
    pub probe_wait_ms: u64,
    /// A suspected member that says nothing becomes down.
    pub suspect_for_ms: u64,
    /// Others that are asked to probe.
    pub probe_helpers: usize,
    /// All members are told to one of them so often.
    pub gossip_every_ms: u64,
    /// A client's command fails when it is not decided by then.
    pub command_for_ms: u64,
    /// Background work on a range that gets no answer is given up, and begun again later.
    pub exchange_for_ms: u64,
    /// All ranges are compared with their other holders so often.
    pub repair_every_ms: u64,
    /// Bytes of records that a node fetches and offers per second to be filled and to repair, and
    /// of what it compares; 0 is no limit.
    pub repair_bytes_per_second: u64,
    /// Ranges that the node lacks, or holds and should not, are looked for so often.
    pub hand_off_every_ms: u64,
    /// Nodes that know of no founder found the cluster together after so long.
    pub found_after_ms: u64,
}

impl Default for ClusterSettings {
    fn default() -> Self {
        Self {
            cluster: NodeId::default(),
            replicas: 3,
            replicas_to_write_min: 0,
            clock_skew_max_ms: 60_000,
            tombstone_grace_ms: 24 * 3_600_000,
            down_after_ms: 600_000,
            probe_every_ms: 500,
            probe_wait_ms: 300,
            suspect_for_ms: 2_000,
            probe_helpers: 3,
            gossip_every_ms: 5_000,
            command_for_ms: 3_000,
            exchange_for_ms: 5_000,
            repair_every_ms: 5_000,
            repair_bytes_per_second: 8 << 20,
            hand_off_every_ms: 1_000,
            found_after_ms: 5_000,
        }
    }
}
