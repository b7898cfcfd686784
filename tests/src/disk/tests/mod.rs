//! Proves that the simulated disk loses what it may lose and keeps what it must keep.

use std::collections::BTreeSet;

use wal::procedure::Procedure;

use super::*;

mod faults;
mod misuse;
mod names;
mod power_loss;
mod procedures;

const LOG: FileId = FileId(1);

/// Issues requests one after the other, each completed before the next.
struct Core {
    disk: SimulatedDisk,
    next: u64,
}

impl Core {
    fn new(seed: u64) -> Self {
        Self { disk: SimulatedDisk::new(seed), next: 0 }
    }

    fn on(disk: SimulatedDisk) -> Self {
        Self { disk, next: 1_000 }
    }

    /// A disk with the durable file `log` of `blocks` zeroed blocks, open as [`LOG`].
    fn with_log(seed: u64, blocks: usize) -> Self {
        let mut core = Self::new(seed);
        core.disk.plant_file("log", &vec![0; blocks * BLOCK_SIZE]);
        core.open("log", LOG, OpenMode::ReadWrite);
        core
    }

    fn submit(&mut self, operation: DiskOperation) {
        self.next += 1;
        self.disk.submit(0, DiskRequest { id: RequestId(self.next), operation });
    }

    fn run(&mut self, operation: DiskOperation) -> DiskCompletion {
        assert_eq!(self.disk.in_flight(), 0, "the next completion shall be this request's");
        self.submit(operation);
        self.disk.complete_one().unwrap().1
    }

    fn done(&mut self, operation: DiskOperation) -> DiskOutput {
        self.run(operation).result.unwrap()
    }

    fn error(&mut self, operation: DiskOperation) -> DiskErrorKind {
        self.run(operation).result.unwrap_err().kind
    }

    fn open(&mut self, name: &str, file: FileId, mode: OpenMode) -> DiskOutput {
        self.done(DiskOperation::Open { file, name: FileName::new(name), mode })
    }

    fn read(&mut self, offset: u64, len: usize) -> DiskCompletion {
        self.run(DiskOperation::Read {
            file: LOG,
            offset,
            len,
            buffer: IoBuffer::with_capacity(len),
        })
    }

    fn images(&self, limit: usize) -> Vec<SimulatedDisk> {
        self.disk.crash_images(limit).collect()
    }
}

fn write(block: u64, fills: &[u8], durability: Durability) -> DiskOperation {
    let mut buffer = IoBuffer::zeroed(fills.len() * BLOCK_SIZE);
    for (chunk, fill) in buffer.as_mut_slice().chunks_mut(BLOCK_SIZE).zip(fills) {
        chunk.fill(*fill);
    }
    DiskOperation::Write { file: LOG, offset: block * BLOCK_SIZE as u64, buffer, durability }
}

fn cached(block: u64, fills: &[u8]) -> DiskOperation {
    write(block, fills, Durability::Cached)
}

fn durable(block: u64, fills: &[u8]) -> DiskOperation {
    write(block, fills, Durability::Durable)
}

fn sync() -> DiskOperation {
    DiskOperation::Sync { file: LOG }
}

fn sync_directory(name: &str) -> DiskOperation {
    DiskOperation::SyncDirectory { name: FileName::new(name) }
}

fn rename(from: &str, to: &str) -> DiskOperation {
    DiskOperation::Rename { from: FileName::new(from), to: FileName::new(to) }
}

/// First byte of each sector of a file.
fn sectors(disk: &SimulatedDisk, name: &str) -> Vec<u8> {
    disk.read_file(name).chunks(SECTOR_SIZE).map(|sector| sector[0]).collect()
}

fn names(disk: &SimulatedDisk) -> String {
    disk.files().into_iter().map(|(name, _)| name).collect::<Vec<_>>().join(" ")
}

/// What `view` makes of each of `count` power losses.
fn crashes<T: Ord>(
    disk: &SimulatedDisk,
    count: u64,
    view: impl Fn(&SimulatedDisk) -> T,
) -> BTreeSet<T> {
    (0..count).map(|seed| view(&disk.crash(&mut Rng::with_seed(seed)))).collect()
}

#[test]
fn durable_writes_that_do_more_than_overwrite_are_counted() {
    let mut core = Core::new(3);
    core.open("log", LOG, OpenMode::Create);
    core.done(durable(0, &[1]));
    assert_eq!(core.disk.durable_file("log"), None, "the name is not durable");
    assert_eq!(core.disk.statistics().expensive_durable_writes, 1, "extends");
    core.done(cached(2, &[0]));
    core.done(durable(2, &[2]));
    assert_eq!(core.disk.statistics().expensive_durable_writes, 2, "never synced");
    core.done(sync());
    core.done(durable(2, &[3]));
    assert_eq!(core.disk.statistics().expensive_durable_writes, 2, "overwrites");
    core.done(durable(1, &[4]));
    assert_eq!(core.disk.statistics().expensive_durable_writes, 3, "fills a hole");
    core.done(sync_directory(""));
    assert_eq!(core.disk.durable_file("log").unwrap().len(), 3 * BLOCK_SIZE);
}

#[test]
fn read_ends_with_the_file_and_returns_the_buffer() {
    let mut core = Core::new(25);
    core.disk.plant_file("log", &[3; 5000]);
    assert_eq!(core.open("log", LOG, OpenMode::Read), DiskOutput::Opened { len: 5000 });
    assert_eq!(core.read(0, 4 * BLOCK_SIZE).buffer.unwrap().as_slice(), [3; 5000]);
    assert_eq!(core.read(BLOCK_SIZE as u64, BLOCK_SIZE).buffer.unwrap().len(), 904);
    assert_eq!(core.read(8 * BLOCK_SIZE as u64, BLOCK_SIZE).buffer.unwrap().len(), 0);
}

#[test]
fn mapping_is_a_copy_and_an_unreadable_block_fails_it() {
    let mut core = Core::with_log(1, 2);
    core.done(durable(0, &[1, 2]));
    let map = |blocks: usize| DiskOperation::Map { file: LOG, len: blocks * BLOCK_SIZE };
    let completion = core.run(map(2));
    assert_eq!(completion.result, Ok(DiskOutput::Done));
    let mut mapped = completion.buffer.unwrap();
    assert_eq!((mapped.as_slice()[0], mapped.as_slice()[BLOCK_SIZE]), (1, 2));
    mapped.as_mut_slice().fill(9);
    assert_eq!(core.disk.read_file("log")[0], 1);
    assert_eq!(core.error(map(3)), DiskErrorKind::Io);
    core.disk.fail_reads("log", BLOCK_SIZE as u64, 1);
    let completion = core.run(map(2));
    assert!(completion.result.is_err() && completion.buffer.is_none());
}
