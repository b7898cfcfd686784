//! What a client's command means in a cluster: for each of its keys an [`Action`], and the
//! [`Shape`] of its reply.

use bytes::Bytes;
use storage::Entry;

use crate::cluster::message::{Content, Record};
use crate::resp::command::{
    Command, CommandError, Expire, ExpireBase, ExpireCondition, GetEx, Set, SetAnswer,
    SetCondition, SetExpiry,
};
use crate::resp::door::{Lifetime, expire_applies, lifetime};

/// What is done with a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// It is read.
    Read,
    /// It gets a value.
    Put {
        value: Bytes,
        lifetime: Lifetime,
        condition: SetCondition,
        /// Whether the old value is answered.
        wants_old: bool,
    },
    /// It is deleted, if it is there.
    Remove,
    /// It lives up to this time in ms, if the condition holds.
    Expire { at_ms: u64, condition: ExpireCondition },
    /// It gets another lifetime if it is there, 0 = for ever.
    Extend { until_ms: u64 },
    /// It lives for ever, if it would not.
    Persist,
}

/// What a key is to become: a value with its expiry, or nothing.
pub(super) type Change = (Option<Bytes>, u64);

impl Action {
    /// Whether the key's record must be known first.
    pub(super) fn needs_old(&self) -> bool {
        match self {
            Self::Put { lifetime, condition, wants_old, .. } => {
                *lifetime == Lifetime::Keep || *condition != SetCondition::Always || *wants_old
            }
            Self::Read
            | Self::Remove
            | Self::Expire { .. }
            | Self::Extend { .. }
            | Self::Persist => true,
        }
    }

    /// Whether it may change the key.
    pub(super) fn changes(&self) -> bool {
        *self != Self::Read
    }

    /// What the key is to become, if it changes.
    pub(super) fn change(&self, old: Option<&Record>, now_ms: u64) -> Option<Change> {
        let value_of = |record: &Record| match &record.content {
            Content::Value(value) => Some(value.clone()),
            Content::Tombstone => None,
        };
        let until = |record: &Record, until_ms: u64| {
            let is_over = until_ms != 0 && until_ms <= now_ms;
            if is_over { (None, 0) } else { (value_of(record), until_ms) }
        };
        match self {
            Self::Read => None,
            Self::Put { value, lifetime, condition, .. } => {
                let stores = match condition {
                    SetCondition::Always => true,
                    SetCondition::IfMissing => old.is_none(),
                    SetCondition::IfPresent => old.is_some(),
                };
                let expiry_ms = match lifetime {
                    Lifetime::Keep => old.map_or(0, |old| old.expiry_ms),
                    Lifetime::Until(expiry_ms) => *expiry_ms,
                };
                stores.then(|| (Some(value.clone()), expiry_ms))
            }
            Self::Remove => old.map(|_| (None, 0)),
            Self::Expire { at_ms, condition } => {
                let old = old?;
                let (version, expiry_ms) = (old.version, old.expiry_ms);
                let entry = Entry { value_len: 0, expiry_ms, version };
                expire_applies(*condition, &entry, *at_ms).then(|| until(old, (*at_ms).max(1)))
            }
            Self::Extend { until_ms } => old.map(|old| until(old, *until_ms)),
            Self::Persist => {
                let old = old.filter(|old| old.expiry_ms != 0)?;
                Some((value_of(old), 0))
            }
        }
    }
}

/// What a reply is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    /// The value that was there.
    Value,
    /// A part of it.
    Range(i64, i64),
    /// The values of all keys.
    Values,
    /// How many keys are there.
    Present,
    /// How many keys have changed.
    Changed,
    /// OK.
    Ok,
    /// OK, or nil if nothing has changed.
    OkIfChanged,
    /// Bytes of the value.
    Len,
    /// `string` or `none`.
    Type,
    /// What is left of the lifetime, or its end, in units of so many ms.
    Lifetime { from_now: bool, unit_ms: u64 },
}

/// A command taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Plan {
    pub(super) parts: Vec<(Bytes, Action)>,
    pub(super) shape: Shape,
}

/// Plans a command on keys; `bytes` is what its words lie in.
///
/// # Errors
/// The text for the client.
pub(super) fn plan(
    command: &Command<'_>,
    bytes: &Bytes,
    now_ms: u64,
    value_bytes_max: usize,
) -> Result<Plan, Vec<u8>> {
    let one =
        |key: &[u8], action, shape| Ok(Plan { parts: vec![(keep(bytes, key), action)], shape });
    let read = |key: &[u8], shape| one(key, Action::Read, shape);
    let fits = |value: &[u8]| match value.len() <= value_bytes_max {
        true => Ok(keep(bytes, value)),
        false => Err(too_long(value_bytes_max)),
    };
    match *command {
        Command::Get { key } => read(key, Shape::Value),
        Command::GetRange { key, first, last } => read(key, Shape::Range(first, last)),
        Command::StrLen { key } => read(key, Shape::Len),
        Command::Type { key } => read(key, Shape::Type),
        Command::Ttl { key } => read(key, Shape::Lifetime { from_now: true, unit_ms: 1_000 }),
        Command::PTtl { key } => read(key, Shape::Lifetime { from_now: true, unit_ms: 1 }),
        Command::ExpireTime { key } => {
            read(key, Shape::Lifetime { from_now: false, unit_ms: 1_000 })
        }
        Command::PExpireTime { key } => read(key, Shape::Lifetime { from_now: false, unit_ms: 1 }),
        Command::MGet { keys } => Ok(many(bytes, keys, &Action::Read, Shape::Values)),
        Command::Exists { keys } => Ok(many(bytes, keys, &Action::Read, Shape::Present)),
        Command::Del { keys } | Command::Unlink { keys } => {
            Ok(many(bytes, keys, &Action::Remove, Shape::Changed))
        }
        Command::MSet { pairs } => {
            let parts = pairs.map(|(key, value)| {
                let (lifetime, condition) = (Lifetime::Until(0), SetCondition::Always);
                let value = fits(value)?;
                let action = Action::Put { value, lifetime, condition, wants_old: false };
                Ok((keep(bytes, key), action))
            });
            Ok(Plan { parts: parts.collect::<Result<_, Vec<u8>>>()?, shape: Shape::Ok })
        }
        Command::Set(set) => {
            let (action, shape) = set_of(&set, fits(set.value)?, now_ms)?;
            one(set.key, action, shape)
        }
        Command::GetDel { key } => one(key, Action::Remove, Shape::Value),
        Command::GetEx(get) => one(get.key, get_ex(&get, now_ms)?, Shape::Value),
        Command::Expire(expire) => one(expire.key, expire_of(&expire, now_ms)?, Shape::Changed),
        Command::Persist { key } => one(key, Action::Persist, Shape::Changed),
        _ => Err(b"ERR this command is not answered by the cluster".to_vec()),
    }
}

/// A word without a copy.
fn keep(bytes: &Bytes, word: &[u8]) -> Bytes {
    let (all, part) = (bytes.as_ptr_range(), word.as_ptr_range());
    let is_inside = all.start <= part.start && part.end <= all.end;
    if is_inside { bytes.slice_ref(word) } else { Bytes::copy_from_slice(word) }
}

fn many<'a>(
    bytes: &Bytes,
    keys: impl Iterator<Item = &'a [u8]>,
    action: &Action,
    shape: Shape,
) -> Plan {
    Plan { parts: keys.map(|key| (keep(bytes, key), action.clone())).collect(), shape }
}

fn too_long(limit: usize) -> Vec<u8> {
    format!("ERR value is larger than value_bytes_max, {limit} bytes").into_bytes()
}

fn set_of(set: &Set<'_>, value: Bytes, now_ms: u64) -> Result<(Action, Shape), Vec<u8>> {
    let lifetime = lifetime(set.expiry, now_ms)
        .ok_or_else(|| CommandError::ExpireTime { name: set.name }.message())?;
    let (shape, wants_old) = match set.answer {
        SetAnswer::Ok => (Shape::OkIfChanged, false),
        SetAnswer::Flag => (Shape::Changed, false),
        SetAnswer::Old => (Shape::Value, true),
    };
    Ok((Action::Put { value, lifetime, condition: set.condition, wants_old }, shape))
}

fn get_ex(get: &GetEx<'_>, now_ms: u64) -> Result<Action, Vec<u8>> {
    match get.expiry {
        Ok(SetExpiry::Keep) => Ok(Action::Read),
        Ok(expiry) => match lifetime(expiry, now_ms) {
            Some(Lifetime::Until(until_ms)) => Ok(Action::Extend { until_ms }),
            Some(Lifetime::Keep) | None => {
                Err(CommandError::ExpireTime { name: "getex" }.message())
            }
        },
        Err(error) => Err(error.message()),
    }
}

fn expire_of(expire: &Expire<'_>, now_ms: u64) -> Result<Action, Vec<u8>> {
    let at_ms = match expire.base {
        ExpireBase::Epoch => Some(expire.ms),
        ExpireBase::Now => i64::try_from(now_ms).ok().and_then(|now| now.checked_add(expire.ms)),
    };
    let at_ms = at_ms.ok_or_else(|| CommandError::ExpireTime { name: expire.name }.message())?;
    Ok(Action::Expire { at_ms: u64::try_from(at_ms).unwrap_or(0), condition: expire.condition })
}
