//! Targets for Mainline: what lies in the engine and in messages, and the server among many
//! sources.

use std::net::SocketAddr;

use fastrand::Rng;
use kadring::kademlia::NodeId;
use kadring::mainline::item::{Record, SigningKey, mutable_target};
use kadring::mainline::martian::Locals;
use kadring::mainline::peer_store::PeerLimits;
use kadring::mainline::peer_store::packed::PackedPeers;
use kadring::mainline::query::{AnnouncePeer, Put, Want};
use kadring::mainline::server::ItemLimits;
use kadring::mainline::{
    Item, MutableItem, Query, QueryKind, ServerLimits, TokenKeys, Values, zbase32,
};

use crate::conformance::local_node::LocalNode;

const METHODS: [&[u8]; 8] = [
    b"ping",
    b"find_node",
    b"get_peers",
    b"announce_peer",
    b"get",
    b"put",
    b"sample_infohashes",
    b"vote",
];
const PENDING_MAX: usize = 16;
const PEER_BYTES_MAX: usize = 20_000;

/// Records, arguments and values.
///
/// # Panics
/// If what was understood is not understood again.
pub fn item(bytes: &[u8]) {
    if let Ok(record) = Record::decode(bytes) {
        assert_eq!(record.encode(), bytes);
        assert_eq!(record.item.check(), Ok(()));
    }
    if let Some(peers) = PackedPeers::decode(bytes, 100) {
        assert_eq!(peers.encode(), bytes);
    }
    for method in METHODS {
        if let Ok(query) = Query::decode(method, bytes) {
            let mut again = Vec::new();
            query.encode(&mut again);
            let read = Query::decode(query.method(), &again);
            // What is signed or hashed must come through as it is; a cas without a key goes.
            match (query.kind, read.map(|query| query.kind)) {
                (QueryKind::Put(put), Ok(QueryKind::Put(read))) => assert_eq!(put.item, read.item),
                (kind, read) => assert_eq!(Ok(kind), read),
            }
        }
    }
    if let Ok(values) = Values::decode(bytes) {
        let mut again = Vec::new();
        values.encode(&mut again);
        assert_eq!(Values::decode(&again), Ok(values));
    }
    if let Ok(text) = std::str::from_utf8(bytes)
        && let Ok(decoded) = zbase32::decode(text)
    {
        assert_eq!(zbase32::encode(&decoded), text.to_ascii_lowercase());
    }
    let _ = TokenKeys::decode(bytes);
}

/// A record, a query's arguments or a response's values.
pub(super) fn valid_item(rng: &mut Rng) -> Vec<u8> {
    let value = value(rng);
    let (key, signature) = ([rng.u8(..); 32], [rng.u8(..); 64]);
    let salt = vec![rng.u8(..); rng.usize(..=64)];
    let seq = rng.i64(0..);
    let mutable = MutableItem { key: &key, salt: &salt, seq, signature: &signature, value: &value };
    let item = if rng.bool() { Item::Mutable(mutable) } else { Item::Immutable(&value) };
    match rng.u8(..3) {
        0 => Record { put_ms: rng.u64(..), item }.encode(),
        1 => arguments(rng, item, &[7; 8]).1,
        _ => {
            let mut output = Vec::new();
            let values = Values {
                id: NodeId::random(rng),
                seq: Some(seq),
                key: Some(&key),
                signature: Some(&signature),
                value: Some(&value),
                nodes: Some(&[5; 52]),
                ..Values::default()
            };
            values.encode(&mut output);
            output
        }
    }
}

/// Datagrams from many sources, one after the other: 2 bytes of source, 2 of length, and so on.
///
/// # Panics
/// If more is kept than allowed.
pub fn server(bytes: &[u8]) {
    let items = ItemLimits {
        pending_max: PENDING_MAX,
        target_pending_max: PENDING_MAX / 2,
        ..ItemLimits::default()
    };
    let peers = PeerLimits { bytes_max: PEER_BYTES_MAX, peers_max: 20, ..PeerLimits::default() };
    let mut node = LocalNode::new(ServerLimits {
        locals: Locals::Taken,
        items,
        peers,
        ..ServerLimits::default()
    });
    let mut rest = bytes;
    while let Some((&[source, turns, a, b], after)) = rest.split_first_chunk::<4>() {
        let len = usize::from(u16::from_le_bytes([a, b])).min(after.len());
        let (datagram, after) = after.split_at(len);
        rest = after;
        let from = SocketAddr::from(([9, 9, source / 16, source], 6881));
        node.send(from, datagram);
        // Without the end of a turn, the disk does not answer: queues fill.
        if turns % 4 != 0 {
            let reply = node.settle(from);
            let len = reply.map_or(0, |reply| reply.len());
            assert!(len <= 1_500, "{len} bytes for {}", datagram.len());
            assert_eq!(node.server().pending(), 0);
        }
        node.advance_ms(u64::from(turns) * 10);
        assert!(node.server().pending() <= PENDING_MAX);
        assert!(node.server().peers().bytes() <= PEER_BYTES_MAX + 2_000);
    }
}

/// A few queries with good tokens, from a few sources.
pub(super) fn valid_session(rng: &mut Rng) -> Vec<u8> {
    let mut session = Vec::new();
    // The local node's own: tokens of a fuzzer that has read the secret.
    let mut tokens = TokenKeys::new([1; 16]);
    let signer = SigningKey::from_seed(&[rng.u8(..4); 32]);
    for _ in 0..rng.usize(1..12) {
        let source = rng.u8(..);
        let from = SocketAddr::from(([9, 9, source / 16, source], 6881));
        let value = value(rng);
        let (key, seq) = (signer.public(), rng.i64(0..4));
        let signature = signer.sign(b"", seq, &value);
        let mutable =
            MutableItem { key: &key, salt: b"", seq, signature: &signature, value: &value };
        let item = if rng.bool() { Item::Mutable(mutable) } else { Item::Immutable(&value) };
        let token = tokens.token(1_700_000_000_000, from.ip(), &item.target());
        let (method, arguments) = arguments(rng, item, &token);
        let mut datagram = b"d1:a".to_vec();
        datagram.extend_from_slice(&arguments);
        datagram.extend_from_slice(format!("1:q{}:", method.len()).as_bytes());
        datagram.extend_from_slice(method);
        datagram.extend_from_slice(b"1:t2:aa1:y1:qe");
        session.extend_from_slice(&[source, rng.u8(..8)]);
        let len = u16::try_from(datagram.len()).unwrap_or(u16::MAX);
        session.extend_from_slice(&len.to_le_bytes());
        session.extend_from_slice(&datagram);
    }
    session
}

fn value(rng: &mut Rng) -> Vec<u8> {
    match rng.u8(..4) {
        0 => b"d1:ai1e1:bl0:ee".to_vec(),
        1 => format!("i{}e", rng.i64(..)).into_bytes(),
        _ => {
            let len = if rng.bool() { rng.usize(..9) } else { rng.usize(..=996) };
            [format!("{len}:").into_bytes(), vec![b'x'; len]].concat()
        }
    }
}

fn arguments(rng: &mut Rng, item: Item<'_>, token: &[u8]) -> (&'static [u8], Vec<u8>) {
    let target = match item {
        Item::Mutable(item) if rng.bool() => mutable_target(item.key, item.salt),
        item => item.target(),
    };
    let want = Want { v4: rng.bool(), v6: rng.bool() };
    let (noseed, scrape) = (rng.bool(), rng.bool());
    let port = rng.bool().then(|| rng.u16(1..));
    let kind = match rng.u8(..8) {
        0 => QueryKind::Ping,
        1 => QueryKind::FindNode { target, want },
        2 => QueryKind::GetPeers { info_hash: target, want, noseed, scrape },
        3 => QueryKind::AnnouncePeer(AnnouncePeer { info_hash: target, port, seed: noseed, token }),
        4 => QueryKind::Get { target, seq: rng.bool().then(|| rng.i64(0..9)), want },
        5 => QueryKind::SampleInfohashes { target, want },
        _ => QueryKind::Put(Put { item, cas: rng.bool().then(|| rng.i64(0..4)), token }),
    };
    let query = Query { id: NodeId::random(rng), kind };
    let mut arguments = Vec::new();
    query.encode(&mut arguments);
    (query.method(), arguments)
}
