//! One page of slots, sorted by prefix; equal prefixes newest first.
//!
//! The bytes are those of a checkpoint file (little-endian):
//!
//! | offset | size | field | meaning |
//! |---|---|---|---|
//! | 0 | 4 | reserved | 0; room for a CRC |
//! | 4 | 2 | mark | 0x4B50; 0 = a page not in use, of zeros |
//! | 6 | 2 | count | slots, at most 310 |
//! | 8 | 8 | boundary | no slot has a prefix below it |
//! | 16 | 48 | reserved | 0 |
//! | 64 | 13 n | slots | see [`super::slot`]; bytes after them mean nothing |
//!
//! A page in memory that [`check`] has not seen comes from this file alone; reading one never
//! depends on what it claims beyond its own 4 KiB.

use std::ops::Range;

use super::slot::{Prefix, SLOT_LEN, Slot};

/// Bytes of a page.
pub(crate) const PAGE_LEN: usize = 4096;
/// Bytes of its header.
pub(crate) const PAGE_HEADER_LEN: usize = 64;
/// Most slots of a page.
pub(crate) const PAGE_SLOTS_MAX: usize = (PAGE_LEN - PAGE_HEADER_LEN) / SLOT_LEN;
/// Most slots of one prefix in pages; further ones are kept by full key.
pub(crate) const GROUP_SLOTS_MAX: usize = 8;
/// Slots of a page on average, to guess with.
const SLOTS_TYPICAL: u64 = 284;
const MARK: u16 = 0x4B50;
/// Slots that a lookup looks at together, and how far they are apart: 5 cache lines, 2 standard
/// deviations to either side.
const PROBES: usize = 6;
const PROBE_STEP: usize = 8;

/// The bytes of a page.
pub(crate) type PageBytes = [u8; PAGE_LEN];

/// Why bytes are not a page of this table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PageError {
    /// Not a whole number of pages, or more than an arena chunk holds.
    #[error("{found} bytes are not a chunk of index pages")]
    Length {
        /// Bytes there are.
        found: usize,
    },
    /// The mark or a reserved field is wrong.
    #[error("no index page")]
    NotAPage,
    /// More slots than fit.
    #[error("index page claims {found} slots")]
    Count {
        /// Slots it claims.
        found: u16,
    },
    /// A slot is below its predecessor or the boundary, or one prefix has too many.
    #[error("slot {slot} of an index page is out of order")]
    Order {
        /// Which slot.
        slot: usize,
    },
    /// A slot of a kind that does not exist.
    #[error("slot {slot} of an index page is of no known kind")]
    Kind {
        /// Which slot.
        slot: usize,
    },
    /// Two pages claim the same prefixes, or nobody claims the first.
    #[error("index pages overlap or lack the first at prefix {boundary:010x}")]
    Boundary {
        /// The boundary of the page that does not fit.
        boundary: u64,
    },
    /// A crowded key is listed twice.
    #[error("crowded keys are not in order")]
    Crowded,
}

fn word<const N: usize>(bytes: &PageBytes, at: usize) -> [u8; N] {
    *bytes[at..].first_chunk().expect("a field lies within the page")
}

/// Reads a page.
#[derive(Clone, Copy)]
pub(crate) struct Page<'a>(pub(crate) &'a PageBytes);

impl<'a> Page<'a> {
    /// Number of slots.
    pub(crate) fn count(self) -> usize {
        usize::from(u16::from_le_bytes(word(self.0, 6)))
    }

    /// The prefix from which on it holds slots.
    pub(crate) fn boundary(self) -> Prefix {
        Prefix(u64::from_le_bytes(word(self.0, 8)))
    }

    /// The prefix of a slot.
    pub(crate) fn prefix(self, index: usize) -> Prefix {
        Prefix(u64::from_be_bytes(word(self.0, PAGE_HEADER_LEN + index * SLOT_LEN)) >> 24)
    }

    /// The rest of a slot.
    pub(crate) fn word(self, index: usize) -> u64 {
        u64::from_le_bytes(word(self.0, PAGE_HEADER_LEN + index * SLOT_LEN + 5))
    }

    /// A slot, decoded.
    pub(crate) fn slot(self, index: usize) -> Slot {
        Slot::from_word(self.word(index)).expect("pages in the table hold known kinds")
    }

    /// The bytes of all slots.
    pub(crate) fn slots(self) -> &'a [u8] {
        &self.0[PAGE_HEADER_LEN..PAGE_HEADER_LEN + self.count() * SLOT_LEN]
    }

    /// The index of the first slot whose prefix is at least `prefix`, on a page for the prefixes of
    /// `range`, in which `prefix` is.
    ///
    /// Keys are hashes, so the place is guessed from the prefix as if the page were as full as most
    /// are, which errs by a dozen slots. Slots around the guess are looked at all at once: their
    /// cache misses, and the header's, overlap, and that is most of a lookup's time. Where they do
    /// not enclose the prefix, steps that double lead to it. O(log n) for any keys.
    pub(crate) fn lower_bound(self, prefix: Prefix, range: &Range<Prefix>) -> usize {
        let (ahead, width) = (prefix.0 - range.start.0, (range.end.0 - range.start.0).max(1));
        // 40 bits times 9 bits: no overflow.
        let guess = (ahead * SLOTS_TYPICAL / width) as usize;
        let from = guess.saturating_sub(PROBES * PROBE_STEP / 2);
        let from = from.min(PAGE_SLOTS_MAX - PROBES * PROBE_STEP);
        // Behind the last slot this reads bytes that mean nothing; they do not count.
        let probe = |probe: usize| self.prefix(from + probe * PROBE_STEP);
        let below: usize = (0..PROBES).map(|at| usize::from(probe(at) < prefix)).sum();
        let count = self.count();
        if from + PROBES * PROBE_STEP <= count && below > 0 && below < PROBES {
            let low = from + (below - 1) * PROBE_STEP + 1;
            let rest = low..low + PROBE_STEP - 1;
            return low + rest.map(|at| usize::from(self.prefix(at) < prefix)).sum::<usize>();
        }
        self.lower_bound_from(guess.min(PAGE_SLOTS_MAX - 1), prefix)
    }

    /// The same, from a guess that may be far off.
    fn lower_bound_from(self, guess: usize, prefix: Prefix) -> usize {
        let is_below = self.prefix(guess) < prefix;
        let count = self.count();
        let (mut low, mut high) = (guess + 1, count);
        let mut step = 4;
        if is_below && guess < count {
            while low + step < count && self.prefix(low + step) < prefix {
                low += step + 1;
                step *= 2;
            }
            high = high.min(low + step);
        } else {
            high = guess.min(count);
            while high > step && self.prefix(high - step) >= prefix {
                high -= step;
                step *= 2;
            }
            low = high.saturating_sub(step);
        }
        while low < high {
            let middle = low.midpoint(high);
            if self.prefix(middle) < prefix {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        low
    }

    /// Where the slots of a prefix stand.
    pub(crate) fn group(self, prefix: Prefix, range: &Range<Prefix>) -> Range<usize> {
        let start = self.lower_bound(prefix, range);
        let mut stop = start;
        while stop < self.count() && self.prefix(stop) == prefix {
            stop += 1;
        }
        start..stop
    }
}

/// Encodes a slot.
pub(crate) fn encode(prefix: Prefix, slot: Slot) -> [u8; SLOT_LEN] {
    let mut bytes = [0; SLOT_LEN];
    bytes[..5].copy_from_slice(&prefix.0.to_be_bytes()[3..]);
    bytes[5..].copy_from_slice(&slot.to_word().to_le_bytes());
    bytes
}

/// Changes a page.
pub(crate) struct PageMut<'a>(pub(crate) &'a mut PageBytes);

impl PageMut<'_> {
    fn view(&self) -> Page<'_> {
        Page(self.0)
    }

    fn set_count(&mut self, count: usize) {
        let count = u16::try_from(count).expect("a page's slots are counted in 9 bits");
        self.0[6..8].copy_from_slice(&count.to_le_bytes());
    }

    /// Makes it a page of these encoded slots.
    ///
    /// # Panics
    /// If they do not fit.
    pub(crate) fn fill(&mut self, boundary: Prefix, slots: &[u8]) {
        self.0[..PAGE_HEADER_LEN].fill(0);
        self.0[4..6].copy_from_slice(&MARK.to_le_bytes());
        self.0[8..16].copy_from_slice(&boundary.0.to_le_bytes());
        self.0[PAGE_HEADER_LEN..][..slots.len()].copy_from_slice(slots);
        self.set_count(slots.len() / SLOT_LEN);
    }

    /// Puts a slot before the one at `index`; the page must have room.
    pub(crate) fn insert(&mut self, index: usize, prefix: Prefix, slot: Slot) {
        let count = self.view().count();
        assert!(count < PAGE_SLOTS_MAX && index <= count, "no slot {index} of {count}");
        let at = PAGE_HEADER_LEN + index * SLOT_LEN;
        self.0.copy_within(at..PAGE_HEADER_LEN + count * SLOT_LEN, at + SLOT_LEN);
        self.0[at..at + SLOT_LEN].copy_from_slice(&encode(prefix, slot));
        self.set_count(count + 1);
    }

    /// Changes the slot at `index`, not its prefix.
    pub(crate) fn set(&mut self, index: usize, slot: Slot) {
        let at = PAGE_HEADER_LEN + index * SLOT_LEN + 5;
        self.0[at..at + 8].copy_from_slice(&slot.to_word().to_le_bytes());
    }

    /// Drops the slot at `index`.
    pub(crate) fn remove(&mut self, index: usize) {
        let count = self.view().count();
        let at = PAGE_HEADER_LEN + index * SLOT_LEN;
        self.0.copy_within(at + SLOT_LEN..PAGE_HEADER_LEN + count * SLOT_LEN, at);
        self.set_count(count - 1);
    }

    /// Drops the slots for which `dropped` answers so.
    pub(crate) fn retain(&mut self, mut dropped: impl FnMut(usize) -> bool) {
        let count = self.view().count();
        let mut kept = 0;
        for index in 0..count {
            if !dropped(index) {
                let from = PAGE_HEADER_LEN + index * SLOT_LEN;
                self.0.copy_within(from..from + SLOT_LEN, PAGE_HEADER_LEN + kept * SLOT_LEN);
                kept += 1;
            }
        }
        self.set_count(kept);
    }
}

/// What [`check`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Checked {
    /// A page that is not in use.
    Unused,
    /// A sound page.
    Sound {
        /// From which prefix on it holds slots.
        boundary: Prefix,
        /// The last slot's prefix, or the boundary.
        last: Prefix,
        /// Its slots.
        slots: u64,
        /// Of these, the ones that count as live keys.
        live: u64,
    },
}

/// Verifies bytes from disk, so that everything above holds for them.
///
/// # Errors
/// [`PageError`].
pub(crate) fn check(bytes: &PageBytes) -> Result<Checked, PageError> {
    let head = &bytes[..PAGE_HEADER_LEN];
    if head.iter().all(|byte| *byte == 0) {
        return Ok(Checked::Unused);
    }
    let page = Page(bytes);
    let mark = u16::from_le_bytes(word(bytes, 4));
    let reserved = head[..4].iter().chain(&head[16..]);
    if mark != MARK || reserved.into_iter().any(|byte| *byte != 0) {
        return Err(PageError::NotAPage);
    }
    if page.count() > PAGE_SLOTS_MAX {
        return Err(PageError::Count { found: u16::from_le_bytes(word(bytes, 6)) });
    }
    let boundary = page.boundary();
    if boundary > Prefix::MAX {
        return Err(PageError::Boundary { boundary: boundary.0 });
    }
    let (mut last, mut run, mut live) = (boundary, 0, 0);
    for slot in 0..page.count() {
        let (prefix, word) = (page.prefix(slot), page.word(slot));
        run = if prefix == last { run + 1 } else { 1 };
        if prefix < last || run > GROUP_SLOTS_MAX {
            return Err(PageError::Order { slot });
        }
        if !Slot::is_word(word) {
            return Err(PageError::Kind { slot });
        }
        last = prefix;
        live += u64::from(Slot::is_live_word(word));
    }
    Ok(Checked::Sound { boundary, last, slots: page.count() as u64, live })
}
