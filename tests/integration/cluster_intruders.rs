//! What strangers send to the peer port of a real cluster, with and without a secret: garbage,
//! messages cut short, changed, for others, and what was heard on the wire, once more. All of it
//! is counted, none is fatal, memory stays bounded, and clients are served meanwhile.

use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::mpsc::{self, Sender};
use std::thread;
use std::time::Instant;

use kadring_tests::http_client::HttpClient;
use kadring_tests::node_process::{Driver, NodeOptions, NodeProcess};
use kadring_tests::resp_client::{Reply, RespClient};
use tempfile::TempDir;

use crate::cluster_rig::{DEADLINE, is_ok, number_of, peer, rows, wait_for, wait_for_full};
use crate::{admin, directory};

/// Datagrams that are surely not more than the node's socket takes at once.
const BATCH: usize = 200;
/// Datagrams of the flood; some of them the kernel drops.
const FLOOD: usize = 30_000;
/// Connections that say nothing.
const SILENT: usize = 200;
/// Resident memory that strangers may cost, at most.
const GROWTH_MAX: u64 = 48 << 20;
const DATAGRAM_LEN_MAX: usize = 4_096;

/// What a node said when it joined.
struct Heard {
    datagram: Vec<u8>,
    link: Vec<u8>,
}

/// Stands between a node that joins and the one that it asks, and listens.
struct Tap {
    links: TcpListener,
    datagrams: UdpSocket,
}

impl Tap {
    fn new() -> Self {
        loop {
            let links = TcpListener::bind("127.0.0.1:0").unwrap();
            if let Ok(datagrams) = UdpSocket::bind(links.local_addr().unwrap()) {
                return Self { links, datagrams };
            }
        }
    }

    fn address(&self) -> SocketAddr {
        self.links.local_addr().unwrap()
    }

    /// Leads the first link to a node. Returns what was heard until the newcomer has joined.
    fn listen(self, to: SocketAddr, join: impl FnOnce()) -> Heard {
        let (heard, link) = mpsc::channel();
        let relay = thread::spawn(move || {
            let (from, _) = self.links.accept().unwrap();
            let to = TcpStream::connect(to).unwrap();
            let (from_too, to_too) = (from.try_clone().unwrap(), to.try_clone().unwrap());
            thread::spawn(move || relay(from_too, to_too, Some(heard)));
            thread::spawn(move || relay(to, from, None));
        });
        self.datagrams.set_read_timeout(Some(DEADLINE)).unwrap();
        join();
        relay.join().unwrap();
        let mut buffer = [0; DATAGRAM_LEN_MAX];
        let len = self.datagrams.recv(&mut buffer).unwrap();
        Heard { datagram: buffer[..len].to_vec(), link: link.try_iter().flatten().collect() }
    }
}

fn relay(mut from: TcpStream, mut to: TcpStream, heard: Option<Sender<Vec<u8>>>) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(len) = from.read(&mut buffer) {
        if len == 0 || to.write_all(&buffer[..len]).is_err() {
            break;
        }
        if let Some(heard) = &heard {
            let _ = heard.send(buffer[..len].to_vec());
        }
    }
    let _ = to.shutdown(Shutdown::Both);
}

struct Cluster {
    nodes: Vec<NodeProcess>,
    admin: SocketAddr,
    heard: Heard,
    has_secret: bool,
    _directory: TempDir,
}

impl Cluster {
    /// Two nodes, and a third one that joins where somebody listens. The first one is the victim.
    fn start(driver: Driver, has_secret: bool) -> Self {
        let directory = directory();
        let secret = directory.path().join("secret");
        std::fs::write(&secret, "what strangers do not know").unwrap();
        let start = |index: usize, driver, seed: Option<SocketAddr>| {
            let mut options =
                NodeOptions::new(&directory.path().join(format!("node-{index}")), driver);
            let mut arguments = vec!["--peer", "127.0.0.1:0", "--admin", "127.0.0.1:0"];
            if has_secret {
                arguments.extend(["--cluster-secret-file", secret.to_str().unwrap()]);
            }
            options.arguments = arguments.into_iter().map(Into::into).collect();
            if let Some(seed) = seed {
                options.arguments.extend(["--bootstrap".into(), seed.to_string().into()]);
            }
            NodeProcess::start(options).unwrap_or_else(|error| panic!("{error}"))
        };
        let first = start(0, driver, None);
        let second = start(1, Driver::Pread, Some(peer(&first)));
        let (tap, mut third) = (Tap::new(), None);
        let seed = tap.address();
        let heard = tap.listen(peer(&first), || {
            let node = start(2, Driver::Pread, Some(seed));
            wait_for_full(&mut RespClient::connect(node.address()).unwrap(), 3);
            third = Some(node);
        });
        let line = &first.ready().line;
        let admin = line.split(' ').find_map(|word| word.strip_prefix("admin="));
        let admin = admin.unwrap().parse().unwrap();
        let nodes = vec![first, second, third.unwrap()];
        Self { nodes, admin, heard, has_secret, _directory: directory }
    }

    fn client(&self, index: usize) -> RespClient {
        RespClient::connect(self.nodes[index].address()).unwrap()
    }

    fn victim(&self) -> SocketAddr {
        peer(&self.nodes[0])
    }

    fn counted(&self, name: &str) -> u64 {
        let told = admin::scrape(&mut HttpClient::connect(self.admin).unwrap());
        told.sum(name) as u64
    }

    /// Waits until something was counted at least so often.
    fn wait_until_counted(&self, name: &str, least: u64, what: &str) {
        let started = Instant::now();
        loop {
            let found = self.counted(name);
            if found >= least {
                return;
            }
            assert!(started.elapsed() < DEADLINE, "{what}: {name} is {found}, not {least}");
        }
    }

    /// Sends datagrams, each of which is to be counted.
    fn check_datagrams(&self, what: &str, datagrams: &[Vec<u8>]) {
        const NAME: &str = "kadring_krpc_rejected_total";
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let mut expected = self.counted(NAME);
        for batch in datagrams.chunks(BATCH) {
            for datagram in batch {
                socket.send_to(datagram, self.victim()).unwrap();
            }
            expected += batch.len() as u64;
            self.wait_until_counted(NAME, expected, what);
        }
        socket.set_nonblocking(true).unwrap();
        let answered = socket.recv(&mut [0; DATAGRAM_LEN_MAX]);
        let error = answered.expect_err("such a datagram is not answered");
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock, "{what}");
    }

    /// Sends bytes over a link, which is to be ended and counted.
    fn check_link(&self, what: &str, bytes: &[u8]) {
        const NAME: &str = "kadring_links_refused_total";
        let before = self.counted(NAME);
        let mut link = RespClient::connect(self.victim()).unwrap();
        // It may be closed before all is sent.
        let _ = link.send_raw(bytes);
        let answer = link.read_to_close().unwrap_or_else(|error| panic!("{what}: {error}"));
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let has_told = self.has_secret && answer.contains("KADP.AUTH");
        assert!(!has_told, "{what}: a stranger was told a proof");
        self.wait_until_counted(NAME, before + 1, what);
    }

    /// All members serve, and are those that they were.
    fn check_service(&self, round: u64) {
        for index in 0..self.nodes.len() {
            let mut client = self.client(index);
            wait_for(&mut client, &format!("SET key{index} {round}"), is_ok);
        }
        for index in 0..self.nodes.len() {
            let mut client = self.client(index);
            for key in 0..self.nodes.len() {
                let line = format!("GET key{key}");
                let reply = wait_for(&mut client, &line, |reply: &Reply| !reply.is_error(""));
                assert_eq!(number_of(&reply), Some(round));
            }
            let members = rows(&client.call_line("KAD.NODES").unwrap());
            let mut members: Vec<&str> = members.iter().map(|row| &*row[0]).collect();
            let mut nodes: Vec<&str> = self.nodes.iter().map(|node| &*node.ready().node).collect();
            members.sort_unstable();
            nodes.sort_unstable();
            assert_eq!(members, nodes, "nobody else has become a member");
        }
    }
}

fn noise(rng: &mut fastrand::Rng, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    rng.fill(&mut bytes);
    bytes
}

fn with_changed(bytes: &[u8], at: usize) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes[at] ^= 1;
    bytes
}

/// Where the body of the HELLO begins: version, cluster, id, boot id, features, nonce, address.
fn hello_at(link: &[u8]) -> usize {
    let verb = b"KADP.HELLO\r\n$";
    let at = link.windows(verb.len()).position(|window| window == verb).unwrap() + verb.len();
    at + link[at..].iter().position(|byte| *byte == b'\n').unwrap() + 1
}

/// Where the frame after the HELLO begins.
fn hello_end(link: &[u8]) -> usize {
    let frame = b"\r\n*2\r\n$9\r\nKADP.AUTH";
    let other = b"\r\n*";
    let from = hello_at(link) + 93;
    let find = |what: &[u8]| link[from..].windows(what.len()).position(|window| window == what);
    from + find(frame).or_else(|| find(other)).unwrap() + 2
}

fn check_all_datagrams(cluster: &Cluster, rng: &mut fastrand::Rng) {
    let heard = &cluster.heard.datagram;
    let garbage: Vec<_> = (0..500).map(|len| noise(rng, len * 8 + 1)).collect();
    cluster.check_datagrams("garbage", &garbage);
    let cut: Vec<_> = (1..heard.len()).map(|len| heard[..len].to_vec()).collect();
    cluster.check_datagrams("cut short", &cut);
    let of_others = b"d1:ad2:id20:aaaaaaaaaaaaaaaaaaaae1:q4:ping1:t4:bbbb1:y1:qe";
    cluster.check_datagrams("of BitTorrent's DHT", &vec![of_others.to_vec(); 50]);
    let private = heard.windows(7).position(|window| window == b"2:kr17:").unwrap() + 7;
    let foreign: Vec<_> = (private..private + 17).map(|at| with_changed(heard, at)).collect();
    cluster.check_datagrams("of other clusters", &foreign);
    if cluster.has_secret {
        // What was said to another address is taken once.
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.send_to(heard, cluster.victim()).unwrap();
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        socket.recv(&mut [0; DATAGRAM_LEN_MAX]).unwrap();
        cluster.check_datagrams("replayed", &vec![heard.clone(); 100]);
        let forged: Vec<_> = (0..heard.len()).map(|at| with_changed(heard, at)).collect();
        cluster.check_datagrams("forged", &forged);
        let bare = heard[..heard.len() - 32].to_vec();
        cluster.check_datagrams("without seal", &[bare]);
    } else {
        let mut answer = b"d2:kr17:".to_vec();
        answer.extend_from_slice(&heard[private..private + 17]);
        answer.extend_from_slice(b"1:rd2:id20:aaaaaaaaaaaaaaaaaaaae1:t4:bbbb1:y1:re");
        cluster.check_datagrams("answers to nothing", &vec![answer; 50]);
    }
}

fn check_all_links(cluster: &Cluster, rng: &mut fastrand::Rng) {
    let heard = &cluster.heard.link;
    for len in [1, 100, 10_000, 1 << 20] {
        let mut bytes = noise(rng, len);
        bytes[0] |= 0x80;
        cluster.check_link("noise", &bytes);
    }
    for text in [
        &b"GET / HTTP/1.1\r\nHost: node\r\n\r\n"[..],
        b"*1\r\n$4\r\nPING\r\n",
        b"*2\r\n$8\r\nKADP.PUT\r\n$999999999\r\n",
        b"*999999999\r\n",
        b"*2\r\n$10\r\nKADP.HELLO\r\n$4\r\n\0\0\0\x09\r\n",
        b"*2\r\n$9\r\nKADP.PING\r\n$9\r\n\0\0\0\0\0\0\0\x01\0\r\n",
    ] {
        cluster.check_link(&text.escape_ascii().to_string(), text);
    }
    let body = hello_at(heard);
    cluster.check_link("another version", &with_changed(heard, body + 3));
    cluster.check_link("another cluster", &with_changed(heard, body + 4));
    cluster.check_link("without a secret, or with one", &with_changed(heard, body + 59));
    let own = &cluster.nodes[0].ready().node;
    let own = (0..20).map(|at| u8::from_str_radix(&own[2 * at..2 * at + 2], 16).unwrap());
    let mut reflected = heard.clone();
    reflected.splice(body + 24..body + 44, own);
    cluster.check_link("its own id", &reflected);
    if cluster.has_secret {
        cluster.check_link("replayed", heard);
        cluster.check_link("a forged nonce", &with_changed(heard, body + 60));
        cluster.check_link("an unknown id", &with_changed(heard, body + 24));
    }
    let mut unproven = heard[..hello_end(heard)].to_vec();
    unproven.extend_from_slice(b"*2\r\n$9\r\nKADP.PONG\r\n$3\r\nabc\r\n");
    cluster.check_link("garbage after the HELLO", &unproven);
    check_silent(cluster);
}

/// Who connects and says nothing is shut out after a moment; links of members are not in its way.
fn check_silent(cluster: &Cluster) {
    let name = "kadring_links_refused_total";
    let before = cluster.counted(name);
    let silent: Vec<RespClient> =
        (0..SILENT).map(|_| RespClient::connect(cluster.victim()).unwrap()).collect();
    cluster.check_service(2);
    for mut client in silent {
        assert_eq!(client.read_to_close().unwrap(), b"");
    }
    cluster.wait_until_counted(name, before + SILENT as u64, "silent");
}

/// More than the node can take, of everything.
fn flood(victim: SocketAddr, heard: &[u8]) {
    let mut rng = fastrand::Rng::with_seed(9);
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    for _ in 0..FLOOD {
        let len = rng.usize(1..DATAGRAM_LEN_MAX);
        let datagram = if rng.bool() { noise(&mut rng, len) } else { heard.to_vec() };
        // The kernel may have no room: then it is not sent.
        let _ = socket.send_to(&datagram, victim);
    }
    for _ in 0..SILENT {
        let mut link = RespClient::connect(victim).unwrap();
        let len = rng.usize(1..64 << 10);
        let _ = link.send_raw(&noise(&mut rng, len));
    }
}

fn check(driver: Driver, has_secret: bool) {
    let cluster = Cluster::start(driver, has_secret);
    let mut rng = fastrand::Rng::with_seed(8);
    cluster.check_service(1);
    let before = cluster.nodes[0].resident_bytes().unwrap();
    check_all_datagrams(&cluster, &mut rng);
    check_all_links(&cluster, &mut rng);
    let (victim, heard) = (cluster.victim(), cluster.heard.datagram.clone());
    let flooding = thread::spawn(move || flood(victim, &heard));
    cluster.check_service(3);
    flooding.join().unwrap();
    cluster.check_service(4);
    let growth = cluster.nodes[0].resident_bytes().unwrap().saturating_sub(before);
    assert!(growth < GROWTH_MAX, "{growth} B more are resident");
    let Cluster { nodes, .. } = cluster;
    for node in nodes {
        let (status, rest) = node.terminate().unwrap_or_else(|error| panic!("{error}"));
        assert_eq!((status.code(), rest.as_str()), (Some(0), ""));
    }
}

#[test]
fn strangers_do_no_harm_to_a_cluster_without_a_secret() {
    check(Driver::Uring, false);
}

#[test]
fn strangers_do_no_harm_to_a_cluster_with_a_secret() {
    check(Driver::TokioUring, true);
}
