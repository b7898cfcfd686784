//! Nodes of a private cluster as real processes on loopback: what clients see of it, and who may
//! join.

use std::io;
use std::path::Path;

use kadring_tests::node_process::{Driver, NodeOptions, StartingNode};
use kadring_tests::resp_client::{Reply, RespClient};

use crate::cluster_rig::{Cluster, DEADLINE, rows, wait_until_serving};
use crate::directory;

const EXIT_USAGE: i32 = 2;

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
