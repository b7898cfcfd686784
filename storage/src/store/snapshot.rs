//! Snapshots: the segments as they are at a cut, and the newest checkpoint up to it, under second
//! names (hard links) in a directory that is laid out as the shard's own.
//!
//! ```text
//! asked for -> a spare is there -> no edit frees a segment or changes the checkpoint
//!           -> the active segment is left: the cut -> all segments up to the cut are sealed
//!           -> linked, with what is known of their checksums -> two manifests -> durable
//! ```
//!
//! From the moment a spare is there until it ends, no segment leaves the manifest and no checkpoint
//! another's place; before that they do, or a full disk would never have room for the spare. A
//! sealed segment is never written again, so its links stay as they are; that is why the file of a
//! segment that may have been linked ([`Snapshots::may_be_linked`]) must never become another one.
//!
//! Frames have been summed as they were written, and the sum is in the footer: of a segment only
//! the first and the last block are read. Read as a whole is what has no footer, what is known to
//! be damaged, so that the sum is that of the bytes there are, and a checkpoint of an earlier life.

use std::collections::BTreeMap;

use wal::Lsn;
use wal::checksum::{self, Place, RunningChecksum};
use wal::disk::{BLOCK_SIZE, DiskCompletion, DiskError, DiskErrorKind, DiskOperation, Durability};
use wal::disk::{DiskOutput, FileId, FileName, IoBuffer, OpenMode};
use wal::footer::Trailer;
use wal::group_commit::SealedSegment;
use wal::manifest::{self, CheckpointEntry, Manifest, SegmentEntry, Verdict};
use wal::procedure::{DiskPort, Procedure};
use wal::segment::{self, SEGMENT_HEADER_LEN};

use super::{Event, Source, Store};
use crate::checkpoint;
use crate::segments::SegmentState;

/// The one file that a snapshot opens at a time; segments count from the other end.
const SNAPSHOT_FILE: FileId = FileId(u32::MAX - 16);
/// Files whose sum nobody knows are read in pieces of this many bytes.
const PIECE_LEN: usize = 256 << 10;

/// A file of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotFile {
    /// Its name in the snapshot's directory.
    pub name: String,
    /// Bytes of the file.
    pub len: u64,
    /// What of them means something.
    pub content: FileContent,
}

/// What of a file's bytes means something, and its checksums.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileContent {
    /// This many bytes from its start.
    pub used: u64,
    /// CRC-32 of these.
    pub crc32: u32,
    /// A segment's footer.
    pub tail: Option<FileTail>,
}

/// The end of a file, apart from what is used at its start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileTail {
    /// Where it begins; it ends with the file.
    pub offset: u64,
    /// CRC-32 of its bytes.
    pub crc32: u32,
}

/// What is known of a segment that is sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sum {
    /// Its frames end here, and have this CRC-32; the first block is not part of them.
    Frames { end: u64, crc32: u32 },
    /// All that a snapshot says of it, and where its frames end if that is known.
    File { end: Option<u64>, content: FileContent },
}

/// A segment to be linked.
#[derive(Clone, Copy, Debug)]
struct Part {
    id: u64,
    file: FileId,
    len: u64,
    /// Where its frames end; not known of a segment that recovery had no need to read.
    end: Option<u64>,
    sum: Option<Sum>,
    /// Its bytes are not those that were written, and that is known.
    is_damaged: bool,
}

/// What linking has made, and what is known for the next time.
struct Links {
    files: Vec<SnapshotFile>,
    sums: Vec<(u64, Sum)>,
    checkpoint: Option<(Lsn, u32)>,
}

type Linked = Result<Links, DiskError>;

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
    /// The CRC-32 of the checkpoint of this cut.
    checkpoint: Option<(Lsn, u32)>,
    /// Segments below this id may have been linked.
    linked_below: u64,
}

impl Snapshots {
    /// Nobody remembers what was linked before the start: segments below `next_segment` may be.
    pub(super) fn new(next_segment: u64) -> Self {
        let (sums, checkpoint) = (BTreeMap::new(), None);
        Self { stage: Stage::Idle, sums, checkpoint, linked_below: next_segment }
    }

    /// Whether no segment and no checkpoint may leave the manifest now.
    pub(super) fn holds_files(&self) -> bool {
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

    /// Notes the checksum of a checkpoint that is about to be published.
    pub(super) fn note_checkpoint(&mut self, lsn: Lsn, crc32: u32) {
        self.checkpoint = Some((lsn, crc32));
    }

    /// Where a segment's frames end, if that is known.
    fn end_of(&self, entry: &SegmentEntry) -> Option<u64> {
        let summed = || match self.sums.get(&entry.id)? {
            Sum::Frames { end, .. } => Some(*end),
            Sum::File { end, .. } => *end,
        };
        entry.cut.or_else(summed)
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
        if self.is_freeing_segments() || self.checkpointing.is_publishing() {
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
        self.snapshots.stage = Stage::Sealing { into, manifest };
    }

    /// Starts to link, once everything up to the cut is sealed, and so durable.
    fn link_snapshot(&mut self) {
        if let Some(error) = self.log.failure() {
            return self.end_snapshot(Err(error));
        }
        let Stage::Sealing { into, manifest } = &self.snapshots.stage else { return };
        if manifest.segments.iter().any(|entry| self.is_open(entry)) {
            return;
        }
        let (into, mut manifest) = (into.clone(), manifest.clone());
        manifest.segments.retain(|entry| !self.is_left_empty(entry));
        let parts: Option<Vec<Part>> =
            manifest.segments.iter().map(|entry| self.part(entry, &manifest)).collect();
        let Some(parts) = parts else {
            let missing = DiskError { kind: DiskErrorKind::NotFound, code: 0 };
            return self.end_snapshot(Err(missing));
        };
        let highest = parts.iter().map(|part| part.id + 1).max().unwrap_or(0);
        self.snapshots.linked_below = self.snapshots.linked_below.max(highest);
        let from = self.directory.clone();
        let known = self.snapshots.checkpoint;
        let linking = move |port| Linker { port, from, into, manifest }.run(parts, known);
        self.snapshots.stage = Stage::Linking(Procedure::new(linking));
    }

    /// Whether a segment may still get a frame or a footer.
    fn is_open(&self, entry: &SegmentEntry) -> bool {
        let segment = self.catalog.segments.by_id(entry.id);
        entry.cut.is_none()
            && !self.snapshots.sums.contains_key(&entry.id)
            && segment.is_some_and(|segment| segment.state == SegmentState::Open)
    }

    /// Whether a segment was left without ever getting a frame. Such a one is not linked: after a
    /// crash it looks blank, and a start makes another segment of its file.
    fn is_left_empty(&self, entry: &SegmentEntry) -> bool {
        let segment = self.catalog.segments.by_id(entry.id);
        let has_records = segment.is_none_or(|segment| segment.lsns.is_some() || segment.slots > 0);
        let mut quarantine = self.keeper.manifest().quarantine.iter();
        !has_records
            && self.snapshots.end_of(entry).is_some_and(|end| end <= SEGMENT_HEADER_LEN)
            && !quarantine.any(|range| range.segment == entry.id)
    }

    fn part(&self, entry: &SegmentEntry, manifest: &Manifest) -> Option<Part> {
        let segment = self.catalog.segments.by_id(entry.id)?;
        let is_loss = |verdict| matches!(verdict, Verdict::Corruption | Verdict::Accepted);
        let mut ranges = manifest.quarantine.iter().filter(|range| range.segment == entry.id);
        let is_damaged =
            segment.state == SegmentState::Unfit || ranges.any(|range| is_loss(range.verdict));
        let sum = self.snapshots.sums.get(&entry.id).copied();
        let (file, len) = (segment.file, segment.len);
        let end = self.snapshots.end_of(entry).map(|end| end.min(len));
        Some(Part { id: entry.id, file, len, end, sum, is_damaged })
    }

    fn end_snapshot(&mut self, result: Linked) {
        self.snapshots.stage = Stage::Idle;
        let result = result.map(|Links { files, sums, checkpoint }| {
            self.snapshots.sums.extend(sums);
            self.snapshots.checkpoint = checkpoint.or(self.snapshots.checkpoint);
            files
        });
        let segments = &self.catalog.segments;
        self.snapshots.sums.retain(|id, _| segments.number_of(*id).is_some());
        self.events.push_back(Event::Snapshotted { result });
    }
}

/// Makes a snapshot's directory.
struct Linker {
    port: DiskPort,
    from: FileName,
    into: FileName,
    manifest: Manifest,
}

impl Linker {
    /// Links segments and checkpoint, writes the manifests, and makes all of it durable.
    async fn run(mut self, parts: Vec<Part>, known: Option<(Lsn, u32)>) -> Linked {
        let into = self.into.clone();
        self.port.call(DiskOperation::CreateDirectory { name: into.clone() }).await?;
        let (mut files, mut sums) = (Vec::new(), Vec::new());
        for part in parts {
            let to = segment::file_name(&into, part.id);
            self.link(segment::file_name(&self.from, part.id), to.clone()).await?;
            let (end, content) = self.content(&part).await?;
            sums.push((part.id, Sum::File { end, content }));
            let mut entries = self.manifest.segments.iter_mut();
            if let Some(entry) = entries.find(|entry| entry.id == part.id) {
                entry.cut = end;
            }
            files.push(SnapshotFile { name: base(&to), len: part.len, content });
        }
        let checkpoint = match self.manifest.checkpoint {
            Some(entry) => self.link_checkpoint(entry, known).await?,
            None => None,
        };
        let lsn = self.manifest.checkpoint.map(|entry| entry.lsn);
        let known = lsn.zip(checkpoint.as_ref().map(|file| file.content.crc32));
        if checkpoint.is_none() {
            self.manifest.checkpoint = None;
        }
        files.extend(checkpoint);
        for copy in 0..2 {
            let name = manifest::file_name(&into, copy);
            let buffer = self.manifest.encode();
            let len = buffer.len() as u64;
            let content = manifest_content(buffer.as_slice(), self.manifest.checksum_offset());
            write_file(&self.port, &name, buffer).await?;
            files.push(SnapshotFile { name: base(&name), len, content });
        }
        self.port.call(DiskOperation::SyncDirectory { name: into }).await?;
        Ok(Links { files, sums, checkpoint: known })
    }

    async fn link(&self, from: FileName, to: FileName) -> Result<(), DiskError> {
        self.port.call(DiskOperation::Link { from, to }).await.map(drop)
    }

    /// Where a segment's frames end and what its bytes are, read as little as possible.
    async fn content(&self, part: &Part) -> Result<(Option<u64>, FileContent), DiskError> {
        let summed = match part.sum {
            Some(Sum::File { end, content }) if !part.is_damaged => return Ok((end, content)),
            Some(Sum::Frames { end, crc32 }) => Some((end, crc32)),
            _ => None,
        };
        let trailer = self.trailer(part).await;
        let trailer = trailer.filter(|(_, end, _)| part.end.is_none_or(|known| known == *end));
        let end = part.end.or_else(|| trailer.map(|(_, end, _)| end));
        let used = end.unwrap_or(part.len);
        let frames = summed.or_else(|| trailer.map(|(_, end, crc32)| (end, crc32)));
        let crc32 = match frames.filter(|(end, _)| *end == used && !part.is_damaged) {
            Some((_, crc32)) => {
                let buffer = IoBuffer::with_capacity(BLOCK_SIZE);
                let first = read(&self.port, part.file, 0, buffer).await?;
                checksum::joined(first.as_slice(), crc32, used.saturating_sub(SEGMENT_HEADER_LEN))
            }
            None => sum_of(&self.port, part.file, used).await?,
        };
        let tail = trailer.map(|(tail, ..)| tail).filter(|tail| used <= tail.offset);
        Ok((end, FileContent { used, crc32, tail }))
    }

    /// What a segment's footer says: its own place and sum, the end of the frames, their CRC-32.
    async fn trailer(&self, part: &Part) -> Option<(FileTail, u64, u32)> {
        let (buffer, last) = (IoBuffer::with_capacity(BLOCK_SIZE), BLOCK_SIZE as u64);
        let block = read(&self.port, part.file, part.len.checked_sub(last)?, buffer).await.ok()?;
        let place = Place { store: self.manifest.identity.store, segment: part.id, offset: 0 };
        let trailer = Trailer::decode(block.as_slice(), &place, part.len).ok()?;
        let crc32 = trailer.footer_crc(block.as_slice(), &place)?;
        let tail = FileTail { offset: trailer.offset, crc32 };
        Some((tail, trailer.summary.frames_end, trailer.summary.frames_crc))
    }

    /// Links the checkpoint. It is left out if it cannot be read: recovery does without it.
    async fn link_checkpoint(
        &self,
        entry: CheckpointEntry,
        known: Option<(Lsn, u32)>,
    ) -> Result<Option<SnapshotFile>, DiskError> {
        let CheckpointEntry { lsn, len } = entry;
        let name = checkpoint::file_name(&self.from, lsn);
        let crc32 = match known {
            Some((of, crc32)) if of == lsn => crc32,
            _ => match sum_of_file(&self.port, &name, len).await {
                Ok(crc32) => crc32,
                Err(_) => return Ok(None),
            },
        };
        let to = checkpoint::file_name(&self.into, lsn);
        match self.link(name, to.clone()).await {
            Err(error) if error.kind == DiskErrorKind::NotFound => return Ok(None),
            linked => linked?,
        }
        let content = FileContent { used: len, crc32, tail: None };
        Ok(Some(SnapshotFile { name: base(&to), len, content }))
    }
}

/// A manifest's bytes, its own checksum apart: together all manifests have the same CRC-32.
fn manifest_content(bytes: &[u8], at: usize) -> FileContent {
    let (body, rest) = bytes.split_at(at);
    let tail = FileTail { offset: at as u64, crc32: checksum::plain(rest) };
    FileContent { used: at as u64, crc32: checksum::plain(body), tail: Some(tail) }
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

/// The CRC-32 of a file's first `used` bytes, which are read.
async fn sum_of(port: &DiskPort, file: FileId, used: u64) -> Result<u32, DiskError> {
    let mut sum = RunningChecksum::default();
    let mut buffer = IoBuffer::with_capacity(PIECE_LEN);
    let mut offset = 0;
    while offset < used {
        buffer = read(port, file, offset, buffer).await?;
        let left = usize::try_from(used - offset).unwrap_or(usize::MAX);
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

/// The CRC-32 of a file that is `len` bytes long.
async fn sum_of_file(port: &DiskPort, name: &FileName, len: u64) -> Result<u32, DiskError> {
    let (file, mode) = (SNAPSHOT_FILE, OpenMode::Read);
    let opened = port.call(DiskOperation::Open { file, name: name.clone(), mode }).await?;
    let sum = match opened {
        DiskOutput::Opened { len: found } if found == len => sum_of(port, file, len).await,
        _ => Err(DiskError { kind: DiskErrorKind::Io, code: 0 }),
    };
    let closed = port.call(DiskOperation::Close { file }).await;
    closed.and(sum)
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
