//! Copies outside of a node's own ranges: pushed to those who lack them, given up once all have
//! confirmed.

use std::collections::{BTreeMap, VecDeque};

use storage::Now;
use wal::record::Key;

use super::{
    ClusterEvent, ClusterNode, Found, Mutation, Owner, PeerMessage, Phase, PrefixSet, Standing,
    StoreAnswer, StoreRequest, Ticket, placement, step,
};
use crate::cluster::exchange::countable;
use crate::cluster::hand_off::{Cleaning, Stage, Unclean};
use crate::cluster::message::{Entry, PutReason};
use crate::cluster::prefix::Prefix;
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
            // Nobody else is there to take what it holds.
            self.background.pass_found |= self.view.placed.is_empty();
            if !self.view.placed.is_empty() {
                self.background.to_clean = self.unclean();
            }
        }
        match self.background.to_clean.pop_front() {
            Some(Unclean::Claimed(region)) => {
                let (placed, replicas) = (&self.view.placed, self.settings.replicas);
                let set = placement::around(&region, placed, replicas);
                self.clean_page(now, (region, set), region.first_key(), Stage::Walking);
            }
            Some(Unclean::Keys(prefix, from)) => {
                self.clean_page(now, (prefix, Vec::new()), from, Stage::Finding);
            }
            None => {}
        }
    }

    /// What to look through: keys of other nodes' ranges as they come, then ranges of these that
    /// this node claims to hold, be there keys in them or not. There may be very many such ranges,
    /// few of them with keys: two nodes with similar ids can share each second one of thousands.
    fn unclean(&self) -> VecDeque<Unclean> {
        let (placed, replicas) = (&self.view.placed, self.settings.replicas);
        let claimed = self.held.minus(&self.mine);
        let regions = claimed.iter().flat_map(|part| placement::regions(*part, placed, replicas));
        // Of a part of a region nobody could be asked more than of all of it.
        let regions = regions.map(|(region, _)| Unclean::Claimed(region));
        let outside = PrefixSet::all().minus(&self.mine);
        let keys = outside.iter().map(|prefix| Unclean::Keys(*prefix, prefix.first_key()));
        keys.chain(regions).collect()
    }

    fn clean_page(
        &mut self,
        now: Now,
        (prefix, set): (Prefix, Vec<NodeId>),
        from: Key,
        stage: fn(Ticket) -> Stage,
    ) {
        let count = PAGE_KEYS_MAX;
        let ticket = self.out.ask_store(StoreRequest::Walk { prefix, from, count });
        let wait_ns = self.settings.exchange_for_ms * 1_000_000;
        self.background.cleaning = Some(Cleaning {
            prefix,
            set,
            page: Vec::new(),
            next: None,
            stage: stage(ticket),
            deadline_ns: now.monotonic_ns + wait_ns,
        });
    }

    /// A page of keys of any ranges: the range of the first one is next.
    fn find_region(&mut self, now: Now, cleaning: Cleaning, entries: &[Entry], next: Option<Key>) {
        let grace_ms = self.settings.tombstone_grace_ms;
        let page = countable(entries.to_vec(), now, grace_ms);
        let Some(first) = page.first() else {
            match next {
                Some(next) => {
                    self.clean_page(now, (cleaning.prefix, Vec::new()), next, Stage::Finding);
                }
                // The next pass waits for its time.
                None if !self.background.to_clean.is_empty() => self.clean_next(now),
                None => {}
            }
            return;
        };
        let (placed, replicas) = (&self.view.placed, self.settings.replicas);
        if placed.is_empty() || self.mine.contains(&first.key) {
            // Members have changed meanwhile.
            return;
        }
        let region = placement::region_of(&first.key, placed, replicas);
        let set = placement::around(&region, placed, replicas);
        if let Some(rest) = region.end().filter(|end| cleaning.prefix.contains(end)) {
            self.background.to_clean.push_front(Unclean::Keys(cleaning.prefix, rest));
        }
        let behind = page.iter().position(|entry| !region.contains(&entry.key));
        let next = if behind.is_some() { None } else { next.filter(|key| region.contains(key)) };
        let page = page[..behind.unwrap_or(page.len())].to_vec();
        self.ask_set(now, Cleaning { prefix: region, set, page, next, ..cleaning });
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
            for node in self.view.placed.clone() {
                let entries = entries.clone();
                self.out.send(node, PeerMessage::Members { wants_answer: false, entries });
            }
            self.events.push_back(ClusterEvent::Left);
            return None;
        }
        let Some(mut cleaning) = self.background.cleaning.take() else { return Some(answer) };
        match (&mut cleaning.stage, answer) {
            (Stage::Finding(waited), StoreAnswer::Walked(entries, next)) if *waited == ticket => {
                self.find_region(now, cleaning, &entries, next);
            }
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
            (Stage::Finding(at) | Stage::Walking(at) | Stage::Saving(at, _), _)
                if *at == ticket =>
            {
                // Nobody knows what is there.
                self.background.pass_found = true;
            }
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
        for Entry { key, version, .. } in entries {
            // The set may have changed since it was asked: a newcomer has confirmed nothing.
            let set = placement::closest(&key, &self.view.placed, self.settings.replicas);
            let is_confirmed = set.iter().all(|node| confirmed.contains(node));
            if is_confirmed && !self.mine.contains(&key) {
                self.counters.copies_discarded += 1;
                self.out.ask_store(StoreRequest::Discard { key, version });
            }
        }
    }

    fn next_page(&mut self, now: Now, cleaning: Cleaning) {
        match cleaning.next {
            Some(from) => {
                let Cleaning { prefix, set, .. } = cleaning;
                self.clean_page(now, (prefix, set), from, Stage::Walking);
            }
            None if !self.background.to_clean.is_empty() => self.clean_next(now),
            None => {}
        }
    }
}
