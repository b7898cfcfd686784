//! Tests of the door over a store in memory, whose reads end when a test lets them.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::rc::Rc;

use storage::{Now, Store, StoreOptions};
use wal::disk::{
    DiskCompletion, DiskError, DiskErrorKind, DiskOperation, DiskOutput, DiskRequest, FileId,
    HeapBuffers, OpenMode,
};
use wal::group_commit::GroupCommitLimits;
use wal::segment::Identity;

use super::*;
use crate::config::{Config, DurabilityMode};
use crate::io::device::{DeviceProbe, SyncMethod};
use crate::io::{ReceiveBuffer, ReceiveRoom};
use crate::keyspace::Spread;
use crate::node::shard_directory;
use crate::snapshot::{Catalog, SnapshotFacts};

const NOW_MS: u64 = 1_800_000_000_000;

/// Files that keep what they are given.
#[derive(Default)]
struct MemoryDisk {
    names: BTreeMap<String, usize>,
    files: Vec<Vec<u8>>,
    open: BTreeMap<(ShardIndex, FileId), usize>,
    /// Where reads have put what they read.
    landed: Vec<Range<usize>>,
}

impl MemoryDisk {
    fn carry_out(&mut self, shard: ShardIndex, request: DiskRequest) -> DiskCompletion {
        let DiskRequest { id, operation } = request;
        let mut buffer = None;
        let mut output = DiskOutput::Done;
        match operation {
            DiskOperation::Open { file, name, mode } => {
                let name = name.to_string();
                if mode == OpenMode::Create {
                    self.files.push(Vec::new());
                    self.names.insert(name.clone(), self.files.len() - 1);
                }
                let Some(index) = self.names.get(&name).copied() else {
                    let error = DiskError { kind: DiskErrorKind::NotFound, code: 2 };
                    return DiskCompletion { id, result: Err(error), buffer };
                };
                self.open.insert((shard, file), index);
                output = DiskOutput::Opened { len: self.files[index].len() as u64 };
            }
            DiskOperation::ListDirectory { name } => {
                let within = format!("{name}/");
                let listed = self.names.iter().filter_map(|(name, index)| {
                    Some((name.strip_prefix(&within)?.to_owned(), self.files[*index].len() as u64))
                });
                output = DiskOutput::Listed(listed.collect());
            }
            DiskOperation::Read { file, offset, len, buffer: mut into } => {
                let bytes = &self.files[self.open[&(shard, file)]];
                let start = bytes.len().min(usize::try_from(offset).unwrap());
                into.set_len(0);
                into.extend_from_slice(&bytes[start..bytes.len().min(start + len)]);
                self.landed.push(addresses(into.as_slice()));
                buffer = Some(into);
            }
            DiskOperation::Write { file, offset, buffer: from, .. } => {
                let bytes = &mut self.files[self.open[&(shard, file)]];
                let start = usize::try_from(offset).unwrap();
                bytes.resize(bytes.len().max(start + from.len()), 0);
                bytes[start..start + from.len()].copy_from_slice(from.as_slice());
                buffer = Some(from);
            }
            DiskOperation::Rename { from, to } => {
                let index = self.names.remove(from.as_str()).unwrap();
                self.names.insert(to.to_string(), index);
            }
            DiskOperation::Remove { name } => drop(self.names.remove(name.as_str())),
            _ => {}
        }
        DiskCompletion { id, result: Ok(output), buffer }
    }
}

fn addresses(bytes: &[u8]) -> Range<usize> {
    let range = bytes.as_ptr_range();
    range.start.addr()..range.end.addr()
}

/// A door with shards behind it.
pub(super) struct Rig {
    pub(super) keyspace: Keyspace,
    pub(super) door: Door,
    disk: MemoryDisk,
    /// What it has to tell others.
    pub(super) messages: VecDeque<(ThreadIndex, Vec<Message>)>,
    /// Whether sends end only when the test lets them.
    pub(super) holds_sends: bool,
    pub(super) sending: VecDeque<ConnectionId>,
    /// Reads that have not ended.
    pub(super) held: VecDeque<(ShardIndex, DiskRequest)>,
    pub(super) sent: BTreeMap<ConnectionId, Vec<u8>>,
    /// Memory that the door has lent to be received into.
    rooms: BTreeMap<ConnectionId, ReceiveRoom>,
    /// Where the parts of sends lay.
    parts: Vec<Range<usize>>,
    next: u64,
}

fn open(disk: &mut MemoryDisk, shard: ShardIndex, shard_count: u16, cache_bytes: usize) -> Store {
    let options = StoreOptions {
        directory: shard_directory(shard),
        identity: Identity { store: [1; 16], node_id: [2; 20], shard, shard_count },
        must_exist: false,
        segment_bytes: 4 << 20,
        cache_bytes,
        limits: storage::StoreLimits::default(),
        log: GroupCommitLimits::default(),
        buffers: Rc::new(HeapBuffers),
        checkpoints: storage::CheckpointOptions::default(),
        footers: true,
    };
    let mut procedure = storage::open(options, NOW_MS);
    loop {
        while let Some(request) = procedure.poll_request() {
            procedure.handle_disk(disk.carry_out(shard, request));
        }
        if let Some(opened) = procedure.take_output() {
            return opened.unwrap().store;
        }
    }
}

fn facts(spread: Spread) -> NodeFacts {
    NodeFacts {
        node_id: [2; 20],
        driver: "memory",
        durability: DurabilityFacts {
            mode: DurabilityMode::Always,
            method: SyncMethod::Dsync,
            probe: DeviceProbe {
                direct: false,
                dsync_us: None,
                sync_us: None,
                write_cache: None,
                choice: SyncMethod::Dsync,
            },
        },
        process_id: 1,
        spread,
        data_dir: String::new(),
        client: None,
        started_ms: NOW_MS,
        resident_bytes: || 0,
        disk_bytes_max: 0,
        damage_found: 0,
        tail_uncertain_bytes: 0,
    }
}

impl Rig {
    /// All of two shards.
    fn new() -> Self {
        Self::with_cache(0)
    }

    fn with_cache(cache_bytes: usize) -> Self {
        Self::of(Spread::on_one_thread(2), Config::default().limits, cache_bytes)
    }

    /// One thread of several.
    pub(super) fn of_thread(spread: Spread, limits: ClientLimits) -> Self {
        Self::of(spread, limits, 0)
    }

    fn of(spread: Spread, limits: ClientLimits, cache_bytes: usize) -> Self {
        let mut disk = MemoryDisk::default();
        let stores =
            spread.shards().map(|shard| open(&mut disk, shard, spread.shard_count, cache_bytes));
        let stores = stores.collect();
        let now = Now { monotonic_ns: 1_000_000, clock_ms: NOW_MS };
        let door = Door::new(limits, None, facts(spread));
        Self {
            keyspace: Keyspace::new(spread, stores, now, 7),
            door,
            disk,
            messages: VecDeque::new(),
            holds_sends: false,
            sending: VecDeque::new(),
            held: VecDeque::new(),
            sent: BTreeMap::new(),
            rooms: BTreeMap::new(),
            parts: Vec::new(),
            next: 0,
        }
    }

    pub(super) fn connect(&mut self) -> ConnectionId {
        self.next += 1;
        let id = ConnectionId(self.next);
        self.door.handle_accepted(&self.keyspace, id, SocketAddr::from(([127, 0, 0, 1], 1)));
        id
    }

    fn send(&mut self, id: ConnectionId, bytes: &[u8]) {
        self.receive(id, bytes);
        self.turn();
    }

    pub(super) fn receive(&mut self, id: ConnectionId, bytes: &[u8]) {
        let mut bytes = bytes;
        while let Some(mut room) = self.lent(id) {
            let count = room.receive(bytes);
            self.door.handle_received_into(&mut self.keyspace, id, room, Ok(count));
            bytes = &bytes[count..];
            if bytes.is_empty() {
                return;
            }
        }
        let buffer = ReceiveBuffer::new(bytes.into(), bytes.len(), 0);
        drop(self.door.handle_received(&mut self.keyspace, id, Ok(buffer)));
    }

    /// The memory that the door has lent for the connection, if it has.
    fn lent(&mut self, id: ConnectionId) -> Option<ReceiveRoom> {
        let requests = &mut self.door.requests;
        let is_its =
            |request: &Request| matches!(request, Request::ReceiveInto(of, _) if *of == id);
        match requests.iter().position(is_its).and_then(|index| requests.remove(index)) {
            Some(Request::ReceiveInto(_, room)) => Some(room),
            _ => self.rooms.remove(&id),
        }
    }

    /// Lets everything happen but reads.
    pub(super) fn turn(&mut self) {
        loop {
            self.door.begin_turn(&mut self.keyspace);
            let mut moved = false;
            while self.go_on() {
                moved = true;
            }
            if !moved && self.door.deadline_ns() != Some(0) {
                return;
            }
        }
    }

    /// Lets the cores speak once. Answers whether they had anything to say.
    pub(super) fn go_on(&mut self) -> bool {
        let Self { keyspace, door, disk, held, sent, messages, sending, .. } = self;
        let mut moved = false;
        while let Some((shard, event)) = keyspace.poll_event() {
            door.handle_event(keyspace, shard, event);
            moved = true;
        }
        door.end_turn(keyspace);
        keyspace.end_turn();
        while let Some((shard, request)) = keyspace.poll_request() {
            moved = true;
            match request.operation {
                DiskOperation::Read { .. } => held.push_back((shard, request)),
                _ => keyspace.handle_disk(shard, disk.carry_out(shard, request)),
            }
        }
        while let Some(request) = door.poll_request() {
            moved = true;
            match request {
                Request::Send(id, parts) => {
                    self.parts.extend(parts.iter().map(|part| addresses(part)));
                    sent.entry(id).or_default().extend(parts.concat());
                    if self.holds_sends {
                        sending.push_back(id);
                    } else {
                        door.handle_sent(keyspace, id, &Ok(()));
                    }
                }
                Request::ReceiveInto(id, room) => drop(self.rooms.insert(id, room)),
                Request::Close(id) => door.handle_closed(id),
                _ => {}
            }
        }
        while let Some((thread, told)) = door.poll_messages() {
            moved = true;
            if thread == keyspace.spread().thread {
                door.handle_messages(keyspace, thread, told);
            } else {
                messages.push_back((thread, told));
            }
        }
        moved
    }

    /// Lets the oldest reads end, that many of them.
    pub(super) fn end_reads(&mut self, count: usize) {
        for _ in 0..count {
            let Some((shard, request)) = self.held.pop_front() else { break };
            self.keyspace.handle_disk(shard, self.disk.carry_out(shard, request));
        }
        self.turn();
    }

    /// Lets all reads end, and whatever the stores put off to a next turn.
    fn end_all_reads(&mut self) {
        while !self.held.is_empty() || self.keyspace.deadline_ns() == Some(0) {
            self.keyspace.set_now(self.keyspace.now());
            self.turn();
            self.end_reads(self.held.len());
        }
    }

    fn replies(&mut self, id: ConnectionId) -> String {
        String::from_utf8(self.sent.remove(&id).unwrap_or_default()).unwrap()
    }

    fn write_keys(&mut self, count: usize) {
        let id = self.connect();
        let words: String = (0..count).map(|number| format!(" {number} v{number}")).collect();
        self.send(id, format!("MSET{words}\r\n").as_bytes());
        assert_eq!(self.replies(id), "+OK\r\n");
    }
}

fn line(name: &str, keys: Range<usize>) -> Vec<u8> {
    let keys: String = keys.map(|key| format!(" {key}")).collect();
    format!("{name}{keys}\r\n").into_bytes()
}

/// Values that are shared, not copied: in frames, and (the last) beside them.
const SHARED_LENS: [usize; 4] = [2048, 5000, 40_000, 300_000];

impl Rig {
    fn set(&mut self, id: ConnectionId, key: &str, len: usize) {
        let head = format!("*3\r\n$3\r\nSET\r\n${}\r\n{key}\r\n${len}\r\n", key.len());
        let command = [head.as_bytes(), &vec![b'v'; len], b"\r\n"].concat();
        self.send(id, &command);
        self.end_all_reads();
        assert_eq!(self.replies(id), "+OK\r\n");
    }

    /// Answers where the value was sent from, and how many reads that took.
    fn get(&mut self, id: ConnectionId, key: &str, len: usize) -> (Range<usize>, usize) {
        self.parts.clear();
        let before = self.disk.landed.len();
        self.send(id, format!("GET {key}\r\n").as_bytes());
        self.end_all_reads();
        let expected = format!("${len}\r\n{}\r\n", "v".repeat(len));
        assert!(self.replies(id) == expected, "{key} of {len} bytes");
        let whole = self.parts.iter().find(|part| part.len() == len);
        let whole = whole.expect("a long value is a part of its own").clone();
        (whole, self.disk.landed.len() - before)
    }

    fn ledger(&self, name: &str) -> String {
        self.door.ledger.copies().lines().find(|(known, _)| known == name).unwrap().1
    }
}

/// The socket gets the very bytes that the disk has put into memory.
#[test]
fn cold_value_is_sent_from_where_the_disk_has_put_it() {
    let mut rig = Rig::new();
    let id = rig.connect();
    for len in SHARED_LENS {
        rig.set(id, "key", len);
        let (sent, reads) = rig.get(id, "key", len);
        assert!(reads > 0, "{len} bytes were in memory");
        let landed = |read: &Range<usize>| read.start <= sent.start && sent.end <= read.end;
        assert!(rig.disk.landed.iter().any(landed), "{len} bytes were copied");
    }
    assert_eq!(rig.ledger("get_cold_under_32k"), "values=2,bytes=7048,copied_by_us=0");
    assert_eq!(rig.ledger("get_cold_from_32k"), "values=2,bytes=340000,copied_by_us=0");
    rig.set(id, "short", 2047);
    rig.send(id, b"GET short\r\n");
    rig.end_all_reads();
    assert_eq!(rig.ledger("get_cold_under_2k"), "values=1,bytes=2047,copied_by_us=2047");
}

/// A value in memory is sent from there, each time from the same place.
#[test]
fn cached_value_is_sent_from_where_it_is_kept() {
    let mut rig = Rig::with_cache(4 << 20);
    let id = rig.connect();
    for len in SHARED_LENS {
        rig.set(id, "key", len);
        // One that lies beside the frames is kept once it has been read.
        rig.get(id, "key", len);
        let (first, reads) = rig.get(id, "key", len);
        assert_eq!(reads, 0, "{len} bytes had to be read");
        assert_eq!(rig.get(id, "key", len), (first, 0), "{len} bytes were copied");
    }
    assert_eq!(rig.ledger("get_cached_under_32k"), "values=6,bytes=21144,copied_by_us=0");
    assert_eq!(rig.ledger("get_cached_from_32k"), "values=5,bytes=720000,copied_by_us=0");
    // Into the frame, and into the memory that reads are answered from.
    assert_eq!(rig.ledger("set_under_32k"), "values=2,bytes=7048,copied_by_us=14096");
}

/// What was received into memory that the door has lent is what reads are answered with, and is
/// copied once, into the frame or the blocks.
#[test]
fn value_received_into_its_place_is_kept_there() {
    let mut rig = Rig::with_cache(4 << 20);
    let id = rig.connect();
    for (len, is_kept) in [(16_385, true), (40_000, true), (300_000, false)] {
        let head = format!("*3\r\n$3\r\nSET\r\n$3\r\nkey\r\n${len}\r\nvvv");
        rig.send(id, head.as_bytes());
        let place = rig.rooms[&id].filled().as_ptr().addr();
        assert_eq!(rig.rooms[&id].left(), len - 3 + 2);
        rig.send(id, &vec![b'v'; 5_000]);
        rig.send(id, &vec![b'v'; len - 5_003]);
        assert_eq!(rig.rooms[&id].left(), 2);
        rig.send(id, b"\r\n");
        rig.end_all_reads();
        assert_eq!(rig.replies(id), "+OK\r\n");
        assert!(rig.rooms.is_empty());
        if is_kept {
            assert_eq!(rig.get(id, "key", len), (place..place + len, 0));
        }
    }
    assert_eq!(rig.ledger("set_under_32k"), "values=1,bytes=16385,copied_by_us=16388");
    assert_eq!(rig.ledger("set_from_32k"), "values=2,bytes=340000,copied_by_us=340006");
}

/// The words of a command may come to the whole limit: what frames them does not end it.
#[test]
fn long_value_is_received_to_its_end_at_the_limit_of_input() {
    let limits = ClientLimits { input_bytes_max: 100_000, ..Config::default().limits };
    let mut rig = Rig::of(Spread::on_one_thread(2), limits, 0);
    let id = rig.connect();
    let (first, second) = ("a".repeat(50_000), "b".repeat(49_994));
    let head = format!("*5\r\n$4\r\nMSET\r\n$1\r\na\r\n$50000\r\n{first}\r\n$1\r\nb\r\n");
    let command = format!("{head}$49994\r\n{second}\r\n");
    let (most, last) = command.as_bytes().split_at(command.len() - 5);
    most.chunks(16_384).for_each(|piece| rig.send(id, piece));
    assert!(most.len() > 100_000 && rig.rooms[&id].left() == 5, "nothing more is received");
    rig.send(id, last);
    rig.end_all_reads();
    assert_eq!(rig.replies(id), "+OK\r\n");
}

#[test]
fn command_of_many_short_words_is_received_to_its_end_at_the_limit_of_input() {
    let limits = ClientLimits { input_bytes_max: 100_000, ..Config::default().limits };
    let mut rig = Rig::of(Spread::on_one_thread(2), limits, 0);
    let id = rig.connect();
    let command = format!("*40001\r\n$4\r\nMSET\r\n{}", "$1\r\nk\r\n".repeat(40_000));
    assert!(command.len() > 2 * 100_000);
    for piece in command.as_bytes().chunks(16_384) {
        assert!(rig.door.connections[&id].receiving, "nothing more is received");
        rig.send(id, piece);
    }
    rig.end_all_reads();
    assert_eq!(rig.replies(id), "+OK\r\n");
    rig.send(id, b"PING\r\n");
    assert_eq!(rig.replies(id), "+PONG\r\n");
}

#[test]
fn client_that_goes_away_takes_the_memory_lent_for_it_along() {
    let mut rig = Rig::new();
    for ends in [true, false] {
        let id = rig.connect();
        rig.send(id, b"*3\r\n$3\r\nSET\r\n$3\r\nkey\r\n$16000000\r\nv");
        let mut room = rig.rooms.remove(&id).unwrap();
        assert_eq!(room.left(), 16_000_001);
        assert!(rig.door.connections[&id].bytes() < 8192, "an announcement costs memory");
        room.receive(&[b'v'; 100_000]);
        let (room, result) = match ends {
            true => {
                rig.door.handle_received_into(&mut rig.keyspace, id, room, Ok(100_000));
                assert!(rig.door.connections[&id].bytes() > 100_000, "what came is not counted");
                rig.turn();
                (rig.rooms.remove(&id).unwrap(), Ok(0))
            }
            false => (room, Err(std::io::ErrorKind::ConnectionReset.into())),
        };
        rig.door.handle_received_into(&mut rig.keyspace, id, room, result);
        rig.turn();
        assert!(rig.rooms.is_empty() && rig.door.connections.is_empty());
    }
}

#[test]
fn command_over_many_keys_has_a_window_of_reads() {
    let mut rig = Rig::new();
    rig.write_keys(1000);
    let (reader, other) = (rig.connect(), rig.connect());
    let mut most = 0;
    rig.send(reader, &line("MGET", 0..1000));
    rig.send(reader, b"SET 999 new\r\n");
    while !rig.held.is_empty() {
        most = most.max(rig.held.len());
        assert_eq!(rig.replies(reader), "");
        rig.send(other, b"PING\r\n");
        assert_eq!(rig.replies(other), "+PONG\r\n");
        rig.end_reads(1);
    }
    assert!((100..=128).contains(&most), "{most} reads at once");
    let replies = rig.replies(reader);
    // What comes behind it on the connection has not been executed before it was done.
    assert!(replies.starts_with("*1000\r\n$2\r\nv0\r\n") && replies.ends_with("v999\r\n+OK\r\n"));
    assert!(rig.door.tasks.is_empty());
}

#[test]
fn connection_has_a_window_of_reads() {
    let mut rig = Rig::new();
    rig.write_keys(1000);
    let reader = rig.connect();
    let gets: Vec<u8> = (0..1000).flat_map(|key| line("GET", key..key + 1)).collect();
    rig.send(reader, &gets);
    assert_eq!(rig.held.len(), REPLIES_PENDING_MAX);
    rig.end_reads(REPLIES_PENDING_MAX / 2 - 1);
    assert_eq!(rig.held.len(), REPLIES_PENDING_MAX / 2 + 1);
    rig.end_reads(1);
    assert_eq!(rig.held.len(), REPLIES_PENDING_MAX);
    rig.end_all_reads();
    let expected: String = (0..1000)
        .map(|key| format!("v{key}"))
        .map(|v| format!("${}\r\n{v}\r\n", v.len()))
        .collect();
    assert_eq!(rig.replies(reader), expected);
}

#[test]
fn writers_of_a_key_wait_until_its_change_is_done() {
    let mut rig = Rig::new();
    rig.write_keys(300);
    let (first, second, third) = (rig.connect(), rig.connect(), rig.connect());
    rig.send(first, b"APPEND 7 x\r\n");
    rig.send(second, &line("DEL", 0..300));
    rig.send(third, b"SET 7 fresh NX\r\n");
    assert_eq!((rig.replies(second), rig.replies(third)), (String::new(), String::new()));
    rig.end_all_reads();
    assert_eq!(rig.replies(first), ":3\r\n");
    assert_eq!(rig.replies(second), ":300\r\n");
    assert!(["+OK\r\n", "$-1\r\n"].contains(&rig.replies(third).as_str()));
    assert!(rig.door.tasks.is_empty());
}

#[test]
fn closed_connection_leaves_nothing_behind() {
    let mut rig = Rig::new();
    rig.write_keys(500);
    for command in [
        line("MGET", 0..500),
        line("EXISTS", 0..500),
        line("DEL", 0..10),
        line("INCR", 20..21),
        line("GETDEL", 21..22),
        line("STRLEN", 22..23),
        line("GET", 23..24),
        b"KEYS *\r\n".to_vec(),
        b"SCAN 0 COUNT 100\r\n".to_vec(),
        b"RANDOMKEY\r\n".to_vec(),
    ] {
        let id = rig.connect();
        rig.send(id, &command);
        let broken = std::io::Error::from(std::io::ErrorKind::ConnectionReset);
        assert!(rig.door.handle_received(&mut rig.keyspace, id, Err(broken)).is_none());
        rig.turn();
        rig.end_all_reads();
        let text = String::from_utf8_lossy(&command).into_owned();
        assert!(rig.door.tasks.is_empty(), "{text}");
        assert!(rig.door.resolving.is_empty() && rig.door.blocked.is_empty(), "{text}");
        assert!(!rig.door.connections.contains_key(&id), "{text}");
    }
    let id = rig.connect();
    rig.send(id, b"DEL 21 22\r\n");
    rig.end_all_reads();
    assert_eq!(rig.replies(id), ":1\r\n");
}

/// Sends an order to the storage engine and answers what comes at once.
fn order(rig: &mut Rig, id: ConnectionId, text: &str) -> String {
    rig.send(id, format!("{text}\r\n").as_bytes());
    rig.turn();
    rig.replies(id)
}

#[test]
fn snapshot_is_answered_when_it_is_there() {
    let mut rig = Rig::new();
    let (one, two) = (rig.connect(), rig.connect());
    let started = format!(":{}\r\n", NOW_MS / 1000);
    assert_eq!(order(&mut rig, one, "LASTSAVE"), started);
    assert_eq!(order(&mut rig, one, "KAD.SNAPSHOT CREATE monday"), "");
    let (id, taken) = rig.door.poll_order().unwrap();
    assert_eq!(taken, Order::Snapshot { id: "monday".into() });
    for refused in ["SAVE", "BGSAVE", "KAD.SNAPSHOT CREATE", "KAD.SNAPSHOT DELETE x"] {
        let reply = order(&mut rig, two, refused);
        assert_eq!(reply, "-ERR Background save already in progress\r\n", "{refused}");
    }
    assert_eq!(order(&mut rig, two, "BGSAVE SCHEDULE"), "+Background saving scheduled\r\n");
    assert_eq!(rig.door.poll_order(), None);
    rig.keyspace.set_now(Now { monotonic_ns: 2_000_000, clock_ms: NOW_MS + 5_000 });
    rig.door.handle_order(&mut rig.keyspace, id, OrderEnd::Done);
    rig.turn();
    assert_eq!(rig.replies(one), "$6\r\nmonday\r\n");
    assert_eq!(order(&mut rig, two, "LASTSAVE"), format!(":{}\r\n", NOW_MS / 1000 + 5));
    let (id, taken) = rig.door.poll_order().unwrap();
    assert_eq!(taken, Order::Snapshot { id: (NOW_MS + 5_000).to_string() });
    rig.door.handle_order(&mut rig.keyspace, id, OrderEnd::Failed("ERR no".into()));
    assert_eq!(order(&mut rig, one, "SAVE"), "");
    let (id, _) = rig.door.poll_order().unwrap();
    rig.door.handle_order(&mut rig.keyspace, id, OrderEnd::Failed("ERR no".into()));
    rig.turn();
    assert_eq!(rig.replies(one), "-ERR no\r\n");
    assert!(rig.door.tasks.is_empty());
}

#[test]
fn snapshots_are_listed_and_deleted() {
    let mut rig = Rig::new();
    let (one, two) = (rig.connect(), rig.connect());
    assert_eq!(order(&mut rig, one, "KAD.SNAPSHOT LIST"), "*0\r\n");
    let snapshot = |id: &str, created_ms| {
        let (id, store, files) = (id.to_owned(), [1; 16], Vec::new());
        SnapshotFacts::from(&Catalog { id, created_ms, store, files })
    };
    rig.door.set_snapshots(vec![snapshot("newer", 9), snapshot("older", 8)]);
    assert_eq!(order(&mut rig, one, "KAD.SNAPSHOT CREATE a"), "");
    let (id, _) = rig.door.poll_order().unwrap();
    rig.door.handle_order(&mut rig.keyspace, id, OrderEnd::Taken(snapshot("a", 10)));
    rig.turn();
    assert_eq!(rig.replies(one), "$1\r\na\r\n");
    assert_eq!(order(&mut rig, one, "KAD.SNAPSHOT DELETE older"), "");
    let (id, given) = rig.door.poll_order().unwrap();
    assert_eq!(given, Order::Delete { id: "older".into() });
    for refused in ["SAVE", "BGSAVE", "BGSAVE SCHEDULE", "KAD.SNAPSHOT DELETE a"] {
        let reply = order(&mut rig, two, refused);
        assert_eq!(reply, "-ERR a snapshot is being deleted; try again\r\n", "{refused}");
    }
    rig.door.handle_order(&mut rig.keyspace, id, OrderEnd::Done);
    rig.turn();
    assert_eq!(rig.replies(one), "+OK\r\n");
    let entry = |id: &str, ms| {
        let len = id.len();
        format!(
            "*8\r\n$2\r\nid\r\n${len}\r\n{id}\r\n$10\r\ncreated_ms\r\n:{ms}\r\n\
             $5\r\nfiles\r\n:0\r\n$5\r\nbytes\r\n:0\r\n"
        )
    };
    let expected = format!("*2\r\n{}{}", entry("newer", 9), entry("a", 10));
    assert_eq!(order(&mut rig, two, "KAD.SNAPSHOT LIST"), expected);
    // One that somebody else has deleted is none any more.
    assert_eq!(order(&mut rig, one, "KAD.SNAPSHOT DELETE newer"), "");
    let (id, _) = rig.door.poll_order().unwrap();
    rig.door.handle_order(&mut rig.keyspace, id, OrderEnd::Missing);
    rig.turn();
    assert_eq!(rig.replies(one), "-ERR there is no such snapshot\r\n");
    let expected = format!("*1\r\n{}", entry("a", 10));
    assert_eq!(order(&mut rig, two, "KAD.SNAPSHOT LIST"), expected);
}

#[test]
fn orders_are_parsed_and_answered() {
    let mut rig = Rig::new();
    let one = rig.connect();
    let reply = order(&mut rig, one, "KAD.COMPACT");
    assert_eq!(reply, "+Background compaction started\r\n");
    assert_eq!(rig.door.poll_order().unwrap().1, Order::Compact);
    let bad_id =
        "-ERR a snapshot's id is 1 to 64 letters, digits, '-', '_' and '.', no '.' first\r\n";
    for (text, expected) in [
        ("BGSAVE NOW", "-ERR syntax error\r\n"),
        ("BGSAVE SCHEDULE NOW", "-ERR syntax error\r\n"),
        ("KAD.SNAPSHOT CREATE ..", bad_id),
        ("KAD.SNAPSHOT CREATE a/b", bad_id),
        ("KAD.SNAPSHOT CREATE .a", bad_id),
        ("KAD.SNAPSHOT DELETE ../a", bad_id),
        (
            "KAD.SNAPSHOT CREATE a b",
            "-ERR wrong number of arguments for 'kad.snapshot|create' command\r\n",
        ),
    ] {
        assert_eq!(order(&mut rig, one, text), expected, "{text}");
        assert_eq!(rig.door.poll_order(), None, "{text}");
    }
}

#[test]
fn report_names_shards_whose_disk_has_failed() {
    let mut rig = Rig::new();
    rig.door.ask_report(&rig.keyspace, 7);
    let (token, report) = rig.door.poll_report().unwrap();
    assert_eq!((token, report.ills.len()), (7, 0));
    let mut facts = rig.door.facts(&rig.keyspace, &info::FactsAsked::default());
    facts.shards[1].has_failed = true;
    assert_eq!(rig.door.report(&facts).ills, ["shard 1: a disk write failed"]);
}

/// Only a failure of the log lasts until a restart, and only then an answer says so.
#[test]
fn refused_write_says_whether_it_is_worth_waiting() {
    let error = DiskError { kind: DiskErrorKind::Io, code: 5 };
    let of_log = execute::write_error(storage::WriteError::ReadOnly(error));
    assert!(of_log.starts_with("MISCONF ") && of_log.contains("until it is restarted"), "{of_log}");
    let of_segment = execute::write_error(storage::WriteError::NoSegment(error));
    assert!(of_segment.starts_with("MISCONF ") && of_segment.contains("tried again each second"));
    assert!(!of_segment.contains("restarted"), "{of_segment}");
}
