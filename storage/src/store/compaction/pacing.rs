//! How much compaction is worth to puts: nothing while little is dead, and more the more is.
//!
//! Space amplification is the bytes in use of all segments over the bytes of live records. What the
//! segment in use and the victim hold twice or not yet is left out of it (two segments): it does
//! not grow with the store. A small store may have as many dead bytes as one with
//! `live_segments_min` segments full of live ones: where all is in a few segments, each of them
//! is mostly live at any moment, and compaction would only carry it around. From
//! [`START_PERMILLE`] on segments are compacted; each byte put obliges compaction to look at some
//! bytes of victims, the more, the higher the amplification. Above [`SLOW_PERMILLE`] puts are
//! refused as busy while too much of that is owed, so that they come at the speed at which
//! compaction works (docs/adr/0016).
//!
//! The index knows live bytes by size class, which is up to an eighth too much. How much it is on
//! the average is learned from the records appended.

use crate::index::SizeClass;

/// From this space amplification on, in thousandths, segments are compacted.
pub(super) const START_PERMILLE: u64 = 1200;
/// Above this one, puts wait for compaction.
pub(super) const SLOW_PERMILLE: u64 = 1240;
/// Bytes of victims to be looked at for each byte put, at the lower and from the upper one on: a
/// victim of which three quarters are live gives back one byte of four.
const WORK_MIN: u64 = 3;
const WORK_MAX: u64 = 12;
/// Bytes of so many segments are no reason to compact.
const SLACK_SEGMENTS: u64 = 2;
/// Puts wait where more is owed than this part of what does not count, an eighth of a segment;
/// and never is more than twice that owed.
const OWED_SHARE: u64 = 16;
/// No put waits longer than this for compaction: what is owed then is forgotten. Victims full of
/// keys of one prefix take a read for each record.
const REFUSED_MAX_NS: u64 = 100_000_000;
/// Used and live bytes are counted again after so many bytes appended, in a small store after a
/// part of what is used.
const COUNT_EVERY_BYTES: u64 = 1 << 20;
const COUNT_EVERY_SHARE: u64 = 128;
/// Exact and estimated lengths are halved from here on, so that newer records count more.
const LEARNED_BYTES_MAX: u64 = 1 << 30;

/// What compaction owes to puts.
#[derive(Debug)]
pub(super) struct Pacing {
    /// Thousandths, as last counted.
    amplification: u64,
    /// Bytes appended since.
    uncounted: u64,
    /// Bytes of victims that are to be looked at for what was put.
    owed: u64,
    /// Puts wait where it is more than this.
    owed_max: u64,
    /// Bytes of victims that may be looked at: compaction that gains nothing, because records do
    /// not fit their segments better, ends when nobody writes.
    allowance: u64,
    /// Used and live bytes, as last counted.
    used: u64,
    live: u64,
    /// Bytes of records appended, exact and by size class.
    learned: (u64, u64),
    /// Dead bytes are compared with so many segments of live ones at least.
    live_segments_min: u64,
    /// Since when a put that was refused for what is owed waits.
    refused_at_ns: Option<u64>,
}

impl Default for Pacing {
    fn default() -> Self {
        Self {
            amplification: 0,
            uncounted: COUNT_EVERY_BYTES,
            owed: 0,
            owed_max: u64::MAX,
            allowance: u64::MAX,
            used: 0,
            live: 0,
            // Until something is known: the average over all lengths, with little weight.
            learned: (15 << 16, 16 << 16),
            live_segments_min: 0,
            refused_at_ns: None,
        }
    }
}

impl Pacing {
    /// Of a store whose dead bytes are compared with so many segments of live ones at least.
    pub(super) fn new(live_segments_min: u64) -> Self {
        Self { live_segments_min, ..Self::default() }
    }

    /// Notes a record that was appended, by a put or as a copy.
    pub(super) fn note_append(&mut self, record_len: u64) {
        self.uncounted = self.uncounted.saturating_add(record_len);
        let (exact, by_class) = &mut self.learned;
        *exact += record_len;
        *by_class += SizeClass::of(record_len).bytes().max(record_len);
        if *by_class > LEARNED_BYTES_MAX {
            *exact /= 2;
            *by_class /= 2;
        }
    }

    /// Notes what a put has appended.
    pub(super) fn note_put(&mut self, record_len: u64) {
        let work = record_len.saturating_mul(self.work_per_byte());
        self.owed = self.owed.saturating_add(work).min(self.owed_max.saturating_mul(2));
        self.allow(record_len);
    }

    /// So many bytes more have come or died: at most all that is in use is looked at for that.
    fn allow(&mut self, bytes: u64) {
        let allowance = self.allowance.saturating_add(bytes.saturating_mul(WORK_MAX));
        self.allowance = allowance.min(self.used);
    }

    /// Bytes that a victim is looked at for each byte put.
    fn work_per_byte(&self) -> u64 {
        let above = self.amplification.saturating_sub(START_PERMILLE);
        let span = SLOW_PERMILLE - START_PERMILLE;
        match above {
            0 => 0,
            _ => WORK_MIN + (WORK_MAX - WORK_MIN) * above.min(span) / span,
        }
    }

    /// Live bytes, given those by size class.
    pub(super) fn live_bytes(&self, by_class: u64) -> u64 {
        let (exact, sum) = self.learned;
        let live = u128::from(by_class) * u128::from(exact) / u128::from(sum);
        u64::try_from(live).unwrap_or(u64::MAX)
    }

    /// Whether used and live bytes are to be counted again.
    pub(super) fn wants_count(&self) -> bool {
        self.uncounted >= COUNT_EVERY_BYTES.min(self.used / COUNT_EVERY_SHARE)
    }

    /// Takes what was counted: bytes in use, live bytes by size class; and the length of a segment.
    pub(super) fn set_count(&mut self, used: u64, live_by_class: u64, segment_bytes: u64) {
        let slack = SLACK_SEGMENTS * segment_bytes;
        self.uncounted = 0;
        self.owed_max = slack / OWED_SHARE;
        let live = self.live_bytes(live_by_class).max(1);
        let died = self.live.saturating_sub(live);
        (self.used, self.live) = (used, live);
        self.allow(died);
        let dead = u128::from(used.saturating_sub(slack).saturating_sub(live)) * 1000;
        let base = live.max(self.live_segments_min * segment_bytes);
        let excess = u64::try_from(dead / u128::from(base)).unwrap_or(u64::MAX);
        self.amplification = excess.saturating_add(1000);
        if !self.is_wasteful() {
            self.owed = 0;
        }
    }

    /// Whether so much is dead that segments are worth compacting.
    pub(super) fn is_wasteful(&self) -> bool {
        self.amplification > START_PERMILLE && self.allowance > 0
    }

    /// Whether puts are to be slowed down if compaction does not keep up.
    pub(super) fn is_urgent(&self) -> bool {
        self.amplification > SLOW_PERMILLE
    }

    /// Whether puts have earned more than was worked off.
    pub(super) fn owes_much(&self) -> bool {
        self.is_urgent() && self.owed > self.owed_max
    }

    /// Notes bytes of a victim that were looked at.
    pub(super) fn work_off(&mut self, bytes: u64) {
        self.owed = self.owed.saturating_sub(bytes);
        self.allowance = self.allowance.saturating_sub(bytes);
    }

    /// There is nothing to compact.
    pub(super) fn forgive(&mut self) {
        self.owed = 0;
    }

    pub(super) fn refuse(&mut self, now_ns: u64) {
        self.refused_at_ns.get_or_insert(now_ns);
    }

    pub(super) fn is_refusing(&self) -> bool {
        self.refused_at_ns.is_some()
    }

    /// When the put that waits longest has waited enough.
    pub(super) fn deadline_ns(&self) -> Option<u64> {
        self.refused_at_ns.map(|since_ns| since_ns.saturating_add(REFUSED_MAX_NS))
    }

    pub(super) fn take_refused(&mut self) -> bool {
        self.refused_at_ns.take().is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn pacing(amplification: u64) -> Pacing {
        let mut pacing = Pacing { learned: (1, 1), ..Pacing::default() };
        pacing.set_count(MIB * amplification + 16 * MIB, MIB * 1000, 8 * MIB);
        pacing
    }

    #[test]
    fn work_rises_with_the_amplification_and_is_none_below_the_start() {
        let work = |amplification| pacing(amplification).work_per_byte();
        assert_eq!([work(1000), work(START_PERMILLE)], [0, 0]);
        assert!(work(START_PERMILLE + 1) >= WORK_MIN);
        assert!((1000..1400).all(|amplification| work(amplification) <= work(amplification + 1)));
        assert_eq!([work(SLOW_PERMILLE), work(u64::from(u32::MAX))], [WORK_MAX, WORK_MAX]);
    }

    #[test]
    fn puts_wait_only_when_urgent_and_until_the_work_is_done() {
        let mut patient = pacing(SLOW_PERMILLE);
        patient.note_put(100 * MIB);
        assert!(!patient.owes_much() && patient.owed > 0);
        let mut urgent = pacing(SLOW_PERMILLE + 1);
        assert!(!urgent.owes_much());
        urgent.note_put(100 * MIB);
        assert!(urgent.owes_much());
        urgent.work_off(urgent.owed_max);
        assert!(!urgent.owes_much(), "what was put long ago is not owed for ever");
        urgent.note_put(100 * MIB);
        urgent.set_count(100, 100, 0);
        assert_eq!(urgent.owed, 0, "nothing is dead any more");
    }

    #[test]
    fn compaction_that_gains_nothing_ends_when_nobody_writes() {
        let mut pacing = pacing(SLOW_PERMILLE);
        pacing.work_off(pacing.used);
        assert!(!pacing.is_wasteful());
        pacing.note_put(1);
        assert!(pacing.is_wasteful());
        pacing.work_off(WORK_MAX);
        assert!(!pacing.is_wasteful());
        pacing.set_count(pacing.used, pacing.live / 2, 0);
        assert!(pacing.is_wasteful(), "keys have expired");
    }

    #[test]
    fn live_bytes_follow_the_lengths_of_the_records() {
        let mut pacing = Pacing::default();
        for _ in 0..10_000 {
            pacing.note_append(1100);
        }
        let by_class = 1000 * SizeClass::of(1100).bytes();
        let live = pacing.live_bytes(by_class);
        assert!(live.abs_diff(1000 * 1100) < 1100 * 20, "{live}");
    }
}
