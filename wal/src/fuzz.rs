//! Decoders under hostile bytes: plain functions over bytes, for seeded tests and fuzzers alike.
//!
//! Each decodes the bytes as they are, and once more with their checksums set right, which is how
//! bytes get past the checksums and to the checks behind them. None may panic; what decodes must
//! keep its promises, which is asserted.

use crate::checksum::{self, Place};
use crate::disk::{BLOCK_SIZE, IoBuffer};
use crate::footer::{Footer, TRAILER_LEN, Trailer};
use crate::frame::{FRAME_HEADER_LEN, FrameHeader};
use crate::lsn::Lsn;
use crate::manifest::Manifest;
use crate::record::{self, RECORD_FIXED_LEN, RecordHeader, TouchBody};
use crate::replay;
use crate::segment::{SegmentHeader, Space};

const STORE: [u8; 16] = [5; 16];
const SEGMENT: Place = Place { store: STORE, segment: 3, offset: 0 };

fn set_u32(bytes: &mut [u8], at: usize, value: u32) {
    if let Some(target) = bytes.get_mut(at..).and_then(|rest| rest.first_chunk_mut()) {
        *target = value.to_le_bytes();
    }
}

fn set_magic(bytes: &mut [u8], at: usize, magic: &[u8]) {
    if let Some(target) = bytes.get_mut(at..at + magic.len()) {
        target.copy_from_slice(magic);
    }
}

/// Decodes a record, its value and its touch body. What decodes is encoded to the same bytes again.
pub fn fuzz_record(bytes: &[u8]) {
    let place = SEGMENT.at(4176);
    let check = |bytes: &[u8]| {
        if let Ok(header) = RecordHeader::decode(bytes, &place) {
            assert!(header.len() <= bytes.len(), "a header lies within its bytes");
            assert!(record::is_plausible(bytes), "a record is looked at");
            if let Ok(value) = header.value(bytes) {
                assert_eq!(value.len(), header.value_len);
                let _ = TouchBody::decode(value);
                let mut again = IoBuffer::with_capacity(header.record_len());
                header.record(value).encode(&place, header.first_lsn, &mut again);
                let len = header.len() + value.len();
                assert_eq!(again.as_slice()[..len], bytes[..len], "a record has one form");
            }
        }
    };
    check(bytes);
    let mut sealed = bytes.to_vec();
    let Some(fixed) = sealed.first_chunk_mut::<RECORD_FIXED_LEN>() else { return };
    fixed[5] &= 0x1F;
    fixed[7] = 0;
    set_u32(fixed, 8, u32::try_from(bytes.len() % 512).unwrap_or(0));
    let optional = [20, 8, 8, 8].iter().enumerate().filter(|(bit, _)| fixed[5] & 1 << bit != 0);
    let len = RECORD_FIXED_LEN + optional.map(|(_, len)| len).sum::<usize>();
    let end = (len + usize::from(fixed[6])).min(sealed.len());
    let value = sealed.get(end..end + bytes.len() % 512).map(checksum::plain);
    set_u32(&mut sealed, 12, value.unwrap_or(0));
    let crc = checksum::seeded(&place, &[&sealed[4..end]]);
    set_u32(&mut sealed, 0, crc);
    check(&sealed);
}

/// Decodes a frame: its header, repaired where one byte is wrong, and its records, salvaged if need
/// be.
pub fn fuzz_frame(bytes: &[u8]) {
    let place = SEGMENT.at(BLOCK_SIZE as u64);
    let check = |bytes: &[u8]| {
        let Some(head) = bytes.first_chunk::<FRAME_HEADER_LEN>() else { return };
        let _ = FrameHeader::decode_damaged(head, &place);
        let _ = FrameHeader::store_of(head, SEGMENT.segment);
        if let Ok(header) = FrameHeader::decode(head, &place) {
            assert!(header.last_lsn() >= header.first_lsn.before());
            replay::fuzz_read_frame(bytes, &place, &header);
        }
    };
    check(bytes);
    let mut sealed = bytes.to_vec();
    sealed.resize(bytes.len().next_multiple_of(BLOCK_SIZE).max(BLOCK_SIZE), 0);
    let len = u32::try_from(sealed.len()).unwrap_or(0);
    set_magic(&mut sealed, 0, b"KFRM\0");
    set_u32(&mut sealed, 40, len);
    let payload_crc = FrameHeader::payload_checksum(&place, &sealed[FRAME_HEADER_LEN..]);
    if bytes.len().is_multiple_of(2) {
        set_u32(&mut sealed, 72, payload_crc);
    }
    let crc = checksum::seeded(&place, &[&sealed[..76]]);
    set_u32(&mut sealed, 76, crc);
    check(&sealed);
}

/// Decodes the first block of a segment.
pub fn fuzz_segment_header(bytes: &[u8]) {
    let check = |bytes: &[u8]| {
        if let Ok(header) = SegmentHeader::decode(bytes) {
            let again = header.encode_over(Space::of(bytes));
            assert_eq!(SegmentHeader::decode(again.as_slice()), Ok(header));
        }
    };
    check(bytes);
    let mut sealed = bytes.to_vec();
    sealed.resize(bytes.len().max(SegmentHeader::LEN), 0);
    set_magic(&mut sealed, 0, b"KADRSEG\0\0\0");
    let crc = checksum::plain(&sealed[..72]);
    set_u32(&mut sealed, 72, crc);
    check(&sealed);
}

/// Decodes a manifest.
pub fn fuzz_manifest(bytes: &[u8]) {
    let check = |bytes: &[u8]| {
        if let Ok(mut manifest) = Manifest::decode(bytes) {
            assert_eq!(Manifest::decode(manifest.encode().as_slice()).as_ref(), Ok(&manifest));
            manifest.free(Lsn(1), Lsn(2));
            let settled = replay::settle(&[], &manifest.quarantine, manifest.durable_lsn);
            let _ = settled.last_lsn.next();
        }
    };
    check(bytes);
    let mut sealed = bytes.to_vec();
    sealed.resize(bytes.len().max(92), 0);
    set_magic(&mut sealed, 0, b"KADRMAN\0\0\0");
    let lists = sealed.len() - 92;
    let segments = usize::from(sealed[52]) % (lists / 24 + 1);
    let ranges = (lists - 24 * segments) / 48;
    set_u32(&mut sealed, 52, u32::try_from(segments).unwrap_or(0));
    set_u32(&mut sealed, 80, u32::try_from(ranges).unwrap_or(0));
    let end = 88 + 24 * segments + 48 * ranges;
    let crc = checksum::plain(&sealed[..end]);
    set_u32(&mut sealed, end, crc);
    check(&sealed);
}

/// Decodes a footer: trailer and entries.
pub fn fuzz_footer(bytes: &[u8]) {
    let len = bytes.len().next_multiple_of(BLOCK_SIZE).max(BLOCK_SIZE);
    let segment_len = 4 << 20;
    let check = |bytes: &[u8]| {
        let _ = Trailer::decode(bytes, &SEGMENT, segment_len);
        let mut buffer = IoBuffer::with_capacity(bytes.len());
        buffer.extend_from_slice(bytes);
        if let Ok(footer) = Footer::decode(buffer, &SEGMENT, segment_len) {
            let count = u32::try_from(footer.records().count());
            assert_eq!(count, Ok(footer.summary().record_count));
            let _ = replay::SegmentScan::from_footer(&footer);
            assert!(footer.records().all(|record| record.lsn <= footer.summary().last_lsn()));
        }
    };
    check(bytes);
    let mut sealed = bytes.to_vec();
    sealed.resize(len, 0);
    let at = len - TRAILER_LEN;
    let offset = (segment_len as usize).saturating_sub(len);
    let (body, trailer) = sealed.split_at_mut(at);
    let entries_crc = checksum::seeded(&SEGMENT.at(offset as u64), &[body]);
    set_magic(trailer, 0, b"KFTR\0\x01");
    set_magic(trailer, 32, &(offset as u64).to_le_bytes());
    set_u32(trailer, 40, u32::try_from(len).unwrap_or(0));
    // Whether it fits the length is up to the bytes: small footers of a block always do.
    set_u32(trailer, 44, u32::try_from(bytes.len().min(at)).unwrap_or(0));
    set_magic(trailer, 52, &[0; 4]);
    set_magic(trailer, 64, &(2u64 << 20).to_le_bytes());
    set_u32(trailer, 84, entries_crc);
    let crc = checksum::seeded(&SEGMENT.at(segment_len - TRAILER_LEN as u64), &[&trailer[..92]]);
    set_u32(trailer, 92, crc);
    check(&sealed);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::footer::{FooterTable, SegmentSummary, encode};
    use crate::record::{Key, Location, Namespace, RecordKind, Version};
    use crate::replay::ReplayedRecord;

    const ALL: [fn(&[u8]); 5] =
        [fuzz_record, fuzz_frame, fuzz_segment_header, fuzz_manifest, fuzz_footer];

    /// A valid footer with some bytes changed, entries included.
    fn footer(changes: &[(usize, u8)]) -> Vec<u8> {
        let mut table = FooterTable::default();
        let kinds = [RecordKind::Put, RecordKind::Touch, RecordKind::Tombstone];
        for (lsn, kind) in (5..).zip(kinds) {
            let base = Location { segment: 3, offset: 4176, header_len: 72, value_len: 8 };
            let body = TouchBody { base, user_key_crc: 0, base_lsn: Lsn(4) };
            table.push(&ReplayedRecord {
                kind,
                namespace: Namespace::PLAIN,
                key: Key([1; 20]),
                user_key_crc: 0,
                version: Version([9; 16]),
                expiry_ms: lsn,
                first_lsn: Lsn(4),
                lsn: Lsn(lsn),
                location: Location { offset: 4176 + lsn as u32 * 800, ..base },
                touch: (kind == RecordKind::Touch).then_some(body),
                damaged: false,
            });
        }
        let summary = SegmentSummary {
            first_lsn: Lsn(5),
            record_count: 3,
            frame_count: 1,
            frames_end: 1 << 20,
            wall_ms: 0,
            frames_crc: 0,
        };
        let (buffer, _) = encode(&SEGMENT, 4 << 20, Some(&table), &summary);
        let mut bytes = buffer.as_slice().to_vec();
        for (at, value) in changes {
            let at = at % table.entries_len();
            bytes[at] = *value;
        }
        bytes.truncate(table.entries_len());
        let end = BLOCK_SIZE - TRAILER_LEN;
        let trailer = &buffer.as_slice()[end..];
        bytes.resize(end, 0);
        bytes.extend_from_slice(trailer);
        bytes
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn no_decoder_panics_on_arbitrary_bytes(
            bytes in prop::collection::vec(any::<u8>(), 0..700),
        ) {
            ALL.iter().for_each(|fuzz| fuzz(&bytes));
        }

        #[test]
        fn no_decoder_panics_on_bytes_of_extremes(
            bytes in prop::collection::vec(prop_oneof![Just(0), Just(0xFF), Just(1)], 0..700),
        ) {
            ALL.iter().for_each(|fuzz| fuzz(&bytes));
        }

        #[test]
        fn changed_entries_of_a_footer_never_panic(
            changes in prop::collection::vec((any::<usize>(), any::<u8>()), 0..6),
        ) {
            let mut bytes = footer(&changes);
            // Sealed again, so that the entries are looked at.
            let body = bytes.len() - TRAILER_LEN;
            let offset = (4u64 << 20) - bytes.len() as u64;
            let crc = checksum::seeded(&SEGMENT.at(offset), &[&bytes[..body]]);
            set_u32(&mut bytes[body..], 84, crc);
            let place = SEGMENT.at((4 << 20) - TRAILER_LEN as u64);
            let crc = checksum::seeded(&place, &[&bytes[body..body + 92]]);
            set_u32(&mut bytes[body..], 92, crc);
            let mut buffer = IoBuffer::with_capacity(bytes.len());
            buffer.extend_from_slice(&bytes);
            let decoded = Footer::decode(buffer, &SEGMENT, 4 << 20);
            if changes.is_empty() {
                prop_assert!(decoded.is_ok());
            }
            if let Ok(footer) = decoded {
                prop_assert_eq!(footer.records().count(), 3);
            }
        }
    }
}
