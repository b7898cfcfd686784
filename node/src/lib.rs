//! kadring: a persistent Kademlia storage node.
//!
//! ```text
//! client ── RESP ──> resp::door ──> keyspace ──> storage (one store per shard) ──> wal
//!                        │                           │
//!                        └──── io::Request ──────────┴──> io (three drivers): all kernel calls
//! ```
//!
//! [`node::run`] opens the data directory, recovers every shard and then turns one loop per thread
//! ([`event_loop`]): wait for completions, feed them to the cores, take what the cores want done.
//! Everything but [`io`], [`cli`] and the wiring in [`node`] is sans-I/O.

#![deny(unsafe_code)]

pub mod admin;
pub mod check;
pub mod cli;
pub mod cluster;
pub mod config;
mod crew;
pub mod event_loop;
pub mod export;
pub mod histogram;
#[expect(unsafe_code, reason = "the ring hands addresses of our memory to the kernel")]
pub mod io;
pub mod kademlia;
mod key_ids;
pub mod keyspace;
pub mod krpc;
pub mod logging;
pub mod mainline;
mod mode_note;
pub mod node;
pub mod offline;
pub mod peer;
pub mod peer_door;
pub mod resp;
mod shortages;
pub mod snapshot;
mod write_times;
