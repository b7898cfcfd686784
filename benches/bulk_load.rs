//! How fast can a store be filled, and what does a key cost then?
//!
//! Unit: records per second on one thread, bytes written per byte of keys and values, resident
//! bytes per key. Expected: a record of 256 B costs about 0.15 us for the key's id, 0.1 us for
//! checksums, 0.1 us for copies and 0.3 us for the index, so 1 M/s is within reach, and the disk
//! takes its 296 MB/s. A record of 256 B with a key of 16 B is 296 B long: 1.09 times what the user
//! counts; on a fresh store the zeros that go ahead double that.
//!
//! Then every key is overwritten twice in the same order, with time for compaction between pieces.
//! The segments that the second of these loads fills are files of segments freed before: no zeros
//! go ahead, and what it writes per byte of keys and values, copies of compaction and manifests
//! included, is what a store that recycles costs (at most 1.1 is wanted). It has no checkpoints.
//!
//! The keys are new and in random order of their ids. One thread puts them as fast as the store
//! takes them and waits for durability once, in the end. Each load is a process of its own:
//! resident bytes are what it grew by, with the allocator's slack and what was freed but kept.

#![expect(clippy::print_stdout, reason = "a bench prints its result")]

use clap::Parser;
use kadring::io::process::resident_bytes;
use kadring_benches::{
    DiskBytes, DiskCounters, Driver, Flags, Latencies, Measuring, Report, RigOptions, Sample,
    StoreRig, Table, Values, cpu_of_self, drivers, interleave, median, number, run_again,
};
use serde_json::json;
use std::error::Error;
use std::path::{Path, PathBuf};

const TABLE: Table = Table { name_width: 16, width: 10 };

#[derive(Debug, Parser)]
struct Arguments {
    #[command(flatten)]
    flags: Flags,
    /// Drivers to compare.
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    io: Vec<String>,
    /// Number of records; at most 50,000 in a smoke run.
    #[arg(long, value_name = "N", default_value_t = 5_000_000)]
    keys: u64,
    /// Bytes of a value.
    #[arg(long, value_name = "N", default_value_t = 256)]
    value_bytes: usize,
    /// MiB of a segment; 4 in a smoke run. There must be many, so that some are recycled.
    #[arg(long, value_name = "N", default_value_t = 64)]
    segment_mib: u64,
    /// Fills a store there and says how it went; the bench starts itself so.
    #[arg(long, value_name = "D", hide = true)]
    fill: Option<PathBuf>,
}

/// What is loaded, and into what.
#[derive(Clone, Copy, Debug)]
struct Load {
    keys: u64,
    value_len: usize,
    segment_mib: u64,
}

/// What a load leaves behind, beside its speed.
#[derive(Clone, Copy, Debug)]
struct Left {
    resident_per_key: f64,
    frame_bytes_per_user_byte: f64,
    segment_bytes: f64,
    /// Bytes that the last load wrote, in recycled segments, and its frames alone.
    recycled_bytes_per_user_byte: f64,
    recycled_frames_per_user_byte: f64,
}

/// What a load into recycled segments took, in bytes.
struct Recycled {
    written: u64,
    frames: u64,
}

/// Overwrites all keys twice; measures the second time. Compaction has its turn after every half
/// of a segment: files freed in time are used again.
fn overwrite(
    rig: &mut StoreRig,
    counters: &DiskCounters,
    load: &Load,
    values: &mut Values,
) -> Recycled {
    let step = (load.segment_mib << 19) / values.record_bytes();
    let mut pass = |rig: &mut StoreRig| {
        let (before, frames_before) = (counters.read(), rig.status().frame_bytes);
        for first in (0..load.keys).step_by(usize::try_from(step).expect("a segment's keys")) {
            rig.load(first..load.keys.min(first + step), values);
            rig.tidy();
        }
        let written = counters.read().since(before).process_written;
        Recycled { written, frames: rig.status().frame_bytes - frames_before }
    };
    pass(rig);
    pass(rig)
}

/// Fills a new store in `path`, and says in JSON how it went.
fn fill(driver: Driver, path: &Path, load: &Load) -> Result<(), Box<dyn Error>> {
    let Load { keys, value_len, segment_mib } = *load;
    let mut values = Values::new(value_len);
    let user_bytes = keys * values.user_bytes();
    let options =
        RigOptions { cache_bytes: 0, segment_bytes: segment_mib << 20, ..RigOptions::default() };
    let (mut rig, _) = StoreRig::open(driver, path, options)?;
    let counters = DiskCounters::of(path);
    let resident_before = resident_bytes();
    let before = counters.read();
    let measuring = Measuring::start(cpu_of_self());
    rig.load(0..keys, &mut values);
    rig.settle();
    let sample = measuring.finish(cpu_of_self(), keys, Latencies::default());
    let bytes = counters.read().since(before);
    rig.rest();
    let resident = resident_bytes().saturating_sub(resident_before);
    let status = rig.status();
    // Keys that share 40 bits with another one are counted once they are told apart.
    let alike = ((keys * keys) >> 38) + 2;
    assert!(status.keys.abs_diff(keys) <= alike, "{} of {keys} keys are there", status.keys);
    let recycled = overwrite(&mut rig, &counters, load, &mut values);
    rig.close();
    let said = json!({
        "rate": sample.rate,
        "cpu_micros": sample.cpu_micros,
        "process_written": bytes.process_written,
        "device_written": bytes.device_written,
        "resident_per_key": resident as f64 / keys as f64,
        "frame_bytes_per_user_byte": status.frame_bytes as f64 / user_bytes as f64,
        "segment_bytes": status.segment_bytes,
        "recycled_bytes_per_user_byte": recycled.written as f64 / user_bytes as f64,
        "recycled_frames_per_user_byte": recycled.frames as f64 / user_bytes as f64,
    });
    println!("{said}");
    Ok(())
}

/// Has a child fill a store in `path`, and removes it.
fn load(driver: Driver, path: &Path, load: &Load) -> Result<(Sample, Left), Box<dyn Error>> {
    let Load { keys, value_len, segment_mib } = *load;
    let arguments = [
        format!("--fill={}", path.display()),
        format!("--io={}", driver.name),
        format!("--keys={keys}"),
        format!("--value-bytes={value_len}"),
        format!("--segment-mib={segment_mib}"),
    ];
    let said = run_again(&arguments)?;
    std::fs::remove_dir_all(path)?;
    let bytes = |name| number(&said, name).map(|bytes| bytes as u64);
    let disk = DiskBytes {
        process_written: bytes("process_written")?,
        device_written: bytes("device_written")?,
        ..DiskBytes::default()
    };
    let (rate, cpu_micros) = (number(&said, "rate")?, number(&said, "cpu_micros")?);
    let sample = Sample { rate, cpu_micros, latencies: Latencies::default(), disk: None };
    let left = Left {
        resident_per_key: number(&said, "resident_per_key")?,
        frame_bytes_per_user_byte: number(&said, "frame_bytes_per_user_byte")?,
        segment_bytes: number(&said, "segment_bytes")?,
        recycled_bytes_per_user_byte: number(&said, "recycled_bytes_per_user_byte")?,
        recycled_frames_per_user_byte: number(&said, "recycled_frames_per_user_byte")?,
    };
    Ok((sample.with_disk(disk, keys * Values::new(value_len).user_bytes()), left))
}

fn main() -> Result<(), Box<dyn Error>> {
    let Arguments { flags, io, keys, value_bytes, segment_mib, fill: child } = Arguments::parse();
    let drivers = drivers(&io, &["uring", "pread-4"])?;
    let mut plan = Load { keys, value_len: value_bytes, segment_mib };
    if let Some(path) = child {
        return fill(drivers[0], &path, &plan);
    }
    if flags.smoke {
        (plan.keys, plan.segment_mib) = (keys.min(50_000), 4);
    }
    let keys = plan.keys;
    let repeats = flags.turns(0.0, 3).repeats;
    let scratch = flags.scratch()?;
    let mut report = Report::new("bulk_load", &flags, scratch.path())?;
    println!("{keys} x {value_bytes} B, {repeats} turns, fresh stores");
    let mut left: Vec<Vec<Left>> = vec![Vec::new(); drivers.len()];
    let summaries = interleave(drivers.len(), repeats, |index| {
        let path = scratch.path().join(drivers[index].name);
        let (sample, one) = load(drivers[index], &path, &plan)
            .unwrap_or_else(|error| panic!("{:?}: {error}", drivers[index]));
        left[index].push(one);
        sample
    });
    let workload =
        json!({ "keys": keys, "value_bytes": value_bytes, "segment_mib": plan.segment_mib });
    let names = drivers.iter().map(|driver| driver.name);
    report.rows(TABLE, &workload, names.zip(&summaries));
    for (driver, left) in drivers.iter().zip(&left) {
        let median_of =
            |figure: fn(&Left) -> f64| median(&left.iter().map(figure).collect::<Vec<_>>());
        let resident = median_of(|left| left.resident_per_key);
        let frames = median_of(|left| left.frame_bytes_per_user_byte);
        let segments = median_of(|left| left.segment_bytes);
        println!(
            "{}: {resident:.1} resident bytes/key, frames {frames:.2} B per user byte, \
             {:.0} MiB of segments",
            driver.name,
            segments / 1_048_576.0
        );
        let recycled = median_of(|left| left.recycled_bytes_per_user_byte);
        let recycled_frames = median_of(|left| left.recycled_frames_per_user_byte);
        println!(
            "{}: overwriting in recycled segments: {recycled:.3} B written \
             per user byte, frames {recycled_frames:.3}",
            driver.name,
        );
        report.push(
            "left",
            json!({
                "contestant": driver.name,
                "resident_bytes_per_key": resident,
                "frame_bytes_per_user_byte": frames,
                "segment_bytes": segments,
                "recycled_bytes_per_user_byte": recycled,
                "recycled_frames_per_user_byte": recycled_frames,
            }),
        );
    }
    let verdict = if summaries[0].rate() >= 1e6 { "reached" } else { "not reached" };
    println!("aim of 1,000,000 records/s: {verdict}");
    report.finish()
}
