//! libtorrent and our nodes of BitTorrent's DHT: it as client, it as server, and both clients of
//! the mainline crate's. Skipped where its Python package is not installed.
//!
//! All settings are libtorrent's own, which shape the tests: it takes one node of a network of 256
//! addresses, and no more than about 50 datagrams in 10 s from one of them. So every node of ours
//! has a network of its own, and each subject a session of its own.

#![expect(deprecated, reason = "the crate's blocking calls need no runtime in these tests")]

use std::ffi::OsString;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use kadring::mainline::item::SigningKey;
use kadring::mainline::text;
use kadring_tests::conformance::all;
use kadring_tests::conformance::udp_node::{UdpNode, Verdict};
use kadring_tests::node_process::find_program;
use mainline::Dht;
use serde_json::{Value, json};

use crate::mainline_net::{Network, figure, kadring, peer, wait_until};
use crate::{directory, skipped};

/// A session of libtorrent in a process of its own.
struct Session {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
}

impl Session {
    /// Starts one, and waits until it has found the network.
    fn start(python: &OsString, listen: &str, bootstrap: &[String]) -> (Self, u64) {
        Self::start_with(python, listen, bootstrap, &json!({}))
    }

    /// The same with other settings than libtorrent's own.
    fn start_with(
        python: &OsString,
        listen: &str,
        bootstrap: &[String],
        settings: &Value,
    ) -> (Self, u64) {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/integration/python/mainline.py");
        let mut child = Command::new(python)
            .args([script, listen, &bootstrap.join(","), &settings.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdin = child.stdin.take();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let mut session = Self { child, stdin, stdout };
        let port = session.ask("bootstrap", json!([]))["port"].as_u64().unwrap();
        (session, port)
    }

    #[track_caller]
    fn ask(&mut self, name: &str, arguments: Value) -> Value {
        let stdin = self.stdin.as_mut().unwrap();
        writeln!(stdin, "{}", json!([name, arguments])).unwrap();
        stdin.flush().unwrap();
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        let answer: Value = serde_json::from_str(&line).unwrap();
        assert!(answer.get("error").is_none(), "{name}: {answer}");
        answer
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // It ends with its stdin; whatever happens, it does not stay.
        drop(self.stdin.take());
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// The Python that has libtorrent, or a loud word that there is none.
fn python(what: &str) -> Option<OsString> {
    let program = std::env::var_os("KADRING_TEST_PYTHON").map(PathBuf::from);
    let Some(program) = program.or_else(|| find_program("python3")) else {
        skipped(what, "no python3 in PATH");
        return None;
    };
    let probe = Command::new(&program).args(["-c", "import libtorrent"]).output().unwrap();
    if !probe.status.success() {
        skipped(what, "the Python package `libtorrent` is not installed");
        return None;
    }
    Some(program.into())
}

#[test]
fn libtorrent_stores_and_finds_items_through_our_nodes() {
    let Some(python) = python("libtorrent as client: items") else { return };
    let network = Network::start(3);
    let (mut session, _) = Session::start(&python, "127.9.0.1:0", &network.peers());
    let put = session.ask("put_immutable", json!(["hello world"]));
    // It counts the node that it has started from twice.
    assert!(put["stored"].as_u64() >= Some(3), "{put}");
    let got = session.ask("get_immutable", json!([put["target"]]));
    assert_eq!(got["value"], "hello world");

    let (seed, salt) = ([3; 32], "a salt");
    let public = text::hex(&SigningKey::from_seed(&seed).public());
    for (seq, value) in [(1, "one"), (2, "two")] {
        let arguments = json!([text::hex(&seed), public, value, salt]);
        let put = session.ask("put_mutable", arguments);
        assert!(put["stored"].as_u64() >= Some(3), "{put}");
        assert_eq!(put["seq"], seq, "it reads first, and goes on from there");
    }
    let got = session.ask("get_mutable", json!([public, salt]));
    assert_eq!((&got["value"], &got["seq"]), (&json!("two"), &json!(2)));
    let target = put["target"].as_str().unwrap();
    assert_eq!(kadring(&network.nodes[1], &["get", target]).unwrap(), "hello world");
    let found = kadring(&network.nodes[1], &["get", &public, "--salt", salt]).unwrap();
    assert_eq!(found, "two");
}

#[test]
fn libtorrent_announces_and_finds_peers_through_our_nodes() {
    let Some(python) = python("libtorrent as client: peers") else { return };
    let network = Network::start(3);
    let info_hash = "ab".repeat(20);
    let (mut session, _) = Session::start(&python, "127.9.0.1:0", &network.peers());
    session.ask("announce", json!([info_hash, 7_777]));
    wait_until("the peer is known", || {
        kadring(&network.nodes[0], &["get-peers", &info_hash]) == Ok("127.9.0.1:7777\n".to_owned())
    });
    let got = session.ask("get_peers", json!([info_hash]));
    assert_eq!(got["peers"], json!(["127.9.0.1:7777"]));
    let sample = session.ask("sample", json!([peer(&network.nodes[0]).to_string(), info_hash]));
    assert_eq!(sample, json!({"samples": [info_hash], "num": 1}));
}

#[test]
fn our_node_stores_and_finds_at_libtorrent() {
    let Some(python) = python("libtorrent as server") else { return };
    let network = Network::start(1);
    let node = &network.nodes[0];
    let addresses = ["127.8.0.1:0", "127.9.0.1:0"];
    let mut sessions = addresses.map(|listen| Session::start(&python, listen, &network.peers()).0);
    wait_until("libtorrent is in the table", || figure(node, "table_nodes_ipv4") >= 2.0);

    let target = kadring(node, &["put", "for libtorrent"]).unwrap();
    let got = sessions[0].ask("get_immutable", json!([target.trim()]));
    assert_eq!(got["value"], "for libtorrent");
    assert_eq!(kadring(node, &["get", target.trim()]).unwrap(), "for libtorrent");

    let directory = directory();
    let file = directory.path().join("key");
    std::fs::write(&file, format!("{}\n", text::hex(&[4; 32]))).unwrap();
    std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let public = text::hex(&SigningKey::from_seed(&[4; 32]).public());
    let put = |value: &str| {
        let words = ["put-mutable", "--key-file", file.to_str().unwrap(), "--salt", "s", value];
        kadring(node, &words).unwrap();
    };
    put("one");
    put("two");
    let got = sessions[1].ask("get_mutable", json!([public, "s"]));
    assert_eq!((&got["value"], &got["seq"]), (&json!("two"), &json!(2)));
    assert_eq!(kadring(node, &["get", &public, "--salt", "s"]).unwrap(), "two");

    let info_hash = "cd".repeat(20);
    kadring(node, &["announce", &info_hash, "--port", "7002"]).unwrap();
    let found = kadring(node, &["get-peers", &info_hash]).unwrap();
    assert_eq!(found, "127.1.0.1:7002\n");
}

/// The cases allow what libtorrent does: they are no rules of our own making.
#[test]
fn libtorrent_passes_the_conformance_cases() {
    let Some(python) = python("libtorrent and the conformance cases") else { return };
    let network = Network::start(1);
    // Its limit is 8,000 bytes a second: replies beyond it are dropped.
    let settings = json!({"dht_upload_rate_limit": 10_000_000});
    let (_session, port) = Session::start_with(&python, "127.9.0.1:0", &network.peers(), &settings);
    let address = format!("127.9.0.1:{port}").parse().unwrap();
    let mut node = UdpNode::new(address, Duration::from_secs(2));
    let (mut others, mut failures) = (0, Vec::new());
    for case in all().unwrap() {
        match node.judge(&case) {
            Verdict::Ours => {}
            Verdict::Other => others += 1,
            Verdict::Failed(failure) => failures.push(format!("{failure:?} ({})", case.why)),
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    assert!(others > 0, "it is libtorrent, not ours");
}

/// What works nowhere else: libtorrent writes, the mainline crate reads, only our nodes store, and
/// all of them are killed in between.
#[test]
fn items_of_libtorrent_are_read_by_the_mainline_crate_after_all_nodes_were_killed() {
    let Some(python) = python("libtorrent and the mainline crate together") else { return };
    let network = Network::start(3);
    let (seed, salt) = ([6; 32], "shared");
    let public = SigningKey::from_seed(&seed).public();
    let (mut session, _) = Session::start(&python, "127.9.0.1:0", &network.peers());
    let put = session.ask("put_immutable", json!(["written by libtorrent"]));
    let arguments = json!([text::hex(&seed), text::hex(&public), "signed by libtorrent", salt]);
    session.ask("put_mutable", arguments);
    drop(session);

    let read = |network: &Network| {
        let dht = Dht::builder()
            .bootstrap(&network.peers())
            .bind_address(Ipv4Addr::LOCALHOST)
            .port(0)
            .build()
            .unwrap();
        let target = put["target"].as_str().unwrap().parse().unwrap();
        let value = dht.get_immutable(target);
        assert_eq!(value.as_deref(), Some(&b"written by libtorrent"[..]));
        let item = dht.get_mutable_most_recent(&public, Some(salt.as_bytes())).unwrap();
        assert_eq!((item.seq(), item.value()), (1, &b"signed by libtorrent"[..]));
    };
    read(&network);
    let network = network.kill_and_restart();
    read(&network);
}
