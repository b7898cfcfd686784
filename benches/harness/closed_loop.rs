//! [`ClosedLoop`]: logical writers and readers of one store, each of which does its next operation
//! as soon as its last has ended. They all live on the store's thread.

use crate::Latencies;
use crate::Turns;
use crate::disk_bytes::DiskCounters;
use crate::figures::{Measuring, Sample, cpu_of_self};
use crate::raw_writes::FrameCounts;
use crate::store_rig::{Got, StoreRig, Wait};
use crate::workload::{Choice, Values};
use std::collections::{HashMap, VecDeque};
use std::time::Instant;
use wal::Lsn;

/// Writers that a turn hears of: as many as the node's loop does.
const WRITERS_PER_TURN_MAX: usize = 64;

/// Writers, readers and what they have seen since the last [`ClosedLoop::forget`].
#[derive(Debug)]
pub struct ClosedLoop {
    writers_idle: usize,
    readers_idle: usize,
    /// Whether the last put has to be tried again.
    refused: bool,
    writing: VecDeque<(Lsn, Instant)>,
    reading: HashMap<u64, (u64, Instant)>,
    keys: Choice,
    values: Values,
    random: fastrand::Rng,
    /// Latencies from put to durable.
    pub puts: Latencies,
    /// Latencies from get to value.
    pub gets: Latencies,
}

impl ClosedLoop {
    /// Makes them idle. All keys must be there if there are readers.
    #[must_use]
    pub fn new(writers: usize, readers: usize, keys: Choice, values: Values) -> Self {
        Self {
            writers_idle: writers,
            readers_idle: readers,
            refused: false,
            writing: VecDeque::new(),
            reading: HashMap::new(),
            keys,
            values,
            random: fastrand::Rng::with_seed(3),
            puts: Latencies::default(),
            gets: Latencies::default(),
        }
    }

    /// Changes how many there are.
    ///
    /// # Panics
    /// If one of them is waiting.
    pub fn employ(&mut self, writers: usize, readers: usize) {
        assert!(self.writing.is_empty() && self.reading.is_empty(), "all of them are idle");
        (self.writers_idle, self.readers_idle) = (writers, readers);
    }

    /// Forgets what was measured so far.
    pub fn forget(&mut self) {
        self.puts.clear();
        self.gets.clear();
    }

    /// Works until `end`.
    pub fn run_until(&mut self, rig: &mut StoreRig, end: Instant) {
        let mut now = Instant::now();
        while now < end {
            self.start(rig, now);
            now = self.turn(rig);
        }
    }

    /// Waits until all are idle.
    pub fn drain(&mut self, rig: &mut StoreRig) {
        while !self.writing.is_empty() || !self.reading.is_empty() {
            self.turn(rig);
        }
    }

    /// Measures once: warms up, measures, lets all come to rest.
    #[must_use]
    pub fn measure(
        mut self,
        rig: &mut StoreRig,
        turns: Turns,
        counters: &DiskCounters,
    ) -> (Sample, FrameCounts) {
        self.run_until(rig, Instant::now() + turns.warm_up);
        self.forget();
        let (before, frames) = (counters.read(), rig.frames());
        let measuring = Measuring::start(cpu_of_self());
        self.run_until(rig, Instant::now() + turns.duration);
        let mut latencies = std::mem::take(&mut self.puts);
        latencies.add(&self.gets);
        let count = latencies.count();
        let sample = measuring.finish(cpu_of_self(), count, latencies);
        let bytes = counters.read().since(before);
        let frames = rig.frames().since(frames);
        self.drain(rig);
        (sample.with_disk(bytes, count * self.values.user_bytes()), frames)
    }

    fn start(&mut self, rig: &mut StoreRig, now: Instant) {
        let rest = self.writers_idle.saturating_sub(WRITERS_PER_TURN_MAX);
        while self.writers_idle > rest {
            let key = self.keys.draw(&mut self.random);
            self.refused = false;
            let Some(lsn) = rig.put(key, self.values.of(key)) else {
                self.refused = true;
                break;
            };
            self.writing.push_back((lsn, now));
            self.writers_idle -= 1;
        }
        // A value in memory leaves its reader idle until the next turn, or this would never end.
        for _ in 0..self.readers_idle {
            let key = self.keys.draw(&mut self.random);
            match rig.get(key) {
                Got::Missing => panic!("key {key} is missing"),
                Got::Found(value) => {
                    assert!(self.values.is_of(key, &value), "key {key} has its own value");
                    self.gets.record(now.elapsed(), 1);
                }
                Got::Pending(read) => {
                    self.reading.insert(read, (key, now));
                    self.readers_idle -= 1;
                }
            }
        }
    }

    fn turn(&mut self, rig: &mut StoreRig) -> Instant {
        let in_memory_only = self.writing.is_empty() && self.reading.is_empty();
        let more_to_write = self.writers_idle > 0 && !self.refused;
        rig.turn(if in_memory_only || more_to_write { Wait::No } else { Wait::Completion });
        let now = Instant::now();
        let durable = rig.durable_lsn();
        while let Some((_, since)) = self.writing.pop_front_if(|(lsn, _)| *lsn <= durable) {
            self.puts.record(now - since, 1);
            self.writers_idle += 1;
        }
        for (read, value) in rig.take_reads() {
            let (key, since) = self.reading.remove(&read).expect("each read ends once");
            let value = value.unwrap_or_else(|| panic!("key {key} is missing"));
            assert!(self.values.is_of(key, &value), "key {key} has its own value");
            self.gets.record(now - since, 1);
            self.readers_idle += 1;
        }
        now
    }
}
