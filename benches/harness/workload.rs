//! Keys, values and the choice among them, the same in every run.

use kadring::cli::bench::Zipf;
use sha1::{Digest, Sha1};
use std::ops::Range;
use wal::Lsn;
use wal::record::Key;

/// Bytes of a user key.
pub const USER_KEY_LEN: usize = 16;
/// Bytes of the shortest value: those that tell which key it belongs to.
pub const VALUE_LEN_MIN: usize = 8;

/// The user key of that number and its id, made as the node makes it.
#[must_use]
pub fn key(index: u64) -> (Key, [u8; USER_KEY_LEN]) {
    let mut user_key = *b"user:00000000000";
    let mut rest = index;
    for digit in user_key.iter_mut().skip(5).rev() {
        *digit = b'0' + (rest % 10) as u8;
        rest /= 10;
    }
    (Key(Sha1::digest(user_key).into()), user_key)
}

/// Values that tell which key they belong to, filled with what does not compress.
#[derive(Clone, Debug)]
pub struct Values {
    bytes: Vec<u8>,
}

impl Values {
    /// Values of `len` bytes.
    ///
    /// # Panics
    /// If that is below [`VALUE_LEN_MIN`].
    #[must_use]
    pub fn new(len: usize) -> Self {
        assert!(len >= VALUE_LEN_MIN, "a value tells its key");
        let mut random = fastrand::Rng::with_seed(1);
        Self { bytes: (0..len).map(|_| random.u8(..)).collect() }
    }

    /// The value of the key of that number.
    pub fn of(&mut self, index: u64) -> &[u8] {
        self.bytes[..VALUE_LEN_MIN].copy_from_slice(&index.to_le_bytes());
        &self.bytes
    }

    /// Whether `value` belongs to that key and is whole.
    #[must_use]
    pub fn is_of(&self, index: u64, value: &[u8]) -> bool {
        value.len() == self.bytes.len()
            && value[..VALUE_LEN_MIN] == index.to_le_bytes()
            && value[VALUE_LEN_MIN..] == self.bytes[VALUE_LEN_MIN..]
    }

    /// Bytes that a user counts for a key and its value.
    #[must_use]
    pub fn user_bytes(&self) -> u64 {
        (self.bytes.len() + USER_KEY_LEN) as u64
    }

    /// Bytes of the record that holds them; what pads it is dead weight.
    #[must_use]
    pub fn record_bytes(&self) -> u64 {
        (header_len(self.bytes.len()) + self.bytes.len()) as u64
    }
}

/// Bytes of a record before its value: of a put of this store's own, with its first LSN where large
/// values tell it.
pub(super) fn header_len(value_len: usize) -> usize {
    let own_lsn = wal::record::told_lsn(Lsn(1), Lsn(1), value_len);
    wal::record::RECORD_FIXED_LEN
        + if own_lsn.is_some() { 8 } else { 0 }
        + USER_KEY_LEN
        + wal::record::chunk_crcs_len(value_len)
}

/// Which keys a workload touches.
#[derive(Clone, Debug)]
pub enum Choice {
    /// All of these alike.
    Uniform(Range<u64>),
    /// Few of them most of the time.
    Zipf(Zipf),
    /// Each once, from this number on.
    Fresh(u64),
}

impl Choice {
    /// Draws a key's number.
    pub fn draw(&mut self, random: &mut fastrand::Rng) -> u64 {
        match self {
            Self::Uniform(keys) => random.u64(keys.clone()),
            Self::Zipf(zipf) => zipf.draw(random.f64()),
            Self::Fresh(next) => {
                *next += 1;
                *next - 1
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_keys_count_in_decimal() {
        assert_eq!(&key(0).1, b"user:00000000000");
        assert_eq!(&key(98_765).1, b"user:00000098765");
        assert_ne!(key(1).0, key(2).0);
    }

    #[test]
    fn values_are_told_apart() {
        let mut values = Values::new(100);
        let mut value = values.of(7).to_vec();
        assert!(values.is_of(7, &value));
        assert!(!values.is_of(8, &value));
        value[99] ^= 1;
        assert!(!values.is_of(7, &value));
    }
}
