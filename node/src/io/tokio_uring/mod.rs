//! [`TokioUringIo`]: the driver on an ordinary io_uring runtime, tokio-uring.
//!
//! It checks the `uring` driver from outside, and shows what a runtime of that kind costs. Each
//! request is a task; a wait is one `block_on` that lasts until a task has left an event:
//!
//! ```text
//! submit(Request) -> Job ~~ wait: task -> the runtime's ring -> task -> Event ~~> Completion
//! ```
//!
//! The state of files and sockets belongs to the driver, which no task sees: tasks only own what
//! the kernel was told of. Two of the runtime's ways shape the rest. What a dropped operation
//! yields is lost, so no task is ever dropped before its end. And dropping the runtime frees the
//! memory of what is still under way, so the driver waits for all tasks first.
//!
//! All of it runs on the thread that made the driver.

mod buffers;
mod datagrams;
mod disk;
mod fixed;
mod lock;
mod network;
mod turns;

use std::io;
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;
use tokio_uring::Runtime;
use tokio_uring::buf::fixed::FixedBufRegistry;
use tokio_uring::net::UnixStream;
use wal::disk::BufferSource;

use self::datagrams::Datagrams;
use self::disk::Disk;
use self::fixed::FixedSlabs;
use self::lock::LockInRing;
use self::network::Network;
use self::turns::{Event, Turns, Until};
use super::directory::DataDirectory;
use super::disk_error::is_interruption;
use super::mailbox::WakeSocket;
use super::signals::Signals;
use super::uring::ProbeError;
use super::uring::arena::{Arena, ArenaBuffers};
use super::{
    BufferStatistics, Completion, DatagramStatistics, Io, Monotonic, ReceiveBuffer, Request,
    WallClock, clock,
};

/// Bytes of the buffer that is registered where the arena is not; see [`LockInRing`].
const ANCHOR_BYTES: usize = 64;
/// How long a dropped driver waits for its tasks to end.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(30);

/// Sizes of the runtime's ring.
#[derive(Clone, Copy, Debug)]
pub struct TokioUringOptions {
    /// Entries of the submission queue.
    pub entries: u32,
    /// Bytes of disk buffers registered with the ring; rounded up to 4 MiB, and 0 for none.
    pub buffer_bytes: usize,
    /// Whether SIGTERM and SIGINT become [`Completion::Terminate`].
    pub handle_signals: bool,
}

impl Default for TokioUringOptions {
    fn default() -> Self {
        Self { entries: 1024, buffer_bytes: 64 << 20, handle_signals: true }
    }
}

/// The driver on tokio-uring.
pub struct TokioUringIo {
    /// None, once it is dropped or had to be leaked.
    runtime: Option<Runtime>,
    turns: Rc<Turns>,
    disk: Disk,
    disk_jobs: Vec<disk::Job>,
    network: Network,
    datagrams: Datagrams,
    lock: Option<LockInRing>,
    signals: Option<(Signals, Rc<UnixStream>)>,
    wake: Option<Rc<UnixStream>>,
    ready: Vec<Completion>,
}

impl TokioUringIo {
    /// Makes the runtime. Only the calling thread may use it.
    ///
    /// # Errors
    /// If the kernel allows or offers no ring; the error names cause and remedy.
    pub fn new(directory: DataDirectory, options: TokioUringOptions) -> Result<Self, ProbeError> {
        let mut builder = tokio_uring::builder();
        let runtime =
            Runtime::new(builder.entries(options.entries)).map_err(ProbeError::explain)?;
        let arena = Arena::new(options.buffer_bytes).map_err(ProbeError::Other)?;
        let slabs = runtime.block_on(async { register(&arena) });
        let mut driver = Self {
            runtime: Some(runtime),
            turns: Rc::new(Turns::default()),
            disk: Disk::new(directory, slabs).map_err(ProbeError::Other)?,
            disk_jobs: Vec::new(),
            network: Network::new(),
            datagrams: Datagrams::default(),
            lock: None,
            signals: None,
            wake: None,
            ready: Vec::new(),
        };
        driver.register_lock();
        if options.handle_signals {
            driver.handle_signals().map_err(ProbeError::Other)?;
        }
        Ok(driver)
    }

    /// The data directory.
    #[must_use]
    pub fn directory(&self) -> &DataDirectory {
        &self.disk.directory
    }

    /// Connections that are not closed yet.
    #[must_use]
    pub fn connections_open(&self) -> usize {
        self.network.connections_open()
    }

    /// Requests that are under way, the driver's own included.
    #[must_use]
    pub fn tasks_running(&self) -> usize {
        self.turns.running()
    }

    /// Whether the kernel frees the directory's lock only after the ring's last request.
    #[must_use]
    pub fn keeps_lock_in_ring(&self) -> bool {
        self.lock.is_some()
    }

    fn register_lock(&mut self) {
        let anchor = match self.disk.slabs.anchor() {
            Some(anchor) => Ok(anchor),
            None => self.block_on(async || register_anchor()),
        };
        let lock = self.disk.directory.lock();
        match anchor.and_then(|anchor| Ok(LockInRing::register(lock, anchor)?)) {
            Ok(lock) => self.lock = Some(lock),
            Err(error) => {
                tracing::warn!(%error, "cannot register the lock file in the runtime's ring");
            }
        }
    }

    fn handle_signals(&mut self) -> io::Result<()> {
        let signals = Signals::install()?;
        let socket = StdUnixStream::from(signals.as_fd().try_clone_to_owned()?);
        let socket = Rc::new(UnixStream::from_std(socket));
        self.signals = Some((signals, Rc::clone(&socket)));
        let turns = Rc::clone(&self.turns);
        let heard = || Event::Terminate;
        self.block_on(async move || turns.spawn(hear(socket, Rc::clone(&turns), heard)));
        Ok(())
    }

    fn watch(&mut self, wake: &WakeSocket) {
        let socket = match wake.as_fd().try_clone_to_owned() {
            Ok(socket) => Rc::new(UnixStream::from_std(StdUnixStream::from(socket))),
            Err(error) => return tracing::error!(%error, "other threads are not heard"),
        };
        self.wake = Some(Rc::clone(&socket));
        let turns = Rc::clone(&self.turns);
        let heard = || Event::Woken;
        self.block_on(async move || turns.spawn(hear(socket, Rc::clone(&turns), heard)));
    }

    fn block_on<T>(&self, work: impl AsyncFnOnce() -> T) -> T {
        let runtime = self.runtime.as_ref().expect("the runtime lives as long as the driver");
        runtime.block_on(work())
    }

    /// Starts what was submitted, lets the tasks run, and handles what they leave.
    fn turn(&mut self, until: Until) {
        let disk_jobs = std::mem::take(&mut self.disk_jobs);
        let network_jobs = self.network.take_jobs();
        let datagram_jobs = self.datagrams.take_jobs();
        let turns = &self.turns;
        self.block_on(async move || {
            for job in disk_jobs {
                let turns_of_task = Rc::clone(turns);
                turns.spawn(async move {
                    let event = job.run().await;
                    turns_of_task.push(event);
                });
            }
            for job in network_jobs {
                turns.spawn(job.run(Rc::clone(turns)));
            }
            for job in datagram_jobs {
                turns.spawn(job.run(Rc::clone(turns)));
            }
            turns.over(until).await;
        });
        for event in self.turns.take_events() {
            self.handle(event);
        }
        self.network.handle_time(&mut self.ready);
        self.datagrams.handle_time(&mut self.ready);
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Disk { owner, completion, opened } => {
                if let Some(opened) = opened {
                    self.disk.insert(owner, opened);
                }
                self.ready.push(Completion::Disk(owner, completion));
            }
            Event::Network(event) => self.network.handle(event, &mut self.ready),
            Event::Datagram(event) => self.datagrams.handle(event, &mut self.ready),
            Event::Terminate => self.ready.push(Completion::Terminate),
            Event::Woken => self.ready.push(Completion::Woken),
        }
    }
}

fn register(arena: &Arc<Arena>) -> FixedSlabs {
    let (slabs, registered) = FixedSlabs::register(arena);
    if let Err(error) = registered
        && arena.slabs().next().is_some()
    {
        tracing::warn!(
            %error,
            "I/O buffers are not registered with the ring and cost a little more; raise the \
             limit of locked memory (ulimit -l, LimitMEMLOCK)"
        );
    }
    slabs
}

/// Registers a small buffer, and tells where it is.
fn register_anchor() -> io::Result<usize> {
    let anchor = vec![0_u8; ANCHOR_BYTES];
    let address = anchor.as_ptr().addr();
    // The runtime keeps it from now on.
    FixedBufRegistry::new([anchor]).register()?;
    Ok(address)
}

async fn hear(socket: Rc<UnixStream>, turns: Rc<Turns>, heard: impl Fn() -> Event) {
    let mut buffer = vec![0; 64];
    loop {
        let (result, back) = socket.read(buffer).await;
        buffer = back;
        match result {
            // The driver has shut the socket down.
            Ok(0) => return,
            Ok(_) => turns.push(heard()),
            Err(error) if Errno::from_io_error(&error).is_some_and(is_interruption) => {}
            Err(error) => {
                tracing::error!(%error, "signals or other threads are not heard any more");
                return;
            }
        }
    }
}

impl Io for TokioUringIo {
    fn submit(&mut self, request: Request) {
        let ready = &mut self.ready;
        match request {
            Request::Disk(owner, request) => match self.disk.job(owner, request) {
                Ok(job) => self.disk_jobs.push(job),
                Err((owner, completion)) => ready.push(Completion::Disk(owner, completion)),
            },
            Request::Listen(listener, address) => self.network.listen(listener, address, ready),
            Request::Connect { attempt, to, deadline } => {
                self.network.connect(attempt, to, deadline, ready);
            }
            Request::CancelConnect(attempt) => self.network.cancel_connect(attempt),
            Request::Receive(connection) => self.network.receive(connection),
            Request::ReceiveInto(connection, room) => self.network.receive_into(connection, room),
            Request::Send(connection, parts) => self.network.send(connection, parts),
            Request::Close(connection) => self.network.close(connection, ready),
            Request::StopListening(listener) => self.network.stop_listening(listener, ready),
            Request::BindUdp { socket, address, bytes_max } => {
                self.datagrams.bind(socket, address, bytes_max, ready);
            }
            Request::SendDatagram { socket, to, bytes } => self.datagrams.send(socket, to, bytes),
            Request::CloseUdp(socket) => self.datagrams.close(socket, ready),
            Request::Detach(connection) => self.network.detach(connection, ready),
            Request::Attach(listener, socket) => self.network.attach(listener, socket, ready),
            Request::Watch(wake) => self.watch(&wake),
            Request::Ring(bell) => bell.ring(),
        }
    }

    fn wait(&mut self, deadline: Option<Monotonic>, done: &mut Vec<Completion>) -> io::Result<()> {
        let before = done.len();
        loop {
            done.append(&mut self.ready);
            let passed = deadline.is_some_and(|at| clock::until(at).is_zero());
            let until = if done.len() > before || passed {
                Until::Polled
            } else {
                let own = [self.network.next_deadline(), self.datagrams.next_deadline()];
                let deadline = own.into_iter().chain([deadline]).flatten().min();
                Until::Event(deadline.map(clock::until))
            };
            self.turn(until);
            done.append(&mut self.ready);
            let passed = deadline.is_some_and(|at| clock::until(at).is_zero());
            if done.len() > before || passed {
                return Ok(());
            }
        }
    }

    fn release(&mut self, buffer: ReceiveBuffer) {
        match buffer.pool() {
            None => self.network.release(buffer),
            Some(pool) => self.datagrams.release(pool, buffer),
        }
    }

    fn now(&self) -> (Monotonic, WallClock) {
        clock::now()
    }

    fn name(&self) -> &'static str {
        "tokio-uring"
    }

    fn buffers(&self) -> Rc<dyn BufferSource> {
        ArenaBuffers::new(self.disk.slabs.arena())
    }

    fn buffer_statistics(&self) -> BufferStatistics {
        self.disk.slabs.statistics()
    }

    fn datagram_statistics(&self) -> DatagramStatistics {
        self.datagrams.statistics()
    }
}

impl Drop for TokioUringIo {
    fn drop(&mut self) {
        self.network.interrupt_all();
        self.datagrams.interrupt_all();
        let signals = self.signals.as_ref().map(|(_, socket)| socket);
        for socket in signals.into_iter().chain(&self.wake) {
            if let Err(error) = socket.shutdown(Shutdown::Both) {
                tracing::debug!(%error, "shutdown of a socket of the driver's own failed");
            }
        }
        let turns = &self.turns;
        let idle = self.block_on(async move || turns.idle(DRAIN_TIMEOUT).await);
        let lock = self.lock.take();
        if idle {
            if let Some(lock) = lock {
                lock.unregister();
            }
            self.runtime = None;
        } else {
            // The kernel may still write to what the tasks own: leaking it is the only safe way.
            tracing::error!("the kernel does not let go of its requests; their memory is lost");
            std::mem::forget(self.runtime.take());
        }
    }
}

impl std::fmt::Debug for TokioUringIo {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (tasks, connections) = (self.tasks_running(), self.connections_open());
        write!(f, "TokioUringIo({tasks} tasks, {connections} connections)")
    }
}
