//! [`Scan`]: one page of the keys of the cluster, in the order of their ids.
//!
//! A page is of some regions that follow each other: parts of the key space with one replica set
//! each. Of each a majority of its ready holders is asked, as in a read, all regions at the same
//! time, and of each key the newest version counts. The page ends where the first region has more
//! keys than were asked for, or cannot be decided.

use std::collections::BTreeMap;

use wal::record::Key;

use super::{Candidates, CommandId, Outcome, Owner, Step};
use crate::cluster::message::{Name, PeerMessage};
use crate::cluster::prefix::Prefix;
use crate::kademlia::NodeId;

#[derive(Debug)]
enum Answer {
    Pending,
    /// It does not count: unreachable, or it failed.
    Lost,
    Unready,
    Is {
        names: Vec<Name>,
        next: Option<Key>,
    },
}

/// One region of a page.
#[derive(Debug)]
struct Part {
    region: Prefix,
    candidates: Candidates,
    answers: BTreeMap<NodeId, Answer>,
}

/// How far a region has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Pending,
    Decided,
    Impossible,
}

impl Part {
    fn count(&self, wanted: fn(&Answer) -> bool) -> usize {
        self.answers.values().filter(|answer| wanted(answer)).count()
    }

    fn state(&self) -> State {
        let ready = self.count(|answer| matches!(answer, Answer::Is { .. }));
        if ready >= self.candidates.ready_need {
            return State::Decided;
        }
        let pending = self.count(|answer| matches!(answer, Answer::Pending));
        let possible = ready + pending + self.candidates.left().min(pending);
        let is_possible = possible >= self.candidates.ready_need;
        if is_possible { State::Pending } else { State::Impossible }
    }

    /// Puts the answers together, from a key on: only as far as each of them goes. Returns the
    /// newest record of each key, and where that ends if the region goes on.
    fn take(self, from: Key) -> (Vec<Name>, Option<Key>) {
        let (mut newest, mut limit) = (BTreeMap::<Key, Name>::new(), None::<Key>);
        for answer in self.answers.into_values() {
            let Answer::Is { names, next } = answer else { continue };
            limit = limit.into_iter().chain(next).min();
            for name in names {
                let known = newest.get(&name.entry.key);
                if known.is_none_or(|known| known.entry.version < name.entry.version) {
                    newest.insert(name.entry.key, name);
                }
            }
        }
        let is_within = |key: &Key| {
            let is_before = limit.is_none_or(|limit| *key < limit);
            is_before && *key >= from && self.region.contains(key)
        };
        newest.retain(|key, _| is_within(key));
        (newest.into_values().collect(), limit)
    }
}

/// A page under way.
#[derive(Debug)]
pub struct Scan {
    id: CommandId,
    from: Key,
    count: u16,
    parts: Vec<Part>,
    pub(in crate::cluster) deadline_ns: u64,
}

impl Scan {
    /// A page of at most so many keys of each region, from a key of the first one on.
    pub(in crate::cluster) fn new(
        id: CommandId,
        (from, count): (Key, u16),
        regions: Vec<(Prefix, Candidates)>,
        step: &Step<'_>,
    ) -> Self {
        let wait_ns = step.settings.command_for_ms * 1_000_000;
        let deadline_ns = step.now.monotonic_ns + wait_ns;
        let part = |(region, candidates)| Part { region, candidates, answers: BTreeMap::new() };
        let parts = regions.into_iter().map(part).collect();
        Self { id, from, count, parts, deadline_ns }
    }

    /// Asks the sets.
    pub(in crate::cluster) fn begin(&mut self, step: &mut Step<'_>) {
        for part in 0..self.parts.len() {
            for node in self.parts[part].candidates.first() {
                self.ask(part, node, step);
            }
        }
    }

    fn ask(&mut self, part: usize, node: NodeId, step: &mut Step<'_>) {
        let Part { region, answers, .. } = &mut self.parts[part];
        answers.insert(node, Answer::Pending);
        let (prefix, from, count) = (*region, self.from.max(region.first_key()), self.count);
        // A page has few regions.
        let number = u32::try_from(part).unwrap_or(u32::MAX);
        step.query(Owner::Command(self.id, number), node, |request| PeerMessage::Names {
            request,
            prefix,
            from,
            count,
        });
    }

    /// Takes what a holder says of a region; nothing if it will say nothing.
    pub(in crate::cluster) fn on_answer(
        &mut self,
        from: NodeId,
        number: u32,
        message: Option<PeerMessage>,
        step: &mut Step<'_>,
    ) {
        let part = number as usize;
        let Some(Part { answers, candidates, .. }) = self.parts.get_mut(part) else { return };
        let answer = match message {
            Some(PeerMessage::Named { is_ready: true, next, names, .. }) => {
                Answer::Is { names, next }
            }
            Some(PeerMessage::Named { .. }) => Answer::Unready,
            _ => Answer::Lost,
        };
        let is_unready = matches!(answer, Answer::Unready);
        answers.insert(from, answer);
        if is_unready && let Some(next) = candidates.further() {
            self.ask(part, next, step);
        }
    }

    /// Decides as soon as that is possible.
    pub(in crate::cluster) fn decide(&mut self) -> Option<Outcome> {
        for part in &self.parts {
            match part.state() {
                State::Decided => {}
                State::Pending => return None,
                State::Impossible => return Some(self.give_up()),
            }
        }
        Some(self.give_up())
    }

    /// What is told when the time is over: the regions before the first one that is not decided,
    /// if there are any.
    pub(in crate::cluster) fn give_up(&mut self) -> Outcome {
        let is_undecided = |part: &Part| part.state() != State::Decided;
        let decided = self.parts.iter().position(is_undecided).unwrap_or(self.parts.len());
        if decided == 0 {
            let unready = self.parts[0].count(|answer| matches!(answer, Answer::Unready));
            return if unready > 0 { Outcome::NotReady } else { Outcome::NoReplicas };
        }
        let (mut looked, mut names, mut next) = (0, Vec::new(), None);
        for part in self.parts.drain(..decided) {
            let end = part.region.end();
            let (found, limit) = part.take(self.from);
            looked += found.len();
            let living = found.into_iter().filter(|name| !name.entry.is_tombstone);
            names.extend(living.map(|name| name.user_key));
            next = limit.or(end);
            if limit.is_some() {
                break;
            }
        }
        Outcome::Listed { looked, names, next }
    }
}
