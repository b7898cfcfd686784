//! The threads of a node beside the first one: how they start, open their shards, and end.
//!
//! ```text
//! Crew::spawn -> thread: driver made -> opens shards when told -> serves when told -> seals, ends
//! ```
//!
//! Until a thread serves, the first one tells it what to do over channels that block; from then on
//! they exchange [`Mail`](crate::event_loop::Mail). A thread that ends before its time, be it by a
//! panic, is reported, and ends the node.

use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::{self, JoinHandle};

use storage::{LogClock, RecoveryReport, Store, StoreLimits};
use wal::segment::Identity;

use crate::config::Config;
use crate::event_loop::{EventLoop, Mail, Post};
use crate::io::directory::DataDirectory;
use crate::io::mailbox::Outbox;
use crate::io::{Io, Request, process};
use crate::keyspace::{Keyspace, ShardIndex, Spread, ThreadIndex};
use crate::node::{RunError, open_shards};
use crate::resp::door::{Door, DurabilityFacts, NodeFacts};

/// What opening a shard found.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) shard: ShardIndex,
    pub(crate) log_ms: u64,
    pub(crate) report: RecoveryReport,
}

/// Shards to open.
#[derive(Clone, Debug)]
pub(crate) struct Opening {
    pub(crate) shards: Vec<Identity>,
    pub(crate) must_exist: bool,
    pub(crate) limits: StoreLimits,
}

/// What a thread needs to know to serve.
#[derive(Debug)]
pub(crate) struct Service {
    pub(crate) facts: NodeFacts,
    /// The newest time in any log, in milliseconds since 1970.
    pub(crate) log_ms: u64,
    /// The time at which the node's clock starts: wall clock, and nanoseconds of the monotonic one.
    pub(crate) started: (u64, u64),
    pub(crate) post: Post,
}

#[derive(Debug)]
enum Task {
    Open(Opening),
    Serve(Box<Service>),
}

#[derive(Debug)]
struct Hand {
    tasks: Sender<Task>,
    found: Receiver<Result<Vec<Found>, RunError>>,
    thread: JoinHandle<Result<(), RunError>>,
}

/// The threads of a node beside the first one.
#[derive(Debug, Default)]
pub(crate) struct Crew {
    hands: Vec<Hand>,
}

impl Crew {
    /// Starts the threads. `make` makes a thread's driver.
    ///
    /// # Errors
    /// If the kernel gives no threads.
    pub(crate) fn spawn<I: Io>(
        spread: Spread,
        directory: &DataDirectory,
        (config, durability): (&Config, DurabilityFacts),
        make: impl Fn(DataDirectory, Spread) -> Result<I, RunError> + Copy + Send + 'static,
    ) -> Result<Self, RunError> {
        let mut crew = Self::default();
        for other in spread.others() {
            let spread = Spread { thread: other, ..spread };
            let directory = directory.try_clone().map_err(RunError::driver)?;
            let (tasks, tasks_taken) = mpsc::channel();
            let (found_given, found) = mpsc::channel();
            let config = config.clone();
            let work = move || {
                let io = match make(directory, spread) {
                    Ok(io) => io,
                    Err(error) => {
                        // Nobody listens any more, if the node has failed to start otherwise.
                        let _ = found_given.send(Err(error));
                        return Ok(());
                    }
                };
                work(io, spread, (&config, durability), (&tasks_taken, &found_given))
            };
            let name = format!("kadring-{other}");
            let thread = thread::Builder::new().name(name).spawn(work);
            let thread = thread.map_err(RunError::driver)?;
            crew.hands.push(Hand { tasks, found, thread });
        }
        Ok(crew)
    }

    fn hand(&self, thread: ThreadIndex) -> &Hand {
        &self.hands[usize::from(thread) - 1]
    }

    /// Has a thread begin to open shards of its own.
    pub(crate) fn begin_opening(&self, thread: ThreadIndex, opening: Opening) {
        // A thread that is gone is noticed when its answer is waited for.
        let _ = self.hand(thread).tasks.send(Task::Open(opening));
    }

    /// Waits until that thread has opened what it was told to.
    ///
    /// # Errors
    /// What it failed of.
    pub(crate) fn end_opening(&self, thread: ThreadIndex) -> Result<Vec<Found>, RunError> {
        self.hand(thread).found.recv().unwrap_or(Err(RunError::Thread { thread }))
    }

    /// Has a thread serve.
    pub(crate) fn serve(&self, thread: ThreadIndex, service: Service) {
        let _ = self.hand(thread).tasks.send(Task::Serve(Box::new(service)));
    }

    /// Waits until all threads have ended.
    ///
    /// # Errors
    /// The first error of any of them.
    pub(crate) fn join(self) -> Result<(), RunError> {
        let mut result = Ok(());
        for (hand, thread) in self.hands.into_iter().zip(1..) {
            drop(hand.tasks);
            let ended = hand.thread.join().unwrap_or(Err(RunError::Thread { thread }));
            result = result.and(ended);
        }
        result
    }
}

/// Tells the first thread that this one is gone, unless it is told not to.
struct Alarm {
    outbox: Outbox<Mail>,
    thread: ThreadIndex,
    armed: bool,
}

impl Drop for Alarm {
    fn drop(&mut self) {
        if self.armed {
            self.outbox.send(Mail::Lost(self.thread));
        }
    }
}

/// What a thread does.
fn work<I: Io>(
    mut io: I,
    spread: Spread,
    (config, durability): (&Config, DurabilityFacts),
    (tasks, found): (&Receiver<Task>, &Sender<Result<Vec<Found>, RunError>>),
) -> Result<(), RunError> {
    let mut stores: Vec<(ShardIndex, Store)> = Vec::new();
    // Without a task, the node has failed to start.
    while let Ok(task) = tasks.recv() {
        match task {
            Task::Open(opening) => {
                let opened = open_shards(&mut io, (config, durability), &opening);
                let answer = opened.map(|(opened, _)| {
                    let mut all = Vec::new();
                    for (identity, opened) in opening.shards.iter().zip(opened) {
                        let (shard, log_ms, report) =
                            (identity.shard, opened.log_ms, opened.report);
                        stores.push((shard, opened.store));
                        all.push(Found { shard, log_ms, report });
                    }
                    all
                });
                let _ = found.send(answer);
            }
            Task::Serve(service) => {
                stores.sort_by_key(|(shard, _)| *shard);
                let stores = stores.into_iter().map(|(_, store)| store).collect();
                return serve(io, spread, (config, stores), *service);
            }
        }
    }
    Ok(())
}

fn serve<I: Io>(
    mut io: I,
    spread: Spread,
    (config, stores): (&Config, Vec<Store>),
    service: Service,
) -> Result<(), RunError> {
    let Service { facts, log_ms, started: (wall_ms, monotonic_ns), mut post } = service;
    let mut alarm = Alarm { outbox: post.outboxes[0].clone(), thread: spread.thread, armed: true };
    if let Some(socket) = post.wake_socket.take() {
        io.submit(Request::Watch(socket));
    }
    let (clock, keyspace) = begin((log_ms, wall_ms, monotonic_ns), spread, stores);
    let door = Door::new(config.limits.clone(), config.requirepass.clone(), facts);
    let mut event_loop = EventLoop::new(io, (keyspace, door), clock, post, Vec::new());
    event_loop.run(|| {}).map_err(RunError::driver)?;
    alarm.armed = false;
    Ok(())
}

/// Starts the clock and puts the shards of a thread together.
pub(crate) fn begin(
    (log_ms, wall_ms, monotonic_ns): (u64, u64, u64),
    spread: Spread,
    stores: Vec<Store>,
) -> (LogClock, Keyspace) {
    let mut clock = LogClock::new(log_ms, wall_ms, monotonic_ns);
    let now = clock.read(wall_ms, monotonic_ns).now;
    let seed = u64::from_le_bytes(process::random_bytes());
    let keyspace = Keyspace::new(spread, stores, now, seed);
    (clock, keyspace)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::DurabilityMode;
    use crate::io::device::{DeviceProbe, SyncMethod};
    use crate::io::directory::DirectoryOptions;
    use crate::io::mailbox::mailbox;
    use crate::io::pread::PreadIo;

    /// Has one thread open nothing, with a driver that cannot be made.
    fn check(make: fn(DataDirectory, Spread) -> Result<PreadIo, RunError>, expected: &str) {
        let place = tempfile::tempdir().unwrap();
        let directory = DataDirectory::open(place.path(), DirectoryOptions::default()).unwrap();
        let (mode, method) = (DurabilityMode::Always, SyncMethod::Dsync);
        let probe = DeviceProbe {
            direct: false,
            dsync_us: None,
            sync_us: None,
            write_cache: None,
            choice: method,
        };
        let facts = DurabilityFacts { mode, method, probe };
        let spread = Spread { shard_count: 2, thread_count: 2, thread: 0 };
        let crew = Crew::spawn(spread, &directory, (&Config::default(), facts), make).unwrap();
        assert_eq!(crew.end_opening(1).unwrap_err().to_string(), expected);
    }

    #[test]
    fn thread_that_does_not_start_is_told_of() {
        let failed = |_, _| Err(RunError::Thread { thread: 7 });
        check(failed, "thread 7 of the node has failed");
        check(|_, _| panic!("a panic of this test's own"), "thread 1 of the node has failed");
    }

    #[test]
    fn thread_that_ends_before_its_time_rings_the_alarm() {
        let (outbox, mut inbox, _socket) = mailbox().unwrap();
        let alarm = |armed| Alarm { outbox: outbox.clone(), thread: 3, armed };
        drop(alarm(false));
        assert!(inbox.poll().is_none());
        drop(alarm(true));
        assert!(matches!(inbox.poll(), Some(Mail::Lost(3))));
    }
}
