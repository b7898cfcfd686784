//! [`Truth`]: the nodes that are closest to a target, from a list of all.

use kadring::kademlia::NodeId;

/// All nodes that live, sorted by id.
#[derive(Clone, Debug, Default)]
pub struct Truth {
    ids: Vec<NodeId>,
}

impl Truth {
    /// Takes all nodes.
    #[must_use]
    pub fn new(mut ids: Vec<NodeId>) -> Self {
        ids.sort_unstable();
        Self { ids }
    }

    /// Returns the `count` nodes closest to `target` but for `asker`, the closest first.
    #[must_use]
    pub fn closest(&self, target: &NodeId, count: usize, asker: &NodeId) -> Vec<NodeId> {
        // The longest prefix of the target that enough nodes share: all others are farther.
        let mut near = &self.ids[..];
        for bits in 1..=160 {
            let shares = near.partition_point(|id| id < target && id.shared_bits(target) < bits);
            let rest = &near[shares..];
            let end = rest.partition_point(|id| id <= target || id.shared_bits(target) >= bits);
            let narrower = &rest[..end];
            if narrower.len() <= count {
                break;
            }
            near = narrower;
        }
        let mut closest: Vec<NodeId> = near.iter().copied().filter(|id| id != asker).collect();
        closest.sort_unstable_by_key(|id| id.distance(target));
        closest.truncate(count);
        closest
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fastrand::Rng;

    #[test]
    fn the_closest_are_those_that_sorting_all_finds() {
        let mut rng = Rng::with_seed(1);
        for count in [1, 2, 19, 20, 21, 22, 100, 1000] {
            let ids: Vec<NodeId> = (0..count).map(|_| NodeId::random(&mut rng)).collect();
            let truth = Truth::new(ids.clone());
            for _ in 0..50 {
                let near = ids[rng.usize(..ids.len())].random_sharing(rng.u32(..20), &mut rng);
                let target = if rng.bool() { near } else { NodeId::random(&mut rng) };
                let asker = ids[rng.usize(..ids.len())];
                let mut sorted = ids.clone();
                sorted.retain(|id| *id != asker);
                sorted.sort_by_key(|id| id.distance(&target));
                sorted.truncate(20);
                assert_eq!(truth.closest(&target, 20, &asker), sorted, "of {count}");
            }
        }
    }
}
