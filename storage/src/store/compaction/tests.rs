//! Compaction under writers that never rest.

use wal::group_commit::GroupCommitLimits;

use super::super::StoreLimits;
use super::super::tests::{Played, played, played_within};
use crate::error::WriteError;

const KEYS: u64 = 3_000;

/// Puts, letting the disk work where the store asks for it. Returns how often it did.
fn put(played: &mut Played, number: u64) -> u64 {
    let name = (number.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32) % KEYS;
    let mut refusals = 0;
    while let Err(error) = played.put(&format!("key {name}"), &[7; 1_000], 0) {
        assert_eq!(error, WriteError::Busy);
        refusals += 1;
        assert!(refusals < 1_000, "put {number} waits for ever");
        played.turn();
        played.end_all(|_| true);
    }
    refusals
}

/// A writer that never lets the log rest: many puts in each turn, all of keys that memory does not
/// know.
#[test]
fn overwritten_store_stays_small_and_every_put_is_taken() {
    let heads_read = overwrite(0);
    assert!(heads_read > 1_000, "{heads_read} headers of newer records were read");
    assert_eq!(overwrite(1 << 20), 0, "all of them are remembered");
}

fn overwrite(overwriter_bytes_max: usize) -> u64 {
    let limits = StoreLimits { overwriter_bytes_max, ..StoreLimits::default() };
    let mut played = played_within(0, GroupCommitLimits::default(), limits);
    let mut refusals = 0;
    for number in 0..60_000 {
        refusals += put(&mut played, number);
        if number % 200 == 0 {
            played.turn();
            played.end_all(|_| true);
            played.events();
        }
        if number % 1_000 == 0 && number > 20_000 {
            let status = played.store.status();
            let slack = 4 * played.store.segment_bytes;
            let most = status.live_bytes * 13 / 10 + slack;
            assert!(status.used_bytes <= most, "{number}: {status:?}");
        }
    }
    let status = played.store.status();
    assert!(refusals > 0, "no put waited for compaction");
    assert_eq!(status.disk_reads, 0, "compaction's own reads are counted apart");
    // At rest, compaction comes to an end.
    let turns = (0..10_000).take_while(|_| {
        played.turn();
        played.end_all(|_| true);
        played.store.can_compact()
    });
    assert!(turns.count() < 10_000);
    status.compaction.heads_read
}

/// A refused put is told when it may be tried again.
#[test]
fn put_that_waited_for_compaction_is_told_to_go_on() {
    let mut played = played(0);
    let mut number = 0;
    while !played.store.holds_puts_back() {
        put(&mut played, number);
        number += 1;
        assert!(number < 200_000, "compaction always keeps up");
        if number % 500 == 0 {
            played.turn();
            played.end_all(|_| true);
        }
    }
    played.events();
    assert_eq!(played.put("key 1", &[7; 1_000], 0), Err(WriteError::Busy));
    for _ in 0..1_000 {
        if played.events().contains(&crate::Event::Writable) {
            return assert!(!played.store.holds_puts_back());
        }
        played.turn();
        played.end_all(|_| true);
    }
    panic!("the writer waits for ever");
}
