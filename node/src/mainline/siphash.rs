//! SipHash-2-4: a keyed hash for tokens and tables, short inputs first.
//!
//! The standard library's has no key that callers choose; ours must be the same after a restart.
//! Source: Aumasson and Bernstein, "SipHash: a fast short-input PRF", 2012.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::as_conversions)]

/// A 128-bit key.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct SipKey(pub [u8; 16]);

impl std::fmt::Debug for SipKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SipKey(..)")
    }
}

impl SipKey {
    /// Hashes the parts, one behind the other.
    #[must_use]
    pub fn hash(&self, parts: &[&[u8]]) -> u64 {
        let [first, second] = self.halves();
        let mut state = [
            first ^ 0x736f_6d65_7073_6575,
            second ^ 0x646f_7261_6e64_6f6d,
            first ^ 0x6c79_6765_6e65_7261,
            second ^ 0x7465_6462_7974_6573,
        ];
        let (mut word, mut filled, mut len) = (0_u64, 0_u32, 0_u8);
        for byte in parts.iter().flat_map(|part| part.iter()) {
            word |= u64::from(*byte).wrapping_shl(filled);
            filled = filled.wrapping_add(8);
            len = len.wrapping_add(1);
            if filled == 64 {
                absorb(&mut state, word);
                (word, filled) = (0, 0);
            }
        }
        absorb(&mut state, word | u64::from(len).wrapping_shl(56));
        state[2] ^= 0xff;
        (0..4).for_each(|_| round(&mut state));
        state.iter().fold(0, |hash, word| hash ^ word)
    }

    /// Derives a key for one purpose.
    #[must_use]
    pub fn derive(&self, purpose: u64) -> Self {
        let purpose = purpose.to_le_bytes();
        let (first, second) = (self.hash(&[&purpose, &[0]]), self.hash(&[&purpose, &[1]]));
        Self((u128::from(first) | u128::from(second).wrapping_shl(64)).to_le_bytes())
    }

    fn halves(&self) -> [u64; 2] {
        let key = u128::from_le_bytes(self.0);
        let low = key & u128::from(u64::MAX);
        [low, key.wrapping_shr(64)].map(|half| u64::try_from(half).unwrap_or_default())
    }
}

fn absorb(state: &mut [u64; 4], word: u64) {
    state[3] ^= word;
    round(state);
    round(state);
    state[0] ^= word;
}

fn round([a, b, c, d]: &mut [u64; 4]) {
    *a = a.wrapping_add(*b);
    *b = b.rotate_left(13) ^ *a;
    *a = a.rotate_left(32);
    *c = c.wrapping_add(*d);
    *d = d.rotate_left(16) ^ *c;
    *a = a.wrapping_add(*d);
    *d = d.rotate_left(21) ^ *a;
    *c = c.wrapping_add(*b);
    *b = b.rotate_left(17) ^ *c;
    *c = c.rotate_left(32);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The paper's vectors: key 00 .. 0f, message 00 .. (len - 1).
    #[test]
    fn vectors_of_the_paper_hold() {
        let key = SipKey(std::array::from_fn(|index| u8::try_from(index).unwrap()));
        let message: Vec<u8> = (0..64).collect();
        for (len, expected) in [
            (0, 0x726f_db47_dd0e_0e31_u64),
            (1, 0x74f8_39c5_93dc_67fd),
            (8, 0x93f5_f579_9a93_2462),
            (15, 0xa129_ca61_49be_45e5),
            (63, 0x958a_324c_eb06_4572),
        ] {
            let message = message.get(..len).unwrap();
            assert_eq!(key.hash(&[message]), expected, "{len}");
            let (front, back) = message.split_at(len / 3);
            assert_eq!(key.hash(&[front, back]), expected, "{len}, in two parts");
        }
    }

    #[test]
    fn derived_keys_differ_by_purpose() {
        let key = SipKey([7; 16]);
        assert_ne!(key.derive(1), key.derive(2));
        assert_eq!(key.derive(1), key.derive(1));
    }
}
