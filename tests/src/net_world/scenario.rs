//! Scenarios: what happens to a network of [`KademliaNode`]s while lookups are measured.

use std::collections::BTreeMap;

use fastrand::Rng;
use kadring::io::Monotonic;
use kadring::kademlia::node::{LookupKind, NodeLimits};
use kadring::kademlia::{KademliaNode, NodeEvent, NodeId, NodeOptions, TableLimits};
use kadring::krpc::message::code;
use kadring::krpc::private::{PROTOCOL, Private};

use super::measure::{Expectation, Measurement, Trials};
use super::network::{Faults, Network};
use super::oracle::Truth;
use super::{World, WorldCounters, address, generator};

const CLUSTER: Private = Private { protocol: PROTOCOL, cluster: *b"kadring-sim-net\0" };
/// What is going on while nodes are added, as `progress` is told.
pub const GROWING: &str = "growing";
/// Lookups begin so far apart.
const LOOKUP_GAP_MS: u64 = 10;
/// A lookup that takes longer has not ended.
const LOOKUP_MAX_MS: u64 = 60_000;
const MINUTE_MS: u64 = 60_000;

/// What happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scenario {
    /// From 1 node to n, measured on the way.
    Growth,
    /// All nodes start within 100 ms, each with some others as seeds.
    Simultaneous,
    /// Growth, then a share of the nodes is killed at once.
    Kill,
    /// Nodes come and go, most after a short time, some after a long one.
    Churn,
    /// The network falls into two halves, and is one again 10 minutes later.
    Partition,
}

impl Scenario {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::Growth, Self::Simultaneous, Self::Kill, Self::Churn, Self::Partition];

    /// Its name on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Growth => "growth",
            Self::Simultaneous => "simultaneous",
            Self::Kill => "kill",
            Self::Churn => "churn",
            Self::Partition => "partition",
        }
    }
}

/// Sizes of a run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Plan {
    /// Everything comes from it.
    pub seed: u64,
    /// Nodes.
    pub nodes: usize,
    /// Nodes per bucket, and nodes that a lookup finds.
    pub k: usize,
    /// Lookups of each measurement.
    pub lookups: usize,
    /// Share of nodes that are killed.
    pub dead: f64,
    /// What goes wrong in the network.
    pub faults: Faults,
}

impl Plan {
    /// The usual sizes.
    #[must_use]
    pub fn new(seed: u64, nodes: usize) -> Self {
        Self { seed, nodes, k: 20, lookups: 1000, dead: 0.1, faults: Faults::USUAL }
    }
}

/// What a run has come to.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// Which.
    pub scenario: Scenario,
    /// With what.
    pub plan: Plan,
    /// In the order of time.
    pub measurements: Vec<Measurement>,
    /// Datagrams, and their hash.
    pub counters: WorldCounters,
    /// Nodes known to a node, on average, in the end.
    pub table_len: f64,
}

/// What nodes have told.
#[derive(Debug, Default)]
struct Recorder {
    done: Vec<(usize, kadring::kademlia::node::LookupOutcome)>,
    ready: usize,
}

impl Recorder {
    fn observe(&mut self, host: &mut KademliaNode, node: usize, event: NodeEvent) {
        match event {
            NodeEvent::Ready => self.ready += 1,
            NodeEvent::LookupDone(outcome) => self.done.push((node, outcome)),
            NodeEvent::Query { asker, .. } => {
                host.respond_error(&asker, code::METHOD_UNKNOWN, "method unknown");
            }
            _ => {}
        }
    }
}

/// A node goes or comes back.
#[derive(Clone, Debug)]
enum Change {
    Leave(usize),
    Return(usize, Option<Vec<u8>>),
}

struct Run<'a> {
    plan: Plan,
    rng: Rng,
    world: World<KademliaNode>,
    ids: Vec<NodeId>,
    living: Vec<usize>,
    trials: Trials,
    recorder: Recorder,
    changes: BTreeMap<(Monotonic, u64), Change>,
    changed: u64,
    measurements: Vec<Measurement>,
    progress: &'a mut dyn FnMut(&str, usize),
}

/// Runs a scenario. `progress` is told what is going on and how many nodes live.
#[must_use]
pub fn run(scenario: Scenario, plan: Plan, progress: &mut dyn FnMut(&str, usize)) -> Outcome {
    let network = Network::new(generator(plan.seed, 0), plan.faults);
    let mut run = Run {
        plan,
        rng: generator(plan.seed, 1),
        world: World::new(network),
        ids: Vec::new(),
        living: Vec::new(),
        trials: Trials::default(),
        recorder: Recorder::default(),
        changes: BTreeMap::new(),
        changed: 0,
        measurements: Vec::new(),
        progress,
    };
    match scenario {
        Scenario::Growth => run.grow(true),
        Scenario::Simultaneous => run.start_all(),
        Scenario::Kill => run.kill_some(),
        Scenario::Churn => run.churn(),
        Scenario::Partition => run.part(),
    }
    let known = run.world.alive().map(|(_, node)| node.table().len()).sum::<usize>();
    Outcome {
        scenario,
        plan,
        counters: run.world.counters(),
        table_len: known as f64 / run.living.len().max(1) as f64,
        measurements: run.measurements,
    }
}

impl Run<'_> {
    fn grow(&mut self, is_measured: bool) {
        let mut size = 10;
        let step = (self.plan.nodes / 20).max(1);
        while self.living.len() < self.plan.nodes {
            if self.living.len().is_multiple_of(step) {
                (self.progress)(GROWING, self.living.len());
            }
            let seeds = self.some_living(3);
            self.spawn(&seeds);
            // The larger it is the faster it grows: by a twentieth each second.
            let per_second = (self.living.len() / 20).clamp(1, 100) as u64;
            self.advance(1000 / per_second);
            if is_measured && self.living.len() == size && size < self.plan.nodes {
                self.advance(20_000);
                self.measure(&format!("{size} nodes"), 1.0);
                size *= 10;
            }
        }
        (self.progress)(GROWING, self.living.len());
        self.advance(MINUTE_MS);
        self.measure("grown", 1.0);
    }

    fn start_all(&mut self) {
        let places: Vec<usize> = (0..self.plan.nodes).map(|_| self.place()).collect();
        let gap_ns = 100_000_000 / self.plan.nodes.max(1) as u64;
        for place in places {
            let mut seeds: Vec<usize> = (0..4).map(|_| self.rng.usize(..self.plan.nodes)).collect();
            seeds.retain(|seed| *seed != place);
            self.start(place, &seeds);
            let end = Monotonic(self.world.now().0 + gap_ns);
            self.advance_to(end);
        }
        self.advance(10_000);
        self.measure("10 s", 0.0);
        self.advance(20_000);
        self.measure("40 s", 0.0);
        self.advance(MINUTE_MS);
        self.measure("2 min", 1.0);
    }

    fn kill_some(&mut self) {
        self.grow(false);
        let count = (self.living.len() as f64 * self.plan.dead).round() as usize;
        for _ in 0..count {
            let node = self.living[self.rng.usize(..self.living.len())];
            self.kill(node);
        }
        self.measure("at once", 1.0);
        self.advance(MINUTE_MS);
        self.measure("1 min later", 1.0);
        self.advance(10 * MINUTE_MS);
        self.measure("11 min later", 1.0);
    }

    fn churn(&mut self) {
        self.grow(false);
        for node in self.living.clone() {
            self.plan_leave(node);
        }
        for minutes in [5, 10, 15, 20, 25, 30] {
            self.advance(4 * MINUTE_MS);
            self.measure(&format!("{minutes} min of churn"), 0.9);
        }
        self.changes.clear();
        self.advance(5 * MINUTE_MS);
        self.measure("churn over", 1.0);
    }

    fn part(&mut self) {
        self.grow(false);
        for node in self.living.clone() {
            self.world.network.set_side(node, u8::from(self.rng.bool()));
        }
        self.measure("cut", 0.0);
        self.advance(10 * MINUTE_MS);
        self.measure("cut for 10 min", 1.0);
        for node in self.living.clone() {
            self.world.network.set_side(node, 0);
        }
        self.measure("healed", 0.0);
        self.advance(2 * MINUTE_MS);
        self.measure("2 min later", 0.0);
        self.advance(8 * MINUTE_MS);
        self.measure("10 min later", 1.0);
    }

    /// Begins lookups by nodes drawn at random, waits for them, compares.
    fn measure(&mut self, name: &str, must: f64) {
        (self.progress)(name, self.living.len());
        let started = self.world.now();
        let mut truth: BTreeMap<u8, Truth> = BTreeMap::new();
        let mut known_change = u64::MAX;
        for _ in 0..self.plan.lookups {
            self.advance(LOOKUP_GAP_MS);
            let asker = self.living[self.rng.usize(..self.living.len())];
            let target = NodeId::random(&mut self.rng);
            if known_change != self.changed {
                truth.clear();
                known_change = self.changed;
            }
            let side = self.world.network.side(asker);
            let (world, ids) = (&self.world, &self.ids);
            let truth = truth.entry(side).or_insert_with(|| {
                let same = self.living.iter().filter(|node| world.network.side(**node) == side);
                Truth::new(same.map(|node| ids[*node]).collect())
            });
            let closest = truth.closest(&target, self.plan.k + 12, &self.ids[asker]);
            let recorder = &mut self.recorder;
            let lookup = self.world.with(
                asker,
                &mut |host, _, node, event| recorder.observe(host, node, event),
                |host, now| host.lookup(now, target, LookupKind::Nodes),
            );
            if let Some(Ok(lookup)) = lookup {
                self.trials.begin(asker, lookup, Expectation { closest });
            }
            self.collect();
        }
        let end = self.world.now().plus_millis(LOOKUP_MAX_MS);
        while self.trials.open() > 0 && self.world.now() < end {
            self.advance(100);
        }
        let results = self.trials.take();
        let mut measured = Measurement::new(name, started, self.living.len(), results);
        measured.must = must;
        self.measurements.push(measured);
    }

    /// Compares the lookups that have ended.
    fn collect(&mut self) {
        for (node, outcome) in std::mem::take(&mut self.recorder.done) {
            let world = &self.world;
            // The id of a place can change: who lives is asked by id.
            let lives = |id: &NodeId| {
                let place = self.ids.iter().position(|known| known == id);
                place.is_some_and(|place| world.host(place).is_some())
            };
            self.trials.end(node, &outcome, self.plan.k, lives);
        }
    }

    fn advance(&mut self, ms: u64) {
        let end = self.world.now().plus_millis(ms);
        self.advance_to(end);
    }

    fn advance_to(&mut self, end: Monotonic) {
        while let Some(entry) = self.changes.first_entry()
            && entry.key().0 <= end
        {
            let (time, _) = *entry.key();
            let change = entry.remove();
            self.run_world(time);
            self.change(change);
        }
        self.run_world(end);
        self.collect();
    }

    fn run_world(&mut self, end: Monotonic) {
        let recorder = &mut self.recorder;
        let mut observe =
            |host: &mut KademliaNode, _, node, event| recorder.observe(host, node, event);
        self.world.run_until(end, &mut observe);
    }

    fn change(&mut self, change: Change) {
        match change {
            Change::Leave(node) => {
                let saved = self.world.host(node).map(KademliaNode::save);
                self.kill(node);
                // Half of them come back as who they were, the others as somebody new.
                let saved = saved.filter(|_| self.rng.bool());
                let gap_ms = -(1.0 - self.rng.f64()).ln() * 5.0 * MINUTE_MS as f64;
                self.plan_change(gap_ms as u64, Change::Return(node, saved));
            }
            Change::Return(node, saved) => {
                if saved.is_none() {
                    self.ids[node] = NodeId::random(&mut self.rng);
                }
                let seeds = self.some_living(3);
                self.start(node, &seeds);
                if let Some(saved) = saved {
                    let recorder = &mut self.recorder;
                    let restored = self.world.with(
                        node,
                        &mut |host, _, node, event| recorder.observe(host, node, event),
                        |host, now| host.restore(now, &saved),
                    );
                    assert!(matches!(restored, Some(Ok(_))), "{restored:?}");
                }
                self.plan_leave(node);
            }
        }
    }

    /// Pareto: half of the sessions are shorter than 9 minutes, one in 40 is longer than 100.
    fn plan_leave(&mut self, node: usize) {
        let session_ms = 5.0 * MINUTE_MS as f64 * (1.0 - self.rng.f64()).powf(-1.0 / 1.2);
        self.plan_change(session_ms as u64, Change::Leave(node));
    }

    fn plan_change(&mut self, ms: u64, change: Change) {
        self.changed += 1;
        self.changes.insert((self.world.now().plus_millis(ms), self.changed), change);
    }

    fn place(&mut self) -> usize {
        let place = self.world.add_place();
        self.ids.push(NodeId::random(&mut self.rng));
        place
    }

    fn spawn(&mut self, seeds: &[usize]) {
        let place = self.place();
        self.start(place, seeds);
    }

    fn start(&mut self, place: usize, seeds: &[usize]) {
        let seeds = seeds.iter().map(|seed| address(*seed)).collect();
        let table = TableLimits { k: self.plan.k, ..TableLimits::PRIVATE };
        let options = NodeOptions {
            limits: NodeLimits::of(table),
            ..NodeOptions::private(self.ids[place], CLUSTER, seeds)
        };
        self.changed += 1;
        let rng = generator(self.rng.u64(..), place as u64);
        let node = KademliaNode::new(self.world.now(), options, rng);
        self.living.push(place);
        let recorder = &mut self.recorder;
        let mut observe =
            |host: &mut KademliaNode, _, node, event| recorder.observe(host, node, event);
        self.world.start(place, node, &mut observe);
    }

    fn kill(&mut self, node: usize) {
        self.changed += 1;
        self.world.kill(node);
        self.living.retain(|living| *living != node);
        self.trials.forget(node);
    }

    fn some_living(&mut self, count: usize) -> Vec<usize> {
        let count = count.min(self.living.len());
        (0..count).map(|_| self.living[self.rng.usize(..self.living.len())]).collect()
    }
}
