//! A plain HTTP/1.1 client over one connection, for the admin door.

#![expect(clippy::disallowed_types, reason = "a client has a socket of its own")]

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// How long to wait for each piece of an answer.
const REPLY_DEADLINE: Duration = Duration::from_secs(30);

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// Fields of the head, names in lower case.
    pub fields: Vec<(String, String)>,
    /// The body; empty if only the head was asked for.
    pub body: String,
}

impl Answer {
    /// The value of a field.
    #[must_use]
    pub fn field(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

/// A connection.
#[derive(Debug)]
pub struct HttpClient {
    reader: BufReader<TcpStream>,
}

impl HttpClient {
    /// Connects.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn connect(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(REPLY_DEADLINE))?;
        stream.set_write_timeout(Some(REPLY_DEADLINE))?;
        stream.set_nodelay(true)?;
        Ok(Self { reader: BufReader::new(stream) })
    }

    /// Sends bytes as they are.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.reader.get_mut().write_all(bytes)
    }

    /// Says that nothing more is sent.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn finish(&mut self) -> io::Result<()> {
        self.reader.get_mut().shutdown(std::net::Shutdown::Write)
    }

    /// Asks for a page, with further fields of the head.
    ///
    /// # Errors
    /// What the kernel says, or that the answer is none.
    pub fn get(&mut self, path: &str, fields: &str) -> io::Result<Answer> {
        self.send(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n{fields}\r\n").as_bytes())?;
        self.answer(true)
    }

    /// Reads an answer, with its body if that was asked for.
    ///
    /// # Errors
    /// What the kernel says, or that the answer is none.
    pub fn answer(&mut self, has_body: bool) -> io::Result<Answer> {
        let strange = |line: &str| io::Error::other(format!("no answer: {line:?}"));
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            self.reader.read_line(&mut line)?;
            let line = line.strip_suffix("\r\n").ok_or_else(|| strange(&line))?.to_owned();
            if line.is_empty() {
                break;
            }
            lines.push(line);
        }
        let first = lines.first().ok_or_else(|| strange(""))?;
        let status = first.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)?.parse().ok());
        let status = status.ok_or_else(|| strange(first))?;
        let mut answer = Answer { status, fields: Vec::new(), body: String::new() };
        for line in &lines[1..] {
            let (name, value) = line.split_once(": ").ok_or_else(|| strange(line))?;
            answer.fields.push((name.to_ascii_lowercase(), value.to_owned()));
        }
        if has_body {
            let len = answer.field("content-length").and_then(|len| len.parse().ok());
            let mut body = vec![0; len.ok_or_else(|| strange("no length"))?];
            self.reader.read_exact(&mut body)?;
            answer.body = String::from_utf8(body).map_err(io::Error::other)?;
        }
        Ok(answer)
    }

    /// Whether the other end has closed, with nothing left to read; waits for one of both.
    ///
    /// # Errors
    /// What the kernel says, other than that the connection was reset.
    pub fn is_closed(&mut self) -> io::Result<bool> {
        match self.reader.fill_buf() {
            Ok(bytes) => Ok(bytes.is_empty()),
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(true),
            Err(error) => Err(error),
        }
    }
}
