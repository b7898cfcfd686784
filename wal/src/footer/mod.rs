//! The end of a segment that was left: a table of its records, and a trailer that says where the
//! segment's frames end.
//!
//! A footer lets recovery rebuild the index without reading the records. It is written once, after
//! every frame of its segment has become durable, and ends where the segment's file ends: the
//! trailer is found in the last block. What lies between the last frame and the footer is never
//! looked at again. The table is left out where the footer would take more than 1/16 of the
//! segment; the trailer then stands alone. A segment that was not left in good order has no footer.
//!
//! A footer is an extract: nothing is lost with it. Whatever is wrong with one, recovery scans the
//! frames. It is trusted only as a whole: its checksums hold, and its entries are the records of
//! consecutive LSNs in ascending places before the end of the frames, as many as the trailer says.
//!
//! All integers are little-endian. A footer starts at a block:
//!
//! | offset | size | field | meaning |
//! |---|---|---|---|
//! | 0 | e | entries | one after the other, each a multiple of 8 |
//! | e | | zeros | up to the trailer |
//! | length - 96 | 96 | trailer | the last bytes of the segment |
//!
//! Entry; the fields from 48 on are there as the flags say, one after the other:
//!
//! | offset | size | field | meaning |
//! |---|---|---|---|
//! | 0 | 1 | kind | as in the record |
//! | 1 | 1 | flags | 1: node half given, 2: expiry given, 4: first LSN given |
//! | 2 | 1 | namespace | |
//! | 3 | 1 | reserved | 0 |
//! | 4 | 4 | offset | of the record in the segment, in bytes |
//! | 8 | 4 | value length | |
//! | 12 | 4 | header length | bytes of the record before its value |
//! | 16 | 4 | user key CRC | CRC-32 of the user key |
//! | 20 | 20 | key | key id |
//! | 40 | 8 | version, first half | bytes 0 to 7 |
//! | | 8 | version, node half | bytes 8 to 15; if not given, as in the entry before, or zeros |
//! | | 8 | expiry | milliseconds since 1970; if not given, 0 = never |
//! | | 8 | first LSN | if not given, the record's LSN: it is no copy |
//! | | 32 | touch body | in entries of touch records, always |
//!
//! Trailer:
//!
//! | offset | size | field | meaning |
//! |---|---|---|---|
//! | 0 | 4 | magic | `KFTR` |
//! | 4 | 1 | format version | 1 |
//! | 5 | 1 | flags | 1: the table is there |
//! | 6 | 2 | reserved | 0 |
//! | 8 | 16 | store | the store's uuid |
//! | 24 | 8 | segment | the segment's id |
//! | 32 | 8 | offset | where the footer starts in the segment, in bytes |
//! | 40 | 4 | length | bytes of the footer: whole blocks |
//! | 44 | 4 | entries length | e; 0 if there is no table |
//! | 48 | 8 | first LSN | of the segment's first record, or of the next one to come |
//! | 56 | 4 | record count | records in the segment's frames |
//! | 60 | 4 | frame count | idle ones included |
//! | 64 | 8 | frames end | where the last frame ends, in bytes |
//! | 72 | 8 | wall time | the newest of its frames' |
//! | 80 | 4 | frames CRC | CRC-32 of the segment's bytes from 4096 to the frames' end, not seeded |
//! | 84 | 4 | entries CRC | CRC-32 of the footer's place and of its bytes up to the trailer |
//! | 88 | 4 | reserved | 0 |
//! | 92 | 4 | trailer CRC | CRC-32 of the trailer's place and of its bytes 0 to 91 |

use crate::checksum::{self, Place};
use crate::disk::{BLOCK_SIZE, DiskOperation, IoBuffer};
use crate::frame::{FORMAT_VERSION, FRAME_HEADER_LEN};
use crate::lsn::Lsn;
use crate::procedure::DiskPort;
use crate::record::{
    self, Key, Location, Namespace, RECORD_ALIGNMENT, RECORD_FIXED_LEN, RECORD_HEADER_LEN_MAX,
    RecordKind, TouchBody, VALUE_LEN_MAX, Version,
};
use crate::replay::{ReplayedRecord, SegmentSource};
use crate::segment::{SEGMENT_BYTES_MAX, SEGMENT_HEADER_LEN};

/// Bytes of a trailer, the last ones of its segment.
pub const TRAILER_LEN: usize = 96;
/// A footer takes at most this part of its segment's bytes.
pub const FOOTER_SHARE_MAX: u64 = 16;

const MAGIC: [u8; 4] = *b"KFTR";
const ENTRY_LEN: usize = 48;
/// Longest entry: every field given, and a touch body.
const ENTRY_LEN_MAX: usize = ENTRY_LEN + 24 + TouchBody::LEN;
const HAS_NODE_HALF: u8 = 1;
const HAS_EXPIRY: u8 = 2;
const HAS_FIRST_LSN: u8 = 4;
const HAS_TABLE: u8 = 1;

/// Bytes of a footer whose entries take `entries_len` bytes.
#[must_use]
pub fn footer_len(entries_len: usize) -> usize {
    (entries_len + TRAILER_LEN).next_multiple_of(BLOCK_SIZE)
}

/// The entries of a segment under way.
#[derive(Debug, Default)]
pub struct FooterTable {
    bytes: Vec<u8>,
    node_half: [u8; 8],
}

impl FooterTable {
    /// Starts a table that will not grow beyond `bytes`: it is never moved.
    #[must_use]
    pub fn with_capacity(bytes: usize) -> Self {
        Self { bytes: Vec::with_capacity(bytes), node_half: [0; 8] }
    }

    /// Bytes of the entries so far.
    #[must_use]
    pub fn entries_len(&self) -> usize {
        self.bytes.len()
    }

    /// Bytes of the footer once it has one entry more, whatever that says.
    #[must_use]
    pub fn footer_len_max(&self) -> usize {
        footer_len(self.bytes.len() + ENTRY_LEN_MAX)
    }

    /// Adds the segment's next record.
    pub fn push(&mut self, record: &ReplayedRecord) {
        let Location { offset, header_len, value_len, .. } = record.location;
        let (first_half, node_half) = record.version.0.split_at(8);
        let has_node_half = *node_half != self.node_half;
        let has_first_lsn = record.first_lsn != record.lsn;
        let flags = u8::from(has_node_half) * HAS_NODE_HALF
            + u8::from(record.expiry_ms != 0) * HAS_EXPIRY
            + u8::from(has_first_lsn) * HAS_FIRST_LSN;
        let out = &mut self.bytes;
        out.extend_from_slice(&[record.kind.code(), flags, record.namespace.0, 0]);
        out.extend_from_slice(&offset.to_le_bytes());
        out.extend_from_slice(&value_len.to_le_bytes());
        out.extend_from_slice(&header_len.to_le_bytes());
        out.extend_from_slice(&record.user_key_crc.to_le_bytes());
        out.extend_from_slice(&record.key.0);
        out.extend_from_slice(first_half);
        if has_node_half {
            out.extend_from_slice(node_half);
            self.node_half.copy_from_slice(node_half);
        }
        if record.expiry_ms != 0 {
            out.extend_from_slice(&record.expiry_ms.to_le_bytes());
        }
        if has_first_lsn {
            out.extend_from_slice(&record.first_lsn.0.to_le_bytes());
        }
        if let Some(body) = &record.touch {
            out.extend_from_slice(&body.encode());
        }
    }
}

/// What the trailer says of its segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentSummary {
    /// LSN of the segment's first record, or of the next one to come if it has none.
    pub first_lsn: Lsn,
    /// Records in the segment's frames.
    pub record_count: u32,
    /// Frames, idle ones included.
    pub frame_count: u32,
    /// Where the last frame ends, in bytes.
    pub frames_end: u64,
    /// The newest time that a frame carries, in milliseconds since 1970.
    pub wall_ms: u64,
    /// CRC-32 of the segment's bytes from its second block to `frames_end`.
    pub frames_crc: u32,
}

impl SegmentSummary {
    /// LSN of the segment's last record; if it has none, of the record before it.
    #[must_use]
    pub fn last_lsn(&self) -> Lsn {
        self.first_lsn.before().plus(u64::from(self.record_count))
    }
}

/// Encodes the footer that ends at the end of a segment of `segment_len` bytes, whose start is at
/// `segment`; without a table, the trailer alone. Returns it and where it belongs.
///
/// # Panics
/// If the segment is not in whole blocks, or shorter than the footer.
#[must_use]
pub fn encode(
    segment: &Place,
    segment_len: u64,
    table: Option<&FooterTable>,
    summary: &SegmentSummary,
) -> (IoBuffer, u64) {
    let entries = table.map_or(&[][..], |table| &table.bytes);
    let len = footer_len(entries.len());
    let offset = segment_len.checked_sub(len as u64).expect("a footer is shorter than its segment");
    assert!(offset.is_multiple_of(BLOCK_SIZE as u64), "a segment has whole blocks");
    let mut buffer = IoBuffer::zeroed(len);
    let (body, trailer) = buffer.as_mut_slice().split_at_mut(len - TRAILER_LEN);
    body[..entries.len()].copy_from_slice(entries);
    let entries_crc = checksum::seeded(&segment.at(offset), &[body]);
    let fits = |value: usize| u32::try_from(value).expect("a footer is far below 4 GiB");
    trailer[0..4].copy_from_slice(&MAGIC);
    trailer[4] = FORMAT_VERSION;
    trailer[5] = u8::from(table.is_some()) * HAS_TABLE;
    trailer[8..24].copy_from_slice(&segment.store);
    trailer[24..32].copy_from_slice(&segment.segment.to_le_bytes());
    trailer[32..40].copy_from_slice(&offset.to_le_bytes());
    trailer[40..44].copy_from_slice(&fits(len).to_le_bytes());
    trailer[44..48].copy_from_slice(&fits(entries.len()).to_le_bytes());
    trailer[48..56].copy_from_slice(&summary.first_lsn.0.to_le_bytes());
    trailer[56..60].copy_from_slice(&summary.record_count.to_le_bytes());
    trailer[60..64].copy_from_slice(&summary.frame_count.to_le_bytes());
    trailer[64..72].copy_from_slice(&summary.frames_end.to_le_bytes());
    trailer[72..80].copy_from_slice(&summary.wall_ms.to_le_bytes());
    trailer[80..84].copy_from_slice(&summary.frames_crc.to_le_bytes());
    trailer[84..88].copy_from_slice(&entries_crc.to_le_bytes());
    let place = segment.at(segment_len - TRAILER_LEN as u64);
    let crc = checksum::seeded(&place, &[&trailer[..92]]);
    trailer[92..96].copy_from_slice(&crc.to_le_bytes());
    (buffer, offset)
}

/// Why bytes are not a footer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FooterError {
    /// The bytes do not end like a footer.
    #[error("no footer")]
    NotAFooter,
    /// The trailer's checksum does not match.
    #[error("footer trailer checksum {found:08x}, expected {expected:08x}")]
    TrailerChecksum {
        /// As stored.
        expected: u32,
        /// As computed.
        found: u32,
    },
    /// A valid trailer of a format version this code does not know.
    #[error("footer of format version {found}, this program knows {FORMAT_VERSION}")]
    Version {
        /// The version found.
        found: u8,
    },
    /// The trailer's fields contradict each other or the segment.
    #[error("footer trailer makes no sense")]
    Trailer,
    /// The checksum of the entries does not match.
    #[error("footer entries checksum {found:08x}, expected {expected:08x}")]
    EntriesChecksum {
        /// As stored.
        expected: u32,
        /// As computed.
        found: u32,
    },
    /// An entry cannot be, or there are more or fewer than the trailer says.
    #[error("footer entry at byte {position} makes no sense")]
    Entry {
        /// Where.
        position: usize,
    },
}

/// A decoded trailer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trailer {
    /// Where the footer starts in the segment, in bytes.
    pub offset: u64,
    /// Bytes of the footer.
    pub len: usize,
    /// What it says of the segment.
    pub summary: SegmentSummary,
    /// Bytes of the entries; `None` if there is no table.
    entries_len: Option<usize>,
    entries_crc: u32,
}

impl Trailer {
    /// Decodes and verifies the trailer in the last bytes of `last_block`, with which a segment of
    /// `segment_len` bytes that starts at `segment` ends.
    ///
    /// # Errors
    /// [`FooterError`], but for those of entries.
    pub fn decode(
        last_block: &[u8],
        segment: &Place,
        segment_len: u64,
    ) -> Result<Self, FooterError> {
        let bytes: &[u8; TRAILER_LEN] = last_block.last_chunk().ok_or(FooterError::NotAFooter)?;
        let at = segment_len.checked_sub(TRAILER_LEN as u64).ok_or(FooterError::NotAFooter)?;
        if bytes[..4] != MAGIC {
            return Err(FooterError::NotAFooter);
        }
        let expected = u32::from_le_bytes(field(bytes, 92));
        let found = checksum::seeded(&segment.at(at), &[&bytes[..92]]);
        if expected != found {
            return Err(FooterError::TrailerChecksum { expected, found });
        }
        if bytes[4] != FORMAT_VERSION {
            return Err(FooterError::Version { found: bytes[4] });
        }
        let len = usize::try_from(u32::from_le_bytes(field(bytes, 40)));
        let entries_len = usize::try_from(u32::from_le_bytes(field(bytes, 44)));
        let (Ok(len), Ok(entries_len)) = (len, entries_len) else {
            return Err(FooterError::Trailer);
        };
        let trailer = Self {
            offset: u64::from_le_bytes(field(bytes, 32)),
            len,
            summary: SegmentSummary {
                first_lsn: Lsn(u64::from_le_bytes(field(bytes, 48))),
                record_count: u32::from_le_bytes(field(bytes, 56)),
                frame_count: u32::from_le_bytes(field(bytes, 60)),
                frames_end: u64::from_le_bytes(field(bytes, 64)),
                wall_ms: u64::from_le_bytes(field(bytes, 72)),
                frames_crc: u32::from_le_bytes(field(bytes, 80)),
            },
            entries_len: (bytes[5] & HAS_TABLE != 0).then_some(entries_len),
            entries_crc: u32::from_le_bytes(field(bytes, 84)),
        };
        let known = bytes[5] & !HAS_TABLE == 0;
        if known && trailer.is_sound(segment_len) { Ok(trailer) } else { Err(FooterError::Trailer) }
    }

    fn is_sound(&self, segment_len: u64) -> bool {
        let block = BLOCK_SIZE as u64;
        let SegmentSummary { first_lsn, record_count, frames_end, .. } = self.summary;
        segment_len <= SEGMENT_BYTES_MAX
            && self.len == footer_len(self.entries_len.unwrap_or(0))
            && self.offset.checked_add(self.len as u64) == Some(segment_len)
            && self.offset.is_multiple_of(block)
            && frames_end.is_multiple_of(block)
            && (SEGMENT_HEADER_LEN..=self.offset).contains(&frames_end)
            && (Lsn(1)..=Lsn::MAX).contains(&first_lsn)
            && u64::from(record_count) <= segment_len
    }

    /// Whether the footer lists the segment's records.
    #[must_use]
    pub fn has_table(&self) -> bool {
        self.entries_len.is_some()
    }

    /// CRC-32, not seeded, of the footer's bytes: what it is if none of them is damaged.
    /// `last_block` and `segment` are what the trailer was decoded from.
    #[must_use]
    pub fn footer_crc(&self, last_block: &[u8], segment: &Place) -> Option<u32> {
        let trailer: &[u8; TRAILER_LEN] = last_block.last_chunk()?;
        let body_len = self.len.checked_sub(TRAILER_LEN)? as u64;
        let body = checksum::unseeded(&segment.at(self.offset), self.entries_crc, body_len);
        Some(checksum::continued(body, body_len, trailer))
    }

    /// Verifies the bytes of the footer, from `offset` to the end of the segment.
    ///
    /// # Errors
    /// [`FooterError::EntriesChecksum`].
    pub fn verify(&self, bytes: &[u8], segment: &Place) -> Result<(), FooterError> {
        let body = self.len.checked_sub(TRAILER_LEN).and_then(|end| bytes.get(..end));
        let body = body.ok_or(FooterError::NotAFooter)?;
        let found = checksum::seeded(&segment.at(self.offset), &[body]);
        let expected = self.entries_crc;
        if found == expected {
            Ok(())
        } else {
            Err(FooterError::EntriesChecksum { expected, found })
        }
    }
}

fn field<const N: usize>(bytes: &[u8; TRAILER_LEN], offset: usize) -> [u8; N] {
    *bytes[offset..].first_chunk().expect("fields lie within the trailer")
}

/// A whole and valid footer with its table.
#[derive(Debug)]
pub struct Footer {
    segment: u64,
    trailer: Trailer,
    bytes: IoBuffer,
}

impl Footer {
    /// Verifies a footer: all its bytes, with the trailer at the end. `segment` is where its
    /// segment starts.
    ///
    /// # Errors
    /// [`FooterError`]; [`FooterError::NotAFooter`] if it has no table.
    pub fn decode(bytes: IoBuffer, segment: &Place, segment_len: u64) -> Result<Self, FooterError> {
        let trailer = Trailer::decode(bytes.as_slice(), segment, segment_len)?;
        if !trailer.has_table() || bytes.len() != trailer.len {
            return Err(FooterError::NotAFooter);
        }
        trailer.verify(bytes.as_slice(), segment)?;
        let footer = Self { segment: segment.segment, trailer, bytes };
        let mut entries = footer.records();
        let mut count = 0u32;
        let mut end = SEGMENT_HEADER_LEN + FRAME_HEADER_LEN as u64;
        while let Some(record) = entries.next() {
            let starts = u64::from(record.location.offset);
            if starts < end || !starts.is_multiple_of(RECORD_ALIGNMENT as u64) {
                return Err(FooterError::Entry { position: entries.position });
            }
            end = starts + record.location.record_len();
            count = count.checked_add(1).ok_or(FooterError::Trailer)?;
        }
        let Records { position, .. } = entries;
        let complete = Some(position) == footer.trailer.entries_len
            && count == footer.trailer.summary.record_count
            && (count == 0 || end <= footer.trailer.summary.frames_end);
        if complete { Ok(footer) } else { Err(FooterError::Entry { position }) }
    }

    /// What the trailer says of the segment.
    #[must_use]
    pub fn summary(&self) -> &SegmentSummary {
        &self.trailer.summary
    }

    /// The segment's id.
    #[must_use]
    pub fn segment(&self) -> u64 {
        self.segment
    }

    /// The segment's records, in the order they stand: what a scan of its frames would tell.
    #[must_use]
    pub fn records(&self) -> Records<'_> {
        let len = self.trailer.entries_len.unwrap_or(0).min(self.bytes.len());
        Records {
            bytes: self.bytes.as_slice().get(..len).unwrap_or_default(),
            position: 0,
            segment: self.segment,
            lsn: self.trailer.summary.first_lsn,
            node_half: [0; 8],
        }
    }
}

/// The records that a footer lists.
#[derive(Clone, Debug)]
pub struct Records<'a> {
    bytes: &'a [u8],
    position: usize,
    segment: u64,
    lsn: Lsn,
    node_half: [u8; 8],
}

impl Records<'_> {
    fn field<const N: usize>(&self, at: &mut usize) -> Option<[u8; N]> {
        let found = *self.bytes.get(*at..)?.first_chunk()?;
        *at += N;
        Some(found)
    }

    fn take_u32(&self, at: &mut usize) -> Option<u32> {
        self.field(at).map(u32::from_le_bytes)
    }

    fn entry(&mut self) -> Option<ReplayedRecord> {
        let mut at = self.position;
        let [kind, flags, namespace, reserved] = self.field(&mut at)?;
        let kind = RecordKind::from_code(kind)?;
        let known = flags & !(HAS_NODE_HALF | HAS_EXPIRY | HAS_FIRST_LSN) == 0;
        let (offset, value_len) = (self.take_u32(&mut at)?, self.take_u32(&mut at)?);
        let header_len = self.take_u32(&mut at)?;
        let value = usize::try_from(value_len).ok().filter(|len| *len <= VALUE_LEN_MAX)?;
        let besides =
            usize::try_from(header_len).ok()?.checked_sub(record::chunk_crcs_len(value))?;
        let known_len = (RECORD_FIXED_LEN..=RECORD_HEADER_LEN_MAX).contains(&besides);
        let user_key_crc = self.take_u32(&mut at)?;
        let key = Key(self.field(&mut at)?);
        let first_half: [u8; 8] = self.field(&mut at)?;
        let mut node_half = self.node_half;
        if flags & HAS_NODE_HALF != 0 {
            node_half = self.field(&mut at)?;
        }
        let mut expiry_ms = 0;
        if flags & HAS_EXPIRY != 0 {
            expiry_ms = u64::from_le_bytes(self.field(&mut at)?);
        }
        let mut first_lsn = self.lsn;
        if flags & HAS_FIRST_LSN != 0 {
            first_lsn = Lsn(u64::from_le_bytes(self.field(&mut at)?));
        }
        let mut touch = None;
        if kind == RecordKind::Touch {
            let body: [u8; TouchBody::LEN] = self.field(&mut at)?;
            touch = Some(TouchBody::decode(&body)?);
        }
        let known = known && known_len && namespace < 16;
        if !known || reserved != 0 || first_lsn > self.lsn {
            return None;
        }
        let lsn = self.lsn;
        let (whole, half) = (first_half.into_iter().chain(node_half), node_half);
        let mut version = [0; 16];
        version.iter_mut().zip(whole).for_each(|(to, from)| *to = from);
        self.lsn = Lsn(lsn.0.checked_add(1)?);
        (self.position, self.node_half) = (at, half);
        Some(ReplayedRecord {
            kind,
            namespace: Namespace(namespace),
            key,
            user_key_crc,
            version: Version(version),
            expiry_ms,
            first_lsn,
            lsn,
            location: Location { segment: self.segment, offset, header_len, value_len },
            touch,
            damaged: false,
        })
    }
}

impl Iterator for Records<'_> {
    type Item = ReplayedRecord;

    /// Ends at the end of the table, or at an entry that cannot be; then `position` stays there.
    fn next(&mut self) -> Option<ReplayedRecord> {
        self.entry()
    }
}

/// Reads a segment's footer. `None` if it has none with a table, it cannot be read, anything is
/// wrong with it, or it contradicts where the segment's frames are known to end: then its frames
/// must be scanned. So must those of a segment with quarantined ranges; that is the caller's part.
pub async fn read_footer(
    port: &DiskPort,
    store: [u8; 16],
    source: &SegmentSource,
) -> Option<Footer> {
    let segment = Place { store, segment: source.id, offset: 0 };
    let last = source.len.checked_sub(BLOCK_SIZE as u64)?;
    let block = read(port, source, last, BLOCK_SIZE).await?;
    let trailer = Trailer::decode(block.as_slice(), &segment, source.len).ok()?;
    if !trailer.has_table() || source.cut.is_some_and(|cut| cut != trailer.summary.frames_end) {
        return None;
    }
    let bytes = if trailer.len == BLOCK_SIZE {
        block
    } else {
        read(port, source, trailer.offset, trailer.len).await?
    };
    Footer::decode(bytes, &segment, source.len).ok()
}

async fn read(
    port: &DiskPort,
    source: &SegmentSource,
    offset: u64,
    len: usize,
) -> Option<IoBuffer> {
    let buffer = IoBuffer::with_capacity(len);
    let read = DiskOperation::Read { file: source.file, offset, len, buffer };
    port.transfer(read).await.ok().filter(|buffer| buffer.len() == len)
}

#[cfg(test)]
mod tests;
