//! The writing commands, and what must be remembered until their records are durable.

use std::collections::{BTreeMap, VecDeque};

use bytes::{Bytes, BytesMut};
use wal::Lsn;
use wal::checksum;
use wal::group_commit::{AppendError, Appended};
use wal::record::{Key, Location, Namespace, Record, RecordKind, TouchBody, Version};

use super::{KeyRef, Put, Store};
use crate::cache::{CachedRecord, ReadCache};
use crate::error::WriteError;
use crate::index::{Index, Slot};

/// On a full disk, this much of the active segment is kept for deletes and the like, in bytes.
const FULL_DISK_RESERVE: u64 = 1 << 20;

#[derive(Debug)]
struct RecentValue {
    lsn: Lsn,
    key: Key,
    location: Location,
    record: CachedRecord,
}

/// Effects that are not durable yet: values not to be read from disk, and removals whose absence
/// must not be reported too early. Bounded by the log's pending bytes.
#[derive(Debug, Default)]
pub(super) struct Unsettled {
    values: VecDeque<RecentValue>,
    removed: BTreeMap<Key, Lsn>,
    removals: VecDeque<(Lsn, Key)>,
    cleared: Lsn,
}

impl Unsettled {
    /// The value of record `lsn`, if it is still here.
    pub(super) fn value(&self, lsn: Lsn) -> Option<&CachedRecord> {
        let at = self.values.partition_point(|value| value.lsn < lsn);
        self.values.get(at).filter(|value| value.lsn == lsn).map(|value| &value.record)
    }

    /// The record by which a missing key is missing, or [`Lsn::ZERO`].
    pub(super) fn removal(&self, key: &Key) -> Lsn {
        self.removed.get(key).copied().unwrap_or(Lsn::ZERO).max(self.cleared)
    }

    pub(super) fn note_removal(&mut self, lsn: Lsn, key: Key) {
        self.removed.insert(key, lsn);
        self.removals.push_back((lsn, key));
    }

    /// Forgets what is durable; values that are still current move to the cache.
    pub(super) fn settle(&mut self, durable_lsn: Lsn, index: &Index, cache: &mut ReadCache) {
        while let Some(value) = self.values.pop_front_if(|value| value.lsn <= durable_lsn) {
            let current = index.get(&value.key).is_some_and(|slot| slot.value_lsn == value.lsn);
            if current {
                cache.insert(&value.location, value.record);
            }
        }
        while let Some((lsn, key)) = self.removals.pop_front_if(|(lsn, _)| *lsn <= durable_lsn) {
            if self.removed.get(&key) == Some(&lsn) {
                self.removed.remove(&key);
            }
        }
        if self.cleared <= durable_lsn {
            self.cleared = Lsn::ZERO;
        }
    }
}

impl Store {
    /// Stores a value. Never reads the disk.
    ///
    /// # Errors
    /// [`WriteError`].
    pub fn put(&mut self, put: &Put<'_>) -> Result<Lsn, WriteError> {
        let KeyRef { id, user_key } = put.key;
        let user_key_crc = checksum::plain(user_key);
        let old = self.index.get(&id).copied();
        let live = old.filter(|slot| !slot.is_expired(self.now.clock_ms));
        if live.is_some_and(|slot| slot.user_key_crc != user_key_crc) {
            return Err(WriteError::KeyConflict);
        }
        let Appended { lsn, location } = self.append(&Record {
            kind: RecordKind::Put,
            namespace: Namespace::PLAIN,
            key: id,
            user_key,
            version: put.version,
            expiry_ms: put.expiry_ms,
            value: put.value,
        })?;
        self.forget(id, old);
        let mut memory = BytesMut::with_capacity(user_key.len() + put.value.len());
        memory.extend_from_slice(user_key);
        memory.extend_from_slice(put.value);
        let footprint = memory.len();
        let mut value: Bytes = memory.freeze();
        let user_key = value.split_to(user_key.len());
        let record = CachedRecord { user_key, value, footprint };
        self.unsettled.values.push_back(RecentValue { lsn, key: id, location, record });
        let (version, expiry_ms) = (put.version, put.expiry_ms);
        self.expiry.insert(id, expiry_ms);
        self.index.insert(
            id,
            Slot {
                location,
                version,
                lsn,
                value_lsn: lsn,
                expiry_ms,
                user_key_crc,
                damaged: false,
            },
        );
        Ok(lsn)
    }

    /// Deletes a key; `None` if there is none.
    pub(super) fn remove_now(
        &mut self,
        key: KeyRef<'_>,
        version: Version,
    ) -> Result<Option<Lsn>, WriteError> {
        let Some(slot) = self.live_slot(&key) else {
            return Ok(None);
        };
        let record = bare(RecordKind::Tombstone, key.id, version, 0, &[]);
        let Appended { lsn, .. } = self.append(&record)?;
        self.forget(key.id, Some(slot));
        self.index.remove(&key.id);
        self.unsettled.note_removal(lsn, key.id);
        Ok(Some(lsn))
    }

    /// Gives a key another expiry (0 = never) and version; `None` if there is none. The value is
    /// neither read nor rewritten.
    pub(super) fn touch_now(
        &mut self,
        key: KeyRef<'_>,
        version: Version,
        expiry_ms: u64,
    ) -> Result<Option<Lsn>, WriteError> {
        let Some(slot) = self.live_slot(&key) else {
            return Ok(None);
        };
        let (base, user_key_crc, base_lsn) = (slot.location, slot.user_key_crc, slot.value_lsn);
        let body = TouchBody { base, user_key_crc, base_lsn }.encode();
        let record = bare(RecordKind::Touch, key.id, version, expiry_ms, &body);
        let Appended { lsn, .. } = self.append(&record)?;
        self.expiry.remove(key.id, slot.expiry_ms);
        self.expiry.insert(key.id, expiry_ms);
        self.index.insert(key.id, Slot { version, lsn, expiry_ms, ..slot });
        Ok(Some(lsn))
    }

    /// Deletes every key with one record.
    ///
    /// # Errors
    /// [`WriteError`].
    pub fn clear(&mut self, version: Version) -> Result<Lsn, WriteError> {
        let record = bare(RecordKind::Clear, Key([0; 20]), version, 0, &[]);
        let Appended { lsn, .. } = self.append(&record)?;
        self.index.clear();
        self.expiry.clear();
        self.unsettled.cleared = lsn;
        Ok(lsn)
    }

    /// The newest record's number that an answer about this key rests on; its reply must wait until
    /// that is durable.
    #[must_use]
    pub fn observed(&self, key: &KeyRef<'_>) -> Lsn {
        self.index
            .get(&key.id)
            .map_or(Lsn::ZERO, |slot| slot.lsn)
            .max(self.unsettled.removal(&key.id))
    }

    fn forget(&mut self, key: Key, slot: Option<Slot>) {
        if let Some(slot) = slot {
            self.expiry.remove(key, slot.expiry_ms);
            self.cache.remove(&slot.location);
        }
    }

    fn append(&mut self, record: &Record<'_>) -> Result<Appended, WriteError> {
        let len = record.encoded_len() as u64;
        if record.kind == RecordKind::Put
            && self.supply.is_disk_full()
            && self.log.room() < len + FULL_DISK_RESERVE
        {
            return Err(WriteError::DiskFull);
        }
        match self.log.append(record) {
            Ok(appended) => {
                self.idle_since_ns = None;
                Ok(appended)
            }
            Err(AppendError::Failed(error)) => Err(WriteError::ReadOnly(error)),
            Err(AppendError::Congested { .. }) => {
                self.starved = true;
                Err(WriteError::Busy)
            }
            Err(AppendError::NoSegment { frame_len }) => match self.supply.failure() {
                Some(_) if self.supply.is_disk_full() => Err(WriteError::DiskFull),
                Some(error) => Err(WriteError::ReadOnly(error)),
                None => {
                    self.supply.want(frame_len);
                    self.starved = true;
                    Err(WriteError::Busy)
                }
            },
        }
    }
}

fn bare(kind: RecordKind, key: Key, version: Version, expiry_ms: u64, value: &[u8]) -> Record<'_> {
    Record { kind, namespace: Namespace::PLAIN, key, user_key: &[], version, expiry_ms, value }
}
