//! Networks of [`MainlineNode`](kadring::mainline::MainlineNode)s in memory, honest ones and
//! others.

pub mod host;
pub mod hostile;
pub mod report;
pub mod siege;
#[cfg(test)]
mod tests;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// The port of all nodes.
pub const PORT: u16 = 6_881;
/// First bytes of addresses: none of them is reserved for anything.
const FIRST_BYTES: u32 = 80;

/// The public IPv4 address of a node: each has a /24 of its own.
///
/// # Panics
/// If there are more nodes than networks.
#[must_use]
pub fn address_v4(node: usize) -> SocketAddr {
    let node = u32::try_from(node).expect("so many nodes do not fit memory");
    // 11 to 90; the last two bytes follow from the others, so that ids differ as much as they can.
    let first = 11 + node * 7 % FIRST_BYTES;
    let second = node / FIRST_BYTES;
    assert!(second < 256, "20,480 networks are enough");
    let bytes = [first, second, node * 37 % 256, 1 + node % 250];
    let ip = Ipv4Addr::from(bytes.map(|byte| u8::try_from(byte).unwrap_or(0)));
    SocketAddr::new(IpAddr::V4(ip), PORT)
}

/// The public IPv6 address of a node.
#[must_use]
pub fn address_v6(node: usize) -> SocketAddr {
    let low = u16::try_from(node % 65_536).unwrap_or(0);
    let ip = Ipv6Addr::new(0x2a01, low.rotate_left(5), low, 0, 0, 0, 0, 1);
    SocketAddr::new(IpAddr::V6(ip), PORT)
}

/// The address of a Sybil: few networks have many of them.
#[must_use]
pub fn address_of_sybil(sybil: usize, networks: usize) -> SocketAddr {
    let byte = |number: usize| u8::try_from(number).unwrap_or(u8::MAX);
    let networks = networks.max(1);
    let (network, host) = (sybil % networks, sybil / networks);
    let bytes = [95, byte(network / 256), byte(network % 256), byte(1 + host % 250)];
    let port = PORT + u16::try_from(host / 250).unwrap_or(0);
    SocketAddr::new(IpAddr::V4(Ipv4Addr::from(bytes)), port)
}
