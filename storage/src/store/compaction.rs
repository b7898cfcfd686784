//! Compaction: what is live of a segment is appended again, and the segment goes.
//!
//! ```text
//! dead segments ───────────────────────────────┐
//! victim -> windows -> frames -> each record:   ├-> durable, unread -> manifest -> file removed
//!     live: append a copy, point the slot at it │
//!     hides older records: append a tombstone ──┘
//!     else: drop its slot
//! ```
//!
//! Whether a record is live is asked of the index at the moment its copy is appended, so that
//! append order stays the order of truth. A shadowed slot is resolved by reading the newer slots of
//! its prefix. A victim is given up (`Unfit`, tried again much later) when anything of it cannot be
//! made out; and no segment goes while a slot names it.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use bytes::Bytes;
use wal::Lsn;
use wal::checksum::Place as Seed;
use wal::disk::{BLOCK_SIZE, DiskCompletion, DiskOperation, IoBuffer};
use wal::frame::{FRAME_HEADER_LEN, FrameHeader, is_blank};
use wal::group_commit::{AppendError, Appended};
use wal::manifest::Verdict;
use wal::record::{Key, Location, Namespace, Record, RecordHeader, RecordKind, TouchBody};
use wal::segment::SEGMENT_HEADER_LEN;

use super::compaction_counters::CompactionCounters;
use super::disk_read::Head;
use super::extent_copy::ExtentCopy;
use super::pool::FULL_DISK_WORTH;
use super::write::{bare, parts_len, tombstone};
use super::{Source, Store};
use crate::cache::CachedRecord;
use crate::catalog::Kin;
use crate::error::ReadError;
use crate::index::{Place, SegmentNumber, Slot, SlotKind};
use crate::knowledge::{Found, Known, Recent};
use crate::mutation::{Mutation, is_planted};
use crate::segments::{LINE_LEN, SegmentState, Spot};

/// A victim is read in pieces of this many bytes.
const WINDOW_LEN: u64 = 1 << 20;
/// A segment that was given up is tried again after this many nanoseconds, or when compaction is
/// asked for by hand.
const UNFIT_RETRY_NS: u64 = 600_000_000_000;
/// Bytes of records that one step looks at.
const STEP_BYTES: u64 = 256 << 10;
/// Compaction waits while more bytes than this wait for the disk.
const PENDING_BYTES_MAX: usize = 4 << 20;
/// Headers of newer records read ahead within a frame.
const HEADS_AHEAD_MAX: usize = 32;
/// Headers kept between frames.
const HEADS_KEPT_MAX: usize = 1024;

/// A segment being compacted.
#[derive(Debug)]
pub(super) struct Victim {
    pub(super) number: SegmentNumber,
    id: u64,
    end: u64,
    /// The next frame.
    pub(super) offset: u64,
    pub(super) window: IoBuffer,
    pub(super) window_start: u64,
    /// Number of the window read under way.
    reading: Option<u64>,
    frame: Option<Frame>,
}

/// A frame whose records are being looked at.
#[derive(Clone, Copy, Debug)]
struct Frame {
    offset: u64,
    len: u64,
    /// The next record, from the frame's start.
    at: usize,
    /// The next record's LSN.
    lsn: Lsn,
    records_left: u32,
}

impl Frame {
    /// Goes on to the next record.
    fn pass(&mut self, record_len: usize) {
        self.at += record_len;
        self.lsn = self.lsn.next();
        self.records_left -= 1;
    }
}

/// The state of compaction.
#[derive(Debug, Default)]
pub(super) struct Compaction {
    pub(super) victim: Option<Victim>,
    windows: u64,
    /// When segments that were given up are tried again.
    unfit_retry_at_ns: u64,
    /// No new work until the next write: the store is being shut down.
    paused: bool,
    /// The disk is full, and a copy finds no room even in the reserve.
    out_of_room: bool,
    /// Asked for by hand: segments whose last record is not above this are looked at.
    requested_lsn: Option<Lsn>,
    heads: BTreeMap<Spot, Option<Rc<Head>>>,
    heads_wanted: BTreeSet<Spot>,
    pub(super) counters: CompactionCounters,
}

impl Compaction {
    pub(super) fn resume(&mut self) {
        self.paused = false;
    }

    /// Gives the work at hand up; what was copied so far does no harm.
    pub(super) fn pause(&mut self) {
        self.paused = true;
        self.victim = None;
    }

    /// Whether nothing new is to be started before the next write.
    pub(super) fn is_paused(&self) -> bool {
        self.paused
    }

    /// Notes that a header is to be read, unless it was or is being read.
    pub(super) fn want_head(&mut self, spot: Spot) -> bool {
        !self.heads.contains_key(&spot) && self.heads_wanted.insert(spot)
    }

    pub(super) fn is_reading_heads(&self) -> bool {
        !self.heads_wanted.is_empty()
    }
}

pub(super) enum Step {
    /// So many bytes looked at.
    Done(u64),
    /// Something must come first.
    Wait,
    End,
    Unfit,
}

/// What becomes of a record.
enum Decision {
    Wait,
    Unfit,
    Drop,
    /// Append it again, with what this touch of it says, if any.
    Copy(Option<Found>),
    CopyTouch(TouchBody),
    /// Append a tombstone in its place.
    Bury,
}

/// The newest record of the key before the one at hand.
pub(super) enum Newer {
    None,
    Same(Slot),
    Wait,
    Unfit,
}

/// A record of the victim.
#[derive(Clone, Copy)]
struct Original<'a> {
    header: RecordHeader<'a>,
    value: &'a [u8],
    location: Location,
    place: Place,
    /// Where it was first logged.
    first_lsn: Lsn,
}

impl Store {
    /// Starts compaction by hand: it goes on until no segment that is there now holds much that is
    /// dead, the active one excepted.
    pub fn compact(&mut self) {
        self.compaction.requested_lsn = Some(self.log.last_lsn());
        self.compaction.resume();
        self.retry_unfit();
    }

    /// Lets segments that were given up be tried again: the disk may have recovered, a damaged
    /// record may have been overwritten.
    pub(super) fn retry_unfit(&mut self) {
        self.compaction.unfit_retry_at_ns = self.now.monotonic_ns.saturating_add(UNFIT_RETRY_NS);
        for segment in self.catalog.segments.iter_mut() {
            if segment.state == SegmentState::Unfit {
                segment.state = SegmentState::Sealed;
            }
        }
    }

    /// Looks for a victim, if none is at hand and one is worth it.
    pub(super) fn choose_victim(&mut self) {
        if self.compaction.paused
            || self.compaction.victim.is_some()
            || self.log.failure().is_some()
        {
            return;
        }
        if self.compaction.unfit_retry_at_ns <= self.now.monotonic_ns {
            self.retry_unfit();
        }
        self.extents.copy.take_if(|copy| copy.is_over());
        self.retire_dead();
        if let Some(number) = self.worthwhile_victim()
            && let Some(segment) = self.catalog.segments.get(number)
        {
            self.compaction.heads.clear();
            self.compaction.victim = Some(Victim {
                number,
                id: segment.id,
                end: segment.end,
                offset: SEGMENT_HEADER_LEN,
                window: IoBuffer::with_capacity(1),
                window_start: 0,
                reading: None,
                frame: None,
            });
        }
    }

    fn retire_dead(&mut self) {
        let oldest = self.oldest();
        let dead: Vec<SegmentNumber> = (self.catalog.segments.iter())
            .filter(|(number, segment)| {
                let hides = segment.tombstone_bytes > 0 || segment.has_clear;
                segment.state == SegmentState::Sealed
                    && segment.slots == 0
                    && !self.extents.holds(segment.id)
                    && (!hides || oldest == Some(*number))
            })
            .map(|(number, _)| number)
            .collect();
        dead.into_iter().for_each(|number| self.retire(number));
    }

    /// The segment whose records are older than those of every other one.
    fn oldest(&self) -> Option<SegmentNumber> {
        let segments = self.catalog.segments.iter();
        let first = segments.filter_map(|(number, segment)| Some((segment.lsns?.0, number)));
        first.min().map(|(_, number)| number)
    }

    fn worthwhile_victim(&mut self) -> Option<SegmentNumber> {
        let (mut sealed, mut len, mut live, mut tombstones) = (0u64, 0, 0, 0);
        let of_state =
            |state| self.catalog.segments.iter().filter(move |(_, segment)| segment.state == state);
        for (_, segment) in of_state(SegmentState::Sealed) {
            sealed += 1;
            len += segment.len;
            live += segment.live_bytes;
            tombstones += segment.tombstone_bytes;
        }
        let full = self.supply.is_disk_full();
        let wasteful = sealed >= SEALED_COUNT_MIN
            && len * 10 > live * 13 + 10 * 2 * self.segment_bytes
            && (full || self.supply.failure().is_none());
        let requested_lsn = self.compaction.requested_lsn;
        if !wasteful && !full && requested_lsn.is_none() {
            return None;
        }
        // Many tombstones wait for the oldest records to go: those first, then.
        let by_age = tombstones * 4 > len;
        let room = self.room_for_copies();
        let last_lsn = self.log.last_lsn();
        let oldest = self.oldest();
        let mut best: Option<(u128, SegmentNumber)> = None;
        for (number, segment) in of_state(SegmentState::Sealed) {
            let oldest = oldest == Some(number);
            let kept = segment.live_bytes + if oldest { 0 } else { segment.tombstone_bytes };
            let dead = segment.used().saturating_sub(kept);
            let asked_for = segment.lsns.is_none_or(|(_, last)| Some(last) <= requested_lsn);
            let blocked = !wasteful && !full && !asked_for
                || self.extents.holds(segment.id)
                || segment.has_clear && !oldest
                || full && kept + segment.len / FULL_DISK_WORTH > room;
            let worth = segment.len / if full { FULL_DISK_WORTH } else { 8 };
            if blocked || dead < worth && !(by_age && oldest) {
                continue;
            }
            let age = segment.lsns.map_or(Lsn::ZERO, |(_, last)| last).0;
            let age = u128::from(last_lsn.0.saturating_sub(age) + 1);
            let score = match by_age && oldest {
                true => u128::MAX,
                false => (u128::from(dead) << 20) * age / u128::from(segment.len + kept),
            };
            if best.is_none_or(|(known, _)| score > known) {
                best = Some((score, number));
            }
        }
        if best.is_none() {
            self.compaction.requested_lsn = None;
        }
        best.map(|(_, number)| number)
    }

    /// Whether the next step waits for nothing.
    pub(super) fn can_compact(&self) -> bool {
        let compaction = &self.compaction;
        let idle = compaction.victim.as_ref().is_some_and(|victim| victim.reading.is_none());
        idle && compaction.heads_wanted.is_empty()
            && self.extents.copy.as_ref().is_none_or(ExtentCopy::is_over)
            && self.log.pending_bytes() <= PENDING_BYTES_MAX
            && self.log.failure().is_none()
    }

    /// Looks at some more of the victim.
    pub(super) fn step_compaction(&mut self) {
        let mut looked_at = 0;
        while looked_at < STEP_BYTES && self.can_compact() {
            let Some(mut victim) = self.compaction.victim.take() else { return };
            let step = self.step_victim(&mut victim);
            let number = victim.number;
            match step {
                Step::Done(bytes) => looked_at += bytes,
                Step::Wait if std::mem::take(&mut self.compaction.out_of_room) => {
                    return self.give_up(number);
                }
                Step::Wait => {
                    self.compaction.victim = Some(victim);
                    return;
                }
                Step::End => return self.end_victim(number),
                Step::Unfit => return self.give_up(number),
            }
            self.compaction.victim = Some(victim);
        }
    }

    fn end_victim(&mut self, number: SegmentNumber) {
        let slots = self.catalog.segments.get(number).map_or(0, |segment| segment.slots);
        // Whatever the walk did not come across must not be lost with the file.
        if slots == 0 { self.retire(number) } else { self.give_up(number) }
    }

    fn give_up(&mut self, number: SegmentNumber) {
        self.compaction.counters.segments_unfit += 1;
        if let Some(segment) = self.catalog.segments.get_mut(number) {
            segment.state = SegmentState::Unfit;
        }
        self.tell_writable();
    }

    fn step_victim(&mut self, victim: &mut Victim) -> Step {
        let Some(mut frame) = victim.frame else { return self.open_frame(victim) };
        if frame.records_left == 0 {
            victim.frame = None;
            victim.offset = frame.offset + frame.len;
            if self.compaction.heads.len() > HEADS_KEPT_MAX {
                self.compaction.heads.clear();
            }
            return Step::Done(BLOCK_SIZE as u64);
        }
        let Some(bytes) = victim.bytes(frame.offset, frame.len) else { return Step::Unfit };
        let Some(original) = self.original(victim, &frame, bytes) else {
            return Step::Unfit;
        };
        let done = match self.decide(&original) {
            Decision::Wait => {
                self.read_ahead(victim, &frame, bytes);
                return Step::Wait;
            }
            Decision::Unfit => return Step::Unfit,
            Decision::Drop => {
                let is_tombstone = original.header.kind == RecordKind::Tombstone;
                self.compaction.counters.tombstones_dropped += u64::from(is_tombstone);
                self.catalog.discard(&original.header.key, original.place);
                true
            }
            Decision::Copy(touch) => self.copy(&original, touch),
            Decision::CopyTouch(body) => self.copy_touch(&original, &body),
            Decision::Bury => self.bury(&original),
        };
        if !done {
            return Step::Wait;
        }
        let len = original.header.record_len();
        frame.pass(len);
        victim.frame = Some(frame);
        Step::Done(len as u64)
    }

    fn open_frame(&mut self, victim: &mut Victim) -> Step {
        let (id, offset) = (victim.id, victim.offset);
        let torn = self.keeper.manifest().quarantine.iter().find(|range| {
            let here = (range.segment, range.offset) == (id, offset);
            here && range.verdict == Verdict::TailUncertain && range.len > 0
        });
        if let Some(range) = torn {
            victim.offset = range.offset + range.len;
            return Step::Done(BLOCK_SIZE as u64);
        }
        let block = BLOCK_SIZE as u64;
        if offset + block > victim.end {
            return Step::End;
        }
        let Some(head) = victim.bytes(offset, block) else {
            return self.read_window(victim, WINDOW_LEN);
        };
        let seed = Seed { store: self.identity.store, segment: id, offset };
        let Some(fixed) = head.first_chunk() else { return Step::Unfit };
        let header = match FrameHeader::decode(fixed, &seed) {
            Ok(header) => header,
            Err(_) if is_blank(head) => {
                victim.offset += block;
                return Step::Done(block);
            }
            Err(_) => return Step::Unfit,
        };
        let len = u64::from(header.len);
        if offset + len > victim.end {
            return Step::Unfit;
        }
        if header.is_extent {
            return self.step_extent(victim, &seed, len);
        }
        let Some(bytes) = victim.bytes(offset, len) else {
            return self.read_window(victim, len.max(WINDOW_LEN));
        };
        if FrameHeader::payload_checksum(&seed, &bytes[FRAME_HEADER_LEN..]) != header.payload_crc {
            return Step::Unfit;
        }
        let (lsn, records_left) = (header.first_lsn, header.record_count);
        victim.frame = Some(Frame { offset, len, at: FRAME_HEADER_LEN, lsn, records_left });
        Step::Done(0)
    }

    pub(super) fn read_window(&mut self, victim: &mut Victim, len: u64) -> Step {
        let offset = victim.offset;
        let segment = self.catalog.segments.get(victim.number);
        let Some((file, file_len)) = segment.map(|segment| (segment.file, segment.len)) else {
            return Step::Unfit;
        };
        // Nothing behind the last record is of interest.
        let len = len.min(victim.end.min(file_len).saturating_sub(offset));
        let len = usize::try_from(len).expect("a segment fits in memory");
        if len == 0 || victim.window_start == offset && !victim.window.is_empty() {
            // It was read, and there is less than its header said.
            let enough = victim.window.len() >= len;
            if len == 0 || enough {
                return Step::Unfit;
            }
        }
        let number = self.compaction.windows;
        self.compaction.windows += 1;
        victim.reading = Some(number);
        victim.window_start = offset;
        victim.window = IoBuffer::with_capacity(1);
        let buffer = self.buffers.take(len);
        let read = DiskOperation::Read { file, offset, len, buffer };
        self.submit(Source::Window(number), read);
        Step::Wait
    }

    pub(super) fn handle_window(&mut self, number: u64, completion: DiskCompletion) {
        let victim = self.compaction.victim.as_mut();
        let Some(victim) = victim.filter(|victim| victim.reading == Some(number)) else { return };
        victim.reading = None;
        match (completion.result, completion.buffer) {
            (Ok(_), Some(buffer)) => victim.window = buffer,
            _ => {
                let number = victim.number;
                self.compaction.victim = None;
                self.give_up(number);
            }
        }
    }

    fn original<'a>(
        &self,
        victim: &Victim,
        frame: &Frame,
        bytes: &'a [u8],
    ) -> Option<Original<'a>> {
        let offset = frame.offset + frame.at as u64;
        let seed = Seed { store: self.identity.store, segment: victim.id, offset };
        let bytes = bytes.get(frame.at..)?;
        let header = RecordHeader::decode(bytes, &seed).ok()?;
        let value = header.value(bytes).ok()?;
        let offset = u32::try_from(offset).ok()?;
        let location = Location {
            segment: victim.id,
            offset,
            header_len: u32::try_from(header.len()).ok()?,
            value_len: u32::try_from(value.len()).ok()?,
        };
        let place = Place { segment: victim.number, line: offset / LINE_LEN };
        let first_lsn = header.first_lsn.unwrap_or(frame.lsn);
        Some(Original { header, value, location, place, first_lsn })
    }

    fn decide(&self, original: &Original<'_>) -> Decision {
        let Original { header, location, place, .. } = original;
        if header.namespace != Namespace::PLAIN {
            return Decision::Unfit;
        }
        let key = &header.key;
        let own = self.catalog.candidates(key).find(|slot| slot.place == *place);
        if own.is_some_and(|slot| slot.damaged) {
            return Decision::Unfit;
        }
        match header.kind {
            RecordKind::Clear => Decision::Drop,
            RecordKind::Tombstone => self.decide_hiding(original),
            _ if own.is_some_and(|slot| slot.kind == SlotKind::Tombstone) => {
                self.decide_hiding(original)
            }
            RecordKind::Put => {
                let newer = self.newer_slots(key, *place);
                let touched = newer.clone().any(|slot| slot.kind == SlotKind::Touch);
                let sure = own.is_some_and(|slot| !slot.shadowed);
                if !touched && own.is_none() {
                    return self.decide_expired(original, Decision::Drop);
                }
                if !touched && sure {
                    return self.decide_expired(original, Decision::Copy(None));
                }
                match self.newest_of(key, *place) {
                    Newer::Wait => Decision::Wait,
                    Newer::Unfit => Decision::Unfit,
                    Newer::None if own.is_none() => self.decide_expired(original, Decision::Drop),
                    Newer::None => self.decide_expired(original, Decision::Copy(None)),
                    Newer::Same(slot) => match self.touch_at(key, &slot) {
                        Some(found) if found.base != *location => Decision::Drop,
                        Some(found) if found.is_expired(self.now.clock_ms) => Decision::Drop,
                        Some(found) => Decision::Copy(Some(found)),
                        None => Decision::Drop,
                    },
                }
            }
            RecordKind::Touch => {
                let Some(own) = own else {
                    // The value may still be there, with an expiry that is not over.
                    return self.decide_expired(original, Decision::Drop);
                };
                let newest = if own.shadowed { self.newest_of(key, *place) } else { Newer::None };
                match (newest, TouchBody::decode(original.value)) {
                    (Newer::Wait, _) => Decision::Wait,
                    (Newer::Unfit, _) | (_, None) => Decision::Unfit,
                    (Newer::Same(_), _) => Decision::Drop,
                    (Newer::None, Some(body)) => {
                        self.decide_expired(original, Decision::CopyTouch(body))
                    }
                }
            }
        }
    }

    /// An expired record is its own tombstone.
    fn decide_expired(&self, original: &Original<'_>, otherwise: Decision) -> Decision {
        let expiry_ms = original.header.expiry_ms;
        if expiry_ms != 0 && expiry_ms <= self.now.clock_ms {
            self.decide_hiding(original)
        } else {
            otherwise
        }
    }

    /// A record that keeps older ones of its key from coming back.
    fn decide_hiding(&self, original: &Original<'_>) -> Decision {
        let Original { header, place, first_lsn, .. } = original;
        let may_hide = self.catalog.segments.iter().any(|(number, segment)| {
            let older = segment.lsns.is_some_and(|(first, _)| first <= *first_lsn);
            number != place.segment && older
        });
        // What stands behind its slot would come to light: a copy may hide records that are newer
        // than its first LSN, of which nothing else was left in the index when it was made.
        let mut behind =
            self.catalog.candidates(&header.key).skip_while(|slot| slot.place != *place);
        let hides = may_hide || behind.nth(1).is_some();
        if !hides || is_planted(Mutation::TombstoneDroppedEarly) {
            return Decision::Drop;
        }
        match self.newest_of(&header.key, *place) {
            Newer::Wait => Decision::Wait,
            Newer::Unfit => Decision::Unfit,
            // A newer tombstone need not hide as much: it may be a copy of an older one.
            Newer::Same(slot) if slot.kind != SlotKind::Tombstone => Decision::Drop,
            Newer::Same(_) | Newer::None => Decision::Bury,
        }
    }

    /// The slots before the one at `place`; all, if there is none: they are newer then.
    pub(super) fn newer_slots(
        &self,
        key: &Key,
        place: Place,
    ) -> impl Iterator<Item = Slot> + Clone {
        self.catalog.candidates(key).take_while(move |slot| slot.place != place)
    }

    pub(super) fn newest_of(&self, key: &Key, place: Place) -> Newer {
        let mut exact = self.catalog.candidates(key).first_is_exact();
        let mut waits = false;
        for slot in self.newer_slots(key, place) {
            let kin = if std::mem::take(&mut exact) { Kin::Same } else { self.kin(key, &slot) };
            let spot = self.catalog.segments.spot_of(slot.place);
            let known = spot.and_then(|spot| self.compaction.heads.get(&spot));
            match kin {
                Kin::Other | Kin::Older => {}
                Kin::Same if waits => return Newer::Wait,
                Kin::Same if slot.kind == SlotKind::Touch => {
                    return match (self.touch_at(key, &slot), known) {
                        (Some(_), _) => Newer::Same(slot),
                        (None, Some(_)) => Newer::Unfit,
                        (None, None) => Newer::Wait,
                    };
                }
                Kin::Same => return Newer::Same(slot),
                Kin::Unknown if slot.damaged || known.is_some() => return Newer::Unfit,
                Kin::Unknown => waits = true,
            }
        }
        if waits { Newer::Wait } else { Newer::None }
    }

    /// As [`Store::kin_in_memory`], with the headers read for compaction.
    fn kin(&self, key: &Key, slot: &Slot) -> Kin {
        let spot = self.catalog.segments.spot_of(slot.place);
        let head = spot.and_then(|spot| self.compaction.heads.get(&spot)?.as_ref());
        match head {
            Some(head) if head.key == *key => Kin::Same,
            Some(_) => Kin::Other,
            None => self.kin_in_memory(key, slot),
        }
    }

    /// What a touch of the key says, if that is known.
    pub(super) fn touch_at(&self, key: &Key, slot: &Slot) -> Option<Found> {
        if let Some(Recent { known: Known::Present(found), .. }) = self.recents.get(key)
            && found.place == slot.place
        {
            return (found.kind == SlotKind::Touch).then_some(*found);
        }
        let spot = self.catalog.segments.spot_of(slot.place)?;
        let head = self.compaction.heads.get(&spot)?.as_ref()?;
        Some(head.touched(slot.place, head.touch.as_ref()?))
    }

    /// Reads the headers that this record and the next ones of the frame wait for.
    fn read_ahead(&mut self, victim: &Victim, frame: &Frame, bytes: &[u8]) {
        let mut frame = *frame;
        while frame.records_left > 0 && self.compaction.heads_wanted.len() < HEADS_AHEAD_MAX {
            let Some(original) = self.original(victim, &frame, bytes) else { return };
            frame.pass(original.header.record_len());
            if !matches!(self.decide(&original), Decision::Wait) {
                continue;
            }
            let (key, place) = (original.header.key, original.place);
            self.read_newer_heads(key, place);
        }
    }

    pub(super) fn handle_compaction_head(
        &mut self,
        spot: Spot,
        result: Result<Rc<Head>, ReadError>,
    ) {
        self.compaction.heads_wanted.remove(&spot);
        self.compaction.heads.insert(spot, result.ok());
    }

    /// Appends a live put again. False if the log cannot take it now.
    fn copy(&mut self, original: &Original<'_>, touch: Option<Found>) -> bool {
        let Original { header, value, place, location, first_lsn } = *original;
        let key = header.key;
        let (version, expiry_ms) =
            touch.map_or((header.version, header.expiry_ms), |t| (t.version, t.expiry_ms));
        let record = Record { version, expiry_ms, ..header.record(value) };
        // Older touches may be in any segment there is now: with one merged, the record is new.
        let first_lsn = if touch.is_some() { self.log.last_lsn().next() } else { first_lsn };
        let Some(appended) = self.append_copy(&record, first_lsn) else { return false };
        let new = self.place_of(&appended.location);
        let slot = self.slot(new, SlotKind::Put, parts_len(&appended.location), expiry_ms);
        if let Some(touch) = touch {
            self.catalog.expect_no_more(&key, touch.place, touch.expiry_ms);
            self.catalog.expect_no_more(&key, place, touch.expiry_ms);
            self.catalog.discard(&key, touch.place);
        }
        self.catalog.expect_no_more(&key, place, header.expiry_ms);
        if !self.catalog.replace(&key, place, slot) {
            self.catalog.put(&key, slot, &mut |_| Kin::Other);
        }
        self.catalog.expect(&key, new, expiry_ms, self.now.clock_ms);
        let old = Spot::of(&location);
        let cached = self.cache.peek(&old).is_some();
        self.cache.remove(&old);
        let user_key = Bytes::copy_from_slice(header.user_key);
        let record = CachedRecord {
            key,
            location: appended.location,
            lsn: appended.lsn,
            version,
            expiry_ms,
            footprint: user_key.len() + value.len(),
            user_key,
            value: Bytes::copy_from_slice(value),
        };
        let known = Known::Present(super::read::found_in(&record, new));
        self.note_moved(key, &appended, known, Some(record), cached);
        true
    }

    fn copy_touch(&mut self, original: &Original<'_>, body: &TouchBody) -> bool {
        let Original { header, place, first_lsn, .. } = original;
        let (key, expiry_ms) = (header.key, header.expiry_ms);
        let encoded = body.encode();
        let record = bare(RecordKind::Touch, key, header.version, expiry_ms, &encoded);
        let Some(appended) = self.append_copy(&record, *first_lsn) else { return false };
        let new = self.place_of(&appended.location);
        let slot = self.slot(new, SlotKind::Touch, parts_len(&appended.location), expiry_ms);
        self.catalog.expect_no_more(&key, *place, expiry_ms);
        self.catalog.replace(&key, *place, slot);
        self.catalog.expect(&key, new, expiry_ms, self.now.clock_ms);
        let found = Found {
            place: new,
            kind: SlotKind::Touch,
            version: header.version,
            expiry_ms,
            user_key_crc: body.user_key_crc,
            base: body.base,
            base_lsn: body.base_lsn,
        };
        self.note_moved(key, &appended, Known::Present(found), None, false);
        true
    }

    /// Appends a tombstone for a deleted or expired key.
    fn bury(&mut self, original: &Original<'_>) -> bool {
        let Original { header, place, first_lsn, .. } = original;
        let (key, version) = (header.key, header.version);
        let record = bare(RecordKind::Tombstone, key, version, 0, &[]);
        let Some(appended) = self.append_copy(&record, *first_lsn) else { return false };
        let new = self.place_of(&appended.location);
        self.catalog.note_tombstone(new);
        if self.catalog.replace(&key, *place, tombstone(new)) {
            self.note_moved(key, &appended, Known::Absent, None, false);
        }
        true
    }

    pub(super) fn append_copy(&mut self, record: &Record<'_>, first_lsn: Lsn) -> Option<Appended> {
        match self.log.append_copy(record, first_lsn) {
            Ok(appended) => {
                self.idle_since_ns = None;
                self.note_append(&appended);
                self.compaction.counters.bytes_copied += appended.location.record_len();
                Some(appended)
            }
            Err(AppendError::NoSegment { frame_len }) => {
                if self.supply.is_disk_full() {
                    self.compaction.out_of_room = !self.supply.want_reserve(frame_len, 0);
                } else if self.supply.failure().is_none() {
                    self.supply.want(frame_len);
                }
                None
            }
            Err(AppendError::Congested { .. } | AppendError::Failed(_)) => None,
        }
    }

    /// Notes that a key's state stands elsewhere now; answers rest on what they rested on before.
    pub(super) fn note_moved(
        &mut self,
        key: Key,
        appended: &Appended,
        known: Known,
        record: Option<CachedRecord>,
        cached: bool,
    ) {
        self.resolved.remove(&key);
        self.jobs.note_change(&key);
        let observed = self.recents.get(&key).map_or(Lsn::ZERO, |recent| recent.observed);
        let recent = Recent { lsn: appended.lsn, observed, known, record, cached };
        self.recents.note(key, appended.location, recent);
    }
}

/// Fewer sealed segments than this are left alone.
const SEALED_COUNT_MIN: u64 = 4;
