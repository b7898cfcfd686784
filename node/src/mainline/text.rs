//! Targets, keys and signatures as people write them: hexadecimal or z-base-32.
//!
//! The number of digits tells which: a target has 40 or 32 of them, a public key 64 or 52.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::as_conversions)]

use std::fmt::Write as _;

use crate::kademlia::NodeId;

use super::item::mutable_target;
use super::zbase32;

/// Reads `N` bytes from either spelling; `None` if the text is neither.
#[must_use]
pub fn decode<const N: usize>(text: &[u8]) -> Option<[u8; N]> {
    let text = std::str::from_utf8(text).ok()?;
    let bytes = if Some(text.len()) == N.checked_mul(2) {
        decode_hex(text)?
    } else {
        zbase32::decode(text).ok()?
    };
    bytes.try_into().ok()
}

/// Writes bytes as hexadecimal digits.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a string does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Where an item is looked for, as a client names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// At a target.
    Target(NodeId),
    /// Where the owner of this public key stores, under the salt that comes with it.
    Key([u8; 32]),
}

impl Place {
    /// Reads a target or a public key; `None` if the text is neither.
    #[must_use]
    pub fn decode(text: &[u8]) -> Option<Self> {
        let target = decode(text).map(|target| Self::Target(NodeId(target)));
        target.or_else(|| decode(text).map(Self::Key))
    }

    /// The target, for a salt.
    #[must_use]
    pub fn target(&self, salt: &[u8]) -> NodeId {
        match self {
            Self::Target(target) => *target,
            Self::Key(key) => mutable_target(key, salt),
        }
    }
}

fn decode_hex(text: &str) -> Option<Vec<u8>> {
    let digit =
        |byte: &u8| char::from(*byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let pairs = text.as_bytes().chunks_exact(2);
    pairs
        .map(|pair| match pair {
            [high, low] => digit(high)?.checked_mul(16)?.checked_add(digit(low)?),
            _ => None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_spellings_are_read() {
        let target = [0xAB; 20];
        let key: [u8; 32] = std::array::from_fn(|index| u8::try_from(index).unwrap());
        for text in [hex(&target), hex(&target).to_uppercase(), zbase32::encode(&target)] {
            assert_eq!(decode(text.as_bytes()), Some(target), "{text}");
            assert_eq!(Place::decode(text.as_bytes()), Some(Place::Target(NodeId(target))));
        }
        for text in [hex(&key), zbase32::encode(&key)] {
            assert_eq!(Place::decode(text.as_bytes()), Some(Place::Key(key)), "{text}");
        }
    }

    #[test]
    fn other_lengths_and_digits_are_refused() {
        for text in ["", "abc", &"g".repeat(40), &"ab".repeat(19), &"é".repeat(20), &"l".repeat(32)]
        {
            assert_eq!(decode::<20>(text.as_bytes()), None, "{text}");
        }
        assert_eq!(Place::decode(&[0xFF; 40]), None);
    }

    #[test]
    fn target_of_a_key_depends_on_the_salt() {
        let place = Place::Key([7; 32]);
        assert_ne!(place.target(b""), place.target(b"salt"));
        let target = NodeId([1; 20]);
        assert_eq!(Place::Target(target).target(b"salt"), target);
    }
}
