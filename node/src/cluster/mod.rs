//! What makes many nodes one key space, without I/O. So far: versions, which nodes hold a key, and
//! what nodes say to each other.

pub mod clock;
pub mod message;
pub mod placement;
pub mod prefix;
pub mod settings;

pub use settings::ClusterSettings;
