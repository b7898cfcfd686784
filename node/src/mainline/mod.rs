//! Mainline without I/O: what a node of BitTorrent's DHT stores, answers and refuses.
//!
//! ```text
//! query ──> rate_limit ──> query (decode) ──> token ──> item ──> Output::{Load, Store} ──> engine
//!                                               │                          │
//!                                               └──> peer_store            └──> Output::Respond
//! ```
//!
//! [`Server`] is the state machine behind the datagrams: it takes the method and the raw arguments
//! of a query, and answers with the raw values of a response or with a [`Reject`]. The envelope,
//! transaction ids and addresses of replies are left to [`krpc`](crate::krpc); who is near a
//! target, to the routing table. [`MainlineNode`] puts it together with a
//! [`KademliaNode`](crate::kademlia::KademliaNode) for each family of addresses, and has the
//! client's side. Items live in the engine: a put is answered once its record is durable.
//! Peers live in memory ([`PeerStore`]) and are flushed by the second.
//!
//! Sources: BEP 5, 32, 33, 42, 43, 44 and 51. Where real nodes differ from them, docs/adr/0021 says
//! what is done here.

pub mod external_address;
pub mod filter;
pub mod item;
pub mod martian;
pub mod node;
pub mod node_id_by_ip;
pub mod outcome;
pub mod peer_side;
pub mod peer_store;
pub mod query;
pub mod rate_limit;
pub mod reachability;
pub mod reject;
pub mod retention;
pub mod server;
pub mod siphash;
pub mod subnet;
pub mod text;
pub mod token;
pub mod values;
pub mod zbase32;

pub use external_address::ExternalAddress;
pub use item::{Item, MutableItem};
pub use node::{MainlineNode, MainlineOptions};
pub use peer_store::PeerStore;
pub use query::{Query, QueryKind};
pub use reject::Reject;
pub use server::{Output, Server, ServerLimits};
pub use token::TokenKeys;
pub use values::Values;
