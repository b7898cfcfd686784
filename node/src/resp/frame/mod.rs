//! Resumable parser of client requests: arrays of bulk strings and inline commands.
//!
//! Bytes come in pieces of any size. A command that lies whole in the piece at hand is parsed in
//! place; what is left of an unfinished one is copied into the parser's own buffer and finished
//! by later pieces, of which only the bytes that the command needs are copied.
//!
//! An unfinished argument from `aside_bytes_min` on has memory of its own, made once with its
//! size: [`Parser::lend`] hands that out to be received into, [`Parser::take_back`] takes it again,
//! and [`Arguments::own`] tells who asks that the argument need not be copied to be kept.
//!
//! Invariants:
//! - every byte is looked at a bounded number of times, whatever the sizes of the pieces;
//! - the buffer holds at most one command (bounded by [`ParserLimits`]) and what [`Parser::stash`]
//!   was given; an idle parser holds next to nothing;
//! - while an argument aside is not complete, the buffer ends with what comes before it;
//! - no input panics, and the outcome does not depend on where the pieces are cut.
//!
//! Redis 7.0 decides what is accepted, with two deviations: a NUL byte is an ordinary byte in
//! lines, and a line above `inline_bytes_max` is refused also when it arrives in one piece.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::as_conversions)]

mod aside;
#[cfg(test)]
mod aside_tests;
mod inline;
mod request;
#[cfg(test)]
mod tests;

pub use aside::OwnArgument;
pub(crate) use request::integer;

use crate::io::{RECEIVE_BUFFER_BYTES, ReceiveRoom};
use aside::Aside;
use request::{BULK_END_BYTES, Need, Request, Span, Step};
use std::fmt;

/// Buffer capacity that an idle parser keeps.
const BUFFER_IDLE_BYTES_MAX: usize = 512;
/// Buffer capacity that survives the end of a command while more input follows.
const BUFFER_BUSY_BYTES_MAX: usize = 64 * 1024;
/// Argument positions that an idle parser keeps room for.
const SPANS_IDLE_MAX: usize = 16;
/// Argument positions that survive the end of a command while more input follows.
const SPANS_BUSY_MAX: usize = 1024;

/// Bounds on what one connection may send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParserLimits {
    /// Most arguments of one command, its name included; more is a protocol error.
    pub arguments_max: usize,
    /// Longest argument that is kept, in bytes; a longer one drains its command.
    pub bulk_bytes_max: usize,
    /// Longest argument that may be announced, in bytes; more is a protocol error.
    pub bulk_bytes_declared_max: usize,
    /// Most argument bytes of one command that are kept; more drains the command.
    pub command_bytes_max: usize,
    /// Longest inline command or length line, in bytes; more is a protocol error.
    pub inline_bytes_max: usize,
    /// Shortest argument that gets memory of its own, if it does not come in one piece.
    pub aside_bytes_min: usize,
}

impl Default for ParserLimits {
    fn default() -> Self {
        const MIB: usize = 1024 * 1024;
        Self {
            arguments_max: MIB,
            bulk_bytes_max: 16 * MIB,
            bulk_bytes_declared_max: 512 * MIB,
            command_bytes_max: 64 * MIB,
            inline_bytes_max: 64 * 1024,
            aside_bytes_min: RECEIVE_BUFFER_BYTES.saturating_add(1),
        }
    }
}

/// Why the bytes of a client cannot be followed; the connection ends after the reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    /// The number after `*` is not a number or above the limit.
    #[error("invalid multibulk length")]
    MultibulkLength,
    /// The number after `$` is not a number or above the limit.
    #[error("invalid bulk length")]
    BulkLength,
    /// An argument does not start with `$`.
    #[error("expected '$', got '{}'", char::from(*.found))]
    DollarExpected {
        /// What it starts with instead.
        found: u8,
    },
    /// The line that starts with `*` does not end.
    #[error("too big mbulk count string")]
    MultibulkCountTooBig,
    /// The line that starts an argument does not end.
    #[error("too big bulk count string")]
    BulkCountTooBig,
    /// The inline command does not end.
    #[error("too big inline request")]
    InlineTooBig,
    /// A quote in an inline command is not closed, or not followed by a blank.
    #[error("unbalanced quotes in request")]
    UnbalancedQuotes,
    /// More than 10 arguments before authentication.
    #[error("unauthenticated multibulk length")]
    UnauthenticatedMultibulk,
    /// An argument above 16,384 bytes before authentication.
    #[error("unauthenticated bulk length")]
    UnauthenticatedBulk,
}

impl ProtocolError {
    /// Renders the error as it goes to the client, without the leading `-` and the line end.
    #[must_use]
    pub fn message(&self) -> Vec<u8> {
        if let Self::DollarExpected { found } = *self {
            // A raw byte, except for those that would end the line of the reply.
            let found = if matches!(found, b'\r' | b'\n') { b' ' } else { found };
            return [b"ERR Protocol error: expected '$', got '", &[found][..], b"'"].concat();
        }
        format!("ERR Protocol error: {self}").into_bytes()
    }
}

/// First argument of a command that was not kept: lower-cased and cut to 32 bytes.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct CommandName {
    bytes: [u8; 32],
    len: usize,
}

impl CommandName {
    fn new(name: &[u8]) -> Self {
        let mut bytes = [0; 32];
        let len = name.len().min(bytes.len());
        for (to, from) in bytes.iter_mut().zip(name) {
            *to = from.to_ascii_lowercase();
        }
        Self { bytes, len }
    }

    /// Returns the name; empty if the first argument itself was too large.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }
}

impl fmt::Debug for CommandName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.as_bytes().escape_ascii())
    }
}

/// Which limit a drained command passed first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LimitKind {
    /// `bulk_bytes_max`: one argument is too long.
    Argument,
    /// `command_bytes_max`: the arguments together are too long.
    Command,
}

/// A command that was read to its end without being kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooLarge {
    /// Which limit it passed.
    pub kind: LimitKind,
    /// Bytes of the argument that passed it, or of all arguments of the command.
    pub declared: u64,
    /// The limit in bytes.
    pub limit: usize,
    /// The command's name, if it came before the limit was passed.
    pub name: CommandName,
}

/// Arguments of one command, its name first.
#[derive(Clone, Copy)]
pub struct Arguments<'a> {
    bytes: &'a [u8],
    spans: &'a [Span],
    own: &'a [OwnArgument],
}

impl<'a> Arguments<'a> {
    /// Returns how many arguments there are, the name included; at least one.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "a command has at least its name")]
    pub fn len(&self) -> usize {
        self.spans.len()
    }

    /// Returns the argument at `index`, 0 being the name.
    #[must_use]
    #[inline]
    pub fn get(&self, index: usize) -> Option<&'a [u8]> {
        self.spans.get(index).and_then(|span| self.of(*span))
    }

    #[inline]
    fn of(&self, span: Span) -> Option<&'a [u8]> {
        span.of(self.bytes).or_else(|| Some(&self.own.get(span.aside()?)?.bytes))
    }

    /// The arguments that have memory of their own.
    #[must_use]
    pub fn own(&self) -> &'a [OwnArgument] {
        self.own
    }

    /// Walks over all arguments.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &'a [u8]> + use<'a> {
        let arguments = *self;
        self.spans.iter().map(move |span| arguments.of(*span).unwrap_or_default())
    }
}

impl std::ops::Index<usize> for Arguments<'_> {
    type Output = [u8];

    fn index(&self, index: usize) -> &[u8] {
        self.get(index).expect("the index is below the number of arguments")
    }
}

impl fmt::Debug for Arguments<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter().map(|a| a.escape_ascii().to_string())).finish()
    }
}

/// What [`Parser::next`] found.
#[derive(Clone, Copy, Debug)]
pub enum Parsed<'a> {
    /// A whole command.
    Command(Arguments<'a>),
    /// All input is taken and the next command is not complete.
    Incomplete,
    /// A whole command that passed a limit; the connection goes on.
    TooLarge(TooLarge),
    /// The stream cannot be followed any further; every later call says the same.
    Error(ProtocolError),
}

/// Where the arguments of a complete command lie.
enum Outcome<'a> {
    InInput(&'a [u8]),
    InBuffer { offset: usize },
    InLine,
    TooLarge(TooLarge),
    Incomplete,
}

/// Turns the bytes of one connection into commands.
#[derive(Debug)]
pub struct Parser {
    limits: ParserLimits,
    authenticated: bool,
    failed: Option<ProtocolError>,
    /// Bytes of the unfinished command, and whatever was stashed behind it.
    buffer: Vec<u8>,
    /// Bytes at the front of `buffer` that belong to finished commands.
    consumed: usize,
    request: Request,
    /// Unquoted arguments of the latest inline command.
    line: Vec<u8>,
    /// Arguments of the command that have memory of their own.
    aside: Option<Box<Aside>>,
}

impl Parser {
    /// Creates a parser for an unauthenticated client; it allocates nothing.
    #[must_use]
    pub const fn new(limits: ParserLimits) -> Self {
        Self {
            limits,
            authenticated: false,
            failed: None,
            buffer: Vec::new(),
            consumed: 0,
            request: Request::new(),
            line: Vec::new(),
            aside: None,
        }
    }

    /// Lifts or restores the narrow limits that hold before authentication.
    ///
    /// Without a password every client counts as authenticated: the caller says so at once.
    pub const fn set_authenticated(&mut self, authenticated: bool) {
        self.authenticated = authenticated;
    }

    /// Returns the number of bytes that are kept for later calls.
    #[must_use]
    pub fn buffered(&self) -> usize {
        let unfinished = self.aside.as_ref().filter(|_| !self.request.is_at_start());
        let aside = unfinished.map_or(0, |aside| aside.bytes());
        self.in_buffer().saturating_add(aside)
    }

    const fn in_buffer(&self) -> usize {
        self.buffer.len().saturating_sub(self.consumed)
    }

    /// Returns the bytes of memory that are kept beside the parser itself.
    #[must_use]
    pub fn heap_bytes(&self) -> usize {
        let spans = self.request.spans_capacity().saturating_mul(size_of::<Span>());
        let aside = self.aside.as_ref().map_or(0, |aside| aside.bytes());
        let buffers = self.buffer.capacity().saturating_add(self.line.capacity());
        buffers.saturating_add(spans).saturating_add(aside)
    }

    /// Whether all that is buffered is the beginning of one command.
    #[must_use]
    pub fn is_within_command(&self) -> bool {
        !self.request.is_at_start()
    }

    /// Lends the memory of an unfinished argument, for as much of what is left of it as comes.
    ///
    /// Until it is back ([`Parser::take_back`]) the parser takes no input.
    pub fn lend(&mut self) -> Option<ReceiveRoom> {
        self.aside.as_mut()?.lend()
    }

    /// Takes back what was lent, with what has come; parse on with [`Parser::next`].
    ///
    /// # Panics
    /// If none was lent.
    pub fn take_back(&mut self, room: ReceiveRoom) {
        let aside = self.aside.as_mut().expect("memory was lent");
        let count = aside.take_back(room);
        if self.request.note_aside(count) {
            aside.close();
        }
    }

    /// Keeps bytes that the caller got but did not pass through [`Parser::next`] to the end.
    ///
    /// They come before the input of the next call.
    pub fn stash(&mut self, rest: &[u8]) {
        let mut rest = rest;
        self.feed_aside(&mut rest);
        self.drop_consumed();
        self.buffer.extend_from_slice(rest);
    }

    /// Parses the next command out of the kept bytes and then `input`, which it shortens.
    ///
    /// Call it until it yields [`Parsed::Incomplete`]; by then all of `input` is taken.
    pub fn next<'p, 'i: 'p>(&'p mut self, input: &mut &'i [u8]) -> Parsed<'p> {
        if let Some(error) = self.failed {
            *input = &[];
            return Parsed::Error(error);
        }
        let (bytes, spans) = match self.run(input) {
            Ok(Outcome::InInput(bytes)) => (bytes, self.request.spans()),
            Ok(Outcome::InBuffer { offset }) => {
                (self.buffer.get(offset..).unwrap_or_default(), self.request.spans())
            }
            Ok(Outcome::InLine) => (self.line.as_slice(), self.request.spans()),
            Ok(Outcome::TooLarge(too_large)) => return Parsed::TooLarge(too_large),
            Ok(Outcome::Incomplete) => return Parsed::Incomplete,
            Err(error) => {
                self.failed = Some(error);
                *input = &[];
                self.buffer = Vec::new();
                self.consumed = 0;
                self.request = Request::new();
                self.aside = None;
                return Parsed::Error(error);
            }
        };
        let own = self.aside.as_ref().map_or(&[][..], |aside| &aside.done);
        Parsed::Command(Arguments { bytes, spans, own })
    }

    fn run<'a>(&mut self, input: &mut &'a [u8]) -> Result<Outcome<'a>, ProtocolError> {
        self.begin();
        loop {
            let is_direct = self.in_buffer() == 0;
            let bytes =
                if is_direct { *input } else { self.buffer.get(self.consumed..).unwrap_or(&[]) };
            match self.request.step(bytes, &self.limits, self.authenticated)? {
                Step::Command { len } => {
                    let (offset, whole) = (self.consumed, *input);
                    self.consume(len, is_direct, input);
                    return Ok(match is_direct {
                        true => Outcome::InInput(whole),
                        false => Outcome::InBuffer { offset },
                    });
                }
                Step::Line { text, len } => {
                    let text = bytes.get(..text).unwrap_or_default();
                    self.request.split_line(text, &mut self.line)?;
                    self.consume(len, is_direct, input);
                    if !self.request.spans().is_empty() {
                        return Ok(Outcome::InLine);
                    }
                    self.begin();
                }
                Step::Discard { len } => {
                    // What is drained is not kept, and what went before it neither.
                    self.aside = None;
                    self.consume(len, is_direct, input);
                }
                Step::Aside { at, len } => self.put_aside((at, len), is_direct, input),
                Step::TooLarge { len, too_large } => {
                    self.consume(len, is_direct, input);
                    return Ok(Outcome::TooLarge(too_large));
                }
                Step::More(_) if is_direct => {
                    self.keep_tail(input);
                    return Ok(Outcome::Incomplete);
                }
                Step::More(need) => {
                    if input.is_empty() {
                        self.drop_consumed();
                        return Ok(Outcome::Incomplete);
                    }
                    self.feed(need, input);
                }
            }
        }
    }

    /// Forgets the previous command; does nothing in the middle of one.
    #[inline]
    fn begin(&mut self) {
        if self.aside.is_some() && self.request.is_at_start() {
            self.aside = None;
        }
        self.request.begin();
    }

    /// Moves the beginning of an argument of `len` bytes, which is all there is behind the first
    /// `at` bytes of the command, into memory of its own.
    fn put_aside(&mut self, (at, len): (usize, usize), is_direct: bool, input: &mut &[u8]) {
        let wanted = len.saturating_add(BULK_END_BYTES);
        let Some(room) = ReceiveRoom::new(wanted) else {
            return self.request.put_aside(None);
        };
        self.request.put_aside(Some(wanted));
        self.aside.get_or_insert_default().open(room);
        if is_direct {
            self.drop_consumed();
            let (before, body) = input.split_at(at.min(input.len()));
            self.buffer.extend_from_slice(before);
            *input = body;
            return self.feed_aside(input);
        }
        let start = self.consumed.saturating_add(at).min(self.buffer.len());
        let buffer = std::mem::take(&mut self.buffer);
        self.feed_aside(&mut buffer.get(start..).unwrap_or_default());
        self.buffer = buffer;
        self.buffer.truncate(start);
    }

    /// Moves from `input` to an argument aside what that needs.
    fn feed_aside(&mut self, input: &mut &[u8]) {
        let Some(aside) = self.aside.as_mut().filter(|aside| aside.is_open()) else { return };
        let count = aside.feed(input);
        *input = input.get(count..).unwrap_or_default();
        if self.request.note_aside(count) {
            aside.close();
        }
    }

    /// Passes over `len` bytes of what is parsed.
    #[inline]
    fn consume(&mut self, len: usize, is_direct: bool, input: &mut &[u8]) {
        if is_direct {
            *input = input.get(len..).unwrap_or_default();
        } else {
            self.consumed = self.consumed.saturating_add(len);
        }
    }

    /// Copies the unfinished rest of `input` into the empty buffer, or gives memory back.
    fn keep_tail(&mut self, input: &mut &[u8]) {
        self.drop_consumed();
        if input.is_empty() {
            if self.buffer.capacity() > BUFFER_IDLE_BYTES_MAX {
                self.buffer = Vec::new();
            }
            if self.line.capacity() > BUFFER_IDLE_BYTES_MAX {
                self.line = Vec::new();
            }
            self.request.give_back();
        } else {
            self.buffer.extend_from_slice(input);
            *input = &[];
        }
    }

    /// Moves from `input` to the buffer what the unfinished command needs, and no more.
    fn feed(&mut self, need: Need, input: &mut &[u8]) {
        self.drop_consumed();
        let wanted = match need {
            Need::Aside => return self.feed_aside(input),
            Need::Bytes(missing) => {
                self.reserve(missing);
                missing
            }
            Need::Line(end) => {
                input.iter().position(|&b| b == end).map_or(input.len(), |i| i.saturating_add(1))
            }
        };
        let (taken, rest) = input.split_at(wanted.min(input.len()));
        self.buffer.extend_from_slice(taken);
        *input = rest;
    }

    /// Grows the buffer by doubling, but never past what the argument needs.
    fn reserve(&mut self, missing: usize) {
        let room = self.buffer.capacity().saturating_sub(self.buffer.len());
        if room < missing {
            let double = self.buffer.len().max(BUFFER_BUSY_BYTES_MAX);
            self.buffer.reserve_exact(missing.min(double));
        }
    }

    /// Removes finished commands from the front of the buffer.
    fn drop_consumed(&mut self) {
        if self.consumed == 0 {
            return;
        }
        self.buffer.drain(..self.consumed.min(self.buffer.len()));
        self.consumed = 0;
        if self.buffer.is_empty() && self.buffer.capacity() > BUFFER_BUSY_BYTES_MAX {
            self.buffer = Vec::new();
        }
    }
}
