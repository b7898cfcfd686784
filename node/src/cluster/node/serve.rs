//! What a node does for others: it holds records and answers about them.

use std::collections::BTreeMap;

use storage::Now;
use wal::record::Key;

use super::{
    ClusterNode, Found, Mutation, PeerMessage, PutOutcome, Record, RequestId, StoreAnswer,
    StoreRequest, Ticket,
};
use crate::cluster::digest::Summing;
use crate::cluster::exchange::{PAGE_KEYS_MAX, countable};
use crate::cluster::message::{ENTRIES_MAX, Entry, NAMES_BYTES_MAX, Name, PREFIXES_MAX, PutReason};
use crate::cluster::prefix::Prefix;
use crate::cluster::records;
use crate::cluster::replica::{self, Applied};
use crate::kademlia::NodeId;

/// Queries of others that wait for the store; further ones are not answered.
const WAITING_MAX: usize = 65_536;
/// Ranges of others that writes are forwarded to.
const SUBSCRIBERS_MAX: usize = 1_024;
/// A newcomer that has not claimed its range again by then gets no more forwarded, in ns.
const FORWARDED_FOR_NS: u64 = 300_000_000_000;

/// What waits for the store, and who wants to hear of writes.
#[derive(Debug, Default)]
pub(super) struct Serving {
    waiting: BTreeMap<Ticket, Waiting>,
    subscribers: BTreeMap<(NodeId, Prefix), u64>,
}

#[derive(Debug)]
enum Waiting {
    Put { from: NodeId, request: RequestId, key: Key, forward: Option<Record> },
    Get { from: NodeId, request: RequestId, key: Key, was_ready: bool },
    Sums { from: NodeId, request: RequestId, summing: Summing },
    List { from: NodeId, request: RequestId },
    Names { from: NodeId, request: RequestId, prefix: Prefix },
    Have { from: NodeId, request: RequestId, prefix: Prefix, entries: Vec<Entry> },
}

impl Serving {
    /// Queries of others that wait for the store.
    pub(super) fn waiting_count(&self) -> usize {
        self.waiting.len()
    }
}

impl ClusterNode {
    /// Takes a message, of others or of its own.
    pub(super) fn dispatch(&mut self, now: Now, from: NodeId, message: PeerMessage) {
        match message {
            PeerMessage::Members { .. } | PeerMessage::Ping { .. } | PeerMessage::Pong { .. } => {
                self.members.handle_message(now, from, message, &mut self.out);
            }
            PeerMessage::Put { request, reason, record } => {
                self.serve_put(now, from, (request, reason), record);
            }
            PeerMessage::Get { request, key, .. } if records::is_own(&key) => {
                let (is_ready, found) = (self.is_ready(&key), Found::Nothing);
                self.out.send(from, PeerMessage::Got { request, is_ready, found });
            }
            PeerMessage::Get { request, key, wants_value } => {
                let was_ready = self.is_ready(&key);
                let waiting = Waiting::Get { from, request, key, was_ready };
                self.wait_for(StoreRequest::Read { key, wants_value }, waiting);
            }
            PeerMessage::Claim { request, prefix } => {
                self.serve_claim(now, from, request, prefix);
            }
            PeerMessage::Release { prefix } => {
                self.serving.subscribers.remove(&(from, prefix));
            }
            PeerMessage::Sums { request, prefix } => {
                let summing = Summing::new(prefix);
                let (from_key, count) = (prefix.first_key(), PAGE_KEYS_MAX);
                let waiting = Waiting::Sums { from, request, summing };
                self.wait_for(StoreRequest::Walk { prefix, from: from_key, count }, waiting);
            }
            PeerMessage::List { request, prefix } => {
                let (from_key, count) = (prefix.first_key(), ENTRIES_MAX);
                let waiting = Waiting::List { from, request };
                self.wait_for(StoreRequest::Walk { prefix, from: from_key, count }, waiting);
            }
            PeerMessage::Names { request, prefix, from: from_key, count } => {
                let waiting = Waiting::Names { from, request, prefix };
                let count = usize::from(count).clamp(1, ENTRIES_MAX);
                self.wait_for(StoreRequest::Names { prefix, from: from_key, count }, waiting);
            }
            PeerMessage::Have { request, prefix, entries } => {
                let first = entries.first().map_or_else(|| prefix.first_key(), |entry| entry.key);
                let waiting = Waiting::Have { from, request, prefix, entries };
                let count = ENTRIES_MAX;
                self.wait_for(StoreRequest::Walk { prefix, from: first, count }, waiting);
            }
            PeerMessage::PutDone { request, .. }
            | PeerMessage::Got { request, .. }
            | PeerMessage::SumsAre { request, .. }
            | PeerMessage::Listed { request, .. }
            | PeerMessage::Named { request, .. }
            | PeerMessage::Claimed { request, .. }
            | PeerMessage::HaveIs { request, .. } => {
                self.on_answer(now, from, request, Some(message));
            }
        }
    }

    fn wait_for(&mut self, request: StoreRequest, waiting: Waiting) {
        if self.serving.waiting.len() < WAITING_MAX {
            let ticket = self.out.ask_store(request);
            self.serving.waiting.insert(ticket, waiting);
        }
    }

    fn serve_put(
        &mut self,
        now: Now,
        from: NodeId,
        (request, reason): (RequestId, PutReason),
        record: Record,
    ) {
        let skew_max_ms = self.settings.clock_skew_max_ms;
        if replica::is_too_far_ahead(&record.version, now, skew_max_ms) {
            self.counters.too_far_ahead += 1;
            let outcome = PutOutcome::TooFarAhead;
            self.out.send(from, PeerMessage::PutDone { request, outcome });
            return;
        }
        if records::is_own(&record.key) {
            let outcome = PutOutcome::KeyConflict;
            self.out.send(from, PeerMessage::PutDone { request, outcome });
            return;
        }
        self.clock.witness(record.version);
        let (key, record) = (record.key, record.at(now.clock_ms));
        let is_write = reason == PutReason::Write;
        let is_wanted = is_write && self.subscribers_of(now, &key).next().is_some();
        let forward = is_wanted.then(|| record.clone());
        let waiting = Waiting::Put { from, request, key, forward };
        self.wait_for(StoreRequest::Apply { record }, waiting);
    }

    fn subscribers_of(&self, now: Now, key: &Key) -> impl Iterator<Item = NodeId> {
        let live = move |until_ns: &u64| *until_ns > now.monotonic_ns;
        self.serving
            .subscribers
            .iter()
            .filter(move |((_, prefix), until_ns)| prefix.contains(key) && live(until_ns))
            .map(|((node, _), _)| *node)
    }

    /// Somebody is filling a range: writes are forwarded, and it hears what is complete here.
    fn serve_claim(&mut self, now: Now, from: NodeId, request: RequestId, prefix: Prefix) {
        self.serving.subscribers.retain(|_, until_ns| *until_ns > now.monotonic_ns);
        if self.serving.subscribers.len() >= SUBSCRIBERS_MAX {
            return;
        }
        let until_ns = now.monotonic_ns + FORWARDED_FOR_NS;
        self.serving.subscribers.insert((from, prefix), until_ns);
        let held: Vec<Prefix> = self.held_of(prefix).into_prefixes().collect();
        let held = held.into_iter().take(PREFIXES_MAX).collect();
        self.out.send(from, PeerMessage::Claimed { request, held });
    }

    /// Takes what the store answered to a query of others.
    pub(super) fn serve_answer(&mut self, now: Now, ticket: Ticket, answer: StoreAnswer) {
        let Some(waiting) = self.serving.waiting.remove(&ticket) else { return };
        match (waiting, answer) {
            (Waiting::Put { from, request, key, forward }, StoreAnswer::Applied(applied)) => {
                let forward = forward.filter(|_| applied == Applied::Newer);
                self.forward(now, from, forward);
                let is_ready = self.is_ready(&key);
                let outcome = match applied {
                    Applied::NotNewer(_) if self.mutation == Mutation::VersionGoesBack => {
                        PutOutcome::Applied { is_ready }
                    }
                    applied => replica::outcome(applied, is_ready),
                };
                self.out.send(from, PeerMessage::PutDone { request, outcome });
            }
            (Waiting::Put { from, request, .. }, _) => {
                let outcome = PutOutcome::Failed;
                self.out.send(from, PeerMessage::PutDone { request, outcome });
            }
            (Waiting::Get { from, request, key, was_ready }, answer) => {
                let found = match answer {
                    StoreAnswer::Read(found) => found,
                    _ => Found::Failed,
                };
                let is_ready = was_ready && self.is_ready(&key);
                self.out.send(from, PeerMessage::Got { request, is_ready, found });
            }
            (Waiting::Names { from, request, prefix }, StoreAnswer::Named(names, next)) => {
                let (names, next) = fitting(names, next);
                let is_ready =
                    self.mutation == Mutation::AnswersTooEarly || self.held.covers(&prefix);
                self.out.send(from, PeerMessage::Named { request, is_ready, next, names });
            }
            (waiting, StoreAnswer::Walked(entries, next)) => {
                let grace_ms = self.settings.tombstone_grace_ms;
                let entries = countable(entries, now, grace_ms);
                self.serve_walked(waiting, entries, next);
            }
            // A failed walk is not answered: who asked goes on without.
            _ => {}
        }
    }

    fn serve_walked(&mut self, waiting: Waiting, entries: Vec<Entry>, next: Option<Key>) {
        match waiting {
            Waiting::Sums { from, request, mut summing } => {
                summing.add(&entries);
                let Some(next) = next else {
                    let sums = summing.finish();
                    self.out.send(from, PeerMessage::SumsAre { request, sums });
                    return;
                };
                let (prefix, count) = (summing.prefix(), PAGE_KEYS_MAX);
                let waiting = Waiting::Sums { from, request, summing };
                self.wait_for(StoreRequest::Walk { prefix, from: next, count }, waiting);
            }
            Waiting::List { from, request } => {
                let is_whole = next.is_none();
                self.out.send(from, PeerMessage::Listed { request, is_whole, entries });
            }
            Waiting::Have { from, request, prefix, entries: asked } => {
                let has = |asked: &Entry| {
                    let found = entries.iter().find(|entry| entry.key == asked.key);
                    found.is_some_and(|entry| entry.version >= asked.version)
                };
                let held = asked.iter().map(has).collect();
                let is_ready = self.held.covers(&prefix);
                self.out.send(from, PeerMessage::HaveIs { request, is_ready, held });
            }
            Waiting::Put { .. } | Waiting::Get { .. } | Waiting::Names { .. } => {}
        }
    }

    fn forward(&mut self, now: Now, from: NodeId, record: Option<Record>) {
        let Some(record) = record else { return };
        let to: Vec<NodeId> = self.subscribers_of(now, &record.key).collect();
        for node in to.into_iter().filter(|node| *node != from) {
            let (request, reason) = (self.out.take_id(), PutReason::Repair);
            self.out.send(node, PeerMessage::Put { request, reason, record: record.clone() });
        }
    }
}

/// As many keys as one message takes; at least one.
fn fitting(mut names: Vec<Name>, next: Option<Key>) -> (Vec<Name>, Option<Key>) {
    let mut bytes = 0;
    let too_many = names.iter().position(|name| {
        let is_first = bytes == 0;
        bytes += name.user_key.len().max(1);
        bytes > NAMES_BYTES_MAX && !is_first
    });
    let Some(count) = too_many else { return (names, next) };
    let next = names.get(count).map(|name| name.entry.key);
    names.truncate(count);
    (names, next)
}
