//! `kadring snapshot create|list|verify|copy|restore|delete`.
//!
//! Only `create` needs a running node; the others read the files of a snapshot, which never change.

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::client::{self, NodeFlags};
use super::error::CliError;
use super::exit_code::ExitCode;
use super::progress::progress_bar;
use crate::config::{self, Sources};
use crate::snapshot::at_rest::{self, SnapshotError};
use crate::snapshot::copy::{self, Copied, OnDamage};
use crate::snapshot::{Catalog, CatalogFile, SNAPSHOTS_DIRECTORY, is_valid_id};

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
    /// Copy a snapshot to another directory of snapshots; files that one there has are linked
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
        /// The data directory to make; it must be empty if it exists
        #[arg(long, value_name = "DIR")]
        to: PathBuf,
        /// Copy damaged files as far as they can be read, instead of refusing the snapshot
        #[arg(long)]
        damaged: bool,
    },
    /// Delete a snapshot, or what is left of an unfinished one
    #[command(visible_alias = "remove")]
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
    /// A data directory was made although files are damaged.
    #[error(
        "restored, but {count} files are damaged; see kadring check --data-dir {}",
        to.display()
    )]
    RestoredDamaged {
        /// How many.
        count: usize,
        /// The data directory.
        to: PathBuf,
    },
}

fn remedy(error: &SnapshotError) -> &'static str {
    match error {
        SnapshotError::Missing { .. } => "see kadring snapshot list",
        SnapshotError::Catalog { .. } => "use another snapshot, or a copy of this one",
        SnapshotError::Damaged { .. } => {
            "use another snapshot or a copy of this one, or restore it with --damaged"
        }
        SnapshotError::Exists { .. } => "give another name or remove it",
        SnapshotError::NotEmpty { .. } => "give an empty directory, or one that is not there",
        SnapshotError::MountPoint { .. } => "give a directory below it",
        SnapshotError::Unnamed { .. } => "give a path that ends in a name",
        SnapshotError::Busy { .. } => "wait for it to end",
        SnapshotError::NotASnapshot { .. } => "give the directory that holds the snapshots",
        SnapshotError::Io { source, .. } => match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                "free space there and run it again: it goes on where it stopped"
            }
            io::ErrorKind::PermissionDenied => "let this user read and write there",
            io::ErrorKind::ReadOnlyFilesystem => "mount it for writing, or give another directory",
            _ => "mend that and run it again",
        },
    }
}

impl SnapshotCliError {
    /// The exit code that belongs to it.
    pub(super) fn exit_code(&self) -> ExitCode {
        match self {
            Self::Id { .. } => ExitCode::Usage,
            Self::Damaged { .. } | Self::RestoredDamaged { .. } => ExitCode::DamageFound,
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
            let made = with_bar(&snapshot, |progress| copy::copy(&snapshot, to, progress))?;
            say_copied(out, format_args!("copied {id} to {}", to.display()), &made)
        }
        SnapshotCommand::Restore { place, id, to, damaged } => {
            let snapshot = directory(place, sources)?.join(checked(id)?);
            let on_damage = if *damaged { OnDamage::Copy } else { OnDamage::Refuse };
            let made =
                with_bar(&snapshot, |progress| copy::restore(&snapshot, to, on_damage, progress))?;
            for damage in &made.damaged {
                say(out, format_args!("{damage}"))?;
            }
            if !made.damaged.is_empty() {
                let (count, to) = (made.damaged.len(), to.clone());
                return Err(SnapshotCliError::RestoredDamaged { count, to }.into());
            }
            say_copied(out, format_args!("restored {id} to {}", to.display()), &made)
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

/// Bytes that were not copied anew are told of only if there are any.
fn say_copied(
    out: &mut dyn Write,
    done: std::fmt::Arguments<'_>,
    made: &Copied,
) -> Result<(), CliError> {
    let Copied { copied, linked, kept, .. } = made;
    let told = |bytes: u64, what| match bytes {
        0 => String::new(),
        _ => format!(", {bytes} {what}"),
    };
    let (linked, kept) = (told(*linked, "linked"), told(*kept, "there already"));
    say(out, format_args!("{done}: {copied} bytes copied{linked}{kept}"))
}

/// Refuses what is no snapshot's id.
pub(super) fn checked(id: &str) -> Result<&str, SnapshotCliError> {
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
                let (count, bytes) = (files.len(), bytes_of(&files));
                say(out, format_args!("{id} {created_ms} {count} {bytes}"))?;
            }
            Err(error) => bad = Some(error),
        }
    }
    bad.map_or(Ok(()), |error| Err(SnapshotCliError::from(error).into()))
}

fn verify(snapshot: &Path, id: &str, out: &mut dyn Write) -> Result<(), CliError> {
    let catalog = at_rest::open(snapshot).map_err(SnapshotCliError::from)?;
    let bytes = bytes_of(&catalog.files);
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

fn bytes_of(files: &[CatalogFile]) -> u64 {
    files.iter().map(CatalogFile::bytes).sum()
}

/// Does something that reads a whole snapshot, and shows how far it is.
fn with_bar<T>(
    snapshot: &Path,
    work: impl FnOnce(&mut dyn FnMut(u64)) -> Result<T, SnapshotError>,
) -> Result<T, SnapshotCliError> {
    let bar = progress_bar(Some(bytes_of(&at_rest::open(snapshot)?.files)), "");
    let result = work(&mut |bytes| bar.inc(bytes));
    bar.finish_and_clear();
    Ok(result?)
}
