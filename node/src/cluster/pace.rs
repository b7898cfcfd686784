//! [`Pace`]: spreads work in the background over time, so that clients hardly notice it.

/// After a pause as much moves at once as is due in so much time: records that move together cost
/// fewer turns of the event loops on both sides, and share flushes of the log.
const PACE_PAUSE_NS: u64 = 5_000_000;

/// Time that is made up for: timers may be late.
const PACE_MADE_UP_NS: u64 = 2 * PACE_PAUSE_NS;

/// So many bytes per second.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Pace {
    /// Until when what was moved is paid for.
    paid_at_ns: u64,
    /// When it goes on.
    free_at_ns: u64,
}

impl Pace {
    /// When it goes on.
    pub(super) fn free_at_ns(&self) -> u64 {
        self.free_at_ns
    }

    /// Whether it goes on now.
    pub(super) fn is_free(&self, now_ns: u64) -> bool {
        self.free_at_ns <= now_ns
    }

    /// So many bytes have been moved, of `per_second`; 0 is no limit.
    pub(super) fn spend(&mut self, now_ns: u64, bytes: u64, per_second: u64) {
        if per_second == 0 {
            return;
        }
        let cost_ns = u128::from(bytes) * 1_000_000_000 / u128::from(per_second);
        let from_ns = self.paid_at_ns.max(now_ns.saturating_sub(PACE_MADE_UP_NS));
        self.paid_at_ns = from_ns.saturating_add(u64::try_from(cost_ns).unwrap_or(u64::MAX));
        if self.paid_at_ns > now_ns {
            self.free_at_ns = self.paid_at_ns.saturating_add(PACE_PAUSE_NS);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn as_many_bytes_pass_as_there_is_time_for() {
        let (mut pace, mut moved, mut rng) = (Pace::default(), 0, fastrand::Rng::with_seed(1));
        for now_ns in (SECOND..3 * SECOND).step_by(1_000_000) {
            while pace.is_free(now_ns) {
                let bytes = rng.u64(..20_000);
                moved += bytes;
                pace.spend(now_ns, bytes, 1 << 20);
            }
        }
        assert!((2_050_000..2_150_000).contains(&moved), "{moved}");
    }

    #[test]
    fn a_rest_is_not_made_up_for() {
        let mut pace = Pace::default();
        pace.spend(10 * SECOND, 1 << 20, 1 << 20);
        assert!(!pace.is_free(10 * SECOND + 900_000_000));
        assert!(pace.is_free(11 * SECOND + PACE_PAUSE_NS));
    }

    #[test]
    fn nought_is_no_limit() {
        let mut pace = Pace::default();
        pace.spend(SECOND, u64::MAX, 0);
        assert!(pace.is_free(SECOND));
    }
}
