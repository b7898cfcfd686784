//! [`Measurement`]: how a number of lookups went, compared with the truth.

use std::collections::BTreeMap;

use kadring::io::Monotonic;
use kadring::kademlia::NodeId;
use kadring::kademlia::node::{LookupId, LookupOutcome};

const SECOND: f64 = 1e9;
/// Copies of a value by default: so many of the closest nodes matter most.
pub const REPLICAS: usize = 3;

/// A lookup under way, and what it should find.
#[derive(Clone, Debug)]
pub struct Expectation {
    /// The closest nodes when it began, more than k.
    pub closest: Vec<NodeId>,
}

/// Lookups under way and over.
#[derive(Debug, Default)]
pub struct Trials {
    open: BTreeMap<(usize, LookupId), Expectation>,
    results: Vec<Trial>,
}

/// A lookup that has ended.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Trial {
    hops: u16,
    latency_ns: u64,
    queries: u32,
    failures: u32,
    slow: u32,
    has_first: bool,
    has_replicas: bool,
    /// Share of the true k closest that it has found.
    share: f64,
}

impl Trials {
    /// Takes note of a lookup.
    pub fn begin(&mut self, node: usize, lookup: LookupId, expectation: Expectation) {
        self.open.insert((node, lookup), expectation);
    }

    /// Counts those that have not ended.
    #[must_use]
    pub fn open(&self) -> usize {
        self.open.len()
    }

    /// A node has died: its lookups end without a result that counts.
    pub fn forget(&mut self, node: usize) {
        self.open.retain(|(asker, _), _| *asker != node);
    }

    /// Compares what a lookup has found with those of its truth that still live.
    pub fn end(
        &mut self,
        node: usize,
        outcome: &LookupOutcome,
        k: usize,
        lives: impl Fn(&NodeId) -> bool,
    ) {
        let Some(expectation) = self.open.remove(&(node, outcome.lookup)) else { return };
        let truth: Vec<NodeId> =
            expectation.closest.into_iter().filter(|id| lives(id)).take(k).collect();
        let has = |id: &NodeId| outcome.closest.iter().any(|contact| contact.id == *id);
        let found = truth.iter().filter(|id| has(id)).count();
        self.results.push(Trial {
            hops: outcome.hops,
            latency_ns: outcome.ended.0 - outcome.started.0,
            queries: outcome.counters.queries,
            failures: outcome.counters.failures,
            slow: outcome.counters.slow,
            has_first: truth.first().is_none_or(has),
            has_replicas: truth.iter().take(REPLICAS).all(has),
            share: if truth.is_empty() { 1.0 } else { found as f64 / truth.len() as f64 },
        });
    }

    /// Takes the results; lookups that have not ended count as failed.
    pub fn take(&mut self) -> (Vec<Trial>, usize) {
        let open = self.open.len();
        self.open.clear();
        (std::mem::take(&mut self.results), open)
    }
}

/// What came of lookups at one time of a scenario.
#[derive(Clone, Debug, PartialEq)]
pub struct Measurement {
    /// When in the scenario.
    pub name: String,
    /// The same in seconds of virtual time.
    pub at_s: f64,
    /// Nodes that live.
    pub alive: usize,
    /// Lookups begun.
    pub lookups: usize,
    /// Lookups that never ended.
    pub unended: usize,
    /// Share that found the closest node.
    pub first: f64,
    /// Share that found the 3 closest.
    pub replicas: f64,
    /// Share that found all k closest.
    pub all: f64,
    /// Mean share of the k closest found.
    pub share: f64,
    /// Mean and greatest number of hops.
    pub hops: (f64, u16),
    /// Milliseconds: p50, p99.
    pub latency_ms: (f64, f64),
    /// Nodes asked, on average.
    pub queries: f64,
    /// Nodes that did not answer, on average.
    pub failures: f64,
    /// Nodes that were slow, on average.
    pub slow: f64,
    /// What [`first`](Self::first) must be at least.
    pub must: f64,
}

impl Measurement {
    /// Sums results up.
    #[must_use]
    pub fn new(name: &str, now: Monotonic, alive: usize, results: (Vec<Trial>, usize)) -> Self {
        let (trials, unended) = results;
        let lookups = trials.len() + unended;
        let mean = |of: &dyn Fn(&Trial) -> f64| {
            trials.iter().map(of).sum::<f64>() / (trials.len().max(1) as f64)
        };
        let share = |of: &dyn Fn(&Trial) -> bool| {
            trials.iter().filter(|trial| of(trial)).count() as f64 / (lookups.max(1) as f64)
        };
        let mut latencies: Vec<u64> = trials.iter().map(|trial| trial.latency_ns).collect();
        latencies.sort_unstable();
        let quantile = |of: f64| {
            let index = (latencies.len() as f64 * of) as usize;
            latencies.get(index).or_else(|| latencies.last()).map_or(0.0, |ns| *ns as f64 / 1e6)
        };
        Self {
            name: name.to_owned(),
            at_s: now.0 as f64 / SECOND,
            alive,
            lookups,
            unended,
            first: share(&|trial| trial.has_first),
            replicas: share(&|trial| trial.has_replicas),
            all: share(&|trial| trial.share >= 1.0),
            share: mean(&|trial| trial.share),
            hops: (
                mean(&|trial| f64::from(trial.hops)),
                trials.iter().map(|trial| trial.hops).max().unwrap_or(0),
            ),
            latency_ms: (quantile(0.5), quantile(0.99)),
            queries: mean(&|trial| f64::from(trial.queries)),
            failures: mean(&|trial| f64::from(trial.failures)),
            slow: mean(&|trial| f64::from(trial.slow)),
            must: 0.0,
        }
    }

    /// log2(n) / 3: the goal for the mean number of hops.
    #[must_use]
    pub fn hops_goal(&self) -> f64 {
        (self.alive.max(1) as f64).log2() / 3.0
    }

    /// Tells whether all lookups ended, and enough found the closest node.
    #[must_use]
    pub fn passes(&self) -> bool {
        self.unended == 0 && self.lookups > 0 && self.first >= self.must
    }
}
