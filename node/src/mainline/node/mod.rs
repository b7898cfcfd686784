//! [`MainlineNode`]: a node of BitTorrent's DHT in both families of addresses, without I/O.
//!
//! ```text
//! handle_datagram ──> queries ──> Server ──> StoreWork ──> engine ──> handle_loaded, handle_stored
//!                 └─> replies ──> KademliaNode (IPv4, IPv6) ──> operations, mirror ──> events
//! ```
//!
//! One call in, then all of `poll_transmit`, `poll_store` and `poll_event` out, then `deadline`:
//! that is the contract. `end_turn` follows the last datagram of a turn of the loop: signatures are
//! checked then, many at once.
//!
//! Queries of strangers go to the [`Server`] whatever family they come by; each family has a table,
//! an id that fits its address (BEP 42) and a word on whether it is reachable (BEP 43) of its own.
//! What clients of ours ask for is an [`event::OperationId`] until its [`MainlineEvent::Ended`].

mod client;
pub mod event;
pub mod mirror;
mod operation;
mod side;
pub mod state;
mod storing;
mod unplaced;

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};

use bytes::Bytes;
use fastrand::Rng;
use storage::Now;

use crate::io::{Monotonic, SocketId};
use crate::kademlia::node::{Asker, NodeCounters, NodeEvent};
use crate::kademlia::{Contact, NodeId, RoutingTable};
use crate::krpc::bep5::Id;
use crate::krpc::compact::Family;
use crate::krpc::message::{Body, Message};

use super::reachability::Announced;
use super::retention::Held;
use super::server::{Incoming, LoadFailed, Output, Server, ServerLimits, StoreFailed};
use super::token::TokenKeys;

use event::{MainlineEvent, OperationId, SOCKET_V4, SOCKET_V6, Scanned, StoreWork};
use mirror::{Mirror, MirrorOptions, MirrorProgress, SCAN_ITEMS_MAX};
pub use operation::{OPERATION_TIMEOUT_MS, OPERATIONS_MAX, STORES_AT_ONCE_MAX};
use operation::{Operations, Republisher};
pub use side::{CONTACT_MS, CONTACTED_MAX};
use side::{Side, SideOptions};
use state::{SideState, State, StateError};
use unplaced::Unplaced;
pub use unplaced::{PLACE_AFTER_MS, PLACE_GAP_MS, UNPLACED_MAX};

/// Events that wait to be taken, before further finds are dropped; ends of operations never are.
pub const EVENTS_MAX: usize = 4_096;
/// The state is saved so often while nothing special has happened.
pub const SAVE_GAP_MS: u64 = 10 * 60 * 1000;
/// After something special it is saved so much later, with what else happens till then.
pub const SAVE_SOON_MS: u64 = 2_000;

/// Guards against lies, which are all on but for measurements without them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Defences {
    /// Nodes whose id fits their address are preferred (BEP 42).
    pub fitting_ids: bool,
    /// Few nodes of one network are in the table.
    pub table_caps: bool,
    /// One node of a network counts in a lookup.
    pub lookup_caps: bool,
}

impl Defences {
    /// All.
    pub const ALL: Self = Self { fitting_ids: true, table_caps: true, lookup_caps: true };
}

/// What a node is made with.
#[derive(Clone, Debug)]
pub struct MainlineOptions {
    /// Which sockets there are: of IPv4, of IPv6.
    pub sockets: [bool; 2],
    /// Our own address, for answers that tell of what this node does itself.
    pub here: SocketAddr,
    /// Addresses of nodes to begin with, of both families.
    pub seeds: Vec<SocketAddr>,
    /// Whether further ones are being looked up, for [`MainlineNode::add_seeds`].
    pub awaits_seeds: bool,
    /// Limits of the server. `locals` and `rates.loopback_exempt` hold for tables and lookups, too.
    pub server: ServerLimits,
    /// Our addresses as the operator knows them: ids fit them from the start.
    pub advertised: [Option<IpAddr>; 2],
    /// Whether others reach us, as the operator knows it.
    pub announced: Announced,
    /// Whether items are kept and republished.
    pub mirror: Option<MirrorOptions>,
    /// Guards against lies.
    pub defences: Defences,
}

impl MainlineOptions {
    /// A node of both families on the public network.
    #[must_use]
    pub fn new(seeds: Vec<SocketAddr>) -> Self {
        Self {
            sockets: [true; 2],
            here: SocketAddr::from(([0; 4], 0)),
            seeds,
            awaits_seeds: false,
            server: ServerLimits::default(),
            advertised: [None; 2],
            announced: Announced::Unknown,
            mirror: None,
            defences: Defences::ALL,
        }
    }
}

/// Chance and secrets, from the kernel.
#[derive(Clone, Debug)]
pub struct Entropy {
    /// The secret of the write tokens, unless there is a saved one.
    pub tokens: [u8; 16],
    /// Keys of tables that strangers fill.
    pub tables: [u8; 16],
    /// Everything else.
    pub rng: Rng,
}

/// Whom the server answers.
#[derive(Debug)]
pub enum Origin {
    /// A node that has sent a query.
    Remote(Family, Asker),
    /// An operation of a client of ours.
    Operation(OperationId),
    /// Nobody: we store an item ourselves.
    Own,
}

/// What a node has seen and done since its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MainlineCounters {
    /// Datagrams that were no message.
    pub rejected: u64,
    /// Events dropped since nobody took those before them.
    pub events_dropped: u64,
    /// Operations begun, republishing apart.
    pub operations: u64,
    /// Operations that took too long.
    pub operations_late: u64,
    /// Changes of an id.
    pub ids_changed: u64,
    /// Of the nodes in IPv4 and IPv6.
    pub nodes: [NodeCounters; 2],
}

/// A node of BitTorrent's DHT.
#[derive(Debug)]
pub struct MainlineNode {
    sides: [Option<Side>; 2],
    server: Server<Origin>,
    operations: Operations,
    mirror: Option<Mirror>,
    unplaced: Unplaced,
    here: SocketAddr,
    rng: Rng,
    work: VecDeque<StoreWork>,
    events: VecDeque<MainlineEvent>,
    /// Whether a list of keys is asked of the engine.
    is_listing: bool,
    save_at: Monotonic,
    /// Whether the node is to find others before it is ready, though it knows no seeds yet.
    awaits_seeds: bool,
    /// When something was told last.
    now: Now,
    counters: MainlineCounters,
}

impl MainlineNode {
    /// A node that knows its seeds alone. [`restore`](Self::restore) comes next, if there is a
    /// state.
    #[must_use]
    pub fn new(now: Now, options: MainlineOptions, entropy: Entropy) -> Self {
        let Entropy { tokens, tables, mut rng } = entropy;
        let time = Monotonic(now.monotonic_ns);
        let MainlineOptions { sockets, seeds, mut server, advertised, announced, .. } = options;
        let sides = [Family::V4, Family::V6].map(|family| {
            let of_family = |seed: &&SocketAddr| Family::of(seed) == family;
            let side = SideOptions {
                family,
                seeds: seeds.iter().filter(of_family).copied().collect(),
                advertised: advertised[place(family)],
                announced,
                server: &server,
                defences: options.defences,
            };
            sockets[place(family)].then(|| Side::new(time, side, &mut rng))
        });
        if let Some(mirror) = &options.mirror {
            server.items.ttl_ms = mirror.keep_ms;
        }
        let own = main_id(&sides);
        Self {
            sides,
            server: Server::new(own, server, TokenKeys::new(tokens), tables),
            operations: Operations::default(),
            mirror: options.mirror.map(|mirror| Mirror::new(now.clock_ms, mirror)),
            unplaced: Unplaced::default(),
            here: options.here,
            rng,
            work: VecDeque::new(),
            events: VecDeque::new(),
            is_listing: false,
            save_at: time,
            awaits_seeds: options.awaits_seeds,
            now,
            counters: MainlineCounters::default(),
        }
    }

    /// Goes on from what an earlier life has saved; returns how many nodes it knew. What does not
    /// fit any more is left out.
    ///
    /// # Errors
    /// The bytes are damaged: nothing has changed.
    pub fn restore(&mut self, now: Now, state: &[u8]) -> Result<usize, StateError> {
        let state = State::decode(state)?;
        let time = Monotonic(now.monotonic_ns);
        if let Some(tokens) = TokenKeys::decode(&state.tokens) {
            self.server.set_tokens(tokens);
        }
        let mut known = 0;
        for (side, saved) in self.sides.iter_mut().zip(&state.sides) {
            let Some(side) = side else { continue };
            if let Some(id) = saved.id {
                side.node.set_own(time, id);
            }
            side.external.restore(&saved.external);
            known += side.node.restore(time, &saved.table).unwrap_or(0);
            side.follow_advertised(time, &mut self.rng);
            if saved.is_reached {
                side.reachability.restore();
                side.node.set_read_only(side.reachability.is_read_only());
            }
        }
        self.server.set_own(main_id(&self.sides));
        if let (Some(mirror), Some(round)) = (&mut self.mirror, state.mirror) {
            mirror.restore(round);
        }
        state.unplaced.into_iter().for_each(|target| self.unplaced.insert(target));
        self.save_at = time.plus_millis(SAVE_GAP_MS);
        self.settle(now);
        Ok(known)
    }

    /// Takes addresses of nodes to begin with that were not known at the start.
    pub fn add_seeds(&mut self, now: Now, seeds: &[SocketAddr]) {
        let time = Monotonic(now.monotonic_ns);
        for side in self.sides.iter_mut().flatten() {
            let of_family = |seed: &&SocketAddr| Family::of(seed) == side.family;
            let seeds: Vec<SocketAddr> = seeds.iter().filter(of_family).copied().collect();
            side.has_seeds |= !seeds.is_empty();
            side.node.add_seeds(time, &seeds);
        }
        self.settle(now);
    }

    /// Takes in a torrent's peers that an earlier life has written; tells whether they are any.
    pub fn restore_peers(&mut self, info_hash: &NodeId, record: &[u8]) -> bool {
        self.server.peers_mut().restore(info_hash, record)
    }

    /// Takes from the engine how many items there are; told now and then.
    pub fn set_held(&mut self, items: u64) {
        self.server.retention_mut().set_held(items);
        self.list_items();
    }

    /// Takes a datagram.
    pub fn handle_datagram(
        &mut self,
        now: Now,
        socket: SocketId,
        from: SocketAddr,
        datagram: &[u8],
    ) {
        let family = if socket == SOCKET_V6 { Family::V6 } else { Family::V4 };
        let Some(side) = self.sides[place(family)].as_mut() else { return };
        let Ok(message) = Message::decode(datagram) else {
            self.counters.rejected += 1;
            return;
        };
        match message.body {
            Body::Query { method, arguments } if message.private.is_none() => {
                self.on_query(now, family, from, &message, (method, arguments), datagram.len());
            }
            _ => {
                let time = Monotonic(now.monotonic_ns);
                side.node.handle_message(time, from, &message, datagram.len());
            }
        }
        self.settle(now);
    }

    /// Ends a turn of the loop: checks the signatures that have gathered.
    pub fn end_turn(&mut self, now: Now) {
        self.server.end_turn(now);
        self.settle(now);
    }

    /// Does what is due.
    pub fn handle_time(&mut self, now: Now) {
        let time = Monotonic(now.monotonic_ns);
        self.server.end_turn(now);
        self.server.handle_time(now);
        for side in self.sides.iter_mut().flatten() {
            side.handle_time(time);
        }
        if time >= self.save_at {
            self.save_at = time.plus_millis(SAVE_GAP_MS);
            let state = self.state();
            self.work.push_back(StoreWork::SaveState(state));
        }
        self.end_late(now);
        self.settle(now);
    }

    /// Hands out, as work for the engine, peers that have changed and are not written yet; tells
    /// whether that were all. Before a stop it is called until it says so.
    pub fn flush_peers(&mut self, now: Now) -> bool {
        let is_done = self.server.flush_peers();
        self.settle(now);
        is_done
    }

    /// Returns when [`handle_time`](Self::handle_time) has something to do next.
    #[must_use]
    pub fn deadline(&self) -> Option<Monotonic> {
        let now = Monotonic(self.now.monotonic_ns);
        let clock = |ms: u64| now.plus_millis(ms.saturating_sub(self.now.clock_ms));
        let sides = self.sides.iter().flatten().filter_map(Side::deadline);
        let mirror = self.mirror.as_ref().and_then(Mirror::deadline_ms);
        let others = [
            Some(self.save_at),
            self.server.has_unverified().then_some(now),
            self.server.deadline_ms().map(clock),
            mirror.map(clock),
            self.unplaced.deadline(),
            self.operations.deadline(),
        ];
        others.into_iter().flatten().chain(sides).min()
    }

    /// Takes what the engine holds for a target; `Err`: it could not read it.
    pub fn handle_loaded(
        &mut self,
        now: Now,
        target: NodeId,
        record: Result<Option<Bytes>, LoadFailed>,
    ) {
        if let Ok(record) = &record
            && self.unplaced.on_loaded(&target, record.is_some())
            && let Some(record) = record
        {
            self.begin_republish(now, record.clone(), Republisher::Unplaced);
        }
        self.server.handle_loaded(now, target, record);
        self.settle(now);
    }

    /// Takes word that a record is durable; `Err`: it may be lost.
    pub fn handle_stored(&mut self, now: Now, target: NodeId, result: Result<(), StoreFailed>) {
        self.server.handle_stored(now, target, result);
        self.settle(now);
    }

    /// Takes items that were asked for by [`StoreWork::Scan`]; `is_last`: none follow.
    pub fn handle_scanned(&mut self, now: Now, items: &[Scanned], is_last: bool) {
        if let Some(mirror) = &mut self.mirror {
            mirror.on_scanned(items, is_last);
        }
        self.settle(now);
    }

    /// Takes keys that were asked for by [`StoreWork::List`]; `is_last`: there are no more.
    pub fn handle_page(&mut self, items: &[Held], is_last: bool) {
        self.is_listing = false;
        let removed = self.server.retention_mut().on_page(items, is_last);
        self.work.extend(removed.into_iter().map(|target| StoreWork::Remove { target }));
        self.list_items();
    }

    /// Returns a datagram to send: from which socket, and where to.
    pub fn poll_transmit(&mut self) -> Option<(SocketId, SocketAddr, Vec<u8>)> {
        let now = Monotonic(self.now.monotonic_ns);
        for side in self.sides.iter_mut().flatten() {
            if let Some((to, datagram)) = side.node.poll_transmit() {
                side.on_transmit(now, &to);
                return Some((socket_of(side.family), to, datagram));
            }
        }
        None
    }

    /// Returns work for the engine.
    pub fn poll_store(&mut self) -> Option<StoreWork> {
        self.work.pop_front()
    }

    /// Returns something that has happened.
    pub fn poll_event(&mut self) -> Option<MainlineEvent> {
        self.events.pop_front()
    }

    /// What is to be written before the node stops, as [`StoreWork::SaveState`] does now and then.
    #[must_use]
    pub fn state(&self) -> Vec<u8> {
        let side = |side: &Option<Side>| {
            let saved = side.as_ref().map(|side| SideState {
                id: Some(side.node.own()),
                external: side.external.encode(),
                table: side.node.save(),
                is_reached: side.reachability.is_settled(),
            });
            saved.unwrap_or_default()
        };
        let state = State {
            tokens: self.server.token_state(),
            sides: [side(&self.sides[0]), side(&self.sides[1])],
            mirror: self.mirror.as_ref().map(Mirror::state),
            unplaced: self.unplaced.targets(),
        };
        state.encode()
    }

    /// Tells whether the node knows its neighbours, in a family at least; a node without any seeds
    /// founds a network.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        if self.awaits_seeds && self.sides.iter().flatten().all(|side| side.node.table().is_empty())
        {
            return false;
        }
        let has_seeds = self.sides.iter().flatten().any(|side| side.has_seeds);
        let mut sides = self.sides.iter().flatten();
        sides.any(|side| side.is_ready && (side.has_seeds || !has_seeds))
    }

    /// Our id in a family.
    #[must_use]
    pub fn own(&self, family: Family) -> Option<NodeId> {
        self.side(family).map(|side| side.node.own())
    }

    /// Our address in a family, as others see it.
    #[must_use]
    pub fn external_address(&self, family: Family) -> Option<SocketAddr> {
        self.side(family)?.external.address()
    }

    /// Whether our queries say `ro` in a family.
    #[must_use]
    pub fn is_read_only(&self, family: Family) -> bool {
        self.side(family).is_some_and(|side| side.reachability.is_read_only())
    }

    /// The nodes known in a family.
    #[must_use]
    pub fn table(&self, family: Family) -> Option<&RoutingTable> {
        self.side(family).map(|side| side.node.table())
    }

    /// The nodes known in a family that are good, questionable and bad now.
    #[must_use]
    pub fn table_health(&self, family: Family) -> [usize; 3] {
        let now = Monotonic(self.now.monotonic_ns);
        self.side(family).map(|side| side.table_health(now)).unwrap_or_default()
    }

    /// How many nodes a family's network has, about; known after some lookups of clients.
    #[must_use]
    pub fn network_size(&self, family: Family) -> Option<f64> {
        self.side(family)?.network_size()
    }

    /// The server: its counters, peers and queues.
    #[must_use]
    pub fn server(&self) -> &Server<Origin> {
        &self.server
    }

    /// What was seen and done.
    #[must_use]
    pub fn counters(&self) -> MainlineCounters {
        let node = |side: &Option<Side>| {
            side.as_ref().map(|side| side.node.counters()).unwrap_or_default()
        };
        MainlineCounters { nodes: [node(&self.sides[0]), node(&self.sides[1])], ..self.counters }
    }

    /// How far republishing is, where items are mirrored.
    #[must_use]
    pub fn mirror(&self) -> Option<MirrorProgress> {
        self.mirror.as_ref().map(Mirror::progress)
    }

    /// Items that clients have put here while nobody else was known, and nobody else holds yet.
    #[must_use]
    pub fn unplaced(&self) -> usize {
        self.unplaced.len()
    }

    /// Counts operations under way, republishing included.
    #[must_use]
    pub fn operations(&self) -> usize {
        self.operations.len()
    }

    fn side(&self, family: Family) -> Option<&Side> {
        self.sides[place(family)].as_ref()
    }

    fn on_query(
        &mut self,
        now: Now,
        family: Family,
        from: SocketAddr,
        message: &Message<'_>,
        (method, arguments): (&[u8], &[u8]),
        len: usize,
    ) {
        let time = Monotonic(now.monotonic_ns);
        let Self { sides, server, .. } = self;
        let Some(side) = sides[place(family)].as_ref() else { return };
        let sender = Id::decode(arguments).ok().map(|id| Contact { id: id.id, address: from });
        let known = sender.and_then(|sender| side.node.table().find(&sender.id));
        // Who is in the table has answered us from this address.
        let is_proven = known.is_some_and(|known| {
            known.contact.address == from && known.last_seen.is_some() && known.failures == 0
        });
        let incoming = Incoming {
            from,
            own: side.node.own(),
            method,
            arguments,
            datagram_len: len,
            transaction_len: message.transaction.len(),
            is_proven,
        };
        let asker = Asker { address: from, transaction: message.transaction.to_vec() };
        let mut closest = |target: &NodeId, family: Family, count, found: &mut Vec<Contact>| {
            if let Some(side) = &sides[place(family)] {
                side.node.table().closest(time, target, count, found);
            }
        };
        let origin = Origin::Remote(family, asker);
        if !server.handle_query(now, &incoming, origin, &mut closest) {
            return;
        }
        let Some(side) = self.sides[place(family)].as_mut() else { return };
        if side.on_query(time, &from) {
            self.push_event(MainlineEvent::Reachable(family));
            self.save_soon(time);
        }
        if let (false, Some(sender)) = (message.read_only, sender)
            && let Some(side) = self.sides[place(family)].as_mut()
        {
            side.node.note_asker(time, sender);
        }
    }

    /// Takes what the parts have to say, until they are silent.
    fn settle(&mut self, now: Now) {
        self.now = now;
        self.settle_server(now);
        loop {
            let mut is_silent = true;
            for family in [Family::V4, Family::V6] {
                while let Some(event) =
                    self.sides[place(family)].as_mut().and_then(|side| side.node.poll_event())
                {
                    is_silent = false;
                    self.on_node_event(now, family, event);
                }
            }
            let has_begun = self.republish(now);
            self.place_items(now);
            self.store_waiting(now);
            let has_answered = self.settle_server(now);
            if is_silent && !has_begun && !has_answered {
                break;
            }
        }
    }

    /// Takes what the server wants; tells whether it has answered an operation of ours.
    fn settle_server(&mut self, now: Now) -> bool {
        let mut has_answered = false;
        while let Some(output) = self.server.poll_output() {
            match output {
                Output::Respond { asker: Origin::Operation(id), values } => {
                    has_answered = true;
                    self.on_own_answer(now, id, Ok(&values));
                }
                Output::Refuse { asker: Origin::Operation(id), reject } => {
                    has_answered = true;
                    self.on_own_answer(now, id, Err(&reject));
                }
                Output::Respond { asker: Origin::Remote(family, asker), values } => {
                    if let Some(side) = self.sides[place(family)].as_mut() {
                        side.node.respond(&asker, &values);
                    }
                }
                Output::Refuse { asker: Origin::Remote(family, asker), reject } => {
                    if let Some(side) = self.sides[place(family)].as_mut() {
                        side.node.respond_error(&asker, reject.code(), &reject.to_string());
                    }
                }
                Output::Respond { .. } | Output::Refuse { .. } => {}
                Output::Load { target } => self.work.push_back(StoreWork::Load { target }),
                Output::Store { target, record, expiry_ms } => {
                    self.work.push_back(StoreWork::Store { target, record, expiry_ms });
                }
                Output::StorePeers { info_hash, record } => {
                    self.work.push_back(StoreWork::StorePeers { info_hash, record });
                }
            }
        }
        has_answered
    }

    fn on_node_event(&mut self, now: Now, family: Family, event: NodeEvent) {
        let time = Monotonic(now.monotonic_ns);
        match event {
            NodeEvent::Ready => {
                if let Some(side) = self.sides[place(family)].as_mut() {
                    side.is_ready = true;
                }
                self.save_soon(time);
                self.push_event(MainlineEvent::Ready(family));
            }
            NodeEvent::SeenAs { by, address } => self.on_seen_as(time, family, &by, address),
            // Queries are taken before they get there.
            NodeEvent::Query { .. } => {}
            NodeEvent::LookupResponse { lookup, from, values } => {
                self.on_lookup_response(now, (family, lookup), &from, &values);
            }
            NodeEvent::LookupDone(outcome) => {
                if let Some(side) = self.sides[place(family)].as_mut() {
                    side.on_lookup(&outcome);
                }
                self.on_lookup_done(now, family, &outcome);
            }
            NodeEvent::Answered { query, from, .. } => {
                self.on_answered(now, (family, query), Ok(from.id));
            }
            NodeEvent::Refused { query, code, .. } => {
                self.on_answered(now, (family, query), Err(Some(code)));
            }
            NodeEvent::Unanswered { query, .. } => {
                self.on_answered(now, (family, query), Err(None));
            }
        }
    }

    fn on_seen_as(&mut self, now: Monotonic, family: Family, by: &SocketAddr, address: SocketAddr) {
        let Some(side) = self.sides[place(family)].as_mut() else { return };
        let Some(id) = side.on_seen_as(now, by.ip(), address, &mut self.rng) else { return };
        self.counters.ids_changed += 1;
        self.server.set_own(main_id(&self.sides));
        self.save_soon(now);
        self.push_event(MainlineEvent::IdChanged(family, id));
    }

    /// Asks the engine for keys while there are too many items.
    fn list_items(&mut self) {
        if !self.is_listing
            && let Some(page) = self.server.retention_mut().poll_page()
        {
            self.is_listing = true;
            self.work.push_back(StoreWork::List(page));
        }
    }

    /// Begins to republish what is due; tells whether anything was begun.
    fn republish(&mut self, now: Now) -> bool {
        let Some(mirror) = &mut self.mirror else { return false };
        if let Some(after) = mirror.poll_scan(now.clock_ms) {
            self.work.push_back(StoreWork::Scan { after, count: SCAN_ITEMS_MAX });
        }
        let Some(record) = mirror.poll_item(now.clock_ms) else { return false };
        self.begin_republish(now, record, Republisher::Mirror);
        true
    }

    /// Loads what is to be put at others now that there are some.
    fn place_items(&mut self, now: Now) {
        let has_neighbours =
            || self.sides.iter().flatten().any(|side| !side.node.table().is_empty());
        let has_items = self.unplaced.len() > 0;
        let has_neighbours = has_items && has_neighbours();
        while let Some(target) = self.unplaced.poll(Monotonic(now.monotonic_ns), has_neighbours) {
            self.work.push_back(StoreWork::Load { target });
        }
    }

    fn save_soon(&mut self, now: Monotonic) {
        self.save_at = self.save_at.min(now.plus_millis(SAVE_SOON_MS));
    }

    /// For events that are not missed when they are dropped.
    fn push_event(&mut self, event: MainlineEvent) {
        if self.events.len() >= EVENTS_MAX {
            self.counters.events_dropped += 1;
            return;
        }
        self.events.push_back(event);
    }
}

/// The place of a family among both.
fn place(family: Family) -> usize {
    match family {
        Family::V4 => 0,
        Family::V6 => 1,
    }
}

fn socket_of(family: Family) -> SocketId {
    match family {
        Family::V4 => SOCKET_V4,
        Family::V6 => SOCKET_V6,
    }
}

/// The id that distances of what we store are counted from: that of IPv4, where there is one.
fn main_id(sides: &[Option<Side>; 2]) -> NodeId {
    sides.iter().flatten().next().map(|side| side.node.own()).unwrap_or_default()
}
