//! Queries under way, in steps of a virtual clock.

use super::rtt::{FAILED_AFTER_MAX_MS, FAILED_AFTER_MIN_MS, SLOW_AFTER_MAX_MS};
use super::*;
use std::net::Ipv4Addr;

const LIMITS: TransactionLimits = TransactionLimits { outstanding_max: 3, peers_max: 4 };

fn at(ms: u64) -> Monotonic {
    Monotonic(0).plus_millis(ms)
}

fn peer(number: u8) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::new(10, 0, 0, number), 1))
}

/// Starts a query and returns its transaction id.
fn start(queries: &mut Transactions<u8>, ms: u64, to: u8) -> Option<Vec<u8>> {
    let mut rng = Rng::with_seed(ms * 256 + u64::from(to));
    queries.start(at(ms), peer(to), to, &mut rng, |id| id.to_vec())
}

/// The steps of a query that is never answered, each with its time.
fn steps(queries: &mut Transactions<u8>) -> Vec<(u64, &'static str)> {
    let mut steps = Vec::new();
    while let Some(deadline) = queries.deadline() {
        assert_eq!(queries.poll_overdue(Monotonic(deadline.0 - 1)), None);
        let name = match queries.poll_overdue(deadline) {
            Some(Overdue::Slow { .. }) => "slow",
            Some(Overdue::Resend { .. }) => "resend",
            Some(Overdue::Failed { .. }) => "failed",
            None => "nothing",
        };
        steps.push((deadline.0 / 1_000_000, name));
    }
    steps
}

#[test]
fn a_query_is_slow_and_sent_again_before_it_fails() {
    let mut queries = Transactions::new(LIMITS);
    start(&mut queries, 0, 1).unwrap();
    let slow = SLOW_AFTER_MAX_MS;
    let expected = [(slow, "slow"), (2 * slow, "resend"), (FAILED_AFTER_MAX_MS, "failed")];
    assert_eq!(steps(&mut queries), expected);
    assert!(queries.is_empty());
}

#[test]
fn timeouts_follow_what_the_peer_takes() {
    let mut queries = Transactions::new(LIMITS);
    for turn in 0..40 {
        let id = start(&mut queries, turn * 100, 1).unwrap();
        let answered = queries.on_reply(at(turn * 100 + 30), peer(1), &id);
        assert_eq!(answered, Some(Answered { purpose: 1, rtt_us: 30_000 }));
    }
    start(&mut queries, 10_000, 1).unwrap();
    let steps = steps(&mut queries);
    let [(slow, "slow"), (_, "resend"), (failed, "failed")] = steps[..] else {
        panic!("{steps:?}")
    };
    assert!((10_030..10_040).contains(&slow), "{slow}");
    assert_eq!(failed, 10_000 + FAILED_AFTER_MIN_MS);
}

#[test]
fn answers_count_once_and_from_the_address_asked_only() {
    let mut queries = Transactions::new(LIMITS);
    let id = start(&mut queries, 0, 1).unwrap();
    assert_eq!(queries.on_reply(at(1), peer(2), &id), None);
    assert_eq!(queries.on_reply(at(1), peer(1), &id[..2]), None);
    assert_eq!(queries.on_reply(at(1), peer(1), &[0; 4]), None);
    assert!(queries.expects(peer(1), &id) && !queries.expects(peer(2), &id));
    assert!(queries.on_reply(at(1), peer(1), &id).is_some());
    assert_eq!(queries.on_reply(at(1), peer(1), &id), None);
    assert_eq!(queries.deadline(), None);
}

#[test]
fn a_resent_query_is_answered_by_either_answer() {
    let mut queries = Transactions::new(LIMITS);
    let id = start(&mut queries, 0, 1).unwrap();
    let overdue = queries.poll_overdue(at(SLOW_AFTER_MAX_MS));
    let expected = Overdue::Slow { to: peer(1), datagram: id.clone(), purpose: 1 };
    assert_eq!(overdue, Some(expected));
    let answered = queries.on_reply(at(SLOW_AFTER_MAX_MS + 10), peer(1), &id).unwrap();
    assert_eq!(u64::from(answered.rtt_us), (SLOW_AFTER_MAX_MS + 10) * 1000);
}

#[test]
fn only_so_many_queries_are_under_way() {
    let mut queries = Transactions::new(LIMITS);
    for to in 0..3 {
        assert!(start(&mut queries, 0, to).is_some());
    }
    assert_eq!(start(&mut queries, 0, 3), None);
    assert_eq!(queries.len(), 3);
}

#[test]
fn only_so_many_peers_are_remembered() {
    let mut estimates = RttEstimates::new(4);
    for number in 0..100 {
        estimates.add(peer(number), 10_000);
        assert!(estimates.len() <= 4);
        assert!(estimates.of(&peer(number)).is_some());
    }
    // Who is not known by name is expected to take as long as others.
    assert!(estimates.slow_after_ms(&peer(200)) < SLOW_AFTER_MAX_MS);
    let mut none = RttEstimates::new(0);
    none.add(peer(1), 5);
    assert!(none.is_empty());
}

#[test]
fn a_late_clock_neither_skips_nor_repeats_steps() {
    let mut queries = Transactions::new(LIMITS);
    start(&mut queries, 0, 1).unwrap();
    let late = at(60_000);
    assert!(matches!(queries.poll_overdue(late), Some(Overdue::Slow { .. })));
    assert_eq!(queries.poll_overdue(late), None, "an answer gets its chance");
}
