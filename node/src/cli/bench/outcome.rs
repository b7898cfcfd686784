//! [`Outcome`]: what a measurement amounts to, and [`Tally`], the part of one thread.

use super::latencies::Latencies;
use super::workload::Verb;
use serde_json::{Value, json};
use std::time::Duration;

/// How often what happened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Operations answered in the measured time, or, in an open loop, due in it. Error replies are
    /// not among them.
    pub operations: u64,
    /// Of these, GETs of keys that are not there.
    pub misses: u64,
    /// Error replies, and replies that do not fit the command.
    pub errors: u64,
    /// Values read that are not what was stored; 0 if nobody compared.
    pub mismatches: u64,
    /// Operations of an open loop that were never answered; they count in the latencies with the
    /// time that was waited for them.
    pub unanswered: u64,
}

impl Counts {
    fn add(&mut self, other: Self) {
        self.operations += other.operations;
        self.misses += other.misses;
        self.errors += other.errors;
        self.mismatches += other.mismatches;
        self.unanswered += other.unanswered;
    }
}

/// What one thread has seen.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) gets: Latencies,
    pub(super) sets: Latencies,
    pub(super) send_lag: Latencies,
    pub(super) counts: Counts,
    pub(super) first_error: Option<String>,
    pub(super) by_second: Vec<u64>,
    /// From the start of the measured time to the last answer that counts.
    pub(super) last_answer: Duration,
    /// CPU time of the thread in the measured time.
    pub(super) cpu: Duration,
}

/// Operations that were answered alike.
#[derive(Clone, Copy, Debug)]
pub(super) struct Answered {
    pub(super) verb: Verb,
    pub(super) latency: Duration,
    /// Since the start of the measured time.
    pub(super) at: Duration,
    pub(super) count: u64,
}

impl Tally {
    pub(super) fn answered(&mut self, answered: Answered) {
        let Answered { verb, latency, at, count } = answered;
        let latencies = if verb == Verb::Get { &mut self.gets } else { &mut self.sets };
        latencies.record(latency, count);
        self.counts.operations += count;
        self.last_answer = self.last_answer.max(at);
        let second = at.as_secs() as usize;
        if self.by_second.len() <= second {
            self.by_second.resize(second + 1, 0);
        }
        self.by_second[second] += count;
    }

    pub(super) fn unanswered(&mut self, verb: Verb, waited: Duration) {
        let latencies = if verb == Verb::Get { &mut self.gets } else { &mut self.sets };
        latencies.record(waited, 1);
        self.counts.unanswered += 1;
    }

    pub(super) fn error(&mut self, text: impl FnOnce() -> String) {
        self.counts.errors += 1;
        self.first_error.get_or_insert_with(text);
    }
}

/// What all threads have measured.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Of GETs, from when they were sent or, in an open loop, due.
    pub gets: Latencies,
    /// Of SETs.
    pub sets: Latencies,
    /// In an open loop: from when an operation was due to when it was given to a connection. It is
    /// part of the latency; it grows if all connections are taken, or the generator is too slow.
    pub send_lag: Latencies,
    /// How often what happened.
    pub counts: Counts,
    /// Text of an error reply.
    pub first_error: Option<String>,
    /// Operations answered in each second.
    pub by_second: Vec<u64>,
    /// The measured time, or up to the last answer if that came later.
    pub elapsed: Duration,
    /// CPU time of the server in the measured time, if a process was named.
    pub server_cpu: Option<Duration>,
    /// Share of its time that the busiest thread of the generator was on a processor: near 1 the
    /// generator is the limit.
    pub generator_busy: f64,
}

impl Outcome {
    /// Adds a thread's part of a measured time; of none if the run ended with its operations.
    pub(super) fn add(&mut self, tally: &Tally, measured: Duration) {
        self.gets.add(&tally.gets);
        self.sets.add(&tally.sets);
        self.send_lag.add(&tally.send_lag);
        self.counts.add(tally.counts);
        if self.first_error.is_none() {
            self.first_error.clone_from(&tally.first_error);
        }
        let seconds = self.by_second.len().max(tally.by_second.len());
        self.by_second.resize(seconds, 0);
        for (sum, count) in self.by_second.iter_mut().zip(&tally.by_second) {
            *sum += count;
        }
        self.elapsed = self.elapsed.max(tally.last_answer).max(measured);
        let time = if measured.is_zero() { tally.last_answer } else { measured };
        let busy = tally.cpu.as_secs_f64() / time.as_secs_f64().max(1e-9);
        self.generator_busy = self.generator_busy.max(busy);
    }

    /// Operations per second.
    #[must_use]
    pub fn rate(&self) -> f64 {
        self.counts.operations as f64 / self.elapsed.as_secs_f64().max(1e-9)
    }

    /// Microseconds of the server's CPU per operation.
    #[must_use]
    pub fn server_cpu_micros(&self) -> Option<f64> {
        let cpu = self.server_cpu?.as_secs_f64();
        Some(cpu * 1e6 / self.counts.operations.max(1) as f64)
    }

    /// Latencies of all operations.
    #[must_use]
    pub fn latencies(&self) -> Latencies {
        let mut all = self.gets.clone();
        all.add(&self.sets);
        all
    }

    /// All of it, for a file.
    #[must_use]
    pub fn json(&self) -> Value {
        let of = |latencies: &Latencies| {
            let mut value = latencies.json();
            value["count"] = latencies.count().into();
            let points = latencies.curve();
            value["curve"] = points.iter().map(|(one_of, us)| json!([one_of, us])).collect();
            value
        };
        let Counts { operations, misses, errors, mismatches, unanswered } = self.counts;
        json!({
            "seconds": self.elapsed.as_secs_f64(),
            "operations": operations,
            "ops_per_s": self.rate(),
            "ops_by_second": self.by_second,
            "gets": of(&self.gets),
            "sets": of(&self.sets),
            "all": of(&self.latencies()),
            "send_lag": self.send_lag.json(),
            "misses": misses,
            "errors": errors,
            "first_error": self.first_error,
            "mismatches": mismatches,
            "unanswered": unanswered,
            "server_cpu_us_per_op": self.server_cpu_micros(),
            "generator_busy": self.generator_busy,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_no_operation_and_what_was_not_answered_shows_in_the_tail() {
        let mut tally = Tally::default();
        let (latency, at) = (Duration::from_micros(50), Duration::from_millis(2500));
        tally.answered(Answered { verb: Verb::Get, latency, at, count: 7 });
        tally.error(|| "first".to_owned());
        tally.error(|| "second".to_owned());
        tally.unanswered(Verb::Set, Duration::from_secs(2));
        let mut outcome = Outcome::default();
        outcome.add(&tally, Duration::from_secs(2));
        outcome.add(&Tally::default(), Duration::from_secs(2));
        let counts = Counts { operations: 7, errors: 2, unanswered: 1, ..Counts::default() };
        assert_eq!(outcome.counts, counts);
        assert_eq!(outcome.first_error.as_deref(), Some("first"));
        assert_eq!(outcome.by_second, [0, 0, 7]);
        // The last answer came after the measured time.
        assert!((outcome.rate() - 7.0 / 2.5).abs() < 1e-9);
        assert!(outcome.latencies().micros(100.0) >= 2e6);
        assert_eq!(outcome.json()["errors"], 2);
        assert!(outcome.server_cpu_micros().is_none());
    }
}
