//! [`ClusterSide`]: the peer side of a node of a private cluster.
//!
//! ```text
//! client door ── PeerCommand ──> commands ──> ClusterNode <── PeerLinks  (TCP)
//!                                                │   ^
//!                                  StoreRequest  v   │ StoreAnswer
//!                                            HeldRecords ──> Keyspace
//! UDP ──> Opener ──> KademliaNode (routes, lookups, find_value) ──> Sealer ──> UDP
//! ```
//!
//! It begins when the state that was saved last has been read. Clients are served once this node
//! has heard from another one who belongs to the cluster, or is alone in it. What needs I/O goes
//! out as requests; everything else happens in [`PeerSide::turn`].

mod about;
mod answer;
mod commands;
mod datagrams;
mod listing;
#[cfg(test)]
mod listing_tests;
mod path_cache;
mod plan;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::net::SocketAddr;

use bytes::Bytes;
use storage::{Event, Now};

use self::answer::{Answer, LOADING};
use self::commands::Commands;
use self::datagrams::Datagrams;
use self::listing::{Counted, Listings};
use super::ClusterNode;
use super::coordinator::Consistency;
use super::links::{LinkEvent, LinkLimits, LinkOptions, PeerLinks};
use super::message::{Content, Found, PeerMessage};
use super::mutation::Mutation;
use super::node::{ClusterEvent, Start};
use super::records::{HeldRecords, ROUTES_KEY, STATE_KEY};
use super::secret::ClusterSecret;
use super::settings::ClusterSettings;
use super::state::ClusterState;
use super::store::{StoreAnswer, StoreRequest, Ticket};
use crate::io::{Completion, ConnectionId, Monotonic, ReceiveBuffer, Request};
use crate::kademlia::NodeId;
use crate::keyspace::{Keyspace, ShardIndex};
use crate::peer::{Figure, PEER_DOOR, PeerSide};
use crate::resp::command::{ClusterCommand, Command};
use crate::resp::door::{Answerer, Door, PeerCommand, PeerToken};

/// Tickets from here on are not the core's.
const OWN_TICKETS: u64 = 1 << 63;
/// The ticket of the saved state.
const STATE_TICKET: Ticket = Ticket(OWN_TICKETS);
/// The ticket of the saved routing table.
const ROUTES_TICKET: Ticket = Ticket(OWN_TICKETS + 1);
/// Events of links that are taken between two looks at the rest.
const EVENTS_PER_ROUND_MAX: usize = 1_024;

/// How a node of a cluster is set up.
#[derive(Clone, Debug)]
pub struct SideOptions {
    /// Its id.
    pub node: NodeId,
    /// Where the peer door is.
    pub door: SocketAddr,
    /// Where others reach it.
    pub address: SocketAddr,
    /// Peer doors of nodes to join; none founds a cluster.
    pub bootstrap: Vec<SocketAddr>,
    /// Settings of the cluster.
    pub settings: ClusterSettings,
    /// How keys are read that a command does not change.
    pub reads: Consistency,
    /// The cluster's secret, if it has one.
    pub secret: Option<ClusterSecret>,
    /// The longest value.
    pub value_bytes_max: usize,
    /// Random bytes, secret and new in each process.
    pub seed: [u8; 32],
}

/// Says who answers a command on a node of a cluster.
#[must_use]
pub fn answerer(command: &Command<'_>) -> Answerer {
    match command {
        Command::Get { .. }
        | Command::Set(_)
        | Command::GetDel { .. }
        | Command::GetEx(_)
        | Command::GetRange { .. }
        | Command::Del { .. }
        | Command::Unlink { .. }
        | Command::Exists { .. }
        | Command::MGet { .. }
        | Command::MSet { .. }
        | Command::StrLen { .. }
        | Command::Type { .. }
        | Command::Expire(_)
        | Command::Ttl { .. }
        | Command::PTtl { .. }
        | Command::ExpireTime { .. }
        | Command::PExpireTime { .. }
        | Command::Persist { .. }
        | Command::Scan(_)
        | Command::DbSize
        | Command::Cluster(_) => Answerer::Peer,
        Command::Increment { .. } | Command::Append { .. } | Command::SetRange { .. } => {
            Answerer::Nobody(
                "ERR INCR, DECR, INCRBY, DECRBY, APPEND and SETRANGE work on a single node only; \
                 this one belongs to a cluster",
            )
        }
        Command::FlushAll(_) | Command::FlushDb(_) => Answerer::Nobody(
            "ERR FLUSHALL and FLUSHDB work on a single node only; this one belongs to a cluster",
        ),
        _ => Answerer::Door,
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Serving,
    /// Links are being closed.
    Draining,
}

/// The peer side.
#[derive(Debug)]
pub struct ClusterSide {
    options: SideOptions,
    stage: Stage,
    /// None until the saved state is known.
    core: Option<ClusterNode>,
    has_asked_state: bool,
    /// Whether another node has told whom it knows.
    has_heard: bool,
    links: PeerLinks,
    datagrams: Datagrams,
    records: HeldRecords,
    commands: Commands,
    listings: Listings,
    /// Who waits until the node has left.
    leaving: Vec<PeerToken>,
    listening: bool,
    /// When the nodes that were named are tried again, if nobody is up.
    seek_at: Monotonic,
    now: Monotonic,
    requests: VecDeque<Request>,
}

impl ClusterSide {
    /// Starts; the peer door is open already.
    #[must_use]
    pub fn new(now: Monotonic, options: SideOptions) -> Self {
        let links = PeerLinks::new(LinkOptions {
            node: options.node,
            cluster: options.settings.cluster,
            address: options.address,
            listener: PEER_DOOR,
            key: options.secret.as_ref().map(|secret| secret.link.clone()),
            limits: LinkLimits { value_bytes_max: options.value_bytes_max, ..Default::default() },
            seed: options.seed,
        });
        Self {
            datagrams: Datagrams::new(now, &options),
            commands: Commands::new(options.reads),
            options,
            stage: Stage::Serving,
            core: None,
            has_asked_state: false,
            has_heard: false,
            links,
            records: HeldRecords::default(),
            listings: Listings::default(),
            leaving: Vec::new(),
            listening: true,
            seek_at: now,
            now,
            requests: VecDeque::new(),
        }
    }

    /// Reads the routing table and the state that were saved last, then begins.
    fn start(&mut self, keyspace: &mut Keyspace, now: Now) {
        let read = |key| StoreRequest::Read { key, wants_value: true };
        if !std::mem::replace(&mut self.has_asked_state, true) {
            self.records.ask(keyspace, ROUTES_TICKET, read(ROUTES_KEY));
        }
        let answer = loop {
            let Some((ticket, answer)) = self.records.poll_answer() else { return };
            if ticket == STATE_TICKET {
                break answer;
            }
            self.datagrams.restore(self.now, &answer);
            self.records.ask(keyspace, STATE_TICKET, read(STATE_KEY));
        };
        let mut state = match answer {
            StoreAnswer::Read(Found::Nothing) => None,
            StoreAnswer::Read(Found::Record(record)) => match &record.content {
                Content::Value(bytes) => ClusterState::decode(bytes)
                    .inspect_err(|error| tracing::error!(%error, "the cluster state is damaged"))
                    .ok(),
                Content::Tombstone => None,
            },
            other => {
                tracing::error!(?other, "the cluster state cannot be read");
                None
            }
        };
        if keyspace.stores().any(|(_, store)| store.status().suspect)
            && let Some(state) = &mut state
        {
            tracing::warn!("records are lost: all ranges are filled again from other nodes");
            state.on_loss();
        }
        let versions = keyspace.stores().map(|(_, store)| store.version_max());
        let version_max = versions.max().unwrap_or_default();
        let seed = u64::from_be_bytes(*self.options.seed.first_chunk().expect("32 bytes"));
        self.find_others(state.as_ref());
        let core = ClusterNode::new(
            Start {
                node: self.options.node,
                address: self.options.address.to_string().into(),
                settings: self.options.settings,
                is_founder: self.options.bootstrap.is_empty(),
                state,
                version_max,
                seed,
                mutation: Mutation::Nothing,
            },
            now,
        );
        self.core = Some(core);
    }

    /// Links to the nodes that were named.
    fn find_seeds(&mut self) {
        let own = self.options.address;
        for seed in self.options.bootstrap.iter().filter(|seed| **seed != own) {
            self.links.connect(self.now, None, *seed);
        }
        self.seek_at = self.now.plus_millis(self.options.settings.gossip_every_ms);
    }

    /// Links to the nodes that were named, and tells the way to those that were known.
    fn find_others(&mut self, state: Option<&ClusterState>) {
        self.find_seeds();
        let members = state.map(|state| &state.members[..]).unwrap_or_default();
        for member in members.iter().filter(|member| member.node != self.options.node) {
            if let Some(address) = parse(&member.address) {
                self.datagrams.learn(self.now, address);
                self.links.connect(self.now, Some(member.node), address);
            }
        }
    }

    /// Whether clients can be served: it knows who belongs to the cluster.
    fn knows_cluster(&self) -> bool {
        let Some(core) = &self.core else { return false };
        let is_alone = core.members().known().count() <= 1;
        !core.is_loading() && (self.has_heard || is_alone)
    }

    /// Takes clients' commands.
    fn take_commands(&mut self, keyspace: &mut Keyspace, door: &mut Door, now: Now) {
        while let Some(connection) = door.poll_peer_gone() {
            self.commands.forget(connection);
        }
        while let Some(command) = door.poll_peer_command() {
            self.take_command(keyspace, now, &command);
        }
    }

    fn take_command(&mut self, keyspace: &mut Keyspace, now: Now, command: &PeerCommand) {
        let (token, from) = (command.token, (command.token, command.connection));
        let value_bytes_max = self.options.value_bytes_max;
        let (is_begun, knows_cluster) = (self.core.is_some(), self.knows_cluster());
        let planned = command.read(|command, bytes| match command {
            // Also while nobody is known: it tells why.
            Command::Cluster(command) if is_begun => {
                self.about(now, from, *command);
                None
            }
            // It is of this node alone.
            Command::DbSize if is_begun => {
                let (ticket, request) = self.listings.count(token);
                self.records.ask(keyspace, ticket, request);
                None
            }
            _ if !knows_cluster => Some(Err(LOADING.to_vec())),
            Command::Scan(scan) => {
                if let Some(core) = &mut self.core {
                    self.listings.scan(core, now, token, scan);
                }
                None
            }
            command => Some(plan::plan(command, bytes, now.clock_ms, value_bytes_max)),
        });
        match (planned, &mut self.core) {
            (Some(Ok(plan)), Some(core)) => self.commands.begin(core, now, from, plan),
            (Some(Err(text)), _) => self.commands.answer(token, Answer::Error(text)),
            _ => {}
        }
    }

    /// Moves everything on until nothing is left to do now.
    fn pump(&mut self, keyspace: &mut Keyspace, now: Now) {
        self.records.handle_time(keyspace);
        if self.core.is_none() {
            self.start(keyspace, now);
        }
        if let Some(core) = &mut self.core
            && core.deadline_ns() <= now.monotonic_ns
        {
            core.handle_time(now);
        }
        // There may be others than before where those were that it had links to.
        if self.seek_at <= self.now && self.core.as_ref().is_some_and(sees_nobody) {
            self.find_seeds();
        }
        loop {
            let Some(core) = &mut self.core else { return };
            let mut has_moved = false;
            for _ in 0..EVENTS_PER_ROUND_MAX {
                let Some(event) = self.links.poll_event() else { break };
                has_moved = true;
                match event {
                    LinkEvent::Up { node, address } => {
                        self.links.learn(node, address);
                        core.add_contact(now, node, address.to_string().into());
                    }
                    LinkEvent::Message { from, message } => {
                        let tells = matches!(message, PeerMessage::Members { .. });
                        self.has_heard |= tells;
                        core.handle_message(now, from, message);
                    }
                    LinkEvent::Unsent { node } | LinkEvent::Down { node } => {
                        core.handle_unreachable(now, node);
                    }
                }
            }
            while let Some((ticket, answer)) = self.records.poll_answer() {
                has_moved = true;
                let Some(answer) = self.datagrams.on_stored(self.now, ticket, answer) else {
                    continue;
                };
                match self.listings.on_stored(ticket, answer) {
                    Ok(Counted::More(ticket, request)) => {
                        self.records.ask(keyspace, ticket, request);
                    }
                    Ok(Counted::Done(token, answer)) => self.commands.answer(token, answer),
                    Err(answer) => core.handle_store(now, ticket, answer),
                }
            }
            has_moved |= self.drain_core(keyspace, now);
            if !has_moved {
                return;
            }
        }
    }

    /// Takes what the core has to say. Returns whether there was anything.
    fn drain_core(&mut self, keyspace: &mut Keyspace, now: Now) -> bool {
        let Some(core) = &mut self.core else { return false };
        let mut has_moved = false;
        while let Some(event) = core.poll_event() {
            has_moved = true;
            match event {
                ClusterEvent::Decided { command, outcome } => {
                    match self.listings.on_decided(core, now, command, outcome) {
                        Ok(Some((token, answer))) => self.commands.answer(token, answer),
                        Ok(None) => {}
                        Err(outcome) => self.commands.on_decided(core, now, command, outcome),
                    }
                }
                ClusterEvent::Copied { command, copies, is_last } => {
                    self.commands.on_copied(command, copies, is_last);
                }
                ClusterEvent::Left => {
                    for token in self.leaving.drain(..) {
                        self.commands.answer(token, Answer::Ok);
                    }
                }
            }
        }
        while let Some((ticket, request)) = core.poll_store() {
            has_moved = true;
            self.records.ask(keyspace, ticket, request);
        }
        while let Some((to, message)) = core.poll_send() {
            has_moved = true;
            // Where it is matters only when a link is to be made.
            if !self.links.has_link(&to)
                && let Some(entry) = core.members().entry(&to)
                && let Some(address) = parse(&entry.address)
            {
                self.links.learn(to, address);
            }
            self.links.send(self.now, to, message);
        }
        has_moved
    }

    fn pump_datagrams(&mut self, keyspace: &mut Keyspace) {
        self.datagrams.advance(self.now);
        while let Some((ticket, request)) = self.datagrams.poll_store() {
            self.records.ask(keyspace, ticket, request);
        }
        while let Some((token, answer)) = self.datagrams.poll_answer() {
            self.commands.answer(token, answer);
        }
        while let Some(request) = self.datagrams.poll_request() {
            self.requests.push_back(request);
        }
    }

    fn answer_clients(&mut self, keyspace: &mut Keyspace, door: &mut Door) {
        while let Some((token, answer)) = self.commands.poll_answer() {
            door.answer_peer_command(keyspace, token, |reply| match answer {
                Answer::Ok => reply.writer().ok(),
                Answer::Null => reply.writer().null(),
                Answer::Integer(number) => reply.writer().integer(number),
                Answer::Simple(text) => reply.writer().simple(text),
                Answer::Value(value) => reply.value(value),
                Answer::Error(text) => reply.writer().error(&text),
                Answer::Values(values) => {
                    reply.writer().array_header(values.len());
                    for value in values {
                        match value {
                            Some(value) => reply.value(value),
                            None => reply.writer().null(),
                        }
                    }
                }
                Answer::Page(cursor, names) => {
                    let mut writer = reply.writer();
                    writer.array_header(2);
                    writer.bulk(cursor.to_string().as_bytes());
                    writer.array_header(names.len());
                    names.iter().for_each(|name| writer.bulk(name));
                }
                Answer::Table(rows) => about::write_table(&mut reply.writer(), &rows),
                Answer::Report(figures, rows) => {
                    let writer = &mut reply.writer();
                    writer.array_header(2);
                    about::write_row(writer, &figures);
                    about::write_table(writer, &rows);
                }
            });
        }
    }
}

impl PeerSide for ClusterSide {
    fn owns(&self, connection: ConnectionId) -> bool {
        self.links.owns(connection)
    }

    fn handle(&mut self, keyspace: &mut Keyspace, completion: Completion) -> Option<ReceiveBuffer> {
        self.now = Monotonic(keyspace.now().monotonic_ns);
        match completion {
            Completion::ListenerClosed(_) => {
                self.listening = false;
                None
            }
            Completion::Listening(_, result) => {
                if let Err(error) = result {
                    tracing::error!(%error, "the peer door has closed");
                }
                None
            }
            Completion::UdpBound(..) | Completion::UdpClosed(_) | Completion::Datagram { .. } => {
                self.datagrams.handle(self.now, completion)
            }
            completion => self.links.handle(self.now, completion),
        }
    }

    fn handle_event(&mut self, keyspace: &mut Keyspace, shard: ShardIndex, event: &Event) {
        self.records.handle_event(keyspace, shard, event);
    }

    fn turn(&mut self, keyspace: &mut Keyspace, door: &mut Door) {
        let now = keyspace.now();
        self.now = Monotonic(now.monotonic_ns);
        self.links.handle_time(self.now);
        if self.stage == Stage::Draining {
            return;
        }
        self.take_commands(keyspace, door, now);
        self.pump(keyspace, now);
        self.pump_datagrams(keyspace);
        let without = self.core.as_ref().map_or(0, |core| {
            core.members().known().count().min(self.options.settings.replicas).saturating_sub(1)
        });
        self.commands.end_waits(now, without);
        self.answer_clients(keyspace, door);
    }

    fn poll_request(&mut self) -> Option<Request> {
        self.requests.pop_front().or_else(|| self.links.poll_request())
    }

    fn deadline(&self) -> Option<Monotonic> {
        if self.stage == Stage::Draining {
            return self.links.deadline();
        }
        if self.commands.has_answers() {
            return Some(self.now);
        }
        let core = self.core.as_ref().map(|core| Monotonic(core.deadline_ns()));
        let commands = self.commands.deadline_ns().map(Monotonic);
        let records = self.records.deadline_ns().map(Monotonic);
        let doors = [self.links.deadline(), self.datagrams.deadline()];
        let deadlines = [core, commands, records].into_iter().chain(doors);
        deadlines.flatten().min()
    }

    fn drain(&mut self) {
        if self.stage == Stage::Serving {
            self.stage = Stage::Draining;
            self.links.drain(self.now);
            self.requests.push_back(Request::StopListening(PEER_DOOR));
            self.requests.push_back(self.datagrams.close());
        }
    }

    fn is_drained(&self) -> bool {
        let is_open = self.listening || self.datagrams.is_open();
        !is_open && self.links.is_drained() && self.requests.is_empty()
    }

    fn figures(&self) -> Vec<Figure> {
        self.all_figures()
    }

    fn is_ready(&self) -> bool {
        self.knows_cluster()
    }
}

/// Whether no other node is up, as far as a node knows.
fn sees_nobody(core: &ClusterNode) -> bool {
    let members = core.members();
    let mut others = members.known().filter(|entry| entry.node != core.id());
    !others.any(|entry| members.is_up(&entry.node))
}

fn parse(address: &Bytes) -> Option<SocketAddr> {
    std::str::from_utf8(address).ok()?.parse().ok()
}
