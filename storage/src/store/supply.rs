//! Segments prepared ahead: one spare, made and listed in the manifest before the log needs it, and
//! the reserve.
//!
//! ```text
//! zeros, freed segments, what recovery found -> shelved ([`SegmentPool`]) -> listed -> spare
//! ```
//!
//! Zeros are written paced ([`Pace`]) unless a writer waits. The reserve is made first, and no
//! spare is made of it, except on a full disk for deletes and compaction (ADR 0014).

use wal::disk::{DiskCompletion, DiskError, DiskErrorKind, DiskRequest, FileId, FileName};
use wal::group_commit::OpenSegment;
use wal::manifest::SegmentEntry;
use wal::procedure::Procedure;
use wal::segment::{self, SEGMENT_BYTES_MIN, SegmentHeader, Space};

use super::manifest_keeper::{EditId, ManifestKeeper};
use super::pace::Pace;
use super::pool::{RESERVED_COUNT, SegmentPool, Shelved};
use crate::clock::Now;

/// After a full disk or another error, preparing is tried again this many nanoseconds later.
const RETRY_AFTER_NS: u64 = 1_000_000_000;
/// What the limit of a store's bytes answers: as a quota of the file system would (EDQUOT).
const LIMIT_REACHED: DiskError = DiskError { kind: DiskErrorKind::NoSpace, code: 122 };

/// Makes the log's next segment.
pub(super) struct SegmentSupply {
    directory: FileName,
    segment_bytes: u64,
    /// Most bytes that all segments together may have.
    disk_bytes_max: u64,
    /// Bytes of the segments that the store has, those on their way out included.
    in_use_bytes: u64,
    /// Whether all these files leave no room for another one.
    at_limit: bool,
    next_file: FileId,
    last_len: u64,
    /// Bytes of the longest regular segment there was.
    longest_len: u64,
    /// Where space is short: no segment longer than this, unless a frame needs it.
    len_max: u64,
    /// A frame of this size waits for a segment; 0 if none does.
    wanted_frame_len: u64,
    /// The reserve may be used, but for so many files of it: a delete or compaction waits.
    reserve_kept: Option<usize>,
    stage: Stage,
    /// A request that waits for its turn.
    held: Option<DiskRequest>,
    pace: Pace,
    pool: SegmentPool,
    failure: Option<Failure>,
    news: bool,
}

enum Stage {
    Idle,
    /// A file full of zeros is being made.
    Filling(OpenSegment, Procedure<Result<(), DiskError>>),
    /// A shelved file is becoming a segment.
    Recycling(OpenSegment, Procedure<Result<(), DiskError>>),
    Listing(OpenSegment, EditId),
    Prepared(OpenSegment),
}

#[derive(Clone, Copy)]
struct Failure {
    error: DiskError,
    retry_at_ns: u64,
}

/// What recovery leaves to the supply.
pub(super) struct SupplyBasis {
    pub(super) next_file: FileId,
    /// Bytes of the newest segment, and of the longest of regular length.
    pub(super) last_len: u64,
    pub(super) longest_len: u64,
    pub(super) shelved: Vec<Shelved>,
}

impl SegmentSupply {
    pub(super) fn new(
        directory: FileName,
        segment_bytes: u64,
        disk_bytes_max: Option<u64>,
        basis: SupplyBasis,
    ) -> Self {
        Self {
            directory,
            segment_bytes,
            disk_bytes_max: disk_bytes_max.unwrap_or(u64::MAX),
            in_use_bytes: 0,
            at_limit: false,
            next_file: basis.next_file,
            last_len: basis.last_len,
            longest_len: basis.longest_len,
            len_max: segment_bytes,
            wanted_frame_len: 0,
            reserve_kept: None,
            stage: Stage::Idle,
            held: None,
            pace: Pace::default(),
            pool: SegmentPool::new(basis.shelved),
            failure: None,
            news: false,
        }
    }

    /// Whether there is no space for another segment. At the store's own limit that is known while
    /// there still is a spare; on a full disk only when there is none.
    pub(super) fn is_disk_full(&self) -> bool {
        self.at_limit
            || self.failure.is_some_and(|failure| failure.error.kind == DiskErrorKind::NoSpace)
    }

    /// Whether nothing of the reserve is in use: on a full disk, new values wait for that.
    pub(super) fn is_reserve_complete(&self) -> bool {
        self.pool.is_reserve_complete()
    }

    /// Bytes of the longest regular segment there was: what compaction may need to copy one.
    pub(super) fn longest_len(&self) -> u64 {
        self.longest_len
    }

    /// Why no segment can be had at the moment, if so.
    pub(super) fn failure(&self) -> Option<DiskError> {
        self.failure.map(|failure| failure.error)
    }

    /// Why no segment can be had at the moment, the store's own limit included.
    pub(super) fn shortage(&self) -> Option<DiskError> {
        let full = DiskError { kind: DiskErrorKind::NoSpace, code: 0 };
        self.failure().or_else(|| self.at_limit.then_some(full))
    }

    /// Notes that a frame of `frame_len` bytes finds no room.
    pub(super) fn want(&mut self, frame_len: u64) {
        self.wanted_frame_len = self.wanted_frame_len.max(frame_len);
    }

    /// Notes that on a full disk a frame of `frame_len` bytes finds no room that may take of the
    /// reserve all but `kept` files. False if that is no help.
    pub(super) fn want_reserve(&mut self, frame_len: u64, kept: usize) -> bool {
        let helps = self.pool.has(frame_len, kept)
            || matches!(self.stage, Stage::Recycling(..) | Stage::Listing(..));
        if helps {
            self.want(frame_len);
            let before = self.reserve_kept.unwrap_or(kept);
            self.reserve_kept = Some(before.min(kept));
        }
        helps
    }

    /// Tries again at once what failed for want of space: some was given back.
    pub(super) fn retry_now(&mut self) {
        if let Some(failure) = &mut self.failure {
            failure.retry_at_ns = 0;
        }
    }

    /// When to go on: to try again after a failure, or to write more zeros.
    pub(super) fn retry_at_ns(&self) -> Option<u64> {
        match &self.stage {
            Stage::Idle => self.failure.map(|failure| failure.retry_at_ns),
            Stage::Filling(..) | Stage::Recycling(..) => {
                self.held.as_ref().map(|request| self.pace.ready_at_ns(request))
            }
            Stage::Listing(..) | Stage::Prepared(_) => None,
        }
    }

    /// Whether the store has a limit of its own ([`SegmentSupply::set_in_use`]).
    pub(super) fn is_limited(&self) -> bool {
        self.disk_bytes_max < u64::MAX
    }

    /// Tells the bytes of all segments that the store has, until their files are gone or shelved.
    pub(super) fn set_in_use(&mut self, bytes: u64) {
        self.in_use_bytes = bytes;
    }

    /// Tells how many bytes the log can still take: zeros are written the faster, the faster it
    /// falls.
    pub(super) fn set_room(&mut self, room: u64) {
        self.pace.set_room(room);
    }

    /// Takes a freed segment, shelved ([`segment::shelve`]), to make a new one of it. Returns it if
    /// it is of no use.
    pub(super) fn offer(&mut self, freed: OpenSegment) -> Option<OpenSegment> {
        self.pool.offer(freed, self.segment_bytes)
    }

    /// Bytes of files kept to become segments.
    pub(super) fn pooled_bytes(&self) -> u64 {
        self.pool.bytes()
    }

    /// Whether space that was given back is being made into a file.
    pub(super) fn is_filling(&self) -> bool {
        matches!(self.stage, Stage::Filling(..))
            || self.failure.is_some_and(|failure| failure.retry_at_ns == 0)
    }

    /// Bytes of a segment that is out of the pool, and not with the log yet.
    pub(super) fn bytes_under_way(&self) -> u64 {
        match &self.stage {
            Stage::Recycling(segment, _)
            | Stage::Listing(segment, _)
            | Stage::Prepared(segment) => segment.len,
            Stage::Idle | Stage::Filling(..) => 0,
        }
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

    /// Whether preparing has failed, or a file was made, since the last call: writers that wait
    /// must hear of it.
    pub(super) fn take_news(&mut self) -> bool {
        std::mem::take(&mut self.news)
    }

    pub(super) fn poll_request(&mut self) -> Option<DiskRequest> {
        if self.held.is_none()
            && let Stage::Filling(_, preparing) | Stage::Recycling(_, preparing) = &mut self.stage
        {
            self.held = preparing.poll_request();
        }
        let urgent = self.wanted_frame_len > 0;
        self.held.take_if(|request| urgent || self.pace.take(request))
    }

    pub(super) fn handle_disk(&mut self, completion: DiskCompletion) {
        let (Stage::Filling(_, preparing) | Stage::Recycling(_, preparing)) = &mut self.stage
        else {
            panic!("a completion belongs to the procedure under way")
        };
        preparing.handle_disk(completion);
    }

    /// Starts preparing when the reserve is not complete, the log has no spare (`wanted`) or a
    /// large frame waits, and goes on with what is under way.
    pub(super) fn advance(&mut self, now: Now, wanted: bool, keeper: &mut ManifestKeeper) {
        let (done, is_filled) = match &mut self.stage {
            Stage::Filling(segment, filling) => {
                (filling.take_output().map(|result| result.map(|()| *segment)), true)
            }
            Stage::Recycling(segment, recycling) => {
                (recycling.take_output().map(|result| result.map(|()| *segment)), false)
            }
            _ => (None, false),
        };
        match done {
            Some(Ok(segment)) if is_filled => {
                self.pool.add(Shelved { segment, space: Space::Zeroed });
                self.news = true;
                self.len_max = self.segment_bytes.min(self.len_max.saturating_mul(2));
                self.stage = Stage::Idle;
            }
            Some(Ok(segment)) => {
                let OpenSegment { id, len, .. } = segment;
                let entry = SegmentEntry { id, len, cut: None };
                let edit = keeper.edit(move |manifest| manifest.segments.push(entry));
                self.stage = Stage::Listing(segment, edit);
            }
            Some(Err(error)) => self.fail(now, error),
            None => {}
        }
        self.at_limit = self.is_limited() && !self.pool.has_surplus() && self.next_len().is_none();
        self.pace.set_now(now.monotonic_ns);
        let due = self.failure.is_none_or(|failure| failure.retry_at_ns <= now.monotonic_ns);
        if matches!(self.stage, Stage::Idle) {
            let wanted = wanted || self.wanted_frame_len > 0;
            self.start(now, wanted, due, keeper);
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
                if segment.len <= self.segment_bytes {
                    self.longest_len = self.longest_len.max(segment.len);
                }
                // What came out of the reserve does not show that there is space.
                if self.reserve_kept.take().is_none() {
                    self.failure = None;
                }
                self.stage = Stage::Prepared(segment);
            }
            Err(error) => self.fail(now, error),
        }
    }

    fn fail(&mut self, now: Now, error: DiskError) {
        if let Stage::Filling(OpenSegment { len, .. }, _) = self.stage
            && error.kind == DiskErrorKind::NoSpace
        {
            // There may be room for a shorter one.
            let len_min = SEGMENT_BYTES_MIN.min(self.segment_bytes);
            if len > len_min && self.len_max > len_min {
                self.len_max = (len / 2).min(self.len_max / 2).max(len_min);
                self.stage = Stage::Idle;
                return;
            }
        }
        let retry_at_ns = now.monotonic_ns.saturating_add(RETRY_AFTER_NS);
        self.failure = Some(Failure { error, retry_at_ns });
        self.news = true;
        self.wanted_frame_len = 0;
        self.reserve_kept = None;
        self.stage = Stage::Idle;
    }

    /// Bytes of the files that count against the limit. A file counts wherever it is on its way:
    /// if it did not, values would get the room that it leaves and comes back to.
    fn disk_bytes(&self) -> u64 {
        let filling = match &self.stage {
            Stage::Filling(segment, _) => segment.len,
            _ => 0,
        };
        self.in_use_bytes + self.pool.bytes() + self.bytes_under_way() + filling
    }

    /// Length of the next new segment; `None` if the limit allows none.
    fn next_len(&self) -> Option<u64> {
        let left = self.disk_bytes_max.saturating_sub(self.disk_bytes());
        let reserved = !self.pool.is_reserve_complete();
        let wanted = if reserved { 0 } else { self.wanted_frame_len };
        // The reserve is for copies of any segment there is; segments double only as they are used.
        let last_len = if reserved { self.longest_len / 2 } else { self.last_len };
        let mut bytes_max = self.len_max;
        loop {
            let len = segment::next_len(last_len, bytes_max, wanted);
            if len <= left {
                return Some(len);
            }
            // Rather a short segment than none.
            bytes_max /= 2;
            if bytes_max < SEGMENT_BYTES_MIN.min(self.segment_bytes) {
                return None;
            }
        }
    }

    /// Makes a segment of a shelved file, if it is `wanted`; else, or if there is no file for it, a
    /// file. After a failure only if that is `due`.
    fn start(&mut self, now: Now, wanted: bool, due: bool, keeper: &mut ManifestKeeper) {
        let kept = self.reserve_kept.unwrap_or(RESERVED_COUNT);
        if wanted && let Some(shelved) = self.pool.take(self.wanted_frame_len, kept) {
            return self.recycle(shelved, keeper);
        }
        self.reserve_kept = None;
        if !wanted && self.pool.is_reserve_complete() {
            // Whatever could not be made is there now, or nobody asks for it.
            if due {
                self.failure = None;
            }
        } else if due {
            self.fill(now, keeper);
        }
    }

    fn recycle(&mut self, shelved: Shelved, keeper: &mut ManifestKeeper) {
        let Shelved { segment: OpenSegment { id: from, file, len }, space } = shelved;
        let id = keeper.take_segment_id();
        let header = SegmentHeader { identity: keeper.manifest().identity, id, len };
        let directory = self.directory.clone();
        let recycling = Procedure::new(move |port| async move {
            segment::recycle(port, directory, from, (header, space), file).await
        });
        self.stage = Stage::Recycling(OpenSegment { id, file, len }, recycling);
    }

    fn fill(&mut self, now: Now, keeper: &mut ManifestKeeper) {
        let Some(len) = self.next_len() else { return self.fail(now, LIMIT_REACHED) };
        let file = self.next_file;
        self.next_file = FileId(file.0 + 1);
        let id = keeper.take_segment_id();
        let header = SegmentHeader { identity: keeper.manifest().identity, id, len };
        let directory = self.directory.clone();
        let filling = Procedure::new(move |port| async move {
            segment::prepare_shelved(port, directory, header, file).await
        });
        self.stage = Stage::Filling(OpenSegment { id, file, len }, filling);
    }
}

#[cfg(test)]
mod tests {
    use wal::Lsn;
    use wal::disk::{DiskOperation, DiskOutput};
    use wal::manifest::Manifest;
    use wal::segment::Identity;

    use super::*;

    const LEN: u64 = 8 << 20;

    fn supply() -> (SegmentSupply, ManifestKeeper) {
        let identity = Identity { store: [1; 16], node_id: [2; 20], shard: 0, shard_count: 1 };
        let manifest = Manifest {
            identity,
            sequence: 1,
            next_segment: 7,
            durable_lsn: Lsn::ZERO,
            segments: Vec::new(),
            quarantine: Vec::new(),
            checkpoint: None,
        };
        let (last_len, longest_len, shelved) = (LEN, LEN, Vec::new());
        let basis = SupplyBasis { next_file: FileId(9), last_len, longest_len, shelved };
        let supply = SegmentSupply::new(FileName::new("shard-00"), LEN, None, basis);
        (supply, ManifestKeeper::new(manifest))
    }

    /// As after a while: the reserve is there.
    fn with_reserve() -> (SegmentSupply, ManifestKeeper) {
        let (mut supply, keeper) = supply();
        for id in [3, 4] {
            let segment = OpenSegment { id: id.into(), file: FileId(id), len: LEN };
            supply.pool.add(Shelved { segment, space: Space::Zeroed });
        }
        (supply, keeper)
    }

    /// As the store does: its segments are those of the manifest, once it has got them.
    fn advance(supply: &mut SegmentSupply, keeper: &mut ManifestKeeper, now: Now, wanted: bool) {
        let on_its_way = match supply.stage {
            Stage::Listing(segment, _) | Stage::Prepared(segment) => Some(segment.id),
            _ => None,
        };
        let listed = keeper.manifest().segments.iter();
        let had = listed.filter(|segment| Some(segment.id) != on_its_way);
        supply.set_in_use(had.map(|segment| segment.len).sum());
        supply.advance(now, wanted, keeper);
    }

    /// Carries out the next that the two ask for; returns the bytes written.
    fn step(supply: &mut SegmentSupply, keeper: &mut ManifestKeeper, now: Now) -> Option<u64> {
        advance(supply, keeper, now, true);
        while let Some((id, result)) = keeper.take_done() {
            supply.handle_edit(now, id, result);
        }
        let of_supply = supply.poll_request();
        let is_supplys = of_supply.is_some();
        let DiskRequest { id, operation } = of_supply.or_else(|| keeper.poll_request())?;
        let buffer = match operation {
            DiskOperation::Write { buffer, .. } => Some(buffer),
            _ => None,
        };
        let written = buffer.as_ref().map_or(0, |buffer| buffer.len() as u64);
        let completion = DiskCompletion { id, result: Ok(DiskOutput::Done), buffer };
        if is_supplys {
            supply.handle_disk(completion);
        } else {
            keeper.handle_disk(completion);
        }
        Some(written)
    }

    /// Carries out what the two ask for now; returns the bytes written.
    fn carry_out(supply: &mut SegmentSupply, keeper: &mut ManifestKeeper, now: Now) -> u64 {
        std::iter::from_fn(|| step(supply, keeper, now)).sum()
    }

    #[test]
    fn zeros_are_paced_until_a_writer_waits() {
        let (mut supply, mut keeper) = with_reserve();
        let mut now = Now::default();
        assert_eq!(carry_out(&mut supply, &mut keeper, now), 0, "nothing is earned at the start");
        now.monotonic_ns = supply.retry_at_ns().expect("it says when to go on");
        let first = carry_out(&mut supply, &mut keeper, now);
        assert!(first > 0 && first < LEN / 2 && supply.take_segment().is_none());
        supply.want(100);
        assert!(carry_out(&mut supply, &mut keeper, now) > LEN / 2);
        assert_eq!(supply.take_segment().map(|segment| segment.len), Some(LEN));
    }

    #[test]
    fn reserve_is_made_before_the_first_spare() {
        let (mut supply, mut keeper) = supply();
        supply.set_room(LEN);
        let now = Now { monotonic_ns: 1_000_000_000, clock_ms: 0 };
        supply.want(100);
        assert!(carry_out(&mut supply, &mut keeper, now) > 3 * LEN);
        assert_eq!(supply.take_segment().map(|segment| segment.len), Some(LEN));
        assert_eq!((supply.pooled_bytes(), supply.is_reserve_complete()), (2 * LEN, true));
    }

    #[test]
    fn limit_is_a_full_disk_until_something_is_given_back() {
        let (mut supply, mut keeper) = with_reserve();
        supply.disk_bytes_max = 5 * LEN;
        supply.set_room(LEN);
        let mut now = Now { monotonic_ns: 1_000_000_000, clock_ms: 0 };
        let mut lens = Vec::new();
        while supply.failure().is_none() {
            supply.want(100);
            carry_out(&mut supply, &mut keeper, now);
            lens.extend(supply.take_segment().map(|segment| segment.len));
        }
        assert_eq!(lens, [LEN, LEN, LEN]);
        assert!(supply.take_news() && supply.is_disk_full() && supply.is_reserve_complete());
        // As when a segment is freed.
        keeper.edit(|manifest| manifest.segments.truncate(2));
        now.monotonic_ns += 1;
        carry_out(&mut supply, &mut keeper, now);
        assert!(supply.failure().is_some(), "it is tried again after a while, or when told");
        supply.retry_now();
        supply.want(100);
        carry_out(&mut supply, &mut keeper, now);
        assert_eq!(supply.take_segment().map(|segment| segment.len), Some(LEN));
        assert!(supply.failure().is_none() && supply.is_disk_full(), "it was the last one");
        keeper.edit(|manifest| manifest.segments.truncate(1));
        carry_out(&mut supply, &mut keeper, now);
        supply.retry_now();
        supply.want(100);
        carry_out(&mut supply, &mut keeper, now);
        assert!(supply.take_segment().is_some() && !supply.is_disk_full());
    }

    /// Two in use, two kept beside the reserve: the limit leaves room for no new file, and none is
    /// needed.
    #[test]
    fn file_that_is_kept_is_room_at_the_limit() {
        let (mut supply, mut keeper) = with_reserve();
        supply.disk_bytes_max = (4 + RESERVED_COUNT as u64) * LEN;
        supply.set_room(LEN);
        let now = Now { monotonic_ns: 1_000_000_000, clock_ms: 0 };
        for _ in 0..2 {
            supply.want(100);
            carry_out(&mut supply, &mut keeper, now);
            assert!(supply.take_segment().is_some());
        }
        for id in [50, 51] {
            assert_eq!(supply.offer(OpenSegment { id, file: FileId(id as u32), len: LEN }), None);
        }
        advance(&mut supply, &mut keeper, now, false);
        assert!(!supply.is_disk_full(), "the kept files can be written");
        for _ in 0..2 {
            supply.want(100);
            carry_out(&mut supply, &mut keeper, now);
            assert!(supply.take_segment().is_some());
        }
        advance(&mut supply, &mut keeper, now, false);
        assert!(supply.is_disk_full());
    }

    /// Nothing becomes writable because a file has no name among the segments for a moment.
    #[test]
    fn file_on_its_way_counts_against_the_limit() {
        let (mut supply, mut keeper) = with_reserve();
        supply.disk_bytes_max = 3 * LEN;
        let now = Now { monotonic_ns: 1_000_000_000, clock_ms: 0 };
        supply.want(100);
        carry_out(&mut supply, &mut keeper, now);
        assert!(supply.take_segment().is_some());
        advance(&mut supply, &mut keeper, now, false);
        assert!(supply.is_disk_full() && supply.failure().is_none());
        // A delete takes one of the reserve.
        assert!(supply.want_reserve(100, 0));
        let mut steps = 0;
        while step(&mut supply, &mut keeper, now).is_some() {
            assert!(supply.is_disk_full() && supply.next_len().is_none(), "after step {steps}");
            steps += 1;
        }
        assert!(steps > 3 && supply.take_segment().is_some());
    }

    #[test]
    fn reserve_is_for_deletes_and_compaction_alone_and_no_sign_of_space() {
        let (mut supply, mut keeper) = with_reserve();
        supply.disk_bytes_max = 2 * LEN;
        let now = Now { monotonic_ns: 1_000_000_000, clock_ms: 0 };
        supply.want(100);
        carry_out(&mut supply, &mut keeper, now);
        assert!(supply.failure().is_some() && supply.take_segment().is_none());
        // A delete may take one, compaction the other.
        assert!(supply.want_reserve(100, 1));
        carry_out(&mut supply, &mut keeper, now);
        assert!(supply.take_segment().is_some() && supply.is_disk_full());
        assert!(!supply.is_reserve_complete() && !supply.want_reserve(100, 1));
        assert!(supply.want_reserve(100, 0));
        carry_out(&mut supply, &mut keeper, now);
        assert!(supply.take_segment().is_some() && supply.failure().is_some());
        assert!(!supply.want_reserve(100, 0));
        // What is freed completes the reserve before anything else is made of it.
        for id in [5, 6, 7] {
            let freed = OpenSegment { id: id.into(), file: FileId(id), len: LEN };
            assert_eq!(supply.offer(freed), None);
            keeper.edit(|manifest| manifest.segments.truncate(1));
            supply.retry_now();
            supply.want(100);
            carry_out(&mut supply, &mut keeper, now);
            assert_eq!(supply.take_segment().is_some(), id == 7);
        }
        assert!(supply.failure().is_none() && supply.is_reserve_complete());
    }

    #[test]
    fn where_no_long_segment_fits_a_short_one_is_made() {
        let (mut supply, mut keeper) = with_reserve();
        supply.disk_bytes_max = 3 * LEN + LEN / 2;
        supply.set_room(LEN);
        let now = Now { monotonic_ns: 1_000_000_000, clock_ms: 0 };
        for len in [LEN, LEN / 2] {
            supply.want(100);
            carry_out(&mut supply, &mut keeper, now);
            assert_eq!(supply.take_segment().map(|segment| segment.len), Some(len));
        }
        supply.want(100);
        carry_out(&mut supply, &mut keeper, now);
        assert!(supply.is_disk_full());
    }

    #[test]
    fn freed_segment_becomes_the_next_one_without_zeros() {
        let (mut supply, mut keeper) = with_reserve();
        let freed = OpenSegment { id: 5, file: FileId(5), len: LEN };
        assert_eq!(supply.offer(freed), None);
        supply.set_room(LEN);
        let now = Now { monotonic_ns: 1_000_000_000, clock_ms: 0 };
        // The new header, and the manifest twice.
        assert_eq!(carry_out(&mut supply, &mut keeper, now), 3 * 4096);
        let expected = OpenSegment { id: 7, file: FileId(3), len: LEN };
        assert_eq!(supply.take_segment(), Some(expected));
        assert_eq!(keeper.manifest().segments[0].id, 7);
    }
}
