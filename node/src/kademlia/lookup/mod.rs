//! [`Lookup`]: the iterative search for the nodes closest to a target (Kademlia §2.3).
//!
//! A lookup is a value, not a task: it says whom to ask next and is told what came of it. It asks
//! `alpha` nodes at once, always the closest not yet asked; a node that is slow no longer counts
//! against alpha, nor is it waited for in the end, unless it is among the few closest of all. It is
//! done when the `k` closest nodes that are neither silent nor slow have all answered, and no slow
//! one is among the `waited_for` closest that have not failed.
//!
//! Two rules keep lies out of it. Of one network at most `per_subnet` nodes count, the closest
//! ones; the others wait for these to fail. Nodes that [`ContactRules`] do not prefer are asked,
//! and are a result, only as far as there are fewer than k others.
//!
//! ```text
//!          next_query            on_response
//! unasked ───────────> asked ───────────────> answered
//!                       │  │ on_slow             ^
//!                       │  └───────> slow ───────┤
//!                       │ on_failure  │          │ on_response, if not done yet
//!                       └──────────> failed <────┘
//! ```

use std::net::IpAddr;

use super::distance::Distance;
use super::k_bucket::Contact;
use super::node_id::NodeId;
use super::routing_table::subnet;
use super::rules::ContactRules;

#[cfg(test)]
mod tests;

/// Ids that one address may have in a lookup, failed ones apart.
const IDS_PER_ADDRESS_MAX: usize = 2;

/// Nodes of one network that are kept in mind beside those that count.
const SUBNET_SPARES_MAX: usize = 2;

/// Sizes of a lookup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LookupLimits {
    /// Nodes asked at once.
    pub alpha: usize,
    /// Nodes wanted.
    pub k: usize,
    /// So many of the closest nodes are waited for until they fail, however slow: the result is to
    /// have them. Go's Kademlia calls this beta.
    pub waited_for: usize,
    /// Nodes kept in mind: the farthest that were not asked are dropped.
    pub candidates_max: usize,
    /// Nodes taken from one response: a hostile one may name thousands.
    pub contacts_per_response_max: usize,
    /// Nodes of one /24 or /64 that count; `None`: any number.
    pub per_subnet: Option<usize>,
    /// Whether loopback is not counted: tests and benches.
    pub loopback_exempt: bool,
}

impl LookupLimits {
    /// Limits for finding `k` nodes.
    #[must_use]
    pub const fn new(k: usize) -> Self {
        let contacts_per_response_max = if k < 20 { 20 } else { k };
        Self {
            alpha: 4,
            k,
            waited_for: 0,
            candidates_max: 8 * k + 64,
            contacts_per_response_max,
            per_subnet: None,
            loopback_exempt: false,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Unasked,
    Asked,
    Slow,
    Answered,
    Failed,
}

#[derive(Clone, Copy, Debug)]
struct Candidate {
    distance: Distance,
    contact: Contact,
    state: State,
    /// Nodes asked on the way to its name: 0 if we knew it.
    depth: u16,
    is_preferred: bool,
}

/// What a lookup has come to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LookupCounters {
    /// Nodes asked.
    pub queries: u32,
    /// Nodes that answered.
    pub answers: u32,
    /// Nodes that did not.
    pub failures: u32,
    /// Nodes that were slow, whether or not they answered in the end.
    pub slow: u32,
}

/// A search for the nodes closest to a target.
#[derive(Clone, Debug)]
pub struct Lookup {
    own: NodeId,
    target: NodeId,
    limits: LookupLimits,
    rules: ContactRules,
    /// The closest first; at most `candidates_max`.
    candidates: Vec<Candidate>,
    /// Nodes asked that stand back: who names ever closer ones is not followed for ever.
    others_asked: usize,
    counters: LookupCounters,
}

impl Lookup {
    /// Starts from the nodes we know. `own` is never asked.
    #[must_use]
    pub fn new(own: NodeId, target: NodeId, limits: LookupLimits, known: &[Contact]) -> Self {
        Self::with_rules(own, target, limits, ContactRules::NONE, known)
    }

    /// The same where some nodes are better than others.
    #[must_use]
    pub fn with_rules(
        own: NodeId,
        target: NodeId,
        limits: LookupLimits,
        rules: ContactRules,
        known: &[Contact],
    ) -> Self {
        let mut lookup = Self {
            own,
            target,
            limits,
            rules,
            candidates: Vec::with_capacity(limits.k),
            others_asked: 0,
            counters: LookupCounters::default(),
        };
        for contact in known {
            lookup.add(*contact, 0);
        }
        lookup
    }

    /// Returns what is looked for.
    #[must_use]
    pub fn target(&self) -> NodeId {
        self.target
    }

    /// Returns what has been done.
    #[must_use]
    pub fn counters(&self) -> LookupCounters {
        self.counters
    }

    /// Returns the node to ask now, if one is to be asked before something else happens.
    pub fn next_query(&mut self) -> Option<Contact> {
        let asked = |candidate: &&Candidate| candidate.state == State::Asked;
        if self.candidates.iter().filter(asked).count() >= self.limits.alpha {
            return None;
        }
        let is_unasked = |index: &usize| self.candidates[*index].state == State::Unasked;
        let index = self.nearest().into_iter().find(is_unasked)?;
        self.candidates[index].state = State::Asked;
        self.others_asked += usize::from(!self.candidates[index].is_preferred);
        self.counters.queries += 1;
        Some(self.candidates[index].contact)
    }

    /// Takes the nodes that `from` named. What was not asked is not listened to. Tells whether it
    /// was.
    pub fn on_response(&mut self, from: &Contact, named: &[Contact]) -> bool {
        let Some(index) = self.waiting_for(from) else { return false };
        self.candidates[index].state = State::Answered;
        self.counters.answers += 1;
        let depth = self.candidates[index].depth.saturating_add(1);
        for contact in named.iter().take(self.limits.contacts_per_response_max) {
            self.add(*contact, depth);
        }
        true
    }

    /// Takes a node into account that came up beside the responses.
    pub fn on_named(&mut self, contact: Contact) {
        self.add(contact, 0);
    }

    /// Notes that a node will not answer.
    pub fn on_failure(&mut self, from: &Contact) {
        if let Some(index) = self.waiting_for(from) {
            self.candidates[index].state = State::Failed;
            self.counters.failures += 1;
        }
    }

    /// Notes that a node takes longer than nodes usually do: another may be asked in its stead, and
    /// the end does not wait for it.
    pub fn on_slow(&mut self, from: &Contact) {
        if let Some(index) = self.waiting_for(from)
            && self.candidates[index].state == State::Asked
        {
            self.candidates[index].state = State::Slow;
            self.counters.slow += 1;
        }
    }

    /// Tells whether the closest nodes have answered, or there is nobody left to ask.
    #[must_use]
    pub fn is_done(&self) -> bool {
        let has_answered = |index: &usize| self.candidates[*index].state == State::Answered;
        let lives = |state| state != State::Failed;
        let mut awaited = self.eligible(lives, lives, true).take(self.limits.waited_for);
        awaited.all(|index| has_answered(&index))
            && self.nearest().iter().all(has_answered)
            && (self.answered().next().is_some() || !self.is_waiting())
    }

    /// Returns the up to k closest nodes that have answered, the closest first.
    pub fn closest(&self) -> impl Iterator<Item = Contact> {
        let answered = |state| state == State::Answered;
        let k = self.limits.k;
        let mut found: Vec<usize> = self.eligible(answered, answered, true).take(k).collect();
        let left = k - found.len();
        if left > 0 {
            found.extend(self.eligible(answered, answered, false).take(left));
            found.sort_unstable();
        }
        found.into_iter().map(|index| self.candidates[index].contact)
    }

    /// Counts the nodes asked one after the other on the way to the closest node that answered; 0
    /// if none did.
    #[must_use]
    pub fn hops(&self) -> u16 {
        self.answered().next().map_or(0, |candidate| candidate.depth.saturating_add(1))
    }

    fn answered(&self) -> impl Iterator<Item = &Candidate> {
        self.candidates.iter().filter(|candidate| candidate.state == State::Answered)
    }

    fn is_waiting(&self) -> bool {
        let open = |candidate: &Candidate| matches!(candidate.state, State::Asked | State::Slow);
        self.candidates.iter().any(open)
    }

    /// The places of the k closest that may still be a result without waiting for the slow; those
    /// that stand back, at the end, only as far as there are no others.
    fn nearest(&self) -> Vec<usize> {
        let lives = |state| state != State::Failed;
        let hopeful = |state| !matches!(state, State::Failed | State::Slow);
        let k = self.limits.k;
        let mut nearest = Vec::with_capacity(k);
        nearest.extend(self.eligible(lives, hopeful, true).take(k));
        if nearest.len() < k {
            let is_spent = self.others_asked >= 2 * k;
            let may_be =
                |index: &usize| !(is_spent && self.candidates[*index].state == State::Unasked);
            let others = self.eligible(lives, hopeful, false).filter(may_be);
            nearest.extend(others.take(k - nearest.len()));
        }
        nearest
    }

    /// The places of candidates in a wanted state, but for those of a network that has enough
    /// closer ones in a state that counts; of those that are preferred, or of the others.
    fn eligible(
        &self,
        counts: impl Fn(State) -> bool,
        is_wanted: impl Fn(State) -> bool,
        is_preferred: bool,
    ) -> impl Iterator<Item = usize> {
        let mut networks: Vec<IpAddr> = Vec::new();
        let candidates = self.candidates.iter().enumerate();
        let eligible = candidates.filter(move |(_, candidate)| {
            if candidate.is_preferred != is_preferred {
                return false;
            }
            let wanted = is_wanted(candidate.state);
            let ip = candidate.contact.address.ip();
            match self.limits.per_subnet {
                Some(count_max) if counts(candidate.state) && !self.is_exempt(ip) => {
                    let network = subnet(ip);
                    let count = networks.iter().filter(|other| **other == network).count();
                    networks.push(network);
                    wanted && count < count_max
                }
                _ => wanted,
            }
        });
        eligible.map(|(index, _)| index)
    }

    fn is_exempt(&self, ip: IpAddr) -> bool {
        self.limits.loopback_exempt && ip.is_loopback()
    }

    fn waiting_for(&self, contact: &Contact) -> Option<usize> {
        let distance = contact.id.distance(&self.target);
        let index = self.candidates.binary_search_by_key(&distance, |known| known.distance).ok()?;
        let known = &self.candidates[index];
        let open = matches!(known.state, State::Asked | State::Slow);
        (known.contact == *contact && open).then_some(index)
    }

    fn add(&mut self, contact: Contact, depth: u16) {
        if contact.id == self.own {
            return;
        }
        let distance = contact.id.distance(&self.target);
        // Most nodes that are named are known: this comes first.
        let Err(index) =
            self.candidates.binary_search_by_key(&distance, |candidate| candidate.distance)
        else {
            return;
        };
        // An address stands for one node: who names many ids for it names lies. Two are let in, as
        // a node that began anew is known to some by its old id and to others by its new one.
        let same = |candidate: &&Candidate| {
            candidate.contact.address == contact.address && candidate.state != State::Failed
        };
        if self.candidates.iter().filter(same).count() >= IDS_PER_ADDRESS_MAX {
            return;
        }
        let is_preferred = (self.rules.is_preferred)(&contact);
        if !self.has_room_for_network(contact.address.ip()) {
            return;
        }
        let state = State::Unasked;
        let candidate = Candidate { distance, contact, state, depth, is_preferred };
        if self.candidates.len() < self.limits.candidates_max {
            return self.candidates.insert(index, candidate);
        }
        let Some(dropped) = self.droppable(index, is_preferred) else { return };
        self.candidates.remove(dropped);
        self.candidates.insert(index - usize::from(dropped < index), candidate);
    }

    /// Whether one more node of a network is kept in mind: few in the stead of those that count.
    fn has_room_for_network(&self, ip: IpAddr) -> bool {
        let Some(count_max) = self.limits.per_subnet.filter(|_| !self.is_exempt(ip)) else {
            return true;
        };
        let network = subnet(ip);
        let same = |candidate: &&Candidate| {
            candidate.state != State::Failed && subnet(candidate.contact.address.ip()) == network
        };
        self.candidates.iter().filter(same).count() < count_max + SUBNET_SPARES_MAX
    }

    /// Who makes room for a newcomer at `index`: the farthest that was not asked, first of those
    /// that stand back.
    fn droppable(&self, index: usize, is_preferred: bool) -> Option<usize> {
        let unasked = |wanted: bool| {
            move |candidate: &Candidate| {
                candidate.state == State::Unasked && candidate.is_preferred == wanted
            }
        };
        let other = self.candidates.iter().rposition(unasked(false));
        if let Some(other) = other.filter(|other| is_preferred || *other >= index) {
            return Some(other);
        }
        let farthest = self.candidates.iter().rposition(unasked(true));
        farthest.filter(|farthest| is_preferred && *farthest >= index)
    }
}
