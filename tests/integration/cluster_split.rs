//! A cluster that is cut in two: five nodes in network namespaces of their own, on a bridge. Two
//! of them are moved to another bridge, so that nothing at all gets through, and moved back.
//!
//! Needs root, ip(8), unshare(1), nsenter(1); says SKIPPED without. A namespace lives as long as a
//! `cat` that runs in it, and that ends with this process: nothing is left behind.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::AsFd as _;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use kadring_tests::node_process::{Driver, NodeOptions, NodeProcess, StartingNode, find_program};
use kadring_tests::resp_client::{Reply, RespClient};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::cluster_rig::{
    Connect, Load, check_known, is_decided, is_ok, ready, rows, show, wait_for, wait_for_full,
};
use crate::{directory, skipped};

const NODES: usize = 5;
/// The smaller side.
const SMALLER: [usize; 2] = [3, 4];
const KEYS: usize = 60;
/// A command without a majority is answered by then, and a load that is cut off gets on.
const REPLY_TIMEOUT: Duration = Duration::from_secs(60);

/// A network namespace, kept by a process that waits for nothing.
struct Namespace {
    keeper: Child,
}

impl Namespace {
    fn new() -> Result<Self, String> {
        let mut command = Command::new("unshare");
        command.args(["--net", "cat"]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let keeper = command.stderr(Stdio::null()).spawn().map_err(|error| error.to_string())?;
        let mut namespace = Self { keeper };
        // Once it answers it is in there.
        let (input, output) = (&mut namespace.keeper.stdin, &mut namespace.keeper.stdout);
        let (input, output) = (input.as_mut().unwrap(), output.as_mut().unwrap());
        let asked = input.write_all(b"?").and_then(|()| output.read_exact(&mut [0]));
        asked.map_err(|error| format!("no network namespace: {error}"))?;
        namespace.ip("link set lo up")?;
        Ok(namespace)
    }

    fn path(&self) -> String {
        format!("/proc/{}/ns/net", self.keeper.id())
    }

    /// Runs ip(8) in it.
    fn ip(&self, words: &str) -> Result<(), String> {
        let mut command = Command::new("nsenter");
        command.args([&format!("--net={}", self.path()), "--", "ip"]).args(words.split(' '));
        let output = command.output().map_err(|error| error.to_string())?;
        let why = || format!("ip {words}: {}", String::from_utf8_lossy(&output.stderr));
        output.status.success().then_some(()).ok_or_else(why)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = self.keeper.kill();
        let _ = self.keeper.wait();
    }
}

/// Connects from within a namespace; the socket stays there.
fn connect_within(namespace: &str, address: SocketAddr) -> io::Result<RespClient> {
    let namespace = File::open(namespace)?;
    let within: JoinHandle<io::Result<RespClient>> = thread::spawn(move || {
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
        let client = RespClient::connect(address)?;
        client.set_reply_timeout(REPLY_TIMEOUT)?;
        Ok(client)
    });
    within.join().unwrap()
}

/// Namespaces with a device each, all ends of which are in one more: the hub.
struct Wires {
    hub: Namespace,
    nodes: Vec<Namespace>,
}

fn address(index: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 99, 0, u8::try_from(index + 1).unwrap())
}

impl Wires {
    fn new() -> Result<Self, String> {
        for program in ["ip", "unshare", "nsenter"] {
            find_program(program).ok_or_else(|| format!("no {program}"))?;
        }
        let hub = Namespace::new()?;
        for bridge in ["whole", "apart"] {
            hub.ip(&format!("link add {bridge} type bridge"))?;
            hub.ip(&format!("link set {bridge} up"))?;
        }
        let mut nodes = Vec::new();
        for index in 0..NODES {
            let node = Namespace::new()?;
            let pid = node.keeper.id();
            hub.ip(&format!("link add to{index} type veth peer name wire netns {pid}"))?;
            hub.ip(&format!("link set to{index} master whole up"))?;
            node.ip(&format!("addr add {}/24 dev wire", address(index)))?;
            node.ip("link set wire up")?;
            nodes.push(node);
        }
        Ok(Self { hub, nodes })
    }

    /// Puts nodes on a bridge.
    fn plug(&self, nodes: &[usize], bridge: &str) {
        for index in nodes {
            self.hub.ip(&format!("link set to{index} master {bridge}")).unwrap();
        }
    }
}

/// The larger side.
fn larger() -> Vec<usize> {
    (0..NODES).filter(|index| !SMALLER.contains(index)).collect()
}

struct Cluster {
    nodes: Vec<NodeProcess>,
    wires: Wires,
    _directory: tempfile::TempDir,
}

impl Cluster {
    fn start(wires: Wires, further: &[&str]) -> Self {
        let directory = directory();
        let secret = directory.path().join("secret");
        std::fs::write(&secret, "known to all five").unwrap();
        let starting = wires.nodes.iter().enumerate().map(|(index, namespace)| {
            let data = directory.path().join(format!("node-{index}"));
            let mut options = NodeOptions::new(&data, Driver::ALL[index % 3]);
            let enter = ["nsenter".to_owned(), format!("--net={}", namespace.path()), "--".into()];
            options.wrapper = enter.map(Into::into).to_vec();
            let peer = format!("{}:7400", address(index));
            let seed = format!("{}:7400", address((index + 1) % NODES));
            let secret = secret.to_str().unwrap();
            let arguments =
                ["--peer", &peer, "--bootstrap", &seed, "--cluster-secret-file", secret];
            options.arguments = arguments.iter().chain(further).map(Into::into).collect();
            StartingNode::start(options).unwrap()
        });
        let starting: Vec<StartingNode> = starting.collect();
        let nodes: Vec<NodeProcess> = starting.into_iter().map(ready).collect();
        let cluster = Self { nodes, wires, _directory: directory };
        (0..NODES).for_each(|index| wait_for_full(&mut cluster.client(index), NODES));
        cluster
    }

    fn connect(&self) -> Connect {
        let doors = self.wires.nodes.iter().zip(&self.nodes);
        let doors: Vec<_> =
            doors.map(|(namespace, node)| (namespace.path(), node.address())).collect();
        Arc::new(move |index| connect_within(&doors[index].0, doors[index].1))
    }

    fn client(&self, index: usize) -> RespClient {
        (self.connect())(index).unwrap()
    }

    /// Sends a command for each key at once, and returns the replies.
    fn ask(&self, index: usize, keys: &[usize], line: impl Fn(usize) -> String) -> Vec<Reply> {
        let mut client = self.client(index);
        for key in keys {
            let line = line(*key);
            let words: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
            client.send(&words).unwrap();
        }
        keys.iter().map(|_| client.read_reply().unwrap()).collect()
    }

    /// Reads keys on a node, each until a majority has answered.
    fn check_decided(&self, index: usize, keys: &[usize], value: &str) {
        let mut client = self.client(index);
        for key in keys {
            let reply = wait_for(&mut client, &format!("GET key{key}"), is_decided);
            check_values(&[reply], &[*key], value);
        }
    }

    /// Waits until a node sees exactly these as up, itself included.
    fn wait_until_sees(&self, index: usize, up: &[usize]) {
        let mut expected: Vec<&str> =
            up.iter().map(|index| &*self.nodes[*index].ready().node).collect();
        expected.sort_unstable();
        wait_for(&mut self.client(index), "KAD.NODES", |reply| {
            let rows = rows(reply);
            let is_up = |row: &&Vec<String>| row.iter().any(|word| word == "up" || word == "self");
            let mut found: Vec<&str> = rows.iter().filter(is_up).map(|row| &*row[0]).collect();
            found.sort_unstable();
            found == expected
        });
    }

    /// Keys of which a majority of the copies is on the larger side, and the others.
    fn sides(&self) -> (Vec<usize>, Vec<usize>) {
        let smaller = SMALLER.map(|index| self.nodes[index].ready().node.clone());
        let located = |key: &usize| {
            let reply = self.client(0).call_line(&format!("KAD.LOCATE key{key}")).unwrap();
            let set = rows(&reply);
            assert_eq!(set.len(), 3);
            set.iter().filter(|row| smaller.contains(&row[0])).count() < 2
        };
        (0..KEYS).partition(located)
    }
}

/// A test that fails shows what each node has logged.
impl Drop for Cluster {
    fn drop(&mut self) {
        if thread::panicking() {
            self.nodes.iter().for_each(show);
        }
    }
}

fn check_written(replies: &[Reply]) {
    for reply in replies {
        assert!(is_ok(reply), "{}", reply.brief());
    }
}

fn check_refused(replies: &[Reply]) {
    for reply in replies {
        assert!(reply.is_error("NOREPLICAS"), "{}", reply.brief());
    }
}

fn check_values(replies: &[Reply], keys: &[usize], value: &str) {
    for (reply, key) in replies.iter().zip(keys) {
        let expected = format!("{value}{key}");
        assert_eq!(reply.bytes(), Some(expected.as_bytes()), "key{key}: {}", reply.brief());
    }
}

/// What the larger and the smaller side do with the keys whose majority one of them has.
fn check_sides(cluster: &Cluster, has_majority: &[usize], has_none: &[usize], keys: &[usize]) {
    let (one, other) = (has_majority[0], has_majority[has_majority.len() - 1]);
    let without = has_none[0];
    check_refused(&cluster.ask(without, keys, |key| format!("GET key{key}")));
    check_values(&cluster.ask(one, keys, |key| format!("GET key{key}")), keys, "before");
    // First those who cannot: what they leave behind is older than what is acknowledged.
    check_refused(&cluster.ask(without, keys, |key| format!("SET key{key} pretended{key}")));
    check_written(&cluster.ask(one, keys, |key| format!("SET key{key} after{key}")));
    check_values(&cluster.ask(other, keys, |key| format!("GET key{key}")), keys, "after");
    check_refused(&cluster.ask(without, keys, |key| format!("GET key{key}")));
}

#[test]
fn each_side_of_a_cut_keeps_to_the_promise_and_both_agree_afterwards() {
    let wires = match Wires::new() {
        Ok(wires) => wires,
        Err(why) => return skipped("a cluster that is cut in two", &why),
    };
    let cluster = Cluster::start(wires, &[]);
    let all: Vec<usize> = (0..KEYS).collect();
    check_written(&cluster.ask(0, &all, |key| format!("SET key{key} before{key}")));
    let (of_larger, of_smaller) = cluster.sides();
    assert!(!of_larger.is_empty());

    let load = Load::start(4, NODES, &cluster.connect());
    load.let_pass(200);
    cluster.wires.plug(&SMALLER, "apart");
    let larger = larger();
    larger.iter().for_each(|index| cluster.wait_until_sees(*index, &larger));
    SMALLER.iter().for_each(|index| cluster.wait_until_sees(*index, &SMALLER));
    check_sides(&cluster, &larger, &SMALLER, &of_larger);
    check_sides(&cluster, &SMALLER, &larger, &of_smaller);
    load.let_pass(100);

    cluster.wires.plug(&SMALLER, "whole");
    let nodes: Vec<usize> = (0..NODES).collect();
    nodes.iter().for_each(|index| cluster.wait_until_sees(*index, &nodes));
    load.let_pass(200);
    let known = load.end();
    for index in nodes {
        cluster.check_decided(index, &all, "after");
        check_known(&mut cluster.client(index), &known);
    }
}

/// The larger side removes the smaller one; an operator has that forget the larger one. From then
/// on nobody on either side counts the others as members, or asks them anything but by greetings.
#[test]
fn sides_of_a_cut_that_have_removed_each_other_become_one_cluster_again() {
    let wires = match Wires::new() {
        Ok(wires) => wires,
        Err(why) => return skipped("a cluster whose halves have removed each other", &why),
    };
    let cluster = Cluster::start(wires, &["--down-after-ms", "2000"]);
    let all: Vec<usize> = (0..KEYS).collect();
    check_written(&cluster.ask(0, &all, |key| format!("SET key{key} before{key}")));
    cluster.wires.plug(&SMALLER, "apart");
    let larger = larger();
    larger.iter().for_each(|index| wait_for_full(&mut cluster.client(*index), larger.len()));
    // Who has just become a holder has to be filled first.
    let mut client = cluster.client(larger[1]);
    for key in &all {
        wait_for(&mut client, &format!("SET key{key} after{key}"), is_ok);
    }
    let mut client = cluster.client(SMALLER[0]);
    for index in &larger {
        let node = &cluster.nodes[*index].ready().node;
        assert!(is_ok(&client.call_line(&format!("KAD.FORGET {node}")).unwrap()));
    }
    SMALLER.iter().for_each(|index| wait_for_full(&mut cluster.client(*index), SMALLER.len()));

    cluster.wires.plug(&SMALLER, "whole");
    // A member again is not yet a node that answers: that is known when something has come from it.
    let nodes: Vec<usize> = (0..NODES).collect();
    for index in &nodes {
        wait_for_full(&mut cluster.client(*index), NODES);
        cluster.wait_until_sees(*index, &nodes);
    }
    for index in nodes {
        cluster.check_decided(index, &all, "after");
    }
}
