//! Golden bytes: every structure on disk as `tests/data/golden/` has it, both ways.
//!
//! The files were made by an independent program from the tables in docs/FORMAT.md, not by the
//! code under test. A line holds bytes in hexadecimal, `zeros N`, or `ramp N` (byte i is i mod
//! 251); what follows a `#` is comment.

use std::fs;
use std::path::Path;

use sha1::{Digest, Sha1};
use wal::Lsn;
use wal::checksum::{self, Place};
use wal::disk::{BLOCK_SIZE, IoBuffer};
use wal::extent::{self, ChunkSums, RECORD_OFFSET};
use wal::footer::{self, Footer, FooterTable, SegmentSummary, Trailer};
use wal::frame::{self, FRAME_HEADER_LEN, FrameHeader, FrameStamp};
use wal::manifest::{CheckpointEntry, Manifest, Quarantine, SegmentEntry, Verdict};
use wal::record::{
    Key, Location, Namespace, Record, RecordHeader, RecordKind, TouchBody, Version, own_half,
    told_lsn,
};
use wal::replay::ReplayedRecord;
use wal::segment::{Identity, SegmentHeader, Space};

const SEGMENT: u64 = 0x1f;
const FRAME_OFFSET: u64 = 0x1000;
const WALL_MS: u64 = 1_795_238_400_000;
const USER_KEY: &[u8] = b"kadring";
const VALUE: &[u8] = b"hello, log";

fn golden(name: &str) -> Vec<u8> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/golden");
    let text = fs::read_to_string(folder.join(name)).unwrap();
    let mut bytes = Vec::new();
    for line in text.lines() {
        let line = line.split('#').next().unwrap_or_default().trim();
        if let Some(count) = line.strip_prefix("zeros ") {
            bytes.resize(bytes.len() + count.parse::<usize>().unwrap(), 0);
        } else if let Some(count) = line.strip_prefix("ramp ") {
            bytes.extend(ramp(count.parse().unwrap()));
        } else {
            let words = line.split_whitespace();
            bytes.extend(words.map(|word| u8::from_str_radix(word, 16).unwrap()));
        }
    }
    bytes
}

fn ramp(count: usize) -> Vec<u8> {
    (0..251).cycle().take(count).collect()
}

#[track_caller]
fn check(name: &str, encoded: &[u8]) {
    let golden = golden(name);
    let differs = encoded.iter().zip(&golden).position(|(ours, theirs)| ours != theirs);
    assert_eq!(differs, None, "{name}: first byte that differs");
    assert_eq!(encoded.len(), golden.len(), "{name}: length");
}

fn identity() -> Identity {
    Identity {
        store: std::array::from_fn(|index| 0xa0 + u8::try_from(index).unwrap()),
        node_id: std::array::from_fn(|index| 0x10 + u8::try_from(index).unwrap()),
        shard: 3,
        shard_count: 4,
    }
}

fn place(offset: u64) -> Place {
    Place { store: identity().store, segment: SEGMENT, offset }
}

fn first_place() -> Place {
    place(FRAME_OFFSET + FRAME_HEADER_LEN as u64)
}

fn version(counter: u64) -> Version {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&((WALL_MS << 16) | counter).to_be_bytes());
    bytes[8..].copy_from_slice(&own_half(&identity().store));
    Version(bytes)
}

fn put(value: &[u8], expiry_ms: u64) -> Record<'_> {
    Record {
        kind: RecordKind::Put,
        namespace: Namespace::PLAIN,
        key: Key(Sha1::digest(USER_KEY).into()),
        hashed: true,
        user_key: USER_KEY,
        version: version(1),
        expiry_ms,
        value,
    }
}

fn bare(kind: RecordKind, counter: u64, expiry_ms: u64, value: &[u8]) -> Record<'_> {
    let version = version(counter);
    Record { kind, hashed: false, user_key: &[], version, ..put(value, expiry_ms) }
}

fn touch_body(offset: u32) -> TouchBody {
    let (header_len, value_len) = (39, u32::try_from(VALUE.len()).unwrap());
    TouchBody {
        base: Location { segment: SEGMENT, offset, header_len, value_len },
        user_key_crc: checksum::plain(USER_KEY),
        base_lsn: Lsn(5),
    }
}

/// Encodes the record, compares, and reads the golden bytes back.
#[track_caller]
fn check_record(name: &str, record: &Record<'_>, first_lsn: Option<u64>) {
    let first_lsn = first_lsn.map(Lsn);
    let mut buffer = IoBuffer::with_capacity(record.encoded_len_max());
    record.encode(&first_place(), first_lsn, &mut buffer);
    check(name, buffer.as_slice());

    let bytes = golden(name);
    let header = RecordHeader::decode(&bytes, &first_place()).unwrap();
    assert_eq!(header.kind, record.kind);
    assert_eq!(header.namespace, record.namespace);
    assert_eq!((header.key, header.hashed), (record.key, record.hashed));
    assert_eq!(header.user_key, record.user_key);
    assert_eq!(header.version, record.version);
    assert_eq!(header.expiry_ms, record.expiry_ms);
    assert_eq!(header.first_lsn, first_lsn);
    assert_eq!(header.value(&bytes).unwrap(), record.value);
    assert_eq!(header.record_len(), bytes.len());
}

#[test]
fn records_have_their_golden_bytes() {
    check_record("record-put.hex", &put(VALUE, 0), None);
    let mut full = Record {
        namespace: Namespace(3),
        key: Key(std::array::from_fn(|index| 0x40 + u8::try_from(index).unwrap())),
        hashed: false,
        ..put(VALUE, WALL_MS + 60_000)
    };
    full.version.0[8..].copy_from_slice(&identity().node_id[..8]);
    check_record("record-put-full.hex", &full, Some(3));
    check_record("record-put-chunked.hex", &put(&ramp(8193), 0), Some(5));
    check_record("record-tombstone.hex", &bare(RecordKind::Tombstone, 2, 0, &[]), None);
    let body = touch_body(0x2050);
    let encoded = body.encode();
    let touch = bare(RecordKind::Touch, 3, WALL_MS + 120_000, &encoded);
    check_record("record-touch.hex", &touch, None);
    assert_eq!(TouchBody::decode(&encoded), Some(body));
    let clear = Record { key: Key([0; 20]), ..bare(RecordKind::Clear, 4, 0, &[]) };
    check_record("record-clear.hex", &clear, None);
}

/// Encodes a frame of the records, compares, and reads the golden bytes back.
#[track_caller]
fn check_frame(name: &str, records: &[Record<'_>], first_lsn: u64, durable_lsn: u64) {
    let record_count = u32::try_from(records.len()).unwrap();
    let mut buffer = IoBuffer::zeroed(4096);
    buffer.set_len(FRAME_HEADER_LEN);
    for record in records {
        let at = place(FRAME_OFFSET + buffer.len() as u64);
        record.encode(&at, None, &mut buffer);
    }
    let (first_lsn, durable_lsn) = (Lsn(first_lsn), Lsn(durable_lsn));
    let stamp = FrameStamp { first_lsn, record_count, durable_lsn, wall_ms: WALL_MS };
    frame::finish(&mut buffer, &place(FRAME_OFFSET), &stamp);
    check(name, buffer.as_slice());

    let bytes = golden(name);
    let (head, payload) = bytes.split_first_chunk().unwrap();
    let header = FrameHeader::decode(head, &place(FRAME_OFFSET)).unwrap();
    let payload_crc = FrameHeader::payload_checksum(&place(FRAME_OFFSET), payload);
    let len = u32::try_from(bytes.len()).unwrap();
    let expected = FrameHeader {
        len,
        record_count,
        first_lsn,
        durable_lsn,
        wall_ms: WALL_MS,
        payload_crc,
        is_extent: false,
    };
    assert_eq!(header, expected);
    let mut at = FRAME_HEADER_LEN;
    for record in records {
        let found = RecordHeader::decode(&bytes[at..], &place(FRAME_OFFSET + at as u64)).unwrap();
        assert_eq!((found.kind, found.version), (record.kind, record.version));
        at += found.record_len();
    }
}

#[test]
fn frames_have_their_golden_bytes() {
    let offset = u32::try_from(first_place().offset).unwrap();
    let body = touch_body(offset).encode();
    let touch = bare(RecordKind::Touch, 3, WALL_MS + 120_000, &body);
    check_frame("frame.hex", &[put(VALUE, WALL_MS + 60_000), touch], 5, 4);
    check_frame("frame-idle.hex", &[], 7, 6);
}

/// Written as a store writes it: frame, then the value with the record's header in front.
#[test]
fn extent_has_its_golden_bytes() {
    let place = place(FRAME_OFFSET);
    let value = ramp(8193);
    let record = put(&value, 0);
    let header_len = record.header_len(&place.store, None);
    let len = BLOCK_SIZE + extent::record_len(header_len, value.len());
    let (first_lsn, durable_lsn) = (Lsn(7), Lsn(6));
    let stamp = FrameStamp { first_lsn, record_count: 0, durable_lsn, wall_ms: WALL_MS };
    let mut buffer = IoBuffer::zeroed(len);
    buffer.set_len(FRAME_HEADER_LEN);
    frame::finish_extent(&mut buffer, &place, &stamp, len);
    let mut sums = ChunkSums::default();
    sums.update(&value);
    let record_place = place.at(FRAME_OFFSET + RECORD_OFFSET);
    record.encode_header(&record_place, &sums.finish(), &mut buffer);
    assert_eq!(buffer.len(), BLOCK_SIZE + header_len);
    buffer.extend_from_slice(&value);
    buffer.pad_to(len);
    check("extent.hex", buffer.as_slice());

    let bytes = golden("extent.hex");
    let header = FrameHeader::decode(bytes.first_chunk().unwrap(), &place).unwrap();
    let rest = &bytes[FRAME_HEADER_LEN..BLOCK_SIZE];
    let expected = FrameHeader {
        len: u32::try_from(bytes.len()).unwrap(),
        record_count: 0,
        first_lsn,
        durable_lsn,
        wall_ms: WALL_MS,
        payload_crc: FrameHeader::payload_checksum(&place, rest),
        is_extent: true,
    };
    assert_eq!(header, expected);
    let found = extent::record_header(&bytes[BLOCK_SIZE..], &place).unwrap();
    assert_eq!((found.key, found.user_key, found.version), (record.key, USER_KEY, version(1)));
    assert_eq!((found.expiry_ms, found.first_lsn), (0, None));
    assert_eq!(found.value(&bytes[BLOCK_SIZE..]).unwrap(), value);
    let location = extent::location_of(&found, &place).unwrap();
    assert_eq!((location.segment, location.offset), (SEGMENT, 0x2000));
    assert_eq!((location.header_len, location.value_len), (39, 8193));
}

#[test]
fn segment_header_has_its_golden_bytes() {
    let header = SegmentHeader { identity: identity(), id: SEGMENT, len: 4 << 20 };
    check("segment-header.hex", header.encode().as_slice());
    assert_eq!(SegmentHeader::decode(&golden("segment-header.hex")), Ok(header));
    assert_eq!(Space::of(&golden("segment-header.hex")), Space::Zeroed);
    check("segment-header-reused.hex", header.encode_over(Space::Reused).as_slice());
    assert_eq!(SegmentHeader::decode(&golden("segment-header-reused.hex")), Ok(header));
    assert_eq!(Space::of(&golden("segment-header-reused.hex")), Space::Reused);
}

/// A record as a footer lists it: at `offset`, with its own LSN and first LSN.
fn listed(record: &Record<'_>, offset: u32, lsn: u64, first_lsn: u64) -> ReplayedRecord {
    let told = told_lsn(Lsn(lsn), Lsn(first_lsn), record.value.len());
    let header_len = record.header_len(&identity().store, told);
    let is_touch = record.kind == RecordKind::Touch;
    ReplayedRecord {
        kind: record.kind,
        namespace: record.namespace,
        key: record.key,
        user_key_crc: checksum::plain(record.user_key),
        version: record.version,
        expiry_ms: record.expiry_ms,
        first_lsn: Lsn(first_lsn),
        lsn: Lsn(lsn),
        location: Location {
            segment: SEGMENT,
            offset,
            header_len: u32::try_from(header_len).unwrap(),
            value_len: u32::try_from(record.value.len()).unwrap(),
        },
        touch: is_touch.then(|| TouchBody::decode(record.value).unwrap()),
        damaged: false,
    }
}

#[test]
fn footers_have_their_golden_bytes() {
    const SEGMENT_LEN: u64 = 4 << 20;
    let body = touch_body(0x1050).encode();
    let records = [
        listed(&put(VALUE, WALL_MS + 60_000), 0x1050, 5, 5),
        listed(&bare(RecordKind::Touch, 3, WALL_MS + 120_000, &body), 0x1090, 6, 3),
        listed(&bare(RecordKind::Tombstone, 4, 0, &[]), 0x2050, 7, 7),
    ];
    let mut table = FooterTable::default();
    records.iter().for_each(|record| table.push(record));
    let summary = SegmentSummary {
        first_lsn: Lsn(5),
        record_count: 3,
        frame_count: 2,
        frames_end: 0x3000,
        wall_ms: WALL_MS,
        frames_crc: 0x1234_5678,
    };
    let (encoded, offset) = footer::encode(&place(0), SEGMENT_LEN, Some(&table), &summary);
    assert_eq!(offset, 0x3f_f000);
    check("footer.hex", encoded.as_slice());
    let mut bytes = IoBuffer::with_capacity(4096);
    bytes.extend_from_slice(&golden("footer.hex"));
    let footer = Footer::decode(bytes, &place(0), SEGMENT_LEN).unwrap();
    assert_eq!(footer.summary(), &summary);
    assert_eq!(footer.records().collect::<Vec<_>>(), records);

    let (record_count, frame_count, frames_end) = (90_000, 700, 0x3f_0000);
    let summary = SegmentSummary { record_count, frame_count, frames_end, ..summary };
    let (encoded, _) = footer::encode(&place(0), SEGMENT_LEN, None, &summary);
    check("footer-trailer.hex", encoded.as_slice());
    let trailer = Trailer::decode(&golden("footer-trailer.hex"), &place(0), SEGMENT_LEN).unwrap();
    assert_eq!((trailer.summary, trailer.has_table()), (summary, false));
}

#[test]
fn manifest_has_its_golden_bytes() {
    let range = |offset, len, first_lsn, last_lsn, verdict| {
        let (first_lsn, last_lsn) = (Lsn(first_lsn), Lsn(last_lsn));
        Quarantine { segment: SEGMENT, offset, len, first_lsn, last_lsn, verdict }
    };
    let manifest = Manifest {
        identity: identity(),
        sequence: 9,
        next_segment: 0x21,
        durable_lsn: Lsn(6),
        segments: vec![
            SegmentEntry { id: SEGMENT, len: 4 << 20, cut: Some(0x3000) },
            SegmentEntry { id: 0x20, len: 8 << 20, cut: None },
        ],
        quarantine: vec![
            range(0x2000, 4096, 7, 6, Verdict::TailUncertain),
            range(0x3000, 8192, 2, 3, Verdict::Corruption),
            range(0x5000, 4096, 4, 4, Verdict::Accepted),
            Quarantine { segment: 0, ..range(0, 0, 1, 1, Verdict::Freed) },
        ],
        checkpoint: Some(CheckpointEntry { lsn: Lsn(5), len: 0x3000 }),
    };
    check("manifest.hex", manifest.encode().as_slice());
    assert_eq!(Manifest::decode(&golden("manifest.hex")), Ok(manifest));
}
