//! The one seam between the cores and the kernel: [`Io`], its requests and its completions.
//!
//! A driver turns [`Request`]s into disk and network work and returns [`Completion`]s. Requests own
//! their buffers; the completion gives them back. Every request yields exactly one completion, also
//! on shutdown and when its connection closes, except [`Request::Listen`] (one per accepted
//! connection, after the first) and [`Request::Watch`] (one per ring).
//!
//! | driver | disk | network |
//! |---|---|---|
//! | [`uring`] | the ring | the same ring |
//! | [`tokio_uring`] | a runtime's ring, one task per request | the same ring |
//! | [`pread`] | blocking calls on threads | readiness (epoll) on the loop's thread |
//! | simulated disk (crate `tests`) | in memory, with faults | none yet |
//!
//! This folder is the only place that calls the kernel, reads clocks or holds `unsafe` code.

use std::io;
use std::net::SocketAddr;
use std::ops::Deref;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use bytes::Bytes;
use wal::disk::{BufferSource, DiskCompletion, DiskRequest, HeapBuffers};

use self::mailbox::WakeSocket;

mod clock;
pub mod device;
pub mod directory;
mod disk_error;
pub mod mailbox;
mod mapping;
pub mod pread;
pub mod process;
mod signals;
mod slots;
mod sockets;
#[cfg(test)]
mod tests;
pub mod tokio_uring;
pub mod uring;

/// Whose disk request it is: the shard's index, or a procedure's own number above all shards.
///
/// File ids and request ids are unique per owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DiskOwner(pub u16);

/// An accepted connection; never used twice in a driver's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId(pub u64);

/// Nanoseconds on a clock that never goes back, from an arbitrary start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Monotonic(pub u64);

impl Monotonic {
    /// Returns the time `millis` milliseconds later.
    #[must_use]
    pub fn plus_millis(self, millis: u64) -> Self {
        Self(self.0.saturating_add(millis.saturating_mul(1_000_000)))
    }
}

/// Milliseconds since 1970 by the operator's clock, which may be stepped either way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WallClock(pub u64);

/// Work for a driver.
#[derive(Debug)]
pub enum Request {
    /// Disk work of one of the cores.
    Disk(DiskOwner, DiskRequest),
    /// Starts accepting on the address; yields [`Completion::Listening`] once, then one
    /// [`Completion::Accepted`] per connection. Retries an address in use for 2 s: the ring of a
    /// killed process frees its port late.
    Listen(SocketAddr),
    /// Receives once from the connection, whatever has arrived: yields [`Completion::Received`].
    /// At most one at a time per connection.
    Receive(ConnectionId),
    /// Sends all parts in order: yields [`Completion::Sent`]. At most one at a time per connection.
    Send(ConnectionId, Vec<Bytes>),
    /// Closes the connection: an outstanding receive or send ends (its completion comes first),
    /// then [`Completion::Closed`]. No other request may follow for this connection.
    Close(ConnectionId),
    /// Stops accepting and closes the listening socket: yields [`Completion::ListenerClosed`].
    StopListening,
    /// Gives up a connection that nothing has been requested for, so that another driver takes it:
    /// yields [`Completion::Detached`].
    Detach(ConnectionId),
    /// Takes a connection that another driver has given up: yields [`Completion::Accepted`], or
    /// [`Completion::NotAttached`].
    Attach(OwnedFd),
    /// Tells of mail from now on: yields [`Completion::Woken`] whenever somebody has rung.
    Watch(WakeSocket),
}

/// The end of a request, or an event the driver was told to watch for.
#[derive(Debug)]
pub enum Completion {
    /// Disk work has ended.
    Disk(DiskOwner, DiskCompletion),
    /// The listener's bound address (port 0 replaced), or why it could not listen.
    Listening(io::Result<SocketAddr>),
    /// A connection came in.
    Accepted {
        /// Its name from now on.
        connection: ConnectionId,
        /// The address of its other end.
        peer: SocketAddr,
    },
    /// Bytes arrived. An empty buffer means the peer has finished sending.
    Received {
        /// On which connection.
        connection: ConnectionId,
        /// What came, to be handed back with [`Io::release`]; or why nothing will come any more.
        result: io::Result<ReceiveBuffer>,
    },
    /// All parts have been handed to the kernel, or not all could be.
    Sent {
        /// On which connection.
        connection: ConnectionId,
        /// Why the connection is of no more use, if so.
        result: io::Result<()>,
    },
    /// The connection is gone.
    Closed(ConnectionId),
    /// The listener is gone.
    ListenerClosed,
    /// The connection is this driver's no more.
    Detached {
        /// What it was called here.
        connection: ConnectionId,
        /// The connection itself.
        socket: OwnedFd,
    },
    /// The connection to take over was gone already.
    NotAttached,
    /// There may be mail.
    Woken,
    /// SIGTERM or SIGINT came.
    Terminate,
}

/// Received bytes in memory lent by the driver.
#[derive(Debug)]
pub struct ReceiveBuffer {
    storage: Box<[u8]>,
    len: usize,
    slot: u16,
}

impl ReceiveBuffer {
    /// Lends `storage`, of which the first `len` bytes were received, out of the driver's `slot`.
    #[must_use]
    pub fn new(storage: Box<[u8]>, len: usize, slot: u16) -> Self {
        assert!(len <= storage.len(), "a driver does not receive past its buffer");
        Self { storage, len, slot }
    }

    /// Takes the memory back, with the slot it belongs to.
    #[must_use]
    pub fn into_parts(self) -> (Box<[u8]>, u16) {
        (self.storage, self.slot)
    }
}

impl Deref for ReceiveBuffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.storage[..self.len]
    }
}

/// A driver: the only thing that touches the kernel.
///
/// One driver belongs to one thread. The contract is the module's.
pub trait Io {
    /// Takes a request. It may start at once or at the next [`Io::wait`].
    ///
    /// There is no "full": each core bounds what it has in flight, and a driver queues what the
    /// kernel cannot take yet.
    fn submit(&mut self, request: Request);

    /// Starts what was submitted and appends at least one completion to `done`, or waits until
    /// `deadline` (for ever, if there is none) for one. A deadline in the past polls.
    ///
    /// # Errors
    /// Only what makes the driver itself unusable.
    fn wait(&mut self, deadline: Option<Monotonic>, done: &mut Vec<Completion>) -> io::Result<()>;

    /// Gives a receive buffer back.
    fn release(&mut self, buffer: ReceiveBuffer);

    /// Reads the clocks.
    fn now(&self) -> (Monotonic, WallClock);

    /// Names the driver, as `--io` and INFO do.
    fn name(&self) -> &'static str;

    /// Where the cores on this thread get their disk buffers: memory the driver likes best.
    /// The buffers, and the source itself, may outlive the driver.
    fn buffers(&self) -> Rc<dyn BufferSource> {
        Rc::new(HeapBuffers)
    }

    /// How the source of buffers has been used; all zero, where it is the heap.
    fn buffer_statistics(&self) -> BufferStatistics {
        BufferStatistics::default()
    }
}

impl std::ops::AddAssign for BufferStatistics {
    fn add_assign(&mut self, other: Self) {
        self.arena_bytes += other.arena_bytes;
        self.arena_bytes_free += other.arena_bytes_free;
        self.registered |= other.registered;
        self.taken += other.taken;
        self.fallen_back += other.fallen_back;
        self.operations += other.operations;
    }
}

/// What became of the buffers that [`Io::buffers`] has given.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BufferStatistics {
    /// Bytes the driver keeps for buffers.
    pub arena_bytes: u64,
    /// Bytes of them that nobody uses now.
    pub arena_bytes_free: u64,
    /// Whether the kernel knows them in advance, and so does not pin them for each operation.
    pub registered: bool,
    /// Buffers that came from there.
    pub taken: u64,
    /// Buffers that came from the heap, because the arena had no room for them.
    pub fallen_back: u64,
    /// Disk reads and writes on registered memory.
    pub operations: u64,
}
