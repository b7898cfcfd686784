//! Where a Mainline node's records lie in the engine.
//!
//! The engine tells keys apart by their ids, 20 bytes each. Strangers choose the targets of items
//! and the info hashes of torrents, also one equal to the other, so that ids of different kinds are
//! made in different ways. The first byte of the user key says which kind it is.
//!
//! | kind | key id | user key |
//! |---|---|---|
//! | item | the target | 1 |
//! | peers of a torrent | `peer`, then bytes 4 to 19 of the SHA-1 of the user key | 2, info hash |
//! | state of the node | SHA-1 of the user key | 3, `state` |
//!
//! Items lie in the order of their targets, so that those near an id can be walked. Records of
//! peers share 32 bits, so that a start finds them without a look at every item.

use storage::KeyRef;
use wal::record::Key;

use crate::kademlia::NodeId;

/// The user key of every item.
pub const ITEM: &[u8] = &[1];
/// The first byte of the user keys of peers.
pub const PEERS: u8 = 2;
/// The user key of the state.
pub const STATE: &[u8] = b"\x03state";

/// The first bytes of the key ids of peers.
const PEERS_PREFIX: [u8; 4] = *b"peer";

/// The key of an item.
#[must_use]
pub fn item(target: &NodeId) -> KeyRef<'static> {
    KeyRef::given(Key(target.0), ITEM)
}

/// The key of the state.
#[must_use]
pub fn state() -> KeyRef<'static> {
    KeyRef::hashed(Key::of(STATE), STATE)
}

/// The key of a torrent's peers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeersKey {
    id: Key,
    user_key: [u8; 21],
}

impl PeersKey {
    /// Of a torrent.
    #[must_use]
    pub fn of(info_hash: &NodeId) -> Self {
        let mut user_key = [PEERS; 21];
        user_key[1..].copy_from_slice(&info_hash.0);
        let mut id = Key::of(&user_key);
        id.0[..PEERS_PREFIX.len()].copy_from_slice(&PEERS_PREFIX);
        Self { id, user_key }
    }

    /// As the engine wants it.
    #[must_use]
    pub fn key(&self) -> KeyRef<'_> {
        KeyRef::given(self.id, &self.user_key)
    }
}

/// The torrent whose peers a record holds, by its user key.
#[must_use]
pub fn info_hash_of(user_key: &[u8]) -> Option<NodeId> {
    let (kind, info_hash) = user_key.split_first()?;
    (*kind == PEERS).then(|| info_hash.try_into().ok().map(NodeId)).flatten()
}

/// Keys from one on, up to another one that is not among them; without it, all that follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyRange {
    /// The first.
    pub from: Key,
    /// Behind the last.
    pub until: Option<Key>,
}

impl KeyRange {
    /// All records of peers, and what happens to lie between them.
    #[must_use]
    pub fn of_peers() -> Self {
        let mut first = [0; 20];
        first[..PEERS_PREFIX.len()].copy_from_slice(&PEERS_PREFIX);
        Self::of_prefix(&NodeId(first), 32)
    }

    /// All that begin with these bits.
    #[must_use]
    pub fn of_prefix(prefix: &NodeId, bits: u32) -> Self {
        let (mut from, mut last) = (prefix.0, prefix.0);
        for bit in bits..160 {
            let (byte, mask) = ((bit / 8) as usize, 0x80 >> (bit % 8));
            from[byte] &= !mask;
            last[byte] |= mask;
        }
        Self { from: Key(from), until: following(&Key(last)) }
    }

    /// Those behind a key; `None`: there are none.
    #[must_use]
    pub fn behind(key: &NodeId) -> Option<Self> {
        following(&Key(key.0)).map(|from| Self { from, until: None })
    }

    /// Of these, those behind a key.
    #[must_use]
    pub fn after(self, key: &NodeId) -> Option<Self> {
        let from = following(&Key(key.0))?.max(self.from);
        self.until.is_none_or(|until| from < until).then_some(Self { from, ..self })
    }
}

/// The next key; `None` after the last.
fn following(key: &Key) -> Option<Key> {
    let mut next = key.0;
    for byte in next.iter_mut().rev() {
        *byte = byte.wrapping_add(1);
        if *byte != 0 {
            return Some(Key(next));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_never_share_a_key_and_peers_lie_together() {
        let id = NodeId([0x41; 20]);
        let (item, peers) = (item(&id), PeersKey::of(&id));
        assert_ne!(item.id, peers.key().id);
        assert_eq!(info_hash_of(peers.key().user_key), Some(id));
        assert_eq!(info_hash_of(item.user_key), None);
        assert_eq!(info_hash_of(STATE), None);
        let range = KeyRange::of_peers();
        assert!(range.from <= peers.key().id && Some(peers.key().id) < range.until);
    }

    #[test]
    fn ranges_end_where_their_prefix_does() {
        let prefix = NodeId([0xF0; 20]);
        let range = KeyRange::of_prefix(&prefix, 4);
        assert_eq!(
            range,
            KeyRange {
                from: Key([0xF0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
                until: None
            }
        );
        let range = KeyRange::of_prefix(&NodeId([0x10; 20]), 8);
        let until = range.until.unwrap();
        assert_eq!((until.0[0], until.0[1]), (0x11, 0));
        assert_eq!(KeyRange::of_prefix(&prefix, 0).from, Key([0; 20]));
        assert_eq!(range.after(&NodeId([0; 20])), Some(range));
        assert_eq!(range.after(&NodeId([0x20; 20])), None);
        assert_eq!(KeyRange::behind(&NodeId([0xFF; 20])), None);
        let next = KeyRange::behind(&NodeId([0; 20])).unwrap();
        assert_eq!(next.from.0[19], 1);
    }
}
