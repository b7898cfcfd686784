//! The read cache: recently written and read values, within a byte budget.
//!
//! Records never change where they stand, so an entry is right for as long as its location is.
//! quick_cache (S3-FIFO) decides what stays.

use std::hash::{BuildHasher, Hasher};

use bytes::Bytes;
use quick_cache::unsync::{Cache, DefaultLifecycle};
use quick_cache::{OptionsBuilder, Weighter};
use wal::record::Location;

/// A record's user key and value, in shared memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CachedRecord {
    pub(crate) user_key: Bytes,
    pub(crate) value: Bytes,
    /// Bytes of memory that the entry keeps in use.
    pub(crate) footprint: usize,
}

type Place = (u64, u32);

#[derive(Clone, Debug)]
struct ByFootprint;

impl Weighter<Place, CachedRecord> for ByFootprint {
    fn weight(&self, _: &Place, record: &CachedRecord) -> u64 {
        (record.footprint + ENTRY_OVERHEAD) as u64
    }
}

/// Estimated bytes of an entry besides its content: key, handles, allocation, table.
const ENTRY_OVERHEAD: usize = 160;
/// Expected entry, in bytes, from which the cache sizes its tables.
const ENTRY_LEN_EXPECTED: usize = 1024;

/// Places are not chosen by clients, so a fixed mixing function will do; and the cores must behave
/// the same in every run, which std's hasher does not.
#[derive(Clone, Copy, Debug, Default)]
struct PlaceHasher(u64);

impl Hasher for PlaceHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u64(u64::from(*byte)));
    }

    fn write_u32(&mut self, word: u32) {
        self.write_u64(u64::from(word));
    }

    fn write_u64(&mut self, word: u64) {
        // The finalizer of SplitMix64.
        let mut mixed = (self.0 ^ word).wrapping_add(0x9E37_79B9_7F4A_7C15);
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        self.0 = mixed ^ (mixed >> 31);
    }
}

impl BuildHasher for PlaceHasher {
    type Hasher = Self;

    fn build_hasher(&self) -> Self {
        *self
    }
}

/// The read cache of one shard.
pub(crate) struct ReadCache {
    cache: Option<Cache<Place, CachedRecord, ByFootprint, PlaceHasher>>,
    pub(crate) hits: u64,
    pub(crate) misses: u64,
}

impl ReadCache {
    /// A cache of at most `bytes`; of 0, one that keeps nothing.
    pub(crate) fn new(bytes: usize) -> Self {
        let options = OptionsBuilder::new()
            .estimated_items_capacity((bytes / ENTRY_LEN_EXPECTED).max(1))
            .weight_capacity(bytes as u64)
            .build()
            .expect("both capacities are set");
        let hasher = PlaceHasher::default();
        let lifecycle = DefaultLifecycle::default();
        let cache =
            (bytes > 0).then(|| Cache::with_options(options, ByFootprint, hasher, lifecycle));
        Self { cache, hits: 0, misses: 0 }
    }

    pub(crate) fn get(&mut self, location: &Location) -> Option<CachedRecord> {
        let found = self.cache.as_ref()?.get(&(location.segment, location.offset)).cloned();
        if found.is_some() {
            self.hits += 1;
        } else {
            self.misses += 1;
        }
        found
    }

    pub(crate) fn insert(&mut self, location: &Location, record: CachedRecord) {
        if let Some(cache) = &mut self.cache {
            cache.insert((location.segment, location.offset), record);
        }
    }

    pub(crate) fn remove(&mut self, location: &Location) {
        if let Some(cache) = &mut self.cache {
            cache.remove(&(location.segment, location.offset));
        }
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.cache.as_ref().map_or(0, Cache::weight)
    }
}

impl std::fmt::Debug for ReadCache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ReadCache({} bytes)", self.bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn location(offset: u32) -> Location {
        Location { segment: 1, offset, header_len: 72, value_len: 3 }
    }

    fn record(len: usize) -> CachedRecord {
        let value = Bytes::from(vec![1; len]);
        CachedRecord { user_key: Bytes::new(), value, footprint: len }
    }

    #[test]
    fn budget_bounds_the_bytes_kept() {
        let mut cache = ReadCache::new(100_000);
        for offset in 0..1000 {
            cache.insert(&location(offset), record(1000));
            assert!(cache.bytes() <= 100_000);
        }
        let kept = (0..1000).filter(|offset| cache.get(&location(*offset)).is_some()).count();
        assert!((10..=100).contains(&kept), "{kept} entries kept");
    }

    #[test]
    fn removed_entry_is_gone_and_an_empty_budget_keeps_nothing() {
        let mut cache = ReadCache::new(100_000);
        cache.insert(&location(1), record(3));
        assert_eq!(cache.get(&location(1)), Some(record(3)));
        cache.remove(&location(1));
        assert_eq!(cache.get(&location(1)), None);
        let mut none = ReadCache::new(0);
        none.insert(&location(1), record(3));
        assert_eq!(none.get(&location(1)), None);
    }
}
