//! Options of the commands on keys: SET, GETEX, EXPIRE, SCAN, FLUSHALL, SHUTDOWN.
//!
//! As in Redis, option words come in any case and are checked before the numbers beside them.

use super::{CommandError, check_key};
use crate::resp::frame::{Arguments, integer};

/// A lifetime as the client gave it; the parser has no clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SetExpiry {
    /// The key lives for ever.
    #[default]
    None,
    /// The key keeps the lifetime it has.
    Keep,
    /// The key lives this many milliseconds from now on; positive.
    In {
        /// Milliseconds.
        ms: i64,
    },
    /// The key lives up to this wall-clock time; positive, possibly in the past.
    At {
        /// Milliseconds since 1970.
        ms: i64,
    },
}

/// When SET stores.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SetCondition {
    /// In any case.
    #[default]
    Always,
    /// NX: only if the key does not exist.
    IfMissing,
    /// XX: only if the key exists.
    IfPresent,
}

/// What SET answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SetAnswer {
    /// OK, or nil if the condition does not hold.
    #[default]
    Ok,
    /// SETNX: 1, or 0 if the condition does not hold.
    Flag,
    /// GET: the old value.
    Old,
}

/// SET with its options, and its older forms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Set<'a> {
    /// Key.
    pub key: &'a [u8],
    /// Value.
    pub value: &'a [u8],
    /// How long it lives.
    pub expiry: SetExpiry,
    /// When it is stored.
    pub condition: SetCondition,
    /// What it answers.
    pub answer: SetAnswer,
    /// Name of the command, for [`CommandError::ExpireTime`] if the lifetime ends too far off.
    pub name: &'static str,
}

/// Unit of a lifetime and what it counts from.
#[derive(Clone, Copy, PartialEq, Eq)]
enum ExpiryOption {
    Ex,
    Px,
    ExAt,
    PxAt,
}

impl<'a> Set<'a> {
    #[inline]
    pub(super) fn parse(arguments: &Arguments<'a>) -> Result<Self, CommandError<'a>> {
        let mut set = Self {
            key: check_key(argument(arguments, 1))?,
            value: argument(arguments, 2),
            expiry: SetExpiry::None,
            condition: SetCondition::Always,
            answer: SetAnswer::Ok,
            name: "set",
        };
        if arguments.len() > 3 {
            set.parse_options(arguments)?;
        }
        Ok(set)
    }

    fn parse_options(&mut self, arguments: &Arguments<'a>) -> Result<(), CommandError<'a>> {
        let mut lifetime: Option<(ExpiryOption, &[u8])> = None;
        let mut index = 3;
        while let Some(option) = arguments.get(index) {
            index += 1;
            let is = |word: &str| option.eq_ignore_ascii_case(word.as_bytes());
            if is("nx") && self.condition != SetCondition::IfPresent {
                self.condition = SetCondition::IfMissing;
            } else if is("xx") && self.condition != SetCondition::IfMissing {
                self.condition = SetCondition::IfPresent;
            } else if is("get") {
                self.answer = SetAnswer::Old;
            } else if is("keepttl") && lifetime.is_none() {
                self.expiry = SetExpiry::Keep;
            } else {
                let unit = expiry_option(option).ok_or(CommandError::Syntax)?;
                let number = arguments.get(index).ok_or(CommandError::Syntax)?;
                index += 1;
                // The same option may come twice, the last one counts; another one may not.
                let is_clash = lifetime.is_some_and(|(other, _)| other != unit);
                if is_clash || self.expiry == SetExpiry::Keep {
                    return Err(CommandError::Syntax);
                }
                lifetime = Some((unit, number));
            }
        }
        if let Some((unit, number)) = lifetime {
            self.expiry = set_expiry(unit, number, self.name)?;
        }
        Ok(())
    }

    /// SETNX and GETSET: a key and a value.
    pub(super) fn parse_plain(
        arguments: &Arguments<'a>,
        name: &'static str,
        (condition, answer): (SetCondition, SetAnswer),
    ) -> Result<Self, CommandError<'a>> {
        let (key, value) = (check_key(argument(arguments, 1))?, argument(arguments, 2));
        Ok(Self { key, value, expiry: SetExpiry::None, condition, answer, name })
    }

    /// SETEX and PSETEX: a key, a lifetime and a value.
    pub(super) fn parse_with_lifetime(
        arguments: &Arguments<'a>,
        name: &'static str,
        unit_ms: i64,
    ) -> Result<Self, CommandError<'a>> {
        let (key, value) = (check_key(argument(arguments, 1))?, argument(arguments, 3));
        let unit = if unit_ms == 1 { ExpiryOption::Px } else { ExpiryOption::Ex };
        let expiry = set_expiry(unit, argument(arguments, 2), name)?;
        let (condition, answer) = (SetCondition::Always, SetAnswer::Ok);
        Ok(Self { key, value, expiry, condition, answer, name })
    }
}

/// GETEX with its options.
#[derive(Clone, Copy, Debug)]
pub struct GetEx<'a> {
    /// Key.
    pub key: &'a [u8],
    /// The new lifetime, `None` for ever; `Keep` if none was said. As in Redis a wrong one is an
    /// error only if the key exists.
    pub expiry: Result<SetExpiry, CommandError<'a>>,
}

impl<'a> GetEx<'a> {
    pub(super) fn parse(arguments: &Arguments<'a>) -> Result<Self, CommandError<'a>> {
        let key = check_key(argument(arguments, 1))?;
        let (mut persist, mut lifetime) = (false, None::<(ExpiryOption, &[u8])>);
        let mut index = 2;
        while let Some(option) = arguments.get(index) {
            index += 1;
            if option.eq_ignore_ascii_case(b"persist") && lifetime.is_none() {
                persist = true;
                continue;
            }
            let unit = expiry_option(option).ok_or(CommandError::Syntax)?;
            let number = arguments.get(index).ok_or(CommandError::Syntax)?;
            index += 1;
            if persist || lifetime.is_some_and(|(other, _)| other != unit) {
                return Err(CommandError::Syntax);
            }
            lifetime = Some((unit, number));
        }
        let expiry = match lifetime {
            Some((unit, number)) => set_expiry(unit, number, "getex"),
            None if persist => Ok(SetExpiry::None),
            None => Ok(SetExpiry::Keep),
        };
        Ok(Self { key, expiry })
    }
}

fn expiry_option(word: &[u8]) -> Option<ExpiryOption> {
    let is = |name: &str| word.eq_ignore_ascii_case(name.as_bytes());
    Some(match () {
        () if is("ex") => ExpiryOption::Ex,
        () if is("px") => ExpiryOption::Px,
        () if is("exat") => ExpiryOption::ExAt,
        () if is("pxat") => ExpiryOption::PxAt,
        () => return None,
    })
}

fn set_expiry<'a>(
    unit: ExpiryOption,
    number: &[u8],
    name: &'static str,
) -> Result<SetExpiry, CommandError<'a>> {
    let invalid = CommandError::ExpireTime { name };
    let number = integer(number).ok_or(CommandError::NotAnInteger)?;
    if number <= 0 {
        return Err(invalid);
    }
    Ok(match unit {
        ExpiryOption::Ex => SetExpiry::In { ms: number.checked_mul(1_000).ok_or(invalid)? },
        ExpiryOption::Px => SetExpiry::In { ms: number },
        ExpiryOption::ExAt => SetExpiry::At { ms: number.checked_mul(1_000).ok_or(invalid)? },
        ExpiryOption::PxAt => SetExpiry::At { ms: number },
    })
}

/// When EXPIRE changes the lifetime; a key without one counts as living for ever.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ExpireCondition {
    /// In any case.
    #[default]
    Always,
    /// NX: only if the key has no lifetime.
    IfWithout,
    /// XX: only if the key has a lifetime.
    IfWith,
    /// GT: only if the key then lives longer.
    IfLater,
    /// LT: only if the key then lives less long.
    IfEarlier,
    /// XX LT: only if the key has a lifetime and then lives less long.
    IfWithAndEarlier,
}

/// What the number of an EXPIRE counts from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExpireBase {
    /// EXPIRE and PEXPIRE: from now on.
    Now,
    /// EXPIREAT and PEXPIREAT: from 1970 on.
    Epoch,
}

/// EXPIRE, PEXPIRE, EXPIREAT or PEXPIREAT with its options.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expire<'a> {
    /// Key.
    pub key: &'a [u8],
    /// Milliseconds; what is not in the future removes the key.
    pub ms: i64,
    /// What they count from.
    pub base: ExpireBase,
    /// When the lifetime changes.
    pub condition: ExpireCondition,
    /// Name of the command, for [`CommandError::ExpireTime`] if now plus `ms` overflows.
    pub name: &'static str,
}

impl<'a> Expire<'a> {
    pub(super) fn parse(
        arguments: &Arguments<'a>,
        name: &'static str,
        (base, unit_ms): (ExpireBase, i64),
    ) -> Result<Self, CommandError<'a>> {
        let key = check_key(argument(arguments, 1))?;
        let condition = expire_condition(arguments)?;
        let number = integer(argument(arguments, 2)).ok_or(CommandError::NotAnInteger)?;
        let ms = number.checked_mul(unit_ms).ok_or(CommandError::ExpireTime { name })?;
        Ok(Self { key, ms, base, condition, name })
    }
}

fn expire_condition<'a>(arguments: &Arguments<'a>) -> Result<ExpireCondition, CommandError<'a>> {
    let (mut nx, mut xx, mut gt, mut lt) = (false, false, false, false);
    for option in arguments.iter().skip(3) {
        match () {
            () if option.eq_ignore_ascii_case(b"nx") => nx = true,
            () if option.eq_ignore_ascii_case(b"xx") => xx = true,
            () if option.eq_ignore_ascii_case(b"gt") => gt = true,
            () if option.eq_ignore_ascii_case(b"lt") => lt = true,
            () => return Err(CommandError::ExpireOption { option }),
        }
    }
    if nx && (xx || gt || lt) {
        return Err(CommandError::ExpireNxWithOther);
    }
    if gt && lt {
        return Err(CommandError::ExpireGtWithLt);
    }
    Ok(match (nx, xx, gt, lt) {
        (true, ..) => ExpireCondition::IfWithout,
        // A key without lifetime never passes GT, so XX adds nothing to it.
        (_, _, true, _) => ExpireCondition::IfLater,
        (_, true, _, true) => ExpireCondition::IfWithAndEarlier,
        (_, true, ..) => ExpireCondition::IfWith,
        (_, _, _, true) => ExpireCondition::IfEarlier,
        _ => ExpireCondition::Always,
    })
}

/// SCAN with its options.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scan<'a> {
    /// Where to go on; 0 starts.
    pub cursor: u64,
    /// MATCH: glob pattern of the keys to answer.
    pub pattern: Option<&'a [u8]>,
    /// COUNT: how many keys to look at, at least 1; unbounded, so the caller clamps it.
    pub count: Option<u64>,
    /// TYPE: kind of the values of the keys to answer.
    pub kind: Option<&'a [u8]>,
}

impl<'a> Scan<'a> {
    pub(super) fn parse(arguments: &Arguments<'a>) -> Result<Self, CommandError<'a>> {
        let cursor = cursor(argument(arguments, 1)).ok_or(CommandError::Cursor)?;
        let mut scan = Self { cursor, pattern: None, count: None, kind: None };
        let mut index = 2;
        while let Some(option) = arguments.get(index) {
            let value = arguments.get(index + 1).ok_or(CommandError::Syntax)?;
            if option.eq_ignore_ascii_case(b"match") {
                scan.pattern = Some(value);
            } else if option.eq_ignore_ascii_case(b"count") {
                let count = integer(value).ok_or(CommandError::NotAnInteger)?;
                let count = u64::try_from(count).ok().filter(|&count| count > 0);
                scan.count = Some(count.ok_or(CommandError::Syntax)?);
            } else if option.eq_ignore_ascii_case(b"type") {
                scan.kind = Some(value);
            } else {
                return Err(CommandError::Syntax);
            }
            index += 2;
        }
        Ok(scan)
    }
}

/// Reads digits alone, with leading zeros if the client likes; Redis also takes a sign.
fn cursor(text: &[u8]) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    text.iter().try_fold(0_u64, |value, byte| {
        let digit = byte.is_ascii_digit().then(|| u64::from(byte - b'0'))?;
        value.checked_mul(10)?.checked_add(digit)
    })
}

/// Whether FLUSHALL waits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FlushMode {
    /// Nothing was said.
    #[default]
    Default,
    /// ASYNC was said.
    Async,
    /// SYNC was said.
    Sync,
}

impl FlushMode {
    pub(super) fn parse<'a>(arguments: &Arguments<'a>) -> Result<Self, CommandError<'a>> {
        match (arguments.get(1), arguments.get(2)) {
            (None, _) => Ok(Self::Default),
            (Some(word), None) if word.eq_ignore_ascii_case(b"async") => Ok(Self::Async),
            (Some(word), None) if word.eq_ignore_ascii_case(b"sync") => Ok(Self::Sync),
            _ => Err(CommandError::Syntax),
        }
    }
}

/// What SHUTDOWN asks about saving.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ShutdownSave {
    /// Nothing was said.
    #[default]
    Default,
    /// SAVE was said.
    Save,
    /// NOSAVE was said.
    NoSave,
}

/// SHUTDOWN with its options.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shutdown {
    /// Stop the node.
    Stop {
        /// What was said about saving.
        save: ShutdownSave,
        /// NOW: do not wait for lagging replicas.
        now: bool,
        /// FORCE: go on over errors.
        force: bool,
    },
    /// ABORT: do not stop after all.
    Abort,
}

impl Shutdown {
    pub(super) fn parse<'a>(arguments: &Arguments<'a>) -> Result<Self, CommandError<'a>> {
        let (mut save, mut now, mut force) = (ShutdownSave::Default, false, false);
        let mut abort = false;
        for option in arguments.iter().skip(1) {
            let is = |word: &str| option.eq_ignore_ascii_case(word.as_bytes());
            match () {
                () if is("save") && save != ShutdownSave::NoSave => save = ShutdownSave::Save,
                () if is("nosave") && save != ShutdownSave::Save => save = ShutdownSave::NoSave,
                () if is("now") => now = true,
                () if is("force") => force = true,
                () if is("abort") => abort = true,
                () => return Err(CommandError::Syntax),
            }
        }
        let stop = Self::Stop { save, now, force };
        match abort {
            false => Ok(stop),
            true if save == ShutdownSave::Default && !now && !force => Ok(Self::Abort),
            true => Err(CommandError::Syntax),
        }
    }
}

/// Returns the argument at `index`, which the arity check has seen.
#[inline]
pub(super) fn argument<'a>(arguments: &Arguments<'a>, index: usize) -> &'a [u8] {
    arguments.get(index).expect("the arity check has seen the argument")
}
