//! `kadring mainline`: items and peers of BitTorrent's DHT, through a running node.
//!
//! The node looks, asks and stores; what is secret stays here: `put-mutable` signs before it sends.

mod flags;
pub(super) mod key_file;
mod print;

use std::ffi::{OsStr, OsString};
use std::io::{self, Read as _, Write};
use std::os::unix::ffi::OsStrExt as _;

use redis::{Cmd, Value};

use super::client::Node;
use super::error::CliError;
use super::exit_code::ExitCode;
use crate::config::Sources;
use crate::krpc::bencode::Writer;
use crate::mainline::item::{self, SALT_LEN_MAX, SigningKey};
use crate::mainline::text::{self, Place};
pub(super) use flags::MainlineCommand;
use flags::{AnnounceFlags, GetFlags, GetPeersFlags, PingFlags, SampleFlags};
use flags::{PutFlags, PutMutableFlags};
pub use key_file::KeyFileError;
use print::{Fields, text_of};

/// Bytes read from stdin at most: a value that is longer is refused anyway.
const STDIN_VALUE_BYTES_MAX: u64 = 4096;

/// Why a command of `kadring mainline` failed. Displayed as `what; remedy`.
#[derive(Debug, thiserror::Error)]
pub enum MainlineCliError {
    /// A word is not what it should be.
    #[error("{found:?} is no {what}; give {expected}")]
    Word {
        /// What it should be.
        what: &'static str,
        /// The word.
        found: String,
        /// What would be taken.
        expected: &'static str,
    },
    /// The value cannot be an item.
    #[error("the value cannot be stored: {0}; give at most 1000 bytes of bencode")]
    Value(crate::mainline::Reject),
    /// The value cannot be read from stdin.
    #[error("cannot read the value from stdin: {0}; pipe at most 1000 bytes into it")]
    Stdin(#[source] io::Error),
    /// The key file cannot be used.
    #[error(transparent)]
    KeyFile(#[from] KeyFileError),
    /// Nobody who was asked has it.
    #[error("no node has an item at {target}; it was not put, has expired, or has another salt")]
    Missing {
        /// Where.
        target: String,
    },
    /// Nobody has taken it.
    #[error(
        "no node has stored it at {target}{}; look at INFO mainline, and try again",
        conflict.map(conflict_text).unwrap_or_default()
    )]
    NotStored {
        /// Where.
        target: String,
        /// The error that most have answered.
        conflict: Option<i64>,
    },
}

fn conflict_text(code: i64) -> &'static str {
    match code {
        301 => ": another seq than --cas is stored (301)",
        _ => ": a newer seq is stored (302)",
    }
}

impl MainlineCliError {
    /// The exit code that belongs to this failure.
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::Word { .. } | Self::Value(_) => ExitCode::Usage,
            Self::Stdin(_) | Self::KeyFile(_) => ExitCode::Failure,
            Self::Missing { .. } | Self::NotStored { .. } => ExitCode::Failure,
        }
    }
}

/// Runs a subcommand.
///
/// # Errors
/// What went wrong.
pub(super) fn run(
    command: &MainlineCommand,
    sources: &Sources<'_>,
    out: &mut dyn Write,
    is_terminal: bool,
) -> Result<(), CliError> {
    match command {
        MainlineCommand::Get(flags) => get(flags, sources, out, is_terminal),
        MainlineCommand::Put(flags) => put(flags, sources, out),
        MainlineCommand::PutMutable(flags) => put_mutable(flags, sources, out),
        MainlineCommand::GetPeers(flags) => get_peers(flags, sources, out),
        MainlineCommand::Announce(flags) => announce(flags, sources, out),
        MainlineCommand::Sample(flags) => sample(flags, sources, out),
        MainlineCommand::Ping(flags) => ping(flags, sources, out),
        MainlineCommand::Key { file, create } => {
            let key = if *create { key_file::create(file) } else { key_file::read(file) };
            print::key(out, &key.map_err(MainlineCliError::from)?.public())
        }
    }
}

fn get(
    flags: &GetFlags,
    sources: &Sources<'_>,
    out: &mut dyn Write,
    is_terminal: bool,
) -> Result<(), CliError> {
    let salt = salt_of(flags.salt.as_deref())?;
    let place = place_of(&flags.place)?;
    let target = place.target(salt);
    let mut command = redis::cmd("KAD.BEP44.GET");
    command.arg(text::hex(&target.0));
    add_salt(&mut command, salt);
    if let Some(seq) = flags.seq {
        command.arg("SEQ").arg(seq);
    }
    let mut node = Node::connect(sources)?;
    let answer = node.ask(&command)?;
    let fields = Fields::of(&answer).ok_or_else(|| node.strange())?;
    if flags.output.details {
        print::details(out, &fields)?;
    }
    let Some(value) = fields.bytes("value") else {
        return Err(MainlineCliError::Missing { target: text::hex(&target.0) }.into());
    };
    match flags.output.details {
        true => Ok(()),
        false => print::value(out, value, flags.bencoded, is_terminal),
    }
}

fn put(flags: &PutFlags, sources: &Sources<'_>, out: &mut dyn Write) -> Result<(), CliError> {
    let value = value_of(&flags.value, flags.bencoded)?;
    let mut command = redis::cmd("KAD.BEP44.PUT");
    command.arg(value);
    store(&command, flags.output.details, sources, out)
}

fn put_mutable(
    flags: &PutMutableFlags,
    sources: &Sources<'_>,
    out: &mut dyn Write,
) -> Result<(), CliError> {
    let key = key_file::read(&flags.key_file).map_err(MainlineCliError::from)?;
    let salt = salt_of(flags.salt.as_deref())?;
    let value = value_of(&flags.value, flags.bencoded)?;
    let seq = match flags.seq {
        Some(seq) => seq,
        None => next_seq(&key, salt, sources)?,
    };
    let mut command = redis::cmd("KAD.BEP44.PUTMUTABLE");
    let signature = key.sign(salt, seq, &value);
    command.arg(text::hex(&key.public())).arg(text::hex(&signature)).arg(seq).arg(value);
    add_salt(&mut command, salt);
    if let Some(cas) = flags.cas {
        command.arg("CAS").arg(cas);
    }
    store(&command, flags.output.details, sources, out)
}

/// One more than what is stored now; 1, if nothing is.
fn next_seq(key: &SigningKey, salt: &[u8], sources: &Sources<'_>) -> Result<i64, CliError> {
    let target = Place::Key(key.public()).target(salt);
    let mut command = redis::cmd("KAD.BEP44.GET");
    command.arg(text::hex(&target.0));
    add_salt(&mut command, salt);
    let mut node = Node::connect(sources)?;
    let answer = node.ask(&command)?;
    let fields = Fields::of(&answer).ok_or_else(|| node.strange())?;
    Ok(fields.integer("seq").map_or(1, |seq| seq.saturating_add(1)))
}

/// Has the node store, and prints where.
fn store(
    command: &Cmd,
    details: bool,
    sources: &Sources<'_>,
    out: &mut dyn Write,
) -> Result<(), CliError> {
    let mut node = Node::connect(sources)?;
    let answer = node.ask(command)?;
    let fields = Fields::of(&answer).ok_or_else(|| node.strange())?;
    let target = fields.text("target").ok_or_else(|| node.strange())?;
    let stored = fields.integer("stored").ok_or_else(|| node.strange())?;
    if details {
        print::details(out, &fields)?;
    }
    if stored == 0 {
        let conflict = fields.integer("conflict");
        return Err(MainlineCliError::NotStored { target, conflict }.into());
    }
    match details {
        true => Ok(()),
        false => print::line(out, &target),
    }
}

fn get_peers(
    flags: &GetPeersFlags,
    sources: &Sources<'_>,
    out: &mut dyn Write,
) -> Result<(), CliError> {
    let mut command = redis::cmd("KAD.MAINLINE.GETPEERS");
    command.arg(id_of(&flags.info_hash)?);
    let mut node = Node::connect(sources)?;
    let answer = node.ask(&command)?;
    let Value::Array(peers) = &answer else { return Err(node.strange()) };
    for peer in peers {
        print::line(out, &text_of(peer).ok_or_else(|| node.strange())?)?;
    }
    Ok(())
}

fn announce(
    flags: &AnnounceFlags,
    sources: &Sources<'_>,
    out: &mut dyn Write,
) -> Result<(), CliError> {
    let mut command = redis::cmd("KAD.MAINLINE.ANNOUNCE");
    command.arg(id_of(&flags.info_hash)?);
    if let Some(port) = flags.port {
        command.arg("PORT").arg(port);
    }
    if flags.seed {
        command.arg("SEED");
    }
    store(&command, flags.output.details, sources, out)
}

fn sample(flags: &SampleFlags, sources: &Sources<'_>, out: &mut dyn Write) -> Result<(), CliError> {
    let mut command = redis::cmd("KAD.MAINLINE.SAMPLE");
    command.arg(id_of(&flags.target)?);
    let mut node = Node::connect(sources)?;
    let answer = node.ask(&command)?;
    let fields = Fields::of(&answer).ok_or_else(|| node.strange())?;
    if flags.details {
        return print::details(out, &fields);
    }
    for info_hash in fields.texts("samples").ok_or_else(|| node.strange())? {
        print::line(out, &info_hash)?;
    }
    Ok(())
}

fn ping(flags: &PingFlags, sources: &Sources<'_>, out: &mut dyn Write) -> Result<(), CliError> {
    let mut node = Node::connect(sources)?;
    let answer = node.ask(redis::cmd("KAD.MAINLINE.PING").arg(flags.address.as_bytes()))?;
    let id = text_of(&answer).ok_or_else(|| node.strange())?;
    print::line(out, &id)
}

fn place_of(word: &OsStr) -> Result<Place, MainlineCliError> {
    Place::decode(word.as_bytes()).ok_or_else(|| MainlineCliError::Word {
        what: "target or public key",
        found: word.to_string_lossy().into_owned(),
        expected: "40 hexadecimal digits (32 of z-base-32), or 64 (52) for a key",
    })
}

/// An id in hexadecimal, whichever way it was written.
fn id_of(word: &OsStr) -> Result<String, MainlineCliError> {
    let id = text::decode::<20>(word.as_bytes());
    id.map(|id| text::hex(&id)).ok_or_else(|| MainlineCliError::Word {
        what: "target or info hash",
        found: word.to_string_lossy().into_owned(),
        expected: "40 hexadecimal digits, or 32 of z-base-32",
    })
}

fn salt_of(salt: Option<&OsStr>) -> Result<&[u8], MainlineCliError> {
    let salt = salt.map(OsStr::as_bytes).unwrap_or_default();
    if salt.len() <= SALT_LEN_MAX {
        return Ok(salt);
    }
    let found = salt.escape_ascii().to_string();
    Err(MainlineCliError::Word { what: "salt", found, expected: "at most 64 bytes" })
}

fn add_salt(command: &mut Cmd, salt: &[u8]) {
    if !salt.is_empty() {
        command.arg("SALT").arg(salt);
    }
}

/// The bencoded value that a word, or stdin, stands for.
fn value_of(word: &OsString, bencoded: bool) -> Result<Vec<u8>, MainlineCliError> {
    let bytes = if word == "-" {
        read_value(io::stdin().lock()).map_err(MainlineCliError::Stdin)?
    } else {
        word.as_bytes().to_vec()
    };
    let value = if bencoded {
        bytes
    } else {
        let mut value = Vec::new();
        Writer::new(&mut value).bytes(&bytes);
        value
    };
    item::check_value(&value).map_err(MainlineCliError::Value)?;
    Ok(value)
}

fn read_value(input: impl io::Read) -> io::Result<Vec<u8>> {
    let mut value = Vec::new();
    input.take(STDIN_VALUE_BYTES_MAX).read_to_end(&mut value)?;
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_strings_unless_told_otherwise() {
        let value = |word: &str, bencoded| value_of(&word.into(), bencoded);
        assert_eq!(value("abc", false).unwrap(), b"3:abc");
        assert_eq!(value("i42e", false).unwrap(), b"4:i42e");
        assert_eq!(value("i42e", true).unwrap(), b"i42e");
        assert!(value("i42", true).is_err());
        assert!(value(&"x".repeat(996), false).is_ok());
        assert!(value(&"x".repeat(997), false).is_err());
    }

    #[test]
    fn words_are_checked_before_a_node_is_asked() {
        assert!(place_of(OsStr::new("abc")).is_err());
        assert_eq!(id_of(OsStr::new(&"AB".repeat(20))).unwrap(), "ab".repeat(20));
        assert!(id_of(OsStr::new(&"ab".repeat(32))).is_err(), "a key is no target");
        assert!(salt_of(Some(OsStr::new(&"s".repeat(64)))).is_ok());
        assert!(salt_of(Some(OsStr::new(&"s".repeat(65)))).is_err());
        assert_eq!(salt_of(None).unwrap(), b"");
    }
}
