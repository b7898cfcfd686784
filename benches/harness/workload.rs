//! Keys, values and the choice among them, the same in every run.

use sha1::{Digest, Sha1};
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

    /// Bytes of the record that holds them, padded.
    #[must_use]
    pub fn record_bytes(&self) -> u64 {
        let own_lsn = wal::record::told_lsn(Lsn(1), Lsn(1), self.bytes.len());
        let header = wal::record::RECORD_FIXED_LEN
            + if own_lsn.is_some() { 8 } else { 0 }
            + USER_KEY_LEN
            + wal::record::chunk_crcs_len(self.bytes.len());
        wal::record::padded_len(header + self.bytes.len()) as u64
    }
}

/// Which keys a workload touches.
#[derive(Clone, Debug)]
pub enum Choice {
    /// All of that many alike.
    Uniform(u64),
    /// Few of them most of the time.
    Zipf(Zipf),
}

impl Choice {
    /// Draws a key's number.
    pub fn draw(&self, random: &mut fastrand::Rng) -> u64 {
        match self {
            Self::Uniform(count) => random.u64(..count),
            Self::Zipf(zipf) => zipf.draw(random.f64()),
        }
    }
}

/// The Zipf distribution over `count` keys, by the method of Gray et al., "Quickly generating
/// billion-record synthetic databases" (1994), section 3. Ranks are spread over the keys.
#[derive(Clone, Debug)]
pub struct Zipf {
    count: u64,
    exponent: f64,
    zeta: f64,
    eta: f64,
}

impl Zipf {
    /// Over keys `0..count`; the exponent is below 1.
    ///
    /// # Panics
    /// If the exponent is not between 0 and 1.
    #[must_use]
    pub fn new(count: u64, exponent: f64) -> Self {
        assert!((0.0..1.0).contains(&exponent), "the method needs an exponent below 1");
        let zeta: f64 = (1..=count).map(|rank| (rank as f64).powf(-exponent)).sum();
        let first_two = 1.0 + 0.5_f64.powf(exponent);
        let eta = (1.0 - (2.0 / count as f64).powf(1.0 - exponent)) / (1.0 - first_two / zeta);
        Self { count, exponent, zeta, eta }
    }

    /// The rank, from 0, that a number in `0.0..1.0` falls on.
    fn rank(&self, uniform: f64) -> u64 {
        let scaled = uniform * self.zeta;
        if scaled < 1.0 {
            return 0;
        }
        if scaled < 1.0 + 0.5_f64.powf(self.exponent) {
            return 1;
        }
        let base = self.eta.mul_add(uniform, 1.0 - self.eta);
        let rank = self.count as f64 * base.powf(1.0 / (1.0 - self.exponent));
        (rank as u64).min(self.count - 1)
    }

    fn draw(&self, uniform: f64) -> u64 {
        // Any fixed scattering will do; this one is the multiplier of Knuth's 64-bit generator.
        self.rank(uniform).wrapping_mul(6_364_136_223_846_793_005) % self.count
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

    /// Rank `r` has the share `r^-0.99 / zeta`; the first two are exact, the rest close.
    #[test]
    fn zipf_has_the_shares_of_its_definition() {
        let zipf = Zipf::new(1000, 0.99);
        let draws = 100_000;
        let mut counts = [0_u32; 1000];
        for draw in 0..draws {
            counts[zipf.rank(f64::from(draw) / f64::from(draws)) as usize] += 1;
        }
        for rank in [1, 2, 10, 100] {
            let share = f64::from(rank).powf(-0.99) / zipf.zeta;
            let found = f64::from(counts[rank as usize - 1]) / f64::from(draws);
            assert!((found / share - 1.0).abs() < 0.2, "rank {rank}: {found} not {share}");
        }
    }
}
