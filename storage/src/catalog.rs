//! Index, segments and near expiries, changed together, so that the counts stay true. Recovery and
//! the live store insert through here alike.
//!
//! Slots of one 40-bit prefix stand newest first. What is to be done to them depends on whether
//! each is of the key at hand, which the caller tells as far as it knows ([`Kin`]):
//! * same: the slot is superseded and goes;
//! * other: nothing happens to it;
//! * older: nothing happens to it, but it must not come to light;
//! * unknown: it stays behind the new slot and is *shadowed*: it counts as dead until someone reads
//!   it.
//!
//! A touched value keeps its own slot behind the touch's, not shadowed: it is the live one, and its
//! expiry hint follows the touch.

use std::collections::{BTreeMap, BTreeSet};

use wal::record::Key;

use crate::index::{
    Candidates, Cursor, ExpiryHint, Index, Keep, Place, SegmentNumber, Slot, SlotKind, Standing,
};
use crate::segments::Segments;

/// Expiries that are known to the millisecond, at most.
const NEAR_COUNT_MAX: usize = 1 << 16;
/// Only expiries less than this ahead are among them, in ms.
const NEAR_MS_MAX: u64 = 120_000;
/// Bytes a tombstone record takes.
pub(crate) const TOMBSTONE_LEN: u64 = wal::record::RECORD_LEN_MIN as u64;

/// Whether a slot is of the key at hand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kin {
    Same,
    Other,
    /// If it is the key's, it was superseded before: it is shadowed already, or another key's.
    Older,
    Unknown,
}

/// The index and what hangs on it.
#[derive(Debug, Default)]
pub(crate) struct Catalog {
    pub(crate) index: Index,
    pub(crate) segments: Segments,
    near: BTreeSet<(u64, Key, Place)>,
    /// Values of touched keys that are crowded: the index has but one slot for such a key, and that
    /// is the touch's.
    bases: BTreeMap<Key, Slot>,
    keys: u64,
    expiring: u64,
    /// What has expired stays so long.
    pub(crate) expired_stay_ms: u64,
}

impl Catalog {
    /// Live keys; off by those whose prefixes coincide.
    pub(crate) fn keys(&self) -> u64 {
        self.keys
    }

    /// Of these, keys with an expiry.
    pub(crate) fn expiring(&self) -> u64 {
        self.expiring
    }

    /// Whether some expiries are known by their hint alone.
    pub(crate) fn wants_sweep(&self) -> bool {
        self.expiring > self.near.len() as u64
    }

    /// Values of touched keys that are crowded.
    pub(crate) fn bases(&self) -> &BTreeMap<Key, Slot> {
        &self.bases
    }

    /// Takes over the index of a checkpoint. Slots of segments that are gone are dropped: what was
    /// live in them is in the log since, or it was not live any more. That a record could not be
    /// read when the checkpoint was made is forgotten: it may have been the disk's bad moment, and
    /// if it was not, the next read finds the same.
    pub(crate) fn adopt(&mut self, index: Index, bases: Vec<(Key, Slot)>) {
        self.index = index;
        let (segments, mut keys, mut expiring) = (&mut self.segments, 0, 0);
        self.index.sweep(Cursor::default(), usize::MAX, &mut |_, slot| {
            if segments.get(slot.place.segment).is_none() {
                return Keep::Drop;
            }
            slot.damaged = false;
            segments.count_in(slot);
            keys += u64::from(is_key(slot));
            expiring += u64::from(is_expiring(slot));
            Keep::Stay
        });
        (self.keys, self.expiring) = (keys, expiring);
        for (key, base) in bases {
            let slot = Slot { damaged: false, ..base };
            let candidates = self.index.candidates(&key);
            let touched = candidates.first_is_exact() && { candidates }
                .next()
                .is_some_and(|slot| slot.kind == SlotKind::Touch);
            if touched && self.segments.get(slot.place.segment).is_some() {
                self.count_in(&slot);
                self.bases.insert(key, slot);
            }
        }
    }

    pub(crate) fn candidates(&self, key: &Key) -> Candidates {
        self.index.candidates(key)
    }

    /// Puts the newest slot of a key.
    pub(crate) fn put(&mut self, key: &Key, slot: Slot, kin: &mut dyn FnMut(&Slot) -> Kin) {
        let before = self.index.candidates(key);
        if before.len() == 1 && !before.first_is_exact() {
            let old = { before }.next().expect("there is one");
            if relation(&old, &slot, kin) == Kin::Same {
                self.index.replace(key, old.place, slot);
                self.recount(before, key);
                return;
            }
        }
        self.shade(key, before, slot.foreign, kin);
        self.index.insert(key, slot);
        self.recount(before, key);
        self.tidy(key);
    }

    /// The slots of a key's prefix, and where they stand; good until a slot changes.
    pub(crate) fn standing(&self, key: &Key) -> Standing {
        self.index.standing(key)
    }

    /// Puts the newest slot of a key in the place of the one that stood for it, if that is the only
    /// one of its prefix: the most frequent case of an overwrite. Returns whether it was so.
    pub(crate) fn put_over(
        &mut self,
        key: &Key,
        standing: &Standing,
        old: Place,
        slot: Slot,
    ) -> bool {
        let is_it = |only: &Slot| {
            only.place == old && only.kind == SlotKind::Put && only.foreign == slot.foreign
        };
        let Some(old) = standing.only().filter(is_it) else { return false };
        self.index.replace_only(standing, slot);
        self.count_out(&old);
        self.count_in(&slot);
        self.forget_base(key, &Candidates::default());
        true
    }

    /// Puts the first slot of a prefix: the most frequent case.
    pub(crate) fn put_first(&mut self, standing: &Standing, slot: Slot) {
        self.index.fill(standing, slot);
        self.count_in(&slot);
    }

    /// Takes a key's slots out; `tombstone` stands for them while slots that may be of the key
    /// remain.
    pub(crate) fn erase(&mut self, key: &Key, tombstone: Slot, kin: &mut dyn FnMut(&Slot) -> Kin) {
        let before = self.index.candidates(key);
        let doubtful = self.shade(key, before, tombstone.foreign, kin);
        if doubtful {
            self.index.insert(key, tombstone);
        }
        self.recount(before, key);
        self.tidy(key);
    }

    /// Puts a touch before the slot of its value, which stays, or is there again if it had expired.
    pub(crate) fn touch(
        &mut self,
        key: &Key,
        slot: Slot,
        base: Option<Slot>,
        kin: &mut dyn FnMut(&Slot) -> Kin,
    ) {
        let before = self.index.candidates(key);
        let is_base = |old: &Slot| base.is_some_and(|base| base.place == old.place);
        let mut but_base = |old: &Slot| if is_base(old) { Kin::Other } else { kin(old) };
        self.shade(key, before, slot.foreign, &mut but_base);
        let crowded = self.bases.remove(key);
        crowded.iter().for_each(|old| self.count_out(old));
        if let Some(base) = base
            && !self.index.replace(key, base.place, base)
        {
            self.index.insert(key, base);
        }
        if let Some(displaced) = self.index.insert(key, slot).filter(is_base) {
            self.count_in(&displaced);
            self.bases.insert(*key, displaced);
        }
        self.recount(before, key);
        self.tidy(key);
    }

    /// Removes what is of the key, shadows what may be. Returns whether something may be.
    fn shade(
        &mut self,
        key: &Key,
        before: Candidates,
        foreign: bool,
        kin: &mut dyn FnMut(&Slot) -> Kin,
    ) -> bool {
        let mut doubtful = false;
        let exact = before.first_is_exact();
        for (position, old) in before.enumerate() {
            let relation = match () {
                () if exact && position == 0 => Kin::Same,
                () if old.foreign != foreign => Kin::Other,
                () => kin(&old),
            };
            match relation {
                Kin::Same => drop(self.index.remove(key, old.place)),
                Kin::Other => {}
                Kin::Older => doubtful = true,
                Kin::Unknown => {
                    doubtful = true;
                    if !old.shadowed && old.kind != SlotKind::Tombstone {
                        let shadowed = Slot { shadowed: true, ..old };
                        self.index.replace(key, old.place, shadowed);
                    }
                }
            }
        }
        doubtful
    }

    /// Changes the slot that stands for a place; false if there is none.
    pub(crate) fn replace(&mut self, key: &Key, place: Place, slot: Slot) -> bool {
        let before = self.index.candidates(key);
        let replaced = self.index.replace(key, place, slot);
        self.recount(before, key);
        replaced
    }

    /// Takes a slot out that is known to be superseded or void.
    pub(crate) fn discard(&mut self, key: &Key, place: Place) {
        let before = self.index.candidates(key);
        self.index.remove(key, place);
        self.recount(before, key);
        self.tidy(key);
    }

    /// Forgets everything but the segments.
    pub(crate) fn clear(&mut self) {
        self.index.clear();
        self.near.clear();
        self.bases.clear();
        (self.keys, self.expiring) = (0, 0);
        for segment in self.segments.iter_mut() {
            (segment.slots, segment.live_bytes, segment.tombstone_bytes) = (0, 0, 0);
        }
    }

    /// Drops tombstones that stand before nothing.
    fn tidy(&mut self, key: &Key) {
        while let Some(last) = self.index.candidates(key).last()
            && last.kind == SlotKind::Tombstone
        {
            let before = self.index.candidates(key);
            self.index.remove(key, last.place);
            self.recount(before, key);
        }
    }

    fn recount(&mut self, before: Candidates, key: &Key) {
        before.for_each(|slot| self.count_out(&slot));
        let after = self.index.candidates(key);
        after.for_each(|slot| self.count_in(&slot));
        self.forget_base(key, &after);
    }

    /// Forgets a crowded key's touched value, unless a touch is still the first of its slots.
    fn forget_base(&mut self, key: &Key, slots: &Candidates) {
        if !self.bases.is_empty() {
            let is_touch = |slot: Slot| slot.kind == SlotKind::Touch;
            let touched = slots.first_is_exact() && { *slots }.next().is_some_and(is_touch);
            let base = if touched { None } else { self.bases.remove(key) };
            base.iter().for_each(|slot| self.count_out(slot));
        }
    }

    fn count_in(&mut self, slot: &Slot) {
        self.segments.count_in(slot);
        self.keys += u64::from(is_key(slot));
        self.expiring += u64::from(is_expiring(slot));
    }

    fn count_out(&mut self, slot: &Slot) {
        self.segments.count_out(slot);
        self.keys -= u64::from(is_key(slot));
        self.expiring -= u64::from(is_expiring(slot));
    }

    /// When a record goes that expires then; 0 = never.
    fn end_ms(&self, expiry_ms: u64) -> u64 {
        if expiry_ms == 0 { 0 } else { expiry_ms.saturating_add(self.expired_stay_ms) }
    }

    /// What a slot tells of its record's expiry.
    pub(crate) fn hint(&self, expiry_ms: u64, now_ms: u64) -> ExpiryHint {
        ExpiryHint::new(self.end_ms(expiry_ms), now_ms)
    }

    /// Notes when a record's key expires, if that is soon.
    pub(crate) fn expect(&mut self, key: &Key, place: Place, expiry_ms: u64, now_ms: u64) {
        let expiry_ms = self.end_ms(expiry_ms);
        let near = expiry_ms != 0 && expiry_ms < now_ms.saturating_add(NEAR_MS_MAX);
        if near && self.near.len() < NEAR_COUNT_MAX {
            self.near.insert((expiry_ms, *key, place));
        }
    }

    /// Forgets it: the record has another expiry now.
    pub(crate) fn expect_no_more(&mut self, key: &Key, place: Place, expiry_ms: u64) {
        let expiry_ms = self.end_ms(expiry_ms);
        self.near.remove(&(expiry_ms, *key, place));
    }

    /// When the next key expires, as far as that is known to the millisecond.
    pub(crate) fn next_expiry_ms(&self) -> Option<u64> {
        self.near.first().map(|(expiry_ms, _, _)| *expiry_ms)
    }

    /// Expires a key whose time is known. False if there is none to expire now.
    pub(crate) fn expire_next(&mut self, now_ms: u64) -> bool {
        if self.next_expiry_ms().is_none_or(|expiry_ms| expiry_ms > now_ms) {
            return false;
        }
        let Some((expiry_ms, key, place)) = self.near.pop_first() else { return false };
        let hint = ExpiryHint::new(expiry_ms, expiry_ms);
        let as_expected = |slot: Slot| slot.place == place && slot.expiry == hint;
        if self.index.candidates(&key).any(as_expected) {
            self.expire(&key, place);
        }
        true
    }

    /// Expires keys by their hints: looks at `slots` slots from `cursor` on; tells where it ended.
    pub(crate) fn sweep(&mut self, cursor: Cursor, slots: usize, now_ms: u64) -> Cursor {
        let mut due = Vec::new();
        let next = self.index.sweep(cursor, slots, &mut |key, slot| {
            let is_due = slot.kind != SlotKind::Tombstone && slot.expiry.is_due(now_ms);
            if is_due {
                due.push((*key, slot.place));
            }
            Keep::Stay
        });
        for (key, place) in due {
            self.expire(&key, place);
        }
        next.unwrap_or_default()
    }

    /// The record at this place has expired: its slot goes, or keeps older ones of its prefix away.
    fn expire(&mut self, key: &Key, place: Place) {
        let mut rest = self.index.candidates(key);
        let Some(slot) = rest.find(|slot| slot.place == place) else { return };
        if slot.kind == SlotKind::Tombstone {
            return;
        }
        self.note_tombstone(place);
        if rest.all(|behind| behind.kind == SlotKind::Tombstone) {
            self.discard(key, place);
        } else {
            let expiry = ExpiryHint::NEVER;
            self.replace(key, place, Slot { kind: SlotKind::Tombstone, expiry, ..slot });
        }
    }

    /// Gives a segment's number up.
    pub(crate) fn remove_segment(&mut self, number: SegmentNumber) {
        self.near.retain(|(_, _, place)| place.segment != number);
        self.segments.remove(number);
    }

    /// Counts the record at this place as one that keeps older ones from coming back.
    pub(crate) fn note_tombstone(&mut self, place: Place) {
        if let Some(segment) = self.segments.get_mut(place.segment) {
            segment.tombstone_bytes += TOMBSTONE_LEN;
        }
    }
}

fn relation(old: &Slot, new: &Slot, kin: &mut dyn FnMut(&Slot) -> Kin) -> Kin {
    if old.foreign == new.foreign { kin(old) } else { Kin::Other }
}

fn is_key(slot: &Slot) -> bool {
    slot.kind == SlotKind::Put && !slot.shadowed
}

fn is_expiring(slot: &Slot) -> bool {
    is_key(slot) && slot.expiry != ExpiryHint::NEVER
}

#[cfg(test)]
mod tests {
    use wal::disk::FileId;
    use wal::group_commit::OpenSegment;

    use super::*;
    use crate::index::SizeClass;
    use crate::segments::{Segment, SegmentState};

    /// A catalog of one segment.
    fn catalog() -> (Catalog, SegmentNumber) {
        let mut catalog = Catalog::default();
        let open = OpenSegment { id: 1, file: FileId(2), len: 1 << 20 };
        let segment = catalog.segments.add(Segment::new(open, SegmentState::Open)).unwrap();
        (catalog, segment)
    }

    fn key(number: u8) -> Key {
        let mut key = Key([7; 20]);
        key.0[19] = number;
        key
    }

    fn slot(segment: SegmentNumber, line: u8) -> Slot {
        Slot {
            place: Place { segment, line: u32::from(line) },
            size_class: SizeClass::of(100),
            kind: SlotKind::Put,
            damaged: false,
            foreign: false,
            shadowed: false,
            expiry: ExpiryHint::new(1_000_000, 0),
        }
    }

    /// The disk's bad moment must not outlive a restart. Found by seed 48 of
    /// `sim store --operations 300`.
    #[test]
    fn checkpoint_does_not_tell_what_could_not_be_read() {
        let (mut catalog, segment) = catalog();
        for line in 1..=20 {
            let slot = Slot { damaged: true, ..slot(segment, line) };
            catalog.put(&key(line), slot, &mut |_| Kin::Other);
        }
        let (touched, base) = (key(30), Slot { damaged: true, ..slot(segment, 30) });
        catalog.put(&touched, base, &mut |_| Kin::Other);
        let touch = Slot { kind: SlotKind::Touch, damaged: true, ..slot(segment, 31) };
        catalog.touch(&touched, touch, Some(base), &mut |_| Kin::Other);
        let (index, bases) = (std::mem::take(&mut catalog.index), catalog.bases.clone());
        assert_eq!(bases.len(), 1, "a crowded key was touched");
        let live_bytes = catalog.segments.get(segment).unwrap().live_bytes;

        let (mut adopting, _) = self::catalog();
        adopting.adopt(index, bases.into_iter().collect());
        let mut slots = adopting.index.walk(crate::index::Prefix::default());
        assert!(slots.all(|(_, slot)| !slot.damaged));
        assert!(adopting.bases.values().all(|slot| !slot.damaged));
        assert_eq!((adopting.keys(), adopting.bases.len()), (21, 1));
        assert_eq!(adopting.segments.get(segment).unwrap().live_bytes, live_bytes);
    }

    #[test]
    fn sweeps_expire_crowded_keys_by_their_hints() {
        let (mut catalog, segment) = catalog();
        for line in 1..=100 {
            catalog.put(&key(line), slot(segment, line), &mut |_| Kin::Other);
        }
        assert_eq!((catalog.keys(), catalog.expiring()), (100, 100));
        catalog.sweep(Cursor::default(), usize::MAX, 900_000);
        assert_eq!(catalog.keys(), 100, "not due yet");
        catalog.sweep(Cursor::default(), usize::MAX, 1_100_000);
        assert_eq!((catalog.keys(), catalog.expiring()), (0, 0));
    }
}
