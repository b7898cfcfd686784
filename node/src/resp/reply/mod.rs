//! Encodes replies for RESP2 and RESP3 clients into an output buffer.
//!
//! A type that only RESP3 knows becomes its usual RESP2 stand-in, so callers write each reply
//! once. Large values need not be copied: [`ReplyWriter::bulk_header`] and
//! [`ReplyWriter::bulk_end`] frame a value that is sent from elsewhere.

#[cfg(test)]
mod tests;

use bytes::{BufMut, BytesMut};

/// Reply of SET and its kind, ready to send.
pub const OK: &[u8] = b"+OK\r\n";
/// Reply of PING, ready to send.
pub const PONG: &[u8] = b"+PONG\r\n";
/// What follows the bytes of every bulk string.
pub const BULK_END: &[u8] = b"\r\n";

/// Longest line that starts a bulk string or an aggregate, in bytes: marker, number, line end.
pub const HEADER_BYTES_MAX: usize = 1 + 20 + 2;

/// Version of the protocol that a connection speaks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Protocol {
    /// RESP2: what a connection speaks until HELLO says otherwise.
    #[default]
    Resp2,
    /// RESP3: with maps, sets, doubles, booleans and a null of its own.
    Resp3,
}

/// Writes the replies of one connection behind each other.
#[derive(Debug)]
pub struct ReplyWriter<'a> {
    output: &'a mut BytesMut,
    protocol: Protocol,
}

impl<'a> ReplyWriter<'a> {
    /// Creates a writer that appends to `output`.
    #[must_use]
    pub const fn new(output: &'a mut BytesMut, protocol: Protocol) -> Self {
        Self { output, protocol }
    }

    /// Returns the version that is written.
    #[must_use]
    pub const fn protocol(&self) -> Protocol {
        self.protocol
    }

    /// Writes `+OK`.
    #[inline]
    pub fn ok(&mut self) {
        self.output.put_slice(OK);
    }

    /// Writes `+PONG`.
    #[inline]
    pub fn pong(&mut self) {
        self.output.put_slice(PONG);
    }

    /// Writes a simple string; line ends in `text` become blanks.
    pub fn simple(&mut self, text: &str) {
        self.line(b'+', text.as_bytes());
    }

    /// Writes an error: `text` starts with its code, `ERR` for most; line ends become blanks.
    pub fn error(&mut self, text: &[u8]) {
        self.line(b'-', text);
    }

    /// Writes an integer.
    #[inline]
    pub fn integer(&mut self, value: i64) {
        self.header(b':', value);
    }

    /// Writes a bulk string.
    #[inline]
    pub fn bulk(&mut self, value: &[u8]) {
        self.output.reserve(value.len() + HEADER_BYTES_MAX + BULK_END.len());
        self.bulk_header(value.len());
        self.output.put_slice(value);
        self.bulk_end();
    }

    /// Writes the start of a bulk string whose `len` bytes the caller sends itself.
    #[inline]
    pub fn bulk_header(&mut self, len: usize) {
        self.counted(b'$', len);
    }

    /// Writes what ends a bulk string.
    #[inline]
    pub fn bulk_end(&mut self) {
        self.output.put_slice(BULK_END);
    }

    /// Writes the absence of a value.
    #[inline]
    pub fn null(&mut self) {
        self.output.put_slice(match self.protocol {
            Protocol::Resp2 => b"$-1\r\n",
            Protocol::Resp3 => b"_\r\n",
        });
    }

    /// Writes the absence of an array.
    pub fn null_array(&mut self) {
        self.output.put_slice(match self.protocol {
            Protocol::Resp2 => b"*-1\r\n",
            Protocol::Resp3 => b"_\r\n",
        });
    }

    /// Starts an array of `count` elements, which follow.
    #[inline]
    pub fn array_header(&mut self, count: usize) {
        self.counted(b'*', count);
    }

    /// Starts a map of `count` pairs, which follow; an array of twice as many in RESP2.
    pub fn map_header(&mut self, count: usize) {
        match self.protocol {
            Protocol::Resp2 => self.counted(b'*', count.saturating_mul(2)),
            Protocol::Resp3 => self.counted(b'%', count),
        }
    }

    /// Starts a set of `count` elements, which follow; an array in RESP2.
    pub fn set_header(&mut self, count: usize) {
        match self.protocol {
            Protocol::Resp2 => self.counted(b'*', count),
            Protocol::Resp3 => self.counted(b'~', count),
        }
    }

    /// Writes a floating-point number in its shortest exact form; a bulk string in RESP2.
    pub fn double(&mut self, value: f64) {
        let text = match value {
            v if v.is_nan() => "nan".to_owned(),
            f64::INFINITY => "inf".to_owned(),
            f64::NEG_INFINITY => "-inf".to_owned(),
            v => v.to_string(),
        };
        match self.protocol {
            Protocol::Resp2 => self.bulk(text.as_bytes()),
            Protocol::Resp3 => self.line(b',', text.as_bytes()),
        }
    }

    /// Writes a truth value; 1 or 0 in RESP2.
    pub fn boolean(&mut self, value: bool) {
        self.output.put_slice(match (self.protocol, value) {
            (Protocol::Resp2, true) => b":1\r\n",
            (Protocol::Resp2, false) => b":0\r\n",
            (Protocol::Resp3, true) => b"#t\r\n",
            (Protocol::Resp3, false) => b"#f\r\n",
        });
    }

    /// Writes text meant for people, such as INFO's; a bulk string in RESP2.
    pub fn verbatim(&mut self, text: &[u8]) {
        const FORMAT: &[u8] = b"txt:";
        match self.protocol {
            Protocol::Resp2 => self.bulk(text),
            Protocol::Resp3 => {
                self.counted(b'=', text.len().saturating_add(FORMAT.len()));
                self.output.put_slice(FORMAT);
                self.output.put_slice(text);
                self.bulk_end();
            }
        }
    }

    /// Writes bytes that are encoded already.
    #[inline]
    pub fn raw(&mut self, encoded: &[u8]) {
        self.output.put_slice(encoded);
    }

    fn line(&mut self, marker: u8, text: &[u8]) {
        self.output.reserve(text.len() + 1 + BULK_END.len());
        self.output.put_u8(marker);
        let start = self.output.len();
        self.output.put_slice(text);
        for byte in &mut self.output[start..] {
            if matches!(*byte, b'\r' | b'\n') {
                *byte = b' ';
            }
        }
        self.output.put_slice(BULK_END);
    }

    #[inline]
    fn counted(&mut self, marker: u8, count: usize) {
        self.header(marker, i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// Writes marker, number and line end in one go.
    #[inline]
    fn header(&mut self, marker: u8, value: i64) {
        if let Ok(digit @ 0..=9) = u8::try_from(value) {
            self.output.put_slice(&[marker, b'0' + digit, b'\r', b'\n']);
            return;
        }
        let mut line = [0; HEADER_BYTES_MAX];
        let mut start = HEADER_BYTES_MAX - BULK_END.len();
        line[start..].copy_from_slice(BULK_END);
        start = decimal(value, &mut line, start);
        start -= 1;
        line[start] = marker;
        self.output.put_slice(&line[start..]);
    }
}

/// Appends `value` as decimal text.
pub fn push_decimal(output: &mut BytesMut, value: i64) {
    let mut digits = [0; 20];
    let start = decimal(value, &mut digits, 20);
    output.put_slice(&digits[start..]);
}

/// Writes `value` so that it ends before `end`; returns where it starts.
fn decimal(value: i64, line: &mut [u8], end: usize) -> usize {
    let mut start = end;
    let mut rest = value.unsigned_abs();
    loop {
        start -= 1;
        line[start] = b'0' + u8::try_from(rest % 10).expect("a digit is below 10");
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    if value < 0 {
        start -= 1;
        line[start] = b'-';
    }
    start
}
