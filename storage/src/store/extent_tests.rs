//! Tests of large values, on a disk played by hand.

use wal::disk::DiskOperation;
use wal::extent::{PIECE_LEN, PIECES_IN_FLIGHT_MAX};

use super::tests::{Played, key, played_within};
use super::*;
use crate::error::WriteError;

fn played() -> Played {
    played_within(0, GroupCommitLimits::default(), StoreLimits::default())
}

fn put(played: &mut Played, name: &str, value: &Bytes) -> Result<Effect, WriteError> {
    let version = played.version();
    played.store.put_shared(&SharedPut { key: key(name), version, expiry_ms: 0, value })
}

fn is_piece(operation: &DiskOperation) -> bool {
    matches!(operation, DiskOperation::Write { buffer, .. } if buffer.len() == PIECE_LEN)
}

fn is_no_piece(operation: &DiskOperation) -> bool {
    !is_piece(operation)
}

/// Lets everything but pieces end until pieces wait.
fn until_pieces(played: &mut Played) {
    for _ in 0..10 {
        played.turn();
        played.end_all(is_no_piece);
        played.end_all(|operation| {
            // Zeros of a segment being made look like pieces.
            matches!(operation, DiskOperation::Write { durability, .. }
                if *durability == wal::disk::Durability::Cached)
        });
    }
    assert!(played.held.iter().any(|held| is_piece(&held.operation)), "{:?}", played.held);
}

#[test]
fn small_put_waits_for_no_more_than_the_pieces_in_flight() {
    let mut played = played();
    let value = Bytes::from(vec![7; 32 << 20]);
    let Effect::Pending(id) = put(&mut played, "large", &value).unwrap() else {
        panic!("a large value is not there at once");
    };
    until_pieces(&mut played);
    let mut small = 0;
    for round in 0..10u8 {
        assert!(played.held.len() <= PIECES_IN_FLIGHT_MAX, "{:?}", played.held);
        let lsn = played.put(&round.to_string(), b"small", 0).unwrap();
        played.turn();
        // The disk takes requests as they come: only what is under way is before the frame.
        let at = played.held.iter().position(|held| is_no_piece(&held.operation)).unwrap();
        let before: usize = (played.held[..at].iter())
            .map(|held| match &held.operation {
                DiskOperation::Write { buffer, .. } => buffer.len(),
                other => panic!("{other:?}"),
            })
            .sum();
        assert!(before <= PIECES_IN_FLIGHT_MAX * PIECE_LEN, "{before} bytes before it");
        played.end_all(is_no_piece);
        assert!(played.store.durable_lsn() >= lsn);
        small += 1;
        assert!(played.end(is_piece, None));
        played.turn();
    }
    assert_eq!(small, 10);
    assert!(!played.events().contains(&Event::Resolved { id }));
    assert!(matches!(played.store.get(&key("large")), Ok(Get::Missing)), "nothing has happened");
    for _ in 0..200 {
        played.turn();
        played.end_all(|_| true);
    }
    assert!(played.events().contains(&Event::Resolved { id }));
    let Effect::Done(Some(lsn)) = put(&mut played, "large", &value).unwrap() else {
        panic!("its value is written");
    };
    assert_eq!(played.store.observed(&key("large")), lsn);
    assert!(
        matches!(played.store.get(&key("large")), Ok(Get::Found(found)) if found.value == value)
    );
    played.settle();
    assert!(played.store.durable_lsn() >= lsn);
}

#[test]
fn put_that_comes_meanwhile_is_older() {
    let mut played = played();
    let value = Bytes::from(vec![7; 300 << 10]);
    assert!(matches!(put(&mut played, "a", &value), Ok(Effect::Pending(_))));
    let small = played.put("a", b"small", 0).unwrap();
    until_pieces(&mut played);
    for _ in 0..10 {
        played.turn();
        played.end_all(|_| true);
    }
    let Ok(Effect::Done(Some(lsn))) = put(&mut played, "a", &value) else { panic!("not put") };
    assert!(lsn > small);
    assert!(matches!(played.store.get(&key("a")), Ok(Get::Found(found)) if found.value == value));
}

#[test]
fn failed_piece_is_told_to_whoever_waits() {
    let mut played = played();
    let value = Bytes::from(vec![7; 1 << 20]);
    let Ok(Effect::Pending(id)) = put(&mut played, "a", &value) else { panic!("not staged") };
    until_pieces(&mut played);
    let error = DiskError { kind: wal::disk::DiskErrorKind::Io, code: 5 };
    assert!(played.end(is_piece, Some(error)));
    let events = played.events();
    assert!(events.contains(&Event::Resolved { id }), "{events:?}");
    assert_eq!(put(&mut played, "a", &value), Err(WriteError::ReadOnly(error)));
}

#[test]
fn staged_bytes_have_a_limit_and_what_nobody_comes_for_is_forgotten() {
    let limits = GroupCommitLimits { pending_bytes_max: 1 << 20, ..GroupCommitLimits::default() };
    let mut played = played_within(0, limits, StoreLimits::default());
    let (first, second) = (Bytes::from(vec![1; 600 << 10]), Bytes::from(vec![2; 600 << 10]));
    assert!(matches!(put(&mut played, "a", &first), Ok(Effect::Pending(_))));
    assert_eq!(put(&mut played, "b", &second), Err(WriteError::Busy));
    until_pieces(&mut played);
    for _ in 0..10 {
        played.turn();
        played.end_all(|_| true);
    }
    played.events();
    assert_eq!(put(&mut played, "b", &second), Err(WriteError::Busy));
    played.at_ms(played.store.now.clock_ms + 61_000);
    played.turn();
    assert!(played.events().contains(&Event::Writable));
    assert!(matches!(put(&mut played, "b", &second), Ok(Effect::Pending(_))));
}
