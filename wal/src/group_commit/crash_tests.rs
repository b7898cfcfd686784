//! A log on a disk that forgets: whatever was not made durable is lost in any sectors, and what is
//! read back must have all that is durable, and blame nobody.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::tests::record;
use super::*;
use crate::footer::{self, Footer};
use crate::procedure::Procedure;
use crate::replay::tests::{STORE, run_reads};
use crate::replay::{ReplayedRecord, SegmentScan, SegmentSource, scan_segment, settle};
use crate::segment::{Identity, SegmentHeader, Space};

pub(super) const LEN: usize = 64 << 10;
const SECTOR_LEN: usize = 512;

/// A write that is not durable: under way, or completed in the cache.
struct Volatile {
    number: u64,
    file: FileId,
    at: usize,
    bytes: Vec<u8>,
    durably: bool,
    completed: bool,
}

/// Segment files, by id, which are also the numbers of their files.
#[derive(Default)]
pub(super) struct Disk {
    pub(super) files: BTreeMap<u32, Vec<u8>>,
    volatile: Vec<Volatile>,
    /// Syncs under way, and the writes that each covers.
    syncs: BTreeMap<u64, Vec<u64>>,
    pub(super) under_way: Vec<u64>,
}

impl Disk {
    pub(super) fn add_segment(&mut self, id: u32) -> OpenSegment {
        let identity = Identity { store: STORE, node_id: [0; 20], shard: 0, shard_count: 1 };
        let header = SegmentHeader { identity, id: id.into(), len: LEN as u64 };
        // Odd ones are the files of earlier segments.
        let reused = !id.is_multiple_of(2);
        let space = if reused { Space::Reused } else { Space::Zeroed };
        let mut bytes = vec![if reused { 0xA7 } else { 0 }; LEN];
        bytes[..BLOCK_SIZE].copy_from_slice(header.encode_over(space).as_slice());
        self.files.insert(id, bytes);
        OpenSegment { id: id.into(), file: FileId(id), len: LEN as u64 }
    }

    pub(super) fn start(&mut self, write: FrameWrite) {
        let number = write.number;
        self.under_way.push(number);
        match write.operation {
            DiskOperation::Sync { file } => {
                let covered = self.volatile.iter().filter(|w| w.file == file && w.completed);
                self.syncs.insert(number, covered.map(|write| write.number).collect());
            }
            DiskOperation::Write { file, offset, buffer, durability } => {
                self.volatile.push(Volatile {
                    number,
                    file,
                    at: usize::try_from(offset).unwrap(),
                    bytes: buffer.as_slice().to_vec(),
                    durably: durability == Durability::Durable,
                    completed: false,
                });
            }
            other => panic!("{other:?}"),
        }
    }

    pub(super) fn complete(&mut self, number: u64) {
        self.under_way.retain(|other| *other != number);
        let mut durable = self.syncs.remove(&number).unwrap_or_default();
        if let Some(write) = self.volatile.iter_mut().find(|write| write.number == number) {
            write.completed = true;
            durable.extend(write.durably.then_some(number));
        }
        let (settled, volatile): (Vec<_>, Vec<_>) = std::mem::take(&mut self.volatile)
            .into_iter()
            .partition(|write| durable.contains(&write.number));
        self.volatile = volatile;
        for write in settled {
            let target = self.files.get_mut(&write.file.0).unwrap();
            target[write.at..write.at + write.bytes.len()].copy_from_slice(&write.bytes);
        }
    }

    /// What a start would read.
    pub(super) fn read_back(&self) -> Vec<Scanned> {
        self.files.iter().map(|(id, bytes)| read_back(*id, bytes)).collect()
    }

    /// Power fails: any sectors of what is not durable may have come through.
    pub(super) fn crash(&mut self, sectors: &[bool]) {
        let mut sectors = sectors.iter().cycle();
        for write in std::mem::take(&mut self.volatile) {
            let target = self.files.get_mut(&write.file.0).unwrap();
            for (index, sector) in write.bytes.chunks(SECTOR_LEN).enumerate() {
                if sectors.next() == Some(&true) {
                    let at = write.at + index * SECTOR_LEN;
                    target[at..at + sector.len()].copy_from_slice(sector);
                }
            }
        }
    }
}

pub(super) type Scanned = (SegmentScan, Vec<ReplayedRecord>, Option<Footer>);

/// Every durable record is among what was read back, and nothing looks like damage. Returns the
/// LSNs found.
pub(super) fn check_nothing_is_lost(
    found: &[Scanned],
    durable: Lsn,
) -> Result<Vec<Lsn>, TestCaseError> {
    let scans: Vec<SegmentScan> = found.iter().map(|(scan, ..)| scan.clone()).collect();
    let settled = settle(&scans, &[], Lsn::ZERO);
    prop_assert!(!settled.is_suspect(), "{:?}", settled.quarantine);
    prop_assert!(settled.watermark <= durable, "the log claims more than is durable");
    prop_assert!(settled.findings.is_empty() && settled.salvaged.is_empty());
    let records = found.iter().flat_map(|(_, records, _)| records);
    let mut lsns: Vec<Lsn> = records.map(|record| record.lsn).collect();
    lsns.sort_unstable();
    for lsn in 1..=durable.0 {
        prop_assert!(lsns.binary_search(&Lsn(lsn)).is_ok(), "record {lsn} is lost");
    }
    Ok(lsns)
}

fn read_back(id: u32, bytes: &[u8]) -> Scanned {
    let source = SegmentSource { id: id.into(), file: FileId(id), len: LEN as u64, cut: None };
    let procedure = Procedure::new(|port| async move {
        let mut records = Vec::new();
        let mut visit = |record| records.push(record);
        let scan = scan_segment(&port, STORE, source, &[], &mut visit).await;
        (scan, records, footer::read_footer(&port, STORE, &source).await)
    });
    run_reads(bytes, procedure)
}

pub(super) fn any_limits() -> impl Strategy<Value = GroupCommitLimits> {
    let method = prop_oneof![Just(SyncMethod::Dsync), Just(SyncMethod::SyncPerBatch)];
    let durability = prop_oneof![
        Just(CommitDurability::Always),
        Just(CommitDurability::Interval { ms: 3 }),
        Just(CommitDurability::Os),
    ];
    let in_flight = 1..=FRAMES_IN_FLIGHT_MAX;
    (method, durability, in_flight).prop_map(|(sync_method, durability, frames_in_flight_max)| {
        GroupCommitLimits {
            sync_method,
            durability,
            frames_in_flight_max,
            frame_bytes_max: 16 << 10,
            ..GroupCommitLimits::default()
        }
    })
}

/// What to do, which operation to complete, and the bytes of a value.
pub(super) fn any_step() -> impl Strategy<Value = (u8, prop::sample::Index, usize)> {
    (0..9u8, any::<prop::sample::Index>(), 1..6000usize)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn what_is_durable_survives_a_crash_and_nothing_looks_like_corruption(
        limits in any_limits(),
        steps in prop::collection::vec(any_step(), 1..150),
        sectors in prop::collection::vec(any::<bool>(), 1..40),
    ) {
        let (mut disk, mut segments, mut now_ms) = (Disk::default(), 1, 0);
        let mut log = GroupCommit::new(STORE, limits, Lsn::ZERO, 0);
        log.add_segment(disk.add_segment(segments));
        for (what, choice, len) in steps {
            now_ms += u64::from(what % 3 == 0);
            match what {
                0..4 => {
                    if log.append(&record(&vec![what; len])).is_err() {
                        segments += 1;
                        log.add_segment(disk.add_segment(segments));
                    }
                    log.submit(now_ms);
                }
                4 => {
                    log.open_idle_frame();
                    log.submit(now_ms);
                }
                5 if len < 500 => log.roll(),
                _ if disk.under_way.is_empty() => {}
                _ => {
                    let number = *choice.get(&disk.under_way);
                    disk.complete(number);
                    log.handle_written(number, Ok(()), None);
                }
            }
            while let Some(write) = log.poll_write() {
                disk.start(write);
            }
        }
        let durable = log.durable_lsn();
        disk.crash(&sectors);
        let found = disk.read_back();
        for (scan, records, footer) in &found {
            if let Some(footer) = footer {
                prop_assert_eq!(&footer.records().collect::<Vec<_>>(), records);
                prop_assert_eq!(footer.summary().frames_end, scan.end);
                prop_assert!(footer.summary().last_lsn() <= durable);
            }
        }
        check_nothing_is_lost(&found, durable)?;
    }
}
