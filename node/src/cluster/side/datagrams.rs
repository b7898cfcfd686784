//! [`Datagrams`]: the routing table and lookups of a node of a cluster, over its UDP socket.
//!
//! It answers find_value with small values out of the store. It leaves no copies on the way of
//! lookups and takes none.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;

use bytes::Bytes;
use fastrand::Rng;

use super::{Answer, Content, Figure, Found, SideOptions, StoreAnswer, StoreRequest};
use super::{NodeId, PeerToken, ROUTES_TICKET, Ticket};
use crate::cluster::records;
use crate::io::{Completion, Monotonic, ReceiveBuffer, Request, SocketId};
use crate::kademlia::k_bucket::HealthLimits;
use crate::kademlia::node::{
    Asker, Busy, KademliaNode, LookupId, LookupKind, LookupOutcome, NodeEvent, NodeOptions,
};
use crate::kademlia::{Contact, Health};
use crate::krpc::bep5::{Id, Nodes, Want, method as bep5_method};
use crate::krpc::gate::Gate;
use crate::krpc::message::code;
use crate::krpc::private::{
    self, DATAGRAM_VALUE_LEN_MAX, FindValue, FindValueReply, PROTOCOL, Private, SmallValue, method,
};
use crate::krpc::seal::{Opener, Sealer};
use crate::mainline::rate_limit::{RateLimits, Tier};
use crate::peer::{PEER_SOCKET_V4, PEER_SOCKET_V6};

/// Values being read for find_value; further queries go unanswered.
const READS_MAX: usize = 1_024;

/// The routing table is saved no more often than that, and only when it has changed.
const ROUTES_SAVED_EVERY_MS: u64 = 30_000;

/// Datagrams of a source in time; members of a cluster with a secret are not limited.
const RATES: RateLimits = RateLimits {
    machine: Tier { per_second: 2_000, burst: 4_000 },
    subnet: Tier { per_second: 8_000, burst: 16_000 },
    rows: 256,
    loopback_exempt: true,
};

/// The node's side of UDP.
#[derive(Debug)]
pub(super) struct Datagrams {
    node: KademliaNode,
    gate: Gate,
    sealer: Option<Sealer>,
    socket: SocketId,
    is_v6: bool,
    is_open: bool,
    /// Who asked for a lookup.
    lookups: BTreeMap<LookupId, PeerToken>,
    reads: BTreeMap<Ticket, (Asker, NodeId)>,
    next_ticket: u64,
    store: VecDeque<(Ticket, StoreRequest)>,
    answers: VecDeque<(PeerToken, Answer)>,
    /// The table that was saved last, and when the next may be.
    routes: Bytes,
    routes_due: Monotonic,
    lookups_total: u64,
    lookup_hops_total: u64,
    lookup_timeouts_total: u64,
    lookup_us_total: u64,
}

/// The socket for the family of an address.
pub(crate) fn socket_of(address: &SocketAddr) -> SocketId {
    if address.is_ipv6() { PEER_SOCKET_V6 } else { PEER_SOCKET_V4 }
}

impl Datagrams {
    pub(super) fn new(now: Monotonic, options: &SideOptions) -> Self {
        let id = options.settings.cluster.0;
        let cluster = *id.first_chunk().expect("an id is longer than a cluster's name");
        let cluster = Private { protocol: PROTOCOL, cluster };
        let seeds = options.bootstrap.iter().filter(|seed| **seed != options.address);
        let node_options = NodeOptions::private(options.node, cluster, seeds.copied().collect());
        let [.., seed] = options.seed.as_chunks::<8>().0 else {
            unreachable!("32 bytes are 4 x 8")
        };
        let mut rng = Rng::with_seed(u64::from_be_bytes(*seed));
        // Whoever knew these could do no harm: a boot id tells processes apart, no more.
        let (boot, gate_seed) = (rng.u64(..), rng.u128(..).to_be_bytes());
        let key = options.secret.as_ref().map(|secret| secret.datagram.clone());
        let opener = key.clone().map(|key| Opener::new(key, boot));
        Self {
            node: KademliaNode::new(now, node_options, rng),
            gate: Gate::new(RATES, gate_seed, opener),
            sealer: key.map(|key| Sealer::new(key, boot)),
            socket: socket_of(&options.door),
            is_v6: options.door.is_ipv6(),
            is_open: true,
            lookups: BTreeMap::new(),
            reads: BTreeMap::new(),
            next_ticket: ROUTES_TICKET.0 + 1,
            store: VecDeque::new(),
            answers: VecDeque::new(),
            routes: Bytes::new(),
            routes_due: now.plus_millis(ROUTES_SAVED_EVERY_MS),
            lookups_total: 0,
            lookup_hops_total: 0,
            lookup_timeouts_total: 0,
            lookup_us_total: 0,
        }
    }

    /// Takes the routing table that was saved last: its nodes are asked whether they are there.
    pub(super) fn restore(&mut self, now: Monotonic, answer: &StoreAnswer) {
        let StoreAnswer::Read(Found::Record(record)) = answer else { return };
        let Content::Value(table) = &record.content else { return };
        match self.node.restore(now, table) {
            Ok(count) => tracing::info!(count, "the routing table of the last run is asked"),
            Err(error) => tracing::warn!(%error, "the saved routing table is not used"),
        }
        self.routes = table.clone();
    }

    fn save_routes(&mut self, now: Monotonic) {
        self.routes_due = now.plus_millis(ROUTES_SAVED_EVERY_MS);
        let table = Bytes::from(self.node.save());
        // An empty one is worth less than any that was saved.
        if !self.node.table().is_empty() && table != self.routes {
            self.routes = table.clone();
            self.store.push_back((ROUTES_TICKET, StoreRequest::SaveRoutes { table }));
        }
    }

    /// Asks whoever is at an address who it is: who answers enters the routing table.
    pub(super) fn learn(&mut self, now: Monotonic, address: SocketAddr) {
        let mut arguments = Vec::with_capacity(32);
        Id { id: self.node.own() }.encode(&mut arguments);
        // Too many queries are under way: the table fills by itself, too.
        let _ = self.node.query(now, address, bep5_method::PING, &arguments);
    }

    pub(super) fn handle(
        &mut self,
        now: Monotonic,
        completion: Completion,
    ) -> Option<ReceiveBuffer> {
        match completion {
            Completion::Datagram { from, bytes, .. } => {
                if let Ok(datagram) = self.gate.pass(now, from.ip(), &bytes) {
                    self.node.handle_datagram(now, from, datagram);
                }
                return Some(bytes);
            }
            Completion::UdpClosed(_) => self.is_open = false,
            Completion::UdpBound(_, Err(error)) => {
                tracing::error!(%error, "the peer door's UDP socket has closed");
                self.is_open = false;
            }
            _ => {}
        }
        None
    }

    /// Does what is due, and answers queries.
    pub(super) fn advance(&mut self, now: Monotonic) {
        if self.node.deadline().is_some_and(|deadline| deadline <= now) {
            self.node.handle_time(now);
        }
        if self.routes_due <= now {
            self.save_routes(now);
        }
        while let Some(event) = self.node.poll_event() {
            match event {
                NodeEvent::Query { asker, method: name, arguments, .. } => {
                    if name == method::FIND_VALUE {
                        self.find_value(asker, &arguments);
                    } else {
                        self.node.respond_error(&asker, code::METHOD_UNKNOWN, "unknown method");
                    }
                }
                NodeEvent::LookupDone(outcome) => self.end_lookup(&outcome),
                NodeEvent::Ready => tracing::info!("the routing table has neighbours"),
                NodeEvent::Answered { .. }
                | NodeEvent::Refused { .. }
                | NodeEvent::Unanswered { .. }
                | NodeEvent::LookupResponse { .. }
                | NodeEvent::SeenAs { .. } => {}
            }
        }
    }

    fn find_value(&mut self, asker: Asker, arguments: &[u8]) {
        let Ok(find) = FindValue::decode(arguments) else {
            self.node.respond_error(&asker, code::PROTOCOL, "malformed arguments");
            return;
        };
        let is_own = records::is_own(&wal::record::Key(find.target.0));
        if self.reads.len() < READS_MAX && !is_own {
            let ticket = Ticket(self.next_ticket);
            self.next_ticket += 1;
            let key = wal::record::Key(find.target.0);
            self.store.push_back((ticket, StoreRequest::Read { key, wants_value: true }));
            self.reads.insert(ticket, (asker, find.target));
        }
    }

    /// Takes the store's answer, if it is for a query; else gives it back.
    pub(super) fn on_stored(
        &mut self,
        now: Monotonic,
        ticket: Ticket,
        answer: StoreAnswer,
    ) -> Option<StoreAnswer> {
        if ticket == ROUTES_TICKET {
            return None;
        }
        let Some((asker, target)) = self.reads.remove(&ticket) else { return Some(answer) };
        let record = match answer {
            StoreAnswer::Read(Found::Record(record)) => Some(record),
            _ => None,
        };
        let value = record.as_ref().and_then(|record| match &record.content {
            Content::Value(value) => Some((record, value)),
            Content::Tombstone => None,
        });
        let found = match value {
            None => private::Found::Nothing,
            Some((_, value)) if value.len() > DATAGRAM_VALUE_LEN_MAX => {
                private::Found::Elsewhere { len: value.len() as u64 }
            }
            Some((record, value)) => private::Found::Value(SmallValue {
                value,
                version: record.version,
                expiry_ms: (record.expiry_ms != 0).then_some(record.expiry_ms),
                cached: false,
            }),
        };
        let lists = self.node.compact_nodes(now, &target, Want::default(), &asker.address);
        let [nodes, nodes6] = &lists;
        let (nodes, nodes6) = (nodes.as_deref(), nodes6.as_deref());
        let nodes = Nodes { id: self.node.own(), nodes, nodes6 };
        let mut values = Vec::new();
        FindValueReply { nodes, found }.encode(&mut values);
        self.node.respond(&asker, &values);
        None
    }

    /// Looks for the nodes closest to an id, for a client.
    pub(super) fn look_up(
        &mut self,
        now: Monotonic,
        token: PeerToken,
        target: NodeId,
    ) -> Result<(), Busy> {
        let lookup = self.node.lookup(now, target, LookupKind::Nodes)?;
        self.lookups.insert(lookup, token);
        Ok(())
    }

    fn end_lookup(&mut self, outcome: &LookupOutcome) {
        let duration_us = outcome.ended.0.saturating_sub(outcome.started.0) / 1_000;
        let counters = outcome.counters;
        self.lookups_total += 1;
        self.lookup_hops_total += u64::from(outcome.hops);
        self.lookup_timeouts_total += u64::from(counters.failures);
        self.lookup_us_total += duration_us;
        let Some(token) = self.lookups.remove(&outcome.lookup) else { return };
        let figures = [
            ("hops", u64::from(outcome.hops)),
            ("queries", u64::from(counters.queries)),
            ("responses", u64::from(counters.answers)),
            ("timeouts", u64::from(counters.failures)),
            ("duration_us", duration_us),
        ];
        let words =
            figures.into_iter().flat_map(|(name, value)| [name.to_owned(), value.to_string()]);
        let row = |contact: &Contact| vec![contact.id.to_string(), contact.address.to_string()];
        let found = outcome.closest.iter().map(row).collect();
        self.answers.push_back((token, Answer::Report(words.collect(), found)));
    }

    /// The routing table in words.
    pub(super) fn routes(&self, now: Monotonic) -> Vec<Vec<String>> {
        let own = self.node.own();
        let entries = self.node.table().entries().map(|entry| {
            let state = match entry.health(now, HealthLimits::default()) {
                Health::Good => "good",
                Health::Questionable => "questionable",
                Health::Bad => "bad",
            };
            let rtt = match entry.rtt_us {
                0 => String::new(),
                rtt_us => format!("{:.3}", f64::from(rtt_us) / 1_000.0),
            };
            let Contact { id, address } = entry.contact;
            let bucket = own.shared_bits(&id).to_string();
            vec![id.to_string(), address.to_string(), bucket, state.to_owned(), rtt]
        });
        entries.collect()
    }

    pub(super) fn poll_store(&mut self) -> Option<(Ticket, StoreRequest)> {
        self.store.pop_front()
    }

    pub(super) fn poll_answer(&mut self) -> Option<(PeerToken, Answer)> {
        self.answers.pop_front()
    }

    pub(super) fn poll_request(&mut self) -> Option<Request> {
        loop {
            let (to, mut bytes) = self.node.poll_transmit()?;
            // There is one socket, and it is of one family.
            if to.is_ipv6() == self.is_v6 && self.is_open {
                if let Some(sealer) = &mut self.sealer {
                    sealer.seal(&mut bytes);
                }
                return Some(Request::SendDatagram {
                    socket: self.socket,
                    to,
                    bytes: bytes.into(),
                });
            }
        }
    }

    pub(super) fn deadline(&self) -> Option<Monotonic> {
        let routes = (!self.node.table().is_empty()).then_some(self.routes_due);
        [self.node.deadline(), routes].into_iter().flatten().min()
    }

    /// What closes the socket.
    pub(super) fn close(&mut self) -> Request {
        Request::CloseUdp(self.socket)
    }

    pub(super) fn is_open(&self) -> bool {
        self.is_open
    }

    pub(super) fn figures(&self) -> Vec<Figure> {
        let counters = self.node.counters();
        let routes = self.node.table().len() as u64;
        let stopped = self.gate.limited() + self.gate.seals().refused();
        vec![
            Figure::gauge("kadring_routes", "Entries of the routing table.", routes),
            Figure::counter(
                "kadring_lookups_total",
                "Lookups that have ended.",
                self.lookups_total,
            ),
            Figure::counter(
                "kadring_lookup_hops_total",
                "Nodes asked one after the other by all lookups.",
                self.lookup_hops_total,
            ),
            Figure::counter(
                "kadring_lookup_timeouts_total",
                "Queries of lookups without answer.",
                self.lookup_timeouts_total,
            ),
            Figure::counter(
                "kadring_lookup_seconds_total",
                "Time that all lookups took.",
                self.lookup_us_total,
            )
            .micros_to_seconds(),
            Figure::counter(
                "kadring_krpc_queries_received_total",
                "Queries received as datagrams.",
                counters.queries_in,
            ),
            Figure::counter(
                "kadring_krpc_queries_sent_total",
                "Queries sent as datagrams.",
                counters.queries_out,
            ),
            Figure::counter(
                "kadring_krpc_timeouts_total",
                "Queries without answer.",
                counters.timeouts,
            ),
            Figure::counter(
                "kadring_krpc_rejected_total",
                "Datagrams that were no message of this cluster.",
                counters.rejected + counters.foreign + counters.unexpected + stopped,
            ),
        ]
    }
}

#[cfg(test)]
mod tests {
    use wal::record::{Namespace, Version};

    use super::*;
    use crate::cluster::coordinator::Consistency;
    use crate::cluster::message::Record;
    use crate::cluster::settings::ClusterSettings;

    const START: Monotonic = Monotonic(1_000_000_000);

    fn address(number: u8) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, number], 7400))
    }

    fn datagrams(number: u8) -> Datagrams {
        let options = SideOptions {
            node: NodeId([number; 20]),
            door: address(number),
            address: address(number),
            bootstrap: Vec::new(),
            settings: ClusterSettings::default(),
            reads: Consistency::Majority,
            secret: None,
            value_bytes_max: 100,
            seed: [number; 32],
        };
        Datagrams::new(START, &options)
    }

    fn sent(from: &mut Datagrams) -> Vec<(SocketAddr, Vec<u8>)> {
        let requests = std::iter::from_fn(|| from.poll_request());
        let sent = requests.map(|request| match request {
            Request::SendDatagram { to, bytes, .. } => (to, bytes.to_vec()),
            other => panic!("{other:?}"),
        });
        sent.collect()
    }

    #[test]
    fn the_routing_table_outlives_the_process() {
        let (mut one, mut other) = (datagrams(1), datagrams(2));
        assert!(one.poll_store().is_none());
        one.learn(START, address(2));
        loop {
            let (questions, answers) = (sent(&mut one), sent(&mut other));
            if questions.is_empty() && answers.is_empty() {
                break;
            }
            for (_, bytes) in questions {
                other.node.handle_datagram(START, address(1), &bytes);
            }
            for (_, bytes) in answers {
                one.node.handle_datagram(START, address(2), &bytes);
            }
            one.advance(START);
            other.advance(START);
        }
        assert_eq!(one.node.table().len(), 1);
        let due = START.plus_millis(ROUTES_SAVED_EVERY_MS);
        assert!(one.deadline().is_some_and(|deadline| deadline <= due));
        one.advance(due);
        let Some((ticket, StoreRequest::SaveRoutes { table })) = one.poll_store() else {
            panic!("it is saved")
        };
        assert_eq!(one.on_stored(due, ticket, StoreAnswer::Done), None);
        one.advance(due.plus_millis(ROUTES_SAVED_EVERY_MS));
        assert!(one.poll_store().is_none(), "it has not changed");

        let mut again = datagrams(1);
        let key = wal::record::Key([0; 20]);
        let record = Record {
            namespace: Namespace::PLAIN,
            key,
            user_key: Bytes::new(),
            version: Version::default(),
            expiry_ms: 0,
            content: Content::Value(table),
        };
        again.restore(START, &StoreAnswer::Read(Found::Record(record)));
        let asked: Vec<SocketAddr> = sent(&mut again).into_iter().map(|(to, _)| to).collect();
        assert_eq!(asked, [address(2)]);
        // Nobody's table is not asked, and what was lost is not there.
        let mut third = datagrams(3);
        third.restore(START, &StoreAnswer::Read(Found::Nothing));
        assert!(sent(&mut third).is_empty());
    }
}
