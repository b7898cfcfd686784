//! [`RawAddress`]: socket addresses as the kernel writes and reads them.
//!
//! | offset | IPv4 (16 bytes) | IPv6 (28 bytes) |
//! |---|---|---|
//! | 0 | family, 2 | family, 10 |
//! | 2 | port, big-endian | port, big-endian |
//! | 4 | address | flow label, big-endian |
//! | 8 | zero | address |
//! | 24 | | scope |
//!
//! Family and scope are numbers of the machine.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};

/// The longer of the two.
pub(super) const INET6_LEN: usize = 28;

const INET: u16 = 2;
const INET_LEN: usize = 16;
const INET6: u16 = 10;

/// An address to be read by the kernel.
#[derive(Clone, Copy, Debug)]
#[repr(align(4))]
pub(super) struct RawAddress {
    bytes: [u8; INET6_LEN],
    len: u32,
}

impl RawAddress {
    pub(super) fn encode(address: SocketAddr) -> Self {
        let mut bytes = [0; INET6_LEN];
        bytes[2..4].copy_from_slice(&address.port().to_be_bytes());
        let len = match address {
            SocketAddr::V4(address) => {
                bytes[..2].copy_from_slice(&INET.to_le_bytes());
                bytes[4..8].copy_from_slice(&address.ip().octets());
                INET_LEN
            }
            SocketAddr::V6(address) => {
                bytes[..2].copy_from_slice(&INET6.to_le_bytes());
                bytes[4..8].copy_from_slice(&address.flowinfo().to_be_bytes());
                bytes[8..24].copy_from_slice(&address.ip().octets());
                bytes[24..].copy_from_slice(&address.scope_id().to_le_bytes());
                INET6_LEN
            }
        };
        Self { bytes, len: u32::try_from(len).expect("16 or 28") }
    }

    /// Reads what the kernel has written; nothing, if it is of no family we know.
    pub(super) fn decode(bytes: &[u8]) -> Option<SocketAddr> {
        let family = u16::from_le_bytes(*bytes.first_chunk()?);
        let port = u16::from_be_bytes(*bytes.get(2..)?.first_chunk()?);
        match family {
            INET => {
                let ip: [u8; 4] = *bytes.get(4..)?.first_chunk()?;
                Some(SocketAddrV4::new(Ipv4Addr::from(ip), port).into())
            }
            INET6 => {
                let flow = u32::from_be_bytes(*bytes.get(4..)?.first_chunk()?);
                let ip: [u8; 16] = *bytes.get(8..)?.first_chunk()?;
                let scope = u32::from_le_bytes(*bytes.get(24..)?.first_chunk()?);
                Some(SocketAddrV6::new(Ipv6Addr::from(ip), port, flow, scope).into())
            }
            _ => None,
        }
    }

    /// The address of the address. It holds while the value stays where it is.
    pub(super) fn as_ptr(&self) -> *const u8 {
        self.bytes.as_ptr()
    }

    pub(super) fn len(&self) -> u32 {
        self.len
    }
}

// The numbers of the machine above are written as little-endian ones.
const _: () = assert!(cfg!(target_endian = "little"));

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_survive_the_kernels_form() {
        let link_local = SocketAddrV6::new("fe80::1".parse().unwrap(), 7400, 3, 2);
        for address in [
            "127.0.0.1:7400".parse().unwrap(),
            "[2001:db8::1]:80".parse().unwrap(),
            link_local.into(),
        ] {
            let raw = RawAddress::encode(address);
            assert_eq!(RawAddress::decode(&raw.bytes[..raw.len as usize]), Some(address));
            assert_eq!(RawAddress::decode(&raw.bytes[..7]), None);
        }
    }

    #[test]
    fn other_families_are_no_addresses() {
        assert_eq!(RawAddress::decode(&[1; 28]), None);
        assert_eq!(RawAddress::decode(&[]), None);
    }
}
