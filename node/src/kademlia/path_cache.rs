//! How long a copy may be used that a lookup has left on its path (Kademlia §2.3).

/// A copy with so many nodes between its place and the key's is not worth keeping.
pub const BETWEEN_MAX: u32 = 10;

/// Returns for how many milliseconds a copy may be used that is left with a node, when `between`
/// nodes are closer to the key: half as long for each of them. Nothing, if it is not worth it.
#[must_use]
pub fn ttl_ms(longest_ms: u64, between: u32) -> Option<u64> {
    let ttl = longest_ms.checked_shr(between)?;
    (between <= BETWEEN_MAX && ttl > 0).then_some(ttl)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_live_half_as_long_for_each_node_that_is_closer() {
        assert_eq!(ttl_ms(60_000, 0), Some(60_000));
        assert_eq!(ttl_ms(60_000, 3), Some(7_500));
        assert_eq!(ttl_ms(60_000, BETWEEN_MAX + 1), None);
        assert_eq!(ttl_ms(1, 1), None);
        assert_eq!(ttl_ms(u64::MAX, 64), None);
    }
}
