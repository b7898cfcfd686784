//! The disk of the simulator: deterministic from one seed, with un-synced work kept apart from
//! durable work, so that a power loss can be tried at every request.
//!
//! ```text
//! submit -> in flight -> complete_one (any order) -> running view, pending
//!                                                        | Sync, SyncDirectory, Durable
//!                                                        v
//!                                                     durable
//! crash: durable + any part of what is pending or in flight
//! ```
//!
//! What it models beyond the vocabulary of [`wal::disk`]:
//! * a pending write survives by 512-byte sectors, each on its own; so does the file's length, and
//!   each creation, renaming and removal, as far as what it builds on survived;
//! * a sync covers what completed before it was submitted; a failed one leaves that in doubt for
//!   ever, whatever is synced later;
//! * the sector that never tears is 512 bytes or 4 KiB, as told;
//! * an emptied file (`Create` over an existing name) may come back whole until it is synced.
//!
//! Whatever real drivers give no order for is a panic here: overlapping requests in flight, the use
//! of a file before its `Open` or after its `Close`, names touched by two requests at once.
//! Renaming from one directory to another is not modelled. Clones share content and are cheap.

#![forbid(unsafe_code)]

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::Range;
use std::sync::Arc;

use fastrand::Rng;
use wal::disk::{
    BLOCK_SIZE, DiskCompletion, DiskError, DiskErrorKind, DiskOperation, DiskOutput, DiskRequest,
    Durability, FileId, FileName, IoBuffer, OpenMode, RequestId,
};

mod admission;
mod crash;
mod drive;
mod faults;
mod file;
mod names;
#[cfg(test)]
mod tests;

pub use crash::{
    CrashImages, CrashPlan, CrashUnit, EXHAUSTIVE_QUESTIONS_MAX, ExposedBlock, LostSector,
    SectorSize, Survival,
};
pub use drive::{run_procedure, run_procedure_until};
pub use faults::{OperationKind, WrittenRange};
pub use file::SECTOR_SIZE;

use faults::{Fault, Faults, PAST_WRITES_MAX, PastWrite};
use file::{Inode, Landing, blocks_of};
use names::{InodeId, Names};

use crate::tally::{Occurrence, Tally};

/// What has been asked of the disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Statistics {
    /// Requests submitted.
    pub requests: u64,
    /// Reads submitted.
    pub reads: u64,
    /// Writes submitted, durable or not.
    pub writes: u64,
    /// Durable writes submitted.
    pub durable_writes: u64,
    /// Durable writes that extended a file or touched blocks which were never written and synced:
    /// on a real file system each of them commits a journal.
    pub expensive_durable_writes: u64,
    /// Bytes in all writes submitted.
    pub bytes_written: u64,
    /// File syncs submitted.
    pub syncs: u64,
    /// Directory syncs submitted.
    pub directory_syncs: u64,
    /// Requests that ended with an error.
    pub failures: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct OpenFile {
    inode: InodeId,
    is_writable: bool,
}

#[derive(Debug)]
struct InFlight {
    owner: u16,
    id: RequestId,
    operation: DiskOperation,
    /// The file it works on, if that was open when it was submitted.
    inode: Option<InodeId>,
    /// A sync covers what has a lower completion number.
    covers: u64,
    fault: Option<Fault>,
}

impl InFlight {
    /// Whether the request fails without any effect.
    fn changes_nothing(&self) -> bool {
        match (self.fault, &self.operation) {
            (Some(Fault::Fail(error)), DiskOperation::Write { .. }) => {
                !matches!(error.kind, DiskErrorKind::Io | DiskErrorKind::ShortWrite)
            }
            (Some(Fault::Fail(_)), _) => true,
            _ => false,
        }
    }
}

/// A disk with the files of one node; see the module's documentation.
pub struct SimulatedDisk {
    inodes: BTreeMap<InodeId, Arc<Inode>>,
    names: Names,
    open: BTreeMap<(u16, FileId), OpenFile>,
    in_flight: Vec<InFlight>,
    faults: Faults,
    /// The newest durable writes, for damage at rest.
    past_writes: VecDeque<PastWrite>,
    /// What has gone wrong since it was last asked; of a disk after a crash, also in that.
    tally: Tally,
    sector: SectorSize,
    capacity: Option<u64>,
    statistics: Statistics,
    completed: u64,
    inodes_made: u64,
    rng: Rng,
}

impl SimulatedDisk {
    /// Makes an empty disk: the data directory exists and is empty.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self {
            inodes: BTreeMap::new(),
            names: Names::default(),
            open: BTreeMap::new(),
            in_flight: Vec::new(),
            faults: Faults::default(),
            past_writes: VecDeque::new(),
            tally: Tally::default(),
            sector: SectorSize::default(),
            capacity: None,
            statistics: Statistics::default(),
            completed: 0,
            inodes_made: 0,
            rng: Rng::with_seed(seed),
        }
    }

    /// Says what this disk writes as a whole.
    pub fn set_sector_size(&mut self, sector: SectorSize) {
        self.sector = sector;
    }

    /// Begins a request of the core `owner`, whose file and request ids are its own.
    ///
    /// # Panics
    /// If a real driver would give the request no order, or no meaning: a bug of the core.
    pub fn submit(&mut self, owner: u16, request: DiskRequest) {
        let DiskRequest { id, operation } = request;
        let inode = self.admit(owner, id, &operation);
        self.count(inode, &operation);
        let kind = OperationKind::of(&operation);
        let mut fault = self.faults.strike(kind, &mut self.tally);
        if fault.is_none() && !self.has_room_for(inode, &operation) {
            let error = DiskErrorKind::NoSpace;
            fault = Some(Fault::Fail(DiskError { kind: error, code: code_of(error) }));
            self.tally.note(Occurrence::FullDisk);
        }
        let covers = self.completed;
        self.in_flight.push(InFlight { owner, id, operation, inode, covers, fault });
    }

    /// Number of requests in flight.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// Completes one request, whichever the seed says.
    pub fn complete_one(&mut self) -> Option<(u16, DiskCompletion)> {
        let index = (!self.in_flight.is_empty()).then(|| self.rng.usize(..self.in_flight.len()))?;
        Some(self.complete_at(index))
    }

    /// Completes one request of `owner`, whichever the seed says.
    pub fn complete_one_of(&mut self, owner: u16) -> Option<DiskCompletion> {
        let own = |(index, request): (usize, &InFlight)| (request.owner == owner).then_some(index);
        let own: Vec<_> = self.in_flight.iter().enumerate().filter_map(own).collect();
        let index = self.rng.choice(own)?;
        Some(self.complete_at(index).1)
    }

    /// Completes everything in flight, in an order that the seed gives.
    pub fn complete_all(&mut self) -> Vec<(u16, DiskCompletion)> {
        std::iter::from_fn(|| self.complete_one()).collect()
    }

    /// Every file's name and length, as the running system sees them, in name order.
    #[must_use]
    pub fn files(&self) -> Vec<(String, u64)> {
        let entry = |(name, inode): (&FileName, InodeId)| {
            (name.as_str().to_owned(), self.inodes[&inode].len())
        };
        self.names.files().map(entry).collect()
    }

    /// A file's content as the running system sees it: all completed writes.
    ///
    /// # Panics
    /// If there is no such file.
    #[must_use]
    pub fn read_file(&self, name: &str) -> Vec<u8> {
        let inode = self.names.inode(&FileName::new(name));
        let inode = inode.unwrap_or_else(|| panic!("there is no file {name}"));
        self.inodes[&inode].running_bytes()
    }

    /// A file's content if everything that is not durable is lost, or `None` if its name is.
    #[must_use]
    pub fn durable_file(&self, name: &str) -> Option<Vec<u8>> {
        let inode = self.names.durable_inode(&FileName::new(name))?;
        Some(self.inodes[&inode].durable_bytes())
    }

    /// Puts a durable file there at once, replacing one of that name and making its directories.
    pub fn plant_file(&mut self, name: &str, bytes: &[u8]) {
        let inode = self.add_inode(Inode::with_content(bytes));
        self.names.plant(&FileName::new(name), inode);
    }

    /// Number of requests submitted since the disk was new.
    #[must_use]
    pub fn request_count(&self) -> u64 {
        self.statistics.requests
    }

    /// What has been asked of the disk since it was new.
    #[must_use]
    pub fn statistics(&self) -> Statistics {
        self.statistics
    }

    /// Hands out what has gone wrong since this was last asked; a clone begins at nothing.
    pub fn take_tally(&mut self) -> Tally {
        self.tally.take()
    }

    /// Hashes the whole state, so that two runs from one seed can be compared.
    #[must_use]
    pub fn hash(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        (&self.inodes, &self.names, &self.open, self.statistics).hash(&mut hasher);
        (self.capacity, self.completed, self.inodes_made).hash(&mut hasher);
        self.rng.get_seed().hash(&mut hasher);
        for request in &self.in_flight {
            (request.owner, request.id, request.inode, request.covers).hash(&mut hasher);
            format!("{:?} {:?}", request.operation, request.fault).hash(&mut hasher);
            if let DiskOperation::Write { buffer, .. } = &request.operation {
                buffer.as_slice().hash(&mut hasher);
            }
        }
        hasher.finish()
    }

    fn count(&mut self, inode: Option<InodeId>, operation: &DiskOperation) {
        let statistics = &mut self.statistics;
        statistics.requests += 1;
        match operation {
            DiskOperation::Read { .. } => statistics.reads += 1,
            DiskOperation::Sync { .. } => statistics.syncs += 1,
            DiskOperation::SyncDirectory { .. } => statistics.directory_syncs += 1,
            DiskOperation::Write { offset, buffer, durability, .. } => {
                statistics.writes += 1;
                statistics.bytes_written += buffer.len() as u64;
                if *durability == Durability::Durable {
                    statistics.durable_writes += 1;
                    let inode = &self.inodes[&inode.expect("a write has an open file")];
                    let cheap = inode.is_overwrite(*offset, buffer.len());
                    statistics.expensive_durable_writes += u64::from(!cheap);
                }
            }
            _ => {}
        }
    }

    fn complete_at(&mut self, index: usize) -> (u16, DiskCompletion) {
        let mut request = self.in_flight.remove(index);
        let mut mapped = None;
        let result = match request.operation {
            DiskOperation::Map { len, .. } => self.map(&request, len).map(|buffer| {
                mapped = Some(buffer);
                DiskOutput::Done
            }),
            _ => self.carry_out(&mut request),
        };
        self.statistics.failures += u64::from(result.is_err());
        let result = result.map_err(|kind| match request.fault {
            Some(Fault::Fail(error)) if error.kind == kind => error,
            _ => DiskError { kind, code: code_of(kind) },
        });
        let buffer = match request.operation {
            DiskOperation::Read { buffer, .. } | DiskOperation::Write { buffer, .. } => {
                Some(buffer)
            }
            _ => mapped,
        };
        (request.owner, DiskCompletion { id: request.id, result, buffer })
    }

    fn carry_out(&mut self, request: &mut InFlight) -> Result<DiskOutput, DiskErrorKind> {
        let failure = match request.fault {
            Some(Fault::Fail(error)) => Err(error.kind),
            _ => Ok(()),
        };
        let number = self.next_number();
        match &mut request.operation {
            DiskOperation::Read { offset, len, buffer, .. } => {
                buffer.set_len(0);
                failure?;
                let inode = &self.inodes[&request.inode.expect("a read has an open file")];
                let read = inode.read(*offset, &mut buffer.spare_mut()[..*len]);
                if read.is_none() {
                    self.tally.note(Occurrence::LatentReadError);
                }
                buffer.set_len(read.ok_or(DiskErrorKind::Io)?);
            }
            DiskOperation::Write { .. } => self.write(number, request)?,
            DiskOperation::Sync { .. } => {
                let inode = self.inode_mut(request.inode.expect("a sync has an open file"));
                match failure {
                    Ok(()) => inode.sync(request.covers),
                    Err(error) => {
                        inode.fail_sync(request.covers);
                        return Err(error);
                    }
                }
            }
            DiskOperation::SyncDirectory { name } => {
                failure?;
                self.names.sync(name, request.covers)?;
                self.drop_unreachable();
            }
            DiskOperation::ListDirectory { name } => {
                failure?;
                let listed = self.names.list(name)?;
                let len = |inode| self.inodes[&inode].len();
                let mut listed: Vec<_> =
                    listed.into_iter().map(|(name, inode)| (name, len(inode))).collect();
                self.rng.shuffle(&mut listed);
                return Ok(DiskOutput::Listed(listed));
            }
            DiskOperation::Close { file } => {
                self.open.remove(&(request.owner, *file));
                self.drop_unreachable();
                failure?;
            }
            DiskOperation::Open { file, mode, .. } => {
                let (key, is_writable) = ((request.owner, *file), *mode != OpenMode::Read);
                failure?;
                let inode = self.change_names(number, &request.operation)?;
                let inode = inode.expect("opening finds a file");
                self.open.insert(key, OpenFile { inode, is_writable });
                return Ok(DiskOutput::Opened { len: self.inodes[&inode].len() });
            }
            DiskOperation::CreateDirectory { .. }
            | DiskOperation::RemoveDirectory { .. }
            | DiskOperation::Rename { .. }
            | DiskOperation::Link { .. }
            | DiskOperation::Remove { .. } => {
                failure?;
                self.change_names(number, &request.operation)?;
            }
            DiskOperation::Map { .. } => unreachable!("mappings are made apart"),
        }
        Ok(DiskOutput::Done)
    }

    /// Copies what a mapping would show: content that nobody changes as long as it is mapped.
    fn map(&mut self, request: &InFlight, len: usize) -> Result<IoBuffer, DiskErrorKind> {
        self.next_number();
        if let Some(Fault::Fail(error)) = request.fault {
            return Err(error.kind);
        }
        let inode = &self.inodes[&request.inode.expect("a mapping has an open file")];
        if inode.len() < len as u64 {
            return Err(DiskErrorKind::Io);
        }
        let mut buffer = IoBuffer::zeroed(len);
        inode.read(0, buffer.as_mut_slice()).ok_or(DiskErrorKind::Io)?;
        Ok(buffer)
    }

    fn write(&mut self, number: u64, request: &InFlight) -> Result<(), DiskErrorKind> {
        let DiskOperation::Write { offset, buffer, durability, .. } = &request.operation else {
            unreachable!("only writes come here");
        };
        let id = request.inode.expect("a write has an open file");
        let Some(Fault::Fail(error)) = request.fault else {
            self.land(number, request, *offset, buffer.as_slice(), |_| true);
            if *durability == Durability::Durable {
                if request.fault.is_none() {
                    self.note_past_write(id, *offset, buffer.as_slice());
                }
                self.inode_mut(id).settle_write(number);
            }
            return Ok(());
        };
        if !request.changes_nothing() {
            let blocks = buffer.len() / BLOCK_SIZE;
            let prefix = self.rng.usize(..blocks.max(1));
            let mut rng = self.rng.fork();
            let is_short = error.kind == DiskErrorKind::ShortWrite;
            self.land(number, request, *offset, buffer.as_slice(), |block| {
                if is_short { block < prefix } else { rng.bool() }
            });
            self.inode_mut(id).fail_write(number);
        }
        Err(error.kind)
    }

    fn note_past_write(&mut self, inode: InodeId, offset: u64, bytes: &[u8]) {
        let first = offset / BLOCK_SIZE as u64;
        let old = self.inodes[&inode].durable_range(first, bytes.len() / BLOCK_SIZE);
        if self.past_writes.len() == PAST_WRITES_MAX {
            self.past_writes.pop_front();
        }
        self.past_writes.push_back(PastWrite { inode, first, old });
    }

    /// Lets a write reach the operating system, as far as its blocks are `landed`.
    fn land(
        &mut self,
        number: u64,
        request: &InFlight,
        offset: u64,
        bytes: &[u8],
        landed: impl FnMut(usize) -> bool,
    ) {
        let blocks = blocks_of(bytes);
        let mut landed = runs(blocks.len(), landed);
        let Some(last) = landed.last() else { return };
        let end = offset + (last.end * BLOCK_SIZE) as u64;
        let mut at = offset;
        match request.fault {
            Some(Fault::Misdirect(to)) => at = to,
            Some(Fault::Lose) => landed = std::iter::once(0..0).collect(),
            _ => {}
        }
        let first = at / BLOCK_SIZE as u64;
        let inode = request.inode.expect("a write has an open file");
        self.inode_mut(inode).land(&Landing { number, first, blocks, landed, end });
    }

    /// Carries out what an operation does to names; opening a file yields which one it is.
    fn change_names(
        &mut self,
        number: u64,
        operation: &DiskOperation,
    ) -> Result<Option<InodeId>, DiskErrorKind> {
        match operation {
            DiskOperation::CreateDirectory { name } => self.names.make_directory(number, name)?,
            DiskOperation::Rename { from, to } => self.names.rename(number, from, to)?,
            DiskOperation::Remove { name } => self.names.remove(number, name)?,
            DiskOperation::Link { from, to } => self.names.link(number, from, to)?,
            DiskOperation::RemoveDirectory { name } => self.names.remove_directory(number, name)?,
            DiskOperation::Open { name, mode, .. } => {
                let found = self.names.inode(name);
                if *mode != OpenMode::Create {
                    return found.map(Some).ok_or(DiskErrorKind::NotFound);
                }
                let inode = match found {
                    Some(inode) => {
                        let before = Arc::clone(&self.inodes[&inode]);
                        self.inodes.insert(inode, Arc::new(Inode::emptied(before)));
                        inode
                    }
                    None => {
                        self.names.create(number, name, InodeId(self.inodes_made))?;
                        self.add_inode(Inode::default())
                    }
                };
                return Ok(Some(inode));
            }
            _ => {}
        }
        Ok(None)
    }

    fn add_inode(&mut self, inode: Inode) -> InodeId {
        let id = InodeId(self.inodes_made);
        self.inodes_made += 1;
        self.inodes.insert(id, Arc::new(inode));
        id
    }

    fn inode_mut(&mut self, id: InodeId) -> &mut Inode {
        Arc::make_mut(self.inodes.get_mut(&id).expect("the file has not been dropped"))
    }

    fn inode_named(&mut self, name: &str) -> &mut Arc<Inode> {
        let inode = self.names.inode(&FileName::new(name));
        let inode = inode.unwrap_or_else(|| panic!("there is no file {name}"));
        self.inodes.get_mut(&inode).expect("a named file exists")
    }

    fn next_number(&mut self) -> u64 {
        self.completed += 1;
        self.completed - 1
    }

    /// Forgets files that no name, open file or request leads to any more.
    fn drop_unreachable(&mut self) {
        let mut reachable = self.names.may_reach();
        reachable.extend(self.open.values().map(|open| open.inode));
        reachable.extend(self.in_flight.iter().filter_map(|request| request.inode));
        self.inodes.retain(|inode, _| reachable.contains(inode));
    }

    /// Bytes of all files that have a name or are open, each counted once.
    #[must_use]
    pub fn used_bytes(&self) -> u64 {
        self.lens().values().sum()
    }

    fn lens(&self) -> BTreeMap<InodeId, u64> {
        let named = self.names.files().map(|(_, inode)| inode);
        let inodes = named.chain(self.open.values().map(|open| open.inode));
        inodes.map(|inode| (inode, self.inodes[&inode].len())).collect()
    }

    fn has_room_for(&self, inode: Option<InodeId>, operation: &DiskOperation) -> bool {
        let Some(capacity) = self.capacity else {
            return true;
        };
        let mut lens = self.lens();
        let begun = self.in_flight.iter().filter(|request| !request.changes_nothing());
        for request in begun {
            if let (Some(inode), Some(end)) = (request.inode, end_of_write(&request.operation)) {
                lens.entry(inode).and_modify(|len| *len = end.max(*len));
            }
        }
        let used: u64 = lens.values().sum();
        match (inode, end_of_write(operation), operation) {
            (Some(inode), Some(end), _) => {
                end.saturating_sub(lens[&inode]) <= capacity.saturating_sub(used)
                    || end <= lens[&inode]
            }
            (_, _, DiskOperation::Open { name, mode: OpenMode::Create, .. }) => {
                used < capacity || self.names.inode(name).is_some()
            }
            _ => true,
        }
    }
}

impl Clone for SimulatedDisk {
    fn clone(&self) -> Self {
        let in_flight = self
            .in_flight
            .iter()
            .map(|request| InFlight { operation: duplicate(&request.operation), ..*request });
        Self {
            inodes: self.inodes.clone(),
            names: self.names.clone(),
            open: self.open.clone(),
            in_flight: in_flight.collect(),
            faults: self.faults.clone(),
            past_writes: self.past_writes.clone(),
            tally: Tally::default(),
            sector: self.sector,
            capacity: self.capacity,
            statistics: self.statistics,
            completed: self.completed,
            inodes_made: self.inodes_made,
            rng: self.rng.clone(),
        }
    }
}

impl fmt::Debug for SimulatedDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimulatedDisk")
            .field("files", &self.files())
            .field("in_flight", &self.in_flight)
            .field("statistics", &self.statistics)
            .finish_non_exhaustive()
    }
}

fn end_of_write(operation: &DiskOperation) -> Option<u64> {
    match operation {
        DiskOperation::Write { offset, buffer, .. } => Some(offset + buffer.len() as u64),
        _ => None,
    }
}

/// The runs of indices below `count` for which `holds`.
fn runs(count: usize, mut holds: impl FnMut(usize) -> bool) -> Vec<Range<usize>> {
    let mut runs: Vec<Range<usize>> = Vec::new();
    for index in (0..count).filter(|index| holds(*index)) {
        match runs.last_mut() {
            Some(run) if run.end == index => run.end += 1,
            _ => runs.push(index..index + 1),
        }
    }
    runs
}

fn duplicate_buffer(buffer: &IoBuffer) -> IoBuffer {
    let mut copy = IoBuffer::with_capacity(buffer.capacity());
    copy.extend_from_slice(buffer.as_slice());
    copy
}

fn duplicate(operation: &DiskOperation) -> DiskOperation {
    match operation {
        DiskOperation::CreateDirectory { name } => {
            DiskOperation::CreateDirectory { name: name.clone() }
        }
        DiskOperation::ListDirectory { name } => {
            DiskOperation::ListDirectory { name: name.clone() }
        }
        DiskOperation::Open { file, name, mode } => {
            DiskOperation::Open { file: *file, name: name.clone(), mode: *mode }
        }
        DiskOperation::Close { file } => DiskOperation::Close { file: *file },
        DiskOperation::Read { file, offset, len, buffer } => DiskOperation::Read {
            file: *file,
            offset: *offset,
            len: *len,
            buffer: duplicate_buffer(buffer),
        },
        DiskOperation::Write { file, offset, buffer, durability } => DiskOperation::Write {
            file: *file,
            offset: *offset,
            buffer: duplicate_buffer(buffer),
            durability: *durability,
        },
        DiskOperation::Sync { file } => DiskOperation::Sync { file: *file },
        DiskOperation::SyncDirectory { name } => {
            DiskOperation::SyncDirectory { name: name.clone() }
        }
        DiskOperation::Rename { from, to } => {
            DiskOperation::Rename { from: from.clone(), to: to.clone() }
        }
        DiskOperation::Remove { name } => DiskOperation::Remove { name: name.clone() },
        DiskOperation::Link { from, to } => {
            DiskOperation::Link { from: from.clone(), to: to.clone() }
        }
        DiskOperation::RemoveDirectory { name } => {
            DiskOperation::RemoveDirectory { name: name.clone() }
        }
        DiskOperation::Map { file, len } => DiskOperation::Map { file: *file, len: *len },
    }
}

/// The error number that Linux gives with an error of this kind.
fn code_of(kind: DiskErrorKind) -> i32 {
    match kind {
        DiskErrorKind::NotFound => 2,
        DiskErrorKind::PermissionDenied => 13,
        DiskErrorKind::NoSpace => 28,
        DiskErrorKind::ShortWrite => 0,
        DiskErrorKind::Io => 5,
    }
}
