//! Writes a checkpoint beside a live store, in steps whose work the caller bounds.
//!
//! ```text
//!   create -> header -> chunks -> trailer -> sync -> close -> rename -> sync directory -> done
//!      \________________________________________/  any failure: close -> remove -> failed
//! ```
//!
//! [`CheckpointWriter::step`] copies at most a budget of bytes out of the cut and says what to do
//! next; the caller carries operations out and hands every end to
//! [`CheckpointWriter::handle_disk`]. The index may change between steps as it likes: the cut holds
//! it as it was. A checkpoint counts only once it is in the manifest, which the caller sees to.

use wal::checksum::RunningChecksum;
use wal::disk::{DiskCompletion, DiskError, DiskOperation, Durability, FileId, FileName};
use wal::disk::{IoBuffer, OpenMode};

use super::format::{self, CHUNK_ENTRIES, ChunkPlace, Layout};
use super::{CheckpointFacts, file_name, temporary_name};
use crate::index::arena::CHUNK_LEN;
use crate::index::page::PAGE_LEN;
use crate::index::table::Index;

/// Chunks being written at a time; while one is under way the next is filled.
const WRITES_MAX: usize = 2;

/// What comes next.
#[derive(Debug)]
pub(crate) enum Step {
    /// Carry this out, and step again.
    Start(DiskOperation),
    /// The budget is used up: step again when there is more.
    Paused,
    /// Wait for the end of an operation under way, and step again.
    Waiting,
    /// The checkpoint is on the disk under its name; nothing refers to it yet.
    Complete(CompleteCheckpoint),
    /// It is not; what was written of it is removed if the disk allowed that.
    Failed(DiskError),
}

/// A checkpoint on the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CompleteCheckpoint {
    /// Its file.
    pub(crate) name: FileName,
    /// The file's bytes.
    pub(crate) len: u64,
    /// Their CRC-32, not seeded: snapshots need it.
    pub(crate) crc32: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum State {
    Create,
    Header,
    Chunks,
    Trailer,
    Sync,
    Close,
    Rename,
    SyncDirectory,
    Complete,
    /// After a failure: the file is closed and removed.
    Abandon,
    Failed,
}

/// What has become of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FileState {
    Absent,
    Opening,
    Open,
    Closed,
    Renamed,
}

/// A chunk being filled.
#[derive(Debug)]
struct Filling {
    place: ChunkPlace,
    buffer: IoBuffer,
    /// Entries in it; pages are counted by its bytes.
    entries: usize,
}

/// Writes one checkpoint.
#[derive(Debug)]
pub(crate) struct CheckpointWriter {
    facts: CheckpointFacts,
    layout: Layout,
    directory: FileName,
    file: FileId,
    state: State,
    /// The next chunk to be begun.
    chunk: u64,
    filling: Option<Filling>,
    crcs: Vec<u32>,
    /// Of everything so far: the parts are made in the order of the file.
    sum: RunningChecksum,
    in_flight: usize,
    file_state: FileState,
    spare: Vec<IoBuffer>,
    failure: Option<DiskError>,
    is_cut: bool,
}

impl CheckpointWriter {
    /// Begins a cut of the index and a checkpoint of it in `directory`. `facts` are those of this
    /// very moment; the file is called `file` while it is written.
    pub(crate) fn begin(
        index: &mut Index,
        facts: CheckpointFacts,
        directory: FileName,
        file: FileId,
    ) -> Self {
        index.begin_cut();
        let layout = Layout::new(&facts, index.pages(), index.crowded_len());
        Self {
            facts,
            layout,
            directory,
            file,
            state: State::Create,
            chunk: 0,
            filling: None,
            crcs: Vec::new(),
            sum: RunningChecksum::default(),
            in_flight: 0,
            file_state: FileState::Absent,
            spare: Vec::new(),
            failure: None,
            is_cut: true,
        }
    }

    /// Bytes the file will have.
    #[cfg(test)]
    pub(crate) fn file_len(&self) -> u64 {
        self.layout.file_len()
    }

    /// Whether the next step copies out of the cut.
    pub(crate) fn is_copying(&self) -> bool {
        self.state == State::Chunks
            && self.in_flight < WRITES_MAX
            && (self.filling.is_some() || self.chunk < self.layout.chunks())
    }

    /// Gives up: the steps that follow close and remove what there is.
    pub(crate) fn cancel(&mut self, reason: DiskError) {
        if self.state < State::Rename {
            self.fail(reason);
        }
    }

    /// Goes on: copies at most about `budget` bytes (one page at least) and tells what comes next.
    pub(crate) fn step(&mut self, index: &mut Index, budget: usize) -> Step {
        match self.state {
            State::Create => {
                self.file_state = FileState::Opening;
                self.start(State::Header, self.create())
            }
            State::Chunks => self.step_chunks(index, budget),
            // Everything else comes after all that was started before it has ended.
            _ if self.in_flight > 0 => Step::Waiting,
            State::Header => {
                let header = format::encode_header(&self.facts, &self.layout);
                self.sum.update(header.as_slice());
                self.start(State::Chunks, self.write(0, header))
            }
            State::Trailer => {
                let (id, layout) = (&self.facts.id, &self.layout);
                let trailer = format::encode_trailer(id, layout, &self.crcs);
                let offset = layout.trailer_offset();
                self.sum.update(trailer.as_slice());
                self.start(State::Sync, self.write(offset, trailer))
            }
            State::Sync => self.start(State::Close, DiskOperation::Sync { file: self.file }),
            State::Close => {
                self.file_state = FileState::Closed;
                self.start(State::Rename, DiskOperation::Close { file: self.file })
            }
            State::Rename => self.start(State::SyncDirectory, self.rename()),
            State::SyncDirectory => {
                let name = self.directory.clone();
                self.start(State::Complete, DiskOperation::SyncDirectory { name })
            }
            State::Complete => Step::Complete(CompleteCheckpoint {
                name: file_name(&self.directory, self.facts.id.lsn),
                len: self.layout.file_len(),
                crc32: self.sum.sum(),
            }),
            State::Abandon | State::Failed => self.step_failed(index),
        }
    }

    /// Takes the end of an operation. The order in which they end does not matter.
    pub(crate) fn handle_disk(&mut self, completion: DiskCompletion) {
        self.in_flight -= 1;
        let is_chunk = |buffer: &IoBuffer| buffer.capacity() == CHUNK_LEN;
        self.spare.extend(completion.buffer.filter(is_chunk));
        // Nothing else is under way while the file is opened, or once it is closed.
        self.file_state = match (self.file_state, self.state, &completion.result) {
            (FileState::Opening, _, Ok(_)) => FileState::Open,
            (FileState::Opening, _, Err(_)) => FileState::Absent,
            (FileState::Closed, State::SyncDirectory, Ok(_)) => FileState::Renamed,
            (unchanged, _, _) => unchanged,
        };
        if let Err(error) = completion.result {
            self.fail(error);
        }
    }

    fn fail(&mut self, error: DiskError) {
        // The first failure is the one to tell of; later ones follow from it.
        if self.failure.is_none() {
            self.failure = Some(error);
            self.state = State::Abandon;
        }
    }

    fn start(&mut self, next: State, operation: DiskOperation) -> Step {
        self.state = next;
        self.in_flight += 1;
        Step::Start(operation)
    }

    fn create(&self) -> DiskOperation {
        let name = temporary_name(&self.directory, self.facts.id.lsn);
        DiskOperation::Open { file: self.file, name, mode: OpenMode::Create }
    }

    fn rename(&self) -> DiskOperation {
        let lsn = self.facts.id.lsn;
        let (from, to) = (temporary_name(&self.directory, lsn), file_name(&self.directory, lsn));
        DiskOperation::Rename { from, to }
    }

    fn write(&self, offset: u64, buffer: IoBuffer) -> DiskOperation {
        DiskOperation::Write { file: self.file, offset, buffer, durability: Durability::Cached }
    }

    fn step_chunks(&mut self, index: &mut Index, budget: usize) -> Step {
        if self.chunk == self.layout.chunks() && self.filling.is_none() {
            self.end_cut(index);
            self.state = State::Trailer;
            return self.step(index, budget);
        }
        if self.in_flight >= WRITES_MAX {
            return Step::Waiting;
        }
        let mut filling = match self.filling.take() {
            Some(filling) => filling,
            None => self.begin_chunk(),
        };
        fill(&mut filling, index, budget);
        if !filling.is_full() {
            self.filling = Some(filling);
            return Step::Paused;
        }
        let Filling { place, mut buffer, .. } = filling;
        pad(&mut buffer, place.len);
        self.crcs.push(format::checksum_at(&self.facts.id, place.offset, &[buffer.as_slice()]));
        self.sum.update(buffer.as_slice());
        self.start(State::Chunks, self.write(place.offset, buffer))
    }

    fn begin_chunk(&mut self) -> Filling {
        let place = self.layout.chunk(self.chunk);
        self.chunk += 1;
        let spare = self.spare.pop();
        let mut buffer = spare.unwrap_or_else(|| IoBuffer::with_capacity(CHUNK_LEN));
        buffer.set_len(0);
        Filling { place, buffer, entries: 0 }
    }

    fn step_failed(&mut self, index: &mut Index) -> Step {
        self.end_cut(index);
        self.filling = None;
        match self.state {
            State::Abandon if self.file_state == FileState::Open => {
                self.file_state = FileState::Closed;
                self.start(State::Abandon, DiskOperation::Close { file: self.file })
            }
            State::Abandon if self.file_state != FileState::Absent => {
                let lsn = self.facts.id.lsn;
                let name = match self.file_state {
                    FileState::Renamed => file_name(&self.directory, lsn),
                    _ => temporary_name(&self.directory, lsn),
                };
                self.start(State::Failed, DiskOperation::Remove { name })
            }
            _ => Step::Failed(self.failure.expect("a failure leads here")),
        }
    }

    fn end_cut(&mut self, index: &mut Index) {
        if self.is_cut {
            self.is_cut = false;
            index.end_cut();
        }
    }
}

impl Filling {
    fn is_full(&self) -> bool {
        match self.place.entries {
            0 => self.buffer.len() == self.place.len,
            entries => self.entries == entries,
        }
    }
}

/// Copies at most `budget` bytes, one page or entry at least.
fn fill(filling: &mut Filling, index: &mut Index, budget: usize) {
    let mut copied = 0;
    while !filling.is_full() && (copied == 0 || copied < budget) {
        let before = filling.buffer.len();
        if filling.place.entries == 0 {
            let page = index.next_cut_page().expect("a cut has the pages it began with");
            filling.buffer.extend_from_slice(page);
        } else {
            let (key, slot) = index.next_cut_entry().expect("a cut has the entries it began with");
            format::encode_entry(&key, slot, &mut filling.buffer);
            filling.entries += 1;
        }
        copied += filling.buffer.len() - before;
    }
    debug_assert!(filling.entries <= CHUNK_ENTRIES && filling.buffer.len() <= filling.place.len);
}

/// Fills up with zeros.
fn pad(buffer: &mut IoBuffer, len: usize) {
    const ZEROS: [u8; PAGE_LEN] = [0; PAGE_LEN];
    while buffer.len() < len {
        let missing = (len - buffer.len()).min(PAGE_LEN);
        buffer.extend_from_slice(&ZEROS[..missing]);
    }
}
