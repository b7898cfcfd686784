//! [`Server`]: answers queries. A state machine without I/O.
//!
//! The owner calls [`handle_query`](Server::handle_query) for each query, at the end of a turn
//! [`end_turn`](Server::end_turn), and then takes [`poll_output`](Server::poll_output) until it is
//! empty. [`Output::Load`] is answered by [`handle_loaded`](Server::handle_loaded),
//! [`Output::Store`] by [`handle_stored`](Server::handle_stored) once the record is durable: that
//! releases the replies. Queries that get no answer at all leave no output.
//!
//! `A` is whatever the owner needs to send an answer: it comes back with it.
//!
//! A query goes through these, in this order, and what an earlier one refuses costs nothing of a
//! later one: martian filter, rate limits, arguments, token, size, salt, nearness, signature (in
//! batches), cas, seq. Queues are bounded; what does not fit is answered with 202.

mod desk;
pub mod limits;
mod replies;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::net::SocketAddr;

use bytes::Bytes;
use fastrand::Rng;
use storage::Now;

use crate::kademlia::{Contact, NodeId};
use crate::krpc::compact::Family;

use super::item::{BATCH_MAX, Item, Record, Signed, verify_all};
use super::martian::is_martian;
use super::peer_store::{PeerQuery, PeerStore};
use super::query::{AnnouncePeer, KINDS, Put, Query, QueryKind, Want};
use super::rate_limit::RateLimit;
use super::reject::Reject;
use super::retention::Retention;
use super::token::TokenKeys;
use super::values::Values;

use desk::{Desks, GetWork, PutWork, Step, Work};
use limits::{FLUSH_AFTER_MS, FLUSH_TORRENTS_MAX, SWEEP_TORRENTS_MAX};
pub use limits::{ItemLimits, ReplyLimits, ServerLimits};
use replies::{Room, fit_nodes};

/// Bytes of an answer that cost its source nothing beyond the query.
const ANSWER_LEN_FREE: usize = 512;

/// Answers the closest nodes that are known: of a target, of a family, so many, the closest first.
pub type Closest<'a> = dyn FnMut(&NodeId, Family, usize, &mut Vec<Contact>) + 'a;

/// A query as it came.
#[derive(Clone, Copy, Debug)]
pub struct Incoming<'a> {
    /// From where.
    pub from: SocketAddr,
    /// Our id as the source knows it: it follows the address, and so the family.
    pub own: NodeId,
    /// The method.
    pub method: &'a [u8],
    /// The raw dictionary of arguments.
    pub arguments: &'a [u8],
    /// Bytes of the datagram: what the answer's length is measured by.
    pub datagram_len: usize,
    /// Bytes of the transaction id, which the answer repeats.
    pub transaction_len: usize,
    /// Whether the source has answered a query of ours lately: its address is not forged.
    pub is_proven: bool,
}

/// What the owner is to do.
#[derive(Debug, PartialEq, Eq)]
pub enum Output<A> {
    /// Send a response with these values.
    Respond {
        /// To whom.
        asker: A,
        /// A bencoded dictionary.
        values: Vec<u8>,
    },
    /// Send an error.
    Refuse {
        /// To whom.
        asker: A,
        /// Why.
        reject: Reject,
    },
    /// Read the item's record from the engine.
    Load {
        /// Where.
        target: NodeId,
    },
    /// Write the item's record to the engine, and say when it is durable.
    Store {
        /// Where.
        target: NodeId,
        /// The record.
        record: Bytes,
        /// When it expires, in ms since 1970.
        expiry_ms: u64,
    },
    /// Write a torrent's peers, or remove them; nobody waits for it.
    StorePeers {
        /// Which torrent.
        info_hash: NodeId,
        /// The record and when it expires; `None`: there are no peers any more.
        record: Option<(Vec<u8>, u64)>,
    },
}

/// What has happened so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ServerCounters {
    /// Queries without answer: from martians.
    pub martian: u64,
    /// Queries without answer: over the rate limits.
    pub limited: u64,
    /// Queries answered with an error.
    pub refused: u64,
    /// Queries answered.
    pub answered: u64,
    /// Answers without the value there is: it would be too much for a source that may be forged.
    pub withheld: u64,
    /// Signatures checked.
    pub signatures: u64,
    /// Records that are no items.
    pub damaged: u64,
    /// Queries that could be read, by kind: see [`QueryKind::index`].
    pub kinds: [u64; KINDS],
    /// Of these, by kind: those answered, and those answered with an error. The others wait.
    pub outcomes: [[u64; 2]; KINDS],
}

/// Whom an answer goes to, and how long it may be.
#[derive(Debug)]
struct Who<A> {
    asker: A,
    /// What was asked, as in [`QueryKind::index`]; `None`: nothing that can be read, or by us.
    kind: Option<usize>,
    from: SocketAddr,
    own: NodeId,
    room: Room,
}

/// A put that waits for its signature to be checked.
#[derive(Debug)]
struct Unverified<A> {
    target: NodeId,
    signed: Signed,
    put: PutWork<Who<A>>,
}

/// Answers queries.
#[derive(Debug)]
pub struct Server<A> {
    own: NodeId,
    limits: ServerLimits,
    tokens: TokenKeys,
    rates: RateLimit,
    peers: PeerStore,
    retention: Retention,
    desks: Desks<Who<A>>,
    unverified: Vec<Unverified<A>>,
    steps: VecDeque<Step<Who<A>>>,
    outputs: VecDeque<Output<A>>,
    flush_at_ms: Option<u64>,
    now_ns: u64,
    counters: ServerCounters,
    rng: Rng,
}

impl<A> Server<A> {
    /// Starts with nothing stored. `seed` is random and secret: tables are keyed by it.
    #[must_use]
    pub fn new(own: NodeId, limits: ServerLimits, tokens: TokenKeys, seed: [u8; 16]) -> Self {
        let [first, second] =
            [0, 8].map(|at| seed[at..at + 8].try_into().map_or(0, u64::from_le_bytes));
        Self {
            own,
            limits,
            tokens,
            rates: RateLimit::new(limits.rates, seed),
            peers: PeerStore::new(limits.peers, own),
            retention: Retention::new(own, limits.items.count_max, seed),
            desks: Desks::new(limits.items.pending_max, limits.items.target_pending_max),
            unverified: Vec::new(),
            steps: VecDeque::new(),
            outputs: VecDeque::new(),
            flush_at_ms: None,
            now_ns: 0,
            counters: ServerCounters::default(),
            rng: Rng::with_seed(first ^ second.rotate_left(32)),
        }
    }

    /// What has happened so far.
    #[must_use]
    pub fn counters(&self) -> ServerCounters {
        self.counters
    }

    /// The peers.
    #[must_use]
    pub fn peers(&self) -> &PeerStore {
        &self.peers
    }

    /// The peers, to take in what an earlier life has written.
    pub fn peers_mut(&mut self) -> &mut PeerStore {
        &mut self.peers
    }

    /// Who stays when there are too many items; told of the engine by the owner.
    pub fn retention_mut(&mut self) -> &mut Retention {
        &mut self.retention
    }

    /// The state of the tokens, to be kept.
    #[must_use]
    pub fn token_state(&self) -> Vec<u8> {
        self.tokens.encode()
    }

    /// Goes on with the tokens of an earlier life.
    pub fn set_tokens(&mut self, tokens: TokenKeys) {
        self.tokens = tokens;
    }

    /// Queries that wait for the engine or for their signatures.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.desks.waiting() + self.unverified.len()
    }

    /// We have another id now (BEP 42).
    pub fn set_own(&mut self, own: NodeId) {
        self.own = own;
        self.peers.set_own(own);
        self.retention.set_own(own);
    }

    /// Tells whether signatures wait for [`end_turn`](Self::end_turn).
    #[must_use]
    pub fn has_unverified(&self) -> bool {
        !self.unverified.is_empty()
    }

    /// Takes a query. `closest` is asked at once, if at all. Tells whether it gets an answer: not
    /// from martians, and not over the rate limits.
    pub fn handle_query(
        &mut self,
        now: Now,
        incoming: &Incoming<'_>,
        asker: A,
        closest: &mut Closest<'_>,
    ) -> bool {
        self.now_ns = now.monotonic_ns;
        let from = incoming.from;
        if is_martian(&from, self.limits.locals) {
            self.counters.martian += 1;
            return false;
        }
        if !self.rates.admit(now.monotonic_ns, from.ip()) {
            self.counters.limited += 1;
            return false;
        }
        let room = Room::of(incoming, &self.limits.replies);
        let mut who = Who { asker, kind: None, from, own: incoming.own, room };
        match Query::decode(incoming.method, incoming.arguments) {
            Ok(query) => {
                let kind = query.kind.index();
                self.counters.kinds[kind] += 1;
                who.kind = Some(kind);
                self.dispatch(now, &query, who, closest);
            }
            Err(reject) => self.refuse(who, reject),
        }
        true
    }

    /// Takes in an item that we want to hold ourselves, its signature checked already. It is
    /// answered as a put is: neither token nor nearness count, but seq and `cas` do.
    pub fn adopt(&mut self, now: Now, item: &Item<'_>, cas: Option<i64>, asker: A) {
        let who = self.ourselves(asker);
        let record = Record { put_ms: now.clock_ms, item: *item }.encode();
        let is_mutable = matches!(item, Item::Mutable(_));
        let work = PutWork { who, record: record.into(), cas, is_mutable };
        let target = item.target();
        self.desks.add(target, Work::Put(work), &mut self.steps);
        self.carry_out(now, target);
    }

    /// Looks an item up for ourselves; of a mutable one only what is newer than `seq`. It is
    /// answered as a get is, without nodes.
    pub fn look_up(&mut self, now: Now, target: NodeId, seq: Option<i64>, asker: A) {
        let who = self.ourselves(asker);
        let get = GetWork { who, seq, nodes: [None, None], token: [0; 8], is_near: false };
        self.desks.add(target, Work::Get(get), &mut self.steps);
        self.carry_out(now, target);
    }

    fn ourselves(&self, asker: A) -> Who<A> {
        let from = SocketAddr::from(([0, 0, 0, 0], 0));
        Who { asker, kind: None, from, own: self.own, room: Room::UNBOUNDED }
    }

    /// Checks the signatures that have gathered.
    pub fn end_turn(&mut self, now: Now) {
        if self.unverified.is_empty() {
            return;
        }
        let waiting = std::mem::take(&mut self.unverified);
        let (signed, puts): (Vec<Signed>, Vec<_>) =
            waiting.into_iter().map(|one| (one.signed, (one.target, one.put))).unzip();
        self.counters.signatures += signed.len() as u64;
        for (is_valid, (target, put)) in verify_all(&signed).into_iter().zip(puts) {
            if is_valid {
                self.desks.add(target, Work::Put(put), &mut self.steps);
                self.carry_out(now, target);
            } else {
                self.refuse(put.who, Reject::Signature);
            }
        }
    }

    /// Takes what the engine holds for a target; `Err`: it could not read it.
    pub fn handle_loaded(
        &mut self,
        now: Now,
        target: NodeId,
        record: Result<Option<Bytes>, LoadFailed>,
    ) {
        self.desks.on_loaded(target, record.map_err(|LoadFailed| ()), &mut self.steps);
        self.carry_out(now, target);
    }

    /// Takes word that a record is durable; `Err`: it may be lost.
    pub fn handle_stored(&mut self, now: Now, target: NodeId, result: Result<(), StoreFailed>) {
        let result = result.map_err(|StoreFailed| Reject::Storage);
        self.desks.on_stored(target, result, &mut self.steps);
        self.carry_out(now, target);
    }

    /// Hands out peers that have changed, and forgets expired ones.
    pub fn handle_time(&mut self, now: Now) {
        if self.flush_at_ms.is_none_or(|flush_at_ms| now.clock_ms < flush_at_ms) {
            return;
        }
        self.peers.sweep(now.clock_ms, SWEEP_TORRENTS_MAX);
        let is_done = self.flush_peers();
        let is_idle = is_done && self.peers.is_empty();
        let next_ms = if is_done { 10 * FLUSH_AFTER_MS } else { 0 };
        self.flush_at_ms = (!is_idle).then(|| now.clock_ms.saturating_add(next_ms));
    }

    /// Hands out some of the torrents whose peers have changed, due or not; tells whether that were
    /// all. Before a stop it is called until it says so.
    pub fn flush_peers(&mut self) -> bool {
        for _ in 0..FLUSH_TORRENTS_MAX {
            let Some((info_hash, record)) = self.peers.pop_dirty() else { return true };
            self.outputs.push_back(Output::StorePeers { info_hash, record });
        }
        false
    }

    /// When [`handle_time`](Self::handle_time) has something to do, in ms since 1970.
    #[must_use]
    pub fn deadline_ms(&self) -> Option<u64> {
        self.flush_at_ms
    }

    /// Takes out what is to be done next.
    pub fn poll_output(&mut self) -> Option<Output<A>> {
        self.outputs.pop_front()
    }

    fn dispatch(&mut self, now: Now, query: &Query<'_>, who: Who<A>, closest: &mut Closest<'_>) {
        match &query.kind {
            QueryKind::Ping => self.acknowledge(who),
            QueryKind::FindNode { target, want } => {
                let nodes = self.nodes(target, *want, &who, closest).0;
                let values = Values { id: who.own, ..Values::default() };
                self.respond_with_nodes(who, values, &nodes);
            }
            QueryKind::GetPeers { .. } => self.get_peers(now, query, who, closest),
            QueryKind::AnnouncePeer(announce) => self.announce_peer(now, announce, who),
            QueryKind::Get { target, seq, want } => {
                self.retention.on_get(target, who.from.ip());
                let (nodes, is_near) = self.nodes(target, *want, &who, closest);
                let token = self.tokens.token(now.clock_ms, who.from.ip(), target);
                let is_near = is_near && self.retention.admits(target);
                let get = GetWork { who, seq: *seq, nodes, token, is_near };
                self.desks.add(*target, Work::Get(get), &mut self.steps);
                self.carry_out(now, *target);
            }
            QueryKind::Put(put) => self.put(now, put, who, closest),
            QueryKind::SampleInfohashes { target, want } => {
                let nodes = self.nodes(target, *want, &who, closest).0;
                let sample = self.peers.sample(now.clock_ms, &mut self.rng);
                let values = Values {
                    id: who.own,
                    interval: Some(sample.interval),
                    num: Some(i64::try_from(sample.count).unwrap_or(i64::MAX)),
                    samples: Some(&sample.info_hashes),
                    ..Values::default()
                };
                self.respond_with_nodes(who, values, &nodes);
            }
        }
    }

    fn put(&mut self, now: Now, put: &Put<'_>, who: Who<A>, closest: &mut Closest<'_>) {
        let target = put.item.target();
        if let Err(reject) = self.check_put(now, &target, put, &who, closest) {
            return self.refuse(who, reject);
        }
        let record = Record { put_ms: now.clock_ms, item: put.item }.encode();
        let is_mutable = matches!(put.item, Item::Mutable(_));
        let work = PutWork { who, record: record.into(), cas: put.cas, is_mutable };
        let Item::Mutable(item) = &put.item else {
            self.desks.add(target, Work::Put(work), &mut self.steps);
            return self.carry_out(now, target);
        };
        if self.pending() >= self.limits.items.pending_max {
            return self.refuse(work.who, Reject::Busy);
        }
        self.unverified.push(Unverified { target, signed: Signed::of(item), put: work });
        if self.unverified.len() >= BATCH_MAX {
            self.end_turn(now);
        }
    }

    fn check_put(
        &mut self,
        now: Now,
        target: &NodeId,
        put: &Put<'_>,
        who: &Who<A>,
        closest: &mut Closest<'_>,
    ) -> Result<(), Reject> {
        if !self.tokens.is_valid(now.clock_ms, who.from.ip(), target, put.token) {
            return Err(Reject::Token);
        }
        put.item.check()?;
        let is_near = self.nodes(target, Want::default(), who, closest).1;
        if is_near && self.retention.admits(target) { Ok(()) } else { Err(Reject::NotStored) }
    }

    fn get_peers(&mut self, now: Now, query: &Query<'_>, who: Who<A>, closest: &mut Closest<'_>) {
        let QueryKind::GetPeers { info_hash, want, noseed, scrape } = &query.kind else { return };
        let (nodes, is_near) = self.nodes(info_hash, *want, &who, closest);
        let token = self.tokens.token(now.clock_ms, who.from.ip(), info_hash);
        let family = Family::of(&who.from);
        let filters = scrape.then(|| self.peers.filters(now.clock_ms, info_hash)).flatten();
        let mut values = Values { id: who.own, ..Values::default() };
        if let Some((seeds, leeches)) = &filters {
            (values.seeds, values.leeches) = (Some(&seeds.0), Some(&leeches.0));
        }
        // Room for the nodes is kept: without them the asker cannot go on.
        let count = who.room.peers(&values, &nodes, family).min(self.limits.replies.peers_max);
        let wanted = PeerQuery { info_hash, family, noseed: *noseed, count };
        let peers = self.peers.peers(now.clock_ms, &wanted, &mut self.rng);
        // Whoever holds peers of the torrent takes more, near or not.
        let is_held = filters.is_some() || !peers.is_empty();
        if is_held || (is_near && self.peers.has_room(info_hash)) {
            values.token = Some(&token);
        }
        values.peers = (!peers.is_empty()).then_some(peers);
        self.respond_with_nodes(who, values, &nodes);
    }

    fn announce_peer(&mut self, now: Now, announce: &AnnouncePeer<'_>, who: Who<A>) {
        let (ip, info_hash) = (who.from.ip(), &announce.info_hash);
        if !self.tokens.is_valid(now.clock_ms, ip, info_hash, announce.token) {
            return self.refuse(who, Reject::Token);
        }
        let address = SocketAddr::new(ip, announce.port.unwrap_or_else(|| who.from.port()));
        if !self.peers.announce(now.clock_ms, info_hash, address, announce.seed) {
            return self.refuse(who, Reject::NotStored);
        }
        let flush_at_ms = now.clock_ms.saturating_add(FLUSH_AFTER_MS);
        let earlier = self.flush_at_ms.map_or(flush_at_ms, |before| before.min(flush_at_ms));
        self.flush_at_ms = Some(earlier);
        self.acknowledge(who);
    }

    /// The closest nodes, compact, of the families that go to the asker; and whether we are among
    /// those that store for the target.
    fn nodes(
        &self,
        target: &NodeId,
        want: Want,
        who: &Who<A>,
        closest: &mut Closest<'_>,
    ) -> ([Option<Vec<u8>>; 2], bool) {
        let from = &who.from;
        let limits = &self.limits.replies;
        let mut is_near = true;
        let nodes = [Family::V4, Family::V6].map(|family| {
            let is_own = family == Family::of(from);
            if !is_own && !want.includes(family, from) {
                return None;
            }
            let mut contacts = Vec::with_capacity(limits.nodes_max);
            closest(target, family, limits.nodes_max, &mut contacts);
            if is_own {
                is_near = self.is_near(&who.own, target, &contacts);
            }
            let exempt = self.limits.rates.loopback_exempt;
            super::subnet::cap(&mut contacts, limits.nodes_per_subnet_max, exempt);
            want.includes(family, from).then(|| replies::encode_nodes(&contacts))
        });
        (nodes, is_near)
    }

    fn is_near(&self, own: &NodeId, target: &NodeId, closest: &[Contact]) -> bool {
        if closest.len() < self.limits.replies.nodes_max {
            return true;
        }
        let last = closest.last().map_or(0, |contact| contact.id.shared_bits(target));
        own.shared_bits(target) + self.limits.items.near_slack_bits >= last
    }

    fn carry_out(&mut self, now: Now, target: NodeId) {
        while let Some(step) = self.steps.pop_front() {
            match step {
                Step::Load => self.outputs.push_back(Output::Load { target }),
                Step::Store(record) => {
                    let expiry_ms = now.clock_ms.saturating_add(self.limits.items.ttl_ms);
                    self.outputs.push_back(Output::Store { target, record, expiry_ms });
                }
                Step::Found(get, record) => self.found(get, record.as_deref()),
                Step::Stored(who) => self.acknowledge(who),
                Step::Refused(who, reject) => self.refuse(who, reject),
            }
        }
    }

    fn found(&mut self, get: GetWork<Who<A>>, record: Option<&[u8]>) {
        let record = record.map(Record::decode).transpose();
        self.counters.damaged += u64::from(record.is_err());
        let item = record.ok().flatten().map(|record| record.item);
        let GetWork { who, seq, nodes, token, is_near } = get;
        let mut values = Values { id: who.own, ..Values::default() };
        values.token = (is_near || item.is_some()).then_some(&token);
        match &item {
            None => {}
            Some(Item::Immutable(value)) => values.value = Some(value),
            Some(Item::Mutable(item)) => {
                values.seq = Some(item.seq);
                if seq.is_none_or(|seq| item.seq > seq) {
                    (values.key, values.signature) = (Some(item.key), Some(item.signature));
                    values.value = Some(item.value);
                }
            }
        }
        if !who.room.fits(&values) {
            self.counters.withheld += 1;
            (values.value, values.key, values.signature, values.seq) = (None, None, None, None);
        }
        self.respond_with_nodes(who, values, &nodes);
    }

    fn respond_with_nodes<'a>(
        &mut self,
        who: Who<A>,
        mut values: Values<'a>,
        [v4, v6]: &'a [Option<Vec<u8>>; 2],
    ) {
        let room = who.room.left(&values);
        values.nodes = v4.as_ref().map(|nodes| fit_nodes(nodes, Family::V4, room));
        let room = who.room.left(&values);
        values.nodes6 = v6.as_ref().map(|nodes| fit_nodes(nodes, Family::V6, room));
        self.respond(who, &values);
    }

    fn acknowledge(&mut self, who: Who<A>) {
        let values = Values { id: who.own, ..Values::default() };
        self.respond(who, &values);
    }

    fn respond(&mut self, who: Who<A>, values: &Values<'_>) {
        let mut bytes = Vec::with_capacity(512);
        values.encode(&mut bytes);
        self.counters.answered += 1;
        if let Some(kind) = who.kind {
            self.counters.outcomes[kind][0] += 1;
        }
        if !who.room.is_proven() {
            // A long answer to a source that may be forged counts as several queries.
            let charged = u32::try_from(bytes.len() / ANSWER_LEN_FREE).unwrap_or(u32::MAX);
            self.rates.charge(self.now_ns, who.from.ip(), charged);
        }
        self.outputs.push_back(Output::Respond { asker: who.asker, values: bytes });
    }

    fn refuse(&mut self, who: Who<A>, reject: Reject) {
        self.counters.refused += 1;
        if let Some(kind) = who.kind {
            self.counters.outcomes[kind][1] += 1;
        }
        self.outputs.push_back(Output::Refuse { asker: who.asker, reject });
    }
}

/// The engine could not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the item could not be read")]
pub struct LoadFailed;

/// The engine could not write, or does not know whether it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the item could not be stored")]
pub struct StoreFailed;
