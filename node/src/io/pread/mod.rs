//! [`PreadIo`]: the driver of blocking disk calls on threads and readiness-driven sockets.
//!
//! The named baseline that every ring figure is compared with, and what runs where io_uring is
//! forbidden. The loop's thread owns all sockets; the disk threads own nothing: they carry out
//! jobs and send back what came of them, waking the loop through its poll.

mod datagrams;
mod disk;
mod network;

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use rustix::io::{Errno, ioctl_fionbio};

use self::datagrams::Datagrams;
use self::disk::Disk;
use self::network::Network;
use super::directory::DataDirectory;
use super::mailbox::WakeSocket;
use super::signals::Signals;
use super::slots::SlotKey;
use super::{
    Completion, DatagramStatistics, Io, ListenerId, Monotonic, ReceiveBuffer, Request, SocketId,
    WallClock, clock,
};

/// Tokens below those of connections, which are 2^32 and more.
const WAKER: Token = Token(0);
const SIGNALS: Token = Token(2);
const MAIL: Token = Token(3);
/// The token of the first listener and of the first UDP socket; there are up to 256 of each.
const LISTENERS: usize = 0x100;
const SOCKETS: usize = 0x200;

/// Events taken from the kernel at a time.
const EVENTS_MAX: usize = 1024;

/// Sizes of the driver.
#[derive(Clone, Copy, Debug)]
pub struct PreadOptions {
    /// Disk calls that run at a time.
    pub threads: usize,
    /// Whether SIGTERM and SIGINT become [`Completion::Terminate`].
    pub handle_signals: bool,
}

impl Default for PreadOptions {
    fn default() -> Self {
        Self { threads: 4, handle_signals: true }
    }
}

/// The driver without a ring.
#[derive(Debug)]
pub struct PreadIo {
    poll: Poll,
    events: Events,
    disk: Disk,
    network: Network,
    datagrams: Datagrams,
    signals: Option<Signals>,
    wake: Option<WakeSocket>,
    ready: Vec<Completion>,
}

impl PreadIo {
    /// Starts the disk threads.
    ///
    /// # Errors
    /// If the kernel gives no threads or descriptors.
    pub fn new(directory: DataDirectory, options: PreadOptions) -> io::Result<Self> {
        let poll = Poll::new()?;
        let waker = mio::Waker::new(poll.registry(), WAKER)?;
        let disk = Disk::start(Arc::new(directory), waker, options.threads)?;
        let signals = if options.handle_signals {
            let signals = Signals::install()?;
            ioctl_fionbio(&signals, true)?;
            let fd = signals.as_fd().as_raw_fd();
            poll.registry().register(&mut SourceFd(&fd), SIGNALS, Interest::READABLE)?;
            Some(signals)
        } else {
            None
        };
        Ok(Self {
            poll,
            events: Events::with_capacity(EVENTS_MAX),
            disk,
            network: Network::new(),
            datagrams: Datagrams::default(),
            signals,
            wake: None,
            ready: Vec::new(),
        })
    }

    /// The data directory.
    #[must_use]
    pub fn directory(&self) -> &DataDirectory {
        self.disk.directory()
    }

    /// Connections that are not closed yet.
    #[must_use]
    pub fn connections_open(&self) -> usize {
        self.network.connections_open()
    }

    fn turn(&mut self, deadline: Option<Monotonic>) -> io::Result<()> {
        let own = [self.network.next_deadline(), self.datagrams.next_deadline()];
        let deadline = own.into_iter().chain([deadline]).flatten().min();
        // The kernel counts in milliseconds: rounded up, or the last one would be spent polling.
        let timeout = deadline.map(clock::until).map(|time| {
            let millis = time.as_nanos().div_ceil(1_000_000);
            std::time::Duration::from_millis(u64::try_from(millis).unwrap_or(u64::MAX))
        });
        match self.poll.poll(&mut self.events, timeout) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(()),
            Err(error) => return Err(error),
        }
        let registry = self.poll.registry();
        for event in &self.events {
            match event.token() {
                WAKER => {}
                SIGNALS => read_all(self.signals.as_ref(), || {
                    self.ready.push(Completion::Terminate);
                }),
                MAIL => read_all(self.wake.as_ref(), || self.ready.push(Completion::Woken)),
                Token(number) if number < LISTENERS => {}
                Token(number) if number < SOCKETS => {
                    self.network.handle_acceptable(ListenerId(low_byte(number)));
                }
                Token(number) if number < SOCKETS + 0x100 => {
                    self.datagrams.handle_ready(SocketId(low_byte(number)), event);
                }
                Token(bits) => {
                    let key = SlotKey::from_bits(bits as u64);
                    self.network.handle_ready(key, event, registry, &mut self.ready);
                }
            }
        }
        self.network.handle_time(registry, &mut self.ready);
        self.datagrams.handle_time(registry, &mut self.ready);
        self.disk.take_done(&mut self.ready);
        Ok(())
    }
}

fn listener_token(id: ListenerId) -> Token {
    Token(LISTENERS + usize::from(id.0))
}

fn socket_token(id: SocketId) -> Token {
    Token(SOCKETS + usize::from(id.0))
}

fn low_byte(number: usize) -> u8 {
    u8::try_from(number & 0xff).expect("masked to 8 bits")
}

fn read_all(socket: Option<&impl AsFd>, mut heard: impl FnMut()) {
    let mut bytes = [0; 64];
    while let Some(socket) = socket {
        match rustix::io::read(socket, &mut bytes) {
            Ok(0) => return,
            Ok(_) => heard(),
            Err(Errno::INTR) => {}
            Err(_) => return,
        }
    }
}

impl Io for PreadIo {
    fn submit(&mut self, request: Request) {
        let registry = self.poll.registry();
        let ready = &mut self.ready;
        match request {
            Request::Disk(owner, request) => self.disk.submit(owner, request, ready),
            Request::Listen(listener, address) => {
                self.network.listen(listener, address, registry, ready);
            }
            Request::Connect { attempt, to, deadline } => {
                self.network.connect(attempt, to, deadline, registry, ready);
            }
            Request::CancelConnect(attempt) => {
                self.network.cancel_connect(attempt, registry, ready);
            }
            Request::Receive(connection) => self.network.receive(connection, None, ready),
            Request::ReceiveInto(connection, room) => {
                self.network.receive(connection, Some(room), ready);
            }
            Request::Send(connection, parts) => self.network.send(connection, parts, ready),
            Request::Close(connection) => self.network.close(connection, registry, ready),
            Request::StopListening(listener) => {
                self.network.stop_listening(listener, registry, ready);
            }
            Request::BindUdp { socket, address, bytes_max } => {
                self.datagrams.bind(socket, address, bytes_max, registry, ready);
            }
            Request::SendDatagram { socket, to, bytes } => self.datagrams.send(socket, to, bytes),
            Request::CloseUdp(socket) => self.datagrams.close(socket, registry, ready),
            Request::Detach(connection) => self.network.detach(connection, registry, ready),
            Request::Attach(listener, socket) => {
                self.network.attach(listener, socket, registry, ready);
            }
            Request::Ring(bell) => bell.ring(),
            Request::Watch(wake) => {
                let fd = wake.as_fd().as_raw_fd();
                let watched = ioctl_fionbio(&wake, true)
                    .map_err(io::Error::from)
                    .and_then(|()| registry.register(&mut SourceFd(&fd), MAIL, Interest::READABLE));
                if let Err(error) = watched {
                    tracing::error!(%error, "other threads are not heard");
                }
                self.wake = Some(wake);
            }
        }
    }

    fn wait(&mut self, deadline: Option<Monotonic>, done: &mut Vec<Completion>) -> io::Result<()> {
        let before = done.len();
        loop {
            done.append(&mut self.ready);
            let poll_only =
                done.len() > before || deadline.is_some_and(|at| clock::until(at).is_zero());
            self.turn(if poll_only { Some(Monotonic(0)) } else { deadline })?;
            done.append(&mut self.ready);
            if done.len() > before || poll_only {
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
        "pread"
    }

    fn datagram_statistics(&self) -> DatagramStatistics {
        self.datagrams.statistics()
    }
}

// Tokens carry the 64 bits of a slot's key.
const _: () = assert!(usize::BITS == 64);
