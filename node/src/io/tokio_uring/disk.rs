//! The disk half of [`super::TokioUringIo`]: each request an `async fn` over the runtime's files.
//!
//! The runtime has no RWF_DSYNC. Past the page cache, a writable file is therefore opened twice:
//! as it is, and with O_DSYNC, through which durable writes go. They are then one operation each,
//! with the same meaning. In the page cache a durable write is a write and an fdatasync.
//!
//! Paths go to the kernel whole: the runtime resolves none relative to a directory.

use std::collections::HashMap;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use rustix::fs::OFlags;
use rustix::io::Errno;
use tokio_uring::fs::{DirBuilder, File, OpenOptions};
use wal::disk::{
    DiskCompletion, DiskError, DiskOperation, DiskOutput, DiskRequest, Durability, FileId,
    FileName, IoBuffer, OpenMode, RequestId,
};

use super::buffers::{ReadRoom, WriteBytes};
use super::turns::Event;
use crate::io::DiskOwner;
use crate::io::directory::{DataDirectory, directory_flags};
use crate::io::disk_error::{REPEATS_MAX, disk_error, is_interruption, short_write};

/// The data directory and the files open below it.
pub(super) struct Disk {
    pub(super) directory: DataDirectory,
    /// The directory's absolute path.
    root: PathBuf,
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
    Read { file: Rc<OpenFile>, offset: u64, len: usize, buffer: IoBuffer },
    Write { file: Rc<OpenFile>, offset: u64, buffer: IoBuffer, durability: Durability },
    Sync { file: Rc<OpenFile> },
    CreateDirectory { path: PathBuf },
    SyncDirectory { path: PathBuf },
    Rename { from: PathBuf, to: PathBuf },
    Remove { path: PathBuf },
}

/// How a request that starts no task has ended.
pub(super) type Ended = (DiskOwner, DiskCompletion);

impl Disk {
    pub(super) fn new(directory: DataDirectory) -> io::Result<Self> {
        let root = std::fs::canonicalize(directory.path())?;
        Ok(Self { directory, root, files: HashMap::new() })
    }

    /// Makes a request a job, unless it has ended at once.
    pub(super) fn job(&mut self, owner: DiskOwner, request: DiskRequest) -> Result<Job, Ended> {
        let DiskRequest { id, operation } = request;
        let ended = |result, buffer| Err((owner, DiskCompletion { id, result, buffer }));
        let unopened = |buffer| ended(Err(disk_error(Errno::BADF)), buffer);
        let work = match operation {
            // What the runtime has no operation for blocks.
            DiskOperation::ListDirectory { name } => {
                let listed = self.directory.list(&name).map_err(disk_error);
                return ended(listed.map(DiskOutput::Listed), None);
            }
            DiskOperation::Read { file, offset, len, buffer } => match self.open(owner, file) {
                Some(file) => Work::Read { file, offset, len, buffer },
                None => return unopened(Some(buffer)),
            },
            DiskOperation::Write { file, offset, buffer, durability } => {
                match self.open(owner, file) {
                    Some(file) => Work::Write { file, offset, buffer, durability },
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

    fn path(&self, name: &FileName) -> PathBuf {
        self.root.join(name.as_str())
    }
}

enum Failure {
    Kernel(Errno),
    ShortWrite,
}

type Outcome = Result<DiskOutput, Failure>;

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
            Self::Read { file, offset, len, buffer } => {
                let (result, buffer) = file.read(offset, len, buffer).await;
                return (result, Some(buffer), None);
            }
            Self::Write { file, offset, buffer, durability } => {
                let (result, buffer) = file.write(offset, buffer, durability).await;
                return (result, Some(buffer), None);
            }
            Self::Close { file } => OpenFile::close(file).await,
            Self::Sync { file } => repeat(async || file.file.sync_all().await).await,
            Self::CreateDirectory { path } => create_directory(&path).await,
            Self::SyncDirectory { path } => sync_directory(&path).await,
            Self::Rename { from, to } => {
                repeat(async || tokio_uring::fs::rename(&from, &to).await).await
            }
            Self::Remove { path } => {
                repeat(async || tokio_uring::fs::remove_file(&path).await).await
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

    async fn read(&self, offset: u64, len: usize, buffer: IoBuffer) -> (Outcome, IoBuffer) {
        let mut buffer = buffer;
        let (mut done, mut repeats) = (0, 0);
        let mut result = Ok(DiskOutput::Done);
        while done < len {
            let at = offset + done as u64;
            let room = ReadRoom::new(buffer, done, len);
            let (read, room) = self.file.read_at(room, at).await;
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
        buffer: IoBuffer,
        durability: Durability,
    ) -> (Outcome, IoBuffer) {
        let durable = durability == Durability::Durable;
        let through_flag = if durable { self.durable.as_ref() } else { None };
        let file = through_flag.unwrap_or(&self.file);
        let mut bytes = WriteBytes(buffer);
        let mut repeats = 0;
        let written = loop {
            let (written, back) = file.write_at(bytes, offset).submit().await;
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
