//! Histories that break the promise, each of which the ledger must catch, and ones that keep it.

use super::*;

const AUTHOR: Author = Author { seed: 7, connection: 1, key: 2 };

fn at(ms: u64) -> Window {
    Window { sent: ms, received: ms + 5 }
}

fn value(version: u64) -> Content {
    Content::Pieces(vec![Piece { version, len: 100 }])
}

fn set(version: u64) -> KeyOperation {
    set_with(version, None, SetCondition::Always)
}

fn set_with(version: u64, px: Option<u64>, condition: SetCondition) -> KeyOperation {
    KeyOperation::Set { content: value(version), px, condition }
}

fn seen(content: &Content, pttl: i64) -> Observation {
    Observation { value: Some(content.bytes(AUTHOR)), pttl }
}

const NOTHING: Observation = Observation { value: None, pttl: -2 };

/// A key with version 1 written at 1,000 ms.
fn written() -> KeyLedger {
    let mut ledger = KeyLedger::new(AUTHOR);
    ledger.acknowledge(&set(1), &KeyReply::Done, at(1_000)).unwrap();
    ledger
}

#[test]
fn lost_acknowledgement_is_caught() {
    assert!(written().observe(&NOTHING, at(2_000)).is_err());
    assert!(written().observe(&seen(&value(1), -1), at(2_000)).is_ok());
}

#[test]
fn stale_value_is_caught() {
    let mut ledger = written();
    ledger.acknowledge(&set(2), &KeyReply::Done, at(1_100)).unwrap();
    assert!(ledger.clone().observe(&seen(&value(1), -1), at(2_000)).is_err());
    assert!(ledger.observe(&seen(&value(2), -1), at(2_000)).is_ok());
}

#[test]
fn resurrected_delete_is_caught() {
    let mut ledger = written();
    ledger.acknowledge(&KeyOperation::Delete, &KeyReply::Integer(1), at(1_100)).unwrap();
    assert!(ledger.clone().observe(&seen(&value(1), -1), at(2_000)).is_err());
    assert!(ledger.observe(&NOTHING, at(2_000)).is_ok());
}

#[test]
fn phantom_value_is_caught() {
    assert!(written().observe(&seen(&value(9), -1), at(2_000)).is_err());
    assert!(KeyLedger::new(AUTHOR).observe(&seen(&value(1), -1), at(2_000)).is_err());
    let elsewhere = Author { key: 3, ..AUTHOR };
    let foreign = Observation { value: Some(value(1).bytes(elsewhere)), pttl: -1 };
    assert!(written().observe(&foreign, at(2_000)).is_err());
}

#[test]
fn every_flipped_byte_is_caught() {
    for index in 0..100 {
        let mut wrong = seen(&value(1), -1);
        wrong.value.as_mut().unwrap()[index] ^= 1;
        assert!(written().observe(&wrong, at(2_000)).is_err(), "byte {index}");
    }
}

#[test]
fn value_past_its_expiry_is_caught_and_so_is_one_gone_too_early() {
    let mut ledger = KeyLedger::new(AUTHOR);
    let operation = set_with(1, Some(500), SetCondition::Always);
    ledger.acknowledge(&operation, &KeyReply::Done, at(1_000)).unwrap();
    assert!(ledger.clone().observe(&seen(&value(1), 1), at(1_700)).is_err());
    assert!(ledger.clone().observe(&NOTHING, at(1_700)).is_ok());
    assert!(ledger.clone().observe(&NOTHING, at(1_200)).is_err());
    assert!(ledger.clone().observe(&seen(&value(1), 300), at(1_200)).is_ok());
    assert!(ledger.clone().observe(&seen(&value(1), -1), at(1_200)).is_err(), "expiry lost");
    assert!(ledger.clone().observe(&seen(&value(1), 700), at(1_200)).is_err(), "expiry late");
    assert!(ledger.observe(&seen(&value(1), 50), at(1_200)).is_err(), "expiry early");
}

#[test]
fn lost_persist_and_lost_expire_are_caught() {
    let mut ledger = written();
    let expire = KeyOperation::ExpireIn(60_000);
    ledger.acknowledge(&expire, &KeyReply::Integer(1), at(1_100)).unwrap();
    assert!(ledger.clone().observe(&seen(&value(1), -1), at(2_000)).is_err());
    ledger.acknowledge(&KeyOperation::Persist, &KeyReply::Integer(1), at(1_200)).unwrap();
    assert!(ledger.clone().observe(&seen(&value(1), 59_000), at(2_000)).is_err());
    assert!(ledger.observe(&seen(&value(1), -1), at(2_000)).is_ok());
}

#[test]
fn commands_without_reply_may_have_happened_up_to_any_point() {
    let mut ledger = written();
    let append = KeyOperation::Append(Piece { version: 3, len: 50 });
    ledger.abandon(&[(set(2), at(1_100)), (append, at(1_100))]);
    let appended =
        Content::Pieces(vec![Piece { version: 2, len: 100 }, Piece { version: 3, len: 50 }]);
    let skipped =
        Content::Pieces(vec![Piece { version: 1, len: 100 }, Piece { version: 3, len: 50 }]);
    for content in [value(1), value(2), appended] {
        assert!(ledger.clone().observe(&seen(&content, -1), at(2_000)).is_ok());
    }
    assert!(ledger.clone().observe(&seen(&skipped, -1), at(2_000)).is_err());
    assert!(ledger.observe(&NOTHING, at(2_000)).is_err());
}

#[test]
fn error_reply_leaves_both_outcomes_open() {
    let mut ledger = written();
    ledger.fail(&set(2), at(1_100));
    assert!(ledger.clone().observe(&seen(&value(1), -1), at(2_000)).is_ok());
    assert!(ledger.clone().observe(&seen(&value(2), -1), at(2_000)).is_ok());
    assert!(ledger.observe(&NOTHING, at(2_000)).is_err());
}

#[test]
fn what_was_read_is_the_new_base() {
    let mut ledger = written();
    ledger.abandon(&[(set(2), at(1_100))]);
    ledger.observe(&seen(&value(2), -1), at(2_000)).unwrap();
    assert!(ledger.clone().observe(&seen(&value(1), -1), at(3_000)).is_err(), "went back");
    assert!(ledger.observe(&seen(&value(2), -1), at(3_000)).is_ok());
}

#[test]
fn reply_that_no_state_explains_is_caught() {
    let integer = |number| KeyReply::Integer(number);
    for (operation, reply) in [
        (set_with(2, None, SetCondition::IfAbsent), KeyReply::Done),
        (set_with(2, None, SetCondition::IfPresent), KeyReply::Nil),
        (KeyOperation::Delete, integer(0)),
        (KeyOperation::Append(Piece { version: 2, len: 5 }), integer(104)),
        (KeyOperation::ExpireIn(1_000), integer(0)),
        (KeyOperation::Persist, integer(1)),
        (KeyOperation::Get, KeyReply::Nil),
        (KeyOperation::Get, KeyReply::Value(value(2).bytes(AUTHOR))),
    ] {
        assert!(written().acknowledge(&operation, &reply, at(1_100)).is_err(), "{operation:?}");
    }
}

#[test]
fn lost_or_doubled_increment_is_caught() {
    let mut ledger = KeyLedger::new(AUTHOR);
    for number in 1..=3 {
        let reply = KeyReply::Integer(number);
        ledger.acknowledge(&KeyOperation::Increment, &reply, at(1_000)).unwrap();
    }
    let again = KeyReply::Integer(3);
    assert!(ledger.clone().acknowledge(&KeyOperation::Increment, &again, at(1_100)).is_err());
    assert!(ledger.clone().observe(&seen(&Content::Integer(2), -1), at(2_000)).is_err());
    assert!(ledger.observe(&seen(&Content::Integer(3), -1), at(2_000)).is_ok());
}

#[test]
fn flush_that_did_not_last_is_caught() {
    let mut ledger = written();
    ledger.flush(FlushOutcome::Unknown);
    assert!(ledger.clone().observe(&seen(&value(1), -1), at(2_000)).is_ok());
    assert!(ledger.clone().observe(&NOTHING, at(2_000)).is_ok());
    ledger.flush(FlushOutcome::Acknowledged);
    assert!(ledger.clone().observe(&seen(&value(1), -1), at(2_000)).is_err());
    assert!(ledger.observe(&NOTHING, at(2_000)).is_ok());
}

#[test]
fn shared_counter_stays_within_its_bounds() {
    let mut counter = SharedCounter::default();
    for _ in 0..4 {
        counter.attempt();
    }
    counter.acknowledge(1).unwrap();
    counter.acknowledge(3).unwrap();
    assert!(counter.clone().acknowledge(3).is_err(), "given twice");
    assert!(counter.clone().acknowledge(5).is_err(), "never attempted");
    assert!(counter.clone().observe(2).is_err(), "below what was replied");
    assert!(counter.clone().observe(5).is_err(), "above what was attempted");
    counter.observe(4).unwrap();
    assert!(counter.observe(3).is_err(), "went back");
}

#[test]
fn pieces_have_their_length_and_differ() {
    for len in [0, 1, 30, 60, 61, 62, 63, 64, 65, 80, 1_000, 1 << 20] {
        let content = |version| Content::Pieces(vec![Piece { version, len }]);
        assert_eq!(content(1).bytes(AUTHOR).len(), len as usize);
        assert_eq!(content(1).bytes(AUTHOR), content(1).bytes(AUTHOR));
        if len >= 8 {
            assert_ne!(content(1).bytes(AUTHOR), content(2).bytes(AUTHOR));
        }
    }
}

#[test]
fn snapshot_may_hold_what_was_possible_during_its_cut_and_nothing_else() {
    let mut ledger = written();
    ledger.acknowledge(&set(2), &KeyReply::Done, at(1_100)).unwrap();
    ledger.begin_cut();
    ledger.acknowledge(&set(3), &KeyReply::Done, at(1_200)).unwrap();
    ledger.abandon(&[(set(4), at(1_300))]);
    let in_snapshot = ledger.end_cut();
    ledger.acknowledge(&set(5), &KeyReply::Done, at(1_400)).unwrap();
    for (version, agrees) in [(1, false), (2, true), (3, true), (4, true), (5, false)] {
        let seen = seen(&value(version), -1);
        assert_eq!(in_snapshot.clone().observe(&seen, at(2_000)).is_ok(), agrees, "{version}");
    }
    assert!(in_snapshot.clone().observe(&NOTHING, at(2_000)).is_err());
}

#[test]
fn key_that_was_there_for_certain_and_is_certainly_past_its_time_has_expired() {
    let mut ledger = KeyLedger::new(AUTHOR);
    let brief = set_with(1, Some(500), SetCondition::Always);
    ledger.acknowledge(&brief, &KeyReply::Done, at(1_000)).unwrap();
    assert!(!ledger.has_expired(at(1_400)) && ledger.has_expired(at(1_700)));
    ledger.fail(&KeyOperation::Delete, at(1_100));
    assert!(!ledger.has_expired(at(1_700)), "it may have been deleted");
}
