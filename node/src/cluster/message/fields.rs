//! Fields of message bodies: big-endian numbers, ids, counted lists. Hostile bytes are an error.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::as_conversions)]

use bytes::Bytes;
use wal::record::{Key, Namespace, Version};

use super::codec::MessageError;
use super::{ADDRESS_LEN_MAX, Entry, MemberEntry, Name, Phase, RequestId, Standing, Sum};
use crate::cluster::prefix::Prefix;
use crate::kademlia::NodeId;

/// Takes fields off the front of a body.
pub(in crate::cluster) struct FieldReader<'a>(&'a [u8]);

type Result<T> = std::result::Result<T, MessageError>;

impl<'a> FieldReader<'a> {
    pub(in crate::cluster) fn new(body: &'a [u8]) -> Self {
        Self(body)
    }

    pub(in crate::cluster) fn finish(&self) -> Result<()> {
        if self.0.is_empty() { Ok(()) } else { Err(MessageError::Body) }
    }

    pub(in crate::cluster) fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let (first, rest) = self.0.split_first_chunk().ok_or(MessageError::Body)?;
        self.0 = rest;
        Ok(*first)
    }

    pub(in crate::cluster) fn bytes(&mut self, len: usize) -> Result<&'a [u8]> {
        let (first, rest) = self.0.split_at_checked(len).ok_or(MessageError::Body)?;
        self.0 = rest;
        Ok(first)
    }

    pub(in crate::cluster) fn u8(&mut self) -> Result<u8> {
        self.array::<1>().map(|[byte]| byte)
    }

    pub(in crate::cluster) fn flag(&mut self) -> Result<bool> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(MessageError::Body),
        }
    }

    pub(in crate::cluster) fn u16(&mut self) -> Result<u16> {
        self.array().map(u16::from_be_bytes)
    }

    pub(in crate::cluster) fn u32(&mut self) -> Result<u32> {
        self.array().map(u32::from_be_bytes)
    }

    pub(in crate::cluster) fn u64(&mut self) -> Result<u64> {
        self.array().map(u64::from_be_bytes)
    }

    pub(in crate::cluster) fn request(&mut self) -> Result<RequestId> {
        self.u64().map(RequestId)
    }

    pub(in crate::cluster) fn node(&mut self) -> Result<NodeId> {
        self.array().map(NodeId)
    }

    pub(in crate::cluster) fn key(&mut self) -> Result<Key> {
        self.array().map(Key)
    }

    pub(in crate::cluster) fn version(&mut self) -> Result<Version> {
        self.array().map(Version)
    }

    pub(in crate::cluster) fn prefix(&mut self) -> Result<Prefix> {
        let (len, bits) = (self.u8()?, self.array()?);
        Prefix::new(bits, len).ok_or(MessageError::Body)
    }

    pub(in crate::cluster) fn address(&mut self) -> Result<Bytes> {
        let len = usize::from(self.u8()?);
        if len > ADDRESS_LEN_MAX {
            return Err(MessageError::Body);
        }
        self.bytes(len).map(Bytes::copy_from_slice)
    }

    /// A counted list of at most `max`.
    pub(in crate::cluster) fn list<T>(
        &mut self,
        max: usize,
        mut item: impl FnMut(&mut Self) -> Result<T>,
    ) -> Result<Vec<T>> {
        let count = usize::from(self.u16()?);
        if count > max {
            return Err(MessageError::TooMany { count });
        }
        (0..count).map(|_| item(self)).collect()
    }

    pub(in crate::cluster) fn member(&mut self) -> Result<MemberEntry> {
        Ok(MemberEntry {
            node: self.node()?,
            incarnation: self.u64()?,
            phase: match self.u8()? {
                0 => Phase::Joining,
                1 => Phase::Full,
                2 => Phase::Leaving,
                _ => return Err(MessageError::Body),
            },
            standing: match self.u8()? {
                0 => Standing::Alive,
                1 => Standing::Suspected,
                2 => Standing::Removed,
                _ => return Err(MessageError::Body),
            },
            address: self.address()?,
        })
    }

    pub(in crate::cluster) fn entry(&mut self) -> Result<Entry> {
        Ok(Entry {
            namespace: Namespace(self.u8()?),
            key: self.key()?,
            version: self.version()?,
            is_tombstone: self.flag()?,
        })
    }

    pub(in crate::cluster) fn name(&mut self) -> Result<Name> {
        let entry = self.entry()?;
        let len = usize::from(self.u16()?);
        Ok(Name { entry, user_key: self.bytes(len).map(Bytes::copy_from_slice)? })
    }

    pub(in crate::cluster) fn sum(&mut self) -> Result<Sum> {
        Ok(Sum { hash: u128::from_be_bytes(self.array()?), count: self.u64()? })
    }
}

/// Appends fields to a body.
#[derive(Debug)]
pub(in crate::cluster) struct FieldWriter(pub(in crate::cluster) Vec<u8>);

/// Most bodies fit that.
const BODY_LEN_EXPECTED: usize = 128;

impl Default for FieldWriter {
    fn default() -> Self {
        Self(Vec::with_capacity(BODY_LEN_EXPECTED))
    }
}

impl FieldWriter {
    pub(in crate::cluster) fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    pub(in crate::cluster) fn u8(self, value: u8) -> Self {
        self.bytes(&[value])
    }

    pub(in crate::cluster) fn u64(self, value: u64) -> Self {
        self.bytes(&value.to_be_bytes())
    }

    pub(in crate::cluster) fn request(self, request: RequestId) -> Self {
        self.u64(request.0)
    }

    pub(in crate::cluster) fn prefix(self, prefix: &Prefix) -> Self {
        self.u8(prefix.len()).bytes(&prefix.first_key().0)
    }

    pub(in crate::cluster) fn address(self, address: &[u8]) -> Self {
        let address = address.get(..ADDRESS_LEN_MAX).unwrap_or(address);
        self.u8(u8::try_from(address.len()).unwrap_or(0)).bytes(address)
    }

    /// A counted list; the senders keep to its limit.
    ///
    /// # Panics
    /// If there are more.
    pub(in crate::cluster) fn list<T>(
        self,
        max: usize,
        items: &[T],
        write: impl FnMut(Self, &T) -> Self,
    ) -> Self {
        assert!(items.len() <= max, "{} of at most {max} in one message", items.len());
        let count = u16::try_from(items.len()).expect("the limits fit 16 bits");
        items.iter().fold(self.bytes(&count.to_be_bytes()), write)
    }

    pub(in crate::cluster) fn member(self, entry: &MemberEntry) -> Self {
        let phase = match entry.phase {
            Phase::Joining => 0,
            Phase::Full => 1,
            Phase::Leaving => 2,
        };
        let standing = match entry.standing {
            Standing::Alive => 0,
            Standing::Suspected => 1,
            Standing::Removed => 2,
        };
        let written = self.bytes(&entry.node.0).u64(entry.incarnation);
        written.u8(phase).u8(standing).address(&entry.address)
    }

    pub(in crate::cluster) fn entry(self, entry: &Entry) -> Self {
        let written = self.u8(entry.namespace.0).bytes(&entry.key.0).bytes(&entry.version.0);
        written.u8(u8::from(entry.is_tombstone))
    }

    /// # Panics
    /// If the key is longer than keys can be.
    pub(in crate::cluster) fn name(self, name: &Name) -> Self {
        let len = u16::try_from(name.user_key.len()).expect("keys have at most 65,535 bytes");
        self.entry(&name.entry).bytes(&len.to_be_bytes()).bytes(&name.user_key)
    }
}
