//! The simulated cluster: a few seeds of it, and that the oracle notices what it should.

use super::*;

#[test]
fn seeds_keep_to_the_promise() {
    for seed in 0..8 {
        if let Err(error) = run(seed, Mutation::Nothing) {
            panic!("{error}");
        }
    }
}

#[test]
fn a_seed_runs_the_same_way_twice() {
    for seed in [0, 1] {
        let first = run(seed, Mutation::Nothing);
        assert!(first.is_ok());
        assert_eq!(first, run(seed, Mutation::Nothing));
    }
}

/// One of so many seeds must notice the defect.
#[track_caller]
fn check_caught(mutation: Mutation, seeds: u64) {
    let caught = (0..seeds).find(|seed| run(*seed, mutation).is_err());
    assert!(caught.is_some(), "{mutation:?} went unnoticed in {seeds} seeds");
}

#[test]
fn a_repair_that_resurrects_is_caught() {
    check_caught(Mutation::RepairResurrects, 10);
}

#[test]
fn copies_given_up_without_confirmation_are_caught() {
    check_caught(Mutation::DropsUnconfirmed, 30);
}

#[test]
fn versions_that_go_back_are_caught() {
    check_caught(Mutation::VersionGoesBack, 10);
}

#[test]
fn a_joiner_that_answers_too_early_is_caught() {
    check_caught(Mutation::AnswersTooEarly, 30);
}
