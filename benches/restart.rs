//! How long after its start does a store with many keys give its first correct answer?
//!
//! Unit: milliseconds from the start of the process to the value of a random key. Expected without
//! checkpoints: every record is read, so 10 M keys of 100 B (1.9 GB) take the disk a second at
//! best, and decoding and indexing at about 1 us a record ten; with a checkpoint of 16 B a key it
//! is 160 MB: 0.1-0.2 s. Must be below 1 s, aims at 0.2 s.
//!
//! A first process fills the store and is gone without an orderly end; then fresh processes open
//! it one after another: the first finds what a kill leaves, the others what an orderly end leaves.
//! Each checks the values of a few keys. The page cache plays no part where files are opened with
//! O_DIRECT.

#![expect(clippy::disallowed_methods, reason = "a bench reads the clock")]
#![expect(clippy::print_stdout, reason = "a bench prints its result")]

use clap::Parser;
use kadring::io::process::resident_bytes;
use kadring_benches::{
    DiskCounters, Driver, Flags, Got, Report, RigOptions, StoreRig, Table, Values, Wait, drivers,
    median, number, run_again,
};
use serde_json::{Value, json};
use std::error::Error;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// With fewer keys a restart proves nothing.
const KEYS_JUDGED: u64 = 10_000_000;
/// Keys whose values are checked after a start.
const CHECKED: u64 = 100;
const TABLE: Table = Table { name_width: 22, width: 12 };
const COLUMNS: [&str; 6] =
    ["start ms", "recovery ms", "first GET ms", "in all ms", "MiB read", "RSS B/key"];

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
    started: Instant,
) -> Result<(), Box<dyn Error>> {
    let counters = DiskCounters::of(path);
    let (resident_before, before) = (resident_bytes(), counters.read());
    let (mut rig, times) = StoreRig::open(driver, path, RigOptions::default())?;
    let opened = started.elapsed();
    let values = Values::new(value_len);
    let mut random = fastrand::Rng::new();
    check(&mut rig, &values, random.u64(..keys));
    let answered = started.elapsed();
    let read = counters.read().since(before).process_read;
    for _ in 0..CHECKED {
        check(&mut rig, &values, random.u64(..keys));
    }
    assert_eq!(rig.status().keys, keys, "every key is there");
    let resident = resident_bytes().saturating_sub(resident_before);
    rig.close();
    let millis = |duration: std::time::Duration| duration.as_secs_f64() * 1e3;
    let said = json!({
        "start_ms": millis(opened.saturating_sub(times.recovery)),
        "recovery_ms": millis(times.recovery),
        "first_get_ms": millis(answered - opened),
        "all_ms": millis(answered),
        "read_mib": read as f64 / 1_048_576.0,
        "resident_per_key": resident as f64 / keys as f64,
        "records": times.records,
        "segments": times.segments,
    });
    println!("{said}");
    Ok(())
}

fn row(table: Table, name: &str, said: &[Value]) -> Result<(), Box<dyn Error>> {
    let names =
        ["start_ms", "recovery_ms", "first_get_ms", "all_ms", "read_mib", "resident_per_key"];
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
    let Arguments { flags, io, keys, value_bytes, fill: filled, reopen: reopened } =
        Arguments::parse();
    let drivers = drivers(&io, &["uring", "pread-4"])?;
    if let Some(path) = filled {
        return fill(drivers[0], &path, keys, value_bytes);
    }
    if let Some(path) = reopened {
        return reopen(drivers[0], &path, keys, value_bytes, started);
    }
    let keys = if flags.smoke { keys.min(50_000) } else { keys };
    let repeats = flags.turns(0.0, 3).repeats;
    let scratch = flags.scratch()?;
    let mut report = Report::new("restart", &flags, scratch.path())?;
    println!(
        "{keys} keys of {value_bytes} B, 1 start after a kill, {repeats} after an orderly end"
    );
    TABLE.row("", COLUMNS);
    let path = scratch.path().join("store");
    let again = |what: &str, driver: Driver| {
        run_again(&[
            format!("--{what}={}", path.display()),
            format!("--io={}", driver.name),
            format!("--keys={keys}"),
            format!("--value-bytes={value_bytes}"),
        ])
    };
    for driver in &drivers {
        again("fill", *driver)?;
        let killed = again("reopen", *driver)?;
        row(TABLE, &format!("{} after kill", driver.name), std::slice::from_ref(&killed))?;
        let ended: Vec<Value> =
            (0..repeats).map(|_| again("reopen", *driver)).collect::<Result<_, _>>()?;
        row(TABLE, &format!("{} after end", driver.name), &ended)?;
        let all: Vec<f64> =
            ended.iter().map(|said| number(said, "all_ms")).collect::<Result<_, _>>()?;
        let verdict = match median(&all) <= 1e3 {
            _ if keys < KEYS_JUDGED => "not judged with fewer",
            true => "reached",
            false => "NOT REACHED",
        };
        println!("{}: must be 1 s with 10 M keys: {verdict}", driver.name);
        report.push(
            "rows",
            json!({
                "contestant": driver.name,
                "keys": keys,
                "value_bytes": value_bytes,
                "after_kill": killed,
                "after_end": ended,
            }),
        );
        std::fs::remove_dir_all(&path)?;
    }
    report.finish()
}
