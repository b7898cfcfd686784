//! What all drivers share about UDP: how a socket is bound, how much may be under way, and
//! [`DatagramStatistics`].

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::fstat;
use rustix::net::{
    self, AddressFamily, SocketFlags, SocketType, getsockname, ipproto, socket_with, sockopt,
};

use super::Monotonic;
use super::sockets::{Listen, tried};

/// Datagrams of one socket that are lent at a time; further ones wait in the kernel.
pub const DATAGRAM_BUFFERS: u16 = 256;

/// The longest datagram a socket can be told to receive: what IPv6 can carry.
pub const DATAGRAM_BYTES_MAX: usize = 65_527;

/// Datagrams of one socket that wait to be sent; as many as a turn has completions to answer.
const DATAGRAM_SENDS_MAX: usize = 4096;

/// Bytes of one socket's datagrams that wait to be sent.
const DATAGRAM_SEND_BYTES_MAX: usize = 8 << 20;

/// Room in the kernel for datagrams that nobody has received yet, for bursts while a turn lasts.
/// It grants less where `net.core.rmem_max` says so and we have no right to go beyond.
const RECEIVE_QUEUE_BYTES: usize = 4 << 20;

/// Pause in receiving when the kernel has answered an error that is none of a datagram.
pub(crate) const DATAGRAM_PAUSE_MS: u64 = 20;

/// What became of datagrams, all sockets together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DatagramStatistics {
    /// Given to the node.
    pub received: u64,
    /// Dropped, because they were longer than the socket wants.
    pub truncated: u64,
    /// How often receiving paused, because all buffers were lent.
    pub starved: u64,
    /// Dropped by the kernel, because nobody received them in time.
    pub overflowed: u64,
    /// Handed to the kernel to be sent.
    pub sent: u64,
    /// Refused by the kernel: too long, no route, or the like.
    pub send_failed: u64,
    /// Not handed to the kernel, because too much was waiting or the socket was not bound.
    pub send_dropped: u64,
}

/// What of one socket waits to be sent.
#[derive(Debug, Default)]
pub(crate) struct SendsUnderWay {
    count: usize,
    bytes: usize,
}

impl SendsUnderWay {
    /// Answers whether there is room for a datagram, and takes it.
    pub(crate) fn begin(&mut self, len: usize) -> bool {
        let bytes = self.bytes + len;
        let fits = self.count < DATAGRAM_SENDS_MAX && bytes <= DATAGRAM_SEND_BYTES_MAX;
        if fits {
            self.count += 1;
            self.bytes = bytes;
        }
        fits
    }

    /// Gives a datagram's room back.
    pub(crate) fn end(&mut self, len: usize) {
        self.count -= 1;
        self.bytes -= len;
    }

    /// Whether nothing waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.count == 0
    }
}

/// Tries to bind a UDP socket; an address in use is worth another try until `give_up`.
pub(crate) fn bind(address: SocketAddr, flags: SocketFlags, give_up: Monotonic) -> Listen {
    tried(try_bind(address, flags), give_up)
}

fn try_bind(address: SocketAddr, flags: SocketFlags) -> std::io::Result<(OwnedFd, SocketAddr)> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = flags | SocketFlags::CLOEXEC;
    let socket = socket_with(family, SocketType::DGRAM, flags, Some(ipproto::UDP))?;
    if address.is_ipv6() {
        sockopt::set_ipv6_v6only(&socket, true)?;
    }
    let forced = sockopt::set_socket_recv_buffer_size_force(&socket, RECEIVE_QUEUE_BYTES);
    if forced
        .or_else(|_| sockopt::set_socket_recv_buffer_size(&socket, RECEIVE_QUEUE_BYTES))
        .is_err()
    {
        tracing::debug!("the kernel's queue of datagrams keeps its size");
    }
    net::bind(&socket, &address)?;
    let bound = SocketAddr::try_from(getsockname(&socket)?)?;
    Ok((socket, bound))
}

/// Datagrams the kernel has dropped for want of room. Zero where /proc is missing.
pub(crate) fn overflowed(socket: impl AsFd) -> u64 {
    let Ok(facts) = fstat(socket) else { return 0 };
    let inode = facts.st_ino.to_string();
    let tables = ["/proc/thread-self/net/udp", "/proc/thread-self/net/udp6"];
    let texts = tables.into_iter().filter_map(|path| std::fs::read_to_string(path).ok());
    texts.filter_map(|text| drops_in(&text, &inode)).sum()
}

/// The last column of the line whose tenth is the inode.
fn drops_in(table: &str, inode: &str) -> Option<u64> {
    let mut lines = table.lines().map(str::split_ascii_whitespace);
    let columns = lines.find(|columns| columns.clone().nth(9) == Some(inode))?;
    columns.last()?.parse().ok()
}

/// Where a datagram to the socket bound to `bound` is to be sent from this machine.
pub(crate) fn reachable_here(bound: SocketAddr) -> SocketAddr {
    let mut address = bound;
    if bound.ip().is_unspecified() {
        address.set_ip(match bound {
            SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::LOCALHOST),
            SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::LOCALHOST),
        });
    }
    address
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sends_are_bounded_by_count_and_by_bytes() {
        let mut sends = SendsUnderWay::default();
        assert!((0..DATAGRAM_SENDS_MAX).all(|_| sends.begin(1)));
        assert!(!sends.begin(0));
        sends.end(1);
        assert!(sends.begin(1));

        let mut sends = SendsUnderWay::default();
        assert!(sends.begin(DATAGRAM_SEND_BYTES_MAX));
        assert!(!sends.begin(1));
        sends.end(DATAGRAM_SEND_BYTES_MAX);
        assert!(sends.is_empty());
    }

    #[test]
    fn drops_are_found_by_inode() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   \
                     uid  timeout inode ref pointer drops\n\
                     7: 0100007F:1F90 00000000:0000 07 00000000:00000000 00:00000000 00000000 \
                     0 0 4711 2 0000000000000000 42\n";
        assert_eq!(drops_in(table, "4711"), Some(42));
        assert_eq!(drops_in(table, "2"), None);
        assert_eq!(drops_in("", "4711"), None);
    }
}
