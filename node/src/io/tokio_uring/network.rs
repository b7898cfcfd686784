//! [`Network`]: the sockets of [`super::TokioUringIo`].
//!
//! ```text
//! listener:    absent -> (Retrying ->) Listening <-> paused -> stopping -> absent
//! connection:  open -> closing (a receive or send is still under way) -> gone
//! ```
//!
//! The runtime cannot cancel: a dropped accept or read still takes the connection or the bytes, and
//! they are lost. So no task is ever dropped; shutdown(2) makes what waits on a socket end. Nor has
//! it buffers that the kernel picks: each receive under way holds one, also on an idle connection.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::{Shutdown, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use bytes::{Buf, Bytes};
use rustix::io::{Errno, ioctl_fionbio};
use rustix::net::{SocketFlags, sockopt};
use tokio::io::Interest;
use tokio_uring::net::{TcpListener, TcpStream};

use super::buffers::RoomLeft;
use super::turns::{Event, Turns};
use crate::io::disk_error::is_interruption;
use crate::io::slots::{SlotKey, Slots};
use crate::io::sockets::{
    self, ACCEPT_PAUSE_MS, LISTEN_PAUSE_MS, LISTEN_RETRY_MS, Listen, RECEIVE_BUFFER_BYTES,
    RECEIVE_BUFFERS,
};
use crate::io::{
    AttemptId, Completion, ConnectionId, ListenerId, Monotonic, ReceiveBuffer, ReceiveRoom, clock,
};

/// Parts of one WRITEV at most (IOV_MAX).
const GATHER_MAX: usize = 1024;
/// Free receive buffers that are kept.
const FREE_BUFFERS_MAX: usize = 64;

/// What a task has found out about a socket.
pub(super) enum NetworkEvent {
    Accepted { listener: ListenerId, stream: TcpStream, peer: SocketAddr },
    AcceptEnded { listener: ListenerId, error: io::Error },
    ConnectEnded { attempt: SlotKey, result: io::Result<OwnedFd> },
    Received { connection: SlotKey, storage: Vec<u8>, result: io::Result<usize> },
    ReceivedInto { connection: SlotKey, room: ReceiveRoom, result: io::Result<usize> },
    Sent { connection: SlotKey, result: io::Result<()> },
}

/// A network request that is ready to become a task.
pub(super) enum Job {
    Accept { listener: ListenerId, socket: Rc<TcpListener> },
    Connect { attempt: SlotKey, socket: OwnedFd, deadline: Monotonic },
    Receive { connection: SlotKey, stream: Rc<TcpStream>, storage: Vec<u8> },
    ReceiveInto { connection: SlotKey, stream: Rc<TcpStream>, room: ReceiveRoom },
    Send { connection: SlotKey, stream: Rc<TcpStream>, parts: VecDeque<Bytes> },
}

/// All sockets of the driver.
pub(super) struct Network {
    connections: Slots<Connection>,
    attempts: Slots<Attempt>,
    listeners: BTreeMap<ListenerId, Listener>,
    free: Vec<Vec<u8>>,
    lent: usize,
    /// Connections whose receive waits for a buffer to be released, oldest first.
    starved: VecDeque<SlotKey>,
    jobs: Vec<Job>,
}

enum Listener {
    Retrying { address: SocketAddr, give_up: Monotonic, next: Monotonic },
    Listening(Listening),
}

struct Listening {
    socket: Rc<TcpListener>,
    /// The same socket, to make an accept end.
    interrupter: OwnedFd,
    accept: Accept,
}

#[derive(Clone, Copy)]
enum Accept {
    UnderWay,
    Paused(Monotonic),
    Stopping,
}

struct Attempt {
    id: AttemptId,
    /// The same socket, to make connecting end.
    interrupter: OwnedFd,
    cancelled: bool,
}

struct Connection {
    stream: Rc<TcpStream>,
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
    pub(super) fn new() -> Self {
        Self {
            connections: Slots::new(),
            attempts: Slots::new(),
            listeners: BTreeMap::new(),
            free: Vec::new(),
            lent: 0,
            starved: VecDeque::new(),
            jobs: Vec::new(),
        }
    }

    pub(super) fn connections_open(&self) -> usize {
        self.connections.len()
    }

    /// Takes what is to become tasks.
    pub(super) fn take_jobs(&mut self) -> Vec<Job> {
        std::mem::take(&mut self.jobs)
    }

    /// When [`Network::handle_time`] has something to do.
    pub(super) fn next_deadline(&self) -> Option<Monotonic> {
        self.listeners.values().filter_map(Listener::due).min()
    }

    pub(super) fn handle_time(&mut self, ready: &mut Vec<Completion>) {
        if self.listeners.values().all(|listener| listener.due().is_none()) {
            return;
        }
        let now = clock::monotonic();
        let is_due = |listener: &Listener| listener.due().is_some_and(|due| due <= now);
        let due: Vec<_> =
            self.listeners.iter().filter(|(_, l)| is_due(l)).map(|(id, _)| *id).collect();
        for id in due {
            match self.listeners.get_mut(&id) {
                Some(&mut Listener::Retrying { address, give_up, .. }) => {
                    self.try_listen(id, address, give_up, ready);
                }
                Some(Listener::Listening(Listening { socket, accept, .. })) => {
                    *accept = Accept::UnderWay;
                    self.jobs.push(Job::Accept { listener: id, socket: Rc::clone(socket) });
                }
                None => {}
            }
        }
    }

    pub(super) fn listen(
        &mut self,
        id: ListenerId,
        address: SocketAddr,
        ready: &mut Vec<Completion>,
    ) {
        if self.listeners.contains_key(&id) {
            let error = io::Error::new(io::ErrorKind::AlreadyExists, "listening already");
            ready.push(Completion::Listening(id, Err(error)));
            return;
        }
        let give_up = clock::monotonic().plus_millis(LISTEN_RETRY_MS);
        self.try_listen(id, address, give_up, ready);
    }

    fn try_listen(
        &mut self,
        id: ListenerId,
        address: SocketAddr,
        give_up: Monotonic,
        ready: &mut Vec<Completion>,
    ) {
        let listening = match sockets::listen(address, SocketFlags::empty(), give_up) {
            Listen::Ready(socket, bound) => socket.try_clone().map(|clone| (socket, clone, bound)),
            Listen::Again => {
                let next = clock::monotonic().plus_millis(LISTEN_PAUSE_MS);
                self.listeners.insert(id, Listener::Retrying { address, give_up, next });
                return;
            }
            Listen::Failed(error) => Err(error),
        };
        let result = match listening {
            Ok((socket, interrupter, bound)) => {
                let socket = Rc::new(TcpListener::from_std(socket.into()));
                self.jobs.push(Job::Accept { listener: id, socket: Rc::clone(&socket) });
                let accept = Accept::UnderWay;
                let listening = Listening { socket, interrupter, accept };
                self.listeners.insert(id, Listener::Listening(listening));
                Ok(bound)
            }
            Err(error) => {
                self.listeners.remove(&id);
                Err(error)
            }
        };
        ready.push(Completion::Listening(id, result));
    }

    pub(super) fn stop_listening(&mut self, id: ListenerId, ready: &mut Vec<Completion>) {
        match self.listeners.get_mut(&id) {
            Some(Listener::Listening(Listening { accept: Accept::Stopping, .. })) => return,
            Some(Listener::Listening(Listening { interrupter, accept, .. })) => {
                if matches!(accept, Accept::UnderWay) {
                    *accept = Accept::Stopping;
                    sockets::interrupt(interrupter);
                    return;
                }
            }
            Some(Listener::Retrying { .. }) => {
                let error = io::Error::new(io::ErrorKind::Interrupted, "told to stop listening");
                ready.push(Completion::Listening(id, Err(error)));
            }
            None => {}
        }
        self.listeners.remove(&id);
        ready.push(Completion::ListenerClosed(id));
    }

    pub(super) fn connect(
        &mut self,
        id: AttemptId,
        to: SocketAddr,
        deadline: Monotonic,
        ready: &mut Vec<Completion>,
    ) {
        match start_connecting(to) {
            Ok((socket, interrupter)) => {
                let attempt = Attempt { id, interrupter, cancelled: false };
                let attempt = self.attempts.insert(attempt);
                self.jobs.push(Job::Connect { attempt, socket, deadline });
            }
            Err(error) => {
                ready.push(Completion::Connected { attempt: id, result: Err(error) });
            }
        }
    }

    pub(super) fn cancel_connect(&mut self, id: AttemptId) {
        let found = self.attempts.find(|attempt| attempt.id == id);
        if let Some(attempt) = found.and_then(|key| self.attempts.get_mut(key)) {
            attempt.cancelled = true;
            sockets::interrupt(&attempt.interrupter);
        }
    }

    fn handle_connect_ended(
        &mut self,
        key: SlotKey,
        result: io::Result<OwnedFd>,
        ready: &mut Vec<Completion>,
    ) {
        let attempt = self.attempts.remove(key).expect("an attempt outlives its task");
        let result = match result {
            _ if attempt.cancelled => Err(sockets::closed_here()),
            Ok(socket) => Ok(self.add(TcpStream::from_std(socket.into()))),
            Err(error) => Err(error),
        };
        ready.push(Completion::Connected { attempt: attempt.id, result });
    }

    fn add(&mut self, stream: TcpStream) -> ConnectionId {
        let (stream, receive) = (Rc::new(stream), Receive::Idle);
        let connection = Connection { stream, receive, sending: false, closing: false };
        id(self.connections.insert(connection))
    }

    pub(super) fn handle(&mut self, event: NetworkEvent, ready: &mut Vec<Completion>) {
        match event {
            NetworkEvent::Accepted { listener, stream, peer } => {
                self.handle_accepted(listener, stream, peer, ready);
            }
            NetworkEvent::AcceptEnded { listener, error } => {
                self.handle_accept_ended(listener, &error, ready);
            }
            NetworkEvent::ConnectEnded { attempt, result } => {
                self.handle_connect_ended(attempt, result, ready);
            }
            NetworkEvent::Received { connection, storage, result } => {
                self.handle_received(connection, storage, result, ready);
            }
            NetworkEvent::ReceivedInto { connection, room, result } => {
                self.handle_received_into(connection, (room, result), ready);
            }
            NetworkEvent::Sent { connection, result } => {
                self.handle_sent(connection, result, ready);
            }
        }
    }

    fn handle_accepted(
        &mut self,
        listener: ListenerId,
        stream: TcpStream,
        peer: SocketAddr,
        ready: &mut Vec<Completion>,
    ) -> bool {
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "a connection was gone before it was accepted");
            return false;
        }
        let connection = self.add(stream);
        ready.push(Completion::Accepted { listener, connection, peer });
        true
    }

    pub(super) fn detach(&mut self, id: ConnectionId, ready: &mut Vec<Completion>) {
        let connection = self.connections.remove(SlotKey::from_bits(id.0));
        let connection = connection.expect("a connection that is given up is there");
        let idle = connection.receive == Receive::Idle && !connection.sending;
        assert!(idle && !connection.closing, "nothing has been requested for {id:?}");
        // SAFETY: the stream keeps its descriptor open until it is dropped below.
        let socket = unsafe { BorrowedFd::borrow_raw(connection.stream.as_raw_fd()) };
        ready.push(match socket.try_clone_to_owned() {
            Ok(socket) => Completion::Detached { connection: id, socket },
            Err(error) => {
                tracing::warn!(%error, "a connection could not be handed to another thread");
                Completion::Closed(id)
            }
        });
    }

    pub(super) fn attach(
        &mut self,
        listener: ListenerId,
        socket: OwnedFd,
        ready: &mut Vec<Completion>,
    ) {
        match sockets::prepare_accepted(&socket) {
            Ok(peer) => {
                let stream = TcpStream::from_std(socket.into());
                if !self.handle_accepted(listener, stream, peer, ready) {
                    ready.push(Completion::NotAttached);
                }
            }
            Err(error) => {
                tracing::debug!(%error, "a connection was gone before it was taken over");
                ready.push(Completion::NotAttached);
            }
        }
    }

    fn handle_accept_ended(
        &mut self,
        listener: ListenerId,
        error: &io::Error,
        ready: &mut Vec<Completion>,
    ) {
        let Some(Listener::Listening(Listening { socket, accept, .. })) =
            self.listeners.get_mut(&listener)
        else {
            return;
        };
        if matches!(accept, Accept::Stopping) {
            self.listeners.remove(&listener);
            ready.push(Completion::ListenerClosed(listener));
            return;
        }
        let errno = Errno::from_io_error(error).unwrap_or(Errno::IO);
        if errno == Errno::CONNABORTED || is_interruption(errno) {
            self.jobs.push(Job::Accept { listener, socket: Rc::clone(socket) });
            return;
        }
        if sockets::is_exhaustion(errno) {
            tracing::warn!(%error, "cannot accept connections for the moment");
        }
        // Trying again at once would spin.
        *accept = Accept::Paused(clock::monotonic().plus_millis(ACCEPT_PAUSE_MS));
    }

    pub(super) fn receive(&mut self, id: ConnectionId) {
        let key = SlotKey::from_bits(id.0);
        let connection = self.open(key);
        assert!(connection.receive == Receive::Idle, "two receives at a time on {id:?}");
        if self.lent < usize::from(RECEIVE_BUFFERS) {
            self.start_receive(key);
        } else {
            self.open(key).receive = Receive::Starved;
            self.starved.push_back(key);
        }
    }

    pub(super) fn receive_into(&mut self, id: ConnectionId, room: ReceiveRoom) {
        let key = SlotKey::from_bits(id.0);
        let connection = self.open(key);
        assert!(connection.receive == Receive::Idle, "two receives at a time on {id:?}");
        assert!(room.left() > 0, "there is room to receive into");
        connection.receive = Receive::UnderWay;
        let stream = Rc::clone(&connection.stream);
        self.jobs.push(Job::ReceiveInto { connection: key, stream, room });
    }

    fn handle_received_into(
        &mut self,
        key: SlotKey,
        (room, result): (ReceiveRoom, io::Result<usize>),
        ready: &mut Vec<Completion>,
    ) {
        let connection = self.connections.get_mut(key).expect("a connection outlives its receive");
        connection.receive = Receive::Idle;
        let result = if connection.closing { Err(sockets::closed_here()) } else { result };
        ready.push(Completion::ReceivedInto { connection: id(key), room, result });
        self.close_if_idle(key, ready);
    }

    fn start_receive(&mut self, key: SlotKey) {
        let storage = self.free.pop().unwrap_or_else(|| vec![0; RECEIVE_BUFFER_BYTES]);
        let connection = self.open(key);
        connection.receive = Receive::UnderWay;
        let stream = Rc::clone(&connection.stream);
        self.jobs.push(Job::Receive { connection: key, stream, storage });
    }

    fn handle_received(
        &mut self,
        key: SlotKey,
        storage: Vec<u8>,
        result: io::Result<usize>,
        ready: &mut Vec<Completion>,
    ) {
        let connection = self.connections.get_mut(key).expect("a connection outlives its receive");
        let result = match result {
            Ok(0) if connection.closing => Err(sockets::closed_here()),
            Err(_) if connection.closing => Err(sockets::closed_here()),
            other => other,
        };
        let result = match result {
            Ok(len) => {
                self.lent += 1;
                Ok(ReceiveBuffer::new(storage.into_boxed_slice(), len, 0))
            }
            Err(error) => {
                self.keep(storage);
                Err(error)
            }
        };
        self.end_receive(key, result, ready);
    }

    fn end_receive(
        &mut self,
        key: SlotKey,
        result: io::Result<ReceiveBuffer>,
        ready: &mut Vec<Completion>,
    ) {
        if let Some(connection) = self.connections.get_mut(key) {
            connection.receive = Receive::Idle;
        }
        ready.push(Completion::Received { connection: id(key), result });
        self.close_if_idle(key, ready);
    }

    pub(super) fn release(&mut self, buffer: ReceiveBuffer) {
        let (storage, _) = buffer.into_parts();
        assert_eq!(storage.len(), RECEIVE_BUFFER_BYTES, "the buffer is one of this driver's");
        self.lent = self.lent.checked_sub(1).expect("a buffer is released once");
        self.keep(storage.into_vec());
        if let Some(key) = self.starved.pop_front() {
            self.start_receive(key);
        }
    }

    fn keep(&mut self, storage: Vec<u8>) {
        if self.free.len() < FREE_BUFFERS_MAX {
            self.free.push(storage);
        }
    }

    pub(super) fn send(&mut self, id: ConnectionId, parts: Vec<Bytes>) {
        let key = SlotKey::from_bits(id.0);
        let connection = self.open(key);
        assert!(!connection.sending, "two sends at a time on {id:?}");
        connection.sending = true;
        let stream = Rc::clone(&connection.stream);
        self.jobs.push(Job::Send { connection: key, stream, parts: parts.into() });
    }

    fn handle_sent(&mut self, key: SlotKey, result: io::Result<()>, ready: &mut Vec<Completion>) {
        let connection = self.connections.get_mut(key).expect("a connection outlives its send");
        connection.sending = false;
        let closing = connection.closing;
        let result = result.map_err(|error| if closing { sockets::closed_here() } else { error });
        ready.push(Completion::Sent { connection: id(key), result });
        self.close_if_idle(key, ready);
    }

    pub(super) fn close(&mut self, id: ConnectionId, ready: &mut Vec<Completion>) {
        let key = SlotKey::from_bits(id.0);
        let connection = self.open(key);
        connection.closing = true;
        if connection.receive == Receive::UnderWay || connection.sending {
            interrupt(&connection.stream);
        }
        if connection.receive == Receive::Starved {
            self.starved.retain(|starved| *starved != key);
            self.end_receive(key, Err(sockets::closed_here()), ready);
        } else {
            self.close_if_idle(key, ready);
        }
    }

    fn close_if_idle(&mut self, key: SlotKey, ready: &mut Vec<Completion>) {
        let idle = self.connections.get_mut(key).is_some_and(|connection| {
            connection.closing && connection.receive == Receive::Idle && !connection.sending
        });
        if idle && let Some(connection) = self.connections.remove(key) {
            // Its tasks have ended, so this closes the socket.
            drop(connection);
            ready.push(Completion::Closed(id(key)));
            // The descriptor it frees may be the one that accepting waits for.
            for listener in self.listeners.values_mut() {
                if let Listener::Listening(Listening { accept: Accept::Paused(next), .. }) =
                    listener
                {
                    *next = Monotonic(0);
                }
            }
        }
    }

    /// Makes all tasks on sockets end, because the driver does.
    pub(super) fn interrupt_all(&mut self) {
        self.jobs.clear();
        for listener in self.listeners.values() {
            if let Listener::Listening(Listening { interrupter, .. }) = listener {
                sockets::interrupt(interrupter);
            }
        }
        for attempt in self.attempts.values() {
            sockets::interrupt(&attempt.interrupter);
        }
        for connection in self.connections.values() {
            interrupt(&connection.stream);
        }
    }

    fn open(&mut self, key: SlotKey) -> &mut Connection {
        let connection = self.connections.get_mut(key).filter(|connection| !connection.closing);
        connection.expect("no request follows the close of its connection")
    }
}

impl Listener {
    fn due(&self) -> Option<Monotonic> {
        match self {
            Self::Retrying { next, .. }
            | Self::Listening(Listening { accept: Accept::Paused(next), .. }) => Some(*next),
            Self::Listening(_) => None,
        }
    }
}

impl Job {
    /// Carries the request out, and leaves what comes of it.
    pub(super) async fn run(self, turns: Rc<Turns>) {
        let event = match self {
            Self::Accept { listener, socket } => accept(listener, &socket, &turns).await,
            Self::Connect { attempt, socket, deadline } => {
                let result = connect(socket, deadline).await;
                NetworkEvent::ConnectEnded { attempt, result }
            }
            Self::Receive { connection, stream, storage } => {
                let (result, storage) = receive(&stream, storage).await;
                NetworkEvent::Received { connection, storage, result }
            }
            Self::ReceiveInto { connection, stream, room } => {
                let (result, room) = receive_into(&stream, room).await;
                NetworkEvent::ReceivedInto { connection, room, result }
            }
            Self::Send { connection, stream, parts } => {
                let result = send(&stream, parts).await;
                NetworkEvent::Sent { connection, result }
            }
        };
        turns.push(Event::Network(event));
    }
}

/// Accepts until that fails.
async fn accept(listener: ListenerId, socket: &TcpListener, turns: &Turns) -> NetworkEvent {
    loop {
        match socket.accept().await {
            Ok((stream, peer)) => {
                turns.push(Event::Network(NetworkEvent::Accepted { listener, stream, peer }));
            }
            Err(error) => return NetworkEvent::AcceptEnded { listener, error },
        }
    }
}

/// A socket that connects without blocking, twice.
fn start_connecting(to: SocketAddr) -> io::Result<(OwnedFd, OwnedFd)> {
    let socket = sockets::connecting(to, SocketFlags::NONBLOCK)?;
    match rustix::net::connect(&socket, &to) {
        Ok(()) | Err(Errno::INPROGRESS | Errno::INTR) => {}
        Err(error) => return Err(error.into()),
    }
    let interrupter = socket.try_clone()?;
    Ok((socket, interrupter))
}

/// Waits until the socket has connected. By readiness: the runtime's own connect can neither be
/// given a time nor ended, and shows nobody its socket.
async fn connect(socket: OwnedFd, deadline: Monotonic) -> io::Result<OwnedFd> {
    let stream = tokio::net::TcpStream::from_std(socket.into())?;
    let connected = async {
        loop {
            let ready = stream.ready(Interest::WRITABLE).await?;
            match stream.try_io(Interest::WRITABLE, || find_connected(&stream)) {
                // Over, though it has no error to show: it would be ready again at once, for ever.
                Err(error)
                    if error.kind() == io::ErrorKind::WouldBlock && ready.is_write_closed() =>
                {
                    return Err(io::ErrorKind::ConnectionReset.into());
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                other => return other,
            }
        }
    };
    let in_time = tokio::time::timeout(clock::until(deadline), connected).await;
    in_time.unwrap_or_else(|_| Err(sockets::connect_timed_out()))?;
    let socket = OwnedFd::from(stream.into_std()?);
    // The runtime's operations wait by themselves.
    ioctl_fionbio(&socket, false)?;
    Ok(socket)
}

fn find_connected(socket: impl AsFd) -> io::Result<()> {
    sockopt::socket_error(&socket)??;
    sockets::prepare_connected(&socket).map_err(|error| match error.kind() {
        io::ErrorKind::NotConnected => io::ErrorKind::WouldBlock.into(),
        _ => error,
    })
}

async fn receive(stream: &TcpStream, storage: Vec<u8>) -> (io::Result<usize>, Vec<u8>) {
    let mut storage = storage;
    loop {
        let (result, back) = stream.read(storage).await;
        storage = back;
        if !was_interrupted(&result) {
            return (result, storage);
        }
    }
}

async fn receive_into(stream: &TcpStream, room: ReceiveRoom) -> (io::Result<usize>, ReceiveRoom) {
    let mut left = RoomLeft(room);
    loop {
        let (result, back) = stream.read(left).await;
        left = back;
        if !was_interrupted(&result) {
            return (result, left.0);
        }
    }
}

async fn send(stream: &TcpStream, parts: VecDeque<Bytes>) -> io::Result<()> {
    let mut parts = parts;
    loop {
        parts.retain(|part| !part.is_empty());
        if parts.is_empty() {
            return Ok(());
        }
        let count = parts.len().min(GATHER_MAX);
        let (result, group) = stream.writev(parts.drain(..count).collect()).await;
        let sent = match result {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            other if was_interrupted(&other) => 0,
            other => other?,
        };
        put_back(&mut parts, group, sent);
    }
}

/// Puts what was not sent before what is still to be sent.
fn put_back(parts: &mut VecDeque<Bytes>, group: Vec<Bytes>, sent: usize) {
    let mut left = sent;
    let mut unsent = Vec::new();
    for mut part in group {
        let skipped = left.min(part.len());
        part.advance(skipped);
        left -= skipped;
        if !part.is_empty() {
            unsent.push(part);
        }
    }
    unsent.into_iter().rev().for_each(|part| parts.push_front(part));
}

fn was_interrupted<T>(result: &io::Result<T>) -> bool {
    let errno = result.as_ref().err().and_then(Errno::from_io_error);
    errno.is_some_and(is_interruption)
}

fn interrupt(stream: &TcpStream) {
    // A socket whose other end has reset it is not connected any more; its tasks end by themselves.
    if let Err(error) = stream.shutdown(Shutdown::Both)
        && error.kind() != io::ErrorKind::NotConnected
    {
        tracing::debug!(%error, "shutdown of a socket failed");
    }
}

fn id(key: SlotKey) -> ConnectionId {
    ConnectionId(key.to_bits())
}
