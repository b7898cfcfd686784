//! Goes over slots in prefix order: to read them ([`Walk`]), or to change and drop them in bounded
//! steps ([`Index::sweep`]).

use std::collections::btree_map;
use std::iter::Peekable;
use std::ops::Bound;

use wal::record::Key;

use super::directory::Position;
use super::page::{PAGE_SLOTS_MAX, PageMut};
use super::slot::{Prefix, Slot};
use super::table::Index;

/// Slots in prefix order.
pub(crate) struct Walk<'a> {
    index: &'a Index,
    page: Option<Position>,
    /// The next slot on the page.
    slot: usize,
    crowded: Peekable<btree_map::Range<'a, Key, Slot>>,
}

impl Walk<'_> {
    /// The next slot, with its key if it is kept by that.
    pub(crate) fn next_with_key(&mut self) -> Option<(Prefix, Option<Key>, Slot)> {
        let paged = loop {
            let Some(at) = self.page else { break None };
            let page = self.index.page(at);
            if self.slot < page.count() {
                break Some((page.prefix(self.slot), page));
            }
            self.page = self.index.directory.next(at);
            self.slot = 0;
        };
        let crowded = self.crowded.peek().map(|(key, _)| Prefix::of(key));
        match (paged, crowded) {
            (Some((prefix, page)), crowded) if crowded.is_none_or(|crowded| prefix < crowded) => {
                self.slot += 1;
                Some((prefix, None, page.slot(self.slot - 1)))
            }
            _ => self.crowded.next().map(|(key, slot)| (Prefix::of(key), Some(*key), *slot)),
        }
    }
}

impl Iterator for Walk<'_> {
    type Item = (Prefix, Slot);

    fn next(&mut self) -> Option<(Prefix, Slot)> {
        self.next_with_key().map(|(prefix, _, slot)| (prefix, slot))
    }
}

/// Whether a slot stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Keep {
    /// It stays, as the visitor left it.
    Stay,
    /// It goes.
    Drop,
}

/// Where a sweep goes on: at a prefix, or among the crowded keys of one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Cursor {
    prefix: Prefix,
    /// The crowded keys of the prefix up to this one have been visited.
    crowded: Option<Key>,
}

impl From<Prefix> for Cursor {
    fn from(prefix: Prefix) -> Self {
        Self { prefix, crowded: None }
    }
}

impl Index {
    /// All slots with a prefix of at least `from`, in prefix order, newest first within a prefix.
    pub(crate) fn walk(&self, from: Prefix) -> Walk<'_> {
        let at = self.directory.find(from);
        let slot = self.page(at).lower_bound(from, &self.directory.range(at));
        let crowded = self.crowded.range(Bound::Included(from.first_key())).peekable();
        Walk { index: self, page: Some(at), slot, crowded }
    }

    /// Visits about `slots` slots from `cursor` on, at least one and at most 8 more; the visitor
    /// may change or drop them. It gets the key of a crowded slot, of others the first key of their
    /// prefix. Returns where to go on, `None` after the last slot.
    ///
    /// Order is that of [`Self::walk`]; slots inserted behind the cursor meanwhile are not visited.
    pub(crate) fn sweep(
        &mut self,
        cursor: impl Into<Cursor>,
        slots: usize,
        visit: &mut dyn FnMut(&Key, &mut Slot) -> Keep,
    ) -> Option<Cursor> {
        let mut cursor = cursor.into();
        let mut visited = 0;
        while visited < slots.max(1) {
            let crowded = self.next_crowded(&cursor);
            let prefix = crowded.map(|(key, _)| Prefix::of(&key));
            if let Some((key, slot)) = crowded
                && prefix == Some(cursor.prefix)
            {
                self.sweep_crowded(key, slot, visit);
                cursor.crowded = Some(key);
                visited += 1;
                continue;
            }
            // No crowded key of this prefix is left: the page's slots before the next one's.
            let budget = slots.max(1) - visited;
            let (count, next) = self.sweep_page(cursor.prefix, prefix, budget, visit);
            visited += count;
            cursor = Cursor::from(next?);
        }
        Some(cursor)
    }

    fn next_crowded(&self, cursor: &Cursor) -> Option<(Key, Slot)> {
        let from = match cursor.crowded {
            Some(key) => Bound::Excluded(key),
            None => Bound::Included(cursor.prefix.first_key()),
        };
        self.crowded.first(from)
    }

    fn sweep_crowded(
        &mut self,
        key: Key,
        old: Slot,
        visit: &mut dyn FnMut(&Key, &mut Slot) -> Keep,
    ) {
        let mut slot = old;
        match visit(&key, &mut slot) {
            Keep::Drop => {
                self.crowded.remove(&key);
                self.count_out(&old);
            }
            Keep::Stay if slot != old => {
                self.crowded.insert(key, slot);
                self.count_out(&old);
                self.count_in(&slot);
            }
            Keep::Stay => {}
        }
    }

    /// Visits slots of the page that holds `from`, whole prefixes, below `stop`, until `budget` is
    /// used up. Returns how many, and the prefix where to go on.
    fn sweep_page(
        &mut self,
        from: Prefix,
        stop: Option<Prefix>,
        budget: usize,
        visit: &mut dyn FnMut(&Key, &mut Slot) -> Keep,
    ) -> (usize, Option<Prefix>) {
        let at = self.directory.find(from);
        let id = self.directory.page(at);
        let (start, count) = {
            let page = self.page(at);
            (page.lower_bound(from, &self.directory.range(at)), page.count())
        };
        let after_page = self.directory.next(at).map(|next| self.directory.boundary(next));
        let mut dropped = [false; PAGE_SLOTS_MAX];
        let (mut index, mut next) = (start, after_page);
        while index < count {
            let (prefix, old) = (self.page(at).prefix(index), self.page(at).slot(index));
            let is_new = index == start || self.page(at).prefix(index - 1) != prefix;
            let is_stopped = stop.is_some_and(|stop| prefix >= stop && prefix != from);
            if is_new && (index - start >= budget || is_stopped) {
                next = Some(prefix);
                break;
            }
            let mut slot = old;
            dropped[index] = visit(&prefix.first_key(), &mut slot) == Keep::Drop;
            if dropped[index] {
                self.count_out(&old);
            } else if slot != old {
                PageMut(self.arena.page_mut(id)).set(index, slot);
                self.count_out(&old);
                self.count_in(&slot);
            }
            index += 1;
        }
        if dropped[start..index].contains(&true) {
            PageMut(self.arena.page_mut(id)).retain(|slot| dropped[slot]);
            self.merge(at);
        }
        // A crowded key whose prefix has no slot on this page comes before what follows.
        let next = match (next, stop) {
            (Some(next), Some(stop)) => Some(next.min(stop)),
            (next, stop) => next.or(stop),
        };
        (index - start, next)
    }
}
