//! UDP sockets of [`UringIo`]: multishot receives into a ring of buffers per socket, and sends.
//!
//! ```text
//! absent -> Retrying -> bound: Armed <-> Starved, Paused -> closing: Ended, sends ended -> absent
//! ```
//!
//! A receive yields a completion per datagram until it ends, which is normal: for want of a buffer
//! (`Starved`, until one is released), because the completion queue was full, or after an empty
//! datagram. It is then armed again. Each buffer begins with what the kernel tells of the datagram:
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 4 | length of the sender's address |
//! | 4 | 4 | length of control data, none here |
//! | 8 | 4 | length of the datagram |
//! | 12 | 4 | flags; 0x20 says that the datagram was longer than the room for it |
//! | 16 | 28 | room for the address |
//! | 44 | | the datagram |

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::ops::Range;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use bytes::Bytes;
use io_uring::types::{CancelBuilder, Fd};
use io_uring::{cqueue, opcode, squeue};
use rustix::io::Errno;
use rustix::net::{SendFlags, SocketFlags};

use super::address::{INET6_LEN, RawAddress};
use super::buffers::{GROUP, ReceiveBuffers};
use super::op::{MessageHeader, Op, Purpose};
use super::ring::Cqe;
use super::{ProbeError, UringIo};
use crate::io::datagrams::{self, DATAGRAM_PAUSE_MS, SendsUnderWay};
use crate::io::disk_error::is_interruption;
use crate::io::sockets::{LISTEN_PAUSE_MS, LISTEN_RETRY_MS, Listen};
use crate::io::{
    Completion, DATAGRAM_BUFFERS, DATAGRAM_BYTES_MAX, DatagramStatistics, Monotonic, ReceiveBuffer,
    SocketId, clock,
};

/// Where the sender's address begins in a buffer, and where the datagram does.
const ADDRESS_START: usize = 16;
const DATAGRAM_START: usize = ADDRESS_START + INET6_LEN;

/// MSG_TRUNC.
const TRUNCATED: u32 = 0x20;

/// All UDP sockets of the driver.
#[derive(Default)]
pub(super) struct Datagrams {
    sockets: BTreeMap<SocketId, Socket>,
    /// How many sockets there have been: the last one's pool.
    pools: u32,
    statistics: DatagramStatistics,
}

enum Socket {
    Retrying { address: SocketAddr, bytes_max: usize, give_up: Monotonic },
    Bound(Bound),
}

struct Bound {
    fd: OwnedFd,
    pool: NonZeroU32,
    buffers: ReceiveBuffers,
    receive: Receive,
    sends: SendsUnderWay,
    closing: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Receive {
    Armed,
    Starved,
    Paused,
    Ended,
}

/// An operation on a UDP socket, which outlives it.
pub(super) enum DatagramOp {
    /// Multishot receive; the kernel picks the buffers.
    Receive { socket: SocketId, fd: RawFd, header: Box<MessageHeader> },
    /// Send of one datagram.
    Send(Box<Sending>),
}

/// A datagram on its way to the kernel.
pub(super) struct Sending {
    socket: SocketId,
    fd: RawFd,
    to: RawAddress,
    bytes: Bytes,
}

impl DatagramOp {
    pub(super) fn entry(&self) -> squeue::Entry {
        match self {
            Self::Receive { socket, fd, header } => {
                let header: *const MessageHeader = &raw const **header;
                opcode::RecvMsgMulti::new(Fd(*fd), header.cast(), group(*socket)).build()
            }
            Self::Send(sending) => {
                let len = u32::try_from(sending.bytes.len()).expect("admitted, so a few MiB");
                opcode::Send::new(Fd(sending.fd), sending.bytes.as_ptr(), len)
                    .flags(SendFlags::NOSIGNAL.bits().cast_signed())
                    .dest_addr(sending.to.as_ptr().cast())
                    .dest_addr_len(sending.to.len())
                    .build()
            }
        }
    }
}

/// Connections have a group of buffers of their own.
fn group(socket: SocketId) -> u16 {
    GROUP + 1 + u16::from(socket.0)
}

impl UringIo {
    pub(super) fn submit_bind_udp(&mut self, id: SocketId, address: SocketAddr, bytes_max: usize) {
        assert!(bytes_max <= DATAGRAM_BYTES_MAX, "no datagram is {bytes_max} bytes long");
        if self.datagrams.sockets.contains_key(&id) {
            let error = io::Error::new(io::ErrorKind::AlreadyExists, "bound already");
            self.ready.push(Completion::UdpBound(id, Err(error)));
            return;
        }
        let give_up = clock::monotonic().plus_millis(LISTEN_RETRY_MS);
        self.try_bind_udp(id, address, bytes_max, give_up);
    }

    fn try_bind_udp(
        &mut self,
        id: SocketId,
        address: SocketAddr,
        bytes_max: usize,
        give_up: Monotonic,
    ) {
        let result = match datagrams::bind(address, SocketFlags::empty(), give_up) {
            Listen::Ready(fd, bound) => self.take_bound(id, fd, bytes_max).map(|()| bound),
            Listen::Again => {
                let socket = Socket::Retrying { address, bytes_max, give_up };
                self.datagrams.sockets.insert(id, socket);
                return self.start_pause(LISTEN_PAUSE_MS, Purpose::BindUdp(id));
            }
            Listen::Failed(error) => Err(error),
        };
        if result.is_err() {
            self.datagrams.sockets.remove(&id);
        }
        self.ready.push(Completion::UdpBound(id, result));
    }

    fn take_bound(&mut self, id: SocketId, fd: OwnedFd, bytes_max: usize) -> io::Result<()> {
        let bytes = DATAGRAM_START + bytes_max;
        let buffers =
            ReceiveBuffers::register_group(self.ring.kernel(), DATAGRAM_BUFFERS, group(id), bytes)
                .map_err(|error| match error {
                    ProbeError::Other(source) | ProbeError::Memory(source) => source,
                    other => io::Error::other(other),
                })?;
        self.datagrams.pools = self.datagrams.pools.wrapping_add(1);
        let pool = NonZeroU32::new(self.datagrams.pools).unwrap_or(NonZeroU32::MIN);
        let (receive, sends) = (Receive::Ended, SendsUnderWay::default());
        let bound = Bound { fd, pool, buffers, receive, sends, closing: false };
        self.datagrams.sockets.insert(id, Socket::Bound(bound));
        self.arm_datagrams(id);
        Ok(())
    }

    fn arm_datagrams(&mut self, id: SocketId) {
        let bound = self.datagrams.bound(id);
        bound.receive = Receive::Armed;
        let fd = bound.fd.as_raw_fd();
        let name_len = u32::try_from(INET6_LEN).expect("28");
        let header = Box::new(MessageHeader::new(name_len));
        self.start(Op::Datagram(DatagramOp::Receive { socket: id, fd, header }));
    }

    /// Takes a datagram, or the end of receiving.
    pub(super) fn handle_datagram(&mut self, id: SocketId, cqe: Cqe) {
        let outcome = cqe.outcome();
        if let Some(picked) = cqueue::buffer_select(cqe.flags) {
            self.take_datagram(id, picked, outcome.unwrap_or(0));
        }
        if !cqe.is_last() {
            return;
        }
        let bound = self.datagrams.bound(id);
        let starved = outcome == Err(Errno::NOBUFS) && !bound.buffers.has_provided();
        if bound.closing {
            bound.receive = Receive::Ended;
            return self.close_udp_if_idle(id);
        }
        match outcome {
            Err(Errno::NOBUFS) if starved => {
                bound.receive = Receive::Starved;
                self.datagrams.statistics.starved += 1;
            }
            Ok(_) | Err(Errno::NOBUFS) => self.arm_datagrams(id),
            Err(errno) if is_interruption(errno) => self.arm_datagrams(id),
            Err(error) => {
                tracing::debug!(%error, "receiving datagrams pauses");
                // Trying again at once might spin.
                bound.receive = Receive::Paused;
                self.start_pause(DATAGRAM_PAUSE_MS, Purpose::ReceiveDatagrams(id));
            }
        }
    }

    fn take_datagram(&mut self, id: SocketId, picked: u16, len: usize) {
        let Datagrams { sockets, statistics, .. } = &mut self.datagrams;
        let Some(Socket::Bound(bound)) = sockets.get_mut(&id) else {
            unreachable!("a socket outlives its receive")
        };
        let buffer = bound.buffers.take(picked, len);
        match read_envelope(&buffer) {
            Some(Envelope { from, datagram, truncated: false }) if !bound.closing => {
                statistics.received += 1;
                let (storage, slot) = buffer.into_parts();
                let bytes = ReceiveBuffer::of_datagram(storage, datagram, slot, bound.pool);
                self.ready.push(Completion::Datagram { socket: id, from, bytes });
            }
            envelope => {
                statistics.truncated += u64::from(envelope.is_some_and(|e| e.truncated));
                bound.buffers.give_back(buffer);
            }
        }
    }

    /// Takes a buffer back that a datagram came in.
    pub(super) fn release_datagram(&mut self, pool: NonZeroU32, buffer: ReceiveBuffer) {
        let mut sockets = self.datagrams.sockets.iter_mut();
        let found = sockets.find_map(|(id, socket)| match socket {
            Socket::Bound(bound) if bound.pool == pool => Some((*id, bound)),
            _ => None,
        });
        // The memory of a socket that is closed is nobody's.
        let Some((id, bound)) = found else { return };
        bound.buffers.give_back(buffer);
        if bound.receive == Receive::Starved {
            self.arm_datagrams(id);
        }
    }

    pub(super) fn submit_send_datagram(&mut self, id: SocketId, to: SocketAddr, bytes: Bytes) {
        if let Some(Socket::Bound(bound)) = self.datagrams.sockets.get_mut(&id)
            && !bound.closing
            && bound.sends.begin(bytes.len())
        {
            let (fd, to) = (bound.fd.as_raw_fd(), RawAddress::encode(to));
            let sending = Box::new(Sending { socket: id, fd, to, bytes });
            self.start(Op::Datagram(DatagramOp::Send(sending)));
        } else {
            self.datagrams.statistics.send_dropped += 1;
        }
    }

    /// Ends an operation whose last completion came.
    pub(super) fn handle_datagram_op(&mut self, op: DatagramOp, cqe: Cqe) {
        let sending = match op {
            DatagramOp::Receive { socket, .. } => return self.handle_datagram(socket, cqe),
            DatagramOp::Send(sending) => sending,
        };
        match cqe.outcome() {
            Ok(_) => self.datagrams.statistics.sent += 1,
            Err(error) => {
                tracing::trace!(%error, "a datagram was not sent");
                self.datagrams.statistics.send_failed += 1;
            }
        }
        self.datagrams.bound(sending.socket).sends.end(sending.bytes.len());
        self.close_udp_if_idle(sending.socket);
    }

    pub(super) fn submit_close_udp(&mut self, id: SocketId) {
        match self.datagrams.sockets.get_mut(&id) {
            Some(Socket::Bound(bound)) => {
                bound.closing = true;
                if bound.receive != Receive::Armed {
                    bound.receive = Receive::Ended;
                }
                // All of it: a send may wait for room in the kernel, too.
                let which = CancelBuilder::fd(Fd(bound.fd.as_raw_fd())).all();
                self.push_cancel(which);
                return self.close_udp_if_idle(id);
            }
            Some(Socket::Retrying { .. }) => {
                let error = io::Error::new(io::ErrorKind::Interrupted, "told to close");
                self.ready.push(Completion::UdpBound(id, Err(error)));
                self.datagrams.sockets.remove(&id);
            }
            None => {}
        }
        self.ready.push(Completion::UdpClosed(id));
    }

    fn close_udp_if_idle(&mut self, id: SocketId) {
        let bound = self.datagrams.bound(id);
        if bound.closing && bound.receive == Receive::Ended && bound.sends.is_empty() {
            bound.buffers.unregister(self.ring.kernel());
            let overflowed = datagrams::overflowed(&bound.fd);
            self.datagrams.statistics.overflowed += overflowed;
            self.datagrams.sockets.remove(&id);
            self.ready.push(Completion::UdpClosed(id));
        }
    }

    /// Goes on after a pause in binding or receiving.
    pub(super) fn handle_udp_pause(&mut self, id: SocketId) {
        match self.datagrams.sockets.get(&id) {
            Some(&Socket::Retrying { address, bytes_max, give_up }) => {
                self.try_bind_udp(id, address, bytes_max, give_up);
            }
            Some(Socket::Bound(Bound { receive: Receive::Paused, .. })) => self.arm_datagrams(id),
            // The socket was closed meanwhile.
            _ => {}
        }
    }
}

impl Datagrams {
    fn bound(&mut self, id: SocketId) -> &mut Bound {
        match self.sockets.get_mut(&id) {
            Some(Socket::Bound(bound)) => bound,
            _ => unreachable!("a socket outlives its operations"),
        }
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

    /// Ends the kernel's use of all buffers. All operations have ended.
    pub(super) fn unregister(&self, ring: &io_uring::IoUring) {
        for socket in self.sockets.values() {
            if let Socket::Bound(bound) = socket {
                bound.buffers.unregister(ring);
            }
        }
    }

    /// Leaks all memory, because the kernel cannot be stopped from using it.
    pub(super) fn leak(&mut self) {
        for socket in self.sockets.values_mut() {
            if let Socket::Bound(bound) = socket {
                bound.buffers.leak();
            }
        }
    }
}

/// What the kernel tells of a datagram.
#[derive(Debug, PartialEq, Eq)]
struct Envelope {
    from: SocketAddr,
    datagram: Range<usize>,
    truncated: bool,
}

/// Reads what the kernel has put before a datagram.
fn read_envelope(buffer: &[u8]) -> Option<Envelope> {
    let number = |at: usize| {
        let bytes = buffer.get(at..)?.first_chunk()?;
        Some(u32::from_le_bytes(*bytes))
    };
    let address_len = usize::try_from(number(0)?).ok()?.min(INET6_LEN);
    let address = buffer.get(ADDRESS_START..DATAGRAM_START)?.get(..address_len)?;
    let from = RawAddress::decode(address)?;
    let truncated = number(12)? & TRUNCATED != 0;
    Some(Envelope { from, datagram: DATAGRAM_START..buffer.len(), truncated })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn envelope_that_is_cut_off_is_none() {
        let mut buffer = vec![0; DATAGRAM_START + 3];
        buffer[0] = 16;
        buffer[8] = 3;
        buffer[ADDRESS_START..ADDRESS_START + 8].copy_from_slice(&[2, 0, 0x1c, 0xe8, 127, 0, 0, 1]);
        let from = "127.0.0.1:7400".parse().unwrap();
        let datagram = DATAGRAM_START..DATAGRAM_START + 3;
        let expected = Envelope { from, datagram, truncated: false };
        assert_eq!(read_envelope(&buffer), Some(expected));
        buffer[12] = 0x20;
        assert!(read_envelope(&buffer).unwrap().truncated);
        for len in 0..DATAGRAM_START {
            assert_eq!(read_envelope(&buffer[..len]), None);
        }
        buffer[0] = 4;
        assert_eq!(read_envelope(&buffer), None);
    }
}
