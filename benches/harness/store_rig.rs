//! [`StoreRig`]: one store on one driver, driven as a shard's thread drives it.
//!
//! The only place where benches call the store. What they measure goes through the same calls in
//! the same order as in the node's event loop; doors and connections are left out.

use crate::driver::{AnyIo, Driver};
use crate::raw_writes::FrameCounts;
use crate::workload::{Values, key};
use bytes::Bytes;
use kadring::event_loop::run_procedure;
use kadring::io::{Completion, DiskOwner, Io, Monotonic, Request};
use std::error::Error;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use storage::{
    CheckpointOptions, Event, Get, KeyRef, LogClock, Put, RecoverySources, SnapshotFile, Store,
    StoreOptions, StoreStatus, WriteError,
};
use wal::Lsn;
use wal::disk::{DiskOperation, Durability, FileName, RequestId};
use wal::group_commit::GroupCommitLimits;
use wal::record::{Version, own_half};
use wal::segment::Identity;

const STORE: DiskOwner = DiskOwner(0);
const IDENTITY: Identity = Identity { store: [7; 16], node_id: [7; 20], shard: 0, shard_count: 1 };
/// Where the store is, below the data directory.
const DIRECTORY: &str = "shard-00";

/// Bytes of keys and values stored between two turns of [`StoreRig::load`].
const LOADED_PER_TURN: u64 = 256 << 10;
/// A store that has used a file again is as it will be from now on.
const RECYCLED_MIN: u64 = 1;

/// How a store is opened.
#[derive(Clone, Copy, Debug)]
pub struct RigOptions {
    /// Budget of the read cache in bytes.
    pub cache_bytes: usize,
    /// Largest segment in bytes.
    pub segment_bytes: u64,
    /// Whether to pass the page cache by.
    pub direct: bool,
    /// When checkpoints are written, and how they are read.
    pub checkpoints: CheckpointOptions,
    /// Whether segments end in footers, and are read by them.
    pub footers: bool,
}

impl Default for RigOptions {
    fn default() -> Self {
        Self {
            cache_bytes: 64 << 20,
            segment_bytes: 64 << 20,
            direct: true,
            checkpoints: CheckpointOptions::default(),
            footers: true,
        }
    }
}

/// How long opening took, and what was found.
#[derive(Clone, Debug)]
pub struct OpenTimes {
    /// Until the driver was ready.
    pub driver: Duration,
    /// From then on, until the store was.
    pub recovery: Duration,
    /// Live keys found.
    pub keys: u64,
    /// Records read.
    pub records: u64,
    /// Segments found.
    pub segments: u64,
    /// What recovery went by.
    pub sources: RecoverySources,
}

/// Figures of a store.
#[derive(Clone, Copy, Debug)]
pub struct RigStatus {
    /// Live keys.
    pub keys: u64,
    /// Bytes of all segments, the active one and the spare included.
    pub segment_bytes: u64,
    /// Bytes of frames written since the store was opened.
    pub frame_bytes: u64,
}

/// How a turn waits for the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// For one completion at least.
    Completion,
    /// Not at all: takes what has come.
    No,
}

/// The answer to a get.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Got {
    /// No such key.
    Missing,
    /// From memory.
    Found(Bytes),
    /// [`StoreRig::take_reads`] will have it under this number.
    Pending(u64),
}

/// A read that has ended: its number, and the value if there was such a key.
pub type ReadEnd = (u64, Option<Bytes>);

/// A store on a driver.
#[derive(Debug)]
pub struct StoreRig {
    io: AnyIo,
    store: Store,
    clock: LogClock,
    version: u128,
    in_flight: usize,
    done: Vec<Completion>,
    reads: Vec<ReadEnd>,
    snapshot: Option<Vec<SnapshotFile>>,
    /// Durable writes under way: few, so a list will do.
    frames_under_way: Vec<RequestId>,
    /// How many they were, whenever one was sent, summed up.
    frame_depths: u64,
}

impl StoreRig {
    /// Opens the store below `path`, making it if it is not there.
    ///
    /// # Errors
    /// The driver's or the store's own.
    pub fn open(
        driver: Driver,
        path: &Path,
        options: RigOptions,
    ) -> Result<(Self, OpenTimes), Box<dyn Error>> {
        let started = Instant::now();
        let mut io = driver.open(path, options.direct)?;
        let driver_took = started.elapsed();
        let store_options = StoreOptions {
            directory: FileName::new(DIRECTORY),
            identity: IDENTITY,
            must_exist: false,
            segment_bytes: options.segment_bytes,
            cache_bytes: options.cache_bytes,
            limits: storage::StoreLimits {
                overwriter_bytes_max: storage::StoreLimits::OVERWRITER_BYTES,
                live_segments_min: storage::StoreLimits::LIVE_SEGMENTS_MIN,
                ..storage::StoreLimits::default()
            },
            log: GroupCommitLimits::default(),
            buffers: io.buffers(),
            checkpoints: options.checkpoints,
            footers: options.footers,
        };
        let (monotonic, wall) = io.now();
        let (opened, _) = run_procedure(&mut io, STORE, storage::open(store_options, wall.0))?;
        let opened = opened?;
        let times = OpenTimes {
            driver: driver_took,
            recovery: started.elapsed() - driver_took,
            keys: opened.report.keys,
            records: opened.report.records,
            segments: opened.report.segments,
            sources: opened.report.sources,
        };
        let counter = u128::from_be_bytes(opened.store.version_max().0) >> 64;
        let version = counter << 64 | u128::from(u64::from_be_bytes(own_half(&IDENTITY.store)));
        let mut rig = Self {
            io,
            store: opened.store,
            clock: LogClock::new(opened.log_ms, wall.0, monotonic.0),
            version,
            in_flight: 0,
            done: Vec::new(),
            reads: Vec::new(),
            snapshot: None,
            frames_under_way: Vec::new(),
            frame_depths: 0,
        };
        rig.read_clock();
        Ok((rig, times))
    }

    /// Stores a value; `None` if the store is busy and wants a turn first.
    ///
    /// # Panics
    /// If the disk is full or broken.
    pub fn put(&mut self, index: u64, value: &[u8]) -> Option<Lsn> {
        let (id, user_key) = key(index);
        // The second half is the store's own, as a node's.
        self.version += 1 << 64;
        let put = Put {
            key: KeyRef::hashed(id, &user_key),
            version: Version(self.version.to_be_bytes()),
            expiry_ms: 0,
            value,
        };
        match self.store.put(&put) {
            Ok(lsn) => Some(lsn),
            Err(WriteError::Busy) => None,
            Err(error) => panic!("{error}"),
        }
    }

    /// Asks for a value.
    ///
    /// # Panics
    /// If the store has lost it.
    pub fn get(&mut self, index: u64) -> Got {
        let (id, user_key) = key(index);
        match self.store.get(&KeyRef::hashed(id, &user_key)) {
            Ok(Get::Missing) => Got::Missing,
            Ok(Get::Found(value)) => Got::Found(value.value),
            Ok(Get::Pending(read)) => Got::Pending(read.0),
            Err(error) => panic!("{error}"),
        }
    }

    /// Ends a turn and begins the next: sends what is to be sent, takes what has come.
    ///
    /// # Panics
    /// If the driver or the disk fails.
    pub fn turn(&mut self, wait: Wait) {
        self.store.end_turn();
        self.submit();
        let deadline = match wait {
            Wait::No => Some(Monotonic(0)),
            // Nothing would come: the next turn is wanted by the clock alone.
            Wait::Completion if self.in_flight == 0 => {
                Some(self.store.deadline_ns().map_or(Monotonic(0), Monotonic))
            }
            Wait::Completion => self.store.deadline_ns().map(Monotonic),
        };
        let mut done = std::mem::take(&mut self.done);
        self.io.wait(deadline, &mut done).expect("the driver works");
        self.read_clock();
        for completion in done.drain(..) {
            self.in_flight -= 1;
            match completion {
                Completion::Disk(_, completion) => {
                    self.frames_under_way.retain(|id| *id != completion.id);
                    self.store.handle_disk(completion);
                }
                other => unreachable!("{other:?} without sockets or signals"),
            }
        }
        self.done = done;
        self.take_events();
    }

    fn submit(&mut self) {
        while let Some(request) = self.store.poll_request() {
            self.in_flight += 1;
            if let DiskOperation::Write { durability: Durability::Durable, .. } = request.operation
            {
                self.frames_under_way.push(request.id);
                self.frame_depths += self.frames_under_way.len() as u64;
            }
            self.io.submit(Request::Disk(STORE, request));
        }
    }

    fn take_events(&mut self) {
        while let Some(event) = self.store.poll_event() {
            match event {
                Event::Read { id, result } => {
                    let found = result.expect("the disk returns what was written");
                    self.reads.push((id.0, found.map(|(_, value)| value.value)));
                }
                Event::Snapshotted { result } => {
                    self.snapshot = Some(result.expect("the disk takes a snapshot"));
                }
                Event::Failed(error) => panic!("a write has failed: {error}"),
                Event::Damaged { file, offset, .. } | Event::Flaw { file, offset, .. } => {
                    panic!("{file} is damaged at {offset}")
                }
                _ => {}
            }
        }
    }

    fn read_clock(&mut self) {
        let (monotonic, wall) = self.io.now();
        self.store.set_now(self.clock.read(wall.0, monotonic.0).now);
    }

    /// Stores the values of a range of keys as fast as it goes, durable or not.
    pub fn load(&mut self, keys: Range<u64>, values: &mut Values) {
        let per_turn = (LOADED_PER_TURN / values.user_bytes()).max(1);
        for index in keys {
            while self.put(index, values.of(index)).is_none() {
                self.turn(Wait::Completion);
            }
            if index % per_turn == 0 {
                self.turn(Wait::No);
            }
        }
    }

    /// The reads that have ended.
    pub fn take_reads(&mut self) -> std::vec::Drain<'_, ReadEnd> {
        self.reads.drain(..)
    }

    /// Everything up to here is durable.
    #[must_use]
    pub fn durable_lsn(&self) -> Lsn {
        self.store.durable_lsn()
    }

    /// Turns until everything written is durable.
    pub fn settle(&mut self) {
        while self.store.durable_lsn() < self.store.last_lsn() {
            self.turn(Wait::Completion);
        }
    }

    /// Turns until everything is durable and the disk has nothing left to do for the store.
    pub fn rest(&mut self) {
        self.settle();
        while self.in_flight > 0 || !self.store.is_quiet() {
            self.turn(Wait::Completion);
        }
    }

    /// Turns until nothing is under way and nothing is due: compaction, too, has done what it wants
    /// to.
    pub fn tidy(&mut self) {
        loop {
            self.rest();
            let now = self.io.now().0;
            if self.store.deadline_ns().is_none_or(|deadline| deadline > now.0) {
                return;
            }
            self.turn(Wait::Completion);
        }
    }

    /// Ends in order, as a node does that is told to stop.
    pub fn close(mut self) {
        self.settle();
        self.store.seal();
        self.rest();
    }

    /// Where the store's files are, given the data directory.
    #[must_use]
    pub fn directory_in(path: &Path) -> PathBuf {
        path.join(DIRECTORY)
    }

    /// The main figures of the store.
    #[must_use]
    pub fn status(&self) -> RigStatus {
        let status = self.store.status();
        RigStatus {
            keys: status.keys,
            segment_bytes: status.segment_bytes,
            frame_bytes: status.log.frame_bytes,
        }
    }

    /// All figures of the store.
    #[must_use]
    pub fn store_status(&self) -> StoreStatus {
        self.store.status()
    }

    /// Whether its buffers are registered with a ring.
    #[must_use]
    pub fn has_registered_buffers(&self) -> bool {
        self.io.buffer_statistics().registered
    }

    /// What the log has written so far.
    #[must_use]
    pub fn frames(&self) -> FrameCounts {
        let log = self.store.status().log;
        FrameCounts {
            frames: log.frames,
            frame_bytes: log.frame_bytes,
            records: log.records - log.copies,
            depths: self.frame_depths,
        }
    }

    /// Overwrites `keys` keys until the files of freed segments are used again, as in a store that
    /// is not new: from then on no zeros are written ahead.
    ///
    /// # Panics
    /// If that does not come to pass before `bytes_max` bytes are written.
    pub fn age(&mut self, keys: u64, values: &mut Values, bytes_max: u64) {
        while self.store.status().compaction.segments_recycled < RECYCLED_MIN {
            assert!(self.frames().frame_bytes < bytes_max, "a store of {keys} keys recycles");
            self.load(0..keys, values);
        }
        self.rest();
    }

    /// Begins a snapshot into that directory below the data directory, whose parent exists.
    pub fn begin_snapshot(&mut self, into: &str) {
        self.store.snapshot(FileName::new(into));
    }

    /// The files of the snapshot that has ended since the last call.
    pub fn take_snapshot(&mut self) -> Option<Vec<SnapshotFile>> {
        self.snapshot.take()
    }
}
