//! Which segment is compacted next, and whether one is worth it.

use wal::Lsn;
use wal::disk::IoBuffer;
use wal::segment::SEGMENT_HEADER_LEN;

use super::super::Store;
use super::super::pool::{FULL_DISK_WORTH, copies_waste};
use super::Victim;
use super::heads::Scout;
use crate::index::SegmentNumber;
use crate::segments::SegmentState;

/// A segment that was given up is tried again after this many nanoseconds, or when compaction is
/// asked for by hand.
const UNFIT_RETRY_NS: u64 = 600_000_000_000;
/// Fewer sealed segments than this are left alone.
const SEALED_COUNT_MIN: u64 = 4;

impl Store {
    /// Lets segments that were given up be tried again: the disk may have recovered, a damaged
    /// record may have been overwritten.
    pub(in crate::store) fn retry_unfit(&mut self) {
        self.compaction.unfit_retry_at_ns = self.now.monotonic_ns.saturating_add(UNFIT_RETRY_NS);
        for segment in self.catalog.segments.iter_mut() {
            if segment.state == SegmentState::Unfit {
                segment.state = SegmentState::Sealed;
            }
        }
    }

    /// Looks for a victim, if none is at hand and one is worth it.
    pub(in crate::store) fn choose_victim(&mut self) {
        if self.compaction.pacing.wants_count() {
            self.count_waste();
        }
        if self.compaction.paused
            || self.compaction.victim.is_some()
            || self.log.failure().is_some()
        {
            return;
        }
        if self.compaction.unfit_retry_at_ns <= self.now.monotonic_ns {
            self.retry_unfit();
        }
        self.extents.copy.take_if(|copy| copy.is_over());
        self.retire_dead();
        self.count_waste();
        if let Some(number) = self.worthwhile_victim()
            && let Some(segment) = self.catalog.segments.get(number)
        {
            self.compaction.heads.clear();
            self.compaction.victim = Some(Victim {
                number,
                id: segment.id,
                end: segment.end,
                offset: SEGMENT_HEADER_LEN,
                window: IoBuffer::with_capacity(1),
                window_start: 0,
                reading: None,
                ahead: None,
                reading_ahead: None,
                frame: None,
                scout: Scout::default(),
            });
        }
    }

    /// Counts what is in use and what of it is live.
    fn count_waste(&mut self) {
        let (mut used, mut live) = (0, 0);
        for (_, segment) in self.catalog.segments.iter() {
            used += match segment.state {
                SegmentState::Open => segment.end,
                SegmentState::Sealed | SegmentState::Unfit => segment.len,
                SegmentState::Retiring => 0,
            };
            live += segment.live_bytes;
        }
        self.compaction.pacing.set_count(used, live, self.segment_bytes);
    }

    fn retire_dead(&mut self) {
        let oldest = self.oldest();
        let dead: Vec<SegmentNumber> = (self.catalog.segments.iter())
            .filter(|(number, segment)| {
                let hides = segment.tombstone_bytes > 0 || segment.has_clear;
                segment.state == SegmentState::Sealed
                    && segment.slots == 0
                    && !self.extents.holds(segment.id)
                    && (!hides || oldest == Some(*number))
            })
            .map(|(number, _)| number)
            .collect();
        dead.into_iter().for_each(|number| self.retire(number));
    }

    /// The segment whose records are older than those of every other one.
    fn oldest(&self) -> Option<SegmentNumber> {
        let segments = self.catalog.segments.iter();
        let first = segments.filter_map(|(number, segment)| Some((segment.lsns?.0, number)));
        first.min().map(|(_, number)| number)
    }

    fn worthwhile_victim(&mut self) -> Option<SegmentNumber> {
        let (mut sealed, mut len, mut tombstones) = (0u64, 0, 0);
        let of_state =
            |state| self.catalog.segments.iter().filter(move |(_, segment)| segment.state == state);
        for (_, segment) in of_state(SegmentState::Sealed) {
            sealed += 1;
            len += segment.len;
            tombstones += segment.tombstone_bytes;
        }
        let full = self.supply.is_disk_full();
        let pacing = &self.compaction.pacing;
        let wasteful = sealed >= SEALED_COUNT_MIN
            && pacing.is_wasteful()
            && (full || self.supply.failure().is_none());
        let requested_lsn = self.compaction.requested_lsn;
        if !wasteful && !full && requested_lsn.is_none() {
            self.compaction.pacing.forgive();
            return None;
        }
        // Many tombstones wait for the oldest records to go: those first, then.
        let by_age = tombstones * 4 > len;
        let room = self.room_for_copies();
        let last_lsn = self.log.last_lsn();
        let oldest = self.oldest();
        let mut best: Option<(u128, SegmentNumber)> = None;
        for (number, segment) in of_state(SegmentState::Sealed) {
            let oldest = oldest == Some(number);
            let live = pacing.live_bytes(segment.live_bytes);
            let kept = live + if oldest { 0 } else { segment.tombstone_bytes };
            let dead = segment.used().saturating_sub(kept);
            let asked_for = segment.lsns.is_none_or(|(_, last)| Some(last) <= requested_lsn);
            let blocked = !wasteful && !full && !asked_for
                || self.extents.holds(segment.id)
                || segment.has_clear && !oldest
                || full && kept + copies_waste(segment.len) > room;
            let worth = segment.len / if full { FULL_DISK_WORTH } else { 8 };
            if blocked || dead < worth && !(by_age && oldest) {
                continue;
            }
            let age = segment.lsns.map_or(Lsn::ZERO, |(_, last)| last).0;
            let age = u128::from(last_lsn.0.saturating_sub(age) + 1);
            let score = match by_age && oldest {
                true => u128::MAX,
                false => (u128::from(dead) << 20) * age / u128::from(segment.len + kept),
            };
            if best.is_none_or(|(known, _)| score > known) {
                best = Some((score, number));
            }
        }
        if best.is_none() {
            self.compaction.requested_lsn = None;
            self.compaction.pacing.forgive();
        }
        best.map(|(_, number)| number)
    }
}
