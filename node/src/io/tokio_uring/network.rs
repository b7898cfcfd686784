//! [`Network`]: the sockets of [`super::TokioUringIo`].
//!
//! ```text
//! listener:    Idle -> (Retrying ->) Listening <-> paused -> stopping -> Idle
//! connection:  open -> closing (a receive or send is still under way) -> gone
//! ```
//!
//! The runtime cannot cancel: a dropped accept or read still takes the connection or the bytes, and
//! they are lost. So no task is ever dropped; shutdown(2) makes what waits on a socket end. Nor has
//! it buffers that the kernel picks: each receive under way holds one, also on an idle connection.

use std::collections::VecDeque;
use std::io;
use std::net::{Shutdown, SocketAddr};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use bytes::{Buf, Bytes};
use rustix::io::Errno;
use rustix::net::SocketFlags;
use tokio_uring::net::{TcpListener, TcpStream};

use super::turns::{Event, Turns};
use crate::io::disk_error::is_interruption;
use crate::io::slots::{SlotKey, Slots};
use crate::io::sockets::{
    self, ACCEPT_PAUSE_MS, LISTEN_PAUSE_MS, LISTEN_RETRY_MS, Listen, RECEIVE_BUFFER_BYTES,
    RECEIVE_BUFFERS,
};
use crate::io::{Completion, ConnectionId, Monotonic, ReceiveBuffer, clock};

/// Parts of one WRITEV at most (IOV_MAX).
const GATHER_MAX: usize = 1024;
/// Free receive buffers that are kept.
const FREE_BUFFERS_MAX: usize = 64;

/// What a task has found out about a socket.
pub(super) enum NetworkEvent {
    Accepted { stream: TcpStream, peer: SocketAddr },
    AcceptEnded(io::Error),
    Received { connection: SlotKey, storage: Vec<u8>, result: io::Result<usize> },
    Sent { connection: SlotKey, result: io::Result<()> },
}

/// A network request that is ready to become a task.
pub(super) enum Job {
    Accept(Rc<TcpListener>),
    Receive { connection: SlotKey, stream: Rc<TcpStream>, storage: Vec<u8> },
    Send { connection: SlotKey, stream: Rc<TcpStream>, parts: VecDeque<Bytes> },
}

/// All sockets of the driver.
pub(super) struct Network {
    connections: Slots<Connection>,
    listener: Listener,
    free: Vec<Vec<u8>>,
    lent: usize,
    /// Connections whose receive waits for a buffer to be released, oldest first.
    starved: VecDeque<SlotKey>,
    jobs: Vec<Job>,
}

enum Listener {
    Idle,
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
            listener: Listener::Idle,
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
        match &self.listener {
            Listener::Retrying { next, .. } => Some(*next),
            Listener::Listening(Listening { accept: Accept::Paused(next), .. }) => Some(*next),
            Listener::Idle | Listener::Listening(_) => None,
        }
    }

    pub(super) fn handle_time(&mut self, ready: &mut Vec<Completion>) {
        match &mut self.listener {
            &mut Listener::Retrying { address, give_up, next } if next <= clock::monotonic() => {
                self.try_listen(address, give_up, ready);
            }
            Listener::Listening(Listening {
                socket, accept: accept @ Accept::Paused(_), ..
            }) => {
                if matches!(accept, Accept::Paused(next) if *next <= clock::monotonic()) {
                    *accept = Accept::UnderWay;
                    self.jobs.push(Job::Accept(Rc::clone(socket)));
                }
            }
            _ => {}
        }
    }

    pub(super) fn listen(&mut self, address: SocketAddr, ready: &mut Vec<Completion>) {
        if !matches!(self.listener, Listener::Idle) {
            let error = io::Error::new(io::ErrorKind::AlreadyExists, "listening already");
            ready.push(Completion::Listening(Err(error)));
            return;
        }
        let give_up = clock::monotonic().plus_millis(LISTEN_RETRY_MS);
        self.try_listen(address, give_up, ready);
    }

    fn try_listen(&mut self, address: SocketAddr, give_up: Monotonic, ready: &mut Vec<Completion>) {
        let listening = match sockets::listen(address, SocketFlags::empty(), give_up) {
            Listen::Ready(socket, bound) => socket.try_clone().map(|clone| (socket, clone, bound)),
            Listen::Again => {
                let next = clock::monotonic().plus_millis(LISTEN_PAUSE_MS);
                self.listener = Listener::Retrying { address, give_up, next };
                return;
            }
            Listen::Failed(error) => Err(error),
        };
        let result = match listening {
            Ok((socket, interrupter, bound)) => {
                let socket = Rc::new(TcpListener::from_std(socket.into()));
                self.jobs.push(Job::Accept(Rc::clone(&socket)));
                let accept = Accept::UnderWay;
                self.listener = Listener::Listening(Listening { socket, interrupter, accept });
                Ok(bound)
            }
            Err(error) => {
                self.listener = Listener::Idle;
                Err(error)
            }
        };
        ready.push(Completion::Listening(result));
    }

    pub(super) fn stop_listening(&mut self, ready: &mut Vec<Completion>) {
        match &mut self.listener {
            Listener::Listening(Listening { accept: Accept::Stopping, .. }) => return,
            Listener::Listening(Listening { interrupter, accept, .. }) => {
                if matches!(accept, Accept::UnderWay) {
                    *accept = Accept::Stopping;
                    sockets::interrupt(interrupter);
                    return;
                }
            }
            Listener::Retrying { .. } => {
                let error = io::Error::new(io::ErrorKind::Interrupted, "told to stop listening");
                ready.push(Completion::Listening(Err(error)));
            }
            Listener::Idle => {}
        }
        self.listener = Listener::Idle;
        ready.push(Completion::ListenerClosed);
    }

    pub(super) fn handle(&mut self, event: NetworkEvent, ready: &mut Vec<Completion>) {
        match event {
            NetworkEvent::Accepted { stream, peer } => {
                self.handle_accepted(stream, peer, ready);
            }
            NetworkEvent::AcceptEnded(error) => self.handle_accept_ended(&error, ready),
            NetworkEvent::Received { connection, storage, result } => {
                self.handle_received(connection, storage, result, ready);
            }
            NetworkEvent::Sent { connection, result } => {
                self.handle_sent(connection, result, ready);
            }
        }
    }

    fn handle_accepted(
        &mut self,
        stream: TcpStream,
        peer: SocketAddr,
        ready: &mut Vec<Completion>,
    ) -> bool {
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "a connection was gone before it was accepted");
            return false;
        }
        let stream = Rc::new(stream);
        let receive = Receive::Idle;
        let connection = Connection { stream, receive, sending: false, closing: false };
        let key = self.connections.insert(connection);
        ready.push(Completion::Accepted { connection: id(key), peer });
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

    pub(super) fn attach(&mut self, socket: OwnedFd, ready: &mut Vec<Completion>) {
        match sockets::prepare_accepted(&socket) {
            Ok(peer) => {
                if !self.handle_accepted(TcpStream::from_std(socket.into()), peer, ready) {
                    ready.push(Completion::NotAttached);
                }
            }
            Err(error) => {
                tracing::debug!(%error, "a connection was gone before it was taken over");
                ready.push(Completion::NotAttached);
            }
        }
    }

    fn handle_accept_ended(&mut self, error: &io::Error, ready: &mut Vec<Completion>) {
        let Listener::Listening(Listening { socket, accept, .. }) = &mut self.listener else {
            return;
        };
        if matches!(accept, Accept::Stopping) {
            self.listener = Listener::Idle;
            ready.push(Completion::ListenerClosed);
            return;
        }
        let errno = Errno::from_io_error(error).unwrap_or(Errno::IO);
        if errno == Errno::CONNABORTED || is_interruption(errno) {
            self.jobs.push(Job::Accept(Rc::clone(socket)));
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
            if let Listener::Listening(Listening { accept, .. }) = &mut self.listener
                && matches!(accept, Accept::Paused(_))
            {
                *accept = Accept::Paused(Monotonic(0));
            }
        }
    }

    /// Makes all tasks on sockets end, because the driver does.
    pub(super) fn interrupt_all(&mut self) {
        self.jobs.clear();
        if let Listener::Listening(Listening { interrupter, .. }) = &self.listener {
            sockets::interrupt(interrupter);
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

impl Job {
    /// Carries the request out, and leaves what comes of it.
    pub(super) async fn run(self, turns: Rc<Turns>) {
        let event = match self {
            Self::Accept(listener) => accept(&listener, &turns).await,
            Self::Receive { connection, stream, storage } => {
                let (result, storage) = receive(&stream, storage).await;
                NetworkEvent::Received { connection, storage, result }
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
async fn accept(listener: &TcpListener, turns: &Turns) -> NetworkEvent {
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                turns.push(Event::Network(NetworkEvent::Accepted { stream, peer }));
            }
            Err(error) => return NetworkEvent::AcceptEnded(error),
        }
    }
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
