//! Reused space against zeroed space: the same log, crashed at the same point and damaged in the
//! same places, must get the same verdicts from both.

use proptest::prelude::*;

use super::tests::{STORE, run_scan};
use super::*;
use crate::group_commit::{GroupCommit, GroupCommitLimits, OpenSegment};
use crate::record::Record;
use crate::segment::{Identity, SegmentHeader};

const OLD: u64 = 3;
const NEW: u64 = 9;
const LEN: usize = 64 << 10;
const SECTOR_LEN: usize = 512;

/// A log's writes to one segment, in the order they were submitted.
fn writes(id: u64, lens: &[usize], leave: bool) -> Vec<(usize, Vec<u8>)> {
    let limits = GroupCommitLimits { frames_in_flight_max: 1, ..GroupCommitLimits::default() };
    let mut log = GroupCommit::new(STORE, limits, Lsn::ZERO, 0);
    log.add_segment(OpenSegment { id, file: FileId(0), len: LEN as u64 });
    let mut writes = Vec::new();
    let mut take = |log: &mut GroupCommit| {
        while let Some(write) = log.poll_write() {
            let DiskOperation::Write { offset, buffer, .. } = write.operation else { continue };
            writes.push((usize::try_from(offset).unwrap(), buffer.as_slice().to_vec()));
            log.handle_written(write.number, Ok(()), None);
        }
    };
    for (index, len) in lens.iter().enumerate() {
        // Old values differ from new ones: a sector that is right by chance was as good as written.
        let value = vec![(id as u8) << 4 | (index as u8 + 1); *len];
        let record = Record {
            kind: RecordKind::Put,
            namespace: Namespace::PLAIN,
            key: Key([index as u8; 20]),
            hashed: false,
            user_key: b"user key",
            version: Version::default(),
            expiry_ms: 0,
            value: &value,
        };
        if log.append(&record).is_err() {
            break;
        }
        log.submit(index as u64);
        take(&mut log);
        if index % 5 == 4 {
            log.open_idle_frame();
            log.submit(index as u64);
            take(&mut log);
        }
    }
    if leave {
        log.roll();
        take(&mut log);
    }
    writes
}

/// A file of zeros, and the file of a segment that was full to its footer, each made segment `NEW`.
fn fresh_files() -> [Vec<u8>; 2] {
    let identity = Identity { store: STORE, node_id: [0; 20], shard: 0, shard_count: 1 };
    let mut old = vec![0xA5; LEN];
    for (at, bytes) in writes(OLD, &[700, 9000, 20, 3000, 12_000, 5000, 900, 8000, 4000], true) {
        old[at..at + bytes.len()].copy_from_slice(&bytes);
    }
    let mut zeroed = vec![0; LEN];
    let header = |id| SegmentHeader { identity, id, len: LEN as u64 };
    zeroed[..BLOCK_SIZE].copy_from_slice(header(NEW).encode().as_slice());
    old[..BLOCK_SIZE].copy_from_slice(header(NEW).encode_over(Space::Reused).as_slice());
    [zeroed, old]
}

/// A crash: writes that completed, how the sectors of those after came out, and later damage.
#[derive(Clone, Debug)]
struct Crash {
    completed: usize,
    in_flight: usize,
    /// One bit per sector, used in turn: whether it was written.
    sectors: Vec<bool>,
    /// Blocks of frames overwritten afterwards.
    rotten: Vec<prop::sample::Index>,
}

fn crash(mut file: Vec<u8>, writes: &[(usize, Vec<u8>)], crash: &Crash) -> Vec<u8> {
    let completed = crash.completed.min(writes.len());
    for (at, bytes) in &writes[..completed] {
        file[*at..at + bytes.len()].copy_from_slice(bytes);
    }
    let mut sectors = crash.sectors.iter().cycle();
    for (at, bytes) in writes[completed..].iter().take(crash.in_flight) {
        for (index, sector) in bytes.chunks(SECTOR_LEN).enumerate() {
            // A sector of zeros that is not written makes no difference in zeroed space, so it is
            // written here, to compare like with like.
            if sectors.next() == Some(&true) || frame::is_blank(sector) {
                let start = at + index * SECTOR_LEN;
                file[start..start + SECTOR_LEN].copy_from_slice(sector);
            }
        }
    }
    let blocks: Vec<usize> = writes[..completed]
        .iter()
        .flat_map(|(at, bytes)| (*at..at + bytes.len()).step_by(BLOCK_SIZE))
        .collect();
    for choice in crash.rotten.iter().filter(|_| !blocks.is_empty()) {
        let at = *choice.get(&blocks);
        file[at..at + BLOCK_SIZE].fill(0xEE);
    }
    file
}

/// What counts of a recovery: records, watermark, newest record, and what is given up as what.
type Outcome = (Vec<(Lsn, bool)>, Lsn, Lsn, Vec<(Lsn, Lsn, Verdict)>);

fn outcome(file: &[u8]) -> Outcome {
    let source = SegmentSource { id: NEW, file: FileId(0), len: LEN as u64, cut: None };
    let (scan, _) = run_scan(file, source, &[], None);
    let settled = settle(&[scan], &[], Lsn::ZERO);
    let (_, records) = run_scan(file, source, &settled.quarantine, Some(&settled));
    let records = records.iter().map(|record| (record.lsn, record.damaged)).collect();
    let mut given_up: Vec<_> = settled
        .quarantine
        .iter()
        .map(|range| (range.first_lsn, range.last_lsn, range.verdict))
        .collect();
    given_up.sort_unstable_by_key(|(first, last, _)| (*first, *last));
    (records, settled.watermark, settled.last_lsn, given_up)
}

#[test]
fn fresh_reused_segment_is_empty_and_sound() {
    let [_, reused] = fresh_files();
    let source = SegmentSource { id: NEW, file: FileId(0), len: LEN as u64, cut: None };
    let (scan, records) = run_scan(&reused, source, &[], None);
    assert!(records.is_empty() && scan.findings.is_empty());
    assert_eq!((scan.end, scan.frame_count), (SEGMENT_HEADER_LEN, 0));
    let settled = settle(&[scan], &[], Lsn::ZERO);
    assert_eq!((settled.watermark, settled.tail_uncertain_bytes), (Lsn::ZERO, 0));
    // Under its old id the same file is full: the test would notice if it were not.
    let source = SegmentSource { id: OLD, ..source };
    assert_eq!(run_scan(&reused, source, &[], None).1.len(), 7);
}

#[test]
fn crash_between_any_two_writes_reads_alike_in_reused_and_zeroed_space() {
    let log = writes(NEW, &[100, 4000, 9000, 10, 50, 6000], true);
    let [zeroed, reused] = fresh_files();
    for completed in 0..=log.len() {
        let plan = Crash { completed, in_flight: 0, sectors: vec![true], rotten: Vec::new() };
        let expected = outcome(&crash(zeroed.clone(), &log, &plan));
        assert_eq!(outcome(&crash(reused.clone(), &log, &plan)), expected);
        assert!(expected.3.is_empty());
    }
    assert_eq!(
        outcome(&crash(
            reused,
            &log,
            &Crash { completed: log.len(), in_flight: 0, sectors: vec![true], rotten: Vec::new() }
        ))
        .2,
        Lsn(6)
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn reused_space_gets_the_verdicts_of_zeroed_space(
        lens in prop::collection::vec(0..9000usize, 1..12),
        leave in any::<bool>(),
        completed in 0..16usize,
        in_flight in 0..4usize,
        sectors in prop::collection::vec(any::<bool>(), 1..40),
        rotten in prop::collection::vec(any::<prop::sample::Index>(), 0..3),
    ) {
        let log = writes(NEW, &lens, leave);
        let plan = Crash { completed, in_flight, sectors, rotten };
        let [zeroed, reused] = fresh_files().map(|file| crash(file, &log, &plan));
        prop_assert_eq!(outcome(&reused), outcome(&zeroed));
    }
}
