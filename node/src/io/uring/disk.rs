//! The disk half of [`UringIo`]: what a disk request has the ring do, step by step.
//!
//! Everything a live store asks for goes through the ring, so the loop never waits for the disk.
//! Only listing a directory is a plain blocking call: it happens at start-up alone.

use std::collections::HashMap;
use std::ffi::CString;
use std::os::fd::{AsRawFd, IntoRawFd, OwnedFd};
use std::rc::Rc;

use rustix::io::Errno;
use wal::disk::{
    DiskCompletion, DiskError, DiskOperation, DiskOutput, DiskRequest, Durability, FileId,
    FileName, IoBuffer, RequestId,
};

use super::op::{DiskTask, Op, OpenFile, Step};
use super::ring::Cqe;
use super::{UringIo, adopt};
use crate::io::directory::{DataDirectory, file_len, relative};
use crate::io::disk_error::{REPEATS_MAX, disk_error, is_interruption, short_write};
use crate::io::mapping::Mapping;
use crate::io::{Completion, DiskOwner};

/// Files that can be registered at once; more are used by their plain descriptors.
const REGISTERED_FILES: u32 = 1024;

/// The data directory and the files open below it.
pub(super) struct Disk {
    pub(super) directory: DataDirectory,
    files: HashMap<(DiskOwner, FileId), Rc<OpenFile>>,
    /// Closed by their owners while requests on them were under way.
    retired: Vec<Rc<OpenFile>>,
    table_free: Vec<u32>,
    /// Reads and writes on registered memory so far.
    pub(super) operations_registered: u64,
}

impl Disk {
    pub(super) fn new(directory: DataDirectory) -> Self {
        Self {
            directory,
            files: HashMap::new(),
            retired: Vec::new(),
            table_free: Vec::new(),
            operations_registered: 0,
        }
    }
}

/// Whose completion it is.
#[derive(Clone, Copy)]
struct Name {
    owner: DiskOwner,
    id: RequestId,
}

type Outcome = Result<usize, Errno>;

impl UringIo {
    /// Makes the table of registered files and puts the lock into it, so that the kernel frees the
    /// lock of a killed process only after its last request.
    pub(super) fn register_lock(&mut self) {
        let submitter = self.ring.kernel().submitter();
        let lock = [self.disk.directory.lock().as_raw_fd()];
        if submitter.register_files_sparse(REGISTERED_FILES).is_ok() {
            match submitter.register_files_update(0, &lock) {
                Ok(_) => self.disk.table_free = (1..REGISTERED_FILES).rev().collect(),
                Err(error) => tracing::warn!(%error, "cannot register the lock file in the ring"),
            }
        } else if let Err(error) = submitter.register_files(&lock) {
            // The table counts against the limit on open files; one file may still fit.
            tracing::warn!(%error, "cannot register the lock file in the ring");
        }
    }

    pub(super) fn submit_disk(&mut self, owner: DiskOwner, request: DiskRequest) {
        let name = Name { owner, id: request.id };
        let step = match request.operation {
            DiskOperation::ListDirectory { name: directory } => {
                let listed = self.disk.directory.list(&directory).map_err(disk_error);
                return self.complete(name, listed.map(DiskOutput::Listed), None);
            }
            DiskOperation::Close { file } => return self.submit_close(name, file),
            DiskOperation::Read { file, offset, len, buffer } => {
                let Some(file) = self.open_file(owner, file) else {
                    return self.complete_unopened(name, Some(buffer));
                };
                Step::Read { file, offset, len, read: 0, buffer }
            }
            DiskOperation::Write { file, offset, buffer, durability } => {
                let Some(file) = self.open_file(owner, file) else {
                    return self.complete_unopened(name, Some(buffer));
                };
                Step::Write { file, offset, buffer, durability }
            }
            DiskOperation::Sync { file } => {
                let Some(file) = self.open_file(owner, file) else {
                    return self.complete_unopened(name, None);
                };
                Step::Sync { file }
            }
            DiskOperation::Open { file, name, mode } => {
                Step::Open { file, path: path(&name), mode }
            }
            DiskOperation::CreateDirectory { name } => Step::CreateDirectory { path: path(&name) },
            DiskOperation::SyncDirectory { name } => Step::OpenDirectory { path: path(&name) },
            DiskOperation::Rename { from, to } => Step::Rename { from: path(&from), to: path(&to) },
            DiskOperation::Remove { name } => Step::Remove { path: path(&name) },
            DiskOperation::Link { from, to } => Step::Link { from: path(&from), to: path(&to) },
            DiskOperation::RemoveDirectory { name } => Step::RemoveDirectory { path: path(&name) },
            DiskOperation::Map { file, len } => {
                let Some(file) = self.open_file(owner, file) else {
                    return self.complete_unopened(name, None);
                };
                return match Mapping::new(&file.fd, len) {
                    Ok(mapping) => self.populate(name, mapping),
                    Err(errno) => self.complete(name, Err(disk_error(errno)), None),
                };
            }
        };
        self.start_step(name, step);
    }

    /// Takes the kernel's answer to one step.
    pub(super) fn handle_disk(&mut self, mut task: DiskTask, cqe: Cqe) {
        let outcome = cqe.outcome();
        if let Err(errno) = outcome
            && is_interruption(errno)
            && task.repeats < REPEATS_MAX
            && !matches!(task.step, Step::Close { .. })
        {
            task.repeats += 1;
            self.start(Op::Disk(task));
            return;
        }
        let name = Name { owner: task.owner, id: task.id };
        match task.step {
            Step::Open { file, .. } => self.handle_opened(name, file, outcome, cqe),
            Step::Read { file, offset, len, read, buffer } => {
                let step = Step::Read { file, offset, len, read, buffer };
                self.handle_read(name, step, outcome);
            }
            Step::Write { file, buffer, durability, .. } => {
                self.handle_written(name, file, buffer, durability, outcome);
            }
            Step::WriteSync { buffer, .. } => {
                self.complete(name, done(outcome), Some(buffer));
            }
            Step::OpenDirectory { .. } => match outcome {
                Ok(_) => {
                    // SAFETY: the answer to an OPENAT is a descriptor that is ours alone.
                    let fd = unsafe { adopt(cqe.result) };
                    self.start_step(name, Step::SyncDirectory { fd });
                }
                Err(errno) => self.complete(name, Err(disk_error(errno)), None),
            },
            Step::CreateDirectory { .. } if outcome == Err(Errno::EXIST) => {
                self.complete(name, Ok(DiskOutput::Done), None);
            }
            Step::Populate { mut mapping, next } => match outcome {
                Ok(_) => {
                    mapping.populated(next);
                    self.populate(name, mapping);
                }
                Err(errno) => self.complete(name, Err(disk_error(errno)), None),
            },
            Step::Close { .. }
            | Step::Sync { .. }
            | Step::SyncDirectory { .. }
            | Step::CreateDirectory { .. }
            | Step::Rename { .. }
            | Step::Remove { .. }
            | Step::Link { .. }
            | Step::RemoveDirectory { .. } => self.complete(name, done(outcome), None),
        }
        self.sweep_retired();
    }

    fn handle_opened(&mut self, name: Name, file: FileId, outcome: Outcome, cqe: Cqe) {
        let opened = outcome.and_then(|_| {
            // SAFETY: the answer to an OPENAT is a descriptor that is ours alone.
            let fd = unsafe { adopt(cqe.result) };
            let len = file_len(&fd)?;
            let registered = self.register_file(&fd);
            let direct = self.disk.directory.direct();
            let open = Rc::new(OpenFile { fd, registered, direct });
            let previous = self.disk.files.insert((name.owner, file), open);
            assert!(previous.is_none(), "{file:?} of {:?} was open already", name.owner);
            Ok(DiskOutput::Opened { len })
        });
        self.complete(name, opened.map_err(disk_error), None);
    }

    fn handle_read(&mut self, name: Name, step: Step, outcome: Outcome) {
        let Step::Read { file, offset, len, mut read, mut buffer } = step else {
            unreachable!("the caller matched a read");
        };
        let count = match outcome {
            Ok(count) => count,
            Err(errno) => {
                buffer.set_len(read);
                return self.complete(name, Err(disk_error(errno)), Some(buffer));
            }
        };
        read += count;
        // A short read is the end of the file or an interruption; the file's length tells which.
        let ended = count == 0
            || read >= len
            || file_len(&file.fd).is_ok_and(|file_len| offset + read as u64 >= file_len);
        if ended {
            buffer.set_len(read);
            self.complete(name, Ok(DiskOutput::Done), Some(buffer));
        } else {
            self.start_step(name, Step::Read { file, offset, len, read, buffer });
        }
    }

    fn handle_written(
        &mut self,
        name: Name,
        file: Rc<OpenFile>,
        buffer: IoBuffer,
        durability: Durability,
        outcome: Outcome,
    ) {
        match outcome {
            Err(errno) => self.complete(name, Err(disk_error(errno)), Some(buffer)),
            Ok(count) if count < buffer.len() => {
                self.complete(name, Err(short_write()), Some(buffer));
            }
            Ok(_) if durability == Durability::Durable && !file.syncs_by_flag() => {
                self.start_step(name, Step::WriteSync { file, buffer });
            }
            Ok(_) => self.complete(name, Ok(DiskOutput::Done), Some(buffer)),
        }
    }

    /// Has the kernel read what is missing of a mapping, or hands it out whole.
    fn populate(&mut self, name: Name, mapping: Mapping) {
        match mapping.next_populate() {
            Some(next) => self.start_step(name, Step::Populate { mapping, next }),
            None => self.complete(name, Ok(DiskOutput::Done), Some(mapping.into_buffer())),
        }
    }

    fn submit_close(&mut self, name: Name, file: FileId) {
        let Some(open) = self.disk.files.remove(&(name.owner, file)) else {
            return self.complete_unopened(name, None);
        };
        match Rc::try_unwrap(open) {
            Ok(open) => {
                self.unregister_file(open.registered);
                self.start_step(name, Step::Close { fd: open.fd.into_raw_fd() });
            }
            Err(open) => {
                self.disk.retired.push(open);
                self.complete(name, Ok(DiskOutput::Done), None);
            }
        }
    }

    /// Closes retired files whose last request has ended.
    fn sweep_retired(&mut self) {
        if self.disk.retired.is_empty() {
            return;
        }
        let (idle, busy) = std::mem::take(&mut self.disk.retired)
            .into_iter()
            .partition(|open| Rc::strong_count(open) == 1);
        self.disk.retired = busy;
        let idle: Vec<Rc<OpenFile>> = idle;
        for open in idle {
            self.unregister_file(open.registered);
        }
    }

    fn register_file(&mut self, fd: &OwnedFd) -> Option<u32> {
        let index = self.disk.table_free.pop()?;
        let submitter = self.ring.kernel().submitter();
        match submitter.register_files_update(index, &[fd.as_raw_fd()]) {
            Ok(_) => Some(index),
            Err(error) => {
                tracing::debug!(%error, "a file is used without being registered");
                self.disk.table_free.push(index);
                None
            }
        }
    }

    fn unregister_file(&mut self, registered: Option<u32>) {
        let Some(index) = registered else {
            return;
        };
        match self.ring.kernel().submitter().register_files_update(index, &[-1]) {
            Ok(_) => self.disk.table_free.push(index),
            Err(error) => tracing::warn!(%error, "a closed file stays registered"),
        }
    }

    fn open_file(&self, owner: DiskOwner, file: FileId) -> Option<Rc<OpenFile>> {
        self.disk.files.get(&(owner, file)).map(Rc::clone)
    }

    fn start_step(&mut self, name: Name, step: Step) {
        let Name { owner, id } = name;
        self.start(Op::Disk(DiskTask { owner, id, repeats: 0, step }));
    }

    fn complete_unopened(&mut self, name: Name, buffer: Option<IoBuffer>) {
        self.complete(name, Err(disk_error(Errno::BADF)), buffer);
    }

    fn complete(
        &mut self,
        name: Name,
        result: Result<DiskOutput, DiskError>,
        buffer: Option<IoBuffer>,
    ) {
        let completion = DiskCompletion { id: name.id, result, buffer };
        self.ready.push(Completion::Disk(name.owner, completion));
    }
}

fn done(outcome: Outcome) -> Result<DiskOutput, DiskError> {
    outcome.map(|_| DiskOutput::Done).map_err(disk_error)
}

fn path(name: &FileName) -> CString {
    CString::new(relative(name)).expect("cores make file names without zero bytes")
}

#[cfg(test)]
mod tests {
    //! What the kernel rarely answers: steps that never went to it get completions made up here.
    //! What follows from them does go to the kernel.

    use wal::disk::{BLOCK_SIZE, DiskErrorKind, OpenMode};

    use super::*;
    use crate::io::tests::{Scratch, ring_or_excuse};
    use crate::io::uring::UringOptions;
    use crate::io::{Io, Request};

    const OWNER: DiskOwner = DiskOwner(1);
    const FILE: FileId = FileId(1);
    const LEN: usize = 4 * BLOCK_SIZE;

    struct Rig {
        io: UringIo,
        _scratch: Scratch,
    }

    impl Rig {
        /// A driver with a file of four blocks, each filled with its number plus one.
        fn new() -> Option<Self> {
            let scratch = Scratch::new();
            let options =
                UringOptions { handle_signals: false, buffer_bytes: 0, ..UringOptions::default() };
            let io = ring_or_excuse(scratch.open(), options)?;
            let mut rig = Self { io, _scratch: scratch };
            let name = FileName::new("file");
            let open = DiskOperation::Open { file: FILE, name, mode: OpenMode::Create };
            rig.submit(open).result.unwrap();
            let (offset, durability) = (0, Durability::Durable);
            let write = DiskOperation::Write { file: FILE, offset, buffer: whole(), durability };
            rig.submit(write).result.unwrap();
            Some(rig)
        }

        fn submit(&mut self, operation: DiskOperation) -> DiskCompletion {
            let request = DiskRequest { id: RequestId(1), operation };
            self.io.submit(Request::Disk(OWNER, request));
            self.finish()
        }

        fn finish(&mut self) -> DiskCompletion {
            let mut done = Vec::new();
            while done.is_empty() {
                self.io.wait(None, &mut done).unwrap();
            }
            match done.pop() {
                Some(Completion::Disk(OWNER, completion)) if done.is_empty() => completion,
                other => panic!("{other:?}, {done:?}"),
            }
        }

        fn file(&self) -> Rc<OpenFile> {
            self.io.open_file(OWNER, FILE).unwrap()
        }

        fn read(&self) -> Step {
            let (file, buffer) = (self.file(), IoBuffer::with_capacity(LEN));
            Step::Read { file, offset: 0, len: LEN, read: 0, buffer }
        }

        fn write(&self, buffer: IoBuffer) -> Step {
            let durability = Durability::Durable;
            Step::Write { file: self.file(), offset: 0, buffer, durability }
        }

        /// Answers a step as the kernel might; says whether that was the end of it.
        fn answer(&mut self, step: Step, repeats: u16, result: i32) -> bool {
            let task = DiskTask { owner: OWNER, id: RequestId(2), repeats, step };
            self.io.handle_disk(task, Cqe { user_data: 1 << 32, result, flags: 0 });
            self.io.slots_in_use() == 0
        }
    }

    fn whole() -> IoBuffer {
        let mut buffer = IoBuffer::zeroed(LEN);
        for (index, block) in buffer.as_mut_slice().chunks_mut(BLOCK_SIZE).enumerate() {
            block.fill(index as u8 + 1);
        }
        buffer
    }

    fn negative(errno: Errno) -> i32 {
        -errno.raw_os_error()
    }

    #[test]
    fn interrupted_steps_are_repeated() {
        let Some(mut rig) = Rig::new() else { return };
        for errno in [Errno::INTR, Errno::AGAIN] {
            let step = rig.read();
            assert!(!rig.answer(step, 0, negative(errno)));
            let completion = rig.finish();
            assert_eq!(completion.result, Ok(DiskOutput::Done));
            assert_eq!(completion.buffer.unwrap().as_slice(), whole().as_slice());
            for step in [rig.write(whole()), Step::Sync { file: rig.file() }] {
                assert!(!rig.answer(step, 0, negative(errno)));
                assert_eq!(rig.finish().result, Ok(DiskOutput::Done));
            }
        }
    }

    #[test]
    fn steps_are_not_repeated_for_ever() {
        let Some(mut rig) = Rig::new() else { return };
        let step = rig.read();
        assert!(rig.answer(step, REPEATS_MAX, negative(Errno::INTR)));
        let completion = rig.finish();
        assert_eq!(completion.result.unwrap_err().kind, DiskErrorKind::Io);
        assert!(completion.buffer.unwrap().is_empty());
    }

    #[test]
    fn short_read_goes_on_where_it_ended() {
        let Some(mut rig) = Rig::new() else { return };
        let Step::Read { file, offset, len, read, mut buffer } = rig.read() else {
            unreachable!("a read was made");
        };
        // What the first half is to have brought; the kernel brings the second.
        buffer.spare_mut()[..2 * BLOCK_SIZE].fill(0xee);
        let step = Step::Read { file, offset, len, read, buffer };
        assert!(!rig.answer(step, 0, 2 * BLOCK_SIZE as i32));
        let completion = rig.finish();
        assert_eq!(completion.result, Ok(DiskOutput::Done));
        let buffer = completion.buffer.unwrap();
        let firsts: Vec<u8> = buffer.as_slice().chunks(BLOCK_SIZE).map(|block| block[0]).collect();
        assert_eq!(firsts, [0xee, 0xee, 3, 4]);
    }

    /// Repeating it would overwrite a range whose state is unknown.
    #[test]
    fn short_write_is_reported_and_not_repeated() {
        let Some(mut rig) = Rig::new() else { return };
        for written in [0, BLOCK_SIZE as i32, LEN as i32 - 1] {
            let step = rig.write(whole());
            assert!(rig.answer(step, 0, written), "{written}");
            let completion = rig.finish();
            assert_eq!(completion.result.unwrap_err().kind, DiskErrorKind::ShortWrite);
            assert_eq!(completion.buffer.unwrap().len(), LEN);
        }
    }

    #[test]
    fn errors_end_a_write_at_once() {
        let Some(mut rig) = Rig::new() else { return };
        for (errno, kind) in [
            (Errno::NOSPC, DiskErrorKind::NoSpace),
            (Errno::DQUOT, DiskErrorKind::NoSpace),
            (Errno::IO, DiskErrorKind::Io),
            (Errno::CANCELED, DiskErrorKind::Io),
        ] {
            let step = rig.write(whole());
            assert!(rig.answer(step, 0, negative(errno)), "{errno}");
            let completion = rig.finish();
            assert_eq!(completion.result.unwrap_err().kind, kind);
            assert_eq!(completion.buffer.unwrap().len(), LEN);
        }
    }

    /// After an interruption Linux has closed the descriptor; it may be another file's by now.
    #[test]
    fn interrupted_close_is_not_repeated() {
        let Some(mut rig) = Rig::new() else { return };
        assert!(rig.answer(Step::Close { fd: -1 }, 0, negative(Errno::INTR)));
        assert!(rig.finish().result.is_err());
    }
}
