//! [`World`]: hosts, the network between them, clients, and virtual time.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::hash::{DefaultHasher, Hasher};

use bytes::Bytes;
use fastrand::Rng;
use kadring::cluster::coordinator::{CommandId, Consistency, Outcome, WriteCommand};
use kadring::cluster::message::codec::encode;
use kadring::cluster::message::{PeerMessage, Phase};
use kadring::cluster::mutation::Mutation;
use kadring::cluster::node::ClusterEvent;
use kadring::cluster::store::StoreRequest;
use kadring::kademlia::NodeId;
use storage::Now;

use super::host::Host;
use super::ledger::{Asked, Draft, Ledger, Moment};
use super::network::{Fate, Network};
use super::plan::{Action, Engine, Founding, Plan, Script};
use super::scans::Scans;
use super::store::Stop;
use super::swarm::Mix;
use super::{MS, SECOND, START_MS, Sample, Summary};
use crate::edge_lens::{edge_len, edge_name};

/// Parts of a run that are measured each by itself.
const SAMPLES: u64 = 60;
/// A node tries seeds that it had no link to again after that.
const SEEDS_EVERY: u64 = SECOND;
/// Nodes that a newcomer is told of.
const SEEDS: usize = 3;
/// One command in so many walks over all keys.
const SCAN_ONE_IN: u32 = 64;
/// Bytes of most values.
const VALUE_LEN: usize = 22;
/// Most turns of a host at one moment.
const TURNS_AT_ONCE: u32 = 1_000;

#[derive(Debug)]
pub(super) enum Event {
    Deliver {
        from: usize,
        to: usize,
        boot: u32,
        message: PeerMessage,
    },
    Unreachable {
        at: usize,
        boot: u32,
        other: NodeId,
    },
    /// A disk request ends.
    Disk {
        at: usize,
        boot: u32,
    },
    /// It tries to find the cluster.
    Seek {
        at: usize,
        boot: u32,
    },
    Restart {
        at: usize,
    },
    /// The next page of a walk is asked for.
    Page {
        walk: u64,
        turn: u64,
    },
    Act(Action),
    Command,
    Fault,
    Sample,
}

/// The world.
pub(super) struct World {
    pub(super) rng: Rng,
    pub(super) mix: Mix,
    mutation: Mutation,
    engine: Engine,
    founding: Founding,
    pub(super) now_ns: u64,
    pub(super) hosts: Vec<Host>,
    places: BTreeMap<NodeId, usize>,
    events: BTreeMap<(u64, u64), Event>,
    sequence: u64,
    /// When hosts want a turn.
    due: BTreeSet<(u64, usize)>,
    due_of: Vec<u64>,
    pub(super) network: Network,
    commands: BTreeMap<(usize, u32, CommandId), Asked>,
    pub(super) ledger: Ledger,
    pub(super) scans: Scans,
    pub(super) counted: Summary,
    hasher: DefaultHasher,
    pub(super) faults_over: bool,
    quiet: bool,
    pub(super) samples: Vec<Sample>,
    sample_every: u64,
    part: Part,
    /// Reads that found a value.
    pub(super) values_found: u64,
}

/// What has happened since the last sample.
#[derive(Debug, Default)]
struct Part {
    latencies_ns: Vec<u64>,
    refused: usize,
}

impl World {
    pub(super) fn new(seed: u64, plan: &Plan) -> Result<Self, String> {
        let mut rng = Rng::with_seed(seed);
        let script = Script::draw(plan, &mut rng);
        Self::with_script(script, plan, rng)
    }

    /// Where that happens.
    pub(super) fn with_script(script: Script, plan: &Plan, mut rng: Rng) -> Result<Self, String> {
        let Script { mix, machines, founding, actions } = script;
        let mut hosts: Vec<Host> =
            (0..machines).map(|_| Host::new(&mix, plan.engine, &mut rng)).collect();
        for host in &mut hosts {
            host.seeds = (0..SEEDS).map(|_| rng.usize(..machines)).collect();
        }
        match founding {
            Founding::Settled => Host::settle(&mut hosts[..mix.hosts], mix.replicas)?,
            Founding::ByFirst => hosts[0].is_founder = true,
            Founding::Together => {}
        }
        let length = mix.length_s * SECOND;
        let mut world = Self {
            mix,
            mutation: plan.mutation,
            engine: plan.engine,
            founding,
            now_ns: 0,
            places: hosts.iter().enumerate().map(|(at, host)| (host.id, at)).collect(),
            due_of: vec![u64::MAX; hosts.len()],
            hosts,
            events: BTreeMap::new(),
            sequence: 0,
            due: BTreeSet::new(),
            network: Network::default(),
            commands: BTreeMap::new(),
            ledger: Ledger::default(),
            scans: Scans::default(),
            counted: Summary::default(),
            hasher: DefaultHasher::new(),
            faults_over: false,
            quiet: false,
            samples: Vec::new(),
            sample_every: (length / SAMPLES).max(MS),
            part: Part::default(),
            values_found: 0,
            rng,
        };
        for (after_ms, action) in actions {
            world.after(after_ms * MS, Event::Act(action));
        }
        Ok(world)
    }

    /// What was done until now.
    pub(super) fn summary(&self) -> Summary {
        let mut hasher = self.hasher.clone();
        self.hosts.iter().for_each(|host| hasher.write_u64(host.store.hash()));
        Summary { hash: hasher.finish(), ..self.counted }
    }

    /// Lets everything begin.
    pub(super) fn begin(&mut self) -> Result<(), String> {
        if self.founding == Founding::Settled {
            for at in 0..self.mix.hosts {
                self.start(at)?;
            }
        }
        self.after(self.sample_every, Event::Sample);
        Ok(())
    }

    /// Clients and faults begin.
    pub(super) fn begin_traffic(&mut self) {
        self.after(SECOND, Event::Command);
        self.after(2 * SECOND, Event::Fault);
    }

    /// Clients ask for nothing any more.
    pub(super) fn end_traffic(&mut self) {
        self.quiet = true;
    }

    pub(super) fn after(&mut self, after_ns: u64, event: Event) {
        self.sequence += 1;
        self.events.insert((self.now_ns.saturating_add(after_ns), self.sequence), event);
    }

    fn note(&mut self, what: &impl Debug) {
        self.hasher.write(format!("{} {what:?}", self.now_ns).as_bytes());
    }

    /// Messages are noted as they are on the wire: that is quicker than to print them.
    fn note_event(&mut self, event: &Event) {
        let Event::Deliver { from, to, boot, message } = event else {
            self.note(event);
            return;
        };
        self.hasher.write_u64(self.now_ns);
        self.hasher.write_u64((*from as u64) << 40 | (*to as u64) << 16 | u64::from(*boot));
        for bytes in encode(message).into_iter().flatten() {
            self.hasher.write(&bytes);
        }
    }

    pub(super) fn now_of(&mut self, at: usize) -> Now {
        self.hosts[at].now(self.now_ns)
    }

    /// Goes on until that time, or until something is so, which is looked at now and then.
    pub(super) fn run_until(
        &mut self,
        end: u64,
        done: impl Fn(&Self) -> bool,
    ) -> Result<(), String> {
        let (mut look_at, mut turns) = (self.now_ns, 0);
        while self.now_ns < end {
            if look_at <= self.now_ns {
                if done(self) {
                    return Ok(());
                }
                look_at = self.now_ns + 500 * MS;
            }
            let next_event = self.events.first_key_value().map_or(u64::MAX, |((at, _), _)| *at);
            let (next_due, host) = self.due.first().copied().unwrap_or((u64::MAX, 0));
            let next = next_event.min(next_due).max(self.now_ns);
            if next >= end {
                self.now_ns = end;
                break;
            }
            turns = if next > self.now_ns { 0 } else { turns };
            self.now_ns = next;
            if next_due <= next && next_due < next_event {
                turns += 1;
                if turns > TURNS_AT_ONCE {
                    return Err(format!("host {host} stands still"));
                }
                let now = self.now_of(host);
                if let Some(core) = &mut self.hosts[host].core
                    && core.deadline_ns() <= now.monotonic_ns
                {
                    core.handle_time(now);
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
                let (now, from) = (self.now_of(to), self.hosts[from].id);
                if let Some(core) = self.hosts[to].running(boot) {
                    core.handle_message(now, from, message);
                    self.counted.messages += 1;
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
            Event::Disk { at, boot } => {
                let now = self.now_of(at);
                if self.hosts[at].running(boot).is_some() {
                    self.hosts[at].store.complete(now);
                    self.drain(at)?;
                }
            }
            Event::Seek { at, boot } => self.seek(at, boot)?,
            Event::Restart { at } => self.start(at)?,
            Event::Page { walk, turn } => self.ask_page(walk, turn)?,
            Event::Act(action) => self.act(action)?,
            Event::Command => {
                if !self.quiet {
                    let after = self.rng.u64(1..2 * self.mix.command_every_ms) * MS;
                    self.after(after, Event::Command);
                    self.command()?;
                }
            }
            Event::Fault => {
                if !self.faults_over {
                    let after = self.rng.u64(1..2 * self.mix.fault_every_ms).saturating_mul(MS);
                    self.after(after, Event::Fault);
                    self.fault()?;
                }
            }
            Event::Sample => {
                self.after(self.sample_every, Event::Sample);
                self.sample();
            }
        }
        Ok(())
    }

    /// Takes what a core and its store want done.
    pub(super) fn drain(&mut self, at: usize) -> Result<(), String> {
        let now = self.now_of(at);
        self.move_store(at, now)?;
        while let Some((to, message)) =
            self.hosts[at].core.as_mut().and_then(|core| core.poll_send())
        {
            self.send(at, to, message);
        }
        while let Some(event) = self.hosts[at].core.as_mut().and_then(|core| core.poll_event()) {
            self.note(&event);
            self.heed(at, event)?;
        }
        let host = &self.hosts[at];
        let due = host.core.as_ref().map_or(u64::MAX, |core| {
            // What is due at once would leave the disk no time.
            let store = host.store.deadline_ns().map_or(u64::MAX, |due| due.max(self.now_ns + MS));
            core.deadline_ns().min(store)
        });
        self.due.remove(&(self.due_of[at], at));
        self.due_of[at] = due;
        if due < u64::MAX {
            self.due.insert((due, at));
        }
        Ok(())
    }

    fn move_store(&mut self, at: usize, now: Now) -> Result<(), String> {
        if !self.hosts[at].is_up() {
            return Ok(());
        }
        loop {
            let mut has_moved = false;
            let Host { core: Some(core), store, .. } = &mut self.hosts[at] else { break };
            while let Some((ticket, answer)) = store.poll_answer() {
                core.handle_store(now, ticket, answer);
                has_moved = true;
            }
            while let Some((ticket, request)) =
                self.hosts[at].core.as_mut().and_then(|core| core.poll_store())
            {
                if let StoreRequest::Discard { key, version } = &request {
                    self.check_discard(at, key, *version)?;
                }
                self.hosts[at].store.ask(now, ticket, request);
                has_moved = true;
            }
            if !has_moved {
                break;
            }
        }
        let boot = self.hosts[at].boot;
        for _ in 0..self.hosts[at].store.turn(now) {
            let delay = self.rng.u64(MS / 4..self.mix.disk_ms * 2 * MS);
            self.after(delay, Event::Disk { at, boot });
        }
        Ok(())
    }

    fn send(&mut self, from: usize, to: NodeId, message: PeerMessage) {
        let Some(index) = self.places.get(&to).copied() else { return };
        let host = &self.hosts[index];
        let (is_up, boot) = (host.is_up(), host.boot);
        match self.network.fate((from, index), is_up, &self.mix, &mut self.rng) {
            Fate::Lost(None) => {}
            Fate::Lost(Some(after)) => {
                let boot = self.hosts[from].boot;
                self.after(after, Event::Unreachable { at: from, boot, other: to });
            }
            Fate::Arrives(delays) => {
                for delay in delays {
                    let message = message.clone();
                    self.after(delay, Event::Deliver { from, to: index, boot, message });
                }
            }
        }
    }

    fn heed(&mut self, at: usize, event: ClusterEvent) -> Result<(), String> {
        match event {
            ClusterEvent::Decided { command, outcome } => {
                let name = (at, self.hosts[at].boot, command);
                if self.take_page(name, &outcome)? {
                    return Ok(());
                }
                // What was decided at once is heeded by who asked.
                let Some(asked) = self.commands.remove(&name) else { return Ok(()) };
                self.judge(asked, &outcome)
            }
            ClusterEvent::Copied { copies, .. } if copies > self.mix.replicas => {
                Err(format!("{copies} copies"))
            }
            ClusterEvent::Copied { .. } => Ok(()),
            ClusterEvent::Left => {
                self.hosts[at].stop(Stop::Kill, &mut self.rng);
                Ok(())
            }
        }
    }

    fn judge(&mut self, asked: Asked, outcome: &Outcome) -> Result<(), String> {
        let is_answered = matches!(outcome, Outcome::Written { .. } | Outcome::Found(_));
        self.values_found += u64::from(matches!(outcome, Outcome::Found(Some(_))));
        match outcome {
            Outcome::Written { .. } => self.counted.writes += 1,
            Outcome::Found(_) => self.counted.reads += 1,
            _ => self.counted.refused += 1,
        }
        if is_answered {
            self.part.latencies_ns.push(self.now_ns - asked.at_ns);
        } else {
            self.part.refused += 1;
        }
        // Views differ while nodes come and go: only what is found is judged, not what is missed.
        let clock_max_ms = START_MS + self.now_ns / MS + self.mix.skew_max_ms + 1;
        let slack_ns = self.mix.slack_ns();
        let moment = Moment { now_ns: self.now_ns, clock_max_ms, slack_ns };
        self.ledger.judge(asked, outcome, moment)
    }

    fn command(&mut self) -> Result<(), String> {
        let at = self.rng.usize(..self.hosts.len());
        let is_hot = self.mix.heat > 0.0 && self.rng.f64() < self.mix.heat;
        let key = if is_hot { 0 } else { self.rng.u32(..self.mix.keys) };
        if self.rng.u32(..SCAN_ONE_IN) == 0 {
            self.begin_scan();
            return Ok(());
        }
        if !self.hosts[at].is_up() {
            return Ok(());
        }
        let writes = self.rng.f64() < self.mix.writes;
        if writes {
            let is_value = self.rng.u8(..4) > 0;
            self.ask_write(at, key, is_value)
        } else {
            self.ask_read(at, key)
        }
    }

    pub(super) fn ask_write(&mut self, at: usize, key: u32, is_value: bool) -> Result<(), String> {
        let now = self.now_of(at);
        let expires = is_value && self.rng.u8(..8) == 0;
        let expiry_ms = if expires { now.clock_ms + self.rng.u64(500..20_000) } else { 0 };
        let len = is_value.then(|| self.draw_len());
        self.write(at, key, Draft { len, expiry_ms })
    }

    fn draw_len(&mut self) -> usize {
        match self.rng.u8(..32) {
            0 => VALUE_LEN + self.rng.usize(..40_000),
            1..8 => edge_len(&mut self.rng),
            _ => VALUE_LEN,
        }
    }

    pub(super) fn store_for_ever(&mut self, at: usize, key: u32) -> Result<(), String> {
        self.write(at, key, Draft { len: Some(VALUE_LEN), expiry_ms: 0 })
    }

    fn write(&mut self, at: usize, key: u32, draft: Draft) -> Result<(), String> {
        let (now, expiry_ms) = (self.now_of(at), draft.expiry_ms);
        let asked = self.ledger.begin_write(key, draft, self.now_ns);
        let value = draft.len.map(|len| asked.value(len));
        let core = self.hosts[at].core.as_mut().expect("the host is up");
        let command = WriteCommand { user_key: name_of(key), value, expiry_ms };
        let id = core.write(now, command);
        self.commands.insert((at, self.hosts[at].boot, id), asked);
        self.drain(at)
    }

    pub(super) fn ask_read(&mut self, at: usize, key: u32) -> Result<(), String> {
        let now = self.now_of(at);
        let asked = Asked::read(key, self.now_ns, now.clock_ms);
        let core = self.hosts[at].core.as_mut().expect("the host is up");
        let id = core.read(now, &name_of(key), Consistency::Majority);
        self.commands.insert((at, self.hosts[at].boot, id), asked);
        self.drain(at)
    }

    /// What goes wrong by chance, in a swarm.
    fn fault(&mut self) -> Result<(), String> {
        let at = self.rng.usize(..self.hosts.len());
        match self.rng.u8(..10) {
            0..4 if self.mix.crashes && self.hosts[at].is_up() => {
                let again_ms = self.rng.u64(100..8_000);
                let stop = Stop::PowerLoss;
                self.act(Action::Stop { at, stop, again_ms })?;
            }
            4..6 if self.mix.cuts => {
                let side = self.hosts.iter().map(|_| self.rng.bool()).collect();
                let is_cut = self.network.is_cut();
                self.act(if is_cut { Action::Heal } else { Action::Cut(side) })?;
            }
            6 | 7 if self.mix.joins && self.hosts.len() < self.mix.hosts_max => {
                self.counted.moves += 1;
                let host = Host::new(&self.mix, self.engine, &mut self.rng);
                self.network.add_host(&mut self.rng);
                self.places.insert(host.id, self.hosts.len());
                self.hosts.push(host);
                self.due_of.push(u64::MAX);
                self.start(self.hosts.len() - 1)?;
            }
            8 if self.mix.leaves && self.member_count() > self.mix.replicas + 1 => {
                let now = self.now_of(at);
                if let Some(core) = self.hosts[at].core.as_mut()
                    && core.members().own().phase == Phase::Full
                {
                    self.counted.moves += 1;
                    core.leave(now);
                    self.hosts[at].is_leaving = true;
                    self.drain(at)?;
                }
            }
            9 if self.mix.deaths > 0 && self.member_count() > self.mix.replicas + 1 => {
                self.counted.moves += 1;
                self.mix.deaths -= 1;
                self.bury(at);
            }
            _ => {}
        }
        Ok(())
    }

    fn member_count(&self) -> usize {
        self.hosts.iter().filter(|host| !host.is_dead && !host.is_leaving).count()
    }

    /// Starts a host, unless it is up, dead or has left.
    pub(super) fn start(&mut self, at: usize) -> Result<(), String> {
        if self.hosts[at].is_up() || self.hosts[at].is_dead {
            return Ok(());
        }
        let is_newcomer = self.hosts[at].boot == 0 && self.founding != Founding::Together;
        if is_newcomer {
            let is_other = |other: &usize| *other != at && !self.hosts[*other].is_dead;
            let others: Vec<usize> = (0..self.hosts.len()).filter(is_other).collect();
            let is_up = |other: &usize| self.hosts[*other].is_up();
            let live: Vec<usize> = others.iter().copied().filter(is_up).collect();
            let named = if live.is_empty() { others } else { live };
            if !named.is_empty() {
                let seeds = (0..SEEDS).map(|_| named[self.rng.usize(..named.len())]).collect();
                self.hosts[at].seeds = seeds;
            }
        }
        let seed = self.rng.u64(..);
        self.hosts[at].start(&self.mix, self.mutation, seed, self.now_ns)?;
        let boot = self.hosts[at].boot;
        self.hosts[at].seeds_left = self.hosts[at].seeds.clone();
        self.hosts[at].seeds_left.retain(|other| *other != at);
        self.seek(at, boot)
    }

    /// Links are made to seeds that can be reached, and to each of the others again and again. In
    /// place of one that is gone for good, the operator names another one.
    fn seek(&mut self, at: usize, boot: u32) -> Result<(), String> {
        if self.hosts[at].running(boot).is_none() {
            return Ok(());
        }
        let now = self.now_of(at);
        for seed in std::mem::take(&mut self.hosts[at].seeds_left) {
            let Host { is_dead, is_leaving, .. } = self.hosts[seed];
            let is_gone = is_dead || (is_leaving && !self.hosts[seed].is_up());
            let is_there = |other: &usize| {
                *other != at && self.hosts[*other].is_up() && !self.hosts[*other].is_leaving
            };
            let named = if is_gone { (0..self.hosts.len()).find(is_there) } else { None };
            let other = named.unwrap_or(seed);
            let other_id = self.hosts[other].id;
            let is_linked = self.hosts[other].is_up() && self.network.links(at, other);
            match self.hosts[at].running(boot) {
                Some(core) if is_linked => core.add_contact(now, other_id, Bytes::new()),
                _ => self.hosts[at].seeds_left.push(other),
            }
        }
        if !self.hosts[at].seeds_left.is_empty() {
            self.after(SEEDS_EVERY, Event::Seek { at, boot });
        }
        self.drain(at)
    }

    pub(super) fn live(&self) -> impl Iterator<Item = &Host> {
        self.hosts.iter().filter(|host| host.is_up())
    }

    fn sample(&mut self) {
        let mut part = std::mem::take(&mut self.part);
        part.latencies_ns.sort_unstable();
        let quantile = |of: f64| {
            let index = (part.latencies_ns.len() as f64 * of) as usize;
            let found = part.latencies_ns.get(index).or_else(|| part.latencies_ns.last());
            found.map_or(0.0, |ns| *ns as f64 / 1e6)
        };
        let under_way = self.live().filter_map(|host| host.core.as_ref());
        let under_way = under_way.map(|core| core.under_way() as u64).max().unwrap_or(0);
        self.counted.under_way_most = self.counted.under_way_most.max(under_way);
        self.samples.push(Sample {
            at_s: self.now_ns as f64 / 1e9,
            up: self.live().count(),
            answered: part.latencies_ns.len(),
            refused: part.refused,
            latency_ms: (quantile(0.5), quantile(0.99)),
            whole: self.share_whole(),
        });
    }
}

pub(super) fn name_of(key: u32) -> Bytes {
    Bytes::from(edge_name(key as usize, format!("key {key}").into_bytes()))
}
