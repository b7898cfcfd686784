//! The client door: connections, the flow of their bytes, and the execution of their commands.
//!
//! Sans-I/O: it is fed what the driver reports ([`Door::handle_accepted`],
//! [`Door::handle_received`], [`Door::handle_sent`], [`Door::handle_closed`]) and what the stores
//! report ([`Door::handle_event`]). [`Door::begin_turn`] comes before that, once per wait;
//! [`Door::end_turn`] then hands out replies that may go, and [`Door::poll_request`] yields what
//! the driver is to do.
//!
//! Invariants:
//! * replies leave in the order of their commands, and not before what they rest on is durable;
//! * a connection whose client does not read executes nothing above `output_pause_bytes`, keeps at
//!   most `input_bytes_max` of input, and is disconnected after `stall_ms` without movement or
//!   above `output_bytes_max`;
//! * a connection has at most `REPLIES_PENDING_MAX` commands waiting for the disk, and each of them
//!   at most a window of reads;
//! * a command that cannot be executed yet is executed before any later one of its connection;
//! * a connection executes about `TURN_COST_MAX` in a turn, then others have theirs.
//!
//! With several threads each has a door of its own; `relay` says how they work together.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;

use storage::{Event, ReadId};

use crate::config::{ClientLimits, Password};
use crate::io::{BufferStatistics, ConnectionId, Request, SendStatistics};
use crate::keyspace::{Keyspace, ShardIndex, ThreadIndex};
use crate::peer::Figure;
use crate::resp::command::{Command, CommandError, CommandSpec};
use crate::resp::frame::{Arguments, Parsed, Parser, ParserLimits, TooLarge};
use crate::resp::reply::Protocol;

mod about;
mod activity;
mod bounds;
mod connection;
mod counters;
mod engine;
mod execute;
mod figures;
mod gather;
mod info;
mod ledger;
mod peer;
mod receive;
mod relay;
mod reply_queue;
mod task;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod thread_tests;

use activity::{Activity, CommandKind};
use bounds::cost;
use connection::{Blocked, Connection, Phase, encode};
use counters::Counters;
use engine::Orders;
use execute::{Caller, Outcome};
use figures::Reports;
use gather::{Gather, Route};
use info::Questions;
use ledger::{Amounts, Ledger, Path};
use peer::PeerQueue;
use relay::Origin;
use reply_queue::{Durable, ReplyQueue};
use task::{Finished, Tasks};

pub use engine::{Order, OrderEnd, OrderId};
pub(crate) use execute::{SCAN_COUNT_DEFAULT, SCAN_COUNT_MAX, expire_applies, lifetime};
pub use info::{DurabilityFacts, NodeFacts};
pub use peer::{Answerer, PeerCommand, PeerCommands, PeerToken};
pub(crate) use relay::Message;
pub(crate) use task::{Lifetime, cursor_key, cursor_of, part_of};

/// Replies of one connection that are still to come, each with reads under way; above, nothing
/// further is executed until half of them are there.
const REPLIES_PENDING_MAX: usize = 128;

/// The client door of one thread.
#[derive(Debug)]
pub struct Door {
    limits: ClientLimits,
    password: Option<Password>,
    facts: NodeFacts,
    connections: BTreeMap<ConnectionId, Box<Connection>>,
    next_number: u64,
    tasks: Tasks,
    orders: Orders,
    peers: PeerQueue,
    /// Connections with a command to be tried again when a lock is free or the log can take more.
    blocked: VecDeque<ConnectionId>,
    /// Connections with a command to be tried again when a key has been resolved.
    resolving: BTreeSet<(ShardIndex, ReadId, ConnectionId)>,
    /// Connections whose replies may be able to go out.
    dirty: BTreeSet<ConnectionId>,
    /// Connections whose replies wait for a shard.
    held: BTreeSet<ConnectionId>,
    /// Connections that have had their share of the turn.
    yielded: VecDeque<ConnectionId>,
    /// The turn's number.
    turn: u64,
    /// Which of the connections are shadows of those of other threads.
    relayed: BTreeMap<Origin, ConnectionId>,
    next_relayed: u64,
    gathers: BTreeMap<u64, Gather>,
    next_gather: u64,
    questions: Questions,
    reports: Reports,
    /// What other threads are to be told.
    messages: BTreeMap<ThreadIndex, Vec<Message>>,
    /// Connections that clients have to this thread.
    clients_len: usize,
    /// Connections that this thread has handed to others.
    connections_elsewhere: usize,
    /// Connections that execute nothing because their client does not read.
    paused: BTreeSet<ConnectionId>,
    requests: VecDeque<Request>,
    counters: Counters,
    activity: Activity,
    buffers: BufferStatistics,
    ledger: Ledger,
    sends: SendStatistics,
    /// What the peer side tells of itself.
    figures: Vec<Figure>,
    wants_shutdown: bool,
}

impl Door {
    /// Opens the door.
    #[must_use]
    pub fn new(limits: ClientLimits, password: Option<Password>, facts: NodeFacts) -> Self {
        let value_bytes_max = limits.value_bytes_max;
        // Connections of different threads have different numbers.
        let next_number = 1 + u64::from(facts.spread.thread);
        Self {
            limits,
            password,
            facts,
            connections: BTreeMap::new(),
            next_number,
            tasks: Tasks::new(value_bytes_max),
            orders: Orders::default(),
            peers: PeerQueue::default(),
            blocked: VecDeque::new(),
            resolving: BTreeSet::new(),
            dirty: BTreeSet::new(),
            held: BTreeSet::new(),
            yielded: VecDeque::new(),
            turn: 0,
            relayed: BTreeMap::new(),
            next_relayed: 0,
            gathers: BTreeMap::new(),
            next_gather: 0,
            questions: Questions::default(),
            reports: Reports::default(),
            messages: BTreeMap::new(),
            clients_len: 0,
            connections_elsewhere: 0,
            paused: BTreeSet::new(),
            requests: VecDeque::new(),
            counters: Counters::default(),
            activity: Activity::new(),
            buffers: BufferStatistics::default(),
            ledger: Ledger::default(),
            sends: SendStatistics::default(),
            figures: Vec::new(),
            wants_shutdown: false,
        }
    }

    /// Notes the address that clients reach it at.
    pub fn set_address(&mut self, address: SocketAddr) {
        self.facts.client = Some(address);
    }

    /// Notes how the driver's buffers have been used, for INFO.
    pub fn note_buffers(&mut self, buffers: BufferStatistics) {
        self.buffers = buffers;
    }

    /// Notes what became of the driver's sends, for INFO.
    pub fn note_sends(&mut self, sends: SendStatistics) {
        self.sends = sends;
    }

    /// Notes what the peer side tells of itself, for INFO.
    pub fn note_figures(&mut self, figures: Vec<Figure>) {
        self.figures = figures;
    }

    /// Whether a client has asked the node to stop, since the last call.
    #[must_use]
    pub fn take_shutdown(&mut self) -> bool {
        std::mem::take(&mut self.wants_shutdown)
    }

    /// Whether no client's connection is left.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.clients_len() == 0
    }

    /// Number of connections that clients have to this thread.
    fn clients_len(&self) -> usize {
        self.clients_len
    }

    /// Whether the node can take another connection; one above is refused, on this thread.
    #[must_use]
    pub(crate) fn has_room(&self) -> bool {
        self.clients_len() + self.connections_elsewhere < self.limits.connections_max
    }

    /// A connection goes to another thread, which says [`Message::Left`] when it is gone.
    pub(crate) fn note_handed_over(&mut self) {
        self.connections_elsewhere += 1;
    }

    /// Takes the next request for the driver.
    pub fn poll_request(&mut self) -> Option<Request> {
        self.requests.pop_front()
    }

    /// When [`Door::begin_turn`] and [`Door::end_turn`] are wanted next, in nanoseconds.
    #[must_use]
    pub fn deadline_ns(&self) -> Option<u64> {
        if self.tasks.is_runnable() || !self.yielded.is_empty() {
            return Some(0);
        }
        let stall_ns = self.limits.stall_ms.saturating_mul(1_000_000);
        let paused = self.paused.iter().filter_map(|id| self.connections.get(id));
        paused.map(|connection| connection.moved_ns.saturating_add(stall_ns)).min()
    }

    /// A client has connected.
    pub fn handle_accepted(&mut self, keyspace: &Keyspace, id: ConnectionId, peer: SocketAddr) {
        self.counters.connections += 1;
        let mut connection = self.new_connection(keyspace, peer, self.next_number);
        self.next_number += u64::from(self.facts.spread.thread_count);
        // Of a node with several threads the first one counts, and refuses those it keeps.
        if self.facts.spread.thread == 0 && !self.has_room() {
            self.counters.connections_refused += 1;
            let text = b"ERR max number of clients reached";
            connection.replies.push(Protocol::Resp2, None, |reply| reply.writer().error(text));
            connection.phase = Phase::Draining;
        } else {
            connection.receiving = true;
            self.requests.push_back(Request::Receive(id));
        }
        self.clients_len += 1;
        self.dirty.insert(id);
        self.connections.insert(id, connection);
    }

    fn new_connection(
        &self,
        keyspace: &Keyspace,
        peer: SocketAddr,
        number: u64,
    ) -> Box<Connection> {
        let now = keyspace.now();
        let mut parser = Parser::new(self.parser_limits());
        let authenticated = self.password.is_none();
        parser.set_authenticated(authenticated);
        Box::new(Connection {
            origin: None,
            number,
            peer,
            parser,
            protocol: Protocol::Resp2,
            replies: ReplyQueue::new(&self.ledger),
            phase: Phase::Open,
            blocked: Blocked::No,
            relayed: VecDeque::new(),
            relayed_bytes: 0,
            untaken: Vec::new(),
            turn: 0,
            spent: 0,
            yielded: false,
            receiving: false,
            copies: 0,
            ended: false,
            sending: 0,
            authenticated,
            name: Vec::new(),
            library_name: Vec::new(),
            library_version: Vec::new(),
            last_command: "NULL",
            created_ms: now.clock_ms,
            active_ms: now.clock_ms,
            moved_ns: now.monotonic_ns,
            commands: 0,
            kind: CommandKind::default(),
            asked_ns: None,
        })
    }

    fn parser_limits(&self) -> ParserLimits {
        // Keys may be longer than the longest value; execution checks values again.
        let bulk_bytes_max =
            self.limits.value_bytes_max.max(crate::resp::command::KEY_BYTES_MAX + 1);
        ParserLimits {
            bulk_bytes_max,
            command_bytes_max: self.limits.input_bytes_max,
            ..ParserLimits::default()
        }
    }

    /// Executes what `input` completes, as far as the connection's state allows.
    fn process(
        &mut self,
        keyspace: &mut Keyspace,
        id: ConnectionId,
        connection: &mut Connection,
        mut input: &[u8],
    ) {
        let arrived = input.as_ptr_range();
        let mut parser =
            std::mem::replace(&mut connection.parser, Parser::new(self.parser_limits()));
        loop {
            if connection.phase != Phase::Open || connection.is_blocked() {
                break;
            }
            if connection.output_len() >= self.limits.output_pause_bytes {
                self.paused.insert(id);
                break;
            }
            if connection.is_full() {
                connection.blocked = Blocked::Replies;
                break;
            }
            if self.has_had_its_share(id, connection) {
                break;
            }
            let outcome = match parser.next(&mut input) {
                Parsed::Incomplete => {
                    if connection.ended {
                        connection.phase = Phase::Draining;
                    }
                    break;
                }
                Parsed::Command(arguments) => {
                    // A relayed command was encoded for this thread.
                    let in_place = arrived.contains(&arguments[0].as_ptr());
                    connection.copies =
                        u64::from(!in_place) + u64::from(connection.origin.is_some());
                    let before = connection.replies.len();
                    let outcome = self.dispatch(keyspace, id, connection, &arguments);
                    let bytes = connection.replies.len().saturating_sub(before);
                    connection.spent += cost(&arguments, bytes);
                    self.note_outcome(id, connection, &outcome, || encode(&arguments));
                    connection.note_encoded(arguments.own());
                    outcome
                }
                Parsed::TooLarge(large) => self.refuse_large(id, connection, &large),
                Parsed::Error(error) => {
                    Caller { id, connection, own: &[] }.error(&error.message());
                    Outcome::Close
                }
            };
            if outcome == Outcome::Close {
                connection.phase = Phase::Draining;
                input = &[];
                break;
            }
            parser.set_authenticated(connection.authenticated);
        }
        if !input.is_empty() {
            parser.stash(input);
        }
        connection.parser = parser;
        self.dirty.insert(id);
        self.check_output(id, connection);
    }

    fn refuse_large(
        &self,
        id: ConnectionId,
        connection: &mut Connection,
        large: &TooLarge,
    ) -> Outcome {
        let text = format!(
            "ERR argument or command of {} bytes is larger than the limit of {} bytes",
            large.declared, large.limit
        );
        Caller { id, connection, own: &[] }.error(text.as_bytes())
    }

    /// Checks a command's name, arity and permission, then executes it.
    fn dispatch(
        &mut self,
        keyspace: &mut Keyspace,
        id: ConnectionId,
        connection: &mut Connection,
        arguments: &Arguments<'_>,
    ) -> Outcome {
        let mut caller = Caller { id, connection, own: arguments.own() };
        let spec = match CommandSpec::find(arguments) {
            Ok(spec) => spec,
            Err(CommandError::CrossProtocol) => {
                tracing::warn!(peer = %caller.connection.peer, "HTTP on the client door; closed");
                return Outcome::Close;
            }
            Err(error) => return caller.error(&error.message()),
        };
        if !caller.connection.authenticated && !spec.is_open_to_all() {
            return caller.error(b"NOAUTH Authentication required.");
        }
        let command = match Command::parse_as(spec, arguments) {
            Ok(command) => command,
            Err(error) => return caller.error(&error.message()),
        };
        match self.peers.answerer(&command) {
            Answerer::Door => {}
            Answerer::Peer => {
                self.note_executed(caller.connection, spec);
                return self.hand_to_peers(&mut caller, arguments);
            }
            Answerer::Nobody(text) => return caller.error(text.as_bytes()),
        }
        let outcome = match Self::route(keyspace, caller.connection, &command, arguments) {
            Route::Here => self.execute(keyspace, &mut caller, command),
            Route::Thread(thread) => {
                self.relay((id, &mut *caller.connection), thread, arguments);
                Outcome::Done
            }
            Route::Gather(merge, parts) => self.gather(keyspace, &mut caller, (merge, parts)),
            Route::Alone => Outcome::Alone,
        };
        let executed =
            !matches!(outcome, Outcome::Blocked | Outcome::Resolving(..) | Outcome::Alone);
        if executed && connection.origin.is_none() {
            self.note_executed(connection, spec);
        }
        outcome
    }

    fn note_executed(&mut self, connection: &mut Connection, spec: &'static CommandSpec) {
        connection.last_command = spec.name;
        connection.commands += 1;
        connection.kind = self.activity.note_command(spec);
        self.counters.commands += 1;
    }

    /// Notes what the connection has to wait for; `encoded` is the command.
    fn note_outcome(
        &mut self,
        id: ConnectionId,
        connection: &mut Connection,
        outcome: &Outcome,
        encoded: impl FnOnce() -> Vec<u8>,
    ) {
        match *outcome {
            Outcome::Blocked => {
                connection.blocked = Blocked::Command(encoded());
                self.blocked.push_back(id);
            }
            Outcome::Resolving(shard, read) => {
                connection.blocked = Blocked::Command(encoded());
                self.resolving.insert((shard, read, id));
            }
            Outcome::Alone => connection.blocked = Blocked::Relays(encoded()),
            Outcome::BehindPart(gather) => connection.blocked = Blocked::Gather(gather),
            Outcome::Behind(task) => {
                connection.blocked = Blocked::Task(task);
                self.take_finished_of(connection);
            }
            Outcome::Done | Outcome::Close => {}
        }
    }

    /// A task may end at once; its connection is in hand then, not in the map.
    fn take_finished_of(&mut self, connection: &mut Connection) {
        if let Blocked::Task(waited) = connection.blocked
            && let Some(finished) = self.tasks.take_finished(waited)
        {
            connection.replies.fill(finished.place, finished.reply);
            connection.blocked = Blocked::No;
        }
    }

    /// The driver has taken what it was given to send, or could not.
    pub fn handle_sent(
        &mut self,
        keyspace: &mut Keyspace,
        id: ConnectionId,
        result: &std::io::Result<()>,
    ) {
        let Some(mut connection) = self.connections.remove(&id) else { return };
        self.counters.sent_bytes += connection.sending as u64;
        connection.sending = 0;
        connection.moved_ns = keyspace.now().monotonic_ns;
        if result.is_err() {
            self.close(id, &mut connection);
        } else {
            if connection.is_answered()
                && let Some(asked_ns) = connection.asked_ns.take()
            {
                let waited_ns = connection.moved_ns.saturating_sub(asked_ns);
                self.activity.note_wait(connection.kind, waited_ns);
            }
            self.dirty.insert(id);
            if connection.output_len() < self.limits.output_pause_bytes && self.paused.remove(&id) {
                self.process(keyspace, id, &mut connection, &[]);
                self.go_on_receiving(id, &mut connection);
            }
        }
        self.connections.insert(id, connection);
    }

    /// The connection is gone.
    pub fn handle_closed(&mut self, id: ConnectionId) {
        self.paused.remove(&id);
        self.dirty.remove(&id);
        self.held.remove(&id);
        let Some(connection) = self.connections.remove(&id) else { return };
        self.peers.note_gone(id);
        if connection.yielded {
            self.yielded.retain(|yielded| *yielded != id);
        }
        match connection.blocked {
            Blocked::Command(_) => {
                self.blocked.retain(|blocked| *blocked != id);
                self.resolving.retain(|(_, _, resolving)| *resolving != id);
            }
            Blocked::Task(task) => self.tasks.abandon(task),
            Blocked::No | Blocked::Replies | Blocked::Relays(_) | Blocked::Gather(_) => {}
        }
        if connection.origin.is_none() {
            self.clients_len -= 1;
            self.abandon_relayed(id, &connection);
            if self.facts.spread.thread != 0 {
                self.tell(0, Message::Left);
            }
        }
    }

    fn close(&mut self, id: ConnectionId, connection: &mut Connection) {
        if connection.phase != Phase::Closing {
            connection.phase = Phase::Closing;
            self.paused.remove(&id);
            self.requests.push_back(Request::Close(id));
        }
    }

    /// A shard has something to tell.
    pub fn handle_event(&mut self, keyspace: &mut Keyspace, shard: ShardIndex, event: Event) {
        match event {
            Event::Durable(_) => self.dirty.append(&mut self.held),
            Event::Failed(error) => {
                tracing::error!(shard, %error, "a disk write failed; the shard is read-only");
                self.dirty.append(&mut self.held);
                self.retry(keyspace);
            }
            Event::Writable => self.retry(keyspace),
            Event::Damaged { key, file, offset } => {
                tracing::error!(shard, ?key, %file, offset, "damaged record");
            }
            Event::Flaw { file, offset, len, damage } => {
                tracing::error!(shard, %file, offset, len, %damage, "scrub found damage");
            }
            Event::Resolved { id } => {
                self.tasks.handle_event(keyspace, shard, event);
                self.deliver_finished(keyspace);
                self.retry_resolved(keyspace, shard, id);
            }
            // Whoever drives the door takes it, and ends the order.
            Event::Snapshotted { .. } => {}
            Event::Read { .. } | Event::Scanned { .. } => {
                self.tasks.handle_event(keyspace, shard, event);
                self.deliver_finished(keyspace);
            }
        }
    }

    fn retry(&mut self, keyspace: &mut Keyspace) {
        self.tasks.retry_stalled(keyspace);
        self.deliver_finished(keyspace);
        self.retry_blocked(keyspace);
    }

    /// Tries the commands again that found a key locked or the log busy, once each.
    fn retry_blocked(&mut self, keyspace: &mut Keyspace) {
        for _ in 0..self.blocked.len() {
            let Some(id) = self.blocked.pop_front() else { break };
            let Some(mut connection) = self.connections.remove(&id) else { continue };
            self.retry_one(keyspace, id, &mut connection);
            self.connections.insert(id, connection);
        }
    }

    /// Runs the commands again that waited for a key to be resolved.
    fn retry_resolved(&mut self, keyspace: &mut Keyspace, shard: ShardIndex, read: ReadId) {
        let all = (shard, read, ConnectionId(u64::MIN))..=(shard, read, ConnectionId(u64::MAX));
        let waiting: Vec<_> = self.resolving.range(all).copied().collect();
        for waiting in waiting {
            self.resolving.remove(&waiting);
            let (_, _, id) = waiting;
            let Some(mut connection) = self.connections.remove(&id) else { continue };
            self.retry_one(keyspace, id, &mut connection);
            self.connections.insert(id, connection);
        }
    }

    fn retry_one(
        &mut self,
        keyspace: &mut Keyspace,
        id: ConnectionId,
        connection: &mut Connection,
    ) {
        let blocked = std::mem::replace(&mut connection.blocked, Blocked::No);
        let (Blocked::Command(encoded) | Blocked::Relays(encoded)) = blocked else { return };
        if connection.phase == Phase::Closing {
            return;
        }
        let mut parser = Parser::new(self.parser_limits());
        parser.set_authenticated(true);
        if let Parsed::Command(arguments) = parser.next(&mut &encoded[..]) {
            let outcome = self.dispatch(keyspace, id, connection, &arguments);
            if outcome == Outcome::Close {
                connection.phase = Phase::Draining;
            }
            self.note_outcome(id, connection, &outcome, || encoded);
        }
        self.resume(keyspace, id, connection);
    }

    /// Goes on with a connection's input after something it waited for has happened.
    fn resume(&mut self, keyspace: &mut Keyspace, id: ConnectionId, connection: &mut Connection) {
        self.process(keyspace, id, connection, &[]);
        self.go_on_receiving(id, connection);
    }

    /// Puts the replies of ended tasks in their places, and goes on with what waited for them.
    fn deliver_finished(&mut self, keyspace: &mut Keyspace) {
        loop {
            while let Some(finished) = self.tasks.poll_finished() {
                self.deliver(keyspace, finished);
            }
            if !self.tasks.take_unlocked() {
                return;
            }
            // Each round executes at least one command that ended a change, so they come to an end.
            self.tasks.retry_stalled(keyspace);
            self.retry_blocked(keyspace);
        }
    }

    fn deliver(&mut self, keyspace: &mut Keyspace, finished: Finished) {
        let Finished { id: task, connection: id, place, reply } = finished;
        let Some(mut connection) = self.connections.remove(&id) else { return };
        connection.replies.fill(place, reply);
        self.dirty.insert(id);
        self.check_output(id, &mut connection);
        let goes_on = match connection.blocked {
            Blocked::Task(waited) => waited == task,
            Blocked::Replies => connection.has_room_for_replies(),
            Blocked::Command(_) | Blocked::No | Blocked::Relays(_) | Blocked::Gather(_) => false,
        };
        if goes_on {
            connection.blocked = Blocked::No;
            self.resume(keyspace, id, &mut connection);
        }
        self.connections.insert(id, connection);
    }

    /// Goes on with commands that take more than one turn.
    pub fn begin_turn(&mut self, keyspace: &mut Keyspace) {
        self.turn += 1;
        for id in std::mem::take(&mut self.yielded) {
            let Some(mut connection) = self.connections.remove(&id) else { continue };
            connection.yielded = false;
            self.resume(keyspace, id, &mut connection);
            self.connections.insert(id, connection);
        }
        self.tasks.step(keyspace);
        self.deliver_finished(keyspace);
    }

    /// Hands out the replies that may go, and disconnects clients that have stalled.
    pub fn end_turn(&mut self, keyspace: &mut Keyspace) {
        self.deliver_finished(keyspace);
        while let Some(id) = self.dirty.pop_first() {
            let Some(mut connection) = self.connections.remove(&id) else { continue };
            match connection.origin {
                Some(origin) => {
                    if !self.answer_relayed(keyspace, (id, &mut connection), origin) {
                        continue;
                    }
                }
                None => self.send(keyspace, id, &mut connection),
            }
            self.connections.insert(id, connection);
        }
        self.disconnect_stalled(keyspace);
    }

    fn send(&mut self, keyspace: &Keyspace, id: ConnectionId, connection: &mut Connection) {
        if connection.phase == Phase::Closing || connection.sending > 0 {
            return;
        }
        self.report_taken(id, connection);
        let parts = connection.replies.take(durability_of(keyspace));
        let len = parts.iter().map(bytes::Bytes::len).sum();
        if len > 0 {
            connection.sending = len;
            connection.moved_ns = keyspace.now().monotonic_ns;
            self.requests.push_back(Request::Send(id, parts));
        } else if !connection.replies.is_empty() {
            self.held.insert(id);
        } else if connection.phase == Phase::Draining && !connection.is_blocked() {
            self.close(id, connection);
        } else {
            connection.rest();
        }
    }

    /// Executes nothing more; connections close once their replies are out.
    pub fn drain(&mut self) {
        for (id, connection) in &mut self.connections {
            if connection.phase == Phase::Open && connection.origin.is_none() {
                connection.phase = Phase::Draining;
                self.dirty.insert(*id);
            }
        }
    }

    /// Closes whatever is still open; for clients that do not take their last replies.
    pub fn close_all(&mut self) {
        let ids: Vec<ConnectionId> = self.connections.keys().copied().collect();
        for id in ids {
            if let Some(mut connection) = self.connections.remove(&id) {
                if connection.origin.is_none() {
                    self.close(id, &mut connection);
                }
                self.connections.insert(id, connection);
            }
        }
    }
}

/// Tells how far a shard of this thread is.
fn durability_of(keyspace: &Keyspace) -> impl Fn(ShardIndex) -> Durable {
    |shard| {
        let store = keyspace.store(shard);
        let lsn = store.acknowledged_lsn();
        if store.failure().is_some() { Durable::FailedAfter(lsn) } else { Durable::UpTo(lsn) }
    }
}
