//! What does a second thread bring, and what does it cost?
//!
//! Unit: operations per second, latency of an operation (from when its batch was sent), CPU of the
//! server per operation. Both nodes have two shards; one serves them with one thread, the other
//! with two, so half of the keys that a connection names belong to the other thread and go there
//! and back. Server and generator share two cores, unpinned: with one thread the server can have
//! one core at most, with two both, less what the generator takes. So the rates say what this
//! machine gives; what the design costs is the ratio of CPU per operation, where 1 means that all
//! of a second core would be gained. Expected: 0.5-0.7 for small commands in pipelines, which a
//! message between threads takes a good part of; 0.9-1 where large values take the time.

#![expect(clippy::print_stdout, reason = "a bench prints its result")]

use std::error::Error;

use clap::Parser;
use kadring::cli::bench::Plan;
use kadring_benches::{
    Flags, Report, SUMMARY_COLUMNS, Sample, Server, ServerFlags, Starter, Table, fill, interleave,
    measure, uniform, unpin, warn_of_busy_generator,
};
use serde_json::json;

const TABLE: Table = Table { name_width: 20, width: 10 };

#[derive(Debug, Parser)]
struct Arguments {
    #[command(flatten)]
    flags: Flags,
    #[command(flatten)]
    server: ServerFlags,
    /// Connections of the generator.
    #[arg(long, default_value_t = 50)]
    connections: usize,
}

/// GETs of a hundred, bytes of a value, commands of a batch.
const ROWS: [(u8, usize, usize); 6] =
    [(100, 64, 1), (100, 64, 16), (100, 4 << 10, 4), (0, 64, 1), (0, 64, 16), (0, 4 << 10, 4)];
const ROWS_SMOKE: [(u8, usize, usize); 1] = [(50, 64, 16)];

fn start(starter: &Starter) -> Result<Vec<Server>, Box<dyn Error>> {
    let servers = vec![
        starter.kadring("1 thread", &["--shards", "2", "--threads", "1"])?,
        starter.kadring("2 threads", &["--shards", "2", "--threads", "2"])?,
    ];
    let mut pids = servers.iter().map(Server::pid).chain([std::process::id()]);
    if pids.all(unpin) {
        println!("now all of them on both cores");
    }
    Ok(servers)
}

fn main() -> Result<(), Box<dyn Error>> {
    let Arguments { flags, server, connections } = Arguments::parse();
    let turns = flags.turns(1.0, 5);
    let mut report = Report::new("two_threads", &flags, flags.scratch()?.path())?;
    let starter = Starter::new(&flags, &server)?;
    let rows = if flags.smoke { &ROWS_SMOKE[..] } else { &ROWS[..] };
    for &(get_percent, value_len, pipeline) in rows {
        let servers = start(&starter)?;
        let name = format!("{get_percent} % GET {value_len} B P{pipeline}");
        let plan = |server: &Server| Plan {
            pipeline,
            connections,
            ..server.plan(uniform(get_percent, value_len, 1000), turns)
        };
        for server in &servers {
            fill(&plan(server))?;
        }
        let mut busy = [0.0_f64; 2];
        let summaries = interleave(servers.len(), turns.repeats, |index| {
            let outcome = measure(&plan(&servers[index]))
                .unwrap_or_else(|error| panic!("{name} on {}: {error}", servers[index].name));
            busy[index] = busy[index].max(outcome.generator_busy);
            Sample::from(&outcome)
        });
        println!();
        TABLE.row(&name, SUMMARY_COLUMNS);
        for (server, summary) in servers.iter().zip(&summaries) {
            TABLE.row(server.name, summary.cells().iter().map(String::as_str));
        }
        let [one, two] = [&summaries[0], &summaries[1]];
        let (rate, cpu) = (two.ratio_to(one), one.cpu_micros() / two.cpu_micros());
        println!(
            "2 threads: {rate} of the rate; CPU per operation of 1 thread, of theirs: {cpu:.2}"
        );
        warn_of_busy_generator(servers.iter().map(|server| server.name).zip(busy));
        let json = json!({
            "workload": name,
            "one": one.json(),
            "two": two.json(),
            "rate_ratio": rate.json(),
            "cpu_ratio": cpu,
        });
        report.push("rows", json);
    }
    report.finish()
}
