//! z-base-32, the spelling of public keys that people read aloud (O'Whielacronx, "Human-oriented
//! base-32 encoding", 2009).

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::as_conversions)]

const ALPHABET: &[u8; 32] = b"ybndrfg8ejkmcpqxot1uwisza345h769";

/// Why a text is no z-base-32 of whole bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Zbase32Error {
    /// A character that is none of the 32.
    #[error("no character of z-base-32 at position {position}")]
    Character {
        /// Position in bytes, from 0.
        position: usize,
    },
    /// A length that no whole number of bytes has, or bits left over that are not 0.
    #[error("not the z-base-32 of whole bytes")]
    Length,
}

/// Writes bytes: 52 characters for a key.
#[must_use]
pub fn encode(bytes: &[u8]) -> String {
    let mut text = String::new();
    let (mut bits, mut count) = (0_u32, 0_u32);
    let push = |text: &mut String, quintet: u32| {
        let index = usize::try_from(quintet & 31).unwrap_or_default();
        text.extend(ALPHABET.get(index).map(|byte| char::from(*byte)));
    };
    for byte in bytes {
        bits = (bits << 8) | u32::from(*byte);
        count = count.saturating_add(8);
        while count >= 5 {
            count = count.saturating_sub(5);
            push(&mut text, bits.wrapping_shr(count));
        }
    }
    if count > 0 {
        push(&mut text, bits.wrapping_shl(5_u32.saturating_sub(count)));
    }
    text
}

/// Reads what [`encode`] writes; capital letters count as small ones.
///
/// # Errors
/// See [`Zbase32Error`].
pub fn decode(text: &str) -> Result<Vec<u8>, Zbase32Error> {
    let mut bytes = Vec::new();
    let (mut bits, mut count) = (0_u32, 0_u32);
    for (position, character) in text.bytes().enumerate() {
        let small = character.to_ascii_lowercase();
        let quintet = ALPHABET.iter().position(|known| *known == small);
        let quintet = quintet.and_then(|quintet| u32::try_from(quintet).ok());
        bits = (bits << 5) | quintet.ok_or(Zbase32Error::Character { position })?;
        count = count.saturating_add(5);
        if count >= 8 {
            count = count.saturating_sub(8);
            bytes.extend(u8::try_from(bits.wrapping_shr(count) & 0xff));
        }
    }
    let left_over = bits & 1_u32.wrapping_shl(count).wrapping_sub(1);
    if count >= 5 || left_over != 0 {
        return Err(Zbase32Error::Length);
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Examples of the specification, with whole bytes.
    #[test]
    fn vectors_of_the_specification_hold() {
        for (bytes, text) in [
            (&[][..], ""),
            (&[0xf0, 0xbf, 0xc7], "6n9hq"),
            (&[0xd4, 0x7a, 0x04], "4t7ye"),
            (&[0x00], "yy"),
            (&[0xff], "9h"),
        ] {
            assert_eq!(encode(bytes), text);
            assert_eq!(decode(text).as_deref(), Ok(bytes));
        }
    }

    #[test]
    fn what_is_no_zbase32_is_refused() {
        assert_eq!(decode("y2"), Err(Zbase32Error::Character { position: 1 }));
        assert_eq!(decode("y"), Err(Zbase32Error::Length));
        assert_eq!(decode("yb"), Err(Zbase32Error::Length), "bits that no byte has");
        assert_eq!(decode("YY"), Ok(vec![0]));
    }

    proptest! {
        #[test]
        fn bytes_come_back(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            prop_assert_eq!(decode(&encode(&bytes)), Ok(bytes));
        }
    }
}
