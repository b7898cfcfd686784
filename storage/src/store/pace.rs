//! How fast segments are filled with zeros ahead: so slowly that foreground work hardly notices,
//! but always faster than the log needs them.
//!
//! Bytes to write are earned by time and by what the log has appended meanwhile: a spare is at most
//! twice as long as the segment in use, so one that earns four bytes for each byte appended is
//! ready when that segment is half full, however fast the log grows.

use wal::disk::{DiskOperation, DiskRequest};

/// Earned by time alone, in bytes per second: a spare of 64 MiB takes a second of an idle store.
const BYTES_PER_SECOND: u64 = 64 << 20;
/// Earned for each byte that the log appends.
const BYTES_PER_BYTE: u64 = 4;
/// Time earns no more than this beforehand: two pieces of zeros.
const IDLE_BYTES_MAX: u64 = 2 << 20;
/// No more than this is earned beforehand in all.
const EARNED_BYTES_MAX: u64 = 64 << 20;
const NS_PER_SECOND: u64 = 1_000_000_000;

/// What may be written ahead now.
#[derive(Debug, Default)]
pub(super) struct Pace {
    earned: u64,
    earned_at_ns: u64,
    /// Room that the log had when last asked.
    room: u64,
}

impl Pace {
    /// Earns what the time since the last call allows.
    pub(super) fn set_now(&mut self, now_ns: u64) {
        let elapsed_ns = now_ns.saturating_sub(self.earned_at_ns);
        let earned = u128::from(elapsed_ns) * u128::from(BYTES_PER_SECOND);
        let earned = u64::try_from(earned / u128::from(NS_PER_SECOND)).unwrap_or(u64::MAX);
        if earned > 0 {
            self.earned_at_ns = now_ns;
            let idle_max = self.earned.max(IDLE_BYTES_MAX);
            self.earned = self.earned.saturating_add(earned).min(idle_max);
        }
    }

    /// Earns what the log has appended since the last call, as its room tells.
    pub(super) fn set_room(&mut self, room: u64) {
        let appended = self.room.saturating_sub(room);
        self.room = room;
        let earned = appended.saturating_mul(BYTES_PER_BYTE);
        self.earned = self.earned.saturating_add(earned).min(EARNED_BYTES_MAX.max(self.earned));
    }

    /// Takes leave for a request; one that writes nothing is free.
    pub(super) fn take(&mut self, request: &DiskRequest) -> bool {
        let cost = cost(request);
        let allowed = cost <= self.earned;
        if allowed {
            self.earned -= cost;
        }
        allowed
    }

    /// When time alone will have earned a request.
    pub(super) fn ready_at_ns(&self, request: &DiskRequest) -> u64 {
        let missing = u128::from(cost(request).saturating_sub(self.earned));
        let wait_ns = (missing * u128::from(NS_PER_SECOND)).div_ceil(u128::from(BYTES_PER_SECOND));
        self.earned_at_ns.saturating_add(u64::try_from(wait_ns).unwrap_or(u64::MAX))
    }
}

fn cost(request: &DiskRequest) -> u64 {
    match &request.operation {
        DiskOperation::Write { buffer, .. } => buffer.len() as u64,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use wal::disk::{Durability, FileId, IoBuffer, RequestId};

    use super::*;

    fn piece(len: usize) -> DiskRequest {
        let (buffer, durability) = (IoBuffer::zeroed(len), Durability::Cached);
        let operation = DiskOperation::Write { file: FileId(1), offset: 0, buffer, durability };
        DiskRequest { id: RequestId(0), operation }
    }

    #[test]
    fn time_alone_earns_its_rate_and_no_more_beforehand() {
        let (mut pace, piece) = (Pace::default(), piece(1 << 20));
        assert!(!pace.take(&piece));
        let mut written = 0u64;
        for step in 1..=1000 {
            pace.set_now(step * NS_PER_SECOND / 1000);
            while pace.take(&piece) {
                written += 1;
            }
        }
        assert_eq!(written, 63, "64 pieces a second, the last one a rounding short");
        pace.set_now(100 * NS_PER_SECOND);
        assert!(pace.take(&piece) && pace.take(&piece) && !pace.take(&piece));
        let at_ns = pace.ready_at_ns(&piece);
        pace.set_now(at_ns);
        assert!(pace.take(&piece), "ready when it said");
    }

    #[test]
    fn spare_twice_as_long_is_ready_when_the_segment_is_half_full() {
        let (mut pace, piece) = (Pace::default(), piece(1 << 20));
        let (len, mut zeroed) = (32u64 << 20, 0);
        pace.set_room(len);
        for room in (len / 2..len).rev().step_by(64 << 10) {
            pace.set_room(room);
            while pace.take(&piece) {
                zeroed += 1 << 20;
            }
        }
        assert!(zeroed >= 2 * len - (2 << 20), "{zeroed}");
        // A new segment gives more room, and earns nothing by that.
        pace.set_room(u64::MAX);
        assert!(!pace.take(&piece));
    }
}
