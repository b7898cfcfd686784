//! Single records read from the disk: coalesced by place, bounded in flight, and read a second time
//! before they are called damaged.

use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

use bytes::Bytes;
use wal::Lsn;
use wal::checksum::{self, Place as Seed};
use wal::disk::{BLOCK_SIZE, DiskCompletion, DiskOperation, IoBuffer, RequestId};
use wal::record::{
    self, Key, Location, Namespace, RECORD_ALIGNMENT, RecordError, RecordHeader, RecordKind,
    TouchBody, Version,
};
use wal::segment;

use super::{Event, ReadId, RepairReason, Source, Store};
use crate::cache::CachedRecord;
use crate::error::ReadError;
use crate::index::{Place, Slot, SlotKind};
use crate::knowledge::Found;
use crate::segments::{LINE_LEN, Segment, Spot};

/// Reads on the disk at once; further ones wait here.
const READS_IN_FLIGHT_MAX: usize = 256;
/// Values up to this are copied out of their read buffer, so that a cached value keeps no whole
/// block in use.
const COPIED_VALUE_LEN_MAX: usize = 2047;
/// A header is looked for in this many bytes first.
const HEADER_LEN_EXPECTED: u64 = 1024;
/// The same, where only the key, or what a touch says, is wanted: mostly within one block.
const HEAD_LEN_EXPECTED: u64 = 256;
/// Longest header: fields, user key and chunk checksums, rounded up.
const HEADER_LEN_MAX: u64 = 96 << 10;

/// What is to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// The record that starts in a line.
    Candidate { spot: Spot, len_max: u64, whole: bool },
    /// The record at this very offset.
    Exact { location: Location, whole: bool },
}

impl Target {
    pub(super) fn candidate(spot: Spot, slot: &Slot, whole: bool) -> Self {
        Self::Candidate { spot, len_max: slot.size_class.bytes(), whole }
    }

    fn spot(&self) -> Spot {
        match self {
            Self::Candidate { spot, .. } => *spot,
            Self::Exact { location, .. } => Spot::of(location),
        }
    }

    fn is_whole(&self) -> bool {
        match self {
            Self::Candidate { whole, .. } | Self::Exact { whole, .. } => *whole,
        }
    }

    /// First and last byte wanted.
    fn range(&self, header_len_max: u64) -> (u64, u64) {
        match *self {
            Self::Candidate { spot, len_max, whole } => {
                let start = u64::from(spot.line) * u64::from(LINE_LEN);
                // The slot of an expired put that hides older ones tells too small a size.
                let is_second = header_len_max == HEADER_LEN_MAX;
                let len = if is_second { len_max.max(header_len_max) } else { len_max };
                let len = if whole { len } else { len.min(header_len_max) };
                (start, start + u64::from(LINE_LEN) - RECORD_ALIGNMENT as u64 + len)
            }
            Self::Exact { location, whole } => {
                let start = u64::from(location.offset);
                let value_len = if whole { u64::from(location.value_len) } else { 0 };
                (start, start + u64::from(location.header_len) + value_len)
            }
        }
    }

    /// Offsets where the record may start.
    fn starts(&self) -> impl Iterator<Item = u64> {
        let (first, count) = match self {
            Self::Candidate { spot, .. } => {
                (u64::from(spot.line) * u64::from(LINE_LEN), LINE_LEN as usize / RECORD_ALIGNMENT)
            }
            Self::Exact { location, .. } => (u64::from(location.offset), 1),
        };
        (0..count as u64).map(move |index| first + index * RECORD_ALIGNMENT as u64)
    }
}

/// Who waits for a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Waiter {
    Job(ReadId),
    /// A scan, and which of its slots.
    Scan(ReadId, usize),
    Compaction(Spot),
}

/// A record's header, and its value if that was read too.
#[derive(Clone, Debug)]
pub(super) struct Head {
    pub(super) location: Location,
    pub(super) kind: RecordKind,
    pub(super) namespace: Namespace,
    pub(super) key: Key,
    pub(super) user_key: Bytes,
    pub(super) version: Version,
    pub(super) expiry_ms: u64,
    /// Where it was first logged; 0 if a single record does not tell, as of small values.
    pub(super) lsn: Lsn,
    pub(super) touch: Option<TouchBody>,
    /// The value, and the bytes of memory that it and the user key keep in use.
    value: Option<(Bytes, usize)>,
}

impl Head {
    /// What a put says of its key.
    pub(super) fn found(&self, place: Place) -> Found {
        Found {
            place,
            kind: SlotKind::Put,
            version: self.version,
            expiry_ms: self.expiry_ms,
            user_key_crc: checksum::plain(&self.user_key),
            base: self.location,
            base_lsn: self.lsn,
        }
    }

    /// What a touch says of its key.
    pub(super) fn touched(&self, place: Place, body: &TouchBody) -> Found {
        Found {
            place,
            kind: SlotKind::Touch,
            version: self.version,
            expiry_ms: self.expiry_ms,
            user_key_crc: body.user_key_crc,
            base: body.base,
            base_lsn: body.base_lsn,
        }
    }

    /// The whole put, if it was read whole.
    pub(super) fn record(&self) -> Option<CachedRecord> {
        let (value, footprint) = self.value.clone()?;
        Some(CachedRecord {
            key: self.key,
            location: self.location,
            lsn: self.lsn,
            version: self.version,
            expiry_ms: self.expiry_ms,
            user_key: self.user_key.clone(),
            user_key_crc: checksum::plain(&self.user_key),
            value,
            footprint,
        })
    }
}

#[derive(Debug)]
struct DiskRead {
    /// A key under whose prefix the slot at `place` stands.
    key: Key,
    place: Place,
    target: Target,
    header_len_max: u64,
    /// A damaged record is read a second time before it is called so.
    attempt: u32,
    waiters: Vec<Waiter>,
}

/// Reads under way.
#[derive(Debug, Default)]
pub(super) struct Reads {
    under_way: BTreeMap<RequestId, DiskRead>,
    /// Reads by place, and whether they are of the whole record: another reader joins.
    by_spot: BTreeMap<(Spot, bool), RequestId>,
    queued: VecDeque<DiskRead>,
    pub(super) started: u64,
    pub(super) damaged: u64,
}

impl Reads {
    /// Whether a read of the segment is under way, or is to be.
    pub(super) fn is_reading(&self, segment: u64) -> bool {
        let mut all = self.under_way.values().chain(&self.queued);
        all.any(|read| read.target.spot().segment == segment)
    }
}

enum Unread {
    Damaged,
    /// The header may be longer than what was read.
    Short,
}

impl Store {
    /// Reads a record; `place` is the slot that damage is noted at.
    pub(super) fn read(&mut self, key: Key, place: Place, target: Target, waiter: Waiter) {
        let spot = target.spot();
        let whole = self.reads.by_spot.get(&(spot, true));
        let shared = match target.is_whole() {
            true => whole,
            false => whole.or_else(|| self.reads.by_spot.get(&(spot, false))),
        };
        if let Some(read) = shared.and_then(|request| self.reads.under_way.get_mut(request)) {
            read.waiters.push(waiter);
            return;
        }
        let header_len_max = match waiter {
            Waiter::Compaction(_) => HEAD_LEN_EXPECTED,
            Waiter::Job(_) | Waiter::Scan(..) => HEADER_LEN_EXPECTED,
        };
        let waiters = vec![waiter];
        let read = DiskRead { key, place, target, header_len_max, attempt: 0, waiters };
        if self.reads.under_way.len() < READS_IN_FLIGHT_MAX {
            self.submit_read(read);
        } else {
            self.reads.queued.push_back(read);
        }
    }

    fn submit_read(&mut self, read: DiskRead) {
        let spot = read.target.spot();
        let segment = self.catalog.segments.by_id(spot.segment);
        let Some(&Segment { file, end: limit, .. }) = segment else {
            // A touch record may name a value whose segment was lost.
            return self.deliver(read, Err(ReadError::Damaged));
        };
        let (start, end) = read.target.range(read.header_len_max);
        let block = BLOCK_SIZE as u64;
        let offset = start - start % block;
        // A slot tells sizes rounded up: what is behind the record may be under way.
        let written_end = self.log.unwritten_from(spot.segment, offset).unwrap_or(limit);
        let end = end.next_multiple_of(block).min(limit).min(written_end);
        let Some(len) = end.checked_sub(offset).filter(|len| *len > 0) else {
            return self.deliver(read, Err(ReadError::Damaged));
        };
        let len = usize::try_from(len).expect("a segment fits in memory");
        let buffer = self.buffers.take(len);
        let request = self.submit(Source::Read, DiskOperation::Read { file, offset, len, buffer });
        self.reads.by_spot.insert((spot, read.target.is_whole()), request);
        let asked_for = |waiter: &Waiter| !matches!(waiter, Waiter::Compaction(_));
        self.reads.started += u64::from(read.waiters.iter().any(asked_for));
        self.reads.under_way.insert(request, read);
    }

    pub(super) fn handle_read(&mut self, completion: DiskCompletion) {
        let read = self.reads.under_way.remove(&completion.id);
        let mut read = read.expect("a read's completion belongs to a read under way");
        self.reads.by_spot.remove(&(read.target.spot(), read.target.is_whole()));
        let result = match (completion.result, completion.buffer) {
            (Err(error), _) => Err(ReadError::Disk(error)),
            (Ok(_), None) => Err(ReadError::Damaged),
            (Ok(_), Some(buffer)) => match self.parse(&read, buffer) {
                Ok(head) => Ok(Rc::new(head)),
                Err(Unread::Short) if read.header_len_max < HEADER_LEN_MAX => {
                    let is_first = read.header_len_max < HEADER_LEN_EXPECTED;
                    let longer = if is_first { HEADER_LEN_EXPECTED } else { HEADER_LEN_MAX };
                    read.header_len_max = longer;
                    return self.submit_read(read);
                }
                Err(_) => Err(ReadError::Damaged),
            },
        };
        if result.is_err() && read.attempt == 0 {
            // Memory or transfer errors vanish on a second look; rot does not.
            read.attempt += 1;
            return self.submit_read(read);
        }
        self.deliver(read, result);
        while self.reads.under_way.len() < READS_IN_FLIGHT_MAX
            && let Some(next) = self.reads.queued.pop_front()
        {
            self.submit_read(next);
        }
    }

    fn deliver(&mut self, read: DiskRead, result: Result<Rc<Head>, ReadError>) {
        match &result {
            Ok(head) => {
                let is_it = |slot: Slot| self.catalog.segments.spot_of(slot.place);
                let spot = Spot::of(&head.location);
                let current =
                    self.catalog.candidates(&head.key).any(|slot| is_it(slot) == Some(spot));
                if let Some(record) = head.record().filter(|_| current) {
                    self.cache.insert(record);
                }
            }
            Err(_) => self.note_damage(&read),
        }
        for waiter in read.waiters {
            match waiter {
                Waiter::Job(id) => self.handle_job_read(id, result.clone()),
                Waiter::Scan(id, index) => self.handle_scan_read(id, index, result.clone()),
                Waiter::Compaction(spot) => self.handle_compaction_head(spot, result.clone()),
            }
        }
    }

    fn note_damage(&mut self, read: &DiskRead) {
        self.reads.damaged += 1;
        let slot = self.catalog.candidates(&read.key).find(|slot| slot.place == read.place);
        if let Some(slot) = slot {
            self.catalog.replace(&read.key, read.place, Slot { damaged: true, ..slot });
            self.hot.remove(&read.key);
        }
        let spot = read.target.spot();
        let file = segment::file_name(&self.directory, spot.segment);
        let offset = match read.target {
            Target::Exact { location, .. } => u64::from(location.offset),
            Target::Candidate { .. } => u64::from(spot.line) * u64::from(LINE_LEN),
        };
        self.scrub.note(spot.segment, offset, Some(read.key), RepairReason::Record);
        self.events.push_back(Event::Damaged { key: read.key, file, offset });
    }

    fn parse(&self, read: &DiskRead, buffer: IoBuffer) -> Result<Head, Unread> {
        let (start, _) = read.target.range(read.header_len_max);
        let first = start - start % BLOCK_SIZE as u64;
        let mut unread = Unread::Damaged;
        for offset in read.target.starts() {
            let at = usize::try_from(offset - first).expect("a record lies within its read");
            let Some(bytes) =
                buffer.as_slice().get(at..).filter(|bytes| record::is_plausible(bytes))
            else {
                continue;
            };
            let (store, segment) = (self.identity.store, read.target.spot().segment);
            let seed = Seed { store, segment, offset };
            match RecordHeader::decode(bytes, &seed) {
                Ok(_) => return take(buffer, at, &seed, read.target.is_whole()),
                Err(RecordError::Truncated { .. }) => unread = Unread::Short,
                Err(_) => {}
            }
        }
        Err(unread)
    }
}

/// Takes the record out of the buffer at `at`.
fn take(buffer: IoBuffer, at: usize, seed: &Seed, whole: bool) -> Result<Head, Unread> {
    let bytes = &buffer.as_slice()[at..];
    let header = RecordHeader::decode(bytes, seed).map_err(|_| Unread::Damaged)?;
    let location = Location {
        segment: seed.segment,
        offset: u32::try_from(seed.offset).map_err(|_| Unread::Damaged)?,
        header_len: u32::try_from(header.len()).map_err(|_| Unread::Damaged)?,
        value_len: u32::try_from(header.value_len).map_err(|_| Unread::Damaged)?,
    };
    let mut head = Head {
        location,
        kind: header.kind,
        namespace: header.namespace,
        key: header.key,
        user_key: Bytes::copy_from_slice(header.user_key),
        version: header.version,
        expiry_ms: header.expiry_ms,
        lsn: header.first_lsn.unwrap_or_default(),
        touch: None,
        value: None,
    };
    if header.kind == RecordKind::Touch {
        let body = header.value(bytes).ok().and_then(TouchBody::decode);
        head.touch = Some(body.ok_or(Unread::Damaged)?);
    } else if whole && header.kind == RecordKind::Put {
        let value = header.value(bytes).map_err(|_| Unread::Damaged)?;
        let user_key_len = head.user_key.len();
        head.value = Some(if value.len() <= COPIED_VALUE_LEN_MAX {
            (Bytes::copy_from_slice(value), user_key_len + value.len())
        } else {
            let range = at + header.len()..at + header.len() + value.len();
            let footprint = buffer.capacity() + user_key_len;
            (Bytes::from_owner(buffer).slice(range), footprint)
        });
    }
    Ok(head)
}
