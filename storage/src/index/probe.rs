//! Lets the bench of the index's memory reach the index; not part of the interface.

use wal::record::Key;

use super::slot::{ExpiryHint, Place, Prefix, SegmentNumber, SizeClass, Slot, SlotKind};
use super::table::Index;
use super::walk::{Cursor, Keep};

/// An index whose records are named by a serial number.
#[derive(Debug, Default)]
pub struct IndexProbe {
    index: Index,
    cursor: Option<Cursor>,
}

fn slot(serial: u64) -> Slot {
    let segment = u16::try_from(serial >> 22).unwrap_or(0);
    let line = u32::try_from(serial & 0x3F_FFFF).unwrap_or(0);
    Slot {
        place: Place { segment: SegmentNumber(segment), line },
        size_class: SizeClass::of(400),
        kind: SlotKind::Put,
        damaged: false,
        foreign: false,
        shadowed: false,
        expiry: ExpiryHint::NEVER,
    }
}

impl IndexProbe {
    /// Inserts the record numbered `serial`, below 2^36.
    pub fn insert(&mut self, key: &Key, serial: u64) {
        self.index.insert(key, slot(serial));
    }

    /// Counts the slots that may belong to `key`.
    #[must_use]
    pub fn candidates(&self, key: &Key) -> usize {
        self.index.candidates(key).count()
    }

    /// Removes the record numbered `serial`; tells whether it was there.
    pub fn remove(&mut self, key: &Key, serial: u64) -> bool {
        self.index.remove(key, slot(serial).place).is_some()
    }

    /// Visits about `slots` slots, going round; drops none.
    pub fn sweep(&mut self, slots: usize) {
        let cursor = self.cursor.unwrap_or_else(|| Prefix(0).into());
        self.cursor = self.index.sweep(cursor, slots, &mut |_, _| Keep::Stay);
    }

    /// Begins a cut.
    pub fn begin_cut(&mut self) {
        self.index.begin_cut();
    }

    /// Takes a page of the cut; false after the last.
    pub fn next_cut_page(&mut self) -> bool {
        self.index.next_cut_page().is_some()
    }

    /// Ends the cut.
    pub fn end_cut(&mut self) {
        self.index.end_cut();
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.index.clear();
    }

    /// Gives back some unused memory; false if there is none.
    pub fn release(&mut self) -> bool {
        self.index.release()
    }

    /// Number of slots.
    #[must_use]
    pub fn slots(&self) -> u64 {
        self.index.len()
    }

    /// Bytes of memory by the index's own account.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.index.bytes()
    }
}
