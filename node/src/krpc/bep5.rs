//! Arguments and values of ping, find_node, get_peers and announce_peer (BEP 5, BEP 32).
//!
//! Each type reads a raw dictionary of a [`Message`](super::message::Message) and writes one, with
//! its keys in order. Unknown keys are passed over.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::as_conversions)]

use std::net::SocketAddr;

use crate::kademlia::{Contact, NodeId};

use super::bencode::{Reader, Writer};
use super::compact::{self, Family};
use super::fields::{self, FieldError, fields};

/// Names of methods.
pub mod method {
    /// Is somebody there?
    pub const PING: &[u8] = b"ping";
    /// Who is near a target?
    pub const FIND_NODE: &[u8] = b"find_node";
    /// Who has the torrent, and who is near it?
    pub const GET_PEERS: &[u8] = b"get_peers";
    /// We have the torrent.
    pub const ANNOUNCE_PEER: &[u8] = b"announce_peer";
}

/// Families of nodes that a query wants (BEP 32): none is the family it comes by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Want {
    /// `n4`: nodes of IPv4.
    pub v4: bool,
    /// `n6`: nodes of IPv6.
    pub v6: bool,
}

impl Want {
    /// Tells whether nodes of `family` go to `asker`.
    #[must_use]
    pub fn includes(self, family: Family, asker: &SocketAddr) -> bool {
        match (self.v4, self.v6, family) {
            (false, false, family) => family == Family::of(asker),
            (v4, _, Family::V4) => v4,
            (_, v6, Family::V6) => v6,
        }
    }

    /// Reads the list; what is not known in it is passed over.
    ///
    /// # Errors
    /// It is no list of strings.
    pub fn decode(raw: &[u8]) -> Result<Self, FieldError> {
        let invalid = |_| FieldError::Invalid("want");
        let mut reader = Reader::new(raw);
        let mut want = Self::default();
        reader.list().map_err(invalid)?;
        while !reader.end().map_err(invalid)? {
            match reader.bytes().map_err(invalid)? {
                b"n4" => want.v4 = true,
                b"n6" => want.v6 = true,
                _ => {}
            }
        }
        Ok(want)
    }

    /// Writes key and list, if anything is wanted.
    pub fn encode(self, writer: &mut Writer<'_>) {
        if !self.v4 && !self.v6 {
            return;
        }
        writer.bytes(b"want").list();
        if self.v4 {
            writer.bytes(b"n4");
        }
        if self.v6 {
            writer.bytes(b"n6");
        }
        writer.end();
    }
}

/// The sender's id alone: arguments of ping, values of ping and announce_peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Id {
    /// Who sends.
    pub id: NodeId,
}

impl Id {
    /// Reads it from any arguments or values.
    ///
    /// # Errors
    /// [`FieldError`] says which field is missing or wrong.
    pub fn decode(raw: &[u8]) -> Result<Self, FieldError> {
        let mut sender = None;
        fields(raw, |key, value| {
            if key == b"id" {
                sender = Some(fields::id("id", value)?);
            }
            Ok::<_, FieldError>(())
        })?;
        Ok(Self { id: sender.ok_or(FieldError::Missing("id"))? })
    }

    /// Appends the dictionary to `output`.
    pub fn encode(&self, output: &mut Vec<u8>) {
        Writer::new(output).dictionary().bytes(b"id").bytes(&self.id.0).end();
    }
}

/// Arguments of find_node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FindNode {
    /// Who asks.
    pub id: NodeId,
    /// Whose neighbours are wanted.
    pub target: NodeId,
    /// Of which families.
    pub want: Want,
}

impl FindNode {
    /// Reads arguments.
    ///
    /// # Errors
    /// [`FieldError`] says which field is missing or wrong.
    pub fn decode(raw: &[u8]) -> Result<Self, FieldError> {
        let (mut sender, mut target, mut want) = (None, None, Want::default());
        fields(raw, |key, value| {
            match key {
                b"id" => sender = Some(fields::id("id", value)?),
                b"target" => target = Some(fields::id("target", value)?),
                b"want" => want = Want::decode(value)?,
                _ => {}
            }
            Ok::<_, FieldError>(())
        })?;
        Ok(Self {
            id: sender.ok_or(FieldError::Missing("id"))?,
            target: target.ok_or(FieldError::Missing("target"))?,
            want,
        })
    }

    /// Appends the dictionary to `output`.
    pub fn encode(&self, output: &mut Vec<u8>) {
        let mut writer = Writer::new(output);
        writer.dictionary().bytes(b"id").bytes(&self.id.0);
        writer.bytes(b"target").bytes(&self.target.0);
        self.want.encode(&mut writer);
        writer.end();
    }
}

/// Nodes as every reply that names some has them: values of find_node, a part of those of
/// get_peers, get and find_value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Nodes<'a> {
    /// Who answers.
    pub id: NodeId,
    /// Compact nodes of IPv4.
    pub nodes: Option<&'a [u8]>,
    /// Compact nodes of IPv6.
    pub nodes6: Option<&'a [u8]>,
}

impl<'a> Nodes<'a> {
    /// Reads the nodes of any values.
    ///
    /// # Errors
    /// [`FieldError`] says which field is missing or wrong.
    pub fn decode(raw: &'a [u8]) -> Result<Self, FieldError> {
        let (mut sender, mut nodes, mut nodes6) = (None, None, None);
        fields(raw, |key, value| {
            match key {
                b"id" => sender = Some(fields::id("id", value)?),
                b"nodes" => nodes = Some(list("nodes", value, Family::V4)?),
                b"nodes6" => nodes6 = Some(list("nodes6", value, Family::V6)?),
                _ => {}
            }
            Ok::<_, FieldError>(())
        })?;
        Ok(Self { id: sender.ok_or(FieldError::Missing("id"))?, nodes, nodes6 })
    }

    /// Appends the dictionary to `output`.
    pub fn encode(&self, output: &mut Vec<u8>) {
        let mut writer = Writer::new(output);
        writer.dictionary().bytes(b"id").bytes(&self.id.0);
        self.encode_lists(&mut writer);
        writer.end();
    }

    /// Writes the two lists, as far as they are there.
    pub fn encode_lists(&self, writer: &mut Writer<'_>) {
        if let Some(nodes) = self.nodes {
            writer.bytes(b"nodes").bytes(nodes);
        }
        if let Some(nodes) = self.nodes6 {
            writer.bytes(b"nodes6").bytes(nodes);
        }
    }

    /// Returns the nodes of both lists.
    pub fn contacts(&self) -> impl Iterator<Item = Contact> + use<'a> {
        let v4 = compact::decode_nodes(self.nodes.unwrap_or_default(), Family::V4);
        v4.chain(compact::decode_nodes(self.nodes6.unwrap_or_default(), Family::V6))
    }
}

/// Checks a list of compact nodes.
///
/// # Errors
/// It is no string of whole nodes.
pub fn list<'a>(name: &'static str, raw: &'a [u8], family: Family) -> Result<&'a [u8], FieldError> {
    let nodes = fields::bytes(name, raw)?;
    if nodes.len().checked_rem(family.node_len()) == Some(0) {
        return Ok(nodes);
    }
    Err(FieldError::Invalid(name))
}

/// Arguments of get_peers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GetPeers {
    /// Who asks.
    pub id: NodeId,
    /// The torrent.
    pub info_hash: NodeId,
    /// Families of the nodes wanted.
    pub want: Want,
    /// Peers that are no seeds are wanted (BEP 33).
    pub noseed: bool,
    /// Filters that count peers are wanted (BEP 33).
    pub scrape: bool,
}

impl GetPeers {
    /// Reads arguments.
    ///
    /// # Errors
    /// [`FieldError`] says which field is missing or wrong.
    pub fn decode(raw: &[u8]) -> Result<Self, FieldError> {
        let (mut sender, mut info_hash, mut want) = (None, None, Want::default());
        let (mut noseed, mut scrape) = (false, false);
        fields(raw, |key, value| {
            match key {
                b"id" => sender = Some(fields::id("id", value)?),
                b"info_hash" => info_hash = Some(fields::id("info_hash", value)?),
                b"noseed" => noseed = fields::integer("noseed", value)? != 0,
                b"scrape" => scrape = fields::integer("scrape", value)? != 0,
                b"want" => want = Want::decode(value)?,
                _ => {}
            }
            Ok::<_, FieldError>(())
        })?;
        Ok(Self {
            id: sender.ok_or(FieldError::Missing("id"))?,
            info_hash: info_hash.ok_or(FieldError::Missing("info_hash"))?,
            want,
            noseed,
            scrape,
        })
    }

    /// Appends the dictionary to `output`.
    pub fn encode(&self, output: &mut Vec<u8>) {
        let mut writer = Writer::new(output);
        writer.dictionary().bytes(b"id").bytes(&self.id.0);
        writer.bytes(b"info_hash").bytes(&self.info_hash.0);
        if self.noseed {
            writer.bytes(b"noseed").integer(1);
        }
        if self.scrape {
            writer.bytes(b"scrape").integer(1);
        }
        self.want.encode(&mut writer);
        writer.end();
    }
}

/// Values of get_peers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peers<'a> {
    /// Who answers, and nodes near the torrent.
    pub nodes: Nodes<'a>,
    /// What an announce_peer to this node must have in it.
    pub token: Option<&'a [u8]>,
    /// Peers, at most [`PEERS_MAX`] are read.
    pub peers: Vec<SocketAddr>,
}

/// Peers taken from one reply: as many as fit a datagram of 1,500 bytes.
pub const PEERS_MAX: usize = 180;

impl<'a> Peers<'a> {
    /// Reads values.
    ///
    /// # Errors
    /// [`FieldError`] says which field is missing or wrong.
    pub fn decode(raw: &'a [u8]) -> Result<Self, FieldError> {
        let nodes = Nodes::decode(raw)?;
        let (mut token, mut peers) = (None, Vec::new());
        fields(raw, |key, value| {
            match key {
                b"token" => token = Some(fields::bytes("token", value)?),
                b"values" => peers = addresses(value)?,
                _ => {}
            }
            Ok::<_, FieldError>(())
        })?;
        Ok(Self { nodes, token, peers })
    }

    /// Appends the dictionary to `output`.
    pub fn encode(&self, output: &mut Vec<u8>) {
        let mut writer = Writer::new(output);
        writer.dictionary().bytes(b"id").bytes(&self.nodes.id.0);
        self.nodes.encode_lists(&mut writer);
        if let Some(token) = self.token {
            writer.bytes(b"token").bytes(token);
        }
        if !self.peers.is_empty() {
            writer.bytes(b"values").list();
            let mut peer = Vec::with_capacity(compact::ADDRESS_V6_LEN);
            for address in &self.peers {
                peer.clear();
                compact::encode_address(address, &mut peer);
                writer.bytes(&peer);
            }
            writer.end();
        }
        writer.end();
    }
}

fn addresses(raw: &[u8]) -> Result<Vec<SocketAddr>, FieldError> {
    let invalid = |_| FieldError::Invalid("values");
    let mut reader = Reader::new(raw);
    let mut peers = Vec::new();
    reader.list().map_err(invalid)?;
    while !reader.end().map_err(invalid)? {
        let peer = compact::decode_address(reader.bytes().map_err(invalid)?);
        if peers.len() < PEERS_MAX {
            peers.extend(peer.filter(|peer| peer.port() != 0));
        }
    }
    Ok(peers)
}

/// Arguments of announce_peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AnnouncePeer<'a> {
    /// Who announces.
    pub id: NodeId,
    /// The torrent.
    pub info_hash: NodeId,
    /// The peer's port; `None`: the one the query comes from.
    pub port: Option<u16>,
    /// What get_peers has given.
    pub token: &'a [u8],
    /// Whether the peer has the whole torrent (BEP 33).
    pub seed: bool,
}

impl<'a> AnnouncePeer<'a> {
    /// Reads arguments.
    ///
    /// # Errors
    /// [`FieldError`] says which field is missing or wrong.
    pub fn decode(raw: &'a [u8]) -> Result<Self, FieldError> {
        let (mut sender, mut info_hash, mut token) = (None, None, None);
        let (mut port, mut implied, mut seed) = (None, false, false);
        fields(raw, |key, value| {
            match key {
                b"id" => sender = Some(fields::id("id", value)?),
                b"implied_port" => implied = fields::integer("implied_port", value)? != 0,
                b"info_hash" => info_hash = Some(fields::id("info_hash", value)?),
                b"port" => port = Some(fields::integer("port", value)?),
                b"seed" => seed = fields::integer("seed", value)? != 0,
                b"token" => token = Some(fields::bytes("token", value)?),
                _ => {}
            }
            Ok::<_, FieldError>(())
        })?;
        let port = match port {
            _ if implied => None,
            None => return Err(FieldError::Missing("port")),
            Some(port) => {
                let port = u16::try_from(port).ok().filter(|port| *port != 0);
                Some(port.ok_or(FieldError::Invalid("port"))?)
            }
        };
        Ok(Self {
            id: sender.ok_or(FieldError::Missing("id"))?,
            info_hash: info_hash.ok_or(FieldError::Missing("info_hash"))?,
            port,
            token: token.ok_or(FieldError::Missing("token"))?,
            seed,
        })
    }

    /// Appends the dictionary to `output`.
    pub fn encode(&self, output: &mut Vec<u8>) {
        let mut writer = Writer::new(output);
        writer.dictionary().bytes(b"id").bytes(&self.id.0);
        if self.port.is_none() {
            writer.bytes(b"implied_port").integer(1);
        }
        writer.bytes(b"info_hash").bytes(&self.info_hash.0);
        writer.bytes(b"port").integer(i64::from(self.port.unwrap_or(0)));
        if self.seed {
            writer.bytes(b"seed").integer(1);
        }
        writer.bytes(b"token").bytes(self.token).end();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: NodeId = NodeId(*b"abcdefghij0123456789");
    const TARGET: NodeId = NodeId(*b"mnopqrstuvwxyz123456");

    fn encoded(encode: impl Fn(&mut Vec<u8>)) -> Vec<u8> {
        let mut output = Vec::new();
        encode(&mut output);
        output
    }

    #[test]
    fn arguments_of_bep_5_are_read_and_written_as_they_stand_there() {
        let raw = b"d2:id20:abcdefghij01234567896:target20:mnopqrstuvwxyz123456e";
        let find = FindNode { id: ID, target: TARGET, want: Want::default() };
        assert_eq!(FindNode::decode(raw), Ok(find));
        assert_eq!(encoded(|output| find.encode(output)), raw);
        let raw = b"d2:id20:abcdefghij01234567899:info_hash20:mnopqrstuvwxyz123456e";
        let get = GetPeers {
            id: ID,
            info_hash: TARGET,
            want: Want::default(),
            noseed: false,
            scrape: false,
        };
        assert_eq!(GetPeers::decode(raw), Ok(get));
        assert_eq!(encoded(|output| get.encode(output)), raw);
        let raw =
            b"d2:id20:abcdefghij012345678912:implied_porti1e9:info_hash20:mnopqrstuvwxyz123456\
            4:porti6881e5:token8:aoeusnthe";
        let announce =
            AnnouncePeer { id: ID, info_hash: TARGET, port: None, token: b"aoeusnth", seed: false };
        assert_eq!(AnnouncePeer::decode(raw), Ok(announce));
        let again = encoded(|output| announce.encode(output));
        assert_eq!(AnnouncePeer::decode(&again), Ok(announce));
        let announce = AnnouncePeer { port: Some(7), seed: true, ..announce };
        let again = encoded(|output| announce.encode(output));
        assert_eq!(AnnouncePeer::decode(&again), Ok(announce));
    }

    #[test]
    fn values_of_bep_5_are_read() {
        let raw = b"d2:id20:abcdefghij01234567895:token8:aoeusnth6:valuesl6:axje.u6:idhtnmee";
        let peers = Peers::decode(raw).unwrap();
        let expected = ["97.120.106.101:11893", "105.100.104.116:28269"];
        assert_eq!(peers.peers, expected.map(|peer| peer.parse().unwrap()));
        assert_eq!(encoded(|output| peers.encode(output)), raw);
    }

    #[test]
    fn families_wanted_are_those_asked_for_or_that_of_the_asker() {
        let v4: SocketAddr = "192.0.2.1:1".parse().unwrap();
        let v6: SocketAddr = "[2001:db8::1]:1".parse().unwrap();
        let want = Want::decode(b"l2:n62:n9e").unwrap();
        assert!(want.includes(Family::V6, &v4) && !want.includes(Family::V4, &v4));
        let want = Want::default();
        assert!(want.includes(Family::V4, &v4) && !want.includes(Family::V6, &v4));
        assert!(want.includes(Family::V6, &v6));
        let want = Want { v4: true, v6: true };
        let raw = encoded(|output| FindNode { id: ID, target: TARGET, want }.encode(output));
        assert_eq!(FindNode::decode(&raw).unwrap().want, want);
    }

    #[test]
    fn errors_name_the_field() {
        for (raw, expected) in [
            (&b"de"[..], FieldError::Missing("id")),
            (b"d2:id19:abcdefghij012345678e", FieldError::Invalid("id")),
            (b"d2:idi7ee", FieldError::Invalid("id")),
            (b"d2:id20:abcdefghij0123456789e", FieldError::Missing("target")),
            (
                b"d2:id20:abcdefghij01234567896:target20:mnopqrstuvwxyz1234564:want2:n4e",
                FieldError::Invalid("want"),
            ),
        ] {
            assert_eq!(FindNode::decode(raw), Err(expected), "{}", raw.escape_ascii());
        }
        let raw = b"d2:id20:abcdefghij01234567895:nodes3:abce";
        assert_eq!(Nodes::decode(raw), Err(FieldError::Invalid("nodes")));
        assert_eq!(FieldError::Invalid("id").to_string(), "invalid value for 'id'");
    }

    #[test]
    fn announced_ports_are_ports() {
        for (port, expected) in
            [(0, false), (-1, false), (65_536, false), (1, true), (65_535, true)]
        {
            let raw = format!(
                "d2:id20:abcdefghij01234567899:info_hash20:mnopqrstuvwxyz123456\
                 4:porti{port}e5:token1:te"
            );
            assert_eq!(AnnouncePeer::decode(raw.as_bytes()).is_ok(), expected, "{port}");
        }
    }
}
