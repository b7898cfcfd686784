//! The receiving half of a connection: a standing receive behind requests for one.
//!
//! The first [`Request::Receive`](crate::io::Request::Receive) of a connection arms a multishot
//! receive, which the kernel goes on completing without being asked again; the following requests
//! cost no entry. What arrives before it is asked for is *held*. Whoever stops asking is paused:
//!
//! ```text
//!          Receive               last completion: no buffer, full queue, cancelled, end
//!   Idle ----------> Standing --------------------------------------------------------> Idle
//!    ^                  | held and not asked for, or too much held                       ^
//!    |                  +----> Ending (cancelled) ---------------------------------------+
//!    |  no buffer is free
//!    +-- Starved <- a receive is asked for, and none can be armed
//! ```
//!
//! Every end of a standing receive is ordinary: the next request arms another.
//!
//! A [`Request::ReceiveInto`](crate::io::Request::ReceiveInto) gets what is held first, copied. It
//! has a standing receive cancelled, and gets what that still brings; when it is over, the kernel
//! receives into the memory itself (`Placing`). A receive that follows takes one buffer and does
//! not stand, because another long value may come; the one after that stands again.
//!
//! Invariants: a connection holds at most what the kernel delivers before it hears of the
//! cancellation; one that does not ask holds no buffer of the ring's across a turn, so that it
//! cannot starve others.

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsRawFd;

use io_uring::cqueue;
use io_uring::types::CancelBuilder;
use rustix::io::Errno;

use super::UringIo;
use super::network::{Network, id};
use super::op::Op;
use super::ring::Cqe;
use crate::io::disk_error::is_interruption;
use crate::io::slots::SlotKey;
use crate::io::sockets;
use crate::io::{Completion, ConnectionId, ReceiveBuffer, ReceiveRoom};

/// Buffers held of a connection that keeps asking; with more, its receive is cancelled until they
/// have been asked for.
const HELD_BUFFERS_MAX: usize = 8;
/// Turns in a row that hand out held buffers without entering the kernel.
const TURNS_SKIPPED_MAX: u32 = 16;

/// How the kernel stands to a connection's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stand {
    Idle,
    /// The op in that slot completes with each arrival.
    Standing(SlotKey),
    /// As above, and it has been cancelled.
    Ending,
    /// It waits for a buffer to be released.
    Starved,
    /// An op receives once, into memory that is lent.
    Placing,
}

/// A request that is not answered.
#[derive(Debug)]
enum Wanted {
    Nothing,
    /// Whatever comes next.
    Buffer,
    /// The same, in this memory. While the kernel has that, the op has it.
    Room(Option<ReceiveRoom>),
}

impl Wanted {
    fn is_something(&self) -> bool {
        !matches!(self, Self::Nothing)
    }

    fn take(&mut self) -> Self {
        std::mem::replace(self, Self::Nothing)
    }
}

/// What is known of a connection's incoming bytes.
#[derive(Debug)]
pub(super) struct Inbound {
    stand: Stand,
    wanted: Wanted,
    /// Whether the last request lent memory.
    placed: bool,
    /// Whether a request came since the last look at those that hold something.
    asked: bool,
    /// Whether it is among those that are looked at.
    listed: bool,
    /// What came before it was asked for.
    held: VecDeque<io::Result<ReceiveBuffer>>,
}

impl Inbound {
    pub(super) const fn new() -> Self {
        Self {
            stand: Stand::Idle,
            wanted: Wanted::Nothing,
            placed: false,
            asked: false,
            listed: false,
            held: VecDeque::new(),
        }
    }

    /// Whether neither the kernel nor a request keeps the connection.
    pub(super) fn is_over(&self) -> bool {
        self.stand == Stand::Idle && !self.wanted.is_something()
    }

    pub(super) fn is_in_kernel(&self) -> bool {
        matches!(self.stand, Stand::Standing(_) | Stand::Ending | Stand::Placing)
    }
}

/// What all connections together hold and wait for.
#[derive(Debug, Default)]
pub(super) struct Arrivals {
    /// Connections whose receive waits for a buffer to be released.
    starved: Vec<SlotKey>,
    /// Connections that hold something.
    holding: Vec<SlotKey>,
    /// Whether something held was asked for since the last turn.
    handed_out: bool,
    turns_skipped: u32,
    pub(super) counters: ReceiveCounters,
}

/// What the standing receives have met.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReceiveCounters {
    /// Receives armed: entries that the kernel was given.
    pub armed: u64,
    /// Completions with bytes.
    pub completions: u64,
    /// Ends because no buffer was free.
    pub unbuffered: u64,
    /// Cancelled because nobody asked for what came, or not fast enough.
    pub paused: u64,
    /// Other ends with bytes to follow: the completion queue was full, or an interruption.
    pub broken_off: u64,
    /// Bytes that the kernel has put into memory that was lent.
    pub placed_bytes: u64,
}

impl UringIo {
    /// What the standing receives have met so far.
    #[must_use]
    pub fn receive_counters(&self) -> ReceiveCounters {
        self.network.arrivals.counters
    }

    pub(super) fn submit_receive(&mut self, id: ConnectionId) {
        let key = SlotKey::from_bits(id.0);
        let inbound = &mut self.network.open(key).inbound;
        assert!(!inbound.wanted.is_something(), "two receives at a time on {id:?}");
        inbound.asked = true;
        if let Some(result) = inbound.held.pop_front() {
            self.network.arrivals.handed_out = true;
            self.ready.push(Completion::Received { connection: id, result });
            return;
        }
        inbound.wanted = Wanted::Buffer;
        if inbound.stand == Stand::Idle {
            self.arm_receive(key);
        }
    }

    pub(super) fn submit_receive_into(&mut self, id: ConnectionId, room: ReceiveRoom) {
        let key = SlotKey::from_bits(id.0);
        let inbound = &mut self.network.open(key).inbound;
        assert!(!inbound.wanted.is_something(), "two receives at a time on {id:?}");
        assert!(room.left() > 0, "there is room to receive into");
        (inbound.asked, inbound.placed) = (true, true);
        inbound.wanted = Wanted::Room(Some(room));
        if let Stand::Standing(op) = inbound.stand {
            inbound.stand = Stand::Ending;
            self.push_cancel(CancelBuilder::user_data(op.to_bits()));
        }
        if !self.network.open(key).inbound.held.is_empty() {
            self.network.arrivals.handed_out = true;
            self.place_held(key);
        } else if self.network.open(key).inbound.stand == Stand::Idle {
            self.arm_receive(key);
        }
    }

    /// Answers a request that lends memory with what is held.
    fn place_held(&mut self, key: SlotKey) {
        let Network { connections, buffers, .. } = &mut self.network;
        let connection = connections.get_mut(key).expect("its request is open");
        let Inbound { wanted, held, .. } = &mut connection.inbound;
        let Wanted::Room(Some(mut room)) = wanted.take() else {
            unreachable!("memory is lent, and no op has it")
        };
        let mut count = 0;
        while room.left() > 0
            && let Some(Ok(buffer)) = held.front_mut()
            && !buffer.is_empty()
        {
            let copied = room.copy(buffer);
            count += copied;
            buffer.skip(copied);
            if buffer.is_empty()
                && let Some(Ok(buffer)) = held.pop_front()
            {
                buffers.give_back(buffer);
            }
        }
        // The end, or an error, is told when nothing is left before it.
        let result = match count {
            0 => held.pop_front().map_or(Ok(0), |end| {
                end.map(|buffer| {
                    buffers.give_back(buffer);
                    0
                })
            }),
            count => Ok(count),
        };
        self.ready.push(Completion::ReceivedInto { connection: id(key), room, result });
    }

    /// Has the kernel receive what is wanted.
    fn arm_receive(&mut self, key: SlotKey) {
        let connection = self.network.open(key);
        let socket = connection.socket.as_raw_fd();
        if let Wanted::Room(room) = &mut connection.inbound.wanted {
            let room = room.take().expect("the memory is not under way");
            connection.inbound.stand = Stand::Placing;
            self.start(Op::ReceiveInto { connection: key, socket, room });
            return;
        }
        let standing = !std::mem::take(&mut connection.inbound.placed);
        let op = self.start(Op::Receive { connection: key, socket, standing });
        self.network.open(key).inbound.stand = Stand::Standing(op);
        self.network.arrivals.counters.armed += 1;
    }

    /// Takes what has come into memory that is lent, or why nothing has.
    pub(super) fn handle_receive_into(&mut self, key: SlotKey, room: ReceiveRoom, cqe: Cqe) {
        let mut room = room;
        let connection = self.network.connections.get_mut(key);
        let connection = connection.expect("a connection outlives its receive");
        connection.inbound.stand = Stand::Idle;
        let result = match cqe.outcome() {
            _ if connection.closing => Err(sockets::closed_here()),
            Ok(count) => {
                // SAFETY: the kernel has written so many bytes to where the entry told it to, the
                // front of what was left; the op has kept the room as it was.
                unsafe { room.advance(count) };
                self.network.arrivals.counters.placed_bytes += count as u64;
                Ok(count)
            }
            Err(errno) if errno == Errno::CANCELED || is_interruption(errno) => {
                connection.inbound.wanted = Wanted::Room(Some(room));
                return self.arm_receive(key);
            }
            Err(errno) => Err(errno.into()),
        };
        connection.inbound.wanted = Wanted::Nothing;
        self.ready.push(Completion::ReceivedInto { connection: id(key), room, result });
        self.close_if_idle(key);
    }

    /// Takes an arrival, or why there will be none any more.
    pub(super) fn handle_receive(&mut self, (key, standing): (SlotKey, bool), cqe: Cqe) {
        let outcome = cqe.outcome();
        let picked = cqueue::buffer_select(cqe.flags);
        let buffers = &mut self.network.buffers;
        let buffer = picked.map(|id| buffers.take(id, outcome.unwrap_or(0)));
        let connection = self.network.connections.get_mut(key);
        let connection = connection.expect("a connection outlives its receive");
        if cqe.is_last() {
            connection.inbound.stand = Stand::Idle;
        }
        if connection.closing {
            self.network.give_back(buffer);
            return self.end_if_closing(key);
        }
        match outcome {
            Ok(0) => {
                let ended = ReceiveBuffer::new(Box::default(), 0, 0);
                self.network.give_back(buffer);
                self.arrive(key, Ok(ended));
            }
            Ok(_) => {
                let buffer = buffer.expect("received bytes are in a buffer of ours");
                self.network.arrivals.counters.completions += 1;
                self.arrive(key, Ok(buffer));
                // The next request arms it again.
                self.network.arrivals.counters.broken_off += u64::from(cqe.is_last() && standing);
            }
            Err(errno) => {
                self.network.give_back(buffer);
                self.handle_receive_error(key, errno);
            }
        }
    }

    fn handle_receive_error(&mut self, key: SlotKey, errno: Errno) {
        let counters = &mut self.network.arrivals.counters;
        match errno {
            Errno::NOBUFS => counters.unbuffered += 1,
            Errno::CANCELED => {}
            errno if is_interruption(errno) => counters.broken_off += 1,
            errno => return self.arrive(key, Err(errno.into())),
        }
        let wanted = &self.network.open(key).inbound.wanted;
        if !wanted.is_something() {
            return;
        }
        let in_buffer = matches!(wanted, Wanted::Buffer);
        if errno == Errno::NOBUFS && in_buffer && !self.network.buffers.has_provided() {
            self.network.open(key).inbound.stand = Stand::Starved;
            self.network.arrivals.starved.push(key);
        } else {
            self.arm_receive(key);
        }
    }

    /// Gives what came to the request that waits for it, or holds it.
    fn arrive(&mut self, key: SlotKey, result: io::Result<ReceiveBuffer>) {
        let inbound = &mut self.network.open(key).inbound;
        match inbound.wanted {
            Wanted::Nothing => {}
            Wanted::Buffer => {
                inbound.wanted = Wanted::Nothing;
                return self.ready.push(Completion::Received { connection: id(key), result });
            }
            Wanted::Room(_) => {
                inbound.held.push_back(result);
                self.place_held(key);
                return self.list_if_holding(key);
            }
        }
        inbound.held.push_back(result);
        self.list_if_holding(key);
    }

    /// Has the next turn look at a connection that holds something.
    fn list_if_holding(&mut self, key: SlotKey) {
        let inbound = &mut self.network.open(key).inbound;
        if inbound.held.is_empty() {
            return;
        }
        if !std::mem::replace(&mut inbound.listed, true) {
            // Until the next turn begins, there is time to ask.
            inbound.asked = true;
            self.network.arrivals.holding.push(key);
        }
    }

    /// Deals with connections that hold something, at the beginning of a turn; answers whether the
    /// turn can do without the kernel, because held buffers are to be handed out.
    pub(super) fn look_at_holding(&mut self) -> bool {
        let mut holding = std::mem::take(&mut self.network.arrivals.holding);
        holding.retain(|key| self.keeps_holding(*key));
        self.network.arrivals.holding = holding;
        let arrivals = &mut self.network.arrivals;
        let skips =
            std::mem::take(&mut arrivals.handed_out) && arrivals.turns_skipped < TURNS_SKIPPED_MAX;
        arrivals.turns_skipped = if skips { arrivals.turns_skipped + 1 } else { 0 };
        skips
    }

    fn keeps_holding(&mut self, key: SlotKey) -> bool {
        let Some(connection) = self.network.connections.get_mut(key) else { return false };
        let inbound = &mut connection.inbound;
        let asked = std::mem::take(&mut inbound.asked);
        let pauses = inbound.held.len() > if asked { HELD_BUFFERS_MAX } else { 0 };
        let stands = inbound.stand;
        inbound.listed = !inbound.held.is_empty() && (asked || inbound.is_in_kernel());
        let listed = inbound.listed;
        if pauses && let Stand::Standing(op) = stands {
            inbound.stand = Stand::Ending;
            self.network.arrivals.counters.paused += 1;
            self.push_cancel(CancelBuilder::user_data(op.to_bits()));
        }
        if !asked {
            self.network.set_aside(key);
        }
        listed
    }

    /// Tries again all receives that found no buffer, once there is one: the kernel wants a buffer
    /// even for a connection on which nothing has arrived, so the first in line may not use it up.
    pub(super) fn restart_starved(&mut self) {
        if self.network.buffers.has_provided() {
            for key in std::mem::take(&mut self.network.arrivals.starved) {
                self.arm_receive(key);
            }
        }
    }

    /// Ends receiving on a connection that is to close; shutting it down is the caller's part.
    pub(super) fn close_inbound(&mut self, key: SlotKey) {
        self.network.arrivals.starved.retain(|starved| *starved != key);
        let Some(connection) = self.network.connections.get_mut(key) else { return };
        if connection.inbound.stand == Stand::Starved {
            connection.inbound.stand = Stand::Idle;
        }
        for result in std::mem::take(&mut connection.inbound.held) {
            self.network.give_back(result.ok());
        }
        self.end_if_closing(key);
    }

    /// Answers the last request of a closing connection once the kernel is done with it.
    fn end_if_closing(&mut self, key: SlotKey) {
        let Some(connection) = self.network.connections.get_mut(key) else { return };
        if connection.inbound.is_in_kernel() {
            return;
        }
        let connection_id = id(key);
        self.ready.extend(match connection.inbound.wanted.take() {
            Wanted::Buffer => {
                let result = Err(sockets::closed_here());
                Some(Completion::Received { connection: connection_id, result })
            }
            Wanted::Room(Some(room)) => {
                let result = Err(sockets::closed_here());
                Some(Completion::ReceivedInto { connection: connection_id, room, result })
            }
            Wanted::Room(None) | Wanted::Nothing => None,
        });
        self.close_if_idle(key);
    }
}

impl Network {
    fn give_back(&mut self, buffer: Option<ReceiveBuffer>) {
        if let Some(buffer) = buffer {
            self.buffers.give_back(buffer);
        }
    }

    /// Moves what a connection holds out of the ring's buffers.
    fn set_aside(&mut self, key: SlotKey) {
        let Self { connections, buffers, .. } = self;
        let Some(connection) = connections.get_mut(key) else { return };
        for held in connection.inbound.held.iter_mut().flatten() {
            buffers.detach(held);
        }
    }
}
