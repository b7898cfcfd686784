//! [`PeerFilter`]: a Bloom filter of peers' addresses, for scrapes (BEP 33).

use std::net::IpAddr;

use sha1::{Digest, Sha1};

/// Bytes of a filter.
pub const FILTER_LEN: usize = 256;
const BITS: u32 = 2_048;
/// Above so many entries BEP 33 holds the estimate for useless.
pub const ESTIMATE_MAX: f64 = 6_000.0;

/// A set of addresses that tells only how many there are, about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerFilter(pub [u8; FILTER_LEN]);

impl Default for PeerFilter {
    fn default() -> Self {
        Self([0; FILTER_LEN])
    }
}

impl PeerFilter {
    /// Takes in an address: two bits of its SHA-1.
    pub fn insert(&mut self, ip: IpAddr) {
        let hash: [u8; 20] = match ip {
            IpAddr::V4(ip) => Sha1::digest(ip.octets()).into(),
            IpAddr::V6(ip) => Sha1::digest(ip.octets()).into(),
        };
        for pair in [[hash[0], hash[1]], [hash[2], hash[3]]] {
            let index = u32::from(u16::from_le_bytes(pair)) % BITS;
            self.0[(index / 8) as usize] |= 1 << (index % 8);
        }
    }

    /// Takes in all of another filter.
    pub fn join(&mut self, other: &Self) {
        self.0.iter_mut().zip(other.0).for_each(|(byte, more)| *byte |= more);
    }

    /// Estimates the number of addresses.
    #[must_use]
    pub fn estimate(&self) -> f64 {
        let bits = f64::from(BITS);
        let ones: u32 = self.0.iter().map(|byte| byte.count_ones()).sum();
        let zeros = f64::from(BITS - ones).clamp(1.0, bits - 1.0);
        (zeros / bits).ln() / (2.0 * (1.0 - 1.0 / bits).ln())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// BEP 33, "Test vectors": 192.0.2.0 to 255 and 2001:db8:: to 2001:db8::3e7.
    #[test]
    fn vector_of_bep_33_holds() {
        let (mut filter, mut other) = (PeerFilter::default(), PeerFilter::default());
        (0..=255).for_each(|last| filter.insert(IpAddr::from([192, 0, 2, last])));
        (0..=0x3e7).for_each(|last| {
            other.insert(IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, last]));
        });
        filter.join(&other);
        assert_eq!(filter.0[..8], [0xF6, 0xC3, 0xF5, 0xEA, 0xA0, 0x7F, 0xFD, 0x91]);
        assert!((filter.estimate() - 1224.9308).abs() < 0.0001, "{}", filter.estimate());
        assert!(filter.estimate() < ESTIMATE_MAX);
    }
}
