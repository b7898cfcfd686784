//! Real nodes of BitTorrent's DHT: among themselves, with clients over RESP, and with the mainline
//! crate as client, as network, and as server.

#![expect(deprecated, reason = "the crate's blocking calls need no runtime in these tests")]

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, UdpSocket};
use std::process::Command;
use std::time::Duration;

use kadring::mainline::item::SigningKey;
use kadring::mainline::text;
use kadring_tests::conformance::all;
use kadring_tests::conformance::udp_node::{UdpNode, Verdict};
use kadring_tests::http_client::HttpClient;
use kadring_tests::node_process::{Driver, EXIT_DEADLINE, NodeOptions, NodeProcess};
use kadring_tests::resp_client::Reply;
use mainline::errors::{ConcurrencyError, PutMutableError};
use mainline::{Dht, Id, MutableItem, Testnet};

use crate::mainline_net::{
    Network, ask, figure, kadring, peer, start_node, start_node_with, wait_until,
};
use crate::{TestNode, admin, directory};

/// A reply that comes at all comes by then.
const REPLY_TIMEOUT: Duration = Duration::from_secs(20);

fn client(bootstrap: &[String]) -> Dht {
    let builder = &mut Dht::builder();
    let builder = builder.bootstrap(bootstrap).bind_address(Ipv4Addr::LOCALHOST).port(0);
    builder.build().unwrap()
}

fn hex(id: &Id) -> String {
    text::hex(id.as_bytes())
}

fn field<'a>(answer: &'a Reply, name: &str) -> Option<&'a Reply> {
    let Reply::Array(words) = answer else { panic!("{answer:?}") };
    let pair = words.chunks(2).find(|pair| pair[0].bytes() == Some(name.as_bytes()));
    pair.map(|pair| &pair[1])
}

#[test]
fn mainline_crate_stores_and_finds_through_our_nodes() {
    let network = Network::start(3);
    let dht = client(&network.peers());

    let target = dht.put_immutable(b"hello world").unwrap();
    assert_eq!(dht.get_immutable(target).as_deref(), Some(&b"hello world"[..]));
    let found = kadring(&network.nodes[2], &["get", &hex(&target)]).unwrap();
    assert_eq!(found, "hello world");

    let signer = mainline::SigningKey::from_bytes(&[7; 32]);
    let key = signer.verifying_key().to_bytes();
    for salt in [None, Some(&b"a salt"[..])] {
        let item = |seq: i64, value: &[u8]| MutableItem::new(signer.clone(), value, seq, salt);
        dht.put_mutable(item(1, b"one"), None).unwrap();
        dht.put_mutable(item(2, b"two"), Some(1)).unwrap();
        let found = dht.get_mutable_most_recent(&key, salt).unwrap();
        assert_eq!((found.seq(), found.value()), (2, &b"two"[..]));
        let refused = dht.put_mutable(item(3, b"three"), Some(1)).unwrap_err();
        let is_conflict =
            matches!(refused, PutMutableError::Concurrency(ConcurrencyError::CasFailed));
        assert!(is_conflict, "{refused:?}");
        let words = ["get", &text::hex(&key), "--salt", "a salt"];
        let words = &words[..if salt.is_some() { 4 } else { 2 }];
        assert_eq!(kadring(&network.nodes[0], words).unwrap(), "two");
    }

    let info_hash = Id::from_bytes([0xAB; 20]).unwrap();
    dht.announce_peer(info_hash, Some(6_000)).unwrap();
    let peers: BTreeSet<_> = dht.get_peers(info_hash).flatten().collect();
    assert_eq!(peers, BTreeSet::from([std::net::SocketAddrV4::new(Ipv4Addr::LOCALHOST, 6_000)]));
    let found = kadring(&network.nodes[1], &["get-peers", &hex(&info_hash)]).unwrap();
    assert_eq!(found, "127.0.0.1:6000\n");
    let found = kadring(&network.nodes[1], &["sample", &hex(&info_hash)]).unwrap();
    assert_eq!(found, format!("{}\n", hex(&info_hash)));
}

#[test]
fn our_node_stores_and_finds_inside_a_network_of_the_mainline_crate() {
    let testnet = Testnet::builder(5).bind_address(Ipv4Addr::LOCALHOST).build().unwrap();
    let node = start_node("127.0.0.1:0", &testnet.bootstrap.join(","));
    wait_until("the node knows the test network", || figure(&node, "table_nodes_ipv4") >= 5.0);
    let theirs = &testnet.nodes[1];

    let target = kadring(&node, &["put", "from us"]).unwrap();
    let target = target.trim();
    let id: Id = target.parse().unwrap();
    assert_eq!(theirs.get_immutable(id).as_deref(), Some(&b"from us"[..]));
    let id = theirs.put_immutable(b"from them").unwrap();
    assert_eq!(kadring(&node, &["get", &hex(&id)]).unwrap(), "from them");

    let directory = directory();
    let file = directory.path().join("key");
    let file = file.to_str().unwrap();
    let keys = kadring_without_node(&["mainline", "key", "--create", file]);
    let public: [u8; 32] = text::decode(keys.split(' ').next().unwrap().as_bytes()).unwrap();
    for (seq, value) in [(1, "one"), (2, "two")] {
        let words = ["put-mutable", "--key-file", file, "--salt", "s", value, "--details"];
        kadring(&node, &words).unwrap();
        let found = theirs.get_mutable_most_recent(&public, Some(b"s")).unwrap();
        assert_eq!((found.seq(), found.value()), (seq, value.as_bytes()));
    }
    let words = ["put-mutable", "--key-file", file, "--salt", "s", "three", "--cas", "1"];
    let refused = kadring(&node, &words).unwrap_err();
    assert!(refused.contains("301"), "{refused}");

    let info_hash = Id::from_bytes([0xCD; 20]).unwrap();
    kadring(&node, &["announce", &hex(&info_hash), "--port", "7000"]).unwrap();
    let peers: Vec<_> = theirs.get_peers(info_hash).flatten().collect();
    assert!(peers.iter().any(|peer| peer.port() == 7_000), "{peers:?}");
    let found = kadring(&node, &["get-peers", &hex(&info_hash)]).unwrap();
    assert_eq!(found, "127.0.0.1:7000\n");
}

fn kadring_without_node(words: &[&str]) -> String {
    let output = kadring_tests::node_process::run_to_end(words, &[]).unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// A node that is killed comes back as the same neighbour, with what it held.
#[test]
fn node_id_items_and_peers_survive_a_kill() {
    let network = Network::start(3);
    let ids: Vec<_> = network.nodes.iter().map(|node| node.node.ready().node.clone()).collect();
    let target = kadring(&network.nodes[0], &["put", "kept"]).unwrap();
    let info_hash = "ef".repeat(20);
    kadring(&network.nodes[0], &["announce", &info_hash, "--port", "7001"]).unwrap();
    // Peers are written a few seconds after they were announced.
    for node in &network.nodes[1..] {
        wait_until("peers are written", || {
            let reply = node.client().call(&[b"INFO", b"keyspace"]).unwrap();
            let text = String::from_utf8_lossy(reply.bytes().unwrap()).into_owned();
            // The item, the peers, the state.
            text.contains("keys=3")
        });
    }
    let network = network.kill_and_restart();
    let again: Vec<_> = network.nodes.iter().map(|node| node.node.ready().node.clone()).collect();
    assert_eq!(again, ids);
    assert_eq!(kadring(&network.nodes[0], &["get", target.trim()]).unwrap(), "kept");
    let found = kadring(&network.nodes[2], &["get-peers", &info_hash]).unwrap();
    assert_eq!(found, "127.1.0.1:7001\n");
}

#[test]
fn orderly_stop_keeps_everything_at_once() {
    let node = start_node("127.0.0.1:0", "none");
    let (id, address) = (node.node.ready().node.clone(), peer(&node));
    let socket = socket();
    let mut exchange = |datagram: &[u8]| exchange(&socket, address, datagram);
    let token = put(&mut exchange, b"5:after");
    assert!(!token.is_empty());
    // Peers are written a few seconds after they were announced, or now.
    let announced = exchange(&announce_query(&token_of(&exchange(GET_PEERS).unwrap()))).unwrap();
    assert!(contains(&announced, b"1:y1:r"), "{}", announced.escape_ascii());
    let node = node.terminate_and_restart();
    assert_eq!((node.node.ready().node.as_str(), peer(&node)), (id.as_str(), address));
    let peers = exchange(GET_PEERS).unwrap();
    assert!(contains(&peers, b"6:\x7f\0\0\x01\x1b\x59"), "{}", peers.escape_ascii());
    let get = get_query(b"5:after");
    let reply = exchange(&get).unwrap();
    assert!(contains(&reply, b"5:after"), "{}", reply.escape_ascii());
    // A token of before is still good.
    let again = exchange(&put_query(&token, b"5:after")).unwrap();
    assert!(contains(&again, b"1:y1:r"), "{}", again.escape_ascii());
}

#[test]
fn directory_of_another_mode_is_refused() {
    let node = start_node("127.0.0.1:0", "none");
    let TestNode { node, directory } = node;
    node.terminate().unwrap();
    let data = directory.path().join("data");
    let data = data.to_str().unwrap();
    let refused = |mode: &str| {
        let words = ["run", "--mode", mode, "--data-dir", data, "--client", "127.0.0.1:0"];
        let output = kadring_tests::node_process::run_to_end(&words, &[]).unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!((output.status.code(), stderr.lines().count()), (Some(5), 1), "{stderr}");
        stderr
    };
    let line = refused("private");
    assert!(
        line.contains("--mode mainline, not private; start it with --mode mainline, or"),
        "{line}"
    );
    // One that does not say is taken for what the start says; from then on it does.
    let note = directory.path().join("data/node.toml");
    std::fs::write(&note, "mode = \"private\"\n").unwrap();
    assert!(refused("mainline").contains("--mode private"));
    std::fs::remove_file(&note).unwrap();
    let options = NodeOptions::new(std::path::Path::new(data), Driver::Uring);
    let node = NodeProcess::start(options).unwrap_or_else(|error| panic!("{error}"));
    node.terminate().unwrap();
    assert!(std::fs::read_to_string(&note).unwrap().contains("mode = \"private\""));
}

/// An operator with one node finds what he has put; the first neighbour gets it.
#[test]
fn lone_node_keeps_items_until_a_neighbour_comes() {
    let lone = start_node("127.1.0.1:0", "none");
    let put = ask(&mut lone.client(), &["KAD.BEP44.PUT", "4:lone"]);
    assert_eq!(field(&put, "stored"), Some(&Reply::Integer(1)), "{put:?}");
    let here = Reply::Array(vec![
        Reply::Bulk(peer(&lone).to_string().into_bytes()),
        Reply::Bulk(b"stored here".to_vec()),
    ]);
    assert_eq!(field(&put, "replicas"), Some(&Reply::Array(vec![here])));
    let target = text::hex(&kadring::mainline::item::immutable_target(b"4:lone").0);
    assert_eq!(kadring(&lone, &["get", &target]).unwrap(), "lone");
    wait_until("it is told that nobody else has it", || figure(&lone, "unplaced") == 1.0);
    let second = start_node("127.2.0.1:0", &peer(&lone).to_string());
    wait_until("the item is at the second node", || figure(&lone, "unplaced") == 0.0);
    drop(lone);
    assert_eq!(kadring(&second, &["get", &target]).unwrap(), "lone");
}

/// Names are looked up while the node serves, by the system: this one is in /etc/hosts.
#[test]
fn seeds_are_found_by_name() {
    let first = start_node("127.0.0.1:0", "none");
    let name = format!("localhost:{}", peer(&first).port());
    let second = start_node("127.0.0.1:0", &name);
    wait_until("the second node knows the first", || figure(&second, "table_nodes_ipv4") == 1.0);
}

/// Names without an address neither stop nor delay a start, and are told of as not ready. What is
/// given here is no name for any resolver.
#[test]
fn names_without_an_address_do_not_stop_a_start() {
    let label = "a".repeat(70);
    let variables = [("KADRING_ADMIN", "127.0.0.1:0")];
    let node = start_node_with("127.0.0.1:0", &format!("{label}:1"), &variables);
    let admin = node.node.ready().line.split(' ').find_map(|word| word.strip_prefix("admin="));
    let mut admin = HttpClient::connect(admin.unwrap().parse().unwrap()).unwrap();
    let readiness = admin.get("/readyz", "").unwrap();
    assert_eq!(readiness.status, 503);
    assert_eq!(ask(&mut node.client(), &["PING"]), Reply::Simple("PONG".to_owned()));
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

fn get_query(value: &[u8]) -> Vec<u8> {
    let target = kadring::mainline::item::immutable_target(value);
    let mut query = b"d1:ad2:id20:abcdefghij01234567896:target20:".to_vec();
    query.extend_from_slice(&target.0);
    query.extend_from_slice(b"e1:q3:get1:t2:aa1:y1:qe");
    query
}

fn put_query(token: &[u8], value: &[u8]) -> Vec<u8> {
    let mut query = format!("d1:ad2:id20:abcdefghij01234567895:token{}:", token.len()).into_bytes();
    query.extend_from_slice(token);
    query.extend_from_slice(b"1:v");
    query.extend_from_slice(value);
    query.extend_from_slice(b"e1:q3:put1:t2:bb1:y1:qe");
    query
}

const GET_PEERS: &[u8] = b"d1:ad2:id20:abcdefghij01234567899:info_hash20:iiiiiiiiiiiiiiiiiiii\
                          e1:q9:get_peers1:t2:cc1:y1:qe";

/// A peer at port 7001.
fn announce_query(token: &[u8]) -> Vec<u8> {
    let mut query = b"d1:ad2:id20:abcdefghij01234567899:info_hash20:iiiiiiiiiiiiiiiiiiii\
                      4:porti7001e5:token"
        .to_vec();
    query.extend_from_slice(format!("{}:", token.len()).as_bytes());
    query.extend_from_slice(token);
    query.extend_from_slice(b"e1:q13:announce_peer1:t2:dd1:y1:qe");
    query
}

fn token_of(reply: &[u8]) -> Vec<u8> {
    let raw = kadring_tests::conformance::runner::find(reply, "r.token").unwrap();
    kadring::krpc::bencode::Reader::new(raw).bytes().unwrap().to_vec()
}

/// Puts an immutable value by hand; returns the token.
fn put(exchange: &mut dyn FnMut(&[u8]) -> Option<Vec<u8>>, value: &[u8]) -> Vec<u8> {
    let token = token_of(&exchange(&get_query(value)).unwrap());
    let reply = exchange(&put_query(&token, value)).unwrap();
    assert!(contains(&reply, b"1:y1:r"), "{}", reply.escape_ascii());
    token
}

fn socket() -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(REPLY_TIMEOUT)).unwrap();
    socket
}

/// Sends a datagram, and waits for what repeats its transaction id; what the node asks by itself is
/// passed over.
fn exchange(socket: &UdpSocket, to: std::net::SocketAddr, datagram: &[u8]) -> Option<Vec<u8>> {
    socket.send_to(datagram, to).unwrap();
    let mut buffer = [0; 4_096];
    loop {
        let (len, _) = socket.recv_from(&mut buffer).ok()?;
        if !contains(&buffer[..len], b"1:y1:q") {
            return Some(buffer[..len].to_vec());
        }
    }
}

/// The cases that the server passes in memory, against a process over UDP.
#[test]
fn a_process_passes_the_conformance_cases() {
    let node = start_node("127.0.0.1:0", "none");
    let mut udp_node = UdpNode::new(peer(&node), REPLY_TIMEOUT);
    let mut failures = Vec::new();
    for case in all().unwrap() {
        let verdict = udp_node.judge(&case);
        if !matches!(verdict, Verdict::Ours) {
            failures.push(format!("{}: {verdict:?} ({})", case.name, case.why));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// `conformance` for operators: it compares nodes wherever they are, and can fail.
#[test]
fn conformance_tells_nodes_apart() {
    let node = start_node("127.0.0.1:0", "none");
    // It takes what comes, and says nothing.
    let silent = socket();
    let addresses = [peer(&node), silent.local_addr().unwrap()].map(|address| address.to_string());
    let program = env!("CARGO_BIN_EXE_conformance");
    let compare = |nodes: &[String], only: &str| {
        let words = ["--only", only, "--reply-ms-max", "500"];
        let output = Command::new(program).args(nodes).args(words).output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    let (code, lines) = compare(&addresses[..1], "bep44/cas");
    assert_eq!((code, lines.lines().count()), (Some(0), 2), "{lines}");
    assert!(lines.contains("1 as ours, 0 otherwise, 0 failed"), "{lines}");
    let (code, lines) = compare(&addresses, "bep5/ping");
    assert_eq!(code, Some(1), "{lines}");
    assert!(lines.lines().next().unwrap().ends_with("ours    FAILED"), "{lines}");
    assert_eq!(compare(&addresses[..1], "no such case").0, Some(1));
}

#[test]
fn figures_of_a_mainline_node_are_those_that_are_documented() {
    let variables = [("KADRING_MIRROR", "forever"), ("KADRING_ADMIN", "127.0.0.1:0")];
    let node = start_node_with("127.0.0.1:0", "none", &variables);
    let admin = node.node.ready().line.split(' ').find_map(|word| word.strip_prefix("admin="));
    let mut client = HttpClient::connect(admin.unwrap().parse().unwrap()).unwrap();
    let [mut documented, _, of_mainline] = admin::documented();
    assert!(of_mainline.len() > 20, "{}", of_mainline.len());
    documented.extend(of_mainline);
    admin::check(&documented, &admin::told(&admin::scrape(&mut client)));
}

#[test]
fn clients_speak_to_the_network_over_resp() {
    let network = Network::start(3);
    let (near, far) = (&network.nodes[0], &network.nodes[2]);
    let (mut client, mut other) = (near.client(), far.client());
    let put = ask(&mut client, &["KAD.BEP44.PUT", "li1e3:twoe"]);
    let Some(Reply::Bulk(target)) = field(&put, "target") else { panic!("{put:?}") };
    let target = String::from_utf8(target.clone()).unwrap();
    assert_eq!(field(&put, "stored"), Some(&Reply::Integer(2)), "{put:?}");
    let got = ask(&mut other, &["KAD.BEP44.GET", &target]);
    assert_eq!(field(&got, "value").unwrap().bytes(), Some(&b"li1e3:twoe"[..]));
    let missing = ask(&mut client, &["KAD.BEP44.GET", &"00".repeat(20)]);
    assert_eq!(field(&missing, "value"), Some(&Reply::Nil));

    let signer = SigningKey::from_seed(&[5; 32]);
    let key = text::hex(&signer.public());
    let signed = |seq: i64, value: &str| {
        let signature = signer.sign(b"s", seq, value.as_bytes());
        let seq = seq.to_string();
        let words = ["KAD.BEP44.PUTMUTABLE", &key, &text::hex(&signature), &seq, value];
        [&words[..], &["SALT", "s"]].concat().into_iter().map(str::to_owned).collect::<Vec<_>>()
    };
    let mut put = |words: Vec<String>| {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        ask(&mut client, &words)
    };
    assert_eq!(field(&put(signed(4, "1:a")), "stored"), Some(&Reply::Integer(2)));
    let conflict = put(signed(3, "1:b"));
    assert_eq!(field(&conflict, "conflict"), Some(&Reply::Integer(302)), "{conflict:?}");
    let got = ask(&mut other, &["KAD.BEP44.GET", &key, "SALT", "s"]);
    assert_eq!(field(&got, "seq"), Some(&Reply::Integer(4)), "{got:?}");
    assert_eq!(field(&got, "value").unwrap().bytes(), Some(&b"1:a"[..]));

    let pong = ask(&mut other, &["KAD.MAINLINE.PING", &peer(near).to_string()]);
    assert_eq!(pong.bytes(), Some(near.node.ready().node.as_bytes()));
    for words in [
        &["KAD.BEP44.GET", "zz"][..],
        &["KAD.BEP44.PUT", "no bencode"],
        &["KAD.BEP44.PUTMUTABLE", "k", "s", "1", "1:a"],
        &["KAD.MAINLINE.PING", "nowhere"],
        &["KAD.MAINLINE.ANNOUNCE", &"ab".repeat(20), "PORT", "0"],
    ] {
        assert!(ask(&mut other, words).is_error("ERR "), "{words:?}");
    }
}

#[test]
fn keys_of_redis_clients_are_refused_and_the_rest_is_not() {
    let node = start_node("127.0.0.1:0", "none");
    let mut client = node.client();
    for words in [
        &["GET", "k"][..],
        &["SET", "k", "v"],
        &["DEL", "k"],
        &["SCAN", "0"],
        &["DBSIZE"],
        &["FLUSHALL"],
    ] {
        let refused = ask(&mut client, words);
        assert!(refused.is_error("ERR this node is one of BitTorrent's DHT"), "{refused:?}");
    }
    assert_eq!(ask(&mut client, &["PING"]), Reply::Simple("PONG".to_owned()));
    for words in [
        &["INFO"][..],
        &["CONFIG", "GET", "mode"],
        &["CLIENT", "LIST"],
        &["KAD.SNAPSHOT", "CREATE"],
    ] {
        let answered = ask(&mut client, words);
        assert!(!matches!(answered, Reply::Error(_)), "{words:?}: {answered:?}");
    }
    // And the other way round.
    let plain = TestNode::start(Driver::Uring);
    let refused = ask(&mut plain.client(), &["KAD.BEP44.PUT", "1:a"]);
    assert!(refused.is_error("ERR this node is not one of BitTorrent's DHT"), "{refused:?}");
    // It says nothing, and is gone.
    assert!(client.call(&[b"SHUTDOWN"]).is_err());
    let mut node = node;
    let status = node.node.wait_exit(EXIT_DEADLINE).unwrap();
    assert_eq!(status.and_then(|status| status.code()), Some(0));
}
