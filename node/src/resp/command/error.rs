//! What is wrong with a command, in the exact words of Redis 7.0.

use crate::resp::frame::Arguments;
use std::fmt;

/// Bytes of a client's own words that an error repeats.
const QUOTED_BYTES_MAX: usize = 128;

/// Longest key, in bytes.
pub const KEY_BYTES_MAX: usize = 65_535;

/// Why a complete command is not carried out.
#[derive(Clone, Copy, Debug)]
pub enum CommandError<'a> {
    /// The request is HTTP, sent by a browser: close the connection without a word.
    CrossProtocol,
    /// There is no such command.
    Unknown {
        /// The whole request.
        arguments: Arguments<'a>,
    },
    /// The container has no such subcommand.
    UnknownSubcommand {
        /// Its name in lower case.
        container: &'static str,
        /// The word that was found.
        name: &'a [u8],
    },
    /// Too few or too many arguments.
    Arity {
        /// Name of the command.
        name: &'static str,
    },
    /// The options do not fit together.
    Syntax,
    /// A number is not one, or does not fit 64 bits.
    NotAnInteger,
    /// A number does not fit 32 bits.
    IntegerRange,
    /// A database other than 0.
    DatabaseIndex,
    /// A lifetime that is not positive or lies too far off.
    ExpireTime {
        /// Name of the command.
        name: &'static str,
    },
    /// EXPIRE does not know this option.
    ExpireOption {
        /// The word that was found.
        option: &'a [u8],
    },
    /// NX beside another condition.
    ExpireNxWithOther,
    /// GT beside LT.
    ExpireGtWithLt,
    /// A snapshot cannot be called so.
    SnapshotId,
    /// A node's id is 40 hexadecimal digits.
    NodeId,
    /// A time to wait is negative.
    Timeout,
    /// SETRANGE before the beginning.
    Offset,
    /// The cursor of SCAN is not a number.
    Cursor,
    /// DECRBY by the lowest number of all.
    DecrementOverflow,
    /// The name of a connection has blanks or control characters.
    ClientName,
    /// A client library's name or version has blanks or control characters.
    ClientInfoValue {
        /// `lib-name` or `lib-ver`.
        attribute: &'static str,
    },
    /// CLIENT SETINFO does not know this attribute.
    ClientInfoAttribute {
        /// The word that was found.
        attribute: &'a [u8],
    },
    /// CLIENT LIST does not know this kind of client.
    ClientType {
        /// The word that was found.
        kind: &'a [u8],
    },
    /// CLIENT LIST was given something else than numbers.
    ClientId,
    /// HELLO was given something else than a number.
    HelloVersion,
    /// HELLO was given a number other than 2 and 3.
    HelloUnsupported,
    /// HELLO does not know this option, or it lacks its arguments.
    HelloOption {
        /// The word that was found.
        option: &'a [u8],
    },
    /// A key above [`KEY_BYTES_MAX`].
    KeyTooLong,
    /// No target, info hash or public key.
    Target,
    /// No public key.
    PublicKey,
    /// No signature.
    Signature,
    /// A salt of more than 64 bytes.
    Salt,
    /// A value that is not bencoded, or longer than 1,000 bytes.
    ItemValue,
    /// No IP address and port.
    Address,
}

impl CommandError<'_> {
    /// Renders the error as it goes to the client, without the leading `-` and the line end.
    ///
    /// [`CrossProtocol`](Self::CrossProtocol) has no text.
    #[must_use]
    pub fn message(&self) -> Vec<u8> {
        let mut text = match *self {
            Self::Unknown { arguments } => unknown(arguments),
            Self::UnknownSubcommand { container, name } => {
                let help = format!("'. Try {} HELP.", container.to_ascii_uppercase());
                quoting("ERR unknown subcommand '", quoted(name, QUOTED_BYTES_MAX), &help)
            }
            Self::Arity { name } => {
                format!("ERR wrong number of arguments for '{name}' command").into()
            }
            Self::ExpireTime { name } => {
                format!("ERR invalid expire time in '{name}' command").into()
            }
            Self::ExpireOption { option } => quoting("ERR Unsupported option ", option, ""),
            Self::ClientInfoValue { attribute } => {
                format!("ERR {attribute} cannot contain spaces, newlines or special characters.")
                    .into()
            }
            Self::ClientInfoAttribute { attribute } => {
                quoting("ERR Unrecognized option '", attribute, "'")
            }
            Self::ClientType { kind } => quoting("ERR Unknown client type '", kind, "'"),
            Self::HelloOption { option } => {
                quoting("ERR Syntax error in HELLO option '", option, "'")
            }
            _ => self.fixed_message().into(),
        };
        for byte in &mut text {
            if matches!(*byte, b'\r' | b'\n') {
                *byte = b' ';
            }
        }
        text
    }

    const fn fixed_message(&self) -> &'static str {
        match self {
            Self::Syntax => "ERR syntax error",
            Self::NotAnInteger => "ERR value is not an integer or out of range",
            Self::IntegerRange => {
                "ERR value is out of range, value must between -2147483648 and 2147483647"
            }
            Self::DatabaseIndex => "ERR DB index is out of range",
            Self::ExpireNxWithOther => {
                "ERR NX and XX, GT or LT options at the same time are not compatible"
            }
            Self::ExpireGtWithLt => "ERR GT and LT options at the same time are not compatible",
            Self::SnapshotId => {
                "ERR a snapshot's id is 1 to 64 letters, digits, '-', '_' and '.', no '.' first"
            }
            Self::Offset => "ERR offset is out of range",
            Self::Cursor => "ERR invalid cursor",
            Self::DecrementOverflow => "ERR decrement would overflow",
            Self::ClientName => {
                "ERR Client names cannot contain spaces, newlines or special characters."
            }
            Self::ClientId => "ERR Invalid client ID",
            Self::HelloVersion => "ERR Protocol version is not an integer or out of range",
            Self::HelloUnsupported => "NOPROTO unsupported protocol version",
            Self::KeyTooLong => "ERR key is longer than 65535 bytes",
            Self::Target => {
                "ERR a target or info hash is 40 hexadecimal digits or 32 of z-base-32; a public \
                 key, where one is taken, 64 or 52"
            }
            Self::PublicKey => "ERR a public key is 64 hexadecimal digits or 52 of z-base-32",
            Self::Signature => "ERR a signature is 128 hexadecimal digits or 103 of z-base-32",
            Self::Salt => "ERR a salt has at most 64 bytes",
            Self::ItemValue => "ERR a value is one bencoded value of at most 1000 bytes",
            Self::Address => "ERR a node is named by its IP address and port",
            Self::NodeId => "ERR an id is 40 hexadecimal digits",
            Self::Timeout => "ERR timeout is negative",
            _ => "",
        }
    }
}

impl fmt::Display for CommandError<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from_utf8_lossy(&self.message()))
    }
}

impl std::error::Error for CommandError<'_> {}

/// Checks the length of a key.
///
/// # Errors
/// [`CommandError::KeyTooLong`] above [`KEY_BYTES_MAX`].
#[inline]
pub const fn check_key(key: &[u8]) -> Result<&[u8], CommandError<'_>> {
    if key.len() > KEY_BYTES_MAX { Err(CommandError::KeyTooLong) } else { Ok(key) }
}

/// Repeats the first arguments, about 128 bytes of them, each in quotes.
fn unknown(arguments: Arguments<'_>) -> Vec<u8> {
    let mut beginning = Vec::new();
    for argument in arguments.iter().skip(1) {
        if beginning.len() >= QUOTED_BYTES_MAX {
            break;
        }
        beginning.push(b'\'');
        // The quote just pushed does not count against the room.
        let room = QUOTED_BYTES_MAX + 1 - beginning.len();
        beginning.extend_from_slice(quoted(argument, room));
        beginning.extend_from_slice(b"' ");
    }
    let name = quoted(arguments.get(0).unwrap_or_default(), QUOTED_BYTES_MAX);
    let mut text = quoting("ERR unknown command '", name, "', with args beginning with: ");
    text.extend_from_slice(&beginning);
    text
}

/// Cuts a client's word for an error; like Redis, also at a NUL byte.
fn quoted(word: &[u8], len_max: usize) -> &[u8] {
    let word = &word[..word.len().min(len_max)];
    word.split(|&byte| byte == 0).next().unwrap_or_default()
}

fn quoting(before: &str, word: &[u8], after: &str) -> Vec<u8> {
    [before.as_bytes(), quoted(word, QUOTED_BYTES_MAX), after.as_bytes()].concat()
}
