//! [`PeerStore`]: who has which torrent, one packed record for each info hash (BEP 5, 33, 51).
//!
//! Announced again every half hour by whoever is alive, peers are soft state: they live in memory
//! and what has changed is handed out to be written a few seconds later ([`PeerStore::pop_dirty`]).
//! Everything has a cap: peers of a torrent, of one IP in it, torrents, and bytes in all. What is
//! expired makes room first, then torrents far from us with few peers.

pub mod packed;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::ops::Bound;

use fastrand::Rng;

use crate::kademlia::{Distance, NodeId};
use crate::krpc::compact::Family;

use super::filter::PeerFilter;
use packed::{PackedPeers, Peer};

/// Info hashes in a sample: 20, as other servers give, make 400 bytes.
pub const SAMPLES_MAX: usize = 20;

/// Bytes that a torrent costs besides its peers: tree, vectors, allocator.
const TORRENT_OVERHEAD: usize = 160;
/// Torrents at the far end among which one has to make room.
const CANDIDATES_MAX: usize = 16;

/// The limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerLimits {
    /// A peer not announced for so long is forgotten.
    pub ttl_ms: u64,
    /// Torrents.
    pub torrents_max: usize,
    /// Peers of a torrent and family.
    pub peers_max: usize,
    /// Peers of a torrent at one IP address.
    pub peers_per_ip_max: usize,
    /// Bytes in all.
    pub bytes_max: usize,
    /// A sample of info hashes stays so long (BEP 51: at most 6 hours).
    pub sample_interval_ms: u64,
}

impl Default for PeerLimits {
    fn default() -> Self {
        Self {
            ttl_ms: 45 * 60 * 1000,
            torrents_max: 100_000,
            peers_max: 1_000,
            peers_per_ip_max: 4,
            bytes_max: 64 << 20,
            sample_interval_ms: 10 * 60 * 1000,
        }
    }
}

/// A torrent's peers to be written, and when the record expires, in ms since 1970.
pub type PeerRecord = (Vec<u8>, u64);

/// A sample of the info hashes we know peers of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    /// Seconds until another one is given; 0 if this is all there is.
    pub interval: i64,
    /// How many there are.
    pub count: usize,
    /// The info hashes, 20 bytes each.
    pub info_hashes: Vec<u8>,
}

/// Peers by torrent.
#[derive(Clone, Debug)]
pub struct PeerStore {
    limits: PeerLimits,
    own: NodeId,
    /// By distance from us: the last one is the farthest.
    torrents: BTreeMap<Distance, PackedPeers>,
    bytes: usize,
    /// Peers of all torrents.
    count: usize,
    dirty: BTreeSet<Distance>,
    swept_to: Option<Distance>,
    sample: Vec<Distance>,
    sampled_ms: Option<u64>,
}

impl PeerStore {
    /// Starts empty, for a node of this id.
    #[must_use]
    pub fn new(limits: PeerLimits, own: NodeId) -> Self {
        Self {
            limits,
            own,
            torrents: BTreeMap::new(),
            bytes: 0,
            count: 0,
            dirty: BTreeSet::new(),
            swept_to: None,
            sample: Vec::new(),
            sampled_ms: None,
        }
    }

    /// Number of torrents.
    #[must_use]
    pub fn len(&self) -> usize {
        self.torrents.len()
    }

    /// Tells whether no torrent is known.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.torrents.is_empty()
    }

    /// Number of peers of all torrents, those among them that have expired a short while ago.
    #[must_use]
    pub fn count(&self) -> usize {
        self.count
    }

    /// Memory in use, about.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// We have another id now: distances change.
    pub fn set_own(&mut self, own: NodeId) {
        let from = std::mem::replace(&mut self.own, own);
        let info_hash = |distance: Distance| own.distance(&from.distance_to(distance));
        self.torrents = std::mem::take(&mut self.torrents)
            .into_iter()
            .map(|(distance, peers)| (info_hash(distance), peers))
            .collect();
        self.dirty = std::mem::take(&mut self.dirty).into_iter().map(info_hash).collect();
        (self.swept_to, self.sampled_ms) = (None, None);
        self.sample.clear();
    }

    /// Tells whether a torrent would find room: if not, no token is given for it.
    #[must_use]
    pub fn has_room(&self, info_hash: &NodeId) -> bool {
        let distance = self.own.distance(info_hash);
        !self.is_full()
            || self.torrents.contains_key(&distance)
            || self.torrents.last_key_value().is_some_and(|(farthest, _)| distance < *farthest)
    }

    /// Takes in an announced peer; false if there is no room for it.
    pub fn announce(
        &mut self,
        clock_ms: u64,
        info_hash: &NodeId,
        address: SocketAddr,
        seed: bool,
    ) -> bool {
        let distance = self.own.distance(info_hash);
        while self.is_full() && !self.torrents.contains_key(&distance) {
            let farther = (Bound::Excluded(distance), Bound::Unbounded);
            if !self.make_room(clock_ms, farther, distance) {
                return false;
            }
        }
        let limits = self.limits;
        let oldest_ms = clock_ms.saturating_sub(limits.ttl_ms);
        let is_new = !self.torrents.contains_key(&distance);
        let peers = self.torrents.entry(distance).or_default();
        let before = if is_new { 0 } else { peers.bytes() + TORRENT_OVERHEAD };
        let count_before = peers.len();
        peers.expire(oldest_ms);
        let peer = Peer { address, seed, announced_ms: clock_ms };
        peers.insert(&peer, limits.peers_per_ip_max, limits.peers_max);
        self.bytes = self.bytes - before + peers.bytes() + TORRENT_OVERHEAD;
        self.count = self.count - count_before + peers.len();
        self.dirty.insert(distance);
        // A torrent that is there may grow, at the cost of others.
        let all = (Bound::Unbounded, Bound::Unbounded);
        while self.bytes > limits.bytes_max && self.make_room(clock_ms, all, distance) {}
        true
    }

    /// Draws up to `count` peers of a family that are not expired.
    pub fn peers(&self, clock_ms: u64, query: &PeerQuery<'_>, rng: &mut Rng) -> Vec<SocketAddr> {
        let Some(peers) = self.torrents.get(&self.own.distance(query.info_hash)) else {
            return Vec::new();
        };
        let oldest_ms = clock_ms.saturating_sub(self.limits.ttl_ms);
        let fits = |peer: &Peer| packed::is_alive(peer, oldest_ms) && !(query.noseed && peer.seed);
        // Each of them is as likely as any other: a reservoir.
        let mut drawn = Vec::with_capacity(query.count.min(64));
        for (index, peer) in peers.iter(query.family).filter(fits).enumerate() {
            if drawn.len() < query.count {
                drawn.push(peer.address);
                continue;
            }
            let place = rng.usize(..=index);
            if let Some(slot) = drawn.get_mut(place) {
                *slot = peer.address;
            }
        }
        drawn
    }

    /// The filters of a torrent's seeds and other peers (BEP 33); `None` if there are no peers.
    #[must_use]
    pub fn filters(&self, clock_ms: u64, info_hash: &NodeId) -> Option<(PeerFilter, PeerFilter)> {
        let peers = self.torrents.get(&self.own.distance(info_hash))?;
        let oldest_ms = clock_ms.saturating_sub(self.limits.ttl_ms);
        let (mut seeds, mut leeches) = (PeerFilter::default(), PeerFilter::default());
        for peer in [Family::V4, Family::V6].into_iter().flat_map(|family| peers.iter(family)) {
            if packed::is_alive(&peer, oldest_ms) {
                let filter = if peer.seed { &mut seeds } else { &mut leeches };
                filter.insert(peer.address.ip());
            }
        }
        Some((seeds, leeches))
    }

    /// Returns the sample of now: all info hashes if they are few, else the same ones for a while.
    pub fn sample(&mut self, clock_ms: u64, rng: &mut Rng) -> Sample {
        let all_fit = self.torrents.len() <= SAMPLES_MAX;
        let age_ms = self.sampled_ms.and_then(|sampled_ms| clock_ms.checked_sub(sampled_ms));
        let is_due = age_ms.is_none_or(|age_ms| age_ms >= self.limits.sample_interval_ms);
        let age_ms = if is_due { 0 } else { age_ms.unwrap_or(0) };
        if all_fit {
            self.sample = self.torrents.keys().copied().collect();
            self.sampled_ms = None;
        } else if is_due {
            self.draw_sample(rng);
            self.sampled_ms = Some(clock_ms);
        }
        let left_ms = self.limits.sample_interval_ms.saturating_sub(age_ms);
        let left = i64::try_from(left_ms.div_ceil(1000)).unwrap_or(i64::MAX);
        Sample {
            interval: if all_fit { 0 } else { left },
            count: self.torrents.len(),
            info_hashes: self
                .sample
                .iter()
                .flat_map(|distance| self.own.distance_to(*distance).0)
                .collect(),
        }
    }

    /// Forgets what is expired in the next `count` torrents; to be called now and then.
    pub fn sweep(&mut self, clock_ms: u64, count: usize) {
        let oldest_ms = clock_ms.saturating_sub(self.limits.ttl_ms);
        let start = self.swept_to.map_or(Bound::Unbounded, Bound::Excluded);
        let next: Vec<Distance> = self
            .torrents
            .range((start, Bound::Unbounded))
            .map(|(distance, _)| *distance)
            .take(count)
            .collect();
        self.swept_to = (next.len() == count).then(|| next.last().copied()).flatten();
        next.into_iter().for_each(|distance| self.expire(distance, oldest_ms));
    }

    /// Takes out a torrent whose record has changed: its info hash, the record to be written under
    /// it, and when that expires; with `None` it is to be removed.
    pub fn pop_dirty(&mut self) -> Option<(NodeId, Option<PeerRecord>)> {
        let distance = self.dirty.pop_first()?;
        let record = self
            .torrents
            .get(&distance)
            .map(|peers| (peers.encode(), peers.newest_ms().saturating_add(self.limits.ttl_ms)));
        Some((self.own.distance_to(distance), record))
    }

    /// Takes in a record that was written in an earlier life; false if it is none, or too much.
    pub fn restore(&mut self, info_hash: &NodeId, record: &[u8]) -> bool {
        let Some(peers) = PackedPeers::decode(record, self.limits.peers_max) else { return false };
        let distance = self.own.distance(info_hash);
        if self.is_full() || self.torrents.contains_key(&distance) {
            return false;
        }
        self.bytes += peers.bytes() + TORRENT_OVERHEAD;
        self.count += peers.len();
        self.torrents.insert(distance, peers);
        true
    }

    fn is_full(&self) -> bool {
        self.torrents.len() >= self.limits.torrents_max || self.bytes >= self.limits.bytes_max
    }

    /// Removes a torrent of those, but for one: among the farthest, one without living peers, else
    /// the one with the fewest.
    fn make_room(
        &mut self,
        clock_ms: u64,
        range: (Bound<Distance>, Bound<Distance>),
        kept: Distance,
    ) -> bool {
        let oldest_ms = clock_ms.saturating_sub(self.limits.ttl_ms);
        let worst = self
            .torrents
            .range(range)
            .rev()
            .filter(|(distance, _)| **distance != kept)
            .take(CANDIDATES_MAX)
            .min_by_key(|(_, peers)| peers.count_alive(oldest_ms))
            .map(|(distance, _)| *distance);
        let Some(worst) = worst else { return false };
        self.forget(worst);
        true
    }

    fn expire(&mut self, distance: Distance, oldest_ms: u64) {
        let Some(peers) = self.torrents.get_mut(&distance) else { return };
        let (before, count_before) = (peers.bytes(), peers.len());
        if !peers.expire(oldest_ms) {
            return;
        }
        self.bytes = self.bytes - before + peers.bytes();
        self.count = self.count - count_before + peers.len();
        self.dirty.insert(distance);
        if peers.is_empty() {
            self.forget(distance);
        }
    }

    fn forget(&mut self, distance: Distance) {
        if let Some(peers) = self.torrents.remove(&distance) {
            self.bytes -= peers.bytes() + TORRENT_OVERHEAD;
            self.count -= peers.len();
            self.dirty.insert(distance);
        }
    }

    fn draw_sample(&mut self, rng: &mut Rng) {
        self.sample.clear();
        // Few tries more than needed: a place may be drawn twice.
        for _ in 0..4 * SAMPLES_MAX {
            let from = Distance(NodeId::random(rng).0);
            let next = self.torrents.range(from..).next().or_else(|| self.torrents.iter().next());
            let Some((distance, _)) = next else { return };
            if !self.sample.contains(distance) {
                self.sample.push(*distance);
            }
            if self.sample.len() == SAMPLES_MAX {
                return;
            }
        }
    }
}

/// Which peers are wanted.
#[derive(Clone, Copy, Debug)]
pub struct PeerQuery<'a> {
    /// Of which torrent.
    pub info_hash: &'a NodeId,
    /// Of which family: they are never mixed.
    pub family: Family,
    /// Without seeds.
    pub noseed: bool,
    /// How many at most.
    pub count: usize,
}

impl NodeId {
    /// The id at a distance from this one.
    fn distance_to(&self, distance: Distance) -> Self {
        Self(self.distance(&Self(distance.0)).0)
    }
}
