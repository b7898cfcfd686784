//! A small RESP2/RESP3 client that shows exactly what came over the wire.
//!
//! Client libraries hide what the tests look at: which bytes a reply had, which commands of a
//! pipeline were answered before the connection died, what follows malformed input. This one
//! sends bytes as given and hands out replies one by one, parsed or raw.

#![expect(clippy::disallowed_types, reason = "the harness talks to a real node over a real socket")]

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

/// How long one read may wait before the node counts as hung.
pub const REPLY_TIMEOUT: Duration = Duration::from_secs(30);

/// Bytes asked of the socket at once.
const READ_SIZE: usize = 64 * 1024;

/// Nesting beyond which a reply is refused; no command of the node comes near it.
const DEPTH_MAX: usize = 16;

/// One reply as RESP2 or RESP3 has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// `+text`
    Simple(String),
    /// `-text`
    Error(String),
    /// `:n`
    Integer(i64),
    /// `$n`
    Bulk(Vec<u8>),
    /// `$-1`, `*-1` or `_`
    Nil,
    /// `*n`
    Array(Vec<Self>),
    /// `%n`
    Map(Vec<(Self, Self)>),
    /// `~n`
    Set(Vec<Self>),
    /// `>n`
    Push(Vec<Self>),
    /// `,text`, kept as text
    Double(String),
    /// `#t` or `#f`
    Boolean(bool),
    /// `(text`
    BigNumber(String),
    /// `=n`, with its three-letter format still in front
    Verbatim(Vec<u8>),
}

impl Reply {
    /// Shows the reply on one short line.
    #[must_use]
    pub fn brief(&self) -> String {
        let mut text = match self {
            Self::Bulk(bytes) => {
                let head = &bytes[..bytes.len().min(60)];
                format!("bulk of {} B \"{}\"", bytes.len(), head.escape_ascii())
            }
            other => format!("{other:?}"),
        };
        if text.len() > 200 {
            let cut = (0..=200).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0);
            text.truncate(cut);
            text.push_str("...");
        }
        text
    }

    /// Returns the bytes of a bulk, simple or verbatim string.
    #[must_use]
    pub fn bytes(&self) -> Option<&[u8]> {
        match self {
            Self::Bulk(bytes) => Some(bytes),
            Self::Verbatim(bytes) => bytes.get(4..),
            Self::Simple(text) => Some(text.as_bytes()),
            _ => None,
        }
    }

    /// Tells whether this is an error whose text starts with `prefix`.
    #[must_use]
    pub fn is_error(&self, prefix: &str) -> bool {
        matches!(self, Self::Error(text) if text.starts_with(prefix))
    }
}

/// Encodes one command as an array of bulk strings, at the end of `out`.
pub fn encode_command(out: &mut Vec<u8>, arguments: &[&[u8]]) {
    out.extend_from_slice(format!("*{}\r\n", arguments.len()).as_bytes());
    for argument in arguments {
        out.extend_from_slice(format!("${}\r\n", argument.len()).as_bytes());
        out.extend_from_slice(argument);
        out.extend_from_slice(b"\r\n");
    }
}

/// One connection to a node or to redis-server.
#[derive(Debug)]
pub struct RespClient {
    stream: TcpStream,
    received: Vec<u8>,
    consumed: usize,
}

impl RespClient {
    /// Connects, with [`REPLY_TIMEOUT`] on reads and writes.
    ///
    /// # Errors
    /// Whatever connecting gives.
    pub fn connect(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect_timeout(&address, REPLY_TIMEOUT)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(REPLY_TIMEOUT))?;
        stream.set_write_timeout(Some(REPLY_TIMEOUT))?;
        Ok(Self { stream, received: Vec::new(), consumed: 0 })
    }

    /// Changes how long one read may wait.
    ///
    /// # Errors
    /// Whatever the socket option gives.
    pub fn set_reply_timeout(&self, timeout: Duration) -> io::Result<()> {
        self.stream.set_read_timeout(Some(timeout))
    }

    /// Returns a second handle on the socket, for writing from another thread.
    ///
    /// # Errors
    /// Whatever duplicating the descriptor gives.
    pub fn writer(&self) -> io::Result<TcpStream> {
        self.stream.try_clone()
    }

    /// Sends bytes as they are.
    ///
    /// # Errors
    /// Whatever writing gives.
    pub fn send_raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// Sends one command without waiting for its reply.
    ///
    /// # Errors
    /// Whatever writing gives.
    pub fn send(&mut self, arguments: &[&[u8]]) -> io::Result<()> {
        let mut bytes = Vec::new();
        encode_command(&mut bytes, arguments);
        self.send_raw(&bytes)
    }

    /// Says that nothing more will be sent.
    ///
    /// # Errors
    /// Whatever shutting down the sending side gives.
    pub fn finish_sending(&self) -> io::Result<()> {
        self.stream.shutdown(Shutdown::Write)
    }

    /// Sends one command and returns its reply.
    ///
    /// # Errors
    /// As [`RespClient::read_reply`], and whatever writing gives.
    pub fn call(&mut self, arguments: &[&[u8]]) -> io::Result<Reply> {
        self.send(arguments)?;
        self.read_reply()
    }

    /// Sends one command given as words separated by single blanks.
    ///
    /// # Errors
    /// As [`RespClient::call`].
    pub fn call_line(&mut self, line: &str) -> io::Result<Reply> {
        let words: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
        self.call(&words)
    }

    /// Returns the next reply.
    ///
    /// # Errors
    /// `UnexpectedEof` when the node closed the connection, `InvalidData` when the bytes are no
    /// RESP, else whatever reading gives (`WouldBlock` after the timeout).
    pub fn read_reply(&mut self) -> io::Result<Reply> {
        self.next_reply().map(|(reply, _)| reply)
    }

    /// Returns the next reply together with its bytes.
    ///
    /// # Errors
    /// As [`RespClient::read_reply`].
    pub fn read_raw_reply(&mut self) -> io::Result<(Reply, Vec<u8>)> {
        self.next_reply()
    }

    /// Reads until the node closes the connection; returns what came before.
    ///
    /// # Errors
    /// Whatever reading gives except a reset, which counts as closing.
    pub fn read_to_close(&mut self) -> io::Result<Vec<u8>> {
        loop {
            match self.fill() {
                Ok(()) => {}
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset
                    ) =>
                {
                    return Ok(self.received.split_off(self.consumed));
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn next_reply(&mut self) -> io::Result<(Reply, Vec<u8>)> {
        loop {
            let rest = &self.received[self.consumed..];
            if let Some((reply, len)) = parse(rest, 0).map_err(invalid)? {
                let raw = rest[..len].to_vec();
                self.consumed += len;
                if self.consumed == self.received.len() {
                    self.received.clear();
                    self.consumed = 0;
                }
                return Ok((reply, raw));
            }
            self.fill()?;
        }
    }

    fn fill(&mut self) -> io::Result<()> {
        if self.consumed > 0 {
            self.received.drain(..self.consumed);
            self.consumed = 0;
        }
        let len = self.received.len();
        self.received.resize(len + READ_SIZE.max(len / 2), 0);
        let result = loop {
            match self.stream.read(&mut self.received[len..]) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => break result,
            }
        };
        self.received.truncate(len + result.as_ref().copied().unwrap_or(0));
        match result? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }
}

fn invalid(problem: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, problem)
}

/// Parses the reply at the start of `bytes`: `None` when it is not complete yet.
fn parse(bytes: &[u8], depth: usize) -> Result<Option<(Reply, usize)>, String> {
    if depth > DEPTH_MAX {
        return Err("reply nested too deep".to_owned());
    }
    let Some(end) = bytes.windows(2).position(|pair| pair == b"\r\n") else {
        return Ok(None);
    };
    let Some((&kind, line)) = bytes[..end].split_first() else {
        return Err("empty line where a reply should start".to_owned());
    };
    let line = std::str::from_utf8(line).map_err(|_| "reply line is not UTF-8".to_owned())?;
    let body = end + 2;
    let integer = || line.parse::<i64>().map_err(|_| format!("bad number {line:?} in a reply"));
    let simple = |reply| Ok(Some((reply, body)));
    match kind {
        b'+' => simple(Reply::Simple(line.to_owned())),
        b'-' => simple(Reply::Error(line.to_owned())),
        b':' => simple(Reply::Integer(integer()?)),
        b'_' => simple(Reply::Nil),
        b',' => simple(Reply::Double(line.to_owned())),
        b'#' => simple(Reply::Boolean(line == "t")),
        b'(' => simple(Reply::BigNumber(line.to_owned())),
        b'$' | b'=' => parse_bulk(bytes, body, kind, integer()?),
        b'*' | b'~' | b'>' | b'%' => parse_aggregate(bytes, body, kind, integer()?, depth),
        other => Err(format!("reply starts with byte {other:#04x}")),
    }
}

fn parse_bulk(
    bytes: &[u8],
    body: usize,
    kind: u8,
    len: i64,
) -> Result<Option<(Reply, usize)>, String> {
    if len == -1 {
        return Ok(Some((Reply::Nil, body)));
    }
    let len = usize::try_from(len).map_err(|_| format!("bulk length {len}"))?;
    let end = body + len;
    if bytes.len() < end + 2 {
        return Ok(None);
    }
    if &bytes[end..end + 2] != b"\r\n" {
        return Err("bulk string without its line end".to_owned());
    }
    let content = bytes[body..end].to_vec();
    let reply = if kind == b'$' { Reply::Bulk(content) } else { Reply::Verbatim(content) };
    Ok(Some((reply, end + 2)))
}

fn parse_aggregate(
    bytes: &[u8],
    body: usize,
    kind: u8,
    count: i64,
    depth: usize,
) -> Result<Option<(Reply, usize)>, String> {
    if count == -1 {
        return Ok(Some((Reply::Nil, body)));
    }
    let mut count = usize::try_from(count).map_err(|_| format!("aggregate of {count}"))?;
    if kind == b'%' {
        count *= 2;
    }
    let mut items = Vec::new();
    let mut end = body;
    for _ in 0..count {
        let Some((item, len)) = parse(&bytes[end..], depth + 1)? else {
            return Ok(None);
        };
        items.push(item);
        end += len;
    }
    let reply = match kind {
        b'*' => Reply::Array(items),
        b'~' => Reply::Set(items),
        b'>' => Reply::Push(items),
        _ => {
            let mut pairs = Vec::new();
            let mut items = items.into_iter();
            while let (Some(key), Some(value)) = (items.next(), items.next()) {
                pairs.push((key, value));
            }
            Reply::Map(pairs)
        }
    };
    Ok(Some((reply, end)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(bytes: &[u8], expected: &Reply) {
        assert_eq!(parse(bytes, 0).unwrap(), Some((expected.clone(), bytes.len())));
        for cut in 0..bytes.len() {
            assert_eq!(parse(&bytes[..cut], 0).unwrap(), None, "cut at {cut}");
        }
    }

    #[test]
    fn replies_parse_whole_and_wait_for_the_rest() {
        check(b"+OK\r\n", &Reply::Simple("OK".into()));
        check(b"$3\r\na\r\n\r\n", &Reply::Bulk(b"a\r\n".to_vec()));
        check(b"$-1\r\n", &Reply::Nil);
        check(
            b"*2\r\n:-7\r\n*0\r\n",
            &Reply::Array(vec![Reply::Integer(-7), Reply::Array(vec![])]),
        );
        check(b"%1\r\n+k\r\n_\r\n", &Reply::Map(vec![(Reply::Simple("k".into()), Reply::Nil)]));
    }

    #[test]
    fn malformed_replies_are_refused() {
        for bytes in [&b"!3\r\n"[..], b":x\r\n", b"$2\r\nabcd", b"$-5\r\n", b"\r\n"] {
            assert!(parse(bytes, 0).is_err(), "{}", bytes.escape_ascii());
        }
    }
}
