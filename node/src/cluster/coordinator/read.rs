//! [`Read`]: one read. Its answer is the newest record that a majority of the ready holders knows
//! of, and a majority holds it before the client hears of it.

use std::collections::{BTreeMap, BTreeSet};

use wal::record::{Key, Version};

use super::{ATTEMPTS_MAX, Candidates, CommandId, Outcome, Owner, Step};
use crate::cluster::message::{Content, Found, Header, PeerMessage, PutOutcome, PutReason, Record};
use crate::kademlia::NodeId;

/// How many holders a read asks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Consistency {
    /// A majority.
    #[default]
    Majority,
    /// The first one that answers.
    One,
}

/// How good a holder is to ask for the value: the first of these is the best.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::cluster) enum Rank {
    /// This node has what there is of the key: no value goes over the network.
    Here,
    Up,
    /// It may not have the key yet.
    Joining,
    Silent,
}

#[derive(Clone, Copy, Debug)]
enum Answer {
    Pending,
    /// It does not count: unreachable, or it failed.
    Lost,
    Is {
        is_ready: bool,
        header: Option<Header>,
    },
}

/// A read under way.
#[derive(Debug)]
pub struct Read {
    id: CommandId,
    key: Key,
    consistency: Consistency,
    candidates: Candidates,
    answers: BTreeMap<NodeId, Answer>,
    newest: Option<Record>,
    /// Who is asked for the newest value.
    fetching: Option<NodeId>,
    /// Who was sent the newest record.
    repaired: BTreeSet<NodeId>,
    /// With which version.
    repairing: Option<Version>,
    attempt: u32,
    /// Further holders that were asked before anybody said that it is not ready.
    instead: usize,
    pub(in crate::cluster) deadline_ns: u64,
}

impl Read {
    pub(in crate::cluster) fn new(
        id: CommandId,
        key: Key,
        consistency: Consistency,
        candidates: Candidates,
        step: &Step<'_>,
    ) -> Self {
        let wait_ns = step.settings.command_for_ms * 1_000_000;
        Self {
            id,
            key,
            consistency,
            candidates,
            answers: BTreeMap::new(),
            newest: None,
            fetching: None,
            repaired: BTreeSet::new(),
            repairing: None,
            attempt: 0,
            instead: 0,
            deadline_ns: step.now.monotonic_ns + wait_ns,
        }
    }

    /// Which key.
    pub(in crate::cluster) fn key(&self) -> &Key {
        &self.key
    }

    /// Asks the set: the best of it for the value, the others for the version. Whoever is joining
    /// is likely not to be ready: as many others are asked at once.
    pub(in crate::cluster) fn begin(
        &mut self,
        rank: impl Fn(&NodeId) -> Rank,
        step: &mut Step<'_>,
    ) {
        self.answers.clear();
        self.repaired.clear();
        (self.newest, self.fetching, self.repairing) = (None, None, None);
        let set = self.candidates.first();
        let preferred = set.iter().min_by_key(|node| rank(node)).copied();
        self.instead = 0;
        if self.consistency == Consistency::One {
            let rest = set.iter().filter(|node| Some(**node) != preferred);
            let mut order: Vec<NodeId> = preferred.iter().chain(rest).copied().collect();
            order.extend_from_slice(&self.candidates.order[set.len()..]);
            self.candidates.order = order;
            self.candidates.asked = usize::from(preferred.is_some());
        } else {
            let joining = set.iter().filter(|node| rank(node) == Rank::Joining).count();
            self.instead = joining.min(self.candidates.left());
            self.candidates.asked += self.instead;
        }
        let asked = self.candidates.order[..self.candidates.asked].to_vec();
        for node in asked {
            self.ask(node, Some(node) == preferred, step);
        }
    }

    fn ask(&mut self, node: NodeId, wants_value: bool, step: &mut Step<'_>) {
        self.answers.insert(node, Answer::Pending);
        if wants_value {
            self.fetching = Some(node);
        }
        let key = self.key;
        step.query(Owner::Command(self.id, self.attempt), node, |request| PeerMessage::Get {
            request,
            key,
            wants_value,
        });
    }

    /// Takes what a holder has; nothing if there will be no answer.
    pub(in crate::cluster) fn on_found(
        &mut self,
        from: NodeId,
        attempt: u32,
        found: Option<(bool, Found)>,
        step: &mut Step<'_>,
    ) {
        if attempt != self.attempt {
            return;
        }
        if self.fetching == Some(from) {
            self.fetching = None;
        }
        let found = found.filter(|(_, found)| *found != Found::Failed);
        let Some((is_ready, found)) = found else {
            self.answers.insert(from, Answer::Lost);
            self.repaired.remove(&from);
            if self.consistency == Consistency::One {
                self.ask_further(step);
            }
            return;
        };
        let now_ms = step.now.clock_ms;
        let header = found.header().map(|header| header.at(now_ms));
        self.answers.insert(from, Answer::Is { is_ready, header });
        if let Found::Record(record) = found {
            let is_newer = |known: &Record| record.version > known.version;
            if self.newest.as_ref().is_none_or(is_newer) {
                self.newest = Some(record.at(now_ms));
            }
        }
        if !is_ready && self.instead > 0 {
            self.instead -= 1;
        } else if !is_ready {
            self.ask_further(step);
        }
    }

    fn ask_further(&mut self, step: &mut Step<'_>) {
        let wants_value = self.consistency == Consistency::One;
        if let Some(next) = self.candidates.further() {
            self.ask(next, wants_value, step);
        }
    }

    /// Takes what became of a repair. True if the read is to begin anew.
    pub(in crate::cluster) fn on_repaired(
        &mut self,
        from: NodeId,
        attempt: u32,
        outcome: Option<PutOutcome>,
    ) -> bool {
        if attempt != self.attempt {
            return false;
        }
        match outcome {
            Some(PutOutcome::Applied { is_ready }) => {
                let header = self.newest.as_ref().map(Record::header);
                self.answers.insert(from, Answer::Is { is_ready, header });
            }
            Some(PutOutcome::NotNewer { .. }) if self.attempt < ATTEMPTS_MAX => {
                self.attempt += 1;
                return true;
            }
            _ => drop(self.answers.insert(from, Answer::Lost)),
        }
        false
    }

    fn newest_header(&self) -> Option<Header> {
        let headers = self.answers.values().filter_map(|answer| match answer {
            Answer::Is { header, .. } => *header,
            _ => None,
        });
        headers.max_by_key(|header| header.version)
    }

    fn count(&self, wanted: impl Fn(&NodeId, &Answer) -> bool) -> usize {
        self.answers.iter().filter(|(node, answer)| wanted(node, answer)).count()
    }

    /// Decides, or does what has to be done first.
    pub(in crate::cluster) fn decide(&mut self, step: &mut Step<'_>) -> Option<Outcome> {
        if self.consistency == Consistency::One {
            return self.decide_by_one();
        }
        let ready = self.count(|_, answer| matches!(answer, Answer::Is { is_ready: true, .. }));
        let pending = self.count(|_, answer| matches!(answer, Answer::Pending));
        if ready < self.candidates.ready_need {
            let possible = ready + pending + self.candidates.left().min(pending);
            return (possible < self.candidates.ready_need).then(|| self.give_up());
        }
        let Some(newest) = self.newest_header() else { return Some(Outcome::Found(None)) };
        let holds = |answer: &Answer, version: Version| match answer {
            Answer::Is { header: Some(header), .. } => header.version == version,
            _ => false,
        };
        let copies = self
            .count(|node, answer| self.candidates.is_in_set(node) && holds(answer, newest.version));
        let ready = self.count(|_, answer| {
            matches!(answer, Answer::Is { is_ready: true, .. }) && holds(answer, newest.version)
        });
        let is_held = copies >= self.candidates.set_need && ready >= self.candidates.ready_need;
        let is_known = self.newest.as_ref().is_some_and(|known| known.version == newest.version);
        if !is_known {
            self.learn(&newest, step);
        }
        let known = self.newest.clone().filter(|known| known.version == newest.version);
        let Some(record) = known else {
            let can_learn = self.fetching.is_some();
            return (!can_learn && pending == 0).then_some(Outcome::NoReplicas);
        };
        if is_held {
            let is_value = record.content != Content::Tombstone;
            return Some(Outcome::Found(is_value.then_some(record)));
        }
        self.repair(&record, step);
        None
    }

    /// Whether something newer turned up while an older record was being spread: then the read
    /// begins anew.
    pub(in crate::cluster) fn take_restart(&mut self) -> bool {
        let newest = self.newest_header().map(|header| header.version);
        let is_outdated = self.repairing.is_some() && self.repairing != newest;
        self.attempt += u32::from(is_outdated);
        is_outdated
    }

    /// Makes the newest record known: a tombstone can be made of its header.
    fn learn(&mut self, newest: &Header, step: &mut Step<'_>) {
        if newest.is_tombstone {
            self.newest = Some(Record {
                namespace: wal::record::Namespace::PLAIN,
                key: self.key,
                user_key: bytes::Bytes::new(),
                version: newest.version,
                expiry_ms: 0,
                content: Content::Tombstone,
            });
            return;
        }
        if self.fetching.is_some() {
            return;
        }
        let holder = self.answers.iter().find_map(|(node, answer)| match answer {
            Answer::Is { header: Some(header), .. } if header.version == newest.version => {
                Some(*node)
            }
            _ => None,
        });
        if let Some(holder) = holder {
            self.ask(holder, true, step);
        }
    }

    /// Sends the newest record to those that are known to lack it.
    fn repair(&mut self, record: &Record, step: &mut Step<'_>) {
        let lacks = |answer: &Answer| match answer {
            Answer::Is { header, .. } => {
                header.is_none_or(|header| header.version < record.version)
            }
            _ => false,
        };
        let lacking: Vec<NodeId> = self
            .answers
            .iter()
            .filter(|(node, answer)| lacks(answer) && !self.repaired.contains(*node))
            .map(|(node, _)| *node)
            .collect();
        if !lacking.is_empty() {
            self.repairing = Some(record.version);
        }
        for node in lacking {
            self.repaired.insert(node);
            let record = record.clone();
            step.query(Owner::Command(self.id, self.attempt), node, |request| PeerMessage::Put {
                request,
                reason: PutReason::Repair,
                record,
            });
        }
    }

    fn decide_by_one(&self) -> Option<Outcome> {
        let ready = self.answers.iter().find_map(|(_, answer)| match answer {
            Answer::Is { is_ready: true, header } => Some(*header),
            _ => None,
        });
        if let Some(header) = ready {
            let version = header.filter(|header| !header.is_tombstone).map(|header| header.version);
            let record = self.newest.clone().filter(|record| Some(record.version) == version);
            return Some(Outcome::Found(record));
        }
        let is_pending = self.count(|_, answer| matches!(answer, Answer::Pending)) > 0;
        (!is_pending).then(|| self.give_up())
    }

    /// What is told when no majority of ready holders has answered: whether that is because some
    /// have not been filled yet.
    pub(in crate::cluster) fn give_up(&self) -> Outcome {
        let ready = self.count(|_, answer| matches!(answer, Answer::Is { is_ready: true, .. }));
        let all = self.count(|_, answer| matches!(answer, Answer::Is { .. }));
        let need = self.candidates.ready_need;
        if ready < need && all >= need { Outcome::NotReady } else { Outcome::NoReplicas }
    }
}
