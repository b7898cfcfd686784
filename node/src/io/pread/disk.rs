//! [`Disk`]: jobs for the disk threads, and what comes back from them.

use std::collections::{HashMap, VecDeque};
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::{self, JoinHandle};

use rustix::io::{Errno, ReadWriteFlags, pread, pwrite, pwritev2};
use wal::disk::{
    DiskCompletion, DiskError, DiskOperation, DiskOutput, DiskRequest, Durability, FileId,
    FileName, IoBuffer, OpenMode, RequestId,
};

use crate::io::directory::{DataDirectory, OpenedFile, file_len};
use crate::io::disk_error::{REPEATS_MAX, disk_error, is_interruption, short_write};
use crate::io::mapping::Mapping;
use crate::io::{Completion, DiskOwner};

/// The loop's end of the disk threads.
#[derive(Debug)]
pub(super) struct Disk {
    directory: Arc<DataDirectory>,
    queue: Arc<Queue>,
    threads: Vec<JoinHandle<()>>,
    done: mpsc::Receiver<Done>,
    files: HashMap<(DiskOwner, FileId), Arc<OwnedFd>>,
}

/// Jobs that no thread has begun. The cores bound what they have in flight, and so its length.
#[derive(Debug, Default)]
struct Queue {
    state: Mutex<QueueState>,
    changed: Condvar,
    /// Whether the loop has been woken and has not looked yet; saves the calls to wake it again.
    woken: AtomicBool,
}

#[derive(Debug, Default)]
struct QueueState {
    jobs: VecDeque<Job>,
    stopping: bool,
}

#[derive(Debug)]
struct Job {
    owner: DiskOwner,
    id: RequestId,
    work: Work,
}

#[derive(Debug)]
enum Work {
    Open { file: FileId, name: FileName, mode: OpenMode },
    Close { file: Arc<OwnedFd> },
    Read { file: Arc<OwnedFd>, offset: u64, len: usize, buffer: IoBuffer },
    Write { file: Arc<OwnedFd>, offset: u64, buffer: IoBuffer, durability: Durability },
    Sync { file: Arc<OwnedFd> },
    CreateDirectory { name: FileName },
    ListDirectory { name: FileName },
    SyncDirectory { name: FileName },
    Rename { from: FileName, to: FileName },
    Remove { name: FileName },
    Link { from: FileName, to: FileName },
    RemoveDirectory { name: FileName },
    Map { file: Arc<OwnedFd>, len: usize },
}

#[derive(Debug)]
struct Done {
    owner: DiskOwner,
    completion: DiskCompletion,
    opened: Option<(FileId, OwnedFd)>,
}

impl Disk {
    pub(super) fn start(
        directory: Arc<DataDirectory>,
        waker: mio::Waker,
        threads: usize,
    ) -> io::Result<Self> {
        let (sender, done) = mpsc::channel();
        let queue = Arc::new(Queue::default());
        let waker = Arc::new(waker);
        // Made before the threads, so that those already started are joined if one fails to.
        let files = HashMap::new();
        let mut disk = Self { directory, queue, threads: Vec::new(), done, files };
        for index in 0..threads.max(1) {
            let worker = Worker {
                directory: Arc::clone(&disk.directory),
                queue: Arc::clone(&disk.queue),
                done: sender.clone(),
                waker: Arc::clone(&waker),
            };
            let builder = thread::Builder::new().name(format!("disk-{index}"));
            disk.threads.push(builder.spawn(move || worker.run())?);
        }
        Ok(disk)
    }

    pub(super) fn directory(&self) -> &DataDirectory {
        &self.directory
    }

    pub(super) fn submit(
        &mut self,
        owner: DiskOwner,
        request: DiskRequest,
        ready: &mut Vec<Completion>,
    ) {
        let DiskRequest { id, operation } = request;
        match self.work(owner, operation) {
            Ok(work) => {
                self.queue.lock().jobs.push_back(Job { owner, id, work });
                self.queue.changed.notify_one();
            }
            Err(buffer) => {
                let result = Err(disk_error(Errno::BADF));
                let completion = DiskCompletion { id, result, buffer };
                ready.push(Completion::Disk(owner, completion));
            }
        }
    }

    /// Translates an operation; one on a file that is not open gives its buffer back.
    fn work(
        &mut self,
        owner: DiskOwner,
        operation: DiskOperation,
    ) -> Result<Work, Option<IoBuffer>> {
        let open = |file| self.files.get(&(owner, file)).map(Arc::clone);
        Ok(match operation {
            DiskOperation::Read { file, offset, len, buffer } => match open(file) {
                Some(file) => Work::Read { file, offset, len, buffer },
                None => return Err(Some(buffer)),
            },
            DiskOperation::Write { file, offset, buffer, durability } => match open(file) {
                Some(file) => Work::Write { file, offset, buffer, durability },
                None => return Err(Some(buffer)),
            },
            DiskOperation::Sync { file } => Work::Sync { file: open(file).ok_or(None)? },
            DiskOperation::Close { file } => {
                Work::Close { file: self.files.remove(&(owner, file)).ok_or(None)? }
            }
            DiskOperation::Open { file, name, mode } => Work::Open { file, name, mode },
            DiskOperation::CreateDirectory { name } => Work::CreateDirectory { name },
            DiskOperation::ListDirectory { name } => Work::ListDirectory { name },
            DiskOperation::SyncDirectory { name } => Work::SyncDirectory { name },
            DiskOperation::Rename { from, to } => Work::Rename { from, to },
            DiskOperation::Remove { name } => Work::Remove { name },
            DiskOperation::Link { from, to } => Work::Link { from, to },
            DiskOperation::RemoveDirectory { name } => Work::RemoveDirectory { name },
            DiskOperation::Map { file, len } => Work::Map { file: open(file).ok_or(None)?, len },
        })
    }

    /// Appends what the threads have finished.
    pub(super) fn take_done(&mut self, ready: &mut Vec<Completion>) {
        // Before looking: what is finished from now on wakes the loop again.
        self.queue.woken.store(false, Ordering::SeqCst);
        while let Ok(Done { owner, completion, opened }) = self.done.try_recv() {
            if let Some((file, fd)) = opened {
                let previous = self.files.insert((owner, file), Arc::new(fd));
                assert!(previous.is_none(), "{file:?} of {owner:?} was open already");
            }
            ready.push(Completion::Disk(owner, completion));
        }
    }
}

impl Drop for Disk {
    /// Lets the threads finish the calls they are in, and drops the jobs not begun.
    fn drop(&mut self) {
        {
            let mut state = self.queue.lock();
            state.stopping = true;
            state.jobs.clear();
        }
        self.queue.changed.notify_all();
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a disk thread panicked");
            }
        }
    }
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, QueueState> {
        // Nothing that can panic runs under the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a job; none, once the driver is dropped.
    fn take(&self) -> Option<Job> {
        let mut state = self.lock();
        loop {
            if state.stopping {
                return None;
            }
            if let Some(job) = state.jobs.pop_front() {
                return Some(job);
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// One disk thread.
struct Worker {
    directory: Arc<DataDirectory>,
    queue: Arc<Queue>,
    done: mpsc::Sender<Done>,
    waker: Arc<mio::Waker>,
}

impl Worker {
    fn run(&self) {
        while let Some(Job { owner, id, work }) = self.queue.take() {
            let (result, buffer, opened) = self.carry_out(work);
            let result = result.map_err(Failure::into_disk_error);
            let completion = DiskCompletion { id, result, buffer };
            if self.done.send(Done { owner, completion, opened }).is_err() {
                return;
            }
            if !self.queue.woken.swap(true, Ordering::SeqCst)
                && let Err(error) = self.waker.wake()
            {
                tracing::error!(%error, "the loop cannot be woken");
            }
        }
    }

    fn carry_out(&self, work: Work) -> (Outcome, Option<IoBuffer>, Option<(FileId, OwnedFd)>) {
        let directory = &self.directory;
        let result = match work {
            Work::Open { file, name, mode } => {
                return match repeat(|| directory.open_file(&name, mode)) {
                    Ok(OpenedFile { fd, len }) => {
                        (Ok(DiskOutput::Opened { len }), None, Some((file, fd)))
                    }
                    Err(errno) => (Err(errno.into()), None, None),
                };
            }
            Work::Read { file, offset, len, mut buffer } => {
                let result = read(&file, offset, len, &mut buffer);
                return (result, Some(buffer), None);
            }
            Work::Write { file, offset, buffer, durability } => {
                let durable = durability == Durability::Durable;
                let result = write(&file, offset, &buffer, durable, directory.direct());
                return (result, Some(buffer), None);
            }
            Work::Map { file, len } => {
                return match map(&file, len) {
                    Ok(buffer) => (Ok(DiskOutput::Done), Some(buffer), None),
                    Err(errno) => (Err(errno.into()), None, None),
                };
            }
            Work::ListDirectory { name } => {
                let listed = repeat(|| directory.list(&name));
                return (listed.map(DiskOutput::Listed).map_err(Into::into), None, None);
            }
            Work::Close { file } => {
                // Closes it, unless requests on it are still under way; then the last one does.
                drop(file);
                Ok(())
            }
            // Content, and the length where it has changed; not the times of the file.
            Work::Sync { file } => repeat(|| rustix::fs::fdatasync(&file)),
            Work::CreateDirectory { name } => repeat(|| directory.create_directory(&name)),
            Work::SyncDirectory { name } => repeat(|| directory.sync_directory(&name)),
            Work::Rename { from, to } => repeat(|| directory.rename(&from, &to)),
            Work::Remove { name } => repeat(|| directory.remove(&name)),
            Work::Link { from, to } => repeat(|| directory.link(&from, &to)),
            Work::RemoveDirectory { name } => repeat(|| directory.remove_directory(&name)),
        };
        (result.map(|()| DiskOutput::Done).map_err(Into::into), None, None)
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

impl Failure {
    fn into_disk_error(self) -> DiskError {
        match self {
            Self::Kernel(errno) => disk_error(errno),
            Self::ShortWrite => short_write(),
        }
    }
}

/// Repeats a call that was interrupted before it did anything.
fn repeat<T>(mut call: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
    for _ in 0..REPEATS_MAX {
        match call() {
            Err(errno) if is_interruption(errno) => {}
            other => return other,
        }
    }
    call()
}

fn read(file: impl AsFd, offset: u64, len: usize, buffer: &mut IoBuffer) -> Outcome {
    let file = file.as_fd();
    fill(buffer, offset, len, |room, at| pread(file, room, at), || file_len(file))
}

/// Reads until `len` bytes are there or the file has ended.
fn fill(
    buffer: &mut IoBuffer,
    offset: u64,
    len: usize,
    mut read: impl FnMut(&mut [u8], u64) -> Result<usize, Errno>,
    file_len: impl Fn() -> Result<u64, Errno>,
) -> Outcome {
    let mut done = 0;
    let mut result = Ok(DiskOutput::Done);
    while done < len {
        let at = offset + done as u64;
        match repeat(|| read(&mut buffer.spare_mut()[done..len], at)) {
            Ok(count) => {
                done += count;
                // A short read is the end of the file or an interruption; its length tells which.
                let ended = file_len().is_ok_and(|file_len| offset + done as u64 >= file_len);
                if count == 0 || ended {
                    break;
                }
            }
            Err(errno) => {
                result = Err(errno.into());
                break;
            }
        }
    }
    buffer.set_len(done);
    result
}

fn map(file: impl AsFd, len: usize) -> Result<IoBuffer, Errno> {
    let mut mapping = Mapping::new(file, len)?;
    while let Some(next) = mapping.next_populate() {
        repeat(|| mapping.populate(next))?;
        mapping.populated(next);
    }
    Ok(mapping.into_buffer())
}

fn write(file: impl AsFd, offset: u64, buffer: &IoBuffer, durable: bool, direct: bool) -> Outcome {
    let bytes = buffer.as_slice();
    if durable && direct {
        let flags = ReadWriteFlags::DSYNC;
        return put(bytes, |bytes| pwritev2(&file, &[IoSlice::new(bytes)], offset, flags));
    }
    let output = put(bytes, |bytes| pwrite(&file, bytes, offset))?;
    if durable {
        repeat(|| rustix::fs::fdatasync(&file))?;
    }
    Ok(output)
}

/// Writes all of `bytes` in one call or fails; only a call that wrote nothing is repeated.
fn put(bytes: &[u8], mut write: impl FnMut(&[u8]) -> Result<usize, Errno>) -> Outcome {
    let count = repeat(|| write(bytes))?;
    if count < bytes.len() { Err(Failure::ShortWrite) } else { Ok(DiskOutput::Done) }
}

#[cfg(test)]
mod tests {
    //! What the kernel rarely answers, played by closures.

    use std::cell::Cell;

    use wal::disk::{BLOCK_SIZE, DiskErrorKind};

    use super::*;

    const LEN: usize = 4 * BLOCK_SIZE;

    /// Reads from a file of `file_len` bytes with each of `answers` in turn, then block by block.
    fn read_with(file_len: usize, answers: &[Result<usize, Errno>]) -> (Outcome, IoBuffer) {
        let mut buffer = IoBuffer::with_capacity(LEN);
        let mut answers = answers.iter().copied();
        let read = |room: &mut [u8], at: u64| {
            let left = file_len.saturating_sub(at as usize);
            let count = answers.next().unwrap_or(Ok(BLOCK_SIZE))?.min(room.len()).min(left);
            for (index, byte) in room[..count].iter_mut().enumerate() {
                *byte = ((at as usize + index) / 512) as u8;
            }
            Ok(count)
        };
        let outcome = fill(&mut buffer, 0, LEN, read, || Ok(file_len as u64));
        (outcome, buffer)
    }

    fn kind(outcome: Outcome) -> Option<DiskErrorKind> {
        outcome.err().map(|failure| failure.into_disk_error().kind)
    }

    fn sectors(buffer: &IoBuffer) -> bool {
        buffer.as_slice().iter().enumerate().all(|(index, byte)| *byte == (index / 512) as u8)
    }

    #[test]
    fn short_and_interrupted_reads_go_on_where_they_ended() {
        let answers = [Err(Errno::INTR), Ok(512), Err(Errno::AGAIN), Ok(1024), Err(Errno::INTR)];
        let (outcome, buffer) = read_with(2 * LEN, &answers);
        assert_eq!((kind(outcome), buffer.len()), (None, LEN));
        assert!(sectors(&buffer));
        let (outcome, buffer) = read_with(LEN - 512, &answers);
        assert_eq!((kind(outcome), buffer.len()), (None, LEN - 512), "the file ends");
        assert!(sectors(&buffer));
    }

    #[test]
    fn read_that_fails_on_its_way_says_so_and_keeps_what_came() {
        let (outcome, buffer) = read_with(LEN, &[Ok(BLOCK_SIZE), Err(Errno::IO)]);
        assert_eq!((kind(outcome), buffer.len()), (Some(DiskErrorKind::Io), BLOCK_SIZE));
    }

    /// The outcome of a write that gets `answers` in turn, and how often it was tried.
    fn write_with(answers: &[Result<usize, Errno>]) -> (Option<DiskErrorKind>, usize) {
        let tries = Cell::new(0);
        let outcome = put(&[0; LEN], |_| {
            tries.set(tries.get() + 1);
            answers[(tries.get() - 1).min(answers.len() - 1)]
        });
        (kind(outcome), tries.get())
    }

    #[test]
    fn write_is_repeated_only_if_it_wrote_nothing() {
        let none = (None, 3);
        assert_eq!(write_with(&[Err(Errno::INTR), Err(Errno::AGAIN), Ok(LEN)]), none);
        assert_eq!(write_with(&[Ok(BLOCK_SIZE)]), (Some(DiskErrorKind::ShortWrite), 1));
        assert_eq!(write_with(&[Ok(0)]), (Some(DiskErrorKind::ShortWrite), 1));
        for errno in [Errno::NOSPC, Errno::DQUOT] {
            assert_eq!(write_with(&[Err(errno)]), (Some(DiskErrorKind::NoSpace), 1));
        }
        assert_eq!(write_with(&[Err(Errno::IO)]), (Some(DiskErrorKind::Io), 1));
        let for_ever = write_with(&[Err(Errno::INTR)]);
        assert_eq!(for_ever, (Some(DiskErrorKind::Io), usize::from(REPEATS_MAX) + 1));
    }
}
