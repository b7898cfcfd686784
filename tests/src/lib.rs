//! Simulator and harnesses.

#![forbid(unsafe_code)]

pub mod cluster_world;
pub mod conformance;
pub mod crash_loop;
pub mod disk;
pub mod edge_lens;
pub mod exposition;
pub mod fuzz;
pub mod http_client;
pub mod ledger;
pub mod mainline_world;
pub mod net_world;
pub mod node_process;
pub mod resp_client;
pub mod simulated_io;
pub mod store_world;
pub mod tally;
pub mod tool_process;
pub mod workload;
