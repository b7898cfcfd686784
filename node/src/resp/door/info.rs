//! INFO: what the node says about itself, in Redis's sections and one of its own.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::SocketAddr;

use storage::{Repair, ScrubStatus, StoreStatus};

use super::about::REDIS_VERSION;
use super::activity::Activity;
use super::counters::Counters;
use super::execute::{Caller, Outcome};
use super::ledger::Copies;
use super::task::TaskId;
use super::{Door, Message};
use crate::config::DurabilityMode;
use crate::histogram::Histogram;
use crate::io::device::{DeviceProbe, SyncMethod};
use crate::io::{BufferStatistics, SendStatistics};
use crate::keyspace::{Keyspace, ShardIndex, Spread};
use crate::peer::Figure;
use crate::resp::command::Tail;

/// What the door knows of the node around it.
#[derive(Clone, Debug)]
pub struct NodeFacts {
    /// The node's id.
    pub node_id: [u8; 20],
    /// The driver's name.
    pub driver: &'static str,
    /// What is promised of writes and how that is kept.
    pub durability: DurabilityFacts,
    /// The process' id.
    pub process_id: u32,
    /// The data directory.
    pub data_dir: String,
    /// How the shards are spread over threads, and which thread this is.
    pub spread: Spread,
    /// The client door's address, once it is open.
    pub client: Option<SocketAddr>,
    /// When the node started, in milliseconds since 1970.
    pub started_ms: u64,
    /// Tells how many bytes of memory the process has in use.
    pub resident_bytes: fn() -> u64,
    /// Bytes of disk that segments may take; 0 = no limit.
    pub disk_bytes_max: u64,
    /// Damaged ranges that opening the shards found.
    pub damage_found: u64,
    /// Bytes of uncertain tail that opening the shards gave up.
    pub tail_uncertain_bytes: u64,
}

/// What is promised of writes and how that is kept.
#[derive(Clone, Copy, Debug)]
pub struct DurabilityFacts {
    /// What a reply to a write promises.
    pub mode: DurabilityMode,
    /// How writes are made durable.
    pub method: SyncMethod,
    /// What was measured of the device.
    pub probe: DeviceProbe,
}

/// What is asked of a thread.
#[derive(Clone, Debug, Default)]
pub(crate) struct FactsAsked {
    /// Segments of snapshots, by shard: which of them the stores have, too.
    pub(super) segments: Vec<(ShardIndex, u64)>,
    /// Whether to describe the clients.
    pub(super) clients: bool,
    /// Whether to tell the repair lists.
    pub(super) repairs: bool,
}

/// What a thread knows of itself.
#[derive(Clone, Debug, Default)]
pub(crate) struct Facts {
    pub(super) shards: Vec<ShardFacts>,
    pub(super) counters: Counters,
    pub(super) buffers: BufferStatistics,
    pub(super) copies: Copies,
    pub(super) sends: SendStatistics,
    pub(super) clients: usize,
    pub(super) clients_blocked: usize,
    pub(super) clients_paused: usize,
    pub(super) activity: Activity,
    pub(super) durable_writes: Histogram,
    pub(super) segments_in_use: BTreeSet<(ShardIndex, u64)>,
    client_lines: Vec<(u64, String)>,
}

#[derive(Clone, Debug)]
pub(super) struct ShardFacts {
    pub(super) shard: ShardIndex,
    pub(super) status: StoreStatus,
    keys: usize,
    pub(super) has_failed: bool,
    repairs: Vec<Repair>,
}

impl Facts {
    /// Puts what all threads know together.
    pub(super) fn of_all(all: Vec<Self>) -> Self {
        let mut sum = Self::default();
        for facts in all {
            sum.shards.extend(facts.shards);
            sum.counters += facts.counters;
            sum.buffers += facts.buffers;
            sum.copies += facts.copies;
            sum.sends += facts.sends;
            sum.clients += facts.clients;
            sum.clients_blocked += facts.clients_blocked;
            sum.clients_paused += facts.clients_paused;
            sum.activity += &facts.activity;
            sum.durable_writes += &facts.durable_writes;
            sum.segments_in_use.extend(facts.segments_in_use);
            sum.client_lines.extend(facts.client_lines);
        }
        sum.shards.sort_by_key(|shard| shard.shard);
        sum.client_lines.sort_by_key(|(number, _)| *number);
        sum
    }

    fn sum(&self, field: impl Fn(&StoreStatus) -> u64) -> u64 {
        self.shards.iter().map(|shard| field(&shard.status)).sum()
    }
}

/// What is to be answered once all threads have told what they know.
#[derive(Debug)]
pub(super) enum Question {
    Info {
        sections: Vec<String>,
    },
    /// CLIENT LIST, of these numbers or all.
    Clients {
        numbers: Option<Vec<u64>>,
    },
}

/// Who waits for what all threads know.
#[derive(Debug)]
pub(super) enum Asker {
    /// A command.
    Command(TaskId, Question),
    /// Who drives the door, under this token.
    Outside(u64),
}

#[derive(Debug)]
struct Asking {
    asker: Asker,
    answers: Vec<Facts>,
}

/// Questions that other threads have not answered yet.
#[derive(Debug, Default)]
pub(super) struct Questions {
    next: u64,
    asking: BTreeMap<u64, Asking>,
}

const SECTIONS: [&str; 13] = [
    "Server",
    "Clients",
    "Memory",
    "Persistence",
    "Durability",
    "Stats",
    "Copies",
    "Keyspace",
    "Kadring",
    "Scrub",
    CLUSTER,
    MAINLINE,
    DAMAGE,
];
/// It may be long, and is shown to those alone who ask for it.
const DAMAGE: &str = "Damage";

/// What the peer side tells of itself in Mainline mode; there is no such section in another one.
const MAINLINE: &str = "Mainline";
const MAINLINE_PREFIX: &str = "kadring_mainline_";

/// What it tells of itself in a cluster; there is no such section on a node alone.
const CLUSTER: &str = "Cluster";
/// Tells a peer side in a cluster from another one.
const MEMBERS: &str = "kadring_members";
const PHASE: &str = "kadring_phase";
const PREFIX: &str = "kadring_";

impl Door {
    /// Answers INFO, when all threads have told what they know.
    pub(super) fn info(
        &mut self,
        keyspace: &Keyspace,
        caller: &mut Caller<'_>,
        sections: Tail<'_>,
    ) -> Outcome {
        let sections: Vec<String> =
            sections.map(|name| String::from_utf8_lossy(name).to_ascii_lowercase()).collect();
        let repairs = sections.iter().any(|name| name.eq_ignore_ascii_case(DAMAGE));
        let segments = self.orders.segments();
        let asked = FactsAsked { segments, clients: false, repairs };
        self.ask(keyspace, caller, Question::Info { sections }, &asked)
    }

    /// Answers CLIENT LIST, when all threads have told what they know.
    pub(super) fn list_clients(
        &mut self,
        keyspace: &Keyspace,
        caller: &mut Caller<'_>,
        numbers: Option<Vec<u64>>,
    ) -> Outcome {
        let asked = FactsAsked { clients: true, ..FactsAsked::default() };
        self.ask(keyspace, caller, Question::Clients { numbers }, &asked)
    }

    fn ask(
        &mut self,
        keyspace: &Keyspace,
        caller: &mut Caller<'_>,
        question: Question,
        asked: &FactsAsked,
    ) -> Outcome {
        let mut own = self.facts(keyspace, asked);
        // It is in hand, not among the connections.
        if asked.clients && caller.connection.origin.is_none() {
            let connection = &*caller.connection;
            let line = self.client_line(connection, keyspace.now().clock_ms);
            own.client_lines.push((connection.number, line));
        }
        if keyspace.spread().thread_count == 1 {
            let text = self.answer(keyspace, &question, &Facts::of_all(vec![own]));
            caller.reply(None, |reply| reply.writer().verbatim(text.as_bytes()));
            return Outcome::Done;
        }
        let task = self.tasks.order(caller.place());
        self.ask_others(keyspace, Asker::Command(task, question), own, asked);
        Outcome::Behind(task)
    }

    /// Asks the other threads, for `asker`.
    pub(super) fn ask_others(
        &mut self,
        keyspace: &Keyspace,
        asker: Asker,
        own: Facts,
        asked: &FactsAsked,
    ) {
        let number = self.questions.next;
        self.questions.next += 1;
        self.questions.asking.insert(number, Asking { asker, answers: vec![own] });
        for thread in keyspace.spread().others() {
            self.tell(thread, Message::Ask { question: number, asked: asked.clone() });
        }
    }

    /// Takes what another thread knows.
    pub(super) fn take_facts(&mut self, keyspace: &Keyspace, number: u64, facts: Facts) {
        let Some(asking) = self.questions.asking.get_mut(&number) else { return };
        asking.answers.push(facts);
        if asking.answers.len() < usize::from(keyspace.spread().thread_count) {
            return;
        }
        let Some(Asking { asker, answers }) = self.questions.asking.remove(&number) else {
            return;
        };
        let facts = Facts::of_all(answers);
        match asker {
            Asker::Command(task, question) => {
                let text = self.answer(keyspace, &question, &facts);
                self.tasks.end_order(task, |reply| reply.writer().verbatim(text.as_bytes()));
            }
            Asker::Outside(token) => {
                let report = self.report(&facts);
                self.reports.push(token, report);
            }
        }
    }

    fn answer(&self, keyspace: &Keyspace, question: &Question, facts: &Facts) -> String {
        match question {
            Question::Info { sections } => self.info_text(keyspace, facts, sections),
            Question::Clients { numbers } => {
                let wanted = |number| numbers.as_ref().is_none_or(|all| all.contains(number));
                let lines = facts.client_lines.iter().filter(|(number, _)| wanted(number));
                lines.map(|(_, line)| line.as_str()).collect()
            }
        }
    }

    /// What this thread knows of itself.
    pub(super) fn facts(&self, keyspace: &Keyspace, asked: &FactsAsked) -> Facts {
        let shards = keyspace.stores().map(|(shard, store)| ShardFacts {
            shard,
            status: store.status(),
            keys: store.len(),
            has_failed: store.failure().is_some(),
            repairs: if asked.repairs { store.repairs().collect() } else { Vec::new() },
        });
        let is_in_use = |(shard, segment): &(ShardIndex, u64)| {
            keyspace.shards().any(|own| own == *shard)
                && keyspace.store(*shard).has_segment(*segment)
        };
        let now_ms = keyspace.now().clock_ms;
        let clients = self.connections.values().filter(|one| asked.clients && one.origin.is_none());
        Facts {
            shards: shards.collect(),
            counters: self.counters,
            buffers: self.buffers,
            copies: self.ledger.copies(),
            sends: self.sends,
            clients: self.clients_len,
            clients_blocked: self.blocked.len() + self.resolving.len(),
            clients_paused: self.paused.len(),
            activity: self.activity.clone(),
            durable_writes: keyspace.durable_writes().clone(),
            segments_in_use: asked.segments.iter().copied().filter(is_in_use).collect(),
            client_lines: clients.map(|one| (one.number, self.client_line(one, now_ms))).collect(),
        }
    }

    fn info_text(&self, keyspace: &Keyspace, facts: &Facts, asked: &[String]) -> String {
        let all = asked.is_empty()
            || asked.iter().any(|name| ["all", "default", "everything"].contains(&name.as_str()));
        let mut out = String::new();
        for section in SECTIONS {
            let is_absent = match section {
                MAINLINE => self.mainline().is_empty(),
                CLUSTER => self.cluster().is_empty(),
                _ => false,
            };
            let is_default = all && section != DAMAGE && !is_absent;
            if is_default || asked.contains(&section.to_ascii_lowercase()) {
                if !out.is_empty() {
                    out.push_str("\r\n");
                }
                let _ = write!(out, "# {section}\r\n");
                for (name, value) in self.section(keyspace, facts, section) {
                    let _ = write!(out, "{name}:{value}\r\n");
                }
            }
        }
        out
    }

    fn section(&self, keyspace: &Keyspace, facts: &Facts, section: &str) -> Vec<(String, String)> {
        let fields = match section {
            "Server" => self.server(keyspace),
            "Clients" => self.clients(facts),
            "Memory" => self.memory(facts),
            "Persistence" => self.persistence(facts),
            "Durability" => durability(&self.facts.durability),
            "Stats" => stats(facts),
            "Copies" => return copies(facts),
            "Keyspace" => return keys(facts),
            "Scrub" => scrub(facts),
            MAINLINE => return self.mainline(),
            CLUSTER => return self.cluster(),
            DAMAGE => return damage(facts),
            _ => return self.kadring(facts),
        };
        fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }

    fn mainline(&self) -> Vec<(String, String)> {
        self.figures.iter().filter_map(|figure| field_of(figure, MAINLINE_PREFIX)).collect()
    }

    /// `cluster_enabled` is of Redis Cluster, which this is not.
    fn cluster(&self) -> Vec<(String, String)> {
        if !self.figures.iter().any(|figure| figure.name == MEMBERS) {
            return Vec::new();
        }
        let mut fields = vec![("cluster_enabled".to_owned(), "0".to_owned())];
        let phases =
            self.figures.iter().filter(|figure| figure.name == PHASE && figure.value > 0.0);
        let phases = phases.flat_map(|figure| &figure.labels);
        fields.extend(phases.map(|(name, phase)| ((*name).to_owned(), phase.clone())));
        let others = self.figures.iter().filter(|figure| figure.name != PHASE);
        fields.extend(others.filter_map(|figure| field_of(figure, PREFIX)));
        fields
    }

    fn persistence(&self, facts: &Facts) -> Vec<(&'static str, String)> {
        let failed = facts.shards.iter().any(|shard| shard.has_failed);
        let status = if failed { "err" } else { "ok" };
        let mut fields = vec![("loading", "0".to_owned())];
        fields.extend(self.orders.about(&facts.segments_in_use, self.facts.started_ms));
        fields.push(("aof_enabled", "1".to_owned()));
        fields.push(("aof_last_write_status", status.to_owned()));
        fields
    }

    fn server(&self, keyspace: &Keyspace) -> Vec<(&'static str, String)> {
        let facts = &self.facts;
        let up_s = keyspace.now().clock_ms.saturating_sub(facts.started_ms) / 1000;
        vec![
            ("redis_version", REDIS_VERSION.to_owned()),
            ("redis_mode", "standalone".to_owned()),
            ("kadring_version", env!("CARGO_PKG_VERSION").to_owned()),
            ("os", "Linux".to_owned()),
            ("arch_bits", usize::BITS.to_string()),
            ("multiplexing_api", facts.driver.to_owned()),
            ("process_id", facts.process_id.to_string()),
            ("run_id", hex(&facts.node_id)),
            ("tcp_port", facts.client.map_or(0, |address| address.port()).to_string()),
            ("server_time_usec", (keyspace.now().clock_ms * 1000).to_string()),
            ("uptime_in_seconds", up_s.to_string()),
            ("uptime_in_days", (up_s / 86_400).to_string()),
        ]
    }

    fn clients(&self, facts: &Facts) -> Vec<(&'static str, String)> {
        vec![
            ("connected_clients", facts.clients.to_string()),
            ("maxclients", self.limits.connections_max.to_string()),
            ("blocked_clients", facts.clients_blocked.to_string()),
            ("paused_clients", facts.clients_paused.to_string()),
        ]
    }

    fn memory(&self, facts: &Facts) -> Vec<(&'static str, String)> {
        let (resident, buffers) = ((self.facts.resident_bytes)(), &facts.buffers);
        let cache = facts.sum(|status| status.cache_bytes);
        vec![
            ("used_memory", resident.to_string()),
            ("used_memory_rss", resident.to_string()),
            ("used_memory_cache", cache.to_string()),
            ("io_buffer_bytes", buffers.arena_bytes.to_string()),
            ("io_buffer_bytes_free", buffers.arena_bytes_free.to_string()),
            ("io_buffers_registered", u8::from(buffers.registered).to_string()),
            ("io_buffers_taken", buffers.taken.to_string()),
            ("io_buffers_from_heap", buffers.fallen_back.to_string()),
            ("io_buffer_operations", buffers.operations.to_string()),
            ("maxmemory", "0".to_owned()),
            ("maxmemory_policy", "noeviction".to_owned()),
        ]
    }

    fn kadring(&self, all: &Facts) -> Vec<(String, String)> {
        let facts = &self.facts;
        let mut fields = vec![
            ("node_id".to_owned(), hex(&facts.node_id)),
            ("io".to_owned(), facts.driver.to_owned()),
            ("o_direct".to_owned(), u8::from(facts.durability.probe.direct).to_string()),
            ("durability".to_owned(), facts.durability.mode.name().to_owned()),
            ("disk_bytes_max".to_owned(), facts.disk_bytes_max.to_string()),
            ("shards".to_owned(), all.shards.len().to_string()),
            ("threads".to_owned(), facts.spread.thread_count.to_string()),
            ("damage_found_at_start".to_owned(), facts.damage_found.to_string()),
            ("tail_uncertain_bytes".to_owned(), facts.tail_uncertain_bytes.to_string()),
        ];
        for ShardFacts { shard: index, status, has_failed, .. } in &all.shards {
            fields.push((
                format!("shard{index}"),
                format!(
                    "keys={},segments={},segment_bytes={},shelved_bytes={},last_lsn={},\
                 durable_lsn={},frames={},frame_bytes={},damaged_reads={},segments_freed={},\
                 bytes_copied={},checkpoints={},\
                 suspect={},disk_full={},read_only={}",
                    status.keys,
                    status.segments,
                    status.segment_bytes,
                    status.pooled_bytes,
                    status.last_lsn,
                    status.durable_lsn,
                    status.log.frames,
                    status.log.frame_bytes,
                    status.damaged_reads,
                    status.compaction.segments_freed,
                    status.compaction.bytes_copied,
                    status.checkpoints.published,
                    u8::from(status.suspect),
                    u8::from(status.disk_full),
                    u8::from(*has_failed),
                ),
            ));
        }
        fields
    }
}

/// A figure without its prefix, the values of its labels behind it.
fn field_of(figure: &Figure, prefix: &str) -> Option<(String, String)> {
    let mut name = figure.name.strip_prefix(prefix)?.to_owned();
    for (_, label) in &figure.labels {
        name.push('_');
        name.push_str(label);
    }
    Some((name, figure.value.to_string()))
}

/// Times that were not measured, and a cache that is not known, are left out.
fn durability(facts: &DurabilityFacts) -> Vec<(&'static str, String)> {
    let DurabilityFacts { mode, method, probe } = facts;
    let mut fields = vec![
        ("durability", mode.name().to_owned()),
        ("sync_method", method.name().to_owned()),
        ("sync_method_measured", probe.choice.name().to_owned()),
    ];
    for (name, time) in [("write_dsync_us", probe.dsync_us), ("write_sync_us", probe.sync_us)] {
        fields.extend(time.map(|time| (name, time.to_string())));
    }
    fields.extend(probe.write_cache.map(|cache| ("write_cache", cache.name().to_owned())));
    fields
}

/// What has been copied on its way. Received bytes are always copied by the kernel, and bytes sent
/// unless the driver says otherwise.
fn copies(facts: &Facts) -> Vec<(String, String)> {
    let sends = facts.sends;
    let by_kernel = facts.counters.sent_bytes.saturating_sub(sends.zero_copy_bytes);
    let totals = [
        ("sent_copied_by_kernel", by_kernel),
        ("sent_copied_by_nobody", sends.zero_copy_bytes),
        ("sends_zero_copy_in_vain", sends.zero_copy_in_vain),
        ("sends_zero_copy_refused", sends.zero_copy_refused),
    ];
    let totals = totals.map(|(name, count)| (name.to_owned(), count.to_string()));
    facts.copies.lines().chain(totals).collect()
}

fn stats(facts: &Facts) -> Vec<(&'static str, String)> {
    let counters = &facts.counters;
    let sum = |field: fn(&StoreStatus) -> u64| facts.sum(field).to_string();
    vec![
        ("total_connections_received", counters.connections.to_string()),
        ("rejected_connections", counters.connections_refused.to_string()),
        ("stalled_connections", counters.connections_stalled.to_string()),
        ("total_commands_processed", counters.commands.to_string()),
        ("total_net_input_bytes", counters.received_bytes.to_string()),
        ("total_net_output_bytes", counters.sent_bytes.to_string()),
        ("cache_hits", sum(|status| status.cache_hits)),
        ("cache_misses", sum(|status| status.cache_misses)),
        ("disk_reads", sum(|status| status.disk_reads)),
    ]
}

/// What the scrubs of all shards have done together.
fn scrub(facts: &Facts) -> Vec<(&'static str, String)> {
    let all: Vec<&ScrubStatus> = facts.shards.iter().map(|shard| &shard.status.scrub).collect();
    let sum = |field: fn(&ScrubStatus) -> u64| -> String {
        all.iter().map(|status| field(status)).sum::<u64>().to_string()
    };
    let passes = all.iter().map(|status| status.passes).min().unwrap_or(0);
    let position =
        |shard: &ShardFacts| Some(format!("{}/{:016x}", shard.shard, shard.status.scrub.segment?));
    let positions: Vec<String> = facts.shards.iter().filter_map(position).collect();
    vec![
        ("scrub_running", u8::from(!positions.is_empty()).to_string()),
        ("scrub_position", positions.join(",")),
        ("scrub_segments_left", sum(|status| status.segments_left)),
        ("scrub_passes", passes.to_string()),
        ("scrub_bytes", sum(|status| status.bytes)),
        ("scrub_findings", sum(|status| status.findings)),
        ("scrub_records_damaged", sum(|status| status.records_damaged)),
        ("repairs", sum(|status| status.repairs)),
        ("repairs_dropped", sum(|status| status.repairs_dropped)),
    ]
}

/// The repair lists of all shards.
fn damage(facts: &Facts) -> Vec<(String, String)> {
    let repairs = facts.shards.iter().flat_map(|shard| &shard.repairs);
    let line = |(index, repair): (usize, &Repair)| {
        let Repair { key, file, offset, reason } = repair;
        let key = key.map_or_else(|| "-".to_owned(), |key| hex(&key.0));
        (format!("damage{index}"), format!("key={key},file={file},offset={offset},reason={reason}"))
    };
    repairs.enumerate().map(line).collect()
}

fn keys(facts: &Facts) -> Vec<(String, String)> {
    let keys: usize = facts.shards.iter().map(|shard| shard.keys).sum();
    if keys == 0 {
        return Vec::new();
    }
    let expiring = facts.sum(|status| status.keys_expiring);
    vec![("db0".to_owned(), format!("keys={keys},expires={expiring},avg_ttl=0"))]
}

fn hex(id: &[u8; 20]) -> String {
    id.iter().map(|byte| format!("{byte:02x}")).collect()
}
