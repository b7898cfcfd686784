//! Damage at rest, on the simulated disk: single bytes, sectors, misplaced blocks, manifests.
//!
//! Whatever is damaged, the store opens, never answers with bytes that were not stored under the
//! key, and says that something is wrong.

use std::collections::BTreeSet;
use std::rc::Rc;

use fastrand::Rng;
use kadring_tests::disk::{SimulatedDisk, run_procedure};
use kadring_tests::store_world::recovery::settle;
use storage::{
    CheckReport, CheckpointLoader, CheckpointOptions, Effect, Event, Get, KeyRef, Now, Opened, Put,
    ReadError,
};
use storage::{RecoveryReport, Store, StoreOptions, WriteError};
use wal::checksum::Place;
use wal::disk::{BLOCK_SIZE, FileName, HeapBuffers};
use wal::frame::{FRAME_HEADER_LEN, FrameHeader};
use wal::group_commit::GroupCommitLimits;
use wal::record::{Key, RECORD_FIXED_LEN, RecordHeader, Version, own_half};
use wal::segment::{self, Identity, SegmentHeader, Space};

const NOW_MS: u64 = 1_700_000_000_000;
const KEYS: usize = 150;
const OWNER: u16 = 0;

/// Every value that a key ever had, the last one `None` if the key is gone.
struct Item {
    id: Key,
    user_key: Vec<u8>,
    values: Vec<Option<Vec<u8>>>,
}

impl Item {
    fn key(&self) -> KeyRef<'_> {
        let hashed = self.id == Key::of(&self.user_key);
        KeyRef { id: self.id, user_key: &self.user_key, hashed }
    }

    fn now(&self) -> Option<&[u8]> {
        self.values.last().and_then(|value| value.as_deref())
    }
}

/// A store at rest: several segments, all kinds of records, the idle frame written.
struct Rested {
    disk: SimulatedDisk,
    options: StoreOptions,
    items: Vec<Item>,
}

fn options() -> StoreOptions {
    let identity = Identity { store: [9; 16], node_id: [7; 20], shard: 0, shard_count: 1 };
    StoreOptions {
        directory: FileName::new("shard-00"),
        identity,
        must_exist: true,
        segment_bytes: 128 << 10,
        cache_bytes: 0,
        limits: storage::StoreLimits::default(),
        log: GroupCommitLimits { frame_bytes_max: 32 << 10, ..GroupCommitLimits::default() },
        buffers: Rc::new(HeapBuffers),
        checkpoints: CheckpointOptions::NEVER,
        footers: false,
    }
}

/// A store that starts from its frames, so that it reads all of them.
fn rest() -> Rested {
    rest_with(options())
}

fn rest_with(options: StoreOptions) -> Rested {
    let mut disk = SimulatedDisk::new(1);
    let first = StoreOptions { must_exist: false, ..options.clone() };
    let mut opening = storage::open(first, NOW_MS);
    let mut store = run_procedure(&mut disk, OWNER, &mut opening).unwrap().store;
    store.set_now(Now { monotonic_ns: 0, clock_ms: NOW_MS });
    let mut rng = Rng::with_seed(3);
    let mut items: Vec<Item> = (0..KEYS)
        .map(|index| {
            let user_key = format!("user key {index}").into_bytes();
            let given = Key([u8::try_from(index).unwrap(); 20]);
            let id = if index % 2 == 0 { Key::of(&user_key) } else { given };
            Item { id, user_key, values: Vec::new() }
        })
        .collect();
    for number in 1..=260_u128 {
        let item = &mut items[rng.usize(..KEYS)];
        write(&mut disk, &mut store, item, number, &mut rng);
        if rng.u8(..4) == 0 {
            store.end_turn();
            settle(&mut disk, &mut store);
        }
    }
    for _ in 0..3 {
        store.seal();
        settle(&mut disk, &mut store);
    }
    assert!(store.is_quiet() && store.status().segments > 3, "{:?}", store.status());
    // Nothing is pending, so this only closes the files.
    let disk = disk.crash(&mut rng);
    Rested { disk, options, items }
}

/// Lets a busy store go on by itself.
fn wait(disk: &mut SimulatedDisk, store: &mut Store) {
    let at = store.deadline_ns().expect("a busy store goes on by itself");
    store.set_now(Now { monotonic_ns: at, clock_ms: NOW_MS });
    store.end_turn();
    settle(disk, store);
}

/// Asks until the store is not busy.
fn ask<T>(
    disk: &mut SimulatedDisk,
    store: &mut Store,
    mut ask: impl FnMut(&mut Store) -> Result<T, WriteError>,
) -> T {
    for _ in 0..100 {
        match ask(store) {
            Err(WriteError::Busy) => wait(disk, store),
            result => return result.unwrap(),
        }
    }
    panic!("the store stays busy: {:?}", store.status());
}

fn put(disk: &mut SimulatedDisk, store: &mut Store, put: &Put<'_>) {
    ask(disk, store, |store| store.put(put));
}

/// Asks until what the store has to read first has been read.
fn change(
    disk: &mut SimulatedDisk,
    store: &mut Store,
    mut change: impl FnMut(&mut Store) -> Result<Effect, WriteError>,
) {
    loop {
        match ask(disk, store, &mut change) {
            Effect::Done(lsn) => return assert!(lsn.is_some()),
            Effect::Pending(id) => assert!(settle(disk, store).contains(&Event::Resolved { id })),
        }
    }
}

fn write(
    disk: &mut SimulatedDisk,
    store: &mut Store,
    item: &mut Item,
    number: u128,
    rng: &mut Rng,
) {
    let mut version = Version((number << 64).to_be_bytes());
    if number.is_multiple_of(2) {
        version.0[8..].copy_from_slice(&own_half(&[9; 16]));
    }
    let live = item.now().map(<[u8]>::to_vec);
    match (rng.u8(..10), live) {
        (0, Some(_)) => {
            change(disk, store, |store| store.remove(item.key(), version));
            item.values.push(None);
        }
        (1 | 2, Some(value)) => {
            let expiry_ms = NOW_MS + 100_000_000;
            change(disk, store, |store| store.touch(item.key(), version, expiry_ms));
            item.values.push(Some(value));
        }
        (3, _) => {
            // Expired when the store is opened next, a second later.
            let value = b"short-lived".to_vec();
            let expiry_ms = NOW_MS + 500;
            put(disk, store, &Put { key: item.key(), version, expiry_ms, value: &value });
            item.values.push(None);
        }
        _ => {
            let len = [0, 5, 200, 3_000, 9_000, 20_000][rng.usize(..6)];
            let mut value = vec![0; len];
            rng.fill(&mut value);
            put(disk, store, &Put { key: item.key(), version, expiry_ms: 0, value: &value });
            item.values.push(Some(value));
        }
    }
}

/// What a damaged store said.
struct Verdict {
    report: RecoveryReport,
    check: CheckReport,
    /// Keys whose answer was an error.
    errors: usize,
    /// Keys whose answer was an older state.
    older: usize,
    damage_events: usize,
}

impl Verdict {
    fn is_reported(&self) -> bool {
        // A last frame of a segment that is lost leaves no place, only a gap in the numbers: the
        // store is suspect.
        self.report.suspect
            || !self.report.damage.is_empty()
            || !self.report.uncertain.is_empty()
            || self.damage_events > 0
    }
}

impl Rested {
    /// Opens a damaged copy and reads every key.
    #[track_caller]
    fn try_damaged(&self, what: &str, damage: impl FnOnce(&mut SimulatedDisk)) -> Verdict {
        let mut disk = self.disk.clone();
        damage(&mut disk);
        let now_ms = NOW_MS + 1000;
        let options = self.options.clone();
        let directory = options.directory.clone();
        let mut checking = storage::check(directory, options.identity, now_ms, false);
        let check = run_procedure(&mut disk.clone(), OWNER, &mut checking);
        let check = check.unwrap_or_else(|error| panic!("{what}: check: {error}"));
        let mut opening = storage::open(options, now_ms);
        let opened = run_procedure(&mut disk, OWNER, &mut opening);
        let opened = opened.unwrap_or_else(|error| panic!("{what}: refused to open: {error}"));
        let Opened { mut store, report, .. } = opened;
        store.set_now(Now { monotonic_ns: 0, clock_ms: now_ms });
        let mut verdict = Verdict { report, check, errors: 0, older: 0, damage_events: 0 };
        for item in &self.items {
            let found = read(&mut disk, &mut store, item, &mut verdict.damage_events);
            match found {
                Ok(found) if found.as_deref() == item.now() => {}
                Err(_) => verdict.errors += 1,
                // A value that was never stored under this key is the one thing not to be seen.
                Ok(found) => {
                    let known = found.is_none() || item.values.contains(&found);
                    assert!(known, "{what}: {:?} has wrong bytes", item.id);
                    assert!(
                        verdict.report.suspect,
                        "{what}: {:?} is {:?} bytes, an older state, and the store not suspect",
                        item.id,
                        found.map(|value| value.len())
                    );
                    assert!(
                        found.is_some() || item.now().is_none(),
                        "{what}: {:?} is missing",
                        item.id
                    );
                    verdict.older += 1;
                }
            }
        }
        verdict
    }

    fn files(&self) -> Vec<(String, u64)> {
        self.disk.files()
    }

    fn segments(&self) -> Vec<(String, Vec<u8>)> {
        let names = self.files().into_iter().filter(|(name, _)| name.ends_with(".segment"));
        names.map(|(name, _)| (name.clone(), self.disk.read_file(&name))).collect()
    }
}

fn read(
    disk: &mut SimulatedDisk,
    store: &mut Store,
    item: &Item,
    damage_events: &mut usize,
) -> Result<Option<Vec<u8>>, ReadError> {
    match store.get(&item.key())? {
        Get::Missing => Ok(None),
        Get::Found(value) => Ok(Some(value.value.to_vec())),
        Get::Pending(_) => {
            let mut answer = Ok(None);
            for event in settle(disk, store) {
                match event {
                    Event::Read { result, .. } => answer = result,
                    Event::Damaged { .. } => *damage_events += 1,
                    _ => {}
                }
            }
            answer.map(|found| found.map(|(_, value)| value.value.to_vec()))
        }
    }
}

/// Offset and length in bytes.
type Extent = (u64, u64);

/// Where the frames of a segment start, and where its records' headers lie.
fn layout(name: &str, bytes: &[u8]) -> (Vec<Extent>, Vec<Extent>) {
    let file = name.rsplit('/').next().unwrap();
    let segment = segment::parse_file_name(file).unwrap();
    let (mut frames, mut records) = (Vec::new(), Vec::new());
    let mut start = BLOCK_SIZE;
    // Frames of an earlier life of the file, which may follow, do not decode here.
    let frame_at = |start: usize| {
        let place = Place { store: [9; 16], segment, offset: start as u64 };
        FrameHeader::decode(bytes.get(start..)?.first_chunk()?, &place).ok()
    };
    while let Some(header) = frame_at(start) {
        let len = header.len as usize;
        frames.push((start as u64, len as u64));
        let mut at = start + FRAME_HEADER_LEN;
        while at + RECORD_FIXED_LEN <= start + len {
            let place = Place { store: [9; 16], segment, offset: at as u64 };
            let Ok(header) = RecordHeader::decode(&bytes[at..start + len], &place) else { break };
            records.push((at as u64, header.len() as u64));
            at += header.record_len();
        }
        start += len;
    }
    (frames, records)
}

/// The positions to flip: all of every kind of header, samples of the rest.
fn positions(rested: &Rested) -> Vec<(String, u64)> {
    let mut rng = Rng::with_seed(5);
    let mut chosen = BTreeSet::new();
    for copy in ["shard-00/manifest-0", "shard-00/manifest-1"] {
        let bytes = rested.disk.read_file(copy);
        let used = bytes.iter().rposition(|byte| *byte != 0).unwrap() + 1;
        chosen.extend((0..used as u64).map(|at| (copy.to_owned(), at)));
        chosen.extend((0..10).map(|_| (copy.to_owned(), rng.u64(used as u64..4096))));
    }
    for (name, bytes) in rested.segments() {
        let at = |at: u64| (name.clone(), at);
        chosen.extend((0..SegmentHeader::LEN as u64).map(at));
        chosen.extend((0..5).map(|_| at(rng.u64(SegmentHeader::LEN as u64..4096))));
        let (frames, records) = layout(&name, &bytes);
        for _ in 0..3.min(frames.len()) {
            let (start, len) = frames[rng.usize(..frames.len())];
            chosen.extend((start..start + FRAME_HEADER_LEN as u64).map(at));
            chosen.extend((0..30).map(|_| at(rng.u64(start..start + len))));
        }
        for _ in 0..3.min(records.len()) {
            let (start, len) = records[rng.usize(..records.len())];
            chosen.extend((start..start + len).map(at));
        }
        let end = frames.last().map_or(4096, |(start, len)| start + len);
        if end > 4096 {
            chosen.extend((0..150).map(|_| at(rng.u64(4096..end))));
        }
        let len = bytes.len() as u64;
        // What an earlier life of the file left there means nothing, damaged or not.
        let reused = Space::of(&bytes) == Space::Reused;
        if end < len && !reused {
            chosen.extend((0..10).map(|_| at(rng.u64(end..len))));
        }
    }
    chosen.into_iter().collect()
}

/// The frame that holds a byte, or the byte alone.
fn surroundings(rested: &Rested, name: &str, offset: u64) -> (u64, u64) {
    if !name.ends_with(".segment") {
        return (0, 4096);
    }
    let (frames, _) = layout(name, &rested.disk.read_file(name));
    let frame = frames.into_iter().find(|(start, len)| (*start..start + len).contains(&offset));
    frame.unwrap_or((offset - offset % BLOCK_SIZE as u64, BLOCK_SIZE as u64))
}

#[test]
fn undamaged_store_is_sound() {
    let rested = rest();
    let verdict = rested.try_damaged("nothing", |_| ());
    assert!(!verdict.is_reported(), "{:?}", verdict.report);
    assert_eq!((verdict.errors, verdict.older), (0, 0));
    assert!(verdict.check.damage.is_empty() && verdict.check.uncertain.is_empty());
}

#[test]
fn any_flipped_byte_is_reported_and_never_read_as_a_value() {
    let rested = rest();
    let positions = positions(&rested);
    assert!(positions.len() > 2_000, "only {} positions", positions.len());
    let mut rng = Rng::with_seed(6);
    let mut errors = 0;
    for (name, offset) in positions {
        let xor = 1 << rng.u8(..8);
        let what = format!("{name} at {offset} xor {xor:#04x}");
        let verdict = rested.try_damaged(&what, |disk| disk.flip_byte(&name, offset, xor));
        assert!(verdict.is_reported(), "{what}: not reported");
        assert!(!verdict.report.suspect, "{what}: {:?}", verdict.report);
        assert!(verdict.errors <= 1, "{what}: {} keys answer errors", verdict.errors);
        errors += verdict.errors;
        let (start, len) = surroundings(&rested, &name, offset);
        let found = verdict.check.damage.iter().chain(&verdict.check.uncertain);
        let named = found.clone().any(|damage| {
            damage.file.as_str() == name
                && (start..start + len).contains(&damage.offset)
                && !damage.reason.is_empty()
        });
        assert!(named, "{what}: check says {:?}", verdict.check);
    }
    assert!(errors > 0, "no flip has hit a value: nothing was tested");
}

/// What a checkpoint covers is not looked at before it is wanted: it need not be reported at the
/// start, but is still never read as a value, and nothing older comes to light.
#[test]
fn flipped_bytes_beside_a_checkpoint_and_footers_are_never_read_as_values() {
    for loader in [CheckpointLoader::Direct, CheckpointLoader::Mapped] {
        let checkpoints =
            CheckpointOptions { log_bytes_min: 64 << 10, index_bytes_factor: 0, loader };
        let rested = rest_with(StoreOptions { checkpoints, footers: true, ..options() });
        let files = rested.files();
        let (checkpoint, len) =
            files.iter().find(|(name, _)| name.ends_with(".checkpoint")).unwrap();
        let verdict = rested.try_damaged("nothing", |_| ());
        assert!(verdict.report.sources.checkpoint_slots > 0, "{:?}", verdict.report);
        let mut rng = Rng::with_seed(8);
        let mut positions: Vec<_> = positions(&rested).into_iter().step_by(11).collect();
        positions.extend((0..50).map(|_| (checkpoint.clone(), rng.u64(..*len))));
        let mut errors = 0;
        for (name, offset) in positions {
            let xor = 1 << rng.u8(..8);
            let what = format!("{name} at {offset} xor {xor:#04x}");
            let verdict = rested.try_damaged(&what, |disk| disk.flip_byte(&name, offset, xor));
            assert!(!verdict.report.suspect && verdict.older == 0, "{what}: {:?}", verdict.report);
            assert!(verdict.errors <= 1, "{what}: {} keys answer errors", verdict.errors);
            if name == *checkpoint {
                let refused = &verdict.report.sources.checkpoint_refused;
                assert!(refused.is_some() && verdict.errors == 0, "{what}: {:?}", verdict.report);
            }
            errors += verdict.errors;
        }
        assert!(errors > 0, "no flip has hit a value: nothing was tested");
    }
}

#[test]
fn zeroed_sectors_and_misplaced_blocks_are_never_read_as_values() {
    let rested = rest();
    let mut rng = Rng::with_seed(7);
    let segments = rested.segments();
    let mut noticed = 0;
    for _ in 0..600 {
        let (name, bytes) = &segments[rng.usize(..segments.len())];
        let (other_name, other) = &segments[rng.usize(..segments.len())];
        let offset = rng.u64(..bytes.len() as u64);
        let from = rng.usize(..other.len() / BLOCK_SIZE) * BLOCK_SIZE;
        let zeroed = rng.bool();
        let to = offset - offset % BLOCK_SIZE as u64;
        let what = match zeroed {
            true => format!("zeroed sector of {name} at {offset}"),
            false => format!("block {from} of {other_name} over {to} of {name}"),
        };
        let block = &other[from..from + BLOCK_SIZE];
        let verdict = rested.try_damaged(&what, |disk| match zeroed {
            true => disk.zero_sector(name, offset),
            false => disk.overwrite_at_rest(name, to, block),
        });
        if verdict.errors + verdict.older > 0 {
            assert!(verdict.is_reported(), "{what}: {:?}", verdict.report);
            noticed += 1;
        }
    }
    assert!(noticed > 50, "only {noticed} of 600 changed an answer");
}

/// The write to come lands elsewhere in its file, or nowhere, and reports success: its key and
/// what it hit answer errors while the store lives, and never an older state.
#[test]
fn write_that_goes_astray_under_a_running_store_is_never_read_as_a_value() {
    const STRUCK: usize = 7;
    let options = StoreOptions { must_exist: false, ..options() };
    let blocks = options.segment_bytes / BLOCK_SIZE as u64;
    let (mut struck, mut hit) = (0, 0);
    for block in (0..blocks).map(Some).chain([None]) {
        let mut disk = SimulatedDisk::new(1);
        let mut opening = storage::open(options.clone(), NOW_MS);
        let mut store = run_procedure(&mut disk, OWNER, &mut opening).unwrap().store;
        store.set_now(Now { monotonic_ns: 0, clock_ms: NOW_MS });
        let mut items = Vec::new();
        for index in 0..=20_usize {
            // The last one overwrites.
            let index = if index == 20 { STRUCK } else { index };
            let user_key = format!("user key {index}").into_bytes();
            let value = vec![u8::try_from(items.len()).unwrap(); 3_000];
            let item = Item { id: Key::of(&user_key), user_key, values: vec![Some(value)] };
            if items.len() == 20 {
                match block {
                    Some(block) => disk.misdirect_next_write(block * BLOCK_SIZE as u64),
                    None => disk.lose_next_write(),
                }
            }
            let version = Version((items.len() as u128 + 1).to_be_bytes());
            let value = item.now().unwrap();
            put(&mut disk, &mut store, &Put { key: item.key(), version, expiry_ms: 0, value });
            store.end_turn();
            settle(&mut disk, &mut store);
            items.push(item);
        }
        items.swap_remove(STRUCK);
        for item in &items {
            match read(&mut disk, &mut store, item, &mut 0) {
                Ok(found) => assert_eq!(found.as_deref(), item.now(), "{block:?}: wrong bytes"),
                Err(_) if item.now().is_some_and(|value| value[0] == 20) => struck += 1,
                Err(_) => hit += 1,
            }
        }
    }
    assert!(struck >= blocks && hit > 10, "{struck} of {blocks} gone, {hit} others hit");
}

#[test]
fn one_bad_manifest_loses_nothing() {
    let rested = rest();
    for copy in ["shard-00/manifest-0", "shard-00/manifest-1"] {
        let verdict = rested.try_damaged(copy, |disk| disk.zero_sector(copy, 0));
        assert!(verdict.is_reported() && !verdict.report.suspect);
        assert_eq!((verdict.errors, verdict.older), (0, 0));
    }
}

#[test]
fn two_bad_manifests_leave_all_keys_readable_and_misses_in_doubt() {
    let rested = rest();
    let verdict = rested.try_damaged("both manifests", |disk| {
        disk.zero_sector("shard-00/manifest-0", 0);
        disk.flip_byte("shard-00/manifest-1", 60, 1);
    });
    assert!(verdict.is_reported() && verdict.report.suspect);
    let gone = rested.items.iter().filter(|item| item.now().is_none()).count();
    assert!(gone > 0);
    assert_eq!((verdict.errors, verdict.older), (gone, 0), "{:?}", verdict.report);
}
