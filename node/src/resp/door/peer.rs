//! Commands that the peer side answers: the door hands them out, and keeps their replies' places.
//!
//! Whoever drives the door takes commands with [`Door::poll_peer_command`] and answers each once
//! with [`Door::answer_peer_command`]. Replies of a connection stay in the order of its commands;
//! the commands themselves go out without waiting for each other. An answer to a connection that
//! is gone is dropped.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;

use super::Door;
use super::connection::encode;
use super::execute::{Caller, Outcome};
use super::reply_queue::Reply;
use super::task::TaskId;
use crate::io::ConnectionId;
use crate::keyspace::Keyspace;
use crate::resp::command::Command;
use crate::resp::frame::{Arguments, Parsed, Parser, ParserLimits};

/// Names a command that the peer side is to answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerToken(pub u64);

/// Who answers a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answerer {
    /// The door itself.
    Door,
    /// The peer side.
    Peer,
    /// Nobody: the client gets this error.
    Nobody(&'static str),
}

/// Says of each command who answers it. It must not depend on anything but the command.
pub type PeerCommands = fn(&Command<'_>) -> Answerer;

/// A command that the peer side is to answer.
#[derive(Clone, Debug)]
pub struct PeerCommand {
    /// Its name.
    pub token: PeerToken,
    /// The client's connection; its end is told by [`Door::poll_peer_gone`].
    pub connection: ConnectionId,
    encoded: Bytes,
}

impl PeerCommand {
    /// Hands out the command as the door has checked it. Its keys and values lie in the bytes that
    /// come with it: [`Bytes::slice_ref`] keeps one without a copy.
    pub fn read<T>(&self, act: impl FnOnce(&Command<'_>, &Bytes) -> T) -> T {
        let limits = ParserLimits {
            bulk_bytes_max: self.encoded.len(),
            command_bytes_max: self.encoded.len(),
            ..ParserLimits::default()
        };
        let mut parser = Parser::new(limits);
        parser.set_authenticated(true);
        let Parsed::Command(arguments) = parser.next(&mut &self.encoded[..]) else {
            unreachable!("the door has encoded a whole command")
        };
        let command = Command::parse(&arguments).expect("the door has parsed it before");
        act(&command, &self.encoded)
    }
}

/// Commands on their way.
#[derive(Debug, Default)]
pub(super) struct PeerQueue {
    commands: Option<PeerCommands>,
    next: u64,
    outgoing: VecDeque<PeerCommand>,
    waiting: BTreeMap<PeerToken, TaskId>,
    gone: VecDeque<ConnectionId>,
}

impl PeerQueue {
    /// Who answers the command.
    pub(super) fn answerer(&self, command: &Command<'_>) -> Answerer {
        self.commands.map_or(Answerer::Door, |answerer| answerer(command))
    }

    /// A connection is gone.
    pub(super) fn note_gone(&mut self, connection: ConnectionId) {
        if self.commands.is_some() {
            self.gone.push_back(connection);
        }
    }
}

impl Door {
    /// Says which commands the peer side answers; without, none.
    pub fn set_peer_commands(&mut self, commands: PeerCommands) {
        self.peers.commands = Some(commands);
    }

    /// Whether there is a command for the peer side.
    #[must_use]
    pub fn has_peer_commands(&self) -> bool {
        !self.peers.outgoing.is_empty()
    }

    /// Takes the next command for the peer side.
    pub fn poll_peer_command(&mut self) -> Option<PeerCommand> {
        self.peers.outgoing.pop_front()
    }

    /// Takes the next connection that has ended; once for each, also where nothing was asked.
    pub fn poll_peer_gone(&mut self) -> Option<ConnectionId> {
        self.peers.gone.pop_front()
    }

    /// Answers a command with what `write` writes; once for each.
    pub(crate) fn answer_peer_command(
        &mut self,
        keyspace: &mut Keyspace,
        token: PeerToken,
        write: impl FnOnce(&mut Reply),
    ) {
        let Some(task) = self.peers.waiting.remove(&token) else { return };
        self.tasks.end_order(task, write);
        self.deliver_finished(keyspace);
    }

    /// Hands a command to the peer side.
    pub(super) fn hand_to_peers(
        &mut self,
        caller: &mut Caller<'_>,
        arguments: &Arguments<'_>,
    ) -> Outcome {
        let token = PeerToken(self.peers.next);
        self.peers.next += 1;
        let task = self.tasks.order(caller.place());
        self.peers.waiting.insert(token, task);
        let encoded = encode(arguments).into();
        self.peers.outgoing.push_back(PeerCommand { token, connection: caller.id, encoded });
        Outcome::Done
    }
}
