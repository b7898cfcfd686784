//! One function for each decoder of the node.

use std::rc::Rc;

use fastrand::Rng;
use kadring::resp::frame::{Parsed, Parser, ParserLimits};
use storage::{Now, StoreOptions};
use wal::Lsn;
use wal::checksum::{self, Place};
use wal::disk::{BLOCK_SIZE, FileName, HeapBuffers, IoBuffer};
use wal::frame::{self, FRAME_HEADER_LEN, FrameHeader, FrameStamp};
use wal::group_commit::GroupCommitLimits;
use wal::manifest::{CheckpointEntry, Manifest, Quarantine, SegmentEntry, Verdict};
use wal::record::{
    Key, Location, Namespace, RECORD_FIXED_LEN, Record, RecordHeader, RecordKind, TouchBody,
    Version, own_half,
};
use wal::segment::{self, Identity, SegmentHeader};

use super::{Target, extents, files, krpc, links, mainline};
use crate::disk::{SimulatedDisk, run_procedure};

/// Every decoder.
pub const TARGETS: [Target; 22] = [
    Target { name: "frame_header", run: frame_header, valid: valid_frame, seal: seal_frame },
    Target { name: "record", run: record, valid: valid_record, seal: seal_record },
    Target { name: "segment_header", run: segment_header, valid: valid_segment, seal: keep },
    Target { name: "manifest", run: manifest, valid: valid_manifest, seal: seal_manifest },
    Target { name: "touch_body", run: touch_body, valid: valid_touch_body, seal: keep },
    Target { name: "resp", run: resp, valid: valid_resp, seal: keep },
    Target { name: "mainline_item", run: mainline::item, valid: mainline::valid_item, seal: keep },
    Target {
        name: "mainline_server",
        run: mainline::server,
        valid: mainline::valid_session,
        seal: keep,
    },
    Target {
        name: "peer_message",
        run: links::peer_message,
        valid: links::valid_messages,
        seal: keep,
    },
    Target { name: "link", run: links::link, valid: links::valid_link_steps, seal: keep },
    Target {
        name: "link_with_secret",
        run: links::link_with_secret,
        valid: links::valid_link_steps,
        seal: keep,
    },
    Target {
        name: "sealed_datagram",
        run: links::sealed_datagram,
        valid: links::valid_datagrams,
        seal: links::seal_datagrams,
    },
    Target { name: "segment_file", run: segment_file, valid: valid_frames, seal: seal_frame },
    Target {
        name: "footer",
        run: files::footer,
        valid: files::valid_footer,
        seal: files::seal_footer,
    },
    Target {
        name: "checkpoint",
        run: files::checkpoint,
        valid: files::valid_checkpoint,
        seal: keep,
    },
    Target { name: "export", run: files::export, valid: files::valid_export, seal: keep },
    Target {
        name: "catalog",
        run: files::catalog,
        valid: files::valid_catalog,
        seal: files::seal_catalog,
    },
    Target {
        name: "extent",
        run: extents::extent,
        valid: extents::valid_extent,
        seal: extents::seal_extent,
    },
    Target { name: "device", run: files::device, valid: files::valid_device, seal: keep },
    Target { name: "bencode", run: krpc::bencode, valid: krpc::valid_bencode, seal: keep },
    Target { name: "krpc", run: krpc::krpc, valid: krpc::valid_krpc, seal: keep },
    Target {
        name: "kademlia_node",
        run: krpc::kademlia_node,
        valid: krpc::valid_steps,
        seal: keep,
    },
];

const IDENTITY: Identity = Identity { store: [9; 16], node_id: [7; 20], shard: 0, shard_count: 1 };
const SEGMENT_LEN: usize = 64 << 10;

fn place() -> Place {
    Place { store: IDENTITY.store, segment: 1, offset: BLOCK_SIZE as u64 }
}

fn keep(_: &mut [u8]) {}

/// A frame's header.
///
/// # Panics
/// If a header does not survive being encoded again.
pub fn frame_header(bytes: &[u8]) {
    let Some(header) = bytes.first_chunk::<FRAME_HEADER_LEN>() else { return };
    let damaged = FrameHeader::decode_damaged(header, &place()).map(|(header, _)| header);
    let _ = FrameHeader::store_of(header, 1);
    for found in FrameHeader::decode(header, &place()).ok().into_iter().chain(damaged) {
        let _ = found.last_lsn();
        assert_eq!(FrameHeader::decode(&found.encode(&place()), &place()), Ok(found));
    }
}

fn valid_frame(rng: &mut Rng) -> Vec<u8> {
    let record = valid_record(rng);
    let mut buffer = IoBuffer::with_capacity(FRAME_HEADER_LEN + record.len());
    buffer.extend_from_slice(&[0; FRAME_HEADER_LEN]);
    buffer.extend_from_slice(&record);
    let first_lsn = Lsn(rng.u64(1..100));
    let stamp = FrameStamp {
        first_lsn,
        record_count: 1,
        durable_lsn: Lsn(first_lsn.0 - 1),
        wall_ms: 1_700_000_000_000,
    };
    frame::finish(&mut buffer, &place(), &stamp);
    buffer.as_slice().to_vec()
}

/// Seals the record of a frame, its payload and its header.
fn seal_frame(bytes: &mut [u8]) {
    let Some((header, payload)) = bytes.split_at_mut_checked(FRAME_HEADER_LEN) else { return };
    seal_record(payload);
    let payload_crc = checksum::seeded(&place(), &[payload]);
    header[72..76].copy_from_slice(&payload_crc.to_le_bytes());
    let header_crc = checksum::seeded(&place(), &[&header[..76]]);
    header[76..80].copy_from_slice(&header_crc.to_le_bytes());
}

fn record_place() -> Place {
    place().at((BLOCK_SIZE + FRAME_HEADER_LEN) as u64)
}

/// A record: its header and its value.
///
/// # Panics
/// If a record does not survive being encoded again.
pub fn record(bytes: &[u8]) {
    let Ok(header) = RecordHeader::decode(bytes, &record_place()) else { return };
    assert!(header.record_len() >= header.len());
    let Ok(value) = header.value(bytes) else { return };
    let copy = header.record(value);
    let mut buffer = IoBuffer::with_capacity(header.record_len());
    copy.encode(&record_place(), header.first_lsn, &mut buffer);
    let again = RecordHeader::decode(buffer.as_slice(), &record_place());
    let again = again.expect("what was encoded can be decoded");
    assert_eq!(again.value(buffer.as_slice()), Ok(value));
    assert_eq!(
        (again.kind, again.key, again.user_key, again.version, again.expiry_ms, again.first_lsn),
        (
            header.kind,
            header.key,
            header.user_key,
            header.version,
            header.expiry_ms,
            header.first_lsn
        )
    );
}

fn valid_record(rng: &mut Rng) -> Vec<u8> {
    let body = valid_touch_body(rng);
    let mut value = vec![0; [0, 1, 100, 9_000, 20_000][rng.usize(..5)]];
    rng.fill(&mut value);
    let (kind, value) = match rng.u8(..6) {
        0 => (RecordKind::Tombstone, &[][..]),
        1 => (RecordKind::Clear, &[][..]),
        2 => (RecordKind::Touch, &body[..]),
        _ => (RecordKind::Put, &value[..]),
    };
    let user_key = if kind == RecordKind::Put { &b"a user key"[..] } else { &[] };
    let hashed = rng.bool();
    let mut version = Version(rng.u128(..).to_be_bytes());
    if rng.bool() {
        version.0[8..].copy_from_slice(&own_half(&IDENTITY.store));
    }
    let record = Record {
        kind,
        namespace: Namespace::PLAIN,
        key: if hashed { Key::of(user_key) } else { Key([3; 20]) },
        hashed,
        user_key,
        version,
        expiry_ms: if rng.bool() { rng.u64(..) } else { 0 },
        value,
    };
    let mut buffer = IoBuffer::with_capacity(record.encoded_len_max());
    let first_lsn = rng.bool().then(|| Lsn(rng.u64(1..100)));
    record.encode(&record_place(), first_lsn, &mut buffer);
    buffer.as_slice().to_vec()
}

/// Makes the header's checksum right for the lengths that it tells.
fn seal_record(bytes: &mut [u8]) {
    let Some(fixed) = bytes.first_chunk::<RECORD_FIXED_LEN>() else { return };
    let Some(header) = bytes.get_mut(..told_header_len(fixed)) else { return };
    let crc = checksum::seeded(&record_place(), &[&header[4..]]);
    header[..4].copy_from_slice(&crc.to_le_bytes());
}

/// How long the header of a record is that starts like this.
pub(super) fn told_header_len(fixed: &[u8; RECORD_FIXED_LEN]) -> usize {
    let [.., flags, low, high, a, b, c, d, _, _, _, _, _, _, _, _, _, _, _, _] = *fixed;
    let optional = [20, 8, 8, 8].iter().enumerate().filter(|(bit, _)| flags & 1 << bit != 0);
    let value_len = u32::from_le_bytes([a, b, c, d]) as usize;
    RECORD_FIXED_LEN
        + optional.map(|(_, len)| len).sum::<usize>()
        + usize::from(u16::from_le_bytes([low, high]))
        + wal::record::chunk_crcs_len(value_len)
}

/// A segment's header.
///
/// # Panics
/// If a header does not survive being encoded again.
pub fn segment_header(bytes: &[u8]) {
    if let Ok(found) = SegmentHeader::decode(bytes) {
        assert_eq!(SegmentHeader::decode(found.encode().as_slice()), Ok(found));
    }
}

fn valid_segment(rng: &mut Rng) -> Vec<u8> {
    let header = SegmentHeader { identity: IDENTITY, id: rng.u64(1..50), len: SEGMENT_LEN as u64 };
    header.encode().as_slice().to_vec()
}

/// A manifest.
///
/// # Panics
/// If a manifest does not survive being encoded again.
pub fn manifest(bytes: &[u8]) {
    if let Ok(found) = Manifest::decode(bytes) {
        assert_eq!(Manifest::decode(found.encode().as_slice()), Ok(found));
    }
}

fn valid_manifest(rng: &mut Rng) -> Vec<u8> {
    let segment = |id: u64| SegmentEntry {
        id,
        len: SEGMENT_LEN as u64,
        cut: id.is_multiple_of(2).then_some(8192),
    };
    let range = |segment: u64| Quarantine {
        segment,
        offset: 4096,
        len: 4096,
        first_lsn: Lsn(3),
        last_lsn: Lsn(4),
        verdict: Verdict::Corruption,
    };
    let manifest = Manifest {
        identity: IDENTITY,
        sequence: rng.u64(..9),
        next_segment: 20,
        durable_lsn: Lsn(100),
        segments: (1..rng.u64(1..12)).map(segment).collect(),
        quarantine: (1..rng.u64(1..4)).map(range).collect(),
        checkpoint: rng.bool().then_some(CheckpointEntry { lsn: Lsn(90), len: 8192 }),
    };
    manifest.encode().as_slice().to_vec()
}

/// Makes the checksum right for the counts that the manifest tells.
fn seal_manifest(bytes: &mut [u8]) {
    let count = |at: usize| {
        let word = bytes.get(at..at + 4).and_then(|b| b.first_chunk::<4>());
        word.map_or(usize::MAX, |word| u32::from_le_bytes(*word) as usize)
    };
    // Offsets and sizes as in the manifest's own table.
    let lists = count(52).saturating_mul(24).saturating_add(count(80).saturating_mul(48));
    let end = 104_usize.saturating_add(lists);
    if end.saturating_add(4) <= bytes.len() {
        let crc = checksum::plain(&bytes[..end]);
        bytes[end..end + 4].copy_from_slice(&crc.to_le_bytes());
    }
}

/// The body of a touch record.
///
/// # Panics
/// If a body does not survive being encoded again.
pub fn touch_body(bytes: &[u8]) {
    if let Some(found) = TouchBody::decode(bytes) {
        assert_eq!(found.encode(), bytes);
    }
}

fn valid_touch_body(rng: &mut Rng) -> Vec<u8> {
    let base = Location {
        segment: rng.u64(..4),
        offset: rng.u32(..70_000) & !7,
        header_len: 82,
        value_len: rng.u32(..30_000),
    };
    TouchBody { base, user_key_crc: rng.u32(..), base_lsn: Lsn(rng.u64(..100)) }.encode().to_vec()
}

/// The parser of the Redis protocol: however the bytes are cut, it finds the same.
///
/// # Panics
/// If it does not.
pub fn resp(bytes: &[u8]) {
    let limits = ParserLimits {
        arguments_max: 64,
        bulk_bytes_max: 256,
        bulk_bytes_declared_max: 4_096,
        command_bytes_max: 512,
        inline_bytes_max: 128,
        aside_bytes_min: 20,
    };
    for authenticated in [false, true] {
        let parse = |lends, cut| parse(limits, authenticated, lends, bytes.chunks(cut));
        let whole = parse(false, bytes.len().max(1));
        let cut = bytes.first().map_or(1, |first| usize::from(*first) % 17 + 1);
        assert_eq!(whole, parse(false, cut));
        assert_eq!(whole, parse(true, cut));
    }
}

fn parse<'a>(
    limits: ParserLimits,
    authenticated: bool,
    lends: bool,
    pieces: impl Iterator<Item = &'a [u8]>,
) -> Vec<String> {
    let mut parser = Parser::new(limits);
    parser.set_authenticated(authenticated);
    let (mut found, mut taken) = (Vec::new(), 0);
    for mut input in pieces {
        taken += input.len();
        loop {
            if lends && let Some(mut room) = parser.lend() {
                let count = room.receive(input);
                parser.take_back(room);
                input = &input[count..];
            }
            match parser.next(&mut input) {
                Parsed::Incomplete => break,
                Parsed::Error(error) => {
                    found.push(format!("{error:?}"));
                    return found;
                }
                other => found.push(format!("{other:?}")),
            }
        }
        assert!(input.is_empty() && parser.buffered() <= taken);
    }
    found
}

fn valid_resp(rng: &mut Rng) -> Vec<u8> {
    let mut bytes = Vec::new();
    for _ in 0..rng.u8(1..5) {
        let words =
            [&b"SET"[..], b"key", b"", b"\r\n", &[b'x'; 300], &[b'y'; 60], b"a b\"c'", b"$1\r\n"];
        let count = rng.usize(1..6);
        if rng.u8(..4) == 0 {
            bytes.extend_from_slice(b"set \"a\\x41\" 'b' c\r\n");
            continue;
        }
        bytes.extend_from_slice(format!("*{count}\r\n").as_bytes());
        for _ in 0..count {
            let word = words[rng.usize(..words.len())];
            bytes.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
            bytes.extend_from_slice(word);
            bytes.extend_from_slice(b"\r\n");
        }
    }
    bytes
}

/// The frames of a segment: a store opens on whatever they are, and can be asked and written to.
///
/// # Panics
/// If it refuses to.
pub fn segment_file(bytes: &[u8]) {
    let directory = FileName::new("shard-00");
    let header = SegmentHeader { identity: IDENTITY, id: 1, len: SEGMENT_LEN as u64 };
    let mut content = header.encode().as_slice().to_vec();
    content.extend_from_slice(&bytes[..bytes.len().min(SEGMENT_LEN - BLOCK_SIZE)]);
    content.resize(SEGMENT_LEN, 0);
    let mut disk = SimulatedDisk::new(1);
    disk.plant_file(segment::file_name(&directory, 1).as_str(), &content);
    let options = StoreOptions {
        directory,
        identity: IDENTITY,
        must_exist: true,
        segment_bytes: SEGMENT_LEN as u64,
        cache_bytes: 0,
        limits: storage::StoreLimits::default(),
        log: GroupCommitLimits::default(),
        buffers: Rc::new(HeapBuffers),
        checkpoints: storage::CheckpointOptions::default(),
        footers: true,
    };
    for _ in 0..2 {
        let mut opening = storage::open(options.clone(), 1_700_000_000_000);
        let opened = run_procedure(&mut disk, 0, &mut opening);
        let storage::Opened { mut store, log_ms, .. } = opened.expect("bad data is no reason");
        store.set_now(Now { monotonic_ns: 0, clock_ms: log_ms });
        let key = storage::KeyRef::given(Key([3; 20]), b"a user key");
        let _ = store.get(&key);
        let _ = store.remove(key, Version([0xFF; 16]));
        store.end_turn();
        crate::store_world::recovery::settle(&mut disk, &mut store);
        disk = disk.crash(&mut Rng::with_seed(1));
    }
}

fn valid_frames(rng: &mut Rng) -> Vec<u8> {
    let mut bytes = valid_frame(rng);
    let offset = (BLOCK_SIZE + bytes.len()) as u64;
    let second = place().at(offset);
    let mut buffer = IoBuffer::with_capacity(BLOCK_SIZE);
    buffer.extend_from_slice(&[0; FRAME_HEADER_LEN]);
    let stamp = FrameStamp {
        first_lsn: Lsn(rng.u64(1..101)),
        record_count: 0,
        durable_lsn: Lsn(rng.u64(..100)),
        wall_ms: 1_700_000_000_000,
    };
    frame::finish(&mut buffer, &second, &stamp);
    bytes.extend_from_slice(buffer.as_slice());
    bytes
}
