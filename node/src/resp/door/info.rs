//! INFO: what the node says about itself, in Redis's sections and one of its own.

use std::fmt::Write as _;
use std::net::SocketAddr;

use storage::StoreStatus;

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

const SECTIONS: [&str; 8] =
    ["Server", "Clients", "Memory", "Persistence", "Durability", "Stats", "Keyspace", "Kadring"];

impl Door {
    pub(super) fn info(&self, keyspace: &Keyspace, sections: Tail<'_>) -> String {
        let asked: Vec<String> =
            sections.map(|name| String::from_utf8_lossy(name).to_ascii_lowercase()).collect();
        let all = asked.is_empty()
            || asked.iter().any(|name| ["all", "default", "everything"].contains(&name.as_str()));
        let mut out = String::new();
        for section in SECTIONS {
            if all || asked.contains(&section.to_ascii_lowercase()) {
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
            "Keyspace" => return keys(keyspace),
            _ => return self.kadring(keyspace),
        };
        fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }

    fn persistence(&self, keyspace: &Keyspace) -> Vec<(&'static str, String)> {
        let failed = keyspace.stores().any(|(_, store)| store.failure().is_some());
        let status = if failed { "err" } else { "ok" };
        let mut fields = vec![("loading", "0".to_owned())];
        fields.extend(self.orders.about(self.facts.started_ms));
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
        let resident = (self.facts.resident_bytes)();
        let cache: u64 = keyspace.stores().map(|(_, store)| store.status().cache_bytes).sum();
        vec![
            ("used_memory", resident.to_string()),
            ("used_memory_rss", resident.to_string()),
            ("used_memory_cache", cache.to_string()),
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

    fn kadring(&self, keyspace: &Keyspace) -> Vec<(String, String)> {
        let facts = &self.facts;
        let mut fields = vec![
            ("node_id".to_owned(), hex(&facts.node_id)),
            ("io".to_owned(), facts.driver.to_owned()),
            ("o_direct".to_owned(), u8::from(facts.durability.probe.direct).to_string()),
            ("durability".to_owned(), facts.durability.mode.name().to_owned()),
            ("shards".to_owned(), keyspace.stores().len().to_string()),
            ("damage_found_at_start".to_owned(), facts.damage_found.to_string()),
            ("tail_uncertain_bytes".to_owned(), facts.tail_uncertain_bytes.to_string()),
        ];
        for (index, store) in keyspace.stores() {
            let status = store.status();
            fields.push((
                format!("shard{index}"),
                format!(
                    "keys={},segments={},segment_bytes={},last_lsn={},durable_lsn={},frames={},\
                 frame_bytes={},damaged_reads={},suspect={},disk_full={},read_only={}",
                    status.keys,
                    status.segments,
                    status.segment_bytes,
                    status.last_lsn,
                    status.durable_lsn,
                    status.log.frames,
                    status.log.frame_bytes,
                    status.damaged_reads,
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
