//! [`Subnet`]: the network an address belongs to, for caps and votes, and caps on node lists.

use std::net::IpAddr;

use crate::kademlia::Contact;

/// A network, as its first bytes: a /24 of IPv4, or a /48 of IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Subnet {
    /// The first three bytes of an IPv4 address.
    V4([u8; 3]),
    /// The first six bytes of an IPv6 address.
    V6([u8; 6]),
}

impl Subnet {
    /// The network of an address.
    #[must_use]
    pub fn of(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(ip) => {
                let [a, b, c, _] = ip.octets();
                Self::V4([a, b, c])
            }
            IpAddr::V6(ip) => {
                let [a, b, c, d, e, f, ..] = ip.octets();
                Self::V6([a, b, c, d, e, f])
            }
        }
    }
}

/// What counts as one machine: an IPv4 address, or a /64 of IPv6, which one machine has whole.
#[must_use]
pub fn machine(ip: IpAddr) -> u64 {
    match ip {
        // Above all first halves of public IPv6 addresses.
        IpAddr::V4(ip) => 0xffff_ffff_0000_0000 | u64::from(ip.to_bits()),
        IpAddr::V6(ip) => u64::from_be_bytes(first_half(ip.octets())),
    }
}

fn first_half(octets: [u8; 16]) -> [u8; 8] {
    let mut half = [0; 8];
    half.copy_from_slice(&octets[..8]);
    half
}

/// Leaves at most `count_max` nodes of each network in the list, those named first; with
/// `locals_exempt`, nodes on loopback are not counted.
pub fn cap(nodes: &mut Vec<Contact>, count_max: usize, locals_exempt: bool) {
    let mut seen: Vec<Subnet> = Vec::with_capacity(nodes.len());
    nodes.retain(|node| {
        let ip = node.address.ip();
        let subnet = Subnet::of(ip);
        let count = seen.iter().filter(|other| **other == subnet).count();
        seen.push(subnet);
        count < count_max || (locals_exempt && ip.is_loopback())
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kademlia::NodeId;

    #[test]
    fn neighbours_share_a_network_and_ipv6_machines_a_prefix() {
        let ip = |text: &str| -> IpAddr { text.parse().unwrap() };
        assert_eq!(Subnet::of(ip("8.8.4.1")), Subnet::of(ip("8.8.4.9")));
        assert_ne!(Subnet::of(ip("8.8.4.1")), Subnet::of(ip("8.8.5.1")));
        assert_eq!(machine(ip("2a00:1:2:3::1")), machine(ip("2a00:1:2:3:ffff::2")));
        assert_ne!(machine(ip("2a00:1:2:3::1")), machine(ip("2a00:1:2:4::1")));
        assert_ne!(machine(ip("8.8.4.1")), machine(ip("8.8.4.2")));
    }

    #[test]
    fn lists_have_few_nodes_of_a_network() {
        let node = |text: &str| Contact { id: NodeId([1; 20]), address: text.parse().unwrap() };
        let all = ["8.8.4.1:1", "8.8.4.2:1", "8.8.5.1:1", "127.0.0.1:1", "127.0.0.1:2"].map(node);
        let mut nodes = all.to_vec();
        cap(&mut nodes, 1, true);
        assert_eq!(nodes, [all[0], all[2], all[3], all[4]]);
        cap(&mut nodes, 1, false);
        assert_eq!(nodes, [all[0], all[2], all[3]]);
    }
}
