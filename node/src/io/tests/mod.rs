//! One suite for all real drivers, on the real kernel: a scratch directory and loopback sockets.
//!
//! A test is a function generic over [`Driver`]; [`on_all_drivers`] runs it on each. Where the
//! kernel forbids io_uring, the rings' part says so and passes.

#![expect(clippy::disallowed_types, reason = "plain sockets are the other end of what is tested")]

mod connect;
mod datagrams;
mod device;
mod directory;
mod disk;
mod fewest;
mod into;
mod mail;
mod network;
mod ring;
mod runtime;
mod zero_copy;

use std::collections::VecDeque;
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use wal::disk::{DiskCompletion, DiskOperation, DiskOutput, DiskRequest, RequestId};

use super::directory::{DataDirectory, DirectoryOptions};
use super::pread::{PreadIo, PreadOptions};
use super::tokio_uring::{TokioUringIo, TokioUringOptions};
use super::uring::{ProbeError, UringIo, UringOptions};
use super::{Completion, ConnectionId, DiskOwner, Io, ListenerId, Request};

/// Long enough that only a driver that has lost a completion takes longer.
const PATIENCE_MS: u64 = 30_000;

const OWNER: DiskOwner = DiskOwner(3);

const LISTENER: ListenerId = ListenerId(0);

/// How the suite makes a driver and looks into it.
trait Driver: Io + Sized {
    /// Whether the kernel may do its work while the thread is busy elsewhere.
    const RECEIVES_UNASKED: bool = false;

    fn open(directory: DataDirectory, handle_signals: bool) -> Option<Self>;
    /// Connections and requests the driver still knows of, those of a listener not counted.
    fn things_held(&self) -> usize;
}

impl Driver for UringIo {
    fn open(directory: DataDirectory, handle_signals: bool) -> Option<Self> {
        let buffer_bytes = 8 << 20;
        let options = UringOptions { handle_signals, buffer_bytes, ..UringOptions::default() };
        ring_or_excuse(directory, options)
    }

    fn things_held(&self) -> usize {
        // The accept is under way as long as the listener is there.
        self.connections_open() + self.slots_in_use().saturating_sub(1)
    }
}

impl Driver for PreadIo {
    fn open(directory: DataDirectory, handle_signals: bool) -> Option<Self> {
        let options = PreadOptions { handle_signals, ..PreadOptions::default() };
        Some(Self::new(directory, options).unwrap())
    }

    fn things_held(&self) -> usize {
        self.connections_open()
    }
}

impl Driver for TokioUringIo {
    fn open(directory: DataDirectory, handle_signals: bool) -> Option<Self> {
        let buffer_bytes = 8 << 20;
        let options =
            TokioUringOptions { handle_signals, buffer_bytes, ..TokioUringOptions::default() };
        driver_or_excuse(Self::new(directory, options))
    }

    fn things_held(&self) -> usize {
        // The accept is under way as long as the listener is there.
        self.connections_open() + self.tasks_running().saturating_sub(1)
    }
}

pub(super) fn ring_or_excuse(directory: DataDirectory, options: UringOptions) -> Option<UringIo> {
    driver_or_excuse(UringIo::new(directory, options))
}

fn driver_or_excuse<D>(driver: Result<D, ProbeError>) -> Option<D> {
    match driver {
        Ok(driver) => Some(driver),
        Err(
            error @ (ProbeError::Forbidden(_)
            | ProbeError::Missing(_)
            | ProbeError::SwitchedOff { .. }),
        ) => {
            eprintln!("SKIPPED, nothing was tested: {error}");
            None
        }
        Err(error) => panic!("{error}: {error:?}"),
    }
}

/// Makes a test of each generic function for each driver.
macro_rules! on_all_drivers {
    ($($name:ident),* $(,)?) => {
        mod on_uring {
            $(#[test] fn $name() { super::$name::<crate::io::uring::UringIo>(); })*
        }
        mod on_uring_with_the_fewest_abilities {
            $(#[test] fn $name() {
                super::$name::<crate::io::tests::fewest::FewestUringIo>();
            })*
        }
        mod on_tokio_uring {
            $(#[test] fn $name() {
                super::$name::<crate::io::tokio_uring::TokioUringIo>();
            })*
        }
        mod on_pread {
            $(#[test] fn $name() { super::$name::<crate::io::pread::PreadIo>(); })*
        }
    };
}
use on_all_drivers;

/// A directory of its own for a test, removed at its end.
pub(super) struct Scratch(PathBuf);

impl Scratch {
    pub(super) fn new() -> Self {
        Self::below(std::env::temp_dir())
    }

    fn below(parent: PathBuf) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = parent.join(format!("kadring-io-{}-{number}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }

    pub(super) fn open(&self) -> DataDirectory {
        let options = DirectoryOptions { lock_wait: Duration::ZERO, ..DirectoryOptions::default() };
        DataDirectory::open(&self.0.join("data"), options).unwrap()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A driver, and the completions it gave that nobody has asked for yet.
struct Rig<D> {
    io: D,
    pending: VecDeque<Completion>,
    next_id: u64,
    // Last: the driver closes its files first.
    _scratch: Scratch,
}

impl<D: Driver> Rig<D> {
    fn new() -> Option<Self> {
        Self::in_scratch(Scratch::new())
    }

    fn in_scratch(scratch: Scratch) -> Option<Self> {
        let io = D::open(scratch.open(), false)?;
        Some(Self::around(io, scratch))
    }

    fn around(io: D, scratch: Scratch) -> Self {
        Self { io, pending: VecDeque::new(), next_id: 0, _scratch: scratch }
    }

    /// Waits for the first completion that `pick` answers for; others are kept.
    fn expect<T>(&mut self, mut pick: impl FnMut(Completion) -> Result<T, Completion>) -> T {
        let deadline = self.io.now().0.plus_millis(PATIENCE_MS);
        let mut kept = VecDeque::new();
        loop {
            while let Some(completion) = self.pending.pop_front() {
                match pick(completion) {
                    Ok(found) => {
                        kept.append(&mut self.pending);
                        self.pending = kept;
                        return found;
                    }
                    Err(other) => kept.push_back(other),
                }
            }
            assert!(self.io.now().0 < deadline, "in vain; meanwhile came {kept:?}");
            let mut done = Vec::new();
            self.io.wait(Some(deadline), &mut done).unwrap();
            self.pending.extend(done);
        }
    }

    /// Lets the driver work without waiting, and answers how many completions came.
    fn poll(&mut self) -> usize {
        let mut done = Vec::new();
        self.io.wait(Some(super::Monotonic(0)), &mut done).unwrap();
        let count = done.len();
        self.pending.extend(done);
        count
    }

    /// Lets the driver end what it has cancelled by itself.
    fn settle(&mut self) {
        let deadline = self.io.now().0.plus_millis(PATIENCE_MS);
        while self.io.things_held() > 0 && self.io.now().0 < deadline {
            self.poll();
        }
    }

    fn start(&mut self, operation: DiskOperation) -> RequestId {
        let id = RequestId(self.next_id);
        self.next_id += 1;
        self.io.submit(Request::Disk(OWNER, DiskRequest { id, operation }));
        id
    }

    fn finish(&mut self, id: RequestId) -> DiskCompletion {
        self.expect(|completion| match completion {
            Completion::Disk(OWNER, completion) if completion.id == id => Ok(completion),
            other => Err(other),
        })
    }

    fn disk(&mut self, operation: DiskOperation) -> DiskCompletion {
        let id = self.start(operation);
        self.finish(id)
    }

    /// Carries out an operation that must work.
    fn must(&mut self, operation: DiskOperation) -> DiskOutput {
        self.disk(operation).result.unwrap()
    }

    fn listen(&mut self) -> SocketAddr {
        self.io.submit(Request::Listen(LISTENER, "127.0.0.1:0".parse().unwrap()));
        self.listening().unwrap()
    }

    fn listening(&mut self) -> std::io::Result<SocketAddr> {
        self.expect(|completion| match completion {
            Completion::Listening(LISTENER, result) => Ok(result),
            other => Err(other),
        })
    }

    fn accepted(&mut self) -> (ConnectionId, SocketAddr) {
        self.expect(|completion| match completion {
            Completion::Accepted { listener: LISTENER, connection, peer } => Ok((connection, peer)),
            other => Err(other),
        })
    }

    /// A connection, and its other end.
    fn connect(&mut self, address: SocketAddr) -> (ConnectionId, TcpStream) {
        let client = TcpStream::connect(address).unwrap();
        let (connection, peer) = self.accepted();
        assert_eq!(peer, client.local_addr().unwrap());
        (connection, client)
    }

    fn received(&mut self, id: ConnectionId) -> std::io::Result<Vec<u8>> {
        let result = self.expect(|completion| match completion {
            Completion::Received { connection, result } if connection == id => Ok(result),
            other => Err(other),
        });
        result.map(|buffer| {
            let bytes = buffer.to_vec();
            self.io.release(buffer);
            bytes
        })
    }

    fn sent(&mut self, id: ConnectionId) -> std::io::Result<()> {
        self.expect(|completion| match completion {
            Completion::Sent { connection, result } if connection == id => Ok(result),
            other => Err(other),
        })
    }

    fn closed(&mut self, id: ConnectionId) {
        self.expect(|completion| match completion {
            Completion::Closed(connection) if connection == id => Ok(()),
            other => Err(other),
        });
    }

    fn close(&mut self, id: ConnectionId) {
        self.io.submit(Request::Close(id));
        self.closed(id);
    }
}

on_all_drivers![
    past_deadline_polls,
    wait_without_events_lasts_until_its_deadline,
    completions_waiting_are_given_without_waiting,
    signal_becomes_terminate,
    wall_clock_and_monotonic_clock_run,
];

fn past_deadline_polls<D: Driver>() {
    let Some(mut rig) = Rig::<D>::new() else {
        return;
    };
    assert_eq!(rig.poll(), 0);
}

fn wait_without_events_lasts_until_its_deadline<D: Driver>() {
    let Some(mut rig) = Rig::<D>::new() else {
        return;
    };
    let deadline = rig.io.now().0.plus_millis(30);
    let mut done = Vec::new();
    rig.io.wait(Some(deadline), &mut done).unwrap();
    assert!(done.is_empty(), "{done:?}");
    assert!(rig.io.now().0 >= deadline);
}

fn completions_waiting_are_given_without_waiting<D: Driver>() {
    let Some(mut rig) = Rig::<D>::new() else {
        return;
    };
    // All drivers know this one at once, and nothing else will ever happen.
    rig.io.submit(Request::StopListening(LISTENER));
    let mut done = Vec::new();
    rig.io.wait(None, &mut done).unwrap();
    assert!(matches!(done[..], [Completion::ListenerClosed(LISTENER)]), "{done:?}");
}

fn signal_becomes_terminate<D: Driver>() {
    let scratch = Scratch::new();
    let Some(io) = D::open(scratch.open(), true) else {
        return;
    };
    let mut rig = Rig::around(io, scratch);
    for signal in [rustix::process::Signal::TERM, rustix::process::Signal::INT] {
        signal_hook::low_level::raise(signal.as_raw()).unwrap();
        rig.expect(|completion| match completion {
            Completion::Terminate => Ok(()),
            other => Err(other),
        });
    }
}

fn wall_clock_and_monotonic_clock_run<D: Driver>() {
    let Some(rig) = Rig::<D>::new() else { return };
    let (first, wall) = rig.io.now();
    assert!(rig.io.now().0 >= first);
    // 2020: the unit is milliseconds since 1970.
    assert!(wall.0 > 1_577_836_800_000, "{wall:?}");
    assert!(wall.0 < 1_577_836_800_000 * 10, "{wall:?}");
}
