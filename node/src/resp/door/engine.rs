//! Orders to the storage engine: the door hands them out, and answers the client when they are
//! carried out.
//!
//! Whoever drives the door takes orders with [`Door::poll_order`] and ends each with
//! [`Door::handle_order`]. One snapshot is taken at a time.

use std::collections::{BTreeMap, VecDeque};

use super::Door;
use super::execute::{Caller, Outcome};
use super::task::TaskId;
use crate::keyspace::Keyspace;
use crate::resp::command::EngineCommand;

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
}

/// How an order ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OrderEnd {
    /// It is carried out.
    Done,
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

    /// What INFO says of snapshots.
    pub(super) fn about(&self, started_ms: u64) -> [(&'static str, String); 3] {
        let status = if self.failed { "err" } else { "ok" };
        [
            ("rdb_bgsave_in_progress", u8::from(self.saving.is_some()).to_string()),
            ("rdb_last_save_time", (self.saved_ms.unwrap_or(started_ms) / 1000).to_string()),
            ("rdb_last_bgsave_status", status.to_owned()),
        ]
    }

    fn give(&mut self, order: Order) -> OrderId {
        let id = OrderId(self.next);
        self.next += 1;
        if matches!(order, Order::Snapshot { .. }) {
            self.saving = Some(id);
        }
        self.outgoing.push_back((id, order));
        id
    }
}

const ALREADY_SAVING: &[u8] = b"ERR Background save already in progress";

impl Door {
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
            self.orders.failed = end != OrderEnd::Done;
            match &end {
                OrderEnd::Failed(error) => tracing::error!(%error, "no snapshot was taken"),
                _ => self.orders.saved_ms = Some(keyspace.now().clock_ms),
            }
            if std::mem::take(&mut self.orders.scheduled) {
                let id = self.orders.default_id(keyspace);
                self.orders.give(Order::Snapshot { id });
            }
        }
        let Some((task, answer)) = self.orders.waiting.remove(&id) else { return };
        self.tasks.end_order(task, |reply| match (end, answer) {
            (OrderEnd::Failed(text), _) => reply.writer().error(text.as_bytes()),
            (OrderEnd::Done, Answer::Ok) => reply.writer().ok(),
            (OrderEnd::Done, Answer::Text(text)) => reply.writer().bulk(text.as_bytes()),
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
        }
    }

    fn background_save(
        &mut self,
        keyspace: &Keyspace,
        caller: &mut Caller<'_>,
        schedule: bool,
    ) -> Outcome {
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
        if self.orders.saving.is_some() && matches!(order, Order::Snapshot { .. }) {
            return caller.error(ALREADY_SAVING);
        }
        let id = self.orders.give(order);
        let task = self.tasks.order(caller.place());
        self.orders.waiting.insert(id, (task, answer));
        Outcome::Behind(task)
    }
}
