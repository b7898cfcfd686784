//! How long does a put wait because a snapshot is being taken, and what does a snapshot cost?
//!
//! Unit: microseconds of the longest put, milliseconds from the order to the durable snapshot,
//! bytes read and written. Expected: a snapshot leaves the active segment, links a file per 64 MiB
//! (40 us each) and syncs a directory, all beside the writers; checksums were taken on append, so
//! it reads one block per segment. 2 GiB are 40 segments: some 10 ms, and no put waits for longer
//! than for a frame. The longest put must stay within 10 ms above the p99 without a snapshot.
//!
//! The store is loaded, then writers put new keys in a closed loop, so that nothing is compacted
//! and every byte read is the snapshot's. Stretches without and with a snapshot take turns; the
//! first snapshot is *first*, later ones are *incremental*: of them, only segments that the one
//! before did not have would have to be copied (`new MiB`). The longest put without a snapshot
//! stands beside: what the machine does by itself. *idle* is a snapshot without writers: its bytes
//! are all its own. What the node adds, a catalog of the files and a rename, is left out.

#![expect(clippy::disallowed_methods, reason = "a bench reads the clock")]
#![expect(clippy::print_stdout, reason = "a bench prints its result")]

use clap::Parser;
use kadring_benches::{
    Choice, ClosedLoop, DiskBytes, DiskCounters, Driver, Flags, Latencies, Report, RigOptions,
    StoreRig, Table, Turns, Values, Wait, drivers,
};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::error::Error;
use std::path::Path;
use std::time::{Duration, Instant};

/// Most that a put may wait above the p99 without a snapshot, in microseconds.
const STALL_MAX: f64 = 10_000.0;
/// How often it is looked whether the snapshot has ended.
const STEP: Duration = Duration::from_millis(1);
/// Where snapshots go, below the data directory.
const SNAPSHOTS: &str = "snapshots";
const TABLE: Table = Table { name_width: 16, width: 10 };
const COLUMNS: [&str; 9] =
    ["puts/s", "p50 us", "p99 us", "p99.9 us", "max us", "took ms", "rd MiB", "wr MiB", "new MiB"];

#[derive(Debug, Parser)]
struct Arguments {
    #[command(flatten)]
    flags: Flags,
    /// Drivers to compare; each has its own run.
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    io: Vec<String>,
    /// Number of keys at first; at most 10,000 in a smoke run.
    #[arg(long, value_name = "N", default_value_t = 2_000_000)]
    keys: u64,
    /// Bytes of a value.
    #[arg(long, value_name = "N", default_value_t = 1024)]
    value_bytes: usize,
    /// Writers in a closed loop.
    #[arg(long, value_name = "N", default_value_t = 64)]
    writers: usize,
}

impl Arguments {
    fn key_count(&self) -> u64 {
        if self.flags.smoke { self.keys.min(10_000) } else { self.keys }
    }
}

/// What happened in a stretch of time.
#[derive(Clone, Debug, Default)]
struct Stretch {
    seconds: f64,
    puts: Latencies,
    bytes: DiskBytes,
    /// Of the snapshot, if there was one: milliseconds, files, bytes of files that are new.
    snapshot: Option<(f64, usize, u64)>,
}

impl Stretch {
    fn add(&mut self, other: &Self) {
        self.seconds += other.seconds;
        self.puts.add(&other.puts);
        self.bytes.process_read += other.bytes.process_read;
        self.bytes.process_written += other.bytes.process_written;
    }

    fn row(&self, name: &str) {
        let micros = |percent| format!("{:.0}", self.puts.micros(percent));
        let mib = |bytes: u64| format!("{:.2}", bytes as f64 / 1_048_576.0);
        let of_snapshot = |text: &dyn Fn((f64, usize, u64)) -> String| {
            self.snapshot.map_or_else(|| "-".to_owned(), text)
        };
        let cells = [
            format!("{:.0}", self.puts.count() as f64 / self.seconds.max(1e-9)),
            micros(50.0),
            micros(99.0),
            micros(99.9),
            micros(100.0),
            of_snapshot(&|(millis, ..)| format!("{millis:.1}")),
            mib(self.bytes.process_read),
            mib(self.bytes.process_written),
            of_snapshot(&|(_, _, new)| mib(new)),
        ];
        TABLE.row(name, cells.iter().map(String::as_str));
    }

    fn json(&self) -> Value {
        json!({
            "seconds": self.seconds,
            "puts_per_s": self.puts.count() as f64 / self.seconds.max(1e-9),
            "put": self.puts.json(),
            "process_read": self.bytes.process_read,
            "process_written": self.bytes.process_written,
            "snapshot_ms": self.snapshot.map(|(millis, ..)| millis),
            "snapshot_files": self.snapshot.map(|(_, files, _)| files),
            "snapshot_new_bytes": self.snapshot.map(|(.., new)| new),
        })
    }
}

/// A store with its writers.
struct Run {
    rig: StoreRig,
    clients: ClosedLoop,
    counters: DiskCounters,
    /// Files of the newest snapshot; how many there were.
    files: BTreeSet<String>,
    taken: usize,
}

impl Run {
    fn new(arguments: &Arguments, driver: Driver, path: &Path) -> Result<Self, Box<dyn Error>> {
        let keys = arguments.key_count();
        let (mut rig, _) = StoreRig::open(driver, path, RigOptions::default())?;
        std::fs::create_dir(path.join(SNAPSHOTS))?;
        let mut values = Values::new(arguments.value_bytes);
        rig.load(0..keys, &mut values);
        rig.rest();
        let clients = ClosedLoop::new(arguments.writers, 0, Choice::Fresh(keys), values);
        let counters = DiskCounters::of(path);
        Ok(Self { rig, clients, counters, files: BTreeSet::new(), taken: 0 })
    }

    fn begin_snapshot(&mut self) {
        self.rig.begin_snapshot(&format!("{SNAPSHOTS}/{}", self.taken));
        self.taken += 1;
    }

    /// Takes the snapshot's end, if it has come: how many files, and bytes of those that are new.
    fn end_snapshot(&mut self) -> Option<(usize, u64)> {
        let files = self.rig.take_snapshot()?;
        // Of one name, a segment has one content for ever; manifests are new each time.
        let new = files.iter().filter(|file| !self.files.contains(&file.name));
        let new = new.map(|file| file.content.used).sum();
        self.files = files.iter().map(|file| file.name.clone()).collect();
        self.files.retain(|name| wal::segment::parse_file_name(name).is_some());
        Some((files.len(), new))
    }

    /// Lets the writers work for `duration` at least, and until the snapshot has ended if one is
    /// taken.
    fn stretch(&mut self, duration: Duration, snapshot: bool) -> Stretch {
        let (begun, before) = (Instant::now(), self.counters.read());
        if snapshot {
            self.begin_snapshot();
        }
        let mut ended = None;
        while begun.elapsed() < duration || snapshot && ended.is_none() {
            self.clients.run_until(&mut self.rig, Instant::now() + STEP);
            if let Some((files, new)) = self.end_snapshot() {
                ended = Some((begun.elapsed().as_secs_f64() * 1e3, files, new));
            }
        }
        Stretch {
            seconds: begun.elapsed().as_secs_f64(),
            puts: std::mem::take(&mut self.clients.puts),
            bytes: self.counters.read().since(before),
            snapshot: ended,
        }
    }

    fn idle(&mut self) -> Stretch {
        self.clients.drain(&mut self.rig);
        self.clients.forget();
        self.rig.rest();
        let (begun, before) = (Instant::now(), self.counters.read());
        self.begin_snapshot();
        let (files, new) = loop {
            self.rig.turn(Wait::Completion);
            if let Some(ended) = self.end_snapshot() {
                break ended;
            }
        };
        let seconds = begun.elapsed().as_secs_f64();
        let bytes = self.counters.read().since(before);
        let snapshot = Some((seconds * 1e3, files, new));
        Stretch { seconds, puts: Latencies::default(), bytes, snapshot }
    }
}

fn run(report: &mut Report, name: &str, mut run: Run, turns: Turns) {
    TABLE.row(name, COLUMNS);
    run.stretch(turns.duration / 2, false);
    let mut without = Stretch::default();
    let mut with = Vec::new();
    for repeat in 0..turns.repeats {
        without.add(&run.stretch(turns.duration, false));
        let stretch = run.stretch(turns.duration, true);
        stretch.row(if repeat == 0 { "first" } else { "incremental" });
        with.push(stretch);
    }
    without.row("without");
    let idle = run.idle();
    idle.row("idle");
    let p99 = without.puts.micros(99.0);
    let above = |stretch: &Stretch| stretch.puts.micros(100.0) - p99;
    let longest = with.iter().map(above).fold(0.0, f64::max);
    println!(
        "longest put above the p99 without: {longest:.0} us with a snapshot, {:.0} us without",
        above(&without)
    );
    report.judge(&format!("{name}: no put waits 10 ms above p99"), longest < STALL_MAX);
    let with: Vec<Value> = with.iter().map(Stretch::json).collect();
    report.push(
        "runs",
        json!({
            "contestant": name,
            "without": without.json(),
            "with": with,
            "idle": idle.json(),
            "longest_above_p99_us": longest,
            "longest_above_p99_us_without": above(&without),
        }),
    );
    run.rig.close();
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments = Arguments::parse();
    let flags = &arguments.flags;
    let turns = flags.turns(2.0, 4);
    let scratch = flags.scratch()?;
    let mut report = Report::new("snapshot", flags, scratch.path())?;
    println!(
        "{} x {} B at first, {} writers, stretches of {:?}",
        arguments.key_count(),
        arguments.value_bytes,
        arguments.writers,
        turns.duration
    );
    for driver in drivers(&arguments.io, &["uring"])? {
        println!();
        let path = scratch.path().join(driver.name);
        let prepared = Run::new(&arguments, driver, &path)?;
        run(&mut report, driver.name, prepared, turns);
        std::fs::remove_dir_all(&path)?;
    }
    report.finish()
}
