//! [`PathCache`]: copies of what this node's clients have read of other nodes, for reads with
//! `read_consistency = one` alone.
//!
//! They are in memory and nowhere else: no other node hears of them, and they count as no replica.
//! A copy is used for a time that halves with each node between this one and the key's replica set
//! (Kademlia §2.3). A write through this node drops its key's copy.

use std::collections::{BTreeMap, BTreeSet};

use storage::Now;
use wal::record::Key;

use crate::cluster::message::{Content, Record};
use crate::kademlia::path_cache::ttl_ms;

/// Bytes of keys and values in it.
const PATH_CACHE_BYTES_MAX: usize = 16 << 20;
/// The longest key and value that is kept.
const PATH_CACHE_RECORD_LEN_MAX: usize = 64 << 10;
/// How long a copy is used by the node that is next to the replica set.
const PATH_CACHE_STAY_MS: u64 = 60_000;
/// Memory of a record beside key and value, about.
const RECORD_BYTES: usize = 256;
/// Groups of keys whose last write is remembered.
const GROUP_COUNT: usize = 4_096;

#[derive(Debug)]
struct PathCopy {
    record: Record,
    until_ns: u64,
}

/// The cache.
#[derive(Debug)]
pub(super) struct PathCache {
    copies: BTreeMap<Key, PathCopy>,
    /// The copies by their end.
    ends: BTreeSet<(u64, Key)>,
    bytes: usize,
    /// When a key of each group was written last.
    written_ns: Vec<u64>,
    pub(super) hits: u64,
}

impl Default for PathCache {
    fn default() -> Self {
        let (copies, ends) = (BTreeMap::new(), BTreeSet::new());
        Self { copies, ends, bytes: 0, written_ns: vec![0; GROUP_COUNT], hits: 0 }
    }
}

fn group_of(key: &Key) -> usize {
    usize::from(u16::from_be_bytes([key.0[0], key.0[1]])) % GROUP_COUNT
}

fn bytes_of(record: &Record) -> usize {
    record.len() + RECORD_BYTES
}

impl PathCache {
    /// Number of copies.
    pub(super) fn len(&self) -> usize {
        self.copies.len()
    }

    /// The copy of a key, if it may be used still.
    pub(super) fn find(&mut self, user_key: &[u8], now: Now) -> Option<Record> {
        if self.copies.is_empty() {
            return None;
        }
        let key = Key::of(user_key);
        let copy = self.copies.get(&key)?;
        let is_gone = copy.record.header().at(now.clock_ms).is_tombstone;
        let is_over = copy.until_ns <= now.monotonic_ns || is_gone;
        if is_over {
            self.forget(&key);
            return None;
        }
        let record = copy.record.clone();
        (record.user_key == user_key).then(|| {
            self.hits += 1;
            record
        })
    }

    /// Keeps what a read has found that began at `begun_ns`, with so many nodes between this one
    /// and the key's replica set.
    pub(super) fn keep(&mut self, record: &Record, between: u32, begun_ns: u64, now_ns: u64) {
        let is_value = record.content != Content::Tombstone;
        let Some(ttl_ms) = ttl_ms(PATH_CACHE_STAY_MS, between).filter(|_| is_value) else { return };
        // It may have been read before that write.
        let is_outdated = self.written_ns[group_of(&record.key)] >= begun_ns;
        if is_outdated || record.len() > PATH_CACHE_RECORD_LEN_MAX {
            return;
        }
        self.forget(&record.key);
        let until_ns = now_ns.saturating_add(ttl_ms * 1_000_000);
        self.bytes += bytes_of(record);
        self.ends.insert((until_ns, record.key));
        self.copies.insert(record.key, PathCopy { record: record.clone(), until_ns });
        while self.bytes > PATH_CACHE_BYTES_MAX
            && let Some((_, key)) = self.ends.first().copied()
        {
            self.forget(&key);
        }
    }

    /// A write of the key goes out, or has been decided.
    pub(super) fn on_write(&mut self, key: &Key, now_ns: u64) {
        self.written_ns[group_of(key)] = now_ns;
        self.forget(key);
    }

    fn forget(&mut self, key: &Key) {
        if let Some(copy) = self.copies.remove(key) {
            self.bytes -= bytes_of(&copy.record);
            self.ends.remove(&(copy.until_ns, *key));
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use wal::record::{Namespace, Version};

    use super::*;

    fn at(monotonic_ns: u64, clock_ms: u64) -> Now {
        Now { monotonic_ns, clock_ms }
    }

    const S: u64 = 1_000_000_000;

    fn record(name: &str, len: usize) -> Record {
        Record {
            namespace: Namespace::PLAIN,
            key: Key::of(name.as_bytes()),
            user_key: name.to_owned().into(),
            version: Version([1; 16]),
            expiry_ms: 0,
            content: Content::Value(Bytes::from(vec![7; len])),
        }
    }

    #[test]
    fn copies_are_used_for_as_long_as_their_distance_allows() {
        let mut cache = PathCache::default();
        cache.keep(&record("near", 3), 0, 1, 2);
        cache.keep(&record("far", 3), 2, 1, 2);
        cache.keep(&record("too far", 3), 11, 1, 2);
        assert_eq!(cache.len(), 2);
        assert_eq!(cache.find(b"far", at(15 * S, 5)), Some(record("far", 3)));
        assert_eq!(cache.find(b"far", at(15 * S + 2, 5)), None);
        assert_eq!(cache.find(b"near", at(60 * S, 5)), Some(record("near", 3)));
        assert_eq!((cache.find(b"near", at(61 * S, 5)), cache.bytes), (None, 0));
        assert_eq!(cache.hits, 2);
    }

    #[test]
    fn what_was_written_or_has_expired_is_not_used() {
        let mut cache = PathCache::default();
        cache.keep(&record("a", 3), 0, 10, 20);
        cache.on_write(&Key::of(b"a"), 30);
        assert_eq!(cache.find(b"a", at(31, 5)), None);
        // Begun before that write, it may have found what was there before.
        cache.keep(&record("a", 3), 0, 30, 40);
        assert_eq!(cache.find(b"a", at(41, 5)), None);
        cache.keep(&Record { expiry_ms: 100, ..record("a", 3) }, 0, 31, 40);
        assert!(cache.find(b"a", at(41, 99)).is_some());
        assert_eq!(cache.find(b"a", at(41, 100)), None);
    }

    #[test]
    fn its_memory_is_bounded() {
        let mut cache = PathCache::default();
        cache.keep(&record("long", PATH_CACHE_RECORD_LEN_MAX), 0, 1, 2);
        assert_eq!(cache.len(), 0);
        for number in 0..1_000 {
            cache.keep(&record(&number.to_string(), 60_000), 0, 1, 2 + number);
        }
        assert!(cache.bytes <= PATH_CACHE_BYTES_MAX && cache.len() > 200);
        assert!(
            cache.find(b"999", at(2_000, 5)).is_some() && cache.find(b"0", at(2_000, 5)).is_none()
        );
    }
}
