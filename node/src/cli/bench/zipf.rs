//! [`Zipf`]: few keys most of the time.

/// Numbers of keys that ranks can be scattered over, at most: the scattering multiplies by a prime
/// above it, and the product must fit 64 bits.
pub const KEY_COUNT_MAX: u64 = SCATTER - 1;
/// The greatest prime below 2^32. It divides no smaller count, so ranks fall on different keys.
const SCATTER: u64 = 4_294_967_291;

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
    /// Over keys `0..count`; the exponent (theta) is below 1. Takes time in proportion to `count`.
    ///
    /// # Panics
    /// If the exponent is not between 0 and 1, or there are no keys or more than
    /// [`KEY_COUNT_MAX`].
    #[must_use]
    pub fn new(count: u64, exponent: f64) -> Self {
        assert!((0.0..1.0).contains(&exponent), "the method needs an exponent below 1");
        assert!((1..=KEY_COUNT_MAX).contains(&count), "there are keys, and not too many");
        let zeta: f64 = (1..=count).map(|rank| (rank as f64).powf(-exponent)).sum();
        let first_two = 1.0 + 0.5_f64.powf(exponent);
        let eta = (1.0 - (2.0 / count as f64).powf(1.0 - exponent)) / (1.0 - first_two / zeta);
        Self { count, exponent, zeta, eta }
    }

    /// The rank, from 0, that a number in `0.0..1.0` falls on.
    fn rank(&self, uniform: f64) -> u64 {
        let scaled = uniform * self.zeta;
        if scaled < 1.0 || self.count == 1 {
            return 0;
        }
        if scaled < 1.0 + 0.5_f64.powf(self.exponent) || self.count == 2 {
            return 1;
        }
        let base = self.eta.mul_add(uniform, 1.0 - self.eta);
        let rank = self.count as f64 * base.powf(1.0 / (1.0 - self.exponent));
        (rank as u64).min(self.count - 1)
    }

    /// The key that a number in `0.0..1.0` falls on.
    #[must_use]
    pub fn draw(&self, uniform: f64) -> u64 {
        self.key(self.rank(uniform))
    }

    fn key(&self, rank: u64) -> u64 {
        rank * SCATTER % self.count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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

    /// An earlier multiplier had the factor 5 and wrapped around: of 1,000 keys 200 were drawn.
    #[test]
    fn each_rank_falls_on_a_key_of_its_own() {
        for count in [1, 2, 3, 1000, 1024, 4095, 10_007] {
            let zipf = Zipf::new(count, 0.9);
            let mut keys: Vec<u64> = (0..count).map(|rank| zipf.key(rank)).collect();
            keys.sort_unstable();
            assert!(keys.into_iter().eq(0..count), "{count}");
        }
    }

    #[test]
    fn draws_stay_within_the_keys() {
        for count in [1, 2, 3, 1000] {
            let zipf = Zipf::new(count, 0.5);
            for draw in 0..=1000 {
                assert!(zipf.draw(f64::from(draw) / 1001.0) < count);
            }
        }
        let zipf = Zipf { count: KEY_COUNT_MAX, exponent: 0.9, zeta: 1.0, eta: 1.0 };
        assert!(zipf.key(KEY_COUNT_MAX - 1) < KEY_COUNT_MAX);
    }
}
