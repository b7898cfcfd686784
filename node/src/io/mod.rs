//! The one seam between the cores and the kernel: [`Io`], its requests and its completions.
//!
//! A driver turns [`Request`]s into disk and network work and returns [`Completion`]s. Requests own
//! their buffers; the completion gives them back. Every request yields exactly one completion, also
//! when its connection closes, except:
//!
//! - [`Request::Listen`] and [`Request::BindUdp`]: after the first, one per accepted connection and
//!   one per datagram, until the listener or socket is closed;
//! - [`Request::Watch`]: one per ring;
//! - [`Request::SendDatagram`]: none. UDP may lose a datagram anyway, so what the kernel refuses or
//!   the driver has no room for is counted ([`DatagramStatistics`]), and the socket lives on;
//! - [`Request::CancelConnect`]: none but that of the attempt it ends;
//! - [`Request::Ring`]: none here, but a [`Completion::Woken`] where the bell is heard.
//!
//! Listeners, UDP sockets and attempts to connect are named by who asks for them, because there is
//! no other name for them before they exist. A name is free again after its last completion.
//! Connections, which come from both sides, are named by the driver.
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
use std::num::NonZeroU32;
use std::ops::{Deref, Range};
use std::os::fd::OwnedFd;
use std::rc::Rc;

use bytes::Bytes;
use wal::disk::{BufferSource, DiskCompletion, DiskRequest, HeapBuffers};

use self::mailbox::{Bell, WakeSocket};

mod clock;
mod datagrams;
pub mod device;
pub mod directory;
mod disk_error;
pub mod mailbox;
mod mapping;
pub mod notes;
pub mod pread;
pub mod process;
pub mod resolver;
mod room;
mod signals;
mod slots;
mod sockets;
#[cfg(test)]
mod tests;
pub mod tokio_uring;
pub mod uring;

pub use self::datagrams::{DATAGRAM_BUFFERS, DATAGRAM_BYTES_MAX, DatagramStatistics};
pub use self::room::ReceiveRoom;
pub(crate) use self::sockets::RECEIVE_BUFFER_BYTES;

/// Whose disk request it is: the shard's index, or a procedure's own number above all shards.
///
/// File ids and request ids are unique per owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DiskOwner(pub u16);

/// A connection, accepted or made; never used twice in a driver's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId(pub u64);

/// A listening TCP socket, named by who asks for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ListenerId(pub u8);

/// A UDP socket, named by who asks for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SocketId(pub u8);

/// An attempt to connect, named by who makes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AttemptId(pub u64);

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
    Listen(ListenerId, SocketAddr),
    /// Connects to the address: yields [`Completion::Connected`], with a connection like an
    /// accepted one, or with why there is none.
    Connect {
        /// Names the attempt; no other under way has this name.
        attempt: AttemptId,
        /// Where to.
        to: SocketAddr,
        /// When the attempt fails with [`io::ErrorKind::TimedOut`].
        deadline: Monotonic,
    },
    /// Ends an attempt to connect early: its [`Completion::Connected`] comes, with
    /// [`io::ErrorKind::ConnectionAborted`]. One that had ended already is not affected: its
    /// completion may still be on its way to the caller and bring a connection, to be closed.
    CancelConnect(AttemptId),
    /// Receives once from the connection, whatever has arrived: yields [`Completion::Received`].
    /// At most one at a time per connection. A driver may receive ahead of requests; whoever asks
    /// no more still bounds what it holds.
    Receive(ConnectionId),
    /// As [`Request::Receive`], but into memory that is lent and has room left: yields
    /// [`Completion::ReceivedInto`]. The two may alternate; at most one of them at a time.
    ReceiveInto(ConnectionId, ReceiveRoom),
    /// Sends all parts in order: yields [`Completion::Sent`]. At most one at a time per connection.
    Send(ConnectionId, Vec<Bytes>),
    /// Closes the connection: an outstanding receive or send ends (its completion comes first),
    /// then [`Completion::Closed`]. No other request may follow for this connection.
    Close(ConnectionId),
    /// Stops accepting and closes the listening socket: yields [`Completion::ListenerClosed`].
    StopListening(ListenerId),
    /// Binds a UDP socket: yields [`Completion::UdpBound`] once, then one [`Completion::Datagram`]
    /// per datagram. Retries an address in use for 2 s, as [`Request::Listen`] does. An IPv6 socket
    /// takes IPv6 only, so that there can be one for each family on one port.
    ///
    /// At most [`DATAGRAM_BUFFERS`] datagrams are lent at a time; further ones wait in the kernel,
    /// which drops what it has no room for.
    BindUdp {
        /// Names the socket; no other that is not closed has this name.
        socket: SocketId,
        /// Where to receive; the port may be 0.
        address: SocketAddr,
        /// The longest datagram wanted, at most [`DATAGRAM_BYTES_MAX`]. Longer ones are dropped and
        /// counted. [`DATAGRAM_BUFFERS`] buffers of this size belong to the socket.
        bytes_max: usize,
    },
    /// Sends one datagram. Yields no completion. Dropped and counted, where the socket is not bound
    /// or too much waits to be sent already.
    SendDatagram {
        /// From which socket.
        socket: SocketId,
        /// Where to.
        to: SocketAddr,
        /// What.
        bytes: Bytes,
    },
    /// Closes a UDP socket: yields [`Completion::UdpClosed`]. What waits to be sent may be lost.
    CloseUdp(SocketId),
    /// Gives up a connection that nothing has been requested for, so that another driver takes it:
    /// yields [`Completion::Detached`].
    Detach(ConnectionId),
    /// Takes a connection that another driver has given up, as if accepted by the listener: yields
    /// [`Completion::Accepted`], or [`Completion::NotAttached`].
    Attach(ListenerId, OwnedFd),
    /// Tells of mail from now on: yields [`Completion::Woken`] whenever somebody has rung.
    Watch(WakeSocket),
    /// Ends the wait of another thread, which has mail, before this one waits.
    Ring(Bell),
}

/// The end of a request, or an event the driver was told to watch for.
#[derive(Debug)]
pub enum Completion {
    /// Disk work has ended.
    Disk(DiskOwner, DiskCompletion),
    /// The listener's bound address (port 0 replaced), or why it could not listen.
    Listening(ListenerId, io::Result<SocketAddr>),
    /// A connection came in.
    Accepted {
        /// Through which listener.
        listener: ListenerId,
        /// Its name from now on.
        connection: ConnectionId,
        /// The address of its other end.
        peer: SocketAddr,
    },
    /// An attempt to connect has ended.
    Connected {
        /// Which.
        attempt: AttemptId,
        /// The connection's name from now on, or why there is none.
        result: io::Result<ConnectionId>,
    },
    /// Bytes arrived. An empty buffer means the peer has finished sending.
    Received {
        /// On which connection.
        connection: ConnectionId,
        /// What came, to be handed back with [`Io::release`]; or why nothing will come any more.
        result: io::Result<ReceiveBuffer>,
    },
    /// Bytes arrived in memory that was lent.
    ReceivedInto {
        /// On which connection.
        connection: ConnectionId,
        /// The memory, with what has come; also if nothing will come any more.
        room: ReceiveRoom,
        /// How many bytes came, none if the peer has finished sending; or why nothing will come.
        result: io::Result<usize>,
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
    ListenerClosed(ListenerId),
    /// The UDP socket's bound address (port 0 replaced), or why there is no socket.
    UdpBound(SocketId, io::Result<SocketAddr>),
    /// A datagram came.
    Datagram {
        /// To which socket.
        socket: SocketId,
        /// Where it says it comes from.
        from: SocketAddr,
        /// All of it, to be handed back with [`Io::release`].
        bytes: ReceiveBuffer,
    },
    /// The UDP socket is gone. Datagrams of it that are lent still have to be handed back.
    UdpClosed(SocketId),
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
    received: Range<usize>,
    slot: u16,
    pool: Option<NonZeroU32>,
}

impl ReceiveBuffer {
    /// Lends `storage`, of which the first `len` bytes were received, out of the driver's `slot`.
    #[must_use]
    pub fn new(storage: Box<[u8]>, len: usize, slot: u16) -> Self {
        assert!(len <= storage.len(), "a driver does not receive past its buffer");
        Self { storage, received: 0..len, slot, pool: None }
    }

    /// Lends a datagram that lies somewhere in `storage`, out of the `slot` of a socket's `pool`.
    #[must_use]
    pub fn of_datagram(
        storage: Box<[u8]>,
        received: Range<usize>,
        slot: u16,
        pool: NonZeroU32,
    ) -> Self {
        assert!(received.end <= storage.len(), "a driver does not receive past its buffer");
        Self { storage, received, slot, pool: Some(pool) }
    }

    /// Forgets the first `count` bytes, which were taken elsewhere.
    fn skip(&mut self, count: usize) {
        assert!(count <= self.received.len(), "no more is taken than was received");
        self.received.start += count;
    }

    /// Which UDP socket's buffer it is, by a number that no other socket of the driver has or had;
    /// none for a connection's.
    #[must_use]
    pub fn pool(&self) -> Option<NonZeroU32> {
        self.pool
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
        &self.storage[self.received.clone()]
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

    /// What became of datagrams. Asks the kernel: for INFO and metrics, not for every turn.
    fn datagram_statistics(&self) -> DatagramStatistics {
        DatagramStatistics::default()
    }

    /// What became of bytes sent; all zero, where the kernel copies them all.
    fn send_statistics(&self) -> SendStatistics {
        SendStatistics::default()
    }
}

/// What the kernel did with the bytes of sends, as far as the driver knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SendStatistics {
    /// Bytes that it copied.
    pub copied_bytes: u64,
    /// Bytes that nobody copied: the network card read them where they were.
    pub zero_copy_bytes: u64,
    /// Sends that asked for no copy and were copied.
    pub zero_copy_in_vain: u64,
    /// Sends that asked for no copy and were refused; they were repeated with one.
    pub zero_copy_refused: u64,
}

impl std::ops::AddAssign for SendStatistics {
    fn add_assign(&mut self, other: Self) {
        self.copied_bytes += other.copied_bytes;
        self.zero_copy_bytes += other.zero_copy_bytes;
        self.zero_copy_in_vain += other.zero_copy_in_vain;
        self.zero_copy_refused += other.zero_copy_refused;
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
