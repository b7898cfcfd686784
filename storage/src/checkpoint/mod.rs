//! Checkpoints: the index as it was at one LSN, in a file, so that recovery reads only the log
//! written since.
//!
//! A checkpoint is never the source of truth. Any damage refuses the whole file with a
//! [`CheckpointError`], and the segments are read instead. Each is a new file: written under a
//! temporary name, synced, renamed, directory synced; the manifest edit that publishes it belongs
//! to the engine.
//!
//! # The file
//!
//! Little-endian. Every part starts at and fills whole blocks of 4,096 bytes; what follows a part's
//! fields is zeros.
//!
//! | part | bytes | content |
//! |---|---|---|
//! | header | 96 + 48 s + 28 b | below |
//! | index chunks | 4,096 p | pages of the index in no order; chunks of 256 pages, the last may be shorter |
//! | crowded chunks | 28 per entry | in key order; 37,449 entries (1 MiB) each, the last may be shorter |
//! | trailer | 4 n + 8 | CRC of each of the n chunks, u32 n, trailer CRC |
//!
//! Header:
//!
//! | offset | size | field | meaning |
//! |---|---|---|---|
//! | 0 | 8 | magic | `KADRCKP` and a zero byte |
//! | 8 | 2 | format version | 1 |
//! | 10 | 2 | shard | |
//! | 12 | 2 | shard count | |
//! | 14 | 2 | base count | b, at most 16,384 |
//! | 16 | 16 | store | uuid |
//! | 32 | 8 | LSN | of the cut: every record up to it is in the index, none after it |
//! | 40 | 16 | version | the highest version of any record up to the cut |
//! | 56 | 8 | time | wall time of the cut, milliseconds since 1970 |
//! | 64 | 8 | page count | p |
//! | 72 | 8 | crowded count | entries |
//! | 80 | 4 | segment count | s |
//! | 84 | 4 | header CRC | of the header's blocks with this field 0 |
//! | 88 | 8 | length | bytes of the file |
//! | 96 | 48 s | segments | by number: id u64, frames end u64, first LSN u64, last LSN u64, tombstone bytes u64, number u16, flags u8, 5 zeros |
//! | 96 + 48 s | 28 b | bases | in key order, like crowded entries |
//!
//! First and last LSN are 0 if the segment has no record. Flags: 1: it had got its last record by
//! the cut; 2: it has a clear record. Bases are the values of touched keys whose only slot, a
//! crowded one, is the touch's.
//!
//! Crowded entry: key (20), slot word u64 (see [`crate::index::slot`]). A page is drawn in
//! [`crate::index::page`]. The trailer's CRC is of its blocks with the field 0 and stands behind n.
//!
//! Every CRC is CRC-32 that starts with the store's uuid, the LSN and the offset in the file of the
//! part or chunk, so that stale, foreign and misdirected blocks are refused.

mod format;
pub(crate) mod fuzz;
pub(crate) mod load;
#[cfg(test)]
mod tests;
pub(crate) mod write;

use wal::Lsn;
use wal::disk::{DiskError, FileName};
use wal::frame::FORMAT_VERSION;
use wal::record::{Key, Version};

use crate::index::page::PageError;
use crate::index::slot::{SegmentNumber, Slot};

/// Most bases that a checkpoint has room for.
pub(crate) const BASES_MAX: usize = 16 << 10;

const SUFFIX: &str = ".checkpoint";
const TEMPORARY_SUFFIX: &str = ".checkpoint.tmp";

/// Returns the name of the checkpoint of the cut at `lsn`.
pub(crate) fn file_name(directory: &FileName, lsn: Lsn) -> FileName {
    directory.join(&format!("{:016x}{SUFFIX}", lsn.0))
}

/// Returns the name of a checkpoint until it is complete.
pub(crate) fn temporary_name(directory: &FileName, lsn: Lsn) -> FileName {
    directory.join(&format!("{:016x}{TEMPORARY_SUFFIX}", lsn.0))
}

/// Reads the LSN from the name of a checkpoint within its directory.
pub(crate) fn parse_file_name(name: &str) -> Option<Lsn> {
    let digits = name.strip_suffix(SUFFIX)?;
    let lsn = u64::from_str_radix(digits, 16).ok()?;
    (format!("{lsn:016x}") == digits).then_some(Lsn(lsn))
}

/// Whether a file is a checkpoint that a crash left unfinished, to be removed.
pub(crate) fn is_unfinished(name: &str) -> bool {
    name.ends_with(TEMPORARY_SUFFIX)
}

/// Which checkpoint it is: of which shard, at which cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CheckpointId {
    /// The store's uuid.
    pub(crate) store: [u8; 16],
    /// The shard's index.
    pub(crate) shard: u16,
    /// Number of shards of the data directory.
    pub(crate) shard_count: u16,
    /// The cut.
    pub(crate) lsn: Lsn,
}

/// A segment that slots of the index refer to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SegmentSummary {
    /// What the slots call it.
    pub(crate) number: SegmentNumber,
    /// Its id, which no other segment ever has.
    pub(crate) id: u64,
    /// Where its last record's frame ends.
    pub(crate) end: u64,
    /// First and last record.
    pub(crate) lsns: Option<(Lsn, Lsn)>,
    /// Bytes of records that keep older ones from coming back.
    pub(crate) tombstone_bytes: u64,
    /// Whether it had got its last record by the cut.
    pub(crate) complete: bool,
    pub(crate) has_clear: bool,
}

/// What a checkpoint says besides the index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CheckpointFacts {
    /// Which one it is.
    pub(crate) id: CheckpointId,
    /// The highest version of any record up to the cut.
    pub(crate) version_max: Version,
    /// Wall time of the cut in milliseconds since 1970.
    pub(crate) wall_ms: u64,
    /// All there were at the cut; by number, ascending.
    pub(crate) segments: Vec<SegmentSummary>,
    /// Values of touched keys that are crowded; by key, ascending.
    pub(crate) bases: Vec<(Key, Slot)>,
}

/// Why a file is not used as a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CheckpointError {
    /// The disk failed.
    #[error("{action} the checkpoint: {source}")]
    Disk {
        /// At what.
        action: &'static str,
        /// What it said.
        source: DiskError,
    },
    /// The file has another length than it says, or than a checkpoint can have.
    #[error("checkpoint of {needed} bytes is {found} bytes long")]
    Length {
        /// Bytes by its own account.
        needed: u64,
        /// Bytes there are.
        found: u64,
    },
    /// The bytes do not start like a checkpoint.
    #[error("no checkpoint")]
    NotACheckpoint,
    /// A valid checkpoint of a format version this code does not know.
    #[error("checkpoint of format version {found}, this program knows {FORMAT_VERSION}")]
    Version {
        /// The version found.
        found: u16,
    },
    /// A checkpoint of another store, shard or cut than the one asked for.
    #[error("checkpoint of another store, shard or LSN")]
    Foreign,
    /// A checksum does not match.
    #[error("checkpoint checksum at byte {offset} is {found:08x}, expected {expected:08x}")]
    Checksum {
        /// Where the part or chunk starts.
        offset: u64,
        /// As stored.
        expected: u32,
        /// As computed.
        found: u32,
    },
    /// A field that cannot be, although the checksum matches.
    #[error("checkpoint field at byte {position} makes no sense")]
    Malformed {
        /// Where.
        position: u64,
    },
    /// The pages or crowded entries do not make an index.
    #[error(transparent)]
    Index(#[from] PageError),
}
