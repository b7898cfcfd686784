//! Runs the real `kadring` binary as a child process.
//!
//! [`NodeProcess`] builds the binary once per test process, starts it, waits for the readiness
//! line, and offers what a crash test needs: SIGKILL, SIGTERM with the exit status, a restart on
//! the same port, everything the node logged. Invariants: no child outlives its owner (dropping
//! kills and reaps it; where `setpriv` exists the kernel kills it even if the test process dies),
//! and no wait is without a deadline.
//!
//! `KADRING_BIN` names another binary to run instead of the one cargo builds.

#![expect(
    clippy::disallowed_methods,
    reason = "the harness watches a real process against the real clock"
)]

use std::ffi::OsString;
use std::io::{self, BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};
use std::{env, fmt, fs, thread};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};

/// How long a node may take from its start to the readiness line.
pub const READY_DEADLINE: Duration = Duration::from_secs(30);

/// How long a node may take to drain and leave after SIGTERM.
pub const EXIT_DEADLINE: Duration = Duration::from_secs(30);

/// Bytes of standard error that are kept; a node that logs more is broken anyway.
const STDERR_BYTES_MAX: usize = 16 * 1024 * 1024;

/// The I/O driver a node runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Driver {
    /// The hand-driven io_uring.
    Uring,
    /// An ordinary io_uring runtime.
    TokioUring,
    /// Blocking files on threads and ordinary sockets.
    Pread,
}

impl Driver {
    /// All drivers of the node.
    pub const ALL: [Self; 3] = [Self::Uring, Self::TokioUring, Self::Pread];

    /// Returns the value of `--io` that selects the driver.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Uring => "uring",
            Self::TokioUring => "tokio-uring",
            Self::Pread => "pread",
        }
    }
}

impl std::str::FromStr for Driver {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|driver| driver.as_str() == text)
            .ok_or_else(|| format!("no driver {text:?}: uring, tokio-uring or pread"))
    }
}

impl fmt::Display for Driver {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

/// The variable that has all nodes of the suite use less of the kernel: `--uring-abilities`.
const ABILITIES: &str = "KADRING_TEST_URING_ABILITIES";

/// What a node is started with.
#[derive(Debug, Clone)]
pub struct NodeOptions {
    /// The value of `--data-dir`.
    pub data_dir: PathBuf,
    /// The value of `--client`.
    pub client: String,
    /// The value of `--io`.
    pub driver: Driver,
    /// The value of `--shards`.
    pub shards: u16,
    /// Further arguments after these.
    pub arguments: Vec<OsString>,
    /// A program and its arguments put in front of the binary, which it has to `exec` in the end.
    pub wrapper: Vec<OsString>,
    /// Variables set for the node; every other `KADRING_*` variable is removed.
    pub environment: Vec<(String, String)>,
}

impl NodeOptions {
    /// Two shards and a free port, nothing else set.
    #[must_use]
    pub fn new(data_dir: &Path, driver: Driver) -> Self {
        Self {
            data_dir: data_dir.to_owned(),
            client: "127.0.0.1:0".to_owned(),
            driver,
            shards: 2,
            arguments: Vec::new(),
            wrapper: Vec::new(),
            environment: Vec::new(),
        }
    }

    /// Adds a variable to the node's environment.
    #[must_use]
    pub fn with_variable(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    fn arguments(&self) -> Vec<OsString> {
        let mut arguments: Vec<OsString> = vec!["run".into(), "--data-dir".into()];
        arguments.push(self.data_dir.clone().into());
        for (flag, value) in [
            ("--client", self.client.clone()),
            ("--io", self.driver.to_string()),
            ("--shards", self.shards.to_string()),
        ] {
            arguments.push(flag.into());
            arguments.push(value.into());
        }
        if let (Driver::Uring, Some(abilities)) = (self.driver, env::var_os(ABILITIES)) {
            arguments.extend(["--uring-abilities".into(), abilities]);
        }
        arguments.extend(self.arguments.iter().cloned());
        arguments
    }
}

/// Returns the path of the binary, building it first unless `KADRING_BIN` names one.
///
/// # Panics
/// When cargo cannot build it: nothing can be tested then.
pub fn binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| match env::var_os("KADRING_BIN") {
        Some(path) => path.into(),
        None => build(),
    })
}

/// Builds `kadring` in the profile that this very executable was built in.
fn build() -> PathBuf {
    let executable = env::current_exe().expect("the kernel knows the path of this process");
    let mut profile_dir = executable.parent().expect("an executable lies in a directory");
    if profile_dir.ends_with("deps") {
        profile_dir = profile_dir.parent().expect("deps lies in the profile's directory");
    }
    let profile = match profile_dir.file_name().and_then(|name| name.to_str()) {
        Some("debug") | None => "dev",
        Some(name) => name,
    };
    let target_dir = profile_dir.parent().expect("a profile lies in the target directory");
    let output = Command::new(env!("CARGO"))
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(".."))
        .args(["build", "--quiet", "--bin", "kadring", "--profile", profile, "--target-dir"])
        .arg(target_dir)
        .stdin(Stdio::null())
        .output()
        .expect("cargo runs: it built this test");
    assert!(
        output.status.success(),
        "cargo build --bin kadring failed:\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    profile_dir.join("kadring")
}

/// Prepares a command that runs the binary with these arguments and a clean environment.
pub(crate) fn command(
    wrapper: &[OsString],
    arguments: &[OsString],
    environment: &[(String, String)],
) -> Command {
    let mut words: Vec<OsString> = Vec::new();
    if let Some(path) = setpriv() {
        words.extend([path.into(), "--pdeathsig".into(), "KILL".into(), "--".into()]);
    }
    words.extend(wrapper.iter().cloned());
    words.push(binary().into());
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    for (name, _) in env::vars_os() {
        if name.to_str().is_some_and(|name| name.starts_with("KADRING_")) {
            command.env_remove(name);
        }
    }
    command.envs(environment.iter().map(|(name, value)| (name, value)));
    command
}

/// The program that arms the parent-death signal, if this machine has it.
fn setpriv() -> Option<&'static Path> {
    static SETPRIV: OnceLock<Option<PathBuf>> = OnceLock::new();
    SETPRIV.get_or_init(|| find_program("setpriv")).as_deref()
}

/// Finds a program in `PATH`.
#[must_use]
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path).map(|dir| dir.join(name)).find(|candidate| candidate.is_file())
}

/// Spawns on a thread that lives as long as the process: the parent-death signal is sent when the
/// spawning *thread* ends, and a test's thread ends before a node that it handed on.
fn spawn(command: Command) -> io::Result<Child> {
    type Request = (Command, Sender<io::Result<Child>>);
    static SPAWNER: OnceLock<Mutex<Sender<Request>>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (sender, receiver): (Sender<Request>, Receiver<Request>) = mpsc::channel();
        thread::spawn(move || {
            for (mut command, answer) in receiver {
                drop(answer.send(command.spawn()));
            }
        });
        Mutex::new(sender)
    });
    let (answer, child) = mpsc::channel();
    let sent = spawner.lock().unwrap_or_else(PoisonError::into_inner).send((command, answer));
    sent.map_err(|_| io::Error::other("the spawning thread is gone"))?;
    child.recv().map_err(|_| io::Error::other("the spawning thread is gone"))?
}

/// Runs the binary with any arguments to its end, e.g. `check --data-dir D`, for at most
/// [`EXIT_DEADLINE`].
///
/// # Errors
/// When it cannot be started, or `TimedOut` when it did not end (it is killed then).
pub fn run_to_end(arguments: &[&str], environment: &[(String, String)]) -> io::Result<Output> {
    let arguments: Vec<OsString> = arguments.iter().map(OsString::from).collect();
    let mut running = Running::start(command(&[], &arguments, environment))?;
    let Some(status) = running.wait_exit(EXIT_DEADLINE)? else {
        return Err(io::Error::new(
            io::ErrorKind::TimedOut,
            format!("kadring {arguments:?} did not end; stderr:\n{}", running.stderr.text()),
        ));
    };
    let stdout = running.rest_of_stdout();
    Ok(Output { status, stdout: stdout.into_bytes(), stderr: running.stderr_at_end().into_bytes() })
}

/// Everything the node wrote to standard error, filled by a thread.
#[derive(Debug, Default)]
struct Captured {
    content: Mutex<(Vec<u8>, bool)>,
    grown: Condvar,
}

impl Captured {
    fn text(&self) -> String {
        let content = self.content.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&content.0).into_owned()
    }

    fn collect(&self, mut source: impl Read) {
        let mut chunk = [0; 4096];
        loop {
            let len = source.read(&mut chunk).unwrap_or(0);
            let mut content = self.content.lock().unwrap_or_else(PoisonError::into_inner);
            let room = STDERR_BYTES_MAX - content.0.len();
            content.0.extend_from_slice(&chunk[..len.min(room)]);
            content.1 = len == 0;
            self.grown.notify_all();
            if len == 0 {
                return;
            }
        }
    }

    fn wait_until(&self, deadline: Duration, done: impl Fn(&[u8], bool) -> bool) -> bool {
        let content = self.content.lock().unwrap_or_else(PoisonError::into_inner);
        let (content, _) = self
            .grown
            .wait_timeout_while(content, deadline, |(bytes, ended)| !done(bytes, *ended) && !*ended)
            .unwrap_or_else(PoisonError::into_inner);
        done(&content.0, content.1)
    }
}

/// A child process with its output attended to.
#[derive(Debug)]
pub(crate) struct Running {
    child: Child,
    stderr: Arc<Captured>,
    pub(crate) lines: Receiver<String>,
}

impl Running {
    pub(crate) fn start(command: Command) -> io::Result<Self> {
        let mut child = spawn(command)?;
        let stderr = Arc::new(Captured::default());
        if let Some(source) = child.stderr.take() {
            let captured = Arc::clone(&stderr);
            thread::spawn(move || captured.collect(source));
        }
        let (sender, lines) = mpsc::channel();
        if let Some(stdout) = child.stdout.take() {
            thread::spawn(move || forward_lines(stdout, &sender));
        }
        Ok(Self { child, stderr, lines })
    }

    pub(crate) fn signal(&self, signal: Signal) {
        // An error means that it has exited already.
        let _ = kill_process(Pid::from_child(&self.child), signal);
    }

    pub(crate) fn kill9(&mut self) -> io::Result<ExitStatus> {
        // An error means that it has exited already.
        drop(self.child.kill());
        self.child.wait()
    }

    pub(crate) fn wait_exit(&mut self, timeout: Duration) -> io::Result<Option<ExitStatus>> {
        if let Some(status) = self.child.try_wait()? {
            return Ok(Some(status));
        }
        let process = pidfd_open(Pid::from_child(&self.child), PidfdFlags::empty())?;
        let deadline = Instant::now() + timeout;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let left = Timespec::try_from(left).map_err(io::Error::other)?;
            match poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&left)) {
                Ok(0) | Err(rustix::io::Errno::INTR) if Instant::now() < deadline => {}
                Ok(_) => return self.child.try_wait(),
                Err(error) => return Err(error.into()),
            }
        }
    }

    pub(crate) fn wait_for_log(&self, needles: &[&str], timeout: Duration) -> bool {
        self.stderr.wait_until(timeout, |bytes, _| {
            let text = String::from_utf8_lossy(bytes);
            needles.iter().any(|needle| text.contains(needle))
        })
    }

    pub(crate) fn rest_of_stdout(&self) -> String {
        let mut text = String::new();
        while let Ok(line) = self.lines.recv_timeout(EXIT_DEADLINE) {
            text.push_str(&line);
        }
        text
    }

    pub(crate) fn stderr_at_end(&self) -> String {
        self.stderr.wait_until(EXIT_DEADLINE, |_, ended| ended);
        self.stderr.text()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.kill9());
    }
}

fn forward_lines(stdout: ChildStdout, sender: &Sender<String>) {
    let mut reader = BufReader::new(stdout);
    loop {
        let mut line = Vec::new();
        let ended = !matches!(reader.read_until(b'\n', &mut line), Ok(len) if len > 0);
        if ended || sender.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
            return;
        }
    }
}

/// What the readiness line says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ready {
    /// The whole line with its line end.
    pub line: String,
    /// The client door.
    pub client: SocketAddr,
    /// The peer door, if it has one.
    pub peer: Option<SocketAddr>,
    /// The node id in hexadecimal.
    pub node: String,
}

impl Ready {
    /// Parses `ready client=A peer=A admin=A node=HEX`.
    ///
    /// # Errors
    /// What is wrong with the line.
    pub fn parse(line: &str) -> Result<Self, String> {
        let wrong = |what: &str| format!("readiness line {line:?}: {what}");
        let body = line.strip_suffix('\n').ok_or_else(|| wrong("no line end"))?;
        let mut words = body.split(' ');
        if words.next() != Some("ready") {
            return Err(wrong("does not start with `ready`"));
        }
        let mut field = |name: &str| {
            words
                .next()
                .and_then(|word| word.strip_prefix(name)?.strip_prefix('='))
                .ok_or_else(|| wrong(&format!("field {name} is not where it belongs")))
        };
        let client = field("client")?;
        let peer = field("peer")?;
        field("admin")?;
        let node = field("node")?;
        if words.next().is_some() {
            return Err(wrong("more fields than expected"));
        }
        if node.len() != 40 || !node.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(wrong("the node id is not 40 hexadecimal digits"));
        }
        let client = client.parse().map_err(|_| wrong("client is no address"))?;
        let peer = match peer {
            "-" => None,
            address => Some(address.parse().map_err(|_| wrong("peer is no address"))?),
        };
        Ok(Self { line: line.to_owned(), client, peer, node: node.to_owned() })
    }
}

/// A node that was started and has not said yet that it is ready.
#[derive(Debug)]
pub struct StartingNode {
    running: Running,
    options: NodeOptions,
    started: Instant,
}

impl StartingNode {
    /// Starts a node.
    ///
    /// # Errors
    /// When the process cannot be created.
    pub fn start(options: NodeOptions) -> io::Result<Self> {
        let command = command(&options.wrapper, &options.arguments(), &options.environment);
        let started = Instant::now();
        Ok(Self { running: Running::start(command)?, options, started })
    }

    /// Waits at most `timeout` for the readiness line: the node, or itself back.
    ///
    /// # Errors
    /// What went wrong: it ended, or the line is not as documented.
    pub fn wait_ready(self, timeout: Duration) -> Result<Result<NodeProcess, Self>, String> {
        match self.running.lines.recv_timeout(timeout) {
            Ok(line) => {
                let start_duration = self.started.elapsed();
                let ready = Ready::parse(&line)?;
                let Self { running, options, .. } = self;
                Ok(Ok(NodeProcess { running, options, ready, start_duration }))
            }
            Err(mpsc::RecvTimeoutError::Timeout) => Ok(Err(self)),
            Err(mpsc::RecvTimeoutError::Disconnected) => Err(self.ended_early()),
        }
    }

    fn ended_early(mut self) -> String {
        let status = match self.running.wait_exit(EXIT_DEADLINE) {
            Ok(Some(status)) => status.to_string(),
            Ok(None) => "still running, standard output closed".to_owned(),
            Err(error) => error.to_string(),
        };
        let stderr = self.running.stderr_at_end();
        format!("the node ended before it was ready ({status}); stderr:\n{stderr}")
    }

    /// Kills the node with SIGKILL and reaps it.
    ///
    /// # Errors
    /// When waiting for the process fails.
    pub fn kill9(mut self) -> io::Result<ExitStatus> {
        self.running.kill9()
    }

    /// Waits until the node gives up by itself: its exit status and what it logged.
    ///
    /// # Errors
    /// When it did not end within [`READY_DEADLINE`].
    pub fn wait_failure(mut self) -> Result<(ExitStatus, String), String> {
        match self.running.wait_exit(READY_DEADLINE) {
            Ok(Some(status)) => Ok((status, self.running.stderr_at_end())),
            Ok(None) => Err(format!("still running; stderr:\n{}", self.running.stderr.text())),
            Err(error) => Err(error.to_string()),
        }
    }
}

/// A node that is ready for clients.
#[derive(Debug)]
pub struct NodeProcess {
    running: Running,
    options: NodeOptions,
    ready: Ready,
    start_duration: Duration,
}

impl NodeProcess {
    /// Starts a node and waits for its readiness line.
    ///
    /// # Errors
    /// What went wrong, with everything the node logged.
    pub fn start(options: NodeOptions) -> Result<Self, String> {
        let starting = StartingNode::start(options).map_err(|error| error.to_string())?;
        match starting.wait_ready(READY_DEADLINE)? {
            Ok(node) => Ok(node),
            Err(starting) => Err(format!(
                "not ready after {READY_DEADLINE:?}; stderr:\n{}",
                starting.running.stderr.text()
            )),
        }
    }

    /// Returns the address of the client door.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.ready.client
    }

    /// Returns what the readiness line said.
    #[must_use]
    pub fn ready(&self) -> &Ready {
        &self.ready
    }

    /// Returns the process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.running.child.id()
    }

    /// Returns how long the node took from its start to the readiness line.
    #[must_use]
    pub fn start_duration(&self) -> Duration {
        self.start_duration
    }

    /// Returns everything the node logged so far.
    #[must_use]
    pub fn stderr(&self) -> String {
        self.running.stderr.text()
    }

    /// Waits until the log contains one of `needles`, at most `timeout`.
    #[must_use]
    pub fn wait_for_log(&self, needles: &[&str], timeout: Duration) -> bool {
        self.running.wait_for_log(needles, timeout)
    }

    /// Waits until the node ends by itself, at most `timeout`.
    ///
    /// # Errors
    /// When waiting for the process fails.
    pub fn wait_exit(&mut self, timeout: Duration) -> io::Result<Option<ExitStatus>> {
        self.running.wait_exit(timeout)
    }

    /// Kills the node with SIGKILL, reaps it, and returns the options that start it again on the
    /// same port.
    ///
    /// # Errors
    /// When waiting for the process fails.
    pub fn kill9(mut self) -> io::Result<NodeOptions> {
        self.running.kill9()?;
        Ok(self.options_on_same_port())
    }

    /// Sends SIGTERM and waits for the end: the exit status, and what was printed to standard
    /// output after the readiness line.
    ///
    /// # Errors
    /// When the node is still there after [`EXIT_DEADLINE`], with everything it logged.
    pub fn terminate(mut self) -> Result<(ExitStatus, String), String> {
        self.running.signal(Signal::TERM);
        match self.running.wait_exit(EXIT_DEADLINE) {
            Ok(Some(status)) => Ok((status, self.running.rest_of_stdout())),
            Ok(None) => Err(format!(
                "still running {EXIT_DEADLINE:?} after SIGTERM; stderr:\n{}",
                self.stderr()
            )),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Returns the options that start this node again on the port it has now.
    #[must_use]
    pub fn options_on_same_port(&self) -> NodeOptions {
        let mut options =
            NodeOptions { client: self.ready.client.to_string(), ..self.options.clone() };
        if let Some(peer) = self.ready.peer {
            // The later of two counts.
            options.environment.push(("KADRING_PEER".to_owned(), peer.to_string()));
        }
        options
    }

    /// Returns the most memory that was ever resident, in bytes.
    ///
    /// # Errors
    /// When `/proc` does not tell.
    pub fn resident_bytes_peak(&self) -> io::Result<u64> {
        self.memory("VmHWM:")
    }

    /// Returns the memory resident now, in bytes.
    ///
    /// # Errors
    /// When `/proc` does not tell.
    pub fn resident_bytes(&self) -> io::Result<u64> {
        self.memory("VmRSS:")
    }

    fn memory(&self, name: &str) -> io::Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid()))?;
        let kib = status
            .lines()
            .find_map(|line| line.strip_prefix(name)?.trim().strip_suffix(" kB")?.parse().ok());
        kib.map(|kib: u64| kib * 1024).ok_or_else(|| io::Error::other("no memory figure in /proc"))
    }

    /// Returns the processor time the node has used, in clock ticks of 10 ms.
    ///
    /// # Errors
    /// When `/proc` does not tell.
    pub fn processor_ticks(&self) -> io::Result<u64> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid()))?;
        // The second field is the name in brackets and may hold blanks: count from behind it.
        let fields = stat.rsplit(')').next().unwrap_or_default();
        let mut times = fields.split_whitespace().skip(11).take(2).map(str::parse::<u64>);
        match (times.next(), times.next()) {
            (Some(Ok(user)), Some(Ok(system))) => Ok(user + system),
            _ => Err(io::Error::other("no processor times in /proc")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readiness_line_parses_and_its_faults_are_named() {
        let id = "0123456789abcdef0123456789abcdef01234567";
        let ready =
            Ready::parse(&format!("ready client=127.0.0.1:7379 peer=- admin=- node={id}\n"));
        assert_eq!(ready.unwrap().client.port(), 7379);
        for line in [
            "ready client=127.0.0.1:1 peer=- admin=- node=ab\n".to_owned(),
            format!("ready client=127.0.0.1:1 peer=- admin=- node={id}"),
            format!("ready peer=- admin=- node={id}\n"),
            format!("ready client=x peer=- admin=- node={id}\n"),
            format!("ready client=127.0.0.1:1 peer=x admin=- node={id}\n"),
            format!("ready client=127.0.0.1:1 peer=- admin=- node={id} more=1\n"),
        ] {
            assert!(Ready::parse(&line).is_err(), "{line:?}");
        }
    }
}
