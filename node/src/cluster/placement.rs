//! Which nodes hold a key: the `r` known nodes closest to its id, up or down.
//!
//! Everything here is a function of the key and the list of members, so that nodes with the same
//! list agree. Parts of the key space are found by halving prefixes until the nodes in question
//! are the same for all keys of a part: seen from a prefix, members that share its length of first
//! bits with each other are a group, and groups have one order for all its keys.

use std::collections::BTreeMap;

use wal::record::Key;

use super::prefix::{Prefix, PrefixSet};
use crate::kademlia::NodeId;

/// All members, the closest to the key first.
#[must_use]
pub fn order(key: &Key, members: &[NodeId]) -> Vec<NodeId> {
    let target = NodeId::from(*key);
    let mut order = members.to_vec();
    order.sort_by_key(|member| member.distance(&target));
    order
}

/// The replica set of a key.
#[must_use]
pub fn replica_set(key: &Key, members: &[NodeId], replicas: usize) -> Vec<NodeId> {
    let mut set = order(key, members);
    set.truncate(replicas);
    set
}

/// More than half.
#[must_use]
pub fn majority(count: usize) -> usize {
    count / 2 + 1
}

/// Members in groups that share the first bits, the closest group to the prefix first.
fn groups(prefix: &Prefix, members: &[NodeId]) -> Vec<Vec<NodeId>> {
    let from = NodeId::from(prefix.first_key());
    let mut groups = BTreeMap::<_, Vec<NodeId>>::new();
    for member in members {
        let first = NodeId::from(Prefix::of(&Key(member.0), prefix.len()).first_key());
        groups.entry(first.distance(&from)).or_default().push(*member);
    }
    groups.into_values().collect()
}

/// At least `count` nodes closest to any key of the prefix, in whole groups.
#[must_use]
pub fn around(prefix: &Prefix, members: &[NodeId], count: usize) -> Vec<NodeId> {
    let mut found = Vec::new();
    for group in groups(prefix, members) {
        if found.len() >= count {
            break;
        }
        found.extend(group);
    }
    found
}

/// The keys whose replica set `own` is in.
#[must_use]
pub fn responsibility(own: &NodeId, members: &[NodeId], replicas: usize) -> PrefixSet {
    let mut set = PrefixSet::default();
    let mut pending = vec![Prefix::ALL];
    while let Some(prefix) = pending.pop() {
        let mut before = 0;
        for group in groups(&prefix, members) {
            if !group.contains(own) {
                before += group.len();
                continue;
            }
            if before + group.len() <= replicas {
                set.insert(prefix);
            } else if before < replicas {
                pending.extend(prefix.halves());
            }
            break;
        }
    }
    set
}

/// The prefix in parts of one replica set each.
#[must_use]
pub fn regions(prefix: Prefix, members: &[NodeId], replicas: usize) -> Vec<(Prefix, Vec<NodeId>)> {
    let mut found = Vec::new();
    let mut pending = vec![prefix];
    while let Some(prefix) = pending.pop() {
        let mut set = Vec::new();
        let mut is_split = false;
        for group in groups(&prefix, members) {
            if set.len() >= replicas {
                break;
            }
            is_split = set.len() + group.len() > replicas;
            set.extend(group);
        }
        if is_split {
            pending.extend(prefix.halves().into_iter().rev());
        } else {
            found.push((prefix, set));
        }
    }
    found
}

/// The largest prefix around a key with one replica set.
#[must_use]
pub fn region_of(key: &Key, members: &[NodeId], replicas: usize) -> Prefix {
    let mut prefix = Prefix::ALL;
    loop {
        let mut count = 0;
        for group in groups(&prefix, members) {
            if count >= replicas {
                break;
            }
            count += group.len();
        }
        if count <= replicas {
            return prefix;
        }
        let [lower, upper] = prefix.halves();
        prefix = if lower.contains(key) { lower } else { upper };
    }
}

#[cfg(test)]
mod tests {
    use fastrand::Rng;

    use super::*;

    #[test]
    fn parts_of_the_key_space_agree_with_the_order_of_single_keys() {
        for seed in 0..40 {
            let mut rng = Rng::with_seed(seed);
            let members: Vec<NodeId> =
                (0..rng.usize(1..30)).map(|_| NodeId::random(&mut rng)).collect();
            let replicas = rng.usize(1..6);
            let own = members[0];
            let mine = responsibility(&own, &members, replicas);
            let regions = regions(Prefix::ALL, &members, replicas);
            for _ in 0..100 {
                let key = Key(NodeId::random(&mut rng).0);
                let mut set = replica_set(&key, &members, replicas);
                assert_eq!(mine.contains(&key), set.contains(&own));
                set.sort();
                let found: Vec<_> =
                    regions.iter().filter(|(prefix, _)| prefix.contains(&key)).collect();
                let [(prefix, of_region)] = found[..] else { panic!("{found:?}") };
                let mut of_region = of_region.clone();
                of_region.sort();
                assert_eq!(of_region, set);
                assert!(set.iter().all(|node| around(prefix, &members, replicas).contains(node)));
            }
        }
    }

    #[test]
    fn a_newcomer_moves_only_what_it_takes() {
        let mut rng = Rng::with_seed(5);
        let mut members: Vec<NodeId> = (0..10).map(|_| NodeId::random(&mut rng)).collect();
        let before = members.clone();
        let newcomer = NodeId::random(&mut rng);
        members.push(newcomer);
        for _ in 0..200 {
            let key = Key(NodeId::random(&mut rng).0);
            let (old, new) = (replica_set(&key, &before, 3), replica_set(&key, &members, 3));
            assert!(new == old || new.contains(&newcomer));
        }
    }
}
