//! The reading commands, and the jobs that find out from the disk what memory does not know.
//!
//! A job takes the slots that may be its key's as they were when it was asked, and reads them
//! newest first until one is of its key. Records never change where they stand, and no segment goes
//! while a job that is older than its end is under way, so a job's answer is right for the moment
//! it was asked.

use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

use bytes::Bytes;
use wal::checksum;
use wal::record::{Key, Namespace, RecordKind};

use super::disk_read::{Head, Target, Waiter};
use super::write::REWRITTEN_LEN_MAX;
use super::{Entry, Event, Get, GetRecord, KeyRef, Lookup, ReadId, Store, Value};
use crate::cache::CachedRecord;
use crate::catalog::Kin;
use crate::error::ReadError;
use crate::index::{Candidates, Place, Slot, SlotKind};
use crate::knowledge::{Found, Known};
use crate::segments::Spot;

/// What a job is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// To know the newest record, without its value.
    Lookup,
    /// As [`Purpose::Lookup`], with the value if it is to be rewritten.
    Rewrite,
    /// The value, of this user key if one is named.
    Value(Option<Bytes>),
}

#[derive(Debug)]
struct Job {
    key: Key,
    purpose: Purpose,
    now_ms: u64,
    /// Whether the key has changed since.
    stale: bool,
    /// What is still to be looked at, newest first.
    todo: VecDeque<(Slot, Spot)>,
    current: Option<Slot>,
    /// The touch whose value is being read.
    touch: Option<Found>,
}

/// Jobs under way.
#[derive(Debug, Default)]
pub(super) struct Jobs {
    next: u64,
    jobs: BTreeMap<ReadId, Job>,
    by_key: BTreeMap<Key, Vec<ReadId>>,
}

impl Jobs {
    pub(super) fn take_id(&mut self) -> ReadId {
        self.next += 1;
        ReadId(self.next)
    }

    /// The oldest job under way.
    pub(super) fn oldest(&self) -> Option<ReadId> {
        self.jobs.first_key_value().map(|(id, _)| *id)
    }

    /// The next job will have this id or a later one.
    pub(super) fn next_id(&self) -> ReadId {
        ReadId(self.next + 1)
    }

    /// Notes that a key has changed: what jobs find out about it is no longer so.
    pub(super) fn note_change(&mut self, key: &Key) {
        if self.by_key.is_empty() {
            return;
        }
        for id in self.by_key.get(key).into_iter().flatten() {
            if let Some(job) = self.jobs.get_mut(id) {
                job.stale = true;
            }
        }
    }

    pub(super) fn note_clear(&mut self) {
        self.jobs.values_mut().for_each(|job| job.stale = true);
    }
}

/// What memory knows of a key.
#[derive(Clone, Copy, Debug)]
pub(super) enum Memory {
    Known(Known),
    /// A record that may be the key's is damaged.
    Damaged,
    Unknown,
}

impl Store {
    /// Looks a key up. Pair it with [`Store::observed`].
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn lookup(&mut self, key: &KeyRef<'_>) -> Result<Lookup, ReadError> {
        self.lookup_record(&key.id, Some(key.user_key))
    }

    /// Looks a key up, of any user key if none is named.
    pub(super) fn lookup_record(
        &mut self,
        id: &Key,
        user_key: Option<&[u8]>,
    ) -> Result<Lookup, ReadError> {
        self.compaction.note_call();
        match self.memory(id) {
            Memory::Damaged => Err(ReadError::Damaged),
            Memory::Known(Known::Failed(error)) => {
                self.resolved.remove(id);
                Err(ReadError::Disk(error))
            }
            Memory::Known(known) => match self.present(known, user_key) {
                None if self.suspect => Err(ReadError::Suspect),
                None => Ok(Lookup::Missing),
                Some(found) => Ok(Lookup::Found(Entry {
                    value_len: found.base.value_len as usize,
                    expiry_ms: found.expiry_ms,
                    version: found.version,
                })),
            },
            Memory::Unknown => Ok(Lookup::Pending(self.start_job(*id, Purpose::Lookup))),
        }
    }

    /// Reads a key's value as it is now, from memory or from disk. Pair it with
    /// [`Store::observed`], asked at the same time.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn get(&mut self, key: &KeyRef<'_>) -> Result<Get, ReadError> {
        if let Some(value) = self.get_hot(&key.id, key.user_key) {
            return Ok(Get::Found(value));
        }
        Ok(match self.get_record(&key.id, Some(key.user_key))? {
            GetRecord::Missing => Get::Missing,
            GetRecord::Found(user_key, _) if user_key != key.user_key => Get::Missing,
            GetRecord::Found(_, value) => Get::Found(value),
            GetRecord::Pending(id) => Get::Pending(id),
        })
    }

    /// Reads a key's value if it was read of late and has not changed since. It is acknowledged;
    /// nothing has to be observed.
    pub fn get_hot(&mut self, id: &Key, user_key: &[u8]) -> Option<Value> {
        let value = self.hot.get(id, user_key, self.expiry_clock_ms())?;
        self.compaction.note_call();
        self.cache.hits += 1;
        Some(value)
    }

    /// Reads a key's value, of any user key if none is named.
    pub(super) fn get_record(
        &mut self,
        id: &Key,
        user_key: Option<&[u8]>,
    ) -> Result<GetRecord, ReadError> {
        self.compaction.note_call();
        let known = match self.memory(id) {
            Memory::Damaged => return Err(ReadError::Damaged),
            Memory::Unknown | Memory::Known(Known::Failed(_)) => None,
            Memory::Known(known) => match self.present(known, user_key) {
                None if self.suspect => return Err(ReadError::Suspect),
                None => return Ok(GetRecord::Missing),
                Some(found) => Some(found),
            },
        };
        if let Some(found) = known
            && let Some(record) = self.record_in_memory(id, &found)
        {
            let Found { expiry_ms, version, .. } = found;
            let value = Value { value: record.value, expiry_ms, version };
            if self.recents.get(id).is_none() {
                self.hot.insert(*id, &record.user_key, &value, record.footprint);
            }
            return Ok(GetRecord::Found(record.user_key, value));
        }
        let purpose = Purpose::Value(user_key.map(Bytes::copy_from_slice));
        Ok(GetRecord::Pending(match known {
            Some(found) => self.start_value_job(*id, purpose, found),
            None => self.start_job(*id, purpose),
        }))
    }

    /// The live record, of this very user key if one is named.
    pub(super) fn present(&self, known: Known, user_key: Option<&[u8]>) -> Option<Found> {
        let Known::Present(found) = known else { return None };
        let same = user_key.is_none_or(|key| found.user_key_crc == checksum::plain(key));
        (same && !found.is_expired(self.expiry_clock_ms())).then_some(found)
    }

    /// What memory knows of a key, expired or not.
    pub(super) fn memory(&self, key: &Key) -> Memory {
        match self.known_in_memory(key) {
            Some(memory) => memory,
            None => self.memory_of_slots(key, self.catalog.candidates(key)),
        }
    }

    /// The same, given the slots of the key's prefix.
    pub(super) fn memory_of(&self, key: &Key, slots: Candidates) -> Memory {
        self.known_in_memory(key).unwrap_or_else(|| self.memory_of_slots(key, slots))
    }

    /// What records that are not acknowledged yet, and answers found by reading, tell of a key.
    fn known_in_memory(&self, key: &Key) -> Option<Memory> {
        if let Some(recent) = self.recents.get(key) {
            return Some(Memory::Known(recent.known));
        }
        Some(match self.resolved.get(key)? {
            (Known::Damaged, _) => Memory::Damaged,
            (known, _) => Memory::Known(known),
        })
    }

    fn memory_of_slots(&self, key: &Key, slots: Candidates) -> Memory {
        for slot in slots {
            if let Some(record) = self.cached_at(&slot) {
                if record.key != *key || slot.foreign {
                    continue;
                }
                if slot.kind == SlotKind::Put && !slot.damaged {
                    return Memory::Known(Known::Present(found_in(record, slot.place)));
                }
            }
            match self.kin_in_memory(key, &slot) {
                Kin::Other | Kin::Older => {}
                Kin::Same | Kin::Unknown if slot.damaged => return Memory::Damaged,
                Kin::Same | Kin::Unknown => return Memory::Unknown,
            }
        }
        Memory::Known(Known::Absent)
    }

    /// The cached record that a slot stands for.
    fn cached_at(&self, slot: &Slot) -> Option<&CachedRecord> {
        self.cache.peek(&self.catalog.segments.spot_of(slot.place)?)
    }

    /// Whether a slot under the key's prefix is the key's, as far as memory tells.
    pub(super) fn kin_in_memory(&self, key: &Key, slot: &Slot) -> Kin {
        if slot.foreign {
            return Kin::Other;
        }
        let Some(spot) = self.catalog.segments.spot_of(slot.place) else { return Kin::Unknown };
        let owner = self.recents.key_at(&spot).or_else(|| {
            let cached = self.cache.peek(&spot);
            cached.map(|record| &record.key)
        });
        match owner {
            Some(owner) if owner == key => Kin::Same,
            Some(_) => Kin::Other,
            None => match self.overwriters.is_of(&spot, key) {
                Some(true) => Kin::Same,
                Some(false) => Kin::Other,
                None => Kin::Unknown,
            },
        }
    }

    /// The record of a key's value, if it is in memory.
    pub(super) fn record_in_memory(&mut self, key: &Key, found: &Found) -> Option<CachedRecord> {
        let is_it = |record: &&CachedRecord| record.location == found.base;
        let recent = self.recents.get(key).and_then(|recent| recent.record.as_ref());
        let resolved = self.resolved.get(key).and_then(|(_, record)| record);
        let known = recent.filter(is_it).or_else(|| resolved.filter(is_it)).cloned();
        known.or_else(|| self.cache.get(&Spot::of(&found.base)))
    }

    /// Finds out about a key that memory does not know.
    pub(super) fn start_job(&mut self, key: Key, purpose: Purpose) -> ReadId {
        let mut todo = VecDeque::new();
        for slot in self.catalog.candidates(&key) {
            if self.kin_in_memory(&key, &slot) != Kin::Other
                && let Some(spot) = self.catalog.segments.spot_of(slot.place)
            {
                todo.push_back((slot, spot));
            }
        }
        let id = self.add_job(key, purpose, todo);
        self.step_job(id);
        id
    }

    pub(super) fn start_value_job(&mut self, key: Key, purpose: Purpose, found: Found) -> ReadId {
        let id = self.add_job(key, purpose, VecDeque::new());
        self.read_base(id, key, found);
        id
    }

    fn add_job(&mut self, key: Key, purpose: Purpose, todo: VecDeque<(Slot, Spot)>) -> ReadId {
        let id = self.jobs.take_id();
        let now_ms = self.expiry_clock_ms();
        let job = Job { key, purpose, now_ms, stale: false, todo, current: None, touch: None };
        self.jobs.jobs.insert(id, job);
        self.jobs.by_key.entry(key).or_default().push(id);
        id
    }

    fn step_job(&mut self, id: ReadId) {
        loop {
            let Some(job) = self.jobs.jobs.get_mut(&id) else { return };
            let Some((slot, spot)) = job.todo.pop_front() else {
                return self.finish_job(id, Ok((Known::Absent, None)));
            };
            if slot.damaged {
                return self.finish_job(id, Err(ReadError::Damaged));
            }
            if let Some(record) = self.cache.peek(&spot) {
                if record.key != job.key {
                    continue;
                }
                if slot.kind == SlotKind::Put {
                    let found = found_in(record, slot.place);
                    let record = Some(record.clone());
                    return self.finish_job(id, Ok((Known::Present(found), record)));
                }
            }
            job.current = Some(slot);
            let small = slot.size_class.bytes() <= 2 * REWRITTEN_LEN_MAX as u64;
            let whole = slot.kind == SlotKind::Put
                && match job.purpose {
                    Purpose::Lookup => false,
                    Purpose::Rewrite => small,
                    Purpose::Value(_) => true,
                };
            let (key, target) = (job.key, Target::candidate(spot, &slot, whole));
            return self.read(key, slot.place, target, Waiter::Job(id));
        }
    }

    fn read_base(&mut self, id: ReadId, key: Key, found: Found) {
        if let Some(record) = self.cache.get(&Spot::of(&found.base)) {
            return self.finish_job(id, Ok((Known::Present(found), Some(record))));
        }
        if let Some(job) = self.jobs.jobs.get_mut(&id) {
            job.touch = Some(found);
        }
        let target = Target::Exact { location: found.base, whole: true };
        self.read(key, found.place, target, Waiter::Job(id));
    }

    pub(super) fn handle_job_read(&mut self, id: ReadId, result: Result<Rc<Head>, ReadError>) {
        let Some(job) = self.jobs.jobs.get_mut(&id) else { return };
        let head = match result {
            Ok(head) => head,
            Err(error) => return self.finish_job(id, Err(error)),
        };
        let same = head.key == job.key && head.namespace == Namespace::PLAIN;
        if let Some(found) = job.touch {
            let record = head.record().filter(|_| same && head.location == found.base);
            let outcome = record.map(|record| (Known::Present(found), Some(record)));
            return self.finish_job(id, outcome.ok_or(ReadError::Damaged));
        }
        if !same {
            return self.step_job(id);
        }
        let (key, slot) = (job.key, job.current.expect("a read is of a slot"));
        let outcome = match (slot.kind, head.kind, head.touch) {
            (SlotKind::Tombstone, _, _) => Ok((Known::Absent, None)),
            (SlotKind::Put, RecordKind::Put, _) => {
                Ok((Known::Present(head.found(slot.place)), head.record()))
            }
            (SlotKind::Touch, RecordKind::Touch, Some(body)) => {
                let found = head.touched(slot.place, &body);
                let wanted = match job.purpose {
                    Purpose::Lookup => false,
                    Purpose::Rewrite => found.base.value_len as usize <= REWRITTEN_LEN_MAX,
                    Purpose::Value(_) => !found.is_expired(job.now_ms),
                };
                if wanted {
                    return self.read_base(id, key, found);
                }
                Ok((Known::Present(found), None))
            }
            _ => Err(ReadError::Damaged),
        };
        self.finish_job(id, outcome);
    }

    fn finish_job(
        &mut self,
        id: ReadId,
        outcome: Result<(Known, Option<CachedRecord>), ReadError>,
    ) {
        let Some(job) = self.jobs.jobs.remove(&id) else { return };
        if let Some(ids) = self.jobs.by_key.get_mut(&job.key) {
            ids.retain(|other| *other != id);
            if ids.is_empty() {
                self.jobs.by_key.remove(&job.key);
            }
        }
        if !job.stale {
            match &outcome {
                Ok((known, record)) => {
                    let small = |record: &&CachedRecord| record.value.len() <= REWRITTEN_LEN_MAX;
                    let kept = record.as_ref().filter(|_| job.purpose == Purpose::Rewrite);
                    self.resolved.insert(job.key, *known, kept.filter(small).cloned());
                }
                Err(ReadError::Disk(error)) if !matches!(job.purpose, Purpose::Value(_)) => {
                    self.resolved.insert(job.key, Known::Failed(*error), None);
                }
                Err(ReadError::Damaged) => {
                    // Whoever asks again must get an answer, even if no slot is marked.
                    self.resolved.insert(job.key, Known::Damaged, None);
                }
                Err(_) => self.resolved.remove(&job.key),
            }
        }
        let event = match job.purpose {
            Purpose::Value(user_key) => {
                let result = self.answer(user_key.as_ref(), job.now_ms, outcome);
                Event::Read { id, result }
            }
            Purpose::Lookup | Purpose::Rewrite => Event::Resolved { id },
        };
        self.events.push_back(event);
    }

    fn answer(
        &self,
        user_key: Option<&Bytes>,
        now_ms: u64,
        outcome: Result<(Known, Option<CachedRecord>), ReadError>,
    ) -> Result<Option<(Bytes, Value)>, ReadError> {
        match outcome? {
            (Known::Present(found), Some(record))
                if user_key.is_none_or(|key| record.user_key == *key)
                    && !found.is_expired(now_ms) =>
            {
                let Found { expiry_ms, version, .. } = found;
                Ok(Some((record.user_key, Value { value: record.value, expiry_ms, version })))
            }
            _ if self.suspect => Err(ReadError::Suspect),
            _ => Ok(None),
        }
    }
}

/// What a cached put says of its key.
pub(super) fn found_in(record: &CachedRecord, place: Place) -> Found {
    Found {
        place,
        kind: SlotKind::Put,
        version: record.version,
        expiry_ms: record.expiry_ms,
        user_key_crc: record.user_key_crc,
        base: record.location,
        base_lsn: record.lsn,
    }
}
