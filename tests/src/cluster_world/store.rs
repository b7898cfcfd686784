//! [`HostStore`]: what a host keeps its copies in, a map or the real engine on a simulated disk.
//! Both do what is asked in virtual time: [`HostStore::turn`] begins disk requests, each of which
//! ends by [`HostStore::complete`]; answers come once what they rest on is durable.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use fastrand::Rng;
use kadring::cluster::store::{
    ModelStore, RecordStore, StoreAnswer, StoreRequest, Ticket, execute,
};
use storage::Now;
use wal::record::{Key, Version};

use super::engine::EngineStore;

/// How a host stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stop {
    /// What was not synced may be lost.
    PowerLoss,
    /// The process ends; what was written stays.
    Kill,
}

/// What a store has found when it was opened.
#[derive(Debug, Default)]
pub(super) struct Opened {
    /// Of the cluster's core, as it was saved.
    pub(super) state: Bytes,
    /// The highest version in it.
    pub(super) version_max: Version,
    /// The newest time in it.
    pub(super) log_ms: u64,
    /// Whether acknowledged records may be lost.
    pub(super) is_suspect: bool,
}

/// A store in virtual time.
#[derive(Debug)]
pub(super) enum HostStore {
    Model(Box<ModelDisk>),
    Engine(Box<EngineStore>),
}

impl HostStore {
    /// Starts. Nothing is asked of it before.
    pub(super) fn open(&mut self, now: Now) -> Result<Opened, String> {
        match self {
            Self::Model(model) => Ok(model.open()),
            Self::Engine(engine) => engine.open(now),
        }
    }

    /// Asks for something.
    pub(super) fn ask(&mut self, now: Now, ticket: Ticket, request: StoreRequest) {
        match self {
            Self::Model(model) => model.ask(ticket, request, now.clock_ms),
            Self::Engine(engine) => engine.ask(now, ticket, request),
        }
    }

    /// Ends a turn; returns how many disk requests it has begun.
    pub(super) fn turn(&mut self, now: Now) -> usize {
        match self {
            Self::Model(model) => std::mem::take(&mut model.begun),
            Self::Engine(engine) => engine.turn(now),
        }
    }

    /// Ends a disk request.
    pub(super) fn complete(&mut self, now: Now) {
        match self {
            Self::Model(model) => model.complete(),
            Self::Engine(engine) => engine.complete(now),
        }
    }

    /// Takes the next answer.
    pub(super) fn poll_answer(&mut self) -> Option<(Ticket, StoreAnswer)> {
        match self {
            Self::Model(model) => model.answers.pop_front(),
            Self::Engine(engine) => engine.poll_answer(),
        }
    }

    /// When it wants a turn.
    pub(super) fn deadline_ns(&self) -> Option<u64> {
        match self {
            Self::Model(_) => None,
            Self::Engine(engine) => engine.deadline_ns(),
        }
    }

    /// Stops.
    pub(super) fn stop(&mut self, stop: Stop, rng: &mut Rng) {
        match self {
            Self::Model(model) => model.stop(stop, rng),
            Self::Engine(engine) => engine.stop(stop, rng),
        }
    }

    /// The disk is replaced by an empty one.
    pub(super) fn wipe(&mut self, rng: &mut Rng) {
        match self {
            Self::Model(model) => **model = ModelDisk::default(),
            Self::Engine(engine) => engine.wipe(rng),
        }
    }

    /// Some block of the disk cannot be read any more; a map has none.
    pub(super) fn spoil_block(&mut self, rng: &mut Rng) {
        if let Self::Engine(engine) = self {
            engine.spoil_block(rng);
        }
    }

    /// The disk's next write fails; a map has none.
    pub(super) fn fail_write(&mut self) {
        if let Self::Engine(engine) = self {
            engine.fail_write();
        }
    }

    /// Whether its disk was ever damaged: then it may have lost anything.
    pub(super) fn is_damaged(&self) -> bool {
        match self {
            Self::Model(_) => false,
            Self::Engine(engine) => engine.is_damaged(),
        }
    }

    /// Keeps a state of the cluster's core, at once, before the first start.
    pub(super) fn plant(&mut self, now: Now, state: Bytes) -> Result<(), String> {
        match self {
            Self::Model(model) => model.durable.save(state),
            Self::Engine(engine) => engine.plant(now, state)?,
        }
        Ok(())
    }

    /// The durable version of a key, tombstones included.
    pub(super) fn version_of(&self, key: &Key) -> Option<Version> {
        match self {
            Self::Model(model) => model.durable.read(key, 0).map(|record| record.version),
            Self::Engine(engine) => engine.known().get(key).copied(),
        }
    }

    /// All keys with their durable versions, tombstones included.
    pub(super) fn versions(&self) -> BTreeMap<Key, Version> {
        match self {
            Self::Model(model) => {
                model.durable.records().map(|record| (record.key, record.version)).collect()
            }
            Self::Engine(engine) => engine.known().clone(),
        }
    }

    /// Of everything that is on its disk.
    pub(super) fn hash(&self) -> u64 {
        match self {
            Self::Model(_) => 0,
            Self::Engine(engine) => engine.hash(),
        }
    }
}

/// A map, and what is not yet durable of it: a log in order.
#[derive(Debug, Default)]
pub(super) struct ModelDisk {
    current: ModelStore,
    durable: ModelStore,
    pending: VecDeque<Pending>,
    begun: usize,
    answers: VecDeque<(Ticket, StoreAnswer)>,
    /// Of the newest durable request.
    log_ms: u64,
}

#[derive(Debug)]
struct Pending {
    ticket: Ticket,
    request: StoreRequest,
    answer: StoreAnswer,
    now_ms: u64,
}

impl ModelDisk {
    fn open(&mut self) -> Opened {
        self.current = self.durable.clone();
        let versions = self.current.records().map(|record| record.version);
        let version_max = versions.max().unwrap_or_default();
        let (state, log_ms) = (self.current.state(), self.log_ms);
        Opened { state, version_max, log_ms, is_suspect: false }
    }

    fn ask(&mut self, ticket: Ticket, request: StoreRequest, now_ms: u64) {
        let answer = execute(&mut self.current, request.clone(), now_ms);
        self.pending.push_back(Pending { ticket, request, answer, now_ms });
        self.begun += 1;
    }

    fn make_durable(&mut self, pending: Pending) -> (Ticket, StoreAnswer) {
        execute(&mut self.durable, pending.request, pending.now_ms);
        self.log_ms = self.log_ms.max(pending.now_ms);
        (pending.ticket, pending.answer)
    }

    fn complete(&mut self) {
        if let Some(pending) = self.pending.pop_front() {
            let answer = self.make_durable(pending);
            self.answers.push_back(answer);
        }
    }

    /// After a power loss only what is durable stays, and perhaps a little more.
    fn stop(&mut self, stop: Stop, rng: &mut Rng) {
        let count = self.pending.len();
        let kept = if stop == Stop::PowerLoss { rng.usize(..=count) } else { count };
        for pending in std::mem::take(&mut self.pending).into_iter().take(kept) {
            self.make_durable(pending);
        }
        self.answers.clear();
        self.begun = 0;
    }
}
