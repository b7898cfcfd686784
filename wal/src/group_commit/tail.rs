//! The accounts of a segment under way, and its end: what its footer will say, the room kept for
//! it, and the footer's write once everything before it is durable.
//!
//! ```text
//! active -> left -> last frame out -> durable -> footer written -> sealed
//! ```

use std::collections::{BTreeMap, VecDeque};

use super::OpenSegment;
use crate::checksum::{self, Place, RunningChecksum};
use crate::disk::{BLOCK_SIZE, DiskOperation, Durability};
use crate::footer::{self, FOOTER_SHARE_MAX, FooterTable, SegmentSummary};
use crate::lsn::Lsn;
use crate::replay::ReplayedRecord;
use crate::segment::SEGMENT_HEADER_LEN;

/// A segment that gets no more frames and no footer; it is never written again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SealedSegment {
    /// The segment.
    pub segment: OpenSegment,
    /// What it holds. Its bytes from the second block to `frames_end` have the checksum
    /// `frames_crc`; what follows up to the footer is not defined.
    pub summary: SegmentSummary,
    /// Where its footer starts; `None` if there was no room for one.
    pub footer_offset: Option<u64>,
}

/// What the footer will be.
#[derive(Debug)]
enum FooterPlan {
    /// A table of all records so far.
    Table(FooterTable),
    /// The table would be too large: the trailer alone.
    Trailer,
    /// There is no room even for that.
    None,
}

/// A segment that takes frames, or has taken its last one.
#[derive(Debug)]
pub(super) struct Tail {
    pub(super) segment: OpenSegment,
    /// Where the next frame starts.
    pub(super) offset: u64,
    summary: SegmentSummary,
    /// Checksum of the bytes up to `summed_end`.
    frames_crc: RunningChecksum,
    summed_end: u64,
    /// Lengths and checksums of what went out behind pieces of extents that did not.
    parts: BTreeMap<u64, (u64, u32)>,
    plan: FooterPlan,
}

impl Tail {
    /// Starts a segment whose first frame takes `frame_len` bytes.
    pub(super) fn new(segment: OpenSegment, first_lsn: Lsn, frame_len: u64) -> Self {
        let room = usize::try_from(segment.len / FOOTER_SHARE_MAX).unwrap_or(0);
        let table = FooterTable::with_capacity(room);
        // The footer gives way to a frame that fits only without it.
        let end = SEGMENT_HEADER_LEN + frame_len + table.footer_len_max() as u64;
        Self {
            segment,
            offset: SEGMENT_HEADER_LEN,
            summary: SegmentSummary {
                first_lsn,
                record_count: 0,
                frame_count: 0,
                frames_end: SEGMENT_HEADER_LEN,
                wall_ms: 0,
                frames_crc: 0,
            },
            frames_crc: RunningChecksum::default(),
            summed_end: SEGMENT_HEADER_LEN,
            parts: BTreeMap::new(),
            plan: if end <= segment.len { FooterPlan::Table(table) } else { FooterPlan::None },
        }
    }

    /// Where frames must end, so that the footer has room after one record more.
    pub(super) fn limit(&self) -> u64 {
        let reserve = match &self.plan {
            FooterPlan::Table(table) => table.footer_len_max(),
            FooterPlan::Trailer => footer::footer_len(0),
            FooterPlan::None => 0,
        };
        self.segment.len.saturating_sub(reserve as u64)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.summary.frame_count == 0 && self.offset == SEGMENT_HEADER_LEN
    }

    /// Notes a record that was appended.
    pub(super) fn note_record(&mut self, record: &ReplayedRecord) {
        self.summary.record_count += 1;
        if let FooterPlan::Table(table) = &mut self.plan {
            table.push(record);
            let len = footer::footer_len(table.entries_len()) as u64;
            if len > self.segment.len / FOOTER_SHARE_MAX {
                self.plan = FooterPlan::Trailer;
            }
        }
    }

    /// Whether records are listed one by one.
    pub(super) fn wants_records(&self) -> bool {
        matches!(self.plan, FooterPlan::Table(_))
    }

    /// Notes a frame that goes out. Frames of a segment go out in order.
    pub(super) fn note_frame(&mut self, offset: u64, len: u64, wall_ms: u64) {
        let summary = &mut self.summary;
        debug_assert_eq!(summary.frames_end, offset, "frames stand one after the other");
        summary.frame_count += 1;
        summary.frames_end = offset + len;
        summary.wall_ms = summary.wall_ms.max(wall_ms);
    }

    /// Notes bytes that go out, in whatever order, and their checksum if that is known.
    pub(super) fn note_bytes(&mut self, offset: u64, bytes: &[u8], sum: Option<u32>) {
        let len = bytes.len() as u64;
        if offset > self.summed_end {
            let sum = sum.unwrap_or_else(|| checksum::plain(bytes));
            self.parts.insert(offset, (len, sum));
            return;
        }
        match sum {
            Some(sum) => self.frames_crc.join(sum, len),
            None => self.frames_crc.update(bytes),
        }
        self.summed_end += len;
        while let Some((len, sum)) = self.parts.remove(&self.summed_end) {
            self.frames_crc.join(sum, len);
            self.summed_end += len;
        }
    }

    /// What there is to say once everything is written.
    fn summary(&self) -> SegmentSummary {
        debug_assert_eq!(self.summed_end, self.summary.frames_end, "all of it went out");
        SegmentSummary { frames_crc: self.frames_crc.sum(), ..self.summary }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FooterState {
    Due,
    UnderWay { number: u64 },
}

/// The segments that were left and are not sealed yet, the oldest first.
#[derive(Debug, Default)]
pub(super) struct Sealing {
    left: VecDeque<(Tail, FooterState)>,
    sealed: VecDeque<SealedSegment>,
}

impl Sealing {
    pub(super) fn leave(&mut self, tail: Tail) {
        self.left.push_back((tail, FooterState::Due));
    }

    /// Whether no segment waits for its end.
    pub(super) fn is_settled(&self) -> bool {
        self.left.is_empty()
    }

    pub(super) fn tails_mut(&mut self) -> impl Iterator<Item = &mut Tail> {
        self.left.iter_mut().map(|(tail, _)| tail)
    }

    pub(super) fn poll(&mut self) -> Option<SealedSegment> {
        self.sealed.pop_front()
    }

    /// Moves on the oldest segment, all of whose frames are durable: writes its footer.
    ///
    /// `is_durable` tells whether that is so for a segment.
    pub(super) fn start_footer(
        &mut self,
        number: u64,
        store: [u8; 16],
        is_durable: impl Fn(u64) -> bool,
    ) -> Option<DiskOperation> {
        while let Some((tail, state)) = self.left.front_mut() {
            if *state != FooterState::Due || !is_durable(tail.segment.id) {
                return None;
            }
            let table = match &tail.plan {
                FooterPlan::Table(table) => Some(table),
                FooterPlan::Trailer => None,
                FooterPlan::None => {
                    self.finish_oldest();
                    continue;
                }
            };
            *state = FooterState::UnderWay { number };
            let place = Place { store, segment: tail.segment.id, offset: 0 };
            let (buffer, offset) = footer::encode(&place, tail.segment.len, table, &tail.summary());
            let (file, durability) = (tail.segment.file, Durability::Durable);
            return Some(DiskOperation::Write { file, offset, buffer, durability });
        }
        None
    }

    /// Takes the completion of a footer's write: returns its segment's last LSN, if it is of one.
    pub(super) fn arrive(&mut self, number: u64) -> Option<Lsn> {
        let last_lsn = self.left.front().map(|(tail, _)| tail.summary.last_lsn())?;
        self.owns(number).then(|| {
            self.finish_oldest();
            last_lsn
        })
    }

    /// Whether this number is of a footer's write under way.
    pub(super) fn owns(&self, number: u64) -> bool {
        let state = self.left.front().map(|(_, state)| *state);
        state == Some(FooterState::UnderWay { number })
    }

    fn finish_oldest(&mut self) {
        if let Some((tail, state)) = self.left.pop_front() {
            let entries_len = match &tail.plan {
                FooterPlan::Table(table) => table.entries_len(),
                FooterPlan::Trailer | FooterPlan::None => 0,
            };
            let offset = tail.segment.len - footer::footer_len(entries_len) as u64;
            let footer_offset = (state != FooterState::Due).then_some(offset);
            let (segment, summary) = (tail.segment, tail.summary());
            self.sealed.push_back(SealedSegment { segment, summary, footer_offset });
        }
    }
}

const _: () = assert!(footer::TRAILER_LEN <= BLOCK_SIZE);
