//! What is newer than a record of the victim: read ahead of it, and known.
//!
//! A scout walks the victim's frames ahead of the copier and asks for the headers of newer records
//! whose keys memory does not know, so that the copier finds them there. It believes what it
//! reads: at worst, a header is read for nothing.
//!
//! ```text
//! victim   |....frame....|....frame....|....frame....|....
//!             ^ copier                     ^ scout       ^ the window after this one is read
//!             needs a header: waits        asks for at most HEADS_AHEAD_MAX at once
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use wal::checksum::Place as Seed;
use wal::disk::{BLOCK_SIZE, DiskOperation};
use wal::frame::{FRAME_HEADER_LEN, FrameHeader, is_blank};
use wal::record::{Key, RecordHeader, RecordKind};

use super::super::disk_read::{Head, Target, Waiter};
use super::super::{Source, Store};
use super::{Newer, Victim, WINDOW_LEN};
use crate::catalog::Kin;
use crate::error::ReadError;
use crate::index::{Candidates, Place, Slot, SlotKind};
use crate::knowledge::{Found, Known, Recent};
use crate::segments::{LINE_LEN, Spot};

/// Headers of newer records being read at once.
const HEADS_AHEAD_MAX: usize = 32;
/// Headers read or being read, and not used yet.
const HEADS_KEPT_MAX: usize = 2048;
/// Records that the scout looks at in one turn.
const SCOUTED_RECORDS_MAX: usize = 512;

/// Headers of newer records.
#[derive(Debug, Default)]
pub(super) struct Heads {
    /// `None` where it could not be read.
    known: BTreeMap<Spot, Option<Rc<Head>>>,
    wanted: BTreeSet<Spot>,
    /// Whether the copier waits for one.
    awaited: bool,
}

impl Heads {
    /// Forgets what was read, for another victim.
    pub(super) fn clear(&mut self) {
        self.known.clear();
        self.awaited = false;
    }

    /// Whether the copier can go on, as far as this goes.
    pub(super) fn are_there(&self) -> bool {
        !self.awaited
    }

    /// Forgets what was needed for one record.
    pub(super) fn forget(&mut self, spot: &Spot) {
        self.known.remove(spot);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.known.is_empty()
    }

    fn is_full(&self) -> bool {
        self.known.len() + self.wanted.len() >= HEADS_KEPT_MAX
    }

    /// Notes that a header is to be read, unless it was or is being read.
    fn want(&mut self, spot: Spot) -> bool {
        !self.known.contains_key(&spot) && self.wanted.insert(spot)
    }

    /// Whether one is being read in that segment.
    pub(super) fn is_reading(&self, segment: u64) -> bool {
        let from = Spot { segment, line: 0 };
        self.wanted.range(from..).next().is_some_and(|spot| spot.segment == segment)
    }

    fn get(&self, spot: &Spot) -> Option<&Option<Rc<Head>>> {
        self.known.get(spot)
    }
}

/// How far the victim was looked at beforehand.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Scout {
    /// The frame it is in, or that comes next.
    offset: u64,
    frame_len: u64,
    /// The next record, from the frame's start.
    at: usize,
    records_left: u32,
}

impl Scout {
    fn leave_frame(&mut self) {
        *self = Self { offset: self.offset + self.frame_len, ..Self::default() };
    }
}

impl Store {
    /// Goes on ahead of the copier.
    pub(super) fn scout(&mut self, victim: &mut Victim) {
        for _ in 0..SCOUTED_RECORDS_MAX {
            let heads = &self.compaction.heads;
            if heads.wanted.len() >= HEADS_AHEAD_MAX || heads.is_full() {
                return;
            }
            if victim.scout.offset < victim.offset {
                victim.scout = Scout { offset: victim.offset, ..Scout::default() };
            }
            let done = if victim.scout.records_left == 0 {
                self.scout_frame(victim)
            } else {
                self.scout_record(victim);
                true
            };
            if !done {
                return;
            }
        }
    }

    /// Enters the next frame; false if that is not possible now.
    fn scout_frame(&mut self, victim: &mut Victim) -> bool {
        let (offset, block) = (victim.scout.offset, BLOCK_SIZE as u64);
        if offset + block > victim.end {
            return false;
        }
        let Some(head) = victim.bytes(offset, block) else {
            self.read_window_ahead(victim, WINDOW_LEN);
            return false;
        };
        let seed = Seed { store: self.identity.store, segment: victim.id, offset };
        let header = head.first_chunk().map(|fixed| FrameHeader::decode(fixed, &seed));
        match header {
            Some(Ok(header)) if header.is_extent => {
                victim.scout.offset += u64::from(header.len);
                true
            }
            Some(Ok(header)) if offset + u64::from(header.len) <= victim.end => {
                let len = u64::from(header.len);
                if victim.bytes(offset, len).is_none() {
                    self.read_window_ahead(victim, len.max(WINDOW_LEN));
                    return false;
                }
                let records_left = header.record_count;
                let scout = Scout { offset, frame_len: len, at: FRAME_HEADER_LEN, records_left };
                victim.scout = scout;
                if records_left == 0 {
                    victim.scout.leave_frame();
                }
                true
            }
            Some(Err(_)) if is_blank(head) => {
                victim.scout.offset += block;
                true
            }
            _ => false,
        }
    }

    /// Asks for what the copier will need to know about the next record.
    fn scout_record(&mut self, victim: &mut Victim) {
        let Scout { offset, frame_len, at, .. } = victim.scout;
        let record_offset = offset + at as u64;
        let bytes = victim.bytes(offset, frame_len).and_then(|bytes| bytes.get(at..));
        let seed = Seed { store: self.identity.store, segment: victim.id, offset: record_offset };
        let header = bytes.and_then(|bytes| RecordHeader::decode(bytes, &seed).ok());
        let (Some(header), Ok(offset)) = (header, u32::try_from(record_offset)) else {
            return victim.scout.leave_frame();
        };
        let (key, kind, len) = (header.key, header.kind, header.record_len());
        let place = Place { segment: victim.number, line: offset / LINE_LEN };
        if self.needs_newest(&key, kind, place) {
            self.read_newer_heads(key, place);
        }
        victim.scout.at += len;
        victim.scout.records_left -= 1;
        if victim.scout.records_left == 0 {
            victim.scout.leave_frame();
        }
    }

    /// Whether the newest record of a key must be known to deal with this one, and is not.
    fn needs_newest(&self, key: &Key, kind: RecordKind, place: Place) -> bool {
        let slots = self.catalog.candidates(key);
        let own = { slots }.find(|slot| slot.place == place);
        let needs = match (kind, own) {
            (RecordKind::Clear, _) => false,
            (RecordKind::Tombstone, _) => true,
            (_, Some(own)) if own.shadowed || own.kind == SlotKind::Tombstone => true,
            (RecordKind::Touch, _) => false,
            (RecordKind::Put, _) => {
                let mut newer = self.newer_slots(key, place);
                newer.any(|slot| slot.kind == SlotKind::Touch)
            }
        };
        needs && matches!(self.newest_of(key, place), Newer::Wait)
    }

    /// Reads the window that comes after the one at hand.
    fn read_window_ahead(&mut self, victim: &mut Victim, len: u64) {
        let offset = victim.scout.offset;
        let is_idle = victim.reading.is_none()
            && victim.reading_ahead.is_none()
            && victim.ahead.is_none()
            && offset > victim.offset;
        let file = self.catalog.segments.get(victim.number).map(|segment| segment.file);
        let len = usize::try_from(len.min(victim.end.saturating_sub(offset))).unwrap_or(0);
        if let Some(file) = file.filter(|_| is_idle && len > 0) {
            let number = self.compaction.windows;
            self.compaction.windows += 1;
            victim.reading_ahead = Some((number, offset));
            let buffer = self.buffers.take(len);
            let read = DiskOperation::Read { file, offset, len, buffer };
            self.submit(Source::Window(number), read);
        }
    }

    /// Reads the headers that the copier waits for, if they are not being read already.
    pub(in crate::store) fn await_newer_heads(&mut self, key: Key, place: Place) {
        if self.compaction.heads.is_full() {
            // Headers that nobody asked for since have filled it.
            self.compaction.heads.known.clear();
        }
        self.read_newer_heads(key, place);
        let mut newer = self.newer_slots(&key, place);
        let heads = &self.compaction.heads;
        let spots = &self.catalog.segments;
        let awaited = newer
            .any(|slot| spots.spot_of(slot.place).is_some_and(|spot| heads.wanted.contains(&spot)));
        drop(newer);
        self.compaction.heads.awaited = awaited;
    }

    /// Reads the headers that tell what is newer.
    fn read_newer_heads(&mut self, key: Key, place: Place) {
        let newer: Candidates = self.catalog.candidates(&key);
        for slot in newer.take_while(|slot| slot.place != place) {
            let Some(spot) = self.catalog.segments.spot_of(slot.place) else { continue };
            let is_known = match self.overwriters.is_of(&spot, &key) {
                Some(is_of) => !is_of || slot.kind != SlotKind::Touch,
                None => self.recents.key_at(&spot).is_some(),
            };
            if !is_known && self.compaction.heads.want(spot) {
                self.compaction.counters.heads_read += 1;
                let target = Target::candidate(spot, &slot, false);
                self.read(key, slot.place, target, Waiter::Compaction(spot));
            }
        }
    }

    /// Forgets the headers that were needed for the record at `place`, given its key's slots.
    pub(super) fn forget_heads(&mut self, before: Candidates, place: Place) {
        if self.compaction.heads.is_empty() {
            return;
        }
        for slot in before.take_while(|slot| slot.place != place) {
            if let Some(spot) = self.catalog.segments.spot_of(slot.place) {
                self.compaction.heads.forget(&spot);
            }
        }
    }

    /// The slots before the one at `place`; all, if there is none: they are newer then.
    pub(in crate::store) fn newer_slots(
        &self,
        key: &Key,
        place: Place,
    ) -> impl Iterator<Item = Slot> + Clone {
        self.catalog.candidates(key).take_while(move |slot| slot.place != place)
    }

    pub(in crate::store) fn newest_of(&self, key: &Key, place: Place) -> Newer {
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
    pub(in crate::store) fn touch_at(&self, key: &Key, slot: &Slot) -> Option<Found> {
        if let Some(Recent { known: Known::Present(found), .. }) = self.recents.get(key)
            && found.place == slot.place
        {
            return (found.kind == SlotKind::Touch).then_some(*found);
        }
        let spot = self.catalog.segments.spot_of(slot.place)?;
        let head = self.compaction.heads.get(&spot)?.as_ref()?;
        Some(head.touched(slot.place, head.touch.as_ref()?))
    }

    pub(in crate::store) fn handle_compaction_head(
        &mut self,
        spot: Spot,
        result: Result<Rc<Head>, ReadError>,
    ) {
        let heads = &mut self.compaction.heads;
        heads.wanted.remove(&spot);
        heads.awaited = false;
        heads.known.insert(spot, result.ok());
    }
}
