//! How an item lies in the engine: the value of a record (docs/adr/0025 says of which key). All
//! numbers are little-endian. The engine has the checksum and the
//! expiry.
//!
//! An immutable item:
//!
//! | offset | size | field | meaning |
//! |---|---|---|---|
//! | 0 | 1 | version | 1 |
//! | 1 | 1 | kind | 0 |
//! | 2 | 8 | put time | ms since 1970, of the last put or refresh |
//! | 10 | rest | value | bencoded, at most 1,000 bytes |
//!
//! A mutable one:
//!
//! | offset | size | field | meaning |
//! |---|---|---|---|
//! | 0 | 1 | version | 1 |
//! | 1 | 1 | kind | 1 |
//! | 2 | 8 | put time | ms since 1970, of the last put or refresh |
//! | 10 | 8 | seq | at least 0 |
//! | 18 | 32 | key | the owner's public key |
//! | 50 | 64 | signature | over salt, seq and value |
//! | 114 | 1 | salt length | at most 64 |
//! | 115 | 0-64 | salt | |
//! | ... | rest | value | bencoded, at most 1,000 bytes |

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::as_conversions)]

use super::{Item, MutableItem, SALT_LEN_MAX, check_value};

const VERSION: u8 = 1;
const IMMUTABLE: u8 = 0;
const MUTABLE: u8 = 1;

/// An item and when it was last put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    /// Milliseconds since 1970.
    pub put_ms: u64,
    /// The item.
    pub item: Item<'a>,
}

/// Why bytes are no record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// They end too early.
    #[error("item record ends within a field")]
    Truncated,
    /// Another version than ours.
    #[error("item record of version {found}")]
    Version {
        /// The version found.
        found: u8,
    },
    /// A field has a value that none can have.
    #[error("item record with a bad {field}")]
    Field {
        /// Which.
        field: &'static str,
    },
}

impl<'a> Record<'a> {
    /// The record's bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.item.value().len().saturating_add(192));
        let kind = if matches!(self.item, Item::Immutable(_)) { IMMUTABLE } else { MUTABLE };
        bytes.extend_from_slice(&[VERSION, kind]);
        bytes.extend_from_slice(&self.put_ms.to_le_bytes());
        if let Item::Mutable(item) = &self.item {
            bytes.extend_from_slice(&item.seq.to_le_bytes());
            bytes.extend_from_slice(item.key);
            bytes.extend_from_slice(item.signature);
            bytes.push(u8::try_from(item.salt.len()).unwrap_or(u8::MAX));
            bytes.extend_from_slice(item.salt);
        }
        bytes.extend_from_slice(self.item.value());
        bytes
    }

    /// Reads a record.
    ///
    /// # Errors
    /// See [`RecordError`].
    pub fn decode(bytes: &'a [u8]) -> Result<Self, RecordError> {
        let (&[version, kind], rest) = split::<2>(bytes)?;
        if version != VERSION {
            return Err(RecordError::Version { found: version });
        }
        let (put_ms, rest) = split::<8>(rest)?;
        let item = match kind {
            IMMUTABLE => Item::Immutable(rest),
            MUTABLE => Item::Mutable(decode_mutable(rest)?),
            _ => return Err(RecordError::Field { field: "kind" }),
        };
        check_value(item.value()).map_err(|_| RecordError::Field { field: "value" })?;
        Ok(Self { put_ms: u64::from_le_bytes(*put_ms), item })
    }
}

fn decode_mutable(bytes: &[u8]) -> Result<MutableItem<'_>, RecordError> {
    let (seq, rest) = split::<8>(bytes)?;
    let (key, rest) = split::<32>(rest)?;
    let (signature, rest) = split::<64>(rest)?;
    let (&[salt_len], rest) = split::<1>(rest)?;
    let salt_len = usize::from(salt_len);
    if salt_len > SALT_LEN_MAX {
        return Err(RecordError::Field { field: "salt" });
    }
    let (salt, value) = rest.split_at_checked(salt_len).ok_or(RecordError::Truncated)?;
    let seq = i64::from_le_bytes(*seq);
    if seq < 0 {
        return Err(RecordError::Field { field: "seq" });
    }
    Ok(MutableItem { key, salt, seq, signature, value })
}

fn split<const N: usize>(bytes: &[u8]) -> Result<(&[u8; N], &[u8]), RecordError> {
    bytes.split_first_chunk::<N>().ok_or(RecordError::Truncated)
}
