//! Clusters of real processes for tests: started, killed and asked; and clients that put load on
//! them and check each answer.

use std::collections::BTreeMap;
use std::env;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use kadring_tests::node_process::{Driver, NodeOptions, NodeProcess, StartingNode};
use kadring_tests::resp_client::{Reply, RespClient};
use tempfile::TempDir;

use crate::directory;

/// Whatever a cluster is waited for.
pub(crate) const DEADLINE: Duration = Duration::from_secs(120);
/// Operations of a client on one connection.
const OPERATIONS_PER_CONNECTION: u64 = 40;
/// Keys of a client.
const KEYS_PER_CLIENT: u64 = 30;
/// Flags of a node that is one of many on a machine.
pub(crate) const SMALL: [&str; 8] = [
    "--cache-bytes",
    "1MiB",
    "--segment-bytes",
    "4MiB",
    "--checkpoint-bytes",
    "1MiB",
    "--io-buffer-bytes",
    "8MiB",
];

/// A number that a variable sets, or the one for a push.
pub(crate) fn number(variable: &str, otherwise: usize) -> usize {
    match env::var(variable) {
        Ok(text) => text.parse().unwrap_or_else(|error| panic!("{variable}={text}: {error}")),
        Err(_) => otherwise,
    }
}

/// Nodes, each with its directory; none where one has been killed.
pub(crate) struct Cluster {
    nodes: Vec<Option<NodeProcess>>,
    options: Vec<NodeOptions>,
    /// What a node without any key counts as its keys.
    keys_of_empty: i64,
    directory: TempDir,
}

impl Cluster {
    pub(crate) fn new() -> Self {
        Self { nodes: Vec::new(), options: Vec::new(), keys_of_empty: 0, directory: directory() }
    }

    /// Starts that many, and waits until all serve.
    pub(crate) fn of(count: usize, arguments: &[&str]) -> Self {
        let mut cluster = Self::new();
        cluster.add_many(count, |_| {}, arguments);
        cluster
    }

    /// The same with nodes of one shard and little memory, all of which know each other.
    pub(crate) fn of_small(count: usize, arguments: &[&str]) -> Self {
        let mut cluster = Self::new();
        cluster.add_many(count, |options| options.shards = 1, &[&SMALL, arguments].concat());
        cluster.wait_until_all_are_full();
        cluster
    }

    /// The first alone, then the others at once.
    fn add_many(&mut self, count: usize, change: impl Fn(&mut NodeOptions), arguments: &[&str]) {
        let driver = |index: usize| Driver::ALL[index % Driver::ALL.len()];
        let mut starting = Vec::new();
        for index in 0..count {
            let mut options = self.options_of(index, driver(index), arguments);
            change(&mut options);
            if index == 0 {
                self.push(NodeProcess::start(options).unwrap_or_else(|error| panic!("{error}")));
            } else {
                starting.push(StartingNode::start(options).unwrap());
            }
        }
        starting.into_iter().for_each(|node| self.push(ready(node)));
        for index in 0..count {
            wait_until_serving(&mut self.client(index));
        }
    }

    /// Starts one more node, which joins the first.
    pub(crate) fn add(&mut self, driver: Driver, arguments: &[&str]) -> usize {
        let index = self.nodes.len();
        let options = self.options_of(index, driver, arguments);
        self.push(NodeProcess::start(options).unwrap_or_else(|error| panic!("{error}")));
        index
    }

    fn options_of(&self, index: usize, driver: Driver, arguments: &[&str]) -> NodeOptions {
        let data = self.directory.path().join(format!("node-{index}"));
        let mut options = NodeOptions::new(&data, driver);
        options.arguments = ["--peer", "127.0.0.1:0"].map(Into::into).to_vec();
        if let Some(Some(first)) = self.nodes.first() {
            options.arguments.extend(["--bootstrap".into(), peer(first).to_string().into()]);
        }
        options.arguments.extend(arguments.iter().map(Into::into));
        options
    }

    fn push(&mut self, node: NodeProcess) {
        let mut options = node.options_on_same_port();
        options.arguments[1] = peer(&node).to_string().into();
        self.options.push(options);
        self.nodes.push(Some(node));
    }

    pub(crate) fn node(&self, index: usize) -> &NodeProcess {
        self.nodes[index].as_ref().expect("the node runs")
    }

    pub(crate) fn client(&self, index: usize) -> RespClient {
        RespClient::connect(self.node(index).address()).unwrap()
    }

    /// Which nodes run.
    pub(crate) fn running(&self) -> Vec<usize> {
        (0..self.nodes.len()).filter(|index| self.nodes[*index].is_some()).collect()
    }

    /// How clients reach the nodes, also while they are down.
    pub(crate) fn connect(&self) -> Connect {
        let addresses: Vec<SocketAddr> =
            self.running().iter().map(|index| self.node(*index).address()).collect();
        Arc::new(move |index| RespClient::connect(addresses[index]))
    }

    /// SIGKILL to all of these at once.
    pub(crate) fn kill(&mut self, indexes: &[usize]) {
        let killed: Vec<NodeProcess> =
            indexes.iter().map(|index| self.nodes[*index].take().expect("the node runs")).collect();
        let threads = killed.into_iter().map(|node| thread::spawn(move || node.kill9().unwrap()));
        let threads: Vec<_> = threads.collect();
        threads.into_iter().for_each(|thread| drop(thread.join().unwrap()));
    }

    /// Starts these again, all at once, where they were.
    pub(crate) fn restart(&mut self, indexes: &[usize]) {
        let start = |index: &usize| StartingNode::start(self.options[*index].clone()).unwrap();
        let starting: Vec<StartingNode> = indexes.iter().map(start).collect();
        for (index, node) in indexes.iter().zip(starting) {
            self.nodes[*index] = Some(ready(node));
        }
    }

    /// Waits until all that run know each other, and all have what they should hold.
    pub(crate) fn wait_until_all_are_full(&mut self) {
        let running = self.running();
        for index in &running {
            wait_for_full(&mut self.client(*index), running.len());
        }
    }

    /// Notes what nodes count before there is any key.
    pub(crate) fn note_empty(&mut self) {
        self.keys_of_empty = size(&mut self.client(0));
    }

    /// Waits until all that run hold so many copies together.
    pub(crate) fn wait_for_copies(&self, copies: usize) {
        let indexes = self.running();
        let mut clients: Vec<RespClient> =
            indexes.iter().map(|index| self.client(*index)).collect();
        let started = Instant::now();
        loop {
            let held = clients.iter_mut().map(|client| size(client) - self.keys_of_empty);
            let held: Vec<i64> = held.collect();
            if held.iter().sum::<i64>() == i64::try_from(copies).unwrap() {
                return;
            }
            assert!(started.elapsed() < DEADLINE, "{copies} copies, but held: {held:?}");
            pause(&mut clients[0]);
        }
    }

    pub(crate) fn terminate(mut self) {
        for node in std::mem::take(&mut self.nodes).into_iter().flatten() {
            let (status, rest) = node.terminate().unwrap_or_else(|error| panic!("{error}"));
            assert_eq!((status.code(), rest.as_str()), (Some(0), ""));
        }
    }
}

/// A test that fails shows what each node knows and has logged.
impl Drop for Cluster {
    fn drop(&mut self) {
        if thread::panicking() {
            self.nodes.iter().flatten().for_each(show);
        }
    }
}

pub(crate) fn show(node: &NodeProcess) {
    let asked = RespClient::connect(node.address()).and_then(|mut client| {
        client.set_reply_timeout(Duration::from_secs(5))?;
        client.call_line("KAD.NODES")
    });
    eprintln!("{}: {:?}\n{}", node.ready().node, asked.as_ref().map(rows), node.stderr());
}

/// Waits until a node is ready.
pub(crate) fn ready(node: StartingNode) -> NodeProcess {
    match node.wait_ready(DEADLINE) {
        Ok(Ok(node)) => node,
        other => panic!("{other:?}"),
    }
}

pub(crate) fn peer(node: &NodeProcess) -> SocketAddr {
    node.ready().peer.expect("the node has a peer door")
}

/// Lets a moment pass: a node of a cluster takes its time to say that there are no 15 copies.
pub(crate) fn pause(client: &mut RespClient) {
    client.call_line("WAIT 15 20").unwrap();
}

/// Asks again until the answer will do.
pub(crate) fn wait_for(
    client: &mut RespClient,
    line: &str,
    will_do: impl Fn(&Reply) -> bool,
) -> Reply {
    let started = Instant::now();
    loop {
        let reply = client.call_line(line).unwrap_or_else(|error| panic!("{line}: {error}"));
        if will_do(&reply) {
            return reply;
        }
        assert!(started.elapsed() < DEADLINE, "{line}: {}", reply.brief());
        pause(client);
    }
}

pub(crate) fn wait_until_serving(client: &mut RespClient) {
    wait_for(client, "GET nothing", |reply| *reply == Reply::Nil);
}

/// Whether a reply is more than that there is no majority just now.
pub(crate) fn is_decided(reply: &Reply) -> bool {
    !reply.is_error("NOREPLICAS") && !reply.is_error("NOTREADY")
}

pub(crate) fn is_ok(reply: &Reply) -> bool {
    *reply == Reply::Simple("OK".into())
}

pub(crate) fn rows(reply: &Reply) -> Vec<Vec<String>> {
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

/// Waits until a node knows so many members that are full, and none that is on its way.
pub(crate) fn wait_for_full(client: &mut RespClient, count: usize) {
    wait_for(client, "KAD.NODES", |reply| {
        let rows = rows(reply);
        let members = rows.iter().filter(|row| row[3] != "removed");
        let full = members.clone().filter(|row| row[2] == "full").count();
        full == count && members.count() == count
    });
}

/// Keys that a node counts.
fn size(client: &mut RespClient) -> i64 {
    match client.call_line("DBSIZE").unwrap() {
        Reply::Integer(count) => count,
        other => panic!("{}", other.brief()),
    }
}

/// Takes ports that are free just now: all nodes have to know all of them beforehand.
pub(crate) fn free_addresses(count: usize) -> Vec<SocketAddr> {
    let listeners: Vec<TcpListener> =
        (0..count).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    listeners.iter().map(|listener| listener.local_addr().unwrap()).collect()
}

/// Connects to the client door of a node.
pub(crate) type Connect = Arc<dyn Fn(usize) -> io::Result<RespClient> + Send + Sync>;

/// What one client knows of its keys: no value below the first of a pair may be read any more, and
/// none above the second has been written.
pub(crate) type Known = BTreeMap<String, (u64, u64)>;

/// Clients that write and read on all nodes until they are told to stop.
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    progress: Receiver<()>,
    clients: Vec<JoinHandle<Known>>,
}

impl Load {
    pub(crate) fn start(clients: u64, nodes: usize, connect: &Connect) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (sender, progress) = mpsc::channel();
        let clients = (0..clients).map(|client| {
            let (connect, stop, sender) = (connect.clone(), stop.clone(), sender.clone());
            thread::spawn(move || load(client, nodes, &*connect, &stop, &sender))
        });
        Self { clients: clients.collect(), stop, progress }
    }

    /// Lets so many operations pass.
    pub(crate) fn let_pass(&self, count: u64) {
        for _ in 0..count {
            self.progress.recv_timeout(DEADLINE).expect("clients get on while nodes are away");
        }
    }

    /// Ends it: what all clients know.
    pub(crate) fn end(self) -> Known {
        self.stop.store(true, Ordering::Relaxed);
        let known: Known =
            self.clients.into_iter().flat_map(|client| client.join().unwrap()).collect();
        assert!(known.values().any(|(acknowledged, _)| *acknowledged > 0));
        known
    }
}

/// Writes rising numbers under keys of its own and reads them, from all nodes. Each read is
/// checked. Tells of each operation. After an error it goes to some node anew.
fn load(
    client: u64,
    nodes: usize,
    connect: &(dyn Fn(usize) -> io::Result<RespClient> + Send + Sync),
    stop: &AtomicBool,
    progress: &Sender<()>,
) -> Known {
    let mut rng = fastrand::Rng::with_seed(client);
    let (mut known, mut number) = (Known::new(), 0);
    while !stop.load(Ordering::Relaxed) {
        let Ok(mut connection) = connect(rng.usize(..nodes)) else { continue };
        for _ in 0..OPERATIONS_PER_CONNECTION {
            let key = format!("{client}-{}", rng.u64(..KEYS_PER_CLIENT));
            let state = known.entry(key.clone()).or_default();
            let is_done = if rng.bool() {
                number += 1;
                state.1 = number;
                let reply = connection.call_line(&format!("SET {key} {number}"));
                let is_done = reply.as_ref().is_ok_and(is_ok);
                state.0 = if is_done { number } else { state.0 };
                is_done
            } else {
                let reply = connection.call_line(&format!("GET {key}"));
                let found = reply.ok().and_then(|reply| number_of(&reply));
                if let Some(found) = found {
                    assert!((state.0..=state.1).contains(&found), "{key}: {state:?}, {found}");
                    // What was read once is read from then on.
                    state.0 = found;
                }
                found.is_some()
            };
            let _ = progress.send(());
            if !is_done || stop.load(Ordering::Relaxed) {
                break;
            }
        }
    }
    known
}

/// The number under a key, 0 for none; nothing for an error.
pub(crate) fn number_of(reply: &Reply) -> Option<u64> {
    match reply {
        Reply::Nil => Some(0),
        Reply::Bulk(bytes) => Some(std::str::from_utf8(bytes).unwrap().parse().unwrap()),
        _ => None,
    }
}

/// Reads all keys on a node. An error is no answer: it is asked again.
pub(crate) fn check_known(client: &mut RespClient, known: &Known) {
    for (key, (least, most)) in known {
        let reply = wait_for(client, &format!("GET {key}"), |reply| number_of(reply).is_some());
        let found = number_of(&reply).unwrap();
        assert!((*least..=*most).contains(&found), "{key}: {least} to {most}, {found}");
    }
}
