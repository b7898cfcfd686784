//! [`Distance`]: the XOR of two ids, ordered as a number.

use super::node_id::ID_BITS;

/// How far two ids are apart: symmetric, zero only for equal ids, and for each target no two ids
/// have the same (Kademlia §2.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Distance(pub [u8; 20]);

impl Distance {
    /// The greatest distance.
    pub const MAX: Self = Self([0xff; 20]);

    /// Counts the zero bits before the first set one: the length of the prefix that both ids share.
    #[must_use]
    pub fn leading_zeros(&self) -> u32 {
        let mut zeros = 0;
        for byte in self.0 {
            zeros += byte.leading_zeros();
            if byte != 0 {
                return zeros;
            }
        }
        ID_BITS
    }

    /// Tells bit `position`, counted from the most significant.
    #[must_use]
    pub fn bit(&self, position: u32) -> bool {
        self.0[(position / 8) as usize] & (0x80 >> (position % 8)) != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kademlia::NodeId;
    use fastrand::Rng;

    #[test]
    fn distance_is_a_metric_with_one_id_at_each_distance() {
        let mut rng = Rng::with_seed(3);
        for _ in 0..1000 {
            let [a, b, c] = [(); 3].map(|()| NodeId::random(&mut rng));
            assert_eq!(a.distance(&b), b.distance(&a));
            assert_eq!(a.distance(&a), Distance::default());
            // XOR: the way round is a detour by carries only.
            let direct = a.distance(&c);
            let (first, second) = (a.distance(&b), b.distance(&c));
            assert!(direct.leading_zeros() >= first.leading_zeros().min(second.leading_zeros()));
            assert_ne!(a.distance(&b), a.distance(&c));
        }
    }

    #[test]
    fn bits_are_counted_from_the_most_significant() {
        let mut bytes = [0; 20];
        bytes[1] = 0b0010_0000;
        let distance = Distance(bytes);
        assert_eq!(distance.leading_zeros(), 10);
        assert!(distance.bit(10));
        assert!(!distance.bit(9) && !distance.bit(11));
        assert_eq!(Distance::default().leading_zeros(), 160);
    }
}
