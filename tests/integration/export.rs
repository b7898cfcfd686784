//! `kadring export` and `kadring import`: nothing is lost on the way, nothing damaged is taken.

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use kadring_tests::node_process::{Driver, NodeOptions, NodeProcess, find_program, run_to_end};
use kadring_tests::resp_client::{Reply, RespClient};

use crate::redis_differential::RedisServer;
use crate::{TestNode, directory, skipped};

const KEY_COUNT: usize = 3_000;
/// 2100-01-01.
const FAR_MS: u64 = 4_102_444_800_000;

fn key(index: usize) -> Vec<u8> {
    format!("key\r\n{index}\0").into_bytes()
}

fn value(index: usize) -> Vec<u8> {
    let len = if index.is_multiple_of(500) { 300_000 } else { index % 700 };
    (0..len).map(|at| u8::try_from((at * 7 + index) % 256).unwrap()).collect()
}

fn expires(index: usize) -> bool {
    index.is_multiple_of(10)
}

/// Fills a node, stops it, and exports it to `keys.export` beside its data.
fn exported() -> (tempfile::TempDir, std::path::PathBuf) {
    let TestNode { node, directory } = TestNode::start(Driver::Uring);
    let mut client = RespClient::connect(node.address()).unwrap();
    for index in 0..KEY_COUNT {
        let (key, value) = (key(index), value(index));
        let mut words = vec![&b"SET"[..], &key, &value];
        let far = FAR_MS.to_string();
        if expires(index) {
            words.extend([&b"PXAT"[..], far.as_bytes()]);
        }
        assert_eq!(client.call(&words).unwrap(), Reply::Simple("OK".into()));
    }
    client.call(&[b"SET", b"deleted", b"x"]).unwrap();
    client.call(&[b"DEL", b"deleted"]).unwrap();
    client.call(&[b"SET", &key(1), b"overwritten"]).unwrap();
    client.call(&[b"SET", &key(1), &value(1)]).unwrap();
    drop(client);
    node.terminate().unwrap();
    let file = directory.path().join("keys.export");
    let output = kadring("export", &directory.path().join("data"), &file);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.starts_with(&format!("exported {KEY_COUNT} keys in ")), "{said}");
    (directory, file)
}

fn kadring(command: &str, data: &Path, file: &Path) -> Output {
    let words = [command, "--data-dir", data.to_str().unwrap(), file.to_str().unwrap()];
    run_to_end(&words, &[]).unwrap()
}

fn check_keys(client: &mut RespClient) {
    assert_eq!(client.call(&[b"DBSIZE"]).unwrap(), Reply::Integer(KEY_COUNT as i64));
    for index in 0..KEY_COUNT {
        let found = client.call(&[b"GET", &key(index)]).unwrap();
        assert_eq!(found.bytes(), Some(&value(index)[..]), "key {index}");
        let ttl = client.call(&[b"PTTL", &key(index)]).unwrap();
        let Reply::Integer(ttl) = ttl else { panic!("{ttl:?}") };
        assert_eq!(ttl > 0, expires(index), "key {index}: {ttl}");
    }
}

#[test]
fn imported_keys_are_those_exported() {
    let (directory, file) = exported();
    let data = directory.path().join("imported");
    // Twice: importing again changes nothing.
    for _ in 0..2 {
        let output = kadring("import", &data, &file);
        assert_eq!(output.status.code(), Some(0), "{output:?}");
    }
    let node = NodeProcess::start(NodeOptions::new(&data, Driver::Pread)).unwrap();
    check_keys(&mut RespClient::connect(node.address()).unwrap());
}

#[test]
fn redis_takes_the_file_as_well() {
    let Some(program) = find_program("redis-cli") else {
        return skipped("export file in Redis", "no redis-cli in PATH");
    };
    let Some(redis) = RedisServer::start() else { return };
    let (_directory, file) = exported();
    let port = redis.address().port().to_string();
    let mut command = Command::new(program);
    let input = Stdio::from(fs::File::open(file).unwrap());
    let output = command.args(["-p", &port, "--pipe"]).stdin(input).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && said.contains("errors: 0"), "{said}");
    check_keys(&mut RespClient::connect(redis.address()).unwrap());
}

#[test]
fn damaged_file_is_refused_as_a_whole() {
    let (directory, file) = exported();
    let data = directory.path().join("imported");
    let sound = fs::read(&file).unwrap();
    let mut flipped = sound.clone();
    flipped[sound.len() / 2] ^= 1;
    for bytes in [&flipped[..], &sound[..sound.len() - 40], b"x", b""] {
        let bad = directory.path().join("bad.export");
        fs::write(&bad, bytes).unwrap();
        let output = kadring("import", &data, &bad);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains("export file") && said.contains("nothing was stored"), "{said}");
        assert_eq!(said.trim().lines().count(), 1, "{said}");
        assert!(!data.exists(), "a data directory was made for a bad file");
    }
}

#[test]
fn export_replaces_no_file_and_needs_the_directory_to_itself() {
    let node = TestNode::start(Driver::Uring);
    let data = node.directory.path().join("data");
    let file = node.directory.path().join("there");
    let output = kadring("export", &data, &file);
    assert_eq!(output.status.code(), Some(4), "{output:?}");
    node.node.terminate().unwrap();
    fs::write(&file, "precious").unwrap();
    let output = kadring("export", &data, &file);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert_eq!(fs::read(&file).unwrap(), b"precious");
    let none = directory();
    let output = kadring("export", &none.path().join("none"), &none.path().join("file"));
    assert_eq!(output.status.code(), Some(5), "{output:?}");
}

#[test]
fn snapshot_of_a_running_node_is_exported() {
    let node = TestNode::start(Driver::Uring);
    let data = node.directory.path().join("data");
    let mut client = node.client();
    for index in 0..KEY_COUNT {
        let (key, value, far) = (key(index), value(index), FAR_MS.to_string());
        let mut words = vec![&b"SET"[..], &key, &value];
        if expires(index) {
            words.extend([&b"PXAT"[..], far.as_bytes()]);
        }
        client.call(&words).unwrap();
    }
    assert_eq!(
        client.call_line("KAD.SNAPSHOT CREATE monday").unwrap().bytes(),
        Some(&b"monday"[..])
    );
    client.call(&[b"SET", b"later", b"x"]).unwrap();
    let file = node.directory.path().join("keys.export");
    let words = ["export", "--data-dir", data.to_str().unwrap(), "--snapshot", "monday"];
    let output = run_to_end(&[&words[..], &[file.to_str().unwrap()]].concat(), &[]).unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let left: Vec<_> = fs::read_dir(data.join("snapshots")).unwrap().collect();
    assert_eq!(left.len(), 1, "{left:?}");
    let verify = ["snapshot", "verify", "monday", "--data-dir", data.to_str().unwrap()];
    assert_eq!(run_to_end(&verify, &[]).unwrap().status.code(), Some(0));
    let imported = node.directory.path().join("imported");
    assert_eq!(kadring("import", &imported, &file).status.code(), Some(0));
    let other = NodeProcess::start(NodeOptions::new(&imported, Driver::Pread)).unwrap();
    check_keys(&mut RespClient::connect(other.address()).unwrap());
    drop(node);
}

#[test]
fn largest_values_and_empty_stores_round_trip() {
    let home = directory();
    let (data, file) = (home.path().join("data"), home.path().join("keys.export"));
    let mut options = NodeOptions::new(&data, Driver::Uring);
    for (name, value) in [("VALUE_BYTES_MAX", "32MiB"), ("INPUT_BYTES_MAX", "64MiB")] {
        options = options.with_variable(&format!("KADRING_{name}"), value);
    }
    NodeProcess::start(options.clone()).unwrap().terminate().unwrap();
    let output = kadring("export", &data, &file);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let output = kadring("import", &home.path().join("empty"), &file);
    let said = String::from_utf8(output.stdout).unwrap();
    assert_eq!(said, "imported 0 keys, left out 0 that have expired\n");
    let largest: Vec<u8> = (0..32 << 20).map(|at: u32| (at % 251) as u8).collect();
    let node = NodeProcess::start(options).unwrap();
    let mut client = RespClient::connect(node.address()).unwrap();
    let reply = client.call(&[b"SET", b"largest", &largest]).unwrap();
    assert_eq!(reply, Reply::Simple("OK".into()));
    client.call(&[b"SET", b"expired", b"x", b"PX", b"1"]).unwrap();
    drop(client);
    node.terminate().unwrap();
    fs::remove_file(&file).unwrap();
    assert_eq!(kadring("export", &data, &file).status.code(), Some(0));
    let imported = home.path().join("imported");
    assert_eq!(kadring("import", &imported, &file).status.code(), Some(0));
    let node = NodeProcess::start(NodeOptions::new(&imported, Driver::Uring)).unwrap();
    let mut client = RespClient::connect(node.address()).unwrap();
    let found = client.call(&[b"GET", b"largest"]).unwrap();
    assert!(found.bytes() == Some(&largest[..]), "the value differs");
    assert_eq!(client.call_line("DBSIZE").unwrap(), Reply::Integer(1));
}
