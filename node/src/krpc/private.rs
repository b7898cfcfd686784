//! What private clusters add to KRPC: the key `kr`, which tells clusters apart, and the methods
//! find_value and store.
//!
//! Every message of a private cluster has `kr` at its top level: one byte of protocol version and
//! the 16 bytes of the cluster's id. A node takes no message with another.
//!
//! find_value asks for a small value. Who has it answers with `v`, its version `ver`, its expiry
//! `exp` and, where the copy was left by somebody's lookup, `c` = 1; where the value is too long
//! for a datagram `len` says how long it is, and it is fetched over a link. Everyone names nodes as
//! well,
//! as find_node does. store leaves such a copy with the nearest node that was found without one
//! (Kademlia §2.3); it is kept in memory only.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::as_conversions)]

use wal::record::Version;

use crate::kademlia::NodeId;

use super::bencode::Writer;
use super::bep5::Nodes;
use super::fields::{self, FieldError, fields};

/// The version of the protocol of private clusters that this code speaks.
pub const PROTOCOL: u8 = 1;
/// The longest value that a datagram carries, as in BEP 44.
pub const DATAGRAM_VALUE_LEN_MAX: usize = 1000;

/// Names of methods.
pub mod method {
    /// Who has the value?
    pub const FIND_VALUE: &[u8] = b"find_value";
    /// Keep a copy for a while.
    pub const STORE: &[u8] = b"store";
}

/// The cluster a message is of, `kr`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Private {
    /// Version of the protocol.
    pub protocol: u8,
    /// Id of the cluster.
    pub cluster: [u8; 16],
}

impl Private {
    /// Writes the value of `kr`.
    #[must_use]
    pub fn encode(&self) -> [u8; 17] {
        let mut bytes = [self.protocol; 17];
        if let Some(cluster) = bytes.last_chunk_mut() {
            *cluster = self.cluster;
        }
        bytes
    }

    /// Reads the value of `kr`.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (protocol, cluster) = bytes.split_first()?;
        Some(Self { protocol: *protocol, cluster: cluster.try_into().ok()? })
    }
}

/// Arguments of find_value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FindValue {
    /// Who asks.
    pub id: NodeId,
    /// Id of the key.
    pub target: NodeId,
}

impl FindValue {
    /// Reads arguments.
    ///
    /// # Errors
    /// [`FieldError`] says which field is missing or wrong.
    pub fn decode(raw: &[u8]) -> Result<Self, FieldError> {
        let (mut sender, mut target) = (None, None);
        fields(raw, |key, value| {
            match key {
                b"id" => sender = Some(fields::id("id", value)?),
                b"target" => target = Some(fields::id("target", value)?),
                _ => {}
            }
            Ok::<_, FieldError>(())
        })?;
        Ok(Self {
            id: sender.ok_or(FieldError::Missing("id"))?,
            target: target.ok_or(FieldError::Missing("target"))?,
        })
    }

    /// Appends the dictionary to `output`.
    pub fn encode(&self, output: &mut Vec<u8>) {
        let mut writer = Writer::new(output);
        writer.dictionary().bytes(b"id").bytes(&self.id.0);
        writer.bytes(b"target").bytes(&self.target.0).end();
    }
}

/// A value as datagrams carry it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SmallValue<'a> {
    /// At most [`DATAGRAM_VALUE_LEN_MAX`] bytes.
    pub value: &'a [u8],
    /// Orders it among the values of its key.
    pub version: Version,
    /// Milliseconds since 1970; `None`: it does not expire.
    pub expiry_ms: Option<u64>,
    /// It is a copy left by a lookup, which nobody brings up to date.
    pub cached: bool,
}

/// What a node says to find_value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found<'a> {
    /// It has not got it.
    Nothing,
    /// Here it is.
    Value(SmallValue<'a>),
    /// It has got it, but it does not fit a datagram.
    Elsewhere {
        /// Bytes of the value.
        len: u64,
    },
}

/// Values of find_value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FindValueReply<'a> {
    /// Who answers, and nodes near the key.
    pub nodes: Nodes<'a>,
    /// What it has.
    pub found: Found<'a>,
}

/// Fields of a small value.
#[derive(Default)]
struct Parts<'a> {
    cached: bool,
    expiry_ms: Option<u64>,
    len: Option<u64>,
    value: Option<&'a [u8]>,
    version: Option<Version>,
}

impl<'a> Parts<'a> {
    fn take(&mut self, key: &[u8], raw: &'a [u8]) -> Result<(), FieldError> {
        let natural = |name| {
            let number = fields::integer(name, raw)?;
            u64::try_from(number).map(Some).map_err(|_| FieldError::Invalid(name))
        };
        match key {
            b"c" => self.cached = fields::integer("c", raw)? != 0,
            b"exp" => self.expiry_ms = natural("exp")?,
            b"len" => self.len = natural("len")?,
            b"v" => {
                let value = fields::bytes("v", raw)?;
                if value.len() > DATAGRAM_VALUE_LEN_MAX {
                    return Err(FieldError::Invalid("v"));
                }
                self.value = Some(value);
            }
            b"ver" => self.version = Some(Version(fields::array("ver", raw)?)),
            _ => {}
        }
        Ok(())
    }

    fn value(&self) -> Result<Option<SmallValue<'a>>, FieldError> {
        let Some(value) = self.value else { return Ok(None) };
        let version = self.version.ok_or(FieldError::Missing("ver"))?;
        let Self { expiry_ms, cached, .. } = *self;
        Ok(Some(SmallValue { value, version, expiry_ms, cached }))
    }
}

impl SmallValue<'_> {
    /// Keys before and after the others: `c`, `exp`; `v`, `ver`.
    fn encode_head(&self, writer: &mut Writer<'_>) {
        if self.cached {
            writer.bytes(b"c").integer(1);
        }
        if let Some(expiry) = self.expiry_ms {
            writer.bytes(b"exp").integer(i64::try_from(expiry).unwrap_or(i64::MAX));
        }
    }

    fn encode_tail(&self, writer: &mut Writer<'_>) {
        assert!(self.value.len() <= DATAGRAM_VALUE_LEN_MAX, "longer values go over links");
        writer.bytes(b"v").bytes(self.value).bytes(b"ver").bytes(&self.version.0);
    }
}

impl<'a> FindValueReply<'a> {
    /// Reads values.
    ///
    /// # Errors
    /// [`FieldError`] says which field is missing or wrong.
    pub fn decode(raw: &'a [u8]) -> Result<Self, FieldError> {
        let nodes = Nodes::decode(raw)?;
        let mut parts = Parts::default();
        fields(raw, |key, value| parts.take(key, value))?;
        let found = match (parts.value()?, parts.len) {
            (Some(value), _) => Found::Value(value),
            (None, Some(len)) => Found::Elsewhere { len },
            (None, None) => Found::Nothing,
        };
        Ok(Self { nodes, found })
    }

    /// Appends the dictionary to `output`.
    ///
    /// # Panics
    /// If the value is longer than a datagram carries.
    pub fn encode(&self, output: &mut Vec<u8>) {
        let mut writer = Writer::new(output);
        writer.dictionary();
        if let Found::Value(value) = &self.found {
            value.encode_head(&mut writer);
        }
        writer.bytes(b"id").bytes(&self.nodes.id.0);
        if let Found::Elsewhere { len } = self.found {
            writer.bytes(b"len").integer(i64::try_from(len).unwrap_or(i64::MAX));
        }
        self.nodes.encode_lists(&mut writer);
        if let Found::Value(value) = &self.found {
            value.encode_tail(&mut writer);
        }
        writer.end();
    }
}

/// Arguments of store: a copy for the receiver's memory. Its values are the sender's id alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Store<'a> {
    /// Who sends.
    pub id: NodeId,
    /// Id of the key.
    pub target: NodeId,
    /// How long the copy may be used, in milliseconds.
    pub ttl_ms: u64,
    /// The value; always a cached one.
    pub value: SmallValue<'a>,
}

impl<'a> Store<'a> {
    /// Reads arguments.
    ///
    /// # Errors
    /// [`FieldError`] says which field is missing or wrong.
    pub fn decode(raw: &'a [u8]) -> Result<Self, FieldError> {
        let (mut sender, mut target, mut ttl) = (None, None, None);
        let mut parts = Parts::default();
        fields(raw, |key, value| {
            match key {
                b"id" => sender = Some(fields::id("id", value)?),
                b"target" => target = Some(fields::id("target", value)?),
                b"ttl" => ttl = Some(fields::integer("ttl", value)?),
                _ => parts.take(key, value)?,
            }
            Ok::<_, FieldError>(())
        })?;
        let ttl = ttl.ok_or(FieldError::Missing("ttl"))?;
        let value = parts.value()?.ok_or(FieldError::Missing("v"))?;
        Ok(Self {
            id: sender.ok_or(FieldError::Missing("id"))?,
            target: target.ok_or(FieldError::Missing("target"))?,
            ttl_ms: u64::try_from(ttl).map_err(|_| FieldError::Invalid("ttl"))?,
            value: SmallValue { cached: true, ..value },
        })
    }

    /// Appends the dictionary to `output`.
    ///
    /// # Panics
    /// If the value is longer than a datagram carries.
    pub fn encode(&self, output: &mut Vec<u8>) {
        let mut writer = Writer::new(output);
        writer.dictionary();
        SmallValue { cached: true, ..self.value }.encode_head(&mut writer);
        writer.bytes(b"id").bytes(&self.id.0).bytes(b"target").bytes(&self.target.0);
        writer.bytes(b"ttl").integer(i64::try_from(self.ttl_ms).unwrap_or(i64::MAX));
        self.value.encode_tail(&mut writer);
        writer.end();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::krpc::bencode::Reader;

    const ID: NodeId = NodeId(*b"abcdefghij0123456789");
    const TARGET: NodeId = NodeId(*b"mnopqrstuvwxyz123456");

    fn value(value: &[u8]) -> SmallValue<'_> {
        let version = Version([3; 16]);
        SmallValue { value, version, expiry_ms: Some(1_700_000_000_000), cached: true }
    }

    fn is_canonical(raw: &[u8]) -> bool {
        let mut reader = Reader::new(raw);
        reader.value().is_ok() && reader.finish().is_ok() && reader.is_canonical()
    }

    #[test]
    fn cluster_ids_come_back() {
        let private = Private { protocol: PROTOCOL, cluster: *b"0123456789abcdef" };
        assert_eq!(Private::decode(&private.encode()), Some(private));
        assert_eq!(Private::decode(&private.encode()[1..]), None);
        assert_eq!(Private::decode(b""), None);
    }

    #[test]
    fn all_replies_to_find_value_come_back() {
        let nodes = Nodes { id: ID, nodes: Some(&[7; 52]), nodes6: None };
        let plain = SmallValue { expiry_ms: None, cached: false, ..value(b"") };
        for found in [
            Found::Nothing,
            Found::Elsewhere { len: 1 << 40 },
            Found::Value(value(&[9; DATAGRAM_VALUE_LEN_MAX])),
            Found::Value(plain),
        ] {
            let reply = FindValueReply { nodes, found };
            let mut raw = Vec::new();
            reply.encode(&mut raw);
            assert!(is_canonical(&raw), "{}", raw.escape_ascii());
            assert_eq!(FindValueReply::decode(&raw), Ok(reply));
        }
    }

    #[test]
    fn arguments_come_back() {
        let mut raw = Vec::new();
        FindValue { id: ID, target: TARGET }.encode(&mut raw);
        assert_eq!(FindValue::decode(&raw), Ok(FindValue { id: ID, target: TARGET }));
        let store = Store { id: ID, target: TARGET, ttl_ms: 5, value: value(b"abc") };
        raw.clear();
        store.encode(&mut raw);
        assert!(is_canonical(&raw), "{}", raw.escape_ascii());
        assert_eq!(Store::decode(&raw), Ok(store));
    }

    #[test]
    fn values_that_are_too_long_or_without_version_are_refused() {
        let long = [b"d2:id20:abcdefghij01234567891:v1001:", &[1; 1001][..], b"e"].concat();
        assert_eq!(FindValueReply::decode(&long), Err(FieldError::Invalid("v")));
        let raw = b"d2:id20:abcdefghij01234567891:v1:xe";
        assert_eq!(FindValueReply::decode(raw), Err(FieldError::Missing("ver")));
        let raw = b"d3:expi-1e2:id20:abcdefghij0123456789e";
        assert_eq!(FindValueReply::decode(raw), Err(FieldError::Invalid("exp")));
    }
}
