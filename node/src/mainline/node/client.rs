//! The client's side of a [`MainlineNode`]: what is asked of the network, and what comes back.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use storage::Now;

use crate::io::Monotonic;
use crate::kademlia::node::{LookupId, LookupKind, LookupOutcome, QueryId};
use crate::kademlia::{Contact, NodeId};
use crate::krpc::compact::Family;
use crate::mainline::item::{Item, Record, Signed};
use crate::mainline::outcome::{GetOutcome, ReplicaOutcome};
use crate::mainline::query::{Query, QueryKind, Want};
use crate::mainline::reject::Reject;
use crate::mainline::values::Values;

use super::event::{
    Announce, Ended, FamilyLookup, Get, MainlineEvent, OperationId, RefusedOperation,
};
use super::operation::{FINDS_MAX, Goal, OPERATIONS_MAX, Operation, Republisher, Stored, Storing};
use super::{MainlineNode, Origin, place};

const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

impl MainlineNode {
    /// Looks for an item. The first immutable one ends it; of a mutable one all versions are
    /// compared.
    ///
    /// # Errors
    /// Too much is under way.
    pub fn get(&mut self, now: Now, get: Get) -> Result<OperationId, RefusedOperation> {
        let outcome = GetOutcome::new(get.target, &get.salt);
        let seq = get.newer_than;
        let kind = QueryKind::Get { target: get.target, seq, want: Want::default() };
        let goal = Goal::Get { outcome, newer_than: seq };
        self.begin_lookups(now, goal, get.target, kind)
    }

    /// Stores an item at the closest nodes, which is to replace the one of seq `cas`, if given.
    ///
    /// # Errors
    /// Too much is under way, or it is no item, or its signature is wrong.
    pub fn put(
        &mut self,
        now: Now,
        item: &Item<'_>,
        cas: Option<i64>,
    ) -> Result<OperationId, RefusedOperation> {
        item.check().map_err(RefusedOperation::Item)?;
        if matches!(item, Item::Mutable(item) if !Signed::of(item).is_valid()) {
            return Err(RefusedOperation::Item(Reject::Signature));
        }
        let target = item.target();
        let record = Record { put_ms: 0, item: *item }.encode();
        let goal = Goal::Store(Storing::new(target, Stored::Item { record, cas }));
        let kind = QueryKind::Get { target, seq: None, want: Want::default() };
        let operation = self.begin_lookups(now, goal, target, kind)?;
        if self.mirror.is_some() {
            self.adopt(now, item);
        }
        Ok(operation)
    }

    /// Looks for the peers of a torrent.
    ///
    /// # Errors
    /// Too much is under way.
    pub fn get_peers(
        &mut self,
        now: Now,
        info_hash: NodeId,
    ) -> Result<OperationId, RefusedOperation> {
        let goal = Goal::Peers { found: BTreeSet::new() };
        self.begin_lookups(now, goal, info_hash, peers_of(info_hash))
    }

    /// Announces a peer at the nodes closest to its torrent.
    ///
    /// # Errors
    /// Too much is under way.
    pub fn announce(
        &mut self,
        now: Now,
        announce: Announce,
    ) -> Result<OperationId, RefusedOperation> {
        let info_hash = announce.info_hash;
        let goal = Goal::Store(Storing::new(info_hash, Stored::Peer(announce)));
        self.begin_lookups(now, goal, info_hash, peers_of(info_hash))
    }

    /// Asks the nodes on the way to a target, and those around it, for samples of the torrents that
    /// they know (BEP 51).
    ///
    /// # Errors
    /// Too much is under way.
    pub fn sample(&mut self, now: Now, target: NodeId) -> Result<OperationId, RefusedOperation> {
        let goal = Goal::Sample { found: BTreeSet::new() };
        let kind = QueryKind::SampleInfohashes { target, want: Want::default() };
        self.begin_lookups(now, goal, target, kind)
    }

    /// Asks whether a node is at an address.
    ///
    /// # Errors
    /// Too much is under way, or there is no socket of that family.
    pub fn ping(&mut self, now: Now, to: SocketAddr) -> Result<OperationId, RefusedOperation> {
        let family = Family::of(&to);
        let time = Monotonic(now.monotonic_ns);
        if self.operations.len() >= OPERATIONS_MAX {
            return Err(RefusedOperation::Busy);
        }
        let side = self.sides[place(family)].as_mut().ok_or(RefusedOperation::Family)?;
        let arguments = encode(side.node.own(), QueryKind::Ping);
        let query = side.node.query(time, to, b"ping", &arguments);
        let query = query.map_err(|_| RefusedOperation::Busy)?;
        let goal = Goal::Ping { began: time, answer: None };
        let operation = self.operations.add(time, goal);
        self.operations.add_query(operation, (family, query), to);
        self.counters.operations += 1;
        self.settle(now);
        Ok(operation)
    }

    /// Ends an operation early: with what it has until now.
    pub fn cancel(&mut self, now: Now, operation: OperationId) {
        self.end(now, operation, true);
        self.settle(now);
    }

    /// Begins an operation with a lookup in each family.
    fn begin_lookups(
        &mut self,
        now: Now,
        goal: Goal,
        target: NodeId,
        kind: QueryKind<'_>,
    ) -> Result<OperationId, RefusedOperation> {
        if self.operations.len() >= OPERATIONS_MAX {
            return Err(RefusedOperation::Busy);
        }
        self.counters.operations += 1;
        let operation = self.begin(now, goal, target, kind);
        self.settle(now);
        Ok(operation)
    }

    /// All lookups of an operation have ended, or none could be begun.
    fn on_looked_up(&mut self, now: Now, id: OperationId) {
        let Some(operation) = self.operations.get_mut(id) else { return };
        match &mut operation.goal {
            Goal::Get { outcome, .. } if matches!(outcome.best(), Some(Item::Immutable(_))) => {
                self.end(now, id, false);
            }
            // What we hold ourselves counts, too.
            Goal::Get { outcome, newer_than } => {
                let (target, seq) = (outcome.target(), *newer_than);
                self.server.look_up(now, target, seq, Origin::Operation(id));
            }
            Goal::Store(Storing { what: Stored::Mirrored { .. }, .. }) => {
                self.compare_mirrored(now, id);
            }
            Goal::Store(storing) => {
                let unplaced = storing.take_unplaced();
                self.operations.waiting.insert(id);
                if let Some((record, cas)) = unplaced {
                    self.keep_here(now, id, &record, cas);
                }
            }
            _ => self.end(now, id, false),
        }
    }

    /// Holds an item of an operation ourselves, as there is nobody else.
    fn keep_here(&mut self, now: Now, id: OperationId, record: &[u8], cas: Option<i64>) {
        let Ok(Record { item, .. }) = Record::decode(record) else { return };
        self.server.adopt(now, &item, cas, Origin::Operation(id));
    }

    /// Takes the answer of our own server to an operation; `Err`: it has refused.
    pub(super) fn on_own_answer(
        &mut self,
        now: Now,
        id: OperationId,
        result: Result<&[u8], &Reject>,
    ) {
        let here = self.here;
        let Some(operation) = self.operations.get_mut(id) else { return };
        match &mut operation.goal {
            Goal::Get { outcome, .. } => {
                let values = result.ok().and_then(|values| Values::decode(values).ok());
                if let Some(values) = values.filter(|values| values.value.is_some())
                    && outcome.on_values(here, &values)
                    && let Some(item) = outcome.best()
                {
                    let record = Record { put_ms: 0, item }.encode();
                    self.push_event(MainlineEvent::Found { operation: id, from: here, record });
                }
                self.end(now, id, false);
            }
            Goal::Store(storing) => {
                storing.under_way -= 1;
                let outcome = match result {
                    Ok(_) => ReplicaOutcome::Kept,
                    Err(reject) => ReplicaOutcome::Refused(reject.code()),
                };
                storing.outcome.on_outcome(here, outcome);
                if result.is_ok() {
                    self.unplaced.insert(storing.target);
                    self.save_soon(Monotonic(now.monotonic_ns));
                }
                self.operations.waiting.insert(id);
            }
            _ => {}
        }
    }

    pub(super) fn begin(
        &mut self,
        now: Now,
        goal: Goal,
        target: NodeId,
        kind: QueryKind<'_>,
    ) -> OperationId {
        let time = Monotonic(now.monotonic_ns);
        let operation = self.operations.add(time, goal);
        for family in FAMILIES {
            let Some(side) = &mut self.sides[place(family)] else { continue };
            let arguments = encode(side.node.own(), kind);
            let method = QueryKind::METHODS[kind.index()].as_bytes();
            let lookup = side.node.lookup(time, target, LookupKind::Method { method, arguments });
            if let Ok(lookup) = lookup {
                self.operations.add_lookup(operation, (family, lookup));
            }
        }
        if self.operations.get_mut(operation).is_some_and(|begun| begun.lookups.is_empty()) {
            self.on_looked_up(now, operation);
        }
        operation
    }

    /// Takes what a node on the way of a lookup says.
    pub(super) fn on_lookup_response(
        &mut self,
        now: Now,
        lookup: (Family, LookupId),
        from: &Contact,
        values: &[u8],
    ) {
        let Ok(values) = Values::decode(values) else { return };
        let Some((id, operation)) = self.operations.of_lookup(lookup) else { return };
        let address = from.address;
        match &mut operation.goal {
            Goal::Get { outcome, .. } => {
                if !outcome.on_values(address, &values) {
                    return;
                }
                let Some(item) = outcome.best() else { return };
                let is_enough = matches!(item, Item::Immutable(_));
                let record = Record { put_ms: 0, item }.encode();
                self.push_event(MainlineEvent::Found { operation: id, from: address, record });
                if is_enough {
                    self.end_lookups(now, id);
                }
            }
            Goal::Peers { found } => {
                let mut peers = values.peers.unwrap_or_default();
                peers.retain(|peer| found.len() < FINDS_MAX && found.insert(*peer));
                if !peers.is_empty() {
                    let (operation, from) = (id, address);
                    self.push_event(MainlineEvent::Peers { operation, from, peers });
                }
            }
            Goal::Sample { found } => {
                let Some(event) = sampled(id, address, &values, found) else { return };
                self.push_event(event);
            }
            Goal::Store(storing) => {
                if let Some(token) = values.token {
                    storing.keep_token(address, token);
                }
                if let Stored::Mirrored { held, .. } = &mut storing.what {
                    held.on_values(address, &values);
                }
            }
            Goal::Ping { .. } => {}
        }
    }

    /// A lookup has ended.
    pub(super) fn on_lookup_done(&mut self, now: Now, family: Family, outcome: &LookupOutcome) {
        let Some(id) = self.operations.end_lookup((family, outcome.lookup)) else { return };
        let Some(operation) = self.operations.get_mut(id) else { return };
        operation.looked_up.push(FamilyLookup::of(family, outcome));
        let is_last = operation.lookups.is_empty();
        if let Goal::Store(storing) = &mut operation.goal
            && !matches!(storing.what, Stored::Mirrored { .. })
        {
            for contact in &outcome.closest {
                if storing.tokens.contains_key(&contact.address) {
                    storing.waiting.push_back((family, contact.address));
                }
            }
            self.operations.waiting.insert(id);
        }
        if is_last {
            self.on_looked_up(now, id);
        }
    }

    /// A query of an operation has ended: answered, refused with a code, or unanswered.
    pub(super) fn on_answered(
        &mut self,
        now: Now,
        query: (Family, QueryId),
        result: Result<NodeId, Option<i64>>,
    ) {
        let Some((id, to)) = self.operations.end_query(query) else { return };
        let Some(operation) = self.operations.get_mut(id) else { return };
        match &mut operation.goal {
            Goal::Ping { began, answer } => {
                let took_us = now.monotonic_ns.saturating_sub(began.0) / 1_000;
                *answer = result.ok().map(|node| (node, took_us));
                self.end(now, id, false);
            }
            Goal::Store(storing) => {
                storing.under_way -= 1;
                let outcome = match result {
                    Ok(_) => ReplicaOutcome::Stored,
                    Err(Some(code)) => ReplicaOutcome::Refused(code),
                    Err(None) => ReplicaOutcome::Silent,
                };
                storing.outcome.on_outcome(to, outcome);
                self.operations.waiting.insert(id);
            }
            _ => {}
        }
    }

    /// Ends what has taken too long.
    pub(super) fn end_late(&mut self, now: Now) {
        while let Some(id) = self.operations.late(Monotonic(now.monotonic_ns)) {
            self.counters.operations_late += 1;
            self.end(now, id, true);
        }
    }

    /// Ends the lookups of an operation; their ends follow as events.
    fn end_lookups(&mut self, now: Now, id: OperationId) {
        let lookups = self.operations.get_mut(id).map(|operation| operation.lookups.clone());
        for (family, lookup) in lookups.unwrap_or_default() {
            if let Some(side) = &mut self.sides[place(family)] {
                side.node.end_lookup(Monotonic(now.monotonic_ns), lookup);
            }
        }
    }

    /// Ends an operation and tells what it has come to.
    pub(super) fn end(&mut self, now: Now, operation: OperationId, is_late: bool) {
        if is_late {
            self.end_lookups(now, operation);
        }
        let Some(Operation { goal, looked_up: lookups, .. }) = self.operations.remove(operation)
        else {
            return;
        };
        let result = match goal {
            Goal::Get { outcome, .. } => Ended::Get(outcome),
            Goal::Peers { found } => Ended::Peers { count: found.len() },
            Goal::Sample { found } => Ended::Sample { count: found.len() },
            Goal::Ping { answer, .. } => Ended::Ping(answer),
            Goal::Store(Storing {
                target,
                what: Stored::Mirrored { client, is_newer, is_lacking, .. },
                outcome,
                ..
            }) => match client {
                Republisher::Mirror => return self.end_mirrored(&outcome, is_lacking, is_newer),
                Republisher::Unplaced => {
                    let time = Monotonic(now.monotonic_ns);
                    self.unplaced.on_put(time, &target, outcome.stored() > 0);
                    return self.save_soon(time);
                }
            },
            Goal::Store(Storing { target, outcome, .. }) => Ended::Put { target, outcome },
        };
        // Never dropped: somebody waits for it.
        self.events.push_back(MainlineEvent::Ended { operation, result, lookups, is_late });
    }
}

fn peers_of(info_hash: NodeId) -> QueryKind<'static> {
    QueryKind::GetPeers { info_hash, want: Want::default(), noseed: false, scrape: false }
}

/// The arguments of a query of ours.
pub(super) fn encode(own: NodeId, kind: QueryKind<'_>) -> Vec<u8> {
    let mut arguments = Vec::with_capacity(128);
    Query { id: own, kind }.encode(&mut arguments);
    arguments
}

fn sampled(
    operation: OperationId,
    from: SocketAddr,
    values: &Values<'_>,
    found: &mut BTreeSet<NodeId>,
) -> Option<MainlineEvent> {
    let (hashes, _) = values.samples?.as_chunks::<20>();
    let mut info_hashes: Vec<NodeId> = hashes.iter().copied().map(NodeId).collect();
    info_hashes.retain(|info_hash| found.len() < FINDS_MAX && found.insert(*info_hash));
    let (interval, count) = (values.interval.unwrap_or(0), values.num.unwrap_or(0));
    Some(MainlineEvent::Sampled { operation, from, interval, count, info_hashes })
}
