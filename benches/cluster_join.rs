//! How long do clients wait while a node joins and takes over a gibibyte?
//!
//! Unit: microseconds from when a GET was due to its reply. GETs of random keys are due on an even
//! schedule at one of the old nodes; first in a cluster at rest, then from the moment a further
//! node starts until it and all others say that it is full. `taken` is what it holds then; the old
//! nodes give up as much meanwhile. Expected: values go over in pieces of 256 KiB at most and a few
//! records at a time, so a GET waits behind some hundred microseconds of such work, and the disk is
//! shared with as many writes as reads: p99 within twice of what it was.
//!
//! All nodes run on core 0, the generator on core 1: on machines of their own the old ones would
//! not pay for the work of the new one.

#![expect(clippy::disallowed_methods, reason = "a bench reads the clock")]
#![expect(clippy::print_stdout, reason = "a bench prints its result")]

use clap::Parser;
use kadring::cli::bench::{Latencies, Pace, Plan};
use kadring_benches::{
    Axis, Flags, Plot, Report, Series, Server, ServerFlags, Servers, Starter, Table, Turns, fill,
    is_whole, key_count, measure, uniform,
};
use serde_json::json;
use std::error::Error;
use std::time::{Duration, Instant};

/// Demand: p99 while a node joins, of p99 before.
const MUST: f64 = 2.0;
/// A join that is not over by then never will be.
const PATIENCE: Duration = Duration::from_secs(1_800);
const TABLE: Table = Table { name_width: 20, width: 10 };
const COLUMNS: [&str; 6] = ["GETs", "seconds", "p50 us", "p99 us", "p99.9 us", "max us"];

#[derive(Debug, Parser)]
struct Arguments {
    #[command(flatten)]
    flags: Flags,
    #[command(flatten)]
    server: ServerFlags,
    /// Nodes before.
    #[arg(long, value_name = "N", default_value_t = 3)]
    nodes: usize,
    /// Bytes that the new node is to take over, about; at most 1 MiB in a smoke run.
    #[arg(long, value_name = "N", default_value_t = 1 << 30)]
    bytes: u64,
    /// Bytes of a value.
    #[arg(long, value_name = "N", default_value_t = 4 << 10)]
    value_bytes: usize,
    /// GETs due per second.
    #[arg(long, value_name = "N", default_value_t = 1_000.0)]
    rate: f64,
    /// The driver of all nodes.
    #[arg(long, value_name = "uring|tokio-uring|pread", default_value = "uring")]
    io: String,
}

impl Arguments {
    /// With 3 copies a further node gets 3 shares of so many.
    fn key_count(&self) -> u64 {
        let bytes = if self.flags.smoke { self.bytes.min(1 << 20) } else { self.bytes };
        let nodes = self.nodes as u64 + 1;
        (bytes * nodes / 3 / self.value_bytes as u64).max(1)
    }

    fn plan(&self, server: &Server, turns: Turns) -> Plan {
        let workload = uniform(100, self.value_bytes, self.key_count());
        let pace = Pace::PerSecond(self.rate);
        // Room for what is due while an answer is late.
        Plan { pace, connections: 8, pipeline: 16, ..server.plan(workload, turns) }
    }
}

/// What a time came to.
#[derive(Debug, Default)]
struct Waits {
    latencies: Latencies,
    unanswered: u64,
    elapsed: Duration,
}

impl Waits {
    fn measure(&mut self, plan: &Plan) -> Result<(), Box<dyn Error>> {
        let outcome = measure(plan)?;
        self.latencies.add(&outcome.latencies());
        self.unanswered += outcome.counts.unanswered;
        self.elapsed += outcome.elapsed;
        Ok(())
    }

    fn show(&self, report: &mut Report, name: &str) {
        let micros = |percent| format!("{:.0}", self.latencies.micros(percent));
        let seconds = format!("{:.1}", self.elapsed.as_secs_f64());
        let count = self.latencies.count().to_string();
        let cells = [count, seconds, micros(50.0), micros(99.0), micros(99.9), micros(100.0)];
        TABLE.row(name, cells.iter().map(String::as_str));
        if self.unanswered > 0 {
            println!("{name}: {} GETs were never answered", self.unanswered);
        }
        report.push(
            "rows",
            json!({
                "time": name,
                "seconds": self.elapsed.as_secs_f64(),
                "latency": self.latencies.json(),
                "unanswered": self.unanswered,
            }),
        );
    }

    fn series(&self, name: &str) -> Series {
        Series { name: name.to_owned(), points: self.latencies.curve() }
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments = Arguments::parse();
    let flags = &arguments.flags;
    let turns = flags.turns(1.0, 20);
    let mut report = Report::new("cluster_join", flags, flags.scratch()?.path())?;
    let starter = Starter::new(flags, &arguments.server)?;
    let with = ["--io", &arguments.io, "--cache-bytes", "64MiB", "--replicas", "3"];
    let mut cluster = Servers::start(&starter, arguments.nodes, &with)?;
    let plan = |server: &Server, turns| arguments.plan(server, turns);
    fill(&Plan { pace: Pace::Closed, ..plan(&cluster.nodes[0], turns) })?;

    let mut before = Waits::default();
    for _ in 0..turns.repeats {
        before.measure(&plan(&cluster.nodes[0], turns))?;
    }
    let (started, mut during) = (Instant::now(), Waits::default());
    cluster.add(&starter)?;
    let members = cluster.nodes.len();
    let turn = Turns { warm_up: Duration::ZERO, ..turns };
    loop {
        during.measure(&plan(&cluster.nodes[0], turn))?;
        let is_over: Result<Vec<bool>, _> =
            cluster.nodes.iter().map(|node| is_whole(node, members)).collect();
        if is_over?.into_iter().all(|is_over| is_over) {
            break;
        }
        if started.elapsed() > PATIENCE {
            return Err(format!("the node has not joined after {PATIENCE:?}").into());
        }
    }
    let took = started.elapsed().as_secs_f64();
    let taken = key_count(&cluster.nodes[members - 1])? * arguments.value_bytes as u64;

    let mib = taken as f64 / f64::from(1 << 20);
    println!("\n{mib:.0} MiB taken in {took:.1} s: {:.1} MiB/s", mib / took);
    TABLE.row("", COLUMNS);
    before.show(&mut report, "before");
    during.show(&mut report, "while a node joins");
    report.set("taken_bytes", taken);
    report.set("join_seconds", took);
    let ratio = during.latencies.micros(99.0) / before.latencies.micros(99.0);
    report.set("p99_ratio", ratio);
    if !flags.smoke {
        report.judge(&format!("p99 at most {MUST}x, is {ratio:.2}x"), ratio <= MUST);
    }
    let plot = Plot {
        title: "GET while a node joins".to_owned(),
        across: "one operation of so many is slower".to_owned(),
        up: "latency, microseconds".to_owned(),
        axis: Axis::Logarithmic,
        up_axis: Axis::Logarithmic,
        series: vec![before.series("before"), during.series("while a node joins")],
    };
    report.plot("", &plot)?;
    report.finish()
}
