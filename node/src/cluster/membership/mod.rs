//! [`Membership`]: who belongs to the cluster, and who of them seems to be up.
//!
//! ```text
//! unknown ──heard of──> Alive ──no answer, also not to others──> Suspected ──suspect_for──> down
//!                         ^ │                                      │                          │
//!                         └─┼─── an answer, or a higher incarnation ──────────────────────────┤
//!                           └── leave, forget ──> Removed <── down_after, if most are up ─────┘
//! ```
//!
//! Probes go round all members in a random order; one that does not answer is probed through
//! others before it is suspected (Das, Gupta, Motivala: SWIM, 2002). News travel on probes and
//! their answers. All that is known is exchanged with one member soon after a change, then after
//! pauses that double, up to one now and then (as Levis et al.: Trickle, RFC 6206): many changes
//! at once are known to all in the time of a few such exchanges. Only a member itself raises its
//! incarnation: so it refutes what is said of it.
//!
//! Being up or down only orders whom to ask. Who was down for too long is removed by nodes that
//! see most members up: the smaller side of a cut removes nobody. Nor does a newcomer that no full
//! member has told whom it knows: most of the few that it has heard of may be few of many.
//!
//! Removal is not for ever: removed members that did not leave by themselves are greeted now and
//! then. Who lives hears of its removal and comes back, also when both had removed each other.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use fastrand::Rng;
use storage::Now;

use super::message::{MEMBERS_MAX, MemberEntry, PeerMessage, Phase, RequestId, Standing};
use super::outbox::Outbox;
use super::settings::ClusterSettings;
use crate::kademlia::NodeId;

/// News told on one probe or answer.
const NEWS_COUNT_MAX: usize = 16;
/// Probes for others under way.
const RELAYED_COUNT_MAX: usize = 256;
/// After a change all members are told to one of them so soon, times their number.
const GOSSIP_PER_MEMBER_MS: u64 = 5;
/// But no sooner.
const GOSSIP_AFTER_MIN_MS: u64 = 100;
/// One of the removed members is greeted so often, in pauses of the gossip of a cluster at rest.
const GREETING_PAUSES: u64 = 4;
/// The first incarnation of a member that speaks for itself. Below it are those that others only
/// had a link to: nobody has heard what they are.
const FIRST_INCARNATION: u64 = 1;

/// What this node thinks of a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// It answers, as far as is known.
    Up,
    /// It did not answer.
    Suspected {
        /// Since when, on the monotonic clock.
        since_ns: u64,
    },
    /// It has not answered for long.
    Down {
        /// Since when, on the monotonic clock.
        since_ns: u64,
    },
}

#[derive(Clone, Debug)]
struct Member {
    entry: MemberEntry,
    health: Health,
    /// How often this is still to be told.
    news: u32,
}

#[derive(Clone, Copy, Debug)]
struct Probe {
    target: NodeId,
    is_indirect: bool,
    deadline_ns: u64,
}

#[derive(Clone, Copy, Debug)]
struct Relay {
    asker: NodeId,
    theirs: RequestId,
    deadline_ns: u64,
}

/// Members, probes and news.
#[derive(Debug)]
pub struct Membership {
    own: NodeId,
    settings: ClusterSettings,
    members: BTreeMap<NodeId, Member>,
    probes: BTreeMap<RequestId, Probe>,
    relays: BTreeMap<RequestId, Relay>,
    round: VecDeque<NodeId>,
    /// Removed members that are greeted next.
    greetings: VecDeque<NodeId>,
    greet_at_ns: u64,
    probe_at_ns: u64,
    gossiped_at_ns: u64,
    gossip_pause_ns: u64,
    rng: Rng,
    /// Whether this node was a full member at any time, or one has told it of all that it knows.
    is_informed: bool,
    is_changed: bool,
    was_removed: bool,
}

fn ns(ms: u64) -> u64 {
    ms.saturating_mul(1_000_000)
}

impl Membership {
    /// Begins with what was known before, the node itself excepted: `own` is as it is now.
    #[must_use]
    pub fn new(
        own: MemberEntry,
        known: Vec<MemberEntry>,
        settings: ClusterSettings,
        rng: Rng,
        now: Now,
    ) -> Self {
        let node = own.node;
        let with_health =
            |entry: MemberEntry| (entry.node, Member { entry, health: Health::Up, news: 0 });
        let mut members: BTreeMap<NodeId, Member> =
            known.into_iter().take(MEMBERS_MAX).map(with_health).collect();
        let own = MemberEntry { incarnation: own.incarnation.max(FIRST_INCARNATION), ..own };
        let is_informed = own.phase != Phase::Joining;
        members.insert(node, Member { entry: own, health: Health::Up, news: 8 });
        Self {
            own: node,
            settings,
            members,
            probes: BTreeMap::new(),
            relays: BTreeMap::new(),
            round: VecDeque::new(),
            greetings: VecDeque::new(),
            greet_at_ns: now.monotonic_ns,
            probe_at_ns: now.monotonic_ns,
            gossiped_at_ns: now.monotonic_ns,
            gossip_pause_ns: 0,
            rng,
            is_informed,
            is_changed: true,
            was_removed: false,
        }
    }

    /// All entries, also of removed members.
    pub fn entries(&self) -> impl Iterator<Item = &MemberEntry> {
        self.members.values().map(|member| &member.entry)
    }

    /// Whose copies count: all members that are not removed and do not leave.
    #[must_use]
    pub fn placed(&self) -> Vec<NodeId> {
        self.known().filter(|entry| entry.phase != Phase::Leaving).map(|entry| entry.node).collect()
    }

    /// All members that are not removed.
    pub fn known(&self) -> impl Iterator<Item = &MemberEntry> {
        self.entries().filter(|entry| entry.standing != Standing::Removed)
    }

    /// How many members are known to be filled.
    #[must_use]
    pub fn full_count(&self) -> usize {
        self.known().filter(|entry| entry.phase != Phase::Joining).count()
    }

    /// Whether a member seems to be up.
    #[must_use]
    pub fn is_up(&self, node: &NodeId) -> bool {
        self.members.get(node).is_some_and(|member| {
            member.health == Health::Up && member.entry.standing != Standing::Removed
        })
    }

    /// How this node sees a member.
    #[must_use]
    pub fn health(&self, node: &NodeId) -> Option<Health> {
        self.members.get(node).map(|member| member.health)
    }

    /// The node's own entry.
    #[must_use]
    pub fn own(&self) -> &MemberEntry {
        &self.members[&self.own].entry
    }

    /// Sets how far this node has come.
    pub fn set_phase(&mut self, phase: Phase) {
        self.is_informed |= phase == Phase::Full;
        self.change_own(|entry| entry.phase = phase);
    }

    /// Removes this node: it has handed over everything.
    pub fn leave(&mut self) {
        self.change_own(|entry| entry.standing = Standing::Removed);
    }

    /// Removes a member for good, unless it comes back by itself.
    pub fn forget(&mut self, node: NodeId) {
        if node != self.own
            && let Some(mut entry) = self.entry_of(&node)
        {
            entry.standing = Standing::Removed;
            self.take(entry);
        }
    }

    /// Whether members have changed since this was last asked: placement may differ, and the
    /// state is to be saved.
    pub fn take_change(&mut self) -> bool {
        std::mem::take(&mut self.is_changed)
    }

    /// Whether others had removed this node since this was last asked: what it holds may be old.
    pub fn take_removal(&mut self) -> bool {
        std::mem::take(&mut self.was_removed)
    }

    /// Takes a node in that a link was made to or from.
    pub fn add(&mut self, node: NodeId, address: Bytes, out: &mut Outbox) {
        if node == self.own {
            return;
        }
        if !self.members.contains_key(&node) {
            let (phase, standing) = (Phase::Joining, Standing::Alive);
            self.take(MemberEntry { node, address, incarnation: 0, phase, standing });
        }
        self.tell_all(node, true, out);
    }

    /// Something came from a member.
    pub fn on_heard(&mut self, node: &NodeId) {
        if let Some(member) = self.members.get_mut(node) {
            if matches!(member.health, Health::Down { .. }) {
                tracing::info!(%node, "a member is up again");
            }
            member.health = Health::Up;
        }
    }

    /// A link to a member broke: it is probed next.
    pub fn on_unreachable(&mut self, node: NodeId) {
        // A probe that cannot be sent must not begin the next one at once.
        let is_probed = self.round.front() == Some(&node)
            || self.probes.values().any(|probe| probe.target == node);
        if node != self.own && self.is_up(&node) && !is_probed {
            self.round.push_front(node);
        }
    }

    /// Takes news in.
    pub fn merge(&mut self, now: Now, entries: Vec<MemberEntry>) {
        for entry in entries {
            if entry.node == self.own {
                self.refute(&entry);
            } else if self.is_news(&entry) {
                let is_alive = entry.standing == Standing::Alive;
                let node = entry.node;
                self.take(entry);
                if let Some(member) = self.members.get_mut(&node) {
                    member.health = match member.health {
                        _ if is_alive => Health::Up,
                        Health::Up => Health::Suspected { since_ns: now.monotonic_ns },
                        other => other,
                    };
                }
            }
        }
    }

    fn is_news(&self, entry: &MemberEntry) -> bool {
        match self.members.get(&entry.node) {
            Some(Member { entry: known, .. }) => {
                (entry.incarnation, entry.standing) > (known.incarnation, known.standing)
            }
            None => self.members.len() < MEMBERS_MAX,
        }
    }

    /// What is said of this node holds only if the node says so.
    fn refute(&mut self, said: &MemberEntry) {
        let own = self.own();
        let is_older = said.incarnation < own.incarnation;
        let is_same = said.incarnation == own.incarnation
            && (said.standing, said.phase) == (own.standing, own.phase);
        if is_older || is_same {
            return;
        }
        self.was_removed |= said.standing == Standing::Removed && own.standing != Standing::Removed;
        let incarnation = said.incarnation;
        self.change_own(|entry| entry.incarnation = entry.incarnation.max(incarnation));
    }

    fn change_own(&mut self, change: impl FnOnce(&mut MemberEntry)) {
        let mut entry = self.own().clone();
        change(&mut entry);
        entry.incarnation = entry.incarnation.saturating_add(1);
        self.take(entry);
    }

    /// What is known of a member.
    #[must_use]
    pub fn entry(&self, node: &NodeId) -> Option<&MemberEntry> {
        self.members.get(node).map(|member| &member.entry)
    }

    fn entry_of(&self, node: &NodeId) -> Option<MemberEntry> {
        self.members.get(node).map(|member| member.entry.clone())
    }

    fn take(&mut self, entry: MemberEntry) {
        self.log(&entry);
        let transmissions = 4 + 2 * (self.members.len().max(1)).ilog2();
        let member = self.members.entry(entry.node).or_insert_with(|| Member {
            entry: entry.clone(),
            health: Health::Up,
            news: 0,
        });
        member.entry = entry;
        member.news = transmissions;
        self.is_changed = true;
        self.gossip_pause_ns = self.gossip_pause_ns.min(self.gossip_pause_min_ns());
    }

    /// Tells the log what concerns an operator: who joins, is filled, leaves, is removed or back.
    fn log(&self, entry: &MemberEntry) {
        let stage = |entry: &MemberEntry| (entry.phase, entry.standing == Standing::Removed);
        let before = self.members.get(&entry.node).map(|member| stage(&member.entry));
        let after = stage(entry);
        if before != Some(after) {
            let (phase, is_removed) = after;
            tracing::info!(node = %entry.node, ?phase, is_removed, "a member of the cluster");
        }
    }

    fn gossip_pause_min_ns(&self) -> u64 {
        let after_ms = (self.members.len() as u64).saturating_mul(GOSSIP_PER_MEMBER_MS);
        ns(after_ms.max(GOSSIP_AFTER_MIN_MS).min(self.settings.gossip_every_ms))
    }

    fn gossip_at_ns(&self) -> u64 {
        self.gossiped_at_ns.saturating_add(self.gossip_pause_ns)
    }

    /// The news that were told least, the node's own entry, and what is said of the receiver.
    fn news(&mut self, to: &NodeId) -> Vec<MemberEntry> {
        let own = self.own;
        let mut fresh: Vec<(u32, NodeId)> = self
            .members
            .iter()
            .filter(|(node, member)| member.news > 0 && **node != own && *node != to)
            .map(|(node, member)| (member.news, *node))
            .collect();
        fresh.sort_by_key(|(news, node)| (std::cmp::Reverse(*news), *node));
        fresh.truncate(NEWS_COUNT_MAX);
        for (_, node) in &fresh {
            if let Some(member) = self.members.get_mut(node) {
                member.news -= 1;
            }
        }
        let nodes = fresh.into_iter().map(|(_, node)| node).chain([own, *to]);
        nodes.filter_map(|node| self.entry_of(&node)).collect()
    }

    fn tell_all(&self, to: NodeId, wants_answer: bool, out: &mut Outbox) {
        out.send(
            to,
            PeerMessage::Members { wants_answer, entries: self.entries().cloned().collect() },
        );
    }

    /// Takes a message about members.
    pub fn handle_message(
        &mut self,
        now: Now,
        from: NodeId,
        message: PeerMessage,
        out: &mut Outbox,
    ) {
        match message {
            PeerMessage::Members { wants_answer, entries } => {
                self.merge(now, entries);
                let is_full = |entry: &MemberEntry| {
                    entry.phase == Phase::Full && entry.standing != Standing::Removed
                };
                let is_told = self.entry(&from).is_some_and(is_full);
                self.is_informed |= is_told;
                if wants_answer {
                    self.tell_all(from, false, out);
                }
            }
            PeerMessage::Ping { request, target, entries } => {
                self.merge(now, entries);
                match target.filter(|target| *target != self.own) {
                    None => {
                        let entries = self.news(&from);
                        out.send(from, PeerMessage::Pong { request, entries });
                    }
                    Some(target) if self.relays.len() < RELAYED_COUNT_MAX => {
                        let deadline_ns = now.monotonic_ns + ns(self.settings.probe_wait_ms);
                        let id = self.ping(target, None, out);
                        self.relays.insert(id, Relay { asker: from, theirs: request, deadline_ns });
                    }
                    Some(_) => {}
                }
            }
            PeerMessage::Pong { request, entries } => {
                self.merge(now, entries);
                if let Some(probe) = self.probes.remove(&request) {
                    self.on_heard(&probe.target);
                    self.probes.retain(|_, other| other.target != probe.target);
                }
                if let Some(relay) = self.relays.remove(&request) {
                    let pong = PeerMessage::Pong { request: relay.theirs, entries: Vec::new() };
                    out.send(relay.asker, pong);
                }
            }
            _ => {}
        }
    }

    fn ping(&mut self, to: NodeId, target: Option<NodeId>, out: &mut Outbox) -> RequestId {
        let request = out.take_id();
        let entries = self.news(&to);
        out.send(to, PeerMessage::Ping { request, target, entries });
        request
    }

    /// When [`Membership::handle_time`] has something to do.
    #[must_use]
    pub fn deadline_ns(&self) -> u64 {
        let probes = self.probes.values().map(|probe| probe.deadline_ns);
        let rounds = self.probe_at_ns.min(self.gossip_at_ns()).min(self.greet_at_ns);
        probes.fold(rounds, u64::min)
    }

    /// Does what is due.
    pub fn handle_time(&mut self, now: Now, out: &mut Outbox) {
        self.end_probes(now, out);
        self.age(now);
        if self.own().standing == Standing::Removed {
            self.probe_at_ns = now.monotonic_ns + ns(self.settings.gossip_every_ms);
            self.gossiped_at_ns = now.monotonic_ns;
            self.gossip_pause_ns = ns(self.settings.gossip_every_ms);
            self.greet_at_ns = u64::MAX;
            return;
        }
        if self.probe_at_ns <= now.monotonic_ns {
            self.probe_at_ns = now.monotonic_ns + ns(self.settings.probe_every_ms);
            self.probe_next(now, out);
        }
        if self.gossip_at_ns() <= now.monotonic_ns {
            self.gossiped_at_ns = now.monotonic_ns;
            let doubled = self.gossip_pause_ns.saturating_mul(2);
            self.gossip_pause_ns =
                doubled.max(self.gossip_pause_min_ns()).min(ns(self.settings.gossip_every_ms));
            let others: Vec<NodeId> = self.others().collect();
            if let Some(to) = self.rng.choice(others) {
                self.tell_all(to, true, out);
            }
        }
        if self.greet_at_ns <= now.monotonic_ns {
            let pause_ms = self.settings.gossip_every_ms.saturating_mul(GREETING_PAUSES);
            self.greet_at_ns = now.monotonic_ns + ns(pause_ms);
            self.greet_next(out);
        }
    }

    /// Tells a removed member of its removal, in case it lives: nobody else may ever ask it.
    fn greet_next(&mut self, out: &mut Outbox) {
        if self.greetings.is_empty() {
            let is_gone = |entry: &&MemberEntry| {
                entry.standing == Standing::Removed && entry.phase != Phase::Leaving
            };
            let mut gone: Vec<NodeId> =
                self.entries().filter(is_gone).map(|entry| entry.node).collect();
            self.rng.shuffle(&mut gone);
            self.greetings = gone.into();
        }
        let Some(node) = self.greetings.pop_front() else { return };
        if self.entry(&node).is_some_and(|entry| entry.standing == Standing::Removed) {
            self.tell_all(node, true, out);
        }
    }

    fn others(&self) -> impl Iterator<Item = NodeId> {
        self.known().map(|entry| entry.node).filter(|node| *node != self.own)
    }

    fn probe_next(&mut self, now: Now, out: &mut Outbox) {
        if self.round.is_empty() {
            let mut round: Vec<NodeId> = self.others().collect();
            self.rng.shuffle(&mut round);
            self.round = round.into();
        }
        let Some(target) = self.round.pop_front() else { return };
        let request = self.ping(target, None, out);
        let deadline_ns = now.monotonic_ns + ns(self.settings.probe_wait_ms);
        self.probes.insert(request, Probe { target, is_indirect: false, deadline_ns });
    }

    fn end_probes(&mut self, now: Now, out: &mut Outbox) {
        self.relays.retain(|_, relay| relay.deadline_ns > now.monotonic_ns);
        let due = |probe: &Probe| probe.deadline_ns <= now.monotonic_ns;
        let ended: Vec<Probe> =
            self.probes.extract_if(.., |_, probe| due(probe)).map(|(_, p)| p).collect();
        for Probe { target, is_indirect, .. } in ended {
            if is_indirect {
                if !self.probes.values().any(|probe| probe.target == target) {
                    self.suspect(now, target);
                }
                continue;
            }
            let mut helpers: Vec<NodeId> =
                self.others().filter(|node| *node != target && self.is_up(node)).collect();
            self.rng.shuffle(&mut helpers);
            helpers.truncate(self.settings.probe_helpers);
            if helpers.is_empty() {
                self.suspect(now, target);
            }
            let deadline_ns = now.monotonic_ns + ns(self.settings.probe_wait_ms);
            for helper in helpers {
                let request = self.ping(helper, Some(target), out);
                self.probes.insert(request, Probe { target, is_indirect: true, deadline_ns });
            }
        }
    }

    fn suspect(&mut self, now: Now, target: NodeId) {
        let Some(member) = self.members.get_mut(&target) else { return };
        if member.health == Health::Up {
            member.health = Health::Suspected { since_ns: now.monotonic_ns };
        }
        let mut entry = member.entry.clone();
        if entry.standing == Standing::Alive {
            entry.standing = Standing::Suspected;
            self.take(entry);
        }
    }

    fn age(&mut self, now: Now) {
        let (suspect_for_ns, down_after_ns) =
            (ns(self.settings.suspect_for_ms), ns(self.settings.down_after_ms));
        let mut lost = Vec::new();
        for (node, member) in &mut self.members {
            match member.health {
                Health::Suspected { since_ns } if since_ns + suspect_for_ns <= now.monotonic_ns => {
                    tracing::warn!(%node, "a member is down");
                    member.health = Health::Down { since_ns };
                }
                Health::Down { since_ns }
                    if since_ns + down_after_ns <= now.monotonic_ns
                        && member.entry.standing != Standing::Removed =>
                {
                    lost.push(*node);
                }
                _ => {}
            }
        }
        if !lost.is_empty() && self.may_remove() {
            lost.into_iter().for_each(|node| self.forget(node));
        }
    }

    /// Whether this node may decide that a member is gone: it sees most of those up that it knows,
    /// and these are all.
    fn may_remove(&self) -> bool {
        let known = self.known().count();
        let up = self.known().filter(|entry| self.is_up(&entry.node)).count();
        up * 2 > known && self.knows_all()
    }

    /// Whether this node knows all members, as far as anybody can. Nodes that start together found
    /// without who died meanwhile. But whoever is full, or has not said what it is, may be one of
    /// many that this node has not heard of.
    #[must_use]
    pub fn knows_all(&self) -> bool {
        let stands_for_others = |entry: &MemberEntry| {
            entry.node != self.own
                && (entry.phase != Phase::Joining || entry.incarnation < FIRST_INCARNATION)
        };
        self.is_informed || !self.known().any(stands_for_others)
    }
}
