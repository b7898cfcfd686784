//! Spreads slots over neighbouring pages: when one is full, and when a region drains.
//!
//! A full page shares with up to seven neighbours; only if all are nearly full, eight become nine.
//! A page splits 8 -> 9 at a fill of about 0.97 and so the pages of a growing table are between
//! 0.86 and 0.97 full. Where slots are taken out, eight become seven once that leaves them at most
//! [`MERGED_SLOTS`] full, far enough from the next split that steady insertion and removal never
//! go back and forth.

use super::arena::PageId;
use super::directory::Position;
use super::page::{PAGE_SLOTS_MAX, Page, PageMut};
use super::slot::{Prefix, SLOT_LEN};
use super::table::Index;

/// Pages that share.
const WINDOW_PAGES: usize = 8;
/// Neighbours share only if that leaves at most this many slots on each page on average: a page
/// may get up to 7 more, since slots of one prefix stay together, and must then have room.
const SHARED_SLOTS: usize = 302;
/// Pages are merged only if that leaves at most this many slots on each on average.
const MERGED_SLOTS: usize = 263;
/// Merging is tried when a page's count falls to a multiple of this, below [`MERGED_SLOTS`].
const MERGE_STEP: usize = 16;

/// Neighbouring pages in prefix order.
struct Window {
    first: Position,
    pages: usize,
    slots: usize,
}

impl Index {
    /// Makes room on the page at a position, which is full. Positions change.
    pub(super) fn make_room(&mut self, at: Position) {
        let window = self.window(at);
        let shared = window.slots <= SHARED_SLOTS * window.pages;
        let pages = if shared { window.pages } else { window.pages + 1 };
        self.spread(&window, pages);
    }

    /// Joins the page at a position with its neighbours if they hold little. Positions change.
    pub(super) fn merge_drained(&mut self, at: Position) {
        let count = self.page(at).count();
        if count < MERGED_SLOTS && count.is_multiple_of(MERGE_STEP) {
            self.merge(at);
        }
    }

    /// As [`Self::merge_drained`], whatever the page's count.
    pub(super) fn merge(&mut self, at: Position) {
        let window = self.window(at);
        let most = window.slots.div_ceil(MERGED_SLOTS).max(1);
        if most < window.pages {
            self.spread(&window, most);
        }
    }

    /// The neighbours of a page, itself included, that have the most room together.
    fn window(&self, at: Position) -> Window {
        let mut first = at;
        let mut before = 0;
        while before < WINDOW_PAGES - 1
            && let Some(previous) = self.directory.previous(first)
        {
            first = previous;
            before += 1;
        }
        let positions = std::iter::successors(Some(first), |at| self.directory.next(*at));
        let mut counts = [0; 2 * WINDOW_PAGES - 1];
        let mut starts = [first; 2 * WINDOW_PAGES - 1];
        let mut known = 0;
        for position in positions.take(before + WINDOW_PAGES) {
            starts[known] = position;
            counts[known] = self.page(position).count();
            known += 1;
        }
        let pages = known.min(WINDOW_PAGES);
        let windows = counts[..known].windows(pages).map(|counts| counts.iter().sum::<usize>());
        let (start, slots) = windows
            .enumerate()
            .min_by_key(|(_, slots)| *slots)
            .expect("there is a window of all the pages there are");
        Window { first: starts[start], pages, slots }
    }

    /// Spreads the slots of a window evenly over `pages` pages.
    fn spread(&mut self, window: &Window, pages: usize) {
        let mut scratch = std::mem::take(&mut self.scratch);
        scratch.clear();
        let mut ids = [PageId(0); WINDOW_PAGES + 1];
        let mut at = window.first;
        for (index, id) in ids[..window.pages].iter_mut().enumerate() {
            *id = self.directory.page(at);
            scratch.extend_from_slice(Page(self.arena.page(*id)).slots());
            if index + 1 < window.pages {
                at = self.directory.next(at).expect("a window's pages are there");
            }
        }
        let cuts = cuts(&scratch, pages);
        let first = self.directory.boundary(window.first);
        let boundary = |page: usize| match page {
            0 => first,
            _ => prefix_of(&scratch[cuts[page] * SLOT_LEN..]),
        };
        for _ in pages..window.pages {
            let previous = self.directory.previous(at).expect("one page at least stays");
            self.arena.free(self.directory.page(at));
            self.directory.remove(at);
            at = previous;
        }
        if pages > window.pages {
            ids[window.pages] = self.arena.allocate();
            self.directory.insert_after(at, boundary(window.pages), ids[window.pages]);
        }
        for page in 0..pages {
            let slots = &scratch[cuts[page] * SLOT_LEN..cuts[page + 1] * SLOT_LEN];
            PageMut(self.arena.page_mut(ids[page])).fill(boundary(page), slots);
        }
        let mut at = self.directory.find(first);
        for page in 1..pages.min(window.pages) {
            at = self.directory.next(at).expect("the page is in the directory");
            self.directory.set_boundary(at, boundary(page));
        }
        self.scratch = scratch;
    }
}

/// Where each of `pages` pages begins among the slots, and the last one ends: evenly, but never
/// between slots of one prefix.
fn cuts(slots: &[u8], pages: usize) -> [usize; WINDOW_PAGES + 2] {
    let count = slots.len() / SLOT_LEN;
    let mut cuts = [count; WINDOW_PAGES + 2];
    let prefix = |index: usize| prefix_of(&slots[index * SLOT_LEN..]);
    for (page, cut) in cuts[..pages].iter_mut().enumerate() {
        *cut = count * page / pages;
        while *cut > 0 && prefix(*cut) == prefix(*cut - 1) {
            *cut -= 1;
        }
    }
    debug_assert!(cuts[..=pages].windows(2).all(|cut| cut[1] - cut[0] < PAGE_SLOTS_MAX));
    cuts
}

fn prefix_of(slot: &[u8]) -> Prefix {
    let bytes: [u8; 8] = *slot.first_chunk().expect("a slot is 13 bytes long");
    Prefix(u64::from_be_bytes(bytes) >> 24)
}
