//! Real input: every file of a source tree under its path, through two SIGKILLs.
//!
//! The tree is the Rust toolchain's own (documentation, libraries, sources), topped up from
//! cargo's registry. Eight connections store it; the node is killed in the middle and again at the
//! end; then every acknowledged file is read back and its SHA-1 compared.

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::fs;
use std::net::SocketAddr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex};
use std::thread;

use kadring_tests::node_process::Driver;
use kadring_tests::resp_client::{Reply, RespClient};
use sha1::{Digest, Sha1};

use crate::TestNode;

const FILE_BYTES_MAX: u64 = 8 << 20;
const CONNECTIONS: usize = 8;

type Digests = BTreeMap<PathBuf, [u8; 20]>;

/// How much of the tree is taken.
struct Share {
    files: usize,
    bytes: u64,
}

fn roots() -> Vec<PathBuf> {
    let output = Command::new("rustc").args(["--print", "sysroot"]).output().unwrap();
    let sysroot = PathBuf::from(String::from_utf8(output.stdout).unwrap().trim());
    let home = env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
    let cargo = env::var_os("CARGO_HOME").map_or_else(|| home.join(".cargo"), PathBuf::from);
    let toolchain = ["share/doc", "lib/rustlib", "lib", "etc", "share/man"];
    let mut roots: Vec<PathBuf> = toolchain.iter().map(|name| sysroot.join(name)).collect();
    roots.push(cargo.join("registry/src"));
    roots
}

/// Lists files, roots in turn so that each gives small and large ones, up to the share.
fn tree(share: &Share) -> Vec<PathBuf> {
    let mut files = BTreeSet::new();
    let mut bytes = 0;
    for root in roots() {
        // No root may use up what is left, so that every kind of file is in it.
        let files_max = files.len() + (share.files - files.len()).div_ceil(2);
        let bytes_max = bytes + (share.bytes - bytes) / 2;
        let mut pending = vec![root];
        while let Some(directory) = pending.pop() {
            let Ok(entries) = fs::read_dir(&directory) else {
                continue;
            };
            let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
            paths.sort();
            for path in paths {
                let metadata = fs::symlink_metadata(&path).unwrap();
                if metadata.is_dir() {
                    pending.push(path);
                } else if metadata.is_file()
                    && metadata.len() <= FILE_BYTES_MAX
                    && bytes + metadata.len() <= bytes_max
                    && files.len() < files_max
                    && files.insert(path)
                {
                    bytes += metadata.len();
                }
            }
        }
    }
    files.into_iter().collect()
}

fn store(
    address: SocketAddr,
    files: &[PathBuf],
    next: &AtomicUsize,
    stored: &(Mutex<Digests>, Condvar),
) {
    let Ok(mut client) = RespClient::connect(address) else {
        return;
    };
    while let Some(path) = files.get(next.fetch_add(1, Ordering::Relaxed)) {
        let content = fs::read(path).unwrap();
        match client.call(&[b"SET", path.as_os_str().as_bytes(), &content]) {
            Ok(Reply::Simple(text)) if text == "OK" => {
                let digest = Sha1::digest(&content).into();
                stored.0.lock().unwrap().insert(path.clone(), digest);
                stored.1.notify_all();
            }
            Ok(reply) => panic!("SET {}: {}", path.display(), reply.brief()),
            // The node was killed: this file is not acknowledged.
            Err(_) => return,
        }
    }
}

/// Stores `files`; once `kill_after` of them are acknowledged, kills and restarts the node.
fn store_and_kill(
    node: TestNode,
    files: &[PathBuf],
    kill_after: usize,
    stored: &(Mutex<Digests>, Condvar),
) -> TestNode {
    let next = AtomicUsize::new(0);
    let address = node.node.address();
    let goal = stored.0.lock().unwrap().len() + kill_after;
    thread::scope(|scope| {
        let writers: Vec<_> = (0..CONNECTIONS)
            .map(|_| scope.spawn(|| store(address, files, &next, stored)))
            .collect();
        let patience = std::time::Duration::from_secs(120);
        let digests = stored.0.lock().unwrap();
        let (digests, timeout) =
            stored.1.wait_timeout_while(digests, patience, |digests| digests.len() < goal).unwrap();
        assert!(!timeout.timed_out(), "{} of {goal} files acknowledged", digests.len());
        drop(digests);
        let node = node.crash_and_restart();
        for writer in writers {
            writer.join().unwrap();
        }
        node
    })
}

fn read_back(node: &TestNode, stored: &Digests) {
    let address = node.node.address();
    let all: Vec<_> = stored.iter().collect();
    thread::scope(|scope| {
        for part in all.chunks(all.len().div_ceil(CONNECTIONS)) {
            scope.spawn(move || {
                let mut client = RespClient::connect(address).unwrap();
                for (path, digest) in part {
                    let reply = client.call(&[b"GET", path.as_os_str().as_bytes()]).unwrap();
                    let Reply::Bulk(content) = reply else {
                        panic!("GET {}: {}", path.display(), reply.brief());
                    };
                    let found: [u8; 20] = Sha1::digest(&content).into();
                    assert_eq!(found, **digest, "{} came back different", path.display());
                }
            });
        }
    });
}

fn check(driver: Driver, share: &Share) {
    let files = tree(share);
    let bytes: u64 = files.iter().map(|path| fs::metadata(path).unwrap().len()).sum();
    eprintln!("{} files, {bytes} bytes over {driver}", files.len());
    assert!(files.len() > share.files / 4 && files.iter().all(|path| Path::is_absolute(path)));
    let stored = (Mutex::new(Digests::new()), Condvar::new());
    let node = TestNode::start(driver);
    let node = store_and_kill(node, &files, files.len() / 2, &stored);
    read_back(&node, &stored.0.lock().unwrap());
    let acknowledged = stored.0.lock().unwrap().clone();
    let rest: Vec<PathBuf> =
        files.iter().filter(|path| !acknowledged.contains_key(*path)).cloned().collect();
    let node = store_and_kill(node, &rest, rest.len(), &stored);
    let stored = stored.0.into_inner().unwrap();
    assert_eq!(stored.len(), files.len());
    read_back(&node, &stored);
    let size = node.client().call(&[b"DBSIZE"]).unwrap();
    assert_eq!(size, Reply::Integer(i64::try_from(files.len()).unwrap()));
}

#[test]
fn file_tree_survives_two_sigkills_on_uring() {
    check(Driver::Uring, &Share { files: 4_000, bytes: 300 << 20 });
}

#[test]
fn file_tree_survives_two_sigkills_on_pread() {
    check(Driver::Pread, &Share { files: 1_000, bytes: 50 << 20 });
}
