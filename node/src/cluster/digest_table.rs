//! [`DigestTable`]: what digests need of the records of whole ranges, in memory: key, version,
//! expiry. A walk over a range that is here reads nothing from the disk.
//!
//! - A range is here only as a whole: every record of it that the store would tell is known.
//! - Whoever changes a record says so in the same step ([`DigestTable::note`]), and a range that
//!   comes in is told with what has changed since it was read.
//! - What may have changed by itself makes all of it unknown: a failed write, damage. It also
//!   begins anew once in a while, so that damage nobody has noticed is not hidden for long.
//! - No step is long: records of ranges that are unknown stay until their range comes in again.
//! - Above its limit it gives the last keys up; ranges that do not fit do not come in.

use std::collections::BTreeMap;
use std::ops::Bound;

use wal::record::{Key, Version};

/// Bytes of memory that the table may take.
pub const DIGEST_TABLE_BYTES_MAX: usize = 64 << 20;
/// Bytes of one record in it: 44, and what a tree that is two thirds full has beside.
const BYTES_PER_RECORD: usize = 72;
/// Above its limit it gives up one of so many records.
const SHRINK_SHARE: usize = 64;
/// After so long everything is read again.
pub const DIGEST_TABLE_STAY_MS: u64 = 3_600_000;

/// What is known of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Digested {
    /// Its version.
    pub version: Version,
    /// Milliseconds since 1970, 0 for never.
    pub expiry_ms: u64,
}

/// The table.
#[derive(Debug)]
pub struct DigestTable {
    /// Those outside of the ranges mean nothing.
    known: BTreeMap<Key, Digested>,
    /// First keys of ranges that are known, and the keys behind their ends; none is the end of all.
    /// They neither overlap nor touch.
    ranges: BTreeMap<Key, Option<Key>>,
    count_max: usize,
    began_ms: u64,
}

impl Default for DigestTable {
    fn default() -> Self {
        Self::new(DIGEST_TABLE_BYTES_MAX)
    }
}

fn is_before(key: &Key, end: Option<Key>) -> bool {
    end.is_none_or(|end| *key < end)
}

fn later(one: Option<Key>, other: Option<Key>) -> Option<Key> {
    Some(one?.max(other?))
}

impl DigestTable {
    /// An empty one, that may take so many bytes.
    #[must_use]
    pub fn new(bytes_max: usize) -> Self {
        let count_max = bytes_max / BYTES_PER_RECORD;
        Self { known: BTreeMap::new(), ranges: BTreeMap::new(), count_max, began_ms: 0 }
    }

    /// Number of records in it.
    #[must_use]
    pub fn len(&self) -> usize {
        self.known.len()
    }

    /// Whether nothing is in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.known.is_empty()
    }

    /// Trusts nothing of it any more when its time is over.
    pub fn handle_time(&mut self, monotonic_ms: u64) {
        if self.ranges.is_empty() {
            self.began_ms = monotonic_ms;
        } else if monotonic_ms.saturating_sub(self.began_ms) >= DIGEST_TABLE_STAY_MS {
            self.distrust();
        }
    }

    /// Any of it may be wrong.
    pub fn distrust(&mut self) {
        self.ranges.clear();
    }

    /// Empties it: there is no record any more.
    pub fn clear(&mut self) {
        self.known.clear();
        self.ranges.clear();
    }

    /// The end of the known range that a key lies in, if it lies in one: `Some(None)` is the end of
    /// all keys.
    #[must_use]
    pub fn known_from(&self, key: &Key) -> Option<Option<Key>> {
        let (_, end) = self.ranges.range(..=*key).next_back()?;
        is_before(key, *end).then_some(*end)
    }

    /// The records from a key on and before another, in order.
    pub fn records(&self, from: Key, end: Option<Key>) -> impl Iterator<Item = (&Key, &Digested)> {
        let end = end.map_or(Bound::Unbounded, |end| Bound::Excluded(end.max(from)));
        self.known.range((Bound::Included(from), end))
    }

    /// A record has changed, or is there no more.
    pub fn note(&mut self, key: Key, record: Option<Digested>) {
        if self.known_from(&key).is_none() {
            self.known.remove(&key);
            return;
        }
        match record {
            Some(record) => drop(self.known.insert(key, record)),
            None => drop(self.known.remove(&key)),
        }
        if self.known.len() > self.count_max {
            self.shrink();
        }
    }

    /// Takes all records of a range in, if there is room. Those outside of it are passed over.
    pub fn learn(&mut self, from: Key, end: Option<Key>, records: &BTreeMap<Key, Digested>) {
        let is_within = |key: &Key| *key >= from && is_before(key, end);
        let gone = self.records(from, end).filter(|(key, _)| !records.contains_key(*key));
        let gone: Vec<Key> = gone.map(|(key, _)| *key).collect();
        for key in gone {
            self.known.remove(&key);
        }
        let is_new = |key: &&Key| is_within(key) && !self.known.contains_key(*key);
        let added = records.keys().filter(is_new).count();
        if self.known.len() + added > self.count_max || !is_before(&from, end) {
            // A part of the range may be here already: it has lost what was gone, and stays whole.
            return;
        }
        let within = records.iter().filter(|(key, _)| is_within(key));
        self.known.extend(within.map(|(key, record)| (*key, *record)));
        self.cover(from, end);
    }

    fn cover(&mut self, from: Key, end: Option<Key>) {
        let (mut first, mut end) = (from, end);
        if let Some((before, its_end)) = self.ranges.range(..from).next_back()
            && its_end.is_none_or(|its_end| its_end >= from)
        {
            (first, end) = (*before, later(end, *its_end));
        }
        while let Some((next, its_end)) = self.ranges.range(first..).next()
            && end.is_none_or(|end| *next <= end)
        {
            let next = *next;
            end = later(end, *its_end);
            self.ranges.remove(&next);
        }
        self.ranges.insert(first, end);
    }

    /// Gives the last keys up: a small part, so that the step is short.
    fn shrink(&mut self) {
        let Some(cut) = self.known.keys().rev().nth(self.count_max / SHRINK_SHARE).copied() else {
            return self.clear();
        };
        drop(self.known.split_off(&cut));
        drop(self.ranges.split_off(&cut));
        if let Some((_, end)) = self.ranges.range_mut(..cut).next_back()
            && end.is_none_or(|end| end > cut)
        {
            *end = Some(cut);
        }
    }
}

#[cfg(test)]
mod tests {
    use fastrand::Rng;

    use super::*;

    fn key(byte: u8) -> Key {
        let mut key = [0; 20];
        key[0] = byte;
        Key(key)
    }

    fn digested(rng: &mut Rng) -> Digested {
        Digested { version: Version([rng.u8(..); 16]), expiry_ms: rng.u64(..) }
    }

    /// A store of 256 keys beside a table: what the table says it knows is what the store has.
    #[test]
    fn what_is_known_is_what_the_store_has() {
        for seed in 0..100 {
            let mut rng = Rng::with_seed(seed);
            let room = rng.usize(1..200);
            let mut table = DigestTable::new(room * BYTES_PER_RECORD);
            let mut store = BTreeMap::new();
            let mut ranges_known = 0;
            for _ in 0..400 {
                match rng.u8(..8) {
                    0..4 => {
                        let record = rng.bool().then(|| digested(&mut rng));
                        let key = key(rng.u8(..));
                        match record {
                            Some(record) => drop(store.insert(key, record)),
                            None => drop(store.remove(&key)),
                        }
                        table.note(key, record);
                    }
                    4..7 => {
                        let from = rng.u8(..);
                        let end = (from < 240).then(|| key(from + rng.u8(1..16)));
                        table.learn(key(from), end, &store);
                    }
                    _ if rng.u8(..10) == 0 => table.distrust(),
                    _ if rng.u8(..20) == 0 => table.clear(),
                    _ => {}
                }
                assert!(table.len() <= room, "seed {seed}");
                let probe = key(rng.u8(..));
                if let Some(end) = table.known_from(&probe) {
                    ranges_known += 1;
                    let has = store.range(probe..).take_while(|(key, _)| is_before(key, end));
                    assert!(table.records(probe, end).eq(has), "seed {seed}");
                }
            }
            assert!(ranges_known > 0, "seed {seed}");
        }
    }

    #[test]
    fn ranges_that_touch_become_one() {
        let mut table = DigestTable::default();
        let none = BTreeMap::new();
        table.learn(key(10), Some(key(20)), &none);
        table.learn(key(30), None, &none);
        assert_eq!(table.known_from(&key(19)), Some(Some(key(20))));
        assert_eq!(table.known_from(&key(20)), None);
        table.learn(key(20), Some(key(30)), &none);
        assert_eq!(table.known_from(&key(10)), Some(None));
        assert_eq!((table.known_from(&key(9)), table.ranges.len()), (None, 1));
    }

    #[test]
    fn everything_is_read_again_after_some_time() {
        let mut table = DigestTable::default();
        table.handle_time(5);
        table.learn(key(0), None, &BTreeMap::new());
        table.handle_time(4 + DIGEST_TABLE_STAY_MS);
        assert_eq!(table.known_from(&key(1)), Some(None));
        table.handle_time(5 + DIGEST_TABLE_STAY_MS);
        assert_eq!(table.known_from(&key(1)), None);
    }
}
