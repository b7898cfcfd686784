//! [`Records`]: the work that a Mainline node gives the engine, and what has become of it.
//!
//! Nothing is called stored before it is durable, nor read before what it rests on is. Writes that
//! the log has no room for wait here, in order, and so does the answer to them.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use storage::{Effect, Event, Get, KeyRef, ReadId, WriteError};
use wal::Lsn;

use super::keys::{self, PeersKey};
use super::walk::{Walk, WalkKind, WalkStep};
use crate::kademlia::NodeId;
use crate::keyspace::{Address, Keyspace, ShardIndex, Wait};
use crate::mainline::node::event::{Scanned, StoreWork};
use crate::mainline::retention::Held;
use crate::mainline::server::{LoadFailed, StoreFailed};

/// Removals that wait until the disk has told whether there is something to remove.
const REMOVALS_MAX: usize = 1_024;

/// What has become of work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// An item's record, as it is on disk or about to be.
    Loaded(NodeId, Result<Option<Bytes>, LoadFailed>),
    /// An item's record is durable, or may be lost.
    Stored(NodeId, Result<(), StoreFailed>),
    /// Items of a scan, and whether they are the last.
    Scanned(Vec<Scanned>, bool),
    /// Items of a page, and whether they are the last.
    Page(Vec<Held>, bool),
    /// A torrent's peers as they were written in an earlier life.
    Peers(NodeId, Bytes),
    /// There are no more such.
    PeersRestored,
    /// The state is durable, or will not be.
    StateSaved,
    /// The state as it was written in an earlier life.
    State(Option<Bytes>),
}

/// What waits until a record is durable.
#[derive(Debug)]
enum Waiting {
    Stored(NodeId),
    Loaded(NodeId, Option<Bytes>),
    /// Nobody but a stop.
    Peers,
    State,
}

#[derive(Debug)]
enum Reading {
    /// An item, and what its answer has looked at.
    Item(NodeId, Option<Lsn>),
    State,
    /// Whether there is something to remove.
    Removal(Removal),
    /// A page of a walk.
    WalkPage(WalkKind),
    /// A value that a walk wants, and which.
    WalkValue(WalkKind, usize),
}

#[derive(Clone, Copy, Debug)]
enum Removal {
    Item(NodeId),
    Peers(NodeId),
}

#[derive(Debug)]
enum Write {
    Item { target: NodeId, record: Bytes, expiry_ms: u64 },
    Peers { info_hash: NodeId, record: Vec<u8>, expiry_ms: u64 },
    State(Vec<u8>),
}

/// Work under way.
#[derive(Debug, Default)]
pub struct Records {
    /// By shard, in the order of their records.
    waiting: BTreeMap<ShardIndex, VecDeque<(Lsn, Waiting)>>,
    reading: BTreeMap<(ShardIndex, ReadId), Reading>,
    /// Writes that the log has had no room for.
    refused: VecDeque<Write>,
    walks: BTreeMap<WalkKind, Walk>,
    removals: usize,
    outcomes: VecDeque<Outcome>,
}

impl Records {
    /// Takes work.
    pub fn take(&mut self, keyspace: &mut Keyspace, work: StoreWork) {
        match work {
            StoreWork::Load { target } => self.load(keyspace, target),
            StoreWork::Store { target, record, expiry_ms } => {
                self.write(keyspace, Write::Item { target, record, expiry_ms });
            }
            StoreWork::Remove { target } => self.remove(keyspace, Removal::Item(target)),
            StoreWork::StorePeers { info_hash, record: Some((record, expiry_ms)) } => {
                self.write(keyspace, Write::Peers { info_hash, record, expiry_ms });
            }
            StoreWork::StorePeers { info_hash, record: None } => {
                self.remove(keyspace, Removal::Peers(info_hash));
            }
            StoreWork::Scan { after, count } => {
                self.walk(keyspace, Walk::for_scan(after.as_ref(), count));
            }
            StoreWork::List(page) => self.walk(keyspace, Walk::for_page(&page)),
            StoreWork::SaveState(state) => self.write(keyspace, Write::State(state)),
        }
    }

    /// Asks for the state of an earlier life.
    pub fn load_state(&mut self, keyspace: &mut Keyspace) {
        let address = address(keyspace, keys::state());
        match keyspace.store_mut(address.shard).get(&address.key) {
            Ok(Get::Missing) => self.outcomes.push_back(Outcome::State(None)),
            Ok(Get::Found(value)) => self.outcomes.push_back(Outcome::State(Some(value.value))),
            Ok(Get::Pending(id)) => drop(self.reading.insert((address.shard, id), Reading::State)),
            Err(error) => {
                tracing::error!(%error, "the node's state cannot be read; it starts anew");
                self.outcomes.push_back(Outcome::State(None));
            }
        }
    }

    /// Asks for all torrents' peers of an earlier life.
    pub fn restore_peers(&mut self, keyspace: &mut Keyspace) {
        self.walk(keyspace, Walk::for_peers());
    }

    /// Takes out what has become of work.
    #[must_use]
    pub fn poll(&mut self) -> Option<Outcome> {
        self.outcomes.pop_front()
    }

    /// Whether nobody waits for anything that will still be written.
    #[must_use]
    pub fn is_settled(&self, keyspace: &Keyspace) -> bool {
        let is_open = |(shard, waiting): (&ShardIndex, &VecDeque<_>)| {
            !waiting.is_empty() && keyspace.store(*shard).failure().is_none()
        };
        self.outcomes.is_empty() && self.refused.is_empty() && !self.waiting.iter().any(is_open)
    }

    /// Whether the log has taken everything so far.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.refused.is_empty()
    }

    /// Takes an event of a store.
    pub fn handle_event(&mut self, keyspace: &mut Keyspace, shard: ShardIndex, event: &Event) {
        match event {
            Event::Durable(_) => self.release(keyspace, shard),
            Event::Failed(_) => self.fail(shard),
            Event::Writable => self.retry(keyspace),
            Event::Read { id, result } => {
                let Some(reading) = self.reading.remove(&(shard, *id)) else { return };
                let found = match result {
                    Ok(found) => Ok(found.as_ref().map(|(_, value)| value.value.clone())),
                    Err(error) => {
                        tracing::warn!(%error, "a record of a Mainline node cannot be read");
                        Err(LoadFailed)
                    }
                };
                self.on_read(keyspace, shard, reading, found);
            }
            Event::Resolved { id } => {
                if let Some(Reading::Removal(removal)) = self.reading.remove(&(shard, *id)) {
                    self.removals -= 1;
                    self.remove(keyspace, removal);
                }
            }
            Event::Scanned { id, keys, next } => {
                let Some(Reading::WalkPage(kind)) = self.reading.remove(&(shard, *id)) else {
                    return;
                };
                if let Some(walk) = self.walks.get_mut(&kind) {
                    walk.on_page(keys, *next);
                    self.advance(keyspace, kind);
                }
            }
            _ => {}
        }
    }

    fn load(&mut self, keyspace: &mut Keyspace, target: NodeId) {
        let address = address(keyspace, keys::item(&target));
        let observed = keyspace.observed(&address).map(|wait| wait.lsn);
        match keyspace.store_mut(address.shard).get(&address.key) {
            Ok(Get::Missing) => self.loaded(keyspace, address.shard, (target, None), observed),
            Ok(Get::Found(value)) => {
                let found = (target, Some(value.value));
                self.loaded(keyspace, address.shard, found, observed);
            }
            Ok(Get::Pending(id)) => {
                self.reading.insert((address.shard, id), Reading::Item(target, observed));
            }
            Err(error) => {
                tracing::warn!(%error, "an item cannot be read");
                self.outcomes.push_back(Outcome::Loaded(target, Err(LoadFailed)));
            }
        }
    }

    /// Tells what was loaded, once what it rests on is durable.
    fn loaded(
        &mut self,
        keyspace: &Keyspace,
        shard: ShardIndex,
        (target, record): (NodeId, Option<Bytes>),
        observed: Option<Lsn>,
    ) {
        match observed {
            // It never will be.
            Some(_) if keyspace.store(shard).failure().is_some() => {
                self.outcomes.push_back(Outcome::Loaded(target, Err(LoadFailed)));
            }
            Some(lsn) => self.wait(Wait { shard, lsn }, Waiting::Loaded(target, record)),
            None => self.outcomes.push_back(Outcome::Loaded(target, Ok(record))),
        }
    }

    fn on_read(
        &mut self,
        keyspace: &mut Keyspace,
        shard: ShardIndex,
        reading: Reading,
        found: Result<Option<Bytes>, LoadFailed>,
    ) {
        match (reading, found) {
            (Reading::Item(target, observed), Ok(record)) => {
                let acknowledged = keyspace.store(shard).acknowledged_lsn();
                let observed = observed.filter(|lsn| *lsn > acknowledged);
                self.loaded(keyspace, shard, (target, record), observed);
            }
            (Reading::Item(target, _), Err(error)) => {
                self.outcomes.push_back(Outcome::Loaded(target, Err(error)));
            }
            (Reading::State, found) => {
                self.outcomes.push_back(Outcome::State(found.ok().flatten()));
            }
            (Reading::WalkValue(kind, index), found) => {
                if let Some(walk) = self.walks.get_mut(&kind) {
                    walk.on_value(index, found.ok().flatten());
                    self.advance(keyspace, kind);
                }
            }
            (Reading::Removal(_) | Reading::WalkPage(_), _) => {}
        }
    }

    fn write(&mut self, keyspace: &mut Keyspace, write: Write) {
        self.refused.push_back(write);
        // Those before it have been refused just now; the log tells when it can take more.
        if self.refused.len() == 1 {
            self.retry(keyspace);
        }
    }

    /// Writes as much as the log takes of what it has had no room for.
    pub fn retry(&mut self, keyspace: &mut Keyspace) {
        while let Some(write) = self.refused.pop_front() {
            match put(keyspace, &write) {
                Ok(wait) => match write {
                    Write::Item { target, .. } => self.wait(wait, Waiting::Stored(target)),
                    Write::State(_) => self.wait(wait, Waiting::State),
                    Write::Peers { .. } => self.wait(wait, Waiting::Peers),
                },
                Err(WriteError::Busy) => return self.refused.push_front(write),
                Err(error) => {
                    tracing::warn!(%error, "a record of a Mainline node cannot be written");
                    match write {
                        Write::Item { target, .. } => {
                            self.outcomes.push_back(Outcome::Stored(target, Err(StoreFailed)));
                        }
                        Write::State(_) => self.outcomes.push_back(Outcome::StateSaved),
                        Write::Peers { .. } => {}
                    }
                }
            }
        }
    }

    /// Removes a record; nobody waits for it. What cannot be removed expires by itself.
    fn remove(&mut self, keyspace: &mut Keyspace, removal: Removal) {
        let (shard, effect) = match removal {
            Removal::Item(target) => {
                let address = address(keyspace, keys::item(&target));
                (address.shard, keyspace.remove(&address))
            }
            Removal::Peers(info_hash) => {
                let key = PeersKey::of(&info_hash);
                let address = address(keyspace, key.key());
                (address.shard, keyspace.remove(&address))
            }
        };
        if let Ok(Effect::Pending(id)) = effect
            && self.removals < REMOVALS_MAX
        {
            self.removals += 1;
            self.reading.insert((shard, id), Reading::Removal(removal));
        }
    }

    fn wait(&mut self, wait: Wait, waiting: Waiting) {
        let queue = self.waiting.entry(wait.shard).or_default();
        // A load may rest on an older record than the newest that waits.
        let at = queue.partition_point(|(lsn, _)| *lsn <= wait.lsn);
        queue.insert(at, (wait.lsn, waiting));
    }

    fn release(&mut self, keyspace: &Keyspace, shard: ShardIndex) {
        let Some(queue) = self.waiting.get_mut(&shard) else { return };
        let acknowledged = keyspace.store(shard).acknowledged_lsn();
        while queue.front().is_some_and(|(lsn, _)| *lsn <= acknowledged) {
            let Some((_, waiting)) = queue.pop_front() else { return };
            self.outcomes.push_back(match waiting {
                Waiting::Stored(target) => Outcome::Stored(target, Ok(())),
                Waiting::Loaded(target, record) => Outcome::Loaded(target, Ok(record)),
                Waiting::Peers => continue,
                Waiting::State => Outcome::StateSaved,
            });
        }
    }

    /// The shard is read-only: what is not durable may be lost.
    fn fail(&mut self, shard: ShardIndex) {
        for (_, waiting) in self.waiting.remove(&shard).into_iter().flatten() {
            self.outcomes.push_back(match waiting {
                Waiting::Stored(target) => Outcome::Stored(target, Err(StoreFailed)),
                Waiting::Loaded(target, _) => Outcome::Loaded(target, Err(LoadFailed)),
                Waiting::Peers => continue,
                Waiting::State => Outcome::StateSaved,
            });
        }
    }

    fn walk(&mut self, keyspace: &mut Keyspace, walk: Walk) {
        let kind = walk.kind();
        self.walks.insert(kind, walk);
        self.advance(keyspace, kind);
    }

    /// Takes a walk as far as it gets without the disk.
    fn advance(&mut self, keyspace: &mut Keyspace, kind: WalkKind) {
        let Some(mut walk) = self.walks.remove(&kind) else { return };
        loop {
            match walk.step() {
                WalkStep::Wait => return drop(self.walks.insert(kind, walk)),
                WalkStep::Scan { from, count } => {
                    let count = count.div_ceil(keyspace.shards().len());
                    for shard in keyspace.shards() {
                        let id = keyspace.store_mut(shard).scan(from, count);
                        self.reading.insert((shard, id), Reading::WalkPage(kind));
                        walk.on_asked();
                    }
                }
                WalkStep::Read { index, key, user_key } => {
                    let address = address(keyspace, KeyRef::given(key, &user_key));
                    match keyspace.store_mut(address.shard).get(&address.key) {
                        Ok(Get::Found(value)) => walk.on_value(index, Some(value.value)),
                        Ok(Get::Missing) | Err(_) => walk.on_value(index, None),
                        Ok(Get::Pending(id)) => {
                            let reading = Reading::WalkValue(kind, index);
                            self.reading.insert((address.shard, id), reading);
                        }
                    }
                }
                WalkStep::Hand(outcome) => self.outcomes.push_back(outcome),
                WalkStep::Over => return,
            }
        }
    }
}

fn address<'a>(keyspace: &Keyspace, key: KeyRef<'a>) -> Address<'a> {
    Address { shard: keyspace.shard_of(key.id), key }
}

fn put(keyspace: &mut Keyspace, write: &Write) -> Result<Wait, WriteError> {
    match write {
        Write::Item { target, record, expiry_ms } => {
            let address = address(keyspace, keys::item(target));
            keyspace.put(&address, record, *expiry_ms)
        }
        Write::Peers { info_hash, record, expiry_ms } => {
            let key = PeersKey::of(info_hash);
            let address = address(keyspace, key.key());
            keyspace.put(&address, record, *expiry_ms)
        }
        Write::State(state) => {
            let address = address(keyspace, keys::state());
            keyspace.put(&address, state, 0)
        }
    }
}
