//! [`Repair`]: passes of comparisons with the other holders of the node's ranges.
//!
//! ```text
//! plan: with whom which ranges are shared         found out anew when members have changed
//! pass: with each of them range after range ── equal or mended ──> the next one at once
//!                                           └─ no answer ──> this one waits for the next pass
//! ```
//!
//! Passes begin `repair_every_ms` apart. Within one nothing waits but for the pace: what was
//! compared counts against `repair_bytes_per_second`, and so does, apart from it, what is moved. A
//! change of members goes on where the pass was: what it adds behind that is compared in the next
//! pass. So all ranges have been compared with all holders that answer after the rest of one pass
//! and a second one.
//!
//! Ranges that the node itself still lacks are left out, and so are nodes that still join: who is
//! filled fetches what there is.

use std::collections::BTreeMap;

use storage::Now;
use wal::record::Key;

use super::{ClusterNode, NodeId, Phase, PrefixSet, placement};
use crate::cluster::exchange::{Exchange, Purpose};
use crate::cluster::pace::Pace;
use crate::cluster::prefix::Prefix;

/// Comparisons at the same time, each with another node.
const COMPARISONS_MAX: usize = 2;
/// What comparing one key counts, in bytes.
const KEY_BYTES: u64 = 128;

/// The least key.
const FIRST: Key = Key([0; 20]);

/// Where the pass with one node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Course {
    /// Where this pass began: where the one before had stopped.
    from: Key,
    /// The next range is not before that.
    at: Key,
    /// Whether it has come round the end of all keys.
    has_wrapped: bool,
    /// Whether this pass is over.
    is_over: bool,
}

impl Course {
    const NEW: Self = Self { from: FIRST, at: FIRST, has_wrapped: false, is_over: false };

    /// The next range of this pass.
    fn next(&mut self, ranges: &PrefixSet) -> Option<Prefix> {
        while !self.is_over {
            let next = ranges.first_from(&self.at);
            let is_within = |prefix: &Prefix| !self.has_wrapped || prefix.first_key() < self.from;
            if let Some(prefix) = next.filter(is_within) {
                return Some(prefix);
            }
            self.come_round();
        }
        None
    }

    fn come_round(&mut self) {
        if self.has_wrapped || self.from == FIRST {
            *self = Self { is_over: true, ..Self::NEW };
        } else {
            (self.has_wrapped, self.at) = (true, FIRST);
        }
    }

    /// A range was compared.
    fn pass(&mut self, prefix: &Prefix) {
        match prefix.end() {
            Some(end) => self.at = end,
            None => self.come_round(),
        }
    }

    /// The other node does not answer: the next pass goes on from here.
    fn stop(&mut self) {
        *self = Self { from: self.at, at: self.at, has_wrapped: false, is_over: true };
    }
}

/// Passes of comparisons.
#[derive(Debug, Default)]
pub(super) struct Repair {
    /// What is shared with whom; none: members have changed since it was found out.
    plan: Option<BTreeMap<NodeId, PrefixSet>>,
    courses: BTreeMap<NodeId, Course>,
    /// With whom the last comparison began.
    last: NodeId,
    /// When the next pass begins.
    pass_at_ns: u64,
    /// Of comparisons.
    pace: Pace,
    /// When there may be something to do.
    pub(super) wake_at_ns: u64,
}

impl Repair {
    /// Members have changed.
    pub(super) fn replace(&mut self) {
        self.plan = None;
    }
}

impl ClusterNode {
    /// With whom which ranges are shared.
    pub(super) fn shared_ranges(&self) -> BTreeMap<NodeId, PrefixSet> {
        let (placed, replicas) = (&self.view.placed, self.settings.replicas);
        let mut shared = BTreeMap::<NodeId, PrefixSet>::new();
        for prefix in self.mine.iter() {
            for (region, set) in placement::regions(*prefix, placed, replicas) {
                for node in set.into_iter().filter(|node| *node != self.own) {
                    shared.entry(node).or_default().insert(region);
                }
            }
        }
        shared
    }

    fn find_courses(&mut self) {
        if self.background.repair.plan.is_some() {
            return;
        }
        let plan = self.shared_ranges();
        let courses = &mut self.background.repair.courses;
        courses.retain(|node, _| plan.contains_key(node));
        // Newcomers take part in the pass that is under way, if one is.
        let is_over = courses.values().all(|course| course.is_over);
        for node in plan.keys() {
            courses.entry(*node).or_insert(Course { is_over, ..Course::NEW });
        }
        self.background.repair.plan = Some(plan);
    }

    /// Goes on with the pass, or begins the next one.
    pub(super) fn repair_next(&mut self, now: Now) {
        let at_ns = now.monotonic_ns;
        self.find_courses();
        let repair = &mut self.background.repair;
        if repair.courses.values().all(|course| course.is_over) {
            repair.wake_at_ns = repair.pass_at_ns;
            if repair.pass_at_ns > at_ns {
                return;
            }
            repair.pass_at_ns = at_ns + self.settings.repair_every_ms * 1_000_000;
            repair.wake_at_ns = repair.pass_at_ns;
            repair.courses.values_mut().for_each(|course| course.is_over = false);
        }
        loop {
            let pace = self.background.repair.pace;
            if self.comparisons().count() >= COMPARISONS_MAX {
                // The end of one goes on here.
                self.background.repair.wake_at_ns = u64::MAX;
                return;
            }
            if !pace.is_free(at_ns) {
                self.background.repair.wake_at_ns = pace.free_at_ns();
                return;
            }
            let Some((peer, prefix)) = self.next_comparison() else { break };
            self.background.repair.last = peer;
            self.exchange(now, peer, prefix, Purpose::Repair);
        }
        let repair = &mut self.background.repair;
        let is_over = repair.courses.values().all(|course| course.is_over);
        repair.wake_at_ns = if is_over { repair.pass_at_ns } else { u64::MAX };
    }

    fn comparisons(&self) -> impl Iterator<Item = &Exchange> {
        let exchanges = self.background.exchanges.values();
        exchanges.filter(|exchange| exchange.purpose == Purpose::Repair)
    }

    /// The next range to be compared and with whom: with one node after the other.
    fn next_comparison(&mut self) -> Option<(NodeId, Prefix)> {
        let busy: Vec<NodeId> = self.comparisons().map(|exchange| exchange.peer).collect();
        let Self { background, members, held, .. } = self;
        let repair = &mut background.repair;
        let plan = repair.plan.as_ref()?;
        let last = repair.last;
        let behind = plan.range(last..).filter(|(node, _)| **node != last);
        for (node, ranges) in behind.chain(plan.range(..=last)) {
            if busy.contains(node) {
                continue;
            }
            let Some(course) = repair.courses.get_mut(node) else { continue };
            let is_joining = members.entry(node).is_none_or(|it| it.phase == Phase::Joining);
            if !course.is_over && (is_joining || !members.is_up(node)) {
                course.stop();
            }
            while let Some(prefix) = course.next(ranges) {
                if held.covers(&prefix) {
                    return Some((*node, prefix));
                }
                course.pass(&prefix);
            }
        }
        None
    }

    /// A comparison has ended.
    pub(super) fn after_comparison(&mut self, now: Now, exchange: &Exchange) {
        let repair = &mut self.background.repair;
        if let Some(course) = repair.courses.get_mut(&exchange.peer) {
            // Also where it has failed: a range that cannot be compared must not hold up the rest.
            course.pass(&exchange.prefix);
            if exchange.is_unanswered {
                course.stop();
            }
        }
        let bytes = exchange.keys_compared * KEY_BYTES;
        repair.pace.spend(now.monotonic_ns, bytes, self.settings.repair_bytes_per_second);
        self.repair_next(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ranges by the indices of parts of all keys that they are.
    fn ranges(parts: &[usize]) -> PrefixSet {
        parts.iter().map(|part| Prefix::ALL.parts()[*part]).collect()
    }

    fn part_of(prefix: &Prefix) -> usize {
        usize::from(prefix.first_key().0[0] >> 4)
    }

    #[test]
    fn a_pass_takes_each_range_once() {
        let (ranges, mut course) = (ranges(&[1, 4, 8, 15]), Course::NEW);
        let mut found = Vec::new();
        while let Some(prefix) = course.next(&ranges) {
            found.push(part_of(&prefix));
            course.pass(&prefix);
        }
        assert_eq!(found, [1, 4, 8, 15]);
        assert!(course.is_over);
    }

    #[test]
    fn a_pass_goes_on_where_the_last_one_had_no_answer_and_comes_round() {
        for (silent, expected) in [(1, [4, 8, 15, 1]), (8, [15, 1, 4, 8]), (15, [1, 4, 8, 15])] {
            let (ranges, mut course) = (ranges(&[1, 4, 8, 15]), Course::NEW);
            while let Some(prefix) = course.next(&ranges) {
                course.pass(&prefix);
                if part_of(&prefix) == silent {
                    course.stop();
                }
            }
            assert!(course.is_over);
            course.is_over = false;
            let mut found = Vec::new();
            while let Some(prefix) = course.next(&ranges) {
                found.push(part_of(&prefix));
                course.pass(&prefix);
            }
            assert_eq!(found, expected);
        }
    }
}
