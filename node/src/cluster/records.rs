//! [`HeldRecords`]: carries out what the cluster core asks of the store, on the node's shards.
//!
//! A tombstone is a record without user key and value whose expiry is over already; the store keeps
//! what has expired for `expired_stay_ms`, so both kinds of evidence stay and go alike. The state
//! of the core is a record under an id that no user key has.
//!
//! Requests of one key take effect in the order asked: while one waits for the disk or for room in
//! the log, those behind it wait, too. An answer comes once all that it has looked at is durable.
//!
//! What a walk has read stays in a [`DigestTable`], which every write here keeps up to date: the
//! next walk over the same keys reads nothing. Walks over the table stop for a moment after some
//! keys: clients are served in between, here and by other processes on the same processor.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use storage::{
    Effect, Entry as StoredEntry, Event, GetRecord, KeyRef, Lookup, ReadError, ReadId, ScannedKey,
    SharedPut, Value, WriteError,
};
use wal::Lsn;
use wal::record::{Key, Namespace};

use super::digest_table::{DigestTable, Digested};
use super::message::{Content, Entry, Found, Header, Name, Record};
use super::prefix::Prefix;
use super::replica::{self, Applied};
use super::store::{StoreAnswer, StoreRequest, Ticket};
use crate::keyspace::{Keyspace, ShardIndex, Wait};

/// The id of the record that holds the core's state. It is the hash of no key that anybody knows.
pub const STATE_KEY: Key = Key(*b"\x7fkadring state core1");
/// That record's user key.
const STATE_NAME: &[u8] = b"\0kadring cluster state";
/// The id of the record that holds the routing table.
pub const ROUTES_KEY: Key = Key(*b"\x7fkadring routes core");
/// That record's user key.
const ROUTES_NAME: &[u8] = b"\0kadring routing table";
/// Keys that a walk asks of a shard at a time, at least.
const PAGE_KEYS_MIN: usize = 16;
/// Walks over the table begin until they have seen so many keys; the last one may see more.
pub const WALKED_AT_ONCE_MAX: usize = 512;
/// Then they stop for so long.
pub const WALK_PAUSE_MS: u64 = 1;
/// When pauses have followed each other for so long, there is much to walk over, and others wait
/// for the end of it: from then on `WALKED_LATER_MAX` keys go between two pauses.
pub const WALKS_HURRY_AFTER_MS: u64 = 1_000;
/// Keys between two pauses then.
pub const WALKED_LATER_MAX: usize = 2_048;
/// Without a pause for so long, the next one is the first.
const WALKS_REST_NS: u64 = 10_000_000;

/// Whether a record is the node's own: it is nobody else's business.
#[must_use]
pub fn is_own(key: &Key) -> bool {
    *key == STATE_KEY || *key == ROUTES_KEY
}

/// Whether a key found in the store is a client's key that lives.
#[must_use]
pub fn is_live(found: &ScannedKey, now_ms: u64) -> bool {
    let is_over = found.expiry_ms != 0 && found.expiry_ms <= now_ms;
    !is_over && !is_own(&found.key)
}

/// A walk over all shards.
#[derive(Debug)]
struct Walk {
    prefix: Prefix,
    from: Key,
    count: usize,
    /// Whether the keys themselves are wanted, which the table does not know.
    wants_names: bool,
    found: Vec<Name>,
    page: Page,
}

/// A walk's part that the shards are being asked for.
#[derive(Debug, Default)]
struct Page {
    /// Shards that have not answered.
    missing: usize,
    /// Where a shard's answer ended first.
    limit: Option<Key>,
    /// All records in the answers.
    read: BTreeMap<Key, Digested>,
    /// Records that have changed since the shards were asked.
    changed: BTreeMap<Key, Option<Digested>>,
    /// Whether something has changed that nobody can say.
    is_stale: bool,
}

/// What became of an attempt.
enum Attempt {
    /// It has taken effect.
    Done,
    /// Try again when the shard has found something out.
    Resolving(ShardIndex, ReadId),
    /// Try again when the shard can take more.
    Stalled(ShardIndex),
}

/// Requests under way.
#[derive(Debug, Default)]
pub struct HeldRecords {
    /// Those of a key in order; the first one waits for something.
    queues: BTreeMap<Key, VecDeque<(Ticket, StoreRequest)>>,
    resolving: BTreeMap<(ShardIndex, ReadId), Key>,
    stalled: BTreeSet<(ShardIndex, Key)>,
    /// Values being read, with what else the answer rests on.
    reading: BTreeMap<(ShardIndex, ReadId), (Ticket, Key, Option<Wait>)>,
    table: DigestTable,
    walks: BTreeMap<Ticket, Walk>,
    /// Keys in the table that walks have seen since the last pause.
    walked: usize,
    /// When the pause is over.
    walk_at_ns: u64,
    /// When the first of the pauses began that have followed each other.
    pausing_since_ns: u64,
    /// Walks that begin after the pause.
    walks_behind: VecDeque<(Ticket, Walk)>,
    pages: BTreeMap<(ShardIndex, ReadId), Ticket>,
    /// Answers that wait for a shard's log, and then for other shards'.
    settling: BTreeMap<(ShardIndex, Lsn, Ticket), (StoreAnswer, Vec<Wait>)>,
    /// All copies are to go, as soon as nothing else is under way.
    clearing: Option<Ticket>,
    /// What was asked after that.
    behind: VecDeque<(Ticket, StoreRequest)>,
    /// What was saved last.
    state: Option<Bytes>,
    answers: VecDeque<(Ticket, StoreAnswer)>,
}

impl HeldRecords {
    /// Does what is asked; [`HeldRecords::poll_answer`] tells when it is done and durable.
    pub fn ask(&mut self, keyspace: &mut Keyspace, ticket: Ticket, request: StoreRequest) {
        if self.clearing.is_some() {
            self.behind.push_back((ticket, request));
            return;
        }
        let key = match &request {
            StoreRequest::Read { key, .. } | StoreRequest::Discard { key, .. } => *key,
            StoreRequest::Apply { record } => record.key,
            StoreRequest::Save { state } => {
                self.state = Some(state.clone());
                STATE_KEY
            }
            StoreRequest::SaveRoutes { .. } => ROUTES_KEY,
            StoreRequest::Walk { prefix, from, count }
            | StoreRequest::Names { prefix, from, count } => {
                let from = (*from).max(prefix.first_key());
                let found = Vec::with_capacity((*count).min(64));
                let (prefix, count, page) = (*prefix, *count, Page::default());
                let wants_names = matches!(request, StoreRequest::Names { .. });
                let walk = Walk { prefix, from, count, wants_names, found, page };
                self.walks_behind.push_back((ticket, walk));
                self.begin_walks(keyspace);
                return;
            }
            StoreRequest::DiscardAll => {
                self.clearing = Some(ticket);
                self.clear(keyspace);
                return;
            }
        };
        if let Some(queue) = self.queues.get_mut(&key) {
            queue.push_back((ticket, request));
            return;
        }
        let attempt = self.attempt(keyspace, ticket, &request);
        if self.must_wait(key, attempt) {
            self.queues.insert(key, VecDeque::from([(ticket, request)]));
        }
    }

    /// Notes what an attempt waits for, if it does.
    fn must_wait(&mut self, key: Key, attempt: Attempt) -> bool {
        match attempt {
            Attempt::Done => return false,
            Attempt::Resolving(shard, read) => drop(self.resolving.insert((shard, read), key)),
            Attempt::Stalled(shard) => drop(self.stalled.insert((shard, key))),
        }
        true
    }

    /// Goes on with what has waited for time to pass.
    pub fn handle_time(&mut self, keyspace: &mut Keyspace) {
        self.begin_walks(keyspace);
    }

    /// When there is something to do.
    #[must_use]
    pub fn deadline_ns(&self) -> Option<u64> {
        (!self.walks_behind.is_empty()).then_some(self.walk_at_ns)
    }

    /// Begins walks, unless there is a pause.
    fn begin_walks(&mut self, keyspace: &mut Keyspace) {
        let now_ns = keyspace.now().monotonic_ns;
        while self.walk_at_ns <= now_ns
            && let Some((ticket, walk)) = self.walks_behind.pop_front()
        {
            self.walk(keyspace, ticket, walk);
            let is_long = now_ns >= self.pausing_since_ns + WALKS_HURRY_AFTER_MS * 1_000_000;
            let is_first = now_ns > self.walk_at_ns + WALKS_REST_NS;
            let may_hurry = is_long && !is_first;
            if self.walked >= if may_hurry { WALKED_LATER_MAX } else { WALKED_AT_ONCE_MAX } {
                if is_first {
                    self.pausing_since_ns = now_ns;
                }
                (self.walked, self.walk_at_ns) = (0, now_ns + WALK_PAUSE_MS * 1_000_000);
            }
        }
    }

    /// Takes the next answer.
    pub fn poll_answer(&mut self) -> Option<(Ticket, StoreAnswer)> {
        self.answers.pop_front()
    }

    /// Number of requests that are not answered.
    #[must_use]
    pub fn under_way(&self) -> usize {
        let queued: usize = self.queues.values().map(VecDeque::len).sum();
        let clearing = usize::from(self.clearing.is_some()) + self.behind.len();
        let walks = self.walks.len() + self.walks_behind.len();
        queued + self.reading.len() + walks + self.settling.len() + clearing
    }

    /// Number of records that walks need not read.
    #[must_use]
    pub fn digests_known(&self) -> usize {
        self.table.len()
    }

    /// Takes an event of a shard.
    pub fn handle_event(&mut self, keyspace: &mut Keyspace, shard: ShardIndex, event: &Event) {
        match event {
            Event::Durable(lsn) => self.settle(keyspace, shard, *lsn),
            Event::Failed(_) => {
                self.forget_digests();
                let durable = keyspace.store(shard).acknowledged_lsn();
                self.settle(keyspace, shard, durable);
                let lost = (shard, durable.next(), Ticket(0))..=(shard, Lsn(u64::MAX), LAST);
                for ((_, _, ticket), _) in self.settling.extract_if(lost, |_, _| true) {
                    self.answers.push_back((ticket, StoreAnswer::Failed));
                }
                self.retry(keyspace, shard);
            }
            Event::Damaged { .. } | Event::Flaw { .. } => self.forget_digests(),
            Event::Writable => self.retry(keyspace, shard),
            Event::Resolved { id } => {
                if let Some(key) = self.resolving.remove(&(shard, *id)) {
                    self.drive(keyspace, key);
                }
            }
            Event::Read { id, result } => {
                if let Some((ticket, key, wait)) = self.reading.remove(&(shard, *id)) {
                    let found = found_of(key, result, keyspace.now().clock_ms);
                    self.answer(keyspace, ticket, StoreAnswer::Read(found), wait);
                }
            }
            Event::Scanned { id, keys, next } => {
                if let Some(ticket) = self.pages.remove(&(shard, *id)) {
                    self.take_page(keyspace, ticket, keys, *next);
                }
            }
            _ => {}
        }
        self.clear(keyspace);
    }

    /// Tries the first request of a key, and those behind it once it has taken effect.
    fn drive(&mut self, keyspace: &mut Keyspace, key: Key) {
        while let Some((ticket, request)) = self.queues.get_mut(&key).and_then(VecDeque::pop_front)
        {
            let attempt = self.attempt(keyspace, ticket, &request);
            if !self.must_wait(key, attempt) {
                continue;
            }
            if let Some(queue) = self.queues.get_mut(&key) {
                queue.push_front((ticket, request));
            }
            return;
        }
        self.queues.remove(&key);
    }

    fn retry(&mut self, keyspace: &mut Keyspace, shard: ShardIndex) {
        let all = (shard, Key([0; 20]))..=(shard, Key([u8::MAX; 20]));
        let keys: Vec<Key> = self.stalled.range(all).map(|(_, key)| *key).collect();
        for key in keys {
            self.stalled.remove(&(shard, key));
            self.drive(keyspace, key);
        }
    }

    fn attempt(
        &mut self,
        keyspace: &mut Keyspace,
        ticket: Ticket,
        request: &StoreRequest,
    ) -> Attempt {
        match request {
            StoreRequest::Read { key, wants_value: true } => {
                return self.read_value(keyspace, ticket, *key);
            }
            StoreRequest::Read { key, wants_value: false } => {
                let shard = keyspace.shard_of(*key);
                let found = match keyspace.store_mut(shard).lookup_id(key) {
                    Ok(Lookup::Pending(read)) => return Attempt::Resolving(shard, read),
                    Ok(Lookup::Missing) => Found::Nothing,
                    Ok(Lookup::Found(entry)) => {
                        Found::Header(header_of(&entry).at(keyspace.now().clock_ms))
                    }
                    Err(_) => Found::Failed,
                };
                let wait = observed(keyspace, key);
                self.answer(keyspace, ticket, StoreAnswer::Read(found), wait);
            }
            StoreRequest::Apply { record } => return self.apply(keyspace, ticket, record),
            StoreRequest::Discard { key, version } => {
                let shard = keyspace.shard_of(*key);
                let stored = match keyspace.store_mut(shard).lookup_id(key) {
                    Ok(Lookup::Pending(read)) => return Attempt::Resolving(shard, read),
                    Ok(Lookup::Found(entry)) => Some(entry.version),
                    Ok(Lookup::Missing) | Err(_) => None,
                };
                if stored != Some(*version) {
                    let wait = observed(keyspace, key);
                    self.answer(keyspace, ticket, StoreAnswer::Done, wait);
                    return Attempt::Done;
                }
                let effect = keyspace.store_mut(shard).remove_id(key, *version);
                if matches!(effect, Ok(Effect::Done(_))) {
                    self.note(*key, None);
                }
                return self.written(keyspace, ticket, shard, (effect, StoreAnswer::Done));
            }
            StoreRequest::Save { state } => {
                return self.save(keyspace, ticket, (STATE_KEY, STATE_NAME), state);
            }
            StoreRequest::SaveRoutes { table } => {
                return self.save(keyspace, ticket, (ROUTES_KEY, ROUTES_NAME), table);
            }
            StoreRequest::Walk { .. } | StoreRequest::Names { .. } | StoreRequest::DiscardAll => {
                unreachable!("it is not of one key")
            }
        }
        Attempt::Done
    }

    /// Stores a record of the node's own.
    fn save(
        &mut self,
        keyspace: &mut Keyspace,
        ticket: Ticket,
        (key, name): (Key, &[u8]),
        value: &Bytes,
    ) -> Attempt {
        let (shard, version) = (keyspace.shard_of(key), keyspace.next_version());
        let put = SharedPut { key: KeyRef::given(key, name), version, expiry_ms: 0, value };
        let effect = keyspace.store_mut(shard).put_shared(&put);
        self.written(keyspace, ticket, shard, (effect, StoreAnswer::Done))
    }

    fn read_value(&mut self, keyspace: &mut Keyspace, ticket: Ticket, key: Key) -> Attempt {
        let (shard, wait) = (keyspace.shard_of(key), observed(keyspace, &key));
        let result = match keyspace.store_mut(shard).get_id(&key) {
            Ok(GetRecord::Pending(read)) => {
                self.reading.insert((shard, read), (ticket, key, wait));
                return Attempt::Done;
            }
            Ok(GetRecord::Missing) => Ok(None),
            Ok(GetRecord::Found(user_key, value)) => Ok(Some((user_key, value))),
            Err(error) => Err(error),
        };
        let found = found_of(key, &result, keyspace.now().clock_ms);
        self.answer(keyspace, ticket, StoreAnswer::Read(found), wait);
        Attempt::Done
    }

    /// Compares, and stores the record if it is newer.
    fn apply(&mut self, keyspace: &mut Keyspace, ticket: Ticket, record: &Record) -> Attempt {
        let now_ms = keyspace.now().clock_ms;
        let record = record.clone().at(now_ms);
        let (key, shard) = (record.key, keyspace.shard_of(record.key));
        let stored = match keyspace.store_mut(shard).lookup_id(&key) {
            Ok(Lookup::Pending(read)) => return Attempt::Resolving(shard, read),
            Ok(Lookup::Found(entry)) => Some(entry),
            // What was there is lost: any record is a repair.
            Ok(Lookup::Missing) | Err(ReadError::Damaged | ReadError::Suspect) => None,
            Err(ReadError::Disk(_)) => {
                self.answers.push_back((ticket, StoreAnswer::Failed));
                return Attempt::Done;
            }
        };
        let old = stored.map(|entry| entry.version).filter(|version| *version >= record.version);
        if let Some(version) = old {
            let is_same = version == record.version;
            let applied = if is_same { Applied::Same } else { Applied::NotNewer(version) };
            let wait = observed(keyspace, &key);
            self.answer(keyspace, ticket, StoreAnswer::Applied(applied), wait);
            return Attempt::Done;
        }
        let (version, mut expiry_ms) = (record.version, record.expiry_ms);
        let effect = match &record.content {
            Content::Tombstone => {
                expiry_ms = replica::time_ms(&version).clamp(1, now_ms.max(1));
                let key = KeyRef::given(key, b"");
                let put = SharedPut { key, version, expiry_ms, value: &Bytes::new() };
                keyspace.store_mut(shard).put_shared(&put)
            }
            Content::Value(_) if Key::of(&record.user_key) != key => Err(WriteError::KeyConflict),
            Content::Value(value) => {
                let key = KeyRef::hashed(key, &record.user_key);
                let put = SharedPut { key, version, expiry_ms, value };
                keyspace.store_mut(shard).put_shared(&put)
            }
        };
        if effect == Err(WriteError::KeyConflict) {
            let answer = StoreAnswer::Applied(Applied::KeyConflict);
            let wait = observed(keyspace, &key);
            self.answer(keyspace, ticket, answer, wait);
            return Attempt::Done;
        }
        if matches!(effect, Ok(Effect::Done(_))) {
            self.note(key, Some(Digested { version, expiry_ms }));
        }
        let answer = StoreAnswer::Applied(Applied::Newer);
        self.written(keyspace, ticket, shard, (effect, answer))
    }

    /// Goes by what the shard has made of a write.
    fn written(
        &mut self,
        keyspace: &Keyspace,
        ticket: Ticket,
        shard: ShardIndex,
        (effect, answer): (Result<Effect, WriteError>, StoreAnswer),
    ) -> Attempt {
        match effect {
            Ok(Effect::Pending(read)) => return Attempt::Resolving(shard, read),
            Err(WriteError::Busy) => return Attempt::Stalled(shard),
            Ok(Effect::Done(lsn)) => {
                let wait = lsn.map(|lsn| Wait { shard, lsn });
                self.answer(keyspace, ticket, answer, wait);
            }
            Err(_) => self.answers.push_back((ticket, StoreAnswer::Failed)),
        }
        Attempt::Done
    }

    /// Answers when what the answer rests on is durable.
    fn answer(
        &mut self,
        keyspace: &Keyspace,
        ticket: Ticket,
        answer: StoreAnswer,
        waits: impl IntoIterator<Item = Wait>,
    ) {
        let mut waits: Vec<Wait> = waits.into_iter().collect();
        waits.retain(|wait| keyspace.store(wait.shard).acknowledged_lsn() < wait.lsn);
        let Some(Wait { shard, lsn }) = waits.pop() else {
            self.answers.push_back((ticket, answer));
            return;
        };
        if keyspace.store(shard).failure().is_some() {
            self.answers.push_back((ticket, StoreAnswer::Failed));
        } else {
            self.settling.insert((shard, lsn, ticket), (answer, waits));
        }
    }

    fn settle(&mut self, keyspace: &Keyspace, shard: ShardIndex, durable: Lsn) {
        let settled = (shard, Lsn(0), Ticket(0))..=(shard, durable, LAST);
        let settled: Vec<_> = self.settling.extract_if(settled, |_, _| true).collect();
        for ((_, _, ticket), (answer, waits)) in settled {
            self.answer(keyspace, ticket, answer, waits);
        }
    }

    /// A record has changed, or is there no more.
    fn note(&mut self, key: Key, record: Option<Digested>) {
        self.table.note(key, record);
        for walk in self.walks.values_mut() {
            walk.page.changed.insert(key, record);
        }
    }

    /// Nobody can say what has changed.
    fn forget_digests(&mut self) {
        self.table.distrust();
        self.walks.values_mut().for_each(|walk| walk.page.is_stale = true);
    }

    /// Goes on with a walk: over what the table knows, then over the shards.
    fn walk(&mut self, keyspace: &mut Keyspace, ticket: Ticket, mut walk: Walk) {
        let now = keyspace.now();
        self.table.handle_time(now.monotonic_ns / 1_000_000);
        loop {
            if !walk.prefix.contains(&walk.from) {
                return self.end_walk(keyspace, ticket, walk, None);
            }
            let Some(end) = self.table.known_from(&walk.from).filter(|_| !walk.wants_names) else {
                break;
            };
            let stop = match (end, walk.prefix.end()) {
                (Some(end), Some(last)) => Some(end.min(last)),
                (end, last) => end.or(last),
            };
            let mut next = None;
            for (key, record) in self.table.records(walk.from, stop) {
                if walk.found.len() == walk.count {
                    next = Some(*key);
                    break;
                }
                let entry = entry_of(*key, *record, now.clock_ms);
                walk.found.push(Name { entry, user_key: Bytes::new() });
                self.walked += 1;
            }
            if next.is_some() {
                return self.end_walk(keyspace, ticket, walk, next);
            }
            match end.filter(|end| walk.prefix.contains(end)) {
                None => return self.end_walk(keyspace, ticket, walk, None),
                Some(end) => walk.from = end,
            }
        }
        let shards = keyspace.shards();
        let wanted = walk.count.saturating_sub(walk.found.len());
        let page = (wanted / shards.len()).max(PAGE_KEYS_MIN);
        walk.page = Page { missing: shards.len(), ..Page::default() };
        for shard in shards {
            let read = keyspace.store_mut(shard).scan(walk.from, page);
            self.pages.insert((shard, read), ticket);
        }
        self.walks.insert(ticket, walk);
    }

    fn take_page(
        &mut self,
        keyspace: &mut Keyspace,
        ticket: Ticket,
        keys: &[ScannedKey],
        next: Option<Key>,
    ) {
        let now_ms = keyspace.now().clock_ms;
        let Some(walk) = self.walks.get_mut(&ticket) else { return };
        walk.page.missing -= 1;
        walk.page.limit = match (walk.page.limit, next) {
            (Some(limit), Some(next)) => Some(limit.min(next)),
            (limit, next) => limit.or(next),
        };
        for found in keys.iter().filter(|found| !is_own(&found.key)) {
            let ScannedKey { key, version, expiry_ms, .. } = *found;
            let record = Digested { version, expiry_ms };
            walk.page.read.insert(key, record);
            if walk.prefix.contains(&key) {
                let entry = entry_of(key, record, now_ms);
                let is_named = walk.wants_names && !entry.is_tombstone;
                let user_key = if is_named { found.user_key.clone() } else { Bytes::new() };
                walk.found.push(Name { entry, user_key });
            }
        }
        if walk.page.missing > 0 {
            return;
        }
        let Some(mut walk) = self.walks.remove(&ticket) else { return };
        let Page { limit, mut read, changed, is_stale, .. } = std::mem::take(&mut walk.page);
        if !is_stale {
            for (key, record) in changed {
                match record {
                    Some(record) => drop(read.insert(key, record)),
                    None => drop(read.remove(&key)),
                }
            }
            self.table.learn(walk.from, limit, &read);
        }
        // Behind the first page's end, others may have more than they have told.
        if let Some(limit) = limit {
            walk.found.retain(|found| found.entry.key < limit);
        }
        walk.found.sort_by_key(|found| found.entry.key);
        if walk.found.len() > walk.count {
            let next = walk.found[walk.count].entry.key;
            walk.found.truncate(walk.count);
            return self.end_walk(keyspace, ticket, walk, Some(next));
        }
        match limit.filter(|limit| walk.prefix.contains(limit)) {
            None => self.end_walk(keyspace, ticket, walk, None),
            Some(limit) => {
                walk.from = limit;
                self.walk(keyspace, ticket, walk);
            }
        }
    }

    fn end_walk(&mut self, keyspace: &Keyspace, ticket: Ticket, walk: Walk, next: Option<Key>) {
        let waits: Vec<Wait> = keyspace.observed_all().collect();
        let answer = if walk.wants_names {
            StoreAnswer::Named(walk.found, next)
        } else {
            StoreAnswer::Walked(walk.found.into_iter().map(|found| found.entry).collect(), next)
        };
        self.answer(keyspace, ticket, answer, waits);
    }

    /// Gives all copies up once nothing else is under way, and goes on with what was asked since.
    fn clear(&mut self, keyspace: &mut Keyspace) {
        if !self.queues.is_empty() {
            return;
        }
        let Some(ticket) = self.clearing else { return };
        let mut waits = Vec::new();
        for shard in keyspace.shards() {
            let version = keyspace.next_version();
            match keyspace.store_mut(shard).clear(version) {
                Ok(lsn) => {
                    self.forget_digests();
                    self.table.clear();
                    waits.push(Wait { shard, lsn });
                }
                // A shard that is cleared twice is as empty.
                Err(WriteError::Busy) => return,
                Err(_) => {
                    self.clearing = None;
                    self.answers.push_back((ticket, StoreAnswer::Failed));
                    return self.go_on_behind(keyspace);
                }
            }
        }
        self.clearing = None;
        self.answer(keyspace, ticket, StoreAnswer::Done, waits);
        // What was saved is gone with them.
        if let Some(state) = self.state.clone() {
            self.ask(keyspace, UNASKED, StoreRequest::Save { state });
        }
        self.go_on_behind(keyspace);
    }

    fn go_on_behind(&mut self, keyspace: &mut Keyspace) {
        for (ticket, request) in std::mem::take(&mut self.behind) {
            self.ask(keyspace, ticket, request);
        }
    }
}

/// Higher than any ticket.
const LAST: Ticket = Ticket(u64::MAX);
/// Nobody waits for its answer.
const UNASKED: Ticket = Ticket(u64::MAX - 1);

fn observed(keyspace: &Keyspace, key: &Key) -> Option<Wait> {
    let shard = keyspace.shard_of(*key);
    let lsn = keyspace.store(shard).observed(&KeyRef::given(*key, b""));
    Some(Wait { shard, lsn })
}

fn entry_of(key: Key, record: Digested, now_ms: u64) -> Entry {
    let Digested { version, expiry_ms } = record;
    let is_tombstone = expiry_ms != 0 && expiry_ms <= now_ms;
    Entry { namespace: Namespace::PLAIN, key, version, is_tombstone }
}

fn header_of(entry: &StoredEntry) -> Header {
    Header { version: entry.version, expiry_ms: entry.expiry_ms, is_tombstone: false }
}

fn found_of(key: Key, result: &Result<Option<(Bytes, Value)>, ReadError>, now_ms: u64) -> Found {
    match result {
        Err(_) => Found::Failed,
        Ok(None) => Found::Nothing,
        Ok(Some((user_key, value))) => {
            let record = Record {
                namespace: Namespace::PLAIN,
                key,
                user_key: user_key.clone(),
                version: value.version,
                expiry_ms: value.expiry_ms,
                content: Content::Value(value.value.clone()),
            };
            Found::Record(record.at(now_ms))
        }
    }
}
