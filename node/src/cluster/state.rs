//! [`ClusterState`]: what the cluster core keeps over a restart, as bytes.
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 4 | `KCST` |
//! | 4 | 1 | format, 1 |
//! | 5 | 8 | last time in contact with most members, ms since 1970, big-endian |
//! | 13 | 2 + 21 n | ranges held completely: count, then length in bits and first key of each |
//! | | 2 + ... | members: count, then entries as on the wire (docs/WIRE.md) |
//! | | 4 | CRC-32 of all before it, big-endian |

use bytes::Bytes;

use super::message::MEMBERS_MAX;
use super::message::MemberEntry;
use super::message::codec::MessageError;
use super::message::fields::{FieldReader, FieldWriter};
use super::prefix::{Prefix, PrefixSet};

/// Ranges of one node; there are about as many as an id has bits.
pub const HELD_COUNT_MAX: usize = 4_096;

const MAGIC: &[u8] = b"KCST\x01";

/// What is kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClusterState {
    /// When the node was last in contact with most members.
    pub contact_ms: u64,
    /// The keys around which it holds everything that it should. All others are pending.
    pub held: PrefixSet,
    /// All members, itself included.
    pub members: Vec<MemberEntry>,
}

impl ClusterState {
    /// The state as bytes.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let held: Vec<Prefix> = self.held.iter().copied().take(HELD_COUNT_MAX).collect();
        let body = FieldWriter::default().bytes(MAGIC).u64(self.contact_ms);
        let body = body.list(HELD_COUNT_MAX, &held, FieldWriter::prefix);
        let body = body.list(MEMBERS_MAX, &self.members, FieldWriter::member);
        let crc = crc32fast::hash(&body.0);
        body.bytes(&crc.to_be_bytes()).0.into()
    }

    /// The store has lost records that it had acknowledged: nothing is held completely any more,
    /// and all ranges are filled again before the node answers for them.
    pub fn on_loss(&mut self) {
        self.held = PrefixSet::default();
    }

    /// The bytes as state.
    ///
    /// # Errors
    /// [`MessageError`] if they are none.
    pub fn decode(bytes: &[u8]) -> Result<Self, MessageError> {
        let (body, crc) = bytes.split_last_chunk().ok_or(MessageError::Body)?;
        let body = body.strip_prefix(MAGIC).ok_or(MessageError::Body)?;
        if crc32fast::hash(&bytes[..bytes.len() - 4]) != u32::from_be_bytes(*crc) {
            return Err(MessageError::Body);
        }
        let mut fields = FieldReader::new(body);
        let state = Self {
            contact_ms: fields.u64()?,
            held: fields.list(HELD_COUNT_MAX, FieldReader::prefix)?.into_iter().collect(),
            members: fields.list(MEMBERS_MAX, FieldReader::member)?,
        };
        fields.finish()?;
        Ok(state)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::message::{Phase, Standing};
    use crate::kademlia::NodeId;

    #[test]
    fn the_state_is_read_as_written_and_damage_is_noticed() {
        let (phase, standing) = (Phase::Full, Standing::Suspected);
        let address = Bytes::from_static(b"127.0.0.1:7400");
        let node = NodeId([3; 20]);
        let member = MemberEntry { node, address, incarnation: 7, phase, standing };
        let held = Prefix::ALL.parts().into_iter().skip(3).collect();
        let state = ClusterState { contact_ms: 99, held, members: vec![member; 2] };
        let bytes = state.encode();
        assert_eq!(ClusterState::decode(&bytes), Ok(state));
        for at in 0..bytes.len() {
            let mut bad = bytes.to_vec();
            bad[at] ^= 1;
            assert!(ClusterState::decode(&bad).is_err());
            assert!(ClusterState::decode(&bytes[..at]).is_err());
        }
    }
}
