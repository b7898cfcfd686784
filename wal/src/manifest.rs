//! What belongs to a shard: two copies of the list of its segments, kept one after the other.
//!
//! The copies `manifest-0` and `manifest-1` are overwritten in place, the older one first, and
//! synced one after the other, so that one of them is whole at every moment. The valid copy with
//! the higher sequence number counts. When the other copy is bad, nothing tells whether it was
//! newer; recovery then also reads the segment files that the valid copy does not list.
//!
//! Little-endian; the file is padded with zeros to whole blocks.
//!
//! | offset | size | field | meaning |
//! |---|---|---|---|
//! | 0 | 8 | magic | `KADRMAN` and a zero byte |
//! | 8 | 2 | format version | 1 |
//! | 10 | 2 | shard | |
//! | 12 | 2 | shard count | |
//! | 14 | 2 | reserved | 0 |
//! | 16 | 16 | store | uuid |
//! | 32 | 20 | node id | |
//! | 52 | 4 | segment count | s |
//! | 56 | 8 | sequence | counts the manifest's changes |
//! | 64 | 8 | next segment | the lowest id not yet used |
//! | 72 | 8 | durable LSN | everything up to it that is in the log was durable |
//! | 80 | 4 | quarantine count | q |
//! | 84 | 4 | reserved | 0 |
//! | 88 | 8 | checkpoint LSN | of the newest durable checkpoint, whose name it gives; 0: there is none |
//! | 96 | 8 | checkpoint length | bytes of its file |
//! | 104 | 24 s | segments | id u64, length u64, cut u64 (0 = open: frames may follow) |
//! | | 48 q | quarantine | segment u64, offset u64, length u64, first LSN u64, last LSN u64, verdict u8, 7 zeros |
//! | | 4 | CRC | CRC-32 of all before it |

use crate::checksum;
use crate::disk::{BLOCK_SIZE, DiskError, DiskOperation, Durability, FileId, FileName, IoBuffer};
use crate::frame::FORMAT_VERSION;
use crate::lsn::Lsn;
use crate::procedure::DiskPort;
use crate::segment::Identity;

const MAGIC: [u8; 8] = *b"KADRMAN\0";
const FIXED_LEN: usize = 104;
const SEGMENT_LEN: usize = 24;
const QUARANTINE_LEN: usize = 48;
/// Most segments a shard may have: 64 TiB at the default size.
pub const SEGMENT_COUNT_MAX: usize = 1 << 20;
/// Most quarantined ranges that are kept apart; more are joined with their neighbours. Freed ones
/// are not among them: there are no more of those than segments, and one.
pub const QUARANTINE_COUNT_MAX: usize = 4096;

/// A checkpoint of the index: durable, as is every record in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CheckpointEntry {
    /// The last record in it; its file is named after it.
    pub lsn: Lsn,
    /// Bytes of the file.
    pub len: u64,
}

/// A live segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentEntry {
    /// Its id.
    pub id: u64,
    /// Bytes of the file.
    pub len: u64,
    /// Where its frames end, once recovery has settled that; later bytes are never looked at.
    pub cut: Option<u64>,
}

/// What recovery found a bad range to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Written after the last known durable record: torn or rotten, nothing acknowledged is known
    /// to be lost.
    TailUncertain,
    /// Acknowledged records are lost: the shard is suspect.
    Corruption,
    /// Corruption whose loss the operator has accepted.
    Accepted,
    /// No damage at all: the records were in segments that have been freed since.
    Freed,
}

impl Verdict {
    fn code(self) -> u8 {
        match self {
            Self::TailUncertain => 1,
            Self::Corruption => 2,
            Self::Accepted => 3,
            Self::Freed => 4,
        }
    }

    fn from_code(code: u8) -> Option<Self> {
        match code {
            1 => Some(Self::TailUncertain),
            2 => Some(Self::Corruption),
            3 => Some(Self::Accepted),
            4 => Some(Self::Freed),
            _ => None,
        }
    }
}

/// A range of a segment that holds no valid frame, and the records missing there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quarantine {
    /// The segment.
    pub segment: u64,
    /// Where the range starts, in bytes.
    pub offset: u64,
    /// Bytes of the range.
    pub len: u64,
    /// First missing record.
    pub first_lsn: Lsn,
    /// Last missing record; below `first_lsn` if none is known to be missing.
    pub last_lsn: Lsn,
    /// What it was found to be.
    pub verdict: Verdict,
}

/// The content of a manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// Whose manifest it is.
    pub identity: Identity,
    /// Counts the changes.
    pub sequence: u64,
    /// The lowest segment id not yet used.
    pub next_segment: u64,
    /// Durable at the last recovery.
    pub durable_lsn: Lsn,
    /// Live segments, by id.
    pub segments: Vec<SegmentEntry>,
    /// Ranges that recovery gave up.
    pub quarantine: Vec<Quarantine>,
    /// The newest checkpoint.
    pub checkpoint: Option<CheckpointEntry>,
}

/// Why bytes are not a manifest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// The bytes do not start like a manifest.
    #[error("no manifest")]
    NotAManifest,
    /// The bytes end too early.
    #[error("manifest of {needed} bytes cut after {found}")]
    Truncated {
        /// Bytes the manifest takes by its own account.
        needed: usize,
        /// Bytes there are.
        found: usize,
    },
    /// The checksum does not match.
    #[error("manifest checksum {found:08x}, expected {expected:08x}")]
    Checksum {
        /// As stored.
        expected: u32,
        /// As computed.
        found: u32,
    },
    /// A valid manifest of a format version this code does not know.
    #[error("data of format version {found}, this program knows {FORMAT_VERSION}")]
    Version {
        /// The version found.
        found: u16,
    },
    /// A field that cannot be, although the checksum matches.
    #[error("manifest field at byte {position} makes no sense")]
    Malformed {
        /// Where.
        position: usize,
    },
}

/// Returns the name of a copy, 0 or 1.
#[must_use]
pub fn file_name(directory: &FileName, copy: usize) -> FileName {
    directory.join(&format!("manifest-{copy}"))
}

impl Manifest {
    /// Where its checksum stands in the encoded manifest: behind everything else. Bytes followed by
    /// their own CRC-32 all have the same CRC-32, so who sums a manifest sums the two apart.
    #[must_use]
    pub fn checksum_offset(&self) -> usize {
        FIXED_LEN + self.segments.len() * SEGMENT_LEN + self.quarantine.len() * QUARANTINE_LEN
    }

    /// Encodes it into whole blocks.
    #[must_use]
    pub fn encode(&self) -> IoBuffer {
        let count = |len: usize| u32::try_from(len).expect("lists are bounded").to_le_bytes();
        let len = self.checksum_offset() + 4;
        let mut out = IoBuffer::zeroed(len);
        out.set_len(0);
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&u16::from(FORMAT_VERSION).to_le_bytes());
        out.extend_from_slice(&self.identity.shard.to_le_bytes());
        out.extend_from_slice(&self.identity.shard_count.to_le_bytes());
        out.extend_from_slice(&[0; 2]);
        out.extend_from_slice(&self.identity.store);
        out.extend_from_slice(&self.identity.node_id);
        out.extend_from_slice(&count(self.segments.len()));
        out.extend_from_slice(&self.sequence.to_le_bytes());
        out.extend_from_slice(&self.next_segment.to_le_bytes());
        out.extend_from_slice(&self.durable_lsn.0.to_le_bytes());
        out.extend_from_slice(&count(self.quarantine.len()));
        out.extend_from_slice(&[0; 4]);
        let checkpoint = self.checkpoint.map_or((0, 0), |entry| (entry.lsn.0, entry.len));
        out.extend_from_slice(&checkpoint.0.to_le_bytes());
        out.extend_from_slice(&checkpoint.1.to_le_bytes());
        for segment in &self.segments {
            for word in [segment.id, segment.len, segment.cut.unwrap_or(0)] {
                out.extend_from_slice(&word.to_le_bytes());
            }
        }
        for range in &self.quarantine {
            let words =
                [range.segment, range.offset, range.len, range.first_lsn.0, range.last_lsn.0];
            words.iter().for_each(|word| out.extend_from_slice(&word.to_le_bytes()));
            out.extend_from_slice(&[range.verdict.code(), 0, 0, 0, 0, 0, 0, 0]);
        }
        let crc = checksum::plain(out.as_slice());
        out.extend_from_slice(&crc.to_le_bytes());
        out.set_len(len.next_multiple_of(BLOCK_SIZE));
        out
    }

    /// Decodes and verifies a manifest.
    ///
    /// # Errors
    /// [`ManifestError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, ManifestError> {
        let mut fields = Fields { bytes, position: 0 };
        if fields.take::<8>()? != MAGIC {
            return Err(ManifestError::NotAManifest);
        }
        let version = u16::from_le_bytes(fields.take()?);
        let (shard, shard_count) = (fields.u16()?, fields.u16()?);
        let _reserved: [u8; 2] = fields.take()?;
        let (store, node_id) = (fields.take()?, fields.take()?);
        let segment_count = fields.count(52, SEGMENT_COUNT_MAX)?;
        let (sequence, next_segment, durable_lsn) = (fields.u64()?, fields.u64()?, fields.u64()?);
        let ranges_max = QUARANTINE_COUNT_MAX + SEGMENT_COUNT_MAX;
        let quarantine_count = fields.count(80, ranges_max)?;
        let _reserved: [u8; 4] = fields.take()?;
        let checkpoint = CheckpointEntry { lsn: Lsn(fields.u64()?), len: fields.u64()? };
        verify(bytes, FIXED_LEN + segment_count * SEGMENT_LEN + quarantine_count * QUARANTINE_LEN)?;
        if version != u16::from(FORMAT_VERSION) {
            return Err(ManifestError::Version { found: version });
        }
        if Lsn(durable_lsn) > Lsn::MAX {
            return Err(ManifestError::Malformed { position: 72 });
        }
        if checkpoint.lsn > Lsn::MAX {
            return Err(ManifestError::Malformed { position: 88 });
        }
        let segments =
            (0..segment_count).map(|_| fields.segment()).collect::<Result<_, ManifestError>>()?;
        let quarantine = (0..quarantine_count)
            .map(|_| fields.quarantine())
            .collect::<Result<_, ManifestError>>()?;
        let identity = Identity { store, node_id, shard, shard_count };
        Ok(Self {
            identity,
            sequence,
            next_segment,
            durable_lsn: Lsn(durable_lsn),
            segments,
            quarantine,
            checkpoint: (checkpoint.lsn != Lsn::ZERO).then_some(checkpoint),
        })
    }
}

fn verify(bytes: &[u8], len: usize) -> Result<(), ManifestError> {
    let truncated = ManifestError::Truncated { needed: len + 4, found: bytes.len() };
    let (body, rest) = bytes.split_at_checked(len).ok_or(truncated)?;
    let expected = u32::from_le_bytes(*rest.first_chunk().ok_or(truncated)?);
    let found = checksum::plain(body);
    if expected == found { Ok(()) } else { Err(ManifestError::Checksum { expected, found }) }
}

struct Fields<'a> {
    bytes: &'a [u8],
    position: usize,
}

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], ManifestError> {
        let rest = self.bytes.get(self.position..).unwrap_or_default();
        let found = rest.first_chunk().ok_or(ManifestError::Truncated {
            needed: self.position + N,
            found: self.bytes.len(),
        })?;
        self.position += N;
        Ok(*found)
    }

    fn u16(&mut self) -> Result<u16, ManifestError> {
        self.take().map(u16::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, ManifestError> {
        self.take().map(u64::from_le_bytes)
    }

    fn count(&mut self, position: usize, max: usize) -> Result<usize, ManifestError> {
        let count = u32::from_le_bytes(self.take()?);
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        if count > max { Err(ManifestError::Malformed { position }) } else { Ok(count) }
    }

    fn segment(&mut self) -> Result<SegmentEntry, ManifestError> {
        let (id, len, cut) = (self.u64()?, self.u64()?, self.u64()?);
        Ok(SegmentEntry { id, len, cut: (cut != 0).then_some(cut) })
    }

    fn quarantine(&mut self) -> Result<Quarantine, ManifestError> {
        let (segment, offset, len) = (self.u64()?, self.u64()?, self.u64()?);
        let (first_lsn, last_lsn) = (Lsn(self.u64()?), Lsn(self.u64()?));
        let position = self.position;
        if first_lsn.max(last_lsn) > Lsn::MAX || offset.checked_add(len).is_none() {
            return Err(ManifestError::Malformed { position });
        }
        let code: [u8; 8] = self.take()?;
        let verdict = Verdict::from_code(code[0]).ok_or(ManifestError::Malformed { position })?;
        Ok(Quarantine { segment, offset, len, first_lsn, last_lsn, verdict })
    }
}

/// Why a manifest was not saved: the disk failed at one copy, which may be bad now; the other one
/// is whole, and must not be the first to be overwritten next time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("manifest-{copy} cannot be written: {source}")]
pub struct SaveError {
    /// The copy that was being written.
    pub copy: usize,
    /// What the disk said.
    pub source: DiskError,
}

/// Overwrites both copies, `older` first, syncing each before the next is touched; the manifest
/// counts from the first sync on.
///
/// # Errors
/// [`SaveError`].
pub async fn save(
    port: DiskPort,
    copies: [FileId; 2],
    older: usize,
    manifest: Manifest,
) -> Result<(), SaveError> {
    let mut buffer = manifest.encode();
    for copy in [older, 1 - older] {
        let file = copies[copy];
        let failed = |source| SaveError { copy, source };
        let durability = Durability::Cached;
        let write = DiskOperation::Write { file, offset: 0, buffer, durability };
        buffer = port.transfer(write).await.map_err(failed)?;
        port.call(DiskOperation::Sync { file }).await.map_err(failed)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest() -> Manifest {
        let identity = Identity { store: [1; 16], node_id: [2; 20], shard: 0, shard_count: 2 };
        let segment = |id, cut| SegmentEntry { id, len: 4 << 20, cut };
        let range = Quarantine {
            segment: 1,
            offset: 4096,
            len: 8192,
            first_lsn: Lsn(7),
            last_lsn: Lsn(9),
            verdict: Verdict::Corruption,
        };
        Manifest {
            identity,
            sequence: 12,
            next_segment: 4,
            durable_lsn: Lsn(99),
            segments: vec![segment(1, Some(8192)), segment(3, None)],
            quarantine: vec![range],
            checkpoint: Some(CheckpointEntry { lsn: Lsn(98), len: 12_288 }),
        }
    }

    #[test]
    fn manifest_round_trips() {
        let encoded = manifest().encode();
        assert_eq!(encoded.len() % BLOCK_SIZE, 0);
        assert_eq!(Manifest::decode(encoded.as_slice()), Ok(manifest()));
    }

    #[test]
    fn every_damaged_or_missing_byte_is_noticed() {
        let encoded = manifest().encode();
        let len = FIXED_LEN + 2 * SEGMENT_LEN + QUARANTINE_LEN + 4;
        for position in 0..len {
            let mut damaged = encoded.as_slice().to_vec();
            damaged[position] ^= 0x40;
            assert!(Manifest::decode(&damaged).is_err(), "flip at {position}");
            assert!(Manifest::decode(&encoded.as_slice()[..position]).is_err());
        }
    }

    #[test]
    fn more_freed_ranges_than_quarantined_ones_can_be_read_again() {
        let mut manifest = manifest();
        manifest.quarantine.clear();
        for number in 0..2 * QUARANTINE_COUNT_MAX as u64 {
            manifest.quarantine.push(Quarantine {
                segment: 0,
                offset: 0,
                len: 0,
                first_lsn: Lsn(1 + 10 * number),
                last_lsn: Lsn(5 + 10 * number),
                verdict: Verdict::Freed,
            });
        }
        assert_eq!(manifest.quarantine.len(), 2 * QUARANTINE_COUNT_MAX);
        assert_eq!(Manifest::decode(manifest.encode().as_slice()), Ok(manifest));
    }

    #[test]
    fn valid_manifest_of_a_newer_format_is_told_apart() {
        let mut bytes = manifest().encode().as_slice().to_vec();
        bytes[8] = 7;
        let end = FIXED_LEN + 2 * SEGMENT_LEN + QUARANTINE_LEN;
        let crc = checksum::plain(&bytes[..end]);
        bytes[end..end + 4].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(Manifest::decode(&bytes), Err(ManifestError::Version { found: 7 }));
    }
}
