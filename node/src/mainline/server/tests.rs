//! Tests of the server's own rules: order, durability, bounds. What each query is answered with
//! byte for byte stands in the conformance cases (tests/data/mainline).

use super::*;
use crate::krpc::bencode::Reader;
use crate::mainline::item::{SigningKey, immutable_target, mutable_target};
use crate::mainline::martian::Locals;
use crate::mainline::query::Query;
use crate::mainline::rate_limit::RateLimits;

const OWN: NodeId = NodeId([0; 20]);
const ASKER: NodeId = NodeId([9; 20]);
const NOW: Now = Now { monotonic_ns: 1, clock_ms: 1_700_000_000_000 };

type TestServer = Server<u32>;

fn server() -> TestServer {
    let rates = RateLimits { loopback_exempt: true, ..RateLimits::default() };
    let limits = ServerLimits { locals: Locals::Taken, rates, ..ServerLimits::default() };
    Server::new(OWN, limits, TokenKeys::new([1; 16]), [2; 16])
}

fn from() -> SocketAddr {
    "127.0.0.1:6881".parse().unwrap()
}

fn nobody(_: &NodeId, _: Family, _: usize, _: &mut Vec<Contact>) {}

/// Eight nodes that share 40 bits with any target.
fn crowd(target: &NodeId, _: Family, count: usize, found: &mut Vec<Contact>) {
    for port in 1..=u16::try_from(count).unwrap() {
        let id = target.random_sharing(40, &mut Rng::with_seed(u64::from(port)));
        found.push(Contact { id, address: SocketAddr::from(([127, 0, 0, 1], port)) });
    }
}

fn ask(server: &mut TestServer, asker: u32, kind: QueryKind<'_>) {
    ask_as(server, asker, kind, from(), &mut nobody);
}

fn ask_as(
    server: &mut TestServer,
    asker: u32,
    kind: QueryKind<'_>,
    from: SocketAddr,
    closest: &mut Closest<'_>,
) {
    let query = Query { id: ASKER, kind };
    let mut arguments = Vec::new();
    query.encode(&mut arguments);
    let incoming = Incoming {
        from,
        method: query.method(),
        arguments: &arguments,
        datagram_len: arguments.len() + 30,
        transaction_len: 2,
        own: OWN,
        is_proven: false,
    };
    server.handle_query(NOW, &incoming, asker, closest);
}

fn get(target: NodeId) -> QueryKind<'static> {
    QueryKind::Get { target, seq: None, want: Want::default() }
}

fn token(server: &mut TestServer, target: &NodeId) -> [u8; 8] {
    server.tokens.token(NOW.clock_ms, from().ip(), target)
}

fn put_immutable(server: &mut TestServer, asker: u32, value: &[u8]) {
    let token = token(server, &immutable_target(value));
    let put = Put { item: Item::Immutable(value), cas: None, token: &token };
    ask(server, asker, QueryKind::Put(put));
}

fn put_mutable(server: &mut TestServer, asker: u32, seq: i64, value: &[u8], cas: Option<i64>) {
    let signer = SigningKey::from_seed(&[5; 32]);
    let (key, signature) = (signer.public(), signer.sign(b"", seq, value));
    let token = token(server, &mutable_target(&key, b""));
    let item = crate::mainline::item::MutableItem {
        key: &key,
        salt: b"",
        seq,
        signature: &signature,
        value,
    };
    ask(server, asker, QueryKind::Put(Put { item: Item::Mutable(item), cas, token: &token }));
}

fn outputs(server: &mut TestServer) -> Vec<Output<u32>> {
    std::iter::from_fn(|| server.poll_output()).collect()
}

/// Plays an engine that holds `held` and stores at once; returns who was answered how.
fn settle(server: &mut TestServer, held: &mut Option<Bytes>) -> Vec<(u32, Option<Reject>)> {
    let mut answers = Vec::new();
    server.end_turn(NOW);
    while let Some(output) = server.poll_output() {
        match output {
            Output::Respond { asker, .. } => answers.push((asker, None)),
            Output::Refuse { asker, reject } => answers.push((asker, Some(reject))),
            Output::Load { target } => server.handle_loaded(NOW, target, Ok(held.clone())),
            Output::Store { target, record, .. } => {
                *held = Some(record);
                server.handle_stored(NOW, target, Ok(()));
            }
            Output::StorePeers { .. } => {}
        }
    }
    answers
}

#[test]
fn put_is_answered_once_its_record_is_durable() {
    let mut server = server();
    put_immutable(&mut server, 1, b"1:v");
    let stored = outputs(&mut server);
    let [Output::Store { target, record, expiry_ms }] = &stored[..] else { panic!("{stored:?}") };
    assert_eq!(*target, immutable_target(b"1:v"));
    assert_eq!(Record::decode(record).unwrap().item, Item::Immutable(b"1:v"));
    assert_eq!(*expiry_ms, NOW.clock_ms + 2 * 60 * 60 * 1000);
    server.handle_stored(NOW, *target, Ok(()));
    assert!(matches!(outputs(&mut server)[..], [Output::Respond { asker: 1, .. }]));
    assert_eq!(server.pending(), 0);
}

#[test]
fn failed_store_is_an_error_and_nothing_is_remembered_of_it() {
    let mut server = server();
    put_immutable(&mut server, 1, b"1:v");
    outputs(&mut server);
    let target = immutable_target(b"1:v");
    ask(&mut server, 2, get(target));
    server.handle_stored(NOW, target, Err(StoreFailed));
    let after = outputs(&mut server);
    assert!(
        matches!(
            after[..],
            [Output::Refuse { asker: 1, reject: Reject::Storage }, Output::Load { .. }]
        ),
        "{after:?}"
    );
    server.handle_loaded(NOW, target, Err(LoadFailed));
    let after = outputs(&mut server);
    assert!(matches!(after[..], [Output::Refuse { asker: 2, reject: Reject::Storage }]));
    assert_eq!(server.pending(), 0);
}

#[test]
fn equal_immutable_puts_share_a_write() {
    let mut server = server();
    (0..10).for_each(|asker| put_immutable(&mut server, asker, b"1:v"));
    assert_eq!(outputs(&mut server).len(), 1);
    server.handle_stored(NOW, immutable_target(b"1:v"), Ok(()));
    assert_eq!(outputs(&mut server).len(), 10);
}

#[test]
fn gets_of_one_target_share_a_read() {
    let mut server = server();
    let target = immutable_target(b"1:v");
    (0..10).for_each(|asker| ask(&mut server, asker, get(target)));
    assert!(matches!(outputs(&mut server)[..], [Output::Load { .. }]));
    server.handle_loaded(NOW, target, Ok(None));
    assert_eq!(outputs(&mut server).len(), 10);
    assert_eq!(server.pending(), 0);
}

/// All in one turn: each put must see the one before it.
#[test]
fn mutable_puts_of_one_target_are_dealt_with_in_order() {
    let (mut server, mut held) = (server(), None);
    put_mutable(&mut server, 1, 3, b"1:a", Some(77));
    put_mutable(&mut server, 2, 4, b"1:b", Some(3));
    put_mutable(&mut server, 3, 5, b"1:c", Some(3));
    put_mutable(&mut server, 4, 4, b"1:b", None);
    put_mutable(&mut server, 5, 4, b"1:x", None);
    put_mutable(&mut server, 6, 2, b"1:x", Some(1));
    put_mutable(&mut server, 7, 2, b"1:x", Some(4));
    let mut answers = settle(&mut server, &mut held);
    answers.sort_by_key(|(asker, _)| *asker);
    let expected = [
        (1, None),
        (2, None),
        (3, Some(Reject::Cas)),
        (4, None),
        (5, Some(Reject::OldSeq)),
        (6, Some(Reject::Cas)),
        (7, Some(Reject::OldSeq)),
    ];
    assert_eq!(answers, expected);
    let record = held.unwrap();
    let Item::Mutable(item) = Record::decode(&record).unwrap().item else { panic!() };
    assert_eq!((item.seq, item.value), (4, &b"1:b"[..]));
}

#[test]
fn refresh_writes_the_record_again() {
    let (mut server, mut held) = (server(), None);
    put_mutable(&mut server, 1, 3, b"1:a", None);
    settle(&mut server, &mut held);
    let later = Now { clock_ms: NOW.clock_ms + 1000, ..NOW };
    put_mutable(&mut server, 2, 3, b"1:a", None);
    server.end_turn(later);
    let target = mutable_target(&SigningKey::from_seed(&[5; 32]).public(), b"");
    outputs(&mut server);
    server.handle_loaded(later, target, Ok(held));
    let [Output::Store { expiry_ms, .. }] = &outputs(&mut server)[..] else { panic!() };
    assert_eq!(*expiry_ms, later.clock_ms + 2 * 60 * 60 * 1000);
}

#[test]
fn items_far_from_us_are_not_stored_and_no_token_is_given() {
    let mut server = server();
    let target = immutable_target(b"1:v");
    ask_as(&mut server, 1, get(target), from(), &mut crowd);
    outputs(&mut server);
    server.handle_loaded(NOW, target, Ok(None));
    let answers = outputs(&mut server);
    let [Output::Respond { values, .. }] = &answers[..] else { panic!() };
    let values = Values::decode(values).unwrap();
    assert_eq!((values.token, values.nodes.map(<[u8]>::len)), (None, Some(8 * 26)));
    let token = token(&mut server, &target);
    let put = Put { item: Item::Immutable(b"1:v"), cas: None, token: &token };
    ask_as(&mut server, 2, QueryKind::Put(put), from(), &mut crowd);
    assert_eq!(outputs(&mut server), [Output::Refuse { asker: 2, reject: Reject::NotStored }]);
}

/// The promise to those whose address is forged: at most 15 times what was sent in their name.
#[test]
fn unproven_sources_get_no_more_than_the_stated_factor() {
    let signer = SigningKey::from_seed(&[5; 32]);
    let key = signer.public();
    let target = mutable_target(&key, b"");
    let value = [&b"996:"[..], &[b'x'; 996]].concat();
    let signature = signer.sign(b"", i64::MAX, &value);
    let item = crate::mainline::item::MutableItem {
        key: &key,
        salt: b"",
        seq: i64::MAX,
        signature: &signature,
        value: &value,
    };
    let record: Bytes = Record { put_ms: 0, item: Item::Mutable(item) }.encode().into();
    // The shortest query that there is: a get with a transaction id of no bytes.
    let arguments = [b"d2:id20:", &[1; 20][..], b"6:target20:", &target.0[..], b"e"].concat();
    let datagram_len = arguments.len() + b"d1:a1:q3:get1:t0:1:y1:qe".len();
    for (factor, is_whole) in [(15, true), (10, false)] {
        let mut server = server();
        server.limits.replies.amplification_max = factor;
        for is_proven in [false, true] {
            let incoming = Incoming {
                from: from(),
                method: b"get",
                arguments: &arguments,
                datagram_len,
                transaction_len: 0,
                own: OWN,
                is_proven,
            };
            server.handle_query(NOW, &incoming, 1, &mut crowd);
            outputs(&mut server);
            server.handle_loaded(NOW, target, Ok(Some(record.clone())));
            let answers = outputs(&mut server);
            let [Output::Respond { values, .. }] = &answers[..] else { panic!() };
            let has_value = Values::decode(values).unwrap().value.is_some();
            assert_eq!(has_value, is_whole || is_proven, "factor {factor}, proven {is_proven}");
            // Around the values: at most ip, r, t, v and y of a reply to IPv6.
            let len =
                values.len() + b"d2:ip18:123456789012345678".len() + b"1:r1:t0:1:v4:1234".len();
            let len = len + b"1:y1:re".len();
            assert!(is_proven || len <= factor * datagram_len, "{len} for {datagram_len}");
        }
    }
}

#[test]
fn replies_stay_within_a_datagram_of_1024_bytes() {
    let mut server = server();
    let info_hash = NodeId([3; 20]);
    for index in 0..500_u32 {
        let address = SocketAddr::from((std::net::Ipv4Addr::from_bits(0x7f00_0000 + index), 5));
        server.peers_mut().announce(NOW.clock_ms, &info_hash, address, false);
    }
    let want = Want { v4: true, v6: true };
    for (kind, least) in [
        (QueryKind::GetPeers { info_hash, want, noseed: false, scrape: true }, 0),
        (QueryKind::GetPeers { info_hash, want, noseed: false, scrape: false }, 40),
    ] {
        ask_as(&mut server, 1, kind, from(), &mut crowd);
        let answers = outputs(&mut server);
        let [Output::Respond { values, .. }] = &answers[..] else { panic!() };
        assert!(values.len() <= 1_024 - 50, "{}", values.len());
        let values = Values::decode(values).unwrap();
        assert!(values.peers.map_or(0, |peers| peers.len()) >= least);
        assert!(values.nodes.is_some() && values.nodes6.is_some() && values.token.is_some());
    }
}

/// Whoever floods a table from one network does not get its nodes handed out; on one machine all
/// are of one network, and count if that is said.
#[test]
fn replies_name_few_nodes_of_a_network() {
    for (is_exempt, count) in [(false, 2), (true, 8)] {
        let mut server = server();
        server.limits.rates.loopback_exempt = is_exempt;
        let kind = QueryKind::FindNode { target: NodeId([7; 20]), want: Want::default() };
        ask_as(&mut server, 1, kind, from(), &mut crowd);
        let answers = outputs(&mut server);
        let [Output::Respond { values, .. }] = &answers[..] else { panic!("{answers:?}") };
        let nodes = Values::decode(values).unwrap().nodes.unwrap();
        assert_eq!(nodes.len(), count * Family::V4.node_len());
    }
}

#[test]
fn queries_are_counted_by_kind_and_outcome() {
    let (mut server, mut held) = (server(), None);
    ask(&mut server, 1, QueryKind::Ping);
    put_immutable(&mut server, 2, b"1:a");
    let bad = Put { item: Item::Immutable(b"1:b"), cas: None, token: b"none" };
    ask(&mut server, 3, QueryKind::Put(bad));
    settle(&mut server, &mut held);
    let counters = server.counters();
    let of = |kind: QueryKind<'_>| counters.outcomes[kind.index()];
    assert_eq!((of(QueryKind::Ping), of(QueryKind::Put(bad))), ([1, 0], [1, 1]));
    assert_eq!((counters.answered, counters.refused), (2, 1));
}

#[test]
fn martians_and_floods_get_no_answer() {
    let mut server = server();
    ask_as(&mut server, 1, QueryKind::Ping, "224.0.0.1:5".parse().unwrap(), &mut nobody);
    assert_eq!((outputs(&mut server).len(), server.counters().martian), (0, 1));
    let from = "8.8.8.8:5".parse().unwrap();
    for asker in 0..1_000 {
        ask_as(&mut server, asker, QueryKind::Ping, from, &mut nobody);
    }
    assert_eq!(outputs(&mut server).len(), 300);
    assert_eq!(server.counters().limited, 700);
}

#[test]
fn queues_are_bounded_and_say_so() {
    let mut server = server();
    server.desks = Desks::new(20, 10);
    for asker in 0..30_u8 {
        ask(&mut server, u32::from(asker), get(NodeId([asker % 2; 20])));
    }
    let all = outputs(&mut server);
    let busy =
        all.iter().filter(|output| matches!(output, Output::Refuse { reject: Reject::Busy, .. }));
    assert_eq!((busy.count(), server.pending()), (10, 20));
}

#[test]
fn signatures_are_checked_in_batches_and_bad_ones_refused() {
    let (mut server, mut held) = (server(), None);
    let signer = SigningKey::from_seed(&[5; 32]);
    let key = signer.public();
    let token = token(&mut server, &mutable_target(&key, b""));
    for seq in 0..10_i64 {
        let mut signature = signer.sign(b"", seq, b"1:v");
        signature[3] ^= u8::from(seq == 4);
        let item = crate::mainline::item::MutableItem {
            key: &key,
            salt: b"",
            seq,
            signature: &signature,
            value: b"1:v",
        };
        let put = Put { item: Item::Mutable(item), cas: None, token: &token };
        ask(&mut server, u32::try_from(seq).unwrap(), QueryKind::Put(put));
    }
    assert_eq!(outputs(&mut server).len(), 0, "nothing before the end of the turn");
    let mut answers = settle(&mut server, &mut held);
    answers.sort_by_key(|(asker, _)| *asker);
    assert!((0..10).all(|seq| answers[seq].1 == (seq == 4).then_some(Reject::Signature)));
    assert_eq!(server.counters().signatures, 10);
}

#[test]
fn announced_peers_are_flushed_a_few_seconds_later() {
    let mut server = server();
    let info_hash = NodeId([3; 20]);
    let token = token(&mut server, &info_hash);
    let announce = AnnouncePeer { info_hash, port: Some(7), seed: false, token: &token };
    assert_eq!(server.deadline_ms(), None);
    ask(&mut server, 1, QueryKind::AnnouncePeer(announce));
    assert!(matches!(outputs(&mut server)[..], [Output::Respond { asker: 1, .. }]));
    let deadline_ms = server.deadline_ms().unwrap();
    assert!(deadline_ms <= NOW.clock_ms + 5_000);
    server.handle_time(NOW);
    assert!(outputs(&mut server).is_empty(), "too early");
    server.handle_time(Now { clock_ms: deadline_ms, ..NOW });
    let flushed = outputs(&mut server);
    assert!(matches!(&flushed[..], [Output::StorePeers { record: Some(_), .. }]), "{flushed:?}");
}

#[test]
fn another_client_address_does_not_profit_from_a_token() {
    let mut server = server();
    let token = token(&mut server, &immutable_target(b"1:v"));
    let put = Put { item: Item::Immutable(b"1:v"), cas: None, token: &token };
    let other = "127.0.0.2:6881".parse().unwrap();
    ask_as(&mut server, 1, QueryKind::Put(put), other, &mut nobody);
    assert_eq!(outputs(&mut server), [Output::Refuse { asker: 1, reject: Reject::Token }]);
    let same_ip = "127.0.0.1:1".parse().unwrap();
    ask_as(&mut server, 2, QueryKind::Put(put), same_ip, &mut nobody);
    assert!(matches!(outputs(&mut server)[..], [Output::Store { .. }]), "any port will do");
}

#[test]
fn values_are_canonical_bencode() {
    let mut server = server();
    let sample = QueryKind::SampleInfohashes { target: OWN, want: Want::default() };
    for (kind, keys) in [
        (QueryKind::Ping, &[&b"id"[..]][..]),
        (sample, &[b"id", b"interval", b"nodes", b"num", b"samples"]),
    ] {
        ask_as(&mut server, 1, kind, from(), &mut crowd);
        let answers = outputs(&mut server);
        let [Output::Respond { values, .. }] = &answers[..] else { panic!() };
        let mut reader = Reader::new(values);
        let mut found = reader.dictionary().unwrap();
        for expected in keys {
            assert_eq!(reader.key(&mut found).unwrap(), Some(*expected));
            reader.value().unwrap();
        }
        assert_eq!(reader.key(&mut found).unwrap(), None);
        assert!(reader.is_canonical());
    }
}
