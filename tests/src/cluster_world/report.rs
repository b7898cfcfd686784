//! Runs as a table for people, as JSON for programs, and as plots.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde_json::{Value, json};

use super::{Engine, Outcome, Sample, Summary};
use crate::net_world::plot::{Across, Plot, Series};

/// Sums runs up by scenario, in the order of the first of each.
fn by_scenario(outcomes: &[Outcome]) -> Vec<(&'static str, Vec<&Outcome>)> {
    let mut names: Vec<&'static str> = Vec::new();
    let mut runs = BTreeMap::<_, Vec<&Outcome>>::new();
    for outcome in outcomes {
        let name = outcome.plan.scenario.name();
        if !names.contains(&name) {
            names.push(name);
        }
        runs.entry(name).or_default().push(outcome);
    }
    names.into_iter().filter_map(|name| Some((name, runs.remove(name)?))).collect()
}

/// Writes runs as a table, a line for each scenario.
#[must_use]
pub fn table(outcomes: &[Outcome]) -> String {
    let mut text = format!(
        "{:<14}{:>6}{:>11}{:>9}{:>9}{:>7}{:>9}{:>8}{:>6}{:>7}{:>9}{:>7}{:>8}{:>8}{:>10}\n",
        "scenario",
        "seeds",
        "messages",
        "writes",
        "reads",
        "scans",
        "refused",
        "crashes",
        "cuts",
        "moves",
        "given up",
        "beyond",
        "p50 ms",
        "p99 ms",
        "agreed ms"
    );
    for (name, runs) in by_scenario(outcomes) {
        let mut total = Summary::default();
        runs.iter().for_each(|run| total.add(&run.summary));
        let samples = || runs.iter().flat_map(|run| &run.samples).filter(|it| it.answered > 0);
        let answered: usize = samples().map(|sample| sample.answered).sum();
        let mean = |of: &dyn Fn(&Sample) -> f64| {
            let sum: f64 = samples().map(|sample| sample.answered as f64 * of(sample)).sum();
            sum / answered.max(1) as f64
        };
        let _ = writeln!(
            text,
            "{:<14}{:>6}{:>11}{:>9}{:>9}{:>7}{:>9}{:>8}{:>6}{:>7}{:>9}{:>7}{:>8.1}{:>8.1}{:>10}",
            name,
            runs.len(),
            total.messages,
            total.writes,
            total.reads,
            total.scans,
            total.refused,
            total.crashes,
            total.cuts,
            total.moves,
            total.discarded,
            total.beyond,
            mean(&|sample| sample.latency_ms.0),
            mean(&|sample| sample.latency_ms.1),
            total.converged_ms
        );
    }
    text
}

/// Returns runs as JSON.
#[must_use]
pub fn json(outcomes: &[Outcome]) -> Value {
    let sample = |sample: &Sample| {
        json!({
            "at_s": sample.at_s, "up": sample.up, "answered": sample.answered,
            "refused": sample.refused, "p50_ms": sample.latency_ms.0,
            "p99_ms": sample.latency_ms.1, "whole": sample.whole,
        })
    };
    let run = |outcome: &Outcome| {
        let Summary { hash, messages, writes, reads, scans, refused, .. } = outcome.summary;
        let Summary { crashes, cuts, moves, discarded, beyond, .. } = outcome.summary;
        let Summary { under_way_most, converged_ms, .. } = outcome.summary;
        let is_real = outcome.plan.engine != Engine::Model;
        json!({
            "scenario": outcome.plan.scenario.name(), "nodes": outcome.plan.nodes,
            "engine": if is_real { "real" } else { "model" }, "seed": outcome.seed,
            "hash": format!("{hash:016x}"), "messages": messages, "writes": writes,
            "reads": reads, "scans": scans, "refused": refused, "crashes": crashes,
            "cuts": cuts, "moves": moves,
            "copies_given_up": discarded, "keys_beyond_promise": beyond,
            "under_way_most": under_way_most, "agreed_ms": converged_ms,
            "samples": outcome.samples.iter().map(sample).collect::<Vec<_>>(),
        })
    };
    Value::Array(outcomes.iter().map(run).collect())
}

/// Returns what is to be drawn of a run: a name, and the plot.
#[must_use]
pub fn plots(outcome: &Outcome) -> Vec<(String, Plot)> {
    let name = outcome.plan.scenario.name();
    let line = |series: &str, of: &dyn Fn(&Sample) -> f64| Series {
        name: series.to_owned(),
        points: outcome.samples.iter().map(|sample| (sample.at_s, of(sample))).collect(),
    };
    let plot = |what: &str, up: &str, series| {
        let title = format!("{name}, seed {}: {what}", outcome.seed);
        let (across, up) = ("seconds".to_owned(), up.to_owned());
        let plot = Plot { title, across, axis: Across::Even, up, series };
        (format!("cluster-{name}-{what}"), plot)
    };
    let success = |sample: &Sample| {
        let all = sample.answered + sample.refused;
        if all == 0 { 100.0 } else { 100.0 * sample.answered as f64 / all as f64 }
    };
    let most = outcome.samples.iter().map(|sample| sample.up).max().unwrap_or(1).max(1) as f64;
    vec![
        plot(
            "success",
            "%",
            vec![
                line("commands answered", &success),
                line("keys with all copies", &|sample| 100.0 * sample.whole),
                line("nodes up", &|sample| 100.0 * sample.up as f64 / most),
            ],
        ),
        plot(
            "latency",
            "ms",
            vec![
                line("p50", &|sample| sample.latency_ms.0),
                line("p99", &|sample| sample.latency_ms.1),
            ],
        ),
    ]
}
