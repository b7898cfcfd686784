//! Looking a shard over without opening it: what is damaged, where, and what that means.

use wal::disk::{DiskOperation, FileId, FileName, OpenMode};
use wal::manifest::{self, Manifest, Verdict};
use wal::procedure::{DiskPort, Procedure};
use wal::segment::Identity;

use crate::error::OpenError;
use crate::recovery::{DamagedFile, Loaded, MANIFEST_FILES, load};

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
    /// Losses that were accepted by this run.
    pub accepted: u64,
}

/// Reads all of the shard in `directory`. With `accept_loss`, lost records are accepted: the shard
/// is no longer suspect, and unknown keys answer nil again.
#[must_use]
pub fn check(
    directory: FileName,
    identity: Identity,
    now_ms: u64,
    accept_loss: bool,
) -> Procedure<Result<CheckReport, OpenError>> {
    Procedure::new(move |port| async move {
        let loaded = load(&port, &directory, identity, OpenMode::Read).await?;
        let mut report = report(&directory, &loaded, now_ms);
        if accept_loss && report.suspect {
            report.accepted = accept(&port, &directory, &loaded).await?;
        }
        Ok(report)
    })
}

fn report(directory: &FileName, loaded: &Loaded, now_ms: u64) -> CheckReport {
    let live = loaded.newest.live(now_ms.max(loaded.settlement.wall_ms));
    let (keys, keys_damaged) = live
        .fold((0, 0), |(keys, damaged), (_, slot)| (keys + 1, damaged + u64::from(slot.damaged)));
    let mut damage = loaded.damage.clone();
    for range in &loaded.settlement.quarantine {
        let missing = (range.last_lsn.0 + 1).saturating_sub(range.first_lsn.0);
        let reason = match range.verdict {
            Verdict::TailUncertain => continue,
            Verdict::Accepted => format!("records lost here: {missing} at most; accepted"),
            Verdict::Corruption if missing == 0 => {
                "acknowledged records may be lost with this file".to_owned()
            }
            Verdict::Corruption => format!(
                "acknowledged records lost: {missing} at most, of LSN {} to {}",
                range.first_lsn, range.last_lsn
            ),
        };
        let file = wal::segment::file_name(directory, range.segment);
        damage.push(DamagedFile {
            file,
            offset: range.offset,
            len: range.len,
            reason,
            accepted: range.verdict == Verdict::Accepted,
        });
    }
    let tails = loaded.settlement.quarantine.iter().filter(|r| r.verdict == Verdict::TailUncertain);
    CheckReport {
        segments: loaded.scans.len() as u64,
        bytes: loaded.scans.iter().map(|(segment, _, _)| segment.len).sum(),
        frames: loaded.scans.iter().map(|(_, _, scan)| scan.frame_count).sum(),
        records: loaded.scans.iter().map(|(_, _, scan)| scan.record_count).sum(),
        keys,
        keys_damaged,
        suspect: loaded.settlement.is_suspect(),
        damage,
        uncertain: loaded.uncertain.clone(),
        tails_cut: tails.count() as u64,
        accepted: 0,
    }
}

/// Rewrites the manifest with every loss marked as accepted.
async fn accept(port: &DiskPort, directory: &FileName, loaded: &Loaded) -> Result<u64, OpenError> {
    let mut manifest: Manifest = loaded.manifest.clone();
    manifest.sequence += 1;
    manifest.quarantine = loaded.settlement.quarantine.clone();
    manifest.durable_lsn = loaded.settlement.last_lsn;
    let mut accepted = 0;
    for range in &mut manifest.quarantine {
        if range.verdict == Verdict::Corruption {
            range.verdict = Verdict::Accepted;
            accepted += 1;
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
    Ok(accepted)
}

fn failed(action: &'static str, file: &FileName, source: wal::disk::DiskError) -> OpenError {
    OpenError::Disk { action, file: file.to_string(), source }
}
