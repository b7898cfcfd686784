//! Listing, verifying and deleting snapshots, without a node.
//!
//! These run to the end on the calling thread with ordinary files: nothing else waits for them.

use std::fs;
use std::io::{self, Read, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

use super::{CATALOG_FILE, Catalog, CatalogError, CatalogFile, UNFINISHED_SUFFIX, unfinished_name};

/// Files are read in pieces of this many bytes.
pub(super) const PIECE_BYTES: usize = 1 << 20;
/// Longest catalog in bytes: about a million files.
pub const CATALOG_BYTES_MAX: u64 = 128 << 20;

/// Why a snapshot cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// There is no such snapshot.
    #[error("there is no snapshot in {}", path.display())]
    Missing {
        /// Where it would be.
        path: PathBuf,
    },
    /// Its catalog cannot be used.
    #[error("{}: {source}", path.display())]
    Catalog {
        /// The catalog.
        path: PathBuf,
        /// Why.
        source: CatalogError,
    },
    /// A file is not what the catalog says.
    #[error("{}: {damage}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        damage: FileDamage,
    },
    /// What would be made is there already.
    #[error("{} is there already", path.display())]
    Exists {
        /// The directory.
        path: PathBuf,
    },
    /// A data directory is made only where there is nothing.
    #[error("{} is not empty", path.display())]
    NotEmpty {
        /// The directory.
        path: PathBuf,
    },
    /// A file system begins there; nothing can take its place.
    #[error("{} is a mount point", path.display())]
    MountPoint {
        /// The directory.
        path: PathBuf,
    },
    /// It does not end in the name of a directory to be made.
    #[error("{:?} does not name a directory to make", path)]
    Unnamed {
        /// What was given.
        path: PathBuf,
    },
    /// Another process is at the same.
    #[error("another process is making {}", path.display())]
    Busy {
        /// The unfinished directory.
        path: PathBuf,
    },
    /// It holds other things than a snapshot does.
    #[error("{} is no snapshot: it holds {found:?}", path.display())]
    NotASnapshot {
        /// The directory.
        path: PathBuf,
        /// The first of them.
        found: String,
    },
    /// The system refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// On which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// How a file differs from its catalog.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FileDamage {
    /// It is not there.
    #[error("missing")]
    Missing,
    /// It has another length.
    #[error("{found} bytes long, not {expected}")]
    Len {
        /// As it is.
        found: u64,
        /// As the catalog says.
        expected: u64,
    },
    /// A part of it has another checksum.
    #[error("bytes {start} to {end} have checksum {found:08x}, the catalog says {expected:08x}")]
    Checksum {
        /// Where the part begins.
        start: u64,
        /// Where it ends.
        end: u64,
        /// As computed.
        found: u32,
        /// As the catalog says.
        expected: u32,
    },
}

impl SnapshotError {
    pub(super) fn io(path: &Path) -> impl FnOnce(io::Error) -> Self {
        |source| Self::Io { path: path.into(), source }
    }

    fn is_not_found(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }
}

/// Reads the catalog of the snapshot in `directory`.
///
/// # Errors
/// [`SnapshotError`].
pub fn open(directory: &Path) -> Result<Catalog, SnapshotError> {
    let path = directory.join(CATALOG_FILE);
    let file = match open_file(&path) {
        Err(error) if error.is_not_found() => {
            return Err(SnapshotError::Missing { path: directory.into() });
        }
        other => other?,
    };
    let mut bytes = Vec::new();
    let read = file.take(CATALOG_BYTES_MAX).read_to_end(&mut bytes);
    read.map_err(SnapshotError::io(&path))?;
    let text = String::from_utf8(bytes).map_err(|_| CatalogError::Checksum);
    let decoded = text.and_then(|text| Catalog::decode(&text));
    decoded.map_err(|source| SnapshotError::Catalog { path, source })
}

/// The snapshots in `directory`, oldest first. What is no snapshot, or an unfinished one, is left
/// out; one with a bad catalog is an error in its place.
///
/// # Errors
/// [`SnapshotError::Io`]; a directory that is not there holds none.
pub fn list(directory: &Path) -> Result<Vec<Result<Catalog, SnapshotError>>, SnapshotError> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(SnapshotError::io(directory))?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(SnapshotError::io(directory))?;
        if is_unfinished(&entry) {
            continue;
        }
        match open(&entry.path()) {
            Err(SnapshotError::Missing { .. }) => {}
            Err(SnapshotError::Io { source, .. })
                if source.kind() == io::ErrorKind::NotADirectory => {}
            other => found.push(other),
        }
    }
    found.sort_by_key(|snapshot| snapshot.as_ref().map_or(0, |snapshot| snapshot.created_ms));
    Ok(found)
}

fn is_unfinished(entry: &fs::DirEntry) -> bool {
    let name = entry.file_name().to_string_lossy().into_owned();
    name.starts_with('.') && name.ends_with(UNFINISHED_SUFFIX)
}

/// Removes what a crash left of snapshots in `directory` that were being taken, copied to it or
/// deleted; what another process is working on stays.
///
/// # Errors
/// [`SnapshotError::Io`].
pub fn remove_unfinished(directory: &Path) -> Result<(), SnapshotError> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other.map_err(SnapshotError::io(directory))?,
    };
    for entry in entries {
        let entry = entry.map_err(SnapshotError::io(directory))?;
        if !is_unfinished(&entry) {
            continue;
        }
        let path = entry.path();
        let locked = match lock(&path) {
            Err(SnapshotError::Busy { .. }) => continue,
            locked => locked?,
        };
        fs::remove_dir_all(&path).map_err(SnapshotError::io(&path))?;
        drop(locked);
    }
    Ok(())
}

/// Reads every file of a snapshot and compares it with the catalog. Returns what is wrong with
/// which file; `progress` hears of each piece read, in bytes.
///
/// # Errors
/// [`SnapshotError`] if there is no catalog to compare with.
pub fn verify(
    directory: &Path,
    progress: &mut dyn FnMut(u64),
) -> Result<Vec<SnapshotError>, SnapshotError> {
    let catalog = open(directory)?;
    let check = |file: &CatalogFile| check(&directory.join(&file.name), file, progress).err();
    Ok(catalog.files.iter().filter_map(check).collect())
}

/// Deletes a snapshot, be it unfinished or damaged; other snapshots and the data directory keep
/// what they share with it.
///
/// # Errors
/// [`SnapshotError`].
pub fn delete(directory: &Path) -> Result<(), SnapshotError> {
    let name = directory.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let unfinished = directory.with_file_name(unfinished_name(&name));
    let is_there = fs::symlink_metadata(directory).is_ok();
    let is_left = fs::symlink_metadata(&unfinished).is_ok();
    if !is_there && !is_left {
        return Err(SnapshotError::Missing { path: directory.into() });
    }
    if is_left {
        let locked = lock(&unfinished)?;
        fs::remove_dir_all(&unfinished).map_err(SnapshotError::io(&unfinished))?;
        drop(locked);
    }
    if is_there {
        expect_snapshot(directory)?;
        // Under this name it is none any more, even if this is cut short.
        fs::rename(directory, &unfinished).map_err(SnapshotError::io(directory))?;
        sync_directory(directory.parent())?;
        fs::remove_dir_all(&unfinished).map_err(SnapshotError::io(&unfinished))?;
    }
    sync_directory(directory.parent())
}

/// Whoever gives a wrong directory must not lose it.
fn expect_snapshot(directory: &Path) -> Result<(), SnapshotError> {
    for entry in fs::read_dir(directory).map_err(SnapshotError::io(directory))? {
        let entry = entry.map_err(SnapshotError::io(directory))?;
        let found = entry.file_name().to_string_lossy().into_owned();
        if found != CATALOG_FILE && !found.starts_with("shard-") {
            return Err(SnapshotError::NotASnapshot { path: directory.into(), found });
        }
    }
    Ok(())
}

/// Reads what of a file means something and compares it with the catalog.
pub(super) fn check(
    path: &Path,
    wanted: &CatalogFile,
    progress: &mut dyn FnMut(u64),
) -> Result<(), SnapshotError> {
    read_file(path, wanted, &mut |_, bytes| {
        progress(bytes.len() as u64);
        Ok(())
    })
}

/// Takes bytes of a file, and their offset.
type Take<'a> = &'a mut dyn FnMut(u64, &[u8]) -> Result<(), SnapshotError>;

/// Gives what of a file means something to `take`, with its offset, and compares it with the
/// catalog. All of it is given before a checksum is found to be wrong.
pub(super) fn read_file(
    path: &Path,
    wanted: &CatalogFile,
    take: Take<'_>,
) -> Result<(), SnapshotError> {
    let damaged = |damage| SnapshotError::Damaged { path: path.into(), damage };
    let mut file = match open_file(path) {
        Err(error) if error.is_not_found() => return Err(damaged(FileDamage::Missing)),
        other => other?,
    };
    let (found, expected) = (file.metadata().map_err(SnapshotError::io(path))?.len(), wanted.len);
    if found != expected {
        return Err(damaged(FileDamage::Len { found, expected }));
    }
    let content = wanted.content;
    let tail = content.tail.map(|tail| (tail.offset, wanted.len, tail.crc32));
    let (mut result, mut piece) = (Ok(()), vec![0; PIECE_BYTES]);
    for (start, end, expected) in [(0, content.used, content.crc32)].into_iter().chain(tail) {
        file.seek(SeekFrom::Start(start)).map_err(SnapshotError::io(path))?;
        let (mut part, mut offset) = ((&mut file).take(end - start), start);
        let mut crc = crc32fast::Hasher::new();
        loop {
            let len = match part.read(&mut piece) {
                Ok(0) => break,
                Ok(len) => len,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(SnapshotError::io(path)(error)),
            };
            let bytes = piece.get(..len).unwrap_or_default();
            crc.update(bytes);
            take(offset, bytes)?;
            offset += len as u64;
        }
        let found = crc.finalize();
        if found != expected && result.is_ok() {
            result = Err(damaged(FileDamage::Checksum { start, end, found, expected }));
        }
    }
    result
}

#[expect(clippy::disallowed_types, reason = "at rest, with no driver; see the module's text")]
pub(super) fn open_file(path: &Path) -> Result<fs::File, SnapshotError> {
    fs::File::open(path).map_err(SnapshotError::io(path))
}

/// Keeps a directory for this process for as long as the result lives.
#[expect(clippy::disallowed_types, reason = "at rest, with no driver; see the module's text")]
pub(super) fn lock(directory: &Path) -> Result<fs::File, SnapshotError> {
    let file = open_file(directory)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(fs::TryLockError::WouldBlock) => Err(SnapshotError::Busy { path: directory.into() }),
        Err(fs::TryLockError::Error(source)) => Err(SnapshotError::io(directory)(source)),
    }
}

/// Makes the names in a directory durable; `None` and an empty path are the current one.
pub(super) fn sync_directory(path: Option<&Path>) -> Result<(), SnapshotError> {
    let path = path.filter(|path| !path.as_os_str().is_empty());
    let path = path.unwrap_or_else(|| Path::new("."));
    open_file(path)?.sync_all().map_err(SnapshotError::io(path))
}
