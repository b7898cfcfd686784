//! `kadring snapshot create|list|verify|copy|restore|delete`.
//!
//! Only `create` needs a running node; the others read the files of a snapshot, which never change.

use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};

use super::client::{self, NodeFlags};
use super::error::CliError;
use super::exit_code::ExitCode;
use super::progress::progress_bar;
use crate::config::{self, Sources};
use crate::snapshot::at_rest::{self, SnapshotError};
use crate::snapshot::{Catalog, SNAPSHOTS_DIRECTORY, is_valid_id};

/// Subcommands of `kadring snapshot`.
#[derive(Clone, Debug, clap::Subcommand)]
pub(super) enum SnapshotCommand {
    /// Take a snapshot of a running node; prints its id once it is durable
    Create {
        #[command(flatten)]
        node: NodeFlags,
        /// Its id: letters, digits, - _ . [default: the time in milliseconds since 1970]
        id: Option<String>,
    },
    /// Print the snapshots, oldest first: id, time in milliseconds since 1970, files, bytes
    List {
        #[command(flatten)]
        place: PlaceFlags,
    },
    /// Read a snapshot and compare it with its checksums
    Verify {
        #[command(flatten)]
        place: PlaceFlags,
        /// Its id
        id: String,
    },
    /// Copy a snapshot to another directory of snapshots; what is there already is linked
    Copy {
        #[command(flatten)]
        place: PlaceFlags,
        /// Its id
        id: String,
        /// The directory of snapshots to copy it to
        #[arg(long, value_name = "DIR")]
        to: PathBuf,
    },
    /// Make a data directory out of a snapshot
    Restore {
        #[command(flatten)]
        place: PlaceFlags,
        /// Its id
        id: String,
        /// The data directory to make; it must not exist
        #[arg(long, value_name = "DIR")]
        to: PathBuf,
    },
    /// Delete a snapshot
    Delete {
        #[command(flatten)]
        place: PlaceFlags,
        /// Its id
        id: String,
    },
}

/// Where the snapshots are.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct PlaceFlags {
    /// The data directory they were taken of [default: ./kadring-data] [env: KADRING_DATA_DIR]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<OsString>,
    /// A directory that snapshots were copied to, instead of a data directory
    #[arg(long, value_name = "DIR", conflicts_with = "data_dir")]
    from: Option<PathBuf>,
    /// Configuration file that names the data directory [env: KADRING_CONFIG]
    #[arg(long, value_name = "FILE")]
    config: Option<OsString>,
}

impl SnapshotCommand {
    /// The value given for the setting `key`.
    pub(super) fn get(&self, key: &str) -> Option<OsString> {
        match self {
            Self::Create { node, .. } => node.get(key),
            Self::List { place }
            | Self::Verify { place, .. }
            | Self::Copy { place, .. }
            | Self::Restore { place, .. }
            | Self::Delete { place, .. } => match key {
                "data_dir" => place.data_dir.clone(),
                "config" => place.config.clone(),
                _ => None,
            },
        }
    }
}

/// Why a snapshot command failed. Displayed as `what; remedy`.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotCliError {
    /// The snapshot cannot be used.
    #[error("{source}; {}", remedy(source))]
    Snapshot {
        /// Why.
        #[from]
        source: SnapshotError,
    },
    /// Not a name for a snapshot.
    #[error("{found:?} is no snapshot id; give up to 64 letters, digits, - _ and ., no . first")]
    Id {
        /// What was given.
        found: String,
    },
    /// Files differ from the catalog.
    #[error("{count} of its files are damaged; use another snapshot, or a copy of this one")]
    Damaged {
        /// How many.
        count: usize,
    },
}

fn remedy(error: &SnapshotError) -> &'static str {
    match error {
        SnapshotError::Missing { .. } => "see kadring snapshot list",
        SnapshotError::Catalog { .. } | SnapshotError::Damaged { .. } => {
            "use another snapshot, or a copy of this one"
        }
        SnapshotError::Exists { .. } => "give another name or remove it",
        SnapshotError::Io { .. } => "mend that and try again",
    }
}

impl SnapshotCliError {
    /// The exit code that belongs to it.
    pub(super) fn exit_code(&self) -> ExitCode {
        match self {
            Self::Id { .. } => ExitCode::Usage,
            Self::Damaged { .. } => ExitCode::DamageFound,
            Self::Snapshot { source } => match source {
                SnapshotError::Catalog { .. } | SnapshotError::Damaged { .. } => {
                    ExitCode::DamageFound
                }
                _ => ExitCode::Failure,
            },
        }
    }
}

/// Runs a subcommand and prints what it found or made to `out`.
///
/// # Errors
/// [`SnapshotCliError`], a client's error for `create`, or a refused configuration.
pub(super) fn run(
    command: &SnapshotCommand,
    sources: &Sources<'_>,
    out: &mut dyn Write,
) -> Result<(), CliError> {
    match command {
        SnapshotCommand::Create { id, .. } => {
            let id = id.as_deref().map(checked).transpose()?;
            client::create_snapshot(id, sources, out)
        }
        SnapshotCommand::List { place } => list(&directory(place, sources)?, out),
        SnapshotCommand::Verify { place, id } => {
            let snapshot = directory(place, sources)?.join(checked(id)?);
            verify(&snapshot, id, out)
        }
        SnapshotCommand::Copy { place, id, to } => {
            let snapshot = directory(place, sources)?.join(checked(id)?);
            copy(&snapshot, &to.join(id), Some(to))?;
            say(out, format_args!("copied {id} to {}", to.display()))
        }
        SnapshotCommand::Restore { place, id, to } => {
            let snapshot = directory(place, sources)?.join(checked(id)?);
            copy(&snapshot, to, None)?;
            say(out, format_args!("restored {id} to {}", to.display()))
        }
        SnapshotCommand::Delete { place, id } => {
            let place = directory(place, sources)?;
            at_rest::delete(&place.join(checked(id)?)).map_err(SnapshotCliError::from)?;
            say(out, format_args!("deleted {id}"))
        }
    }
}

fn say(out: &mut dyn Write, line: std::fmt::Arguments<'_>) -> Result<(), CliError> {
    writeln!(out, "{line}").map_err(CliError::Output)
}

fn checked(id: &str) -> Result<&str, SnapshotCliError> {
    let valid = is_valid_id(id).then_some(id);
    valid.ok_or_else(|| SnapshotCliError::Id { found: id.to_owned() })
}

fn directory(place: &PlaceFlags, sources: &Sources<'_>) -> Result<PathBuf, CliError> {
    match &place.from {
        Some(from) => Ok(from.clone()),
        None => Ok(config::data_dir(sources)?.join(SNAPSHOTS_DIRECTORY)),
    }
}

fn list(directory: &Path, out: &mut dyn Write) -> Result<(), CliError> {
    let mut bad = None;
    for snapshot in at_rest::list(directory).map_err(SnapshotCliError::from)? {
        match snapshot {
            Ok(Catalog { id, created_ms, files, .. }) => {
                let bytes: u64 = files.iter().map(|file| file.used).sum();
                let count = files.len();
                say(out, format_args!("{id} {created_ms} {count} {bytes}"))?;
            }
            Err(error) => bad = Some(error),
        }
    }
    bad.map_or(Ok(()), |error| Err(SnapshotCliError::from(error).into()))
}

fn verify(snapshot: &Path, id: &str, out: &mut dyn Write) -> Result<(), CliError> {
    let catalog = at_rest::open(snapshot).map_err(SnapshotCliError::from)?;
    let bytes = catalog.files.iter().map(|file| file.used).sum();
    let bar = progress_bar(Some(bytes), "");
    let found = at_rest::verify(snapshot, &mut |bytes| bar.inc(bytes));
    bar.finish_and_clear();
    let found = found.map_err(SnapshotCliError::from)?;
    for damage in &found {
        say(out, format_args!("{damage}"))?;
    }
    if !found.is_empty() {
        return Err(SnapshotCliError::Damaged { count: found.len() }.into());
    }
    say(out, format_args!("sound: {id}, {} files, {bytes} bytes", catalog.files.len()))
}

fn copy(snapshot: &Path, to: &Path, beside: Option<&Path>) -> Result<(), SnapshotCliError> {
    let catalog = at_rest::open(snapshot)?;
    let bar = progress_bar(Some(catalog.files.iter().map(|file| file.used).sum()), "");
    let restoring = beside.is_none();
    let copied = at_rest::copy(snapshot, to, beside, restoring, &mut |bytes| bar.inc(bytes));
    bar.finish_and_clear();
    copied?;
    Ok(())
}
