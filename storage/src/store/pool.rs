//! Files of freed segments, kept to become new ones: they are written through already, so neither
//! zeros nor new blocks are needed.
//!
//! The store offers a segment only when nothing refers to it any more: it is out of the durable
//! manifest, no checkpoint or snapshot has it, no reader uses it, and its file is put aside under
//! another name. The file stays open.

use wal::group_commit::OpenSegment;
use wal::segment::SEGMENT_HEADER_LEN;

/// Most files kept: recycling saves work, a hoard of them would only cost space.
const POOLED_MAX: usize = 2;

/// Freed segments that wait to be used again.
#[derive(Debug, Default)]
pub(super) struct SegmentPool {
    freed: Vec<OpenSegment>,
}

impl SegmentPool {
    /// Takes a freed segment of the regular length. Returns it if it is of no use: the store then
    /// closes and removes it.
    pub(super) fn offer(&mut self, freed: OpenSegment, regular_len: u64) -> Option<OpenSegment> {
        if self.freed.len() < POOLED_MAX && freed.len == regular_len {
            self.freed.push(freed);
            None
        } else {
            Some(freed)
        }
    }

    /// Takes out a segment that holds a frame of `frame_len` bytes.
    pub(super) fn take(&mut self, frame_len: u64) -> Option<OpenSegment> {
        let index = self.position(frame_len)?;
        Some(self.freed.remove(index))
    }

    /// Whether there is a segment that holds a frame of `frame_len` bytes.
    pub(super) fn has(&self, frame_len: u64) -> bool {
        self.position(frame_len).is_some()
    }

    fn position(&self, frame_len: u64) -> Option<usize> {
        self.freed.iter().position(|freed| SEGMENT_HEADER_LEN + frame_len <= freed.len)
    }

    /// Bytes of the files kept.
    pub(super) fn bytes(&self) -> u64 {
        self.freed.iter().map(|freed| freed.len).sum()
    }
}

#[cfg(test)]
mod tests {
    use wal::disk::FileId;

    use super::*;

    #[test]
    fn pool_is_small_and_takes_only_regular_segments() {
        let segment = |id: u32, len| OpenSegment { id: id.into(), file: FileId(id), len };
        let mut pool = SegmentPool::default();
        let short = segment(1, 1 << 20);
        assert_eq!(pool.offer(short, 2 << 20), Some(short));
        for id in 2..4 {
            assert_eq!(pool.offer(segment(id, 2 << 20), 2 << 20), None);
        }
        let third = segment(4, 2 << 20);
        assert_eq!(pool.offer(third, 2 << 20), Some(third));
        assert_eq!(pool.bytes(), 4 << 20);
        assert_eq!(pool.take(2 << 20), None, "a frame needs room beside the header");
        assert_eq!(pool.take((2 << 20) - 4096).map(|segment| segment.id), Some(2));
        assert_eq!(pool.bytes(), 2 << 20);
    }
}
