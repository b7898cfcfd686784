//! Looking a shard over without opening it: what is damaged, where, and what that means.

use std::collections::BTreeMap;

use wal::disk::{DiskOperation, FileId, FileName, OpenMode};
use wal::extent::{self, RECORD_OFFSET};
use wal::manifest::{self, Manifest, Verdict};
use wal::procedure::{DiskPort, Procedure};
use wal::replay::SegmentSource;
use wal::segment::{self, Identity};

use crate::checkpoint;
use crate::error::OpenError;
use crate::index::{Place, Prefix};
use crate::recovery::sources::{Moment, Shortcuts, load_listed};
use crate::recovery::{DamagedFile, Loaded, MANIFEST_FILES, bounded, load};
use crate::segments::LINE_LEN;
use crate::store::{CheckpointLoader, hides_extents};

/// What a check of one shard found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CheckReport {
    /// Segments read.
    pub segments: u64,
    /// Bytes of these.
    pub bytes: u64,
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
    /// Damage found, file by file.
    pub damage: Vec<DamagedFile>,
    /// Bad ranges that a write cut short by a crash explains; nothing acknowledged is known to be
    /// lost there, and the next start gives them up.
    pub uncertain: Vec<DamagedFile>,
    /// Ranges given up by earlier recoveries because nothing acknowledged was known to be there;
    /// no damage.
    pub tails_cut: u64,
    /// Losses that were accepted by earlier runs.
    pub losses_accepted: u64,
}

/// Reads all of the shard in `directory`. With `repair`, a damaged manifest copy is written again
/// and lost records are accepted: the shard is no longer suspect, unknown keys answer nil again.
#[must_use]
pub fn check(
    directory: FileName,
    identity: Identity,
    now_ms: u64,
    repair: bool,
) -> Procedure<Result<CheckReport, OpenError>> {
    Procedure::new(move |port| async move {
        // Everything is read, whatever says the same in fewer bytes.
        let shortcuts = Shortcuts::default();
        let moment = Moment { now_ms, expired_stay_ms: 0 };
        let mut loaded =
            load(&port, &directory, identity, OpenMode::Read, moment, shortcuts).await?;
        verify_checkpoint(&port, &directory, &mut loaded).await;
        let values_damaged = verify_extents(&port, &directory, &mut loaded).await;
        let mendable = loaded.settlement.is_suspect() || !loaded.are_manifests_sound();
        let repairs = repair && mendable && !loaded.created;
        if repairs {
            accept(&port, &directory, &loaded).await?;
        }
        let mut report = report(&directory, &loaded, repairs);
        report.keys_damaged += values_damaged;
        Ok(report)
    })
}

/// Notes if the checkpoint is damaged: nothing is lost with it.
async fn verify_checkpoint(port: &DiskPort, directory: &FileName, loaded: &mut Loaded) {
    let Some(entry) = loaded.manifest.checkpoint else { return };
    let loader = CheckpointLoader::Direct;
    if let Err(error) = load_listed(port, directory, &loaded.manifest, entry, loader).await {
        let file = checkpoint::file_name(directory, entry.lsn);
        let reason = format!("{error}; nothing is lost, the segments say the same");
        let (offset, len, accepted) = (0, entry.len, false);
        loaded.damage.push(DamagedFile { file, offset, len, reason, accepted });
    }
}

/// Reads the large values that are of use; tells how many are damaged. Those that no record names
/// may be torn.
async fn verify_extents(port: &DiskPort, directory: &FileName, loaded: &mut Loaded) -> u64 {
    let catalog = &loaded.rebuilt.catalog;
    let store = loaded.manifest.identity.store;
    let mut extents = BTreeMap::new();
    for (open, _, scan) in &loaded.scans {
        let Some(segment) = catalog.segments.number_of(open.id) else { continue };
        let source = SegmentSource { id: open.id, file: open.file, len: open.len, cut: None };
        let mut found = scan.extents.clone();
        for finding in scan.findings.iter().filter(|finding| hides_extents(finding)) {
            let range = (finding.offset, finding.offset + finding.len);
            found.extend(extent::find_without_frames(port, store, source, range).await);
        }
        for (offset, len) in &found {
            let line = u32::try_from((offset + RECORD_OFFSET) / u64::from(LINE_LEN));
            let Ok(line) = line else { continue };
            extents.insert(Place { segment, line }, (*open, (*offset, *len)));
        }
    }
    let slots = catalog.index.walk(Prefix::default()).map(|(_, slot)| slot);
    let slots = slots.chain(catalog.bases().values().copied());
    let named: Vec<_> = slots
        .filter(|slot| !slot.shadowed && !slot.damaged)
        .filter_map(|slot| extents.get(&slot.place).copied())
        .collect();
    let mut damaged = 0;
    for (open, (offset, len)) in named {
        let source = SegmentSource { id: open.id, file: open.file, len: open.len, cut: None };
        if extent::verify(port, store, source, (offset, len)).await.is_sound {
            continue;
        }
        damaged += 1;
        let file = segment::file_name(directory, open.id);
        let reason = "a large value is damaged; its key answers an error".to_owned();
        loaded.damage.push(DamagedFile { file, offset, len, reason, accepted: false });
    }
    damaged
}

fn report(directory: &FileName, loaded: &Loaded, repaired: bool) -> CheckReport {
    let (keys, keys_damaged) = loaded.key_counts();
    let ranges = &loaded.settlement.quarantine;
    let of = |verdict| ranges.iter().filter(move |range| range.verdict == verdict);
    // What lies in a range that the operator has given up is no news.
    let is_accepted = |found: &DamagedFile| {
        of(Verdict::Accepted).any(|range| {
            segment::file_name(directory, range.segment) == found.file
                && (range.offset..range.offset + range.len.max(1)).contains(&found.offset)
        })
    };
    let mut damage: Vec<DamagedFile> =
        loaded.damage.iter().filter(|found| !is_accepted(found)).cloned().collect();
    for found in &mut damage {
        let is_manifest = (0..2).any(|copy| manifest::file_name(directory, copy) == found.file);
        found.accepted = repaired && is_manifest;
    }
    damage.extend(of(Verdict::Corruption).map(|range| {
        let missing = (range.last_lsn.0 + 1).saturating_sub(range.first_lsn.0);
        let reason = if missing == 0 {
            "acknowledged records may be lost with this file".to_owned()
        } else {
            format!(
                "acknowledged records lost: {missing} at most, of LSN {} to {}",
                range.first_lsn, range.last_lsn
            )
        };
        let file = segment::file_name(directory, range.segment);
        DamagedFile { file, offset: range.offset, len: range.len, reason, accepted: repaired }
    }));
    CheckReport {
        segments: loaded.scans.len() as u64,
        bytes: loaded.scans.iter().map(|(segment, _, _)| segment.len).sum(),
        frames: loaded.scans.iter().map(|(_, _, scan)| scan.frame_count).sum(),
        records: loaded.scans.iter().map(|(_, _, scan)| scan.record_count).sum(),
        keys,
        keys_damaged,
        suspect: loaded.settlement.is_suspect() && !repaired,
        damage,
        uncertain: loaded.uncertain.clone(),
        tails_cut: of(Verdict::TailUncertain).count() as u64,
        losses_accepted: of(Verdict::Accepted).count() as u64,
    }
}

/// Rewrites the manifest with every loss marked as accepted.
async fn accept(port: &DiskPort, directory: &FileName, loaded: &Loaded) -> Result<(), OpenError> {
    let mut manifest: Manifest = loaded.manifest.clone();
    manifest.sequence += 1;
    // What it says of the lost records is not what the log says now.
    manifest.checkpoint = None;
    manifest.quarantine = bounded(loaded.settlement.quarantine.clone());
    manifest.durable_lsn = loaded.settlement.last_lsn;
    for range in &mut manifest.quarantine {
        if range.verdict == Verdict::Corruption {
            range.verdict = Verdict::Accepted;
        }
    }
    manifest.segments = loaded.scans.iter().map(|(_, entry, _)| *entry).collect();
    let files: [FileId; 2] = MANIFEST_FILES;
    for (copy, file) in files.into_iter().enumerate() {
        let name = manifest::file_name(directory, copy);
        let mode = if loaded.copies_present[copy] { OpenMode::ReadWrite } else { OpenMode::Create };
        let open = DiskOperation::Open { file, name: name.clone(), mode };
        let opened = port.call(open).await;
        opened.map_err(|source| failed("opening", &name, source))?;
    }
    let name = manifest::file_name(directory, loaded.older_copy);
    let save = manifest::save(port.clone(), files, loaded.older_copy, manifest);
    save.await.map_err(|error| failed("writing", &name, error.source))?;
    let sync = DiskOperation::SyncDirectory { name: directory.clone() };
    port.call(sync).await.map_err(|source| failed("syncing", directory, source))?;
    Ok(())
}

fn failed(action: &'static str, file: &FileName, source: wal::disk::DiskError) -> OpenError {
    OpenError::Disk { action, file: file.to_string(), source }
}
