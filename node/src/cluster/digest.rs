//! Digests of parts of the key space: the sum, modulo 2^128, of a hash of each key's namespace,
//! id, version and kind. Sums do not depend on order, and parts add up to the whole.

use sha1::{Digest, Sha1};
use wal::record::Key;

use super::message::{Entry, Sum};
use super::prefix::Prefix;

/// The hash of one entry.
#[must_use]
pub fn hash(entry: &Entry) -> u128 {
    let mut sha1 = Sha1::new();
    sha1.update([entry.namespace.0]);
    sha1.update(entry.key.0);
    sha1.update(entry.version.0);
    sha1.update([u8::from(entry.is_tombstone)]);
    let hash: [u8; 20] = sha1.finalize().into();
    hash.first_chunk().map_or(0, |half| u128::from_be_bytes(*half))
}

/// Sums of the parts of a prefix, taken up by walking over its keys.
#[derive(Clone, Debug)]
pub struct Summing {
    prefix: Prefix,
    parts: Vec<Prefix>,
    sums: Vec<Sum>,
}

impl Summing {
    /// Begins at the first key.
    #[must_use]
    pub fn new(prefix: Prefix) -> Self {
        let parts = prefix.parts();
        Self { prefix, sums: vec![Sum::default(); parts.len()], parts }
    }

    /// Which prefix.
    #[must_use]
    pub fn prefix(&self) -> Prefix {
        self.prefix
    }

    /// Takes keys in.
    pub fn add(&mut self, entries: &[Entry]) {
        for entry in entries {
            let part = self.parts.partition_point(|part| part.first_key() <= entry.key);
            if let Some(sum) = part.checked_sub(1).and_then(|part| self.sums.get_mut(part)) {
                sum.hash = sum.hash.wrapping_add(hash(entry));
                sum.count += 1;
            }
        }
    }

    /// The sums, in order of the parts.
    #[must_use]
    pub fn finish(self) -> Vec<Sum> {
        self.sums
    }
}

/// The keys that one list lacks, or has in a lower version than the other: first what `ours`
/// lacks, then what `theirs` does. Both are in order of their keys.
#[must_use]
pub fn differences(ours: &[Entry], theirs: &[Entry]) -> (Vec<Key>, Vec<Key>) {
    let (mut wanted, mut offered) = (Vec::new(), Vec::new());
    let (mut ours, mut theirs) = (ours.iter().peekable(), theirs.iter().peekable());
    loop {
        let (our, their) = (ours.peek().copied(), theirs.peek().copied());
        let order = match (our, their) {
            (None, None) => return (wanted, offered),
            (Some(_), None) => std::cmp::Ordering::Less,
            (None, Some(_)) => std::cmp::Ordering::Greater,
            (Some(our), Some(their)) => our.key.cmp(&their.key),
        };
        if order.is_le() {
            ours.next();
        }
        if order.is_ge() {
            theirs.next();
        }
        match (our, their) {
            (Some(our), _) if order.is_lt() => offered.push(our.key),
            (_, Some(their)) if order.is_gt() => wanted.push(their.key),
            (Some(our), Some(their)) if our.version < their.version => wanted.push(their.key),
            (Some(our), Some(their)) if our.version > their.version => offered.push(our.key),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use fastrand::Rng;
    use wal::record::{Namespace, Version};

    use super::*;
    use crate::kademlia::NodeId;

    fn entry(rng: &mut Rng) -> Entry {
        let (key, version) = (Key(NodeId::random(rng).0), Version([rng.u8(..); 16]));
        Entry { namespace: Namespace::PLAIN, key, version, is_tombstone: rng.bool() }
    }

    #[test]
    fn parts_add_up_in_any_order_and_any_change_shows() {
        let mut rng = Rng::with_seed(1);
        let mut entries: Vec<Entry> = (0..300).map(|_| entry(&mut rng)).collect();
        let sum_of = |entries: &[Entry]| {
            let mut summing = Summing::new(Prefix::ALL);
            entries.chunks(7).for_each(|entries| summing.add(entries));
            summing.finish()
        };
        let before = sum_of(&entries);
        assert_eq!(before.iter().map(|sum| sum.count).sum::<u64>(), 300);
        rng.shuffle(&mut entries);
        assert_eq!(sum_of(&entries), before);
        let part = usize::from(entries[5].key.0[0] >> 4);
        let changes: [fn(&mut Entry); 3] = [
            |entry| entry.is_tombstone = !entry.is_tombstone,
            |entry| entry.version.0[15] ^= 1,
            |entry| entry.namespace.0 ^= 1,
        ];
        for change in changes {
            let mut changed = entries.clone();
            change(&mut changed[5]);
            let after = sum_of(&changed);
            let differing: Vec<usize> = (0..16).filter(|at| after[*at] != before[*at]).collect();
            assert_eq!(differing, [part]);
        }
    }

    #[test]
    fn only_what_is_newer_moves() {
        let mut rng = Rng::with_seed(2);
        let mut all: Vec<Entry> = (0..6).map(|_| entry(&mut rng)).collect();
        all.sort_by_key(|entry| entry.key);
        let (mut ours, mut theirs) = (all.clone(), all.clone());
        ours.remove(0);
        theirs.remove(5);
        ours[0].version = Version([255; 16]);
        theirs[2].version = Version([255; 16]);
        ours[1].version = Version([0; 16]);
        theirs[2].is_tombstone = true;
        let (wanted, offered) = differences(&ours, &theirs);
        assert_eq!(wanted, [all[0].key, all[2].key]);
        assert_eq!(offered, [all[1].key, all[5].key]);
    }
}
