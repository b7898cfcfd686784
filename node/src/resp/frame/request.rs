//! State machine of one request; it sees the bytes of the command from their start each time.
//!
//! ```text
//!           not '*'               '\n' found
//!   Start ----------> Line  ---------------------> done
//!     | '*n'
//!     v          '$len'             last one
//!   Header <-----------> Body or Aside ------------> done
//!     | over a limit   next
//!     v
//!   DrainBody <--------------> DrainHeader           (nothing is kept)
//! ```
//!
//! Aside: a large argument that is not all there goes into memory of its own, its line end with it.
//! The bytes of the command are shown without it from then on.

use super::{CommandName, LimitKind, ParserLimits, ProtocolError, TooLarge, inline};

/// Arguments a client may send in one command before it authenticated.
const UNAUTHENTICATED_ARGUMENTS_MAX: usize = 10;
/// Longest argument of a client that has not authenticated, in bytes.
const UNAUTHENTICATED_BULK_BYTES_MAX: usize = 16_384;
/// Bytes behind every argument; Redis does not look at them, so neither do we.
pub(super) const BULK_END_BYTES: usize = 2;
/// Where the span of an argument says it starts that is not among the command's bytes.
const ASIDE: usize = usize::MAX;

/// Position of one argument, from the start of its command; or the number of one that is aside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) start: usize,
    pub(super) end: usize,
}

impl Span {
    #[inline]
    pub(super) fn of(self, bytes: &[u8]) -> Option<&[u8]> {
        bytes.get(self.start..self.end)
    }

    /// Which one it is of the arguments that are aside, if it is one.
    pub(super) fn aside(self) -> Option<usize> {
        (self.start == ASIDE).then_some(self.end)
    }
}

/// What must arrive before the next step can do anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Need {
    /// At least this many bytes.
    Bytes(usize),
    /// Everything up to this byte.
    Line(u8),
    /// What is left of an argument that is aside.
    Aside,
}

/// Outcome of one step; lengths count from the start of the bytes it was shown.
#[derive(Debug)]
pub(super) enum Step {
    /// The command is complete; its arguments are in the spans.
    Command { len: usize },
    /// An inline command of `text` bytes is complete.
    Line { text: usize, len: usize },
    /// These bytes are done with; go on behind them.
    Discard { len: usize },
    /// A drained command ends here.
    TooLarge { len: usize, too_large: TooLarge },
    /// An argument of `len` bytes, which begins behind the first `at` bytes, may go aside:
    /// [`Request::put_aside`] says so.
    Aside { at: usize, len: usize },
    /// The bytes end in the middle of the command.
    More(Need),
}

#[derive(Debug)]
enum State {
    Start,
    Line,
    Header,
    Body {
        len: usize,
        may_go_aside: bool,
    },
    /// So many bytes of it, and of its line end, are still to come.
    Aside {
        left: usize,
    },
    DrainHeader {
        too_large: TooLarge,
    },
    DrainBody {
        left: usize,
        too_large: TooLarge,
    },
}

/// What is known so far of the command that is being parsed.
#[derive(Debug)]
pub(super) struct Request {
    state: State,
    /// First byte that is not understood yet.
    position: usize,
    /// Bytes from `position` on that are known not to end the line.
    scanned: usize,
    arguments_left: usize,
    /// Arguments of the command that are aside.
    aside: usize,
    /// Argument bytes announced so far.
    bytes: u64,
    spans: Vec<Span>,
}

impl Request {
    pub(super) const fn new() -> Self {
        Self {
            state: State::Start,
            position: 0,
            scanned: 0,
            arguments_left: 0,
            aside: 0,
            bytes: 0,
            spans: Vec::new(),
        }
    }

    #[inline]
    pub(super) fn spans(&self) -> &[Span] {
        &self.spans
    }

    pub(super) fn spans_capacity(&self) -> usize {
        self.spans.capacity()
    }

    /// Whether the next byte begins a command.
    #[inline]
    pub(super) fn is_at_start(&self) -> bool {
        matches!(self.state, State::Start)
    }

    /// Forgets the previous command; does nothing in the middle of one.
    #[inline]
    pub(super) fn begin(&mut self) {
        if self.is_at_start() {
            self.spans.clear();
            if self.spans.capacity() > super::SPANS_BUSY_MAX {
                self.spans = Vec::new();
            }
        }
    }

    /// Says what becomes of the argument of [`Step::Aside`]: it stays with the command, or goes
    /// aside and needs so many bytes more.
    pub(super) fn put_aside(&mut self, left: Option<usize>) {
        if let State::Body { len, .. } = self.state {
            self.state = match left {
                Some(left) => State::Aside { left },
                None => State::Body { len, may_go_aside: false },
            };
        }
    }

    /// Notes that `count` more bytes of an argument aside have come; tells whether that was all.
    pub(super) fn note_aside(&mut self, count: usize) -> bool {
        let State::Aside { left } = &mut self.state else { return false };
        *left = left.saturating_sub(count);
        *left == 0
    }

    /// Returns memory that an idle connection should not hold.
    pub(super) fn give_back(&mut self) {
        if self.spans.capacity() > super::SPANS_IDLE_MAX {
            self.spans.shrink_to(super::SPANS_IDLE_MAX);
        }
    }

    /// Splits an inline command into `output`.
    ///
    /// # Errors
    /// As [`inline::split`].
    pub(super) fn split_line(
        &mut self,
        text: &[u8],
        output: &mut Vec<u8>,
    ) -> Result<(), ProtocolError> {
        output.clear();
        self.spans.clear();
        inline::split(text, output, &mut self.spans)
    }

    /// Goes as far as `bytes` allow.
    ///
    /// # Errors
    /// Any [`ProtocolError`] but `UnbalancedQuotes`.
    #[inline]
    pub(super) fn step(
        &mut self,
        bytes: &[u8],
        limits: &ParserLimits,
        is_authenticated: bool,
    ) -> Result<Step, ProtocolError> {
        loop {
            let ended = match self.state {
                State::Start => self.start(bytes, limits, is_authenticated)?,
                State::Line => Some(self.inline(bytes, limits)?),
                State::Header => self.header(bytes, limits, is_authenticated)?,
                State::Body { len, may_go_aside } => self.body(bytes, len, may_go_aside),
                State::Aside { left: 0 } => {
                    let span = Span { start: ASIDE, end: self.aside };
                    self.aside = self.aside.saturating_add(1);
                    self.end_argument(span)
                }
                State::Aside { .. } => Some(Step::More(Need::Aside)),
                State::DrainHeader { too_large } => {
                    Some(self.drain_header(bytes, limits, is_authenticated, too_large)?)
                }
                State::DrainBody { left, too_large } => {
                    Some(self.drain_body(bytes, left, too_large))
                }
            };
            if let Some(step) = ended {
                return Ok(step);
            }
        }
    }

    #[inline]
    fn start(
        &mut self,
        bytes: &[u8],
        limits: &ParserLimits,
        is_authenticated: bool,
    ) -> Result<Option<Step>, ProtocolError> {
        if let Some(&[b'*', count @ b'1'..=b'9', b'\r', _]) = bytes.first_chunk()
            && usize::from(count.wrapping_sub(b'0')) <= limits.arguments_max
        {
            // Below ten arguments there is nothing else to check.
            self.position = 4;
            self.scanned = 0;
            self.arguments_left = usize::from(count.wrapping_sub(b'0'));
            self.state = State::Header;
            return Ok(None);
        }
        match bytes.first() {
            None => return Ok(Some(Step::More(Need::Bytes(1)))),
            Some(b'*') => {}
            Some(_) => {
                self.state = State::Line;
                return Ok(None);
            }
        }
        let line = match self.length_line(bytes, limits, ProtocolError::MultibulkCountTooBig)? {
            Ok(line) => line,
            Err(need) => return Ok(Some(Step::More(need))),
        };
        let count =
            integer(line.get(1..).unwrap_or_default()).ok_or(ProtocolError::MultibulkLength)?;
        // A negative count is an empty command: Redis skips both.
        let count = usize::try_from(count).unwrap_or(0);
        if count > limits.arguments_max {
            return Err(ProtocolError::MultibulkLength);
        }
        if count > UNAUTHENTICATED_ARGUMENTS_MAX && !is_authenticated {
            return Err(ProtocolError::UnauthenticatedMultibulk);
        }
        if count == 0 {
            return Ok(Some(Step::Discard { len: self.finish() }));
        }
        self.arguments_left = count;
        self.state = State::Header;
        Ok(None)
    }

    fn inline(&mut self, bytes: &[u8], limits: &ParserLimits) -> Result<Step, ProtocolError> {
        let fresh = bytes.get(self.scanned..).unwrap_or_default();
        let Some(offset) = fresh.iter().position(|&byte| byte == b'\n') else {
            self.scanned = bytes.len();
            if bytes.len() > limits.inline_bytes_max {
                return Err(ProtocolError::InlineTooBig);
            }
            return Ok(Step::More(Need::Line(b'\n')));
        };
        let end = self.scanned.saturating_add(offset);
        if end > limits.inline_bytes_max {
            return Err(ProtocolError::InlineTooBig);
        }
        let line = bytes.get(..end).unwrap_or_default();
        let text = line.strip_suffix(b"\r").unwrap_or(line).len();
        self.finish();
        Ok(Step::Line { text, len: end.saturating_add(1) })
    }

    #[inline]
    fn header(
        &mut self,
        bytes: &[u8],
        limits: &ParserLimits,
        is_authenticated: bool,
    ) -> Result<Option<Step>, ProtocolError> {
        let len = match self.bulk_length(bytes, limits, is_authenticated)? {
            Ok(len) => len,
            Err(need) => return Ok(Some(Step::More(need))),
        };
        if let Some(too_large) = self.exceeded(bytes, len, limits) {
            let discarded = std::mem::take(&mut self.position);
            self.spans = Vec::new();
            self.aside = 0;
            self.state = drain_body_of(len, too_large);
            return Ok(Some(Step::Discard { len: discarded }));
        }
        // The name stays, wherever it is cut: a command that is drained later is told by it.
        let may_go_aside = len >= limits.aside_bytes_min && !self.spans.is_empty();
        self.state = State::Body { len, may_go_aside };
        Ok(None)
    }

    /// Tells whether an argument of `len` bytes passes a limit of what is kept.
    #[inline]
    fn exceeded(&self, bytes: &[u8], len: usize, limits: &ParserLimits) -> Option<TooLarge> {
        let (kind, declared, limit) = if len > limits.bulk_bytes_max {
            (LimitKind::Argument, to_u64(len), limits.bulk_bytes_max)
        } else if self.bytes > to_u64(limits.command_bytes_max) {
            (LimitKind::Command, self.bytes, limits.command_bytes_max)
        } else {
            return None;
        };
        let name = self.spans.first().and_then(|span| span.of(bytes)).unwrap_or_default();
        Some(TooLarge { kind, declared, limit, name: CommandName::new(name) })
    }

    #[inline]
    fn body(&mut self, bytes: &[u8], len: usize, may_go_aside: bool) -> Option<Step> {
        let end = self.position.saturating_add(len);
        let end_of_line = end.saturating_add(BULK_END_BYTES);
        if bytes.len() < end_of_line {
            if may_go_aside {
                return Some(Step::Aside { at: self.position, len });
            }
            let missing = end_of_line.saturating_sub(bytes.len());
            return Some(Step::More(Need::Bytes(missing)));
        }
        let span = Span { start: self.position, end };
        self.position = end_of_line;
        self.end_argument(span)
    }

    /// Notes an argument, behind which the next one begins.
    #[inline]
    fn end_argument(&mut self, span: Span) -> Option<Step> {
        self.spans.push(span);
        self.arguments_left = self.arguments_left.saturating_sub(1);
        if self.arguments_left == 0 {
            return Some(Step::Command { len: self.finish() });
        }
        self.state = State::Header;
        None
    }

    fn drain_header(
        &mut self,
        bytes: &[u8],
        limits: &ParserLimits,
        is_authenticated: bool,
        mut too_large: TooLarge,
    ) -> Result<Step, ProtocolError> {
        let len = match self.bulk_length(bytes, limits, is_authenticated)? {
            Ok(len) => len,
            Err(need) => return Ok(Step::More(need)),
        };
        if too_large.kind == LimitKind::Command {
            too_large.declared = self.bytes;
        }
        self.state = drain_body_of(len, too_large);
        Ok(Step::Discard { len: std::mem::take(&mut self.position) })
    }

    fn drain_body(&mut self, bytes: &[u8], left: usize, too_large: TooLarge) -> Step {
        let len = left.min(bytes.len());
        if len == 0 {
            return Step::More(Need::Bytes(left));
        }
        let left = left.saturating_sub(len);
        if left > 0 {
            self.state = State::DrainBody { left, too_large };
            return Step::Discard { len };
        }
        self.arguments_left = self.arguments_left.saturating_sub(1);
        if self.arguments_left == 0 {
            self.finish();
            return Step::TooLarge { len, too_large };
        }
        self.state = State::DrainHeader { too_large };
        Step::Discard { len }
    }

    /// Ends the command and returns its length.
    #[inline]
    fn finish(&mut self) -> usize {
        self.state = State::Start;
        self.aside = 0;
        self.bytes = 0;
        self.scanned = 0;
        std::mem::take(&mut self.position)
    }

    /// Reads the line that announces an argument and counts its bytes.
    #[inline]
    fn bulk_length(
        &mut self,
        bytes: &[u8],
        limits: &ParserLimits,
        is_authenticated: bool,
    ) -> Result<Result<usize, Need>, ProtocolError> {
        if let Some(len) = self.short_length(bytes, limits.bulk_bytes_declared_max) {
            self.bytes = self.bytes.saturating_add(to_u64(len));
            return Ok(Ok(len));
        }
        let line = match self.length_line(bytes, limits, ProtocolError::BulkCountTooBig)? {
            Ok(line) => line,
            Err(need) => return Ok(Err(need)),
        };
        let Some((b'$', digits)) = line.split_first() else {
            // An empty line starts with the '\r' that ends it.
            let found = line.first().copied().unwrap_or(b'\r');
            return Err(ProtocolError::DollarExpected { found });
        };
        let len = integer(digits)
            .and_then(|len| usize::try_from(len).ok())
            .filter(|&len| len <= limits.bulk_bytes_declared_max)
            .ok_or(ProtocolError::BulkLength)?;
        if len > UNAUTHENTICATED_BULK_BYTES_MAX && !is_authenticated {
            return Err(ProtocolError::UnauthenticatedBulk);
        }
        self.bytes = self.bytes.saturating_add(to_u64(len));
        Ok(Ok(len))
    }

    /// Reads a length line of one to three digits in the common case that it is all there.
    ///
    /// Says nothing, and moves nothing, about lines that need a second look.
    #[inline]
    fn short_length(&mut self, bytes: &[u8], len_max: usize) -> Option<usize> {
        let line = bytes.get(self.position..)?;
        let digit = |byte: u8| usize::from(byte.wrapping_sub(b'0'));
        let (value, line_len) = match *line {
            [b'$', a @ b'0'..=b'9', b'\r', _, ..] => (digit(a), 4),
            [b'$', a @ b'1'..=b'9', b @ b'0'..=b'9', b'\r', _, ..] => {
                (digit(a).wrapping_mul(10).wrapping_add(digit(b)), 5)
            }
            [b'$', a @ b'1'..=b'9', b @ b'0'..=b'9', c @ b'0'..=b'9', b'\r', _, ..] => {
                let tens = digit(a).wrapping_mul(10).wrapping_add(digit(b));
                (tens.wrapping_mul(10).wrapping_add(digit(c)), 6)
            }
            _ => return None,
        };
        if value > len_max {
            return None;
        }
        self.position = self.position.saturating_add(line_len);
        self.scanned = 0;
        Some(value)
    }

    /// Reads the line at the position up to its '\r' and passes over the byte behind that.
    #[inline]
    fn length_line<'a>(
        &mut self,
        bytes: &'a [u8],
        limits: &ParserLimits,
        too_big: ProtocolError,
    ) -> Result<Result<&'a [u8], Need>, ProtocolError> {
        let line = bytes.get(self.position..).unwrap_or_default();
        let fresh = line.get(self.scanned..).unwrap_or_default();
        let end = fresh.iter().position(|&byte| byte == b'\r');
        self.scanned = self.scanned.saturating_add(end.unwrap_or(fresh.len()));
        if self.scanned > limits.inline_bytes_max {
            return Err(too_big);
        }
        if end.is_none() {
            return Ok(Err(Need::Line(b'\r')));
        }
        let len = self.scanned.saturating_add(BULK_END_BYTES);
        if line.len() < len {
            return Ok(Err(Need::Bytes(1)));
        }
        let text = line.get(..self.scanned).unwrap_or_default();
        self.position = self.position.saturating_add(len);
        self.scanned = 0;
        Ok(Ok(text))
    }
}

/// Starts to drain an argument of `len` bytes, none of which was kept.
const fn drain_body_of(len: usize, too_large: TooLarge) -> State {
    State::DrainBody { left: len.saturating_add(BULK_END_BYTES), too_large }
}

/// Reads a decimal number as strictly as Redis: no blanks, no `+`, no leading zeros.
#[inline]
pub(crate) fn integer(text: &[u8]) -> Option<i64> {
    let (is_negative, digits) = match text {
        [b'0'] => return Some(0),
        [b'-', digits @ ..] => (true, digits),
        digits => (false, digits),
    };
    if !matches!(digits.first(), Some(b'1'..=b'9')) || digits.len() > 19 {
        return None;
    }
    let mut value: u64 = 0;
    for &byte in digits {
        let digit = byte.wrapping_sub(b'0');
        if digit > 9 {
            return None;
        }
        // At most 19 digits: the value stays below 10^19, which a u64 holds.
        value = value.wrapping_mul(10).wrapping_add(u64::from(digit));
    }
    if is_negative { 0_i64.checked_sub_unsigned(value) } else { i64::try_from(value).ok() }
}

#[inline]
fn to_u64(len: usize) -> u64 {
    u64::try_from(len).unwrap_or(u64::MAX)
}
