//! Which nodes hold a key: the `r` known nodes closest to its id, up or down.
//!
//! Everything here is a function of the key and the list of members, so that nodes with the same
//! list agree. Parts of the key space are found by halving prefixes until the nodes in question
//! are the same for all keys of a part: seen from a prefix, members that share its length of first
//! bits with each other are a group, and groups have one order for all its keys.
//!
//! Only so many first bits count as the number of members asks for ([`depth_of`]). Members that
//! share all of these come in the order of their ids. Two ids that are alike by chance, or were
//! made so, would else divide the key space into parts without number: each further bit doubles
//! them.

use std::borrow::Cow;

use wal::record::Key;

use super::prefix::{Prefix, PrefixSet};
use crate::kademlia::NodeId;

/// Bits that count for up to 16 members, ...
const DEPTH_MIN: u8 = 8;
/// ... and so many more for each 16 times as many.
const DEPTH_STEP: u8 = 4;

/// How many first bits of an id count among so many members. No part of the key space with one
/// replica set is smaller than that, so there are at most 256 of them for each member. It grows in
/// steps, so that few changes of members change it.
#[must_use]
pub fn depth_of(members: usize) -> u8 {
    let (mut depth, mut enough_for) = (DEPTH_MIN, 16_usize);
    while enough_for < members {
        depth += DEPTH_STEP;
        enough_for = enough_for.saturating_mul(16);
    }
    depth
}

/// All members, the closest to the key first.
#[must_use]
pub fn order(key: &Key, members: &[NodeId]) -> Vec<NodeId> {
    let depth = depth_of(members.len());
    let target = NodeId::from(Prefix::of(key, depth).first_key());
    let mut order = members.to_vec();
    order.sort_by_cached_key(|member| {
        let first_bits = NodeId::from(Prefix::of(&Key(member.0), depth).first_key());
        (first_bits.distance(&target), *member)
    });
    order
}

/// The replica set of a key.
#[must_use]
pub fn replica_set(key: &Key, members: &[NodeId], replicas: usize) -> Vec<NodeId> {
    closest(key, &in_order(members), replicas)
}

/// More than half.
#[must_use]
pub fn majority(count: usize) -> usize {
    count / 2 + 1
}

/// In order of their ids.
fn in_order(members: &[NodeId]) -> Cow<'_, [NodeId]> {
    if members.is_sorted() {
        return Cow::Borrowed(members);
    }
    let mut members = members.to_vec();
    members.sort();
    Cow::Owned(members)
}

/// Shows members in groups that share the first bits, the closest group to the prefix first, until
/// enough are seen. Members are in order: each group is a part of that order.
fn visit<'a>(
    prefix: &Prefix,
    members: &'a [NodeId],
    wants_more: &mut impl FnMut(&'a [NodeId]) -> bool,
) {
    visit_from((prefix, 0, depth_of(members.len())), members, wants_more);
}

/// Shows members that share the first `depth` bits with the prefix or with each other. Returns
/// whether more are wanted.
fn visit_from<'a>(
    (prefix, depth, depth_max): (&Prefix, u8, u8),
    members: &'a [NodeId],
    wants_more: &mut impl FnMut(&'a [NodeId]) -> bool,
) -> bool {
    match members.len() {
        0 => return true,
        1 => return wants_more(members),
        _ if depth == depth_max => return members.chunks(1).all(wants_more),
        _ if depth == prefix.len() => return wants_more(members),
        _ => {}
    }
    let bit = |id: &[u8; 20]| id[usize::from(depth) / 8] & (0x80 >> (depth % 8)) != 0;
    let (lower, upper) = members.split_at(members.partition_point(|member| !bit(&member.0)));
    let is_upper = bit(&prefix.first_key().0);
    let (near, far) = if is_upper { (upper, lower) } else { (lower, upper) };
    let next = (prefix, depth + 1, depth_max);
    visit_from(next, near, wants_more) && visit_from(next, far, wants_more)
}

/// The `count` members closest to a key, the closest first. The members are in order of their ids;
/// of many only few are looked at.
#[must_use]
pub fn closest(key: &Key, members: &[NodeId], count: usize) -> Vec<NodeId> {
    debug_assert!(members.is_sorted(), "members are in order");
    let mut found = Vec::with_capacity(count);
    if count > 0 {
        let all = Prefix::of(key, depth_of(members.len()));
        visit(&all, members, &mut |group| {
            found.extend_from_slice(group);
            found.len() < count
        });
    }
    found
}

/// At least `count` nodes closest to any key of the prefix, in whole groups.
#[must_use]
pub fn around(prefix: &Prefix, members: &[NodeId], count: usize) -> Vec<NodeId> {
    let mut found = Vec::new();
    if count > 0 {
        visit(prefix, &in_order(members), &mut |group| {
            found.extend_from_slice(group);
            found.len() < count
        });
    }
    found
}

/// The keys whose replica set `own` is in.
#[must_use]
pub fn responsibility(own: &NodeId, members: &[NodeId], replicas: usize) -> PrefixSet {
    let members = in_order(members);
    let mut set = PrefixSet::default();
    let mut pending = vec![Prefix::ALL];
    while let Some(prefix) = pending.pop() {
        let (mut before, mut with_own) = (0, None);
        visit(&prefix, &members, &mut |group| {
            if group.contains(own) {
                with_own = Some(group.len());
                return false;
            }
            before += group.len();
            before < replicas
        });
        match with_own {
            Some(len) if before + len <= replicas => set.insert(prefix),
            Some(_) if before < replicas => pending.extend(prefix.halves()),
            _ => {}
        }
    }
    set
}

/// The replica set of all keys of a prefix; nothing, if they have several.
#[must_use]
pub fn set_of(prefix: &Prefix, members: &[NodeId], replicas: usize) -> Option<Vec<NodeId>> {
    let set = around(prefix, members, replicas);
    (set.len() <= replicas).then_some(set)
}

/// The prefix in parts of one replica set each.
#[must_use]
pub fn regions(prefix: Prefix, members: &[NodeId], replicas: usize) -> Vec<(Prefix, Vec<NodeId>)> {
    let members = in_order(members);
    let mut found = Vec::new();
    let mut pending = vec![prefix];
    while let Some(prefix) = pending.pop() {
        match set_of(&prefix, &members, replicas) {
            Some(set) => found.push((prefix, set)),
            None => pending.extend(prefix.halves().into_iter().rev()),
        }
    }
    found
}

/// The largest prefix around a key with one replica set.
#[must_use]
pub fn region_of(key: &Key, members: &[NodeId], replicas: usize) -> Prefix {
    let members = in_order(members);
    let depth = depth_of(members.len());
    let mut prefixes = (0..depth).map(|len| Prefix::of(key, len));
    let first = prefixes.find(|prefix| set_of(prefix, &members, replicas).is_some());
    first.unwrap_or_else(|| Prefix::of(key, depth))
}

#[cfg(test)]
mod tests {
    use fastrand::Rng;

    use super::*;

    /// Ids of which some share up to all but a few bits with the one before.
    fn alike(rng: &mut Rng, count: usize) -> Vec<NodeId> {
        let mut ids = Vec::<NodeId>::new();
        while ids.len() < count {
            let mut id = NodeId::random(rng);
            if let Some(NodeId(before)) = ids.last().filter(|_| rng.bool()) {
                let shared = rng.usize(1..20);
                id.0[..shared].copy_from_slice(&before[..shared]);
            }
            ids.push(id);
        }
        ids
    }

    #[test]
    fn ids_that_are_alike_make_no_parts_without_number() {
        for seed in 0..40 {
            let mut rng = Rng::with_seed(seed);
            let count = rng.usize(1..40);
            let (members, replicas) = (alike(&mut rng, count), rng.usize(1..6));
            let most = count.max(16) * 256;
            assert!(regions(Prefix::ALL, &members, replicas).len() <= most, "seed {seed}");
            assert!(responsibility(&members[0], &members, replicas).len() <= most, "seed {seed}");
        }
    }

    #[test]
    fn a_bit_counts_from_some_number_of_members_on() {
        let counts = [0, 1, 16, 17, 256, 257, 4_096, 4_097, 65_537];
        assert_eq!(counts.map(depth_of), [8, 8, 8, 12, 12, 16, 16, 20, 24]);
        assert!(depth_of(usize::MAX) <= 160, "an id has no more bits");
    }

    #[test]
    fn parts_of_the_key_space_agree_with_the_order_of_single_keys() {
        for seed in 0..80 {
            let mut rng = Rng::with_seed(seed);
            let count = rng.usize(1..30);
            let members: Vec<NodeId> = match seed % 2 {
                0 => (0..count).map(|_| NodeId::random(&mut rng)).collect(),
                _ => alike(&mut rng, count),
            };
            let replicas = rng.usize(1..6);
            let own = members[0];
            let mine = responsibility(&own, &members, replicas);
            let regions = regions(Prefix::ALL, &members, replicas);
            for _ in 0..100 {
                let key = Key(NodeId::random(&mut rng).0);
                let mut set = order(&key, &members);
                set.truncate(replicas);
                assert_eq!(replica_set(&key, &members, replicas), set);
                assert_eq!(mine.contains(&key), set.contains(&own));
                set.sort();
                let found: Vec<_> =
                    regions.iter().filter(|(prefix, _)| prefix.contains(&key)).collect();
                let [(prefix, of_region)] = found[..] else { panic!("{found:?}") };
                assert_eq!(region_of(&key, &members, replicas), *prefix);
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
