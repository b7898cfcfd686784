//! What the cluster asks of the store that holds a node's copies.
//!
//! The core asks by [`StoreRequest`] and is told a [`StoreAnswer`] once everything that the answer
//! rests on is durable. [`RecordStore`] is what a store has to be able to do at once, in memory;
//! [`execute`] brings both together, and [`ModelStore`] is the plain implementation that tests and
//! the simulator use.

use std::collections::BTreeMap;
use std::ops::Bound;

use bytes::Bytes;
use wal::record::{Key, Version};

use super::message::{Entry, Found, Name, Record};
use super::prefix::Prefix;
use super::replica::{self, Applied};

/// Names a store request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

/// Something for the store to do. Requests of one key take effect in the order asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreRequest {
    /// The newest record of a key, tombstones included.
    Read {
        /// The key's id.
        key: Key,
        /// Whether the value is wanted.
        wants_value: bool,
    },
    /// Hold a record unless there is a newer one: compare and put in one step.
    Apply {
        /// The record.
        record: Record,
    },
    /// The next records in order of their ids, tombstones included.
    Walk {
        /// Only of this prefix.
        prefix: Prefix,
        /// From this key on.
        from: Key,
        /// So many at most.
        count: usize,
    },
    /// As [`StoreRequest::Walk`], with the keys themselves.
    Names {
        /// Only of this prefix.
        prefix: Prefix,
        /// From this key on.
        from: Key,
        /// So many at most.
        count: usize,
    },
    /// Give up a copy if it has still that very version. Leaves no tombstone.
    Discard {
        /// The key's id.
        key: Key,
        /// Its version.
        version: Version,
    },
    /// Give up all copies, tombstones included.
    DiscardAll,
    /// Keep the state of the cluster core, in place of what was kept before.
    Save {
        /// What [`super::ClusterNode`] is opened with after a restart.
        state: Bytes,
    },
    /// Keep the routing table, in place of what was kept before.
    SaveRoutes {
        /// The table as bytes.
        table: Bytes,
    },
}

/// What became of a store request; everything it rests on is durable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreAnswer {
    /// Of [`StoreRequest::Read`].
    Read(Found),
    /// Of [`StoreRequest::Apply`].
    Applied(Applied),
    /// Of [`StoreRequest::Walk`]: the records, and where to go on.
    Walked(Vec<Entry>, Option<Key>),
    /// Of [`StoreRequest::Names`]: the same.
    Named(Vec<Name>, Option<Key>),
    /// Of the others.
    Done,
    /// It failed; what was to be written may have been.
    Failed,
}

/// A store of records that keeps tombstones.
pub trait RecordStore {
    /// The newest record of a key.
    fn read(&self, key: &Key, now_ms: u64) -> Option<Record>;
    /// Compares, and holds the record if it is newer.
    fn apply(&mut self, record: Record, now_ms: u64) -> Applied;
    /// Up to `count` records of the prefix from a key on, and where to go on.
    fn walk(
        &self,
        prefix: &Prefix,
        from: Key,
        count: usize,
        now_ms: u64,
    ) -> (Vec<Entry>, Option<Key>);
    /// Gives a copy up if it has that version.
    fn discard(&mut self, key: &Key, version: Version);
    /// Gives all copies up.
    fn discard_all(&mut self);
    /// Keeps the cluster's state.
    fn save(&mut self, state: Bytes);
}

/// Does what a request asks.
pub fn execute(store: &mut impl RecordStore, request: StoreRequest, now_ms: u64) -> StoreAnswer {
    match request {
        StoreRequest::Read { key, wants_value } => {
            let found = match store.read(&key, now_ms) {
                None => Found::Nothing,
                Some(record) if wants_value => Found::Record(record),
                Some(record) => Found::Header(record.header()),
            };
            return StoreAnswer::Read(found);
        }
        StoreRequest::Apply { record } => {
            return StoreAnswer::Applied(store.apply(record, now_ms));
        }
        StoreRequest::Walk { prefix, from, count } => {
            let (entries, next) = store.walk(&prefix, from, count, now_ms);
            return StoreAnswer::Walked(entries, next);
        }
        StoreRequest::Names { prefix, from, count } => {
            let (entries, next) = store.walk(&prefix, from, count, now_ms);
            let named = entries.into_iter().map(|entry| {
                let record = store.read(&entry.key, now_ms);
                Name { entry, user_key: record.map_or_else(Bytes::new, |record| record.user_key) }
            });
            return StoreAnswer::Named(named.collect(), next);
        }
        StoreRequest::Discard { key, version } => store.discard(&key, version),
        StoreRequest::DiscardAll => store.discard_all(),
        StoreRequest::Save { state } => store.save(state),
        // It is soft: a store in memory does without.
        StoreRequest::SaveRoutes { .. } => {}
    }
    StoreAnswer::Done
}

/// A store in memory: a map. Two of them make one that can crash, see the simulator.
#[derive(Clone, Debug, Default)]
pub struct ModelStore {
    records: BTreeMap<Key, Record>,
    state: Bytes,
}

impl ModelStore {
    /// The cluster's state that was kept last.
    #[must_use]
    pub fn state(&self) -> Bytes {
        self.state.clone()
    }

    /// All records in order of their ids, as they were stored.
    pub fn records(&self) -> impl Iterator<Item = &Record> {
        self.records.values()
    }

    /// Forgets tombstones, and what has expired, whose version is older than that.
    pub fn purge(&mut self, before_ms: u64, now_ms: u64) {
        self.records.retain(|_, record| {
            let is_gone = record.header().at(now_ms).is_tombstone;
            !is_gone || replica::time_ms(&record.version) >= before_ms
        });
    }
}

impl RecordStore for ModelStore {
    fn read(&self, key: &Key, now_ms: u64) -> Option<Record> {
        self.records.get(key).map(|record| record.clone().at(now_ms))
    }

    fn apply(&mut self, record: Record, now_ms: u64) -> Applied {
        let record = record.at(now_ms);
        let stored = self.records.get(&record.key);
        let applied = replica::compare(stored, &record, now_ms);
        if applied == Applied::Newer {
            self.records.insert(record.key, record);
        }
        applied
    }

    fn walk(
        &self,
        prefix: &Prefix,
        from: Key,
        count: usize,
        now_ms: u64,
    ) -> (Vec<Entry>, Option<Key>) {
        let from = from.max(prefix.first_key());
        let end = prefix.end().map_or(Bound::Unbounded, Bound::Excluded);
        if prefix.end().is_some_and(|end| from >= end) {
            return (Vec::new(), None);
        }
        let mut records = self.records.range((Bound::Included(from), end)).map(|(_, record)| {
            let Record { namespace, key, version, .. } = *record;
            let is_tombstone = record.header().at(now_ms).is_tombstone;
            Entry { namespace, key, version, is_tombstone }
        });
        let found: Vec<Entry> = records.by_ref().take(count).collect();
        (found, records.next().map(|entry| entry.key))
    }

    fn discard(&mut self, key: &Key, version: Version) {
        if self.records.get(key).is_some_and(|record| record.version == version) {
            self.records.remove(key);
        }
    }

    fn discard_all(&mut self) {
        self.records.clear();
    }

    fn save(&mut self, state: Bytes) {
        self.state = state;
    }
}
