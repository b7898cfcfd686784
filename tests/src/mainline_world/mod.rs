//! Networks of [`MainlineNode`](kadring::mainline::MainlineNode)s in memory, honest ones and
//! others.

pub mod host;
pub mod hostile;
pub mod report;
pub mod siege;
#[cfg(test)]
mod tests;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use kadring::kademlia::NodeId;
use kadring::mainline::node_id_by_ip;

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

/// The address that a Sybil with an id that fits has in one of its networks: the one whose ids come
/// nearest to a victim. Sybils of one victim and network differ by their ports alone.
#[must_use]
pub fn address_near(victim: &NodeId, network: usize, port: usize) -> (SocketAddr, NodeId) {
    let byte = |number: usize| u8::try_from(number).unwrap_or(u8::MAX);
    let hosts = (1..=250).flat_map(|host| (0..8).map(move |drawn| (host, drawn)));
    let near = hosts.map(|(host, drawn)| {
        let ip = IpAddr::V4(Ipv4Addr::from([96, byte(network / 256), byte(network % 256), host]));
        let mut id = *victim;
        // The last byte says which of its eight ids it is; others tell its Sybils apart.
        (id.0[18], id.0[19]) = (byte(port), drawn);
        (ip, node_id_by_ip::fitted(id, ip))
    });
    let (ip, id) = near.min_by_key(|(_, id)| id.distance(victim)).expect("there are hosts");
    (SocketAddr::new(ip, PORT + u16::try_from(port).unwrap_or(0)), id)
}
