//! [`Write`]: one write, until a majority has it, and on until all have.
//!
//! A node whose clock is too far ahead does not know that. What it wrote would stay in its own
//! store when all others have refused it, above whatever they write later. So unless others have
//! taken what it wrote under the same clock, its own copy waits until one of them has.

use std::collections::BTreeMap;

use wal::record::Version;

use super::{ATTEMPTS_MAX, Candidates, CommandId, Outcome, Owner, Step};
use crate::cluster::message::{PeerMessage, PutOutcome, PutReason, Record};
use crate::cluster::replica;
use crate::kademlia::NodeId;

/// A write under way.
#[derive(Debug)]
pub struct Write {
    id: CommandId,
    pub(in crate::cluster) record: Record,
    candidates: Candidates,
    /// Nothing from those that were asked and have not answered.
    answers: BTreeMap<NodeId, Option<Reply>>,
    /// The node itself, while its copy waits for another one's.
    held_back: Option<NodeId>,
    attempt: u32,
    pub(in crate::cluster) deadline_ns: u64,
    /// Whether the client was told.
    pub(in crate::cluster) is_told: bool,
    copies_told: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reply {
    Applied {
        is_ready: bool,
    },
    Refused,
    /// The version is too far ahead of the holder's clock.
    TooFarAhead,
    KeyConflict,
}

impl Write {
    pub(in crate::cluster) fn new(
        id: CommandId,
        record: Record,
        candidates: Candidates,
        step: &Step<'_>,
    ) -> Self {
        let wait_ns = step.settings.command_for_ms * 1_000_000;
        Self {
            id,
            record,
            candidates,
            answers: BTreeMap::new(),
            held_back: None,
            attempt: 0,
            deadline_ns: step.now.monotonic_ns + wait_ns,
            is_told: false,
            copies_told: 0,
        }
    }

    /// Lets the copy of `own` wait for another one's, if there is to be another one.
    pub(in crate::cluster) fn hold_back(&mut self, own: NodeId) {
        let has_others = self.candidates.set().iter().any(|node| *node != own);
        self.held_back = has_others.then_some(own);
    }

    /// Sends the record to the set.
    pub(in crate::cluster) fn begin(&mut self, step: &mut Step<'_>) {
        self.answers.clear();
        for node in self.candidates.first() {
            if self.held_back == Some(node) {
                self.answers.insert(node, None);
            } else {
                self.ask(node, step);
            }
        }
    }

    fn ask(&mut self, node: NodeId, step: &mut Step<'_>) {
        self.answers.insert(node, None);
        let record = self.record.clone();
        step.query(Owner::Command(self.id, self.attempt), node, |request| PeerMessage::Put {
            request,
            reason: PutReason::Write,
            record,
        });
    }

    /// Takes an answer, or that there will be none. Returns a stored version that is not lower:
    /// then the write goes on with [`Write::resend`].
    pub(in crate::cluster) fn on_answer(
        &mut self,
        from: NodeId,
        attempt: u32,
        outcome: Option<PutOutcome>,
        step: &mut Step<'_>,
    ) -> Option<Version> {
        if attempt != self.attempt {
            return None;
        }
        let reply = match outcome {
            Some(PutOutcome::Applied { is_ready }) => Reply::Applied { is_ready },
            Some(PutOutcome::KeyConflict) => Reply::KeyConflict,
            Some(PutOutcome::NotNewer { stored }) if !self.is_told => {
                let skew_max_ms = step.settings.clock_skew_max_ms;
                if !replica::is_too_far_ahead(&stored, step.now, skew_max_ms)
                    && self.attempt < ATTEMPTS_MAX
                {
                    return Some(stored);
                }
                Reply::Refused
            }
            // What is newer stands for the write once that was acknowledged.
            Some(PutOutcome::NotNewer { .. }) => Reply::Applied { is_ready: false },
            Some(PutOutcome::TooFarAhead) => Reply::TooFarAhead,
            Some(PutOutcome::Failed) | None => Reply::Refused,
        };
        self.answers.insert(from, Some(reply));
        if matches!(reply, Reply::Applied { .. })
            && let Some(own) = self.held_back.take()
            && self.candidates.is_in_set(&own)
        {
            self.ask(own, step);
        }
        let is_unready = matches!(reply, Reply::Applied { is_ready: false });
        if is_unready
            && !self.is_told
            && let Some(next) = self.candidates.further()
        {
            self.ask(next, step);
        }
        None
    }

    /// Begins anew under a higher version.
    pub(in crate::cluster) fn resend(&mut self, version: Version, step: &mut Step<'_>) {
        self.record.version = version;
        self.attempt += 1;
        self.begin(step);
    }

    /// Copies in the set.
    pub(in crate::cluster) fn copies(&self) -> usize {
        let is_copy =
            |node: &&NodeId| matches!(self.answers.get(*node), Some(Some(Reply::Applied { .. })));
        self.candidates.set().iter().filter(is_copy).count()
    }

    /// Whether nothing more is to come.
    pub(in crate::cluster) fn is_over(&self) -> bool {
        self.answers.values().all(Option::is_some)
    }

    /// The number of copies, if it grew since it was told.
    pub(in crate::cluster) fn take_copies(&mut self) -> Option<usize> {
        let copies = self.copies();
        let grew = self.is_told && copies > self.copies_told;
        self.copies_told = copies;
        grew.then_some(copies)
    }

    /// What the client can be told, as soon as it can.
    pub(in crate::cluster) fn decide(&mut self) -> Option<Outcome> {
        let outcome = self.decision()?;
        self.is_told = true;
        self.copies_told = self.copies();
        Some(outcome)
    }

    fn decision(&self) -> Option<Outcome> {
        let count = |wanted: &dyn Fn(&NodeId, &Option<Reply>) -> bool| {
            self.answers.iter().filter(|(node, reply)| wanted(node, reply)).count()
        };
        let copies = self.copies();
        let ready = count(&|_, reply| *reply == Some(Reply::Applied { is_ready: true }));
        let Candidates { set_need, ready_need, .. } = self.candidates;
        if copies >= set_need && ready >= ready_need {
            return Some(Outcome::Written { version: self.record.version, copies });
        }
        if count(&|_, reply| *reply == Some(Reply::KeyConflict)) > 0 {
            return Some(Outcome::KeyConflict);
        }
        let pending_set = count(&|node, reply| reply.is_none() && self.candidates.is_in_set(node));
        let pending = count(&|_, reply| reply.is_none());
        let is_hopeless = copies + pending_set < set_need
            || ready + pending + self.candidates.left().min(pending) < ready_need;
        is_hopeless.then(|| self.give_up())
    }

    /// What is told when no majority has taken the write: whether that is because of this node's
    /// clock, or because some have not been filled yet.
    pub(in crate::cluster) fn give_up(&self) -> Outcome {
        let replies = || self.answers.values().flatten();
        let applied = replies().filter(|reply| matches!(reply, Reply::Applied { .. })).count();
        let is_unready = |reply: &Reply| *reply == Reply::Applied { is_ready: false };
        if replies().any(|reply| *reply == Reply::TooFarAhead) {
            Outcome::ClockAhead
        } else if applied >= self.candidates.ready_need && replies().any(is_unready) {
            Outcome::NotReady
        } else {
            Outcome::NoReplicas
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::coordinator::Queries;
    use crate::cluster::outbox::Outbox;
    use crate::cluster::settings::ClusterSettings;
    use fastrand::Rng;
    use storage::Now;

    /// What is decided when the three of the set say that.
    fn decided(outcomes: [Option<PutOutcome>; 3]) -> Option<Outcome> {
        let (settings, mut queries) = (ClusterSettings::default(), Queries::default());
        let nodes = [1, 2, 3].map(|byte| NodeId([byte; 20]));
        let mut out = Outbox::new(nodes[0], &mut Rng::with_seed(1));
        let now = Now { clock_ms: 1, monotonic_ns: 1 };
        let (out, queries) = (&mut out, &mut queries);
        let mut step = Step { now, out, queries, settings: &settings };
        let order = nodes.to_vec();
        let candidates = Candidates { order, set: 3, asked: 0, set_need: 2, ready_need: 2 };
        let record = Record {
            namespace: wal::record::Namespace::PLAIN,
            key: wal::record::Key::of(b"k"),
            user_key: bytes::Bytes::from_static(b"k"),
            version: Version([1; 16]),
            expiry_ms: 0,
            content: crate::cluster::message::Content::Tombstone,
        };
        let mut write = Write::new(CommandId(1), record, candidates, &step);
        write.begin(&mut step);
        for (node, outcome) in nodes.into_iter().zip(outcomes) {
            write.on_answer(node, 0, outcome, &mut step);
        }
        write.decide()
    }

    #[test]
    fn a_write_tells_why_no_majority_has_taken_it() {
        let applied = |is_ready| Some(PutOutcome::Applied { is_ready });
        let (ready, unready) = (applied(true), applied(false));
        let written = decided([ready, ready, None]);
        assert!(matches!(written, Some(Outcome::Written { copies: 2, .. })), "{written:?}");
        let unfilled = decided([ready, unready, unready]);
        assert_eq!(unfilled, Some(Outcome::NotReady));
        assert_eq!(decided([ready, None, None]), Some(Outcome::NoReplicas));
        assert_eq!(decided([unready, None, None]), Some(Outcome::NoReplicas));
        let ahead = decided([None, Some(PutOutcome::TooFarAhead), None]);
        assert_eq!(ahead, Some(Outcome::ClockAhead));
    }
}
