//! Where each key's newest record stands, in key order (a simple model of the compact index).

use std::collections::BTreeMap;

use wal::record::Key;

mod slot;

pub(crate) use slot::{ExpiryHint, Place, Prefix, SegmentNumber, SizeClass, Slot, SlotKind};

const GROUP_SLOTS_MAX: usize = 8;

/// What becomes of a visited slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Keep {
    Keep,
    Drop,
}

/// The index of one shard.
#[derive(Debug, Default)]
pub(crate) struct Index {
    pages: BTreeMap<Prefix, Vec<Slot>>,
    crowded: BTreeMap<Key, Slot>,
}

impl Index {
    pub(crate) fn candidates(&self, key: &Key) -> Candidates {
        let mut found = Candidates::default();
        if let Some(slot) = self.crowded.get(key) {
            found.push(*slot);
            found.crowded = true;
        }
        let group = self.pages.get(&Prefix::of(key)).map_or(&[][..], |group| group);
        group.iter().for_each(|slot| found.push(*slot));
        found
    }

    pub(crate) fn insert(&mut self, key: &Key, slot: Slot) -> Option<Slot> {
        if !self.crowded.contains_key(key) {
            let group = self.pages.entry(Prefix::of(key)).or_default();
            if group.len() < GROUP_SLOTS_MAX {
                group.insert(0, slot);
                return None;
            }
        }
        self.crowded.insert(*key, slot)
    }

    pub(crate) fn replace(&mut self, key: &Key, place: Place, slot: Slot) -> bool {
        let exact = self.crowded.get_mut(key).filter(|slot| slot.place == place);
        let group = self.pages.get_mut(&Prefix::of(key));
        let found = exact
            .or_else(|| group.and_then(|group| group.iter_mut().find(|slot| slot.place == place)));
        found.map(|found| *found = slot).is_some()
    }

    pub(crate) fn remove(&mut self, key: &Key, place: Place) -> Option<Slot> {
        if self.crowded.get(key).is_some_and(|slot| slot.place == place) {
            return self.crowded.remove(key);
        }
        let group = self.pages.get_mut(&Prefix::of(key))?;
        let at = group.iter().position(|slot| slot.place == place)?;
        let slot = group.remove(at);
        if group.is_empty() {
            self.pages.remove(&Prefix::of(key));
        }
        Some(slot)
    }

    pub(crate) fn walk(&self, from: Prefix) -> impl Iterator<Item = (Prefix, Slot)> {
        let mut slots: Vec<(Prefix, Slot)> = Vec::new();
        let crowded = self.crowded.range(from.first_key()..);
        slots.extend(crowded.map(|(key, slot)| (Prefix::of(key), *slot)));
        for (prefix, group) in self.pages.range(from..) {
            slots.extend(group.iter().map(|slot| (*prefix, *slot)));
        }
        slots.sort_by_key(|(prefix, _)| *prefix);
        slots.into_iter()
    }

    pub(crate) fn sweep(
        &mut self,
        cursor: Prefix,
        slots: usize,
        visit: &mut dyn FnMut(Prefix, &mut Slot) -> Keep,
    ) -> Option<Prefix> {
        let mut seen = 0;
        let prefixes: Vec<Prefix> = self.pages.range(cursor..).map(|(prefix, _)| *prefix).collect();
        for prefix in prefixes {
            if seen >= slots {
                return Some(prefix);
            }
            let group = self.pages.get_mut(&prefix)?;
            seen += group.len();
            group.retain_mut(|slot| visit(prefix, slot) == Keep::Keep);
            if group.is_empty() {
                self.pages.remove(&prefix);
            }
        }
        None
    }

    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }

    pub(crate) fn len(&self) -> u64 {
        (self.crowded.len() + self.pages.values().map(Vec::len).sum::<usize>()) as u64
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.len() * 100
    }
}

/// Slots that may belong to a key, the newest first.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Candidates {
    slots: [Option<Slot>; GROUP_SLOTS_MAX + 1],
    next: usize,
    len: usize,
    crowded: bool,
}

impl Candidates {
    fn push(&mut self, slot: Slot) {
        self.slots[self.len] = Some(slot);
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
        let slot = *self.slots[..self.len].get(self.next)?;
        self.next += 1;
        slot
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.len - self.next, Some(self.len - self.next))
    }
}

impl ExactSizeIterator for Candidates {}
