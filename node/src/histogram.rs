//! [`Histogram`]: how often something took how long.

use std::ops::AddAssign;

/// Upper ends of the buckets in nanoseconds: from what a hit in memory takes to what nobody waits
/// for. A last bucket has no end.
const BOUNDS: [u64; 16] = [
    50_000,
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    25_000_000,
    50_000_000,
    100_000_000,
    250_000_000,
    500_000_000,
    1_000_000_000,
    2_500_000_000,
    10_000_000_000,
];

/// Counts of durations by size. Those of several threads can be added.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Histogram {
    counts: [u64; BOUNDS.len() + 1],
    sum_ns: u64,
}

impl Histogram {
    /// Counts a duration.
    pub fn record(&mut self, ns: u64) {
        let bucket = BOUNDS.partition_point(|bound| *bound < ns);
        self.counts[bucket] += 1;
        self.sum_ns = self.sum_ns.saturating_add(ns);
    }

    /// Number of durations.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Their sum in seconds.
    #[must_use]
    pub fn sum_seconds(&self) -> f64 {
        seconds(self.sum_ns)
    }

    /// The buckets: upper end in seconds, and number of durations in it alone.
    pub fn buckets(&self) -> impl Iterator<Item = (f64, u64)> {
        let ends = BOUNDS.iter().map(|bound| seconds(*bound)).chain([f64::INFINITY]);
        ends.zip(self.counts)
    }
}

impl AddAssign<&Self> for Histogram {
    fn add_assign(&mut self, other: &Self) {
        self.counts.iter_mut().zip(other.counts).for_each(|(sum, more)| *sum += more);
        self.sum_ns = self.sum_ns.saturating_add(other.sum_ns);
    }
}

/// Nanoseconds as seconds.
#[must_use]
#[expect(clippy::cast_precision_loss, reason = "durations are told, not counted with")]
pub fn seconds(ns: u64) -> f64 {
    ns as f64 / 1e9
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_fall_into_the_bucket_that_ends_at_them() {
        let mut histogram = Histogram::default();
        for ns in [0, 50_000, 50_001, 2_500_000_000, u64::MAX] {
            histogram.record(ns);
        }
        let counts: Vec<(f64, u64)> = histogram.buckets().filter(|(_, count)| *count > 0).collect();
        assert_eq!(counts, [(0.000_05, 2), (0.000_1, 1), (2.5, 1), (f64::INFINITY, 1)]);
        assert_eq!(histogram.count(), 5);
    }

    #[test]
    fn histograms_of_threads_add_up() {
        let (mut one, mut other) = (Histogram::default(), Histogram::default());
        one.record(1_000_000);
        other.record(3_000_000);
        one += &other;
        assert_eq!((one.count(), one.sum_seconds()), (2, 0.004));
    }
}
