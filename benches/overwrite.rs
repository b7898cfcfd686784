//! What does a store that is overwritten all the time need of the disk, and what do readers feel?
//!
//! Unit: space amplification (bytes of all segments over bytes of live records), write
//! amplification (bytes this process writes over bytes of keys and values put), p99 of a get.
//! Expected of greedy compaction at a space amplification of 1.3 under uniform overwrites: a
//! segment is cleaned with about 60 % of it live, so each byte is written 1 / (1 - 0.6) = 2.5
//! times; Zipf 0.99 leaves segments emptier, so below 2. Space must stay at most 1.3, the p99 of
//! a get at most twice what it is without compaction.
//!
//! The store is loaded with all keys once. Then readers work alone for a twelfth of the time (the
//! row *reads alone*), then writers and readers together: as long as nothing needs to be compacted
//! (*at first*: the first twelfth) and when that has become usual (*steady*: the second half).
//! Segments include the active one and the spare, so small stores look worse than they are. A store
//! without compaction grows until `--disk-gib-max`, which ends the run.

#![expect(clippy::disallowed_methods, reason = "a bench reads the clock")]
#![expect(clippy::print_stdout, reason = "a bench prints its result")]

use clap::Parser;
use kadring_benches::{
    Axis, Choice, ClosedLoop, DiskBytes, DiskCounters, Driver, Flags, Latencies, Plot, Report,
    RigOptions, Series, StoreRig, Table, Values, Zipf, drivers,
};
use serde_json::{Value, json};
use std::error::Error;
use std::path::Path;
use std::time::{Duration, Instant};

const ZIPF_EXPONENT: f64 = 0.99;
const SPACE_MAX: f64 = 1.3;
const TABLE: Table = Table { name_width: 20, width: 10 };
const COLUMNS: [&str; 8] =
    ["puts/s", "put p99", "gets/s", "get p50", "get p99", "get p99.9", "space amp", "write amp"];

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
}

impl Arguments {
    fn key_count(&self) -> u64 {
        if self.flags.smoke { self.keys.min(10_000) } else { self.keys }
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
    /// Bytes of all segments at the end.
    segment_bytes: u64,
}

impl Stretch {
    fn add(&mut self, other: &Self) {
        self.end = other.end;
        self.seconds += other.seconds;
        self.puts.add(&other.puts);
        self.gets.add(&other.gets);
        self.bytes.process_written += other.bytes.process_written;
        self.bytes.device_written += other.bytes.device_written;
        self.segment_bytes = self.segment_bytes.max(other.segment_bytes);
    }

    /// All of `stretches` that end in that part of the time.
    fn sum(stretches: &[Self], from: f64, to: f64) -> Self {
        let mut sum = Self::default();
        let within = |one: &&Self| one.end > from && one.end <= to;
        stretches.iter().filter(within).for_each(|one| sum.add(one));
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
    started: Instant,
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
        let (mut rig, _) = StoreRig::open(driver, path, RigOptions::default())?;
        let mut values = Values::new(arguments.value_bytes);
        rig.load(0..key_count, &mut values);
        rig.rest();
        let counters = DiskCounters::of(path);
        let (live_bytes, user_bytes) = (key_count * values.record_bytes(), values.user_bytes());
        let clients = ClosedLoop::new(0, arguments.readers, keys, values);
        Ok(Self { name, rig, clients, counters, live_bytes, user_bytes, started: Instant::now() })
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
            segment_bytes: rig.status().segment_bytes,
        }
    }

    fn space(&self, stretch: &Stretch) -> f64 {
        stretch.segment_bytes as f64 / self.live_bytes as f64
    }

    /// `None` if nothing was put.
    fn write_amplification(&self, stretch: &Stretch) -> Option<f64> {
        let put = stretch.puts.count() * self.user_bytes;
        (put > 0).then(|| stretch.bytes.process_written as f64 / put as f64)
    }

    fn json(&self, stretch: &Stretch) -> Value {
        json!({
            "end_s": stretch.end,
            "puts_per_s": stretch.puts.count() as f64 / stretch.seconds,
            "put": stretch.puts.json(),
            "gets_per_s": stretch.gets.count() as f64 / stretch.seconds,
            "get": stretch.gets.json(),
            "segment_bytes": stretch.segment_bytes,
            "space_amplification": self.space(stretch),
            "write_amplification": self.write_amplification(stretch),
            "device_written": stretch.bytes.device_written,
        })
    }

    fn row(&self, name: &str, stretch: &Stretch) {
        let rate = |latencies: &Latencies| {
            format!("{:.0}", latencies.count() as f64 / stretch.seconds.max(1e-9))
        };
        let micros = |latencies: &Latencies, percent| format!("{:.0}", latencies.micros(percent));
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
        ];
        TABLE.row(name, cells.iter().map(String::as_str));
    }

    /// Lets readers and writers work; stops early if the disk would fill up.
    fn work(&mut self, arguments: &Arguments, duration: Duration, step: Duration) -> Vec<Stretch> {
        let mut stretches = Vec::new();
        while self.started.elapsed() < duration {
            let stretch = self.stretch(step);
            let bytes = stretch.segment_bytes;
            stretches.push(stretch);
            if bytes > arguments.disk_gib_max << 30 {
                let seconds = self.started.elapsed().as_secs();
                println!("STOPPED after {seconds} s: {} GiB of segments", bytes >> 30);
                break;
            }
        }
        stretches
    }
}

/// Lines of the plots.
#[derive(Default)]
struct Lines {
    space: Vec<Series>,
    get_p99: Vec<Series>,
}

fn run(
    arguments: &Arguments,
    report: &mut Report,
    lines: &mut Lines,
    mut run: Run,
    duration: Duration,
) {
    let step = (duration / 60).max(Duration::from_millis(50));
    run.clients.forget();
    let alone = run.stretch(duration / 12);
    let (rows, readers) = (run.json(&alone), arguments.readers);
    run.row("reads alone", &alone);
    run.clients.drain(&mut run.rig);
    run.clients.employ(arguments.writers, readers);
    run.started = Instant::now();
    let stretches = run.work(arguments, duration, step);
    let end = stretches.last().map_or(0.0, |last| last.end);
    let at_first = Stretch::sum(&stretches, 0.0, (end / 12.0).max(step.as_secs_f64() * 1.5));
    let steady = Stretch::sum(&stretches, end / 2.0, f64::INFINITY);
    run.row("at first", &at_first);
    run.row("steady", &steady);
    let ratio = steady.gets.micros(99.0) / at_first.gets.micros(99.0);
    let verdict = if run.space(&steady) <= SPACE_MAX { "reached" } else { "NOT REACHED" };
    println!("space at most {SPACE_MAX}: {verdict}; get p99 steady / at first: {ratio:.2}");
    let over_time: Vec<Value> = stretches.iter().map(|one| run.json(one)).collect();
    let line = |figure: &dyn Fn(&Stretch) -> f64| Series {
        name: run.name.clone(),
        points: stretches.iter().map(|one| (one.end, figure(one))).collect(),
    };
    lines.space.push(line(&|one| run.space(one)));
    lines.get_p99.push(line(&|one| one.gets.micros(99.0)));
    report.push(
        "runs",
        json!({
            "contestant": run.name,
            "reads_alone": rows,
            "at_first": run.json(&at_first),
            "steady": run.json(&steady),
            "get_p99_steady_over_at_first": ratio,
            "over_time": over_time,
        }),
    );
    run.clients.drain(&mut run.rig);
    run.rig.close();
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments = Arguments::parse();
    let flags = &arguments.flags;
    let duration = flags.turns(60.0, 1).duration.max(Duration::from_millis(300));
    let key_count = arguments.key_count();
    let scratch = flags.scratch()?;
    let mut report = Report::new("overwrite", flags, scratch.path())?;
    println!(
        "{key_count} x {} B, {} writers and {} readers for {duration:?}; latencies in us",
        arguments.value_bytes, arguments.writers, arguments.readers
    );
    let mut lines = Lines::default();
    for driver in drivers(&arguments.io, &["uring"])? {
        for (name, choice) in [
            ("uniform", Choice::Uniform(key_count)),
            ("zipf 0.99", Choice::Zipf(Zipf::new(key_count, ZIPF_EXPONENT))),
        ] {
            let name = format!("{} {name}", driver.name);
            println!("\n{name}");
            TABLE.row("", COLUMNS);
            let path = scratch.path().join(&name);
            let prepared = Run::new(&arguments, name, driver, &path, choice)?;
            run(&arguments, &mut report, &mut lines, prepared, duration);
            std::fs::remove_dir_all(&path)?;
        }
    }
    let plot = |title: &str, up: &str, series| Plot {
        title: title.to_owned(),
        across: "seconds".to_owned(),
        up: up.to_owned(),
        axis: Axis::Linear,
        series,
    };
    let space = plot("Space amplification while overwriting", "segments / live", lines.space);
    report.plot("-space", &space)?;
    let gets = plot("p99 of a get beside the writes", "microseconds", lines.get_p99);
    report.plot("-get-p99", &gets)?;
    report.finish()
}
