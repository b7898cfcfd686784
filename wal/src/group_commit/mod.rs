//! Group commit: records in, frames out, and the durable LSN that follows their completions.
//!
//! ```text
//! append -> filling -> ready -> in flight (a few) -> durable, in LSN order
//! ```
//!
//! One frame fills at a time, at a place in the active segment that is fixed when it is opened, so
//! a record's location is known at once. [`GroupCommit::submit`], called when a loop turn ends,
//! closes it if fewer than `frames_in_flight_max` frames are under way; otherwise it goes on
//! filling, and the next batch grows by itself. Frames are written beside each other and may
//! complete in any order; a record counts as durable only when its frame and all before it have
//! completed.
//!
//! A failed write is final: the range is never written again, nothing after it becomes durable, and
//! every later append is refused. What recovery finds of such records is of unknown outcome.

use std::collections::VecDeque;

use crate::checksum::Place;
use crate::disk::{
    BLOCK_SIZE, DiskError, DiskErrorKind, DiskOperation, Durability, FileId, IoBuffer,
};
use crate::frame::{self, FRAME_HEADER_LEN, FrameStamp};
use crate::lsn::Lsn;
use crate::record::{Location, Record, header_len};
use crate::segment::SEGMENT_HEADER_LEN;

/// Buffers kept for reuse.
const BUFFERS_KEPT_MAX: usize = 4;
/// Room a filling frame starts with.
const BUFFER_LEN_MIN: usize = 64 << 10;

/// Limits of a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupCommitLimits {
    /// A frame is closed when the next record would take it beyond this; a larger record has a
    /// frame of its own.
    pub frame_bytes_max: usize,
    /// Frames under way at once.
    pub frames_in_flight_max: usize,
    /// Bytes of records that are not durable yet; above, appends are refused for the moment.
    pub pending_bytes_max: usize,
}

impl Default for GroupCommitLimits {
    fn default() -> Self {
        Self { frame_bytes_max: 1 << 20, frames_in_flight_max: 2, pending_bytes_max: 64 << 20 }
    }
}

/// An open segment that can take frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenSegment {
    /// Its id.
    pub id: u64,
    /// Its open file.
    pub file: FileId,
    /// Bytes of the file.
    pub len: u64,
}

/// Why a record was not appended. Nothing has changed then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AppendError {
    /// No prepared segment has room: one that holds a frame of `frame_len` bytes is needed.
    #[error("no segment has room for a frame of {frame_len} bytes")]
    NoSegment {
        /// Bytes of the smallest frame that holds the record.
        frame_len: u64,
    },
    /// Too many bytes wait for the disk; try again after a completion.
    #[error("{pending} bytes wait for the disk")]
    Congested {
        /// Bytes waiting.
        pending: usize,
    },
    /// A write has failed; the log takes no more records.
    #[error("the log has failed: {0}")]
    Failed(#[source] DiskError),
}

/// Where and as what a record was appended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Appended {
    /// Its number; the record is durable once `durable_lsn()` has reached it.
    pub lsn: Lsn,
    /// Where it stands.
    pub location: Location,
}

#[derive(Debug)]
struct Filling {
    segment: OpenSegment,
    offset: u64,
    buffer: IoBuffer,
    first_lsn: Lsn,
    record_count: u32,
}

#[derive(Debug)]
struct InFlight {
    number: u64,
    last_lsn: Lsn,
    watermark: Lsn,
    len: usize,
    done: bool,
}

/// Counters of a log since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GroupCommitCounters {
    /// Frames handed to the disk, idle ones included.
    pub frames: u64,
    /// Idle frames among them.
    pub frames_idle: u64,
    /// Bytes of frames handed to the disk.
    pub frame_bytes: u64,
    /// Records appended.
    pub records: u64,
}

/// A frame to be written: the caller sends the operation to the disk and returns the completion
/// with [`GroupCommit::handle_written`].
#[derive(Debug)]
pub struct FrameWrite {
    /// Pairs the completion with the frame.
    pub number: u64,
    /// The write.
    pub operation: DiskOperation,
}

/// The appending end of one shard's log.
#[derive(Debug)]
pub struct GroupCommit {
    store: [u8; 16],
    limits: GroupCommitLimits,
    next_lsn: Lsn,
    durable_lsn: Lsn,
    /// The durable LSN that the newest durable frame carries.
    watermark: Lsn,
    wall_ms: u64,
    active: Option<(OpenSegment, u64)>,
    spares: VecDeque<OpenSegment>,
    left: VecDeque<OpenSegment>,
    filling: Option<Filling>,
    ready: VecDeque<Filling>,
    in_flight: VecDeque<InFlight>,
    next_number: u64,
    pending_bytes: usize,
    buffers: Vec<IoBuffer>,
    failure: Option<DiskError>,
    counters: GroupCommitCounters,
}

impl GroupCommit {
    /// Goes on with a log whose records up to `durable_lsn` are durable and whose frames have
    /// carried times up to `wall_ms`.
    #[must_use]
    pub fn new(store: [u8; 16], limits: GroupCommitLimits, durable_lsn: Lsn, wall_ms: u64) -> Self {
        Self {
            store,
            limits,
            next_lsn: durable_lsn.next(),
            durable_lsn,
            watermark: durable_lsn,
            wall_ms,
            active: None,
            spares: VecDeque::new(),
            left: VecDeque::new(),
            filling: None,
            ready: VecDeque::new(),
            in_flight: VecDeque::new(),
            next_number: 0,
            pending_bytes: 0,
            buffers: Vec::new(),
            failure: None,
            counters: GroupCommitCounters::default(),
        }
    }

    /// Everything up to here survives a crash.
    #[must_use]
    pub fn durable_lsn(&self) -> Lsn {
        self.durable_lsn
    }

    /// The newest record's number.
    #[must_use]
    pub fn last_lsn(&self) -> Lsn {
        self.next_lsn.before()
    }

    /// Why the log takes no more records, if so.
    #[must_use]
    pub fn failure(&self) -> Option<DiskError> {
        self.failure
    }

    /// Bytes of frames that are not durable yet.
    #[must_use]
    pub fn pending_bytes(&self) -> usize {
        self.pending_bytes
    }

    /// Counters since the log was opened.
    #[must_use]
    pub fn counters(&self) -> GroupCommitCounters {
        self.counters
    }

    /// The segment that takes the next frame, and where.
    #[must_use]
    pub fn active(&self) -> Option<(OpenSegment, u64)> {
        self.active
    }

    /// Bytes that still fit into the active segment and the spares, in the best case.
    #[must_use]
    pub fn room(&self) -> u64 {
        let active = self.active.map_or(0, |(segment, tail)| {
            let filling = self.filling.as_ref().filter(|open| open.segment.id == segment.id);
            let end = filling.map_or(tail, |open| open.offset + open.buffer.len() as u64);
            segment.len.saturating_sub(end)
        });
        active + self.spares.iter().map(|spare| spare.len - SEGMENT_HEADER_LEN).sum::<u64>()
    }

    /// Segments waiting to become active.
    #[must_use]
    pub fn spare_count(&self) -> usize {
        self.spares.len()
    }

    /// Gives the log a prepared segment, which the manifest lists already.
    pub fn add_segment(&mut self, segment: OpenSegment) {
        self.spares.push_back(segment);
    }

    /// Takes a segment that gets no more frames and has none under way.
    pub fn poll_left(&mut self) -> Option<OpenSegment> {
        if self.in_flight.is_empty() && self.ready.is_empty() {
            self.left.pop_front()
        } else {
            None
        }
    }

    /// Appends a record to the filling frame; it becomes durable after [`GroupCommit::submit`].
    ///
    /// # Errors
    /// [`AppendError`]; the record is then not part of the log.
    pub fn append(&mut self, record: &Record<'_>) -> Result<Appended, AppendError> {
        self.append_as(record, None)
    }

    /// Appends a copy of a record that was first logged as `first_lsn`.
    ///
    /// # Errors
    /// [`AppendError`]; the record is then not part of the log.
    pub fn append_copy(
        &mut self,
        record: &Record<'_>,
        first_lsn: Lsn,
    ) -> Result<Appended, AppendError> {
        self.append_as(record, Some(first_lsn))
    }

    fn append_as(
        &mut self,
        record: &Record<'_>,
        first_lsn: Option<Lsn>,
    ) -> Result<Appended, AppendError> {
        if let Some(error) = self.failure {
            return Err(AppendError::Failed(error));
        }
        let len = record.encoded_len();
        let pending = self.pending_bytes;
        if pending > 0 && pending + len > self.limits.pending_bytes_max {
            return Err(AppendError::Congested { pending });
        }
        self.make_room(len)?;
        let filling = self.filling.as_mut().expect("make_room leaves a frame open");
        let at = filling.offset + filling.buffer.len() as u64;
        let place = Place { store: self.store, segment: filling.segment.id, offset: at };
        let lsn = self.next_lsn;
        record.encode(&place, first_lsn.unwrap_or(lsn), &mut filling.buffer);
        filling.record_count += 1;
        self.next_lsn = lsn.next();
        self.pending_bytes += len;
        self.counters.records += 1;
        let header_len = header_len(record.user_key.len(), record.value.len());
        let location = Location {
            segment: filling.segment.id,
            offset: u32::try_from(at).expect("segments are at most 256 MiB"),
            header_len: u32::try_from(header_len).expect("headers are far below 4 GiB"),
            value_len: u32::try_from(record.value.len()).expect("values are at most 32 MiB"),
        };
        Ok(Appended { lsn, location })
    }

    /// Opens a frame, or a larger or another one, so that `len` more bytes fit.
    fn make_room(&mut self, len: usize) -> Result<(), AppendError> {
        if let Some(filling) = &mut self.filling {
            let used = filling.buffer.len() + len;
            let fits =
                used.next_multiple_of(BLOCK_SIZE) as u64 <= filling.segment.len - filling.offset;
            if fits && (used <= self.limits.frame_bytes_max || filling.record_count == 0) {
                if used > filling.buffer.capacity() {
                    let room = used.max(2 * filling.buffer.capacity());
                    let empty = IoBuffer::with_capacity(1);
                    filling.buffer = std::mem::replace(&mut filling.buffer, empty).grown(room);
                }
                return Ok(());
            }
        }
        let frame_len = (FRAME_HEADER_LEN + len).next_multiple_of(BLOCK_SIZE);
        // Nothing may change when there is no room, so look before closing the open frame.
        let open = self.filling.as_ref().map(|filling| (filling.offset, filling.buffer.len()));
        let (segment, offset) = self.place_for(frame_len as u64, open)?;
        self.close_filling();
        self.open_frame(segment, offset, FRAME_HEADER_LEN + len);
        Ok(())
    }

    /// Where a frame of `frame_len` bytes goes after the open one is closed.
    fn place_for(
        &mut self,
        frame_len: u64,
        open: Option<(u64, usize)>,
    ) -> Result<(OpenSegment, u64), AppendError> {
        if let Some((segment, tail)) = self.active {
            let tail = open
                .map_or(tail, |(offset, used)| offset + used.next_multiple_of(BLOCK_SIZE) as u64);
            if tail + frame_len <= segment.len {
                return Ok((segment, tail));
            }
        }
        let fits = |spare: &OpenSegment| SEGMENT_HEADER_LEN + frame_len <= spare.len;
        let Some(index) = self.spares.iter().position(fits) else {
            return Err(AppendError::NoSegment { frame_len });
        };
        let segment = self.spares.remove(index).expect("position lies within the queue");
        self.left.extend(self.active.take().map(|(left, _)| left));
        self.active = Some((segment, SEGMENT_HEADER_LEN));
        Ok((segment, SEGMENT_HEADER_LEN))
    }

    fn close_filling(&mut self) {
        if let Some(filling) = self.filling.take() {
            let end = filling.offset + filling.buffer.len().next_multiple_of(BLOCK_SIZE) as u64;
            if let Some((active, tail)) = &mut self.active
                && active.id == filling.segment.id
            {
                *tail = end;
            }
            self.ready.push_back(filling);
        }
    }

    fn open_frame(&mut self, segment: OpenSegment, offset: u64, len: usize) {
        let room = len.max(BUFFER_LEN_MIN);
        let fitting = self.buffers.iter().position(|buffer| buffer.capacity() >= room);
        let mut buffer = fitting
            .map_or_else(|| IoBuffer::with_capacity(room), |index| self.buffers.swap_remove(index));
        buffer.set_len(0);
        buffer.extend_from_slice(&[0; FRAME_HEADER_LEN]);
        let first_lsn = self.next_lsn;
        self.filling = Some(Filling { segment, offset, buffer, first_lsn, record_count: 0 });
    }

    /// Whether nothing is under way and the newest durable frame does not say that everything is
    /// durable: an idle frame would.
    #[must_use]
    pub fn wants_idle_frame(&self) -> bool {
        self.failure.is_none()
            && self.filling.is_none()
            && self.ready.is_empty()
            && self.in_flight.is_empty()
            && self.watermark < self.durable_lsn
    }

    /// Opens an empty frame that will carry the durable LSN; [`GroupCommit::submit`] sends it.
    ///
    /// Does nothing when no segment has room for it: the next frame will tell as well.
    pub fn open_idle_frame(&mut self) {
        if self.wants_idle_frame()
            && let Ok((segment, offset)) = self.place_for(BLOCK_SIZE as u64, None)
        {
            self.open_frame(segment, offset, FRAME_HEADER_LEN);
        }
    }

    /// Ends a turn: closes the filling frame if it can go out now. `wall_ms` is stamped on frames.
    pub fn submit(&mut self, wall_ms: u64) {
        self.wall_ms = self.wall_ms.max(wall_ms);
        if self.in_flight.len() + self.ready.len() < self.limits.frames_in_flight_max {
            self.close_filling();
        }
    }

    /// Takes the next frame to write, up to the limit of frames in flight.
    pub fn poll_write(&mut self) -> Option<FrameWrite> {
        if self.failure.is_some() || self.in_flight.len() >= self.limits.frames_in_flight_max {
            return None;
        }
        let Filling { segment, offset, mut buffer, first_lsn, record_count } =
            self.ready.pop_front()?;
        let place = Place { store: self.store, segment: segment.id, offset };
        let durable_lsn = self.durable_lsn;
        let stamp = FrameStamp { first_lsn, record_count, durable_lsn, wall_ms: self.wall_ms };
        let records_len = buffer.len() - FRAME_HEADER_LEN;
        frame::finish(&mut buffer, &place, &stamp);
        let number = self.next_number;
        self.next_number += 1;
        let last_lsn = first_lsn.plus(u64::from(record_count)).before();
        let flight =
            InFlight { number, last_lsn, watermark: durable_lsn, len: records_len, done: false };
        self.in_flight.push_back(flight);
        self.counters.frames += 1;
        self.counters.frames_idle += u64::from(record_count == 0);
        self.counters.frame_bytes += buffer.len() as u64;
        let (file, durability) = (segment.file, Durability::Durable);
        let operation = DiskOperation::Write { file, offset, buffer, durability };
        Some(FrameWrite { number, operation })
    }

    /// Takes the completion of a frame's write. Returns whether more records are durable now.
    ///
    /// # Panics
    /// If no frame of that number is in flight.
    pub fn handle_written(
        &mut self,
        number: u64,
        result: Result<(), DiskError>,
        buffer: Option<IoBuffer>,
    ) -> bool {
        let flight = self.in_flight.iter_mut().find(|flight| flight.number == number);
        flight.expect("each frame completes once").done = true;
        if let Some(buffer) = buffer
            && self.buffers.len() < BUFFERS_KEPT_MAX
            && buffer.capacity() <= 2 * self.limits.frame_bytes_max
        {
            self.buffers.push(buffer);
        }
        if let Err(error) = result {
            let refused = DiskError { kind: DiskErrorKind::Io, code: error.code };
            self.failure.get_or_insert(if error.kind == DiskErrorKind::NoSpace {
                // Segments are written full beforehand, so this is no plain "disk full".
                refused
            } else {
                error
            });
        }
        if self.failure.is_some() {
            return false;
        }
        let before = self.durable_lsn;
        while let Some(flight) = self.in_flight.pop_front_if(|flight| flight.done) {
            self.durable_lsn = flight.last_lsn;
            self.watermark = flight.watermark;
            self.pending_bytes -= flight.len;
        }
        self.durable_lsn > before
    }

    /// Whether everything appended is durable and nothing is under way.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        self.filling.is_none() && self.ready.is_empty() && self.in_flight.is_empty()
    }
}

#[cfg(test)]
mod tests;
