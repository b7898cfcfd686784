//! The network half of [`UringIo`]: listening, connections and their one-shot receives and sends.
//!
//! ```text
//! listener:    Idle -> (Retrying ->) Listening <-> paused -> stopping -> Idle
//! connection:  open -> closing (a receive or send is still under way) -> close in the ring -> gone
//! ```
//!
//! A connection's descriptor stays open until its receive and send have ended. Closing makes them
//! end with shutdown(2), which wakes whatever waits on the socket.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, IntoRawFd, OwnedFd};

use bytes::Bytes;
use io_uring::types::{CancelBuilder, Timespec};
use io_uring::{cqueue, opcode};
use rustix::io::Errno;
use rustix::net::SocketFlags;

use super::buffers::ReceiveBuffers;
use super::op::{Op, Purpose, SendTask};
use super::ring::Cqe;
use super::{CANCEL, UringIo, adopt};
use crate::io::disk_error::is_interruption;
use crate::io::slots::{SlotKey, Slots};
use crate::io::sockets::{self, ACCEPT_PAUSE_MS, LISTEN_PAUSE_MS, LISTEN_RETRY_MS, Listen};
use crate::io::{Completion, ConnectionId, Monotonic, ReceiveBuffer, clock};

/// All sockets of the driver.
pub(super) struct Network {
    pub(super) buffers: ReceiveBuffers,
    connections: Slots<Connection>,
    listener: Listener,
    /// Connections whose receive waits for a buffer to be released.
    starved: Vec<SlotKey>,
}

enum Listener {
    Idle,
    Retrying { address: SocketAddr, give_up: Monotonic },
    Listening { socket: OwnedFd, accept: Accept },
}

#[derive(Clone, Copy)]
enum Accept {
    Armed(SlotKey),
    Paused,
    Stopping,
}

struct Connection {
    socket: OwnedFd,
    receive: Receive,
    sending: bool,
    closing: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Receive {
    Idle,
    UnderWay,
    Starved,
}

impl Network {
    pub(super) fn new(buffers: ReceiveBuffers) -> Self {
        let connections = Slots::new();
        Self { buffers, connections, listener: Listener::Idle, starved: Vec::new() }
    }

    /// Connections that are not closed yet.
    pub(super) fn connections_open(&self) -> usize {
        self.connections.len()
    }
}

impl UringIo {
    pub(super) fn submit_listen(&mut self, address: SocketAddr) {
        if !matches!(self.network.listener, Listener::Idle) {
            let error = io::Error::new(io::ErrorKind::AlreadyExists, "listening already");
            self.ready.push(Completion::Listening(Err(error)));
            return;
        }
        let give_up = clock::monotonic().plus_millis(LISTEN_RETRY_MS);
        self.try_listen(address, give_up);
    }

    fn try_listen(&mut self, address: SocketAddr, give_up: Monotonic) {
        match sockets::listen(address, SocketFlags::empty(), give_up) {
            Listen::Ready(socket, bound) => {
                let key = self.start(Op::Accept { socket: socket.as_raw_fd() });
                let accept = Accept::Armed(key);
                self.network.listener = Listener::Listening { socket, accept };
                self.ready.push(Completion::Listening(Ok(bound)));
            }
            Listen::Again => {
                self.network.listener = Listener::Retrying { address, give_up };
                self.start_pause(LISTEN_PAUSE_MS, Purpose::Listen);
            }
            Listen::Failed(error) => {
                self.network.listener = Listener::Idle;
                self.ready.push(Completion::Listening(Err(error)));
            }
        }
    }

    pub(super) fn submit_stop_listening(&mut self) {
        match &mut self.network.listener {
            Listener::Listening { socket, accept } => {
                if let Accept::Armed(key) = *accept {
                    *accept = Accept::Stopping;
                    sockets::interrupt(socket);
                    self.push_cancel(CancelBuilder::user_data(key.to_bits()));
                    return;
                }
            }
            Listener::Retrying { .. } => {
                let error = io::Error::new(io::ErrorKind::Interrupted, "told to stop listening");
                self.ready.push(Completion::Listening(Err(error)));
            }
            Listener::Idle => {}
        }
        self.network.listener = Listener::Idle;
        self.ready.push(Completion::ListenerClosed);
    }

    /// Takes an accepted connection, or why there is none.
    pub(super) fn handle_accept(&mut self, cqe: Cqe) {
        match cqe.outcome() {
            Ok(_) => {
                // SAFETY: the answer to an ACCEPT is a descriptor that is ours alone.
                let socket = unsafe { adopt(cqe.result) };
                self.take_accepted(socket);
            }
            Err(Errno::CANCELED) => {}
            Err(error) if sockets::is_exhaustion(error) => {
                tracing::warn!(%error, "cannot accept connections for the moment");
            }
            Err(error) => tracing::debug!(%error, "a connection was not accepted"),
        }
        if !cqe.is_last() {
            return;
        }
        let Listener::Listening { socket, accept } = &mut self.network.listener else {
            return;
        };
        if matches!(accept, Accept::Stopping) {
            self.network.listener = Listener::Idle;
            self.ready.push(Completion::ListenerClosed);
        } else if cqe.outcome().is_err_and(|errno| errno != Errno::CONNABORTED) {
            // Trying again at once would spin.
            *accept = Accept::Paused;
            self.start_pause(ACCEPT_PAUSE_MS, Purpose::Accept);
        } else {
            let socket = socket.as_raw_fd();
            self.arm_accept(socket);
        }
    }

    fn arm_accept(&mut self, socket: i32) {
        let key = self.start(Op::Accept { socket });
        if let Listener::Listening { accept, .. } = &mut self.network.listener {
            *accept = Accept::Armed(key);
        }
    }

    /// Returns whether the connection is still there.
    pub(super) fn take_accepted(&mut self, socket: OwnedFd) -> bool {
        let prepared = sockets::prepare_accepted(&socket);
        let is_there = prepared.is_ok();
        match prepared {
            Ok(peer) => {
                let receive = Receive::Idle;
                let connection = Connection { socket, receive, sending: false, closing: false };
                let key = self.network.connections.insert(connection);
                self.ready.push(Completion::Accepted { connection: id(key), peer });
            }
            Err(error) => tracing::debug!(%error, "a connection was gone before it was accepted"),
        }
        is_there
    }

    pub(super) fn handle_pause(&mut self, purpose: Purpose) {
        match (purpose, &self.network.listener) {
            (Purpose::Listen, &Listener::Retrying { address, give_up }) => {
                self.try_listen(address, give_up);
            }
            (Purpose::Accept, Listener::Listening { socket, accept: Accept::Paused }) => {
                let socket = socket.as_raw_fd();
                self.arm_accept(socket);
            }
            // The listener was told to stop meanwhile.
            _ => {}
        }
    }

    fn start_pause(&mut self, millis: u64, purpose: Purpose) {
        let time = Timespec::from(std::time::Duration::from_millis(millis));
        self.start(Op::Pause { time: Box::new(time), purpose });
    }

    pub(super) fn submit_receive(&mut self, id: ConnectionId) {
        let key = SlotKey::from_bits(id.0);
        let connection = self.network.open(key);
        assert!(connection.receive == Receive::Idle, "two receives at a time on {id:?}");
        self.start_receive(key);
    }

    fn start_receive(&mut self, key: SlotKey) {
        let connection = self.network.open(key);
        connection.receive = Receive::UnderWay;
        let socket = connection.socket.as_raw_fd();
        self.start(Op::Receive { connection: key, socket });
    }

    pub(super) fn handle_receive(&mut self, key: SlotKey, cqe: Cqe) {
        let outcome = cqe.outcome();
        let picked = cqueue::buffer_select(cqe.flags);
        let buffers = &mut self.network.buffers;
        let buffer = picked.map(|id| buffers.take(id, outcome.unwrap_or(0)));
        let connection = self.network.connections.get_mut(key);
        let connection = connection.expect("a connection outlives its receive");
        let closing = connection.closing;
        let result = match outcome {
            Ok(0) if closing => Err(sockets::closed_here()),
            Ok(0) => Ok(buffer.unwrap_or_else(|| ReceiveBuffer::new(Box::default(), 0, 0))),
            Ok(_) => Ok(buffer.expect("received bytes are in a buffer of ours")),
            Err(errno) => {
                if let Some(buffer) = buffer {
                    self.network.buffers.give_back(buffer);
                }
                if !closing && (is_interruption(errno) || errno == Errno::NOBUFS) {
                    return self.repeat_receive(key, errno);
                }
                Err(if closing { sockets::closed_here() } else { errno.into() })
            }
        };
        self.end_receive(key, result);
    }

    fn repeat_receive(&mut self, key: SlotKey, errno: Errno) {
        if errno == Errno::NOBUFS && !self.network.buffers.has_provided() {
            self.network.open(key).receive = Receive::Starved;
            self.network.starved.push(key);
        } else {
            self.start_receive(key);
        }
    }

    fn end_receive(&mut self, key: SlotKey, result: io::Result<ReceiveBuffer>) {
        if let Some(connection) = self.network.connections.get_mut(key) {
            connection.receive = Receive::Idle;
        }
        self.ready.push(Completion::Received { connection: id(key), result });
        self.close_if_idle(key);
    }

    /// Tries again all receives that found no buffer, once there is one: the kernel wants a buffer
    /// even for a connection on which nothing has arrived, so the first in line may not use it up.
    pub(super) fn restart_starved(&mut self) {
        if self.network.buffers.has_provided() {
            for key in std::mem::take(&mut self.network.starved) {
                self.start_receive(key);
            }
        }
    }

    pub(super) fn submit_send(&mut self, id: ConnectionId, parts: Vec<Bytes>) {
        let key = SlotKey::from_bits(id.0);
        let connection = self.network.open(key);
        assert!(!connection.sending, "two sends at a time on {id:?}");
        connection.sending = true;
        let task = SendTask::new(key, connection.socket.as_raw_fd(), parts);
        self.go_on_sending(task);
    }

    fn go_on_sending(&mut self, task: SendTask) {
        if task.is_done() {
            self.end_send(task.connection, Ok(()));
        } else {
            self.start(Op::Send(task));
        }
    }

    pub(super) fn handle_send(&mut self, mut task: SendTask, cqe: Cqe) {
        match cqe.outcome() {
            Ok(0) => self.end_send(task.connection, Err(io::ErrorKind::WriteZero.into())),
            Ok(count) => {
                task.advance(count);
                self.go_on_sending(task);
            }
            Err(errno) if is_interruption(errno) => self.go_on_sending(task),
            Err(errno) => self.end_send(task.connection, Err(errno.into())),
        }
    }

    fn end_send(&mut self, key: SlotKey, result: io::Result<()>) {
        let connection = self.network.connections.get_mut(key);
        let connection = connection.expect("a connection outlives its send");
        connection.sending = false;
        let closing = connection.closing;
        let result = result.map_err(|error| if closing { sockets::closed_here() } else { error });
        self.ready.push(Completion::Sent { connection: id(key), result });
        self.close_if_idle(key);
    }

    pub(super) fn submit_close_connection(&mut self, id: ConnectionId) {
        let key = SlotKey::from_bits(id.0);
        let connection = self.network.open(key);
        connection.closing = true;
        if connection.receive == Receive::UnderWay || connection.sending {
            sockets::interrupt(&connection.socket);
        }
        if connection.receive == Receive::Starved {
            self.network.starved.retain(|starved| *starved != key);
            self.end_receive(key, Err(sockets::closed_here()));
        } else {
            self.close_if_idle(key);
        }
    }

    pub(super) fn submit_detach(&mut self, id: ConnectionId) {
        let connection = self.network.connections.remove(SlotKey::from_bits(id.0));
        let connection = connection.expect("a connection that is given up is there");
        let idle = connection.receive == Receive::Idle && !connection.sending;
        assert!(idle && !connection.closing, "nothing has been requested for {id:?}");
        self.ready.push(Completion::Detached { connection: id, socket: connection.socket });
    }

    fn close_if_idle(&mut self, key: SlotKey) {
        let idle = self.network.connections.get_mut(key).is_some_and(|connection| {
            connection.closing && connection.receive == Receive::Idle && !connection.sending
        });
        if idle && let Some(connection) = self.network.connections.remove(key) {
            let socket = connection.socket.into_raw_fd();
            self.start(Op::CloseSocket { connection: id(key), socket });
        }
    }

    pub(super) fn push_cancel(&mut self, which: CancelBuilder) {
        let entry = opcode::AsyncCancel2::new(which).build().user_data(CANCEL);
        // SAFETY: a cancellation names neither memory nor descriptors.
        unsafe { self.ring.push(entry) };
    }
}

impl Network {
    fn open(&mut self, key: SlotKey) -> &mut Connection {
        let connection = self.connections.get_mut(key).filter(|connection| !connection.closing);
        connection.expect("no request follows the close of its connection")
    }
}

fn id(key: SlotKey) -> ConnectionId {
    ConnectionId(key.to_bits())
}
