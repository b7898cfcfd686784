//! Segment files that are whole and do not belong where they are: of another shard of the store
//! under the same id, or of the same shard under another id. Their records count for nothing, and
//! what stood in the file that they have replaced answers errors, not nil.

use std::fs;
use std::path::Path;
use std::rc::Rc;

use fastrand::Rng;
use kadring_tests::disk::{SimulatedDisk, run_procedure};
use kadring_tests::node_process::{Driver, NodeOptions, NodeProcess, run_to_end};
use kadring_tests::resp_client::{Reply, RespClient};
use kadring_tests::store_world::recovery::settle;
use storage::{
    CheckReport, CheckpointLoader, CheckpointOptions, Event, Get, KeyRef, Now, Opened, Put,
    ReadError, RecoveryReport, Store, StoreLimits, StoreOptions, WriteError,
};
use wal::disk::{BLOCK_SIZE, FileName, HeapBuffers};
use wal::group_commit::GroupCommitLimits;
use wal::record::{Key, Version};
use wal::segment::{self, Identity};

use crate::directory;

const NOW_MS: u64 = 1_700_000_000_000;
const OWNER: u16 = 0;
const STORE: [u8; 16] = [9; 16];
const KEYS: usize = 60;

fn shard_directory(shard: u16) -> FileName {
    FileName::new(format!("shard-{shard:02}"))
}

fn identity(shard: u16) -> Identity {
    Identity { store: STORE, node_id: [7; 20], shard, shard_count: 2 }
}

/// By what the starts go: frames, footers, a checkpoint.
fn all_sources() -> [(CheckpointOptions, bool); 3] {
    let loader = CheckpointLoader::Direct;
    let often = CheckpointOptions { log_bytes_min: 64 << 10, index_bytes_factor: 0, loader };
    [(CheckpointOptions::NEVER, false), (CheckpointOptions::NEVER, true), (often, true)]
}

fn options(shard: u16, (checkpoints, footers): (CheckpointOptions, bool)) -> StoreOptions {
    StoreOptions {
        directory: shard_directory(shard),
        identity: identity(shard),
        must_exist: false,
        segment_bytes: 128 << 10,
        cache_bytes: 0,
        limits: StoreLimits::default(),
        log: GroupCommitLimits { frame_bytes_max: 32 << 10, ..GroupCommitLimits::default() },
        buffers: Rc::new(HeapBuffers),
        checkpoints,
        footers,
    }
}

/// Keys of shard 0 have even numbers.
fn name(shard: u16, index: usize) -> String {
    format!("key {}", 2 * index + usize::from(shard))
}

fn key(name: &str) -> KeyRef<'_> {
    KeyRef { id: Key::of(name.as_bytes()), user_key: name.as_bytes(), hashed: true }
}

/// The first keys are written once, the others again later.
fn value(name: &str, round: u8) -> Vec<u8> {
    let mut value = format!("{name} round {round} ").into_bytes();
    value.resize(5_000, b'a' + round);
    value
}

fn rounds_of(index: usize) -> u8 {
    if index < KEYS / 2 { 1 } else { 2 }
}

/// Two shards of a store at rest.
struct Rested {
    disk: SimulatedDisk,
    sources: (CheckpointOptions, bool),
}

fn put(disk: &mut SimulatedDisk, store: &mut Store, name: &str, version: u128, round: u8) {
    let value = value(name, round);
    let version = Version((version << 64).to_be_bytes());
    for _ in 0..100 {
        match store.put(&Put { key: key(name), version, expiry_ms: 0, value: &value }) {
            Err(WriteError::Busy) => {
                let at = store.deadline_ns().expect("a busy store goes on by itself");
                store.set_now(Now { monotonic_ns: at, clock_ms: NOW_MS });
            }
            result => {
                result.unwrap();
                store.end_turn();
                return drop(settle(disk, store));
            }
        }
        store.end_turn();
        settle(disk, store);
    }
    panic!("the store stays busy: {:?}", store.status());
}

impl Rested {
    fn new(sources: (CheckpointOptions, bool)) -> Self {
        let mut disk = SimulatedDisk::new(1);
        for shard in 0..2 {
            let mut opening = storage::open(options(shard, sources), NOW_MS);
            let mut store = run_procedure(&mut disk, OWNER, &mut opening).unwrap().store;
            store.set_now(Now { monotonic_ns: 0, clock_ms: NOW_MS });
            let mut version = 0;
            for round in 1..=2 {
                for index in (0..KEYS).filter(|index| round <= rounds_of(*index)) {
                    version += 1;
                    put(&mut disk, &mut store, &name(shard, index), version, round);
                }
            }
            for _ in 0..3 {
                store.seal();
                settle(&mut disk, &mut store);
            }
            assert!(store.is_quiet() && store.status().segments > 3, "{:?}", store.status());
            disk = disk.crash(&mut Rng::with_seed(1));
        }
        Self { disk, sources }
    }

    /// The ids of a shard's segments, and their files.
    fn segments(&self, shard: u16) -> Vec<(u64, String)> {
        let directory = format!("{}/", shard_directory(shard).as_str());
        let names = self.disk.files().into_iter().map(|(name, _)| name);
        let of_shard = names.filter_map(|name| {
            let id = segment::parse_file_name(name.strip_prefix(&directory)?)?;
            Some((id, name))
        });
        of_shard.collect()
    }

    fn start(&self, disk: &mut SimulatedDisk, what: &str) -> Started {
        let mut checking = storage::check(shard_directory(0), identity(0), NOW_MS, false);
        let check = run_procedure(&mut disk.clone(), OWNER, &mut checking);
        let check = check.unwrap_or_else(|error| panic!("{what}: check: {error}"));
        let options = StoreOptions { must_exist: true, ..options(0, self.sources) };
        let opened = run_procedure(disk, OWNER, &mut storage::open(options, NOW_MS));
        let opened = opened.unwrap_or_else(|error| panic!("{what}: refused to open: {error}"));
        let Opened { mut store, report, .. } = opened;
        store.set_now(Now { monotonic_ns: 0, clock_ms: NOW_MS });
        let mut started = Started { check, report, errors: 0, older: 0, missing: 0, foreign: 0 };
        for index in 0..KEYS {
            let name = name(0, index);
            match read(disk, &mut store, &name) {
                Err(_) => started.errors += 1,
                Ok(None) => started.missing += 1,
                Ok(Some(found)) if found == value(&name, rounds_of(index)) => {}
                Ok(Some(found)) => {
                    assert_eq!(found, value(&name, 1), "{what}: {name} has wrong bytes");
                    started.older += 1;
                }
            }
        }
        for index in 0..KEYS {
            let found = read(disk, &mut store, &name(1, index));
            started.foreign += usize::from(matches!(found, Ok(Some(_))));
        }
        *disk = disk.crash(&mut Rng::with_seed(2));
        started
    }
}

/// What a start found.
struct Started {
    check: CheckReport,
    report: RecoveryReport,
    /// Keys that answer an error, that hold an older value, that are not there.
    errors: usize,
    older: usize,
    missing: usize,
    /// Keys of the other shard that are found.
    foreign: usize,
}

impl Started {
    /// Whether the start and the check name the file and say all of this about it.
    fn tells(&self, file: &str, words: &[&str]) -> bool {
        let lists = [&self.report.damage, &self.check.damage];
        lists.iter().all(|list| {
            list.iter().any(|damage| {
                damage.file.as_str() == file
                    && words.iter().all(|word| damage.reason.contains(word))
            })
        })
    }
}

fn read(
    disk: &mut SimulatedDisk,
    store: &mut Store,
    name: &str,
) -> Result<Option<Vec<u8>>, ReadError> {
    Ok(match store.get(&key(name))? {
        Get::Missing => None,
        Get::Found(value) => Some(value.value.to_vec()),
        Get::Pending(wanted) => {
            let answer = settle(disk, store).into_iter().find_map(|event| match event {
                Event::Read { id, result } if id == wanted => Some(result),
                _ => None,
            });
            answer.expect("a read ends")?.map(|(_, value)| value.value.to_vec())
        }
    })
}

/// Puts `bytes` in the place of a segment of shard 0; returns how many keys answer errors.
#[track_caller]
fn check_replaced(rested: &Rested, file: &str, bytes: &[u8], words: &[&str]) -> usize {
    let what = format!("{file}, {words:?}, {:?}", rested.sources);
    let mut disk = rested.disk.clone();
    disk.plant_file(file, bytes);
    let mut errors = 0;
    // A start must not make the next one forget.
    for round in 0..2 {
        let started = rested.start(&mut disk, &what);
        let report = &started.report;
        assert!(report.suspect && started.check.suspect, "{what}, start {round}: {report:?}");
        assert!(started.tells(file, words), "{what}, start {round}: {report:?}");
        assert_eq!((started.missing, started.foreign), (0, 0), "{what}, start {round}");
        assert!(disk.read_file(file) == bytes, "{what}, start {round}: the file was changed");
        errors = started.errors + started.older;
    }
    let repair = &mut storage::check(shard_directory(0), identity(0), NOW_MS, true);
    run_procedure(&mut disk, OWNER, repair).unwrap();
    let mut disk = disk.crash(&mut Rng::with_seed(3));
    let started = rested.start(&mut disk, &what);
    assert!(!started.report.suspect && !started.check.suspect, "{what}: {:?}", started.report);
    assert_eq!(started.foreign, 0, "{what}: after the loss was accepted");
    errors
}

#[test]
fn segment_of_another_shard_is_not_taken_for_the_one_of_the_same_id() {
    for sources in all_sources() {
        let rested = Rested::new(sources);
        let (own, other) = (rested.segments(0), rested.segments(1));
        let mut errors = 0;
        for (id, file) in &own {
            let Some((_, from)) = other.iter().find(|(other, _)| other == id) else { continue };
            let bytes = rested.disk.read_file(from);
            errors += check_replaced(&rested, file, &bytes, &["shard 1", "shard 0"]);
        }
        assert!(errors > KEYS / 2, "{errors} keys were hit: nothing was tested");
    }
}

/// Frames know their segment. A start that goes by a checkpoint does not look at them; who reads
/// such a key later does.
#[test]
fn segment_under_the_name_of_another_is_not_passed_over() {
    for sources in all_sources() {
        let rested = Rested::new(sources);
        let own = rested.segments(0);
        let mut errors = 0;
        for (at, (_, file)) in own.iter().enumerate() {
            let (_, from) = &own[(at + 1) % own.len()];
            let bytes = rested.disk.read_file(from);
            let mut disk = rested.disk.clone();
            disk.plant_file(file, &bytes);
            let started = rested.start(&mut disk, file);
            let report = &started.report;
            assert_eq!((started.missing, started.foreign), (0, 0), "{file}: {report:?}");
            let is_noticed = report.suspect && started.check.suspect && started.tells(file, &[]);
            let hit = started.errors + started.older;
            let is_read = hit > 0 && sources.0 == CheckpointOptions::NEVER;
            assert!(is_noticed || !is_read, "{file}: {report:?}");
            errors += hit;
        }
        assert!(errors > KEYS / 2, "{errors} keys were hit: nothing was tested");
    }
}

/// A file that no manifest lists, as one is whose manifest was lost.
#[test]
fn segment_of_another_shard_under_a_new_id_is_not_read() {
    for sources in all_sources() {
        let rested = Rested::new(sources);
        let (id, _) = rested.segments(0).pop().unwrap();
        let (_, from) = rested.segments(1).remove(0);
        let bytes = rested.disk.read_file(&from);
        let file = segment::file_name(&shard_directory(0), id + 1).to_string();
        check_replaced(&rested, &file, &bytes, &["shard 1", "shard 0"]);
    }
}

/// Frames know their segment: a header of another one before them does not make them doubtful.
#[test]
fn header_of_another_segment_alone_loses_nothing() {
    for sources in all_sources() {
        let rested = Rested::new(sources);
        let own = rested.segments(0);
        for (at, (_, file)) in own.iter().enumerate() {
            let (_, from) = &own[(at + 1) % own.len()];
            let mut disk = rested.disk.clone();
            let header = rested.disk.read_file(from);
            disk.overwrite_at_rest(file, 0, &header[..BLOCK_SIZE]);
            if disk.read_file(file)[BLOCK_SIZE..].iter().all(|byte| *byte == 0) {
                continue;
            }
            let started = rested.start(&mut disk, file);
            assert!(!started.report.suspect, "{file}: {:?}", started.report);
            assert_eq!((started.errors, started.older, started.missing), (0, 0, 0), "{file}");
        }
    }
}

/// With the manifests the list of segments is gone, too: a foreign file that comes first must not
/// decide whose shard this is.
#[test]
fn segment_of_another_shard_does_not_give_its_identity_to_a_shard_without_manifests() {
    let rested = Rested::new((CheckpointOptions::NEVER, false));
    let (_, file) = rested.segments(0).remove(0);
    let (_, from) = rested.segments(1).remove(0);
    let bytes = rested.disk.read_file(&from);
    let mut disk = rested.disk.clone();
    disk.plant_file(&file, &bytes);
    disk.zero_sector("shard-00/manifest-0", 0);
    disk.zero_sector("shard-00/manifest-1", 0);
    let started = rested.start(&mut disk, "no manifests");
    assert!(started.report.suspect && started.tells(&file, &["shard 1", "shard 0"]));
    assert_eq!((started.missing, started.foreign), (0, 0));
}

/// The first segments of the two shards of a node's directory, or of a snapshot's.
fn first_segments(data: &Path) -> [std::path::PathBuf; 2] {
    [0, 1].map(|shard| {
        let entries = fs::read_dir(data.join(format!("shard-{shard:02}"))).unwrap();
        let paths = entries.map(|entry| entry.unwrap().path());
        let is_segment =
            |path: &std::path::PathBuf| path.extension().is_some_and(|suffix| suffix == "segment");
        paths.filter(is_segment).min().unwrap()
    })
}

fn kadring(words: &[&str]) -> (Option<i32>, String) {
    let output = run_to_end(words, &[]).unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8_lossy(&said).into_owned())
}

/// Reads all keys of a node: how many answer that they may be lost.
fn read_all(data: &Path) -> usize {
    let node = NodeProcess::start(NodeOptions::new(data, Driver::Uring)).unwrap();
    let mut client = RespClient::connect(node.address()).unwrap();
    let mut damaged = 0;
    for index in 0..KEYS {
        match client.call(&[b"GET", index.to_string().as_bytes()]).unwrap() {
            Reply::Error(text) => {
                assert!(text.starts_with("DAMAGED"), "{text}");
                damaged += 1;
            }
            reply => assert_eq!(reply.bytes(), Some(index.to_string().as_bytes())),
        }
    }
    node.terminate().unwrap();
    damaged
}

#[test]
fn segment_put_into_another_shard_is_found_by_check_node_and_snapshot() {
    let directory = directory();
    let data = directory.path().join("data");
    let node = NodeProcess::start(NodeOptions::new(&data, Driver::Uring)).unwrap();
    let mut client = RespClient::connect(node.address()).unwrap();
    for index in 0..KEYS {
        let word = index.to_string().into_bytes();
        let reply = client.call(&[b"SET", &word, &word]).unwrap();
        assert_eq!(reply, Reply::Simple("OK".into()));
    }
    client.call_line("KAD.SNAPSHOT CREATE monday").unwrap();
    node.terminate().unwrap();
    let data_dir = data.to_str().unwrap();

    // A snapshot's catalog knows its files by their checksums. The files are links: copies first.
    let copies = directory.path().join("copied");
    let from = copies.to_str().unwrap();
    let copied = kadring(&["snapshot", "copy", "monday", "--to", from, "--data-dir", data_dir]);
    assert_eq!(copied.0, Some(0), "{copied:?}");
    let [own, other] = first_segments(&copies.join("monday"));
    assert_eq!(own.file_name(), other.file_name());
    fs::remove_file(&own).unwrap();
    fs::copy(&other, &own).unwrap();
    let name = format!("shard-00/{}", own.file_name().unwrap().to_str().unwrap());
    let verified = kadring(&["snapshot", "verify", "monday", "--from", from]);
    assert!(verified.0 == Some(7) && verified.1.contains(&name), "{verified:?}");
    let to = directory.path().join("restored");
    let to_dir = to.to_str().unwrap();
    let words = ["snapshot", "restore", "monday", "--from", from, "--to", to_dir];
    assert_eq!(kadring(&words).0, Some(7));
    assert!(!to.exists());
    let restored = kadring(&[&words[..], &["--damaged"]].concat());
    assert_eq!(restored.0, Some(7), "{restored:?}");
    assert!(read_all(&to) > 10);

    let [own, other] = first_segments(&data);
    assert_eq!(own.file_name(), other.file_name());
    fs::remove_file(&own).unwrap();
    fs::copy(&other, &own).unwrap();
    let checked = kadring(&["check", "--data-dir", data_dir]);
    assert_ne!(checked.0, Some(0), "{checked:?}");
    for word in [&name, "shard 1", "shard 0"] {
        assert!(checked.1.contains(word), "{checked:?}");
    }
    assert!(read_all(&data) > 10);
}
