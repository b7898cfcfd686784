//! How far a log has got: what is written, what is durable, and what may be acknowledged.
//!
//! ```text
//! frame written durably   -> durable and acknowledged, in LSN order
//! frame written cached    -> unsynced (one entry per segment), in LSN order;
//!                            `Interval`, `Os`: acknowledged here
//! segment synced          -> durable, in LSN order; `Always`: acknowledged here
//! ```
//!
//! A segment is synced only while no frame of it is under way, and no frame of it goes out until
//! the sync has completed: a sync covers just what completed before it was submitted, and some file
//! systems block the thread that submits a write to a file that is being synced.

use std::collections::VecDeque;

use super::{CommitDurability, OpenSegment, SyncMethod};
use crate::disk::FileId;
use crate::lsn::Lsn;

/// A frame under way.
#[derive(Debug)]
struct InFlight {
    number: u64,
    frame: Departure,
    watermark: Lsn,
    durably: bool,
    written: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SyncState {
    Unsynced,
    Running { number: u64 },
    Synced,
}

/// What was written to a segment and is not known to be durable.
#[derive(Debug)]
struct Unsynced {
    segment: OpenSegment,
    last_lsn: Lsn,
    watermark: Lsn,
    /// Bytes of records that are not acknowledged yet.
    len: usize,
    since_ms: u64,
    state: SyncState,
}

/// A frame that goes out.
#[derive(Clone, Copy, Debug)]
pub(super) struct Departure {
    pub(super) segment: OpenSegment,
    pub(super) offset: u64,
    /// LSN of its last record; in an idle frame, of the record before it.
    pub(super) last_lsn: Lsn,
    pub(super) record_count: u32,
    /// Bytes of its records.
    pub(super) len: usize,
}

/// The state of a log's writes and syncs.
#[derive(Debug)]
pub(super) struct Progress {
    method: SyncMethod,
    durability: CommitDurability,
    now_ms: u64,
    acknowledged: Lsn,
    durable: Lsn,
    /// The durable LSN that the newest durable frame carries.
    watermark: Lsn,
    /// Everything up to here is to become durable soon, whatever the durability.
    requested: Lsn,
    /// Segments that get no more frames and are to be synced before they are let go.
    sealing: Vec<u64>,
    in_flight: VecDeque<InFlight>,
    unsynced: VecDeque<Unsynced>,
    pending_bytes: usize,
}

impl Progress {
    pub(super) fn new(
        method: SyncMethod,
        durability: CommitDurability,
        durable: Lsn,
        now_ms: u64,
    ) -> Self {
        Self {
            method,
            durability,
            now_ms,
            acknowledged: durable,
            durable,
            watermark: durable,
            requested: Lsn::ZERO,
            sealing: Vec::new(),
            in_flight: VecDeque::new(),
            unsynced: VecDeque::new(),
            pending_bytes: 0,
        }
    }

    pub(super) fn acknowledged(&self) -> Lsn {
        self.acknowledged
    }

    pub(super) fn durable(&self) -> Lsn {
        self.durable
    }

    /// The newest time it was told.
    pub(super) fn now_ms(&self) -> u64 {
        self.now_ms
    }

    pub(super) fn set_now(&mut self, now_ms: u64) {
        self.now_ms = self.now_ms.max(now_ms);
    }

    pub(super) fn pending_bytes(&self) -> usize {
        self.pending_bytes
    }

    pub(super) fn add_pending(&mut self, len: usize) {
        self.pending_bytes += len;
    }

    pub(super) fn in_flight_count(&self) -> usize {
        self.in_flight.len()
    }

    /// Whether nothing is under way and a frame would carry a higher durable LSN than the newest.
    pub(super) fn is_watermark_behind(&self) -> bool {
        self.in_flight.is_empty() && self.unsynced.is_empty() && self.watermark < self.durable
    }

    /// Whether nothing is under way and nothing is owed.
    pub(super) fn is_settled(&self) -> bool {
        let owes = |entry: &Unsynced| match self.durability {
            CommitDurability::Always | CommitDurability::Interval { .. } => true,
            CommitDurability::Os => entry.state != SyncState::Unsynced || self.is_wanted(entry),
        };
        self.in_flight.is_empty() && !self.unsynced.iter().any(owes)
    }

    /// Whether frames of the segment are under way or not known to be durable.
    pub(super) fn holds_any_of(&self, segment: u64) -> bool {
        self.in_flight.iter().any(|flight| flight.frame.segment.id == segment)
            || self.unsynced.iter().any(|entry| entry.segment.id == segment)
    }

    /// Where frames of the segment stand that are not written yet, or wait for such.
    pub(super) fn offsets_under_way(&self, segment: u64) -> impl Iterator<Item = u64> {
        let frames = self.in_flight.iter().map(|flight| &flight.frame);
        frames.filter(move |frame| frame.segment.id == segment).map(|frame| frame.offset)
    }

    /// Makes everything up to `last_lsn` durable as soon as its frames are written.
    pub(super) fn request_sync(&mut self, last_lsn: Lsn) {
        self.requested = self.requested.max(last_lsn);
    }

    /// Notes that a segment gets no more frames; what was written to it is synced soon.
    pub(super) fn seal(&mut self, segment: u64) {
        if !self.sealing.contains(&segment) {
            self.sealing.push(segment);
        }
    }

    /// Forgets a segment that was sealed.
    pub(super) fn release(&mut self, segment: u64) {
        self.sealing.retain(|sealing| *sealing != segment);
    }

    /// When the next sync is due by its interval, in the milliseconds of [`Progress::set_now`].
    pub(super) fn sync_due_ms(&self) -> Option<u64> {
        let CommitDurability::Interval { ms } = self.durability else { return None };
        let waiting = self.unsynced.iter().filter(|entry| entry.state == SyncState::Unsynced);
        waiting.map(|entry| entry.since_ms.saturating_add(u64::from(ms))).min()
    }

    fn is_wanted(&self, entry: &Unsynced) -> bool {
        let asked = self.durable < self.requested || self.sealing.contains(&entry.segment.id);
        entry.state == SyncState::Unsynced
            && match self.durability {
                CommitDurability::Always => true,
                CommitDurability::Interval { ms } => {
                    asked || self.now_ms >= entry.since_ms.saturating_add(u64::from(ms))
                }
                CommitDurability::Os => asked,
            }
    }

    /// Whether frames of this segment must wait, as it is, or is about to be, synced.
    pub(super) fn is_held(&self, segment: u64) -> bool {
        self.unsynced
            .iter()
            .filter(|entry| entry.segment.id == segment)
            .any(|entry| matches!(entry.state, SyncState::Running { .. }) || self.is_wanted(entry))
    }

    /// Chooses a file to sync now, under this number.
    pub(super) fn start_sync(&mut self, number: u64) -> Option<FileId> {
        let index = self.unsynced.iter().position(|entry| {
            let busy = |flight: &InFlight| flight.frame.segment.id == entry.segment.id;
            self.is_wanted(entry) && !self.in_flight.iter().any(busy)
        })?;
        let entry = &mut self.unsynced[index];
        entry.state = SyncState::Running { number };
        Some(entry.segment.file)
    }

    /// Notes a frame that goes out; returns whether it is to be written durably.
    pub(super) fn depart(&mut self, number: u64, frame: Departure) -> bool {
        // An idle frame goes out alone: nothing follows to share the cost of a sync with.
        let durably = frame.record_count == 0
            || (self.durability, self.method) == (CommitDurability::Always, SyncMethod::Dsync);
        let watermark = self.durable;
        self.in_flight.push_back(InFlight { number, frame, watermark, durably, written: false });
        durably
    }

    /// Takes a completion that succeeded; `None` if it is of no frame and no sync.
    ///
    /// Otherwise tells whether more is acknowledged or durable now.
    pub(super) fn arrive(&mut self, number: u64) -> Option<bool> {
        let before = (self.acknowledged, self.durable);
        if let Some(flight) = self.in_flight.iter_mut().find(|flight| flight.number == number) {
            flight.written = true;
            while let Some(flight) = self.in_flight.pop_front_if(|flight| flight.written) {
                self.take_written(&flight);
            }
        } else {
            self.sync_of(number)?.state = SyncState::Synced;
            while let Some(entry) =
                self.unsynced.pop_front_if(|entry| entry.state == SyncState::Synced)
            {
                self.advance_durable(entry.last_lsn, entry.watermark);
                self.pending_bytes -= entry.len;
            }
        }
        Some((self.acknowledged, self.durable) != before)
    }

    /// Notes a durable footer: it says that everything up to its segment's last record is durable.
    pub(super) fn note_footer(&mut self, last_lsn: Lsn) {
        self.watermark = self.watermark.max(last_lsn);
    }

    /// Takes a completion of a log that has failed: nothing advances any more. Tells whether it
    /// was of a frame or a sync.
    pub(super) fn abandon(&mut self, number: u64) -> bool {
        let before = self.in_flight.len();
        self.in_flight.retain(|flight| flight.number != number);
        let sync = self.sync_of(number).map(|entry| entry.state = SyncState::Unsynced);
        self.in_flight.len() < before || sync.is_some()
    }

    fn sync_of(&mut self, number: u64) -> Option<&mut Unsynced> {
        self.unsynced.iter_mut().find(|entry| entry.state == SyncState::Running { number })
    }

    fn advance_durable(&mut self, last_lsn: Lsn, watermark: Lsn) {
        self.durable = self.durable.max(last_lsn);
        self.watermark = self.watermark.max(watermark);
        self.acknowledged = self.acknowledged.max(self.durable);
    }

    fn take_written(&mut self, flight: &InFlight) {
        let Departure { segment, last_lsn, mut len, .. } = flight.frame;
        if flight.durably && self.unsynced.is_empty() {
            self.pending_bytes -= len;
            self.advance_durable(last_lsn, flight.watermark);
            return;
        }
        if self.durability != CommitDurability::Always {
            self.pending_bytes -= len;
            self.acknowledged = self.acknowledged.max(last_lsn);
            len = 0;
        }
        let (watermark, since_ms) = (flight.watermark, self.now_ms);
        // One that is synced and waits for those before it stays as it is.
        let takes_more = |entry: &&mut Unsynced| {
            entry.segment.id == segment.id && entry.state != SyncState::Synced
        };
        match self.unsynced.back_mut().filter(takes_more) {
            Some(entry) => {
                debug_assert!(!matches!(entry.state, SyncState::Running { .. }), "frames are held");
                (entry.last_lsn, entry.watermark) = (last_lsn, watermark);
                entry.len += len;
            }
            None => {
                let state = SyncState::Unsynced;
                let entry = Unsynced { segment, last_lsn, watermark, len, since_ms, state };
                self.unsynced.push_back(entry);
            }
        }
    }
}
