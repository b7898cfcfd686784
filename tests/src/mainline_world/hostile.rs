//! [`HostileHost`]: a node that takes part and lies.
//!
//! | kind | its id | nodes it names | to a get | to a put |
//! |---|---|---|---|---|
//! | forger | fits its address | hostile ones near the target | a forged value, or the first version it saw | "stored" |
//! | poisoner | any, next to whatever target it is asked for | other poisoners, next to the target | nothing, but a token | "stored" |
//! | Sybil | next to a victim, of few networks | its cluster | nothing, but a token | "stored" |

use std::net::SocketAddr;
use std::rc::Rc;

use fastrand::Rng;
use kadring::io::Monotonic;
use kadring::kademlia::node::Asker;
use kadring::kademlia::{Contact, KademliaNode, NodeId, NodeOptions};
use kadring::krpc::compact::{self, Family};
use kadring::krpc::message::{Body, Message};
use kadring::mainline::item::{Item, Record};
use kadring::mainline::node_id_by_ip;
use kadring::mainline::{Query, QueryKind, Values};

use std::collections::BTreeMap;

use crate::net_world::Host;

/// Versions of mutable items that a forger keeps to replay them.
const REPLAYS_MAX: usize = 1_000;
const NODES: usize = 8;

/// How a node lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Wrong values, and puts that are not stored.
    Forger,
    /// An id for each target, and lists of the like.
    Poisoner,
    /// One of many around a victim.
    Sybil,
}

/// What hostile nodes know of each other.
#[derive(Debug, Default)]
pub struct Gang {
    /// Forgers and Sybils.
    pub members: Vec<Contact>,
    /// Poisoners.
    pub poisoners: Vec<SocketAddr>,
}

impl Gang {
    /// The closest to a target of the members.
    fn closest(&self, target: &NodeId) -> Vec<Contact> {
        let mut closest: Vec<(_, Contact)> =
            self.members.iter().map(|member| (member.id.distance(target), *member)).collect();
        if closest.len() > NODES {
            closest.select_nth_unstable_by_key(NODES, |(distance, _)| *distance);
            closest.truncate(NODES);
        }
        closest.into_iter().map(|(_, member)| member).collect()
    }

    fn poisoned(&self, target: &NodeId, rng: &mut Rng) -> Vec<Contact> {
        let picked = rng.choose_multiple(self.poisoners.iter(), NODES);
        let named = picked.into_iter();
        named.map(|address| Contact { id: beside(target, address), address: *address }).collect()
    }
}

/// The id that a poisoner at an address has for a target: all but the last bits are the target's.
#[must_use]
pub fn beside(target: &NodeId, address: &SocketAddr) -> NodeId {
    let mut compact = Vec::with_capacity(18);
    compact::encode_address(address, &mut compact);
    let mut id = *target;
    for (at, byte) in compact.iter().take(4).enumerate() {
        id.0[16 + at] ^= byte;
    }
    id
}

/// A node that lies.
#[derive(Debug)]
pub struct HostileHost {
    node: KademliaNode,
    kind: Kind,
    address: SocketAddr,
    gang: Rc<Gang>,
    rng: Rng,
    /// First versions by target, as records.
    seen: BTreeMap<NodeId, Vec<u8>>,
}

impl HostileHost {
    /// A node with an id; that of `None` fits the address.
    #[must_use]
    pub fn new(
        now: Monotonic,
        contact: Contact,
        kind: Kind,
        gang: Rc<Gang>,
        seeds: Vec<SocketAddr>,
        mut rng: Rng,
    ) -> Self {
        let options = NodeOptions::mainline(contact.id, Family::of(&contact.address), seeds);
        let node = KademliaNode::new(now, options, rng.fork());
        Self { node, kind, address: contact.address, gang, rng, seen: BTreeMap::new() }
    }

    fn answer(
        &mut self,
        now: Monotonic,
        from: SocketAddr,
        message: &Message<'_>,
        method: &[u8],
        arguments: &[u8],
    ) {
        let Ok(query) = Query::decode(method, arguments) else { return };
        if !message.read_only {
            self.node.note_asker(now, Contact { id: query.id, address: from });
        }
        let asker = Asker { address: from, transaction: message.transaction.to_vec() };
        let mut values = Values { id: self.node.own(), ..Values::default() };
        let target = match &query.kind {
            QueryKind::FindNode { target, .. }
            | QueryKind::Get { target, .. }
            | QueryKind::SampleInfohashes { target, .. }
            | QueryKind::GetPeers { info_hash: target, .. } => *target,
            QueryKind::Put(put) => {
                self.keep(put.item);
                // The id is not looked at in answers to puts; one reason more to lie.
                return self.respond(&asker, &values);
            }
            QueryKind::Ping | QueryKind::AnnouncePeer(_) => return self.respond(&asker, &values),
        };
        let named = match self.kind {
            Kind::Poisoner => {
                values.id = beside(&target, &self.address);
                self.gang.poisoned(&target, &mut self.rng)
            }
            Kind::Forger | Kind::Sybil => self.gang.closest(&target),
        };
        let mut nodes = Vec::new();
        named.iter().for_each(|contact| compact::encode_node(contact, &mut nodes));
        values.nodes = Some(&nodes);
        let is_get = matches!(query.kind, QueryKind::Get { .. } | QueryKind::GetPeers { .. });
        values.token = is_get.then_some(&b"hostile!"[..]);
        let seen = self.seen.get(&target).and_then(|record| Record::decode(record).ok());
        let seen = seen.map(|record| record.item);
        if self.kind == Kind::Forger && matches!(query.kind, QueryKind::Get { .. }) {
            values.value = Some(b"6:forged");
            if let Some(Item::Mutable(old)) = seen {
                (values.key, values.seq) = (Some(old.key), Some(old.seq));
                (values.signature, values.value) = (Some(old.signature), Some(old.value));
            }
        }
        let mut bytes = Vec::new();
        values.encode(&mut bytes);
        self.node.respond(&asker, &bytes);
    }

    fn keep(&mut self, item: Item<'_>) {
        if matches!(item, Item::Mutable(_)) && self.seen.len() < REPLAYS_MAX {
            let record = Record { put_ms: 0, item }.encode();
            self.seen.entry(item.target()).or_insert(record);
        }
    }

    fn respond(&mut self, asker: &Asker, values: &Values<'_>) {
        let mut bytes = Vec::new();
        values.encode(&mut bytes);
        self.node.respond(asker, &bytes);
    }
}

impl Host for HostileHost {
    type Event = ();

    fn handle_datagram(&mut self, now: Monotonic, from: SocketAddr, datagram: &[u8]) {
        let Ok(message) = Message::decode(datagram) else { return };
        if let Body::Query { method, arguments } = message.body {
            self.answer(now, from, &message, method, arguments);
        } else {
            self.node.handle_message(now, from, &message, datagram.len());
        }
        while self.node.poll_event().is_some() {}
    }

    fn handle_time(&mut self, now: Monotonic) {
        self.node.handle_time(now);
        while self.node.poll_event().is_some() {}
    }

    fn deadline(&self) -> Option<Monotonic> {
        self.node.deadline()
    }

    fn poll_transmit(&mut self) -> Option<(SocketAddr, Vec<u8>)> {
        self.node.poll_transmit()
    }

    fn poll_event(&mut self) -> Option<()> {
        None
    }
}

/// The id of a hostile node that keeps to the rules.
#[must_use]
pub fn fitting(address: &SocketAddr, rng: &mut Rng) -> NodeId {
    node_id_by_ip::draw(address.ip(), rng)
}
