//! What the drivers ask of TCP sockets: how to listen, and how a connected one is set up.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{
    self, AddressFamily, Shutdown, SocketFlags, SocketType, getpeername, getsockname, sockopt,
};

use super::{Monotonic, clock};

/// How long an address in use is tried again: the ring of a killed process frees its port late.
pub(crate) const LISTEN_RETRY_MS: u64 = 2000;

/// Pause between two tries.
pub(crate) const LISTEN_PAUSE_MS: u64 = 20;

/// Pause in accepting when the process or the system has run out of file descriptors.
pub(crate) const ACCEPT_PAUSE_MS: u64 = 100;

/// Connections the kernel holds ready for accepting (it caps this at `net.core.somaxconn`).
const BACKLOG: i32 = 4096;

/// Size of a receive buffer in bytes: dozens of small pipelined requests fit, and all of them
/// together stay small beside the store's own memory.
pub(crate) const RECEIVE_BUFFER_BYTES: usize = 16 * 1024;

/// Receive buffers of a driver, lent and free: the bound on memory that received bytes can hold.
pub(crate) const RECEIVE_BUFFERS: u16 = 256;

/// What a try to listen led to.
pub(crate) enum Listen {
    /// The socket listens on this address.
    Ready(OwnedFd, SocketAddr),
    /// The address is in use, but may be free a little later.
    Again,
    /// It will not work.
    Failed(io::Error),
}

/// Tries to listen on `address`; one in use is worth another try until `give_up`.
pub(crate) fn listen(address: SocketAddr, flags: SocketFlags, give_up: Monotonic) -> Listen {
    tried(try_listen(address, flags), give_up)
}

/// What a try to get a socket led to; an address in use is worth another try until `give_up`.
pub(crate) fn tried(result: io::Result<(OwnedFd, SocketAddr)>, give_up: Monotonic) -> Listen {
    match result {
        Ok((socket, bound)) => Listen::Ready(socket, bound),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse && clock::monotonic() < give_up => {
            Listen::Again
        }
        Err(error) => Listen::Failed(error),
    }
}

fn try_listen(address: SocketAddr, flags: SocketFlags) -> io::Result<(OwnedFd, SocketAddr)> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = flags | SocketFlags::CLOEXEC;
    let socket = net::socket_with(family, SocketType::STREAM, flags, None)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    net::bind(&socket, &address)?;
    net::listen(&socket, BACKLOG)?;
    let bound = SocketAddr::try_from(getsockname(&socket)?)?;
    Ok((socket, bound))
}

/// Sets up an accepted socket and names its other end; fails if that end is gone already.
pub(crate) fn prepare_accepted(socket: impl AsFd) -> io::Result<SocketAddr> {
    sockopt::set_tcp_nodelay(&socket, true)?;
    let peer = getpeername(&socket)?.ok_or(io::ErrorKind::NotConnected)?;
    Ok(SocketAddr::try_from(peer)?)
}

/// A socket to connect to `address` with.
pub(crate) fn connecting(address: SocketAddr, flags: SocketFlags) -> io::Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = flags | SocketFlags::CLOEXEC;
    Ok(net::socket_with(family, SocketType::STREAM, flags, None)?)
}

/// Sets up a socket that has connected; fails if its other end is gone already.
pub(crate) fn prepare_connected(socket: impl AsFd) -> io::Result<()> {
    let peer = prepare_accepted(&socket)?;
    // A connection to a free port of this machine can meet itself.
    if SocketAddr::try_from(getsockname(&socket)?)? == peer {
        return Err(io::ErrorKind::ConnectionRefused.into());
    }
    Ok(())
}

/// What an attempt to connect answers whose time is over.
pub(crate) fn connect_timed_out() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "the other end has not answered in time")
}

/// Makes every receive and send that waits on the socket end.
pub(crate) fn interrupt(socket: impl AsFd) {
    // A socket whose other end has reset it is not connected any more; its calls end by themselves.
    if let Err(error) = net::shutdown(socket, Shutdown::Both)
        && error != Errno::NOTCONN
    {
        tracing::debug!(%error, "shutdown of a socket failed");
    }
}

/// Lets the close of a socket throw away what it has not sent.
pub(crate) fn forget_unsent(socket: impl AsFd) {
    if let Err(error) = sockopt::set_socket_linger(&socket, Some(Duration::ZERO)) {
        tracing::debug!(%error, "a socket is closed in the ordinary way");
    }
}

/// Whether accepting failed because descriptors or memory are short, so that only a pause helps.
pub(crate) fn is_exhaustion(errno: Errno) -> bool {
    matches!(errno, Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM)
}

/// What a receive or send answers that its own side has closed.
pub(crate) fn closed_here() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionAborted, "connection closed on this side")
}
