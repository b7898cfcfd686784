//! Snapshots of a data directory: how one is taken, what it holds, and work on one at rest.
//!
//! ```text
//! DATA_DIR/snapshots/ID/catalog.toml          what belongs to it, with lengths and checksums
//! DATA_DIR/snapshots/ID/shard-NN/...          hard links to sealed segments, manifests of its own
//! ```
//!
//! Apart from its catalog, a snapshot is laid out as a data directory.

pub mod at_rest;
mod catalog;
pub mod copy;
mod facts;
pub mod take;

#[cfg(test)]
mod tests;

pub use catalog::{CATALOG_FILE, Catalog, CatalogError, CatalogFile, is_valid_id};
pub use facts::{SnapshotFacts, SnapshotSpace};

/// The folder of a data directory that holds its snapshots.
pub const SNAPSHOTS_DIRECTORY: &str = "snapshots";

/// What the directory of a snapshot or copy is called until it is whole.
fn unfinished_name(name: &str) -> String {
    format!(".{name}{UNFINISHED_SUFFIX}")
}

const UNFINISHED_SUFFIX: &str = ".unfinished";
