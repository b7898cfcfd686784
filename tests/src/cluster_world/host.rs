//! [`Host`]: a machine with a disk, and a node while it runs.

use bytes::Bytes;
use fastrand::Rng;
use kadring::cluster::message::{MemberEntry, Phase, Standing};
use kadring::cluster::mutation::Mutation;
use kadring::cluster::node::{ClusterNode, Start};
use kadring::cluster::placement::responsibility;
use kadring::cluster::state::ClusterState;
use kadring::kademlia::NodeId;
use storage::{LogClock, Now};

use super::START_MS;
use super::engine::EngineStore;
use super::plan::Engine;
use super::store::{HostStore, Stop};
use super::swarm::Mix;

const MS: u64 = 1_000_000;

/// A machine.
#[derive(Debug)]
pub(super) struct Host {
    pub(super) id: NodeId,
    pub(super) core: Option<ClusterNode>,
    /// How often it was started.
    pub(super) boot: u32,
    pub(super) skew_ms: u64,
    pub(super) is_founder: bool,
    /// Hosts that it finds the cluster by.
    pub(super) seeds: Vec<usize>,
    /// Those of them that it had no link to since it was started.
    pub(super) seeds_left: Vec<usize>,
    pub(super) is_leaving: bool,
    pub(super) is_dead: bool,
    pub(super) store: HostStore,
    clock: LogClock,
    /// The state that was there when it was started last.
    started_with: ClusterState,
}

impl Host {
    pub(super) fn new(mix: &Mix, engine: Engine, rng: &mut Rng) -> Self {
        let id = NodeId::random(rng);
        let store = match engine {
            Engine::Model => HostStore::Model(Box::default()),
            Engine::Real { shards } => {
                HostStore::Engine(Box::new(EngineStore::new(id.0, shards, rng)))
            }
        };
        Self {
            id,
            core: None,
            boot: 0,
            skew_ms: mix.skew(rng),
            is_founder: false,
            seeds: Vec::new(),
            seeds_left: Vec::new(),
            is_leaving: false,
            is_dead: false,
            store,
            clock: LogClock::new(0, START_MS, 0),
            started_with: ClusterState::default(),
        }
    }

    /// Makes hosts that have been a cluster for long.
    pub(super) fn settle(hosts: &mut [Self], replicas: usize) -> Result<(), String> {
        let ids: Vec<NodeId> = hosts.iter().map(|host| host.id).collect();
        let entry = |node: &NodeId| {
            let (phase, standing) = (Phase::Full, Standing::Alive);
            MemberEntry { node: *node, address: Bytes::new(), incarnation: 1, phase, standing }
        };
        let members: Vec<MemberEntry> = ids.iter().map(entry).collect();
        for host in hosts {
            let held = responsibility(&host.id, &ids, replicas);
            let state = ClusterState { contact_ms: START_MS, held, members: members.clone() };
            let now = Now { monotonic_ns: 0, clock_ms: START_MS };
            host.store.plant(now, state.encode())?;
        }
        Ok(())
    }

    /// The time on its own clock.
    pub(super) fn now(&mut self, now_ns: u64) -> Now {
        self.clock.read(START_MS + now_ns / MS + self.skew_ms, now_ns).now
    }

    /// The node, if it is still the same process.
    pub(super) fn running(&mut self, boot: u32) -> Option<&mut ClusterNode> {
        self.core.as_mut().filter(|_| self.boot == boot)
    }

    pub(super) fn is_up(&self) -> bool {
        self.core.is_some()
    }

    /// Whether it has left for good, as far as its disk knows.
    pub(super) fn has_left(&self) -> bool {
        let own = self.started_with.members.iter().find(|entry| entry.node == self.id);
        own.is_some_and(|entry| {
            entry.phase == Phase::Leaving && entry.standing == Standing::Removed
        })
    }

    /// Starts a node on what its disk has.
    pub(super) fn start(
        &mut self,
        mix: &Mix,
        mutation: Mutation,
        seed: u64,
        now_ns: u64,
    ) -> Result<(), String> {
        self.boot += 1;
        let wall_ms = START_MS + now_ns / MS + self.skew_ms;
        let opened = self.store.open(Now { monotonic_ns: now_ns, clock_ms: wall_ms })?;
        self.clock = LogClock::new(opened.log_ms, wall_ms, now_ns);
        let mut state = ClusterState::decode(&opened.state).ok();
        if state.is_none() && !opened.state.is_empty() {
            return Err("the state is not what was saved".to_owned());
        }
        self.started_with = state.clone().unwrap_or_default();
        if self.has_left() {
            self.store.stop(Stop::Kill, &mut Rng::with_seed(seed));
            return Ok(());
        }
        if let Some(state) = &mut state
            && opened.is_suspect
        {
            state.on_loss();
        }
        let now = self.now(now_ns);
        self.core = Some(ClusterNode::new(
            Start {
                node: self.id,
                address: Bytes::new(),
                settings: mix.settings(),
                is_founder: self.is_founder,
                state,
                version_max: opened.version_max,
                seed,
                mutation,
            },
            now,
        ));
        Ok(())
    }

    /// Stops, if it is up.
    pub(super) fn stop(&mut self, stop: Stop, rng: &mut Rng) {
        if self.core.take().is_some() {
            self.store.stop(stop, rng);
        }
    }
}
