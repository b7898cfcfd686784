//! The same bytes to redis-server and to the node: the same bytes back.
//!
//! Scripted cases cover each command's rules and mistakes; seeded random ones combine them. What
//! may differ is listed, with reasons, in `data/redis-deviations.txt`. Skipped, loudly, where no
//! redis-server is installed.

use std::net::{SocketAddr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use kadring_tests::node_process::{Driver, find_program};
use kadring_tests::resp_client::{RespClient, encode_command};
use rustix::event::{Timespec, poll};
use tempfile::TempDir;

use crate::{TestNode, directory, skipped};

const RANDOM_COMMANDS: usize = 4_000;

/// A redis-server without persistence; killed on drop.
pub(crate) struct RedisServer {
    process: Child,
    address: SocketAddr,
    _directory: TempDir,
}

impl RedisServer {
    pub(crate) fn start() -> Option<Self> {
        let Some(program) = find_program("redis-server") else {
            skipped("comparison with Redis", "no redis-server in PATH");
            return None;
        };
        let directory = directory();
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let port = address.port().to_string();
        let process = Command::new(program)
            .args(["--port", &port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"])
            .arg("--dir")
            .arg(directory.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let server = Self { process, address, _directory: directory };
        let deadline = Instant::now() + Duration::from_secs(10);
        while RespClient::connect(address).is_err() {
            assert!(Instant::now() < deadline, "redis-server does not answer");
            let pause = Timespec { tv_sec: 0, tv_nsec: 5_000_000 };
            poll(&mut [], Some(&pause)).unwrap();
        }
        Some(server)
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

/// Commands of which the deviations file says that their replies may differ.
struct Deviations {
    /// First words of a command, in lower case, and what may differ.
    commands: Vec<(String, Extent)>,
}

#[derive(PartialEq)]
enum Extent {
    Success,
    Anything,
}

impl Deviations {
    fn load() -> Self {
        let text = include_str!("../data/redis-deviations.txt");
        let mut commands = Vec::new();
        for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let (command, reason) = line.split_once(" -- ").expect("`command -- reason`");
            assert!(!reason.trim().is_empty(), "{line:?} gives no reason");
            let command = command.trim().to_lowercase();
            commands.push(match command.strip_suffix(" !") {
                Some(command) => (command.to_owned(), Extent::Anything),
                None => (command, Extent::Success),
            });
        }
        Self { commands }
    }

    fn allow(&self, request: &[u8], expected: &[u8], found: &[u8]) -> bool {
        let success = !expected.starts_with(b"-") && !found.starts_with(b"-");
        let text = String::from_utf8_lossy(request);
        // Requests of this suite are arrays of bulk strings or plain inline text.
        let words = text.lines().filter(|word| !word.starts_with(['*', '$']));
        let line = words.collect::<Vec<_>>().join(" ").to_lowercase();
        self.commands.iter().any(|(command, extent)| {
            line.strip_prefix(command.as_str())
                .is_some_and(|rest| rest.is_empty() || rest.starts_with(' '))
                && (success || *extent == Extent::Anything)
        })
    }
}

/// One connection to each of the two.
struct Pair {
    redis: RespClient,
    node: RespClient,
    deviations: Deviations,
    differences: Vec<String>,
}

impl Pair {
    fn new(redis: &RedisServer, node: &TestNode) -> Self {
        Self {
            redis: RespClient::connect(redis.address).unwrap(),
            node: node.client(),
            deviations: Deviations::load(),
            differences: Vec::new(),
        }
    }

    fn compare(&mut self, request: &[u8]) {
        let ask = |client: &mut RespClient, name| {
            client.send_raw(request).unwrap();
            let result = client.read_raw_reply();
            result.map(|(_, raw)| raw).unwrap_or_else(|error| {
                panic!("{name} on {}: {error}", request.escape_ascii());
            })
        };
        let expected = ask(&mut self.redis, "redis-server");
        let found = ask(&mut self.node, "kadring");
        self.note(request, &expected, &found);
    }

    fn compare_words(&mut self, words: &[&[u8]]) {
        let mut request = Vec::new();
        encode_command(&mut request, words);
        self.compare(&request);
    }

    fn note(&mut self, request: &[u8], expected: &[u8], found: &[u8]) {
        if expected != found && !self.deviations.allow(request, expected, found) {
            let short = |bytes: &[u8]| bytes[..bytes.len().min(300)].escape_ascii().to_string();
            self.differences.push(format!(
                "{}\n  redis-server: {}\n  kadring:      {}",
                short(request),
                short(expected),
                short(found)
            ));
        }
    }
}

#[track_caller]
fn check_differences(differences: &[String]) {
    let count = differences.len();
    let shown = differences.iter().take(40).cloned().collect::<Vec<_>>().join("\n");
    assert!(differences.is_empty(), "{count} replies differ:\n{shown}");
}

/// Every line is a command; `''` is an empty word.
const SCRIPT: &str = include_str!("../data/redis-script.txt");

fn words(line: &str) -> Vec<Vec<u8>> {
    line.split(' ')
        .map(|word| if word == "''" { Vec::new() } else { word.as_bytes().to_vec() })
        .collect()
}

fn check_script(prologue: &str) {
    let Some(redis) = RedisServer::start() else {
        return;
    };
    for driver in Driver::ALL {
        RespClient::connect(redis.address).unwrap().call_line("FLUSHALL").unwrap();
        let node = TestNode::start(driver);
        let mut pair = Pair::new(&redis, &node);
        pair.redis.call_line(prologue).unwrap();
        pair.node.call_line(prologue).unwrap();
        for line in SCRIPT.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let words = words(line);
            pair.compare_words(&words.iter().map(Vec::as_slice).collect::<Vec<_>>());
        }
        check_differences(&pair.differences);
    }
}

#[test]
fn scripted_commands_get_the_replies_of_redis_in_resp2() {
    check_script("HELLO 2");
}

#[test]
fn scripted_commands_get_the_replies_of_redis_in_resp3() {
    check_script("HELLO 3");
}

/// Draws a command that is right, or wrong in one of many ways.
fn random_command(rng: &mut fastrand::Rng) -> Vec<Vec<u8>> {
    const VERBS: &str = "GET SET DEL UNLINK EXISTS MGET MSET STRLEN TYPE EXPIRE PEXPIRE TTL \
        PERSIST DBSIZE INCR DECR INCRBY DECRBY APPEND ECHO PING SELECT NOSUCH GeT sEt CLIENT SETEX \
        PSETEX SETNX GETSET GETDEL GETEX GETRANGE SETRANGE EXPIREAT PEXPIREAT";
    const KEYS: [&str; 6] = ["a", "b", "n", "", "long-key-with-some-length", "\0\r\n\u{ff}"];
    const WORDS: [&str; 30] = [
        "0",
        "1",
        "-1",
        "007",
        " 1",
        "1 ",
        "+5",
        "9223372036854775807",
        "-9223372036854775808",
        "9223372036854775808",
        "1.5",
        "x",
        "",
        "NX",
        "XX",
        "GET",
        "KEEPTTL",
        "EX",
        "PX",
        "1000",
        "100000",
        "GT",
        "LT",
        "exat",
        "pxat",
        "99999999999",
        "GETNAME",
        "SETNAME",
        "-0",
        "ID",
    ];
    let verbs: Vec<&str> = VERBS.split(' ').collect();
    let mut words = vec![rng.choice(&verbs).unwrap().as_bytes().to_vec()];
    for index in 0..rng.usize(0..6) {
        let from_keys = index == 0 || rng.u32(0..4) == 0;
        let word = if from_keys { rng.choice(&KEYS[..]) } else { rng.choice(&WORDS[..]) };
        words.push(word.unwrap().as_bytes().to_vec());
    }
    words
}

/// Whether the command may let a key expire while the test runs: from then on replies depend on
/// which of the two servers was asked later, and Redis counts expired keys until it collects them.
fn expires_within_the_test(words: &[Vec<u8>]) -> bool {
    let has = |wanted: &[&str]| {
        let same = |word: &Vec<u8>| wanted.iter().any(|w| word.eq_ignore_ascii_case(w.as_bytes()));
        words.iter().any(same)
    };
    has(&["EX", "PX", "EXPIRE", "PEXPIRE", "SETEX", "PSETEX"]) && has(&["1", "1000"])
        // Times that are past: Redis still counts such a key until it collects it.
        || has(&["EXAT", "PXAT"]) && has(&["1", "1000", "100000", "99999999999"])
}

/// Whether a value would become so long that each server has its own word for it.
fn exceeds_a_limit(words: &[Vec<u8>]) -> bool {
    let offset = words.get(2).map(|word| String::from_utf8_lossy(word));
    words[0] == b"SETRANGE" && offset.is_some_and(|offset| offset.len() > "100000".len())
}

#[test]
fn random_commands_get_the_replies_of_redis() {
    let Some(redis) = RedisServer::start() else {
        return;
    };
    let seed = fastrand::u64(..);
    eprintln!("seed {seed}");
    for driver in Driver::ALL {
        RespClient::connect(redis.address).unwrap().call_line("FLUSHALL").unwrap();
        let node = TestNode::start(driver);
        let mut pair = Pair::new(&redis, &node);
        let mut rng = fastrand::Rng::with_seed(seed);
        for _ in 0..RANDOM_COMMANDS {
            let words = random_command(&mut rng);
            if expires_within_the_test(&words) || exceeds_a_limit(&words) {
                continue;
            }
            pair.compare_words(&words.iter().map(Vec::as_slice).collect::<Vec<_>>());
        }
        check_differences(&pair.differences);
    }
}

/// Malformed and odd bytes, each on its own connection, compared up to the close.
#[test]
fn malformed_bytes_get_the_replies_of_redis() {
    let Some(redis) = RedisServer::start() else {
        return;
    };
    let mut cases: Vec<Vec<u8>> = [
        &b"*1\r\n+PING\r\n"[..],
        b"*1\r\n:4\r\nPING\r\n",
        b"*a\r\n",
        b"*\r\n",
        b"*1\r\n$\r\n",
        b"*1\r\n$4PING\r\n",
        b"*1\r\n$04\r\nPING\r\n",
        b"*1\r\n$+4\r\nPING\r\n",
        b"*1\r\n$ 4\r\nPING\r\n",
        b"*01\r\n$4\r\nPING\r\n",
        b"*1\r\n$4\r\nPINGxx*1\r\n$4\r\nPING\r\n",
        b"*1\n$4\nPING\n",
        b"*2\r\n$4\r\nECHO\r\n$0\r\n\r\n",
        b"*1\r\n$0\r\n\r\n",
        b"*-5\r\nPING\r\n",
        b"*1048576\r\n$-9\r\n",
        b"*2147483648\r\n",
        b"*1\r\n$536870912\r\nx",
        b"*1\r\n$536870913\r\nx",
        b"*1\r\n$18446744073709551616\r\n",
        b"PING\nPING\r\nping x\r\n",
        b"  PING  \r\n",
        b"SET k \"a\\x41\\n\\\"b\"\r\nGET k\r\n",
        b"SET k 'it\\'s'\r\nGET k\r\n",
        b"SET k \"open\r\n",
        b"SET k \"a\"b\r\n",
        b"ECHO ''\r\n",
        b"\x01\x02\r\n",
        b"\xff\xfe\r\nPING\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"Host: x\r\n\r\nPING\r\n",
        b"+OK\r\n",
        b"-ERR\r\n",
        b"$4\r\nPING\r\n",
        b"QUIT\r\nPING\r\n",
    ]
    .map(<[u8]>::to_vec)
    .to_vec();
    cases.push([vec![b'x'; 65_000], b"\r\nPING\r\n".to_vec()].concat());
    for driver in Driver::ALL {
        let node = TestNode::start(driver);
        let deviations = Deviations::load();
        let mut pair = Pair { deviations, ..Pair::new(&redis, &node) };
        for case in &cases {
            let ask = |address| {
                let mut client = RespClient::connect(address).unwrap();
                drop(client.send_raw(case));
                drop(client.finish_sending());
                client.read_to_close().unwrap()
            };
            let (expected, found) = (ask(redis.address), ask(node.node.address()));
            pair.note(case, &expected, &found);
        }
        check_differences(&pair.differences);
    }
}
