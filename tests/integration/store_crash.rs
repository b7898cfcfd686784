//! Seeds of the simulated world: one store, a crash at every disk request, the oracle after each.
//! More of them: `cargo run --release -p kadring-tests --bin sim -- store --seeds 1000 --from 0`.

use kadring_tests::store_world::{PlantedBug, Trial, run};

const SEEDS: u64 = 40;

/// Seeds that have failed before, each with its commands per generation.
fn saved_seeds() -> impl Iterator<Item = (u64, u32)> {
    let lines = include_str!("../seeds.txt").lines().filter(|line| !line.starts_with('#'));
    lines.map(|line| {
        let mut words = line.split_whitespace();
        (words.next().unwrap().parse().unwrap(), words.next().unwrap().parse().unwrap())
    })
}

/// Says which seed was running when something panics.
struct Running(u64);

impl Drop for Running {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("SEED={0}\nrepeat: sim store --seeds 1 --from {0}", self.0);
        }
    }
}

fn check(seed: u64) -> u64 {
    check_trial(seed, Trial::default())
}

fn check_trial(seed: u64, trial: Trial) -> u64 {
    let _running = Running(seed);
    let summary = run(seed, trial).unwrap_or_else(|error| panic!("{error}"));
    assert!(summary.crashes > summary.requests, "{summary:?}");
    summary.trace
}

#[test]
fn acknowledged_writes_survive_a_crash_at_every_disk_request() {
    for seed in 0..SEEDS {
        check(seed);
    }
}

#[test]
fn seeds_that_failed_once_pass() {
    for (seed, operations_max) in saved_seeds() {
        check_trial(seed, Trial { operations_max, ..Trial::default() });
    }
}

#[test]
fn same_seed_gives_the_same_trace_and_disk() {
    for seed in 0..4 {
        assert_eq!(check(seed), check(seed), "seed {seed}");
    }
    assert_ne!(check(0), check(1));
}

/// The oracle must notice a disk that breaks its promises, in most seeds.
#[test]
fn broken_disks_are_noticed() {
    let bugs = [
        PlantedBug::LosesDurableWrites,
        PlantedBug::AcknowledgesCachedWrites,
        PlantedBug::IgnoresSyncDirectory,
        PlantedBug::IgnoresSync,
    ];
    for bug in bugs {
        let trial = Trial { bug, ..Trial::default() };
        let noticed = (0..10).filter(|seed| run(*seed, trial).is_err()).count();
        assert!(noticed >= 6, "{bug:?} was noticed in {noticed} of 10 seeds");
    }
}
