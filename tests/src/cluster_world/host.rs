//! [`Host`]: a machine with a disk, and a node while it runs.

use std::collections::VecDeque;

use bytes::Bytes;
use fastrand::Rng;
use kadring::cluster::message::{MemberEntry, Phase, Standing};
use kadring::cluster::mutation::Mutation;
use kadring::cluster::node::{ClusterNode, Start};
use kadring::cluster::placement::responsibility;
use kadring::cluster::state::ClusterState;
use kadring::cluster::store::{
    ModelStore, RecordStore, StoreAnswer, StoreRequest, Ticket, execute,
};
use kadring::kademlia::NodeId;
use storage::Now;

use super::swarm::Mix;

/// A machine.
pub(super) struct Host {
    pub(super) id: NodeId,
    pub(super) core: Option<ClusterNode>,
    /// How often it was started.
    pub(super) boot: u32,
    pub(super) skew_ms: u64,
    pub(super) is_leaving: bool,
    pub(super) is_dead: bool,
    is_new: bool,
    current: ModelStore,
    pub(super) durable: ModelStore,
    /// What `durable` lacks.
    pending: VecDeque<Pending>,
}

struct Pending {
    due_ns: u64,
    ticket: Ticket,
    request: StoreRequest,
    answer: StoreAnswer,
    now_ms: u64,
}

impl Host {
    fn new(id: NodeId, skew_ms: u64) -> Self {
        Self {
            id,
            core: None,
            boot: 0,
            skew_ms,
            is_leaving: false,
            is_dead: false,
            is_new: true,
            current: ModelStore::default(),
            durable: ModelStore::default(),
            pending: VecDeque::new(),
        }
    }

    /// Hosts that have been a cluster for long.
    pub(super) fn cluster(mix: &Mix, mutation: Mutation, rng: &mut Rng) -> Vec<Self> {
        let ids: Vec<NodeId> = (0..mix.hosts).map(|_| NodeId::random(rng)).collect();
        let entry = |node: &NodeId| {
            let (phase, standing) = (Phase::Full, Standing::Alive);
            MemberEntry { node: *node, address: Bytes::new(), incarnation: 1, phase, standing }
        };
        let members: Vec<MemberEntry> = ids.iter().map(entry).collect();
        let with_state = |id: &NodeId| {
            let mut host = Self::new(*id, mix.skew(rng));
            let held = responsibility(id, &ids, mix.replicas);
            let contact_ms = super::START_MS;
            let state = ClusterState { contact_ms, held, members: members.clone() };
            host.durable.save(state.encode());
            host.is_new = false;
            let now = Now { monotonic_ns: 0, clock_ms: super::START_MS + host.skew_ms };
            host.start(mix, mutation, rng.u64(..), now);
            host
        };
        ids.iter().map(with_state).collect()
    }

    /// A host that has never run.
    pub(super) fn joiner(mix: &Mix, rng: &mut Rng) -> Self {
        Self::new(NodeId::random(rng), mix.skew(rng))
    }

    /// The node, if it is still the same process.
    pub(super) fn running(&mut self, boot: u32) -> Option<&mut ClusterNode> {
        self.core.as_mut().filter(|_| self.boot == boot)
    }

    /// Whether it has left for good.
    pub(super) fn has_left(&self) -> bool {
        let state = ClusterState::decode(&self.durable.state()).unwrap_or_default();
        let own = state.members.iter().find(|entry| entry.node == self.id);
        own.is_some_and(|entry| {
            entry.phase == Phase::Leaving && entry.standing == Standing::Removed
        })
    }

    pub(super) fn start(&mut self, mix: &Mix, mutation: Mutation, seed: u64, now: Now) {
        self.boot += 1;
        self.current = self.durable.clone();
        let versions = self.current.records().map(|record| record.version);
        let version_max = versions.max().unwrap_or_default();
        let bytes = self.current.state();
        let state = ClusterState::decode(&bytes).ok();
        assert!(state.is_some() || bytes.is_empty(), "the state is what was saved");
        self.core = Some(ClusterNode::new(
            Start {
                node: self.id,
                address: Bytes::new(),
                settings: mix.settings(),
                is_founder: false,
                state,
                version_max,
                seed,
                mutation,
            },
            now,
        ));
    }

    /// Stops; if it crashes, only what is durable stays, and perhaps a little more.
    pub(super) fn stop(&mut self, is_crash: bool, rng: &mut Rng) {
        let count = self.pending.len();
        let kept = if is_crash { rng.usize(..=count) } else { count };
        for pending in self.pending.drain(..).take(kept) {
            execute(&mut self.durable, pending.request, pending.now_ms);
        }
        self.pending.clear();
        self.core = None;
    }

    /// Does what the store is asked; says when that is durable.
    pub(super) fn execute(
        &mut self,
        due_ns: u64,
        ticket: Ticket,
        request: StoreRequest,
        now_ms: u64,
    ) -> u64 {
        let last = self.pending.back().map_or(0, |pending| pending.due_ns);
        let due_ns = due_ns.max(last);
        let answer = execute(&mut self.current, request.clone(), now_ms);
        self.pending.push_back(Pending { due_ns, ticket, request, answer, now_ms });
        due_ns
    }

    /// What was asked by that ticket, and all before it, is durable now.
    pub(super) fn make_durable(&mut self, ticket: Ticket) -> StoreAnswer {
        let Some(pending) = self.pending.pop_front() else { panic!("{ticket:?} was not asked") };
        assert_eq!(pending.ticket, ticket, "the log is in order");
        execute(&mut self.durable, pending.request, pending.now_ms);
        pending.answer
    }
}
