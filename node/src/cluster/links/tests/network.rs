//! A network in memory: it does what [`PeerLinks`] asks of a driver, cuts streams wherever it
//! likes, and lets time pass when nothing else is to be done.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::SocketAddr;

use fastrand::Rng;

use crate::cluster::links::{LinkEvent, LinkLimits, LinkOptions, PeerLinks};
use crate::cluster::message::PeerMessage;
use crate::cluster::secret::MacKey;
use crate::io::{
    AttemptId, Completion, ConnectionId, ListenerId, Monotonic, ReceiveBuffer, Request,
};
use crate::kademlia::NodeId;

pub(super) const LISTENER: ListenerId = ListenerId(1);
/// Bytes under way in one direction.
const PIPE_BYTES: usize = 64 * 1024;

/// One end of a connection. The test itself holds those without an owner.
#[derive(Debug)]
struct End {
    owner: Option<usize>,
    other: ConnectionId,
    inbox: VecDeque<u8>,
    has_ended: bool,
    is_receiving: bool,
    outbox: Option<VecDeque<u8>>,
    /// All that was ever sent from here.
    sent: Vec<u8>,
}

pub(super) struct Node {
    pub(super) links: PeerLinks,
    pub(super) events: Vec<LinkEvent>,
    pub(super) address: SocketAddr,
    pub(super) takes_events: bool,
    is_running: bool,
    is_frozen: bool,
    is_listening: bool,
    completions: VecDeque<Completion>,
}

pub(super) struct Network {
    pub(super) now: Monotonic,
    pub(super) rng: Rng,
    pub(super) nodes: Vec<Node>,
    ends: BTreeMap<ConnectionId, End>,
    last: u64,
    attempts: Vec<(usize, AttemptId, SocketAddr, Monotonic)>,
    /// Addresses that never answer.
    pub(super) holes: Vec<SocketAddr>,
    starts: u8,
    /// When attempts were made, and where to.
    pub(super) connects: Vec<(Monotonic, SocketAddr)>,
}

pub(super) fn id(number: usize) -> NodeId {
    let mut id = [0x10; 20];
    id[19] = u8::try_from(number).unwrap();
    NodeId(id)
}

pub(super) fn address(number: usize) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, u8::try_from(number).unwrap() + 1], 7400))
}

pub(super) fn options(number: usize) -> LinkOptions {
    LinkOptions {
        node: id(number),
        cluster: NodeId([0xcc; 20]),
        address: address(number),
        listener: LISTENER,
        key: None,
        limits: LinkLimits::default(),
        seed: [u8::try_from(number).unwrap(); 32],
    }
}

pub(super) fn key(byte: u8) -> Option<MacKey> {
    Some(MacKey::new([byte; 32]))
}

impl Network {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            now: Monotonic(1_000_000_000),
            rng: Rng::with_seed(seed),
            nodes: Vec::new(),
            ends: BTreeMap::new(),
            last: 0,
            attempts: Vec::new(),
            holes: Vec::new(),
            starts: 0,
            connects: Vec::new(),
        }
    }

    /// So many nodes that know each other's addresses, as `change` has them.
    pub(super) fn of(seed: u64, count: usize, change: impl Fn(&mut LinkOptions)) -> Self {
        let mut net = Self::new(seed);
        for number in 0..count {
            let mut options = options(number);
            change(&mut options);
            net.add(options);
        }
        net.introduce();
        net
    }

    pub(super) fn introduce(&mut self) {
        let known: Vec<_> = (0..self.nodes.len()).map(|n| (id(n), address(n))).collect();
        for node in &mut self.nodes {
            known.iter().for_each(|(id, address)| node.links.learn(*id, *address));
        }
    }

    pub(super) fn add(&mut self, options: LinkOptions) -> usize {
        let address = options.address;
        self.nodes.push(Node {
            links: PeerLinks::new(options),
            events: Vec::new(),
            address,
            takes_events: true,
            is_running: true,
            is_frozen: false,
            is_listening: true,
            completions: VecDeque::new(),
        });
        self.nodes.len() - 1
    }

    /// The process dies: its connections end, and nobody listens.
    pub(super) fn kill(&mut self, node: usize) {
        self.nodes[node].is_running = false;
        self.nodes[node].completions.clear();
        self.attempts.retain(|(of, ..)| *of != node);
        let its = |end: &End| end.owner == Some(node);
        let ends: Vec<_> =
            self.ends.iter().filter(|(_, end)| its(end)).map(|(id, _)| *id).collect();
        ends.into_iter().for_each(|end| self.remove_end(end));
    }

    /// It starts again, as another process.
    pub(super) fn restart(&mut self, node: usize, mut options: LinkOptions) {
        self.starts += 1;
        options.seed[1] = self.starts;
        let old = &mut self.nodes[node];
        (old.links, old.is_running, old.is_listening) = (PeerLinks::new(options), true, true);
        self.introduce();
    }

    pub(super) fn stop_listening(&mut self, node: usize) {
        self.nodes[node].is_listening = false;
    }

    /// It does nothing any more, and its kernel goes on.
    pub(super) fn freeze(&mut self, node: usize, is_frozen: bool) {
        self.nodes[node].is_frozen = is_frozen;
    }

    /// All connections between nodes are reset.
    pub(super) fn cut(&mut self) {
        let ends: Vec<_> = self.ends.keys().copied().collect();
        ends.into_iter().for_each(|end| self.end_of(end));
    }

    /// Ends that nodes hold, closing ones included.
    pub(super) fn open_ends(&self) -> usize {
        self.ends.values().filter(|end| end.owner.is_some()).count()
    }

    /// All that was ever sent by this node over connections that it still has.
    pub(super) fn sent_by(&self, node: usize) -> Vec<Vec<u8>> {
        let its = self.ends.values().filter(|end| end.owner == Some(node));
        its.map(|end| end.sent.clone()).collect()
    }

    fn remove_end(&mut self, id: ConnectionId) {
        if let Some(end) = self.ends.remove(&id) {
            self.end_of(end.other);
        }
    }

    /// Nothing comes to this end any more.
    fn end_of(&mut self, id: ConnectionId) {
        if let Some(end) = self.ends.get_mut(&id) {
            end.has_ended = true;
        }
    }

    fn pair(&mut self, first: Option<usize>, second: Option<usize>) -> [ConnectionId; 2] {
        let ids = [self.last + 1, self.last + 2].map(ConnectionId);
        self.last += 2;
        for (owner, id, other) in [(first, ids[0], ids[1]), (second, ids[1], ids[0])] {
            let (inbox, sent) = (VecDeque::new(), Vec::new());
            let (has_ended, is_receiving, outbox) = (false, false, None);
            let end = End { owner, other, inbox, has_ended, is_receiving, outbox, sent };
            self.ends.insert(id, end);
        }
        ids
    }

    /// A stranger connects.
    pub(super) fn stranger(&mut self, to: usize, from: SocketAddr) -> ConnectionId {
        let [here, there] = self.pair(None, Some(to));
        let (listener, connection) = (LISTENER, there);
        let accepted = Completion::Accepted { listener, connection, peer: from };
        self.nodes[to].completions.push_back(accepted);
        here
    }

    pub(super) fn write(&mut self, stranger: ConnectionId, bytes: &[u8]) {
        let other = self.ends[&stranger].other;
        if let Some(end) = self.ends.get_mut(&other) {
            end.inbox.extend(bytes);
        }
    }

    /// What came to the stranger, and whether the connection has ended.
    pub(super) fn read(&mut self, stranger: ConnectionId) -> (Vec<u8>, bool) {
        let end = self.ends.get_mut(&stranger).unwrap();
        (end.inbox.drain(..).collect(), end.has_ended)
    }

    pub(super) fn send(&mut self, from: usize, to: usize, message: PeerMessage) {
        let now = self.now;
        self.nodes[from].links.send(now, id(to), message);
    }

    pub(super) fn connect(&mut self, from: usize, node: Option<usize>, to: SocketAddr) {
        let now = self.now;
        self.nodes[from].links.connect(now, node.map(id), to);
    }

    /// Goes on a little.
    pub(super) fn some_steps(&mut self) {
        let count = self.rng.usize(1..10);
        (0..count).for_each(|_| {
            self.step();
        });
    }

    /// Goes on until nothing happens any more at this time.
    pub(super) fn settle(&mut self) {
        while self.step() {}
    }

    /// Goes on for so long.
    pub(super) fn run_ms(&mut self, millis: u64) {
        let end = self.now.plus_millis(millis);
        let mut still = 0;
        loop {
            self.settle();
            let Some(next) = self.next_time().filter(|next| *next <= end) else { break };
            still = if next > self.now { 0 } else { still + 1 };
            assert!(still < 100, "the clock stands still");
            self.now = self.now.max(next);
            self.tick();
        }
        self.now = end;
        self.tick();
        self.settle();
    }

    fn next_time(&self) -> Option<Monotonic> {
        let nodes = self.nodes.iter().filter(|node| node.is_running && !node.is_frozen);
        let deadlines = nodes.filter_map(|node| node.links.deadline());
        deadlines.chain(self.attempts.iter().map(|(.., deadline)| *deadline)).min()
    }

    fn tick(&mut self) {
        let now = self.now;
        for node in self.nodes.iter_mut().filter(|node| node.is_running && !node.is_frozen) {
            node.links.handle_time(now);
        }
        let due: Vec<_> = self.attempts.extract_if(.., |(.., deadline)| *deadline <= now).collect();
        for (node, attempt, ..) in due {
            self.connected(node, attempt, Err(io::ErrorKind::TimedOut.into()));
        }
    }

    fn connected(&mut self, node: usize, attempt: AttemptId, result: io::Result<ConnectionId>) {
        self.nodes[node].completions.push_back(Completion::Connected { attempt, result });
    }

    /// Does one thing of all that can be done.
    pub(super) fn step(&mut self) -> bool {
        for node in 0..self.nodes.len() {
            self.drain_outputs(node);
        }
        let mut choices: Vec<Choice> = Vec::new();
        for (number, node) in self.nodes.iter().enumerate() {
            if node.is_running && !node.is_frozen && !node.completions.is_empty() {
                choices.push(Choice::Complete(number));
            }
        }
        choices.extend(self.ends.iter().filter_map(|(id, end)| {
            let can_receive = end.is_receiving && (!end.inbox.is_empty() || end.has_ended);
            can_receive.then_some(Choice::Receive(*id))
        }));
        choices.extend(self.ends.iter().filter_map(|(id, end)| {
            end.outbox.as_ref()?;
            let is_full = |other: &End| other.inbox.len() >= PIPE_BYTES && !other.has_ended;
            let can_send = !self.ends.get(&end.other).is_some_and(is_full);
            can_send.then_some(Choice::Send(*id))
        }));
        for index in 0..self.attempts.len() {
            if !self.holes.contains(&self.attempts[index].2) {
                choices.push(Choice::Connect(index));
            }
        }
        let Some(choice) = self.rng.choice(choices) else { return false };
        self.act(choice);
        true
    }

    fn act(&mut self, choice: Choice) {
        match choice {
            Choice::Complete(node) => {
                if let Some(completion) = self.nodes[node].completions.pop_front() {
                    let now = self.now;
                    let _released = self.nodes[node].links.handle(now, completion);
                }
            }
            Choice::Receive(connection) => self.deliver(connection),
            Choice::Send(connection) => self.carry(connection),
            Choice::Connect(index) => {
                let (node, attempt, to, _) = self.attempts.remove(index);
                let is_there =
                    |other: &Node| other.address == to && other.is_running && other.is_listening;
                let Some(other) = self.nodes.iter().position(is_there) else {
                    self.connected(node, attempt, Err(io::ErrorKind::ConnectionRefused.into()));
                    return;
                };
                let [here, there] = self.pair(Some(node), Some(other));
                self.connected(node, attempt, Ok(here));
                let peer = SocketAddr::new(self.nodes[node].address.ip(), 50_000);
                let accepted = Completion::Accepted { listener: LISTENER, connection: there, peer };
                self.nodes[other].completions.push_back(accepted);
            }
        }
    }

    fn deliver(&mut self, connection: ConnectionId) {
        let wanted = if self.rng.bool() { self.rng.usize(1..100) } else { 16 * 1024 };
        let end = self.ends.get_mut(&connection).unwrap();
        let bytes: Vec<u8> = end.inbox.drain(..wanted.min(end.inbox.len())).collect();
        end.is_receiving = false;
        let len = bytes.len();
        let result = Ok(ReceiveBuffer::new(bytes.into(), len, 0));
        if let Some(owner) = end.owner {
            let received = Completion::Received { connection, result };
            self.nodes[owner].completions.push_back(received);
        }
    }

    fn carry(&mut self, connection: ConnectionId) {
        let wanted = if self.rng.u8(..4) == 0 { self.rng.usize(1..300) } else { 16 * 1024 };
        let end = self.ends.get_mut(&connection).unwrap();
        let (owner, other) = (end.owner, end.other);
        let outbox = end.outbox.as_mut().unwrap();
        let bytes: Vec<u8> = outbox.drain(..wanted.min(outbox.len())).collect();
        if outbox.is_empty() {
            end.outbox = None;
            if let Some(owner) = owner {
                let sent = Completion::Sent { connection, result: Ok(()) };
                self.nodes[owner].completions.push_back(sent);
            }
        }
        end.sent.extend(&bytes);
        if let Some(other) = self.ends.get_mut(&other).filter(|other| !other.has_ended) {
            other.inbox.extend(bytes);
        }
    }

    fn drain_outputs(&mut self, number: usize) {
        let node = &mut self.nodes[number];
        if !node.is_running || node.is_frozen {
            return;
        }
        while node.takes_events
            && let Some(event) = node.links.poll_event()
        {
            node.events.push(event);
        }
        while let Some(request) = self.nodes[number].links.poll_request() {
            self.take(number, request);
        }
    }

    fn take(&mut self, node: usize, request: Request) {
        match request {
            Request::Connect { attempt, to, deadline } => {
                self.connects.push((self.now, to));
                self.attempts.push((node, attempt, to, deadline));
            }
            Request::CancelConnect(attempt) => {
                let is_its = |(of, other, ..): &(usize, AttemptId, SocketAddr, Monotonic)| {
                    *of == node && *other == attempt
                };
                if let Some(index) = self.attempts.iter().position(is_its) {
                    self.attempts.remove(index);
                    let aborted = Err(io::ErrorKind::ConnectionAborted.into());
                    self.connected(node, attempt, aborted);
                }
            }
            Request::Receive(connection) => {
                let end = self.ends.get_mut(&connection).unwrap();
                assert!(!end.is_receiving, "one receive at a time");
                end.is_receiving = true;
            }
            Request::Send(connection, parts) => {
                let end = self.ends.get_mut(&connection).unwrap();
                assert!(end.outbox.is_none(), "one send at a time");
                let bytes = parts.concat();
                assert!(!bytes.is_empty(), "nothing to send");
                end.outbox = Some(bytes.into());
            }
            Request::Close(connection) => self.take_close(node, connection),
            other => panic!("{other:?}"),
        }
    }

    fn take_close(&mut self, node: usize, connection: ConnectionId) {
        let end = &self.ends[&connection];
        let completions = &mut self.nodes[node].completions;
        let aborted = || io::Error::from(io::ErrorKind::ConnectionAborted);
        if end.is_receiving {
            let result = Err(aborted());
            completions.push_back(Completion::Received { connection, result });
        }
        if end.outbox.is_some() {
            completions.push_back(Completion::Sent { connection, result: Err(aborted()) });
        }
        completions.push_back(Completion::Closed(connection));
        self.remove_end(connection);
    }
}

#[derive(Clone, Copy, Debug)]
enum Choice {
    Complete(usize),
    Receive(ConnectionId),
    Send(ConnectionId),
    Connect(usize),
}
