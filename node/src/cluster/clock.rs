//! The hybrid logical clock that orders a key's versions across nodes.
//!
//! A version is 16 bytes, ordered bytewise: 48 bits of milliseconds since 1970 and 16 bits of
//! counter, big-endian, then the first 8 bytes of the node's id; in a cluster the last 4 of these
//! are drawn anew by each process.

use wal::record::Version;

/// Draws versions, each above all it has drawn or seen.
#[derive(Clone, Copy, Debug)]
pub struct HybridLogicalClock {
    node: [u8; 8],
    last: u64,
}

impl HybridLogicalClock {
    /// Starts above `seen`, the highest version in the log.
    #[must_use]
    pub fn new(node_id: &[u8; 20], seen: Version) -> Self {
        let mut clock = Self { node: [0; 8], last: 0 };
        clock.node.copy_from_slice(&node_id[..8]);
        clock.witness(seen);
        clock
    }

    /// Tells the versions of this process from those that earlier ones of the node have drawn. It
    /// does not know these if only other nodes hold them, and a clock that was set back meanwhile
    /// would draw them again, for other records.
    #[must_use]
    pub fn with_nonce(mut self, nonce: [u8; 4]) -> Self {
        self.node[4..].copy_from_slice(&nonce);
        self
    }

    /// Goes above a version seen elsewhere.
    pub fn witness(&mut self, seen: Version) {
        let time = seen.0.first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes));
        self.last = self.last.max(time);
    }

    /// Draws the next version.
    pub fn next(&mut self, now_ms: u64) -> Version {
        self.last = (now_ms << 16).max(self.last + 1);
        let mut version = [0; 16];
        version[..8].copy_from_slice(&self.last.to_be_bytes());
        version[8..].copy_from_slice(&self.node);
        Version(version)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_grow_whatever_the_clock_does() {
        let mut clock = HybridLogicalClock::new(&[7; 20], Version::default());
        let mut last = Version::default();
        for now_ms in [1000, 1000, 1000, 500, 2000, 0, 2001] {
            let next = clock.next(now_ms);
            assert!(next > last);
            last = next;
        }
    }

    #[test]
    fn processes_of_one_node_never_draw_the_same_version() {
        let clock = HybridLogicalClock::new(&[7; 20], Version::default());
        let (mut first, mut second) = (clock.with_nonce([1; 4]), clock.with_nonce([2; 4]));
        assert_ne!(first.next(1000), second.next(1000));
    }

    #[test]
    fn clock_starts_above_what_the_log_has_seen() {
        let seen = HybridLogicalClock::new(&[1; 20], Version::default()).next(90_000);
        assert!(HybridLogicalClock::new(&[0; 20], seen).next(1000) > seen);
    }
}
