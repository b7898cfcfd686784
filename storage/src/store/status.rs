//! [`StoreStatus`]: a store in figures.

use wal::Lsn;
use wal::group_commit::GroupCommitCounters;

use super::{CheckpointCounters, CompactionCounters, ScrubStatus, Store};
use crate::segments::SegmentState;

/// Figures of a store, for INFO and metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StoreStatus {
    /// Live keys, expired ones not yet collected included.
    pub keys: u64,
    /// Of these, keys with an expiry.
    pub keys_expiring: u64,
    /// Segments, the active one and the spare included.
    pub segments: u64,
    /// Bytes of their files.
    pub segment_bytes: u64,
    /// Of these, bytes in use: of sealed segments all, of the others those written so far.
    pub used_bytes: u64,
    /// Bytes of records that are the newest of their keys, by size class.
    pub live_bytes: u64,
    /// Bytes of sealed segments that hold nothing of use.
    pub dead_bytes: u64,
    /// Bytes of shelved files that become segments: the reserve, and freed segments.
    pub pooled_bytes: u64,
    /// Bytes of the index in memory.
    pub index_bytes: u64,
    /// What compaction has done.
    pub compaction: CompactionCounters,
    /// What the scrub has done.
    pub scrub: ScrubStatus,
    /// What has become of checkpoints.
    pub checkpoints: CheckpointCounters,
    /// Bytes in the read cache.
    pub cache_bytes: u64,
    /// Reads answered from it.
    pub cache_hits: u64,
    /// Reads it could not answer.
    pub cache_misses: u64,
    /// Reads sent to the disk.
    pub disk_reads: u64,
    /// Records found damaged since the start.
    pub damaged_reads: u64,
    /// Counters of the log.
    pub log: GroupCommitCounters,
    /// The newest record.
    pub last_lsn: Lsn,
    /// The newest durable record.
    pub durable_lsn: Lsn,
    /// The newest record that may be acknowledged.
    pub acknowledged_lsn: Lsn,
    /// Whether acknowledged records are lost and not known by key.
    pub suspect: bool,
    /// Whether the disk has no room for another segment.
    pub disk_full: bool,
}

impl Store {
    /// Figures for INFO and metrics.
    #[must_use]
    pub fn status(&self) -> StoreStatus {
        let (mut used_bytes, mut live_bytes, mut dead_bytes) = (0, 0, 0);
        for (_, segment) in self.catalog.segments.iter() {
            let is_open = segment.state == SegmentState::Open;
            used_bytes += if is_open { segment.end } else { segment.len };
            live_bytes += segment.live_bytes;
            if matches!(segment.state, SegmentState::Sealed | SegmentState::Unfit) {
                dead_bytes += segment.len.saturating_sub(segment.live_bytes);
            }
        }
        StoreStatus {
            keys: self.catalog.keys(),
            keys_expiring: self.catalog.expiring(),
            segments: self.keeper.manifest().segments.len() as u64,
            segment_bytes: self.keeper.manifest().segments.iter().map(|s| s.len).sum(),
            used_bytes,
            live_bytes,
            dead_bytes,
            pooled_bytes: self.supply.pooled_bytes(),
            index_bytes: self.catalog.index.bytes(),
            compaction: self.compaction.counters,
            scrub: self.scrub.status(),
            checkpoints: self.checkpointing.counters,
            cache_bytes: self.cache.bytes(),
            cache_hits: self.cache.hits,
            cache_misses: self.cache.misses,
            disk_reads: self.reads.started,
            damaged_reads: self.reads.damaged,
            log: self.log.counters(),
            last_lsn: self.log.last_lsn(),
            durable_lsn: self.log.durable_lsn(),
            acknowledged_lsn: self.log.acknowledged_lsn(),
            suspect: self.suspect,
            disk_full: self.supply.is_disk_full(),
        }
    }
}
