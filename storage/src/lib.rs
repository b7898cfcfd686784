//! A log-structured key-value store that performs no I/O itself.
//!
//! ```text
//!   put/remove/touch ──> group commit ──> DiskRequest ─┐         ┌─> Event::Durable(lsn)
//!   get ──> index ──> recent | cache | DiskRequest ────┼─ driver ┼─> Event::Read
//!   time, DiskCompletion ──────────────────────────────┘         └─> Event::Writable, …
//! ```
//!
//! [`Store`] holds one shard: an index in memory and records in the segments of a [`wal`] log. The
//! active segment is the write-ahead log; sealed segments are the store. Commands act on the newest
//! state, writes not yet durable included; each answer says up to which [`wal::Lsn`] it has looked,
//! and its reply must wait until [`Store::acknowledged_lsn`] has reached that. An acknowledged
//! write survives any crash, unless the log was opened with a durability that promises less.
//!
//! The owner drives it: [`Store::set_now`] when a turn starts, commands and
//! [`Store::handle_disk`] in any order, [`Store::end_turn`] when the turn ends, and after each of
//! them [`Store::poll_request`] and [`Store::poll_event`] until both are empty. No call blocks.

#![forbid(unsafe_code)]

mod cache;
mod catalog;
mod check;
mod checkpoint;
mod clock;
mod error;
mod hot;
mod index;
mod knowledge;
#[doc(hidden)]
pub mod mutation;
mod number_table;
mod overwriters;
mod rebuild;
mod recovery;
mod segments;
mod store;
mod value_chunks;

pub use check::{CheckReport, check};
#[doc(hidden)]
pub use checkpoint::fuzz::fuzz_checkpoint;
pub use clock::{CLOCK_JUMP_ALARM_MS, ClockReading, LogClock, Now};
pub use error::{OpenError, ReadError, WriteError};
#[doc(hidden)]
pub use index::probe::IndexProbe;
pub use recovery::{DamagedFile, Opened, RecoveryReport, RecoverySources, identify, open};
pub use store::{
    CheckpointCounters, CheckpointLoader, CheckpointOptions, CompactionCounters, Effect, Entry,
    Event, FileContent, FileTail, Get, GetRecord, KeyRef, Lookup, Put, ReadId, Repair,
    RepairReason, ScannedKey, ScrubStatus, SharedPut, SnapshotFile, Store, StoreLimits,
    StoreOptions, StoreStatus, Value,
};
