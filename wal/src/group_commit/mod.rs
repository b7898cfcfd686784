//! Group commit: records in, frames out, and the LSNs that follow their completions.
//!
//! ```text
//! append -> filling -> ready -> in flight (a few) -> written -> durable, in LSN order
//! ```
//!
//! Two numbers tell how far the log has got. Everything up to `durable_lsn()` survives a crash;
//! frames carry it, so that recovery knows what must be there. Everything up to
//! `acknowledged_lsn()` may be answered for, as [`CommitDurability`] promises; it is never behind.
//!
//! | durability | method | frames are written | synced | acknowledged when |
//! |---|---|---|---|---|
//! | `Always` | `Dsync` | durably | never | their write completed, in LSN order |
//! | `Always` | `SyncPerBatch` | cached | once per batch | the sync completed |
//! | `Interval` | either | cached | every interval | their write completed, in LSN order |
//! | `Os` | either | cached | when a segment is left | their write completed, in LSN order |
//!
//! One frame fills at a time, at a place in the active segment that is fixed when it is opened, so
//! a record's location is known at once. [`GroupCommit::submit`], called when a loop turn ends,
//! closes it if fewer than `frames_in_flight_max` frames are under way; otherwise it goes on
//! filling, and the next batch grows by itself. Frames are written beside each other and may
//! complete in any order; a record counts only when its frame and all before it have completed. No
//! frame goes out to a file while that file is synced.
//!
//! A value that is too large for that is written beside the frames, as an extent, before the record
//! that names it is appended ([`GroupCommit::begin_extent`]).
//!
//! A segment that is left gets a footer ([`crate::footer`]) once all of its frames are durable, and
//! is sealed then ([`GroupCommit::poll_sealed`]); frames leave room for it.
//!
//! A failed write or sync is final: the range is never written again, nothing after it becomes
//! durable, and every later append is refused. What recovery finds of such records is of unknown
//! outcome.

use std::collections::VecDeque;
use std::rc::Rc;

use crate::checksum::{self, Place};
use crate::disk::{
    BLOCK_SIZE, BufferSource, DiskError, DiskErrorKind, DiskOperation, Durability, FileId,
    HeapBuffers, IoBuffer,
};
use crate::frame::{self, FRAME_HEADER_LEN, FrameStamp};
use crate::lsn::Lsn;
use crate::record::{
    Location, Record, RecordHeader, RecordKind, TouchBody, VALUE_CHUNK_LEN, padded_len, told_lsn,
};
use crate::replay::ReplayedRecord;
use crate::segment::SEGMENT_HEADER_LEN;

#[cfg(test)]
mod crash_tests;
#[cfg(test)]
mod durability_tests;
#[cfg(test)]
mod extent_tests;
mod extents;
mod progress;
mod tail;

use extents::Extents;
pub use extents::{Extent, ExtentId};
use progress::{Departure, Progress};
pub use tail::SealedSegment;
use tail::{Sealing, Tail};

/// Most frames that may be under way at once.
pub const FRAMES_IN_FLIGHT_MAX: usize = 4;

/// No shorter value is written as an extent: one that is has chunks.
pub const EXTENT_BYTES_MIN: usize = VALUE_CHUNK_LEN;

/// Buffers kept for reuse.
const BUFFERS_KEPT_MAX: usize = 4;
/// Room a filling frame starts with.
const BUFFER_LEN_MIN: usize = 64 << 10;

/// How frames are made durable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SyncMethod {
    /// Each frame by itself (RWF_DSYNC); right for drives that keep what they have taken.
    #[default]
    Dsync,
    /// The frames of a batch are written, then one sync makes all of them durable; right for
    /// drives where each durable write flushes the whole cache.
    SyncPerBatch,
}

/// What an acknowledgement promises.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CommitDurability {
    /// The record is durable.
    #[default]
    Always,
    /// The record is written, and durable after this many milliseconds or little more.
    Interval {
        /// How long a written record may stay without a sync.
        ms: u32,
    },
    /// The record is written; it is durable once its segment is left.
    Os,
}

/// Limits and promises of a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupCommitLimits {
    /// A frame is closed when the next record would exceed this; a larger one has its own frame.
    pub frame_bytes_max: usize,
    /// Frames under way at once, 1 to [`FRAMES_IN_FLIGHT_MAX`].
    pub frames_in_flight_max: usize,
    /// Bytes of records that are not acknowledged yet; above, appends are refused for the moment.
    pub pending_bytes_max: usize,
    /// Values above this are written as extents, at least [`EXTENT_BYTES_MIN`].
    pub extent_bytes_min: usize,
    /// How frames are made durable.
    pub sync_method: SyncMethod,
    /// What an acknowledgement promises.
    pub durability: CommitDurability,
}

impl Default for GroupCommitLimits {
    fn default() -> Self {
        Self {
            frame_bytes_max: 1 << 20,
            frames_in_flight_max: 2,
            pending_bytes_max: 64 << 20,
            extent_bytes_min: 256 << 10,
            sync_method: SyncMethod::default(),
            durability: CommitDurability::default(),
        }
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
    /// Its number; the record may be acknowledged once `acknowledged_lsn()` has reached it, and
    /// is durable once `durable_lsn()` has.
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
    /// Whose frame it is, if it is an extent's.
    extent: Option<Extent>,
    /// Whether it has a record that is no copy.
    is_awaited: bool,
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
    /// Records appended, copies included.
    pub records: u64,
    /// Records among them that are copies.
    pub copies: u64,
    /// Syncs handed to the disk.
    pub syncs: u64,
    /// Bytes of footers handed to the disk.
    pub footer_bytes: u64,
    /// Extents begun.
    pub extents: u64,
    /// Bytes of extents handed to the disk, their frames excluded.
    pub extent_bytes: u64,
}

/// A frame or footer to be written, or a file of frames to be synced: the caller sends the
/// operation to the disk and returns the completion with [`GroupCommit::handle_written`].
#[derive(Debug)]
pub struct FrameWrite {
    /// Pairs the completion with the operation.
    pub number: u64,
    /// The write or sync.
    pub operation: DiskOperation,
}

/// The appending end of one shard's log.
#[derive(Debug)]
pub struct GroupCommit {
    store: [u8; 16],
    limits: GroupCommitLimits,
    next_lsn: Lsn,
    progress: Progress,
    active: Option<Tail>,
    spares: VecDeque<OpenSegment>,
    sealing: Sealing,
    filling: Option<Filling>,
    ready: VecDeque<Filling>,
    extents: Extents,
    next_number: u64,
    buffers: Vec<IoBuffer>,
    /// A frame of copies alone goes on filling until it has so many bytes.
    copies_held_len: usize,
    /// Room that the next frame of records begins with: what the last one needed, and more.
    usual_len: usize,
    source: Rc<dyn BufferSource>,
    failure: Option<DiskError>,
    counters: GroupCommitCounters,
}

impl GroupCommit {
    /// Goes on with a log whose records up to `durable_lsn` are durable and whose frames have
    /// carried times up to `wall_ms`.
    ///
    /// # Panics
    /// If `frames_in_flight_max` is not 1 to [`FRAMES_IN_FLIGHT_MAX`].
    #[must_use]
    pub fn new(store: [u8; 16], limits: GroupCommitLimits, durable_lsn: Lsn, wall_ms: u64) -> Self {
        let frames = limits.frames_in_flight_max;
        assert!((1..=FRAMES_IN_FLIGHT_MAX).contains(&frames), "{frames} frames in flight");
        let (method, durability) = (limits.sync_method, limits.durability);
        Self {
            store,
            limits,
            next_lsn: durable_lsn.next(),
            progress: Progress::new(method, durability, durable_lsn, wall_ms),
            active: None,
            spares: VecDeque::new(),
            sealing: Sealing::default(),
            filling: None,
            ready: VecDeque::new(),
            extents: Extents::default(),
            next_number: 0,
            buffers: Vec::new(),
            copies_held_len: 0,
            usual_len: 0,
            source: Rc::new(HeapBuffers),
            failure: None,
            counters: GroupCommitCounters::default(),
        }
    }

    /// Takes the memory of frames from `source` instead of the heap.
    #[must_use]
    pub fn with_buffers(mut self, source: Rc<dyn BufferSource>) -> Self {
        self.source = source;
        self
    }

    /// Whether every frame is made durable as soon as it is written.
    #[must_use]
    pub fn syncs_each_frame(&self) -> bool {
        self.limits.durability == CommitDurability::Always
    }

    /// Everything up to here survives a crash.
    #[must_use]
    pub fn durable_lsn(&self) -> Lsn {
        self.progress.durable()
    }

    /// Everything up to here may be acknowledged, as the log's [`CommitDurability`] promises; never
    /// below `durable_lsn()`.
    #[must_use]
    pub fn acknowledged_lsn(&self) -> Lsn {
        self.progress.acknowledged()
    }

    /// When [`GroupCommit::submit`] and [`GroupCommit::poll_write`] are wanted for a sync, in the
    /// milliseconds given to `submit`; only under [`CommitDurability::Interval`].
    #[must_use]
    pub fn sync_due_ms(&self) -> Option<u64> {
        self.progress.sync_due_ms().filter(|_| self.failure.is_none())
    }

    /// Makes everything appended so far durable as soon as it is written, whatever the durability:
    /// for an orderly shutdown or a snapshot.
    pub fn request_sync(&mut self) {
        self.progress.request_sync(self.last_lsn());
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

    /// Bytes of records that are not acknowledged yet.
    #[must_use]
    pub fn pending_bytes(&self) -> usize {
        self.progress.pending_bytes()
    }

    /// Counters since the log was opened.
    #[must_use]
    pub fn counters(&self) -> GroupCommitCounters {
        self.counters
    }

    /// The segment that takes the next frame, and where.
    #[must_use]
    pub fn active(&self) -> Option<(OpenSegment, u64)> {
        self.active.as_ref().map(|tail| (tail.segment, tail.offset))
    }

    /// Bytes that still fit into the active segment and the spares, in the best case.
    #[must_use]
    pub fn room(&self) -> u64 {
        let spare = |spare: &OpenSegment| spare.len.saturating_sub(2 * SEGMENT_HEADER_LEN);
        self.active_room() + self.spares.iter().map(spare).sum::<u64>()
    }

    /// Bytes that still fit into the active segment, in the best case.
    #[must_use]
    pub fn active_room(&self) -> u64 {
        self.active.as_ref().map_or(0, |tail| {
            let filling = self.filling.as_ref().filter(|open| open.segment.id == tail.segment.id);
            let end = filling.map_or(tail.offset, |open| open.offset + open.buffer.len() as u64);
            tail.limit().saturating_sub(end)
        })
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

    /// Leaves the active segment if it has frames: it is sealed once they are durable, and what is
    /// appended next goes to another one. For an orderly shutdown or a snapshot.
    pub fn roll(&mut self) {
        self.close_filling();
        if self.active.as_ref().is_some_and(|tail| !tail.is_empty()) {
            self.leave_active();
        }
    }

    /// Takes a segment that was sealed: its frames and its footer are durable, and it is not
    /// written again.
    pub fn poll_sealed(&mut self) -> Option<SealedSegment> {
        let sealed = self.sealing.poll()?;
        self.progress.release(sealed.segment.id);
        Some(sealed)
    }

    /// As [`GroupCommit::poll_sealed`], for those who do not care what the segment holds.
    pub fn poll_left(&mut self) -> Option<OpenSegment> {
        self.poll_sealed().map(|sealed| sealed.segment)
    }

    /// Appends a record to the filling frame; it goes out after [`GroupCommit::submit`].
    ///
    /// # Errors
    /// [`AppendError`]; the record is then not part of the log.
    pub fn append(&mut self, record: &Record<'_>) -> Result<Appended, AppendError> {
        let told = told_lsn(self.next_lsn, self.next_lsn, record.value.len());
        let lengths = (record.header_len(&self.store, told), record.value.len());
        let appended = self.append_with(lengths, &mut |place, out| {
            record.encode(place, told, out);
        })?;
        if let Some(filling) = &mut self.filling {
            filling.is_awaited = true;
        }
        self.note_record(record, appended.lsn, &appended);
        Ok(appended)
    }

    /// Appends a record that stands for one first logged as `first_lsn`. It has an LSN of its own,
    /// like every record: that is what [`Appended`] tells.
    ///
    /// The value is summed anew; [`GroupCommit::append_copy_of`] keeps the checksums of one that
    /// was read from the disk.
    ///
    /// # Errors
    /// [`AppendError`]; the copy is then not part of the log.
    pub fn append_copy(
        &mut self,
        record: &Record<'_>,
        first_lsn: Lsn,
    ) -> Result<Appended, AppendError> {
        let told = told_lsn(self.next_lsn, first_lsn, record.value.len());
        let lengths = (record.header_len(&self.store, told), record.value.len());
        let appended = self.append_with(lengths, &mut |place, out| {
            record.encode(place, told, out);
        })?;
        self.counters.copies += 1;
        self.note_record(record, first_lsn, &appended);
        Ok(appended)
    }

    /// Appends a copy of a record first logged as `first_lsn` that keeps its value checksums; its
    /// version and expiry are those that `original` has by now. `value` is the original's value,
    /// which the caller has verified ([`RecordHeader::value`]); it is not summed again.
    ///
    /// # Errors
    /// [`AppendError`]; the copy is then not part of the log.
    ///
    /// # Panics
    /// If `value` does not have the length that the header says.
    pub fn append_copy_of(
        &mut self,
        original: &RecordHeader<'_>,
        first_lsn: Lsn,
        value: &[u8],
    ) -> Result<Appended, AppendError> {
        let record = original.record(value);
        let lengths = (record.header_len(&self.store, Some(first_lsn)), value.len());
        let appended = self.append_with(lengths, &mut |place, out| {
            original.encode_copy(value, place, first_lsn, out);
        })?;
        self.counters.copies += 1;
        self.note_record(&record, first_lsn, &appended);
        Ok(appended)
    }

    /// Tells the active segment of its newest record.
    fn note_record(&mut self, record: &Record<'_>, first_lsn: Lsn, appended: &Appended) {
        let tail = self.active.as_mut().expect("a record was appended to the active segment");
        let is_touch = record.kind == RecordKind::Touch;
        let listed = tail.wants_records();
        tail.note_record(&ReplayedRecord {
            kind: record.kind,
            namespace: record.namespace,
            key: record.key,
            user_key_crc: if listed { checksum::plain(record.user_key) } else { 0 },
            version: record.version,
            expiry_ms: record.expiry_ms,
            first_lsn,
            lsn: appended.lsn,
            location: appended.location,
            touch: is_touch.then(|| TouchBody::decode(record.value)).flatten(),
            damaged: false,
        });
    }

    fn append_with(
        &mut self,
        (header_len, value_len): (usize, usize),
        encode: &mut dyn FnMut(&Place, &mut IoBuffer),
    ) -> Result<Appended, AppendError> {
        if let Some(error) = self.failure {
            return Err(AppendError::Failed(error));
        }
        let len = padded_len(header_len + value_len);
        let pending = self.progress.pending_bytes();
        if pending > 0 && pending + len > self.limits.pending_bytes_max {
            return Err(AppendError::Congested { pending });
        }
        self.make_room(len)?;
        let filling = self.filling.as_mut().expect("make_room leaves a frame open");
        let at = filling.offset + filling.buffer.len() as u64;
        let place = Place { store: self.store, segment: filling.segment.id, offset: at };
        let lsn = self.next_lsn;
        encode(&place, &mut filling.buffer);
        filling.record_count += 1;
        self.next_lsn = lsn.next();
        self.progress.add_pending(len);
        self.counters.records += 1;
        let location = Location {
            segment: filling.segment.id,
            offset: u32::try_from(at).expect("segments are at most 256 MiB"),
            header_len: u32::try_from(header_len).expect("headers are far below 4 GiB"),
            value_len: u32::try_from(value_len).expect("values are at most 32 MiB"),
        };
        Ok(Appended { lsn, location })
    }

    /// Opens a frame, or a larger or another one, so that `len` more bytes fit.
    fn make_room(&mut self, len: usize) -> Result<(), AppendError> {
        if let Some(filling) = &mut self.filling {
            let used = filling.buffer.len() + len;
            let limit = self.active.as_ref().map_or(0, Tail::limit);
            let fits = filling.offset + used.next_multiple_of(BLOCK_SIZE) as u64 <= limit;
            if fits && (used <= self.limits.frame_bytes_max || filling.record_count == 0) {
                if used > filling.buffer.capacity() {
                    let room = used.max(self.limits.frame_bytes_max);
                    let mut larger = self.source.take(room);
                    larger.extend_from_slice(filling.buffer.as_slice());
                    filling.buffer = larger;
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
        if let Some(active) = &self.active {
            let offset = open.map_or(active.offset, |(offset, used)| {
                offset + used.next_multiple_of(BLOCK_SIZE) as u64
            });
            if offset + frame_len <= active.limit() {
                return Ok((active.segment, offset));
            }
        }
        let fits = |spare: &OpenSegment| SEGMENT_HEADER_LEN + frame_len <= spare.len;
        let Some(index) = self.spares.iter().position(fits) else {
            return Err(AppendError::NoSegment { frame_len });
        };
        let segment = self.spares.remove(index).expect("position lies within the queue");
        self.close_filling();
        self.leave_active();
        self.active = Some(Tail::new(segment, self.next_lsn, frame_len));
        Ok((segment, SEGMENT_HEADER_LEN))
    }

    fn leave_active(&mut self) {
        if let Some(tail) = self.active.take() {
            self.sealing.leave(tail);
        }
    }

    fn close_filling(&mut self) {
        if let Some(filling) = self.filling.take() {
            let end = filling.offset + filling.buffer.len().next_multiple_of(BLOCK_SIZE) as u64;
            if let Some(active) = &mut self.active
                && active.segment.id == filling.segment.id
            {
                active.offset = end;
            }
            let len = (2 * filling.buffer.len()).next_power_of_two();
            self.usual_len = len.min(self.limits.frame_bytes_max);
            self.ready.push_back(filling);
        }
    }

    fn open_frame(&mut self, segment: OpenSegment, offset: u64, len: usize) {
        let buffer = self.frame_buffer(len.max(BUFFER_LEN_MIN).max(self.usual_len));
        self.filling = Some(Filling {
            segment,
            offset,
            buffer,
            first_lsn: self.next_lsn,
            record_count: 0,
            extent: None,
            is_awaited: false,
        });
    }

    /// Keeps a buffer for reuse; of too many, the larger ones.
    fn keep_buffer(&mut self, buffer: IoBuffer) {
        if buffer.capacity() > 2 * self.limits.frame_bytes_max {
            return;
        }
        self.buffers.push(buffer);
        if self.buffers.len() > BUFFERS_KEPT_MAX {
            let smallest = (0..).zip(&self.buffers).min_by_key(|(_, buffer)| buffer.capacity());
            self.buffers.swap_remove(smallest.map_or(0, |(index, _)| index));
        }
    }

    /// A buffer with room for `room` bytes that holds room for a frame's header.
    fn frame_buffer(&mut self, room: usize) -> IoBuffer {
        let fitting = self.buffers.iter().position(|buffer| buffer.capacity() >= room);
        let mut buffer =
            fitting.map_or_else(|| self.source.take(room), |index| self.buffers.swap_remove(index));
        buffer.set_len(0);
        buffer.extend_from_slice(&[0; FRAME_HEADER_LEN]);
        buffer
    }

    /// Whether nothing is under way and the newest durable frame does not say that everything is
    /// durable: an idle frame would.
    #[must_use]
    pub fn wants_idle_frame(&self) -> bool {
        self.failure.is_none()
            && self.filling.is_none()
            && self.ready.is_empty()
            && self.sealing.is_settled()
            && self.extents.is_settled()
            && self.progress.is_watermark_behind()
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

    /// From now on a frame of copies alone fills until it has `len` bytes: nobody waits for it, and
    /// each frame is padded to a block. With 0 the next [`GroupCommit::submit`] sends it.
    pub fn hold_copies(&mut self, len: usize) {
        self.copies_held_len = len;
    }

    /// Ends a turn: closes the filling frame if it can go out now. `wall_ms` is stamped on frames,
    /// and decides when the next sync is due; a time that goes back counts as the newest before.
    pub fn submit(&mut self, wall_ms: u64) {
        self.progress.set_now(wall_ms);
        let under_way = self.progress.in_flight_count() + self.ready.len();
        // A frame that would have to wait goes on filling instead: it makes a larger batch.
        let held = self.filling.as_ref().is_some_and(|open| {
            let copies = open.record_count > 0 && !open.is_awaited;
            let is_short = open.buffer.len() < self.copies_held_len;
            copies && is_short || self.progress.is_held(open.segment.id)
        });
        if under_way < self.limits.frames_in_flight_max && !held {
            self.close_filling();
        }
    }

    /// Takes the next file to sync, footer, frame or piece of an extent to write, up to the limits
    /// of frames and pieces in flight.
    pub fn poll_write(&mut self) -> Option<FrameWrite> {
        if self.failure.is_some() {
            return None;
        }
        self.seal_left();
        let number = self.next_number;
        let operation = match self.progress.start_sync(number) {
            Some(file) => {
                self.counters.syncs += 1;
                DiskOperation::Sync { file }
            }
            None => match self.write_footer(number) {
                Some(operation) => operation,
                None => self.write_frame(number).or_else(|| self.start_piece(number))?,
            },
        };
        self.next_number += 1;
        Some(FrameWrite { number, operation })
    }

    fn write_frame(&mut self, number: u64) -> Option<DiskOperation> {
        let held = self.progress.is_held(self.ready.front()?.segment.id);
        if held || self.progress.in_flight_count() >= self.limits.frames_in_flight_max {
            return None;
        }
        let Filling { segment, offset, mut buffer, first_lsn, record_count, extent, .. } =
            self.ready.pop_front()?;
        let place = Place { store: self.store, segment: segment.id, offset };
        let (durable_lsn, wall_ms) = (self.progress.durable(), self.progress.now_ms());
        let stamp = FrameStamp { first_lsn, record_count, durable_lsn, wall_ms };
        let len = buffer.len() - FRAME_HEADER_LEN;
        if let Some(extent) = extent {
            self.extents.note_frame(number, extent.id);
            let len = usize::try_from(extent.len).expect("a segment fits in memory");
            frame::finish_extent(&mut buffer, &place, &stamp, len);
        } else {
            frame::finish(&mut buffer, &place, &stamp);
        }
        let tails = self.active.iter_mut().chain(self.sealing.tails_mut());
        if let Some(tail) = tails.into_iter().find(|tail| tail.segment.id == segment.id) {
            let frame_len = extent.map_or(buffer.len() as u64, |extent| extent.len);
            tail.note_frame(offset, frame_len, wall_ms);
            let sum = frame::known_sum(buffer.as_slice(), &place);
            tail.note_bytes(offset, buffer.as_slice(), sum);
        }
        let last_lsn = first_lsn.plus(u64::from(record_count)).before();
        let durably = self
            .progress
            .depart(number, Departure { segment, offset, last_lsn, record_count, len });
        self.counters.frames += 1;
        self.counters.frames_idle += u64::from(record_count == 0 && extent.is_none());
        self.counters.frame_bytes += buffer.len() as u64;
        let durability = if durably { Durability::Durable } else { Durability::Cached };
        Some(DiskOperation::Write { file: segment.file, offset, buffer, durability })
    }

    /// Lets segments that were left be synced for good once their last frames are out.
    fn seal_left(&mut self) {
        for left in self.sealing.tails_mut().map(|tail| tail.segment.id) {
            if !self.ready.iter().any(|frame| frame.segment.id == left) {
                self.progress.seal(left);
            }
        }
    }

    /// Writes the footer of a segment that was left, once its frames are durable.
    fn write_footer(&mut self, number: u64) -> Option<DiskOperation> {
        let (progress, ready, extents) = (&self.progress, &self.ready, &self.extents);
        let is_durable = |id| {
            !progress.holds_any_of(id)
                && !extents.holds_any_of(id)
                && !ready.iter().any(|frame: &Filling| frame.segment.id == id)
        };
        let operation = self.sealing.start_footer(number, self.store, is_durable)?;
        if let DiskOperation::Write { buffer, .. } = &operation {
            self.counters.footer_bytes += buffer.len() as u64;
        }
        Some(operation)
    }

    /// Takes the completion of a write or sync. Returns whether more records may be acknowledged or
    /// are durable now.
    ///
    /// # Panics
    /// If nothing of that number is under way.
    pub fn handle_written(
        &mut self,
        number: u64,
        result: Result<(), DiskError>,
        buffer: Option<IoBuffer>,
    ) -> bool {
        if let Some(buffer) = buffer {
            self.keep_buffer(buffer);
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
            let known = self.progress.abandon(number)
                || self.sealing.owns(number)
                || self.extents.abandon(number);
            assert!(known, "each operation completes once");
            return false;
        }
        if let Some(last_lsn) = self.sealing.arrive(number) {
            self.progress.note_footer(last_lsn);
            return false;
        }
        if self.extents.arrive(number).is_some() {
            return false;
        }
        self.extents.arrive_frame(number);
        self.progress.arrive(number).expect("each operation completes once")
    }

    /// Whether everything appended is durable (under [`CommitDurability::Os`]: written) and nothing
    /// is under way.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        self.failure.is_none()
            && self.filling.is_none()
            && self.ready.is_empty()
            && self.sealing.is_settled()
            && self.extents.is_settled()
            && self.progress.is_settled()
    }
}

#[cfg(test)]
mod tests;
