//! A run as a table for people, and as JSON for programs.

use std::fmt::Write;

use serde_json::{Value, json};

use super::measure::Measurement;
use super::plot::{Across, Plot, Series};
use super::scenario::Outcome;

/// Writes the measurements of a run as a table.
#[must_use]
pub fn table(outcome: &Outcome) -> String {
    let plan = &outcome.plan;
    let mut text = format!(
        "{}: {} nodes, k {}, seed {}, loss {} %, hash {:016x}\n",
        outcome.scenario.name(),
        plan.nodes,
        plan.k,
        plan.seed,
        100.0 * plan.faults.loss,
        outcome.counters.hash
    );
    let _ = writeln!(
        text,
        "{:<18}{:>7}{:>9}{:>10}{:>10}{:>10}{:>7}{:>5}{:>11}{:>9}{:>9}{:>7}{:>7}",
        "when",
        "alive",
        "closest",
        "3 closest",
        "k closest",
        "of k",
        "hops",
        "max",
        "log2(n)/3",
        "p50 ms",
        "p99 ms",
        "asked",
        "failed"
    );
    for row in &outcome.measurements {
        let percent = |share: f64| format!("{:.2} %", 100.0 * share);
        let _ = writeln!(
            text,
            "{:<18}{:>7}{:>9}{:>10}{:>10}{:>10}{:>7.2}{:>5}{:>11.2}{:>9.0}{:>9.0}{:>7.1}{:>7.1}{}",
            row.name,
            row.alive,
            percent(row.first),
            percent(row.replicas),
            percent(row.all),
            percent(row.share),
            row.hops.0,
            row.hops.1,
            row.hops_goal(),
            row.latency_ms.0,
            row.latency_ms.1,
            row.queries,
            row.failures,
            if row.passes() { "" } else { "  FAILED" }
        );
    }
    let counters = &outcome.counters;
    let _ = writeln!(
        text,
        "{} datagrams, {} arrived, {} MB; a node knows {:.0} others",
        counters.sent,
        counters.arrived,
        counters.bytes / 1_000_000,
        outcome.table_len
    );
    text
}

/// Returns runs as JSON.
#[must_use]
pub fn json(outcomes: &[Outcome]) -> Value {
    let row = |row: &Measurement| {
        json!({
            "when": row.name, "at_s": row.at_s, "alive": row.alive, "lookups": row.lookups,
            "unended": row.unended, "closest": row.first, "closest_3": row.replicas,
            "closest_k": row.all, "share_of_k": row.share, "hops_mean": row.hops.0,
            "hops_max": row.hops.1, "hops_goal": row.hops_goal(), "p50_ms": row.latency_ms.0,
            "p99_ms": row.latency_ms.1, "asked": row.queries, "failed": row.failures,
            "slow": row.slow, "must": row.must, "passes": row.passes(),
        })
    };
    let run = |outcome: &Outcome| {
        let plan = &outcome.plan;
        json!({
            "scenario": outcome.scenario.name(), "nodes": plan.nodes, "k": plan.k,
            "seed": plan.seed, "dead": plan.dead, "loss": plan.faults.loss,
            "duplication": plan.faults.duplication, "reordering": plan.faults.reordering,
            "one_way": plan.faults.one_way, "datagrams": outcome.counters.sent,
            "hash": format!("{:016x}", outcome.counters.hash),
            "measurements": outcome.measurements.iter().map(row).collect::<Vec<_>>(),
        })
    };
    Value::Array(outcomes.iter().map(run).collect())
}

/// Returns what is to be drawn of a run: a name, and the plot.
#[must_use]
pub fn plots(outcome: &Outcome) -> Vec<(String, Plot)> {
    let name = outcome.scenario.name();
    let line = |series: &str, of: &dyn Fn(&Measurement) -> f64| Series {
        name: series.to_owned(),
        points: outcome.measurements.iter().map(|row| (row.at_s / 60.0, of(row))).collect(),
    };
    let plot = |what: &str, up: &str, series| {
        let title = format!("{name}, {} nodes: {what}", outcome.plan.nodes);
        let (across, up) = ("minutes".to_owned(), up.to_owned());
        let plot = Plot { title, across, axis: Across::Even, up, series };
        (format!("{name}-{}", what.replace(' ', "-")), plot)
    };
    vec![
        plot(
            "success",
            "% of lookups",
            vec![
                line("closest", &|row| 100.0 * row.first),
                line("3 closest", &|row| 100.0 * row.replicas),
                line("all k closest", &|row| 100.0 * row.all),
            ],
        ),
        plot(
            "hops",
            "hops",
            vec![
                line("mean", &|row| row.hops.0),
                line("max", &|row| f64::from(row.hops.1)),
                line("log2(n)/3", &Measurement::hops_goal),
            ],
        ),
        plot(
            "latency",
            "ms",
            vec![line("p50", &|row| row.latency_ms.0), line("p99", &|row| row.latency_ms.1)],
        ),
    ]
}
