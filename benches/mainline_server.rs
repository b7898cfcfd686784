//! How many queries of BitTorrent's DHT does one core answer, and what does it cost to be durable?
//!
//! Unit: queries per second, and microseconds from datagram to datagram, with a window of
//! outstanding queries from one address. `get`: immutable items of 500 B that are in memory.
//! `find_node`: random targets. `put`: immutable items of 500 B, each of its own, with tokens that
//! were fetched before; of kadring on disk before the answer. `put mutable`: the same, signed
//! before. Expected: a datagram in and out costs the kernel some 3 us on each side, the server's
//! own part is below 2 us; so 150,000/s is a core, and the generator's core is as busy as the
//! server's. A put waits for a frame: with 256 outstanding, some 100,000/s at 2 ms. A signature is
//! 50 us by itself, less in a batch.
//!
//! kadring's routing table is filled first, by some hundred addresses that answer its pings.
//! libtorrent runs beside it where its Python package is installed: all in memory, and its table
//! stays nearly empty, since it takes one node of an address.
//!
//! `--held N` also fills a node with N items of 200 B, with a small read cache, and tells what its
//! memory grows by: at most the index' budget of 16 B for each, and the cache.
//!
//! The server runs on core 0, the generator on core 1. Contestants take turns.

#![expect(clippy::disallowed_methods, reason = "a bench reads the clock")]
#![expect(clippy::disallowed_types, reason = "a bench has sockets of its own")]
#![expect(clippy::print_stdout, reason = "a bench prints its result")]

use clap::Parser;
use kadring::krpc::bencode::Writer;
use kadring::mainline::item::{
    BATCH_MAX, Item, MutableItem, Signed, SigningKey, mutable_target, verify_all,
};
use kadring_benches::{
    Flags, Latencies, Measuring, Report, Sample, Server, ServerFlags, Starter, Summary, Table,
    cpu_of_process, interleave, sum_in_info,
};
use serde_json::json;
use std::any::Any;
use std::collections::VecDeque;
use std::error::Error;
use std::hint::black_box;
use std::io::{self, BufRead as _, BufReader};
use std::net::{SocketAddr, UdpSocket};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const TABLE: Table = Table { name_width: 24, width: 10 };
/// Items share so many bits with kadring's id: with a full table it stores what is near alone.
const NEAR_BITS: u32 = 5;
/// Bytes of a stored value, its length prefix not counted.
const VALUE_LEN: usize = 500;
/// The same where memory is measured.
const HELD_VALUE_LEN: usize = 200;
/// Bytes of values that the node whose memory is measured may cache.
const HELD_CACHE_BYTES: usize = 16 << 20;
/// Bytes of index for each item (DESIGN 3.5).
const HELD_BYTES_EACH_MAX: f64 = 16.0;
/// Items put at a time where memory is measured.
const HELD_STEP: usize = 20_000;
/// Items that are asked for.
const ITEM_COUNT: usize = 1_000;
/// libtorrent's socket has room for little more than a hundred puts; in memory, few keep it busy.
const THEIR_PUT_WINDOW_MAX: usize = 64;
/// Addresses that fill the routing table.
const NEIGHBOURS: usize = 300;
/// A query without an answer for so long is lost.
const PATIENCE: Duration = Duration::from_secs(1);
/// How kadring is started.
const ARGUMENTS: [&str; 8] =
    ["--mode", "mainline", "--peer", "127.0.0.1:0", "--bootstrap", "none", "--log", "error"];
/// The end of every query, with room for its transaction id.
const QUERY_END: &[u8] = b"1:t4:\0\0\0\x001:y1:qe";

#[derive(Debug, Parser)]
struct Arguments {
    #[command(flatten)]
    flags: Flags,
    #[command(flatten)]
    server: ServerFlags,
    /// Outstanding gets and find_nodes.
    #[arg(long, value_name = "N", default_value_t = 64)]
    window: usize,
    /// Outstanding puts.
    #[arg(long, value_name = "N", default_value_t = 256)]
    put_window: usize,
    /// Puts of a turn.
    #[arg(long, value_name = "N", default_value_t = 20_000)]
    puts: usize,
    /// Items of 200 B whose memory is measured; a million is what a node holds at most.
    #[arg(long, value_name = "N", default_value_t = 0)]
    held: usize,
}

/// A server and how it is reached.
struct Contestant {
    name: &'static str,
    address: SocketAddr,
    pid: u32,
    /// Outstanding puts at most.
    put_window_max: usize,
    /// Ends with it.
    _process: Box<dyn Any>,
}

/// A process that does not outlive its owner.
struct Theirs(Child);

impl Drop for Theirs {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A query with a place for its transaction id.
fn query(method: &str, arguments: impl FnOnce(&mut Writer<'_>)) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut writer = Writer::new(&mut bytes);
    writer.dictionary().bytes(b"a").dictionary().bytes(b"id").bytes(b"abcdefghij0123456789");
    arguments(&mut writer);
    writer.end().bytes(b"q").bytes(method.as_bytes());
    bytes.extend_from_slice(QUERY_END);
    bytes
}

fn get_query(target: &[u8; 20]) -> Vec<u8> {
    query("get", |writer| {
        writer.bytes(b"target").bytes(target);
    })
}

fn find_node_query(target: &[u8; 20]) -> Vec<u8> {
    query("find_node", |writer| {
        writer.bytes(b"target").bytes(target);
    })
}

/// What a mutable item has beside its value.
struct Seal {
    key: [u8; 32],
    salt: [u8; 8],
    seq: i64,
    signature: [u8; 64],
}

/// What is put: an item with all that a query for it needs.
struct Put {
    value: Vec<u8>,
    /// Of a mutable one.
    signed: Option<Seal>,
    target: [u8; 20],
}

/// Makes items that a node stores.
struct Maker {
    rng: fastrand::Rng,
    /// The node's id.
    near: [u8; 20],
    bits: u32,
}

impl Maker {
    fn is_near(&self, target: &[u8; 20]) -> bool {
        let first = |id: &[u8; 20]| u32::from_be_bytes([id[0], id[1], id[2], id[3]]);
        (first(target) ^ first(&self.near)).leading_zeros() >= self.bits
    }

    fn immutable(&mut self, len: usize) -> Put {
        loop {
            let value = random_value(len, &mut self.rng);
            let target = Item::Immutable(&value).target().0;
            if self.is_near(&target) {
                return Put { value, signed: None, target };
            }
        }
    }

    /// Each with a key of its own; its salt brings it near.
    fn mutable(&mut self) -> Put {
        let value = random_value(VALUE_LEN, &mut self.rng);
        let mut seed = [0; 32];
        self.rng.fill(&mut seed);
        let key = SigningKey::from_seed(&seed);
        let (public, seq) = (key.public(), 1);
        loop {
            let salt = self.rng.u64(..).to_be_bytes();
            let target = mutable_target(&public, &salt).0;
            if self.is_near(&target) {
                let signature = key.sign(&salt, seq, &value);
                let seal = Seal { key: public, salt, seq, signature };
                return Put { signed: Some(seal), target, value };
            }
        }
    }
}

/// The id of a node.
fn id_of(address: SocketAddr) -> Result<[u8; 20], Box<dyn Error>> {
    let mut id = None;
    let ping = query("ping", |_| ());
    Asker::new(address, 1)?.run(
        |number| (number == 0).then(|| ping.clone()),
        |_, reply, _| {
            let at = reply.windows(7).position(|window| window == b"2:id20:");
            id = at.and_then(|at| reply.get(at + 7..at + 27)?.try_into().ok());
        },
    )?;
    Ok(id.ok_or("a ping was answered without an id")?)
}

impl Put {
    fn query(&self, token: &[u8]) -> Vec<u8> {
        query("put", |writer| {
            if let Some(Seal { key, salt, seq, signature }) = &self.signed {
                writer.bytes(b"k").bytes(key).bytes(b"salt").bytes(salt);
                writer.bytes(b"seq").integer(*seq);
                writer.bytes(b"sig").bytes(signature);
            }
            writer.bytes(b"token").bytes(token).bytes(b"v").value(&self.value);
        })
    }
}

fn random_value(len: usize, rng: &mut fastrand::Rng) -> Vec<u8> {
    let mut content = vec![0; len];
    rng.fill(&mut content);
    let mut value = Vec::new();
    Writer::new(&mut value).bytes(&content);
    value
}

/// One address that asks, with a window of queries.
struct Asker {
    socket: UdpSocket,
    /// By slot: since when its query is out.
    out: Vec<Option<Instant>>,
    generation: u16,
    lost: u64,
}

impl Asker {
    fn new(to: SocketAddr, window: usize) -> io::Result<Self> {
        let socket = UdpSocket::bind("127.0.0.1:0")?;
        socket.connect(to)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        Ok(Self { socket, out: vec![None; window], generation: 0, lost: 0 })
    }

    /// Sends queries as fast as answers come, until `next` has no more; `seen` gets each answer
    /// with the number of its query.
    fn run(
        &mut self,
        mut next: impl FnMut(u64) -> Option<Vec<u8>>,
        mut seen: impl FnMut(u64, &[u8], Duration),
    ) -> Result<(), Box<dyn Error>> {
        self.generation = self.generation.wrapping_add(1);
        let (mut number, mut is_over) = (0, false);
        let mut numbers = vec![0; self.out.len()];
        let mut free: VecDeque<usize> = (0..self.out.len()).collect();
        let mut buffer = [0; 2_048];
        loop {
            while !is_over && let Some(slot) = free.pop_front() {
                let Some(mut datagram) = next(number) else {
                    free.push_front(slot);
                    is_over = true;
                    break;
                };
                let at = datagram.len() - QUERY_END.len() + 5;
                datagram[at..at + 2].copy_from_slice(&u16::try_from(slot)?.to_be_bytes());
                datagram[at + 2..at + 4].copy_from_slice(&self.generation.to_be_bytes());
                self.socket.send(&datagram)?;
                (self.out[slot], numbers[slot]) = (Some(Instant::now()), number);
                number += 1;
            }
            if is_over && free.len() == self.out.len() {
                return Ok(());
            }
            let Ok(len) = self.socket.recv(&mut buffer) else {
                let lost = self.out.iter_mut().enumerate().filter(|(_, out)| out.is_some());
                for (slot, out) in lost {
                    *out = None;
                    self.lost += 1;
                    free.push_back(slot);
                }
                continue;
            };
            let Some([high, low, generation @ ..]) = transaction(&buffer[..len]) else { continue };
            let slot = usize::from(u16::from_be_bytes([high, low]));
            let is_ours = u16::from_be_bytes(generation) == self.generation;
            let since = self.out.get_mut(slot).filter(|_| is_ours).and_then(Option::take);
            let Some(since) = since else { continue };
            seen(numbers[slot], &buffer[..len], since.elapsed());
            free.push_back(slot);
        }
    }
}

/// The transaction id of an answer, which stands near its end.
fn transaction(reply: &[u8]) -> Option<[u8; 4]> {
    let tail = &reply[reply.len().saturating_sub(48)..];
    let at = tail.windows(5).rposition(|window| window == b"1:t4:")?;
    tail.get(at + 5..at + 9)?.try_into().ok()
}

/// The token in an answer.
fn token(reply: &[u8]) -> Option<&[u8]> {
    let at = reply.windows(7).position(|window| window == b"5:token")? + 7;
    let rest = &reply[at..];
    let colon = rest.iter().position(|byte| *byte == b':')?;
    let len: usize = std::str::from_utf8(&rest[..colon]).ok()?.parse().ok()?;
    rest.get(colon + 1..colon + 1 + len)
}

fn is_error(reply: &[u8]) -> bool {
    reply.ends_with(b"1:y1:ee")
}

/// Asks for a token for each item.
fn tokens(asker: &mut Asker, puts: &[Put]) -> Result<Vec<Vec<u8>>, Box<dyn Error>> {
    let mut tokens = vec![Vec::new(); puts.len()];
    let next = |number: u64| Some(get_query(&puts.get(usize::try_from(number).ok()?)?.target));
    asker.run(next, |number, reply, _| {
        if let Some(found) = token(reply) {
            tokens[usize::try_from(number).unwrap_or_default()] = found.to_vec();
        }
    })?;
    if tokens.iter().any(Vec::is_empty) {
        return Err("a get was answered without a token".into());
    }
    Ok(tokens)
}

/// Puts items; the asker is the one whose tokens these are.
fn put_all(
    (contestant, window): (&Contestant, usize),
    puts: &[Put],
) -> Result<Sample, Box<dyn Error>> {
    let mut asker = Asker::new(contestant.address, 64)?;
    let tokens = tokens(&mut asker, puts)?;
    asker.out.resize(window.min(contestant.put_window_max), None);
    let queries: Vec<_> = puts.iter().zip(&tokens).map(|(put, token)| put.query(token)).collect();
    let (mut latencies, mut refused) = (Latencies::default(), 0);
    let measuring = Measuring::start(cpu_of_process(contestant.pid));
    let next = |number: u64| queries.get(usize::try_from(number).ok()?).cloned();
    asker.run(next, |_, reply, took| {
        refused += u64::from(is_error(reply));
        latencies.record(took, 1);
    })?;
    let count = latencies.count();
    let sample = measuring.finish(cpu_of_process(contestant.pid), count, latencies);
    check(contestant, (count, refused, asker.lost))?;
    Ok(sample)
}

/// Sockets lose what comes too fast, and a lost query costs its asker time; few may be.
fn check(
    contestant: &Contestant,
    (count, refused, lost): (u64, u64, u64),
) -> Result<(), Box<dyn Error>> {
    if lost > 0 {
        println!("{}: {lost} QUERIES LOST of {}", contestant.name, count + lost);
    }
    if refused > 0 || lost * 20 > count {
        return Err(format!("{}: {refused} refused, {lost} lost", contestant.name).into());
    }
    Ok(())
}

/// Asks the same kind of query for a while.
fn ask_for(
    (contestant, window): (&Contestant, usize),
    duration: Duration,
    mut next: impl FnMut(u64) -> Vec<u8>,
) -> Result<Sample, Box<dyn Error>> {
    let mut asker = Asker::new(contestant.address, window)?;
    let mut latencies = Latencies::default();
    let until = Instant::now() + duration;
    let measuring = Measuring::start(cpu_of_process(contestant.pid));
    let next = |number| (Instant::now() < until).then(|| next(number));
    asker.run(next, |_, _, took| latencies.record(took, 1))?;
    let count = latencies.count();
    check(contestant, (count, 0, asker.lost))?;
    Ok(measuring.finish(cpu_of_process(contestant.pid), count, latencies))
}

/// Fills a routing table: each address asks, and answers the ping that follows. Returns how many
/// nodes the table has then.
fn fill_table(server: &Server, peer: SocketAddr) -> Result<u64, Box<dyn Error>> {
    let mut rng = fastrand::Rng::with_seed(1);
    let mut nodes = Vec::new();
    for _ in 0..NEIGHBOURS {
        let socket = UdpSocket::bind("127.0.0.1:0")?;
        socket.connect(peer)?;
        socket.set_nonblocking(true)?;
        let mut id = [0; 20];
        rng.fill(&mut id);
        nodes.push((socket, id));
    }
    let (mut known, mut unchanged) = (0, 0);
    // Only so many are pinged at a time.
    while unchanged < 10 {
        for (socket, id) in &nodes {
            let mut ping = b"d1:ad2:id20:".to_vec();
            ping.extend_from_slice(id);
            ping.extend_from_slice(b"e1:q4:ping1:t2:aa1:y1:qe");
            socket.send(&ping)?;
            answer_pings(&nodes)?;
        }
        let until = Instant::now() + Duration::from_millis(50);
        while Instant::now() < until {
            answer_pings(&nodes)?;
        }
        let now = sum_in_info(&server.info()?, "table_nodes_ipv4");
        unchanged = if now > known { 0 } else { unchanged + 1 };
        known = now;
    }
    Ok(known)
}

fn answer_pings(nodes: &[(UdpSocket, [u8; 20])]) -> io::Result<()> {
    let mut buffer = [0; 2_048];
    for (socket, id) in nodes {
        while let Ok(len) = socket.recv(&mut buffer) {
            let datagram = &buffer[..len];
            if !datagram.ends_with(b"1:y1:qe") {
                continue;
            }
            let Some(transaction) = transaction(datagram) else { continue };
            let mut reply = b"d1:rd2:id20:".to_vec();
            reply.extend_from_slice(id);
            reply.extend_from_slice(b"5:nodes0:e1:t4:");
            reply.extend_from_slice(&transaction);
            reply.extend_from_slice(b"1:y1:re");
            socket.send(&reply)?;
        }
    }
    Ok(())
}

fn ours(starter: &Starter, report: &mut Report) -> Result<Contestant, Box<dyn Error>> {
    let server = starter.kadring("kadring", &ARGUMENTS)?;
    let address = server.peer.ok_or("kadring has no peer door")?;
    let known = fill_table(&server, address)?;
    println!("routing table of kadring: {known} nodes");
    report.set("table_nodes", known);
    let pid = server.pid();
    let (name, put_window_max) = ("kadring, durable", usize::MAX);
    Ok(Contestant { name, address, pid, put_window_max, _process: Box::new(server) })
}

/// Fills a node with items and tells what its memory grows by.
fn hold(starter: &Starter, report: &mut Report, count: usize) -> Result<(), Box<dyn Error>> {
    let cache = HELD_CACHE_BYTES.to_string();
    let mut arguments = ARGUMENTS.to_vec();
    arguments.extend(["--cache-bytes", &cache]);
    let server = starter.kadring("kadring", &arguments)?;
    let address = server.peer.ok_or("kadring has no peer door")?;
    let pid = server.pid();
    let (name, put_window_max) = ("kadring", usize::MAX);
    let contestant = Contestant { name, address, pid, put_window_max, _process: Box::new(()) };
    // Its table is empty: everything is near.
    let rng = fastrand::Rng::with_seed(4);
    let mut maker = Maker { rng, near: [0; 20], bits: 0 };
    let mut put = |count: usize| {
        let puts: Vec<Put> = (0..count).map(|_| maker.immutable(HELD_VALUE_LEN)).collect();
        put_all((&contestant, 256), &puts)
    };
    // Buffers that a node has once, whatever it holds.
    let warm_up = HELD_STEP.min(count / 10);
    put(warm_up)?;
    let before = resident_bytes(pid)?;
    let mut rest = count - warm_up;
    while rest > 0 {
        let step = rest.min(HELD_STEP);
        put(step)?;
        rest -= step;
    }
    let after = resident_bytes(pid)?;
    let held = sum_in_info(&server.info()?, "items");
    let grown = after.saturating_sub(before) as f64;
    let each = (grown - HELD_CACHE_BYTES as f64) / (count - warm_up) as f64;
    println!(
        "\n{held} items of {HELD_VALUE_LEN} B held: {before} bytes resident before, {after} after; \
         without {HELD_CACHE_BYTES} of cache {each:.1} B for each"
    );
    report.set("held_items", held);
    report.set("held_bytes_before", before);
    report.set("held_bytes_after", after);
    report.set("held_bytes_each", each);
    report.judge("memory for each item within 16 B and the cache", each <= HELD_BYTES_EACH_MAX);
    Ok(())
}

fn resident_bytes(pid: u32) -> Result<u64, Box<dyn Error>> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/statm"))?;
    let pages: u64 = text.split(' ').nth(1).ok_or("statm has no second field")?.parse()?;
    Ok(pages * 4_096)
}

/// libtorrent, or `None` where it is not installed.
fn theirs() -> Result<Option<Contestant>, Box<dyn Error>> {
    let probe = Command::new("python3").args(["-c", "import libtorrent"]).output();
    if !probe.is_ok_and(|output| output.status.success()) {
        println!("LIBTORRENT ROWS SKIPPED: its Python package is not installed");
        return Ok(None);
    }
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/python/libtorrent_server.py");
    let mut command = Command::new("taskset");
    command.args(["-c", "0", "python3", script, "127.0.0.1"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let mut line = String::new();
    let output = child.stdout.take().ok_or("no output of libtorrent")?;
    BufReader::new(output).read_line(&mut line)?;
    let address = SocketAddr::from(([127, 0, 0, 1], line.trim().parse()?));
    let pid = child.id();
    let name = "libtorrent, in memory";
    let put_window_max = THEIR_PUT_WINDOW_MAX;
    Ok(Some(Contestant { name, address, pid, put_window_max, _process: Box::new(Theirs(child)) }))
}

/// Lets the contestants take turns at one kind of work.
fn take_turns(
    contestants: &[Contestant],
    repeats: usize,
    mut run: impl FnMut(&Contestant) -> Result<Sample, Box<dyn Error>>,
) -> Result<Vec<Summary>, Box<dyn Error>> {
    let mut failed = None;
    let summaries = interleave(contestants.len(), repeats, |index| {
        run(&contestants[index]).unwrap_or_else(|error| {
            failed = Some(error);
            let (rate, cpu_micros, latencies) = (f64::NAN, f64::NAN, Latencies::default());
            Sample { rate, cpu_micros, latencies, disk: None }
        })
    });
    failed.map_or(Ok(summaries), Err)
}

fn show(report: &mut Report, what: &str, contestants: &[Contestant], summaries: &[Summary]) {
    println!("\n{what}");
    let rows = contestants.iter().map(|contestant| contestant.name).zip(summaries);
    report.rows(TABLE, &json!({ "query": what }), rows);
}

/// Microseconds to check one signature, in batches as full as they get.
fn signature_micros(rounds: usize) -> f64 {
    let rng = fastrand::Rng::with_seed(9);
    let mut maker = Maker { rng, near: [0; 20], bits: 0 };
    let puts: Vec<Put> = (0..BATCH_MAX).map(|_| maker.mutable()).collect();
    let signed: Vec<Signed> = puts
        .iter()
        .filter_map(|put| {
            let Seal { key, salt, seq, signature } = put.signed.as_ref()?;
            let item = MutableItem { key, salt, seq: *seq, signature, value: &put.value };
            Some(Signed::of(&item))
        })
        .collect();
    let started = Instant::now();
    for _ in 0..rounds {
        assert!(black_box(verify_all(&signed)).iter().all(|is_valid| *is_valid));
    }
    started.elapsed().as_secs_f64() * 1e6 / (rounds * BATCH_MAX) as f64
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments = Arguments::parse();
    let flags = &arguments.flags;
    let mut report = Report::new("mainline_server", flags, flags.scratch()?.path())?;
    let starter = Starter::new(flags, &arguments.server)?;
    let mut contestants = vec![ours(&starter, &mut report)?];
    contestants.extend(theirs()?);
    let turns = flags.turns(3.0, 5);
    let put_count = if flags.smoke { 200 } else { arguments.puts };
    let near = id_of(contestants[0].address)?;
    let mut maker = Maker { rng: fastrand::Rng::with_seed(2), near, bits: NEAR_BITS };

    let items: Vec<Put> = (0..ITEM_COUNT).map(|_| maker.immutable(VALUE_LEN)).collect();
    for contestant in &contestants {
        put_all((contestant, 64), &items)?;
    }
    let queries: Vec<_> = items.iter().map(|item| get_query(&item.target)).collect();
    let gets = take_turns(&contestants, turns.repeats, |contestant| {
        let next = |number: u64| queries[usize::try_from(number).unwrap_or(0) % ITEM_COUNT].clone();
        ask_for((contestant, arguments.window), turns.duration, next)
    })?;
    show(&mut report, "get of 500 B", &contestants, &gets);
    let finds = take_turns(&contestants, turns.repeats, |contestant| {
        let mut rng = fastrand::Rng::with_seed(3);
        ask_for((contestant, arguments.window), turns.duration, |_| {
            let mut target = [0; 20];
            rng.fill(&mut target);
            find_node_query(&target)
        })
    })?;
    show(&mut report, "find_node", &contestants, &finds);
    let mut puts_of = |make: fn(&mut Maker) -> Put| {
        take_turns(&contestants, turns.repeats, |contestant| {
            let puts: Vec<Put> = (0..put_count).map(|_| make(&mut maker)).collect();
            put_all((contestant, arguments.put_window), &puts)
        })
    };
    let puts = puts_of(|maker| maker.immutable(VALUE_LEN))?;
    let mutable = puts_of(Maker::mutable)?;
    show(&mut report, "put of 500 B", &contestants, &puts);
    show(&mut report, "put mutable of 500 B", &contestants, &mutable);

    let signature = signature_micros(if flags.smoke { 2 } else { 200 });
    let share = signature / mutable[0].cpu_micros();
    println!(
        "\nsignature check, batches of {BATCH_MAX}: {signature:.1} us, {share:.2} of a mutable put"
    );
    report.set("signature_micros", signature);
    report.set("signature_share", share);
    if arguments.held > 0 {
        hold(&starter, &mut report, arguments.held)?;
    }
    report.judge("get of 500 B with a full table, 150,000/s", gets[0].rate() >= 150_000.0);
    report.judge("find_node with a full table, 150,000/s", finds[0].rate() >= 150_000.0);
    if let (Some(durable), Some(memory)) = (puts.first(), puts.get(1)) {
        let ratio = durable.ratio_to(memory);
        println!("durable put of libtorrent's in memory: {ratio}");
        report.set("durable_put_ratio", ratio.json());
        report.judge("durable put at least half of libtorrent's in memory", ratio.median >= 0.5);
    }
    report.finish()
}
