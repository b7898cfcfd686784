//! Copies outside of a node's own ranges: pushed to those who lack them, given up once all have
//! confirmed.

use std::collections::BTreeMap;

use storage::Now;
use wal::record::Key;

use super::{
    ClusterEvent, ClusterNode, Found, Mutation, Owner, PeerMessage, Phase, PrefixSet, Standing,
    StoreAnswer, StoreRequest, Ticket, placement, step,
};
use crate::cluster::exchange::countable;
use crate::cluster::hand_off::{Cleaning, Stage};
use crate::cluster::message::{Entry, PutReason};
use crate::kademlia::NodeId;

/// Keys of one page.
const PAGE_KEYS_MAX: usize = 64;
/// Records pushed at the same time.
const PUSHING_MAX: usize = 64;

impl ClusterNode {
    /// Looks through the next range, unless one is being looked through.
    pub(super) fn clean_next(&mut self, now: Now) {
        if self.background.cleaning.is_some() || self.background.leaving.is_some() {
            return;
        }
        if self.background.to_clean.is_empty() {
            let is_leaving = self.members.own().phase == Phase::Leaving;
            let is_member = self.members.own().standing != Standing::Removed;
            let has_passed = !std::mem::replace(&mut self.background.pass_found, false);
            if is_leaving && is_member && has_passed {
                self.members.leave();
                self.background.leaving = Some(self.save(now));
                return;
            }
            let (placed, replicas) = (self.members.placed(), self.settings.replicas);
            // Nobody else is there to take what it holds.
            self.background.pass_found |= placed.is_empty();
            let outside = PrefixSet::all().minus(&self.mine);
            let regions =
                outside.iter().flat_map(|prefix| placement::regions(*prefix, &placed, replicas));
            let own = self.own;
            let is_other = |set: &Vec<NodeId>| !set.is_empty() && !set.contains(&own);
            self.background.to_clean = regions.filter(|(_, set)| is_other(set)).collect();
        }
        if let Some((prefix, set)) = self.background.to_clean.pop_front() {
            self.clean_page(now, prefix, set, prefix.first_key());
        }
    }

    fn clean_page(
        &mut self,
        now: Now,
        prefix: crate::cluster::prefix::Prefix,
        set: Vec<NodeId>,
        from: Key,
    ) {
        let count = PAGE_KEYS_MAX;
        let ticket = self.out.ask_store(StoreRequest::Walk { prefix, from, count });
        let wait_ns = self.settings.exchange_for_ms * 1_000_000;
        self.background.cleaning = Some(Cleaning {
            prefix,
            set,
            page: Vec::new(),
            next: None,
            stage: Stage::Walking(ticket),
            deadline_ns: now.monotonic_ns + wait_ns,
        });
    }

    /// Takes the store's answer, if it is for this; else gives it back.
    pub(super) fn on_cleaning_stored(
        &mut self,
        now: Now,
        ticket: Ticket,
        answer: StoreAnswer,
    ) -> Option<StoreAnswer> {
        if let Some(to) = self.background.pushing.remove(&ticket) {
            if let StoreAnswer::Read(Found::Record(record)) = answer {
                let request = self.out.take_id();
                let reason = PutReason::Repair;
                self.out.send(to, PeerMessage::Put { request, reason, record });
            }
            return None;
        }
        if self.background.leaving == Some(ticket) {
            let entries: Vec<_> = self.members.entries().cloned().collect();
            for node in self.members.placed() {
                let entries = entries.clone();
                self.out.send(node, PeerMessage::Members { wants_answer: false, entries });
            }
            self.events.push_back(ClusterEvent::Left);
            return None;
        }
        let Some(mut cleaning) = self.background.cleaning.take() else { return Some(answer) };
        match (&mut cleaning.stage, answer) {
            (Stage::Walking(waited), StoreAnswer::Walked(entries, next)) if *waited == ticket => {
                let grace_ms = self.settings.tombstone_grace_ms;
                cleaning.page = countable(entries, now, grace_ms);
                cleaning.next = next;
                self.ask_set(now, cleaning);
            }
            (Stage::Saving(waited, entries), StoreAnswer::Done) if *waited == ticket => {
                let entries = std::mem::take(entries);
                self.discard(&cleaning.set, entries);
                self.next_page(now, cleaning);
            }
            (Stage::Walking(waited) | Stage::Saving(waited, _), _) if *waited == ticket => {}
            (_, answer) => {
                self.background.cleaning = Some(cleaning);
                return Some(answer);
            }
        }
        None
    }

    fn ask_set(&mut self, now: Now, mut cleaning: Cleaning) {
        let is_claimed = self.held.touches(&cleaning.prefix);
        self.background.pass_found |= is_claimed || !cleaning.page.is_empty();
        if cleaning.page.is_empty() && !is_claimed {
            self.next_page(now, cleaning);
            return;
        }
        if self.mutation == Mutation::DropsUnconfirmed {
            let entries = std::mem::take(&mut cleaning.page);
            self.discard(&cleaning.set, entries);
            self.next_page(now, cleaning);
            return;
        }
        let prefix = cleaning.prefix;
        self.queries.0.retain(|_, (owner, _)| *owner != Owner::Cleaning);
        for node in &cleaning.set {
            let entries = cleaning.page.clone();
            let mut step = step(&mut self.out, &mut self.queries, &self.settings, now);
            step.query(Owner::Cleaning, *node, |request| PeerMessage::Have {
                request,
                prefix,
                entries,
            });
        }
        let answers: BTreeMap<_, _> = cleaning.set.iter().map(|node| (*node, None)).collect();
        cleaning.stage = Stage::Asking(answers);
        self.background.cleaning = Some(cleaning);
    }

    /// One of the set says what it has.
    pub(super) fn on_have_answer(&mut self, now: Now, from: NodeId, message: Option<PeerMessage>) {
        let Some(mut cleaning) = self.background.cleaning.take() else { return };
        let Some(PeerMessage::HaveIs { is_ready, held, .. }) = message else {
            // Without all of the set nothing is given up; the range comes up again.
            return;
        };
        if let Stage::Asking(answers) = &mut cleaning.stage {
            answers.insert(from, Some((is_ready, held)));
        }
        let Some(verdict) = cleaning.verdict() else {
            self.background.cleaning = Some(cleaning);
            return;
        };
        for (node, key) in verdict.lacking {
            if self.background.pushing.len() < PUSHING_MAX {
                let ticket = self.out.ask_store(StoreRequest::Read { key, wants_value: true });
                self.background.pushing.insert(ticket, node);
            }
        }
        if !verdict.is_ready {
            return;
        }
        if self.held.touches(&cleaning.prefix) {
            self.held.remove(&cleaning.prefix);
            let ticket = self.save(now);
            cleaning.stage = Stage::Saving(ticket, verdict.confirmed);
            self.background.cleaning = Some(cleaning);
        } else {
            self.discard(&cleaning.set, verdict.confirmed);
            self.next_page(now, cleaning);
        }
    }

    /// Gives up what all of a set have confirmed.
    fn discard(&mut self, confirmed: &[NodeId], entries: Vec<Entry>) {
        let (placed, replicas) = (self.members.placed(), self.settings.replicas);
        for Entry { key, version, .. } in entries {
            // The set may have changed since it was asked: a newcomer has confirmed nothing.
            let set = placement::replica_set(&key, &placed, replicas);
            let is_confirmed = set.iter().all(|node| confirmed.contains(node));
            if is_confirmed && !self.mine.contains(&key) {
                self.counters.copies_discarded += 1;
                self.out.ask_store(StoreRequest::Discard { key, version });
            }
        }
    }

    fn next_page(&mut self, now: Now, cleaning: Cleaning) {
        match cleaning.next {
            Some(from) => self.clean_page(now, cleaning.prefix, cleaning.set, from),
            None if !self.background.to_clean.is_empty() => self.clean_next(now),
            None => {}
        }
    }
}
