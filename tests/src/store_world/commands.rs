//! The commands of the workload, and whether the store's answers to them are right.

use bytes::Bytes;
use fastrand::Rng;
use storage::{Get, ReadError, ReadId, Value, WriteError};
use wal::Lsn;
use wal::record::{Key, Version, own_half};

use super::adapter::{Effect, Lookup, ScannedKey};
use super::model::KeyState;
use super::recovery::state_of;
use super::swarm::Command;
use super::{Condition, ReadIds, StoreWorld};
use crate::tally::Occurrence;

/// What the store still owes, and the numbers of what comes next.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    reads: ReadIds<ExpectedRead>,
    scans: ReadIds<ExpectedScan>,
    redos: ReadIds<Redo>,
    /// Puts whose values are written, and that were refused as busy then.
    stalled: Vec<Redo>,
    /// Whether a command was refused as busy, and nothing has told that it may be repeated.
    pub(super) writer: bool,
    pub(super) next_version: u128,
    next_value: u64,
    /// How often something was asked again since the last new command.
    redone: u32,
}

/// Asking again makes progress: nobody needs to ask more often between two new commands.
const REDOS_MAX: u32 = 10_000;

impl Waiting {
    /// What is owed although nothing is under way any more.
    pub(super) fn complaint(&self) -> Option<String> {
        let owed = [
            (self.writer, "a refused writer was never told to try again"),
            (!self.reads.is_empty(), "a read was never answered"),
            (!self.scans.is_empty(), "a scan was never answered"),
            (!self.redos.is_empty(), "a command was never told to ask again"),
        ];
        owed.iter().find(|(owed, _)| *owed).map(|(_, what)| (*what).to_owned())
    }
}

#[derive(Debug)]
struct ExpectedRead {
    key: usize,
    state: KeyState,
}

/// A scan under way: what it must find is what holds from its start to its end.
#[derive(Debug)]
struct ExpectedScan {
    from: Key,
    started_ms: u64,
    /// The newest record of each key when it started.
    newest: Vec<Lsn>,
}

/// A command that has had no effect yet.
#[derive(Clone, Debug)]
enum Redo {
    Put { key: usize, value: Bytes, expiry_ms: u64 },
    Remove { key: usize },
    Touch { key: usize, expiry_ms: u64 },
    Lookup { key: usize },
}

impl StoreWorld {
    pub(super) fn command(&mut self) -> Result<(), String> {
        self.summary.operations += 1;
        self.waiting.redone = 0;
        let key = self.rng.usize(..self.mix.keys);
        match self.mix.command(&mut self.rng) {
            Command::Put => self.put(key).map(drop),
            Command::Remove => self.remove(key),
            Command::Touch => {
                let expiry_ms = self.mix.expiry_ms(&mut self.rng, self.time.now.clock_ms);
                self.touch(key, expiry_ms)
            }
            Command::Clear => self.clear().map(drop),
            Command::Get => self.get(key),
            Command::Lookup => self.lookup(key),
            Command::Scan => self.scan(key),
            Command::Compact => {
                self.note(Occurrence::CompactionAsked);
                self.store_mut().compact();
                Ok(())
            }
            Command::Snapshot => {
                self.snapshot();
                Ok(())
            }
            Command::FillDisk => self.toggle_disk_full(),
            Command::Rest => self.rest(),
        }
    }

    /// Does again what had to wait for a read.
    pub(super) fn redo(&mut self, id: ReadId) -> Result<(), String> {
        self.waiting.redone += 1;
        if self.waiting.redone > REDOS_MAX {
            return Err(format!("{:?} is resolved for ever", self.waiting.redos.get(&id)));
        }
        match self.waiting.redos.remove(&id).ok_or("resolved what nobody asked")? {
            Redo::Put { key, value, expiry_ms } => {
                let again = Redo::Put { key, value: value.clone(), expiry_ms };
                if self.put_value(key, value, expiry_ms)? == Err(WriteError::Busy) {
                    self.waiting.stalled.push(again);
                }
                Ok(())
            }
            Redo::Remove { key } => self.remove(key),
            Redo::Touch { key, expiry_ms } => self.touch(key, expiry_ms),
            Redo::Lookup { key } => self.lookup(key),
        }
    }

    fn draw_version(&mut self) -> Version {
        let counter = (self.waiting.next_version >> 64) as u64 + 1;
        let mut version = Version::default();
        version.0[..8].copy_from_slice(&counter.to_be_bytes());
        // The store's own, and those of others.
        let own = own_half(&self.mix.options.identity.store);
        let half = if counter.is_multiple_of(4) { counter.to_be_bytes() } else { own };
        version.0[8..].copy_from_slice(&half);
        self.waiting.next_version = u128::from_be_bytes(version.0) + 1;
        version
    }

    fn draw_value(&mut self) -> Bytes {
        self.waiting.next_value += 1;
        let mut value = vec![0; self.mix.value_len(&mut self.rng)];
        Rng::with_seed(self.waiting.next_value).fill(&mut value);
        value.into()
    }

    /// Notes the outcome of a write; `None` if it was refused, and may have been.
    fn accept<T>(&mut self, result: Result<T, WriteError>) -> Result<Option<T>, String> {
        match result {
            Ok(outcome) => Ok(Some(outcome)),
            Err(WriteError::Busy) => {
                self.waiting.writer = true;
                self.note(Occurrence::PutRefused);
                Ok(None)
            }
            Err(WriteError::DiskFull) if self.is_limited() => {
                self.note(Occurrence::LimitReached);
                Ok(None)
            }
            Err(WriteError::KeyConflict) => Err("keys are said to have one id".to_owned()),
            Err(_) if self.condition != Condition::Sound => Ok(None),
            Err(error) => Err(format!("a write is refused: {error}")),
        }
    }

    fn push(&mut self, key: usize, lsn: Lsn, state: KeyState) {
        self.log_floor.written.push_back((lsn, self.time.now.clock_ms));
        self.model.push(key, lsn, state);
    }

    /// Stores a value; yields what the store said to it.
    pub(super) fn put(&mut self, key: usize) -> Result<Result<Effect, WriteError>, String> {
        let value = self.draw_value();
        let expiry_ms = self.mix.expiry_ms(&mut self.rng, self.time.now.clock_ms);
        self.put_value(key, value, expiry_ms)
    }

    /// Changes the first key in some way; half of the values are empty.
    pub(super) fn change_one_key(&mut self) -> Result<(), String> {
        match self.rng.u8(..12) {
            0 => self.remove(0),
            1 => self.touch(0, 0),
            2 => self.clear().map(drop),
            draw => {
                let value = if draw.is_multiple_of(2) { Bytes::new() } else { self.draw_value() };
                self.put_value(0, value, 0).map(drop)
            }
        }
    }

    /// Does again what was refused as busy with its value written already.
    pub(super) fn retry_stalled(&mut self) -> Result<(), String> {
        for redo in std::mem::take(&mut self.waiting.stalled) {
            let Redo::Put { key, value, expiry_ms } = redo.clone() else { continue };
            if self.put_value(key, value, expiry_ms)? == Err(WriteError::Busy) {
                self.waiting.stalled.push(redo);
            }
        }
        Ok(())
    }

    fn put_value(
        &mut self,
        key: usize,
        value: Bytes,
        expiry_ms: u64,
    ) -> Result<Result<Effect, WriteError>, String> {
        let version = self.draw_version();
        let store = self.store.as_mut().expect("a generation has a store");
        let result = store.put(&self.model.keys()[key], version, expiry_ms, &value);
        match self.accept(result)? {
            Some(Effect::Done(Some(lsn))) => {
                self.note(Occurrence::Put);
                self.push(key, lsn, KeyState::Present { value, version, expiry_ms });
            }
            Some(Effect::Pending(id)) => {
                self.check_observed(key)?;
                self.waiting.redos.insert(id, Redo::Put { key, value, expiry_ms });
            }
            Some(Effect::Done(None)) => return Err("a put has put nothing".to_owned()),
            None => {}
        }
        Ok(result)
    }

    fn remove(&mut self, key: usize) -> Result<(), String> {
        let (_, state) = self.newest(key);
        let version = self.draw_version();
        let store = self.store.as_mut().expect("a generation has a store");
        let result = store.remove(&self.model.keys()[key], version);
        match self.accept(result)? {
            // Of what cannot be read, anything that it may be is deleted.
            Some(Effect::Done(Some(_)))
                if state == KeyState::Absent && self.condition == Condition::Sound =>
            {
                Err(format!("key {key} was removed and was not there"))
            }
            Some(Effect::Done(Some(lsn))) => {
                self.note(Occurrence::Removal);
                self.push(key, lsn, KeyState::Absent);
                Ok(())
            }
            Some(Effect::Done(None)) if state != KeyState::Absent => {
                Err(format!("key {key} is not there to be removed"))
            }
            Some(Effect::Pending(id)) => {
                self.waiting.redos.insert(id, Redo::Remove { key });
                Ok(())
            }
            Some(Effect::Done(None)) | None => self.check_observed(key),
        }
    }

    fn touch(&mut self, key: usize, expiry_ms: u64) -> Result<(), String> {
        let (_, state) = self.newest(key);
        let version = self.draw_version();
        let store = self.store.as_mut().expect("a generation has a store");
        let result = store.touch(&self.model.keys()[key], version, expiry_ms);
        match (self.accept(result)?, state) {
            (None, _) | (Some(Effect::Done(None)), KeyState::Absent) => self.check_observed(key),
            (Some(Effect::Done(Some(lsn))), KeyState::Present { value, .. }) => {
                self.note(Occurrence::Touch);
                self.push(key, lsn, KeyState::Present { value, version, expiry_ms });
                Ok(())
            }
            (Some(Effect::Pending(id)), _) => {
                self.waiting.redos.insert(id, Redo::Touch { key, expiry_ms });
                Ok(())
            }
            (Some(found), state) => {
                Err(format!("key {key} is touched as {found:?} and holds {}", state.brief()))
            }
        }
    }

    /// Deletes everything; tells whether the store took it.
    pub(super) fn clear(&mut self) -> Result<bool, String> {
        let version = self.draw_version();
        let result = self.store_mut().clear(version);
        let accepted = self.accept(result)?;
        if let Some(lsn) = accepted {
            self.log_floor.written.push_back((lsn, self.time.now.clock_ms));
            self.note(Occurrence::Clear);
            self.model.clear(lsn);
        }
        Ok(accepted.is_some())
    }

    /// An answer about a key must wait for the record that it rests on.
    fn check_observed(&mut self, key: usize) -> Result<(), String> {
        let (lsn, _) = self.model.newest(key);
        let observed = self.store().observed(&self.model.keys()[key]);
        if observed < lsn && lsn > self.model.acknowledged_lsn() {
            return Err(format!("key {key} rests on LSN {lsn}, the store says {observed}"));
        }
        Ok(())
    }

    pub(super) fn get(&mut self, key: usize) -> Result<(), String> {
        let (_, state) = self.newest(key);
        self.check_observed(key)?;
        let store = self.store.as_mut().expect("a generation has a store");
        let found = match store.get(&self.model.keys()[key]) {
            Ok(Get::Missing) => KeyState::Absent,
            Ok(Get::Found(value)) => state_of(value),
            Ok(Get::Pending(id)) => {
                self.waiting.reads.insert(id, ExpectedRead { key, state });
                return Ok(());
            }
            Err(_) if self.condition != Condition::Sound => return Ok(()),
            Err(error) => return Err(format!("key {key} cannot be read: {error}")),
        };
        same(key, &found, &state)
    }

    pub(super) fn check_read(
        &mut self,
        id: ReadId,
        result: Result<Option<(Bytes, Value)>, ReadError>,
    ) -> Result<(), String> {
        let ExpectedRead { key, state } =
            self.waiting.reads.remove(&id).ok_or("an answer to no question")?;
        let found = match result {
            Ok(Some((user_key, _))) if user_key != self.model.keys()[key].user_key => {
                return Err(format!("key {key} answers as {user_key:?}"));
            }
            Ok(Some((_, value))) => state_of(value),
            // Whether there is such a key may come out only when its record is read.
            Ok(None) => KeyState::Absent,
            Err(_) if self.condition != Condition::Sound => return Ok(()),
            Err(error) => return Err(format!("key {key} cannot be read: {error}")),
        };
        same(key, &found, &state)
    }

    fn lookup(&mut self, key: usize) -> Result<(), String> {
        let (_, state) = self.newest(key);
        self.check_observed(key)?;
        let store = self.store.as_mut().expect("a generation has a store");
        let found = match store.lookup(&self.model.keys()[key]) {
            Ok(Lookup::Missing) => None,
            Ok(Lookup::Found(entry)) => Some((entry.value_len, entry.version, entry.expiry_ms)),
            Ok(Lookup::Pending(id)) => {
                self.waiting.redos.insert(id, Redo::Lookup { key });
                return Ok(());
            }
            Err(_) if self.condition != Condition::Sound => return Ok(()),
            Err(error) => return Err(format!("key {key} has no entry: {error}")),
        };
        let wanted = match &state {
            KeyState::Absent => None,
            KeyState::Present { value, version, expiry_ms } => {
                Some((value.len(), *version, *expiry_ms))
            }
        };
        if found != wanted {
            return Err(format!("key {key} has entry {found:?}, wanted {}", state.brief()));
        }
        Ok(())
    }

    fn scan(&mut self, key: usize) -> Result<(), String> {
        let from = self.model.keys()[key].id;
        let count = self.rng.usize(1..=self.mix.keys.min(100));
        let newest = (0..self.mix.keys).map(|key| self.model.newest(key).0).collect();
        let id = self.store_mut().scan(from, count);
        let started_ms = self.time.now.clock_ms;
        self.waiting.scans.insert(id, ExpectedScan { from, started_ms, newest });
        Ok(())
    }

    pub(super) fn check_scan(
        &mut self,
        id: ReadId,
        keys: &[ScannedKey],
        next: Option<Key>,
    ) -> Result<(), String> {
        let scan = self.waiting.scans.remove(&id).ok_or("a scan that nobody began")?;
        self.note(Occurrence::Scan);
        let in_range = |key: Key| key >= scan.from && next.is_none_or(|next| key < next);
        let ascending = keys.is_sorted_by(|a, b| a.key < b.key);
        if !ascending || keys.iter().any(|found| !in_range(found.key)) {
            return Err(format!("a scan from {:?} to {next:?} finds {keys:?}", scan.from));
        }
        if next.is_some_and(|next| next <= scan.from) {
            return Err(format!("a scan from {:?} goes on at {next:?}", scan.from));
        }
        let mut known = 0;
        for (index, key) in self.model.keys().iter().enumerate() {
            let found = keys.binary_search_by_key(&key.id, |found| found.key);
            let found = found.ok().map(|at| &keys[at]);
            known += usize::from(found.is_some());
            let (lsn, state) = self.model.newest(index);
            let now_ms = self.time.now.clock_ms;
            let is_steady = lsn == scan.newest[index]
                && state.is_gone(scan.started_ms) == state.is_gone(now_ms);
            if !is_steady || !in_range(key.id) {
                continue;
            }
            let right = match (found, state.seen_at(now_ms)) {
                (None, KeyState::Absent) => true,
                (None, _) => self.condition != Condition::Sound,
                (Some(_), KeyState::Absent) => false,
                (Some(found), KeyState::Present { version, expiry_ms, .. }) => {
                    found.user_key == key.user_key
                        && (found.version, found.expiry_ms) == (version, expiry_ms)
                }
            };
            if !right {
                return Err(format!(
                    "a scan finds {found:?} of key {index}, wanted {}",
                    state.seen_at(now_ms).brief()
                ));
            }
        }
        if known < keys.len() {
            return Err(format!("a scan finds keys that nobody stored: {keys:?}"));
        }
        Ok(())
    }
}

fn same(key: usize, found: &KeyState, wanted: &KeyState) -> Result<(), String> {
    if found == wanted {
        return Ok(());
    }
    Err(format!("key {key} reads as {}, wanted {}", found.brief(), wanted.brief()))
}
