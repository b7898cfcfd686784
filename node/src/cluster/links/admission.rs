//! [`Admission`]: which connections of strangers are taken, and what is said in the log about them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::limits::LinkLimits;
use crate::io::Monotonic;
use crate::mainline::rate_limit::RateLimit;
use crate::mainline::subnet::machine;

/// Sources and reasons that the log knows of already.
const LOGGED_COUNT_MAX: usize = 1_024;

/// Why a connection is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NotAdmitted {
    /// Its source has too many that do not say who they are, or comes too often.
    Source,
    /// There are too many strangers.
    Full,
}

/// Counts strangers: accepted connections whose handshake is not over.
#[derive(Debug)]
pub(super) struct Admission {
    rates: RateLimit,
    strangers: BTreeMap<u64, usize>,
    count: usize,
    logged: BTreeSet<(IpAddr, &'static str)>,
}

impl Admission {
    pub(super) fn new(limits: &LinkLimits, seed: [u8; 16]) -> Self {
        let rates = RateLimit::new(limits.rates, seed);
        Self { rates, strangers: BTreeMap::new(), count: 0, logged: BTreeSet::new() }
    }

    /// Takes a connection in, or not.
    pub(super) fn admit(
        &mut self,
        now: Monotonic,
        from: IpAddr,
        limits: &LinkLimits,
    ) -> Result<(), NotAdmitted> {
        if !self.rates.admit(now.0, from) {
            return Err(NotAdmitted::Source);
        }
        let of_source = self.strangers.get(&machine(from)).copied().unwrap_or(0);
        if of_source >= limits.strangers_per_source_max && !from.is_loopback() {
            return Err(NotAdmitted::Source);
        }
        if self.count >= limits.strangers_max {
            return Err(NotAdmitted::Full);
        }
        *self.strangers.entry(machine(from)).or_default() += 1;
        self.count += 1;
        Ok(())
    }

    /// One that was admitted is no stranger any more, or is gone.
    pub(super) fn leave(&mut self, from: IpAddr) {
        self.count -= 1;
        if let Some(of_source) = self.strangers.get_mut(&machine(from)) {
            *of_source -= 1;
            if *of_source == 0 {
                self.strangers.remove(&machine(from));
            }
        }
    }

    /// Whether this has not been logged yet of that source.
    pub(super) fn is_news(&mut self, of: IpAddr, what: &'static str) -> bool {
        if self.logged.len() >= LOGGED_COUNT_MAX {
            self.logged.clear();
        }
        self.logged.insert((of, what))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mainline::rate_limit::Tier;

    fn ip(last: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, last])
    }

    fn limits() -> LinkLimits {
        let mut limits = LinkLimits::default();
        (limits.strangers_max, limits.strangers_per_source_max) = (4, 2);
        limits
    }

    #[test]
    fn strangers_are_limited_by_source_and_in_all() {
        let limits = limits();
        let mut admission = Admission::new(&limits, [1; 16]);
        let now = Monotonic(0);
        for (last, expected) in [
            (1, Ok(())),
            (1, Ok(())),
            (1, Err(NotAdmitted::Source)),
            (2, Ok(())),
            (3, Ok(())),
            (4, Err(NotAdmitted::Full)),
        ] {
            assert_eq!(admission.admit(now, ip(last), &limits), expected, "from {last}");
        }
        admission.leave(ip(1));
        assert_eq!(admission.admit(now, ip(1), &limits), Ok(()));
        for last in [1, 1, 2, 3] {
            admission.leave(ip(last));
        }
        assert!(admission.strangers.is_empty());
    }

    #[test]
    fn handshakes_of_a_source_are_limited_in_time() {
        let mut limits = limits();
        limits.rates.machine = Tier { per_second: 1, burst: 3 };
        let mut admission = Admission::new(&limits, [1; 16]);
        let mut admitted = |now| {
            let is_admitted = admission.admit(now, ip(1), &limits).is_ok();
            if is_admitted {
                admission.leave(ip(1));
            }
            is_admitted
        };
        assert_eq!((0..10).filter(|_| admitted(Monotonic(0))).count(), 3);
        assert!(admitted(Monotonic(0).plus_millis(1_000)));
        assert!(!admitted(Monotonic(0).plus_millis(1_000)));
    }

    #[test]
    fn the_log_hears_of_a_thing_once() {
        let mut admission = Admission::new(&limits(), [1; 16]);
        assert!(admission.is_news(ip(1), "a"));
        assert!(!admission.is_news(ip(1), "a"));
        assert!(admission.is_news(ip(1), "b"));
        assert!(admission.is_news(ip(2), "a"));
    }
}
