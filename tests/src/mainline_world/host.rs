//! [`MainlineHost`]: a Mainline node with maps for an engine, as the simulated network wants it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::ops::Bound;

use bytes::Bytes;
use kadring::io::Monotonic;
use kadring::kademlia::NodeId;
use kadring::mainline::MainlineNode;
use kadring::mainline::node::event::{MainlineEvent, SOCKET_V4, SOCKET_V6, Scanned, StoreWork};
use kadring::mainline::retention::{Held, Page};
use storage::Now;

use crate::net_world::Host;

/// When the virtual clock starts, in ms since 1970.
const EPOCH_MS: u64 = 1_700_000_000_000;

/// Both clocks at a time of the simulation.
#[must_use]
pub fn clock(now: Monotonic) -> Now {
    Now { monotonic_ns: now.0, clock_ms: EPOCH_MS + now.0 / 1_000_000 }
}

/// What an engine holds, durable at once.
#[derive(Clone, Debug, Default)]
pub struct Engine {
    /// Records and when they expire.
    pub items: BTreeMap<NodeId, (Bytes, u64)>,
    /// The same of torrents.
    pub peers: BTreeMap<NodeId, (Vec<u8>, u64)>,
    /// What the node wants to know again.
    pub state: Option<Vec<u8>>,
}

/// A node and its engine.
#[derive(Debug)]
pub struct MainlineHost {
    /// The node.
    pub node: MainlineNode,
    /// Its engine.
    pub engine: Engine,
}

impl MainlineHost {
    /// Puts both together; what the engine knows from an earlier life goes to the node.
    ///
    /// # Panics
    /// If the engine holds a state that is none.
    #[must_use]
    pub fn new(now: Monotonic, mut node: MainlineNode, engine: Engine) -> Self {
        if let Some(state) = &engine.state {
            node.restore(clock(now), state).expect("the node wrote it");
        }
        for (info_hash, (record, _)) in &engine.peers {
            node.restore_peers(info_hash, record);
        }
        let mut host = Self { node, engine };
        host.settle(now);
        host
    }

    /// Lets something be done with the node, then plays the engine.
    pub fn act<T>(&mut self, now: Monotonic, act: impl FnOnce(&mut MainlineNode, Now) -> T) -> T {
        let done = act(&mut self.node, clock(now));
        self.settle(now);
        done
    }

    /// Tells whether a record is held that has not expired.
    #[must_use]
    pub fn holds(&self, now: Monotonic, target: &NodeId) -> bool {
        self.item(now, target).is_some()
    }

    fn item(&self, now: Monotonic, target: &NodeId) -> Option<&Bytes> {
        let (record, expiry_ms) = self.engine.items.get(target)?;
        (*expiry_ms > clock(now).clock_ms).then_some(record)
    }

    fn settle(&mut self, now: Monotonic) {
        let time = clock(now);
        self.node.end_turn(time);
        while let Some(work) = self.node.poll_store() {
            match work {
                StoreWork::Load { target } => {
                    let record = self.item(now, &target).cloned();
                    self.node.handle_loaded(time, target, Ok(record));
                }
                StoreWork::Store { target, record, expiry_ms } => {
                    self.engine.items.insert(target, (record, expiry_ms));
                    self.node.handle_stored(time, target, Ok(()));
                }
                StoreWork::Remove { target } => drop(self.engine.items.remove(&target)),
                StoreWork::StorePeers { info_hash, record } => match record {
                    Some(record) => drop(self.engine.peers.insert(info_hash, record)),
                    None => drop(self.engine.peers.remove(&info_hash)),
                },
                StoreWork::Scan { after, count } => {
                    let (items, is_last) = self.scan(after, count);
                    self.node.handle_scanned(time, &items, is_last);
                }
                StoreWork::List(page) => {
                    let (keys, is_last) = self.list(&page);
                    self.node.handle_page(&keys, is_last);
                }
                StoreWork::SaveState(state) => self.engine.state = Some(state),
            }
        }
    }

    fn scan(&self, after: Option<NodeId>, count: usize) -> (Vec<Scanned>, bool) {
        let start = after.map_or(Bound::Unbounded, Bound::Excluded);
        let mut items = self.engine.items.range((start, Bound::Unbounded));
        let scanned = items
            .by_ref()
            .take(count)
            .map(|(target, (record, _))| Scanned { target: *target, record: Some(record.clone()) });
        (scanned.collect(), items.next().is_none())
    }

    fn list(&self, page: &Page) -> (Vec<Held>, bool) {
        let shares = |target: &NodeId| target.shared_bits(&page.prefix) >= page.prefix_bits;
        let mut items = self
            .engine
            .items
            .iter()
            .filter(|(target, _)| shares(target) && page.after.is_none_or(|after| **target > after))
            .map(|(target, (_, expiry_ms))| Held { target: *target, expiry_ms: *expiry_ms });
        let keys = items.by_ref().take(page.count).collect();
        (keys, items.next().is_none())
    }
}

impl Host for MainlineHost {
    type Event = MainlineEvent;

    fn handle_datagram(&mut self, now: Monotonic, from: SocketAddr, datagram: &[u8]) {
        let socket = if from.is_ipv4() { SOCKET_V4 } else { SOCKET_V6 };
        self.act(now, |node, time| node.handle_datagram(time, socket, from, datagram));
    }

    fn handle_time(&mut self, now: Monotonic) {
        self.act(now, MainlineNode::handle_time);
    }

    fn deadline(&self) -> Option<Monotonic> {
        self.node.deadline()
    }

    fn poll_transmit(&mut self) -> Option<(SocketAddr, Vec<u8>)> {
        self.node.poll_transmit().map(|(_, to, datagram)| (to, datagram))
    }

    fn poll_event(&mut self) -> Option<MainlineEvent> {
        self.node.poll_event()
    }
}
