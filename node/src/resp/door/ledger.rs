//! [`Ledger`]: how many bytes of values have been copied on their way, by whom.
//!
//! Counted is what a value's bytes meet between the disk or the memory of the store and the
//! socket: copies of ours where they are made, copies of the kernel by what the driver says of its
//! sends. A value that is not copied by us goes out from where the disk has put it, or from where
//! the store keeps it.

use std::cell::Cell;
use std::ops::AddAssign;
use std::rc::Rc;

/// Lengths from which the second and the third class of values begin.
const CLASS_LEN_MINS: [usize; 2] = [2 << 10, 32 << 10];
const CLASSES: usize = CLASS_LEN_MINS.len() + 1;
const CLASS_NAMES: [&str; CLASSES] = ["under_2k", "under_32k", "from_32k"];

/// On which way values went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Path {
    /// Read, and the store had it in memory.
    GetCached,
    /// Read by a command that waited for the disk.
    GetCold,
    /// Written.
    Set,
}

const PATH_NAMES: [&str; 3] = ["get_cached", "get_cold", "set"];

/// Values of one class.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Amount {
    pub(crate) values: u64,
    pub(crate) bytes: u64,
    /// Bytes copied by us; a byte that is copied twice counts twice.
    pub(crate) copied: u64,
}

/// Values of all classes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Amounts([Amount; CLASSES]);

impl Amounts {
    /// Notes a value that has been copied so many times.
    pub(crate) fn note(&mut self, len: usize, copies: u64) {
        self.note_copied(len, len as u64 * copies);
    }

    /// Notes a value of which so many bytes have been copied.
    pub(crate) fn note_copied(&mut self, len: usize, copied: u64) {
        let class = CLASS_LEN_MINS.iter().filter(|min| len >= **min).count();
        let amount = &mut self.0[class];
        amount.values += 1;
        amount.bytes += len as u64;
        amount.copied += copied;
    }

    fn is_empty(&self) -> bool {
        self.0.iter().all(|amount| amount.values == 0)
    }

    fn add(&mut self, other: &Self) {
        for (sum, more) in self.0.iter_mut().zip(other.0) {
            sum.values += more.values;
            sum.bytes += more.bytes;
            sum.copied += more.copied;
        }
    }
}

/// The sums of all connections of a door, which share it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ledger(Rc<[Cell<Amounts>; PATH_NAMES.len()]>);

impl Ledger {
    pub(crate) fn add(&self, path: Path, amounts: &Amounts) {
        if amounts.is_empty() {
            return;
        }
        let cell = &self.0[path as usize];
        let mut sum = cell.get();
        sum.add(amounts);
        cell.set(sum);
    }

    /// The sums so far.
    pub(crate) fn copies(&self) -> Copies {
        Copies(self.0.each_ref().map(Cell::get))
    }
}

/// What a ledger says; those of several threads can be added.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Copies([Amounts; PATH_NAMES.len()]);

impl AddAssign for Copies {
    fn add_assign(&mut self, other: Self) {
        self.0.iter_mut().zip(&other.0).for_each(|(sum, more)| sum.add(more));
    }
}

impl Copies {
    /// What INFO shows: a line for each path and class.
    pub(crate) fn lines(&self) -> impl Iterator<Item = (String, String)> {
        self.classes().map(|(path, class, Amount { values, bytes, copied })| {
            let figures = format!("values={values},bytes={bytes},copied_by_us={copied}");
            (format!("{path}_{class}"), figures)
        })
    }

    /// The names of each path and class, and what went that way.
    pub(crate) fn classes(&self) -> impl Iterator<Item = (&'static str, &'static str, Amount)> {
        let paths = self.0.iter().zip(PATH_NAMES);
        paths.flat_map(|(amounts, path)| {
            let classes = amounts.0.into_iter().zip(CLASS_NAMES);
            classes.map(move |(amount, class)| (path, class, amount))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_summed_by_path_and_length() {
        let ledger = Ledger::default();
        let mut amounts = Amounts::default();
        for len in [0, 2047, 2048, 32_767, 32_768] {
            amounts.note(len, 2);
        }
        ledger.add(Path::GetCold, &amounts);
        ledger.clone().add(Path::GetCold, &amounts);
        let lines: Vec<_> = ledger.copies().lines().collect();
        let line = |name: &str| lines.iter().find(|(known, _)| known == name).unwrap().1.clone();
        assert_eq!(line("get_cold_under_2k"), "values=4,bytes=4094,copied_by_us=8188");
        assert_eq!(line("get_cold_under_32k"), "values=4,bytes=69630,copied_by_us=139260");
        assert_eq!(line("get_cold_from_32k"), "values=2,bytes=65536,copied_by_us=131072");
        assert_eq!(line("set_under_2k"), "values=0,bytes=0,copied_by_us=0");
        assert_eq!(lines.len(), 9);
    }
}
