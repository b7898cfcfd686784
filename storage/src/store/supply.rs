//! Segments prepared ahead: one spare, made and listed in the manifest before the log needs it.
//!
//! A spare is the file of a freed segment if there is one ([`SegmentPool`]); else it is written
//! full of zeros, paced ([`Pace`]) unless a writer waits for it.

use wal::disk::{DiskCompletion, DiskError, DiskErrorKind, DiskRequest, FileId, FileName};
use wal::group_commit::OpenSegment;
use wal::manifest::{self, Manifest, SaveError, SegmentEntry};
use wal::procedure::Procedure;
use wal::segment::{self, SegmentHeader};

use super::pace::Pace;
use super::pool::SegmentPool;
use crate::clock::Now;
use crate::recovery::MANIFEST_FILES;

/// After a full disk or another error, preparing is tried again this many nanoseconds later.
const RETRY_AFTER_NS: u64 = 1_000_000_000;

type Prepared = Result<(OpenSegment, Manifest), PrepareError>;

#[derive(Clone, Copy)]
enum PrepareError {
    Segment(DiskError),
    Manifest(SaveError),
}

/// Makes the log's next segment.
pub(super) struct SegmentSupply {
    directory: FileName,
    manifest: Manifest,
    /// The manifest copy to overwrite first: after a failure the other one is the whole one.
    older_copy: usize,
    segment_bytes: u64,
    next_file: FileId,
    last_len: u64,
    /// A frame of this size waits for a segment; 0 if none does.
    wanted_frame_len: u64,
    preparing: Option<Procedure<Prepared>>,
    /// A request that waits for its turn.
    held: Option<DiskRequest>,
    pace: Pace,
    pool: SegmentPool,
    prepared: Option<OpenSegment>,
    failure: Option<Failure>,
    refusal: bool,
}

#[derive(Clone, Copy)]
struct Failure {
    error: DiskError,
    retry_at_ns: u64,
}

impl SegmentSupply {
    pub(super) fn new(
        directory: FileName,
        manifest: Manifest,
        segment_bytes: u64,
        next_file: FileId,
        last_len: u64,
    ) -> Self {
        Self {
            directory,
            manifest,
            older_copy: 0,
            segment_bytes,
            next_file,
            last_len,
            wanted_frame_len: 0,
            preparing: None,
            held: None,
            pace: Pace::default(),
            pool: SegmentPool::default(),
            prepared: None,
            failure: None,
            refusal: false,
        }
    }

    pub(super) fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    pub(super) fn is_disk_full(&self) -> bool {
        self.failure.is_some_and(|failure| failure.error.kind == DiskErrorKind::NoSpace)
    }

    /// Why no segment can be had at the moment, if so.
    pub(super) fn failure(&self) -> Option<DiskError> {
        self.failure.map(|failure| failure.error)
    }

    /// Notes that a frame of `frame_len` bytes finds no room.
    pub(super) fn want(&mut self, frame_len: u64) {
        self.wanted_frame_len = self.wanted_frame_len.max(frame_len);
    }

    /// When to go on: to try again after a failure, or to write more zeros.
    pub(super) fn retry_at_ns(&self) -> Option<u64> {
        match &self.preparing {
            Some(_) => self.held.as_ref().map(|request| self.pace.ready_at_ns(request)),
            None => self.failure.map(|failure| failure.retry_at_ns),
        }
    }

    /// Tells how many bytes the log can still take: zeros are written the faster, the faster it
    /// falls.
    pub(super) fn set_room(&mut self, room: u64) {
        self.pace.set_room(room);
    }

    /// Takes a freed segment to make a new one of it. Returns it if it is of no use.
    ///
    /// Nothing refers to it any more: it is not in the durable manifest, a checkpoint or a
    /// snapshot, and nobody reads it.
    #[cfg_attr(not(test), expect(dead_code, reason = "for the store when it frees a segment"))]
    pub(super) fn offer(&mut self, freed: OpenSegment) -> Option<OpenSegment> {
        self.pool.offer(freed, self.segment_bytes)
    }

    pub(super) fn take_segment(&mut self) -> Option<OpenSegment> {
        self.prepared.take()
    }

    /// Whether preparing has failed since the last call: writers that wait must hear of it.
    pub(super) fn take_refusal(&mut self) -> bool {
        std::mem::take(&mut self.refusal)
    }

    pub(super) fn poll_request(&mut self) -> Option<DiskRequest> {
        if self.held.is_none() {
            self.held = self.preparing.as_mut()?.poll_request();
        }
        let urgent = self.wanted_frame_len > 0;
        self.held.take_if(|request| urgent || self.pace.take(request))
    }

    pub(super) fn handle_disk(&mut self, completion: DiskCompletion) {
        let preparing = self.preparing.as_mut();
        preparing.expect("a completion belongs to the procedure under way").handle_disk(completion);
    }

    /// Starts preparing when the log has no spare (`wanted`) or a large frame waits, and takes the
    /// result when there is one.
    pub(super) fn advance(&mut self, now: Now, wanted: bool) {
        if let Some(result) = self.preparing.as_mut().and_then(Procedure::take_output) {
            self.preparing = None;
            self.finish(now, result);
        }
        self.pace.set_now(now.monotonic_ns);
        let due = self.failure.is_none_or(|failure| failure.retry_at_ns <= now.monotonic_ns);
        let wanted = wanted || self.wanted_frame_len > 0;
        if wanted && due && self.preparing.is_none() && self.prepared.is_none() {
            self.start();
        }
    }

    fn finish(&mut self, now: Now, result: Prepared) {
        match result {
            Ok((segment, manifest)) => {
                if self.wanted_frame_len + segment::SEGMENT_HEADER_LEN <= segment.len {
                    self.wanted_frame_len = 0;
                }
                self.last_len = segment.len;
                self.manifest = manifest;
                self.prepared = Some(segment);
                self.failure = None;
            }
            Err(error) => {
                let error = match error {
                    PrepareError::Segment(error) => error,
                    PrepareError::Manifest(SaveError { copy, source }) => {
                        self.older_copy = copy;
                        source
                    }
                };
                let retry_at_ns = now.monotonic_ns.saturating_add(RETRY_AFTER_NS);
                self.failure = Some(Failure { error, retry_at_ns });
                self.refusal = true;
                self.wanted_frame_len = 0;
            }
        }
    }

    fn start(&mut self) {
        let mut manifest = self.manifest.clone();
        let id = manifest.next_segment;
        // Also used up if preparing fails: ids are never used twice.
        self.manifest.next_segment += 1;
        let freed = self.pool.take(self.wanted_frame_len);
        let (file, len) = freed.map_or_else(
            || {
                let wanted = self.wanted_frame_len;
                let len = segment::next_len(self.last_len, self.segment_bytes, wanted);
                let file = self.next_file;
                self.next_file = FileId(file.0 + 1);
                (file, len)
            },
            |freed| (freed.file, freed.len),
        );
        let header = SegmentHeader { identity: manifest.identity, id, len };
        let directory = self.directory.clone();
        manifest.next_segment = id + 1;
        manifest.sequence += 1;
        let older = self.older_copy;
        manifest.segments.push(SegmentEntry { id, len, cut: None });
        self.preparing = Some(Procedure::new(move |port| async move {
            let prepared = match freed {
                Some(freed) => {
                    segment::recycle(port.clone(), directory, freed.id, header, file).await
                }
                None => segment::prepare(port.clone(), directory, header, file).await,
            };
            prepared.map_err(PrepareError::Segment)?;
            let saved = manifest::save(port, MANIFEST_FILES, older, manifest.clone());
            saved.await.map_err(PrepareError::Manifest)?;
            Ok((OpenSegment { id, file, len }, manifest))
        }));
    }
}

#[cfg(test)]
mod tests {
    use wal::Lsn;
    use wal::disk::{DiskOperation, DiskOutput};
    use wal::segment::Identity;

    use super::*;

    const LEN: u64 = 8 << 20;

    fn supply() -> SegmentSupply {
        let identity = Identity { store: [1; 16], node_id: [2; 20], shard: 0, shard_count: 1 };
        let manifest = Manifest {
            identity,
            sequence: 1,
            next_segment: 7,
            durable_lsn: Lsn::ZERO,
            segments: Vec::new(),
            quarantine: Vec::new(),
        };
        SegmentSupply::new(FileName::new("shard-00"), manifest, LEN, FileId(9), LEN)
    }

    /// Carries out what the supply asks for now; returns the bytes of zeros among it.
    fn carry_out(supply: &mut SegmentSupply, now: Now) -> u64 {
        let mut zeros = 0;
        while let Some(DiskRequest { id, operation }) = supply.poll_request() {
            let buffer = match operation {
                DiskOperation::Write { buffer, .. } => Some(buffer),
                _ => None,
            };
            zeros += buffer.as_ref().map_or(0, |buffer| buffer.len() as u64);
            supply.handle_disk(DiskCompletion { id, result: Ok(DiskOutput::Done), buffer });
            supply.advance(now, true);
        }
        zeros
    }

    #[test]
    fn zeros_are_paced_until_a_writer_waits() {
        let mut supply = supply();
        let mut now = Now::default();
        supply.advance(now, true);
        assert_eq!(carry_out(&mut supply, now), 0, "nothing is earned at the start");
        now.monotonic_ns = supply.retry_at_ns().expect("it says when to go on");
        supply.advance(now, true);
        let first = carry_out(&mut supply, now);
        assert!(first > 0 && first < LEN / 2 && supply.take_segment().is_none());
        supply.want(100);
        assert!(carry_out(&mut supply, now) > LEN / 2);
        assert_eq!(supply.take_segment().map(|segment| segment.len), Some(LEN));
    }

    #[test]
    fn freed_segment_becomes_the_next_one_without_zeros() {
        let mut supply = supply();
        let freed = OpenSegment { id: 3, file: FileId(4), len: LEN };
        assert_eq!(supply.offer(freed), None);
        supply.set_room(LEN);
        let now = Now { monotonic_ns: 1_000_000_000, clock_ms: 0 };
        supply.advance(now, true);
        // The new header, and the manifest twice.
        assert_eq!(carry_out(&mut supply, now), 3 * 4096);
        let expected = OpenSegment { id: 7, file: FileId(4), len: LEN };
        assert_eq!(supply.take_segment(), Some(expected));
        assert_eq!(supply.manifest().segments[0].id, 7);
    }
}
