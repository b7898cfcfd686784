//! A cluster in one process: real cores, model stores, virtual time, everything from one seed.
//!
//! Messages are delayed, lost, doubled and overtake each other; nodes crash, losing what was not
//! durable, and start again; the network is cut in two; nodes join, leave, lose their disk or die
//! for good. Clients write and read at any node. The `ledger` judges every answer, and once
//! faults have stopped everything must agree within a bounded time.

mod host;
mod ledger;
mod swarm;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt::Debug;

use bytes::Bytes;
use fastrand::Rng;
use kadring::cluster::coordinator::{CommandId, Consistency, Outcome, WriteCommand};
use kadring::cluster::message::codec::encode;
use kadring::cluster::message::{Content, PeerMessage, Phase, Record};
pub use kadring::cluster::mutation::Mutation;
use kadring::cluster::node::ClusterEvent;
use kadring::cluster::placement::replica_set;
use kadring::cluster::store::{RecordStore, StoreRequest, Ticket};
use kadring::kademlia::NodeId;
use storage::Now;
use wal::record::{Key, Version};

use host::Host;
use ledger::{Asked, Ledger};
use swarm::Mix;

const MS: u64 = 1_000_000;
const SECOND: u64 = 1_000 * MS;
const START_MS: u64 = 1_700_000_000_000;
/// After faults have stopped everything must agree within that.
const CONVERGE_WITHIN: u64 = 240 * SECOND;

/// What a run did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Of all events in their order.
    pub hash: u64,
    /// Messages that arrived.
    pub messages: u64,
    /// Acknowledged writes.
    pub writes: u64,
    /// Answered reads.
    pub reads: u64,
    /// Commands that found no majority.
    pub refused: u64,
    /// Crashes.
    pub crashes: u64,
    /// Cuts of the network.
    pub cuts: u64,
    /// Nodes that joined, left, lost their disk or died for good.
    pub moves: u64,
    /// Copies given up by nodes that are no longer in a replica set.
    pub discarded: u64,
    /// Virtual time after the faults until all agreed, in ms, the longest.
    pub converged_ms: u64,
}

impl Summary {
    /// Adds another run's figures.
    pub fn add(&mut self, other: &Self) {
        self.messages += other.messages;
        self.writes += other.writes;
        self.reads += other.reads;
        self.refused += other.refused;
        self.crashes += other.crashes;
        self.cuts += other.cuts;
        self.moves += other.moves;
        self.discarded += other.discarded;
        self.converged_ms = self.converged_ms.max(other.converged_ms);
    }
}

#[derive(Debug)]
enum Event {
    Deliver { from: usize, to: usize, boot: u32, message: PeerMessage },
    Unreachable { at: usize, boot: u32, other: NodeId },
    Stored { at: usize, boot: u32, ticket: Ticket },
    Restart { at: usize },
    Command,
    Fault,
}

/// The world.
struct World {
    rng: Rng,
    mix: Mix,
    mutation: Mutation,
    now_ns: u64,
    hosts: Vec<Host>,
    events: BTreeMap<(u64, u64), Event>,
    sequence: u64,
    /// Hosts of one side of a cut.
    cut: Option<Vec<bool>>,
    commands: BTreeMap<(usize, u32, CommandId), Asked>,
    ledger: Ledger,
    summary: Summary,
    faults_over: bool,
    quiet: bool,
}

/// Runs one seed.
///
/// # Errors
/// What went wrong.
pub fn run(seed: u64, mutation: Mutation) -> Result<Summary, String> {
    let mut world = World::new(seed, mutation);
    world.run().map_err(|error| {
        let error: String = error.chars().take(2_000).collect();
        format!("seed {seed} at {} ms: {error}\n{:?}", world.now_ns / MS, world.mix)
    })?;
    Ok(world.summary)
}

impl World {
    fn new(seed: u64, mutation: Mutation) -> Self {
        let mut rng = Rng::with_seed(seed);
        let mix = Mix::draw(&mut rng);
        let hosts = Host::cluster(&mix, mutation, &mut rng);
        Self {
            mix,
            mutation,
            now_ns: 0,
            hosts,
            events: BTreeMap::new(),
            sequence: 0,
            cut: None,
            commands: BTreeMap::new(),
            ledger: Ledger::default(),
            summary: Summary::default(),
            faults_over: false,
            quiet: false,
            rng,
        }
    }

    fn run(&mut self) -> Result<(), String> {
        self.at(SECOND, Event::Command);
        self.at(2 * SECOND, Event::Fault);
        for at in 0..self.hosts.len() {
            self.drain(at)?;
        }
        self.run_until(self.mix.length_s * SECOND, |_| false)?;
        self.stop_faults()?;
        let from = self.now_ns;
        self.run_until(from + 20 * SECOND, |_| false)?;
        self.quiet = true;
        let end = from + CONVERGE_WITHIN;
        self.run_until(end, |world| world.disagreement().is_none())?;
        if let Some(disagreement) = self.disagreement() {
            return Err(format!("no agreement: {disagreement}"));
        }
        self.summary.converged_ms = (self.now_ns - from) / MS;
        self.read_everything()?;
        let nodes = self.hosts.iter().filter_map(|host| host.core.as_ref());
        self.summary.discarded = nodes.map(|node| node.counters().copies_discarded).sum();
        Ok(())
    }

    fn at(&mut self, after_ns: u64, event: Event) {
        self.sequence += 1;
        self.events.insert((self.now_ns + after_ns, self.sequence), event);
    }

    fn note(&mut self, what: &impl Debug) {
        self.note_bytes(format!("{} {what:?}", self.now_ns).as_bytes());
    }

    fn note_bytes(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.summary.hash ^= u64::from(*byte);
            self.summary.hash = self.summary.hash.wrapping_mul(0x100_0000_01b3);
        }
    }

    /// Messages are noted as they are on the wire: that is quicker than to print them.
    fn note_event(&mut self, event: &Event) {
        let Event::Deliver { from, to, boot, message } = event else {
            self.note(event);
            return;
        };
        self.note(&(from, to, boot));
        for bytes in encode(message).into_iter().flatten() {
            self.note_bytes(&bytes);
        }
    }

    fn now_of(&self, at: usize) -> Now {
        let clock_ms = START_MS + self.now_ns / MS + self.hosts[at].skew_ms;
        Now { monotonic_ns: self.now_ns, clock_ms }
    }

    fn run_until(&mut self, end: u64, done: impl Fn(&Self) -> bool) -> Result<(), String> {
        let mut look_at = self.now_ns;
        while self.now_ns < end {
            if look_at <= self.now_ns {
                if done(self) {
                    return Ok(());
                }
                look_at = self.now_ns + 500 * MS;
            }
            let next_event = self.events.first_key_value().map_or(u64::MAX, |((at, _), _)| *at);
            let due = |host: &Host| host.core.as_ref().map_or(u64::MAX, |core| core.deadline_ns());
            let (next_due, host) = self
                .hosts
                .iter()
                .enumerate()
                .map(|(at, host)| (due(host), at))
                .min()
                .expect("there are hosts");
            let next = next_event.min(next_due).max(self.now_ns);
            if next >= end {
                self.now_ns = end;
                break;
            }
            self.now_ns = next;
            if next_due <= next && next_due < next_event {
                let now = self.now_of(host);
                // Nothing is due twice at one moment.
                let before = next_due;
                let core = self.hosts[host].core.as_mut().expect("the host is up");
                core.handle_time(now);
                if core.deadline_ns() <= before {
                    return Err(format!("host {host} stands still"));
                }
                self.drain(host)?;
            } else if let Some((_, event)) = self.events.pop_first() {
                self.note_event(&event);
                self.take(event)?;
            }
        }
        Ok(())
    }

    fn take(&mut self, event: Event) -> Result<(), String> {
        match event {
            Event::Deliver { from, to, boot, message } => {
                let from = self.hosts[from].id;
                if self.hosts[to].running(boot).is_some() {
                    self.summary.messages += 1;
                    let now = self.now_of(to);
                    self.hosts[to]
                        .core
                        .as_mut()
                        .expect("the host is up")
                        .handle_message(now, from, message);
                    self.drain(to)?;
                }
            }
            Event::Unreachable { at, boot, other } => {
                let now = self.now_of(at);
                if let Some(core) = self.hosts[at].running(boot) {
                    core.handle_unreachable(now, other);
                    self.drain(at)?;
                }
            }
            Event::Stored { at, boot, ticket } => {
                let now = self.now_of(at);
                if self.hosts[at].running(boot).is_some() {
                    let answer = self.hosts[at].make_durable(ticket);
                    self.hosts[at]
                        .core
                        .as_mut()
                        .expect("the host is up")
                        .handle_store(now, ticket, answer);
                    self.drain(at)?;
                }
            }
            Event::Restart { at } => self.restart(at)?,
            Event::Command => {
                if !self.quiet {
                    let after = self.rng.u64(1..2 * self.mix.command_every_ms) * MS;
                    self.at(after, Event::Command);
                    self.command()?;
                }
            }
            Event::Fault => {
                if !self.faults_over {
                    let after = self.rng.u64(1..2 * self.mix.fault_every_ms) * MS;
                    self.at(after, Event::Fault);
                    self.fault()?;
                }
            }
        }
        Ok(())
    }

    /// Takes what a core wants done.
    fn drain(&mut self, at: usize) -> Result<(), String> {
        let now = self.now_of(at);
        while let Some((ticket, request)) =
            self.hosts[at].core.as_mut().and_then(|core| core.poll_store())
        {
            if let StoreRequest::Discard { key, version } = &request {
                self.check_discard(at, key, *version)?;
            }
            let delay = self.rng.u64(1..self.mix.disk_ms * 2) * MS;
            let due = self.hosts[at].execute(self.now_ns + delay, ticket, request, now.clock_ms);
            let boot = self.hosts[at].boot;
            self.at(due - self.now_ns, Event::Stored { at, boot, ticket });
        }
        while let Some((to, message)) =
            self.hosts[at].core.as_mut().and_then(|core| core.poll_send())
        {
            self.send(at, to, message);
        }
        while let Some(event) = self.hosts[at].core.as_mut().and_then(|core| core.poll_event()) {
            self.note(&event);
            self.heed(at, event)?;
        }
        Ok(())
    }

    /// A copy may go only when all of the set have it, as the one who gives it up sees the set.
    fn check_discard(&self, at: usize, key: &Key, version: Version) -> Result<(), String> {
        let Some(core) = &self.hosts[at].core else { return Ok(()) };
        let set = replica_set(key, &core.members().placed(), self.mix.replicas);
        for id in set {
            let host = self.hosts.iter().find(|host| host.id == id);
            let held = host.and_then(|host| host.durable.read(key, 0));
            if held.is_none_or(|held| held.version < version) {
                return Err(format!(
                    "{:?} gives {key:?} up, which {id:?} lacks",
                    self.hosts[at].id
                ));
            }
        }
        Ok(())
    }

    fn send(&mut self, from: usize, to: NodeId, message: PeerMessage) {
        let Some(index) = self.hosts.iter().position(|host| host.id == to) else { return };
        let is_cut = self.cut.as_ref().is_some_and(|side| side[from] != side[index]);
        let is_down = self.hosts[index].core.is_none();
        let is_lost = !self.faults_over && self.rng.f64() < self.mix.loss;
        if is_cut || is_down || is_lost {
            if self.rng.bool() {
                let boot = self.hosts[from].boot;
                let after = self.rng.u64(1..200) * MS;
                self.at(after, Event::Unreachable { at: from, boot, other: to });
            }
            return;
        }
        let boot = self.hosts[index].boot;
        let copies = 1 + u32::from(!self.faults_over && self.rng.f64() < self.mix.doubled);
        for _ in 0..copies {
            let is_slow = !self.faults_over && self.rng.f64() < self.mix.slow;
            let delay = self.rng.u64(1..if is_slow { 900 } else { 6 }) * MS;
            let message = message.clone();
            self.at(delay, Event::Deliver { from, to: index, boot, message });
        }
    }

    fn heed(&mut self, at: usize, event: ClusterEvent) -> Result<(), String> {
        match event {
            ClusterEvent::Decided { command, outcome } => {
                let name = (at, self.hosts[at].boot, command);
                // What was decided at once is heeded by who asked.
                let Some(asked) = self.commands.remove(&name) else { return Ok(()) };
                self.judge(asked, outcome)
            }
            ClusterEvent::Copied { copies, .. } if copies > self.mix.replicas => {
                Err(format!("{copies} copies"))
            }
            ClusterEvent::Copied { .. } => Ok(()),
            ClusterEvent::Left => {
                self.hosts[at].stop(false, &mut self.rng);
                Ok(())
            }
        }
    }

    fn judge(&mut self, asked: Asked, outcome: Outcome) -> Result<(), String> {
        match &outcome {
            Outcome::Written { .. } => self.summary.writes += 1,
            Outcome::Found(_) => self.summary.reads += 1,
            _ => self.summary.refused += 1,
        }
        // Views differ while nodes come and go: only what is found is judged, not what is missed.
        self.ledger.judge(asked, &outcome, self.now_ns, self.mix.slack_ns())
    }

    fn command(&mut self) -> Result<(), String> {
        let at = self.rng.usize(..self.hosts.len());
        let key = self.rng.u32(..self.mix.keys);
        if self.hosts[at].core.is_none() {
            return Ok(());
        }
        match self.rng.u8(..10) {
            0..4 => self.ask_write(at, key, true),
            4..6 => self.ask_write(at, key, false),
            _ => self.ask_read(at, key),
        }
    }

    fn ask_write(&mut self, at: usize, key: u32, is_value: bool) -> Result<(), String> {
        let now = self.now_of(at);
        let asked = self.ledger.begin_write(key, is_value, self.now_ns);
        let value = is_value.then(|| Bytes::from(asked.value().to_string()));
        let core = self.hosts[at].core.as_mut().expect("the host is up");
        let command = WriteCommand { user_key: name_of(key), value, expiry_ms: 0 };
        let id = core.write(now, command);
        self.commands.insert((at, self.hosts[at].boot, id), asked);
        self.drain(at)
    }

    fn ask_read(&mut self, at: usize, key: u32) -> Result<(), String> {
        let now = self.now_of(at);
        let asked = Asked::read(key, self.now_ns);
        let core = self.hosts[at].core.as_mut().expect("the host is up");
        let id = core.read(now, &name_of(key), Consistency::Majority);
        self.commands.insert((at, self.hosts[at].boot, id), asked);
        self.drain(at)
    }

    fn fault(&mut self) -> Result<(), String> {
        let at = self.rng.usize(..self.hosts.len());
        match self.rng.u8(..10) {
            0..4 if self.mix.crashes && self.hosts[at].core.is_some() => {
                self.summary.crashes += 1;
                self.hosts[at].stop(true, &mut self.rng);
                let after = self.rng.u64(100..8_000) * MS;
                self.at(after, Event::Restart { at });
            }
            4..6 if self.mix.cuts => {
                self.summary.cuts += u64::from(self.cut.is_none());
                let side = self.hosts.iter().map(|_| self.rng.bool()).collect();
                self.cut = if self.cut.is_some() { None } else { Some(side) };
            }
            6 | 7 if self.mix.joins && self.hosts.len() < self.mix.hosts_max => {
                self.summary.moves += 1;
                let host = Host::joiner(&self.mix, &mut self.rng);
                self.hosts.push(host);
                if let Some(side) = &mut self.cut {
                    side.push(self.rng.bool());
                }
                self.restart(self.hosts.len() - 1)?;
            }
            8 if self.mix.leaves && self.member_count() > self.mix.replicas + 1 => {
                let now = self.now_of(at);
                if let Some(core) = self.hosts[at].core.as_mut()
                    && core.members().own().phase == Phase::Full
                {
                    self.summary.moves += 1;
                    core.leave(now);
                    self.hosts[at].is_leaving = true;
                    self.drain(at)?;
                }
            }
            9 if self.mix.deaths > 0 && self.member_count() > self.mix.replicas + 1 => {
                self.summary.moves += 1;
                self.mix.deaths -= 1;
                self.hosts[at].stop(true, &mut self.rng);
                self.hosts[at].is_dead = true;
            }
            _ => {}
        }
        Ok(())
    }

    fn member_count(&self) -> usize {
        self.hosts.iter().filter(|host| !host.is_dead && !host.is_leaving).count()
    }

    fn restart(&mut self, at: usize) -> Result<(), String> {
        if self.hosts[at].core.is_some() || self.hosts[at].is_dead || self.hosts[at].has_left() {
            return Ok(());
        }
        let now = self.now_of(at);
        let seed = self.rng.u64(..);
        self.hosts[at].start(&self.mix, self.mutation, seed, now);
        let seeds: Vec<NodeId> = self.hosts.iter().map(|host| host.id).collect();
        let core = self.hosts[at].core.as_mut().expect("the host is up");
        for seed in seeds.into_iter().take(3) {
            core.add_contact(now, seed, Bytes::new());
        }
        self.drain(at)
    }

    fn stop_faults(&mut self) -> Result<(), String> {
        (self.faults_over, self.cut) = (true, None);
        for at in 0..self.hosts.len() {
            self.restart(at)?;
        }
        Ok(())
    }

    fn live(&self) -> impl Iterator<Item = &Host> {
        self.hosts.iter().filter(|host| host.core.is_some())
    }

    /// Why the cluster is not yet as it should be.
    fn disagreement(&self) -> Option<String> {
        let mut placed: Vec<NodeId> = Vec::new();
        for host in self.live() {
            let core = host.core.as_ref().expect("the host is up");
            let own = core.members().placed();
            if placed.is_empty() {
                placed = own;
            } else if placed != own {
                return Some(format!("members of {:?}: {placed:?} {own:?}", host.id));
            }
            if !core.pending().is_empty() {
                return Some(format!("{:?} lacks {:?}", host.id, core.pending()));
            }
        }
        if let Some(gone) = placed.iter().find(|id| self.live().all(|host| host.id != **id)) {
            return Some(format!("{gone:?} is still counted"));
        }
        if let Some(leaving) = self.live().find(|host| host.is_leaving) {
            return Some(format!("{:?} has not left", leaving.id));
        }
        let mut newest = BTreeMap::<_, &Record>::new();
        for record in self.live().flat_map(|host| host.durable.records()) {
            let known = newest.entry(record.key).or_insert(record);
            if record.version > known.version {
                *known = record;
            }
        }
        for (key, record) in newest {
            let set = replica_set(&key, &placed, self.mix.replicas);
            for host in self.live() {
                let held = host.durable.records().find(|held| held.key == key);
                let is_in_set = set.contains(&host.id);
                if is_in_set && held != Some(record) {
                    return Some(format!("{:?} has {held:?}, not {record:?}", host.id));
                }
                if !is_in_set && held.is_some() {
                    return Some(format!("{:?} still has {held:?}", host.id));
                }
            }
        }
        None
    }

    /// Reads every key at every node.
    fn read_everything(&mut self) -> Result<(), String> {
        self.mix.make_stable();
        let hosts: Vec<usize> =
            (0..self.hosts.len()).filter(|at| self.hosts[*at].core.is_some()).collect();
        let before = self.summary.reads;
        let wanted = hosts.len() as u64 * u64::from(self.mix.keys);
        for at in hosts {
            for key in 0..self.mix.keys {
                self.ask_read(at, key)?;
            }
        }
        self.run_until(self.now_ns + 10 * SECOND, |_| false)?;
        let answered = self.summary.reads - before;
        if answered < wanted {
            Err(format!("{answered} of {wanted} reads answered"))
        } else {
            Ok(())
        }
    }
}

fn name_of(key: u32) -> Bytes {
    Bytes::from(format!("key {key}"))
}

/// The value that a record stands for.
fn value_of(record: &Record) -> Option<u64> {
    match &record.content {
        Content::Value(value) => std::str::from_utf8(value).ok()?.parse().ok(),
        Content::Tombstone => None,
    }
}
