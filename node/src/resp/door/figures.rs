//! What the admin door tells of the engine and the client door.
//!
//! docs/OPERATIONS.md, "Metrics", lists all of it.

use std::collections::VecDeque;

use super::Door;
use super::info::{Asker, Facts, FactsAsked, ShardFacts};
use crate::admin::NodeReport;
use crate::admin::metrics::{Family, Labels, Samples, number};
use crate::keyspace::Keyspace;

/// Reports that are complete.
#[derive(Debug, Default)]
pub(super) struct Reports {
    ready: VecDeque<(u64, NodeReport)>,
}

impl Reports {
    /// Adds the report that was asked for under `token`.
    pub(super) fn push(&mut self, token: u64, report: NodeReport) {
        self.ready.push_back((token, report));
    }
}

impl Door {
    /// Asks all threads what they know; [`Door::poll_report`] tells it under `token`.
    pub(crate) fn ask_report(&mut self, keyspace: &Keyspace, token: u64) {
        let segments = self.orders.segments();
        let asked = FactsAsked { segments, ..FactsAsked::default() };
        let own = self.facts(keyspace, &asked);
        if keyspace.spread().thread_count == 1 {
            let report = self.report(&Facts::of_all(vec![own]));
            return self.reports.push(token, report);
        }
        self.ask_others(keyspace, Asker::Outside(token), own, &asked);
    }

    /// Takes a report that has been asked for.
    pub(crate) fn poll_report(&mut self) -> Option<(u64, NodeReport)> {
        self.reports.ready.pop_front()
    }

    /// Puts what all threads know into words.
    pub(super) fn report(&self, facts: &Facts) -> NodeReport {
        let mut families = self.node(facts);
        families.extend(shards(&facts.shards));
        families.extend(doors(self, facts));
        families.extend(copies(facts));
        families.extend(buffers(facts));
        let failed = facts.shards.iter().filter(|shard| shard.has_failed);
        let ills = failed.map(|shard| format!("shard {}: a disk write failed", shard.shard));
        NodeReport { families, ills: ills.collect(), waits_for: Vec::new() }
    }

    fn node(&self, all: &Facts) -> Vec<Family> {
        let facts = &self.facts;
        let labels = vec![
            ("version", env!("CARGO_PKG_VERSION").to_owned()),
            ("driver", facts.driver.to_owned()),
            ("durability", facts.durability.mode.name().to_owned()),
            ("sync_method", facts.durability.method.name().to_owned()),
        ];
        let build = Family {
            name: "kadring_build_info",
            help: "What runs here; the number is always 1",
            samples: Samples::Gauges(vec![(labels, 1.0)]),
        };
        let (snapshots, space) = self.orders.space(&all.segments_in_use);
        let gauge = Family::gauge;
        vec![
            build,
            gauge(
                "process_start_time_seconds",
                "When the process started, in seconds since 1970",
                facts.started_ms / 1000,
            ),
            gauge(
                "process_resident_memory_bytes",
                "Memory that the process has in use",
                (facts.resident_bytes)(),
            ),
            gauge("kadring_threads", "Threads", u64::from(facts.spread.thread_count)),
            gauge(
                "kadring_disk_max_bytes",
                "Disk space that segments may take; 0 is no limit",
                facts.disk_bytes_max,
            ),
            gauge(
                "kadring_damage_found_at_start",
                "Damaged ranges that the start has found",
                facts.damage_found,
            ),
            gauge(
                "kadring_tail_uncertain_bytes",
                "Bytes of uncertain tail that the start has given up",
                facts.tail_uncertain_bytes,
            ),
            gauge("kadring_snapshots", "Snapshots", snapshots),
            gauge("kadring_snapshot_bytes", "Bytes of their files, each once", space.bytes),
            gauge(
                "kadring_snapshot_apart_bytes",
                "Of these, bytes that nothing but snapshots needs",
                space.bytes_apart,
            ),
        ]
    }
}

type OfShard = fn(&ShardFacts) -> u64;

/// Of each shard: name, help, and where the number is.
const GAUGES: &[(&str, &str, OfShard)] = &[
    ("kadring_keys", "Live keys, expired ones not yet collected included", |s| s.status.keys),
    ("kadring_keys_expiring", "Of these, keys with an expiry", |s| s.status.keys_expiring),
    ("kadring_segments", "Segments, the active one and the spare included", |s| s.status.segments),
    ("kadring_segment_bytes", "Bytes of their files", |s| s.status.segment_bytes),
    ("kadring_used_bytes", "Of these, bytes in use", |s| s.status.used_bytes),
    ("kadring_live_bytes", "Bytes of the newest records of all keys", |s| s.status.live_bytes),
    ("kadring_dead_bytes", "Bytes of sealed segments that are of no use", |s| s.status.dead_bytes),
    ("kadring_shelved_bytes", "Bytes of the reserve and of freed files", |s| s.status.pooled_bytes),
    ("kadring_index_bytes", "Bytes of the index in memory", |s| s.status.index_bytes),
    ("kadring_cache_bytes", "Bytes in the read cache", |s| s.status.cache_bytes),
    ("kadring_last_lsn", "The newest record", |s| s.status.last_lsn.0),
    ("kadring_durable_lsn", "The newest durable record", |s| s.status.durable_lsn.0),
    ("kadring_durable_lag_records", "Records that are not durable yet", |s| {
        s.status.last_lsn.0.saturating_sub(s.status.durable_lsn.0)
    }),
    ("kadring_suspect", "1 if acknowledged records are lost", |s| u64::from(s.status.suspect)),
    ("kadring_disk_full", "1 if there is no room for a segment", |s| u64::from(s.status.disk_full)),
    ("kadring_read_only", "1 after a disk write has failed", |s| u64::from(s.has_failed)),
    ("kadring_scrub_running", "1 while the scrub reads", |s| {
        u64::from(s.status.scrub.segment.is_some())
    }),
    ("kadring_scrub_segments_left", "Segments that this pass has still to read", |s| {
        s.status.scrub.segments_left
    }),
    ("kadring_repairs", "Entries of the repair list", |s| s.status.scrub.repairs),
];

const COUNTERS: &[(&str, &str, OfShard)] = &[
    ("kadring_log_frames_total", "Frames written", |s| s.status.log.frames),
    ("kadring_log_frame_bytes_total", "Bytes of frames written", |s| s.status.log.frame_bytes),
    ("kadring_log_records_total", "Records appended, copies included", |s| s.status.log.records),
    ("kadring_log_copies_total", "Records that compaction appended again", |s| s.status.log.copies),
    ("kadring_log_syncs_total", "Syncs of the log", |s| s.status.log.syncs),
    ("kadring_log_footer_bytes_total", "Bytes of segments' footers", |s| s.status.log.footer_bytes),
    ("kadring_log_extents_total", "Large values written in pieces", |s| s.status.log.extents),
    ("kadring_log_extent_bytes_total", "Bytes of these", |s| s.status.log.extent_bytes),
    ("kadring_segments_freed_total", "Segments that compaction gave back", |s| {
        s.status.compaction.segments_freed
    }),
    ("kadring_segments_recycled_total", "Of these, files kept for new segments", |s| {
        s.status.compaction.segments_recycled
    }),
    ("kadring_compaction_freed_bytes_total", "Bytes of segments given back", |s| {
        s.status.compaction.bytes_freed
    }),
    ("kadring_compaction_copied_bytes_total", "Bytes of records appended again", |s| {
        s.status.compaction.bytes_copied
    }),
    ("kadring_compaction_heads_read_total", "Headers read to tell what is live", |s| {
        s.status.compaction.heads_read
    }),
    ("kadring_compaction_tombstones_dropped_total", "Tombstones given up", |s| {
        s.status.compaction.tombstones_dropped
    }),
    ("kadring_compaction_segments_unfit_total", "Segments that cannot be compacted", |s| {
        s.status.compaction.segments_unfit
    }),
    ("kadring_checkpoints_total", "Checkpoints that count", |s| s.status.checkpoints.published),
    ("kadring_checkpoint_bytes_total", "Bytes of these", |s| s.status.checkpoints.bytes),
    ("kadring_checkpoint_failures_total", "Checkpoints that failed", |s| {
        s.status.checkpoints.failed
    }),
    ("kadring_cache_hits_total", "Reads answered from the cache", |s| s.status.cache_hits),
    ("kadring_cache_misses_total", "Reads it could not answer", |s| s.status.cache_misses),
    ("kadring_disk_reads_total", "Reads sent to the disk", |s| s.status.disk_reads),
    ("kadring_damaged_reads_total", "Records found damaged by reads", |s| s.status.damaged_reads),
    ("kadring_scrub_passes_total", "Passes of the scrub that ended", |s| s.status.scrub.passes),
    ("kadring_scrub_bytes_total", "Bytes that the scrub has read", |s| s.status.scrub.bytes),
    ("kadring_scrub_findings_total", "Damaged ranges that it found", |s| s.status.scrub.findings),
    ("kadring_scrub_records_damaged_total", "Records marked because of these", |s| {
        s.status.scrub.records_damaged
    }),
    ("kadring_repairs_dropped_total", "Repair entries that found no room", |s| {
        s.status.scrub.repairs_dropped
    }),
];

fn shards(all: &[ShardFacts]) -> Vec<Family> {
    let samples = |of: OfShard| -> Vec<(Labels, f64)> {
        let one =
            |shard: &ShardFacts| (vec![("shard", shard.shard.to_string())], number(of(shard)));
        all.iter().map(one).collect()
    };
    let gauges = GAUGES.iter().map(|(name, help, of)| {
        let samples = Samples::Gauges(samples(*of));
        Family { name, help, samples }
    });
    let counters = COUNTERS.iter().map(|(name, help, of)| {
        let samples = Samples::Counters(samples(*of));
        Family { name, help, samples }
    });
    gauges.chain(counters).collect()
}

fn doors(door: &Door, facts: &Facts) -> Vec<Family> {
    let (counter, gauge) = (Family::counter, Family::gauge);
    let counters = &facts.counters;
    let commands = facts.activity.commands();
    let commands =
        commands.map(|(name, count)| (vec![("command", name.to_owned())], number(count)));
    let waits = facts.activity.waits();
    let waits = waits.map(|(kind, waits)| (vec![("kind", kind.to_owned())], waits.clone()));
    vec![
        gauge("kadring_clients", "Connections of clients", facts.clients as u64),
        gauge(
            "kadring_clients_max",
            "Connections of clients that are taken",
            door.limits.connections_max as u64,
        ),
        gauge(
            "kadring_clients_blocked",
            "Clients whose command waits for a key or the log",
            facts.clients_blocked as u64,
        ),
        gauge(
            "kadring_clients_paused",
            "Clients that do not read their replies",
            facts.clients_paused as u64,
        ),
        counter("kadring_connections_total", "Connections accepted", counters.connections),
        counter(
            "kadring_connections_refused_total",
            "Connections refused because there were too many",
            counters.connections_refused,
        ),
        counter(
            "kadring_connections_stalled_total",
            "Connections closed because their client did not read",
            counters.connections_stalled,
        ),
        counter("kadring_received_bytes_total", "Bytes from clients", counters.received_bytes),
        counter("kadring_sent_bytes_total", "Bytes to clients", counters.sent_bytes),
        Family {
            name: "kadring_commands_total",
            help: "Commands executed",
            samples: Samples::Counters(commands.collect()),
        },
        Family {
            name: "kadring_request_seconds",
            help: "From the first bytes of a client's commands until all were answered",
            samples: Samples::Histograms(waits.collect()),
        },
        Family {
            name: "kadring_durable_write_seconds",
            help: "Writes to stable storage, and syncs",
            samples: Samples::Histograms(vec![(Vec::new(), facts.durable_writes.clone())]),
        },
    ]
}

fn copies(facts: &Facts) -> Vec<Family> {
    let classes: Vec<_> = facts.copies.classes().collect();
    let family = |name, help, of: fn(&super::ledger::Amount) -> u64| {
        let samples = classes.iter().map(|(path, length, amount)| {
            let labels = vec![("path", (*path).to_owned()), ("length", (*length).to_owned())];
            (labels, number(of(amount)))
        });
        Family { name, help, samples: Samples::Counters(samples.collect()) }
    };
    let (counter, sends) = (Family::counter, facts.sends);
    vec![
        family("kadring_values_total", "Values read and written", |one| one.values),
        family("kadring_value_bytes_total", "Their bytes", |one| one.bytes),
        family("kadring_value_copied_bytes_total", "Of these, bytes copied by the node", |one| {
            one.copied
        }),
        counter(
            "kadring_sent_uncopied_bytes_total",
            "Bytes sent that nobody copied",
            sends.zero_copy_bytes,
        ),
        counter(
            "kadring_sends_zero_copy_in_vain_total",
            "Sends without a copy that were copied all the same",
            sends.zero_copy_in_vain,
        ),
        counter(
            "kadring_sends_zero_copy_refused_total",
            "Sends without a copy that the kernel refused",
            sends.zero_copy_refused,
        ),
    ]
}

fn buffers(facts: &Facts) -> Vec<Family> {
    let (counter, gauge) = (Family::counter, Family::gauge);
    let buffers = &facts.buffers;
    vec![
        gauge("kadring_io_buffer_bytes", "Memory for disk buffers", buffers.arena_bytes),
        gauge("kadring_io_buffer_free_bytes", "Of this, unused", buffers.arena_bytes_free),
        gauge(
            "kadring_io_buffers_registered",
            "1 if the kernel knows them in advance",
            u64::from(buffers.registered),
        ),
        counter("kadring_io_buffers_taken_total", "Buffers from there", buffers.taken),
        counter(
            "kadring_io_buffers_from_heap_total",
            "Buffers from elsewhere, for want of room",
            buffers.fallen_back,
        ),
        counter(
            "kadring_io_buffer_operations_total",
            "Disk operations on registered memory",
            buffers.operations,
        ),
    ]
}
