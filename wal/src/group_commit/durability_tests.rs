//! Tests of what each durability and sync method promises, with the disk played by hand.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::tests::record;
use super::*;
use crate::footer::Trailer;
use crate::frame::FrameHeader;

const STORE: [u8; 16] = [7; 16];
const SEGMENT_LEN: u64 = 64 << 10;

fn log(sync_method: SyncMethod, durability: CommitDurability) -> GroupCommit {
    let limits = GroupCommitLimits {
        sync_method,
        durability,
        frames_in_flight_max: 3,
        ..GroupCommitLimits::default()
    };
    let mut log = GroupCommit::new(STORE, limits, Lsn::ZERO, 0);
    log.add_segment(OpenSegment { id: 1, file: FileId(1), len: SEGMENT_LEN });
    log
}

fn is_sync(write: &FrameWrite) -> bool {
    matches!(write.operation, DiskOperation::Sync { .. })
}

fn append_and_submit(log: &mut GroupCommit, now_ms: u64) {
    log.append(&record(b"a")).unwrap();
    log.submit(now_ms);
}

#[test]
fn batch_is_acknowledged_after_one_sync_of_all_its_frames() {
    let mut log = log(SyncMethod::SyncPerBatch, CommitDurability::Always);
    append_and_submit(&mut log, 1);
    let first = log.poll_write().unwrap();
    append_and_submit(&mut log, 1);
    let second = log.poll_write().unwrap();
    for write in [&first, &second] {
        let DiskOperation::Write { durability, .. } = &write.operation else { panic!("a frame") };
        assert_eq!(*durability, Durability::Cached);
    }
    assert!(!log.handle_written(first.number, Ok(()), None));
    append_and_submit(&mut log, 1);
    assert!(log.poll_write().is_none(), "the third frame waits for the sync of the first two");
    assert!(!log.handle_written(second.number, Ok(()), None));
    let sync = log.poll_write().unwrap();
    assert!(is_sync(&sync) && log.poll_write().is_none());
    assert_eq!((log.acknowledged_lsn(), log.durable_lsn()), (Lsn::ZERO, Lsn::ZERO));
    assert!(log.handle_written(sync.number, Ok(()), None));
    assert_eq!((log.acknowledged_lsn(), log.durable_lsn()), (Lsn(2), Lsn(2)));
    log.submit(1);
    assert!(!is_sync(&log.poll_write().unwrap()));
    assert_eq!(log.counters().syncs, 1);
}

#[test]
fn interval_acknowledges_what_is_written_and_syncs_when_due() {
    let mut log = log(SyncMethod::Dsync, CommitDurability::Interval { ms: 100 });
    append_and_submit(&mut log, 10);
    let write = log.poll_write().unwrap();
    assert_eq!(log.sync_due_ms(), None);
    assert!(log.handle_written(write.number, Ok(()), None));
    assert_eq!((log.acknowledged_lsn(), log.durable_lsn()), (Lsn(1), Lsn::ZERO));
    assert_eq!(log.sync_due_ms(), Some(110));
    assert!(log.pending_bytes() == 0 && !log.is_quiet());
    append_and_submit(&mut log, 60);
    let write = log.poll_write().unwrap();
    log.submit(109);
    assert!(log.poll_write().is_none());
    log.submit(110);
    assert!(log.poll_write().is_none(), "a frame of the file is still under way");
    assert!(log.handle_written(write.number, Ok(()), None));
    let sync = log.poll_write().unwrap();
    assert!(is_sync(&sync) && log.handle_written(sync.number, Ok(()), None));
    assert_eq!(log.durable_lsn(), Lsn(2));
    assert_eq!(log.sync_due_ms(), None);
    // The idle frame is durable by itself: no interval follows it.
    assert!(log.wants_idle_frame());
    log.open_idle_frame();
    log.submit(111);
    let idle = log.poll_write().unwrap();
    assert!(matches!(idle.operation, DiskOperation::Write { durability: Durability::Durable, .. }));
    log.handle_written(idle.number, Ok(()), None);
    assert!(log.is_quiet() && !log.wants_idle_frame() && log.sync_due_ms().is_none());
}

#[test]
fn os_syncs_only_segments_that_are_left_or_on_request() {
    let mut log = log(SyncMethod::SyncPerBatch, CommitDurability::Os);
    log.add_segment(OpenSegment { id: 2, file: FileId(2), len: SEGMENT_LEN });
    let value = vec![1; 20 << 10];
    let (mut syncs, mut frames, mut footers) = (Vec::new(), 0, 0);
    for _ in 0..4 {
        log.append(&record(&value)).unwrap();
        log.submit(1);
        while let Some(write) = log.poll_write() {
            match write.operation {
                DiskOperation::Sync { file } => syncs.push(file),
                DiskOperation::Write { durability: Durability::Cached, .. } => frames += 1,
                _ => footers += 1,
            }
            log.handle_written(write.number, Ok(()), None);
        }
    }
    assert_eq!((syncs.as_slice(), frames, footers), ([FileId(1)].as_slice(), 4, 1));
    assert_eq!((log.acknowledged_lsn(), log.durable_lsn()), (Lsn(4), Lsn(2)));
    assert_eq!(log.poll_left().map(|left| left.id), Some(1));
    assert!(log.is_quiet(), "the operating system keeps the rest");
    log.request_sync();
    assert!(!log.is_quiet());
    let sync = log.poll_write().unwrap();
    assert!(is_sync(&sync) && log.handle_written(sync.number, Ok(()), None));
    assert_eq!(log.durable_lsn(), Lsn(4));
}

#[test]
fn failed_sync_is_final() {
    let mut log = log(SyncMethod::SyncPerBatch, CommitDurability::Always);
    append_and_submit(&mut log, 1);
    let write = log.poll_write().unwrap();
    log.handle_written(write.number, Ok(()), None);
    let sync = log.poll_write().unwrap();
    let error = DiskError { kind: DiskErrorKind::Io, code: 5 };
    assert!(!log.handle_written(sync.number, Err(error), None));
    assert_eq!(log.append(&record(b"b")), Err(AppendError::Failed(error)));
    assert!(log.poll_write().is_none() && !log.is_quiet());
    assert_eq!(log.acknowledged_lsn(), Lsn::ZERO);
}

/// The disk as a naive model: which frames are written, and which of them are durable.
#[derive(Default)]
struct Model {
    /// Last LSN, file, written, durable; by number.
    frames: BTreeMap<u64, (Lsn, FileId, bool, bool)>,
    /// Frames that each sync under way covers.
    syncs: BTreeMap<u64, (FileId, Vec<u64>)>,
    under_way: Vec<u64>,
}

impl Model {
    fn start(&mut self, write: &FrameWrite) {
        self.under_way.push(write.number);
        match &write.operation {
            DiskOperation::Sync { file } => {
                let of_file = |frame: &(Lsn, FileId, bool, bool)| frame.1 == *file;
                assert!(!self.frames.values().any(|frame| of_file(frame) && !frame.2));
                let covered = self.frames.iter().filter(|(_, frame)| of_file(frame));
                let covered = covered.map(|(number, _)| *number).collect();
                self.syncs.insert(write.number, (*file, covered));
            }
            DiskOperation::Write { file, offset, buffer, .. } => {
                assert!(!self.syncs.values().any(|(syncing, _)| syncing == file));
                let place = Place { store: STORE, segment: u64::from(file.0), offset: *offset };
                if offset + buffer.len() as u64 == SEGMENT_LEN
                    && let Ok(trailer) = Trailer::decode(buffer.as_slice(), &place, SEGMENT_LEN)
                {
                    assert!(trailer.summary.last_lsn() <= self.durable(), "a footer too early");
                    assert!(self.frames.values().all(|frame| frame.1 != *file || frame.3));
                    return;
                }
                let header = buffer.as_slice().first_chunk().unwrap();
                let header = FrameHeader::decode(header, &place).unwrap();
                assert!(header.durable_lsn <= self.durable(), "the watermark runs ahead");
                self.frames.insert(write.number, (header.last_lsn(), *file, false, false));
            }
            other => panic!("{other:?}"),
        }
    }

    fn complete(&mut self, number: u64, durably: bool) {
        self.under_way.retain(|other| *other != number);
        if let Some((_, covered)) = self.syncs.remove(&number) {
            for frame in covered {
                self.frames.get_mut(&frame).unwrap().3 = true;
            }
        } else if let Some(frame) = self.frames.get_mut(&number) {
            (frame.2, frame.3) = (true, durably);
        }
    }

    /// The last LSN before the first frame for which `holds` is false.
    fn reached(&self, holds: fn(&(Lsn, FileId, bool, bool)) -> bool) -> Lsn {
        let first = self.frames.values().take_while(|frame| holds(frame));
        first.map(|frame| frame.0).max().unwrap_or(Lsn::ZERO)
    }

    fn durable(&self) -> Lsn {
        self.reached(|frame| frame.3)
    }

    fn written(&self) -> Lsn {
        self.reached(|frame| frame.2)
    }
}

fn any_mode() -> impl Strategy<Value = (SyncMethod, CommitDurability)> {
    let method = prop_oneof![Just(SyncMethod::Dsync), Just(SyncMethod::SyncPerBatch)];
    let durability = prop_oneof![
        Just(CommitDurability::Always),
        Just(CommitDurability::Interval { ms: 5 }),
        Just(CommitDurability::Os),
    ];
    (method, durability)
}

/// What to do, which operation to complete, and the bytes of a value.
fn any_step() -> impl Strategy<Value = (u8, prop::sample::Index, usize)> {
    (0..4u8, any::<prop::sample::Index>(), 1..9000usize)
}

proptest! {
    // Steps: append and end the turn, let time pass, or complete any operation under way.
    #[test]
    fn nothing_is_acknowledged_before_its_mode_promises(
        (method, durability) in any_mode(),
        in_flight in 1..=FRAMES_IN_FLIGHT_MAX,
        steps in prop::collection::vec(any_step(), 1..120),
    ) {
        let mut log = log(method, durability);
        log.limits.frames_in_flight_max = in_flight;
        let (mut model, mut now_ms, mut segments) = (Model::default(), 0, 1);
        let mut durably = BTreeMap::new();
        for (what, choice, len) in steps {
            now_ms += u64::from(what == 1);
            if what < 2 {
                let error = log.append(&record(&vec![1; len])).err();
                if matches!(error, Some(AppendError::NoSegment { .. })) {
                    segments += 1;
                    let (id, file) = (u64::from(segments), FileId(segments));
                    log.add_segment(OpenSegment { id, file, len: SEGMENT_LEN });
                }
                log.submit(now_ms);
            } else if !model.under_way.is_empty() {
                let number = *choice.get(&model.under_way);
                model.complete(number, durably.remove(&number).unwrap_or(false));
                log.handle_written(number, Ok(()), None);
            }
            while let Some(write) = log.poll_write() {
                if let DiskOperation::Write { durability, .. } = &write.operation {
                    durably.insert(write.number, *durability == Durability::Durable);
                }
                model.start(&write);
            }
            while log.poll_left().is_some() {}
            prop_assert!(log.durable_lsn() <= model.durable());
            let promised = match durability {
                CommitDurability::Always => model.durable(),
                _ => model.written(),
            };
            prop_assert!(log.acknowledged_lsn() <= promised);
            prop_assert!(log.durable_lsn() <= log.acknowledged_lsn());
            prop_assert!(log.acknowledged_lsn() <= log.last_lsn());
        }
        // Nothing is forgotten either: once the disk is done, everything is acknowledged.
        log.request_sync();
        for _ in 0..1000 {
            log.submit(now_ms);
            while let Some(write) = log.poll_write() {
                log.handle_written(write.number, Ok(()), None);
            }
            if let Some(number) = model.under_way.pop() {
                log.handle_written(number, Ok(()), None);
            }
            now_ms += 1;
        }
        prop_assert_eq!(log.acknowledged_lsn(), log.last_lsn());
        prop_assert_eq!(log.durable_lsn(), log.last_lsn());
        prop_assert!(log.is_quiet());
    }
}
