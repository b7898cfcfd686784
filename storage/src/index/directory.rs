//! Which page holds which prefixes: boundaries in order, in leaves of bounded size.
//!
//! A page holds the prefixes from its boundary to that of the next one. Two levels keep every
//! insertion to a move of at most [`LEAF_PAGES_MAX`] entries plus one pointer per leaf: at 100 M
//! slots that is 6 KB and 16 KB.

use super::arena::PageId;
use super::slot::Prefix;

/// Most pages of a leaf.
const LEAF_PAGES_MAX: usize = 512;

#[derive(Debug, Default)]
struct Leaf {
    boundaries: Vec<Prefix>,
    pages: Vec<PageId>,
}

/// Where a page stands in the directory; good until the directory changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Position {
    leaf: usize,
    entry: usize,
}

/// The pages of an index in prefix order; never empty.
#[derive(Debug)]
pub(crate) struct Directory {
    /// The first boundary of each leaf, but 0 for the first leaf.
    firsts: Vec<Prefix>,
    leaves: Vec<Leaf>,
}

impl Directory {
    /// A directory of one page for all prefixes.
    pub(crate) fn new(page: PageId) -> Self {
        let leaf = Leaf { boundaries: vec![Prefix(0)], pages: vec![page] };
        Self { firsts: vec![Prefix(0)], leaves: vec![leaf] }
    }

    /// A directory of these pages, which are in order and start at prefix 0.
    ///
    /// # Panics
    /// If there are none.
    pub(crate) fn from_sorted(pages: &[(Prefix, PageId)]) -> Self {
        assert!(
            pages.first().is_some_and(|(first, _)| first.0 == 0),
            "the first prefix has a page"
        );
        // Room for growth, so that not all leaves split at once.
        let leaves: Vec<Leaf> = pages
            .chunks(LEAF_PAGES_MAX * 3 / 4)
            .map(|pages| Leaf {
                boundaries: pages.iter().map(|(boundary, _)| *boundary).collect(),
                pages: pages.iter().map(|(_, page)| *page).collect(),
            })
            .collect();
        Self { firsts: leaves.iter().map(|leaf| leaf.boundaries[0]).collect(), leaves }
    }

    /// Where the page for a prefix stands.
    pub(crate) fn find(&self, prefix: Prefix) -> Position {
        let leaf = self.firsts.partition_point(|first| *first <= prefix).saturating_sub(1);
        let boundaries = &self.leaves[leaf].boundaries;
        let entry = boundaries.partition_point(|first| *first <= prefix).saturating_sub(1);
        Position { leaf, entry }
    }

    /// The page at a position.
    pub(crate) fn page(&self, at: Position) -> PageId {
        self.leaves[at.leaf].pages[at.entry]
    }

    /// The boundary of the page at a position.
    pub(crate) fn boundary(&self, at: Position) -> Prefix {
        self.leaves[at.leaf].boundaries[at.entry]
    }

    /// The first prefix that no longer belongs to the page at a position; one too low for the last.
    pub(crate) fn end(&self, at: Position) -> Prefix {
        self.next(at).map_or(Prefix::MAX, |next| self.boundary(next))
    }

    /// The next page's position.
    pub(crate) fn next(&self, at: Position) -> Option<Position> {
        if at.entry + 1 < self.leaves[at.leaf].pages.len() {
            return Some(Position { entry: at.entry + 1, ..at });
        }
        (at.leaf + 1 < self.leaves.len()).then_some(Position { leaf: at.leaf + 1, entry: 0 })
    }

    /// The position of the page before.
    pub(crate) fn previous(&self, at: Position) -> Option<Position> {
        if at.entry > 0 {
            return Some(Position { entry: at.entry - 1, ..at });
        }
        let leaf = at.leaf.checked_sub(1)?;
        Some(Position { leaf, entry: self.leaves[leaf].pages.len() - 1 })
    }

    /// Changes a boundary, which stays between those of its neighbours.
    pub(crate) fn set_boundary(&mut self, at: Position, boundary: Prefix) {
        self.leaves[at.leaf].boundaries[at.entry] = boundary;
        if at.entry == 0 {
            self.firsts[at.leaf] = boundary;
        }
    }

    /// Adds a page behind the one at `at`.
    pub(crate) fn insert_after(&mut self, at: Position, boundary: Prefix, page: PageId) {
        let leaf = &mut self.leaves[at.leaf];
        leaf.boundaries.insert(at.entry + 1, boundary);
        leaf.pages.insert(at.entry + 1, page);
        if leaf.pages.len() > LEAF_PAGES_MAX {
            let half = leaf.pages.len() / 2;
            let upper = Leaf {
                boundaries: leaf.boundaries.split_off(half),
                pages: leaf.pages.split_off(half),
            };
            self.firsts.insert(at.leaf + 1, upper.boundaries[0]);
            self.leaves.insert(at.leaf + 1, upper);
        }
    }

    /// Takes out the page at a position; its prefixes go to the page before.
    ///
    /// # Panics
    /// If it is the first: its prefixes have nowhere to go.
    pub(crate) fn remove(&mut self, at: Position) {
        assert!(at != Position { leaf: 0, entry: 0 }, "the first page stays");
        let leaf = &mut self.leaves[at.leaf];
        leaf.boundaries.remove(at.entry);
        leaf.pages.remove(at.entry);
        if leaf.pages.is_empty() {
            self.firsts.remove(at.leaf);
            self.leaves.remove(at.leaf);
            return;
        }
        self.firsts[at.leaf] = leaf.boundaries[0];
        self.join_small(at.leaf);
    }

    /// Joins a leaf with the one after it if both together fill less than half a leaf.
    fn join_small(&mut self, leaf: usize) {
        let len = |leaf: usize| self.leaves.get(leaf).map(|leaf| leaf.pages.len());
        let Some(both) = len(leaf).zip(len(leaf + 1)).map(|(this, next)| this + next) else {
            return;
        };
        if both <= LEAF_PAGES_MAX / 2 {
            let mut next = self.leaves.remove(leaf + 1);
            self.firsts.remove(leaf + 1);
            self.leaves[leaf].boundaries.append(&mut next.boundaries);
            self.leaves[leaf].pages.append(&mut next.pages);
        }
    }

    /// Bytes of memory.
    pub(crate) fn bytes(&self) -> u64 {
        let entry = size_of::<Prefix>() + size_of::<PageId>();
        let leaves: usize = self.leaves.iter().map(|leaf| leaf.pages.capacity() * entry).sum();
        let top = size_of::<Leaf>() + size_of::<Prefix>();
        (leaves + self.leaves.capacity() * top) as u64
    }
}
