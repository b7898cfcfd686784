//! [`ClusterNode`]: one node of a cluster, all parts together.
//!
//! Contract: one input (`handle_*`, a command), then `poll_send`, `poll_store` and `poll_event`
//! until they are empty, then `deadline_ns` for the next [`ClusterNode::handle_time`]. Store
//! requests take effect in order and are answered once durable; a link that breaks is told by
//! [`ClusterNode::handle_unreachable`], and so are messages that could not be sent.

mod background;
mod cleaning;
mod repair;
mod serve;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use fastrand::Rng;
use storage::Now;
use wal::record::{Key, Namespace, Version};

use super::clock::HybridLogicalClock;
use super::coordinator::{
    Candidates, CommandId, Consistency, Outcome, Owner, Queries, Rank, Read, Scan, Step, Write,
    WriteCommand,
};
use super::membership::Membership;
use super::message::{
    Content, ENTRIES_MAX, Found, MemberEntry, PeerMessage, Phase, PutOutcome, PutReason, Record,
    RequestId, Standing,
};
use super::mutation::Mutation;
use super::outbox::Outbox;
use super::placement::{self, responsibility};
use super::prefix::PrefixSet;
use super::settings::ClusterSettings;
use super::state::ClusterState;
use super::store::{StoreAnswer, StoreRequest, Ticket};
use super::view::View;
use crate::kademlia::NodeId;
use background::Background;
pub use background::BackgroundWork;
use serve::Serving;

/// Commands under way; further ones are refused.
const COMMANDS_MAX: usize = 65_536;
/// Queries whose commands are over are looked for so often, in ns.
const SWEEP_EVERY_NS: u64 = 1_000_000_000;
/// A step of the clock ahead that is not noticed, in ms.
const CLOCK_STEP_MS: u64 = 1_000;
/// The state is saved at least so many times within the grace.
const SAVES_PER_GRACE: u64 = 32;
/// What follows from the list of members is found out anew, and saved, no more often than once in
/// so long for each member.
const REPLACE_PER_MEMBER_MS: u64 = 5;
/// Nor less often than that.
const REPLACE_AFTER_MAX_MS: u64 = 1_000;

/// How a node starts.
#[derive(Clone, Debug)]
pub struct Start {
    /// Its id.
    pub node: NodeId,
    /// Where others reach it.
    pub address: Bytes,
    /// Settings of the cluster.
    pub settings: ClusterSettings,
    /// Whether it founds the cluster, if it has no state: it was given no seeds.
    pub is_founder: bool,
    /// What was saved last, if anything.
    pub state: Option<ClusterState>,
    /// The highest version in its log.
    pub version_max: Version,
    /// Starts the random choices.
    pub seed: u64,
    /// A defect, in tests.
    pub mutation: Mutation,
}

/// What is told to the owner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClusterEvent {
    /// A command is decided.
    Decided {
        /// Which.
        command: CommandId,
        /// How.
        outcome: Outcome,
    },
    /// A write that was acknowledged has more copies.
    Copied {
        /// Which.
        command: CommandId,
        /// Copies in its replica set.
        copies: usize,
        /// Whether there will be no more.
        is_last: bool,
    },
    /// Everything was handed over: the node may stop.
    Left,
}

/// Counters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClusterCounters {
    /// Records refused because their version was too far ahead.
    pub too_far_ahead: u64,
    /// Records that repair, hand-off and forwarding sent.
    pub records_sent: u64,
    /// Bytes of their keys and values.
    pub bytes_sent: u64,
    /// Records that repair and hand-off fetched.
    pub records_fetched: u64,
    /// Bytes of their keys and values.
    pub bytes_fetched: u64,
    /// Comparisons of ranges that have ended.
    pub exchanges: u64,
    /// Of these, those that could not compare or move something.
    pub exchanges_failed: u64,
    /// Copies given up after all holders had confirmed.
    pub copies_discarded: u64,
    /// Ranges that became complete.
    pub ranges_filled: u64,
    /// How often everything was discarded after too long an absence.
    pub discarded_all: u64,
}

/// Acknowledged writes that are still on their way to some of their nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReplicationLag {
    /// How many.
    pub writes: usize,
    /// For how long the oldest one.
    pub oldest_ns: u64,
}

/// One node.
#[derive(Debug)]
pub struct ClusterNode {
    own: NodeId,
    settings: ClusterSettings,
    members: Membership,
    view: View,
    clock: HybridLogicalClock,
    queries: Queries,
    out: Outbox,
    /// In order of their deadlines: all have the same time.
    commands: BTreeMap<CommandId, Command>,
    last_command: u64,
    events: VecDeque<ClusterEvent>,
    serving: Serving,
    background: Background,
    /// Keys whose replica set this node is in, by its list of members.
    mine: PrefixSet,
    placing: Placing,
    held: PrefixSet,
    contact_ms: u64,
    save_at_ns: u64,
    sweep_at_ns: u64,
    /// How far ahead of the monotonic one its clock may be: others have taken what it wrote then.
    proven_ms: Option<u64>,
    counters: ClusterCounters,
    mutation: Mutation,
}

/// Whether what follows from the list of members is as new as the list. Many changes at once, as
/// when many nodes start, are worked off together.
#[derive(Clone, Copy, Debug, Default)]
struct Placing {
    /// Keys have other replica sets, or copies other sources.
    is_outdated: bool,
    is_unsaved: bool,
    /// When it may be found out anew.
    due_ns: u64,
}

impl Placing {
    fn is_due(&self) -> bool {
        self.is_outdated || self.is_unsaved
    }
}

#[derive(Debug)]
enum Command {
    Write(Write),
    Read(Read),
    Scan(Scan),
}

impl Command {
    fn deadline_ns(&self) -> u64 {
        match self {
            Self::Write(write) => write.deadline_ns,
            Self::Read(read) => read.deadline_ns,
            Self::Scan(scan) => scan.deadline_ns,
        }
    }
}

impl ClusterNode {
    /// Starts a node.
    #[must_use]
    pub fn new(start: Start, now: Now) -> Self {
        let mut rng = Rng::with_seed(start.seed);
        let out = Outbox::new(start.node, &mut rng);
        let nonce = rng.u32(..).to_be_bytes();
        let is_new = start.state.is_none();
        let is_founder = is_new && start.is_founder;
        let state = start.state.unwrap_or_default();
        let known = state.members.iter().find(|entry| entry.node == start.node);
        let first = if is_founder { Phase::Full } else { Phase::Joining };
        let entry = MemberEntry {
            node: start.node,
            address: start.address,
            incarnation: known.map_or(1, |entry| entry.incarnation.saturating_add(1)),
            phase: known.map_or(first, |entry| entry.phase),
            standing: Standing::Alive,
        };
        let members = Membership::new(entry, state.members, start.settings, rng, now);
        let mut node = Self {
            own: start.node,
            settings: start.settings,
            view: View::of(&members),
            members,
            clock: HybridLogicalClock::new(&start.node.0, start.version_max).with_nonce(nonce),
            queries: Queries::default(),
            out,
            commands: BTreeMap::new(),
            last_command: 0,
            events: VecDeque::new(),
            serving: Serving::default(),
            background: Background::default(),
            mine: PrefixSet::default(),
            placing: Placing::default(),
            held: if is_founder { PrefixSet::all() } else { state.held },
            contact_ms: if is_new { now.clock_ms } else { state.contact_ms },
            save_at_ns: now.monotonic_ns,
            sweep_at_ns: now.monotonic_ns,
            proven_ms: None,
            counters: ClusterCounters::default(),
            mutation: start.mutation,
        };
        node.replace();
        node.replace_background();
        // What it holds outside of its ranges may have become old while it was away.
        node.held = node.held.intersection(&node.mine);
        node.keep_contact(now);
        node.settle(now);
        node
    }

    /// Its id.
    #[must_use]
    pub fn id(&self) -> NodeId {
        self.own
    }

    /// Its members.
    #[must_use]
    pub fn members(&self) -> &Membership {
        &self.members
    }

    /// Counters.
    #[must_use]
    pub fn counters(&self) -> ClusterCounters {
        self.counters
    }

    /// How many members are between this node and a key's replica set; nothing if it is in the set.
    #[must_use]
    pub fn nodes_between(&self, key: &Key) -> Option<u32> {
        let target = NodeId::from(*key);
        let own = self.own.distance(&target);
        let closer = self.members.known().filter(|entry| entry.node.distance(&target) < own);
        let between = closer.count().checked_sub(self.settings.replicas)?;
        u32::try_from(between).ok()
    }

    /// Writes of its clients that are acknowledged and not on all of their nodes.
    #[must_use]
    pub fn replication_lag(&self, now_ns: u64) -> ReplicationLag {
        let begun = self.commands.values().filter_map(|command| match command {
            Command::Write(write) if write.is_told => {
                Some(write.deadline_ns.saturating_sub(self.settings.command_for_ms * 1_000_000))
            }
            _ => None,
        });
        begun.fold(ReplicationLag::default(), |lag, begun_ns| ReplicationLag {
            writes: lag.writes + 1,
            oldest_ns: lag.oldest_ns.max(now_ns.saturating_sub(begun_ns)),
        })
    }

    /// Keys that it should hold and does not hold completely.
    #[must_use]
    pub fn pending(&self) -> PrefixSet {
        self.mine.minus(&self.held)
    }

    /// Whether it still knows nobody, or not all of whom a full member knows: with fewer it would
    /// place keys elsewhere. Commands answer LOADING.
    #[must_use]
    pub fn is_loading(&self) -> bool {
        let is_alone = self.members.known().count() < 2;
        self.members.own().phase == Phase::Joining && (is_alone || !self.members.knows_all())
    }

    /// Things under way: commands of clients, queries to others, queries of others, exchanges.
    #[must_use]
    pub fn under_way(&self) -> usize {
        let queries = self.queries.0.len() + self.serving.waiting_count();
        self.commands.len() + queries + self.background.exchanges.len()
    }

    /// A link to a node was made, by seed, by Kademlia or by the node itself.
    pub fn add_contact(&mut self, now: Now, node: NodeId, address: Bytes) {
        self.members.add(node, address, &mut self.out);
        self.settle(now);
    }

    /// Writes or deletes. The outcome comes as an event.
    pub fn write(&mut self, now: Now, command: WriteCommand) -> CommandId {
        let key = Key::of(&command.user_key);
        let id = self.take_command();
        if self.is_loading() || self.commands.len() >= COMMANDS_MAX {
            self.decided(id, Outcome::Loading);
            return id;
        }
        let candidates = Candidates::new(&key, &self.view, &self.settings);
        let set = candidates.set();
        let up = set.iter().filter(|node| self.members.is_up(node)).count();
        if up <= self.settings.replicas_to_write_min && self.settings.replicas_to_write_min > 0 {
            self.decided(id, Outcome::NoReplicas);
            return id;
        }
        let is_proven = self.proven_ms.is_some_and(|proven_ms| ahead_ms(now) <= proven_ms);
        let is_value = command.value.is_some();
        let record = Record {
            namespace: Namespace::PLAIN,
            key,
            user_key: if is_value { command.user_key } else { Bytes::new() },
            version: self.next_version(now),
            expiry_ms: if is_value { command.expiry_ms } else { 0 },
            content: command.value.map_or(Content::Tombstone, Content::Value),
        };
        let mut step = step(&mut self.out, &mut self.queries, &self.settings, now);
        let mut write = Write::new(id, record, candidates, &step);
        if !is_proven {
            write.hold_back(self.own);
        }
        write.begin(&mut step);
        self.commands.insert(id, Command::Write(write));
        self.settle(now);
        id
    }

    /// Reads. The outcome comes as an event.
    pub fn read(&mut self, now: Now, user_key: &[u8], consistency: Consistency) -> CommandId {
        let key = Key::of(user_key);
        let id = self.take_command();
        if self.is_loading() || self.commands.len() >= COMMANDS_MAX {
            self.decided(id, Outcome::Loading);
            return id;
        }
        let candidates = Candidates::new(&key, &self.view, &self.settings);
        let is_ready = self.is_ready(&key);
        let mut step = step(&mut self.out, &mut self.queries, &self.settings, now);
        let mut read = Read::new(id, key, consistency, candidates, &step);
        read.begin(|node| rank(&self.members, is_ready, node), &mut step);
        self.commands.insert(id, Command::Read(read));
        self.settle(now);
        id
    }

    /// Lists keys of the whole cluster, in order of their ids: a page from a key on, of about so
    /// many of each of at most so many parts of the key space. The outcome comes as an event.
    pub fn list(&mut self, now: Now, from: Key, count: usize, regions: usize) -> CommandId {
        let id = self.take_command();
        if self.is_loading() || self.commands.len() >= COMMANDS_MAX {
            self.decided(id, Outcome::Loading);
            return id;
        }
        let mut parts = Vec::new();
        let mut next = Some(from);
        while let Some(from) = next.filter(|_| parts.len() < regions.max(1)) {
            let region = placement::region_of(&from, &self.view.placed, self.settings.replicas);
            let mut candidates = Candidates::new(&from, &self.view, &self.settings);
            if self.mutation == Mutation::ListsFromOne {
                candidates.ready_need = 1;
            }
            parts.push((region, candidates));
            next = region.end();
        }
        let count = u16::try_from(count.clamp(1, ENTRIES_MAX)).unwrap_or(u16::MAX);
        let mut step = step(&mut self.out, &mut self.queries, &self.settings, now);
        let mut scan = Scan::new(id, (from, count), parts, &step);
        scan.begin(&mut step);
        self.commands.insert(id, Command::Scan(scan));
        self.settle(now);
        id
    }

    fn next_version(&mut self, now: Now) -> Version {
        if self.mutation == Mutation::VersionGoesBack {
            return HybridLogicalClock::new(&self.own.0, Version::default()).next(now.clock_ms);
        }
        self.clock.next(now.clock_ms)
    }

    fn take_command(&mut self) -> CommandId {
        self.last_command += 1;
        CommandId(self.last_command)
    }

    fn decided(&mut self, command: CommandId, outcome: Outcome) {
        self.events.push_back(ClusterEvent::Decided { command, outcome });
    }

    /// Begins to leave: what it holds goes to others, then comes [`ClusterEvent::Left`].
    pub fn leave(&mut self, now: Now) {
        self.members.set_phase(Phase::Leaving);
        self.settle(now);
    }

    /// Removes a member that will not come back.
    pub fn forget(&mut self, now: Now, node: NodeId) {
        self.members.forget(node);
        self.settle(now);
    }

    /// A message came over a link.
    pub fn handle_message(&mut self, now: Now, from: NodeId, message: PeerMessage) {
        self.members.on_heard(&from);
        self.dispatch(now, from, message);
        self.settle(now);
    }

    /// A link broke, or could not be made: queries to that node will not be answered.
    pub fn handle_unreachable(&mut self, now: Now, node: NodeId) {
        self.members.on_unreachable(node);
        let to_it = |(_, to): &(Owner, NodeId)| *to == node;
        let lost: Vec<RequestId> =
            self.queries.0.iter().filter(|(_, query)| to_it(query)).map(|(id, _)| *id).collect();
        for request in lost {
            self.on_answer(now, node, request, None);
        }
        self.settle(now);
    }

    /// The time has come, or something else happened long enough after it.
    pub fn handle_time(&mut self, now: Now) {
        self.members.handle_time(now, &mut self.out);
        while let Some(first) = self.commands.first_entry()
            && first.get().deadline_ns() <= now.monotonic_ns
        {
            let (id, command) = first.remove_entry();
            match command {
                Command::Write(write) if write.is_told => self.copied(id, &write, true),
                Command::Write(write) => self.decided(id, write.give_up()),
                Command::Read(read) => self.decided(id, read.give_up()),
                Command::Scan(mut scan) => self.decided(id, scan.give_up()),
            }
        }
        self.sweep(now);
        self.keep_contact(now);
        if self.save_at_ns <= now.monotonic_ns {
            self.save(now);
        }
        self.handle_background_time(now);
        self.settle(now);
    }

    /// When [`ClusterNode::handle_time`] has something to do.
    #[must_use]
    pub fn deadline_ns(&self) -> u64 {
        let first = self.commands.first_key_value();
        let command = first.map_or(u64::MAX, |(_, command)| command.deadline_ns());
        let placing = self.placing.is_due().then_some(self.placing.due_ns);
        let others = self.members.deadline_ns().min(self.save_at_ns);
        let others = placing.into_iter().fold(others, u64::min);
        command.min(others).min(self.background_deadline_ns())
    }

    /// The store has done what it was asked.
    pub fn handle_store(&mut self, now: Now, ticket: Ticket, answer: StoreAnswer) {
        let answer = self.on_exchange_stored(now, ticket, answer);
        let answer = answer.and_then(|answer| self.on_cleaning_stored(now, ticket, answer));
        if let Some(answer) = answer {
            self.serve_answer(now, ticket, answer);
        }
        self.settle(now);
    }

    /// The next message to send. Nothing comes back to the node itself.
    pub fn poll_send(&mut self) -> Option<(NodeId, PeerMessage)> {
        let (to, message) = self.out.sends.pop_front()?;
        if let PeerMessage::Put { reason: PutReason::Repair, record, .. } = &message {
            self.counters.records_sent += 1;
            self.counters.bytes_sent += record.len() as u64;
        }
        Some((to, message))
    }

    /// The next thing to do for the store.
    pub fn poll_store(&mut self) -> Option<(Ticket, StoreRequest)> {
        self.out.store.pop_front()
    }

    /// The next event.
    pub fn poll_event(&mut self) -> Option<ClusterEvent> {
        self.events.pop_front()
    }

    /// Ends a step: messages to the node itself are handled, and changes of members take effect.
    fn settle(&mut self, now: Now) {
        loop {
            if self.members.take_removal() {
                // Others went on without it.
                self.begin_anew();
            }
            if self.members.take_change() {
                let before = std::mem::replace(&mut self.view, View::of(&self.members));
                self.placing.is_unsaved = true;
                self.placing.is_outdated |= self.view.places_otherwise(&before);
            }
            if self.placing.due_ns <= now.monotonic_ns {
                self.catch_up(now);
            }
            let Some(message) = self.out.loops.pop_front() else { break };
            self.dispatch(now, self.own, message);
        }
    }

    /// Has changes of members take effect.
    fn catch_up(&mut self, now: Now) {
        if !self.placing.is_due() {
            return;
        }
        let count = self.members.entries().count() as u64;
        let pause_ms = count.saturating_mul(REPLACE_PER_MEMBER_MS).min(REPLACE_AFTER_MAX_MS);
        self.placing.due_ns = now.monotonic_ns + pause_ms * 1_000_000;
        if self.placing.is_outdated {
            self.replace();
            self.replace_background();
        }
        (self.placing.is_outdated, self.placing.is_unsaved) = (false, false);
        self.save(now);
    }

    /// Finds out anew what it should hold.
    fn replace(&mut self) {
        self.mine = responsibility(&self.own, &self.view.placed, self.settings.replicas);
    }

    fn save(&mut self, now: Now) -> Ticket {
        let every_ms = self.settings.tombstone_grace_ms / SAVES_PER_GRACE;
        self.save_at_ns = now.monotonic_ns + every_ms.max(1) * 1_000_000;
        let state = ClusterState {
            contact_ms: self.contact_ms,
            held: self.held.clone(),
            members: self.members.entries().cloned().collect(),
        };
        self.out.ask_store(StoreRequest::Save { state: state.encode() })
    }

    /// Notes whether it is in contact with most members; what was without contact for longer than
    /// tombstones stay may hold what was deleted, and begins anew.
    fn keep_contact(&mut self, now: Now) {
        let known = self.members.known().count();
        let up = self.members.known().filter(|entry| self.members.is_up(&entry.node)).count();
        if up < placement::majority(known) {
            return;
        }
        let is_alone = known == 1;
        let absent_ms = now.clock_ms.saturating_sub(self.contact_ms);
        self.contact_ms = now.clock_ms;
        if absent_ms > self.settings.tombstone_grace_ms && !is_alone {
            self.counters.discarded_all += 1;
            self.begin_anew();
            self.save(now);
            self.out.ask_store(StoreRequest::DiscardAll);
        }
    }

    /// What it holds may be old: it is to be filled again. Who leaves goes on with that, and hands
    /// over what it has.
    fn begin_anew(&mut self) {
        self.held = PrefixSet::default();
        if self.members.own().phase != Phase::Leaving {
            self.members.set_phase(Phase::Joining);
        }
    }

    /// Takes an answer to a query of ours, or that there will be none.
    fn on_answer(
        &mut self,
        now: Now,
        from: NodeId,
        request: RequestId,
        message: Option<PeerMessage>,
    ) {
        let is_its = |(_, to): &&(Owner, NodeId)| *to == from;
        let Some((owner, _)) = self.queries.0.get(&request).filter(is_its).copied() else { return };
        self.queries.0.remove(&request);
        match owner {
            Owner::Command(id, attempt) => {
                self.on_command_answer(now, from, id, attempt, message);
            }
            Owner::Exchange(id) => self.on_exchange_answer(now, id, message),
            Owner::Fill(prefix) => self.on_claimed(now, from, prefix, message),
            Owner::Cleaning => self.on_have_answer(now, from, message),
        }
    }

    fn on_command_answer(
        &mut self,
        now: Now,
        from: NodeId,
        id: CommandId,
        attempt: u32,
        message: Option<PeerMessage>,
    ) {
        let Some(command) = self.commands.get_mut(&id) else { return };
        let mut step = step(&mut self.out, &mut self.queries, &self.settings, now);
        let outcome = match command {
            Command::Write(write) => {
                let put = match message {
                    Some(PeerMessage::PutDone { outcome, .. }) => Some(outcome),
                    _ => None,
                };
                let is_taken = matches!(put, Some(PutOutcome::Applied { .. }));
                if is_taken && from != self.own {
                    self.proven_ms = Some(ahead_ms(now) + CLOCK_STEP_MS);
                }
                if let Some(stored) = write.on_answer(from, attempt, put, &mut step) {
                    self.clock.witness(stored);
                    let version = self.clock.next(now.clock_ms);
                    write.resend(version, &mut step);
                }
                if write.is_told { None } else { write.decide() }
            }
            Command::Read(read) => {
                let is_anew = match message {
                    Some(PeerMessage::PutDone { outcome, .. }) => {
                        read.on_repaired(from, attempt, Some(outcome))
                    }
                    Some(PeerMessage::Got { is_ready, found, .. }) => {
                        read.on_found(from, attempt, Some((is_ready, found)), &mut step);
                        false
                    }
                    _ => {
                        read.on_found(from, attempt, None, &mut step);
                        false
                    }
                };
                if is_anew || read.take_restart() {
                    let is_ready = self.held.contains(read.key());
                    read.begin(|node| rank(&self.members, is_ready, node), &mut step);
                }
                read.decide(&mut step)
            }
            Command::Scan(scan) => {
                scan.on_answer(from, attempt, message, &mut step);
                scan.decide()
            }
        };
        self.after_answer(id, outcome);
    }

    fn after_answer(&mut self, id: CommandId, outcome: Option<Outcome>) {
        let is_written = matches!(outcome, Some(Outcome::Written { .. }));
        let is_decided = outcome.is_some();
        if let Some(outcome) = outcome {
            self.decided(id, outcome);
        }
        let mut is_over = is_decided;
        if let Some(Command::Write(write)) = self.commands.get_mut(&id)
            && write.is_told
            && (is_written || !is_decided)
        {
            is_over = write.is_over();
            if write.take_copies().is_some() || is_over {
                let copies = write.copies();
                let (command, is_last) = (id, is_over);
                self.events.push_back(ClusterEvent::Copied { command, copies, is_last });
            }
        }
        if is_over {
            self.commands.remove(&id);
        }
    }

    fn copied(&mut self, command: CommandId, write: &Write, is_last: bool) {
        let copies = write.copies();
        self.events.push_back(ClusterEvent::Copied { command, copies, is_last });
    }

    /// Forgets queries without answer whose commands are over; looking through all of them for
    /// each command would cost more than the commands.
    fn sweep(&mut self, now: Now) {
        if now.monotonic_ns < self.sweep_at_ns {
            return;
        }
        self.sweep_at_ns = now.monotonic_ns + SWEEP_EVERY_NS;
        let commands = &self.commands;
        self.queries.0.retain(|_, (owner, _)| match owner {
            Owner::Command(id, _) => commands.contains_key(id),
            _ => true,
        });
    }
}

/// How far the clock is ahead of the monotonic one.
fn ahead_ms(now: Now) -> u64 {
    now.clock_ms.saturating_sub(now.monotonic_ns / 1_000_000)
}

/// How good a node is to ask for a value; `is_ready` says whether this node holds the key's range.
fn rank(members: &Membership, is_ready: bool, node: &NodeId) -> Rank {
    let is_own = *node == members.own().node;
    let is_joining = members.entry(node).is_none_or(|entry| entry.phase == Phase::Joining);
    match is_own {
        true if is_ready => Rank::Here,
        false if !members.is_up(node) => Rank::Silent,
        false if !is_joining => Rank::Up,
        _ => Rank::Joining,
    }
}

fn step<'a>(
    out: &'a mut Outbox,
    queries: &'a mut Queries,
    settings: &'a ClusterSettings,
    now: Now,
) -> Step<'a> {
    Step { now, out, queries, settings }
}
