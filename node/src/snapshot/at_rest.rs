//! Listing, verifying, copying and restoring snapshots, without a node.
//!
//! These run to the end on the calling thread with ordinary files: nothing else waits for them.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use super::{CATALOG_FILE, Catalog, CatalogError, CatalogFile, UNFINISHED_SUFFIX, unfinished_name};

/// Files are read in pieces of this many bytes.
const PIECE_BYTES: usize = 1 << 20;
/// Longest catalog in bytes: about a million files.
const CATALOG_BYTES_MAX: u64 = 128 << 20;

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
    #[error("{}: {reason}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// What would be made is there already.
    #[error("{} is there already", path.display())]
    Exists {
        /// The directory.
        path: PathBuf,
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

impl SnapshotError {
    fn io(path: &Path) -> impl FnOnce(io::Error) -> Self {
        |source| Self::Io { path: path.into(), source }
    }
}

/// Reads the catalog of the snapshot in `directory`.
///
/// # Errors
/// [`SnapshotError`].
pub fn open(directory: &Path) -> Result<Catalog, SnapshotError> {
    let path = directory.join(CATALOG_FILE);
    let file = match open_file(&path) {
        Err(SnapshotError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
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

/// Removes what a crash left of snapshots in `directory` that were being taken or copied to it.
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
        let (name, path) = (entry.file_name().to_string_lossy().into_owned(), entry.path());
        if name.starts_with('.') && name.ends_with(UNFINISHED_SUFFIX) {
            fs::remove_dir_all(&path).map_err(SnapshotError::io(&path))?;
        }
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
    let check = |file: &CatalogFile| {
        copy_file(&directory.join(&file.name), file, &mut io::sink(), progress).err()
    };
    Ok(catalog.files.iter().filter_map(check).collect())
}

/// Copies a snapshot to `target`, which must not exist, verifying it on the way. Files that
/// another snapshot in `beside` has, too, are linked instead of copied. With `as_data_directory`
/// the catalog is left out: a node can be started on the copy.
///
/// The copy is durable when this returns; after an error what was copied is removed.
///
/// # Errors
/// [`SnapshotError`].
pub fn copy(
    directory: &Path,
    target: &Path,
    beside: Option<&Path>,
    as_data_directory: bool,
    progress: &mut dyn FnMut(u64),
) -> Result<Catalog, SnapshotError> {
    let catalog = open(directory)?;
    if target.exists() {
        return Err(SnapshotError::Exists { path: target.into() });
    }
    let name = target.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let unfinished = target.with_file_name(unfinished_name(&name));
    if unfinished.exists() {
        // Left by a copy that was cut short.
        fs::remove_dir_all(&unfinished).map_err(SnapshotError::io(&unfinished))?;
    }
    let known = beside.map_or_else(|| Ok(BTreeMap::new()), known_files)?;
    let copied = fill(directory, &unfinished, &catalog, &known, as_data_directory, progress);
    let moved = copied.and_then(|()| {
        fs::rename(&unfinished, target).map_err(SnapshotError::io(target))?;
        sync_directory(target.parent().filter(|p| !p.as_os_str().is_empty()))
    });
    if moved.is_err() {
        drop(fs::remove_dir_all(&unfinished));
    }
    moved.map(|()| catalog)
}

/// Deletes a snapshot; other snapshots and the data directory keep what they share with it.
///
/// # Errors
/// [`SnapshotError`].
pub fn delete(directory: &Path) -> Result<(), SnapshotError> {
    open(directory)?;
    // Without its catalog it is none any more, even if this is cut short.
    let catalog = directory.join(CATALOG_FILE);
    fs::remove_file(&catalog).map_err(SnapshotError::io(&catalog))?;
    sync_directory(Some(directory))?;
    fs::remove_dir_all(directory).map_err(SnapshotError::io(directory))
}

type KnownFiles = BTreeMap<(String, u64, u32), PathBuf>;

fn known_files(directory: &Path) -> Result<KnownFiles, SnapshotError> {
    let mut known = KnownFiles::new();
    for snapshot in list(directory)?.into_iter().flatten() {
        let home = directory.join(&snapshot.id);
        for file in snapshot.files {
            let path = home.join(&file.name);
            known.insert((file.name, file.used, file.crc32), path);
        }
    }
    Ok(known)
}

fn fill(
    directory: &Path,
    target: &Path,
    catalog: &Catalog,
    known: &KnownFiles,
    as_data_directory: bool,
    progress: &mut dyn FnMut(u64),
) -> Result<(), SnapshotError> {
    fs::create_dir_all(target).map_err(SnapshotError::io(target))?;
    for file in &catalog.files {
        let to = target.join(&file.name);
        if let Some(parent) = to.parent() {
            fs::create_dir_all(parent).map_err(SnapshotError::io(parent))?;
        }
        let same = known.get(&(file.name.clone(), file.used, file.crc32));
        if same.is_some_and(|same| fs::hard_link(same, &to).is_ok()) {
            progress(file.used);
            continue;
        }
        let mut out = create_file(&to)?;
        copy_file(&directory.join(&file.name), file, &mut out, progress)?;
        // Segments keep their length; what lies beyond the used bytes reads as zeros.
        out.set_len(file.len).map_err(SnapshotError::io(&to))?;
        out.sync_all().map_err(SnapshotError::io(&to))?;
    }
    if !as_data_directory {
        let path = target.join(CATALOG_FILE);
        let mut out = create_file(&path)?;
        let written = out.write_all(catalog.encode().as_bytes()).and_then(|()| out.sync_all());
        written.map_err(SnapshotError::io(&path))?;
    }
    let folders =
        catalog.files.iter().filter_map(|file| target.join(&file.name).parent().map(PathBuf::from));
    let folders: std::collections::BTreeSet<PathBuf> = folders.chain([target.into()]).collect();
    folders.iter().try_for_each(|folder| sync_directory(Some(folder)))
}

/// Copies the used bytes of a file and compares them with the catalog.
fn copy_file(
    path: &Path,
    wanted: &CatalogFile,
    out: &mut dyn Write,
    progress: &mut dyn FnMut(u64),
) -> Result<(), SnapshotError> {
    let damaged = |reason| SnapshotError::Damaged { path: path.into(), reason };
    let file = open_file(path)?;
    let len = file.metadata().map_err(SnapshotError::io(path))?.len();
    if len != wanted.len {
        return Err(damaged(format!("{len} bytes long, not {}", wanted.len)));
    }
    let (mut file, mut piece) = (file.take(wanted.used), vec![0; PIECE_BYTES]);
    let mut crc = crc32fast::Hasher::new();
    loop {
        let len = match file.read(&mut piece) {
            Ok(0) => break,
            Ok(len) => len,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(SnapshotError::io(path)(error)),
        };
        let bytes = piece.get(..len).unwrap_or_default();
        crc.update(bytes);
        out.write_all(bytes).map_err(SnapshotError::io(path))?;
        progress(len as u64);
    }
    let (found, expected) = (crc.finalize(), wanted.crc32);
    if found == expected {
        Ok(())
    } else {
        Err(damaged(format!("checksum {found:08x}, the catalog says {expected:08x}")))
    }
}

#[expect(clippy::disallowed_types, reason = "at rest, with no driver; see the module's text")]
fn open_file(path: &Path) -> Result<fs::File, SnapshotError> {
    fs::File::open(path).map_err(SnapshotError::io(path))
}

#[expect(clippy::disallowed_types, reason = "at rest, with no driver; see the module's text")]
fn create_file(path: &Path) -> Result<fs::File, SnapshotError> {
    fs::File::create_new(path).map_err(SnapshotError::io(path))
}

/// Makes the names in a directory durable; `None` is the current one.
fn sync_directory(path: Option<&Path>) -> Result<(), SnapshotError> {
    let path = path.unwrap_or_else(|| Path::new("."));
    open_file(path)?.sync_all().map_err(SnapshotError::io(path))
}

#[cfg(test)]
mod tests {
    use super::{SnapshotError, copy, delete, list, open, remove_unfinished, verify};
    use crate::snapshot::{CATALOG_FILE, Catalog, CatalogFile};
    use std::fs;
    use std::os::unix::fs::MetadataExt as _;
    use std::path::Path;

    /// Makes a snapshot with these files, of which one byte fewer than there are is used.
    fn make(home: &Path, id: &str, created_ms: u64, files: &[(&str, &[u8])]) {
        let directory = home.join(id);
        fs::create_dir_all(&directory).unwrap();
        let file = |(name, bytes): &(&str, &[u8])| {
            let path = directory.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
            let used = &bytes[..bytes.len() - 1];
            CatalogFile {
                name: (*name).to_owned(),
                len: bytes.len() as u64,
                used: used.len() as u64,
                crc32: crc32fast::hash(used),
            }
        };
        let files = files.iter().map(file).collect();
        let catalog = Catalog { id: id.to_owned(), created_ms, store: [1; 16], files };
        fs::write(directory.join(CATALOG_FILE), catalog.encode()).unwrap();
    }

    fn home() -> tempfile::TempDir {
        tempfile::tempdir().unwrap()
    }

    const FILES: [(&str, &[u8]); 2] = [("shard-00/a", b"first file\0"), ("b", b"second\0")];

    #[test]
    fn snapshots_are_listed_by_age_and_strangers_left_out() {
        let home = home();
        assert!(list(&home.path().join("none")).unwrap().is_empty());
        make(home.path(), "newer", 2, &FILES);
        make(home.path(), "older", 1, &[]);
        fs::write(home.path().join("file"), "x").unwrap();
        fs::create_dir(home.path().join(".newest.unfinished")).unwrap();
        let found = list(home.path()).unwrap();
        let ids: Vec<String> = found.into_iter().map(|found| found.unwrap().id).collect();
        assert_eq!(ids, ["older", "newer"]);
    }

    #[test]
    fn what_is_unfinished_is_removed_and_nothing_else() {
        let home = home();
        remove_unfinished(&home.path().join("none")).unwrap();
        make(home.path(), "x.unfinished", 1, &FILES);
        make(home.path(), ".y.unfinished", 1, &FILES);
        fs::create_dir(home.path().join(".other")).unwrap();
        remove_unfinished(home.path()).unwrap();
        assert!(home.path().join("x.unfinished/b").exists() && home.path().join(".other").exists());
        assert!(!home.path().join(".y.unfinished").exists());
    }

    #[test]
    fn damage_is_found_in_used_bytes_lengths_and_missing_files() {
        let home = home();
        make(home.path(), "s", 1, &FILES);
        let (snapshot, mut read) = (home.path().join("s"), 0);
        assert!(verify(&snapshot, &mut |bytes| read += bytes).unwrap().is_empty());
        assert_eq!(read, 16);
        fs::write(snapshot.join("b"), b"secondX").unwrap();
        assert!(verify(&snapshot, &mut |_| ()).unwrap().is_empty(), "beyond the used bytes");
        fs::write(snapshot.join("b"), b"sXcond\0").unwrap();
        fs::write(snapshot.join("shard-00/a"), b"first file").unwrap();
        assert_eq!(verify(&snapshot, &mut |_| ()).unwrap().len(), 2);
        fs::remove_file(snapshot.join("b")).unwrap();
        assert_eq!(verify(&snapshot, &mut |_| ()).unwrap().len(), 2);
        fs::remove_file(snapshot.join(CATALOG_FILE)).unwrap();
        let missing = verify(&snapshot, &mut |_| ());
        assert!(matches!(missing, Err(SnapshotError::Missing { .. })));
    }

    #[test]
    fn copies_are_whole_or_not_there() {
        let home = home();
        make(home.path(), "s", 1, &FILES);
        let (from, to) = (home.path().join("s"), home.path().join("copy"));
        copy(&from, &to, None, true, &mut |_| ()).unwrap();
        assert_eq!(fs::read(to.join("shard-00/a")).unwrap(), b"first file\0");
        assert!(!to.join(CATALOG_FILE).exists());
        let again = copy(&from, &to, None, true, &mut |_| ());
        assert!(matches!(again, Err(SnapshotError::Exists { .. })));
        fs::write(from.join("b"), b"sXcond\0").unwrap();
        let damaged = copy(&from, &home.path().join("bad"), None, true, &mut |_| ());
        assert!(matches!(damaged, Err(SnapshotError::Damaged { .. })));
        let mut names: Vec<_> =
            fs::read_dir(home.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["copy", "s"]);
    }

    #[test]
    fn deleting_one_leaves_what_it_shares() {
        let home = home();
        make(home.path(), "one", 1, &FILES);
        let (one, two) = (home.path().join("one"), home.path().join("two"));
        copy(&one, &two, Some(home.path()), false, &mut |_| ()).unwrap();
        delete(&one).unwrap();
        assert!(!one.exists() && verify(&two, &mut |_| ()).unwrap().is_empty());
        assert!(matches!(delete(&one), Err(SnapshotError::Missing { .. })));
    }

    #[test]
    fn second_copy_links_what_the_first_brought() {
        let (home, away) = (home(), home());
        make(home.path(), "one", 1, &FILES);
        make(home.path(), "two", 2, &[FILES[0], ("b", b"changed\0")]);
        for id in ["one", "two"] {
            let (from, to) = (home.path().join(id), away.path().join(id));
            copy(&from, &to, Some(away.path()), false, &mut |_| ()).unwrap();
            assert!(verify(&to, &mut |_| ()).unwrap().is_empty());
            assert_eq!(open(&to).unwrap(), open(&from).unwrap());
        }
        let links = |file: &str| fs::metadata(away.path().join("two").join(file)).unwrap().nlink();
        assert_eq!((links("shard-00/a"), links("b")), (2, 1));
    }
}
