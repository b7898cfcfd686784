//! Lookups of a node: who waits for them, and the queries they make.

use fastrand::Rng;

use super::{
    Busy, CachePlace, KademliaNode, LookupId, LookupKind, LookupOutcome, NodeEvent, Purpose,
};
use crate::io::Monotonic;
use crate::kademlia::{Contact, Lookup, NodeId};
use crate::krpc::bep5::{FindNode, Nodes, Want, method};
use crate::krpc::compact::Family;

/// Who wants to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Client {
    /// A layer above.
    Caller,
    /// We look for our neighbours.
    Own,
    /// A bucket is to be refreshed.
    Refresh,
}

/// A lookup under way.
#[derive(Debug)]
pub(super) struct Search {
    lookup: Lookup,
    kind: LookupKind,
    pub(super) client: Client,
    started: Monotonic,
    /// Nodes that have what is looked for, as the layer above says.
    holders: Vec<NodeId>,
    is_stalled: bool,
}

impl KademliaNode {
    /// Begins a lookup; [`NodeEvent::LookupDone`] ends it, and each reply to a method of the caller
    /// comes out before as [`NodeEvent::LookupResponse`].
    ///
    /// # Errors
    /// Too many lookups are under way.
    pub fn lookup(
        &mut self,
        now: Monotonic,
        target: NodeId,
        kind: LookupKind,
    ) -> Result<LookupId, Busy> {
        if self.searches.len() >= self.limits.lookups_max {
            return Err(Busy);
        }
        Ok(self.begin(now, target, kind, Client::Caller, &[]))
    }

    /// Notes that a node has what a lookup is for: a copy is left with somebody else.
    pub fn mark_holder(&mut self, lookup: LookupId, holder: NodeId) {
        let count_max = self.limits.lookup.candidates_max;
        if let Some(search) = self.searches.get_mut(&lookup)
            && search.holders.len() < count_max
            && !search.holders.contains(&holder)
        {
            search.holders.push(holder);
        }
    }

    /// Ends a lookup that has found enough. What it has come to follows as an event.
    pub fn end_lookup(&mut self, now: Monotonic, lookup: LookupId) {
        self.finish(now, lookup);
    }

    pub(super) fn begin(
        &mut self,
        now: Monotonic,
        target: NodeId,
        kind: LookupKind,
        client: Client,
        named: &[Contact],
    ) -> LookupId {
        let mut known = self.closest(now, &target, self.limits.lookup.k);
        known.extend_from_slice(named);
        self.table.on_lookup(now, &target);
        let limits = self.limits.lookup;
        let lookup = Lookup::with_rules(self.own, target, limits, self.rules, &known);
        let (holders, is_stalled) = (Vec::new(), false);
        let id = LookupId(self.draw_id());
        let search = Search { lookup, kind, client, started: now, holders, is_stalled };
        self.searches.insert(id, search);
        self.drive(now, id);
        id
    }

    /// A node on the way has answered.
    pub(super) fn on_step(
        &mut self,
        now: Monotonic,
        id: LookupId,
        asked: &Contact,
        contact: &Contact,
        nodes: Nodes<'_>,
        values: &[u8],
    ) {
        if asked.id != contact.id {
            // Somebody new at the same address.
            if self.is_usable(contact)
                && let Some(search) = self.searches.get_mut(&id)
            {
                search.lookup.on_named(*contact);
            }
            return self.on_step_failed(now, id, asked);
        }
        let named = self.named(now, nodes);
        let Some(search) = self.searches.get_mut(&id) else { return };
        if !search.lookup.on_response(contact, &named) {
            return;
        }
        if matches!(search.kind, LookupKind::Method { .. }) {
            let (from, values) = (*contact, values.to_vec());
            self.events.push_back(NodeEvent::LookupResponse { lookup: id, from, values });
        }
        self.drive(now, id);
    }

    /// The nodes of a reply that can be asked.
    pub(super) fn named(&self, now: Monotonic, nodes: Nodes<'_>) -> Vec<Contact> {
        let count_max = self.limits.lookup.contacts_per_response_max;
        let contacts = nodes.contacts().take(count_max);
        let is_fit =
            |contact: &Contact| self.is_usable(contact) && !self.is_known_bad(now, contact);
        contacts.filter(is_fit).collect()
    }

    pub(super) fn on_step_slow(&mut self, now: Monotonic, id: LookupId, contact: &Contact) {
        if let Some(search) = self.searches.get_mut(&id) {
            search.lookup.on_slow(contact);
            self.drive(now, id);
        }
    }

    pub(super) fn on_step_failed(&mut self, now: Monotonic, id: LookupId, contact: &Contact) {
        if let Some(search) = self.searches.get_mut(&id) {
            search.lookup.on_failure(contact);
            self.drive(now, id);
        }
    }

    /// Lets lookups go on that had to wait for others to end.
    pub(super) fn resume(&mut self, now: Monotonic) {
        self.refresh(now);
        for _ in 0..self.stalled.len() {
            if self.queries.is_full() {
                return;
            }
            let Some(id) = self.stalled.pop_front() else { return };
            if let Some(search) = self.searches.get_mut(&id) {
                search.is_stalled = false;
                self.drive(now, id);
            }
        }
    }

    /// Asks whom a lookup wants asked, or ends it.
    fn drive(&mut self, now: Monotonic, id: LookupId) {
        loop {
            let is_full = self.queries.is_full();
            let Some(search) = self.searches.get_mut(&id) else { return };
            if is_full {
                if !search.is_stalled {
                    search.is_stalled = true;
                    self.stalled.push_back(id);
                }
                return;
            }
            let Some(contact) = search.lookup.next_query() else { break };
            let (method, arguments) = match &search.kind {
                LookupKind::Nodes => {
                    let target = search.lookup.target();
                    (method::FIND_NODE, find_node(self.own, target, self.family))
                }
                LookupKind::Method { method, arguments } => (*method, arguments.clone()),
            };
            let purpose = Purpose::Lookup(id, contact);
            let is_sent = self.send_query(now, contact.address, purpose, method, &arguments);
            debug_assert!(is_sent, "there was room");
        }
        if self.searches.get(&id).is_some_and(|search| search.lookup.is_done()) {
            self.finish(now, id);
        }
    }

    fn finish(&mut self, now: Monotonic, id: LookupId) {
        let Some(search) = self.searches.remove(&id) else { return };
        self.stalled.retain(|stalled| *stalled != id);
        self.counters.lookups += 1;
        let is_answered = search.lookup.counters().answers > 0;
        match search.client {
            Client::Own => self.on_self_lookup(now, is_answered),
            Client::Refresh => self.on_refreshed(),
            Client::Caller => self.events.push_back(NodeEvent::LookupDone(search.outcome(now, id))),
        }
    }
}

impl Search {
    fn outcome(&self, now: Monotonic, lookup: LookupId) -> LookupOutcome {
        let closest: Vec<Contact> = self.lookup.closest().collect();
        let holds = |contact: &Contact| self.holders.contains(&contact.id);
        let place = closest.iter().position(|contact| !holds(contact));
        let place = place.filter(|_| !self.holders.is_empty());
        let cache_at = place.map(|index| CachePlace {
            contact: closest[index],
            between: u32::try_from(index).unwrap_or(u32::MAX),
        });
        LookupOutcome {
            lookup,
            target: self.lookup.target(),
            closest,
            hops: self.lookup.hops(),
            counters: self.lookup.counters(),
            started: self.started,
            ended: now,
            cache_at,
        }
    }
}

/// Arguments of find_node that ask for nodes of the families we know.
pub(super) fn find_node(own: NodeId, target: NodeId, family: Option<Family>) -> Vec<u8> {
    // Without `want` the answer is of the family that the query comes by.
    let want = match family {
        Some(_) => Want::default(),
        None => Want { v4: true, v6: true },
    };
    let mut arguments = Vec::with_capacity(80);
    FindNode { id: own, target, want }.encode(&mut arguments);
    arguments
}

/// A target that shares exactly `bits` leading bits with `own`.
pub(super) fn target_in_bucket(own: &NodeId, bits: usize, rng: &mut Rng) -> NodeId {
    own.random_sharing(u32::try_from(bits).unwrap_or(u32::MAX), rng)
}
