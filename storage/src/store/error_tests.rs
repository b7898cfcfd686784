//! Tests of what the store does when the disk refuses: one for each kind of write.

use wal::disk::DiskErrorKind;

use super::tests::{BROKEN, NO_SPACE, Played, SEGMENT, is_frame, is_read, played, played_by};
use super::*;
use crate::error::WriteError;
use crate::recovery::{CHECKPOINT_FILE, MANIFEST_FILES};

fn is_footer(operation: &DiskOperation) -> bool {
    let end = SEGMENT.len;
    matches!(operation, DiskOperation::Write { file, offset, buffer, .. }
        if *file == SEGMENT.file && offset + buffer.len() as u64 == end)
}

fn is_manifest(operation: &DiskOperation) -> bool {
    matches!(operation, DiskOperation::Write { file, .. } if MANIFEST_FILES.contains(file))
}

fn is_checkpoint(operation: &DiskOperation) -> bool {
    matches!(operation, DiskOperation::Write { file, .. } if *file == CHECKPOINT_FILE)
}

/// Lets everything end but what `which` chooses, over and over.
fn settle_but(played: &mut Played, which: fn(&DiskOperation) -> bool) {
    for _ in 0..10 {
        played.turn();
        while let Some(at) = played.held.iter().position(|held| !which(&held.operation)) {
            let held = played.held.remove(at);
            played.held.insert(0, held);
            played.end(|_| true, None);
        }
    }
}

#[test]
fn failed_footer_makes_the_shard_read_only() {
    let mut played = played(0);
    played.put("a", b"one", 0).unwrap();
    played.settle();
    // A snapshot leaves the segment.
    played.store.snapshot(FileName::new("into"));
    settle_but(&mut played, is_footer);
    played.events();
    assert!(played.end(is_footer, Some(BROKEN)));
    assert!(played.events().contains(&Event::Failed(BROKEN)));
    assert_eq!(played.put("b", b"two", 0), Err(WriteError::ReadOnly(BROKEN)));
    played.turn();
    assert!(!played.held.iter().any(|held| is_footer(&held.operation)), "it is not retried");
    let ended = played.events();
    assert!(ended.contains(&Event::Snapshotted { result: Err(BROKEN) }), "{ended:?}");
}

/// The manifest is no part of the log: what is in the log stays acknowledged, and new records go
/// into it as long as there is room.
#[test]
fn failed_manifest_refuses_writes_once_there_is_no_room_and_is_tried_again() {
    let mut played = played(0);
    played.put("a", &[1; 20_000], 0).unwrap();
    settle_but(&mut played, is_manifest);
    assert!(played.end(is_manifest, Some(BROKEN)));
    assert_eq!(played.store.failure(), None);
    played.put("b", &[2; 20_000], 0).unwrap();
    let full = played.put("c", &[3; 40_000], 0);
    assert_eq!(full, Err(WriteError::NoSegment(BROKEN)), "it is no failure for good");
    settle_but(&mut played, is_manifest);
    played.events();
    assert!(!played.held.iter().any(|held| is_manifest(&held.operation)), "not before its time");
    played.at_ms(2_100);
    played.settle();
    assert!(played.events().contains(&Event::Writable) || played.store.log.spare_count() > 0);
    played.put("c", &[3; 40_000], 0).unwrap();
}

#[test]
fn failed_checkpoint_is_counted_and_begun_again_later() {
    let often = CheckpointOptions { log_bytes_min: 1, ..CheckpointOptions::NEVER };
    let (log, limits) = (GroupCommitLimits::default(), StoreLimits::default());
    let mut played = played_by(0, log, limits, often);
    for error in [BROKEN, NO_SPACE] {
        let before = played.store.status().checkpoints.failed;
        played.put("a", b"one", 0).unwrap();
        settle_but(&mut played, is_checkpoint);
        assert!(played.end(is_checkpoint, Some(error)));
        played.settle();
        let counters = played.store.status().checkpoints;
        assert_eq!((counters.failed, counters.failure), (before + 1, Some(error)));
        assert_eq!((counters.published, played.store.failure()), (0, None));
        let now_ms = played.store.now.monotonic_ns / 1_000_000;
        played.at_ms(now_ms + 9_999);
        played.settle();
        assert_eq!(played.store.status().checkpoints.published, 0, "not before its time");
        played.at_ms(now_ms + 10_000);
    }
    for ms in [30_000, 30_100, 30_200] {
        played.at_ms(ms);
        played.settle();
    }
    assert_eq!(played.store.status().checkpoints.published, 1);
    assert!(played.store.keeper.manifest().checkpoint.is_some());
}

#[test]
fn segment_that_cannot_be_read_is_not_compacted_and_stays() {
    let mut played = played(0);
    for round in 0..4 {
        played.put("a", &[round; 30_000], 0).unwrap();
        played.settle();
    }
    let segments = played.store.status().segments;
    played.store.compact();
    settle_but(&mut played, is_read);
    let mut failed = 0;
    while played.end(is_read, Some(BROKEN)) {
        failed += 1;
        settle_but(&mut played, is_read);
    }
    assert!(failed > 0, "nothing was read");
    assert_eq!(played.store.failure(), None);
    let unfit = |segment: &Segment| segment.state == SegmentState::Unfit;
    let unfit = played.store.catalog.segments.iter().filter(|(_, segment)| unfit(segment)).count();
    assert!(unfit > 0 && played.store.status().segments >= segments.min(2));
    played.put("b", b"goes on", 0).unwrap();
    assert_eq!(BROKEN.kind, DiskErrorKind::Io);
    assert!(!played.held.iter().any(|held| is_frame(&held.operation)));
}
