//! The shards of a thread as a part of the node's key space: which shard a key belongs to and which
//! thread that shard, time, and versions.

use bytes::Bytes;
use storage::{
    Effect, Event, KeyRef, Lookup, Now, Put, ReadError, SharedPut, Store, Value, WriteError,
};
use wal::Lsn;
use wal::disk::{DiskCompletion, DiskRequest};
use wal::record::{Key, Version};

use crate::cluster::clock::HybridLogicalClock;
use crate::histogram::Histogram;
use crate::key_ids::KeyIds;
use crate::shortages::Shortages;

/// A shard's index.
pub type ShardIndex = u16;

/// A user key with its id and shard.
#[derive(Clone, Copy, Debug)]
pub struct Address<'a> {
    /// Which shard holds it.
    pub shard: ShardIndex,
    /// The key as the store wants it.
    pub key: KeyRef<'a>,
}

/// The record up to which an answer has looked; its reply waits until that may be
/// acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wait {
    /// In which shard's log.
    pub shard: ShardIndex,
    /// Up to where.
    pub lsn: Lsn,
}

/// A thread's index.
pub type ThreadIndex = u16;

/// How the shards of a node are spread over its threads: shard `s` belongs to thread
/// `s % thread_count`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spread {
    /// Shards of the node.
    pub shard_count: u16,
    /// Threads of the node, no more than shards.
    pub thread_count: u16,
    /// The thread at hand.
    pub thread: ThreadIndex,
}

impl Spread {
    /// All shards on one thread.
    #[must_use]
    pub fn on_one_thread(shard_count: u16) -> Self {
        Self { shard_count, thread_count: 1, thread: 0 }
    }

    /// The thread that a shard belongs to.
    #[must_use]
    pub fn thread_of(&self, shard: ShardIndex) -> ThreadIndex {
        shard % self.thread_count
    }

    /// The shards of the thread at hand.
    pub fn shards(
        &self,
    ) -> impl DoubleEndedIterator<Item = ShardIndex> + ExactSizeIterator + use<> {
        (self.thread..self.shard_count).step_by(usize::from(self.thread_count))
    }

    /// The other threads.
    pub fn others(&self) -> impl Iterator<Item = ThreadIndex> + use<> {
        let thread = self.thread;
        (0..self.thread_count).filter(move |other| *other != thread)
    }
}

/// The shards of one thread.
#[derive(Debug)]
pub struct Keyspace {
    spread: Spread,
    /// Those of [`Spread::shards`], in that order.
    stores: Vec<Store>,
    versions: HybridLogicalClock,
    now: Now,
    random: fastrand::Rng,
    durable_writes: Histogram,
    ids: KeyIds,
    shortages: Shortages,
}

impl Keyspace {
    /// Takes the shards of a thread, in order of their index. `seed` starts the random choices.
    ///
    /// # Panics
    /// If these are not as many as the thread has by `spread`, or none.
    #[must_use]
    pub fn new(spread: Spread, stores: Vec<Store>, now: Now, seed: u64) -> Self {
        assert_eq!(stores.len(), spread.shards().len(), "a thread has all of its shards");
        let first = stores.first().expect("a thread has at least one shard");
        let mut versions = HybridLogicalClock::new(&first.identity().node_id, Version::default());
        stores.iter().for_each(|store| versions.witness(store.version_max()));
        let random = fastrand::Rng::with_seed(seed);
        let mut keyspace = Self {
            spread,
            stores,
            versions,
            now,
            random,
            durable_writes: Histogram::default(),
            ids: KeyIds::default(),
            shortages: Shortages::default(),
        };
        keyspace.set_now(now);
        keyspace
    }

    /// Finds where a user key belongs. The shard comes from the id's last bits: the first ones
    /// follow the node's own id.
    #[must_use]
    pub fn address<'a>(&self, user_key: &'a [u8]) -> Address<'a> {
        let id = self.ids.id_of(user_key);
        Address { shard: self.shard_of(id), key: KeyRef::hashed(id, user_key) }
    }

    /// Finds the shard of a key id.
    #[must_use]
    pub fn shard_of(&self, key: Key) -> ShardIndex {
        u16::from_be_bytes([key.0[18], key.0[19]]) % self.spread.shard_count
    }

    /// Finds the thread that a user key belongs to.
    #[must_use]
    pub fn thread_of(&self, user_key: &[u8]) -> ThreadIndex {
        self.spread.thread_of(self.shard_of(self.ids.id_of(user_key)))
    }

    /// How the node's shards are spread over its threads.
    #[must_use]
    pub fn spread(&self) -> Spread {
        self.spread
    }

    /// The indices of this thread's shards.
    pub fn shards(
        &self,
    ) -> impl DoubleEndedIterator<Item = ShardIndex> + ExactSizeIterator + use<> {
        self.spread.shards()
    }

    fn index_of(&self, shard: ShardIndex) -> usize {
        debug_assert_eq!(self.spread.thread_of(shard), self.spread.thread, "the shard is here");
        usize::from(shard / self.spread.thread_count)
    }

    /// The shard's store, which must be one of this thread.
    #[must_use]
    pub fn store(&self, shard: ShardIndex) -> &Store {
        &self.stores[self.index_of(shard)]
    }

    /// The shard's store, which must be one of this thread, to change.
    pub fn store_mut(&mut self, shard: ShardIndex) -> &mut Store {
        let index = self.index_of(shard);
        &mut self.stores[index]
    }

    /// All stores of this thread with their shard's index.
    pub fn stores(&self) -> impl ExactSizeIterator<Item = (ShardIndex, &Store)> {
        self.spread.shards().zip(&self.stores)
    }

    /// The time that commands go by.
    #[must_use]
    pub fn now(&self) -> Now {
        self.now
    }

    /// Sets the time.
    pub fn set_now(&mut self, now: Now) {
        self.now = now;
        self.stores.iter_mut().for_each(|store| store.set_now(now));
    }

    /// Draws the version of the next write.
    pub fn next_version(&mut self) -> Version {
        self.versions.next(self.now.clock_ms)
    }

    /// Number of live keys of this thread.
    #[must_use]
    pub fn len(&self) -> usize {
        self.stores.iter().map(Store::len).sum()
    }

    /// Whether there is no live key.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.stores.iter().all(Store::is_empty)
    }

    /// What the key's answer has looked at, if that may not be acknowledged yet.
    #[must_use]
    pub fn observed(&self, address: &Address<'_>) -> Option<Wait> {
        let store = self.store(address.shard);
        let lsn = store.observed(&address.key);
        (lsn > store.acknowledged_lsn()).then_some(Wait { shard: address.shard, lsn })
    }

    /// What an answer about all keys of a shard has looked at, if that may not be acknowledged yet.
    #[must_use]
    pub fn observed_shard(&self, shard: ShardIndex) -> Option<Wait> {
        let store = self.store(shard);
        let lsn = store.last_lsn();
        (lsn > store.acknowledged_lsn()).then_some(Wait { shard, lsn })
    }

    /// What an answer about all keys has looked at, as far as that may not be
    /// acknowledged yet.
    pub fn observed_all(&self) -> impl Iterator<Item = Wait> {
        self.shards().filter_map(|shard| self.observed_shard(shard))
    }

    /// Looks a key up.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn lookup(&mut self, address: &Address<'_>) -> Result<Lookup, ReadError> {
        self.store_mut(address.shard).lookup(&address.key)
    }

    /// Reads a key of this thread if it was read of late and has not changed since; the answer
    /// waits for nothing.
    pub fn get_hot(&mut self, user_key: &[u8]) -> Option<Value> {
        let id = self.ids.id_of(user_key);
        self.store_mut(self.shard_of(id)).get_hot(&id, user_key)
    }

    /// Stores a value under a new version. Returns the record it made.
    ///
    /// # Errors
    /// [`WriteError`].
    pub fn put(
        &mut self,
        address: &Address<'_>,
        value: &[u8],
        expiry_ms: u64,
    ) -> Result<Wait, WriteError> {
        let put = Put { key: address.key, version: self.next_version(), expiry_ms, value };
        let lsn = self.store_mut(address.shard).put(&put)?;
        Ok(Wait { shard: address.shard, lsn })
    }

    /// Whether a value of that length is written beside the log before it is put.
    #[must_use]
    pub fn is_staged(&self, address: &Address<'_>, value_len: usize) -> bool {
        self.store(address.shard).is_staged(value_len)
    }

    /// Stores a value of any size under a new version, without copying it. If that has to wait, the
    /// same is to be asked again, with the same value.
    ///
    /// # Errors
    /// [`WriteError`].
    pub fn put_shared(
        &mut self,
        address: &Address<'_>,
        value: &Bytes,
        expiry_ms: u64,
    ) -> Result<Effect, WriteError> {
        let put = SharedPut { key: address.key, version: self.next_version(), expiry_ms, value };
        self.store_mut(address.shard).put_shared(&put)
    }

    /// As [`Keyspace::put_shared`], of a value in memory that is all its own: reads are answered
    /// from there.
    ///
    /// # Errors
    /// [`WriteError`].
    pub fn put_kept(
        &mut self,
        address: &Address<'_>,
        value: &Bytes,
        expiry_ms: u64,
    ) -> Result<Effect, WriteError> {
        let put = SharedPut { key: address.key, version: self.next_version(), expiry_ms, value };
        self.store_mut(address.shard).put_kept(&put)
    }

    /// Deletes a key under a new version.
    ///
    /// # Errors
    /// [`WriteError`].
    pub fn remove(&mut self, address: &Address<'_>) -> Result<Effect, WriteError> {
        let version = self.next_version();
        self.store_mut(address.shard).remove(address.key, version)
    }

    /// Gives a key another expiry (0 = never) under a new version.
    ///
    /// # Errors
    /// [`WriteError`].
    pub fn touch(&mut self, address: &Address<'_>, expiry_ms: u64) -> Result<Effect, WriteError> {
        let version = self.next_version();
        self.store_mut(address.shard).touch(address.key, version, expiry_ms)
    }

    /// Starts compaction of all shards by hand.
    pub fn compact(&mut self) {
        self.stores.iter_mut().for_each(Store::compact);
    }

    /// Counts how long a write to stable storage has taken.
    pub fn note_durable_write(&mut self, ns: u64) {
        self.durable_writes.record(ns);
    }

    /// How long this thread's writes to stable storage have taken.
    #[must_use]
    pub fn durable_writes(&self) -> &Histogram {
        &self.durable_writes
    }

    /// Draws a point of the key space.
    pub fn random_point(&mut self) -> Key {
        let mut point = [0; 20];
        self.random.fill(&mut point);
        Key(point)
    }

    /// Ends a turn of all shards.
    pub fn end_turn(&mut self) {
        for (shard, store) in self.spread.shards().zip(&mut self.stores) {
            store.end_turn();
            self.shortages.look_at(shard, store.shortage(), self.now.monotonic_ns);
        }
    }

    /// Writes the idle frames that are due now; for an orderly shutdown.
    pub fn seal(&mut self) {
        self.stores.iter_mut().for_each(Store::seal);
    }

    /// Whether no shard has anything under way.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        self.stores.iter().all(Store::is_quiet)
    }

    /// When a turn is wanted next, in nanoseconds.
    #[must_use]
    pub fn deadline_ns(&self) -> Option<u64> {
        self.stores.iter().filter_map(Store::deadline_ns).min()
    }

    /// Takes the next disk request of any shard.
    pub fn poll_request(&mut self) -> Option<(ShardIndex, DiskRequest)> {
        let mut stores = self.spread.shards().zip(&mut self.stores);
        stores.find_map(|(shard, store)| store.poll_request().map(|request| (shard, request)))
    }

    /// Takes the next event of any shard.
    pub fn poll_event(&mut self) -> Option<(ShardIndex, Event)> {
        let mut stores = self.spread.shards().zip(&mut self.stores);
        stores.find_map(|(shard, store)| store.poll_event().map(|event| (shard, event)))
    }

    /// Whether any shard has an event to tell.
    #[must_use]
    pub fn has_events(&self) -> bool {
        self.stores.iter().any(Store::has_events)
    }

    /// Takes the end of a shard's disk request.
    pub fn handle_disk(&mut self, shard: ShardIndex, completion: DiskCompletion) {
        self.store_mut(shard).handle_disk(completion);
    }
}
