//! Segments prepared ahead: one spare, made and listed in the manifest before the log needs it.

use wal::disk::{DiskCompletion, DiskError, DiskErrorKind, DiskRequest, FileId, FileName};
use wal::group_commit::OpenSegment;
use wal::manifest::{self, Manifest, SaveError, SegmentEntry};
use wal::procedure::Procedure;
use wal::segment::{self, SegmentHeader};

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

    /// When to try again after a failure.
    pub(super) fn retry_at_ns(&self) -> Option<u64> {
        self.failure.filter(|_| self.preparing.is_none()).map(|failure| failure.retry_at_ns)
    }

    pub(super) fn take_segment(&mut self) -> Option<OpenSegment> {
        self.prepared.take()
    }

    /// Whether preparing has failed since the last call: writers that wait must hear of it.
    pub(super) fn take_refusal(&mut self) -> bool {
        std::mem::take(&mut self.refusal)
    }

    pub(super) fn poll_request(&mut self) -> Option<DiskRequest> {
        self.preparing.as_mut()?.poll_request()
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
        let due = self.failure.is_none_or(|failure| failure.retry_at_ns <= now.monotonic_ns);
        // A failure is also got rid of by trying again, whatever it was that was wanted.
        let wanted = wanted || self.wanted_frame_len > 0 || self.failure.is_some();
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
        let len = segment::next_len(self.last_len, self.segment_bytes, self.wanted_frame_len);
        let file = self.next_file;
        self.next_file = FileId(file.0 + 1);
        let header = SegmentHeader { identity: manifest.identity, id, len };
        let directory = self.directory.clone();
        manifest.next_segment = id + 1;
        manifest.sequence += 1;
        let older = self.older_copy;
        manifest.segments.push(SegmentEntry { id, len, cut: None });
        self.preparing = Some(Procedure::new(move |port| async move {
            let prepared = segment::prepare(port.clone(), directory, header, file);
            prepared.await.map_err(PrepareError::Segment)?;
            let saved = manifest::save(port, MANIFEST_FILES, older, manifest.clone());
            saved.await.map_err(PrepareError::Manifest)?;
            Ok((OpenSegment { id, file, len }, manifest))
        }));
    }
}
