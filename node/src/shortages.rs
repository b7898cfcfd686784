//! [`Shortages`]: tells in the log of shards that get no further segment.

use std::collections::BTreeMap;

use wal::disk::{DiskError, DiskErrorKind};

use crate::keyspace::ShardIndex;

/// As long as a shard gets no segment that is told again after so many nanoseconds.
const TOLD_AGAIN_AFTER_NS: u64 = 60_000_000_000;

/// When it was last told of which shard.
#[derive(Debug, Default)]
pub(crate) struct Shortages(BTreeMap<ShardIndex, u64>);

impl Shortages {
    /// Looks at a shard at a time in nanoseconds.
    pub(crate) fn look_at(&mut self, shard: ShardIndex, shortage: Option<DiskError>, now_ns: u64) {
        let Some(error) = shortage else { return };
        if !self.is_due(shard, now_ns) {
            return;
        }
        if error.kind == DiskErrorKind::NoSpace {
            tracing::warn!(
                shard,
                "the disk is full, or disk_bytes_max is reached: values are refused until there \
                 is space; delete keys or give some"
            );
        } else {
            tracing::error!(
                shard,
                %error,
                "no further segment can be made: values are refused when the last one is full"
            );
        }
    }

    fn is_due(&mut self, shard: ShardIndex, now_ns: u64) -> bool {
        let told = self.0.get(&shard);
        let is_due = told.is_none_or(|told| now_ns.saturating_sub(*told) >= TOLD_AGAIN_AFTER_NS);
        if is_due {
            self.0.insert(shard, now_ns);
        }
        is_due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shortage_of_each_shard_is_told_once_a_minute() {
        const MINUTE: u64 = TOLD_AGAIN_AFTER_NS;
        let mut shortages = Shortages::default();
        let due = [(1, 5), (1, 6), (2, 6), (1, MINUTE + 4), (1, MINUTE + 5), (2, MINUTE + 5)]
            .map(|(shard, now_ns)| shortages.is_due(shard, now_ns));
        assert_eq!(due, [true, false, true, false, true, false]);
    }
}
