//! [`Plan`] and what can be done with it: store every key, read every key back, measure.

#![expect(clippy::disallowed_methods, reason = "a measurement begins and ends by the clock")]

use super::bench_error::BenchError;
use super::connection::{Connection, Target};
use super::cpu::cpu_of_process;
use super::outcome::{Outcome, Tally};
use super::schedule::Schedule;
use super::worker::{Pacing, Shared, Task, Times, Worker};
use super::workload::{Operations, Requests, Verb, Verify, Workload};
use super::zipf::KEY_COUNT_MAX;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

/// How often progress is told.
const TELL: Duration = Duration::from_millis(200);
/// Bytes of values on a connection at a time while keys are stored, about.
const LOAD_BYTES: usize = 256 << 10;
/// Operations on a connection at a time while keys are stored or read back, at most.
const LOAD_PIPELINE: usize = 64;

/// When operations begin.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Pace {
    /// As soon as earlier ones are answered: each connection sends as many as the pipeline holds
    /// and waits for all replies.
    Closed,
    /// So many per second, whatever the server does; latency counts from when an operation was due.
    PerSecond(f64),
}

/// What is measured, and how.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The server.
    pub target: Target,
    /// What is done.
    pub workload: Workload,
    /// When operations begin.
    pub pace: Pace,
    /// Operations on a connection at a time, at most.
    pub pipeline: usize,
    /// Number of connections.
    pub connections: usize,
    /// Threads among which they are divided.
    pub threads: usize,
    /// Time before the measurement, under the same load.
    pub warm_up: Duration,
    /// Measured time.
    pub duration: Duration,
    /// The server's process, to learn its CPU time.
    pub server_pid: Option<u32>,
}

/// How far a run is.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    /// Since the start.
    pub elapsed: Duration,
    /// Replies so far.
    pub replies: u64,
}

/// Who is told how far a run is.
pub type Tell<'a> = &'a mut dyn FnMut(Progress);

impl Plan {
    /// Stores every key once, whatever the pace.
    ///
    /// # Errors
    /// If the server fails, or answers errors.
    pub fn load(&self, tell: Tell<'_>) -> Result<Outcome, BenchError> {
        let outcome = self.each(Verb::Set, tell)?;
        if outcome.counts.operations < self.workload.key_count {
            let text = outcome.first_error.clone().unwrap_or_default();
            let (keys, errors) = (self.workload.key_count, outcome.counts.errors);
            return Err(BenchError::Load { keys, errors, text });
        }
        Ok(outcome)
    }

    /// Reads every key once, whatever the pace, and compares its value.
    ///
    /// # Errors
    /// If the server fails, or one value is not what [`Self::load`] stored.
    pub fn read_back(&self, tell: Tell<'_>) -> Result<Outcome, BenchError> {
        let workload = Workload { verify: Verify::Values, ..self.workload };
        let outcome = Self { workload, ..self.clone() }.each(Verb::Get, tell)?;
        let counts = outcome.counts;
        let sound = counts.operations - counts.misses.min(counts.operations) - counts.mismatches;
        match self.workload.key_count - sound {
            0 => Ok(outcome),
            count => Err(BenchError::Mismatch { count }),
        }
    }

    fn each(&self, verb: Verb, tell: Tell<'_>) -> Result<Outcome, BenchError> {
        self.check()?;
        let operations = Operations::each(&self.workload, verb, self.threads);
        let pipeline = (LOAD_BYTES / self.workload.value_len.max(1)).clamp(1, LOAD_PIPELINE);
        let run = Self { pipeline, pace: Pace::Closed, ..self.clone() };
        run.run(operations, None, tell)
    }

    /// Warms up and measures.
    ///
    /// # Errors
    /// If the server fails. Error replies are counted in what comes back.
    pub fn measure(&self, tell: Tell<'_>) -> Result<Outcome, BenchError> {
        self.check()?;
        let operations = Operations::drawn(&self.workload, self.threads);
        self.run(operations, Some(self.duration), tell)
    }

    fn check(&self) -> Result<(), BenchError> {
        let wrong = |what| Err(BenchError::Flags { what });
        if self.threads == 0 || self.connections < self.threads {
            return wrong("each of --threads needs one of --connections");
        }
        if self.pipeline == 0 {
            return wrong("--pipeline is at least 1");
        }
        if !(1..=KEY_COUNT_MAX).contains(&self.workload.key_count) {
            return wrong("--keys is at least 1 and below 2^32");
        }
        match self.pace {
            Pace::PerSecond(rate) if rate <= 0.0 || !rate.is_finite() => {
                wrong("--rate is a number above 0")
            }
            _ => Ok(()),
        }
    }

    fn run(
        &self,
        operations: Vec<Operations>,
        duration: Option<Duration>,
        tell: Tell<'_>,
    ) -> Result<Outcome, BenchError> {
        let requests = Requests::new(&self.workload);
        let shared = Shared::default();
        let workers = self.workers(operations, &requests, &shared)?;
        let start = Instant::now();
        let begin = duration.map_or(start, |_| start + self.warm_up);
        let times = Times { start, begin, end: duration.map(|duration| begin + duration) };
        let (tallies, server_cpu) = thread::scope(|scope| {
            let (sender, ended) = mpsc::channel();
            let mut threads = Vec::new();
            for worker in workers {
                let (sender, shared) = (sender.clone(), &shared);
                threads.push(scope.spawn(move || work(worker, times, shared, sender)));
            }
            drop(sender);
            let server_cpu = self.watch(times, &shared, &ended, tell);
            let join = |thread: thread::ScopedJoinHandle<'_, _>| {
                thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            };
            let tallies: Vec<Result<Tally, BenchError>> = threads.into_iter().map(join).collect();
            (tallies, server_cpu)
        });
        let measured = duration.unwrap_or_default();
        let mut outcome = Outcome::default();
        for tally in tallies {
            outcome.add(&tally?, measured);
        }
        outcome.server_cpu = server_cpu?;
        Ok(outcome)
    }

    /// Connects everybody.
    fn workers<'a>(
        &self,
        operations: Vec<Operations>,
        requests: &'a Requests,
        shared: &'a Shared,
    ) -> Result<Vec<Worker<'a>>, BenchError> {
        let mut workers = Vec::new();
        for (thread, operations) in operations.into_iter().enumerate() {
            let own = (thread..self.connections).step_by(self.threads);
            let connections: Result<Vec<_>, _> =
                own.map(|_| Connection::open(&self.target, requests.tail())).collect();
            let (pacing, pipeline) = (self.pacing(thread), self.pipeline);
            let task = Task { requests, operations, pacing, pipeline, shared };
            workers.push(Worker::new(task, connections?)?);
        }
        Ok(workers)
    }

    fn pacing(&self, thread: usize) -> Pacing {
        match self.pace {
            Pace::Closed => Pacing::Closed,
            Pace::PerSecond(rate) => {
                let end = self.warm_up + self.duration;
                Pacing::Open(Schedule::new(rate, thread, self.threads, end))
            }
        }
    }

    /// Waits until all threads have ended, and reads the server's CPU time where the measured time
    /// begins and ends.
    fn watch(
        &self,
        times: Times,
        shared: &Shared,
        ended: &Receiver<()>,
        tell: Tell<'_>,
    ) -> Result<Option<Duration>, BenchError> {
        let cpu = || match self.server_pid {
            Some(pid) => cpu_of_process(pid).map(Some).ok_or(BenchError::Process { pid }),
            None => Ok(None),
        };
        let (mut first, mut last) = (None, None);
        loop {
            let now = Instant::now();
            if now >= times.begin && first.is_none() {
                first = Some(cpu());
            }
            if times.end.is_some_and(|end| now >= end) && last.is_none() {
                last = Some(cpu());
            }
            let next = [Some(times.begin), times.end].into_iter().flatten().find(|at| *at > now);
            let wait = next.map_or(TELL, |next| (next - now).min(TELL));
            match ended.recv_timeout(wait) {
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) | Ok(()) => {}
            }
            let replies = shared.answered.load(Ordering::Relaxed);
            tell(Progress { elapsed: times.start.elapsed(), replies });
        }
        let last = last.unwrap_or_else(cpu)?;
        let first = first.transpose()?.flatten();
        Ok(first.zip(last).map(|(first, last)| last.saturating_sub(first)))
    }
}

/// What a thread does; others stop if it fails. Dropping `ended` tells that it is over.
fn work(
    worker: Worker<'_>,
    times: Times,
    shared: &Shared,
    ended: Sender<()>,
) -> Result<Tally, BenchError> {
    let tally = worker.run(times);
    if tally.is_err() {
        shared.stop.store(true, Ordering::Relaxed);
    }
    drop(ended);
    tally
}
