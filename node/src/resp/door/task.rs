//! Commands that wait for the disk: what they are waiting for and what they do then.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use storage::{Event, Get, KeyRef, Put, ReadError, ReadId, UserKey, Value, WriteError};
use wal::record::Key;

use super::execute::{read_error, write_error};
use super::reply_queue::Reply;
use crate::io::ConnectionId;
use crate::keyspace::{Address, Keyspace, ShardIndex, Wait};
use crate::resp::frame::integer;
use crate::resp::glob;
use crate::resp::reply::Protocol;

/// Names a task.
pub(super) type TaskId = u64;

/// Keys that one step of KEYS looks at.
const KEYS_PER_STEP_MAX: usize = 1024;
/// Reads that KEYS has under way.
const KEY_READS_MAX: usize = 64;

/// A key and its user key, to keep.
#[derive(Clone, Debug)]
pub(super) struct OwnedKey {
    pub(super) shard: ShardIndex,
    pub(super) id: Key,
    pub(super) user_key: Bytes,
}

impl OwnedKey {
    pub(super) fn new(address: &Address<'_>) -> Self {
        let user_key = Bytes::copy_from_slice(address.key.user_key);
        Self { shard: address.shard, id: address.key.id, user_key }
    }

    pub(super) fn address(&self) -> Address<'_> {
        let key = KeyRef { id: self.id, user_key: &self.user_key };
        Address { shard: self.shard, key }
    }
}

/// How a key's old value becomes its new one.
#[derive(Clone, Debug)]
pub(super) enum Change {
    /// INCR and its like.
    Increment { by: i64 },
    /// APPEND.
    Append { value: Bytes },
    /// SET with GET; `None` leaves the key as it is.
    Replace { value: Option<(Bytes, u64)> },
}

/// A value and its expiry, to be stored.
type NewValue = (Bytes, u64);

/// What a change yields: the value to store, and the reply.
type Changed = Result<(Option<NewValue>, Answer), &'static str>;

/// What a change answers.
#[derive(Debug)]
pub(super) enum Answer {
    Integer(i64),
    Old(Option<Bytes>),
}

impl Change {
    fn apply(&self, old: Option<&Value>, value_bytes_max: usize) -> Changed {
        let expiry_ms = old.map_or(0, |value| value.expiry_ms);
        match self {
            Self::Increment { by } => {
                let number = old.map_or(Some(0), |value| integer(&value.value));
                let number = number.ok_or("ERR value is not an integer or out of range")?;
                let sum = number.checked_add(*by);
                let sum = sum.ok_or("ERR increment or decrement would overflow")?;
                let text = Bytes::from(sum.to_string());
                Ok((Some((text, expiry_ms)), Answer::Integer(sum)))
            }
            Self::Append { value } => {
                let before = old.map_or(&[][..], |value| &value.value);
                let len = before.len() + value.len();
                if len > value_bytes_max {
                    return Err("ERR string exceeds maximum allowed size (value_bytes_max)");
                }
                let answer = Answer::Integer(i64::try_from(len).unwrap_or(i64::MAX));
                let joined = [before, &value[..]].concat();
                Ok((Some((Bytes::from(joined), expiry_ms)), answer))
            }
            Self::Replace { value } => {
                let old = old.map(|value| value.value.clone());
                Ok((value.clone(), Answer::Old(old)))
            }
        }
    }
}

/// What a walk over keys is for.
#[derive(Debug)]
pub(super) enum Listing {
    /// KEYS: goes on from here, if not at the end.
    Keys { next: Option<Key>, pattern: Bytes },
    /// SCAN, with the cursor to answer.
    Scan { cursor: u64, pattern: Option<Bytes> },
    /// RANDOMKEY.
    Random,
}

#[derive(Debug)]
enum Kind {
    Get,
    MGet { values: Vec<Option<Bytes>> },
    Change { key: OwnedKey, change: Change, old: Option<Option<Value>> },
    Batch { writes: VecDeque<BatchWrite>, removed: i64, answers_count: bool },
    Listing { listing: Listing, names: Vec<Bytes> },
}

/// One write of a command with many keys.
#[derive(Clone, Debug)]
pub(super) struct BatchWrite {
    pub(super) key: OwnedKey,
    /// `None` deletes.
    pub(super) value: Option<Bytes>,
}

#[derive(Debug)]
struct Task {
    connection: ConnectionId,
    place: u64,
    reply: Reply,
    reads: usize,
    failed: Option<String>,
    kind: Kind,
}

/// The end of a task.
#[derive(Debug)]
pub(super) struct Finished {
    pub(super) id: TaskId,
    pub(super) connection: ConnectionId,
    pub(super) place: u64,
    pub(super) reply: Reply,
}

/// Where a task's reply goes.
#[derive(Clone, Copy, Debug)]
pub(super) struct ReplyPlace {
    pub(super) connection: ConnectionId,
    pub(super) place: u64,
    pub(super) protocol: Protocol,
}

/// All tasks of the door.
#[derive(Debug, Default)]
pub(super) struct Tasks {
    next: TaskId,
    tasks: BTreeMap<TaskId, Task>,
    reads: BTreeMap<(ShardIndex, ReadId), (TaskId, usize)>,
    /// Keys that a change is under way for.
    locked: BTreeSet<Key>,
    /// Tasks whose writes found the log busy.
    stalled: Vec<TaskId>,
    /// Walks that can go on.
    runnable: VecDeque<TaskId>,
    finished: VecDeque<Finished>,
    value_bytes_max: usize,
}

impl Tasks {
    pub(super) fn is_locked(&self, key: Key) -> bool {
        self.locked.contains(&key)
    }

    pub(super) fn is_any_locked(&self) -> bool {
        !self.locked.is_empty()
    }

    pub(super) fn is_runnable(&self) -> bool {
        !self.runnable.is_empty()
    }

    pub(super) fn new(value_bytes_max: usize) -> Self {
        Self { value_bytes_max, ..Self::default() }
    }

    pub(super) fn poll_finished(&mut self) -> Option<Finished> {
        self.finished.pop_front()
    }

    /// Takes the end of this very task, if it has ended.
    pub(super) fn take_finished(&mut self, id: TaskId) -> Option<Finished> {
        let index = self.finished.iter().position(|finished| finished.id == id)?;
        self.finished.remove(index)
    }

    fn add(&mut self, to: ReplyPlace, wait: Option<Wait>, kind: Kind) -> TaskId {
        let id = self.next;
        self.next += 1;
        let mut reply = Reply::new(to.protocol);
        reply.wait(wait);
        let ReplyPlace { connection, place, .. } = to;
        self.tasks.insert(id, Task { connection, place, reply, reads: 0, failed: None, kind });
        id
    }

    fn read(&mut self, id: TaskId, shard: ShardIndex, read: ReadId, index: usize) {
        self.reads.insert((shard, read), (id, index));
        if let Some(task) = self.tasks.get_mut(&id) {
            task.reads += 1;
        }
    }

    /// GET whose value is on disk.
    pub(super) fn get(
        &mut self,
        to: ReplyPlace,
        wait: Option<Wait>,
        shard: ShardIndex,
        read: ReadId,
    ) {
        let id = self.add(to, wait, Kind::Get);
        self.read(id, shard, read, 0);
    }

    /// MGET of which some values are on disk.
    pub(super) fn mget(
        &mut self,
        to: ReplyPlace,
        waits: &[Wait],
        values: Vec<Option<Bytes>>,
        reads: &[(usize, ShardIndex, ReadId)],
    ) {
        let id = self.add(to, None, Kind::MGet { values });
        if let Some(task) = self.tasks.get_mut(&id) {
            waits.iter().for_each(|wait| task.reply.wait(Some(*wait)));
        }
        for (index, shard, read) in reads {
            self.read(id, *shard, *read, *index);
        }
    }

    /// A change of one key: locks it until it is done. `get` is the old value's read.
    pub(super) fn change(
        &mut self,
        keyspace: &mut Keyspace,
        to: ReplyPlace,
        key: OwnedKey,
        change: Change,
        get: Get,
    ) -> TaskId {
        let (shard, lock) = (key.shard, key.id);
        let wait = keyspace.observed(&key.address());
        let id = self.add(to, wait, Kind::Change { key, change, old: None });
        self.locked.insert(lock);
        match get {
            Get::Pending(read) => self.read(id, shard, read, 0),
            Get::Missing => self.have_old(keyspace, id, None),
            Get::Found(value) => self.have_old(keyspace, id, Some(value)),
        }
        id
    }

    /// The rest of a command with many writes, of which some found the log busy.
    pub(super) fn batch(
        &mut self,
        to: ReplyPlace,
        reply: Reply,
        writes: VecDeque<BatchWrite>,
        removed: i64,
        answers_count: bool,
    ) -> TaskId {
        let id = self.add(to, None, Kind::Batch { writes, removed, answers_count });
        if let Some(task) = self.tasks.get_mut(&id) {
            task.reply = reply;
        }
        self.stalled.push(id);
        id
    }

    /// KEYS, SCAN or RANDOMKEY over these keys first.
    pub(super) fn list(
        &mut self,
        keyspace: &mut Keyspace,
        to: ReplyPlace,
        listing: Listing,
        keys: Vec<Key>,
    ) {
        let id = self.add(to, None, Kind::Listing { listing, names: Vec::new() });
        if let Some(task) = self.tasks.get_mut(&id) {
            keyspace.observed_all().for_each(|wait| task.reply.wait(Some(wait)));
        }
        self.name_keys(keyspace, id, keys);
        self.walk_on(keyspace, id);
    }

    fn name_keys(&mut self, keyspace: &mut Keyspace, id: TaskId, keys: Vec<Key>) {
        for key in keys {
            let shard = keyspace.shard_of(key);
            match keyspace.store_mut(shard).user_key(key) {
                Ok(UserKey::Pending(read)) => self.read(id, shard, read, 0),
                Ok(UserKey::Found(name)) => {
                    if let Some(task) = self.tasks.get_mut(&id) {
                        task.take_name(name);
                        let key = KeyRef { id: key, user_key: &[] };
                        task.reply.wait(keyspace.observed(&Address { shard, key }));
                    }
                }
                // A damaged record cannot tell its name; INFO and check count it.
                Ok(UserKey::Missing) | Err(_) => {}
            }
        }
    }

    /// Goes on with walks and with writes that found the log busy.
    pub(super) fn step(&mut self, keyspace: &mut Keyspace) {
        for _ in 0..self.runnable.len() {
            if let Some(id) = self.runnable.pop_front() {
                self.walk_on(keyspace, id);
            }
        }
    }

    fn walk_on(&mut self, keyspace: &mut Keyspace, id: TaskId) {
        let Some(task) = self.tasks.get_mut(&id) else { return };
        let room = KEY_READS_MAX.saturating_sub(task.reads);
        if let Kind::Listing { listing: Listing::Keys { next, .. }, .. } = &mut task.kind
            && let Some(from) = *next
            && room > 0
        {
            // Keys in memory cost no read, but whether they are is not known beforehand.
            let limit = if task.reads == 0 { KEYS_PER_STEP_MAX } else { room };
            let mut keys: Vec<Key> = keyspace.keys_from(from).take(limit + 1).collect();
            *next = if keys.len() > limit { keys.pop() } else { None };
            self.name_keys(keyspace, id, keys);
        }
        self.finish_or_go_on(id);
    }

    fn finish_or_go_on(&mut self, id: TaskId) {
        let Some(task) = self.tasks.get_mut(&id) else { return };
        let Kind::Listing { listing, names } = &mut task.kind else { return };
        if matches!(listing, Listing::Keys { next: Some(_), .. }) {
            if task.reads < KEY_READS_MAX && !self.runnable.contains(&id) {
                self.runnable.push_back(id);
            }
            return;
        }
        if task.reads > 0 {
            return;
        }
        let names = std::mem::take(names);
        let mut writer = task.reply.writer();
        match listing {
            Listing::Keys { .. } => writer.array_header(names.len()),
            Listing::Scan { cursor, .. } => {
                writer.array_header(2);
                writer.bulk(cursor.to_string().as_bytes());
                writer.array_header(names.len());
            }
            Listing::Random if names.is_empty() => writer.null(),
            Listing::Random => {}
        }
        names.iter().for_each(|name| task.reply.writer().bulk(name));
        self.finish(id);
    }

    /// Takes the end of a read.
    pub(super) fn handle_event(
        &mut self,
        keyspace: &mut Keyspace,
        shard: ShardIndex,
        event: Event,
    ) {
        let Event::Read { id: read, result } = event else { return };
        let Some((id, index)) = self.reads.remove(&(shard, read)) else { return };
        let Some(task) = self.tasks.get_mut(&id) else { return };
        task.reads -= 1;
        match &mut task.kind {
            Kind::Get => {
                match result {
                    Ok(Some((_, value))) => task.reply.value(value.value),
                    Ok(None) => task.reply.writer().null(),
                    Err(error) => task.reply.writer().error(read_error(error).as_bytes()),
                }
                self.finish(id);
            }
            Kind::MGet { values } => {
                match result {
                    Ok(found) => values[index] = found.map(|(_, value)| value.value),
                    Err(error) => task.failed = Some(read_error(error)),
                }
                if task.reads == 0 {
                    self.finish_mget(id);
                }
            }
            Kind::Change { .. } => self.take_old(keyspace, id, result),
            Kind::Listing { .. } => {
                if let Ok(Some((name, _))) = result {
                    task.take_name(name);
                }
                self.walk_on(keyspace, id);
            }
            Kind::Batch { .. } => {}
        }
    }

    fn finish_mget(&mut self, id: TaskId) {
        let Some(task) = self.tasks.get_mut(&id) else { return };
        let Kind::MGet { values } = &mut task.kind else { return };
        match &task.failed {
            Some(text) => task.reply.writer().error(text.as_bytes()),
            None => write_values(&mut task.reply, std::mem::take(values)),
        }
        self.finish(id);
    }

    fn take_old(
        &mut self,
        keyspace: &mut Keyspace,
        id: TaskId,
        result: Result<Option<(Bytes, Value)>, ReadError>,
    ) {
        match result {
            Ok(old) => self.have_old(keyspace, id, old.map(|(_, value)| value)),
            Err(error) => {
                if let Some(task) = self.tasks.get_mut(&id) {
                    task.reply.writer().error(read_error(error).as_bytes());
                }
                self.finish(id);
            }
        }
    }

    fn have_old(&mut self, keyspace: &mut Keyspace, id: TaskId, value: Option<Value>) {
        if let Some(Task { kind: Kind::Change { old, .. }, .. }) = self.tasks.get_mut(&id) {
            *old = Some(value);
        }
        self.write_change(keyspace, id);
    }

    fn write_change(&mut self, keyspace: &mut Keyspace, id: TaskId) {
        let Some(task) = self.tasks.get_mut(&id) else { return };
        let Kind::Change { key, change, old: Some(old) } = &task.kind else { return };
        match change.apply(old.as_ref(), self.value_bytes_max) {
            Err(text) => task.reply.writer().error(text.as_bytes()),
            Ok((new, answer)) => match store(keyspace, &key.address(), new) {
                Err(WriteError::Busy) => {
                    self.stalled.push(id);
                    return;
                }
                Err(error) => task.reply.writer().error(write_error(error).as_bytes()),
                Ok(wait) => {
                    task.reply.wait(wait);
                    match answer {
                        Answer::Integer(number) => task.reply.writer().integer(number),
                        Answer::Old(Some(value)) => task.reply.value(value),
                        Answer::Old(None) => task.reply.writer().null(),
                    }
                }
            },
        }
        self.finish(id);
    }

    /// Tries again the writes that found the log busy.
    pub(super) fn retry_stalled(&mut self, keyspace: &mut Keyspace) {
        for id in std::mem::take(&mut self.stalled) {
            match self.tasks.get(&id).map(|task| &task.kind) {
                Some(Kind::Change { .. }) => self.write_change(keyspace, id),
                Some(Kind::Batch { .. }) => self.write_batch(keyspace, id),
                _ => {}
            }
        }
    }

    fn write_batch(&mut self, keyspace: &mut Keyspace, id: TaskId) {
        let Some(task) = self.tasks.get_mut(&id) else { return };
        let Kind::Batch { writes, removed, answers_count } = &mut task.kind else { return };
        while let Some(write) = writes.front() {
            match write_one(keyspace, write, &mut task.reply) {
                Err(WriteError::Busy) => {
                    self.stalled.push(id);
                    return;
                }
                Err(error) => {
                    task.reply.writer().error(write_error(error).as_bytes());
                    self.finish(id);
                    return;
                }
                Ok(existed) => *removed += i64::from(existed),
            }
            writes.pop_front();
        }
        if *answers_count {
            task.reply.writer().integer(*removed);
        } else {
            task.reply.writer().ok();
        }
        self.finish(id);
    }

    fn finish(&mut self, id: TaskId) {
        let Some(task) = self.tasks.remove(&id) else { return };
        if let Kind::Change { key, .. } = &task.kind {
            self.locked.remove(&key.id);
        }
        let Task { connection, place, reply, .. } = task;
        self.finished.push_back(Finished { id, connection, place, reply });
    }
}

impl Task {
    fn take_name(&mut self, name: Bytes) {
        let Kind::Listing { listing, names } = &mut self.kind else { return };
        let matches = match listing {
            Listing::Keys { pattern, .. } => glob::matches(pattern, &name),
            Listing::Scan { pattern, .. } => {
                pattern.as_ref().is_none_or(|pattern| glob::matches(pattern, &name))
            }
            Listing::Random => true,
        };
        if matches {
            names.push(name);
        }
    }
}

/// Stores a value, if there is one to store.
pub(super) fn store(
    keyspace: &mut Keyspace,
    address: &Address<'_>,
    new: Option<NewValue>,
) -> Result<Option<Wait>, WriteError> {
    let Some((value, expiry_ms)) = new else { return Ok(None) };
    let version = keyspace.next_version();
    let put = Put { key: address.key, version, expiry_ms, value: &value };
    let lsn = keyspace.store_mut(address.shard).put(&put)?;
    Ok(Some(Wait { shard: address.shard, lsn }))
}

/// Carries out one write of a batch; tells whether a deleted key was there.
pub(super) fn write_one(
    keyspace: &mut Keyspace,
    write: &BatchWrite,
    reply: &mut Reply,
) -> Result<bool, WriteError> {
    let address = write.key.address();
    match &write.value {
        Some(value) => {
            let wait = store(keyspace, &address, Some((value.clone(), 0)))?;
            reply.wait(wait);
            Ok(false)
        }
        None => {
            let version = keyspace.next_version();
            let removed = keyspace.store_mut(address.shard).remove(address.key, version)?;
            reply.wait(keyspace.observed(&address));
            Ok(removed.is_some())
        }
    }
}

/// Writes MGET's reply.
pub(super) fn write_values(reply: &mut Reply, values: Vec<Option<Bytes>>) {
    reply.writer().array_header(values.len());
    for value in values {
        match value {
            Some(value) => reply.value(value),
            None => reply.writer().null(),
        }
    }
}
