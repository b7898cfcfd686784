//! [`Counters`]: what a door has seen.

use std::ops::AddAssign;

/// Counters of the door since the start.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counters {
    pub(super) connections: u64,
    pub(super) connections_refused: u64,
    pub(super) connections_stalled: u64,
    pub(super) commands: u64,
    pub(super) received_bytes: u64,
    pub(super) sent_bytes: u64,
}

impl AddAssign for Counters {
    fn add_assign(&mut self, other: Self) {
        self.connections += other.connections;
        self.connections_refused += other.connections_refused;
        self.connections_stalled += other.connections_stalled;
        self.commands += other.commands;
        self.received_bytes += other.received_bytes;
        self.sent_bytes += other.sent_bytes;
    }
}
