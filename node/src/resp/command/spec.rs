//! What is known of each command: finds it by name, checks the number of its arguments, and
//! writes the answers of COMMAND and COMMAND DOCS.

use super::CommandError;
use super::table::COMMANDS;
use crate::resp::frame::Arguments;
use crate::resp::reply::ReplyWriter;

/// Names the commands; the order is that of [`COMMANDS`](super::COMMANDS).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "each variant is the command of that name")]
#[rustfmt::skip]
pub enum CommandId {
    Get, Set, Ping, Echo, Hello, Auth, Client, Command, Info, Config, Select, Quit, Reset, Time,
    Del, Unlink, Exists, MGet, MSet, StrLen, Type, Expire, PExpire, Ttl, PTtl, Persist, DbSize,
    Scan, Keys, RandomKey, FlushAll, FlushDb, Incr, Decr, IncrBy, DecrBy, Append, Shutdown,
    SetEx, PSetEx, SetNx, GetSet, GetDel, GetEx, GetRange, SetRange, ExpireAt, PExpireAt,
    ExpireTime, PExpireTime, BgSave, Save, LastSave, KadSnapshot, KadCompact,
    Bep44Get, Bep44Put, Bep44PutMutable,
    MainlineGetPeers, MainlineAnnounce, MainlineSample, MainlinePing,
    Wait, KadLocate, KadRoutes, KadLookup, KadNodes, KadLeave, KadForget,
    ClientSetName, ClientGetName, ClientSetInfo, ClientId, ClientList, CommandCount, CommandDocs,
    ConfigGet, SnapshotCreate, SnapshotList, SnapshotDelete,
}

/// Where the keys are among the arguments; all zero if there are none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyPositions {
    /// Index of the first key; the command's name has index 0.
    pub first: i8,
    /// Index of the last key; negative counts from the end, -1 being the last argument.
    pub last: i8,
    /// Distance from one key to the next.
    pub step: i8,
}

/// What is known of one command.
#[derive(Debug)]
pub struct CommandSpec {
    /// Which command this is.
    pub id: CommandId,
    /// Name in lower case; `container|subcommand` for a subcommand.
    pub name: &'static str,
    /// Number of arguments with the name; negative means at least that many.
    pub arity: i8,
    /// Behaviour, in the words of Redis.
    pub flags: &'static [&'static str],
    /// Where the keys are.
    pub keys: KeyPositions,
    /// Access categories, in the words of Redis.
    pub categories: &'static [&'static str],
    /// Hints to clients, in the words of Redis.
    pub tips: &'static [&'static str],
    /// Group of the documentation.
    pub group: &'static str,
    /// Version of Redis that had it first.
    pub since: &'static str,
    /// Cost.
    pub complexity: &'static str,
    /// What it does.
    pub summary: &'static str,
    /// Subcommands, if it is a container.
    pub subcommands: &'static [Self],
}

impl CommandSpec {
    /// Finds the command of a request and checks the number of its arguments.
    ///
    /// # Errors
    /// `CrossProtocol`, `Unknown`, `UnknownSubcommand` or `Arity`: those that Redis answers even
    /// before authentication.
    #[inline]
    pub fn find<'a>(arguments: &Arguments<'a>) -> Result<&'static Self, CommandError<'a>> {
        let name = arguments.get(0).unwrap_or_default();
        let Some(spec) = Self::by_name(name) else {
            return Err(unknown(name, *arguments));
        };
        if spec.subcommands.is_empty() || arguments.len() == 1 {
            return spec.check_arity(arguments);
        }
        let name = arguments.get(1).unwrap_or_default();
        spec.subcommand(name)
            .ok_or(CommandError::UnknownSubcommand { container: spec.name, name })?
            .check_arity(arguments)
    }

    /// Finds a command, not a subcommand, by its name in any case.
    #[must_use]
    #[inline]
    pub fn by_name(name: &[u8]) -> Option<&'static Self> {
        let id = id_of(name)?;
        COMMANDS.get(usize::from(id as u8))
    }

    /// Finds a subcommand by its own name in any case.
    #[must_use]
    pub fn subcommand(&self, name: &[u8]) -> Option<&'static Self> {
        self.subcommands.iter().find(|spec| {
            let own = spec.name.split_once('|').map_or(spec.name, |(_, own)| own);
            own.as_bytes().eq_ignore_ascii_case(name)
        })
    }

    /// Tells whether a client may use it before authentication.
    #[must_use]
    pub const fn is_open_to_all(&self) -> bool {
        matches!(self.id, CommandId::Hello | CommandId::Auth | CommandId::Quit | CommandId::Reset)
    }

    /// Tells whether it changes data.
    #[must_use]
    pub fn is_write(&self) -> bool {
        self.flags.contains(&"write")
    }

    #[inline]
    fn check_arity<'a>(
        &'static self,
        arguments: &Arguments<'_>,
    ) -> Result<&'static Self, CommandError<'a>> {
        let wanted = usize::from(self.arity.unsigned_abs());
        let is_right = match self.arity > 0 {
            true => arguments.len() == wanted,
            false => arguments.len() >= wanted,
        };
        if is_right { Ok(self) } else { Err(CommandError::Arity { name: self.name }) }
    }

    /// Writes what COMMAND tells about it: ten elements, as Redis 7.
    pub fn write_info(&self, reply: &mut ReplyWriter<'_>) {
        let words = |reply: &mut ReplyWriter<'_>, words: &[&str]| {
            reply.set_header(words.len());
            words.iter().for_each(|word| reply.simple(word));
        };
        reply.array_header(10);
        reply.bulk(self.name.as_bytes());
        reply.integer(i64::from(self.arity));
        words(reply, self.flags);
        for position in [self.keys.first, self.keys.last, self.keys.step] {
            reply.integer(i64::from(position));
        }
        words(reply, self.categories);
        reply.array_header(self.tips.len());
        self.tips.iter().for_each(|tip| reply.bulk(tip.as_bytes()));
        // Key specifications: the three positions above say it all for these commands.
        reply.array_header(0);
        reply.array_header(self.subcommands.len());
        self.subcommands.iter().for_each(|spec| spec.write_info(reply));
    }

    /// Writes what COMMAND DOCS tells about it: its name, then a map.
    pub fn write_docs(&self, reply: &mut ReplyWriter<'_>) {
        let fields = [
            ("summary", self.summary),
            ("since", self.since),
            ("group", self.group),
            ("complexity", self.complexity),
        ];
        reply.bulk(self.name.as_bytes());
        reply.map_header(fields.len() + usize::from(!self.subcommands.is_empty()));
        for (field, text) in fields {
            reply.bulk(field.as_bytes());
            reply.bulk(text.as_bytes());
        }
        if !self.subcommands.is_empty() {
            reply.bulk(b"subcommands");
            reply.map_header(self.subcommands.len());
            self.subcommands.iter().for_each(|spec| spec.write_docs(reply));
        }
    }
}

#[cold]
fn unknown<'a>(name: &'a [u8], arguments: Arguments<'a>) -> CommandError<'a> {
    // A browser that was tricked into talking to us starts with one of these.
    if name.eq_ignore_ascii_case(b"post") || name.eq_ignore_ascii_case(b"host:") {
        return CommandError::CrossProtocol;
    }
    CommandError::Unknown { arguments }
}

/// Packs the name of a command, folded to lower case, into one number.
///
/// Setting bit 5 where bit 6 is set maps to a letter nothing but that letter in either case, and to
/// a dot nothing but a dot, so folded names are equal only if the names are.
const fn word(name: &[u8]) -> u128 {
    // The one in front keeps zero bytes behind it from getting lost.
    let mut word = 1;
    let mut rest = name;
    while let [byte, behind @ ..] = rest {
        word = (word << 8) | (*byte | ((*byte & 0x40) >> 1)) as u128;
        rest = behind;
    }
    word
}

/// Names that do not fit into a number; none of them is in a hurry.
const LONG_NAMES: [(&str, CommandId); 7] = [
    ("kad.bep44.get", CommandId::Bep44Get),
    ("kad.bep44.put", CommandId::Bep44Put),
    ("kad.bep44.putmutable", CommandId::Bep44PutMutable),
    ("kad.mainline.getpeers", CommandId::MainlineGetPeers),
    ("kad.mainline.announce", CommandId::MainlineAnnounce),
    ("kad.mainline.sample", CommandId::MainlineSample),
    ("kad.mainline.ping", CommandId::MainlinePing),
];

#[cold]
fn long_id_of(name: &[u8]) -> Option<CommandId> {
    let found = LONG_NAMES.iter().find(|(own, _)| own.as_bytes().eq_ignore_ascii_case(name));
    found.map(|(_, id)| *id)
}

macro_rules! id_by_name {
    ($($text:literal => $id:ident),* $(,)?) => {
        /// Finds the command of that name by comparing numbers.
        #[inline]
        fn id_of(name: &[u8]) -> Option<CommandId> {
            /// Folded names as numbers, one constant per command.
            #[expect(non_upper_case_globals, reason = "named after the variants")]
            mod words {
                $(pub(super) const $id: u128 = super::word($text);)*
            }
            const LEN_MAX: usize = 12;
            if name.len() > LEN_MAX {
                return long_id_of(name);
            }
            match word(name) {
                $(words::$id => Some(CommandId::$id),)*
                _ => None,
            }
        }
    };
}

id_by_name! {
    b"get" => Get, b"set" => Set, b"ping" => Ping, b"echo" => Echo, b"hello" => Hello,
    b"auth" => Auth, b"client" => Client, b"command" => Command, b"info" => Info,
    b"config" => Config, b"select" => Select, b"quit" => Quit, b"reset" => Reset,
    b"time" => Time, b"del" => Del, b"unlink" => Unlink, b"exists" => Exists, b"mget" => MGet,
    b"mset" => MSet, b"strlen" => StrLen, b"type" => Type, b"expire" => Expire,
    b"pexpire" => PExpire, b"ttl" => Ttl, b"pttl" => PTtl, b"persist" => Persist,
    b"dbsize" => DbSize, b"scan" => Scan, b"keys" => Keys, b"randomkey" => RandomKey,
    b"flushall" => FlushAll, b"flushdb" => FlushDb, b"incr" => Incr, b"decr" => Decr,
    b"incrby" => IncrBy, b"decrby" => DecrBy, b"append" => Append, b"shutdown" => Shutdown,
    b"setex" => SetEx, b"psetex" => PSetEx, b"setnx" => SetNx, b"getset" => GetSet,
    b"getdel" => GetDel, b"getex" => GetEx, b"getrange" => GetRange, b"setrange" => SetRange,
    b"expireat" => ExpireAt, b"pexpireat" => PExpireAt, b"expiretime" => ExpireTime,
    b"pexpiretime" => PExpireTime, b"bgsave" => BgSave, b"save" => Save, b"lastsave" => LastSave,
    b"kad.snapshot" => KadSnapshot, b"kad.compact" => KadCompact,
    b"wait" => Wait, b"kad.locate" => KadLocate, b"kad.routes" => KadRoutes,
    b"kad.lookup" => KadLookup, b"kad.nodes" => KadNodes, b"kad.leave" => KadLeave,
    b"kad.forget" => KadForget,
}
