//! How fast is the client door on each driver, and beside `redis-server`?
//!
//! Unit: operations per second, latency of a batch (as many commands as the pipeline is deep), CPU
//! of the server per operation. Expected on loopback: about 5 us of CPU per unpipelined command,
//! nearly all of it the kernel's TCP, so some 200,000 ops/s on any server; with 64 commands per
//! batch the parser and the store decide. A durable SET waits for the disk: about 50 connections
//! per 100-200 us where commands are not pipelined.
//!
//! The server runs on core 0 and the generator, one thread with all connections in a closed loop,
//! on core 1. Every acknowledged SET of kadring is durable; of the Redis rows only `redis always`
//! promises the same. GET is hot: everything fits the read cache.

#![expect(clippy::disallowed_methods, reason = "a bench reads the clock")]
#![expect(clippy::disallowed_types, reason = "a bench is a client of its own")]
#![expect(clippy::print_stdout, reason = "a bench prints its result")]

use clap::Parser;
use kadring_benches::{
    Flags, Latencies, Measuring, Report, SUMMARY_COLUMNS, Sample, Summary, Table, Turns,
    cpu_of_process, executables, interleave,
};
use rustix::event::epoll;
use rustix::io::Errno;
use serde_json::json;
use std::error::Error;
use std::io::{self, BufRead as _, BufReader, ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A server that has not answered for this long has lost a command.
const PATIENCE: Duration = Duration::from_secs(10);
const KEYS_MAX: usize = 1000;
/// Bytes of all values, so that they fit the cache.
const VALUE_BYTES_MAX: usize = 16 << 20;
/// Bytes stored at a time before the bench.
const FILL_BYTES: usize = 1 << 20;
/// Bytes of prepared requests.
const BATCH_BYTES_MAX: usize = 8 << 20;
const BATCHES_MAX: usize = 256;
const TABLE: Table = Table { name_width: 20, width: 10 };

#[derive(Debug, Parser)]
struct Arguments {
    #[command(flatten)]
    flags: Flags,
    /// Connections of the generator.
    #[arg(long, default_value_t = 50)]
    connections: usize,
    /// Only workloads whose name contains this, such as "SET 64 B P16".
    #[arg(long, value_name = "TEXT", default_value = "")]
    only: String,
    /// The kadring to measure [default: built with `cargo build --release` first].
    #[arg(long, value_name = "FILE")]
    binary: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verb {
    Get,
    Set,
}

#[derive(Clone, Copy, Debug)]
struct Workload {
    verb: Verb,
    value_len: usize,
    pipeline: usize,
}

const fn workload(verb: Verb, value_len: usize, pipeline: usize) -> Workload {
    Workload { verb, value_len, pipeline }
}

const WORKLOADS: [Workload; 14] = [
    workload(Verb::Get, 64, 1),
    workload(Verb::Get, 64, 16),
    workload(Verb::Get, 64, 64),
    workload(Verb::Set, 64, 1),
    workload(Verb::Set, 64, 16),
    workload(Verb::Set, 64, 64),
    workload(Verb::Get, 4 << 10, 1),
    workload(Verb::Get, 4 << 10, 4),
    workload(Verb::Set, 4 << 10, 1),
    workload(Verb::Set, 4 << 10, 4),
    workload(Verb::Get, 64 << 10, 1),
    workload(Verb::Get, 64 << 10, 4),
    workload(Verb::Set, 64 << 10, 1),
    workload(Verb::Set, 64 << 10, 4),
];
const WORKLOADS_SMOKE: [Workload; 2] = [workload(Verb::Get, 64, 16), workload(Verb::Set, 64, 16)];

impl Workload {
    fn name(&self) -> String {
        let verb = if self.verb == Verb::Get { "GET" } else { "SET" };
        format!("{verb} {} B P{}", self.value_len, self.pipeline)
    }

    fn key_count(&self) -> usize {
        KEYS_MAX.min(VALUE_BYTES_MAX / self.value_len)
    }

    /// Appends one command about a key, and answers how long its reply is.
    fn encode(&self, verb: Verb, key: usize, value: &[u8], out: &mut Vec<u8>) -> usize {
        let key = format!("user:{key:011}");
        if verb == Verb::Get {
            out.extend_from_slice(format!("*2\r\n$3\r\nGET\r\n$16\r\n{key}\r\n").as_bytes());
            return format!("${}\r\n", value.len()).len() + value.len() + 2;
        }
        let head = format!("*3\r\n$3\r\nSET\r\n$16\r\n{key}\r\n${}\r\n", value.len());
        out.extend_from_slice(head.as_bytes());
        out.extend_from_slice(value);
        out.extend_from_slice(b"\r\n");
        b"+OK\r\n".len()
    }
}

/// What one connection sends before it waits.
struct Batch {
    bytes: Vec<u8>,
    reply_len: usize,
}

fn batches(workload: &Workload, value: &[u8]) -> Vec<Batch> {
    let batch = || {
        let mut batch = Batch { bytes: Vec::new(), reply_len: 0 };
        for _ in 0..workload.pipeline {
            let key = fastrand::usize(..workload.key_count());
            batch.reply_len += workload.encode(workload.verb, key, value, &mut batch.bytes);
        }
        batch
    };
    let first = batch();
    let count = (BATCH_BYTES_MAX / first.bytes.len()).clamp(1, BATCHES_MAX);
    std::iter::once(first).chain((1..count).map(|_| batch())).collect()
}

/// A server process; dropping it ends it.
struct Server {
    name: &'static str,
    child: Child,
    address: SocketAddr,
    // Last: the process goes first.
    _data: tempfile::TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself; then there is nothing to do.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// How servers are started.
struct Starter {
    flags: Flags,
    binary: PathBuf,
    pinned: bool,
    redis: bool,
}

impl Starter {
    fn command(&self, program: &Path) -> Command {
        let mut command = if self.pinned {
            let mut command = Command::new("taskset");
            command.args(["-c", "0"]).arg(program);
            command
        } else {
            Command::new(program)
        };
        command.stdin(Stdio::null()).stderr(Stdio::null());
        command
    }

    fn kadring(&self, name: &'static str, driver: &str) -> Result<Server, Box<dyn Error>> {
        let data = self.flags.scratch()?;
        let mut command = self.command(&self.binary);
        command.args(["run", "--client", "127.0.0.1:0", "--shards", "1", "--io", driver]);
        let mut child =
            command.arg("--data-dir").arg(data.path()).stdout(Stdio::piped()).spawn()?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().ok_or("stdout is piped")?).read_line(&mut line)?;
        let client = line.split(' ').find_map(|word| word.strip_prefix("client="));
        let Some(address) = client.and_then(|address| address.parse().ok()) else {
            let _ = child.kill();
            let status = child.wait()?;
            return Err(format!("kadring --io {driver} does not start ({status}): {line}").into());
        };
        Ok(Server { name, child, address, _data: data })
    }

    fn redis(&self, name: &'static str, arguments: &[&str]) -> Result<Server, Box<dyn Error>> {
        let data = self.flags.scratch()?;
        // Redis takes no port 0: borrow a free one. Somebody may snatch it, and then this fails.
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let mut command = self.command(Path::new("redis-server"));
        command.args(["--bind", "127.0.0.1", "--port", &address.port().to_string()]);
        command.args(["--save", "", "--dir"]).arg(data.path()).args(arguments);
        let mut child = command.stdout(Stdio::piped()).spawn()?;
        let log = child.stdout.take().expect("its output is piped");
        let server = Server { name, child, address, _data: data };
        // Its log goes on after that line; redis-server does not mind that nobody reads it.
        for line in BufReader::new(log).lines() {
            if line?.contains("Ready to accept connections") {
                return Ok(server);
            }
        }
        Err("redis-server does not start".into())
    }

    /// Starts everybody who takes part; persistence makes no difference to GET.
    fn all(&self, verb: Verb) -> Result<Vec<Server>, Box<dyn Error>> {
        // In the middle: an ordinary io_uring runtime.
        let mut servers = vec![
            self.kadring("kadring uring", "uring")?,
            self.kadring("kadring tokio-uring", "tokio-uring")?,
            self.kadring("kadring pread", "pread")?,
        ];
        if self.redis {
            servers.push(self.redis("redis memory", &["--appendonly", "no"])?);
            if verb == Verb::Set {
                let aof = ["--appendonly", "yes", "--appendfsync"];
                servers.push(self.redis("redis always", &[&aof[..], &["always"]].concat())?);
                servers.push(self.redis("redis everysec", &[&aof[..], &["everysec"]].concat())?);
            }
        }
        Ok(servers)
    }
}

/// Stores every key and reads one back: the rest of the bench only counts bytes.
fn fill(server: &Server, workload: &Workload, value: &[u8]) -> io::Result<()> {
    let mut stream = TcpStream::connect(server.address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    // A megabyte at a time fits the buffers on the way.
    let count = (FILL_BYTES / value.len()).max(1);
    for first in (0..workload.key_count()).step_by(count) {
        let keys = first..workload.key_count().min(first + count);
        let expected = b"+OK\r\n".repeat(keys.len());
        let mut bytes = Vec::new();
        for key in keys {
            workload.encode(Verb::Set, key, value, &mut bytes);
        }
        let mut reply = vec![0; expected.len()];
        stream.write_all(&bytes)?;
        stream.read_exact(&mut reply)?;
        assert!(reply == expected, "{} answers SET", server.name);
    }
    let mut bytes = Vec::new();
    let mut reply = vec![0; workload.encode(Verb::Get, 0, value, &mut bytes)];
    stream.write_all(&bytes)?;
    stream.read_exact(&mut reply)?;
    let expected = [format!("${}\r\n", value.len()).as_bytes(), value, b"\r\n"].concat();
    assert!(reply == expected, "{} returns what was stored", server.name);
    Ok(())
}

struct Client {
    stream: TcpStream,
    batch: usize,
    sent: usize,
    received: usize,
    started: Instant,
    writable_wanted: bool,
}

/// All connections to one server, and what they send.
struct Generator<'a> {
    clients: Vec<Client>,
    epoll: std::os::fd::OwnedFd,
    batches: &'a [Batch],
    first_byte: u8,
    pipeline: u64,
    buffer: Vec<u8>,
    latencies: Latencies,
    operations: u64,
}

impl<'a> Generator<'a> {
    fn connect(
        address: SocketAddr,
        connections: usize,
        workload: &Workload,
        batches: &'a [Batch],
    ) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let mut clients = Vec::new();
        for index in 0..connections {
            let stream = TcpStream::connect(address)?;
            stream.set_nodelay(true)?;
            stream.set_nonblocking(true)?;
            let data = epoll::EventData::new_u64(index as u64);
            epoll::add(&epoll, &stream, data, epoll::EventFlags::IN)?;
            let (batch, started) = (index % batches.len(), Instant::now());
            let writable_wanted = false;
            clients.push(Client { stream, batch, sent: 0, received: 0, started, writable_wanted });
        }
        Ok(Self {
            clients,
            epoll,
            batches,
            first_byte: if workload.verb == Verb::Get { b'$' } else { b'+' },
            pipeline: workload.pipeline as u64,
            buffer: vec![0; 256 << 10],
            latencies: Latencies::default(),
            operations: 0,
        })
    }

    fn send(&mut self, index: usize) -> io::Result<()> {
        let client = &mut self.clients[index];
        let batch = &self.batches[client.batch];
        while client.sent < batch.bytes.len() {
            match client.stream.write(&batch.bytes[client.sent..]) {
                Ok(len) => client.sent += len,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        let blocked = client.sent < batch.bytes.len();
        if blocked != client.writable_wanted {
            client.writable_wanted = blocked;
            let out = if blocked { epoll::EventFlags::OUT } else { epoll::EventFlags::empty() };
            let data = epoll::EventData::new_u64(index as u64);
            epoll::modify(&self.epoll, &client.stream, data, epoll::EventFlags::IN | out)?;
        }
        Ok(())
    }

    /// Reads what came; the answer is whether the batch has all of its replies.
    fn receive(&mut self, index: usize) -> io::Result<bool> {
        let client = &mut self.clients[index];
        let batch = &self.batches[client.batch];
        let len = match client.stream.read(&mut self.buffer) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(len) => len,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
            Err(error) => return Err(error),
        };
        let sound = client.received > 0 || self.buffer[0] == self.first_byte;
        client.received += len;
        if !sound || client.received > batch.reply_len {
            let text = String::from_utf8_lossy(&self.buffer[..len.min(80)]).into_owned();
            return Err(io::Error::other(format!("unexpected reply {text:?}")));
        }
        Ok(client.received == batch.reply_len)
    }

    /// Starts the next batch of a connection.
    fn start(&mut self, index: usize) -> io::Result<()> {
        let stride = self.clients.len();
        let client = &mut self.clients[index];
        client.batch = (client.batch + stride) % self.batches.len();
        (client.sent, client.received, client.started) = (0, 0, Instant::now());
        self.send(index)
    }

    /// Turns until `end`; connections whose batch ends go on at once if `again`. Returns when all
    /// are at rest otherwise.
    fn run(&mut self, end: Instant, again: bool) -> io::Result<()> {
        let mut events: Vec<epoll::Event> = Vec::with_capacity(self.clients.len());
        let timeout = rustix::event::Timespec::try_from(PATIENCE).map_err(io::Error::other)?;
        let mut busy = self.clients.len();
        while if again { Instant::now() < end } else { busy > 0 } {
            events.clear();
            let room = rustix::buffer::spare_capacity(&mut events);
            match epoll::wait(&self.epoll, room, Some(&timeout)) {
                Ok(0) => return Err(ErrorKind::TimedOut.into()),
                Err(Errno::INTR) => continue,
                other => other.map(drop)?,
            }
            for event in &events {
                let index = event.data.u64() as usize;
                let flags = event.flags;
                if flags.contains(epoll::EventFlags::OUT) {
                    self.send(index)?;
                }
                if !self.receive(index)? {
                    continue;
                }
                self.latencies.record(self.clients[index].started.elapsed(), self.pipeline);
                self.operations += self.pipeline;
                if again {
                    self.start(index)?;
                } else {
                    busy -= 1;
                }
            }
        }
        Ok(())
    }
}

/// How long and how often.
#[derive(Clone, Copy, Debug)]
struct Plan {
    turns: Turns,
    connections: usize,
}

fn measure(
    server: &Server,
    plan: &Plan,
    workload: &Workload,
    batches: &[Batch],
) -> io::Result<Sample> {
    let pid = server.child.id();
    let mut generator = Generator::connect(server.address, plan.connections, workload, batches)?;
    for index in 0..plan.connections {
        generator.start(index)?;
    }
    generator.run(Instant::now() + 2 * plan.turns.warm_up, true)?;
    generator.latencies.clear();
    let before = generator.operations;
    let measuring = Measuring::start(cpu_of_process(pid));
    generator.run(Instant::now() + plan.turns.duration, true)?;
    let operations = generator.operations - before;
    let latencies = std::mem::take(&mut generator.latencies);
    let sample = measuring.finish(cpu_of_process(pid), operations, latencies);
    generator.run(Instant::now(), false)?;
    Ok(sample)
}

fn print(report: &mut Report, workload: &Workload, servers: &[Server], summaries: &[Summary]) {
    println!();
    TABLE.row(&workload.name(), SUMMARY_COLUMNS);
    for (server, summary) in servers.iter().zip(summaries) {
        TABLE.row(server.name, summary.cells().iter().map(String::as_str));
        report.push(
            "rows",
            json!({
                "contestant": server.name,
                "workload": workload.name(),
                "result": summary.json(),
                "kadring_uring_ratio": summaries[0].ratio_to(summary).json(),
            }),
        );
    }
    let mut line = "ratios:".to_owned();
    for (server, summary) in servers.iter().zip(summaries).skip(1) {
        let name = server.name.trim_start_matches("kadring ");
        line.push_str(&format!("   uring/{name} {}", summaries[0].ratio_to(summary)));
    }
    println!("{line}");
}

fn build() -> Result<PathBuf, Box<dyn Error>> {
    let mut command = Command::new(env!("CARGO"));
    command.args(["build", "--quiet", "--release", "--package", "kadring", "--bin", "kadring"]);
    let status = command.current_dir(env!("CARGO_MANIFEST_DIR")).status()?;
    if !status.success() {
        return Err("cargo build --release --bin kadring failed".into());
    }
    Ok(executables()?.join("kadring"))
}

fn works(program: &str, arguments: &[&str]) -> bool {
    let mut command = Command::new(program);
    command.args(arguments).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

/// Puts the generator on core 1, and tells whether that worked.
fn pin() -> bool {
    let own = std::process::id().to_string();
    let pinned = works("taskset", &["-p", "-c", "1", &own]);
    if pinned {
        println!("server on core 0, generator on core 1");
    } else {
        println!("NOT PINNED (no taskset, or a single core): expect more noise");
    }
    pinned
}

fn main() -> Result<(), Box<dyn Error>> {
    let Arguments { flags, connections, only, binary } = Arguments::parse();
    let given = binary.is_some();
    let binary = binary.map_or_else(build, Ok)?;
    let plan = Plan { turns: flags.turns(0.7, 3), connections };
    let mut report = Report::new("resp_throughput", &flags, flags.scratch()?.path())?;
    if given {
        println!("{} as given: it need not be of that commit", binary.display());
    }
    println!(
        "{connections} connections, {} interleaved repeats of {:?}",
        plan.turns.repeats, plan.turns.duration
    );
    let pinned = pin();
    let redis = works("redis-server", &["--version"]);
    if !redis {
        println!("REDIS ROWS SKIPPED: no redis-server is installed");
    }
    let workloads = if flags.smoke { &WORKLOADS_SMOKE[..] } else { &WORKLOADS[..] };
    let starter = Starter { flags, binary, pinned, redis };
    for workload in workloads.iter().filter(|workload| workload.name().contains(&only)) {
        let value: Vec<u8> = (0..workload.value_len).map(|_| fastrand::u8(..)).collect();
        let batches = batches(workload, &value);
        let servers = starter.all(workload.verb)?;
        for server in &servers {
            fill(server, workload, &value)?;
        }
        let summaries = interleave(servers.len(), plan.turns.repeats, |index| {
            let server = &servers[index];
            measure(server, &plan, workload, &batches)
                .unwrap_or_else(|error| panic!("{} on {}: {error}", workload.name(), server.name))
        });
        print(&mut report, workload, &servers, &summaries);
    }
    report.finish()
}
