//! Commands that belong to other threads, and those of other threads that belong here.
//!
//! ```text
//! thread of the connection                      thread of the key
//! process -> relay -- Commands --> relayed connection: its own parser, tasks and replies
//!   place kept in the reply queue                   |
//! take_replies <---------------- Replies -----------+ (once each is durable)
//! ```
//!
//! A relayed connection is the shadow of a client's connection on another thread. It executes what
//! it is given in order, and answers in order, one reply for each command. It is there only while
//! it has something to do. Everything is data in and out ([`Door::handle_messages`],
//! [`Door::poll_messages`]); who drives the door carries it, in order between any two threads.
//!
//! Invariants:
//! * commands of a connection reach a thread in their order, and so does the effect on each key;
//! * a reply comes back once all that it rests on is durable;
//! * a connection has at most `REPLIES_PENDING_MAX` replies and about [`RELAYED_BYTES_MAX`] bytes
//!   of commands on other threads;
//! * a thread executes nothing for a connection whose long replies, as far as the client has not
//!   taken them, come to `output_pause_bytes`.

use super::connection::Blocked;
use super::info::{Facts, FactsAsked};
use super::reply_queue::Reply;
use super::{Connection, Door};
use crate::io::ConnectionId;
use crate::keyspace::{Keyspace, ThreadIndex};
use crate::resp::frame::Arguments;
use crate::resp::reply::Protocol;

/// Bytes of commands that a connection has on other threads; above, nothing further is executed
/// until half of them are answered.
pub(super) const RELAYED_BYTES_MAX: usize = 1 << 20;
/// Replies from this length on are reported when the client has taken them.
const REPORTED_REPLY_LEN_MIN: usize = 16 << 10;

/// What the door of one thread tells that of another.
#[derive(Debug)]
pub(crate) enum Message {
    /// Commands of a connection, encoded, in order.
    Commands { connection: ConnectionId, protocol: Protocol, bytes: Vec<u8> },
    /// Replies to them, in order.
    Replies { connection: ConnectionId, replies: Vec<Reply> },
    /// The client has taken that many bytes of long replies.
    Taken { connection: ConnectionId, bytes: usize },
    /// The connection is gone, and with it whoever could miss a command not yet executed.
    Gone { connection: ConnectionId },
    /// A connection that was handed to another thread is gone.
    Left,
    /// A question about the thread.
    Ask { question: u64, asked: FactsAsked },
    /// The answer to it.
    Answer { question: u64, facts: Box<Facts> },
}

/// Whose shadow a relayed connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Origin {
    pub(super) thread: ThreadIndex,
    pub(super) connection: ConnectionId,
}

/// What becomes of a reply from another thread.
#[derive(Clone, Copy, Debug)]
pub(super) enum Destination {
    /// It is a reply of the connection.
    Place(u64),
    /// It is a part of one.
    Gather { gather: u64, part: usize },
}

/// A command that another thread has not answered yet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Relayed {
    thread: ThreadIndex,
    destination: Destination,
    bytes: usize,
}

/// A long reply of another thread that the client has not taken yet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Untaken {
    thread: ThreadIndex,
    place: u64,
    bytes: usize,
}

/// The name of a relayed connection here. Drivers count connections from 0 in the low half of their
/// names, so its highest bit is free.
fn relayed_id(number: u64) -> ConnectionId {
    const LOW_BITS: u32 = 31;
    let low = number & ((1 << LOW_BITS) - 1);
    ConnectionId((number >> LOW_BITS) << 32 | 1 << LOW_BITS | low)
}

impl Door {
    /// Takes what is to go to a thread; that may be this one.
    pub(crate) fn poll_messages(&mut self) -> Option<(ThreadIndex, Vec<Message>)> {
        self.messages.pop_first()
    }

    pub(super) fn tell(&mut self, thread: ThreadIndex, message: Message) {
        let messages = self.messages.entry(thread).or_default();
        if let Message::Commands { connection, protocol, bytes } = &message
            && let Some(Message::Commands { connection: last, protocol: spoken, bytes: all }) =
                messages.last_mut()
            && (connection, protocol) == (&*last, &*spoken)
        {
            all.extend_from_slice(bytes);
            return;
        }
        messages.push(message);
    }

    /// Takes what another thread has to tell.
    pub(crate) fn handle_messages(
        &mut self,
        keyspace: &mut Keyspace,
        from: ThreadIndex,
        messages: Vec<Message>,
    ) {
        for message in messages {
            match message {
                Message::Commands { connection, protocol, bytes } => {
                    let origin = Origin { thread: from, connection };
                    self.execute_relayed(keyspace, origin, protocol, &bytes);
                }
                Message::Replies { connection, replies } => {
                    self.take_replies(keyspace, (from, connection), replies);
                }
                Message::Taken { connection, bytes } => {
                    self.note_taken(keyspace, Origin { thread: from, connection }, bytes);
                }
                Message::Gone { connection } => {
                    self.forget_relayed(Origin { thread: from, connection });
                }
                Message::Left => self.connections_elsewhere -= 1,
                Message::Ask { question, asked } => {
                    let facts = Box::new(self.facts(keyspace, &asked));
                    self.tell(from, Message::Answer { question, facts });
                }
                Message::Answer { question, facts } => {
                    self.take_facts(keyspace, question, *facts);
                }
            }
        }
        self.deliver_finished(keyspace);
    }

    /// Sends a command to the thread that its key belongs to.
    pub(super) fn relay(
        &mut self,
        (id, connection): (ConnectionId, &mut Connection),
        thread: ThreadIndex,
        arguments: &Arguments<'_>,
    ) {
        let bytes = super::connection::encode(arguments);
        let destination = Destination::Place(connection.replies.reserve());
        note_relayed(connection, thread, destination, bytes.len());
        let protocol = connection.protocol;
        self.tell(thread, Message::Commands { connection: id, protocol, bytes });
    }

    /// Sends a part of a command to a thread, be it this one. Returns whether what the connection
    /// executes here must wait for it.
    pub(super) fn relay_part(
        &mut self,
        keyspace: &mut Keyspace,
        (id, connection): (ConnectionId, &mut Connection),
        thread: ThreadIndex,
        (destination, bytes): (Destination, Vec<u8>),
    ) -> bool {
        note_relayed(connection, thread, destination, bytes.len());
        let protocol = connection.protocol;
        if thread == keyspace.spread().thread {
            let origin = Origin { thread, connection: id };
            self.execute_relayed(keyspace, origin, protocol, &bytes);
            let shadow = self.relayed.get(&origin).and_then(|id| self.connections.get(id));
            return shadow.is_some_and(|shadow| !shadow.has_executed_all());
        }
        self.tell(thread, Message::Commands { connection: id, protocol, bytes });
        false
    }

    /// Executes commands of another thread's connection.
    fn execute_relayed(
        &mut self,
        keyspace: &mut Keyspace,
        origin: Origin,
        protocol: Protocol,
        bytes: &[u8],
    ) {
        let id = match self.relayed.get(&origin) {
            Some(id) => *id,
            None => {
                let id = relayed_id(self.next_relayed);
                self.next_relayed += 1;
                self.relayed.insert(origin, id);
                let connection = self.new_relayed(keyspace, origin, protocol);
                self.connections.insert(id, connection);
                id
            }
        };
        let Some(mut connection) = self.connections.remove(&id) else { return };
        self.process(keyspace, id, &mut connection, bytes);
        self.connections.insert(id, connection);
    }

    fn new_relayed(
        &self,
        keyspace: &Keyspace,
        origin: Origin,
        protocol: Protocol,
    ) -> Box<Connection> {
        let peer = std::net::SocketAddr::from(([0; 4], 0));
        let mut connection = self.new_connection(keyspace, peer, 0);
        connection.origin = Some(origin);
        connection.protocol = protocol;
        connection.authenticated = true;
        connection.parser.set_authenticated(true);
        connection.replies.keep_apart();
        connection
    }

    /// Hands out the replies of a relayed connection that may go. Returns whether it has more to
    /// do.
    pub(super) fn answer_relayed(
        &mut self,
        keyspace: &mut Keyspace,
        (id, connection): (ConnectionId, &mut Connection),
        origin: Origin,
    ) -> bool {
        loop {
            let replies = connection.replies.take_replies(super::durability_of(keyspace));
            if !replies.is_empty() {
                connection.sending += replies.iter().map(reported_len).sum::<usize>();
                // Also to this thread: its own connection may be what has to go on.
                let Origin { thread, connection } = origin;
                self.tell(thread, Message::Replies { connection, replies });
            }
            let has_room = connection.output_len() < self.limits.output_pause_bytes;
            if !(has_room && self.paused.remove(&id)) {
                break;
            }
            self.process(keyspace, id, connection, &[]);
        }
        if !connection.replies.is_empty() {
            self.held.insert(id);
        }
        let has_more = !connection.replies.is_empty() || !connection.has_executed_all();
        if !has_more {
            self.relayed.remove(&origin);
            self.dirty.remove(&id);
            self.held.remove(&id);
        }
        has_more
    }

    /// Puts replies from another thread in their places.
    fn take_replies(
        &mut self,
        keyspace: &mut Keyspace,
        (from, id): (ThreadIndex, ConnectionId),
        replies: Vec<Reply>,
    ) {
        let Some(mut connection) = self.connections.remove(&id) else { return };
        for reply in replies {
            let waiting = connection.relayed.iter().position(|relayed| relayed.thread == from);
            let relayed = waiting.and_then(|index| connection.relayed.remove(index));
            let relayed = relayed.expect("a reply is to a command that was relayed");
            connection.relayed_bytes -= relayed.bytes;
            let untaken = reported_len(&reply);
            let place = match relayed.destination {
                Destination::Place(place) => {
                    connection.replies.fill(place, reply);
                    Some(place)
                }
                Destination::Gather { gather, part } => {
                    self.take_part(&mut connection, (gather, part), reply)
                }
            };
            if untaken > 0 {
                let place = place.unwrap_or(u64::MAX);
                connection.untaken.push(Untaken { thread: from, place, bytes: untaken });
            }
        }
        self.dirty.insert(id);
        self.check_output(id, &mut connection);
        self.go_on_after_replies(keyspace, id, &mut connection);
        self.connections.insert(id, connection);
    }

    fn go_on_after_replies(
        &mut self,
        keyspace: &mut Keyspace,
        id: ConnectionId,
        connection: &mut Connection,
    ) {
        match connection.blocked {
            Blocked::Relays(_) if connection.relayed.is_empty() => {
                self.retry_one(keyspace, id, connection);
            }
            Blocked::Replies if connection.has_room_for_replies() => {
                connection.blocked = Blocked::No;
                self.resume(keyspace, id, connection);
            }
            Blocked::Gather(gather) if !self.gathers.contains_key(&gather) => {
                connection.blocked = Blocked::No;
                self.resume(keyspace, id, connection);
            }
            _ => {}
        }
    }

    /// Reports long replies that have left to the threads they came from.
    pub(super) fn report_taken(&mut self, id: ConnectionId, connection: &mut Connection) {
        if connection.untaken.is_empty() || connection.sending > 0 {
            return;
        }
        let head = connection.replies.head();
        for untaken in &connection.untaken {
            // A part of a reply that was put together is not counted beyond that.
            if untaken.place < head || untaken.place == u64::MAX {
                let Untaken { thread, bytes, .. } = *untaken;
                self.tell(thread, Message::Taken { connection: id, bytes });
            }
        }
        connection.untaken.retain(|untaken| (head..u64::MAX).contains(&untaken.place));
        if connection.untaken.is_empty() {
            connection.untaken = Vec::new();
        }
    }

    fn note_taken(&mut self, keyspace: &mut Keyspace, origin: Origin, bytes: usize) {
        let Some(id) = self.relayed.get(&origin).copied() else { return };
        let Some(mut connection) = self.connections.remove(&id) else { return };
        connection.sending = connection.sending.saturating_sub(bytes);
        if connection.output_len() < self.limits.output_pause_bytes && self.paused.remove(&id) {
            self.process(keyspace, id, &mut connection, &[]);
        }
        self.connections.insert(id, connection);
    }

    /// A client's connection is gone: tells the threads that work for it.
    pub(super) fn abandon_relayed(&mut self, id: ConnectionId, connection: &Connection) {
        let mut threads: Vec<ThreadIndex> =
            connection.relayed.iter().map(|relayed| relayed.thread).collect();
        threads.sort_unstable();
        threads.dedup();
        for thread in threads {
            let origin = Origin { thread, connection: id };
            if thread == self.facts.spread.thread {
                self.forget_relayed(origin);
            } else {
                self.tell(thread, Message::Gone { connection: id });
            }
        }
        self.gathers.retain(|_, gather| gather.connection() != id);
    }

    fn forget_relayed(&mut self, origin: Origin) {
        if let Some(id) = self.relayed.remove(&origin) {
            self.handle_closed(id);
        }
    }
}

impl Connection {
    /// Whether nothing that it was given is still to be executed.
    fn has_executed_all(&self) -> bool {
        !self.is_blocked() && !self.yielded && self.parser.buffered() == 0
    }

    /// Whether more replies may be under way.
    pub(super) fn has_room_for_replies(&self) -> bool {
        self.replies.pending() <= super::REPLIES_PENDING_MAX / 2
            && self.relayed_bytes <= RELAYED_BYTES_MAX / 2
    }

    /// Whether too many replies are under way.
    pub(super) fn is_full(&self) -> bool {
        self.replies.pending() >= super::REPLIES_PENDING_MAX
            || self.relayed_bytes >= RELAYED_BYTES_MAX
    }
}

fn note_relayed(
    connection: &mut Connection,
    thread: ThreadIndex,
    destination: Destination,
    bytes: usize,
) {
    connection.relayed_bytes += bytes;
    connection.relayed.push_back(Relayed { thread, destination, bytes });
}

/// Bytes of a reply as far as they are reported when taken.
fn reported_len(reply: &Reply) -> usize {
    if reply.len() < REPORTED_REPLY_LEN_MIN { 0 } else { reply.len() }
}
