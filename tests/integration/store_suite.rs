//! One suite that runs the store on all drivers: the ring, an io_uring runtime, blocking threads,
//! and the simulated disk behind the same seam. Time is the test's own; expiry needs no waiting.

use std::collections::BTreeMap;
use std::path::PathBuf;

use fastrand::Rng;
use kadring::io::directory::{DataDirectory, DirectoryOptions};
use kadring::io::pread::{PreadIo, PreadOptions};
use kadring::io::tokio_uring::{TokioUringIo, TokioUringOptions};
use kadring::io::uring::{ProbeError, UringIo, UringOptions};
use kadring::io::{Completion, DiskOwner, Io, Request};
use kadring_tests::disk::SimulatedDisk;
use kadring_tests::simulated_io::SimulatedIo;
use storage::{Effect, Event, Get, KeyRef, Now, Opened, Put, Store, StoreOptions, WriteError};
use tempfile::TempDir;
use wal::Lsn;
use wal::disk::FileName;
use wal::group_commit::GroupCommitLimits;
use wal::procedure::Procedure;
use wal::record::{Key, Version};
use wal::segment::Identity;

const START_MS: u64 = 1_700_000_000_000;
const MS: u64 = 1_000_000;

/// How the suite gets at a driver.
trait Driver: Io + Sized {
    /// `None` where the kernel forbids it.
    fn make() -> Option<(Self, Option<TempDir>)>;
}

fn open_directory() -> (DataDirectory, TempDir) {
    let directory = super::directory();
    let path: PathBuf = directory.path().join("data");
    let options = DirectoryOptions::default();
    (DataDirectory::open(&path, options).unwrap(), directory)
}

impl Driver for UringIo {
    fn make() -> Option<(Self, Option<TempDir>)> {
        let (data, directory) = open_directory();
        let options = UringOptions { handle_signals: false, ..UringOptions::default() };
        Some((unless_forbidden(Self::new(data, options))?, Some(directory)))
    }
}

impl Driver for TokioUringIo {
    fn make() -> Option<(Self, Option<TempDir>)> {
        let (data, directory) = open_directory();
        let options = TokioUringOptions { handle_signals: false, ..TokioUringOptions::default() };
        Some((unless_forbidden(Self::new(data, options))?, Some(directory)))
    }
}

fn unless_forbidden<I>(io: Result<I, ProbeError>) -> Option<I> {
    match io {
        Ok(io) => Some(io),
        Err(
            error @ (ProbeError::Forbidden(_)
            | ProbeError::Missing(_)
            | ProbeError::SwitchedOff { .. }),
        ) => {
            super::skipped("the store on io_uring", &error.to_string());
            None
        }
        Err(error) => panic!("{error}"),
    }
}

impl Driver for PreadIo {
    fn make() -> Option<(Self, Option<TempDir>)> {
        let (data, directory) = open_directory();
        let options = PreadOptions { handle_signals: false, ..PreadOptions::default() };
        Some((Self::new(data, options).unwrap(), Some(directory)))
    }
}

impl Driver for SimulatedIo {
    fn make() -> Option<(Self, Option<TempDir>)> {
        Some((Self::new(SimulatedDisk::new(11)), None))
    }
}

/// A store on a driver.
struct Rig<I> {
    io: I,
    options: StoreOptions,
    store: Store,
    owner: DiskOwner,
    now: Now,
    version: u128,
    // Last: the driver closes its files first.
    _directory: Option<TempDir>,
}

impl<I: Driver> Rig<I> {
    fn new(segment_bytes: u64, cache_bytes: usize) -> Option<Self> {
        let (mut io, directory) = I::make()?;
        let options = StoreOptions {
            directory: FileName::new("shard-00"),
            identity: Identity { store: [5; 16], node_id: [6; 20], shard: 0, shard_count: 1 },
            must_exist: false,
            segment_bytes,
            cache_bytes,
            limits: storage::StoreLimits::default(),
            log: GroupCommitLimits { frame_bytes_max: 64 << 10, ..GroupCommitLimits::default() },
            buffers: io.buffers(),
            checkpoints: storage::CheckpointOptions::NEVER,
            footers: false,
        };
        let (owner, now) = (DiskOwner(0), Now { monotonic_ns: 0, clock_ms: START_MS });
        let opening = storage::open(options.clone(), now.clock_ms);
        let Opened { store, report, .. } = carry_out(&mut io, owner, opening).unwrap();
        assert!(report.created);
        let mut rig = Self { io, options, store, owner, now, version: 0, _directory: directory };
        rig.pass_ms(0);
        Some(rig)
    }

    /// Opens what is on disk again, as after a kill: nothing is closed or sealed before.
    fn reopen(&mut self) {
        self.owner.0 += 1;
        self.options.must_exist = true;
        let opening = storage::open(self.options.clone(), self.now.clock_ms);
        let opened = carry_out(&mut self.io, self.owner, opening).unwrap();
        assert!(!opened.report.suspect && opened.report.damage.is_empty(), "{:?}", opened.report);
        self.store = opened.store;
        self.version = u128::from_be_bytes(self.store.version_max().0);
        self.pass_ms(0);
    }

    fn pass_ms(&mut self, ms: u64) {
        self.now.monotonic_ns += ms * MS;
        self.now.clock_ms += ms;
        self.store.set_now(self.now);
    }

    /// Carries out what the store asks for until it asks for nothing.
    fn settle(&mut self) -> Vec<Event> {
        let (mut under_way, mut events, mut done) = (0, Vec::new(), Vec::new());
        loop {
            while let Some(request) = self.store.poll_request() {
                self.io.submit(Request::Disk(self.owner, request));
                under_way += 1;
            }
            events.extend(std::iter::from_fn(|| self.store.poll_event()));
            if under_way == 0 {
                return events;
            }
            self.io.wait(None, &mut done).unwrap();
            for completion in done.drain(..) {
                let Completion::Disk(_, completion) = completion else { panic!("{completion:?}") };
                self.store.handle_disk(completion);
                under_way -= 1;
            }
        }
    }

    fn turn(&mut self) -> Vec<Event> {
        self.store.end_turn();
        self.settle()
    }

    fn next_version(&mut self) -> Version {
        self.version += 1;
        Version(self.version.to_be_bytes())
    }

    fn put(&mut self, name: &str, value: &[u8], expiry_ms: u64) {
        for _ in 0..10 {
            let put = Put { key: key(name), version: self.next_version(), expiry_ms, value };
            match self.store.put(&put) {
                Ok(_) => return,
                Err(WriteError::Busy) => drop(self.turn()),
                Err(error) => panic!("{error}"),
            }
        }
        panic!("the store stays busy");
    }

    fn remove(&mut self, name: &str) -> bool {
        self.change(|store, version| store.remove(key(name), version)).is_some()
    }

    /// Asks until what the store has to read first has been read.
    fn change(
        &mut self,
        mut ask: impl FnMut(&mut Store, Version) -> Result<Effect, WriteError>,
    ) -> Option<Lsn> {
        let version = self.next_version();
        for _ in 0..10 {
            match ask(&mut self.store, version).unwrap() {
                Effect::Done(lsn) => return lsn,
                Effect::Pending(wanted) => {
                    assert!(self.settle().contains(&Event::Resolved { id: wanted }));
                }
            }
        }
        panic!("the store never comes to know the key");
    }

    /// All keys, listed a few at a time.
    fn listed(&mut self) -> Vec<Key> {
        let (mut keys, mut from) = (Vec::new(), Some(Key([0; 20])));
        while let Some(start) = from {
            let wanted = self.store.scan(start, 7);
            let answer = self.settle().into_iter().find_map(|event| match event {
                Event::Scanned { id, keys, next } if id == wanted => Some((keys, next)),
                _ => None,
            });
            let (found, next) = answer.unwrap();
            keys.extend(found.into_iter().map(|found| found.key));
            from = next;
        }
        assert!(keys.is_sorted(), "{keys:?}");
        keys
    }

    fn get(&mut self, name: &str) -> Option<Vec<u8>> {
        match self.store.get(&key(name)).unwrap() {
            Get::Missing => None,
            Get::Found(value) => Some(value.value.to_vec()),
            Get::Pending(wanted) => {
                let answer = self.settle().into_iter().find_map(|event| match event {
                    Event::Read { id, result } if id == wanted => Some(result),
                    _ => None,
                });
                answer.unwrap().unwrap().map(|(_, value)| value.value.to_vec())
            }
        }
    }

    /// Writes everything, the idle frame included.
    fn seal(&mut self) {
        for _ in 0..3 {
            self.store.seal();
            self.settle();
        }
        assert!(self.store.is_quiet());
        let status = self.store.status();
        assert_eq!(status.durable_lsn, status.last_lsn);
    }
}

fn carry_out<I: Io, T>(io: &mut I, owner: DiskOwner, mut procedure: Procedure<T>) -> T {
    let mut done = Vec::new();
    loop {
        while let Some(request) = procedure.poll_request() {
            io.submit(Request::Disk(owner, request));
        }
        if let Some(output) = procedure.take_output() {
            return output;
        }
        io.wait(None, &mut done).unwrap();
        for completion in done.drain(..) {
            let Completion::Disk(_, completion) = completion else { panic!("{completion:?}") };
            procedure.handle_disk(completion);
        }
    }
}

/// A key id that is different for each of the short names here.
fn key(name: &str) -> KeyRef<'_> {
    let mut id = [0; 20];
    id[..name.len()].copy_from_slice(name.as_bytes());
    KeyRef::given(Key(id), name.as_bytes())
}

/// Makes a test on each driver of each generic function.
macro_rules! on_all_drivers {
    ($($name:ident),* $(,)?) => {
        mod on_uring {
            $(#[test] fn $name() { super::$name::<kadring::io::uring::UringIo>(); })*
        }
        mod on_tokio_uring {
            $(#[test] fn $name() { super::$name::<kadring::io::tokio_uring::TokioUringIo>(); })*
        }
        mod on_pread {
            $(#[test] fn $name() { super::$name::<kadring::io::pread::PreadIo>(); })*
        }
        mod on_simulated_disk {
            $(#[test] fn $name() { super::$name::<kadring_tests::simulated_io::SimulatedIo>(); })*
        }
    };
}

on_all_drivers![
    commands_are_seen_at_once_and_after_a_restart,
    expiry_survives_a_restart_and_needs_no_write,
    random_commands_agree_with_a_map_over_restarts,
    large_values_have_segments_of_their_own_size,
    concurrent_reads_of_one_key_share_one_disk_read,
    check_of_a_sealed_store_finds_nothing,
];

fn commands_are_seen_at_once_and_after_a_restart<I: Driver>() {
    let Some(mut rig) = Rig::<I>::new(1 << 20, 0) else { return };
    rig.put("kept", b"one", 0);
    rig.put("replaced", b"two", 0);
    rig.put("replaced", b"three", 0);
    rig.put("removed", b"four", 0);
    assert!(rig.remove("removed") && !rig.remove("removed"));
    for _ in 0..2 {
        assert_eq!(rig.get("kept").as_deref(), Some(&b"one"[..]));
        assert_eq!(rig.get("replaced").as_deref(), Some(&b"three"[..]));
        assert_eq!(rig.get("removed"), None);
        rig.turn();
        rig.reopen();
    }
    let version = rig.next_version();
    rig.store.clear(version).unwrap();
    rig.put("after", b"", 0);
    for _ in 0..2 {
        assert_eq!((rig.get("kept"), rig.get("after")), (None, Some(Vec::new())));
        assert_eq!(rig.store.len(), 1);
        rig.turn();
        rig.reopen();
    }
}

fn expiry_survives_a_restart_and_needs_no_write<I: Driver>() {
    let Some(mut rig) = Rig::<I>::new(1 << 20, 1 << 20) else { return };
    rig.put("short", b"s", START_MS + 1_000);
    rig.put("long", b"l", START_MS + 1_000);
    rig.change(|store, version| store.touch(key("long"), version, START_MS + 60_000)).unwrap();
    rig.turn();
    rig.pass_ms(999);
    assert!(rig.get("short").is_some());
    rig.reopen();
    assert!(rig.get("short").is_some());
    rig.pass_ms(1);
    assert_eq!((rig.get("short"), rig.get("long").is_some()), (None, true));
    rig.reopen();
    assert_eq!((rig.get("short"), rig.get("long").is_some()), (None, true));
    assert_eq!(rig.store.len(), 1);
}

fn random_commands_agree_with_a_map_over_restarts<I: Driver>() {
    let Some(mut rig) = Rig::<I>::new(256 << 10, 32 << 10) else { return };
    let (mut rng, mut model) = (Rng::with_seed(17), BTreeMap::new());
    for step in 0..600 {
        let name = format!("key {}", rng.u8(..60));
        match rng.u8(..10) {
            0..5 => {
                let mut value = vec![0; rng.usize(..12_000)];
                rng.fill(&mut value);
                rig.put(&name, &value, 0);
                model.insert(name, value);
            }
            5 | 6 => assert_eq!(rig.remove(&name), model.remove(&name).is_some()),
            _ => assert_eq!(rig.get(&name), model.get(&name).cloned(), "{name} at {step}"),
        }
        if rng.u8(..3) == 0 {
            rig.turn();
        }
        if step % 200 == 199 {
            rig.turn();
            rig.reopen();
            assert_eq!(rig.listed().len(), model.len());
        }
    }
    assert!(rig.store.status().segments > 4, "{:?}", rig.store.status());
    for (name, value) in &model {
        assert_eq!(rig.get(name).as_ref(), Some(value));
    }
}

fn large_values_have_segments_of_their_own_size<I: Driver>() {
    let Some(mut rig) = Rig::<I>::new(256 << 10, 0) else { return };
    let value =
        |len: usize, seed: u8| -> Vec<u8> { (0..len).map(|at| (at % 251) as u8 ^ seed).collect() };
    let sizes = [300 << 10, 8_192, 8_193, 2 << 20, 0, 5 << 20];
    for (index, len) in sizes.into_iter().enumerate() {
        rig.put(&format!("large {index}"), &value(len, index as u8), 0);
    }
    rig.turn();
    for _ in 0..2 {
        for (index, len) in sizes.into_iter().enumerate() {
            let found = rig.get(&format!("large {index}")).unwrap();
            assert!(found == value(len, index as u8), "large {index}");
        }
        rig.seal();
        rig.reopen();
    }
}

fn concurrent_reads_of_one_key_share_one_disk_read<I: Driver>() {
    let Some(mut rig) = Rig::<I>::new(1 << 20, 0) else { return };
    rig.put("shared", &[7; 9_000], 0);
    rig.put("other", &[8; 9_000], 0);
    rig.turn();
    let before = rig.store.status().disk_reads;
    for name in ["shared", "shared", "other", "shared"] {
        assert!(matches!(rig.store.get(&key(name)), Ok(Get::Pending(_))));
    }
    let mut lens = Vec::new();
    for event in rig.settle() {
        if let Event::Read { result: Ok(Some((user_key, value))), .. } = event {
            assert!(
                value.value.iter().all(|byte| *byte == if user_key == "shared" { 7 } else { 8 })
            );
            lens.push(value.value.len());
        }
    }
    assert_eq!(lens, [9_000; 4]);
    assert_eq!(rig.store.status().disk_reads - before, 2);
}

fn check_of_a_sealed_store_finds_nothing<I: Driver>() {
    let Some(mut rig) = Rig::<I>::new(256 << 10, 0) else { return };
    for index in 0..100 {
        rig.put(&format!("key {index}"), &[index; 5_000], 0);
        rig.turn();
    }
    rig.remove("key 3");
    rig.seal();
    let owner = DiskOwner(100);
    let (directory, identity) = (rig.options.directory.clone(), rig.options.identity);
    let found = carry_out(&mut rig.io, owner, storage::identify(vec![directory.clone()])).unwrap();
    assert_eq!(found, Some((0, identity)));
    let owner = DiskOwner(101);
    let checking = storage::check(directory, identity, rig.now.clock_ms, false);
    let report = carry_out(&mut rig.io, owner, checking).unwrap();
    assert!(report.damage.is_empty() && report.uncertain.is_empty(), "{report:?}");
    assert_eq!((report.keys, report.records, report.suspect), (99, 101, false));
}
