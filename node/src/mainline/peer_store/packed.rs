//! [`PackedPeers`]: the peers of one torrent, packed; also as they are flushed to the engine.
//!
//! A record: version 1 (1 byte), count of IPv4 peers (u16), then these, then those of IPv6. A peer
//! is
//! its compact address (6 or 18 bytes) and a stamp (4 bytes): minutes since 1970, times two, plus 1
//! for a seed. Numbers are little-endian, addresses as on the wire. 10 and 22 bytes.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::as_conversions)]

use std::net::SocketAddr;

use crate::krpc::compact::{self, ADDRESS_V4_LEN, ADDRESS_V6_LEN, Family};

const VERSION: u8 = 1;
const STAMP_LEN: usize = 4;
const MS_PER_MINUTE: u64 = 60_000;

/// A peer of a torrent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Where it is reached.
    pub address: SocketAddr,
    /// Whether it has all of the torrent.
    pub seed: bool,
    /// When it was announced last, in ms since 1970; kept to the minute.
    pub announced_ms: u64,
}

impl Peer {
    fn stamp(&self) -> u32 {
        let minutes = u32::try_from(self.announced_ms.wrapping_div(MS_PER_MINUTE));
        minutes.unwrap_or(u32::MAX).wrapping_shl(1) | u32::from(self.seed)
    }
}

/// Tells whether a peer was announced at or after a time, to the minute.
#[must_use]
pub fn is_alive(peer: &Peer, oldest_ms: u64) -> bool {
    peer.announced_ms.saturating_add(MS_PER_MINUTE) > oldest_ms
}

/// Peers of both families.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PackedPeers {
    v4: Vec<u8>,
    v6: Vec<u8>,
}

impl PackedPeers {
    /// Tells whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.v4.is_empty() && self.v6.is_empty()
    }

    /// How many there are, expired ones among them.
    #[must_use]
    pub fn len(&self) -> usize {
        let of = |list: &Vec<u8>, family| list.len().checked_div(entry_len(family)).unwrap_or(0);
        of(&self.v4, Family::V4).saturating_add(of(&self.v6, Family::V6))
    }

    /// Memory of the peers.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.v4.capacity().saturating_add(self.v6.capacity())
    }

    /// The peers of a family, those announced last in no order.
    pub fn iter(&self, family: Family) -> impl Iterator<Item = Peer> {
        let list = if family == Family::V4 { &self.v4 } else { &self.v6 };
        list.chunks_exact(entry_len(family)).filter_map(read)
    }

    /// Counts the peers that are not expired.
    #[must_use]
    pub fn count_alive(&self, oldest_ms: u64) -> usize {
        let all = self.iter(Family::V4).chain(self.iter(Family::V6));
        all.filter(|peer| is_alive(peer, oldest_ms)).count()
    }

    /// When a peer was announced last.
    #[must_use]
    pub fn newest_ms(&self) -> u64 {
        let all = self.iter(Family::V4).chain(self.iter(Family::V6));
        all.map(|peer| peer.announced_ms).max().unwrap_or(0)
    }

    /// Takes in a peer, in place of what was known of its address. Beyond the caps (for its IP, and
    /// in all) the one announced longest ago goes.
    pub fn insert(&mut self, peer: &Peer, per_ip_max: usize, count_max: usize) {
        let family = Family::of(&peer.address);
        let mut same_ip = 0_usize;
        let (mut oldest, mut oldest_same_ip) = (None, None);
        let mut same = None;
        for (index, known) in self.iter(family).enumerate() {
            if known.address == peer.address {
                same = Some((known.announced_ms, index));
            }
            let age = (known.announced_ms, index);
            oldest = Some(oldest.map_or(age, |other| age.min(other)));
            if known.address.ip() == peer.address.ip() {
                same_ip = same_ip.saturating_add(1);
                oldest_same_ip = Some(oldest_same_ip.map_or(age, |other| age.min(other)));
            }
        }
        let count = self.list(family).len().checked_div(entry_len(family)).unwrap_or(0);
        let over_ip = oldest_same_ip.filter(|_| same_ip >= per_ip_max.max(1));
        let over_all = oldest.filter(|_| count >= count_max.max(1));
        let replaced = same.or(over_ip).or(over_all);
        match replaced {
            Some((_, index)) => self.write(family, index, peer),
            None => {
                // Exactly as much as needed: most torrents have few peers.
                let list = self.list(family);
                list.reserve_exact(entry_len(family));
                compact::encode_address(&peer.address, list);
                list.extend_from_slice(&peer.stamp().to_le_bytes());
            }
        }
    }

    /// Forgets what is expired; tells whether that was anything.
    pub fn expire(&mut self, oldest_ms: u64) -> bool {
        let mut found = false;
        for family in [Family::V4, Family::V6] {
            let dead = |entry: &[u8]| read(entry).is_none_or(|peer| !is_alive(&peer, oldest_ms));
            let len = entry_len(family);
            let list = self.list(family);
            if list.chunks_exact(len).any(dead) {
                found = true;
                *list = list
                    .chunks_exact(len)
                    .filter(|entry| !dead(entry))
                    .flatten()
                    .copied()
                    .collect();
                list.shrink_to_fit();
            }
        }
        found
    }

    /// The record's bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let count = self.iter(Family::V4).count();
        let mut record = vec![VERSION];
        record.extend_from_slice(&u16::try_from(count).unwrap_or(u16::MAX).to_le_bytes());
        record.extend_from_slice(&self.v4);
        record.extend_from_slice(&self.v6);
        record
    }

    /// Reads a record; `None` if it is none, is empty, or has more peers of a family than that.
    #[must_use]
    pub fn decode(record: &[u8], count_max: usize) -> Option<Self> {
        let (&[version], rest) = record.split_first_chunk::<1>()?;
        let (count, rest) = rest.split_first_chunk::<2>()?;
        let v4_len = usize::from(u16::from_le_bytes(*count)).checked_mul(entry_len(Family::V4))?;
        let (v4, v6) = rest.split_at_checked(v4_len)?;
        let is_whole = v6.len().checked_rem(entry_len(Family::V6)) == Some(0);
        let is_short = [(v4, Family::V4), (v6, Family::V6)]
            .iter()
            .all(|(list, family)| list.len() <= count_max.saturating_mul(entry_len(*family)));
        let is_good = version == VERSION && is_whole && is_short && !rest.is_empty();
        is_good.then(|| Self { v4: v4.to_vec(), v6: v6.to_vec() })
    }

    fn list(&mut self, family: Family) -> &mut Vec<u8> {
        if family == Family::V4 { &mut self.v4 } else { &mut self.v6 }
    }

    fn write(&mut self, family: Family, index: usize, peer: &Peer) {
        let mut entry = Vec::with_capacity(entry_len(Family::V6));
        compact::encode_address(&peer.address, &mut entry);
        entry.extend_from_slice(&peer.stamp().to_le_bytes());
        if let Some(place) = self.list(family).chunks_exact_mut(entry.len()).nth(index) {
            place.copy_from_slice(&entry);
        }
    }
}

fn entry_len(family: Family) -> usize {
    match family {
        Family::V4 => ADDRESS_V4_LEN.saturating_add(STAMP_LEN),
        Family::V6 => ADDRESS_V6_LEN.saturating_add(STAMP_LEN),
    }
}

fn read(entry: &[u8]) -> Option<Peer> {
    let (address, stamp) = entry.split_last_chunk::<STAMP_LEN>()?;
    let stamp = u32::from_le_bytes(*stamp);
    let announced_ms = u64::from(stamp.wrapping_shr(1)).saturating_mul(MS_PER_MINUTE);
    Some(Peer { address: compact::decode_address(address)?, seed: stamp & 1 == 1, announced_ms })
}
