//! An extent that compaction moves: read and written a piece at a time.
//!
//! ```text
//! room reserved -> first piece read and kept -> each next one: read, summed, written
//!     -> sums right -> first piece written, its header for the new place -> written
//! ```
//!
//! If the value turns out to be damaged, or cannot be read, what is left of the new extent is
//! filled with zeros: it holds no record then, and the segment's bytes are known all the same.

use wal::disk::{BLOCK_SIZE, DiskCompletion, DiskOperation, FileId, IoBuffer};
use wal::extent::{self, ChunkSums, PIECE_LEN};
use wal::group_commit::{Extent, ExtentId};
use wal::record::Location;

use super::extent::Purpose;
use super::{Source, Store};
use crate::error::WriteError;
use crate::segments::Spot;

/// How far a copy has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Copied {
    /// It goes on by itself.
    UnderWay,
    /// The value stands here, too.
    At(Location),
    /// It cannot be read.
    Failed,
}

#[derive(Debug)]
enum Step {
    /// The piece at `next` is to be read.
    Due,
    /// It is being read, as this.
    Reading(u64),
    /// It is to be written.
    Ready(IoBuffer),
    /// Everything was given to the log.
    Given,
    Written,
}

/// A copy of an extent.
#[derive(Debug)]
pub(super) struct ExtentCopy {
    from: Location,
    file: FileId,
    to: Extent,
    /// The first piece, once it was read.
    first: Option<IoBuffer>,
    sums: ChunkSums,
    /// The piece at hand, from the record's start.
    next: u64,
    step: Step,
    failed: bool,
}

impl ExtentCopy {
    pub(super) fn holds(&self, segment: u64) -> bool {
        self.to.segment.id == segment
    }

    pub(super) fn is_reading(&self, segment: u64) -> bool {
        self.from.segment == segment && matches!(self.step, Step::Reading(_))
    }

    /// Whether it waits for nothing but being taken.
    pub(super) fn is_over(&self) -> bool {
        matches!(self.step, Step::Written)
    }

    /// Notes that an extent is written; false if it is another one.
    pub(super) fn end(&mut self, id: ExtentId) -> bool {
        let is_it = self.to.id == id;
        if is_it {
            self.step = Step::Written;
        }
        is_it
    }

    fn len(&self) -> u64 {
        self.to.record_len()
    }

    fn piece_len(&self) -> usize {
        usize::try_from((self.len() - self.next).min(PIECE_LEN as u64)).expect("pieces are small")
    }

    /// Takes a piece that was read; false if it is not what it must be.
    fn take(&mut self, store: [u8; 16], piece: IoBuffer) -> bool {
        if piece.len() != self.piece_len() {
            return false;
        }
        let start = self.next;
        let (from, to) = (u64::from(self.from.header_len), self.value_end());
        let range = |at: u64| {
            let at = at.saturating_sub(start).min(piece.len() as u64);
            usize::try_from(at).expect("pieces are small")
        };
        self.sums.update(&piece.as_slice()[range(from)..range(to)]);
        if start > 0 {
            self.step = Step::Ready(piece);
            return true;
        }
        let sound = extent::record_header(piece.as_slice(), &self.source(store)).is_some();
        self.first = Some(piece);
        self.next = PIECE_LEN as u64;
        self.step = Step::Due;
        sound
    }

    fn value_end(&self) -> u64 {
        u64::from(self.from.header_len) + u64::from(self.from.value_len)
    }

    /// The place of the original.
    fn source(&self, store: [u8; 16]) -> wal::checksum::Place {
        let offset = u64::from(self.from.offset) - extent::RECORD_OFFSET;
        wal::checksum::Place { store, segment: self.from.segment, offset }
    }

    /// The first piece as it is to be written; `None` if the value is not what it was.
    fn first_piece(&mut self, store: [u8; 16]) -> Option<IoBuffer> {
        let mut first = self.first.take()?;
        let header = extent::record_header(first.as_slice(), &self.source(store))?;
        let sums = std::mem::take(&mut self.sums).finish();
        if !header.chunk_sums().eq(sums) {
            return None;
        }
        let place = self.to.place(store).at(self.to.record_offset());
        let mut copy = IoBuffer::with_capacity(header.len());
        header.encode_header_copy(&place, &mut copy);
        let len = copy.len();
        first.as_mut_slice().get_mut(..len)?.copy_from_slice(copy.as_slice());
        Some(first)
    }
}

impl Store {
    /// Goes on with the copy of the extent whose record stands at `from`, or begins it; `None` if
    /// there is no room for it now.
    pub(super) fn copy_of_extent(&mut self, from: &Location) -> Option<Copied> {
        if let Some(copy) = &self.extents.copy
            && copy.from != *from
        {
            // Of a victim that was given up meanwhile.
            if !copy.is_over() {
                return None;
            }
            self.extents.copy = None;
        }
        if let Some(copy) = &self.extents.copy {
            return Some(match copy.step {
                Step::Written if copy.failed => Copied::Failed,
                Step::Written => Copied::At(Location {
                    segment: copy.to.segment.id,
                    offset: u32::try_from(copy.to.record_offset()).ok()?,
                    ..*from
                }),
                _ => Copied::UnderWay,
            });
        }
        let value_len = from.header_len as usize + from.value_len as usize;
        let record_len = value_len.next_multiple_of(BLOCK_SIZE);
        let spot = Spot::of(from);
        let file = self.catalog.segments.by_id(spot.segment)?.file;
        let begun = self.begin_extent(record_len, Purpose::Copy);
        if matches!(begun, Err(WriteError::DiskFull)) {
            self.compaction.note_out_of_room();
        }
        let to = begun.ok()??;
        self.extents.copy = Some(ExtentCopy {
            from: *from,
            file,
            to,
            first: None,
            sums: ChunkSums::default(),
            next: 0,
            step: Step::Due,
            failed: false,
        });
        self.pump_copy();
        Some(Copied::UnderWay)
    }

    /// Goes on with the copy under way as far as the disk lets it.
    pub(super) fn pump_copy(&mut self) {
        // Each round gives or asks for one piece.
        while let Some(mut copy) = self.extents.copy.take() {
            let goes_on = self.step_copy(&mut copy);
            self.extents.copy = Some(copy);
            if !goes_on {
                return;
            }
        }
    }

    fn step_copy(&mut self, copy: &mut ExtentCopy) -> bool {
        if matches!(copy.step, Step::Reading(_) | Step::Given | Step::Written) {
            return false;
        }
        let has_room = self.log.piece_room() > 0;
        let at_end = copy.next >= copy.len();
        let reads = matches!(copy.step, Step::Due) && !at_end && !copy.failed;
        if !reads && !has_room {
            return false;
        }
        if reads {
            self.read_for_copy(copy);
            return false;
        }
        if at_end {
            let store = self.identity.store;
            let sound = if copy.failed { None } else { copy.first_piece(store) };
            copy.failed |= sound.is_none();
            let len = usize::try_from(copy.len()).expect("values are small").min(PIECE_LEN);
            let first = sound.unwrap_or_else(|| IoBuffer::zeroed(len));
            self.log.write_piece(&copy.to, 0, first);
            copy.step = Step::Given;
            return false;
        }
        let zeros = copy.piece_len();
        let piece = match std::mem::replace(&mut copy.step, Step::Due) {
            Step::Ready(piece) => piece,
            _ => IoBuffer::zeroed(zeros),
        };
        let len = piece.len() as u64;
        self.log.write_piece(&copy.to, copy.next, piece);
        copy.next += len;
        true
    }

    fn read_for_copy(&mut self, copy: &mut ExtentCopy) {
        let number = self.extents.reads;
        self.extents.reads += 1;
        let len = copy.piece_len();
        let buffer = self.buffers.take(len);
        let offset = u64::from(copy.from.offset) + copy.next;
        let read = DiskOperation::Read { file: copy.file, offset, len, buffer };
        self.submit(Source::Extent(number), read);
        copy.step = Step::Reading(number);
    }

    pub(super) fn handle_copy_read(&mut self, number: u64, completion: DiskCompletion) {
        let store = self.identity.store;
        let Some(copy) = &mut self.extents.copy else { return };
        if !matches!(copy.step, Step::Reading(reading) if reading == number) {
            return;
        }
        let read = completion.result.ok().and(completion.buffer);
        if !read.is_some_and(|piece| copy.take(store, piece)) {
            copy.failed = true;
            // The first piece comes last whatever it holds.
            copy.next = copy.next.max(PIECE_LEN as u64);
            copy.step = Step::Due;
        }
        self.pump_copy();
    }
}
