//! Orders to the storage engine: the door hands them out, and answers the client when they are
//! carried out.
//!
//! Whoever drives the door takes orders with [`Door::poll_order`] and ends each with
//! [`Door::handle_order`]. One snapshot is taken at a time.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::Door;
use super::execute::{Caller, Outcome};
use super::task::TaskId;
use crate::keyspace::{Keyspace, ShardIndex};
use crate::resp::command::EngineCommand;
use crate::resp::reply::ReplyWriter;
use crate::snapshot::{SnapshotFacts, SnapshotSpace};

/// Names an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OrderId(pub u64);

/// What the storage engine is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Order {
    /// Start to compact; ends with [`OrderEnd::Done`] when it has begun.
    Compact,
    /// Take a snapshot of what has been acknowledged; ends when it is durable.
    Snapshot {
        /// Its name.
        id: String,
    },
    /// Delete a snapshot; ends when its name is gone and its files are.
    Delete {
        /// Its name.
        id: String,
    },
}

/// How an order ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OrderEnd {
    /// It is carried out.
    Done,
    /// The snapshot is there.
    Taken(SnapshotFacts),
    /// There is no such snapshot.
    Missing,
    /// It could not be carried out; the text goes to the client, its error code first.
    Failed(String),
}

/// What a client gets for an order that ends well.
#[derive(Clone, Debug)]
enum Answer {
    Ok,
    Text(String),
}

/// Orders and snapshots as far as the door knows of them.
#[derive(Debug, Default)]
pub(super) struct Orders {
    next: u64,
    outgoing: VecDeque<(OrderId, Order)>,
    /// Tasks that wait for an order's end.
    waiting: BTreeMap<OrderId, (TaskId, Answer)>,
    /// The snapshot being taken.
    saving: Option<OrderId>,
    /// The snapshot being deleted.
    deleting: Option<(OrderId, String)>,
    /// Those there are, the oldest first.
    snapshots: Vec<SnapshotFacts>,
    /// Whether another one is to follow it.
    scheduled: bool,
    /// The last name given to one without a name.
    default_id_ms: u64,
    /// Whether the last one was not taken.
    failed: bool,
    /// When the last one was taken, in milliseconds since 1970.
    saved_ms: Option<u64>,
}

impl Orders {
    /// A snapshot without a name is called by the time; two of the same moment differ.
    fn default_id(&mut self, keyspace: &Keyspace) -> String {
        self.default_id_ms = keyspace.now().clock_ms.max(self.default_id_ms + 1);
        self.default_id_ms.to_string()
    }

    /// The segments of all snapshots, by shard.
    pub(super) fn segments(&self) -> Vec<(ShardIndex, u64)> {
        let all = self.snapshots.iter().flat_map(SnapshotFacts::segments);
        all.collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// What INFO says of snapshots.
    pub(super) fn about(
        &self,
        segments_in_use: &BTreeSet<(ShardIndex, u64)>,
        started_ms: u64,
    ) -> [(&'static str, String); 6] {
        let status = if self.failed { "err" } else { "ok" };
        let (count, SnapshotSpace { bytes, bytes_apart }) = self.space(segments_in_use);
        [
            ("snapshots", count.to_string()),
            ("snapshot_bytes", bytes.to_string()),
            ("snapshot_bytes_apart", bytes_apart.to_string()),
            ("rdb_bgsave_in_progress", u8::from(self.saving.is_some()).to_string()),
            ("rdb_last_save_time", (self.saved_ms.unwrap_or(started_ms) / 1000).to_string()),
            ("rdb_last_bgsave_status", status.to_owned()),
        ]
    }

    /// How many snapshots there are, and what they take.
    pub(super) fn space(
        &self,
        segments_in_use: &BTreeSet<(ShardIndex, u64)>,
    ) -> (u64, SnapshotSpace) {
        let is_in_use = |shard, segment| segments_in_use.contains(&(shard, segment));
        (self.snapshots.len() as u64, SnapshotSpace::of(&self.snapshots, is_in_use))
    }

    fn give(&mut self, order: Order) -> OrderId {
        let id = OrderId(self.next);
        self.next += 1;
        match &order {
            Order::Snapshot { .. } => self.saving = Some(id),
            Order::Delete { id: name } => self.deleting = Some((id, name.clone())),
            Order::Compact => {}
        }
        self.outgoing.push_back((id, order));
        id
    }
}

const ALREADY_SAVING: &[u8] = b"ERR Background save already in progress";
const ALREADY_DELETING: &[u8] = b"ERR a snapshot is being deleted; try again";

impl Door {
    /// Tells which snapshots there are at the start.
    pub fn set_snapshots(&mut self, mut snapshots: Vec<SnapshotFacts>) {
        snapshots.sort_by_key(|snapshot| snapshot.created_ms);
        self.orders.snapshots = snapshots;
    }

    /// Whether there is an order to take.
    #[must_use]
    pub fn has_orders(&self) -> bool {
        !self.orders.outgoing.is_empty()
    }

    /// Takes the next order to the storage engine.
    pub fn poll_order(&mut self) -> Option<(OrderId, Order)> {
        self.orders.outgoing.pop_front()
    }

    /// An order has ended.
    pub fn handle_order(&mut self, keyspace: &mut Keyspace, id: OrderId, end: OrderEnd) {
        if self.orders.saving == Some(id) {
            self.orders.saving = None;
            self.orders.failed = matches!(end, OrderEnd::Failed(_));
            if let OrderEnd::Failed(error) = &end {
                tracing::error!(%error, "no snapshot was taken");
            } else {
                self.orders.saved_ms = Some(keyspace.now().clock_ms);
            }
            if let OrderEnd::Taken(facts) = &end {
                self.orders.snapshots.retain(|snapshot| snapshot.id != facts.id);
                self.orders.snapshots.push(facts.clone());
            }
            if std::mem::take(&mut self.orders.scheduled) {
                let id = self.orders.default_id(keyspace);
                self.orders.give(Order::Snapshot { id });
            }
        }
        if let Some((_, name)) = self.orders.deleting.take_if(|(deleting, _)| *deleting == id)
            && !matches!(end, OrderEnd::Failed(_))
        {
            self.orders.snapshots.retain(|snapshot| snapshot.id != name);
        }
        let Some((task, answer)) = self.orders.waiting.remove(&id) else { return };
        self.tasks.end_order(task, |reply| match (end, answer) {
            (OrderEnd::Failed(text), _) => reply.writer().error(text.as_bytes()),
            (OrderEnd::Missing, _) => reply.writer().error(b"ERR there is no such snapshot"),
            (OrderEnd::Done | OrderEnd::Taken(_), Answer::Ok) => reply.writer().ok(),
            (OrderEnd::Done | OrderEnd::Taken(_), Answer::Text(text)) => {
                reply.writer().bulk(text.as_bytes());
            }
        });
        self.deliver_finished(keyspace);
    }

    pub(super) fn execute_engine(
        &mut self,
        keyspace: &Keyspace,
        caller: &mut Caller<'_>,
        command: EngineCommand<'_>,
    ) -> Outcome {
        match command {
            EngineCommand::Compact => {
                self.orders.give(Order::Compact);
                caller.reply(None, |reply| reply.writer().simple("Background compaction started"));
                Outcome::Done
            }
            EngineCommand::BackgroundSave { schedule } => {
                self.background_save(keyspace, caller, schedule)
            }
            EngineCommand::LastSave => {
                let saved_ms = self.orders.saved_ms.unwrap_or(self.facts.started_ms);
                let saved = i64::try_from(saved_ms / 1000).unwrap_or(i64::MAX);
                caller.reply(None, |reply| reply.writer().integer(saved));
                Outcome::Done
            }
            EngineCommand::Save => {
                let id = self.orders.default_id(keyspace);
                self.order(caller, Order::Snapshot { id }, Answer::Ok)
            }
            EngineCommand::CreateSnapshot { id } => {
                let id = id.map_or_else(|| self.orders.default_id(keyspace), str::to_owned);
                self.order(caller, Order::Snapshot { id: id.clone() }, Answer::Text(id))
            }
            EngineCommand::ListSnapshots => {
                let snapshots = &self.orders.snapshots;
                caller.reply(None, |reply| list(reply.writer(), snapshots));
                Outcome::Done
            }
            EngineCommand::DeleteSnapshot { id } => {
                self.order(caller, Order::Delete { id: id.to_owned() }, Answer::Ok)
            }
        }
    }

    fn background_save(
        &mut self,
        keyspace: &Keyspace,
        caller: &mut Caller<'_>,
        schedule: bool,
    ) -> Outcome {
        if self.orders.deleting.is_some() {
            return caller.error(ALREADY_DELETING);
        }
        let text = match self.orders.saving {
            Some(_) if !schedule => return caller.error(ALREADY_SAVING),
            Some(_) => {
                self.orders.scheduled = true;
                "Background saving scheduled"
            }
            None => {
                let id = self.orders.default_id(keyspace);
                self.orders.give(Order::Snapshot { id });
                "Background saving started"
            }
        };
        caller.reply(None, |reply| reply.writer().simple(text));
        Outcome::Done
    }

    /// Gives an order whose end the client waits for.
    fn order(&mut self, caller: &mut Caller<'_>, order: Order, answer: Answer) -> Outcome {
        if self.orders.saving.is_some() {
            return caller.error(ALREADY_SAVING);
        }
        if self.orders.deleting.is_some() {
            return caller.error(ALREADY_DELETING);
        }
        let id = self.orders.give(order);
        let task = self.tasks.order(caller.place());
        self.orders.waiting.insert(id, (task, answer));
        Outcome::Behind(task)
    }
}

/// Each snapshot as a map of what is known of it.
fn list(mut reply: ReplyWriter<'_>, snapshots: &[SnapshotFacts]) {
    reply.array_header(snapshots.len());
    for SnapshotFacts { id, created_ms, files, bytes, .. } in snapshots {
        reply.map_header(4);
        reply.bulk(b"id");
        reply.bulk(id.as_bytes());
        for (name, figure) in [("created_ms", created_ms), ("files", files), ("bytes", bytes)] {
            reply.bulk(name.as_bytes());
            reply.integer(i64::try_from(*figure).unwrap_or(i64::MAX));
        }
    }
}
