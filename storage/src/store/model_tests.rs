//! The store against a map, on a disk in memory, over restarts: hostile prefixes, overwrites that
//! memory has forgotten, deletes, touches, expiries, clears and compaction, everything from a seed.

use std::collections::BTreeMap;
use std::rc::Rc;

use fastrand::Rng;
use wal::disk::{DiskErrorKind, DiskOutput, HeapBuffers, OpenMode};
use wal::group_commit::CommitDurability;
use wal::procedure::Procedure;

use super::*;
use crate::error::WriteError;

const START_MS: u64 = 1_700_000_000_000;

/// Files that keep whatever was written.
#[derive(Clone, Debug, Default)]
struct Disk {
    files: BTreeMap<String, Vec<u8>>,
    open: BTreeMap<FileId, String>,
}

impl Disk {
    fn carry_out(&mut self, DiskRequest { id, operation }: DiskRequest) -> DiskCompletion {
        let (mut result, mut returned) = (Ok(DiskOutput::Done), None);
        match operation {
            DiskOperation::ListDirectory { name } => {
                let inside =
                    |path: &String| Some(path.strip_prefix(name.as_str())?[1..].to_owned());
                let files = self.files.iter();
                let listed = files.filter_map(|(path, b)| Some((inside(path)?, b.len() as u64)));
                result = Ok(DiskOutput::Listed(listed.collect()));
            }
            DiskOperation::Open { file, name, mode } => {
                let path = name.as_str().to_owned();
                if mode == OpenMode::Create {
                    self.files.insert(path.clone(), Vec::new());
                }
                result = match self.files.get(&path) {
                    Some(bytes) => Ok(DiskOutput::Opened { len: bytes.len() as u64 }),
                    None => Err(DiskError { kind: DiskErrorKind::NotFound, code: 2 }),
                };
                self.open.insert(file, path);
            }
            DiskOperation::Close { file } => drop(self.open.remove(&file)),
            DiskOperation::Read { file, offset, len, mut buffer } => {
                let bytes = &self.files[&self.open[&file]];
                let (from, to) = (offset as usize, offset as usize + len);
                buffer.set_len(0);
                buffer.extend_from_slice(&bytes[from.min(bytes.len())..to.min(bytes.len())]);
                returned = Some(buffer);
            }
            DiskOperation::Write { file, offset, buffer, .. } => {
                let bytes = self.files.get_mut(&self.open[&file]).unwrap();
                let (from, to) = (offset as usize, offset as usize + buffer.len());
                bytes.resize(bytes.len().max(to), 0);
                bytes[from..to].copy_from_slice(buffer.as_slice());
                returned = Some(buffer);
            }
            DiskOperation::Rename { from, to } => {
                let bytes = self.files.remove(from.as_str()).unwrap();
                self.files.insert(to.as_str().to_owned(), bytes);
                for path in self.open.values_mut().filter(|path| *path == from.as_str()) {
                    *path = to.as_str().to_owned();
                }
            }
            DiskOperation::Map { file, len } => {
                let mut memory = IoBuffer::with_capacity(len);
                memory.extend_from_slice(&self.files[&self.open[&file]][..len]);
                returned = Some(memory);
            }
            DiskOperation::Remove { name } => drop(self.files.remove(name.as_str())),
            _ => {}
        }
        DiskCompletion { id, result, buffer: returned }
    }
}

/// What a key holds: value, version, expiry.
type State = (Vec<u8>, Version, u64);

struct World {
    rng: Rng,
    disk: Disk,
    options: StoreOptions,
    store: Store,
    ids: Vec<Key>,
    model: BTreeMap<Key, State>,
    now_ms: u64,
    monotonic_ns: u64,
    version: u128,
    held: VecDeque<DiskRequest>,
    events: VecDeque<Event>,
    freed: u64,
    used: Used,
}

/// What restarts went by.
#[derive(Clone, Copy, Debug, Default)]
struct Used {
    checkpoints: u64,
    covered: u64,
    footers: u64,
}

fn run<T>(disk: &mut Disk, mut procedure: Procedure<T>) -> T {
    loop {
        if let Some(output) = procedure.take_output() {
            return output;
        }
        let request = procedure.poll_request().expect("a procedure waits for the disk");
        procedure.handle_disk(disk.carry_out(request));
    }
}

impl World {
    fn new(seed: u64) -> Self {
        Self::keeping(seed, 0)
    }

    /// A store in which what has expired stays so long.
    fn keeping(seed: u64, expired_stay_ms: u64) -> Self {
        let mut rng = Rng::with_seed(seed);
        let options = StoreOptions {
            directory: FileName::new("shard-00"),
            identity: Identity { store: [3; 16], node_id: [2; 20], shard: 0, shard_count: 1 },
            must_exist: false,
            segment_bytes: 64 << 10,
            cache_bytes: [0, 4 << 10, 1 << 20][rng.usize(..3)],
            limits: StoreLimits { expired_stay_ms, ..StoreLimits::default() },
            log: GroupCommitLimits {
                frame_bytes_max: 16 << 10,
                extent_bytes_min: [8 << 10, 256 << 10][rng.usize(..2)],
                ..GroupCommitLimits::default()
            },
            buffers: Rc::new(HeapBuffers),
            checkpoints: CheckpointOptions {
                log_bytes_min: rng.u64(1..200_000),
                index_bytes_factor: 0,
                loader: CheckpointLoader::Direct,
            },
            footers: rng.bool(),
        };
        let mut ids: Vec<Key> = (0..20).map(|_| Key(std::array::from_fn(|_| rng.u8(..)))).collect();
        // Far more keys of one 40-bit prefix than its pages hold, and a few of another.
        for (prefix, count) in [(7, 30), (9, 4)] {
            ids.extend((0..count).map(|last| {
                let mut id = [prefix; 20];
                id[19] = last;
                Key(id)
            }));
        }
        let mut disk = Disk::default();
        let store = run(&mut disk, crate::open(options.clone(), START_MS)).unwrap().store;
        let mut world = Self {
            rng,
            disk,
            options,
            store,
            ids,
            model: BTreeMap::new(),
            now_ms: START_MS,
            monotonic_ns: 0,
            version: 0,
            held: VecDeque::new(),
            events: VecDeque::new(),
            freed: 0,
            used: Used::default(),
        };
        world.pass(0);
        world
    }

    fn pass(&mut self, ms: u64) {
        self.now_ms += ms;
        self.monotonic_ns += ms * 1_000_000;
        self.store.set_now(Now { monotonic_ns: self.monotonic_ns, clock_ms: self.now_ms });
        let gone_ms = self.now_ms - self.options.limits.expired_stay_ms;
        self.model.retain(|_, (_, _, expiry_ms)| *expiry_ms == 0 || *expiry_ms > gone_ms);
    }

    fn next_version(&mut self) -> Version {
        self.version += 1;
        Version(self.version.to_be_bytes())
    }

    fn expiry(&mut self) -> u64 {
        match self.rng.u8(..6) {
            0 => self.now_ms + self.rng.u64(1..3_000),
            1 => self.now_ms + self.rng.u64(100_000..400_000),
            // Over already: it says that the key is gone.
            2 if self.options.limits.expired_stay_ms > 0 => self.now_ms - self.rng.u64(..1_000),
            _ => 0,
        }
    }

    /// Lets some or all disk requests end.
    fn work(&mut self, count: usize) {
        for _ in 0..count {
            self.held.extend(std::iter::from_fn(|| self.store.poll_request()));
            let Some(request) = self.held.pop_front() else { break };
            let completion = self.disk.carry_out(request);
            self.store.handle_disk(completion);
            self.events.extend(std::iter::from_fn(|| self.store.poll_event()));
        }
    }

    /// Lets everything end.
    fn settle(&mut self) {
        // Spare segments are prepared as time goes by; the wall clock need not.
        self.monotonic_ns += 100_000_000;
        self.pass(0);
        for _ in 0..40 {
            self.store.end_turn();
            self.work(usize::MAX);
        }
    }

    fn event<T>(&mut self, wanted: impl Fn(&Event) -> Option<T>) -> T {
        for _ in 0..10_000 {
            self.events.extend(std::iter::from_fn(|| self.store.poll_event()));
            while let Some(event) = self.events.pop_front() {
                assert!(!matches!(event, Event::Damaged { .. }), "{event:?}");
                if let Some(found) = wanted(&event) {
                    return found;
                }
            }
            self.work(1);
        }
        panic!("no answer");
    }

    fn resolved(&mut self, wanted: ReadId) {
        self.event(|event| matches!(event, Event::Resolved { id } if *id == wanted).then_some(()));
    }

    fn step(&mut self) {
        let id = self.ids[self.rng.usize(..self.ids.len())];
        match self.rng.u8(..100) {
            0..45 => self.put(id),
            45..60 => self.remove(id),
            60..68 => self.touch(id),
            68..88 => self.check_get(id),
            88..92 => self.check_lookup(id),
            92..95 => {
                let ms = self.rng.u64(..2_000);
                self.pass(ms);
            }
            95 if self.rng.u8(..4) == 0 => self.clear(),
            96 => self.store.compact(),
            97 if self.rng.u8(..3) == 0 => self.check_scan(),
            98 if self.rng.u8(..3) == 0 => self.restart(),
            _ => {
                self.store.end_turn();
                let count = self.rng.usize(..30);
                self.work(count);
            }
        }
    }

    fn put(&mut self, id: Key) {
        let len = [0, 30, 700, 4_000, 9_000, 20_000][self.rng.usize(..6)];
        let (mut value, expiry_ms) = (vec![0; len], self.expiry());
        self.rng.fill(&mut value);
        let version = self.next_version();
        let key = KeyRef::given(id, &id.0);
        if self.rng.bool() {
            let value = Bytes::from(value.clone());
            let put = SharedPut { key, version, expiry_ms, value: &value };
            loop {
                match self.store.put_shared(&put) {
                    Ok(Effect::Done(_)) => break,
                    Ok(Effect::Pending(_)) | Err(WriteError::Busy) => self.settle(),
                    Err(error) => panic!("{error}"),
                }
            }
        } else {
            loop {
                match self.store.put(&Put { key, version, expiry_ms, value: &value }) {
                    Ok(_) => break,
                    Err(WriteError::Busy) => self.settle(),
                    Err(error) => panic!("{error}"),
                }
            }
        }
        self.model.insert(id, (value, version, expiry_ms));
    }

    /// Carries out a command that may have to wait.
    fn effect(
        &mut self,
        mut command: impl FnMut(&mut Store) -> Result<Effect, WriteError>,
    ) -> Option<Lsn> {
        loop {
            match command(&mut self.store) {
                Ok(Effect::Done(lsn)) => return lsn,
                Ok(Effect::Pending(id)) => self.resolved(id),
                Err(WriteError::Busy) => self.settle(),
                Err(error) => panic!("{error}"),
            }
        }
    }

    fn remove(&mut self, id: Key) {
        let version = self.next_version();
        let removed = self.effect(|store| store.remove(KeyRef::given(id, &id.0), version));
        assert_eq!(removed.is_some(), self.model.remove(&id).is_some(), "{id:?}");
    }

    fn touch(&mut self, id: Key) {
        let (version, expiry) = (self.next_version(), self.expiry());
        let key = KeyRef::given(id, &id.0);
        let touched = self.effect(|store| store.touch(key, version, expiry));
        assert_eq!(touched.is_some(), self.model.contains_key(&id), "{id:?}");
        if let Some(state) = self.model.get_mut(&id) {
            (state.1, state.2) = (version, expiry);
        }
    }

    fn clear(&mut self) {
        let version = self.next_version();
        while self.store.clear(version).is_err() {
            self.settle();
        }
        self.model.clear();
        assert!(self.store.is_empty());
    }

    fn check_get(&mut self, id: Key) {
        let key = KeyRef::given(id, &id.0);
        let found = match self.store.get(&key).unwrap() {
            Get::Missing => None,
            Get::Found(value) => Some(value),
            Get::Pending(wanted) => self.event(|event| match event {
                Event::Read { id, result } if *id == wanted => {
                    Some(result.clone().unwrap().map(|(_, value)| value))
                }
                _ => None,
            }),
        };
        let found = found.map(|found| (found.value.to_vec(), found.version, found.expiry_ms));
        assert_eq!(found.as_ref(), self.model.get(&id), "{id:?} at version {}", self.version);
    }

    fn check_lookup(&mut self, id: Key) {
        let found = loop {
            match self.store.lookup(&KeyRef::given(id, &id.0)).unwrap() {
                Lookup::Missing => break None,
                Lookup::Found(found) => break Some(found),
                Lookup::Pending(id) => self.resolved(id),
            }
        };
        let wanted = self.model.get(&id).map(|(value, version, expiry_ms)| Entry {
            value_len: value.len(),
            version: *version,
            expiry_ms: *expiry_ms,
        });
        assert_eq!(found, wanted, "{id:?}");
        if self.options.limits.expired_stay_ms > 0 {
            let lookup = self.store.lookup_id(&id);
            assert_eq!(lookup, Ok(wanted.map_or(Lookup::Missing, Lookup::Found)), "{id:?}");
        }
    }

    fn check_scan(&mut self) {
        let (mut found, mut from) = (Vec::new(), Some(Key([0; 20])));
        while let Some(first) = from {
            let count = self.rng.usize(1..10);
            let wanted = self.store.scan(first, count);
            let (keys, next) = self.event(|event| match event {
                Event::Scanned { id, keys, next } if *id == wanted => Some((keys.clone(), *next)),
                _ => None,
            });
            found.extend(keys);
            from = next;
        }
        let found: Vec<_> =
            found.iter().map(|k| (k.key, k.user_key.to_vec(), k.version, k.expiry_ms)).collect();
        let of_model =
            |(id, (_, version, expiry)): (&Key, &State)| (*id, id.0.to_vec(), *version, *expiry);
        let wanted: Vec<_> = self.model.iter().map(of_model).collect();
        assert_eq!(found, wanted);
    }

    fn restart(&mut self) {
        // Compaction comes to an end when nobody writes.
        let mut last_lsn = None;
        for _ in 0..50 {
            if last_lsn == Some(self.store.last_lsn()) {
                break;
            }
            last_lsn = Some(self.store.last_lsn());
            self.settle();
        }
        let status = self.store.status();
        assert_eq!(Some(status.durable_lsn), last_lsn, "{status:?}");
        self.freed += self.store.status().compaction.segments_freed;
        self.held.clear();
        self.events.clear();
        self.disk.open.clear();
        self.options.must_exist = true;
        let checking =
            crate::check(self.options.directory.clone(), self.options.identity, self.now_ms, false);
        let report = run(&mut self.disk.clone(), checking).unwrap();
        assert!(report.damage.is_empty() && !report.suspect, "{report:?}");
        self.restart_in_other_ways();
        let opened = run(&mut self.disk, crate::open(self.options.clone(), self.now_ms)).unwrap();
        assert!(!opened.report.suspect && opened.report.damage.is_empty(), "{:?}", opened.report);
        self.store = opened.store;
        self.pass(0);
    }

    /// From checkpoint and tail by either loader, from footers, and from bare segments comes the
    /// same; a damaged checkpoint does no harm.
    fn restart_in_other_ways(&mut self) {
        let (disk, options) = (self.disk.clone(), self.options.clone());
        for way in 0..5 {
            self.options.footers = matches!(way, 0..3);
            self.options.checkpoints.loader = match way {
                0 | 3 => CheckpointLoader::Direct,
                _ => CheckpointLoader::Mapped,
            };
            let is_checkpoint = |name: &str| name.ends_with(".checkpoint");
            let damaged = matches!(way, 2 | 4);
            let mut has_checkpoint = false;
            for (_, bytes) in self.disk.files.iter_mut().filter(|(name, _)| is_checkpoint(name)) {
                has_checkpoint = true;
                if damaged {
                    let at = self.rng.usize(..bytes.len());
                    bytes[at] ^= 0x20;
                }
            }
            let opening = crate::open(self.options.clone(), self.now_ms);
            let opened = run(&mut self.disk, opening).unwrap();
            let sources = opened.report.sources;
            let used = sources.checkpoint_bytes > 0;
            assert_eq!(used, has_checkpoint && !damaged, "way {way}: {sources:?}");
            self.used.checkpoints += u64::from(used);
            self.used.covered += sources.segments_covered;
            self.used.footers += sources.segments_from_footers;
            self.store = opened.store;
            self.pass(0);
            self.check_all();
            self.held.clear();
            self.events.clear();
            self.disk = disk.clone();
        }
        self.options = options;
    }

    fn check_all(&mut self) {
        for id in self.ids.clone() {
            self.check_get(id);
            self.check_lookup(id);
        }
        self.check_scan();
    }
}

/// Says which seed was running when something panics.
struct Running(u64);

impl Drop for Running {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("seed {}", self.0);
        }
    }
}

/// Tries a seed; returns how many segments were compacted, and what restarts went by.
fn try_seed(seed: u64) -> (u64, Used) {
    try_world(seed, World::new(seed))
}

fn try_world(seed: u64, mut world: World) -> (u64, Used) {
    let _running = Running(seed);
    for step in 0..1_500 {
        world.step();
        if step % 300 == 299 {
            world.check_all();
        }
    }
    world.restart();
    world.check_all();
    (world.freed, world.used)
}

#[test]
fn store_agrees_with_a_map_over_restarts_and_compaction() {
    let (mut freed, mut used) = (0, Used::default());
    for seed in 0..200 {
        let (freed_here, here) = try_seed(seed);
        freed += freed_here;
        used.checkpoints += here.checkpoints;
        used.covered += here.covered;
        used.footers += here.footers;
    }
    assert!(freed > 100, "only {freed} segments were compacted");
    assert!(used.checkpoints > 100 && used.covered > 100 && used.footers > 100, "{used:?}");
}

#[test]
fn what_has_expired_stays_as_long_as_it_is_to() {
    let (mut freed, mut used) = (0, Used::default());
    for seed in 0..60 {
        let (freed_here, here) = try_world(seed, World::keeping(seed, 100_000));
        freed += freed_here;
        used.checkpoints += here.checkpoints;
    }
    assert!(freed > 30 && used.checkpoints > 30, "{freed}, {used:?}");
}

#[test]
fn answer_about_an_expired_key_does_not_outlive_its_segment() {
    try_seed(917);
}

/// An expired put was buried as a copy that came after a newer put and its tombstone; the tombstone
/// went for the sake of the copy, and the copy as nothing that old was left.
#[test]
fn copy_of_an_old_tombstone_does_not_stand_in_for_a_newer_one() {
    try_seed(144);
}

/// Also that of a log which nobody asks to sync, and whose active segment is never durable.
#[test]
fn compaction_keeps_space_near_what_is_live() {
    for durability in [CommitDurability::Always, CommitDurability::Os] {
        let mut world = World::new(1);
        world.options.log.durability = durability;
        world.restart();
        let ids: Vec<Key> = (0..60u8).map(|n| Key(std::array::from_fn(|_| n))).collect();
        for round in 0..60_u8 {
            for id in &ids {
                let version = world.next_version();
                let key = KeyRef::given(*id, &id.0);
                let put = Put { key, version, expiry_ms: 0, value: &[round; 5_000] };
                while world.store.put(&put).is_err() {
                    world.settle();
                }
            }
            world.settle();
        }
        let status = world.store.status();
        assert!(status.compaction.segments_freed > 50, "{durability:?}: {status:?}");
        assert!(status.segment_bytes < 1_200_000, "{durability:?}, 300 kB are live: {status:?}");
        // The spare and the rest of the active segment are not in use.
        assert!((300_000..status.segment_bytes).contains(&status.used_bytes), "{status:?}");
        assert_eq!(status.compaction.segments_unfit, 0);
    }
}

/// A log that leaves syncing to the operating system must sync when freed segments wait for it: at
/// the limit no write comes that would end its segment.
#[test]
fn space_is_given_back_at_the_limit_whatever_the_durability() {
    for durability in [CommitDurability::Always, CommitDurability::Os] {
        let mut world = World::new(2);
        world.options.limits.disk_bytes_max = Some(9 * world.options.segment_bytes);
        world.options.log.durability = durability;
        world.restart();
        let put = |world: &mut World, n: u8| {
            let id = Key([n; 20]);
            let key = KeyRef::given(id, &id.0);
            let version = world.next_version();
            world.store.put(&Put { key, version, expiry_ms: 0, value: &[n; 5_000] })
        };
        for n in 0..u8::MAX {
            while put(&mut world, n) == Err(WriteError::Busy) {
                world.settle();
            }
        }
        assert_eq!(put(&mut world, 1), Err(WriteError::DiskFull), "1.2 MB in 576 KiB");
        let version = world.next_version();
        let cleared = (0..20).any(|_| {
            let cleared = world.store.clear(version);
            assert!(matches!(cleared, Ok(_) | Err(WriteError::Busy)), "{cleared:?}");
            world.settle();
            cleared.is_ok()
        });
        assert!(cleared, "{durability:?}: {:?}", world.store.status());
        for _ in 0..10 {
            world.settle();
        }
        assert!(put(&mut world, 1).is_ok(), "{durability:?}: {:?}", world.store.status());
    }
}
