//! Commands of clients, by majority of a key's replica set.
//!
//! ```text
//! write: Put to the set ── majority durable, and of the ready holders ──> acknowledged
//!            └─ "not newer": clock raised, sent again      rest in the background, counted for
//! WAIT
//! read:  Get to the set ── majority of ready holders ──> newest ── majority holds it ──> answer
//!                                                          └─ else Put to those that lack it,
//! first
//! ```
//!
//! A holder that is not ready (it has not all keys around this one yet) counts among the copies of
//! a write, but not among the answers of a read. For each such holder the next closest node is
//! asked, too: it is one of the old ones. Both a majority of the set and a majority of the ready
//! holders are needed, so that reads and writes meet in one node before, while and after a range
//! moves.

mod read;
mod scan;
mod wait;
mod write;

use std::collections::BTreeMap;

pub(super) use read::Rank;
pub use read::{Consistency, Read};
pub use scan::Scan;
pub use wait::WaitLedger;
pub use write::Write;

use bytes::Bytes;
use storage::Now;
use wal::record::{Key, Version};

use super::message::{PeerMessage, Record, RequestId};
use super::outbox::Outbox;
use super::placement::{closest, majority};
use super::prefix::Prefix;
use super::settings::ClusterSettings;
use super::view::View;
use crate::kademlia::NodeId;

/// How often a command begins anew because of others that are as fast.
const ATTEMPTS_MAX: u32 = 8;

/// Names a command of a client.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CommandId(pub u64);

/// What is told to the client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The write is durable on a majority.
    Written {
        /// Under this version.
        version: Version,
        /// On so many nodes of the set.
        copies: usize,
    },
    /// The newest record, if the key has a value.
    Found(Option<Record>),
    /// A page of keys.
    Listed {
        /// So many keys were looked at, deleted ones among them.
        looked: usize,
        /// Those that live, in order of their ids.
        names: Vec<Bytes>,
        /// Where to go on, if this is not the end of all.
        next: Option<Key>,
    },
    /// No majority: what was written may hold or not.
    NoReplicas,
    /// No majority, for this node's clock is too far ahead of others': they refuse its versions.
    ClockAhead,
    /// No majority that has been filled yet: nobody can tell what there is, and what was written
    /// may hold or not.
    NotReady,
    /// Another key of the same id exists.
    KeyConflict,
    /// This node has not yet spoken to the cluster.
    Loading,
}

/// Who asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Owner {
    Command(CommandId, u32),
    Exchange(u64),
    Fill(Prefix),
    Cleaning,
}

/// Queries under way.
#[derive(Debug, Default)]
pub(super) struct Queries(pub(super) BTreeMap<RequestId, (Owner, NodeId)>);

/// What a step of a part works with.
pub(super) struct Step<'a> {
    pub(super) now: Now,
    pub(super) out: &'a mut Outbox,
    pub(super) queries: &'a mut Queries,
    pub(super) settings: &'a ClusterSettings,
}

impl Step<'_> {
    pub(super) fn query(
        &mut self,
        owner: Owner,
        to: NodeId,
        message: impl FnOnce(RequestId) -> PeerMessage,
    ) {
        let request = self.out.take_id();
        self.out.send(to, message(request));
        self.queries.0.insert(request, (owner, to));
    }
}

/// Whom to ask about a key, and how many of them decide.
#[derive(Clone, Debug)]
pub(super) struct Candidates {
    /// The replica set, then as many further nodes as it has.
    order: Vec<NodeId>,
    /// Length of the set.
    set: usize,
    /// How many were asked.
    asked: usize,
    /// Copies in the set that are a majority.
    pub(super) set_need: usize,
    /// Ready holders that are a majority.
    pub(super) ready_need: usize,
}

impl Candidates {
    pub(super) fn new(key: &Key, view: &View, settings: &ClusterSettings) -> Self {
        let replicas = settings.replicas;
        let mut order = closest(key, &view.placed, replicas);
        let set = order.len();
        let mut others = closest(key, &view.known, 2 * replicas);
        others.retain(|node| !order.contains(node));
        order.extend(others.into_iter().take(replicas));
        let full = view.full_count.clamp(1, replicas);
        Self { order, set, asked: 0, set_need: majority(set), ready_need: majority(full) }
    }

    pub(super) fn set(&self) -> &[NodeId] {
        &self.order[..self.set]
    }

    pub(super) fn is_in_set(&self, node: &NodeId) -> bool {
        self.set().contains(node)
    }

    /// Begins with the set.
    fn first(&mut self) -> Vec<NodeId> {
        self.asked = self.set;
        self.set().to_vec()
    }

    /// One more, in place of one that is not ready.
    fn further(&mut self) -> Option<NodeId> {
        let next = self.order.get(self.asked).copied();
        self.asked += usize::from(next.is_some());
        next
    }

    /// How many more could be asked.
    fn left(&self) -> usize {
        self.order.len() - self.asked
    }
}

/// A client's write.
#[derive(Clone, Debug)]
pub struct WriteCommand {
    /// The key.
    pub user_key: Bytes,
    /// The value, or nothing to delete.
    pub value: Option<Bytes>,
    /// Milliseconds since 1970, 0 for never.
    pub expiry_ms: u64,
}
