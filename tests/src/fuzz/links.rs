//! What comes over the peer port: messages of links, two nodes' links with strangers around, and
//! sealed datagrams.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::net::SocketAddr;

use bytes::Bytes;
use fastrand::Rng;
use kadring::cluster::links::{LinkEvent, LinkLimits, LinkOptions, PeerLinks};
use kadring::cluster::message::codec::{Incoming, MessageReader, encode};
use kadring::cluster::message::control::{ByeReason, ControlFrame, Hello, feature};
use kadring::cluster::message::{
    Content, Entry, Found, Header, MemberEntry, Name, PeerMessage, Phase, PutOutcome, PutReason,
    Record, RequestId, Standing, Sum,
};
use kadring::cluster::prefix::Prefix;
use kadring::cluster::secret::MacKey;
use kadring::io::{Completion, ConnectionId, ListenerId, Monotonic, ReceiveBuffer, Request};
use kadring::kademlia::NodeId;
use kadring::krpc::seal::{OpenError, Opener, SEAL_LEN, SENDERS_MAX};
use wal::record::{Key, Namespace, Version};

const VALUE_BYTES_MAX: usize = 400_000;
const CLUSTER: NodeId = NodeId([5; 20]);
/// Steps of one input: more prove nothing that fewer do not.
const STEPS_MAX: usize = 200;

/// What comes over a link that is up: what is read comes back when it is written again.
///
/// # Panics
/// If it does not.
pub fn peer_message(bytes: &[u8]) {
    let mut reader = MessageReader::new(VALUE_BYTES_MAX);
    reader.open();
    // The first byte says how the others are cut.
    let Some((cut, rest)) = bytes.split_first() else { return };
    for mut input in rest.chunks(usize::from(*cut) * 8 + 1) {
        while let Ok(Some(found)) = reader.read(&mut input) {
            let again = match &found {
                Incoming::Message(message) => encode(message).into_iter().flatten().collect(),
                Incoming::Control(frame) => frame.encode(),
            };
            let again = again.concat();
            let (mut second, mut input) = (MessageReader::new(VALUE_BYTES_MAX), &again[..]);
            second.open();
            assert_eq!(second.read(&mut input), Ok(Some(found)));
            assert!(input.is_empty() && second.held_bytes() == 0);
        }
        assert!(reader.held_bytes() <= 2 * VALUE_BYTES_MAX + bytes.len());
    }
}

/// Makes messages, and how they are cut.
pub fn valid_messages(rng: &mut Rng) -> Vec<u8> {
    let mut bytes = vec![rng.u8(..)];
    for _ in 0..rng.u8(1..4) {
        if rng.u8(..8) == 0 {
            let beat = ControlFrame::Beat { number: rng.u64(..), is_answer: rng.bool() };
            bytes.extend(beat.encode().concat());
        }
        let len = [0, 10, 300, 300_000][rng.usize(..4)];
        let message = draw_message(rng, len);
        encode(&message).into_iter().flatten().for_each(|part| bytes.extend(part));
    }
    bytes
}

fn draw_key(rng: &mut Rng) -> Key {
    Key(NodeId::random(rng).0)
}

fn draw_record(rng: &mut Rng, len: usize) -> Record {
    let content = match rng.u8(..4) {
        0 => Content::Tombstone,
        _ => Content::Value(vec![rng.u8(..); len].into()),
    };
    Record {
        namespace: Namespace(rng.u8(..3)),
        key: draw_key(rng),
        user_key: Bytes::copy_from_slice(&b"a user key"[..rng.usize(..10)]),
        version: Version([rng.u8(..); 16]),
        expiry_ms: rng.u64(..),
        content,
    }
}

fn draw_message(rng: &mut Rng, len: usize) -> PeerMessage {
    let request = RequestId(rng.u64(..));
    let prefix = Prefix::of(&draw_key(rng), rng.u8(..=160));
    let entry = Entry {
        namespace: Namespace(0),
        key: draw_key(rng),
        version: Version([1; 16]),
        is_tombstone: rng.bool(),
    };
    let member = MemberEntry {
        node: NodeId::random(rng),
        address: Bytes::from_static(b"10.0.0.1:7400"),
        incarnation: rng.u64(..),
        phase: Phase::Full,
        standing: Standing::Suspected,
    };
    let (entries, members) = (vec![entry; rng.usize(..4)], vec![member; rng.usize(..4)]);
    match rng.u8(..18) {
        0 => PeerMessage::Members { wants_answer: rng.bool(), entries: members },
        1 => {
            let target = rng.bool().then(|| NodeId::random(rng));
            PeerMessage::Ping { request, target, entries: members }
        }
        2 => PeerMessage::Pong { request, entries: members },
        3..6 => {
            let reason = if rng.bool() { PutReason::Write } else { PutReason::Repair };
            PeerMessage::Put { request, reason, record: draw_record(rng, len) }
        }
        6 => {
            let outcome = match rng.u8(..5) {
                0 => PutOutcome::Applied { is_ready: rng.bool() },
                1 => PutOutcome::NotNewer { stored: Version([2; 16]) },
                2 => PutOutcome::TooFarAhead,
                3 => PutOutcome::KeyConflict,
                _ => PutOutcome::Failed,
            };
            PeerMessage::PutDone { request, outcome }
        }
        7 => PeerMessage::Get { request, key: draw_key(rng), wants_value: rng.bool() },
        8 => {
            let header = Header { version: Version([3; 16]), expiry_ms: 7, is_tombstone: true };
            let found = match rng.u8(..4) {
                0 => Found::Nothing,
                1 => Found::Header(header),
                2 => Found::Record(draw_record(rng, len)),
                _ => Found::Failed,
            };
            PeerMessage::Got { request, is_ready: rng.bool(), found }
        }
        9 => PeerMessage::Sums { request, prefix },
        10 => PeerMessage::SumsAre { request, sums: vec![Sum { hash: 1 << 90, count: 3 }; 16] },
        11 => PeerMessage::List { request, prefix },
        12 => PeerMessage::Listed { request, is_whole: rng.bool(), entries },
        13 => PeerMessage::Claim { request, prefix },
        14 => PeerMessage::Have { request, prefix, entries },
        15 => PeerMessage::Names { request, prefix, from: draw_key(rng), count: rng.u16(..) },
        16 => {
            let name = Name { entry, user_key: Bytes::from_static(b"name") };
            let next = rng.bool().then(|| draw_key(rng));
            PeerMessage::Named { request, is_ready: rng.bool(), next, names: vec![name; 3] }
        }
        _ => PeerMessage::HaveIs { request, is_ready: rng.bool(), held: vec![true; 5] },
    }
}

/// Links of two nodes without a secret, bytes that are changed on their way, and strangers.
///
/// # Panics
/// If the links do what they must not.
pub fn link(bytes: &[u8]) {
    let _ = play(bytes, false);
}

/// The same with a secret: strangers can say what they like.
///
/// # Panics
/// If the links do what they must not.
pub fn link_with_secret(bytes: &[u8]) {
    let _ = play(bytes, true);
}

/// Two nodes and what is between them.
struct Wire {
    links: [PeerLinks; 2],
    now: Monotonic,
    ends: BTreeMap<ConnectionId, End>,
    last: u64,
    /// Whether attempts to connect are refused.
    is_refusing: bool,
    strangers: VecDeque<ConnectionId>,
    /// Messages that came out.
    messages: usize,
    has_secret: bool,
}

struct End {
    owner: usize,
    other: ConnectionId,
    inbox: Vec<u8>,
    has_ended: bool,
    is_receiving: bool,
}

/// What came of an input.
#[derive(Clone, Copy, Debug, Default)]
pub struct Played {
    /// Links that came up.
    pub up: u64,
    /// Messages that came out.
    pub messages: usize,
    /// Connections refused or closed for what came over them.
    pub refused: u64,
}

/// Does the steps: each a kind, a number, a length and so many bytes.
///
/// # Panics
/// If the links do what they must not.
#[must_use]
pub fn play(bytes: &[u8], has_secret: bool) -> Played {
    let mut wire = Wire::new(has_secret);
    let mut rest = bytes;
    for _ in 0..STEPS_MAX {
        let Some(([kind, number, low, high], after)) = rest.split_first_chunk::<4>() else { break };
        let len = u16::from_le_bytes([*low, *high % 8]);
        let (data, after) = after.split_at(after.len().min(usize::from(len)));
        rest = after;
        wire.step(*kind, *number, data);
        wire.check();
    }
    let refused = wire.links.iter().map(|links| {
        let counters = links.counters();
        counters.refused_garbage
            + counters.refused_proof
            + counters.refused_version
            + counters.refused_cluster
            + counters.bad_messages
    });
    let refused = refused.sum();
    let up = wire.links.iter().map(|links| links.counters().up).sum();
    Played { up, messages: wire.messages, refused }
}

fn own(number: usize) -> (NodeId, SocketAddr) {
    let last = [1, 2][number];
    (NodeId([last; 20]), SocketAddr::from(([10, 0, 0, last], 7400)))
}

impl Wire {
    fn new(has_secret: bool) -> Self {
        let links = [0, 1].map(|number| {
            let (node, address) = own(number);
            let limits = LinkLimits {
                value_bytes_max: VALUE_BYTES_MAX,
                links_max: 64,
                strangers_max: 16,
                link_send_bytes_max: 2 << 20,
                send_bytes_max: 3 << 20,
                receive_bytes_max: 1 << 20,
                peers_max: 8,
                ..LinkLimits::default()
            };
            let mut links = PeerLinks::new(LinkOptions {
                node,
                cluster: CLUSTER,
                address,
                listener: ListenerId(1),
                key: has_secret.then(|| MacKey::new([9; 32])),
                limits,
                seed: [[1; 32], [2; 32]][number],
            });
            let (other, address) = own(1 - number);
            links.learn(other, address);
            links
        });
        Self {
            links,
            now: Monotonic(0),
            ends: BTreeMap::new(),
            last: 0,
            is_refusing: false,
            strangers: VecDeque::new(),
            messages: 0,
            has_secret,
        }
    }

    fn step(&mut self, kind: u8, number: u8, data: &[u8]) {
        let node = usize::from(number % 2);
        let mut rng = Rng::with_seed(u64::from(number));
        match kind % 9 {
            0 | 1 => self.stranger(number, data),
            2 => {
                let len = [0, 200, 30_000, VALUE_BYTES_MAX][rng.usize(..4)];
                let message = draw_message(&mut rng, len);
                let to = own(1 - node).0;
                self.links[node].send(self.now, to, message);
            }
            3 => self.change(number, |inbox| {
                if !inbox.is_empty() {
                    let at = usize::from(number) * 7 % inbox.len();
                    inbox[at] ^= data.first().copied().unwrap_or(1);
                }
            }),
            4 => self.change(number, |inbox| {
                let at = usize::from(number) % (inbox.len() + 1);
                inbox.splice(at..at, data.iter().copied());
            }),
            5 => {
                self.now = self.now.plus_millis(u64::from(number) * 40);
                self.links.iter_mut().for_each(|links| links.handle_time(self.now));
            }
            6 => {
                let ids: Vec<ConnectionId> = self.ends.keys().copied().collect();
                if let Some(id) = ids.get(usize::from(number) % ids.len().max(1)) {
                    self.end_of(*id);
                }
            }
            7 => self.is_refusing = number.is_multiple_of(3),
            _ => {
                let (node_id, address) = own(1 - node);
                let named = (number % 4 < 2).then_some(node_id);
                self.links[node].connect(self.now, named, address);
            }
        }
        // Bytes go in pieces, so that the next step finds some on their way.
        let piece = usize::from(number) * 16 + 1;
        for _ in 0..if number.is_multiple_of(5) { 2 } else { 40 } {
            self.turn(piece);
        }
    }

    /// Bytes of a stranger: over the connection it has, or a new one.
    fn stranger(&mut self, number: u8, data: &[u8]) {
        let is_new = self.strangers.is_empty() || number.is_multiple_of(3);
        if is_new {
            let connection = self.end(usize::from(number % 2), ConnectionId(0));
            self.strangers.push_back(connection);
            if self.strangers.len() > 8
                && let Some(oldest) = self.strangers.pop_front()
            {
                self.end_of(oldest);
            }
            let peer = SocketAddr::from(([192, 0, 2, number % 4], 40_000));
            self.accepted(usize::from(number % 2), connection, peer);
        }
        let at = usize::from(number) % self.strangers.len();
        let stranger = if is_new { self.strangers.len() - 1 } else { at };
        if let Some(end) = self.ends.get_mut(&self.strangers[stranger]) {
            end.inbox.extend(data);
        }
    }

    fn change(&mut self, number: u8, change: impl FnOnce(&mut Vec<u8>)) {
        let count = self.ends.len();
        if let Some(end) = self.ends.values_mut().nth(usize::from(number) % count.max(1)) {
            change(&mut end.inbox);
        }
    }

    fn end(&mut self, owner: usize, other: ConnectionId) -> ConnectionId {
        self.last += 1;
        let id = ConnectionId(self.last);
        let (inbox, has_ended, is_receiving) = (Vec::new(), false, false);
        self.ends.insert(id, End { owner, other, inbox, has_ended, is_receiving });
        id
    }

    fn end_of(&mut self, id: ConnectionId) {
        if let Some(end) = self.ends.get_mut(&id) {
            end.has_ended = true;
        }
    }

    fn accepted(&mut self, node: usize, connection: ConnectionId, peer: SocketAddr) {
        let listener = ListenerId(1);
        self.complete(node, Completion::Accepted { listener, connection, peer });
    }

    fn complete(&mut self, node: usize, completion: Completion) {
        let _released = self.links[node].handle(self.now, completion);
    }

    /// Does what the links ask for, and gives each connection so many bytes.
    fn turn(&mut self, piece: usize) {
        for node in 0..2 {
            while let Some(request) = self.links[node].poll_request() {
                self.take(node, request);
            }
            while let Some(event) = self.links[node].poll_event() {
                self.take_event(node, &event);
            }
        }
        let ids: Vec<ConnectionId> = self.ends.keys().copied().collect();
        for connection in ids {
            let Some(end) = self.ends.get_mut(&connection) else { continue };
            if end.is_receiving && (!end.inbox.is_empty() || end.has_ended) {
                end.is_receiving = false;
                let owner = end.owner;
                let bytes: Vec<u8> = end.inbox.drain(..piece.min(end.inbox.len())).collect();
                let len = bytes.len();
                let result = Ok(ReceiveBuffer::new(bytes.into(), len, 0));
                self.complete(owner, Completion::Received { connection, result });
            }
        }
    }

    fn take(&mut self, node: usize, request: Request) {
        match request {
            Request::Connect { attempt, .. } if self.is_refusing => {
                let result = Err(io::ErrorKind::ConnectionRefused.into());
                self.complete(node, Completion::Connected { attempt, result });
            }
            Request::Connect { attempt, .. } => {
                let here = self.end(node, ConnectionId(self.last + 2));
                let there = self.end(1 - node, here);
                self.complete(node, Completion::Connected { attempt, result: Ok(here) });
                self.accepted(1 - node, there, own(node).1);
            }
            Request::CancelConnect(_) => {}
            Request::Receive(connection) => {
                let end = self.ends.get_mut(&connection).expect("it is open");
                assert!(!end.is_receiving, "one receive at a time");
                end.is_receiving = true;
            }
            Request::Send(connection, parts) => {
                let other = self.ends.get(&connection).expect("it is open").other;
                if let Some(other) = self.ends.get_mut(&other).filter(|other| !other.has_ended) {
                    parts.iter().for_each(|part| other.inbox.extend(part));
                }
                self.complete(node, Completion::Sent { connection, result: Ok(()) });
            }
            Request::Close(connection) => {
                let end = self.ends.remove(&connection).expect("it is open");
                if end.is_receiving {
                    let result = Err(io::ErrorKind::ConnectionAborted.into());
                    self.complete(node, Completion::Received { connection, result });
                }
                self.complete(node, Completion::Closed(connection));
                self.end_of(end.other);
            }
            other => panic!("{other:?}"),
        }
    }

    fn take_event(&mut self, node: usize, event: &LinkEvent) {
        if let LinkEvent::Up { node: other, .. } | LinkEvent::Message { from: other, .. } = event {
            // Strangers do not know the secret, and so do not come in.
            assert!(!self.has_secret || *other == own(1 - node).0, "a stranger got in");
        }
        self.messages += usize::from(matches!(event, LinkEvent::Message { .. }));
    }

    fn check(&mut self) {
        for links in &mut self.links {
            let (waiting, held) = links.waiting_and_held_bytes();
            assert!(waiting <= 3 << 20, "{waiting} bytes wait");
            assert!(held <= 64 * (2 * VALUE_BYTES_MAX + (512 << 10)), "{held} bytes are held");
            assert!(links.links().count() <= 64);
            for _ in 0..100 {
                links.handle_time(self.now);
            }
            assert!(links.deadline().is_none_or(|at| at > self.now), "the clock stands still");
        }
        for number in 0..2 {
            let its = self.ends.iter().filter(|(_, end)| end.owner == number);
            its.for_each(|(id, _)| assert!(self.links[number].owns(*id), "{id:?} is forgotten"));
        }
    }
}

/// Makes steps with strangers that speak the protocol.
pub fn valid_link_steps(rng: &mut Rng) -> Vec<u8> {
    let mut bytes = Vec::new();
    for _ in 0..rng.u8(1..30) {
        let (kind, number) = (rng.u8(..9), rng.u8(..));
        let mut data = Vec::new();
        match kind {
            0 | 1 => draw_stranger(rng, &mut data),
            3 | 4 => data.extend((0..rng.usize(1..20)).map(|_| rng.u8(..))),
            _ => {}
        }
        data.truncate(0x7ff);
        let [low, high] = u16::try_from(data.len()).unwrap_or(0).to_le_bytes();
        bytes.extend([kind, number, low, high]);
        bytes.extend(data);
    }
    bytes
}

fn draw_stranger(rng: &mut Rng, data: &mut Vec<u8>) {
    let hello = Hello {
        cluster: if rng.u8(..8) == 0 { NodeId([6; 20]) } else { CLUSTER },
        node: [NodeId([1; 20]), NodeId([2; 20]), NodeId([3; 20])][rng.usize(..3)],
        boot: rng.u64(..3),
        features: if rng.bool() { feature::SECRET } else { 0 },
        nonce: [rng.u8(..); 32],
        address: Bytes::from_static(b"192.0.2.1:7400"),
    };
    data.extend(ControlFrame::Hello(hello).encode().concat());
    for _ in 0..rng.u8(..4) {
        let frame = match rng.u8(..6) {
            0 => ControlFrame::Auth { proof: [rng.u8(..); 32] },
            1 => ControlFrame::Beat { number: rng.u64(..), is_answer: rng.bool() },
            2 => ControlFrame::Bye { reason: ByeReason::Unneeded },
            3 => ControlFrame::Bye { reason: ByeReason::Stopping },
            _ => {
                let message = draw_message(rng, 300);
                encode(&message).into_iter().flatten().for_each(|part| data.extend(part));
                continue;
            }
        };
        data.extend(frame.encode().concat());
    }
}

const SEAL_KEY: [u8; 32] = [4; 32];
const OWN_BOOT: u64 = 1;

/// Datagrams at the gate of a cluster with a secret, each behind its length (2 bytes): each that is
/// taken has a right tag, a new counter and another sender than this node.
///
/// # Panics
/// If one is taken that must not be, or the other way round.
pub fn sealed_datagram(bytes: &[u8]) {
    let key = MacKey::new(SEAL_KEY);
    let mut opener = Opener::new(key.clone(), OWN_BOOT);
    let mut taken = BTreeSet::new();
    let mut highest: BTreeMap<u64, u64> = BTreeMap::new();
    let mut rest = bytes;
    while let Some(datagram) = split_datagram(&mut rest) {
        let found = opener.open(datagram);
        let Some((covered, tag)) =
            datagram.split_last_chunk::<16>().filter(|_| datagram.len() >= SEAL_LEN)
        else {
            assert_eq!(found, Err(OpenError::Truncated));
            continue;
        };
        if key.code(&[covered])[..16] != *tag {
            assert_eq!(found, Err(OpenError::Forged));
            continue;
        }
        let number = |at: usize| {
            let bytes = covered[covered.len() - at..].first_chunk().expect("it is long enough");
            u64::from_be_bytes(*bytes)
        };
        let (boot, counter) = (number(16), number(8));
        let top = highest.entry(boot).or_default();
        if found.is_ok() {
            assert!(taken.insert((boot, counter)), "taken twice");
            assert!(boot != OWN_BOOT && counter > top.saturating_sub(1_024));
            *top = counter.max(*top);
        } else {
            let is_old = counter <= top.saturating_sub(1_024);
            assert!(boot == OWN_BOOT || is_old || taken.contains(&(boot, counter)));
        }
    }
    assert!(opener.senders_len() <= SENDERS_MAX);
}

fn split_datagram<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (len, after) = rest.split_first_chunk::<2>()?;
    let len = usize::from(u16::from_le_bytes(*len));
    let (datagram, after) = after.split_at(len.min(after.len()));
    *rest = after;
    Some(datagram)
}

/// Makes datagrams of a few senders, some of them more than once.
pub fn valid_datagrams(rng: &mut Rng) -> Vec<u8> {
    let mut bytes = Vec::new();
    let counters = [rng.u64(..), rng.u64(..10), 2_000];
    for _ in 0..rng.u8(1..12) {
        let mut datagram = vec![b'd'; rng.usize(..40)];
        let counter = counters[rng.usize(..3)].saturating_add(rng.u64(..1_500));
        datagram.extend(rng.u64(1..4).to_be_bytes());
        datagram.extend(counter.to_be_bytes());
        datagram.extend([0; 16]);
        bytes.extend(u16::try_from(datagram.len()).unwrap_or(0).to_le_bytes());
        bytes.extend(&datagram);
        if rng.u8(..3) == 0 {
            bytes.extend(u16::try_from(datagram.len()).unwrap_or(0).to_le_bytes());
            bytes.extend(&datagram);
        }
    }
    seal_datagrams(&mut bytes);
    bytes
}

/// Makes the tags right.
pub fn seal_datagrams(bytes: &mut [u8]) {
    let key = MacKey::new(SEAL_KEY);
    let mut rest = bytes;
    while let Some((len, after)) = rest.split_first_chunk_mut::<2>() {
        let len = usize::from(u16::from_le_bytes(*len)).min(after.len());
        let (datagram, after) = after.split_at_mut(len);
        rest = after;
        if let Some((covered, tag)) = datagram.split_last_chunk_mut::<16>() {
            tag.copy_from_slice(&key.code(&[&*covered])[..16]);
        }
    }
}
