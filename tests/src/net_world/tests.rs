//! Small networks: each scenario holds what it must, and a seed repeats itself.

use super::network::Faults;
use super::scenario::{Outcome, Plan, Scenario, run};
use super::{address, node_at};

fn plan(seed: u64, nodes: usize) -> Plan {
    Plan { lookups: 100, ..Plan::new(seed, nodes) }
}

fn quietly(scenario: Scenario, plan: Plan) -> Outcome {
    run(scenario, plan, &mut |_, _| ())
}

#[test]
fn a_seed_run_twice_gives_the_same_events() {
    let first = quietly(Scenario::Kill, plan(1, 60));
    assert_eq!(first, quietly(Scenario::Kill, plan(1, 60)));
    let other = quietly(Scenario::Kill, plan(2, 60));
    assert_ne!(first.counters.hash, other.counters.hash);
}

#[test]
fn churn_and_cuts_repeat_themselves_too() {
    for scenario in [Scenario::Churn, Scenario::Partition] {
        let sizes = Plan { lookups: 20, ..plan(3, 40) };
        assert_eq!(quietly(scenario, sizes), quietly(scenario, sizes));
    }
}

#[test]
fn every_scenario_finds_what_it_must() {
    for scenario in Scenario::ALL {
        let outcome = quietly(scenario, plan(4, 80));
        for measured in &outcome.measurements {
            assert!(measured.passes(), "{}: {measured:?}", scenario.name());
        }
    }
}

/// The oracle must be able to complain: what is lost beyond repair is not found.
#[test]
fn a_network_that_loses_nearly_everything_fails() {
    let faults = Faults { loss: 0.85, ..Faults::NONE };
    let outcome = quietly(Scenario::Growth, Plan { faults, ..plan(5, 60) });
    assert!(outcome.measurements.iter().any(|measured| !measured.passes()));
}

#[test]
fn lookups_survive_loss_duplication_and_one_way_links() {
    let faults = Faults { loss: 0.05, duplication: 0.05, reordering: 0.05, one_way: 0.01 };
    let outcome = quietly(Scenario::Growth, Plan { faults, ..plan(6, 120) });
    let last = outcome.measurements.last().unwrap();
    assert!(last.first > 0.95 && last.unended == 0, "{last:?}");
}

#[test]
fn addresses_name_nodes() {
    for node in [0, 1, 9_999, 100_000] {
        assert_eq!(node_at(&address(node)), Some(node));
    }
    assert_eq!(node_at(&"127.0.0.1:1".parse().unwrap()), None);
}
