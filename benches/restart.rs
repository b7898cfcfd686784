//! How long after its start does a store with many keys give its first correct answer?
//!
//! Unit: milliseconds from the start of the process to the value of a random key. Expected without
//! checkpoints: every record is read, so 10 M keys of 100 B (1.9 GB) take the disk a second at
//! best, and decoding and indexing at about 1 us a record ten; with a checkpoint of 16 B a key it
//! is 160 MB: 0.1-0.2 s. Must be below 1 s, aims at 0.2 s.
//!
//! A first process fills the store and is gone without an orderly end; then fresh processes open
//! it one after another: the first finds what a kill leaves (a checkpoint and up to 4 times the
//! index's bytes of log after it), the others what an orderly end leaves. Those read the checkpoint
//! in both ways; then it is taken away, and they go by footers (where segments have one: values of
//! about 1 KiB and more) and by frames alone. Each checks the values of a few keys. The page cache
//! plays no part where files are opened with O_DIRECT; a mapped checkpoint is read through it.

#![expect(clippy::disallowed_methods, reason = "a bench reads the clock")]
#![expect(clippy::print_stdout, reason = "a bench prints its result")]

use clap::{Parser, ValueEnum};
use kadring::io::process::resident_bytes;
use kadring_benches::{
    DiskCounters, Driver, Flags, Got, Report, RigOptions, StoreRig, Table, Values, Wait, drivers,
    median, number, run_again,
};
use serde_json::{Value, json};
use std::error::Error;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::time::Instant;
use storage::{CheckpointLoader, CheckpointOptions};

/// With fewer keys a restart proves nothing.
const KEYS_JUDGED: u64 = 10_000_000;
/// Keys whose values are checked after a start.
const CHECKED: u64 = 100;
const TABLE: Table = Table { name_width: 22, width: 12 };
const COLUMNS: [&str; 8] = [
    "start ms",
    "recovery ms",
    "first GET ms",
    "in all ms",
    "end ms",
    "MiB read",
    "RSS B/key",
    "replayed",
];

#[derive(Debug, Parser)]
struct Arguments {
    #[command(flatten)]
    flags: Flags,
    /// Drivers to compare.
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    io: Vec<String>,
    /// Number of keys; at most 50,000 in a smoke run.
    #[arg(long, value_name = "N", default_value_t = 10_000_000)]
    keys: u64,
    /// Bytes of a value.
    #[arg(long, value_name = "N", default_value_t = 100)]
    value_bytes: usize,
    /// Fills the store there; the bench starts itself so.
    #[arg(long, value_name = "D", hide = true)]
    fill: Option<PathBuf>,
    /// Opens the store there and says how long it took; the bench starts itself so.
    #[arg(long, value_name = "D", hide = true)]
    reopen: Option<PathBuf>,
    /// What the store starts from.
    #[arg(long, value_enum, default_value_t = Way::Direct, hide = true)]
    way: Way,
}

/// What a store starts from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Way {
    /// The checkpoint, read with O_DIRECT.
    Direct,
    /// The checkpoint, mapped.
    Mapped,
    /// Footers; no checkpoint is written either.
    Footers,
    /// Frames alone.
    Frames,
}

impl Way {
    const ALL: [Self; 4] = [Self::Direct, Self::Mapped, Self::Footers, Self::Frames];

    fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Mapped => "mapped",
            Self::Footers => "footers",
            Self::Frames => "frames",
        }
    }

    fn options(self) -> RigOptions {
        let checkpoints = match self {
            Self::Direct => {
                CheckpointOptions { loader: CheckpointLoader::Direct, ..Default::default() }
            }
            Self::Mapped => {
                CheckpointOptions { loader: CheckpointLoader::Mapped, ..Default::default() }
            }
            Self::Footers | Self::Frames => CheckpointOptions::NEVER,
        };
        RigOptions { checkpoints, footers: self != Self::Frames, ..RigOptions::default() }
    }
}

/// Takes the checkpoints away.
fn remove_checkpoints(path: &Path) -> std::io::Result<()> {
    for file in std::fs::read_dir(StoreRig::directory_in(path))? {
        let file = file?.path();
        if file.extension() == Some(OsStr::new("checkpoint")) {
            std::fs::remove_file(file)?;
        }
    }
    Ok(())
}

/// Fills the store and ends without order.
fn fill(driver: Driver, path: &Path, keys: u64, value_len: usize) -> Result<(), Box<dyn Error>> {
    let (mut rig, _) = StoreRig::open(driver, path, RigOptions::default())?;
    rig.load(0..keys, &mut Values::new(value_len));
    rig.settle();
    println!("{}", json!({ "segment_bytes": rig.status().segment_bytes }));
    Ok(())
}

/// Waits for the value of a key, and checks it.
fn check(rig: &mut StoreRig, values: &Values, key: u64) {
    let value = match rig.get(key) {
        Got::Missing => None,
        Got::Found(value) => Some(value),
        Got::Pending(wanted) => loop {
            rig.turn(Wait::Completion);
            if let Some((read, value)) = rig.take_reads().next() {
                assert_eq!(read, wanted, "one read at a time");
                break value;
            }
        },
    };
    let value = value.unwrap_or_else(|| panic!("key {key} is missing"));
    assert!(values.is_of(key, &value), "key {key} has its own value");
}

/// Opens the store, and says in JSON how long everything took since this process began.
fn reopen(
    driver: Driver,
    path: &Path,
    keys: u64,
    value_len: usize,
    way: Way,
    started: Instant,
) -> Result<(), Box<dyn Error>> {
    let counters = DiskCounters::of(path);
    let (resident_before, before) = (resident_bytes(), counters.read());
    let (mut rig, times) = StoreRig::open(driver, path, way.options())?;
    let opened = started.elapsed();
    let values = Values::new(value_len);
    let mut random = fastrand::Rng::new();
    check(&mut rig, &values, random.u64(..keys));
    let answered = started.elapsed();
    let read = counters.read().since(before).process_read;
    for _ in 0..CHECKED {
        check(&mut rig, &values, random.u64(..keys));
    }
    // The count is off by keys whose 40-bit prefixes coincide: about 50 of 10 M.
    let missing = rig.status().keys.abs_diff(keys);
    assert!(missing <= 10 + keys / 100_000, "{missing} keys are not there");
    let resident = resident_bytes().saturating_sub(resident_before);
    let closing = Instant::now();
    rig.close();
    let closing = closing.elapsed();
    let sources = times.sources;
    let by_checkpoint = matches!(way, Way::Direct | Way::Mapped);
    assert!(!by_checkpoint || sources.checkpoint_refused.is_none(), "{sources:?}");
    let millis = |duration: std::time::Duration| duration.as_secs_f64() * 1e3;
    let said = json!({
        "start_ms": millis(opened.saturating_sub(times.recovery)),
        "recovery_ms": millis(times.recovery),
        "first_get_ms": millis(answered - opened),
        "all_ms": millis(answered),
        "read_mib": read as f64 / 1_048_576.0,
        "resident_per_key": resident as f64 / keys as f64,
        "close_ms": millis(closing),
        "checkpoint_slots": sources.checkpoint_slots,
        "records_replayed": sources.records_replayed,
        "segments": times.segments,
        "segments_covered": sources.segments_covered,
        "segments_from_footers": sources.segments_from_footers,
        "segments_scanned": sources.segments_scanned,
    });
    println!("{said}");
    Ok(())
}

fn row(table: Table, name: &str, said: &[Value]) -> Result<(), Box<dyn Error>> {
    let names = [
        "start_ms",
        "recovery_ms",
        "first_get_ms",
        "all_ms",
        "close_ms",
        "read_mib",
        "resident_per_key",
        "records_replayed",
    ];
    let mut cells = Vec::new();
    for name in names {
        let each: Result<Vec<f64>, String> = said.iter().map(|said| number(said, name)).collect();
        cells.push(format!("{:.1}", median(&each?)));
    }
    table.row(name, cells.iter().map(String::as_str));
    Ok(())
}

fn main() -> Result<(), Box<dyn Error>> {
    let started = Instant::now();
    let Arguments { flags, io, keys, value_bytes, fill: filled, reopen: reopened, way } =
        Arguments::parse();
    let drivers = drivers(&io, &["uring", "pread-4"])?;
    if let Some(path) = filled {
        return fill(drivers[0], &path, keys, value_bytes);
    }
    if let Some(path) = reopened {
        return reopen(drivers[0], &path, keys, value_bytes, way, started);
    }
    let keys = if flags.smoke { keys.min(50_000) } else { keys };
    let repeats = flags.turns(0.0, 3).repeats;
    let scratch = flags.scratch()?;
    let mut report = Report::new("restart", &flags, scratch.path())?;
    println!(
        "{keys} keys of {value_bytes} B, 1 start after a kill, {repeats} in each way after an end \
         in order"
    );
    TABLE.row("", COLUMNS);
    let path = scratch.path().join("store");
    let again = |what: &str, driver: Driver, way: Way| {
        run_again(&[
            format!("--{what}={}", path.display()),
            format!("--io={}", driver.name),
            format!("--keys={keys}"),
            format!("--value-bytes={value_bytes}"),
            format!("--way={}", way.name()),
        ])
    };
    let entry = |driver: Driver, way: &str, starts: Value| {
        json!({
            "contestant": driver.name,
            "way": way,
            "keys": keys,
            "value_bytes": value_bytes,
            "starts": starts,
        })
    };
    for driver in &drivers {
        again("fill", *driver, Way::Direct)?;
        let killed = again("reopen", *driver, Way::Direct)?;
        row(TABLE, &format!("{} after kill", driver.name), std::slice::from_ref(&killed))?;
        report.push("rows", entry(*driver, "after kill", json!([killed])));
        for way in Way::ALL {
            if way == Way::Footers {
                remove_checkpoints(&path)?;
            }
            let starts: Vec<Value> =
                (0..repeats).map(|_| again("reopen", *driver, way)).collect::<Result<_, _>>()?;
            let name = format!("{} {}", driver.name, way.name());
            row(TABLE, &name, &starts)?;
            let all: Vec<f64> =
                starts.iter().map(|said| number(said, "all_ms")).collect::<Result<_, _>>()?;
            let verdict = match median(&all) <= 1e3 {
                _ if keys < KEYS_JUDGED => "not judged with fewer",
                true => "reached",
                false => "NOT REACHED",
            };
            println!("{name}: must be 1 s with 10 M keys: {verdict}");
            report.push("rows", entry(*driver, way.name(), json!(starts)));
        }
        std::fs::remove_dir_all(&path)?;
    }
    report.finish()
}
