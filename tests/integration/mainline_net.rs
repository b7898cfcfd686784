//! Networks of Mainline nodes for tests: processes of ours on addresses of different networks, all
//! of them on loopback. Nothing here knows a node outside of it.

use std::net::SocketAddr;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use kadring_tests::node_process::{Driver, NodeOptions, NodeProcess, run_to_end};
use kadring_tests::resp_client::{Reply, RespClient};

use crate::{TestNode, directory};

/// How long a network may take to get to know itself.
const JOIN_DEADLINE: Duration = Duration::from_secs(60);

/// Nodes that know each other.
pub(crate) struct Network {
    pub(crate) nodes: Vec<TestNode>,
}

impl Network {
    /// Starts that many, the first of them alone.
    pub(crate) fn start(count: u8) -> Self {
        let mut nodes: Vec<TestNode> = Vec::new();
        for number in 1..=count {
            let seeds =
                nodes.first().map_or_else(|| "none".to_owned(), |node| peer(node).to_string());
            nodes.push(start_node(&format!("127.{number}.0.1:0"), &seeds));
        }
        let network = Self { nodes };
        network.wait_joined();
        network
    }

    /// Addresses of the peer doors.
    pub(crate) fn peers(&self) -> Vec<String> {
        self.nodes.iter().map(|node| peer(node).to_string()).collect()
    }

    /// Waits until every node has all others in its table.
    pub(crate) fn wait_joined(&self) {
        let others = self.nodes.len() - 1;
        for node in &self.nodes {
            wait_until("a node knows its network", || {
                figure(node, "table_nodes_ipv4") >= others as f64
            });
        }
    }

    /// SIGKILL for all at once, then all of them start again where they were.
    pub(crate) fn kill_and_restart(self) -> Self {
        let killed: Vec<_> = self
            .nodes
            .into_iter()
            .map(|TestNode { node, directory }| (node.kill9().unwrap(), directory))
            .collect();
        let restart = |(options, directory): (NodeOptions, _)| {
            let node = NodeProcess::start(options).unwrap_or_else(|error| panic!("{error}"));
            TestNode { node, directory }
        };
        let network = Self { nodes: killed.into_iter().map(restart).collect() };
        network.wait_joined();
        network
    }
}

/// Starts a node of BitTorrent's DHT.
pub(crate) fn start_node(peer: &str, seeds: &str) -> TestNode {
    start_node_with(peer, seeds, &[])
}

/// The same with further variables.
pub(crate) fn start_node_with(peer: &str, seeds: &str, variables: &[(&str, &str)]) -> TestNode {
    let directory = directory();
    let options = NodeOptions::new(&directory.path().join("data"), Driver::Uring)
        .with_variable("KADRING_MODE", "mainline")
        .with_variable("KADRING_PEER", peer)
        .with_variable("KADRING_BOOTSTRAP", seeds);
    let with =
        |options: NodeOptions, (name, value): &(&str, &str)| options.with_variable(name, value);
    let options = variables.iter().fold(options, with);
    let node = NodeProcess::start(options).unwrap_or_else(|error| panic!("{error}"));
    TestNode { node, directory }
}

/// The address of a node's peer door.
pub(crate) fn peer(node: &TestNode) -> SocketAddr {
    node.node.ready().peer.expect("a Mainline node has a peer door")
}

/// A number of INFO mainline.
pub(crate) fn figure(node: &TestNode, name: &str) -> f64 {
    let reply = node.client().call(&[b"INFO", b"mainline"]).unwrap();
    let text = String::from_utf8_lossy(reply.bytes().unwrap()).into_owned();
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.unwrap_or_else(|| panic!("no {name} in {text}")).parse().unwrap()
}

/// Asks again and again until it is so.
#[track_caller]
pub(crate) fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let started = Instant::now();
    // Nobody sends: it paces the questions.
    let (_sender, nobody) = mpsc::channel::<()>();
    while !is_so() {
        assert!(started.elapsed() < JOIN_DEADLINE, "in vain: {what}");
        let _ = nobody.recv_timeout(Duration::from_millis(20));
    }
}

/// Runs `kadring mainline` against a node: its stdout.
#[track_caller]
pub(crate) fn kadring(node: &TestNode, words: &[&str]) -> Result<String, String> {
    let client = node.node.address().to_string();
    let words: Vec<&str> =
        ["mainline"].iter().chain(words).copied().chain(["--client", &client]).collect();
    let output = run_to_end(&words, &[]).unwrap();
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(stdout);
    }
    Err(format!("{} {stdout} {}", output.status, String::from_utf8_lossy(&output.stderr)))
}

/// Sends one command: its reply.
pub(crate) fn ask(client: &mut RespClient, words: &[&str]) -> Reply {
    let words: Vec<&[u8]> = words.iter().map(|word| word.as_bytes()).collect();
    client.call(&words).unwrap()
}
