//! What `kadring mainline` prints.

use std::io::Write;

use redis::Value;

use super::super::error::CliError;
use crate::krpc::bencode::Reader;
use crate::mainline::text;
use crate::mainline::zbase32;

/// An answer of named fields: a map, or a list of names and values in turn.
pub(super) struct Fields<'a>(Vec<(String, &'a Value)>);

impl<'a> Fields<'a> {
    pub(super) fn of(answer: &'a Value) -> Option<Self> {
        let mut fields = Vec::new();
        match answer {
            Value::Map(pairs) => {
                for (name, value) in pairs {
                    fields.push((text_of(name)?, value));
                }
            }
            Value::Array(words) => {
                for pair in words.chunks(2) {
                    let [name, value] = pair else { return None };
                    fields.push((text_of(name)?, value));
                }
            }
            _ => return None,
        }
        Some(Self(fields))
    }

    fn value(&self, wanted: &str) -> Option<&'a Value> {
        self.0.iter().find(|(name, _)| name == wanted).map(|(_, value)| *value)
    }

    pub(super) fn bytes(&self, name: &str) -> Option<&'a [u8]> {
        match self.value(name)? {
            Value::BulkString(bytes) => Some(bytes),
            _ => None,
        }
    }

    pub(super) fn text(&self, name: &str) -> Option<String> {
        text_of(self.value(name)?)
    }

    pub(super) fn integer(&self, name: &str) -> Option<i64> {
        match self.value(name)? {
            Value::Int(number) => Some(*number),
            _ => None,
        }
    }

    pub(super) fn texts(&self, name: &str) -> Option<Vec<String>> {
        match self.value(name)? {
            Value::Array(words) => words.iter().map(text_of).collect(),
            _ => None,
        }
    }
}

/// An answer that is a string, with what cannot be printed escaped.
pub(super) fn text_of(value: &Value) -> Option<String> {
    match value {
        Value::BulkString(bytes) => Some(bytes.escape_ascii().to_string()),
        Value::SimpleString(text) => Some(text.clone()),
        Value::Int(number) => Some(number.to_string()),
        Value::Okay => Some("OK".to_owned()),
        _ => None,
    }
}

pub(super) fn line(out: &mut dyn Write, text: &str) -> Result<(), CliError> {
    writeln!(out, "{text}").map_err(CliError::Output)
}

/// All fields, one a line; of lists each entry.
pub(super) fn details(out: &mut dyn Write, fields: &Fields<'_>) -> Result<(), CliError> {
    for (name, value) in &fields.0 {
        let Value::Array(entries) = value else {
            if let Some(text) = text_of(value) {
                line(out, &format!("{name}={text}"))?;
            }
            continue;
        };
        let name = name.strip_suffix('s').unwrap_or(name);
        for entry in entries {
            let words = match entry {
                Value::Array(words) => words.iter().filter_map(text_of).collect(),
                word => Vec::from_iter(text_of(word)),
            };
            line(out, &format!("{name}={}", words.join(" ")))?;
        }
    }
    Ok(())
}

/// A value byte for byte: the content of a string, else its bencode; with a line end only if a
/// person reads it.
pub(super) fn value(
    out: &mut dyn Write,
    value: &[u8],
    bencoded: bool,
    is_terminal: bool,
) -> Result<(), CliError> {
    let content = Reader::new(value).bytes().ok().filter(|_| !bencoded);
    out.write_all(content.unwrap_or(value)).map_err(CliError::Output)?;
    let line_end: &[u8] = if is_terminal { b"\n" } else { b"" };
    out.write_all(line_end).map_err(CliError::Output)
}

/// A public key both ways.
pub(super) fn key(out: &mut dyn Write, public: &[u8; 32]) -> Result<(), CliError> {
    line(out, &format!("{} {}", text::hex(public), zbase32::encode(public)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bulk(text: &str) -> Value {
        Value::BulkString(text.as_bytes().to_vec())
    }

    #[test]
    fn details_are_the_same_from_both_protocols() {
        let replicas = Value::Array(vec![Value::Array(vec![bulk("127.0.0.1:1"), bulk("stored")])]);
        let pairs = vec![
            (bulk("target"), bulk("ab")),
            (bulk("stored"), Value::Int(1)),
            (bulk("value"), Value::Nil),
            (bulk("replicas"), replicas),
        ];
        let flat = pairs.clone().into_iter().flat_map(|(name, value)| [name, value]).collect();
        for answer in [Value::Map(pairs), Value::Array(flat)] {
            let fields = Fields::of(&answer).unwrap();
            assert_eq!((fields.integer("stored"), fields.bytes("value")), (Some(1), None));
            let mut out = Vec::new();
            details(&mut out, &fields).unwrap();
            assert_eq!(out, b"target=ab\nstored=1\nreplica=127.0.0.1:1 stored\n");
        }
        assert!(Fields::of(&Value::Array(vec![bulk("odd")])).is_none());
        assert!(Fields::of(&Value::Int(1)).is_none());
    }

    #[test]
    fn strings_are_printed_without_their_length() {
        let print = |bytes: &[u8], bencoded, is_terminal| {
            let mut out = Vec::new();
            value(&mut out, bytes, bencoded, is_terminal).unwrap();
            out
        };
        assert_eq!(print(b"3:abc", false, false), b"abc");
        assert_eq!(print(b"3:abc", true, false), b"3:abc");
        assert_eq!(print(b"li1ee", false, true), b"li1ee\n");
    }
}
