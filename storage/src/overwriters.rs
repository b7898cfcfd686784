//! Whose the newer record is: keys of records that stood before others of their 40-bit prefix when
//! they were appended.
//!
//! The index cannot tell whether such a record is of the same key as those behind it; to find out,
//! compaction would read its header, 4 KiB for each. What is remembered here saves that, newest
//! records first, within a budget. It only ever says what was appended: nothing depends on it.
//!
//! ```text
//! queue, in append order:  [line, key] [line, key] [line, key] ... ; oldest out first
//! runs: segment id -> which part of the queue holds its records, by rising line
//! ```

use std::collections::{BTreeMap, VecDeque};

use wal::record::Key;

use crate::segments::Spot;

/// A record: its line, and its key but for what the index knows of it anyway.
#[derive(Clone, Copy, Debug)]
struct Overwriter {
    line: u32,
    key_tail: [u8; 16],
}

/// The numbers of a segment's records, counted from the first record ever remembered.
#[derive(Clone, Copy, Debug)]
struct Run {
    first: u64,
    end: u64,
}

/// The records remembered.
#[derive(Debug, Default)]
pub(crate) struct Overwriters {
    queue: VecDeque<Overwriter>,
    /// The number of the queue's first entry.
    first: u64,
    runs: BTreeMap<u64, Run>,
    /// Segments of `runs`, the oldest first.
    segments: VecDeque<u64>,
    count_max: usize,
}

impl Overwriters {
    /// Remembers records up to that many bytes.
    pub(crate) fn new(bytes_max: usize) -> Self {
        Self { count_max: bytes_max / size_of::<Overwriter>(), ..Self::default() }
    }

    /// Remembers the record of `key` at `spot`, appended after all others.
    pub(crate) fn note(&mut self, spot: Spot, key: &Key) {
        if self.count_max == 0 {
            return;
        }
        if self.queue.len() >= self.count_max {
            self.forget_oldest();
        }
        let number = self.first + self.queue.len() as u64;
        match self.runs.get_mut(&spot.segment) {
            Some(run) if run.end == number => run.end += 1,
            // Of a segment that another one has interrupted, the later part counts.
            _ => {
                self.runs.insert(spot.segment, Run { first: number, end: number + 1 });
                self.segments.push_back(spot.segment);
            }
        }
        self.queue.push_back(Overwriter { line: spot.line, key_tail: tail_of(key) });
    }

    fn forget_oldest(&mut self) {
        self.queue.pop_front();
        self.first += 1;
        while let Some(segment) = self.segments.front()
            && self.runs.get(segment).is_none_or(|run| run.end <= self.first)
        {
            self.runs.remove(segment);
            self.segments.pop_front();
        }
    }

    /// Whether the record at `spot`, whose prefix is the key's, is of the key; `None` if it is not
    /// remembered.
    pub(crate) fn is_of(&self, spot: &Spot, key: &Key) -> Option<bool> {
        let run = self.runs.get(&spot.segment)?;
        let entry = |number: u64| self.queue.get(usize::try_from(number - self.first).ok()?);
        let (mut low, mut high) = (run.first.max(self.first), run.end);
        while low < high {
            let middle = low.midpoint(high);
            if entry(middle)?.line < spot.line { low = middle + 1 } else { high = middle }
        }
        let found = entry(low).filter(|found| low < run.end && found.line == spot.line)?;
        Some(found.key_tail == tail_of(key))
    }
}

fn tail_of(key: &Key) -> [u8; 16] {
    let [_, _, _, _, tail @ ..] = key.0;
    tail
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(number: u32) -> Key {
        let mut key = Key([7; 20]);
        key.0[16..].copy_from_slice(&number.to_le_bytes());
        key
    }

    #[test]
    fn records_are_known_by_segment_and_line() {
        let mut known = Overwriters::new(1 << 10);
        let spots = [(4, 0), (4, 3), (9, 0), (9, 7), (12, 1)];
        for (number, (segment, line)) in (0..).zip(spots) {
            known.note(Spot { segment, line }, &key(number));
        }
        for (number, (segment, line)) in (0..).zip(spots) {
            assert_eq!(known.is_of(&Spot { segment, line }, &key(number)), Some(true));
            assert_eq!(known.is_of(&Spot { segment, line }, &key(number + 1)), Some(false));
        }
        for (segment, line) in [(4, 1), (4, 4), (9, 1), (9, 8), (12, 0), (5, 0), (13, 0)] {
            assert_eq!(known.is_of(&Spot { segment, line }, &key(0)), None);
        }
    }

    #[test]
    fn the_oldest_go_first_and_an_interrupted_segment_says_nothing_wrong() {
        let mut known = Overwriters::new(1 << 10);
        known.note(Spot { segment: 1, line: 5 }, &key(1));
        known.note(Spot { segment: 2, line: 0 }, &key(2));
        known.note(Spot { segment: 1, line: 9 }, &key(3));
        assert_eq!(known.is_of(&Spot { segment: 1, line: 5 }, &key(1)), None);
        assert_eq!(known.is_of(&Spot { segment: 1, line: 9 }, &key(3)), Some(true));
        known.forget_oldest();
        known.forget_oldest();
        assert_eq!(known.is_of(&Spot { segment: 2, line: 0 }, &key(2)), None);
        assert_eq!(known.is_of(&Spot { segment: 1, line: 9 }, &key(3)), Some(true));
        known.forget_oldest();
        assert_eq!(known.is_of(&Spot { segment: 1, line: 9 }, &key(3)), None);
        assert!(known.runs.is_empty() && known.segments.is_empty());
        known.note(Spot { segment: 3, line: 1 }, &key(4));
        assert_eq!(known.is_of(&Spot { segment: 3, line: 1 }, &key(4)), Some(true));
    }

    #[test]
    fn no_more_is_remembered_than_there_is_room_for() {
        let mut known = Overwriters::new(3 * size_of::<Overwriter>());
        (0..9).for_each(|n| known.note(Spot { segment: u64::from(n / 4), line: n }, &key(n)));
        let is_known = |n| known.is_of(&Spot { segment: u64::from(n / 4), line: n }, &key(n));
        assert_eq!((0..9).filter(|n| is_known(*n) == Some(true)).collect::<Vec<_>>(), [6, 7, 8]);
        let mut none = Overwriters::new(size_of::<Overwriter>() - 1);
        none.note(Spot { segment: 1, line: 1 }, &key(1));
        assert_eq!(none.is_of(&Spot { segment: 1, line: 1 }, &key(1)), None);
    }
}
