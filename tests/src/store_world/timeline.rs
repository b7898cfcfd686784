//! [`Timeline`]: virtual time, with an operator who sets the wall clock now and then.

use fastrand::Rng;
use storage::{LogClock, Now};

use super::adapter::StoreUnderTest;
use super::swarm::WallClock;
use crate::tally::{Occurrence, Tally};

const START_MS: u64 = 1_700_000_000_000;
const MS: u64 = 1_000_000;
const HOUR_MS: u64 = 3_600_000;

/// Both clocks of the machine and what the store is told of them.
#[derive(Clone, Debug)]
pub(super) struct Timeline {
    wall: WallClock,
    pub(super) wall_ms: u64,
    monotonic_ns: u64,
    log_clock: LogClock,
    pub(super) now: Now,
    /// The latest moment that any store was told: what had expired by then may stay so.
    pub(super) seen_max_ms: u64,
    /// How often the clock was set.
    pub(super) tally: Tally,
}

impl Timeline {
    pub(super) fn new(wall: WallClock) -> Self {
        Self {
            wall,
            wall_ms: START_MS,
            monotonic_ns: 0,
            log_clock: StoreUnderTest::clock(0, START_MS, 0),
            now: Now { monotonic_ns: 0, clock_ms: START_MS },
            seen_max_ms: START_MS,
            tally: Tally::default(),
        }
    }

    /// A store was opened whose log says that it is `log_ms`.
    pub(super) fn restart(&mut self, log_ms: u64) {
        self.log_clock = StoreUnderTest::clock(log_ms, self.wall_ms, self.monotonic_ns);
        self.advance(0);
    }

    /// Time passes while there is no store.
    pub(super) fn pause(&mut self, rng: &mut Rng) {
        self.wall_ms += rng.u64(..2_000);
        self.step(rng, 4);
    }

    /// Lets some time pass, or none.
    pub(super) fn pass(&mut self, rng: &mut Rng) {
        let elapsed_ms = match rng.u8(..10) {
            0..6 => 0,
            6 | 7 => rng.u64(..5),
            8 => rng.u64(..80),
            _ => rng.u64(..1500),
        };
        self.step(rng, 40);
        self.advance(elapsed_ms);
    }

    /// Lets that much time pass.
    pub(super) fn advance(&mut self, elapsed_ms: u64) {
        self.wall_ms += elapsed_ms;
        self.monotonic_ns += elapsed_ms * MS;
        self.now = self.log_clock.read(self.wall_ms, self.monotonic_ns).now;
        self.seen_max_ms = self.seen_max_ms.max(self.now.clock_ms);
    }

    /// Sets the wall clock, back or forward, once in about `rarity` calls.
    fn step(&mut self, rng: &mut Rng, rarity: u8) {
        let range_ms = match self.wall {
            WallClock::Steady => return,
            WallClock::Steps => 5_000,
            WallClock::Leaps => 30 * HOUR_MS,
        };
        match rng.u8(..rarity) {
            0 => {
                self.tally.note(Occurrence::ClockBack);
                self.wall_ms = self.wall_ms.saturating_sub(rng.u64(..range_ms));
            }
            1 => {
                self.tally.note(Occurrence::ClockForward);
                self.wall_ms += rng.u64(..range_ms);
            }
            _ => {}
        }
    }
}
