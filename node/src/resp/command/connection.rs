//! Options of the commands about the connection: HELLO, AUTH and CLIENT.

use super::options::argument;
use super::{CommandError, CommandId, Tail};
use crate::resp::frame::{Arguments, integer};
use crate::resp::reply::Protocol;

/// Who a client claims to be.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Credentials<'a> {
    /// User, `default` if not given.
    pub user: &'a [u8],
    /// Password.
    pub password: &'a [u8],
}

impl std::fmt::Debug for Credentials<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Passwords stay out of logs.
        f.debug_struct("Credentials").field("user", &self.user).finish_non_exhaustive()
    }
}

impl<'a> Credentials<'a> {
    pub(super) fn parse(arguments: &Arguments<'a>) -> Result<Self, CommandError<'a>> {
        let first = argument(arguments, 1);
        match (arguments.get(2), arguments.len()) {
            (None, _) => Ok(Self { user: b"default", password: first }),
            (Some(password), 3) => Ok(Self { user: first, password }),
            _ => Err(CommandError::Syntax),
        }
    }
}

/// HELLO with its options.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hello<'a> {
    /// Version to speak from now on; none keeps the present one.
    pub protocol: Option<Protocol>,
    /// AUTH.
    pub credentials: Option<Credentials<'a>>,
    /// SETNAME.
    pub name: Option<&'a [u8]>,
}

impl<'a> Hello<'a> {
    pub(super) fn parse(arguments: &Arguments<'a>) -> Result<Self, CommandError<'a>> {
        let mut hello = Self { protocol: None, credentials: None, name: None };
        let Some(version) = arguments.get(1) else {
            return Ok(hello);
        };
        hello.protocol = Some(match integer(version).ok_or(CommandError::HelloVersion)? {
            2 => Protocol::Resp2,
            3 => Protocol::Resp3,
            _ => return Err(CommandError::HelloUnsupported),
        });
        let mut index = 2;
        while let Some(option) = arguments.get(index) {
            let values = (arguments.get(index + 1), arguments.get(index + 2));
            match values {
                (Some(user), Some(password)) if option.eq_ignore_ascii_case(b"auth") => {
                    hello.credentials = Some(Credentials { user, password });
                    index += 3;
                }
                (Some(name), _) if option.eq_ignore_ascii_case(b"setname") => {
                    hello.name = Some(client_name(name)?);
                    index += 2;
                }
                _ => return Err(CommandError::HelloOption { option }),
            }
        }
        Ok(hello)
    }
}

/// Which connections CLIENT LIST answers.
#[derive(Clone, Copy, Debug)]
pub enum ClientFilter<'a> {
    /// All.
    All,
    /// TYPE normal.
    Normal,
    /// TYPE of a kind that never connects here: none.
    Nobody,
    /// ID: those with these numbers, which [`client_id`] reads.
    Ids(Tail<'a>),
}

/// CLIENT with its subcommand.
#[derive(Clone, Copy, Debug)]
pub enum Client<'a> {
    /// SETNAME: an empty name takes the name away.
    SetName {
        /// Name.
        name: &'a [u8],
    },
    /// GETNAME.
    GetName,
    /// SETINFO LIB-NAME.
    SetLibraryName {
        /// Name of the client's library.
        name: &'a [u8],
    },
    /// SETINFO LIB-VER.
    SetLibraryVersion {
        /// Version of the client's library.
        version: &'a [u8],
    },
    /// ID.
    Id,
    /// LIST.
    List {
        /// Which connections.
        filter: ClientFilter<'a>,
    },
}

impl<'a> Client<'a> {
    pub(super) fn parse(
        id: CommandId,
        arguments: &Arguments<'a>,
    ) -> Result<Self, CommandError<'a>> {
        Ok(match id {
            CommandId::ClientSetName => {
                Self::SetName { name: client_name(argument(arguments, 2))? }
            }
            CommandId::ClientGetName => Self::GetName,
            CommandId::ClientSetInfo => Self::parse_info(arguments)?,
            CommandId::ClientList => Self::List { filter: ClientFilter::parse(arguments)? },
            _ => Self::Id,
        })
    }

    fn parse_info(arguments: &Arguments<'a>) -> Result<Self, CommandError<'a>> {
        let (attribute, value) = (argument(arguments, 2), argument(arguments, 3));
        let checked = |attribute| {
            if is_plain(value) {
                Ok(value)
            } else {
                Err(CommandError::ClientInfoValue { attribute })
            }
        };
        if attribute.eq_ignore_ascii_case(b"lib-name") {
            return Ok(Self::SetLibraryName { name: checked("lib-name")? });
        }
        if attribute.eq_ignore_ascii_case(b"lib-ver") {
            return Ok(Self::SetLibraryVersion { version: checked("lib-ver")? });
        }
        Err(CommandError::ClientInfoAttribute { attribute })
    }
}

impl<'a> ClientFilter<'a> {
    fn parse(arguments: &Arguments<'a>) -> Result<Self, CommandError<'a>> {
        let (Some(option), Some(kind)) = (arguments.get(2), arguments.get(3)) else {
            return if arguments.len() == 2 { Ok(Self::All) } else { Err(CommandError::Syntax) };
        };
        if option.eq_ignore_ascii_case(b"id") {
            let ids = Tail::new(*arguments, 3);
            for id in ids {
                integer(id).ok_or(CommandError::ClientId)?;
            }
            return Ok(Self::Ids(ids));
        }
        if !option.eq_ignore_ascii_case(b"type") || arguments.len() != 4 {
            return Err(CommandError::Syntax);
        }
        let is = |word: &str| kind.eq_ignore_ascii_case(word.as_bytes());
        if is("normal") {
            Ok(Self::Normal)
        } else if ["slave", "replica", "pubsub", "master"].into_iter().any(is) {
            Ok(Self::Nobody)
        } else {
            Err(CommandError::ClientType { kind })
        }
    }
}

/// Reads one number of [`ClientFilter::Ids`]; none of ours is negative.
#[must_use]
pub fn client_id(text: &[u8]) -> Option<u64> {
    integer(text).and_then(|id| u64::try_from(id).ok())
}

fn client_name(name: &[u8]) -> Result<&[u8], CommandError<'_>> {
    if is_plain(name) { Ok(name) } else { Err(CommandError::ClientName) }
}

/// Tells text without blanks and control characters, which would break the lines of CLIENT LIST.
fn is_plain(text: &[u8]) -> bool {
    text.iter().all(u8::is_ascii_graphic)
}
