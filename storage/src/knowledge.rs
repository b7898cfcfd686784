//! What is known of keys without the disk: states not acknowledged yet, answers found by reading.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::hash::{BuildHasher, Hasher};

use wal::Lsn;
use wal::disk::DiskError;
use wal::record::{Key, Location, Version};

use crate::cache::{CachedRecord, ReadCache};
use crate::index::{Place, SegmentNumber, SlotKind};
use crate::segments::{Segments, Spot};

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

#[derive(Clone, Copy, Debug)]
struct Unsettled {
    lsn: Lsn,
    key: Key,
    /// Where the record stands.
    location: Location,
    /// The extent that it names, if it does.
    extent: Option<Location>,
}

/// Records of one segment, by rising offset.
#[derive(Debug)]
struct Run {
    segment: u64,
    records: VecDeque<Unsettled>,
}

/// Newest states that are not acknowledged yet. Bounded by the log's pending bytes.
#[derive(Debug, Default)]
pub(crate) struct Recents {
    states: HashMap<Key, Recent, Mixing>,
    /// Their records, in append order; those of one segment stand together.
    runs: VecDeque<Run>,
    /// Extents that records which are not acknowledged yet name, and their keys.
    extents: BTreeMap<Spot, Key>,
    cleared: Lsn,
}

impl Recents {
    pub(crate) fn get(&self, key: &Key) -> Option<&Recent> {
        if self.states.is_empty() { None } else { self.states.get(key) }
    }

    /// The key of a record that is not acknowledged yet, or of the extent that it names.
    pub(crate) fn key_at(&self, spot: &Spot) -> Option<&Key> {
        if let Some(key) = self.extents.get(spot) {
            return Some(key);
        }
        let line_of = |record: &Unsettled| Spot::of(&record.location).line;
        self.runs.iter().filter(|run| run.segment == spot.segment).find_map(|run| {
            let index = run.records.binary_search_by_key(&spot.line, line_of).ok()?;
            Some(&run.records[index].key)
        })
    }

    /// The record that an answer about the key rests on.
    pub(crate) fn observed(&self, key: &Key) -> Lsn {
        self.get(key).map_or(Lsn::ZERO, |recent| recent.observed).max(self.cleared)
    }

    /// Notes a state, given by the record at `location`.
    pub(crate) fn note(&mut self, key: Key, location: Location, recent: Recent) {
        let extent = match recent.known {
            Known::Present(found) if found.base_lsn == Lsn::ZERO => Some(found.base),
            _ => None,
        };
        if let Some(extent) = &extent {
            self.extents.insert(Spot::of(extent), key);
        }
        let record = Unsettled { lsn: recent.lsn, key, location, extent };
        match self.runs.back_mut() {
            Some(run) if run.segment == location.segment => run.records.push_back(record),
            _ => {
                let (segment, records) = (location.segment, VecDeque::from([record]));
                self.runs.push_back(Run { segment, records });
            }
        }
        self.states.insert(key, recent);
    }

    /// Every key is deleted.
    pub(crate) fn clear(&mut self, lsn: Lsn) {
        self.states.clear();
        self.cleared = lsn;
    }

    /// Takes out the oldest record, if it is not above `lsn_max`.
    fn pop(&mut self, lsn_max: Lsn) -> Option<Unsettled> {
        // The last run keeps its memory.
        while self.runs.len() > 1 && self.runs[0].records.is_empty() {
            self.runs.pop_front();
        }
        self.runs.front_mut()?.records.pop_front_if(|record| record.lsn <= lsn_max)
    }

    /// Forgets what is acknowledged, and therefore written; values that are still current move to
    /// the cache.
    pub(crate) fn settle(
        &mut self,
        acknowledged_lsn: Lsn,
        cache: &mut ReadCache,
        segments: &mut Segments,
    ) {
        while let Some(Unsettled { lsn, key, location, extent }) = self.pop(acknowledged_lsn) {
            if let Some(extent) = &extent {
                self.extents.remove(&Spot::of(extent));
            }
            // Every frame before this record is written, those behind its extent as well.
            for location in extent.iter().chain([&location]) {
                if let Some(segment) = segments.by_id_mut(location.segment) {
                    segment.note_written(location);
                }
            }
            if self.states.get(&key).is_some_and(|recent| recent.lsn == lsn)
                && let Some(recent) = self.states.remove(&key)
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
