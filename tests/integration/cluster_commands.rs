//! Commands of clients that concern all keys of a cluster, or the cluster itself.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use kadring_tests::node_process::{Driver, NodeOptions, NodeProcess};
use kadring_tests::resp_client::{Reply, RespClient};
use tempfile::TempDir;

use crate::directory;

/// Whatever is waited for.
const DEADLINE: Duration = Duration::from_secs(60);

struct Cluster {
    nodes: Vec<NodeProcess>,
    directory: TempDir,
}

fn peer(node: &NodeProcess) -> SocketAddr {
    node.ready().peer.expect("the node has a peer door")
}

impl Cluster {
    fn of(count: usize, arguments: &[&str]) -> Self {
        let mut cluster = Self { nodes: Vec::new(), directory: directory() };
        for index in 0..count {
            let data = cluster.directory.path().join(format!("node-{index}"));
            let mut options = NodeOptions::new(&data, Driver::ALL[index % Driver::ALL.len()]);
            options.arguments = ["--peer", "127.0.0.1:0"].map(Into::into).to_vec();
            if let Some(first) = cluster.nodes.first() {
                options.arguments.extend(["--bootstrap".into(), peer(first).to_string().into()]);
            }
            options.arguments.extend(arguments.iter().map(Into::into));
            let node = NodeProcess::start(options).unwrap_or_else(|error| panic!("{error}"));
            cluster.nodes.push(node);
        }
        for index in 0..count {
            let mut client = cluster.client(index);
            wait_for(&mut client, "KAD.NODES", |reply| {
                let Reply::Array(rows) = reply else { return false };
                let full = rows.iter().filter(|row| words(row)[2] == "full");
                full.count() == count
            });
            wait_for(&mut client, "INFO cluster", |reply| text(reply).contains("ranges_pending:0"));
        }
        cluster
    }

    fn client(&self, index: usize) -> RespClient {
        RespClient::connect(self.nodes[index].address()).unwrap()
    }

    fn terminate(self) {
        for node in self.nodes {
            let (status, rest) = node.terminate().unwrap_or_else(|error| panic!("{error}"));
            assert_eq!((status.code(), rest.as_str()), (Some(0), ""));
        }
    }
}

fn text(reply: &Reply) -> String {
    String::from_utf8(reply.bytes().unwrap_or_else(|| panic!("{}", reply.brief())).to_vec())
        .unwrap()
}

fn words(reply: &Reply) -> Vec<String> {
    let Reply::Array(words) = reply else { panic!("{}", reply.brief()) };
    words.iter().map(text).collect()
}

/// Asks again until the answer will do.
fn wait_for(client: &mut RespClient, line: &str, will_do: impl Fn(&Reply) -> bool) -> Reply {
    let started = Instant::now();
    loop {
        let reply = client.call_line(line).unwrap_or_else(|error| panic!("{line}: {error}"));
        if will_do(&reply) {
            return reply;
        }
        assert!(started.elapsed() < DEADLINE, "{line}: {}", reply.brief());
        // There are no 15 copies: it takes its time to say so.
        client.call_line("WAIT 15 20").unwrap();
    }
}

/// Writes keys from all nodes in turn.
fn write(clients: &mut [RespClient], count: usize) -> BTreeSet<String> {
    let node_count = clients.len();
    let names: BTreeSet<String> = (0..count).map(|number| format!("key{number}")).collect();
    for (index, name) in names.iter().enumerate() {
        let line = format!("SET {name} v");
        let reply = wait_for(&mut clients[index % node_count], &line, |reply| !is_error(reply));
        assert_eq!(reply, ok(), "{line}");
    }
    names
}

fn ok() -> Reply {
    Reply::Simple("OK".into())
}

fn is_error(reply: &Reply) -> bool {
    matches!(reply, Reply::Error(_))
}

/// All that SCAN finds, in its order.
fn scan(client: &mut RespClient, options: &str) -> Vec<String> {
    let (mut found, mut cursor) = (Vec::new(), "0".to_owned());
    loop {
        let reply = client.call_line(&format!("SCAN {cursor} {options}")).unwrap();
        let Reply::Array(parts) = &reply else { panic!("{}", reply.brief()) };
        found.extend(words(&parts[1]));
        cursor = text(&parts[0]);
        if cursor == "0" {
            return found;
        }
    }
}

#[test]
fn scan_tells_each_key_of_the_cluster_once_from_every_node() {
    let cluster = Cluster::of(5, &[]);
    let mut clients: Vec<RespClient> = (0..5).map(|index| cluster.client(index)).collect();
    let mut names = write(&mut clients, 200);
    for number in 0..50 {
        let name = format!("key{number}");
        assert_eq!(
            clients[number % 5].call_line(&format!("DEL {name}")).unwrap(),
            Reply::Integer(1)
        );
        names.remove(&name);
    }
    for (index, client) in clients.iter_mut().enumerate() {
        let found = scan(client, if index % 2 == 0 { "COUNT 7" } else { "COUNT 1000" });
        let distinct: BTreeSet<String> = found.iter().cloned().collect();
        assert_eq!((distinct, found.len()), (names.clone(), names.len()), "node {index}");
    }
    let matching = names.iter().filter(|name| name.starts_with("key1")).count();
    assert_eq!(scan(&mut clients[1], "MATCH key1* COUNT 100 TYPE string").len(), matching);
    assert_eq!(scan(&mut clients[2], "COUNT 100 TYPE list"), Vec::<String>::new());
    cluster.terminate();
}

#[test]
fn dbsize_keys_and_randomkey_are_of_this_nodes_living_keys() {
    let cluster = Cluster::of(3, &[]);
    let mut clients: Vec<RespClient> = (0..3).map(|index| cluster.client(index)).collect();
    let mut names = write(&mut clients, 40);
    assert_eq!(clients[0].call_line("DEL key1 key2 key3").unwrap(), Reply::Integer(3));
    for name in ["key1", "key2", "key3"] {
        names.remove(name);
    }
    for client in &mut clients {
        // With as many nodes as replicas each has all, once all have heard of the deletes.
        wait_for(client, "KEYS *", |reply| {
            words(reply).into_iter().collect::<BTreeSet<_>>() == names
        });
        assert_eq!(client.call_line("DBSIZE").unwrap(), Reply::Integer(37));
        let key = text(&client.call_line("RANDOMKEY").unwrap());
        assert!(names.contains(&key));
        for line in ["FLUSHALL", "FLUSHDB", "INCR n"] {
            assert!(is_error(&client.call_line(line).unwrap()), "{line}");
        }
        assert_eq!(client.call_line("DBSIZE").unwrap(), Reply::Integer(37));
    }
    cluster.terminate();
}

#[test]
fn info_tells_of_the_cluster() {
    let cluster = Cluster::of(3, &[]);
    let mut clients: Vec<RespClient> = (0..3).map(|index| cluster.client(index)).collect();
    write(&mut clients, 10);
    let is_whole = |reply: &Reply| {
        let info = text(reply);
        let lines: Vec<&str> = info.lines().collect();
        ["# Cluster", "cluster_enabled:0", "phase:full", "members:3", "members_up:3"]
            .iter()
            .chain(&["members_down:0", "ranges_pending:0", "writes_spreading:0"])
            .all(|wanted| lines.contains(wanted))
    };
    wait_for(&mut clients[1], "INFO cluster", is_whole);
    let info = text(&clients[1].call_line("INFO").unwrap());
    for name in ["repair_bytes_total:", "link_rtt_seconds_", "lookups_total:", "exchanges_total:"] {
        assert!(info.contains(&format!("\r\n{name}")), "{name}: {info}");
    }
    cluster.terminate();
}

/// Five nodes: two of them hold no copy of a key, and answer from what they have read.
#[test]
fn reads_by_one_are_answered_from_copies_in_memory_until_a_write() {
    let cluster = Cluster::of(5, &["--read-consistency", "one"]);
    let mut clients: Vec<RespClient> = (0..5).map(|index| cluster.client(index)).collect();
    write(&mut clients, 20);
    assert_eq!(clients[0].call_line("WAIT 2 10000").unwrap(), Reply::Integer(2));
    for client in &mut clients {
        for _ in 0..2 {
            for number in 0..20 {
                let line = format!("GET key{number}");
                let is_there = |reply: &Reply| *reply == Reply::Bulk("v".into());
                wait_for(client, &line, is_there);
            }
        }
        wait_for(client, "INFO cluster", |reply| {
            let info = text(reply);
            let used = info.lines().find_map(|line| line.strip_prefix("path_copies_used_total:"));
            used.is_some_and(|used| used != "0")
        });
        // Its own writes are seen at once.
        for number in 0..20 {
            assert_eq!(client.call_line(&format!("SET key{number} w")).unwrap(), ok());
            let found = client.call_line(&format!("GET key{number}")).unwrap();
            assert_eq!(text(&found), "w");
            assert_eq!(client.call_line(&format!("SET key{number} v")).unwrap(), ok());
        }
        assert_eq!(client.call_line("WAIT 2 10000").unwrap(), Reply::Integer(2));
    }
    cluster.terminate();
}

/// Each command that the node knows, in an order in which each has something to work on, with the
/// beginning of its error if a cluster refuses it. `@` is the node's own key.
const EACH: [(&str, &str); 67] = [
    ("HELLO 2", ""),
    ("PING", ""),
    ("ECHO hello", ""),
    ("SELECT 0", ""),
    ("CLIENT ID", ""),
    ("COMMAND COUNT", ""),
    ("CONFIG GET maxmemory", ""),
    ("INFO server", ""),
    ("TIME", ""),
    ("LASTSAVE", ""),
    ("SET @ value", ""),
    ("GET @", ""),
    ("STRLEN @", ""),
    ("TYPE @", ""),
    ("GETRANGE @ 0 1", ""),
    ("EXISTS @", ""),
    ("MGET @ other", ""),
    ("GETSET @ other", ""),
    ("SETNX @ other", ""),
    ("SETEX @ 100 value", ""),
    ("PSETEX @ 100000 value", ""),
    ("TTL @", ""),
    ("PTTL @", ""),
    ("EXPIRETIME @", ""),
    ("PEXPIRETIME @", ""),
    ("PERSIST @", ""),
    ("EXPIRE @ 100", ""),
    ("PEXPIRE @ 100000", ""),
    ("EXPIREAT @ 99999999999", ""),
    ("PEXPIREAT @ 99999999999999", ""),
    ("GETEX @ PERSIST", ""),
    ("SCAN 0", ""),
    ("KEYS *", ""),
    ("RANDOMKEY", ""),
    ("DBSIZE", ""),
    ("GETDEL @", ""),
    ("MSET @ 1 @2 2", ""),
    ("DEL @", ""),
    ("UNLINK @2", ""),
    ("WAIT 1 10000", ""),
    ("KAD.LOCATE @", ""),
    ("KAD.NODES", ""),
    ("KAD.ROUTES", ""),
    ("KAD.LOOKUP 0123456789abcdef0123456789abcdef01234567", ""),
    ("KAD.COMPACT", ""),
    ("KAD.SNAPSHOT LIST", ""),
    ("SAVE", ""),
    ("BGSAVE", ""),
    ("RESET", ""),
    ("AUTH nothing", "ERR "),
    ("INCR @", "ERR INCR"),
    ("DECR @", "ERR INCR"),
    ("INCRBY @ 1", "ERR INCR"),
    ("DECRBY @ 1", "ERR INCR"),
    ("APPEND @ x", "ERR INCR"),
    ("SETRANGE @ 0 x", "ERR INCR"),
    ("FLUSHALL", "ERR FLUSHALL"),
    ("FLUSHDB", "ERR FLUSHALL"),
    ("KAD.MAINLINE.PING 127.0.0.1:1", "ERR "),
    ("KAD.MAINLINE.SAMPLE 0123456789abcdef0123456789abcdef01234567", "ERR "),
    ("KAD.MAINLINE.GETPEERS 0123456789abcdef0123456789abcdef01234567", "ERR "),
    ("KAD.MAINLINE.ANNOUNCE 0123456789abcdef0123456789abcdef01234567 1", "ERR "),
    ("KAD.BEP44.GET 0123456789abcdef0123456789abcdef01234567", "ERR "),
    ("KAD.BEP44.PUT 5:hello", "ERR "),
    ("KAD.BEP44.PUTMUTABLE key 1 5:hello x", "ERR "),
    ("KAD.FORGET 0123456789abcdef0123456789abcdef01234567", "ERR "),
    ("QUIT", ""),
];
/// What ends a node, or its membership; other tests do that.
const ENDING: [&str; 2] = ["shutdown", "kad.leave"];

/// A command that is added must be named here: answered on every node, or refused.
#[test]
fn each_command_is_answered_on_every_node_or_refused_with_its_reason() {
    let cluster = Cluster::of(3, &[]);
    let named: BTreeSet<String> =
        EACH.iter().map(|(line, _)| line.split(' ').next().unwrap().to_lowercase()).collect();
    for index in 0..3 {
        let mut client = cluster.client(index);
        let Reply::Array(known) = client.call_line("COMMAND").unwrap() else { panic!("a list") };
        let name = |row: &Reply| match row {
            Reply::Array(parts) => text(&parts[0]),
            other => panic!("{}", other.brief()),
        };
        let missing: Vec<String> = known
            .iter()
            .map(name)
            .filter(|name| !named.contains(name) && !ENDING.contains(&name.as_str()))
            .collect();
        assert_eq!(missing, Vec::<String>::new(), "not tried");
        for (line, refusal) in EACH {
            let line = line.replace('@', &format!("key{index}-"));
            let reply = client.call_line(&line).unwrap();
            let is_right = match refusal {
                "" => !is_error(&reply),
                refusal => reply.is_error(refusal),
            };
            assert!(is_right, "{line} on node {index}: {}", reply.brief());
        }
    }
    cluster.terminate();
}
