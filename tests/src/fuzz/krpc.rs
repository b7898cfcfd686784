//! What comes by UDP: bencode, messages, and a node that strangers write to.

use std::net::{Ipv4Addr, SocketAddr};

use fastrand::Rng;
use kadring::io::Monotonic;
use kadring::kademlia::node::{EVENTS_MAX, LookupKind, NodeLimits, TRANSMITS_MAX, VERIFIES_MAX};
use kadring::kademlia::{KademliaNode, NodeEvent, NodeId, NodeOptions, TableLimits};
use kadring::krpc::bencode::{Kind, Reader, Writer};
use kadring::krpc::bep5::{AnnouncePeer, FindNode, GetPeers, Id, Nodes, Peers, Want};
use kadring::krpc::message::{Body, Message};
use kadring::krpc::private::{FindValue, FindValueReply, Private, Store};
use kadring::krpc::transactions::TransactionLimits;

use super::mutation;

const CLUSTER: Private = Private { protocol: 1, cluster: [7; 16] };
const OWN: NodeId = NodeId([0x42; 20]);
/// Steps of one input: more prove nothing that fewer do not.
const STEPS_MAX: usize = 400;

/// One value; what is canonical comes back when it is written again.
///
/// # Panics
/// If it does not.
pub fn bencode(bytes: &[u8]) {
    let mut reader = Reader::new(bytes);
    if reader.value().is_err() || reader.finish().is_err() || !reader.is_canonical() {
        return;
    }
    let mut again = Vec::new();
    copy(&mut Reader::new(bytes), &mut Writer::new(&mut again));
    assert_eq!(again, bytes);
}

fn copy(reader: &mut Reader<'_>, writer: &mut Writer<'_>) {
    const READ: &str = "it was read before";
    match reader.kind().expect(READ) {
        Kind::Bytes => {
            writer.bytes(reader.bytes().expect(READ));
        }
        Kind::Integer => {
            writer.integer(reader.integer().expect(READ));
        }
        Kind::List => {
            reader.list().expect(READ);
            writer.list();
            while !reader.end().expect(READ) {
                copy(reader, writer);
            }
            writer.end();
        }
        Kind::Dictionary => {
            let mut keys = reader.dictionary().expect(READ);
            writer.dictionary();
            while let Some(key) = reader.key(&mut keys).expect(READ) {
                writer.bytes(key);
                copy(reader, writer);
            }
            writer.end();
        }
    }
}

/// Makes a value.
pub fn valid_bencode(rng: &mut Rng) -> Vec<u8> {
    let mut bytes = Vec::new();
    draw_value(rng, &mut Writer::new(&mut bytes), 0);
    bytes
}

fn draw_value(rng: &mut Rng, writer: &mut Writer<'_>, depth: u8) {
    let kinds = if depth < 4 { 4 } else { 2 };
    match rng.u8(..kinds) {
        0 => {
            let mut text = vec![0; rng.usize(..40)];
            rng.fill(&mut text);
            writer.bytes(&text);
        }
        1 => {
            let number = [rng.i64(..), i64::from(rng.i8(..)), i64::MIN, i64::MAX][rng.usize(..4)];
            writer.integer(number);
        }
        2 => {
            writer.list();
            (0..rng.u8(..5)).for_each(|_| draw_value(rng, writer, depth + 1));
            writer.end();
        }
        _ => {
            writer.dictionary();
            for key in 0..rng.u8(..5) {
                writer.bytes(&[b'a' + key]);
                draw_value(rng, writer, depth + 1);
            }
            writer.end();
        }
    }
}

/// A message and its arguments or values by every typed codec: what is read comes back when it is
/// written again.
///
/// # Panics
/// If it does not.
pub fn krpc(bytes: &[u8]) {
    let Ok(message) = Message::decode(bytes) else { return };
    let mut again = Vec::new();
    message.encode(&mut again);
    let second = Message::decode(&again).expect("what we write we read");
    assert_eq!(second.transaction, message.transaction);
    match (message.body, second.body) {
        // Long texts are cut.
        (Body::Error { code, .. }, Body::Error { code: again, .. }) => assert_eq!(code, again),
        (first, second) => assert_eq!(first, second),
    }
    let (Body::Query { arguments: raw, .. } | Body::Response { values: raw }) = message.body else {
        return;
    };
    macro_rules! comes_back {
        ($($codec:ident)*) => {$(
            if let Ok(first) = $codec::decode(raw) {
                let mut again = Vec::new();
                first.encode(&mut again);
                assert_eq!($codec::decode(&again).as_ref(), Ok(&first));
            }
        )*};
    }
    comes_back!(Id FindNode GetPeers AnnouncePeer Nodes Peers FindValue FindValueReply Store);
}

/// Makes a datagram of a private cluster.
pub fn valid_krpc(rng: &mut Rng) -> Vec<u8> {
    let transaction = rng.u32(..).to_be_bytes();
    let transaction = &transaction[..[2, 4][rng.usize(..2)]];
    draw_message(rng, transaction)
}

fn draw_message(rng: &mut Rng, transaction: &[u8]) -> Vec<u8> {
    let raw = draw_dictionary(rng);
    let methods: [&[u8]; 6] =
        [b"ping", b"find_node", b"get_peers", b"announce_peer", b"find_value", b"store"];
    let body = match rng.u8(..8) {
        0..4 => Body::Query { method: methods[rng.usize(..6)], arguments: &raw },
        4..7 => Body::Response { values: &raw },
        _ => Body::Error { code: rng.i64(200..210), text: b"because" },
    };
    let message = Message {
        transaction,
        version: rng.bool().then_some(b"XX01"),
        read_only: rng.u8(..8) == 0,
        ip: rng.bool().then(|| source(rng.u8(..))),
        private: (rng.u8(..16) != 0).then_some(CLUSTER),
        body,
    };
    let mut bytes = Vec::new();
    message.encode(&mut bytes);
    bytes
}

/// Arguments or values, with all that one of the codecs could want.
fn draw_dictionary(rng: &mut Rng) -> Vec<u8> {
    let mut raw = Vec::new();
    let (id, target) = (NodeId::random(rng), NodeId::random(rng));
    let mut nodes = vec![0; 26 * rng.usize(..24)];
    rng.fill(&mut nodes);
    match rng.u8(..6) {
        0 => Id { id }.encode(&mut raw),
        1 => {
            let want = Want { v4: rng.bool(), v6: rng.bool() };
            FindNode { id, target, want }.encode(&mut raw);
        }
        2 => Nodes { id, nodes: Some(&nodes), nodes6: None }.encode(&mut raw),
        3 => {
            let nodes = Nodes { id, nodes: Some(&nodes), nodes6: Some(&[]) };
            let peers = vec![source(1); rng.usize(..5)];
            Peers { nodes, token: Some(b"token"), peers }.encode(&mut raw);
        }
        4 => {
            let port = rng.bool().then(|| rng.u16(1..));
            let (token, seed) = (&b"token"[..], rng.bool());
            AnnouncePeer { id, info_hash: target, port, token, seed }.encode(&mut raw);
        }
        _ => {
            let mut writer = Writer::new(&mut raw);
            writer.dictionary().bytes(b"c").integer(1).bytes(b"exp").integer(rng.i64(..));
            writer.bytes(b"id").bytes(&id.0).bytes(b"nodes").bytes(&nodes);
            writer.bytes(b"target").bytes(&target.0).bytes(b"ttl").integer(rng.i64(..1000));
            writer.bytes(b"v").bytes(b"value").bytes(b"ver").bytes(&[9; 16]).end();
        }
    }
    raw
}

fn source(number: u8) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::new(10, number % 3, 0, number), 1 + u16::from(number)))
}

/// A node that strangers write to: it neither panics, nor grows without bound, nor stops the clock.
///
/// The bytes are steps, each of a kind, a number, a length and so many bytes.
///
/// # Panics
/// If it does.
pub fn kademlia_node(bytes: &[u8]) {
    let _ = play(bytes);
}

/// Does the steps, and returns the node as it is then.
///
/// # Panics
/// If the node does what it must not.
#[must_use]
pub fn play(bytes: &[u8]) -> KademliaNode {
    let limits = NodeLimits {
        transactions: TransactionLimits { outstanding_max: 64, peers_max: 8 },
        lookups_max: 4,
        ..NodeLimits::of(TableLimits { k: 4, ..TableLimits::PRIVATE })
    };
    let seeds = vec![source(1), source(2)];
    let options = NodeOptions { limits, ..NodeOptions::private(OWN, CLUSTER, seeds) };
    let mut now = Monotonic(0);
    let mut node = KademliaNode::new(now, options, Rng::with_seed(1));
    // The latest queries of the node: answers need their transactions.
    let mut asked: Vec<(SocketAddr, Vec<u8>)> = Vec::new();
    let mut rest = bytes;
    for _ in 0..STEPS_MAX {
        let Some(([kind, number, low, high], after)) = rest.split_first_chunk::<4>() else { break };
        let len = u16::from_le_bytes([*low, *high % 8]);
        let (data, after) = after.split_at(after.len().min(usize::from(len)));
        rest = after;
        match kind % 8 {
            0..3 => node.handle_datagram(now, source(*number), data),
            3 | 4 => {
                let answer = asked.get(usize::from(*number) % asked.len().max(1));
                if let Some((to, query)) = answer
                    && let Some(datagram) = answer_with(query, data)
                {
                    node.handle_datagram(now, *to, &datagram);
                }
            }
            5 => {
                now = now.plus_millis(u64::from(*number) * 50);
                node.handle_time(now);
                let deadline = node.deadline();
                assert!(deadline.is_none_or(|deadline| deadline > now), "the clock stands still");
            }
            6 => {
                let mut target = [*number; 20];
                target[..data.len().min(20)].copy_from_slice(&data[..data.len().min(20)]);
                let _ = node.lookup(now, NodeId(target), LookupKind::Nodes);
            }
            _ => {
                let _ = node.restore(now, data);
            }
        }
        check(&mut node, limits, &mut asked);
    }
    node
}

/// Makes a response with raw values to a query, if they are a dictionary.
fn answer_with(query: &[u8], values: &[u8]) -> Option<Vec<u8>> {
    let query = Message::decode(query).ok()?;
    values.first().filter(|first| **first == b'd')?;
    let mut datagram = Vec::new();
    Message { read_only: false, body: Body::Response { values }, ..query }.encode(&mut datagram);
    Some(datagram)
}

fn check(node: &mut KademliaNode, limits: NodeLimits, asked: &mut Vec<(SocketAddr, Vec<u8>)>) {
    let (queries, lookups) = node.under_way();
    assert!(queries <= limits.transactions.outstanding_max, "{queries} queries");
    // Our own lookups come beside those of callers.
    assert!(lookups <= limits.lookups_max + 4, "{lookups} lookups");
    let largest = (0..160).map(|bits| node.table().bucket(bits).entries().len()).max();
    assert!(largest <= Some(limits.table.k), "{largest:?} nodes in a bucket");
    assert!(node.table().find(&OWN).is_none());
    for count in 0.. {
        let Some((to, datagram)) = node.poll_transmit() else { break };
        assert!(count < TRANSMITS_MAX && datagram.len() <= 1_472);
        if asked.len() >= VERIFIES_MAX {
            asked.remove(0);
        }
        let message = Message::decode(&datagram).expect("we write messages");
        if matches!(message.body, Body::Query { .. }) {
            asked.push((to, datagram));
        }
    }
    for count in 0.. {
        let Some(event) = node.poll_event() else { break };
        assert!(count < EVENTS_MAX + limits.transactions.outstanding_max);
        if let NodeEvent::Query { asker, .. } = event {
            node.respond_error(&asker, 204, "method unknown");
        }
    }
    while node.poll_transmit().is_some() {}
}

/// Makes steps.
pub fn valid_steps(rng: &mut Rng) -> Vec<u8> {
    let mut bytes = Vec::new();
    for _ in 0..rng.u8(1..40) {
        let kind = rng.u8(..8);
        let mut data = match kind {
            0..3 => valid_krpc(rng),
            3 | 4 => draw_dictionary(rng),
            6 => NodeId::random(rng).0.to_vec(),
            _ => Vec::new(),
        };
        if rng.u8(..8) == 0 {
            mutation::mutate(&mut data, rng);
        }
        data.truncate(2_047);
        let [low, high] = (data.len() as u16).to_le_bytes();
        bytes.extend_from_slice(&[kind, rng.u8(..), low, high]);
        bytes.extend_from_slice(&data);
    }
    bytes
}
