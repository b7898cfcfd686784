//! A network of many nodes in one thread: virtual time, everything from one seed.
//!
//! ```text
//! scenario ── spawn, kill, lookup ──> World ── handle_datagram, handle_time ──> Host
//!    ^                                 │  ^                                      │
//!    └── events, oracle ───────────────┘  └──── Network: delay, loss, cuts <─────┘
//! ```
//!
//! [`World`] takes any [`Host`]: what the cores of a node offer anyway. Datagrams are the real
//! bytes. Every datagram that arrives goes into a hash; a seed that is run twice must give the same
//! one.

pub mod measure;
pub mod network;
pub mod oracle;
pub mod plot;
pub mod report;
pub mod scenario;
#[cfg(test)]
mod tests;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use fastrand::Rng;
use kadring::io::Monotonic;
use kadring::kademlia::{KademliaNode, NodeEvent};

use network::Network;

/// First address of the simulated network; every node has the next one.
const NET: u32 = 0x0A00_0001;
const PORT: u16 = 7400;

/// A node without I/O.
pub trait Host {
    /// What it tells the layer above.
    type Event;
    /// Takes a datagram.
    fn handle_datagram(&mut self, now: Monotonic, from: SocketAddr, datagram: &[u8]);
    /// Does what is due.
    fn handle_time(&mut self, now: Monotonic);
    /// When it has something to do next.
    fn deadline(&self) -> Option<Monotonic>;
    /// A datagram to send.
    fn poll_transmit(&mut self) -> Option<(SocketAddr, Vec<u8>)>;
    /// Something that has happened.
    fn poll_event(&mut self) -> Option<Self::Event>;
}

impl Host for KademliaNode {
    type Event = NodeEvent;

    fn handle_datagram(&mut self, now: Monotonic, from: SocketAddr, datagram: &[u8]) {
        Self::handle_datagram(self, now, from, datagram);
    }

    fn handle_time(&mut self, now: Monotonic) {
        Self::handle_time(self, now);
    }

    fn deadline(&self) -> Option<Monotonic> {
        Self::deadline(self)
    }

    fn poll_transmit(&mut self) -> Option<(SocketAddr, Vec<u8>)> {
        Self::poll_transmit(self)
    }

    fn poll_event(&mut self) -> Option<NodeEvent> {
        Self::poll_event(self)
    }
}

/// The address of a node.
///
/// # Panics
/// If there are more nodes than addresses.
#[must_use]
pub fn address(node: usize) -> SocketAddr {
    let node = u32::try_from(node).expect("so many nodes do not fit memory");
    SocketAddr::new(IpAddr::V4(Ipv4Addr::from(NET + node)), PORT)
}

/// The node at an address, if there can be one.
#[must_use]
pub fn node_at(address: &SocketAddr) -> Option<usize> {
    match address.ip() {
        IpAddr::V4(ip) if address.port() == PORT => {
            u32::from(ip).checked_sub(NET).and_then(|node| usize::try_from(node).ok())
        }
        _ => None,
    }
}

/// What happens next; in the order of time, then of making.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Entry {
    time: Monotonic,
    number: u64,
    what: What,
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum What {
    Arrival { from: usize, to: usize, is_v6: bool, datagram: Box<[u8]> },
    Timer { node: usize },
}

#[derive(Debug)]
struct Place<H> {
    host: Option<H>,
    /// When a timer is set for it already.
    armed: Option<Monotonic>,
    /// In IPv4 and in IPv6; `None`: the usual one, by its number.
    addresses: Option<[Option<SocketAddr>; 2]>,
}

impl<H> Place<H> {
    /// The address that datagrams of a family leave from.
    fn address(&self, node: usize, is_v6: bool) -> Option<SocketAddr> {
        match self.addresses {
            None => (!is_v6).then(|| address(node)),
            Some(addresses) => addresses[usize::from(is_v6)],
        }
    }
}

/// What has happened so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WorldCounters {
    /// Datagrams sent.
    pub sent: u64,
    /// Datagrams that arrived at a node that lives.
    pub arrived: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// Hash over time, ends and bytes of each.
    pub hash: u64,
}

/// Nodes and the network between them.
#[derive(Debug)]
pub struct World<H> {
    now: Monotonic,
    places: Vec<Place<H>>,
    /// Places with addresses of their own.
    by_address: BTreeMap<SocketAddr, usize>,
    queue: BinaryHeap<Reverse<Entry>>,
    number: u64,
    /// How the network behaves; may be changed at any time.
    pub network: Network,
    counters: WorldCounters,
}

impl<H: Host> World<H> {
    /// An empty world.
    #[must_use]
    pub fn new(network: Network) -> Self {
        Self {
            now: Monotonic(0),
            places: Vec::new(),
            by_address: BTreeMap::new(),
            queue: BinaryHeap::new(),
            number: 0,
            network,
            counters: WorldCounters::default(),
        }
    }

    /// Returns the time.
    #[must_use]
    pub fn now(&self) -> Monotonic {
        self.now
    }

    /// Returns what has happened.
    #[must_use]
    pub fn counters(&self) -> WorldCounters {
        self.counters
    }

    /// Counts the places, of nodes dead and alive.
    #[must_use]
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// Tells whether no node was ever there.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// Returns a node, if it lives.
    #[must_use]
    pub fn host(&self, node: usize) -> Option<&H> {
        self.places.get(node)?.host.as_ref()
    }

    /// Returns the nodes that live, in the order of their places.
    pub fn alive(&self) -> impl Iterator<Item = (usize, &H)> {
        let places = self.places.iter().enumerate();
        places.filter_map(|(node, place)| Some((node, place.host.as_ref()?)))
    }

    /// Adds an empty place.
    pub fn add_place(&mut self) -> usize {
        self.places.push(Place { host: None, armed: None, addresses: None });
        self.network.add_place();
        self.places.len() - 1
    }

    /// Adds an empty place with an address in IPv4, in IPv6 or in both.
    pub fn add_place_at(&mut self, addresses: [Option<SocketAddr>; 2]) -> usize {
        let place = self.add_place();
        self.move_to(place, addresses);
        place
    }

    /// Gives a place other addresses, as a provider does over night.
    pub fn move_to(&mut self, node: usize, addresses: [Option<SocketAddr>; 2]) {
        self.by_address.retain(|_, place| *place != node);
        self.by_address.extend(addresses.into_iter().flatten().map(|address| (address, node)));
        self.places[node].addresses = Some(addresses);
    }

    /// Starts a node in a place.
    pub fn start(&mut self, node: usize, host: H, observe: Observer<'_, H>) {
        self.places[node].host = Some(host);
        self.settle(node, observe);
    }

    /// Ends a node without notice.
    pub fn kill(&mut self, node: usize) -> Option<H> {
        self.places[node].armed = None;
        self.places[node].host.take()
    }

    /// Lets something be done with a node, then sends what it wants sent.
    pub fn with<T>(
        &mut self,
        node: usize,
        observe: Observer<'_, H>,
        act: impl FnOnce(&mut H, Monotonic) -> T,
    ) -> Option<T> {
        let now = self.now;
        let done = act(self.places.get_mut(node)?.host.as_mut()?, now);
        self.settle(node, observe);
        Some(done)
    }

    /// Goes on until `end`. What nodes tell goes to `observe`.
    pub fn run_until(&mut self, end: Monotonic, observe: Observer<'_, H>) {
        while self.queue.peek().is_some_and(|Reverse(entry)| entry.time <= end) {
            let Some(Reverse(entry)) = self.queue.pop() else { break };
            self.now = self.now.max(entry.time);
            match entry.what {
                What::Arrival { from, to, is_v6, datagram } => {
                    self.on_arrival(from, (to, is_v6), &datagram, &mut *observe);
                }
                What::Timer { node } => self.on_timer(node, entry.time, &mut *observe),
            }
        }
        self.now = self.now.max(end);
    }

    fn on_arrival(
        &mut self,
        from: usize,
        (to, is_v6): (usize, bool),
        datagram: &[u8],
        observe: Observer<'_, H>,
    ) {
        let Some(source) = self.places[from].address(from, is_v6) else { return };
        let Some(host) = self.places.get_mut(to).and_then(|place| place.host.as_mut()) else {
            return;
        };
        self.counters.arrived += 1;
        self.counters.bytes += datagram.len() as u64;
        let mut hash = mix(self.counters.hash, self.now.0);
        hash = mix(hash, (from as u64) << 32 | to as u64);
        for bytes in datagram.chunks(8) {
            let mut word = [0; 8];
            word[..bytes.len()].copy_from_slice(bytes);
            hash = mix(hash, u64::from_le_bytes(word));
        }
        self.counters.hash = hash;
        host.handle_datagram(self.now, source, datagram);
        self.settle(to, observe);
    }

    fn on_timer(&mut self, node: usize, time: Monotonic, observe: Observer<'_, H>) {
        let place = &mut self.places[node];
        if place.armed != Some(time) {
            return;
        }
        place.armed = None;
        let Some(host) = &mut place.host else { return };
        if host.deadline().is_some_and(|deadline| deadline <= self.now) {
            host.handle_time(self.now);
        }
        self.settle(node, observe);
    }

    /// Takes what a node has to say, and sets its timer.
    fn settle(&mut self, node: usize, observe: Observer<'_, H>) {
        loop {
            let Some(host) = &mut self.places[node].host else { return };
            if let Some(event) = host.poll_event() {
                observe(host, self.now, node, event);
            } else if let Some((to, datagram)) = host.poll_transmit() {
                self.send(node, &to, datagram);
            } else {
                break;
            }
        }
        let place = &mut self.places[node];
        let Some(deadline) = place.host.as_ref().and_then(Host::deadline) else { return };
        // Never at once: a node that does nothing at its deadline shall not stop the clock.
        let deadline = deadline.max(Monotonic(self.now.0 + 1));
        if place.armed.is_none_or(|armed| armed > deadline) {
            place.armed = Some(deadline);
            self.push(deadline, What::Timer { node });
        }
    }

    fn send(&mut self, from: usize, to: &SocketAddr, datagram: Vec<u8>) {
        self.counters.sent += 1;
        let is_v6 = to.is_ipv6();
        let usual = || {
            let place = node_at(to).filter(|to| *to < self.places.len())?;
            self.places[place].addresses.is_none().then_some(place)
        };
        let Some(to) = self.by_address.get(to).copied().or_else(usual) else { return };
        let datagram = datagram.into_boxed_slice();
        let [first, second] = self.network.pass(from, to, datagram.len());
        if let Some(delay) = second {
            let datagram = datagram.clone();
            self.push(Monotonic(self.now.0 + delay), What::Arrival { from, to, is_v6, datagram });
        }
        if let Some(delay) = first {
            self.push(Monotonic(self.now.0 + delay), What::Arrival { from, to, is_v6, datagram });
        }
    }

    fn push(&mut self, time: Monotonic, what: What) {
        self.number += 1;
        self.queue.push(Reverse(Entry { time, number: self.number, what }));
    }
}

/// Who listens to what nodes tell; may answer at once.
pub type Observer<'a, H> = &'a mut dyn FnMut(&mut H, Monotonic, usize, <H as Host>::Event);

fn mix(hash: u64, word: u64) -> u64 {
    (hash ^ word).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(29)
}

/// A generator of its own for each use of a seed, so that one more draw here changes nothing there.
#[must_use]
pub fn generator(seed: u64, usage: u64) -> Rng {
    Rng::with_seed(mix(mix(seed, 0x5EED), usage))
}
