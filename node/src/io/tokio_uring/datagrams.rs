//! [`Datagrams`]: the UDP sockets of [`super::TokioUringIo`].
//!
//! ```text
//! absent -> Retrying -> bound: several receives under way <-> none (all buffers lent, or paused)
//!        -> closing, until receives and sends have ended -> absent
//! ```
//!
//! The runtime has no multishot: some receives are always under way, each a task that holds a
//! buffer. Nor can it cancel, and it panics at the nameless answer that a receive gets on a socket
//! that is shut down. So a socket that closes sends itself empty datagrams until its receives have
//! ended.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use bytes::Bytes;
use rustix::io::Errno;
use rustix::net::{SendFlags, SocketFlags, sendto};
use tokio_uring::net::UdpSocket;

use super::turns::{Event, Turns};
use crate::io::datagrams::{self, DATAGRAM_PAUSE_MS, SendsUnderWay};
use crate::io::disk_error::is_interruption;
use crate::io::sockets::{LISTEN_PAUSE_MS, LISTEN_RETRY_MS, Listen};
use crate::io::{
    Completion, DATAGRAM_BUFFERS, DATAGRAM_BYTES_MAX, DatagramStatistics, Monotonic, ReceiveBuffer,
    SocketId, clock,
};

/// Receives under way on one socket. A datagram wakes them all, and few do not keep up with many.
const DATAGRAM_RECEIVES_MAX: usize = 16;

/// What a task has found out about a UDP socket.
pub(super) enum DatagramEvent {
    Received { socket: SocketId, storage: Vec<u8>, result: io::Result<(usize, SocketAddr)> },
    Sent { socket: SocketId, len: usize, result: io::Result<usize> },
}

/// A request that is ready to become a task.
pub(super) enum Job {
    Receive { id: SocketId, socket: Rc<UdpSocket>, storage: Vec<u8> },
    Send { id: SocketId, socket: Rc<UdpSocket>, to: SocketAddr, bytes: Bytes },
}

/// All UDP sockets of the driver.
#[derive(Default)]
pub(super) struct Datagrams {
    sockets: BTreeMap<SocketId, Socket>,
    /// How many sockets there have been: the last one's pool.
    pools: u32,
    statistics: DatagramStatistics,
    jobs: Vec<Job>,
}

enum Socket {
    Retrying { address: SocketAddr, bytes_max: usize, give_up: Monotonic, next: Monotonic },
    Bound(Bound),
}

struct Bound {
    socket: Rc<UdpSocket>,
    /// The same socket, and where it can be reached, to make receives end.
    interrupter: OwnedFd,
    address: SocketAddr,
    pool: NonZeroU32,
    bytes_max: usize,
    free: Vec<Vec<u8>>,
    lent: usize,
    receiving: usize,
    starved: bool,
    sends: SendsUnderWay,
    phase: Phase,
}

#[derive(Clone, Copy)]
enum Phase {
    Open,
    /// No receives until this time.
    Paused(Monotonic),
    /// Receives are made to end, again at this time.
    Closing(Monotonic),
}

impl Datagrams {
    /// Takes what is to become tasks.
    pub(super) fn take_jobs(&mut self) -> Vec<Job> {
        std::mem::take(&mut self.jobs)
    }

    /// When [`Datagrams::handle_time`] has something to do.
    pub(super) fn next_deadline(&self) -> Option<Monotonic> {
        self.sockets.values().filter_map(Socket::due).min()
    }

    pub(super) fn handle_time(&mut self, ready: &mut Vec<Completion>) {
        if self.sockets.values().all(|socket| socket.due().is_none()) {
            return;
        }
        let now = clock::monotonic();
        let is_due = |socket: &Socket| socket.due().is_some_and(|due| due <= now);
        let due: Vec<_> =
            self.sockets.iter().filter(|(_, s)| is_due(s)).map(|(id, _)| *id).collect();
        for id in due {
            match self.sockets.get_mut(&id) {
                Some(&mut Socket::Retrying { address, bytes_max, give_up, .. }) => {
                    self.try_bind(id, address, bytes_max, give_up, ready);
                }
                Some(Socket::Bound(bound)) => {
                    bound.go_on();
                    self.receive(id);
                }
                None => {}
            }
        }
    }

    pub(super) fn bind(
        &mut self,
        id: SocketId,
        address: SocketAddr,
        bytes_max: usize,
        ready: &mut Vec<Completion>,
    ) {
        assert!(bytes_max <= DATAGRAM_BYTES_MAX, "no datagram is {bytes_max} bytes long");
        if self.sockets.contains_key(&id) {
            let error = io::Error::new(io::ErrorKind::AlreadyExists, "bound already");
            ready.push(Completion::UdpBound(id, Err(error)));
            return;
        }
        let give_up = clock::monotonic().plus_millis(LISTEN_RETRY_MS);
        self.try_bind(id, address, bytes_max, give_up, ready);
    }

    fn try_bind(
        &mut self,
        id: SocketId,
        address: SocketAddr,
        bytes_max: usize,
        give_up: Monotonic,
        ready: &mut Vec<Completion>,
    ) {
        let result = match datagrams::bind(address, SocketFlags::empty(), give_up) {
            Listen::Ready(socket, bound) => {
                let interrupter = socket.try_clone();
                interrupter.map(|clone| self.take_bound(id, (socket, clone), bound, bytes_max))
            }
            Listen::Again => {
                let next = clock::monotonic().plus_millis(LISTEN_PAUSE_MS);
                self.sockets.insert(id, Socket::Retrying { address, bytes_max, give_up, next });
                return;
            }
            Listen::Failed(error) => Err(error),
        };
        if result.is_err() {
            self.sockets.remove(&id);
        }
        ready.push(Completion::UdpBound(id, result));
    }

    fn take_bound(
        &mut self,
        id: SocketId,
        (socket, interrupter): (OwnedFd, OwnedFd),
        address: SocketAddr,
        bytes_max: usize,
    ) -> SocketAddr {
        self.pools = self.pools.wrapping_add(1);
        let bound = Bound {
            socket: Rc::new(UdpSocket::from_std(socket.into())),
            interrupter,
            address: datagrams::reachable_here(address),
            pool: NonZeroU32::new(self.pools).unwrap_or(NonZeroU32::MIN),
            bytes_max,
            free: Vec::new(),
            lent: 0,
            receiving: 0,
            starved: false,
            sends: SendsUnderWay::default(),
            phase: Phase::Open,
        };
        self.sockets.insert(id, Socket::Bound(bound));
        self.receive(id);
        address
    }

    /// Has as many receives under way as may be.
    fn receive(&mut self, id: SocketId) {
        let Some(Socket::Bound(bound)) = self.sockets.get_mut(&id) else { return };
        while matches!(bound.phase, Phase::Open) && bound.receiving < DATAGRAM_RECEIVES_MAX {
            if bound.lent + bound.receiving == usize::from(DATAGRAM_BUFFERS) {
                if bound.receiving == 0 && !std::mem::replace(&mut bound.starved, true) {
                    self.statistics.starved += 1;
                }
                return;
            }
            bound.starved = false;
            bound.receiving += 1;
            // A byte more than is wanted shows what is longer.
            let storage = bound.free.pop().unwrap_or_else(|| vec![0; bound.bytes_max + 1]);
            self.jobs.push(Job::Receive { id, socket: Rc::clone(&bound.socket), storage });
        }
    }

    pub(super) fn handle(&mut self, event: DatagramEvent, ready: &mut Vec<Completion>) {
        let id = match event {
            DatagramEvent::Received { socket, storage, result } => {
                self.handle_received(socket, storage, result, ready);
                self.receive(socket);
                socket
            }
            DatagramEvent::Sent { socket, len, result } => {
                match result {
                    Ok(_) => self.statistics.sent += 1,
                    Err(error) => {
                        tracing::trace!(%error, "a datagram was not sent");
                        self.statistics.send_failed += 1;
                    }
                }
                self.bound(socket).sends.end(len);
                socket
            }
        };
        self.close_if_idle(id, ready);
    }

    fn handle_received(
        &mut self,
        id: SocketId,
        storage: Vec<u8>,
        result: io::Result<(usize, SocketAddr)>,
        ready: &mut Vec<Completion>,
    ) {
        let bound = self.bound(id);
        bound.receiving -= 1;
        let closing = matches!(bound.phase, Phase::Closing(_));
        match result {
            Ok((len, from)) if !closing && len <= bound.bytes_max => {
                bound.lent += 1;
                let storage = storage.into_boxed_slice();
                let bytes = ReceiveBuffer::of_datagram(storage, 0..len, 0, bound.pool);
                self.statistics.received += 1;
                ready.push(Completion::Datagram { socket: id, from, bytes });
                return;
            }
            Ok((len, _)) => {
                let truncated = u64::from(len > bound.bytes_max);
                bound.free.push(storage);
                self.statistics.truncated += truncated;
                return;
            }
            Err(error) => {
                let errno = Errno::from_io_error(&error).unwrap_or(Errno::IO);
                if !closing && !is_interruption(errno) {
                    tracing::debug!(%error, "receiving datagrams pauses");
                    // Trying again at once might spin.
                    let next = clock::monotonic().plus_millis(DATAGRAM_PAUSE_MS);
                    bound.phase = Phase::Paused(next);
                }
            }
        }
        bound.free.push(storage);
    }

    /// Takes a buffer back that a datagram came in.
    pub(super) fn release(&mut self, pool: NonZeroU32, buffer: ReceiveBuffer) {
        let found = self.sockets.iter_mut().find_map(|(id, socket)| match socket {
            Socket::Bound(bound) if bound.pool == pool => Some((*id, bound)),
            _ => None,
        });
        // The memory of a socket that is closed is nobody's.
        let Some((id, bound)) = found else { return };
        bound.lent = bound.lent.checked_sub(1).expect("a buffer is released once");
        bound.free.push(buffer.into_parts().0.into_vec());
        self.receive(id);
    }

    pub(super) fn send(&mut self, id: SocketId, to: SocketAddr, bytes: Bytes) {
        if let Some(Socket::Bound(bound)) = self.sockets.get_mut(&id)
            && !matches!(bound.phase, Phase::Closing(_))
            && bound.sends.begin(bytes.len())
        {
            self.jobs.push(Job::Send { id, socket: Rc::clone(&bound.socket), to, bytes });
        } else {
            self.statistics.send_dropped += 1;
        }
    }

    pub(super) fn close(&mut self, id: SocketId, ready: &mut Vec<Completion>) {
        match self.sockets.get_mut(&id) {
            Some(Socket::Bound(bound)) => {
                bound.phase = Phase::Closing(Monotonic(0));
                bound.go_on();
                return self.close_if_idle(id, ready);
            }
            Some(Socket::Retrying { .. }) => {
                let error = io::Error::new(io::ErrorKind::Interrupted, "told to close");
                ready.push(Completion::UdpBound(id, Err(error)));
                self.sockets.remove(&id);
            }
            None => {}
        }
        ready.push(Completion::UdpClosed(id));
    }

    fn close_if_idle(&mut self, id: SocketId, ready: &mut Vec<Completion>) {
        let bound = self.bound(id);
        let closing = matches!(bound.phase, Phase::Closing(_));
        if closing && bound.receiving == 0 && bound.sends.is_empty() {
            self.statistics.overflowed += datagrams::overflowed(&self.bound(id).interrupter);
            // Its tasks have ended, so this closes the socket.
            self.sockets.remove(&id);
            ready.push(Completion::UdpClosed(id));
        }
    }

    /// Makes all receives end, because the driver does.
    pub(super) fn interrupt_all(&mut self) {
        self.jobs.clear();
        for socket in self.sockets.values() {
            if let Socket::Bound(bound) = socket {
                bound.interrupt();
            }
        }
    }

    pub(super) fn statistics(&self) -> DatagramStatistics {
        let mut statistics = self.statistics;
        for socket in self.sockets.values() {
            if let Socket::Bound(bound) = socket {
                statistics.overflowed += datagrams::overflowed(&bound.interrupter);
            }
        }
        statistics
    }

    fn bound(&mut self, id: SocketId) -> &mut Bound {
        match self.sockets.get_mut(&id) {
            Some(Socket::Bound(bound)) => bound,
            _ => unreachable!("a socket outlives its tasks"),
        }
    }
}

impl Socket {
    fn due(&self) -> Option<Monotonic> {
        match self {
            Self::Retrying { next: due, .. }
            | Self::Bound(Bound { phase: Phase::Paused(due) | Phase::Closing(due), .. }) => {
                Some(*due)
            }
            Self::Bound(_) => None,
        }
    }
}

impl Bound {
    /// Does what the phase had to wait for.
    fn go_on(&mut self) {
        match self.phase {
            Phase::Open => {}
            Phase::Paused(_) => self.phase = Phase::Open,
            Phase::Closing(_) => {
                self.interrupt();
                let next = clock::monotonic().plus_millis(DATAGRAM_PAUSE_MS);
                self.phase = Phase::Closing(next);
            }
        }
    }

    /// Sends the socket one empty datagram for each receive.
    fn interrupt(&self) {
        for _ in 0..self.receiving {
            let sent = sendto(&self.interrupter, &[], SendFlags::DONTWAIT, &self.address);
            if let Err(error) = sent {
                tracing::debug!(%error, "a socket cannot reach itself");
            }
        }
    }
}

impl Job {
    /// Carries the request out, and leaves what comes of it.
    pub(super) async fn run(self, turns: Rc<Turns>) {
        let event = match self {
            Self::Receive { id, socket, storage } => {
                let (result, storage) = socket.recv_from(storage).await;
                DatagramEvent::Received { socket: id, storage, result }
            }
            Self::Send { id, socket, to, bytes } => {
                let len = bytes.len();
                let (result, _) = socket.send_to(bytes, to).await;
                DatagramEvent::Sent { socket: id, len, result }
            }
        };
        turns.push(Event::Datagram(event));
    }
}
