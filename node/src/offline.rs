//! A data directory opened without doors, for commands that work on it while no node runs.

use std::io;

use storage::{Event, LogClock};

use crate::config::Config;
use crate::crew::Crew;
use crate::io::pread::{PreadIo, PreadOptions};
use crate::io::{Completion, DiskOwner, Io, Request};
use crate::keyspace::{Keyspace, ShardIndex, Spread};
use crate::node::{RunError, Shards, durability_of, open_directory};

/// All shards of a data directory, and the driver that does their disk work.
///
/// The directory is locked, and recovered as at the start of a node.
#[derive(Debug)]
pub struct Offline {
    io: PreadIo,
    keyspace: Keyspace,
    clock: LogClock,
    done: Vec<Completion>,
}

impl Offline {
    /// Opens the data directory of `config`; with `create`, makes it if it is not there.
    ///
    /// # Errors
    /// [`RunError`], as at the start of a node.
    pub fn open(config: &Config, create: bool) -> Result<Self, RunError> {
        let directory = open_directory(&config.data_dir, create)?;
        let durability = durability_of(config, &directory);
        let options = PreadOptions { handle_signals: false, threads: config.pread_threads };
        let mut io = PreadIo::new(directory, options).map_err(RunError::driver)?;
        let mut shards = Shards::new(&mut io, config, durability);
        let plan = shards.plan()?;
        let spread = Spread::on_one_thread(plan.shard_count());
        let opened = shards.open(&plan, spread, &mut Crew::default())?;
        let log_ms = opened.log_ms;
        let (monotonic, wall) = io.now();
        let mut clock = LogClock::new(log_ms, wall.0, monotonic.0);
        let now = clock.read(wall.0, monotonic.0).now;
        let keyspace = Keyspace::new(spread, opened.stores, now, 0);
        Ok(Self { io, keyspace, clock, done: Vec::new() })
    }

    /// The shards; whatever is asked of them is carried out by [`Offline::turn`].
    pub fn keyspace(&mut self) -> &mut Keyspace {
        &mut self.keyspace
    }

    /// Carries out disk work until the shards have something to tell.
    ///
    /// # Errors
    /// The driver's.
    pub fn turn(&mut self) -> io::Result<Vec<(ShardIndex, Event)>> {
        loop {
            let (monotonic, wall) = self.io.now();
            self.keyspace.set_now(self.clock.read(wall.0, monotonic.0).now);
            for completion in self.done.drain(..) {
                if let Completion::Disk(owner, completion) = completion {
                    self.keyspace.handle_disk(owner.0, completion);
                }
            }
            self.keyspace.end_turn();
            self.submit();
            let events: Vec<_> = std::iter::from_fn(|| self.keyspace.poll_event()).collect();
            if !events.is_empty() {
                return Ok(events);
            }
            let deadline = self.keyspace.deadline_ns().map(crate::io::Monotonic);
            self.io.wait(deadline, &mut self.done)?;
        }
    }

    /// Makes everything durable, seals the logs and lets the directory go.
    ///
    /// # Errors
    /// The driver's, or that of the write that failed.
    pub fn close(mut self) -> io::Result<()> {
        loop {
            self.keyspace.seal();
            self.submit();
            while let Some((_, event)) = self.keyspace.poll_event() {
                if let Event::Failed(error) = event {
                    return Err(io::Error::from_raw_os_error(error.code));
                }
            }
            if self.keyspace.is_quiet() {
                return Ok(());
            }
            self.io.wait(None, &mut self.done)?;
            for completion in self.done.drain(..) {
                if let Completion::Disk(owner, completion) = completion {
                    self.keyspace.handle_disk(owner.0, completion);
                }
            }
        }
    }

    fn submit(&mut self) {
        while let Some((shard, request)) = self.keyspace.poll_request() {
            self.io.submit(Request::Disk(DiskOwner(shard), request));
        }
    }
}
