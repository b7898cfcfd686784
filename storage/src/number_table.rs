//! A table from hashes to numbers in a row, as small as it can be: 8 bytes a cell, at most half of
//! them in use, linear probing, and no trace left where something was removed.
//!
//! The numbers are those of a queue's entries: they span less than 2^31 at a time, so a cell holds
//! the low half of one. Whose number it is, the queue tells: hashes may coincide.

const IN_USE: u64 = 1 << 31;
const NUMBER_MASK: u64 = IN_USE - 1;
/// Cells of the smallest table, as a power of two.
const BITS_MIN: u32 = 6;

/// See the file's documentation.
#[derive(Debug, Default)]
pub(crate) struct NumberTable {
    /// Hash in the upper half; in the lower one, whether it is in use, and the number's low bits.
    cells: Vec<u64>,
    count: usize,
}

impl NumberTable {
    /// The number of that hash for which `is_it` says so; numbers are at least `first`.
    pub(crate) fn find(&self, hash: u32, first: u64, is_it: impl Fn(u64) -> bool) -> Option<u64> {
        if self.count == 0 {
            return None;
        }
        let mut at = self.home(hash);
        loop {
            let cell = self.cells[at];
            if cell & IN_USE == 0 {
                return None;
            }
            if cell >> 32 == u64::from(hash) {
                let number = first + (cell.wrapping_sub(first) & NUMBER_MASK);
                if is_it(number) {
                    return Some(number);
                }
            }
            at = self.after(at);
        }
    }

    /// Adds a number that is not there.
    pub(crate) fn insert(&mut self, hash: u32, number: u64) {
        if 2 * (self.count + 1) > self.cells.len() {
            self.grow();
        }
        self.count += 1;
        self.place(cell_of(hash, number));
    }

    /// Replaces a number that is there.
    ///
    /// # Panics
    /// If it is not.
    pub(crate) fn replace(&mut self, hash: u32, old: u64, new: u64) {
        let at = self.position(hash, old);
        self.cells[at] = cell_of(hash, new);
    }

    /// Takes out a number that is there.
    ///
    /// # Panics
    /// If it is not.
    pub(crate) fn remove(&mut self, hash: u32, number: u64) {
        let mut hole = self.position(hash, number);
        let mut at = hole;
        let mask = self.cells.len() - 1;
        loop {
            at = self.after(at);
            let cell = self.cells[at];
            if cell & IN_USE == 0 {
                break;
            }
            // It may fill the hole unless its home lies behind that.
            let from_home = at.wrapping_sub(self.home((cell >> 32) as u32)) & mask;
            if from_home >= (at.wrapping_sub(hole) & mask) {
                self.cells[hole] = cell;
                hole = at;
            }
        }
        self.cells[hole] = 0;
        self.count -= 1;
    }

    /// Takes everything out.
    pub(crate) fn clear(&mut self) {
        self.cells.fill(0);
        self.count = 0;
    }

    /// Where a hash is looked for first: by its upper bits.
    fn home(&self, hash: u32) -> usize {
        ((u64::from(hash) * self.cells.len() as u64) >> 32) as usize
    }

    fn after(&self, at: usize) -> usize {
        (at + 1) & (self.cells.len() - 1)
    }

    fn position(&self, hash: u32, number: u64) -> usize {
        let cell = cell_of(hash, number);
        let mut at = self.home(hash);
        while self.cells[at] != cell {
            assert!(self.cells[at] & IN_USE != 0, "number {number} is in the table");
            at = self.after(at);
        }
        at
    }

    fn place(&mut self, cell: u64) {
        let mut at = self.home((cell >> 32) as u32);
        while self.cells[at] & IN_USE != 0 {
            at = self.after(at);
        }
        self.cells[at] = cell;
    }

    fn grow(&mut self) {
        let len = (2 * self.cells.len()).max(1 << BITS_MIN);
        let old = std::mem::replace(&mut self.cells, vec![0; len]);
        old.into_iter().filter(|cell| cell & IN_USE != 0).for_each(|cell| self.place(cell));
    }
}

fn cell_of(hash: u32, number: u64) -> u64 {
    (u64::from(hash) << 32) | IN_USE | (number & NUMBER_MASK)
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;

    /// Against a queue that is searched, with few hashes so that many coincide and probes wrap.
    #[test]
    fn table_finds_what_a_search_finds() {
        let mut random = fastrand::Rng::with_seed(7);
        for spread in [3, 40, 5_000] {
            let hash = |key: u32| key.wrapping_mul(u32::MAX / spread);
            let mut table = NumberTable::default();
            let mut queue: VecDeque<Option<u32>> = VecDeque::new();
            // Close to where the low half of a number wraps.
            let mut first = (1 << 31) - 500;
            for _ in 0..20_000 {
                let key = random.u32(..2 * spread);
                let is_it = |number: u64| queue[(number - first) as usize] == Some(key);
                let found = table.find(hash(key), first, is_it);
                let wanted = queue.iter().position(|entry| *entry == Some(key));
                assert_eq!(found, wanted.map(|at| first + at as u64));
                let number = first + queue.len() as u64;
                match random.u32(..10) {
                    0..5 => {
                        if let Some(at) = wanted {
                            queue[at] = None;
                            table.replace(hash(key), first + at as u64, number);
                        } else {
                            table.insert(hash(key), number);
                        }
                        queue.push_back(Some(key));
                    }
                    _ => {
                        if let Some(entry) = queue.pop_front() {
                            entry.into_iter().for_each(|key| table.remove(hash(key), first));
                            first += 1;
                        }
                    }
                }
                if random.u32(..5_000) == 0 {
                    table.clear();
                    queue.iter_mut().for_each(|entry| *entry = None);
                }
            }
        }
    }
}
