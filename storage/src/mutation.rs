//! Defects planted on purpose, to show that the simulator's oracle notices them. There are none
//! without the feature `mutations`, and none in a release build with it.

/// A defect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutation {
    /// Compaction drops tombstones while older records of their keys may be around.
    TombstoneDroppedEarly,
    /// A segment goes before what replaces it is durable.
    SegmentFreedEarly,
    /// The file of a freed segment becomes another one although a snapshot has a link to it.
    LinkedFileRecycled,
    /// Hot values count their own bytes alone, and where these are none, nothing is forgotten: an
    /// empty key with an empty value that has changed is read as it was.
    EmptyHotValueKept,
}

#[cfg(all(feature = "mutations", debug_assertions))]
mod planted {
    use std::cell::Cell;

    use super::Mutation;

    thread_local! {
        static PLANTED: Cell<Option<Mutation>> = const { Cell::new(None) };
    }

    /// Plants a defect in the stores of this thread, or takes it back. False if this build cannot
    /// have one.
    #[must_use]
    pub fn plant(mutation: Option<Mutation>) -> bool {
        PLANTED.set(mutation);
        true
    }

    pub(crate) fn is_planted(mutation: Mutation) -> bool {
        PLANTED.get() == Some(mutation)
    }
}

#[cfg(not(all(feature = "mutations", debug_assertions)))]
mod planted {
    use super::Mutation;

    /// Plants a defect in the stores of this thread, or takes it back. False if this build cannot
    /// have one.
    #[must_use]
    pub fn plant(mutation: Option<Mutation>) -> bool {
        mutation.is_none()
    }

    pub(crate) const fn is_planted(_: Mutation) -> bool {
        false
    }
}

pub(crate) use planted::is_planted;
pub use planted::plant;
