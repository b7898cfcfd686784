//! [`WriteTimes`]: how long writes to stable storage take, as the loop sees it.

use wal::disk::{DiskOperation, DiskRequest, Durability, RequestId};

use crate::io::{DiskOwner, Monotonic};

/// Writes to stable storage that are under way. There are few at a time: a shard's frames, pieces
/// of large values, and a checkpoint's chunks.
#[derive(Debug, Default)]
pub(crate) struct WriteTimes {
    begun: Vec<(DiskOwner, RequestId, Monotonic)>,
}

impl WriteTimes {
    /// Notes a request that is handed to the driver, if it is a write to stable storage.
    pub(crate) fn note_begun(
        &mut self,
        owner: DiskOwner,
        request: &DiskRequest,
        now: impl FnOnce() -> Monotonic,
    ) {
        let is_durable = match &request.operation {
            DiskOperation::Write { durability, .. } => *durability == Durability::Durable,
            DiskOperation::Sync { .. } => true,
            _ => false,
        };
        if is_durable {
            self.begun.push((owner, request.id, now()));
        }
    }

    /// How many nanoseconds the request has taken, if it was noted.
    pub(crate) fn take(&mut self, owner: DiskOwner, id: RequestId, now: Monotonic) -> Option<u64> {
        let is_it = |one: &(DiskOwner, RequestId, Monotonic)| (one.0, one.1) == (owner, id);
        let (.., begun) = self.begun.swap_remove(self.begun.iter().position(is_it)?);
        Some(now.0.saturating_sub(begun.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wal::disk::FileId;

    #[test]
    fn syncs_are_timed_and_opened_files_are_not() {
        let mut times = WriteTimes::default();
        let file = FileId(1);
        let sync = |id| DiskRequest { id: RequestId(id), operation: DiskOperation::Sync { file } };
        let close = DiskRequest { id: RequestId(3), operation: DiskOperation::Close { file } };
        times.note_begun(DiskOwner(0), &sync(1), || Monotonic(10));
        times.note_begun(DiskOwner(1), &sync(1), || Monotonic(20));
        times.note_begun(DiskOwner(0), &close, || unreachable!("it is not timed"));
        assert_eq!(times.take(DiskOwner(0), RequestId(3), Monotonic(50)), None);
        assert_eq!(times.take(DiskOwner(0), RequestId(1), Monotonic(50)), Some(40));
        assert_eq!(times.take(DiskOwner(1), RequestId(1), Monotonic(50)), Some(30));
        assert_eq!(times.take(DiskOwner(1), RequestId(1), Monotonic(50)), None);
    }
}
