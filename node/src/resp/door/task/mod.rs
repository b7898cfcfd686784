//! Commands that wait for the disk: what they are waiting for and what they do then.
//!
//! A task ends by itself, with a reply for the place that was kept for it. It waits for reads,
//! for a lock or the log ([`Tasks::retry_stalled`]), or for its turn ([`Tasks::step`]), and always
//! for one of them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::RangeInclusive;

use bytes::Bytes;
use storage::{Event, Get, KeyRef, ReadError, ReadId, ScannedKey, Value};
use wal::record::Key;

use super::execute::{read_error, write_error};
use super::reply_queue::Reply;
use crate::cluster::records;
use crate::io::ConnectionId;
use crate::keyspace::{Address, Keyspace, ShardIndex, Wait};
use crate::resp::command::Tail;
use crate::resp::reply::Protocol;

mod change;
mod listing;
mod many;

use change::Written;
use listing::{Next, Walk};
use many::{Many, Waiting};

pub(crate) use change::Lifetime;
pub(super) use change::{Change, PutAnswer};
pub(super) use listing::Listing;
pub(crate) use listing::{cursor_key, cursor_of};
pub(super) use many::{Job, KEYS_PER_STEP_MAX, Step, Tally};

/// Names a task.
pub(super) type TaskId = u64;

/// A part of a value: the first and last byte, from the end if negative.
pub(super) type ByteRange = (i64, i64);

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
        let key = KeyRef::hashed(self.id, &self.user_key);
        Address { shard: self.shard, key }
    }
}

#[derive(Debug)]
enum Kind {
    /// GET and GETRANGE.
    Get {
        range: Option<ByteRange>,
    },
    /// `old` is the value before, once it has been read.
    Change {
        key: OwnedKey,
        change: Change,
        old: Option<Option<Value>>,
    },
    Many(Box<Many>),
    Walk(Box<Walk>),
    /// An order to the storage engine.
    Order,
}

#[derive(Debug)]
struct Task {
    connection: ConnectionId,
    place: u64,
    reply: Reply,
    /// Reads under way.
    reads: usize,
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

/// A read under way: for which task, and for which of its keys.
type TaskRead = (ShardIndex, ReadId, TaskId, usize);

/// All tasks of the door.
#[derive(Debug, Default)]
pub(super) struct Tasks {
    next: TaskId,
    tasks: BTreeMap<TaskId, Task>,
    reads: BTreeSet<TaskRead>,
    /// Keys that a change is under way for.
    locked: BTreeSet<Key>,
    /// Whether a lock has become free since somebody looked.
    unlocked: bool,
    /// Tasks that found a lock or the log busy.
    stalled: BTreeSet<TaskId>,
    /// Tasks that can go on when it is their turn.
    runnable: BTreeSet<TaskId>,
    finished: VecDeque<Finished>,
    value_bytes_max: usize,
}

impl Tasks {
    pub(super) fn locked(&self) -> &BTreeSet<Key> {
        &self.locked
    }

    pub(super) fn is_locked(&self, key: Key) -> bool {
        self.locked.contains(&key)
    }

    pub(super) fn is_any_locked(&self) -> bool {
        !self.locked.is_empty()
    }

    /// Whether a lock has become free since the last call.
    pub(super) fn take_unlocked(&mut self) -> bool {
        std::mem::take(&mut self.unlocked)
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.tasks.is_empty() && self.reads.is_empty() && self.locked.is_empty()
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
        self.tasks.insert(id, Task { connection, place, reply, reads: 0, kind });
        id
    }

    fn read(&mut self, id: TaskId, shard: ShardIndex, read: ReadId, index: usize) {
        if let Some(task) = self.tasks.get_mut(&id)
            && self.reads.insert((shard, read, id, index))
        {
            task.reads += 1;
        }
    }

    /// GET whose value is on disk.
    pub(super) fn get(
        &mut self,
        to: ReplyPlace,
        wait: Option<Wait>,
        (shard, read): (ShardIndex, ReadId),
        range: Option<ByteRange>,
    ) {
        let id = self.add(to, wait, Kind::Get { range });
        self.read(id, shard, read, 0);
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

    /// The rest of a command over many keys: those of `words`, after `base` ones that have been
    /// dealt with. `first` is what became of the first of them, if that has been tried.
    ///
    /// Returns the task if later commands of the same connection must wait for it.
    pub(super) fn many(
        &mut self,
        keyspace: &mut Keyspace,
        to: ReplyPlace,
        tally: Tally,
        (words, base): (Tail<'_>, usize),
        first: Option<Step>,
    ) -> Option<TaskId> {
        let mut many = Box::new(Many::new(tally, words, base));
        let waiting = first.map(|step| many.begin(step));
        let id = self.add(to, None, Kind::Many(many));
        match waiting {
            Some(waiting) => {
                self.go_on(id, Ok(waiting));
                self.run_many(keyspace, id);
            }
            None => {
                self.runnable.insert(id);
            }
        }
        match self.tasks.get(&id).map(|task| &task.kind) {
            Some(Kind::Many(many)) if many.is_settled() => None,
            _ => Some(id),
        }
    }

    /// KEYS, SCAN or RANDOMKEY.
    pub(super) fn list(
        &mut self,
        keyspace: &mut Keyspace,
        to: ReplyPlace,
        listing: Listing,
    ) -> TaskId {
        let id = self.add(to, None, Kind::Walk(Box::new(Walk::new(listing))));
        self.start_round(keyspace, id);
        id
    }

    /// An order to the storage engine.
    pub(super) fn order(&mut self, to: ReplyPlace) -> TaskId {
        self.add(to, None, Kind::Order)
    }

    /// Ends an order's task with what `write` answers.
    pub(super) fn end_order(&mut self, id: TaskId, write: impl FnOnce(&mut Reply)) {
        if let Some(task) = self.tasks.get_mut(&id) {
            write(&mut task.reply);
            self.finish(id);
        }
    }

    /// Forgets a task that nobody waits for any more, if it changes nothing.
    pub(super) fn abandon(&mut self, id: TaskId) {
        let only_reads = match self.tasks.get(&id).map(|task| &task.kind) {
            Some(Kind::Get { .. } | Kind::Walk(_)) => true,
            Some(Kind::Many(many)) => many.job().only_reads(),
            Some(Kind::Change { .. } | Kind::Order) | None => false,
        };
        if only_reads && let Some(task) = self.tasks.remove(&id) {
            self.forget(id, &task);
        }
    }

    fn forget(&mut self, id: TaskId, task: &Task) {
        if task.reads > 0 {
            self.reads.retain(|(_, _, other, _)| *other != id);
        }
        self.stalled.remove(&id);
        self.runnable.remove(&id);
        if let Kind::Change { key, .. } = &task.kind {
            self.unlocked |= self.locked.remove(&key.id);
        }
    }

    /// Gives each task that can go on its turn.
    pub(super) fn step(&mut self, keyspace: &mut Keyspace) {
        for id in std::mem::take(&mut self.runnable) {
            match self.tasks.get(&id).map(|task| &task.kind) {
                Some(Kind::Many(_)) => self.run_many(keyspace, id),
                Some(Kind::Walk(_)) => self.start_round(keyspace, id),
                _ => {}
            }
        }
    }

    /// Tries again what found a lock or the log busy.
    pub(super) fn retry_stalled(&mut self, keyspace: &mut Keyspace) {
        for id in std::mem::take(&mut self.stalled) {
            let Self { tasks, locked, .. } = self;
            match tasks.get_mut(&id).map(|task| &mut task.kind) {
                Some(Kind::Change { .. }) => self.write_change(keyspace, id),
                Some(Kind::Many(many)) => {
                    let result = many.retry(keyspace, locked);
                    self.go_on(id, result);
                }
                _ => {}
            }
        }
    }

    /// Takes the end of a read, a resolution or a listing.
    pub(super) fn handle_event(
        &mut self,
        keyspace: &mut Keyspace,
        shard: ShardIndex,
        event: Event,
    ) {
        match event {
            Event::Read { id: read, result } => {
                for (id, index) in self.take_waiting(shard, read) {
                    self.take_read(keyspace, id, index, result.clone());
                }
            }
            Event::Resolved { id: read } => {
                for (id, index) in self.take_waiting(shard, read) {
                    self.take_resolved(keyspace, id, index);
                }
            }
            Event::Scanned { id: read, keys, next } => {
                // A listing is nobody else's.
                if let Some((id, _)) = self.take_waiting(shard, read).pop() {
                    self.take_page(keyspace, id, shard, (keys, next));
                }
            }
            _ => {}
        }
    }

    /// Takes the tasks that wait for a read, each with which of its keys.
    fn take_waiting(&mut self, shard: ShardIndex, read: ReadId) -> Vec<(TaskId, usize)> {
        let mut waiting = Vec::new();
        while let Some(first) = self.reads.range(all_of(shard, read)).next().copied() {
            self.reads.remove(&first);
            let (_, _, id, index) = first;
            if let Some(task) = self.tasks.get_mut(&id) {
                task.reads -= 1;
                waiting.push((id, index));
            }
        }
        waiting
    }

    fn take_read(
        &mut self,
        keyspace: &mut Keyspace,
        id: TaskId,
        index: usize,
        result: Result<Option<(Bytes, Value)>, ReadError>,
    ) {
        let Some(task) = self.tasks.get_mut(&id) else { return };
        match (&mut task.kind, result) {
            (Kind::Many(many), result) => {
                let result = many.take_value(index, result);
                self.go_on(id, result);
            }
            (Kind::Get { range }, Ok(found)) => {
                let value = found.map(|(_, value)| value.value);
                write_value(&mut task.reply, value, *range);
                self.finish(id);
            }
            (Kind::Change { .. }, Ok(old)) => {
                self.have_old(keyspace, id, old.map(|(_, value)| value));
            }
            (_, Err(error)) => self.fail(id, &read_error(error)),
            (Kind::Walk(_) | Kind::Order, Ok(_)) => {}
        }
    }

    fn take_resolved(&mut self, keyspace: &mut Keyspace, id: TaskId, index: usize) {
        let Self { tasks, locked, .. } = self;
        match tasks.get_mut(&id).map(|task| &mut task.kind) {
            Some(Kind::Many(many)) => {
                let result = many.go_on(keyspace, locked, index);
                self.go_on(id, result);
            }
            Some(Kind::Change { .. }) => self.write_change(keyspace, id),
            _ => {}
        }
    }

    fn run_many(&mut self, keyspace: &mut Keyspace, id: TaskId) {
        let Self { tasks, locked, .. } = self;
        let Some(task) = tasks.get_mut(&id) else { return };
        let Kind::Many(many) = &mut task.kind else { return };
        let result = many.start(keyspace, locked, task.reads);
        self.go_on(id, result);
    }

    /// Finds out what a command over many keys waits for next.
    fn go_on(&mut self, id: TaskId, result: Result<Waiting, String>) {
        match result {
            Ok(waiting) => {
                for (shard, read, index) in waiting {
                    self.read(id, shard, read, index);
                }
            }
            Err(text) => return self.fail(id, &text),
        }
        let Some(Task { kind: Kind::Many(many), reads, .. }) = self.tasks.get(&id) else { return };
        if many.is_done() {
            self.finish(id);
        } else if many.is_stalled() {
            self.stalled.insert(id);
        } else if many.can_start(*reads) {
            self.runnable.insert(id);
        }
    }

    fn start_round(&mut self, keyspace: &mut Keyspace, id: TaskId) {
        let Some(Task { kind: Kind::Walk(walk), .. }) = self.tasks.get(&id) else { return };
        let Some((from, count)) = walk.round(keyspace) else { return };
        for shard in keyspace.shards() {
            let read = keyspace.store_mut(shard).scan(from, count);
            self.read(id, shard, read, 0);
        }
    }

    fn take_page(
        &mut self,
        keyspace: &mut Keyspace,
        id: TaskId,
        shard: ShardIndex,
        (mut keys, next): (Vec<ScannedKey>, Option<Key>),
    ) {
        let Some(task) = self.tasks.get_mut(&id) else { return };
        let Kind::Walk(walk) = &mut task.kind else { return };
        task.reply.wait(keyspace.observed_shard(shard));
        // A store may keep what has expired, and records of the node's own.
        keys.retain(|found| records::is_live(found, keyspace.now().clock_ms));
        walk.take_page(keys, next);
        if task.reads > 0 {
            return;
        }
        match walk.end_round() {
            Next::Reply => {
                walk.write(&mut task.reply);
                self.finish(id);
            }
            Next::Round => self.start_round(keyspace, id),
            Next::RoundLater => {
                self.runnable.insert(id);
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
        let (address, shard) = (key.address(), key.shard);
        let old = old.as_ref();
        match change.write(keyspace, &address, old, self.value_bytes_max, &mut task.reply) {
            Ok(Written::Done) => self.finish(id),
            Ok(Written::Pending(read)) => self.read(id, shard, read, 0),
            Ok(Written::Busy) => {
                self.stalled.insert(id);
            }
            Err(error) => self.fail(id, &write_error(error)),
        }
    }

    fn fail(&mut self, id: TaskId, text: &str) {
        if let Some(task) = self.tasks.remove(&id) {
            self.forget(id, &task);
            let Task { connection, place, mut reply, .. } = task;
            reply.writer().error(text.as_bytes());
            self.finished.push_back(Finished { id, connection, place, reply });
        }
    }

    fn finish(&mut self, id: TaskId) {
        let Some(task) = self.tasks.remove(&id) else { return };
        self.forget(id, &task);
        let Task { connection, place, mut reply, kind, .. } = task;
        if let Kind::Many(many) = kind {
            reply = many.into_reply();
        }
        self.finished.push_back(Finished { id, connection, place, reply });
    }
}

fn all_of(shard: ShardIndex, read: ReadId) -> RangeInclusive<TaskRead> {
    (shard, read, TaskId::MIN, usize::MIN)..=(shard, read, TaskId::MAX, usize::MAX)
}

/// Writes a value or a part of it.
pub(super) fn write_value(reply: &mut Reply, value: Option<Bytes>, range: Option<ByteRange>) {
    match (value, range) {
        (Some(value), None) => reply.value(value),
        (None, None) => reply.writer().null(),
        (value, Some(range)) => {
            let value = value.unwrap_or_default();
            let part = part_of(value.len(), range);
            reply.value(value.slice(part));
        }
    }
}

/// The bytes that GETRANGE's numbers stand for.
pub(crate) fn part_of(len: usize, (first, last): ByteRange) -> std::ops::Range<usize> {
    let len = i64::try_from(len).unwrap_or(i64::MAX);
    if first < 0 && last < 0 && first > last {
        return 0..0;
    }
    let from_end = |index: i64| if index < 0 { index.saturating_add(len).max(0) } else { index };
    let (first, last) = (from_end(first), from_end(last).min(len - 1));
    if len == 0 || first > last {
        return 0..0;
    }
    let index = |index: i64| usize::try_from(index).unwrap_or(0);
    index(first)..index(last) + 1
}
