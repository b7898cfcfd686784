//! The crash loop: write from many connections, SIGKILL, restart, compare, again.
//!
//! This process keeps the ledger; the node is another one and knows nothing of it. One round:
//!
//! ```text
//! ready ──> 16 connections write ──> SIGKILL at a random moment ──> restart on the same port
//!   ^                                                    (1 in 10: SIGKILL during that start)
//!   └── every key compared with the ledger, SCAN and DBSIZE too <──────────┘
//! ```
//!
//! After the last round: SIGTERM, exit code 0, restart, compare, SIGTERM, `kadring check` finds
//! nothing. What was sent and answered goes to a journal file, for looking into a failure.

#![expect(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "the harness holds a real process against the real clock, and keeps a journal"
)]

use std::fmt;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fastrand::Rng;

use crate::ledger::{FlushOutcome, Observation, SharedCounter, Violation, Window};
use crate::node_process::run_to_end;
use crate::node_process::{Driver, NodeOptions, NodeProcess, StartingNode};
use crate::resp_client::{Reply, RespClient, encode_command};
use crate::workload::{
    ConnectionWorkload, Effect, KEY_COUNT, Request, SHARED_COUNT, Settled, key_name, shared_name,
};

/// One kill in so many hits a node that is still starting.
const START_KILL_ONE_IN: u32 = 10;

/// One pipeline in so many of the first connection is a FLUSHALL instead.
const FLUSH_ONE_IN: u32 = 400;

/// Keys compared per pipeline.
const VERIFY_BATCH: u32 = 16;

/// Kills per journal file; this one and the one before are kept.
const JOURNAL_KILLS: u64 = 50;

/// Kills between two progress lines.
const PROGRESS_KILLS: u64 = 10;

/// How a crash loop runs.
#[derive(Debug, Clone)]
pub struct CrashOptions {
    /// Rounds.
    pub kills: u64,
    /// Decides workload, kill moments and values; scheduling is not ours to decide.
    pub seed: u64,
    /// The node's driver.
    pub driver: Driver,
    /// Connections writing at once.
    pub connections: u32,
    /// Shards of the data directory.
    pub shards: u16,
    /// The value of `--durability`: none of them loses anything to a kill.
    pub durability: String,
    /// Writing goes on for at most so many ms before a kill.
    pub write_ms_max: u64,
    /// Holds the data directory `data` and the journal; must exist.
    pub directory: PathBuf,
}

/// What a crash loop did.
#[derive(Debug, Clone, Default)]
pub struct CrashSummary {
    /// SIGKILLs sent.
    pub kills: u64,
    /// Those that hit a node before its readiness line.
    pub start_kills: u64,
    /// Write commands acknowledged.
    pub acknowledged_writes: u64,
    /// Commands without reply or with an error.
    pub unknown_outcomes: u64,
    /// Those with an error.
    pub error_replies: u64,
    /// One of the errors.
    pub error_example: Option<String>,
    /// FLUSHALLs acknowledged.
    pub flushes: u64,
    /// Keys compared after restarts.
    pub verified_keys: u64,
    /// From start to readiness line, each restart, ascending.
    pub restarts: Vec<Duration>,
}

impl fmt::Display for CrashSummary {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let median = self.restarts.get(self.restarts.len() / 2).copied().unwrap_or_default();
        let longest = self.restarts.last().copied().unwrap_or_default();
        write!(
            formatter,
            "{} kills ({} during start-up), {} acknowledged writes, {} keys compared, \
             {} unknown outcomes ({} error replies), {} flushes, restart p50 {:.1} ms max {:.1} ms",
            self.kills,
            self.start_kills,
            self.acknowledged_writes,
            self.verified_keys,
            self.unknown_outcomes,
            self.error_replies,
            self.flushes,
            median.as_secs_f64() * 1e3,
            longest.as_secs_f64() * 1e3,
        )?;
        match &self.error_example {
            Some(text) => write!(formatter, ", an error: {text}"),
            None => Ok(()),
        }
    }
}

/// Runs the loop; `progress` gets a line now and then.
///
/// # Errors
/// The full account of the first broken promise.
pub fn run(
    options: &CrashOptions,
    progress: &mut dyn FnMut(&str),
) -> Result<CrashSummary, Violation> {
    let mut crash_loop = CrashLoop::new(options).map_err(|error| failure(&error.to_string()))?;
    let result = crash_loop.run(progress);
    let journal = crash_loop.shared.journal.flush();
    result.map(|()| crash_loop.summary()).map_err(|violation| {
        let account = format!(
            "{violation}\nafter {}\nseed {}, driver {}, data and journal in {}{}",
            crash_loop.summary(),
            options.seed,
            options.driver,
            options.directory.display(),
            journal.err().map_or_else(String::new, |error| format!(" (incomplete: {error})")),
        );
        Violation { account }
    })
}

fn failure(account: &str) -> Violation {
    Violation { account: account.to_owned() }
}

/// What every connection's thread sees.
struct Shared {
    journal: Journal,
    /// Held for reading while a pipeline is under way, for writing during a FLUSHALL.
    pause: RwLock<()>,
    /// Set just before SIGKILL: from then on a connection may break.
    killing: AtomicBool,
    workloads: Vec<Mutex<ConnectionWorkload>>,
    counters: Mutex<Vec<SharedCounter>>,
    tally: Tally,
}

#[derive(Default)]
struct Tally {
    acknowledged_writes: AtomicU64,
    unknown_outcomes: AtomicU64,
    error_replies: AtomicU64,
    flushes: AtomicU64,
    verified_keys: AtomicU64,
    error_example: Mutex<Option<String>>,
}

struct CrashLoop {
    options: CrashOptions,
    node_options: NodeOptions,
    rng: Rng,
    shared: Shared,
    kills: u64,
    start_kills: u64,
    restarts: Vec<Duration>,
}

impl CrashLoop {
    fn new(options: &CrashOptions) -> io::Result<Self> {
        let mut node_options = NodeOptions::new(&options.directory.join("data"), options.driver);
        node_options.shards = options.shards;
        node_options.arguments = vec!["--durability".into(), options.durability.clone().into()];
        let workload = |connection| Mutex::new(ConnectionWorkload::new(options.seed, connection));
        Ok(Self {
            node_options,
            rng: Rng::with_seed(options.seed),
            shared: Shared {
                journal: Journal::create(options.directory.clone())?,
                pause: RwLock::new(()),
                killing: AtomicBool::new(false),
                workloads: (0..options.connections).map(workload).collect(),
                counters: Mutex::new(vec![SharedCounter::default(); SHARED_COUNT]),
                tally: Tally::default(),
            },
            kills: 0,
            start_kills: 0,
            restarts: Vec::new(),
            options: options.clone(),
        })
    }

    fn run(&mut self, progress: &mut dyn FnMut(&str)) -> Result<(), Violation> {
        let mut node = self.start()?;
        while self.kills < self.options.kills {
            self.write_and_kill(node)?;
            node = self.restart()?;
            self.verify(&node)?;
            if self.kills.is_multiple_of(PROGRESS_KILLS) || self.kills == self.options.kills {
                progress(&self.summary().to_string());
            }
        }
        self.terminate(node)?;
        node = self.start()?;
        self.verify(&node)?;
        self.terminate(node)?;
        self.check()
    }

    fn summary(&self) -> CrashSummary {
        let tally = &self.shared.tally;
        let mut restarts = self.restarts.clone();
        restarts.sort_unstable();
        CrashSummary {
            kills: self.kills,
            start_kills: self.start_kills,
            acknowledged_writes: tally.acknowledged_writes.load(Ordering::Relaxed),
            unknown_outcomes: tally.unknown_outcomes.load(Ordering::Relaxed),
            error_replies: tally.error_replies.load(Ordering::Relaxed),
            error_example: lock(&tally.error_example).clone(),
            flushes: tally.flushes.load(Ordering::Relaxed),
            verified_keys: tally.verified_keys.load(Ordering::Relaxed),
            restarts,
        }
    }

    fn start(&mut self) -> Result<NodeProcess, Violation> {
        let node = NodeProcess::start(self.node_options.clone()).map_err(|text| failure(&text))?;
        self.node_options = node.options_on_same_port();
        self.restarts.push(node.start_duration());
        Ok(node)
    }

    /// Starts the node again, and kills it on the way up now and then.
    fn restart(&mut self) -> Result<NodeProcess, Violation> {
        while self.kills < self.options.kills && self.rng.u32(0..START_KILL_ONE_IN) == 0 {
            let start_micros = self.summary().restarts[self.restarts.len() / 2].as_micros();
            let start_micros = u64::try_from(start_micros).unwrap_or(u64::MAX);
            let delay = Duration::from_micros(self.rng.u64(0..start_micros.max(1_000)));
            let starting = StartingNode::start(self.node_options.clone())
                .map_err(|error| failure(&error.to_string()))?;
            match starting.wait_ready(delay).map_err(|text| failure(&text))? {
                Ok(node) => {
                    self.restarts.push(node.start_duration());
                    return Ok(node);
                }
                Err(starting) => {
                    starting.kill9().map_err(|error| failure(&error.to_string()))?;
                    self.count_kill(Phase::Starting)?;
                }
            }
        }
        self.start()
    }

    fn count_kill(&mut self, phase: Phase) -> Result<(), Violation> {
        self.kills += 1;
        if phase == Phase::Starting {
            self.start_kills += 1;
        }
        self.shared.journal.line(format_args!("kill {} ({phase:?})", self.kills));
        let kept = if self.kills.is_multiple_of(JOURNAL_KILLS) {
            self.shared.journal.roll()
        } else {
            self.shared.journal.flush()
        };
        kept.map_err(|error| failure(&format!("journal: {error}")))
    }

    fn write_and_kill(&mut self, mut node: NodeProcess) -> Result<(), Violation> {
        let write_time = Duration::from_millis(self.rng.u64(1..=self.options.write_ms_max));
        let seeds: Vec<u64> = self.shared.workloads.iter().map(|_| self.rng.u64(..)).collect();
        let address = node.address();
        let shared = &self.shared;
        shared.killing.store(false, Ordering::SeqCst);
        thread::scope(|scope| {
            let writers: Vec<_> = (shared.workloads.iter().zip(seeds))
                .map(|(workload, seed)| {
                    scope.spawn(move || write_until_killed(shared, workload, address, seed))
                })
                .collect();
            let ended = node.wait_exit(write_time).map_err(|error| failure(&error.to_string()));
            shared.killing.store(true, Ordering::SeqCst);
            let stderr = node.stderr();
            let killed = node.kill9().map_err(|error| failure(&error.to_string()));
            let mut result = Ok(());
            for writer in writers {
                let joined = writer.join().unwrap_or_else(|_| Err(failure("a writer panicked")));
                result = Result::and(result, joined);
            }
            if let Some(status) = ended? {
                return Err(failure(&format!("the node ended by itself, {status}:\n{stderr}")));
            }
            if stderr.contains("panicked at") {
                return Err(failure(&format!("the node panicked:\n{stderr}")));
            }
            killed.and_then(|_| result.map_err(|violation| with_log(&violation, &stderr)))
        })?;
        self.count_kill(Phase::Serving)
    }

    fn verify(&self, node: &NodeProcess) -> Result<(), Violation> {
        let address = node.address();
        let shared = &self.shared;
        let result = thread::scope(|scope| {
            let readers: Vec<_> = (shared.workloads.iter())
                .map(|workload| scope.spawn(move || verify_keys(shared, workload, address)))
                .collect();
            readers
                .into_iter()
                .map(|reader| reader.join().unwrap_or_else(|_| Err(failure("a reader panicked"))))
                .fold(Ok(()), Result::and)
        });
        result
            .and_then(|()| verify_counters(shared, address))
            .and_then(|()| verify_listing(shared, address))
            .map_err(|violation| with_log(&violation, &node.stderr()))
    }

    fn terminate(&self, node: NodeProcess) -> Result<(), Violation> {
        let (status, rest) = node.terminate().map_err(|text| failure(&text))?;
        if !status.success() || !rest.is_empty() {
            let account = format!("after SIGTERM: {status}, further output {rest:?}");
            return Err(Violation { account });
        }
        Ok(())
    }

    fn check(&self) -> Result<(), Violation> {
        let data_dir = self.node_options.data_dir.to_string_lossy();
        let output = run_to_end(&["check", "--data-dir", &data_dir], &[])
            .map_err(|error| failure(&error.to_string()))?;
        if !output.status.success() {
            let account = format!(
                "kadring check: {}\n{}{}",
                output.status,
                String::from_utf8_lossy(&output.stdout),
                String::from_utf8_lossy(&output.stderr)
            );
            return Err(Violation { account });
        }
        Ok(())
    }
}

/// What a node was doing when it was killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Starting,
    Serving,
}

fn with_log(violation: &Violation, stderr: &str) -> Violation {
    let cut = stderr.len().saturating_sub(4_000);
    let cut = (cut..=stderr.len()).find(|&at| stderr.is_char_boundary(at)).unwrap_or(0);
    failure(&format!("{violation}\nthe node's log ended:\n{}", &stderr[cut..]))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Milliseconds since 1970.
fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

fn write_until_killed(
    shared: &Shared,
    workload: &Mutex<ConnectionWorkload>,
    address: SocketAddr,
    seed: u64,
) -> Result<(), Violation> {
    let mut rng = Rng::with_seed(seed);
    let broken = |error: io::Error| {
        if shared.killing.load(Ordering::SeqCst) {
            return Ok(());
        }
        Err(failure(&format!("a connection broke before the kill: {error}")))
    };
    let mut client = match RespClient::connect(address) {
        Ok(client) => client,
        Err(error) => return broken(error),
    };
    let flusher = lock(workload).connection() == 0;
    loop {
        let outcome = if flusher && rng.u32(0..FLUSH_ONE_IN) == 0 {
            flush(shared, &mut client)?
        } else {
            let _running = shared.pause.read().unwrap_or_else(PoisonError::into_inner);
            one_pipeline(shared, &mut lock(workload), &mut client)?
        };
        if let Err(error) = outcome {
            return broken(error);
        }
    }
}

/// Sends one pipeline and settles every command of it; the inner error is the connection's.
fn one_pipeline(
    shared: &Shared,
    workload: &mut ConnectionWorkload,
    client: &mut RespClient,
) -> Result<io::Result<()>, Violation> {
    let pipeline = workload.next_pipeline();
    let mut bytes = Vec::new();
    for request in &pipeline {
        let words: Vec<&[u8]> = request.command.iter().map(Vec::as_slice).collect();
        encode_command(&mut bytes, &words);
        if let Effect::Shared(counter) = request.effect {
            lock(&shared.counters)[counter].attempt();
        }
    }
    let sent = now();
    // Replies to what did arrive may be there even if sending broke off.
    let mut sending = client.send_raw(&bytes);
    for (index, request) in pipeline.iter().enumerate() {
        let reply = match client.read_reply() {
            Ok(reply) => reply,
            Err(error) => {
                let window = Window { sent, received: now() };
                abandon(shared, workload, &pipeline[index..], window);
                sending = sending.and(Err(error));
                return Ok(sending);
            }
        };
        let window = Window { sent, received: now() };
        shared.journal.settled(workload.connection(), request, Some(&reply), window);
        settle(shared, workload, request, reply, window)?;
    }
    Ok(sending)
}

fn settle(
    shared: &Shared,
    workload: &mut ConnectionWorkload,
    request: &Request,
    reply: Reply,
    window: Window,
) -> Result<(), Violation> {
    let settled = match (&request.effect, reply) {
        (Effect::Shared(counter), Reply::Integer(number)) => {
            lock(&shared.counters)[*counter].acknowledge(number)?;
            Settled::Known
        }
        (effect, reply) => workload.settle(effect, reply, window)?,
    };
    let tally = &shared.tally;
    match settled {
        Settled::Known if request.effect.is_write() => {
            tally.acknowledged_writes.fetch_add(1, Ordering::Relaxed);
        }
        Settled::Known => {}
        Settled::Unknown(text) => {
            tally.unknown_outcomes.fetch_add(1, Ordering::Relaxed);
            tally.error_replies.fetch_add(1, Ordering::Relaxed);
            *lock(&tally.error_example) = Some(text);
        }
    }
    Ok(())
}

fn abandon(
    shared: &Shared,
    workload: &mut ConnectionWorkload,
    requests: &[Request],
    window: Window,
) {
    for request in requests {
        shared.journal.settled(workload.connection(), request, None, window);
    }
    let count = u64::try_from(requests.len()).unwrap_or(u64::MAX);
    shared.tally.unknown_outcomes.fetch_add(count, Ordering::Relaxed);
    workload.abandon(requests, window);
}

/// Flushes everything while no other command is under way.
fn flush(shared: &Shared, client: &mut RespClient) -> Result<io::Result<()>, Violation> {
    let _alone = shared.pause.write().unwrap_or_else(PoisonError::into_inner);
    let reply = client.call(&[b"FLUSHALL"]);
    let outcome = match &reply {
        Ok(Reply::Simple(text)) if text == "OK" => FlushOutcome::Acknowledged,
        _ => FlushOutcome::Unknown,
    };
    shared.journal.line(format_args!("{} FLUSHALL {outcome:?}", now()));
    for workload in &shared.workloads {
        lock(workload).flush(outcome);
    }
    for counter in lock(&shared.counters).iter_mut() {
        counter.flush(outcome);
    }
    if let Err(error) = reply {
        return Ok(Err(error));
    }
    if outcome == FlushOutcome::Acknowledged {
        shared.tally.flushes.fetch_add(1, Ordering::Relaxed);
        match client.call(&[b"DBSIZE"]) {
            Ok(Reply::Integer(0)) => {}
            Ok(reply) => {
                let account = format!("DBSIZE right after FLUSHALL: {}", reply.brief());
                return Err(Violation { account });
            }
            Err(error) => return Ok(Err(error)),
        }
    }
    Ok(Ok(()))
}

fn verify_keys(
    shared: &Shared,
    workload: &Mutex<ConnectionWorkload>,
    address: SocketAddr,
) -> Result<(), Violation> {
    let mut workload = lock(workload);
    let lost = |error: io::Error| failure(&format!("reading back: {error}"));
    let mut client = RespClient::connect(address).map_err(lost)?;
    for first in (0..KEY_COUNT).step_by(VERIFY_BATCH as usize) {
        let batch = first..KEY_COUNT.min(first + VERIFY_BATCH);
        for key in batch {
            let name = key_name(workload.connection(), key);
            let mut bytes = Vec::new();
            encode_command(&mut bytes, &[b"GET", &name]);
            encode_command(&mut bytes, &[b"PTTL", &name]);
            let sent = now();
            client.send_raw(&bytes).map_err(lost)?;
            let value = client.read_reply().map_err(lost)?;
            let pttl = client.read_reply().map_err(lost)?;
            let window = Window { sent, received: now() };
            let seen = match (value, pttl) {
                (Reply::Nil, Reply::Integer(pttl)) => Observation { value: None, pttl },
                (Reply::Bulk(bytes), Reply::Integer(pttl)) => {
                    Observation { value: Some(bytes), pttl }
                }
                (value, pttl) => {
                    let account = format!(
                        "connection {} key {key}: GET {}, PTTL {}",
                        workload.connection(),
                        value.brief(),
                        pttl.brief()
                    );
                    return Err(Violation { account });
                }
            };
            workload.observe(key, &seen, window)?;
            shared.tally.verified_keys.fetch_add(1, Ordering::Relaxed);
        }
    }
    Ok(())
}

fn verify_counters(shared: &Shared, address: SocketAddr) -> Result<(), Violation> {
    let lost = |error: io::Error| failure(&format!("reading counters back: {error}"));
    let mut client = RespClient::connect(address).map_err(lost)?;
    for (index, counter) in lock(&shared.counters).iter_mut().enumerate() {
        let reply = client.call(&[b"GET", &shared_name(index)]).map_err(lost)?;
        let number = match &reply {
            Reply::Nil => Some(0),
            Reply::Bulk(bytes) => {
                std::str::from_utf8(bytes).ok().and_then(|text| text.parse().ok())
            }
            _ => None,
        };
        let Some(number) = number else {
            return Err(failure(&format!("shared counter {index}: {}", reply.brief())));
        };
        counter.observe(number)?;
        shared.tally.verified_keys.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

/// Checks that SCAN lists nothing that cannot exist, and DBSIZE counts what may.
fn verify_listing(shared: &Shared, address: SocketAddr) -> Result<(), Violation> {
    let lost = |error: io::Error| failure(&format!("listing keys: {error}"));
    let mut client = RespClient::connect(address).map_err(lost)?;
    let sent = now();
    let mut listed = std::collections::BTreeSet::new();
    let mut cursor = b"0".to_vec();
    loop {
        let reply = client.call(&[b"SCAN", &cursor, b"COUNT", b"100"]).map_err(lost)?;
        let Reply::Array(parts) = &reply else {
            return Err(failure(&format!("SCAN: {}", reply.brief())));
        };
        let [Reply::Bulk(next), Reply::Array(names)] = parts.as_slice() else {
            return Err(failure(&format!("SCAN: {}", reply.brief())));
        };
        listed.extend(names.iter().filter_map(Reply::bytes).map(<[u8]>::to_vec));
        if next == b"0" {
            break;
        }
        cursor.clone_from(next);
    }
    let size = client.call(&[b"DBSIZE"]).map_err(lost)?;
    let window = Window { sent, received: now() };
    let (mut must, mut may) = (0, 0);
    for workload in &shared.workloads {
        let workload = lock(workload);
        for (key, ledger) in (0..).zip(workload.keys()) {
            let name = key_name(workload.connection(), key);
            let is_listed = listed.remove(&name);
            must += i64::from(ledger.must_exist(window));
            may += i64::from(ledger.may_exist(window));
            if is_listed && !ledger.may_exist(window) || !is_listed && ledger.must_exist(window) {
                let name = name.escape_ascii();
                let account = format!("SCAN lists {name}: {is_listed}; {:?}", ledger.possible());
                return Err(Violation { account });
            }
        }
    }
    for index in 0..SHARED_COUNT {
        may += 1;
        listed.remove(&shared_name(index));
    }
    if let Some(name) = listed.first() {
        return Err(failure(&format!("SCAN lists a key never written: {}", name.escape_ascii())));
    }
    match size {
        // Keys past their time may still be counted until they are cleared away.
        Reply::Integer(size) if size >= must => Ok(()),
        size => Err(failure(&format!("DBSIZE: {}, {must} to {may} exist", size.brief()))),
    }
}

/// The record on disk of what was sent and answered.
struct Journal {
    directory: PathBuf,
    state: Mutex<(u64, BufWriter<File>)>,
}

impl Journal {
    fn create(directory: PathBuf) -> io::Result<Self> {
        let file = File::create(directory.join("journal-0.log"))?;
        Ok(Self { directory, state: Mutex::new((0, BufWriter::new(file))) })
    }

    fn line(&self, text: fmt::Arguments<'_>) {
        // A write error comes back at the next flush, which is checked.
        drop(writeln!(lock(&self.state).1, "{text}"));
    }

    fn settled(&self, connection: u32, request: &Request, reply: Option<&Reply>, window: Window) {
        let reply = reply.map_or_else(|| "no reply".to_owned(), Reply::brief);
        let (sent, received) = (window.sent, window.received);
        let effect = &request.effect;
        self.line(format_args!("{sent} {received} c{connection} {effect:?} -> {reply}"));
    }

    fn flush(&self) -> io::Result<()> {
        lock(&self.state).1.flush()
    }

    fn roll(&self) -> io::Result<()> {
        let mut state = lock(&self.state);
        state.1.flush()?;
        state.0 += 1;
        let path = |number: u64| self.directory.join(format!("journal-{number}.log"));
        state.1 = BufWriter::new(File::create(path(state.0))?);
        match state.0.checked_sub(2).map(|old| fs::remove_file(path(old))) {
            Some(Err(error)) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}
