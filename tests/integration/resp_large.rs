//! Large values at the door: written in pieces beside other writes, and there after a restart.

use std::path::Path;

use kadring_tests::node_process::{Driver, NodeOptions, NodeProcess, run_to_end};
use kadring_tests::resp_client::{Reply, RespClient};

use crate::TestNode;

/// Lets a node take the longest value there is.
const LARGEST: [(&str, &str); 3] = [
    ("KADRING_VALUE_BYTES_MAX", "32MiB"),
    ("KADRING_INPUT_BYTES_MAX", "96MiB"),
    ("KADRING_CACHE_BYTES", "0"),
];
const LARGEST_LEN: usize = 32 << 20;

fn ok() -> Reply {
    Reply::Simple("OK".into())
}

fn value(len: usize, seed: u32) -> Vec<u8> {
    (0u32..)
        .map(|index| (index.wrapping_mul(2_654_435_761) >> 13) as u8 ^ seed as u8)
        .take(len)
        .collect()
}

fn check(client: &mut RespClient, key: &[u8], wanted: &[u8]) {
    let found = client.call(&[b"GET", key]).unwrap();
    assert!(found.bytes() == Some(wanted), "{}", found.brief());
    let len = i64::try_from(wanted.len()).unwrap();
    assert_eq!(client.call(&[b"STRLEN", key]).unwrap(), Reply::Integer(len));
    let part = client.call(&[b"GETRANGE", key, b"262100", b"262200"]).unwrap();
    assert!(part.bytes() == Some(&wanted[262_100..=262_200]), "{}", part.brief());
}

#[test]
fn large_values_are_set_and_changed_and_live_through_restarts() {
    for driver in Driver::ALL {
        let node = TestNode::start_with(driver, &[("KADRING_CACHE_BYTES", "0")]);
        let mut client = node.client();
        let mut values: Vec<Vec<u8>> = Vec::new();
        for (seed, len) in [(1, 300 << 10), (2, 1 << 20), (3, 16 << 20)] {
            let value = value(len, seed);
            let key = format!("large:{seed}");
            assert_eq!(client.call(&[b"SET", key.as_bytes(), &value]).unwrap(), ok());
            assert_eq!(client.call(&[b"SET", b"small", key.as_bytes()]).unwrap(), ok());
            values.push(value);
        }
        assert_eq!(client.call(&[b"SETNX", b"large:1", &values[1]]).unwrap(), Reply::Integer(0));
        assert_eq!(client.call(&[b"SETNX", b"large:4", &values[0]]).unwrap(), Reply::Integer(1));
        // Later commands of a connection come after what it has asked before.
        client.send(&[b"SET", b"large:5", &values[0]]).unwrap();
        client.send(&[b"APPEND", b"large:5", b"tail"]).unwrap();
        client.send(&[b"DEL", b"large:4"]).unwrap();
        assert_eq!(client.read_reply().unwrap(), ok());
        assert_eq!(client.read_reply().unwrap(), Reply::Integer((300 << 10) + 4));
        assert_eq!(client.read_reply().unwrap(), Reply::Integer(1));
        values[1][500_000..500_003].copy_from_slice(b"abc");
        let changed = client.call(&[b"SETRANGE", b"large:2", b"500000", b"abc"]).unwrap();
        assert_eq!(changed, Reply::Integer(1 << 20));
        let node = node.terminate_and_restart();
        let mut client = node.client();
        values.push([values[0].as_slice(), b"tail"].concat());
        let keys: [&[u8]; 4] = [b"large:1", b"large:2", b"large:3", b"large:5"];
        for (key, value) in keys.into_iter().zip(&values) {
            check(&mut client, key, value);
        }
        let appended = client.call(&[b"APPEND", b"large:1", b"more"]).unwrap();
        assert_eq!(appended, Reply::Integer((300 << 10) + 4));
        values[0].extend_from_slice(b"more");
        assert_eq!(client.call(&[b"EXPIRE", b"large:2", b"1000"]).unwrap(), Reply::Integer(1));
        let node = node.crash_and_restart();
        let mut client = node.client();
        for (key, value) in keys.into_iter().zip(&values) {
            check(&mut client, key, value);
        }
        assert_eq!(client.call(&[b"GET", b"small"]).unwrap().bytes(), Some(&b"large:3"[..]));
        assert_eq!(client.call(&[b"EXISTS", b"large:4"]).unwrap(), Reply::Integer(0));
    }
}

/// Runs a command to its end on a data directory.
#[track_caller]
fn kadring(command: &[&str], data: &Path, rest: &[&Path]) {
    let paths: Vec<&str> = rest.iter().map(|path| path.to_str().unwrap()).collect();
    let words = [command, &["--data-dir", data.to_str().unwrap()], &paths].concat();
    let output = run_to_end(&words, &[]).unwrap();
    assert_eq!(output.status.code(), Some(0), "{words:?}: {output:?}");
}

/// Starts a node on a directory that a command has made, and looks at the value.
fn check_in(data: &Path, wanted: &[u8]) {
    kadring(&["check"], data, &[]);
    let node = NodeProcess::start(NodeOptions::new(data, Driver::Uring)).unwrap();
    check(&mut RespClient::connect(node.address()).unwrap(), b"largest", wanted);
    let (status, _) = node.terminate().unwrap();
    assert_eq!(status.code(), Some(0));
}

#[test]
fn largest_value_is_kept_by_snapshots_exports_and_restarts() {
    let node = TestNode::start_with(Driver::Uring, &LARGEST);
    let mut client = node.client();
    let (first, second) = (value(LARGEST_LEN, 1), value(LARGEST_LEN, 2));
    assert_eq!(client.call(&[b"SET", b"largest", &first]).unwrap(), ok());
    check(&mut client, b"largest", &first);
    let longer = vec![1; LARGEST_LEN + 1];
    let refused = client.call(&[b"SET", b"largest", &longer]).unwrap();
    assert!(matches!(refused, Reply::Error(_)), "{}", refused.brief());
    let refused = node.client().call(&[b"APPEND", b"largest", b"x"]).unwrap();
    assert!(matches!(refused, Reply::Error(_)), "{}", refused.brief());
    let mut client = node.client();
    check(&mut client, b"largest", &first);
    let taken = client.call_line("KAD.SNAPSHOT CREATE monday").unwrap();
    assert_eq!(taken.bytes(), Some(&b"monday"[..]));
    assert_eq!(client.call(&[b"SET", b"largest", &second]).unwrap(), ok());
    let node = node.crash_and_restart();
    check(&mut node.client(), b"largest", &second);

    let TestNode { node, directory } = node;
    node.terminate().unwrap();
    let path = |name: &str| directory.path().join(name);
    let (data, restored) = (path("data"), path("restored"));
    kadring(&["check"], &data, &[]);
    kadring(&["snapshot", "verify", "monday"], &data, &[]);
    kadring(&["snapshot", "restore", "monday"], &data, &[Path::new("--to"), &restored]);
    check_in(&restored, &first);
    for (words, name, wanted) in
        [(&["export"][..], "now", &second), (&["export", "--snapshot", "monday"], "then", &first)]
    {
        let (file, imported) = (path(name), path(&format!("imported {name}")));
        kadring(words, &data, &[&file]);
        kadring(&["import"], &imported, &[&file]);
        check_in(&imported, wanted);
    }
}
