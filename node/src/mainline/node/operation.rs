//! [`Operation`]: something that a client of ours, or the mirror, wants of the network.
//!
//! ```text
//!            lookups in all families                 stores at the closest
//! begun ──────────────────────────────> looked up ──────────────────────────> ended
//!            get, get_peers, ...        (get and such end here)   put, announce_peer
//! ```

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;

use crate::io::Monotonic;
use crate::kademlia::NodeId;
use crate::kademlia::node::{LookupId, QueryId};
use crate::krpc::compact::Family;
use crate::mainline::outcome::{GetOutcome, PutOutcome};

use super::event::{Announce, FamilyLookup, OperationId};

/// Operations of clients under way.
pub const OPERATIONS_MAX: usize = 128;
/// An operation that takes longer ends with what it has.
pub const OPERATION_TIMEOUT_MS: u64 = 30_000;
/// Stores under way for one operation.
pub const STORES_AT_ONCE_MAX: usize = 16;
/// Nodes whose write tokens are kept for an operation and family: those asked in a lookup.
const TOKENS_MAX: usize = 256;
/// Peers, or info hashes, that are handed out by one operation.
pub(super) const FINDS_MAX: usize = 10_000;

/// Something under way.
#[derive(Debug)]
pub(super) struct Operation {
    pub(super) goal: Goal,
    /// Lookups that have not ended.
    pub(super) lookups: BTreeSet<(Family, LookupId)>,
    pub(super) looked_up: Vec<FamilyLookup>,
    pub(super) deadline: Monotonic,
}

/// What is wanted.
#[derive(Debug)]
pub(super) enum Goal {
    Get {
        outcome: GetOutcome,
        /// Only mutable items newer than this are wanted.
        newer_than: Option<i64>,
    },
    Peers {
        found: BTreeSet<SocketAddr>,
    },
    Sample {
        found: BTreeSet<NodeId>,
    },
    Ping {
        began: Monotonic,
        answer: Option<(NodeId, u64)>,
    },
    Store(Storing),
}

/// A put, an announce or a republished item.
#[derive(Debug)]
pub(super) struct Storing {
    pub(super) target: NodeId,
    pub(super) what: Stored,
    /// Write tokens by who gave them.
    pub(super) tokens: BTreeMap<SocketAddr, Vec<u8>>,
    /// Those to store at, that were not asked yet.
    pub(super) waiting: VecDeque<(Family, SocketAddr)>,
    pub(super) under_way: usize,
    pub(super) outcome: PutOutcome,
}

/// What is stored.
#[derive(Debug)]
pub(super) enum Stored {
    /// An item, as a record.
    Item { record: Vec<u8>, cas: Option<i64> },
    /// A peer.
    Peer(Announce),
    /// An item that we hold, and what others hold of it.
    Mirrored {
        client: Republisher,
        record: Vec<u8>,
        held: GetOutcome,
        is_newer: bool,
        is_lacking: bool,
    },
}

/// Who wants an item that we hold to be put at others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Republisher {
    Mirror,
    Unplaced,
}

impl Storing {
    pub(super) fn new(target: NodeId, what: Stored) -> Self {
        Self {
            target,
            what,
            tokens: BTreeMap::new(),
            waiting: VecDeque::new(),
            under_way: 0,
            outcome: PutOutcome::default(),
        }
    }

    pub(super) fn keep_token(&mut self, from: SocketAddr, token: &[u8]) {
        if self.tokens.len() < TOKENS_MAX {
            self.tokens.insert(from, token.to_vec());
        }
    }

    /// Takes the item of a put that there is nobody to send to: we are to hold it ourselves.
    pub(super) fn take_unplaced(&mut self) -> Option<(Vec<u8>, Option<i64>)> {
        let has_replicas = !self.outcome.replicas().is_empty();
        if !self.is_done() || has_replicas {
            return None;
        }
        let Stored::Item { record, cas } = &self.what else { return None };
        self.under_way += 1;
        Some((record.clone(), *cas))
    }

    pub(super) fn is_done(&self) -> bool {
        self.waiting.is_empty() && self.under_way == 0
    }
}

/// All that is under way.
#[derive(Debug, Default)]
pub(super) struct Operations {
    all: BTreeMap<OperationId, Operation>,
    deadlines: BTreeSet<(Monotonic, OperationId)>,
    by_lookup: BTreeMap<(Family, LookupId), OperationId>,
    by_query: BTreeMap<(Family, QueryId), (OperationId, SocketAddr)>,
    /// Those with stores that wait for room.
    pub(super) waiting: BTreeSet<OperationId>,
    next: u64,
}

impl Operations {
    pub(super) fn len(&self) -> usize {
        self.all.len()
    }

    pub(super) fn add(&mut self, now: Monotonic, goal: Goal) -> OperationId {
        self.next += 1;
        let id = OperationId(self.next);
        let deadline = now.plus_millis(OPERATION_TIMEOUT_MS);
        self.deadlines.insert((deadline, id));
        let (lookups, looked_up) = (BTreeSet::new(), Vec::new());
        self.all.insert(id, Operation { goal, lookups, looked_up, deadline });
        id
    }

    pub(super) fn get_mut(&mut self, id: OperationId) -> Option<&mut Operation> {
        self.all.get_mut(&id)
    }

    pub(super) fn add_lookup(&mut self, id: OperationId, lookup: (Family, LookupId)) {
        if let Some(operation) = self.all.get_mut(&id) {
            operation.lookups.insert(lookup);
            self.by_lookup.insert(lookup, id);
        }
    }

    pub(super) fn add_query(&mut self, id: OperationId, query: (Family, QueryId), to: SocketAddr) {
        self.by_query.insert(query, (id, to));
    }

    /// The operation that a lookup is of.
    pub(super) fn of_lookup(
        &mut self,
        lookup: (Family, LookupId),
    ) -> Option<(OperationId, &mut Operation)> {
        let id = *self.by_lookup.get(&lookup)?;
        Some((id, self.all.get_mut(&id)?))
    }

    /// The operation of a lookup that has ended.
    pub(super) fn end_lookup(&mut self, lookup: (Family, LookupId)) -> Option<OperationId> {
        let id = self.by_lookup.remove(&lookup)?;
        self.all.get_mut(&id)?.lookups.remove(&lookup);
        Some(id)
    }

    /// The operation of a query that has ended, and where the query went.
    pub(super) fn end_query(
        &mut self,
        query: (Family, QueryId),
    ) -> Option<(OperationId, SocketAddr)> {
        self.by_query.remove(&query)
    }

    /// Takes an operation out; its lookups and queries mean nothing from now on.
    pub(super) fn remove(&mut self, id: OperationId) -> Option<Operation> {
        let operation = self.all.remove(&id)?;
        self.deadlines.remove(&(operation.deadline, id));
        self.waiting.remove(&id);
        for lookup in &operation.lookups {
            self.by_lookup.remove(lookup);
        }
        Some(operation)
    }

    /// An operation whose time is over.
    pub(super) fn late(&self, now: Monotonic) -> Option<OperationId> {
        let (deadline, id) = self.deadlines.first()?;
        (*deadline <= now).then_some(*id)
    }

    pub(super) fn deadline(&self) -> Option<Monotonic> {
        self.deadlines.first().map(|(deadline, _)| *deadline)
    }
}
