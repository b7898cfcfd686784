//! `kadring bench`: a load generator for any server that speaks RESP, and the parts that the
//! benches share with it.
//!
//! ```text
//! flags ──> Plan ── load / read_back / measure ──> Outcome ──> table, JSON, SVG
//!             └─> a Worker per thread: Operations, Requests ─> Connection ─> ReplyReader ─> Tally
//! ```
//!
//! It is a tool beside the node: it has sockets and a clock of its own, and shares nothing with the
//! node's doors, so that it measures another server alike.

mod bench_error;
mod connection;
mod cpu;
mod flags;
mod generator;
mod latencies;
mod outcome;
mod outgoing;
mod plot;
mod reply;
mod schedule;
#[cfg(test)]
mod tests;
mod worker;
mod workload;
mod zipf;

pub use bench_error::BenchError;
pub use connection::Target;
pub use cpu::cpu_of_process;
pub(super) use flags::BenchFlags;
pub use generator::{Pace, Plan, Progress, Tell};
pub use latencies::Latencies;
pub use outcome::{Counts, Outcome};
pub use plot::{Axis, Plot, Series};
pub use reply::{ReplyEvent, ReplyFault, ReplyReader};
pub use schedule::Schedule;
pub use workload::{Distribution, KEY_LEN, Verb, Verify, Workload};
pub use zipf::{KEY_COUNT_MAX, Zipf};

use super::error::CliError;
use super::progress::time_bar;
use crate::config::{self, Sources};
use serde_json::{Value, json};
use std::io::Write;
use std::path::Path;
use std::time::Duration;

/// From this share of a thread's time on the generator itself may be the limit.
const BUSY: f64 = 0.9;

/// Measures a server and writes what came out to `out` and to files.
///
/// # Errors
/// [`BenchError`], or a refused password setting.
pub(super) fn run(
    flags: &BenchFlags,
    sources: &Sources<'_>,
    out: &mut dyn Write,
) -> Result<(), CliError> {
    let password = config::requirepass(sources)?;
    let plan = flags.plan(password.map(|password| password.expose().to_owned()))?;
    if flags.load {
        let bar = time_bar(None, "loading");
        let loaded = plan.load(&mut |progress| bar.set_position(progress.replies));
        bar.finish_and_clear();
        let loaded = loaded?;
        let (count, rate) = (loaded.counts.operations, loaded.rate());
        say(out, format_args!("loaded {count} keys, {rate:.0} per second"))?;
    }
    say(out, format_args!("{}", describe(flags, &plan)))?;
    let bar = time_bar(Some(plan.warm_up + plan.duration), "");
    let outcome = plan.measure(&mut |progress| {
        let rate = progress.replies as f64 / progress.elapsed.as_secs_f64().max(1e-9);
        bar.set_position(millis(progress.elapsed));
        bar.set_message(format!("{rate:.0} ops/s"));
    });
    bar.finish_and_clear();
    let outcome = outcome?;
    table(&outcome, out)?;
    write_files(flags, &plan, &outcome)?;
    let Counts { operations, errors, mismatches, .. } = outcome.counts;
    if mismatches > 0 {
        return Err(BenchError::Mismatch { count: mismatches }.into());
    }
    if operations == 0 && errors > 0 {
        let text = outcome.first_error.unwrap_or_default();
        return Err(BenchError::Refused { errors, text }.into());
    }
    Ok(())
}

fn say(out: &mut dyn Write, line: std::fmt::Arguments<'_>) -> Result<(), CliError> {
    writeln!(out, "{line}").map_err(CliError::Output)
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn describe(flags: &BenchFlags, plan: &Plan) -> String {
    let Workload { get_percent, value_len, key_count, distribution, .. } = plan.workload;
    let distribution = match distribution {
        Distribution::Uniform => "uniform".to_owned(),
        Distribution::Zipf { theta } => format!("zipf {theta}"),
    };
    let pace = match plan.pace {
        Pace::Closed => "closed loop".to_owned(),
        Pace::PerSecond(rate) => format!("open loop at {rate}/s"),
    };
    format!(
        "{}: GET {get_percent} %, {key_count} keys ({distribution}), {value_len} B, \
         {} connections, pipeline {}, {} threads, {pace}, {:?}",
        flags.server, plan.connections, plan.pipeline, plan.threads, plan.duration
    )
}

fn table(outcome: &Outcome, out: &mut dyn Write) -> Result<(), CliError> {
    let heads = ["operations", "ops/s", "p50 us", "p99 us", "p99.9 us", "max us"];
    let row = |name: &str, cells: &[String]| {
        cells.iter().fold(format!("{name:<8}"), |line, cell| format!("{line} {cell:>11}"))
    };
    say(out, format_args!("{}", row("", &heads.map(str::to_owned))))?;
    let all = outcome.latencies();
    let rows = [("GET", &outcome.gets), ("SET", &outcome.sets), ("all", &all)];
    for (name, latencies) in rows.into_iter().filter(|(_, latencies)| latencies.count() > 0) {
        let mut cells = vec![latencies.count().to_string()];
        cells.push(format!("{:.0}", latencies.count() as f64 / outcome.elapsed.as_secs_f64()));
        let percents = [50.0, 99.0, 99.9, 100.0].iter();
        cells.extend(percents.map(|percent| format!("{:.0}", latencies.micros(*percent))));
        say(out, format_args!("{}", row(name, &cells)))?;
    }
    let Counts { misses, errors, mismatches, unanswered, .. } = outcome.counts;
    let counts = [
        (errors, "error replies, which are not counted as operations"),
        (misses, "GETs of keys that are not there; --load stores them first"),
        (mismatches, "values that are not what was stored"),
        (unanswered, "operations that were due and never answered"),
    ];
    for (count, what) in counts.into_iter().filter(|(count, _)| *count > 0) {
        say(out, format_args!("{count} {what}"))?;
    }
    if let Some(text) = &outcome.first_error {
        say(out, format_args!("first error: {text}"))?;
    }
    if let Some(micros) = outcome.server_cpu_micros() {
        say(out, format_args!("CPU of the server: {micros:.2} us per operation"))?;
    }
    let busy = outcome.generator_busy * 100.0;
    let limit =
        if outcome.generator_busy < BUSY { "" } else { ": IT MAY BE THE LIMIT, not the server" };
    say(
        out,
        format_args!("generator: busiest thread on a processor {busy:.0} % of the time{limit}"),
    )
}

/// The result with what was asked for, for programs.
fn result_json(flags: &BenchFlags, plan: &Plan, outcome: &Outcome) -> Value {
    let Workload { get_percent, value_len, key_first, key_count, distribution, verify } =
        plan.workload;
    let theta = match distribution {
        Distribution::Uniform => None,
        Distribution::Zipf { theta } => Some(theta),
    };
    let rate = match plan.pace {
        Pace::Closed => None,
        Pace::PerSecond(rate) => Some(rate),
    };
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "server": flags.server,
        "workload": {
            "get_percent": get_percent,
            "value_bytes": value_len,
            "first_key": key_first,
            "keys": key_count,
            "distribution": if theta.is_some() { "zipf" } else { "uniform" },
            "theta": theta,
            "verify": verify == Verify::Values,
        },
        "load": {
            "pipeline": plan.pipeline,
            "connections": plan.connections,
            "threads": plan.threads,
            "rate": rate,
            "warm_up_seconds": plan.warm_up.as_secs_f64(),
            "seconds": plan.duration.as_secs_f64(),
        },
        "result": outcome.json(),
    })
}

fn write_files(flags: &BenchFlags, plan: &Plan, outcome: &Outcome) -> Result<(), BenchError> {
    let failed = |file: &Path, error: &dyn std::fmt::Display| BenchError::File {
        file: file.to_owned(),
        text: error.to_string(),
    };
    if let Some(file) = &flags.json {
        let text = format!("{:#}\n", result_json(flags, plan, outcome));
        std::fs::write(file, text).map_err(|error| failed(file, &error))?;
    }
    if let Some(file) = &flags.svg {
        let title = describe(flags, plan);
        latency_plot(title, outcome).draw(file).map_err(|error| failed(file, &error))?;
    }
    Ok(())
}

/// Latencies over how rare they are.
fn latency_plot(title: String, outcome: &Outcome) -> Plot {
    let named = [("GET", &outcome.gets), ("SET", &outcome.sets)];
    let named = named.into_iter().filter(|(_, latencies)| latencies.count() > 0);
    let series =
        named.map(|(name, latencies)| Series { name: name.to_owned(), points: latencies.curve() });
    Plot {
        title,
        across: "one operation of so many is slower".to_owned(),
        up: "latency, microseconds".to_owned(),
        axis: Axis::Logarithmic,
        up_axis: Axis::Logarithmic,
        series: series.collect(),
    }
}
