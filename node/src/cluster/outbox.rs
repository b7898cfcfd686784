//! [`Outbox`]: what the parts of the core want sent and stored, and the names of their queries.

use std::collections::VecDeque;

use super::message::{PeerMessage, RequestId};
use super::pace::Pace;
use super::store::{StoreRequest, Ticket};
use crate::kademlia::NodeId;

/// Outputs of one step, in order.
#[derive(Debug)]
pub struct Outbox {
    next: u64,
    own: NodeId,
    /// Messages to the node itself.
    pub(super) loops: VecDeque<PeerMessage>,
    pub(super) sends: VecDeque<(NodeId, PeerMessage)>,
    pub(super) store: VecDeque<(Ticket, StoreRequest)>,
    /// Of the records that exchanges move.
    pub(super) pace: Pace,
}

impl Outbox {
    /// Of that node. Names queries from a random number on: answers to those of an earlier process
    /// must not be taken for answers to ours.
    #[must_use]
    pub fn new(own: NodeId, rng: &mut fastrand::Rng) -> Self {
        Self {
            next: rng.u64(..) >> 1,
            own,
            loops: VecDeque::new(),
            sends: VecDeque::new(),
            store: VecDeque::new(),
            pace: Pace::default(),
        }
    }

    /// Names a query.
    pub fn take_id(&mut self) -> RequestId {
        self.next += 1;
        RequestId(self.next)
    }

    /// Sends a message.
    pub fn send(&mut self, to: NodeId, message: PeerMessage) {
        if to == self.own {
            self.loops.push_back(message);
        } else {
            self.sends.push_back((to, message));
        }
    }

    /// Asks the store.
    pub fn ask_store(&mut self, request: StoreRequest) -> Ticket {
        let ticket = Ticket(self.take_id().0);
        self.store.push_back((ticket, request));
        ticket
    }
}
