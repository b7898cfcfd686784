//! Puts, announces and republished items of a [`MainlineNode`], once those closest are known.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use bytes::Bytes;
use storage::Now;

use crate::io::Monotonic;
use crate::mainline::item::{Item, Record};
use crate::mainline::outcome::{GetOutcome, PutOutcome, ReplicaOutcome};
use crate::mainline::query::{AnnouncePeer, Put, QueryKind, Want};

use super::client::encode;
use super::event::OperationId;
use super::mirror::Republished;
use super::operation::{Goal, Republisher, STORES_AT_ONCE_MAX, Stored, Storing};
use super::{MainlineNode, Origin, place};

impl MainlineNode {
    /// Stores where there is room for further queries, and ends what is done.
    pub(super) fn store_waiting(&mut self, now: Now) {
        let waiting: Vec<OperationId> = self.operations.waiting.iter().copied().collect();
        for id in waiting {
            let is_busy = self.store_some(now, id);
            let Some(operation) = self.operations.get_mut(id) else { continue };
            let Goal::Store(storing) = &operation.goal else { continue };
            if storing.is_done() && operation.lookups.is_empty() {
                self.end(now, id, false);
            } else if !is_busy {
                // An answer, or the end of a lookup, brings it back.
                self.operations.waiting.remove(&id);
            }
        }
    }

    /// Sends what can be sent for an operation; tells whether there was no room for all.
    fn store_some(&mut self, now: Now, id: OperationId) -> bool {
        let time = Monotonic(now.monotonic_ns);
        loop {
            let Some(operation) = self.operations.get_mut(id) else { return false };
            let Goal::Store(storing) = &mut operation.goal else { return false };
            let Some(&(family, to)) = storing.waiting.front() else { return false };
            if storing.under_way >= STORES_AT_ONCE_MAX {
                return false;
            }
            let side = self.sides[place(family)].as_mut();
            let sent = side.zip(storing.tokens.get(&to)).map(|(side, token)| {
                let kind = storing.query(token);
                let (method, own) = (QueryKind::METHODS[kind.index()].as_bytes(), side.node.own());
                side.node.query(time, to, method, &encode(own, kind))
            });
            match sent {
                Some(Ok(query)) => {
                    storing.waiting.pop_front();
                    storing.under_way += 1;
                    self.operations.add_query(id, (family, query), to);
                }
                Some(Err(_)) => return true,
                None => drop(storing.waiting.pop_front()),
            }
        }
    }

    /// Holds an item ourselves, whoever else does.
    pub(super) fn adopt(&mut self, now: Now, item: &Item<'_>) {
        self.server.adopt(now, item, None, Origin::Own);
    }

    /// Begins to republish an item of ours.
    pub(super) fn begin_republish(&mut self, now: Now, record: Bytes, client: Republisher) {
        let Ok(Record { item, .. }) = Record::decode(&record) else { return };
        let target = item.target();
        let salt = if let Item::Mutable(item) = &item { item.salt } else { &[] };
        let held = GetOutcome::new(target, salt);
        let what = Stored::Mirrored {
            client,
            record: record.to_vec(),
            held,
            is_newer: false,
            is_lacking: false,
        };
        let kind = QueryKind::Get { target, seq: None, want: Want::default() };
        self.begin(now, Goal::Store(Storing::new(target, what)), target, kind);
    }

    /// All lookups for a republished item are over: it goes to the closest, in the newest version
    /// there is.
    pub(super) fn compare_mirrored(&mut self, now: Now, id: OperationId) {
        let Some(operation) = self.operations.get_mut(id) else { return };
        let looked_up = &operation.looked_up;
        let Goal::Store(storing) = &mut operation.goal else { return };
        let Stored::Mirrored { record, held, is_newer, is_lacking, .. } = &mut storing.what else {
            return;
        };
        let Ok(Record { item: ours, .. }) = Record::decode(record) else { return };
        let mut newest = None;
        if let (Item::Mutable(ours), Some(Item::Mutable(theirs))) = (ours, held.best())
            && (theirs.seq, theirs.value) > (ours.seq, ours.value)
        {
            *is_newer = true;
            newest = Some(Record { put_ms: 0, item: Item::Mutable(theirs) }.encode());
        }
        let seq = match held.best() {
            Some(Item::Mutable(theirs)) if *is_newer => Some(theirs.seq),
            _ => {
                if let Item::Mutable(ours) = ours {
                    Some(ours.seq)
                } else {
                    None
                }
            }
        };
        let holders = held.replicas().iter().filter(|(_, outcome)| match outcome {
            ReplicaOutcome::Holds(held) => *held >= seq,
            _ => false,
        });
        let holders: BTreeSet<SocketAddr> = holders.map(|(holder, _)| *holder).collect();
        if let Some(newest) = &newest {
            *record = newest.clone();
        }
        // Those that have it get it, too: for them its time begins anew.
        for lookup in looked_up {
            for address in &lookup.closest {
                if storing.tokens.contains_key(address) {
                    *is_lacking |= !holders.contains(address);
                    storing.waiting.push_back((lookup.family, *address));
                }
            }
        }
        self.operations.waiting.insert(id);
        if let Some(newest) = newest
            && let Ok(Record { item, .. }) = Record::decode(&newest)
        {
            self.adopt(now, &item);
        }
    }

    /// A republished item was dealt with.
    pub(super) fn end_mirrored(&mut self, put: &PutOutcome, is_lacking: bool, is_newer: bool) {
        let outcome = match put.stored() {
            0 => Republished::Failed,
            _ if is_lacking => Republished::Stored,
            _ => Republished::Fresh,
        };
        if let Some(mirror) = &mut self.mirror {
            mirror.on_republished(outcome, is_newer);
        }
    }
}

impl Storing {
    /// The query that stores it.
    fn query<'a>(&'a self, token: &'a [u8]) -> QueryKind<'a> {
        match &self.what {
            Stored::Peer(announce) => QueryKind::AnnouncePeer(AnnouncePeer {
                info_hash: announce.info_hash,
                port: announce.port,
                seed: announce.seed,
                token,
            }),
            Stored::Item { record, cas } => put(record, *cas, token),
            Stored::Mirrored { record, .. } => put(record, None, token),
        }
    }
}

fn put<'a>(record: &'a [u8], cas: Option<i64>, token: &'a [u8]) -> QueryKind<'a> {
    let record = Record::decode(record).expect("it was written by us");
    QueryKind::Put(Put { item: record.item, cas, token })
}
