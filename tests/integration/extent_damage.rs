//! Damage in large values, on the simulated disk: check and scrub report it, the key answers an
//! error and nothing older, all other keys live, and compaction leaves the segment alone.

use std::rc::Rc;

use fastrand::Rng;
use kadring_tests::disk::{SimulatedDisk, run_procedure};
use kadring_tests::store_world::recovery::settle;
use storage::{
    CheckReport, CheckpointOptions, Effect, Event, Get, KeyRef, Now, Opened, Put, ReadError,
    RecoveryReport, Store, StoreLimits, StoreOptions, WriteError,
};
use wal::checksum::Place;
use wal::disk::{BLOCK_SIZE, FileName, HeapBuffers};
use wal::extent;
use wal::frame::FrameHeader;
use wal::group_commit::GroupCommitLimits;
use wal::record::{Key, Version};
use wal::segment::{self, Identity};

const START_MS: u64 = 1_700_000_000_000;
const DAY_NS: u64 = 86_400_000_000_000;
const OWNER: u16 = 0;
const STORE: [u8; 16] = [9; 16];
const SEGMENT_BYTES: u64 = 4 << 20;
/// The large values: all in the first segment, one of them dead.
const FIRST: &str = "first";
const VICTIM: &str = "victim";
const LAST: &str = "last";
const DEAD: &str = "dead";
const SMALL_KEYS: usize = 20;

fn options(checkpoints: CheckpointOptions) -> StoreOptions {
    StoreOptions {
        directory: FileName::new("shard-00"),
        identity: Identity { store: STORE, node_id: [7; 20], shard: 0, shard_count: 1 },
        must_exist: false,
        segment_bytes: SEGMENT_BYTES,
        cache_bytes: 0,
        limits: StoreLimits { scrub_bytes_per_second: 1 << 30, ..StoreLimits::default() },
        log: GroupCommitLimits::default(),
        buffers: Rc::new(HeapBuffers),
        checkpoints,
        footers: true,
    }
}

fn often() -> CheckpointOptions {
    CheckpointOptions { log_bytes_min: 1, ..CheckpointOptions::default() }
}

fn key(name: &str) -> KeyRef<'_> {
    KeyRef { id: Key::of(name.as_bytes()), user_key: name.as_bytes(), hashed: true }
}

/// Bytes that depend on the name and do not repeat within a chunk.
fn value(name: &str, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    Rng::with_seed(name.bytes().map(u64::from).sum()).fill(&mut bytes);
    bytes
}

/// What each key holds, but for the victim.
fn others() -> Vec<(String, Vec<u8>)> {
    let mut all: Vec<(String, Vec<u8>)> = (0..SMALL_KEYS)
        .map(|index| format!("small {index}"))
        .map(|n| (n.clone(), n.into()))
        .collect();
    all.push((DEAD.to_owned(), b"overwritten".to_vec()));
    for name in [FIRST, LAST] {
        all.push((name.to_owned(), value(name, 1 << 20)));
    }
    all
}

/// A store and its disk.
struct World {
    disk: SimulatedDisk,
    store: Store,
    report: RecoveryReport,
    now: Now,
    version: u128,
}

impl World {
    fn open(mut disk: SimulatedDisk, options: StoreOptions) -> Self {
        let mut opening = storage::open(options, START_MS);
        let opened = run_procedure(&mut disk, OWNER, &mut opening).unwrap();
        let Opened { store, report, log_ms, .. } = opened;
        let now = Now { monotonic_ns: 0, clock_ms: log_ms.max(START_MS) };
        let version = u128::from_be_bytes(store.version_max().0);
        let mut world = Self { disk, store, report, now, version };
        world.pass_ns(0);
        world
    }

    /// Ends the store as a crash does, once everything is written.
    fn rest(mut self) -> SimulatedDisk {
        for _ in 0..3 {
            self.store.seal();
            settle(&mut self.disk, &mut self.store);
        }
        assert!(self.store.is_quiet());
        self.disk.crash(&mut Rng::with_seed(1))
    }

    fn pass_ns(&mut self, ns: u64) {
        self.now.monotonic_ns += ns;
        self.now.clock_ms += ns / 1_000_000;
        self.store.set_now(self.now);
    }

    fn turn(&mut self) -> Vec<Event> {
        self.store.end_turn();
        settle(&mut self.disk, &mut self.store)
    }

    fn next_version(&mut self) -> Version {
        self.version += 1;
        Version(self.version.to_be_bytes())
    }

    fn put(&mut self, name: &str, value: &[u8]) {
        let version = self.next_version();
        for _ in 0..1_000 {
            match self.store.put(&Put { key: key(name), version, expiry_ms: 0, value }) {
                Ok(_) => return drop(self.turn()),
                Err(WriteError::Busy) => drop(self.turn()),
                Err(error) => panic!("{name}: {error}"),
            }
        }
        panic!("the store stays busy: {:?}", self.store.status());
    }

    fn remove(&mut self, name: &str) {
        let version = self.next_version();
        while let Effect::Pending(_) = self.store.remove(key(name), version).unwrap() {
            self.turn();
        }
        self.turn();
    }

    fn get(&mut self, name: &str) -> Result<Option<Vec<u8>>, ReadError> {
        let found = match self.store.get(&key(name))? {
            Get::Missing => None,
            Get::Found(value) => Some(value.value),
            Get::Pending(wanted) => {
                let answer = self.turn().into_iter().find_map(|event| match event {
                    Event::Read { id, result } if id == wanted => Some(result),
                    _ => None,
                });
                answer.expect("a read ends")?.map(|(_, value)| value.value)
            }
        };
        Ok(found.map(|value| value.to_vec()))
    }

    #[track_caller]
    fn check_others(&mut self, what: &str) {
        for (name, wanted) in others() {
            let found = self.get(&name).map(|found| found.is_some_and(|found| found == wanted));
            assert_eq!(found, Ok(true), "{what}: {name}");
        }
    }

    /// Lets time pass as the store asks for it until a pass of the scrub is over.
    fn scrub(&mut self) {
        let passes = self.store.status().scrub.passes;
        self.pass_ns(15 * DAY_NS);
        for _ in 0..10_000 {
            self.turn();
            if self.store.status().scrub.passes > passes {
                return;
            }
            let due_ns = self.store.deadline_ns().unwrap_or(0);
            self.pass_ns(due_ns.saturating_sub(self.now.monotonic_ns) + 1);
        }
        panic!("the scrub never ends: {:?}", self.store.status().scrub);
    }

    /// Compacts what there is until the store finds nothing more to do.
    fn compact(&mut self) {
        self.store.compact();
        for _ in 0..500 {
            self.turn();
            self.pass_ns(1_000_000);
        }
    }
}

/// Where something of the victim's extent stands.
#[derive(Clone, Debug)]
struct Standing {
    file: String,
    offset: u64,
    len: u64,
    header_len: u64,
    value_len: u64,
}

/// Looks for the extent of a key, block by block.
fn extent_of(disk: &SimulatedDisk, name: &str) -> Standing {
    for (file, _) in disk.files() {
        let Some(id) = file.rsplit('/').next().and_then(segment::parse_file_name) else { continue };
        let bytes = disk.read_file(&file);
        for at in (0..bytes.len()).step_by(BLOCK_SIZE) {
            let place = Place { store: STORE, segment: id, offset: at as u64 };
            let header = FrameHeader::decode(bytes[at..].first_chunk().unwrap(), &place);
            let Some(header) = header.ok().filter(|header| header.is_extent) else { continue };
            let record = extent::record_header(&bytes[at + BLOCK_SIZE..], &place).unwrap();
            if record.user_key == name.as_bytes() {
                return Standing {
                    file,
                    offset: at as u64,
                    len: header.len.into(),
                    header_len: record.len() as u64,
                    value_len: record.value_len as u64,
                };
            }
        }
    }
    panic!("{name} has no extent");
}

/// Whether the victim has had another value before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Past {
    Older,
    Nothing,
}

/// A store at rest whose first segment holds the large values.
fn rested(options: &StoreOptions, past: Past) -> (SimulatedDisk, Standing) {
    let mut world = World::open(SimulatedDisk::new(1), options.clone());
    if past == Past::Older {
        world.put(VICTIM, b"older");
    }
    world.put(DEAD, &value(DEAD, 600 << 10));
    for name in [FIRST, VICTIM, LAST] {
        world.put(name, &value(name, 1 << 20));
    }
    for (name, value) in others().into_iter().filter(|(_, value)| value.len() < 100) {
        world.put(&name, &value);
    }
    world.check_others("before");
    assert_eq!(world.get(VICTIM), Ok(Some(value(VICTIM, 1 << 20))));
    let disk = world.rest();
    let standing = extent_of(&disk, VICTIM);
    for name in [FIRST, LAST] {
        assert_eq!(extent_of(&disk, name).file, standing.file);
    }
    (disk, standing)
}

fn check(disk: &SimulatedDisk, options: &StoreOptions) -> CheckReport {
    let directory = options.directory.clone();
    let mut checking = storage::check(directory, options.identity, START_MS, false);
    run_procedure(&mut disk.clone(), OWNER, &mut checking).unwrap()
}

/// Bytes of the victim's value, from the extent's start.
fn places_in_value(standing: &Standing) -> [(&'static str, u64); 3] {
    let value = BLOCK_SIZE as u64 + standing.header_len;
    [
        ("the first byte of the value", value),
        ("a byte in the middle", value + standing.value_len / 2),
        ("the last byte of the value", value + standing.value_len - 1),
    ]
}

/// Bytes of its record's header.
fn places_in_header(standing: &Standing) -> [(&'static str, u64); 3] {
    let record = BLOCK_SIZE as u64;
    [
        ("the record's fields", record + 10),
        ("the user key", record + 25),
        ("the sum of a chunk", record + standing.header_len - 4),
    ]
}

/// All that its key cannot do without.
fn fatal_places(standing: &Standing) -> Vec<(&'static str, u64)> {
    [places_in_value(standing), places_in_header(standing)].concat()
}

#[test]
fn damaged_extent_is_reported_and_its_key_answers_an_error() {
    for checkpoints in [CheckpointOptions::NEVER, often()] {
        let options = options(checkpoints);
        let (clean, standing) = rested(&options, Past::Older);
        assert_eq!(check(&clean, &options).damage, []);
        for (what, at) in fatal_places(&standing) {
            let mut disk = clean.clone();
            disk.flip_byte(&standing.file, standing.offset + at, 1);
            let report = check(&disk, &options);
            assert_eq!((report.keys_damaged, report.suspect), (1, false), "{what}: {report:?}");
            let named = report.damage.iter().find(|found| found.file.as_str() == standing.file);
            let named = named.map(|found| (found.offset, found.len));
            assert_eq!(named, Some((standing.offset, standing.len)), "{what}: {report:?}");

            // A start does not read extents, with or without a checkpoint; the key's reader does.
            let mut world = World::open(disk, options.clone());
            assert!(!world.report.suspect, "{what}: {:?}", world.report);
            for _ in 0..2 {
                assert_eq!(world.get(VICTIM), Err(ReadError::Damaged), "{what}");
            }
            world.check_others(what);
            let repair = world.store.repairs().find(|repair| repair.key == Some(key(VICTIM).id));
            assert!(repair.is_some_and(|repair| repair.file.as_str() == standing.file), "{what}");
            // What a checkpoint says of it is not what makes it damaged.
            let mut world = World::open(world.rest(), options.clone());
            assert_eq!(world.get(VICTIM), Err(ReadError::Damaged), "{what}, started again");
            world.check_others(what);
        }
    }
}

#[test]
fn scrub_finds_a_damaged_extent_that_nobody_reads() {
    let options = options(CheckpointOptions::NEVER);
    let (clean, standing) = rested(&options, Past::Older);
    for (what, at) in fatal_places(&standing) {
        let mut disk = clean.clone();
        disk.flip_byte(&standing.file, standing.offset + at, 0x40);
        let mut world = World::open(disk, options.clone());
        world.scrub();
        let scrub = world.store.status().scrub;
        assert_eq!(scrub.records_damaged, 1, "{what}: {scrub:?}");
        let record = standing.offset + BLOCK_SIZE as u64;
        let repairs: Vec<_> = world.store.repairs().collect();
        let listed = repairs
            .iter()
            .any(|repair| repair.file.as_str() == standing.file && repair.offset == record);
        assert!(listed, "{what}: {repairs:?}");
        assert_eq!(world.get(VICTIM), Err(ReadError::Damaged), "{what}");
        world.check_others(what);
        world.scrub();
        assert_eq!(world.store.status().scrub.records_damaged, 1, "{what}: found once more");
    }
}

/// The copy ends in nothing, what stands before and behind the damaged value is still there, and
/// once the key has another value the segment goes.
#[test]
fn compaction_leaves_a_segment_with_a_damaged_extent_until_its_key_is_written() {
    for (checkpoints, past) in
        [(CheckpointOptions::NEVER, Past::Older), (often(), Past::Older), (often(), Past::Nothing)]
    {
        let options = options(checkpoints);
        let (clean, standing) = rested(&options, past);
        let has_file =
            |world: &World| world.disk.files().iter().any(|(name, _)| *name == standing.file);
        for (what, at) in fatal_places(&standing) {
            let mut disk = clean.clone();
            disk.flip_byte(&standing.file, standing.offset + at, 0x80);
            let mut world = World::open(disk, options.clone());
            world.compact();
            let counters = world.store.status().compaction;
            assert!(counters.segments_unfit > 0, "{what}: {counters:?}");
            assert!(has_file(&world), "{what}: the segment is gone");
            assert_eq!(world.get(VICTIM), Err(ReadError::Damaged), "{what}");
            world.check_others(what);
            let mut world = World::open(world.rest(), options.clone());
            assert_eq!(world.get(VICTIM), Err(ReadError::Damaged), "{what}, started again");
            world.check_others(what);

            if past == Past::Nothing {
                // What the scrub has marked may be overwritten.
                world = World::open(world.rest(), options.clone());
                world.scrub();
                assert!(world.store.repairs().count() > 0, "{what}");
            }
            world.put(VICTIM, &value("again", 1 << 20));
            if past == Past::Older {
                world = World::open(world.rest(), options.clone());
            }
            world.compact();
            // Without a header nobody can tell whose value that was.
            let is_told = !places_in_header(&standing).contains(&(what, at));
            assert_eq!(!has_file(&world), is_told, "{what}: {:?}", world.store.status());
            assert_eq!(world.get(VICTIM), Ok(Some(value("again", 1 << 20))), "{what}");
            world.check_others(what);
            let disk = world.rest();
            assert_eq!(check(&disk, &options).keys_damaged, 0, "{what}");
        }
    }
}

/// The segment of the touch that names a damaged value is sound: it can be compacted, also when a
/// read has found out about the value.
#[test]
fn touch_of_a_damaged_large_value_is_moved() {
    let options = options(CheckpointOptions::NEVER);
    let (clean, standing) = rested(&options, Past::Older);
    let mut world = World::open(clean, options.clone());
    let version = world.next_version();
    while let Effect::Pending(_) = world.store.touch(key(VICTIM), version, 0).unwrap() {
        world.turn();
    }
    world.put(DEAD, &value(DEAD, 1 << 20));
    world.put(DEAD, b"overwritten");
    let segments = |world: &World| -> Vec<String> {
        let names = world.disk.files().into_iter().map(|(name, _)| name);
        names.filter(|name| name.ends_with(".segment")).collect()
    };
    let mut disk = world.rest();
    disk.flip_byte(&standing.file, standing.offset + standing.len / 2, 1);
    let mut world = World::open(disk, options.clone());
    let before = segments(&world);
    assert_eq!(world.get(VICTIM), Err(ReadError::Damaged));
    world.compact();
    let left: Vec<String> =
        segments(&world).into_iter().filter(|name| before.contains(name)).collect();
    assert_eq!(left.first(), Some(&standing.file), "{before:?}");
    assert!(left.len() < before.len(), "{left:?}: {:?}", world.store.status().compaction);
    for _ in 0..2 {
        assert_eq!(world.get(VICTIM), Err(ReadError::Damaged));
        world.check_others("touched");
        world = World::open(world.rest(), options.clone());
    }
}

/// What nobody needs: the frame that a scan steps over, padding, values that no record names.
#[test]
fn damage_beside_the_value_costs_no_key() {
    let options = options(CheckpointOptions::NEVER);
    let (clean, standing) = rested(&options, Past::Older);
    let dead = extent_of(&clean, DEAD);
    let start = standing.offset;
    let end = start + standing.len;
    let in_dead = dead.offset + dead.len / 2;
    let harmless = [
        ("a byte of the frame's header", vec![start + 40], true),
        ("two bytes of the frame's header", vec![start + 40, start + 60], true),
        ("padding of the frame", vec![start + 2_000], false),
        ("padding of the value", vec![end - 1], false),
        ("a value that no record names", vec![in_dead], false),
        ("the header of such a value", vec![dead.offset + BLOCK_SIZE as u64 + 10], false),
    ];
    for (what, places, is_told) in harmless {
        let mut disk = clean.clone();
        places.iter().for_each(|at| disk.flip_byte(&standing.file, *at, 2));
        let report = check(&disk, &options);
        let said = !report.damage.is_empty() || !report.uncertain.is_empty();
        assert_eq!((said, report.keys_damaged), (is_told, 0), "{what}: {report:?}");
        let mut world = World::open(disk, options.clone());
        world.scrub();
        assert!(!world.report.suspect, "{what}: {:?}", world.report);
        assert_eq!(world.get(VICTIM), Ok(Some(value(VICTIM, 1 << 20))), "{what}");
        world.check_others(what);
    }
}

/// A delete of a damaged key is a delete: nothing older comes back.
#[test]
fn damaged_large_value_can_be_deleted() {
    let options = options(CheckpointOptions::NEVER);
    let (mut disk, standing) = rested(&options, Past::Older);
    disk.flip_byte(&standing.file, standing.offset + standing.len / 2, 1);
    let mut world = World::open(disk, options.clone());
    assert_eq!(world.get(VICTIM), Err(ReadError::Damaged));
    world.remove(VICTIM);
    assert_eq!(world.get(VICTIM), Ok(None));
    let mut world = World::open(world.rest(), options.clone());
    assert_eq!(world.get(VICTIM), Ok(None));
    world.compact();
    let mut world = World::open(world.rest(), options);
    assert_eq!(world.get(VICTIM), Ok(None));
    world.check_others("deleted");
}
