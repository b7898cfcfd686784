//! Faults that a test plans ahead (requests that fail, writes that go astray, a full disk) and
//! damage that it does to content at rest.

use std::sync::Arc;

use wal::disk::{BLOCK_SIZE, DiskError, DiskErrorKind, DiskOperation};

use super::file::{Block, SECTOR_SIZE};
use super::names::InodeId;
use super::{SimulatedDisk, code_of};
use crate::tally::{Occurrence, Tally};

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
    /// The kind of an operation.
    #[must_use]
    pub fn of(operation: &DiskOperation) -> Self {
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

impl OperationKind {
    /// Whether the error has a meaning for such a request.
    fn can_end_with(self, error: DiskErrorKind) -> bool {
        match error {
            DiskErrorKind::ShortWrite => self == Self::Write,
            DiskErrorKind::NoSpace => {
                !matches!(self, Self::Read | Self::Close | Self::ListDirectory | Self::Remove)
            }
            _ => true,
        }
    }
}

/// What goes wrong with one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    Fail(DiskError),
    /// The write lands at this offset and reports success.
    Misdirect(u64),
    /// The write lands nowhere and reports success.
    Lose,
}

/// Durable writes that are remembered for damage at rest.
pub(super) const PAST_WRITES_MAX: usize = 64;

/// A durable write and what its range held before.
#[derive(Clone, Debug)]
pub(super) struct PastWrite {
    pub(super) inode: InodeId,
    /// Its first block.
    pub(super) first: u64,
    pub(super) old: Vec<Block>,
}

/// Where a durable write landed; valid until the next request completes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WrittenRange {
    index: usize,
    /// The file.
    pub name: String,
    /// Where, in bytes.
    pub offset: u64,
    /// How many bytes.
    pub len: usize,
}

#[derive(Clone, Debug)]
struct PlannedFailure {
    kind: OperationKind,
    /// How many more requests of the kind until it strikes.
    until: u64,
    error: DiskError,
    sticky: bool,
    has_struck: bool,
}

fn occurrence_of(error: DiskError) -> Occurrence {
    match error.kind {
        DiskErrorKind::NoSpace if error.code == code_of(DiskErrorKind::NoSpace) => {
            Occurrence::NoSpaceError
        }
        DiskErrorKind::NoSpace => Occurrence::QuotaError,
        DiskErrorKind::ShortWrite => Occurrence::ShortWrite,
        _ => Occurrence::InputOutputError,
    }
}

/// What is planned to go wrong.
#[derive(Clone, Debug, Default)]
pub(super) struct Faults {
    failures: Vec<PlannedFailure>,
    astray: Option<Fault>,
}

impl Faults {
    /// Counts a request and says what goes wrong with it.
    pub(super) fn strike(&mut self, kind: OperationKind, tally: &mut Tally) -> Option<Fault> {
        let mut struck = None;
        self.failures.retain_mut(|failure| {
            if failure.kind != kind && failure.kind != OperationKind::Any {
                return true;
            }
            failure.until = failure.until.saturating_sub(1);
            let strikes = failure.until == 0;
            if strikes && kind.can_end_with(failure.error.kind) {
                struck = struck.or(Some(Fault::Fail(failure.error)));
                tally.note(occurrence_of(failure.error));
                if std::mem::replace(&mut failure.has_struck, true) {
                    tally.note(Occurrence::StickyError);
                }
            }
            !strikes || failure.sticky
        });
        if struck.is_none() && kind == OperationKind::Write {
            struck = self.astray.take();
            match struck {
                Some(Fault::Misdirect(_)) => tally.note(Occurrence::MisdirectedWrite),
                Some(Fault::Lose) => tally.note(Occurrence::VanishedWrite),
                Some(Fault::Fail(_)) | None => {}
            }
        }
        struck
    }
}

impl SimulatedDisk {
    /// Lets the `n`th request of `kind` from now on (the first is 1) fail, and all after it if
    /// `sticky`.
    ///
    /// A write that fails with `Io` may have landed in part, with `ShortWrite` a prefix of it has,
    /// and no later sync makes that durable. A failed sync leaves what it should have covered in
    /// doubt for ever, as kernels do. Everything else that fails has no effect. Where the error has
    /// no meaning (a short write, of a sync) the request goes on unharmed.
    ///
    /// # Panics
    /// If `n` is 0.
    pub fn fail_nth(&mut self, n: u64, kind: OperationKind, error: DiskErrorKind, sticky: bool) {
        self.fail_nth_with(n, kind, DiskError { kind: error, code: code_of(error) }, sticky);
    }

    /// Like [`SimulatedDisk::fail_nth`], with the operating system's error number.
    ///
    /// # Panics
    /// If `n` is 0.
    pub fn fail_nth_with(&mut self, n: u64, kind: OperationKind, error: DiskError, sticky: bool) {
        assert!(n > 0, "the first request is number 1");
        let failure = PlannedFailure { kind, until: n, error, sticky, has_struck: false };
        self.faults.failures.push(failure);
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

    /// The limit of all file lengths, if there is one.
    #[must_use]
    pub fn capacity(&self) -> Option<u64> {
        self.capacity
    }

    /// Lets reads of the blocks that hold these bytes fail until they are written again.
    ///
    /// # Panics
    /// If there is no such file.
    pub fn fail_reads(&mut self, name: &str, offset: u64, len: u64) {
        self.tally.note(Occurrence::UnreadableBlock);
        Arc::make_mut(self.inode_named(name)).spoil(offset, len);
    }

    /// The newest durable writes into files that still have a name, oldest first.
    #[must_use]
    pub fn past_writes(&self) -> Vec<WrittenRange> {
        let named: Vec<_> = self.names.files().collect();
        let range = |(index, write): (usize, &PastWrite)| {
            let (name, _) = named.iter().find(|(_, inode)| *inode == write.inode)?;
            Some(WrittenRange {
                index,
                name: name.as_str().to_owned(),
                offset: write.first * BLOCK_SIZE as u64,
                len: write.old.len() * BLOCK_SIZE,
            })
        };
        self.past_writes.iter().enumerate().filter_map(range).collect()
    }

    /// Makes a past write look as if it had gone astray: its range holds what it held before, and
    /// `victim`, a file and a block's offset there, holds what was written (as far as that file
    /// goes). Without a victim the write went nowhere.
    ///
    /// # Panics
    /// If the range is not one of [`SimulatedDisk::past_writes`], or there is no such file.
    pub fn misdirect_at_rest(&mut self, written: &WrittenRange, victim: Option<(&str, u64)>) {
        let start = usize::try_from(written.offset).expect("a simulated file fits in memory");
        let bytes = self.read_file(&written.name)[start..start + written.len].to_vec();
        let old = self.past_writes[written.index].old.clone();
        let old: Vec<u8> = old.iter().flat_map(|block| *block.as_slice()).collect();
        self.overwrite_at_rest(&written.name, written.offset, &old);
        self.tally.note(match victim {
            Some(_) => Occurrence::MisdirectedWrite,
            None => Occurrence::VanishedWrite,
        });
        if let Some((name, offset)) = victim {
            let room = self.inode_named(name).len().saturating_sub(offset);
            let len = bytes.len().min(usize::try_from(room).expect("it fits in memory"));
            self.overwrite_at_rest(name, offset, &bytes[..len]);
        }
    }

    /// Changes a byte at rest.
    ///
    /// # Panics
    /// If there is no such byte.
    pub fn flip_byte(&mut self, name: &str, offset: u64, xor: u8) {
        self.tally.note(Occurrence::FlippedBit);
        Arc::make_mut(self.inode_named(name)).alter(offset, 1, |_, bytes| bytes[0] ^= xor);
    }

    /// Zeroes, at rest, the sector that holds the byte at `offset`.
    ///
    /// # Panics
    /// If there is no such byte.
    pub fn zero_sector(&mut self, name: &str, offset: u64) {
        let start = offset - offset % SECTOR_SIZE as u64;
        self.tally.note(Occurrence::ZeroedSector);
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
