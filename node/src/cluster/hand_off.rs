//! Ranges on the move: [`Fill`] is the newcomer's side, [`Cleaning`] that of an old holder.
//!
//! ```text
//! newcomer                                          old holders
//! not in `held`: pending, durably (1)
//! Claim ───────────────────────────────────────────> forward writes from now on (2)
//!       <──────────────────────────── Claimed: what they hold completely
//! exchange with one source after the other, again and again (3) until it has nothing newer (4)
//! a majority of complete holders done: `held` grows, durably; it answers (5)
//!                                    Have, to all of the set <── copies outside of their ranges
//! all ready, all have that version or a newer one ──────> `held` shrinks, durably;
//!                                                         then these copies go (6)
//! ```
//!
//! What is not in `held` is pending: the record of step 1 is the saved state itself, and a range
//! is worked on until it is held, over any number of restarts. An exchange that begins again finds
//! equal sums wherever it has been, so it goes on where it was.

use std::collections::{BTreeMap, BTreeSet};

use wal::record::Key;

use super::message::Entry;
use super::prefix::{Prefix, PrefixSet};
use super::store::Ticket;
use crate::kademlia::NodeId;

/// What is known of one source.
#[derive(Clone, Debug, Default)]
pub(super) struct Source {
    /// The parts it holds completely; nothing before it has answered.
    pub(super) held: Option<PrefixSet>,
    /// When it is asked for that, if it has not answered by then.
    pub(super) claim_at_ns: u64,
    /// Whether it had nothing newer at the end of an exchange.
    pub(super) is_done: bool,
    /// Exchanges begun with it.
    pub(super) tries: u32,
}

/// A range being filled.
#[derive(Clone, Debug)]
pub(super) struct Fill {
    pub(super) prefix: Prefix,
    pub(super) sources: BTreeMap<NodeId, Source>,
    /// When it is given up, and begun again.
    pub(super) deadline_ns: u64,
}

impl Fill {
    pub(super) fn new(prefix: Prefix, sources: &[NodeId], deadline_ns: u64) -> Self {
        let sources = sources.iter().map(|node| (*node, Source::default())).collect();
        Self { prefix, sources, deadline_ns }
    }

    /// With whom to compare next: what was fetched from one source need not be fetched from the
    /// others, so who holds everything comes first; of these who has the least to do for other
    /// ranges.
    pub(super) fn next_source(
        &self,
        is_asked: impl Fn(&NodeId) -> bool,
        busy: impl Fn(&NodeId) -> usize,
    ) -> Option<(NodeId, u32)> {
        let ready = self.sources.iter().filter(|(node, source)| !source.is_done && !is_asked(node));
        let ready = ready.filter_map(|(node, source)| {
            let is_partial = !source.held.as_ref()?.covers(&self.prefix);
            Some((source.tries, is_partial, busy(node), *node))
        });
        ready.min().map(|(tries, .., node)| (node, tries))
    }

    /// The parts that `need` sources hold completely and have given; everything, if there is no
    /// source that has not given what it has and `may_found`.
    pub(super) fn complete(&self, need: usize, may_found: bool) -> PrefixSet {
        if may_found && self.sources.values().all(|source| source.is_done) {
            return PrefixSet::from_iter([self.prefix]);
        }
        let done: Vec<&PrefixSet> = self
            .sources
            .values()
            .filter(|source| source.is_done)
            .filter_map(|source| source.held.as_ref())
            .collect();
        covered(self.prefix, &done, need)
    }
}

/// The parts of a prefix that are in at least `need` of the sets.
fn covered(prefix: Prefix, sets: &[&PrefixSet], need: usize) -> PrefixSet {
    let mut found = PrefixSet::default();
    let mut pending = vec![prefix];
    while let Some(prefix) = pending.pop() {
        let whole = sets.iter().filter(|set| set.covers(&prefix)).count();
        if whole >= need {
            found.insert(prefix);
            continue;
        }
        let touching = sets.iter().filter(|set| set.touches(&prefix)).count();
        if touching >= need && prefix.len() < 160 {
            pending.extend(prefix.halves());
        }
    }
    found
}

/// What is to be looked through for copies to give up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unclean {
    /// A range that this node holds and should not, of one replica set.
    Claimed(Prefix),
    /// Keys of a prefix, from one on: nothing is known of what there is.
    Keys(Prefix, Key),
}

/// A range outside of the node's own, looked through for copies to give up.
#[derive(Debug)]
pub(super) struct Cleaning {
    pub(super) prefix: Prefix,
    /// The replica set of all its keys.
    pub(super) set: Vec<NodeId>,
    pub(super) page: Vec<Entry>,
    /// Where the next page begins.
    pub(super) next: Option<Key>,
    pub(super) stage: Stage,
    pub(super) deadline_ns: u64,
}

/// Whether a node is a ready holder, and of each entry, whether it has it.
pub(super) type Confirmation = (bool, Vec<bool>);

/// How far a page has come.
#[derive(Debug)]
pub(super) enum Stage {
    /// The first key is looked for: from there on it is a range with one replica set.
    Finding(Ticket),
    /// It is being read.
    Walking(Ticket),
    /// The set is asked: who is ready, and has which entries.
    Asking(BTreeMap<NodeId, Option<Confirmation>>),
    /// The node's claim to the range is being given up durably; these entries are to go then.
    Saving(Ticket, Vec<Entry>),
}

/// What the set's answers say.
#[derive(Debug, Default)]
pub(super) struct Verdict {
    /// Entries that all of the set have, as ready holders.
    pub(super) confirmed: Vec<Entry>,
    /// Who lacks which key.
    pub(super) lacking: BTreeSet<(NodeId, Key)>,
    /// Whether all of the set are ready.
    pub(super) is_ready: bool,
}

impl Cleaning {
    /// What the answers say, once all are there.
    pub(super) fn verdict(&self) -> Option<Verdict> {
        let Stage::Asking(answers) = &self.stage else { return None };
        let answers: Option<Vec<(NodeId, &Confirmation)>> =
            answers.iter().map(|(node, answer)| Some((*node, answer.as_ref()?))).collect();
        let answers = answers?;
        let is_ready = answers.iter().all(|(_, (is_ready, _))| *is_ready);
        let mut verdict = Verdict { is_ready, ..Verdict::default() };
        for (index, entry) in self.page.iter().enumerate() {
            let has = |held: &Vec<bool>| held.get(index).copied().unwrap_or(false);
            let lacking = answers.iter().filter(|(_, (_, held))| !has(held));
            let before = verdict.lacking.len();
            verdict.lacking.extend(lacking.map(|(node, _)| (*node, entry.key)));
            if is_ready && verdict.lacking.len() == before {
                verdict.confirmed.push(*entry);
            }
        }
        Some(verdict)
    }
}

#[cfg(test)]
mod tests {
    use wal::record::{Namespace, Version};

    use super::*;

    fn part(index: usize) -> Prefix {
        Prefix::ALL.parts()[index]
    }

    #[test]
    fn a_range_is_complete_where_enough_complete_holders_have_given() {
        let nodes = [1, 2, 3].map(|byte| NodeId([byte; 20]));
        let mut fill = Fill::new(Prefix::ALL, &nodes, 0);
        let held = [vec![part(0), part(1)], vec![part(1), part(2)], vec![]];
        for (node, held) in nodes.iter().zip(held) {
            fill.sources.get_mut(node).unwrap().held = Some(held.into_iter().collect());
        }
        assert!(fill.complete(1, true).is_empty(), "nobody has given anything");
        fill.sources.get_mut(&nodes[0]).unwrap().is_done = true;
        assert!(fill.complete(2, true).is_empty());
        fill.sources.get_mut(&nodes[1]).unwrap().is_done = true;
        assert_eq!(fill.complete(2, true), PrefixSet::from_iter([part(1)]));
        assert_eq!(fill.complete(1, true).len(), 2, "parts 0 and 1 are one");
        fill.sources.get_mut(&nodes[2]).unwrap().is_done = true;
        assert_eq!(fill.complete(2, false), PrefixSet::from_iter([part(1)]));
        assert_eq!(fill.complete(2, true), PrefixSet::all());
    }

    #[test]
    fn who_holds_everything_and_was_not_asked_yet_is_asked_first() {
        let nodes = [1, 2, 3].map(|byte| NodeId([byte; 20]));
        let mut fill = Fill::new(Prefix::ALL, &nodes, 0);
        assert_eq!(fill.next_source(|_| false, |_| 0), None, "nobody has answered");
        fill.sources.get_mut(&nodes[0]).unwrap().held = Some(PrefixSet::from_iter([part(0)]));
        fill.sources.get_mut(&nodes[1]).unwrap().held = Some(PrefixSet::all());
        assert_eq!(fill.next_source(|_| false, |_| 0), Some((nodes[1], 0)));
        assert_eq!(fill.next_source(|node| *node == nodes[1], |_| 0), Some((nodes[0], 0)));
        fill.sources.get_mut(&nodes[1]).unwrap().tries = 1;
        assert_eq!(fill.next_source(|_| false, |_| 0), Some((nodes[0], 0)));
        fill.sources.get_mut(&nodes[0]).unwrap().is_done = true;
        assert_eq!(fill.next_source(|_| false, |_| 0), Some((nodes[1], 1)));
        let held = Some(PrefixSet::all());
        for node in &nodes {
            fill.sources.insert(*node, Source { held: held.clone(), ..Source::default() });
        }
        let busy = |node: &NodeId| usize::from(*node == nodes[0]);
        assert_eq!(fill.next_source(|_| false, busy), Some((nodes[1], 0)), "the first is busy");
    }

    #[test]
    fn a_copy_goes_only_when_all_of_the_set_have_it_and_are_ready() {
        let nodes = [1, 2].map(|byte| NodeId([byte; 20]));
        let entry = |byte| Entry {
            namespace: Namespace::PLAIN,
            key: Key([byte; 20]),
            version: Version::default(),
            is_tombstone: false,
        };
        let mut cleaning = Cleaning {
            prefix: Prefix::ALL,
            set: nodes.to_vec(),
            page: vec![entry(1), entry(2)],
            next: None,
            stage: Stage::Asking(BTreeMap::new()),
            deadline_ns: 0,
        };
        let mut check = |first, second, confirmed: &[Entry], lacking: usize| {
            let answers = nodes.into_iter().zip([first, second]).collect();
            cleaning.stage = Stage::Asking(answers);
            let verdict = cleaning.verdict();
            let found = verdict.map(|verdict| (verdict.confirmed, verdict.lacking.len()));
            assert_eq!(found.unwrap_or_default(), (confirmed.to_vec(), lacking));
        };
        check(Some((true, vec![true, true])), None, &[], 0);
        check(Some((true, vec![true; 2])), Some((true, vec![true; 2])), &[entry(1), entry(2)], 0);
        check(Some((true, vec![true; 2])), Some((true, vec![false, true])), &[entry(2)], 1);
        check(Some((true, vec![true; 2])), Some((false, vec![true; 2])), &[], 0);
        check(Some((true, vec![true; 2])), Some((true, vec![])), &[], 2);
    }
}
