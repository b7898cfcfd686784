//! Faults that a test plans ahead (requests that fail, writes that go astray, a full disk) and
//! damage that it does to content at rest.

use std::sync::Arc;

use wal::disk::{BLOCK_SIZE, DiskErrorKind, DiskOperation};

use super::SimulatedDisk;
use super::file::SECTOR_SIZE;

/// Which requests a planned failure counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OperationKind {
    /// Every request.
    Any,
    /// Making a directory.
    CreateDirectory,
    /// Listing a directory.
    ListDirectory,
    /// Opening a file, in any mode.
    Open,
    /// Closing a file, which closes it even if it fails.
    Close,
    /// Reading.
    Read,
    /// Writing, durable or not.
    Write,
    /// Syncing a file.
    Sync,
    /// Syncing a directory.
    SyncDirectory,
    /// Renaming.
    Rename,
    /// Removing.
    Remove,
    /// Giving a file a second name.
    Link,
    /// Removing a directory.
    RemoveDirectory,
    /// Mapping a file.
    Map,
}

impl OperationKind {
    pub(super) fn of(operation: &DiskOperation) -> Self {
        match operation {
            DiskOperation::CreateDirectory { .. } => Self::CreateDirectory,
            DiskOperation::ListDirectory { .. } => Self::ListDirectory,
            DiskOperation::Open { .. } => Self::Open,
            DiskOperation::Close { .. } => Self::Close,
            DiskOperation::Read { .. } => Self::Read,
            DiskOperation::Write { .. } => Self::Write,
            DiskOperation::Sync { .. } => Self::Sync,
            DiskOperation::SyncDirectory { .. } => Self::SyncDirectory,
            DiskOperation::Rename { .. } => Self::Rename,
            DiskOperation::Remove { .. } => Self::Remove,
            DiskOperation::Link { .. } => Self::Link,
            DiskOperation::RemoveDirectory { .. } => Self::RemoveDirectory,
            DiskOperation::Map { .. } => Self::Map,
        }
    }
}

/// What goes wrong with one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    Fail(DiskErrorKind),
    /// The write lands at this offset and reports success.
    Misdirect(u64),
    /// The write lands nowhere and reports success.
    Lose,
}

#[derive(Clone, Debug)]
struct PlannedFailure {
    kind: OperationKind,
    /// How many more requests of the kind until it strikes.
    until: u64,
    error: DiskErrorKind,
    sticky: bool,
}

/// What is planned to go wrong.
#[derive(Clone, Debug, Default)]
pub(super) struct Faults {
    failures: Vec<PlannedFailure>,
    astray: Option<Fault>,
}

impl Faults {
    /// Counts a request and says what goes wrong with it.
    pub(super) fn strike(&mut self, kind: OperationKind) -> Option<Fault> {
        let mut struck = None;
        self.failures.retain_mut(|failure| {
            if failure.kind != kind && failure.kind != OperationKind::Any {
                return true;
            }
            failure.until = failure.until.saturating_sub(1);
            let strikes = failure.until == 0;
            if strikes {
                struck = struck.or(Some(Fault::Fail(failure.error)));
            }
            !strikes || failure.sticky
        });
        match struck {
            None if kind == OperationKind::Write => self.astray.take(),
            struck => struck,
        }
    }
}

impl SimulatedDisk {
    /// Lets the `n`th request of `kind` from now on (the first is 1) fail, and all after it if
    /// `sticky`.
    ///
    /// A write that fails with `Io` may have landed in part, with `ShortWrite` a prefix of it has,
    /// and no later sync makes that durable. A failed sync leaves what it should have covered in
    /// doubt for ever, as kernels do. Everything else that fails has no effect.
    ///
    /// # Panics
    /// If `n` is 0.
    pub fn fail_nth(&mut self, n: u64, kind: OperationKind, error: DiskErrorKind, sticky: bool) {
        assert!(n > 0, "the first request is number 1");
        self.faults.failures.push(PlannedFailure { kind, until: n, error, sticky });
    }

    /// Takes back everything that was planned to go wrong.
    pub fn clear_faults(&mut self) {
        self.faults = Faults::default();
    }

    /// Lets the next write land at `offset` of its file instead, and report success.
    ///
    /// # Panics
    /// If `offset` is not a multiple of the block size.
    pub fn misdirect_next_write(&mut self, offset: u64) {
        assert_eq!(offset % BLOCK_SIZE as u64, 0, "a misdirected write lands on a block");
        self.faults.astray = Some(Fault::Misdirect(offset));
    }

    /// Lets the next write land nowhere and report success: its range keeps stale content.
    pub fn lose_next_write(&mut self) {
        self.faults.astray = Some(Fault::Lose);
    }

    /// Limits the sum of all file lengths; creations and extensions beyond it fail with `NoSpace`.
    pub fn set_capacity(&mut self, bytes: Option<u64>) {
        self.capacity = bytes;
    }

    /// Lets reads of the blocks that hold these bytes fail until they are written again.
    ///
    /// # Panics
    /// If there is no such file.
    pub fn fail_reads(&mut self, name: &str, offset: u64, len: u64) {
        Arc::make_mut(self.inode_named(name)).spoil(offset, len);
    }

    /// Changes a byte at rest.
    ///
    /// # Panics
    /// If there is no such byte.
    pub fn flip_byte(&mut self, name: &str, offset: u64, xor: u8) {
        Arc::make_mut(self.inode_named(name)).alter(offset, 1, |_, bytes| bytes[0] ^= xor);
    }

    /// Zeroes, at rest, the sector that holds the byte at `offset`.
    ///
    /// # Panics
    /// If there is no such byte.
    pub fn zero_sector(&mut self, name: &str, offset: u64) {
        let start = offset - offset % SECTOR_SIZE as u64;
        let inode = Arc::make_mut(self.inode_named(name));
        assert!(offset < inode.len(), "offset {offset} is past the end of {name}");
        let len = (inode.len() - start).min(SECTOR_SIZE as u64);
        inode.alter(start, usize::try_from(len).expect("at most a sector"), |_, bytes| {
            bytes.fill(0)
        });
    }

    /// Overwrites bytes at rest, for instance with stale ones read before.
    ///
    /// # Panics
    /// If the file is missing or too short.
    pub fn overwrite_at_rest(&mut self, name: &str, offset: u64, bytes: &[u8]) {
        Arc::make_mut(self.inode_named(name)).alter(offset, bytes.len(), |place, part| {
            part.copy_from_slice(&bytes[place..place + part.len()]);
        });
    }
}
