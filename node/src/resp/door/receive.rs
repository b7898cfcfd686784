//! What comes from clients, in buffers of the driver or in memory lent to it.

use super::Door;
use super::connection::{Connection, Phase};
use crate::io::{ConnectionId, ReceiveBuffer, ReceiveRoom, Request};
use crate::keyspace::Keyspace;

impl Door {
    /// Bytes have come, or the client has finished (no bytes), or the connection is broken.
    /// Returns the buffer for the driver.
    pub fn handle_received(
        &mut self,
        keyspace: &mut Keyspace,
        id: ConnectionId,
        result: std::io::Result<ReceiveBuffer>,
    ) -> Option<ReceiveBuffer> {
        let Some(mut connection) = self.connections.remove(&id) else {
            return result.ok();
        };
        connection.receiving = false;
        let buffer = match result {
            Ok(buffer) if !buffer.is_empty() => {
                self.counters.received_bytes += buffer.len() as u64;
                connection.active_ms = keyspace.now().clock_ms;
                connection.asked_ns.get_or_insert_with(|| keyspace.now().monotonic_ns);
                self.process(keyspace, id, &mut connection, &buffer);
                Some(buffer)
            }
            Ok(buffer) => {
                // The client will send no more: what it has asked is still answered.
                connection.ended = true;
                self.process(keyspace, id, &mut connection, &[]);
                Some(buffer)
            }
            Err(_) => {
                self.close(id, &mut connection);
                None
            }
        };
        self.go_on_receiving(id, &mut connection);
        self.connections.insert(id, connection);
        buffer
    }

    /// As [`Door::handle_received`], of memory that the door has lent.
    pub fn handle_received_into(
        &mut self,
        keyspace: &mut Keyspace,
        id: ConnectionId,
        room: ReceiveRoom,
        result: std::io::Result<usize>,
    ) {
        let Some(mut connection) = self.connections.remove(&id) else { return };
        connection.receiving = false;
        match result {
            Ok(count) => {
                self.counters.received_bytes += count as u64;
                if count > 0 {
                    connection.active_ms = keyspace.now().clock_ms;
                    connection.asked_ns.get_or_insert_with(|| keyspace.now().monotonic_ns);
                } else {
                    connection.ended = true;
                }
                connection.parser.take_back(room);
                self.process(keyspace, id, &mut connection, &[]);
            }
            Err(_) => self.close(id, &mut connection),
        }
        self.go_on_receiving(id, &mut connection);
        self.connections.insert(id, connection);
    }

    /// Asks for what is to come, if it may come now: into its place, if that is known.
    pub(super) fn go_on_receiving(&mut self, id: ConnectionId, connection: &mut Connection) {
        // A command that is not all there has limits of its own: its words may come to the whole
        // limit, and what frames them is not to end it.
        let room = connection.parser.buffered() < self.limits.input_bytes_max
            || connection.parser.is_within_command();
        let open = connection.phase == Phase::Open && !connection.ended;
        let takes = connection.origin.is_none() && !connection.yielded;
        if open && takes && !connection.receiving && room {
            connection.receiving = true;
            self.requests.push_back(match connection.parser.lend() {
                Some(room) => Request::ReceiveInto(id, room),
                None => Request::Receive(id),
            });
        }
    }
}
