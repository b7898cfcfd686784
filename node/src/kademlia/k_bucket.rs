//! [`KBucket`]: nodes at about one distance, those that have lived long preferred.
//!
//! A node enters only after it has answered a query of ours. A full bucket keeps whom it has as
//! long as they answer, since a node that has been up for long is likely to stay (Kademlia §2.2,
//! §4.1); newcomers wait in the replacement cache and come in when one has failed.

use std::net::SocketAddr;

use crate::io::Monotonic;

use super::node_id::NodeId;

/// A node and where it is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Contact {
    /// Its id, as it says.
    pub id: NodeId,
    /// Its UDP address.
    pub address: SocketAddr,
}

/// What is known of a node (BEP 5, "Routing Table").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// It has been heard of lately, and its last answer came.
    Good,
    /// Not heard of for a while, or it left a query without an answer.
    Questionable,
    /// It left several queries in a row without an answer.
    Bad,
}

/// When a node counts as what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HealthLimits {
    /// After so long without a sign of life a node is questionable.
    pub questionable_after_ms: u64,
    /// With so many failed queries in a row a node is bad.
    pub failures_max: u8,
}

impl Default for HealthLimits {
    /// BEP 5: 15 minutes, "multiple queries in a row".
    fn default() -> Self {
        Self { questionable_after_ms: 15 * 60 * 1000, failures_max: 2 }
    }
}

/// A node in a bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Who and where.
    pub contact: Contact,
    /// When it was heard of first in this life of ours.
    pub first_seen: Monotonic,
    /// When it was heard of last; `None`: not since our start.
    pub last_seen: Option<Monotonic>,
    /// Round-trip time, smoothed; microseconds, 0 = not measured.
    pub rtt_us: u32,
    /// Failed queries since its last answer.
    pub failures: u8,
    /// Whether its id is what it ought to be at its address; others make room for such.
    pub is_preferred: bool,
}

impl Entry {
    /// A node that has just answered.
    #[must_use]
    pub fn answered(now: Monotonic, contact: Contact, rtt_us: u32) -> Self {
        let last_seen = Some(now);
        Self { contact, first_seen: now, last_seen, rtt_us, failures: 0, is_preferred: true }
    }

    /// A node known from an earlier life of ours.
    #[must_use]
    pub fn remembered(now: Monotonic, contact: Contact) -> Self {
        Self { last_seen: None, ..Self::answered(now, contact, 0) }
    }

    /// Returns what is known of it at `now`.
    #[must_use]
    pub fn health(&self, now: Monotonic, limits: HealthLimits) -> Health {
        let fresh =
            self.last_seen.is_some_and(|seen| now < seen.plus_millis(limits.questionable_after_ms));
        match self.failures {
            failures if failures >= limits.failures_max => Health::Bad,
            0 if fresh => Health::Good,
            _ => Health::Questionable,
        }
    }

    fn on_answer(&mut self, now: Monotonic, rtt_us: u32) {
        self.last_seen = Some(now);
        self.failures = 0;
        // The usual smoothing of round-trip times: a weight of one eighth for the new one.
        self.rtt_us = match self.rtt_us {
            0 => rtt_us,
            old => old - old / 8 + rtt_us / 8,
        };
    }
}

/// What became of a node that answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// It was there and is up to date.
    Updated,
    /// It came in, maybe for a bad one.
    Added,
    /// The bucket is full of better ones; it waits. Asking the one named decides whether it comes
    /// in: that one is questionable.
    Waiting(Option<Contact>),
    /// Its id is taken by another address that has not failed.
    Impostor,
}

/// Nodes that share the same number of leading bits with our id.
#[derive(Clone, Debug, Default)]
pub struct KBucket {
    /// Least recently seen first.
    entries: Vec<Entry>,
    /// The newest last.
    replacements: Vec<Entry>,
}

impl KBucket {
    /// Returns the nodes in the bucket, least recently seen first.
    #[must_use]
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Returns the nodes that wait, the newest last.
    #[must_use]
    pub fn replacements(&self) -> &[Entry] {
        &self.replacements
    }

    /// Finds a node of the bucket.
    #[must_use]
    pub fn find(&self, id: &NodeId) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.contact.id == *id)
    }

    /// Takes in a node that has answered; at most `capacity` nodes are in, `waiting_max` wait.
    pub fn on_answer(
        &mut self,
        now: Monotonic,
        entry: Entry,
        sizes: BucketSizes,
        limits: HealthLimits,
    ) -> Placement {
        if let Some(index) = self.position(&entry.contact.id) {
            let known = &mut self.entries[index];
            if known.contact.address != entry.contact.address {
                if known.failures == 0 {
                    return Placement::Impostor;
                }
                *known = entry;
            } else {
                known.on_answer(now, entry.rtt_us);
            }
            self.entries[index..].rotate_left(1);
            return Placement::Updated;
        }
        self.replacements.retain(|waiting| waiting.contact.id != entry.contact.id);
        if self.entries.len() < sizes.capacity {
            self.entries.push(entry);
            return Placement::Added;
        }
        let is_bad = |known: &Entry| known.health(now, limits) == Health::Bad;
        if let Some(index) = self.entries.iter().position(is_bad) {
            self.entries.remove(index);
            self.entries.push(entry);
            return Placement::Added;
        }
        let stands_back = |known: &Entry| entry.is_preferred && !known.is_preferred;
        if let Some(index) = self.entries.iter().position(stands_back) {
            let left = self.entries.remove(index);
            self.entries.push(entry);
            self.wait(left, sizes);
            return Placement::Added;
        }
        self.wait(entry, sizes);
        let questionable = |known: &&Entry| known.health(now, limits) == Health::Questionable;
        Placement::Waiting(self.entries.iter().find(questionable).map(|known| known.contact))
    }

    /// Notes a sign of life that is no answer: a query from a node that is known here under the
    /// same address. Tells whether it is.
    pub fn on_query(&mut self, now: Monotonic, contact: &Contact) -> bool {
        let Some(index) = self.position(&contact.id) else { return false };
        let known = &mut self.entries[index];
        if known.contact.address != contact.address {
            return false;
        }
        // A query proves that it lives, not that it can be reached: failures stay counted, and a
        // node that has not answered since our start must do so first.
        if known.last_seen.is_some() && known.failures == 0 {
            known.last_seen = Some(now);
            self.entries[index..].rotate_left(1);
        }
        true
    }

    /// Counts a query that had no answer, and tells whether the node is bad now: time to let one in
    /// that waits. A bad node stays while nobody does.
    pub fn on_failure(
        &mut self,
        now: Monotonic,
        contact: &Contact,
        limits: HealthLimits,
    ) -> Option<Health> {
        self.replacements.retain(|waiting| waiting.contact != *contact);
        let index = self.position(&contact.id)?;
        let known = &mut self.entries[index];
        if known.contact.address != contact.address {
            return None;
        }
        known.failures = known.failures.saturating_add(1);
        Some(known.health(now, limits))
    }

    /// Takes out the newest node that waits; those that stand back come last.
    pub fn pop_replacement(&mut self) -> Option<Entry> {
        let preferred = self.replacements.iter().rposition(|waiting| waiting.is_preferred);
        match preferred {
            Some(index) => Some(self.replacements.remove(index)),
            None => self.replacements.pop(),
        }
    }

    /// Takes out all nodes, those that wait last.
    pub fn take_all(&mut self) -> Vec<Entry> {
        let mut all = std::mem::take(&mut self.entries);
        all.append(&mut self.replacements);
        all
    }

    /// Puts `entry` in the place of the node `id`, as the most recently seen.
    pub fn replace(&mut self, id: &NodeId, entry: Entry) {
        if let Some(index) = self.position(id) {
            self.entries.remove(index);
            self.entries.push(entry);
        }
    }

    /// Forgets a node wherever it is.
    pub fn remove(&mut self, id: &NodeId) -> Option<Entry> {
        self.replacements.retain(|waiting| waiting.contact.id != *id);
        self.position(id).map(|index| self.entries.remove(index))
    }

    /// Takes in a node that waited, where one was removed.
    pub fn push(&mut self, entry: Entry) {
        self.entries.push(entry);
    }

    fn wait(&mut self, entry: Entry, sizes: BucketSizes) {
        if sizes.waiting_max == 0 {
            return;
        }
        if self.replacements.len() >= sizes.waiting_max {
            self.replacements.remove(0);
        }
        self.replacements.push(entry);
    }

    fn position(&self, id: &NodeId) -> Option<usize> {
        self.entries.iter().position(|entry| entry.contact.id == *id)
    }
}

/// How many nodes a bucket takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BucketSizes {
    /// Nodes in the bucket.
    pub capacity: usize,
    /// Nodes in its replacement cache.
    pub waiting_max: usize,
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    const LIMITS: HealthLimits = HealthLimits { questionable_after_ms: 1000, failures_max: 2 };
    const SIZES: BucketSizes = BucketSizes { capacity: 2, waiting_max: 2 };

    fn contact(number: u8) -> Contact {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 1000 + u16::from(number)));
        Contact { id: NodeId([number; 20]), address }
    }

    fn at(ms: u64) -> Monotonic {
        Monotonic(0).plus_millis(ms)
    }

    fn answer(bucket: &mut KBucket, ms: u64, number: u8) -> Placement {
        let entry = Entry::answered(at(ms), contact(number), 100);
        bucket.on_answer(at(ms), entry, SIZES, LIMITS)
    }

    fn ids(entries: &[Entry]) -> Vec<u8> {
        entries.iter().map(|entry| entry.contact.id.0[0]).collect()
    }

    #[test]
    fn full_bucket_keeps_nodes_that_answer_and_names_the_one_to_ask() {
        let mut bucket = KBucket::default();
        assert_eq!(answer(&mut bucket, 0, 1), Placement::Added);
        assert_eq!(answer(&mut bucket, 10, 2), Placement::Added);
        assert_eq!(answer(&mut bucket, 20, 3), Placement::Waiting(None));
        assert_eq!(answer(&mut bucket, 30, 1), Placement::Updated);
        assert_eq!(ids(bucket.entries()), [2, 1]);
        assert_eq!(answer(&mut bucket, 1015, 4), Placement::Waiting(Some(contact(2))));
        assert_eq!(ids(bucket.entries()), [2, 1]);
        assert_eq!(ids(bucket.replacements()), [3, 4]);
    }

    #[test]
    fn the_newest_that_waits_takes_the_place_of_one_that_failed() {
        let mut bucket = KBucket::default();
        for number in 1..=4 {
            answer(&mut bucket, 0, number);
        }
        let failure = |bucket: &mut KBucket| bucket.on_failure(at(1), &contact(1), LIMITS);
        assert_eq!(failure(&mut bucket), Some(Health::Questionable));
        assert_eq!(failure(&mut bucket), Some(Health::Bad));
        let next = bucket.pop_replacement().unwrap();
        bucket.replace(&contact(1).id, next);
        assert_eq!(ids(bucket.entries()), [2, 4]);
        assert_eq!(ids(bucket.replacements()), [3]);
    }

    #[test]
    fn a_bad_node_stays_while_nobody_waits_and_can_come_back() {
        let mut bucket = KBucket::default();
        answer(&mut bucket, 0, 1);
        for _ in 0..5 {
            bucket.on_failure(at(1), &contact(1), LIMITS);
        }
        assert_eq!(bucket.entries()[0].health(at(1), LIMITS), Health::Bad);
        assert_eq!(answer(&mut bucket, 2, 1), Placement::Updated);
        assert_eq!(bucket.entries()[0].health(at(2), LIMITS), Health::Good);
    }

    #[test]
    fn an_id_cannot_be_taken_over_from_another_address_while_its_node_answers() {
        let mut bucket = KBucket::default();
        answer(&mut bucket, 0, 1);
        let elsewhere = Contact { address: contact(9).address, ..contact(1) };
        let entry = Entry::answered(at(1), elsewhere, 100);
        assert_eq!(bucket.on_answer(at(1), entry, SIZES, LIMITS), Placement::Impostor);
        bucket.on_failure(at(2), &elsewhere, LIMITS);
        assert_eq!(bucket.entries()[0].failures, 0);
        bucket.on_failure(at(2), &contact(1), LIMITS);
        assert_eq!(bucket.on_answer(at(3), entry, SIZES, LIMITS), Placement::Updated);
        assert_eq!(bucket.entries()[0].contact, elsewhere);
    }

    #[test]
    fn a_query_keeps_a_good_node_good_and_proves_nothing_of_others() {
        let mut bucket = KBucket::default();
        answer(&mut bucket, 0, 1);
        assert!(bucket.on_query(at(900), &contact(1)));
        assert_eq!(bucket.entries()[0].health(at(1800), LIMITS), Health::Good);
        assert!(!bucket.on_query(at(900), &contact(2)));
        bucket.on_failure(at(1800), &contact(1), LIMITS);
        bucket.on_query(at(1801), &contact(1));
        assert_eq!(bucket.entries()[0].health(at(1801), LIMITS), Health::Questionable);
    }

    #[test]
    fn nodes_that_stand_back_make_room_for_others_and_wait_behind_them() {
        let mut bucket = KBucket::default();
        let back =
            |number| Entry { is_preferred: false, ..Entry::answered(at(0), contact(number), 100) };
        for number in [1, 2] {
            assert_eq!(bucket.on_answer(at(0), back(number), SIZES, LIMITS), Placement::Added);
        }
        assert_eq!(bucket.on_answer(at(0), back(3), SIZES, LIMITS), Placement::Waiting(None));
        assert_eq!(answer(&mut bucket, 0, 4), Placement::Added);
        assert_eq!((ids(bucket.entries()), ids(bucket.replacements())), (vec![2, 4], vec![3, 1]));
        assert_eq!(answer(&mut bucket, 0, 5), Placement::Added);
        assert_eq!(answer(&mut bucket, 0, 6), Placement::Waiting(None));
        assert_eq!(ids(bucket.replacements()), [2, 6]);
        bucket.on_answer(at(0), back(7), SIZES, LIMITS);
        assert_eq!(bucket.pop_replacement().map(|entry| entry.contact), Some(contact(6)));
    }

    #[test]
    fn round_trip_times_are_smoothed() {
        let mut bucket = KBucket::default();
        answer(&mut bucket, 0, 1);
        let entry = Entry::answered(at(1), contact(1), 900);
        bucket.on_answer(at(1), entry, SIZES, LIMITS);
        assert_eq!(bucket.entries()[0].rtt_us, 100 - 12 + 112);
    }
}
