//! The simulated cluster: a few seeds of each scenario, and that the oracles notice what they
//! should.

use super::*;

const REAL: Engine = Engine::Real { shards: 2 };

#[track_caller]
fn check(plan: Plan, seeds: std::ops::Range<u64>) {
    for seed in seeds {
        if let Err(error) = run(seed, plan) {
            panic!("{error}");
        }
    }
}

fn plan(scenario: Scenario, engine: Engine) -> Plan {
    Plan { scenario, nodes: 8, engine, ..Plan::default() }
}

#[test]
fn seeds_keep_to_the_promise() {
    check(Plan::default(), 0..8);
}

#[test]
fn seeds_of_the_real_engine_keep_to_the_promise() {
    check(plan(Scenario::Swarm, REAL), 0..3);
}

/// A pass of comparisons took eight minutes, a range each two seconds, and began anew with each
/// change of members.
#[test]
fn copies_agree_soon_after_faults_whatever_the_number_of_ranges() {
    let outcome = run(969, Plan::default()).unwrap_or_else(|error| panic!("{error}"));
    assert!(outcome.summary.converged_ms < 60_000, "{} ms", outcome.summary.converged_ms);
}

/// Two ids of each share 12 to 17 bits: there were thousands of regions, each a page of a SCAN, a
/// comparison and a range to be filled.
#[test]
fn walks_end_where_two_ids_are_alike() {
    check(plan(Scenario::Churn, REAL), 9..10);
    check(plan(Scenario::Kill, REAL), 6..7);
    check(Plan::default(), 256..257);
    check(Plan::default(), 2395..2396);
}

/// Newcomers behind a cut removed all that they knew of the others, or gave up their seeds once
/// they knew each other, and stayed a cluster of their own.
#[test]
fn nobody_stays_outside_once_a_cut_has_healed() {
    for seed in [341, 432, 971, 1106, 1198, 1557, 2767] {
        check(Plan::default(), seed..seed + 1);
    }
}

#[test]
fn every_scenario_keeps_to_the_promise() {
    for scenario in Scenario::ALL {
        check(plan(scenario, Engine::Model), 0..1);
    }
}

#[test]
fn disk_faults_of_the_real_engine_are_borne() {
    for scenario in [Scenario::Rolling, Scenario::Wipe, Scenario::Blackout] {
        check(plan(scenario, REAL), 0..1);
    }
}

#[test]
fn a_seed_runs_the_same_way_twice() {
    for plan in [
        Plan::default(),
        plan(Scenario::Churn, Engine::Model),
        plan(Scenario::Swarm, REAL),
        plan(Scenario::Rolling, REAL),
    ] {
        let first = run(1, plan).map(|outcome| outcome.summary);
        assert!(first.is_ok(), "{first:?}");
        assert_eq!(first, run(1, plan).map(|outcome| outcome.summary));
        let other = run(2, plan).map(|outcome| outcome.summary.hash);
        assert_ne!(first.map(|summary| summary.hash), other);
    }
}

#[test]
fn copies_and_quick_repair_keep_what_one_copy_loses() {
    let usual = survival::Trial {
        nodes: 10,
        keys: 40,
        length_s: 300,
        lifetime_s: 120,
        replicas: 3,
        interval_s: 5,
    };
    let survived = |replicas| {
        let run = survival::run(1, survival::Trial { replicas, ..usual }).unwrap();
        assert!(run.deaths >= 10, "{}", run.deaths);
        assert_eq!(run.curve[0].1, 1.0);
        run.survived
    };
    assert!(survived(1) < 0.5);
    assert!(survived(3) > 0.9);
}

/// One of so many seeds must notice the defect.
#[track_caller]
fn check_caught(mutation: Mutation, seeds: u64) {
    let plan = Plan { mutation, ..Plan::default() };
    let caught = (0..seeds).find(|seed| run(*seed, plan).is_err());
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
fn pages_of_keys_from_one_holder_are_caught() {
    check_caught(Mutation::ListsFromOne, 10);
}

#[test]
fn a_joiner_that_answers_too_early_is_caught() {
    check_caught(Mutation::AnswersTooEarly, 100);
}
