//! Copies of snapshots: to other directories of snapshots, and to data directories.
//!
//! ```text
//! .NAME.unfinished/ made, locked -> files copied, verified on the way, synced -> renamed to NAME
//! ```
//!
//! What is cut short, or has no room, stays under its unfinished name; the same command goes on
//! with it, file by file. What a file holds is believed only after its checksum was compared, but
//! for those that another snapshot beside the copy has: they are linked by what its catalog says,
//! and by their first and last bytes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use wal::disk::BLOCK_SIZE;

use super::at_rest::{
    PIECE_BYTES, SnapshotError, check, list, lock, open, open_file, read_file, sync_directory,
};
use super::{CATALOG_FILE, Catalog, CatalogFile, unfinished_name};

/// What a copy has done, in bytes.
#[derive(Debug, Default)]
pub struct Copied {
    /// Copied from the snapshot.
    pub copied: u64,
    /// Linked to files of snapshots that were there.
    pub linked: u64,
    /// Found whole where an earlier attempt had left them.
    pub kept: u64,
    /// Files copied as they are although they are damaged.
    pub damaged: Vec<SnapshotError>,
}

/// What is to become of damaged files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnDamage {
    /// Nothing is made of the snapshot.
    Refuse,
    /// They are copied as far as they can be read; recovery says what of them is lost.
    Copy,
}

/// Copies the snapshot in `directory` to the directory of snapshots `into`, under the same name.
/// Files that another snapshot there has, too, are linked instead of copied.
///
/// The copy is durable when this returns.
///
/// # Errors
/// [`SnapshotError`].
pub fn copy(
    directory: &Path,
    into: &Path,
    progress: &mut dyn FnMut(u64),
) -> Result<Copied, SnapshotError> {
    let catalog = open(directory)?;
    let to = into.join(&catalog.id);
    if fs::symlink_metadata(&to).is_ok() {
        return Err(SnapshotError::Exists { path: to });
    }
    let target = Target::begin(&to)?;
    let known = known_files(into, &catalog)?;
    let mut filling = Filling { directory, target: &target, known, on_damage: OnDamage::Refuse };
    let copied = target.keep_or_remove(filling.run(&catalog, progress).and_then(|copied| {
        let path = target.unfinished.join(CATALOG_FILE);
        write_file(&path, &mut |file| {
            file.write_all_at(catalog.encode().as_bytes(), 0).map_err(SnapshotError::io(&path))
        })?;
        sync_directory(Some(&target.unfinished)).map(|()| copied)
    }))?;
    target.finish()?;
    Ok(copied)
}

/// Makes a data directory of the snapshot in `directory`: a node can be started on it. `to` is not
/// there yet, or empty.
///
/// The data directory is durable when this returns.
///
/// # Errors
/// [`SnapshotError`].
pub fn restore(
    directory: &Path,
    to: &Path,
    on_damage: OnDamage,
    progress: &mut dyn FnMut(u64),
) -> Result<Copied, SnapshotError> {
    let catalog = open(directory)?;
    let replaced = replaced_directory(to)?;
    let target = Target::begin(to)?;
    let mut filling = Filling { directory, target: &target, known: BTreeMap::new(), on_damage };
    let copied = target.keep_or_remove(filling.run(&catalog, progress))?;
    if let Some(permissions) = replaced {
        let set = fs::set_permissions(&target.unfinished, permissions);
        set.map_err(SnapshotError::io(&target.unfinished))?;
    }
    target.finish()?;
    Ok(copied)
}

/// The permissions of the empty directory that a restored one takes the place of, if there is one.
fn replaced_directory(to: &Path) -> Result<Option<fs::Permissions>, SnapshotError> {
    let found = match fs::metadata(to) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        found => found.map_err(SnapshotError::io(to))?,
    };
    if !found.is_dir() {
        return Err(SnapshotError::Exists { path: to.into() });
    }
    if fs::read_dir(to).map_err(SnapshotError::io(to))?.next().is_some() {
        return Err(SnapshotError::NotEmpty { path: to.into() });
    }
    let parent = parent_of(to);
    let above = fs::metadata(parent).map_err(SnapshotError::io(parent))?;
    if above.dev() != found.dev() {
        return Err(SnapshotError::MountPoint { path: to.into() });
    }
    Ok(Some(found.permissions()))
}

fn parent_of(path: &Path) -> &Path {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    parent.unwrap_or_else(|| Path::new("."))
}

/// A directory to be made.
struct Target {
    name: PathBuf,
    unfinished: PathBuf,
    #[expect(clippy::disallowed_types, reason = "at rest, with no driver; see the module's text")]
    _lock: fs::File,
}

impl Target {
    /// Makes and locks the unfinished directory, or takes over one that was left.
    fn begin(name: &Path) -> Result<Self, SnapshotError> {
        let unnamed = || SnapshotError::Unnamed { path: name.into() };
        let last = name.file_name().ok_or_else(unnamed)?.to_string_lossy().into_owned();
        let unfinished = name.with_file_name(unfinished_name(&last));
        fs::create_dir_all(&unfinished).map_err(SnapshotError::io(&unfinished))?;
        let locked = lock(&unfinished)?;
        // Between the two, another process may have finished it.
        let id = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
        let ours = locked.metadata().map(id).map_err(SnapshotError::io(&unfinished))?;
        if fs::metadata(&unfinished).map(id).ok() != Some(ours) {
            return Err(SnapshotError::Busy { path: unfinished });
        }
        Ok(Self { name: name.into(), unfinished, _lock: locked })
    }

    /// After a failure of the system it is worth to go on later; after any other it is not.
    fn keep_or_remove<T>(&self, result: Result<T, SnapshotError>) -> Result<T, SnapshotError> {
        if !matches!(result, Ok(_) | Err(SnapshotError::Io { .. })) {
            drop(fs::remove_dir_all(&self.unfinished));
        }
        result
    }

    fn finish(&self) -> Result<(), SnapshotError> {
        fs::rename(&self.unfinished, &self.name).map_err(SnapshotError::io(&self.name))?;
        sync_directory(Some(parent_of(&self.name)))
    }
}

/// By name, used bytes, length and checksum.
type KnownFiles = BTreeMap<(String, u64, u64, u32), PathBuf>;

/// The files of the store's other snapshots in `directory` that have the right length.
fn known_files(directory: &Path, catalog: &Catalog) -> Result<KnownFiles, SnapshotError> {
    let mut known = KnownFiles::new();
    for snapshot in list(directory)?.into_iter().flatten() {
        if snapshot.store != catalog.store {
            continue;
        }
        let home = directory.join(&snapshot.id);
        for file in snapshot.files {
            // Every snapshot has manifests of its own.
            if is_manifest(&file) {
                continue;
            }
            let path = home.join(&file.name);
            let len = fs::symlink_metadata(&path).map(|found| found.len());
            if len.is_ok_and(|len| len == file.len) {
                known.insert(key_of(&file), path);
            }
        }
    }
    Ok(known)
}

fn is_manifest(file: &CatalogFile) -> bool {
    file.name.contains("/manifest-")
}

/// Whether two files of the same sums start and end with the same bytes, times and versions of
/// records among them.
///
/// The sums alone do not tell the files of a store and of one restored from its snapshot apart:
/// both have the same uuid and number their segments alike, and bytes followed by their own CRC-32,
/// as headers are, do not count in the CRC-32 of the whole.
fn have_same_ends(one: &Path, other: &Path, file: &CatalogFile) -> bool {
    let start = (0, file.content.used.min(2 * BLOCK_SIZE as u64));
    let last = file.len.saturating_sub(BLOCK_SIZE as u64);
    let tail = file.content.tail.map(|tail| (tail.offset.max(last), file.len));
    let is_same = |(from, end): (u64, u64)| {
        let read = |path: &Path| {
            let mut bytes = vec![0; usize::try_from(end.saturating_sub(from)).ok()?];
            open_file(path).ok()?.read_exact_at(&mut bytes, from).ok()?;
            Some(bytes)
        };
        let bytes = read(one);
        bytes.is_some() && bytes == read(other)
    };
    [Some(start), tail].into_iter().flatten().all(is_same)
}

fn key_of(file: &CatalogFile) -> (String, u64, u64, u32) {
    (file.name.clone(), file.content.used, file.len, file.content.crc32)
}

/// A directory being filled with a snapshot's files.
struct Filling<'a> {
    directory: &'a Path,
    target: &'a Target,
    known: KnownFiles,
    on_damage: OnDamage,
}

impl Filling<'_> {
    fn run(
        &mut self,
        catalog: &Catalog,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Copied, SnapshotError> {
        let home = &self.target.unfinished;
        let names: BTreeSet<PathBuf> =
            catalog.files.iter().map(|file| home.join(&file.name)).collect();
        remove_strangers(home, &names)?;
        let mut copied = Copied::default();
        for file in &catalog.files {
            self.file(file, &mut copied, progress)?;
        }
        let folders: BTreeSet<&Path> = names.iter().filter_map(|name| name.parent()).collect();
        for folder in folders.iter().copied().chain([home.as_path()]) {
            sync_directory(Some(folder))?;
        }
        Ok(copied)
    }

    fn file(
        &self,
        file: &CatalogFile,
        copied: &mut Copied,
        progress: &mut dyn FnMut(u64),
    ) -> Result<(), SnapshotError> {
        let (from, to) = (self.directory.join(&file.name), self.target.unfinished.join(&file.name));
        let folder = to.parent().unwrap_or(&to);
        fs::create_dir_all(folder).map_err(SnapshotError::io(folder))?;
        if fs::symlink_metadata(&to).is_ok() {
            if check(&to, file, &mut |_| ()).is_ok() && have_same_ends(&from, &to, file) {
                open_file(&to)?.sync_all().map_err(SnapshotError::io(&to))?;
                copied.kept += file.bytes();
                progress(file.bytes());
                return Ok(());
            }
            fs::remove_file(&to).map_err(SnapshotError::io(&to))?;
        }
        let same = self.known.get(&key_of(file));
        let same = same.filter(|same| have_same_ends(&from, same, file));
        if same.is_some_and(|same| fs::hard_link(same, &to).is_ok()) {
            copied.linked += file.bytes();
            progress(file.bytes());
            return Ok(());
        }
        copied.copied += file.bytes();
        match copy_file(&from, &to, file, progress) {
            Err(damage) if self.on_damage == OnDamage::Copy => {
                // What cannot be written is another matter.
                if matches!(&damage, SnapshotError::Io { path, .. } if *path == to) {
                    return Err(damage);
                }
                salvage(&from, &to, file)?;
                copied.damaged.push(damage);
                Ok(())
            }
            result => result,
        }
    }
}

/// Removes what an earlier attempt has left that does not belong there: a node would take it for a
/// part of the store.
fn remove_strangers(directory: &Path, names: &BTreeSet<PathBuf>) -> Result<(), SnapshotError> {
    for entry in fs::read_dir(directory).map_err(SnapshotError::io(directory))? {
        let path = entry.map_err(SnapshotError::io(directory))?.path();
        let found = fs::symlink_metadata(&path).map_err(SnapshotError::io(&path))?;
        if found.is_dir() {
            remove_strangers(&path, names)?;
        } else if !names.contains(&path) {
            fs::remove_file(&path).map_err(SnapshotError::io(&path))?;
        }
    }
    Ok(())
}

/// Copies what of a file means something, and compares it with the catalog.
fn copy_file(
    from: &Path,
    to: &Path,
    wanted: &CatalogFile,
    progress: &mut dyn FnMut(u64),
) -> Result<(), SnapshotError> {
    write_file(to, &mut |out| {
        // Segments keep their length; what means nothing reads as zeros.
        out.set_len(wanted.len).map_err(SnapshotError::io(to))?;
        read_file(from, wanted, &mut |offset, bytes| {
            progress(bytes.len() as u64);
            out.write_all_at(bytes, offset).map_err(SnapshotError::io(to))
        })
    })
}

/// Copies what can be read of a file that is damaged; the rest reads as zeros. Nothing is made of a
/// file that is not there.
fn salvage(from: &Path, to: &Path, wanted: &CatalogFile) -> Result<(), SnapshotError> {
    drop(fs::remove_file(to));
    let Ok(mut file) = open_file(from) else { return Ok(()) };
    write_file(to, &mut |out| {
        out.set_len(wanted.len).map_err(SnapshotError::io(to))?;
        let (mut offset, mut piece, mut len) = (0, vec![0; PIECE_BYTES], PIECE_BYTES);
        while offset < wanted.len {
            let left = usize::try_from(wanted.len - offset).unwrap_or(len);
            let asked = piece.get_mut(..len.min(left)).unwrap_or_default();
            let read = file.seek(SeekFrom::Start(offset)).and_then(|_| file.read(asked));
            match read {
                Ok(0) => break,
                Ok(count) => {
                    let bytes = asked.get(..count).unwrap_or_default();
                    out.write_all_at(bytes, offset).map_err(SnapshotError::io(to))?;
                    offset += count as u64;
                }
                // Block by block around what cannot be read.
                Err(_) if len > BLOCK_SIZE => len = BLOCK_SIZE,
                Err(_) => offset += BLOCK_SIZE as u64,
            }
        }
        Ok(())
    })
}

/// Makes a file, has it filled, and syncs it.
#[expect(clippy::disallowed_types, reason = "at rest, with no driver; see the module's text")]
fn write_file(
    path: &Path,
    fill: &mut dyn FnMut(&fs::File) -> Result<(), SnapshotError>,
) -> Result<(), SnapshotError> {
    let file = fs::File::create_new(path).map_err(SnapshotError::io(path))?;
    fill(&file)?;
    file.sync_all().map_err(SnapshotError::io(path))
}

/// A data directory of a snapshot's own files, under second names, to be read and thrown away.
///
/// Sealed segments are never written, whoever opens them, and no segment of before a start becomes
/// another one: the snapshot stays as it is. It is removed when this is dropped, or by the next
/// start of a node.
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
    #[expect(clippy::disallowed_types, reason = "at rest, with no driver; see the module's text")]
    _lock: fs::File,
}

impl Scratch {
    /// Makes one beside the snapshot in `directory`.
    ///
    /// # Errors
    /// [`SnapshotError`].
    pub fn new(directory: &Path) -> Result<Self, SnapshotError> {
        let catalog = open(directory)?;
        let path = directory.with_file_name(unfinished_name(&format!("{}~scratch", catalog.id)));
        fs::create_dir_all(&path).map_err(SnapshotError::io(&path))?;
        let scratch = Self { _lock: lock(&path)?, path };
        remove_strangers(&scratch.path, &BTreeSet::new())?;
        for file in &catalog.files {
            let (from, to) = (directory.join(&file.name), scratch.path.join(&file.name));
            let folder = to.parent().unwrap_or(&to);
            fs::create_dir_all(folder).map_err(SnapshotError::io(folder))?;
            // Manifests are written to.
            if is_manifest(file) || fs::hard_link(&from, &to).is_err() {
                copy_file(&from, &to, file, &mut |_| ())?;
            }
        }
        Ok(scratch)
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Otherwise the next start of a node does it.
        drop(fs::remove_dir_all(&self.path));
    }
}
