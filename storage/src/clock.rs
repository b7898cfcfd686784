//! Time as the store uses it for expiry: wall time that never goes back.

/// A moment, as the driver read it, in the store's terms.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// Nanoseconds on a clock that never goes back.
    pub monotonic_ns: u64,
    /// Milliseconds since 1970, from a [`LogClock`].
    pub clock_ms: u64,
}

/// Turns the operator's clock into one that never goes back, also across restarts, and never
/// stands still.
///
/// It reads max(wall clock, newest time in the log + time since then). A step back of the wall
/// clock therefore resurrects nothing, and after a step forward that is taken back time goes on.
#[derive(Clone, Copy, Debug)]
pub struct LogClock {
    base_ms: u64,
    base_ns: u64,
}

/// A step forward of the wall clock beyond this is worth an alarm, in milliseconds.
pub const CLOCK_JUMP_ALARM_MS: u64 = 3_600_000;

/// What reading the clock told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClockReading {
    /// The moment.
    pub now: Now,
    /// How far the wall clock jumped ahead, in milliseconds, if beyond [`CLOCK_JUMP_ALARM_MS`].
    pub jump_ms: Option<u64>,
}

impl LogClock {
    /// Starts at the newest time found in the log (0 if none), or the wall clock if that is later.
    #[must_use]
    pub fn new(log_ms: u64, wall_ms: u64, monotonic_ns: u64) -> Self {
        Self { base_ms: log_ms.max(wall_ms), base_ns: monotonic_ns }
    }

    /// Reads the clock.
    pub fn read(&mut self, wall_ms: u64, monotonic_ns: u64) -> ClockReading {
        let elapsed_ms = monotonic_ns.saturating_sub(self.base_ns) / 1_000_000;
        let expected = self.base_ms.saturating_add(elapsed_ms);
        let clock_ms = wall_ms.max(expected);
        let ahead = clock_ms - expected;
        if ahead > 0 {
            (self.base_ms, self.base_ns) = (clock_ms, monotonic_ns);
        }
        let now = Now { monotonic_ns, clock_ms };
        ClockReading { now, jump_ms: (ahead > CLOCK_JUMP_ALARM_MS).then_some(ahead) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    #[test]
    fn step_back_does_not_turn_time_back() {
        let mut clock = LogClock::new(0, 10_000, 0);
        assert_eq!(clock.read(10_500, 500 * MS).now.clock_ms, 10_500);
        assert_eq!(clock.read(3_000, 700 * MS).now.clock_ms, 10_700);
    }

    #[test]
    fn time_goes_on_after_a_forward_step_was_taken_back() {
        let mut clock = LogClock::new(0, 10_000, 0);
        let reading = clock.read(9_000_000, 100 * MS);
        assert_eq!(reading.now.clock_ms, 9_000_000);
        assert_eq!(reading.jump_ms, Some(9_000_000 - 10_100));
        let reading = clock.read(10_400, 400 * MS);
        assert_eq!(reading.now.clock_ms, 9_000_300);
        assert_eq!(reading.jump_ms, None);
    }

    #[test]
    fn log_time_ahead_of_the_wall_clock_counts() {
        let mut clock = LogClock::new(50_000, 10_000, 0);
        assert_eq!(clock.read(10_010, 10 * MS).now.clock_ms, 50_010);
    }
}
