//! The network half of [`UringIo`]: listening, and the life of connections. Their bytes go through
//! [`super::inbound`] and [`super::outbound`].
//!
//! ```text
//! listener:    absent -> (Retrying ->) Listening <-> paused -> stopping -> absent
//! connection:  open -> closing (a receive or send is still under way) -> close in the ring -> gone
//! ```
//!
//! A connection's descriptor stays open until its receive and send have ended. Closing makes them
//! end with shutdown(2), which wakes whatever waits on the socket.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, IntoRawFd, OwnedFd};

use io_uring::opcode;
use io_uring::types::{CancelBuilder, Timespec};
use rustix::io::Errno;
use rustix::net::SocketFlags;

use super::buffers::ReceiveBuffers;
use super::inbound::{Arrivals, Inbound};
use super::op::{Op, Purpose};
use super::outbound::{Departures, Outbound};
use super::ring::Cqe;
use super::{CANCEL, UringIo, adopt};
use crate::io::slots::{SlotKey, Slots};
use crate::io::sockets::{self, ACCEPT_PAUSE_MS, LISTEN_PAUSE_MS, LISTEN_RETRY_MS, Listen};
use crate::io::{Completion, ConnectionId, ListenerId, Monotonic, clock};

/// All sockets of the driver.
pub(super) struct Network {
    pub(super) buffers: ReceiveBuffers,
    pub(super) connections: Slots<Connection>,
    pub(super) arrivals: Arrivals,
    pub(super) departures: Departures,
    listeners: BTreeMap<ListenerId, Listener>,
}

enum Listener {
    Retrying { address: SocketAddr, give_up: Monotonic },
    Listening { socket: OwnedFd, accept: Accept },
}

#[derive(Clone, Copy)]
enum Accept {
    Armed(SlotKey),
    Paused,
    Stopping,
}

pub(super) struct Connection {
    pub(super) socket: OwnedFd,
    pub(super) inbound: Inbound,
    pub(super) outbound: Outbound,
    pub(super) closing: bool,
}

impl Network {
    pub(super) fn new(buffers: ReceiveBuffers, departures: Departures) -> Self {
        let (connections, arrivals) = (Slots::new(), Arrivals::default());
        Self { buffers, connections, arrivals, departures, listeners: BTreeMap::new() }
    }

    /// Connections that are not closed yet.
    pub(super) fn connections_open(&self) -> usize {
        self.connections.len()
    }
}

impl UringIo {
    pub(super) fn submit_listen(&mut self, id: ListenerId, address: SocketAddr) {
        if self.network.listeners.contains_key(&id) {
            let error = io::Error::new(io::ErrorKind::AlreadyExists, "listening already");
            self.ready.push(Completion::Listening(id, Err(error)));
            return;
        }
        let give_up = clock::monotonic().plus_millis(LISTEN_RETRY_MS);
        self.try_listen(id, address, give_up);
    }

    fn try_listen(&mut self, id: ListenerId, address: SocketAddr, give_up: Monotonic) {
        match sockets::listen(address, SocketFlags::empty(), give_up) {
            Listen::Ready(socket, bound) => {
                let key = self.start(Op::Accept { listener: id, socket: socket.as_raw_fd() });
                let accept = Accept::Armed(key);
                self.network.listeners.insert(id, Listener::Listening { socket, accept });
                self.ready.push(Completion::Listening(id, Ok(bound)));
            }
            Listen::Again => {
                self.network.listeners.insert(id, Listener::Retrying { address, give_up });
                self.start_pause(LISTEN_PAUSE_MS, Purpose::Listen(id));
            }
            Listen::Failed(error) => {
                self.network.listeners.remove(&id);
                self.ready.push(Completion::Listening(id, Err(error)));
            }
        }
    }

    pub(super) fn submit_stop_listening(&mut self, id: ListenerId) {
        match self.network.listeners.get_mut(&id) {
            Some(Listener::Listening { socket, accept }) => {
                if let Accept::Armed(key) = *accept {
                    *accept = Accept::Stopping;
                    sockets::interrupt(socket);
                    self.push_cancel(CancelBuilder::user_data(key.to_bits()));
                    return;
                }
            }
            Some(Listener::Retrying { .. }) => {
                let error = io::Error::new(io::ErrorKind::Interrupted, "told to stop listening");
                self.ready.push(Completion::Listening(id, Err(error)));
            }
            None => {}
        }
        self.network.listeners.remove(&id);
        self.ready.push(Completion::ListenerClosed(id));
    }

    /// Takes an accepted connection, or why there is none.
    pub(super) fn handle_accept(&mut self, id: ListenerId, cqe: Cqe) {
        match cqe.outcome() {
            Ok(_) => {
                // SAFETY: the answer to an ACCEPT is a descriptor that is ours alone.
                let socket = unsafe { adopt(cqe.result) };
                self.take_accepted(id, socket);
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
        let Some(Listener::Listening { socket, accept }) = self.network.listeners.get_mut(&id)
        else {
            return;
        };
        if matches!(accept, Accept::Stopping) {
            self.network.listeners.remove(&id);
            self.ready.push(Completion::ListenerClosed(id));
        } else if cqe.outcome().is_err_and(|errno| errno != Errno::CONNABORTED) {
            // Trying again at once would spin.
            *accept = Accept::Paused;
            self.start_pause(ACCEPT_PAUSE_MS, Purpose::Accept(id));
        } else {
            let socket = socket.as_raw_fd();
            self.arm_accept(id, socket);
        }
    }

    fn arm_accept(&mut self, id: ListenerId, socket: i32) {
        let key = self.start(Op::Accept { listener: id, socket });
        if let Some(Listener::Listening { accept, .. }) = self.network.listeners.get_mut(&id) {
            *accept = Accept::Armed(key);
        }
    }

    /// Returns whether the connection is still there.
    pub(super) fn take_accepted(&mut self, listener: ListenerId, socket: OwnedFd) -> bool {
        let prepared = sockets::prepare_accepted(&socket);
        let is_there = prepared.is_ok();
        match prepared {
            Ok(peer) => {
                let connection = self.network.add(socket);
                self.ready.push(Completion::Accepted { listener, connection, peer });
            }
            Err(error) => tracing::debug!(%error, "a connection was gone before it was accepted"),
        }
        is_there
    }

    pub(super) fn handle_pause(&mut self, purpose: Purpose) {
        match purpose {
            Purpose::Listen(id) | Purpose::Accept(id) => self.handle_listener_pause(id),
            Purpose::BindUdp(id) | Purpose::ReceiveDatagrams(id) => self.handle_udp_pause(id),
        }
    }

    fn handle_listener_pause(&mut self, id: ListenerId) {
        match self.network.listeners.get(&id) {
            Some(&Listener::Retrying { address, give_up }) => {
                self.try_listen(id, address, give_up);
            }
            Some(Listener::Listening { socket, accept: Accept::Paused }) => {
                let socket = socket.as_raw_fd();
                self.arm_accept(id, socket);
            }
            // The listener was told to stop meanwhile.
            _ => {}
        }
    }

    pub(super) fn start_pause(&mut self, millis: u64, purpose: Purpose) {
        let time = Timespec::from(std::time::Duration::from_millis(millis));
        self.start(Op::Pause { time: Box::new(time), purpose });
    }

    pub(super) fn submit_close_connection(&mut self, id: ConnectionId) {
        let key = SlotKey::from_bits(id.0);
        let connection = self.network.open(key);
        connection.closing = true;
        if connection.inbound.is_in_kernel() || connection.outbound.sending {
            sockets::interrupt(&connection.socket);
        }
        self.close_inbound(key);
    }

    pub(super) fn submit_detach(&mut self, id: ConnectionId) {
        let connection = self.network.connections.remove(SlotKey::from_bits(id.0));
        let connection = connection.expect("a connection that is given up is there");
        let idle = connection.inbound.is_over() && !connection.outbound.sending;
        assert!(idle && !connection.closing, "nothing has been requested for {id:?}");
        self.ready.push(Completion::Detached { connection: id, socket: connection.socket });
    }

    pub(super) fn close_if_idle(&mut self, key: SlotKey) {
        let idle = self.network.connections.get_mut(key).is_some_and(|connection| {
            connection.closing && connection.inbound.is_over() && !connection.outbound.sending
        });
        if idle && let Some(connection) = self.network.connections.remove(key) {
            let socket = connection.socket.into_raw_fd();
            self.start(Op::CloseSocket { connection: id(key), socket });
        }
    }

    /// Drops the connections on which memory goes out without a copy, with what they have not sent:
    /// for the driver's end.
    pub(super) fn abort_sends(&mut self) {
        let sending: Vec<SlotKey> = (self.ops.values())
            .filter_map(|op| match op {
                Op::SendZeroCopy(send) => Some(send.connection()),
                _ => None,
            })
            .collect();
        for key in sending {
            if let Some(connection) = self.network.connections.remove(key) {
                sockets::forget_unsent(&connection.socket);
            }
        }
    }

    pub(super) fn push_cancel(&mut self, which: CancelBuilder) {
        let entry = opcode::AsyncCancel2::new(which).build().user_data(CANCEL);
        // SAFETY: a cancellation names neither memory nor descriptors.
        unsafe { self.ring.push(entry) };
    }
}

impl Network {
    /// Takes a connected socket.
    pub(super) fn add(&mut self, socket: OwnedFd) -> ConnectionId {
        let (inbound, outbound) = (Inbound::new(), Outbound::new());
        let connection = Connection { socket, inbound, outbound, closing: false };
        id(self.connections.insert(connection))
    }

    pub(super) fn open(&mut self, key: SlotKey) -> &mut Connection {
        let connection = self.connections.get_mut(key).filter(|connection| !connection.closing);
        connection.expect("no request follows the close of its connection")
    }
}

pub(super) fn id(key: SlotKey) -> ConnectionId {
    ConnectionId(key.to_bits())
}
