//! Commands over many keys: DEL, EXISTS, MGET and MSET.
//!
//! Keys are dealt with one by one, as many per step as [`KEYS_PER_STEP_MAX`]. A key that the disk
//! must be read for does not hold up those behind it, so their reads overlap, up to
//! [`KEYS_IN_FLIGHT_MAX`]. A key that is locked, or that finds the log busy, holds up those that
//! have not been started.

use std::collections::{BTreeSet, VecDeque};

use bytes::{Bytes, BytesMut};
use storage::{Effect, Get, Lookup, ReadError, ReadId, Value, WriteError};
use wal::record::Key;

use super::super::execute::{read_error, write_error};
use super::super::reply_queue::Reply;
use crate::keyspace::{Keyspace, ShardIndex};
use crate::resp::command::Tail;
use crate::resp::reply::Protocol;

/// Keys of one command that are dealt with before others have their turn.
pub(in crate::resp::door) const KEYS_PER_STEP_MAX: usize = 1024;
/// Keys of one command that wait for the disk at once.
pub(super) const KEYS_IN_FLIGHT_MAX: usize = 128;

/// What is done with each key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::resp::door) enum Job {
    /// EXISTS.
    Count,
    /// DEL and UNLINK.
    Delete,
    /// MGET.
    Read,
    /// MSET.
    Store,
}

impl Job {
    /// Takes a key, and the value that comes with it, from the arguments.
    pub(in crate::resp::door) fn take<'a>(
        self,
        words: &mut Tail<'a>,
    ) -> Option<(&'a [u8], &'a [u8])> {
        let key = words.next()?;
        let value = if self == Self::Store { words.next()? } else { &[] };
        Some((key, value))
    }

    /// Whether a key that has been read stays as it was then, whatever comes behind.
    fn is_settled_by_reading(self) -> bool {
        self == Self::Read
    }

    /// Whether nobody misses it when its client is gone.
    pub(super) fn only_reads(self) -> bool {
        matches!(self, Self::Count | Self::Read)
    }
}

/// What became of a key.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::resp::door) enum Step {
    /// It has been dealt with.
    Answered,
    /// The disk must be read.
    Pending(ShardIndex, ReadId),
    /// It is locked, or the log is busy.
    Later,
    /// The command fails.
    Failed(String),
}

/// What a command over many keys has found so far.
#[derive(Debug)]
pub(in crate::resp::door) struct Tally {
    job: Job,
    count: i64,
    values: Vec<Option<Bytes>>,
    reply: Reply,
}

impl Tally {
    pub(in crate::resp::door) fn new(job: Job, protocol: Protocol) -> Self {
        Self { job, count: 0, values: Vec::new(), reply: Reply::new(protocol) }
    }

    /// Tries to deal with the key that is the `index`th of the command.
    pub(in crate::resp::door) fn attempt(
        &mut self,
        keyspace: &mut Keyspace,
        locked: &BTreeSet<Key>,
        index: usize,
        (key, value): (&[u8], &[u8]),
    ) -> Step {
        let address = keyspace.address(key);
        let shard = address.shard;
        match self.job {
            Job::Read => {
                if self.values.len() <= index {
                    self.values.resize(index + 1, None);
                }
                self.reply.wait(keyspace.observed(&address));
                match keyspace.store_mut(shard).get(&address.key) {
                    Ok(Get::Found(value)) => self.values[index] = Some(value.value),
                    Ok(Get::Missing) => {}
                    Ok(Get::Pending(read)) => return Step::Pending(shard, read),
                    Err(error) => return Step::Failed(read_error(error)),
                }
            }
            Job::Count => match keyspace.lookup(&address) {
                Ok(Lookup::Pending(read)) => return Step::Pending(shard, read),
                Ok(found) => {
                    self.count += i64::from(matches!(found, Lookup::Found(_)));
                    self.reply.wait(keyspace.observed(&address));
                }
                Err(error) => return Step::Failed(read_error(error)),
            },
            Job::Delete | Job::Store if locked.contains(&address.key.id) => return Step::Later,
            Job::Delete => return self.delete(keyspace, key),
            Job::Store => match keyspace.put(&address, value, 0) {
                Ok(wait) => self.reply.wait(Some(wait)),
                Err(WriteError::Busy) => return Step::Later,
                Err(error) => return Step::Failed(write_error(error)),
            },
        }
        Step::Answered
    }

    fn delete(&mut self, keyspace: &mut Keyspace, key: &[u8]) -> Step {
        let address = keyspace.address(key);
        match keyspace.remove(&address) {
            Ok(Effect::Done(Some(_))) => self.count += 1,
            // Of a key that is not there, a suspect shard may not say so.
            Ok(Effect::Done(None)) => match keyspace.lookup(&address) {
                Ok(Lookup::Pending(read)) => return Step::Pending(address.shard, read),
                Ok(_) => {}
                Err(error) => return Step::Failed(read_error(error)),
            },
            Ok(Effect::Pending(read)) => return Step::Pending(address.shard, read),
            Err(WriteError::Busy) => return Step::Later,
            Err(error) => return Step::Failed(write_error(error)),
        }
        self.reply.wait(keyspace.observed(&address));
        Step::Answered
    }

    /// Ends the reply.
    pub(in crate::resp::door) fn into_reply(self) -> Reply {
        let Self { job, count, values, mut reply } = self;
        match job {
            Job::Count | Job::Delete => reply.writer().integer(count),
            Job::Store => reply.writer().ok(),
            Job::Read => {
                reply.writer().array_header(values.len());
                for value in values {
                    match value {
                        Some(value) => reply.value(value),
                        None => reply.writer().null(),
                    }
                }
            }
        }
        reply
    }
}

/// Arguments of a command, to keep.
#[derive(Debug)]
struct Words {
    bytes: Bytes,
    /// Where each word ends.
    ends: Vec<usize>,
}

impl Words {
    fn copy(words: Tail<'_>) -> Self {
        let (mut bytes, mut ends) = (BytesMut::new(), Vec::with_capacity(words.len()));
        for word in words {
            bytes.extend_from_slice(word);
            ends.push(bytes.len());
        }
        Self { bytes: bytes.freeze(), ends }
    }

    fn get(&self, index: usize) -> &[u8] {
        let start = index.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.bytes[start..self.ends[index]]
    }
}

/// The rest of a command over many keys.
#[derive(Debug)]
pub(super) struct Many {
    tally: Tally,
    words: Words,
    /// Number of the first of `words` among the command's keys.
    base: usize,
    /// Keys of `words`.
    len: usize,
    /// Of these, those that have been tried.
    started: usize,
    /// Of these, those that have been dealt with.
    answered: usize,
    /// Of these, those to be tried again when a lock or the log is free.
    again: VecDeque<usize>,
}

/// Keys that wait for reads.
pub(super) type Waiting = Vec<(ShardIndex, ReadId, usize)>;

impl Many {
    /// Takes the keys of `words`; those before it, `base` of them, are in the tally. `first` is
    /// what became of the first key, if that has been tried.
    pub(super) fn new(tally: Tally, words: Tail<'_>, base: usize) -> Self {
        let len = if tally.job == Job::Store { words.len() / 2 } else { words.len() };
        let words = Words::copy(words);
        Self { tally, words, base, len, started: 0, answered: 0, again: VecDeque::new() }
    }

    pub(super) fn job(&self) -> Job {
        self.tally.job
    }

    pub(super) fn is_done(&self) -> bool {
        self.answered == self.len
    }

    pub(super) fn is_stalled(&self) -> bool {
        !self.again.is_empty()
    }

    pub(super) fn can_start(&self, reads: usize) -> bool {
        self.started < self.len && reads < KEYS_IN_FLIGHT_MAX && !self.is_stalled()
    }

    /// Whether later commands of the same connection need not wait.
    pub(super) fn is_settled(&self) -> bool {
        self.job().is_settled_by_reading() && self.started == self.len && !self.is_stalled()
    }

    pub(super) fn into_reply(self) -> Reply {
        self.tally.into_reply()
    }

    /// Tries further keys, so that with the `reads` under way not too many are.
    pub(super) fn start(
        &mut self,
        keyspace: &mut Keyspace,
        locked: &BTreeSet<Key>,
        reads: usize,
    ) -> Result<Waiting, String> {
        let mut waiting = Vec::new();
        for _ in 0..KEYS_PER_STEP_MAX {
            if !self.can_start(reads + waiting.len()) {
                break;
            }
            let index = self.started;
            self.started += 1;
            self.attempt(keyspace, locked, index, &mut waiting)?;
        }
        Ok(waiting)
    }

    /// Tries a key again that has been resolved.
    pub(super) fn go_on(
        &mut self,
        keyspace: &mut Keyspace,
        locked: &BTreeSet<Key>,
        index: usize,
    ) -> Result<Waiting, String> {
        let mut waiting = Vec::new();
        self.attempt(keyspace, locked, index, &mut waiting)?;
        Ok(waiting)
    }

    /// Tries the keys again that found a lock or the log busy.
    pub(super) fn retry(
        &mut self,
        keyspace: &mut Keyspace,
        locked: &BTreeSet<Key>,
    ) -> Result<Waiting, String> {
        let mut waiting = Vec::new();
        for index in std::mem::take(&mut self.again) {
            self.attempt(keyspace, locked, index, &mut waiting)?;
        }
        Ok(waiting)
    }

    /// Takes the end of a value's read.
    pub(super) fn take_value(
        &mut self,
        index: usize,
        result: Result<Option<(Bytes, Value)>, ReadError>,
    ) -> Result<Waiting, String> {
        let found = result.map_err(read_error)?;
        self.tally.values[self.base + index] = found.map(|(_, value)| value.value);
        self.answered += 1;
        Ok(Vec::new())
    }

    fn attempt(
        &mut self,
        keyspace: &mut Keyspace,
        locked: &BTreeSet<Key>,
        index: usize,
        waiting: &mut Waiting,
    ) -> Result<(), String> {
        let words = &self.words;
        let item = match self.tally.job {
            Job::Store => (words.get(2 * index), words.get(2 * index + 1)),
            Job::Count | Job::Delete | Job::Read => (words.get(index), &[][..]),
        };
        match self.tally.attempt(keyspace, locked, self.base + index, item) {
            Step::Answered => self.answered += 1,
            Step::Pending(shard, read) => waiting.push((shard, read, index)),
            Step::Later => self.again.push_back(index),
            Step::Failed(text) => return Err(text),
        }
        Ok(())
    }

    /// Notes what became of the first key, which has been tried before.
    pub(super) fn begin(&mut self, step: Step) -> Waiting {
        self.started = 1;
        match step {
            Step::Pending(shard, read) => vec![(shard, read, 0)],
            Step::Later => {
                self.again.push_back(0);
                Vec::new()
            }
            Step::Answered | Step::Failed(_) => unreachable!("such a key is left to no task"),
        }
    }
}
