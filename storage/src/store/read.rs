//! The reading commands and the reads from disk behind them.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use wal::checksum::{self, Place};
use wal::disk::{BLOCK_SIZE, DiskCompletion, DiskOperation, IoBuffer, RequestId};
use wal::record::{Key, Location, RecordHeader, RecordKind, Version};
use wal::segment;

use super::{Entry, Event, Get, KeyRef, ReadId, Source, Store, UserKey, Value};
use crate::cache::CachedRecord;
use crate::error::ReadError;
use crate::index::Slot;

/// Reads on the disk at once; further ones wait here.
const READS_IN_FLIGHT_MAX: usize = 256;
/// Values up to this are copied out of their read buffer, so that a cached value keeps no whole
/// block in use.
const COPIED_VALUE_LEN_MAX: usize = 2047;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Record,
    UserKey,
}

#[derive(Debug)]
struct Waiter {
    id: ReadId,
    /// The user key must be this one, if given.
    user_key: Option<Bytes>,
    expiry_ms: u64,
    version: Version,
}

#[derive(Debug)]
struct DiskRead {
    key: Key,
    location: Location,
    part: Part,
    /// A damaged record is read a second time before it is called so.
    attempt: u32,
    waiters: Vec<Waiter>,
}

/// Reads under way.
#[derive(Debug, Default)]
pub(super) struct Reads {
    next_id: u64,
    under_way: BTreeMap<RequestId, DiskRead>,
    /// Whole-record reads under way, by place: another reader joins instead of reading again.
    by_place: BTreeMap<(u64, u32), RequestId>,
    queued: VecDeque<DiskRead>,
    pub(super) started: u64,
    pub(super) damaged: u64,
}

impl Reads {
    pub(super) fn issue(&mut self) -> ReadId {
        self.next_id += 1;
        ReadId(self.next_id - 1)
    }
}

impl Store {
    /// Looks a key up in the index. Pair it with [`Store::observed`].
    ///
    /// # Errors
    /// [`ReadError::Suspect`] if the key is unknown and may have been lost.
    pub fn entry(&self, key: &KeyRef<'_>) -> Result<Option<Entry>, ReadError> {
        match self.live_slot(key) {
            None if self.suspect => Err(ReadError::Suspect),
            slot => Ok(slot.map(|slot| Entry {
                value_len: slot.location.value_len as usize,
                expiry_ms: slot.expiry_ms,
                version: slot.version,
            })),
        }
    }

    /// Reads a key's value as it is now, from memory or from disk. Pair it with
    /// [`Store::observed`], asked at the same time.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn get(&mut self, key: &KeyRef<'_>) -> Result<Get, ReadError> {
        let Some(slot) = self.live_slot(key) else {
            return if self.suspect { Err(ReadError::Suspect) } else { Ok(Get::Missing) };
        };
        if slot.damaged {
            return Err(ReadError::Damaged);
        }
        let Slot { location, version, expiry_ms, .. } = slot;
        if let Some(record) = self.in_memory(&slot) {
            let same = record.user_key == key.user_key;
            let value = Value { value: record.value, expiry_ms, version };
            return Ok(if same { Get::Found(value) } else { Get::Missing });
        }
        let user_key = Some(Bytes::copy_from_slice(key.user_key));
        Ok(Get::Pending(self.start_read(key.id, location, Part::Record, |id| Waiter {
            id,
            user_key,
            expiry_ms,
            version,
        })))
    }

    /// Tells the user key behind a key id.
    ///
    /// # Errors
    /// [`ReadError::Damaged`].
    pub fn user_key(&mut self, key: Key) -> Result<UserKey, ReadError> {
        let Some(slot) = self.index.get(&key).copied() else {
            return Ok(UserKey::Missing);
        };
        if slot.is_expired(self.now.clock_ms) {
            return Ok(UserKey::Missing);
        }
        if slot.damaged {
            return Err(ReadError::Damaged);
        }
        if let Some(record) = self.in_memory(&slot) {
            return Ok(UserKey::Found(record.user_key));
        }
        let Slot { location, version, expiry_ms, .. } = slot;
        let waiter = |id| Waiter { id, user_key: None, expiry_ms, version };
        Ok(UserKey::Pending(self.start_read(key, location, Part::UserKey, waiter)))
    }

    /// Walks the live keys from `from` on, in key order.
    pub fn keys_from(&self, from: Key) -> impl Iterator<Item = Key> {
        let now_ms = self.now.clock_ms;
        let live = self.index.from(from).filter(move |(_, slot)| !slot.is_expired(now_ms));
        live.map(|(key, _)| *key)
    }

    pub(super) fn live_slot(&self, key: &KeyRef<'_>) -> Option<Slot> {
        let slot = self.index.get(&key.id)?;
        // A damaged touch has lost the user key; its key id must still answer an error, not nil.
        let same = slot.damaged || slot.user_key_crc == checksum::plain(key.user_key);
        (same && !slot.is_expired(self.now.clock_ms)).then_some(*slot)
    }

    fn in_memory(&mut self, slot: &Slot) -> Option<CachedRecord> {
        let recent = self.unsettled.value(slot.value_lsn).cloned();
        recent.or_else(|| self.cache.get(&slot.location))
    }

    fn start_read(
        &mut self,
        key: Key,
        location: Location,
        part: Part,
        waiter: impl FnOnce(ReadId) -> Waiter,
    ) -> ReadId {
        let id = self.reads.issue();
        let waiter = waiter(id);
        let place = (location.segment, location.offset);
        let shared = self.reads.by_place.get(&place).filter(|_| part == Part::Record);
        if let Some(read) = shared.and_then(|request| self.reads.under_way.get_mut(request)) {
            read.waiters.push(waiter);
            return id;
        }
        let read = DiskRead { key, location, part, attempt: 0, waiters: vec![waiter] };
        if self.reads.under_way.len() < READS_IN_FLIGHT_MAX {
            self.submit_read(read);
        } else {
            self.reads.queued.push_back(read);
        }
        id
    }

    fn submit_read(&mut self, read: DiskRead) {
        let (offset, len) = blocks(&read);
        let file = self.files[&read.location.segment];
        let buffer = IoBuffer::with_capacity(len);
        let request = self.submit(Source::Read, DiskOperation::Read { file, offset, len, buffer });
        if read.part == Part::Record {
            self.reads.by_place.insert((read.location.segment, read.location.offset), request);
        }
        self.reads.started += 1;
        self.reads.under_way.insert(request, read);
    }

    pub(super) fn handle_read(&mut self, completion: DiskCompletion) {
        let read = self.reads.under_way.remove(&completion.id);
        let mut read = read.expect("a read's completion belongs to a read under way");
        self.reads.by_place.remove(&(read.location.segment, read.location.offset));
        let result = match (completion.result, completion.buffer) {
            (Err(error), _) => Err(ReadError::Disk(error)),
            (Ok(_), None) => Err(ReadError::Damaged),
            (Ok(_), Some(buffer)) => self.verify(&read, buffer),
        };
        if result.is_err() && read.attempt == 0 {
            // Memory or transfer errors vanish on a second look; rot does not.
            read.attempt += 1;
            self.submit_read(read);
            return;
        }
        match &result {
            Ok(record) if read.part == Part::Record => {
                let current =
                    self.index.get(&read.key).is_some_and(|slot| slot.location == read.location);
                if current {
                    self.cache.insert(&read.location, record.clone());
                }
            }
            Ok(_) => {}
            Err(_) => self.note_damage(&read),
        }
        for waiter in read.waiters {
            let id = waiter.id;
            let result = result.as_ref().map_err(|error| *error);
            let result = result.map(|record| waiter.answer(record));
            self.tell(Event::Read { id, result });
        }
        if let Some(next) = self.reads.queued.pop_front() {
            self.submit_read(next);
        }
    }

    fn note_damage(&mut self, read: &DiskRead) {
        self.reads.damaged += 1;
        if let Some(slot) = self.index.get(&read.key).copied()
            && slot.location == read.location
        {
            self.index.insert(read.key, Slot { damaged: true, ..slot });
        }
        let file = segment::file_name(&self.directory, read.location.segment);
        let offset = u64::from(read.location.offset);
        self.events.push_back(Event::Damaged { key: read.key, file, offset });
    }

    fn verify(&self, read: &DiskRead, buffer: IoBuffer) -> Result<CachedRecord, ReadError> {
        let place = Place {
            store: self.identity.store,
            segment: read.location.segment,
            offset: u64::from(read.location.offset),
        };
        let start = read.location.offset as usize % BLOCK_SIZE;
        let bytes = buffer.as_slice().get(start..).unwrap_or_default();
        let header = RecordHeader::decode(bytes, &place).map_err(|_| ReadError::Damaged)?;
        if header.key != read.key || header.kind != RecordKind::Put {
            return Err(ReadError::Damaged);
        }
        let user_key = Bytes::copy_from_slice(header.user_key);
        if read.part == Part::UserKey {
            return Ok(CachedRecord { user_key, value: Bytes::new(), footprint: 0 });
        }
        let value = header.value(bytes).map_err(|_| ReadError::Damaged)?;
        let (value, footprint) = if value.len() <= COPIED_VALUE_LEN_MAX {
            (Bytes::copy_from_slice(value), user_key.len() + value.len())
        } else {
            let range = start + header.len()..start + header.len() + value.len();
            let footprint = buffer.capacity() + user_key.len();
            (Bytes::from_owner(buffer).slice(range), footprint)
        };
        Ok(CachedRecord { user_key, value, footprint })
    }
}

impl Waiter {
    /// `None` if the record belongs to another user key of the same id.
    fn answer(&self, record: &CachedRecord) -> Option<(Bytes, Value)> {
        let same = self.user_key.as_ref().is_none_or(|wanted| *wanted == record.user_key);
        let (expiry_ms, version) = (self.expiry_ms, self.version);
        let value = Value { value: record.value.clone(), expiry_ms, version };
        same.then(|| (record.user_key.clone(), value))
    }
}

/// The whole blocks that hold what is to be read: offset and length in bytes.
fn blocks(read: &DiskRead) -> (u64, usize) {
    let Location { offset, header_len, value_len, .. } = read.location;
    let value_len = if read.part == Part::Record { value_len } else { 0 };
    let (start, len) = (offset as usize, header_len as usize + value_len as usize);
    let first = start - start % BLOCK_SIZE;
    let end = (start + len).next_multiple_of(BLOCK_SIZE);
    (first as u64, end - first)
}
