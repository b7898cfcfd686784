//! Node ids that follow the IP address (BEP 42): one machine cannot choose where it sits.
//!
//! The first 21 bits are those of a CRC-32C over the masked address and three bits that the node
//! draws, which stand in the last byte. Ids of others are only preferred for it, never required.

use std::net::IpAddr;

use fastrand::Rng;

use crate::kademlia::NodeId;

use super::martian::is_local;

const MASK_V4: u32 = 0x030f_3fff;
const MASK_V6: u64 = 0x0103_070f_1f3f_7fff;
/// The bits that follow from the address.
const PREFIX_MASK: u32 = 0xffff_f800;

/// Draws an id for a node at the address.
#[must_use]
pub fn draw(ip: IpAddr, rng: &mut Rng) -> NodeId {
    fitted(NodeId::random(rng), ip)
}

/// Gives an id the first bits that the address wants; its last three bits say which of eight.
#[must_use]
pub fn fitted(mut id: NodeId, ip: IpAddr) -> NodeId {
    let free = u32::from_be_bytes([id.0[0], id.0[1], id.0[2], id.0[3]]) & !PREFIX_MASK;
    let prefix = checksum(ip, id.0[19]) & PREFIX_MASK;
    id.0[..4].copy_from_slice(&(prefix | free).to_be_bytes());
    id
}

/// Tells whether an id fits the address. All fit addresses of private networks, which nobody can
/// tell from outside.
#[must_use]
pub fn fits(id: &NodeId, ip: IpAddr) -> bool {
    let first = u32::from_be_bytes([id.0[0], id.0[1], id.0[2], id.0[3]]);
    is_local(ip) || (first ^ checksum(ip, id.0[19])) & PREFIX_MASK == 0
}

fn checksum(ip: IpAddr, random: u8) -> u32 {
    let low = random & 7;
    match ip {
        IpAddr::V4(ip) => {
            crc32c(&((ip.to_bits() & MASK_V4) | (u32::from(low) << 29)).to_be_bytes())
        }
        IpAddr::V6(ip) => {
            let high = u64::try_from(ip.to_bits() >> 64).unwrap_or_default();
            crc32c(&((high & MASK_V6) | (u64::from(low) << 61)).to_be_bytes())
        }
    }
}

/// CRC-32C (Castagnoli). Eight bytes at most, once for each node met: no table is worth it.
fn crc32c(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ (0x82f6_3b78 & (crc & 1).wrapping_neg());
        }
    }
    !crc
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crc32c_is_castagnolis() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    /// The vectors of BEP 42.
    #[test]
    fn vectors_of_bep_42_hold() {
        for (ip, random, id) in [
            ("124.31.75.21", 1, "5fbfbff10c5d6a4ec8a88e4c6ab4c28b95eee401"),
            ("21.75.31.124", 86, "5a3ce9c14e7a08645677bbd1cfe7d8f956d53256"),
            ("65.23.51.170", 22, "a5d43220bc8f112a3d426c84764f8c2a1150e616"),
            ("84.124.73.14", 65, "1b0321dd1bb1fe518101ceef99462b947a01ff41"),
            ("43.213.53.83", 90, "e56f6cbf5b7c4be0237986d5243b87aa6d51305a"),
        ] {
            let (ip, id): (IpAddr, NodeId) = (ip.parse().unwrap(), id.parse().unwrap());
            assert_eq!(id.0[19], random);
            assert!(fits(&id, ip), "{id}");
            let mut other = id;
            other.0[2] ^= 8;
            assert!(!fits(&other, ip), "bit 21 counts");
            other = id;
            other.0[2] ^= 4;
            assert!(fits(&other, ip), "bit 22 does not");
        }
    }

    #[test]
    fn drawn_ids_fit_and_differ() {
        let mut rng = Rng::with_seed(1);
        for ip in ["8.8.4.4", "2a00:1450::1", "127.0.0.1"] {
            let ip = ip.parse().unwrap();
            let ids = [(); 8].map(|()| draw(ip, &mut rng));
            assert!(ids.iter().all(|id| fits(id, ip)));
            assert!(ids.windows(2).all(|pair| pair[0] != pair[1]));
        }
        let here = draw("8.8.4.4".parse().unwrap(), &mut rng);
        assert!(!fits(&here, "8.8.8.8".parse().unwrap()));
        assert!(fits(&here, "192.168.0.1".parse().unwrap()), "exempt");
    }
}
