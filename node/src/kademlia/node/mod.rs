//! [`KademliaNode`]: routing table, queries under way, lookups and upkeep as one, without I/O.
//!
//! ```text
//!              handle_datagram, handle_time, lookup, query, respond
//!                                   |
//!   Message ──> Transactions ──> RoutingTable ──> searches (Lookup) ──> upkeep (seeds, refresh)
//!                                   |
//!                      poll_transmit, poll_event, deadline
//! ```
//!
//! One call in, then all of `poll_transmit` and `poll_event` out, then `deadline`: that is the
//! contract. ping and find_node are answered here; every other query comes out as
//! [`NodeEvent::Query`], so that replication and BitTorrent's DHT sit on top.
//!
//! A node enters the table only by answering a query of ours, from the address it went to; who
//! merely asks is pinged first, if there is room for it. What strangers can make us hold is
//! bounded: queries under way, pings among them, lookups, datagrams and events not yet taken.

mod event;
pub mod saved;
mod searches;
#[cfg(test)]
mod tests;
mod upkeep;

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use fastrand::Rng;

use crate::io::Monotonic;
use crate::krpc::bep5::{FindNode, Id, Nodes, Want, method};
use crate::krpc::compact::{self, Family};
use crate::krpc::message::{Body, Message, NAME_LEN_MAX, code};
use crate::krpc::private::Private;
use crate::krpc::transactions::{Answered, Overdue, TransactionLimits, Transactions};

use super::lookup::LookupLimits;
use super::routing_table::{Admission, RoutingTable, TableLimits};
use super::{Contact, ContactRules, NodeId};

pub use event::{
    Asker, Busy, CachePlace, LookupId, LookupKind, LookupOutcome, NodeCounters, NodeEvent, QueryId,
};
use searches::Search;
use upkeep::Upkeep;

/// Datagrams that wait to be sent.
pub const TRANSMITS_MAX: usize = 4_096;
/// Events that wait to be taken, before queries of others are dropped.
pub const EVENTS_MAX: usize = 1_024;
/// Pings under way to nodes that have asked us and are not known.
pub const VERIFIES_MAX: usize = 32;
/// Bytes of nodes in a reply, so that it stays below 1,024 bytes (BEP 32).
pub const REPLY_NODES_BYTES_MAX: usize = 800;

/// Decides whether a query is looked at, by where it comes from.
pub trait QueryGate: fmt::Debug {
    /// Tells whether a query of `len` bytes from `source` is taken.
    fn admits(&mut self, now: Monotonic, source: IpAddr, len: usize) -> bool;
}

/// Sizes and rules of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeLimits {
    /// The routing table.
    pub table: TableLimits,
    /// Each lookup.
    pub lookup: LookupLimits,
    /// Queries under way.
    pub transactions: TransactionLimits,
    /// Lookups under way for layers above.
    pub lookups_max: usize,
}

impl NodeLimits {
    /// For a table of those sizes.
    #[must_use]
    pub const fn of(table: TableLimits) -> Self {
        let mut lookup = LookupLimits::new(table.k);
        lookup.waited_for = 3;
        Self {
            table,
            lookup,
            transactions: TransactionLimits { outstanding_max: 2_048, peers_max: 256 },
            lookups_max: 256,
        }
    }
}

/// What a node is made with.
#[derive(Debug)]
pub struct NodeOptions {
    /// Its id.
    pub id: NodeId,
    /// Sizes and rules.
    pub limits: NodeLimits,
    /// Addresses of nodes of the network to join; none founds one.
    pub seeds: Vec<SocketAddr>,
    /// The cluster to be of; `None` for BitTorrent's DHT.
    pub private: Option<Private>,
    /// Program and version, as BEP 5 has them.
    pub version: Option<[u8; 4]>,
    /// The only family of addresses to know; `None`: both.
    pub family: Option<Family>,
    /// Whether replies say under which address the asker is seen (BEP 42).
    pub tells_address: bool,
    /// Limits queries by their source.
    pub gate: Option<Box<dyn QueryGate>>,
    /// Which nodes may be known, and which are better than others.
    pub rules: ContactRules,
}

impl NodeOptions {
    /// A node of a private cluster.
    #[must_use]
    pub fn private(id: NodeId, cluster: Private, seeds: Vec<SocketAddr>) -> Self {
        Self {
            id,
            limits: NodeLimits::of(TableLimits::PRIVATE),
            seeds,
            private: Some(cluster),
            version: None,
            family: None,
            tells_address: false,
            gate: None,
            rules: ContactRules::NONE,
        }
    }

    /// A node of BitTorrent's DHT, in one family of addresses.
    #[must_use]
    pub fn mainline(id: NodeId, family: Family, seeds: Vec<SocketAddr>) -> Self {
        Self {
            id,
            limits: NodeLimits::of(TableLimits::MAINLINE),
            seeds,
            private: None,
            version: Some(*b"KR\x00\x01"),
            family: Some(family),
            tells_address: true,
            gate: None,
            rules: ContactRules::NONE,
        }
    }
}

/// What a query of ours is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Purpose {
    /// Whether a node lives that is in the table, or wants in.
    Ping(Contact),
    /// The same for a node that has asked us and that we do not know.
    Verify(Contact),
    /// Who is at the address of a seed, and whom it knows.
    Seed,
    /// A step of a lookup.
    Lookup(LookupId, Contact),
    /// A query of the layer above.
    Caller(QueryId),
}

/// A node of a Kademlia network.
#[derive(Debug)]
pub struct KademliaNode {
    own: NodeId,
    limits: NodeLimits,
    private: Option<Private>,
    version: Option<[u8; 4]>,
    family: Option<Family>,
    tells_address: bool,
    read_only: bool,
    gate: Option<Box<dyn QueryGate>>,
    rules: ContactRules,
    rng: Rng,
    table: RoutingTable,
    queries: Transactions<Purpose>,
    searches: BTreeMap<LookupId, Search>,
    /// Lookups that wait until a further query may be started.
    stalled: VecDeque<LookupId>,
    upkeep: Upkeep,
    /// Pings under way by [`Purpose::Verify`].
    verifies: usize,
    next_id: u64,
    transmits: VecDeque<(SocketAddr, Vec<u8>)>,
    events: VecDeque<NodeEvent>,
    counters: NodeCounters,
}

/// Bytes of a reply around its body and transaction id, about: addresses, version, cluster id.
const ENVELOPE_LEN: usize = 96;

impl KademliaNode {
    /// A node that knows its seeds alone; `rng` is its own from now on.
    #[must_use]
    pub fn new(now: Monotonic, options: NodeOptions, rng: Rng) -> Self {
        let limits = options.limits;
        let mut node = Self {
            own: options.id,
            limits,
            private: options.private,
            version: options.version,
            family: options.family,
            tells_address: options.tells_address,
            read_only: false,
            gate: options.gate,
            rules: options.rules,
            rng,
            table: RoutingTable::new(options.id, limits.table, now).with_rules(options.rules),
            queries: Transactions::new(limits.transactions),
            searches: BTreeMap::new(),
            stalled: VecDeque::new(),
            upkeep: Upkeep::new(now, options.seeds),
            verifies: 0,
            next_id: 0,
            transmits: VecDeque::new(),
            events: VecDeque::new(),
            counters: NodeCounters::default(),
        };
        if node.upkeep.is_founder() {
            node.become_ready();
        }
        node
    }

    /// Returns the node's id.
    #[must_use]
    pub fn own(&self) -> NodeId {
        self.own
    }

    /// Returns the routing table.
    #[must_use]
    pub fn table(&self) -> &RoutingTable {
        &self.table
    }

    /// Returns what was seen and done.
    #[must_use]
    pub fn counters(&self) -> NodeCounters {
        self.counters
    }

    /// Returns the queries under way, with what is known of round-trip times: for metrics.
    #[must_use]
    pub fn round_trip_ms(&self, peer: &SocketAddr) -> Option<u32> {
        self.queries.estimates().of(peer).map(|estimate| estimate.mean_us / 1000)
    }

    /// Counts queries and lookups under way.
    #[must_use]
    pub fn under_way(&self) -> (usize, usize) {
        (self.queries.len(), self.searches.len())
    }

    /// Says in queries from now on whether we answer any (BEP 43).
    pub fn set_read_only(&mut self, read_only: bool) {
        self.read_only = read_only;
    }

    /// Takes a datagram.
    pub fn handle_datagram(&mut self, now: Monotonic, from: SocketAddr, datagram: &[u8]) {
        let Ok(message) = Message::decode(datagram) else {
            self.counters.rejected += 1;
            return;
        };
        self.handle_message(now, from, &message, datagram.len());
    }

    /// Takes a datagram of `len` bytes that was read already.
    pub fn handle_message(
        &mut self,
        now: Monotonic,
        from: SocketAddr,
        message: &Message<'_>,
        len: usize,
    ) {
        if message.private != self.private {
            self.counters.foreign += 1;
            return;
        }
        match message.body {
            Body::Query { method, arguments } => {
                self.on_query(now, from, message, method, arguments, len);
            }
            Body::Response { values } => {
                let Some(answered) = self.queries.on_reply(now, from, message.transaction) else {
                    self.counters.unexpected += 1;
                    return;
                };
                self.counters.responses_in += 1;
                if let Some(address) = message.ip {
                    self.push_event(NodeEvent::SeenAs { by: from, address });
                }
                self.on_response(now, from, answered, values);
            }
            Body::Error { code, text } => {
                let Some(answered) = self.queries.on_reply(now, from, message.transaction) else {
                    self.counters.unexpected += 1;
                    return;
                };
                self.counters.errors_in += 1;
                self.on_error(now, answered.purpose, code, text);
            }
        }
        self.resume(now);
    }

    /// Does what is due.
    pub fn handle_time(&mut self, now: Monotonic) {
        while let Some(overdue) = self.queries.poll_overdue(now) {
            match overdue {
                Overdue::Slow { to, datagram, purpose } => {
                    self.counters.resends += 1;
                    self.transmit(to, datagram);
                    if let Purpose::Lookup(lookup, contact) = purpose {
                        self.on_step_slow(now, lookup, &contact);
                    }
                }
                Overdue::Resend { to, datagram } => {
                    self.counters.resends += 1;
                    self.transmit(to, datagram);
                }
                Overdue::Failed { to, purpose } => {
                    self.counters.timeouts += 1;
                    self.on_timeout(now, to, purpose);
                }
            }
        }
        self.handle_upkeep(now);
        self.resume(now);
    }

    /// Returns when [`handle_time`](Self::handle_time) has something to do next.
    #[must_use]
    pub fn deadline(&self) -> Option<Monotonic> {
        let queries = self.queries.deadline();
        [queries, self.upkeep_deadline()].into_iter().flatten().min()
    }

    /// Returns a datagram to send, and where to.
    pub fn poll_transmit(&mut self) -> Option<(SocketAddr, Vec<u8>)> {
        self.transmits.pop_front()
    }

    /// Returns something that has happened.
    pub fn poll_event(&mut self) -> Option<NodeEvent> {
        self.events.pop_front()
    }

    /// Sends a query for the layer above: [`NodeEvent::Answered`], [`NodeEvent::Refused`] or
    /// [`NodeEvent::Unanswered`] follows. `arguments` is a bencoded dictionary with our id in it.
    ///
    /// # Errors
    /// Too many queries are under way.
    pub fn query(
        &mut self,
        now: Monotonic,
        to: SocketAddr,
        method: &[u8],
        arguments: &[u8],
    ) -> Result<QueryId, Busy> {
        let query = QueryId(self.draw_id());
        let is_sent = self.send_query(now, to, Purpose::Caller(query), method, arguments);
        if is_sent { Ok(query) } else { Err(Busy) }
    }

    /// Answers a query. `values` is a bencoded dictionary with our id in it.
    pub fn respond(&mut self, asker: &Asker, values: &[u8]) {
        self.reply(asker.address, &asker.transaction, Body::Response { values });
    }

    /// Refuses a query.
    pub fn respond_error(&mut self, asker: &Asker, code: i64, text: &str) {
        let text = text.as_bytes();
        self.reply(asker.address, &asker.transaction, Body::Error { code, text });
    }

    /// Returns up to `count` nodes closest to `target` that are not bad, the closest first.
    #[must_use]
    pub fn closest(&self, now: Monotonic, target: &NodeId, count: usize) -> Vec<Contact> {
        let mut found = Vec::with_capacity(count);
        self.table.closest(now, target, count, &mut found);
        found
    }

    /// Returns compact nodes near `target` for a reply to `asker`: what replies to find_node, get
    /// and find_value have. A family that is not wanted is `None`.
    #[must_use]
    pub fn compact_nodes(
        &self,
        now: Monotonic,
        target: &NodeId,
        want: Want,
        asker: &SocketAddr,
    ) -> [Option<Vec<u8>>; 2] {
        let families = [Family::V4, Family::V6];
        let wanted = families.map(|family| want.includes(family, asker));
        let [mut room, k] = [REPLY_NODES_BYTES_MAX, self.limits.table.k];
        let mut counts = [0; 2];
        let mut lists = wanted.map(|wanted| wanted.then(Vec::new));
        // The asker knows itself; twice k, since some may be of a family not wanted.
        for contact in self.closest(now, target, 2 * k + 1) {
            let index = usize::from(contact.address.is_ipv6());
            let len = families[index].node_len();
            let is_fit = contact.address != *asker && counts[index] < k && len <= room;
            if is_fit && let Some(list) = &mut lists[index] {
                compact::encode_node(&contact, list);
                counts[index] += 1;
                room -= len;
            }
        }
        lists
    }

    /// Returns the table as bytes, for [`restore`](Self::restore) after the next start.
    #[must_use]
    pub fn save(&self) -> Vec<u8> {
        // Those that have failed come last: a limit shall cut them off.
        let contacts = |failed| {
            let entries = self.table.entries().filter(move |entry| (entry.failures > 0) == failed);
            entries.map(|entry| entry.contact)
        };
        saved::encode(&self.own, contacts(false).chain(contacts(true)))
    }

    /// Takes the nodes of a saved table in as questionable and asks them; returns how many.
    ///
    /// # Errors
    /// The bytes are damaged, or another node's table.
    pub fn restore(
        &mut self,
        now: Monotonic,
        bytes: &[u8],
    ) -> Result<usize, saved::SavedTableError> {
        let contacts = saved::decode(&self.own, bytes)?;
        let usable = contacts.into_iter().filter(|contact| self.is_usable(contact));
        let usable: Vec<Contact> = usable.collect();
        for contact in &usable {
            let _ = self.table.restore(now, *contact);
        }
        self.ask_remembered(now);
        Ok(self.table.len())
    }

    fn on_query(
        &mut self,
        now: Monotonic,
        from: SocketAddr,
        message: &Message<'_>,
        method: &[u8],
        arguments: &[u8],
        len: usize,
    ) {
        if self.gate.as_mut().is_some_and(|gate| !gate.admits(now, from.ip(), len)) {
            self.counters.limited += 1;
            return;
        }
        self.counters.queries_in += 1;
        let transaction = message.transaction;
        let sender = match Id::decode(arguments) {
            Ok(id) => id.id,
            Err(error) => return self.refuse(from, transaction, &error.to_string()),
        };
        let contact = Contact { id: sender, address: from };
        match method {
            method::PING => {
                let mut values = Vec::with_capacity(32);
                Id { id: self.own }.encode(&mut values);
                self.reply(from, transaction, Body::Response { values: &values });
            }
            method::FIND_NODE => match FindNode::decode(arguments) {
                Ok(find) => self.answer_find_node(now, from, transaction, &find),
                Err(error) => return self.refuse(from, transaction, &error.to_string()),
            },
            _ => {
                let asker = Asker { address: from, transaction: transaction.to_vec() };
                let (method, arguments) = (method.to_vec(), arguments.to_vec());
                let read_only = message.read_only;
                let query = NodeEvent::Query { asker, sender, read_only, method, arguments };
                self.push_event(query);
            }
        }
        if !message.read_only {
            self.note_asker(now, contact);
        }
    }

    /// Takes note of a node that has asked us something, and answers queries itself: if there is
    /// room for it, it is pinged.
    pub fn note_asker(&mut self, now: Monotonic, contact: Contact) {
        if self.is_usable(&contact) && self.table.on_query(now, contact) == Admission::Verify {
            self.verify(now, contact);
        }
    }

    /// Takes another id. The table is kept, as far as there is room for its nodes where they belong
    /// now, and our new neighbours are looked up.
    pub fn set_own(&mut self, now: Monotonic, own: NodeId) {
        self.own = own;
        self.table.set_own(now, own);
        self.on_new_id(now);
    }

    fn answer_find_node(
        &mut self,
        now: Monotonic,
        from: SocketAddr,
        transaction: &[u8],
        find: &FindNode,
    ) {
        let [nodes, nodes6] = self.compact_nodes(now, &find.target, find.want, &from);
        let (nodes, nodes6) = (nodes.as_deref(), nodes6.as_deref());
        let mut values = Vec::with_capacity(64 + REPLY_NODES_BYTES_MAX);
        Nodes { id: self.own, nodes, nodes6 }.encode(&mut values);
        self.reply(from, transaction, Body::Response { values: &values });
    }

    fn on_response(
        &mut self,
        now: Monotonic,
        from: SocketAddr,
        answered: Answered<Purpose>,
        values: &[u8],
    ) {
        let Ok(nodes) = Nodes::decode(values) else {
            self.counters.rejected += 1;
            return self.on_error(now, answered.purpose, code::PROTOCOL, b"malformed response");
        };
        let contact = Contact { id: nodes.id, address: from };
        self.on_answer(now, contact, answered.rtt_us);
        match answered.purpose {
            Purpose::Ping(asked) => self.check_identity(now, &asked, &contact),
            Purpose::Verify(_) => self.verifies -= 1,
            Purpose::Seed if contact.id == self.own => self.upkeep.forget_seed(&from),
            Purpose::Seed => self.on_seed(now, nodes),
            Purpose::Lookup(lookup, asked) => {
                self.check_identity(now, &asked, &contact);
                self.on_step(now, lookup, &asked, &contact, nodes, values);
            }
            Purpose::Caller(query) => {
                let values = values.to_vec();
                self.events.push_back(NodeEvent::Answered { query, from: contact, values });
            }
        }
    }

    /// An error, or a response that cannot be read: somebody lives there, but says nothing of use.
    fn on_error(&mut self, now: Monotonic, purpose: Purpose, code: i64, text: &[u8]) {
        match purpose {
            Purpose::Ping(_) | Purpose::Seed => {}
            Purpose::Verify(_) => self.verifies -= 1,
            Purpose::Lookup(lookup, contact) => self.on_step_failed(now, lookup, &contact),
            Purpose::Caller(query) => {
                let text = text.get(..NAME_LEN_MAX).unwrap_or(text).to_vec();
                self.events.push_back(NodeEvent::Refused { query, code, text });
            }
        }
    }

    fn on_timeout(&mut self, now: Monotonic, to: SocketAddr, purpose: Purpose) {
        match purpose {
            Purpose::Ping(contact) => self.on_silence(now, &contact),
            Purpose::Verify(_) => self.verifies -= 1,
            Purpose::Seed => {}
            Purpose::Lookup(lookup, contact) => {
                self.on_silence(now, &contact);
                self.on_step_failed(now, lookup, &contact);
            }
            Purpose::Caller(query) => {
                self.events.push_back(NodeEvent::Unanswered { query, to });
            }
        }
    }

    /// The one who answers has another id than the one we asked: that node is not there any more.
    fn check_identity(&mut self, now: Monotonic, asked: &Contact, contact: &Contact) {
        if asked.id != contact.id {
            self.on_silence(now, asked);
        }
    }

    fn verify(&mut self, now: Monotonic, contact: Contact) {
        if self.verifies < VERIFIES_MAX && self.ping(now, Purpose::Verify(contact), contact) {
            self.verifies += 1;
        }
    }

    fn ping(&mut self, now: Monotonic, purpose: Purpose, contact: Contact) -> bool {
        let mut arguments = Vec::with_capacity(32);
        Id { id: self.own }.encode(&mut arguments);
        self.send_query(now, contact.address, purpose, method::PING, &arguments)
    }

    fn send_query(
        &mut self,
        now: Monotonic,
        to: SocketAddr,
        purpose: Purpose,
        method: &[u8],
        arguments: &[u8],
    ) -> bool {
        let Self { queries, rng, version, private, read_only, .. } = self;
        let started = queries.start(now, to, purpose, rng, |transaction| {
            let message = Message {
                transaction,
                version: version.as_ref().map(|version| &version[..]),
                read_only: *read_only,
                ip: None,
                private: *private,
                body: Body::Query { method, arguments },
            };
            let mut datagram = Vec::with_capacity(arguments.len() + 96);
            message.encode(&mut datagram);
            datagram
        });
        let Some(datagram) = started else { return false };
        self.counters.queries_out += 1;
        self.transmit(to, datagram);
        true
    }

    fn refuse(&mut self, to: SocketAddr, transaction: &[u8], text: &str) {
        let text = text.as_bytes();
        self.reply(to, transaction, Body::Error { code: code::PROTOCOL, text });
    }

    fn reply(&mut self, to: SocketAddr, transaction: &[u8], body: Body<'_>) {
        let message = Message {
            transaction,
            version: self.version.as_ref().map(|version| &version[..]),
            read_only: false,
            ip: self.tells_address.then_some(to),
            private: self.private,
            body,
        };
        let body_len = match body {
            Body::Query { arguments, .. } => arguments.len(),
            Body::Response { values } => values.len(),
            Body::Error { text, .. } => text.len(),
        };
        // Little too much: what is given back costs as much again as the reply.
        let mut datagram = Vec::with_capacity(body_len + transaction.len() + ENVELOPE_LEN);
        message.encode(&mut datagram);
        self.transmit(to, datagram);
    }

    fn transmit(&mut self, to: SocketAddr, datagram: Vec<u8>) {
        if self.transmits.len() >= TRANSMITS_MAX {
            self.counters.dropped += 1;
            return;
        }
        self.transmits.push_back((to, datagram));
    }

    /// For events that strangers cause; those about our own queries are bounded by these.
    fn push_event(&mut self, event: NodeEvent) {
        if self.events.len() >= EVENTS_MAX {
            self.counters.dropped += 1;
            return;
        }
        self.events.push_back(event);
    }

    fn draw_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    /// Whether a node can be asked at all.
    fn is_usable(&self, contact: &Contact) -> bool {
        let ip = contact.address.ip();
        let broadcast = matches!(ip, IpAddr::V4(ip) if ip.is_broadcast());
        contact.id != self.own
            && contact.address.port() != 0
            && !ip.is_unspecified()
            && !ip.is_multicast()
            && !broadcast
            && self.family.is_none_or(|family| family == Family::of(&contact.address))
            && (self.rules.is_allowed)(&contact.address)
    }
}
