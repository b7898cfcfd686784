//! The target for extents: a frame that stands for more than itself, and the put behind it.

use fastrand::Rng;
use wal::Lsn;
use wal::checksum::{self, Place};
use wal::disk::{BLOCK_SIZE, DiskCompletion, DiskOperation, DiskOutput, FileId, IoBuffer};
use wal::extent::{self, ChunkSums, ExtentContent, RECORD_OFFSET};
use wal::frame::{self, FRAME_HEADER_LEN, FrameHeader, FrameStamp};
use wal::procedure::Procedure;
use wal::record::{Key, Namespace, RECORD_FIXED_LEN, Record, RecordKind, Version};
use wal::replay::SegmentSource;

const PLACE: Place = Place { store: [9; 16], segment: 1, offset: BLOCK_SIZE as u64 };

/// An extent: its frame, the header behind it, and the value read piece by piece.
///
/// # Panics
/// If the record that is found there is not the one that its bytes are.
pub fn extent(bytes: &[u8]) {
    let Some(head) = bytes.first_chunk::<FRAME_HEADER_LEN>() else { return };
    let header = FrameHeader::decode(head, &PLACE).ok();
    let damaged = FrameHeader::decode_damaged(head, &PLACE).map(|(header, _)| header);
    for found in header.into_iter().chain(damaged).filter(|found| found.is_extent) {
        assert_eq!(found.record_count, 0, "the frame of an extent has no records");
        assert_eq!(found.payload_len(), BLOCK_SIZE - FRAME_HEADER_LEN);
        assert_eq!(FrameHeader::decode(&found.encode(&PLACE), &PLACE), Ok(found));
    }
    // A range that somebody claims to be an extent, whether its frame is one or not.
    let told = header.filter(|header| header.is_extent).map(|header| u64::from(header.len));
    for len in told.into_iter().chain([bytes.len() as u64]) {
        check_content(bytes, len);
    }
}

/// Looks at the record of an extent of `len` bytes in both ways.
fn check_content(bytes: &[u8], len: u64) {
    let found = content(bytes, len);
    let within = usize::try_from(len).unwrap_or(usize::MAX).min(bytes.len());
    let record = bytes[..within].get(BLOCK_SIZE..).unwrap_or_default();
    let Some(header) = extent::record_header(record, &PLACE) else {
        assert_eq!((found.record, found.is_sound), (None, false), "a record out of nothing");
        return;
    };
    let location = extent::location_of(&header, &PLACE).expect("it is near the file's start");
    assert_eq!(u64::from(location.offset), PLACE.offset + RECORD_OFFSET);
    let expected = Some((header.key, location));
    let is_sound = header.value(record).is_ok();
    if len <= bytes.len() as u64 {
        assert_eq!((found.record, found.is_sound), (expected, is_sound));
    } else {
        // A piece that ends before it should counts as lost.
        assert!(found.record.is_none() || found.record == expected);
        assert!(!found.is_sound || is_sound);
    }
}

/// What [`extent::verify`] finds in a file that ends with these bytes.
fn content(bytes: &[u8], len: u64) -> ExtentContent {
    let file_len = PLACE.offset + bytes.len() as u64;
    let source = SegmentSource { id: PLACE.segment, file: FileId(1), len: file_len, cut: None };
    let mut procedure = Procedure::new(move |port| async move {
        extent::verify(&port, PLACE.store, source, (PLACE.offset, len)).await
    });
    loop {
        if let Some(found) = procedure.take_output() {
            return found;
        }
        let request = procedure.poll_request().expect("it waits for a read");
        let DiskOperation::Read { offset, len, mut buffer, .. } = request.operation else {
            panic!("it only reads");
        };
        let at = usize::try_from(offset - PLACE.offset).expect("extents are small");
        buffer.set_len(0);
        buffer.extend_from_slice(&bytes[at.min(bytes.len())..(at + len).min(bytes.len())]);
        let (id, result) = (request.id, Ok(DiskOutput::Done));
        procedure.handle_disk(DiskCompletion { id, result, buffer: Some(buffer) });
    }
}

/// Whether the bytes are an extent with a sound value.
#[cfg(test)]
pub(super) fn is_sound(bytes: &[u8]) -> bool {
    let header = bytes.first_chunk().map(|head| FrameHeader::decode(head, &PLACE));
    let Some(Ok(header)) = header else { return false };
    header.is_extent && content(bytes, u64::from(header.len)).is_sound
}

/// An extent of one piece or of two.
pub(super) fn valid_extent(rng: &mut Rng) -> Vec<u8> {
    let mut value = vec![0; [8_193, 20_000, 300_000][rng.usize(..3)]];
    rng.fill(&mut value);
    let record = Record {
        kind: RecordKind::Put,
        namespace: Namespace::PLAIN,
        key: Key([3; 20]),
        hashed: false,
        user_key: b"a user key",
        version: Version(rng.u128(..).to_be_bytes()),
        expiry_ms: 0,
        value: &value,
    };
    let header_len = record.header_len(&PLACE.store, None);
    let len = BLOCK_SIZE + extent::record_len(header_len, value.len());
    let first_lsn = Lsn(rng.u64(1..100));
    let stamp = FrameStamp {
        first_lsn,
        record_count: 0,
        durable_lsn: Lsn(first_lsn.0 - 1),
        wall_ms: 1_700_000_000_000,
    };
    let mut buffer = IoBuffer::with_capacity(len);
    buffer.extend_from_slice(&[0; FRAME_HEADER_LEN]);
    frame::finish_extent(&mut buffer, &PLACE, &stamp, len);
    let mut sums = ChunkSums::default();
    sums.update(&value);
    let place = PLACE.at(PLACE.offset + RECORD_OFFSET);
    record.encode_header(&place, &sums.finish(), &mut buffer);
    buffer.extend_from_slice(&value);
    buffer.pad_to(len);
    buffer.as_slice().to_vec()
}

/// Seals the frame's payload and header, and the record's header for the lengths that it tells.
pub(super) fn seal_extent(bytes: &mut [u8]) {
    if let Some((header, rest)) = bytes.split_at_mut_checked(FRAME_HEADER_LEN) {
        let payload = &rest[..rest.len().min(BLOCK_SIZE - FRAME_HEADER_LEN)];
        let payload_crc = checksum::seeded(&PLACE, &[payload]);
        header[72..76].copy_from_slice(&payload_crc.to_le_bytes());
        let header_crc = checksum::seeded(&PLACE, &[&header[..76]]);
        header[76..80].copy_from_slice(&header_crc.to_le_bytes());
    }
    let Some(record) = bytes.get_mut(BLOCK_SIZE..) else { return };
    let Some(len) = told_header_len(record) else { return };
    let Some(header) = record.get_mut(..len) else { return };
    let place = PLACE.at(PLACE.offset + RECORD_OFFSET);
    let crc = checksum::seeded(&place, &[&header[4..]]);
    header[..4].copy_from_slice(&crc.to_le_bytes());
}

fn told_header_len(record: &[u8]) -> Option<usize> {
    record.first_chunk::<RECORD_FIXED_LEN>().map(super::targets::told_header_len)
}
