//! [`UringIo`]: the driver that has one ring do both disk and network.
//!
//! ```text
//! submit(Request) -> Op in a slot -> SQE ~~ kernel ~~ CQE -> slot by user_data -> next step, or
//!                                                             Completion
//! ```
//!
//! The one invariant all `unsafe` code here rests on: *what an SQE names (buffers, paths, headers,
//! descriptors) is owned by the op in the slot whose key is the SQE's `user_data`, or by a
//! connection or listener that outlives that op; and an op leaves its slot only with its last CQE.*
//! `UringIo::start` establishes it, `UringIo::handle` ends it, and dropping the driver cancels
//! and drains before anything is freed.
//!
//! The ring belongs to the thread that made it (SINGLE_ISSUER), so the driver is not `Send`.
//! Its own descriptor is not registered: that saves nothing measurable and keeps the ring alive
//! past its drop.

mod address;
pub(in crate::io) mod arena;
mod bells;
mod buffers;
mod connect;
mod datagrams;
mod disk;
mod inbound;
mod network;
mod op;
mod outbound;
mod pages;
mod probe;
mod ring;

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use io_uring::types::CancelBuilder;
use io_uring::{opcode, squeue};
use rustix::io::Errno;
use wal::disk::BufferSource;

pub use self::inbound::ReceiveCounters;
pub use self::probe::{Abilities, ProbeError};

use self::arena::{Arena, ArenaBuffers};
use self::bells::Bells;
use self::buffers::ReceiveBuffers;
use self::connect::Attempts;
use self::datagrams::{DatagramOp, Datagrams};
use self::disk::Disk;
use self::network::Network;
use self::op::{Op, Step};
use self::outbound::Departures;
use self::ring::{Cqe, Entered, Ring};
use super::directory::{DataDirectory, pause};
use super::disk_error::is_interruption;
use super::mailbox::WakeSocket;
use super::signals::Signals;
use super::slots::{SlotKey, Slots};
use super::sockets::RECEIVE_BUFFERS;
use super::{
    BufferStatistics, Completion, DatagramStatistics, Io, Monotonic, ReceiveBuffer, Request,
    SendStatistics, WallClock, clock,
};

/// The `user_data` of cancellations, whose own completions say nothing.
const CANCEL: u64 = 0;
/// The `user_data` of messages from other rings: this thread has mail.
const MAIL: u64 = 1;
/// How often a ring that takes nothing is entered again, a millisecond apart, before it counts as
/// broken.
const BUSY_MAX: u32 = 1000;
/// How often a dropped driver waits a second for the kernel to let go of its requests.
const DRAIN_ROUNDS_MAX: u32 = 30;

/// Sizes of a ring.
#[derive(Clone, Copy, Debug)]
pub struct UringOptions {
    /// Entries of the submission queue; more requests than that wait in memory.
    pub entries: u32,
    /// Receive buffers of 16 KiB; a power of two, at most 32,768.
    pub receive_buffers: u16,
    /// Bytes of disk buffers registered with the ring; rounded up to 4 MiB, and 0 for none.
    pub buffer_bytes: usize,
    /// Whether SIGTERM and SIGINT become [`Completion::Terminate`].
    pub handle_signals: bool,
    /// How much of the kernel is used.
    pub abilities: Abilities,
}

impl Default for UringOptions {
    fn default() -> Self {
        Self {
            entries: 1024,
            receive_buffers: RECEIVE_BUFFERS,
            buffer_bytes: 64 << 20,
            handle_signals: true,
            abilities: Abilities::Probed,
        }
    }
}

/// The io_uring driver.
pub struct UringIo {
    ring: Ring,
    ops: Slots<Op>,
    disk: Disk,
    arena: Arc<Arena>,
    network: Network,
    datagrams: Datagrams,
    attempts: Attempts,
    signals: Option<Signals>,
    wake: Option<WakeSocket>,
    bells: Bells,
    ready: Vec<Completion>,
    drained: Vec<Cqe>,
}

impl UringIo {
    /// Makes the ring. Only the calling thread may use it.
    ///
    /// # Errors
    /// If the kernel allows or offers no ring that will do; the error names cause and remedy.
    pub fn new(directory: DataDirectory, options: UringOptions) -> Result<Self, ProbeError> {
        let ring = Ring::new(options.entries, options.abilities)?;
        let buffers = ReceiveBuffers::register(ring.kernel(), options.receive_buffers)?;
        let arena = Arena::new(options.buffer_bytes).map_err(ProbeError::Other)?;
        arena.register(ring.kernel());
        let newest = options.abilities == Abilities::Probed;
        let sends_without_copy = newest && probe::sends_without_copy(ring.kernel());
        let bells = Bells::new(ring.refused().is_empty() && probe::takes_messages(ring.kernel()));
        let mut driver = Self {
            ring,
            ops: Slots::new(),
            disk: Disk::new(directory),
            arena,
            network: Network::new(buffers, Departures::new(sends_without_copy)),
            datagrams: Datagrams::default(),
            attempts: Attempts::new(),
            signals: None,
            wake: None,
            bells,
            ready: Vec::new(),
            drained: Vec::new(),
        };
        driver.register_lock();
        if options.handle_signals {
            let signals = Signals::install().map_err(ProbeError::Other)?;
            let socket = signals.as_fd().as_raw_fd();
            driver.signals = Some(signals);
            driver.start(Op::Signal { socket, buffer: Box::new([0; 64]) });
        }
        Ok(driver)
    }

    /// Set-up flags this kernel refused; the ring works without them, a little slower.
    #[must_use]
    pub fn flags_refused(&self) -> &[&'static str] {
        self.ring.refused()
    }

    /// The data directory.
    #[must_use]
    pub fn directory(&self) -> &DataDirectory {
        &self.disk.directory
    }

    /// Requests in the kernel or on their way, the driver's own included.
    #[must_use]
    pub fn slots_in_use(&self) -> usize {
        self.ops.len()
    }

    /// Connections that are not closed yet.
    #[must_use]
    pub fn connections_open(&self) -> usize {
        self.network.connections_open()
    }

    /// Puts an op into a slot and queues its entry.
    fn start(&mut self, op: Op) -> SlotKey {
        let key = self.ops.insert(op);
        let op = self.ops.get_mut(key).expect("just inserted");
        let entry = op.entry(&self.disk.directory, &self.arena).user_data(key.to_bits());
        self.disk.operations_registered += u64::from(is_on_registered_memory(&entry));
        // SAFETY: the module's invariant: the op owns what the entry names and leaves its slot only
        // with its last completion.
        unsafe { self.ring.push(entry) };
        key
    }

    /// Takes one completion to its op.
    fn handle(&mut self, cqe: Cqe) {
        match cqe.user_data {
            CANCEL => return,
            MAIL => return self.ready.push(Completion::Woken),
            _ => {}
        }
        let key = SlotKey::from_bits(cqe.user_data);
        if !cqe.is_last() {
            return self.handle_one_of_many(key, cqe);
        }
        let op = self.ops.remove(key).expect("a completion's op is in its slot");
        match op {
            Op::Disk(task) => self.handle_disk(task, cqe),
            Op::Accept { listener, .. } => self.handle_accept(listener, cqe),
            Op::Receive { connection, standing, .. } => {
                self.handle_receive((connection, standing), cqe);
            }
            Op::ReceiveInto { connection, room, .. } => {
                self.handle_receive_into(connection, room, cqe);
            }
            Op::Send(task) => self.handle_send(task, cqe),
            Op::SendZeroCopy(send) => self.handle_zero_copy_end(send, cqe),
            Op::CloseSocket { connection, .. } => self.ready.push(Completion::Closed(connection)),
            Op::Connect(op) => self.handle_connect_op(op, cqe),
            Op::Datagram(op) => self.handle_datagram_op(op, cqe),
            Op::Pause { purpose, .. } => self.handle_pause(purpose),
            Op::Ring(bell) => self.bells.handle_rung(&bell, cqe),
            Op::Wake { socket, buffer } => match cqe.outcome() {
                // The mailbox has no senders any more.
                Ok(0) => {}
                Ok(_) => {
                    self.ready.push(Completion::Woken);
                    self.start(Op::Wake { socket, buffer });
                }
                Err(errno) if is_interruption(errno) => {
                    self.start(Op::Wake { socket, buffer });
                }
                Err(error) => tracing::error!(%error, "other threads are not heard any more"),
            },
            Op::Signal { socket, buffer } => match cqe.outcome() {
                Ok(0) => tracing::warn!("signals are not heard any more"),
                Ok(_) => {
                    self.ready.push(Completion::Terminate);
                    self.start(Op::Signal { socket, buffer });
                }
                Err(Errno::INTR | Errno::AGAIN) => {
                    self.start(Op::Signal { socket, buffer });
                }
                Err(error) => tracing::warn!(%error, "signals are not heard any more"),
            },
        }
    }

    /// Takes a completion that is not the last of its op, which stays where it is.
    fn handle_one_of_many(&mut self, key: SlotKey, cqe: Cqe) {
        match self.ops.get_mut(key) {
            Some(&mut Op::Accept { listener, .. }) => self.handle_accept(listener, cqe),
            Some(&mut Op::Datagram(DatagramOp::Receive { socket, .. })) => {
                self.handle_datagram(socket, cqe);
            }
            Some(&mut Op::Receive { connection, standing, .. }) => {
                self.handle_receive((connection, standing), cqe);
            }
            Some(Op::SendZeroCopy(_)) => self.handle_part_sent(key, cqe),
            _ => unreachable!("no other op completes more than once"),
        }
    }

    /// Enters the kernel once and handles what has completed.
    fn turn(&mut self, timeout: Option<Duration>) -> io::Result<Entered> {
        self.restart_starved();
        let mut drained = std::mem::take(&mut self.drained);
        let entered = self.ring.enter(timeout, &mut drained);
        for cqe in drained.drain(..) {
            self.handle(cqe);
        }
        self.drained = drained;
        entered
    }

    /// Ends what is in the kernel; tells what it let go of.
    fn drain_all(&mut self) -> Drained {
        for entry in self.ring.take_backlog() {
            // The kernel has never heard of these.
            let op = self.ops.remove(SlotKey::from_bits(entry.get_user_data()));
            if let Some(Op::Ring(bell)) = op {
                bell.ring();
            }
        }
        let (mut drained, mut aborted) = (Vec::new(), false);
        for _ in 0..DRAIN_ROUNDS_MAX {
            self.push_cancel(CancelBuilder::any());
            loop {
                let entered = self.ring.enter(Some(Duration::from_secs(1)), &mut drained);
                for cqe in drained.drain(..) {
                    self.discard(cqe);
                }
                if self.ops.len() == 0 {
                    return Drained::All;
                }
                // Nothing is left but memory that goes out; without its connection, it need not.
                let only_notifications =
                    self.ops.values().all(|op| matches!(op, Op::SendZeroCopy(_)));
                if only_notifications && !std::mem::replace(&mut aborted, only_notifications) {
                    self.abort_sends();
                    continue;
                }
                match entered {
                    Ok(Entered::Done | Entered::Interrupted) => {}
                    Ok(Entered::TimedOut | Entered::Busy) if aborted => {
                        return Drained::AllButNotifications;
                    }
                    Ok(Entered::TimedOut | Entered::Busy) => break,
                    Err(_) => return Drained::Not,
                }
            }
        }
        Drained::Not
    }

    /// Frees an op, and the descriptor it yielded, if any.
    fn discard(&mut self, cqe: Cqe) {
        let key = SlotKey::from_bits(cqe.user_data);
        let opens = matches!(
            self.ops.get_mut(key),
            Some(
                Op::Accept { .. }
                    | Op::Disk(op::DiskTask {
                        step: Step::Open { .. } | Step::OpenDirectory { .. },
                        ..
                    })
            )
        );
        if opens && cqe.result >= 0 {
            // SAFETY: the answer to an OPENAT or ACCEPT is a descriptor that is ours alone.
            drop(unsafe { adopt(cqe.result) });
        }
        if cqe.is_last() {
            let op = self.ops.remove(key);
            if let Some(Op::Ring(bell)) = &op {
                self.bells.handle_rung(bell, cqe);
            }
            if let Some(
                Op::CloseSocket { socket: fd, .. }
                | Op::Disk(op::DiskTask { step: Step::Close { fd }, .. }),
            ) = op
                && cqe.outcome() == Err(Errno::CANCELED)
            {
                // SAFETY: the op owned the descriptor, and its close was not carried out.
                drop(unsafe { adopt(fd) });
            }
        }
    }
}

impl Io for UringIo {
    fn submit(&mut self, request: Request) {
        match request {
            Request::Disk(owner, request) => self.submit_disk(owner, request),
            Request::Listen(listener, address) => self.submit_listen(listener, address),
            Request::Connect { attempt, to, deadline } => {
                self.submit_connect(attempt, to, deadline);
            }
            Request::CancelConnect(attempt) => self.submit_cancel_connect(attempt),
            Request::Receive(connection) => self.submit_receive(connection),
            Request::ReceiveInto(connection, room) => self.submit_receive_into(connection, room),
            Request::Send(connection, parts) => self.submit_send(connection, parts),
            Request::Close(connection) => self.submit_close_connection(connection),
            Request::StopListening(listener) => self.submit_stop_listening(listener),
            Request::BindUdp { socket, address, bytes_max } => {
                self.submit_bind_udp(socket, address, bytes_max);
            }
            Request::SendDatagram { socket, to, bytes } => {
                self.submit_send_datagram(socket, to, bytes);
            }
            Request::CloseUdp(socket) => self.submit_close_udp(socket),
            Request::Detach(connection) => self.submit_detach(connection),
            Request::Attach(listener, socket) => {
                if !self.take_accepted(listener, socket) {
                    self.ready.push(Completion::NotAttached);
                }
            }
            Request::Ring(bell) => self.submit_ring(bell),
            Request::Watch(wake) => {
                self.bells.offer(self.ring.kernel(), &wake);
                let socket = wake.as_fd().as_raw_fd();
                self.wake = Some(wake);
                self.start(Op::Wake { socket, buffer: Box::new([0; 64]) });
            }
        }
    }

    fn wait(&mut self, deadline: Option<Monotonic>, done: &mut Vec<Completion>) -> io::Result<()> {
        let before = done.len();
        let may_skip = self.look_at_holding();
        if may_skip && !self.bells.is_ringing() {
            done.append(&mut self.ready);
            return Ok(());
        }
        let mut busy = 0;
        loop {
            done.append(&mut self.ready);
            let timeout =
                if done.len() > before { Some(Duration::ZERO) } else { deadline.map(clock::until) };
            let entered = self.turn(timeout)?;
            done.append(&mut self.ready);
            if done.len() > before
                || entered == Entered::TimedOut
                || timeout == Some(Duration::ZERO)
            {
                return Ok(());
            }
            if entered == Entered::Busy {
                busy += 1;
                if busy == BUSY_MAX {
                    return Err(io::Error::other("the ring takes no requests any more"));
                }
                pause(1);
            }
        }
    }

    fn release(&mut self, buffer: ReceiveBuffer) {
        match buffer.pool() {
            None => self.network.buffers.give_back(buffer),
            Some(pool) => self.release_datagram(pool, buffer),
        }
    }

    fn now(&self) -> (Monotonic, WallClock) {
        clock::now()
    }

    fn name(&self) -> &'static str {
        "uring"
    }

    fn buffers(&self) -> Rc<dyn BufferSource> {
        ArenaBuffers::new(&self.arena)
    }

    fn buffer_statistics(&self) -> BufferStatistics {
        let operations = self.disk.operations_registered;
        BufferStatistics { operations, ..self.arena.statistics() }
    }

    fn datagram_statistics(&self) -> DatagramStatistics {
        self.datagrams.statistics()
    }

    fn send_statistics(&self) -> SendStatistics {
        self.network.departures.statistics
    }
}

impl Drop for UringIo {
    fn drop(&mut self) {
        let drained = self.drain_all();
        if drained == Drained::Not {
            // The kernel may still write to what these own: leaking it is the only safe way.
            tracing::error!("the kernel does not let go of its requests; their memory is lost");
            std::mem::forget(std::mem::replace(&mut self.ops, Slots::new()));
            std::mem::forget(Arc::clone(&self.arena));
            self.network.buffers.leak();
            self.datagrams.leak();
            return;
        }
        if drained == Drained::AllButNotifications {
            // The kernel still reads what these own. It has hold of the pages; what it sends of
            // them to peers that do not answer shall not change.
            tracing::debug!(count = self.ops.len(), "sends are under way when the driver ends");
            std::mem::forget(std::mem::replace(&mut self.ops, Slots::new()));
            std::mem::forget(Arc::clone(&self.arena));
        } else {
            self.arena.unregister(self.ring.kernel());
        }
        self.network.buffers.unregister(self.ring.kernel());
        self.datagrams.unregister(self.ring.kernel());
        // The lock is to be free once the driver is gone, not when the kernel has taken the ring
        // apart.
        if let Err(error) = self.ring.kernel().submitter().unregister_files() {
            tracing::debug!(%error, "no files were registered");
        }
    }
}

/// What the kernel has let go of when the driver ends.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Drained {
    All,
    /// All but memory it sends from, on connections that are closed.
    AllButNotifications,
    Not,
}

fn is_on_registered_memory(entry: &squeue::Entry) -> bool {
    let codes = [opcode::ReadFixed::CODE, opcode::WriteFixed::CODE];
    codes.into_iter().any(|code| u32::from(code) == entry.get_opcode())
}

impl std::fmt::Debug for UringIo {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (slots, connections) = (self.slots_in_use(), self.connections_open());
        write!(f, "UringIo({slots} slots, {connections} connections)")
    }
}

/// Takes possession of a descriptor the kernel has made for us.
///
/// # Safety
/// The descriptor is open, and nothing else owns it.
unsafe fn adopt(fd: RawFd) -> OwnedFd {
    // SAFETY: the caller promises it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}
