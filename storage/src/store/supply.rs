//! Segments prepared ahead: one spare, made and listed in the manifest before the log needs it.

use wal::disk::{DiskCompletion, DiskError, DiskErrorKind, DiskRequest, FileId, FileName};
use wal::group_commit::OpenSegment;
use wal::manifest::SegmentEntry;
use wal::procedure::Procedure;
use wal::segment::{self, SegmentHeader};

use super::manifest_keeper::{EditId, ManifestKeeper};
use crate::clock::Now;

/// After a full disk or another error, preparing is tried again this many nanoseconds later.
const RETRY_AFTER_NS: u64 = 1_000_000_000;

/// Makes the log's next segment.
pub(super) struct SegmentSupply {
    directory: FileName,
    segment_bytes: u64,
    next_file: FileId,
    last_len: u64,
    /// A frame of this size waits for a segment; 0 if none does.
    wanted_frame_len: u64,
    stage: Stage,
    failure: Option<Failure>,
    refusal: bool,
}

enum Stage {
    Idle,
    Preparing(OpenSegment, Procedure<Result<(), DiskError>>),
    Listing(OpenSegment, EditId),
    Prepared(OpenSegment),
}

#[derive(Clone, Copy)]
struct Failure {
    error: DiskError,
    retry_at_ns: u64,
}

impl SegmentSupply {
    pub(super) fn new(
        directory: FileName,
        segment_bytes: u64,
        next_file: FileId,
        last_len: u64,
    ) -> Self {
        Self {
            directory,
            segment_bytes,
            next_file,
            last_len,
            wanted_frame_len: 0,
            stage: Stage::Idle,
            failure: None,
            refusal: false,
        }
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

    /// Tries again at once what failed for want of space: some was given back.
    pub(super) fn retry_now(&mut self) {
        if let Some(failure) = &mut self.failure {
            failure.retry_at_ns = 0;
        }
    }

    /// When to try again after a failure.
    pub(super) fn retry_at_ns(&self) -> Option<u64> {
        let idle = matches!(self.stage, Stage::Idle);
        self.failure.filter(|_| idle).map(|failure| failure.retry_at_ns)
    }

    pub(super) fn take_segment(&mut self) -> Option<OpenSegment> {
        match self.stage {
            Stage::Prepared(segment) => {
                self.stage = Stage::Idle;
                Some(segment)
            }
            _ => None,
        }
    }

    /// Whether preparing has failed since the last call: writers that wait must hear of it.
    pub(super) fn take_refusal(&mut self) -> bool {
        std::mem::take(&mut self.refusal)
    }

    pub(super) fn poll_request(&mut self) -> Option<DiskRequest> {
        match &mut self.stage {
            Stage::Preparing(_, preparing) => preparing.poll_request(),
            _ => None,
        }
    }

    pub(super) fn handle_disk(&mut self, completion: DiskCompletion) {
        let Stage::Preparing(_, preparing) = &mut self.stage else {
            panic!("a completion belongs to the procedure under way")
        };
        preparing.handle_disk(completion);
    }

    /// Starts preparing when the log has no spare (`wanted`) or a large frame waits, and goes on
    /// with what is under way.
    pub(super) fn advance(&mut self, now: Now, wanted: bool, keeper: &mut ManifestKeeper) {
        let prepared = match &mut self.stage {
            Stage::Preparing(segment, preparing) => {
                preparing.take_output().map(|result| (*segment, result))
            }
            _ => None,
        };
        match prepared {
            Some((segment, Ok(()))) => {
                let OpenSegment { id, len, .. } = segment;
                let entry = SegmentEntry { id, len, cut: None };
                let edit = keeper.edit(move |manifest| manifest.segments.push(entry));
                self.stage = Stage::Listing(segment, edit);
            }
            Some((_, Err(error))) => self.fail(now, error),
            None => {}
        }
        let due = self.failure.is_none_or(|failure| failure.retry_at_ns <= now.monotonic_ns);
        // A failure is also got rid of by trying again, whatever it was that was wanted.
        let wanted = wanted || self.wanted_frame_len > 0 || self.failure.is_some();
        if wanted && due && matches!(self.stage, Stage::Idle) {
            self.start(keeper);
        }
    }

    /// Takes the end of an edit of the manifest, if it is this one's.
    pub(super) fn handle_edit(&mut self, now: Now, id: EditId, result: Result<(), DiskError>) {
        let Stage::Listing(segment, edit) = self.stage else { return };
        if edit != id {
            return;
        }
        match result {
            Ok(()) => {
                if self.wanted_frame_len + segment::SEGMENT_HEADER_LEN <= segment.len {
                    self.wanted_frame_len = 0;
                }
                self.last_len = segment.len;
                self.failure = None;
                self.stage = Stage::Prepared(segment);
            }
            Err(error) => self.fail(now, error),
        }
    }

    fn fail(&mut self, now: Now, error: DiskError) {
        let retry_at_ns = now.monotonic_ns.saturating_add(RETRY_AFTER_NS);
        self.failure = Some(Failure { error, retry_at_ns });
        self.refusal = true;
        self.wanted_frame_len = 0;
        self.stage = Stage::Idle;
    }

    fn start(&mut self, keeper: &mut ManifestKeeper) {
        let id = keeper.take_segment_id();
        let len = segment::next_len(self.last_len, self.segment_bytes, self.wanted_frame_len);
        let file = self.next_file;
        self.next_file = FileId(file.0 + 1);
        let header = SegmentHeader { identity: keeper.manifest().identity, id, len };
        let directory = self.directory.clone();
        let preparing = Procedure::new(move |port| segment::prepare(port, directory, header, file));
        self.stage = Stage::Preparing(OpenSegment { id, file, len }, preparing);
    }
}
