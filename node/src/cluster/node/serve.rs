//! What a node does for others: it holds records and answers about them.

use std::collections::BTreeMap;

use storage::Now;
use wal::record::Key;

use super::{
    ClusterNode, Found, Mutation, PeerMessage, PutOutcome, Record, RequestId, StoreAnswer,
    StoreRequest, Ticket,
};
use crate::cluster::replica;
use crate::kademlia::NodeId;

/// Queries of others that wait for the store; further ones are not answered.
const WAITING_MAX: usize = 65_536;

/// What waits for the store.
#[derive(Debug, Default)]
pub(super) struct Serving {
    waiting: BTreeMap<Ticket, Waiting>,
}

#[derive(Debug)]
enum Waiting {
    Put { from: NodeId, request: RequestId, key: Key },
    Get { from: NodeId, request: RequestId, key: Key, was_ready: bool },
}

impl ClusterNode {
    /// Whether it holds everything around a key.
    pub(super) fn is_ready(&self, key: &Key) -> bool {
        self.mutation == Mutation::AnswersTooEarly || self.held.contains(key)
    }

    /// Takes a message, of others or of its own.
    pub(super) fn dispatch(&mut self, now: Now, from: NodeId, message: PeerMessage) {
        match message {
            PeerMessage::Members { .. } | PeerMessage::Ping { .. } | PeerMessage::Pong { .. } => {
                self.members.handle_message(now, from, message, &mut self.out);
            }
            PeerMessage::Put { request, record, .. } => self.serve_put(now, from, request, record),
            PeerMessage::Get { request, key, wants_value } => {
                if self.serving.waiting.len() < WAITING_MAX {
                    let ticket = self.out.ask_store(StoreRequest::Read { key, wants_value });
                    let was_ready = self.is_ready(&key);
                    let waiting = Waiting::Get { from, request, key, was_ready };
                    self.serving.waiting.insert(ticket, waiting);
                }
            }
            PeerMessage::PutDone { request, .. } | PeerMessage::Got { request, .. } => {
                self.on_answer(now, from, request, Some(message));
            }
            _ => {}
        }
    }

    fn serve_put(&mut self, now: Now, from: NodeId, request: RequestId, record: Record) {
        let skew_max_ms = self.settings.clock_skew_max_ms;
        if replica::is_too_far_ahead(&record.version, now, skew_max_ms) {
            self.counters.too_far_ahead += 1;
            let outcome = PutOutcome::TooFarAhead;
            self.out.send(from, PeerMessage::PutDone { request, outcome });
            return;
        }
        if self.serving.waiting.len() >= WAITING_MAX {
            return;
        }
        self.clock.witness(record.version);
        let key = record.key;
        let ticket = self.out.ask_store(StoreRequest::Apply { record: record.at(now.clock_ms) });
        self.serving.waiting.insert(ticket, Waiting::Put { from, request, key });
    }

    /// Takes what the store answered to a query of others.
    pub(super) fn serve_answer(&mut self, _now: Now, ticket: Ticket, answer: StoreAnswer) {
        let Some(waiting) = self.serving.waiting.remove(&ticket) else { return };
        match (waiting, answer) {
            (Waiting::Put { from, request, key }, answer) => {
                let outcome = match answer {
                    StoreAnswer::Applied(applied) => replica::outcome(applied, self.is_ready(&key)),
                    _ => PutOutcome::Failed,
                };
                self.out.send(from, PeerMessage::PutDone { request, outcome });
            }
            (Waiting::Get { from, request, key, was_ready }, answer) => {
                let found = match answer {
                    StoreAnswer::Read(found) => found,
                    _ => Found::Failed,
                };
                let is_ready = was_ready && self.is_ready(&key);
                self.out.send(from, PeerMessage::Got { request, is_ready, found });
            }
        }
    }
}
