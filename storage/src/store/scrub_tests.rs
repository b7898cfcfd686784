//! Tests of the scrub on a disk played by hand.

use wal::frame::FRAME_HEADER_LEN;
use wal::segment::{SEGMENT_HEADER_LEN, SegmentHeader};

use super::tests::{Played, is_read, key, played_within};
use super::*;

const RATE: u64 = 64 << 10;
/// Bytes of a full segment up to the end of its frames: its header, two frames of 24 KiB.
const FRAMES_END: u64 = 52 << 10;
const MINUTE_MS: u64 = 60_000;
const FIRST_PASS_MS: u64 = 10 * MINUTE_MS + 1_000;
const DAYS_MS: u64 = 86_400_000;
/// The first segment's file, where the first record of its first frame starts.
const FIRST: (FileId, usize) = (FileId(3), SEGMENT_HEADER_LEN as usize + FRAME_HEADER_LEN);

/// A store with sealed segments, each frame one value of 20 KiB: "0", "1", ...
fn filled(scrub_bytes_per_second: u64) -> Played {
    let limits = StoreLimits { scrub_bytes_per_second, ..StoreLimits::default() };
    let mut played = played_within(0, GroupCommitLimits::default(), limits);
    let header = SegmentHeader { identity: played.store.identity(), id: 1, len: 64 << 10 };
    let mut file = header.encode().as_slice().to_vec();
    file.resize(64 << 10, 0);
    played.files.insert(FIRST.0, file);
    for index in 0..8u8 {
        let value = vec![index; 20 << 10];
        if played.put(&index.to_string(), &value, 0).is_err() {
            played.settle();
            played.put(&index.to_string(), &value, 0).unwrap();
        }
        played.settle();
    }
    pass(&mut played, MINUTE_MS);
    played.events();
    played
}

/// Lets time pass as the store asks for it, until it wants nothing more before `end_ms`.
fn pass(played: &mut Played, end_ms: u64) -> u64 {
    let mut reads = 0;
    for _ in 0..10_000 {
        played.turn();
        while played.end(is_read, None) {
            reads += 1;
            played.turn();
        }
        played.end_all(|_| true);
        match played.store.deadline_ns() {
            Some(at_ns) if at_ns / 1_000_000 < end_ms => {
                played.at_ms((at_ns / 1_000_000 + 1).max(played.store.now.clock_ms));
            }
            _ => return reads,
        }
    }
    panic!("the store finds no rest")
}

fn flip(played: &mut Played, offset: usize) {
    played.files.get_mut(&FIRST.0).unwrap()[offset] ^= 0x55;
}

#[test]
fn pass_reads_every_sealed_segment_at_its_pace_and_rests() {
    let mut played = filled(RATE);
    assert!(played.store.deadline_ns().is_some_and(|at_ns| at_ns >= 601_000_000_000));
    played.at_ms(FIRST_PASS_MS);
    played.turn();
    assert_eq!(played.held.len(), 1, "{:?}", played.held);
    assert!(played.end(is_read, None));
    played.turn();
    assert!(played.held.is_empty(), "the budget is used up");
    let wait_ns = 1_000_000_000 * FRAMES_END / RATE;
    assert_eq!(played.store.deadline_ns(), Some(FIRST_PASS_MS * 1_000_000 + wait_ns));
    pass(&mut played, FIRST_PASS_MS + MINUTE_MS);
    let scrub = played.store.status().scrub;
    let sealed = played.store.catalog.segments.iter();
    let sealed = sealed.filter(|(_, segment)| segment.state == SegmentState::Sealed).count() as u64;
    assert!(sealed >= 2);
    assert_eq!((scrub.passes, scrub.findings, scrub.segment), (1, 0, None));
    assert!(scrub.bytes >= sealed * FRAMES_END, "{scrub:?}");
    let rested = played.store.deadline_ns().unwrap() / 1_000_000;
    assert!((14 * DAYS_MS..15 * DAYS_MS).contains(&rested), "{rested}");
    played.at_ms(rested + 1);
    pass(&mut played, rested + MINUTE_MS);
    assert_eq!(played.store.status().scrub.passes, 2);
}

#[test]
fn store_without_a_budget_is_not_scrubbed() {
    let mut played = filled(0);
    assert_eq!(pass(&mut played, 100 * DAYS_MS), 0);
    assert_eq!(played.store.deadline_ns(), None);
}

#[test]
fn damaged_value_is_listed_by_key_and_answers_an_error_at_once() {
    let mut played = filled(RATE);
    flip(&mut played, FIRST.1 + 5_000);
    played.at_ms(FIRST_PASS_MS);
    pass(&mut played, FIRST_PASS_MS + MINUTE_MS);
    let repairs: Vec<Repair> = played.store.repairs().collect();
    let keys: Vec<Option<Key>> = repairs.iter().map(|repair| repair.key).collect();
    assert_eq!(keys, [Some(key("0").id), None], "{repairs:?}");
    assert_eq!(repairs[0].offset, FIRST.1 as u64);
    assert_eq!(repairs[0].reason, RepairReason::Record);
    assert_eq!(repairs[1].reason, RepairReason::Range(Damage::RecordByte));
    assert_eq!(played.store.get(&key("0")), Err(ReadError::Damaged));
    assert!(matches!(played.store.get(&key("1")), Ok(Get::Pending(_))));
    let scrub = played.store.status().scrub;
    assert_eq!((scrub.findings, scrub.records_damaged, scrub.repairs), (1, 1, 2));
    let events = played.events();
    assert!(events.iter().any(|event| matches!(event, Event::Damaged { .. })), "{events:?}");
    assert!(events.iter().any(|event| matches!(event, Event::Flaw { .. })), "{events:?}");
}

#[test]
fn record_that_is_gone_without_a_trace_answers_an_error_at_once() {
    let mut played = filled(RATE);
    let end = SEGMENT_HEADER_LEN as usize + (20 << 10);
    played.files.get_mut(&FIRST.0).unwrap()[SEGMENT_HEADER_LEN as usize..end].fill(0);
    played.at_ms(FIRST_PASS_MS);
    pass(&mut played, FIRST_PASS_MS + MINUTE_MS);
    assert_eq!(played.store.get(&key("0")), Err(ReadError::Damaged));
    assert!(matches!(played.store.get(&key("1")), Ok(Get::Pending(_))));
    let repairs: Vec<Repair> = played.store.repairs().collect();
    let reasons: Vec<RepairReason> = repairs.iter().map(|repair| repair.reason).collect();
    assert!(reasons.contains(&RepairReason::Record), "{repairs:?}");
    // A pass that finds the same again lists it once.
    let rested = played.store.deadline_ns().unwrap() / 1_000_000;
    played.at_ms(rested + 1);
    pass(&mut played, rested + MINUTE_MS);
    assert_eq!(played.store.status().scrub.records_damaged, 1);
}

#[test]
fn harmless_damage_is_listed_and_no_key_suffers() {
    let mut played = filled(RATE);
    flip(&mut played, 1_000);
    played.at_ms(FIRST_PASS_MS);
    pass(&mut played, FIRST_PASS_MS + MINUTE_MS);
    let repairs: Vec<Repair> = played.store.repairs().collect();
    assert_eq!(repairs.len(), 1, "{repairs:?}");
    assert_eq!(repairs[0].reason, RepairReason::Range(Damage::SegmentHeader));
    assert_eq!(played.store.status().scrub.records_damaged, 0);
}

/// The first segment as it is found after a crash that kept the first of two writes under way from
/// the disk: `with_record` decides whether the index has a record there nevertheless.
fn with_hole(with_record: bool) -> Played {
    let mut played = filled(RATE);
    if !with_record {
        let version = played.version();
        while let Ok(Effect::Pending(_)) = played.store.remove(key("0"), version) {
            played.turn();
            assert!(played.end(is_read, None));
        }
        played.settle();
    }
    let file = played.files.get_mut(&FIRST.0).unwrap();
    file[SEGMENT_HEADER_LEN as usize..][..24 << 10].fill(0);
    let segments = &mut played.store.catalog.segments;
    let number = segments.number_of(1).unwrap();
    let lsns = &mut segments.get_mut(number).unwrap().lsns;
    *lsns = lsns.map(|(first, last)| (first.next(), last));
    played.at_ms(FIRST_PASS_MS);
    pass(&mut played, FIRST_PASS_MS + MINUTE_MS);
    played
}

#[test]
fn hole_where_nothing_is_missing_is_no_damage() {
    let mut played = with_hole(false);
    let scrub = played.store.status().scrub;
    assert_eq!((scrub.passes, scrub.findings, scrub.repairs), (1, 0, 0), "{scrub:?}");
    assert!(!played.events().iter().any(|event| matches!(event, Event::Flaw { .. })));
}

#[test]
fn hole_where_a_value_stood_is_damage() {
    let mut played = with_hole(true);
    let scrub = played.store.status().scrub;
    assert_eq!((scrub.findings, scrub.records_damaged), (1, 1), "{scrub:?}");
    assert_eq!(played.store.get(&key("0")), Err(ReadError::Damaged));
    assert!(played.events().iter().any(|event| matches!(event, Event::Flaw { .. })));
}

#[test]
fn damage_that_vanishes_on_a_second_look_is_none() {
    let mut played = filled(RATE);
    flip(&mut played, FIRST.1 + 5_000);
    played.at_ms(FIRST_PASS_MS);
    played.turn();
    assert!(played.end(is_read, None));
    flip(&mut played, FIRST.1 + 5_000);
    pass(&mut played, FIRST_PASS_MS + MINUTE_MS);
    let scrub = played.store.status().scrub;
    assert_eq!((scrub.passes, scrub.findings, scrub.repairs), (1, 0, 0));
}

#[test]
fn segment_that_goes_is_not_held_up_and_is_forgotten() {
    let mut played = filled(RATE);
    flip(&mut played, 1_000);
    played.at_ms(FIRST_PASS_MS);
    pass(&mut played, FIRST_PASS_MS + MINUTE_MS);
    assert_eq!(played.store.repairs().count(), 1);
    let rested = played.store.deadline_ns().unwrap() / 1_000_000;
    played.at_ms(rested + 1);
    played.turn();
    assert_eq!(played.held.len(), 1, "the first segment is being read");
    for index in 0..3u8 {
        let version = played.version();
        let name = index.to_string();
        while let Ok(Effect::Pending(_)) = played.store.remove(key(&name), version) {
            played.turn();
            assert!(played.end(is_read, None));
        }
    }
    for _ in 0..40 {
        played.settle();
    }
    assert!(!played.files.is_empty() && played.store.catalog.segments.by_id(1).is_none());
    assert_eq!(played.store.repairs().count(), 0);
}
