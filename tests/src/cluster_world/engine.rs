//! [`EngineStore`]: the real engine, below the adapter of the real process, on a simulated disk.
//!
//! It keeps its own note of what was acknowledged. After each start everything is walked over:
//! what was acknowledged must be there, unless the disk was damaged.

use std::collections::BTreeMap;
use std::fmt;
use std::rc::Rc;

use bytes::Bytes;
use fastrand::Rng;
use kadring::cluster::message::{Content, Found};
use kadring::cluster::prefix::Prefix;
use kadring::cluster::records::{HeldRecords, STATE_KEY};
use kadring::cluster::replica::Applied;
use kadring::cluster::store::{StoreAnswer, StoreRequest, Ticket};
use kadring::keyspace::{Keyspace, Spread};
use storage::{CheckpointLoader, CheckpointOptions, Now, StoreLimits, StoreOptions};
use wal::disk::{DiskErrorKind, FileName, HeapBuffers};
use wal::group_commit::GroupCommitLimits;
use wal::record::{Key, Version};
use wal::segment::Identity;

use super::store::{Opened, Stop};
use crate::disk::{CrashPlan, OperationKind, SimulatedDisk, run_procedure};

/// What the harness itself asks has this ticket; the core's are far below.
const OWN_TICKET: Ticket = Ticket(1 << 63);
/// Asking again makes progress: more often than that means that the store stands still.
const STEPS_MAX: u32 = 100_000;
/// Keys of one page of the walk after a start.
const PAGE_KEYS: usize = 1_024;
/// Longer than any run.
const EXPIRED_STAY_MS: u64 = 48 * 3_600_000;

/// What was asked and changes copies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    Apply(Key, Version),
    Discard(Key, Version),
    DiscardAll,
    Read(Key),
}

/// The process's half: it is gone when the host stops.
struct Running {
    keyspace: Keyspace,
    records: HeldRecords,
}

/// The store of one host.
pub(super) struct EngineStore {
    identity: Identity,
    disk: SimulatedDisk,
    running: Option<Running>,
    was_opened: bool,
    /// What was acknowledged as durable.
    known: BTreeMap<Key, Version>,
    asked: BTreeMap<Ticket, Change>,
    is_damaged: bool,
    /// Requests in flight whose end was promised.
    promised: usize,
    rng: Rng,
}

impl fmt::Debug for EngineStore {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("EngineStore").field("keys", &self.known.len()).finish()
    }
}

impl EngineStore {
    pub(super) fn new(node_id: [u8; 20], shard_count: u16, rng: &mut Rng) -> Self {
        let mut store = [0; 16];
        rng.fill(&mut store);
        Self {
            identity: Identity { store, node_id, shard: 0, shard_count },
            disk: SimulatedDisk::new(rng.u64(..)),
            running: None,
            was_opened: false,
            known: BTreeMap::new(),
            asked: BTreeMap::new(),
            is_damaged: false,
            promised: 0,
            rng: rng.fork(),
        }
    }

    /// Small segments, so that a short run fills, compacts and reuses them.
    fn options(&self, shard: u16) -> StoreOptions {
        StoreOptions {
            directory: FileName::new(format!("shard-{shard:02}")),
            identity: Identity { shard, ..self.identity },
            must_exist: self.was_opened,
            segment_bytes: 256 << 10,
            cache_bytes: 64 << 10,
            limits: StoreLimits {
                disk_bytes_max: None,
                scrub_bytes_per_second: 0,
                overwriter_bytes_max: 64 << 10,
                live_segments_min: 0,
                expired_stay_ms: EXPIRED_STAY_MS,
            },
            log: GroupCommitLimits {
                frame_bytes_max: 64 << 10,
                pending_bytes_max: 4 << 20,
                extent_bytes_min: 16 << 10,
                ..GroupCommitLimits::default()
            },
            buffers: Rc::new(HeapBuffers),
            checkpoints: CheckpointOptions {
                log_bytes_min: 1 << 20,
                index_bytes_factor: 0,
                loader: CheckpointLoader::Direct,
            },
            footers: true,
        }
    }

    pub(super) fn open(&mut self, now: Now) -> Result<Opened, String> {
        let shards = self.identity.shard_count;
        let (mut stores, mut opened) = (Vec::new(), Opened::default());
        for shard in 0..shards {
            let mut procedure = storage::open(self.options(shard), now.clock_ms);
            let result = run_procedure(&mut self.disk, shard, &mut procedure);
            let found = result.map_err(|error| format!("the store does not open: {error}"))?;
            opened.log_ms = opened.log_ms.max(found.log_ms);
            opened.version_max = opened.version_max.max(found.store.version_max());
            opened.is_suspect |= found.report.suspect;
            if found.report.suspect && !self.is_damaged {
                return Err(format!("suspect without damage: {:?}", found.report));
            }
            stores.push(found.store);
        }
        self.was_opened = true;
        let now = Now { clock_ms: now.clock_ms.max(opened.log_ms), ..now };
        let keyspace = Keyspace::new(Spread::on_one_thread(shards), stores, now, self.rng.u64(..));
        self.running = Some(Running { keyspace, records: HeldRecords::default() });
        let read = StoreRequest::Read { key: STATE_KEY, wants_value: true };
        if let StoreAnswer::Read(Found::Record(record)) = self.ask_now(now, read)
            && let Content::Value(state) = record.content
        {
            opened.state = state;
        }
        self.look_over(now)?;
        Ok(opened)
    }

    /// Compares what is there with what was acknowledged.
    fn look_over(&mut self, now: Now) -> Result<(), String> {
        let mut found = BTreeMap::new();
        let mut from = Some(Key([0; 20]));
        while let Some(first) = from {
            let walk = StoreRequest::Walk { prefix: Prefix::ALL, from: first, count: PAGE_KEYS };
            let StoreAnswer::Walked(entries, next) = self.ask_now(now, walk) else {
                return Err("a walk failed".to_owned());
            };
            found.extend(entries.into_iter().map(|entry| (entry.key, entry.version)));
            from = next;
        }
        let asked = std::mem::take(&mut self.asked);
        let mut known = std::mem::take(&mut self.known);
        for change in asked.into_values() {
            match change {
                Change::Discard(key, version) => known.retain(|k, v| (*k, *v) != (key, version)),
                Change::DiscardAll => known.clear(),
                Change::Apply(..) | Change::Read(_) => {}
            }
        }
        let is_lost = |(key, version): &(&Key, &Version)| {
            found.get(*key).is_none_or(|found| found < *version)
        };
        if !self.is_damaged
            && let Some((key, version)) = known.iter().find(is_lost)
        {
            return Err(format!(
                "the store has {:?} of {key:?}, and had acknowledged {version:?}",
                found.get(key)
            ));
        }
        self.known = found;
        Ok(())
    }

    fn running(&mut self) -> &mut Running {
        self.running.as_mut().expect("the host is up")
    }

    pub(super) fn ask(&mut self, now: Now, ticket: Ticket, request: StoreRequest) {
        let change = match &request {
            StoreRequest::Apply { record } => Some(Change::Apply(record.key, record.version)),
            StoreRequest::Discard { key, version } => Some(Change::Discard(*key, *version)),
            StoreRequest::DiscardAll => Some(Change::DiscardAll),
            StoreRequest::Read { key, .. } => Some(Change::Read(*key)),
            StoreRequest::Walk { .. }
            | StoreRequest::Names { .. }
            | StoreRequest::Save { .. }
            | StoreRequest::SaveRoutes { .. } => None,
        };
        if let Some(change) = change {
            self.asked.insert(ticket, change);
        }
        let Running { keyspace, records } = self.running();
        keyspace.set_now(now);
        records.ask(keyspace, ticket, request);
        self.hand_over_events();
    }

    fn hand_over_events(&mut self) {
        let Running { keyspace, records } = self.running();
        while let Some((shard, event)) = keyspace.poll_event() {
            records.handle_event(keyspace, shard, &event);
        }
    }

    /// Returns for how many requests in flight nobody has been told yet that they will end.
    pub(super) fn turn(&mut self, now: Now) -> usize {
        self.begin_requests(now);
        let begun = self.disk.in_flight().saturating_sub(self.promised);
        self.promised += begun;
        begun
    }

    fn begin_requests(&mut self, now: Now) {
        let Running { keyspace, records } = self.running();
        keyspace.set_now(now);
        records.handle_time(keyspace);
        keyspace.end_turn();
        self.hand_over_events();
        let Some(Running { keyspace, .. }) = &mut self.running else { return };
        while let Some((shard, request)) = keyspace.poll_request() {
            self.disk.submit(shard, request);
        }
    }

    pub(super) fn complete(&mut self, now: Now) {
        self.promised = self.promised.saturating_sub(1);
        self.end_request(now);
    }

    fn end_request(&mut self, now: Now) {
        if let Some((shard, completion)) = self.disk.complete_one() {
            let Running { keyspace, .. } = self.running();
            keyspace.set_now(now);
            keyspace.handle_disk(shard, completion);
            self.hand_over_events();
        }
    }

    pub(super) fn poll_answer(&mut self) -> Option<(Ticket, StoreAnswer)> {
        let (ticket, answer) = self.running.as_mut()?.records.poll_answer()?;
        match (self.asked.remove(&ticket), &answer) {
            (Some(Change::Apply(key, version)), StoreAnswer::Applied(applied)) => {
                let version = match applied {
                    Applied::Newer | Applied::Same => version,
                    Applied::NotNewer(stored) => *stored,
                    Applied::KeyConflict => return Some((ticket, answer)),
                };
                let known = self.known.entry(key).or_insert(version);
                *known = version.max(*known);
            }
            (Some(Change::Discard(key, version)), StoreAnswer::Done)
                if self.known.get(&key) == Some(&version) =>
            {
                self.known.remove(&key);
            }
            (Some(Change::DiscardAll), StoreAnswer::Done) => self.known.clear(),
            (Some(Change::Read(key)), StoreAnswer::Read(Found::Failed)) => {
                self.known.remove(&key);
            }
            _ => {}
        }
        Some((ticket, answer))
    }

    /// Asks, and lets the disk work until there is an answer; time stands still.
    fn ask_now(&mut self, now: Now, request: StoreRequest) -> StoreAnswer {
        let Running { keyspace, records } = self.running();
        keyspace.set_now(now);
        records.ask(keyspace, OWN_TICKET, request);
        for _ in 0..STEPS_MAX {
            self.hand_over_events();
            let Running { records, .. } = self.running();
            if let Some((ticket, answer)) = records.poll_answer() {
                assert_eq!(ticket, OWN_TICKET, "nothing else was asked");
                return answer;
            }
            self.begin_requests(now);
            self.end_request(now);
        }
        panic!("the store stands still");
    }

    pub(super) fn plant(&mut self, now: Now, state: Bytes) -> Result<(), String> {
        self.open(now)?;
        self.ask_now(now, StoreRequest::Save { state });
        let mut rng = self.rng.fork();
        self.stop(Stop::Kill, &mut rng);
        Ok(())
    }

    pub(super) fn deadline_ns(&self) -> Option<u64> {
        let Running { keyspace, records } = self.running.as_ref()?;
        let deadlines = [keyspace.deadline_ns(), records.deadline_ns()];
        deadlines.into_iter().flatten().min()
    }

    pub(super) fn stop(&mut self, stop: Stop, rng: &mut Rng) {
        (self.running, self.promised) = (None, 0);
        self.disk = match stop {
            Stop::PowerLoss => {
                let plan = CrashPlan::draw(rng);
                self.disk.crash_with(rng, plan)
            }
            Stop::Kill => self.disk.process_kill(rng),
        };
    }

    pub(super) fn wipe(&mut self, rng: &mut Rng) {
        let Identity { node_id, shard_count, .. } = self.identity;
        *self = Self::new(node_id, shard_count, rng);
    }

    /// Some block that was written lately cannot be read any more.
    pub(super) fn spoil_block(&mut self, rng: &mut Rng) {
        let mut writes = self.disk.past_writes();
        writes.retain(|write| write.name.ends_with(".segment"));
        if let Some(write) = rng.choice(writes) {
            self.disk.fail_reads(&write.name, write.offset, 1);
            self.is_damaged = true;
        }
    }

    /// The next write fails.
    pub(super) fn fail_write(&mut self) {
        self.disk.fail_nth(1, OperationKind::Write, DiskErrorKind::Io, false);
    }

    pub(super) fn is_damaged(&self) -> bool {
        self.is_damaged
    }

    pub(super) fn known(&self) -> &BTreeMap<Key, Version> {
        &self.known
    }

    pub(super) fn hash(&self) -> u64 {
        self.disk.hash()
    }
}
