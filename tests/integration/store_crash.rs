//! Seeds of the simulated world: one store, crashes, faults and damage, the oracle after each.
//! More of them: `cargo run --release -p kadring-tests --bin sim -- store --seeds 1000`.

use kadring_tests::store_world::{Crashes, PlantedBug, Trial, errors, run};
use kadring_tests::tally::Occurrence;

const SEEDS: u64 = 40;

/// Seeds that have failed before, each with its commands.
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

fn check(seed: u64, trial: Trial) -> u64 {
    let _running = Running(seed);
    let summary = run(seed, trial).unwrap_or_else(|error| panic!("{error}"));
    assert!(summary.crashes > 0, "{summary:?}");
    summary.trace
}

#[test]
fn acknowledged_writes_survive_a_crash_at_every_disk_request() {
    for seed in 0..SEEDS {
        check(seed, Trial::default());
    }
}

#[test]
fn long_traces_survive_crashes_faults_and_damage() {
    for seed in 1_000..1_004 {
        check(seed, Trial::of(2_000));
    }
}

/// Every image of a power loss where at most 12 pieces are in doubt, every second crash.
#[test]
fn every_image_of_a_power_loss_recovers() {
    for seed in 2_000..2_003 {
        let crashes = Crashes::Exhaustive { images_max: 500 };
        check(seed, Trial { crashes, ..Trial::of(60) });
    }
}

#[test]
fn every_request_of_a_trace_may_fail_in_every_way() {
    for seed in 3_000..3_002 {
        let summary = errors::run(seed, 30, None);
        let summary = summary.unwrap_or_else(|errors| panic!("{}", errors.join("\n\n")));
        assert!(summary.runs > 2 * summary.requests, "{summary:?}");
    }
}

/// Segments must be given back in these traces, or they show nothing of compaction.
#[test]
fn traces_of_overwrites_are_compacted_between_crashes() {
    let (mut freed, mut copied) = (0, 0);
    for seed in 4_000..4_012 {
        let summary = run(seed, Trial::of(300)).unwrap_or_else(|error| panic!("{error}"));
        freed += summary.tally.of(Occurrence::SegmentFreed);
        copied += summary.tally.of(Occurrence::BytesCopied);
    }
    assert!(freed >= 10 && copied > 10_000, "{freed} freed, {copied} bytes copied");
}

#[test]
fn seeds_that_failed_once_pass() {
    for (seed, operations) in saved_seeds() {
        check(seed, Trial::of(operations));
    }
}

#[test]
fn same_seed_gives_the_same_trace_and_disk() {
    let trace = |seed| check(seed, Trial::default());
    for seed in 0..4 {
        assert_eq!(trace(seed), trace(seed), "seed {seed}");
    }
    assert_eq!(check(5, Trial::of(1_000)), check(5, Trial::of(1_000)));
    assert_ne!(trace(0), trace(1));
}

/// The oracle must notice a broken disk or a broken store within so many seeds.
///
/// | what is broken | where it is planted |
/// |---|---|
/// | writes are lost, cached only; file syncs ignored | between store and disk |
/// | acknowledgement before the completion | between store and disk |
/// | no directory sync | between store and disk |
/// | durable LSN in frames one too high | between store and disk, header sealed again |
/// | checksums without the segment's id | stale frames are sealed for where they are found |
/// | tombstone dropped early | in the store, in debug builds only |
/// | segment freed before its copy is durable | in the store, in debug builds only |
/// | recycled file still linked by a snapshot | needs recycling and snapshots |
#[test]
fn mutations_are_caught() {
    let bugs = [
        (PlantedBug::LosesDurableWrites, 4),
        (PlantedBug::AcknowledgesCachedWrites, 4),
        (PlantedBug::IgnoresSync, 4),
        (PlantedBug::AcknowledgesEarly, 4),
        (PlantedBug::IgnoresSyncDirectory, 4),
        (PlantedBug::WatermarkOffByOne, 4),
        (PlantedBug::ChecksumWithoutSegment, 40),
    ];
    // Defects of compaction need traces in which something is compacted.
    let long = [(PlantedBug::DropsTombstonesEarly, 40), (PlantedBug::FreesSegmentsEarly, 20)];
    let bugs = bugs.map(|(bug, within)| (bug, within, 100));
    let long = long.map(|(bug, within)| (bug, within, 300));
    let debug = if cfg!(debug_assertions) { &long[..] } else { &[] };
    for (bug, within, operations) in bugs.iter().chain(debug).copied() {
        let trial = Trial { bug, ..Trial::of(operations) };
        let caught = (0..within).find_map(|seed| Some((seed + 1, run(seed, trial).err()?)));
        let (seeds, error) = caught.unwrap_or_else(|| panic!("{bug:?}: missed by {within} seeds"));
        eprintln!("{bug:?}: caught by {seeds} seeds: {}", error.lines().next().unwrap_or_default());
    }
}
