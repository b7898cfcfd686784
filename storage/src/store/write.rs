//! The writing commands.

use bytes::Bytes;
use wal::Lsn;
use wal::checksum;
use wal::frame::FRAME_HEADER_LEN;
use wal::group_commit::{AppendError, Appended};
use wal::record::{
    Key, Location, Namespace, RECORD_LEN_MIN, Record, RecordKind, TouchBody,
    UNNUMBERED_VALUE_LEN_MAX, Version,
};

use super::extent::base_len;
use super::pool::{FULL_DISK_WORTH, copies_waste};
use super::read::{Memory, Purpose, found_in};
use super::{Effect, KeyRef, Put, Store};
use crate::cache::CachedRecord;
use crate::catalog::Kin;
use crate::error::{ReadError, WriteError};
use crate::index::{ExpiryHint, Place, SizeClass, Slot, SlotKind, Standing};
use crate::knowledge::{Found, Known, Recent};
use crate::segments::Spot;

/// A touch rewrites values up to this many bytes; larger ones stay where they are, and their
/// records tell the LSN that a touch record names.
pub(crate) const REWRITTEN_LEN_MAX: usize = UNNUMBERED_VALUE_LEN_MAX;

impl Store {
    /// Stores a value. Never reads the disk.
    ///
    /// A value that is written beside the log ([`Store::put_shared`]) is refused as
    /// [`WriteError::Busy`] until that is done: the same is then to be asked again.
    ///
    /// # Errors
    /// [`WriteError`].
    pub fn put(&mut self, put: &Put<'_>) -> Result<Lsn, WriteError> {
        if self.extents.wants(put.value.len()) {
            return self.put_large(put);
        }
        self.put_in_frame(put, None)
    }

    /// Puts a value into the log. Memory answers reads from `kept`, if that is given, which are the
    /// value's bytes, or else from a copy.
    pub(super) fn put_in_frame(
        &mut self,
        put: &Put<'_>,
        kept: Option<&Bytes>,
    ) -> Result<Lsn, WriteError> {
        let KeyRef { id, user_key, hashed } = put.key;
        let standing = self.catalog.standing(&id);
        let memory = self.memory_of(&id, standing.candidates);
        let user_key_crc = checksum::plain(user_key);
        if self.is_conflict(&memory, user_key_crc, put.expiry_ms) {
            return Err(WriteError::KeyConflict);
        }
        let appended = self.append(&Record {
            kind: RecordKind::Put,
            namespace: Namespace::PLAIN,
            key: id,
            hashed,
            user_key,
            version: put.version,
            expiry_ms: put.expiry_ms,
            value: put.value,
        })?;
        let (user_key, value, footprint) = match kept {
            Some(value) => self.values.keep(user_key, value),
            None => self.values.copy(user_key, put.value),
        };
        let record = CachedRecord {
            key: id,
            location: appended.location,
            lsn: appended.lsn,
            version: put.version,
            expiry_ms: put.expiry_ms,
            user_key,
            user_key_crc,
            value,
            footprint,
        };
        self.note_put(memory, Some(&standing), record);
        Ok(appended.lsn)
    }

    /// Deletes a key. Of a key that cannot be read, what it may have been is deleted.
    ///
    /// # Errors
    /// [`WriteError`].
    pub fn remove(&mut self, key: KeyRef<'_>, version: Version) -> Result<Effect, WriteError> {
        self.remove_record(&key.id, Some(key.user_key), version)
    }

    /// Deletes a key, of any user key if none is named.
    pub(super) fn remove_record(
        &mut self,
        id: &Key,
        user_key: Option<&[u8]>,
        version: Version,
    ) -> Result<Effect, WriteError> {
        if let Some(error) = self.log.failure() {
            return Err(WriteError::ReadOnly(error));
        }
        let memory = self.memory(id);
        match memory {
            Memory::Unknown => {
                return Ok(Effect::Pending(self.start_job(*id, Purpose::Lookup)));
            }
            Memory::Known(Known::Failed(error)) => {
                self.resolved.remove(id);
                return Err(WriteError::Unreadable(ReadError::Disk(error)));
            }
            Memory::Known(known) if self.present(known, user_key).is_none() => {
                return Ok(Effect::Done(None));
            }
            Memory::Known(_) | Memory::Damaged => {}
        }
        let appended = self.append(&bare(RecordKind::Tombstone, *id, version, 0, &[]))?;
        let place = self.place_of(&appended.location);
        self.catalog.note_tombstone(place);
        let slot = tombstone(place);
        self.change_slots(id, memory, |catalog, kin| catalog.erase(id, slot, kin));
        self.note_overwriter(id, &appended.location);
        self.note_recent(*id, &appended, Known::Absent, None);
        Ok(Effect::Done(Some(appended.lsn)))
    }

    /// Gives a key another expiry (0 = never) and version. Values of more than 4 KiB are neither
    /// read nor rewritten.
    ///
    /// # Errors
    /// [`WriteError`].
    pub fn touch(
        &mut self,
        key: KeyRef<'_>,
        version: Version,
        expiry_ms: u64,
    ) -> Result<Effect, WriteError> {
        if let Some(error) = self.log.failure() {
            return Err(WriteError::ReadOnly(error));
        }
        let memory = self.memory(&key.id);
        let found = match memory {
            Memory::Unknown => {
                return Ok(Effect::Pending(self.start_job(key.id, Purpose::Rewrite)));
            }
            Memory::Damaged => return Err(WriteError::Unreadable(ReadError::Damaged)),
            Memory::Known(Known::Failed(error)) => {
                self.resolved.remove(&key.id);
                return Err(WriteError::Unreadable(ReadError::Disk(error)));
            }
            Memory::Known(known) => match self.present(known, Some(key.user_key)) {
                None => return Ok(Effect::Done(None)),
                Some(found) => found,
            },
        };
        if found.base.value_len as usize > REWRITTEN_LEN_MAX {
            let lsn = self.touch_in_place(key.id, memory, &found, version, expiry_ms)?;
            return Ok(Effect::Done(Some(lsn)));
        }
        let Some(record) = self.record_in_memory(&key.id, &found) else {
            let id = self.start_value_job(key.id, Purpose::Rewrite, found);
            return Ok(Effect::Pending(id));
        };
        let appended = self.append(&Record {
            kind: RecordKind::Put,
            namespace: Namespace::PLAIN,
            key: key.id,
            hashed: key.hashed && key.user_key == record.user_key,
            user_key: &record.user_key,
            version,
            expiry_ms,
            value: &record.value,
        })?;
        let Appended { lsn, location } = appended;
        let (user_key, value, footprint) = self.values.copy(&record.user_key, &record.value);
        let record = CachedRecord {
            key: key.id,
            location,
            lsn,
            version,
            expiry_ms,
            user_key,
            user_key_crc: record.user_key_crc,
            value,
            footprint,
        };
        self.note_put(memory, None, record);
        Ok(Effect::Done(Some(lsn)))
    }

    /// Appends a touch record.
    fn touch_in_place(
        &mut self,
        key: Key,
        memory: Memory,
        found: &Found,
        version: Version,
        expiry_ms: u64,
    ) -> Result<Lsn, WriteError> {
        let Found { base, user_key_crc, base_lsn, .. } = *found;
        let body = TouchBody { base, user_key_crc, base_lsn }.encode();
        let appended = self.append(&bare(RecordKind::Touch, key, version, expiry_ms, &body))?;
        let place = self.place_of(&appended.location);
        let base_place = self.catalog.segments.place_of(&base);
        let slot = self.slot(place, SlotKind::Touch, parts_len(&appended.location), expiry_ms);
        let base_slot = base_place
            .map(|place| self.slot(place, SlotKind::Put, base_len(&base, base_lsn), expiry_ms));
        self.catalog.expect_no_more(&key, found.place, found.expiry_ms);
        let now_ms = self.now.clock_ms;
        if let Some(base_place) = base_place {
            self.catalog.expect_no_more(&key, base_place, found.expiry_ms);
            self.catalog.expect(&key, base_place, expiry_ms, now_ms);
        }
        self.catalog.expect(&key, place, expiry_ms, now_ms);
        self.change_slots(&key, memory, |catalog, kin| {
            catalog.touch(&key, slot, base_slot, kin);
        });
        let record = self.recents.get(&key).and_then(|recent| recent.record.clone());
        let found = Found { place, kind: SlotKind::Touch, version, expiry_ms, ..*found };
        self.note_recent(key, &appended, Known::Present(found), record);
        Ok(appended.lsn)
    }

    /// Deletes every key with one record.
    ///
    /// # Errors
    /// [`WriteError`].
    pub fn clear(&mut self, version: Version) -> Result<Lsn, WriteError> {
        let record = bare(RecordKind::Clear, Key([0; 20]), version, 0, &[]);
        let Appended { lsn, location } = self.append(&record)?;
        self.catalog.clear();
        if let Some(segment) = self.catalog.segments.by_id_mut(location.segment) {
            segment.has_clear = true;
        }
        self.hot.clear();
        self.recents.clear(lsn);
        self.resolved.clear();
        self.jobs.note_clear();
        Ok(lsn)
    }

    /// The newest record's number that an answer about this key rests on; its reply must wait until
    /// that may be acknowledged.
    #[must_use]
    pub fn observed(&self, key: &KeyRef<'_>) -> Lsn {
        self.recents.observed(&key.id)
    }

    /// Takes a put that was appended into the index, where its prefix has this `standing` if that
    /// was looked up, and into memory.
    fn note_put(&mut self, memory: Memory, standing: Option<&Standing>, record: CachedRecord) {
        let (key, location, expiry_ms) = (record.key, record.location, record.expiry_ms);
        let place = self.place_of(&location);
        let slot = self.slot(place, SlotKind::Put, parts_len(&location), expiry_ms);
        let old = match memory {
            Memory::Known(Known::Present(found)) => Some(found),
            _ => None,
        };
        if let Some(found) = old {
            // Nobody asks for it any more; the next one takes its room.
            self.cache.remove(&Spot::of(&found.base));
        }
        let vacant = standing.filter(|standing| standing.is_vacant());
        let replaced = standing.zip(old).is_some_and(|(standing, found)| {
            self.catalog.put_over(&key, standing, found.place, slot)
        });
        if let Some(standing) = vacant {
            self.catalog.put_first(standing, slot);
        } else if !replaced {
            self.change_slots(&key, memory, |catalog, kin| catalog.put(&key, slot, kin));
            self.note_overwriter(&key, &location);
        }
        self.catalog.expect(&key, place, expiry_ms, self.now.clock_ms);
        let known = Known::Present(found_in(&record, place));
        let appended = Appended { lsn: record.lsn, location };
        self.note_recent(key, &appended, known, Some(record));
    }

    /// Remembers whose an appended record is, if its slot stands before others.
    pub(super) fn note_overwriter(&mut self, key: &Key, location: &Location) {
        if self.catalog.candidates(key).nth(1).is_some() {
            self.overwriters.note(Spot::of(location), key);
        }
    }

    /// Changes a key's slots; `memory` is what is known of the key.
    pub(super) fn change_slots(
        &mut self,
        key: &Key,
        memory: Memory,
        change: impl FnOnce(&mut crate::catalog::Catalog, &mut dyn FnMut(&Slot) -> Kin),
    ) {
        let kin: Vec<(Place, Kin)> = match memory {
            Memory::Known(known @ (Known::Absent | Known::Present(_))) => {
                let own = match known {
                    Known::Present(found) => {
                        [Some(found.place), self.catalog.segments.place_of(&found.base)]
                    }
                    _ => [None; 2],
                };
                let slots = self.catalog.candidates(key);
                let is_own = |slot: &Slot| own.contains(&Some(slot.place));
                let newest = { slots }.position(|slot| is_own(&slot)).unwrap_or(0);
                let relation = |(position, slot): (usize, Slot)| {
                    let kin = match () {
                        () if is_own(&slot) => Kin::Same,
                        () if position < newest => Kin::Other,
                        () => Kin::Older,
                    };
                    (slot.place, kin)
                };
                slots.enumerate().map(relation).collect()
            }
            Memory::Known(Known::Failed(_) | Known::Damaged)
            | Memory::Damaged
            | Memory::Unknown => {
                let slots = self.catalog.candidates(key);
                slots.map(|slot| (slot.place, self.kin_in_memory(key, &slot))).collect()
            }
        };
        change(&mut self.catalog, &mut |slot| {
            let found = kin.iter().find(|(place, _)| *place == slot.place);
            found.map_or(Kin::Unknown, |(_, kin)| *kin)
        });
    }

    pub(super) fn note_recent(
        &mut self,
        key: Key,
        appended: &Appended,
        known: Known,
        record: Option<CachedRecord>,
    ) {
        self.hot.remove(&key);
        self.resolved.remove(&key);
        self.jobs.note_change(&key);
        let lsn = appended.lsn;
        let recent = Recent { lsn, observed: lsn, known, record, cached: true };
        self.recents.note(key, appended.location, recent);
    }

    pub(super) fn slot(&self, place: Place, kind: SlotKind, len: u64, expiry_ms: u64) -> Slot {
        Slot {
            place,
            size_class: SizeClass::of(len),
            kind,
            damaged: false,
            foreign: false,
            shadowed: false,
            expiry: self.catalog.hint(expiry_ms, self.now.clock_ms),
        }
    }

    /// The place of a record that was appended just now.
    pub(super) fn place_of(&self, location: &Location) -> Place {
        let place = self.catalog.segments.place_of(location);
        place.expect("records are appended to segments that the catalog knows")
    }

    pub(super) fn append(&mut self, record: &Record<'_>) -> Result<Appended, WriteError> {
        let len = record.encoded_len_max() as u64;
        let is_value = record.kind == RecordKind::Put;
        if self.supply.is_disk_full() && !self.may_append_on_full_disk(is_value, len) {
            if is_value {
                return Err(WriteError::DiskFull);
            }
            if self.is_making_room() {
                self.starved = true;
                return Err(WriteError::Busy);
            }
            // Nothing becomes free by itself. Where the active segment is full, leaving it lets it
            // be compacted: deletes that came one at a time have filled it with padding.
            if self.log.active_room() >= FRAME_HEADER_LEN as u64 + len {
                return Err(WriteError::DiskFull);
            }
        }
        if is_value && self.holds_puts_back() {
            self.note_held_back();
            return Err(WriteError::Busy);
        }
        match self.log.append(record) {
            Ok(appended) => {
                self.idle_since_ns = None;
                self.compaction.resume();
                self.checkpointing.note_write(record.version);
                self.note_append(&appended);
                self.compaction.note_put(appended.location.record_len());
                Ok(appended)
            }
            Err(AppendError::Failed(error)) => Err(WriteError::ReadOnly(error)),
            Err(AppendError::Congested { .. }) => {
                self.starved = true;
                Err(WriteError::Busy)
            }
            Err(AppendError::NoSegment { frame_len }) => {
                let full = self.supply.is_disk_full();
                let waits = self.is_making_room() && !self.waits_for_anchor();
                let kept = usize::from(waits);
                match self.supply.failure() {
                    _ if full && !is_value && self.supply.want_reserve(frame_len, kept) => {}
                    _ if full && !is_value && waits => {}
                    Some(_) if full => return Err(WriteError::DiskFull),
                    Some(error) => return Err(WriteError::NoSegment(error)),
                    None => self.supply.want(frame_len),
                }
                self.starved = true;
                Err(WriteError::Busy)
            }
        }
    }

    /// On a full disk, new values get what is left of the segment in use while the reserve is
    /// whole; deletes also that, but for what compaction needs to copy any one segment that is
    /// worth it.
    pub(super) fn may_append_on_full_disk(&self, is_value: bool, len: u64) -> bool {
        if is_value {
            return self.supply.is_reserve_complete();
        }
        let longest = self.supply.longest_len();
        let copied = longest - longest / FULL_DISK_WORTH + copies_waste(longest);
        self.waits_for_anchor() || self.room_for_copies() >= copied + len
    }

    /// Bytes that compaction may fill: the log's own and the reserve.
    pub(super) fn room_for_copies(&self) -> u64 {
        self.log.room() + self.supply.pooled_bytes() + self.supply.bytes_under_way()
    }

    pub(super) fn note_append(&mut self, appended: &Appended) {
        let Appended { lsn, location } = *appended;
        let len = location.record_len();
        self.checkpointing.note_append(len);
        self.compaction.note_append(len);
        if let Some(segment) = self.catalog.segments.by_id_mut(location.segment) {
            segment.note_append(lsn, u64::from(location.offset), len);
        }
    }
}

/// Bytes of a record without its padding.
pub(crate) fn parts_len(location: &Location) -> u64 {
    u64::from(location.header_len) + u64::from(location.value_len)
}

/// The slot of a tombstone.
pub(crate) fn tombstone(place: Place) -> Slot {
    Slot {
        place,
        size_class: SizeClass::of(RECORD_LEN_MIN as u64),
        kind: SlotKind::Tombstone,
        damaged: false,
        foreign: false,
        shadowed: false,
        expiry: ExpiryHint::NEVER,
    }
}

pub(super) fn bare(
    kind: RecordKind,
    key: Key,
    version: Version,
    expiry_ms: u64,
    value: &[u8],
) -> Record<'_> {
    Record {
        kind,
        namespace: Namespace::PLAIN,
        key,
        hashed: false,
        user_key: &[],
        version,
        expiry_ms,
        value,
    }
}
