//! Where each live key's newest record stands, in key order.
//!
//! This first version is an ordered map; the compact paged table in [`table`] replaces it. Key
//! order is Kademlia's, so that prefixes of the key space are ranges here.

pub(crate) mod arena;
mod balance;
mod crowded;
mod directory;
pub(crate) mod load;
pub(crate) mod page;
pub(crate) mod probe;
pub(crate) mod slot;
pub(crate) mod table;
#[cfg(test)]
mod tests;
pub(crate) mod walk;

use std::collections::BTreeMap;
use std::ops::Bound;

use wal::Lsn;
use wal::record::{Key, Location, Version};

/// What the index knows of a live key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Slot {
    /// Where the value's record stands.
    pub(crate) location: Location,
    /// The newest record's version.
    pub(crate) version: Version,
    /// The newest record's number: the put's, or the touch's.
    pub(crate) lsn: Lsn,
    /// The put's number.
    pub(crate) value_lsn: Lsn,
    /// Milliseconds since 1970, 0 = never.
    pub(crate) expiry_ms: u64,
    /// CRC-32 of the user key: tells two user keys of the same id apart.
    pub(crate) user_key_crc: u32,
    /// Whether recovery found the record damaged.
    pub(crate) damaged: bool,
}

impl Slot {
    pub(crate) fn is_expired(&self, now_ms: u64) -> bool {
        self.expiry_ms != 0 && self.expiry_ms <= now_ms
    }
}

/// The index of one shard.
#[derive(Debug, Default)]
pub(crate) struct Index {
    slots: BTreeMap<Key, Slot>,
}

impl Index {
    pub(crate) fn get(&self, key: &Key) -> Option<&Slot> {
        self.slots.get(key)
    }

    pub(crate) fn insert(&mut self, key: Key, slot: Slot) -> Option<Slot> {
        self.slots.insert(key, slot)
    }

    pub(crate) fn remove(&mut self, key: &Key) -> Option<Slot> {
        self.slots.remove(key)
    }

    pub(crate) fn clear(&mut self) {
        self.slots.clear();
    }

    pub(crate) fn len(&self) -> usize {
        self.slots.len()
    }

    /// Walks the keys from `from` on, in key order.
    pub(crate) fn from(&self, from: Key) -> impl Iterator<Item = (&Key, &Slot)> {
        self.slots.range((Bound::Included(from), Bound::Unbounded))
    }
}
