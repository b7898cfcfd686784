//! Nodes of a private cluster as real processes on loopback.
//!
//! `KADRING_TEST_CLUSTER_KILLS` sets how often a node is killed under load; the default is for a
//! push.

use std::collections::BTreeMap;
use std::env;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, RwLock};
use std::thread;
use std::time::{Duration, Instant};

use kadring_tests::node_process::{Driver, NodeOptions, NodeProcess, StartingNode};
use kadring_tests::resp_client::{Reply, RespClient};
use tempfile::TempDir;

use crate::directory;

const EXIT_USAGE: i32 = 2;
/// Whatever a cluster is waited for.
const DEADLINE: Duration = Duration::from_secs(60);
const KILLS: usize = 5;
/// Operations of all clients between two kills, at most.
const LOAD_BETWEEN_KILLS: u64 = 1_000;

/// Nodes, each with its directory; none where one has been killed.
struct Cluster {
    nodes: Vec<Option<NodeProcess>>,
    options: Vec<NodeOptions>,
    directory: TempDir,
}

impl Cluster {
    fn new() -> Self {
        Self { nodes: Vec::new(), options: Vec::new(), directory: directory() }
    }

    /// Starts one more node, which joins the first.
    fn add(&mut self, driver: Driver, arguments: &[&str]) -> usize {
        let index = self.nodes.len();
        let data = self.directory.path().join(format!("node-{index}"));
        let mut options = NodeOptions::new(&data, driver);
        options.arguments = ["--peer", "127.0.0.1:0"].map(Into::into).to_vec();
        if let Some(Some(first)) = self.nodes.first() {
            options.arguments.extend(["--bootstrap".into(), peer(first).to_string().into()]);
        }
        options.arguments.extend(arguments.iter().map(Into::into));
        let node = NodeProcess::start(options).unwrap_or_else(|error| panic!("{error}"));
        let mut options = node.options_on_same_port();
        options.arguments[1] = peer(&node).to_string().into();
        self.options.push(options);
        self.nodes.push(Some(node));
        index
    }

    fn of(count: usize, arguments: &[&str]) -> Self {
        let mut cluster = Self::new();
        for index in 0..count {
            cluster.add(Driver::ALL[index % Driver::ALL.len()], arguments);
        }
        for index in 0..count {
            wait_until_serving(&mut cluster.client(index));
        }
        cluster
    }

    fn node(&self, index: usize) -> &NodeProcess {
        self.nodes[index].as_ref().expect("the node runs")
    }

    fn client(&self, index: usize) -> RespClient {
        RespClient::connect(self.node(index).address()).unwrap()
    }

    fn kill(&mut self, index: usize) {
        self.nodes[index].take().expect("the node runs").kill9().unwrap();
    }

    fn restart(&mut self, index: usize) {
        let node = NodeProcess::start(self.options[index].clone());
        self.nodes[index] = Some(node.unwrap_or_else(|error| panic!("{error}")));
    }

    fn terminate(mut self) {
        for node in std::mem::take(&mut self.nodes).into_iter().flatten() {
            let (status, rest) = node.terminate().unwrap_or_else(|error| panic!("{error}"));
            assert_eq!((status.code(), rest.as_str()), (Some(0), ""));
        }
    }
}

/// A test that fails shows what each node knows and has logged.
impl Drop for Cluster {
    fn drop(&mut self) {
        if !thread::panicking() {
            return;
        }
        for node in self.nodes.iter().flatten() {
            let asked = RespClient::connect(node.address()).and_then(|mut client| {
                client.set_reply_timeout(Duration::from_secs(5))?;
                client.call_line("KAD.NODES")
            });
            eprintln!("{}: {:?}\n{}", node.ready().node, asked.as_ref().map(rows), node.stderr());
        }
    }
}

fn peer(node: &NodeProcess) -> SocketAddr {
    node.ready().peer.expect("the node has a peer door")
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
        // A node of a cluster takes its time to say that there are no 15 copies.
        client.call_line("WAIT 15 20").unwrap();
    }
}

fn wait_until_serving(client: &mut RespClient) {
    wait_for(client, "GET nothing", |reply| *reply == Reply::Nil);
}

fn rows(reply: &Reply) -> Vec<Vec<String>> {
    let Reply::Array(rows) = reply else { panic!("{}", reply.brief()) };
    let words = |row: &Reply| match row {
        Reply::Array(words) => {
            let text = |word: &Reply| String::from_utf8(word.bytes().unwrap().to_vec()).unwrap();
            words.iter().map(text).collect()
        }
        other => panic!("{}", other.brief()),
    };
    rows.iter().map(words).collect()
}

/// Waits until a node knows so many members that are full.
fn wait_for_full(client: &mut RespClient, count: usize) {
    wait_for(client, "KAD.NODES", |reply| {
        let rows = rows(reply);
        let is_full = |row: &&Vec<String>| row[2] == "full" && row[3] != "removed";
        rows.iter().filter(is_full).count() == count
    });
}

#[test]
fn every_key_is_read_from_every_node() {
    let cluster = Cluster::of(3, &[]);
    let mut clients: Vec<RespClient> = (0..3).map(|index| cluster.client(index)).collect();
    for number in 0..60 {
        let set = format!("SET key{number} value{number}");
        assert_eq!(clients[number % 3].call_line(&set).unwrap(), Reply::Simple("OK".into()));
    }
    let large = vec![b'x'; 3 << 20];
    assert_eq!(clients[0].call(&[b"SET", b"large", &large]).unwrap(), Reply::Simple("OK".into()));
    for client in &mut clients {
        for number in 0..60 {
            let value = client.call_line(&format!("GET key{number}")).unwrap();
            assert_eq!(value.bytes(), Some(format!("value{number}").as_bytes()));
        }
        let value = client.call(&[b"GET", b"large"]).unwrap();
        assert!(value.bytes() == Some(&large[..]), "{}", value.brief());
        assert_eq!(rows(&client.call_line("KAD.LOCATE key1").unwrap()).len(), 3);
        assert_eq!(rows(&client.call_line("KAD.NODES").unwrap()).len(), 3);
    }
    check_commands(&mut clients);
    cluster.terminate();
}

/// Each command on the next node, so that none sees its own writes alone.
fn check_commands(clients: &mut [RespClient]) {
    let cases = [
        ("SET k 1 NX", "OK"),
        ("SET k 2 NX", "nil"),
        ("SET k 3 XX GET", "1"),
        ("GETSET k 4", "3"),
        ("EXPIRE k 100", "1"),
        ("TTL k", "100"),
        ("SET k 5 KEEPTTL", "OK"),
        ("PERSIST k", "1"),
        ("TTL k", "-1"),
        ("GETEX k PXAT 1", "5"),
        ("EXISTS k k", "0"),
        ("MSET a 1 b 22", "OK"),
        ("STRLEN b", "2"),
        ("GETRANGE b 1 -1", "2"),
        ("TYPE b", "string"),
        ("GETDEL a", "1"),
        ("DEL a b", "1"),
        ("SETNX a 1", "1"),
        ("WAIT 1 10000", "0"),
    ];
    for (index, (line, expected)) in cases.into_iter().enumerate() {
        let client = &mut clients[index % 3];
        let found = match client.call_line(line).unwrap() {
            Reply::Simple(text) => text,
            Reply::Integer(number) => number.to_string(),
            Reply::Nil => "nil".to_owned(),
            // What WAIT answers depends on what this connection has written.
            _ if line.starts_with("WAIT") => "0".to_owned(),
            other => String::from_utf8_lossy(other.bytes().unwrap_or(b"?")).into_owned(),
        };
        let is_wait = line.starts_with("WAIT") && found != "0";
        assert!(found == expected || is_wait, "{line}: {found}, not {expected}");
    }
    let refused = clients[0].call_line("INCR n").unwrap();
    assert!(refused.is_error("ERR INCR"), "{}", refused.brief());
    assert!(clients[0].call_line("FLUSHALL").unwrap().is_error("ERR FLUSHALL"));
}

/// Takes ports that are free just now: all nodes have to know all of them beforehand.
fn free_addresses(count: usize) -> Vec<SocketAddr> {
    let listeners: Vec<TcpListener> =
        (0..count).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    listeners.iter().map(|listener| listener.local_addr().unwrap()).collect()
}

#[test]
fn nodes_that_start_at_once_with_each_other_as_seeds_become_one_cluster() {
    let (directory, addresses) = (directory(), free_addresses(5));
    let starting = addresses.iter().enumerate().map(|(index, address)| {
        let data = directory.path().join(format!("node-{index}"));
        let mut options = NodeOptions::new(&data, Driver::ALL[index % 3]);
        options.arguments = ["--peer".into(), address.to_string().into()].to_vec();
        for seed in &addresses {
            options.arguments.extend(["--bootstrap".into(), seed.to_string().into()]);
        }
        StartingNode::start(options).unwrap()
    });
    let starting: Vec<StartingNode> = starting.collect();
    let ready = |node: StartingNode| match node.wait_ready(DEADLINE) {
        Ok(Ok(node)) => node,
        other => panic!("{other:?}"),
    };
    let nodes: Vec<NodeProcess> = starting.into_iter().map(ready).collect();
    let mut clients: Vec<RespClient> =
        nodes.iter().map(|node| RespClient::connect(node.address()).unwrap()).collect();
    for (index, client) in clients.iter_mut().enumerate() {
        let is_set = |reply: &Reply| *reply == Reply::Simple("OK".into());
        wait_for(client, &format!("SET from{index} {index}"), is_set);
    }
    for client in &mut clients {
        wait_for_full(client, 5);
        for index in 0..5_usize {
            let value = client.call_line(&format!("GET from{index}")).unwrap();
            assert_eq!(value.bytes(), Some(index.to_string().as_bytes()));
        }
    }
}

/// What one client knows of its keys: no value below the first of a pair may be read any more, and
/// none above the second has been written.
type Known = BTreeMap<String, (u64, u64)>;

/// Writes rising numbers under keys of its own and reads them, from all nodes, until it is told to
/// stop. Each read is checked. Tells of each operation.
fn load(
    client: u64,
    addresses: &RwLock<Vec<SocketAddr>>,
    stop: &AtomicBool,
    progress: &Sender<()>,
) -> Known {
    let mut rng = fastrand::Rng::with_seed(client);
    let (mut known, mut number) = (Known::new(), 0);
    while !stop.load(Ordering::Relaxed) {
        let address = rng.choice(addresses.read().unwrap().iter().copied()).unwrap();
        let Ok(mut connection) = RespClient::connect(address) else { continue };
        for _ in 0..40 {
            let key = format!("{client}-{}", rng.u64(..30));
            let state = known.entry(key.clone()).or_default();
            let result = if rng.bool() {
                number += 1;
                state.1 = number;
                let reply = connection.call_line(&format!("SET {key} {number}"));
                if matches!(&reply, Ok(Reply::Simple(ok)) if ok == "OK") {
                    state.0 = number;
                }
                reply
            } else {
                let reply = connection.call_line(&format!("GET {key}"));
                if let Ok(found) = reply.as_ref().map(number_of)
                    && let Some(found) = found
                {
                    assert!((state.0..=state.1).contains(&found), "{key}: {state:?}, {found}");
                    // What was read once is read from then on.
                    state.0 = found;
                }
                reply
            };
            let _ = progress.send(());
            if result.is_err() || stop.load(Ordering::Relaxed) {
                break;
            }
        }
    }
    known
}

/// The number under a key, 0 for none; nothing for an error.
fn number_of(reply: &Reply) -> Option<u64> {
    match reply {
        Reply::Nil => Some(0),
        Reply::Bulk(bytes) => Some(std::str::from_utf8(bytes).unwrap().parse().unwrap()),
        _ => None,
    }
}

/// Lets so many operations pass.
fn let_pass(progress: &Receiver<()>, count: u64) {
    for _ in 0..count {
        progress.recv_timeout(DEADLINE).expect("clients get on while a node is down");
    }
}

#[test]
fn acknowledged_writes_outlive_kills_under_load() {
    let kills = env::var("KADRING_TEST_CLUSTER_KILLS").ok().and_then(|text| text.parse().ok());
    let mut cluster = Cluster::of(5, &["--replicas", "3"]);
    wait_for_full(&mut cluster.client(0), 5);
    let addresses: Vec<SocketAddr> = (0..5).map(|index| cluster.node(index).address()).collect();
    let addresses = Arc::new(RwLock::new(addresses));
    let stop = Arc::new(AtomicBool::new(false));
    let (sender, progress) = mpsc::channel();
    let clients = (0..6).map(|client| {
        let (addresses, stop, sender) = (addresses.clone(), stop.clone(), sender.clone());
        thread::spawn(move || load(client, &addresses, &stop, &sender))
    });
    let clients: Vec<_> = clients.collect();
    let mut rng = fastrand::Rng::with_seed(5);
    for _ in 0..kills.unwrap_or(KILLS) {
        let victim = rng.usize(..5);
        let_pass(&progress, rng.u64(1..LOAD_BETWEEN_KILLS));
        cluster.kill(victim);
        let_pass(&progress, rng.u64(1..LOAD_BETWEEN_KILLS));
        cluster.restart(victim);
    }
    let_pass(&progress, LOAD_BETWEEN_KILLS);
    stop.store(true, Ordering::Relaxed);
    let known: Known = clients.into_iter().flat_map(|client| client.join().unwrap()).collect();
    assert!(known.values().any(|(acknowledged, _)| *acknowledged > 0));
    for index in 0..5 {
        let mut client = cluster.client(index);
        for (key, (least, most)) in &known {
            let reply =
                wait_for(&mut client, &format!("GET {key}"), |reply| number_of(reply).is_some());
            let found = number_of(&reply).unwrap();
            assert!((*least..=*most).contains(&found), "{key}: {least} to {most}, {found}");
        }
    }
    cluster.terminate();
}

/// Waits until these nodes hold three copies of each of 100 keys, and the record of their own.
fn wait_for_copies(cluster: &Cluster, nodes: Range<usize>) {
    let mut clients: Vec<RespClient> = nodes.map(|index| cluster.client(index)).collect();
    let started = Instant::now();
    loop {
        let held = clients.iter_mut().map(|client| match client.call_line("DBSIZE").unwrap() {
            Reply::Integer(count) => count - 1,
            other => panic!("{}", other.brief()),
        });
        let held: Vec<i64> = held.collect();
        if held.iter().sum::<i64>() == 300 {
            return;
        }
        assert!(started.elapsed() < DEADLINE, "copies held: {held:?}");
        clients[0].call_line("WAIT 15 20").unwrap();
    }
}

#[test]
fn keys_of_a_node_that_is_gone_get_new_copies() {
    let mut cluster = Cluster::of(5, &["--replicas", "3", "--down-after-ms", "3000"]);
    wait_for_full(&mut cluster.client(0), 5);
    let mut client = cluster.client(0);
    for number in 0..100 {
        let set = client.call_line(&format!("SET key{number} {number}")).unwrap();
        assert_eq!(set, Reply::Simple("OK".into()));
    }
    wait_for_copies(&cluster, 0..5);
    // Two of three copies are lost in the end, the second one when there are three again.
    for (victim, left) in [(4, 4), (3, 3)] {
        cluster.kill(victim);
        for index in 0..left {
            wait_for_full(&mut cluster.client(index), left);
        }
        wait_for_copies(&cluster, 0..left);
    }
    for index in 0..3 {
        let mut client = cluster.client(index);
        for number in 0..100 {
            // Until others hold what the lost ones held, there may be no majority, but never nil.
            let line = format!("GET key{number}");
            let value = wait_for(&mut client, &line, |reply| !reply.is_error("NOREPLICAS"));
            let nodes =
                || format!("{:?}", rows(&cluster.client(index).call_line("KAD.NODES").unwrap()));
            let is_right = value.bytes() == Some(number.to_string().as_bytes());
            assert!(is_right, "key{number}: {}, {}", value.brief(), nodes());
        }
    }
    cluster.terminate();
}

#[test]
fn without_the_secret_nobody_joins() {
    let directory = directory();
    let secret = |name: &str, text: &str| {
        let path = directory.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let (right, wrong) =
        (secret("right", "sixteen bytes or more"), secret("wrong", "another secret"));
    let mut cluster = Cluster::new();
    cluster.add(Driver::Pread, &["--cluster-secret-file", &right]);
    let member = cluster.add(Driver::Uring, &["--cluster-secret-file", &right]);
    wait_until_serving(&mut cluster.client(member));
    let wrong_text = std::fs::read_to_string(&wrong).unwrap();
    std::fs::write(&wrong, format!("{wrong_text}, long enough")).unwrap();
    for arguments in [&["--cluster-secret-file", &wrong][..], &[][..]] {
        let stranger = cluster.add(Driver::Pread, arguments);
        let node = cluster.node(stranger);
        assert!(node.wait_for_log(&["refuse"], DEADLINE), "{}", node.stderr());
        let mut client = cluster.client(stranger);
        assert!(client.call_line("GET k").unwrap().is_error("LOADING"));
        assert!(client.call_line("SET k v").unwrap().is_error("LOADING"));
        assert_eq!(rows(&client.call_line("KAD.NODES").unwrap()).len(), 1);
    }
    for index in [0, member] {
        assert_eq!(rows(&cluster.client(index).call_line("KAD.NODES").unwrap()).len(), 2);
    }
    cluster.terminate();
}

fn refusal(directory: &Path, arguments: &[&str]) -> String {
    let mut options = NodeOptions::new(&directory.join("data"), Driver::Pread);
    options.arguments = arguments.iter().map(Into::into).collect();
    let node: io::Result<StartingNode> = StartingNode::start(options);
    let (status, stderr) = node.unwrap().wait_failure().unwrap();
    assert_eq!(status.code(), Some(EXIT_USAGE), "{stderr}");
    stderr
}

#[test]
fn what_would_be_unsafe_or_cannot_work_is_refused_at_the_start() {
    let directory = directory();
    let cases: [(&[&str], &str); 4] = [
        (&["--peer", "0.0.0.0:0"], "has no secret"),
        (&["--peer", "127.0.0.1:0", "--threads", "2"], "one thread"),
        (&["--peer", "127.0.0.1:0", "--cluster-secret-file", "/nowhere"], "/nowhere"),
        (&["--peer", "127.0.0.1:0", "--min-replicas-to-write", "3"], "below replicas"),
    ];
    for (arguments, words) in cases {
        let stderr = refusal(directory.path(), arguments);
        assert!(stderr.contains(words), "{arguments:?}: {stderr}");
    }
}
