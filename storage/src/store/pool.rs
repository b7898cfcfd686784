//! Shelved files: written through already, so that a segment made of one takes no space and needs
//! no zeros. Part of them is the reserve of a full disk (ADR 0014).
//!
//! Every new segment comes from here. The store adds a freed segment only when nothing refers to it
//! any more: it is out of the durable manifest, no checkpoint or snapshot has it, no reader uses
//! it. The files stay open, and outlive the process: recovery finds them by their names.

use wal::group_commit::OpenSegment;
use wal::segment::{SEGMENT_HEADER_LEN, Space};

/// Shelved files that no new value ever gets: one for deletes, and one more for compaction alone,
/// which with that much can always copy what is live of a segment.
pub(crate) const RESERVED_COUNT: usize = 2;
/// Most files kept: recycling saves work, a hoard of them would only cost space.
pub(crate) const SHELVED_COUNT_MAX: usize = RESERVED_COUNT + 2;

/// On a full disk, a segment is compacted when this part of it is dead: more than what the frames
/// of its copies waste ([`copies_waste`]), so that each one freed gives more than it took.
pub(super) const FULL_DISK_WORTH: u64 = 16;
/// At most this part of a segment of 1 MiB or more is lost to the ends of frames when it is full of
/// copies ([`super::compaction::COPIES_LEN_MIN`]).
const COPIES_WASTE: u64 = 32;

/// Bytes that copies need beside what they hold, in a segment of `len` bytes.
pub(super) fn copies_waste(len: u64) -> u64 {
    len / if len < 1 << 20 { FULL_DISK_WORTH } else { COPIES_WASTE }
}

/// A shelved file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shelved {
    /// Its file, and the id in its name.
    pub(crate) segment: OpenSegment,
    /// What it holds.
    pub(crate) space: Space,
}

/// Files that wait to become segments.
#[derive(Debug, Default)]
pub(crate) struct SegmentPool {
    shelved: Vec<Shelved>,
}

impl SegmentPool {
    pub(super) fn new(shelved: Vec<Shelved>) -> Self {
        Self { shelved }
    }

    pub(super) fn add(&mut self, shelved: Shelved) {
        self.shelved.push(shelved);
    }

    /// Takes a freed segment: one of the regular length, or a shorter one if the reserve is not
    /// complete. Returns it if it is of no use: the store then closes and removes it.
    pub(super) fn offer(&mut self, freed: OpenSegment, regular_len: u64) -> Option<OpenSegment> {
        let wanted = freed.len <= regular_len && !self.is_reserve_complete()
            || freed.len == regular_len && self.shelved.len() < SHELVED_COUNT_MAX;
        if !wanted {
            return Some(freed);
        }
        self.add(Shelved { segment: freed, space: Space::Reused });
        None
    }

    /// Takes out the shortest file that holds a frame of `frame_len` bytes, if `kept` others stay.
    pub(super) fn take(&mut self, frame_len: u64, kept: usize) -> Option<Shelved> {
        let index = self.index_of(frame_len, kept)?;
        Some(self.shelved.remove(index))
    }

    /// Whether [`SegmentPool::take`] would give one.
    pub(super) fn has(&self, frame_len: u64, kept: usize) -> bool {
        self.index_of(frame_len, kept).is_some()
    }

    fn index_of(&self, frame_len: u64, kept: usize) -> Option<usize> {
        if self.shelved.len() <= kept {
            return None;
        }
        let lens = self.shelved.iter().map(|shelved| shelved.segment.len);
        let fitting = lens.enumerate().filter(|(_, len)| SEGMENT_HEADER_LEN + frame_len <= *len);
        fitting.min_by_key(|(_, len)| *len).map(|(index, _)| index)
    }

    pub(super) fn is_reserve_complete(&self) -> bool {
        self.shelved.len() >= RESERVED_COUNT
    }

    /// Whether there is more than the reserve.
    pub(super) fn has_surplus(&self) -> bool {
        self.shelved.len() > RESERVED_COUNT
    }

    /// Bytes of the files kept.
    pub(super) fn bytes(&self) -> u64 {
        self.shelved.iter().map(|shelved| shelved.segment.len).sum()
    }
}

#[cfg(test)]
mod tests {
    use wal::disk::FileId;

    use super::*;

    fn segment(id: u32, len: u64) -> OpenSegment {
        OpenSegment { id: id.into(), file: FileId(id), len }
    }

    #[test]
    fn short_segments_complete_the_reserve_and_are_of_no_other_use() {
        let mut pool = SegmentPool::default();
        let long = segment(1, 4 << 20);
        assert_eq!(pool.offer(long, 2 << 20), Some(long));
        for id in 2..4 {
            assert!(!pool.is_reserve_complete());
            assert_eq!(pool.offer(segment(id, 1 << 20), 2 << 20), None);
        }
        assert!(pool.is_reserve_complete() && !pool.has_surplus());
        let short = segment(4, 1 << 20);
        assert_eq!(pool.offer(short, 2 << 20), Some(short));
        for id in 5..7 {
            assert_eq!(pool.offer(segment(id, 2 << 20), 2 << 20), None);
        }
        let fifth = segment(7, 2 << 20);
        assert_eq!(pool.offer(fifth, 2 << 20), Some(fifth));
        assert_eq!(pool.bytes(), 6 << 20);
    }

    #[test]
    fn reserve_stays_and_the_shortest_fitting_file_goes_first() {
        let mut pool = SegmentPool::default();
        for (id, len) in [(1, 2 << 20), (2, 1 << 20), (3, 4 << 20)] {
            pool.add(Shelved { segment: segment(id, len), space: Space::Zeroed });
        }
        assert!(
            pool.has_surplus() && !pool.has(4 << 20, 0),
            "a frame needs room beside the header"
        );
        assert_eq!(pool.take(1 << 20, RESERVED_COUNT).map(|shelved| shelved.segment.id), Some(1));
        assert_eq!(pool.take(4096, RESERVED_COUNT), None, "the rest is reserved");
        assert_eq!(pool.take(4096, 1).map(|shelved| shelved.segment.id), Some(2));
        assert_eq!(pool.take(4096, 1), None);
        assert_eq!(pool.take(4096, 0).map(|shelved| shelved.segment.id), Some(3));
    }
}
