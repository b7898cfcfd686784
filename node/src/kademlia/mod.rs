//! Kademlia without I/O: ids and distances, the routing table, iterative lookups.
//!
//! Nothing here reads a clock, draws randomness of its own or sends anything: callers pass `now`
//! and a generator, and take what is to be sent. [`KademliaNode`] makes a node of the parts, and is
//! the only one that knows of messages.
//!
//! ```text
//! Lookup ── next_query ──> (send) ──> reply ──> RoutingTable::on_reply, Lookup::on_response
//!    ^                                                       │
//!    └────────────── RoutingTable::closest ──────────────────┘
//! ```
//!
//! Source: Maymounkov and Mazieres, "Kademlia: A Peer-to-peer Information System Based on the XOR
//! Metric", 2002; BEP 5.

pub mod distance;
pub mod k_bucket;
pub mod lookup;
pub mod node;
pub mod node_id;
pub mod path_cache;
pub mod routing_table;
pub mod rules;

pub use distance::Distance;
pub use k_bucket::{Contact, Health};
pub use lookup::{Lookup, LookupLimits};
pub use node::{KademliaNode, NodeEvent, NodeOptions};
pub use node_id::NodeId;
pub use routing_table::{Admission, RoutingTable, TableLimits};
pub use rules::ContactRules;
