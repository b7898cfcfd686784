//! One group commit on disk: a header, records, and zeros up to a whole block.
//!
//! All integers are little-endian. A frame starts at a block of its segment; once acknowledged, no
//! block of it is ever written again.
//!
//! | offset | size | field | meaning |
//! |---|---|---|---|
//! | 0 | 4 | magic | `KFRM` |
//! | 4 | 1 | format version | 1 |
//! | 5 | 1 | flags | 1: an extent ([`crate::extent`]); others are refused |
//! | 6 | 2 | reserved | 0 |
//! | 8 | 16 | store | the store's uuid |
//! | 24 | 8 | segment | the segment's id |
//! | 32 | 8 | offset | the frame's offset in the segment, in bytes |
//! | 40 | 4 | length | bytes of the frame, padding included: whole blocks |
//! | 44 | 4 | record count | 0 in an idle frame |
//! | 48 | 8 | first LSN | of the first record; in an idle frame, of the next record to come |
//! | 56 | 8 | durable LSN | everything up to it was durable when the frame was written |
//! | 64 | 8 | wall time | milliseconds since 1970, never going back within a log |
//! | 72 | 4 | payload CRC | CRC-32 of the frame's place and of all bytes from 80 to the end |
//! | 76 | 4 | header CRC | CRC-32 of the frame's place and of bytes 0 to 75 |
//! | 80 | | records | each at a multiple of 8 |
//!
//! The frame of an extent has no records. Its length covers the whole extent, so that a scan steps
//! over the data; its payload CRC covers its first block alone.

use crate::checksum::{self, Place};
use crate::disk::{BLOCK_SIZE, IoBuffer};
use crate::lsn::Lsn;

/// Version of the on-disk format; raised when a byte of it changes its meaning.
pub const FORMAT_VERSION: u8 = 1;
/// Bytes of a frame's header.
pub const FRAME_HEADER_LEN: usize = 80;
const MAGIC: [u8; 4] = *b"KFRM";
const IS_EXTENT: u8 = 1;
/// Joining checksums takes some 2 us whatever their length, as summing this many bytes or fewer.
const KNOWN_SUM_LEN_MIN: usize = 64 << 10;

/// A frame's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    /// Bytes of the frame, padding included.
    pub len: u32,
    /// Number of records.
    pub record_count: u32,
    /// LSN of the first record, or of the next one to come.
    pub first_lsn: Lsn,
    /// Known durable when the frame was written.
    pub durable_lsn: Lsn,
    /// Milliseconds since 1970.
    pub wall_ms: u64,
    /// Checksum of everything after the header; in an extent, of the rest of its first block.
    pub payload_crc: u32,
    /// Whether it is the frame of an extent.
    pub is_extent: bool,
}

/// Why bytes are not the header of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The bytes do not start like a frame.
    #[error("no frame")]
    NotAFrame,
    /// The checksum does not match: damaged, stale, foreign or misdirected.
    #[error("frame header checksum {found:08x}, expected {expected:08x}")]
    HeaderChecksum {
        /// As stored.
        expected: u32,
        /// As computed.
        found: u32,
    },
    /// A valid header of a format version this code does not know.
    #[error("frame of format version {found}, this program knows {FORMAT_VERSION}")]
    Version {
        /// The version found.
        found: u8,
    },
    /// The numbers of the records are beyond any that a log reaches.
    #[error("frame starts with record {first}")]
    Lsn {
        /// The first LSN found.
        first: Lsn,
    },
    /// A flag that this code does not know, or records in an extent's frame.
    #[error("frame flags {found:02x}")]
    Flags {
        /// The flags found.
        found: u8,
    },
    /// The length is no whole number of blocks.
    #[error("frame length {found}")]
    Length {
        /// The length found.
        found: u32,
    },
}

impl FrameHeader {
    /// LSN of the last record; in an idle frame, of the record before it.
    #[must_use]
    pub fn last_lsn(&self) -> Lsn {
        self.first_lsn.plus(u64::from(self.record_count)).before()
    }

    /// Bytes after the header that the payload CRC covers.
    #[must_use]
    pub fn payload_len(&self) -> usize {
        let len = if self.is_extent { BLOCK_SIZE } else { self.len as usize };
        len - FRAME_HEADER_LEN
    }

    /// Encodes the header of the frame at `place`.
    #[must_use]
    pub fn encode(&self, place: &Place) -> [u8; FRAME_HEADER_LEN] {
        let mut out = [0; FRAME_HEADER_LEN];
        out[0..4].copy_from_slice(&MAGIC);
        out[4] = FORMAT_VERSION;
        out[5] = u8::from(self.is_extent) * IS_EXTENT;
        out[8..24].copy_from_slice(&place.store);
        out[24..32].copy_from_slice(&place.segment.to_le_bytes());
        out[32..40].copy_from_slice(&place.offset.to_le_bytes());
        out[40..44].copy_from_slice(&self.len.to_le_bytes());
        out[44..48].copy_from_slice(&self.record_count.to_le_bytes());
        out[48..56].copy_from_slice(&self.first_lsn.0.to_le_bytes());
        out[56..64].copy_from_slice(&self.durable_lsn.0.to_le_bytes());
        out[64..72].copy_from_slice(&self.wall_ms.to_le_bytes());
        out[72..76].copy_from_slice(&self.payload_crc.to_le_bytes());
        let crc = checksum::seeded(place, &[&out[..76]]);
        out[76..80].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// Decodes and verifies the header of the frame at `place`.
    ///
    /// # Errors
    /// [`FrameError`]; damage shows as [`FrameError::NotAFrame`] when it hit the magic.
    pub fn decode(bytes: &[u8; FRAME_HEADER_LEN], place: &Place) -> Result<Self, FrameError> {
        if bytes[0..4] != MAGIC {
            return Err(FrameError::NotAFrame);
        }
        let expected = u32::from_le_bytes(field(bytes, 76));
        let found = checksum::seeded(place, &[&bytes[..76]]);
        if expected != found {
            return Err(FrameError::HeaderChecksum { expected, found });
        }
        if bytes[4] != FORMAT_VERSION {
            return Err(FrameError::Version { found: bytes[4] });
        }
        let len = u32::from_le_bytes(field(bytes, 40));
        if len == 0 || !usize::try_from(len).is_ok_and(|len| len.is_multiple_of(BLOCK_SIZE)) {
            return Err(FrameError::Length { found: len });
        }
        let is_extent = bytes[5] & IS_EXTENT != 0;
        let record_count = u32::from_le_bytes(field(bytes, 44));
        if bytes[5] & !IS_EXTENT != 0 || is_extent && record_count > 0 {
            return Err(FrameError::Flags { found: bytes[5] });
        }
        let first_lsn = Lsn(u64::from_le_bytes(field(bytes, 48)));
        let durable_lsn = Lsn(u64::from_le_bytes(field(bytes, 56)));
        if first_lsn.max(durable_lsn) > Lsn::MAX {
            return Err(FrameError::Lsn { first: first_lsn });
        }
        Ok(Self {
            len,
            record_count,
            first_lsn,
            durable_lsn,
            wall_ms: u64::from_le_bytes(field(bytes, 64)),
            payload_crc: u32::from_le_bytes(field(bytes, 72)),
            is_extent,
        })
    }

    /// Decodes a header in which one byte may be damaged, and says which.
    ///
    /// The result is a candidate until the payload's checksum, which it carries, has confirmed it.
    #[must_use]
    pub fn decode_damaged(bytes: &[u8; FRAME_HEADER_LEN], place: &Place) -> Option<(Self, usize)> {
        let stored = u32::from_le_bytes(field(bytes, 76));
        let computed = checksum::seeded(place, &[&bytes[..76]]);
        let mut repaired = *bytes;
        let difference = (stored ^ computed).to_le_bytes();
        let position = if difference.iter().filter(|byte| **byte != 0).count() == 1 {
            let at = difference.iter().position(|byte| *byte != 0)?;
            repaired[76 + at] ^= difference[at];
            76 + at
        } else {
            let error = checksum::single_byte_error(stored, computed, 76)?;
            repaired[error.position] ^= error.difference;
            error.position
        };
        Self::decode(&repaired, place).ok().map(|header| (header, position))
    }

    /// Which store the first frame of segment `segment` belongs to, if these bytes are its header.
    #[must_use]
    pub fn store_of(bytes: &[u8; FRAME_HEADER_LEN], segment: u64) -> Option<[u8; 16]> {
        let store = field(bytes, 8);
        let place = Place { store, segment, offset: BLOCK_SIZE as u64 };
        Self::decode(bytes, &place).ok().map(|_| store)
    }

    /// Checksum of a frame's payload: all its bytes after the header.
    #[must_use]
    pub fn payload_checksum(place: &Place, payload: &[u8]) -> u32 {
        checksum::seeded(place, &[payload])
    }
}

fn field<const N: usize>(bytes: &[u8; FRAME_HEADER_LEN], offset: usize) -> [u8; N] {
    *bytes[offset..].first_chunk().expect("fields lie within the header")
}

/// Whether any block that starts like this could be a frame of the store's segment, however
/// damaged: it tells leftovers of a torn write from blocks never written.
#[must_use]
pub fn is_blank(block: &[u8]) -> bool {
    block.iter().all(|byte| *byte == 0)
}

/// What goes into a frame's header besides what the frame itself tells.
#[derive(Clone, Copy, Debug)]
pub struct FrameStamp {
    /// LSN of the first record, or of the next one to come.
    pub first_lsn: Lsn,
    /// Number of records.
    pub record_count: u32,
    /// Known durable now.
    pub durable_lsn: Lsn,
    /// Milliseconds since 1970.
    pub wall_ms: u64,
}

/// Finishes a frame in place: `buffer` holds room for the header, then the records; pads it to
/// whole blocks and fills in the header.
///
/// # Panics
/// If the buffer is shorter than a header or has no room for the padding.
pub fn finish(buffer: &mut IoBuffer, place: &Place, stamp: &FrameStamp) {
    let len = buffer.len().next_multiple_of(BLOCK_SIZE);
    seal(buffer, place, stamp, len, false);
}

/// Finishes the frame of an extent of `extent_len` bytes in place: `buffer` holds room for the
/// header, and becomes the extent's first block.
///
/// # Panics
/// If the buffer is shorter than a header, longer than a block, or has no room for one.
pub fn finish_extent(buffer: &mut IoBuffer, place: &Place, stamp: &FrameStamp, extent_len: usize) {
    assert!(buffer.len() <= BLOCK_SIZE, "the frame of an extent is one block");
    seal(buffer, place, stamp, extent_len, true);
}

/// The checksum of all bytes of a frame of records that is finished, without looking at all of them
/// again: what its header says of the rest is joined to the header's own. `None` where that
/// arithmetic takes longer than summing, and of an extent's frame.
pub(crate) fn known_sum(bytes: &[u8], place: &Place) -> Option<u32> {
    let (header, payload) = bytes.split_first_chunk::<FRAME_HEADER_LEN>()?;
    if bytes.len() < KNOWN_SUM_LEN_MIN || header[5] & IS_EXTENT != 0 {
        return None;
    }
    let len = payload.len() as u64;
    let payload = checksum::unseeded(place, u32::from_le_bytes(field(header, 72)), len);
    Some(checksum::joined(header, payload, len))
}

fn seal(buffer: &mut IoBuffer, place: &Place, stamp: &FrameStamp, len: usize, is_extent: bool) {
    let used = buffer.len();
    assert!(used >= FRAME_HEADER_LEN, "a frame starts with room for its header");
    buffer.set_len(used.next_multiple_of(BLOCK_SIZE));
    let bytes = buffer.as_mut_slice();
    bytes[used..].fill(0);
    let (header, payload) = bytes.split_at_mut(FRAME_HEADER_LEN);
    let fields = FrameHeader {
        len: u32::try_from(len).expect("a frame is far below 4 GiB"),
        record_count: stamp.record_count,
        first_lsn: stamp.first_lsn,
        durable_lsn: stamp.durable_lsn,
        wall_ms: stamp.wall_ms,
        payload_crc: FrameHeader::payload_checksum(place, payload),
        is_extent,
    };
    header.copy_from_slice(&fields.encode(place));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place() -> Place {
        Place { store: [9; 16], segment: 2, offset: 8192 }
    }

    fn stamp() -> FrameStamp {
        FrameStamp { first_lsn: Lsn(5), record_count: 2, durable_lsn: Lsn(4), wall_ms: 1_700_000 }
    }

    fn frame() -> IoBuffer {
        let mut buffer = IoBuffer::with_capacity(BLOCK_SIZE);
        buffer.extend_from_slice(&[0; FRAME_HEADER_LEN]);
        buffer.extend_from_slice(&[0xCC; 100]);
        finish(&mut buffer, &place(), &stamp());
        buffer
    }

    fn header(bytes: &[u8]) -> [u8; FRAME_HEADER_LEN] {
        *bytes.first_chunk().unwrap()
    }

    #[test]
    fn known_sum_is_the_sum_of_all_bytes() {
        for len in [100, 60_000, 70_000, 300_000] {
            let mut buffer = IoBuffer::with_capacity(len + FRAME_HEADER_LEN);
            buffer.extend_from_slice(&[0; FRAME_HEADER_LEN]);
            let payload: Vec<u8> = (0..len).map(|at| ((at * at) >> 3) as u8).collect();
            buffer.extend_from_slice(&payload);
            finish(&mut buffer, &place(), &stamp());
            let known = known_sum(buffer.as_slice(), &place());
            let is_long = len > KNOWN_SUM_LEN_MIN;
            assert_eq!(known, is_long.then(|| checksum::plain(buffer.as_slice())), "{len}");
        }
    }

    #[test]
    fn finished_frame_decodes() {
        let buffer = frame();
        assert_eq!(buffer.len(), BLOCK_SIZE);
        let decoded = FrameHeader::decode(&header(buffer.as_slice()), &place()).unwrap();
        assert_eq!(decoded.last_lsn(), Lsn(6));
        let payload = &buffer.as_slice()[FRAME_HEADER_LEN..];
        assert_eq!(decoded.payload_crc, FrameHeader::payload_checksum(&place(), payload));
    }

    #[test]
    fn frame_of_an_extent_is_a_block_that_covers_more() {
        let mut buffer = IoBuffer::with_capacity(BLOCK_SIZE);
        buffer.extend_from_slice(&[0; FRAME_HEADER_LEN]);
        let stamp = FrameStamp { record_count: 0, ..stamp() };
        finish_extent(&mut buffer, &place(), &stamp, 9 * BLOCK_SIZE);
        assert_eq!(buffer.len(), BLOCK_SIZE);
        let mut bytes = header(buffer.as_slice());
        let decoded = FrameHeader::decode(&bytes, &place()).unwrap();
        assert!(decoded.is_extent && decoded.len as usize == 9 * BLOCK_SIZE);
        assert_eq!((decoded.payload_len(), decoded.last_lsn()), (BLOCK_SIZE - 80, Lsn(4)));
        bytes[5] = 3;
        let crc = checksum::seeded(&place(), &[&bytes[..76]]);
        bytes[76..].copy_from_slice(&crc.to_le_bytes());
        let refused = FrameHeader::decode(&bytes, &place());
        assert_eq!(refused, Err(FrameError::Flags { found: 3 }), "an unknown flag");
    }

    #[test]
    fn frame_of_another_place_or_of_zeros_is_refused() {
        let buffer = frame();
        let bytes = header(buffer.as_slice());
        let error = FrameHeader::decode(&bytes, &place().at(4096)).unwrap_err();
        assert!(matches!(error, FrameError::HeaderChecksum { .. }));
        let zeros = [0; FRAME_HEADER_LEN];
        assert_eq!(FrameHeader::decode(&zeros, &place()), Err(FrameError::NotAFrame));
    }

    #[test]
    fn any_damaged_header_byte_is_located() {
        let buffer = frame();
        let original = header(buffer.as_slice());
        let wanted = FrameHeader::decode(&original, &place()).unwrap();
        for position in 0..FRAME_HEADER_LEN {
            for difference in [1, 0x80, 0xFF] {
                let mut damaged = original;
                damaged[position] ^= difference;
                assert!(FrameHeader::decode(&damaged, &place()).is_err());
                let found = FrameHeader::decode_damaged(&damaged, &place());
                assert_eq!(found, Some((wanted, position)));
            }
        }
    }

    #[test]
    fn valid_frame_of_a_newer_format_is_told_apart() {
        let mut bytes = header(frame().as_slice());
        bytes[4] = 9;
        let crc = checksum::seeded(&place(), &[&bytes[..76]]);
        bytes[76..].copy_from_slice(&crc.to_le_bytes());
        let error = FrameHeader::decode(&bytes, &place()).unwrap_err();
        assert_eq!(error, FrameError::Version { found: 9 });
    }
}
