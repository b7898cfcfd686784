//! Where each key's newest record stands, by the first 40 bits of the key: the compact paged table
//! in [`table`]. Key order is Kademlia's, so that prefixes of the key space are ranges here.

pub(crate) mod arena;
mod balance;
mod crowded;
mod directory;
pub(crate) mod load;
pub(crate) mod page;
pub(crate) mod probe;
pub(crate) mod slot;
pub(crate) mod table;
#[cfg(test)]
mod tests;
pub(crate) mod walk;

pub(crate) use slot::{ExpiryHint, Place, Prefix, SegmentNumber, SizeClass, Slot, SlotKind};
pub(crate) use table::{Candidates, Index, Standing};
pub(crate) use walk::{Cursor, Keep};
