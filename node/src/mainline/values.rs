//! [`Values`]: what a response says, for all of Mainline's queries (BEP 5, 32, 33, 44, 51).
//!
//! Clients tell the kinds of responses by the keys that are there, the most detailed first: what is
//! `None` is not written. A put is answered with the id alone.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::as_conversions)]

use std::net::SocketAddr;

use crate::kademlia::NodeId;
use crate::krpc::bencode::{BencodeError, Reader, Writer};
use crate::krpc::compact;

use super::filter::FILTER_LEN;
use super::item::{Item, MutableItem};

/// The values of a response.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Values<'a> {
    /// Who answers.
    pub id: NodeId,
    /// A filter of peers that do not have all: `BFpe`.
    pub leeches: Option<&'a [u8; FILTER_LEN]>,
    /// A filter of peers that have all: `BFsd`.
    pub seeds: Option<&'a [u8; FILTER_LEN]>,
    /// Seconds until other samples are given.
    pub interval: Option<i64>,
    /// The key of a mutable item.
    pub key: Option<&'a [u8; 32]>,
    /// Nodes of IPv4, compact.
    pub nodes: Option<&'a [u8]>,
    /// Nodes of IPv6, compact.
    pub nodes6: Option<&'a [u8]>,
    /// How many torrents have peers.
    pub num: Option<i64>,
    /// Info hashes, 20 bytes each.
    pub samples: Option<&'a [u8]>,
    /// The seq of a mutable item.
    pub seq: Option<i64>,
    /// The signature of a mutable item.
    pub signature: Option<&'a [u8; 64]>,
    /// What a write to this target needs.
    pub token: Option<&'a [u8]>,
    /// An item's value, bencoded.
    pub value: Option<&'a [u8]>,
    /// Peers.
    pub peers: Option<Vec<SocketAddr>>,
}

impl<'a> Values<'a> {
    /// Appends the dictionary.
    pub fn encode(&self, output: &mut Vec<u8>) {
        let mut writer = Writer::new(output);
        let put_bytes = |writer: &mut Writer<'_>, name: &[u8], bytes: Option<&[u8]>| {
            if let Some(bytes) = bytes {
                writer.bytes(name).bytes(bytes);
            }
        };
        let put_integer = |writer: &mut Writer<'_>, name: &[u8], value: Option<i64>| {
            if let Some(value) = value {
                writer.bytes(name).integer(value);
            }
        };
        writer.dictionary();
        put_bytes(&mut writer, b"BFpe", self.leeches.map(|filter| &filter[..]));
        put_bytes(&mut writer, b"BFsd", self.seeds.map(|filter| &filter[..]));
        put_bytes(&mut writer, b"id", Some(&self.id.0));
        put_integer(&mut writer, b"interval", self.interval);
        put_bytes(&mut writer, b"k", self.key.map(|key| &key[..]));
        put_bytes(&mut writer, b"nodes", self.nodes);
        put_bytes(&mut writer, b"nodes6", self.nodes6);
        put_integer(&mut writer, b"num", self.num);
        put_bytes(&mut writer, b"samples", self.samples);
        put_integer(&mut writer, b"seq", self.seq);
        put_bytes(&mut writer, b"sig", self.signature.map(|signature| &signature[..]));
        put_bytes(&mut writer, b"token", self.token);
        if let Some(value) = self.value {
            writer.bytes(b"v").value(value);
        }
        if let Some(peers) = &self.peers {
            writer.bytes(b"values").list();
            for peer in peers {
                let mut compact = Vec::with_capacity(compact::ADDRESS_V6_LEN);
                compact::encode_address(peer, &mut compact);
                writer.bytes(&compact);
            }
            writer.end();
        }
        writer.end();
    }

    /// Reads what a node of any kind has answered. What has another kind or length than it should
    /// counts as absent: other parts of the answer are still of use.
    ///
    /// # Errors
    /// It is no dictionary, or has no id.
    pub fn decode(raw: &'a [u8]) -> Result<Self, ValuesError> {
        let (mut values, mut id) = (Self::default(), None);
        let mut reader = Reader::new(raw);
        let mut keys = reader.dictionary()?;
        while let Some(key) = reader.key(&mut keys)? {
            let raw = reader.value()?;
            let bytes = || Reader::new(raw).bytes().ok();
            let integer = || Reader::new(raw).integer().ok();
            match key {
                b"BFpe" => values.leeches = fixed(raw),
                b"BFsd" => values.seeds = fixed(raw),
                b"id" => id = fixed(raw),
                b"interval" => values.interval = integer(),
                b"k" => values.key = fixed(raw),
                b"nodes" => values.nodes = bytes(),
                b"nodes6" => values.nodes6 = bytes(),
                b"num" => values.num = integer(),
                b"samples" => values.samples = bytes(),
                b"seq" => values.seq = integer(),
                b"sig" => values.signature = fixed(raw),
                b"token" => values.token = bytes(),
                b"v" => values.value = Some(raw),
                b"values" => values.peers = decode_peers(raw),
                _ => {}
            }
        }
        reader.finish()?;
        values.id = NodeId(*id.ok_or(ValuesError::Id)?);
        Ok(values)
    }

    /// The item in the response, for a target and salt: only if it belongs there. Its signature is
    /// still to be checked.
    #[must_use]
    pub fn item(&self, target: &NodeId, salt: &'a [u8]) -> Option<Item<'a>> {
        let value = self.value?;
        let item = match (self.key, self.seq, self.signature) {
            (Some(key), Some(seq), Some(signature)) => {
                Item::Mutable(MutableItem { key, salt, seq, signature, value })
            }
            _ => Item::Immutable(value),
        };
        (item.target() == *target && item.check().is_ok()).then_some(item)
    }
}

/// Why bytes are no response.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ValuesError {
    /// They are no bencoded dictionary.
    #[error("no dictionary: {0}")]
    Bencode(#[from] BencodeError),
    /// There is no id of 20 bytes.
    #[error("no id")]
    Id,
}

fn fixed<const N: usize>(raw: &[u8]) -> Option<&[u8; N]> {
    Reader::new(raw).bytes().ok()?.try_into().ok()
}

fn decode_peers(raw: &[u8]) -> Option<Vec<SocketAddr>> {
    let (mut peers, mut reader) = (Vec::new(), Reader::new(raw));
    reader.list().ok()?;
    while !reader.end().ok()? {
        let peer = reader.value().ok()?;
        let address = Reader::new(peer).bytes().ok().and_then(compact::decode_address);
        peers.extend(address.filter(|address| address.port() != 0));
    }
    Some(peers)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mainline::item::immutable_target;

    #[test]
    fn values_come_back_and_are_canonical() {
        let (key, signature, filter) = ([3; 32], [4; 64], [5; FILTER_LEN]);
        let peers = ["192.0.2.1:5", "[2001:db8::1]:6"].map(|peer| peer.parse().unwrap());
        let values = Values {
            id: NodeId([1; 20]),
            leeches: Some(&filter),
            seeds: Some(&filter),
            interval: Some(6),
            key: Some(&key),
            nodes: Some(&[7; 26]),
            nodes6: Some(b""),
            num: Some(3),
            samples: Some(&[8; 40]),
            seq: Some(9),
            signature: Some(&signature),
            token: Some(b"tk"),
            value: Some(b"d1:ai1ee"),
            peers: Some(peers.to_vec()),
        };
        let mut bytes = Vec::new();
        values.encode(&mut bytes);
        let mut reader = Reader::new(&bytes);
        assert!(reader.value().is_ok() && reader.is_canonical(), "{}", bytes.escape_ascii());
        assert_eq!(Values::decode(&bytes), Ok(values));
    }

    #[test]
    fn answer_to_a_put_is_the_id_alone() {
        let mut bytes = Vec::new();
        Values { id: NodeId(*b"abcdefghij0123456789"), ..Values::default() }.encode(&mut bytes);
        assert_eq!(bytes, b"d2:id20:abcdefghij0123456789e");
    }

    #[test]
    fn odd_parts_of_an_answer_do_not_spoil_the_others() {
        let raw = b"d2:id20:abcdefghij01234567891:k3:abc5:tokeni1e6:valuesl1:x6:aaaabbee";
        let values = Values::decode(raw).unwrap();
        assert_eq!((values.key, values.token), (None, None));
        assert_eq!(values.peers.map(|peers| peers.len()), Some(1));
        assert_eq!(Values::decode(b"de"), Err(ValuesError::Id));
        assert!(Values::decode(b"i1e").is_err());
    }

    #[test]
    fn items_that_belong_elsewhere_are_none() {
        let values = Values { value: Some(b"i1e"), ..Values::default() };
        let target = immutable_target(b"i1e");
        assert_eq!(values.item(&target, b""), Some(Item::Immutable(b"i1e")));
        assert_eq!(values.item(&NodeId([1; 20]), b""), None);
    }
}
