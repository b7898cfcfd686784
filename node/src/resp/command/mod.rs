//! Turns the arguments of a request into a typed command.
//!
//! Two steps, because Redis answers an unknown name or a wrong number of arguments even to a
//! client that has not authenticated, and everything else only after that:
//! [`CommandSpec::find`], then [`Command::parse_as`]; [`Command::parse`] does both. Nothing is
//! copied: keys and values borrow from the arguments.

mod cluster;
mod connection;
mod engine;
mod error;
mod mainline;
mod options;
mod spec;
mod table;
#[cfg(test)]
mod tests;

pub use cluster::ClusterCommand;
pub use connection::{Client, ClientFilter, Credentials, Hello, client_id};
pub use engine::EngineCommand;
pub use error::{CommandError, KEY_BYTES_MAX, check_key};
pub use mainline::{MainlineCommand, PutMutable};
pub use options::{
    Expire, ExpireBase, ExpireCondition, FlushMode, GetEx, Scan, Set, SetAnswer, SetCondition,
    SetExpiry, Shutdown, ShutdownSave,
};
pub use spec::{CommandId, CommandSpec, KeyPositions};
pub use table::COMMANDS;

use super::frame::{Arguments, integer};
use options::argument;

/// The arguments from some index to the end.
#[derive(Clone, Copy, Debug)]
pub struct Tail<'a> {
    arguments: Arguments<'a>,
    next: usize,
}

impl<'a> Tail<'a> {
    const fn new(arguments: Arguments<'a>, next: usize) -> Self {
        Self { arguments, next }
    }

    /// Checks that all are keys.
    fn of_keys(arguments: &Arguments<'a>) -> Result<Self, CommandError<'a>> {
        let keys = Self::new(*arguments, 1);
        for key in keys {
            check_key(key)?;
        }
        Ok(keys)
    }
}

#[expect(clippy::copy_iterator, reason = "two words; callers walk over it more than once")]
impl<'a> Iterator for Tail<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<Self::Item> {
        let argument = self.arguments.get(self.next)?;
        self.next += 1;
        Some(argument)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let len = self.arguments.len().saturating_sub(self.next);
        (len, Some(len))
    }
}

impl ExactSizeIterator for Tail<'_> {}

/// Keys, each with its value.
#[derive(Clone, Copy, Debug)]
pub struct Pairs<'a> {
    rest: Tail<'a>,
}

impl<'a> Pairs<'a> {
    fn parse(arguments: &Arguments<'a>) -> Result<Self, CommandError<'a>> {
        if arguments.len().is_multiple_of(2) {
            return Err(CommandError::Arity { name: "mset" });
        }
        let pairs = Self { rest: Tail::new(*arguments, 1) };
        for (key, _) in pairs {
            check_key(key)?;
        }
        Ok(pairs)
    }

    /// Keys and values in turn.
    #[must_use]
    pub fn words(self) -> Tail<'a> {
        self.rest
    }
}

#[expect(clippy::copy_iterator, reason = "two words; callers walk over it more than once")]
impl<'a> Iterator for Pairs<'a> {
    type Item = (&'a [u8], &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        Some((self.rest.next()?, self.rest.next()?))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let len = self.rest.len() / 2;
        (len, Some(len))
    }
}

impl ExactSizeIterator for Pairs<'_> {}

/// One command with its arguments.
#[derive(Clone, Copy, Debug)]
#[expect(missing_docs, reason = "variants are the commands, fields the arguments, of that name")]
#[rustfmt::skip]
pub enum Command<'a> {
    Get { key: &'a [u8] },
    /// SET, SETEX, PSETEX, SETNX and GETSET.
    Set(Set<'a>),
    GetDel { key: &'a [u8] },
    GetEx(GetEx<'a>),
    GetRange { key: &'a [u8], first: i64, last: i64 },
    SetRange { key: &'a [u8], offset: u64, value: &'a [u8] },
    Ping { message: Option<&'a [u8]> },
    Echo { message: &'a [u8] },
    Hello(Hello<'a>),
    Auth(Credentials<'a>),
    Client(Client<'a>),
    /// COMMAND without a subcommand.
    CommandList,
    CommandCount,
    /// COMMAND DOCS: no names means all commands.
    CommandDocs { names: Tail<'a> },
    /// INFO: no sections means the usual ones.
    Info { sections: Tail<'a> },
    ConfigGet { patterns: Tail<'a> },
    /// SELECT 0, the only database.
    Select,
    Quit,
    Reset,
    Time,
    Del { keys: Tail<'a> },
    Unlink { keys: Tail<'a> },
    Exists { keys: Tail<'a> },
    MGet { keys: Tail<'a> },
    MSet { pairs: Pairs<'a> },
    StrLen { key: &'a [u8] },
    Type { key: &'a [u8] },
    /// EXPIRE, PEXPIRE, EXPIREAT and PEXPIREAT.
    Expire(Expire<'a>),
    Ttl { key: &'a [u8] },
    PTtl { key: &'a [u8] },
    ExpireTime { key: &'a [u8] },
    PExpireTime { key: &'a [u8] },
    Persist { key: &'a [u8] },
    DbSize,
    Scan(Scan<'a>),
    Keys { pattern: &'a [u8] },
    RandomKey,
    FlushAll(FlushMode),
    FlushDb(FlushMode),
    /// INCR, DECR, INCRBY and DECRBY.
    Increment { key: &'a [u8], by: i64 },
    Append { key: &'a [u8], value: &'a [u8] },
    Shutdown(Shutdown),
    /// BGSAVE, SAVE, LASTSAVE, KAD.SNAPSHOT and KAD.COMPACT.
    Engine(EngineCommand<'a>),
    /// KAD.BEP44.* and KAD.MAINLINE.*.
    Mainline(MainlineCommand<'a>),
    /// WAIT, KAD.LOCATE, KAD.ROUTES, KAD.LOOKUP, KAD.NODES, KAD.LEAVE and KAD.FORGET.
    Cluster(ClusterCommand<'a>),
}

impl<'a> Command<'a> {
    /// Finds and parses the command.
    ///
    /// # Errors
    /// Every [`CommandError`].
    #[inline]
    pub fn parse(arguments: &Arguments<'a>) -> Result<Self, CommandError<'a>> {
        Self::parse_as(CommandSpec::find(arguments)?, arguments)
    }

    /// Parses the arguments of the command that [`CommandSpec::find`] found for them.
    ///
    /// # Errors
    /// Every [`CommandError`] but those of `find`.
    ///
    /// # Panics
    /// If `spec` was not found for these arguments.
    #[inline]
    pub fn parse_as(
        spec: &'static CommandSpec,
        arguments: &Arguments<'a>,
    ) -> Result<Self, CommandError<'a>> {
        match spec.id {
            CommandId::Get => Ok(Self::Get { key: check_key(argument(arguments, 1))? }),
            CommandId::Set => Ok(Self::Set(Set::parse(arguments)?)),
            _ => Self::parse_other(spec, arguments),
        }
    }

    fn parse_other(
        spec: &'static CommandSpec,
        arguments: &Arguments<'a>,
    ) -> Result<Self, CommandError<'a>> {
        let key = || check_key(argument(arguments, 1));
        let keys = || Tail::of_keys(arguments);
        Ok(match spec.id {
            CommandId::Get => Self::Get { key: key()? },
            CommandId::Set => Self::Set(Set::parse(arguments)?),
            CommandId::Del => Self::Del { keys: keys()? },
            CommandId::Unlink => Self::Unlink { keys: keys()? },
            CommandId::Exists => Self::Exists { keys: keys()? },
            CommandId::MGet => Self::MGet { keys: keys()? },
            CommandId::MSet => Self::MSet { pairs: Pairs::parse(arguments)? },
            CommandId::StrLen => Self::StrLen { key: key()? },
            CommandId::Type => Self::Type { key: key()? },
            CommandId::Persist => Self::Persist { key: key()? },
            CommandId::Scan => Self::Scan(Scan::parse(arguments)?),
            CommandId::Keys => Self::Keys { pattern: argument(arguments, 1) },
            CommandId::RandomKey => Self::RandomKey,
            CommandId::DbSize => Self::DbSize,
            CommandId::FlushAll => Self::FlushAll(FlushMode::parse(arguments)?),
            CommandId::FlushDb => Self::FlushDb(FlushMode::parse(arguments)?),
            CommandId::Incr => Self::Increment { key: key()?, by: 1 },
            CommandId::Decr => Self::Increment { key: key()?, by: -1 },
            CommandId::IncrBy => Self::Increment { key: key()?, by: number(arguments, 2)? },
            CommandId::DecrBy => {
                let by = number(arguments, 2)?.checked_neg();
                Self::Increment { key: key()?, by: by.ok_or(CommandError::DecrementOverflow)? }
            }
            CommandId::Append => Self::Append { key: key()?, value: argument(arguments, 2) },
            _ => return Self::parse_lifetime(spec, arguments),
        })
    }

    /// Commands that tell or change how long a key lives, and the older forms of SET.
    fn parse_lifetime(
        spec: &'static CommandSpec,
        arguments: &Arguments<'a>,
    ) -> Result<Self, CommandError<'a>> {
        let key = || check_key(argument(arguments, 1));
        let expire = |base, unit_ms| Expire::parse(arguments, spec.name, (base, unit_ms));
        let with_lifetime = |unit_ms| Set::parse_with_lifetime(arguments, spec.name, unit_ms);
        let plain = |condition, answer| Set::parse_plain(arguments, spec.name, (condition, answer));
        Ok(match spec.id {
            CommandId::Expire => Self::Expire(expire(ExpireBase::Now, 1_000)?),
            CommandId::PExpire => Self::Expire(expire(ExpireBase::Now, 1)?),
            CommandId::ExpireAt => Self::Expire(expire(ExpireBase::Epoch, 1_000)?),
            CommandId::PExpireAt => Self::Expire(expire(ExpireBase::Epoch, 1)?),
            CommandId::Ttl => Self::Ttl { key: key()? },
            CommandId::PTtl => Self::PTtl { key: key()? },
            CommandId::ExpireTime => Self::ExpireTime { key: key()? },
            CommandId::PExpireTime => Self::PExpireTime { key: key()? },
            CommandId::SetEx => Self::Set(with_lifetime(1_000)?),
            CommandId::PSetEx => Self::Set(with_lifetime(1)?),
            CommandId::SetNx => Self::Set(plain(SetCondition::IfMissing, SetAnswer::Flag)?),
            CommandId::GetSet => Self::Set(plain(SetCondition::Always, SetAnswer::Old)?),
            CommandId::GetDel => Self::GetDel { key: key()? },
            CommandId::GetEx => Self::GetEx(GetEx::parse(arguments)?),
            CommandId::GetRange => {
                let (first, last) = (number(arguments, 2)?, number(arguments, 3)?);
                Self::GetRange { key: key()?, first, last }
            }
            CommandId::SetRange => {
                let offset = u64::try_from(number(arguments, 2)?);
                let offset = offset.map_err(|_| CommandError::Offset)?;
                Self::SetRange { key: key()?, offset, value: argument(arguments, 3) }
            }
            _ => return Self::parse_keyless(spec, arguments),
        })
    }

    fn parse_keyless(
        spec: &'static CommandSpec,
        arguments: &Arguments<'a>,
    ) -> Result<Self, CommandError<'a>> {
        Ok(match spec.id {
            CommandId::Ping if arguments.len() > 2 => {
                return Err(CommandError::Arity { name: spec.name });
            }
            CommandId::Ping => Self::Ping { message: arguments.get(1) },
            CommandId::Echo => Self::Echo { message: argument(arguments, 1) },
            CommandId::Hello => Self::Hello(Hello::parse(arguments)?),
            CommandId::Auth => Self::Auth(Credentials::parse(arguments)?),
            CommandId::Command => Self::CommandList,
            CommandId::CommandCount => Self::CommandCount,
            CommandId::CommandDocs => Self::CommandDocs { names: Tail::new(*arguments, 2) },
            CommandId::Info => Self::Info { sections: Tail::new(*arguments, 1) },
            CommandId::ConfigGet => Self::ConfigGet { patterns: Tail::new(*arguments, 2) },
            CommandId::Select => {
                let index = number(arguments, 1)?;
                match i32::try_from(index).map_err(|_| CommandError::IntegerRange)? {
                    0 => Self::Select,
                    _ => return Err(CommandError::DatabaseIndex),
                }
            }
            CommandId::Quit => Self::Quit,
            CommandId::Reset => Self::Reset,
            CommandId::Time => Self::Time,
            CommandId::Shutdown => Self::Shutdown(Shutdown::parse(arguments)?),
            id => {
                if let Some(command) = EngineCommand::parse(id, arguments) {
                    Self::Engine(command?)
                } else if let Some(command) = MainlineCommand::parse(id, arguments) {
                    Self::Mainline(command?)
                } else if let Some(command) = ClusterCommand::parse(id, arguments) {
                    Self::Cluster(command?)
                } else {
                    Self::Client(Client::parse(id, arguments)?)
                }
            }
        })
    }
}

/// Checks the number of arguments where the arity of the table cannot say it.
fn number_of_arguments<'a>(
    arguments: &Arguments<'_>,
    allowed: std::ops::RangeInclusive<usize>,
    name: &'static str,
) -> Result<(), CommandError<'a>> {
    let fits = allowed.contains(&arguments.len());
    if fits { Ok(()) } else { Err(CommandError::Arity { name }) }
}

fn number<'a>(arguments: &Arguments<'a>, index: usize) -> Result<i64, CommandError<'a>> {
    integer(argument(arguments, index)).ok_or(CommandError::NotAnInteger)
}
