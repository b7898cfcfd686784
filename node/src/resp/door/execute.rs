//! What each command does.

use bytes::Bytes;
use storage::{Effect, Entry, Get, Lookup, ReadError, ReadId, WriteError};

use super::connection::Connection;
use super::reply_queue::Reply;
use super::task::{
    ByteRange, Change, Job, KEYS_PER_STEP_MAX, Lifetime, Listing, OwnedKey, PutAnswer, ReplyPlace,
    Step, Tally, TaskId, Tasks, write_value,
};
use super::{Amounts, Door, Path};
use crate::io::ConnectionId;
use crate::keyspace::{Address, Keyspace, ShardIndex, Wait};
use crate::resp::command::{
    Command, CommandError, Expire, ExpireBase, ExpireCondition, GetEx, Scan, Set, SetAnswer,
    SetCondition, SetExpiry, Tail,
};
use crate::resp::frame::OwnArgument;

/// SCAN's COUNT, if none is given, as in Redis.
pub(crate) const SCAN_COUNT_DEFAULT: u64 = 10;
/// Most keys that one SCAN looks at, whatever COUNT says: one reply stays bounded.
pub(crate) const SCAN_COUNT_MAX: u64 = 10_000;

/// What became of a command.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It has been executed, or a task goes on with it that nothing need wait for.
    Done,
    /// It has not; try again when a lock is free or the log can take more.
    Blocked,
    /// It has not; try again when the key has been resolved.
    Resolving(ShardIndex, ReadId),
    /// It has not; try again when other threads have nothing left to answer.
    Alone,
    /// Commands of this connection must wait for the task.
    Behind(TaskId),
    /// Commands of this connection must wait for its part of a gathered one.
    BehindPart(u64),
    /// No more commands from this connection.
    Close,
}

/// The connection a command came on.
pub(super) struct Caller<'a> {
    pub(super) id: ConnectionId,
    pub(super) connection: &'a mut Connection,
    /// Arguments of the command that have memory of their own.
    pub(super) own: &'a [OwnArgument],
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

    /// An argument of the command, if it has memory of its own.
    fn own(&self, argument: &[u8]) -> Option<&OwnArgument> {
        self.own.iter().find(|own| std::ptr::eq(&raw const *own.bytes, argument))
    }

    /// An argument of the command, to keep: copied, unless it has memory of its own.
    fn keep(&self, argument: &[u8]) -> Bytes {
        let own = self.own(argument).map(|own| own.bytes.clone());
        own.unwrap_or_else(|| Bytes::copy_from_slice(argument))
    }

    /// Keeps a place for a task's reply.
    pub(super) fn place(&mut self) -> ReplyPlace {
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
        WriteError::NoSegment(error) => format!(
            "MISCONF no segment can be prepared ({error}); this is tried again each second, and \
             then writing resumes by itself"
        ),
        WriteError::KeyConflict => {
            "ERR another key has the same SHA-1 id; this key cannot be stored".to_owned()
        }
        WriteError::Unreadable(error) => read_error(error),
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
            Command::Get { key } => get(&mut self.tasks, keyspace, caller, key, None),
            Command::Set(set) => self.set(keyspace, caller, &set),
            Command::Del { keys } | Command::Unlink { keys } => {
                self.many(keyspace, caller, Job::Delete, keys)
            }
            Command::MSet { pairs } => {
                let values_fit =
                    pairs.clone().all(|(_, value)| value.len() <= self.limits.value_bytes_max);
                if !values_fit {
                    return caller.error(&self.value_too_long());
                }
                self.many(keyspace, caller, Job::Store, pairs.words())
            }
            Command::MGet { keys } => self.many(keyspace, caller, Job::Read, keys),
            Command::Exists { keys } => self.many(keyspace, caller, Job::Count, keys),
            Command::StrLen { key } => on_entry(keyspace, caller, key, |entry, reply| {
                reply.writer().integer(entry.map_or(0, |entry| count(entry.value_len)));
            }),
            Command::Type { key } => on_entry(keyspace, caller, key, |entry, reply| {
                reply.writer().simple(if entry.is_some() { "string" } else { "none" });
            }),
            Command::Ttl { .. }
            | Command::PTtl { .. }
            | Command::ExpireTime { .. }
            | Command::PExpireTime { .. } => lifetime_left(keyspace, caller, command),
            Command::Expire(expire) => self.expire(keyspace, caller, &expire),
            Command::Persist { key } => self.persist(keyspace, caller, key),
            Command::Increment { .. }
            | Command::Append { .. }
            | Command::SetRange { .. }
            | Command::GetDel { .. }
            | Command::GetEx(_) => self.change_by(keyspace, caller, command),
            Command::GetRange { key, first, last } => {
                get(&mut self.tasks, keyspace, caller, key, Some((first, last)))
            }
            Command::DbSize => {
                let mut reply = Reply::new(caller.connection.protocol);
                keyspace.observed_all().for_each(|wait| reply.wait(Some(wait)));
                reply.writer().integer(count(keyspace.len()));
                caller.connection.replies.push_reply(reply);
                Outcome::Done
            }
            Command::Keys { pattern } => {
                let listing = Listing::Keys { pattern: Bytes::copy_from_slice(pattern) };
                Outcome::Behind(self.tasks.list(keyspace, caller.place(), listing))
            }
            Command::Scan(scan) => self.scan(keyspace, caller, &scan),
            Command::RandomKey => {
                let listing = Listing::Random { point: keyspace.random_point() };
                Outcome::Behind(self.tasks.list(keyspace, caller.place(), listing))
            }
            Command::FlushAll(_) | Command::FlushDb(_) => self.flush_all(keyspace, caller),
            other => self.execute_on_node(keyspace, caller, other),
        }
    }

    fn value_too_long(&self) -> Vec<u8> {
        let limit = self.limits.value_bytes_max;
        format!("ERR value is larger than value_bytes_max, {limit} bytes").into_bytes()
    }

    fn set(&mut self, keyspace: &mut Keyspace, caller: &mut Caller<'_>, set: &Set<'_>) -> Outcome {
        if set.value.len() > self.limits.value_bytes_max {
            return caller.error(&self.value_too_long());
        }
        let address = keyspace.address(set.key);
        if self.tasks.is_locked(address.key.id) {
            return Outcome::Blocked;
        }
        let Some(lifetime) = lifetime(set.expiry, keyspace.now().clock_ms) else {
            return caller.error(&CommandError::ExpireTime { name: set.name }.message());
        };
        if set.answer == SetAnswer::Old {
            let (value, condition) = (caller.keep(set.value), set.condition);
            let change = Change::Replace { value, lifetime, condition };
            return self.change(keyspace, caller, set.key, change);
        }
        let mut old = None;
        if lifetime == Lifetime::Keep || set.condition != SetCondition::Always {
            old = match keyspace.lookup(&address) {
                Ok(Lookup::Found(entry)) => Some(entry),
                Ok(Lookup::Missing) => None,
                Ok(Lookup::Pending(read)) => return Outcome::Resolving(address.shard, read),
                Err(error) => return caller.error(read_error(error).as_bytes()),
            };
        }
        let stores = match set.condition {
            SetCondition::Always => true,
            SetCondition::IfMissing => old.is_none(),
            SetCondition::IfPresent => old.is_some(),
        };
        if !stores {
            let wait = keyspace.observed(&address);
            caller.reply(wait, |reply| match set.answer {
                SetAnswer::Flag => reply.writer().integer(0),
                SetAnswer::Ok | SetAnswer::Old => reply.writer().null(),
            });
            return Outcome::Done;
        }
        let expiry_ms = match lifetime {
            Lifetime::Keep => old.map_or(0, |entry| entry.expiry_ms),
            Lifetime::Until(expiry_ms) => expiry_ms,
        };
        if keyspace.is_staged(&address, set.value.len()) {
            return self.set_large(keyspace, caller, set, expiry_ms);
        }
        let put = match caller.own(set.value) {
            Some(own) => match keyspace.put_kept(&address, &own.bytes, expiry_ms) {
                Ok(Effect::Done(Some(lsn))) => Ok(Wait { shard: address.shard, lsn }),
                Ok(other) => unreachable!("a value that goes into the log is put: {other:?}"),
                Err(error) => Err(error),
            },
            None => keyspace.put(&address, set.value, expiry_ms),
        };
        match put {
            Ok(wait) => {
                self.note_stored(caller, set.value);
                caller.reply(Some(wait), |reply| match set.answer {
                    SetAnswer::Flag => reply.writer().integer(1),
                    SetAnswer::Ok | SetAnswer::Old => reply.writer().ok(),
                });
                Outcome::Done
            }
            Err(WriteError::Busy) => Outcome::Blocked,
            Err(error) => caller.error(write_error(error).as_bytes()),
        }
    }

    /// Notes a value's copies: into the parser's buffer, if it did not arrive in one piece; into
    /// the log's frame; and into the memory that reads are answered from. One that is written
    /// beside the log goes into memory of its own and from there into blocks instead. What was
    /// received into memory of its own stays there: of that, copies are the frame or the blocks,
    /// and the bytes that had come before the memory was lent.
    fn note_stored(&self, caller: &Caller<'_>, value: &[u8]) {
        let mut amounts = Amounts::default();
        match caller.own(value) {
            Some(own) => amounts.note_copied(value.len(), (value.len() + own.copied) as u64),
            None => amounts.note(value.len(), 2 + caller.connection.copies),
        }
        self.ledger.add(Path::Set, &amounts);
    }

    /// SET of a value that is written beside the log first; other writers of the key wait
    /// meanwhile.
    fn set_large(
        &mut self,
        keyspace: &mut Keyspace,
        caller: &mut Caller<'_>,
        set: &Set<'_>,
        expiry_ms: u64,
    ) -> Outcome {
        let answers = match set.answer {
            SetAnswer::Flag => PutAnswer::One,
            SetAnswer::Ok | SetAnswer::Old => PutAnswer::Ok,
        };
        self.note_stored(caller, set.value);
        let value = caller.keep(set.value);
        let key = OwnedKey::new(&keyspace.address(set.key));
        let change = Change::Put { value, expiry_ms, answers };
        let task = self.tasks.change(keyspace, caller.place(), key, change, Get::Missing);
        Outcome::Behind(task)
    }

    /// Deals with the first keys of a command over many at once, if none has to wait; a task does
    /// the rest.
    fn many(
        &mut self,
        keyspace: &mut Keyspace,
        caller: &mut Caller<'_>,
        job: Job,
        words: Tail<'_>,
    ) -> Outcome {
        let mut tally = Tally::new(job, caller.connection.protocol);
        let (mut rest, mut first, mut base) = (words, None, 0);
        while base < KEYS_PER_STEP_MAX {
            let before = rest;
            let Some(item) = job.take(&mut rest) else {
                caller.connection.replies.push_reply(tally.into_reply());
                return Outcome::Done;
            };
            match tally.attempt(keyspace, self.tasks.locked(), base, item) {
                Step::Answered => base += 1,
                Step::Failed(text) => return caller.error(text.as_bytes()),
                step => {
                    (first, rest) = (Some(step), before);
                    break;
                }
            }
        }
        let task = self.tasks.many(keyspace, caller.place(), tally, (rest, base), first);
        task.map_or(Outcome::Done, Outcome::Behind)
    }

    /// Commands that change a key by its value.
    fn change_by(
        &mut self,
        keyspace: &mut Keyspace,
        caller: &mut Caller<'_>,
        command: Command<'_>,
    ) -> Outcome {
        let (key, change) = match command {
            Command::Increment { key, by } => (key, Change::Increment { by }),
            Command::Append { key, value } => (key, Change::Append { value: caller.keep(value) }),
            Command::SetRange { key, offset, value } => {
                let offset = usize::try_from(offset).unwrap_or(usize::MAX);
                (key, Change::Overwrite { offset, value: caller.keep(value) })
            }
            Command::GetDel { key } => (key, Change::Delete),
            Command::GetEx(GetEx { key, expiry: Ok(SetExpiry::Keep) }) => {
                return get(&mut self.tasks, keyspace, caller, key, None);
            }
            Command::GetEx(GetEx { key, expiry }) => {
                let now_ms = keyspace.now().clock_ms;
                let until = expiry.and_then(|expiry| match lifetime(expiry, now_ms) {
                    Some(Lifetime::Until(expiry_ms)) => Ok(expiry_ms),
                    Some(Lifetime::Keep) | None => Err(CommandError::ExpireTime { name: "getex" }),
                });
                (key, Change::Expire { until: until.map_err(|error| error.message()) })
            }
            other => unreachable!("{other:?} does not change a key by its value"),
        };
        self.change(keyspace, caller, key, change)
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
        let at_ms = match expire.base {
            ExpireBase::Epoch => Some(expire.ms),
            ExpireBase::Now => {
                i64::try_from(now_ms).ok().and_then(|now_ms| now_ms.checked_add(expire.ms))
            }
        };
        let Some(at_ms) = at_ms else {
            return caller.error(&CommandError::ExpireTime { name: expire.name }.message());
        };
        let entry = match keyspace.lookup(&address) {
            Ok(Lookup::Found(entry)) => Some(entry),
            Ok(Lookup::Missing) => None,
            Ok(Lookup::Pending(read)) => return Outcome::Resolving(address.shard, read),
            Err(error) => return caller.error(read_error(error).as_bytes()),
        };
        let at_ms = u64::try_from(at_ms).unwrap_or(0);
        let applies = entry.is_some_and(|entry| expire_applies(expire.condition, &entry, at_ms));
        if !applies {
            return caller.integer(keyspace.observed(&address), 0);
        }
        let effect = if at_ms <= now_ms {
            keyspace.remove(&address)
        } else {
            keyspace.touch(&address, at_ms)
        };
        answer_one(keyspace, caller, &address, effect)
    }

    fn persist(&mut self, keyspace: &mut Keyspace, caller: &mut Caller<'_>, key: &[u8]) -> Outcome {
        let address = keyspace.address(key);
        if self.tasks.is_locked(address.key.id) {
            return Outcome::Blocked;
        }
        match keyspace.lookup(&address) {
            Ok(Lookup::Found(entry)) if entry.expiry_ms != 0 => {
                let effect = keyspace.touch(&address, 0);
                answer_one(keyspace, caller, &address, effect)
            }
            Ok(Lookup::Pending(read)) => Outcome::Resolving(address.shard, read),
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
        let count = scan.count.unwrap_or(SCAN_COUNT_DEFAULT).clamp(1, SCAN_COUNT_MAX);
        let listing = Listing::Scan {
            cursor: scan.cursor,
            count: usize::try_from(count).unwrap_or(usize::MAX),
            pattern: scan.pattern.map(Bytes::copy_from_slice),
            hides_all: scan.kind.is_some_and(|kind| !kind.eq_ignore_ascii_case(b"string")),
        };
        Outcome::Behind(self.tasks.list(keyspace, caller.place(), listing))
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

/// The lifetime that a SET asks for, or `None` if it cannot be.
pub(crate) fn lifetime(expiry: SetExpiry, now_ms: u64) -> Option<Lifetime> {
    let expiry_ms = match expiry {
        SetExpiry::Keep => return Some(Lifetime::Keep),
        SetExpiry::None => Some(0),
        SetExpiry::In { ms } => add_ms(now_ms, ms),
        SetExpiry::At { ms } => u64::try_from(ms).ok(),
    };
    expiry_ms.map(Lifetime::Until)
}

fn add_ms(now_ms: u64, ms: i64) -> Option<u64> {
    let at_ms = i64::try_from(now_ms).ok()?.checked_add(ms)?;
    u64::try_from(at_ms).ok()
}

/// Whether EXPIRE may change an expiry.
pub(crate) fn expire_applies(condition: ExpireCondition, entry: &Entry, at_ms: u64) -> bool {
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

/// Answers 1 if the key was there, 0 if not.
fn answer_one(
    keyspace: &Keyspace,
    caller: &mut Caller<'_>,
    address: &Address<'_>,
    result: Result<Effect, WriteError>,
) -> Outcome {
    match result {
        Ok(Effect::Done(lsn)) => {
            caller.integer(keyspace.observed(address), i64::from(lsn.is_some()))
        }
        Ok(Effect::Pending(read)) => Outcome::Resolving(address.shard, read),
        Err(WriteError::Busy) => Outcome::Blocked,
        Err(error) => caller.error(write_error(error).as_bytes()),
    }
}

/// GET and GETRANGE.
fn get(
    tasks: &mut Tasks,
    keyspace: &mut Keyspace,
    caller: &mut Caller<'_>,
    key: &[u8],
    range: Option<ByteRange>,
) -> Outcome {
    if let Some(value) = keyspace.get_hot(key) {
        caller.reply(None, |reply| write_value(reply, Some(value.value), range));
        return Outcome::Done;
    }
    let address = keyspace.address(key);
    let (shard, wait) = (address.shard, keyspace.observed(&address));
    match keyspace.store_mut(shard).get(&address.key) {
        Ok(Get::Missing) => caller.reply(wait, |reply| write_value(reply, None, range)),
        Ok(Get::Found(value)) => {
            caller.reply(wait, |reply| write_value(reply, Some(value.value), range));
        }
        Ok(Get::Pending(read)) => tasks.get(caller.place(), wait, (shard, read), range),
        Err(error) => return caller.error(read_error(error).as_bytes()),
    }
    Outcome::Done
}

fn on_entry(
    keyspace: &mut Keyspace,
    caller: &mut Caller<'_>,
    key: &[u8],
    write: impl FnOnce(Option<Entry>, &mut Reply),
) -> Outcome {
    let address = keyspace.address(key);
    let entry = match keyspace.lookup(&address) {
        Ok(Lookup::Found(entry)) => Some(entry),
        Ok(Lookup::Missing) => None,
        Ok(Lookup::Pending(read)) => return Outcome::Resolving(address.shard, read),
        Err(error) => return caller.error(read_error(error).as_bytes()),
    };
    caller.reply(keyspace.observed(&address), |reply| write(entry, reply));
    Outcome::Done
}

/// TTL, PTTL, EXPIRETIME and PEXPIRETIME.
fn lifetime_left(
    keyspace: &mut Keyspace,
    caller: &mut Caller<'_>,
    command: Command<'_>,
) -> Outcome {
    let now_ms = keyspace.now().clock_ms;
    let (key, from_ms, unit_ms) = match command {
        Command::Ttl { key } => (key, now_ms, 1_000),
        Command::PTtl { key } => (key, now_ms, 1),
        Command::ExpireTime { key } => (key, 0, 1_000),
        Command::PExpireTime { key } => (key, 0, 1),
        other => unreachable!("{other:?} does not ask for a lifetime"),
    };
    on_entry(keyspace, caller, key, |entry, reply| {
        let answer = match entry {
            None => -2,
            Some(Entry { expiry_ms: 0, .. }) => -1,
            Some(Entry { expiry_ms, .. }) => {
                // Rounded to the nearest second.
                let ms = expiry_ms.saturating_sub(from_ms).saturating_add(unit_ms / 2);
                i64::try_from(ms / unit_ms).unwrap_or(i64::MAX)
            }
        };
        reply.writer().integer(answer);
    })
}
