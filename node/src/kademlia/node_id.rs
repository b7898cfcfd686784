//! [`NodeId`]: 160 bits that name a node, and the place of a key among nodes.

use std::fmt;
use std::str::FromStr;

use fastrand::Rng;
use wal::record::Key;

use super::distance::Distance;

/// Bits of an id.
pub const ID_BITS: u32 = 160;

/// A node's id, or a target in the same space; ordered as a big-endian number.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub [u8; 20]);

impl NodeId {
    /// Draws an id, every bit at random.
    #[must_use]
    pub fn random(rng: &mut Rng) -> Self {
        let mut id = [0; 20];
        rng.fill(&mut id);
        Self(id)
    }

    /// Returns the XOR distance (Kademlia §2.1).
    #[must_use]
    pub fn distance(&self, other: &Self) -> Distance {
        let mut distance = self.0;
        for (byte, theirs) in distance.iter_mut().zip(other.0) {
            *byte ^= theirs;
        }
        Distance(distance)
    }

    /// Returns the first 64 bits as a number.
    #[must_use]
    pub fn first_bits(&self) -> u64 {
        let [a, b, c, d, e, f, g, h, ..] = self.0;
        u64::from_be_bytes([a, b, c, d, e, f, g, h])
    }

    /// Counts the leading bits that both ids share: 160 for equal ids.
    #[must_use]
    pub fn shared_bits(&self, other: &Self) -> u32 {
        self.distance(other).leading_zeros()
    }

    /// Draws an id that shares exactly `bits` leading bits with this one; with 160, this id.
    #[must_use]
    pub fn random_sharing(&self, bits: u32, rng: &mut Rng) -> Self {
        if bits >= ID_BITS {
            return *self;
        }
        let mut id = Self::random(rng).0;
        let (whole, rest) = ((bits / 8) as usize, bits % 8);
        id[..whole].copy_from_slice(&self.0[..whole]);
        // The bits before the first that differs, and that one turned over.
        let kept = !(0xff_u8.checked_shr(rest).unwrap_or(0));
        let turned = 0x80_u8 >> rest;
        let ours = self.0[whole];
        id[whole] = (ours & kept) | (!ours & turned) | (id[whole] & !(kept | turned));
        Self(id)
    }
}

impl From<Key> for NodeId {
    fn from(key: Key) -> Self {
        Self(key.0)
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why a text is no id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NodeIdError {
    /// Too short or too long.
    #[error("an id has 40 hexadecimal digits, not {found}")]
    Length {
        /// Bytes found.
        found: usize,
    },
    /// Something else among the digits.
    #[error("no hexadecimal digit at position {position} of the id")]
    Digit {
        /// Position, from 0.
        position: usize,
    },
}

impl FromStr for NodeId {
    type Err = NodeIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let text = text.as_bytes();
        if text.len() != 40 {
            return Err(NodeIdError::Length { found: text.len() });
        }
        let mut id = [0_u8; 20];
        for (position, &byte) in text.iter().enumerate() {
            let digit = char::from(byte).to_digit(16).ok_or(NodeIdError::Digit { position })? as u8;
            id[position / 2] = (id[position / 2] << 4) | digit;
        }
        Ok(Self(id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_read_as_they_are_written() {
        let id = NodeId::random(&mut Rng::with_seed(1));
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_eq!("00".parse::<NodeId>(), Err(NodeIdError::Length { found: 2 }));
        let bad = format!("{}g{}", "0".repeat(7), "0".repeat(32));
        assert_eq!(bad.parse::<NodeId>(), Err(NodeIdError::Digit { position: 7 }));
    }

    #[test]
    fn random_sharing_shares_exactly_so_many_bits() {
        let mut rng = Rng::with_seed(2);
        for bits in 0..=ID_BITS {
            let own = NodeId::random(&mut rng);
            assert_eq!(own.random_sharing(bits, &mut rng).shared_bits(&own), bits);
        }
    }
}
