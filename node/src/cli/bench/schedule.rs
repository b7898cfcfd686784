//! [`Schedule`]: when the operations of an open loop are due.
//!
//! An operation is due whether or not earlier ones have been answered; its latency counts from
//! then. So a server that stops for a second is seen by all operations that were due in it.

use std::time::Duration;

/// Evenly spaced points in time, dealt to threads in turn. Times count from the start.
#[derive(Clone, Debug)]
pub struct Schedule {
    rate: f64,
    threads: u64,
    next: u64,
    end: Duration,
}

impl Schedule {
    /// The part of thread number `thread` of `threads`, of `rate` operations per second in all,
    /// up to but without `end`.
    ///
    /// # Panics
    /// If the rate is not above 0, or there is no such thread.
    #[must_use]
    pub fn new(rate: f64, thread: usize, threads: usize, end: Duration) -> Self {
        assert!(rate > 0.0 && rate.is_finite(), "operations are due at some time");
        assert!(thread < threads, "a thread is one of all");
        Self { rate, threads: threads as u64, next: thread as u64, end }
    }

    /// When the next operation is due; nothing if that is at the end or later.
    #[must_use]
    pub fn due(&self) -> Option<Duration> {
        let nanos = self.next as f64 * 1e9 / self.rate;
        let due = Duration::from_nanos(nanos as u64);
        (due < self.end).then_some(due)
    }

    /// Goes on to the operation after that.
    pub fn advance(&mut self) {
        self.next += self.threads;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(mut schedule: Schedule) -> Vec<u64> {
        let mut found = Vec::new();
        while let Some(due) = schedule.due() {
            found.push(u64::try_from(due.as_micros()).unwrap());
            schedule.advance();
        }
        found
    }

    #[test]
    fn operations_are_due_evenly_and_not_at_the_end() {
        let end = Duration::from_millis(2);
        assert_eq!(
            all(Schedule::new(4000.0, 0, 1, end)),
            [0, 250, 500, 750, 1000, 1250, 1500, 1750]
        );
        assert_eq!(all(Schedule::new(0.5, 0, 1, Duration::from_secs(3))), [0, 2_000_000]);
        assert!(all(Schedule::new(0.5, 0, 1, Duration::ZERO)).is_empty());
    }

    #[test]
    fn threads_share_the_schedule() {
        let (rate, end) = (3_000_000.0, Duration::from_millis(1));
        let mut merged: Vec<u64> =
            (0..7).flat_map(|thread| all(Schedule::new(rate, thread, 7, end))).collect();
        merged.sort_unstable();
        assert_eq!(merged, all(Schedule::new(rate, 0, 1, end)));
        assert_eq!(merged.len(), 3000);
    }

    /// Asking when the next is due does not move it: a late generator catches up.
    #[test]
    fn what_was_not_sent_stays_due() {
        let mut schedule = Schedule::new(10.0, 0, 1, Duration::from_secs(1));
        assert_eq!(schedule.due(), schedule.due());
        schedule.advance();
        assert_eq!(schedule.due(), Some(Duration::from_millis(100)));
    }
}
