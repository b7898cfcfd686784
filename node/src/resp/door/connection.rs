//! One client: its parser, its replies, and how its flow stands.

use std::net::SocketAddr;

use bytes::BytesMut;

use super::reply_queue::ReplyQueue;
use super::task::TaskId;
use crate::resp::frame::{Arguments, Parser};
use crate::resp::reply::{Protocol, push_decimal};

/// Where a connection is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Commands are executed.
    Open,
    /// No more commands; what is in the queue still goes out, then it is closed.
    Draining,
    /// Closed as far as we are concerned; the driver has been told.
    Closing,
}

/// Why a connection executes nothing for the moment.
#[derive(Debug)]
pub(super) enum Blocked {
    No,
    /// This command, encoded, must be tried again.
    Command(Vec<u8>),
    /// Commands behind this one of its own must see its effect.
    Task(TaskId),
    /// Too many of its replies are still to come.
    Replies,
}

/// A client's connection.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) number: u64,
    pub(super) peer: SocketAddr,
    pub(super) parser: Parser,
    pub(super) protocol: Protocol,
    pub(super) replies: ReplyQueue,
    pub(super) phase: Phase,
    pub(super) blocked: Blocked,
    pub(super) receiving: bool,
    /// Whether the present command was put together in the parser's buffer.
    pub(super) staged: bool,
    /// Whether the client has finished sending.
    pub(super) ended: bool,
    /// Bytes handed to the driver and not yet taken by the peer's side.
    pub(super) sending: usize,
    pub(super) authenticated: bool,
    pub(super) name: Vec<u8>,
    pub(super) library_name: Vec<u8>,
    pub(super) library_version: Vec<u8>,
    pub(super) last_command: &'static str,
    pub(super) created_ms: u64,
    pub(super) active_ms: u64,
    /// When its output last moved, in nanoseconds.
    pub(super) moved_ns: u64,
    pub(super) commands: u64,
}

impl Connection {
    /// Bytes of replies that it has not taken.
    pub(super) fn output_len(&self) -> usize {
        self.replies.len() + self.sending
    }

    pub(super) fn is_blocked(&self) -> bool {
        !matches!(self.blocked, Blocked::No)
    }
}

/// Encodes a command again, to be executed later.
pub(super) fn encode(arguments: &Arguments<'_>) -> Vec<u8> {
    let mut out = BytesMut::new();
    out.extend_from_slice(b"*");
    push_decimal(&mut out, i64::try_from(arguments.len()).unwrap_or(i64::MAX));
    out.extend_from_slice(b"\r\n");
    for argument in arguments.iter() {
        out.extend_from_slice(b"$");
        push_decimal(&mut out, i64::try_from(argument.len()).unwrap_or(i64::MAX));
        out.extend_from_slice(b"\r\n");
        out.extend_from_slice(argument);
        out.extend_from_slice(b"\r\n");
    }
    out.to_vec()
}
