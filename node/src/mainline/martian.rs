//! Martians: addresses that nobody is reached at from the public network.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Whether addresses of this machine and of private networks are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Locals {
    /// They are martians: the public network.
    Refused,
    /// They are as good as any: test nets, one machine, one site.
    Taken,
}

/// Tells whether nothing from or to the address may be trusted: port 0, multicast, unspecified,
/// documentation and reserved ranges; with [`Locals::Refused`] also loopback, link-local and
/// private ones.
#[must_use]
pub fn is_martian(address: &SocketAddr, locals: Locals) -> bool {
    if address.port() == 0 {
        return true;
    }
    let local = is_local(address.ip());
    let never = match address.ip() {
        IpAddr::V4(ip) => never_v4(ip),
        IpAddr::V6(ip) => never_v6(ip),
    };
    never || (local && locals == Locals::Refused)
}

/// Tells whether the address is of this machine or a private network.
#[must_use]
pub fn is_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => {
            let [first, second, ..] = ip.octets();
            let shared = first == 100 && second & 0xc0 == 64;
            ip.is_loopback() || ip.is_private() || ip.is_link_local() || shared
        }
        IpAddr::V6(ip) => {
            let first = ip.segments()[0];
            let unique_local = first & 0xfe00 == 0xfc00;
            let link_local = first & 0xffc0 == 0xfe80;
            ip.is_loopback() || unique_local || link_local
        }
    }
}

fn never_v4(ip: Ipv4Addr) -> bool {
    let [first, ..] = ip.octets();
    // 0/8, multicast, and 240/4 with broadcast.
    first == 0 || first >= 224 || ip.is_documentation()
}

fn never_v6(ip: Ipv6Addr) -> bool {
    let segments = ip.segments();
    let documentation = segments[0] == 0x2001 && segments[1] == 0xdb8;
    // A mapped IPv4 address belongs into the other family's lists.
    let mapped = ip.to_ipv4_mapped().is_some();
    ip.is_unspecified() || ip.is_multicast() || documentation || mapped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn martians_are_known() {
        for (address, expected) in [
            ("8.8.8.8:6881", [false, false]),
            ("8.8.8.8:0", [true, true]),
            ("0.1.2.3:1", [true, true]),
            ("224.0.0.1:1", [true, true]),
            ("255.255.255.255:1", [true, true]),
            ("192.0.2.1:1", [true, true]),
            ("127.0.0.1:1", [true, false]),
            ("10.0.0.1:1", [true, false]),
            ("100.64.0.1:1", [true, false]),
            ("169.254.0.1:1", [true, false]),
            ("[2a00::1]:1", [false, false]),
            ("[::]:1", [true, true]),
            ("[ff02::1]:1", [true, true]),
            ("[2001:db8::1]:1", [true, true]),
            ("[::ffff:8.8.8.8]:1", [true, true]),
            ("[::1]:1", [true, false]),
            ("[fe80::1]:1", [true, false]),
            ("[fd00::1]:1", [true, false]),
        ] {
            let address = address.parse().unwrap();
            let found = [Locals::Refused, Locals::Taken].map(|locals| is_martian(&address, locals));
            assert_eq!(found, expected, "{address}");
        }
    }
}
