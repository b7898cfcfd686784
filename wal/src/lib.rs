//! Durable, ordered, checksummed frames in segment files.

#![forbid(unsafe_code)]

pub mod checksum;
pub mod disk;
pub mod extent;
pub mod footer;
pub mod frame;
pub mod fuzz;
pub mod group_commit;
mod lsn;
pub mod manifest;
pub mod procedure;
pub mod record;
pub mod replay;
pub mod segment;

pub use lsn::Lsn;
