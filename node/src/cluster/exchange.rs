//! [`Exchange`]: two nodes find out in which keys of a prefix they differ, and move those.
//!
//! ```text
//! sums of 16 parts, here and there ── equal: nothing to do
//!       └─ part differs ── many keys: its own sums        few keys: both lists ──> fetch, offer
//! ```
//!
//! Parts are worked off in the order of their keys, a few records at a time. What is fetched is
//! applied like any record: the higher version holds, tombstones included.

use std::collections::{BTreeSet, VecDeque};

use storage::Now;
use wal::record::Key;

use super::coordinator::{Owner, Step};
use super::digest::{Summing, differences};
use super::message::{Entry, Found, PeerMessage, PutReason, Record, Sum};
use super::mutation::Mutation;
use super::pace::Pace;
use super::prefix::Prefix;
use super::replica;
use super::store::{StoreAnswer, StoreRequest, Ticket};
use crate::kademlia::NodeId;

/// Parts with at most so many keys are compared key by key.
const LISTED_MAX: u64 = 256;
/// Records of one exchange that are on their way.
const MOVING_MAX: usize = 8;
/// Keys that are walked over at a time.
pub(super) const PAGE_KEYS_MAX: usize = 512;

/// What an exchange is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// Both sides get what they lack.
    Repair,
    /// This side is filled; of this range.
    Fill(Prefix),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Task {
    Compare(Prefix),
    List(Prefix),
}

/// An exchange under way.
#[derive(Debug)]
pub(super) struct Exchange {
    pub(super) id: u64,
    pub(super) peer: NodeId,
    pub(super) purpose: Purpose,
    pub(super) prefix: Prefix,
    tasks: Vec<Task>,
    current: Option<Task>,
    summing: Option<Summing>,
    ours: Option<Vec<Sum>>,
    theirs: Option<Vec<Sum>>,
    our_list: Option<Vec<Entry>>,
    their_list: Option<Vec<Entry>>,
    wanted: VecDeque<Key>,
    offered: VecDeque<Key>,
    resurrected: BTreeSet<Key>,
    moving: usize,
    /// Bytes that came, and that the next record to be moved pays for.
    owed: u64,
    tickets: BTreeSet<Ticket>,
    /// Whether anything here was older than there.
    pub(super) was_behind: bool,
    /// Whether something could not be compared or moved.
    pub(super) has_failed: bool,
    /// Whether that is so because the other side says nothing.
    pub(super) is_unanswered: bool,
    /// Keys of this side that were compared, each time.
    pub(super) keys_compared: u64,
    /// Of keys and values.
    pub(super) bytes_moved: u64,
    pub(super) deadline_ns: u64,
    mutation: Mutation,
}

/// Entries that are compared: tombstones past the grace may be gone on either side.
pub(super) fn countable(mut entries: Vec<Entry>, now: Now, grace_ms: u64) -> Vec<Entry> {
    entries.retain(|entry| {
        !entry.is_tombstone || !replica::is_past_grace(&entry.version, now, grace_ms)
    });
    entries
}

impl Exchange {
    pub(super) fn new(
        id: u64,
        peer: NodeId,
        prefix: Prefix,
        purpose: Purpose,
        mutation: Mutation,
    ) -> Self {
        Self {
            id,
            peer,
            purpose,
            prefix,
            tasks: vec![Task::Compare(prefix)],
            current: None,
            summing: None,
            ours: None,
            theirs: None,
            our_list: None,
            their_list: None,
            wanted: VecDeque::new(),
            offered: VecDeque::new(),
            resurrected: BTreeSet::new(),
            moving: 0,
            owed: 0,
            tickets: BTreeSet::new(),
            was_behind: false,
            has_failed: false,
            is_unanswered: false,
            keys_compared: 0,
            bytes_moved: 0,
            deadline_ns: 0,
            mutation,
        }
    }

    /// Whether the store's answer is for this one.
    pub(super) fn waits_for(&self, ticket: &Ticket) -> bool {
        self.tickets.contains(ticket)
    }

    pub(super) fn is_over(&self) -> bool {
        self.has_failed
            || (self.current.is_none()
                && self.tasks.is_empty()
                && self.wanted.is_empty()
                && self.offered.is_empty()
                && self.moving == 0)
    }

    /// Goes on as far as possible.
    pub(super) fn advance(&mut self, step: &mut Step<'_>) {
        let wait_ns = step.settings.exchange_for_ms * 1_000_000;
        let now_ns = step.now.monotonic_ns;
        self.compare();
        while self.may_move(now_ns, &step.out.pace) {
            let per_second = step.settings.repair_bytes_per_second;
            step.out.pace.spend(now_ns, std::mem::take(&mut self.owed), per_second);
            if let Some(key) = self.wanted.pop_front() {
                self.moving += 1;
                step.query(Owner::Exchange(self.id), self.peer, |request| PeerMessage::Get {
                    request,
                    key,
                    wants_value: true,
                });
            } else if let Some(key) = self.offered.pop_front() {
                self.moving += 1;
                self.ask_store(StoreRequest::Read { key, wants_value: true }, step);
            } else {
                break;
            }
        }
        let is_idle = self.current.is_none() && self.moving == 0;
        if is_idle && let Some(task) = self.tasks.pop() {
            self.begin(task, step);
        }
        self.deadline_ns = now_ns + wait_ns;
    }

    fn has_to_move(&self) -> bool {
        self.moving < MOVING_MAX && !(self.wanted.is_empty() && self.offered.is_empty())
    }

    /// Whether the next record is to be moved now.
    pub(super) fn may_move(&self, now_ns: u64, pace: &Pace) -> bool {
        self.has_to_move() && pace.is_free(now_ns)
    }

    /// Whether it waits for nothing but its turn to move a record.
    pub(super) fn is_paced(&self) -> bool {
        self.current.is_none() && self.moving == 0 && self.has_to_move()
    }

    /// Whether it has waited for an answer for too long.
    pub(super) fn is_late(&self, now_ns: u64) -> bool {
        self.deadline_ns <= now_ns && !self.is_paced()
    }

    /// When there is something to do.
    pub(super) fn wake_at_ns(&self, pace: &Pace) -> u64 {
        let move_at_ns = if self.has_to_move() { pace.free_at_ns() } else { u64::MAX };
        if self.is_paced() { move_at_ns } else { move_at_ns.min(self.deadline_ns) }
    }

    fn ask_store(&mut self, request: StoreRequest, step: &mut Step<'_>) {
        let ticket = step.out.ask_store(request);
        self.tickets.insert(ticket);
    }

    fn begin(&mut self, task: Task, step: &mut Step<'_>) {
        self.current = Some(task);
        let (prefix, count) = match task {
            Task::Compare(prefix) => (prefix, PAGE_KEYS_MAX),
            Task::List(prefix) => (prefix, super::message::ENTRIES_MAX),
        };
        let is_listing = matches!(task, Task::List(_));
        self.summing = (!is_listing).then(|| Summing::new(prefix));
        step.query(Owner::Exchange(self.id), self.peer, |request| match task {
            Task::Compare(prefix) => PeerMessage::Sums { request, prefix },
            Task::List(prefix) => PeerMessage::List { request, prefix },
        });
        self.ask_store(StoreRequest::Walk { prefix, from: prefix.first_key(), count }, step);
    }

    /// Takes what the other side says; nothing if it will say nothing.
    pub(super) fn on_message(&mut self, message: Option<PeerMessage>, step: &mut Step<'_>) {
        match message {
            Some(PeerMessage::SumsAre { sums, .. }) => self.theirs = Some(sums),
            Some(PeerMessage::Listed { is_whole, entries, .. }) => {
                self.has_failed |= !is_whole;
                self.their_list = Some(entries);
            }
            Some(PeerMessage::Got { found: Found::Record(record), .. }) => {
                self.apply(record, step);
            }
            // It has gone there meanwhile.
            Some(PeerMessage::Got { found: Found::Nothing, .. }) => {
                self.moving = self.moving.saturating_sub(1);
            }
            Some(PeerMessage::PutDone { .. }) => self.moving = self.moving.saturating_sub(1),
            Some(_) => self.has_failed = true,
            None => (self.has_failed, self.is_unanswered) = (true, true),
        }
        self.advance(step);
    }

    fn moved(&mut self, bytes: u64) {
        self.bytes_moved += bytes;
        self.owed += bytes;
    }

    fn apply(&mut self, record: Record, step: &mut Step<'_>) {
        let mut record = record.at(step.now.clock_ms);
        self.moved(record.len() as u64);
        let skew_max_ms = step.settings.clock_skew_max_ms;
        if replica::is_too_far_ahead(&record.version, step.now, skew_max_ms) {
            self.has_failed = true;
            return;
        }
        if self.resurrected.remove(&record.key) {
            record.version.0[..8].copy_from_slice(&(step.now.clock_ms << 16).to_be_bytes());
        }
        self.ask_store(StoreRequest::Apply { record }, step);
    }

    /// Takes what the own store says.
    pub(super) fn on_stored(&mut self, ticket: Ticket, answer: StoreAnswer, step: &mut Step<'_>) {
        self.tickets.remove(&ticket);
        match answer {
            StoreAnswer::Walked(entries, next) => self.walked(entries, next, step),
            StoreAnswer::Read(Found::Record(record)) => {
                let peer = self.peer;
                self.moved(record.len() as u64);
                step.query(Owner::Exchange(self.id), peer, |request| PeerMessage::Put {
                    request,
                    reason: PutReason::Repair,
                    record,
                });
            }
            StoreAnswer::Applied(_) | StoreAnswer::Read(Found::Nothing) => {
                self.moving = self.moving.saturating_sub(1);
            }
            _ => self.has_failed = true,
        }
        self.advance(step);
    }

    fn walked(&mut self, entries: Vec<Entry>, next: Option<Key>, step: &mut Step<'_>) {
        self.keys_compared += entries.len() as u64;
        let entries = countable(entries, step.now, step.settings.tombstone_grace_ms);
        match (&mut self.summing, next) {
            (Some(summing), Some(from)) => {
                summing.add(&entries);
                let (prefix, count) = (summing.prefix(), PAGE_KEYS_MAX);
                self.ask_store(StoreRequest::Walk { prefix, from, count }, step);
            }
            (Some(summing), None) => {
                summing.add(&entries);
                self.ours = self.summing.take().map(Summing::finish);
            }
            (None, next) => {
                self.has_failed |= next.is_some();
                self.our_list = Some(entries);
            }
        }
    }

    /// Compares what is known of both sides.
    fn compare(&mut self) {
        match self.current {
            Some(Task::Compare(prefix)) => {
                let (Some(ours), Some(theirs)) = (&self.ours, &self.theirs) else { return };
                let parts = prefix.parts();
                let pairs = parts.into_iter().zip(ours).zip(theirs).rev();
                for ((part, our), their) in pairs {
                    if our == their {
                        continue;
                    }
                    let is_small = our.count.max(their.count) <= LISTED_MAX || part.len() == 160;
                    self.tasks.push(if is_small { Task::List(part) } else { Task::Compare(part) });
                }
                (self.ours, self.theirs, self.current) = (None, None, None);
            }
            Some(Task::List(_)) => {
                if self.our_list.is_none() || self.their_list.is_none() {
                    return;
                }
                let mut ours = self.our_list.take().unwrap_or_default();
                let theirs = self.their_list.take().unwrap_or_default();
                if self.mutation == Mutation::RepairResurrects {
                    let is_gone = |entry: &&Entry| entry.is_tombstone;
                    self.resurrected = ours.iter().filter(is_gone).map(|entry| entry.key).collect();
                    let living = theirs.iter().filter(|entry| !entry.is_tombstone);
                    let living: BTreeSet<Key> = living.map(|entry| entry.key).collect();
                    self.resurrected.retain(|key| living.contains(key));
                    ours.retain(|entry| !self.resurrected.contains(&entry.key));
                }
                let (wanted, offered) = differences(&ours, &theirs);
                self.was_behind |= !wanted.is_empty();
                self.wanted = wanted.into();
                if self.purpose == Purpose::Repair {
                    self.offered = offered.into();
                }
                self.current = None;
            }
            None => {}
        }
    }
}
