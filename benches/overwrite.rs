//! What does a store that is overwritten all the time need of the disk, and what do readers feel?
//!
//! Unit: space amplification, write amplification (bytes this process writes over bytes of keys and
//! values put), p99 of a get. Expected of greedy compaction at a space amplification of 1.3 under
//! uniform overwrites: a segment is cleaned with about 60 % of it live, so each byte is written 1 /
//! (1 - 0.6) = 2.5 times; Zipf 0.99 leaves segments emptier, so below 2. Space must stay at most
//! 1.3, the p99 of a get at most twice what it is without compaction.
//!
//! Space amplification: bytes in use of all live segments (sealed ones by the length of their
//! files, the active one as far as it is written) over the exact bytes of live records; padding is
//! dead. Spares and files kept to be used again are told apart.
//!
//! The store is loaded with all keys once. Then readers work alone for a twelfth of the time (the
//! row *reads alone*), then writers and readers together: *no compaction* until the store first
//! copies or frees anything; warm-up until the log has written three times the data since the load;
//! then *steady*, the whole time. A run that does not get that far says so. A store without
//! compaction grows until `--disk-gib-max`, which ends the run.

#![expect(clippy::disallowed_methods, reason = "a bench reads the clock")]
#![expect(clippy::print_stdout, reason = "a bench prints its result")]

use clap::Parser;
use kadring_benches::{
    Axis, Choice, ClosedLoop, DiskBytes, DiskCounters, Driver, Flags, Latencies, Plot, Report,
    RigOptions, Series, StoreRig, Table, USER_KEY_LEN, Values, Zipf, drivers,
};
use serde_json::{Value, json};
use std::error::Error;
use std::path::Path;
use std::time::{Duration, Instant};

const ZIPF_EXPONENT: f64 = 0.99;
const SPACE_MAX: f64 = 1.3;
/// Most that the p99 of a get may grow by compaction.
const GET_P99_MAX: f64 = 2.0;
/// The log must have written so many times the data before a store is steady.
const TURNED_OVER_MIN: u64 = 3;
/// Warming up is given up after so many times the time that is measured.
const WARM_UP_MAX: u32 = 3;
const TABLE: Table = Table { name_width: 16, width: 10 };
const COLUMNS: [&str; 10] = [
    "puts/s",
    "put p99",
    "gets/s",
    "get p50",
    "get p99",
    "get p99.9",
    "space amp",
    "write amp",
    "wr MB/s",
    "rd MB/s",
];

#[derive(Debug, Parser)]
struct Arguments {
    #[command(flatten)]
    flags: Flags,
    /// The driver; each of several has its own run.
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    io: Vec<String>,
    /// Number of keys; at most 10,000 in a smoke run.
    #[arg(long, value_name = "N", default_value_t = 4_000_000)]
    keys: u64,
    /// Bytes of a value.
    #[arg(long, value_name = "N", default_value_t = 1024)]
    value_bytes: usize,
    /// Writers in a closed loop.
    #[arg(long, value_name = "N", default_value_t = 64)]
    writers: usize,
    /// Readers in a closed loop.
    #[arg(long, value_name = "N", default_value_t = 8)]
    readers: usize,
    /// Ends a run whose segments have grown beyond this.
    #[arg(long, value_name = "N", default_value_t = 32)]
    disk_gib_max: u64,
    /// Largest segment in MiB [default: the node's own; 4 in a smoke run].
    #[arg(long, value_name = "N")]
    segment_mib: Option<u64>,
    /// Names of the distributions to run.
    #[arg(long, value_name = "NAME", value_delimiter = ',', default_value = "uniform,zipf")]
    distributions: Vec<String>,
}

impl Arguments {
    fn key_count(&self) -> u64 {
        if self.flags.smoke { self.keys.min(10_000) } else { self.keys }
    }

    fn duration(&self) -> Duration {
        self.flags.turns(60.0, 1).duration.max(Duration::from_millis(300))
    }

    /// The node's own; in a smoke run segments are small, so that there is something to compact.
    fn rig_options(&self) -> RigOptions {
        let default = RigOptions::default();
        let segment_bytes = match self.segment_mib {
            Some(mib) => mib << 20,
            None if self.flags.smoke => 4 << 20,
            None => default.segment_bytes,
        };
        RigOptions { segment_bytes, ..default }
    }
}

/// What happened in a stretch of time.
#[derive(Clone, Debug, Default)]
struct Stretch {
    /// When it ended, in seconds since readers and writers began; its length.
    end: f64,
    seconds: f64,
    puts: Latencies,
    gets: Latencies,
    bytes: DiskBytes,
    /// Bytes in use at the end; of several stretches, the most.
    used_bytes: u64,
}

impl Stretch {
    fn add(&mut self, other: &Self) {
        self.end = other.end;
        self.seconds += other.seconds;
        self.puts.add(&other.puts);
        self.gets.add(&other.gets);
        self.bytes.process_written += other.bytes.process_written;
        self.bytes.process_read += other.bytes.process_read;
        self.bytes.device_written += other.bytes.device_written;
        self.used_bytes = self.used_bytes.max(other.used_bytes);
    }

    fn sum(stretches: &[Self]) -> Self {
        let mut sum = Self::default();
        stretches.iter().for_each(|one| sum.add(one));
        sum
    }
}

/// One run: a driver, a distribution, a store.
struct Run {
    name: String,
    rig: StoreRig,
    clients: ClosedLoop,
    counters: DiskCounters,
    /// Bytes of all live records, and of a key with its value.
    live_bytes: u64,
    user_bytes: u64,
    /// Ends the run when more are in use.
    used_bytes_max: u64,
    step: Duration,
    started: Instant,
    stretches: Vec<Stretch>,
}

impl Run {
    fn new(
        arguments: &Arguments,
        name: String,
        driver: Driver,
        path: &Path,
        keys: Choice,
    ) -> Result<Self, Box<dyn Error>> {
        let key_count = arguments.key_count();
        let (mut rig, _) = StoreRig::open(driver, path, arguments.rig_options())?;
        let mut values = Values::new(arguments.value_bytes);
        rig.load(0..key_count, &mut values);
        rig.rest();
        let (live_bytes, user_bytes) = (key_count * values.record_bytes(), values.user_bytes());
        Ok(Self {
            name,
            rig,
            clients: ClosedLoop::new(0, arguments.readers, keys, values),
            counters: DiskCounters::of(path),
            live_bytes,
            user_bytes,
            used_bytes_max: arguments.disk_gib_max << 30,
            step: (arguments.duration() / 60).max(Duration::from_millis(20)),
            started: Instant::now(),
            stretches: Vec::new(),
        })
    }

    fn stretch(&mut self, duration: Duration) -> Stretch {
        let Self { rig, clients, counters, started, .. } = self;
        let (begun, before) = (Instant::now(), counters.read());
        clients.run_until(rig, begun + duration);
        Stretch {
            end: started.elapsed().as_secs_f64(),
            seconds: begun.elapsed().as_secs_f64(),
            puts: std::mem::take(&mut clients.puts),
            gets: std::mem::take(&mut clients.gets),
            bytes: counters.read().since(before),
            used_bytes: rig.store_status().used_bytes,
        }
    }

    /// Works for at most `longest`, until `done` holds; the answer is whether it did.
    fn work(&mut self, longest: Duration, done: impl Fn(&StoreRig) -> bool) -> bool {
        let begun = Instant::now();
        while begun.elapsed() < longest {
            if done(&self.rig) {
                return true;
            }
            let stretch = self.stretch(self.step);
            let bytes = stretch.used_bytes;
            self.stretches.push(stretch);
            if bytes > self.used_bytes_max {
                println!("STOPPED: {} GiB of segments", bytes >> 30);
                return false;
            }
        }
        done(&self.rig)
    }

    fn space(&self, stretch: &Stretch) -> f64 {
        stretch.used_bytes as f64 / self.live_bytes as f64
    }

    /// `None` if nothing was put.
    fn write_amplification(&self, stretch: &Stretch) -> Option<f64> {
        let put = stretch.puts.count() * self.user_bytes;
        (put > 0).then(|| stretch.bytes.process_written as f64 / put as f64)
    }

    fn json(&self, stretch: &Stretch) -> Value {
        json!({
            "end_s": stretch.end,
            "seconds": stretch.seconds,
            "puts_per_s": stretch.puts.count() as f64 / stretch.seconds,
            "put": stretch.puts.json(),
            "gets_per_s": stretch.gets.count() as f64 / stretch.seconds,
            "get": stretch.gets.json(),
            "used_bytes": stretch.used_bytes,
            "space_amplification": self.space(stretch),
            "write_amplification": self.write_amplification(stretch),
            "process_written": stretch.bytes.process_written,
            "process_read": stretch.bytes.process_read,
            "device_written": stretch.bytes.device_written,
        })
    }

    fn row(&self, name: &str, stretch: &Stretch) {
        let seconds = stretch.seconds.max(1e-9);
        let rate = |latencies: &Latencies| format!("{:.0}", latencies.count() as f64 / seconds);
        let micros = |latencies: &Latencies, percent| format!("{:.0}", latencies.micros(percent));
        let speed = |bytes: u64| format!("{:.0}", bytes as f64 / 1e6 / seconds);
        let cells = [
            rate(&stretch.puts),
            micros(&stretch.puts, 99.0),
            rate(&stretch.gets),
            micros(&stretch.gets, 50.0),
            micros(&stretch.gets, 99.0),
            micros(&stretch.gets, 99.9),
            format!("{:.3}", self.space(stretch)),
            self.write_amplification(stretch)
                .map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.2}")),
            speed(stretch.bytes.process_written),
            speed(stretch.bytes.process_read),
        ];
        TABLE.row(name, cells.iter().map(String::as_str));
    }

    /// Whether compaction has done nothing yet.
    fn is_untouched(rig: &StoreRig) -> bool {
        let compaction = rig.store_status().compaction;
        compaction.bytes_copied == 0 && compaction.segments_freed == 0
    }
}

/// Lines of the plots.
#[derive(Default)]
struct Lines {
    space: Vec<Series>,
    get_p99: Vec<Series>,
}

/// What a run has shown.
struct Shown {
    alone: Stretch,
    /// Before anything was compacted.
    untouched: Stretch,
    steady: Stretch,
    /// Space amplification in the first and in the last third of that.
    drift: (f64, f64),
    /// How often the log has written the data before that.
    turned_over: f64,
    is_steady: bool,
}

fn work(arguments: &Arguments, run: &mut Run) -> Shown {
    let duration = arguments.duration();
    run.clients.forget();
    let alone = run.stretch(duration / 12);
    run.clients.drain(&mut run.rig);
    run.clients.employ(arguments.writers, arguments.readers);
    let loaded = run.rig.frames().frame_bytes;
    run.started = Instant::now();
    run.work(duration, |rig| !Run::is_untouched(rig));
    // The stretch in which compaction began is not without.
    let count = run.stretches.len();
    let compacted = !Run::is_untouched(&run.rig);
    let untouched = Stretch::sum(&run.stretches[..count - usize::from(compacted && count > 1)]);
    let enough = loaded + TURNED_OVER_MIN * run.live_bytes;
    let is_steady = run.work(duration * WARM_UP_MAX, |rig| rig.frames().frame_bytes >= enough);
    let turned_over = (run.rig.frames().frame_bytes - loaded) as f64 / run.live_bytes as f64;
    let from = run.stretches.len();
    let before = run.rig.store_status().compaction;
    run.work(duration, |_| false);
    let compaction = run.rig.store_status().compaction;
    let steady = &run.stretches[from..];
    let third = (steady.len() / 3).max(1).min(steady.len());
    let space = |part: &[Stretch]| run.space(&Stretch::sum(part));
    let drift = (space(&steady[..third]), space(&steady[steady.len() - third..]));
    let steady = Stretch::sum(steady);
    let put_bytes = steady.puts.count() * run.user_bytes;
    let per_put = |now: u64, then: u64| (now - then) as f64 / put_bytes as f64;
    println!(
        "steady: {:.2} B copied and {:.2} B freed per byte put, {} segments freed, {} recycled, \
         {} headers of newer records read",
        per_put(compaction.bytes_copied, before.bytes_copied),
        per_put(compaction.bytes_freed, before.bytes_freed),
        compaction.segments_freed - before.segments_freed,
        compaction.segments_recycled - before.segments_recycled,
        compaction.heads_read - before.heads_read,
    );
    Shown { alone, untouched, steady, drift, turned_over, is_steady: is_steady && compacted }
}

fn run(arguments: &Arguments, report: &mut Report, lines: &mut Lines, mut run: Run) {
    let shown = work(arguments, &mut run);
    run.row("reads alone", &shown.alone);
    run.row("no compaction", &shown.untouched);
    run.row("steady", &shown.steady);
    println!(
        "before: the log had written {:.1}x the data since the load{}",
        shown.turned_over,
        if shown.is_steady { "" } else { "; NOT STEADY" }
    );
    println!("space in the first and last third: {:.3}, {:.3}", shown.drift.0, shown.drift.1);
    let status = run.rig.store_status();
    let apart = status.segment_bytes.saturating_sub(status.used_bytes) + status.pooled_bytes;
    println!("apart: {} MiB of spares and files to be used again", apart >> 20);
    let ratio = shown.steady.gets.micros(99.0) / shown.untouched.gets.micros(99.0);
    println!("get p99 steady / no compaction: {ratio:.2}");
    if shown.is_steady {
        let demand = format!("{}: space amplification at most {SPACE_MAX}", run.name);
        report.judge(&demand, run.space(&shown.steady) <= SPACE_MAX);
        let demand = format!("{}: get p99 at most {GET_P99_MAX}x of no compaction", run.name);
        report.judge(&demand, ratio <= GET_P99_MAX);
    }
    let line = |figure: &dyn Fn(&Stretch) -> f64| Series {
        name: run.name.clone(),
        points: run.stretches.iter().map(|one| (one.end, figure(one))).collect(),
    };
    lines.space.push(line(&|one| run.space(one)));
    lines.get_p99.push(line(&|one| one.gets.micros(99.0)));
    let over_time: Vec<Value> = run.stretches.iter().map(|one| run.json(one)).collect();
    report.push(
        "runs",
        json!({
            "contestant": run.name,
            "reads_alone": run.json(&shown.alone),
            "no_compaction": run.json(&shown.untouched),
            "steady": run.json(&shown.steady),
            "is_steady": shown.is_steady,
            "turned_over": shown.turned_over,
            "space_first_third": shown.drift.0,
            "space_last_third": shown.drift.1,
            "bytes_apart": apart,
            "get_p99_ratio": ratio,
            "over_time": over_time,
        }),
    );
    run.clients.drain(&mut run.rig);
    run.rig.close();
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments = Arguments::parse();
    let flags = &arguments.flags;
    let duration = arguments.duration();
    let key_count = arguments.key_count();
    let scratch = flags.scratch()?;
    let mut report = Report::new("overwrite", flags, scratch.path())?;
    println!(
        "{key_count} x {} B, {} writers and {} readers for {duration:?}; latencies in us",
        arguments.value_bytes, arguments.writers, arguments.readers
    );
    let values = key_count * Values::new(arguments.value_bytes).user_bytes();
    let cache_bytes = arguments.rig_options().cache_bytes;
    println!(
        "keys of {USER_KEY_LEN} B, ids spread evenly; cache of {} MiB, {:.1} % of keys and values",
        cache_bytes >> 20,
        cache_bytes as f64 * 100.0 / values as f64
    );
    report.set("keys", key_count);
    report.set("cache_bytes", cache_bytes);
    let mut lines = Lines::default();
    for driver in drivers(&arguments.io, &["uring"])? {
        for (name, choice) in [
            ("uniform", Choice::Uniform(0..key_count)),
            ("zipf 0.99", Choice::Zipf(Zipf::new(key_count, ZIPF_EXPONENT))),
        ] {
            if !arguments.distributions.iter().any(|wanted| name.starts_with(wanted.as_str())) {
                continue;
            }
            let name = format!("{} {name}", driver.name);
            println!("\n{name}");
            TABLE.row("", COLUMNS);
            let path = scratch.path().join(&name);
            let prepared = Run::new(&arguments, name, driver, &path, choice)?;
            run(&arguments, &mut report, &mut lines, prepared);
            std::fs::remove_dir_all(&path)?;
        }
    }
    let plot = |title: &str, up: &str, series| Plot {
        title: title.to_owned(),
        across: "seconds".to_owned(),
        up: up.to_owned(),
        axis: Axis::Linear,
        up_axis: Axis::Linear,
        series,
    };
    let space = plot("Space amplification while overwriting", "segments / live", lines.space);
    report.plot("-space", &space)?;
    let gets = plot("p99 of a get beside the writes", "microseconds", lines.get_p99);
    report.plot("-get-p99", &gets)?;
    report.finish()
}
