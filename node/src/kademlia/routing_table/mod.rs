//! [`RoutingTable`]: a bucket for each length of the prefix shared with our id, and the walk that
//! finds the closest nodes to any target.
//!
//! Kademlia §2.4 splits only the bucket that holds our own id; kept per shared prefix from the
//! start, that comes to the same table without the splitting. The walk over buckets visits them in
//! the order of their distance from the target, so that finding k nodes sorts a bucket or two and
//! touches nothing else: O(k), however full the table is.

use std::net::{IpAddr, Ipv4Addr};

use fastrand::Rng;

use crate::io::Monotonic;

use super::distance::Distance;
use super::k_bucket::{BucketSizes, Contact, Entry, Health, HealthLimits, KBucket, Placement};
use super::node_id::{ID_BITS, NodeId};
use super::rules::ContactRules;

#[cfg(test)]
mod tests;

/// Sizes and rules of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableLimits {
    /// Nodes per bucket.
    pub k: usize,
    /// Nodes in the first buckets, where that is more: few hops are saved so cheaply elsewhere.
    pub first_buckets: [usize; 4],
    /// When nodes are questionable and bad.
    pub health: HealthLimits,
    /// How many nodes may come from one place; `None`: any number.
    pub crowd: Option<CrowdLimits>,
    /// A bucket that has seen no lookup for so long is refreshed (Kademlia §2.3: one hour).
    pub refresh_after_ms: u64,
}

/// How many nodes may come from one place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CrowdLimits {
    /// Nodes of one IP address in the table.
    pub per_address: usize,
    /// Nodes of one /24 or /64 in a bucket.
    pub per_subnet_and_bucket: usize,
    /// Nodes of one /24 or /64 in the table.
    pub per_subnet: usize,
    /// Whether loopback is not counted: tests and benches.
    pub loopback_exempt: bool,
}

impl CrowdLimits {
    /// BitTorrent's DHT: one node for each address, and few of a network.
    pub const MAINLINE: Self =
        Self { per_address: 1, per_subnet_and_bucket: 1, per_subnet: 10, loopback_exempt: false };
}

impl TableLimits {
    /// A private cluster: k 20, everyone may sit on one machine.
    pub const PRIVATE: Self = Self {
        k: 20,
        first_buckets: [0; 4],
        health: HealthLimits { questionable_after_ms: 15 * 60 * 1000, failures_max: 2 },
        crowd: None,
        refresh_after_ms: 60 * 60 * 1000,
    };

    /// BitTorrent's DHT: k 8, larger first buckets, one node per address.
    pub const MAINLINE: Self = Self {
        k: 8,
        first_buckets: [128, 64, 32, 16],
        health: HealthLimits { questionable_after_ms: 15 * 60 * 1000, failures_max: 2 },
        crowd: Some(CrowdLimits::MAINLINE),
        refresh_after_ms: 15 * 60 * 1000,
    };

    fn sizes(&self, bucket: usize) -> BucketSizes {
        let first = self.first_buckets.get(bucket).copied().unwrap_or(0);
        BucketSizes { capacity: self.k.max(first), waiting_max: self.k }
    }
}

/// What became of a node that answered or asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// It is in the table.
    Present,
    /// It waits. The node named, if any, is questionable: its silence would make room.
    Waiting(Option<Contact>),
    /// It asked us and there is room for it: an answer of its own would bring it in.
    Verify,
    /// It is not wanted.
    Refused(Refusal),
}

/// Why a node is not wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It has our own id.
    OwnId,
    /// Its id belongs to another address that answers.
    Impostor,
    /// Too many nodes come from its IP address.
    Address,
    /// Too many nodes come from its subnet.
    Subnet,
    /// Its bucket is full.
    Full,
}

/// The nodes we know, by distance from us.
#[derive(Clone, Debug)]
pub struct RoutingTable {
    own: NodeId,
    limits: TableLimits,
    rules: ContactRules,
    buckets: Vec<KBucket>,
    /// Which buckets have nodes, as a distance has its bits.
    occupied: [u64; 3],
    /// When each bucket saw its last lookup.
    looked_up: Vec<Monotonic>,
    len: usize,
}

impl RoutingTable {
    /// A table that knows nobody.
    #[must_use]
    pub fn new(own: NodeId, limits: TableLimits, now: Monotonic) -> Self {
        Self {
            own,
            limits,
            rules: ContactRules::NONE,
            buckets: vec![KBucket::default(); ID_BITS as usize],
            occupied: [0; 3],
            looked_up: vec![now; ID_BITS as usize],
            len: 0,
        }
    }

    /// Prefers nodes by these rules from now on.
    #[must_use]
    pub fn with_rules(self, rules: ContactRules) -> Self {
        Self { rules, ..self }
    }

    /// Takes another id of ours. Nodes move to the buckets they belong to now; where these are
    /// full, those stay that have answered, then those known for longest.
    pub fn set_own(&mut self, now: Monotonic, own: NodeId) {
        let mut known: Vec<Entry> = self.buckets.iter_mut().flat_map(KBucket::take_all).collect();
        known
            .sort_by_key(|entry| (entry.failures > 0, entry.last_seen.is_none(), entry.first_seen));
        *self = Self::new(own, self.limits, now).with_rules(self.rules);
        for entry in known {
            self.admit(now, entry);
        }
    }

    /// Returns our id.
    #[must_use]
    pub fn own(&self) -> NodeId {
        self.own
    }

    /// Returns the number of nodes, bad ones included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Tells whether nobody is known.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns all nodes, the farthest buckets first.
    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.buckets.iter().flat_map(KBucket::entries)
    }

    /// Returns bucket `shared_bits`: the nodes that share exactly so many leading bits with us.
    #[must_use]
    pub fn bucket(&self, shared_bits: u32) -> &KBucket {
        &self.buckets[shared_bits as usize]
    }

    /// Takes note of an answer to a query of ours: what admits a node. Where one node is allowed
    /// for each address, it takes the place of an id that the address had before.
    pub fn on_answer(&mut self, now: Monotonic, contact: Contact, rtt_us: u32) -> Admission {
        if self.limits.crowd.is_some() && self.find(&contact.id).is_none() {
            let same = |entry: &&Entry| entry.contact.address == contact.address;
            let before = self.entries().find(same).map(|entry| entry.contact.id);
            before.and_then(|id| self.remove(&id));
        }
        self.admit(now, Entry::answered(now, contact, rtt_us))
    }

    /// Takes in a node that was in the table in an earlier life of ours, as questionable.
    pub fn restore(&mut self, now: Monotonic, contact: Contact) -> Admission {
        if self.find(&contact.id).is_some() {
            return Admission::Present;
        }
        self.admit(now, Entry::remembered(now, contact))
    }

    /// Takes note of a query from a node. It enters only once it has answered one of ours.
    pub fn on_query(&mut self, now: Monotonic, contact: Contact) -> Admission {
        let Some(bucket) = self.bucket_of(&contact.id) else {
            return Admission::Refused(Refusal::OwnId);
        };
        if self.buckets[bucket].on_query(now, &contact) {
            return Admission::Present;
        }
        let is_full = self.buckets[bucket].entries().len() >= self.limits.sizes(bucket).capacity;
        if is_full && !self.would_make_room(now, bucket, &contact) {
            return Admission::Refused(Refusal::Full);
        }
        self.refusal(bucket, &contact).map_or(Admission::Verify, Admission::Refused)
    }

    /// Takes note of a query of ours that had no answer.
    pub fn on_failure(&mut self, now: Monotonic, contact: &Contact) {
        let Some(bucket) = self.bucket_of(&contact.id) else { return };
        let health = self.buckets[bucket].on_failure(now, contact, self.limits.health);
        if health == Some(Health::Bad)
            && let Some(next) = self.next_waiting(bucket, &contact.id)
        {
            self.buckets[bucket].replace(&contact.id, next);
        }
    }

    /// Forgets a node.
    pub fn remove(&mut self, id: &NodeId) -> Option<Contact> {
        let bucket = self.bucket_of(id)?;
        let before = self.buckets[bucket].entries().len();
        let removed = self.buckets[bucket].remove(id)?;
        if let Some(next) = self.next_waiting(bucket, id) {
            self.buckets[bucket].push(next);
        }
        self.count(bucket, before);
        Some(removed.contact)
    }

    /// Finds a node by its id.
    #[must_use]
    pub fn find(&self, id: &NodeId) -> Option<&Entry> {
        self.buckets[self.bucket_of(id)?].find(id)
    }

    /// Appends to `found` the up to `count` nodes closest to `target` that are not bad, the closest
    /// first.
    pub fn closest(&self, now: Monotonic, target: &NodeId, count: usize, found: &mut Vec<Contact>) {
        let end = found.len() + count;
        let mut nearest = Vec::with_capacity(count);
        for bucket in self.buckets_by_distance(target) {
            if found.len() >= end {
                return;
            }
            let entries = self.buckets[bucket].entries();
            self.nearest(now, target, (entries, end - found.len()), &mut nearest);
            found.extend(nearest.iter().map(|(_, entry)| entry.contact));
        }
    }

    /// Puts the up to `count` entries that are nearest to `target`, and not bad, into `nearest`,
    /// with the first bits of their distances. The first bucket may have over a hundred entries,
    /// and every other query asks for some of them: nearly all are passed over at a glance.
    fn nearest<'a>(
        &self,
        now: Monotonic,
        target: &NodeId,
        (entries, count): (&'a [Entry], usize),
        nearest: &mut Vec<(u64, &'a Entry)>,
    ) {
        nearest.clear();
        let first = target.first_bits();
        for entry in entries {
            let bits = entry.contact.id.first_bits() ^ first;
            let is_full = nearest.len() == count;
            if is_full && nearest.last().is_none_or(|(last, _)| bits > *last) {
                continue;
            }
            if entry.health(now, self.limits.health) == Health::Bad {
                continue;
            }
            let at = nearest.partition_point(|(other_bits, other)| {
                let distance = |entry: &Entry| entry.contact.id.distance(target);
                *other_bits < bits || (*other_bits == bits && distance(other) < distance(entry))
            });
            if at == count {
                continue;
            }
            if is_full {
                nearest.pop();
            }
            nearest.insert(at, (bits, entry));
        }
    }

    /// Notes that a lookup of `target` is under way: its bucket needs no refresh for a while.
    pub fn on_lookup(&mut self, now: Monotonic, target: &NodeId) {
        if let Some(bucket) = self.bucket_of(target) {
            self.looked_up[bucket] = now;
        }
    }

    /// Returns a target whose lookup refreshes a bucket that is due, and notes the lookup. Buckets
    /// nearer to us than all nodes we know are refreshed with the nearest that has one.
    pub fn poll_refresh(&mut self, now: Monotonic, rng: &mut Rng) -> Option<NodeId> {
        let due = |seen: &Monotonic| now >= seen.plus_millis(self.limits.refresh_after_ms);
        let bucket = self.looked_up[..self.refreshed()].iter().position(due)?;
        self.looked_up[bucket] = now;
        Some(self.own.random_sharing(bucket as u32, rng))
    }

    /// Returns when [`poll_refresh`](Self::poll_refresh) has something next.
    #[must_use]
    pub fn refresh_deadline(&self) -> Monotonic {
        let oldest = self.looked_up[..self.refreshed()].iter().min().copied().unwrap_or_default();
        oldest.plus_millis(self.limits.refresh_after_ms)
    }

    /// Counts the buckets that are kept fresh: up to one beyond the nearest that has nodes.
    #[must_use]
    pub fn refreshed(&self) -> usize {
        let words = self.occupied.iter().enumerate();
        let last = words.rev().find(|(_, word)| **word != 0);
        let nearest = last.map(|(at, word)| at * 64 + 63 - word.trailing_zeros() as usize);
        nearest.map_or(1, |index| (index + 2).min(self.buckets.len()))
    }

    fn admit(&mut self, now: Monotonic, entry: Entry) -> Admission {
        let entry = Entry { is_preferred: (self.rules.is_preferred)(&entry.contact), ..entry };
        let Some(bucket) = self.bucket_of(&entry.contact.id) else {
            return Admission::Refused(Refusal::OwnId);
        };
        let known = self.buckets[bucket].find(&entry.contact.id);
        let same = known.is_some_and(|known| known.contact.address == entry.contact.address);
        if !same && let Some(refusal) = self.refusal(bucket, &entry.contact) {
            return Admission::Refused(refusal);
        }
        let sizes = self.limits.sizes(bucket);
        let before = self.buckets[bucket].entries().len();
        let placement = self.buckets[bucket].on_answer(now, entry, sizes, self.limits.health);
        self.count(bucket, before);
        match placement {
            Placement::Updated | Placement::Added => Admission::Present,
            Placement::Waiting(ask) => Admission::Waiting(ask),
            Placement::Impostor => Admission::Refused(Refusal::Impostor),
        }
    }

    /// Takes the newest that waits and may come in for the node `leaving`. Those that may not,
    /// since others of their place have come in meanwhile, are forgotten.
    fn next_waiting(&mut self, bucket: usize, leaving: &NodeId) -> Option<Entry> {
        loop {
            let next = self.buckets[bucket].pop_replacement()?;
            if self.refusal_but_for(bucket, &next.contact, leaving).is_none() {
                return Some(next);
            }
        }
    }

    fn refusal(&self, bucket: usize, contact: &Contact) -> Option<Refusal> {
        // One of the same id is the one this would take the place of.
        self.refusal_but_for(bucket, contact, &contact.id)
    }

    fn refusal_but_for(
        &self,
        bucket: usize,
        contact: &Contact,
        leaving: &NodeId,
    ) -> Option<Refusal> {
        let crowd = self.limits.crowd?;
        let address = contact.address.ip();
        if crowd.loopback_exempt && address.is_loopback() {
            return None;
        }
        let subnet = subnet(address);
        let others = |entry: &&Entry| entry.contact.id != *leaving;
        let near = |entry: &&Entry| self::subnet(entry.contact.address.ip()) == subnet;
        let from_address = |entry: &&Entry| entry.contact.address.ip() == address;
        if self.entries().filter(others).filter(from_address).count() >= crowd.per_address {
            return Some(Refusal::Address);
        }
        let in_bucket = self.buckets[bucket].entries().iter().filter(others).filter(near).count();
        let in_table = || self.entries().filter(others).filter(near).count();
        (in_bucket >= crowd.per_subnet_and_bucket || in_table() >= crowd.per_subnet)
            .then_some(Refusal::Subnet)
    }

    /// Whether somebody in a full bucket is bad, or stands back for the newcomer.
    fn would_make_room(&self, now: Monotonic, bucket: usize, contact: &Contact) -> bool {
        let is_bad = |entry: &Entry| entry.health(now, self.limits.health) == Health::Bad;
        let stands_back = |entry: &Entry| !entry.is_preferred;
        let entries = self.buckets[bucket].entries();
        entries.iter().any(is_bad)
            || (entries.iter().any(stands_back) && (self.rules.is_preferred)(contact))
    }

    fn bucket_of(&self, id: &NodeId) -> Option<usize> {
        let shared = self.own.shared_bits(id);
        (shared < ID_BITS).then_some(shared as usize)
    }

    fn count(&mut self, bucket: usize, before: usize) {
        let now = self.buckets[bucket].entries().len();
        self.len = self.len - before + now;
        if now == 0 {
            self.occupied[bucket / 64] &= !bit(bucket);
        } else {
            self.occupied[bucket / 64] |= bit(bucket);
        }
    }

    /// Buckets that have nodes, in the order of their distance from `target`.
    ///
    /// A node of bucket b agrees with us before bit b and differs in it. Where our distance from
    /// the target has bit b set, such a node is on the target's side from there on: closer than we
    /// are, and the closer the earlier the bit. Where it is clear, the node is farther than we are,
    /// and the farther the earlier the bit.
    fn buckets_by_distance(&self, target: &NodeId) -> impl Iterator<Item = usize> + use<> {
        let distance = words(&self.own.distance(target));
        let mut closer = [0; 3];
        let mut farther = [0; 3];
        for word in 0..3 {
            closer[word] = self.occupied[word] & distance[word];
            farther[word] = self.occupied[word] & !distance[word];
        }
        let descend = std::iter::from_fn(move || {
            let word = closer.iter().position(|bits| *bits != 0)?;
            let offset = closer[word].leading_zeros() as usize;
            closer[word] &= !bit(offset);
            Some(word * 64 + offset)
        });
        let ascend = std::iter::from_fn(move || {
            let word = farther.iter().rposition(|bits| *bits != 0)?;
            let offset = 63 - farther[word].trailing_zeros() as usize;
            farther[word] &= !bit(offset);
            Some(word * 64 + offset)
        });
        descend.chain(ascend)
    }
}

/// Bit `position` of a word, counted from the most significant.
fn bit(position: usize) -> u64 {
    1 << (63 - position % 64)
}

/// A distance as words; the last has its 32 bits at the top.
fn words(distance: &Distance) -> [u64; 3] {
    let mut bytes = [0; 24];
    bytes[..20].copy_from_slice(&distance.0);
    let (words, _) = bytes.as_chunks::<8>();
    std::array::from_fn(|word| u64::from_be_bytes(words[word]))
}

/// The network an address is taken to be of: its /24, or its /64 in IPv6.
pub(super) fn subnet(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(address) => {
            let [a, b, c, _] = address.octets();
            IpAddr::V4(Ipv4Addr::new(a, b, c, 0))
        }
        IpAddr::V6(address) => IpAddr::V6((u128::from(address) >> 64 << 64).into()),
    }
}
