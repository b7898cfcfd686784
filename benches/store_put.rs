//! How many durable puts of 1 KiB does a store take, beside the logs that ordinary engines have?
//!
//! Unit: puts per second, latency from put to durable, CPU seconds per million puts, bytes written
//! per byte of keys and values. Expected: a durable write takes a virtual disk 100-200 us, an
//! fdatasync with its file-system journal some times that; so one writer gets 5,000-10,000 puts/s,
//! and 64 writers, who share frames, 30 times that, until copying and checksums (about 2 us a put)
//! or the disk's bandwidth decide. Against append + fdatasync at 64 writers the store must reach
//! 2x, and aims at 4x.
//!
//! *store* rows: closed-loop writers on the store's one thread, on each driver; `buffered` through
//! the page cache, synced. The stores are not new: their segments are recycled, compaction is part
//! of the work. *raw* row: the frames that `store uring` wrote in the same repeat, of their mean
//! size and as many at a time, through the same driver without a store; a write counts as the puts
//! that a frame held. *fio* row: the same by fio's io_uring, which shares no code with us.
//! Latencies of both are of writes. *leader* rows: a thread per writer, and a leader who writes and
//! syncs for all (`harness/leader_log.rs`): `append` grows its file, `overwrite` writes over
//! prepared blocks, `direct` does so with O_DIRECT and O_DSYNC.

#![expect(clippy::print_stdout, reason = "a bench prints its result")]

use clap::Parser;
use kadring_benches::{
    Choice, ClosedLoop, DiskCounters, Driver, Fio, FioVerb, Flags, FrameCounts, LeaderLog, LogRig,
    RawWrites, Report, RigOptions, Sample, StoreRig, Summary, Sweep, SyncBy, Table, Turns, Values,
    drivers, has_fio, interleave,
};
use std::error::Error;
use std::path::{Path, PathBuf};

const VALUE_LEN: usize = 1024;
const LEADERS: [(&str, SyncBy); 3] = [
    ("leader append", SyncBy::AppendFdatasync),
    ("leader overwrite", SyncBy::OverwriteFdatasync),
    ("leader direct", SyncBy::DirectDsync),
];
const DRIVERS: [&str; 5] = ["uring", "tokio-uring", "pread-1", "pread-16", "pread-64"];
/// A store must have recycled segments before it has written this much.
const AGED_BYTES_MAX: u64 = 4 << 30;
/// The file that fio writes over and over.
const FIO_FILE_LEN: usize = 256 << 20;
const TABLE: Table = Table { name_width: 26, width: 10 };

#[derive(Debug, Parser)]
struct Arguments {
    #[command(flatten)]
    flags: Flags,
    /// Drivers to compare; the first is what ratios are of.
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    io: Vec<String>,
    /// Numbers of writers [default: 1,16,64,256].
    #[arg(long, value_name = "N", value_delimiter = ',')]
    writers: Vec<usize>,
    /// Keys that are written over and over.
    #[arg(long, value_name = "N", default_value_t = 100_000)]
    keys: u64,
    /// Leaves out the stores through the page cache.
    #[arg(long)]
    direct_only: bool,
}

impl Arguments {
    fn writers(&self) -> Vec<usize> {
        match (self.writers.as_slice(), self.flags.smoke) {
            ([], true) => vec![1, 64],
            ([], false) => vec![1, 16, 64, 256],
            (given, _) => given.to_vec(),
        }
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

/// Who takes part.
enum Contestant {
    Store { name: String, rig: Box<StoreRig> },
    Raw { name: String, rig: Box<LogRig> },
    Fio { file: PathBuf },
    Leader { name: &'static str, log: LeaderLog },
}

/// How much is put, and how.
struct Plan {
    turns: Turns,
    keys: u64,
    counters: DiskCounters,
    /// What the first store wrote in its last turn.
    frames: FrameCounts,
}

impl Contestant {
    fn store(
        driver: Driver,
        scratch: &Path,
        direct: bool,
        arguments: &Arguments,
    ) -> Result<Self, Box<dyn Error>> {
        let name = format!("store {}{}", driver.name, if direct { "" } else { " buffered" });
        let path = scratch.join(&name);
        let options = RigOptions { direct, cache_bytes: 0, ..RigOptions::default() };
        let (mut rig, _) = StoreRig::open(driver, &path, options)?;
        if !arguments.flags.smoke {
            rig.age(arguments.keys, &mut Values::new(VALUE_LEN), AGED_BYTES_MAX);
        }
        let buffers = if rig.has_registered_buffers() { "registered buffers" } else { "heap" };
        println!("{name}: {buffers}");
        Ok(Self::Store { name, rig: Box::new(rig) })
    }

    fn name(&self) -> &str {
        match self {
            Self::Store { name, .. } | Self::Raw { name, .. } => name,
            Self::Fio { .. } => "fio",
            Self::Leader { name, .. } => name,
        }
    }

    fn measure(&mut self, writers: usize, first: bool, plan: &mut Plan) -> Sample {
        let mut values = Values::new(VALUE_LEN);
        match self {
            Self::Store { rig, .. } => {
                let keys = Choice::Uniform(0..plan.keys);
                let clients = ClosedLoop::new(writers, 0, keys, values);
                let (sample, frames) = clients.measure(rig, plan.turns, &plan.counters);
                if first {
                    plan.frames = frames;
                }
                sample
            }
            Self::Raw { rig, .. } => {
                RawWrites::like(rig, &plan.frames).measure(plan.turns, values.user_bytes())
            }
            Self::Fio { file } => {
                let fio = Fio {
                    verb: FioVerb::Write,
                    files: vec![file.clone()],
                    len: plan.frames.frame_len(),
                    depth: plan.frames.whole_depth(),
                    direct: true,
                    turns: plan.turns,
                    flags: &["--fixedbufs", "--registerfiles"],
                };
                let mut sample = fio.measure().unwrap_or_else(|error| panic!("{error}"));
                let per_write = plan.frames.records_per_frame();
                sample.rate *= per_write;
                sample.cpu_micros /= per_write;
                sample
            }
            Self::Leader { log, .. } => {
                log.measure(writers, &mut values, plan.turns).expect("its file can be emptied")
            }
        }
    }
}

/// A file that was written through and synced.
fn prepare_fio(scratch: &Path, smoke: bool) -> Result<Option<Contestant>, Box<dyn Error>> {
    if !has_fio() {
        println!("FIO ROW SKIPPED: no fio with io_uring is installed");
        return Ok(None);
    }
    let file = scratch.join("fio");
    std::fs::write(&file, vec![0; if smoke { 16 << 20 } else { FIO_FILE_LEN }])?;
    rustix::fs::fsync(rustix::fs::open(
        &file,
        rustix::fs::OFlags::RDWR | rustix::fs::OFlags::CLOEXEC,
        rustix::fs::Mode::empty(),
    )?)?;
    Ok(Some(Contestant::Fio { file }))
}

fn contestants(arguments: &Arguments, scratch: &Path) -> Result<Vec<Contestant>, Box<dyn Error>> {
    let mut all = Vec::new();
    for (driver, direct) in arguments.stores()? {
        all.push(Contestant::store(driver, scratch, direct, arguments)?);
        if all.len() == 1 {
            // Next to the store it is the ceiling of, so that the two meet the same machine.
            let name = format!("raw {}", driver.name);
            let len = if arguments.flags.smoke { 4 << 20 } else { 128 << 20 };
            let rig = Box::new(LogRig::prepare(driver, &scratch.join(&name), true, len)?);
            all.push(Contestant::Raw { name, rig });
            all.extend(prepare_fio(scratch, arguments.flags.smoke)?);
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

fn judge(report: &mut Report, writers: usize, names: &[&str], summaries: &[Summary]) {
    let leader = names.iter().position(|name| *name == LEADERS[0].0);
    if let Some(leader) = leader.filter(|_| writers == 64) {
        let ratio = summaries[0].ratio_to(&summaries[leader]);
        report.judge("2x of leader append at 64 writers", ratio.median >= 2.0);
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments = Arguments::parse();
    let flags = &arguments.flags;
    let turns = flags.turns(0.4, 5);
    let scratch = flags.scratch()?;
    let mut report = Report::new("store_put", flags, scratch.path())?;
    println!(
        "{VALUE_LEN} B, {} keys, {} turns of {:?}",
        arguments.keys, turns.repeats, turns.duration
    );
    let mut contestants = contestants(&arguments, scratch.path())?;
    let counters = DiskCounters::of(scratch.path());
    let frames = FrameCounts::default();
    let mut plan = Plan { turns, keys: arguments.keys, counters, frames };
    let mut sweep = Sweep::new("puts", "writers", VALUE_LEN, TABLE);
    for writers in arguments.writers() {
        let summaries = interleave(contestants.len(), turns.repeats, |index| {
            contestants[index].measure(writers, index == 0, &mut plan)
        });
        let names: Vec<&str> = contestants.iter().map(Contestant::name).collect();
        sweep.add(&mut report, writers, &names, &summaries);
        judge(&mut report, writers, &names, &summaries);
    }
    // Rows through the page cache are in the table; here they would hide the others.
    sweep.plot(&report, |name| !name.ends_with("buffered"))?;
    report.finish()
}
