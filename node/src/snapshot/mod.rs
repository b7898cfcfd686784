//! Snapshots of a data directory: what they hold, and what can be done with one at rest.
//!
//! ```text
//! DATA_DIR/snapshots/ID/catalog.toml          what belongs to it, with lengths and checksums
//! DATA_DIR/snapshots/ID/shard-NN/...          hard links to sealed segments, manifests of its own
//! ```
//!
//! Apart from its catalog, a snapshot is laid out as a data directory.

pub mod at_rest;
mod catalog;

pub use catalog::{CATALOG_FILE, Catalog, CatalogError, CatalogFile, is_valid_id};

/// The folder of a data directory that holds its snapshots.
pub const SNAPSHOTS_DIRECTORY: &str = "snapshots";
