//! What does a cold read cost through the store, beside reads of the same files without it?
//!
//! Unit: reads per second, latency from get to value, CPU seconds per million reads, bytes read
//! per byte of keys and values. Expected: a read takes a virtual disk about 80 us, so depth 1 gets
//! 10,000 reads/s on any driver; at depth 64 the disk decides, and a ring needs 3-5 us of CPU a
//! read where threads need twice that for their switches. A 4 KiB value with its header spans two
//! blocks, so the store reads 8 KiB; one of 1 KiB spans two in one case of four. Values of 4 KiB
//! must come at 0.95 of the rate of fio's io_uring at depth 64.
//!
//! *store* rows: closed-loop readers on the store's one thread, without a cache, on each driver.
//! *raw* rows: the same driver, on the same thread, without the store. *threads* rows: a thread
//! per read with blocking calls. *fio* rows: `registered` has its buffers and files registered
//! with the ring. Whatever is not a store reads blocks at random places of the first store's
//! segments; `8k` rows as much at a time as the store does for 4 KiB. *buffered* rows go through
//! the page cache, emptied before each turn: the longer the turn, the more is found there, as the
//! bytes read tell.

#![expect(clippy::print_stdout, reason = "a bench prints its result")]

use clap::Parser;
use kadring_benches::{
    Choice, ClosedLoop, DataFiles, DiskCounters, Driver, Fio, FioVerb, Flags, RawReads, RawRig,
    Report, RigOptions, Sample, StoreRig, Summary, Sweep, Table, Turns, Values, drivers, has_fio,
    interleave,
};
use std::error::Error;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Each store has as many values of either size.
const VALUE_LENS: [usize; 2] = [4096, 1024];
const BLOCK_LEN: usize = 4096;
/// What the store reads for a value that spans two blocks.
const SPAN_LEN: usize = 2 * BLOCK_LEN;
const DRIVERS: [&str; 5] = ["uring", "tokio-uring", "pread-1", "pread-16", "pread-64"];
const REGISTERED: [&str; 2] = ["--fixedbufs", "--registerfiles"];
const TABLE: Table = Table { name_width: 26, width: 10 };

#[derive(Debug, Parser)]
struct Arguments {
    #[command(flatten)]
    flags: Flags,
    /// Drivers to compare; the first is what ratios are of.
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    io: Vec<String>,
    /// Reads at a time [default: 1,16,64,128].
    #[arg(long, value_name = "N", value_delimiter = ',')]
    depths: Vec<usize>,
    /// Number of values of either size; at most 2,048 in a smoke run.
    #[arg(long, value_name = "N", default_value_t = 100_000)]
    keys: u64,
    /// Leaves out the stores through the page cache.
    #[arg(long)]
    direct_only: bool,
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

    /// A smoke run shows each kind of driver, and the page cache once.
    fn stores(&self) -> Result<Vec<(Driver, bool)>, String> {
        let default = if self.flags.smoke { &DRIVERS[..3] } else { &DRIVERS };
        let named = drivers(&self.io, default)?;
        let buffered = match (self.direct_only, self.flags.smoke) {
            (true, _) => 0,
            (false, true) => 1,
            (false, false) => named.len(),
        };
        let direct = named.iter().map(|driver| (*driver, true));
        Ok(direct.chain(named.iter().take(buffered).map(|driver| (*driver, false))).collect())
    }
}

/// A filled store on a driver.
struct Filled {
    name: String,
    rig: StoreRig,
    files: DataFiles,
    direct: bool,
}

/// How a contestant reads.
#[derive(Clone, Copy, Debug)]
enum How {
    /// The store of that index.
    Store(usize),
    Raw {
        len: usize,
    },
    Threads {
        len: usize,
        count: Option<usize>,
    },
    Fio {
        len: usize,
        flags: &'static [&'static str],
    },
}

/// A way of reading.
struct Contestant {
    name: String,
    how: How,
}

/// Everything a measurement needs.
struct Bench {
    stores: Vec<Filled>,
    raw: RawRig,
    counters: DiskCounters,
    keys: u64,
    turns: Turns,
}

/// The keys of the values of that size.
fn keys_of(value_len: usize, keys: u64) -> Range<u64> {
    let index = VALUE_LENS.iter().position(|len| *len == value_len).unwrap_or(0) as u64;
    index * keys..(index + 1) * keys
}

fn fill(driver: Driver, path: PathBuf, keys: u64, direct: bool) -> Result<Filled, Box<dyn Error>> {
    let options = RigOptions { cache_bytes: 0, direct, ..RigOptions::default() };
    let (mut rig, _) = StoreRig::open(driver, &path, options)?;
    for len in VALUE_LENS {
        rig.load(keys_of(len, keys), &mut Values::new(len));
    }
    rig.rest();
    let files = DataFiles::in_directory(&StoreRig::directory_in(&path))?;
    let name = format!("store {}{}", driver.name, if direct { "" } else { " buffered" });
    println!(
        "{name}: {}",
        if rig.has_registered_buffers() { "registered buffers" } else { "heap" }
    );
    Ok(Filled { name, rig, files, direct })
}

/// Values of 1 KiB are read by the stores and what is nearest to them; a smoke run leaves out what
/// differs from others in a number only.
fn contestants(stores: &[Filled], has_fio: bool, value_len: usize, smoke: bool) -> Vec<Contestant> {
    let mut all = Vec::new();
    let mut add = |name: &str, how: How| all.push(Contestant { name: name.to_owned(), how });
    let (len, flags, none) = (BLOCK_LEN, &REGISTERED, None);
    for (index, filled) in stores.iter().enumerate() {
        add(&filled.name, How::Store(index));
        if index == 0 {
            // Next to the store they are the ceiling of, so that all meet the same machine.
            add("raw", How::Raw { len });
            if has_fio {
                add("fio registered", How::Fio { len, flags });
            }
            if has_fio && value_len == VALUE_LENS[0] {
                add("fio", How::Fio { len, flags: &[] });
            }
            if value_len == VALUE_LENS[0] && !smoke {
                add("raw 8k", How::Raw { len: SPAN_LEN });
                if has_fio {
                    add("fio registered 8k", How::Fio { len: SPAN_LEN, flags });
                }
                add("threads 8k", How::Threads { len: SPAN_LEN, count: none });
                add("threads 16", How::Threads { len, count: Some(16) });
            }
            add("threads", How::Threads { len, count: none });
        }
    }
    all
}

impl Bench {
    fn measure(&mut self, how: How, value_len: usize, depth: usize) -> Sample {
        let Self { stores, raw, counters, keys, turns } = self;
        let files = &stores[0].files;
        let reads = |len| RawReads { len, depth, direct: true, turns: *turns };
        match how {
            How::Store(index) => {
                let Filled { rig, files, direct, .. } = &mut stores[index];
                if !*direct {
                    files.evict().expect("the files are there");
                }
                let choice = Choice::Uniform(keys_of(value_len, *keys));
                let clients = ClosedLoop::new(0, depth, choice, Values::new(value_len));
                clients.measure(rig, *turns, counters).0
            }
            How::Raw { len } => files.read_by_driver(raw, reads(len), counters),
            How::Threads { len, count } => {
                let reads = RawReads { depth: count.unwrap_or(depth), ..reads(len) };
                files.read_by_threads(reads, counters).expect("the files are there")
            }
            How::Fio { len, flags } => {
                let (verb, files, turns) = (FioVerb::Read, files.paths(), *turns);
                let fio = Fio { verb, files, len, depth, direct: true, turns, flags };
                fio.measure().unwrap_or_else(|error| panic!("{error}"))
            }
        }
    }
}

fn judge(report: &mut Report, names: &[&str], summaries: &[Summary]) {
    let named = |name: &str| {
        let index = names.iter().position(|known| *known == name)?;
        Some(&summaries[index])
    };
    for (ceiling, demand) in [
        ("fio", "4 KiB values, depth 64: 0.95 of fio, 4 KiB blocks"),
        ("raw", "4 KiB values, depth 64: 0.95 of the raw row, 4 KiB blocks"),
        ("raw 8k", "4 KiB values, depth 64: 0.95 of the raw row, 8 KiB"),
    ] {
        if let Some(ceiling) = named(ceiling) {
            report.judge(demand, summaries[0].ratio_to(ceiling).median >= 0.95);
        }
    }
    if let Some(threads) = named("store pread-64") {
        let share = summaries[0].cpu_micros() / threads.cpu_micros();
        report.judge("stretch: half the CPU of pread threads at depth 64", share <= 0.5);
    }
}

/// The first store, linked into a directory of its own for the raw rows.
fn raw_rig(driver: Driver, stores: &[Filled], scratch: &Path) -> Result<RawRig, Box<dyn Error>> {
    let path = scratch.join("raw");
    let mut rig = RawRig::open(driver, &path, true)?;
    stores[0].files.link_into(&mut rig, &path)?;
    Ok(rig)
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments = Arguments::parse();
    let flags = &arguments.flags;
    let turns = flags.turns(0.4, 3);
    let scratch = flags.scratch()?;
    let mut report = Report::new("store_get", flags, scratch.path())?;
    let keys = arguments.key_count();
    println!("{keys} values of each size, {} turns of {:?}", turns.repeats, turns.duration);
    let has_fio = has_fio();
    if !has_fio {
        println!("FIO ROWS SKIPPED: no fio with io_uring is installed");
    }
    let mut stores = Vec::new();
    let contenders = arguments.stores()?;
    for (driver, direct) in &contenders {
        let path = scratch.path().join(format!("{}-{direct}", driver.name));
        stores.push(fill(*driver, path, keys, *direct)?);
    }
    let raw = raw_rig(contenders[0].0, &stores, scratch.path())?;
    let counters = DiskCounters::of(scratch.path());
    let mut bench = Bench { stores, raw, counters, keys, turns };
    for value_len in VALUE_LENS {
        let contestants = contestants(&bench.stores, has_fio, value_len, flags.smoke);
        let names: Vec<&str> = contestants.iter().map(|one| one.name.as_str()).collect();
        let mut sweep = Sweep::new("reads", "at a time", value_len, TABLE);
        for depth in arguments.depths() {
            let summaries = interleave(contestants.len(), turns.repeats, |index| {
                bench.measure(contestants[index].how, value_len, depth)
            });
            sweep.add(&mut report, depth, &names, &summaries);
            if depth == 64 && value_len == VALUE_LENS[0] {
                judge(&mut report, &names, &summaries);
            }
        }
        sweep.plot(&report, |name| !name.ends_with("buffered") && !name.ends_with("16"))?;
    }
    report.finish()
}
