//! What each command does.

use std::collections::VecDeque;

use bytes::Bytes;
use storage::{Entry, Get, Put, ReadError, WriteError};
use wal::record::Key;

use super::Door;
use super::connection::Connection;
use super::reply_queue::Reply;
use super::task::{
    BatchWrite, Change, Listing, OwnedKey, ReplyPlace, TaskId, write_one, write_values,
};
use crate::io::ConnectionId;
use crate::keyspace::{Address, Keyspace, Wait};
use crate::resp::command::{
    Command, CommandError, Expire, ExpireCondition, Scan, Set, SetCondition, SetExpiry, Tail,
};

/// SCAN's COUNT, if none is given, as in Redis.
const SCAN_COUNT_DEFAULT: u64 = 10;
/// Most keys that one SCAN looks at, whatever COUNT says: one reply stays bounded.
const SCAN_COUNT_MAX: u64 = 10_000;

/// What became of a command.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It has been executed, or a task goes on with it that nothing need wait for.
    Done,
    /// It has not; try again when a task ends or the log can take more.
    Blocked,
    /// Commands of this connection must wait for the task.
    Behind(TaskId),
    /// No more commands from this connection.
    Close,
}

/// The connection a command came on.
pub(super) struct Caller<'a> {
    pub(super) id: ConnectionId,
    pub(super) connection: &'a mut Connection,
}

impl Caller<'_> {
    pub(super) fn reply(&mut self, wait: Option<Wait>, write: impl FnOnce(&mut Reply)) {
        let protocol = self.connection.protocol;
        self.connection.replies.push(protocol, wait, write);
    }

    pub(super) fn error(&mut self, text: &[u8]) -> Outcome {
        self.reply(None, |reply| reply.writer().error(text));
        Outcome::Done
    }

    fn integer(&mut self, wait: Option<Wait>, value: i64) -> Outcome {
        self.reply(wait, |reply| reply.writer().integer(value));
        Outcome::Done
    }

    /// Keeps a place for a task's reply.
    fn place(&mut self) -> ReplyPlace {
        let (connection, protocol) = (self.id, self.connection.protocol);
        ReplyPlace { connection, place: self.connection.replies.reserve(), protocol }
    }
}

/// The text of a failed read, as it goes to the client.
pub(super) fn read_error(error: ReadError) -> String {
    match error {
        ReadError::Damaged => "DAMAGED the value of this key is damaged on disk; write it again \
                               or restore it"
            .to_owned(),
        ReadError::Suspect => "DAMAGED acknowledged records were lost on disk and this key may be \
                               among them; restore it, or accept the loss with kadring check \
                               --repair"
            .to_owned(),
        ReadError::Disk(error) => format!("IOERR the disk could not read this key: {error}"),
    }
}

/// The text of a refused write, as it goes to the client.
pub(super) fn write_error(error: WriteError) -> String {
    match error {
        WriteError::Busy => "BUSY the log is catching up; try again".to_owned(),
        WriteError::DiskFull => "DISKFULL no space left for the data directory; free some and \
                                 writing resumes by itself"
            .to_owned(),
        WriteError::ReadOnly(error) => format!(
            "MISCONF a disk write has failed ({error}); this node only reads until it is restarted"
        ),
        WriteError::KeyConflict => {
            "ERR another key has the same SHA-1 id; this key cannot be stored".to_owned()
        }
    }
}

fn count(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

impl Door {
    /// Executes a command on keys; those about the connection and the node are elsewhere.
    pub(super) fn execute(
        &mut self,
        keyspace: &mut Keyspace,
        caller: &mut Caller<'_>,
        command: Command<'_>,
    ) -> Outcome {
        match command {
            Command::Get { key } => self.get(keyspace, caller, key),
            Command::Set(set) => self.set(keyspace, caller, &set),
            Command::Del { keys } | Command::Unlink { keys } => self.del(keyspace, caller, keys),
            Command::MSet { pairs } => {
                let values_fit =
                    pairs.clone().all(|(_, value)| value.len() <= self.limits.value_bytes_max);
                if !values_fit {
                    return caller.error(&self.value_too_long());
                }
                let writes = pairs.map(|(key, value)| (key, Some(value)));
                self.write_many(keyspace, caller, writes, false)
            }
            Command::MGet { keys } => self.mget(keyspace, caller, keys),
            Command::Exists { keys } => exists(keyspace, caller, keys),
            Command::StrLen { key } => on_entry(keyspace, caller, key, |entry, reply| {
                reply.writer().integer(entry.map_or(0, |entry| count(entry.value_len)));
            }),
            Command::Type { key } => on_entry(keyspace, caller, key, |entry, reply| {
                reply.writer().simple(if entry.is_some() { "string" } else { "none" });
            }),
            Command::Ttl { key } => ttl(keyspace, caller, key, |ms| ms.saturating_add(500) / 1000),
            Command::PTtl { key } => ttl(keyspace, caller, key, |ms| ms),
            Command::Expire(expire) => self.expire(keyspace, caller, &expire),
            Command::Persist { key } => self.persist(keyspace, caller, key),
            Command::Increment { key, by } => {
                self.change(keyspace, caller, key, Change::Increment { by })
            }
            Command::Append { key, value } => {
                let value = Bytes::copy_from_slice(value);
                self.change(keyspace, caller, key, Change::Append { value })
            }
            Command::DbSize => {
                let mut reply = Reply::new(caller.connection.protocol);
                keyspace.observed_all().for_each(|wait| reply.wait(Some(wait)));
                reply.writer().integer(count(keyspace.len()));
                caller.connection.replies.push_reply(reply);
                Outcome::Done
            }
            Command::Keys { pattern } => {
                let pattern = Bytes::copy_from_slice(pattern);
                let listing = Listing::Keys { next: Some(Key([0; 20])), pattern };
                self.tasks.list(keyspace, caller.place(), listing, Vec::new());
                Outcome::Done
            }
            Command::Scan(scan) => self.scan(keyspace, caller, &scan),
            Command::RandomKey => {
                let keys = keyspace.random_key().into_iter().collect();
                self.tasks.list(keyspace, caller.place(), Listing::Random, keys);
                Outcome::Done
            }
            Command::FlushAll(_) | Command::FlushDb(_) => self.flush_all(keyspace, caller),
            other => self.execute_on_node(keyspace, caller, other),
        }
    }

    fn value_too_long(&self) -> Vec<u8> {
        let limit = self.limits.value_bytes_max;
        format!("ERR value is larger than value_bytes_max, {limit} bytes").into_bytes()
    }

    fn get(&mut self, keyspace: &mut Keyspace, caller: &mut Caller<'_>, key: &[u8]) -> Outcome {
        let address = keyspace.address(key);
        let wait = keyspace.observed(&address);
        match keyspace.store_mut(address.shard).get(&address.key) {
            Ok(Get::Missing) => caller.reply(wait, |reply| reply.writer().null()),
            Ok(Get::Found(value)) => caller.reply(wait, |reply| reply.value(value.value)),
            Ok(Get::Pending(read)) => self.tasks.get(caller.place(), wait, address.shard, read),
            Err(error) => return caller.error(read_error(error).as_bytes()),
        }
        Outcome::Done
    }

    fn mget(
        &mut self,
        keyspace: &mut Keyspace,
        caller: &mut Caller<'_>,
        keys: Tail<'_>,
    ) -> Outcome {
        let (mut values, mut reads, mut waits) = (Vec::new(), Vec::new(), Vec::new());
        let mut failed = None;
        for (index, key) in keys.enumerate() {
            let address = keyspace.address(key);
            waits.extend(keyspace.observed(&address));
            let shard = address.shard;
            values.push(match keyspace.store_mut(shard).get(&address.key) {
                Ok(Get::Found(value)) => Some(value.value),
                Ok(Get::Missing) => None,
                Ok(Get::Pending(read)) => {
                    reads.push((index, shard, read));
                    None
                }
                Err(error) => {
                    failed = Some(read_error(error));
                    None
                }
            });
        }
        if let Some(text) = failed {
            // Reads that were started come back to nobody.
            return caller.error(text.as_bytes());
        }
        if reads.is_empty() {
            let mut reply = Reply::new(caller.connection.protocol);
            waits.iter().for_each(|wait| reply.wait(Some(*wait)));
            write_values(&mut reply, values);
            caller.connection.replies.push_reply(reply);
        } else {
            self.tasks.mget(caller.place(), &waits, values, &reads);
        }
        Outcome::Done
    }

    fn set(&mut self, keyspace: &mut Keyspace, caller: &mut Caller<'_>, set: &Set<'_>) -> Outcome {
        if set.value.len() > self.limits.value_bytes_max {
            return caller.error(&self.value_too_long());
        }
        let address = keyspace.address(set.key);
        if self.tasks.is_locked(address.key.id) {
            return Outcome::Blocked;
        }
        let now_ms = keyspace.now().clock_ms;
        let expiry_ms = match set.expiry {
            SetExpiry::None | SetExpiry::Keep => Some(0),
            SetExpiry::In { ms } => add_ms(now_ms, ms),
            SetExpiry::At { ms } => u64::try_from(ms).ok(),
        };
        let Some(mut expiry_ms) = expiry_ms else {
            return caller.error(&CommandError::ExpireTime { name: "set" }.message());
        };
        let keeps = set.expiry == SetExpiry::Keep;
        let mut stores = true;
        if keeps || set.condition != SetCondition::Always {
            let entry = match keyspace.store(address.shard).entry(&address.key) {
                Ok(entry) => entry,
                Err(error) => return caller.error(read_error(error).as_bytes()),
            };
            stores = match set.condition {
                SetCondition::Always => true,
                SetCondition::IfMissing => entry.is_none(),
                SetCondition::IfPresent => entry.is_some(),
            };
            if keeps {
                expiry_ms = entry.map_or(0, |entry| entry.expiry_ms);
            }
        }
        if set.return_old {
            let value = stores.then(|| (Bytes::copy_from_slice(set.value), expiry_ms));
            return self.change(keyspace, caller, set.key, Change::Replace { value });
        }
        if !stores {
            let wait = keyspace.observed(&address);
            caller.reply(wait, |reply| reply.writer().null());
            return Outcome::Done;
        }
        let version = keyspace.next_version();
        let put = Put { key: address.key, version, expiry_ms, value: set.value };
        match keyspace.store_mut(address.shard).put(&put) {
            Ok(lsn) => {
                let wait = Some(Wait { shard: address.shard, lsn });
                caller.reply(wait, |reply| reply.writer().ok());
                Outcome::Done
            }
            Err(WriteError::Busy) => Outcome::Blocked,
            Err(error) => caller.error(write_error(error).as_bytes()),
        }
    }

    /// Reads a key's value, changes it and stores it; other writers of the key wait meanwhile.
    fn change(
        &mut self,
        keyspace: &mut Keyspace,
        caller: &mut Caller<'_>,
        key: &[u8],
        change: Change,
    ) -> Outcome {
        let address = keyspace.address(key);
        if self.tasks.is_locked(address.key.id) {
            return Outcome::Blocked;
        }
        match keyspace.store_mut(address.shard).get(&address.key) {
            Ok(get) => {
                let key = OwnedKey::new(&address);
                let task = self.tasks.change(keyspace, caller.place(), key, change, get);
                Outcome::Behind(task)
            }
            Err(error) => caller.error(read_error(error).as_bytes()),
        }
    }

    fn del(&mut self, keyspace: &mut Keyspace, caller: &mut Caller<'_>, keys: Tail<'_>) -> Outcome {
        for key in keys {
            let address = keyspace.address(key);
            if let Err(error) = keyspace.store(address.shard).entry(&address.key) {
                return caller.error(read_error(error).as_bytes());
            }
        }
        self.write_many(keyspace, caller, keys.map(|key| (key, None)), true)
    }

    /// DEL and MSET: writes key by key; if the log becomes busy midway, a task does the rest.
    fn write_many<'k>(
        &mut self,
        keyspace: &mut Keyspace,
        caller: &mut Caller<'_>,
        writes: impl Iterator<Item = (&'k [u8], Option<&'k [u8]>)> + Clone,
        answers_count: bool,
    ) -> Outcome {
        let locked = |key: &[u8]| self.tasks.is_locked(keyspace.address(key).key.id);
        if self.tasks.is_any_locked() && writes.clone().any(|(key, _)| locked(key)) {
            return Outcome::Blocked;
        }
        let mut reply = Reply::new(caller.connection.protocol);
        let (mut removed, mut left) = (0, VecDeque::new());
        for (key, value) in writes {
            let key = OwnedKey::new(&keyspace.address(key));
            let write = BatchWrite { key, value: value.map(Bytes::copy_from_slice) };
            if left.is_empty() {
                match write_one(keyspace, &write, &mut reply) {
                    Ok(existed) => {
                        removed += i64::from(existed);
                        continue;
                    }
                    Err(WriteError::Busy) => {}
                    Err(error) => return caller.error(write_error(error).as_bytes()),
                }
            }
            left.push_back(write);
        }
        if !left.is_empty() {
            let place = caller.place();
            let task = self.tasks.batch(place, reply, left, removed, answers_count);
            return Outcome::Behind(task);
        }
        if answers_count {
            reply.writer().integer(removed);
        } else {
            reply.writer().ok();
        }
        caller.connection.replies.push_reply(reply);
        Outcome::Done
    }

    fn expire(
        &mut self,
        keyspace: &mut Keyspace,
        caller: &mut Caller<'_>,
        expire: &Expire<'_>,
    ) -> Outcome {
        let address = keyspace.address(expire.key);
        if self.tasks.is_locked(address.key.id) {
            return Outcome::Blocked;
        }
        let now_ms = keyspace.now().clock_ms;
        let at_ms = i64::try_from(now_ms).ok().and_then(|now_ms| now_ms.checked_add(expire.ms));
        let Some(at_ms) = at_ms else {
            return caller.error(&CommandError::ExpireTime { name: expire.name }.message());
        };
        let entry = match keyspace.store(address.shard).entry(&address.key) {
            Ok(entry) => entry,
            Err(error) => return caller.error(read_error(error).as_bytes()),
        };
        let at_ms = u64::try_from(at_ms).unwrap_or(0);
        let applies = entry.is_some_and(|entry| expire_applies(expire.condition, &entry, at_ms));
        if !applies {
            return caller.integer(keyspace.observed(&address), 0);
        }
        if at_ms <= now_ms {
            let version = keyspace.next_version();
            let removed = keyspace.store_mut(address.shard).remove(address.key, version);
            return answer_one(keyspace, caller, &address, removed.map(|lsn| lsn.is_some()));
        }
        touch(keyspace, caller, &address, at_ms)
    }

    fn persist(&mut self, keyspace: &mut Keyspace, caller: &mut Caller<'_>, key: &[u8]) -> Outcome {
        let address = keyspace.address(key);
        if self.tasks.is_locked(address.key.id) {
            return Outcome::Blocked;
        }
        match keyspace.store(address.shard).entry(&address.key) {
            Ok(Some(entry)) if entry.expiry_ms != 0 => touch(keyspace, caller, &address, 0),
            Ok(_) => caller.integer(keyspace.observed(&address), 0),
            Err(error) => caller.error(read_error(error).as_bytes()),
        }
    }

    fn scan(
        &mut self,
        keyspace: &mut Keyspace,
        caller: &mut Caller<'_>,
        scan: &Scan<'_>,
    ) -> Outcome {
        let wanted = scan.count.unwrap_or(SCAN_COUNT_DEFAULT).clamp(1, SCAN_COUNT_MAX);
        let wanted = usize::try_from(wanted).unwrap_or(usize::MAX);
        let mut from = [0; 20];
        from[..8].copy_from_slice(&scan.cursor.to_be_bytes());
        let mut keys: Vec<Key> = Vec::new();
        let mut cursor = 0;
        for key in keyspace.keys_from(Key(from)) {
            // The cursor is the next key's first 8 bytes: keys that share them stay together.
            if keys.len() >= wanted && keys.last().is_some_and(|last| prefix(last) != prefix(&key))
            {
                cursor = prefix(&key);
                break;
            }
            keys.push(key);
        }
        if scan.kind.is_some_and(|kind| !kind.eq_ignore_ascii_case(b"string")) {
            keys.clear();
        }
        let pattern = scan.pattern.map(Bytes::copy_from_slice);
        self.tasks.list(keyspace, caller.place(), Listing::Scan { cursor, pattern }, keys);
        Outcome::Done
    }

    fn flush_all(&mut self, keyspace: &mut Keyspace, caller: &mut Caller<'_>) -> Outcome {
        if self.tasks.is_any_locked() {
            return Outcome::Blocked;
        }
        let mut reply = Reply::new(caller.connection.protocol);
        for shard in keyspace.shards() {
            let version = keyspace.next_version();
            match keyspace.store_mut(shard).clear(version) {
                Ok(lsn) => reply.wait(Some(Wait { shard, lsn })),
                Err(WriteError::Busy) => return Outcome::Blocked,
                Err(error) => return caller.error(write_error(error).as_bytes()),
            }
        }
        reply.writer().ok();
        caller.connection.replies.push_reply(reply);
        Outcome::Done
    }
}

fn prefix(key: &Key) -> u64 {
    key.0.first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes))
}

fn add_ms(now_ms: u64, ms: i64) -> Option<u64> {
    let at_ms = i64::try_from(now_ms).ok()?.checked_add(ms)?;
    u64::try_from(at_ms).ok()
}

fn expire_applies(condition: ExpireCondition, entry: &Entry, at_ms: u64) -> bool {
    let present = entry.expiry_ms != 0;
    match condition {
        ExpireCondition::Always => true,
        ExpireCondition::IfWithout => !present,
        ExpireCondition::IfWith => present,
        ExpireCondition::IfLater => present && at_ms > entry.expiry_ms,
        ExpireCondition::IfEarlier => !present || at_ms < entry.expiry_ms,
        ExpireCondition::IfWithAndEarlier => present && at_ms < entry.expiry_ms,
    }
}

/// Changes the expiry of a key that is there, and answers 1.
fn touch(
    keyspace: &mut Keyspace,
    caller: &mut Caller<'_>,
    address: &Address<'_>,
    expiry_ms: u64,
) -> Outcome {
    let version = keyspace.next_version();
    let touched = keyspace.store_mut(address.shard).touch(address.key, version, expiry_ms);
    answer_one(keyspace, caller, address, touched.map(|lsn| lsn.is_some()))
}

fn answer_one(
    keyspace: &Keyspace,
    caller: &mut Caller<'_>,
    address: &Address<'_>,
    result: Result<bool, WriteError>,
) -> Outcome {
    match result {
        Ok(done) => caller.integer(keyspace.observed(address), i64::from(done)),
        Err(WriteError::Busy) => Outcome::Blocked,
        Err(error) => caller.error(write_error(error).as_bytes()),
    }
}

fn on_entry(
    keyspace: &Keyspace,
    caller: &mut Caller<'_>,
    key: &[u8],
    write: impl FnOnce(Option<Entry>, &mut Reply),
) -> Outcome {
    let address = keyspace.address(key);
    match keyspace.store(address.shard).entry(&address.key) {
        Ok(entry) => {
            caller.reply(keyspace.observed(&address), |reply| write(entry, reply));
            Outcome::Done
        }
        Err(error) => caller.error(read_error(error).as_bytes()),
    }
}

fn ttl(keyspace: &Keyspace, caller: &mut Caller<'_>, key: &[u8], unit: fn(u64) -> u64) -> Outcome {
    let now_ms = keyspace.now().clock_ms;
    on_entry(keyspace, caller, key, |entry, reply| {
        let left = match entry {
            None => -2,
            Some(Entry { expiry_ms: 0, .. }) => -1,
            Some(Entry { expiry_ms, .. }) => {
                i64::try_from(unit(expiry_ms.saturating_sub(now_ms))).unwrap_or(i64::MAX)
            }
        };
        reply.writer().integer(left);
    })
}

fn exists(keyspace: &Keyspace, caller: &mut Caller<'_>, keys: Tail<'_>) -> Outcome {
    let mut reply = Reply::new(caller.connection.protocol);
    let mut found = 0;
    for key in keys {
        let address = keyspace.address(key);
        reply.wait(keyspace.observed(&address));
        match keyspace.store(address.shard).entry(&address.key) {
            Ok(entry) => found += i64::from(entry.is_some()),
            Err(error) => return caller.error(read_error(error).as_bytes()),
        }
    }
    reply.writer().integer(found);
    caller.connection.replies.push_reply(reply);
    Outcome::Done
}
