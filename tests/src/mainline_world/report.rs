//! Sieges as a table for people, and as JSON for programs.

use std::fmt::Write;

use serde_json::{Value, json};

use super::siege::{Outcome, Plan, Score};

/// Writes the runs of a plan as a table.
#[must_use]
pub fn table(plan: &Plan, outcomes: &[Outcome]) -> String {
    let mut text = format!(
        "{} nodes, {} % hostile, seed {}: {} items, {} of them besieged, half by Sybils of {} \
         networks with any ids, half by Sybils of {} networks whose ids fit
",
        plan.nodes,
        100.0 * plan.hostile,
        plan.seed,
        plan.items,
        plan.victims,
        plan.sybil_networks,
        plan.fitting_networks
    );
    let heads = ["nobody around", "Sybils, any ids", "Sybils, ids fit"];
    let heads = heads.map(|head| format!(" |{head:>32}")).concat();
    let _ = writeln!(text, "{:<15}{heads} |", "");
    let heads = ["put", "get", "stale", "copies"].map(|head| format!("{head:>8}")).concat();
    let heads = format!(" |{heads}").repeat(3);
    let _ = writeln!(text, "{:<15}{heads} |{:>7}{:>9}{:>8}", "", "table", "hostile", "get ms");
    for outcome in outcomes {
        let scores = [outcome.usual, outcome.besieged, outcome.besieged_fitting];
        let _ = writeln!(
            text,
            "{:<15}{} |{:>7.0}{:>9.1}{:>8.0}",
            outcome.guards,
            scores.map(|score| columns(&score)).concat(),
            outcome.table.0,
            outcome.table.1,
            outcome.get_ms
        );
    }
    text
}

fn columns(score: &Score) -> String {
    let of = |count: usize| count as f64 / score.items.max(1) as f64;
    let percent = |count: usize| format!("{:.1} %", 100.0 * of(count));
    format!(
        " |{:>8}{:>8}{:>8}{:>8.1}",
        percent(score.held),
        percent(score.found),
        percent(score.stale),
        of(score.copies)
    )
}

/// Returns the runs of a plan as JSON.
#[must_use]
pub fn json(plan: &Plan, outcomes: &[Outcome]) -> Value {
    let score = |score: &Score| {
        json!({
            "items": score.items, "held": score.held, "copies": score.copies,
            "claimed": score.claimed, "found": score.found, "stale": score.stale,
        })
    };
    let run = |outcome: &Outcome| {
        json!({
            "guards": outcome.guards, "usual": score(&outcome.usual),
            "besieged": score(&outcome.besieged),
            "besieged_fitting": score(&outcome.besieged_fitting), "table": outcome.table.0,
            "table_hostile": outcome.table.1, "get_ms": outcome.get_ms,
            "datagrams": outcome.counters.sent,
            "hash": format!("{:016x}", outcome.counters.hash),
        })
    };
    json!({
        "seed": plan.seed, "nodes": plan.nodes, "hostile": plan.hostile, "items": plan.items,
        "victims": plan.victims, "sybil_networks": plan.sybil_networks,
        "fitting_networks": plan.fitting_networks,
        "runs": outcomes.iter().map(run).collect::<Vec<_>>(),
    })
}
