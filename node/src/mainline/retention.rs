//! [`Retention`]: which items stay when there are too many.
//!
//! The engine drops what is expired by itself. If more is held than allowed, the rest goes by a
//! score: bits that the target shares with our id, plus the binary logarithm of how many different
//! networks
//! have asked for it lately. What is far and unasked for goes first. Nothing is kept in memory for
//! each item: popularity is a sketch of fixed size, and the items themselves are walked page by
//! page, the farthest class of distance first.
//!
//! ```text
//! set_held ──> poll_page ──> (engine: keys of a prefix) ──> on_page ──> targets to remove
//! ```

use std::net::IpAddr;

use crate::kademlia::NodeId;

use super::siphash::SipKey;
use super::subnet::Subnet;

/// Items looked at in one step.
pub const PAGE_ITEMS_MAX: usize = 256;
/// After so many items asked for, popularity counts half.
const ASKED_MAX: u32 = 1 << 20;
const ROWS: usize = 4;
const ROW_LEN: usize = 1 << 14;
const SEEN_BITS: usize = 1 << 20;
/// A score that no item reaches: 160 shared bits and a full counter.
const SCORE_MAX: u32 = 170;

/// A count-min sketch of networks that asked for a target, with a filter of who did.
#[derive(Clone, Debug)]
struct Popularity {
    key: SipKey,
    counters: Vec<u8>,
    seen: Vec<u8>,
    asked: u32,
}

impl Popularity {
    fn new(key: SipKey) -> Self {
        let (counters, seen) = (vec![0; ROWS * ROW_LEN], vec![0; SEEN_BITS / 8]);
        Self { key, counters, seen, asked: 0 }
    }

    fn ask(&mut self, target: &NodeId, from: IpAddr) {
        let subnet = match Subnet::of(from) {
            Subnet::V4([a, b, c]) => [4, a, b, c, 0, 0, 0],
            Subnet::V6([a, b, c, d, e, f]) => [6, a, b, c, d, e, f],
        };
        let bit = self.key.hash(&[&target.0, &subnet]) as usize % SEEN_BITS;
        let mask = 1 << (bit % 8);
        if self.seen[bit / 8] & mask != 0 {
            return;
        }
        self.seen[bit / 8] |= mask;
        for place in self.places(target) {
            self.counters[place] = self.counters[place].saturating_add(1);
        }
        self.asked += 1;
        if self.asked >= ASKED_MAX / 8 {
            self.asked = 0;
            self.seen.fill(0);
            self.counters.iter_mut().for_each(|counter| *counter /= 2);
        }
    }

    fn score(&self, target: &NodeId) -> u32 {
        let count = self.places(target).map(|place| self.counters[place]).into_iter().min();
        u8::BITS - count.unwrap_or(0).leading_zeros()
    }

    fn places(&self, target: &NodeId) -> [usize; ROWS] {
        let hash = self.key.hash(&[&target.0]);
        std::array::from_fn(|row| row * ROW_LEN + ((hash >> (16 * row)) as usize & (ROW_LEN - 1)))
    }
}

/// An item that is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// Where it belongs.
    pub target: NodeId,
    /// When it expires, in ms since 1970.
    pub expiry_ms: u64,
}

/// Which items to look at next, in the order of their targets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Page {
    /// They begin with these bits ...
    pub prefix: NodeId,
    /// ... so many of them.
    pub prefix_bits: u32,
    /// They come after this one.
    pub after: Option<NodeId>,
    /// At most so many.
    pub count: usize,
}

/// Decides who stays.
#[derive(Clone, Debug)]
pub struct Retention {
    own: NodeId,
    items_max: u64,
    held: u64,
    popularity: Popularity,
    /// Items with at most this score go.
    threshold: u32,
    class: u32,
    after: Option<NodeId>,
}

impl Retention {
    /// Starts with nothing held.
    #[must_use]
    pub fn new(own: NodeId, items_max: u64, seed: [u8; 16]) -> Self {
        let popularity = Popularity::new(SipKey(seed).derive(3));
        Self { own, items_max, held: 0, popularity, threshold: 0, class: 0, after: None }
    }

    /// We have another id now.
    pub fn set_own(&mut self, own: NodeId) {
        self.own = own;
        (self.threshold, self.class, self.after) = (0, 0, None);
    }

    /// Takes from the engine how many items there are.
    pub fn set_held(&mut self, held: u64) {
        self.held = held;
        if held <= self.low_water() {
            (self.threshold, self.class, self.after) = (0, 0, None);
        }
    }

    /// Takes note of who asks for an item.
    pub fn on_get(&mut self, target: &NodeId, from: IpAddr) {
        self.popularity.ask(target, from);
    }

    /// Tells whether an item for this target would stay.
    #[must_use]
    pub fn admits(&self, target: &NodeId) -> bool {
        if self.held < self.items_max {
            return true;
        }
        self.held < self.utmost() && self.score(target) > self.threshold
    }

    /// Returns what to look at next, while there are too many.
    #[must_use]
    pub fn poll_page(&self) -> Option<Page> {
        if self.held <= self.items_max {
            return None;
        }
        let class = self.class.min(159);
        let mut prefix = self.own;
        prefix.0[(class / 8) as usize] ^= 0x80 >> (class % 8);
        let count = PAGE_ITEMS_MAX;
        Some(Page { prefix, prefix_bits: class + 1, after: self.after, count })
    }

    /// Takes the page and says whom to remove; `is_last`: there are no more with the prefix.
    pub fn on_page(&mut self, page: &[Held], is_last: bool) -> Vec<NodeId> {
        let excess = self.held.saturating_sub(self.low_water());
        let mut worst: Vec<(u32, u64, NodeId)> = page
            .iter()
            .map(|held| (self.score(&held.target), held.expiry_ms, held.target))
            .filter(|(score, ..)| *score <= self.threshold)
            .collect();
        worst.sort_unstable();
        worst.truncate(usize::try_from(excess).unwrap_or(usize::MAX));
        self.held -= worst.len() as u64;
        self.after = page.last().map(|held| held.target).filter(|_| !is_last);
        if is_last {
            self.class += 1;
            // Nothing farther is left to go: nearer ones, and more popular ones, have to.
            if self.class > self.threshold.min(159) {
                self.threshold = (self.threshold + 1).min(SCORE_MAX);
                self.class = 0;
            }
        }
        worst.into_iter().map(|(_, _, target)| target).collect()
    }

    fn score(&self, target: &NodeId) -> u32 {
        self.own.shared_bits(target) + self.popularity.score(target)
    }

    /// While it is being found out who has to go, only so many more come in: that may take several
    /// walks over all items where many are asked for.
    fn utmost(&self) -> u64 {
        self.items_max + (self.items_max / 64).max(1)
    }

    /// Making room once makes it for a while.
    fn low_water(&self) -> u64 {
        self.items_max - self.items_max / 64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fastrand::Rng;
    use std::collections::BTreeMap;

    /// Runs the walk over a model of the engine until it rests; returns what is left.
    fn evict(retention: &mut Retention, items: &mut BTreeMap<NodeId, u64>) {
        let own = retention.own;
        let mut steps = 0;
        while let Some(page) = retention.poll_page() {
            let after = page.after.unwrap_or_default();
            let matching: Vec<Held> = items
                .iter()
                .filter(|(target, _)| page.prefix.shared_bits(target) >= page.prefix_bits)
                .filter(|(target, _)| page.after.is_none() || **target > after)
                .map(|(target, expiry_ms)| Held { target: *target, expiry_ms: *expiry_ms })
                .take(page.count)
                .collect();
            assert!(
                matching.iter().all(|held| own.shared_bits(&held.target) + 1 == page.prefix_bits)
            );
            let is_last = matching.len() < page.count;
            for target in retention.on_page(&matching, is_last) {
                assert!(items.remove(&target).is_some());
            }
            steps += 1;
            assert!(steps < 50_000, "the walk ends");
        }
    }

    #[test]
    fn far_items_go_first_and_popular_ones_stay() {
        let mut rng = Rng::with_seed(1);
        let own = NodeId::random(&mut rng);
        let mut items: BTreeMap<NodeId, u64> =
            (0..4_000).map(|_| (NodeId::random(&mut rng), rng.u64(..))).collect();
        let mut retention = Retention::new(own, 1_000, [2; 16]);
        let popular: Vec<NodeId> =
            items.keys().filter(|id| own.shared_bits(id) == 0).take(5).copied().collect();
        for target in &popular {
            (0..200).for_each(|net| retention.on_get(target, IpAddr::from([8, 8, net, 1])));
        }
        let near: Vec<NodeId> =
            items.keys().filter(|id| own.shared_bits(id) >= 4).copied().collect();
        retention.set_held(items.len() as u64);
        evict(&mut retention, &mut items);
        assert!(items.len() <= 1_000 && items.len() > 900, "{}", items.len());
        assert!(near.iter().chain(&popular).all(|target| items.contains_key(target)));
    }

    /// Popular items are found to have to go only after several walks: meanwhile no flood gets in.
    #[test]
    fn flood_does_not_outrun_the_search_for_whom_to_drop() {
        let own = NodeId([0; 20]);
        let mut retention = Retention::new(own, 6_400, [1; 16]);
        let mut rng = Rng::with_seed(9);
        let mut held = 0;
        for _ in 0..50_000 {
            let target = NodeId::random(&mut rng);
            retention.on_get(&target, IpAddr::from(rng.u32(..).to_be_bytes()));
            held += u64::from(retention.admits(&target));
            retention.set_held(held);
        }
        assert_eq!(held, 6_400 + 100);
    }

    #[test]
    fn one_network_makes_nothing_popular() {
        let mut retention = Retention::new(NodeId([0; 20]), 10, [2; 16]);
        let target = NodeId([0xff; 20]);
        (0..250).for_each(|last| retention.on_get(&target, IpAddr::from([8, 8, 8, last])));
        assert_eq!(retention.score(&target), 1);
    }

    #[test]
    fn full_store_admits_what_is_nearer() {
        let mut retention = Retention::new(NodeId([0; 20]), 10, [2; 16]);
        let (far, near) = (NodeId([0xff; 20]), NodeId([0x01; 20]));
        assert!(retention.admits(&far));
        retention.set_held(10);
        assert!(!retention.admits(&far) && retention.admits(&near));
        retention.set_held(5);
        assert!(retention.admits(&far));
    }
}
