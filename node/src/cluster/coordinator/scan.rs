//! [`Scan`]: one page of the keys of the cluster, in the order of their ids.
//!
//! A page is of one region: a part of the key space with one replica set. A majority of its ready
//! holders is asked, as in a read, and of each key the newest version counts.

use std::collections::BTreeMap;

use bytes::Bytes;
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

/// A page under way.
#[derive(Debug)]
pub struct Scan {
    id: CommandId,
    region: Prefix,
    from: Key,
    count: u16,
    candidates: Candidates,
    answers: BTreeMap<NodeId, Answer>,
    pub(in crate::cluster) deadline_ns: u64,
}

impl Scan {
    /// A page of at most so many keys of a region, from a key on.
    pub(in crate::cluster) fn new(
        id: CommandId,
        (region, from, count): (Prefix, Key, u16),
        candidates: Candidates,
        step: &Step<'_>,
    ) -> Self {
        let wait_ns = step.settings.command_for_ms * 1_000_000;
        let deadline_ns = step.now.monotonic_ns + wait_ns;
        Self { id, region, from, count, candidates, answers: BTreeMap::new(), deadline_ns }
    }

    /// Asks the set.
    pub(in crate::cluster) fn begin(&mut self, step: &mut Step<'_>) {
        for node in self.candidates.first() {
            self.ask(node, step);
        }
    }

    fn ask(&mut self, node: NodeId, step: &mut Step<'_>) {
        self.answers.insert(node, Answer::Pending);
        let (prefix, from, count) = (self.region, self.from, self.count);
        step.query(Owner::Command(self.id, 0), node, |request| PeerMessage::Names {
            request,
            prefix,
            from,
            count,
        });
    }

    /// Takes what a holder says; nothing if it will say nothing.
    pub(in crate::cluster) fn on_answer(
        &mut self,
        from: NodeId,
        message: Option<PeerMessage>,
        step: &mut Step<'_>,
    ) {
        let answer = match message {
            Some(PeerMessage::Named { is_ready: true, next, names, .. }) => {
                Answer::Is { names, next }
            }
            Some(PeerMessage::Named { .. }) => Answer::Unready,
            _ => Answer::Lost,
        };
        let is_unready = matches!(answer, Answer::Unready);
        self.answers.insert(from, answer);
        if is_unready && let Some(next) = self.candidates.further() {
            self.ask(next, step);
        }
    }

    /// Decides as soon as that is possible.
    pub(in crate::cluster) fn decide(&mut self) -> Option<Outcome> {
        let count = |wanted: fn(&Answer) -> bool| {
            self.answers.values().filter(|answer| wanted(answer)).count()
        };
        let ready = count(|answer| matches!(answer, Answer::Is { .. }));
        if ready >= self.candidates.ready_need {
            return Some(self.page());
        }
        let pending = count(|answer| matches!(answer, Answer::Pending));
        let possible = ready + pending + self.candidates.left().min(pending);
        let is_possible = possible >= self.candidates.ready_need;
        (!is_possible).then(|| self.give_up())
    }

    /// What is told when the time is over.
    pub(in crate::cluster) fn give_up(&self) -> Outcome {
        let is_unready = |answer: &Answer| matches!(answer, Answer::Unready);
        if self.answers.values().any(is_unready) { Outcome::NotReady } else { Outcome::NoReplicas }
    }

    /// Puts the answers together: only as far as each of them goes.
    fn page(&mut self) -> Outcome {
        let (mut newest, mut limit) = (BTreeMap::<Key, Name>::new(), None::<Key>);
        for answer in std::mem::take(&mut self.answers).into_values() {
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
            is_before && *key >= self.from && self.region.contains(key)
        };
        newest.retain(|key, _| is_within(key));
        let looked = newest.len();
        let living = newest.into_values().filter(|name| !name.entry.is_tombstone);
        let names: Vec<Bytes> = living.map(|name| name.user_key).collect();
        Outcome::Listed { looked, names, next: limit.or_else(|| self.region.end()) }
    }
}
