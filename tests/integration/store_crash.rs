//! Seeds of the simulated world: one store, crashes, faults and damage, the oracle after each.
//! More of them: `cargo run --release -p kadring-tests --bin sim -- store --seeds 1000`.

use kadring_tests::store_world::{Crashes, PlantedBug, Summary, Trial, errors, run};
use kadring_tests::tally::{Occurrence, Tally};

const SEEDS: u64 = 40;

/// Faults that so many short traces must have met.
const FAULTS_OF_STORES: &[Occurrence] = &[
    Occurrence::PowerLoss,
    Occurrence::ProcessKill,
    Occurrence::DoubleCrash,
    Occurrence::LostWrite,
    Occurrence::ReorderedWrite,
    Occurrence::TornAt512,
    Occurrence::TornAt4096,
    Occurrence::GarbledSector,
    Occurrence::LostLength,
    Occurrence::LostEntry,
    Occurrence::LostRename,
    Occurrence::LostRemoval,
    Occurrence::StaleBlock,
    Occurrence::StaleFrame,
    Occurrence::MisdirectedWrite,
    Occurrence::VanishedWrite,
    Occurrence::UnreadableBlock,
    Occurrence::LatentReadError,
    Occurrence::FlippedBit,
    Occurrence::ZeroedSector,
    Occurrence::FullDisk,
    Occurrence::ClockBack,
    Occurrence::ClockForward,
];

/// Faults that are tried at every request of a trace.
const FAULTS_OF_REQUESTS: &[Occurrence] = &[
    Occurrence::InputOutputError,
    Occurrence::NoSpaceError,
    Occurrence::QuotaError,
    Occurrence::ShortWrite,
    Occurrence::StickyError,
];

/// What long traces must do, and how often.
const DEEDS: &[(Occurrence, u64)] = &[
    (Occurrence::Expiry, 20),
    (Occurrence::Touch, 100),
    (Occurrence::Clear, 10),
    (Occurrence::SegmentFreed, 100),
    (Occurrence::SegmentRecycled, 20),
    (Occurrence::BytesCopied, 10_000),
    (Occurrence::TombstoneDropped, 50),
    (Occurrence::SnapshotTaken, 10),
    (Occurrence::SnapshotOpened, 50),
    (Occurrence::CheckpointPublished, 20),
    (Occurrence::ExtentWritten, 20),
];

fn assert_happened<'a>(tally: &Tally, wanted: impl IntoIterator<Item = &'a (Occurrence, u64)>) {
    let missing = wanted.into_iter().filter(|(what, least)| tally.of(*what) < *least);
    let missing: Vec<_> = missing.map(|(what, _)| what.name()).collect();
    assert!(missing.is_empty(), "too few of {missing:?}: {tally}");
}

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

fn check(seed: u64, trial: Trial) -> Summary {
    let _running = Running(seed);
    let summary = run(seed, trial).unwrap_or_else(|error| panic!("{error}"));
    assert!(summary.crashes > 0, "{summary:?}");
    summary
}

#[test]
fn acknowledged_writes_survive_a_crash_at_every_disk_request() {
    let mut tally = Tally::default();
    for seed in 0..SEEDS {
        tally.merge(&check(seed, Trial::default()).tally);
    }
    assert_happened(&tally, &FAULTS_OF_STORES.iter().map(|what| (*what, 1)).collect::<Vec<_>>());
    assert_happened(&tally, &[(Occurrence::ScrubPass, 1), (Occurrence::LimitReached, 1)]);
}

#[test]
fn long_traces_survive_crashes_faults_and_damage() {
    let mut tally = Tally::default();
    for seed in 1_000..1_006 {
        tally.merge(&check(seed, Trial::of(2_000)).tally);
    }
    assert_happened(&tally, DEEDS);
}

/// Every image of a power loss where at most 12 pieces are in doubt, every second crash.
#[test]
fn every_image_of_a_power_loss_recovers() {
    for seed in 2_000..2_003 {
        let crashes = Crashes::Exhaustive { images_max: 500 };
        let summary = check(seed, Trial { crashes, ..Trial::of(60) });
        assert_happened(&summary.tally, &[(Occurrence::ListedImage, 1)]);
    }
}

#[test]
fn every_request_of_a_trace_may_fail_in_every_way() {
    let mut tally = Tally::default();
    for seed in 3_000..3_002 {
        let summary = errors::run(seed, 30, None);
        let summary = summary.unwrap_or_else(|errors| panic!("{}", errors.join("\n\n")));
        assert!(summary.runs > 2 * summary.requests, "{summary:?}");
        tally.merge(&summary.tally);
    }
    assert_happened(&tally, &FAULTS_OF_REQUESTS.iter().map(|what| (*what, 1)).collect::<Vec<_>>());
}

#[test]
fn seeds_that_failed_once_pass() {
    for (seed, operations) in saved_seeds() {
        check(seed, Trial::of(operations));
    }
}

#[test]
fn same_seed_gives_the_same_trace_and_disk() {
    let trace = |seed| check(seed, Trial::default()).trace;
    for seed in 0..4 {
        assert_eq!(trace(seed), trace(seed), "seed {seed}");
    }
    assert_eq!(check(5, Trial::of(1_000)).trace, check(5, Trial::of(1_000)).trace);
    assert_ne!(trace(0), trace(1));
}

/// What is broken, where that is planted, and what must notice it: so many seeds of so many
/// commands.
struct Variant {
    bug: PlantedBug,
    seeds: u64,
    operations: u32,
}

const fn variant(bug: PlantedBug, seeds: u64, operations: u32) -> Variant {
    Variant { bug, seeds, operations }
}

/// Between the store and its disk: writes are lost, cached only, or acknowledged before they are
/// completed; syncs of files or directories do nothing; headers are sealed again with a durable
/// LSN one too high; stale frames are sealed for where they are found, as if checksums did not
/// depend on the segment.
const BROKEN_WIRES: &[Variant] = &[
    variant(PlantedBug::LosesDurableWrites, 4, 100),
    variant(PlantedBug::AcknowledgesCachedWrites, 4, 100),
    variant(PlantedBug::AcknowledgesEarly, 4, 100),
    variant(PlantedBug::IgnoresSync, 4, 100),
    variant(PlantedBug::IgnoresSyncDirectory, 4, 100),
    variant(PlantedBug::WatermarkOffByOne, 4, 100),
    variant(PlantedBug::ChecksumWithoutSegment, 40, 100),
];

/// In the store itself, in debug builds only; something must be compacted for the first three to
/// show. For the last one an empty key must be read while no other is hot: each trial ends with
/// some changes and reads of one key.
const BROKEN_STORES: &[Variant] = &[
    variant(PlantedBug::DropsTombstonesEarly, 30, 3_000),
    variant(PlantedBug::FreesSegmentsEarly, 20, 300),
    variant(PlantedBug::RecyclesLinkedFiles, 20, 300),
    variant(PlantedBug::KeepsEmptyHotValues, 20, 100),
];

/// The oracle must notice a broken disk or a broken store within the stated number of seeds.
#[test]
fn mutations_are_caught() {
    let of_store = if cfg!(debug_assertions) { BROKEN_STORES } else { &[] };
    for Variant { bug, seeds, operations } in BROKEN_WIRES.iter().chain(of_store) {
        let trial = Trial { bug: *bug, ..Trial::of(*operations) };
        let caught = (0..*seeds).find_map(|seed| Some((seed + 1, run(seed, trial).err()?)));
        let (within, error) = caught.unwrap_or_else(|| panic!("{bug:?}: missed by {seeds} seeds"));
        eprintln!("{bug:?}: caught by {within}: {}", error.lines().next().unwrap_or_default());
    }
}
