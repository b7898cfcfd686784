//! [`Latencies`]: how long operations took, told apart to a thousandth.

use hdrhistogram::Histogram;
use serde_json::{Value, json};
use std::time::Duration;

/// Longest latency that is told apart from longer ones, in seconds.
const LONGEST_SECONDS: u64 = 60;
/// Steps of a curve per halving of the share of operations that are slower.
const CURVE_STEPS: u32 = 4;

/// Latencies of many operations.
#[derive(Clone, Debug)]
pub struct Latencies(Histogram<u64>);

impl Default for Latencies {
    fn default() -> Self {
        let longest = LONGEST_SECONDS * 1_000_000_000;
        Self(Histogram::new_with_bounds(1, longest, 3).expect("the bounds are sound"))
    }
}

impl Latencies {
    /// Notes `count` operations that took as long as each other.
    pub fn record(&mut self, latency: Duration, count: u64) {
        let nanos = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
        self.0.saturating_record_n(nanos, count);
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// The latency in microseconds that `percent` of the operations did not exceed.
    #[must_use]
    pub fn micros(&self, percent: f64) -> f64 {
        self.0.value_at_percentile(percent) as f64 / 1e3
    }

    /// Adds what `other` holds.
    ///
    /// # Panics
    /// Never: the bounds are all alike.
    pub fn add(&mut self, other: &Self) {
        self.0.add(&other.0).expect("the bounds are the same");
    }

    /// Number of operations noted.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.0.len()
    }

    /// p50, p99, p99.9 and the longest, in microseconds.
    #[must_use]
    pub fn json(&self) -> Value {
        json!({
            "p50_us": self.micros(50.0),
            "p99_us": self.micros(99.0),
            "p999_us": self.micros(99.9),
            "max_us": self.micros(100.0),
        })
    }

    /// The whole distribution as points: of `n` operations one takes longer than so many
    /// microseconds, up to the number of operations noted.
    #[must_use]
    pub fn curve(&self) -> Vec<(f64, f64)> {
        let count = self.count() as f64;
        let mut points = Vec::new();
        for step in 0_u32.. {
            let one_of = 2_f64.powf(f64::from(step) / f64::from(CURVE_STEPS));
            if one_of > count {
                break;
            }
            points.push((one_of, self.micros(100.0 * (1.0 - 1.0 / one_of))));
        }
        points
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_curve_ends_at_the_slowest_that_is_told_apart() {
        let mut latencies = Latencies::default();
        latencies.record(Duration::from_micros(10), 1000);
        latencies.record(Duration::from_micros(900), 24);
        let curve = latencies.curve();
        assert!((curve[0].0 - 1.0).abs() < 1e-9 && (curve[0].1 - 10.0).abs() < 0.1, "{curve:?}");
        let last = curve.last().unwrap();
        assert!((last.0 - 1024.0).abs() < 1e-6 && (last.1 - 900.0).abs() < 1.0, "{curve:?}");
        assert!(curve.windows(2).all(|pair| pair[0].1 <= pair[1].1), "{curve:?}");
        assert!(Latencies::default().curve().is_empty());
    }

    #[test]
    fn what_is_too_long_counts_as_the_longest() {
        let mut latencies = Latencies::default();
        latencies.record(Duration::MAX, 3);
        assert_eq!(latencies.count(), 3);
        assert!(latencies.micros(100.0) >= 59e6);
    }
}
