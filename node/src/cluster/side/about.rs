//! What the peer side tells of itself: KAD.LOCATE, KAD.NODES, KAD.ROUTES, KAD.LOOKUP, and figures.

use storage::Now;
use wal::record::Key;

use super::{Answer, ClusterCommand, ClusterNode, ClusterSide, Figure, PeerLinks};
use crate::cluster::membership::Health;
use crate::cluster::message::{MemberEntry, Phase, Standing};
use crate::cluster::node::ClusterCounters;
use crate::cluster::placement::replica_set;
use crate::io::ConnectionId;
use crate::kademlia::NodeId;
use crate::resp::door::PeerToken;
use crate::resp::reply::ReplyWriter;

impl ClusterSide {
    /// Answers a command about other nodes, now or later.
    pub(super) fn about(
        &mut self,
        now: Now,
        (token, connection): (PeerToken, ConnectionId),
        command: ClusterCommand<'_>,
    ) {
        let Some(core) = &mut self.core else { return };
        let answer = match command {
            ClusterCommand::Wait { replicas, timeout_ms } => {
                let until_ns =
                    now.monotonic_ns.saturating_add(timeout_ms.saturating_mul(1_000_000));
                let deadline_ns = (timeout_ms > 0).then_some(until_ns);
                self.commands.begin_wait((token, connection), replicas, deadline_ns);
                return;
            }
            ClusterCommand::Lookup { id } => {
                match self.datagrams.look_up(self.now, token, NodeId(id)) {
                    Ok(()) => return,
                    Err(busy) => Answer::Error(format!("ERR {busy}").into_bytes()),
                }
            }
            ClusterCommand::Leave => {
                self.leaving.push(token);
                core.leave(now);
                return;
            }
            ClusterCommand::Forget { node } => {
                let node = NodeId(node);
                if core.members().entry(&node).is_none() || node == core.id() {
                    Answer::Error(b"ERR no other member has this id".to_vec())
                } else {
                    core.forget(now, node);
                    self.links.forget(self.now, &node);
                    Answer::Ok
                }
            }
            ClusterCommand::Locate { key } => {
                let placed = core.members().placed();
                let set = replica_set(&Key::of(key), &placed, self.options.settings.replicas);
                let entries = set.iter().filter_map(|node| core.members().entry(node));
                Answer::Table(entries.map(|entry| located(core, entry)).collect())
            }
            ClusterCommand::Nodes => {
                let entries = core.members().entries();
                Answer::Table(entries.map(|entry| described(core, entry)).collect())
            }
            ClusterCommand::Routes => Answer::Table(self.datagrams.routes(self.now)),
        };
        self.commands.answer(token, answer);
    }

    pub(super) fn all_figures(&self) -> Vec<Figure> {
        let mut figures = self.datagrams.figures();
        figures.extend(link_figures(&self.links));
        figures.extend([
            Figure::gauge(
                "kadring_peer_commands",
                "Clients' commands that the cluster is working on.",
                (self.commands.len() + self.listings.len()) as u64,
            ),
            Figure::gauge(
                "kadring_store_requests",
                "Requests of the cluster that the store is working on.",
                self.records.under_way() as u64,
            ),
        ]);
        let (copies, hits) = self.commands.path_copies();
        figures.extend([
            Figure::gauge(
                "kadring_path_copies",
                "Copies of other nodes' keys in memory, for read_consistency = one.",
                copies as u64,
            ),
            Figure::counter("kadring_path_copies_used_total", "Reads they have answered.", hits),
        ]);
        figures.push(Figure::gauge(
            "kadring_digests_known",
            "Records that digests are made of without reading them.",
            self.records.digests_known() as u64,
        ));
        figures.extend(self.core.iter().flat_map(|core| core_figures(core, self.now.0)));
        figures
    }
}

fn link_figures(links: &PeerLinks) -> Vec<Figure> {
    let counters = links.counters();
    let refused = counters.refused_proof
        + counters.refused_secret
        + counters.refused_cluster
        + counters.refused_version
        + counters.refused_own
        + counters.refused_garbage
        + counters.refused_late
        + counters.refused_source
        + counters.refused_full
        + counters.bad_messages;
    let up = links.links().count() as u64;
    let mut figures = vec![Figure::gauge("kadring_links", "Links to other nodes that are up.", up)];
    let counted = [
        ("kadring_links_broken_total", "Links that broke.", counters.broken),
        (
            "kadring_links_refused_total",
            "Links refused or ended: wrong secret, cluster, version or form, too slow, too many.",
            refused,
        ),
        ("kadring_link_messages_sent_total", "Messages sent over links.", counters.messages_sent),
        (
            "kadring_link_messages_received_total",
            "Messages received over links.",
            counters.messages_received,
        ),
        ("kadring_link_bytes_sent_total", "Bytes sent over links.", counters.bytes_sent),
        (
            "kadring_link_bytes_received_total",
            "Bytes received over links.",
            counters.bytes_received,
        ),
    ];
    figures.extend(counted.map(|(name, help, value)| Figure::counter(name, help, value)));
    figures.extend(links.links().map(|link| {
        let (name, help) = ("kadring_link_rtt_seconds", "Latest round-trip time of a link.");
        let rtt_us = link.rtt_ns.unwrap_or(0) / 1_000;
        Figure::gauge(name, help, rtt_us).micros_to_seconds().with("node", link.node.to_string())
    }));
    figures
}

fn core_figures(core: &ClusterNode, now_ns: u64) -> Vec<Figure> {
    let mut figures = member_figures(core);
    let lag = core.replication_lag(now_ns);
    let background = core.background_work();
    figures.extend([
        Figure::gauge(
            "kadring_ranges_pending",
            "Ranges of keys that the node is to hold and does not hold completely yet.",
            core.pending().len() as u64,
        ),
        Figure::gauge(
            "kadring_writes_spreading",
            "Acknowledged writes of this node's clients that not all of their nodes have yet.",
            lag.writes as u64,
        ),
        Figure::gauge(
            "kadring_replication_lag_seconds",
            "For how long the oldest of these has been under way.",
            lag.oldest_ns / 1_000,
        )
        .micros_to_seconds(),
        Figure::gauge(
            "kadring_ranges_filling",
            "Ranges that are being filled.",
            background.fills as u64,
        ),
        Figure::gauge(
            "kadring_exchanges_under_way",
            "Comparisons of ranges with other holders that are under way.",
            background.exchanges as u64,
        ),
    ]);
    figures.extend(counted(core.counters()));
    figures
}

fn member_figures(core: &ClusterNode) -> Vec<Figure> {
    let members = core.members();
    let count = |wanted: fn(Option<Health>) -> bool| {
        members.known().filter(|entry| wanted(members.health(&entry.node))).count() as u64
    };
    let known = members.known().count() as u64;
    let suspected = count(|health| matches!(health, Some(Health::Suspected { .. })));
    let down = count(|health| matches!(health, Some(Health::Down { .. }) | None));
    let own = members.own().phase;
    let phases = [Phase::Joining, Phase::Full, Phase::Leaving].map(|phase| {
        let (name, help) = ("kadring_phase", "1 for how far this node has come as a member.");
        Figure::gauge(name, help, u64::from(phase == own)).with("phase", phase_name(phase))
    });
    let mut figures = phases.to_vec();
    figures.extend([
        Figure::gauge("kadring_members", "Members of the cluster.", known),
        Figure::gauge("kadring_members_up", "Members that are up.", known - suspected - down),
        Figure::gauge("kadring_members_suspected", "Members that do not answer.", suspected),
        Figure::gauge("kadring_members_down", "Members that are down.", down),
    ]);
    figures
}

fn counted(counters: ClusterCounters) -> Vec<Figure> {
    vec![
        Figure::counter(
            "kadring_repair_records_total",
            "Records sent by repair and hand-off, or forwarded.",
            counters.records_sent,
        ),
        Figure::counter(
            "kadring_repair_bytes_total",
            "Bytes of their keys and values.",
            counters.bytes_sent,
        ),
        Figure::counter(
            "kadring_repair_records_fetched_total",
            "Records that repair and hand-off have fetched.",
            counters.records_fetched,
        ),
        Figure::counter(
            "kadring_repair_fetched_bytes_total",
            "Bytes of their keys and values.",
            counters.bytes_fetched,
        ),
        Figure::counter(
            "kadring_exchanges_total",
            "Comparisons of ranges that have ended.",
            counters.exchanges,
        ),
        Figure::counter(
            "kadring_exchanges_failed_total",
            "Of these, those that could not compare or move something.",
            counters.exchanges_failed,
        ),
        Figure::counter(
            "kadring_refills_total",
            "How often the node began anew after too long an absence.",
            counters.discarded_all,
        ),
        Figure::counter(
            "kadring_copies_discarded_total",
            "Copies given up after all holders had confirmed theirs.",
            counters.copies_discarded,
        ),
        Figure::counter(
            "kadring_ranges_filled_total",
            "Ranges that have become complete.",
            counters.ranges_filled,
        ),
        Figure::counter(
            "kadring_versions_refused_total",
            "Records whose version was too far ahead of the clock.",
            counters.too_far_ahead,
        ),
    ]
}

fn health(core: &ClusterNode, node: &NodeId) -> &'static str {
    match core.members().health(node) {
        _ if *node == core.id() => "self",
        Some(Health::Up) => "up",
        Some(Health::Suspected { .. }) => "suspected",
        Some(Health::Down { .. }) | None => "down",
    }
}

fn located(core: &ClusterNode, entry: &MemberEntry) -> Vec<String> {
    let address = String::from_utf8_lossy(&entry.address).into_owned();
    vec![entry.node.to_string(), address, health(core, &entry.node).to_owned()]
}

fn phase_name(phase: Phase) -> &'static str {
    match phase {
        Phase::Joining => "joining",
        Phase::Full => "full",
        Phase::Leaving => "leaving",
    }
}

fn described(core: &ClusterNode, entry: &MemberEntry) -> Vec<String> {
    let standing = match entry.standing {
        Standing::Alive => "alive",
        Standing::Suspected => "suspected",
        Standing::Removed => "removed",
    };
    let mut row = located(core, entry);
    row.splice(2..2, [phase_name(entry.phase).to_owned(), standing.to_owned()]);
    row
}

/// Writes words as an array.
pub(super) fn write_row(reply: &mut ReplyWriter<'_>, row: &[String]) {
    reply.array_header(row.len());
    row.iter().for_each(|word| reply.bulk(word.as_bytes()));
}

/// Writes rows of words.
pub(super) fn write_table(reply: &mut ReplyWriter<'_>, rows: &[Vec<String>]) {
    reply.array_header(rows.len());
    rows.iter().for_each(|row| write_row(reply, row));
}
