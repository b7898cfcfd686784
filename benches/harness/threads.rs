//! Measures what several threads do: they work on their own, one clock starts and stops them.

use crate::Latencies;
use crate::Turns;
use crate::disk_bytes::DiskCounters;
use crate::figures::{Measuring, Sample, cpu_of_self};
use std::sync::atomic::{AtomicU8, Ordering};
use std::thread;
use std::time::{Duration, Instant};

const WARMING_UP: u8 = 0;
const MEASURING: u8 = 1;
const STOPPING: u8 = 2;

/// How far a measurement has come.
#[derive(Debug)]
pub(crate) struct Phase(AtomicU8);

impl Phase {
    /// Does the operation over and over until the end; returns the latencies of those that began
    /// and ended while it was measured.
    pub(crate) fn repeat(&self, mut operation: impl FnMut()) -> Latencies {
        let mut latencies = Latencies::default();
        loop {
            let phase = self.0.load(Ordering::Relaxed);
            if phase == STOPPING {
                return latencies;
            }
            let started = Instant::now();
            operation();
            if phase == MEASURING && self.0.load(Ordering::Relaxed) == MEASURING {
                latencies.record(started.elapsed(), 1);
            }
        }
    }
}

/// Lets that many threads work once; an operation is about `user_bytes` of keys and values.
pub(crate) fn measure(
    threads: usize,
    turns: Turns,
    counters: &DiskCounters,
    user_bytes: u64,
    work: impl Fn(usize, &Phase) -> Latencies + Sync,
) -> Sample {
    let (phase, work) = (Phase(AtomicU8::new(WARMING_UP)), &work);
    thread::scope(|scope| {
        let phase = &phase;
        let start = |index| scope.spawn(move || work(index, phase));
        let threads: Vec<_> = (0..threads).map(start).collect();
        pause(turns.warm_up);
        let before = counters.read();
        phase.0.store(MEASURING, Ordering::Relaxed);
        let (measuring, started) = (Measuring::start(cpu_of_self()), Instant::now());
        pause(turns.duration);
        phase.0.store(STOPPING, Ordering::Relaxed);
        let seconds = started.elapsed().as_secs_f64();
        let mut sample = measuring.finish(cpu_of_self(), 1, Latencies::default());
        let bytes = counters.read().since(before);
        // The time is taken; how much was done is known when the threads have come back.
        for thread in threads {
            sample.latencies.add(&thread.join().expect("a thread works"));
        }
        let count = sample.latencies.count();
        sample.rate = count as f64 / seconds;
        sample.cpu_micros /= (count as f64).max(1.0);
        sample.with_disk(bytes, count * user_bytes)
    })
}

fn pause(duration: Duration) {
    let end = Instant::now() + duration;
    while let Some(left) = end.checked_duration_since(Instant::now()).filter(|d| !d.is_zero()) {
        thread::park_timeout(left);
    }
}
