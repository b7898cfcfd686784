//! [`Answer`]: a reply to a client before it is written, and how it is made of what was found.

use bytes::Bytes;

use super::plan::Shape;
use crate::cluster::coordinator::Outcome;
use crate::cluster::message::{Content, Record};
use crate::resp::door::part_of;

/// A reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    Ok,
    Null,
    Integer(i64),
    Simple(&'static str),
    Value(Bytes),
    Values(Vec<Option<Bytes>>),
    /// A cursor, and keys.
    Page(u64, Vec<Bytes>),
    Error(Vec<u8>),
    /// Rows of words.
    Table(Vec<Vec<String>>),
    /// Names and values of figures, and rows of words.
    Report(Vec<String>, Vec<Vec<String>>),
}

/// What became of one key.
#[derive(Clone, Debug, Default)]
pub(super) struct Part {
    /// What was there.
    pub(super) old: Option<Record>,
    /// Whether it has changed.
    pub(super) has_changed: bool,
}

impl Part {
    fn value(self) -> Option<Bytes> {
        match self.old?.content {
            Content::Value(value) => Some(value),
            Content::Tombstone => None,
        }
    }
}

impl Answer {
    pub(super) fn of(shape: Shape, parts: Vec<Part>, now_ms: u64) -> Self {
        let number = |count: usize| Self::Integer(i64::try_from(count).unwrap_or(i64::MAX));
        let changed = parts.iter().filter(|part| part.has_changed).count();
        let mut values = parts.into_iter();
        match shape {
            Shape::Values => Self::Values(values.map(Part::value).collect()),
            Shape::Present => number(values.filter(|part| part.old.is_some()).count()),
            Shape::Changed => number(changed),
            Shape::Ok => Self::Ok,
            Shape::OkIfChanged => {
                if changed > 0 {
                    Self::Ok
                } else {
                    Self::Null
                }
            }
            Shape::Value => values.next().and_then(Part::value).map_or(Self::Null, Self::Value),
            Shape::Range(first, last) => {
                let value = values.next().and_then(Part::value).unwrap_or_default();
                let part = part_of(value.len(), (first, last));
                Self::Value(value.slice(part))
            }
            Shape::Len => number(values.next().and_then(Part::value).map_or(0, |it| it.len())),
            Shape::Type => {
                let is_there = values.next().is_some_and(|part| part.old.is_some());
                Self::Simple(if is_there { "string" } else { "none" })
            }
            Shape::Lifetime { from_now, unit_ms } => {
                let from_ms = if from_now { now_ms } else { 0 };
                Self::Integer(match values.next().and_then(|part| part.old) {
                    None => -2,
                    Some(Record { expiry_ms: 0, .. }) => -1,
                    Some(Record { expiry_ms, .. }) => {
                        let ms = expiry_ms.saturating_sub(from_ms).saturating_add(unit_ms / 2);
                        i64::try_from(ms / unit_ms).unwrap_or(i64::MAX)
                    }
                })
            }
        }
    }
}

pub(super) const LOADING: &[u8] = b"LOADING this node has not yet spoken to its cluster";

/// What a client is told of a command that was not decided as it wished.
pub(super) fn error_of(outcome: &Outcome) -> &'static [u8] {
    match outcome {
        Outcome::Loading => LOADING,
        Outcome::KeyConflict => b"ERR another key has the same SHA-1 id; this key cannot be stored",
        Outcome::ClockAhead => {
            b"NOREPLICAS the clock of this node is too far ahead: other nodes refuse what it \
              writes; set the clock, or write through another node"
        }
        Outcome::NotReady => {
            b"NOTREADY no majority of the key's nodes has been filled yet; a write may have taken \
              effect; try again in a moment"
        }
        Outcome::NoReplicas
        | Outcome::Written { .. }
        | Outcome::Found(_)
        | Outcome::Listed { .. } => {
            b"NOREPLICAS no majority of the key's nodes has answered; a write may have taken effect"
        }
    }
}
