//! `kadring get|set|del|info`: one command against a running node, over its client door.

use std::ffi::{OsStr, OsString};
use std::io::{self, Read as _, Write};
use std::os::unix::ffi::OsStrExt as _;
use std::time::Duration;

use redis::{Cmd, Connection, ConnectionAddr, IntoConnectionInfo as _, RedisError, Value};

use super::error::CliError;
use super::exit_code::ExitCode;
use crate::config::{self, Config, Sources, variable_name};

/// How long to wait for a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long to wait for each piece of an answer, or for room to send.
const REPLY_TIMEOUT: Duration = Duration::from_secs(30);
/// How long to wait until a snapshot is there: files of before the start may have to be read.
const SNAPSHOT_TIMEOUT: Duration = Duration::from_secs(3600);
/// Bytes read from stdin for a value at most: the largest bulk string of the protocol.
const STDIN_BYTES_MAX: u64 = 512 << 20;

/// How to reach the node.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct NodeFlags {
    /// Address of the node's client door, as host:port [default: 127.0.0.1:7379] [env:
    /// KADRING_CLIENT]
    #[arg(long, value_name = "ADDR")]
    client: Option<OsString>,
    /// File whose one line is the node's password, unless KADRING_REQUIREPASS holds it [env:
    /// KADRING_REQUIREPASS_FILE]
    #[arg(long, value_name = "FILE")]
    requirepass_file: Option<OsString>,
}

impl NodeFlags {
    /// The value given for the setting `key`.
    pub(super) fn get(&self, key: &str) -> Option<OsString> {
        match key {
            "client" => self.client.clone(),
            "requirepass_file" => self.requirepass_file.clone(),
            _ => None,
        }
    }
}

/// Flags of `kadring get`.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct GetFlags {
    #[command(flatten)]
    pub(super) node: NodeFlags,
    /// The key, taken byte for byte
    key: OsString,
}

/// Flags of `kadring set`.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct SetFlags {
    #[command(flatten)]
    pub(super) node: NodeFlags,
    /// Milliseconds after which the key expires; without it, it stays
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    expire_ms: Option<u64>,
    /// The key, taken byte for byte
    key: OsString,
    /// The value, taken byte for byte; `-` reads it from stdin until its end
    #[arg(allow_negative_numbers = true)]
    value: OsString,
}

/// Flags of `kadring del`.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct DelFlags {
    #[command(flatten)]
    pub(super) node: NodeFlags,
    /// The keys, taken byte for byte
    #[arg(required = true, value_name = "KEY")]
    keys: Vec<OsString>,
}

/// Flags of `kadring info`.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct InfoFlags {
    #[command(flatten)]
    pub(super) node: NodeFlags,
    /// Only this section, such as server or memory
    section: Option<OsString>,
}

/// Why a client command failed. Displayed as `what; remedy`.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The address is not of the form `host:port`.
    #[error("{place} is {found:?}; give host:port such as 127.0.0.1:7379")]
    Address {
        /// The flag or variable that gave it.
        place: String,
        /// The address as given.
        found: String,
    },
    /// No connection to the node.
    #[error(
        "no node answers at {address}: {source}; start one with `kadring run` or give its address \
         with --client"
    )]
    Unreachable {
        /// The address tried.
        address: String,
        /// What went wrong.
        #[source]
        source: RedisError,
    },
    /// The connection failed, or what came back was not understood, before the answer was complete.
    #[error(
        "lost the node at {address} before its answer: {source}; whether a write was done is not \
         known, so look with `kadring get` or repeat it"
    )]
    Lost {
        /// The address of the node.
        address: String,
        /// What went wrong.
        #[source]
        source: RedisError,
    },
    /// The node wants a password, or another one.
    #[error(
        "the node at {address} refuses the password: {text}; give the right one in \
         KADRING_REQUIREPASS or with --requirepass-file"
    )]
    Password {
        /// The address of the node.
        address: String,
        /// The node's error text.
        text: String,
    },
    /// The node answered an error.
    #[error("the node at {address} answered: {text}; see docs/REDIS.md for what it accepts")]
    Refused {
        /// The address of the node.
        address: String,
        /// The node's error text.
        text: String,
    },
    /// The node answered something that does not fit the command.
    #[error(
        "the node at {address} gave an answer that does not fit the command; is it a kadring node?"
    )]
    Strange {
        /// The address of the node.
        address: String,
    },
    /// `get` found nothing.
    #[error("there is no key {key}; set it first, or mind its expiry")]
    KeyMissing {
        /// The key, escaped.
        key: String,
    },
    /// The value cannot be read from stdin.
    #[error("cannot read the value from stdin: {0}; pipe a file of at most 512MiB into it")]
    Stdin(#[source] io::Error),
}

impl ClientError {
    /// The exit code that belongs to this failure.
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::Address { .. } => ExitCode::Usage,
            Self::Unreachable { .. } | Self::Lost { .. } => ExitCode::NodeUnreachable,
            Self::Password { .. } | Self::Refused { .. } | Self::Strange { .. } => {
                ExitCode::NodeRefused
            }
            Self::KeyMissing { .. } | Self::Stdin(_) => ExitCode::Failure,
        }
    }
}

/// Writes the value of a key to `out`, with a line end only if a person reads it.
///
/// # Errors
/// [`ClientError::KeyMissing`] if there is none, or what else went wrong.
pub(super) fn get(
    flags: &GetFlags,
    sources: &Sources<'_>,
    out: &mut dyn Write,
    is_terminal: bool,
) -> Result<(), CliError> {
    let mut node = Node::connect(sources)?;
    let answer = node.ask(redis::cmd("GET").arg(flags.key.as_bytes()))?;
    let Some(value) = node.bytes(answer)? else {
        let key = format!("\"{}\"", flags.key.as_bytes().escape_ascii());
        return Err(ClientError::KeyMissing { key }.into());
    };
    let line_end: &[u8] = if is_terminal { b"\n" } else { b"" };
    write(out, &[&value, line_end])
}

/// Stores a value and writes `OK` to `out` once the node has acknowledged it.
///
/// # Errors
/// What went wrong; [`ClientError::Lost`] leaves open whether the value is stored.
pub(super) fn set(
    flags: &SetFlags,
    sources: &Sources<'_>,
    out: &mut dyn Write,
) -> Result<(), CliError> {
    let value = if flags.value == "-" {
        read_value(io::stdin().lock()).map_err(ClientError::Stdin)?
    } else {
        flags.value.as_bytes().to_vec()
    };
    let mut command = redis::cmd("SET");
    command.arg(flags.key.as_bytes()).arg(value);
    if let Some(expire_ms) = flags.expire_ms {
        command.arg("PX").arg(expire_ms);
    }
    let mut node = Node::connect(sources)?;
    match node.ask(&command)? {
        Value::Okay => write(out, &[b"OK\n"]),
        _ => Err(node.strange()),
    }
}

/// Deletes keys and writes to `out` how many of them existed.
///
/// # Errors
/// What went wrong; [`ClientError::Lost`] leaves open which keys are deleted.
pub(super) fn del(
    flags: &DelFlags,
    sources: &Sources<'_>,
    out: &mut dyn Write,
) -> Result<(), CliError> {
    let mut command = redis::cmd("DEL");
    for key in &flags.keys {
        command.arg(key.as_bytes());
    }
    let mut node = Node::connect(sources)?;
    match node.ask(&command)? {
        Value::Int(count) => write(out, &[count.to_string().as_bytes(), b"\n"]),
        _ => Err(node.strange()),
    }
}

/// Writes to `out` what the node says about itself.
///
/// # Errors
/// What went wrong.
pub(super) fn info(
    flags: &InfoFlags,
    sources: &Sources<'_>,
    out: &mut dyn Write,
) -> Result<(), CliError> {
    let mut command = redis::cmd("INFO");
    if let Some(section) = &flags.section {
        command.arg(section.as_bytes());
    }
    let mut node = Node::connect(sources)?;
    let answer = node.ask(&command)?;
    match node.bytes(answer)? {
        Some(text) => write(out, &[&text]),
        None => Err(node.strange()),
    }
}

/// Has the node take a snapshot and writes its id to `out`.
///
/// # Errors
/// What went wrong.
pub(super) fn create_snapshot(
    id: Option<&str>,
    sources: &Sources<'_>,
    out: &mut dyn Write,
) -> Result<(), CliError> {
    let mut command = redis::cmd("KAD.SNAPSHOT");
    command.arg("CREATE").arg(id);
    let mut node = Node::connect(sources)?;
    node.wait_at_most(SNAPSHOT_TIMEOUT)?;
    let answer = node.ask(&command)?;
    match node.bytes(answer)? {
        Some(id) => write(out, &[&id, b"\n"]),
        None => Err(node.strange()),
    }
}

/// A connection that has passed the password, if there is one.
pub(super) struct Node {
    address: String,
    connection: Connection,
}

impl Node {
    pub(super) fn connect(sources: &Sources<'_>) -> Result<Self, CliError> {
        let (address, host, port) = node_address(sources)?;
        let password = config::requirepass(sources)?;
        let unreachable = |source| ClientError::Unreachable { address: address.clone(), source };
        // No handshake inside the library: it would run without a read timeout.
        let settings = redis::RedisConnectionInfo::default().set_skip_set_lib_name();
        let connection = ConnectionAddr::Tcp(host, port)
            .into_connection_info()
            .map(|info| info.set_redis_settings(settings))
            .and_then(redis::Client::open)
            .and_then(|client| client.get_connection_with_timeout(CONNECT_TIMEOUT))
            .and_then(|connection| {
                connection.set_read_timeout(Some(REPLY_TIMEOUT))?;
                connection.set_write_timeout(Some(REPLY_TIMEOUT))?;
                Ok(connection)
            })
            .map_err(unreachable)?;
        let mut node = Self { address, connection };
        if let Some(password) = password {
            node.ask(redis::cmd("AUTH").arg(password.expose()))?;
        }
        Ok(node)
    }

    fn wait_at_most(&self, timeout: Duration) -> Result<(), ClientError> {
        let set = self.connection.set_read_timeout(Some(timeout));
        set.map_err(|source| ClientError::Lost { address: self.address.clone(), source })
    }

    pub(super) fn ask(&mut self, command: &Cmd) -> Result<Value, ClientError> {
        command.query(&mut self.connection).map_err(|source| {
            let address = self.address.clone();
            let Some(code) = source.code() else {
                return ClientError::Lost { address, source };
            };
            let text = match source.detail() {
                Some(detail) => format!("{code} {detail}"),
                None => code.to_owned(),
            };
            let is_password = code == "NOAUTH" || code == "WRONGPASS" || is_auth(command);
            if is_password {
                ClientError::Password { address, text }
            } else {
                ClientError::Refused { address, text }
            }
        })
    }

    /// The bytes of an answer that is a string, `None` for nil.
    fn bytes(&self, answer: Value) -> Result<Option<Vec<u8>>, CliError> {
        match answer {
            Value::Nil => Ok(None),
            Value::BulkString(bytes) => Ok(Some(bytes)),
            Value::SimpleString(text) => Ok(Some(text.into_bytes())),
            Value::Okay => Ok(Some(b"OK".to_vec())),
            _ => Err(self.strange()),
        }
    }

    pub(super) fn strange(&self) -> CliError {
        ClientError::Strange { address: self.address.clone() }.into()
    }
}

fn is_auth(command: &Cmd) -> bool {
    matches!(command.args_iter().next(), Some(redis::Arg::Simple(name)) if name == b"AUTH")
}

/// The node's address as given, and its two halves.
fn node_address(sources: &Sources<'_>) -> Result<(String, String, u16), ClientError> {
    let variable = variable_name("client");
    let from_variable = || {
        (sources.variable)(&variable).filter(|word| !word.is_empty()).map(|word| (&*variable, word))
    };
    let given = (sources.flag)("client").map(|word| ("--client", word)).or_else(from_variable);
    let (place, word) =
        given.unwrap_or_else(|| ("--client", OsString::from(Config::default().client.to_string())));
    let Some((host, port)) = split_address(&word) else {
        let found = word.to_string_lossy().into_owned();
        return Err(ClientError::Address { place: place.to_owned(), found });
    };
    Ok((word.to_string_lossy().into_owned(), host, port))
}

/// Splits `host:port` or `[v6]:port`; `None` for any other form.
fn split_address(word: &OsStr) -> Option<(String, u16)> {
    let (host, port) = word.to_str()?.rsplit_once(':')?;
    let port = port.parse().ok().filter(|port| *port != 0)?;
    let bracketed = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    let host = match bracketed {
        Some(inner) => inner,
        None if host.contains(':') => return None,
        None => host,
    };
    (!host.is_empty()).then(|| (host.to_owned(), port))
}

fn read_value(input: impl io::Read) -> io::Result<Vec<u8>> {
    let mut value = Vec::new();
    input.take(STDIN_BYTES_MAX + 1).read_to_end(&mut value)?;
    if value.len() as u64 > STDIN_BYTES_MAX {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "more than 512MiB"));
    }
    Ok(value)
}

fn write(out: &mut dyn Write, parts: &[&[u8]]) -> Result<(), CliError> {
    parts.iter().try_for_each(|part| out.write_all(part)).map_err(CliError::Output)
}

#[cfg(test)]
mod tests {
    use super::split_address;
    use std::ffi::OsStr;

    #[test]
    fn addresses_are_a_host_and_a_port() {
        let split = |text| split_address(OsStr::new(text));
        assert_eq!(split("127.0.0.1:7379"), Some(("127.0.0.1".to_owned(), 7379)));
        assert_eq!(split("localhost:1"), Some(("localhost".to_owned(), 1)));
        assert_eq!(split("[::1]:7379"), Some(("::1".to_owned(), 7379)));
        for text in ["", "7379", ":7379", "localhost", "::1:7379", "h:0", "h:65536", "h:x"] {
            assert_eq!(split(text), None, "{text:?}");
        }
    }
}
