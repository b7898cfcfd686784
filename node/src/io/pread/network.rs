//! [`Network`]: the sockets of [`super::PreadIo`], non-blocking and watched for readiness.
//!
//! Readiness is edge-triggered: every request is tried at once, and only if the kernel would make
//! it wait does it wait for the next edge.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};

use bytes::Bytes;
use mio::event::Event;
use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use rustix::io::Errno;
use rustix::net::{
    RecvFlags, SendAncillaryBuffer, SendFlags, SocketFlags, accept_with, connect, recv, sendmsg,
    sockopt,
};

use super::listener_token;
use crate::io::slots::{SlotKey, Slots};
use crate::io::sockets::{
    self, ACCEPT_PAUSE_MS, LISTEN_PAUSE_MS, LISTEN_RETRY_MS, Listen, RECEIVE_BUFFER_BYTES,
    RECEIVE_BUFFERS,
};
use crate::io::{
    AttemptId, Completion, ConnectionId, ListenerId, Monotonic, ReceiveBuffer, ReceiveRoom, clock,
};

/// Parts of one sendmsg(2) at most (IOV_MAX).
const GATHER_MAX: usize = 1024;
/// Connections accepted in one turn, so that a flood of them does not starve the others.
const ACCEPTS_PER_TURN: usize = 64;
/// Free receive buffers that are kept.
const FREE_BUFFERS_MAX: usize = 64;

/// All sockets of the driver.
#[derive(Debug)]
pub(super) struct Network {
    /// Those that are still to connect among them.
    connections: Slots<Connection>,
    /// What is still to connect, by the number of its connection's key.
    attempts: BTreeMap<u64, Attempt>,
    listeners: BTreeMap<ListenerId, Listener>,
    free: Vec<Box<[u8]>>,
    lent: usize,
    /// Connections whose receive waits for a buffer to be released, oldest first.
    starved: VecDeque<SlotKey>,
}

#[derive(Debug)]
enum Listener {
    Retrying {
        address: SocketAddr,
        give_up: Monotonic,
        next: Monotonic,
    },
    /// `next`: when to try accepting; none while there is nothing to accept.
    Listening {
        socket: OwnedFd,
        next: Option<Monotonic>,
    },
}

#[derive(Clone, Copy, Debug)]
struct Attempt {
    id: AttemptId,
    deadline: Monotonic,
}

#[derive(Debug)]
struct Connection {
    socket: OwnedFd,
    receiving: Receiving,
    sending: Option<Sending>,
}

/// What a receive that has not ended yet is to fill.
#[derive(Debug)]
enum Receiving {
    /// There is none.
    Nothing,
    /// A buffer of the driver's.
    Buffer,
    Room(ReceiveRoom),
}

impl Receiving {
    fn is_under_way(&self) -> bool {
        !matches!(self, Self::Nothing)
    }
}

#[derive(Debug)]
struct Sending {
    parts: Vec<Bytes>,
    /// The first part that is not wholly sent, and how much of it is.
    part: usize,
    sent: usize,
}

impl Network {
    pub(super) fn new() -> Self {
        Self {
            connections: Slots::new(),
            attempts: BTreeMap::new(),
            listeners: BTreeMap::new(),
            free: Vec::new(),
            lent: 0,
            starved: VecDeque::new(),
        }
    }

    pub(super) fn connections_open(&self) -> usize {
        self.connections.len()
    }

    /// When [`Network::handle_time`] has something to do.
    pub(super) fn next_deadline(&self) -> Option<Monotonic> {
        if !self.starved.is_empty() && self.lent < usize::from(RECEIVE_BUFFERS) {
            return Some(Monotonic(0));
        }
        let listeners = self.listeners.values().filter_map(Listener::due);
        listeners.chain(self.attempts.values().map(|attempt| attempt.deadline)).min()
    }

    pub(super) fn handle_time(&mut self, registry: &Registry, ready: &mut Vec<Completion>) {
        let now = clock::monotonic();
        let is_due = |listener: &Listener| listener.due().is_some_and(|due| due <= now);
        let due: Vec<_> =
            self.listeners.iter().filter(|(_, l)| is_due(l)).map(|(id, _)| *id).collect();
        for id in due {
            match self.listeners.get(&id) {
                Some(&Listener::Retrying { address, give_up, .. }) => {
                    self.try_listen(id, address, give_up, registry, ready);
                }
                _ => self.accept(id, registry, ready),
            }
        }
        let late = self.attempts.iter().filter(|(_, attempt)| attempt.deadline <= now);
        let late: Vec<_> = late.map(|(key, _)| SlotKey::from_bits(*key)).collect();
        for key in late {
            self.end_connecting(key, Err(sockets::connect_timed_out()), registry, ready);
        }
        for _ in 0..self.starved.len() {
            if let Some(key) = self.starved.pop_front() {
                self.try_receive(key, ready);
            }
        }
    }

    pub(super) fn listen(
        &mut self,
        id: ListenerId,
        address: SocketAddr,
        registry: &Registry,
        ready: &mut Vec<Completion>,
    ) {
        if self.listeners.contains_key(&id) {
            let error = io::Error::new(io::ErrorKind::AlreadyExists, "listening already");
            ready.push(Completion::Listening(id, Err(error)));
            return;
        }
        let give_up = clock::monotonic().plus_millis(LISTEN_RETRY_MS);
        self.try_listen(id, address, give_up, registry, ready);
    }

    fn try_listen(
        &mut self,
        id: ListenerId,
        address: SocketAddr,
        give_up: Monotonic,
        registry: &Registry,
        ready: &mut Vec<Completion>,
    ) {
        let listening = match sockets::listen(address, SocketFlags::NONBLOCK, give_up) {
            Listen::Ready(socket, bound) => {
                let fd = socket.as_raw_fd();
                let token = listener_token(id);
                let watched = registry.register(&mut SourceFd(&fd), token, Interest::READABLE);
                watched.map(|()| (socket, bound))
            }
            Listen::Again => {
                let next = clock::monotonic().plus_millis(LISTEN_PAUSE_MS);
                self.listeners.insert(id, Listener::Retrying { address, give_up, next });
                return;
            }
            Listen::Failed(error) => Err(error),
        };
        let result = match listening {
            Ok((socket, bound)) => {
                self.listeners.insert(id, Listener::Listening { socket, next: None });
                Ok(bound)
            }
            Err(error) => {
                self.listeners.remove(&id);
                Err(error)
            }
        };
        ready.push(Completion::Listening(id, result));
    }

    pub(super) fn stop_listening(
        &mut self,
        id: ListenerId,
        registry: &Registry,
        ready: &mut Vec<Completion>,
    ) {
        match self.listeners.remove(&id) {
            None => {}
            Some(Listener::Retrying { .. }) => {
                let error = io::Error::new(io::ErrorKind::Interrupted, "told to stop listening");
                ready.push(Completion::Listening(id, Err(error)));
            }
            Some(Listener::Listening { socket, .. }) => unwatch(registry, &socket),
        }
        ready.push(Completion::ListenerClosed(id));
    }

    /// Notes that there are connections to accept; [`Network::handle_time`] does it.
    pub(super) fn handle_acceptable(&mut self, id: ListenerId) {
        if let Some(Listener::Listening { next, .. }) = self.listeners.get_mut(&id)
            && next.is_none()
        {
            *next = Some(Monotonic(0));
        }
    }

    fn accept(&mut self, id: ListenerId, registry: &Registry, ready: &mut Vec<Completion>) {
        let Some(Listener::Listening { socket: listener, next }) = self.listeners.get_mut(&id)
        else {
            return;
        };
        for _ in 0..ACCEPTS_PER_TURN {
            match accept_with(&*listener, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC) {
                Ok(socket) => match watch_accepted(&mut self.connections, registry, socket) {
                    Ok((connection, peer)) => {
                        ready.push(Completion::Accepted { listener: id, connection, peer });
                    }
                    Err(error) => {
                        tracing::debug!(%error, "a connection was gone before it was accepted");
                    }
                },
                Err(Errno::AGAIN) => {
                    *next = None;
                    return;
                }
                Err(Errno::INTR | Errno::CONNABORTED) => {}
                Err(error) => {
                    if sockets::is_exhaustion(error) {
                        tracing::warn!(%error, "cannot accept connections for the moment");
                    }
                    // Trying again at once would spin.
                    *next = Some(clock::monotonic().plus_millis(ACCEPT_PAUSE_MS));
                    return;
                }
            }
        }
        *next = Some(Monotonic(0));
    }

    pub(super) fn connect(
        &mut self,
        id: AttemptId,
        to: SocketAddr,
        deadline: Monotonic,
        registry: &Registry,
        ready: &mut Vec<Completion>,
    ) {
        match self.start_connecting(to, registry) {
            Ok(key) => {
                self.attempts.insert(key.to_bits(), Attempt { id, deadline });
            }
            Err(error) => {
                ready.push(Completion::Connected { attempt: id, result: Err(error) });
            }
        }
    }

    fn start_connecting(&mut self, to: SocketAddr, registry: &Registry) -> io::Result<SlotKey> {
        let socket = sockets::connecting(to, SocketFlags::NONBLOCK)?;
        match connect(&socket, &to) {
            Ok(()) | Err(Errno::INPROGRESS | Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        // Even what is connected already has its edge of readiness once it is watched.
        watch(&mut self.connections, registry, socket)
    }

    pub(super) fn cancel_connect(
        &mut self,
        id: AttemptId,
        registry: &Registry,
        ready: &mut Vec<Completion>,
    ) {
        let found = self.attempts.iter().find(|(_, attempt)| attempt.id == id);
        if let Some(key) = found.map(|(key, _)| SlotKey::from_bits(*key)) {
            self.end_connecting(key, Err(sockets::closed_here()), registry, ready);
        }
    }

    /// Finds out what has become of an attempt.
    fn try_connected(&mut self, key: SlotKey, registry: &Registry, ready: &mut Vec<Completion>) {
        let socket = &self.open(key).socket;
        let result = match sockopt::socket_error(socket) {
            Ok(Ok(())) => sockets::prepare_connected(socket),
            Ok(Err(error)) | Err(error) => Err(error.into()),
        };
        // Neither a failure nor a connection yet.
        if !result.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::NotConnected) {
            self.end_connecting(key, result, registry, ready);
        }
    }

    fn end_connecting(
        &mut self,
        key: SlotKey,
        result: io::Result<()>,
        registry: &Registry,
        ready: &mut Vec<Completion>,
    ) {
        let attempt = self.attempts.remove(&key.to_bits());
        let attempt = attempt.expect("what is to connect has an attempt").id;
        if result.is_err()
            && let Some(connection) = self.connections.remove(key)
        {
            unwatch(registry, &connection.socket);
        }
        ready.push(Completion::Connected { attempt, result: result.map(|()| id(key)) });
    }

    pub(super) fn handle_ready(
        &mut self,
        key: SlotKey,
        event: &Event,
        registry: &Registry,
        ready: &mut Vec<Completion>,
    ) {
        if self.attempts.contains_key(&key.to_bits()) {
            return self.try_connected(key, registry, ready);
        }
        // A connection closed earlier in this turn is not found.
        if (event.is_readable() || event.is_read_closed() || event.is_error())
            && self.connections.get_mut(key).is_some_and(|one| one.receiving.is_under_way())
        {
            self.try_receive(key, ready);
        }
        if event.is_writable() || event.is_write_closed() || event.is_error() {
            self.try_send(key, ready);
        }
    }

    pub(super) fn receive(
        &mut self,
        id: ConnectionId,
        room: Option<ReceiveRoom>,
        ready: &mut Vec<Completion>,
    ) {
        let key = SlotKey::from_bits(id.0);
        let connection = self.open(key);
        assert!(!connection.receiving.is_under_way(), "two receives at a time on {id:?}");
        assert!(room.as_ref().is_none_or(|room| room.left() > 0), "there is room to receive into");
        connection.receiving = room.map_or(Receiving::Buffer, Receiving::Room);
        self.try_receive(key, ready);
    }

    fn try_receive(&mut self, key: SlotKey, ready: &mut Vec<Completion>) {
        if self.starved.contains(&key) || self.try_receive_into(key, ready) {
            return;
        }
        if self.lent == usize::from(RECEIVE_BUFFERS) {
            self.starved.push_back(key);
            return;
        }
        let new = || vec![0; RECEIVE_BUFFER_BYTES].into_boxed_slice();
        let mut storage = self.free.pop().unwrap_or_else(new);
        let connection = self.open(key);
        let received = loop {
            match recv(&connection.socket, &mut storage[..], RecvFlags::empty()) {
                Err(Errno::INTR) => {}
                other => break other,
            }
        };
        let result = match received {
            Err(Errno::AGAIN) => {
                self.free.push(storage);
                return;
            }
            Ok((len, _)) => {
                connection.receiving = Receiving::Nothing;
                self.lent += 1;
                Ok(ReceiveBuffer::new(storage, len, 0))
            }
            Err(errno) => {
                connection.receiving = Receiving::Nothing;
                self.free.push(storage);
                Err(errno.into())
            }
        };
        ready.push(Completion::Received { connection: id(key), result });
    }

    /// Receives into memory that is lent, if some is. Answers whether some is.
    fn try_receive_into(&mut self, key: SlotKey, ready: &mut Vec<Completion>) -> bool {
        let connection = self.open(key);
        let Receiving::Room(room) = &mut connection.receiving else { return false };
        let received = loop {
            match recv(&connection.socket, room.spare_mut(), RecvFlags::empty()) {
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return true,
                other => break other.map(|((written, _), _)| written.len()),
            }
        };
        let receiving = std::mem::replace(&mut connection.receiving, Receiving::Nothing);
        let Receiving::Room(mut room) = receiving else { return true };
        if let Ok(count) = received {
            // SAFETY: the call has written so many bytes to the front of the spare memory.
            unsafe { room.advance(count) };
        }
        let result = received.map_err(io::Error::from);
        ready.push(Completion::ReceivedInto { connection: id(key), room, result });
        true
    }

    pub(super) fn release(&mut self, buffer: ReceiveBuffer) {
        let (storage, _) = buffer.into_parts();
        assert_eq!(storage.len(), RECEIVE_BUFFER_BYTES, "the buffer is one of this driver's");
        self.lent = self.lent.checked_sub(1).expect("a buffer is released once");
        if self.free.len() < FREE_BUFFERS_MAX {
            self.free.push(storage);
        }
    }

    pub(super) fn send(
        &mut self,
        id: ConnectionId,
        parts: Vec<Bytes>,
        ready: &mut Vec<Completion>,
    ) {
        let key = SlotKey::from_bits(id.0);
        let connection = self.open(key);
        assert!(connection.sending.is_none(), "two sends at a time on {id:?}");
        connection.sending = Some(Sending { parts, part: 0, sent: 0 });
        self.try_send(key, ready);
    }

    fn try_send(&mut self, key: SlotKey, ready: &mut Vec<Completion>) {
        let Some(connection) = self.connections.get_mut(key) else {
            return;
        };
        let Some(sending) = &mut connection.sending else {
            return;
        };
        let result = match sending.go_on(&connection.socket) {
            Err(Errno::AGAIN) => return,
            Err(errno) => Err(errno.into()),
            Ok(()) => Ok(()),
        };
        connection.sending = None;
        ready.push(Completion::Sent { connection: id(key), result });
    }

    pub(super) fn close(
        &mut self,
        id: ConnectionId,
        registry: &Registry,
        ready: &mut Vec<Completion>,
    ) {
        let key = SlotKey::from_bits(id.0);
        let connection = self.connections.remove(key);
        let connection = connection.expect("no request follows the close of its connection");
        self.starved.retain(|starved| *starved != key);
        match connection.receiving {
            Receiving::Nothing => {}
            Receiving::Buffer => {
                let result = Err(sockets::closed_here());
                ready.push(Completion::Received { connection: id, result });
            }
            Receiving::Room(room) => {
                let result = Err(sockets::closed_here());
                ready.push(Completion::ReceivedInto { connection: id, room, result });
            }
        }
        if connection.sending.is_some() {
            let result = Err(sockets::closed_here());
            ready.push(Completion::Sent { connection: id, result });
        }
        unwatch(registry, &connection.socket);
        drop(connection.socket);
        ready.push(Completion::Closed(id));
        // The descriptor it frees may be the one that accepting waits for.
        for listener in self.listeners.values_mut() {
            if let Listener::Listening { next: next @ Some(_), .. } = listener {
                *next = Some(Monotonic(0));
            }
        }
    }

    pub(super) fn detach(
        &mut self,
        id: ConnectionId,
        registry: &Registry,
        ready: &mut Vec<Completion>,
    ) {
        let connection = self.connections.remove(SlotKey::from_bits(id.0));
        let connection = connection.expect("a connection that is given up is there");
        let idle = !connection.receiving.is_under_way() && connection.sending.is_none();
        assert!(idle, "nothing has been requested for {id:?}");
        unwatch(registry, &connection.socket);
        ready.push(Completion::Detached { connection: id, socket: connection.socket });
    }

    pub(super) fn attach(
        &mut self,
        listener: ListenerId,
        socket: OwnedFd,
        registry: &Registry,
        ready: &mut Vec<Completion>,
    ) {
        match watch_accepted(&mut self.connections, registry, socket) {
            Ok((connection, peer)) => {
                ready.push(Completion::Accepted { listener, connection, peer });
            }
            Err(error) => {
                tracing::debug!(%error, "a connection was gone before it was taken over");
                ready.push(Completion::NotAttached);
            }
        }
    }

    fn open(&mut self, key: SlotKey) -> &mut Connection {
        self.connections.get_mut(key).expect("no request follows the close of its connection")
    }
}

impl Listener {
    fn due(&self) -> Option<Monotonic> {
        match self {
            Self::Retrying { next, .. } => Some(*next),
            Self::Listening { next, .. } => *next,
        }
    }
}

impl Sending {
    /// Sends until all is sent (`Ok`) or the kernel takes no more (an error, also EAGAIN).
    fn go_on(&mut self, socket: &OwnedFd) -> Result<(), Errno> {
        self.advance(0);
        while self.part < self.parts.len() {
            let mut skipped = self.sent;
            let rest: Vec<_> = self.parts[self.part..]
                .iter()
                .take(GATHER_MAX)
                .map(|part| IoSlice::new(&part[std::mem::take(&mut skipped)..]))
                .collect();
            let mut control = SendAncillaryBuffer::default();
            match sendmsg(socket, &rest, &mut control, SendFlags::NOSIGNAL) {
                Ok(count) => self.advance(count),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
            }
        }
        Ok(())
    }

    fn advance(&mut self, mut count: usize) {
        while let Some(part) = self.parts.get(self.part) {
            let left = part.len() - self.sent;
            if count < left {
                self.sent += count;
                return;
            }
            count -= left;
            self.part += 1;
            self.sent = 0;
        }
    }
}

fn watch_accepted(
    connections: &mut Slots<Connection>,
    registry: &Registry,
    socket: OwnedFd,
) -> io::Result<(ConnectionId, SocketAddr)> {
    let peer = sockets::prepare_accepted(&socket)?;
    Ok((id(watch(connections, registry, socket)?), peer))
}

fn watch(
    connections: &mut Slots<Connection>,
    registry: &Registry,
    socket: OwnedFd,
) -> io::Result<SlotKey> {
    let fd = socket.as_raw_fd();
    let receiving = Receiving::Nothing;
    let key = connections.insert(Connection { socket, receiving, sending: None });
    let token = usize::try_from(key.to_bits()).expect("a 64-bit system");
    let interest = Interest::READABLE | Interest::WRITABLE;
    if let Err(error) = registry.register(&mut SourceFd(&fd), Token(token), interest) {
        connections.remove(key);
        return Err(error);
    }
    Ok(key)
}

pub(super) fn unwatch(registry: &Registry, socket: &OwnedFd) {
    if let Err(error) = registry.deregister(&mut SourceFd(&socket.as_raw_fd())) {
        tracing::debug!(%error, "a socket was not watched any more");
    }
}

fn id(key: SlotKey) -> ConnectionId {
    ConnectionId(key.to_bits())
}
