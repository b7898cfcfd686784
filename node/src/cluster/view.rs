//! [`View`]: who is a member, as placing keys needs it: lists in order of ids.
//!
//! It is taken once for each change of members, and used by every command.

use super::membership::Membership;
use crate::kademlia::NodeId;

/// Members at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct View {
    /// All that are not removed.
    pub known: Vec<NodeId>,
    /// Those whose copies count: they do not leave.
    pub placed: Vec<NodeId>,
    /// How many are known to be filled.
    pub full_count: usize,
}

impl View {
    /// As things are now.
    #[must_use]
    pub fn of(members: &Membership) -> Self {
        let known = members.known().map(|entry| entry.node).collect();
        Self { known, placed: members.placed(), full_count: members.full_count() }
    }

    /// Whether keys have other replica sets, or copies other sources, than by the other list.
    #[must_use]
    pub fn places_otherwise(&self, other: &Self) -> bool {
        self.known != other.known || self.placed != other.placed
    }
}
