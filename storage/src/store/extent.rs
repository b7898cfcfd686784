//! Large values: written as extents beside the log's frames, and put once that is done.
//!
//! ```text
//! put_shared -> staged -> room reserved -> pieces, as the log takes them -> written: Resolved
//!     -> put_shared again: a touch record names the extent; only now the key changes
//! ```
//!
//! Until the value is written nothing has happened to its key: other commands see the old state,
//! and the put takes its place in the order of the log when its record is appended, like every
//! other. To the index, and to everything that goes by it, such a value is that of a touched key:
//! the extent's put has a slot, and the touch record that names it has one before it.
//!
//! Compaction moves an extent the same way, a piece at a time, with the pieces read instead
//! ([`super::extent_copy`]).

use std::collections::VecDeque;

use bytes::Bytes;
use wal::Lsn;
use wal::checksum;
use wal::disk::{BLOCK_SIZE, IoBuffer};
use wal::extent::{self, ChunkSums, PIECE_LEN};
use wal::group_commit::{AppendError, EXTENT_BYTES_MIN, Extent, ExtentId, GroupCommitLimits};
use wal::record::{Key, Location, Namespace, Record, RecordKind, TouchBody, Version};

use super::extent_copy::ExtentCopy;
use super::read::Memory;
use super::write::{bare, parts_len};
use super::{Effect, Event, KeyRef, Put, ReadId, Store};
use crate::cache::CachedRecord;
use crate::error::WriteError;
use crate::index::SlotKind;
use crate::knowledge::{Found, Known};

/// A value that was written and that nobody comes for is forgotten after this many nanoseconds.
const UNCLAIMED_AFTER_NS: u64 = 60_000_000_000;
/// Most values staged at once.
const STAGED_COUNT_MAX: usize = 64;

/// A value to be stored, kept by reference.
#[derive(Clone, Copy, Debug)]
pub struct SharedPut<'a> {
    /// The key.
    pub key: KeyRef<'a>,
    /// The version; higher than any the key had.
    pub version: Version,
    /// Milliseconds since 1970, 0 = never.
    pub expiry_ms: u64,
    /// The value.
    pub value: &'a Bytes,
}

/// A value on its way to the disk.
#[derive(Debug)]
struct Staged {
    /// What its owner waits for.
    id: ReadId,
    key: Key,
    hashed: bool,
    user_key: Bytes,
    value: Bytes,
    version: Version,
    stage: Stage,
}

impl Staged {
    /// The record in its extent. What is true of the key then, the one that names it tells.
    fn record(&self) -> Record<'_> {
        Record {
            kind: RecordKind::Put,
            namespace: Namespace::PLAIN,
            key: self.key,
            hashed: self.hashed,
            user_key: &self.user_key,
            version: self.version,
            expiry_ms: 0,
            value: &self.value,
        }
    }
}

#[derive(Debug)]
enum Stage {
    /// Waits for room.
    Queued,
    Writing(Writing),
    Written {
        location: Location,
        at_ns: u64,
    },
}

/// An extent whose pieces are being given to the log.
#[derive(Debug)]
struct Writing {
    extent: Extent,
    header_len: usize,
    sums: ChunkSums,
    /// The next piece, from the record's start; the first one comes last.
    next: usize,
    is_given: bool,
}

/// What an extent is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// A value that somebody stores.
    Value,
    /// A value that compaction moves.
    Copy,
}

/// Values staged, and the extent that compaction moves.
#[derive(Debug)]
pub(super) struct Extents {
    bytes_min: usize,
    staged_bytes_max: usize,
    staged_bytes: usize,
    staged: VecDeque<Staged>,
    pub(super) copy: Option<ExtentCopy>,
    pub(super) reads: u64,
}

impl Extents {
    pub(super) fn new(limits: &GroupCommitLimits) -> Self {
        Self {
            bytes_min: limits.extent_bytes_min.max(EXTENT_BYTES_MIN),
            staged_bytes_max: limits.pending_bytes_max,
            staged_bytes: 0,
            staged: VecDeque::new(),
            copy: None,
            reads: 0,
        }
    }

    /// Whether a value of this length is written as an extent.
    pub(super) fn wants(&self, value_len: usize) -> bool {
        value_len > self.bytes_min
    }

    /// Whether something in the segment is of use though no slot says so yet.
    pub(super) fn holds(&self, segment: u64) -> bool {
        let held = |staged: &Staged| match &staged.stage {
            Stage::Queued => false,
            Stage::Writing(writing) => writing.extent.segment.id == segment,
            Stage::Written { location, .. } => location.segment == segment,
        };
        self.staged.iter().any(held) || self.copy.as_ref().is_some_and(|copy| copy.holds(segment))
    }

    /// Whether the segment is being read.
    pub(super) fn is_reading(&self, segment: u64) -> bool {
        self.copy.as_ref().is_some_and(|copy| copy.is_reading(segment))
    }

    /// When something is to be forgotten.
    pub(super) fn deadline_ns(&self) -> Option<u64> {
        let written = self.staged.iter().filter_map(|staged| match staged.stage {
            Stage::Written { at_ns, .. } => Some(at_ns.saturating_add(UNCLAIMED_AFTER_NS)),
            Stage::Queued | Stage::Writing(_) => None,
        });
        written.min()
    }

    /// The value staged for this key, if it is this one.
    fn find(&self, key: &KeyRef<'_>, value: &[u8]) -> Option<usize> {
        self.staged.iter().position(|staged| {
            let same_bytes = || {
                std::ptr::eq(staged.value.as_ref(), value)
                    || staged.value.len() == value.len() && staged.value == value
            };
            staged.key == key.id && staged.user_key == key.user_key && same_bytes()
        })
    }

    fn take(&mut self, index: usize) -> Option<Staged> {
        let staged = self.staged.remove(index)?;
        self.staged_bytes -= staged.value.len();
        Some(staged)
    }
}

impl Store {
    /// Stores a value of any size without copying it. Above 256 KiB
    /// ([`GroupCommitLimits::extent_bytes_min`]) it is written beside the log first:
    /// [`Effect::Pending`] says that nothing has happened yet, and after [`Event::Resolved`] the
    /// same is to be asked again, with the same value; the version and expiry may be others.
    ///
    /// # Errors
    /// [`WriteError`].
    pub fn put_shared(&mut self, put: &SharedPut<'_>) -> Result<Effect, WriteError> {
        let SharedPut { key, version, expiry_ms, value } = *put;
        if !self.extents.wants(value.len()) {
            let put = Put { key, version, expiry_ms, value };
            return self.put(&put).map(|lsn| Effect::Done(Some(lsn)));
        }
        self.put_staged(put)
    }

    /// As [`Store::put_shared`], of a value in memory that is all its own: reads are answered from
    /// there until the value is forgotten, and it is not copied for them. A part of more memory
    /// would keep all of it.
    ///
    /// # Errors
    /// [`WriteError`].
    pub fn put_kept(&mut self, put: &SharedPut<'_>) -> Result<Effect, WriteError> {
        let SharedPut { key, version, expiry_ms, value } = *put;
        if !self.extents.wants(value.len()) {
            let (put, kept) = (Put { key, version, expiry_ms, value }, Some(value));
            return self.put_in_frame(&put, kept).map(|lsn| Effect::Done(Some(lsn)));
        }
        self.put_staged(put)
    }

    /// Stores a value that is written beside the log.
    fn put_staged(&mut self, put: &SharedPut<'_>) -> Result<Effect, WriteError> {
        let SharedPut { key, expiry_ms, value, .. } = *put;
        if let Some(error) = self.log.failure() {
            return Err(WriteError::ReadOnly(error));
        }
        let memory = self.memory(&key.id);
        let conflict = self.is_conflict(&memory, checksum::plain(key.user_key), expiry_ms);
        let Some(index) = self.extents.find(&key, value) else {
            let staged = if conflict { Err(WriteError::KeyConflict) } else { self.stage(put) };
            return staged.map(Effect::Pending);
        };
        let staged = &self.extents.staged[index];
        let Stage::Written { location, .. } = staged.stage else {
            return Ok(Effect::Pending(staged.id));
        };
        let result = match conflict {
            true => Err(WriteError::KeyConflict),
            false => self.put_extent(put, memory, location),
        };
        if result != Err(WriteError::Busy) {
            self.extents.take(index);
            self.tell_writable();
        }
        result.map(|lsn| Effect::Done(Some(lsn)))
    }

    /// Whether a value of that length is written beside the log before it is put.
    #[must_use]
    pub fn is_staged(&self, value_len: usize) -> bool {
        self.extents.wants(value_len)
    }

    /// As [`Store::put_shared`], for those who have lent the value and ask again when they are told
    /// that they may write.
    pub(super) fn put_large(&mut self, put: &Put<'_>) -> Result<Lsn, WriteError> {
        let Put { key, version, expiry_ms, value } = *put;
        let value = match self.extents.find(&key, value) {
            Some(index) => self.extents.staged[index].value.clone(),
            None => Bytes::copy_from_slice(value),
        };
        match self.put_shared(&SharedPut { key, version, expiry_ms, value: &value })? {
            Effect::Done(Some(lsn)) => Ok(lsn),
            Effect::Done(None) | Effect::Pending(_) => {
                self.starved = true;
                Err(WriteError::Busy)
            }
        }
    }

    /// Whether another key of the same id lives, and would have to make room for one that does.
    pub(super) fn is_conflict(&self, memory: &Memory, user_key_crc: u32, expiry_ms: u64) -> bool {
        let now_ms = self.now.clock_ms;
        let is_over = expiry_ms != 0 && expiry_ms <= now_ms;
        matches!(memory, Memory::Known(Known::Present(found))
            if !is_over
                && !found.is_expired(now_ms)
                && found.user_key_crc != user_key_crc)
    }

    /// Begins to write a value.
    fn stage(&mut self, put: &SharedPut<'_>) -> Result<ReadId, WriteError> {
        let SharedPut { key, version, value, .. } = *put;
        let Extents { staged, staged_bytes, staged_bytes_max, .. } = &self.extents;
        let full = staged_bytes + value.len() > *staged_bytes_max && *staged_bytes > 0;
        if full || staged.len() >= STAGED_COUNT_MAX {
            self.starved = true;
            return Err(WriteError::Busy);
        }
        let id = self.jobs.take_id();
        let mut staged = Staged {
            id,
            key: key.id,
            hashed: key.hashed,
            user_key: Bytes::copy_from_slice(key.user_key),
            value: value.clone(),
            version,
            stage: Stage::Queued,
        };
        self.compaction.resume();
        self.reserve(&mut staged)?;
        self.extents.staged_bytes += staged.value.len();
        self.extents.staged.push_back(staged);
        Ok(id)
    }

    /// Reserves room for a value, if there is some; an error if there will not be.
    fn reserve(&mut self, staged: &mut Staged) -> Result<(), WriteError> {
        let header_len = staged.record().header_len(&self.identity.store, None);
        let record_len = extent::record_len(header_len, staged.value.len());
        let len = (record_len + BLOCK_SIZE) as u64;
        if self.supply.is_disk_full() && !self.may_append_on_full_disk(true, len) {
            return Err(WriteError::DiskFull);
        }
        let extent = match self.begin_extent(record_len, Purpose::Value) {
            Ok(Some(extent)) => extent,
            Ok(None) => return Ok(()),
            Err(error) => return Err(error),
        };
        let mut sums = ChunkSums::default();
        let in_first = PIECE_LEN.saturating_sub(header_len).min(staged.value.len());
        sums.update(&staged.value[..in_first]);
        let next = PIECE_LEN.min(record_len);
        staged.stage = Stage::Writing(Writing { extent, header_len, sums, next, is_given: false });
        Ok(())
    }

    /// Reserves room for an extent; `None` if there is none at the moment.
    pub(super) fn begin_extent(
        &mut self,
        record_len: usize,
        purpose: Purpose,
    ) -> Result<Option<Extent>, WriteError> {
        match self.log.begin_extent(record_len) {
            Ok(extent) => {
                self.idle_since_ns = None;
                self.checkpointing.note_append(extent.len);
                if let Some(segment) = self.catalog.segments.by_id_mut(extent.segment.id) {
                    segment.note_extent(extent.offset + extent.len);
                }
                Ok(Some(extent))
            }
            Err(AppendError::Failed(error)) => Err(WriteError::ReadOnly(error)),
            Err(AppendError::Congested { .. }) => Ok(None),
            Err(AppendError::NoSegment { frame_len }) => match self.supply.failure() {
                _ if purpose == Purpose::Copy
                    && self.supply.is_disk_full()
                    && self.supply.want_reserve(frame_len, 0) =>
                {
                    Ok(None)
                }
                Some(_) if self.supply.is_disk_full() => Err(WriteError::DiskFull),
                Some(error) => Err(WriteError::NoSegment(error)),
                None => {
                    self.supply.want(frame_len);
                    Ok(None)
                }
            },
        }
    }

    /// Goes on with everything that is staged: room, pieces, ends.
    pub(super) fn pump_extents(&mut self) {
        while let Some(id) = self.log.poll_extent() {
            self.end_extent(id);
        }
        if self.log.failure().is_some() {
            return self.fail_extents();
        }
        self.forget_unclaimed();
        self.reserve_queued();
        self.pump_copy();
        while self.log.piece_room() > 0
            && let Some(index) = self.extents.staged.iter().position(
                |staged| matches!(&staged.stage, Stage::Writing(writing) if !writing.is_given),
            )
        {
            self.give_piece(index);
        }
    }

    fn reserve_queued(&mut self) {
        let mut index = 0;
        while let Some(staged) = self.extents.staged.get_mut(index) {
            if !matches!(staged.stage, Stage::Queued) {
                index += 1;
                continue;
            }
            // Its order among the others does not matter while it is in hand.
            let Some(mut staged) = self.extents.staged.remove(index) else { return };
            let result = self.reserve(&mut staged);
            let waits = matches!(staged.stage, Stage::Queued);
            if result.is_err() {
                // Whoever asks again hears why.
                self.extents.staged_bytes -= staged.value.len();
                self.events.push_back(Event::Resolved { id: staged.id });
                self.tell_writable();
                continue;
            }
            self.extents.staged.insert(index, staged);
            if waits {
                return;
            }
        }
    }

    /// Gives the log the next piece of a value.
    fn give_piece(&mut self, index: usize) {
        let mut buffer = self.buffers.take(PIECE_LEN);
        let staged = &mut self.extents.staged[index];
        let Stage::Writing(writing) = &mut staged.stage else { return };
        let extent = writing.extent;
        let header_len = writing.header_len;
        let end = header_len + staged.value.len();
        if writing.next < end {
            let at = writing.next;
            let to = (at + PIECE_LEN).min(end);
            writing.next = to;
            // The whole header is within the first piece.
            let bytes = &staged.value[at - header_len..to - header_len];
            writing.sums.update(bytes);
            buffer.extend_from_slice(bytes);
            pad(&mut buffer);
            self.log.write_piece(&extent, at as u64, buffer);
            return;
        }
        writing.is_given = true;
        let sums = std::mem::take(&mut writing.sums).finish();
        let place = extent.place(self.identity.store).at(extent.record_offset());
        staged.record().encode_header(&place, &sums, &mut buffer);
        let in_first = PIECE_LEN.saturating_sub(header_len).min(staged.value.len());
        buffer.extend_from_slice(&staged.value[..in_first]);
        pad(&mut buffer);
        self.log.write_piece(&extent, 0, buffer);
    }

    fn end_extent(&mut self, id: ExtentId) {
        let at_ns = self.now.monotonic_ns;
        if self.extents.copy.as_mut().is_some_and(|copy| copy.end(id)) {
            return;
        }
        let found = self.extents.staged.iter_mut().find_map(|staged| match &staged.stage {
            Stage::Writing(writing) if writing.extent.id == id => {
                let location = location(&writing.extent, writing.header_len, staged.value.len());
                Some((staged, location))
            }
            _ => None,
        });
        let Some((staged, location)) = found else { return };
        staged.stage = Stage::Written { location, at_ns };
        let id = staged.id;
        self.events.push_back(Event::Resolved { id });
        self.tell_writable();
    }

    /// The log takes nothing more: whoever asks again hears why.
    fn fail_extents(&mut self) {
        self.extents.copy = None;
        self.extents.staged_bytes = 0;
        let staged = std::mem::take(&mut self.extents.staged);
        let waits = !staged.is_empty();
        for staged in staged {
            if !matches!(staged.stage, Stage::Written { .. }) {
                self.events.push_back(Event::Resolved { id: staged.id });
            }
        }
        if waits {
            self.tell_writable();
        }
    }

    fn forget_unclaimed(&mut self) {
        let now_ns = self.now.monotonic_ns;
        while self.extents.deadline_ns().is_some_and(|at_ns| at_ns <= now_ns) {
            let is_due = |staged: &Staged| match staged.stage {
                Stage::Written { at_ns, .. } => at_ns.saturating_add(UNCLAIMED_AFTER_NS) <= now_ns,
                Stage::Queued | Stage::Writing(_) => false,
            };
            let Some(index) = self.extents.staged.iter().position(is_due) else { return };
            self.extents.take(index);
            self.tell_writable();
        }
    }

    /// Appends the record that names an extent: the put takes place.
    fn put_extent(
        &mut self,
        put: &SharedPut<'_>,
        memory: Memory,
        base: Location,
    ) -> Result<Lsn, WriteError> {
        let SharedPut { key, version, expiry_ms, value } = *put;
        let user_key_crc = checksum::plain(key.user_key);
        let body = TouchBody { base, user_key_crc, base_lsn: Lsn::ZERO }.encode();
        let appended = self.append(&bare(RecordKind::Touch, key.id, version, expiry_ms, &body))?;
        let record = CachedRecord {
            key: key.id,
            location: base,
            lsn: Lsn::ZERO,
            version,
            expiry_ms,
            user_key: Bytes::copy_from_slice(key.user_key),
            user_key_crc,
            value: value.clone(),
            footprint: key.user_key.len() + value.len(),
        };
        let found = self.note_extent(key.id, memory, &appended.location, &body_of(&record));
        let found = Found { version, expiry_ms, ..found };
        self.note_recent(key.id, &appended, Known::Present(found), Some(record));
        Ok(appended.lsn)
    }

    /// Takes a record at `location` that names an extent into the index.
    pub(super) fn note_extent(
        &mut self,
        key: Key,
        memory: Memory,
        location: &Location,
        named: &Named,
    ) -> Found {
        let Named { base, user_key_crc, version, expiry_ms } = *named;
        let (place, base_place) = (self.place_of(location), self.place_of(&base));
        let slot = self.slot(place, SlotKind::Touch, parts_len(location), expiry_ms);
        let len = base_len(&base, Lsn::ZERO);
        let base_slot = self.slot(base_place, SlotKind::Put, len, expiry_ms);
        let now_ms = self.now.clock_ms;
        self.catalog.expect(&key, base_place, expiry_ms, now_ms);
        self.catalog.expect(&key, place, expiry_ms, now_ms);
        self.change_slots(&key, memory, |catalog, kin| {
            catalog.touch(&key, slot, Some(base_slot), kin);
        });
        let (kind, base_lsn) = (SlotKind::Touch, Lsn::ZERO);
        Found { place, kind, version, expiry_ms, user_key_crc, base, base_lsn }
    }
}

/// Bytes that a touched value takes, all of its extent if it is one; `base_lsn` as in the touch.
pub(crate) fn base_len(base: &Location, base_lsn: Lsn) -> u64 {
    let len = parts_len(base);
    if base_lsn == Lsn::ZERO {
        len.next_multiple_of(BLOCK_SIZE as u64) + extent::RECORD_OFFSET
    } else {
        len
    }
}

/// What a record that names an extent says.
#[derive(Clone, Copy, Debug)]
pub(super) struct Named {
    pub(super) base: Location,
    pub(super) user_key_crc: u32,
    pub(super) version: Version,
    pub(super) expiry_ms: u64,
}

fn body_of(record: &CachedRecord) -> Named {
    Named {
        base: record.location,
        user_key_crc: record.user_key_crc,
        version: record.version,
        expiry_ms: record.expiry_ms,
    }
}

/// Where the record in an extent stands.
pub(super) fn location(extent: &Extent, header_len: usize, value_len: usize) -> Location {
    let fits = |len: usize| u32::try_from(len).expect("values are at most 32 MiB");
    Location {
        segment: extent.segment.id,
        offset: u32::try_from(extent.record_offset()).expect("segments are at most 256 MiB"),
        header_len: fits(header_len),
        value_len: fits(value_len),
    }
}

/// Fills up the last block.
fn pad(buffer: &mut IoBuffer) {
    buffer.pad_to(buffer.len().next_multiple_of(BLOCK_SIZE));
}
