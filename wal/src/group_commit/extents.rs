//! Extents under way: their place in the log, and their pieces, which go out beside the frames.
//!
//! ```text
//! begin -> frame queued with the others ──────────────> in flight, in their order
//!       -> pieces given, a few at a time -> in flight -> all written, the frame too
//!                                                                    -> told by poll_extent
//! ```
//!
//! The extent's frame takes part in the order of frames: what is behind it is acknowledged only
//! after it, so no frame that counts is ever behind a range that a scan cannot step over. Its
//! pieces do not: frames never wait for them. They are written durably by themselves, whatever the
//! log promises and however it syncs its frames: of two cached writes any may survive, and a record
//! that survives without its value would hide the older one for nothing.

use std::collections::{BTreeMap, VecDeque};

use super::{AppendError, Filling, GroupCommit, OpenSegment};
use crate::checksum::Place;
use crate::disk::{BLOCK_SIZE, DiskOperation, Durability, IoBuffer};
use crate::extent::{EXTENTS_UNDER_WAY_MAX, PIECES_IN_FLIGHT_MAX, RECORD_OFFSET};
use crate::frame::FRAME_HEADER_LEN;

/// Names an extent under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ExtentId(u64);

/// A range reserved for an extent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Its name.
    pub id: ExtentId,
    /// Its segment.
    pub segment: OpenSegment,
    /// Where its frame stands.
    pub offset: u64,
    /// Bytes of it all.
    pub len: u64,
}

impl Extent {
    /// The place of its frame.
    #[must_use]
    pub fn place(&self, store: [u8; 16]) -> Place {
        Place { store, segment: self.segment.id, offset: self.offset }
    }

    /// Where its record stands in the segment.
    #[must_use]
    pub fn record_offset(&self) -> u64 {
        self.offset + RECORD_OFFSET
    }

    /// Bytes of its pieces: all but the frame.
    #[must_use]
    pub fn record_len(&self) -> u64 {
        self.len - RECORD_OFFSET
    }
}

#[derive(Debug)]
struct UnderWay {
    extent: Extent,
    /// Bytes of its frame and pieces that are not written yet.
    left: u64,
}

#[derive(Debug)]
struct Piece {
    extent: ExtentId,
    segment: OpenSegment,
    offset: u64,
    buffer: IoBuffer,
}

/// A piece in flight.
#[derive(Clone, Copy, Debug)]
struct Flight {
    extent: ExtentId,
    len: u64,
}

/// The extents that were begun and are not written yet.
#[derive(Debug, Default)]
pub(super) struct Extents {
    next: u64,
    under_way: Vec<UnderWay>,
    /// Frames of extents in flight.
    frames: Vec<(u64, ExtentId)>,
    queued: VecDeque<Piece>,
    in_flight: BTreeMap<u64, Flight>,
    written: VecDeque<ExtentId>,
}

impl Extents {
    /// Whether nothing is to be written.
    pub(super) fn is_settled(&self) -> bool {
        self.under_way.is_empty()
    }

    /// Whether an extent in the segment is not written yet.
    pub(super) fn holds_any_of(&self, segment: u64) -> bool {
        self.under_way.iter().any(|under_way| under_way.extent.segment.id == segment)
    }

    /// Takes the completion of a piece. `None` if it is of no piece.
    pub(super) fn arrive(&mut self, number: u64) -> Option<()> {
        let Flight { extent, len } = self.in_flight.remove(&number)?;
        self.note_written(extent, len)
    }

    /// Notes that the write of this number is of an extent's frame.
    pub(super) fn note_frame(&mut self, number: u64, extent: ExtentId) {
        self.frames.push((number, extent));
    }

    /// Takes the completion of a frame, if it is an extent's. A record that names an extent whose
    /// frame is missing would name what no scan steps over.
    pub(super) fn arrive_frame(&mut self, number: u64) {
        let index = self.frames.iter().position(|(other, _)| *other == number);
        if let Some(index) = index {
            let (_, extent) = self.frames.swap_remove(index);
            self.note_written(extent, RECORD_OFFSET);
        }
    }

    fn note_written(&mut self, extent: ExtentId, len: u64) -> Option<()> {
        let index = self.under_way.iter().position(|other| other.extent.id == extent)?;
        let under_way = &mut self.under_way[index];
        under_way.left -= len;
        if under_way.left == 0 {
            self.under_way.remove(index);
            self.written.push_back(extent);
        }
        Some(())
    }

    /// Takes the completion of a piece of a log that has failed.
    pub(super) fn abandon(&mut self, number: u64) -> bool {
        self.in_flight.remove(&number).is_some()
    }
}

impl GroupCommit {
    /// Reserves room for an extent whose record takes `record_len` bytes ([`crate::extent`]). The
    /// caller then gives its pieces.
    ///
    /// # Errors
    /// [`AppendError`]; nothing has changed then.
    pub fn begin_extent(&mut self, record_len: usize) -> Result<Extent, AppendError> {
        if let Some(error) = self.failure {
            return Err(AppendError::Failed(error));
        }
        if self.extents.under_way.len() >= EXTENTS_UNDER_WAY_MAX {
            return Err(AppendError::Congested { pending: self.progress.pending_bytes() });
        }
        let left = record_len.next_multiple_of(BLOCK_SIZE) as u64;
        let len = RECORD_OFFSET + left;
        let open = self.filling.as_ref().map(|filling| (filling.offset, filling.buffer.len()));
        let (segment, offset) = self.place_for(len, open)?;
        self.close_filling();
        let buffer = self.frame_buffer(FRAME_HEADER_LEN);
        let extent = Extent { id: ExtentId(self.extents.next), segment, offset, len };
        let (first_lsn, named) = (self.next_lsn, Some(extent));
        let frame = Filling {
            segment,
            offset,
            buffer,
            first_lsn,
            record_count: 0,
            extent: named,
            is_awaited: true,
        };
        self.ready.push_back(frame);
        if let Some(active) = &mut self.active {
            active.offset = offset + len;
        }
        self.extents.next += 1;
        self.extents.under_way.push(UnderWay { extent, left: len });
        self.counters.extents += 1;
        Ok(extent)
    }

    /// How many pieces the log takes now.
    #[must_use]
    pub fn piece_room(&self) -> usize {
        let taken = self.extents.queued.len() + self.extents.in_flight.len();
        if self.failure.is_some() { 0 } else { PIECES_IN_FLIGHT_MAX.saturating_sub(taken) }
    }

    /// Gives a piece of an extent: the bytes of its record from `at` on, in whole blocks, each
    /// piece once.
    ///
    /// # Panics
    /// If the piece is not made of whole blocks or is not within the extent.
    pub fn write_piece(&mut self, extent: &Extent, at: u64, buffer: IoBuffer) {
        let end = at + buffer.len() as u64;
        let whole = at.is_multiple_of(BLOCK_SIZE as u64) && end.is_multiple_of(BLOCK_SIZE as u64);
        assert!(whole && end <= extent.record_len(), "{at} to {end} is no piece of an extent");
        let (segment, offset) = (extent.segment, extent.record_offset() + at);
        self.extents.queued.push_back(Piece { extent: extent.id, segment, offset, buffer });
    }

    /// Where, at `offset` or behind it, the first bytes of the segment stand that are given to the
    /// log and not written yet: a read must end there. Frames and pieces of extents are written in
    /// an order of their own each, so that what is written is not always one range.
    #[must_use]
    pub fn unwritten_from(&self, segment: u64, offset: u64) -> Option<u64> {
        let frames = self.ready.iter().chain(&self.filling);
        let frames = frames.filter(|frame| frame.segment.id == segment).map(|frame| frame.offset);
        let extents = self.extents.under_way.iter().map(|under_way| &under_way.extent);
        let extents = extents.filter(|extent| extent.segment.id == segment);
        let starts = (frames.chain(self.progress.offsets_under_way(segment)))
            .chain(extents.map(Extent::record_offset));
        starts.filter(|start| *start >= offset).min()
    }

    /// Takes an extent all pieces of which are durable: what is appended from now on may rest on
    /// them.
    pub fn poll_extent(&mut self) -> Option<ExtentId> {
        self.extents.written.pop_front().filter(|_| self.failure.is_none())
    }

    pub(super) fn start_piece(&mut self, number: u64) -> Option<DiskOperation> {
        if self.extents.in_flight.len() >= PIECES_IN_FLIGHT_MAX {
            return None;
        }
        let progress = &self.progress;
        let mut queued = self.extents.queued.iter();
        let index = queued.position(|piece| !progress.is_held(piece.segment.id))?;
        let Piece { extent, segment, offset, buffer } = self.extents.queued.remove(index)?;
        let len = buffer.len() as u64;
        self.extents.in_flight.insert(number, Flight { extent, len });
        self.counters.extent_bytes += len;
        let tails = self.active.iter_mut().chain(self.sealing.tails_mut());
        if let Some(tail) = tails.into_iter().find(|tail| tail.segment.id == segment.id) {
            tail.note_bytes(offset, buffer.as_slice(), None);
        }
        let durability = Durability::Durable;
        Some(DiskOperation::Write { file: segment.file, offset, buffer, durability })
    }
}
