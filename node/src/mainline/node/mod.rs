//! [`MainlineNode`]: a node of BitTorrent's DHT in both families of addresses, without I/O.
//!
//! ```text
//! handle_datagram ──> queries ──> Server ──> StoreWork ──> engine ──> handle_loaded, handle_stored
//!                 └─> replies ──> KademliaNode (IPv4, IPv6) ──> operations, mirror ──> events
//! ```
//!
//! One call in, then all of `poll_transmit`, `poll_store` and `poll_event` out, then `deadline`: that
//! is the contract. `end_turn` follows the last datagram of a turn of the loop.
//!
//! Public signatures (the bodies follow):
//!
//! ```text
//! MainlineNode::new(now: storage::Now, options: MainlineOptions, entropy: Entropy) -> Self
//! restore(&mut self, now: Now, state: &[u8]) -> Result<usize, StateError>   first of all, if there is a state
//! restore_peers(&mut self, info_hash: &NodeId, record: &[u8]) -> bool       at the start, each record of PEERS
//! set_held(&mut self, items: u64)                        how many items the engine holds, now and then
//! handle_datagram(&mut self, now: Now, socket: SocketId, from: SocketAddr, datagram: &[u8])
//! end_turn(&mut self, now: Now)
//! handle_time(&mut self, now: Now);  deadline(&self) -> Option<Monotonic>
//! handle_loaded(&mut self, now: Now, target: NodeId, Result<Option<Bytes>, LoadFailed>)
//! handle_stored(&mut self, now: Now, target: NodeId, Result<(), StoreFailed>)
//! handle_scanned(&mut self, now: Now, items: &[Scanned], is_last: bool)
//! handle_page(&mut self, items: &[Held], is_last: bool)
//! poll_transmit(&mut self) -> Option<(SocketId, SocketAddr, Vec<u8>)>
//! poll_store(&mut self) -> Option<StoreWork>
//! poll_event(&mut self) -> Option<MainlineEvent>
//! get(&mut self, now: Now, Get) -> Result<OperationId, RefusedOperation>
//! put(&mut self, now: Now, item: &Item<'_>, cas: Option<i64>) -> Result<OperationId, RefusedOperation>
//! get_peers(&mut self, now: Now, info_hash: NodeId) -> Result<OperationId, RefusedOperation>
//! announce(&mut self, now: Now, Announce) -> Result<OperationId, RefusedOperation>
//! sample(&mut self, now: Now, target: NodeId) -> Result<OperationId, RefusedOperation>
//! ping(&mut self, now: Now, to: SocketAddr) -> Result<OperationId, RefusedOperation>
//! cancel(&mut self, now: Now, OperationId)
//! state(&self) -> Vec<u8>                                 to be written before the node stops
//! is_ready(&self) -> bool;  own(&self, Family) -> Option<NodeId>;  external_address(&self, Family) -> Option<SocketAddr>
//! is_read_only(&self, Family) -> bool;  table(&self, Family) -> Option<&RoutingTable>
//! network_size(&self, Family) -> Option<f64>;  counters(&self) -> MainlineCounters;  mirror(&self) -> Option<MirrorProgress>
//! server(&self) -> &Server<..>: counters(), peers(), pending()
//! ```
//!
//! `MainlineOptions { sockets: [bool; 2] (IPv4, IPv6), seeds: Vec<SocketAddr>, server: ServerLimits
//! (locals and rates.loopback_exempt in it count for the tables and lookups, too), announced:
//! Announced, mirror: Option<MirrorOptions> }`, `MirrorOptions { keep_ms, interval_ms, per_second_max }`,
//! `Entropy { secret: [u8; 16], seed: [u8; 16], rng: fastrand::Rng }`: the first two from the kernel.

pub mod event;
