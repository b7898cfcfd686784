//! From whatever a crash left in a shard's directory to an open store.
//!
//! ```text
//! manifests -> segments listed (and found) -> scan, in append order, into the index -> settle
//!           -> (scan again if something was salvaged or segments were out of order)
//!           -> sync what was scanned -> first segment -> manifest -> ready
//! ```
//!
//! The first half ([`load`]) only reads; `check` uses it alone. Nothing here refuses to open
//! because of bad data. A crash at any point leaves a directory from which the same state is
//! recovered.

use std::collections::BTreeMap;

use wal::Lsn;
use wal::disk::{BLOCK_SIZE, DiskError, DiskErrorKind, DiskOperation, DiskOutput};
use wal::disk::{FileId, FileName, IoBuffer, OpenMode};
use wal::frame::{FORMAT_VERSION, FrameHeader};
use wal::group_commit::OpenSegment;
use wal::manifest::{self, Manifest, ManifestError, Quarantine, SegmentEntry, Verdict};
use wal::procedure::{DiskPort, Procedure};
use wal::replay::{Finding, SegmentScan, Settlement};
use wal::segment::{self, Identity, SegmentHeader};

use crate::checkpoint;
use crate::error::OpenError;
use crate::index::Prefix;
use crate::rebuild::Rebuild;
use crate::store::pool::Shelved;
use crate::store::{Foundation, Store, StoreOptions};

mod reserve;
mod scans;
pub(crate) mod sources;

pub use sources::RecoverySources;

use reserve::Reserve;
use scans::Scans;
use sources::{Moment, Replay, Scanned, Shortcuts};

/// File ids of the two manifest copies; segments get the ones after.
pub(crate) const MANIFEST_FILES: [FileId; 2] = [FileId(0), FileId(1)];
/// The checkpoint being read or written.
pub(crate) const CHECKPOINT_FILE: FileId = FileId(2);
const FIRST_SEGMENT_FILE: u32 = 3;

/// Syncs under way at a time.
const SYNCS_MAX: usize = 8;

/// A damaged range of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DamagedFile {
    /// The file, below the data directory.
    pub file: FileName,
    /// Where, in bytes.
    pub offset: u64,
    /// How many bytes.
    pub len: u64,
    /// What is wrong.
    pub reason: String,
    /// Whether the operator has accepted the loss.
    pub accepted: bool,
}

/// What opening a shard found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecoveryReport {
    /// Whether the shard was made just now.
    pub created: bool,
    /// Segments read.
    pub segments: u64,
    /// Valid frames.
    pub frames: u64,
    /// Records in them.
    pub records: u64,
    /// Live keys.
    pub keys: u64,
    /// Keys whose record is known to be damaged.
    pub keys_damaged: u64,
    /// Whether acknowledged records are lost and not known by key.
    pub suspect: bool,
    /// Bytes of torn or rotten tail given up this time.
    pub tail_uncertain_bytes: u64,
    /// What the index was built from.
    pub sources: RecoverySources,
    /// Damage found, file by file.
    pub damage: Vec<DamagedFile>,
    /// Bad ranges that a write cut short by the crash explains; nothing acknowledged is known to
    /// be lost there.
    pub uncertain: Vec<DamagedFile>,
}

/// An open store and what opening it found.
#[derive(Debug)]
pub struct Opened {
    /// The store, ready for use.
    pub store: Store,
    /// What was found.
    pub report: RecoveryReport,
    /// The newest time in the log, in milliseconds since 1970; the clock must not go below it.
    pub log_ms: u64,
}

/// Opens the shard in `options.directory`, making it if it is not there. `now_ms` is the wall
/// clock; the newest time in the log counts if it is later.
#[must_use]
pub fn open(options: StoreOptions, now_ms: u64) -> Procedure<Result<Opened, OpenError>> {
    Procedure::new(move |port| async move { recover(port, options, now_ms).await })
}

/// Reads who a store belongs to from its shards' directories, without changing anything: from the
/// first shard that says so. Tells which one that was; `None` if there is no store yet.
///
/// A shard whose manifests and segment headers are all damaged is still known by its frames.
#[must_use]
pub fn identify(
    directories: Vec<FileName>,
) -> Procedure<Result<Option<(u16, Identity)>, OpenError>> {
    Procedure::new(move |port| async move {
        let (mut present, mut from_frames) = (0, None);
        for (shard, directory) in (0u16..).zip(&directories) {
            let files = match list(&port, directory).await {
                Err(OpenError::Disk { source, .. }) if is_absent(&source) => continue,
                other => other?,
            };
            present = shard + 1;
            let found = read_directory(&port, directory, files, None).await?;
            let identity = found.manifest.map(|manifest| manifest.identity).or(found.rebuilt);
            if let Some(identity) = identity {
                return Ok(Some((shard, Identity { shard: 0, ..identity })));
            }
            if from_frames.is_none() {
                let store = store_of_frames(&port, directory, &found.segments).await;
                from_frames = store.map(|store| (shard, store));
            }
        }
        Ok(from_frames.map(|(shard, store)| {
            // The id goes with the headers that are lost; the node will be a new one to others.
            let node_id = std::array::from_fn(|index| store[index % store.len()]);
            (shard, Identity { store, node_id, shard: 0, shard_count: present })
        }))
    })
}

/// Takes the store's uuid from the first frame of any segment.
async fn store_of_frames(
    port: &DiskPort,
    directory: &FileName,
    segments: &BTreeMap<u64, u64>,
) -> Option<[u8; 16]> {
    for id in segments.keys() {
        let name = segment::file_name(directory, *id);
        let len = 2 * BLOCK_SIZE as u64;
        let blocks = read_whole(port, FileId(FIRST_SEGMENT_FILE), &name, len).await.ok()?;
        let header = blocks.as_slice().get(BLOCK_SIZE..).and_then(|block| block.first_chunk());
        if let Some(store) = header.and_then(|header| FrameHeader::store_of(header, *id)) {
            return Some(store);
        }
    }
    None
}

fn is_absent(error: &DiskError) -> bool {
    error.kind == DiskErrorKind::NotFound
}

/// What a directory holds, manifests read, segments not.
struct Directory {
    manifest: Option<Manifest>,
    /// Which copies exist, and which of them are valid.
    copies: [Copy; 2],
    /// From segment headers, when there is no valid manifest but there are segments.
    rebuilt: Option<Identity>,
    /// Segment files: id, length.
    segments: BTreeMap<u64, u64>,
    unfinished: Vec<FileName>,
    /// Shelved files: id, length.
    shelved: Vec<(u64, u64)>,
    /// Checkpoint files.
    checkpoints: Vec<Lsn>,
    damage: Vec<DamagedFile>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Copy {
    Absent,
    Bad,
    Valid(u64),
}

async fn list(port: &DiskPort, directory: &FileName) -> Result<Vec<(String, u64)>, OpenError> {
    let listing = DiskOperation::ListDirectory { name: directory.clone() };
    match port.call(listing).await {
        Ok(DiskOutput::Listed(files)) => Ok(files),
        Ok(_) => Ok(Vec::new()),
        Err(source) => Err(disk_error("listing", directory, source)),
    }
}

fn disk_error(action: &'static str, file: &FileName, source: DiskError) -> OpenError {
    OpenError::Disk { action, file: file.to_string(), source }
}

async fn read_directory(
    port: &DiskPort,
    directory: &FileName,
    files: Vec<(String, u64)>,
    expected: Option<&Identity>,
) -> Result<Directory, OpenError> {
    let segments: BTreeMap<u64, u64> = files
        .iter()
        .filter_map(|(name, len)| segment::parse_file_name(name).map(|id| (id, *len)))
        .collect();
    let is_unfinished =
        |name: &str| segment::is_unfinished(name) || checkpoint::is_unfinished(name);
    let unfinished = files.iter().filter(|(name, _)| is_unfinished(name));
    let unfinished = unfinished.map(|(name, _)| directory.join(name)).collect();
    let mut found = Directory {
        manifest: None,
        copies: [Copy::Absent; 2],
        rebuilt: None,
        segments,
        unfinished,
        shelved: files
            .iter()
            .filter_map(|(name, len)| segment::parse_shelved_name(name).map(|id| (id, *len)))
            .collect(),
        checkpoints: files
            .iter()
            .filter_map(|(name, _)| checkpoint::parse_file_name(name))
            .collect(),
        damage: Vec::new(),
    };
    for copy in 0..2 {
        let name = manifest::file_name(directory, copy);
        let Some((_, len)) = files.iter().find(|(file, _)| directory.join(file) == name) else {
            continue;
        };
        read_manifest(port, &mut found, copy, &name, *len).await?;
    }
    if found.manifest.is_none() {
        found.rebuilt = rebuild_identity(port, directory, &found.segments, expected).await?;
    }
    if found.manifest.is_some() || found.rebuilt.is_some() {
        for copy in 0..2 {
            if found.copies[copy] == Copy::Absent {
                let reason = "manifest copy is missing".to_owned();
                let file = manifest::file_name(directory, copy);
                found.damage.push(DamagedFile { file, offset: 0, len: 0, reason, accepted: false });
            }
        }
    }
    Ok(found)
}

async fn read_manifest(
    port: &DiskPort,
    found: &mut Directory,
    copy: usize,
    name: &FileName,
    len: u64,
) -> Result<(), OpenError> {
    found.copies[copy] = Copy::Bad;
    let bytes = read_whole(port, MANIFEST_FILES[copy], name, len).await;
    let decoded = bytes.as_ref().map(|buffer| Manifest::decode(buffer.as_slice()));
    let reason = match decoded {
        Ok(Ok(manifest)) => {
            found.copies[copy] = Copy::Valid(manifest.sequence);
            let encoded = manifest.encode();
            let used = bytes.as_ref().ok().and_then(|all| all.as_slice().get(..encoded.len()));
            if used != Some(encoded.as_slice()) {
                let (file, reason) = (name.clone(), "stray bytes after the manifest".to_owned());
                found.damage.push(DamagedFile { file, offset: 0, len, reason, accepted: false });
            }
            let newer = |known: &Manifest| known.sequence < manifest.sequence;
            if found.manifest.as_ref().is_none_or(newer) {
                found.manifest = Some(manifest);
            }
            return Ok(());
        }
        Ok(Err(ManifestError::Version { found })) => {
            let known = u16::from(FORMAT_VERSION);
            return Err(OpenError::NewerFormat { file: name.to_string(), found, known });
        }
        Ok(Err(error)) => error.to_string(),
        Err(error) => error.to_string(),
    };
    found.damage.push(DamagedFile { file: name.clone(), offset: 0, len, reason, accepted: false });
    Ok(())
}

async fn read_whole(
    port: &DiskPort,
    file: FileId,
    name: &FileName,
    len: u64,
) -> Result<IoBuffer, DiskError> {
    port.call(DiskOperation::Open { file, name: name.clone(), mode: OpenMode::Read }).await?;
    let len = usize::try_from(len).unwrap_or(0).next_multiple_of(BLOCK_SIZE).max(BLOCK_SIZE);
    let buffer = IoBuffer::with_capacity(len);
    let result = port.transfer(DiskOperation::Read { file, offset: 0, len, buffer }).await;
    port.call(DiskOperation::Close { file }).await?;
    result
}

/// Both manifests are bad or gone: the first segment with a sound header says whose store it is,
/// or any that says what is expected. Among them there may be a file of another shard.
async fn rebuild_identity(
    port: &DiskPort,
    directory: &FileName,
    segments: &BTreeMap<u64, u64>,
    expected: Option<&Identity>,
) -> Result<Option<Identity>, OpenError> {
    let mut first = None;
    for id in segments.keys() {
        let name = segment::file_name(directory, *id);
        let block = read_whole(port, FileId(FIRST_SEGMENT_FILE), &name, BLOCK_SIZE as u64).await;
        let Ok(block) = block else { continue };
        match SegmentHeader::decode(block.as_slice()) {
            Ok(SegmentHeader { identity, id: found, .. }) if found == *id => {
                if expected.is_none_or(|expected| is_same(expected, &identity)) {
                    return Ok(Some(identity));
                }
                first.get_or_insert(identity);
            }
            Err(segment::SegmentHeaderError::Version { found }) => {
                let known = u16::from(FORMAT_VERSION);
                return Err(OpenError::NewerFormat { file: name.to_string(), found, known });
            }
            Ok(_) | Err(_) => {}
        }
    }
    Ok(first)
}

/// Whether it is the same shard of the same store; the node's id may be another one.
fn is_same(one: &Identity, other: &Identity) -> bool {
    (one.store, one.shard, one.shard_count) == (other.store, other.shard, other.shard_count)
}

/// Everything that was read from a shard's directory.
pub(crate) struct Loaded {
    pub(crate) manifest: Manifest,
    /// Whether there was anything.
    pub(crate) created: bool,
    /// Which manifest copy to overwrite first.
    pub(crate) older_copy: usize,
    pub(crate) copies_present: [bool; 2],
    copies_sound: bool,
    pub(crate) scans: Vec<(OpenSegment, SegmentEntry, SegmentScan)>,
    pub(crate) settlement: Settlement,
    pub(crate) rebuilt: Rebuild,
    pub(crate) unfinished: Vec<FileName>,
    shelved: Vec<(u64, u64)>,
    /// Checkpoint files that are of no use.
    obsolete: Vec<FileName>,
    pub(crate) sources: RecoverySources,
    log_bytes: u64,
    pub(crate) damage: Vec<DamagedFile>,
    pub(crate) uncertain: Vec<DamagedFile>,
    pub(crate) next_file: u32,
}

impl Loaded {
    /// Live keys, and those of them whose record is damaged.
    pub(crate) fn key_counts(&self) -> (u64, u64) {
        let catalog = &self.rebuilt.catalog;
        let slots = catalog.index.walk(Prefix::default());
        let damaged = slots.filter(|(_, slot)| slot.damaged && !slot.shadowed).count();
        (catalog.keys(), damaged as u64)
    }

    /// Whether both manifest copies are there and valid.
    pub(crate) fn are_manifests_sound(&self) -> bool {
        self.copies_sound
    }
}

/// Reads a shard: manifests, segments, records. Changes nothing.
pub(crate) async fn load(
    port: &DiskPort,
    directory: &FileName,
    fallback: Identity,
    mode: OpenMode,
    moment: Moment,
    shortcuts: Shortcuts,
) -> Result<Loaded, OpenError> {
    let files = match list(port, directory).await {
        Err(OpenError::Disk { source, .. }) if is_absent(&source) => Vec::new(),
        other => other?,
    };
    let found = read_directory(port, directory, files, Some(&fallback)).await?;
    let created = found.manifest.is_none() && found.segments.is_empty();
    let rebuilt = found.manifest.is_none() && !created;
    let identity = found.manifest.as_ref().map(|known| known.identity).or(found.rebuilt);
    let identity = identity.unwrap_or(fallback);
    if !is_same(&identity, &fallback) {
        let file = manifest::file_name(directory, 0).to_string();
        return Err(OpenError::WrongIdentity { file });
    }
    let mut manifest = found.manifest.unwrap_or_else(|| empty_manifest(identity));
    let shelved = found.shelved.iter().map(|(id, _)| *id);
    let highest = found.segments.keys().copied().chain(shelved).max().map_or(0, |id| id + 1);
    manifest.next_segment = manifest.next_segment.max(highest);
    let mut damage = found.damage;
    if rebuilt {
        suspect(&mut manifest, 0, 0);
    }
    let mut scans = Scans { port, directory, mode, damage: &mut damage };
    let (opened, next_file) = scans.open(&mut manifest, &found.segments).await?;
    let replay =
        Replay { port, directory, manifest: &manifest, opened: &opened, moment, shortcuts };
    let Scanned { scans, settlement, rebuilt: content, sources, checkpoint, log_bytes } =
        replay.run().await?;
    let in_use = if shortcuts.checkpoint.is_some() { checkpoint } else { manifest.checkpoint };
    manifest.checkpoint = in_use;
    let obsolete = found.checkpoints.iter().filter(|lsn| in_use.is_none_or(|c| c.lsn != **lsn));
    let obsolete = obsolete.map(|lsn| checkpoint::file_name(directory, *lsn)).collect();
    damage.extend(settlement.findings.iter().map(|finding| in_file(directory, finding)));
    let uncertain = settlement.uncertain.iter().map(|f| in_file(directory, f)).collect();
    if created {
        // Nothing was ever stored: the first start did not get far.
        damage.clear();
    }
    let (copies_present, older_copy) = (found.copies.map(|c| c != Copy::Absent), {
        match found.copies {
            [Copy::Valid(first), Copy::Valid(second)] => usize::from(second < first),
            [Copy::Valid(_), _] => 1,
            _ => 0,
        }
    });
    Ok(Loaded {
        manifest,
        created,
        older_copy,
        copies_present,
        copies_sound: matches!(found.copies, [Copy::Valid(_), Copy::Valid(_)]),
        scans,
        settlement,
        rebuilt: content,
        unfinished: found.unfinished,
        shelved: found.shelved,
        obsolete,
        sources,
        log_bytes,
        damage,
        uncertain,
        next_file,
    })
}

fn empty_manifest(identity: Identity) -> Manifest {
    Manifest {
        identity,
        sequence: 0,
        next_segment: 1,
        durable_lsn: Lsn::ZERO,
        segments: Vec::new(),
        quarantine: Vec::new(),
        checkpoint: None,
    }
}

/// Notes that records of unknown number may be lost with a whole file.
fn suspect(manifest: &mut Manifest, segment: u64, len: u64) {
    let known = |range: &Quarantine| range.segment == segment && range.offset == 0;
    if !manifest.quarantine.iter().any(known) {
        let (first_lsn, last_lsn, verdict) = (Lsn(1), Lsn::ZERO, Verdict::Corruption);
        let range = Quarantine { segment, offset: 0, len, first_lsn, last_lsn, verdict };
        manifest.quarantine.push(range);
    }
}

fn in_file(directory: &FileName, finding: &Finding) -> DamagedFile {
    DamagedFile {
        file: segment::file_name(directory, finding.segment),
        offset: finding.offset,
        len: finding.len,
        reason: finding.damage.to_string(),
        accepted: false,
    }
}

async fn recover(port: DiskPort, options: StoreOptions, now_ms: u64) -> Result<Opened, OpenError> {
    let directory = options.directory.clone();
    let create = DiskOperation::CreateDirectory { name: directory.clone() };
    port.call(create).await.map_err(|e| disk_error("making", &directory, e))?;
    let parent = directory.parent();
    let sync = DiskOperation::SyncDirectory { name: parent.clone() };
    port.call(sync).await.map_err(|e| disk_error("syncing", &parent, e))?;
    let shortcuts =
        Shortcuts { checkpoint: Some(options.checkpoints.loader), footers: options.footers };
    let moment = Moment { now_ms, expired_stay_ms: options.limits.expired_stay_ms };
    let mut loaded =
        load(&port, &directory, options.identity, OpenMode::ReadWrite, moment, shortcuts).await?;
    if loaded.created && options.must_exist {
        suspect(&mut loaded.manifest, 0, 0);
        loaded.settlement.quarantine = loaded.manifest.quarantine.clone();
        let reason = "the whole shard is missing".to_owned();
        let file = directory.clone();
        loaded.damage.push(DamagedFile { file, offset: 0, len: 0, reason, accepted: false });
    }
    let log_ms = loaded.settlement.wall_ms;
    let now_ms = now_ms.max(log_ms);
    while loaded.rebuilt.catalog.expire_next(now_ms) {}
    sync_all(&port, &directory, &loaded.scans).await?;
    let report = report(&loaded);
    let settled = Settle { port: &port, directory: &directory, options: &options };
    let Settled { manifest, dropped, first, shelved, next_file } = settled.run(&loaded).await?;
    let Rebuild { mut catalog, version_max, .. } = loaded.rebuilt;
    for id in dropped {
        if let Some(number) = catalog.segments.number_of(id) {
            catalog.remove_segment(number);
        }
    }
    let foundation = Foundation {
        options,
        manifest,
        catalog,
        first,
        shelved,
        next_file: FileId(next_file),
        durable_lsn: loaded.settlement.last_lsn,
        log_ms,
        version_max,
        suspect: report.suspect,
        log_bytes: loaded.log_bytes,
    };
    let store = Store::new(foundation);
    Ok(Opened { store, report, log_ms })
}

/// Makes durable what was read of segments without a cut: it may still be cached only.
async fn sync_all(
    port: &DiskPort,
    directory: &FileName,
    scans: &[(OpenSegment, SegmentEntry, SegmentScan)],
) -> Result<(), OpenError> {
    let open: Vec<_> = scans.iter().filter(|(_, entry, _)| entry.cut.is_none()).collect();
    for some in open.chunks(SYNCS_MAX) {
        let start = |segment: &OpenSegment| port.start(DiskOperation::Sync { file: segment.file });
        let tickets: Vec<_> = some.iter().map(|(segment, ..)| (segment, start(segment))).collect();
        let mut result = Ok(());
        for (segment, ticket) in tickets {
            let name = segment::file_name(directory, segment.id);
            let synced = ticket.await.result.map_err(|e| disk_error("syncing", &name, e));
            // All of them are awaited; the first error counts.
            result = match (result, synced) {
                (Ok(()), Err(error)) => Err(error),
                (result, _) => result,
            };
        }
        result?;
    }
    Ok(())
}

fn report(loaded: &Loaded) -> RecoveryReport {
    let (keys, keys_damaged) = loaded.key_counts();
    RecoveryReport {
        created: loaded.created,
        segments: loaded.scans.len() as u64,
        frames: loaded.scans.iter().map(|(_, _, scan)| scan.frame_count).sum(),
        records: loaded.scans.iter().map(|(_, _, scan)| scan.record_count).sum(),
        keys,
        keys_damaged,
        suspect: loaded.settlement.is_suspect(),
        tail_uncertain_bytes: loaded.settlement.tail_uncertain_bytes,
        sources: loaded.sources.clone(),
        damage: loaded.damage.clone(),
        uncertain: loaded.uncertain.clone(),
    }
}

/// What is left when all is written.
struct Settled {
    manifest: Manifest,
    /// Segments that were blank.
    dropped: Vec<u64>,
    /// The first segment; `None` if the disk is full.
    first: Option<OpenSegment>,
    shelved: Vec<Shelved>,
    next_file: u32,
}

/// The writing half of recovery.
struct Settle<'a> {
    port: &'a DiskPort,
    directory: &'a FileName,
    options: &'a StoreOptions,
}

impl Settle<'_> {
    /// Shelves blank segments and prepares the first one, then makes the manifest say what was
    /// found, then removes what it no longer lists.
    async fn run(&self, loaded: &Loaded) -> Result<Settled, OpenError> {
        for name in &loaded.unfinished {
            let remove = DiskOperation::Remove { name: name.clone() };
            self.port.call(remove).await.map_err(|e| disk_error("removing", name, e))?;
        }
        self.open_manifests(loaded).await?;
        let mut manifest = loaded.manifest.clone();
        manifest.sequence += 1;
        manifest.durable_lsn = loaded.settlement.last_lsn;
        manifest.quarantine = bounded(loaded.settlement.quarantine.clone());
        let mut dropped = Vec::new();
        manifest.segments.clear();
        let newest_ms = |with_records: bool| {
            let scans = loaded.scans.iter().map(|(_, _, scan)| scan);
            let scans = scans.filter(|scan| !with_records || scan.record_count > 0);
            scans.map(|scan| scan.wall_ms).max().unwrap_or(0)
        };
        // The newest time may stand in an idle frame alone; after another crash it must be known.
        let mut idle_ms = Some(newest_ms(false)).filter(|ms| *ms > newest_ms(true));
        for (segment, entry, scan) in &loaded.scans {
            let is_newest = idle_ms.take_if(|ms| *ms == scan.wall_ms).is_some();
            let quarantined = manifest.quarantine.iter().any(|range| range.segment == segment.id);
            // A touch may claim, wrongly, that its value is there.
            let segments = &loaded.rebuilt.catalog.segments;
            let number = segments.number_of(segment.id).and_then(|number| segments.get(number));
            let claimed = number.is_some_and(|segment| segment.slots > 0);
            // Whatever is not blank is kept, even if nothing can be made of it.
            let blank = scan.record_count == 0 && scan.findings.is_empty();
            if !blank || is_newest || quarantined || claimed {
                // A segment that a checkpoint covers was not looked at: its end is not sure.
                let is_read = scan.frame_count > 0 || scan.record_count == 0;
                let cut = entry.cut.or_else(|| is_read.then_some(scan.end));
                manifest.segments.push(SegmentEntry { cut, ..*entry });
            } else {
                dropped.push((*segment, scan.frame_count > 0));
            }
        }
        if loaded.created {
            // From the first segment on there is a manifest: a crash before cannot look like loss.
            self.save(loaded, &manifest).await?;
            manifest.sequence += 1;
        }
        let mut reserve = Reserve::open(self.port, self.directory, self.options, loaded).await?;
        let mut removed = Vec::new();
        let gone = dropped.iter().map(|(segment, _)| segment.id).collect();
        let blank = reserve.choose(dropped, &mut removed);
        if !blank.is_empty() {
            // Only what no manifest lists may get another name.
            self.save(loaded, &manifest).await?;
            manifest.sequence += 1;
            reserve.shelve(&blank).await?;
        }
        let first = self.first_segment(&mut manifest, &mut reserve).await?;
        self.save(loaded, &manifest).await?;
        for name in &loaded.obsolete {
            let remove = DiskOperation::Remove { name: name.clone() };
            self.port.call(remove).await.map_err(|e| disk_error("removing", name, e))?;
        }
        for segment in &removed {
            let name = segment::file_name(self.directory, segment.id);
            let close = DiskOperation::Close { file: segment.file };
            self.port.call(close).await.map_err(|e| disk_error("closing", &name, e))?;
            let remove = DiskOperation::Remove { name: name.clone() };
            self.port.call(remove).await.map_err(|e| disk_error("removing", &name, e))?;
        }
        let Reserve { shelved, next_file, .. } = reserve;
        Ok(Settled { manifest, dropped: gone, first, shelved, next_file })
    }

    async fn save(&self, loaded: &Loaded, manifest: &Manifest) -> Result<(), OpenError> {
        let older = loaded.older_copy;
        let save = manifest::save(self.port.clone(), MANIFEST_FILES, older, manifest.clone());
        let name = manifest::file_name(self.directory, older);
        save.await.map_err(|e| disk_error("writing", &name, e.source))
    }

    async fn open_manifests(&self, loaded: &Loaded) -> Result<(), OpenError> {
        for (copy, file) in MANIFEST_FILES.into_iter().enumerate() {
            let name = manifest::file_name(self.directory, copy);
            let present = loaded.copies_present[copy];
            let mode = if present { OpenMode::ReadWrite } else { OpenMode::Create };
            let open = DiskOperation::Open { file, name: name.clone(), mode };
            self.port.call(open).await.map_err(|e| disk_error("opening", &name, e))?;
            // What was read may still be cached only, after a kill: it must be durable before the
            // other copy is overwritten.
            let sync = DiskOperation::Sync { file };
            self.port.call(sync).await.map_err(|e| disk_error("syncing", &name, e))?;
        }
        let sync = DiskOperation::SyncDirectory { name: self.directory.clone() };
        self.port.call(sync).await.map_err(|e| disk_error("syncing", self.directory, e))?;
        Ok(())
    }

    /// From the shelved files, if there are more than the reserve; else new.
    async fn first_segment(
        &self,
        manifest: &mut Manifest,
        reserve: &mut Reserve<'_>,
    ) -> Result<Option<OpenSegment>, OpenError> {
        let id = manifest.next_segment;
        let made = reserve.first_segment(manifest.identity, id).await;
        match made {
            Ok(segment) => {
                manifest.next_segment += 1;
                manifest.segments.push(SegmentEntry { id, len: segment.len, cut: None });
                Ok(Some(segment))
            }
            Err(error) if error.kind == DiskErrorKind::NoSpace => Ok(None),
            Err(source) => {
                let name = segment::file_name(self.directory, id);
                Err(disk_error("preparing", &name, source))
            }
        }
    }
}

/// Joins the oldest torn tails beyond what the manifest keeps apart. They lie beyond cuts, where
/// nothing is read any more; only the record numbers they explain still matter. Freed ranges are
/// no more than segments, and stay as they are: between two of them there are live records.
pub(crate) fn bounded(ranges: Vec<Quarantine>) -> Vec<Quarantine> {
    let is_freed = |range: &Quarantine| range.verdict == Verdict::Freed;
    let (freed, mut ranges): (Vec<_>, Vec<_>) = ranges.into_iter().partition(is_freed);
    while ranges.len() > manifest::QUARANTINE_COUNT_MAX {
        let second = ranges.remove(1);
        let first = &mut ranges[0];
        first.first_lsn = first.first_lsn.min(second.first_lsn);
        first.last_lsn = first.last_lsn.max(second.last_lsn);
        first.len = 0;
        if second.verdict == Verdict::Corruption {
            first.verdict = Verdict::Corruption;
        }
    }
    ranges.extend(freed);
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn freed_ranges_stay_apart_however_many_there_are() {
        let of = |number: u64, verdict| {
            let (first_lsn, last_lsn) = (Lsn(10 * number + 1), Lsn(10 * number + 5));
            Quarantine { segment: number, offset: 4096, len: 4096, first_lsn, last_lsn, verdict }
        };
        let count = manifest::QUARANTINE_COUNT_MAX as u64;
        let freed: Vec<_> = (0..2 * count).map(|number| of(number, Verdict::Freed)).collect();
        assert_eq!(bounded(freed.clone()), freed);
        let torn = (2 * count..4 * count).map(|number| of(number, Verdict::TailUncertain));
        let all = bounded(freed.iter().copied().chain(torn).collect());
        assert_eq!(all.len() as u64, 3 * count);
        assert_eq!(all[count as usize..], freed);
    }
}
