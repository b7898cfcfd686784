//! Commands that read a key's value and then change the key, which stays locked meanwhile.

use bytes::{Bytes, BytesMut};
use storage::{Effect, ReadId, Value, WriteError};

use super::super::reply_queue::Reply;
use crate::keyspace::{Address, Keyspace, Wait};
use crate::resp::command::SetCondition;
use crate::resp::frame::integer;

/// The lifetime that a new value gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lifetime {
    /// That of the old value.
    Keep,
    /// Up to this time in milliseconds since 1970, 0 = for ever.
    Until(u64),
}

/// What a SET without GET answers when it has stored its value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::resp::door) enum PutAnswer {
    Ok,
    One,
}

/// How a key's old value becomes its new one.
#[derive(Clone, Debug)]
pub(in crate::resp::door) enum Change {
    /// INCR and its like.
    Increment { by: i64 },
    /// APPEND.
    Append { value: Bytes },
    /// SETRANGE.
    Overwrite { offset: usize, value: Bytes },
    /// SET of a large value, whose conditions were found to hold.
    Put { value: Bytes, expiry_ms: u64, answers: PutAnswer },
    /// SET with GET, GETSET.
    Replace { value: Bytes, lifetime: Lifetime, condition: SetCondition },
    /// GETDEL.
    Delete,
    /// GETEX: `0` takes the lifetime away; a wrong one is an error if there is such a key.
    Expire { until: Result<u64, Vec<u8>> },
}

/// What becomes of the key.
#[derive(Debug)]
enum Effected {
    Nothing,
    /// The value has memory of its own.
    Stored {
        value: Bytes,
        expiry_ms: u64,
    },
    Touched {
        expiry_ms: u64,
    },
    Removed,
}

/// What a change answers.
#[derive(Debug)]
enum Answer {
    Integer(usize),
    Number(i64),
    Old(Option<Bytes>),
    Ok,
}

/// How far carrying a change out has come.
#[derive(Debug)]
pub(super) enum Written {
    /// It is done and its answer written.
    Done,
    /// The key must be resolved first.
    Pending(ReadId),
    /// The log is busy.
    Busy,
}

impl Change {
    fn apply(
        &self,
        old: Option<&Value>,
        now_ms: u64,
        value_bytes_max: usize,
    ) -> Result<(Effected, Answer), Vec<u8>> {
        let expiry_ms = old.map_or(0, |value| value.expiry_ms);
        let old_bytes = old.map(|value| value.value.clone());
        Ok(match self {
            Self::Increment { by } => {
                let number = old.map_or(Some(0), |value| integer(&value.value));
                let number = number.ok_or("ERR value is not an integer or out of range")?;
                let sum = number.checked_add(*by);
                let sum = sum.ok_or("ERR increment or decrement would overflow")?;
                let value = Bytes::from(sum.to_string());
                (Effected::Stored { value, expiry_ms }, Answer::Number(sum))
            }
            Self::Append { value } => {
                let offset = old_bytes.as_ref().map_or(0, Bytes::len);
                let value = overwritten(old_bytes, offset, value, value_bytes_max)?;
                let len = value.len();
                (Effected::Stored { value, expiry_ms }, Answer::Integer(len))
            }
            Self::Overwrite { value, .. } if value.is_empty() => {
                (Effected::Nothing, Answer::Integer(old_bytes.map_or(0, |value| value.len())))
            }
            Self::Overwrite { offset, value } => {
                let value = overwritten(old_bytes, *offset, value, value_bytes_max)?;
                let len = value.len();
                (Effected::Stored { value, expiry_ms }, Answer::Integer(len))
            }
            Self::Put { value, expiry_ms, answers } => {
                let stored = Effected::Stored { value: value.clone(), expiry_ms: *expiry_ms };
                let answer = match answers {
                    PutAnswer::Ok => Answer::Ok,
                    PutAnswer::One => Answer::Integer(1),
                };
                (stored, answer)
            }
            Self::Replace { value, lifetime, condition } => {
                let stores = match condition {
                    SetCondition::Always => true,
                    SetCondition::IfMissing => old.is_none(),
                    SetCondition::IfPresent => old.is_some(),
                };
                let expiry_ms = match lifetime {
                    Lifetime::Keep => expiry_ms,
                    Lifetime::Until(expiry_ms) => *expiry_ms,
                };
                let stored = Effected::Stored { value: value.clone(), expiry_ms };
                (if stores { stored } else { Effected::Nothing }, Answer::Old(old_bytes))
            }
            Self::Delete if old.is_some() => (Effected::Removed, Answer::Old(old_bytes)),
            Self::Delete => (Effected::Nothing, Answer::Old(None)),
            Self::Expire { .. } if old.is_none() => (Effected::Nothing, Answer::Old(None)),
            Self::Expire { until } => {
                let effected = match until.clone()? {
                    until_ms if until_ms == expiry_ms => Effected::Nothing,
                    until_ms if until_ms != 0 && until_ms <= now_ms => Effected::Removed,
                    until_ms => Effected::Touched { expiry_ms: until_ms },
                };
                (effected, Answer::Old(old_bytes))
            }
        })
    }

    /// Carries the change out, whose old value is known, and writes the answer.
    pub(super) fn write(
        &self,
        keyspace: &mut Keyspace,
        address: &Address<'_>,
        old: Option<&Value>,
        value_bytes_max: usize,
        reply: &mut Reply,
    ) -> Result<Written, WriteError> {
        let now_ms = keyspace.now().clock_ms;
        let (effected, answer) = match self.apply(old, now_ms, value_bytes_max) {
            Ok(applied) => applied,
            Err(text) => {
                reply.writer().error(&text);
                return Ok(Written::Done);
            }
        };
        let effect = match effected {
            Effected::Nothing => Ok(None),
            Effected::Stored { value, expiry_ms } => {
                keyspace.put_kept(address, &value, expiry_ms).map(Some)
            }
            Effected::Touched { expiry_ms } => keyspace.touch(address, expiry_ms).map(Some),
            Effected::Removed => keyspace.remove(address).map(Some),
        };
        match effect {
            Err(WriteError::Busy) => return Ok(Written::Busy),
            Err(error) => return Err(error),
            Ok(Some(Effect::Pending(read))) => return Ok(Written::Pending(read)),
            Ok(Some(Effect::Done(Some(lsn)))) => {
                reply.wait(Some(Wait { shard: address.shard, lsn }));
            }
            Ok(Some(Effect::Done(None)) | None) => {}
        }
        match answer {
            Answer::Number(number) => reply.writer().integer(number),
            Answer::Integer(len) => {
                reply.writer().integer(i64::try_from(len).unwrap_or(i64::MAX));
            }
            Answer::Old(Some(value)) => reply.value(value),
            Answer::Old(None) => reply.writer().null(),
            Answer::Ok => reply.writer().ok(),
        }
        Ok(Written::Done)
    }
}

/// Puts `value` over the old bytes from `offset` on, zeros between them if need be.
fn overwritten(
    old: Option<Bytes>,
    offset: usize,
    value: &[u8],
    value_bytes_max: usize,
) -> Result<Bytes, &'static str> {
    let end = offset.checked_add(value.len()).filter(|end| *end <= value_bytes_max);
    let end = end.ok_or("ERR string exceeds maximum allowed size (value_bytes_max)")?;
    let old = old.unwrap_or_default();
    let mut bytes = BytesMut::with_capacity(end.max(old.len()));
    bytes.extend_from_slice(&old);
    bytes.resize(end.max(old.len()), 0);
    bytes[offset..end].copy_from_slice(value);
    Ok(bytes.freeze())
}
