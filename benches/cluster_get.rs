//! How long does one client wait for a GET in a cluster of ten nodes, whichever of them it asks?
//!
//! Unit: microseconds from a command to its reply. One connection, one command at a time, random
//! keys; the client asks each node for the same length of time. With 3 copies a read asks 2 of 3
//! holders at least, and 7 of 10 keys are held by other nodes than the one asked: a GET is two
//! round trips on loopback, client to node and node to holders, at some 30-50 us each, plus the
//! work of three processes on one core: about 150 us. The report that this answers had 43 ms.
//!
//! All nodes run on core 0, the generator on core 1. One more row is a single node without a
//! cluster: what the client door and the generator cost by themselves.

#![expect(clippy::print_stdout, reason = "a bench prints its result")]

use clap::Parser;
use kadring::cli::bench::{Latencies, Plan};
use kadring_benches::{
    Axis, Flags, Plot, Report, SUMMARY_COLUMNS, Sample, Series, Server, ServerFlags, Servers,
    Starter, Summary, Table, Turns, fill, interleave, measure, uniform,
};
use serde_json::json;
use std::error::Error;

/// Demands and stretches for p50 and p99, in microseconds.
const DEMANDS: [(f64, f64, &str); 4] = [
    (50.0, 1_000.0, "p50 at most 1 ms"),
    (99.0, 5_000.0, "p99 at most 5 ms"),
    (50.0, 300.0, "stretch: p50 at most 0.3 ms"),
    (99.0, 2_000.0, "stretch: p99 at most 2 ms"),
];
const TABLE: Table = Table { name_width: 20, width: 10 };

#[derive(Debug, Parser)]
struct Arguments {
    #[command(flatten)]
    flags: Flags,
    #[command(flatten)]
    server: ServerFlags,
    /// Number of nodes; at most 3 in a smoke run.
    #[arg(long, value_name = "N", default_value_t = 10)]
    nodes: usize,
    /// Copies of each key.
    #[arg(long, value_name = "N", default_value_t = 3)]
    replicas: usize,
    /// Number of keys; at most 100 in a smoke run.
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    keys: u64,
    /// Bytes of a value.
    #[arg(long, value_name = "N", default_value_t = 64)]
    value_bytes: usize,
    /// The driver of all nodes.
    #[arg(long, value_name = "uring|tokio-uring|pread", default_value = "uring")]
    io: String,
}

impl Arguments {
    fn nodes(&self) -> usize {
        if self.flags.smoke { self.nodes.min(3) } else { self.nodes }
    }

    fn plan(&self, server: &Server, turns: Turns) -> Plan {
        let keys = if self.flags.smoke { self.keys.min(100) } else { self.keys };
        let workload = uniform(100, self.value_bytes, keys);
        Plan { connections: 1, ..server.plan(workload, turns) }
    }
}

fn curve(name: &str, latencies: &Latencies) -> Series {
    Series { name: name.to_owned(), points: latencies.curve() }
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments = Arguments::parse();
    let flags = &arguments.flags;
    let turns = flags.turns(0.5, 4);
    let mut report = Report::new("cluster_get", flags, flags.scratch()?.path())?;
    let starter = Starter::new(flags, &arguments.server)?;
    let replicas = arguments.replicas.to_string();
    let with = ["--io", &arguments.io, "--cache-bytes", "16MiB", "--segment-bytes", "4MiB"];
    let cluster = [&with[..], &["--replicas", &replicas]].concat();
    let cluster = Servers::start(&starter, arguments.nodes(), &cluster)?;
    let single = starter.kadring("single node", &with)?;
    // Any node takes any key: the first is asked to store them all.
    fill(&arguments.plan(&cluster.nodes[0], turns))?;
    fill(&arguments.plan(&single, turns))?;

    let servers: Vec<&Server> = cluster.nodes.iter().chain([&single]).collect();
    let mut all = Latencies::default();
    let summaries = interleave(servers.len(), turns.repeats, |index| {
        let outcome = measure(&arguments.plan(servers[index], turns))
            .unwrap_or_else(|error| panic!("node {index}: {error}"));
        if index < cluster.nodes.len() {
            all.add(&outcome.latencies());
        }
        Sample::from(&outcome)
    });
    println!("\nGET of {} B, one client, one command at a time", arguments.value_bytes);
    println!("CPU is that of the node asked alone");
    let names: Vec<String> =
        (1..=cluster.nodes.len()).map(|number| format!("asking node {number}")).collect();
    let names = names.iter().map(String::as_str).chain(["single node"]);
    TABLE.row("", SUMMARY_COLUMNS);
    for (name, summary) in names.zip(&summaries) {
        TABLE.row(name, summary.cells().iter().map(String::as_str));
        report.push("rows", json!({ "contestant": name, "result": summary.json() }));
    }
    let micros = |percent| format!("{:.0}", all.micros(percent));
    let cells = [String::from("-"), micros(50.0), micros(99.0), micros(99.9), String::from("-")];
    TABLE.row("all nodes", cells.iter().map(String::as_str));
    report.set("nodes", cluster.nodes.len());
    report.set("all_nodes", all.json());
    if !flags.smoke {
        for (percent, most, demand) in DEMANDS {
            report.judge(demand, all.micros(percent) <= most);
        }
    }
    draw(&report, &all, summaries.last())?;
    report.finish()
}

fn draw(report: &Report, all: &Latencies, single: Option<&Summary>) -> Result<(), Box<dyn Error>> {
    let mut series = vec![curve("cluster, any node", all)];
    series.extend(single.map(|single| curve("single node", single.latencies())));
    let plot = Plot {
        title: "GET, one client".to_owned(),
        across: "one operation of so many is slower".to_owned(),
        up: "latency, microseconds".to_owned(),
        axis: Axis::Logarithmic,
        up_axis: Axis::Logarithmic,
        series,
    };
    report.plot("", &plot)
}
