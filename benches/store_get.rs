//! What does a cold read of 4 KiB cost through the store, beside reads of the same files without
//! it?
//!
//! Unit: reads per second, latency from get to value, CPU seconds per million reads, bytes read
//! per byte of keys and values. Expected: a read takes a virtual disk about 80 us, so depth 1 gets
//! 10,000 reads/s on any driver; at depth 64 the disk decides, and a ring needs 3-5 us of CPU a
//! read where threads need twice that for their switches. A 4 KiB value with its header spans two
//! blocks, so the store reads 8 KiB. The store must reach 0.95 of fio's io_uring at depth 64.
//!
//! *store* rows: closed-loop readers on the store's one thread, without a cache, on each driver.
//! *driver* rows: the same driver, on the same thread, without the store. *threads* rows: a thread
//! per read with blocking calls. *fio* rows: `registered` has its buffers and files registered
//! with the ring. Whatever is not the store reads blocks at random places of the store's segments;
//! `8k` rows as much at a time as the store does.

#![expect(clippy::disallowed_methods, reason = "a bench reads the clock")]
#![expect(clippy::print_stdout, reason = "a bench prints its result")]

use clap::Parser;
use kadring_benches::{
    Axis, Choice, ClosedLoop, DataFiles, DiskCounters, Driver, Flags, Measuring, Plot, RawReads,
    Report, RigOptions, Sample, Series, StoreRig, Summary, Table, Turns, Values, cpu_of_self,
    drivers, has_fio, interleave,
};
use serde_json::json;
use std::collections::BTreeMap;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::time::Instant;

const VALUE_LEN: usize = 4096;
const BLOCK_LEN: usize = 4096;
/// What the store reads for a value that spans two blocks.
const SPAN_LEN: usize = 2 * BLOCK_LEN;
const REGISTERED: [&str; 2] = ["--fixedbufs", "--registerfiles"];
const TABLE: Table = Table { name_width: 26, width: 10 };

#[derive(Debug, Parser)]
struct Arguments {
    #[command(flatten)]
    flags: Flags,
    /// Drivers to compare.
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    io: Vec<String>,
    /// Reads at a time [default: 1,16,64,128].
    #[arg(long, value_name = "N", value_delimiter = ',')]
    depths: Vec<usize>,
    /// Number of values; at most 2,048 in a smoke run.
    #[arg(long, value_name = "N", default_value_t = 250_000)]
    keys: u64,
    /// Adds the rows through the page cache, emptied before each.
    #[arg(long)]
    buffered: bool,
}

impl Arguments {
    fn depths(&self) -> Vec<usize> {
        match (self.depths.as_slice(), self.flags.smoke) {
            ([], true) => vec![1, 64],
            ([], false) => vec![1, 16, 64, 128],
            (given, _) => given.to_vec(),
        }
    }

    fn key_count(&self) -> u64 {
        if self.flags.smoke { self.keys.min(2048) } else { self.keys }
    }
}

/// A filled store on a driver.
struct Filled {
    name: &'static str,
    rig: StoreRig,
    files: DataFiles,
    direct: bool,
}

/// How a contestant reads.
#[derive(Clone, Copy, Debug)]
enum How {
    Store,
    Driver { len: usize },
    Threads { len: usize, count: Option<usize> },
    Fio { len: usize, flags: &'static [&'static str] },
}

/// A way of reading the files of one of the stores.
struct Contestant {
    name: String,
    filled: usize,
    how: How,
}

/// Everything a measurement needs.
struct Bench {
    stores: Vec<Filled>,
    counters: DiskCounters,
    keys: u64,
    turns: Turns,
}

fn fill(driver: Driver, path: PathBuf, keys: u64, direct: bool) -> Result<Filled, Box<dyn Error>> {
    let options = RigOptions { cache_bytes: 0, direct, ..RigOptions::default() };
    let (mut rig, _) = StoreRig::open(driver, &path, options)?;
    rig.load(0..keys, &mut Values::new(VALUE_LEN));
    rig.rest();
    let files = DataFiles::in_directory(&StoreRig::directory_in(&path))?;
    Ok(Filled { name: driver.name, rig, files, direct })
}

/// A smoke run leaves out what differs from others in a number only.
fn contestants(stores: &[Filled], has_fio: bool, smoke: bool) -> Vec<Contestant> {
    let mut all = Vec::new();
    let mut add = |filled: usize, name: String, how: How| {
        let name = name + if stores[filled].direct { "" } else { " buffered" };
        all.push(Contestant { name, filled, how });
    };
    for (index, filled) in stores.iter().enumerate() {
        add(index, format!("store {}", filled.name), How::Store);
    }
    for direct in [true, false] {
        let Some(first) = stores.iter().position(|filled| filled.direct == direct) else {
            continue;
        };
        for (index, filled) in stores.iter().enumerate() {
            if filled.direct == direct && filled.name == "uring" {
                add(index, "driver uring".to_owned(), How::Driver { len: BLOCK_LEN });
                add(index, "driver uring 8k".to_owned(), How::Driver { len: SPAN_LEN });
            }
        }
        add(first, "threads".to_owned(), How::Threads { len: BLOCK_LEN, count: None });
        add(first, "threads 8k".to_owned(), How::Threads { len: SPAN_LEN, count: None });
        add(first, "threads 16".to_owned(), How::Threads { len: BLOCK_LEN, count: Some(16) });
        if has_fio {
            add(first, "fio".to_owned(), How::Fio { len: BLOCK_LEN, flags: &[] });
            let flags = &REGISTERED;
            add(first, "fio registered".to_owned(), How::Fio { len: BLOCK_LEN, flags });
            add(first, "fio registered 8k".to_owned(), How::Fio { len: SPAN_LEN, flags });
        }
    }
    all.retain(|contestant| !smoke || !contestant.name.contains("8k"));
    all
}

impl Bench {
    fn measure(&mut self, contestant: &Contestant, depth: usize) -> Sample {
        let Self { stores, counters, keys, turns } = self;
        let Filled { rig, files, direct, .. } = &mut stores[contestant.filled];
        if !*direct {
            files.evict().expect("the files are there");
        }
        let reads = |len| RawReads { len, depth, direct: *direct, turns: *turns };
        match contestant.how {
            How::Store => measure_store(rig, depth, *keys, *turns, counters),
            How::Driver { len } => files.read_by_driver(rig, reads(len), counters),
            How::Threads { len, count } => {
                let reads = RawReads { depth: count.unwrap_or(depth), ..reads(len) };
                files.read_by_threads(reads, counters).expect("the files are there")
            }
            How::Fio { len, flags } => {
                let sample = files.read_by_fio(reads(len), "io_uring", flags);
                sample.unwrap_or_else(|error| panic!("{error}"))
            }
        }
    }
}

fn measure_store(
    rig: &mut StoreRig,
    depth: usize,
    keys: u64,
    turns: Turns,
    counters: &DiskCounters,
) -> Sample {
    let values = Values::new(VALUE_LEN);
    let user_bytes = values.user_bytes();
    let mut clients = ClosedLoop::new(0, depth, Choice::Uniform(keys), values);
    clients.run_until(rig, Instant::now() + turns.warm_up);
    clients.forget();
    let before = counters.read();
    let measuring = Measuring::start(cpu_of_self());
    clients.run_until(rig, Instant::now() + turns.duration);
    let latencies = std::mem::take(&mut clients.gets);
    let gets = latencies.count();
    let sample = measuring.finish(cpu_of_self(), gets, latencies);
    let bytes = counters.read().since(before);
    clients.drain(rig);
    sample.with_disk(bytes, gets * user_bytes)
}

/// Prints how the first store does against everybody else.
fn print_ratios(report: &mut Report, depth: usize, names: &[&str], summaries: &[Summary]) {
    for (name, summary) in names.iter().zip(summaries).skip(1) {
        let ratio = summaries[0].ratio_to(summary);
        let cpu = summaries[0].cpu_micros() / summary.cpu_micros();
        println!("{} / {name}: {ratio}, at {cpu:.2} of its CPU per operation", names[0]);
        report.push(
            "ratios",
            json!({
                "of": names[0],
                "to": name,
                "depth": depth,
                "ratio": ratio.json(),
                "cpu_ratio": cpu,
            }),
        );
        if *name == "fio" && depth == 64 {
            let verdict = if ratio.of_medians >= 0.95 { "reached" } else { "NOT REACHED" };
            println!("must be 0.95 of fio at depth 64: {verdict}");
        }
    }
}

fn fill_all(arguments: &Arguments, scratch: &Path) -> Result<Vec<Filled>, Box<dyn Error>> {
    let mut stores = Vec::new();
    let all = ["uring", "pread-1", "pread-16", "pread-64"];
    let default = if arguments.flags.smoke { &all[..2] } else { &all };
    for direct in if arguments.buffered { &[true, false][..] } else { &[true] } {
        for driver in drivers(&arguments.io, default)? {
            let path = scratch.join(format!("{}-{direct}", driver.name));
            stores.push(fill(driver, path, arguments.key_count(), *direct)?);
        }
    }
    Ok(stores)
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments = Arguments::parse();
    let flags = &arguments.flags;
    let turns = flags.turns(1.0, 3);
    let scratch = flags.scratch()?;
    let mut report = Report::new("store_get", flags, scratch.path())?;
    let keys = arguments.key_count();
    println!("{VALUE_LEN} B, {keys} keys, {} turns of {:?}", turns.repeats, turns.duration);
    let has_fio = has_fio();
    if !has_fio {
        println!("FIO ROWS SKIPPED: no fio with io_uring is installed");
    }
    let stores = fill_all(&arguments, scratch.path())?;
    let contestants = contestants(&stores, has_fio, flags.smoke);
    let names: Vec<&str> = contestants.iter().map(|one| one.name.as_str()).collect();
    let mut bench = Bench { stores, counters: DiskCounters::of(scratch.path()), keys, turns };
    let mut lines: BTreeMap<&str, Vec<(f64, f64)>> = BTreeMap::new();
    for depth in arguments.depths() {
        let summaries = interleave(contestants.len(), turns.repeats, |index| {
            bench.measure(&contestants[index], depth)
        });
        println!("\ndepth {depth}");
        let workload = json!({ "depth": depth, "value_bytes": VALUE_LEN });
        report.rows(TABLE, &workload, names.iter().copied().zip(&summaries));
        print_ratios(&mut report, depth, &names, &summaries);
        for (name, summary) in names.iter().zip(&summaries) {
            lines.entry(name).or_default().push((depth as f64, summary.rate()));
        }
    }
    if arguments.depths().len() > 1 {
        let line = |(name, points): (&str, _)| Series { name: name.to_owned(), points };
        let plot = Plot {
            title: format!("Cold reads of {VALUE_LEN} B"),
            across: "reads at a time".to_owned(),
            up: "reads/s".to_owned(),
            axis: Axis::Logarithmic,
            series: lines.into_iter().map(line).collect(),
        };
        report.plot("", &plot)?;
    }
    report.finish()
}
