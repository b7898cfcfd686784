//! Snapshots of a running node: the cut is kept, damage is found, nothing later changes one.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread;

use kadring_tests::node_process::{Driver, NodeOptions, NodeProcess, binary, run_to_end};
use kadring_tests::resp_client::{Reply, RespClient};

use crate::{TestNode, directory};

const WRITERS: usize = 4;
const KEYS_PER_WRITER: usize = 40;
/// Acknowledged writes of a writer before the snapshot, and again after it.
const WRITES: u64 = 400;

fn kadring(words: &[&str]) -> Output {
    run_to_end(words, &[]).unwrap()
}

fn snapshot(words: &[&str], data: &Path) -> Output {
    kadring(&[&["snapshot"], words, &["--data-dir", data.to_str().unwrap()]].concat())
}

/// What a command says that must end well.
#[track_caller]
fn well(output: Output) -> String {
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[track_caller]
fn verify(id: &str, data: &Path) {
    well(snapshot(&["verify", id], data));
}

#[track_caller]
fn restore(id: &str, data: &Path, to: &Path) {
    well(snapshot(&["restore", id, "--to", to.to_str().unwrap()], data));
}

#[track_caller]
fn check(data: &Path) {
    well(kadring(&["check", "--data-dir", data.to_str().unwrap()]));
}

/// The snapshots that `kadring snapshot list` shows.
fn listed(data: &Path) -> Vec<String> {
    let listed = well(snapshot(&["list"], data));
    listed.lines().filter_map(|line| line.split(' ').next()).map(str::to_owned).collect()
}

#[track_caller]
fn set(client: &mut RespClient, key: &str, value: &[u8]) {
    let reply = client.call(&[b"SET", key.as_bytes(), value]).unwrap();
    assert_eq!(reply, Reply::Simple("OK".into()));
}

/// Sets the keys "0", "1", ... to the same value.
fn fill(client: &mut RespClient, count: usize, value: &[u8]) {
    (0..count).for_each(|index| set(client, &index.to_string(), value));
}

fn start(data: &Path, driver: Driver, shards: u16) -> NodeProcess {
    let options = NodeOptions { shards, ..NodeOptions::new(data, driver) };
    NodeProcess::start(options).unwrap()
}

fn data_of(node: &TestNode) -> PathBuf {
    node.directory.path().join("data")
}

fn call(client: &mut RespClient, line: &str) -> String {
    match client.call_line(line).unwrap() {
        Reply::Error(text) => text,
        reply => String::from_utf8(reply.bytes().unwrap().to_owned()).unwrap(),
    }
}

/// The versions of a writer's keys: version v went to key v modulo [`KEYS_PER_WRITER`].
#[derive(Default)]
struct Ledger {
    sent: AtomicU64,
    acknowledged: AtomicU64,
}

fn key(writer: usize, version: u64) -> String {
    format!("{writer}:{}", version % KEYS_PER_WRITER as u64)
}

fn value(version: u64) -> Vec<u8> {
    let mut value = format!("{version} ").into_bytes();
    value.resize(value.len() + usize::try_from(version * 37 % 3_000).unwrap(), b'x');
    value
}

/// Writes version after version until the node is gone; tells each time [`WRITES`] more are done.
fn write(writer: usize, client: &mut RespClient, ledger: &Ledger, told: &mpsc::Sender<()>) {
    for version in 1.. {
        ledger.sent.store(version, Ordering::SeqCst);
        let reply = client.call(&[b"SET", key(writer, version).as_bytes(), &value(version)]);
        if reply.ok() != Some(Reply::Simple("OK".into())) {
            return;
        }
        ledger.acknowledged.store(version, Ordering::SeqCst);
        if version % WRITES == 0 && told.send(()).is_err() {
            return;
        }
    }
}

/// Takes a snapshot while writers are at it, kills the node some writes later. Returns for each
/// writer what was acknowledged before the command, and what was sent before its reply.
fn snapshot_under_load(node: NodeProcess) -> Vec<(u64, u64)> {
    let ledgers: Vec<Ledger> = (0..WRITERS).map(|_| Ledger::default()).collect();
    let address = node.address();
    let mut bounds = Vec::new();
    thread::scope(|scope| {
        let mut progress = Vec::new();
        for (writer, ledger) in ledgers.iter().enumerate() {
            let (tell, told) = mpsc::channel();
            progress.push(told);
            scope.spawn(move || {
                write(writer, &mut RespClient::connect(address).unwrap(), ledger, &tell);
            });
        }
        progress.iter().for_each(|told| told.recv().unwrap());
        let mut client = RespClient::connect(address).unwrap();
        let load = |count: &AtomicU64| count.load(Ordering::SeqCst);
        let before: Vec<u64> = ledgers.iter().map(|ledger| load(&ledger.acknowledged)).collect();
        assert_eq!(call(&mut client, "KAD.SNAPSHOT CREATE monday"), "monday");
        let after: Vec<u64> = ledgers.iter().map(|ledger| load(&ledger.sent)).collect();
        bounds.extend(before.into_iter().zip(after));
        progress.iter().for_each(|told| told.recv().unwrap());
        node.kill9().unwrap();
    });
    bounds
}

/// What a writer's keys hold, newest version first.
fn versions(client: &mut RespClient, writer: usize) -> Vec<u64> {
    let mut found = Vec::new();
    for index in 0..KEYS_PER_WRITER {
        let reply = client.call(&[b"GET", format!("{writer}:{index}").as_bytes()]).unwrap();
        let Some(bytes) = reply.bytes() else { continue };
        let text = String::from_utf8(bytes.to_owned()).unwrap();
        let version: u64 = text.split(' ').next().unwrap().parse().unwrap();
        assert_eq!(bytes, value(version));
        assert_eq!(version % KEYS_PER_WRITER as u64, index as u64);
        found.push(version);
    }
    found.sort_unstable_by(|a, b| b.cmp(a));
    found
}

fn check_cut(driver: Driver, shards: u16) {
    let home = directory();
    let (data, restored) = (home.path().join("data"), home.path().join("restored"));
    let bounds = snapshot_under_load(start(&data, driver, shards));
    verify("monday", &data);
    restore("monday", &data, &restored);
    check(&restored);
    let node = start(&restored, driver, shards);
    let mut client = RespClient::connect(node.address()).unwrap();
    for (writer, (acknowledged, sent)) in bounds.into_iter().enumerate() {
        let found = versions(&mut client, writer);
        for version in acknowledged.saturating_sub(KEYS_PER_WRITER as u64) + 1..=acknowledged {
            let same_key =
                |v: &&u64| **v % KEYS_PER_WRITER as u64 == version % KEYS_PER_WRITER as u64;
            let held = found.iter().find(same_key).copied().unwrap_or(0);
            assert!(held >= version, "{writer}: {held} where {version} was acknowledged");
        }
        assert!(found[0] <= sent, "{writer}: {} after the cut, {sent} were sent", found[0]);
        if shards == 1 {
            // One log: what is there is exactly what a prefix of the writes leaves.
            let oldest = found[0].saturating_sub(KEYS_PER_WRITER as u64) + 1;
            assert_eq!(found, (oldest..=found[0]).rev().collect::<Vec<u64>>(), "{writer}");
        }
    }
    drop(node);
    // The node itself goes on from what it had, and its snapshots stay.
    let node = start(&data, driver, shards);
    let mut client = RespClient::connect(node.address()).unwrap();
    assert_eq!(call(&mut client, "KAD.SNAPSHOT CREATE tuesday"), "tuesday");
    let taken = call(&mut client, "KAD.SNAPSHOT CREATE tuesday");
    assert_eq!(taken, "ERR there is a snapshot tuesday already");
    drop(node);
    // Segments from before the restart were not summed as they were written.
    verify("tuesday", &data);
    assert_eq!(listed(&data), ["monday", "tuesday"]);
}

#[test]
fn snapshot_under_load_is_the_cut_on_uring() {
    check_cut(Driver::Uring, 2);
}

#[test]
fn snapshot_under_load_is_the_cut_on_tokio_uring() {
    check_cut(Driver::TokioUring, 1);
}

#[test]
fn snapshot_under_load_is_the_cut_on_pread() {
    check_cut(Driver::Pread, 1);
}

/// The segments of a snapshot or data directory's first shard.
fn segments(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory.join("shard-00")).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    let mut found: Vec<PathBuf> =
        paths.filter(|path| path.extension().is_some_and(|suffix| suffix == "segment")).collect();
    found.sort();
    found
}

/// All files below a directory, with their names in it.
fn files_below(directory: &Path) -> Vec<(String, PathBuf)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if path.is_dir() {
            let below = files_below(&path).into_iter();
            found.extend(below.map(|(below, path)| (format!("{name}/{below}"), path)));
        } else {
            found.push((name, path));
        }
    }
    found.sort();
    found
}

/// Flips a byte of a file, calls `check`, and flips it back.
fn with_flip(path: &Path, at: usize, check: impl FnOnce()) {
    let flip = || {
        let mut bytes = fs::read(path).unwrap();
        bytes[at] ^= 1;
        fs::write(path, bytes).unwrap();
    };
    flip();
    check();
    flip();
}

#[test]
fn flip_in_any_kind_of_file_is_found_and_not_restored() {
    let node = TestNode::start(Driver::Uring);
    let data = data_of(&node);
    let mut client = node.client();
    fill(&mut client, 50, &[7; 10_000]);
    assert_eq!(call(&mut client, "KAD.SNAPSHOT CREATE monday"), "monday");
    node.node.terminate().unwrap();
    let copies = node.directory.path().join("copied");
    well(snapshot(&["copy", "monday", "--to", copies.to_str().unwrap()], &data));
    let from = ["--from", copies.to_str().unwrap()];
    let to = node.directory.path().join("restored");
    let expect = |code: i32, words: &[&str]| {
        let output = kadring(&[&["snapshot"], words, &from[..]].concat());
        assert_eq!(output.status.code(), Some(code), "{words:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    expect(0, &["verify", "monday"]);
    let (mut kinds, files) = (Vec::new(), files_below(&copies.join("monday")));
    for (name, path) in files {
        let len = fs::metadata(&path).unwrap().len();
        let len = usize::try_from(len).unwrap();
        // The first block, the first frame, the last byte of the footer.
        let places = match path.extension().and_then(|suffix| suffix.to_str()) {
            Some("segment") => vec![20, 5_000, len - 1],
            _ => vec![20],
        };
        kinds.push(
            path.extension().map_or("manifest", |suffix| suffix.to_str().unwrap()).to_owned(),
        );
        for at in places {
            with_flip(&path, at, || {
                let said = expect(7, &["verify", "monday"]);
                assert!(name == "catalog.toml" || said.contains(&name), "{name} {at}: {said}");
                expect(7, &["restore", "monday", "--to", to.to_str().unwrap()]);
                assert!(!to.exists(), "{name} {at}");
            });
        }
    }
    kinds.sort();
    kinds.dedup();
    assert_eq!(kinds, ["manifest", "segment", "toml"]);
    expect(0, &["verify", "monday"]);
    verify("monday", &data);
}

#[test]
fn damaged_snapshot_is_restored_as_far_as_it_goes_if_asked_to() {
    let node = TestNode::start(Driver::Uring);
    let data = data_of(&node);
    let mut client = node.client();
    fill(&mut client, 50, &[7; 10_000]);
    assert_eq!(call(&mut client, "KAD.SNAPSHOT CREATE monday"), "monday");
    node.node.terminate().unwrap();
    let path = segments(&data.join("snapshots/monday")).remove(0);
    let to = node.directory.path().join("restored");
    let words = ["restore", "monday", "--damaged", "--to", to.to_str().unwrap()];
    with_flip(&path, 10_000, || {
        let output = snapshot(&words, &data);
        assert_eq!(output.status.code(), Some(7), "{output:?}");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.contains("kadring check --data-dir"), "{said}");
    });
    let node = start(&to, Driver::Uring, 2);
    let mut client = RespClient::connect(node.address()).unwrap();
    let mut damaged = 0;
    for index in 0..50 {
        let reply = client.call(&[b"GET", format!("{index}").as_bytes()]).unwrap();
        match reply {
            Reply::Error(text) => {
                assert!(text.starts_with("DAMAGED"), "{text}");
                damaged += 1;
            }
            reply => assert_eq!(reply.bytes(), Some(&[7; 10_000][..]), "{index}"),
        }
    }
    assert_eq!(damaged, 1);
}

/// Starts a command whose end nobody waits for.
fn spawn(words: &[&str]) -> Child {
    let mut command = Command::new(binary());
    command.args(words).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().unwrap()
}

/// Kills `words` once it has made `count` files below `directory`, or lets it end before.
fn kill_after(words: &[&str], directory: &Path, count: usize) {
    let mut child = spawn(words);
    let made = || if directory.exists() { files_made(directory) } else { 0 };
    while child.try_wait().unwrap().is_none() {
        if made() >= count {
            child.kill().unwrap();
        }
        thread::yield_now();
    }
}

/// Files below a directory that may go at any moment.
fn files_made(directory: &Path) -> usize {
    let Ok(entries) = fs::read_dir(directory) else { return 0 };
    let paths = entries.flatten().map(|entry| entry.path());
    paths.map(|path| if path.is_dir() { files_made(&path) } else { 1 }).sum()
}

#[test]
fn copies_and_restores_that_are_killed_go_on_when_asked_again() {
    let node = TestNode::start(Driver::Uring);
    let data = data_of(&node);
    let mut client = node.client();
    fill(&mut client, 2_000, &[1; 20_000]);
    assert_eq!(call(&mut client, "KAD.SNAPSHOT CREATE monday"), "monday");
    let (home, from) = (node.directory.path(), data.to_str().unwrap());
    for (verb, place, to) in
        [("copy", ".monday.unfinished", "copies"), ("restore", ".data.unfinished", "restored/data")]
    {
        let to = home.join(to);
        let unfinished = if verb == "copy" { to.join(place) } else { to.with_file_name(place) };
        let whole = if verb == "copy" { to.join("monday") } else { to.clone() };
        let to = to.to_str().unwrap().to_owned();
        let words = ["snapshot", verb, "monday", "--data-dir", from, "--to", &to];
        for count in [0, 1, 3, 5] {
            if whole.exists() {
                break;
            }
            kill_after(&words, &unfinished, count);
        }
        if !whole.exists() {
            well(kadring(&words));
        }
        assert!(!unfinished.exists());
        let files = files_below(&data.join("snapshots/monday"));
        let names: Vec<&str> = files.iter().map(|(name, _)| name.as_str()).collect();
        let found = files_below(&whole);
        let found: Vec<&str> = found.iter().map(|(name, _)| name.as_str()).collect();
        match verb {
            "copy" => assert_eq!(found, names),
            _ => assert_eq!(found, names[1..], "all but the catalog"),
        }
    }
    let copies = home.join("copies");
    well(kadring(&["snapshot", "verify", "monday", "--from", copies.to_str().unwrap()]));
    let restored = home.join("restored/data");
    check(&restored);
    let node = start(&restored, Driver::Uring, 2);
    let mut client = RespClient::connect(node.address()).unwrap();
    assert_eq!(client.call_line("DBSIZE").unwrap(), Reply::Integer(2_000));
}

#[test]
fn node_killed_while_it_takes_snapshots_leaves_whole_ones_alone() {
    let home = directory();
    let data = home.path().join("data");
    let mut last = None;
    for (round, writes) in [3_usize, 20, 45, 90].into_iter().enumerate() {
        let node = start(&data, Driver::Uring, 2);
        let address = node.address();
        let mut client = RespClient::connect(address).unwrap();
        let first = client.call_line(&format!("KAD.SNAPSHOT CREATE {round}-first")).unwrap();
        assert!(!matches!(first, Reply::Error(_)), "{}", first.brief());
        thread::scope(|scope| {
            scope.spawn(move || {
                let mut client = RespClient::connect(address).unwrap();
                for number in 0.. {
                    let line = format!("KAD.SNAPSHOT CREATE {round}-{number}");
                    if client.call_line(&line).is_err() {
                        return;
                    }
                }
            });
            for index in 0..writes {
                set(&mut client, &format!("{round}:{index}"), &[3; 5_000]);
            }
            node.kill9().unwrap();
        });
        for id in listed(&data) {
            verify(&id, &data);
            last = Some(id);
        }
    }
    let node = start(&data, Driver::Uring, 2);
    let left = fs::read_dir(data.join("snapshots")).unwrap();
    let left: Vec<String> =
        left.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    assert!(!left.iter().any(|name| name.starts_with('.')), "{left:?}");
    let restored = home.path().join("restored");
    let last = last.expect("the first of each life is whole");
    restore(&last, &data, &restored);
    check(&restored);
    drop(node);
}

#[test]
fn snapshots_are_listed_counted_and_deleted_through_the_node() {
    let node = TestNode::start(Driver::Uring);
    let data = data_of(&node);
    let mut client = node.client();
    let list = |client: &mut RespClient| match client.call_line("KAD.SNAPSHOT LIST").unwrap() {
        Reply::Array(snapshots) => snapshots,
        other => panic!("{other:?}"),
    };
    let figure = |client: &mut RespClient, name: &str| -> u64 {
        let info = call(client, "INFO persistence");
        let line = info.lines().find_map(|line| line.strip_prefix(&format!("{name}:")));
        line.unwrap().trim().parse().unwrap()
    };
    assert!(list(&mut client).is_empty());
    // A snapshot of nothing is one.
    assert_eq!(call(&mut client, "KAD.SNAPSHOT CREATE empty"), "empty");
    set(&mut client, "a", &[1; 50_000]);
    assert_eq!(call(&mut client, "KAD.SNAPSHOT CREATE one"), "one");
    assert_eq!(list(&mut client).len(), 2);
    assert_eq!(figure(&mut client, "snapshots"), 2);
    let bytes = figure(&mut client, "snapshot_bytes");
    assert!(bytes > 4 << 20 && figure(&mut client, "snapshot_bytes_apart") < 1 << 20);
    let deleted = client.call_line("KAD.SNAPSHOT DELETE one").unwrap();
    assert_eq!(deleted, Reply::Simple("OK".into()));
    assert_eq!(call(&mut client, "KAD.SNAPSHOT DELETE one"), "ERR there is no such snapshot");
    assert!(!data.join("snapshots/one").exists());
    assert_eq!((list(&mut client).len(), figure(&mut client, "snapshots")), (1, 1));
    let node = node.crash_and_restart();
    assert_eq!(list(&mut node.client()).len(), 1);
    let restored = node.directory.path().join("restored");
    restore("empty", &data, &restored);
    let empty = start(&restored, Driver::Uring, 2);
    let mut client = RespClient::connect(empty.address()).unwrap();
    assert_eq!(client.call_line("DBSIZE").unwrap(), Reply::Integer(0));
}

#[test]
fn snapshot_is_no_data_directory_and_no_path() {
    let node = TestNode::start(Driver::Uring);
    let data = data_of(&node);
    assert_eq!(call(&mut node.client(), "KAD.SNAPSHOT CREATE monday"), "monday");
    let inside = data.join("snapshots/monday");
    let before = files_below(&inside);
    let output =
        kadring(&["run", "--client", "127.0.0.1:0", "--data-dir", inside.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(5), "{output:?}");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("kadring snapshot restore"), "{said}");
    assert_eq!(files_below(&inside), before);
    let to = node.directory.path().join("to");
    for id in ["../snapshots/monday", "monday/", ".", "..", "", &"x".repeat(65)] {
        for words in
            [vec!["verify", id], vec!["delete", id], vec!["copy", id, "--to", to.to_str().unwrap()]]
        {
            let output = snapshot(&words, &data);
            assert_eq!(output.status.code(), Some(2), "{words:?}: {output:?}");
        }
    }
    let output = snapshot(&["verify", "tuesday"], &data);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(inside.exists() && !to.exists());
}

#[test]
fn second_copy_shares_the_segments_of_the_first() {
    let node = TestNode::start(Driver::Uring);
    let data = data_of(&node);
    let copies = node.directory.path().join("copies");
    let mut client = node.client();
    fill(&mut client, 100, &[1; 1000]);
    for id in ["one", "two"] {
        assert_eq!(call(&mut client, &format!("KAD.SNAPSHOT CREATE {id}")), id);
        well(snapshot(&["copy", id, "--to", copies.to_str().unwrap()], &data));
        for index in 0..100 {
            set(&mut client, &format!("{id} {index}"), &[2; 1000]);
        }
    }
    let (one, two) = (segments(&copies.join("one")), segments(&copies.join("two")));
    assert!(two.len() >= one.len() && !one.is_empty());
    let inode = |path: &PathBuf| fs::metadata(path).unwrap().ino();
    assert!(one.iter().zip(&two).all(|(one, two)| inode(one) == inode(two)));
}

#[test]
fn bgsave_save_and_lastsave_answer_as_redis_does() {
    let node = TestNode::start(Driver::Uring);
    let mut client = node.client();
    set(&mut client, "a", b"1");
    let lastsave = |client: &mut RespClient| match client.call_line("LASTSAVE").unwrap() {
        Reply::Integer(seconds) => seconds,
        other => panic!("{other:?}"),
    };
    let started = lastsave(&mut client);
    assert!(started > 1_700_000_000);
    // In one piece, so that the second comes while the first is at work.
    client.send_raw(b"BGSAVE\r\nBGSAVE\r\nBGSAVE SCHEDULE\r\n").unwrap();
    let mut next = || client.read_reply().unwrap();
    assert_eq!(next(), Reply::Simple("Background saving started".into()));
    assert!(next().is_error("ERR Background save already in progress"));
    assert_eq!(next(), Reply::Simple("Background saving scheduled".into()));
    let mut saved = None;
    for _ in 0..1_000_000 {
        saved = Some(client.call_line("SAVE").unwrap());
        if saved == Some(Reply::Simple("OK".into())) {
            break;
        }
    }
    assert_eq!(saved, Some(Reply::Simple("OK".into())));
    assert!(lastsave(&mut client) >= started);
    assert_eq!(listed(&data_of(&node)).len(), 3);
    let address = node.node.address().to_string();
    well(kadring(&["snapshot", "create", "by-hand", "--client", &address]));
}

#[test]
fn snapshot_outlives_the_segments_it_links() {
    let node = TestNode::start(Driver::Uring);
    let data = data_of(&node);
    let mut client = node.client();
    fill(&mut client, 200, &[1; 20_000]);
    assert_eq!(call(&mut client, "KAD.SNAPSHOT CREATE monday"), "monday");
    let linked = segments(&data.join("snapshots/monday"));
    let live: Vec<PathBuf> =
        linked.iter().map(|path| data.join("shard-00").join(path.file_name().unwrap())).collect();
    assert!(!live.is_empty() && live.iter().all(|path| path.exists()));
    let mut index = 0;
    while live.iter().any(|path| path.exists()) {
        set(&mut client, &(index % 200).to_string(), &[2; 20_000]);
        if index % 200 == 199 {
            assert_eq!(call(&mut client, "KAD.COMPACT"), "Background compaction started");
        }
        index += 1;
        assert!(index < 20_000, "segments of overwritten values stay");
    }
    verify("monday", &data);
    let restored = node.directory.path().join("restored");
    restore("monday", &data, &restored);
    let old = NodeProcess::start(NodeOptions::new(&restored, Driver::Uring)).unwrap();
    let mut client = RespClient::connect(old.address()).unwrap();
    assert_eq!(client.call_line("DBSIZE").unwrap(), Reply::Integer(200));
    for index in 0..200 {
        let reply = client.call(&[b"GET", format!("{index}").as_bytes()]).unwrap();
        assert_eq!(reply.bytes(), Some(&[1; 20_000][..]), "{index}");
    }
}

#[test]
fn what_a_crash_left_of_a_snapshot_is_removed_at_the_start() {
    let node = TestNode::start(Driver::Uring);
    let left = data_of(&node).join("snapshots/.monday.unfinished");
    fs::create_dir_all(left.join("shard-00")).unwrap();
    fs::write(left.join("shard-00/manifest-0"), "x").unwrap();
    let node = node.crash_and_restart();
    assert!(!left.exists());
    assert_eq!(call(&mut node.client(), "KAD.SNAPSHOT CREATE monday"), "monday");
}
