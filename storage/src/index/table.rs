//! The compact index: sorted pages of 13-byte slots behind a directory of boundaries.
//!
//! ```text
//!   directory   0.. | 3a1f.. | 7c02.. | ...          boundary -> page, in prefix order
//!                |       |        |
//!   pages      [slots] [slots] [slots]               in arena chunks of 1 MiB
//!   crowded    full key -> slot                      where a prefix has 8 slots in pages already
//! ```
//!
//! Invariants:
//! * pages are sorted by prefix, equal prefixes newest first, and never divided between pages;
//! * at most [`GROUP_SLOTS_MAX`] slots of a prefix are in pages;
//! * a crowded slot of a key is newer than every page slot of it.
//!
//! What it leaves to others: whether slots of one prefix are of one key, and which are shadowed.

use wal::record::Key;

use super::arena::{Arena, PageId};
use super::crowded::Crowded;
use super::directory::{Directory, Position};
use super::page::{GROUP_SLOTS_MAX, PAGE_SLOTS_MAX, Page, PageMut};
use super::slot::{Place, Prefix, Slot};

/// Counts the cuts of an index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct CutId(pub(crate) u64);

/// The index of one shard.
#[derive(Debug)]
pub(crate) struct Index {
    pub(super) arena: Arena,
    pub(super) directory: Directory,
    pub(super) crowded: Crowded,
    /// Slots, crowded ones included.
    pub(super) slots: u64,
    /// Of these, the ones that count as live keys.
    pub(super) live: u64,
    /// Slots on their way from pages to pages.
    pub(super) scratch: Vec<u8>,
    pub(super) cuts: u64,
}

/// Where a slot was found.
enum Found {
    Crowded(Slot),
    Page { page: PageId, at: Position, index: usize, slot: Slot },
}

/// The slots of a key's prefix, and where they stand: see [`Index::standing`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Standing {
    /// Slots that may belong to the key, the newest first.
    pub(crate) candidates: Candidates,
    page: PageId,
    /// Of the first one of the page; where it would be, if there is none.
    index: usize,
    prefix: Prefix,
    has_room: bool,
}

impl Standing {
    /// Whether the prefix has no slot, and the page has room for one.
    pub(crate) fn is_vacant(&self) -> bool {
        self.candidates.len() == 0 && self.has_room
    }

    /// The slot of the prefix, if it has but one, in a page.
    pub(crate) fn only(&self) -> Option<Slot> {
        let only = self.candidates.len() == 1 && !self.candidates.first_is_exact();
        if only { { self.candidates }.next() } else { None }
    }
}

impl Default for Index {
    fn default() -> Self {
        Self::new()
    }
}

impl Index {
    /// An index of nothing.
    pub(crate) fn new() -> Self {
        let mut arena = Arena::default();
        let page = arena.allocate();
        PageMut(arena.page_mut(page)).fill(Prefix(0), &[]);
        Self {
            directory: Directory::new(page),
            arena,
            crowded: Crowded::default(),
            slots: 0,
            live: 0,
            scratch: Vec::new(),
            cuts: 0,
        }
    }

    /// Slots, shadowed ones and tombstones included.
    pub(crate) fn len(&self) -> u64 {
        self.slots
    }

    /// Slots that are neither shadowed nor tombstones.
    #[cfg(test)]
    pub(crate) fn live_len(&self) -> u64 {
        self.live
    }

    /// Slots kept by their full key.
    pub(crate) fn crowded_len(&self) -> u64 {
        self.crowded.len() as u64
    }

    /// Pages in use.
    pub(crate) fn pages(&self) -> u64 {
        self.arena.pages()
    }

    /// Bytes of memory.
    pub(crate) fn bytes(&self) -> u64 {
        self.arena.bytes()
            + self.directory.bytes()
            + self.crowded.bytes()
            + self.scratch.capacity() as u64
    }

    /// Slots that may belong to `key`, the newest first; at most 9.
    pub(crate) fn candidates(&self, key: &Key) -> Candidates {
        self.standing(key).candidates
    }

    /// The same, and where they are. That is good until the index changes.
    pub(crate) fn standing(&self, key: &Key) -> Standing {
        let mut candidates = Candidates::default();
        let prefix = Prefix::of(key);
        if let Some(slot) = self.crowded.get(key) {
            candidates.crowded = true;
            candidates.push(slot.to_word());
        }
        let at = self.directory.find(prefix);
        let id = self.directory.page(at);
        let page = Page(self.arena.page(id));
        let group = page.group(prefix, &self.directory.range(at));
        let index = group.start;
        group.for_each(|index| candidates.push(page.word(index)));
        let has_room = page.count() < PAGE_SLOTS_MAX;
        Standing { candidates, page: id, index, prefix, has_room }
    }

    /// Puts a slot where there is none of its prefix.
    ///
    /// # Panics
    /// If the place is not [`Standing::is_vacant`].
    pub(crate) fn fill(&mut self, standing: &Standing, slot: Slot) {
        assert!(standing.is_vacant(), "a prefix without slots");
        let Standing { page, index, prefix, .. } = *standing;
        PageMut(self.arena.page_mut(page)).insert(index, prefix, slot);
        self.count_in(&slot);
    }

    /// Puts a slot in the place of [`Standing::only`].
    ///
    /// # Panics
    /// If there is none.
    pub(crate) fn replace_only(&mut self, standing: &Standing, slot: Slot) {
        let old = standing.only().expect("a prefix with one slot");
        PageMut(self.arena.page_mut(standing.page)).set(standing.index, slot);
        self.count_out(&old);
        self.count_in(&slot);
    }

    /// Puts a new newest slot before all others of its prefix. Returns the slot it displaced: a
    /// crowded key has but one.
    pub(crate) fn insert(&mut self, key: &Key, slot: Slot) -> Option<Slot> {
        let prefix = Prefix::of(key);
        if self.crowded.get(key).is_none() {
            let mut at = self.directory.find(prefix);
            let group = self.group(at, prefix);
            if group.len() < GROUP_SLOTS_MAX {
                let mut index = group.start;
                if self.page(at).count() == PAGE_SLOTS_MAX {
                    self.make_room(at);
                    at = self.directory.find(prefix);
                    index = self.group(at, prefix).start;
                }
                let id = self.directory.page(at);
                PageMut(self.arena.page_mut(id)).insert(index, prefix, slot);
                self.count_in(&slot);
                return None;
            }
        }
        let old = self.crowded.insert(*key, slot);
        self.count_in(&slot);
        old.iter().for_each(|old| self.count_out(old));
        old
    }

    /// Replaces the slot that stands for `place` under the key's prefix; false if there is none.
    pub(crate) fn replace(&mut self, key: &Key, place: Place, slot: Slot) -> bool {
        let Some(found) = self.find(key, place) else {
            return false;
        };
        let old = match found {
            Found::Crowded(old) => {
                self.crowded.insert(*key, slot);
                old
            }
            Found::Page { page, index, slot: old, .. } => {
                PageMut(self.arena.page_mut(page)).set(index, slot);
                old
            }
        };
        self.count_out(&old);
        self.count_in(&slot);
        true
    }

    /// Takes out the slot that stands for `place` under the key's prefix.
    pub(crate) fn remove(&mut self, key: &Key, place: Place) -> Option<Slot> {
        let old = match self.find(key, place)? {
            Found::Crowded(old) => {
                self.crowded.remove(key);
                old
            }
            Found::Page { page, at, index, slot } => {
                let mut page = PageMut(self.arena.page_mut(page));
                page.remove(index);
                self.merge_drained(at);
                slot
            }
        };
        self.count_out(&old);
        Some(old)
    }

    /// Forgets every slot; the memory is given back by [`Self::release`].
    pub(crate) fn clear(&mut self) {
        self.arena.free_all();
        let page = self.arena.allocate();
        PageMut(self.arena.page_mut(page)).fill(Prefix(0), &[]);
        self.directory = Directory::new(page);
        self.crowded.clear();
        (self.slots, self.live) = (0, 0);
    }

    /// Gives back some memory that nothing uses, in a step of less than a millisecond; false if
    /// there is none.
    pub(crate) fn release(&mut self) -> bool {
        const CHUNKS: usize = 1;
        const ENTRIES: usize = 1024;
        self.arena.release(CHUNKS) | self.crowded.release(ENTRIES)
    }

    /// Begins a cut: pages and crowded entries as they are now are handed out by
    /// [`Self::next_cut_page`] and [`Self::next_cut_entry`] whatever happens meanwhile.
    pub(crate) fn begin_cut(&mut self) -> CutId {
        self.arena.begin_cut();
        self.crowded.begin_cut();
        self.cuts += 1;
        CutId(self.cuts)
    }

    /// The next page of the cut, in no order; `None` after the last.
    pub(crate) fn next_cut_page(&mut self) -> Option<&super::page::PageBytes> {
        self.arena.next_cut_page()
    }

    /// The next crowded entry of the cut, in key order; `None` after the last.
    pub(crate) fn next_cut_entry(&mut self) -> Option<(Key, Slot)> {
        self.crowded.next_cut_entry()
    }

    /// Bytes that the cut holds besides the index: copies of pages changed since.
    #[cfg(test)]
    pub(crate) fn cut_bytes(&self) -> u64 {
        self.arena.cut_bytes()
    }

    /// Ends the cut, whether all of it was handed out or not.
    pub(crate) fn end_cut(&mut self) {
        self.arena.end_cut();
        self.crowded.end_cut();
    }

    pub(super) fn page(&self, at: Position) -> Page<'_> {
        Page(self.arena.page(self.directory.page(at)))
    }

    fn group(&self, at: Position, prefix: Prefix) -> std::ops::Range<usize> {
        self.page(at).group(prefix, &self.directory.range(at))
    }

    fn find(&self, key: &Key, place: Place) -> Option<Found> {
        if let Some(slot) = self.crowded.get(key).filter(|slot| slot.place == place) {
            return Some(Found::Crowded(slot));
        }
        let prefix = Prefix::of(key);
        let at = self.directory.find(prefix);
        let page = self.page(at);
        let mut group = page.group(prefix, &self.directory.range(at));
        let index = group.find(|index| page.slot(*index).place == place)?;
        Some(Found::Page { page: self.directory.page(at), at, index, slot: page.slot(index) })
    }

    pub(super) fn count_in(&mut self, slot: &Slot) {
        self.slots += 1;
        self.live += u64::from(slot.is_live());
    }

    pub(super) fn count_out(&mut self, slot: &Slot) {
        self.slots -= 1;
        self.live -= u64::from(slot.is_live());
    }
}

/// Slots that may belong to a key, the newest first.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Candidates {
    words: [u64; GROUP_SLOTS_MAX + 1],
    next: usize,
    len: usize,
    crowded: bool,
}

impl Candidates {
    fn push(&mut self, word: u64) {
        self.words[self.len] = word;
        self.len += 1;
    }

    /// Whether the first one is known to be of the key itself: it is kept by its full key.
    pub(crate) fn first_is_exact(&self) -> bool {
        self.crowded && self.next == 0
    }
}

impl Iterator for Candidates {
    type Item = Slot;

    fn next(&mut self) -> Option<Slot> {
        let word = *self.words[..self.len].get(self.next)?;
        self.next += 1;
        Some(Slot::from_word(word).expect("pages in the table hold known kinds"))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = self.len - self.next;
        (left, Some(left))
    }
}

impl ExactSizeIterator for Candidates {}
