//! [`Message`]: the envelope of KRPC, one bencoded dictionary per datagram (BEP 5, "KRPC
//! Protocol").
//!
//! | key | in | meaning |
//! |---|---|---|
//! | `a` | query | dictionary of arguments |
//! | `e` | error | list of code and text |
//! | `ip` | reply | compact address and port that the reply goes to (BEP 42) |
//! | `kr` | all, private mode | protocol version, 1 byte, and cluster id, 16 bytes |
//! | `q` | query | method |
//! | `r` | response | dictionary of values |
//! | `ro` | query | 1: the sender answers no queries (BEP 43) |
//! | `t` | all | transaction id, echoed as it came |
//! | `v` | all | client version |
//! | `y` | all | `q`, `r` or `e` |
//!
//! Written is canonical bencode only. Read is what can be made out: unknown keys are passed over,
//! the order of keys does not matter, and arguments and values stay raw for the typed codecs.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::as_conversions)]

use std::net::SocketAddr;

use super::bencode::{BencodeError, Reader, Writer};
use super::compact;
use super::fields::fields;
use super::private::Private;

/// The longest transaction id that is echoed: clients send 2 or 4 bytes, some tools 8 or 20.
pub const TRANSACTION_LEN_MAX: usize = 32;
/// The longest method and version that are read, and the longest error text that is written.
pub const NAME_LEN_MAX: usize = 64;

/// A query or what answers one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message<'a> {
    /// Names the query; a reply has the one of its query.
    pub transaction: &'a [u8],
    /// The sender's program and its version.
    pub version: Option<&'a [u8]>,
    /// The sender of this query answers none.
    pub read_only: bool,
    /// The address that the sender of a reply sees the query come from.
    pub ip: Option<SocketAddr>,
    /// The cluster that sender and receiver are of.
    pub private: Option<Private>,
    /// What it says.
    pub body: Body<'a>,
}

/// What a message says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body<'a> {
    /// Asks for something.
    Query {
        /// For what.
        method: &'a [u8],
        /// A bencoded dictionary.
        arguments: &'a [u8],
    },
    /// Answers a query.
    Response {
        /// A bencoded dictionary.
        values: &'a [u8],
    },
    /// Refuses a query.
    Error {
        /// Why: [`code`], or another number.
        code: i64,
        /// The same in words.
        text: &'a [u8],
    },
}

/// Codes of errors (BEP 5, "Errors"; BEP 44).
pub mod code {
    /// Anything.
    pub const GENERIC: i64 = 201;
    /// The node cannot at the moment.
    pub const SERVER: i64 = 202;
    /// Malformed packet, invalid arguments or bad token.
    pub const PROTOCOL: i64 = 203;
    /// Method unknown.
    pub const METHOD_UNKNOWN: i64 = 204;
}

/// Why a datagram is no message. Nothing of this kind is answered: who sends it need not be who
/// would get the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Reject {
    /// No bencoded dictionary.
    #[error("no dictionary: {0}")]
    Bencode(#[from] BencodeError),
    /// No transaction id, or a very long one.
    #[error("no transaction id")]
    Transaction,
    /// `y` is missing, or nothing we know.
    #[error("neither query nor reply")]
    Kind,
    /// A query without method or dictionary of arguments.
    #[error("incomplete query")]
    Query,
    /// A response without dictionary of values.
    #[error("incomplete response")]
    Response,
    /// An error without code and text.
    #[error("incomplete error")]
    Error,
    /// `kr` is there and has another form.
    #[error("malformed cluster id")]
    Private,
}

/// What was found of a message so far.
#[derive(Default)]
struct Parts<'a> {
    transaction: Option<&'a [u8]>,
    version: Option<&'a [u8]>,
    read_only: bool,
    ip: Option<SocketAddr>,
    private: Option<Private>,
    kind: Option<&'a [u8]>,
    method: Option<&'a [u8]>,
    arguments: Option<&'a [u8]>,
    values: Option<&'a [u8]>,
    error: Option<&'a [u8]>,
}

impl<'a> Message<'a> {
    /// Reads a datagram.
    ///
    /// # Errors
    /// It is no message: [`Reject`] says why.
    pub fn decode(datagram: &'a [u8]) -> Result<Self, Reject> {
        let mut parts = Parts::default();
        fields(datagram, |key, value| parts.take(key, value))?;
        let transaction = parts.transaction.ok_or(Reject::Transaction)?;
        let body = match parts.kind {
            Some(b"q") => Body::Query {
                method: parts.method.ok_or(Reject::Query)?,
                arguments: dictionary(parts.arguments).ok_or(Reject::Query)?,
            },
            Some(b"r") => {
                Body::Response { values: dictionary(parts.values).ok_or(Reject::Response)? }
            }
            Some(b"e") => error(parts.error.ok_or(Reject::Error)?)?,
            _ => return Err(Reject::Kind),
        };
        Ok(Self {
            transaction,
            version: parts.version,
            read_only: parts.read_only,
            ip: parts.ip,
            private: parts.private,
            body,
        })
    }

    /// Appends the message to `output`.
    ///
    /// # Panics
    /// If arguments or values are not a dictionary: the codecs write nothing else.
    pub fn encode(&self, output: &mut Vec<u8>) {
        let mut writer = Writer::new(output);
        writer.dictionary();
        if let Body::Query { arguments, .. } = self.body {
            writer.bytes(b"a").value(checked(arguments));
        }
        if let Body::Error { code, text } = self.body {
            let text = text.get(..NAME_LEN_MAX).unwrap_or(text);
            writer.bytes(b"e").list().integer(code).bytes(text).end();
        }
        if let Some(ip) = &self.ip {
            let mut address = Vec::with_capacity(compact::ADDRESS_V6_LEN);
            compact::encode_address(ip, &mut address);
            writer.bytes(b"ip").bytes(&address);
        }
        if let Some(private) = &self.private {
            writer.bytes(b"kr").bytes(&private.encode());
        }
        if let Body::Query { method, .. } = self.body {
            writer.bytes(b"q").bytes(method);
        }
        if let Body::Response { values } = self.body {
            writer.bytes(b"r").value(checked(values));
        }
        let is_query = matches!(self.body, Body::Query { .. });
        // Some clients pass over replies that have it.
        if self.read_only && is_query {
            writer.bytes(b"ro").integer(1);
        }
        writer.bytes(b"t").bytes(self.transaction);
        if let Some(version) = self.version {
            writer.bytes(b"v").bytes(version);
        }
        let kind = match self.body {
            Body::Query { .. } => b"q",
            Body::Response { .. } => b"r",
            Body::Error { .. } => b"e",
        };
        writer.bytes(b"y").bytes(kind).end();
    }
}

impl<'a> Parts<'a> {
    fn take(&mut self, key: &[u8], value: &'a [u8]) -> Result<(), Reject> {
        match key {
            b"a" => self.arguments = Some(value),
            b"e" => self.error = Some(value),
            b"ip" => self.ip = text(value).and_then(compact::decode_address),
            b"kr" => {
                let private = text(value).and_then(Private::decode).ok_or(Reject::Private)?;
                self.private = Some(private);
            }
            b"q" => self.method = short(value),
            b"r" => self.values = Some(value),
            b"ro" => self.read_only = Reader::new(value).integer() == Ok(1),
            b"t" => {
                let id = text(value).filter(|id| id.len() <= TRANSACTION_LEN_MAX);
                self.transaction = Some(id.ok_or(Reject::Transaction)?);
            }
            b"v" => self.version = short(value),
            b"y" => self.kind = text(value),
            _ => {}
        }
        Ok(())
    }
}

fn text(value: &[u8]) -> Option<&[u8]> {
    Reader::new(value).bytes().ok()
}

fn short(value: &[u8]) -> Option<&[u8]> {
    text(value).filter(|text| text.len() <= NAME_LEN_MAX)
}

fn dictionary(value: Option<&[u8]>) -> Option<&[u8]> {
    value.filter(|value| value.first() == Some(&b'd'))
}

fn checked(value: &[u8]) -> &[u8] {
    assert!(value.first() == Some(&b'd'), "codecs write dictionaries");
    value
}

fn error(value: &[u8]) -> Result<Body<'_>, Reject> {
    let mut reader = Reader::new(value);
    let read = |reader: &mut Reader<'_>| {
        reader.list()?;
        reader.integer()
    };
    let code = read(&mut reader).map_err(|_| Reject::Error)?;
    let text = reader.bytes().map_err(|_| Reject::Error)?;
    Ok(Body::Error { code, text })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query() -> Message<'static> {
        Message {
            transaction: b"aa",
            version: None,
            read_only: false,
            ip: None,
            private: None,
            body: Body::Query { method: b"ping", arguments: b"d2:id20:abcdefghij0123456789e" },
        }
    }

    #[track_caller]
    fn check(message: &Message<'_>, bytes: &[u8]) {
        let mut encoded = Vec::new();
        message.encode(&mut encoded);
        assert_eq!(encoded.escape_ascii().to_string(), bytes.escape_ascii().to_string());
        assert_eq!(Message::decode(bytes), Ok(*message));
    }

    #[test]
    fn messages_of_bep_5_are_read_and_written_as_they_stand_there() {
        check(&query(), b"d1:ad2:id20:abcdefghij0123456789e1:q4:ping1:t2:aa1:y1:qe");
        let values = b"d2:id20:mnopqrstuvwxyz123456e";
        let response = Message { body: Body::Response { values }, ..query() };
        check(&response, b"d1:rd2:id20:mnopqrstuvwxyz123456e1:t2:aa1:y1:re");
        let text = b"A Generic Error Ocurred";
        let error = Message { body: Body::Error { code: code::GENERIC, text }, ..query() };
        check(&error, b"d1:eli201e23:A Generic Error Ocurrede1:t2:aa1:y1:ee");
    }

    #[test]
    fn all_fields_come_back_in_order() {
        let message = Message {
            transaction: b"four",
            version: Some(b"KR01"),
            ip: Some("192.0.2.1:258".parse().unwrap()),
            private: Some(Private { protocol: 1, cluster: [b'c'; 16] }),
            body: Body::Response { values: b"de" },
            ..query()
        };
        check(
            &message,
            b"d2:ip6:\xc0\x00\x02\x01\x01\x022:kr17:\x01cccccccccccccccc1:rde\
            1:t4:four1:v4:KR011:y1:re",
        );
        let asking = Message { read_only: true, ..query() };
        check(&asking, b"d1:ad2:id20:abcdefghij0123456789e1:q4:ping2:roi1e1:t2:aa1:y1:qe");
    }

    #[test]
    fn replies_never_say_read_only() {
        let mut encoded = Vec::new();
        let reply = Message { read_only: true, body: Body::Response { values: b"de" }, ..query() };
        reply.encode(&mut encoded);
        assert_eq!(encoded, b"d1:rde1:t2:aa1:y1:re");
    }

    #[test]
    fn unknown_keys_and_any_order_are_read() {
        let datagram = b"d1:y1:q1:zli1eli2eee1:t0:1:q4:ping1:ade2:rv3:abce";
        let message = Message::decode(datagram).unwrap();
        assert_eq!(message.transaction, b"");
        assert_eq!(message.body, Body::Query { method: b"ping", arguments: b"de" });
    }

    #[test]
    fn what_is_no_message_is_refused() {
        for (datagram, expected) in [
            (&b""[..], Reject::Bencode(BencodeError::Truncated)),
            (b"li1ee", Reject::Bencode(BencodeError::Unexpected { at: 0 })),
            (b"de", Reject::Transaction),
            (b"d1:t2:aae", Reject::Kind),
            (b"d1:t2:aa1:y1:xe", Reject::Kind),
            (b"d1:t2:aa1:y1:qe", Reject::Query),
            (b"d1:ale1:q4:ping1:t2:aa1:y1:qe", Reject::Query),
            (b"d1:t2:aa1:y1:re", Reject::Response),
            (b"d1:ri1e1:t2:aa1:y1:re", Reject::Response),
            (b"d1:t2:aa1:y1:ee", Reject::Error),
            (b"d1:eli1ee1:t2:aa1:y1:ee", Reject::Error),
            (b"d1:rde1:ti1e1:y1:re", Reject::Transaction),
            (b"d2:kr3:abc1:rde1:t2:aa1:y1:re", Reject::Private),
            (b"d1:rde1:t2:aa1:y1:rex", Reject::Bencode(BencodeError::Trailing { at: 20 })),
        ] {
            assert_eq!(Message::decode(datagram), Err(expected), "{}", datagram.escape_ascii());
        }
        let long = [b"d1:rde1:t33:", &[7; 33][..], b"1:y1:re"].concat();
        assert_eq!(Message::decode(&long), Err(Reject::Transaction));
    }
}
