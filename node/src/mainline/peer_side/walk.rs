//! [`Walk`]: a walk over records in the order of their key ids, over all shards, page by page.
//!
//! ```text
//! Begin ──> Scanning (one scan a shard) ──> Reading (values, if wanted) ──> Handing ──> over
//!   ^                                                                          │
//!   └──────────── nothing found yet, or all are wanted <───────────────────────┘
//! ```
//!
//! A shard's scan ends at a key of its own: what is known of all shards ends at the first of them.

use storage::ScannedKey;
use wal::record::Key;

use bytes::Bytes;

use super::keys::{self, KeyRange};
use super::records::Outcome;
use crate::kademlia::NodeId;
use crate::mainline::node::event::Scanned;
use crate::mainline::retention::{Held, Page};

/// Values that a walk reads at the same time.
const WALK_READS_MAX: usize = 64;
/// Records of peers in a page.
const PEERS_PAGE_LEN: usize = 256;

/// What is walked for. At most one of each at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum WalkKind {
    /// Items to be republished, with their values.
    Scan,
    /// Items that may have to go.
    Page,
    /// Peers of an earlier life, with their values, all of them.
    Peers,
}

/// What is to be done next.
#[derive(Debug)]
pub(super) enum WalkStep {
    /// Something has to come first.
    Wait,
    /// Scan every shard, about so many keys of each in proportion.
    Scan {
        /// From here on.
        from: Key,
        /// Keys of all shards together.
        count: usize,
    },
    /// Read a value.
    Read {
        /// Names it.
        index: usize,
        /// The key.
        key: Key,
        /// The user key.
        user_key: Bytes,
    },
    /// Tell this.
    Hand(Outcome),
    /// There is nothing more to do.
    Over,
}

#[derive(Debug, PartialEq, Eq)]
enum Stage {
    Begin,
    Scanning,
    Reading,
    Handing,
    Over,
}

/// A walk.
#[derive(Debug)]
pub(super) struct Walk {
    kind: WalkKind,
    /// What is still to be walked; `None`: nothing.
    range: Option<KeyRange>,
    count: usize,
    stage: Stage,
    /// Scans under way.
    scans: usize,
    /// Where the scans that have ended know no more.
    bound: Option<Key>,
    found: Vec<(ScannedKey, Option<Bytes>)>,
    /// The next whose value is to be read.
    next: usize,
    reading: usize,
}

impl Walk {
    /// For items to be republished: those behind a target.
    pub(super) fn for_scan(after: Option<&NodeId>, count: usize) -> Self {
        let all = KeyRange { from: Key([0; 20]), until: None };
        Self::new(WalkKind::Scan, after.map_or(Some(all), KeyRange::behind), count)
    }

    /// For items that may have to go.
    pub(super) fn for_page(page: &Page) -> Self {
        let range = KeyRange::of_prefix(&page.prefix, page.prefix_bits);
        let range = page.after.as_ref().map_or(Some(range), |after| range.after(after));
        Self::new(WalkKind::Page, range, page.count)
    }

    /// For all peers.
    pub(super) fn for_peers() -> Self {
        Self::new(WalkKind::Peers, Some(KeyRange::of_peers()), PEERS_PAGE_LEN)
    }

    fn new(kind: WalkKind, range: Option<KeyRange>, count: usize) -> Self {
        Self {
            kind,
            range,
            count: count.max(1),
            stage: Stage::Begin,
            scans: 0,
            bound: None,
            found: Vec::new(),
            next: 0,
            reading: 0,
        }
    }

    pub(super) fn kind(&self) -> WalkKind {
        self.kind
    }

    /// A scan has been begun.
    pub(super) fn on_asked(&mut self) {
        self.scans += 1;
    }

    /// A scan has ended.
    pub(super) fn on_page(&mut self, keys: &[ScannedKey], next: Option<Key>) {
        self.scans -= 1;
        let wanted = keys.iter().filter(|key| self.kind.wants(key));
        self.found.extend(wanted.map(|key| (key.clone(), None)));
        self.bound = match (self.bound, next) {
            (Some(bound), Some(next)) => Some(bound.min(next)),
            (bound, next) => bound.or(next),
        };
        if self.scans == 0 {
            self.end_page();
        }
    }

    /// A value has been read, or could not be.
    pub(super) fn on_value(&mut self, index: usize, value: Option<Bytes>) {
        self.reading -= 1;
        if let Some((_, slot)) = self.found.get_mut(index) {
            *slot = value;
        }
    }

    /// Tells what is to be done next.
    pub(super) fn step(&mut self) -> WalkStep {
        match self.stage {
            Stage::Begin => match self.range {
                Some(KeyRange { from, .. }) => {
                    self.stage = Stage::Scanning;
                    (self.bound, self.next) = (None, 0);
                    WalkStep::Scan { from, count: self.count }
                }
                None => {
                    self.stage = Stage::Handing;
                    self.step()
                }
            },
            Stage::Scanning => WalkStep::Wait,
            Stage::Reading => self.read(),
            Stage::Handing => self.hand(),
            Stage::Over => WalkStep::Over,
        }
    }

    /// All shards have told: keeps what all of them know, in order, and finds out what is left.
    fn end_page(&mut self) {
        let range = self.range.unwrap_or(KeyRange { from: Key([0; 20]), until: None });
        let end = match (self.bound, range.until) {
            (Some(bound), Some(until)) => Some(bound.min(until)),
            (bound, until) => bound.or(until),
        };
        self.found.retain(|(key, _)| end.is_none_or(|end| key.key < end));
        self.found.sort_by_key(|(key, _)| key.key);
        let is_last = self.bound.is_none() || self.bound >= range.until && range.until.is_some();
        let rest = self.bound.filter(|_| !is_last).map(|from| KeyRange { from, ..range });
        self.range = match self.found.get(self.count) {
            Some((first_left, _)) => Some(KeyRange { from: first_left.key, ..range }),
            None => rest,
        };
        self.found.truncate(self.count);
        let is_done = !self.found.is_empty() || self.range.is_none();
        self.stage = match self.kind {
            _ if !is_done => Stage::Begin,
            WalkKind::Page => Stage::Handing,
            WalkKind::Scan | WalkKind::Peers => Stage::Reading,
        };
    }

    fn read(&mut self) -> WalkStep {
        if self.reading < WALK_READS_MAX
            && let Some((key, _)) = self.found.get(self.next)
        {
            let index = self.next;
            self.next += 1;
            self.reading += 1;
            return WalkStep::Read { index, key: key.key, user_key: key.user_key.clone() };
        }
        if self.reading > 0 {
            return WalkStep::Wait;
        }
        self.stage = Stage::Handing;
        self.hand()
    }

    fn hand(&mut self) -> WalkStep {
        let is_last = self.range.is_none();
        if self.kind != WalkKind::Peers {
            self.stage = Stage::Over;
        }
        match self.kind {
            WalkKind::Scan => {
                let items = self
                    .found
                    .drain(..)
                    .map(|(key, record)| Scanned { target: NodeId(key.key.0), record });
                WalkStep::Hand(Outcome::Scanned(items.collect(), is_last))
            }
            WalkKind::Page => {
                let items = self
                    .found
                    .drain(..)
                    .map(|(key, _)| Held { target: NodeId(key.key.0), expiry_ms: key.expiry_ms });
                WalkStep::Hand(Outcome::Page(items.collect(), is_last))
            }
            WalkKind::Peers => self.hand_peers(is_last),
        }
    }

    fn hand_peers(&mut self, is_last: bool) -> WalkStep {
        while let Some((key, value)) = self.found.pop() {
            if let (Some(info_hash), Some(value)) = (keys::info_hash_of(&key.user_key), value) {
                return WalkStep::Hand(Outcome::Peers(info_hash, value));
            }
        }
        if !is_last {
            self.stage = Stage::Begin;
            return self.step();
        }
        self.stage = Stage::Over;
        WalkStep::Hand(Outcome::PeersRestored)
    }
}

impl WalkKind {
    fn wants(self, key: &ScannedKey) -> bool {
        match self {
            Self::Scan | Self::Page => key.user_key == keys::ITEM,
            Self::Peers => keys::info_hash_of(&key.user_key).is_some(),
        }
    }
}

#[cfg(test)]
mod tests {
    use wal::record::Version;

    use super::super::keys::PeersKey;
    use super::*;

    fn key(first: u8, shard: u8, user_key: &'static [u8]) -> ScannedKey {
        let mut id = [0; 20];
        (id[0], id[19]) = (first, shard);
        let user_key = Bytes::from_static(user_key);
        ScannedKey { key: Key(id), user_key, version: Version::default(), expiry_ms: 9 }
    }

    /// Two shards, each a sorted list of keys, of which a scan gives two.
    fn scan(walk: &mut Walk, shards: &[Vec<ScannedKey>], from: Key) {
        for _ in shards {
            walk.on_asked();
        }
        for keys in shards {
            let behind: Vec<_> = keys.iter().filter(|key| key.key >= from).cloned().collect();
            let next = behind.get(2).map(|key| key.key);
            walk.on_page(&behind[..behind.len().min(2)], next);
        }
    }

    /// Walks to the end; the first bytes of what was found, by hand-over.
    fn walk_all(mut walk: Walk, shards: &[Vec<ScannedKey>]) -> (Vec<u8>, bool) {
        loop {
            match walk.step() {
                WalkStep::Scan { from, .. } => scan(&mut walk, shards, from),
                WalkStep::Read { index, key, .. } => {
                    walk.on_value(index, Some(Bytes::copy_from_slice(&key.0[..1])));
                }
                WalkStep::Hand(Outcome::Scanned(items, is_last)) => {
                    let records = items.iter().map(|item| item.record.as_ref().unwrap()[0]);
                    assert!(matches!(walk.step(), WalkStep::Over));
                    return (records.collect(), is_last);
                }
                WalkStep::Hand(Outcome::Page(items, is_last)) => {
                    return (items.iter().map(|item| item.target.0[0]).collect(), is_last);
                }
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn shards_are_merged_in_order_and_none_is_left_out() {
        let shards = [[1, 5, 6, 9].as_slice(), [2, 3, 4, 8].as_slice()].map(|firsts| {
            firsts.iter().map(|first| key(*first, 1, keys::ITEM)).collect::<Vec<_>>()
        });
        let (mut seen, mut after) = (Vec::new(), None);
        loop {
            let (found, is_last) = walk_all(Walk::for_scan(after.as_ref(), 3), &shards);
            assert!(found.len() <= 3 && !found.is_empty());
            seen.extend_from_slice(&found);
            if is_last {
                break;
            }
            let last = key(*found.last().unwrap(), 1, keys::ITEM).key.0;
            after = Some(NodeId(last));
        }
        assert_eq!(seen, [1, 2, 3, 4, 5, 6, 8, 9]);
    }

    #[test]
    fn other_records_are_passed_over_and_do_not_end_a_walk() {
        let mut keys: Vec<_> = (1..9).map(|first| key(first, 0, keys::STATE)).collect();
        keys.push(key(9, 0, keys::ITEM));
        assert_eq!(walk_all(Walk::for_scan(None, 2), &[keys]), (vec![9], true));
        assert_eq!(walk_all(Walk::for_scan(None, 2), &[vec![]]), (vec![], true));
        let last = NodeId([0xFF; 20]);
        assert_eq!(walk_all(Walk::for_scan(Some(&last), 2), &[vec![]]), (vec![], true));
    }

    #[test]
    fn page_ends_with_its_prefix() {
        let keys: Vec<_> =
            [0x0F, 0x10, 0x11, 0x12, 0x20, 0x21].map(|first| key(first, 0, keys::ITEM)).to_vec();
        let page = |after, count| {
            Walk::for_page(&Page { prefix: NodeId([0x10; 20]), prefix_bits: 4, after, count })
        };
        let shards = [keys];
        assert_eq!(walk_all(page(None, 2), &shards), (vec![0x10, 0x11], false));
        let after = Some(NodeId(key(0x11, 0, keys::ITEM).key.0));
        assert_eq!(walk_all(page(after, 2), &shards), (vec![0x12], true));
    }

    #[test]
    fn all_peers_come_back() {
        let hashes: Vec<NodeId> = (0..7).map(|number| NodeId([number; 20])).collect();
        let mut keys: Vec<_> = hashes
            .iter()
            .map(|info_hash| {
                let key = PeersKey::of(info_hash);
                let user_key = Bytes::copy_from_slice(key.key().user_key);
                let version = Version::default();
                ScannedKey { key: key.key().id, user_key, version, expiry_ms: 0 }
            })
            .collect();
        keys.sort_by_key(|key| key.key);
        let (mut walk, mut found) = (Walk::for_peers(), Vec::new());
        let shards = [keys];
        loop {
            match walk.step() {
                WalkStep::Scan { from, .. } => scan(&mut walk, &shards, from),
                WalkStep::Read { index, .. } => walk.on_value(index, Some(Bytes::new())),
                WalkStep::Hand(Outcome::Peers(info_hash, _)) => found.push(info_hash),
                WalkStep::Hand(Outcome::PeersRestored) => break,
                other => panic!("{other:?}"),
            }
        }
        found.sort();
        assert_eq!(found, hashes);
        assert!(matches!(walk.step(), WalkStep::Over));
    }
}
