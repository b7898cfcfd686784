//! The disk half of [`super::TokioUringIo`]: each request an `async fn` over the runtime's files.
//!
//! The runtime has no RWF_DSYNC. Past the page cache, a writable file is therefore opened twice:
//! as it is, and with O_DSYNC, through which durable writes go. They are then one operation each,
//! with the same meaning. In the page cache a durable write is a write and an fdatasync.
//!
//! Buffers that lie in registered memory are read and written as such. What the runtime has no
//! operation for is done by its blocking threads.
//!
//! Paths go to the kernel whole: the runtime resolves none relative to a directory.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use rustix::fs::{AtFlags, CWD, OFlags, linkat};
use rustix::io::Errno;
use tokio::task::spawn_blocking;
use tokio_uring::buf::fixed::FixedBuf;
use tokio_uring::fs::{DirBuilder, File, OpenOptions};
use wal::disk::{
    DiskCompletion, DiskError, DiskOperation, DiskOutput, DiskRequest, Durability, FileId,
    FileName, IoBuffer, OpenMode, RequestId,
};

use super::buffers::{ReadRoom, WriteBytes};
use super::fixed::{FixedSlabs, InSlab};
use super::turns::Event;
use crate::io::DiskOwner;
use crate::io::directory::{DataDirectory, directory_flags};
use crate::io::disk_error::{REPEATS_MAX, disk_error, is_interruption, short_write};
use crate::io::mapping::Mapping;

/// The data directory and the files open below it.
pub(super) struct Disk {
    pub(super) directory: DataDirectory,
    /// The directory's absolute path.
    root: PathBuf,
    pub(super) slabs: FixedSlabs,
    files: HashMap<(DiskOwner, FileId), Rc<OpenFile>>,
}

/// A file under one or two descriptors.
pub(super) struct OpenFile {
    file: File,
    /// The same with O_DSYNC.
    durable: Option<File>,
}

/// A file that a request has opened, on its way into [`Disk`].
pub(super) type Opened = (FileId, OpenFile);

/// A disk request that is ready to become a task.
pub(super) struct Job {
    owner: DiskOwner,
    id: RequestId,
    work: Work,
}

enum Work {
    Open { file: FileId, path: PathBuf, mode: OpenMode, flags: OFlags },
    Close { file: Rc<OpenFile> },
    Read { file: Rc<OpenFile>, offset: u64, len: usize, memory: Memory },
    Write { file: Rc<OpenFile>, offset: u64, memory: Memory, durability: Durability },
    Sync { file: Rc<OpenFile> },
    CreateDirectory { path: PathBuf },
    SyncDirectory { path: PathBuf },
    Rename { from: PathBuf, to: PathBuf },
    Remove { path: PathBuf },
    Link { from: PathBuf, to: PathBuf },
    RemoveDirectory { path: PathBuf },
    Populate { mapping: Mapping },
}

/// A buffer, and the registered slab it lies in, if it does.
struct Memory {
    buffer: IoBuffer,
    slab: Option<Rc<FixedBuf>>,
}

/// How a request that starts no task has ended.
pub(super) type Ended = (DiskOwner, DiskCompletion);

impl Disk {
    pub(super) fn new(directory: DataDirectory, slabs: FixedSlabs) -> io::Result<Self> {
        let root = std::fs::canonicalize(directory.path())?;
        Ok(Self { directory, root, slabs, files: HashMap::new() })
    }

    /// Makes a request a job, unless it has ended at once.
    pub(super) fn job(&mut self, owner: DiskOwner, request: DiskRequest) -> Result<Job, Ended> {
        let DiskRequest { id, operation } = request;
        let ended = |result, buffer| Err((owner, DiskCompletion { id, result, buffer }));
        let unopened = |buffer| ended(Err(disk_error(Errno::BADF)), buffer);
        let work = match operation {
            // Blocks: it happens at start-up alone.
            DiskOperation::ListDirectory { name } => {
                let listed = self.directory.list(&name).map_err(disk_error);
                return ended(listed.map(DiskOutput::Listed), None);
            }
            DiskOperation::Read { file, offset, len, buffer } => match self.open(owner, file) {
                Some(file) => Work::Read { file, offset, len, memory: self.memory(buffer) },
                None => return unopened(Some(buffer)),
            },
            DiskOperation::Write { file, offset, buffer, durability } => {
                match self.open(owner, file) {
                    Some(file) => {
                        Work::Write { file, offset, memory: self.memory(buffer), durability }
                    }
                    None => return unopened(Some(buffer)),
                }
            }
            DiskOperation::Sync { file } => match self.open(owner, file) {
                Some(file) => Work::Sync { file },
                None => return unopened(None),
            },
            DiskOperation::Close { file } => match self.files.remove(&(owner, file)) {
                Some(file) => Work::Close { file },
                None => return unopened(None),
            },
            DiskOperation::Open { file, name, mode } => {
                let flags = self.directory.open_flags(mode);
                Work::Open { file, path: self.path(&name), mode, flags }
            }
            DiskOperation::CreateDirectory { name } => {
                Work::CreateDirectory { path: self.path(&name) }
            }
            DiskOperation::SyncDirectory { name } => Work::SyncDirectory { path: self.path(&name) },
            DiskOperation::Rename { from, to } => {
                Work::Rename { from: self.path(&from), to: self.path(&to) }
            }
            DiskOperation::Remove { name } => Work::Remove { path: self.path(&name) },
            DiskOperation::Link { from, to } => {
                Work::Link { from: self.path(&from), to: self.path(&to) }
            }
            DiskOperation::RemoveDirectory { name } => {
                Work::RemoveDirectory { path: self.path(&name) }
            }
            DiskOperation::Map { file, len } => match self.open(owner, file) {
                Some(file) => match Mapping::new(file.descriptor(), len) {
                    Ok(mapping) => Work::Populate { mapping },
                    Err(errno) => return ended(Err(disk_error(errno)), None),
                },
                None => return unopened(None),
            },
        };
        Ok(Job { owner, id, work })
    }

    /// Notes a file that a job has opened.
    pub(super) fn insert(&mut self, owner: DiskOwner, (file, open): Opened) {
        let previous = self.files.insert((owner, file), Rc::new(open));
        assert!(previous.is_none(), "{file:?} of {owner:?} was open already");
    }

    fn open(&self, owner: DiskOwner, file: FileId) -> Option<Rc<OpenFile>> {
        self.files.get(&(owner, file)).map(Rc::clone)
    }

    fn memory(&self, buffer: IoBuffer) -> Memory {
        let slab = self.slabs.of(&buffer);
        Memory { buffer, slab }
    }

    fn path(&self, name: &FileName) -> PathBuf {
        self.root.join(name.as_str())
    }
}

enum Failure {
    Kernel(Errno),
    ShortWrite,
}

type Outcome = Result<DiskOutput, Failure>;

impl From<Errno> for Failure {
    fn from(errno: Errno) -> Self {
        Self::Kernel(errno)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Kernel(errno(&error))
    }
}

impl Failure {
    fn into_disk_error(self) -> DiskError {
        match self {
            Self::Kernel(errno) => disk_error(errno),
            Self::ShortWrite => short_write(),
        }
    }
}

fn errno(error: &io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}

impl Job {
    /// Carries the request out.
    pub(super) async fn run(self) -> Event {
        let Self { owner, id, work } = self;
        let (result, buffer, opened) = work.run().await;
        let result = result.map_err(Failure::into_disk_error);
        Event::Disk { owner, completion: DiskCompletion { id, result, buffer }, opened }
    }
}

impl Work {
    async fn run(self) -> (Outcome, Option<IoBuffer>, Option<Opened>) {
        let result = match self {
            Self::Open { file, path, mode, flags } => {
                return match OpenFile::open(&path, mode, flags).await {
                    Ok((open, len)) => (Ok(DiskOutput::Opened { len }), None, Some((file, open))),
                    Err(error) => (Err(error.into()), None, None),
                };
            }
            Self::Read { file, offset, len, memory } => {
                let (result, buffer) = file.read(offset, len, memory).await;
                return (result, Some(buffer), None);
            }
            Self::Write { file, offset, memory, durability } => {
                let (result, buffer) = file.write(offset, memory, durability).await;
                return (result, Some(buffer), None);
            }
            Self::Populate { mapping } => {
                return match blocking(move || populate(mapping)).await {
                    Ok(buffer) => (Ok(DiskOutput::Done), Some(buffer), None),
                    Err(errno) => (Err(errno.into()), None, None),
                };
            }
            Self::Close { file } => OpenFile::close(file).await,
            // Content, and the length where it has changed; not the times of the file.
            Self::Sync { file } => repeat(async || file.file.sync_data().await).await,
            Self::CreateDirectory { path } => create_directory(&path).await,
            Self::SyncDirectory { path } => sync_directory(&path).await,
            Self::Rename { from, to } => {
                repeat(async || tokio_uring::fs::rename(&from, &to).await).await
            }
            Self::Remove { path } => {
                repeat(async || tokio_uring::fs::remove_file(&path).await).await
            }
            Self::RemoveDirectory { path } => {
                repeat(async || tokio_uring::fs::remove_dir(&path).await).await
            }
            Self::Link { from, to } => {
                let link = move || linkat(CWD, &from, CWD, &to, AtFlags::empty());
                blocking(link).await.map_err(io::Error::from)
            }
        };
        (result.map(|()| DiskOutput::Done).map_err(Into::into), None, None)
    }
}

impl OpenFile {
    /// Opens the file and tells its length.
    async fn open(path: &Path, mode: OpenMode, flags: OFlags) -> io::Result<(Self, u64)> {
        let file = open_path(path, mode, flags).await?;
        let about = file.statx().await?;
        let writes = mode != OpenMode::Read && flags.contains(OFlags::DIRECT);
        let durable = if writes { open_durable(path, &file, flags).await } else { None };
        Ok((Self { file, durable }, about.stx_size))
    }

    fn descriptor(&self) -> BorrowedFd<'_> {
        // SAFETY: the file owns the descriptor and keeps it open while it is borrowed.
        unsafe { BorrowedFd::borrow_raw(self.file.as_raw_fd()) }
    }

    async fn read(&self, offset: u64, len: usize, memory: Memory) -> (Outcome, IoBuffer) {
        let Memory { mut buffer, slab } = memory;
        let (mut done, mut repeats) = (0, 0);
        let mut result = Ok(DiskOutput::Done);
        while done < len {
            let at = offset + done as u64;
            let room = ReadRoom::new(buffer, done, len);
            let (read, room) = read_once(&self.file, room, at, slab.as_ref()).await;
            buffer = room.into_buffer();
            match read {
                Ok(count) => {
                    done += count;
                    if count == 0 || (done < len && self.ends_at(at + count as u64).await) {
                        break;
                    }
                }
                Err(error) if is_interruption(errno(&error)) && repeats < REPEATS_MAX => {
                    repeats += 1;
                }
                Err(error) => {
                    result = Err(error.into());
                    break;
                }
            }
        }
        buffer.set_len(done);
        (result, buffer)
    }

    /// A short read is the end of the file or an interruption; the file's length tells which.
    async fn ends_at(&self, offset: u64) -> bool {
        self.file.statx().await.is_ok_and(|about| offset >= about.stx_size)
    }

    async fn write(
        &self,
        offset: u64,
        memory: Memory,
        durability: Durability,
    ) -> (Outcome, IoBuffer) {
        let Memory { buffer, slab } = memory;
        let durable = durability == Durability::Durable;
        let through_flag = if durable { self.durable.as_ref() } else { None };
        let file = through_flag.unwrap_or(&self.file);
        let mut bytes = WriteBytes(buffer);
        let mut repeats = 0;
        let written = loop {
            let (written, back) = write_once(file, bytes, offset, slab.as_ref()).await;
            bytes = back;
            match written {
                Err(error) if is_interruption(errno(&error)) && repeats < REPEATS_MAX => {
                    repeats += 1;
                }
                other => break other,
            }
        };
        let WriteBytes(buffer) = bytes;
        let result = match written {
            Ok(count) if count < buffer.len() => Err(Failure::ShortWrite),
            Ok(_) if durable && through_flag.is_none() => {
                let synced = repeat(async || self.file.sync_data().await).await;
                synced.map(|()| DiskOutput::Done).map_err(Into::into)
            }
            Ok(_) => Ok(DiskOutput::Done),
            Err(error) => Err(error.into()),
        };
        (result, buffer)
    }

    /// Closes it, unless requests on it are still under way; then the last one does.
    async fn close(this: Rc<Self>) -> io::Result<()> {
        let Ok(Self { file, durable }) = Rc::try_unwrap(this) else {
            return Ok(());
        };
        let first = file.close().await;
        match durable {
            Some(durable) => first.and(durable.close().await),
            None => first,
        }
    }
}

async fn read_once(
    file: &File,
    room: ReadRoom,
    offset: u64,
    slab: Option<&Rc<FixedBuf>>,
) -> (io::Result<usize>, ReadRoom) {
    let Some(slab) = slab.map(Rc::clone) else {
        return file.read_at(room, offset).await;
    };
    let (result, InSlab { bytes: room, .. }) =
        file.read_fixed_at(InSlab { bytes: room, slab }, offset).await;
    (result, room)
}

async fn write_once(
    file: &File,
    bytes: WriteBytes,
    offset: u64,
    slab: Option<&Rc<FixedBuf>>,
) -> (io::Result<usize>, WriteBytes) {
    let Some(slab) = slab.map(Rc::clone) else {
        return file.write_at(bytes, offset).submit().await;
    };
    let (result, InSlab { bytes, .. }) = file.write_fixed_at(InSlab { bytes, slab }, offset).await;
    (result, bytes)
}

/// Reads all of a mapping. Blocks.
fn populate(mapping: Mapping) -> Result<IoBuffer, Errno> {
    let (mut mapping, mut repeats) = (mapping, 0);
    while let Some(next) = mapping.next_populate() {
        match mapping.populate(next) {
            Err(errno) if is_interruption(errno) && repeats < REPEATS_MAX => repeats += 1,
            Err(errno) => return Err(errno),
            Ok(()) => mapping.populated(next),
        }
    }
    Ok(mapping.into_buffer())
}

/// Makes a call on one of the runtime's threads.
async fn blocking<T: Send + 'static>(
    call: impl FnOnce() -> Result<T, Errno> + Send + 'static,
) -> Result<T, Errno> {
    spawn_blocking(call).await.unwrap_or(Err(Errno::CANCELED))
}

async fn open_path(path: &Path, mode: OpenMode, flags: OFlags) -> io::Result<File> {
    let mut options = OpenOptions::new();
    let custom = flags.bits().cast_signed();
    let permissions = DataDirectory::file_mode().bits();
    options.read(true).write(mode != OpenMode::Read).mode(permissions).custom_flags(custom);
    repeat(async || options.open(path).await).await
}

/// Opens a writable file once more, for durable writes.
///
/// None, if that is not possible or the name leads elsewhere by now: an fdatasync does as well.
async fn open_durable(path: &Path, file: &File, flags: OFlags) -> Option<File> {
    let flags = flags.difference(OFlags::CREATE | OFlags::TRUNC) | OFlags::DSYNC;
    let durable = open_path(path, OpenMode::ReadWrite, flags).await.ok()?;
    let (first, second) = (file.statx().await.ok()?, durable.statx().await.ok()?);
    let same = first.stx_ino == second.stx_ino
        && first.stx_dev_major == second.stx_dev_major
        && first.stx_dev_minor == second.stx_dev_minor;
    if same { Some(durable) } else { None }
}

/// Makes a directory; one that is there already is no error.
async fn create_directory(path: &Path) -> io::Result<()> {
    let mut builder = DirBuilder::new();
    let builder = builder.mode(DataDirectory::directory_mode().bits());
    match repeat(async || builder.create(path).await).await {
        Err(error) if errno(&error) == Errno::EXIST => Ok(()),
        other => other,
    }
}

async fn sync_directory(path: &Path) -> io::Result<()> {
    let directory = open_path(path, OpenMode::Read, directory_flags()).await?;
    repeat(async || directory.sync_all().await).await?;
    directory.close().await
}

/// Repeats a call that was interrupted before it did anything.
async fn repeat<T>(mut call: impl AsyncFnMut() -> io::Result<T>) -> io::Result<T> {
    for _ in 0..REPEATS_MAX {
        match call().await {
            Err(error) if is_interruption(errno(&error)) => {}
            other => return other,
        }
    }
    call().await
}
