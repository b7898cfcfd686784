//! What makes many nodes one key space, without I/O. So far: versions, which nodes hold a key,
//! who belongs to the cluster, what nodes say to each other, and what a holder does with a record.

pub mod clock;
pub mod coordinator;
pub mod digest;
mod exchange;
mod hand_off;
pub mod membership;
pub mod message;
pub mod mutation;
pub mod node;
pub mod outbox;
pub mod placement;
pub mod prefix;
pub mod replica;
pub mod settings;
pub mod state;
pub mod store;

pub use node::ClusterNode;
pub use settings::ClusterSettings;
