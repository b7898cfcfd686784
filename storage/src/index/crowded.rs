//! Slots of keys whose prefix has no room in the pages, by their full key.
//!
//! Uniform keys never come here. Hostile ones, and a key overwritten again and again while nothing
//! resolves which of its slots are shadowed, cost more memory each but no more time than a map.
//!
//! A cut keeps what was there: the first change of an entry it has not handed out yet remembers
//! what the entry was.

use std::collections::BTreeMap;
use std::ops::Bound;

use wal::record::Key;

use super::slot::Slot;

/// Bytes of an entry in the map, with its share of half-full nodes.
const ENTRY_BYTES: u64 = 60;

#[derive(Debug)]
struct Cut {
    /// Entries up to and including it are handed out.
    passed: Bound<Key>,
    /// What entries not yet handed out were when the cut began.
    before: BTreeMap<Key, Option<Slot>>,
    /// The map as it was when it was cleared during the cut; later changes do not matter.
    base: Option<BTreeMap<Key, Slot>>,
}

/// The crowded keys; at most one slot each, newer than any of the key's in pages.
#[derive(Debug, Default)]
pub(crate) struct Crowded {
    slots: BTreeMap<Key, Slot>,
    cut: Option<Cut>,
    /// Maps that were cleared and wait for being taken apart in small steps.
    discarded: Vec<BTreeMap<Key, Slot>>,
}

impl Crowded {
    pub(crate) fn len(&self) -> usize {
        self.slots.len()
    }

    pub(crate) fn get(&self, key: &Key) -> Option<Slot> {
        if self.slots.is_empty() { None } else { self.slots.get(key).copied() }
    }

    pub(crate) fn insert(&mut self, key: Key, slot: Slot) -> Option<Slot> {
        let old = self.slots.insert(key, slot);
        self.remember(key, old);
        old
    }

    pub(crate) fn remove(&mut self, key: &Key) -> Option<Slot> {
        let old = self.slots.remove(key)?;
        self.remember(*key, Some(old));
        Some(old)
    }

    /// The entries after `from`, in key order.
    pub(crate) fn range(
        &self,
        from: Bound<Key>,
    ) -> std::collections::btree_map::Range<'_, Key, Slot> {
        self.slots.range((from, Bound::Unbounded))
    }

    /// The first entry after `from`.
    pub(crate) fn first(&self, from: Bound<Key>) -> Option<(Key, Slot)> {
        self.range(from).next().map(|(key, slot)| (*key, *slot))
    }

    /// Forgets everything in O(1); memory stays until [`Self::release`].
    pub(crate) fn clear(&mut self) {
        let slots = std::mem::take(&mut self.slots);
        match &mut self.cut {
            Some(cut) if cut.base.is_none() => cut.base = Some(slots),
            _ => self.discarded.push(slots),
        }
    }

    /// Returns the memory of at most `count` entries that [`Self::clear`] forgot; tells whether
    /// there was one.
    pub(crate) fn release(&mut self, count: usize) -> bool {
        let Some(oldest) = self.discarded.last_mut() else {
            return false;
        };
        for _ in 0..count {
            if oldest.pop_first().is_none() {
                self.discarded.pop();
                break;
            }
        }
        true
    }

    fn remember(&mut self, key: Key, old: Option<Slot>) {
        if let Some(cut) = &mut self.cut
            && cut.base.is_none()
            && is_after(&key, &cut.passed)
        {
            cut.before.entry(key).or_insert(old);
        }
    }

    pub(crate) fn begin_cut(&mut self) {
        self.cut = Some(Cut { passed: Bound::Unbounded, before: BTreeMap::new(), base: None });
    }

    /// The next entry as it was when the cut began, in key order.
    pub(crate) fn next_cut_entry(&mut self) -> Option<(Key, Slot)> {
        let cut = self.cut.as_mut()?;
        loop {
            let slots = cut.base.as_ref().unwrap_or(&self.slots);
            let live = slots.range((cut.passed, Bound::Unbounded)).next();
            let before = cut.before.first_key_value();
            let (key, slot) = match (live, before) {
                (None, None) => return None,
                (Some((key, slot)), None) => (*key, Some(*slot)),
                (Some((key, slot)), Some((changed, _))) if key < changed => (*key, Some(*slot)),
                (_, Some((changed, old))) => (*changed, *old),
            };
            cut.before.remove(&key);
            cut.passed = Bound::Excluded(key);
            if let Some(slot) = slot {
                return Some((key, slot));
            }
        }
    }

    pub(crate) fn end_cut(&mut self) {
        self.discarded.extend(self.cut.take().and_then(|cut| cut.base));
    }

    /// Bytes of memory.
    pub(crate) fn bytes(&self) -> u64 {
        let kept = |cut: &Cut| cut.before.len() + cut.base.as_ref().map_or(0, BTreeMap::len);
        let discarded: usize = self.discarded.iter().map(BTreeMap::len).sum();
        let entries = self.slots.len() + self.cut.as_ref().map_or(0, kept) + discarded;
        entries as u64 * ENTRY_BYTES
    }
}

fn is_after(key: &Key, passed: &Bound<Key>) -> bool {
    match passed {
        Bound::Unbounded => true,
        Bound::Included(last) | Bound::Excluded(last) => key > last,
    }
}
