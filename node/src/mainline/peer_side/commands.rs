//! [`Operations`]: what clients ask of the network, from their command to its answer.
//!
//! docs/REDIS.md has the shapes of the answers.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use storage::Now;

use super::super::item::Item;
use super::super::node::MainlineNode;
use super::super::node::event::{
    Announce, Ended, Get, MainlineEvent, OperationId, RefusedOperation,
};
use super::super::outcome::{GetOutcome, PutOutcome, ReplicaOutcome};
use super::super::text;
use crate::io::ConnectionId;
use crate::kademlia::NodeId;
use crate::keyspace::Keyspace;
use crate::resp::command::{Command, MainlineCommand};
use crate::resp::door::{Answerer, Door, PeerCommand, PeerToken};
use crate::resp::reply::ReplyWriter;

/// Peers or info hashes in an answer.
const ANSWER_COUNT_MAX: usize = 10_000;

/// Says of each command who answers it in Mainline mode.
pub(super) fn answerer(command: &Command<'_>) -> Answerer {
    match command {
        Command::Mainline(_) => Answerer::Peer,
        Command::Ping { .. }
        | Command::Echo { .. }
        | Command::Hello(_)
        | Command::Auth(_)
        | Command::Client(_)
        | Command::CommandList
        | Command::CommandCount
        | Command::CommandDocs { .. }
        | Command::Info { .. }
        | Command::ConfigGet { .. }
        | Command::Select
        | Command::Quit
        | Command::Reset
        | Command::Time
        | Command::Shutdown(_)
        | Command::Engine(_) => Answerer::Door,
        _ => Answerer::Nobody(
            "ERR this node is one of BitTorrent's DHT and keeps no keys of its own; use \
             KAD.BEP44.* and KAD.MAINLINE.*, or a node with --mode private",
        ),
    }
}

/// An operation under way.
#[derive(Debug)]
struct Running {
    token: PeerToken,
    connection: ConnectionId,
    target: NodeId,
    peers: Vec<SocketAddr>,
    samples: Vec<NodeId>,
    /// Who has given a sample, how many torrents it knows, and how long the sample stays.
    sampled: Vec<(SocketAddr, i64, i64)>,
}

/// The operations of clients under way.
#[derive(Debug, Default)]
pub(super) struct Operations {
    running: BTreeMap<OperationId, Running>,
    /// So many have ended, by whether they took too long.
    pub(super) ended: [u64; 2],
}

impl Operations {
    /// How many are under way.
    pub(super) fn len(&self) -> usize {
        self.running.len()
    }

    /// Takes the commands that the door has for us, and word of connections that are gone.
    pub(super) fn take(
        &mut self,
        node: &mut MainlineNode,
        keyspace: &mut Keyspace,
        door: &mut Door,
    ) {
        while let Some(command) = door.poll_peer_command() {
            self.begin(node, keyspace, door, &command);
        }
        let mut gone = BTreeSet::new();
        while let Some(connection) = door.poll_peer_gone() {
            gone.insert(connection);
        }
        if gone.is_empty() {
            return;
        }
        let now = keyspace.now();
        self.running.retain(|operation, running| {
            let is_gone = gone.contains(&running.connection);
            if is_gone {
                node.cancel(now, *operation);
            }
            !is_gone
        });
    }

    fn begin(
        &mut self,
        node: &mut MainlineNode,
        keyspace: &mut Keyspace,
        door: &mut Door,
        command: &PeerCommand,
    ) {
        let now = keyspace.now();
        let begun = command.read(|command, _| match command {
            Command::Mainline(command) => Some(begin(node, now, command)),
            _ => None,
        });
        let PeerCommand { token, connection, .. } = *command;
        match begun {
            Some((target, Ok(operation))) => {
                let (peers, samples, sampled) = (Vec::new(), Vec::new(), Vec::new());
                let running = Running { token, connection, target, peers, samples, sampled };
                self.running.insert(operation, running);
            }
            Some((_, Err(refused))) => {
                let text = refusal(refused);
                door.answer_peer_command(keyspace, token, |reply| {
                    reply.writer().error(text.as_bytes());
                });
            }
            None => door.answer_peer_command(keyspace, token, |reply| {
                reply.writer().error(b"ERR this command is not for the network");
            }),
        }
    }

    /// Takes an event of the node, and answers whoever has waited for it.
    pub(super) fn on_event(
        &mut self,
        keyspace: &mut Keyspace,
        door: &mut Door,
        event: MainlineEvent,
    ) {
        match event {
            MainlineEvent::Peers { operation, peers, .. } => {
                if let Some(running) = self.running.get_mut(&operation) {
                    let room = ANSWER_COUNT_MAX.saturating_sub(running.peers.len());
                    running.peers.extend(peers.into_iter().take(room));
                }
            }
            MainlineEvent::Sampled { operation, from, interval, count, info_hashes } => {
                if let Some(running) = self.running.get_mut(&operation) {
                    let room = ANSWER_COUNT_MAX.saturating_sub(running.samples.len());
                    running.samples.extend(info_hashes.into_iter().take(room));
                    running.sampled.push((from, count, interval));
                }
            }
            MainlineEvent::Ended { operation, result, is_late, .. } => {
                let Some(running) = self.running.remove(&operation) else { return };
                self.ended[usize::from(is_late)] += 1;
                door.answer_peer_command(keyspace, running.token, |reply| {
                    write(&mut reply.writer(), &running, &result);
                });
            }
            MainlineEvent::Found { .. }
            | MainlineEvent::Ready(_)
            | MainlineEvent::IdChanged(..)
            | MainlineEvent::Reachable(_) => {}
        }
    }
}

/// Begins what a command asks for; also tells where.
fn begin(
    node: &mut MainlineNode,
    now: Now,
    command: &MainlineCommand<'_>,
) -> (NodeId, Result<OperationId, RefusedOperation>) {
    match *command {
        MainlineCommand::Get { place, salt, newer_than } => {
            let target = place.target(salt);
            let get = Get { target, salt: salt.to_vec(), newer_than };
            (target, node.get(now, get))
        }
        MainlineCommand::Put { value } => {
            let item = Item::Immutable(value);
            (item.target(), node.put(now, &item, None))
        }
        MainlineCommand::PutMutable(put) => {
            let item = put.item();
            (item.target(), node.put(now, &item, put.cas))
        }
        MainlineCommand::GetPeers { info_hash } => (info_hash, node.get_peers(now, info_hash)),
        MainlineCommand::Announce { info_hash, port, seed } => {
            (info_hash, node.announce(now, Announce { info_hash, port, seed }))
        }
        MainlineCommand::Sample { target } => (target, node.sample(now, target)),
        MainlineCommand::Ping { address } => (NodeId([0; 20]), node.ping(now, address)),
    }
}

fn refusal(refused: RefusedOperation) -> String {
    match refused {
        RefusedOperation::Busy => "BUSY too many operations are under way; try again".to_owned(),
        other => format!("ERR {other}"),
    }
}

/// Writes the answer to a command.
fn write(reply: &mut ReplyWriter<'_>, running: &Running, result: &Ended) {
    match result {
        Ended::Get(outcome) => write_get(reply, &running.target, outcome),
        Ended::Put { target, outcome } => write_put(reply, target, outcome),
        Ended::Peers { .. } => {
            reply.array_header(running.peers.len());
            running.peers.iter().for_each(|peer| bulk(reply, &peer.to_string()));
        }
        Ended::Sample { .. } => write_sample(reply, running),
        Ended::Ping(Some((id, _))) => bulk(reply, &text::hex(&id.0)),
        Ended::Ping(None) => reply.error(b"TIMEOUT no answer"),
    }
}

fn write_get(reply: &mut ReplyWriter<'_>, target: &NodeId, outcome: &GetOutcome) {
    let best = outcome.best();
    let is_mutable = matches!(best, Some(Item::Mutable(_)));
    reply.map_header(if is_mutable { 7 } else { 4 });
    bulk(reply, "target");
    bulk(reply, &text::hex(&target.0));
    bulk(reply, "value");
    match &best {
        Some(item) => reply.bulk(item.value()),
        None => reply.null(),
    }
    if let Some(Item::Mutable(item)) = &best {
        bulk(reply, "key");
        bulk(reply, &text::hex(item.key));
        bulk(reply, "seq");
        reply.integer(item.seq);
        bulk(reply, "signature");
        bulk(reply, &text::hex(item.signature));
    }
    bulk(reply, "copies");
    reply.integer(count(outcome.copies()));
    write_replicas(reply, outcome.replicas());
}

fn write_put(reply: &mut ReplyWriter<'_>, target: &NodeId, outcome: &PutOutcome) {
    let conflict = outcome.conflict();
    reply.map_header(if conflict.is_some() { 4 } else { 3 });
    bulk(reply, "target");
    bulk(reply, &text::hex(&target.0));
    bulk(reply, "stored");
    reply.integer(count(outcome.stored()));
    if let Some(code) = conflict {
        bulk(reply, "conflict");
        reply.integer(code);
    }
    write_replicas(reply, outcome.replicas());
}

fn write_replicas(reply: &mut ReplyWriter<'_>, replicas: &[(SocketAddr, ReplicaOutcome)]) {
    bulk(reply, "replicas");
    reply.array_header(replicas.len());
    for (address, outcome) in replicas {
        reply.array_header(2);
        bulk(reply, &address.to_string());
        match outcome {
            ReplicaOutcome::Stored => bulk(reply, "stored"),
            ReplicaOutcome::Kept => bulk(reply, "stored here"),
            ReplicaOutcome::Holds(None) => bulk(reply, "holds"),
            ReplicaOutcome::Holds(Some(seq)) => bulk(reply, &format!("holds seq {seq}")),
            ReplicaOutcome::Lacks => bulk(reply, "lacks"),
            ReplicaOutcome::Forged => bulk(reply, "forged"),
            ReplicaOutcome::Refused(code) => bulk(reply, &format!("refused {code}")),
            ReplicaOutcome::Silent => bulk(reply, "silent"),
        }
    }
}

fn write_sample(reply: &mut ReplyWriter<'_>, running: &Running) {
    reply.map_header(3);
    bulk(reply, "target");
    bulk(reply, &text::hex(&running.target.0));
    bulk(reply, "samples");
    reply.array_header(running.samples.len());
    running.samples.iter().for_each(|info_hash| bulk(reply, &text::hex(&info_hash.0)));
    bulk(reply, "nodes");
    reply.array_header(running.sampled.len());
    for (address, count, interval) in &running.sampled {
        reply.array_header(3);
        bulk(reply, &address.to_string());
        reply.integer(*count);
        reply.integer(*interval);
    }
}

fn bulk(reply: &mut ReplyWriter<'_>, text: &str) {
    reply.bulk(text.as_bytes());
}

fn count(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
