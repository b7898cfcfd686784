//! Which items are republished, and when. A state machine without I/O.
//!
//! ```text
//! resting ── a round is due ──> scanning ── a page ──> working ── page done ──> scanning
//!    ^                                                   │ one item at a time
//!    └────────────────── page done, the last one ────────┘
//! ```
//!
//! A round walks over all items in the order of their keys. Who has put an item at us within half
//! the interval has put it at others, too: such items are passed over. The others are begun at even
//! intervals, so that a round takes most of its time, and never faster than the budget allows. The
//! place in the round is kept over restarts.

use std::collections::VecDeque;

use bytes::Bytes;

use crate::kademlia::NodeId;
use crate::mainline::item::Record;

use super::event::Scanned;
use super::state::MirrorState;

/// Items asked of the engine at once.
pub const SCAN_ITEMS_MAX: usize = 64;
/// Items being republished at once.
pub const REPUBLISHES_MAX: usize = 8;

/// How items are kept and republished.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MirrorOptions {
    /// An item not put for so long expires.
    pub keep_ms: u64,
    /// Every item is republished so often (BEP 44: hourly), unless others have put it.
    pub interval_ms: u64,
    /// Items republished in a second, at most.
    pub per_second_max: u32,
}

impl MirrorOptions {
    /// Keeps items for a year after the last put.
    #[must_use]
    pub const fn new() -> Self {
        Self { keep_ms: 365 * 24 * 3_600_000, interval_ms: 3_600_000, per_second_max: 10 }
    }
}

impl Default for MirrorOptions {
    fn default() -> Self {
        Self::new()
    }
}

/// What the mirror has done.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct MirrorProgress {
    /// Rounds ended.
    pub rounds: u64,
    /// Items looked at.
    pub scanned: u64,
    /// Items passed over, since others have just put them at us.
    pub recent: u64,
    /// Items that all of the closest nodes had, and hold for longer now.
    pub fresh: u64,
    /// Items that some of the closest nodes lacked.
    pub republished: u64,
    /// Items of which others had a newer version, which was taken.
    pub newer: u64,
    /// Items that no node took.
    pub failed: u64,
    /// Items that could not be read.
    pub damaged: u64,
    /// Items being republished.
    pub under_way: usize,
    /// How much of the key space the round has covered, 0 to 1.
    pub covered: f64,
}

/// What has become of an item.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Republished {
    Fresh,
    Stored,
    Failed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Resting {
        until_ms: u64,
    },
    /// The engine is to be asked, or has been.
    Scanning {
        is_asked: bool,
    },
    Working {
        is_last: bool,
    },
}

/// Walks over the items.
#[derive(Debug)]
pub(super) struct Mirror {
    options: MirrorOptions,
    progress: MirrorProgress,
    phase: Phase,
    round: MirrorState,
    /// The rest of the page.
    page: VecDeque<(NodeId, Bytes)>,
    next_ms: u64,
}

impl Mirror {
    pub(super) fn new(now_ms: u64, options: MirrorOptions) -> Self {
        Self {
            options,
            progress: MirrorProgress::default(),
            // At the start there are no nodes yet to put anything at.
            phase: Phase::Resting { until_ms: now_ms.saturating_add(60_000) },
            round: MirrorState::default(),
            page: VecDeque::new(),
            next_ms: 0,
        }
    }

    /// Goes on in the round of an earlier life.
    pub(super) fn restore(&mut self, round: MirrorState) {
        self.round = round;
    }

    pub(super) fn state(&self) -> MirrorState {
        self.round
    }

    pub(super) fn progress(&self) -> MirrorProgress {
        let place = self.round.after.map_or(0, |id| u16::from_be_bytes([id.0[0], id.0[1]]));
        MirrorProgress { covered: f64::from(place) / 65_536.0, ..self.progress }
    }

    /// Returns after which item the engine is to be asked, if it is.
    pub(super) fn poll_scan(&mut self, now_ms: u64) -> Option<Option<NodeId>> {
        if let Phase::Resting { until_ms } = self.phase
            && now_ms >= until_ms
        {
            if self.round.after.is_none() {
                self.round.began_ms = now_ms;
            }
            self.phase = Phase::Scanning { is_asked: false };
        }
        if self.phase != (Phase::Scanning { is_asked: false }) {
            return None;
        }
        self.phase = Phase::Scanning { is_asked: true };
        Some(self.round.after)
    }

    /// Takes a page of items.
    pub(super) fn on_scanned(&mut self, items: &[Scanned], is_last: bool) {
        if self.phase != (Phase::Scanning { is_asked: true }) {
            return;
        }
        for Scanned { target, record } in items {
            self.progress.scanned += 1;
            match record {
                Some(record) => self.page.push_back((*target, record.clone())),
                None => self.progress.damaged += 1,
            }
        }
        if self.page.is_empty()
            && let Some(last) = items.last()
        {
            self.round.after = Some(last.target);
        }
        self.phase = Phase::Working { is_last: is_last || items.is_empty() };
    }

    /// Returns the next item to be republished now.
    pub(super) fn poll_item(&mut self, now_ms: u64) -> Option<Bytes> {
        let Phase::Working { is_last } = self.phase else { return None };
        while now_ms >= self.next_ms && self.progress.under_way < REPUBLISHES_MAX {
            let Some((target, record)) = self.page.pop_front() else {
                self.end_page(now_ms, is_last);
                return None;
            };
            self.round.after = Some(target);
            let Ok(read) = Record::decode(&record) else {
                self.progress.damaged += 1;
                continue;
            };
            // The next round must come before others let it expire: 2 hours after the put.
            if now_ms < read.put_ms.saturating_add(self.options.interval_ms / 2) {
                self.progress.recent += 1;
                continue;
            }
            self.round.due += 1;
            self.next_ms = now_ms.saturating_add(self.gap_ms());
            self.progress.under_way += 1;
            return Some(record);
        }
        None
    }

    /// An item was dealt with; `is_newer`: others had a newer version, and it was that one.
    pub(super) fn on_republished(&mut self, outcome: Republished, is_newer: bool) {
        self.progress.under_way = self.progress.under_way.saturating_sub(1);
        let counted = match outcome {
            Republished::Fresh => &mut self.progress.fresh,
            Republished::Stored => &mut self.progress.republished,
            Republished::Failed => &mut self.progress.failed,
        };
        *counted += 1;
        self.progress.newer += u64::from(is_newer);
    }

    /// When there is something to do next.
    pub(super) fn deadline_ms(&self) -> Option<u64> {
        match self.phase {
            Phase::Resting { until_ms } => Some(until_ms),
            Phase::Scanning { is_asked } => (!is_asked).then_some(0),
            Phase::Working { .. } if self.progress.under_way >= REPUBLISHES_MAX => None,
            Phase::Working { .. } => Some(self.next_ms),
        }
    }

    fn end_page(&mut self, now_ms: u64, is_last: bool) {
        if !is_last {
            self.phase = Phase::Scanning { is_asked: false };
            return;
        }
        self.progress.rounds += 1;
        let until_ms = self.round.began_ms.saturating_add(self.options.interval_ms);
        // A round that took longer than its time is followed by the next one, after a breath.
        self.phase = Phase::Resting { until_ms: until_ms.max(now_ms.saturating_add(1_000)) };
        self.round =
            MirrorState { due_before: self.round.due, began_ms: now_ms, ..MirrorState::default() };
    }

    /// Items are begun so far apart that those of the last round fill four fifths of the time.
    fn gap_ms(&self) -> u64 {
        let least = 1_000_u64.div_ceil(u64::from(self.options.per_second_max.max(1)));
        let even = (self.options.interval_ms / 5 * 4).checked_div(self.round.due_before);
        even.unwrap_or(0).max(least)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mainline::item::{Item, immutable_target};

    const HOUR: u64 = 3_600_000;
    const OPTIONS: MirrorOptions =
        MirrorOptions { keep_ms: 1_000 * HOUR, interval_ms: HOUR, per_second_max: 10 };

    /// An engine of so many items, each put at a time.
    fn items(count: u64, put_ms: impl Fn(u64) -> u64) -> Vec<Scanned> {
        let mut items: Vec<Scanned> = (0..count)
            .map(|number| {
                let value = format!("i{number}e").into_bytes();
                let record = Record { put_ms: put_ms(number), item: Item::Immutable(&value) };
                let record = Some(record.encode().into());
                Scanned { target: immutable_target(&value), record }
            })
            .collect();
        items.sort_by_key(|item| item.target);
        items
    }

    /// Runs until `end_ms`; returns when each item was begun.
    fn run(mirror: &mut Mirror, items: &[Scanned], from_ms: u64, end_ms: u64) -> Vec<u64> {
        let (mut begun, mut now_ms) = (Vec::new(), from_ms);
        while now_ms < end_ms {
            if let Some(after) = mirror.poll_scan(now_ms) {
                let start = items.partition_point(|item| Some(item.target) <= after);
                let end = items.len().min(start + SCAN_ITEMS_MAX);
                mirror.on_scanned(&items[start..end], end == items.len());
            }
            while mirror.poll_item(now_ms).is_some() {
                begun.push(now_ms);
                mirror.on_republished(Republished::Stored, false);
            }
            now_ms = mirror.deadline_ms().unwrap_or(0).max(now_ms + 1);
        }
        begun
    }

    #[test]
    fn items_that_others_have_just_put_are_passed_over() {
        let mut mirror = Mirror::new(0, OPTIONS);
        // Of 100, 30 are put again all the time.
        let items = items(100, |number| if number < 30 { 3 * HOUR } else { 0 });
        let begun = run(&mut mirror, &items, HOUR, 2 * HOUR - 1);
        assert_eq!(begun.len(), 70);
        let progress = mirror.progress();
        assert_eq!((progress.scanned, progress.recent, progress.rounds), (100, 30, 1));
    }

    #[test]
    fn rounds_are_spread_over_the_time_and_within_the_budget() {
        let mut mirror = Mirror::new(0, OPTIONS);
        let items = items(1_000, |_| 0);
        let first = run(&mut mirror, &items, HOUR, 2 * HOUR - 1);
        assert_eq!(first.len(), 1_000);
        assert!(first.windows(2).all(|pair| pair[1] - pair[0] >= 100), "10 a second");
        let second = run(&mut mirror, &items, 2 * HOUR, 3 * HOUR - 1);
        assert_eq!(second.len(), 1_000);
        let took = second[999] - second[0];
        assert!((HOUR * 7 / 10..HOUR * 9 / 10).contains(&took), "{took}");
    }

    #[test]
    fn round_goes_on_where_an_earlier_life_has_left_it() {
        let items = items(200, |_| 0);
        let mut before = Mirror::new(0, OPTIONS);
        let begun = run(&mut before, &items, HOUR, HOUR + 5_000).len();
        assert!((20..180).contains(&begun), "{begun}");
        let mut after = Mirror::new(HOUR + 6_000, OPTIONS);
        after.restore(before.state());
        let rest = run(&mut after, &items, HOUR + 66_000, 2 * HOUR - 1).len();
        assert_eq!(begun + rest, 200);
        assert_eq!(after.progress().rounds, 1);
    }

    #[test]
    fn few_are_under_way_at_once_and_damaged_ones_are_counted() {
        let mut mirror = Mirror::new(0, OPTIONS);
        let mut items = items(60, |_| 0);
        items[3].record = None;
        items[4].record = Some(Bytes::from_static(b"no record"));
        assert_eq!(mirror.poll_scan(HOUR), Some(None));
        mirror.on_scanned(&items, true);
        let mut begun = 0;
        for second in 0..100 {
            begun += usize::from(mirror.poll_item(HOUR + second * 1_000).is_some());
        }
        assert_eq!((begun, mirror.progress().under_way), (REPUBLISHES_MAX, REPUBLISHES_MAX));
        assert_eq!(mirror.progress().damaged, 2);
        assert_eq!(mirror.deadline_ms(), None);
    }
}
