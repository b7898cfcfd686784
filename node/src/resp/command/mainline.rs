//! Items and peers of BitTorrent's DHT: KAD.BEP44.* and KAD.MAINLINE.*.
//!
//! Targets, keys and signatures are words of hexadecimal digits or z-base-32; values are bencoded.

use std::net::SocketAddr;

use super::options::argument;
use super::spec::CommandId;
use super::{CommandError, number};
use crate::kademlia::NodeId;
use crate::mainline::item::{Item, KEY_LEN, MutableItem, SALT_LEN_MAX, SIGNATURE_LEN, check_value};
use crate::mainline::text::{self, Place};
use crate::resp::frame::Arguments;

/// What a client asks of BitTorrent's DHT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MainlineCommand<'a> {
    /// KAD.BEP44.GET.
    Get {
        /// Where.
        place: Place,
        /// The salt of a mutable item.
        salt: &'a [u8],
        /// Only mutable items with a higher seq.
        newer_than: Option<i64>,
    },
    /// KAD.BEP44.PUT.
    Put {
        /// The immutable item, bencoded.
        value: &'a [u8],
    },
    /// KAD.BEP44.PUTMUTABLE.
    PutMutable(PutMutable<'a>),
    /// KAD.MAINLINE.GETPEERS.
    GetPeers {
        /// Of which torrent.
        info_hash: NodeId,
    },
    /// KAD.MAINLINE.ANNOUNCE.
    Announce {
        /// Which torrent.
        info_hash: NodeId,
        /// The peer's port; `None`: that of the node's datagrams.
        port: Option<u16>,
        /// Whether the peer has all of it.
        seed: bool,
    },
    /// KAD.MAINLINE.SAMPLE.
    Sample {
        /// Near which target.
        target: NodeId,
    },
    /// KAD.MAINLINE.PING.
    Ping {
        /// Whom.
        address: SocketAddr,
    },
}

/// A mutable item that was signed by the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PutMutable<'a> {
    /// The public key.
    pub key: [u8; KEY_LEN],
    /// Over salt, seq and value.
    pub signature: [u8; SIGNATURE_LEN],
    /// The number of this version.
    pub seq: i64,
    /// The value, bencoded.
    pub value: &'a [u8],
    /// The salt.
    pub salt: &'a [u8],
    /// The seq to be replaced.
    pub cas: Option<i64>,
}

impl<'a> PutMutable<'a> {
    /// The item.
    #[must_use]
    pub fn item(&self) -> Item<'_> {
        let Self { key, signature, seq, value, salt, .. } = self;
        Item::Mutable(MutableItem { key, salt, seq: *seq, signature, value })
    }

    fn parse(arguments: &Arguments<'a>) -> Result<Self, CommandError<'a>> {
        let mut options = Options::default();
        options.read(arguments, 5)?;
        let word = |index| argument(arguments, index);
        let (seq, value) = (number(arguments, 3)?, word(4));
        if options.seq.is_some() || seq < 0 {
            return Err(CommandError::Syntax);
        }
        check_value(value).map_err(|_| CommandError::ItemValue)?;
        Ok(Self {
            key: text::decode(word(1)).ok_or(CommandError::PublicKey)?,
            signature: text::decode(word(2)).ok_or(CommandError::Signature)?,
            seq,
            value,
            salt: options.salt,
            cas: options.cas,
        })
    }
}

/// Words behind the fixed arguments.
#[derive(Debug, Default)]
struct Options<'a> {
    salt: &'a [u8],
    seq: Option<i64>,
    cas: Option<i64>,
}

impl<'a> Options<'a> {
    fn read(&mut self, arguments: &Arguments<'a>, first: usize) -> Result<(), CommandError<'a>> {
        let mut index = first;
        while let Some(word) = arguments.get(index) {
            let value = arguments.get(index + 1).ok_or(CommandError::Syntax)?;
            if word.eq_ignore_ascii_case(b"salt") {
                self.salt = value;
            } else if word.eq_ignore_ascii_case(b"seq") {
                self.seq = Some(number(arguments, index + 1)?);
            } else if word.eq_ignore_ascii_case(b"cas") {
                self.cas = Some(number(arguments, index + 1)?);
            } else {
                return Err(CommandError::Syntax);
            }
            index += 2;
        }
        if self.salt.len() > SALT_LEN_MAX { Err(CommandError::Salt) } else { Ok(()) }
    }
}

impl<'a> MainlineCommand<'a> {
    /// Parses the arguments of the command; `None` if it is none of these.
    pub(super) fn parse(
        command: CommandId,
        arguments: &Arguments<'a>,
    ) -> Option<Result<Self, CommandError<'a>>> {
        Some(match command {
            CommandId::Bep44Get => get(arguments),
            CommandId::Bep44Put => {
                let value = argument(arguments, 1);
                let checked = check_value(value).map_err(|_| CommandError::ItemValue);
                checked.map(|()| Self::Put { value })
            }
            CommandId::Bep44PutMutable => PutMutable::parse(arguments).map(Self::PutMutable),
            CommandId::MainlineGetPeers => {
                id(arguments).map(|info_hash| Self::GetPeers { info_hash })
            }
            CommandId::MainlineAnnounce => announce(arguments),
            CommandId::MainlineSample => id(arguments).map(|target| Self::Sample { target }),
            CommandId::MainlinePing => {
                let word = std::str::from_utf8(argument(arguments, 1)).ok();
                let address = word.and_then(|word| word.parse().ok());
                address.map(|address| Self::Ping { address }).ok_or(CommandError::Address)
            }
            _ => return None,
        })
    }
}

fn get<'a>(arguments: &Arguments<'a>) -> Result<MainlineCommand<'a>, CommandError<'a>> {
    let mut options = Options::default();
    options.read(arguments, 2)?;
    if options.cas.is_some() {
        return Err(CommandError::Syntax);
    }
    let place = Place::decode(argument(arguments, 1)).ok_or(CommandError::Target)?;
    Ok(MainlineCommand::Get { place, salt: options.salt, newer_than: options.seq })
}

fn announce<'a>(arguments: &Arguments<'a>) -> Result<MainlineCommand<'a>, CommandError<'a>> {
    let info_hash = id(arguments)?;
    let (mut port, mut seed, mut index) = (None, false, 2);
    while let Some(word) = arguments.get(index) {
        if word.eq_ignore_ascii_case(b"seed") {
            seed = true;
        } else if word.eq_ignore_ascii_case(b"port") && arguments.get(index + 1).is_some() {
            index += 1;
            let given = u16::try_from(number(arguments, index)?).ok().filter(|port| *port != 0);
            port = Some(given.ok_or(CommandError::IntegerRange)?);
        } else {
            return Err(CommandError::Syntax);
        }
        index += 1;
    }
    Ok(MainlineCommand::Announce { info_hash, port, seed })
}

fn id<'a>(arguments: &Arguments<'_>) -> Result<NodeId, CommandError<'a>> {
    text::decode(argument(arguments, 1)).map(NodeId).ok_or(CommandError::Target)
}
