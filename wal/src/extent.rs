//! Extents: large values, written in pieces beside other frames.
//!
//! An extent is a range of whole blocks in a segment. Its first block is a frame of its own
//! ([`crate::frame`]), without records, whose length covers the range: a scan steps over it. A put
//! record stands at the second block, its header followed by the value as in any frame:
//!
//! | offset | content |
//! |---|---|
//! | 0 | frame header, zeros to the end of the block |
//! | 4,096 | put record: header with the value's chunk checksums, value |
//! | | zeros to the end of the last block |
//!
//! The put counts for nothing by itself. It has no LSN, and may be torn: it is there once a *touch*
//! record in a frame names it, which is appended only after all of the extent is durable. That
//! record gives the key's version and expiry, its place in the order of the log, and 0 as the
//! value's first LSN. An extent that no record names is dead space.
//!
//! The pieces are written from the second to the last, and the first one after them: by then the
//! checksums of all chunks are known, and the value has been looked at only once.

use crate::checksum::{self, Place, RunningChecksum};
use crate::disk::{BLOCK_SIZE, DiskOperation, IoBuffer};
use crate::procedure::DiskPort;
use crate::record::{Key, Location, Namespace, RecordHeader, RecordKind, VALUE_CHUNK_LEN};
use crate::replay::SegmentSource;

/// Where an extent's record stands, from the extent's start.
pub const RECORD_OFFSET: u64 = BLOCK_SIZE as u64;
/// Extents are written, and read by those who read all of them, in pieces of this many bytes: a
/// write that comes meanwhile waits for about as much. At 1 GB/s that is a quarter of a
/// millisecond.
pub const PIECE_LEN: usize = 256 << 10;
/// Longest header of a record in an extent, with its user key and the sums of 32 MiB.
const HEADER_ROOM: u64 = 96 << 10;
/// Pieces under way at once.
pub const PIECES_IN_FLIGHT_MAX: usize = 2;
/// Extents under way at once.
pub const EXTENTS_UNDER_WAY_MAX: usize = 4;

/// Bytes of a record with parts of these lengths in an extent, padded to whole blocks: its pieces'.
#[must_use]
pub fn record_len(header_len: usize, value_len: usize) -> usize {
    (header_len + value_len).next_multiple_of(BLOCK_SIZE)
}

/// The checksums of a value's chunks, from bytes that come in any pieces.
#[derive(Clone, Debug, Default)]
pub struct ChunkSums {
    sums: Vec<u32>,
    open: RunningChecksum,
    open_len: usize,
}

impl ChunkSums {
    /// Takes the value's next bytes.
    pub fn update(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let len = bytes.len().min(VALUE_CHUNK_LEN - self.open_len);
            let (now, later) = bytes.split_at(len);
            if len == VALUE_CHUNK_LEN {
                self.sums.push(checksum::plain(now));
            } else {
                self.open.update(now);
                self.open_len += len;
                if self.open_len == VALUE_CHUNK_LEN {
                    self.close();
                }
            }
            bytes = later;
        }
    }

    fn close(&mut self) {
        self.sums.push(self.open.sum());
        (self.open, self.open_len) = (RunningChecksum::default(), 0);
    }

    /// The checksums, the last chunk's as well.
    #[must_use]
    pub fn finish(mut self) -> Vec<u32> {
        if self.open_len > 0 {
            self.close();
        }
        self.sums
    }
}

/// What an extent holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExtentContent {
    /// The put's key and place, if its header is sound.
    pub record: Option<(Key, Location)>,
    /// Whether all of it is.
    pub is_sound: bool,
}

impl ExtentContent {
    const LOST: Self = Self { record: None, is_sound: false };
}

/// Decodes the header of the record in the extent at `extent`, whose record starts `bytes`.
#[must_use]
pub fn record_header<'a>(bytes: &'a [u8], extent: &Place) -> Option<RecordHeader<'a>> {
    let place = extent.at(extent.offset + RECORD_OFFSET);
    let header = RecordHeader::decode(bytes, &place).ok()?;
    let chunked = header.chunk_sums().len() > 0;
    let is_plain = header.namespace == Namespace::PLAIN;
    (header.kind == RecordKind::Put && is_plain && chunked).then_some(header)
}

/// Reads an extent whose frame is at `offset` piece by piece, and tells what it holds.
pub async fn verify(
    port: &DiskPort,
    store: [u8; 16],
    source: SegmentSource,
    (offset, len): (u64, u64),
) -> ExtentContent {
    let extent = Place { store, segment: source.id, offset };
    let (start, end) = (offset + RECORD_OFFSET, offset + len);
    let Some(first) =
        read_piece(port, source, start, end, IoBuffer::with_capacity(PIECE_LEN)).await
    else {
        return ExtentContent::LOST;
    };
    let Some(header) = record_header(first.as_slice(), &extent) else {
        return ExtentContent::LOST;
    };
    let (key, Some(location)) = (header.key, location_of(&header, &extent)) else {
        return ExtentContent::LOST;
    };
    let record = Some((key, location));
    let wanted: Vec<u32> = header.chunk_sums().collect();
    let (mut left, mut sums) = (header.value_len, ChunkSums::default());
    let mut at = start;
    let (mut skip, mut piece) = (header.len(), first);
    loop {
        let bytes = piece.as_slice().get(skip..).unwrap_or_default();
        let bytes = &bytes[..bytes.len().min(left)];
        sums.update(bytes);
        left -= bytes.len();
        at += piece.len() as u64;
        skip = 0;
        if left == 0 {
            break;
        }
        match read_piece(port, source, at, end, piece).await {
            Some(next) => piece = next,
            None => return ExtentContent { record, is_sound: false },
        }
    }
    ExtentContent { record, is_sound: sums.finish() == wanted }
}

/// Where a record in the extent at `extent` stands.
#[must_use]
pub fn location_of(header: &RecordHeader<'_>, extent: &Place) -> Option<Location> {
    Some(Location {
        segment: extent.segment,
        offset: u32::try_from(extent.offset + RECORD_OFFSET).ok()?,
        header_len: u32::try_from(header.len()).ok()?,
        value_len: u32::try_from(header.value_len).ok()?,
    })
}

/// Looks for extents whose frames are lost: in a range of whole blocks that no frame explains, by
/// the records behind them. Tells where they start, and their lengths.
pub async fn find_without_frames(
    port: &DiskPort,
    store: [u8; 16],
    source: SegmentSource,
    (start, end): (u64, u64),
) -> Vec<(u64, u64)> {
    let block = BLOCK_SIZE as u64;
    let (mut found, mut at) = (Vec::new(), start + RECORD_OFFSET);
    let mut buffer = IoBuffer::with_capacity(PIECE_LEN);
    while at < end {
        let Some(piece) = read_piece(port, source, at, end, buffer).await else {
            // Of a piece that cannot be read whole, the next block may be readable.
            buffer = IoBuffer::with_capacity(PIECE_LEN);
            at += block;
            continue;
        };
        let bytes = piece.as_slice();
        let piece_end = at + bytes.len() as u64;
        // A header that starts further behind may not be whole.
        let sure_end = if piece_end == end { end } else { piece_end - HEADER_ROOM };
        while at < sure_end {
            let from = bytes.len() - usize::try_from(piece_end - at).expect("pieces are small");
            let place = Place { store, segment: source.id, offset: at - RECORD_OFFSET };
            let len = record_header(&bytes[from..], &place)
                .map(|header| record_len(header.len(), header.value_len) as u64);
            at += match len.filter(|len| at + len <= end) {
                Some(len) => {
                    found.push((place.offset, RECORD_OFFSET + len));
                    // Behind it another one can start, with a frame.
                    len + RECORD_OFFSET
                }
                None => block,
            };
        }
        buffer = piece;
    }
    found
}

async fn read_piece(
    port: &DiskPort,
    source: SegmentSource,
    offset: u64,
    end: u64,
    buffer: IoBuffer,
) -> Option<IoBuffer> {
    let left = usize::try_from(end.checked_sub(offset)?).ok()?;
    let len = left.min(PIECE_LEN);
    let read = DiskOperation::Read { file: source.file, offset, len, buffer };
    let piece = port.transfer(read).await.ok()?;
    (len > 0 && piece.len() == len).then_some(piece)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::FileId;
    use crate::procedure::Procedure;
    use crate::record::{Record, Version};
    use crate::replay::tests::{STORE, run_reads};

    /// A segment of `len` bytes with extents at these offsets that have no frames.
    fn without_frames(len: usize, extents: &[(usize, usize)]) -> Vec<u8> {
        let mut bytes = vec![0xA7; len];
        for &(offset, value_len) in extents {
            let value = vec![0x5A; value_len];
            let record = Record {
                kind: RecordKind::Put,
                namespace: Namespace::PLAIN,
                key: Key([1; 20]),
                hashed: false,
                user_key: &[b'k'; 60_000],
                version: Version::default(),
                expiry_ms: 0,
                value: &value,
            };
            let place = Place { store: STORE, segment: 4, offset: offset as u64 + RECORD_OFFSET };
            let mut sums = ChunkSums::default();
            sums.update(&value);
            let mut buffer = IoBuffer::with_capacity(100 << 10);
            record.encode_header(&place, &sums.finish(), &mut buffer);
            let at = offset + BLOCK_SIZE;
            let end = at + buffer.len();
            bytes[at..end].copy_from_slice(buffer.as_slice());
            bytes[end..end + value.len()].copy_from_slice(&value);
        }
        bytes
    }

    #[test]
    fn extents_without_frames_are_found_by_their_records() {
        let block = BLOCK_SIZE;
        // The second one's header lies across two pieces, the third one's is at the end.
        let first = (3 * block, 20_000);
        let first_len = block + record_len(60_044 + 12, first.1);
        let second = (first.0 + first_len + 41 * block, 500_000);
        let second_len = block + record_len(60_044 + 248, second.1);
        let third = (second.0 + second_len, 9_000);
        let third_len = block + record_len(60_044 + 8, third.1);
        let len = third.0 + third_len;
        let bytes = without_frames(len, &[first, second, third]);
        let source = SegmentSource { id: 4, file: FileId(1), len: len as u64, cut: None };
        let search = |start: usize, end: usize| {
            let range = (start as u64, end as u64);
            let procedure = Procedure::new(move |port| async move {
                find_without_frames(&port, STORE, source, range).await
            });
            run_reads(&bytes, procedure)
        };
        let expected = [(first.0, first_len), (second.0, second_len), (third.0, third_len)];
        let expected = expected.map(|(at, len)| (at as u64, len as u64));
        assert_eq!(search(block, len), expected);
        assert_eq!(search(first.0, len), expected);
        assert_eq!(search(first.0 + block, len), expected[1..], "its frame is before the range");
        assert_eq!(search(first.0, len - block), expected[..2], "it ends behind the range");
        assert_eq!(search(first.0, first.0 + block), []);
    }

    #[test]
    fn chunk_sums_do_not_depend_on_the_pieces() {
        let value: Vec<u8> = (0..30_000u32).map(|index| (index % 251) as u8).collect();
        let wanted: Vec<u32> = value.chunks(VALUE_CHUNK_LEN).map(checksum::plain).collect();
        for len in [1, 7, 100, VALUE_CHUNK_LEN - 1, VALUE_CHUNK_LEN, 9_000, 30_000] {
            let mut sums = ChunkSums::default();
            value.chunks(len).for_each(|piece| sums.update(piece));
            assert_eq!(sums.finish(), wanted, "in pieces of {len}");
        }
    }
}
