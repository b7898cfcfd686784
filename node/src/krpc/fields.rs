//! The fields of a bencoded dictionary, read one after the other: what all typed codecs share.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::as_conversions)]

use crate::kademlia::NodeId;

use super::bencode::{BencodeError, Reader};

/// Why the fields of a message are not taken; the texts go back to who sent them, with code 203.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FieldError {
    /// No dictionary, or none that can be read.
    #[error("invalid dictionary: {0}")]
    Bencode(#[from] BencodeError),
    /// A field that must be there is not.
    #[error("missing '{0}' key")]
    Missing(&'static str),
    /// A field has a value of another kind or length, or one out of range.
    #[error("invalid value for '{0}'")]
    Invalid(&'static str),
}

/// Hands key and raw value of each field of a dictionary to `take`, and tells whether all is
/// written as bencode prescribes.
///
/// # Errors
/// `raw` is no dictionary, is cut off, or is followed by something; or `take` fails.
pub fn fields<'a, E: From<BencodeError>>(
    raw: &'a [u8],
    mut take: impl FnMut(&'a [u8], &'a [u8]) -> Result<(), E>,
) -> Result<bool, E> {
    let mut reader = Reader::new(raw);
    let mut keys = reader.dictionary()?;
    while let Some(key) = reader.key(&mut keys)? {
        let value = reader.value()?;
        take(key, value)?;
    }
    reader.finish()?;
    Ok(reader.is_canonical())
}

/// Reads a raw value that is a byte string.
///
/// # Errors
/// [`FieldError::Invalid`] if it is something else.
pub fn bytes<'a>(name: &'static str, raw: &'a [u8]) -> Result<&'a [u8], FieldError> {
    Reader::new(raw).bytes().map_err(|_| FieldError::Invalid(name))
}

/// Reads a raw value that is an integer.
///
/// # Errors
/// [`FieldError::Invalid`] if it is something else.
pub fn integer(name: &'static str, raw: &[u8]) -> Result<i64, FieldError> {
    Reader::new(raw).integer().map_err(|_| FieldError::Invalid(name))
}

/// Reads a raw value that is a byte string of `N` bytes.
///
/// # Errors
/// [`FieldError::Invalid`] if it is something else.
pub fn array<const N: usize>(name: &'static str, raw: &[u8]) -> Result<[u8; N], FieldError> {
    bytes(name, raw)?.try_into().map_err(|_| FieldError::Invalid(name))
}

/// Reads a raw value that is an id of 20 bytes.
///
/// # Errors
/// [`FieldError::Invalid`] if it is something else.
pub fn id(name: &'static str, raw: &[u8]) -> Result<NodeId, FieldError> {
    array(name, raw).map(NodeId)
}
