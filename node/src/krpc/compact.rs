//! Compact node and peer info: id, address and port without separators (BEP 5, BEP 32).

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::as_conversions)]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::kademlia::{Contact, NodeId};

/// Bytes of an IPv4 address and port.
pub const ADDRESS_V4_LEN: usize = 6;
/// Bytes of an IPv6 address and port.
pub const ADDRESS_V6_LEN: usize = 18;
/// Bytes of an IPv4 node: `nodes`.
pub const NODE_V4_LEN: usize = 26;
/// Bytes of an IPv6 node: `nodes6`.
pub const NODE_V6_LEN: usize = 38;

/// An address family: each has a table and node lists of its own (BEP 32).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// The family of an address.
    #[must_use]
    pub fn of(address: &SocketAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// Bytes of a node of this family.
    #[must_use]
    pub fn node_len(self) -> usize {
        match self {
            Self::V4 => NODE_V4_LEN,
            Self::V6 => NODE_V6_LEN,
        }
    }
}

/// Writes an address: 6 or 18 bytes.
pub fn encode_address(address: &SocketAddr, output: &mut Vec<u8>) {
    match address.ip() {
        IpAddr::V4(ip) => output.extend_from_slice(&ip.octets()),
        IpAddr::V6(ip) => output.extend_from_slice(&ip.octets()),
    }
    output.extend_from_slice(&address.port().to_be_bytes());
}

/// Reads an address of 6 or 18 bytes.
#[must_use]
pub fn decode_address(bytes: &[u8]) -> Option<SocketAddr> {
    let (ip, port) = bytes.split_last_chunk::<2>()?;
    let ip = match ip.len() {
        4 => IpAddr::V4(Ipv4Addr::from(<[u8; 4]>::try_from(ip).ok()?)),
        16 => IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(ip).ok()?)),
        _ => return None,
    };
    Some(SocketAddr::new(ip, u16::from_be_bytes(*port)))
}

/// Writes a node: 26 or 38 bytes.
pub fn encode_node(contact: &Contact, output: &mut Vec<u8>) {
    output.extend_from_slice(&contact.id.0);
    encode_address(&contact.address, output);
}

/// Reads the nodes of a list, or nothing where its length is no multiple of a node's. Nodes with
/// port 0 cannot be asked and are left out.
pub fn decode_nodes(bytes: &[u8], family: Family) -> impl Iterator<Item = Contact> {
    let len = family.node_len();
    let whole = bytes.len().checked_rem(len) == Some(0);
    let nodes = if whole { bytes } else { &[] };
    nodes.chunks_exact(len).filter_map(|node| {
        let (id, address) = node.split_first_chunk::<20>()?;
        let address = decode_address(address)?;
        (address.port() != 0).then_some(Contact { id: NodeId(*id), address })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contact(address: &str) -> Contact {
        Contact { id: NodeId([9; 20]), address: address.parse().unwrap() }
    }

    #[test]
    fn nodes_of_both_families_come_back() {
        for (family, address) in [(Family::V4, "192.0.2.7:6881"), (Family::V6, "[2001:db8::7]:1")] {
            let contact = contact(address);
            let mut bytes = Vec::new();
            encode_node(&contact, &mut bytes);
            encode_node(&contact, &mut bytes);
            assert_eq!(bytes.len(), 2 * family.node_len());
            let nodes: Vec<Contact> = decode_nodes(&bytes, family).collect();
            assert_eq!(nodes, [contact; 2]);
            bytes.pop();
            assert_eq!(decode_nodes(&bytes, family).count(), 0, "no whole nodes");
        }
    }

    #[test]
    fn nodes_without_port_are_left_out() {
        let mut bytes = Vec::new();
        encode_node(&contact("192.0.2.7:0"), &mut bytes);
        encode_node(&contact("192.0.2.8:1"), &mut bytes);
        let nodes: Vec<Contact> = decode_nodes(&bytes, Family::V4).collect();
        assert_eq!(nodes, [contact("192.0.2.8:1")]);
    }

    #[test]
    fn addresses_of_other_lengths_are_refused() {
        for len in (0..30).filter(|len| ![ADDRESS_V4_LEN, ADDRESS_V6_LEN].contains(len)) {
            assert_eq!(decode_address(&vec![1; len]), None, "{len}");
        }
    }
}
