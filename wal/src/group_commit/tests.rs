//! Tests of group commit, with the disk's part played by hand.

use super::*;
use crate::record::{Key, Namespace, RecordKind, Version};

fn log() -> GroupCommit {
    let mut log = GroupCommit::new([7; 16], GroupCommitLimits::default(), Lsn(10), 0);
    log.add_segment(OpenSegment { id: 1, file: FileId(1), len: 4 << 20 });
    log
}

pub(super) fn record(value: &[u8]) -> Record<'_> {
    Record {
        kind: RecordKind::Put,
        namespace: Namespace::PLAIN,
        key: Key([1; 20]),
        hashed: false,
        user_key: b"k",
        version: Version::default(),
        expiry_ms: 0,
        value,
    }
}

fn write_range(write: &FrameWrite) -> (FileId, u64, usize) {
    match &write.operation {
        DiskOperation::Write { file, offset, buffer, durability: Durability::Durable } => {
            (*file, *offset, buffer.len())
        }
        other => panic!("a frame is written durably, not {other:?}"),
    }
}

#[test]
fn record_is_durable_only_after_its_write_completed() {
    let mut log = log();
    assert_eq!(log.append(&record(b"a")).unwrap().lsn, Lsn(11));
    assert!(log.poll_write().is_none(), "nothing goes out before the turn ends");
    log.submit(5);
    let write = log.poll_write().unwrap();
    assert_eq!(write_range(&write), (FileId(1), 4096, 4096));
    assert_eq!(log.durable_lsn(), Lsn(10));
    assert!(log.handle_written(write.number, Ok(()), None));
    assert_eq!(log.durable_lsn(), Lsn(11));
    assert!(log.pending_bytes() == 0 && log.is_quiet());
}

#[test]
fn later_frame_waits_for_an_earlier_one() {
    let mut log = log();
    let mut writes = Vec::new();
    for _ in 0..2 {
        log.append(&record(b"a")).unwrap();
        log.submit(5);
        writes.push(log.poll_write().unwrap());
    }
    assert_eq!(write_range(&writes[1]).1, 8192);
    assert!(!log.handle_written(writes[1].number, Ok(()), None));
    assert_eq!(log.durable_lsn(), Lsn(10));
    assert!(log.handle_written(writes[0].number, Ok(()), None));
    assert_eq!(log.durable_lsn(), Lsn(12));
}

#[test]
fn records_gather_while_the_frames_in_flight_are_at_their_limit() {
    let mut log = log();
    let mut numbers = Vec::new();
    for _ in 0..5 {
        log.append(&record(b"a")).unwrap();
        log.submit(5);
        numbers.extend(log.poll_write().map(|write| write.number));
    }
    assert_eq!(numbers.len(), 2);
    log.handle_written(numbers[0], Ok(()), None);
    log.submit(5);
    let third = log.poll_write().unwrap();
    log.handle_written(numbers[1], Ok(()), None);
    log.handle_written(third.number, Ok(()), None);
    assert_eq!(log.durable_lsn(), Lsn(15));
}

#[test]
fn copies_alone_go_out_in_long_frames_and_with_a_command_at_once() {
    let mut log = log();
    log.hold_copies(1_000);
    let mut sent = Vec::new();
    for _ in 0..4 {
        log.append_copy(&record(&[1; 300]), Lsn(1)).unwrap();
        log.submit(5);
        let write = log.poll_write();
        sent.push(write.is_some());
        if let Some(write) = write {
            log.handle_written(write.number, Ok(()), None);
        }
    }
    assert_eq!(sent, [false, false, true, false]);
    log.append(&record(b"a command's")).unwrap();
    log.submit(5);
    let second = log.poll_write().expect("a frame for the command");
    log.handle_written(second.number, Ok(()), None);
    log.append_copy(&record(b"last"), Lsn(1)).unwrap();
    log.submit(5);
    assert!(log.poll_write().is_none());
    log.hold_copies(0);
    log.submit(5);
    assert!(log.poll_write().is_some(), "no more are to come");
}

#[test]
fn failed_write_is_final() {
    let mut log = log();
    log.append(&record(b"a")).unwrap();
    log.submit(5);
    let write = log.poll_write().unwrap();
    let error = DiskError { kind: DiskErrorKind::Io, code: 5 };
    assert!(!log.handle_written(write.number, Err(error), None));
    assert_eq!(log.append(&record(b"b")), Err(AppendError::Failed(error)));
    log.submit(6);
    assert!(log.poll_write().is_none());
    assert_eq!(log.durable_lsn(), Lsn(10));
}

#[test]
fn full_segment_rolls_to_the_spare_or_asks_for_one() {
    let mut log = log();
    let value = vec![1; 900 << 10];
    let mut appended = Vec::new();
    let error = loop {
        match log.append(&record(&value)) {
            Ok(done) => appended.push(done.location),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, AppendError::NoSegment { frame_len } if frame_len > 900 << 10));
    assert_eq!(appended.len(), 4);
    log.add_segment(OpenSegment { id: 2, file: FileId(2), len: 8 << 20 });
    let location = log.append(&record(&value)).unwrap().location;
    assert_eq!((location.segment, location.offset), (2, 4096 + 80));
    assert!(log.poll_left().is_none(), "frames of the first segment are still to be written");
    for _ in 0..5 {
        log.submit(1);
        let write = log.poll_write().unwrap();
        log.handle_written(write.number, Ok(()), None);
    }
    assert_eq!(log.poll_left().map(|segment| segment.id), Some(1));
}

#[test]
fn idle_frame_carries_the_watermark_once() {
    let mut log = log();
    assert!(!log.wants_idle_frame());
    log.append(&record(b"a")).unwrap();
    log.submit(5);
    let write = log.poll_write().unwrap();
    log.handle_written(write.number, Ok(()), None);
    assert!(log.wants_idle_frame());
    log.open_idle_frame();
    log.submit(6);
    let write = log.poll_write().unwrap();
    assert_eq!(write_range(&write), (FileId(1), 8192, 4096));
    log.handle_written(write.number, Ok(()), None);
    assert!(!log.wants_idle_frame());
    assert_eq!(log.durable_lsn(), Lsn(11));
}

#[test]
fn too_many_pending_bytes_push_back() {
    let mut log = log();
    log.limits.pending_bytes_max = 1000;
    log.append(&record(&[0; 900])).unwrap();
    assert!(matches!(log.append(&record(&[0; 900])), Err(AppendError::Congested { .. })));
    log.submit(1);
    let write = log.poll_write().unwrap();
    log.handle_written(write.number, Ok(()), None);
    log.append(&record(&[0; 9000])).expect("a lone record is taken whatever its size");
}

#[test]
fn copy_has_an_lsn_of_its_own_and_keeps_its_first_one() {
    let mut log = log();
    let original = log.append(&record(b"value")).unwrap();
    log.submit(1);
    let write = log.poll_write().unwrap();
    let DiskOperation::Write { offset, buffer, .. } = &write.operation else { panic!("a frame") };
    let at = u64::from(original.location.offset) - offset;
    let bytes = &buffer.as_slice()[usize::try_from(at).unwrap()..];
    let place = Place { store: [7; 16], segment: 1, offset: original.location.offset.into() };
    let header = RecordHeader::decode(bytes, &place).unwrap();
    let value = header.value(bytes).unwrap();
    let copy = log.append_copy_of(&header, original.lsn, value).unwrap();
    assert_eq!((header.first_lsn, original.lsn, copy.lsn), (None, Lsn(11), Lsn(12)));
    assert_eq!(copy.location.header_len, original.location.header_len + 8);
    assert_eq!(copy.location.value_len, original.location.value_len);
    log.submit(1);
    let DiskOperation::Write { buffer, .. } = log.poll_write().unwrap().operation else {
        panic!("a frame");
    };
    let place = place.at(copy.location.offset.into());
    let copied = RecordHeader::decode(&buffer.as_slice()[FRAME_HEADER_LEN..], &place).unwrap();
    assert_eq!(copied.first_lsn, Some(Lsn(11)));
    assert_eq!((log.counters().records, log.counters().copies), (2, 1));
}
