//! What do three copies cost: SETs by majority in a cluster of three nodes, against a single node?
//!
//! Unit: SETs per second, each durable when it is answered: on the disk of a single node, or on
//! those of two of three nodes. On this machine the three share one core and one disk, where a
//! cluster would have three of each. Expected: each SET is three records in three logs, two
//! messages out and two back, so a third of a single node's rate at most, less what links cost; a
//! fifth to a tenth where commands come in pipelines and a single node spends next to nothing.
//!
//! Nodes run on core 0, the generator on core 1. Rates are ratios within a round.

#![expect(clippy::print_stdout, reason = "a bench prints its result")]

use clap::Parser;
use kadring::cli::bench::Plan;
use kadring_benches::{
    Flags, Report, SUMMARY_COLUMNS, Sample, Server, ServerFlags, Servers, Starter, Table, Turns,
    fill, interleave, measure, uniform, warn_of_busy_generator,
};
use serde_json::json;
use std::error::Error;

const TABLE: Table = Table { name_width: 28, width: 10 };
/// Bytes of a value, connections, commands of a connection at a time.
const ROWS: [(usize, usize, usize); 5] =
    [(64, 1, 1), (64, 50, 1), (64, 50, 16), (4 << 10, 50, 1), (64 << 10, 16, 1)];

#[derive(Debug, Parser)]
struct Arguments {
    #[command(flatten)]
    flags: Flags,
    #[command(flatten)]
    server: ServerFlags,
    /// Number of nodes.
    #[arg(long, value_name = "N", default_value_t = 3)]
    nodes: usize,
    /// The driver of all nodes.
    #[arg(long, value_name = "uring|tokio-uring|pread", default_value = "uring")]
    io: String,
}

fn plan(
    server: &Server,
    (value_len, connections, pipeline): (usize, usize, usize),
    turns: Turns,
) -> Plan {
    let workload = uniform(0, value_len, 1_000);
    Plan { connections, pipeline, ..server.plan(workload, turns) }
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments = Arguments::parse();
    let flags = &arguments.flags;
    let turns = flags.turns(1.0, 5);
    let mut report = Report::new("cluster_set", flags, flags.scratch()?.path())?;
    let starter = Starter::new(flags, &arguments.server)?;
    let with = ["--io", &arguments.io, "--cache-bytes", "64MiB"];
    let cluster = [&with[..], &["--replicas", "3"]].concat();
    let cluster = Servers::start(&starter, arguments.nodes, &cluster)?;
    let single = starter.kadring("single node", &with)?;
    let servers = [&cluster.nodes[0], &single];
    let name = format!("majority of 3, {} nodes", cluster.nodes.len());
    let names = [&*name, "single node"];
    for row in if flags.smoke { &ROWS[1..2] } else { &ROWS[..] } {
        let (value_len, connections, pipeline) = *row;
        for server in servers {
            fill(&plan(server, *row, turns))?;
        }
        let mut busy = [0.0_f64; 2];
        let summaries = interleave(servers.len(), turns.repeats, |index| {
            let outcome = measure(&plan(servers[index], *row, turns))
                .unwrap_or_else(|error| panic!("{}: {error}", names[index]));
            busy[index] = busy[index].max(outcome.generator_busy);
            Sample::from(&outcome)
        });
        println!();
        let workload = format!("SET {value_len} B, {connections} connections, P{pipeline}");
        TABLE.row(&workload, SUMMARY_COLUMNS);
        for (name, summary) in names.iter().zip(&summaries) {
            TABLE.row(name, summary.cells().iter().map(String::as_str));
            report.push(
                "rows",
                json!({ "contestant": name, "workload": workload, "result": summary.json() }),
            );
        }
        let ratio = summaries[0].ratio_to(&summaries[1]);
        println!("cluster of single node: {ratio}   (CPU is that of the node asked alone)");
        report.push("ratios", json!({ "workload": workload, "ratio": ratio.json() }));
        warn_of_busy_generator(names.into_iter().zip(busy));
    }
    report.finish()
}
