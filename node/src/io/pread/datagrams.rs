//! [`Datagrams`]: the UDP sockets of [`super::PreadIo`], non-blocking and watched for readiness.
//!
//! Receiving goes on from an edge of readiness until nothing is there, a bounded number of
//! datagrams a turn. A datagram is sent at once, or waits for the next edge.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::os::fd::{AsRawFd, OwnedFd};

use bytes::Bytes;
use mio::event::Event;
use mio::unix::SourceFd;
use mio::{Interest, Registry};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, SocketFlags, recvfrom, sendto};

use super::network::unwatch;
use super::socket_token;
use crate::io::datagrams::{self, DATAGRAM_PAUSE_MS, SendsUnderWay};
use crate::io::sockets::{LISTEN_PAUSE_MS, LISTEN_RETRY_MS, Listen};
use crate::io::{
    Completion, DATAGRAM_BUFFERS, DATAGRAM_BYTES_MAX, DatagramStatistics, Monotonic, ReceiveBuffer,
    SocketId, clock,
};

/// Datagrams received in one turn, so that a flood of them does not starve the others.
const DATAGRAMS_PER_TURN: usize = 256;

/// All UDP sockets of the driver.
#[derive(Debug, Default)]
pub(super) struct Datagrams {
    sockets: BTreeMap<SocketId, Socket>,
    /// How many sockets there have been: the last one's pool.
    pools: u32,
    statistics: DatagramStatistics,
}

#[derive(Debug)]
enum Socket {
    Retrying { address: SocketAddr, bytes_max: usize, give_up: Monotonic, next: Monotonic },
    Bound(Bound),
}

#[derive(Debug)]
struct Bound {
    fd: OwnedFd,
    pool: NonZeroU32,
    bytes_max: usize,
    free: Vec<Box<[u8]>>,
    lent: usize,
    receive: Receive,
    waiting: VecDeque<(SocketAddr, Bytes)>,
    sends: SendsUnderWay,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Receive {
    /// Nothing is there.
    Idle,
    /// Something may be there, from this time on.
    Due(Monotonic),
    /// Something may be there, but all buffers are lent.
    Starved,
}

impl Datagrams {
    /// When [`Datagrams::handle_time`] has something to do.
    pub(super) fn next_deadline(&self) -> Option<Monotonic> {
        self.sockets.values().filter_map(Socket::due).min()
    }

    pub(super) fn handle_time(&mut self, registry: &Registry, ready: &mut Vec<Completion>) {
        if self.sockets.is_empty() {
            return;
        }
        let now = clock::monotonic();
        let is_due = |socket: &Socket| socket.due().is_some_and(|due| due <= now);
        let due: Vec<_> =
            self.sockets.iter().filter(|(_, s)| is_due(s)).map(|(id, _)| *id).collect();
        for id in due {
            match self.sockets.get_mut(&id) {
                Some(&mut Socket::Retrying { address, bytes_max, give_up, .. }) => {
                    self.try_bind(id, address, bytes_max, give_up, registry, ready);
                }
                Some(Socket::Bound(bound)) => bound.receive(id, &mut self.statistics, ready),
                None => {}
            }
        }
    }

    pub(super) fn bind(
        &mut self,
        id: SocketId,
        address: SocketAddr,
        bytes_max: usize,
        registry: &Registry,
        ready: &mut Vec<Completion>,
    ) {
        assert!(bytes_max <= DATAGRAM_BYTES_MAX, "no datagram is {bytes_max} bytes long");
        if self.sockets.contains_key(&id) {
            let error = io::Error::new(io::ErrorKind::AlreadyExists, "bound already");
            ready.push(Completion::UdpBound(id, Err(error)));
            return;
        }
        let give_up = clock::monotonic().plus_millis(LISTEN_RETRY_MS);
        self.try_bind(id, address, bytes_max, give_up, registry, ready);
    }

    fn try_bind(
        &mut self,
        id: SocketId,
        address: SocketAddr,
        bytes_max: usize,
        give_up: Monotonic,
        registry: &Registry,
        ready: &mut Vec<Completion>,
    ) {
        let result = match datagrams::bind(address, SocketFlags::NONBLOCK, give_up) {
            Listen::Ready(fd, bound) => self.watch(id, fd, bytes_max, registry).map(|()| bound),
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

    fn watch(
        &mut self,
        id: SocketId,
        fd: OwnedFd,
        bytes_max: usize,
        registry: &Registry,
    ) -> io::Result<()> {
        let interest = Interest::READABLE | Interest::WRITABLE;
        registry.register(&mut SourceFd(&fd.as_raw_fd()), socket_token(id), interest)?;
        self.pools = self.pools.wrapping_add(1);
        let bound = Bound {
            fd,
            pool: NonZeroU32::new(self.pools).unwrap_or(NonZeroU32::MIN),
            bytes_max,
            free: Vec::new(),
            lent: 0,
            receive: Receive::Idle,
            waiting: VecDeque::new(),
            sends: SendsUnderWay::default(),
        };
        self.sockets.insert(id, Socket::Bound(bound));
        Ok(())
    }

    /// Notes that there is something to receive, which [`Datagrams::handle_time`] does, and sends
    /// what has waited.
    pub(super) fn handle_ready(&mut self, id: SocketId, event: &Event) {
        // A socket closed earlier in this turn is not found.
        let Some(Socket::Bound(bound)) = self.sockets.get_mut(&id) else { return };
        if (event.is_readable() || event.is_error()) && bound.receive == Receive::Idle {
            bound.receive = Receive::Due(Monotonic(0));
        }
        if event.is_writable() || event.is_error() {
            bound.send_waiting(&mut self.statistics);
        }
    }

    /// Takes a buffer back that a datagram came in.
    pub(super) fn release(&mut self, pool: NonZeroU32, buffer: ReceiveBuffer) {
        let found = self.sockets.values_mut().find_map(|socket| match socket {
            Socket::Bound(bound) if bound.pool == pool => Some(bound),
            _ => None,
        });
        // The memory of a socket that is closed is nobody's.
        let Some(bound) = found else { return };
        bound.lent = bound.lent.checked_sub(1).expect("a buffer is released once");
        bound.free.push(buffer.into_parts().0);
        if bound.receive == Receive::Starved {
            bound.receive = Receive::Due(Monotonic(0));
        }
    }

    pub(super) fn send(&mut self, id: SocketId, to: SocketAddr, bytes: Bytes) {
        if let Some(Socket::Bound(bound)) = self.sockets.get_mut(&id)
            && bound.sends.begin(bytes.len())
        {
            bound.waiting.push_back((to, bytes));
            if bound.waiting.len() == 1 {
                bound.send_waiting(&mut self.statistics);
            }
        } else {
            self.statistics.send_dropped += 1;
        }
    }

    pub(super) fn close(&mut self, id: SocketId, registry: &Registry, ready: &mut Vec<Completion>) {
        match self.sockets.remove(&id) {
            Some(Socket::Bound(bound)) => {
                self.statistics.overflowed += datagrams::overflowed(&bound.fd);
                unwatch(registry, &bound.fd);
            }
            Some(Socket::Retrying { .. }) => {
                let error = io::Error::new(io::ErrorKind::Interrupted, "told to close");
                ready.push(Completion::UdpBound(id, Err(error)));
            }
            None => {}
        }
        ready.push(Completion::UdpClosed(id));
    }

    pub(super) fn statistics(&self) -> DatagramStatistics {
        let mut statistics = self.statistics;
        for socket in self.sockets.values() {
            if let Socket::Bound(bound) = socket {
                statistics.overflowed += datagrams::overflowed(&bound.fd);
            }
        }
        statistics
    }
}

impl Socket {
    fn due(&self) -> Option<Monotonic> {
        match self {
            Self::Retrying { next, .. } => Some(*next),
            Self::Bound(Bound { receive: Receive::Due(time), .. }) => Some(*time),
            Self::Bound(_) => None,
        }
    }
}

impl Bound {
    fn receive(
        &mut self,
        id: SocketId,
        statistics: &mut DatagramStatistics,
        ready: &mut Vec<Completion>,
    ) {
        for _ in 0..DATAGRAMS_PER_TURN {
            if self.lent == usize::from(DATAGRAM_BUFFERS) {
                statistics.starved += 1;
                self.receive = Receive::Starved;
                return;
            }
            let new = || vec![0; self.bytes_max].into_boxed_slice();
            let mut storage = self.free.pop().unwrap_or_else(new);
            let received = recvfrom(&self.fd, &mut storage[..], RecvFlags::TRUNC);
            match received {
                Ok((_, len, Some(from))) if len <= storage.len() => {
                    let Ok(from) = SocketAddr::try_from(from) else {
                        self.free.push(storage);
                        continue;
                    };
                    self.lent += 1;
                    statistics.received += 1;
                    let bytes = ReceiveBuffer::of_datagram(storage, 0..len, 0, self.pool);
                    ready.push(Completion::Datagram { socket: id, from, bytes });
                    continue;
                }
                Ok((_, len, _)) => statistics.truncated += u64::from(len > storage.len()),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    self.free.push(storage);
                    self.receive = Receive::Idle;
                    return;
                }
                Err(error) => {
                    tracing::debug!(%error, "receiving datagrams pauses");
                    self.free.push(storage);
                    // Trying again at once might spin.
                    let next = clock::monotonic().plus_millis(DATAGRAM_PAUSE_MS);
                    self.receive = Receive::Due(next);
                    return;
                }
            }
            self.free.push(storage);
        }
        self.receive = Receive::Due(Monotonic(0));
    }

    fn send_waiting(&mut self, statistics: &mut DatagramStatistics) {
        while let Some((to, bytes)) = self.waiting.front() {
            match sendto(&self.fd, bytes, SendFlags::NOSIGNAL, to) {
                Ok(_) => statistics.sent += 1,
                Err(Errno::INTR) => continue,
                Err(Errno::AGAIN) => return,
                Err(error) => {
                    tracing::trace!(%error, "a datagram was not sent");
                    statistics.send_failed += 1;
                }
            }
            self.sends.end(bytes.len());
            self.waiting.pop_front();
        }
    }
}
