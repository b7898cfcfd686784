//! What is known of keys without the disk: states not acknowledged yet, answers found by reading.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, Hasher};

use wal::Lsn;
use wal::disk::DiskError;
use wal::record::{Key, Location, Version};

use crate::cache::{CachedRecord, ReadCache};
use crate::index::{Place, SegmentNumber, SlotKind};
use crate::number_table::NumberTable;
use crate::segments::Spot;

/// Answers found by reading that are kept.
const RESOLVED_COUNT_MAX: usize = 4096;

/// A key's newest record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    /// The slot that stands for it.
    pub(crate) place: Place,
    /// Whether it is a put or a touch of one.
    pub(crate) kind: SlotKind,
    pub(crate) version: Version,
    pub(crate) expiry_ms: u64,
    pub(crate) user_key_crc: u32,
    /// Where the value stands.
    pub(crate) base: Location,
    /// Its record's number.
    pub(crate) base_lsn: Lsn,
}

impl Found {
    pub(crate) fn is_expired(&self, now_ms: u64) -> bool {
        self.expiry_ms != 0 && self.expiry_ms <= now_ms
    }
}

/// What is known of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Known {
    Absent,
    Present(Found),
    /// The disk could not tell; asked again, it may.
    Failed(DiskError),
    /// A record that may be the key's is damaged. Its slot says so too, unless the damage is in
    /// what the record refers to, or the slot was meant for another record.
    Damaged,
}

/// A key's state that is not acknowledged yet.
#[derive(Clone, Debug)]
pub(crate) struct Recent {
    /// The record that says so.
    pub(crate) lsn: Lsn,
    /// What answers about the key rest on: less than `lsn` after a move, which changes nothing.
    pub(crate) observed: Lsn,
    pub(crate) known: Known,
    /// The value, if it is in memory.
    pub(crate) record: Option<CachedRecord>,
    /// Whether the value goes to the cache when it is acknowledged.
    pub(crate) cached: bool,
}

/// A record that is not acknowledged yet, and the state that it gives its key.
#[derive(Debug)]
struct Unsettled {
    lsn: Lsn,
    key: Key,
    /// Where the record stands.
    location: Location,
    /// `None` once a later record has given the key another state.
    recent: Option<Recent>,
}

/// An extent that a record which is not acknowledged yet names.
#[derive(Clone, Copy, Debug)]
struct Extent {
    lsn: Lsn,
    key: Key,
    location: Location,
}

/// Records of one segment, by rising offset: they stand together in the queue.
#[derive(Clone, Copy, Debug)]
struct Run {
    segment: u64,
    /// The number of the first one.
    first: u64,
}

/// Newest states that are not acknowledged yet. Bounded by the log's pending bytes.
///
/// They come and go in append order, so they stand in a queue, numbered from the first one ever on;
/// `numbers` finds a key's. Adding and settling walk through memory in order; only the small table
/// is met at random.
#[derive(Debug, Default)]
pub(crate) struct Recents {
    queue: VecDeque<Unsettled>,
    /// The number of the queue's first entry.
    first: u64,
    numbers: NumberTable,
    runs: VecDeque<Run>,
    /// Extents that such records name, in append order.
    extents: VecDeque<Extent>,
    cleared: Lsn,
}

impl Recents {
    fn find(&self, key: &Key) -> Option<(u64, &Recent)> {
        let number = self.numbers.find(hash_of(key), self.first, |number| {
            self.entry(number).is_some_and(|entry| entry.key == *key)
        })?;
        Some((number, self.entry(number)?.recent.as_ref()?))
    }

    fn entry(&self, number: u64) -> Option<&Unsettled> {
        self.queue.get(usize::try_from(number.checked_sub(self.first)?).ok()?)
    }

    pub(crate) fn get(&self, key: &Key) -> Option<&Recent> {
        self.find(key).map(|(_, recent)| recent)
    }

    /// The key of a record that is not acknowledged yet, or of the extent that it names.
    pub(crate) fn key_at(&self, spot: &Spot) -> Option<&Key> {
        let names_it = |extent: &&Extent| Spot::of(&extent.location) == *spot;
        if let Some(extent) = self.extents.iter().find(names_it) {
            return Some(&extent.key);
        }
        let line_of = |number: u64| self.entry(number).map(|entry| Spot::of(&entry.location).line);
        let end = self.first + self.queue.len() as u64;
        let ends = self.runs.iter().skip(1).map(|run| run.first).chain([end]);
        let mut runs = self.runs.iter().zip(ends).filter(|(run, _)| run.segment == spot.segment);
        runs.find_map(|(run, end)| {
            let (mut low, mut high) = (run.first.max(self.first), end);
            while low < high {
                let middle = low.midpoint(high);
                if line_of(middle)? < spot.line { low = middle + 1 } else { high = middle }
            }
            let is_it = low < end && line_of(low) == Some(spot.line);
            if is_it { self.entry(low).map(|entry| &entry.key) } else { None }
        })
    }

    /// The record that an answer about the key rests on.
    pub(crate) fn observed(&self, key: &Key) -> Lsn {
        self.get(key).map_or(Lsn::ZERO, |recent| recent.observed).max(self.cleared)
    }

    /// Notes a state, given by the record at `location`.
    pub(crate) fn note(&mut self, key: Key, location: Location, recent: Recent) {
        if let Known::Present(found) = recent.known
            && found.base_lsn == Lsn::ZERO
        {
            self.extents.push_back(Extent { lsn: recent.lsn, key, location: found.base });
        }
        let number = self.first + self.queue.len() as u64;
        if self.runs.back().is_none_or(|run| run.segment != location.segment) {
            self.runs.push_back(Run { segment: location.segment, first: number });
        }
        let hash = hash_of(&key);
        match self.find(&key).map(|(before, _)| before) {
            Some(before) => {
                self.numbers.replace(hash, before, number);
                let position = usize::try_from(before - self.first).expect("a place in the queue");
                self.queue[position].recent = None;
            }
            None => self.numbers.insert(hash, number),
        }
        let lsn = recent.lsn;
        self.queue.push_back(Unsettled { lsn, key, location, recent: Some(recent) });
    }

    /// Every key is deleted.
    pub(crate) fn clear(&mut self, lsn: Lsn) {
        self.queue.iter_mut().for_each(|entry| entry.recent = None);
        self.numbers.clear();
        self.cleared = lsn;
    }

    /// Takes out the oldest record, if it is not above `lsn_max`.
    fn pop(&mut self, lsn_max: Lsn) -> Option<Unsettled> {
        let entry = self.queue.pop_front_if(|entry| entry.lsn <= lsn_max)?;
        if entry.recent.is_some() {
            self.numbers.remove(hash_of(&entry.key), self.first);
        }
        self.first += 1;
        while self.runs.get(1).is_some_and(|run| run.first <= self.first) {
            self.runs.pop_front();
        }
        Some(entry)
    }

    /// Forgets what is acknowledged, and therefore written; values that are still current move to
    /// the cache.
    pub(crate) fn settle(&mut self, acknowledged_lsn: Lsn, cache: &mut ReadCache) {
        while self.extents.pop_front_if(|extent| extent.lsn <= acknowledged_lsn).is_some() {}
        while let Some(Unsettled { recent, .. }) = self.pop(acknowledged_lsn) {
            if let Some(recent) = recent
                && let Some(record) = recent.record.filter(|_| recent.cached)
            {
                cache.insert(record);
            }
        }
        if self.cleared <= acknowledged_lsn {
            self.cleared = Lsn::ZERO;
        }
    }
}

/// What [`NumberTable`] goes by.
fn hash_of(key: &Key) -> u32 {
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, rest @ ..] = key.0;
    let first = u64::from_le_bytes([a, b, c, d, e, f, g, h]);
    let second = u64::from_le_bytes([i, j, k, l, m, n, o, p]);
    let folded = first ^ second.rotate_left(29) ^ u64::from(u32::from_le_bytes(rest));
    // Fibonacci hashing; the upper half is the better one.
    (folded.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32) as u32
}

#[derive(Clone, Debug)]
struct Resolution {
    number: u64,
    known: Known,
    record: Option<CachedRecord>,
}

/// Answers found by reading, the newest few thousand. Every change of a key takes its answer out.
#[derive(Debug, Default)]
pub(crate) struct Resolved {
    answers: HashMap<Key, Resolution, Mixing>,
    queue: VecDeque<(u64, Key)>,
    next: u64,
}

impl Resolved {
    pub(crate) fn get(&self, key: &Key) -> Option<(Known, Option<&CachedRecord>)> {
        if self.answers.is_empty() {
            return None;
        }
        self.answers.get(key).map(|answer| (answer.known, answer.record.as_ref()))
    }

    pub(crate) fn insert(&mut self, key: Key, known: Known, record: Option<CachedRecord>) {
        let number = self.next;
        self.next += 1;
        // A question that needs the value must not lose it to one that does not.
        let before = self.answers.remove(&key).filter(|before| before.known == known);
        let record = record.or_else(|| before?.record);
        self.answers.insert(key, Resolution { number, known, record });
        self.queue.push_back((number, key));
        while self.queue.len() > RESOLVED_COUNT_MAX
            && let Some((number, key)) = self.queue.pop_front()
        {
            if self.answers.get(&key).is_some_and(|answer| answer.number == number) {
                self.answers.remove(&key);
            }
        }
    }

    pub(crate) fn remove(&mut self, key: &Key) {
        if !self.answers.is_empty() {
            self.answers.remove(key);
        }
    }

    /// Forgets answers that name a segment's number: another segment gets it.
    pub(crate) fn forget_segment(&mut self, number: SegmentNumber) {
        let names = |known| matches!(known, Known::Present(found) if found.place.segment == number);
        self.answers.retain(|_, answer| !names(answer.known));
    }

    pub(crate) fn clear(&mut self) {
        self.answers.clear();
        self.queue.clear();
    }
}

/// The cores must behave the same in every run, which std's hasher does not; the maps here are
/// bounded, and never walked.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Mixing(u64);

impl Hasher for Mixing {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks();
        words.iter().for_each(|word| self.write_u64(u64::from_le_bytes(*word)));
        let mut last = [0; 8];
        last[..rest.len()].copy_from_slice(rest);
        self.write_u64(u64::from_le_bytes(last));
    }

    fn write_u32(&mut self, word: u32) {
        self.write_u64(u64::from(word));
    }

    fn write_usize(&mut self, word: usize) {
        self.write_u64(word as u64);
    }

    fn write_u64(&mut self, word: u64) {
        // The finalizer of SplitMix64.
        let mut mixed = (self.0 ^ word).wrapping_add(0x9E37_79B9_7F4A_7C15);
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        self.0 = mixed ^ (mixed >> 31);
    }
}

impl BuildHasher for Mixing {
    type Hasher = Self;

    fn build_hasher(&self) -> Self {
        *self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(number: u8) -> Key {
        Key([number; 20])
    }

    fn note(recents: &mut Recents, lsn: u64, number: u8, segment: u64, offset: u32) {
        let lsn = Lsn(lsn);
        let location = Location { segment, offset, header_len: 72, value_len: 0 };
        let recent =
            Recent { lsn, observed: lsn, known: Known::Absent, record: None, cached: false };
        recents.note(key(number), location, recent);
    }

    fn settle(recents: &mut Recents, lsn: u64) {
        recents.settle(Lsn(lsn), &mut ReadCache::new(0));
    }

    #[test]
    fn places_are_known_by_segment_and_line_until_they_are_settled() {
        let mut recents = Recents::default();
        let places = [(4, 0), (4, 128), (9, 0), (9, 512), (4, 192), (4, 256)];
        for (number, (segment, offset)) in (1..).zip(places) {
            note(&mut recents, u64::from(number), number, segment, offset);
        }
        for settled in 0..=places.len() {
            settle(&mut recents, settled as u64);
            for (number, (segment, offset)) in (1..).zip(places) {
                let spot = Spot { segment, line: offset / 64 };
                let wanted = key(number);
                let known = usize::from(number) > settled;
                assert_eq!(recents.key_at(&spot), known.then_some(&wanted), "{settled}");
            }
            assert_eq!(recents.key_at(&Spot { segment: 9, line: 1 }), None);
            assert_eq!(recents.key_at(&Spot { segment: 5, line: 0 }), None);
        }
    }

    #[test]
    fn newest_state_stays_until_its_own_record_is_settled() {
        let mut recents = Recents::default();
        note(&mut recents, 1, 7, 1, 0);
        note(&mut recents, 2, 8, 1, 128);
        note(&mut recents, 3, 7, 1, 256);
        settle(&mut recents, 2);
        assert_eq!(recents.get(&key(7)).map(|recent| recent.lsn), Some(Lsn(3)));
        assert!(recents.get(&key(8)).is_none());
        recents.clear(Lsn(4));
        assert!(recents.get(&key(7)).is_none());
        assert_eq!(recents.observed(&key(7)), Lsn(4));
        note(&mut recents, 5, 7, 2, 0);
        settle(&mut recents, 4);
        assert_eq!(recents.observed(&key(7)), Lsn(5));
        settle(&mut recents, 5);
        assert_eq!(recents.observed(&key(7)), Lsn::ZERO);
    }
}
