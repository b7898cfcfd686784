//! [`Query`]: the arguments of Mainline's queries, typed (BEP 5, 32, 33, 44, 51).
//!
//! What is not known is passed over; the order of keys matters to `put` alone. `put` may carry a
//! `target`, as one client's does: it is neither needed nor looked at.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::as_conversions)]

use std::net::SocketAddr;

use crate::kademlia::NodeId;
use crate::krpc::bencode::{BencodeError, Reader, Writer};
use crate::krpc::compact::Family;

use super::item::{Item, MutableItem};
use super::reject::Reject;

/// A query: who asks, and what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Query<'a> {
    /// The asker's id. One client draws another one for each put: nothing may depend on it.
    pub id: NodeId,
    /// What is asked.
    pub kind: QueryKind<'a>,
}

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueryKind<'a> {
    /// Is somebody there?
    Ping,
    /// Who is near a target? Also any method that we do not know, if it names a target.
    FindNode {
        /// Of which target.
        target: NodeId,
        /// Nodes of which families.
        want: Want,
    },
    /// Who has the torrent?
    GetPeers {
        /// Which.
        info_hash: NodeId,
        /// Nodes of which families.
        want: Want,
        /// Without peers that have all of it.
        noseed: bool,
        /// With filters that tell how many have it.
        scrape: bool,
    },
    /// The asker has the torrent.
    AnnouncePeer(AnnouncePeer<'a>),
    /// What is stored there?
    Get {
        /// Where.
        target: NodeId,
        /// The seq that the asker has: a mutable item as old is not sent.
        seq: Option<i64>,
        /// Nodes of which families.
        want: Want,
    },
    /// Store this.
    Put(Put<'a>),
    /// Of which torrents are peers known?
    SampleInfohashes {
        /// Nodes near which target.
        target: NodeId,
        /// Nodes of which families.
        want: Want,
    },
}

/// Kinds of queries.
pub const KINDS: usize = 7;

impl QueryKind<'_> {
    /// The methods, in the order of [`index`](Self::index).
    pub const METHODS: [&'static str; KINDS] =
        ["ping", "find_node", "get_peers", "announce_peer", "get", "put", "sample_infohashes"];

    /// The place of its method among all.
    #[must_use]
    pub fn index(&self) -> usize {
        match self {
            Self::Ping => 0,
            Self::FindNode { .. } => 1,
            Self::GetPeers { .. } => 2,
            Self::AnnouncePeer(_) => 3,
            Self::Get { .. } => 4,
            Self::Put(_) => 5,
            Self::SampleInfohashes { .. } => 6,
        }
    }
}

/// The arguments of `announce_peer`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AnnouncePeer<'a> {
    /// The torrent.
    pub info_hash: NodeId,
    /// The port of the peer; `None`: the one the query comes from.
    pub port: Option<u16>,
    /// Whether it has all of it.
    pub seed: bool,
    /// From a reply to get_peers.
    pub token: &'a [u8],
}

/// The arguments of `put`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Put<'a> {
    /// What to store; its sizes and signature are not checked yet.
    pub item: Item<'a>,
    /// The seq of the item to be replaced.
    pub cas: Option<i64>,
    /// From a reply to get.
    pub token: &'a [u8],
}

/// Families of nodes that are wanted; none named: that of the socket (BEP 32).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Want {
    /// `n4` is named.
    pub v4: bool,
    /// `n6` is named.
    pub v6: bool,
}

impl Want {
    /// Tells whether nodes of a family go to the asker.
    #[must_use]
    pub fn includes(self, family: Family, asker: &SocketAddr) -> bool {
        match (self.v4 || self.v6, family) {
            (false, family) => family == Family::of(asker),
            (true, Family::V4) => self.v4,
            (true, Family::V6) => self.v6,
        }
    }

    fn decode(raw: &[u8]) -> Result<Self, BencodeError> {
        let (mut want, mut reader) = (Self::default(), Reader::new(raw));
        reader.list()?;
        while !reader.end()? {
            match reader.value()? {
                b"2:n4" => want.v4 = true,
                b"2:n6" => want.v6 = true,
                _ => {}
            }
        }
        Ok(want)
    }

    fn encode(self, writer: &mut Writer<'_>) {
        if !self.v4 && !self.v6 {
            return;
        }
        writer.bytes(b"want").list();
        for (_, name) in [(self.v4, b"n4"), (self.v6, b"n6")].iter().filter(|(named, _)| *named) {
            writer.bytes(*name);
        }
        writer.end();
    }
}

/// The raw values of all keys that any query knows.
#[derive(Clone, Copy, Default)]
struct Raw<'a> {
    cas: Option<&'a [u8]>,
    id: Option<&'a [u8]>,
    implied_port: Option<&'a [u8]>,
    info_hash: Option<&'a [u8]>,
    key: Option<&'a [u8]>,
    noseed: Option<&'a [u8]>,
    port: Option<&'a [u8]>,
    salt: Option<&'a [u8]>,
    scrape: Option<&'a [u8]>,
    seed: Option<&'a [u8]>,
    seq: Option<&'a [u8]>,
    signature: Option<&'a [u8]>,
    target: Option<&'a [u8]>,
    token: Option<&'a [u8]>,
    value: Option<&'a [u8]>,
    want: Option<&'a [u8]>,
    canonical: bool,
}

impl<'a> Raw<'a> {
    fn read(arguments: &'a [u8]) -> Result<Self, BencodeError> {
        let (mut raw, mut ignored, mut reader) = (Self::default(), None, Reader::new(arguments));
        let mut keys = reader.dictionary()?;
        while let Some(key) = reader.key(&mut keys)? {
            let slot = match key {
                b"cas" => &mut raw.cas,
                b"id" => &mut raw.id,
                b"implied_port" => &mut raw.implied_port,
                b"info_hash" => &mut raw.info_hash,
                b"k" => &mut raw.key,
                b"noseed" => &mut raw.noseed,
                b"port" => &mut raw.port,
                b"salt" => &mut raw.salt,
                b"scrape" => &mut raw.scrape,
                b"seed" => &mut raw.seed,
                b"seq" => &mut raw.seq,
                b"sig" => &mut raw.signature,
                b"target" => &mut raw.target,
                b"token" => &mut raw.token,
                b"v" => &mut raw.value,
                b"want" => &mut raw.want,
                _ => &mut ignored,
            };
            let value = reader.value()?;
            // Of two of a name the first counts.
            slot.get_or_insert(value);
        }
        reader.finish()?;
        raw.canonical = reader.is_canonical();
        Ok(raw)
    }

    fn want(&self) -> Result<Want, Reject> {
        let want = self.want.map(Want::decode).transpose();
        Ok(want.map_err(|_| Reject::Invalid("want"))?.unwrap_or_default())
    }

    fn announce_peer(&self) -> Result<AnnouncePeer<'a>, Reject> {
        let info_hash = id(self.info_hash, "info_hash")?;
        let implied = flag(self.implied_port);
        let port = if implied {
            None
        } else {
            let port = integer(self.port, "port")?.ok_or(Reject::Missing("port"))?;
            let port = u16::try_from(port).ok().filter(|port| *port != 0);
            Some(port.ok_or(Reject::Port)?)
        };
        let token = bytes(self.token, "token")?.ok_or(Reject::Missing("token"))?;
        Ok(AnnouncePeer { info_hash, port, seed: flag(self.seed), token })
    }

    fn put(&self) -> Result<Put<'a>, Reject> {
        let value = self.value.ok_or(Reject::Missing("v"))?;
        let token = bytes(self.token, "token")?.ok_or(Reject::Missing("token"))?;
        let key = fixed::<32>(self.key, "k")?;
        let signature = fixed::<64>(self.signature, "sig")?;
        let cas = integer(self.cas, "cas")?;
        if !self.canonical {
            return Err(Reject::NotCanonical);
        }
        let item = match (key, signature) {
            (None, None) => Item::Immutable(value),
            (None, Some(_)) => return Err(Reject::Missing("k")),
            (Some(_), None) => return Err(Reject::Missing("sig")),
            (Some(key), Some(signature)) => {
                let seq = integer(self.seq, "seq")?.ok_or(Reject::Missing("seq"))?;
                let salt = bytes(self.salt, "salt")?.unwrap_or_default();
                if seq < 0 {
                    return Err(Reject::NegativeSeq);
                }
                Item::Mutable(MutableItem { key, salt, seq, signature, value })
            }
        };
        Ok(Put { item, cas, token })
    }
}

impl<'a> Query<'a> {
    /// Reads the arguments of a method.
    ///
    /// # Errors
    /// Why the query is to be answered with an error.
    pub fn decode(method: &[u8], arguments: &'a [u8]) -> Result<Self, Reject> {
        let raw = Raw::read(arguments).map_err(|_| Reject::Malformed)?;
        let target = || id(raw.target, "target");
        let kind = match method {
            b"ping" => Ok(QueryKind::Ping),
            b"find_node" => {
                target().and_then(|target| Ok(QueryKind::FindNode { target, want: raw.want()? }))
            }
            b"get_peers" => id(raw.info_hash, "info_hash").and_then(|info_hash| {
                let (noseed, scrape) = (flag(raw.noseed), flag(raw.scrape));
                Ok(QueryKind::GetPeers { info_hash, want: raw.want()?, noseed, scrape })
            }),
            b"announce_peer" => raw.announce_peer().map(QueryKind::AnnouncePeer),
            b"get" => target().and_then(|target| {
                let seq = integer(raw.seq, "seq")?;
                Ok(QueryKind::Get { target, seq, want: raw.want()? })
            }),
            b"put" => raw.put().map(QueryKind::Put),
            b"sample_infohashes" => target()
                .and_then(|target| Ok(QueryKind::SampleInfohashes { target, want: raw.want()? })),
            _ => raw.unknown(),
        };
        // The id is checked first, but an unknown method is unknown whoever sends it.
        if matches!(kind, Err(Reject::UnknownMethod)) {
            return Err(Reject::UnknownMethod);
        }
        Ok(Self { id: id(raw.id, "id")?, kind: kind? })
    }

    /// Returns the method's name.
    #[must_use]
    pub fn method(&self) -> &'static [u8] {
        QueryKind::METHODS.get(self.kind.index()).map_or(b"", |method| method.as_bytes())
    }

    /// Appends the arguments. A put carries its `target`: one kind of server asks for it, and no
    /// other minds.
    pub fn encode(&self, output: &mut Vec<u8>) {
        let mut writer = Writer::new(output);
        writer.dictionary();
        match &self.kind {
            QueryKind::Ping => drop(writer.bytes(b"id").bytes(&self.id.0)),
            QueryKind::FindNode { target, want } | QueryKind::SampleInfohashes { target, want } => {
                writer.bytes(b"id").bytes(&self.id.0).bytes(b"target").bytes(&target.0);
                want.encode(&mut writer);
            }
            QueryKind::GetPeers { info_hash, want, noseed, scrape } => {
                writer.bytes(b"id").bytes(&self.id.0).bytes(b"info_hash").bytes(&info_hash.0);
                for (_, name) in [(*noseed, &b"noseed"[..]), (*scrape, b"scrape")]
                    .into_iter()
                    .filter(|(is_set, _)| *is_set)
                {
                    writer.bytes(name).integer(1);
                }
                want.encode(&mut writer);
            }
            QueryKind::AnnouncePeer(announce) => self.encode_announce(announce, &mut writer),
            QueryKind::Get { target, seq, want } => {
                writer.bytes(b"id").bytes(&self.id.0);
                if let Some(seq) = seq {
                    writer.bytes(b"seq").integer(*seq);
                }
                writer.bytes(b"target").bytes(&target.0);
                want.encode(&mut writer);
            }
            QueryKind::Put(put) => self.encode_put(put, &mut writer),
        }
        writer.end();
    }

    fn encode_announce(&self, announce: &AnnouncePeer<'_>, writer: &mut Writer<'_>) {
        writer.bytes(b"id").bytes(&self.id.0);
        writer.bytes(b"implied_port").integer(i64::from(announce.port.is_none()));
        writer.bytes(b"info_hash").bytes(&announce.info_hash.0);
        writer.bytes(b"port").integer(i64::from(announce.port.unwrap_or(1)));
        writer.bytes(b"seed").integer(i64::from(announce.seed));
        writer.bytes(b"token").bytes(announce.token);
    }

    fn encode_put(&self, put: &Put<'_>, writer: &mut Writer<'_>) {
        if let (Item::Mutable(_), Some(cas)) = (&put.item, put.cas) {
            writer.bytes(b"cas").integer(cas);
        }
        writer.bytes(b"id").bytes(&self.id.0);
        if let Item::Mutable(item) = &put.item {
            writer.bytes(b"k").bytes(item.key);
            if !item.salt.is_empty() {
                writer.bytes(b"salt").bytes(item.salt);
            }
            writer.bytes(b"seq").integer(item.seq).bytes(b"sig").bytes(item.signature);
        }
        writer.bytes(b"target").bytes(&put.item.target().0);
        writer.bytes(b"token").bytes(put.token).bytes(b"v").value(put.item.value());
    }
}

impl<'a> Raw<'a> {
    /// As libtorrent does: what names a target is answered as find_node.
    fn unknown(&self) -> Result<QueryKind<'a>, Reject> {
        let target = id(self.target, "target").or_else(|_| id(self.info_hash, "info_hash"));
        let target = target.map_err(|_| Reject::UnknownMethod)?;
        Ok(QueryKind::FindNode { target, want: self.want().unwrap_or_default() })
    }
}

fn bytes<'a>(raw: Option<&'a [u8]>, name: &'static str) -> Result<Option<&'a [u8]>, Reject> {
    let read = raw.map(|raw| Reader::new(raw).bytes()).transpose();
    read.map_err(|_| Reject::Invalid(name))
}

fn fixed<'a, const N: usize>(
    raw: Option<&'a [u8]>,
    name: &'static str,
) -> Result<Option<&'a [u8; N]>, Reject> {
    let found = bytes(raw, name)?.map(TryInto::try_into).transpose();
    found.map_err(|_| Reject::Invalid(name))
}

fn id(raw: Option<&[u8]>, name: &'static str) -> Result<NodeId, Reject> {
    fixed::<20>(raw, name)?.map(|id| NodeId(*id)).ok_or(Reject::Missing(name))
}

fn integer(raw: Option<&[u8]>, name: &'static str) -> Result<Option<i64>, Reject> {
    let read = raw.map(|raw| Reader::new(raw).integer()).transpose();
    read.map_err(|_| Reject::Invalid(name))
}

/// A flag counts when it is a number other than 0; nobody is refused for it.
fn flag(raw: Option<&[u8]>) -> bool {
    integer(raw, "").ok().flatten().is_some_and(|value| value != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "2:id20:abcdefghij0123456789";
    const KEY: &str = "1:k32:kkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkk";

    fn decode<'a>(method: &str, arguments: &'a str) -> Result<QueryKind<'a>, Reject> {
        Query::decode(method.as_bytes(), arguments.as_bytes()).map(|query| query.kind)
    }

    fn signature() -> String {
        format!("3:sig64:{}", "s".repeat(64))
    }

    #[test]
    fn queries_come_back_as_they_were_written() {
        let (id, target) = (NodeId([1; 20]), NodeId([2; 20]));
        let want = Want { v4: true, v6: true };
        let (key, signature) = ([3; 32], [4; 64]);
        let item =
            MutableItem { key: &key, salt: b"s", seq: 5, signature: &signature, value: b"1:v" };
        let announce =
            AnnouncePeer { info_hash: target, port: Some(6881), seed: true, token: b"tk" };
        let (noseed, scrape) = (true, true);
        for kind in [
            QueryKind::Ping,
            QueryKind::FindNode { target, want },
            QueryKind::FindNode { target, want: Want::default() },
            QueryKind::GetPeers { info_hash: target, want, noseed, scrape },
            QueryKind::AnnouncePeer(announce),
            QueryKind::AnnouncePeer(AnnouncePeer { port: None, seed: false, ..announce }),
            QueryKind::Get { target, seq: Some(7), want },
            QueryKind::Get { target, seq: None, want: Want::default() },
            QueryKind::Put(Put { item: Item::Immutable(b"i1e"), cas: None, token: b"tk" }),
            QueryKind::Put(Put { item: Item::Mutable(item), cas: Some(4), token: b"tk" }),
            QueryKind::SampleInfohashes { target, want },
        ] {
            let query = Query { id, kind };
            let mut bytes = Vec::new();
            query.encode(&mut bytes);
            let mut reader = Reader::new(&bytes);
            assert!(reader.value().is_ok() && reader.is_canonical(), "{}", bytes.escape_ascii());
            assert_eq!(Query::decode(query.method(), &bytes), Ok(query));
        }
    }

    #[test]
    fn bad_arguments_are_refused_for_what_is_wrong() {
        let target = "6:target20:mnopqrstuvwxyz123456";
        for (method, arguments, expected) in [
            ("ping", "d2:id19:abcdefghij012345678e".to_owned(), Reject::Invalid("id")),
            ("ping", "de".to_owned(), Reject::Missing("id")),
            ("ping", "le".to_owned(), Reject::Malformed),
            ("ping", format!("d{ID}ee"), Reject::Malformed),
            ("get", format!("d{ID}e"), Reject::Missing("target")),
            ("get", format!("d{ID}3:seq1:x{target}e"), Reject::Invalid("seq")),
            ("find_node", format!("d{ID}6:targeti1ee"), Reject::Invalid("target")),
            ("find_node", format!("d{ID}{target}4:wanti1ee"), Reject::Invalid("want")),
            ("put", format!("d{ID}5:token1:te"), Reject::Missing("v")),
            ("put", format!("d{ID}1:vi1ee"), Reject::Missing("token")),
            ("put", format!("d{ID}{KEY}3:seqi1e5:token1:t1:vi1ee"), Reject::Missing("sig")),
            ("put", format!("d{ID}{}5:token1:t1:vi1ee", signature()), Reject::Missing("k")),
            ("put", format!("d{ID}5:token1:t1:vd1:bi1e1:ai2eee"), Reject::NotCanonical),
            ("put", format!("d5:token1:t{ID}1:vi1ee"), Reject::NotCanonical),
            (
                "put",
                format!("d{ID}{KEY}3:seqi-1e{}5:token1:t1:vi1ee", signature()),
                Reject::NegativeSeq,
            ),
            ("put", format!("d{ID}1:k3:abc5:token1:t1:vi1ee"), Reject::Invalid("k")),
            ("vote", format!("d{ID}e"), Reject::UnknownMethod),
            ("vote", "de".to_owned(), Reject::UnknownMethod),
        ] {
            assert_eq!(decode(method, &arguments), Err(expected), "{method} {arguments}");
        }
    }

    #[test]
    fn announced_ports_are_checked_unless_implied() {
        let announce = |rest: &str| {
            format!("d{ID}{rest}5:token1:te").replace("HASH", "9:info_hash20:mnopqrstuvwxyz123456")
        };
        for (rest, expected) in [
            ("HASH4:porti6881e", Ok(Some(6881))),
            ("12:implied_porti1eHASH4:porti0e", Ok(None)),
            ("12:implied_porti1eHASH", Ok(None)),
            ("12:implied_porti0eHASH4:porti5e", Ok(Some(5))),
            ("HASH4:porti0e", Err(Reject::Port)),
            ("HASH4:porti65536e", Err(Reject::Port)),
            ("HASH4:porti-1e", Err(Reject::Port)),
            ("HASH", Err(Reject::Missing("port"))),
        ] {
            let arguments = announce(rest);
            let port = decode("announce_peer", &arguments).map(|kind| match kind {
                QueryKind::AnnouncePeer(announce) => announce.port,
                other => panic!("{other:?}"),
            });
            assert_eq!(port, expected, "{rest}");
        }
    }

    #[test]
    fn unknown_methods_with_a_target_are_find_node() {
        for name in ["6:target", "9:info_hash"] {
            let arguments = format!("d{ID}{name}20:mnopqrstuvwxyz123456e");
            let kind = decode("vote", &arguments).unwrap();
            assert!(matches!(kind, QueryKind::FindNode { .. }), "{kind:?}");
        }
    }

    #[test]
    fn only_puts_must_be_canonical() {
        let arguments = format!("d6:target20:mnopqrstuvwxyz123456{ID}e");
        assert!(decode("get", &arguments).is_ok());
    }
}
