//! A network of Mainline nodes with hostile ones among them: what puts and gets come to, with and
//! without each defence.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::rc::Rc;

use fastrand::Rng;
use kadring::io::Monotonic;
use kadring::kademlia::{Contact, NodeId};
use kadring::krpc::compact::Family;
use kadring::mainline::item::{Record, SigningKey};
use kadring::mainline::node::event::{Ended, Get, MainlineEvent, OperationId};
use kadring::mainline::node::{Defences, Entropy};
use kadring::mainline::outcome::PutOutcome;
use kadring::mainline::rate_limit::RateLimits;
use kadring::mainline::reachability::Announced;
use kadring::mainline::{Item, MainlineNode, MainlineOptions, MutableItem, ServerLimits};

use super::host::{Engine, MainlineHost, clock};
use super::hostile::{Gang, HostileHost, Kind, fitting};
use super::{address_near, address_of_sybil, address_v4};
use crate::net_world::network::{Faults, Network};
use crate::net_world::{Host, World, WorldCounters, generator};

const MINUTE_MS: u64 = 60_000;
/// Operations begin so far apart.
const OPERATION_GAP_MS: u64 = 20;
/// Nobody has to wait longer for an operation: so long they may take at most.
const OPERATION_MAX_MS: u64 = 31_000;
/// Sybils share so many bits with their victim.
const SYBIL_BITS: u32 = 60;

/// What guards against lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Guards {
    /// Those of tables and lookups.
    pub defences: Defences,
    /// Few nodes of one network are named in a reply.
    pub reply_caps: bool,
}

impl Guards {
    /// All of them, each left out, and none; with names.
    #[must_use]
    pub fn all() -> Vec<(&'static str, Self)> {
        let all = Self { defences: Defences::ALL, reply_caps: true };
        let without = |defences| Self { defences, ..all };
        let off = Defences { fitting_ids: false, table_caps: false, lookup_caps: false };
        vec![
            ("all defences", all),
            ("no fitting ids", without(Defences { fitting_ids: false, ..Defences::ALL })),
            ("no table caps", without(Defences { table_caps: false, ..Defences::ALL })),
            ("no lookup caps", without(Defences { lookup_caps: false, ..Defences::ALL })),
            ("no reply caps", Self { reply_caps: false, ..all }),
            (
                "no caps",
                Self { defences: Defences { fitting_ids: true, ..off }, reply_caps: false },
            ),
            ("none", Self { defences: off, reply_caps: false }),
        ]
    }
}

/// Sizes of a run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Plan {
    /// Everything comes from it.
    pub seed: u64,
    /// Nodes, hostile ones included.
    pub nodes: usize,
    /// Share of them that is hostile: a third each of forgers, poisoners and Sybils.
    pub hostile: f64,
    /// Items put, and got again; half of them mutable.
    pub items: usize,
    /// Items whose targets the Sybils gather around.
    pub victims: usize,
    /// Networks (/24) of the Sybils with any ids.
    pub sybil_networks: usize,
    /// Networks of the Sybils whose ids fit their addresses.
    pub fitting_networks: usize,
}

impl Plan {
    /// The usual sizes.
    #[must_use]
    pub fn new(seed: u64, nodes: usize) -> Self {
        Self {
            seed,
            nodes,
            hostile: 0.2,
            items: 200,
            victims: (nodes / 500).max(4),
            sybil_networks: 20,
            fitting_networks: 4,
        }
    }

    /// Who lies in wait at an item. An immutable and a mutable one share their lot.
    #[must_use]
    pub fn siege(&self, item: usize) -> Siege {
        match (item < self.victims, item / 2 % 2) {
            (false, _) => Siege::Free,
            (true, 0) => Siege::AnyIds,
            (true, _) => Siege::FittingIds,
        }
    }
}

/// Who lies in wait at a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Siege {
    /// Nobody.
    Free,
    /// Sybils of many addresses, whose ids do not fit.
    AnyIds,
    /// Sybils of few addresses and many ports, whose ids fit.
    FittingIds,
}

/// What operations have come to, of one kind of targets.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Score {
    /// Items.
    pub items: usize,
    /// Puts after which an honest node held the item.
    pub held: usize,
    /// Copies at honest nodes, of all items.
    pub copies: usize,
    /// Copies that were said to be stored.
    pub claimed: usize,
    /// Gets that found the newest version.
    pub found: usize,
    /// Gets that found an older one.
    pub stale: usize,
}

/// What a run has come to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Outcome {
    /// What guarded against lies.
    pub guards: &'static str,
    /// Items whose targets nobody lies in wait at.
    pub usual: Score,
    /// Items whose targets Sybils with any ids are around.
    pub besieged: Score,
    /// Items whose targets Sybils are around whose ids fit.
    pub besieged_fitting: Score,
    /// Datagrams, and their hash.
    pub counters: WorldCounters,
    /// Nodes in a table of an honest node, and hostile ones among them.
    pub table: (f64, f64),
    /// Mean milliseconds of a get.
    pub get_ms: f64,
}

/// A node, whatever it does.
enum Inhabitant {
    Honest(Box<MainlineHost>),
    Hostile(Box<HostileHost>),
}

impl Host for Inhabitant {
    type Event = MainlineEvent;

    fn handle_datagram(&mut self, now: Monotonic, from: SocketAddr, datagram: &[u8]) {
        match self {
            Self::Honest(host) => host.handle_datagram(now, from, datagram),
            Self::Hostile(host) => host.handle_datagram(now, from, datagram),
        }
    }

    fn handle_time(&mut self, now: Monotonic) {
        match self {
            Self::Honest(host) => host.handle_time(now),
            Self::Hostile(host) => host.handle_time(now),
        }
    }

    fn deadline(&self) -> Option<Monotonic> {
        match self {
            Self::Honest(host) => host.deadline(),
            Self::Hostile(host) => host.deadline(),
        }
    }

    fn poll_transmit(&mut self) -> Option<(SocketAddr, Vec<u8>)> {
        match self {
            Self::Honest(host) => host.poll_transmit(),
            Self::Hostile(host) => host.poll_transmit(),
        }
    }

    fn poll_event(&mut self) -> Option<MainlineEvent> {
        match self {
            Self::Honest(host) => host.poll_event(),
            Self::Hostile(_) => None,
        }
    }
}

/// An item of the run.
struct Article {
    signer: Option<SigningKey>,
    value: Vec<u8>,
    seq: i64,
}

impl Article {
    fn target(&self) -> NodeId {
        self.with_item(|item| item.target())
    }

    fn with_item<T>(&self, act: impl FnOnce(&Item<'_>) -> T) -> T {
        let Some(signer) = &self.signer else { return act(&Item::Immutable(&self.value)) };
        let (key, signature) = (signer.public(), signer.sign(b"", self.seq, &self.value));
        act(&Item::Mutable(MutableItem {
            key: &key,
            salt: b"",
            seq: self.seq,
            signature: &signature,
            value: &self.value,
        }))
    }
}

struct Run {
    plan: Plan,
    guards: Guards,
    rng: Rng,
    world: World<Inhabitant>,
    honest: Vec<usize>,
    /// By place and operation: how it ended, and when.
    ended: BTreeMap<(usize, OperationId), (Ended, Monotonic)>,
}

/// Runs a siege. `progress` is told what is going on.
#[must_use]
pub fn run(
    name: &'static str,
    guards: Guards,
    plan: Plan,
    progress: &mut dyn FnMut(&str),
) -> Outcome {
    let network = Network::new(generator(plan.seed, 0), Faults::USUAL);
    let mut run = Run {
        plan,
        guards,
        rng: generator(plan.seed, 1),
        world: World::new(network),
        honest: Vec::new(),
        ended: BTreeMap::new(),
    };
    let articles = run.articles();
    let victims: Vec<NodeId> = articles.iter().take(plan.victims).map(Article::target).collect();
    run.grow(&victims, progress);
    let ([usual, besieged, besieged_fitting], get_ms) = run.measure(articles, progress);
    let (known, hostile) = run.tables();
    let (counters, table) = (run.world.counters(), (known, hostile));
    Outcome { guards: name, usual, besieged, besieged_fitting, counters, table, get_ms }
}

impl Run {
    /// Every second one is mutable.
    fn articles(&mut self) -> Vec<Article> {
        let mut rng = generator(self.plan.seed, 2);
        let article = |number: usize| {
            let seed = std::array::from_fn(|_| rng.u8(..));
            let signer = (number % 2 == 1).then(|| SigningKey::from_seed(&seed));
            Article { signer, value: format!("i{number}e").into_bytes(), seq: 1 }
        };
        (0..self.plan.items).map(article).collect()
    }

    /// Starts all nodes, hostile and honest ones in turn.
    fn grow(&mut self, victims: &[NodeId], progress: &mut dyn FnMut(&str)) {
        let count = (self.plan.nodes as f64 * self.plan.hostile) as usize;
        let honest = self.plan.nodes - count;
        let (members, gang) = self.gang(count, honest, victims);
        let mut hostile = members.into_iter();
        let mut begun = 0;
        let mut sites: Vec<SocketAddr> = Vec::new();
        for number in 0..honest {
            let seeds = self.rng.choose_multiple(sites.iter().copied(), 3);
            let site = address_v4(number);
            self.start_honest(site, seeds.clone());
            sites.push(site);
            while begun < (number + 1) * count / honest {
                begun += 1;
                if let Some((contact, kind)) = hostile.next() {
                    self.start_hostile(contact, kind, Rc::clone(&gang), seeds.clone());
                }
            }
            if number % (honest / 10).max(1) == 0 {
                progress(&format!("{number} honest nodes of {honest}"));
            }
            // The larger it is the faster it grows: by a twentieth each second.
            self.advance(1000 / (number / 20).clamp(1, 100) as u64);
        }
        self.advance(MINUTE_MS);
    }

    /// Who is hostile, and what they know of each other.
    fn gang(
        &mut self,
        count: usize,
        honest: usize,
        victims: &[NodeId],
    ) -> (Vec<(Contact, Kind)>, Rc<Gang>) {
        let mut gang = Gang::default();
        let mut members = Vec::with_capacity(count);
        for number in 0..count {
            let kind = [Kind::Forger, Kind::Poisoner, Kind::Sybil][number % 3];
            let sybil = number / 3;
            let (address, id) = if kind == Kind::Sybil {
                self.sybil(sybil, victims)
            } else {
                let address = address_v4(honest + number);
                (address, fitting(&address, &mut self.rng))
            };
            let contact = Contact { id, address };
            match kind {
                Kind::Poisoner => gang.poisoners.push(address),
                Kind::Forger | Kind::Sybil => gang.members.push(contact),
            }
            members.push((contact, kind));
        }
        (members, Rc::new(gang))
    }

    /// The address and the id of a Sybil.
    fn sybil(&mut self, sybil: usize, victims: &[NodeId]) -> (SocketAddr, NodeId) {
        let number = sybil % victims.len();
        let victim = victims[number];
        if self.plan.siege(number) == Siege::FittingIds {
            let (round, networks) = (sybil / victims.len(), self.plan.fitting_networks.max(1));
            // Sybils of other victims may be at the same address: ports tell them apart.
            let port = round / networks * victims.len() + number;
            return address_near(&victim, round % networks, port);
        }
        let id = victim.random_sharing(SYBIL_BITS, &mut self.rng);
        (address_of_sybil(sybil, self.plan.sybil_networks), id)
    }

    fn start_honest(&mut self, site: SocketAddr, seeds: Vec<SocketAddr>) {
        let mut options = MainlineOptions::new(seeds);
        let mut server = ServerLimits::default();
        // A large table for each of so many nodes is more memory than there is.
        server.rates = RateLimits { rows: 2, ..server.rates };
        if !self.guards.reply_caps {
            server.replies.nodes_per_subnet_max = usize::MAX;
        }
        options.server = server;
        options.sockets = [true, false];
        options.announced = Announced::Reachable;
        options.advertised = [Some(site.ip()), None];
        options.defences = self.guards.defences;
        let now = self.world.now();
        let entropy =
            Entropy { tokens: [7; 16], tables: [8; 16], rng: Rng::with_seed(self.rng.u64(..)) };
        let node = MainlineNode::new(clock(now), options, entropy);
        let host = MainlineHost::new(now, node, Engine::default());
        let place = self.world.add_place_at([Some(site), None]);
        self.honest.push(place);
        self.start(place, Inhabitant::Honest(Box::new(host)));
    }

    fn start_hostile(
        &mut self,
        contact: Contact,
        kind: Kind,
        gang: Rc<Gang>,
        seeds: Vec<SocketAddr>,
    ) {
        let rng = Rng::with_seed(self.rng.u64(..));
        let host = HostileHost::new(self.world.now(), contact, kind, gang, seeds, rng);
        let place = self.world.add_place_at([Some(contact.address), None]);
        self.start(place, Inhabitant::Hostile(Box::new(host)));
    }

    fn start(&mut self, place: usize, host: Inhabitant) {
        let ended = &mut self.ended;
        self.world.start(place, host, &mut |_, now, place, event| note(ended, now, place, event));
    }

    fn advance(&mut self, ms: u64) {
        let end = self.world.now().plus_millis(ms);
        let ended = &mut self.ended;
        self.world.run_until(end, &mut |_, now, place, event| note(ended, now, place, event));
    }

    fn act<T>(
        &mut self,
        place: usize,
        act: impl FnOnce(&mut MainlineNode, storage::Now) -> T,
    ) -> Option<T> {
        let ended = &mut self.ended;
        let mut observe = |_: &mut Inhabitant, now, place, event| note(ended, now, place, event);
        let done = self.world.with(place, &mut observe, |host, now| match host {
            Inhabitant::Honest(host) => Some(host.act(now, act)),
            Inhabitant::Hostile(_) => None,
        });
        done.flatten()
    }

    fn some_honest(&mut self) -> usize {
        self.honest[self.rng.usize(..self.honest.len())]
    }

    /// Puts all items, mutable ones twice, and gets them from elsewhere.
    fn measure(
        &mut self,
        mut articles: Vec<Article>,
        progress: &mut dyn FnMut(&str),
    ) -> ([Score; 3], f64) {
        progress("puts");
        self.put_all(&articles);
        for article in articles.iter_mut().filter(|article| article.signer.is_some()) {
            article.seq = 2;
        }
        let puts = self.put_all(&articles);
        progress("gets");
        let mut scores = [Score::default(); 3];
        let mut gets = Vec::new();
        for article in &articles {
            let place = self.some_honest();
            let get = Get::of(article.target());
            let begun = self.world.now();
            let operation = self.act(place, |node, now| node.get(now, get));
            gets.push((place, operation.and_then(Result::ok), begun));
            self.advance(OPERATION_GAP_MS);
        }
        self.advance(OPERATION_MAX_MS);
        let mut took_ns = 0;
        for (number, article) in articles.iter().enumerate() {
            let score = &mut scores[self.plan.siege(number) as usize];
            score.items += 1;
            let copies = self.copies(article);
            score.held += usize::from(copies > 0);
            score.copies += copies;
            score.claimed += puts[number].as_ref().map_or(0, PutOutcome::stored);
            let (place, operation, begun) = gets[number];
            let ended = operation.and_then(|operation| self.ended.remove(&(place, operation)));
            let Some((Ended::Get(outcome), end)) = ended else { continue };
            took_ns += end.0 - begun.0;
            match outcome.best() {
                Some(Item::Mutable(item)) if item.seq < article.seq => score.stale += 1,
                Some(_) => score.found += 1,
                None => {}
            }
        }
        let get_ms = took_ns as f64 / 1e6 / articles.len().max(1) as f64;
        (scores, get_ms)
    }

    fn put_all(&mut self, articles: &[Article]) -> Vec<Option<PutOutcome>> {
        let mut puts = Vec::new();
        for article in articles {
            let place = self.some_honest();
            let operation = self
                .act(place, |node, now| article.with_item(|item| node.put(now, item, None)))
                .and_then(Result::ok);
            puts.push((place, operation));
            self.advance(OPERATION_GAP_MS);
        }
        self.advance(OPERATION_MAX_MS);
        let outcome = |(place, operation): (usize, Option<OperationId>)| match self
            .ended
            .remove(&(place, operation?))?
        {
            (Ended::Put { outcome, .. }, _) => Some(outcome),
            _ => None,
        };
        puts.into_iter().map(outcome).collect()
    }

    /// Honest nodes that hold the newest version.
    fn copies(&self, article: &Article) -> usize {
        let target = article.target();
        let hosts = self.honest.iter().filter_map(|place| self.world.host(*place));
        let holds = |host: &&Inhabitant| match host {
            Inhabitant::Honest(host) => {
                let record = host.engine.items.get(&target);
                record.is_some_and(|(record, _)| is_of(record, article.seq))
            }
            Inhabitant::Hostile(_) => false,
        };
        hosts.filter(holds).count()
    }

    /// Nodes in tables of honest nodes on average, and hostile ones among them.
    fn tables(&self) -> (f64, f64) {
        let mut sites: Vec<SocketAddr> = (0..self.honest.len()).map(address_v4).collect();
        sites.sort_unstable();
        let (mut known, mut hostile) = (0, 0);
        for (_, host) in self.world.alive() {
            let Inhabitant::Honest(host) = host else { continue };
            let Some(table) = host.node.table(Family::V4) else { continue };
            known += table.len();
            let others = table.entries().map(|entry| entry.contact.address);
            hostile += others.filter(|address| sites.binary_search(address).is_err()).count();
        }
        let count = self.honest.len().max(1) as f64;
        (known as f64 / count, hostile as f64 / count)
    }
}

fn is_of(record: &[u8], seq: i64) -> bool {
    match Record::decode(record).map(|record| record.item) {
        Ok(Item::Mutable(item)) => item.seq == seq,
        Ok(Item::Immutable(_)) => true,
        Err(_) => false,
    }
}

fn note(
    ended: &mut BTreeMap<(usize, OperationId), (Ended, Monotonic)>,
    now: Monotonic,
    place: usize,
    event: MainlineEvent,
) {
    if let MainlineEvent::Ended { operation, result, .. } = event {
        ended.insert((place, operation), (result, now));
    }
}
