//! [`ReplyReader`]: takes replies of a RESP server apart as their bytes come, without keeping
//! values.
//!
//! It knows what answers AUTH, GET and SET: status, error, integer, bulk string, nil (of RESP2 and
//! RESP3). The bytes of a value are lent out of the caller's buffer, part by part.

/// Bytes of a line at most; Redis' own errors are far shorter.
const REPLY_LINE_MAX: usize = 4096;

/// What comes next in the replies of a server.
#[derive(Debug, PartialEq, Eq)]
pub enum ReplyEvent<'a> {
    /// The input is used up.
    More,
    /// Bytes of a value, from this offset on; [`ReplyEvent::Value`] follows once it is whole.
    Part {
        /// Of the first byte, in the value.
        offset: usize,
        /// The bytes.
        bytes: &'a [u8],
    },
    /// A reply: a value of this length, all parts of which have come.
    Value {
        /// Bytes of the value.
        len: usize,
    },
    /// A reply: there is no value.
    Nil,
    /// A reply: a line such as `OK`.
    Status,
    /// A reply: a number.
    Integer,
    /// A reply: an error, with its text.
    Error(String),
}

/// What came is no reply that this reader knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReplyFault {
    /// A reply of another kind.
    #[error("a reply that begins with byte {found:#04x}")]
    Kind {
        /// Its first byte.
        found: u8,
    },
    /// A length that is no number, or a line without proper end.
    #[error("a broken line in a reply")]
    Line,
    /// A line without end.
    #[error("a line of more than {REPLY_LINE_MAX} bytes in a reply")]
    LongLine,
    /// A value that does not end where its length says.
    #[error("a value that is not followed by a line end")]
    ValueEnd,
}

/// Where in a reply the next byte stands.
#[derive(Clone, Copy, Debug)]
enum At {
    /// In a line; what came of it may wait in `line`.
    Line,
    /// In a value.
    Value { len: usize, offset: usize },
    /// Behind a value; so many bytes of the line end have come.
    ValueEnd { len: usize, seen: usize },
}

/// Takes replies apart; see the module.
#[derive(Debug)]
pub struct ReplyReader {
    at: At,
    line: Vec<u8>,
}

impl Default for ReplyReader {
    fn default() -> Self {
        Self { at: At::Line, line: Vec::new() }
    }
}

impl ReplyReader {
    /// Takes the next event from the front of `input`.
    ///
    /// # Errors
    /// [`ReplyFault`]; the connection is of no use any more.
    pub fn next<'a>(&mut self, input: &mut &'a [u8]) -> Result<ReplyEvent<'a>, ReplyFault> {
        loop {
            match self.at {
                At::Value { len, offset } if offset < len => {
                    if input.is_empty() {
                        return Ok(ReplyEvent::More);
                    }
                    let (bytes, rest) = input.split_at(input.len().min(len - offset));
                    *input = rest;
                    self.at = At::Value { len, offset: offset + bytes.len() };
                    return Ok(ReplyEvent::Part { offset, bytes });
                }
                At::Value { len, .. } => self.at = At::ValueEnd { len, seen: 0 },
                At::ValueEnd { len, seen } => {
                    let Some((byte, rest)) = input.split_first() else {
                        return Ok(ReplyEvent::More);
                    };
                    if *byte != b"\r\n"[seen] {
                        return Err(ReplyFault::ValueEnd);
                    }
                    *input = rest;
                    if seen == 1 {
                        self.at = At::Line;
                        return Ok(ReplyEvent::Value { len });
                    }
                    self.at = At::ValueEnd { len, seen: 1 };
                }
                At::Line => match self.take_line(input)? {
                    Some(LineMeaning::Reply(event)) => return Ok(event),
                    Some(LineMeaning::ValueFollows { len }) => {
                        self.at = At::Value { len, offset: 0 };
                    }
                    None => return Ok(ReplyEvent::More),
                },
            }
        }
    }

    /// Takes a line, or what there is of it.
    fn take_line(&mut self, input: &mut &[u8]) -> Result<Option<LineMeaning>, ReplyFault> {
        let Some(end) = input.iter().position(|byte| *byte == b'\n') else {
            if self.line.len() + input.len() > REPLY_LINE_MAX {
                return Err(ReplyFault::LongLine);
            }
            self.line.extend_from_slice(input);
            *input = &[];
            return Ok(None);
        };
        let (line, rest) = input.split_at(end + 1);
        *input = rest;
        if self.line.is_empty() {
            return meaning(line).map(Some);
        }
        self.line.extend_from_slice(line);
        let found = meaning(&self.line);
        self.line.clear();
        found.map(Some)
    }
}

/// What a line stands for.
enum LineMeaning {
    Reply(ReplyEvent<'static>),
    ValueFollows { len: usize },
}

/// Understands a line, its end included.
fn meaning(line: &[u8]) -> Result<LineMeaning, ReplyFault> {
    let text = line.strip_suffix(b"\r\n").ok_or(ReplyFault::Line)?;
    let (kind, rest) = text.split_first().ok_or(ReplyFault::Line)?;
    let event = match kind {
        b'+' => ReplyEvent::Status,
        b':' => ReplyEvent::Integer,
        b'_' => ReplyEvent::Nil,
        b'-' => ReplyEvent::Error(String::from_utf8_lossy(rest).into_owned()),
        b'$' if rest == b"-1" => ReplyEvent::Nil,
        b'$' => return Ok(LineMeaning::ValueFollows { len: length(rest)? }),
        found => return Err(ReplyFault::Kind { found: *found }),
    };
    Ok(LineMeaning::Reply(event))
}

/// A length of at most nine digits: more than a value can have.
fn length(digits: &[u8]) -> Result<usize, ReplyFault> {
    let sound = (1..=9).contains(&digits.len()) && digits.iter().all(u8::is_ascii_digit);
    if !sound {
        return Err(ReplyFault::Line);
    }
    Ok(digits.iter().fold(0, |sum, digit| sum * 10 + usize::from(digit - b'0')))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads pieces one after another; values are put together, events told in words.
    fn read(pieces: &[&[u8]]) -> Result<Vec<String>, ReplyFault> {
        let mut reader = ReplyReader::default();
        let (mut told, mut value) = (Vec::new(), Vec::new());
        for piece in pieces {
            let mut input = *piece;
            loop {
                match reader.next(&mut input)? {
                    ReplyEvent::More => break,
                    ReplyEvent::Part { offset, bytes } => {
                        assert_eq!(offset, value.len());
                        value.extend_from_slice(bytes);
                    }
                    ReplyEvent::Value { len } => {
                        assert_eq!(len, value.len());
                        told.push(format!("value {}", value.escape_ascii()));
                        value.clear();
                    }
                    other => told.push(format!("{other:?}")),
                }
            }
            assert!(input.is_empty());
        }
        Ok(told)
    }

    const ALL: &[u8] = b"+OK\r\n$5\r\na\r\nbc\r\n$-1\r\n_\r\n:12\r\n-ERR no\r\n$0\r\n\r\n+\r\n";
    const TOLD: [&str; 8] = [
        "Status",
        r"value a\r\nbc",
        "Nil",
        "Nil",
        "Integer",
        r#"Error("ERR no")"#,
        "value ",
        "Status",
    ];

    #[test]
    fn replies_are_understood_wherever_the_bytes_are_cut() {
        assert_eq!(read(&[ALL]).unwrap(), TOLD);
        for first in 0..=ALL.len() {
            let (head, rest) = ALL.split_at(first);
            assert_eq!(read(&[head, rest]).unwrap(), TOLD, "cut at {first}");
            for second in 0..=rest.len() {
                let (middle, tail) = rest.split_at(second);
                assert_eq!(read(&[head, middle, tail]).unwrap(), TOLD, "{first} and {second}");
            }
        }
        let single: Vec<&[u8]> = ALL.chunks(1).collect();
        assert_eq!(read(&single).unwrap(), TOLD);
    }

    #[test]
    fn what_is_no_reply_is_refused() {
        for (bytes, fault) in [
            (&b"*1\r\n"[..], ReplyFault::Kind { found: b'*' }),
            (b"HTTP/1.1 400\r\n", ReplyFault::Kind { found: b'H' }),
            (b"\r\n", ReplyFault::Line),
            (b"\n", ReplyFault::Line),
            (b"+OK\n", ReplyFault::Line),
            (b"$\r\n", ReplyFault::Line),
            (b"$-2\r\n", ReplyFault::Line),
            (b"$1x\r\n", ReplyFault::Line),
            (b"$9999999999\r\n", ReplyFault::Line),
            (b"$1\r\nab\r\n", ReplyFault::ValueEnd),
            (b"$1\r\na\rb", ReplyFault::ValueEnd),
        ] {
            let single: Vec<&[u8]> = bytes.chunks(1).collect();
            assert_eq!(read(&[bytes]), Err(fault), "{}", bytes.escape_ascii());
            assert_eq!(read(&single), Err(fault), "{}", bytes.escape_ascii());
        }
        let long = [b'+'; REPLY_LINE_MAX + 1];
        assert_eq!(read(&[&long]), Err(ReplyFault::LongLine));
        assert_eq!(read(&[&long[1..], &long[..1]]), Err(ReplyFault::LongLine));
    }
}
