//! A node from start to stop: data directory, driver, shards, door, loop.

use std::error::Error;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use storage::{CheckpointOptions, OpenError, RecoveryReport, Store, StoreLimits, StoreOptions};
use wal::disk::FileName;
use wal::group_commit::{CommitDurability, GroupCommitLimits, SyncMethod};
use wal::record::own_half;
use wal::segment::Identity;

use crate::cluster::secret::ClusterSecret;
use crate::cluster::side;
use crate::config::{Config, DurabilityMode, IoDriver, Mode, SHARDS_MAX};
use crate::crew::{self, Crew, Found, Opening, Service};
use crate::event_loop::{CLIENT_DOOR, EventLoop, Mail, Post, run_procedure, run_procedures};
use crate::io::device::{self, DeviceProbe};
use crate::io::directory::{self, DataDirectory, DirectoryOptions};
use crate::io::mailbox::mailbox;
use crate::io::pread::{PreadIo, PreadOptions};
use crate::io::resolver::Resolver;
use crate::io::tokio_uring::{TokioUringIo, TokioUringOptions};
use crate::io::uring::{Abilities, UringIo, UringOptions};
use crate::io::{Completion, DiskOwner, Io, ListenerId, Request, process};
use crate::keyspace::{Keyspace, ShardIndex, Spread, ThreadIndex};
use crate::mainline::peer_side::{self, MainlineSide, StartError};
use crate::mode_note;
use crate::peer::{ADMIN_DOOR, PeerSide};
use crate::peer_door::{self, PeerDoorError};
use crate::resp::door::{Door, DurabilityFacts, NodeFacts, PeerCommands};
use crate::snapshot::{CATALOG_FILE, SNAPSHOTS_DIRECTORY, SnapshotFacts, at_rest};

/// With `durability = interval`, the longest that a write stays without a sync, in milliseconds.
const SYNC_INTERVAL_MS: u32 = 1000;

/// Registered buffers of a thread at least, in bytes.
const BUFFER_BYTES_PER_THREAD_MIN: usize = 16 << 20;

/// What a node tells whoever started it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunEvent {
    /// It serves.
    Ready {
        /// The client door's address.
        client: SocketAddr,
        /// The peer door's address, if it has one.
        peer: Option<SocketAddr>,
        /// The admin door's address, if it has one.
        admin: Option<SocketAddr>,
        /// The node's id.
        node_id: [u8; 20],
    },
    /// It has begun to stop.
    Stopping,
}

/// Why a data directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    /// Another process uses it.
    #[error("data directory {} is locked by {holder}", path.display())]
    Locked {
        /// The directory.
        path: PathBuf,
        /// Who holds it.
        holder: String,
    },
    /// It cannot be read, written or made.
    #[error("data directory {} cannot be used: {source}", path.display())]
    Unusable {
        /// The directory, or the file in it.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A newer kadring wrote it.
    #[error(
        "{} is of format version {found}, this program knows versions up to {supported}",
        path.display()
    )]
    NewerFormat {
        /// The file that says so.
        path: PathBuf,
        /// Its version.
        found: u16,
        /// The newest version known here.
        supported: u16,
    },
}

/// Why a node did not start, or failed.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A door's address cannot be had.
    #[error("cannot listen on {address}: {source}")]
    Bind {
        /// The setting that gives it.
        door: &'static str,
        /// The address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// There is no peer door.
    #[error(transparent)]
    Peer(#[from] PeerDoorError),
    /// The data directory cannot be used.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// `--mode` contradicts the data directory.
    #[error(
        "data directory {} was made by a node with --mode {}, not {}",
        path.display(), holds.name(), asked.name()
    )]
    OtherMode {
        /// The directory.
        path: PathBuf,
        /// The mode that it was made in.
        holds: Mode,
        /// The mode asked for.
        asked: Mode,
    },
    /// `--shards` contradicts the data directory.
    #[error("data directory {} has {stored} shards, not {asked}", path.display())]
    ShardCount {
        /// The directory.
        path: PathBuf,
        /// Shards it was made with.
        stored: u16,
        /// Shards asked for.
        asked: u16,
    },
    /// `--threads` are more than there are shards.
    #[error(
        "{asked} threads are more than the {shards} shards of data directory {}",
        path.display()
    )]
    ThreadCount {
        /// The directory.
        path: PathBuf,
        /// Its shards.
        shards: u16,
        /// Threads asked for.
        asked: u16,
    },
    /// One of the threads has failed, and the node with it.
    #[error("thread {thread} of the node has failed")]
    Thread {
        /// Which one.
        thread: ThreadIndex,
    },
    /// `disk_bytes_max` leaves too little for each shard.
    #[error(
        "disk_bytes_max is {given} bytes, less than {needed} (4 x segment_bytes for each of \
         {shards} shards)"
    )]
    DiskLimit {
        /// What is allowed.
        given: u64,
        /// What is needed at least.
        needed: u64,
        /// Number of shards.
        shards: u16,
    },
    /// The kernel gives us no ring.
    #[error("io_uring cannot be used: {source}")]
    Ring {
        /// Why.
        source: io::Error,
    },
    /// Anything else.
    #[error("the node has failed: {0}")]
    Other(#[source] Box<dyn Error + Send + Sync>),
}

impl RunError {
    pub(crate) fn driver(error: io::Error) -> Self {
        Self::Other(Box::new(error))
    }
}

/// Runs a node until it is told to stop by SIGTERM, SIGINT or SHUTDOWN.
///
/// # Errors
/// [`RunError`].
pub fn run(mut config: Config, mut on_event: impl FnMut(RunEvent)) -> Result<(), RunError> {
    if let Some(open_files) = process::raise_open_files_limit() {
        config.limits.bound_connections(open_files);
    }
    let secret = peer_door::read_secret(&config.cluster)?;
    let directory = open_directory(&config.data_dir, true)?;
    mode_note::check(config.mode, &config.data_dir, &directory)?;
    let durability = durability_of(&config, &directory);
    if let Err(error) = at_rest::remove_unfinished(&config.data_dir.join(SNAPSHOTS_DIRECTORY)) {
        tracing::warn!(%error, "an unfinished snapshot is left");
    }
    if !durability.probe.direct {
        tracing::warn!(
            data_dir = %config.data_dir.display(),
            "this file system takes no O_DIRECT: writes go through the page cache and fdatasync"
        );
    }
    let (threads, buffer_bytes) = (config.pread_threads, config.io_buffer_bytes);
    match config.io {
        IoDriver::Uring => {
            let abilities = config.uring_abilities;
            let make =
                move |directory, spread| make_uring(directory, spread, (buffer_bytes, abilities));
            serve(directory, (&config, secret), durability, make, &mut on_event)
        }
        IoDriver::TokioUring => {
            let make = move |directory, spread| make_tokio_uring(directory, spread, buffer_bytes);
            serve(directory, (&config, secret), durability, make, &mut on_event)
        }
        IoDriver::Pread => {
            let make = move |directory, spread: Spread| {
                let options = PreadOptions { threads, handle_signals: spread.thread == 0 };
                PreadIo::new(directory, options).map_err(RunError::driver)
            };
            serve(directory, (&config, secret), durability, make, &mut on_event)
        }
    }
}

fn make_uring(
    directory: DataDirectory,
    spread: Spread,
    (buffer_bytes, abilities): (usize, Abilities),
) -> Result<UringIo, RunError> {
    let options = UringOptions {
        buffer_bytes: buffer_bytes_of(buffer_bytes, spread),
        handle_signals: spread.thread == 0,
        abilities,
        ..UringOptions::default()
    };
    let io = UringIo::new(directory, options)
        .map_err(|error| RunError::Ring { source: ring_error(&error) })?;
    if !io.flags_refused().is_empty() && spread.thread == 0 {
        tracing::warn!(refused = ?io.flags_refused(), "older kernel: ring set up without");
    }
    Ok(io)
}

fn make_tokio_uring(
    directory: DataDirectory,
    spread: Spread,
    buffer_bytes: usize,
) -> Result<TokioUringIo, RunError> {
    let options = TokioUringOptions {
        buffer_bytes: buffer_bytes_of(buffer_bytes, spread),
        handle_signals: spread.thread == 0,
        ..TokioUringOptions::default()
    };
    TokioUringIo::new(directory, options)
        .map_err(|error| RunError::Ring { source: ring_error(&error) })
}

/// A thread's registered buffers: the first one, whose driver is made before it is known how many
/// threads there are, has as many as a node of one thread, and the others share about as many.
fn buffer_bytes_of(whole: usize, spread: Spread) -> usize {
    if spread.thread == 0 {
        return whole;
    }
    (whole / usize::from(spread.thread_count)).max(BUFFER_BYTES_PER_THREAD_MIN.min(whole))
}

/// What writes promise and how that is kept, by configuration and by what the device is good at.
pub(crate) fn durability_of(config: &Config, directory: &DataDirectory) -> DurabilityFacts {
    let probe = DeviceProbe::read_or_measure(directory);
    let method = config.sync_method.unwrap_or(probe.choice);
    DurabilityFacts { mode: config.durability, method, probe }
}

/// Keeps the kind of error, which decides the remedy, and the cause in words.
fn ring_error(error: &crate::io::uring::ProbeError) -> io::Error {
    let kind = error
        .source()
        .and_then(|source| source.downcast_ref::<io::Error>())
        .map_or(io::ErrorKind::PermissionDenied, io::Error::kind);
    io::Error::new(kind, error.to_string())
}

/// Opens and locks a data directory.
///
/// # Errors
/// [`DirectoryError::Locked`] and [`DirectoryError::Unusable`].
pub(crate) fn open_directory(path: &Path, create: bool) -> Result<DataDirectory, DirectoryError> {
    if path.join(CATALOG_FILE).exists() {
        let text = "it is a snapshot; kadring snapshot restore makes a data directory of it";
        let source = io::Error::new(io::ErrorKind::InvalidInput, text);
        return Err(DirectoryError::Unusable { path: path.into(), source });
    }
    let options = DirectoryOptions { create, ..DirectoryOptions::default() };
    DataDirectory::open(path, options).map_err(|error| {
        let unusable = |path, source| DirectoryError::Unusable { path, source };
        match error {
            directory::DirectoryError::Locked { path, pid } => {
                let holder = pid
                    .map_or_else(|| "another process".to_owned(), |pid| format!("process {pid}"));
                DirectoryError::Locked { path, holder }
            }
            directory::DirectoryError::Permission { path, source }
            | directory::DirectoryError::Io { path, source } => unusable(path, source),
            directory::DirectoryError::NotFound { path } => {
                unusable(path, rustix::io::Errno::NOENT.into())
            }
            directory::DirectoryError::NotADirectory { path } => {
                unusable(path, rustix::io::Errno::NOTDIR.into())
            }
        }
    })
}

/// Says of a failure to open a shard what it means for the data directory.
pub(crate) fn explain_open(data_dir: &Path, error: OpenError) -> DirectoryError {
    match error {
        OpenError::NewerFormat { file, found, known } => {
            DirectoryError::NewerFormat { path: data_dir.join(file), found, supported: known }
        }
        OpenError::WrongIdentity { file } => DirectoryError::Unusable {
            path: data_dir.join(file),
            source: io::Error::new(
                io::ErrorKind::InvalidData,
                "the file belongs to another store or shard",
            ),
        },
        OpenError::Disk { action, file, source } => {
            let kind = io::Error::from_raw_os_error(source.code).kind();
            let text = format!("{action} failed: {}", io::Error::from_raw_os_error(source.code));
            DirectoryError::Unusable {
                path: data_dir.join(file),
                source: io::Error::new(kind, text),
            }
        }
    }
}

/// The directory of a shard.
#[must_use]
pub(crate) fn shard_directory(shard: ShardIndex) -> FileName {
    FileName::new(format!("shard-{shard:02}"))
}

/// The directories that the shards of any store have.
#[must_use]
pub(crate) fn all_shard_directories() -> Vec<FileName> {
    (0..SHARDS_MAX).map(shard_directory).collect()
}

fn serve<I: Io>(
    directory: DataDirectory,
    (config, secret): (&Config, Option<ClusterSecret>),
    durability: DurabilityFacts,
    make: impl Fn(DataDirectory, Spread) -> Result<I, RunError> + Copy + Send + 'static,
    on_event: &mut impl FnMut(RunEvent),
) -> Result<(), RunError> {
    let shared = directory.try_clone().map_err(RunError::driver)?;
    let mut io = make(directory, Spread::on_one_thread(1))?;
    let (wall_ms, monotonic_ns) = (io.now().1.0, io.now().0.0);
    let mut shards = Shards::new(&mut io, config, durability);
    let plan = shards.plan()?;
    let spread = spread_of(config, plan.shard_count())?;
    let mut crew = Crew::spawn(spread, &shared, (config, durability), make)?;
    // From now on only the drivers hold the directory.
    drop(shared);
    let opened = shards.open(&plan, spread, &mut crew)?;
    let Opened { stores, log_ms, reports } = opened;
    let terminated = shards.terminated;
    let mut happened = Vec::new();
    let client = listen(&mut io, (CLIENT_DOOR, "client"), config.client, &mut happened)?;
    let admin = match config.admin {
        Some(admin) => Some(listen(&mut io, (ADMIN_DOOR, "admin"), admin, &mut happened)?),
        None => None,
    };
    let facts = NodeFacts {
        node_id: plan.identity.node_id,
        driver: io.name(),
        durability,
        process_id: std::process::id(),
        data_dir: config.data_dir.display().to_string(),
        spread,
        client: Some(client),
        started_ms: wall_ms,
        resident_bytes: process::resident_bytes,
        disk_bytes_max: config.disk_bytes_max,
        damage_found: reports.iter().map(|report| report.damage.len() as u64).sum(),
        tail_uncertain_bytes: reports.iter().map(|report| report.tail_uncertain_bytes).sum(),
    };
    let names = config.seed_names();
    let times = (log_ms, wall_ms, monotonic_ns);
    let post = begin_service((&crew, &mut io), &facts, times, !names.is_empty())?;
    let own_box = post.outboxes[0].clone();
    let deliver = move |seeds| own_box.send(Mail::Seeds(seeds));
    let _resolver = Resolver::spawn(names, deliver);
    let (clock, mut keyspace) = crew::begin((log_ms, wall_ms, monotonic_ns), spread, stores);
    let mut door = Door::new(config.limits.clone(), config.requirepass.clone(), facts);
    door.set_snapshots(known_snapshots(config));
    let own = plan.identity.node_id;
    let part = peer_part(&mut io, &mut keyspace, (config, secret), own, &mut happened)?;
    let (peer, node_id) = part.as_ref().map(|part| (part.address, part.node_id)).unzip();
    let (node_id, driver) = (node_id.unwrap_or(own), io.name());
    if let Some(part) = &part {
        door.set_peer_commands(part.commands);
    }
    on_event(RunEvent::Ready { client, peer, admin, node_id });
    let Spread { shard_count: shards, thread_count: threads, .. } = spread;
    let peer = peer.map_or_else(|| "-".to_owned(), |peer| peer.to_string());
    tracing::info!(%client, %peer, driver, shards, threads, "ready");
    let mut event_loop = EventLoop::new(io, (keyspace, door), clock, post, happened);
    if let Some(part) = part {
        event_loop.set_peer(part.side);
    }
    if admin.is_some() {
        event_loop.open_admin_door();
    }
    if terminated {
        event_loop.stop();
    }
    event_loop.run(|| on_event(RunEvent::Stopping)).map_err(RunError::driver)?;
    crew.join()?;
    tracing::info!("stopped");
    Ok(())
}

/// What a node that is something to other nodes has besides.
struct PeerPart {
    side: Box<dyn PeerSide>,
    /// Of the peer door.
    address: SocketAddr,
    node_id: [u8; 20],
    commands: PeerCommands,
}

/// Opens the peer door, if the node has one, and makes what stands behind it. `own` is the id of a
/// node that has no other one.
fn peer_part<I: Io>(
    io: &mut I,
    keyspace: &mut Keyspace,
    (config, secret): (&Config, Option<ClusterSecret>),
    own: [u8; 20],
    happened: &mut Vec<Completion>,
) -> Result<Option<PeerPart>, RunError> {
    if config.mode == Mode::Mainline {
        let started = peer_side::start(io, keyspace, config, happened);
        let side = started.map_err(|error| match error {
            StartError::Bind { address, source } => {
                RunError::Bind { door: "peer", address, source }
            }
            StartError::Driver(error) => RunError::driver(error),
        })?;
        let (address, node_id) = (side.address(), side.id());
        let commands = MainlineSide::COMMANDS;
        return Ok(Some(PeerPart { side: Box::new(side), address, node_id, commands }));
    }
    let Some(wanted) = config.cluster_door() else { return Ok(None) };
    let address = peer_door::open(io, wanted, happened)?;
    let side = peer_door::cluster_side(io.now().0, config, own, address, secret);
    let commands: PeerCommands = side::answerer;
    Ok(Some(PeerPart { side: Box::new(side), address, node_id: own, commands }))
}

/// How the shards are spread over threads: as asked, or one for each core, if there are as many
/// shards.
fn spread_of(config: &Config, shard_count: u16) -> Result<Spread, RunError> {
    // The peer side lives on one thread, and has no way to the shards of others yet.
    let is_alone = config.cluster_door().is_none();
    let thread_count = match config.threads {
        None if config.mode == Mode::Mainline => 1,
        None if !is_alone => 1,
        None => process::cores().min(shard_count),
        Some(asked) if asked <= shard_count => asked,
        Some(asked) => {
            let path = config.data_dir.clone();
            return Err(RunError::ThreadCount { path, shards: shard_count, asked });
        }
    };
    Ok(Spread { shard_count, thread_count, thread: 0 })
}

/// Makes the mailboxes of all threads and has the crew serve. Returns the first thread's post,
/// whose mail ends the driver's wait if there are other threads, or `has_mail` says so.
fn begin_service<I: Io>(
    (crew, io): (&Crew, &mut I),
    facts: &NodeFacts,
    (log_ms, wall_ms, monotonic_ns): (u64, u64, u64),
    has_mail: bool,
) -> Result<Post, RunError> {
    let spread = facts.spread;
    let (mut outboxes, mut ends) = (Vec::new(), Vec::new());
    for _ in 0..spread.thread_count {
        let (outbox, inbox, socket) = mailbox().map_err(RunError::driver)?;
        outboxes.push(outbox);
        ends.push(Some((inbox, socket)));
    }
    let mut posts = ends.into_iter().flatten().map(|(inbox, socket)| Post {
        outboxes: outboxes.clone(),
        inbox,
        wake_socket: Some(socket),
    });
    let mut own = posts.next().expect("a node has at least one thread");
    for (post, thread) in posts.zip(1..) {
        let facts = NodeFacts { spread: Spread { thread, ..spread }, ..facts.clone() };
        let started = (wall_ms, monotonic_ns);
        crew.serve(thread, Service { facts, log_ms, started, post });
    }
    if let Some(socket) = own.wake_socket.take()
        && (spread.thread_count > 1 || has_mail)
    {
        io.submit(Request::Watch(socket));
    }
    Ok(own)
}

/// The snapshots that are there; one that cannot be used is told of.
fn known_snapshots(config: &Config) -> Vec<SnapshotFacts> {
    let listed = at_rest::list(&config.data_dir.join(SNAPSHOTS_DIRECTORY));
    let listed = listed.unwrap_or_else(|error| vec![Err(error)]);
    let known = listed.iter().filter_map(|snapshot| match snapshot {
        Ok(catalog) => Some(SnapshotFacts::from(catalog)),
        Err(error) => {
            tracing::warn!(%error, "a snapshot cannot be used");
            None
        }
    });
    known.collect()
}

/// Opens a door. Clients may already connect meanwhile: what else happens goes to `happened`, for
/// the loop.
fn listen<I: Io>(
    io: &mut I,
    (listener, door): (ListenerId, &'static str),
    address: SocketAddr,
    happened: &mut Vec<Completion>,
) -> Result<SocketAddr, RunError> {
    io.submit(Request::Listen(listener, address));
    loop {
        io.wait(None, happened).map_err(RunError::driver)?;
        let found = happened
            .iter()
            .position(|one| matches!(one, Completion::Listening(bound, _) if *bound == listener));
        if let Some(Completion::Listening(_, result)) = found.map(|index| happened.remove(index)) {
            return result.map_err(|source| RunError::Bind { door, address, source });
        }
    }
}

pub(crate) struct Shards<'a, I: Io> {
    io: &'a mut I,
    config: &'a Config,
    durability: DurabilityFacts,
    terminated: bool,
}

/// What is known of a data directory before its shards are opened.
#[derive(Debug)]
pub(crate) struct Plan {
    identity: Identity,
    /// Whether shard 0 is there, and so the store is.
    is_whole: bool,
    limits: StoreLimits,
}

impl Plan {
    pub(crate) fn shard_count(&self) -> u16 {
        self.identity.shard_count
    }
}

/// Open shards.
#[derive(Debug)]
pub(crate) struct Opened {
    /// Those of the first thread, in order.
    pub(crate) stores: Vec<Store>,
    /// The newest time in any log, in milliseconds since 1970.
    pub(crate) log_ms: u64,
    /// What opening all shards of the node found.
    pub(crate) reports: Vec<RecoveryReport>,
}

impl<'a, I: Io> Shards<'a, I> {
    pub(crate) fn new(io: &'a mut I, config: &'a Config, durability: DurabilityFacts) -> Self {
        Self { io, config, durability, terminated: false }
    }

    /// Finds out whose the data directory is, or whose it is to be.
    pub(crate) fn plan(&mut self) -> Result<Plan, RunError> {
        let known = self.identify()?;
        let identity = known.map_or_else(|| self.draw_identity(), |(_, identity)| identity);
        if let Some(asked) = self.config.shards.filter(|asked| *asked != identity.shard_count) {
            let (path, stored) = (self.config.data_dir.clone(), identity.shard_count);
            return Err(RunError::ShardCount { path, stored, asked });
        }
        let limits = limits_of(self.config, identity.shard_count)?;
        Ok(Plan { identity, is_whole: known.is_some_and(|(shard, _)| shard == 0), limits })
    }

    /// Opens all shards, each on its thread, or makes them: shard 0 last, because a store is there
    /// once that is.
    pub(crate) fn open(
        &mut self,
        plan: &Plan,
        spread: Spread,
        crew: &mut Crew,
    ) -> Result<Opened, RunError> {
        let &Plan { identity, limits, .. } = plan;
        let shards = (0..spread.shard_count).map(|shard| Identity { shard, ..identity });
        let mut opened = Opened { stores: Vec::new(), log_ms: 0, reports: Vec::new() };
        if plan.is_whole {
            let opening = Opening { shards: shards.collect(), must_exist: true, limits };
            self.open_together(&opening, spread, crew, &mut opened)?;
            return Ok(opened);
        }
        // Without shard 0, but with records, it is shard 0 that was lost.
        let mut must_exist = false;
        for shard in shards.rev() {
            let opening = Opening { shards: vec![shard], must_exist, limits };
            self.open_together(&opening, spread, crew, &mut opened)?;
            must_exist |= opened.reports.last().is_some_and(|report| report.records > 0);
        }
        opened.stores.reverse();
        Ok(opened)
    }

    fn identify(&mut self) -> Result<Option<(ShardIndex, Identity)>, RunError> {
        let procedure = storage::identify(all_shard_directories());
        let (found, terminated) =
            run_procedure(self.io, DiskOwner(0), procedure).map_err(RunError::driver)?;
        self.terminated |= terminated;
        Ok(found.map_err(|error| explain_open(&self.config.data_dir, error))?)
    }

    fn draw_identity(&self) -> Identity {
        let shard_count = self.config.shards.unwrap_or_else(|| process::cores().min(SHARDS_MAX));
        let (store, mut node_id) = (process::random_bytes(), process::random_bytes());
        // Records do not hold the half of a version that all of a store's own share.
        node_id[..8].copy_from_slice(&own_half(&store));
        Identity { store, node_id, shard: 0, shard_count }
    }

    /// Opens shards on all their threads at the same time.
    fn open_together(
        &mut self,
        opening: &Opening,
        spread: Spread,
        crew: &Crew,
        all: &mut Opened,
    ) -> Result<(), RunError> {
        let of = |thread| {
            let is_its = |identity: &Identity| spread.thread_of(identity.shard) == thread;
            let shards = opening.shards.iter().copied().filter(is_its).collect();
            Opening { shards, ..opening.clone() }
        };
        let others = spread.others().map(|thread| (thread, of(thread)));
        let others: Vec<_> = others.filter(|(_, part)| !part.shards.is_empty()).collect();
        for (thread, part) in &others {
            crew.begin_opening(*thread, part.clone());
        }
        let own = of(spread.thread);
        let (opened, terminated) = open_shards(self.io, (self.config, self.durability), &own)?;
        self.terminated |= terminated;
        let mut found = Vec::new();
        for (identity, opened) in own.shards.iter().zip(opened) {
            all.stores.push(opened.store);
            let (log_ms, report) = (opened.log_ms, opened.report);
            found.push(Found { shard: identity.shard, log_ms, report });
        }
        for (thread, _) in others {
            found.extend(crew.end_opening(thread)?);
        }
        found.sort_by_key(|found| found.shard);
        for Found { shard, log_ms, report } in found {
            log_report(shard, &report);
            all.log_ms = all.log_ms.max(log_ms);
            all.reports.push(report);
        }
        Ok(())
    }
}

/// Opens shards side by side: while one waits for the disk, others go on. Also tells whether the
/// node was told to stop meanwhile.
pub(crate) fn open_shards<I: Io>(
    io: &mut I,
    (config, durability): (&Config, DurabilityFacts),
    opening: &Opening,
) -> Result<(Vec<storage::Opened>, bool), RunError> {
    let now_ms = io.now().1.0;
    let open = |identity: &Identity| {
        let options = StoreOptions {
            directory: shard_directory(identity.shard),
            identity: *identity,
            must_exist: opening.must_exist,
            segment_bytes: config.segment_bytes,
            cache_bytes: config.cache_bytes / usize::from(identity.shard_count),
            limits: opening.limits,
            log: commit_limits_of(durability),
            buffers: io.buffers(),
            checkpoints: CheckpointOptions {
                log_bytes_min: config.checkpoint_bytes,
                ..CheckpointOptions::default()
            },
            footers: true,
        };
        (DiskOwner(identity.shard), storage::open(options, now_ms))
    };
    let procedures = opening.shards.iter().map(open).collect();
    let (opened, terminated) = run_procedures(io, procedures).map_err(RunError::driver)?;
    let opened = opened.into_iter().map(|opened| {
        opened.map_err(|error| RunError::from(explain_open(&config.data_dir, error)))
    });
    Ok((opened.collect::<Result<_, _>>()?, terminated))
}

/// A shard's part of what the node may take of the disk.
fn limits_of(config: &Config, shards: u16) -> Result<StoreLimits, RunError> {
    let given = config.disk_bytes_max;
    let needed =
        StoreLimits::DISK_SEGMENTS_MIN.saturating_mul(config.segment_bytes) * u64::from(shards);
    if given > 0 && given < needed {
        return Err(RunError::DiskLimit { given, needed, shards });
    }
    Ok(StoreLimits {
        disk_bytes_max: (given > 0).then(|| given / u64::from(shards)),
        scrub_bytes_per_second: config.scrub_bytes_per_second.div_ceil(u64::from(shards)),
        overwriter_bytes_max: StoreLimits::OVERWRITER_BYTES,
        live_segments_min: StoreLimits::LIVE_SEGMENTS_MIN,
        expired_stay_ms: peer_door::expired_stay_ms(config),
    })
}

/// The limits and promises of a shard's log.
fn commit_limits_of(durability: DurabilityFacts) -> GroupCommitLimits {
    let sync_method = match durability.method {
        device::SyncMethod::Dsync => SyncMethod::Dsync,
        device::SyncMethod::Sync => SyncMethod::SyncPerBatch,
    };
    let durability = match durability.mode {
        DurabilityMode::Always => CommitDurability::Always,
        DurabilityMode::Interval => CommitDurability::Interval { ms: SYNC_INTERVAL_MS },
        DurabilityMode::Os => CommitDurability::Os,
    };
    GroupCommitLimits { sync_method, durability, ..GroupCommitLimits::default() }
}

fn log_report(shard: ShardIndex, report: &RecoveryReport) {
    for damage in &report.damage {
        tracing::error!(
            shard,
            file = %damage.file,
            offset = damage.offset,
            len = damage.len,
            reason = %damage.reason,
            "damage found"
        );
    }
    if report.suspect {
        tracing::error!(
            shard,
            "acknowledged records are lost; unknown keys answer errors until the loss is accepted \
             with kadring check --repair"
        );
    }
    if report.tail_uncertain_bytes > 0 {
        let bytes = report.tail_uncertain_bytes;
        tracing::warn!(
            shard,
            bytes,
            "torn or damaged tail given up; no acknowledged write is known to have been in it"
        );
    }
    let (records, keys, segments) = (report.records, report.keys, report.segments);
    tracing::info!(shard, segments, records, keys, "shard recovered");
}
