//! Tests of replay on segments built in memory.

use super::*;
use crate::disk::{DiskCompletion, DiskOutput};
use crate::frame::FrameStamp;
use crate::procedure::Procedure;
use crate::record::Record;
use crate::segment::{Identity, SegmentHeader};

pub(crate) const STORE: [u8; 16] = [5; 16];
const SEGMENT: u64 = 3;
const SEGMENT_LEN: usize = 64 << 10;
/// Bytes before the value of the images' records: key, second half and first LSN are told.
const HEADER_LEN: usize = RECORD_FIXED_LEN + 20 + 8 + 8 + 8;

/// A segment image under construction.
struct Image {
    bytes: Vec<u8>,
    tail: usize,
    next_lsn: u64,
}

impl Image {
    fn new() -> Self {
        let identity = Identity { store: STORE, node_id: [0; 20], shard: 0, shard_count: 1 };
        let header = SegmentHeader { identity, id: SEGMENT, len: SEGMENT_LEN as u64 };
        let mut bytes = vec![0; SEGMENT_LEN];
        bytes[..BLOCK_SIZE].copy_from_slice(header.encode().as_slice());
        Self { bytes, tail: BLOCK_SIZE, next_lsn: 1 }
    }

    /// Appends a frame of records with these values; returns where it starts.
    fn frame(&mut self, durable_lsn: u64, values: &[&[u8]]) -> usize {
        let place = Place { store: STORE, segment: SEGMENT, offset: self.tail as u64 };
        let mut buffer = IoBuffer::with_capacity(SEGMENT_LEN);
        buffer.extend_from_slice(&[0; FRAME_HEADER_LEN]);
        for (index, value) in values.iter().enumerate() {
            let lsn = self.next_lsn + index as u64;
            let record = Record {
                kind: RecordKind::Put,
                namespace: Namespace::PLAIN,
                key: Key([lsn as u8; 20]),
                hashed: false,
                user_key: b"user key",
                version: Version::default(),
                expiry_ms: 0,
                value,
            };
            let here = place.at(place.offset + buffer.len() as u64);
            record.encode(&here, Some(Lsn(lsn)), &mut buffer);
        }
        let stamp = FrameStamp {
            first_lsn: Lsn(self.next_lsn),
            record_count: values.len() as u32,
            durable_lsn: Lsn(durable_lsn),
            wall_ms: 1000 + self.next_lsn,
        };
        frame::finish(&mut buffer, &place, &stamp);
        let start = self.tail;
        self.bytes[start..start + buffer.len()].copy_from_slice(buffer.as_slice());
        self.tail += buffer.len();
        self.next_lsn += values.len() as u64;
        start
    }

    /// Two frames of two records and an idle frame.
    fn three_frames() -> (Self, [usize; 3]) {
        let mut image = Self::new();
        let starts = [
            image.frame(0, &[b"one", b"two"]),
            image.frame(2, &[b"three", &[4; 9000]]),
            image.frame(4, &[]),
        ];
        (image, starts)
    }

    fn scan(&self) -> (SegmentScan, Vec<ReplayedRecord>) {
        self.scan_with(&[], None)
    }

    fn scan_with(
        &self,
        skip: &[Quarantine],
        cut: Option<u64>,
    ) -> (SegmentScan, Vec<ReplayedRecord>) {
        let len = self.bytes.len() as u64;
        run_scan(&self.bytes, SegmentSource { id: SEGMENT, file: FileId(0), len, cut }, skip, None)
    }
}

/// Scans a segment's bytes, with the settlement if there is one already.
pub(super) fn run_scan(
    bytes: &[u8],
    source: SegmentSource,
    skip: &[Quarantine],
    settlement: Option<&Settlement>,
) -> (SegmentScan, Vec<ReplayedRecord>) {
    let (skip, settlement) = (skip.to_vec(), settlement.cloned());
    let procedure = Procedure::new(|port| async move {
        let mut records = Vec::new();
        let mut visit = |record| records.push(record);
        let scan = match settlement {
            Some(known) => scan_settled(&port, STORE, source, &known, &mut visit).await,
            None => scan_segment(&port, STORE, source, &skip, &mut visit).await,
        };
        (scan, records)
    });
    run_reads(bytes, procedure)
}

/// Runs a procedure that only reads, from one file of these bytes.
pub(crate) fn run_reads<T>(bytes: &[u8], mut procedure: Procedure<T>) -> T {
    loop {
        if let Some(output) = procedure.take_output() {
            return output;
        }
        let request = procedure.poll_request().expect("the scan waits for a read");
        let DiskOperation::Read { offset, len, mut buffer, .. } = request.operation else {
            panic!("a scan only reads");
        };
        let offset = offset as usize;
        buffer.set_len(0);
        buffer.extend_from_slice(&bytes[offset..(offset + len).min(bytes.len())]);
        let (id, result) = (request.id, Ok(DiskOutput::Done));
        procedure.handle_disk(DiskCompletion { id, result, buffer: Some(buffer) });
    }
}

fn lsns(records: &[ReplayedRecord]) -> Vec<u64> {
    records.iter().map(|record| record.first_lsn.0).collect()
}

#[test]
fn clean_log_replays_whole() {
    let (image, _) = Image::three_frames();
    let (scan, records) = image.scan();
    assert_eq!(lsns(&records), [1, 2, 3, 4]);
    assert_eq!(scan.end, image.tail as u64);
    let settled = settle(&[scan], &[], Lsn::ZERO);
    assert_eq!((settled.watermark, settled.last_lsn), (Lsn(4), Lsn(4)));
    assert!(settled.findings.is_empty() && settled.quarantine.is_empty());
}

#[test]
fn every_single_byte_flip_keeps_all_records_known() {
    let (image, _) = Image::three_frames();
    for position in BLOCK_SIZE..image.tail {
        let mut damaged = Image { bytes: image.bytes.clone(), ..image };
        damaged.bytes[position] ^= 0x21;
        let (scan, mut records) = damaged.scan();
        let settled = settle(&[scan], &[], Lsn::ZERO);
        // A frame with a damaged record is held back until the watermark is known.
        records.extend(&settled.salvaged);
        records.sort_by_key(|record| record.first_lsn);
        assert_eq!(lsns(&records), [1, 2, 3, 4], "flip at {position}");
        assert_eq!(settled.findings.len(), 1, "flip at {position}");
        let finding = settled.findings[0];
        assert_eq!((finding.offset, finding.len), (position as u64, 1));
        assert!(!settled.is_suspect());
        let damaged_count = records.iter().filter(|record| record.damaged).count();
        assert_eq!(damaged_count, usize::from(finding.damage == Damage::RecordByte));
    }
}

#[test]
fn damaged_segment_header_is_reported_and_harmless() {
    for position in [0, 60, 75, 4000] {
        let (mut image, _) = Image::three_frames();
        image.bytes[position] ^= 1;
        let (scan, records) = image.scan();
        assert_eq!(records.len(), 4);
        assert_eq!(scan.findings[0].damage, Damage::SegmentHeader);
    }
}

#[test]
fn lost_frame_below_the_watermark_is_corruption() {
    let (mut image, starts) = Image::three_frames();
    image.bytes[starts[0]..starts[0] + 200].fill(0xEE);
    let (scan, records) = image.scan();
    assert_eq!(lsns(&records), [3, 4]);
    let settled = settle(&[scan], &[], Lsn::ZERO);
    assert!(settled.is_suspect());
    let range = settled.quarantine[0];
    assert_eq!((range.offset, range.len), (starts[0] as u64, BLOCK_SIZE as u64));
    assert_eq!((range.first_lsn, range.last_lsn), (Lsn(1), Lsn(2)));
}

#[test]
fn zeroed_frame_below_the_watermark_is_corruption_too() {
    let (mut image, starts) = Image::three_frames();
    image.bytes[starts[1]..starts[2]].fill(0);
    let (scan, _) = image.scan();
    let settled = settle(&[scan], &[], Lsn::ZERO);
    assert!(settled.is_suspect());
    assert_eq!((settled.quarantine[0].first_lsn, settled.last_lsn), (Lsn(3), Lsn(4)));
}

#[test]
fn torn_frame_above_the_watermark_is_dropped_whole_and_those_behind_it_kept() {
    let mut image = Image::new();
    image.frame(0, &[b"one"]);
    let torn = image.frame(1, &[b"two", &[7; 9000]]);
    image.frame(1, &[b"four"]);
    image.bytes[torn + BLOCK_SIZE..torn + 2 * BLOCK_SIZE].fill(0);
    let (scan, records) = image.scan();
    assert_eq!(lsns(&records), [1, 4]);
    let settled = settle(&[scan], &[], Lsn::ZERO);
    assert!(!settled.is_suspect() && settled.salvaged.is_empty());
    assert_eq!(settled.tail_uncertain_bytes, 3 * BLOCK_SIZE as u64);
    assert_eq!(settled.last_lsn, Lsn(4));
    // The next recovery, with a higher watermark, must not change its mind.
    let (scan, records) = image.scan_with(&settled.quarantine, None);
    assert_eq!(lsns(&records), [1, 4]);
    let again = settle(&[scan], &settled.quarantine, Lsn(4));
    assert!(!again.is_suspect() && again.salvaged.is_empty());
    assert_eq!(again.tail_uncertain_bytes, 0);
}

#[test]
fn damaged_frame_below_the_watermark_is_salvaged_by_record() {
    let mut image = Image::new();
    let start = image.frame(0, &[b"one", b"two", b"three"]);
    image.frame(3, &[]);
    // Two bytes apart: the header of the second record and the value of the third.
    let second = start + FRAME_HEADER_LEN + record::padded_len(HEADER_LEN + 3);
    image.bytes[second + 9] ^= 1;
    image.bytes[second + record::padded_len(HEADER_LEN + 3) + HEADER_LEN] ^= 1;
    let (scan, records) = image.scan();
    assert!(records.is_empty(), "held back until the watermark is known");
    let settled = settle(&[scan], &[], Lsn::ZERO);
    assert_eq!(lsns(&settled.salvaged), [1, 3]);
    assert!(settled.salvaged[1].damaged && settled.is_suspect());
    assert!(matches!(settled.findings[0].damage, Damage::Frame { records: 3, lost: 1, .. }));
}

#[test]
fn nothing_beyond_the_cut_is_looked_at() {
    let (image, starts) = Image::three_frames();
    let (scan, records) = image.scan_with(&[], Some(starts[1] as u64));
    assert_eq!(lsns(&records), [1, 2]);
    assert_eq!(scan.end, starts[1] as u64);
}

#[test]
fn watermark_above_the_last_record_means_loss() {
    let (image, _) = Image::three_frames();
    let (scan, _) = image.scan();
    let settled = settle(&[scan], &[], Lsn(9));
    assert!(settled.is_suspect());
    assert_eq!(settled.last_lsn, Lsn(9));
}

#[test]
fn stray_bytes_after_the_end_are_reported_and_harmless() {
    let (mut image, _) = Image::three_frames();
    let at = image.tail + 5 * BLOCK_SIZE + 17;
    image.bytes[at] = 1;
    let (scan, records) = image.scan();
    assert_eq!(records.len(), 4);
    let settled = settle(&[scan], &[], Lsn::ZERO);
    assert_eq!(settled.uncertain[0].damage, Damage::Stray);
    assert_eq!(settled.uncertain[0].offset, (at - at % BLOCK_SIZE) as u64);
    assert!(settled.findings.is_empty());
    assert!(!settled.is_suspect());
}

#[test]
fn one_damaged_byte_above_the_watermark_is_a_torn_tail() {
    let mut image = Image::new();
    image.frame(0, &[b"one"]);
    let torn = image.frame(1, &[b"two"]);
    image.bytes[torn + FRAME_HEADER_LEN + HEADER_LEN] ^= 1;
    let (scan, records) = image.scan();
    assert_eq!(lsns(&records), [1]);
    let settled = settle(&[scan], &[], Lsn::ZERO);
    assert!(settled.salvaged.is_empty() && settled.findings.is_empty() && !settled.is_suspect());
    assert_eq!(settled.uncertain.len(), 1);
    assert_eq!(settled.tail_uncertain_bytes, BLOCK_SIZE as u64);
}

#[test]
fn torn_frames_side_by_side_stay_torn_in_later_recoveries() {
    let mut image = Image::new();
    image.frame(0, &[b"one"]);
    for _ in 0..2 {
        let torn = image.frame(1, &[b"two", &[7; 9000]]);
        image.bytes[torn + BLOCK_SIZE..torn + 2 * BLOCK_SIZE].fill(0);
    }
    image.frame(1, &[b"six"]);
    let (scan, _) = image.scan();
    let settled = settle(&[scan], &[], Lsn::ZERO);
    assert_eq!(settled.quarantine.len(), 2);
    let (scan, records) = image.scan_with(&settled.quarantine, None);
    assert_eq!(lsns(&records), [1, 6]);
    assert!(!settle(&[scan], &settled.quarantine, settled.last_lsn).is_suspect());
}

#[test]
fn gap_without_a_trace_is_remembered_beside_one_with() {
    let mut image = Image::new();
    image.frame(0, &[b"one"]);
    image.next_lsn += 1;
    image.frame(1, &[b"three"]);
    image.next_lsn += 1;
    image.frame(1, &[b"five"]);
    image.bytes[image.tail + 8] = 1;
    let (scan, _) = image.scan();
    let settled = settle(&[scan], &[], Lsn::ZERO);
    let (scan, _) = image.scan_with(&settled.quarantine, None);
    let again = settle(&[scan], &settled.quarantine, settled.last_lsn);
    assert!(!again.is_suspect(), "{:?}", again.quarantine);
}

#[test]
fn settled_scan_hands_out_salvaged_records_in_place_and_torn_ones_not_at_all() {
    let mut image = Image::new();
    image.frame(0, &[b"one"]);
    let rotten = image.frame(1, &[b"two", b"three"]);
    image.frame(3, &[b"four"]);
    let torn = image.frame(3, &[b"five", &[7; 9000]]);
    image.frame(3, &[b"seven"]);
    image.bytes[rotten + FRAME_HEADER_LEN + HEADER_LEN] ^= 1;
    image.bytes[torn + BLOCK_SIZE..torn + 2 * BLOCK_SIZE].fill(0);
    let (scan, records) = image.scan();
    assert!(scan.holds_back());
    assert_eq!(lsns(&records), [1, 4, 7]);
    let settled = settle(&[scan], &[], Lsn::ZERO);
    let len = image.bytes.len() as u64;
    let source = SegmentSource { id: SEGMENT, file: FileId(0), len, cut: None };
    let (_, records) = run_scan(&image.bytes, source, &[], Some(&settled));
    assert_eq!(lsns(&records), [1, 2, 3, 4, 7]);
    let damaged: Vec<bool> = records.iter().map(|record| record.damaged).collect();
    assert_eq!(damaged, [false, true, false, false, false]);
    assert!(records.iter().all(|record| record.lsn == record.first_lsn));
}

#[test]
fn records_of_freed_segments_are_not_missed() {
    let mut image = Image::new();
    image.next_lsn = 51;
    image.frame(50, &[b"one"]);
    let (scan, _) = image.scan();
    assert!(settle(std::slice::from_ref(&scan), &[], Lsn::ZERO).is_suspect());
    let freed = Quarantine {
        segment: 0,
        offset: 0,
        len: 0,
        first_lsn: Lsn(1),
        last_lsn: Lsn(50),
        verdict: Verdict::Freed,
    };
    let settled = settle(&[scan], &[freed], Lsn::ZERO);
    assert!(!settled.is_suspect() && settled.tail_uncertain_bytes == 0);
    assert_eq!(settled.quarantine, [freed]);
}
