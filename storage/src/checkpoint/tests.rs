//! Checkpoints written to, damaged on and read from a disk in memory.

use std::collections::BTreeMap;

use proptest::prelude::*;
use wal::Lsn;
use wal::disk::{
    BLOCK_SIZE, DiskCompletion, DiskError, DiskErrorKind, DiskOperation, DiskOutput, FileId,
    FileName, IoBuffer, RequestId,
};
use wal::procedure::Procedure;
use wal::record::{Key, Version};

use super::fuzz::{FUZZED, fuzz_checkpoint};
use super::load::{Checkpoint, load, load_mapped};
use super::write::{CheckpointWriter, Step};
use super::{
    CheckpointError, CheckpointFacts, CheckpointId, SegmentSummary, file_name, format,
    is_unfinished, parse_file_name, temporary_name,
};
use crate::index::page::PageError;
use crate::index::slot::{ExpiryHint, Place, Prefix, SegmentNumber, SizeClass, Slot, SlotKind};
use crate::index::table::Index;
use crate::index::walk::Keep;

const FILE: FileId = FileId(9);
const BUDGET: usize = 64 << 10;
const FAILURE: DiskError = DiskError { kind: DiskErrorKind::Io, code: 5 };

/// Files by name, one of which may be open.
#[derive(Default)]
struct Disk {
    files: BTreeMap<FileName, Vec<u8>>,
    open: Option<FileName>,
    operations: usize,
    /// What was done, shortly, but writes one after the other once.
    log: Vec<&'static str>,
    /// Which operation fails.
    failing: Option<usize>,
}

impl Disk {
    fn carry_out(&mut self, id: RequestId, operation: DiskOperation) -> DiskCompletion {
        self.operations += 1;
        let is_failing = self.failing == Some(self.operations - 1);
        self.log.push(name_of(&operation));
        self.log.dedup();
        let (result, buffer) = match operation {
            // The kernel closes a file even when it reports an error.
            DiskOperation::Close { .. } => {
                self.open = None;
                (Ok(DiskOutput::Done), None)
            }
            operation if is_failing => (Err(FAILURE), buffer_of(operation)),
            DiskOperation::Open { name, mode, .. } => {
                assert!(self.open.is_none());
                if mode == wal::disk::OpenMode::Create {
                    self.files.insert(name.clone(), Vec::new());
                }
                let len = self.files[&name].len() as u64;
                self.open = Some(name);
                (Ok(DiskOutput::Opened { len }), None)
            }
            DiskOperation::Write { offset, buffer, .. } => {
                let file = self.files.get_mut(self.open.as_ref().unwrap()).unwrap();
                let (start, end) = (offset as usize, offset as usize + buffer.len());
                assert!(start.is_multiple_of(BLOCK_SIZE) && end.is_multiple_of(BLOCK_SIZE));
                file.resize(file.len().max(end), 0xEE);
                file[start..end].copy_from_slice(buffer.as_slice());
                (Ok(DiskOutput::Done), Some(buffer))
            }
            DiskOperation::Read { offset, len, mut buffer, .. } => {
                let rest = &self.files[self.open.as_ref().unwrap()][offset as usize..];
                let found = len.min(rest.len());
                buffer.spare_mut()[..found].copy_from_slice(&rest[..found]);
                buffer.set_len(found);
                (Ok(DiskOutput::Done), Some(buffer))
            }
            DiskOperation::Rename { from, to } => {
                let bytes = self.files.remove(&from).unwrap();
                self.files.insert(to, bytes);
                (Ok(DiskOutput::Done), None)
            }
            DiskOperation::Remove { name } => {
                let removed = self.files.remove(&name);
                assert!(removed.is_some(), "{name} is not there");
                (Ok(DiskOutput::Done), None)
            }
            _ => (Ok(DiskOutput::Done), None),
        };
        DiskCompletion { id, result, buffer }
    }
}

fn name_of(operation: &DiskOperation) -> &'static str {
    match operation {
        DiskOperation::Open { .. } => "open",
        DiskOperation::Close { .. } => "close",
        DiskOperation::Read { .. } => "read",
        DiskOperation::Write { .. } => "write",
        DiskOperation::Sync { .. } => "sync",
        DiskOperation::SyncDirectory { .. } => "sync directory",
        DiskOperation::Rename { .. } => "rename",
        _ => "other",
    }
}

fn buffer_of(operation: DiskOperation) -> Option<IoBuffer> {
    match operation {
        DiskOperation::Write { buffer, .. } | DiskOperation::Read { buffer, .. } => Some(buffer),
        _ => None,
    }
}

fn key(prefix: u64, rest: u64) -> Key {
    let mut bytes = Prefix(prefix).first_key().0;
    bytes[12..].copy_from_slice(&rest.to_be_bytes());
    Key(bytes)
}

fn slot(serial: u64) -> Slot {
    Slot {
        place: Place { segment: SegmentNumber((serial % 200) as u16), line: serial as u32 },
        size_class: SizeClass::of(serial),
        kind: if serial.is_multiple_of(9) { SlotKind::Tombstone } else { SlotKind::Put },
        damaged: false,
        foreign: false,
        shadowed: serial.is_multiple_of(13),
        expiry: ExpiryHint::NEVER,
    }
}

fn spread(serial: u64) -> Key {
    key(serial.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 24, serial)
}

/// An index of so many spread keys and so many of one prefix.
fn index(keys: u64, hostile: u64) -> Index {
    let mut index = Index::new();
    (0..keys).for_each(|serial| {
        index.insert(&spread(serial), slot(serial));
    });
    (0..hostile).for_each(|serial| {
        index.insert(&key(77, serial), slot(1000 + serial));
    });
    index
}

fn facts(segments: u16) -> CheckpointFacts {
    let summary = |number: u16| SegmentSummary {
        number: SegmentNumber(number * 3),
        id: 1_000_000 - u64::from(number),
        end: u64::from(number) << 12,
        lsns: (number > 0).then_some((Lsn(u64::from(number)), Lsn(u64::from(number) + 5))),
        tombstone_bytes: 72 * u64::from(number),
        complete: number.is_multiple_of(2),
        has_clear: number.is_multiple_of(3),
    };
    CheckpointFacts {
        id: FUZZED,
        version_max: Version([3; 16]),
        wall_ms: 1_800_000_000_000,
        segments: (0..segments).map(summary).collect(),
        bases: (0..u64::from(segments)).map(|n| (key(77, n), slot(n))).collect(),
    }
}

fn contents(index: &Index) -> Vec<(Prefix, Slot)> {
    index.walk(Prefix(0)).collect()
}

fn directory() -> FileName {
    FileName::new("shard-01")
}

/// Writes a checkpoint, completing operations late and in reverse, and calls `between` after each
/// step; how it ended.
fn write(
    disk: &mut Disk,
    index: &mut Index,
    facts: CheckpointFacts,
    mut between: impl FnMut(&mut Index, &mut CheckpointWriter),
) -> Result<FileName, DiskError> {
    let mut writer = CheckpointWriter::begin(index, facts, directory(), FILE);
    let mut under_way = Vec::new();
    for step in 0.. {
        match writer.step(index, BUDGET) {
            Step::Start(operation) => under_way.push((RequestId(step), operation)),
            Step::Paused => {}
            Step::Waiting => {
                let (id, operation) = under_way.pop().expect("something to wait for");
                writer.handle_disk(disk.carry_out(id, operation));
            }
            Step::Complete(complete) => {
                assert_eq!(disk.files[&complete.name].len() as u64, complete.len);
                assert_eq!(writer.file_len(), complete.len);
                return Ok(complete.name);
            }
            Step::Failed(error) => return Err(error),
        }
        between(index, &mut writer);
    }
    unreachable!("the steps never end")
}

fn written(index: &mut Index, facts: CheckpointFacts) -> Vec<u8> {
    let mut disk = Disk::default();
    let name = write(&mut disk, index, facts, |_, _| {}).unwrap();
    assert_eq!(disk.files.len(), 1);
    disk.files.remove(&name).unwrap()
}

fn mapped(bytes: &[u8]) -> Result<Checkpoint, CheckpointError> {
    let mut file = IoBuffer::with_capacity(bytes.len());
    file.extend_from_slice(bytes);
    load_mapped(file, &FUZZED)
}

fn read(bytes: &[u8]) -> Result<Checkpoint, CheckpointError> {
    let name = file_name(&directory(), FUZZED.lsn);
    let mut disk = Disk::default();
    disk.files.insert(name.clone(), bytes.to_vec());
    read_from(&mut disk, name)
}

fn read_from(disk: &mut Disk, name: FileName) -> Result<Checkpoint, CheckpointError> {
    let mut procedure = Procedure::new(|port| async move { load(&port, FILE, name, FUZZED).await });
    let mut most = 0;
    loop {
        let mut requests: Vec<_> = std::iter::from_fn(|| procedure.poll_request()).collect();
        most = most.max(requests.len());
        if let Some(loaded) = procedure.take_output() {
            assert!(disk.open.is_none(), "the file is closed whatever happens");
            assert!(most <= 8);
            return loaded;
        }
        requests.reverse();
        for request in requests {
            procedure.handle_disk(disk.carry_out(request.id, request.operation));
        }
    }
}

/// Both loaders refuse the bytes, with the same error but for where a read ends.
#[track_caller]
fn refused(bytes: &[u8]) -> CheckpointError {
    let by_reads = read(bytes).expect_err("the reads are refused");
    let by_mapping = mapped(bytes).expect_err("the mapping is refused");
    assert_eq!(by_reads, by_mapping);
    by_mapping
}

#[track_caller]
fn check_round_trip(keys: u64, hostile: u64, segments: u16) {
    let mut index = index(keys, hostile);
    let facts = facts(segments);
    let bytes = written(&mut index, facts.clone());
    for loaded in [read(&bytes), mapped(&bytes)] {
        let mut loaded = loaded.unwrap();
        assert_eq!(loaded.facts, facts);
        assert_eq!(loaded.index.len(), index.len());
        assert_eq!(loaded.index.live_len(), index.live_len());
        assert!(contents(&loaded.index) == contents(&index));
        // What was loaded works like any other index, and makes the next checkpoint.
        for serial in keys..keys + 5000 {
            loaded.index.insert(&spread(serial), slot(serial));
        }
        loaded.index.sweep(Prefix(0), usize::MAX, &mut |_, slot| match slot.place.line % 3 {
            0 => Keep::Drop,
            _ => Keep::Stay,
        });
        let again = written(&mut loaded.index, facts.clone());
        assert!(contents(&mapped(&again).unwrap().index) == contents(&loaded.index));
        loaded.index.clear();
        while loaded.index.release() {}
        // A mapping goes as a whole, when no page of it is left.
        assert!(loaded.index.bytes() < (3 << 20) + bytes.len() as u64);
    }
}

#[test]
fn checkpoint_is_read_as_it_was_written() {
    check_round_trip(0, 0, 0);
    check_round_trip(1000, 20, 3);
    check_round_trip(1000, 0, 127);
    check_round_trip(1000, 0, 128);
}

/// Several chunks of each kind, a last one that is shorter, a header of several blocks.
#[test]
fn large_checkpoint_is_read_as_it_was_written() {
    check_round_trip(200_000, 80_000, 1000);
}

#[test]
fn checkpoint_holds_the_index_as_it_was_at_the_cut() {
    let mut index = index(100_000, 40_000);
    let before = contents(&index);
    let mut disk = Disk::default();
    let mut serial = 100_000u64;
    let name = write(&mut disk, &mut index, facts(3), |index, _| {
        for _ in 0..500 {
            serial += 1;
            let (old, near) = (serial.wrapping_mul(31) % 100_000, serial % 60_000);
            index.insert(&spread(serial), slot(serial));
            index.insert(&key(77, near), slot(serial));
            index.remove(&spread(old), slot(old).place);
            index.remove(&key(77, near / 2), slot(1000 + near / 2).place);
        }
        if serial == 110_000 {
            index.clear();
        }
    });
    assert!(serial > 115_000, "the index changed between the steps");
    assert_eq!(index.cut_bytes(), 0);
    let loaded = mapped(&disk.files[&name.unwrap()]).unwrap();
    assert!(contents(&loaded.index) == before);
}

#[test]
fn every_flipped_byte_is_refused() {
    let mut bytes = written(&mut index(3000, 200), facts(5));
    let sound = mapped(&bytes).unwrap();
    assert_eq!(sound.index.len(), 3200);
    // Every byte of the header's fields, the ends of every block, and a sample of the others.
    let sampled = (0..bytes.len())
        .filter(|at| *at < 300 || at % BLOCK_SIZE < 2 || at % BLOCK_SIZE > 4094 || at % 97 == 0);
    for at in sampled.collect::<Vec<_>>() {
        let difference = 1 << (at % 8);
        bytes[at] ^= difference;
        refused(&bytes);
        bytes[at] ^= difference;
    }
    let trailer = bytes.len() - BLOCK_SIZE;
    for at in trailer..trailer + 20 {
        bytes[at] ^= 0x10;
        refused(&bytes);
        bytes[at] ^= 0x10;
    }
}

#[test]
fn checkpoint_of_another_length_is_refused() {
    let bytes = written(&mut index(3000, 20), facts(5));
    for len in (0..bytes.len()).step_by(BLOCK_SIZE).chain([1, 100, bytes.len() - 1]) {
        refused(&bytes[..len]);
    }
    let longer = [&bytes[..], &[0; BLOCK_SIZE]].concat();
    let error = CheckpointError::Length { needed: bytes.len() as u64, found: longer.len() as u64 };
    assert_eq!(refused(&longer), error);
    // Blocks exchanged within the file are whole, but not of their place.
    let mut exchanged = bytes.clone();
    exchanged.copy_within(3 * BLOCK_SIZE..4 * BLOCK_SIZE, BLOCK_SIZE);
    assert!(matches!(refused(&exchanged), CheckpointError::Checksum { .. }));
}

#[test]
fn checkpoint_of_another_store_shard_or_cut_is_refused() {
    let mut index = index(100, 0);
    let others = [
        CheckpointId { store: [1; 16], ..FUZZED },
        CheckpointId { shard: 2, ..FUZZED },
        CheckpointId { shard_count: 8, ..FUZZED },
        CheckpointId { lsn: Lsn(78), ..FUZZED },
    ];
    for id in others {
        let bytes = written(&mut index, CheckpointFacts { id, ..facts(1) });
        assert_eq!(refused(&bytes), CheckpointError::Foreign);
    }
    let mut bytes = written(&mut index, facts(1));
    bytes[8] = 9;
    format::reseal(&FUZZED, &mut bytes).unwrap();
    assert_eq!(refused(&bytes), CheckpointError::Version { found: 9 });
    bytes[0] = b'X';
    assert_eq!(refused(&bytes), CheckpointError::NotACheckpoint);
}

#[test]
fn checksums_are_of_their_place() {
    let sum = |id: &CheckpointId, offset| format::checksum_at(id, offset, &[b"bytes"]);
    let here = sum(&FUZZED, 4096);
    assert_ne!(here, sum(&FUZZED, 8192));
    assert_ne!(here, sum(&CheckpointId { lsn: Lsn(78), ..FUZZED }, 4096));
    assert_ne!(here, sum(&CheckpointId { store: [0; 16], ..FUZZED }, 4096));
}

#[test]
fn hostile_counts_are_refused_before_memory_is_taken() {
    let bytes = written(&mut index(1000, 20), facts(4));
    let with = |at: usize, word: u64, len: usize| {
        let mut hostile = bytes.clone();
        hostile[at..at + len].copy_from_slice(&word.to_le_bytes()[..len]);
        refused(&hostile)
    };
    assert_eq!(with(64, u64::MAX, 8), CheckpointError::Malformed { position: 64 });
    assert_eq!(with(72, u64::MAX, 8), CheckpointError::Malformed { position: 72 });
    assert_eq!(with(80, u64::MAX, 4), CheckpointError::Malformed { position: 80 });
    assert!(matches!(with(64, 1 << 30, 8), CheckpointError::Length { .. }));
    assert!(matches!(with(72, 1 << 30, 8), CheckpointError::Length { .. }));
    assert!(matches!(with(80, 1 << 14, 4), CheckpointError::Length { .. }));
}

/// Fields that make no sense under checksums that match.
#[test]
fn sealed_nonsense_is_refused() {
    let bytes = written(&mut index(1000, 20), facts(4));
    let resealed = |at: usize, byte: u8| {
        let mut hostile = bytes.clone();
        hostile[at] = byte;
        format::reseal(&FUZZED, &mut hostile).unwrap();
        refused(&hostile)
    };
    assert_eq!(resealed(95, 1), CheckpointError::Malformed { position: 88 });
    // The second segment's number below the first's, and beyond 14 bits.
    assert_eq!(resealed(96 + 48 + 40, 0), CheckpointError::Malformed { position: 144 });
    assert_eq!(resealed(96 + 48 + 41, 0x40), CheckpointError::Malformed { position: 144 });
    // The first page's mark.
    assert_eq!(resealed(BLOCK_SIZE + 4, 1), CheckpointError::Index(PageError::NotAPage));
    // The first crowded entry's kind, and its key above the second's.
    let crowded = bytes.len() - 2 * BLOCK_SIZE;
    let malformed = CheckpointError::Malformed { position: crowded as u64 };
    assert_eq!(resealed(crowded + 27, 0x18), malformed);
    assert_eq!(resealed(crowded, 0xFF), CheckpointError::Index(PageError::Crowded));
}

#[test]
fn failure_of_any_operation_leaves_nothing_behind() {
    let mut disk = Disk::default();
    let mut index = index(100_000, 100);
    write(&mut disk, &mut index, facts(1), |_, _| {}).unwrap();
    let operations = disk.operations;
    assert!(operations > 9);
    let mut failed = 0;
    for failing in 0..operations {
        let mut disk = Disk { failing: Some(failing), ..Disk::default() };
        let result = write(&mut disk, &mut index, facts(1), |_, _| {});
        // A failing close is none.
        failed += usize::from(result == Err(FAILURE));
        assert_eq!(disk.files.len(), usize::from(result.is_ok()), "operation {failing}");
        assert!(disk.open.is_none());
        assert_eq!(index.cut_bytes(), 0);
    }
    assert_eq!(failed, operations - 1);
}

/// Each only after what it depends on has ended: the disk here carries one out when it is waited
/// for, latest first.
#[test]
fn checkpoint_has_its_name_only_once_it_is_synced() {
    let (mut disk, mut index) = (Disk::default(), index(200_000, 100));
    write(&mut disk, &mut index, facts(1), |_, _| {}).unwrap();
    let expected = ["open", "write", "sync", "close", "rename", "sync directory"];
    assert_eq!(disk.log, expected);
}

#[test]
fn cancelled_checkpoint_leaves_nothing_behind() {
    let mut index = index(100_000, 100);
    for at in 0..60 {
        let mut disk = Disk::default();
        let mut step = 0;
        let result = write(&mut disk, &mut index, facts(1), |_, writer| {
            step += 1;
            if step == at {
                writer.cancel(FAILURE);
            }
        });
        assert_eq!(disk.files.len(), usize::from(result.is_ok()));
        assert!(disk.open.is_none());
    }
}

#[test]
fn failing_reads_are_told() {
    let mut index = index(100_000, 100);
    let bytes = written(&mut index, facts(1));
    let name = file_name(&directory(), FUZZED.lsn);
    let whole = {
        let mut disk = Disk::default();
        disk.files.insert(name.clone(), bytes.clone());
        read_from(&mut disk, name.clone()).unwrap();
        disk.operations
    };
    for failing in 0..whole - 1 {
        let mut disk = Disk { failing: Some(failing), ..Disk::default() };
        disk.files.insert(name.clone(), bytes.clone());
        let error = read_from(&mut disk, name.clone()).unwrap_err();
        assert!(matches!(error, CheckpointError::Disk { source: FAILURE, .. }), "{error}");
    }
}

#[test]
fn steps_stay_within_their_budget() {
    let mut index = index(50_000, 0);
    let mut writer = CheckpointWriter::begin(&mut index, facts(1), directory(), FILE);
    let (mut paused, mut disk) = (0, Disk::default());
    loop {
        match writer.step(&mut index, 10 * BLOCK_SIZE) {
            Step::Start(operation) => {
                writer.handle_disk(disk.carry_out(RequestId(0), operation));
            }
            Step::Paused => paused += 1,
            Step::Waiting => panic!("nothing is under way"),
            Step::Complete(_) => break,
            Step::Failed(error) => panic!("{error}"),
        }
    }
    // A pause after each 10 pages but the last of a chunk.
    let pages = index.pages();
    assert!(paused >= pages / 10 - 1 && paused <= pages / 10 + 1, "{paused} for {pages}");
}

#[test]
fn names_tell_the_cut() {
    let name = file_name(&FileName::new(""), Lsn(0xAB));
    assert_eq!(parse_file_name(name.as_str()), Some(Lsn(0xAB)));
    assert_eq!(parse_file_name("ab.checkpoint"), None);
    assert_eq!(parse_file_name("00000000000000AB.checkpoint"), None);
    let unfinished = temporary_name(&FileName::new(""), Lsn(0xAB));
    assert_eq!(parse_file_name(unfinished.as_str()), None);
    assert!(is_unfinished(unfinished.as_str()) && !is_unfinished(name.as_str()));
}

/// The fuzz target on damaged checkpoints and on noise; any bytes must come back.
#[test]
fn fuzzed_bytes_come_back() {
    let sound = written(&mut index(600, 20), facts(2));
    assert_eq!(fuzz_checkpoint(&sound), 2 * 620);
    let config = ProptestConfig { cases: 300, failure_persistence: None, ..Default::default() };
    let flips = prop::collection::vec((0..sound.len(), any::<u8>()), 1..6);
    let noise = prop::collection::vec(any::<u8>(), 0..9000);
    proptest!(config, |(flips in flips, noise in noise, len in 0..sound.len())| {
        let mut bytes = sound.clone();
        for (at, byte) in flips {
            bytes[at] = byte;
        }
        let _slots = fuzz_checkpoint(&bytes);
        let _slots = fuzz_checkpoint(&bytes[..len]);
        prop_assert_eq!(fuzz_checkpoint(&noise), 0);
    });
}

/// The bytes of a golden file; see `tests/integration/golden.rs` for how it is written.
fn golden(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for line in text.lines() {
        let line = line.split('#').next().unwrap_or_default().trim();
        if let Some(count) = line.strip_prefix("zeros ") {
            bytes.resize(bytes.len() + count.parse::<usize>().unwrap(), 0);
        } else {
            let words = line.split_whitespace();
            bytes.extend(words.map(|word| u8::from_str_radix(word, 16).unwrap()));
        }
    }
    bytes
}

/// Made by an independent program from the tables of docs/FORMAT.md.
#[test]
fn checkpoint_has_its_golden_bytes() {
    let golden = golden(include_str!("../../../tests/data/golden/checkpoint.hex"));
    let wall_ms = 1_795_238_400_000u64;
    let mut version = [0; 16];
    version[..8].copy_from_slice(&((wall_ms << 16) | 7).to_be_bytes());
    version[8..].copy_from_slice(&std::array::from_fn::<u8, 8, _>(|i| 0x10 + i as u8));
    let slot = |segment: u16, line: u32, class: u64| Slot {
        place: Place { segment: SegmentNumber(segment), line },
        size_class: SizeClass::of(class),
        kind: SlotKind::Put,
        damaged: false,
        foreign: false,
        shadowed: false,
        expiry: ExpiryHint::NEVER,
    };
    let key = |last: u8| Key(std::array::from_fn(|at| if at == 19 { last } else { 0xAB }));
    let summary = |number: u16, end: u64, first: u64, last: u64| SegmentSummary {
        number: SegmentNumber(number),
        id: if number == 0 { 0x1f } else { 0x20 },
        end,
        lsns: Some((Lsn(first), Lsn(last))),
        tombstone_bytes: if number == 0 { 72 } else { 0 },
        complete: number == 0,
        has_clear: number == 2,
    };
    let id = CheckpointId {
        store: std::array::from_fn(|at| 0xA0 + at as u8),
        shard: 3,
        shard_count: 4,
        lsn: Lsn(5),
    };
    let facts = CheckpointFacts {
        id,
        version_max: Version(version),
        wall_ms,
        segments: vec![summary(0, 0x3000, 1, 3), summary(2, 0x5000, 4, 5)],
        bases: vec![(key(9), slot(0, 0x100, 256))],
    };
    let mut index = Index::new();
    let mut plain = Key([0; 20]);
    plain.0[..5].copy_from_slice(&[0x12, 0x34, 0x56, 0x78, 0x9A]);
    index.insert(&plain, slot(0, 0x41, 16));
    for serial in 1..=8u8 {
        let mut slot = slot(2, 0x80 + u32::from(serial), 18);
        slot.shadowed = serial < 7;
        match serial {
            7 => slot.kind = SlotKind::Tombstone,
            8 => slot = Slot::from_word(slot.to_word() | 0x1234 << 44).unwrap(),
            _ => {}
        }
        index.insert(&key(serial), slot);
    }
    index.insert(&key(9), Slot { kind: SlotKind::Touch, ..slot(2, 0x200, 24) });
    let bytes = written(&mut index, facts.clone());
    let differs = bytes.iter().zip(&golden).position(|(ours, theirs)| ours != theirs);
    assert_eq!((differs, bytes.len()), (None, golden.len()));
    let mut file = IoBuffer::with_capacity(golden.len());
    file.extend_from_slice(&golden);
    let loaded = load_mapped(file, &id).unwrap();
    assert_eq!(loaded.facts, facts);
    assert!(contents(&loaded.index) == contents(&index));
}
