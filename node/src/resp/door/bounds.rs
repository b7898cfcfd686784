//! What keeps one connection from harming the others: its share of a turn, and the end of those
//! whose clients do not read.

use super::Door;
use super::connection::{Connection, Phase};
use crate::io::ConnectionId;
use crate::keyspace::Keyspace;
use crate::resp::frame::Arguments;

/// What a connection may cost in a turn: its commands' words, and a unit for each KiB of these and
/// of what they answer. A receive buffer full of small commands fits.
pub(super) const TURN_COST_MAX: usize = 4096;
/// Bytes that cost as much as a word.
const BYTES_PER_COST: usize = 1024;

impl Door {
    /// Whether the connection has to let others have their turn; it goes on in the next one.
    pub(super) fn has_had_its_share(
        &mut self,
        id: ConnectionId,
        connection: &mut Connection,
    ) -> bool {
        if connection.turn != self.turn {
            (connection.turn, connection.spent) = (self.turn, 0);
        }
        let spent = connection.spent >= TURN_COST_MAX;
        if spent && !std::mem::replace(&mut connection.yielded, true) {
            self.yielded.push_back(id);
        }
        spent
    }

    pub(super) fn check_output(&mut self, id: ConnectionId, connection: &mut Connection) {
        let len = connection.output_len();
        let is_client = connection.origin.is_none() && connection.phase != Phase::Closing;
        if len > self.limits.output_bytes_max && is_client {
            tracing::warn!(
                peer = %connection.peer,
                output_bytes = len,
                output_bytes_max = self.limits.output_bytes_max,
                "slow client disconnected: more output waits than it may have"
            );
            self.counters.connections_stalled += 1;
            self.close(id, connection);
        }
    }

    pub(super) fn disconnect_stalled(&mut self, keyspace: &Keyspace) {
        let stall_ns = self.limits.stall_ms.saturating_mul(1_000_000);
        let now_ns = keyspace.now().monotonic_ns;
        let stalled: Vec<ConnectionId> = self
            .paused
            .iter()
            .filter(|id| {
                self.connections
                    .get(id)
                    .is_none_or(|connection| connection.moved_ns.saturating_add(stall_ns) <= now_ns)
            })
            .copied()
            .collect();
        for id in stalled {
            self.paused.remove(&id);
            let Some(mut connection) = self.connections.remove(&id) else { continue };
            // Replies that wait for our own disk are not the client's fault.
            if connection.sending == 0 || connection.origin.is_some() {
                connection.moved_ns = now_ns;
                self.paused.insert(id);
            } else {
                tracing::warn!(
                    peer = %connection.peer,
                    output_bytes = connection.output_len(),
                    stall_ms = self.limits.stall_ms,
                    "slow client disconnected: it has stalled with output waiting"
                );
                self.counters.connections_stalled += 1;
                self.close(id, &mut connection);
            }
            self.connections.insert(id, connection);
        }
    }
}

/// What a command costs that has answered so many bytes already.
pub(super) fn cost(arguments: &Arguments<'_>, answered: usize) -> usize {
    let bytes = arguments.iter().map(<[u8]>::len).sum::<usize>() + answered;
    arguments.len() + bytes / BYTES_PER_COST
}
