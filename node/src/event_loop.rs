//! One thread's loop: wait, feed what came to the cores, take what they want done, submit it.
//!
//! A turn never blocks but in [`Io::wait`]. Within a turn the cores are fed until they have nothing
//! more to say; what they want written then goes out together, which is what makes group commit.
//!
//! Each thread of a node has such a loop. The first one listens, deals connections to all of them
//! in turn, and leads the way out: all stop, all are drained, then all seal their logs.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use storage::{Event, LogClock, SnapshotFile};
use wal::disk::DiskError;
use wal::procedure::Procedure;

use crate::admin::metrics::Family;
use crate::admin::{AdminDoor, NodeReport};
use crate::io::mailbox::{Inbox, Outbox, WakeSocket};
use crate::io::{Completion, ConnectionId, DiskOwner, Io, ListenerId, Monotonic, Request};
use crate::keyspace::{Keyspace, ShardIndex, ThreadIndex};
use crate::peer::{ADMIN_DOOR, PeerSide};
use crate::resp::door::{Door, Message, Order, OrderEnd};
use crate::snapshot::take::{SNAPSHOT_OWNER, SnapshotTaker, begin_shards};
use crate::write_times::WriteTimes;

/// The listener behind the client door.
pub const CLIENT_DOOR: ListenerId = ListenerId(0);

/// Completions that a turn deals with at most: its length is what a get waits for. With fewer, a
/// burst of small writes makes more frames than the disk takes as fast (docs/BENCHMARKS.md).
const COMPLETIONS_PER_TURN_MAX: usize = 64;
/// Clients get this long to take their last replies when the node stops, in milliseconds.
const DRAIN_MS: u64 = 5_000;

/// What INFO tells of the peer side is at most so old, in milliseconds.
const FIGURES_EVERY_MS: u64 = 100;

/// Messages of other threads that are taken in one turn.
const MAIL_PER_TURN_MAX: usize = 1024;

/// What one thread tells another.
#[derive(Debug)]
pub(crate) enum Mail {
    /// The doors', from this thread.
    Door(ThreadIndex, Vec<Message>),
    /// A connection to serve.
    Connection(OwnedFd),
    /// A client wants the node to stop; to the first thread.
    StopWanted,
    /// Stop; from the first thread.
    Stop,
    /// A thread has no clients any more; to the first thread.
    Drained,
    /// No thread has clients any more, nor the first one peers; from the first thread.
    Seal,
    /// Start to compact.
    Compact,
    /// Make a part of the snapshot of this name.
    Snapshot(String),
    /// A shard has made its part.
    Snapshotted(ShardIndex, Result<Vec<SnapshotFile>, DiskError>),
    /// Addresses of nodes to start from, whose names were looked up; to the first thread.
    Seeds(Vec<SocketAddr>),
    /// A thread is gone before its time; to the first thread.
    Lost(ThreadIndex),
}

/// The ways to the other threads, and what they have sent.
#[derive(Debug)]
pub(crate) struct Post {
    /// By thread, this one included.
    pub(crate) outboxes: Vec<Outbox<Mail>>,
    pub(crate) inbox: Inbox<Mail>,
    /// What the driver is to watch, until it does.
    pub(crate) wake_socket: Option<WakeSocket>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Serving,
    /// Clients take their last replies, until this time.
    Draining(Monotonic),
    /// This thread has no clients; it still works for those of others.
    Drained,
    /// Connections are closed; the log writes its last frame.
    Sealing,
}

/// Runs a procedure to its end. Returns its result, and whether the node was told to stop
/// meanwhile.
///
/// # Errors
/// The driver's.
pub fn run_procedure<I: Io, T>(
    io: &mut I,
    owner: DiskOwner,
    procedure: Procedure<T>,
) -> io::Result<(T, bool)> {
    let (mut outputs, terminated) = run_procedures(io, vec![(owner, procedure)])?;
    Ok((outputs.pop().expect("one procedure has one output"), terminated))
}

/// Runs procedures of different owners side by side to their ends. Returns their results in the
/// same order, and whether the node was told to stop meanwhile.
///
/// # Errors
/// The driver's.
pub fn run_procedures<I: Io, T>(
    io: &mut I,
    procedures: Vec<(DiskOwner, Procedure<T>)>,
) -> io::Result<(Vec<T>, bool)> {
    let mut outputs: Vec<Option<T>> = procedures.iter().map(|_| None).collect();
    let mut running: Vec<(usize, DiskOwner, Procedure<T>)> = Vec::new();
    for (at, (owner, procedure)) in procedures.into_iter().enumerate() {
        running.push((at, owner, procedure));
    }
    let (mut done, mut terminated) = (Vec::new(), false);
    loop {
        running.retain_mut(|(at, owner, procedure)| {
            while let Some(request) = procedure.poll_request() {
                io.submit(Request::Disk(*owner, request));
            }
            outputs[*at] = procedure.take_output();
            outputs[*at].is_none()
        });
        if running.is_empty() {
            return Ok((outputs.into_iter().flatten().collect(), terminated));
        }
        io.wait(None, &mut done)?;
        for completion in done.drain(..) {
            match completion {
                Completion::Disk(owner, completion) => {
                    let of = running.iter_mut().find(|(_, running, _)| *running == owner);
                    let (.., procedure) = of.expect("a completion is of a procedure under way");
                    procedure.handle_disk(completion);
                }
                Completion::Terminate => terminated = true,
                other => unreachable!("{other:?} before the door is open"),
            }
        }
    }
}

/// The loop and what it drives.
#[derive(Debug)]
pub struct EventLoop<I: Io> {
    io: I,
    keyspace: Keyspace,
    door: Door,
    snapshots: SnapshotTaker,
    /// What the node is to other nodes, if to any; on the first thread.
    peer: Option<Box<dyn PeerSide>>,
    /// When the door is told the peer side's figures again.
    figures_due: Monotonic,
    /// The admin door, if it is open; on the first thread.
    admin: Option<AdminDoor>,
    admin_listening: bool,
    writes: WriteTimes,
    clock: LogClock,
    post: Post,
    phase: Phase,
    listening: bool,
    /// The thread that the last connection went to.
    last_thread: ThreadIndex,
    /// Connections on their way to other threads.
    dealt: BTreeMap<ConnectionId, ThreadIndex>,
    /// Threads that have said to be drained.
    drained: usize,
    done: Vec<Completion>,
}

impl<I: Io> EventLoop<I> {
    /// Puts the loop together. The first thread's driver listens already; `done` is what has
    /// happened since.
    pub(crate) fn new(
        io: I,
        (keyspace, door): (Keyspace, Door),
        clock: LogClock,
        post: Post,
        done: Vec<Completion>,
    ) -> Self {
        let spread = keyspace.spread();
        Self {
            io,
            snapshots: SnapshotTaker::default(),
            peer: None,
            figures_due: Monotonic(0),
            admin: None,
            admin_listening: false,
            writes: WriteTimes::default(),
            clock,
            post,
            phase: Phase::Serving,
            listening: spread.thread == 0,
            last_thread: spread.thread_count - 1,
            dealt: BTreeMap::new(),
            drained: 0,
            done,
            keyspace,
            door,
        }
    }

    /// Gives the node its peer side, before it runs.
    pub(crate) fn set_peer(&mut self, peer: Box<dyn PeerSide>) {
        self.peer = Some(peer);
    }

    /// Opens the admin door, whose listener there is, before the loop runs.
    pub(crate) fn open_admin_door(&mut self) {
        self.admin = Some(AdminDoor::default());
        self.admin_listening = true;
    }

    fn thread(&self) -> ThreadIndex {
        self.keyspace.spread().thread
    }

    fn tell(&mut self, thread: ThreadIndex, mail: Mail) {
        let Some(bell) = self.post.outboxes[usize::from(thread)].post(mail) else { return };
        if self.phase == Phase::Serving {
            self.io.submit(Request::Ring(bell));
        } else {
            // This may be the last turn: nothing is submitted after it.
            bell.ring();
        }
    }

    fn tell_others(&mut self, mail: impl Fn() -> Mail) {
        self.keyspace.spread().others().for_each(|thread| self.tell(thread, mail()));
    }

    /// Tells the node to stop: answers what was asked, seals the log, returns from [`Self::run`].
    pub fn stop(&mut self) {
        if self.thread() != 0 {
            return self.tell(0, Mail::StopWanted);
        }
        if self.phase == Phase::Serving {
            self.io.submit(Request::StopListening(CLIENT_DOOR));
            self.tell_others(|| Mail::Stop);
            self.begin_draining();
        }
    }

    fn begin_draining(&mut self) {
        if self.phase == Phase::Serving {
            self.phase = Phase::Draining(self.io.now().0.plus_millis(DRAIN_MS));
            self.door.drain();
        }
    }

    /// Turns until the node has stopped. `stopping` is called once when it begins to.
    ///
    /// # Errors
    /// The driver's, and one that tells of another thread that has failed.
    pub fn run(&mut self, mut stopping: impl FnMut()) -> io::Result<()> {
        let mut done = std::mem::take(&mut self.done);
        let mut told = false;
        loop {
            self.read_clock();
            for completion in done.drain(..done.len().min(COMPLETIONS_PER_TURN_MAX)) {
                self.handle(completion);
            }
            for _ in 0..MAIL_PER_TURN_MAX {
                let Some(mail) = self.post.inbox.poll() else { break };
                self.take_mail(mail)?;
            }
            self.turn();
            if self.phase != Phase::Serving && !std::mem::replace(&mut told, true) {
                stopping();
            }
            if self.has_stopped() {
                return Ok(());
            }
            let may_wait = self.post.inbox.begin_wait();
            let waits = may_wait && done.is_empty();
            let deadline = if waits { self.deadline() } else { Some(Monotonic(0)) };
            self.io.wait(deadline, &mut done)?;
            self.post.inbox.end_wait();
        }
    }

    fn take_mail(&mut self, mail: Mail) -> io::Result<()> {
        match mail {
            Mail::Door(from, messages) => {
                self.door.handle_messages(&mut self.keyspace, from, messages);
            }
            Mail::Connection(socket) => self.io.submit(Request::Attach(CLIENT_DOOR, socket)),
            Mail::StopWanted => self.stop(),
            Mail::Stop => self.begin_draining(),
            Mail::Drained => self.drained += 1,
            Mail::Seal => self.begin_sealing(),
            Mail::Compact => self.keyspace.compact(),
            Mail::Snapshot(id) => begin_shards(&mut self.keyspace, &id),
            Mail::Snapshotted(shard, result) => self.snapshots.handle_shard(shard, result),
            Mail::Seeds(seeds) => {
                if let Some(peer) = &mut self.peer {
                    peer.add_seeds(&mut self.keyspace, &seeds);
                }
            }
            Mail::Lost(thread) => {
                return Err(io::Error::other(format!("thread {thread} has failed")));
            }
        }
        Ok(())
    }

    fn read_clock(&mut self) {
        let (monotonic, wall) = self.io.now();
        let reading = self.clock.read(wall.0, monotonic.0);
        if let Some(jump_ms) = reading.jump_ms {
            tracing::error!(jump_ms, "the clock jumped ahead; keys expire by it");
        }
        self.keyspace.set_now(reading.now);
    }

    /// Hands a completion to the peer side, if it is its.
    fn handle_peer(&mut self, completion: Completion) -> Option<Completion> {
        let Some(peer) = &mut self.peer else { return Some(completion) };
        let is_its = match &completion {
            Completion::Listening(listener, _)
            | Completion::Accepted { listener, .. }
            | Completion::ListenerClosed(listener) => *listener != CLIENT_DOOR,
            Completion::Connected { .. }
            | Completion::UdpBound(..)
            | Completion::Datagram { .. }
            | Completion::UdpClosed(_) => true,
            Completion::Received { connection, .. }
            | Completion::Sent { connection, .. }
            | Completion::Closed(connection) => peer.owns(*connection),
            // Nobody but the client door lends memory.
            Completion::ReceivedInto { .. }
            | Completion::Disk(..)
            | Completion::Detached { .. }
            | Completion::NotAttached
            | Completion::Woken
            | Completion::Terminate => false,
        };
        if !is_its {
            return Some(completion);
        }
        if let Some(buffer) = peer.handle(&mut self.keyspace, completion) {
            self.io.release(buffer);
        }
        None
    }

    /// Tells the door the figures of the peer side, now that a client may ask for them.
    fn tell_figures(&mut self) {
        let now = Monotonic(self.keyspace.now().monotonic_ns);
        if let Some(peer) = &self.peer
            && now >= self.figures_due
        {
            self.figures_due = now.plus_millis(FIGURES_EVERY_MS);
            self.door.note_figures(peer.figures());
        }
    }

    /// The time at which the turn began.
    fn turn_begun(&self) -> Monotonic {
        Monotonic(self.keyspace.now().monotonic_ns)
    }

    /// Hands a completion to the admin door, if it is its.
    fn handle_admin(&mut self, completion: Completion) -> Option<Completion> {
        let now = self.turn_begun();
        let Some(admin) = &mut self.admin else { return Some(completion) };
        match completion {
            Completion::Accepted { listener: ADMIN_DOOR, connection, .. } => {
                admin.handle_accepted(now, connection);
            }
            Completion::Listening(ADMIN_DOOR, Err(error)) => {
                tracing::error!(%error, "the admin door has closed");
            }
            Completion::ListenerClosed(ADMIN_DOOR) => self.admin_listening = false,
            Completion::Received { connection, result } if admin.owns(connection) => {
                if let Some(buffer) = admin.handle_received(now, connection, result) {
                    self.io.release(buffer);
                }
            }
            Completion::Sent { connection, result } if admin.owns(connection) => {
                admin.handle_sent(now, connection, &result);
            }
            Completion::Closed(connection) if admin.owns(connection) => {
                admin.handle_closed(connection);
            }
            other => return Some(other),
        }
        None
    }

    /// Gets the admin door what it asks for.
    fn serve_admin(&mut self) {
        let now = self.turn_begun();
        let Some(admin) = &mut self.admin else { return };
        admin.handle_time(now);
        while let Some(connection) = admin.poll_question() {
            self.door.ask_report(&self.keyspace, connection.0);
        }
        while let Some((token, mut report)) = self.door.poll_report() {
            self.complete(&mut report);
            if let Some(admin) = &mut self.admin {
                admin.answer(now, ConnectionId(token), &report);
            }
        }
    }

    /// Adds what the loop knows to what the doors of all threads know.
    fn complete(&self, report: &mut NodeReport) {
        let NodeReport { families, ills, waits_for } = report;
        if self.phase != Phase::Serving {
            waits_for.push("the node is stopping".to_owned());
        }
        if let Some(peer) = &self.peer {
            families.extend(Family::of_figures(peer.figures()));
            if !peer.is_ready() {
                waits_for.push("the node is not yet one of its cluster".to_owned());
            }
        }
        families.extend(self.io.datagram_statistics().families());
        families.extend(self.admin.iter().flat_map(|admin| admin.counters().families()));
        let (healthy, ready) = (ills.is_empty(), ills.is_empty() && waits_for.is_empty());
        families.push(Family::gauge("kadring_healthy", "What /healthz says", u64::from(healthy)));
        families.push(Family::gauge("kadring_ready", "What /readyz says", u64::from(ready)));
    }

    fn handle(&mut self, completion: Completion) {
        let Some(completion) = self.handle_admin(completion) else { return };
        let Some(completion) = self.handle_peer(completion) else { return };
        if matches!(completion, Completion::Received { .. } | Completion::ReceivedInto { .. }) {
            self.tell_figures();
        }
        let now = self.turn_begun();
        let Self { keyspace, door, snapshots, .. } = self;
        match completion {
            Completion::Disk(SNAPSHOT_OWNER, completion) => snapshots.handle_disk(completion),
            Completion::Disk(owner, completion) => {
                if let Some(ns) = self.writes.take(owner, completion.id, now) {
                    keyspace.note_durable_write(ns);
                }
                keyspace.handle_disk(owner.0, completion);
            }
            Completion::Accepted { connection, peer, listener: _ } => {
                if !self.deal(connection) {
                    self.door.handle_accepted(&self.keyspace, connection, peer);
                    if self.phase != Phase::Serving {
                        self.door.drain();
                    }
                }
            }
            Completion::Detached { connection, socket } => {
                if let Some(thread) = self.dealt.remove(&connection) {
                    self.tell(thread, Mail::Connection(socket));
                }
            }
            Completion::NotAttached => self.tell(0, Mail::Door(self.thread(), vec![Message::Left])),
            Completion::Woken => {}
            Completion::Received { connection, result } => {
                if let Some(buffer) = door.handle_received(keyspace, connection, result) {
                    self.io.release(buffer);
                }
            }
            Completion::ReceivedInto { connection, room, result } => {
                door.handle_received_into(keyspace, connection, room, result);
            }
            Completion::Sent { connection, result } => {
                door.handle_sent(keyspace, connection, &result);
            }
            Completion::Closed(connection) if self.dealt.remove(&connection).is_some() => {
                self.door.handle_messages(&mut self.keyspace, 0, vec![Message::Left]);
            }
            Completion::Closed(connection) => self.door.handle_closed(connection),
            Completion::ListenerClosed(_) => self.listening = false,
            Completion::Listening(_, result) => {
                if let Err(error) = result {
                    tracing::error!(%error, "the client door has closed");
                }
            }
            Completion::Terminate => self.stop(),
            other @ (Completion::Connected { .. }
            | Completion::UdpBound(..)
            | Completion::Datagram { .. }
            | Completion::UdpClosed(_)) => unreachable!("{other:?}: only a peer side asks for it"),
        }
    }

    /// Hands a connection to the next thread, if it is the first one's to deal. One that is to be
    /// refused stays.
    fn deal(&mut self, connection: ConnectionId) -> bool {
        let spread = self.keyspace.spread();
        if spread.thread != 0 || spread.thread_count == 1 || !self.door.has_room() {
            return false;
        }
        self.last_thread = (self.last_thread + 1) % spread.thread_count;
        if self.last_thread == 0 || self.phase != Phase::Serving {
            return false;
        }
        self.door.note_handed_over();
        self.dealt.insert(connection, self.last_thread);
        self.io.submit(Request::Detach(connection));
        true
    }

    /// Feeds the cores until they are silent, then hands their requests to the driver.
    fn turn(&mut self) {
        self.door.note_buffers(self.io.buffer_statistics());
        self.door.note_sends(self.io.send_statistics());
        self.door.begin_turn(&mut self.keyspace);
        loop {
            while let Some((shard, event)) = self.keyspace.poll_event() {
                match event {
                    Event::Snapshotted { result } if self.thread() == 0 => {
                        self.snapshots.handle_shard(shard, result);
                    }
                    Event::Snapshotted { result } => {
                        self.tell(0, Mail::Snapshotted(shard, result));
                    }
                    event => {
                        if let Some(peer) = &mut self.peer {
                            peer.handle_event(&mut self.keyspace, shard, &event);
                        }
                        self.door.handle_event(&mut self.keyspace, shard, event);
                    }
                }
            }
            self.carry_out_orders();
            if let Some(peer) = &mut self.peer {
                peer.turn(&mut self.keyspace, &mut self.door);
            }
            self.serve_admin();
            self.door.end_turn(&mut self.keyspace);
            self.keyspace.end_turn();
            if !self.submit() {
                break;
            }
        }
        if self.door.take_shutdown() {
            self.stop();
        }
        self.advance_phase();
    }

    fn carry_out_orders(&mut self) {
        let Self { keyspace, door, snapshots, post, .. } = self;
        loop {
            while let Some((id, order)) = door.poll_order() {
                match order {
                    Order::Snapshot { id: name } => snapshots.begin(keyspace, id, name),
                    Order::Delete { id: name } => snapshots.delete(keyspace, id, name),
                    Order::Compact => {
                        keyspace.compact();
                        for thread in keyspace.spread().others() {
                            post.outboxes[usize::from(thread)].send(Mail::Compact);
                        }
                        door.handle_order(keyspace, id, OrderEnd::Done);
                    }
                }
            }
            // The end of a snapshot may be what the next order waits for.
            let advanced = snapshots.advance(keyspace);
            if let Some(name) = snapshots.poll_asked() {
                for thread in keyspace.spread().others() {
                    post.outboxes[usize::from(thread)].send(Mail::Snapshot(name.clone()));
                }
            }
            let Some((id, end)) = advanced else { return };
            door.handle_order(keyspace, id, end);
        }
    }

    /// Returns whether something came up that the cores have not seen yet.
    fn submit(&mut self) -> bool {
        while let Some((shard, request)) = self.keyspace.poll_request() {
            self.writes.note_begun(DiskOwner(shard), &request, || self.io.now().0);
            self.io.submit(Request::Disk(DiskOwner(shard), request));
        }
        while let Some(request) = self.snapshots.poll_request() {
            self.io.submit(Request::Disk(SNAPSHOT_OWNER, request));
        }
        while let Some(request) = self.door.poll_request() {
            self.io.submit(request);
        }
        while let Some(request) = self.peer.as_mut().and_then(|peer| peer.poll_request()) {
            self.io.submit(request);
        }
        while let Some(request) = self.admin.as_mut().and_then(AdminDoor::poll_request) {
            self.io.submit(request);
        }
        let for_peer = self.peer.is_some() && self.door.has_peer_commands();
        self.post_messages() || self.keyspace.has_events() || self.door.has_orders() || for_peer
    }

    /// Returns whether the door had something to tell itself.
    fn post_messages(&mut self) -> bool {
        let own = self.thread();
        let mut told = false;
        while let Some((thread, messages)) = self.door.poll_messages() {
            if thread == own {
                self.door.handle_messages(&mut self.keyspace, own, messages);
                told = true;
            } else {
                self.tell(thread, Mail::Door(own, messages));
            }
        }
        told
    }

    fn advance_phase(&mut self) {
        if let Phase::Draining(deadline) = self.phase {
            if self.door.is_empty() {
                self.phase = Phase::Drained;
                self.drained += 1;
                if self.thread() != 0 {
                    self.tell(0, Mail::Drained);
                }
            } else if self.io.now().0 >= deadline {
                tracing::warn!("clients have not taken their last replies; closing them");
                self.door.close_all();
                self.phase = Phase::Draining(deadline.plus_millis(DRAIN_MS));
            } else {
                return;
            }
            self.submit();
        }
        let all = usize::from(self.keyspace.spread().thread_count);
        if self.phase == Phase::Drained && self.thread() == 0 && self.drained == all {
            if !self.is_peer_drained() {
                return;
            }
            self.tell_others(|| Mail::Seal);
            self.begin_sealing();
            self.submit();
        } else if self.phase == Phase::Sealing {
            self.keyspace.seal();
            self.submit();
        }
    }

    /// Has the peer side stop, and tells whether it has.
    fn is_peer_drained(&mut self) -> bool {
        let Some(peer) = &mut self.peer else { return true };
        peer.drain();
        if peer.is_drained() {
            return true;
        }
        self.submit();
        false
    }

    fn begin_sealing(&mut self) {
        self.phase = Phase::Sealing;
        self.keyspace.seal();
        if let Some(admin) = &mut self.admin {
            admin.close();
            self.io.submit(Request::StopListening(ADMIN_DOOR));
        }
    }

    fn has_stopped(&self) -> bool {
        let failed = self.keyspace.stores().any(|(_, store)| store.failure().is_some());
        let open = self.listening
            || self.admin_listening
            || self.admin.as_ref().is_some_and(|admin| !admin.is_empty());
        self.phase == Phase::Sealing && !open && (self.keyspace.is_quiet() || failed)
    }

    fn deadline(&self) -> Option<Monotonic> {
        let draining = match self.phase {
            Phase::Draining(deadline) => Some(deadline.0),
            Phase::Serving | Phase::Drained | Phase::Sealing => None,
        };
        let peer = self.peer.as_ref().and_then(|peer| peer.deadline());
        let peer = peer.map(|deadline| deadline.0);
        let admin = self.admin.as_ref().and_then(AdminDoor::deadline).map(|deadline| deadline.0);
        let deadlines =
            [self.keyspace.deadline_ns(), self.door.deadline_ns(), draining, peer, admin];
        deadlines.into_iter().flatten().min().map(Monotonic)
    }
}
