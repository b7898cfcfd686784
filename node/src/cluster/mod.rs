//! What makes many nodes one key space. So far: versions.

pub mod clock;
