//! The crash loop: write from many connections, SIGKILL, restart, compare, again.
//!
//! This process keeps the ledger; the node is another one and knows nothing of it. One round:
//!
//! ```text
//! ready ──> 16 connections write ──> SIGKILL at a random moment ──> restart on the same port
//!   ^       1 orders snapshots                            (1 in 5: SIGKILL during that start)
//!   │       and compaction
//!   ├── every key compared with the ledger, SCAN and DBSIZE too <──────────┤
//!   └── 1 in 10: a snapshot verified, restored, a node started on it, compared <──┘
//! ```
//!
//! After 1 kill in 10 the node stays down until a key has expired that was alive before.
//!
//! Segments are as small as they may be, and some connections overwrite or expire more than others
//! would, so that segments die and are compacted and used again all the time.
//!
//! After the last round: SIGTERM, exit code 0, restart, compare, SIGTERM, `kadring check` finds
//! nothing, and a run of some length must have seen all of that happen ([`Background::demand`]).
//! What was sent and answered goes to a journal file, for looking into a failure.

#![expect(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "the harness holds a real process against the real clock, and keeps a journal"
)]

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock, mpsc};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fastrand::Rng;

use crate::ledger::{EXPIRY_SLACK_MS, SharedCounter, Violation, Window};
use crate::node_process::run_to_end;
use crate::node_process::{Driver, NodeOptions, NodeProcess, StartingNode};
use crate::workload::{ConnectionWorkload, Mix, SHARED_COUNT};

mod compare;
mod journal;
mod operator;
mod summary;
mod traffic;

pub use summary::{Background, CrashSummary};

use compare::{compare_counters, compare_keys, compare_listing};
use journal::Journal;
use operator::Operator;
use summary::Tally;
use traffic::write_until_killed;

/// A checkpoint is written after so much log of a shard.
const CHECKPOINT_BYTES: &str = "1MiB";

/// One kill in so many hits a node that is still starting.
const START_KILL_ONE_IN: u32 = 5;

/// Half of those come within so many microseconds of its start.
const EARLY_KILL_MICROS: u64 = 5_000;

/// Kills between two snapshots that are compared, and between two looks at what there are.
const COMPARE_KILLS: u64 = 10;
const THIN_KILLS: u64 = 4;

/// Kills between two after which the node stays down until a key has expired, and the longest that
/// it does, in ms.
const EXPIRY_KILLS: u64 = 10;
const EXPIRY_WAIT_MS_MAX: u64 = 1_000;

/// A run of so many kills must have seen everything happen.
const DEMANDING_KILLS: u64 = 20;

/// The smallest that a segment may be: there are many then.
const SEGMENT_BYTES: &str = "4MiB";

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
    /// Further arguments of the node.
    pub node_arguments: Vec<String>,
    /// Holds the data directory `data` and the journal; must exist.
    pub directory: PathBuf,
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

impl Shared {
    /// A connection broke: what a kill does, and nothing else may.
    fn broken(&self, error: &io::Error) -> Result<(), Violation> {
        if self.killing.load(Ordering::SeqCst) {
            return Ok(());
        }
        Err(failure(&format!("a connection broke before the kill: {error}")))
    }
}

struct CrashLoop {
    options: CrashOptions,
    node_options: NodeOptions,
    rng: Rng,
    shared: Shared,
    operator: Operator,
    /// A snapshot is to be compared after the next kill that there is one.
    snapshot_due: bool,
    /// A key is to expire while the node is down, after the next kill that leaves one about to.
    expiry_due: bool,
    kills: u64,
    start_kills: u64,
    restarts: Vec<Duration>,
}

impl CrashLoop {
    fn new(options: &CrashOptions) -> io::Result<Self> {
        let mut node_options = NodeOptions::new(&options.directory.join("data"), options.driver);
        node_options.shards = options.shards;
        let durability = [
            "--durability",
            &options.durability,
            "--segment-bytes",
            SEGMENT_BYTES,
            "--checkpoint-bytes",
            CHECKPOINT_BYTES,
        ];
        let arguments = durability.into_iter().map(Into::into);
        node_options.arguments =
            arguments.chain(options.node_arguments.iter().map(Into::into)).collect();
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
            operator: Operator::default(),
            snapshot_due: false,
            expiry_due: true,
            kills: 0,
            start_kills: 0,
            restarts: Vec::new(),
            options: options.clone(),
        })
    }

    fn run(&mut self, progress: &mut dyn FnMut(&str)) -> Result<(), Violation> {
        let mut node = self.start()?;
        while self.kills < self.options.kills {
            let before = self.kills;
            self.write_and_kill(node)?;
            self.attend_expiry();
            node = self.restart()?;
            self.expiry_due |= self.is_past(before, EXPIRY_KILLS);
            self.verify(&node)?;
            self.attend_snapshots(before)?;
            if self.is_past(before, PROGRESS_KILLS) || self.kills == self.options.kills {
                progress(&self.summary().to_string());
            }
        }
        self.terminate(node)?;
        node = self.start()?;
        self.verify(&node)?;
        self.terminate(node)?;
        self.check()?;
        if self.options.kills >= DEMANDING_KILLS {
            self.background().demand()?;
        }
        Ok(())
    }

    fn background(&self) -> Background {
        let tally = &self.shared.tally;
        Background {
            keys_expired: tally.expired_keys.load(Ordering::Relaxed),
            keys_expired_while_down: tally.expired_while_down.load(Ordering::Relaxed),
            ..self.operator.background()
        }
    }

    /// Whether the kills since there were `before` have passed a multiple of `every`.
    fn is_past(&self, before: u64, every: u64) -> bool {
        self.kills / every > before / every
    }

    fn attend_snapshots(&mut self, kills_before: u64) -> Result<(), Violation> {
        self.snapshot_due |= self.is_past(kills_before, COMPARE_KILLS);
        if self.snapshot_due {
            let directory = &self.options.directory;
            let compared = self.operator.compare_snapshot(&self.node_options, directory)?;
            self.snapshot_due = !compared;
        }
        if self.is_past(kills_before, THIN_KILLS) {
            self.operator.thin(&self.node_options.data_dir)?;
        }
        Ok(())
    }

    /// Leaves the node down until a key has expired that was alive when it was killed, if one is
    /// about to: a fast start would meet such keys by luck alone.
    fn attend_expiry(&mut self) {
        if !self.expiry_due {
            return;
        }
        let killed = self.shared.tally.killed_window();
        let at = |ms| Window { sent: ms, received: ms };
        let ends = (1..=EXPIRY_WAIT_MS_MAX / EXPIRY_SLACK_MS)
            .map(|step| at(killed.received + step * EXPIRY_SLACK_MS))
            .find(|window| {
                self.shared.workloads.iter().any(|workload| {
                    let workload = lock(workload);
                    let mut keys = workload.keys().iter();
                    keys.any(|key| key.has_expired(*window) && !key.has_expired(killed))
                })
            });
        if let Some(Window { received, .. }) = ends {
            // No luck is in it: the moment is known, and what counts is the clock.
            while let ms @ 1.. = received.saturating_sub(now()) {
                thread::park_timeout(Duration::from_millis(ms));
            }
            self.expiry_due = false;
        }
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
            background: self.background(),
        }
    }

    fn start(&mut self) -> Result<NodeProcess, Violation> {
        let node = NodeProcess::start(self.node_options.clone()).map_err(|text| failure(&text))?;
        self.node_options = node.options_on_same_port();
        self.note_start(&node);
        Ok(node)
    }

    fn note_start(&mut self, node: &NodeProcess) {
        self.restarts.push(node.start_duration());
        self.operator.note_start(&node.stderr());
    }

    /// Starts the node again, and kills it on the way up now and then.
    fn restart(&mut self) -> Result<NodeProcess, Violation> {
        while self.kills < self.options.kills && self.rng.u32(0..START_KILL_ONE_IN) == 0 {
            let start_micros = self.summary().restarts[self.restarts.len() / 2].as_micros();
            let start_micros = u64::try_from(start_micros).unwrap_or(u64::MAX);
            let late = start_micros.max(1_000);
            let delay_max = if self.rng.bool() { EARLY_KILL_MICROS } else { late };
            let delay = Duration::from_micros(self.rng.u64(0..delay_max));
            let starting = StartingNode::start(self.node_options.clone())
                .map_err(|error| failure(&error.to_string()))?;
            match starting.wait_ready(delay).map_err(|text| failure(&text))? {
                Ok(node) => {
                    self.note_start(&node);
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
        let operator_seed = self.rng.u64(..);
        let mixes = [Mix::Even, Mix::Overwriting, Mix::Expiring];
        let mix = self.rng.choice(mixes).unwrap_or(Mix::Even);
        self.shared.workloads.iter().for_each(|workload| lock(workload).set_mix(mix));
        let address = node.address();
        let (shared, operator) = (&self.shared, &mut self.operator);
        let (stop, stopped) = mpsc::channel();
        shared.killing.store(false, Ordering::SeqCst);
        thread::scope(|scope| {
            let mut threads: Vec<_> = (shared.workloads.iter().zip(seeds))
                .map(|(workload, seed)| {
                    scope.spawn(move || write_until_killed(shared, workload, address, seed))
                })
                .collect();
            threads.push(
                scope.spawn(move || operator.operate(shared, address, operator_seed, &stopped)),
            );
            let ended = node.wait_exit(write_time).map_err(|error| failure(&error.to_string()));
            shared.killing.store(true, Ordering::SeqCst);
            drop(stop);
            let stderr = node.stderr();
            let killed = node.kill9().map_err(|error| failure(&error.to_string()));
            shared.tally.killed_ms.store(now(), Ordering::Relaxed);
            let mut result = Ok(());
            for thread in threads {
                let joined = thread.join().unwrap_or_else(|_| Err(failure("a thread panicked")));
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
        compare_keys(&shared.tally, &shared.workloads, address)
            .and_then(|()| compare_counters(shared, address))
            .and_then(|()| compare_listing(&shared.workloads, address))
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
