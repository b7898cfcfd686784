//! What INFO and /metrics tell of a Mainline node.

use super::FAMILIES;
use super::commands::Operations;
use crate::krpc::compact::Family;
use crate::mainline::node::MainlineNode;
use crate::mainline::query::QueryKind;
use crate::peer::Figure;

/// All figures.
pub(super) fn of(node: &MainlineNode, operations: &Operations, held: u64) -> Vec<Figure> {
    let mut figures = queries(node);
    for (family, name) in FAMILIES {
        if node.table(family).is_some() {
            figures.extend(of_family(node, family).map(|figure| figure.with("family", name)));
        }
    }
    figures.extend(stored(node, held));
    figures.extend(mirror(node));
    let [in_time, late] = operations.ended;
    let help = "Operations of clients that have ended.";
    let ended = |outcome, count| {
        Figure::counter("kadring_mainline_operations_total", help, count).with("outcome", outcome)
    };
    figures.push(ended("done", in_time));
    figures.push(ended("late", late));
    let help = "Operations of clients under way.";
    let under_way = operations.len() as u64;
    // Not ..._operations: that is what OpenMetrics calls the counter above.
    figures.push(Figure::gauge("kadring_mainline_operations_under_way", help, under_way));
    figures
}

/// Queries of others, by kind and by what became of them.
fn queries(node: &MainlineNode) -> Vec<Figure> {
    let counters = node.server().counters();
    let help = "Queries of others that could be read, by method.";
    let mut figures: Vec<Figure> = QueryKind::METHODS
        .iter()
        .zip(counters.kinds)
        .map(|(method, count)| {
            Figure::counter("kadring_mainline_queries_total", help, count).with("method", *method)
        })
        .collect();
    let help = "Queries of others that could be read, by method and by what became of them.";
    for (method, outcomes) in QueryKind::METHODS.iter().zip(counters.outcomes) {
        for (outcome, count) in ["answered", "refused"].into_iter().zip(outcomes) {
            let figure = Figure::counter("kadring_mainline_replies_total", help, count);
            figures.push(figure.with("method", *method).with("outcome", outcome));
        }
    }
    let help = "Queries of others, by what became of them.";
    let outcome = |outcome, count| {
        Figure::counter("kadring_mainline_answers_total", help, count).with("outcome", outcome)
    };
    figures.extend([
        outcome("answered", counters.answered),
        outcome("refused", counters.refused),
        outcome("limited", counters.limited),
        outcome("martian", counters.martian),
        outcome("malformed", node.counters().rejected),
    ]);
    let help = "Answers without their value, since the asker's address may be forged.";
    figures.push(Figure::counter("kadring_mainline_withheld_total", help, counters.withheld));
    let help = "Signatures of mutable items checked.";
    figures.push(Figure::counter("kadring_mainline_signatures_total", help, counters.signatures));
    let help = "Records of items that could not be understood.";
    figures.push(Figure::counter("kadring_mainline_damaged_total", help, counters.damaged));
    figures
}

/// A family of addresses: its table, its own queries, what the network looks like.
fn of_family(node: &MainlineNode, family: Family) -> impl Iterator<Item = Figure> {
    let index = usize::from(family == Family::V6);
    let counters = node.counters().nodes.get(index).copied().unwrap_or_default();
    let len = node.table(family).map_or(0, |table| table.len() as u64);
    let size = node.network_size(family).unwrap_or(0.0);
    let reachable = u64::from(!node.is_read_only(family));
    let mut network = Figure::gauge(
        "kadring_mainline_network_nodes",
        "Nodes in the network, estimated; 0: not known yet.",
        0,
    );
    network.value = size;
    let health = ["good", "questionable", "bad"].into_iter().zip(node.table_health(family));
    let health = health.map(|(state, count)| {
        let help = "Nodes in the routing table, by whether they have answered lately.";
        let figure = Figure::gauge("kadring_mainline_table_health", help, count as u64);
        figure.with("state", state)
    });
    let rest = [
        Figure::gauge("kadring_mainline_table_nodes", "Nodes in the routing table.", len),
        network,
        Figure::gauge(
            "kadring_mainline_reachable",
            "Whether others reach this node unasked, as far as is known.",
            reachable,
        ),
        Figure::counter(
            "kadring_mainline_queries_sent_total",
            "Queries sent, without resends.",
            counters.queries_out,
        ),
        Figure::counter(
            "kadring_mainline_responses_total",
            "Responses to queries sent.",
            counters.responses_in,
        ),
        Figure::counter(
            "kadring_mainline_errors_total",
            "Errors in answer to queries sent.",
            counters.errors_in,
        ),
        Figure::counter(
            "kadring_mainline_timeouts_total",
            "Queries sent that had no answer.",
            counters.timeouts,
        ),
        Figure::counter(
            "kadring_mainline_unexpected_total",
            "Replies that belong to no query sent, forged ones among them.",
            counters.unexpected,
        ),
        Figure::counter(
            "kadring_mainline_lookups_total",
            "Lookups that have ended.",
            counters.lookups,
        ),
    ];
    health.chain(rest)
}

/// What is held.
fn stored(node: &MainlineNode, held: u64) -> [Figure; 6] {
    let peers = node.server().peers();
    [
        Figure::gauge("kadring_mainline_items", "Items held.", held),
        Figure::gauge(
            "kadring_mainline_unplaced",
            "Items that clients have put here and no other node holds yet.",
            node.unplaced() as u64,
        ),
        Figure::gauge(
            "kadring_mainline_torrents",
            "Torrents that peers are held of.",
            peers.len() as u64,
        ),
        Figure::gauge("kadring_mainline_peers", "Peers held.", peers.count() as u64),
        Figure::gauge(
            "kadring_mainline_peers_bytes",
            "Bytes of memory that peers take.",
            peers.bytes() as u64,
        ),
        Figure::gauge(
            "kadring_mainline_pending",
            "Queries that wait for the engine or for a check of their signature.",
            node.server().pending() as u64,
        ),
    ]
}

/// How far republishing is.
fn mirror(node: &MainlineNode) -> Vec<Figure> {
    let Some(progress) = node.mirror() else { return Vec::new() };
    let help = "Items that the mirror has looked at, by what it did.";
    let items = |outcome, count| {
        Figure::counter("kadring_mainline_mirror_total", help, count).with("outcome", outcome)
    };
    let mut covered = Figure::gauge(
        "kadring_mainline_mirror_covered",
        "How much of the key space this round has covered, 0 to 1.",
        0,
    );
    covered.value = progress.covered;
    vec![
        items("recent", progress.recent),
        items("fresh", progress.fresh),
        items("republished", progress.republished),
        items("newer", progress.newer),
        items("failed", progress.failed),
        items("damaged", progress.damaged),
        covered,
        Figure::counter("kadring_mainline_mirror_rounds_total", "Rounds ended.", progress.rounds),
        Figure::gauge(
            "kadring_mainline_mirror_under_way",
            "Items being republished.",
            progress.under_way as u64,
        ),
    ]
}
