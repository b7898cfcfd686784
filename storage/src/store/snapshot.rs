//! Snapshots: the segments as they are at a cut, under second names (hard links) in a directory
//! that is laid out as the shard's own.
//!
//! ```text
//! asked for -> a spare is there -> no edit frees a segment -> the active segment is left: the cut
//!           -> all segments up to the cut are sealed -> linked, summed, two manifests -> durable
//! ```
//!
//! From the moment a spare is there until it ends, no segment leaves the manifest; before that they
//! do, or a full disk would never have room for the spare. A sealed segment is never written again,
//! so its links stay as they are; that is why the file of a segment that may have been linked
//! ([`Snapshots::may_be_linked`]) must never become another segment. Sealed segments have been
//! summed as they were written; those from before the last start are read.

use std::collections::BTreeMap;

use wal::checksum::{self, RunningChecksum};
use wal::disk::{BLOCK_SIZE, DiskCompletion, DiskError, DiskErrorKind, DiskOperation, Durability};
use wal::disk::{FileId, FileName, IoBuffer, OpenMode};
use wal::group_commit::SealedSegment;
use wal::manifest::{self, Manifest, SegmentEntry};
use wal::procedure::{DiskPort, Procedure};
use wal::segment::{self, SEGMENT_HEADER_LEN};

use super::{Event, Source, Store};

/// The one file that a snapshot opens at a time; segments count from the other end.
const SNAPSHOT_FILE: FileId = FileId(u32::MAX - 16);
/// Segments that were not summed when they were written are read in pieces of this many bytes.
const PIECE_LEN: usize = 256 << 10;

/// A file of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotFile {
    /// Its name in the snapshot's directory.
    pub name: String,
    /// Bytes of the file.
    pub len: u64,
    /// How many of these, from its start, mean something.
    pub used: u64,
    /// CRC-32 of the used bytes.
    pub crc32: u32,
}

/// What is known of a segment's checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sum {
    /// Of its frames, which end here; its first block is not part of it.
    Frames { end: u64, crc32: u32 },
    /// Of all of its used bytes.
    Whole { used: u64, crc32: u32 },
}

impl Sum {
    fn end(self) -> u64 {
        match self {
            Self::Frames { end, .. } => end,
            Self::Whole { used, .. } => used,
        }
    }
}

/// A segment to be linked.
#[derive(Clone, Copy, Debug)]
struct Part {
    id: u64,
    file: FileId,
    len: u64,
    used: u64,
    sum: Option<Sum>,
}

type Linked = Result<(Vec<SnapshotFile>, Vec<(u64, Sum)>), DiskError>;

enum Stage {
    Idle,
    /// Waits for a spare, so that writes can go on.
    Asked(FileName),
    /// Waits for edits that free segments.
    Ready(FileName),
    /// Waits until these segments are sealed; they hold the log up to the cut.
    Sealing {
        into: FileName,
        manifest: Manifest,
    },
    Linking(Procedure<Linked>),
}

/// The snapshot under way, and what is known for the next one.
pub(super) struct Snapshots {
    stage: Stage,
    /// By segment.
    sums: BTreeMap<u64, Sum>,
    /// Segments below this id may have been linked.
    linked_below: u64,
}

impl Snapshots {
    /// Nobody remembers what was linked before the start: segments below `next_segment` may be.
    pub(super) fn new(next_segment: u64) -> Self {
        Self { stage: Stage::Idle, sums: BTreeMap::new(), linked_below: next_segment }
    }

    /// Whether no segment may leave the manifest now.
    pub(super) fn holds_segments(&self) -> bool {
        !matches!(self.stage, Stage::Idle | Stage::Asked(_))
    }

    /// Whether a snapshot may share the segment's file, which must not be written again then.
    pub(super) fn may_be_linked(&self, segment: u64) -> bool {
        segment < self.linked_below
    }

    /// Notes a segment that the log has sealed.
    pub(super) fn note_sealed(&mut self, sealed: &SealedSegment) {
        let (end, crc32) = (sealed.summary.frames_end, sealed.summary.frames_crc);
        self.sums.insert(sealed.segment.id, Sum::Frames { end, crc32 });
    }

    /// Forgets a segment that is gone.
    pub(super) fn forget(&mut self, segment: u64) {
        self.sums.remove(&segment);
    }

    /// Where a segment's frames end, if it is sealed.
    fn end_of(&self, entry: &SegmentEntry) -> Option<u64> {
        entry.cut.or_else(|| self.sums.get(&entry.id).map(|sum| sum.end()))
    }
}

impl Store {
    /// Takes a snapshot of everything appended so far, durable or not yet, into a new directory
    /// `into`, whose parent exists. [`Event::Snapshotted`] tells how it ended; what a failed one
    /// has left there is the caller's to remove. The caller also makes the directory's own name
    /// durable.
    ///
    /// # Panics
    /// If a snapshot is being taken already.
    pub fn snapshot(&mut self, into: FileName) {
        let idle = matches!(self.snapshots.stage, Stage::Idle);
        assert!(idle, "one snapshot is taken at a time");
        self.snapshots.stage = Stage::Asked(into);
    }

    /// Goes on with the snapshot under way.
    pub(super) fn pump_snapshot(&mut self) {
        if let Stage::Asked(into) | Stage::Ready(into) = &self.snapshots.stage {
            let into = into.clone();
            self.cut_snapshot(into);
        }
        if let Stage::Sealing { .. } = &self.snapshots.stage {
            self.link_snapshot();
        }
        let mut outgoing = Vec::new();
        if let Stage::Linking(linking) = &mut self.snapshots.stage {
            outgoing.extend(std::iter::from_fn(|| linking.poll_request()));
            if let Some(result) = linking.take_output() {
                self.end_snapshot(result);
            }
        }
        for request in outgoing {
            self.submit(Source::Snapshot(request.id), request.operation);
        }
    }

    pub(super) fn handle_snapshot(&mut self, completion: DiskCompletion) {
        if let Stage::Linking(linking) = &mut self.snapshots.stage {
            linking.handle_disk(completion);
        }
        self.pump_snapshot();
    }

    /// Leaves the active segment, as soon as writes can go on in another one.
    fn cut_snapshot(&mut self, into: FileName) {
        if let Some(error) = self.log.failure() {
            return self.end_snapshot(Err(error));
        }
        if self.log.spare_count() == 0 {
            let no_number = !self.catalog.segments.has_room();
            let full = no_number.then_some(DiskError { kind: DiskErrorKind::NoSpace, code: 0 });
            if let Some(error) = self.supply.failure().or(full) {
                return self.end_snapshot(Err(error));
            }
            self.snapshots.stage = Stage::Asked(into);
            return;
        }
        if self.is_freeing_segments() {
            self.snapshots.stage = Stage::Ready(into);
            return;
        }
        self.log.roll();
        self.log.request_sync();
        let mut manifest = self.keeper.manifest().clone();
        manifest.segments.retain(|entry| {
            let holds_records = |id| {
                let segment = self.catalog.segments.by_id(id);
                segment.is_some_and(|segment| segment.lsns.is_some() || segment.end > 0)
            };
            self.snapshots.end_of(entry).is_some() || holds_records(entry.id)
        });
        manifest.sequence += 1;
        manifest.durable_lsn = self.log.last_lsn();
        // Checkpoint files are not part of a snapshot.
        manifest.checkpoint = None;
        self.snapshots.stage = Stage::Sealing { into, manifest };
    }

    /// Starts to link, once everything up to the cut is sealed, and so durable.
    fn link_snapshot(&mut self) {
        if let Some(error) = self.log.failure() {
            return self.end_snapshot(Err(error));
        }
        let Stage::Sealing { into, manifest } = &self.snapshots.stage else { return };
        let ends = manifest.segments.iter().map(|entry| self.snapshots.end_of(entry));
        let Some(ends) = ends.collect::<Option<Vec<u64>>>() else { return };
        let (into, mut manifest) = (into.clone(), manifest.clone());
        let mut parts = Vec::with_capacity(ends.len());
        for (entry, end) in manifest.segments.iter_mut().zip(ends) {
            entry.cut = Some(end);
            let Some(segment) = self.catalog.segments.by_id(entry.id) else {
                return self
                    .end_snapshot(Err(DiskError { kind: DiskErrorKind::NotFound, code: 0 }));
            };
            let used = end.min(segment.len);
            let sum = self.snapshots.sums.get(&entry.id).copied();
            parts.push(Part { id: entry.id, file: segment.file, len: segment.len, used, sum });
        }
        let highest = parts.iter().map(|part| part.id + 1).max().unwrap_or(0);
        self.snapshots.linked_below = self.snapshots.linked_below.max(highest);
        let from = self.directory.clone();
        self.snapshots.stage =
            Stage::Linking(Procedure::new(|port| link(port, from, into, parts, manifest)));
    }

    fn end_snapshot(&mut self, result: Linked) {
        self.snapshots.stage = Stage::Idle;
        let result = result.map(|(files, sums)| {
            self.snapshots.sums.extend(sums);
            files
        });
        let segments = &self.catalog.segments;
        self.snapshots.sums.retain(|id, _| segments.number_of(*id).is_some());
        self.events.push_back(Event::Snapshotted { result });
    }
}

/// Links the segments, writes the manifests, and makes all of it durable. Also tells the checksums
/// that are known from now on.
async fn link(
    port: DiskPort,
    from: FileName,
    into: FileName,
    parts: Vec<Part>,
    manifest: Manifest,
) -> Linked {
    port.call(DiskOperation::CreateDirectory { name: into.clone() }).await?;
    let (mut files, mut sums) = (Vec::new(), Vec::new());
    for part in parts {
        let to = segment::file_name(&into, part.id);
        let link = DiskOperation::Link { from: segment::file_name(&from, part.id), to: to.clone() };
        port.call(link).await?;
        let crc32 = match part.sum {
            Some(Sum::Whole { used, crc32 }) if used == part.used => crc32,
            Some(Sum::Frames { end, crc32 }) if end == part.used => {
                let first = read(&port, part.file, 0, IoBuffer::with_capacity(BLOCK_SIZE)).await?;
                checksum::joined(first.as_slice(), crc32, part.used - SEGMENT_HEADER_LEN)
            }
            _ => sum_of(&port, &part).await?,
        };
        sums.push((part.id, Sum::Whole { used: part.used, crc32 }));
        files.push(SnapshotFile { name: base(&to), len: part.len, used: part.used, crc32 });
    }
    for copy in 0..2 {
        let name = manifest::file_name(&into, copy);
        let buffer = manifest.encode();
        let (len, crc32) = (buffer.len() as u64, checksum::plain(buffer.as_slice()));
        write_file(&port, &name, buffer).await?;
        files.push(SnapshotFile { name: base(&name), len, used: len, crc32 });
    }
    port.call(DiskOperation::SyncDirectory { name: into }).await?;
    Ok((files, sums))
}

/// The name within its directory.
fn base(name: &FileName) -> String {
    let path = name.as_str();
    path.rsplit_once('/').map_or(path, |(_, name)| name).to_owned()
}

async fn read(
    port: &DiskPort,
    file: FileId,
    offset: u64,
    buffer: IoBuffer,
) -> Result<IoBuffer, DiskError> {
    let len = buffer.capacity();
    port.transfer(DiskOperation::Read { file, offset, len, buffer }).await
}

/// Reads a segment's used bytes.
async fn sum_of(port: &DiskPort, part: &Part) -> Result<u32, DiskError> {
    let mut sum = RunningChecksum::default();
    let mut buffer = IoBuffer::with_capacity(PIECE_LEN);
    let mut offset = 0;
    while offset < part.used {
        buffer = read(port, part.file, offset, buffer).await?;
        let left = usize::try_from(part.used - offset).unwrap_or(usize::MAX);
        let piece = buffer.as_slice();
        let piece = piece.get(..left).unwrap_or(piece);
        if piece.is_empty() {
            // Shorter than it was when it was opened.
            return Err(DiskError { kind: DiskErrorKind::Io, code: 0 });
        }
        sum.update(piece);
        offset += piece.len() as u64;
    }
    Ok(sum.sum())
}

async fn write_file(port: &DiskPort, name: &FileName, buffer: IoBuffer) -> Result<(), DiskError> {
    let (file, mode) = (SNAPSHOT_FILE, OpenMode::Create);
    port.call(DiskOperation::Open { file, name: name.clone(), mode }).await?;
    let durability = Durability::Cached;
    let write = DiskOperation::Write { file, offset: 0, buffer, durability };
    let mut result = port.start(write).await.result.map(|_| ());
    if result.is_ok() {
        result = port.call(DiskOperation::Sync { file }).await.map(|_| ());
    }
    // Also after a failure: the next snapshot opens a file of this id again.
    let closed = port.call(DiskOperation::Close { file }).await.map(|_| ());
    result.and(closed)
}
