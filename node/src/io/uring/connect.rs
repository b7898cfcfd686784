//! Attempts of [`UringIo`] to connect.
//!
//! ```text
//! CONNECT and TIMEOUT in the ring -> connected: a connection -> Connected(Ok)
//!                                 -> refused, out of time or cancelled -> Connected(Err)
//! ```
//!
//! The attempt owns the socket and ends with the CONNECT's completion. The timer may outlive it by
//! a little: it is cancelled then, and names an attempt that is not there any more.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use io_uring::types::{CancelBuilder, Fd, Timespec};
use io_uring::{opcode, squeue};
use rustix::io::Errno;
use rustix::net::SocketFlags;

use super::UringIo;
use super::address::RawAddress;
use super::op::Op;
use super::ring::Cqe;
use crate::io::slots::{SlotKey, Slots};
use crate::io::{AttemptId, Completion, ConnectionId, Monotonic, clock, sockets};

/// All attempts under way.
pub(super) type Attempts = Slots<Attempt>;

/// An attempt to connect.
pub(super) struct Attempt {
    id: AttemptId,
    socket: OwnedFd,
    /// The operations, once they are started.
    operations: Option<Operations>,
    given_up: Option<GivenUp>,
}

#[derive(Clone, Copy)]
struct Operations {
    connect: SlotKey,
    timer: SlotKey,
}

#[derive(Clone, Copy)]
enum GivenUp {
    OutOfTime,
    Cancelled,
}

/// An operation of an attempt.
pub(super) enum ConnectOp {
    Connect { attempt: SlotKey, socket: RawFd, to: Box<RawAddress> },
    Deadline { attempt: SlotKey, time: Box<Timespec> },
}

impl ConnectOp {
    pub(super) fn entry(&self) -> squeue::Entry {
        match self {
            Self::Connect { socket, to, .. } => {
                opcode::Connect::new(Fd(*socket), to.as_ptr().cast(), to.len()).build()
            }
            Self::Deadline { time, .. } => opcode::Timeout::new(&raw const **time).build(),
        }
    }
}

impl UringIo {
    pub(super) fn submit_connect(&mut self, id: AttemptId, to: SocketAddr, deadline: Monotonic) {
        let socket = match sockets::connecting(to, SocketFlags::empty()) {
            Ok(socket) => socket,
            Err(error) => {
                let result = Err(error);
                return self.ready.push(Completion::Connected { attempt: id, result });
            }
        };
        let fd = socket.as_raw_fd();
        let attempt = Attempt { id, socket, operations: None, given_up: None };
        let attempt = self.attempts.insert(attempt);
        let to = Box::new(RawAddress::encode(to));
        let connect = self.start(Op::Connect(ConnectOp::Connect { attempt, socket: fd, to }));
        let time = Box::new(Timespec::from(clock::until(deadline)));
        let timer = self.start(Op::Connect(ConnectOp::Deadline { attempt, time }));
        let attempt = self.attempts.get_mut(attempt).expect("just inserted");
        attempt.operations = Some(Operations { connect, timer });
    }

    pub(super) fn submit_cancel_connect(&mut self, id: AttemptId) {
        let found = self.attempts.find(|attempt| attempt.id == id);
        if let Some(attempt) = found {
            self.give_up_connecting(attempt, GivenUp::Cancelled);
        }
    }

    fn give_up_connecting(&mut self, key: SlotKey, why: GivenUp) {
        let Some(attempt) = self.attempts.get_mut(key) else { return };
        if let (None, Some(operations)) = (attempt.given_up, attempt.operations) {
            attempt.given_up = Some(why);
            self.push_cancel(CancelBuilder::user_data(operations.connect.to_bits()));
        }
    }

    pub(super) fn handle_connect_op(&mut self, op: ConnectOp, cqe: Cqe) {
        match op {
            ConnectOp::Connect { attempt, .. } => self.end_connecting(attempt, cqe.outcome()),
            ConnectOp::Deadline { attempt, .. } if cqe.outcome() != Err(Errno::CANCELED) => {
                self.give_up_connecting(attempt, GivenUp::OutOfTime);
            }
            ConnectOp::Deadline { .. } => {}
        }
    }

    fn end_connecting(&mut self, key: SlotKey, outcome: Result<usize, Errno>) {
        let attempt = self.attempts.remove(key).expect("an attempt outlives its operation");
        let Attempt { id, socket, operations, given_up } = attempt;
        if let Some(operations) = operations {
            self.push_cancel(CancelBuilder::user_data(operations.timer.to_bits()));
        }
        let result = match given_up {
            Some(GivenUp::OutOfTime) => Err(sockets::connect_timed_out()),
            Some(GivenUp::Cancelled) => Err(sockets::closed_here()),
            None => outcome.map_err(io::Error::from).and_then(|_| self.take_connected(socket)),
        };
        self.ready.push(Completion::Connected { attempt: id, result });
    }

    fn take_connected(&mut self, socket: OwnedFd) -> io::Result<ConnectionId> {
        sockets::prepare_connected(&socket)?;
        Ok(self.network.add(socket))
    }
}
