//! `kadring export|import`: all keys of a data directory to an export file, and back.

use std::ffi::OsString;
use std::fs;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use indicatif::ProgressBar;
use wal::record::Key;

use super::error::CliError;
use super::exit_code::ExitCode;
use super::progress::progress_bar;
use super::snapshot::{self, SnapshotCliError};
use crate::config::{Config, Sources};
use crate::export::{self, Totals, TransferError};
use crate::node::RunError;
use crate::offline::Offline;
use crate::snapshot::SNAPSHOTS_DIRECTORY;
use crate::snapshot::copy::Scratch;

/// Counted on the progress bar beside the bytes.
const KEYS: &str = ", {msg} keys";

/// Which data directory.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct DirectoryFlags {
    /// The data directory; no node may be using it [default: ./kadring-data] [env:
    /// KADRING_DATA_DIR]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<OsString>,
    /// Configuration file that names the data directory [env: KADRING_CONFIG]
    #[arg(long, value_name = "FILE")]
    config: Option<OsString>,
}

impl DirectoryFlags {
    /// The value given for the setting `key`.
    pub(super) fn get(&self, key: &str) -> Option<OsString> {
        match key {
            "data_dir" => self.data_dir.clone(),
            "config" => self.config.clone(),
            _ => None,
        }
    }
}

/// Flags of `kadring export`.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct ExportFlags {
    #[command(flatten)]
    pub(super) directory: DirectoryFlags,
    /// Export this snapshot, of a node that may be running, instead of the data directory
    #[arg(long, value_name = "ID")]
    snapshot: Option<String>,
    /// A directory that the snapshot was copied to, instead of a data directory
    #[arg(long, value_name = "DIR", requires = "snapshot", conflicts_with = "data_dir")]
    from: Option<PathBuf>,
    /// The file to write, which must not exist yet; `-` is stdout
    file: PathBuf,
}

/// Flags of `kadring import`.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct ImportFlags {
    #[command(flatten)]
    pub(super) directory: DirectoryFlags,
    /// The file to read, checked as a whole before anything is stored; `-` is stdin, which is
    /// checked on the way
    file: PathBuf,
}

/// Why keys were not exported or imported. Displayed as `what; remedy`.
#[derive(Debug, thiserror::Error)]
pub enum TransferCliError {
    /// The file cannot be opened or made.
    #[error("{} cannot be opened: {source}; give another file", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The data directory cannot be used.
    #[error("{0}; {remedy}", remedy = super::run::remedy(.0))]
    Directory(#[source] RunError),
    /// The transfer failed midway.
    #[error("{source}; {remedy}")]
    Transfer {
        /// Why.
        source: TransferError,
        /// What to do.
        remedy: &'static str,
    },
    /// Keys whose record is damaged are not in the file.
    #[error(
        "{count} damaged keys are not in the export file; restore them from a snapshot or another \
         node"
    )]
    Damaged {
        /// How many.
        count: u64,
    },
}

impl TransferCliError {
    /// The exit code that belongs to it.
    pub(super) fn exit_code(&self) -> ExitCode {
        match self {
            Self::Directory(error) => super::run::exit_code(error),
            Self::Damaged { .. } => ExitCode::DamageFound,
            Self::Open { .. } | Self::Transfer { .. } => ExitCode::Failure,
        }
    }
}

/// Writes all keys of the data directory to the file.
///
/// # Errors
/// [`TransferCliError`] or a refused configuration; an unfinished file is removed.
pub(super) fn export(
    flags: &ExportFlags,
    sources: &Sources<'_>,
    out: &mut dyn Write,
) -> Result<(), CliError> {
    let mut config = Config::load(sources)?;
    let scratch = scratch_of(flags, &config)?;
    if let Some(scratch) = &scratch {
        scratch.path().clone_into(&mut config.data_dir);
        // As many segments as it has, in as many shards.
        (config.disk_bytes_max, config.shards) = (0, None);
    }
    let mut offline = Offline::open(&config, false).map_err(TransferCliError::Directory)?;
    let (mut damaged, bar) = (0, progress_bar(None, KEYS));
    let to_stdout = is_standard(&flags.file);
    let result = if to_stdout {
        let mut count = |_| damaged += 1;
        export::export(&mut offline, &mut *out, &mut count, &mut |totals| show(&bar, totals))
    } else {
        export_to(&mut offline, &flags.file, &mut |_| damaged += 1, &bar)?
    };
    bar.finish_and_clear();
    let totals = result.map_err(|error| failed(error, "mend the cause and export again"))?;
    let closed = offline.close().map_err(TransferError::Disk);
    closed.map_err(|error| failed(error, "the file is whole; see what the disk has"))?;
    if !to_stdout {
        let (keys, bytes) = (totals.keys, totals.bytes);
        writeln!(out, "exported {keys} keys in {bytes} bytes").map_err(CliError::Output)?;
    }
    if damaged > 0 {
        return Err(TransferCliError::Damaged { count: damaged }.into());
    }
    Ok(())
}

/// A data directory made of the snapshot to export, if it is one.
fn scratch_of(flags: &ExportFlags, config: &Config) -> Result<Option<Scratch>, CliError> {
    let Some(id) = &flags.snapshot else { return Ok(None) };
    let data_dir = || config.data_dir.join(SNAPSHOTS_DIRECTORY);
    let snapshot = flags.from.clone().unwrap_or_else(data_dir).join(snapshot::checked(id)?);
    Ok(Some(Scratch::new(&snapshot).map_err(SnapshotCliError::from)?))
}

type Exported = Result<Totals, TransferError>;

fn export_to(
    offline: &mut Offline,
    path: &Path,
    damaged: &mut dyn FnMut(Key),
    bar: &ProgressBar,
) -> Result<Exported, TransferCliError> {
    #[expect(clippy::disallowed_types, reason = "no node and no driver waits for this file")]
    let opened = fs::File::create_new(path);
    let file = opened.map_err(|source| TransferCliError::Open { path: path.into(), source })?;
    let buffered = io::BufWriter::with_capacity(1 << 20, &file);
    let written = export::export(offline, buffered, damaged, &mut |totals| show(bar, totals));
    let result =
        written.and_then(|totals| file.sync_all().map(|()| totals).map_err(TransferError::File));
    if result.is_err() {
        // What was written has no end mark; if it cannot be removed, reading it says so.
        drop(fs::remove_file(path));
    }
    Ok(result)
}

/// Stores all keys of the file in the data directory, which is made if it is not there.
///
/// # Errors
/// [`TransferCliError`] or a refused configuration.
pub(super) fn import(
    flags: &ImportFlags,
    sources: &Sources<'_>,
    out: &mut dyn Write,
) -> Result<(), CliError> {
    const REPEAT: &str = "keys before this point are stored; mend the cause and import again";
    let config = Config::load(sources)?;
    let bytes = fs::metadata(&flags.file).ok().map(|data| data.len());
    let input: Box<dyn Read> = if is_standard(&flags.file) {
        Box::new(io::stdin().lock())
    } else {
        let bar = progress_bar(bytes, KEYS);
        let checked = export::verify(open(&flags.file)?, &mut |totals| show(&bar, totals));
        bar.finish_and_clear();
        checked.map_err(|error| failed(error, "nothing was stored; export it again"))?;
        Box::new(open(&flags.file)?)
    };
    let mut offline = Offline::open(&config, true).map_err(TransferCliError::Directory)?;
    let bar = progress_bar(bytes, KEYS);
    let result = export::import(&mut offline, input, &mut |totals| show(&bar, totals));
    bar.finish_and_clear();
    let (totals, expired) = result.map_err(|error| failed(error, REPEAT))?;
    let closed = offline.close().map_err(TransferError::Disk);
    closed.map_err(|error| failed(error, "the keys are stored; see what the disk has"))?;
    let stored = totals.keys - expired;
    writeln!(out, "imported {stored} keys, left out {expired} that have expired")
        .map_err(CliError::Output)
}

fn failed(source: TransferError, remedy: &'static str) -> TransferCliError {
    TransferCliError::Transfer { source, remedy }
}

#[expect(clippy::disallowed_types, reason = "no node and no driver waits for this file")]
fn open(path: &Path) -> Result<fs::File, TransferCliError> {
    fs::File::open(path).map_err(|source| TransferCliError::Open { path: path.into(), source })
}

fn is_standard(path: &Path) -> bool {
    path.as_os_str() == "-"
}

fn show(bar: &ProgressBar, totals: Totals) {
    bar.set_position(totals.bytes);
    bar.set_message(totals.keys.to_string());
}
