//! How close does a cold GET over TCP come to the device, and what does it cost beside blocking
//! reads on threads?
//!
//! Unit: GETs per second from 64 connections without pipeline, so 64 reads at a time; CPU of the
//! server per GET. The data are 8 times what the cache may hold, keys alike: one GET in eight is
//! from memory, the others read the disk past the page cache (O_DIRECT). Expected: a value of 4 KiB
//! with its header spans two blocks, so the ceiling is the device at 8 KiB; a GET costs the
//! processor one read and one receive and send, some 10 us on a ring, and on threads two switches
//! more. At least 0.9 of the device at depth 64; at most 0.6 of the CPU of the pread driver.
//!
//! The rows `fio` and `raw` read the files of the first server at random while it rests: what the
//! device gives at depth 64, in blocks of 4 and 8 KiB. `disk/GET` is what INFO counted: reads of
//! the disk per GET. The server runs on core 0, generator, fio and raw rows on core 1.

#![expect(clippy::print_stdout, reason = "a bench prints its result")]

use clap::Parser;
use kadring::cli::bench::{Plan, Workload};
use kadring_benches::{
    DRIVERS, DataFiles, DiskCounters, Fio, FioVerb, Flags, RawReads, RawRig, Report,
    SUMMARY_COLUMNS, Sample, Server, ServerFlags, Starter, Summary, Table, Turns, fill, has_fio,
    interleave, measure, sum_in_info, uniform, warn_of_busy_generator,
};
use serde_json::json;
use std::error::Error;
use std::path::Path;

/// Reads at a time.
const DEPTH: usize = 64;
/// The data are so many times what the cache may hold.
const DATA_BY_CACHE: u64 = 8;
const BLOCK_LEN: usize = 4 << 10;
/// Blocks that a value of 4 KiB and its header span.
const SPAN_LEN: usize = 2 * BLOCK_LEN;
const REGISTERED: [&str; 2] = ["--fixedbufs=1", "--registerfiles=1"];
/// Of the device, at least.
const DEVICE_SHARE: f64 = 0.9;
/// Of the CPU of the pread driver, at most.
const CPU_SHARE: f64 = 0.6;
const TABLE: Table = Table { name_width: 20, width: 10 };

#[derive(Debug, Parser)]
struct Arguments {
    #[command(flatten)]
    flags: Flags,
    #[command(flatten)]
    server: ServerFlags,
    /// Bytes of a value.
    #[arg(long, value_name = "N", default_value_t = 4096)]
    value_bytes: usize,
    /// Memory for the cache, in MiB; at most 4 in a smoke run.
    #[arg(long, value_name = "N", default_value_t = 64)]
    cache_mib: u64,
    /// Threads of the pread driver.
    #[arg(long, value_name = "N", default_value_t = DEPTH)]
    pread_threads: usize,
}

impl Arguments {
    fn cache_bytes(&self) -> u64 {
        let mib = if self.flags.smoke { self.cache_mib.min(4) } else { self.cache_mib };
        mib << 20
    }

    fn workload(&self) -> Workload {
        let key_count = self.cache_bytes() * DATA_BY_CACHE / self.value_bytes as u64;
        uniform(100, self.value_bytes, key_count)
    }
}

/// What is measured.
#[derive(Clone, Copy, Debug)]
enum Contestant {
    Server(usize),
    Fio { len: usize },
    Raw { len: usize },
}

struct Bench {
    servers: Vec<Server>,
    workload: Workload,
    turns: Turns,
    files: DataFiles,
    raw: RawRig,
    counters: DiskCounters,
    /// Of each server: reads of the disk, commands, the greatest share of time that the generator
    /// was on a processor.
    seen: Vec<(u64, u64, f64)>,
}

fn servers(starter: &Starter, arguments: &Arguments) -> Result<Vec<Server>, Box<dyn Error>> {
    let cache = arguments.cache_bytes().to_string();
    let threads = arguments.pread_threads.to_string();
    starter.kadrings(&["--cache-bytes", &cache, "--pread-threads", &threads])
}

impl Bench {
    fn plan(&self, server: &Server) -> Plan {
        Plan { connections: DEPTH, ..server.plan(self.workload, self.turns) }
    }

    fn measure(&mut self, contestant: Contestant) -> Result<Sample, Box<dyn Error>> {
        let (depth, direct, turns) = (DEPTH, true, self.turns);
        match contestant {
            Contestant::Server(index) => {
                let server = &self.servers[index];
                let count = || -> Result<(u64, u64), Box<dyn Error>> {
                    let info = server.info()?;
                    let commands = sum_in_info(&info, "total_commands_processed");
                    Ok((sum_in_info(&info, "disk_reads"), commands))
                };
                let before = count()?;
                let outcome = measure(&self.plan(server))?;
                let after = count()?;
                if outcome.counts.misses > 0 {
                    return Err("keys are missing".into());
                }
                let (reads, gets, busy) = &mut self.seen[index];
                *reads += after.0 - before.0;
                *gets += after.1 - before.1;
                *busy = busy.max(outcome.generator_busy);
                Ok(Sample::from(&outcome))
            }
            Contestant::Fio { len } => {
                let (verb, files, flags) = (FioVerb::Read, self.files.paths(), &REGISTERED[..]);
                Fio { verb, files, len, depth, direct, turns, flags }.measure()
            }
            Contestant::Raw { len } => {
                let reads = RawReads { len, depth, direct, turns };
                Ok(self.files.read_by_driver(&mut self.raw, reads, &self.counters))
            }
        }
    }

    fn names(&self, has_fio: bool) -> (Vec<&'static str>, Vec<Contestant>) {
        let mut all = vec![(self.servers[0].name, Contestant::Server(0))];
        // Next to what they are the ceiling of, so that all meet the same machine.
        if has_fio {
            all.push(("fio 4k", Contestant::Fio { len: BLOCK_LEN }));
            all.push(("fio 8k", Contestant::Fio { len: SPAN_LEN }));
        }
        all.push(("raw 4k", Contestant::Raw { len: BLOCK_LEN }));
        all.push(("raw 8k", Contestant::Raw { len: SPAN_LEN }));
        let others = self.servers.iter().enumerate().skip(1);
        all.extend(others.map(|(index, server)| (server.name, Contestant::Server(index))));
        all.into_iter().unzip()
    }

    fn print(&self, report: &mut Report, names: &[&str], summaries: &[Summary]) {
        println!();
        TABLE.row("", SUMMARY_COLUMNS.into_iter().chain(["disk/GET"]));
        for (name, summary) in names.iter().zip(summaries) {
            let server = self.servers.iter().position(|server| server.name == *name);
            let share = server.map(|index| {
                let (reads, gets, _) = self.seen[index];
                reads as f64 / gets.max(1) as f64
            });
            let cell = share.map_or_else(|| "-".to_owned(), |share| format!("{share:.2}"));
            let cells = summary.cells();
            TABLE.row(name, cells.iter().map(String::as_str).chain([cell.as_str()]));
            report.push(
                "rows",
                json!({
                    "contestant": name,
                    "result": summary.json(),
                    "disk_reads_per_get": share,
                    "kadring_uring_ratio": summaries[0].ratio_to(summary).json(),
                }),
            );
        }
        for (name, summary) in names.iter().zip(summaries).skip(1) {
            let cpu = summaries[0].cpu_micros() / summary.cpu_micros();
            let ratio = summaries[0].ratio_to(summary);
            println!("{} / {name}: {ratio}, at {cpu:.2} of its CPU", names[0]);
        }
        let busy = self.servers.iter().zip(&self.seen);
        warn_of_busy_generator(busy.map(|(server, (.., busy))| (server.name, *busy)));
    }
}

fn judge(report: &mut Report, names: &[&str], summaries: &[Summary]) {
    let named = |name: &str| {
        let index = names.iter().position(|known| *known == name)?;
        Some(&summaries[index])
    };
    for ceiling in ["fio 4k", "fio 8k", "raw 4k", "raw 8k"] {
        if let Some(device) = named(ceiling) {
            let ratio = summaries[0].ratio_to(device);
            let demand = format!("cold GET: {DEVICE_SHARE} of {ceiling} at depth {DEPTH}");
            report.judge(&demand, ratio.median >= DEVICE_SHARE);
        }
    }
    if let Some(threads) = named("kadring pread") {
        let share = summaries[0].cpu_micros() / threads.cpu_micros();
        let demand = format!("CPU per cold GET: at most {CPU_SHARE} of pread, is {share:.2}");
        report.judge(&demand, share <= CPU_SHARE);
    }
}

/// The first server's files, linked into a directory of their own for the raw rows.
fn raw_rig(files: &DataFiles, scratch: &Path) -> Result<RawRig, Box<dyn Error>> {
    let path = scratch.join("raw");
    let mut rig = RawRig::open(DRIVERS[0], &path, true)?;
    files.link_into(&mut rig, &path)?;
    Ok(rig)
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments = Arguments::parse();
    let flags = &arguments.flags;
    let turns = flags.turns(1.0, 5);
    let scratch = flags.scratch()?;
    let mut report = Report::new("cold_get", flags, scratch.path())?;
    let has_fio = has_fio();
    if !has_fio {
        println!("FIO ROWS SKIPPED: no fio with io_uring is installed");
    }
    let starter = Starter::new(flags, &arguments.server)?;
    let servers = servers(&starter, &arguments)?;
    let workload = arguments.workload();
    println!(
        "{} keys, {} B, cache of {} MiB; {} turns of {:?}",
        workload.key_count,
        workload.value_len,
        arguments.cache_bytes() >> 20,
        turns.repeats,
        turns.duration
    );
    for server in &servers {
        fill(&server.plan(workload, turns))?;
    }
    let files = DataFiles::in_directory(&servers[0].data().join("shard-00"))?;
    let raw = raw_rig(&files, scratch.path())?;
    let counters = DiskCounters::of(scratch.path());
    let seen = vec![(0, 0, 0.0); servers.len()];
    let mut bench = Bench { servers, workload, turns, files, raw, counters, seen };
    let (names, contestants) = bench.names(has_fio);
    let summaries = interleave(contestants.len(), turns.repeats, |index| {
        let measured = bench.measure(contestants[index]);
        measured.unwrap_or_else(|error| panic!("{}: {error}", names[index]))
    });
    bench.print(&mut report, &names, &summaries);
    if !flags.smoke {
        judge(&mut report, &names, &summaries);
    }
    report.finish()
}
