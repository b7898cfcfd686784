//! One client: its parser, its replies, and how its flow stands.

use std::collections::VecDeque;
use std::net::SocketAddr;

use bytes::BytesMut;

use super::activity::CommandKind;
use super::relay::{Origin, Relayed, Untaken};
use super::reply_queue::{IDLE_CAPACITY_MAX, ReplyQueue};
use super::task::TaskId;
use crate::resp::frame::{Arguments, OwnArgument, Parser};
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
    /// This command, encoded, must be tried when other threads have nothing left to answer.
    Relays(Vec<u8>),
    /// Commands behind this one must see the effect of its part here.
    Gather(u64),
}

/// A client's connection.
#[derive(Debug)]
pub(super) struct Connection {
    /// Set for the shadow of another thread's connection, which has no client of its own here.
    pub(super) origin: Option<Origin>,
    pub(super) number: u64,
    pub(super) peer: SocketAddr,
    pub(super) parser: Parser,
    pub(super) protocol: Protocol,
    pub(super) replies: ReplyQueue,
    pub(super) phase: Phase,
    pub(super) blocked: Blocked,
    /// Commands that other threads have not answered yet, in order.
    pub(super) relayed: VecDeque<Relayed>,
    /// Bytes of these.
    pub(super) relayed_bytes: usize,
    /// Long replies from other threads that the client has not taken.
    pub(super) untaken: Vec<Untaken>,
    /// In which turn it has last executed something.
    pub(super) turn: u64,
    /// What that has cost.
    pub(super) spent: usize,
    /// Whether it goes on next turn, for it has had its share of this one.
    pub(super) yielded: bool,
    pub(super) receiving: bool,
    /// How often the present command was copied, but for arguments with memory of their own.
    pub(super) copies: u64,
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
    /// Of what kind the last one was.
    pub(super) kind: CommandKind,
    /// When the first bytes came that are not all answered.
    pub(super) asked_ns: Option<u64>,
}

impl Connection {
    /// Bytes of replies that it has not taken.
    pub(super) fn output_len(&self) -> usize {
        self.replies.len() + self.sending
    }

    /// Bytes of memory that it takes, without those that other owners share.
    pub(super) fn bytes(&self) -> usize {
        let names = [&self.name, &self.library_name, &self.library_version];
        size_of::<Self>()
            + self.parser.heap_bytes()
            + self.replies.heap_bytes()
            + self.relayed.capacity() * size_of::<Relayed>()
            + self.untaken.capacity() * size_of::<Untaken>()
            + names.iter().map(|name| name.capacity()).sum::<usize>()
    }

    /// Gives memory back that an idle connection has no use for.
    pub(super) fn rest(&mut self) {
        self.replies.rest();
        if self.relayed.is_empty() && self.relayed.capacity() > IDLE_CAPACITY_MAX {
            self.relayed = VecDeque::new();
        }
    }

    /// Whether nothing that has come waits for a reply.
    pub(super) fn is_answered(&self) -> bool {
        let has_input = self.parser.buffered() > 0 || self.yielded;
        !has_input && !self.is_blocked() && self.replies.is_empty()
    }

    /// Counts the copy that a command is kept in that has to be tried again. What little of an
    /// argument of its own memory was copied before counts as all of it.
    pub(super) fn note_encoded(&mut self, own: &[OwnArgument]) {
        if matches!(self.blocked, Blocked::Command(_) | Blocked::Relays(_)) {
            let of_own = own.iter().map(|own| u64::from(own.copied > 0)).max();
            self.copies = of_own.unwrap_or(self.copies) + 1;
        }
    }

    pub(super) fn is_blocked(&self) -> bool {
        !matches!(self.blocked, Blocked::No)
    }
}

/// Encodes a command again, to be executed later.
pub(super) fn encode(arguments: &Arguments<'_>) -> Vec<u8> {
    encode_words(arguments.iter())
}

/// Encodes words as a command.
pub(super) fn encode_words<'a>(words: impl ExactSizeIterator<Item = &'a [u8]>) -> Vec<u8> {
    let mut out = BytesMut::new();
    out.extend_from_slice(b"*");
    push_decimal(&mut out, i64::try_from(words.len()).unwrap_or(i64::MAX));
    out.extend_from_slice(b"\r\n");
    for word in words {
        out.extend_from_slice(b"$");
        push_decimal(&mut out, i64::try_from(word.len()).unwrap_or(i64::MAX));
        out.extend_from_slice(b"\r\n");
        out.extend_from_slice(word);
        out.extend_from_slice(b"\r\n");
    }
    out.to_vec()
}
