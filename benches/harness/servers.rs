//! [`Starter`] and [`Server`]: kadring and `redis-server` as processes of their own, on core 0; the
//! generator is this process, on core 1.

#![expect(clippy::disallowed_types, reason = "a bench asks servers by sockets of its own")]

use crate::{Flags, Turns, executables};
use kadring::cli::bench::{
    Distribution, Outcome, Pace, Plan, ReplyEvent, ReplyReader, Target, Verify, Workload,
};
use std::error::Error;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

/// A server that has not answered a question for this long has lost it.
const PATIENCE: Duration = Duration::from_secs(30);
/// From this share of its time on a processor the generator may be the limit.
const GENERATOR_BUSY: f64 = 0.9;

/// Flags of benches that measure servers.
#[derive(Clone, Debug, clap::Args)]
pub struct ServerFlags {
    /// The kadring to measure [default: built with `cargo build --release` first].
    #[arg(long, value_name = "FILE")]
    pub binary: Option<PathBuf>,
}

/// A server process; dropping it ends it.
#[derive(Debug)]
pub struct Server {
    /// What it is called in tables.
    pub name: &'static str,
    /// Where it listens.
    pub address: SocketAddr,
    /// Its peer door, if it has one.
    pub peer: Option<SocketAddr>,
    child: Child,
    /// Kept open: a server that cannot write its log ends.
    _log: BufReader<ChildStdout>,
    // Last: the process goes first.
    data: tempfile::TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself; then there is nothing to do.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    /// Its process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its data directory.
    #[must_use]
    pub fn data(&self) -> &Path {
        self.data.path()
    }

    /// A measurement of it: a closed loop of 50 connections without pipeline, of one thread, for
    /// the length of a turn.
    #[must_use]
    pub fn plan(&self, workload: Workload, turns: Turns) -> Plan {
        Plan {
            target: Target { address: self.address, password: None },
            workload,
            pace: Pace::Closed,
            pipeline: 1,
            connections: 50,
            threads: 1,
            warm_up: 2 * turns.warm_up,
            duration: turns.duration,
            server_pid: Some(self.pid()),
        }
    }

    /// What INFO says.
    ///
    /// # Errors
    /// If it does not answer.
    pub fn info(&self) -> Result<String, Box<dyn Error>> {
        let mut stream = TcpStream::connect(self.address)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(b"*1\r\n$4\r\nINFO\r\n")?;
        let (mut reader, mut text) = (ReplyReader::default(), Vec::new());
        let mut buffer = vec![0; 64 << 10];
        loop {
            let len = stream.read(&mut buffer)?;
            if len == 0 {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
            let mut input = &buffer[..len];
            loop {
                match reader.next(&mut input)? {
                    ReplyEvent::More => break,
                    ReplyEvent::Part { bytes, .. } => text.extend_from_slice(bytes),
                    ReplyEvent::Value { .. } => return Ok(String::from_utf8(text)?),
                    other => return Err(format!("INFO is answered by {other:?}").into()),
                }
            }
        }
    }
}

/// The sum of all figures of that name in what INFO says, such as `segments_freed`.
#[must_use]
pub fn sum_in_info(info: &str, name: &str) -> u64 {
    let fields = info.split(['\r', '\n', ',', ':']);
    let values = fields.filter_map(|field| field.strip_prefix(name)?.strip_prefix('='));
    let plain = info.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    values.chain(plain).filter_map(|digits| digits.trim().parse::<u64>().ok()).sum()
}

/// A workload of all keys alike from number 0, whose values are not compared.
#[must_use]
pub fn uniform(get_percent: u8, value_len: usize, key_count: u64) -> Workload {
    let (distribution, verify) = (Distribution::Uniform, Verify::Nothing);
    Workload { get_percent, value_len, key_first: 0, key_count, distribution, verify }
}

/// Stores all keys of a plan and reads them back, compared.
///
/// # Errors
/// If the server fails, or one value differs.
pub fn fill(plan: &Plan) -> Result<(), Box<dyn Error>> {
    plan.load(&mut |_| {})?;
    plan.read_back(&mut |_| {})?;
    Ok(())
}

/// Measures, and refuses a figure that counts errors as work.
///
/// # Errors
/// If the server fails or answers an error.
pub fn measure(plan: &Plan) -> Result<Outcome, Box<dyn Error>> {
    let outcome = plan.measure(&mut |_| {})?;
    match &outcome.first_error {
        Some(text) => Err(format!("{} error replies: {text}", outcome.counts.errors).into()),
        None => Ok(outcome),
    }
}

/// Tells loudly where the generator itself may be what was measured; `busy` is the greatest share
/// of its time on a processor beside each name.
pub fn warn_of_busy_generator<'a>(busy: impl IntoIterator<Item = (&'a str, f64)>) {
    let over = busy.into_iter().filter(|(_, share)| *share >= GENERATOR_BUSY);
    let names: Vec<String> =
        over.map(|(name, share)| format!("{name} ({:.0} %)", share * 100.0)).collect();
    if !names.is_empty() {
        println!("GENERATOR BUSY, it may be the limit: {}", names.join(", "));
    }
}

/// How servers are started.
#[derive(Debug)]
pub struct Starter {
    flags: Flags,
    binary: PathBuf,
    pinned: bool,
    has_redis: bool,
}

impl Starter {
    /// Builds kadring if none is given, pins this process, and looks for `redis-server`; says
    /// loudly what is missing.
    ///
    /// # Errors
    /// If kadring cannot be built.
    pub fn new(flags: &Flags, server: &ServerFlags) -> Result<Self, Box<dyn Error>> {
        if let Some(binary) = &server.binary {
            println!("{} as given: it need not be of that commit", binary.display());
        }
        let binary = server.binary.clone().map_or_else(build, Ok)?;
        let has_redis = works("redis-server", &["--version"]);
        if !has_redis {
            println!("REDIS ROWS SKIPPED: no redis-server is installed");
        }
        Ok(Self { flags: flags.clone(), binary, pinned: pin(), has_redis })
    }

    /// Whether there is a `redis-server` to compare with.
    #[must_use]
    pub fn has_redis(&self) -> bool {
        self.has_redis
    }

    fn command(&self, program: &Path) -> Command {
        let mut command = if self.pinned {
            let mut command = Command::new("taskset");
            command.args(["-c", "0"]).arg(program);
            command
        } else {
            Command::new(program)
        };
        command.stdin(Stdio::null()).stderr(Stdio::null()).stdout(Stdio::piped());
        command
    }

    /// Starts a kadring, of one shard if these further arguments do not say otherwise.
    ///
    /// # Errors
    /// If it does not start.
    ///
    /// # Panics
    /// Never: its output is piped.
    pub fn kadring(
        &self,
        name: &'static str,
        arguments: &[&str],
    ) -> Result<Server, Box<dyn Error>> {
        let data = self.flags.scratch()?;
        let mut command = self.command(&self.binary);
        command.args(["run", "--client", "127.0.0.1:0"]).args(arguments);
        if !arguments.contains(&"--shards") {
            command.args(["--shards", "1"]);
        }
        let mut child = command.arg("--data-dir").arg(data.path()).spawn()?;
        let mut log = BufReader::new(child.stdout.take().expect("its output is piped"));
        let mut line = String::new();
        log.read_line(&mut line)?;
        let client = line.split(' ').find_map(|word| word.strip_prefix("client="));
        let Some(address) = client.and_then(|address| address.parse().ok()) else {
            let _ = child.kill();
            let status = child.wait()?;
            let arguments = arguments.join(" ");
            return Err(format!("kadring {arguments} does not start ({status}): {line}").into());
        };
        let peer = line.split(' ').find_map(|word| word.strip_prefix("peer="));
        let peer = peer.and_then(|peer| peer.parse().ok());
        Ok(Server { name, address, peer, child, _log: log, data })
    }

    /// Starts a `redis-server` without snapshots, with these further arguments.
    ///
    /// # Errors
    /// If it does not start.
    ///
    /// # Panics
    /// Never: its output is piped.
    pub fn redis(&self, name: &'static str, arguments: &[&str]) -> Result<Server, Box<dyn Error>> {
        let data = self.flags.scratch()?;
        // Redis takes no port 0: borrow a free one. Somebody may snatch it, and then this fails.
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let mut command = self.command(Path::new("redis-server"));
        command.args(["--bind", "127.0.0.1", "--port", &address.port().to_string()]);
        command.args(["--save", "", "--dir"]).arg(data.path()).args(arguments);
        let mut child = command.spawn()?;
        let log = BufReader::new(child.stdout.take().expect("its output is piped"));
        let mut server = Server { name, address, peer: None, child, _log: log, data };
        let mut line = String::new();
        // What it says later stays in the pipe: a few lines.
        while server._log.read_line(&mut line)? > 0 {
            if line.contains("Ready to accept connections") {
                return Ok(server);
            }
            line.clear();
        }
        Err("redis-server does not start".into())
    }

    /// The kadrings of every bench: the ring, an ordinary io_uring runtime, blocking calls on
    /// threads; and the further arguments for all of them.
    ///
    /// # Errors
    /// If one does not start.
    pub fn kadrings(&self, arguments: &[&str]) -> Result<Vec<Server>, Box<dyn Error>> {
        let drivers = [
            ("kadring uring", "uring"),
            ("kadring tokio-uring", "tokio-uring"),
            ("kadring pread", "pread"),
        ];
        let start = |(name, driver)| self.kadring(name, &[&["--io", driver], arguments].concat());
        drivers.into_iter().map(start).collect()
    }
}

/// Lets a process, all of its threads, run on both cores.
#[must_use]
pub fn unpin(pid: u32) -> bool {
    works("taskset", &["-a", "-p", "-c", "0,1", &pid.to_string()])
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

/// Puts this process on core 1, and tells whether that worked.
fn pin() -> bool {
    let own = std::process::id().to_string();
    let pinned = works("taskset", &["-a", "-p", "-c", "1", &own]);
    if pinned {
        println!("server on core 0, generator on core 1");
    } else {
        println!("NOT PINNED (no taskset, or a single core): expect more noise");
    }
    pinned
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_of_info_are_summed_over_shards() {
        let info = "# Stats\r\ndisk_reads:12\r\n# Kadring\r\nshard0:keys=1,segments_freed=3,x=1\r\n\
                    shard1:segments_freed=4\r\n";
        assert_eq!(sum_in_info(info, "segments_freed"), 7);
        assert_eq!(sum_in_info(info, "disk_reads"), 12);
        assert_eq!(sum_in_info(info, "keys"), 1);
        assert_eq!(sum_in_info(info, "absent"), 0);
    }
}
