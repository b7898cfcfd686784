//! Targets for whole files: footers and checkpoints, and what people see of a node's files.

use std::rc::Rc;

use fastrand::Rng;
use kadring::export::{Reader, Writer};
use kadring::io::device::DeviceProbe;
use kadring::snapshot::{Catalog, CatalogFile};
use storage::{
    CheckpointLoader, CheckpointOptions, FileContent, FileTail, KeyRef, Now, Put, StoreOptions,
};
use wal::Lsn;
use wal::checksum::{self, Place};
use wal::disk::{FileName, HeapBuffers, IoBuffer};
use wal::footer::{self, Footer, FooterTable, SegmentSummary, TRAILER_LEN, Trailer};
use wal::group_commit::GroupCommitLimits;
use wal::record::{Key, Location, Namespace, RecordKind, TouchBody, Version};
use wal::replay::ReplayedRecord;
use wal::segment::Identity;

use crate::disk::{SimulatedDisk, run_procedure};
use crate::store_world::recovery::settle;

/// The segment that ends with the footers, and its length.
const SEGMENT: Place = Place { store: [9; 16], segment: 3, offset: 0 };
const SEGMENT_LEN: u64 = 4 << 20;

/// A segment's footer: its trailer and its entries.
///
/// # Panics
/// If a footer tells other than its summary, or of records out of order.
pub fn footer(bytes: &[u8]) {
    let _ = Trailer::decode(bytes, &SEGMENT, SEGMENT_LEN);
    let mut buffer = IoBuffer::with_capacity(bytes.len());
    buffer.extend_from_slice(bytes);
    let Ok(footer) = Footer::decode(buffer, &SEGMENT, SEGMENT_LEN) else { return };
    let summary = footer.summary();
    assert_eq!(u32::try_from(footer.records().count()), Ok(summary.record_count));
    let lsns: Vec<Lsn> = footer.records().map(|record| record.lsn).collect();
    assert!(lsns.is_sorted() && lsns.iter().all(|lsn| *lsn <= summary.last_lsn()));
}

/// Whether the bytes are a sound footer with a table.
#[cfg(test)]
pub(super) fn has_table(bytes: &[u8]) -> bool {
    let mut buffer = IoBuffer::with_capacity(bytes.len());
    buffer.extend_from_slice(bytes);
    Footer::decode(buffer, &SEGMENT, SEGMENT_LEN).is_ok()
}

/// A footer of up to 40 records.
pub(super) fn valid_footer(rng: &mut Rng) -> Vec<u8> {
    let first_lsn = Lsn(rng.u64(1..1_000));
    let record_count = rng.u32(..40);
    let mut table = FooterTable::default();
    for ordinal in 0..record_count {
        let kinds = [RecordKind::Put, RecordKind::Put, RecordKind::Touch, RecordKind::Tombstone];
        let kind = kinds[rng.usize(..kinds.len())];
        let offset = 8_192 + 256 * ordinal;
        let (header_len, value_len) = if kind == RecordKind::Put { (82, 100) } else { (72, 0) };
        let base = Location { segment: 2, offset: 4_176, header_len: 82, value_len: 50 };
        let touch = (kind == RecordKind::Touch).then_some(TouchBody {
            base,
            user_key_crc: 7,
            base_lsn: Lsn(1),
        });
        let value_len = if touch.is_some() { TouchBody::LEN as u32 } else { value_len };
        let lsn = first_lsn.plus(u64::from(ordinal));
        table.push(&ReplayedRecord {
            kind,
            namespace: Namespace::PLAIN,
            key: Key([rng.u8(..); 20]),
            user_key_crc: rng.u32(..),
            version: Version(rng.u128(..).to_be_bytes()),
            expiry_ms: if rng.bool() { 0 } else { rng.u64(..) },
            first_lsn: if rng.bool() { lsn } else { Lsn(1) },
            lsn,
            location: Location { segment: 3, offset, header_len, value_len },
            touch,
            damaged: false,
        });
    }
    let summary = SegmentSummary {
        first_lsn,
        record_count,
        frame_count: 1 + record_count / 4,
        frames_end: 32 << 10,
        wall_ms: 1_700_000_000_000,
        frames_crc: rng.u32(..),
    };
    let table = rng.u8(..8).gt(&0).then_some(&table);
    footer::encode(&SEGMENT, SEGMENT_LEN, table, &summary).0.as_slice().to_vec()
}

/// Makes the checksums of entries and trailer right.
pub(super) fn seal_footer(bytes: &mut [u8]) {
    let len = bytes.len();
    let Some(body_len) = len.checked_sub(TRAILER_LEN) else { return };
    let (body, trailer) = bytes.split_at_mut(body_len);
    let offset = SEGMENT_LEN.saturating_sub(len as u64);
    let entries_crc = checksum::seeded(&SEGMENT.at(offset), &[body]);
    trailer[84..88].copy_from_slice(&entries_crc.to_le_bytes());
    let place = SEGMENT.at(SEGMENT_LEN - TRAILER_LEN as u64);
    let trailer_crc = checksum::seeded(&place, &[&trailer[..92]]);
    trailer[92..].copy_from_slice(&trailer_crc.to_le_bytes());
}

/// A checkpoint, as it is and with its checksums made right.
pub fn checkpoint(bytes: &[u8]) {
    let _slots = storage::fuzz_checkpoint(bytes);
}

/// The checkpoint that a store writes, with the cut that the target looks for.
pub(super) fn valid_checkpoint(rng: &mut Rng) -> Vec<u8> {
    const LSN_AT: usize = 32;
    const LSN: u64 = 77;
    let directory = FileName::new("shard-01");
    let options = StoreOptions {
        directory,
        identity: Identity { store: [0x5A; 16], node_id: [7; 20], shard: 1, shard_count: 4 },
        must_exist: false,
        segment_bytes: 256 << 10,
        cache_bytes: 0,
        limits: storage::StoreLimits::default(),
        log: GroupCommitLimits::default(),
        buffers: Rc::new(HeapBuffers),
        checkpoints: CheckpointOptions {
            log_bytes_min: 1,
            index_bytes_factor: 0,
            loader: CheckpointLoader::Direct,
        },
        footers: true,
    };
    let mut disk = SimulatedDisk::new(1);
    let mut opening = storage::open(options, 1_700_000_000_000);
    let opened = run_procedure(&mut disk, 0, &mut opening).expect("an empty disk is no problem");
    let mut store = opened.store;
    for turn in 1..=20_u64 {
        let now_ms = 1_700_000_000_000 + turn * 1_000;
        store.set_now(Now { monotonic_ns: turn * 1_000_000_000, clock_ms: now_ms });
        for _ in 0..rng.usize(..8) {
            let mut id = [rng.u8(..3); 20];
            id[19] = rng.u8(..);
            let version = Version(u128::from(turn).to_be_bytes());
            let key = KeyRef::given(Key(id), b"a user key");
            let _ = store.put(&Put { key, version, expiry_ms: 0, value: b"value" });
        }
        store.end_turn();
        settle(&mut disk, &mut store);
    }
    let files = disk.files().into_iter().map(|(name, _)| name);
    let newest = files.filter(|name| name.ends_with(".checkpoint")).max();
    let mut bytes = newest.map(|name| disk.read_file(&name)).unwrap_or_default();
    if let Some(lsn) = bytes.get_mut(LSN_AT..LSN_AT + 8) {
        lsn.copy_from_slice(&LSN.to_le_bytes());
    }
    bytes
}

/// An export file, whole and in pieces: what is read of it is the same.
///
/// # Panics
/// If it is not.
pub fn export(bytes: &[u8]) {
    let cut = bytes.first().map_or(1, |first| usize::from(*first) % 29 + 1);
    assert_eq!(read_export([bytes].into_iter()), read_export(bytes.chunks(cut)));
}

fn read_export<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> Vec<String> {
    let (mut reader, mut found) = (Reader::new(), Vec::new());
    for mut input in pieces {
        loop {
            match reader.next(&mut input) {
                Ok(Some(item)) => found.push(format!("{item:?}")),
                Ok(None) => break,
                Err(error) => {
                    found.push(error.to_string());
                    return found;
                }
            }
        }
    }
    found.push(format!("{:?} {:?}", reader.finish(), reader.totals()));
    found
}

/// An export file of a few keys.
pub(super) fn valid_export(rng: &mut Rng) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new()).expect("memory takes everything");
    for _ in 0..rng.usize(..6) {
        let user_key: Vec<u8> = (0..rng.usize(..20)).map(|_| rng.u8(..)).collect();
        let value: Vec<u8> = (0..rng.usize(..400)).map(|_| rng.u8(..)).collect();
        let expiry_ms = if rng.bool() { 0 } else { rng.u64(..) };
        writer.key(&user_key, &value, expiry_ms).expect("memory takes everything");
    }
    writer.finish().expect("memory takes everything").0
}

/// A snapshot's catalog.
///
/// # Panics
/// If a catalog does not survive being encoded again, or names a file outside of its snapshot.
pub fn catalog(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let Ok(found) = Catalog::decode(text) else { return };
    let is_inside = |file: &CatalogFile| !file.name.starts_with('/') && !file.name.contains("..");
    assert!(found.files.iter().all(|file| is_inside(file) || file.name.contains("...")));
    assert_eq!(Catalog::decode(&found.encode()), Ok(found));
}

/// A catalog of a few files.
pub(super) fn valid_catalog(rng: &mut Rng) -> Vec<u8> {
    let file = |rng: &mut Rng| {
        let len = u64::from(rng.u32(..));
        let used = rng.u64(..=len);
        let tail = FileTail { offset: rng.u64(used..=len), crc32: rng.u32(..) };
        let tail = rng.bool().then_some(tail).filter(|tail| tail.offset < len);
        CatalogFile {
            name: format!("shard-{:02}/{:016x}.segment", rng.u8(..4), rng.u64(..)),
            len,
            content: FileContent { used, crc32: rng.u32(..), tail },
        }
    };
    let catalog = Catalog {
        id: format!("2026-{}", rng.u32(..)),
        created_ms: rng.u64(..1 << 60),
        store: [rng.u8(..); 16],
        files: (0..rng.usize(..4)).map(|_| file(rng)).collect(),
    };
    let text = if rng.bool() { catalog.encode() } else { catalog.encode_blocks() };
    text.into_bytes()
}

/// Makes the last line right, if there is one.
pub(super) fn seal_catalog(bytes: &mut [u8]) {
    const CHECK: &[u8] = b"# crc32 ";
    let at = bytes.windows(CHECK.len()).rposition(|window| window == CHECK);
    let Some(at) = at else { return };
    let line = format!("{:08x}\n", checksum::plain(&bytes[..at]));
    let rest = &mut bytes[at + CHECK.len()..];
    rest.iter_mut().zip(line.bytes()).for_each(|(byte, new)| *byte = new);
}

/// The notes on the device.
///
/// # Panics
/// If what was understood is not understood again.
pub fn device(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let Some(found) = DeviceProbe::from_toml(text) else { return };
    let again = DeviceProbe::from_toml(&found.to_toml()).expect("it was just written");
    assert_eq!(again.to_toml(), found.to_toml());
}

/// Notes as a node writes them.
pub(super) fn valid_device(rng: &mut Rng) -> Vec<u8> {
    let mut text = format!("# measured\nversion = 1\ndirect = {}\n", rng.bool());
    if rng.bool() {
        text += &format!("dsync_us = {}\nsync_us = {}\n", rng.u32(..), rng.u32(..));
    }
    let choice = ["dsync", "sync"][rng.usize(..2)];
    text += &format!("choice = \"{choice}\"\n");
    text.into_bytes()
}
