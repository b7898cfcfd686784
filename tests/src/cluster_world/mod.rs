//! A cluster in one process: real cores, a map or the real engine below each, virtual time,
//! everything from one seed.
//!
//! ```text
//! plan + seed ─> Script: machines, actions ─> World: events in virtual time
//!     cores <── messages delayed, lost, doubled, overtaking, cut off
//!       └── store requests ─> HostStore ─> disk requests that end when the seed says
//! clients at any node ─> ledger judges every answer; once faults have stopped: agreement
//! ```
//!
//! Nodes crash, losing what was not durable, and start again; nodes join, leave, lose their disk or
//! die for good. Once faults have stopped everything must agree within a bounded time, every write
//! must succeed and every key be found everywhere, and nothing may be left under way.

mod actions;
mod engine;
mod host;
mod ledger;
mod network;
mod oracle;
mod plan;
pub mod report;
mod scans;
mod store;
pub mod survival;
mod swarm;
#[cfg(test)]
mod tests;
mod world;

pub use kadring::cluster::mutation::Mutation;

pub use plan::{Engine, Plan, Scenario};
use world::World;

const MS: u64 = 1_000_000;
const SECOND: u64 = 1_000 * MS;
/// The wall clock at the beginning.
const START_MS: u64 = 1_700_000_000_000;

/// What a run did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Of all events in their order, and of what the disks hold in the end.
    pub hash: u64,
    /// Messages that arrived.
    pub messages: u64,
    /// Acknowledged writes.
    pub writes: u64,
    /// Answered reads.
    pub reads: u64,
    /// Walks over all keys.
    pub scans: u64,
    /// Commands that found no majority, or a node that knew nobody.
    pub refused: u64,
    /// Crashes.
    pub crashes: u64,
    /// Cuts of the network.
    pub cuts: u64,
    /// Nodes that joined, left, lost their disk or died for good.
    pub moves: u64,
    /// Copies given up by nodes that are no longer in a replica set.
    pub discarded: u64,
    /// Keys of which more holders were lost than the promise allows.
    pub beyond: u64,
    /// Most things that one node had under way.
    pub under_way_most: u64,
    /// Virtual time after the faults until all agreed, in ms, the longest.
    pub converged_ms: u64,
}

impl Summary {
    /// Adds another run's figures.
    pub fn add(&mut self, other: &Self) {
        self.messages += other.messages;
        self.writes += other.writes;
        self.reads += other.reads;
        self.scans += other.scans;
        self.refused += other.refused;
        self.crashes += other.crashes;
        self.cuts += other.cuts;
        self.moves += other.moves;
        self.discarded += other.discarded;
        self.beyond += other.beyond;
        self.under_way_most = self.under_way_most.max(other.under_way_most);
        self.converged_ms = self.converged_ms.max(other.converged_ms);
    }
}

/// How it went in some part of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sample {
    /// When that part ended, in seconds of virtual time.
    pub at_s: f64,
    /// Nodes that were up then.
    pub up: usize,
    /// Commands that were answered.
    pub answered: usize,
    /// Commands that were refused.
    pub refused: usize,
    /// Milliseconds of the answered commands: p50, p99.
    pub latency_ms: (f64, f64),
    /// Share of the keys of which all of the replica set had the newest copy.
    pub whole: f64,
}

/// A run and how it went.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// What was run.
    pub plan: Plan,
    /// With which seed.
    pub seed: u64,
    /// What it did.
    pub summary: Summary,
    /// Over time.
    pub samples: Vec<Sample>,
}

/// Runs one seed.
///
/// # Errors
/// What went wrong.
pub fn run(seed: u64, plan: Plan) -> Result<Outcome, String> {
    let name = plan.scenario.name();
    let mut world = World::new(seed, &plan).map_err(|error| format!("{name} {seed}: {error}"))?;
    world.run().map_err(|error| {
        let error: String = error.chars().take(2_000).collect();
        let engine = match plan.engine {
            Engine::Model => String::new(),
            Engine::Real { shards } => format!(" --engine real --shards {shards}"),
        };
        format!(
            "{name}, seed {seed}, at {} ms: {error}\n{:?}\nrepeat: sim cluster --scenario {name} \
             --nodes {} --seeds 1 --from {seed}{engine}",
            world.now_ns / MS,
            world.mix,
            plan.nodes
        )
    })?;
    Ok(Outcome { plan, seed, summary: world.summary(), samples: world.samples })
}
