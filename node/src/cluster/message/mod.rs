//! What nodes say to each other over links: [`PeerMessage`], and the records it carries.
//!
//! [`codec`] makes frames of messages and messages of frames; docs/WIRE.md draws them.

pub mod codec;
pub mod control;
pub(super) mod fields;
pub mod frame;
#[cfg(test)]
pub(super) mod tests;

use bytes::Bytes;
use wal::record::{Key, Namespace, Version};

use super::prefix::Prefix;
use crate::kademlia::NodeId;

/// The version of this protocol.
pub const PROTOCOL_VERSION: u32 = 1;
/// Members told in one message.
pub const MEMBERS_MAX: usize = 2_048;
/// Keys listed in one message.
pub const ENTRIES_MAX: usize = 1_024;
/// Bytes of keys told in one message, unless there is one alone.
pub const NAMES_BYTES_MAX: usize = 256 * 1024;
/// Prefixes told in one message.
pub const PREFIXES_MAX: usize = 1_024;
/// Parts of a prefix whose sums are told in one message.
pub const PARTS_MAX: usize = 16;
/// Longest address, in bytes of text.
pub const ADDRESS_LEN_MAX: usize = 64;

/// Names a query; unique for its sender, and drawn anew by a process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

/// What a record says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// The key has a value.
    Value(Bytes),
    /// It was deleted, or has expired.
    Tombstone,
}

/// A key's state under a version, with all that another holder needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Which kind of key.
    pub namespace: Namespace,
    /// Its id.
    pub key: Key,
    /// The key itself; empty for a tombstone.
    pub user_key: Bytes,
    /// The higher one holds.
    pub version: Version,
    /// Milliseconds since 1970, 0 for never.
    pub expiry_ms: u64,
    /// Value or tombstone.
    pub content: Content,
}

impl Record {
    /// The record without what it says.
    #[must_use]
    pub fn header(&self) -> Header {
        let is_tombstone = self.content == Content::Tombstone;
        Header { version: self.version, expiry_ms: self.expiry_ms, is_tombstone }
    }

    /// Bytes of key and value.
    #[must_use]
    pub fn len(&self) -> usize {
        let value_len = match &self.content {
            Content::Value(value) => value.len(),
            Content::Tombstone => 0,
        };
        self.user_key.len() + value_len
    }

    /// Whether neither key nor value has any byte.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The record as it counts at that time: what has expired is a tombstone of its version.
    #[must_use]
    pub fn at(self, now_ms: u64) -> Self {
        if self.header().at(now_ms).is_tombstone {
            let (user_key, content) = (Bytes::new(), Content::Tombstone);
            return Self { user_key, expiry_ms: 0, content, ..self };
        }
        self
    }
}

/// A record without key and value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The version.
    pub version: Version,
    /// Milliseconds since 1970, 0 for never.
    pub expiry_ms: u64,
    /// Whether it says that there is nothing.
    pub is_tombstone: bool,
}

impl Header {
    /// The header as it counts at that time.
    #[must_use]
    pub fn at(self, now_ms: u64) -> Self {
        let is_expired = self.expiry_ms != 0 && self.expiry_ms <= now_ms;
        if self.is_tombstone || is_expired {
            return Self { is_tombstone: true, expiry_ms: 0, ..self };
        }
        self
    }
}

/// A key as it is listed and digested.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Which kind of key.
    pub namespace: Namespace,
    /// Its id.
    pub key: Key,
    /// The version.
    pub version: Version,
    /// Whether it says that there is nothing.
    pub is_tombstone: bool,
}

/// A key as clients list it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name {
    /// Id, version and kind.
    pub entry: Entry,
    /// The key itself; empty for a tombstone.
    pub user_key: Bytes,
}

/// The sum of a part of the key space.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sum {
    /// Of the hashes of all entries, modulo 2^128.
    pub hash: u128,
    /// Number of entries.
    pub count: u64,
}

/// How far a member has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// It has not yet been filled.
    Joining,
    /// It holds what it should.
    Full,
    /// It hands over what it holds.
    Leaving,
}

/// What is thought of a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Standing {
    /// It was heard of.
    Alive,
    /// It did not answer.
    Suspected,
    /// It has left, was forgotten, or was down for too long.
    Removed,
}

/// What is told of a member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberEntry {
    /// Who.
    pub node: NodeId,
    /// Where it can be reached, as text.
    pub address: Bytes,
    /// Raised by the member alone, from 1 on; the higher one is newer. 0: somebody had a link to
    /// it, and it has not said anything of itself.
    pub incarnation: u64,
    /// How far it has come.
    pub phase: Phase,
    /// What is thought of it.
    pub standing: Standing,
}

/// What became of a record at a replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PutOutcome {
    /// It holds this version durably. `is_ready` if it holds everything else around it, too.
    Applied {
        /// Whether it counts among the ready holders.
        is_ready: bool,
    },
    /// It holds this higher version.
    NotNewer {
        /// Which.
        stored: Version,
    },
    /// The version is too far ahead of its clock.
    TooFarAhead,
    /// It has another key of the same id.
    KeyConflict,
    /// It cannot store just now.
    Failed,
}

/// Why a record is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PutReason {
    /// A client wrote it.
    Write,
    /// A copy is brought up to date; not passed on.
    Repair,
}

/// What nodes say to each other over a link that is up. Each query has an answer with the same id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PeerMessage {
    /// `KADP.MEMBERS`: all members that the sender knows; answered in kind if it asks for that.
    Members {
        /// Whether the sender wants to hear the receiver's.
        wants_answer: bool,
        /// The members, also those that were removed.
        entries: Vec<MemberEntry>,
    },
    /// `KADP.PING`: answered by a pong; for another target once that has answered.
    Ping {
        /// Which query.
        request: RequestId,
        /// Who is meant, if not the receiver.
        target: Option<NodeId>,
        /// News of members.
        entries: Vec<MemberEntry>,
    },
    /// `KADP.PONG`.
    Pong {
        /// Which query.
        request: RequestId,
        /// News of members.
        entries: Vec<MemberEntry>,
    },
    /// `KADP.PUT`: hold this record, unless there is a newer one.
    Put {
        /// Which query.
        request: RequestId,
        /// Why.
        reason: PutReason,
        /// What.
        record: Record,
    },
    /// `KADP.PUTDONE`.
    PutDone {
        /// Which query.
        request: RequestId,
        /// What became of it.
        outcome: PutOutcome,
    },
    /// `KADP.GET`.
    Get {
        /// Which query.
        request: RequestId,
        /// The key's id.
        key: Key,
        /// Whether the value is wanted, too.
        wants_value: bool,
    },
    /// `KADP.GOT`.
    Got {
        /// Which query.
        request: RequestId,
        /// Whether the sender counts among the ready holders of the key.
        is_ready: bool,
        /// What it holds.
        found: Found,
    },
    /// `KADP.SUMS`: the sums of the parts of a prefix.
    Sums {
        /// Which query.
        request: RequestId,
        /// Which prefix.
        prefix: Prefix,
    },
    /// `KADP.SUMSARE`.
    SumsAre {
        /// Which query.
        request: RequestId,
        /// In order of the parts.
        sums: Vec<Sum>,
    },
    /// `KADP.LIST`: the keys of a prefix.
    List {
        /// Which query.
        request: RequestId,
        /// Which prefix.
        prefix: Prefix,
    },
    /// `KADP.LISTED`.
    Listed {
        /// Which query.
        request: RequestId,
        /// Whether these are all.
        is_whole: bool,
        /// The keys, in order.
        entries: Vec<Entry>,
    },
    /// `KADP.NAMES`: the keys of a part of a prefix, for a client that lists them.
    Names {
        /// Which query.
        request: RequestId,
        /// Which prefix.
        prefix: Prefix,
        /// From this key on.
        from: Key,
        /// So many at most.
        count: u16,
    },
    /// `KADP.NAMED`.
    Named {
        /// Which query.
        request: RequestId,
        /// Whether the sender is a ready holder of the whole prefix.
        is_ready: bool,
        /// Where to go on in the prefix, if these are not all.
        next: Option<Key>,
        /// The keys, in order of their ids.
        names: Vec<Name>,
    },
    /// `KADP.CLAIM`: the sender is filling the prefix; forward writes to it until it releases it.
    Claim {
        /// Which query.
        request: RequestId,
        /// Which prefix.
        prefix: Prefix,
    },
    /// `KADP.CLAIMED`.
    Claimed {
        /// Which query.
        request: RequestId,
        /// The parts of it that the sender holds completely.
        held: Vec<Prefix>,
    },
    /// `KADP.RELEASE`: no more forwarding is needed.
    Release {
        /// Which prefix.
        prefix: Prefix,
    },
    /// `KADP.HAVE`: which of these does the receiver hold, as a ready holder?
    Have {
        /// Which query.
        request: RequestId,
        /// Where they are from.
        prefix: Prefix,
        /// Keys with versions.
        entries: Vec<Entry>,
    },
    /// `KADP.HAVEIS`.
    HaveIs {
        /// Which query.
        request: RequestId,
        /// Whether the sender is a ready holder of the whole prefix.
        is_ready: bool,
        /// Of each entry, whether it has that version or a higher one durably.
        held: Vec<bool>,
    },
}

/// What a replica has of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// Nothing, not even a tombstone.
    Nothing,
    /// This, of which the value was not asked for.
    Header(Header),
    /// This.
    Record(Record),
    /// It cannot say: the record is damaged or the disk failed.
    Failed,
}

impl Found {
    /// Version and kind of what was found.
    #[must_use]
    pub fn header(&self) -> Option<Header> {
        match self {
            Self::Nothing | Self::Failed => None,
            Self::Header(header) => Some(*header),
            Self::Record(record) => Some(record.header()),
        }
    }
}
