//! The two clocks both real drivers read.

use std::time::Duration;

use rustix::time::{ClockId, Timespec, clock_gettime};

use super::{Monotonic, WallClock};

const NANOS_PER_SECOND: u64 = 1_000_000_000;

/// Reads CLOCK_MONOTONIC and CLOCK_REALTIME; a wall clock before 1970 reads as 1970.
pub(crate) fn now() -> (Monotonic, WallClock) {
    (monotonic(), WallClock(nanos(clock_gettime(ClockId::Realtime)) / 1_000_000))
}

/// Reads CLOCK_MONOTONIC.
pub(crate) fn monotonic() -> Monotonic {
    Monotonic(nanos(clock_gettime(ClockId::Monotonic)))
}

/// The time until `deadline`; nothing once it has passed.
pub(crate) fn until(deadline: Monotonic) -> Duration {
    Duration::from_nanos(deadline.0.saturating_sub(monotonic().0))
}

fn nanos(time: Timespec) -> u64 {
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let rest = u64::try_from(time.tv_nsec).unwrap_or(0);
    seconds.saturating_mul(NANOS_PER_SECOND).saturating_add(rest)
}
