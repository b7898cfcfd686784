//! [`Unplaced`]: items that a client has put while this node knew no other one.
//!
//! ```text
//! waiting ── neighbours, some time ──> loading ── record ──> being put ── placed ──> (gone)
//!    ^                                                          │
//!    └───────────────── nobody has it, later again ─────────────┘
//! ```
//!
//! The node holds such items itself; here it remembers to put them at others. Their keys are part
//! of the state that survives a restart.

use std::collections::BTreeMap;

use crate::io::Monotonic;
use crate::kademlia::NodeId;

/// Items that are remembered; a further one stays where it is.
pub const UNPLACED_MAX: usize = 1_024;
/// So long after the first neighbours are known items are put at them: more may come.
pub const PLACE_AFTER_MS: u64 = 3_000;
/// An item that nobody has taken is put again after this.
pub const PLACE_GAP_MS: u64 = 60_000;
/// Items being put at once.
const PLACED_AT_ONCE_MAX: usize = 4;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Waiting,
    Loading,
    BeingPut,
}

/// Which items are to be put at others.
#[derive(Debug, Default)]
pub(super) struct Unplaced {
    items: BTreeMap<NodeId, Phase>,
    /// When the next are due; `None` while there are no neighbours.
    due: Option<Monotonic>,
}

impl Unplaced {
    /// Remembers an item.
    pub(super) fn insert(&mut self, target: NodeId) {
        if self.items.len() < UNPLACED_MAX {
            self.items.entry(target).or_insert(Phase::Waiting);
        }
    }

    /// The items, to be kept.
    pub(super) fn targets(&self) -> Vec<NodeId> {
        self.items.keys().copied().collect()
    }

    pub(super) fn len(&self) -> usize {
        self.items.len()
    }

    /// Returns an item whose record is to be loaded now.
    pub(super) fn poll(&mut self, now: Monotonic, has_neighbours: bool) -> Option<NodeId> {
        if self.items.is_empty() || !has_neighbours {
            self.due = None;
            return None;
        }
        let due = *self.due.get_or_insert_with(|| now.plus_millis(PLACE_AFTER_MS));
        let under_way = self.items.values().filter(|phase| **phase != Phase::Waiting).count();
        if now < due || under_way >= PLACED_AT_ONCE_MAX {
            return None;
        }
        let mut waiting = self.items.iter_mut().filter(|(_, phase)| **phase == Phase::Waiting);
        let (target, phase) = waiting.next()?;
        *phase = Phase::Loading;
        Some(*target)
    }

    /// Takes word of a record that was loaded; tells whether it is to be put now. One that is not
    /// there any more is forgotten.
    pub(super) fn on_loaded(&mut self, target: &NodeId, is_there: bool) -> bool {
        let Some(phase) = self.items.get_mut(target) else { return false };
        if *phase != Phase::Loading {
            return false;
        }
        if is_there {
            *phase = Phase::BeingPut;
        } else {
            self.items.remove(target);
        }
        is_there
    }

    /// Takes word of whether somebody has taken an item.
    pub(super) fn on_put(&mut self, now: Monotonic, target: &NodeId, is_placed: bool) {
        if is_placed {
            self.items.remove(target);
        } else if let Some(phase) = self.items.get_mut(target) {
            *phase = Phase::Waiting;
            self.due = Some(now.plus_millis(PLACE_GAP_MS));
        }
    }

    pub(super) fn deadline(&self) -> Option<Monotonic> {
        let is_waiting = self.items.values().any(|phase| *phase == Phase::Waiting);
        self.due.filter(|_| is_waiting)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Monotonic {
        Monotonic(0).plus_millis(ms)
    }

    fn id(number: u16) -> NodeId {
        let mut id = NodeId([0; 20]);
        id.0[..2].copy_from_slice(&number.to_be_bytes());
        id
    }

    #[test]
    fn items_wait_for_neighbours_and_are_put_until_somebody_has_them() {
        let mut unplaced = Unplaced::default();
        unplaced.insert(id(1));
        assert_eq!((unplaced.poll(at(0), false), unplaced.deadline()), (None, None));
        assert_eq!(unplaced.poll(at(10), true), None);
        assert_eq!(unplaced.deadline(), Some(at(10 + PLACE_AFTER_MS)));
        let now = at(10 + PLACE_AFTER_MS);
        assert_eq!(unplaced.poll(now, true), Some(id(1)));
        assert_eq!((unplaced.poll(now, true), unplaced.deadline()), (None, None));
        assert!(unplaced.on_loaded(&id(1), true) && !unplaced.on_loaded(&id(1), true));
        unplaced.on_put(now, &id(1), false);
        assert_eq!(unplaced.poll(now, true), None);
        let later = now.plus_millis(PLACE_GAP_MS);
        assert_eq!((unplaced.deadline(), unplaced.poll(later, true)), (Some(later), Some(id(1))));
        assert!(unplaced.on_loaded(&id(1), true));
        unplaced.on_put(later, &id(1), true);
        assert_eq!(unplaced.len(), 0);
        // One that has expired meanwhile is nobody's business any more.
        unplaced.insert(id(2));
        assert_eq!(unplaced.poll(later, true), Some(id(2)));
        assert!(!unplaced.on_loaded(&id(2), false));
        assert_eq!(unplaced.len(), 0);
    }

    #[test]
    fn few_are_put_at_once_and_not_more_are_remembered_than_fit() {
        let mut unplaced = Unplaced::default();
        (0..2_000).for_each(|number| unplaced.insert(id(number)));
        assert_eq!((unplaced.len(), unplaced.targets().len()), (UNPLACED_MAX, UNPLACED_MAX));
        unplaced.poll(at(0), true);
        let begun = (0..100).filter(|_| unplaced.poll(at(PLACE_AFTER_MS), true).is_some());
        assert_eq!(begun.count(), PLACED_AT_ONCE_MAX);
    }
}
