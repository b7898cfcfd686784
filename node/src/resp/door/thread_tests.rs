//! Doors of several threads, joined by a pump that delays and interleaves whatever a seed says.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::bounds::TURN_COST_MAX;
use super::tests::Rig;
use super::*;
use crate::config::Config;
use crate::keyspace::Spread;

/// Keys of a client's own.
const KEYS: usize = 12;

/// What is expected of a reply.
enum Expected {
    Exactly(Vec<u8>),
    /// The next number of a counter that all clients share.
    Count,
    /// Whatever it is, it starts so.
    Prefix(&'static [u8]),
}

/// A client: what it still has to send, what it expects, and what its keys are then.
struct Client {
    thread: usize,
    id: ConnectionId,
    script: VecDeque<u8>,
    expected: Vec<Expected>,
    model: BTreeMap<String, Vec<u8>>,
    resp3: bool,
}

fn bulk(bytes: &[u8]) -> Vec<u8> {
    [format!("${}\r\n", bytes.len()).as_bytes(), bytes, b"\r\n"].concat()
}

fn command(words: &[&[u8]]) -> Vec<u8> {
    connection::encode_words(words.iter().copied())
}

impl Client {
    fn value_or_null(&self, key: &str) -> Vec<u8> {
        let null: &[u8] = if self.resp3 { b"_\r\n" } else { b"$-1\r\n" };
        self.model.get(key).map_or_else(|| null.to_vec(), |value| bulk(value))
    }

    fn integer(number: usize) -> Expected {
        Expected::Exactly(format!(":{number}\r\n").into_bytes())
    }

    /// Adds a random command on the client's own keys, which `name` begins.
    fn add_command(&mut self, name: usize, random: &mut fastrand::Rng) {
        let key = |random: &mut fastrand::Rng| format!("{name}-{}", random.usize(..KEYS));
        let one = key(random);
        let many: Vec<String> = (0..random.usize(1..6)).map(|_| key(random)).collect();
        let len = if random.u8(..) < 16 { 40_000 } else { random.usize(..50) };
        let value = [b'a' + random.u8(..26), b'x'].repeat(len.div_ceil(2));
        let with = |name: &str| -> Vec<Vec<u8>> {
            let words = std::iter::once(name).chain(many.iter().map(String::as_str));
            words.map(|word| word.as_bytes().to_vec()).collect()
        };
        let distinct: BTreeSet<&String> = many.iter().collect();
        let ok = || Expected::Exactly(b"+OK\r\n".to_vec());
        let (words, expected): (Vec<Vec<u8>>, Expected) = match random.u8(..12) {
            0..=2 => {
                self.model.insert(one.clone(), value.clone());
                (vec![b"SET".to_vec(), one.into_bytes(), value], ok())
            }
            3 | 4 => {
                let expected = Expected::Exactly(self.value_or_null(&one));
                (vec![b"GET".to_vec(), one.into_bytes()], expected)
            }
            5 => {
                let gone = distinct.iter().filter(|key| self.model.remove(**key).is_some());
                (with("DEL"), Self::integer(gone.count()))
            }
            6 => {
                let there = many.iter().filter(|key| self.model.contains_key(*key)).count();
                (with("EXISTS"), Self::integer(there))
            }
            7 => {
                let mut reply = format!("*{}\r\n", many.len()).into_bytes();
                many.iter().for_each(|key| reply.extend(self.value_or_null(key)));
                (with("MGET"), Expected::Exactly(reply))
            }
            8 => {
                let mut words = vec![b"MSET".to_vec()];
                for (number, key) in many.iter().enumerate() {
                    let value = [value.as_slice(), &[b'0' + number as u8]].concat();
                    words.extend([key.clone().into_bytes(), value.clone()]);
                    self.model.insert(key.clone(), value);
                }
                (words, ok())
            }
            9 => {
                let old = self.model.entry(one.clone()).or_default();
                old.extend_from_slice(&value);
                let len = old.len();
                if value.is_empty() && len == 0 {
                    // An empty value is a value, too.
                    self.model.insert(one.clone(), Vec::new());
                }
                (vec![b"APPEND".to_vec(), one.into_bytes(), value], Self::integer(len))
            }
            10 => (vec![b"INCR".to_vec(), b"shared".to_vec()], Expected::Count),
            _ => {
                self.resp3 = !self.resp3;
                let version = if self.resp3 { b"3" } else { b"2" };
                let start: &[u8] = if self.resp3 { b"%7\r\n" } else { b"*14\r\n" };
                (vec![b"HELLO".to_vec(), version.to_vec()], Expected::Prefix(start))
            }
        };
        self.script.extend(command(&words.iter().map(Vec::as_slice).collect::<Vec<_>>()));
        self.expected.push(expected);
    }
}

/// Cuts the first reply off.
fn cut_reply(bytes: &mut &[u8]) -> Vec<u8> {
    let whole = *bytes;
    let end = whole.windows(2).position(|two| two == b"\r\n").unwrap();
    let number = std::str::from_utf8(&whole[1..end]).ok().and_then(|text| text.parse::<i64>().ok());
    *bytes = &whole[end + 2..];
    match (whole[0], number) {
        (b'$' | b'=', Some(len @ 0..)) => *bytes = &bytes[usize::try_from(len).unwrap() + 2..],
        (b'*', Some(len @ 0..)) => (0..len).for_each(|_| drop(cut_reply(bytes))),
        (b'%', Some(len)) => (0..2 * len).for_each(|_| drop(cut_reply(bytes))),
        _ => {}
    }
    whole[..whole.len() - bytes.len()].to_vec()
}

/// The threads of a node and what is on its way between them.
struct Pump {
    rigs: Vec<Rig>,
    queues: BTreeMap<(usize, usize), VecDeque<Vec<Message>>>,
}

impl Pump {
    fn new(shard_count: u16, thread_count: u16, limits: &ClientLimits) -> Self {
        let threads = (0..thread_count).map(|thread| Spread { shard_count, thread_count, thread });
        let rigs = threads.map(|spread| Rig::of_thread(spread, limits.clone())).collect();
        Self { rigs, queues: BTreeMap::new() }
    }

    fn collect(&mut self) {
        for (from, rig) in self.rigs.iter_mut().enumerate() {
            for (to, messages) in rig.messages.drain(..) {
                self.queues.entry((from, usize::from(to))).or_default().push_back(messages);
            }
        }
        self.queues.retain(|_, queue| !queue.is_empty());
    }

    fn deliver(&mut self, from: usize, to: usize) {
        let messages = self.queues.get_mut(&(from, to)).and_then(VecDeque::pop_front);
        let Rig { door, keyspace, .. } = &mut self.rigs[to];
        door.handle_messages(keyspace, u16::try_from(from).unwrap(), messages.unwrap_or_default());
    }

    /// Lets one thing happen somewhere.
    fn step(&mut self, random: &mut fastrand::Rng) {
        self.collect();
        let thread = random.usize(..self.rigs.len());
        let queue = random.choice(self.queues.keys()).copied();
        match (random.u8(..6), queue) {
            (0 | 1, Some((from, to))) => self.deliver(from, to),
            (2, _) => self.rigs[thread].end_reads(1),
            (3, _) => {
                let Rig { door, keyspace, sending, .. } = &mut self.rigs[thread];
                if let Some(id) = sending.pop_front() {
                    door.handle_sent(keyspace, id, &Ok(()));
                }
            }
            (4, _) => {
                let Rig { door, keyspace, .. } = &mut self.rigs[thread];
                door.begin_turn(keyspace);
            }
            _ => {
                self.rigs[thread].go_on();
            }
        }
    }

    /// Lets everything happen that can.
    fn settle(&mut self) {
        loop {
            let mut moved = false;
            for rig in &mut self.rigs {
                rig.turn();
                moved |= !rig.held.is_empty() || !rig.sending.is_empty();
                rig.end_reads(rig.held.len());
                while let Some(id) = rig.sending.pop_front() {
                    rig.door.handle_sent(&mut rig.keyspace, id, &Ok(()));
                }
            }
            self.collect();
            while let Some((from, to)) = self.queues.keys().next().copied() {
                moved = true;
                self.deliver(from, to);
                self.queues.retain(|_, queue| !queue.is_empty());
            }
            if !moved {
                return;
            }
        }
    }

    /// Sends a command by itself and answers what comes.
    fn call(&mut self, thread: usize, id: ConnectionId, words: &str) -> Vec<u8> {
        let words: Vec<&[u8]> = words.split(' ').map(str::as_bytes).collect();
        self.rigs[thread].receive(id, &command(&words));
        self.settle();
        self.rigs[thread].sent.remove(&id).unwrap_or_default()
    }
}

fn small_limits() -> ClientLimits {
    ClientLimits { output_pause_bytes: 64 << 10, ..Config::default().limits }
}

/// Clients work on their own keys in deep pipelines, and on one counter together. Whatever the
/// pump does, each gets the replies of a node that does one thing at a time.
fn check_pumped(seed: u64) {
    let mut random = fastrand::Rng::with_seed(seed);
    let (shards, threads) = *random.choice(&[(2, 2), (3, 2), (5, 3), (2, 1)]).unwrap();
    let mut pump = Pump::new(shards, threads, &small_limits());
    let mut clients: Vec<Client> = Vec::new();
    for name in 0..4 {
        let thread = name % usize::from(threads);
        pump.rigs[thread].holds_sends = random.bool();
        let id = pump.rigs[thread].connect();
        let (script, expected, model) = (VecDeque::new(), Vec::new(), BTreeMap::new());
        let mut client = Client { thread, id, script, expected, model, resp3: false };
        (0..150).for_each(|_| client.add_command(name, &mut random));
        clients.push(client);
    }
    while clients.iter().any(|client| !client.script.is_empty()) {
        if random.u8(..) < 40 {
            let client = random.choice(&mut clients).unwrap();
            let len = random.usize(..=client.script.len().min(30_000));
            let bytes: Vec<u8> = client.script.drain(..len).collect();
            if !bytes.is_empty() {
                pump.rigs[client.thread].receive(client.id, &bytes);
            }
        }
        pump.step(&mut random);
    }
    (0..2000).for_each(|_| pump.step(&mut random));
    pump.settle();
    let mut counts = Vec::new();
    for (name, client) in clients.iter().enumerate() {
        let sent = pump.rigs[client.thread].sent.remove(&client.id).unwrap_or_default();
        let (mut rest, mut last) = (sent.as_slice(), 0);
        for (number, expected) in client.expected.iter().enumerate() {
            assert!(!rest.is_empty(), "seed {seed}: client {name} got {number} replies");
            let reply = cut_reply(&mut rest);
            let shown = reply[..reply.len().min(60)].escape_ascii().to_string();
            match expected {
                Expected::Exactly(bytes) => {
                    assert!(*bytes == reply, "seed {seed}: client {name}, {number}: {shown}");
                }
                Expected::Prefix(start) => assert!(reply.starts_with(start), "{seed}: {shown}"),
                Expected::Count => {
                    let count: u64 = shown[1..].trim_end_matches("\\r\\n").parse().unwrap();
                    assert!(count > last, "seed {seed}: client {name}: {last}, then {count}");
                    last = count;
                    counts.push(count);
                }
            }
        }
        assert!(rest.is_empty(), "seed {seed}: client {name} got more replies than commands");
    }
    counts.sort_unstable();
    assert!(counts.iter().copied().eq(1..=counts.len() as u64), "seed {seed}: {counts:?}");
    check_whole(&mut pump, &clients, counts.is_empty());
    for rig in &pump.rigs {
        assert!(rig.door.relayed.is_empty() && rig.door.gathers.is_empty(), "seed {seed}");
        assert!(rig.door.tasks.is_empty() && rig.door.yielded.is_empty(), "seed {seed}");
    }
}

/// Commands about all keys see the keys of all threads.
fn check_whole(pump: &mut Pump, clients: &[Client], uncounted: bool) {
    let mut names: BTreeSet<String> =
        clients.iter().flat_map(|client| client.model.keys().cloned()).collect();
    if !uncounted {
        names.insert("shared".to_owned());
    }
    let last = pump.rigs.len() - 1;
    let id = pump.rigs[last].connect();
    let size = format!(":{}\r\n", names.len()).into_bytes();
    assert_eq!(pump.call(last, id, "DBSIZE"), size);
    let words = |reply: Vec<u8>| -> Vec<String> {
        let text = String::from_utf8(reply).unwrap();
        let lines = text.split("\r\n").filter(|line| !line.starts_with(['*', '$']));
        lines.filter(|line| !line.is_empty()).map(str::to_owned).collect()
    };
    let listed: BTreeSet<String> = words(pump.call(last, id, "KEYS *")).into_iter().collect();
    assert_eq!(listed, names);
    let (mut cursor, mut scanned) = ("0".to_owned(), BTreeSet::new());
    loop {
        let mut page = words(pump.call(last, id, &format!("SCAN {cursor} COUNT 3"))).into_iter();
        cursor = page.next().unwrap();
        for name in page {
            assert!(scanned.insert(name.clone()), "{name} comes twice");
        }
        if cursor == "0" {
            break;
        }
    }
    assert_eq!(scanned, names);
    assert!(names.contains(&words(pump.call(last, id, "RANDOMKEY"))[0]));
    let info = String::from_utf8(pump.call(last, id, "INFO")).unwrap();
    for line in [format!("db0:keys={},", names.len()), "connected_clients:5\r\n".to_owned()] {
        assert!(info.contains(&line), "{line} in {info}");
    }
    let list = String::from_utf8(pump.call(last, id, "CLIENT LIST")).unwrap();
    let ids: BTreeSet<&str> = list
        .lines()
        .filter_map(|line| line.split(' ').find(|word| word.starts_with("id=")))
        .collect();
    assert_eq!(ids.len(), 5, "{list}");
    assert_eq!(pump.call(last, id, "FLUSHALL"), b"+OK\r\n");
    assert_eq!(pump.call(last, id, "DBSIZE"), b":0\r\n");
}

#[test]
fn threads_together_answer_as_one() {
    (0..60).for_each(check_pumped);
}

#[test]
fn light_client_has_its_turn_beside_a_deep_pipeline() {
    for threads in [1, 2] {
        let mut pump = Pump::new(2, threads, &Config::default().limits);
        let (heavy, light) = (pump.rigs[0].connect(), pump.rigs[0].connect());
        let flood = command(&[b"SET", b"key", &[b'v'; 100]]).repeat(20_000);
        pump.rigs[0].receive(heavy, &flood);
        pump.rigs[0].receive(light, b"GET other\r\n");
        let mut turns = 0;
        while !pump.rigs[0].sent.contains_key(&light) {
            turns += 1;
            for rig in &mut pump.rigs {
                rig.door.begin_turn(&mut rig.keyspace);
                rig.go_on();
            }
            pump.collect();
            for (from, to) in pump.queues.keys().copied().collect::<Vec<_>>() {
                pump.deliver(from, to);
            }
        }
        assert!(turns <= 4, "{threads} threads: {turns} turns");
        let done = pump.rigs[0].sent.get(&heavy).map_or(0, Vec::len) / b"+OK\r\n".len();
        assert!(done <= (turns + 1) * TURN_COST_MAX, "{done} commands in {turns} turns");
        pump.settle();
        assert_eq!(pump.rigs[0].sent[&heavy].len(), 20_000 * b"+OK\r\n".len());
    }
}

#[test]
fn gone_client_leaves_nothing_on_other_threads() {
    let mut pump = Pump::new(2, 2, &small_limits());
    let id = pump.rigs[0].connect();
    let keys: String = (0..50).map(|key| format!(" {key} v")).collect();
    assert_eq!(pump.call(0, id, &format!("MSET{keys}")), b"+OK\r\n");
    let keys: String = (0..50).map(|key| format!(" {key}")).collect();
    pump.rigs[0].receive(id, format!("MGET{keys}\r\nINCR n\r\nKEYS *\r\n").as_bytes());
    pump.rigs[0].turn();
    pump.collect();
    let broken = std::io::Error::from(std::io::ErrorKind::ConnectionReset);
    let Rig { door, keyspace, .. } = &mut pump.rigs[0];
    assert!(door.handle_received(keyspace, id, Err(broken)).is_none());
    pump.settle();
    for rig in &pump.rigs {
        assert!(rig.door.connections.is_empty() && rig.door.relayed.is_empty());
        assert!(rig.door.gathers.is_empty() && rig.door.tasks.is_empty() && rig.door.is_empty());
    }
}

#[test]
fn idle_connection_is_small() {
    const BYTES_MAX: usize = 2048;
    let mut pump = Pump::new(2, 2, &small_limits());
    let id = pump.rigs[0].connect();
    for key in 0..200 {
        let large = "v".repeat(if key % 10 == 0 { 30_000 } else { 10 });
        pump.rigs[0].receive(id, format!("SET {key} {large}\r\nGET {key}\r\n").as_bytes());
    }
    pump.settle();
    let connection = &pump.rigs[0].door.connections[&id];
    let bytes = connection.bytes();
    // The map of connections holds a name and a pointer for each, half empty at worst.
    let bytes = bytes + 2 * (size_of::<ConnectionId>() + size_of::<Box<Connection>>());
    assert!(bytes <= BYTES_MAX, "{bytes} bytes");
    assert_eq!(pump.rigs[1].door.connections.len(), 0, "its shadow is gone");
}
