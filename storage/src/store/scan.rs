//! The walk over live keys. The index knows prefixes only, so that each key's name is read, from
//! memory or from the disk.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use bytes::Bytes;
use wal::record::{Key, Location, Namespace, RecordKind};

use super::disk_read::{Head, Target, Waiter};
use super::{Event, ReadId, ScannedKey, Store};
use crate::error::ReadError;
use crate::index::{Prefix, Slot, SlotKind};
use crate::knowledge::{Found, Known};

/// Keys that one scan yields, about.
const SCANNED_COUNT_MAX: usize = 4096;
/// Reads that one scan has under way.
const SCAN_READS_MAX: usize = 32;

/// Whose record a slot stands for, as far as it is known.
#[derive(Clone, Debug)]
enum Item {
    /// Not looked at yet; with its key if the index knows that.
    Slot(Slot, Option<Key>),
    /// A touch: the user key stands in the put.
    Touch(Slot, Key, Found),
    Reading(Box<Self>),
    /// The key is deleted, or expired, or what is newest of it cannot be read.
    Gone(Key),
    Live(ScannedKey),
    /// Superseded, or of another namespace.
    Nobody,
    /// Nobody can tell whose it is: it may supersede any slot of its prefix behind it.
    Unreadable,
}

#[derive(Debug)]
struct Scan {
    from: Key,
    now_ms: u64,
    /// Slots in the order of prefixes, newest first within one.
    items: Vec<(Prefix, Item)>,
    /// The first item not asked for.
    next: usize,
    reading: usize,
    stage: Stage,
    go_on: Option<Key>,
}

/// What a scan is reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Whose records the slots stand for.
    Heads,
    /// The user keys of touched values: of their keys' newest touches only, since the value of an
    /// older one may be gone.
    Bases,
}

/// Scans under way.
#[derive(Debug, Default)]
pub(super) struct Scans(BTreeMap<ReadId, Scan>);

impl Scans {
    pub(super) fn oldest(&self) -> Option<ReadId> {
        self.0.first_key_value().map(|(id, _)| *id)
    }
}

impl Store {
    /// Walks the live keys from `from` on, in key order: about `count` of them, never ending within
    /// a 40-bit prefix. [`Event::Scanned`] tells, maybe at once.
    pub fn scan(&mut self, from: Key, count: usize) -> ReadId {
        let id = self.jobs.take_id();
        let count = count.clamp(1, SCANNED_COUNT_MAX);
        let mut items: Vec<(Prefix, Item)> = Vec::new();
        let mut go_on = None;
        let mut walk = self.catalog.index.walk(Prefix::of(&from));
        while let Some((prefix, key, slot)) = walk.next_with_key() {
            let begins = items.last().is_none_or(|(last, _)| *last != prefix);
            if begins && items.len() >= count {
                go_on = Some(prefix.first_key());
                break;
            }
            items.push((prefix, Item::Slot(slot, key)));
        }
        let now_ms = self.expiry_clock_ms();
        // What memory knows is looked at now: it may be forgotten or changed later.
        for (_, item) in &mut items {
            if let Item::Slot(slot, key) = item {
                *item = self.recall(slot, *key, now_ms);
            }
        }
        self.scans.0.insert(
            id,
            Scan { from, now_ms, items, next: 0, reading: 0, stage: Stage::Heads, go_on },
        );
        self.step_scan(id);
        id
    }

    fn recall(&self, slot: &Slot, owner: Option<Key>, now_ms: u64) -> Item {
        if slot.foreign {
            return Item::Nobody;
        }
        let spot = self.catalog.segments.spot_of(slot.place);
        let Some(spot) = spot.filter(|_| !slot.damaged) else { return unreadable(owner) };
        if let Some(key) = self.recents.key_at(&spot) {
            let Some(recent) = self.recents.get(key) else { return Item::Nobody };
            let Known::Present(found) = recent.known else { return Item::Gone(*key) };
            if found.place != slot.place {
                return Item::Nobody;
            }
            return match &recent.record {
                _ if found.is_expired(now_ms) => Item::Gone(*key),
                Some(record) => live(*key, &record.user_key, &found),
                None => Item::Touch(*slot, *key, found),
            };
        }
        match self.cache.peek(&spot).filter(|_| slot.kind == SlotKind::Put) {
            Some(record) => {
                let found = super::read::found_in(record, slot.place);
                let gone = found.is_expired(now_ms);
                let key = record.key;
                if gone { Item::Gone(key) } else { live(key, &record.user_key, &found) }
            }
            None => Item::Slot(*slot, owner),
        }
    }

    fn step_scan(&mut self, id: ReadId) {
        loop {
            let Some(scan) = self.scans.0.get_mut(&id) else { return };
            if scan.reading >= SCAN_READS_MAX {
                return;
            }
            let Some((prefix, item)) = scan.items.get_mut(scan.next) else {
                if scan.reading == 0 && scan.stage == Stage::Heads {
                    scan.begin_bases();
                    continue;
                }
                break;
            };
            let (index, key) = (scan.next, prefix.first_key());
            let (slot, base) = match item {
                Item::Slot(slot, _) => (*slot, None),
                Item::Touch(slot, _, found) if scan.stage == Stage::Bases => {
                    (*slot, Some(found.base))
                }
                Item::Touch(..)
                | Item::Reading(_)
                | Item::Gone(_)
                | Item::Live(_)
                | Item::Nobody
                | Item::Unreadable => {
                    scan.next += 1;
                    continue;
                }
            };
            let target = match base {
                Some(location) => Some(Target::Exact { location, whole: false }),
                None => self
                    .catalog
                    .segments
                    .spot_of(slot.place)
                    .map(|spot| Target::candidate(spot, &slot, false)),
            };
            let Some(target) = target else {
                *item = Item::Unreadable;
                continue;
            };
            *item = Item::Reading(Box::new(item.clone()));
            scan.next += 1;
            scan.reading += 1;
            self.read(key, slot.place, target, Waiter::Scan(id, index));
        }
        let done = self.scans.0.get(&id).is_some_and(|scan| scan.reading == 0);
        if done && let Some(scan) = self.scans.0.remove(&id) {
            let (keys, next) = scan.finish();
            self.events.push_back(Event::Scanned { id, keys, next });
        }
    }

    pub(super) fn handle_scan_read(
        &mut self,
        id: ReadId,
        index: usize,
        result: Result<Rc<Head>, ReadError>,
    ) {
        let Some(scan) = self.scans.0.get_mut(&id) else { return };
        scan.reading -= 1;
        let now_ms = scan.now_ms;
        if let Some((_, item)) = scan.items.get_mut(index)
            && let Item::Reading(before) = item
        {
            *item = after_read(before, result, now_ms);
        }
        self.step_scan(id);
    }
}

fn live(key: Key, user_key: &Bytes, found: &Found) -> Item {
    let (version, expiry_ms) = (found.version, found.expiry_ms);
    Item::Live(ScannedKey { key, user_key: user_key.clone(), version, expiry_ms })
}

/// A damaged record cannot tell its name.
fn unreadable(owner: Option<Key>) -> Item {
    owner.map_or(Item::Unreadable, Item::Gone)
}

fn after_read(before: &Item, result: Result<Rc<Head>, ReadError>, now_ms: u64) -> Item {
    let head = match (result, before) {
        (Ok(head), _) => head,
        (Err(_), Item::Slot(_, owner)) => return unreadable(*owner),
        // Its key's older slots are known to be superseded.
        (Err(_), _) => return Item::Nobody,
    };
    if head.namespace != Namespace::PLAIN {
        return Item::Nobody;
    }
    match before {
        Item::Slot(slot, _) => match (slot.kind, head.kind, head.touch) {
            (SlotKind::Tombstone, _, _) => Item::Gone(head.key),
            (SlotKind::Put, RecordKind::Put, _) => {
                let found = head.found(slot.place);
                let gone = found.is_expired(now_ms);
                if gone { Item::Gone(head.key) } else { live(head.key, &head.user_key, &found) }
            }
            (SlotKind::Touch, RecordKind::Touch, Some(body)) => {
                let found = head.touched(slot.place, &body);
                let gone = found.is_expired(now_ms);
                if gone { Item::Gone(head.key) } else { Item::Touch(*slot, head.key, found) }
            }
            _ => Item::Gone(head.key),
        },
        Item::Touch(_, key, found) if is_base(&head, key, &found.base) => {
            live(*key, &head.user_key, found)
        }
        _ => Item::Nobody,
    }
}

fn is_base(head: &Head, key: &Key, base: &Location) -> bool {
    head.key == *key && head.location == *base
}

impl Scan {
    /// Goes on with user keys when it is known whose every slot is.
    fn begin_bases(&mut self) {
        self.hide_behind_unreadable();
        let mut seen = BTreeSet::new();
        for (_, item) in &mut self.items {
            let newest = match item {
                Item::Gone(key) | Item::Live(ScannedKey { key, .. }) | Item::Touch(_, key, _) => {
                    seen.insert(*key)
                }
                _ => true,
            };
            if !newest {
                *item = Item::Nobody;
            }
        }
        (self.stage, self.next) = (Stage::Bases, 0);
    }

    /// Leaves out what may be superseded by a record that cannot be read. A crowded slot stands
    /// for its own key alone, and is before all others of its prefix.
    fn hide_behind_unreadable(&mut self) {
        let mut blind = None;
        for (prefix, item) in &mut self.items {
            match item {
                Item::Unreadable => blind = Some(*prefix),
                Item::Live(ScannedKey { key, .. }) | Item::Touch(_, key, _)
                    if blind == Some(*prefix) =>
                {
                    *item = Item::Gone(*key);
                }
                _ => {}
            }
        }
    }

    fn finish(self) -> (Vec<ScannedKey>, Option<Key>) {
        let mut found = Vec::new();
        // Newest first within a prefix: the first of a key is what holds.
        let mut seen = BTreeSet::new();
        for (_, item) in self.items {
            match item {
                Item::Gone(key) => drop(seen.insert(key)),
                Item::Live(key) if seen.insert(key.key) => found.push(key),
                _ => {}
            }
        }
        found.retain(|key| key.key >= self.from);
        found.sort_by_key(|key| key.key);
        (found, self.go_on)
    }
}
