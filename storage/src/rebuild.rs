//! From a log's records, in append order, to the index: through the same inserts as live commands,
//! with a bounded memory of whose slots were inserted lately.

use std::collections::{HashMap, VecDeque};

use wal::Lsn;
use wal::manifest::{Quarantine, Verdict};
use wal::record::{Key, Namespace, RecordKind, TouchBody, Version};
use wal::replay::ReplayedRecord;

use crate::catalog::{Catalog, Kin};
use crate::index::{Place, SizeClass, Slot, SlotKind};
use crate::knowledge::Mixing;
use crate::store::{REWRITTEN_LEN_MAX, base_len, parts_len, tombstone};

/// Slots whose keys are remembered: an overwrite of one of these leaves no shadowed slot behind.
const REMEMBERED_COUNT_MAX: usize = 64 << 10;
/// Touches without their value that are remembered.
const ORPHANS_COUNT_MAX: usize = 4096;

/// Builds the index.
#[derive(Debug, Default)]
pub(crate) struct Rebuild {
    pub(crate) catalog: Catalog,
    pub(crate) version_max: Version,
    now_ms: u64,
    /// Ranges known to be torn: touches of values there are void.
    torn: Vec<Torn>,
    orphans: Vec<TouchBody>,
    keys: HashMap<Place, Key, Mixing>,
    order: VecDeque<Place>,
}

impl Rebuild {
    pub(crate) fn new(catalog: Catalog, now_ms: u64, quarantine: &[Quarantine]) -> Self {
        Self { catalog, now_ms, torn: torn_ranges(quarantine), ..Self::default() }
    }

    /// Whether a touch was taken whose value turns out to be lost with a torn write.
    pub(crate) fn has_void_touches(&self, quarantine: &[Quarantine]) -> bool {
        let torn = torn_ranges(quarantine);
        self.orphans.iter().any(|body| is_void(&torn, body))
            || self.orphans.len() >= ORPHANS_COUNT_MAX && torn != self.torn
    }

    /// Takes the next record.
    pub(crate) fn take(&mut self, record: &ReplayedRecord) {
        if record.namespace != Namespace::PLAIN {
            return;
        }
        let Some(place) = self.catalog.segments.place_of(&record.location) else { return };
        self.version_max = self.version_max.max(record.version);
        match record.kind {
            RecordKind::Clear => self.clear(place),
            RecordKind::Put => self.put(record, place, SlotKind::Put),
            RecordKind::Tombstone => self.hide(record, place, None),
            RecordKind::Touch => match &record.touch {
                Some(body) => self.touch(record, place, body),
                None => self.put(record, place, SlotKind::Touch),
            },
        }
    }

    fn clear(&mut self, place: Place) {
        self.catalog.clear();
        self.keys.clear();
        self.order.clear();
        if let Some(segment) = self.catalog.segments.get_mut(place.segment) {
            segment.has_clear = true;
        }
    }

    fn put(&mut self, record: &ReplayedRecord, place: Place, kind: SlotKind) {
        if self.is_expired(record) && !record.damaged {
            return self.hide(record, place, None);
        }
        let location = &record.location;
        let slot = self.slot(record, place, kind, parts_len(location));
        let keys = &self.keys;
        self.catalog.put(&record.key, slot, &mut |old| kin(keys, &record.key, old));
        if location.value_len as usize <= REWRITTEN_LEN_MAX {
            // A touch may still come for a larger one: its own expiry does not count then.
            self.catalog.expect(&record.key, place, record.expiry_ms, self.now_ms);
        }
        self.remember(place, record.key);
    }

    /// A record that says that the key is gone.
    fn hide(&mut self, record: &ReplayedRecord, place: Place, base: Option<Place>) {
        self.catalog.note_tombstone(place);
        // An expired put is longer than a tombstone, and is read back like one to see whose it is.
        let len = u64::from(record.location.header_len) + u64::from(record.location.value_len);
        let size_class = SizeClass::of(len);
        let slot = Slot { damaged: record.damaged, size_class, ..tombstone(place) };
        let keys = &self.keys;
        self.catalog.erase(&record.key, slot, &mut |old| {
            if Some(old.place) == base { Kin::Same } else { kin(keys, &record.key, old) }
        });
        self.remember(place, record.key);
    }

    fn touch(&mut self, record: &ReplayedRecord, place: Place, body: &TouchBody) {
        let base = self.catalog.segments.place_of(&body.base);
        let known = self.catalog.candidates(&record.key).any(|slot| Some(slot.place) == base);
        // Nothing but this record says that there is an extent.
        if !known && body.base_lsn != Lsn::ZERO {
            if is_void(&self.torn, body) {
                return;
            }
            if self.orphans.len() < ORPHANS_COUNT_MAX {
                self.orphans.push(*body);
            }
        }
        if self.is_expired(record) && !record.damaged {
            return self.hide(record, place, base);
        }
        let slot = self.slot(record, place, SlotKind::Touch, parts_len(&record.location));
        let len = base_len(&body.base, body.base_lsn);
        let base = base.map(|place| {
            let slot = self.slot(record, place, SlotKind::Put, len);
            Slot { damaged: false, ..slot }
        });
        let keys = &self.keys;
        self.catalog.touch(&record.key, slot, base, &mut |old| kin(keys, &record.key, old));
        if let Some(base) = base {
            self.catalog.expect(&record.key, base.place, record.expiry_ms, self.now_ms);
        }
        self.catalog.expect(&record.key, place, record.expiry_ms, self.now_ms);
        self.remember(place, record.key);
    }

    fn is_expired(&self, record: &ReplayedRecord) -> bool {
        record.expiry_ms != 0
            && record.expiry_ms <= self.now_ms.saturating_sub(self.catalog.expired_stay_ms)
    }

    fn slot(&self, record: &ReplayedRecord, place: Place, kind: SlotKind, len: u64) -> Slot {
        Slot {
            place,
            size_class: SizeClass::of(len),
            kind,
            damaged: record.damaged,
            foreign: false,
            shadowed: false,
            expiry: self.catalog.hint(record.expiry_ms, self.now_ms),
        }
    }

    fn remember(&mut self, place: Place, key: Key) {
        self.keys.insert(place, key);
        self.order.push_back(place);
        if self.order.len() > REMEMBERED_COUNT_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.keys.remove(&oldest);
        }
    }
}

fn kin(keys: &HashMap<Place, Key, Mixing>, key: &Key, slot: &Slot) -> Kin {
    match keys.get(&slot.place) {
        Some(owner) if owner == key => Kin::Same,
        Some(_) => Kin::Other,
        None => Kin::Unknown,
    }
}

/// What a torn write has taken with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Torn {
    lsns: (Lsn, Lsn),
    segment: u64,
    bytes: (u64, u64),
}

fn torn_ranges(quarantine: &[Quarantine]) -> Vec<Torn> {
    let torn = quarantine.iter().filter(|range| range.verdict == Verdict::TailUncertain);
    torn.map(|range| Torn {
        lsns: (range.first_lsn, range.last_lsn),
        segment: range.segment,
        bytes: (range.offset, range.offset.saturating_add(range.len)),
    })
    .collect()
}

/// Whether the value that a touch names is gone with a torn write. A copy made by compaction has
/// the LSN of its original, which is still there: of that only the place tells.
fn is_void(ranges: &[Torn], body: &TouchBody) -> bool {
    let offset = u64::from(body.base.offset);
    ranges.iter().any(|torn| {
        (torn.lsns.0..=torn.lsns.1).contains(&body.base_lsn)
            || torn.segment == body.base.segment && (torn.bytes.0..torn.bytes.1).contains(&offset)
    })
}

#[cfg(test)]
mod tests {
    use wal::disk::FileId;
    use wal::group_commit::OpenSegment;
    use wal::record::Location;

    use super::*;
    use crate::segments::{Segment, SegmentState};

    /// The original still stands in its segment. Found by seed 50009 of `sim store`.
    #[test]
    fn touch_of_a_copy_that_was_torn_is_void() {
        let mut catalog = Catalog::default();
        for id in 1..=2_u32 {
            let open = OpenSegment { id: id.into(), file: FileId(2 + id), len: 1 << 20 };
            catalog.segments.add(Segment::new(open, SegmentState::Sealed)).unwrap();
        }
        let (first_lsn, last_lsn) = (Lsn(20), Lsn(25));
        let (offset, len, verdict) = (8_192, 8_192, Verdict::TailUncertain);
        let torn = [Quarantine { segment: 2, offset, len, first_lsn, last_lsn, verdict }];
        let at = |segment, offset| Location { segment, offset, header_len: 70, value_len: 5_000 };
        let put = ReplayedRecord {
            kind: RecordKind::Put,
            namespace: Namespace::PLAIN,
            key: Key([7; 20]),
            user_key_crc: 0,
            version: Version::default(),
            expiry_ms: 0,
            first_lsn: Lsn(3),
            lsn: Lsn(3),
            location: at(1, 4_176),
            touch: None,
            damaged: false,
        };
        let body = TouchBody { base: at(2, 8_272), user_key_crc: 0, base_lsn: Lsn(3) };
        let (location, lsn) = (at(2, 16_464), Lsn(26));
        let kind = RecordKind::Touch;
        let touch =
            ReplayedRecord { kind, location, lsn, first_lsn: lsn, touch: Some(body), ..put };
        let original = catalog.segments.place_of(&put.location);
        // At first nobody knows what was torn.
        let mut rebuild = Rebuild::new(catalog, 1_000, &[]);
        [&put, &touch].into_iter().for_each(|record| rebuild.take(record));
        assert!(rebuild.has_void_touches(&torn));
        let mut catalog = Catalog::default();
        std::mem::swap(&mut catalog.segments, &mut rebuild.catalog.segments);
        let mut rebuild = Rebuild::new(catalog, 1_000, &torn);
        [&put, &touch].into_iter().for_each(|record| rebuild.take(record));
        let places: Vec<_> =
            rebuild.catalog.candidates(&put.key).map(|slot| Some(slot.place)).collect();
        assert_eq!(places, [original]);
        assert!(!rebuild.has_void_touches(&torn));
    }

    /// Its slot says how much is to be read of it. Found by seed 10100 of `sim store`.
    #[test]
    fn expired_put_keeps_its_length_in_place_of_a_tombstone() {
        let mut catalog = Catalog::default();
        let open = OpenSegment { id: 1, file: FileId(3), len: 1 << 20 };
        catalog.segments.add(Segment::new(open, SegmentState::Sealed)).unwrap();
        let mut rebuild = Rebuild::new(catalog, 1_000, &[]);
        let (header_len, value_len) = (100, 3_000);
        for (number, expiry_ms) in [(1, 0), (2, 999)] {
            let offset = 4_096 * number;
            let mut key = Key([7; 20]);
            // Other keys of one prefix: the second's record has something to hide.
            key.0[19] = u8::try_from(number).unwrap();
            rebuild.keys.clear();
            rebuild.take(&ReplayedRecord {
                kind: RecordKind::Put,
                namespace: Namespace::PLAIN,
                key,
                user_key_crc: 0,
                version: Version::default(),
                expiry_ms,
                first_lsn: Lsn(u64::from(number)),
                lsn: Lsn(u64::from(number)),
                location: Location { segment: 1, offset, header_len, value_len },
                touch: None,
                damaged: false,
            });
        }
        let slots = rebuild.catalog.candidates(&Key([7; 20]));
        let found: Vec<_> = slots.map(|slot| (slot.kind, slot.size_class)).collect();
        let size_class = SizeClass::of(3_100);
        assert_eq!(found, [(SlotKind::Tombstone, size_class), (SlotKind::Put, size_class)]);
    }
}
