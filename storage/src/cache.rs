//! The read cache: recently written and read values, within a byte budget.
//!
//! Records never change where they stand, so an entry is right for as long as its location is.
//! quick_cache (S3-FIFO) decides what stays.

use bytes::Bytes;
use quick_cache::unsync::{Cache, DefaultLifecycle};
use quick_cache::{OptionsBuilder, Weighter};
use wal::Lsn;
use wal::record::{Key, Location, Version};

use crate::knowledge::Mixing;
use crate::segments::Spot;

/// A put's record, in shared memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CachedRecord {
    pub(crate) key: Key,
    /// Where it stands.
    pub(crate) location: Location,
    /// Its number.
    pub(crate) lsn: Lsn,
    pub(crate) version: Version,
    pub(crate) expiry_ms: u64,
    pub(crate) user_key: Bytes,
    /// Its plain checksum.
    pub(crate) user_key_crc: u32,
    pub(crate) value: Bytes,
    /// Bytes of memory that the entry keeps in use.
    pub(crate) footprint: usize,
}

#[derive(Clone, Debug)]
struct ByFootprint;

impl Weighter<Spot, CachedRecord> for ByFootprint {
    fn weight(&self, _: &Spot, record: &CachedRecord) -> u64 {
        (record.footprint + ENTRY_OVERHEAD) as u64
    }
}

/// Estimated bytes of an entry besides its content: fields, handles, allocation, table.
const ENTRY_OVERHEAD: usize = 240;
/// Expected entry, in bytes, from which the cache sizes its tables.
const ENTRY_LEN_EXPECTED: usize = 1024;

/// The read cache of one shard.
pub(crate) struct ReadCache {
    cache: Option<Cache<Spot, CachedRecord, ByFootprint, Mixing>>,
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
        let hasher = Mixing::default();
        let lifecycle = DefaultLifecycle::default();
        let cache =
            (bytes > 0).then(|| Cache::with_options(options, ByFootprint, hasher, lifecycle));
        Self { cache, hits: 0, misses: 0 }
    }

    pub(crate) fn get(&mut self, spot: &Spot) -> Option<CachedRecord> {
        let found = self.cache.as_ref()?.get(spot).cloned();
        if found.is_some() {
            self.hits += 1;
        } else {
            self.misses += 1;
        }
        found
    }

    /// Looks without counting, and without making the entry look used.
    pub(crate) fn peek(&self, spot: &Spot) -> Option<&CachedRecord> {
        self.cache.as_ref()?.peek(spot)
    }

    pub(crate) fn insert(&mut self, record: CachedRecord) {
        if let Some(cache) = &mut self.cache {
            cache.insert(Spot::of(&record.location), record);
        }
    }

    pub(crate) fn remove(&mut self, spot: &Spot) {
        if let Some(cache) = &mut self.cache {
            cache.remove(spot);
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

    fn spot(line: u32) -> Spot {
        Spot { segment: 1, line }
    }

    fn record(line: u32, len: usize) -> CachedRecord {
        CachedRecord {
            key: Key([1; 20]),
            location: Location { segment: 1, offset: line * 64 + 8, header_len: 72, value_len: 3 },
            lsn: Lsn(1),
            version: Version::default(),
            expiry_ms: 0,
            user_key: Bytes::new(),
            user_key_crc: 0,
            value: Bytes::from(vec![1; len]),
            footprint: len,
        }
    }

    #[test]
    fn budget_bounds_the_bytes_kept() {
        let mut cache = ReadCache::new(100_000);
        for line in 0..1000 {
            cache.insert(record(line, 1000));
            assert!(cache.bytes() <= 100_000);
        }
        let kept = (0..1000).filter(|line| cache.get(&spot(*line)).is_some()).count();
        assert!((10..=100).contains(&kept), "{kept} entries kept");
    }

    #[test]
    fn removed_entry_is_gone_and_an_empty_budget_keeps_nothing() {
        let mut cache = ReadCache::new(100_000);
        cache.insert(record(1, 3));
        assert_eq!(cache.get(&spot(1)), Some(record(1, 3)));
        cache.remove(&spot(1));
        assert_eq!(cache.get(&spot(1)), None);
        let mut none = ReadCache::new(0);
        none.insert(record(1, 3));
        assert_eq!(none.get(&spot(1)), None);
    }
}
