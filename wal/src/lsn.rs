//! The log sequence number: the ordinal of a record in its shard's log, from 1.

use std::fmt;

/// A log sequence number; 0 stands before the first record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lsn(pub u64);

impl Lsn {
    /// Before the first record.
    pub const ZERO: Self = Self(0);
    /// No number found on disk is above this: a higher one is damage, and arithmetic stays safe.
    pub const MAX: Self = Self(1 << 62);

    /// Returns the number of the next record.
    #[must_use]
    pub fn next(self) -> Self {
        self.plus(1)
    }

    /// Returns the number `count` records later.
    ///
    /// # Panics
    /// After 2^64 records.
    #[must_use]
    pub fn plus(self, count: u64) -> Self {
        Self(self.0.checked_add(count).expect("a log does not reach 2^64 records"))
    }

    /// Returns the number before this one; [`Lsn::ZERO`] has none and yields itself.
    #[must_use]
    pub fn before(self) -> Self {
        Self(self.0.saturating_sub(1))
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}
