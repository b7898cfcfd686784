//! What compaction does with an extent: it is stepped over, or moved if a record names it.

use wal::checksum::Place as Seed;
use wal::disk::BLOCK_SIZE;
use wal::extent::{self, RECORD_OFFSET};
use wal::record::{Key, Location, Record, RecordKind, TouchBody};

use super::Store;
use super::compaction::{Newer, Step, Victim};
use super::extent::Named;
use super::extent_copy::Copied;
use super::read::Memory;
use super::write::bare;
use crate::cache::CachedRecord;
use crate::index::{Place, SlotKind};
use crate::knowledge::{Found, Known};
use crate::segments::{LINE_LEN, Spot};

/// An extent's frame and the longest header of its record.
const HEAD_LEN: u64 = RECORD_OFFSET + (96 << 10);

/// What becomes of an extent.
enum Decision {
    Wait,
    Unfit,
    Drop,
    /// It is what this touch names.
    Move(Box<Found>),
}

impl Store {
    /// Deals with the extent of `len` bytes at `seed`.
    pub(super) fn step_extent(&mut self, victim: &mut Victim, seed: &Seed, len: u64) -> Step {
        let head_len = len.min(HEAD_LEN);
        let Some(bytes) = victim.bytes(seed.offset, head_len) else {
            return self.read_window(victim, head_len);
        };
        let record = extent::record_header(&bytes[BLOCK_SIZE..], seed)
            .and_then(|header| Some((header.key, extent::location_of(&header, seed)?)));
        // Without a sound header nobody can know whose it is. If a slot names it all the same, the
        // segment stays.
        if let Some((key, location)) = record {
            let place = Place { segment: victim.number, line: location.offset / LINE_LEN };
            match self.decide_extent(&key, &location, place) {
                Decision::Wait => {
                    self.await_newer_heads(key, place);
                    return Step::Wait;
                }
                Decision::Unfit => return Step::Unfit,
                Decision::Drop => self.catalog.discard(&key, place),
                Decision::Move(found) => match self.copy_of_extent(&location) {
                    None | Some(Copied::UnderWay) => return Step::Wait,
                    Some(Copied::Failed) => return Step::Unfit,
                    Some(Copied::At(base)) => {
                        if !self.name_copy(key, place, &found, base) {
                            return Step::Wait;
                        }
                    }
                },
            }
        }
        victim.offset = seed.offset + len;
        Step::Done(head_len)
    }

    fn decide_extent(&self, key: &Key, location: &Location, place: Place) -> Decision {
        let own = self.catalog.candidates(key).find(|slot| slot.place == place);
        let mut newer = self.newer_slots(key, place);
        if own.is_none() && !newer.any(|slot| slot.kind == SlotKind::Touch) {
            return Decision::Drop;
        }
        match self.newest_of(key, place) {
            Newer::Wait => Decision::Wait,
            Newer::Unfit => Decision::Unfit,
            Newer::None if own.is_none() => Decision::Drop,
            // No record names it, and yet it has a slot.
            Newer::None => Decision::Unfit,
            Newer::Same(slot) => match self.touch_at(key, &slot) {
                Some(found)
                    if found.base == *location && !found.is_expired(self.expiry_clock_ms()) =>
                {
                    // What was overwritten need not be sound.
                    match own.is_some_and(|slot| slot.damaged) {
                        true => Decision::Unfit,
                        false => Decision::Move(Box::new(found)),
                    }
                }
                _ => Decision::Drop,
            },
        }
    }

    /// Appends the record that names the extent's copy. False if the log cannot take it now.
    fn name_copy(&mut self, key: Key, place: Place, found: &Found, base: Location) -> bool {
        let Found { user_key_crc, version, expiry_ms, .. } = *found;
        let body = TouchBody { base, user_key_crc, base_lsn: found.base_lsn }.encode();
        let record: Record<'_> = bare(RecordKind::Touch, key, version, expiry_ms, &body);
        // Older touches may be in any segment there is now: this one is new.
        let first_lsn = self.log.last_lsn().next();
        let Some(appended) = self.append_copy(&record, first_lsn) else { return false };
        self.extents.copy = None;
        self.compaction.counters.bytes_copied +=
            u64::from(base.header_len) + u64::from(base.value_len);
        self.catalog.expect_no_more(&key, found.place, expiry_ms);
        self.catalog.expect_no_more(&key, place, expiry_ms);
        let named = Named { base, user_key_crc, version, expiry_ms };
        let memory = Memory::Known(Known::Present(*found));
        let moved = self.note_extent(key, memory, &appended.location, &named);
        let old = Spot::of(&found.base);
        let cached = self.cache.peek(&old).cloned();
        self.cache.remove(&old);
        let is_cached = cached.is_some();
        let record = cached.map(|cached| CachedRecord { location: base, ..cached });
        self.note_moved(key, &appended, Known::Present(moved), record, is_cached);
        true
    }
}
