//! [`Desks`]: what waits for the engine, target by target.
//!
//! Queries for one target are dealt with in order: a put sees what the put before it has stored, so
//! that `seq` and `cas` hold for any number of writers. What is known of a target is kept while
//! somebody waits there, and no longer.
//!
//! ```text
//!          get, mutable put                loaded               put is good
//! (none) ───────────────────> loading ───────────────> known ───────────────> storing
//!    │                                                   ^                      │
//!    └── immutable put: needs nothing known, storing ────┴──────── stored ──────┘
//! ```

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;

use crate::kademlia::NodeId;
use crate::mainline::item::{Item, Record};
use crate::mainline::reject::Reject;

/// A get that waits.
#[derive(Debug)]
pub(super) struct GetWork<W> {
    /// Who is to be answered.
    pub(super) who: W,
    /// The seq that the asker has.
    pub(super) seq: Option<i64>,
    /// What else the answer says.
    pub(super) nodes: [Option<Vec<u8>>; 2],
    /// The write token, unless withheld.
    pub(super) token: [u8; 8],
    /// Whether a write for this target is welcome.
    pub(super) is_near: bool,
}

/// A put that waits, its signature checked.
#[derive(Debug)]
pub(super) struct PutWork<W> {
    /// Who is to be answered.
    pub(super) who: W,
    /// The record to store.
    pub(super) record: Bytes,
    /// The seq to be replaced.
    pub(super) cas: Option<i64>,
    /// Whether what is stored matters.
    pub(super) is_mutable: bool,
}

#[derive(Debug)]
pub(super) enum Work<W> {
    Get(GetWork<W>),
    Put(PutWork<W>),
}

impl<W> Work<W> {
    fn into_who(self) -> W {
        match self {
            Self::Get(get) => get.who,
            Self::Put(put) => put.who,
        }
    }
}

/// What follows from an input.
#[derive(Debug)]
pub(super) enum Step<W> {
    Load,
    Store(Bytes),
    Found(GetWork<W>, Option<Bytes>),
    Stored(W),
    Refused(W, Reject),
}

#[derive(Debug)]
enum Known {
    Nothing,
    Loading,
    Record(Option<Bytes>),
}

#[derive(Debug)]
struct Desk<W> {
    known: Known,
    work: VecDeque<Work<W>>,
    /// The record on its way, and who waits for it.
    storing: Option<(Bytes, Vec<W>)>,
}

impl<W> Desk<W> {
    fn new() -> Self {
        Self { known: Known::Nothing, work: VecDeque::new(), storing: None }
    }

    /// Deals with as much as can be, into `steps`.
    fn advance(&mut self, steps: &mut VecDeque<Step<W>>) {
        while self.storing.is_none() {
            let Some(front) = self.work.front() else { return };
            let needs_record = !matches!(front, Work::Put(put) if !put.is_mutable);
            match &self.known {
                Known::Loading if needs_record => return,
                Known::Nothing if needs_record => {
                    self.known = Known::Loading;
                    return steps.push_back(Step::Load);
                }
                _ => {}
            }
            match self.work.pop_front() {
                Some(Work::Get(get)) => {
                    let record =
                        if let Known::Record(record) = &self.known { record.clone() } else { None };
                    steps.push_back(Step::Found(get, record));
                }
                Some(Work::Put(put)) => self.put(put, steps),
                None => return,
            }
        }
    }

    fn put(&mut self, put: PutWork<W>, steps: &mut VecDeque<Step<W>>) {
        let held = if let Known::Record(Some(record)) = &self.known { Some(record) } else { None };
        if let Some(reject) = held.and_then(|held| refusal(&put, held)) {
            return steps.push_back(Step::Refused(put.who, reject));
        }
        steps.push_back(Step::Store(put.record.clone()));
        let mut waiting = vec![put.who];
        if !put.is_mutable {
            // The same value, or it would have another target: all are done with one write.
            while matches!(self.work.front(), Some(Work::Put(next)) if !next.is_mutable) {
                waiting.extend(self.work.pop_front().map(Work::into_who));
            }
        }
        self.storing = Some((put.record, waiting));
    }
}

/// Why a mutable put is refused in sight of what is held: cas first, then seq.
fn refusal<W>(put: &PutWork<W>, held: &[u8]) -> Option<Reject> {
    let (held, new) = (Record::decode(held).ok()?, Record::decode(&put.record).ok()?);
    let (Item::Mutable(held), Item::Mutable(new)) = (held.item, new.item) else { return None };
    if put.cas.is_some_and(|cas| cas != held.seq) {
        return Some(Reject::Cas);
    }
    // The same again refreshes its expiry; another value needs a higher seq.
    let is_old = new.seq < held.seq || (new.seq == held.seq && new.value != held.value);
    is_old.then_some(Reject::OldSeq)
}

/// All targets that somebody waits at.
#[derive(Debug)]
pub(super) struct Desks<W> {
    desks: BTreeMap<NodeId, Desk<W>>,
    waiting: usize,
    waiting_max: usize,
    target_waiting_max: usize,
}

impl<W> Desks<W> {
    pub(super) fn new(waiting_max: usize, target_waiting_max: usize) -> Self {
        Self { desks: BTreeMap::new(), waiting: 0, waiting_max, target_waiting_max }
    }

    /// How many wait.
    pub(super) fn waiting(&self) -> usize {
        self.waiting
    }

    pub(super) fn add(&mut self, target: NodeId, work: Work<W>, steps: &mut VecDeque<Step<W>>) {
        if self.waiting >= self.waiting_max {
            return steps.push_back(Step::Refused(work.into_who(), Reject::Busy));
        }
        let desk = self.desks.entry(target).or_insert_with(Desk::new);
        let there = desk.work.len() + desk.storing.as_ref().map_or(0, |(_, waiting)| waiting.len());
        if there >= self.target_waiting_max {
            return steps.push_back(Step::Refused(work.into_who(), Reject::Busy));
        }
        self.waiting += 1;
        match (work, &mut desk.storing) {
            // The same value is on its way already.
            (Work::Put(put), Some((_, waiting))) if !put.is_mutable && desk.work.is_empty() => {
                waiting.push(put.who);
            }
            (work, _) => desk.work.push_back(work),
        }
        self.advance(target, steps);
    }

    /// Takes what the engine holds; `Err`: it cannot tell.
    pub(super) fn on_loaded(
        &mut self,
        target: NodeId,
        record: Result<Option<Bytes>, ()>,
        steps: &mut VecDeque<Step<W>>,
    ) {
        let Some(desk) = self.desks.get_mut(&target) else { return };
        if !matches!(desk.known, Known::Loading) {
            return;
        }
        match record {
            Ok(record) => desk.known = Known::Record(record),
            Err(()) => {
                desk.known = Known::Nothing;
                let before = std::mem::take(&mut desk.work);
                for work in before {
                    match work {
                        Work::Put(put) if !put.is_mutable => desk.work.push_back(Work::Put(put)),
                        work => {
                            steps.push_back(Step::Refused(work.into_who(), Reject::Storage));
                            self.waiting -= 1;
                        }
                    }
                }
            }
        }
        self.advance(target, steps);
    }

    /// Takes word that the record on its way is durable, or is lost.
    pub(super) fn on_stored(
        &mut self,
        target: NodeId,
        result: Result<(), Reject>,
        steps: &mut VecDeque<Step<W>>,
    ) {
        let Some(desk) = self.desks.get_mut(&target) else { return };
        let Some((record, waiting)) = desk.storing.take() else { return };
        self.waiting -= waiting.len();
        desk.known = match (result, &desk.known) {
            // A load under way tells of before or after: it counts for nothing.
            (_, Known::Loading) => Known::Loading,
            (Ok(()), _) => Known::Record(Some(record)),
            (Err(_), _) => Known::Nothing,
        };
        for who in waiting {
            steps.push_back(match result {
                Ok(()) => Step::Stored(who),
                Err(reject) => Step::Refused(who, reject),
            });
        }
        self.advance(target, steps);
    }

    fn advance(&mut self, target: NodeId, steps: &mut VecDeque<Step<W>>) {
        let Some(desk) = self.desks.get_mut(&target) else { return };
        let before = desk.work.len() + desk.storing.as_ref().map_or(0, |(_, who)| who.len());
        desk.advance(steps);
        let after = desk.work.len() + desk.storing.as_ref().map_or(0, |(_, who)| who.len());
        self.waiting -= before - after;
        let is_idle = desk.storing.is_none() && desk.work.is_empty();
        if is_idle && !matches!(desk.known, Known::Loading) {
            self.desks.remove(&target);
        }
    }
}
