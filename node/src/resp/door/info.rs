//! INFO: what the node says about itself, in Redis's sections and one of its own.

use std::fmt::Write as _;
use std::net::SocketAddr;

use storage::{ScrubStatus, StoreStatus};

use super::Door;
use super::about::REDIS_VERSION;
use crate::config::DurabilityMode;
use crate::io::device::{DeviceProbe, SyncMethod};
use crate::keyspace::Keyspace;
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

const SECTIONS: [&str; 11] = [
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
    DAMAGE,
];
/// It may be long, and is shown to those alone who ask for it.
const DAMAGE: &str = "Damage";

impl Door {
    pub(super) fn info(&self, keyspace: &Keyspace, sections: Tail<'_>) -> String {
        let asked: Vec<String> =
            sections.map(|name| String::from_utf8_lossy(name).to_ascii_lowercase()).collect();
        let all = asked.is_empty()
            || asked.iter().any(|name| ["all", "default", "everything"].contains(&name.as_str()));
        let mut out = String::new();
        for section in SECTIONS {
            let is_default = all && section != DAMAGE;
            if is_default || asked.contains(&section.to_ascii_lowercase()) {
                if !out.is_empty() {
                    out.push_str("\r\n");
                }
                let _ = write!(out, "# {section}\r\n");
                for (name, value) in self.section(keyspace, section) {
                    let _ = write!(out, "{name}:{value}\r\n");
                }
            }
        }
        out
    }

    fn section(&self, keyspace: &Keyspace, section: &str) -> Vec<(String, String)> {
        let fields = match section {
            "Server" => self.server(keyspace),
            "Clients" => self.clients(),
            "Memory" => self.memory(keyspace),
            "Persistence" => self.persistence(keyspace),
            "Durability" => durability(&self.facts.durability),
            "Stats" => self.stats(keyspace),
            "Copies" => return self.copies(),
            "Keyspace" => return keys(keyspace),
            "Scrub" => scrub(keyspace),
            DAMAGE => return damage(keyspace),
            _ => return self.kadring(keyspace),
        };
        fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }

    fn persistence(&self, keyspace: &Keyspace) -> Vec<(&'static str, String)> {
        let failed = keyspace.stores().any(|(_, store)| store.failure().is_some());
        let status = if failed { "err" } else { "ok" };
        let mut fields = vec![("loading", "0".to_owned())];
        fields.extend(self.orders.about(keyspace, self.facts.started_ms));
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

    fn clients(&self) -> Vec<(&'static str, String)> {
        // The asking connection is in hand, not in the map.
        let connected = self.connections.len() + 1;
        vec![
            ("connected_clients", connected.to_string()),
            ("maxclients", self.limits.connections_max.to_string()),
            ("blocked_clients", (self.blocked.len() + self.resolving.len()).to_string()),
            ("paused_clients", self.paused.len().to_string()),
        ]
    }

    fn memory(&self, keyspace: &Keyspace) -> Vec<(&'static str, String)> {
        let (resident, buffers) = ((self.facts.resident_bytes)(), &self.buffers);
        let cache: u64 = keyspace.stores().map(|(_, store)| store.status().cache_bytes).sum();
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

    fn stats(&self, keyspace: &Keyspace) -> Vec<(&'static str, String)> {
        let sum = |field: fn(StoreStatus) -> u64| -> String {
            keyspace.stores().map(|(_, store)| field(store.status())).sum::<u64>().to_string()
        };
        let counters = &self.counters;
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

    /// What has been copied on its way. Received bytes are always copied by the kernel, and bytes
    /// sent unless the driver says otherwise.
    fn copies(&self) -> Vec<(String, String)> {
        let sends = self.sends;
        let by_kernel = self.counters.sent_bytes.saturating_sub(sends.zero_copy_bytes);
        let totals = [
            ("sent_copied_by_kernel", by_kernel),
            ("sent_copied_by_nobody", sends.zero_copy_bytes),
            ("sends_zero_copy_in_vain", sends.zero_copy_in_vain),
            ("sends_zero_copy_refused", sends.zero_copy_refused),
        ];
        let totals = totals.map(|(name, count)| (name.to_owned(), count.to_string()));
        self.ledger.lines().chain(totals).collect()
    }

    fn kadring(&self, keyspace: &Keyspace) -> Vec<(String, String)> {
        let facts = &self.facts;
        let mut fields = vec![
            ("node_id".to_owned(), hex(&facts.node_id)),
            ("io".to_owned(), facts.driver.to_owned()),
            ("o_direct".to_owned(), u8::from(facts.durability.probe.direct).to_string()),
            ("durability".to_owned(), facts.durability.mode.name().to_owned()),
            ("disk_bytes_max".to_owned(), facts.disk_bytes_max.to_string()),
            ("shards".to_owned(), keyspace.stores().len().to_string()),
            ("damage_found_at_start".to_owned(), facts.damage_found.to_string()),
            ("tail_uncertain_bytes".to_owned(), facts.tail_uncertain_bytes.to_string()),
        ];
        for (index, store) in keyspace.stores() {
            let status = store.status();
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
                    u8::from(store.failure().is_some()),
                ),
            ));
        }
        fields
    }
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

/// What the scrubs of all shards have done together.
fn scrub(keyspace: &Keyspace) -> Vec<(&'static str, String)> {
    let all: Vec<ScrubStatus> = keyspace.stores().map(|(_, store)| store.status().scrub).collect();
    let sum = |field: fn(&ScrubStatus) -> u64| all.iter().map(field).sum::<u64>().to_string();
    let passes = all.iter().map(|status| status.passes).min().unwrap_or(0);
    let positions: Vec<String> = (keyspace.stores().zip(&all))
        .filter_map(|((index, _), status)| Some(format!("{index}/{:016x}", status.segment?)))
        .collect();
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
fn damage(keyspace: &Keyspace) -> Vec<(String, String)> {
    let repairs = keyspace.stores().flat_map(|(_, store)| store.repairs());
    let line = |(index, repair): (usize, storage::Repair)| {
        let storage::Repair { key, file, offset, reason } = repair;
        let key = key.map_or_else(|| "-".to_owned(), |key| hex(&key.0));
        (format!("damage{index}"), format!("key={key},file={file},offset={offset},reason={reason}"))
    };
    repairs.enumerate().map(line).collect()
}

fn keys(keyspace: &Keyspace) -> Vec<(String, String)> {
    if keyspace.is_empty() {
        return Vec::new();
    }
    let expiring: u64 = keyspace.stores().map(|(_, store)| store.status().keys_expiring).sum();
    let figures = format!("keys={},expires={expiring},avg_ttl=0", keyspace.len());
    vec![("db0".to_owned(), figures)]
}

fn hex(id: &[u8; 20]) -> String {
    id.iter().map(|byte| format!("{byte:02x}")).collect()
}
