//! [`DataDirectory`]: the one directory below which all files of a node lie, and its lock.
//!
//! The lock is an exclusive flock(2) on the file `LOCK`. It belongs to the open file, not to the
//! process: the drivers on io_uring register that file in their ring, and the kernel lets go of a
//! ring's files only after the ring's last request. So when a process dies, the lock is freed after
//! its last write has landed, and no successor reads a file that is still changing. (In the `pread`
//! driver the dying threads finish their calls before the kernel closes their files.) The price is
//! that a lock may be freed a little after its process is gone; opening waits for that.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::event::{Timespec, poll};
use rustix::fs::{
    self, AtFlags, CWD, Dir, FileType, FlockOperation, Mode, OFlags, fstat, fstatfs, openat,
};
use rustix::io::Errno;
use wal::disk::{BLOCK_SIZE, FileName, IoBuffer, OpenMode};

use super::{Monotonic, clock};

const LOCK_NAME: &str = "LOCK";
const PROBE_NAME: &str = ".direct-probe";
const LOCK_PAUSE_MS: u32 = 20;
/// Permission bits of new directories and files: the owner's alone.
const DIRECTORY_MODE: Mode = Mode::RWXU;
const FILE_MODE: Mode = Mode::from_raw_mode(0o600);
/// Magic number of tmpfs: since Linux 6.6 it accepts O_DIRECT without meaning it.
const TMPFS_MAGIC: u64 = 0x0102_1994;

/// How a data directory is opened.
#[derive(Clone, Copy, Debug)]
pub struct DirectoryOptions {
    /// Whether to make the directory if it is not there.
    pub create: bool,
    /// How long to wait for a lock that another process holds.
    pub lock_wait: Duration,
    /// Whether to pass the page cache by where the file system allows it; the benches compare.
    pub direct: bool,
}

impl Default for DirectoryOptions {
    fn default() -> Self {
        Self { create: true, lock_wait: Duration::from_secs(5), direct: true }
    }
}

/// Why a data directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    /// Another process uses it.
    #[error("data directory {} is locked by {}", path.display(), holder(*pid))]
    Locked {
        /// The directory.
        path: PathBuf,
        /// Who holds the lock, if it said so.
        pid: Option<u32>,
    },
    /// The user may not use it.
    #[error("no permission to use data directory {}", path.display())]
    Permission {
        /// The directory.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// There is none, and none was to be made; or what should hold it is not there.
    #[error("data directory {} does not exist", path.display())]
    NotFound {
        /// The directory.
        path: PathBuf,
    },
    /// The path leads to something else.
    #[error("{} is not a directory", path.display())]
    NotADirectory {
        /// The path.
        path: PathBuf,
    },
    /// The disk failed, or anything else did.
    #[error("cannot open data directory {}", path.display())]
    Io {
        /// The directory.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

fn holder(pid: Option<u32>) -> String {
    pid.map_or_else(|| "another process".to_owned(), |pid| format!("process {pid}"))
}

/// An open and locked data directory. Dropping it frees the lock, unless a ring still holds it.
#[derive(Debug)]
pub struct DataDirectory {
    path: PathBuf,
    root: OwnedFd,
    lock: OwnedFd,
    direct: bool,
}

impl DataDirectory {
    /// Opens the directory at `path`, locks it and finds out whether it takes O_DIRECT.
    ///
    /// # Errors
    /// As [`DirectoryError`] says; [`DirectoryError::Locked`] only after `options.lock_wait`.
    pub fn open(path: &Path, options: DirectoryOptions) -> Result<Self, DirectoryError> {
        let explain = |errno| explain(path, errno);
        if options.create {
            make_directories(path).map_err(explain)?;
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = openat(CWD, path, flags, Mode::empty()).map_err(explain)?;
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let lock = openat(&root, LOCK_NAME, flags, FILE_MODE).map_err(explain)?;
        take_lock(path, &lock, options.lock_wait)?;
        // The pid only helps the reader of an error message; the lock holds without it.
        if let Err(error) = write_pid(&lock) {
            tracing::warn!(%error, "cannot note the process id in the lock file");
        }
        let direct = options.direct && probe_direct(&root).unwrap_or(false);
        Ok(Self { path: path.to_owned(), root, lock, direct })
    }

    /// The same directory under the same lock, for another driver. The lock is freed when all of
    /// them are gone.
    ///
    /// # Errors
    /// If the process has no descriptors left.
    pub fn try_clone(&self) -> io::Result<Self> {
        let (root, lock) = (self.root.try_clone()?, self.lock.try_clone()?);
        Ok(Self { path: self.path.clone(), root, lock, direct: self.direct })
    }

    /// The directory's path, as it was given.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether files are read and written past the page cache (O_DIRECT).
    ///
    /// Where not (tmpfs, some overlays), writes are buffered and synced: correct, but slower, and
    /// worth a loud log line.
    #[must_use]
    pub fn direct(&self) -> bool {
        self.direct
    }

    /// The directory itself, which paths are relative to.
    pub(crate) fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// The locked file, for a ring to keep.
    pub(crate) fn lock(&self) -> BorrowedFd<'_> {
        self.lock.as_fd()
    }

    /// The flags with which a file is opened.
    pub(crate) fn open_flags(&self, mode: OpenMode) -> OFlags {
        let access = match mode {
            OpenMode::Read => OFlags::RDONLY,
            OpenMode::ReadWrite => OFlags::RDWR,
            OpenMode::Create => OFlags::RDWR | OFlags::CREATE | OFlags::TRUNC,
        };
        let direct = if self.direct { OFlags::DIRECT } else { OFlags::empty() };
        access | direct | OFlags::CLOEXEC | OFlags::NOFOLLOW
    }

    /// The permission bits of new files.
    pub(crate) fn file_mode() -> Mode {
        FILE_MODE
    }

    /// The permission bits of new directories.
    pub(crate) fn directory_mode() -> Mode {
        DIRECTORY_MODE
    }

    /// Opens a file and tells its length. Blocks.
    pub(crate) fn open_file(&self, name: &FileName, mode: OpenMode) -> Result<OpenedFile, Errno> {
        let fd = openat(&self.root, relative(name), self.open_flags(mode), FILE_MODE)?;
        let len = file_len(&fd)?;
        Ok(OpenedFile { fd, len })
    }

    /// Makes a directory; one that is there already is no error. Blocks.
    pub(crate) fn create_directory(&self, name: &FileName) -> Result<(), Errno> {
        match fs::mkdirat(&self.root, relative(name), DIRECTORY_MODE) {
            Err(Errno::EXIST) => Ok(()),
            other => other,
        }
    }

    /// Lists the regular files of a directory with their lengths. Blocks.
    pub(crate) fn list(&self, name: &FileName) -> Result<Vec<(String, u64)>, Errno> {
        let dir = self.open_directory(name)?;
        let mut files = Vec::new();
        for entry in Dir::read_from(&dir)? {
            let entry = entry?;
            let stat = match fs::statat(&dir, entry.file_name(), AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => stat,
                // Removed since it was listed.
                Err(Errno::NOENT) => continue,
                Err(error) => return Err(error),
            };
            if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile {
                let name = entry.file_name().to_string_lossy().into_owned();
                files.push((name, u64::try_from(stat.st_size).unwrap_or(0)));
            }
        }
        Ok(files)
    }

    /// Makes the entries of a directory durable. Blocks.
    pub(crate) fn sync_directory(&self, name: &FileName) -> Result<(), Errno> {
        fs::fsync(self.open_directory(name)?)
    }

    /// Renames a file. Blocks.
    pub(crate) fn rename(&self, from: &FileName, to: &FileName) -> Result<(), Errno> {
        fs::renameat(&self.root, relative(from), &self.root, relative(to))
    }

    /// Removes a file. Blocks.
    pub(crate) fn remove(&self, name: &FileName) -> Result<(), Errno> {
        fs::unlinkat(&self.root, relative(name), AtFlags::empty())
    }

    /// Gives a file a second name. Blocks.
    pub(crate) fn link(&self, from: &FileName, to: &FileName) -> Result<(), Errno> {
        fs::linkat(&self.root, relative(from), &self.root, relative(to), AtFlags::empty())
    }

    /// Removes an empty directory. Blocks.
    pub(crate) fn remove_directory(&self, name: &FileName) -> Result<(), Errno> {
        fs::unlinkat(&self.root, relative(name), AtFlags::REMOVEDIR)
    }

    fn open_directory(&self, name: &FileName) -> Result<OwnedFd, Errno> {
        openat(&self.root, relative(name), directory_flags(), Mode::empty())
    }
}

/// A file just opened.
pub(crate) struct OpenedFile {
    /// The file.
    pub(crate) fd: OwnedFd,
    /// Its length in bytes.
    pub(crate) len: u64,
}

/// The flags with which a directory is opened for listing or syncing.
pub(crate) fn directory_flags() -> OFlags {
    OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC
}

/// The path the kernel is given, relative to the data directory.
pub(crate) fn relative(name: &FileName) -> &str {
    if name.as_str().is_empty() { "." } else { name.as_str() }
}

/// The length of an open file. Does not block: an open file's inode is in memory.
pub(crate) fn file_len(fd: impl AsFd) -> Result<u64, Errno> {
    Ok(u64::try_from(fstat(fd)?.st_size).unwrap_or(0))
}

fn explain(path: &Path, errno: Errno) -> DirectoryError {
    let path = path.to_owned();
    let source = io::Error::from(errno);
    match errno {
        Errno::ACCESS | Errno::PERM | Errno::ROFS => DirectoryError::Permission { path, source },
        Errno::NOTDIR => DirectoryError::NotADirectory { path },
        Errno::NOENT => DirectoryError::NotFound { path },
        _ => DirectoryError::Io { path, source },
    }
}

/// Makes the directory and those above it, as far as they are missing, and makes them durable.
fn make_directories(path: &Path) -> Result<(), Errno> {
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    match fs::mkdirat(CWD, path, DIRECTORY_MODE) {
        // What is there need not be a directory; opening it will tell.
        Err(Errno::EXIST) => return Ok(()),
        Err(Errno::NOENT) if parent != Path::new(".") => {
            make_directories(parent)?;
            fs::mkdirat(CWD, path, DIRECTORY_MODE)?;
        }
        other => other?,
    }
    match openat(CWD, parent, directory_flags(), Mode::empty()) {
        Ok(parent) => fs::fsync(parent),
        // A directory above that may be passed but not read cannot be synced by us.
        Err(Errno::ACCESS) => Ok(()),
        Err(error) => Err(error),
    }
}

fn take_lock(path: &Path, lock: &OwnedFd, wait: Duration) -> Result<(), DirectoryError> {
    let wait = u64::try_from(wait.as_nanos()).unwrap_or(u64::MAX);
    let give_up = Monotonic(clock::monotonic().0.saturating_add(wait));
    loop {
        match fs::flock(lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(()),
            Err(Errno::WOULDBLOCK) if clock::monotonic() < give_up => pause(LOCK_PAUSE_MS),
            Err(Errno::WOULDBLOCK) => {
                return Err(DirectoryError::Locked { path: path.to_owned(), pid: read_pid(lock) });
            }
            Err(Errno::INTR) => {}
            Err(errno) => return Err(explain(path, errno)),
        }
    }
}

/// Waits; only for use before the event loop runs, or where it cannot go on.
pub(crate) fn pause(millis: u32) {
    let nanos = i64::from(millis % 1000) * 1_000_000;
    let time = Timespec { tv_sec: i64::from(millis / 1000), tv_nsec: nanos };
    // An interruption only makes the pause shorter.
    let _ = poll(&mut [], Some(&time));
}

fn write_pid(lock: &OwnedFd) -> Result<(), Errno> {
    let pid = format!("{}\n", std::process::id());
    fs::ftruncate(lock, 0)?;
    rustix::io::pwrite(lock, pid.as_bytes(), 0).map(drop)
}

fn read_pid(lock: &OwnedFd) -> Option<u32> {
    let mut text = [0; 16];
    let len = rustix::io::pread(lock, &mut text, 0).ok()?;
    std::str::from_utf8(&text[..len]).ok()?.trim().parse().ok()
}

/// Writes a block past the page cache and reads it back; any refusal means no.
fn probe_direct(root: &OwnedFd) -> Result<bool, Errno> {
    // The field's type differs between architectures.
    if u64::try_from(fstatfs(root)?.f_type) == Ok(TMPFS_MAGIC) {
        return Ok(false);
    }
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::TRUNC | OFlags::DIRECT | OFlags::CLOEXEC;
    let Ok(file) = openat(root, PROBE_NAME, flags | OFlags::NOFOLLOW, FILE_MODE) else {
        // Some file systems refuse only after having made the file.
        let _ = fs::unlinkat(root, PROBE_NAME, AtFlags::empty());
        return Ok(false);
    };
    let mut written = IoBuffer::zeroed(BLOCK_SIZE);
    written.as_mut_slice().fill(0xa5);
    let mut read = IoBuffer::zeroed(BLOCK_SIZE);
    let works = rustix::io::pwrite(&file, written.as_slice(), 0) == Ok(BLOCK_SIZE)
        && rustix::io::pread(&file, read.as_mut_slice(), 0) == Ok(BLOCK_SIZE)
        && read.as_slice() == written.as_slice();
    fs::unlinkat(root, PROBE_NAME, AtFlags::empty())?;
    Ok(works)
}
