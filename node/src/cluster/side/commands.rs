//! [`Commands`]: clients' commands under way, each taken apart into its keys.
//!
//! A key is read by majority, changed, and written by majority. While a command of this node has
//! read a key that it may change, others of this node wait for that key: in the order they came.
//! Nodes do not wait for each other: of two that change a key at once, the later write holds.
//!
//! With `read_consistency = one`, what is only read comes from the first holder that answers, or
//! from the [`PathCache`].

use std::collections::{BTreeMap, VecDeque};

use storage::Now;
use wal::record::Key;

use super::answer::{Answer, Part, error_of};
use super::path_cache::PathCache;
use super::plan::{Action, Plan};
use crate::cluster::ClusterNode;
use crate::cluster::coordinator::{CommandId, Consistency, Outcome, WaitLedger, WriteCommand};
use crate::io::ConnectionId;
use crate::resp::door::PeerToken;

/// Keys of one command that are under way at a time.
const KEYS_UNDER_WAY_MAX: usize = 128;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Reading,
    Writing,
}

/// A key of a command.
type PartId = (PeerToken, usize);

#[derive(Debug)]
struct Running {
    connection: ConnectionId,
    plan: Plan,
    parts: Vec<Part>,
    /// The first key that has not been begun.
    next: usize,
    under_way: usize,
    error: Option<&'static [u8]>,
}

/// A WAIT.
#[derive(Debug)]
struct Waiting {
    connection: ConnectionId,
    replicas: usize,
    deadline_ns: Option<u64>,
}

/// Commands under way.
#[derive(Debug, Default)]
pub(super) struct Commands {
    running: BTreeMap<PeerToken, Running>,
    /// What they wait for, since when.
    parts: BTreeMap<CommandId, (PartId, Stage, u64)>,
    /// How keys are read that do not change.
    reads: Consistency,
    copies: PathCache,
    /// Keys that a command is about to change, and who waits for them.
    locks: BTreeMap<Key, VecDeque<PartId>>,
    waits: BTreeMap<PeerToken, Waiting>,
    ledgers: BTreeMap<ConnectionId, WaitLedger>,
    /// Whose writes are still spreading.
    writers: BTreeMap<CommandId, ConnectionId>,
    answers: VecDeque<(PeerToken, Answer)>,
}

impl Commands {
    pub(super) fn new(reads: Consistency) -> Self {
        Self { reads, ..Self::default() }
    }

    /// Copies that reads may use, and how often they did.
    pub(super) fn path_copies(&self) -> (usize, u64) {
        (self.copies.len(), self.copies.hits)
    }

    /// Takes a command on.
    pub(super) fn begin(
        &mut self,
        core: &mut ClusterNode,
        now: Now,
        (token, connection): (PeerToken, ConnectionId),
        plan: Plan,
    ) {
        let parts = vec![Part::default(); plan.parts.len()];
        let running = Running { connection, plan, parts, next: 0, under_way: 0, error: None };
        self.running.insert(token, running);
        self.go_on(core, now, token);
    }

    /// Takes a WAIT on.
    pub(super) fn begin_wait(
        &mut self,
        (token, connection): (PeerToken, ConnectionId),
        replicas: u64,
        deadline_ns: Option<u64>,
    ) {
        let replicas = usize::try_from(replicas).unwrap_or(usize::MAX);
        self.waits.insert(token, Waiting { connection, replicas, deadline_ns });
    }

    /// Answers a command at once.
    pub(super) fn answer(&mut self, token: PeerToken, answer: Answer) {
        self.answers.push_back((token, answer));
    }

    /// Takes the next answer.
    pub(super) fn poll_answer(&mut self) -> Option<(PeerToken, Answer)> {
        self.answers.pop_front()
    }

    /// Whether there is an answer to take.
    pub(super) fn has_answers(&self) -> bool {
        !self.answers.is_empty()
    }

    /// Number of commands under way.
    pub(super) fn len(&self) -> usize {
        self.running.len() + self.waits.len()
    }

    /// Forgets what it knows of a connection.
    pub(super) fn forget(&mut self, connection: ConnectionId) {
        self.ledgers.remove(&connection);
        self.writers.retain(|_, writer| *writer != connection);
    }

    /// When a WAIT ends.
    pub(super) fn deadline_ns(&self) -> Option<u64> {
        self.waits.values().filter_map(|wait| wait.deadline_ns).min()
    }

    /// Begins further keys of a command, and ends it after the last.
    fn go_on(&mut self, core: &mut ClusterNode, now: Now, token: PeerToken) {
        loop {
            let Some(running) = self.running.get_mut(&token) else { return };
            let is_last = running.next == running.plan.parts.len() || running.error.is_some();
            if is_last || running.under_way >= KEYS_UNDER_WAY_MAX {
                break;
            }
            let index = running.next;
            running.next += 1;
            let (user_key, action) = &running.plan.parts[index];
            if self.reads == Consistency::One
                && *action == Action::Read
                && let Some(found) = self.copies.find(user_key, now)
            {
                running.parts[index].old = Some(found);
                continue;
            }
            running.under_way += 1;
            self.begin_part(core, now, (token, index));
        }
        let is_over = |running: &mut Running| {
            let is_last = running.next == running.plan.parts.len() || running.error.is_some();
            is_last && running.under_way == 0
        };
        let Some(running) = self.running.get_mut(&token) else { return };
        if !is_over(running) {
            return;
        }
        let Some(running) = self.running.remove(&token) else { return };
        let answer = match running.error {
            Some(text) => Answer::Error(text.to_vec()),
            None => Answer::of(running.plan.shape, running.parts, now.clock_ms),
        };
        self.answers.push_back((token, answer));
    }

    fn begin_part(&mut self, core: &mut ClusterNode, now: Now, part: PartId) {
        let Some(running) = self.running.get(&part.0) else { return };
        let (user_key, action) = &running.plan.parts[part.1];
        let locks = action.needs_old() && action.changes();
        // A hash for nothing would be a good part of what a command costs.
        let key = (locks || !self.locks.is_empty()).then(|| Key::of(user_key));
        if let Some(waiting) = key.and_then(|key| self.locks.get_mut(&key)) {
            waiting.push_back(part);
            return;
        }
        if action.needs_old() {
            if let Some(key) = key.filter(|_| locks) {
                self.locks.insert(key, VecDeque::new());
            }
            let reads = if action.changes() { Consistency::Majority } else { self.reads };
            let command = core.read(now, user_key, reads);
            self.parts.insert(command, (part, Stage::Reading, now.monotonic_ns));
        } else if let Some((value, expiry_ms)) = action.change(None, now.clock_ms) {
            let user_key = user_key.clone();
            self.write(core, now, part, WriteCommand { user_key, value, expiry_ms });
        }
    }

    fn write(&mut self, core: &mut ClusterNode, now: Now, part: PartId, command: WriteCommand) {
        if self.reads == Consistency::One {
            self.copies.on_write(&Key::of(&command.user_key), now.monotonic_ns);
        }
        let id = core.write(now, command);
        self.parts.insert(id, (part, Stage::Writing, now.monotonic_ns));
        if let Some(running) = self.running.get(&part.0) {
            self.writers.insert(id, running.connection);
        }
    }

    /// A command of the core is decided.
    pub(super) fn on_decided(
        &mut self,
        core: &mut ClusterNode,
        now: Now,
        command: CommandId,
        outcome: Outcome,
    ) {
        if let (Outcome::Written { copies, .. }, Some(writer)) =
            (&outcome, self.writers.get(&command))
        {
            self.ledgers.entry(*writer).or_default().note(command, *copies, false);
        } else {
            self.writers.remove(&command);
        }
        let Some((part, stage, begun_ns)) = self.parts.remove(&command) else { return };
        let Some(running) = self.running.get_mut(&part.0) else { return };
        let (user_key, action) = &running.plan.parts[part.1];
        match (stage, outcome) {
            (Stage::Reading, Outcome::Found(old)) => {
                let change = action.change(old.as_ref(), now.clock_ms);
                if self.reads == Consistency::One
                    && let Some(record) = &old
                    && let Some(between) = core.nodes_between(&record.key)
                {
                    self.copies.keep(record, between, begun_ns, now.monotonic_ns);
                }
                running.parts[part.1].old = old;
                if let Some((value, expiry_ms)) = change {
                    let user_key = user_key.clone();
                    return self.write(
                        core,
                        now,
                        part,
                        WriteCommand { user_key, value, expiry_ms },
                    );
                }
            }
            (Stage::Writing, Outcome::Written { .. }) => {
                if self.reads == Consistency::One {
                    self.copies.on_write(&Key::of(user_key), now.monotonic_ns);
                }
                running.parts[part.1].has_changed = true;
            }
            (_, outcome) => running.error = Some(error_of(&outcome)),
        }
        self.end_part(core, now, part);
    }

    fn end_part(&mut self, core: &mut ClusterNode, now: Now, part: PartId) {
        let Some(running) = self.running.get_mut(&part.0) else { return };
        running.under_way -= 1;
        let (user_key, action) = &running.plan.parts[part.1];
        let held_lock = action.changes() && action.needs_old();
        let waiting = if held_lock { self.locks.remove(&Key::of(user_key)) } else { None };
        for part in waiting.into_iter().flatten() {
            self.begin_part(core, now, part);
        }
        self.go_on(core, now, part.0);
    }

    /// A write has further copies.
    pub(super) fn on_copied(&mut self, command: CommandId, copies: usize, is_last: bool) {
        if let Some(writer) = self.writers.get(&command) {
            self.ledgers.entry(*writer).or_default().note(command, copies, is_last);
        }
        if is_last {
            self.writers.remove(&command);
        }
    }

    /// Ends each WAIT that has come to its number or its time; `without` is what is answered on a
    /// connection that has written nothing.
    pub(super) fn end_waits(&mut self, now: Now, without: usize) {
        let Self { waits, ledgers, running, answers, .. } = self;
        waits.retain(|token, wait| {
            let earlier = running.range(..*token);
            let writes = |running: &Running| running.plan.parts.iter().any(|(_, it)| it.changes());
            let is_writing = earlier
                .filter(|(_, running)| running.connection == wait.connection)
                .any(|(_, running)| writes(running));
            let copies = ledgers.get(&wait.connection).and_then(WaitLedger::replicas);
            let copies = copies.unwrap_or(without);
            let is_late = wait.deadline_ns.is_some_and(|deadline| deadline <= now.monotonic_ns);
            if (is_writing || copies < wait.replicas) && !is_late {
                return true;
            }
            let copies = if is_writing { 0 } else { copies };
            answers.push_back((*token, Answer::Integer(i64::try_from(copies).unwrap_or(0))));
            false
        });
    }
}
