//! How many durable puts of 1 KiB does a store take, beside the logs that ordinary engines have?
//!
//! Unit: puts per second, latency from put to durable, CPU seconds per million puts, bytes written
//! per byte of keys and values. Expected: a durable write takes a virtual disk 100-200 us, an
//! fdatasync with its file-system journal some times that; so one writer gets 5,000-10,000 puts/s,
//! and 64 writers, who share frames, 30 times that, until copying and checksums (about 2 us a put)
//! or the disk's bandwidth decide. Against append + fdatasync at 64 writers the store must reach
//! 2x, and aims at 4x.
//!
//! *store* rows: closed-loop writers on the store's one thread, on each driver. *leader* rows: a
//! thread per writer, and a leader who writes and syncs for all (`harness/leader_log.rs`):
//! `append` grows its file, `overwrite` writes over prepared blocks, `direct` does so with O_DIRECT
//! and O_DSYNC.

#![expect(clippy::disallowed_methods, reason = "a bench reads the clock")]
#![expect(clippy::print_stdout, reason = "a bench prints its result")]

use clap::Parser;
use kadring_benches::{
    Axis, Choice, ClosedLoop, DiskCounters, Driver, Flags, LeaderLog, Measuring, Plot, Report,
    RigOptions, Sample, Series, StoreRig, Summary, SyncBy, Table, Turns, Values, cpu_of_self,
    drivers, interleave,
};
use serde_json::json;
use std::error::Error;
use std::path::Path;
use std::time::Instant;

const VALUE_LEN: usize = 1024;
const LEADERS: [(&str, SyncBy); 3] = [
    ("leader append", SyncBy::AppendFdatasync),
    ("leader overwrite", SyncBy::OverwriteFdatasync),
    ("leader direct", SyncBy::DirectDsync),
];
const TABLE: Table = Table { name_width: 24, width: 10 };

#[derive(Debug, Parser)]
struct Arguments {
    #[command(flatten)]
    flags: Flags,
    /// Drivers to compare.
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    io: Vec<String>,
    /// Numbers of writers [default: 1,16,64,256].
    #[arg(long, value_name = "N", value_delimiter = ',')]
    writers: Vec<usize>,
    /// Keys that are written over and over.
    #[arg(long, value_name = "N", default_value_t = 100_000)]
    keys: u64,
    /// Adds the stores through the page cache.
    #[arg(long)]
    buffered: bool,
}

impl Arguments {
    fn writers(&self) -> Vec<usize> {
        match (self.writers.as_slice(), self.flags.smoke) {
            ([], true) => vec![1, 64],
            ([], false) => vec![1, 16, 64, 256],
            (given, _) => given.to_vec(),
        }
    }
}

/// Who takes part.
enum Contestant {
    Store { name: String, rig: Box<StoreRig>, counters: DiskCounters },
    Leader { name: &'static str, log: LeaderLog },
}

impl Contestant {
    fn store(driver: Driver, scratch: &Path, direct: bool) -> Result<Self, Box<dyn Error>> {
        let name = format!("store {}{}", driver.name, if direct { "" } else { " buffered" });
        let path = scratch.join(&name);
        let options = RigOptions { direct, cache_bytes: 0, ..RigOptions::default() };
        let (rig, _) = StoreRig::open(driver, &path, options)?;
        Ok(Self::Store { name, rig: Box::new(rig), counters: DiskCounters::of(scratch) })
    }

    fn name(&self) -> &str {
        match self {
            Self::Store { name, .. } => name,
            Self::Leader { name, .. } => name,
        }
    }

    fn measure(&mut self, writers: usize, keys: u64, turns: Turns) -> Sample {
        let mut values = Values::new(VALUE_LEN);
        match self {
            Self::Store { rig, counters, .. } => {
                let user_bytes = values.user_bytes();
                let mut clients = ClosedLoop::new(writers, 0, Choice::Uniform(keys), values);
                clients.run_until(rig, Instant::now() + turns.warm_up);
                clients.forget();
                let before = counters.read();
                let measuring = Measuring::start(cpu_of_self());
                clients.run_until(rig, Instant::now() + turns.duration);
                let latencies = std::mem::take(&mut clients.puts);
                let puts = latencies.count();
                let sample = measuring.finish(cpu_of_self(), puts, latencies);
                let bytes = counters.read().since(before);
                clients.drain(rig);
                sample.with_disk(bytes, puts * user_bytes)
            }
            Self::Leader { log, .. } => {
                log.measure(writers, &mut values, turns).expect("its file can be emptied")
            }
        }
    }
}

fn contestants(arguments: &Arguments, scratch: &Path) -> Result<Vec<Contestant>, Box<dyn Error>> {
    let mut all = Vec::new();
    let default = ["uring", "pread-4", "pread-1", "pread-16", "pread-64"];
    let default = if arguments.flags.smoke { &default[..2] } else { &default };
    for driver in drivers(&arguments.io, default)? {
        all.push(Contestant::store(driver, scratch, true)?);
        if arguments.buffered {
            all.push(Contestant::store(driver, scratch, false)?);
        }
    }
    for (name, by) in LEADERS {
        match LeaderLog::new(by, scratch) {
            Ok(log) => all.push(Contestant::Leader { name, log }),
            Err(error) => println!("{name} SKIPPED: {error}"),
        }
    }
    Ok(all)
}

/// Prints how the first store does against each leader.
fn print_ratios(report: &mut Report, writers: usize, names: &[&str], summaries: &[Summary]) {
    for (name, summary) in names.iter().zip(summaries).skip(1) {
        let ratio = summaries[0].ratio_to(summary);
        let cpu = summaries[0].cpu_micros() / summary.cpu_micros();
        println!("{} / {name}: {ratio}, at {cpu:.2} of its CPU per operation", names[0]);
        report.push(
            "ratios",
            json!({
                "of": names[0],
                "to": name,
                "writers": writers,
                "ratio": ratio.json(),
                "cpu_ratio": cpu,
            }),
        );
        if *name == LEADERS[0].0 && writers == 64 {
            let verdict = if ratio.of_medians >= 2.0 { "reached" } else { "NOT REACHED" };
            println!("must be 2x at 64 writers: {verdict}");
        }
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments = Arguments::parse();
    let flags = &arguments.flags;
    let turns = flags.turns(1.0, 5);
    let scratch = flags.scratch()?;
    let mut report = Report::new("store_put", flags, scratch.path())?;
    println!(
        "{VALUE_LEN} B, {} keys, {} turns of {:?}",
        arguments.keys, turns.repeats, turns.duration
    );
    let mut contestants = contestants(&arguments, scratch.path())?;
    let mut lines: Vec<Series> = Vec::new();
    for writers in arguments.writers() {
        let summaries = interleave(contestants.len(), turns.repeats, |index| {
            contestants[index].measure(writers, arguments.keys, turns)
        });
        let names: Vec<&str> = contestants.iter().map(Contestant::name).collect();
        println!("\n{writers} writers");
        let workload = json!({ "writers": writers, "value_bytes": VALUE_LEN });
        report.rows(TABLE, &workload, names.iter().copied().zip(&summaries));
        print_ratios(&mut report, writers, &names, &summaries);
        for (index, (name, summary)) in names.iter().zip(&summaries).enumerate() {
            if lines.len() <= index {
                lines.push(Series { name: (*name).to_owned(), points: Vec::new() });
            }
            lines[index].points.push((writers as f64, summary.rate()));
        }
    }
    if arguments.writers().len() > 1 {
        let plot = Plot {
            title: format!("Durable puts of {VALUE_LEN} B"),
            across: "writers".to_owned(),
            up: "puts/s".to_owned(),
            axis: Axis::Logarithmic,
            series: lines,
        };
        report.plot("", &plot)?;
    }
    report.finish()
}
