//! Nodes of BitTorrent's DHT on IPv6 (BEP 32), as processes on `[::1]`.

use std::net::{Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use kadring::krpc::bencode::Reader;
use kadring_tests::conformance::runner::find;
use kadring_tests::node_process::NodeProcess;

use crate::TestNode;
use crate::mainline_net::{figure, kadring, peer, start_node, wait_until};

/// A reply that comes at all comes by then.
const REPLY_TIMEOUT: Duration = Duration::from_secs(20);

/// Whether there is IPv6; without it nothing is tested, and that is said.
fn has_ipv6() -> bool {
    let has = UdpSocket::bind("[::1]:0").is_ok();
    if !has {
        eprintln!("SKIPPED, nothing was tested: this machine has no [::1]");
    }
    has
}

/// One who asks by hand.
struct Asker(UdpSocket);

impl Asker {
    fn new(address: &str) -> Self {
        let socket = UdpSocket::bind(address).unwrap();
        socket.set_read_timeout(Some(REPLY_TIMEOUT)).unwrap();
        Self(socket)
    }

    /// Sends a query with these arguments behind the id: the reply.
    fn ask(&self, to: SocketAddr, method: &str, arguments: &str) -> Vec<u8> {
        let query = format!(
            "d1:ad2:id20:abcdefghij0123456789{arguments}e1:q{}:{method}1:t2:xx1:y1:qe",
            method.len()
        );
        self.0.send_to(query.as_bytes(), to).unwrap();
        let mut buffer = [0; 4_096];
        loop {
            let (len, _) = self.0.recv_from(&mut buffer).unwrap();
            let reply = &buffer[..len];
            if find(reply, "t").is_some_and(|id| id == b"2:xx") && find(reply, "q").is_none() {
                return reply.to_vec();
            }
        }
    }
}

fn bytes(reply: &[u8], path: &str) -> Option<Vec<u8>> {
    find(reply, path).map(|raw| Reader::new(raw).bytes().unwrap().to_vec())
}

#[track_caller]
fn len_of(reply: &[u8], path: &str) -> Option<usize> {
    bytes(reply, path).map(|found| found.len())
}

const TARGET: &str = "6:target20:mnopqrstuvwxyz123456";
const INFO_HASH: &str = "9:info_hash20:iiiiiiiiiiiiiiiiiiii";

#[test]
fn nodes_of_ipv6_alone_make_a_network() {
    if !has_ipv6() {
        return;
    }
    let first = start_node("[::1]:0", "none");
    let seed = peer(&first).to_string();
    let nodes = [start_node("[::1]:0", &seed), start_node("[::1]:0", &seed), first];
    for node in &nodes {
        wait_until("a node knows the others", || figure(node, "table_nodes_ipv6") >= 2.0);
    }
    let target = kadring(&nodes[0], &["put", "over IPv6"]).unwrap();
    assert_eq!(kadring(&nodes[1], &["get", target.trim()]).unwrap(), "over IPv6");
    let info_hash = "ab".repeat(20);
    kadring(&nodes[0], &["announce", &info_hash, "--port", "7001"]).unwrap();
    assert_eq!(kadring(&nodes[1], &["get-peers", &info_hash]).unwrap(), "[::1]:7001\n");

    let asker = Asker::new("[::1]:0");
    let reply = asker.ask(peer(&nodes[2]), "find_node", TARGET);
    assert_eq!((len_of(&reply, "r.nodes6"), len_of(&reply, "r.nodes")), (Some(2 * 38), None));
    // The nodes' addresses, and ours as the node sees it: 18 bytes each.
    let found = bytes(&reply, "r.nodes6").unwrap();
    for node in found.chunks(38) {
        assert_eq!(node[20..36], Ipv6Addr::LOCALHOST.octets());
        let port = u16::from_be_bytes([node[36], node[37]]);
        assert!(nodes[..2].iter().any(|node| peer(node).port() == port), "{port}");
    }
    let own = bytes(&reply, "ip").unwrap();
    assert_eq!((own.len(), &own[..16]), (18, &Ipv6Addr::LOCALHOST.octets()[..]));
}

/// One node, one port, both families: nodes and peers are never mixed.
#[test]
fn node_of_both_families_answers_each_with_what_it_wants() {
    if !has_ipv6() {
        return;
    }
    // A port that is free for both is known once the first life has had it.
    let TestNode { node, directory } = start_node("127.0.0.1:0", "none");
    let options = node.options_on_same_port();
    node.terminate().unwrap();
    let node = NodeProcess::start(options).unwrap_or_else(|error| panic!("{error}"));
    let both = TestNode { node, directory };
    let v4 = peer(&both);
    let v6 = SocketAddr::from((Ipv6Addr::LOCALHOST, v4.port()));
    let neighbours =
        [start_node("127.0.0.1:0", &v4.to_string()), start_node("[::1]:0", &v6.to_string())];
    wait_until("the neighbours are known", || {
        figure(&both, "table_nodes_ipv4") >= 1.0 && figure(&both, "table_nodes_ipv6") >= 1.0
    });
    let askers = [(Asker::new("127.0.0.1:0"), v4), (Asker::new("[::1]:0"), v6)];
    for (index, (asker, to)) in askers.iter().enumerate() {
        let nodes = |arguments: &str| {
            let reply = asker.ask(*to, "find_node", arguments);
            (len_of(&reply, "r.nodes"), len_of(&reply, "r.nodes6"))
        };
        let own = if index == 0 { (Some(26), None) } else { (None, Some(38)) };
        assert_eq!(nodes(TARGET), own, "what is not said is one's own family");
        assert_eq!(nodes(&format!("{TARGET}4:wantl2:n4e")), (Some(26), None));
        assert_eq!(nodes(&format!("{TARGET}4:wantl2:n6e")), (None, Some(38)));
        assert_eq!(nodes(&format!("{TARGET}4:wantl2:n42:n6e")), (Some(26), Some(38)));
    }
    for (asker, to) in &askers {
        let reply = asker.ask(*to, "get_peers", INFO_HASH);
        let token = bytes(&reply, "r.token").unwrap();
        // The token has any bytes: it is put together by hand.
        let mut query = format!("d1:ad2:id20:abcdefghij0123456789{INFO_HASH}4:porti7001e5:token");
        query.push_str(&format!("{}:", token.len()));
        let end = b"e1:q13:announce_peer1:t2:yy1:y1:qe";
        let query = [query.as_bytes(), &token, end].concat();
        asker.0.send_to(&query, to).unwrap();
        let mut buffer = [0; 4_096];
        loop {
            let (len, _) = asker.0.recv_from(&mut buffer).unwrap();
            if find(&buffer[..len], "t").is_some_and(|id| id == b"2:yy") {
                break;
            }
        }
    }
    for (asker, to) in &askers {
        let reply = asker.ask(*to, "get_peers", &format!("{INFO_HASH}4:wantl2:n42:n6e"));
        let values = find(&reply, "r.values").unwrap();
        let expected = if to.is_ipv4() { 2 + 2 + 6 } else { 2 + 3 + 18 };
        assert_eq!(values.len(), expected, "{}", values.escape_ascii());
        assert_eq!((len_of(&reply, "r.nodes"), len_of(&reply, "r.nodes6")), (Some(26), Some(38)));
    }
    // What came over one family is found over the other.
    let target = kadring(&neighbours[1], &["put", "from IPv6"]).unwrap();
    assert_eq!(kadring(&neighbours[0], &["get", target.trim()]).unwrap(), "from IPv6");
}
