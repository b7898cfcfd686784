//! Tests of snapshots on a disk played by hand.

use wal::manifest::{CheckpointEntry, Quarantine, SegmentEntry, Verdict};

use super::snapshot::Snapshots;
use super::tests::{BROKEN, NO_SPACE, Played, SEGMENT, is_frame, is_write, key, played, played_by};
use super::*;
use crate::recovery::CHECKPOINT_FILE;

fn is_link(operation: &DiskOperation) -> bool {
    matches!(operation, DiskOperation::Link { .. })
}

/// CRC-32 of bytes of the first segment's file.
fn sum(played: &Played, range: std::ops::Range<u64>) -> u32 {
    wal::checksum::plain(&played.files[&SEGMENT.file][range.start as usize..range.end as usize])
}

/// Ends the snapshot under way; the files it says it has.
fn snapshot_files(played: &mut Played) -> Vec<SnapshotFile> {
    played.settle();
    let ended = played.events().into_iter().find_map(|event| match event {
        Event::Snapshotted { result } => Some(result),
        _ => None,
    });
    ended.expect("it has ended").expect("nothing fails")
}

#[test]
fn snapshot_holds_the_log_up_to_the_cut_and_no_more() {
    let mut played = played(0);
    played.put("a", b"one", 0).unwrap();
    played.settle();
    played.put("b", b"not durable yet", 0).unwrap();
    played.store.snapshot(FileName::new("into/shard-00"));
    played.turn();
    let cut = played.put("c", b"after", 0).unwrap().before();
    assert!(!played.held.iter().any(|held| is_link(&held.operation)), "linked before it is sealed");
    let files = snapshot_files(&mut played);
    let names: Vec<&str> = files.iter().map(|file| file.name.as_str()).collect();
    assert_eq!(names, ["0000000000000001.segment", "manifest-0", "manifest-1"]);
    let FileContent { used, crc32, .. } = files[0].content;
    assert_eq!((files[0].len, crc32), (SEGMENT.len, sum(&played, 0..used)));
    let tail = files[0].content.tail.expect("there was room for a footer");
    assert_eq!(tail.crc32, sum(&played, tail.offset..SEGMENT.len));
    let manifest = played.files.values().filter_map(|bytes| Manifest::decode(bytes).ok());
    let manifest = manifest.max_by_key(|manifest| manifest.durable_lsn).unwrap();
    let entry = SegmentEntry { id: 1, len: SEGMENT.len, cut: Some(used) };
    assert_eq!((manifest.durable_lsn, manifest.segments), (cut, vec![entry]));
    assert!(played.store.snapshots.may_be_linked(1));
    // The second one finds the first one's sum, and the segment with the later record.
    played.store.snapshot(FileName::new("into/shard-00"));
    let again = snapshot_files(&mut played);
    assert_eq!((&again[0], again.len()), (&files[0], 4));
}

/// Bytes that end in their own CRC-32 have all the same one.
#[test]
fn manifests_of_different_snapshots_have_different_sums() {
    let mut played = played(0);
    let mut sums = Vec::new();
    for name in ["a", "b"] {
        played.put(name, b"value", 0).unwrap();
        played.settle();
        played.store.snapshot(FileName::new("into"));
        let files = snapshot_files(&mut played);
        let file = files.into_iter().find(|file| file.name == "manifest-0").unwrap();
        let tail = file.content.tail.unwrap();
        assert_eq!(tail.offset, file.content.used);
        sums.push((file.len, file.content.crc32, tail.crc32));
    }
    assert_eq!(sums[0].0, sums[1].0);
    assert!(sums[0].1 != sums[1].1 && sums[0].2 != sums[1].2);
}

#[test]
fn snapshot_that_fails_says_so_and_the_next_one_can_be_taken() {
    let mut played = played(0);
    played.put("a", b"one", 0).unwrap();
    played.settle();
    played.store.snapshot(FileName::new("into"));
    for _ in 0..2 {
        played.turn();
        played.end_all(|operation| !is_link(operation));
    }
    assert!(played.end(is_link, Some(NO_SPACE)));
    assert!(played.events().contains(&Event::Snapshotted { result: Err(NO_SPACE) }));
    played.store.snapshot(FileName::new("into"));
    assert_eq!(snapshot_files(&mut played).len(), 3);
}

#[test]
fn snapshot_of_a_read_only_store_fails_at_once() {
    let mut played = played(0);
    played.put("a", b"one", 0).unwrap();
    played.turn();
    played.end(is_frame, Some(BROKEN));
    played.events();
    played.store.snapshot(FileName::new("into"));
    played.turn();
    assert_eq!(played.events(), [Event::Snapshotted { result: Err(BROKEN) }]);
}

#[test]
fn snapshot_waits_until_writes_can_go_on_elsewhere() {
    let mut played = played(0);
    // The first append takes the only segment.
    played.put("a", b"one", 0).unwrap();
    played.turn();
    played.end_all(is_frame);
    played.store.snapshot(FileName::new("into"));
    played.turn();
    let before_the_cut = played.put("b", b"two", 0).unwrap();
    assert_eq!(snapshot_files(&mut played).len(), 3);
    let manifests = played.files.values().filter_map(|bytes| Manifest::decode(bytes).ok());
    let cut = manifests.map(|manifest| manifest.durable_lsn).max().unwrap();
    assert_eq!(cut, before_the_cut);
}

#[test]
fn snapshot_on_a_full_disk_fails_at_once() {
    let mut played = played(0);
    played.put("a", &[1; 30_000], 0).unwrap();
    played.turn();
    played.end_all(is_frame);
    while played.end(|operation| !is_write(operation), None) {}
    played.end(is_write, Some(NO_SPACE));
    played.end_all(|_| true);
    played.events();
    played.store.snapshot(FileName::new("into"));
    played.turn();
    assert_eq!(played.events(), [Event::Snapshotted { result: Err(NO_SPACE) }]);
}

/// The newest manifest written; the store's own are older.
fn manifest_of(played: &Played) -> Manifest {
    let manifests = played.files.values().filter_map(|bytes| Manifest::decode(bytes).ok());
    manifests.max_by_key(|manifest| (manifest.durable_lsn, manifest.sequence)).unwrap()
}

/// Ends the snapshot under way and tells how many bytes it has read.
fn files_and_bytes_read(played: &mut Played) -> (Vec<SnapshotFile>, usize) {
    let mut bytes_read = 0;
    for _ in 0..20 {
        played.turn();
        while let Some(held) = played.held.first() {
            if let DiskOperation::Read { len, .. } = &held.operation {
                bytes_read += len;
            }
            played.end(|_| true, None);
        }
    }
    (snapshot_files(played), bytes_read)
}

#[test]
fn sums_of_segments_from_before_the_start_come_from_their_footers() {
    let mut played = played(0);
    played.put("a", &[7; 20_000], 0).unwrap();
    played.settle();
    played.store.snapshot(FileName::new("into"));
    let first = snapshot_files(&mut played);
    let cut = manifest_of(&played).segments[0].cut;
    assert!(cut.is_some());
    // As after a start that had no need to read the segment: nothing says where its frames end.
    played.store.snapshots = Snapshots::new(9);
    assert_eq!(played.store.keeper.manifest().segments[0].cut, None);
    played.put("b", b"later", 0).unwrap();
    played.settle();
    played.store.snapshot(FileName::new("into"));
    let (again, bytes_read) = files_and_bytes_read(&mut played);
    assert_eq!(again[0], first[0]);
    assert_eq!(manifest_of(&played).segments[0].cut, cut);
    assert!(bytes_read <= 4 * wal::disk::BLOCK_SIZE, "{bytes_read} bytes read");
}

#[test]
fn segment_of_unknown_end_without_a_footer_is_read_and_kept_as_a_whole() {
    let mut played = played(0);
    played.put("a", &[7; 20_000], 0).unwrap();
    played.settle();
    played.store.snapshot(FileName::new("into"));
    snapshot_files(&mut played);
    played.store.snapshots = Snapshots::new(9);
    *played.files.get_mut(&SEGMENT.file).unwrap().last_mut().unwrap() ^= 1;
    played.put("b", b"later", 0).unwrap();
    played.settle();
    played.store.snapshot(FileName::new("into"));
    let files = snapshot_files(&mut played);
    let crc32 = sum(&played, 0..SEGMENT.len);
    assert_eq!(files[0].content, FileContent { used: SEGMENT.len, crc32, tail: None });
    assert_eq!(manifest_of(&played).segments[0].cut, None);
}

#[test]
fn known_damage_is_summed_as_it_is() {
    let mut played = played(0);
    let lsn = played.put("a", &[7; 20_000], 0).unwrap();
    played.settle();
    played.store.snapshot(FileName::new("into"));
    let sound = snapshot_files(&mut played)[0].content;
    played.files.get_mut(&SEGMENT.file).unwrap()[10_000] ^= 1;
    let (first_lsn, last_lsn, verdict) = (lsn, lsn, Verdict::Accepted);
    let damage = Quarantine { segment: 1, offset: 4096, len: 9, first_lsn, last_lsn, verdict };
    played.store.keeper.edit(move |manifest| manifest.quarantine.push(damage));
    played.settle();
    played.store.snapshot(FileName::new("into"));
    let files = snapshot_files(&mut played);
    assert_eq!(files[0].content.crc32, sum(&played, 0..sound.used));
    assert_ne!(files[0].content, sound);
}

/// A store that writes a checkpoint after every few records, and no segment but the first.
fn checkpointing() -> Played {
    let often = CheckpointOptions { log_bytes_min: 1, ..CheckpointOptions::NEVER };
    let (log, limits) = (GroupCommitLimits::default(), StoreLimits::default());
    played_by(0, log, limits, often)
}

#[test]
fn snapshot_has_the_newest_checkpoint_and_names_it() {
    let mut played = checkpointing();
    for (name, ms) in [("a", 1_000), ("b", 2_000)] {
        played.at_ms(ms);
        played.put(name, b"value", 0).unwrap();
        played.settle();
    }
    let entry = played.store.keeper.manifest().checkpoint.expect("one is published");
    let bytes = played.files[&CHECKPOINT_FILE].clone();
    played.store.snapshot(FileName::new("into"));
    let files = snapshot_files(&mut played);
    let name = format!("{:016x}.checkpoint", entry.lsn.0);
    let file = files.iter().find(|file| file.name == name).expect("it is part of the snapshot");
    assert_eq!((file.len, file.content.used), (entry.len, entry.len));
    assert_eq!(file.content.crc32, wal::checksum::plain(&bytes));
    let manifest = manifest_of(&played);
    assert_eq!(manifest.checkpoint, Some(entry));
    assert!(manifest.durable_lsn >= entry.lsn);
}

#[test]
fn no_checkpoint_takes_the_place_of_another_while_a_snapshot_is_taken() {
    let mut played = checkpointing();
    played.put("a", b"value", 0).unwrap();
    played.settle();
    played.settle();
    let older: CheckpointEntry = played.store.keeper.manifest().checkpoint.unwrap();
    played.store.snapshot(FileName::new("into"));
    played.at_ms(2_000);
    played.put("b", b"value", 0).unwrap();
    // All but the links ends, over and over: the next checkpoint gets as far as it can.
    for ms in 3_000..3_020 {
        played.at_ms(ms);
        played.turn();
        played.end_all(|operation| !is_link(operation));
    }
    assert!(played.held.iter().any(|held| is_link(&held.operation)));
    assert_eq!(played.store.keeper.manifest().checkpoint, Some(older));
    let files = snapshot_files(&mut played);
    assert!(files.iter().any(|file| file.name == format!("{:016x}.checkpoint", older.lsn.0)));
    assert_eq!(manifest_of(&played).checkpoint, Some(older));
    played.settle();
    assert!(played.store.keeper.manifest().checkpoint.unwrap().lsn > older.lsn);
}

#[test]
fn snapshot_without_its_checkpoint_is_whole() {
    let mut played = checkpointing();
    played.put("a", b"value", 0).unwrap();
    played.settle();
    played.settle();
    assert!(played.store.keeper.manifest().checkpoint.is_some());
    // As after a start: the sum is not known, and the file is not as long as it should be.
    played.store.snapshots = Snapshots::new(9);
    played.files.get_mut(&CHECKPOINT_FILE).unwrap().pop();
    played.store.snapshot(FileName::new("into"));
    let files = snapshot_files(&mut played);
    assert!(!files.iter().any(|file| file.name.ends_with(".checkpoint")));
    assert_eq!(manifest_of(&played).checkpoint, None);
    assert!(played.store.len() == 1 && played.store.lookup(&key("a")).is_ok());
}
