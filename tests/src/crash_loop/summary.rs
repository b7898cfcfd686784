//! What a run did, counted.

use std::fmt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::ledger::{EXPIRY_SLACK_MS, Violation, Window};

/// Counted by all threads.
#[derive(Default)]
pub(super) struct Tally {
    pub(super) acknowledged_writes: AtomicU64,
    pub(super) unknown_outcomes: AtomicU64,
    pub(super) error_replies: AtomicU64,
    pub(super) flushes: AtomicU64,
    pub(super) verified_keys: AtomicU64,
    pub(super) expired_keys: AtomicU64,
    pub(super) expired_while_down: AtomicU64,
    /// When the node was last killed.
    pub(super) killed_ms: AtomicU64,
    pub(super) error_example: Mutex<Option<String>>,
}

impl Tally {
    /// The moment of the last kill, and what clocks may differ: who expires later was alive then.
    pub(super) fn killed_window(&self) -> Window {
        let ms = self.killed_ms.load(Ordering::Relaxed) + 2 * EXPIRY_SLACK_MS;
        Window { sent: ms, received: ms }
    }
}

/// What a crash loop did.
#[derive(Debug, Clone, Default)]
pub struct CrashSummary {
    /// SIGKILLs sent.
    pub kills: u64,
    /// Those that hit a node before its readiness line.
    pub start_kills: u64,
    /// Write commands acknowledged.
    pub acknowledged_writes: u64,
    /// Commands without reply or with an error.
    pub unknown_outcomes: u64,
    /// Those with an error.
    pub error_replies: u64,
    /// One of the errors.
    pub error_example: Option<String>,
    /// FLUSHALLs acknowledged.
    pub flushes: u64,
    /// Keys compared after restarts.
    pub verified_keys: u64,
    /// From start to readiness line, each restart, ascending.
    pub restarts: Vec<Duration>,
    /// What went on in the background.
    pub background: Background,
}

/// What is to be killed besides writes; lower bounds, as a dead node tells no more.
#[derive(Debug, Clone, Copy, Default)]
pub struct Background {
    /// Segments that compaction gave back.
    pub segments_freed: u64,
    /// Bytes of live records that it copied.
    pub bytes_copied: u64,
    /// Checkpoints published.
    pub checkpoints: u64,
    /// Snapshots answered.
    pub snapshots: u64,
    /// Snapshots verified, restored, and compared with the ledger as of their cut.
    pub snapshots_compared: u64,
    /// Snapshots deleted.
    pub snapshots_deleted: u64,
    /// Keys whose time ran out.
    pub keys_expired: u64,
    /// Those among them that were alive when the node was killed.
    pub keys_expired_while_down: u64,
    /// Records that starts have read.
    pub records_replayed: u64,
}

impl Background {
    /// Checks that everything ran that a run of some length must have seen.
    ///
    /// # Errors
    /// What did not run.
    pub fn demand(&self) -> Result<(), Violation> {
        for (count, what) in [
            (self.segments_freed, "segment was freed"),
            (self.bytes_copied, "record was copied by compaction"),
            (self.checkpoints, "checkpoint was published"),
            (self.snapshots, "snapshot was taken"),
            (self.snapshots_compared, "snapshot was compared"),
            (self.snapshots_deleted, "snapshot was deleted"),
            (self.keys_expired, "key expired"),
            (self.keys_expired_while_down, "key expired while the node was down"),
            (self.records_replayed, "record was replayed"),
        ] {
            if count == 0 {
                return Err(Violation { account: format!("the run proves too little: no {what}") });
            }
        }
        Ok(())
    }
}

impl fmt::Display for Background {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "{} segments freed, {:.1} MB copied, {} checkpoints, {} snapshots ({} compared, \
             {} deleted), {} keys expired ({} while down), {} records replayed",
            self.segments_freed,
            self.bytes_copied as f64 / 1e6,
            self.checkpoints,
            self.snapshots,
            self.snapshots_compared,
            self.snapshots_deleted,
            self.keys_expired,
            self.keys_expired_while_down,
            self.records_replayed
        )
    }
}

impl fmt::Display for CrashSummary {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let median = self.restarts.get(self.restarts.len() / 2).copied().unwrap_or_default();
        let longest = self.restarts.last().copied().unwrap_or_default();
        write!(
            formatter,
            "{} kills ({} during start-up), {} acknowledged writes, {} keys compared, \
             {} unknown outcomes ({} error replies), {} flushes, restart p50 {:.1} ms max {:.1} ms",
            self.kills,
            self.start_kills,
            self.acknowledged_writes,
            self.verified_keys,
            self.unknown_outcomes,
            self.error_replies,
            self.flushes,
            median.as_secs_f64() * 1e3,
            longest.as_secs_f64() * 1e3,
        )?;
        write!(formatter, "; {}", self.background)?;
        match &self.error_example {
            Some(text) => write!(formatter, ", an error: {text}"),
            None => Ok(()),
        }
    }
}
