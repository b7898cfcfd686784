//! Why a configuration is refused: each message is one line with the cause and the remedy.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use super::size;

/// Where the value of a setting came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The built-in default, or a [`Config`](super::Config) made by code.
    Default,
    /// The configuration file at this path.
    File(PathBuf),
    /// The environment.
    Variable,
    /// The command line.
    Flag,
}

/// A setting as the user wrote it: `--shards`, `KADRING_SHARDS` or `shards in FILE`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The key of the setting.
    pub key: &'static str,
    /// Where its value came from.
    pub origin: Origin,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.origin {
            Origin::Default => f.write_str(self.key),
            Origin::File(path) => write!(f, "{} in {}", self.key, path.display()),
            Origin::Variable => f.write_str(&super::variable_name(self.key)),
            Origin::Flag => write!(f, "--{}", super::flag_name(self.key)),
        }
    }
}

/// Why [`Config::load`](super::Config::load) or [`Config::validate`](super::Config::validate)
/// refused. Displayed as `what; remedy`.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The configuration file cannot be read.
    #[error(
        "{place}: cannot read {}: {source}; name a readable file or leave it out", path.display()
    )]
    FileUnreadable {
        /// The setting that names the file.
        place: Place,
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The configuration file is not TOML.
    #[error("{} line {line}: {reason}; write it as TOML, one `key = value` a line", path.display())]
    FileSyntax {
        /// The file.
        path: PathBuf,
        /// Line of the first error, from 1.
        line: usize,
        /// What the TOML reader said, on one line.
        reason: String,
    },
    /// The configuration file has a key that is no setting.
    #[error("{} has an unknown key `{key}`; did you mean `{nearest}`?", path.display())]
    KeyUnknown {
        /// The file.
        path: PathBuf,
        /// The key found.
        key: String,
        /// The known key that looks most like it.
        nearest: &'static str,
    },
    /// A value has the wrong type or form, or lies outside its range.
    #[error("{place} is {found}; give {expected}")]
    ValueRefused {
        /// The setting.
        place: Place,
        /// The value or its type, as found.
        found: String,
        /// What would be accepted.
        expected: &'static str,
    },
    /// A limit is too small for another one.
    #[error(
        "{place} is {}, less than {} ({reason}); raise {} or lower value_bytes_max",
        size::format(*found), size::format(*needed), place.key
    )]
    LimitTooSmall {
        /// The setting that is too small.
        place: Place,
        /// Its value in bytes.
        found: u64,
        /// The least that works with the other limits, in bytes.
        needed: u64,
        /// How the least was reckoned.
        reason: &'static str,
    },
    /// The client door would be open to other machines without a password.
    #[error(
        "client door {client} is reachable from other machines and has no password; \
         set requirepass (KADRING_REQUIREPASS or --requirepass-file) or bind 127.0.0.1"
    )]
    PasswordMissing {
        /// The address of the client door.
        client: SocketAddr,
    },
    /// The peer door would be open to other machines without a secret.
    #[error(
        "peer door {peer} is reachable from other machines and the cluster has no secret; \
         give --cluster-secret-file or bind 127.0.0.1"
    )]
    SecretMissing {
        /// The address of the peer door.
        peer: SocketAddr,
    },
    /// Others would be told to reach the node at no address.
    #[error("peer door {peer} has every address; say with --advertise where others reach it")]
    AdvertiseMissing {
        /// The address of the peer door.
        peer: SocketAddr,
    },
    /// The admin door would be open to other machines, and nobody has said that it may.
    #[error(
        "admin door {admin} is reachable from other machines and asks for no password; \
         give --admin-public if that is meant, or bind 127.0.0.1"
    )]
    AdminPublic {
        /// The address of the admin door.
        admin: SocketAddr,
    },
    /// `requirepass` and `requirepass_file` are both given in one place.
    #[error("{first} and {second} are both set; keep one of them")]
    PasswordTwice {
        /// The password itself.
        first: Place,
        /// The file that holds a password.
        second: Place,
    },
    /// The password file cannot be read.
    #[error("{place}: cannot read {}: {source}; name a readable file", path.display())]
    PasswordUnreadable {
        /// The setting that names the file.
        place: Place,
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The password is empty, too long, or not on one line.
    #[error(
        "{place} does not hold a password; give one line of 1 to {} bytes",
        super::PASSWORD_BYTES_MAX
    )]
    PasswordRefused {
        /// The setting that gave the password or its file.
        place: Place,
    },
}
