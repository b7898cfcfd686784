//! The processes of a local cluster: how they start, what they say, how they end.
//!
//! Each node has two threads that wait for it: one for what it says, one for its end. They and the
//! one that waits for signals tell a single queue, so that nothing here ever polls.
//!
//! No node outlives this process, however that ends: each asks the kernel to kill it when its
//! parent is gone ([`crate::io::process::end_with_parent`]). The parent is the thread that has
//! started it, which is why that is the one that waits for the end.

#![expect(
    clippy::disallowed_types,
    clippy::disallowed_methods,
    reason = "a tool that looks after processes, with logs, ports and patience of its own"
)]

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead as _, BufReader, Read as _, Seek as _, SeekFrom, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use signal_hook::SigId;
use signal_hook::low_level::{pipe, unregister};

use super::error::ClusterCliError;
use crate::io::process::PARENT_VARIABLE;

/// Between two looks whether nodes that have opened their doors serve already.
const ASK_AGAIN_AFTER: Duration = Duration::from_millis(50);
/// How long a node may take to say so.
const ASK_TIMEOUT: Duration = Duration::from_secs(5);
/// Bytes of what it says that are read.
const ANSWER_BYTES_MAX: u64 = 1 << 20;

/// Ports that Linux gives to nobody who does not name them.
const PEER_PORTS: std::ops::Range<u16> = 20_000..32_768;

/// Bytes of a log that are looked at for the last line.
const LOG_BYTES_MAX: u64 = 16 << 10;

/// What is to be started.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) program: PathBuf,
    /// Where the nodes' directories and logs are.
    pub(super) directory: PathBuf,
    pub(super) replicas: u16,
    /// The peer door of each node.
    pub(super) peers: Vec<SocketAddr>,
    /// Further flags for each.
    pub(super) node_flags: Vec<OsString>,
}

impl Plan {
    /// What a node is called in the directory, and to people.
    pub(super) fn name(index: usize) -> String {
        format!("node-{}", index + 1)
    }

    fn log(&self, index: usize) -> PathBuf {
        self.directory.join(format!("{}.log", Self::name(index)))
    }

    /// The arguments of a node. All others are its seeds: whoever is there first is found.
    pub(super) fn arguments(&self, index: usize) -> Vec<OsString> {
        let mut arguments: Vec<OsString> = vec!["run".into(), "--data-dir".into()];
        arguments.push(self.directory.join(Self::name(index)).into());
        let mut flag = |name: &str, value: String| {
            arguments.push(name.into());
            arguments.push(value.into());
        };
        flag("--client", "127.0.0.1:0".to_owned());
        flag("--peer", self.peers[index].to_string());
        flag("--admin", "127.0.0.1:0".to_owned());
        flag("--replicas", self.replicas.to_string());
        for (other, peer) in self.peers.iter().enumerate() {
            if other != index {
                flag("--bootstrap", peer.to_string());
            }
        }
        arguments.extend(self.node_flags.iter().cloned());
        arguments
    }

    fn command(&self, index: usize) -> io::Result<Command> {
        let log = OpenOptions::new().create(true).append(true).open(self.log(index))?;
        let mut command = Command::new(&self.program);
        // A setting of the user's own node is none of these.
        for (name, _) in std::env::vars_os() {
            if name.to_str().is_some_and(|name| name.starts_with("KADRING_")) {
                command.env_remove(name);
            }
        }
        command.args(self.arguments(index)).env(PARENT_VARIABLE, std::process::id().to_string());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log);
        // Ctrl-C on the terminal is for this process, which then stops the nodes in its way.
        command.process_group(0);
        Ok(command)
    }
}

/// Finds free ports, each for UDP and TCP. They are free again when this returns; whoever takes
/// one before its node does makes that fail, so none is of those that the kernel gives to whoever
/// asks for any.
pub(super) fn free_peer_addresses(count: usize) -> io::Result<Vec<SocketAddr>> {
    const TRIES_PER_PORT: usize = 100;
    let mut held = Vec::new();
    for _ in 0..count.saturating_mul(TRIES_PER_PORT) {
        if held.len() == count {
            break;
        }
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, fastrand::u16(PEER_PORTS)));
        if let (Ok(listener), Ok(socket)) = (TcpListener::bind(address), UdpSocket::bind(address)) {
            held.push((listener, socket, address));
        }
    }
    if held.len() < count {
        return Err(io::ErrorKind::AddrInUse.into());
    }
    Ok(held.into_iter().map(|(.., address)| address).collect())
}

/// What a node says when it is ready.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Ready {
    pub(super) client: String,
    pub(super) peer: String,
    pub(super) admin: String,
    pub(super) id: String,
}

impl Ready {
    /// Reads `ready client=A peer=A admin=A node=HEX`.
    pub(super) fn parse(line: &str) -> Option<Self> {
        let mut words = line.trim_end().split(' ');
        let mut word = |name: &str| {
            let value = words.next()?.strip_prefix(name)?;
            (!value.is_empty() && !value.contains(char::is_control)).then(|| value.to_owned())
        };
        let _ = word("read")?;
        let (client, peer) = (word("client=")?, word("peer=")?);
        Some(Self { client, peer, admin: word("admin=")?, id: word("node=")? })
    }

    /// Whether the node says that it serves, and holds all of its keys; one without an admin door
    /// counts as such.
    fn is_serving(&self) -> bool {
        let Ok(admin) = self.admin.parse() else { return true };
        let page = |path| ask(admin, path).unwrap_or_default();
        page("/readyz").starts_with("HTTP/1.1 200 ") && has_its_keys(&page("/metrics"))
    }
}

fn ask(admin: SocketAddr, path: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&admin, ASK_TIMEOUT)?;
    stream.set_read_timeout(Some(ASK_TIMEOUT))?;
    write!(stream, "GET {path} HTTP/1.0\r\n\r\n")?;
    let mut text = String::new();
    stream.take(ANSWER_BYTES_MAX).read_to_string(&mut text)?;
    Ok(text)
}

/// Nodes that found a cluster together answer for no key until they have agreed.
pub(super) fn has_its_keys(metrics: &str) -> bool {
    let mut pending =
        metrics.lines().filter_map(|line| line.strip_prefix("kadring_ranges_pending "));
    pending.all(|count| count.parse() == Ok(0.0))
}

/// What has happened.
#[derive(Debug)]
pub(super) enum News {
    /// A node has said something.
    Line(usize, String),
    /// A node is gone.
    Ended(usize),
    /// The cluster is to stop.
    Stop,
}

#[derive(Debug)]
enum Told {
    Line(usize, String),
    Ended(usize, io::Result<ExitStatus>),
    Stop,
}

#[derive(Debug)]
struct Node {
    /// Names the process also when another has its number.
    process: OwnedFd,
    log: PathBuf,
    /// How it ended, if it has.
    end: Option<io::Result<ExitStatus>>,
    was_killed: bool,
}

impl Node {
    fn signal(&self, signal: Signal) {
        // One that is gone cannot be told any more.
        let _ = pidfd_send_signal(&self.process, signal);
    }
}

/// The nodes of a cluster. Those that are left when it is dropped are killed.
#[derive(Debug)]
pub(super) struct Nodes {
    nodes: Vec<Node>,
    told: Receiver<Told>,
    signals: Vec<SigId>,
}

impl Nodes {
    /// Starts all nodes.
    ///
    /// # Errors
    /// [`ClusterCliError::Signals`], [`ClusterCliError::Spawn`]; none of them is left then.
    pub(super) fn start(plan: &Plan) -> Result<Self, ClusterCliError> {
        let (tell, told) = mpsc::channel();
        let mut all = Self { nodes: Vec::new(), told, signals: Vec::new() };
        all.signals = hear_signals(&tell).map_err(ClusterCliError::Signals)?;
        for index in 0..plan.peers.len() {
            let node = start_one(plan, index, &tell).map_err(|source| {
                let program = plan.program.clone();
                ClusterCliError::Spawn { program, source }
            })?;
            all.nodes.push(node);
        }
        Ok(all)
    }

    /// Waits until all nodes are ready; `None` if the cluster is to stop before that.
    ///
    /// # Errors
    /// One has ended, or is something else than a node, or time is over.
    pub(super) fn wait_ready(
        &mut self,
        timeout: Duration,
    ) -> Result<Option<Vec<Ready>>, ClusterCliError> {
        let deadline = Instant::now() + timeout;
        let mut ready: Vec<Option<Ready>> = self.nodes.iter().map(|_| None).collect();
        let mut serving = vec![false; ready.len()];
        while serving.contains(&false) {
            // A node opens its doors, says so, and serves once it has found the others.
            let all_open = ready.iter().all(Option::is_some);
            let pause = Instant::now() + if all_open { ASK_AGAIN_AFTER } else { timeout };
            match self.next_until(pause.min(deadline)) {
                Some(News::Stop) => return Ok(None),
                Some(News::Line(index, line)) if ready[index].is_none() => {
                    let parsed = Ready::parse(&line);
                    let node = index + 1;
                    ready[index] = Some(parsed.ok_or(ClusterCliError::Strange { node, line })?);
                }
                Some(News::Line(..)) => {}
                Some(News::Ended(index)) => {
                    return Err(ClusterCliError::EndedEarly { what: self.describe_end(index) });
                }
                None if Instant::now() < deadline => {}
                None => {
                    let missing = serving.iter().zip(1..).filter(|(serving, _)| !**serving);
                    let nodes: Vec<String> = missing.map(|(_, node)| node.to_string()).collect();
                    let (nodes, waited) = (nodes.join(", "), timeout);
                    return Err(ClusterCliError::NotReady { nodes, waited });
                }
            }
            if ready.iter().all(Option::is_some) {
                let asked = ready.iter().flatten().zip(&mut serving).filter(|(_, known)| !**known);
                asked.for_each(|(ready, known)| *known = ready.is_serving());
            }
        }
        Ok(Some(ready.into_iter().flatten().collect()))
    }

    /// Waits for what happens next.
    pub(super) fn next(&mut self) -> News {
        let told = self.told.recv();
        told.map_or(News::Stop, |told| self.note(told))
    }

    fn next_until(&mut self, deadline: Instant) -> Option<News> {
        let left = deadline.saturating_duration_since(Instant::now());
        let told = self.told.recv_timeout(left).ok()?;
        Some(self.note(told))
    }

    fn note(&mut self, told: Told) -> News {
        match told {
            Told::Line(index, line) => News::Line(index, line),
            Told::Stop => News::Stop,
            Told::Ended(index, end) => {
                self.nodes[index].end = Some(end);
                News::Ended(index)
            }
        }
    }

    /// Says how a node has ended, with the last line of its log.
    pub(super) fn describe_end(&self, index: usize) -> String {
        let node = &self.nodes[index];
        let end = match &node.end {
            Some(Ok(status)) => status.to_string(),
            Some(Err(error)) => error.to_string(),
            None => "still there".to_owned(),
        };
        let log = end_of(&node.log).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let last = log.lines().rev().find(|line| !line.trim().is_empty());
        let last =
            last.map(|line| format!(", having said: {}", line.replace(char::is_control, " ")));
        format!("node {} has ended ({end}){}", index + 1, last.unwrap_or_default())
    }

    /// Stops all nodes: SIGTERM, and SIGKILL for those that are there when `timeout` is over, or
    /// when this process is told to stop again.
    ///
    /// # Errors
    /// [`ClusterCliError::BadEnd`], if any has not stopped by itself when it was asked to, or had
    /// ended before.
    pub(super) fn stop(&mut self, timeout: Duration) -> Result<(), ClusterCliError> {
        self.left().for_each(|node| node.signal(Signal::TERM));
        let deadline = Instant::now() + timeout;
        while self.left().next().is_some() {
            match self.next_until(deadline) {
                Some(News::Line(..) | News::Ended(_)) => {}
                Some(News::Stop) | None => break,
            }
        }
        self.kill();
        let bad = self.nodes.iter().enumerate().filter(|(_, node)| {
            node.was_killed || !matches!(&node.end, Some(Ok(status)) if status.success())
        });
        let bad: Vec<String> = bad.map(|(index, _)| self.describe_end(index)).collect();
        if bad.is_empty() { Ok(()) } else { Err(ClusterCliError::BadEnd { what: bad.join("; ") }) }
    }

    fn left(&self) -> impl Iterator<Item = &Node> {
        self.nodes.iter().filter(|node| node.end.is_none())
    }

    /// Kills what is left, and waits for its end.
    fn kill(&mut self) {
        for node in self.nodes.iter_mut().filter(|node| node.end.is_none()) {
            node.was_killed = true;
            node.signal(Signal::KILL);
        }
        while self.left().next().is_some() {
            // The threads that wait for the ends are there as long as these have not come.
            let Ok(told) = self.told.recv() else { return };
            self.note(told);
        }
    }
}

impl Drop for Nodes {
    fn drop(&mut self) {
        self.kill();
        for id in self.signals.drain(..) {
            unregister(id);
        }
    }
}

/// The last bytes of a log, which may be long.
fn end_of(log: &Path) -> io::Result<Vec<u8>> {
    let file = File::open(log)?;
    let skipped = file.metadata()?.len().saturating_sub(LOG_BYTES_MAX);
    let (mut reader, mut bytes) = (BufReader::new(file), Vec::new());
    reader.seek(SeekFrom::Start(skipped))?;
    reader.take(LOG_BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// From now on, signals that end a process are told instead.
fn hear_signals(tell: &Sender<Told>) -> io::Result<Vec<SigId>> {
    let (mut reader, writer) = UnixStream::pair()?;
    let mut ids = Vec::new();
    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
        ids.push(pipe::register(signal.as_raw(), writer.try_clone()?)?);
    }
    let tell = tell.clone();
    thread::Builder::new().name("signals".to_owned()).spawn(move || {
        let mut byte = [0];
        while matches!(reader.read(&mut byte), Ok(1)) && tell.send(Told::Stop).is_ok() {}
    })?;
    Ok(ids)
}

fn start_one(plan: &Plan, index: usize, tell: &Sender<Told>) -> io::Result<Node> {
    let mut child = plan.command(index)?.spawn()?;
    match watch(&mut child, index, tell) {
        Ok(process) => {
            let tell = tell.clone();
            let wait = move || {
                let end = child.wait();
                // Nobody listens any more, if the cluster has been given up.
                let _ = tell.send(Told::Ended(index, end));
            };
            let node = Node { process, log: plan.log(index), end: None, was_killed: false };
            if let Err(error) = thread::Builder::new().name(format!("end-{index}")).spawn(wait) {
                node.signal(Signal::KILL);
                return Err(error);
            }
            Ok(node)
        }
        Err(error) => {
            let _ = child.kill();
            let _ = child.wait();
            Err(error)
        }
    }
}

fn watch(child: &mut Child, index: usize, tell: &Sender<Told>) -> io::Result<OwnedFd> {
    let pid = Pid::from_child(child);
    let process = pidfd_open(pid, PidfdFlags::empty())?;
    let stdout = child.stdout.take().ok_or(io::ErrorKind::BrokenPipe)?;
    let tell = tell.clone();
    let listen = move || forward_lines(stdout, index, &tell);
    thread::Builder::new().name(format!("said-{index}")).spawn(listen)?;
    Ok(process)
}

/// Tells each line, of a bounded length. Reads to the end, so that the node never waits.
fn forward_lines(stdout: ChildStdout, index: usize, tell: &Sender<Told>) {
    const LINE_BYTES_MAX: u64 = 4096;
    let mut reader = BufReader::new(stdout);
    loop {
        let mut line = Vec::new();
        let read = reader.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut line);
        if !matches!(read, Ok(len) if len > 0) {
            return;
        }
        let line = String::from_utf8_lossy(&line).into_owned();
        if tell.send(Told::Line(index, line)).is_err() {
            return;
        }
    }
}
