//! Defects planted on purpose, to show that the simulator's oracle notices them.

/// A defect.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mutation {
    /// None.
    #[default]
    Nothing,
    /// Repair takes what is there for newer than a tombstone.
    RepairResurrects,
    /// A holder outside the set gives its copies up without asking.
    DropsUnconfirmed,
    /// Versions follow the wall clock alone, back, too.
    VersionGoesBack,
    /// A node answers for what it has not yet been filled with.
    AnswersTooEarly,
    /// A page of keys is made of what one holder says.
    ListsFromOne,
}
