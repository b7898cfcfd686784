//! [`Item`]: a value in the DHT, named by its hash or by a key and signed (BEP 44).

pub mod record;
pub mod signature;
#[cfg(test)]
mod tests;

use sha1::{Digest, Sha1};

use crate::kademlia::NodeId;
use crate::krpc::bencode::{Reader, Writer};

use super::reject::Reject;

pub use record::{Record, RecordError};
pub use signature::{BATCH_MAX, Signed, SigningKey, verify_all};

/// Bytes of a bencoded value: a string has 996 of its own. One server takes 1,000 of these, and the
/// others refuse them.
pub const VALUE_LEN_MAX: usize = 1_000;
/// Bytes of a salt.
pub const SALT_LEN_MAX: usize = 64;
/// Bytes of a public key.
pub const KEY_LEN: usize = 32;
/// Bytes of a signature.
pub const SIGNATURE_LEN: usize = 64;

/// What is stored under a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Item<'a> {
    /// A value named by its own hash, bencoded.
    Immutable(&'a [u8]),
    /// A value named by its owner's key.
    Mutable(MutableItem<'a>),
}

/// A value that its owner may replace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MutableItem<'a> {
    /// The owner's public key.
    pub key: &'a [u8; KEY_LEN],
    /// Tells several values of one owner apart; may be empty.
    pub salt: &'a [u8],
    /// Which of several values is newer; 0 or more.
    pub seq: i64,
    /// The owner's signature over salt, seq and value.
    pub signature: &'a [u8; SIGNATURE_LEN],
    /// The value, bencoded.
    pub value: &'a [u8],
}

impl<'a> Item<'a> {
    /// Where the item is stored. Never taken from a message: some send a wrong one.
    #[must_use]
    pub fn target(&self) -> NodeId {
        match self {
            Self::Immutable(value) => immutable_target(value),
            Self::Mutable(item) => mutable_target(item.key, item.salt),
        }
    }

    /// The value, bencoded.
    #[must_use]
    pub fn value(&self) -> &'a [u8] {
        match self {
            Self::Immutable(value) => value,
            Self::Mutable(item) => item.value,
        }
    }

    /// Checks sizes and spelling, in the order of other servers: value, then salt. Signatures are
    /// checked apart ([`verify_all`]).
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check(&self) -> Result<(), Reject> {
        check_value(self.value())?;
        match self {
            Self::Immutable(_) => Ok(()),
            Self::Mutable(item) if item.salt.len() > SALT_LEN_MAX => Err(Reject::SaltTooLong),
            Self::Mutable(item) if item.seq < 0 => Err(Reject::NegativeSeq),
            Self::Mutable(_) => Ok(()),
        }
    }
}

/// Checks that a value is one whole bencoded value, as bencode prescribes, and not too long.
///
/// # Errors
/// What is wrong with it.
pub fn check_value(value: &[u8]) -> Result<(), Reject> {
    if value.len() > VALUE_LEN_MAX {
        return Err(Reject::ValueTooLong);
    }
    let mut reader = Reader::new(value);
    let whole = reader.value().and_then(|_| reader.finish());
    whole.map_err(|_| Reject::Invalid("v"))?;
    if reader.is_canonical() { Ok(()) } else { Err(Reject::NotCanonical) }
}

/// The target of an immutable item: SHA-1 of the bencoded value.
#[must_use]
pub fn immutable_target(value: &[u8]) -> NodeId {
    NodeId(Sha1::digest(value).into())
}

/// The target of a mutable item: SHA-1 of key and salt.
#[must_use]
pub fn mutable_target(key: &[u8; KEY_LEN], salt: &[u8]) -> NodeId {
    NodeId(Sha1::new().chain_update(key).chain_update(salt).finalize().into())
}

/// Appends what is signed: salt (if there is one), seq and value, as a dictionary without its ends.
pub fn write_signed(salt: &[u8], seq: i64, value: &[u8], output: &mut Vec<u8>) {
    let mut writer = Writer::new(output);
    if !salt.is_empty() {
        writer.bytes(b"salt").bytes(salt);
    }
    writer.bytes(b"seq").integer(seq).bytes(b"v").value(value);
}
