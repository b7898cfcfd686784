//! [`Connection`]: one connection of the generator, with what it has asked and not been answered.

#![expect(clippy::disallowed_types, reason = "a load generator is a client with its own sockets")]

use super::bench_error::BenchError;
use super::outgoing::Outgoing;
use super::reply::{ReplyEvent, ReplyReader};
use super::workload::Operation;
use std::collections::VecDeque;
use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long to wait for a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A server that has answered nothing for this long has lost a command.
pub(super) const REPLY_TIMEOUT: Duration = Duration::from_secs(30);

/// The server under load.
#[derive(Clone, Debug)]
pub struct Target {
    /// Where it listens.
    pub address: SocketAddr,
    /// Its password, if it wants one.
    pub password: Option<String>,
}

/// An operation that has not been answered.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pending {
    pub(super) operation: Operation,
    /// When it was sent or, in an open loop, due.
    pub(super) since: Instant,
    /// Whether it counts.
    pub(super) counts: bool,
}

/// A connection; see the module.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) stream: TcpStream,
    pub(super) reader: ReplyReader,
    pub(super) outgoing: Outgoing,
    pub(super) pending: VecDeque<Pending>,
    /// Whether it waits in the line of connections that can take operations.
    pub(super) ready: bool,
    /// Whether it is watched for room in the socket.
    pub(super) writable_wanted: bool,
    /// Whether the value that is coming differs from what was stored.
    pub(super) differs: bool,
}

impl Connection {
    /// Connects, and passes the password.
    ///
    /// # Errors
    /// If the server cannot be reached, or refuses.
    pub(super) fn open(target: &Target, tail: &Arc<[u8]>) -> Result<Self, BenchError> {
        let unreachable = |source| {
            let address = target.address.to_string();
            BenchError::Unreachable { address, source }
        };
        let mut stream =
            TcpStream::connect_timeout(&target.address, CONNECT_TIMEOUT).map_err(unreachable)?;
        stream.set_nodelay(true)?;
        if let Some(password) = &target.password {
            authenticate(&mut stream, password)?;
        }
        stream.set_nonblocking(true)?;
        Ok(Self {
            stream,
            reader: ReplyReader::default(),
            outgoing: Outgoing::new(Arc::clone(tail)),
            pending: VecDeque::new(),
            ready: true,
            writable_wanted: false,
            differs: false,
        })
    }

    /// Writes what the socket takes.
    ///
    /// # Errors
    /// If the connection is lost.
    pub(super) fn send(&mut self) -> io::Result<()> {
        self.outgoing.write_to(&mut self.stream)
    }
}

fn authenticate(stream: &mut TcpStream, password: &str) -> Result<(), BenchError> {
    stream.set_read_timeout(Some(REPLY_TIMEOUT))?;
    stream.set_write_timeout(Some(REPLY_TIMEOUT))?;
    let request = format!("*2\r\n$4\r\nAUTH\r\n${}\r\n{password}\r\n", password.len());
    stream.write_all(request.as_bytes())?;
    let mut reader = ReplyReader::default();
    let mut byte = [0];
    loop {
        // Byte by byte: nothing may be read that belongs to the next reply.
        stream.read_exact(&mut byte)?;
        match reader.next(&mut &byte[..])? {
            ReplyEvent::More => {}
            ReplyEvent::Error(text) => return Err(BenchError::Password { text }),
            _ => return Ok(()),
        }
    }
}
