//! What a node does of itself: join, know its neighbours, refresh buckets, ask the silent.
//!
//! - **Seeds.** While no node of the table answers, some seeds are asked for our neighbours, for
//!   ever, at growing intervals. Otherwise one seed is asked now and then: it may be in another
//!   part of a network that was cut in two, and holds the parts together.
//! - **Self-lookup.** It makes us known to our neighbours and them to us. It is repeated at growing
//!   intervals, since at a simultaneous start the first ones find hardly anybody, and begins anew
//!   when a node that was given up answers again.
//! - **Refresh.** After the first self-lookup every bucket, then each that has seen no lookup for
//!   an hour (Kademlia §2.3).
//! - **Pings.** Nodes that are questionable, and bad ones that nobody has replaced, are asked in
//!   turn, a few at a time.

use std::collections::VecDeque;
use std::net::SocketAddr;

use super::searches::{Client, find_node, target_in_bucket};
use super::{KademliaNode, LookupKind, NodeEvent, Purpose};
use crate::io::Monotonic;
use crate::kademlia::k_bucket::Health;
use crate::kademlia::routing_table::Admission;
use crate::kademlia::{Contact, NodeId};
use crate::krpc::bep5::{Nodes, method};

/// Seeds are asked again after this, then after twice as long each time,
const SEED_GAP_MIN_MS: u64 = 500;
/// but no later than after this.
const SEED_GAP_MAX_MS: u64 = 30_000;
/// While other nodes answer, one seed is asked so often.
const SEED_CHECK_GAP_MS: u64 = 5 * 60 * 1000;
/// Seeds that are kept of those that come after the start.
const SEEDS_MAX: usize = 256;
/// Seeds asked at once.
const SEEDS_ASKED_MAX: usize = 8;
/// The self-lookup is repeated after this, then after twice as long each time,
const SELF_LOOKUP_GAP_MIN_MS: u64 = 1_000;
/// but no later than after this.
const SELF_LOOKUP_GAP_MAX_MS: u64 = 15 * 60 * 1000;
/// Refreshes under way at once.
const REFRESHES_MAX: usize = 2;
/// Silent nodes are asked so often,
const PING_GAP_MS: u64 = 10_000;
/// so many at a time.
const PINGED_MAX: usize = 3;
/// Nodes of a saved table that are asked at the start.
const REMEMBERED_ASKED_MAX: usize = 64;
/// Seeds come after them by so much.
const SEEDS_AFTER_REMEMBERED_MS: u64 = 2_000;

/// When what is due.
#[derive(Debug)]
pub(super) struct Upkeep {
    seeds: Vec<SocketAddr>,
    /// The seed to be asked next.
    seed: usize,
    seed_gap_ms: u64,
    seeds_due: Monotonic,
    self_lookup_gap_ms: u64,
    self_lookup_due: Monotonic,
    is_looking_for_itself: bool,
    is_ready: bool,
    has_refreshed: bool,
    /// Targets to be looked up, one in each bucket.
    refreshes: VecDeque<NodeId>,
    refreshing: usize,
    pings_due: Monotonic,
    /// The node pinged last.
    pinged: NodeId,
}

impl Upkeep {
    pub(super) fn new(now: Monotonic, seeds: Vec<SocketAddr>) -> Self {
        Self {
            seeds,
            seed: 0,
            seed_gap_ms: SEED_GAP_MIN_MS,
            seeds_due: now,
            self_lookup_gap_ms: SELF_LOOKUP_GAP_MIN_MS,
            self_lookup_due: now,
            is_looking_for_itself: false,
            is_ready: false,
            has_refreshed: false,
            refreshes: VecDeque::new(),
            refreshing: 0,
            pings_due: now.plus_millis(PING_GAP_MS),
            pinged: NodeId::default(),
        }
    }

    pub(super) fn is_founder(&self) -> bool {
        self.seeds.is_empty()
    }

    /// Takes further seeds, to be asked soon.
    fn add_seeds(&mut self, now: Monotonic, seeds: &[SocketAddr]) {
        for seed in seeds {
            if self.seeds.len() < SEEDS_MAX && !self.seeds.contains(seed) {
                self.seeds.push(*seed);
                self.seed_gap_ms = SEED_GAP_MIN_MS;
                self.seeds_due = self.seeds_due.min(now);
            }
        }
    }

    /// Takes our own address off the seeds.
    pub(super) fn forget_seed(&mut self, address: &SocketAddr) {
        self.seeds.retain(|seed| seed != address);
    }
}

impl KademliaNode {
    /// Tells whether the node is ready: it has founded a network, or has spoken to another node and
    /// knows its neighbours.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.upkeep.is_ready
    }

    /// Takes further nodes to start from, when their addresses become known later.
    pub fn add_seeds(&mut self, now: Monotonic, seeds: &[SocketAddr]) {
        self.upkeep.add_seeds(now, seeds);
    }

    pub(super) fn become_ready(&mut self) {
        if !self.upkeep.is_ready {
            self.upkeep.is_ready = true;
            self.events.push_back(NodeEvent::Ready);
        }
    }

    pub(super) fn upkeep_deadline(&self) -> Option<Monotonic> {
        let upkeep = &self.upkeep;
        let is_known = !self.table.is_empty();
        let seeds = (!upkeep.seeds.is_empty()).then_some(upkeep.seeds_due);
        let own = (is_known && !upkeep.is_looking_for_itself).then_some(upkeep.self_lookup_due);
        let may_refresh = is_known && upkeep.refreshes.is_empty();
        let refresh =
            (may_refresh && upkeep.refreshing == 0).then(|| self.table.refresh_deadline());
        let pings = is_known.then_some(upkeep.pings_due);
        [seeds, own, refresh, pings].into_iter().flatten().min()
    }

    pub(super) fn handle_upkeep(&mut self, now: Monotonic) {
        if now >= self.upkeep.seeds_due && !self.upkeep.seeds.is_empty() {
            self.ask_seeds(now);
        }
        let is_known = !self.table.is_empty();
        let is_due = is_known && now >= self.upkeep.self_lookup_due;
        if is_due && !self.upkeep.is_looking_for_itself {
            self.upkeep.is_looking_for_itself = true;
            self.begin(now, self.own, LookupKind::Nodes, Client::Own, &[]);
        }
        if is_known && now >= self.upkeep.pings_due {
            self.ping_silent(now);
        }
        if is_known
            && self.upkeep.refreshes.is_empty()
            && self.upkeep.refreshing == 0
            && let Some(target) = self.table.poll_refresh(now, &mut self.rng)
        {
            self.upkeep.refreshes.push_back(target);
        }
    }

    /// A seed has named our neighbours: it may know of others than we do.
    pub(super) fn on_seed(&mut self, now: Monotonic, nodes: Nodes<'_>) {
        let named = self.named(now, nodes);
        if !self.upkeep.is_looking_for_itself {
            self.upkeep.is_looking_for_itself = true;
            self.begin(now, self.own, LookupKind::Nodes, Client::Own, &named);
        }
    }

    /// A node has answered a query of ours.
    pub(super) fn on_answer(&mut self, now: Monotonic, contact: Contact, rtt_us: u32) {
        if !self.is_usable(&contact) {
            return;
        }
        let health = self.limits.table.health;
        let before = self.table.find(&contact.id).map(|entry| entry.health(now, health));
        match self.table.on_answer(now, contact, rtt_us) {
            Admission::Present => {}
            Admission::Waiting(Some(asked)) => {
                if !self.is_being_asked(&asked) {
                    self.ping(now, Purpose::Ping(asked), asked);
                }
                return;
            }
            _ => return,
        }
        let upkeep = &mut self.upkeep;
        if !upkeep.is_ready || before == Some(Health::Bad) {
            // The first of all, or one of a part of the network that was given up.
            upkeep.self_lookup_gap_ms = SELF_LOOKUP_GAP_MIN_MS;
            let soon = match upkeep.is_ready {
                true => now.plus_millis(SELF_LOOKUP_GAP_MIN_MS),
                false => now,
            };
            upkeep.self_lookup_due = upkeep.self_lookup_due.min(soon);
        }
        if before.is_none() && upkeep.is_founder() {
            // Nobody has told a founder whom there is: it learns its neighbours as they come.
            let soon = now.plus_millis(upkeep.self_lookup_gap_ms);
            upkeep.self_lookup_due = upkeep.self_lookup_due.min(soon);
        }
    }

    /// A node has not answered.
    pub(super) fn on_silence(&mut self, now: Monotonic, contact: &Contact) {
        self.table.on_failure(now, contact);
        if self.is_alone(now) {
            let soon = now.plus_millis(SEED_GAP_MIN_MS);
            self.upkeep.seeds_due = self.upkeep.seeds_due.min(soon);
        }
    }

    /// Whether a node has been asked in vain too often.
    pub(super) fn is_known_bad(&self, now: Monotonic, contact: &Contact) -> bool {
        let entry = self.table.find(&contact.id).filter(|entry| entry.contact == *contact);
        entry.is_some_and(|entry| entry.health(now, self.limits.table.health) == Health::Bad)
    }

    pub(super) fn on_self_lookup(&mut self, now: Monotonic, is_answered: bool) {
        let gap = self.upkeep.self_lookup_gap_ms;
        let upkeep = &mut self.upkeep;
        upkeep.is_looking_for_itself = false;
        upkeep.self_lookup_gap_ms = (2 * gap).min(SELF_LOOKUP_GAP_MAX_MS);
        upkeep.self_lookup_due = now.plus_millis(gap + self.rng.u64(..=gap / 4));
        if !is_answered {
            return;
        }
        self.become_ready();
        if !self.upkeep.has_refreshed {
            self.upkeep.has_refreshed = true;
            // Kademlia §2.3: all buckets farther away than the closest neighbour.
            let buckets = self.table.refreshed().saturating_sub(1);
            for bits in 0..buckets {
                let target = target_in_bucket(&self.own, bits, &mut self.rng);
                self.upkeep.refreshes.push_back(target);
            }
        }
    }

    pub(super) fn on_refreshed(&mut self) {
        self.upkeep.refreshing -= 1;
    }

    /// Asks the nodes of a saved table.
    pub(super) fn ask_remembered(&mut self, now: Monotonic) {
        let remembered = self.table.entries().filter(|entry| entry.last_seen.is_none());
        let mut remembered: Vec<Contact> = remembered.map(|entry| entry.contact).collect();
        if !remembered.is_empty() {
            let later = now.plus_millis(SEEDS_AFTER_REMEMBERED_MS);
            self.upkeep.seeds_due = self.upkeep.seeds_due.max(later);
        }
        // Our neighbours first: what they store is ours to store, too.
        remembered.sort_unstable_by_key(|contact| contact.id.distance(&self.own));
        remembered.truncate(REMEMBERED_ASKED_MAX);
        for contact in remembered {
            self.ping(now, Purpose::Ping(contact), contact);
        }
    }

    /// Our id has changed: neighbours are others now.
    pub(super) fn on_new_id(&mut self, now: Monotonic) {
        self.upkeep.self_lookup_gap_ms = SELF_LOOKUP_GAP_MIN_MS;
        self.upkeep.self_lookup_due = now;
        self.upkeep.has_refreshed = false;
    }

    fn is_alone(&self, now: Monotonic) -> bool {
        let health = self.limits.table.health;
        self.table.entries().all(|entry| entry.health(now, health) == Health::Bad)
    }

    fn is_being_asked(&self, contact: &Contact) -> bool {
        self.queries.is_asking(&contact.address)
    }

    fn ask_seeds(&mut self, now: Monotonic) {
        let is_alone = self.is_alone(now);
        let (count, gap) = if is_alone {
            let gap = self.upkeep.seed_gap_ms;
            self.upkeep.seed_gap_ms = (2 * gap).min(SEED_GAP_MAX_MS);
            (SEEDS_ASKED_MAX.min(self.upkeep.seeds.len()), gap)
        } else {
            self.upkeep.seed_gap_ms = SEED_GAP_MIN_MS;
            (1, SEED_CHECK_GAP_MS)
        };
        self.upkeep.seeds_due = now.plus_millis(gap + self.rng.u64(..=gap / 4));
        for _ in 0..count {
            let index = self.upkeep.seed % self.upkeep.seeds.len();
            self.upkeep.seed = index + 1;
            let seed = self.upkeep.seeds[index];
            let arguments = find_node(self.own, self.own, self.family);
            self.send_query(now, seed, Purpose::Seed, method::FIND_NODE, &arguments);
        }
    }

    fn ping_silent(&mut self, now: Monotonic) {
        self.upkeep.pings_due = now.plus_millis(PING_GAP_MS + self.rng.u64(..=PING_GAP_MS / 4));
        let health = self.limits.table.health;
        let silent = self.table.entries().filter(|entry| entry.health(now, health) != Health::Good);
        let mut silent: Vec<Contact> = silent.map(|entry| entry.contact).collect();
        silent.retain(|contact| !self.is_being_asked(contact));
        silent.sort_unstable_by_key(|contact| contact.id);
        // Those after the last one of the previous turn, then from the start again.
        let next = silent.partition_point(|contact| contact.id <= self.upkeep.pinged);
        silent.rotate_left(next);
        for contact in silent.into_iter().take(PINGED_MAX) {
            self.upkeep.pinged = contact.id;
            self.ping(now, Purpose::Ping(contact), contact);
        }
    }

    pub(super) fn refresh(&mut self, now: Monotonic) {
        while self.upkeep.refreshing < REFRESHES_MAX
            && let Some(target) = self.upkeep.refreshes.pop_front()
        {
            self.upkeep.refreshing += 1;
            self.begin(now, target, LookupKind::Nodes, Client::Refresh, &[]);
        }
    }
}
