//! [`State`]: what a Mainline node knows again after a restart, as bytes.
//!
//! | offset | size | field | meaning |
//! |---|---|---|---|
//! | 0 | 8 | magic | `KADMAIN1` |
//! | 8 | ... | parts | each: 1 byte tag, 4 bytes length, so many bytes |
//! | end - 4 | 4 | CRC-32 | of all before |
//!
//! | tag | part |
//! |---|---|
//! | 1 | state of the write tokens: [`TokenKeys::encode`](crate::mainline::TokenKeys::encode) |
//! | 16, 32 | our id in IPv4, in IPv6: 20 bytes |
//! | 17, 33 | our external address, 0, 6 or 18 bytes |
//! | 18, 34 | the routing table: [`kademlia::node::saved`](crate::kademlia::node::saved) |
//! | 19, 35 | empty: others have reached us |
//! | 48 | the mirror's round, 45 bytes: version 1, when it began, items due in it so far, in the last, whether a place follows, the place |
//! | 49 | items that nobody else holds yet: 20 bytes each |
//!
//! Numbers are little-endian. Parts with other tags are passed over; a part that does not fit
//! spoils itself alone.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::as_conversions)]

use crate::kademlia::NodeId;
use crate::krpc::compact::Family;

const MAGIC: &[u8; 8] = b"KADMAIN1";
/// Bytes of a state; tables of both families need about 40,000.
pub const STATE_BYTES_MAX: usize = 512 * 1024;

const TOKENS: u8 = 1;
const MIRROR: u8 = 48;
const UNPLACED: u8 = 49;
const MIRROR_VERSION: u8 = 1;

/// Why bytes are no state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StateError {
    /// They are something else.
    #[error("no state of a Mainline node")]
    Magic,
    /// They are damaged.
    #[error("the checksum of the state is wrong")]
    Checksum,
    /// They were not written by us.
    #[error("the state is malformed")]
    Malformed,
}

/// What is kept of a family.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SideState {
    /// Our id.
    pub id: Option<NodeId>,
    /// Our address, compact; empty: unknown.
    pub external: Vec<u8>,
    /// The table.
    pub table: Vec<u8>,
    /// Whether others have reached us.
    pub is_reached: bool,
}

/// Where the mirror is in its round.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MirrorState {
    /// When the round began, in ms since 1970.
    pub began_ms: u64,
    /// Items due in it so far.
    pub due: u64,
    /// Items due in the last round.
    pub due_before: u64,
    /// The last item dealt with.
    pub after: Option<NodeId>,
}

/// What is kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// Of the write tokens.
    pub tokens: Vec<u8>,
    /// Of IPv4 and IPv6.
    pub sides: [SideState; 2],
    /// Of the mirror.
    pub mirror: Option<MirrorState>,
    /// Items that nobody else holds yet.
    pub unplaced: Vec<NodeId>,
}

impl State {
    /// Writes the state.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        let mut part = |tag: u8, value: &[u8]| {
            bytes.push(tag);
            bytes.extend_from_slice(&u32::try_from(value.len()).unwrap_or(0).to_le_bytes());
            bytes.extend_from_slice(value);
        };
        part(TOKENS, &self.tokens);
        for (family, side) in [Family::V4, Family::V6].into_iter().zip(&self.sides) {
            let tag = first_tag(family);
            if let Some(id) = &side.id {
                part(tag, &id.0);
            }
            part(tag.saturating_add(1), &side.external);
            part(tag.saturating_add(2), &side.table);
            if side.is_reached {
                part(tag.saturating_add(3), &[]);
            }
        }
        if let Some(mirror) = &self.mirror {
            part(MIRROR, &mirror.encode());
        }
        if !self.unplaced.is_empty() {
            let targets: Vec<u8> = self.unplaced.iter().flat_map(|target| target.0).collect();
            part(UNPLACED, &targets);
        }
        let crc = crc32fast::hash(&bytes).to_le_bytes();
        bytes.extend_from_slice(&crc);
        bytes
    }

    /// Reads a state.
    ///
    /// # Errors
    /// It is damaged, or none.
    pub fn decode(bytes: &[u8]) -> Result<Self, StateError> {
        if bytes.len() > STATE_BYTES_MAX {
            return Err(StateError::Malformed);
        }
        let (body, crc) = bytes.split_last_chunk::<4>().ok_or(StateError::Magic)?;
        let mut rest = body.strip_prefix(&MAGIC[..]).ok_or(StateError::Magic)?;
        if crc32fast::hash(body) != u32::from_le_bytes(*crc) {
            return Err(StateError::Checksum);
        }
        let mut state = Self::default();
        while let Some((&[tag, a, b, c, d], after)) = rest.split_first_chunk::<5>() {
            let len = usize::try_from(u32::from_le_bytes([a, b, c, d]));
            let part = len.ok().and_then(|len| after.split_at_checked(len));
            let (value, after) = part.ok_or(StateError::Malformed)?;
            state.take(tag, value);
            rest = after;
        }
        if rest.is_empty() { Ok(state) } else { Err(StateError::Malformed) }
    }

    fn take(&mut self, tag: u8, value: &[u8]) {
        match tag {
            TOKENS => self.tokens = value.to_vec(),
            MIRROR => self.mirror = MirrorState::decode(value),
            UNPLACED => {
                let (targets, _) = value.as_chunks::<20>();
                self.unplaced = targets.iter().copied().map(NodeId).collect();
            }
            _ => {
                let families = [Family::V4, Family::V6].into_iter().zip(&mut self.sides);
                for (family, side) in families {
                    match tag.checked_sub(first_tag(family)) {
                        Some(0) => side.id = value.try_into().ok().map(NodeId),
                        Some(1) => side.external = value.to_vec(),
                        Some(2) => side.table = value.to_vec(),
                        Some(3) => side.is_reached = true,
                        _ => {}
                    }
                }
            }
        }
    }
}

impl MirrorState {
    fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![MIRROR_VERSION];
        for number in [self.began_ms, self.due, self.due_before] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        bytes.push(u8::from(self.after.is_some()));
        bytes.extend_from_slice(&self.after.unwrap_or_default().0);
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (version, rest) = bytes.split_first()?;
        let (began_ms, rest) = rest.split_first_chunk::<8>()?;
        let (due, rest) = rest.split_first_chunk::<8>()?;
        let (due_before, rest) = rest.split_first_chunk::<8>()?;
        let (has_place, place) = rest.split_first()?;
        let place: [u8; 20] = place.try_into().ok()?;
        (*version == MIRROR_VERSION && *has_place <= 1).then_some(())?;
        Some(Self {
            began_ms: u64::from_le_bytes(*began_ms),
            due: u64::from_le_bytes(*due),
            due_before: u64::from_le_bytes(*due_before),
            after: (*has_place == 1).then_some(NodeId(place)),
        })
    }
}

/// The first of the four tags of a family.
fn first_tag(family: Family) -> u8 {
    match family {
        Family::V4 => 16,
        Family::V6 => 32,
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::indexing_slicing, reason = "tests may panic")]

    use super::*;

    fn state() -> State {
        let side = |byte: u8| SideState {
            id: Some(NodeId([byte; 20])),
            external: vec![byte; 6],
            table: vec![byte; 30],
            is_reached: byte == 1,
        };
        let mirror =
            MirrorState { began_ms: 5, due: 6, due_before: 7, after: Some(NodeId([8; 20])) };
        let unplaced = vec![NodeId([9; 20]), NodeId([10; 20])];
        State { tokens: vec![1; 17], sides: [side(1), side(2)], mirror: Some(mirror), unplaced }
    }

    #[test]
    fn states_come_back() {
        for state in [state(), State::default()] {
            assert_eq!(State::decode(&state.encode()), Ok(state));
        }
        let without = State { mirror: Some(MirrorState::default()), ..state() };
        assert_eq!(State::decode(&without.encode()), Ok(without));
    }

    #[test]
    fn every_flip_and_cut_is_noticed() {
        let bytes = state().encode();
        for at in 0..bytes.len() {
            assert!(State::decode(&bytes[..at]).is_err(), "cut at {at}");
            for bit in 0..8 {
                let mut flipped = bytes.clone();
                flipped[at] ^= 1 << bit;
                assert!(State::decode(&flipped).is_err(), "bit {bit} of {at}");
            }
        }
    }

    #[test]
    fn parts_are_checked_behind_a_right_checksum() {
        let sealed = |parts: &[u8]| {
            let mut bytes = [&MAGIC[..], parts].concat();
            bytes.extend_from_slice(&crc32fast::hash(&bytes).to_le_bytes());
            State::decode(&bytes)
        };
        assert_eq!(sealed(&[99, 1, 0, 0, 0, 7]), Ok(State::default()), "unknown");
        assert_eq!(sealed(&[16, 2, 0, 0, 0, 7, 7]), Ok(State::default()), "no id");
        assert_eq!(sealed(&[48, 1, 0, 0, 0, 1]), Ok(State::default()), "no mirror");
        assert_eq!(sealed(&[1, 255, 255, 255, 255, 7]), Err(StateError::Malformed));
        assert_eq!(sealed(&[1, 0, 0]), Err(StateError::Malformed));
        assert_eq!(State::decode(&vec![0; STATE_BYTES_MAX + 1]), Err(StateError::Malformed));
    }
}
