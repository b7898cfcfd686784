//! The scrub: sealed segments are read again in the background, so that rot is found while there is
//! still a copy elsewhere, and reads of what is lost answer an error at once.
//!
//! ```text
//! resting ──(time)──> pass: each sealed segment: read ──sound──────────────> next ──> resting
//!                                                  └──bad──> read again ──> list, mark slots ─┘
//! ```
//!
//! One window of a segment is read at a time, as the budget allows; a segment that compaction frees
//! is left alone. Damage counts when it is seen twice. What is found goes to the repair list; slots
//! of the index without a sound record are marked as damaged. Nothing on disk is changed.

use std::collections::{BTreeMap, VecDeque};
use std::ops::ControlFlow;

use wal::Lsn;
use wal::disk::{DiskCompletion, DiskOperation, DiskRequest, FileName};
use wal::extent;
use wal::manifest::{Quarantine, Verdict};
use wal::procedure::Procedure;
use wal::record::Key;
use wal::replay::{self, Damage, Finding, ReplayedRecord, SegmentScan, SegmentSource, Settlement};
use wal::segment;

use super::{Event, Source, Store};
use crate::index::{Cursor, Keep, Place, SegmentNumber, Slot};
use crate::segments::{LINE_LEN, SegmentState};

/// The first pass begins this long after the start: 10 minutes.
const FIRST_PASS_AFTER_NS: u64 = 600 * NS_PER_SECOND;
/// The next one this long after the end of the last: 14 days.
const PASS_AFTER_NS: u64 = 14 * 86_400 * NS_PER_SECOND;
/// Most entries of the repair list; further ones are counted alone.
const REPAIR_COUNT_MAX: usize = 1024;
/// Slots looked at in one step when those of lost records are marked.
const MARKED_PER_STEP: usize = 16 << 10;
const NS_PER_SECOND: u64 = 1_000_000_000;

/// Where the scrub is and what it has found since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ScrubStatus {
    /// Passes ended.
    pub passes: u64,
    /// Bytes read.
    pub bytes: u64,
    /// Damaged ranges found; those found again in a later pass count again.
    pub findings: u64,
    /// Records that were marked as damaged because of these.
    pub records_damaged: u64,
    /// The segment being read; `None` between passes.
    pub segment: Option<u64>,
    /// Segments that this pass has still to read, that one included.
    pub segments_left: u64,
    /// Entries of the repair list.
    pub repairs: u64,
    /// Entries that found no room there.
    pub repairs_dropped: u64,
}

/// Why something is on the repair list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RepairReason {
    /// Bytes of a file are not what was written.
    #[error("{0}")]
    Range(Damage),
    /// A record is damaged or gone.
    #[error("the record is damaged; its key answers an error")]
    Record,
}

/// Something that is damaged on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Repair {
    /// The key, if it is known whose record it is.
    pub key: Option<Key>,
    /// The file.
    pub file: FileName,
    /// Where, in bytes; of a record whose key is not known, rounded down to a multiple of 64.
    pub offset: u64,
    /// What is wrong.
    pub reason: RepairReason,
}

/// State of the scrub, and the repair list.
pub(super) struct Scrub {
    bytes_per_second: u64,
    stage: Stage,
    segments_left: VecDeque<u64>,
    /// The budget allows the next read then.
    read_at_ns: u64,
    repairs: BTreeMap<(u64, u64, Option<Key>), RepairReason>,
    status: ScrubStatus,
}

enum Stage {
    /// Before the first turn.
    New,
    Resting {
        until_ns: u64,
    },
    /// Between two segments.
    Choosing,
    Reading(Reading),
    Marking(Marking),
}

struct Reading {
    segment: u64,
    is_second: bool,
    scan: Procedure<Scanned>,
    /// A request that waits for its turn.
    held: Option<DiskRequest>,
    /// The request under way, by its number within the procedure.
    under_way: Option<wal::disk::RequestId>,
}

/// Slots of a damaged segment being looked for.
struct Marking {
    number: SegmentNumber,
    segment: u64,
    sound: Lines,
    /// Those that have turned out to be damage are no longer among them.
    holes: Vec<Finding>,
    cursor: Cursor,
}

/// What a segment turned out to hold.
struct Scanned {
    findings: Vec<Finding>,
    /// Ranges without frames where no record is missing.
    holes: Vec<Finding>,
    /// Records whose headers are sound, and nothing else of them.
    damaged: Vec<(Key, u64)>,
    /// Keys and offsets of records in extents whose values are not sound, if a record names them.
    torn: Vec<(Key, u64)>,
    /// Whether there are extents of which not even the key can be made out.
    has_lost_extents: bool,
    sound: Lines,
}

/// Lines of a segment in which a sound record starts.
struct Lines(Vec<u64>);

impl Lines {
    fn of(segment_len: u64) -> Self {
        let words = segment_len.div_ceil(u64::from(LINE_LEN) * 64);
        Self(vec![0; usize::try_from(words).expect("a segment has few lines")])
    }

    fn insert(&mut self, line: u32) {
        if let Some(word) = self.0.get_mut(line as usize / 64) {
            *word |= 1 << (line % 64);
        }
    }

    fn contains(&self, line: u32) -> bool {
        self.0.get(line as usize / 64).is_some_and(|word| word >> (line % 64) & 1 == 1)
    }
}

impl Scrub {
    pub(super) fn new(bytes_per_second: u64) -> Self {
        Self {
            bytes_per_second,
            stage: Stage::New,
            segments_left: VecDeque::new(),
            read_at_ns: 0,
            repairs: BTreeMap::new(),
            status: ScrubStatus::default(),
        }
    }

    pub(super) fn status(&self) -> ScrubStatus {
        let segment = match &self.stage {
            Stage::Reading(Reading { segment, .. }) | Stage::Marking(Marking { segment, .. }) => {
                Some(*segment)
            }
            _ => None,
        };
        let segments_left = self.segments_left.len() as u64 + u64::from(segment.is_some());
        let repairs = self.repairs.len() as u64;
        ScrubStatus { segment, segments_left, repairs, ..self.status }
    }

    /// Whether a file must stay open because it is being read.
    pub(super) fn is_reading(&self, id: u64) -> bool {
        let Stage::Reading(reading) = &self.stage else { return false };
        reading.segment == id && reading.under_way.is_some()
    }

    /// When to go on.
    pub(super) fn due_at_ns(&self) -> Option<u64> {
        match &self.stage {
            _ if self.bytes_per_second == 0 => None,
            Stage::New | Stage::Reading(Reading { under_way: Some(_), .. }) => None,
            Stage::Resting { until_ns } => Some(*until_ns),
            Stage::Reading(_) => Some(self.read_at_ns),
            Stage::Choosing | Stage::Marking(_) => Some(0),
        }
    }

    /// Puts something on the repair list.
    pub(super) fn note(
        &mut self,
        segment: u64,
        offset: u64,
        key: Option<Key>,
        reason: RepairReason,
    ) {
        let place = (segment, offset, key);
        if self.repairs.len() < REPAIR_COUNT_MAX || self.repairs.contains_key(&place) {
            self.repairs.insert(place, reason);
        } else {
            self.status.repairs_dropped += 1;
        }
    }

    /// Takes what is about a segment off the repair list.
    pub(super) fn forget(&mut self, segment: u64) {
        self.repairs.retain(|(id, _, _), _| *id != segment);
    }
}

impl Store {
    /// What is known to be damaged on disk: by the scrub, and by reads that failed. Entries of
    /// segments that have gone are not in it.
    pub fn repairs(&self) -> impl Iterator<Item = Repair> {
        self.scrub.repairs.iter().map(|(&(segment, offset, key), &reason)| {
            let file = segment::file_name(&self.directory, segment);
            Repair { key, file, offset, reason }
        })
    }

    /// Goes on with the scrub as far as time and budget allow.
    pub(super) fn pump_scrub(&mut self) {
        if self.scrub.bytes_per_second == 0 || self.compaction.is_paused() {
            return;
        }
        // Each round ends a stage of a segment, or the loop.
        loop {
            self.scrub.stage = match std::mem::replace(&mut self.scrub.stage, Stage::Choosing) {
                Stage::New => {
                    let until_ns = self.now.monotonic_ns.saturating_add(FIRST_PASS_AFTER_NS);
                    Stage::Resting { until_ns }
                }
                Stage::Resting { until_ns } if until_ns > self.now.monotonic_ns => {
                    self.scrub.stage = Stage::Resting { until_ns };
                    return;
                }
                Stage::Resting { .. } => {
                    self.scrub.segments_left = self.scrubbed_segments();
                    Stage::Choosing
                }
                Stage::Choosing => self.choose_scrubbed(),
                Stage::Reading(reading) => match self.step_reading(reading) {
                    ControlFlow::Continue(next) => next,
                    ControlFlow::Break(waiting) => {
                        self.scrub.stage = waiting;
                        return;
                    }
                },
                Stage::Marking(marking) => {
                    self.scrub.stage = self.step_marking(marking);
                    return;
                }
            };
        }
    }

    /// Takes the end of the read under way.
    pub(super) fn handle_scrub(&mut self, completion: DiskCompletion) {
        if let Stage::Reading(reading) = &mut self.scrub.stage
            && let Some(id) = reading.under_way.take()
        {
            let len = completion.buffer.as_ref().map_or(0, |buffer| buffer.len() as u64);
            self.scrub.status.bytes += len;
            reading.scan.handle_disk(DiskCompletion { id, ..completion });
        }
    }

    fn scrubbed_segments(&self) -> VecDeque<u64> {
        let mut ids: Vec<u64> = (self.catalog.segments.iter())
            .filter(|(_, segment)| is_scrubbed(segment.state))
            .map(|(_, segment)| segment.id)
            .collect();
        ids.sort_unstable();
        ids.into()
    }

    fn choose_scrubbed(&mut self) -> Stage {
        while let Some(segment) = self.scrub.segments_left.pop_front() {
            if let Some(reading) = self.reading_of(segment, false) {
                return Stage::Reading(reading);
            }
        }
        self.scrub.status.passes += 1;
        Stage::Resting { until_ns: self.now.monotonic_ns.saturating_add(PASS_AFTER_NS) }
    }

    /// Begins to read a segment; `None` if it is on its way out.
    fn reading_of(&self, id: u64, is_second: bool) -> Option<Reading> {
        let segment = self.catalog.segments.by_id(id).filter(|s| is_scrubbed(s.state))?;
        let source =
            SegmentSource { id, file: segment.file, len: segment.len, cut: Some(segment.end) };
        let quarantine = &self.keeper.manifest().quarantine;
        let known = Known {
            given_up: quarantine.iter().filter(|range| range.segment == id).copied().collect(),
            quarantine: quarantine.clone(),
            lsns: segment.lsns,
        };
        let scan = scan(self.identity.store, source, known, is_second);
        Some(Reading { segment: id, is_second, scan, held: None, under_way: None })
    }

    /// Goes on reading; breaks if it has to wait.
    fn step_reading(&mut self, mut reading: Reading) -> ControlFlow<Stage, Stage> {
        if reading.under_way.is_some() {
            return ControlFlow::Break(Stage::Reading(reading));
        }
        let segment = self.catalog.segments.by_id(reading.segment);
        if !segment.is_some_and(|segment| is_scrubbed(segment.state)) {
            return ControlFlow::Continue(Stage::Choosing);
        }
        if let Some(scanned) = reading.scan.take_output() {
            return ControlFlow::Continue(self.judge(&reading, scanned));
        }
        reading.held = reading.held.or_else(|| reading.scan.poll_request());
        let now_ns = self.now.monotonic_ns;
        if self.scrub.read_at_ns > now_ns {
            return ControlFlow::Break(Stage::Reading(reading));
        }
        let Some(DiskRequest { id, operation }) = reading.held.take() else {
            return ControlFlow::Break(Stage::Reading(reading));
        };
        let cost = match &operation {
            DiskOperation::Read { len, .. } => *len as u64,
            _ => 0,
        };
        let wait_ns =
            u128::from(cost) * u128::from(NS_PER_SECOND) / u128::from(self.scrub.bytes_per_second);
        let wait_ns = u64::try_from(wait_ns).unwrap_or(u64::MAX);
        self.scrub.read_at_ns = now_ns.saturating_add(wait_ns);
        reading.under_way = Some(id);
        self.submit(Source::Scrub, operation);
        ControlFlow::Break(Stage::Reading(reading))
    }

    /// Decides what a read of a segment means.
    fn judge(&mut self, reading: &Reading, scanned: Scanned) -> Stage {
        let id = reading.segment;
        let torn: Vec<(Key, u64)> =
            scanned.torn.iter().filter(|(key, at)| self.is_named(key, id, *at)).copied().collect();
        let has_gaps = scanned.has_lost_extents || !scanned.holes.is_empty();
        if scanned.findings.is_empty() && torn.is_empty() && !has_gaps {
            return Stage::Choosing;
        }
        if !reading.is_second {
            // Memory or transfer errors vanish on a second look; rot does not.
            return self.reading_of(id, true).map_or(Stage::Choosing, Stage::Reading);
        }
        self.scrub.forget(id);
        scanned.findings.iter().for_each(|finding| self.note_finding(finding));
        for (key, offset) in scanned.damaged.iter().chain(&torn) {
            self.mark_damaged(key, id, *offset);
        }
        let harmless = |finding: &Finding| {
            matches!(
                finding.damage,
                Damage::FrameHeaderByte
                    | Damage::PaddingByte
                    | Damage::SegmentHeader
                    | Damage::Footer
                    | Damage::Stray
            )
        };
        match self.catalog.segments.number_of(id) {
            Some(number) if has_gaps || !scanned.findings.iter().all(harmless) => {
                let Scanned { sound, holes, .. } = scanned;
                let cursor = Cursor::default();
                Stage::Marking(Marking { number, segment: id, sound, holes, cursor })
            }
            _ => Stage::Choosing,
        }
    }

    fn note_finding(&mut self, finding: &Finding) {
        let Finding { segment, offset, len, damage } = *finding;
        self.scrub.status.findings += 1;
        self.scrub.note(segment, offset, None, RepairReason::Range(damage));
        let file = segment::file_name(&self.directory, segment);
        self.events.push_back(Event::Flaw { file, offset, len, damage });
    }

    /// Whether a slot that counts names the record there.
    fn is_named(&self, key: &Key, id: u64, offset: u64) -> bool {
        let segment = self.catalog.segments.number_of(id);
        let place = segment.zip(u32::try_from(offset / u64::from(LINE_LEN)).ok());
        place.is_some_and(|(segment, line)| {
            let place = Place { segment, line };
            self.catalog.candidates(key).any(|slot| slot.place == place && !slot.shadowed)
        })
    }

    /// Marks a record whose key is known as damaged, if it is of use.
    fn mark_damaged(&mut self, key: &Key, id: u64, offset: u64) {
        let Some(segment) = self.catalog.segments.number_of(id) else { return };
        let Ok(line) = u32::try_from(offset / u64::from(LINE_LEN)) else { return };
        let place = Place { segment, line };
        let found = self.catalog.candidates(key).find(|slot| slot.place == place);
        let Some(slot) = found.filter(|slot| !slot.shadowed) else { return };
        if !slot.damaged {
            self.catalog.replace(key, place, Slot { damaged: true, ..slot });
            self.hot.remove(key);
            self.scrub.status.records_damaged += 1;
        }
        self.scrub.note(id, offset, Some(*key), RepairReason::Record);
        let file = segment::file_name(&self.directory, id);
        self.events.push_back(Event::Damaged { key: *key, file, offset });
    }

    /// Marks slots for which no sound record was found, some at a time.
    fn step_marking(&mut self, marking: Marking) -> Stage {
        let Marking { number, segment, sound, mut holes, cursor } = marking;
        if self.catalog.segments.number_of(segment) != Some(number) {
            return Stage::Choosing;
        }
        let mut lost = Vec::new();
        let next = self.catalog.index.sweep(cursor, MARKED_PER_STEP, &mut |_, slot| {
            let Place { segment, line } = slot.place;
            if segment == number && !slot.damaged && !sound.contains(line) {
                slot.damaged = true;
                lost.push(line);
            }
            Keep::Stay
        });
        if !lost.is_empty() {
            self.hot.clear();
        }
        for line in lost {
            self.scrub.status.records_damaged += 1;
            let offset = u64::from(line) * u64::from(LINE_LEN);
            self.scrub.note(segment, offset, None, RepairReason::Record);
            let is_in =
                |hole: &mut Finding| (hole.offset..hole.offset + hole.len).contains(&offset);
            holes.extract_if(.., is_in).for_each(|hole| self.note_finding(&hole));
        }
        match next {
            Some(cursor) => Stage::Marking(Marking { number, segment, sound, holes, cursor }),
            None => Stage::Choosing,
        }
    }
}

/// Whether a segment in this state is read: its bytes are final, and it is to stay.
fn is_scrubbed(state: SegmentState) -> bool {
    matches!(state, SegmentState::Sealed | SegmentState::Unfit)
}

/// What is known of a segment that is read.
struct Known {
    /// What was given up of it, and of all of them.
    given_up: Vec<Quarantine>,
    quarantine: Vec<Quarantine>,
    /// The first and the last record that it was found or written with.
    lsns: Option<(Lsn, Lsn)>,
}

impl Known {
    /// What was found that is not as it should be, and holes: a write without records that a crash
    /// cut short, or kept from the disk, leaves one for as long as the segment is there. Where no
    /// record is missing it is damage only if it was a value beside the log that is still there.
    fn judge(&self, scan: &SegmentScan) -> (Vec<Finding>, Vec<Finding>) {
        let (first_lsn, last_lsn) = self.lsns.unwrap_or_default();
        let elsewhere = Quarantine {
            segment: scan.id,
            offset: 0,
            len: 0,
            first_lsn: Lsn(1),
            last_lsn: first_lsn.before(),
            verdict: Verdict::Freed,
        };
        let known = [self.quarantine.as_slice(), &[elsewhere]].concat();
        let settlement = replay::settle(std::slice::from_ref(scan), &known, last_lsn);
        let (holes, others): (Vec<_>, Vec<_>) =
            settlement.uncertain.into_iter().partition(hides_extents);
        let footer = others.into_iter().filter(|finding| finding.damage == Damage::Footer);
        (settlement.findings.into_iter().chain(footer).collect(), holes)
    }
}

/// Reads a segment whole; what was given up earlier is no news. On the second look, a damaged one
/// is read once more to make out its records.
fn scan(
    store: [u8; 16],
    source: SegmentSource,
    known: Known,
    is_second: bool,
) -> Procedure<Scanned> {
    Procedure::new(move |port| async move {
        let (mut damaged, mut sound) = (Vec::new(), Lines::of(source.len));
        let given_up = known.given_up.as_slice();
        let scan = replay::scan_segment(&port, store, source, given_up, &mut |_| ()).await;
        let (mut findings, mut holes) = known.judge(&scan);
        let is_accepted = |finding: &Finding| {
            given_up.iter().any(|range| {
                range.verdict == Verdict::Accepted
                    && (range.offset..range.offset + range.len.max(1)).contains(&finding.offset)
            })
        };
        let (mut torn, mut has_lost_extents) = (Vec::new(), false);
        let mut extents = scan.extents;
        if is_second {
            // A large value needs no frame to be read: without one it is not lost.
            for Finding { offset, len, .. } in scan.findings.iter().filter(|f| hides_extents(f)) {
                let range = (*offset, offset + len);
                extents.extend(extent::find_without_frames(&port, store, source, range).await);
            }
        }
        for range in extents {
            let content = extent::verify(&port, store, source, range).await;
            match content.record {
                Some((_, location)) if content.is_sound => {
                    sound.insert(location.offset / LINE_LEN);
                }
                Some((key, location)) => torn.push((key, u64::from(location.offset))),
                None => has_lost_extents = true,
            }
        }
        findings.retain(|finding| !is_accepted(finding));
        holes.retain(|hole| !is_accepted(hole));
        if is_second && (has_lost_extents || !findings.is_empty() || !holes.is_empty()) {
            let mut visit = |record: ReplayedRecord| {
                if !record.damaged {
                    sound.insert(record.location.offset / LINE_LEN);
                } else if damaged.len() < REPAIR_COUNT_MAX {
                    damaged.push((record.key, u64::from(record.location.offset)));
                }
            };
            let settlement = everything_durable(known.given_up);
            replay::scan_settled(&port, store, source, &settlement, &mut visit).await;
        }
        // Those whose key is known are marked by it.
        for (_, offset) in &torn {
            sound.insert(u32::try_from(offset / u64::from(LINE_LEN)).unwrap_or(u32::MAX));
        }
        Scanned { findings, holes, damaged, torn, has_lost_extents, sound }
    })
}

/// Whether there may be extents in a damaged range that a scan does not step over.
pub(crate) fn hides_extents(finding: &Finding) -> bool {
    matches!(finding.damage, Damage::NoFrame | Damage::Stray)
}

/// In a sealed segment every record was durable once.
fn everything_durable(quarantine: Vec<Quarantine>) -> Settlement {
    let last_lsn = Lsn(u64::MAX);
    Settlement {
        watermark: last_lsn,
        last_lsn,
        wall_ms: 0,
        quarantine,
        tail_uncertain_bytes: 0,
        salvaged: Vec::new(),
        findings: Vec::new(),
        uncertain: Vec::new(),
    }
}
