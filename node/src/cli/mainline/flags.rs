//! The flags of `kadring mainline`.

use std::ffi::OsString;
use std::path::PathBuf;

use super::super::client::NodeFlags;

/// Subcommands of `kadring mainline`.
#[derive(Clone, Debug, clap::Subcommand)]
pub(in crate::cli) enum MainlineCommand {
    /// Find an item and print its value
    Get(GetFlags),
    /// Store an immutable item; prints its target
    Put(PutFlags),
    /// Sign and store a mutable item; prints its target. The secret stays in this process
    PutMutable(PutMutableFlags),
    /// Find peers of a torrent; prints one address a line
    GetPeers(GetPeersFlags),
    /// Announce this machine as a peer of a torrent
    Announce(AnnounceFlags),
    /// Ask the nodes near a target which torrents they have peers of; prints one a line
    Sample(SampleFlags),
    /// Ask a node for its id
    Ping(PingFlags),
    /// Print the public key of a key file, in hexadecimal and z-base-32
    Key {
        /// The key file
        file: PathBuf,
        /// Make it, with a new key, readable by its owner alone
        #[arg(long)]
        create: bool,
    },
}

impl MainlineCommand {
    /// The value given for the setting `key`.
    pub(in crate::cli) fn get(&self, key: &str) -> Option<OsString> {
        match self {
            Self::Get(flags) => flags.node.get(key),
            Self::Put(flags) => flags.node.get(key),
            Self::PutMutable(flags) => flags.node.get(key),
            Self::GetPeers(flags) => flags.node.get(key),
            Self::Announce(flags) => flags.node.get(key),
            Self::Sample(flags) => flags.node.get(key),
            Self::Ping(flags) => flags.node.get(key),
            Self::Key { .. } => None,
        }
    }
}

/// What is printed.
#[derive(Clone, Debug, clap::Args)]
pub(in crate::cli) struct OutputFlags {
    /// Print all that is known, one `name=value` a line, and what each node has answered
    #[arg(long)]
    pub(super) details: bool,
}

/// Flags of `kadring mainline get`.
#[derive(Clone, Debug, clap::Args)]
pub(in crate::cli) struct GetFlags {
    #[command(flatten)]
    pub(super) node: NodeFlags,
    #[command(flatten)]
    pub(super) output: OutputFlags,
    /// The target, or the public key of a mutable item's owner: hexadecimal or z-base-32
    #[arg(value_name = "TARGET|KEY")]
    pub(super) place: OsString,
    /// The salt of a mutable item
    #[arg(long, value_name = "SALT")]
    pub(super) salt: Option<OsString>,
    /// Only a mutable item with a higher seq than this
    #[arg(long, value_name = "N")]
    pub(super) seq: Option<i64>,
    /// Print the value as it is bencoded, also if it is a string
    #[arg(long)]
    pub(super) bencoded: bool,
}

/// Flags of `kadring mainline put`.
#[derive(Clone, Debug, clap::Args)]
pub(in crate::cli) struct PutFlags {
    #[command(flatten)]
    pub(super) node: NodeFlags,
    #[command(flatten)]
    pub(super) output: OutputFlags,
    /// The value is bencoded already; else it is stored as a string
    #[arg(long)]
    pub(super) bencoded: bool,
    /// The value; `-` reads it from stdin until its end
    #[arg(allow_negative_numbers = true)]
    pub(super) value: OsString,
}

/// Flags of `kadring mainline put-mutable`.
#[derive(Clone, Debug, clap::Args)]
pub(in crate::cli) struct PutMutableFlags {
    #[command(flatten)]
    pub(super) node: NodeFlags,
    #[command(flatten)]
    pub(super) output: OutputFlags,
    /// File with the secret key; `kadring mainline key FILE --create` makes one
    #[arg(long, value_name = "FILE")]
    pub(super) key_file: PathBuf,
    /// The salt: one key has an item for each
    #[arg(long, value_name = "SALT")]
    pub(super) salt: Option<OsString>,
    /// The number of this version [default: one more than what is stored]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i64).range(0..))]
    pub(super) seq: Option<i64>,
    /// Store only where this seq is stored now
    #[arg(long, value_name = "N")]
    pub(super) cas: Option<i64>,
    /// The value is bencoded already; else it is stored as a string
    #[arg(long)]
    pub(super) bencoded: bool,
    /// The value; `-` reads it from stdin until its end
    #[arg(allow_negative_numbers = true)]
    pub(super) value: OsString,
}

/// Flags of `kadring mainline get-peers`.
#[derive(Clone, Debug, clap::Args)]
pub(in crate::cli) struct GetPeersFlags {
    #[command(flatten)]
    pub(super) node: NodeFlags,
    /// The info hash: hexadecimal or z-base-32
    pub(super) info_hash: OsString,
}

/// Flags of `kadring mainline announce`.
#[derive(Clone, Debug, clap::Args)]
pub(in crate::cli) struct AnnounceFlags {
    #[command(flatten)]
    pub(super) node: NodeFlags,
    #[command(flatten)]
    pub(super) output: OutputFlags,
    /// The info hash: hexadecimal or z-base-32
    pub(super) info_hash: OsString,
    /// The port of the peer [default: that of the node's datagrams]
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub(super) port: Option<u16>,
    /// The peer has all of it
    #[arg(long)]
    pub(super) seed: bool,
}

/// Flags of `kadring mainline sample`.
#[derive(Clone, Debug, clap::Args)]
pub(in crate::cli) struct SampleFlags {
    #[command(flatten)]
    pub(super) node: NodeFlags,
    /// Print all that is known, one `name=value` a line
    #[arg(long)]
    pub(super) details: bool,
    /// The target: hexadecimal or z-base-32
    pub(super) target: OsString,
}

/// Flags of `kadring mainline ping`.
#[derive(Clone, Debug, clap::Args)]
pub(in crate::cli) struct PingFlags {
    #[command(flatten)]
    pub(super) node: NodeFlags,
    /// Which node to ask, as IP:PORT
    pub(super) address: OsString,
}
