//! What makes many nodes one key space, without I/O: who belongs to it, which nodes hold a key,
//! writes and reads by majority, and the background work that makes copies equal again.
//!
//! ```text
//! client ──> coordinator ── Put, Get ──> node/serve ── StoreRequest ──> store
//!                 ^                        ^  (loops back for the node's own copies)
//!            placement <── membership      └── exchange (anti-entropy), hand_off
//! ```
//!
//! [`ClusterNode`] joins the parts. It is told of time, messages, lost links and what the store
//! answered, and says what is to be sent, stored and told to clients. Same inputs, same outputs.
//! docs/adr/0020 says why it is so; the simulator tries it (`sim cluster`).

pub mod clock;
pub mod coordinator;
pub mod digest;
pub mod digest_table;
mod exchange;
mod hand_off;
pub mod links;
pub mod membership;
pub mod message;
pub mod mutation;
pub mod node;
pub mod outbox;
mod pace;
pub mod placement;
pub mod prefix;
pub mod records;
pub mod replica;
pub mod secret;
pub mod settings;
pub mod side;
pub mod state;
pub mod store;
pub mod view;

pub use node::ClusterNode;
pub use settings::ClusterSettings;
