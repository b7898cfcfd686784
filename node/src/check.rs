//! `kadring check`: all shards of a data directory at rest.

use std::error::Error;
use std::path::{Path, PathBuf};

use storage::{CheckReport, DamagedFile};
use wal::segment::Identity;

use crate::cli::{Finding, Report};
use crate::event_loop::run_procedure;
use crate::io::pread::{PreadIo, PreadOptions};
use crate::io::{DiskOwner, Io};
use crate::node::{
    DirectoryError, all_shard_directories, explain_open, open_directory, shard_directory,
};

/// What to check.
#[derive(Clone, Debug)]
pub struct CheckOptions {
    /// The data directory; no node may be using it.
    pub data_dir: PathBuf,
    /// Accept losses that cannot be mended.
    pub repair: bool,
}

/// Why a data directory could not be checked.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// It cannot be used.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// Anything else.
    #[error("the check has failed: {0}")]
    Other(#[source] Box<dyn Error + Send + Sync>),
}

/// Reads everything in a data directory and reports what is damaged.
///
/// # Errors
/// [`CheckError`].
pub fn run(options: &CheckOptions) -> Result<Report, CheckError> {
    let directory = open_directory(&options.data_dir, false)?;
    let driver = PreadOptions { handle_signals: false, ..PreadOptions::default() };
    let mut io = PreadIo::new(directory, driver).map_err(failed)?;
    let procedure = storage::identify(all_shard_directories());
    let (found, _) = run_procedure(&mut io, DiskOwner(0), procedure).map_err(failed)?;
    let found = found.map_err(|error| explain_open(&options.data_dir, error))?;
    let mut report = Report::default();
    // A directory without a store is sound: there is nothing in it.
    let Some((_, identity)) = found else { return Ok(report) };
    for shard in 0..identity.shard_count {
        let identity = Identity { shard, ..identity };
        let found = check_shard(&mut io, &options.data_dir, identity, options.repair)?;
        add(&mut report, found);
    }
    Ok(report)
}

fn failed(error: std::io::Error) -> CheckError {
    CheckError::Other(Box::new(error))
}

fn check_shard(
    io: &mut PreadIo,
    data_dir: &Path,
    identity: Identity,
    repair: bool,
) -> Result<CheckReport, CheckError> {
    let now_ms = io.now().1.0;
    let directory = shard_directory(identity.shard);
    let procedure = storage::check(directory, identity, now_ms, repair);
    let (found, _) = run_procedure(io, DiskOwner(identity.shard), procedure).map_err(failed)?;
    Ok(found.map_err(|error| explain_open(data_dir, error))?)
}

fn add(report: &mut Report, found: CheckReport) {
    report.files_count += found.segments + 2;
    report.bytes_count += found.bytes;
    report.records_count += found.records;
    report.findings.extend(found.damage.into_iter().map(finding));
    report.notes.extend(found.uncertain.into_iter().map(finding));
}

fn finding(damage: DamagedFile) -> Finding {
    Finding {
        file: PathBuf::from(damage.file.as_str()),
        offset: damage.offset,
        len: damage.len,
        reason: damage.reason,
        is_repaired: damage.accepted,
    }
}
