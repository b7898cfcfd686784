//! From segments to an index: by the newest checkpoint and the frames after it, or by all frames,
//! or by footers where a segment has one.
//!
//! All ways lead to the same answers. Shortcuts are taken only where nothing is in doubt:
//! * a segment that was complete at the cut and still is as long as the manifest says is not read,
//!   unless acknowledged records are known to be lost in it;
//! * when the checkpoint is damaged, a listed file is missing, a record up to the cut turns up in a
//!   segment that the checkpoint does not know, or damage is found, everything is scanned.

use std::collections::{BTreeMap, VecDeque};

use wal::Lsn;
use wal::disk::{
    BLOCK_SIZE, DiskError, DiskErrorKind, DiskOperation, DiskOutput, FileName, OpenMode,
};
use wal::footer::{self, Footer};
use wal::group_commit::OpenSegment;
use wal::manifest::{CheckpointEntry, Manifest, Quarantine, SegmentEntry, Verdict};
use wal::procedure::{DiskPort, InOrder};
use wal::record::Version;
use wal::replay::{self, ReplayedRecord, SegmentScan, SegmentSource, Settlement};
use wal::segment;

use super::scans::OpenedSegment;
use super::{CHECKPOINT_FILE, disk_error};
use crate::catalog::Catalog;
use crate::checkpoint::load::{Checkpoint, load, load_mapped};
use crate::checkpoint::{CheckpointError, CheckpointId, SegmentSummary, file_name};
use crate::error::OpenError;
use crate::rebuild::Rebuild;
use crate::segments::{Segment, SegmentState};
use crate::store::CheckpointLoader;

/// Footers read at a time: at most 1/16 of a segment each, 4 MiB with segments of 64 MiB.
const FOOTERS_AHEAD_MAX: usize = 8;

/// What recovery may go by instead of scanning frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Shortcuts {
    pub(crate) checkpoint: Option<CheckpointLoader>,
    pub(crate) footers: bool,
}

/// What recovery went by.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecoverySources {
    /// Slots taken from a checkpoint.
    pub checkpoint_slots: u64,
    /// Bytes of that checkpoint.
    pub checkpoint_bytes: u64,
    /// Why the checkpoint was not used, if there was one and it was not.
    pub checkpoint_refused: Option<String>,
    /// Segments that were not read: the checkpoint covers them.
    pub segments_covered: u64,
    /// Segments whose footer was read.
    pub segments_from_footers: u64,
    /// Segments whose frames were scanned.
    pub segments_scanned: u64,
    /// Bytes of frames scanned.
    pub bytes_scanned: u64,
    /// Records taken from footers and frames.
    pub records_replayed: u64,
}

/// How a segment's records are known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Covered,
    Footer,
    Scan,
}

/// What reading all segments found.
pub(super) struct Scanned {
    pub(super) scans: Vec<(OpenSegment, SegmentEntry, SegmentScan)>,
    pub(super) settlement: Settlement,
    pub(super) rebuilt: Rebuild,
    pub(super) sources: RecoverySources,
    /// The checkpoint it rests on.
    pub(super) checkpoint: Option<CheckpointEntry>,
    /// Bytes of log that it does not cover.
    pub(super) log_bytes: u64,
}

/// Why a checkpoint is not gone by.
#[derive(Debug, thiserror::Error)]
enum Doubt {
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    #[error("segment {0} is missing or short")]
    Missing(u64),
    #[error("segment {0} has records of before the checkpoint, which does not know it")]
    Unknown(u64),
    #[error("the manifest does not say that all of the checkpoint is durable")]
    NotDurable,
    #[error("damage was found in the log")]
    Damage,
    #[error("more segments than can be numbered")]
    Numbers,
}

/// By which time replaying tells what has expired.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moment {
    pub(crate) now_ms: u64,
    /// What has expired stays so long.
    pub(crate) expired_stay_ms: u64,
}

/// Everything that replaying needs.
#[derive(Clone, Copy)]
pub(super) struct Replay<'a> {
    pub(super) port: &'a DiskPort,
    pub(super) directory: &'a FileName,
    pub(super) manifest: &'a Manifest,
    pub(super) opened: &'a [OpenedSegment],
    pub(super) moment: Moment,
    pub(super) shortcuts: Shortcuts,
}

/// Where replaying starts: at nothing, or at a checkpoint.
struct Start {
    catalog: Catalog,
    /// Records up to this one are in the catalog.
    lsn: Lsn,
    version_max: Version,
    wall_ms: u64,
    /// The segments that the checkpoint knows.
    summaries: BTreeMap<u64, SegmentSummary>,
    slots: u64,
}

/// One pass over the segments.
struct Pass {
    rebuild: Rebuild,
    lsn: Lsn,
    wall_ms: u64,
    summaries: BTreeMap<u64, SegmentSummary>,
    slots: u64,
    ways: Vec<Way>,
    scans: Vec<SegmentScan>,
    records: u64,
}

impl Replay<'_> {
    /// Builds the index from whatever is there.
    pub(super) async fn run(&self) -> Result<Scanned, OpenError> {
        let mut refused = None;
        if let (Some(loader), Some(entry)) = (self.shortcuts.checkpoint, self.manifest.checkpoint) {
            match self.by_checkpoint(loader, entry).await {
                Ok(scanned) => return Ok(scanned),
                Err(doubt) => refused = Some(doubt.to_string()),
            }
        }
        let (mut pass, mut settlement) = self.first_pass(self.blank()?).await;
        if pass.needs_another(&settlement) {
            pass = self.second_pass(self.blank()?, pass, &settlement).await;
        }
        settlement.wall_ms = settlement.wall_ms.max(pass.wall_ms);
        let mut scanned = self.finish(pass, settlement, None);
        scanned.sources.checkpoint_refused = refused;
        Ok(scanned)
    }

    /// The index of the checkpoint, and what was logged since.
    async fn by_checkpoint(
        &self,
        loader: CheckpointLoader,
        entry: CheckpointEntry,
    ) -> Result<Scanned, Doubt> {
        let is_there = |segment: &&SegmentEntry| {
            self.opened.iter().any(|(open, _)| open.id == segment.id && open.len >= segment.len)
        };
        if let Some(missing) = self.manifest.segments.iter().find(|segment| !is_there(segment)) {
            return Err(Doubt::Missing(missing.id));
        }
        if self.manifest.durable_lsn < entry.lsn {
            return Err(Doubt::NotDurable);
        }
        let start = self.start(self.load(loader, entry).await?)?;
        let (mut pass, mut settlement) = self.first_pass(start).await;
        self.doubt(&pass, &settlement)?;
        if pass.needs_another(&settlement) {
            // The first pass has changed the checkpoint's index.
            let start = self.start(self.load(loader, entry).await?)?;
            pass = self.second_pass(start, pass, &settlement).await;
        }
        settlement.wall_ms = settlement.wall_ms.max(pass.wall_ms);
        Ok(self.finish(pass, settlement, Some(entry)))
    }

    /// Reads the checkpoint's file.
    async fn load(
        &self,
        loader: CheckpointLoader,
        entry: CheckpointEntry,
    ) -> Result<Checkpoint, CheckpointError> {
        load_listed(self.port, self.directory, self.manifest, entry, loader).await
    }

    fn blank(&self) -> Result<Start, OpenError> {
        let mut catalog = Catalog::default();
        for (open, _) in self.opened {
            if catalog.segments.add(Segment::new(*open, SegmentState::Sealed)).is_none() {
                let source = DiskError { kind: DiskErrorKind::NoSpace, code: 0 };
                let name = segment::file_name(self.directory, open.id);
                return Err(disk_error("numbering", &name, source));
            }
        }
        Ok(Start {
            catalog,
            lsn: Lsn::ZERO,
            version_max: Version::default(),
            wall_ms: 0,
            summaries: BTreeMap::new(),
            slots: 0,
        })
    }

    /// A catalog with the checkpoint's index, in which segments that are still there have the
    /// numbers they had.
    fn start(&self, checkpoint: Checkpoint) -> Result<Start, Doubt> {
        let Checkpoint { facts, index } = checkpoint;
        let mut catalog = Catalog::default();
        let summaries: BTreeMap<u64, SegmentSummary> =
            facts.segments.iter().map(|summary| (summary.id, *summary)).collect();
        for (open, _) in self.opened {
            let Some(summary) = summaries.get(&open.id) else { continue };
            let mut segment = Segment::new(*open, SegmentState::Sealed);
            segment.tombstone_bytes = summary.tombstone_bytes;
            segment.has_clear = summary.has_clear;
            catalog.segments.add_as(summary.number, segment);
        }
        catalog.segments.find_unused();
        let slots = index.len();
        catalog.adopt(index, facts.bases);
        for (open, _) in self.opened {
            let segment = Segment::new(*open, SegmentState::Sealed);
            if !summaries.contains_key(&open.id) && catalog.segments.add(segment).is_none() {
                return Err(Doubt::Numbers);
            }
        }
        Ok(Start {
            catalog,
            lsn: facts.id.lsn,
            version_max: facts.version_max,
            wall_ms: facts.wall_ms,
            summaries,
            slots,
        })
    }

    /// How a segment's records get known.
    fn way(&self, start: &Start, entry: &SegmentEntry) -> Way {
        let mut ranges = self.manifest.quarantine.iter().filter(|range| range.segment == entry.id);
        let is_covered = start.summaries.get(&entry.id).is_some_and(|summary| summary.complete);
        let is_loss = |verdict| matches!(verdict, Verdict::Corruption | Verdict::Accepted);
        if is_covered && !ranges.clone().any(|range| is_loss(range.verdict)) {
            return Way::Covered;
        }
        let is_listed = self.manifest.segments.contains(entry);
        let footer = self.shortcuts.footers && is_listed && ranges.next().is_none();
        if footer { Way::Footer } else { Way::Scan }
    }

    async fn first_pass(&self, start: Start) -> (Pass, Settlement) {
        let ways = self.opened.iter().map(|(_, entry)| self.way(&start, entry)).collect();
        let Manifest { quarantine, durable_lsn, .. } = self.manifest;
        let mut pass = Pass::new(start, ways, self.moment, quarantine);
        let mut footers = FooterReads::new(self, &pass.ways, 0..self.opened.len());
        for at in 0..self.opened.len() {
            let (open, entry) = &self.opened[at];
            let summary = pass.summaries.get(&open.id).copied();
            let scan = match (pass.ways[at], summary.and_then(|summary| summary.lsns)) {
                (Way::Covered, Some(lsns)) => {
                    let end = summary.map_or(0, |summary| summary.end);
                    SegmentScan::known(open.id, end, lsns)
                }
                (Way::Footer, _) if let Some(footer) = footers.next().await => {
                    footer.records().for_each(|record| pass.take(&record));
                    SegmentScan::from_footer(&footer)
                }
                _ => {
                    pass.ways[at] = Way::Scan;
                    let (store, source) = (self.manifest.identity.store, source(open, entry));
                    let visit = &mut |record| pass.take(&record);
                    replay::scan_segment(self.port, store, source, quarantine, visit).await
                }
            };
            pass.scans.push(scan);
        }
        let settlement = replay::settle(&pass.scans, quarantine, *durable_lsn);
        (pass, settlement)
    }

    /// Goes over the segments again, in the order of their records and with what is settled now:
    /// what was salvaged is at its place, what was torn is not there.
    async fn second_pass(&self, start: Start, first: Pass, settlement: &Settlement) -> Pass {
        let mut order: Vec<usize> =
            (0..self.opened.len()).filter(|at| first.scans[*at].lsns().is_some()).collect();
        order.sort_by_key(|at| first.scans[*at].lsns());
        let mut pass = Pass::new(start, first.ways, self.moment, &settlement.quarantine);
        let mut footers = FooterReads::new(self, &pass.ways, order.iter().copied());
        for at in order {
            match pass.ways[at] {
                Way::Covered => {}
                Way::Footer => match footers.next().await {
                    Some(footer) => footer.records().for_each(|record| pass.take(&record)),
                    None => self.scan_again(&mut pass, at, settlement).await,
                },
                Way::Scan => self.scan_again(&mut pass, at, settlement).await,
            }
        }
        pass.scans = first.scans;
        pass
    }

    /// Takes a segment's records with what was salvaged of it at its place.
    async fn scan_again(&self, pass: &mut Pass, at: usize, settlement: &Settlement) {
        let (open, entry) = &self.opened[at];
        let salvaged = settlement.salvaged.iter();
        let mut salvaged: Vec<ReplayedRecord> =
            salvaged.filter(|record| record.location.segment == entry.id).copied().collect();
        salvaged.sort_by_key(|record| record.location.offset);
        let mut salvaged = salvaged.into_iter().peekable();
        let mut visit = |record: ReplayedRecord| {
            while let Some(earlier) =
                salvaged.next_if(|salvaged| salvaged.location.offset < record.location.offset)
            {
                pass.take(&earlier);
            }
            pass.take(&record);
        };
        let (store, skip) = (self.manifest.identity.store, &self.manifest.quarantine);
        replay::scan_segment(self.port, store, source(open, entry), skip, &mut visit).await;
        salvaged.for_each(|record| pass.take(&record));
    }

    /// Whether anything found beside a checkpoint calls for a look at everything.
    fn doubt(&self, pass: &Pass, settlement: &Settlement) -> Result<(), Doubt> {
        let before = |verdict| matches!(verdict, Verdict::Corruption | Verdict::Accepted);
        let losses = |ranges: &[Quarantine]| ranges.iter().filter(|r| before(r.verdict)).count();
        let is_damaged = !settlement.findings.is_empty()
            || !settlement.salvaged.is_empty()
            || losses(&settlement.quarantine) > losses(&self.manifest.quarantine);
        if is_damaged {
            return Err(Doubt::Damage);
        }
        for scan in &pass.scans {
            let is_older = scan.lsns().is_some_and(|(first, _)| first <= pass.lsn);
            if is_older && !pass.summaries.contains_key(&scan.id) {
                return Err(Doubt::Unknown(scan.id));
            }
        }
        Ok(())
    }

    fn finish(
        &self,
        mut pass: Pass,
        settlement: Settlement,
        checkpoint: Option<CheckpointEntry>,
    ) -> Scanned {
        let count = |way| pass.ways.iter().filter(|found| **found == way).count() as u64;
        let scanned = pass.scans.iter().zip(&pass.ways).filter(|(_, way)| **way == Way::Scan);
        let sources = RecoverySources {
            checkpoint_slots: pass.slots,
            checkpoint_bytes: checkpoint.map_or(0, |entry| entry.len),
            checkpoint_refused: None,
            segments_covered: count(Way::Covered),
            segments_from_footers: count(Way::Footer),
            segments_scanned: count(Way::Scan),
            bytes_scanned: scanned.map(|(scan, _)| scan.end).sum(),
            records_replayed: pass.records,
        };
        for scan in &pass.scans {
            if let Some(segment) = pass.rebuild.catalog.segments.by_id_mut(scan.id) {
                (segment.end, segment.lsns) = (scan.end, scan.lsns());
            }
        }
        let uncovered = pass.scans.iter().zip(&pass.ways).filter(|(_, way)| **way != Way::Covered);
        let log_bytes = uncovered.map(|(scan, _)| scan.end).sum();
        let opened = self.opened.iter().copied();
        let scans = opened.zip(pass.scans).map(|((open, entry), scan)| (open, entry, scan));
        let (scans, rebuilt) = (scans.collect(), pass.rebuild);
        Scanned { scans, settlement, rebuilt, sources, checkpoint, log_bytes }
    }
}

/// Footers of segments, read a few ahead of whoever takes their records.
struct FooterReads {
    port: DiskPort,
    store: [u8; 16],
    todo: VecDeque<SegmentSource>,
    under_way: InOrder<Option<Footer>>,
}

impl FooterReads {
    /// Of the segments `order` whose way it is, in this order.
    fn new(replay: &Replay<'_>, ways: &[Way], order: impl Iterator<Item = usize>) -> Self {
        let by_footer = order.filter(|at| ways[*at] == Way::Footer);
        let todo = by_footer.map(|at| source(&replay.opened[at].0, &replay.opened[at].1)).collect();
        let (port, store) = (replay.port.clone(), replay.manifest.identity.store);
        Self { port, store, todo, under_way: InOrder::default() }
    }

    /// The next segment's footer; `None` if it has no sound one.
    async fn next(&mut self) -> Option<Footer> {
        while self.under_way.len() < FOOTERS_AHEAD_MAX
            && let Some(source) = self.todo.pop_front()
        {
            let (port, store) = (self.port.clone(), self.store);
            self.under_way.push(async move { footer::read_footer(&port, store, &source).await });
        }
        self.under_way.next().await.flatten()
    }
}

impl Pass {
    fn new(start: Start, ways: Vec<Way>, moment: Moment, quarantine: &[Quarantine]) -> Self {
        let Start { mut catalog, lsn, version_max, wall_ms, summaries, slots } = start;
        catalog.expired_stay_ms = moment.expired_stay_ms;
        let mut rebuild = Rebuild::new(catalog, moment.now_ms.max(wall_ms), quarantine);
        rebuild.version_max = version_max;
        let (scans, records) = (Vec::new(), 0);
        Self { rebuild, lsn, wall_ms, summaries, slots, ways, scans, records }
    }

    /// Takes a record that the checkpoint does not have.
    fn take(&mut self, record: &ReplayedRecord) {
        if record.lsn > self.lsn {
            self.records += 1;
            self.rebuild.take(record);
        }
    }

    /// Append order is the segments' own, by their first records, and is known for sure only when
    /// all are read, as is what counts of damaged frames: whether this pass guessed wrong.
    fn needs_another(&self, settlement: &Settlement) -> bool {
        let read = self.scans.iter().zip(&self.ways).filter(|(_, way)| **way != Way::Covered);
        let in_order = read.filter_map(|(scan, _)| scan.lsns()).is_sorted();
        !in_order
            || !settlement.salvaged.is_empty()
            || self.rebuild.has_void_touches(&settlement.quarantine)
    }
}

fn source(open: &OpenSegment, entry: &SegmentEntry) -> SegmentSource {
    SegmentSource { id: entry.id, file: open.file, len: open.len, cut: entry.cut }
}

/// Reads and verifies the checkpoint that a manifest names.
pub(crate) async fn load_listed(
    port: &DiskPort,
    directory: &FileName,
    manifest: &Manifest,
    entry: CheckpointEntry,
    loader: CheckpointLoader,
) -> Result<Checkpoint, CheckpointError> {
    let identity = &manifest.identity;
    let id = CheckpointId {
        store: identity.store,
        shard: identity.shard,
        shard_count: identity.shard_count,
        lsn: entry.lsn,
    };
    let (file, name) = (CHECKPOINT_FILE, file_name(directory, entry.lsn));
    if loader == CheckpointLoader::Direct {
        return load(port, file, name, id).await;
    }
    let failed = |source| CheckpointError::Disk { action: "mapping", source };
    let mode = OpenMode::Read;
    let opened = port.call(DiskOperation::Open { file, name, mode }).await.map_err(failed)?;
    let found = match opened {
        DiskOutput::Opened { len } => len,
        _ => 0,
    };
    let len = usize::try_from(found).unwrap_or(0);
    let mapped = if found == entry.len && len > 0 && len.is_multiple_of(BLOCK_SIZE) {
        port.transfer(DiskOperation::Map { file, len }).await.map_err(failed)
    } else {
        Err(CheckpointError::Length { needed: entry.len, found })
    };
    // Nothing was written: a failing close loses nothing.
    let _closed = port.call(DiskOperation::Close { file }).await;
    load_mapped(mapped?, &id)
}
