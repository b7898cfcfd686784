//! What can go wrong, one enum per operation.

use wal::disk::DiskError;

/// Why a write was not accepted. The store has not changed then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WriteError {
    /// The log cannot take it at this moment; try again after [`crate::Event::Writable`].
    #[error("the log is catching up")]
    Busy,
    /// The disk is full; deletes and writing resume by themselves when there is space.
    #[error("no space left for the data directory")]
    DiskFull,
    /// A write of the log has failed; the shard only reads until the node is restarted.
    #[error("a disk write has failed, the shard is read-only: {0}")]
    ReadOnly(#[source] DiskError),
    /// No segment could be prepared for what is to be written; that is tried again each second,
    /// and [`crate::Event::Writable`] tells of it.
    #[error("no segment can be prepared at the moment: {0}")]
    NoSegment(#[source] DiskError),
    /// Another user key has the same key id (a SHA-1 collision).
    #[error("another key has the same id")]
    KeyConflict,
    /// The key's old state must be known and cannot be read.
    #[error("the old value cannot be read: {0}")]
    Unreadable(#[source] ReadError),
}

/// Why a read has no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// The record's checksums do not match.
    #[error("the record is damaged on disk")]
    Damaged,
    /// The disk could not read the record.
    #[error("the record cannot be read: {0}")]
    Disk(#[source] DiskError),
    /// The key is unknown, and records of unknown keys were lost.
    #[error("the key may have been lost: acknowledged records of this shard are damaged")]
    Suspect,
}

/// Why a store could not be opened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// The data was written by a newer version of the program.
    #[error("{file} is of format version {found}, this program knows {known}")]
    NewerFormat {
        /// The file that says so.
        file: String,
        /// Its version.
        found: u16,
        /// The newest version this program knows.
        known: u16,
    },
    /// The directory belongs to another store or shard.
    #[error("{file} belongs to another store or shard")]
    WrongIdentity {
        /// The file that says so.
        file: String,
    },
    /// The disk refused something that opening cannot do without.
    #[error("{action} {file}: {source}")]
    Disk {
        /// What was tried.
        action: &'static str,
        /// On which file or directory.
        file: String,
        /// Why it failed.
        source: DiskError,
    },
}
