//! Segment files: their names, their first block, their sizes, and how a new one is prepared.
//!
//! A segment is a file of fixed length. Its first block names it; frames follow from the second
//! block on; what follows the last frame is zeros, up to the footer if there is one. A new segment
//! is written full of zeros and synced before it is used, because only overwrites of
//! already-written blocks are cheap to make durable. Its id is never used again.
//!
//! A file that is written through but part of no log is *shelved*, under a name of its own: one
//! made for that ([`prepare_shelved`]) or that of a segment no longer needed ([`shelve`]).
//! It becomes a segment without taking space ([`recycle`]). Its first block says whether its space
//! is reused: what follows the last frame is then of an earlier life and means nothing. All
//! checksums of frames, records and footers are seeded with the segment's id, so nothing old
//! validates.
//!
//! First block (little-endian):
//!
//! | offset | size | field | meaning |
//! |---|---|---|---|
//! | 0 | 8 | magic | `KADRSEG` and a zero byte |
//! | 8 | 2 | format version | 1 |
//! | 10 | 2 | shard | index of the shard the segment belongs to |
//! | 12 | 2 | shard count | of the data directory |
//! | 14 | 2 | space | 0 zeroed: what no frame was written to is zeros; 1 reused: it may be anything |
//! | 16 | 16 | store | the store's uuid |
//! | 32 | 20 | node id | |
//! | 52 | 4 | reserved | 0 |
//! | 56 | 8 | segment | the segment's id |
//! | 64 | 8 | length | bytes of the file |
//! | 72 | 4 | CRC | CRC-32 of bytes 0 to 71 |
//! | 76 | | zeros | to the end of the block |

use crate::checksum;
use crate::disk::{
    BLOCK_SIZE, DiskError, DiskErrorKind, DiskOperation, Durability, FileId, FileName, IoBuffer,
    OpenMode,
};
use crate::frame::FORMAT_VERSION;
use crate::procedure::DiskPort;

/// Smallest segment in bytes; a store's first one has this size.
pub const SEGMENT_BYTES_MIN: u64 = 4 << 20;
/// Largest segment in bytes.
pub const SEGMENT_BYTES_MAX: u64 = 256 << 20;
/// Where the first frame starts.
pub const SEGMENT_HEADER_LEN: u64 = BLOCK_SIZE as u64;

const MAGIC: [u8; 8] = *b"KADRSEG\0";
const FIELDS_LEN: usize = SegmentHeader::LEN;
const SUFFIX: &str = ".segment";
const TEMPORARY_SUFFIX: &str = ".segment.tmp";
const SHELVED_SUFFIX: &str = ".segment.shelved";
/// Zeros are written in pieces of this size, two at a time.
const ZERO_PIECE_LEN: usize = 1 << 20;

/// Which store, node and shard a file belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The store's uuid, drawn when the data directory was made.
    pub store: [u8; 16],
    /// The node's id.
    pub node_id: [u8; 20],
    /// The shard's index.
    pub shard: u16,
    /// Number of shards of the data directory.
    pub shard_count: u16,
}

/// The first block of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentHeader {
    /// Whose segment it is.
    pub identity: Identity,
    /// The segment's id.
    pub id: u64,
    /// Bytes of the file.
    pub len: u64,
}

/// What a segment's space held before frames were written to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Space {
    /// Zeros: other bytes after the last frame are worth a report.
    Zeroed,
    /// What an earlier segment in the same file left there.
    Reused,
}

impl Space {
    /// Reads it from a segment's first block, which [`SegmentHeader::decode`] has verified.
    #[must_use]
    pub fn of(block: &[u8]) -> Self {
        if block.get(14) == Some(&1) { Self::Reused } else { Self::Zeroed }
    }

    fn code(self) -> u8 {
        match self {
            Self::Zeroed => 0,
            Self::Reused => 1,
        }
    }
}

/// Why a block is not the first of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SegmentHeaderError {
    /// The block does not start like a segment.
    #[error("no segment header")]
    NotASegment,
    /// The checksum does not match.
    #[error("segment header checksum {found:08x}, expected {expected:08x}")]
    Checksum {
        /// As stored.
        expected: u32,
        /// As computed.
        found: u32,
    },
    /// A valid header of a format version this code does not know.
    #[error("segment of format version {found}, this program knows {FORMAT_VERSION}")]
    Version {
        /// The version found.
        found: u16,
    },
}

impl SegmentHeader {
    /// Bytes of the header; zeros follow.
    pub const LEN: usize = 76;

    /// Encodes the first block of a segment of zeros.
    #[must_use]
    pub fn encode(&self) -> IoBuffer {
        self.encode_over(Space::Zeroed)
    }

    /// Encodes the first block of a segment whose space is as `space` says.
    #[must_use]
    pub fn encode_over(&self, space: Space) -> IoBuffer {
        let mut fields = [0u8; FIELDS_LEN];
        fields[0..8].copy_from_slice(&MAGIC);
        fields[8..10].copy_from_slice(&u16::from(FORMAT_VERSION).to_le_bytes());
        fields[10..12].copy_from_slice(&self.identity.shard.to_le_bytes());
        fields[12..14].copy_from_slice(&self.identity.shard_count.to_le_bytes());
        fields[14] = space.code();
        fields[16..32].copy_from_slice(&self.identity.store);
        fields[32..52].copy_from_slice(&self.identity.node_id);
        fields[56..64].copy_from_slice(&self.id.to_le_bytes());
        fields[64..72].copy_from_slice(&self.len.to_le_bytes());
        let crc = checksum::plain(&fields[..72]);
        fields[72..76].copy_from_slice(&crc.to_le_bytes());
        let mut block = IoBuffer::zeroed(BLOCK_SIZE);
        block.as_mut_slice()[..FIELDS_LEN].copy_from_slice(&fields);
        block
    }

    /// Decodes and verifies a first block.
    ///
    /// # Errors
    /// [`SegmentHeaderError`].
    pub fn decode(block: &[u8]) -> Result<Self, SegmentHeaderError> {
        let fields: &[u8; FIELDS_LEN] =
            block.first_chunk().ok_or(SegmentHeaderError::NotASegment)?;
        if fields[0..8] != MAGIC {
            return Err(SegmentHeaderError::NotASegment);
        }
        let expected = u32::from_le_bytes(field(fields, 72));
        let found = checksum::plain(&fields[..72]);
        if expected != found {
            return Err(SegmentHeaderError::Checksum { expected, found });
        }
        let version = u16::from_le_bytes(field(fields, 8));
        if version != u16::from(FORMAT_VERSION) {
            return Err(SegmentHeaderError::Version { found: version });
        }
        Ok(Self {
            identity: Identity {
                store: field(fields, 16),
                node_id: field(fields, 32),
                shard: u16::from_le_bytes(field(fields, 10)),
                shard_count: u16::from_le_bytes(field(fields, 12)),
            },
            id: u64::from_le_bytes(field(fields, 56)),
            len: u64::from_le_bytes(field(fields, 64)),
        })
    }
}

fn field<const N: usize>(bytes: &[u8; FIELDS_LEN], offset: usize) -> [u8; N] {
    *bytes[offset..].first_chunk().expect("fields lie within the header")
}

/// Returns the file name of a segment in its shard's directory.
#[must_use]
pub fn file_name(directory: &FileName, id: u64) -> FileName {
    directory.join(&format!("{id:016x}{SUFFIX}"))
}

/// Reads a segment's id from its file name within the directory.
#[must_use]
pub fn parse_file_name(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(SUFFIX)?;
    let canonical = digits.len() == 16 && !digits.contains(|c: char| c.is_ascii_uppercase());
    canonical.then(|| u64::from_str_radix(digits, 16).ok()).flatten()
}

/// Reads from its file name within the directory the id under which a file was shelved.
#[must_use]
pub fn parse_shelved_name(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(SHELVED_SUFFIX)?;
    parse_file_name(&format!("{digits}{SUFFIX}"))
}

/// Whether a file is a segment that was never finished.
#[must_use]
pub fn is_unfinished(name: &str) -> bool {
    name.ends_with(TEMPORARY_SUFFIX)
}

/// Chooses the length of the next segment: twice the last one, up to `bytes_max`, and large enough
/// for a frame of `frame_len` bytes.
///
/// # Panics
/// If no segment can hold such a frame; values are limited far below.
#[must_use]
pub fn next_len(last: u64, bytes_max: u64, frame_len: u64) -> u64 {
    let grown = last.saturating_mul(2).clamp(SEGMENT_BYTES_MIN.min(bytes_max), bytes_max);
    let needed = (frame_len + SEGMENT_HEADER_LEN).next_power_of_two();
    let len = grown.max(needed);
    assert!(len <= SEGMENT_BYTES_MAX, "a frame of {frame_len} bytes fits no segment");
    len
}

/// Makes a segment under a temporary name, full of zeros, syncs it, gives it its name and syncs the
/// directory. The file stays open as `file`. The caller then lists it in the manifest.
///
/// # Errors
/// The disk's; what was made so far is removed where that is possible.
pub async fn prepare(
    port: DiskPort,
    directory: FileName,
    header: SegmentHeader,
    file: FileId,
) -> Result<(), DiskError> {
    let name = file_name(&directory, header.id);
    make(port, directory, header, file, name).await
}

/// As [`prepare`], but shelves the file: it is no segment yet, and is listed nowhere.
///
/// # Errors
/// The disk's; what was made so far is removed where that is possible.
pub async fn prepare_shelved(
    port: DiskPort,
    directory: FileName,
    header: SegmentHeader,
    file: FileId,
) -> Result<(), DiskError> {
    let name = shelved_name(&directory, header.id);
    make(port, directory, header, file, name).await
}

async fn make(
    port: DiskPort,
    directory: FileName,
    header: SegmentHeader,
    file: FileId,
    name: FileName,
) -> Result<(), DiskError> {
    let temporary = directory.join(&format!("{:016x}{TEMPORARY_SUFFIX}", header.id));
    let opened =
        port.call(DiskOperation::Open { file, name: temporary.clone(), mode: OpenMode::Create });
    opened.await?;
    let result = fill(&port, &header, file).await;
    // A write of zeros is cut short where the space ends.
    let result = result.map_err(|error| match error.kind {
        DiskErrorKind::ShortWrite => DiskError { kind: DiskErrorKind::NoSpace, ..error },
        _ => error,
    });
    let result = match result {
        Ok(()) => port.call(DiskOperation::Rename { from: temporary.clone(), to: name }).await,
        Err(error) => Err(error),
    };
    if let Err(error) = result {
        // The file is of no use; leaving it would keep its space. Recovery removes it otherwise.
        let _ = port.call(DiskOperation::Close { file }).await;
        let _ = port.call(DiskOperation::Remove { name: temporary }).await;
        return Err(error);
    }
    port.call(DiskOperation::SyncDirectory { name: directory }).await?;
    Ok(())
}

async fn fill(port: &DiskPort, header: &SegmentHeader, file: FileId) -> Result<(), DiskError> {
    let piece_len = usize::try_from(header.len).unwrap_or(usize::MAX).min(ZERO_PIECE_LEN);
    let mut offset = SEGMENT_HEADER_LEN;
    let first = write(port, file, 0, header.encode());
    let mut pending = vec![first];
    let mut spare = Vec::new();
    let mut result = Ok(());
    while offset < header.len && result.is_ok() {
        let left = usize::try_from(header.len - offset).unwrap_or(usize::MAX);
        let len = left.min(piece_len);
        let mut buffer = spare.pop().unwrap_or_else(|| IoBuffer::zeroed(piece_len));
        buffer.set_len(len);
        pending.push(write(port, file, offset, buffer));
        offset += len as u64;
        if pending.len() > 2 {
            let completion = pending.remove(0).await;
            result = completion.result.map(|_| ());
            spare.extend(completion.buffer.filter(|buffer| buffer.capacity() >= piece_len));
        }
    }
    // Also after a failure: the file cannot be closed while a write of it is under way.
    for ticket in pending {
        result = result.and(ticket.await.result.map(|_| ()));
    }
    result?;
    port.call(DiskOperation::Sync { file }).await?;
    Ok(())
}

fn write(port: &DiskPort, file: FileId, offset: u64, buffer: IoBuffer) -> crate::procedure::Ticket {
    let durability = Durability::Cached;
    port.start(DiskOperation::Write { file, offset, buffer, durability })
}

/// Names a shelved file.
#[must_use]
pub fn shelved_name(directory: &FileName, id: u64) -> FileName {
    directory.join(&format!("{id:016x}{SHELVED_SUFFIX}"))
}

/// Shelves the file of a segment, durably: what it holds does not come back. It may stay open.
///
/// Nothing may refer to the segment any more: no manifest, checkpoint, snapshot (hard link) or
/// reader, and that it does not must be durable.
///
/// # Errors
/// The disk's; the file then has its old name or the other one.
pub async fn shelve(port: DiskPort, directory: FileName, id: u64) -> Result<(), DiskError> {
    let (from, to) = (file_name(&directory, id), shelved_name(&directory, id));
    port.call(DiskOperation::Rename { from, to }).await?;
    port.call(DiskOperation::SyncDirectory { name: directory }).await?;
    Ok(())
}

/// Makes a new segment of the file that was shelved as `from`: it gets its new first block, made
/// durable, then its new name. `file` stays open throughout. The caller then lists it in the
/// manifest. `header.len` is the length of the file.
///
/// # Errors
/// The disk's; the file is closed and removed where that is possible. Otherwise recovery finds it
/// shelved, or blank and listed by no manifest.
pub async fn recycle(
    port: DiskPort,
    directory: FileName,
    from: u64,
    (header, space): (SegmentHeader, Space),
    file: FileId,
) -> Result<(), DiskError> {
    let shelved = shelved_name(&directory, from);
    let first_block = header.encode_over(space);
    let to = file_name(&directory, header.id);
    if let Err(error) = rename_over(&port, &shelved, to, first_block, file).await {
        let _ = port.call(DiskOperation::Close { file }).await;
        let _ = port.call(DiskOperation::Remove { name: shelved }).await;
        return Err(error);
    }
    port.call(DiskOperation::SyncDirectory { name: directory }).await?;
    Ok(())
}

async fn rename_over(
    port: &DiskPort,
    shelved: &FileName,
    to: FileName,
    buffer: IoBuffer,
    file: FileId,
) -> Result<(), DiskError> {
    let durability = Durability::Durable;
    port.transfer(DiskOperation::Write { file, offset: 0, buffer, durability }).await?;
    port.call(DiskOperation::Rename { from: shelved.clone(), to }).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::{DiskCompletion, DiskOutput, DiskRequest};
    use crate::procedure::Procedure;

    fn header() -> SegmentHeader {
        let identity = Identity { store: [1; 16], node_id: [2; 20], shard: 3, shard_count: 4 };
        SegmentHeader { identity, id: 0x1F, len: SEGMENT_BYTES_MIN }
    }

    #[test]
    fn header_round_trips_and_notices_damage() {
        let block = header().encode();
        assert_eq!(SegmentHeader::decode(block.as_slice()), Ok(header()));
        for position in 0..FIELDS_LEN {
            let mut damaged = block.as_slice().to_vec();
            damaged[position] ^= 4;
            assert!(SegmentHeader::decode(&damaged).is_err(), "flip at {position}");
        }
    }

    #[test]
    fn file_names_round_trip_and_refuse_others() {
        let directory = FileName::new("shard-00");
        let name = file_name(&directory, 0x1F);
        assert_eq!(name.as_str(), "shard-00/000000000000001f.segment");
        assert_eq!(parse_file_name("000000000000001f.segment"), Some(0x1F));
        for other in ["1f.segment", "000000000000001F.segment", "000000000000001f.segment.tmp"] {
            assert_eq!(parse_file_name(other), None);
        }
        assert!(is_unfinished("000000000000001f.segment.tmp"));
        let shelved = shelved_name(&directory, 0x1F);
        assert_eq!(shelved.as_str(), "shard-00/000000000000001f.segment.shelved");
        assert_eq!(parse_shelved_name("000000000000001f.segment.shelved"), Some(0x1F));
        assert_eq!(parse_file_name("000000000000001f.segment.shelved"), None);
        assert!(!is_unfinished("000000000000001f.segment.shelved"));
    }

    #[test]
    fn segments_double_up_to_the_limit_and_hold_large_frames() {
        let max = 64 << 20;
        assert_eq!(next_len(0, max, 4096), SEGMENT_BYTES_MIN);
        assert_eq!(next_len(SEGMENT_BYTES_MIN, max, 4096), 2 * SEGMENT_BYTES_MIN);
        assert_eq!(next_len(max, max, 4096), max);
        assert_eq!(next_len(0, 64 << 10, 4096), 64 << 10);
        assert_eq!(next_len(0, max, 33 << 20), 64 << 20);
    }

    /// Runs a recycling whose request number `failing` (from 0) fails; returns what was asked.
    fn recycle_failing_at(failing: Option<usize>) -> (Vec<String>, Result<(), DiskError>) {
        let directory = FileName::new("shard-00");
        let mut procedure = Procedure::new(|port| async move {
            shelve(port.clone(), directory.clone(), 0x1E).await?;
            recycle(port, directory, 0x1E, (header(), Space::Reused), FileId(2)).await
        });
        let mut asked = Vec::new();
        loop {
            if let Some(result) = procedure.take_output() {
                return (asked, result);
            }
            let DiskRequest { id, operation } = procedure.poll_request().expect("it waits");
            let (text, buffer) = match operation {
                DiskOperation::Rename { from, to } => (format!("rename {from} {to}"), None),
                DiskOperation::SyncDirectory { name } => (format!("sync {name}"), None),
                DiskOperation::Remove { name } => (format!("remove {name}"), None),
                DiskOperation::Close { .. } => ("close".to_owned(), None),
                DiskOperation::Write { offset, buffer, durability, .. } => {
                    assert_eq!((offset, durability), (0, Durability::Durable));
                    assert_eq!(SegmentHeader::decode(buffer.as_slice()), Ok(header()));
                    assert_eq!(Space::of(buffer.as_slice()), Space::Reused);
                    ("write".to_owned(), Some(buffer))
                }
                other => panic!("{other:?}"),
            };
            let error = DiskError { kind: DiskErrorKind::Io, code: 5 };
            let fails = failing == Some(asked.len());
            let result = if fails { Err(error) } else { Ok(DiskOutput::Done) };
            asked.push(text);
            procedure.handle_disk(DiskCompletion { id, result, buffer });
        }
    }

    #[test]
    fn recycled_file_has_its_new_header_before_its_new_name() {
        let old = "shard-00/000000000000001e.segment";
        let new = "shard-00/000000000000001f.segment";
        let (asked, result) = recycle_failing_at(None);
        let expected = [
            format!("rename {old} {old}.shelved"),
            "sync shard-00".to_owned(),
            "write".to_owned(),
            format!("rename {old}.shelved {new}"),
            "sync shard-00".to_owned(),
        ];
        assert_eq!((asked, result), (expected.to_vec(), Ok(())));
        for failing in 2..4 {
            let (asked, result) = recycle_failing_at(Some(failing));
            assert!(result.is_err());
            assert_eq!(asked[failing + 1..], ["close".to_owned(), format!("remove {old}.shelved")]);
        }
        for failing in [0, 1, 4] {
            let (asked, result) = recycle_failing_at(Some(failing));
            assert_eq!((asked.len(), result.is_err()), (failing + 1, true));
        }
    }

    #[test]
    fn zeros_cut_short_by_a_full_disk_are_no_space() {
        let directory = FileName::new("shard-00");
        let mut procedure =
            Procedure::new(
                |port| async move { prepare(port, directory, header(), FileId(2)).await },
            );
        let (mut writes, mut removed) = (0, false);
        let result = loop {
            if let Some(result) = procedure.take_output() {
                break result;
            }
            let DiskRequest { id, operation } = procedure.poll_request().expect("it waits");
            removed |= matches!(operation, DiskOperation::Remove { .. });
            let (result, buffer) = match operation {
                DiskOperation::Write { buffer, .. } => {
                    writes += 1;
                    let short = DiskError { kind: DiskErrorKind::ShortWrite, code: 0 };
                    (if writes == 3 { Err(short) } else { Ok(DiskOutput::Done) }, Some(buffer))
                }
                _ => (Ok(DiskOutput::Done), None),
            };
            procedure.handle_disk(DiskCompletion { id, result, buffer });
        };
        assert_eq!(result.map_err(|error| error.kind), Err(DiskErrorKind::NoSpace));
        assert!(removed, "the unfinished file keeps its space");
    }
}
