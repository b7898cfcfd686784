//! The segments of a shard: their dense numbers, their files, and what of them is live.

use std::collections::{BTreeMap, VecDeque};

use wal::Lsn;
use wal::disk::{BLOCK_SIZE, FileId};
use wal::group_commit::OpenSegment;
use wal::record::Location;
use wal::segment::SEGMENT_HEADER_LEN;

use crate::index::{Place, SegmentNumber, Slot, SlotKind};

/// Bytes of a line: a record's place names the line it starts in.
pub(crate) const LINE_LEN: u32 = 64;

/// A place that is never used again: by the segment's id, not by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Spot {
    pub(crate) segment: u64,
    pub(crate) line: u32,
}

impl Spot {
    pub(crate) fn of(location: &Location) -> Self {
        Self { segment: location.segment, line: location.offset / LINE_LEN }
    }
}

/// Whether a segment's bytes may still change, and whether it can be given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SegmentState {
    /// A spare, or the one that takes frames, or one whose frames are under way.
    Open,
    /// Gets no more frames.
    Sealed,
    /// Sealed, and compaction could not make out all of it.
    Unfit,
    /// All that was live is elsewhere; it goes when its readers and the manifest let it.
    Retiring,
}

/// One segment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Segment {
    pub(crate) id: u64,
    pub(crate) file: FileId,
    /// Bytes of the file.
    pub(crate) len: u64,
    /// Where its last record's frame ends.
    pub(crate) end: u64,
    pub(crate) state: SegmentState,
    /// First and last record.
    pub(crate) lsns: Option<(Lsn, Lsn)>,
    /// Slots of the index that name it, of any kind.
    pub(crate) slots: u64,
    /// Bytes of records that are their key's newest, by size class.
    pub(crate) live_bytes: u64,
    /// Bytes of records that keep older ones from coming back.
    pub(crate) tombstone_bytes: u64,
    pub(crate) has_clear: bool,
    /// Whether a start found it: what its frames were may be damaged or torn.
    pub(crate) was_found: bool,
    /// Whether a start found it in use: what is behind its end was not too short for a record.
    pub(crate) was_cut_short: bool,
}

impl Segment {
    pub(crate) fn new(open: OpenSegment, state: SegmentState) -> Self {
        Self {
            id: open.id,
            file: open.file,
            len: open.len,
            end: 0,
            state,
            lsns: None,
            slots: 0,
            live_bytes: 0,
            tombstone_bytes: 0,
            has_clear: false,
            was_found: false,
            was_cut_short: false,
        }
    }

    /// Notes that room up to `end` was reserved for an extent.
    pub(crate) fn note_extent(&mut self, end: u64) {
        self.end = self.end.max(end);
    }

    /// Bytes that something could be in. Room at its end is none of them where that is less than
    /// half of it: the next extent did not fit there, and would not if it were moved.
    pub(crate) fn used(&self) -> u64 {
        let is_left_over = self.end > self.len / 2 && !self.was_cut_short;
        let end = if is_left_over { self.end } else { self.len };
        end.saturating_sub(SEGMENT_HEADER_LEN)
    }

    /// Notes that a record of `len` bytes at `offset` was appended as `lsn`.
    pub(crate) fn note_append(&mut self, lsn: Lsn, offset: u64, len: u64) {
        self.end = self.end.max((offset + len).next_multiple_of(BLOCK_SIZE as u64));
        self.lsns = Some((self.lsns.map_or(lsn, |(first, _)| first), lsn));
    }
}

/// All segments, by number and by id.
#[derive(Debug, Default)]
pub(crate) struct Segments {
    table: Vec<Option<Segment>>,
    by_id: BTreeMap<u64, SegmentNumber>,
    /// Numbers to use again, those free for longest first.
    free: VecDeque<SegmentNumber>,
    /// Numbers that the newest durable checkpoint may name; those free for longest first.
    resting: VecDeque<SegmentNumber>,
    /// Whether freed numbers rest.
    rests: bool,
    /// The last one asked for by id.
    last: Option<(u64, SegmentNumber)>,
}

impl Segments {
    /// Whether another one can be numbered.
    pub(crate) fn has_room(&self) -> bool {
        let unused = self.free.len() + self.resting.len();
        unused > 0 || self.table.len() < SegmentNumber::COUNT
    }

    /// Gives a segment the number it had, that of no other one; [`Self::find_unused`] comes before
    /// other segments are added.
    pub(crate) fn add_as(&mut self, number: SegmentNumber, segment: Segment) {
        let at = usize::from(number.0);
        self.table.resize(self.table.len().max(at + 1), None);
        self.by_id.insert(segment.id, number);
        self.table[at] = Some(segment);
    }

    /// Finds out which numbers are not in use, after some were given by [`Self::add_as`].
    pub(crate) fn find_unused(&mut self) {
        let numbers = (0u16..).map(SegmentNumber).zip(&self.table);
        self.free = numbers.filter(|(_, s)| s.is_none()).map(|(number, _)| number).collect();
    }

    /// How many freed numbers wait for a newer checkpoint. From the first on they do.
    pub(crate) fn resting(&mut self) -> usize {
        self.rests = true;
        self.resting.len()
    }

    /// Lets the oldest `count` of them be used again.
    pub(crate) fn wake(&mut self, count: usize) {
        let count = count.min(self.resting.len());
        self.free.extend(self.resting.drain(..count));
    }

    /// Marks the segments that a start has found, and the one with the newest record as that which
    /// was in use when the store was closed or killed.
    pub(crate) fn note_start(&mut self) {
        self.iter_mut().for_each(|segment| segment.was_found = true);
        let last = |segment: &&mut Segment| segment.lsns.map(|(_, last)| last);
        if let Some(newest) = self.iter_mut().max_by_key(last) {
            newest.was_cut_short = true;
        }
    }

    /// Numbers a segment; `None` when all numbers are in use.
    pub(crate) fn add(&mut self, segment: Segment) -> Option<SegmentNumber> {
        let number = match self.free.pop_front() {
            Some(number) => number,
            None if self.table.len() < SegmentNumber::COUNT => {
                let number = u16::try_from(self.table.len()).expect("numbers are below 2^14");
                self.table.push(None);
                SegmentNumber(number)
            }
            // A checkpoint tells its numbers' segments by id: no slot is ever taken for another's.
            None => self.resting.pop_front()?,
        };
        self.by_id.insert(segment.id, number);
        self.table[usize::from(number.0)] = Some(segment);
        Some(number)
    }

    pub(crate) fn remove(&mut self, number: SegmentNumber) -> Option<Segment> {
        let segment = self.table.get_mut(usize::from(number.0))?.take()?;
        self.by_id.remove(&segment.id);
        let unused = if self.rests { &mut self.resting } else { &mut self.free };
        unused.push_back(number);
        self.last = None;
        Some(segment)
    }

    pub(crate) fn number_of(&self, id: u64) -> Option<SegmentNumber> {
        match self.last {
            Some((last, number)) if last == id => Some(number),
            _ => self.by_id.get(&id).copied(),
        }
    }

    pub(crate) fn get(&self, number: SegmentNumber) -> Option<&Segment> {
        self.table.get(usize::from(number.0))?.as_ref()
    }

    pub(crate) fn get_mut(&mut self, number: SegmentNumber) -> Option<&mut Segment> {
        self.table.get_mut(usize::from(number.0))?.as_mut()
    }

    pub(crate) fn by_id(&self, id: u64) -> Option<&Segment> {
        self.get(self.number_of(id)?)
    }

    pub(crate) fn by_id_mut(&mut self, id: u64) -> Option<&mut Segment> {
        let number = self.number_of(id)?;
        self.last = Some((id, number));
        self.get_mut(number)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (SegmentNumber, &Segment)> {
        let numbered = (0u16..).zip(&self.table);
        numbered.filter_map(|(number, segment)| Some((SegmentNumber(number), segment.as_ref()?)))
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Segment> {
        self.table.iter_mut().flatten()
    }

    /// The place of a record; `None` if its segment is gone or ends before it.
    pub(crate) fn place_of(&self, location: &Location) -> Option<Place> {
        let segment = self.number_of(location.segment)?;
        let is_inside = u64::from(location.offset) < self.get(segment)?.len;
        is_inside.then_some(Place { segment, line: location.offset / LINE_LEN })
    }

    /// Where a place is, for good.
    pub(crate) fn spot_of(&self, place: Place) -> Option<Spot> {
        Some(Spot { segment: self.get(place.segment)?.id, line: place.line })
    }

    pub(crate) fn count_in(&mut self, slot: &Slot) {
        if let Some(segment) = self.get_mut(slot.place.segment) {
            segment.slots += 1;
            segment.live_bytes += live_bytes(slot);
        }
    }

    pub(crate) fn count_out(&mut self, slot: &Slot) {
        if let Some(segment) = self.get_mut(slot.place.segment) {
            segment.slots -= 1;
            segment.live_bytes -= live_bytes(slot);
        }
    }
}

fn live_bytes(slot: &Slot) -> u64 {
    if slot.shadowed || slot.kind == SlotKind::Tombstone { 0 } else { slot.size_class.bytes() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(id: u32, end: u64, lsn: u64) -> Segment {
        let open = OpenSegment { id: id.into(), file: FileId(id), len: 1 << 20 };
        let lsns = Some((Lsn(lsn), Lsn(lsn + 9)));
        Segment { end, lsns, ..Segment::new(open, SegmentState::Sealed) }
    }

    /// A start leaves the segment that was in use, however much room it has: that can be had back.
    #[test]
    fn room_behind_the_end_is_used_but_where_a_start_cut_the_segment_short() {
        let mut segments = Segments::default();
        for (id, end, lsn) in [(1, 600 << 10, 11), (2, 600 << 10, 31), (3, 100 << 10, 21)] {
            segments.add(segment(id, end, lsn));
        }
        segments.note_start();
        let used = |id| segments.by_id(id).map(|segment| segment.used() + SEGMENT_HEADER_LEN);
        assert_eq!([used(1), used(2), used(3)], [Some(600 << 10), Some(1 << 20), Some(1 << 20)]);
    }
}
