//! The bytes of a checkpoint: encodes and verifies header, crowded chunks and trailer, and says
//! where everything stands.

#![deny(clippy::indexing_slicing, clippy::as_conversions)]

use std::ops::Range;

use wal::Lsn;
use wal::checksum::{self, Place};
use wal::disk::{BLOCK_SIZE, IoBuffer};
use wal::frame::FORMAT_VERSION;
use wal::record::{Key, Version};

use super::{BASES_MAX, CheckpointError, CheckpointFacts, CheckpointId, SegmentSummary};
use crate::index::arena::CHUNK_LEN;
use crate::index::page::PAGE_LEN;
use crate::index::slot::{SegmentNumber, Slot};

const MAGIC: [u8; 8] = *b"KADRCKP\0";
const FIXED_LEN: usize = 96;
const SEGMENT_LEN: usize = 48;
const COMPLETE: u8 = 1;
const HAS_CLEAR: u8 = 2;
const HEADER_CRC: Range<usize> = 84..88;
/// Bytes of a crowded entry.
const ENTRY_LEN: usize = 28;
/// Entries of a whole crowded chunk.
pub(crate) const CHUNK_ENTRIES: usize = CHUNK_LEN / ENTRY_LEN;
/// Longest checkpoint: 16 TiB, so that no sum below overflows.
const FILE_LEN_MAX: u64 = 1 << 44;

fn long(len: usize) -> u64 {
    u64::try_from(len).expect("lengths fit 64 bits")
}

/// Where the parts of a checkpoint stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    segments: usize,
    bases: usize,
    /// Pages of the index.
    pub(crate) pages: u64,
    /// Crowded entries.
    pub(crate) entries: u64,
}

/// A chunk's place in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ChunkPlace {
    /// Where it starts.
    pub(crate) offset: u64,
    /// Its bytes, a whole number of blocks.
    pub(crate) len: usize,
    /// Its crowded entries; none if it is a chunk of pages.
    pub(crate) entries: usize,
}

impl Layout {
    pub(crate) fn new(facts: &CheckpointFacts, pages: u64, entries: u64) -> Self {
        Self { segments: facts.segments.len(), bases: facts.bases.len(), pages, entries }
    }

    pub(crate) fn header_len(&self) -> usize {
        let lists = self.segments * SEGMENT_LEN + self.bases * ENTRY_LEN;
        (FIXED_LEN + lists).next_multiple_of(BLOCK_SIZE)
    }

    fn index_chunks(&self) -> u64 {
        (self.pages * long(PAGE_LEN)).div_ceil(long(CHUNK_LEN))
    }

    fn crowded_len(&self) -> u64 {
        let whole = self.entries / long(CHUNK_ENTRIES);
        let rest = self.entries % long(CHUNK_ENTRIES) * long(ENTRY_LEN);
        whole * long(CHUNK_LEN) + rest.next_multiple_of(long(BLOCK_SIZE))
    }

    pub(crate) fn chunks(&self) -> u64 {
        self.index_chunks() + self.entries.div_ceil(long(CHUNK_ENTRIES))
    }

    pub(crate) fn trailer_offset(&self) -> u64 {
        long(self.header_len()) + self.pages * long(PAGE_LEN) + self.crowded_len()
    }

    pub(crate) fn trailer_len(&self) -> usize {
        let chunks = usize::try_from(self.chunks()).expect("a file's chunks can be counted");
        (4 * chunks + 8).next_multiple_of(BLOCK_SIZE)
    }

    pub(crate) fn file_len(&self) -> u64 {
        self.trailer_offset() + long(self.trailer_len())
    }

    /// Where a chunk stands.
    pub(crate) fn chunk(&self, index: u64) -> ChunkPlace {
        let bounded = |len: u64| usize::try_from(len.min(long(CHUNK_LEN))).expect("1 MiB fits");
        let header = long(self.header_len());
        let pages_len = self.pages * long(PAGE_LEN);
        let Some(crowded) = index.checked_sub(self.index_chunks()) else {
            let start = index * long(CHUNK_LEN);
            let len = bounded(pages_len - start);
            return ChunkPlace { offset: header + start, len, entries: 0 };
        };
        let start = crowded * long(CHUNK_LEN);
        let entries = self.entries - crowded * long(CHUNK_ENTRIES);
        let entries = usize::try_from(entries.min(long(CHUNK_ENTRIES))).expect("37,449 fits");
        let len = bounded(self.crowded_len() - start);
        ChunkPlace { offset: header + pages_len + start, len, entries }
    }
}

/// The CRC of a part of the checkpoint.
pub(crate) fn checksum_at(id: &CheckpointId, offset: u64, parts: &[&[u8]]) -> u32 {
    let place = Place { store: id.store, segment: id.lsn.0, offset };
    checksum::seeded(&place, parts)
}

/// Compares a CRC.
pub(crate) fn verify(
    id: &CheckpointId,
    offset: u64,
    parts: &[&[u8]],
    expected: u32,
) -> Result<(), CheckpointError> {
    let found = checksum_at(id, offset, parts);
    if expected == found {
        Ok(())
    } else {
        Err(CheckpointError::Checksum { offset, expected, found })
    }
}

/// Bytes around a field of 4 bytes that its CRC takes for 0.
fn around(bytes: &[u8], crc: Range<usize>) -> Option<[&[u8]; 3]> {
    Some([bytes.get(..crc.start)?, &[0; 4], bytes.get(crc.end..)?])
}

fn put_checksum(id: &CheckpointId, offset: u64, bytes: &mut [u8], at: Range<usize>) {
    let parts = around(bytes, at.clone()).expect("the field lies within");
    let crc = checksum_at(id, offset, &parts);
    bytes.get_mut(at).expect("the field lies within").copy_from_slice(&crc.to_le_bytes());
}

/// Encodes the header.
pub(crate) fn encode_header(facts: &CheckpointFacts, layout: &Layout) -> IoBuffer {
    let id = &facts.id;
    let segments = u32::try_from(facts.segments.len()).expect("segments have numbers of 14 bits");
    let bases = u16::try_from(facts.bases.len()).expect("no cut is made of more");
    let mut out = IoBuffer::zeroed(layout.header_len());
    out.set_len(0);
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&u16::from(FORMAT_VERSION).to_le_bytes());
    out.extend_from_slice(&id.shard.to_le_bytes());
    out.extend_from_slice(&id.shard_count.to_le_bytes());
    out.extend_from_slice(&bases.to_le_bytes());
    out.extend_from_slice(&id.store);
    out.extend_from_slice(&id.lsn.0.to_le_bytes());
    out.extend_from_slice(&facts.version_max.0);
    out.extend_from_slice(&facts.wall_ms.to_le_bytes());
    out.extend_from_slice(&layout.pages.to_le_bytes());
    out.extend_from_slice(&layout.entries.to_le_bytes());
    out.extend_from_slice(&segments.to_le_bytes());
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&layout.file_len().to_le_bytes());
    for segment in &facts.segments {
        let (first, last) = segment.lsns.unwrap_or((Lsn::ZERO, Lsn::ZERO));
        for word in [segment.id, segment.end, first.0, last.0, segment.tombstone_bytes] {
            out.extend_from_slice(&word.to_le_bytes());
        }
        let flag = |is_set: bool, flag| if is_set { flag } else { 0 };
        let flags = flag(segment.complete, COMPLETE) | flag(segment.has_clear, HAS_CLEAR);
        out.extend_from_slice(&segment.number.0.to_le_bytes());
        out.extend_from_slice(&[flags, 0, 0, 0, 0, 0]);
    }
    facts.bases.iter().for_each(|(key, slot)| encode_entry(key, *slot, &mut out));
    out.set_len(layout.header_len());
    put_checksum(id, 0, out.as_mut_slice(), HEADER_CRC);
    out
}

struct Fields<'a> {
    bytes: &'a [u8],
    position: usize,
}

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], CheckpointError> {
        let rest = self.bytes.get(self.position..).unwrap_or_default();
        let error = CheckpointError::Malformed { position: long(self.position) };
        let found = rest.first_chunk().ok_or(error)?;
        self.position += N;
        Ok(*found)
    }

    fn u16(&mut self) -> Result<u16, CheckpointError> {
        self.take().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Result<u32, CheckpointError> {
        self.take().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, CheckpointError> {
        self.take().map(u64::from_le_bytes)
    }

    fn segment(&mut self) -> Result<SegmentSummary, CheckpointError> {
        let malformed = CheckpointError::Malformed { position: long(self.position) };
        let (id, end) = (self.u64()?, self.u64()?);
        let (first, last) = (Lsn(self.u64()?), Lsn(self.u64()?));
        let tombstone_bytes = self.u64()?;
        let number = SegmentNumber(self.u16()?);
        let [flags, ..]: [u8; 6] = self.take()?;
        if flags & !(COMPLETE | HAS_CLEAR) != 0 || first > last || last > Lsn::MAX {
            return Err(malformed);
        }
        let (complete, has_clear) = (flags & COMPLETE != 0, flags & HAS_CLEAR != 0);
        let lsns = (first != Lsn::ZERO).then_some((first, last));
        Ok(SegmentSummary { number, id, end, lsns, tombstone_bytes, complete, has_clear })
    }

    fn base(&mut self) -> Result<(Key, Slot), CheckpointError> {
        let position = long(self.position);
        let (key, word) = (Key(self.take()?), self.u64()?);
        let slot = Slot::from_word(word).ok_or(CheckpointError::Malformed { position })?;
        Ok((key, slot))
    }
}

/// Reads where everything stands from the first block of a file of `file_len` bytes; it is not
/// verified yet, but no sum of it overflows and no part is longer than the file.
///
/// # Errors
/// [`CheckpointError`].
pub(crate) fn decode_layout(block: &[u8], file_len: u64) -> Result<Layout, CheckpointError> {
    let mut fields = Fields { bytes: block, position: 0 };
    if fields.take::<8>().is_ok_and(|magic| magic != MAGIC) || block.len() < BLOCK_SIZE {
        return Err(CheckpointError::NotACheckpoint);
    }
    fields.position = 14;
    let bases = usize::from(fields.u16()?);
    if bases > BASES_MAX {
        return Err(CheckpointError::Malformed { position: 14 });
    }
    fields.position = 64;
    let (pages, entries, segments) = (fields.u64()?, fields.u64()?, fields.u32()?);
    let segments = usize::try_from(segments).unwrap_or(usize::MAX);
    if segments > SegmentNumber::COUNT {
        return Err(CheckpointError::Malformed { position: 80 });
    }
    if pages > FILE_LEN_MAX / long(PAGE_LEN) {
        return Err(CheckpointError::Malformed { position: 64 });
    }
    if entries > FILE_LEN_MAX / long(ENTRY_LEN) {
        return Err(CheckpointError::Malformed { position: 72 });
    }
    let layout = Layout { segments, bases, pages, entries };
    if layout.file_len() != file_len {
        return Err(CheckpointError::Length { needed: layout.file_len(), found: file_len });
    }
    Ok(layout)
}

/// Verifies and decodes the header of the checkpoint `id`.
///
/// # Errors
/// [`CheckpointError`].
pub(crate) fn decode_header(
    id: &CheckpointId,
    layout: &Layout,
    bytes: &[u8],
) -> Result<CheckpointFacts, CheckpointError> {
    let mut fields = Fields { bytes, position: 8 };
    let version = fields.u16()?;
    let (shard, shard_count, _reserved) = (fields.u16()?, fields.u16()?, fields.u16()?);
    let (store, lsn) = (fields.take()?, Lsn(fields.u64()?));
    let (version_max, wall_ms) = (Version(fields.take()?), fields.u64()?);
    fields.position = HEADER_CRC.start;
    let (expected, file_len) = (fields.u32()?, fields.u64()?);
    let found = CheckpointId { store, shard, shard_count, lsn };
    let bytes_found = long(bytes.len());
    let short = CheckpointError::Length { needed: long(layout.header_len()), found: bytes_found };
    verify(&found, 0, &around(bytes, HEADER_CRC).ok_or(short)?, expected)?;
    if version != u16::from(FORMAT_VERSION) {
        return Err(CheckpointError::Version { found: version });
    }
    if found != *id {
        return Err(CheckpointError::Foreign);
    }
    if file_len != layout.file_len() {
        return Err(CheckpointError::Malformed { position: 88 });
    }
    let mut segments: Vec<SegmentSummary> = Vec::with_capacity(layout.segments);
    for _ in 0..layout.segments {
        let position = long(fields.position);
        let segment = fields.segment()?;
        let is_last_number = usize::from(segment.number.0) >= SegmentNumber::COUNT;
        if is_last_number || segments.last().is_some_and(|last| last.number >= segment.number) {
            return Err(CheckpointError::Malformed { position });
        }
        segments.push(segment);
    }
    let bases: Vec<_> = (0..layout.bases).map(|_| fields.base()).collect::<Result<_, _>>()?;
    if !bases.is_sorted_by(|(key, _), (next, _)| key < next) {
        return Err(CheckpointError::Malformed { position: long(fields.position) });
    }
    Ok(CheckpointFacts { id: found, version_max, wall_ms, segments, bases })
}

/// Appends a crowded entry to its chunk.
pub(crate) fn encode_entry(key: &Key, slot: Slot, out: &mut IoBuffer) {
    out.extend_from_slice(&key.0);
    out.extend_from_slice(&slot.to_word().to_le_bytes());
}

/// Decodes the crowded entries of a verified chunk.
///
/// # Errors
/// [`CheckpointError::Malformed`] for a slot that cannot be.
pub(crate) fn decode_entries(
    place: &ChunkPlace,
    bytes: &[u8],
) -> impl Iterator<Item = Result<(Key, Slot), CheckpointError>> {
    let entries = bytes.as_chunks::<ENTRY_LEN>().0.iter().take(place.entries);
    let offset = place.offset;
    entries.enumerate().map(move |(index, entry)| {
        let position = offset + long(index * ENTRY_LEN);
        let base = Fields { bytes: entry, position: 0 }.base();
        base.map_err(|_| CheckpointError::Malformed { position })
    })
}

/// Encodes the trailer.
pub(crate) fn encode_trailer(id: &CheckpointId, layout: &Layout, chunks: &[u32]) -> IoBuffer {
    let count = u32::try_from(chunks.len()).expect("a file's chunks can be counted");
    let mut out = IoBuffer::zeroed(layout.trailer_len());
    out.set_len(0);
    chunks.iter().for_each(|crc| out.extend_from_slice(&crc.to_le_bytes()));
    out.extend_from_slice(&count.to_le_bytes());
    let crc = out.len()..out.len() + 4;
    out.set_len(layout.trailer_len());
    put_checksum(id, layout.trailer_offset(), out.as_mut_slice(), crc);
    out
}

/// Verifies and decodes the trailer: the CRC of each chunk.
///
/// # Errors
/// [`CheckpointError`].
pub(crate) fn decode_trailer(
    id: &CheckpointId,
    layout: &Layout,
    bytes: &[u8],
) -> Result<Vec<u32>, CheckpointError> {
    let offset = layout.trailer_offset();
    let malformed = CheckpointError::Malformed { position: offset };
    let count = usize::try_from(layout.chunks()).map_err(|_| malformed)?;
    let crc = 4 * count + 4..4 * count + 8;
    let mut fields = Fields { bytes, position: 4 * count };
    let (stored, expected) = (fields.u32()?, fields.u32()?);
    verify(id, offset, &around(bytes, crc).ok_or(malformed)?, expected)?;
    if u64::from(stored) != layout.chunks() {
        return Err(malformed);
    }
    let (words, _) = bytes.as_chunks::<4>();
    Ok(words.iter().take(count).map(|word| u32::from_le_bytes(*word)).collect())
}

/// Makes every checksum match the bytes, so that a fuzzer gets past them.
pub(crate) fn reseal(id: &CheckpointId, bytes: &mut [u8]) -> Option<()> {
    let layout = decode_layout(bytes.get(..BLOCK_SIZE)?, long(bytes.len())).ok()?;
    put_checksum(id, 0, bytes.get_mut(..layout.header_len())?, HEADER_CRC);
    let mut crcs = Vec::new();
    for index in 0..layout.chunks() {
        let place = layout.chunk(index);
        let start = usize::try_from(place.offset).ok()?;
        let chunk = bytes.get(start..start + place.len)?;
        crcs.push(checksum_at(id, place.offset, &[chunk]));
    }
    let trailer = bytes.get_mut(usize::try_from(layout.trailer_offset()).ok()?..)?;
    trailer.copy_from_slice(encode_trailer(id, &layout, &crcs).as_slice());
    Some(())
}
