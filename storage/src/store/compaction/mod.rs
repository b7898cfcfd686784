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

use wal::Lsn;
use wal::checksum::Place as Seed;
use wal::disk::{BLOCK_SIZE, DiskCompletion, DiskOperation, IoBuffer};
use wal::frame::{FRAME_HEADER_LEN, FrameHeader, is_blank};
use wal::manifest::Verdict;
use wal::record::{Location, Namespace, RecordHeader, RecordKind, TouchBody};

use super::compaction_counters::CompactionCounters;
use super::extent_copy::ExtentCopy;
use super::{Source, Store};
use crate::index::{Place, SegmentNumber, Slot, SlotKind};
use crate::knowledge::Found;
use crate::mutation::{Mutation, is_planted};
use crate::segments::{LINE_LEN, SegmentState};

mod choice;
mod copy;
mod heads;
mod pacing;
#[cfg(test)]
mod tests;

use heads::{Heads, Scout};
use pacing::Pacing;

/// A victim is read in pieces of this many bytes. A get that comes meanwhile waits for one.
const WINDOW_LEN: u64 = 256 << 10;
/// Bytes of records that one turn looks at, and records: copying one takes a microsecond or two.
const STEP_BYTES: u64 = 128 << 10;
const STEP_RECORDS_MAX: u64 = 128;
/// Where somebody has asked for something since the last turn, and would wait for the end of this
/// one, it does only this part of it.
const BUSY_SHARE: u64 = 4;
/// Compaction waits while more bytes than this wait for the disk: gets and puts that come
/// meanwhile wait for them (docs/adr/0016).
const PENDING_BYTES_MAX: usize = 256 << 10;
/// Copies go out in frames of this many bytes, unless a command's record goes with them: of small
/// records a turn copies a few blocks, and would leave part of the last one unused.
pub(super) const COPIES_LEN_MIN: usize = 128 << 10;

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
    /// The window after this one, and where it starts.
    ahead: Option<(u64, IoBuffer)>,
    /// Number and start of its read.
    reading_ahead: Option<(u64, u64)>,
    frame: Option<Frame>,
    scout: Scout,
}

impl Victim {
    /// Bytes of a window; `None` if none holds them.
    pub(super) fn bytes(&self, offset: u64, len: u64) -> Option<&[u8]> {
        let of = |start: u64, window: &'_ IoBuffer| -> Option<std::ops::Range<usize>> {
            let from = usize::try_from(offset.checked_sub(start)?).ok()?;
            let range = from..from.checked_add(usize::try_from(len).ok()?)?;
            window.as_slice().get(range.clone()).map(|_| range)
        };
        if let Some(range) = of(self.window_start, &self.window) {
            return self.window.as_slice().get(range);
        }
        let (start, window) = self.ahead.as_ref()?;
        of(*start, window).and_then(|range| window.as_slice().get(range))
    }

    /// Goes on to the window read ahead, once the next frame stands there, or waits for it.
    fn turn_window(&mut self) {
        let offset = self.offset;
        if let Some((start, window)) = self.ahead.take_if(|(start, _)| *start <= offset) {
            (self.window_start, self.window) = (start, window);
        }
    }

    /// Waits for the window read ahead. False if none is.
    fn await_window(&mut self) -> bool {
        let Some((number, start)) = self.reading_ahead.take() else { return false };
        self.reading = Some(number);
        (self.window_start, self.window) = (start, IoBuffer::with_capacity(1));
        true
    }
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
    pacing: Pacing,
    /// When segments that were given up are tried again.
    unfit_retry_at_ns: u64,
    /// No new work until the next write: the store is being shut down.
    paused: bool,
    /// The disk is full, and a copy finds no room even in the reserve.
    out_of_room: bool,
    /// The newest copy found no room yet.
    lacks_room: bool,
    /// Asked for by hand: segments whose last record is not above this are looked at.
    requested_lsn: Option<Lsn>,
    /// Whether anybody has asked the store for something since the last step.
    called: bool,
    heads: Heads,
    pub(super) counters: CompactionCounters,
}

impl Compaction {
    pub(super) fn new(live_segments_min: u64) -> Self {
        Self { pacing: Pacing::new(live_segments_min), ..Self::default() }
    }

    pub(super) fn resume(&mut self) {
        self.paused = false;
    }

    /// Gives the work at hand up; what was copied so far does no harm.
    pub(super) fn pause(&mut self) {
        self.paused = true;
        self.victim = None;
    }

    /// The disk is full, and not even the reserve has room for what is to be copied.
    pub(super) fn note_out_of_room(&mut self) {
        self.out_of_room = true;
    }

    /// Whether more copies will come, whatever becomes of those that were made.
    pub(super) fn goes_on(&self) -> bool {
        self.victim.is_some() && !self.lacks_room
    }

    /// Somebody waits for the end of the turn.
    pub(super) fn note_call(&mut self) {
        self.called = true;
    }

    /// Whether nothing new is to be started before the next write.
    pub(super) fn is_paused(&self) -> bool {
        self.paused
    }

    /// Notes a record that was appended, by a command or as a copy.
    pub(super) fn note_append(&mut self, record_len: u64) {
        self.pacing.note_append(record_len);
    }

    /// Notes what a command has appended.
    pub(super) fn note_put(&mut self, record_len: u64) {
        self.note_call();
        self.pacing.note_put(record_len);
    }

    /// Whether the header of a newer record is being read in that segment.
    pub(super) fn is_reading_head(&self, segment: u64) -> bool {
        self.heads.is_reading(segment)
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

    /// Whether the next step waits for nothing.
    pub(super) fn can_compact(&self) -> bool {
        let compaction = &self.compaction;
        let idle = compaction.victim.as_ref().is_some_and(|victim| victim.reading.is_none());
        idle && compaction.heads.are_there()
            && self.extents.copy.as_ref().is_none_or(ExtentCopy::is_over)
            && self.log.pending_bytes() <= PENDING_BYTES_MAX
            && self.log.failure().is_none()
    }

    /// Looks at some more of the victim.
    pub(super) fn step_compaction(&mut self) {
        if let Some(mut victim) = self.compaction.victim.take() {
            self.scout(&mut victim);
            self.compaction.victim = Some(victim);
        }
        let (mut looked_at, mut steps) = (0, 0);
        let busy = std::mem::take(&mut self.compaction.called);
        let share = if busy { BUSY_SHARE } else { 1 };
        while looked_at < STEP_BYTES / share && steps < STEP_RECORDS_MAX && self.can_compact() {
            let Some(mut victim) = self.compaction.victim.take() else { break };
            let step = self.step_victim(&mut victim);
            let number = victim.number;
            steps += share;
            let goes_on = matches!(step, Step::Done(_));
            match step {
                Step::Done(bytes) => looked_at += bytes,
                Step::Wait if std::mem::take(&mut self.compaction.out_of_room) => {
                    self.give_up(number);
                    break;
                }
                Step::Wait => {}
                Step::End => {
                    self.end_victim(number);
                    break;
                }
                Step::Unfit => {
                    self.give_up(number);
                    break;
                }
            }
            self.compaction.victim = Some(victim);
            if !goes_on {
                break;
            }
        }
        self.compaction.pacing.work_off(looked_at);
        if steps > 0 && self.compaction.victim.is_none() {
            // Without one, puts would not wait in the turn to come, however much is owed.
            self.choose_victim();
        }
        self.let_puts_go_on();
    }

    /// Whether puts wait until compaction has done more: it can, and it is behind.
    pub(super) fn holds_puts_back(&self) -> bool {
        self.compaction.pacing.owes_much()
            && self.compaction.victim.is_some()
            && !self.compaction.paused
            && !self.supply.is_disk_full()
            && self.supply.failure().is_none()
            && self.log.failure().is_none()
    }

    /// Notes that a put was refused for that.
    pub(super) fn note_held_back(&mut self) {
        self.compaction.pacing.refuse(self.now.monotonic_ns);
    }

    /// When puts go on in any case.
    pub(super) fn refused_until_ns(&self) -> Option<u64> {
        self.compaction.pacing.deadline_ns()
    }

    /// Tells writers that were refused when they are not held back any more.
    pub(super) fn let_puts_go_on(&mut self) {
        if self.refused_until_ns().is_some_and(|until_ns| until_ns <= self.now.monotonic_ns) {
            self.compaction.pacing.forgive();
        }
        if self.compaction.pacing.is_refusing()
            && !self.holds_puts_back()
            && self.compaction.pacing.take_refused()
        {
            self.events.push_back(super::Event::Writable);
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
            return Step::Done(BLOCK_SIZE as u64);
        }
        let Some(bytes) = victim.bytes(frame.offset, frame.len) else { return Step::Unfit };
        let Some(original) = self.original(victim, &frame, bytes) else {
            return Step::Unfit;
        };
        let before = self.catalog.candidates(&original.header.key);
        let done = match self.decide(&original) {
            Decision::Wait => {
                let (key, place) = (original.header.key, original.place);
                self.await_newer_heads(key, place);
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
        self.forget_heads(before, original.place);
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
        victim.turn_window();
        if offset + block > victim.end {
            return if victim.await_window() { Step::Wait } else { Step::End };
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
        if victim.reading_ahead.is_some_and(|(_, start)| start <= offset) && victim.await_window() {
            return Step::Wait;
        }
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
        let Some(victim) = victim else { return };
        if let Some((_, start)) = victim.reading_ahead.take_if(|(reading, _)| *reading == number) {
            // If it fails, it is read again when it is needed.
            victim.ahead =
                completion.buffer.filter(|_| completion.result.is_ok()).map(|b| (start, b));
            return;
        }
        if victim.reading != Some(number) {
            return;
        }
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
        // A touch is marked when the value that it names is damaged: it is sound itself.
        if own.is_some_and(|slot| slot.damaged && slot.kind != SlotKind::Touch) {
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
                // The value of a touched key has a slot that is not shadowed, also when the touch
                // has expired and a tombstone has taken its place.
                let touched = newer.clone().any(|slot| slot.kind != SlotKind::Put);
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
                        Some(found) if found.is_expired(self.expiry_clock_ms()) => Decision::Drop,
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
        if expiry_ms != 0 && expiry_ms <= self.expiry_clock_ms() {
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
}
