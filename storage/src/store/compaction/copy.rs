//! Records appended again, and the slots that follow them.

use bytes::Bytes;
use wal::Lsn;
use wal::checksum;
use wal::group_commit::{AppendError, Appended};
use wal::record::{Key, Record, RecordKind, TouchBody};

use super::super::read::Memory;
use super::super::write::{bare, parts_len, tombstone};
use super::super::{Store, read};
use super::Original;
use crate::cache::CachedRecord;
use crate::catalog::Kin;
use crate::index::SlotKind;
use crate::knowledge::{Found, Known, Recent};
use crate::segments::Spot;

impl Store {
    /// Appends a live put again. False if the log cannot take it now.
    pub(super) fn copy(&mut self, original: &Original<'_>, touch: Option<Found>) -> bool {
        let Original { header, value, place, location, first_lsn } = *original;
        let key = header.key;
        let (version, expiry_ms) =
            touch.map_or((header.version, header.expiry_ms), |t| (t.version, t.expiry_ms));
        let record = Record { version, expiry_ms, ..header.record(value) };
        // Older touches may be in any segment there is now: with one merged, the record is new.
        let first_lsn = if touch.is_some() { self.log.last_lsn().next() } else { first_lsn };
        let Some(appended) = self.append_copy(&record, first_lsn) else { return false };
        let new = self.place_of(&appended.location);
        let slot = self.slot(new, SlotKind::Put, parts_len(&appended.location), expiry_ms);
        self.catalog.expect_no_more(&key, place, header.expiry_ms);
        if let Some(touch) = touch {
            self.catalog.expect_no_more(&key, touch.place, touch.expiry_ms);
            self.catalog.expect_no_more(&key, place, touch.expiry_ms);
            // In front of all that may be the key's: slots of older touches can stand before that
            // of the put.
            let memory = Memory::Known(Known::Present(touch));
            self.change_slots(&key, memory, |catalog, kin| catalog.put(&key, slot, kin));
        } else if !self.catalog.replace(&key, place, slot) {
            self.catalog.put(&key, slot, &mut |_| Kin::Other);
        }
        self.note_overwriter(&key, &appended.location);
        self.catalog.expect(&key, new, expiry_ms, self.now.clock_ms);
        let old = Spot::of(&location);
        let cached = self.cache.peek(&old).is_some();
        self.cache.remove(&old);
        let user_key = Bytes::copy_from_slice(header.user_key);
        let record = CachedRecord {
            key,
            location: appended.location,
            lsn: appended.lsn,
            version,
            expiry_ms,
            footprint: user_key.len() + value.len(),
            user_key_crc: checksum::plain(&user_key),
            user_key,
            value: Bytes::copy_from_slice(value),
        };
        let known = Known::Present(read::found_in(&record, new));
        self.note_moved(key, &appended, known, Some(record), cached);
        true
    }

    pub(super) fn copy_touch(&mut self, original: &Original<'_>, body: &TouchBody) -> bool {
        let Original { header, place, first_lsn, .. } = original;
        let (key, expiry_ms) = (header.key, header.expiry_ms);
        let encoded = body.encode();
        let record = bare(RecordKind::Touch, key, header.version, expiry_ms, &encoded);
        let Some(appended) = self.append_copy(&record, *first_lsn) else { return false };
        let new = self.place_of(&appended.location);
        let slot = self.slot(new, SlotKind::Touch, parts_len(&appended.location), expiry_ms);
        self.catalog.expect_no_more(&key, *place, expiry_ms);
        self.catalog.replace(&key, *place, slot);
        self.catalog.expect(&key, new, expiry_ms, self.now.clock_ms);
        let found = Found {
            place: new,
            kind: SlotKind::Touch,
            version: header.version,
            expiry_ms,
            user_key_crc: body.user_key_crc,
            base: body.base,
            base_lsn: body.base_lsn,
        };
        self.note_moved(key, &appended, Known::Present(found), None, false);
        true
    }

    /// Appends a tombstone for a deleted or expired key.
    pub(super) fn bury(&mut self, original: &Original<'_>) -> bool {
        let Original { header, place, first_lsn, .. } = original;
        let (key, version) = (header.key, header.version);
        let record = bare(RecordKind::Tombstone, key, version, 0, &[]);
        let Some(appended) = self.append_copy(&record, *first_lsn) else { return false };
        let new = self.place_of(&appended.location);
        self.catalog.note_tombstone(new);
        if self.catalog.replace(&key, *place, tombstone(new)) {
            self.note_moved(key, &appended, Known::Absent, None, false);
        }
        true
    }

    pub(in crate::store) fn append_copy(
        &mut self,
        record: &Record<'_>,
        first_lsn: Lsn,
    ) -> Option<Appended> {
        let result = self.log.append_copy(record, first_lsn);
        self.compaction.lacks_room = result.is_err();
        match result {
            Ok(appended) => {
                self.idle_since_ns = None;
                self.note_append(&appended);
                self.compaction.counters.bytes_copied += appended.location.record_len();
                Some(appended)
            }
            Err(AppendError::NoSegment { frame_len }) => {
                if self.supply.is_disk_full() {
                    self.compaction.out_of_room = !self.supply.want_reserve(frame_len, 0);
                } else if self.supply.failure().is_none() {
                    self.supply.want(frame_len);
                }
                None
            }
            Err(AppendError::Congested { .. } | AppendError::Failed(_)) => None,
        }
    }

    /// Notes that a key's state stands elsewhere now; answers rest on what they rested on before.
    pub(in crate::store) fn note_moved(
        &mut self,
        key: Key,
        appended: &Appended,
        known: Known,
        record: Option<CachedRecord>,
        cached: bool,
    ) {
        self.hot.remove(&key);
        self.resolved.remove(&key);
        self.jobs.note_change(&key);
        let observed = self.recents.get(&key).map_or(Lsn::ZERO, |recent| recent.observed);
        let recent = Recent { lsn: appended.lsn, observed, known, record, cached };
        self.recents.note(key, appended.location, recent);
    }
}
