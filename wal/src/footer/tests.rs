//! Tests of footers: what a log writes, against what a scan of its frames finds.

use proptest::prelude::*;

use super::*;
use crate::disk::FileId;
use crate::group_commit::{GroupCommit, GroupCommitLimits, OpenSegment};
use crate::manifest::{Quarantine, Verdict};
use crate::procedure::Procedure;
use crate::record::{Record, RecordHeader};
use crate::replay::tests::run_reads;
use crate::replay::{SegmentScan, Settlement, scan_segment, settle};
use crate::segment::{Identity, SegmentHeader};

const STORE: [u8; 16] = [5; 16];
const SEGMENT: u64 = 3;
const LEN: usize = 256 << 10;
/// The last record before the segment.
const BEFORE: u64 = 300;

/// What to append: kind, seed of its fields, bytes of its value.
type Plan = (u8, u8, usize);

fn segment() -> OpenSegment {
    OpenSegment { id: SEGMENT, file: FileId(0), len: LEN as u64 }
}

fn place() -> Place {
    Place { store: STORE, segment: SEGMENT, offset: 0 }
}

/// A segment that a log has written and left.
fn image(plans: &[Plan], frame_bytes_max: usize) -> Vec<u8> {
    let identity = Identity { store: STORE, node_id: [0; 20], shard: 0, shard_count: 1 };
    let header = SegmentHeader { identity, id: SEGMENT, len: LEN as u64 };
    let mut bytes = vec![0; LEN];
    bytes[..BLOCK_SIZE].copy_from_slice(header.encode().as_slice());
    let limits = GroupCommitLimits { frame_bytes_max, ..GroupCommitLimits::default() };
    let mut log = GroupCommit::new(STORE, limits, Lsn(BEFORE), 0);
    log.add_segment(segment());
    for (index, plan) in plans.iter().enumerate() {
        if append(&mut log, plan).is_err() {
            break;
        }
        if index % 8 == 0 {
            log.submit(7);
            write_out(&mut log, &mut bytes);
        }
    }
    log.roll();
    write_out(&mut log, &mut bytes);
    let sealed = log.poll_sealed().expect("the segment has records");
    assert!(log.is_quiet() && sealed.footer_offset.is_some());
    let end = usize::try_from(sealed.summary.frames_end).unwrap();
    assert_eq!(sealed.summary.frames_crc, checksum::plain(&bytes[BLOCK_SIZE..end]));
    bytes
}

fn append(log: &mut GroupCommit, &(kind, seed, len): &Plan) -> Result<(), ()> {
    let mut version = Version([seed; 16]);
    version.0[8..].fill(seed % 3);
    let base = Location { segment: 1, offset: 4176, header_len: 80, value_len: 9 };
    let body = TouchBody { base, user_key_crc: 5, base_lsn: Lsn(6) }.encode();
    let (value, user_key) = (vec![seed; len], vec![seed; usize::from(seed) * 3]);
    let (hashed, first_lsn) = (seed % 4 == 1, Lsn(1 + u64::from(seed)));
    let put = Record {
        kind: RecordKind::Put,
        namespace: Namespace(seed % 2),
        key: if hashed { Key::of(&user_key) } else { Key([seed; 20]) },
        hashed,
        user_key: &user_key,
        version,
        expiry_ms: u64::from(seed % 4) * 1000,
        value: &value,
    };
    let bare = Record { hashed: false, user_key: &[], value: &[], ..put };
    let record = match kind {
        0 => Record { kind: RecordKind::Tombstone, ..bare },
        1 => Record { kind: RecordKind::Touch, value: &body, ..bare },
        2 => Record { kind: RecordKind::Clear, ..bare },
        3 => {
            let mut original = IoBuffer::with_capacity(put.encoded_len_max());
            put.encode(&place(), None, &mut original);
            let header = RecordHeader::decode(original.as_slice(), &place()).unwrap();
            return log.append_copy_of(&header, first_lsn, &value).map(|_| ()).map_err(|_| ());
        }
        4 if seed % 5 == 0 => {
            return log.append_copy(&put, first_lsn).map(|_| ()).map_err(|_| ());
        }
        _ => put,
    };
    log.append(&record).map(|_| ()).map_err(|_| ())
}

fn write_out(log: &mut GroupCommit, bytes: &mut [u8]) {
    while let Some(write) = log.poll_write() {
        if let DiskOperation::Write { offset, buffer, .. } = write.operation {
            let at = usize::try_from(offset).unwrap();
            let target = &mut bytes[at..at + buffer.len()];
            assert!(target.iter().all(|byte| *byte == 0), "a block is written twice");
            target.copy_from_slice(buffer.as_slice());
        }
        log.handle_written(write.number, Ok(()), None);
    }
}

fn source(bytes: &[u8], cut: Option<u64>) -> SegmentSource {
    SegmentSource { id: SEGMENT, file: FileId(0), len: bytes.len() as u64, cut }
}

fn read_back(bytes: &[u8], cut: Option<u64>) -> Option<Footer> {
    let source = source(bytes, cut);
    run_reads(bytes, Procedure::new(|port| async move { read_footer(&port, STORE, &source).await }))
}

fn scan(bytes: &[u8]) -> (SegmentScan, Vec<ReplayedRecord>) {
    let source = source(bytes, None);
    let procedure = Procedure::new(|port| async move {
        let mut records = Vec::new();
        let mut visit = |record| records.push(record);
        let scan = scan_segment(&port, STORE, source, &[], &mut visit).await;
        (scan, records)
    });
    run_reads(bytes, procedure)
}

/// What is wrong with a log whose earlier segments have been freed.
fn settled(scan: SegmentScan) -> Settlement {
    let freed = Quarantine {
        segment: 0,
        offset: 0,
        len: 0,
        first_lsn: Lsn(1),
        last_lsn: Lsn(BEFORE),
        verdict: Verdict::Freed,
    };
    settle(&[scan], &[freed], Lsn::ZERO)
}

fn some_records() -> Vec<Plan> {
    (0..40u8).map(|seed| (seed % 6, seed, usize::from(seed) * 200)).collect()
}

#[test]
fn footer_tells_what_a_scan_of_the_frames_finds() {
    let bytes = image(&some_records(), 8 << 10);
    let footer = read_back(&bytes, None).expect("a footer");
    let (scan, records) = scan(&bytes);
    assert_eq!(footer.records().collect::<Vec<_>>(), records);
    assert!(records.iter().any(|record| record.first_lsn != record.lsn));
    let known = SegmentScan::from_footer(&footer);
    assert_eq!((known.end, known.frame_count), (scan.end, scan.frame_count));
    assert_eq!(known.record_count, scan.record_count);
    assert!(scan.findings.is_empty());
    let (known, scanned) = (settled(known), settled(scan));
    // The footer itself says that everything before it was durable.
    assert_eq!((known.watermark, known.last_lsn), (Lsn(BEFORE + 40), Lsn(BEFORE + 40)));
    assert_eq!((scanned.watermark, scanned.last_lsn), (Lsn(BEFORE + 40), Lsn(BEFORE + 40)));
    assert_eq!(known.wall_ms, scanned.wall_ms);
}

#[test]
fn footer_with_any_damaged_byte_is_not_used_and_nothing_is_lost() {
    let bytes = image(&some_records(), 8 << 10);
    let (_, records) = scan(&bytes);
    let footer = LEN - footer_len(0);
    let step = if cfg!(debug_assertions) { 7 } else { 1 };
    for position in (footer..LEN - TRAILER_LEN).step_by(step).chain(LEN - TRAILER_LEN..LEN) {
        let mut damaged = bytes.clone();
        damaged[position] ^= 0x21;
        assert!(read_back(&damaged, None).is_none(), "flip at {position}");
        let (found, again) = scan(&damaged);
        assert_eq!(again, records);
        let settled = settled(found);
        assert_eq!(settled.uncertain.len(), 1, "flip at {position}");
        assert!(settled.findings.is_empty() && !settled.is_suspect());
    }
}

#[test]
fn footer_that_contradicts_the_cut_is_not_used() {
    let bytes = image(&some_records(), 8 << 10);
    let end = read_back(&bytes, None).unwrap().summary().frames_end;
    assert!(read_back(&bytes, Some(end)).is_some());
    assert!(read_back(&bytes, Some(end - 4096)).is_none());
    assert!(read_back(&bytes[..LEN - BLOCK_SIZE], None).is_none());
    assert!(read_back(&bytes[..BLOCK_SIZE], None).is_none());
}

#[test]
fn table_of_many_small_records_is_left_out() {
    let plans: Vec<Plan> = (0..2000).map(|_| (4, 1, 8)).collect();
    let bytes = image(&plans, 64 << 10);
    assert!(read_back(&bytes, None).is_none());
    let trailer = Trailer::decode(&bytes, &place(), LEN as u64).unwrap();
    assert!(!trailer.has_table() && trailer.len == BLOCK_SIZE);
    let (scan, records) = scan(&bytes);
    assert_eq!(trailer.summary.frames_end, scan.end);
    assert_eq!(records.len(), trailer.summary.record_count as usize);
    assert!(records.len() > LEN / 16 / 48);
    assert!(scan.findings.is_empty());
}

#[test]
fn frame_that_fits_only_without_a_footer_goes_without() {
    let mut log = GroupCommit::new(STORE, GroupCommitLimits::default(), Lsn(BEFORE), 0);
    log.add_segment(segment());
    append(&mut log, &(4, 1, LEN - 3 * BLOCK_SIZE + 7000)).unwrap();
    log.roll();
    let mut bytes = vec![0; LEN];
    write_out(&mut log, &mut bytes);
    let sealed = log.poll_sealed().unwrap();
    assert_eq!((sealed.footer_offset, sealed.summary.frames_end), (None, LEN as u64));
    assert!(log.is_quiet());
    assert_eq!(scan(&bytes).1.len(), 1);
}

#[test]
fn entries_that_cannot_be_are_refused_even_if_every_checksum_holds() {
    let record = |offset, header_len, first_lsn| ReplayedRecord {
        kind: RecordKind::Put,
        namespace: Namespace::PLAIN,
        key: Key([1; 20]),
        user_key_crc: 0,
        version: Version::default(),
        expiry_ms: 0,
        first_lsn: Lsn(first_lsn),
        lsn: Lsn(5),
        location: Location { segment: SEGMENT, offset, header_len, value_len: 8 },
        touch: None,
        damaged: false,
    };
    let summary = SegmentSummary {
        first_lsn: Lsn(5),
        record_count: 1,
        frame_count: 1,
        frames_end: 8192,
        wall_ms: 0,
        frames_crc: 0,
    };
    let check = |records: &[ReplayedRecord], summary: &SegmentSummary| {
        let mut table = FooterTable::default();
        records.iter().for_each(|record| table.push(record));
        let (bytes, _) = encode(&place(), LEN as u64, Some(&table), summary);
        Footer::decode(bytes, &place(), LEN as u64).map(|footer| footer.records().count())
    };
    let good = record(4176, 72, 5);
    assert_eq!(check(&[good], &summary), Ok(1));
    for bad in [record(4096, 72, 5), record(4177, 72, 5), record(8184, 72, 5), record(4176, 72, 6)]
    {
        assert!(check(&[bad], &summary).is_err(), "{bad:?}");
    }
    assert!(check(&[good, good], &SegmentSummary { record_count: 2, ..summary }).is_err());
    assert!(check(&[good], &SegmentSummary { record_count: 2, ..summary }).is_err());
    assert!(check(&[], &summary).is_err());
    assert_eq!(check(&[good], &SegmentSummary { frames_end: 8191, ..summary }), {
        Err(FooterError::Trailer)
    });
    let beyond = SegmentSummary { first_lsn: Lsn(u64::MAX), ..summary };
    assert_eq!(check(&[good], &beyond), Err(FooterError::Trailer));
}

#[test]
fn footer_of_another_place_is_refused() {
    let bytes = image(&some_records(), 8 << 10);
    let other = Place { segment: SEGMENT + 1, ..place() };
    let error = Trailer::decode(&bytes, &other, LEN as u64).unwrap_err();
    assert!(matches!(error, FooterError::TrailerChecksum { .. }));
    assert!(Trailer::decode(&bytes, &place(), 2 * LEN as u64).is_err());
    assert_eq!(Trailer::decode(&[0; BLOCK_SIZE], &place(), 4096), Err(FooterError::NotAFooter));
}

proptest! {
    #[test]
    fn footers_of_arbitrary_logs_tell_the_same_as_scans(
        plans in prop::collection::vec((0..6u8, any::<u8>(), 0..20_000usize), 1..60),
        frame_bytes_max in 4096..100_000usize,
    ) {
        let bytes = image(&plans, frame_bytes_max);
        let (found, records) = scan(&bytes);
        prop_assert!(found.findings.is_empty());
        let footer = read_back(&bytes, Some(found.end)).expect("few records, so a table");
        prop_assert_eq!(footer.records().collect::<Vec<_>>(), records);
    }
}
