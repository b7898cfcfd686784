//! Tests of a full disk (ADR 0014): no file can be made any more, what there is can be written.

use wal::disk::OpenMode;

use super::tests::{NO_SPACE, Played, SEGMENT, is_read, key, played, played_in};
use super::*;
use crate::error::WriteError;

const VALUE_LEN: usize = 10_000;
/// Values put while there is space: some ten segments.
const EARLY: u32 = 50;
const ROUNDS_MAX: u32 = 1_000;

fn is_create(operation: &DiskOperation) -> bool {
    matches!(operation, DiskOperation::Open { mode: OpenMode::Create, .. })
}

fn is_no_read(operation: &DiskOperation) -> bool {
    !is_read(operation)
}

/// Lets everything end that `which` chooses, over and over; whatever wants space fails. Returns the
/// least bytes that there were in reserve.
fn settle_full(played: &mut Played, which: fn(&DiskOperation) -> bool) -> u64 {
    let mut least = u64::MAX;
    for _ in 0..3 {
        played.turn();
        while played.end(is_create, Some(NO_SPACE)) || played.end(which, None) {
            least = least.min(played.store.status().pooled_bytes);
        }
    }
    least
}

fn pass_ms(played: &mut Played, ms: u64) {
    played.at_ms(played.store.now.clock_ms + ms);
}

fn value(index: u32) -> Vec<u8> {
    index.to_le_bytes().repeat(VALUE_LEN / 4)
}

fn put(played: &mut Played, index: u32) -> Result<Lsn, WriteError> {
    played.put(&index.to_string(), &value(index), 0)
}

/// Puts values until the disk is full; how many there are.
fn fill(played: &mut Played) -> u32 {
    for index in 0..EARLY {
        while put(played, index) == Err(WriteError::Busy) {
            played.settle();
        }
        played.settle();
    }
    for index in EARLY..ROUNDS_MAX {
        let mut result = put(played, index);
        if result == Err(WriteError::Busy) {
            settle_full(played, |_| true);
            result = put(played, index);
        }
        if result == Err(WriteError::DiskFull) {
            assert!(played.store.status().disk_full);
            played.events();
            return index;
        }
        settle_full(played, |_| true);
        result.unwrap();
    }
    panic!("the disk is never full: {:?}", played.store.status());
}

/// Deletes a key; busy, too, while that reads the disk.
fn delete(played: &mut Played, index: u32) -> Result<(), WriteError> {
    let version = played.version();
    let name = index.to_string();
    match played.store.remove(key(&name), version)? {
        Effect::Done(Some(_)) => Ok(()),
        Effect::Pending(_) => Err(WriteError::Busy),
        other => panic!("delete {index}: {other:?}"),
    }
}

fn get(played: &mut Played, index: u32) -> Option<Bytes> {
    let name = index.to_string();
    for _ in 0..2 {
        match played.store.get(&key(&name)).unwrap() {
            Get::Missing => return None,
            Get::Found(found) => return Some(found.value),
            Get::Pending(_) => {
                settle_full(played, |_| true);
            }
        }
    }
    panic!("{index} is not in memory after a read");
}

/// Nobody gives the disk any space: what is deleted is enough.
#[test]
fn deletes_go_through_on_a_full_disk_and_writing_resumes_by_itself() {
    let mut played = played(16 << 20);
    let count = fill(&mut played);
    let reserve = played.store.status().pooled_bytes;
    assert_eq!(reserve, 2 * SEGMENT.len, "no value gets the reserve");
    let mut least = reserve;
    for index in (0..count).step_by(2) {
        for round in 0.. {
            match delete(&mut played, index) {
                Ok(()) => break,
                Err(WriteError::Busy) if round < ROUNDS_MAX => pass_ms(&mut played, 10),
                Err(error) => panic!("delete {index}: {error}"),
            }
            least = least.min(settle_full(&mut played, |_| true));
        }
        least = least.min(settle_full(&mut played, |_| true));
    }
    assert!(least < reserve, "nothing of the reserve was used");
    let mut rounds = 0;
    while let Err(error) = put(&mut played, count) {
        assert!(matches!(error, WriteError::DiskFull | WriteError::Busy), "{error}");
        rounds += 1;
        assert!(rounds < ROUNDS_MAX, "still full: {:?}", played.store.status());
        pass_ms(&mut played, 10);
        settle_full(&mut played, |_| true);
    }
    settle_full(&mut played, |_| true);
    assert!(played.store.status().compaction.segments_freed > 0);
    for index in 0..=count {
        let wanted = (index % 2 != 0 || index == count).then(|| Bytes::from(value(index)));
        assert_eq!(get(&mut played, index), wanted, "key {index}");
    }
}

/// As long as compaction is at work, there will be room.
#[test]
fn delete_that_finds_no_room_waits_for_compaction() {
    let mut played = played(16 << 20);
    let count = fill(&mut played);
    let mut refused = None;
    for index in 0..count {
        if let Err(error) = delete(&mut played, index) {
            refused = Some((index, error));
            break;
        }
        // What compaction wants to read does not come.
        settle_full(&mut played, is_no_read);
    }
    let (index, error) = refused.expect("there is no end of room");
    assert_eq!(error, WriteError::Busy);
    assert!(played.held.iter().any(|held| is_read(&held.operation)), "compaction reads");
    assert_eq!(put(&mut played, count), Err(WriteError::DiskFull), "a value does not wait");
    assert_eq!(delete(&mut played, index), Err(WriteError::Busy));
    played.events();
    for _ in 0..ROUNDS_MAX {
        settle_full(&mut played, |_| true);
        if played.events().contains(&Event::Writable) {
            break;
        }
        pass_ms(&mut played, 10);
    }
    delete(&mut played, index).unwrap();
    settle_full(&mut played, |_| true);
    assert_eq!(get(&mut played, index), None);
    assert_eq!(get(&mut played, count - 1), Some(Bytes::from(value(count - 1))));
}

/// A store that has a limit of ten segments of so many bytes.
fn limited(len: u64) -> Played {
    let limits = StoreLimits { disk_bytes_max: Some(10 * len), ..StoreLimits::default() };
    let (log, checkpoints) = (GroupCommitLimits::default(), CheckpointOptions::default());
    played_in(OpenSegment { len, ..SEGMENT }, 256 << 20, log, limits, checkpoints)
}

/// Each delete takes a block of its own, and what it deletes is far less than that; no segment has
/// much dead in it for long.
#[test]
fn deletes_of_small_values_one_at_a_time_never_end_on_a_full_disk() {
    let mut played = limited(1 << 20);
    let small = |played: &mut Played, index: u32| played.put(&index.to_string(), &[1; 100], 0);
    let mut count = 0;
    loop {
        match small(&mut played, count) {
            Err(WriteError::DiskFull) => break,
            Ok(_) => count += 1,
            Err(_) => played.settle(),
        }
        assert!(count < 1_000 * ROUNDS_MAX, "never full: {:?}", played.store.status());
    }
    played.settle();
    // In an order that spreads them over all segments.
    for index in (0..64).flat_map(|from| (from..count).step_by(64)) {
        for round in 0.. {
            match delete(&mut played, index) {
                Ok(()) => break,
                Err(WriteError::Busy) if round < ROUNDS_MAX => pass_ms(&mut played, 10),
                Err(error) => panic!("delete {index}: {error}: {:?}", played.store.status()),
            }
            played.settle();
        }
        played.settle();
    }
    assert!(played.store.is_empty());
}
