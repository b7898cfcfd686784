//! The routing table as bytes, for the next start.
//!
//! | offset | size | field | meaning |
//! |---|---|---|---|
//! | 0 | 8 | magic | `KADNODE1` |
//! | 8 | 20 | id | the node's own |
//! | 28 | 4 | count | of nodes, little-endian |
//! | 32 | 27 or 39 each | nodes | 4 or 6, then compact node info |
//! | end - 4 | 4 | CRC-32 | of all before, little-endian |
//!
//! What does not fit in every respect is refused as a whole: a table can be learned again.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::as_conversions)]

use crate::kademlia::{Contact, NodeId};
use crate::krpc::compact::{self, Family, NODE_V4_LEN, NODE_V6_LEN};

const MAGIC: &[u8; 8] = b"KADNODE1";
/// Nodes in a saved table at most: more than one with k = 20 can have.
pub const SAVED_NODES_MAX: usize = 4096;

/// Why a saved table is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SavedTableError {
    /// It is no table of this version.
    #[error("no saved routing table")]
    Magic,
    /// It is damaged.
    #[error("the checksum of the saved routing table is wrong")]
    Checksum,
    /// It is another node's.
    #[error("the saved routing table is that of node {found}")]
    OtherNode {
        /// Whose.
        found: NodeId,
    },
    /// It was not written by us.
    #[error("the saved routing table is malformed")]
    Malformed,
}

/// Writes a table.
#[must_use]
pub fn encode(own: &NodeId, contacts: impl Iterator<Item = Contact>) -> Vec<u8> {
    let mut nodes = Vec::new();
    let mut count: u32 = 0;
    for contact in contacts.take(SAVED_NODES_MAX) {
        nodes.push(if contact.address.is_ipv4() { 4 } else { 6 });
        compact::encode_node(&contact, &mut nodes);
        count = count.saturating_add(1);
    }
    let mut bytes = [&MAGIC[..], &own.0, &count.to_le_bytes(), &nodes].concat();
    bytes.extend_from_slice(&crc32fast::hash(&bytes).to_le_bytes());
    bytes
}

/// Reads the table of the node `own`.
///
/// # Errors
/// It is damaged, or another node's.
pub fn decode(own: &NodeId, bytes: &[u8]) -> Result<Vec<Contact>, SavedTableError> {
    use SavedTableError::{Checksum, Magic, Malformed, OtherNode};
    let (body, crc) = bytes.split_last_chunk::<4>().ok_or(Magic)?;
    let rest = body.strip_prefix(&MAGIC[..]).ok_or(Magic)?;
    if crc32fast::hash(body) != u32::from_le_bytes(*crc) {
        return Err(Checksum);
    }
    let (id, rest) = rest.split_first_chunk::<20>().ok_or(Malformed)?;
    if id != &own.0 {
        return Err(OtherNode { found: NodeId(*id) });
    }
    let (count, mut rest) = rest.split_first_chunk::<4>().ok_or(Malformed)?;
    let count = usize::try_from(u32::from_le_bytes(*count)).map_err(|_| Malformed)?;
    if count > SAVED_NODES_MAX {
        return Err(Malformed);
    }
    let mut contacts = Vec::with_capacity(count);
    for _ in 0..count {
        let (family, after) = rest.split_first().ok_or(Malformed)?;
        let (len, family) = match family {
            4 => (NODE_V4_LEN, Family::V4),
            6 => (NODE_V6_LEN, Family::V6),
            _ => return Err(Malformed),
        };
        let (node, after) = after.split_at_checked(len).ok_or(Malformed)?;
        contacts.push(compact::decode_nodes(node, family).next().ok_or(Malformed)?);
        rest = after;
    }
    if rest.is_empty() { Ok(contacts) } else { Err(Malformed) }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::indexing_slicing, reason = "tests may panic")]

    use super::*;

    const OWN: NodeId = NodeId([5; 20]);

    fn contacts() -> Vec<Contact> {
        let contact = |(number, address): (u8, &str)| Contact {
            id: NodeId([number; 20]),
            address: address.parse().unwrap(),
        };
        [(1, "192.0.2.1:7"), (2, "[2001:db8::1]:65535"), (3, "127.0.0.1:1")].map(contact).to_vec()
    }

    #[test]
    fn saved_tables_come_back() {
        let bytes = encode(&OWN, contacts().into_iter());
        assert_eq!(decode(&OWN, &bytes), Ok(contacts()));
        assert_eq!(decode(&OWN, &encode(&OWN, [].into_iter())), Ok(vec![]));
    }

    #[test]
    fn every_flip_and_cut_is_noticed() {
        let bytes = encode(&OWN, contacts().into_iter());
        for at in 0..bytes.len() {
            assert!(decode(&OWN, &bytes[..at]).is_err(), "cut at {at}");
            for bit in 0..8 {
                let mut flipped = bytes.clone();
                flipped[at] ^= 1 << bit;
                assert!(decode(&OWN, &flipped).is_err(), "bit {bit} of {at}");
            }
        }
        let other = NodeId([6; 20]);
        assert_eq!(decode(&other, &bytes), Err(SavedTableError::OtherNode { found: OWN }));
    }

    #[test]
    fn counts_and_families_are_checked_behind_a_right_checksum() {
        let sealed = |mut bytes: Vec<u8>| {
            bytes.extend_from_slice(&crc32fast::hash(&bytes).to_le_bytes());
            decode(&OWN, &bytes)
        };
        let head = |count: u32| [&MAGIC[..], &OWN.0, &count.to_le_bytes()].concat();
        assert_eq!(sealed(head(0)), Ok(vec![]));
        for (count, rest) in [(1, vec![]), (u32::MAX, vec![4; 27]), (1, vec![5; 27]), (0, vec![4])]
        {
            let bytes = [head(count), rest].concat();
            assert_eq!(sealed(bytes), Err(SavedTableError::Malformed));
        }
    }
}
