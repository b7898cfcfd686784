//! How fast is the client door on each driver, and beside `redis-server`?
//!
//! Unit: operations per second, latency of an operation (from when its batch was sent, as many
//! commands as the pipeline is deep), CPU of the server per operation. Expected on loopback: about
//! 5 us of CPU per unpipelined command, nearly all of it the kernel's TCP, so some 200,000 ops/s on
//! any server; with 64 commands per batch the parser and the store decide. A durable SET waits for
//! the disk: about 50 connections per 100-200 us where commands are not pipelined.
//!
//! The server runs on core 0 and the generator (that of `kadring bench`), one thread with all
//! connections in a closed loop, on core 1. Every acknowledged SET of the first three rows is
//! durable; of the Redis rows only `redis always` promises the same. `kadring os` leaves syncing to
//! the system and promises what `redis memory` does when only the process dies, and more. GET is
//! hot: everything fits the read cache.

#![expect(clippy::print_stdout, reason = "a bench prints its result")]

use clap::Parser;
use kadring::cli::bench::{Plan, Verb, Workload};
use kadring_benches::{
    Axis, Flags, Plot, Report, SUMMARY_COLUMNS, Sample, Series, Server, ServerFlags, Starter,
    Summary, Table, Turns, fill, interleave, measure, uniform, warn_of_busy_generator,
};
use serde_json::json;
use std::error::Error;

const KEYS_MAX: usize = 1000;
/// Bytes of all values, so that they fit the cache.
const VALUE_BYTES_MAX: usize = 16 << 20;
const TABLE: Table = Table { name_width: 20, width: 10 };
const DURABLE: &str = "kadring uring";
const UNSYNCED: &str = "kadring os";

#[derive(Debug, Parser)]
struct Arguments {
    #[command(flatten)]
    flags: Flags,
    #[command(flatten)]
    server: ServerFlags,
    /// Connections of the generator.
    #[arg(long, default_value_t = 50)]
    connections: usize,
    /// Only workloads whose name contains this, such as "SET 64 B P16".
    #[arg(long, value_name = "TEXT", default_value = "")]
    only: String,
}

#[derive(Clone, Copy, Debug)]
struct Row {
    verb: Verb,
    value_len: usize,
    pipeline: usize,
}

const fn row(verb: Verb, value_len: usize, pipeline: usize) -> Row {
    Row { verb, value_len, pipeline }
}

const ROWS: [Row; 14] = [
    row(Verb::Get, 64, 1),
    row(Verb::Get, 64, 16),
    row(Verb::Get, 64, 64),
    row(Verb::Set, 64, 1),
    row(Verb::Set, 64, 16),
    row(Verb::Set, 64, 64),
    row(Verb::Get, 4 << 10, 1),
    row(Verb::Get, 4 << 10, 4),
    row(Verb::Set, 4 << 10, 1),
    row(Verb::Set, 4 << 10, 4),
    row(Verb::Get, 64 << 10, 1),
    row(Verb::Get, 64 << 10, 4),
    row(Verb::Set, 64 << 10, 1),
    row(Verb::Set, 64 << 10, 4),
];
const ROWS_SMOKE: [Row; 2] = [row(Verb::Get, 64, 16), row(Verb::Set, 64, 16)];

impl Row {
    fn name(&self) -> String {
        let verb = if self.verb == Verb::Get { "GET" } else { "SET" };
        format!("{verb} {} B P{}", self.value_len, self.pipeline)
    }

    fn workload(&self) -> Workload {
        let key_count = KEYS_MAX.min(VALUE_BYTES_MAX / self.value_len) as u64;
        uniform(if self.verb == Verb::Get { 100 } else { 0 }, self.value_len, key_count)
    }

    /// What has to be reached: of which contestant, against which, the demand and the stretch.
    fn demands(&self) -> Vec<(&'static str, &'static str, f64, Option<f64>)> {
        let memory = "redis memory";
        let contestant = if self.verb == Verb::Get { DURABLE } else { UNSYNCED };
        let mut demands = match (self.verb, self.value_len, self.pipeline) {
            (_, 64, 1) => vec![(contestant, memory, 1.0, Some(1.1))],
            (_, 64, 16) => vec![(contestant, memory, 1.3, Some(1.8))],
            (_, 64, _) => vec![(contestant, memory, 1.3, Some(2.5))],
            (Verb::Get, ..) => vec![(contestant, memory, 1.2, None)],
            (Verb::Set, ..) => vec![(contestant, memory, 1.0, None)],
        };
        if self.verb == Verb::Set && self.value_len == 64 {
            demands.push((DURABLE, "redis always", 2.0, Some(5.0)));
            if self.pipeline == 16 {
                demands.push((DURABLE, memory, 0.8, Some(1.5)));
            }
        }
        demands
    }
}

/// Starts everybody who takes part; persistence makes no difference to GET.
fn servers(starter: &Starter, verb: Verb) -> Result<Vec<Server>, Box<dyn Error>> {
    let mut servers = starter.kadrings(&[])?;
    if verb == Verb::Set {
        servers.push(starter.kadring(UNSYNCED, &["--durability", "os"])?);
    }
    if starter.has_redis() {
        servers.push(starter.redis("redis memory", &["--appendonly", "no"])?);
        if verb == Verb::Set {
            let aof = ["--appendonly", "yes", "--appendfsync"];
            servers.push(starter.redis("redis always", &[&aof[..], &["always"]].concat())?);
            servers.push(starter.redis("redis everysec", &[&aof[..], &["everysec"]].concat())?);
        }
    }
    Ok(servers)
}

/// A row's contestants and what they came to.
struct Measured<'a> {
    servers: &'a [Server],
    summaries: &'a [Summary],
    /// Greatest share of its time that the generator was on a processor.
    busy: &'a [f64],
}

impl Measured<'_> {
    fn named(&self, name: &str) -> Option<&Summary> {
        let index = self.servers.iter().position(|server| server.name == name)?;
        Some(&self.summaries[index])
    }

    fn print(&self, report: &mut Report, row: &Row) {
        println!();
        TABLE.row(&row.name(), SUMMARY_COLUMNS);
        for ((server, summary), busy) in self.servers.iter().zip(self.summaries).zip(self.busy) {
            TABLE.row(server.name, summary.cells().iter().map(String::as_str));
            report.push(
                "rows",
                json!({
                    "contestant": server.name,
                    "workload": row.name(),
                    "result": summary.json(),
                    "generator_busy": busy,
                    "kadring_uring_ratio": self.summaries[0].ratio_to(summary).json(),
                }),
            );
        }
        let mut line = "ratios:".to_owned();
        for (server, summary) in self.servers.iter().zip(self.summaries).skip(1) {
            let name = server.name.trim_start_matches("kadring ");
            line.push_str(&format!("   uring/{name} {}", self.summaries[0].ratio_to(summary)));
        }
        println!("{line}");
        let names = self.servers.iter().map(|server| server.name);
        warn_of_busy_generator(names.zip(self.busy.iter().copied()));
    }

    fn judge(&self, report: &mut Report, row: &Row) {
        for (contestant, other, must, stretch) in row.demands() {
            let Some((own, other_one)) = self.named(contestant).zip(self.named(other)) else {
                continue;
            };
            let ratio = own.ratio_to(other_one);
            let demand = format!("{}: {contestant} {must}x of {other}, is {ratio}", row.name());
            report.judge(&demand, ratio.median >= must);
            if let Some(stretch) = stretch {
                let demand = format!("{}: stretch, {stretch}x of {other}", row.name());
                report.judge(&demand, ratio.median >= stretch);
            }
        }
    }
}

/// Rates of short values over the depth of the pipeline, by contestant.
#[derive(Debug, Default)]
struct Lines(Vec<Series>);

impl Lines {
    fn add(&mut self, measured: &Measured<'_>, pipeline: usize) {
        for (server, summary) in measured.servers.iter().zip(measured.summaries) {
            let point = (pipeline as f64, summary.rate());
            match self.0.iter_mut().find(|series| series.name == server.name) {
                Some(series) => series.points.push(point),
                None => self.0.push(Series { name: server.name.into(), points: vec![point] }),
            }
        }
    }

    /// Draws them, if there is more than one depth.
    fn plot(self, report: &Report, verb: &str) -> Result<(), Box<dyn Error>> {
        if self.0.first().is_none_or(|series| series.points.len() < 2) {
            return Ok(());
        }
        let plot = Plot {
            title: format!("{verb} of 64 B per second, server on one core"),
            across: "commands in a batch".to_owned(),
            axis: Axis::Logarithmic,
            up: "operations/s".to_owned(),
            up_axis: Axis::Logarithmic,
            series: self.0,
        };
        report.plot(&format!("-{}", verb.to_lowercase()), &plot)
    }
}

fn plan(server: &Server, row: &Row, turns: Turns, connections: usize) -> Plan {
    let plan = server.plan(row.workload(), turns);
    Plan { pipeline: row.pipeline, connections, ..plan }
}

fn main() -> Result<(), Box<dyn Error>> {
    let Arguments { flags, server, connections, only } = Arguments::parse();
    let turns = flags.turns(0.7, 3);
    let mut report = Report::new("resp_throughput", &flags, flags.scratch()?.path())?;
    println!(
        "{connections} connections, {} interleaved repeats of {:?}",
        turns.repeats, turns.duration
    );
    let starter = Starter::new(&flags, &server)?;
    let rows = if flags.smoke { &ROWS_SMOKE[..] } else { &ROWS[..] };
    let (mut gets, mut sets) = (Lines::default(), Lines::default());
    for row in rows.iter().filter(|row| row.name().contains(&only)) {
        let servers = servers(&starter, row.verb)?;
        for server in &servers {
            fill(&plan(server, row, turns, connections))?;
        }
        let mut busy = vec![0.0_f64; servers.len()];
        let summaries = interleave(servers.len(), turns.repeats, |index| {
            let server = &servers[index];
            let outcome = measure(&plan(server, row, turns, connections))
                .unwrap_or_else(|error| panic!("{} on {}: {error}", row.name(), server.name));
            busy[index] = busy[index].max(outcome.generator_busy);
            Sample::from(&outcome)
        });
        let measured = Measured { servers: &servers, summaries: &summaries, busy: &busy };
        measured.print(&mut report, row);
        if row.value_len == 64 {
            let lines = if row.verb == Verb::Get { &mut gets } else { &mut sets };
            lines.add(&measured, row.pipeline);
        }
        if !flags.smoke {
            measured.judge(&mut report, row);
        }
    }
    gets.plot(&report, "GET")?;
    sets.plot(&report, "SET")?;
    report.finish()
}
