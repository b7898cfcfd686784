//! How long does a client wait when the load does not wait for it, while compaction runs; and when
//! another client asks for much more?
//!
//! Unit: microseconds from when an operation was due to its answer. *Half of peak*: the peak of
//! half GETs, half SETs of 1 KiB is measured in a closed loop, then half of that rate is due on an
//! even schedule, long enough that most of the log has been overwritten and compaction runs
//! (`freed`: segments it gave back meanwhile). Expected: a SET waits for a frame, some 200 us; at
//! half of the peak, queues are short, so p99 is a few frames. Behind p99.9 stand the disk's own
//! hiccups and steps of compaction. The aim is 5 ms.
//!
//! *Beside a heavy client*: a light client asks for 64 B values, 500 per second on one connection;
//! first alone, then beside connections with a pipeline of 64, then beside GETs and SETs of 64 KiB.
//! Light and heavy load come from two threads on one core, so a part of the light client's wait is
//! the generator's; redis-server beside meets the same.
//!
//! The server runs on core 0, the generator on core 1. Contestants take turns.

#![expect(clippy::print_stdout, reason = "a bench prints its result")]

use clap::Parser;
use kadring::cli::bench::{Latencies, Outcome, Pace, Plan, Workload};
use kadring_benches::{
    Axis, Flags, Plot, Report, Series, Server, ServerFlags, Starter, Table, Turns, fill, measure,
    sum_in_info, uniform, warn_of_busy_generator,
};
use serde_json::json;
use std::error::Error;
use std::time::Duration;

/// Aim for p99.9 at half of the peak, in microseconds.
const AIM: f64 = 5000.0;
/// Operations per second of the light client.
const LIGHT_RATE: f64 = 500.0;
/// Keys of the heavy clients begin here.
const HEAVY_FIRST: u64 = 1_000_000_000;
const TABLE: Table = Table { name_width: 20, width: 10 };

#[derive(Debug, Parser)]
struct Arguments {
    #[command(flatten)]
    flags: Flags,
    #[command(flatten)]
    server: ServerFlags,
    /// Number of keys at half of peak; at most 2,000 in a smoke run.
    #[arg(long, value_name = "N", default_value_t = 300_000)]
    keys: u64,
    /// Operations on a connection at a time at half of peak.
    #[arg(long, value_name = "N", default_value_t = 4)]
    pipeline: usize,
    /// Seconds of overwriting before each measurement, so that there is something to compact.
    #[arg(long, value_name = "S", default_value_t = 10.0)]
    overwrite_seconds: f64,
}

impl Arguments {
    fn workload(&self) -> Workload {
        let keys = if self.flags.smoke { self.keys.min(2000) } else { self.keys };
        uniform(50, 1024, keys)
    }

    fn overwriting(&self) -> Result<Duration, Box<dyn Error>> {
        let seconds = if self.flags.smoke { 0.02 } else { self.overwrite_seconds };
        Ok(Duration::try_from_secs_f64(seconds)?)
    }
}

fn servers(starter: &Starter) -> Result<Vec<Server>, Box<dyn Error>> {
    let mut servers = starter.kadrings(&[])?;
    if starter.has_redis() {
        servers.push(starter.redis("redis memory", &["--appendonly", "no"])?);
        let aof = ["--appendonly", "yes", "--appendfsync", "everysec"];
        servers.push(starter.redis("redis everysec", &aof)?);
    }
    Ok(servers)
}

/// What all turns of a contestant came to.
#[derive(Debug, Default)]
struct Turned {
    latencies: Latencies,
    send_lag: Latencies,
    operations: u64,
    unanswered: u64,
    seconds: f64,
    cpu_seconds: f64,
    busy: f64,
}

impl Turned {
    fn add(&mut self, outcome: &Outcome) {
        self.latencies.add(&outcome.latencies());
        self.send_lag.add(&outcome.send_lag);
        self.operations += outcome.counts.operations;
        self.unanswered += outcome.counts.unanswered;
        self.seconds += outcome.elapsed.as_secs_f64();
        self.cpu_seconds += outcome.server_cpu.unwrap_or_default().as_secs_f64();
        self.busy = self.busy.max(outcome.generator_busy);
    }

    fn rate(&self) -> f64 {
        self.operations as f64 / self.seconds.max(1e-9)
    }

    fn cells(&self) -> Vec<String> {
        let micros = |percent| format!("{:.0}", self.latencies.micros(percent));
        vec![
            format!("{:.0}", self.rate()),
            micros(50.0),
            micros(99.0),
            micros(99.9),
            micros(100.0),
            format!("{:.0}", self.send_lag.micros(99.9)),
            format!("{:.2}", self.cpu_seconds * 1e6 / self.operations.max(1) as f64),
        ]
    }

    fn json(&self) -> serde_json::Value {
        json!({
            "ops_per_s": self.rate(),
            "latency": self.latencies.json(),
            "send_lag": self.send_lag.json(),
            "unanswered": self.unanswered,
            "cpu_us_per_op": self.cpu_seconds * 1e6 / self.operations.max(1) as f64,
            "generator_busy": self.busy,
        })
    }
}

const COLUMNS: [&str; 7] =
    ["ops/s", "p50 us", "p99 us", "p99.9 us", "max us", "lag p99.9", "CPU us/op"];

fn row(name: &str, cells: &[String]) {
    TABLE.row(name, cells.iter().map(String::as_str));
}

/// Segments that compaction has freed so far; nothing for a server that has none.
fn freed(server: &Server) -> Result<u64, Box<dyn Error>> {
    Ok(sum_in_info(&server.info()?, "segments_freed"))
}

fn half_of_peak(
    report: &mut Report,
    servers: &[Server],
    arguments: &Arguments,
    turns: Turns,
) -> Result<(), Box<dyn Error>> {
    let (workload, pipeline) = (arguments.workload(), arguments.pipeline);
    let overwriting = Turns { duration: arguments.overwriting()?, ..turns };
    let mut turned: Vec<(Turned, f64, u64)> = Vec::new();
    turned.resize_with(servers.len(), Default::default);
    for server in servers {
        fill(&server.plan(workload, turns))?;
    }
    for _ in 0..turns.repeats {
        for (server, (turned, peak_max, freed_sum)) in servers.iter().zip(&mut turned) {
            // This overwrites and finds the peak at once.
            let peak = Plan { pipeline, ..server.plan(workload, overwriting) };
            let peak = measure(&peak)?.rate();
            let before = freed(server)?;
            // In a smoke run nothing may have been answered.
            let pace = Pace::PerSecond((peak / 2.0).max(1.0));
            let half = Plan { pipeline, pace, ..server.plan(workload, turns) };
            turned.add(&measure(&half)?);
            *peak_max = peak.max(*peak_max);
            *freed_sum += freed(server)?.saturating_sub(before);
        }
    }
    println!("\nhalf of peak, 50/50 GET and SET of 1 KiB, {} keys", workload.key_count);
    TABLE.row("", COLUMNS.into_iter().chain(["peak", "freed"]));
    for (server, (turned, peak, freed)) in servers.iter().zip(&turned) {
        let mut cells = turned.cells();
        cells.extend([format!("{peak:.0}"), freed.to_string()]);
        row(server.name, &cells);
        if turned.unanswered > 0 {
            println!("{}: {} operations were never answered", server.name, turned.unanswered);
        }
        report.push(
            "half_of_peak",
            json!({
                "contestant": server.name,
                "peak": peak,
                "segments_freed": freed,
                "result": turned.json(),
            }),
        );
    }
    let busy = servers.iter().zip(&turned);
    warn_of_busy_generator(busy.map(|(server, (turned, ..))| (server.name, turned.busy)));
    if arguments.flags.smoke {
        return Ok(());
    }
    let (uring, _, freed) = &turned[0];
    if *freed == 0 {
        println!("NO COMPACTION in the measured time: give more --overwrite-seconds");
    }
    report.judge("aim: p99.9 under 5 ms at half of peak", uring.latencies.micros(99.9) < AIM);
    let series = servers.iter().zip(&turned).map(|(server, (turned, ..))| Series {
        name: server.name.to_owned(),
        points: turned.latencies.curve(),
    });
    let plot = Plot {
        title: "50/50 open loop at half of peak".to_owned(),
        across: "one operation of so many is slower".to_owned(),
        up: "latency, microseconds".to_owned(),
        axis: Axis::Logarithmic,
        up_axis: Axis::Logarithmic,
        series: series.collect(),
    };
    report.plot("", &plot)
}

/// What is beside the light client.
#[derive(Clone, Copy, Debug)]
struct Heavy {
    name: &'static str,
    value_len: usize,
    key_count: u64,
    get_percent: u8,
    pipeline: usize,
    connections: usize,
}

const HEAVY: [Heavy; 3] = [
    Heavy {
        name: "beside GET 64 B P64",
        value_len: 64,
        key_count: 1000,
        get_percent: 100,
        pipeline: 64,
        connections: 4,
    },
    Heavy {
        name: "beside GET 64 KiB P16",
        value_len: 64 << 10,
        key_count: 200,
        get_percent: 100,
        pipeline: 16,
        connections: 4,
    },
    Heavy {
        name: "beside SET 64 KiB P16",
        value_len: 64 << 10,
        key_count: 200,
        get_percent: 0,
        pipeline: 16,
        connections: 4,
    },
];

impl Heavy {
    fn plan(&self, server: &Server, turns: Turns) -> Plan {
        let workload = uniform(self.get_percent, self.value_len, self.key_count);
        // Keys of their own for each length.
        let key_first = HEAVY_FIRST + self.value_len as u64 * 1000;
        let workload = Workload { key_first, ..workload };
        let (pipeline, connections) = (self.pipeline, self.connections);
        Plan { pipeline, connections, ..server.plan(workload, turns) }
    }
}

fn light_plan(server: &Server, turns: Turns) -> Plan {
    let pace = Pace::PerSecond(LIGHT_RATE);
    // Room for what is due while an answer is late.
    Plan { pace, connections: 1, pipeline: 64, ..server.plan(uniform(100, 64, 1000), turns) }
}

/// Measures both at once; what comes back is the light client's, and the heavy one's rate.
fn beside(light: &Plan, heavy: &Plan) -> Result<(Outcome, f64), Box<dyn Error>> {
    std::thread::scope(|scope| {
        // Errors as text: others do not leave their thread.
        let heavy = scope.spawn(|| measure(heavy).map_err(|error| error.to_string()));
        let light = measure(light);
        let heavy = heavy.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        Ok((light?, heavy.rate()))
    })
}

fn fairness(report: &mut Report, servers: &[Server], turns: Turns) -> Result<(), Box<dyn Error>> {
    for server in servers {
        fill(&light_plan(server, turns))?;
        for heavy in &HEAVY {
            fill(&heavy.plan(server, turns))?;
        }
    }
    for heavy in std::iter::once(None).chain(HEAVY.iter().map(Some)) {
        let mut turned: Vec<(Turned, f64)> = Vec::new();
        turned.resize_with(servers.len(), Default::default);
        for _ in 0..turns.repeats {
            for (server, (turned, heavy_rate)) in servers.iter().zip(&mut turned) {
                let light = light_plan(server, turns);
                let (outcome, rate) = match heavy {
                    Some(heavy) => beside(&light, &heavy.plan(server, turns))?,
                    None => (measure(&light)?, 0.0),
                };
                turned.add(&outcome);
                *heavy_rate = rate.max(*heavy_rate);
            }
        }
        let name = heavy.map_or("light client alone", |heavy| heavy.name);
        println!("\n{name}: the light client's GETs of 64 B, {LIGHT_RATE} per second");
        TABLE.row("", COLUMNS[..6].iter().copied().chain(["heavy/s"]));
        for (server, (turned, heavy_rate)) in servers.iter().zip(&turned) {
            let mut cells = turned.cells();
            cells[6] = format!("{heavy_rate:.0}");
            row(server.name, &cells);
            report.push(
                "fairness",
                json!({
                    "contestant": server.name,
                    "workload": name,
                    "result": turned.json(),
                    "heavy_ops_per_s": heavy_rate,
                }),
            );
        }
    }
    Ok(())
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments = Arguments::parse();
    let flags = &arguments.flags;
    let mut report = Report::new("open_loop", flags, flags.scratch()?.path())?;
    let starter = Starter::new(flags, &arguments.server)?;
    let all = servers(&starter)?;
    half_of_peak(&mut report, &all, &arguments, flags.turns(5.0, 3))?;
    drop(all);
    let all = servers(&starter)?;
    fairness(&mut report, &all, flags.turns(2.0, 2))?;
    report.finish()
}
