//! Lookups and listings in the form that the paged index needs: they may have to read first.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use wal::record::{Key, Version};

use super::{Effect, Event, KeyRef, Lookup, ReadId, ScannedKey, Store, UserKey};
use crate::error::{ReadError, WriteError};

/// Bytes of a key that a listing never parts.
const PREFIX_LEN: usize = 5;

/// A listing whose names are being read.
#[derive(Debug)]
struct Scan {
    keys: Vec<ScannedKey>,
    /// Reads under way, with the place of their key.
    reads: BTreeMap<ReadId, usize>,
    /// Keys whose record cannot be read.
    nameless: BTreeSet<usize>,
    next: Option<Key>,
}

/// Listings under way, and, for tests of the node, resolutions made up.
#[derive(Debug)]
pub(super) struct Scans {
    under_way: BTreeMap<ReadId, Scan>,
    /// Whether every question is answered [`Lookup::Pending`] first.
    reluctant: bool,
    /// With the turns that it still takes.
    pending: VecDeque<(ReadId, Key, u64)>,
    known: BTreeSet<Key>,
    fresh: bool,
}

impl Default for Scans {
    fn default() -> Self {
        Self {
            under_way: BTreeMap::new(),
            reluctant: std::env::var_os("TEST_PENDING_LOOKUPS").is_some(),
            pending: VecDeque::new(),
            known: BTreeSet::new(),
            fresh: false,
        }
    }
}

impl Scans {
    pub(super) fn is_waiting(&self) -> bool {
        !self.pending.is_empty()
    }
}

impl Store {
    /// Looks a key up. Pair it with [`Store::observed`].
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn lookup(&mut self, key: &KeyRef<'_>) -> Result<Lookup, ReadError> {
        if let Some(id) = self.postpone(key.id) {
            return Ok(Lookup::Pending(id));
        }
        Ok(self.entry(key)?.map_or(Lookup::Missing, Lookup::Found))
    }

    /// Deletes a key.
    ///
    /// # Errors
    /// [`WriteError`].
    pub fn remove(&mut self, key: KeyRef<'_>, version: Version) -> Result<Effect, WriteError> {
        match self.postpone(key.id) {
            Some(id) => Ok(Effect::Pending(id)),
            None => self.remove_now(key, version).map(Effect::Done),
        }
    }

    /// Gives a key another expiry (0 = never) and version.
    ///
    /// # Errors
    /// [`WriteError`].
    pub fn touch(
        &mut self,
        key: KeyRef<'_>,
        version: Version,
        expiry_ms: u64,
    ) -> Result<Effect, WriteError> {
        match self.postpone(key.id) {
            Some(id) => Ok(Effect::Pending(id)),
            None => self.touch_now(key, version, expiry_ms).map(Effect::Done),
        }
    }

    /// Lists about `count` live keys from `from` on, in key order; [`Event::Scanned`] will tell.
    pub fn scan(&mut self, from: Key, count: usize) -> ReadId {
        let id = self.reads.issue();
        let (mut found, mut next): (Vec<Key>, _) = (Vec::new(), None);
        for key in self.keys_from(from) {
            let parted =
                found.last().is_some_and(|last| last.0[..PREFIX_LEN] != key.0[..PREFIX_LEN]);
            if found.len() >= count && parted {
                next = Some(key);
                break;
            }
            found.push(key);
        }
        let mut scan =
            Scan { keys: Vec::new(), reads: BTreeMap::new(), nameless: BTreeSet::new(), next };
        for key in found {
            let Some(slot) = self.index.get(&key).copied() else { continue };
            let user_key = match self.user_key(key) {
                Ok(UserKey::Found(name)) => name,
                Ok(UserKey::Pending(read)) => {
                    scan.reads.insert(read, scan.keys.len());
                    Bytes::new()
                }
                Ok(UserKey::Missing) | Err(_) => continue,
            };
            let (version, expiry_ms) = (slot.version, slot.expiry_ms);
            scan.keys.push(ScannedKey { key, user_key, version, expiry_ms });
        }
        self.finish_scan(id, scan);
        id
    }

    fn finish_scan(&mut self, id: ReadId, scan: Scan) {
        if !scan.reads.is_empty() {
            self.scans.under_way.insert(id, scan);
            return;
        }
        let Scan { keys, nameless, next, .. } = scan;
        let named = keys.into_iter().zip(0..).filter(|(_, place)| !nameless.contains(place));
        let keys = named.map(|(key, _)| key).collect();
        self.events.push_back(Event::Scanned { id, keys, next });
    }

    /// Tells an event to the listing that waits for it, or to the owner.
    pub(super) fn tell(&mut self, event: Event) {
        let Event::Read { id: read, result } = &event else {
            self.events.push_back(event);
            return;
        };
        let waiting = self.scans.under_way.iter().find(|(_, scan)| scan.reads.contains_key(read));
        let Some(id) = waiting.map(|(id, _)| *id) else {
            self.events.push_back(event);
            return;
        };
        let Some(mut scan) = self.scans.under_way.remove(&id) else { return };
        if let Some(place) = scan.reads.remove(read) {
            match result {
                Ok(Some((name, _))) => scan.keys[place].user_key = name.clone(),
                Ok(None) | Err(_) => {
                    scan.nameless.insert(place);
                }
            }
        }
        self.finish_scan(id, scan);
    }

    fn postpone(&mut self, key: Key) -> Option<ReadId> {
        if !self.scans.reluctant || self.scans.known.contains(&key) {
            return None;
        }
        let id = self.reads.issue();
        self.scans.pending.push_back((id, key, id.0 % 3));
        Some(id)
    }

    /// Ends the made-up resolutions; what they told stays known for one turn.
    pub(super) fn resolve_pending(&mut self) {
        for (id, key, turns) in std::mem::take(&mut self.scans.pending) {
            if turns > 0 {
                self.scans.pending.push_back((id, key, turns - 1));
                continue;
            }
            self.scans.known.insert(key);
            self.scans.fresh = true;
            self.events.push_back(Event::Resolved { id });
        }
    }

    pub(super) fn forget_resolved(&mut self) {
        // The events of a turn are handled before it ends; what they resolved may go then.
        if self.scans.fresh && self.events.is_empty() {
            self.scans.known.clear();
            self.scans.fresh = false;
        }
    }
}
