//! Tests of clients' commands on a cluster of one node, whose store is a map.

use std::collections::BTreeMap;

use bytes::Bytes;
use storage::Now;
use wal::record::Version;

use super::answer::Answer;
use super::commands::Commands;
use super::plan::{Plan, plan};
use super::{ClusterNode, ClusterSettings, Start, answerer};
use crate::cluster::mutation::Mutation;
use crate::cluster::node::ClusterEvent;
use crate::cluster::store::{ModelStore, execute};
use crate::io::ConnectionId;
use crate::kademlia::NodeId;
use crate::resp::command::Command;
use crate::resp::door::{Answerer, PeerToken};
use crate::resp::frame::{Parsed, Parser, ParserLimits};

const NOW_MS: u64 = 1_700_000_000_000;
const CLIENT: ConnectionId = ConnectionId(1);

/// A founder, or one that knows nobody.
struct Alone {
    core: ClusterNode,
    store: ModelStore,
    commands: Commands,
    now: Now,
    next: u64,
    answers: BTreeMap<PeerToken, Answer>,
}

fn planned(line: &str, now_ms: u64) -> Result<Plan, Vec<u8>> {
    let encoded: String =
        line.split(' ').map(|word| format!("${}\r\n{word}\r\n", word.len())).collect();
    let encoded = Bytes::from(format!("*{}\r\n{encoded}", line.split(' ').count()));
    let mut parser = Parser::new(ParserLimits::default());
    parser.set_authenticated(true);
    let Parsed::Command(arguments) = parser.next(&mut &encoded[..]) else { panic!("{line}") };
    let command = Command::parse(&arguments).unwrap();
    assert_eq!(answerer(&command), Answerer::Peer, "{line}");
    plan(&command, &encoded, now_ms, 100)
}

impl Alone {
    fn new(is_founder: bool) -> Self {
        let now = Now { monotonic_ns: 1_000_000_000, clock_ms: NOW_MS };
        let start = Start {
            node: NodeId([1; 20]),
            address: Bytes::from_static(b"127.0.0.1:1"),
            settings: ClusterSettings::default(),
            is_founder,
            state: None,
            version_max: Version::default(),
            seed: 1,
            mutation: Mutation::Nothing,
        };
        Self {
            core: ClusterNode::new(start, now),
            store: ModelStore::default(),
            commands: Commands::default(),
            now,
            next: 0,
            answers: BTreeMap::new(),
        }
    }

    fn begin(&mut self, line: &str) -> PeerToken {
        self.next += 1;
        let token = PeerToken(self.next);
        match planned(line, self.now.clock_ms) {
            Ok(plan) => self.commands.begin(&mut self.core, self.now, (token, CLIENT), plan),
            Err(text) => self.commands.answer(token, Answer::Error(text)),
        }
        token
    }

    /// Goes on until nothing moves.
    fn run(&mut self) {
        loop {
            let mut has_moved = false;
            while let Some(event) = self.core.poll_event() {
                has_moved = true;
                match event {
                    ClusterEvent::Decided { command, outcome } => {
                        self.commands.on_decided(&mut self.core, self.now, command, outcome);
                    }
                    ClusterEvent::Copied { command, copies, is_last } => {
                        self.commands.on_copied(command, copies, is_last);
                    }
                    ClusterEvent::Left => {}
                }
            }
            while let Some((ticket, request)) = self.core.poll_store() {
                has_moved = true;
                let answer = execute(&mut self.store, request, self.now.clock_ms);
                self.core.handle_store(self.now, ticket, answer);
            }
            self.commands.end_waits(self.now, 2);
            while let Some((token, answer)) = self.commands.poll_answer() {
                self.answers.insert(token, answer);
            }
            if !has_moved {
                return;
            }
        }
    }

    fn call(&mut self, line: &str) -> Answer {
        let token = self.begin(line);
        self.run();
        self.answers.remove(&token).unwrap_or_else(|| panic!("{line} is not answered"))
    }
}

fn value(text: &'static str) -> Answer {
    Answer::Value(Bytes::from_static(text.as_bytes()))
}

#[test]
fn each_command_does_what_redis_does() {
    let mut alone = Alone::new(true);
    let at = |ms: u64| NOW_MS + ms;
    let cases = [
        ("GET k".to_owned(), Answer::Null),
        ("SET k 1".to_owned(), Answer::Ok),
        ("SET k 2 NX".to_owned(), Answer::Null),
        ("SET k 2 XX GET".to_owned(), value("1")),
        ("SETNX k 3".to_owned(), Answer::Integer(0)),
        ("SET new 3 NX GET".to_owned(), Answer::Null),
        ("EXPIRE k 10".to_owned(), Answer::Integer(1)),
        ("EXPIRE k 5 GT".to_owned(), Answer::Integer(0)),
        ("PTTL k".to_owned(), Answer::Integer(10_000)),
        ("SET k 4 KEEPTTL".to_owned(), Answer::Ok),
        ("PEXPIRETIME k".to_owned(), Answer::Integer(i64::try_from(at(10_000)).unwrap())),
        ("PERSIST k".to_owned(), Answer::Integer(1)),
        ("PERSIST k".to_owned(), Answer::Integer(0)),
        ("TTL k".to_owned(), Answer::Integer(-1)),
        ("TTL none".to_owned(), Answer::Integer(-2)),
        ("GETEX k PX 500".to_owned(), value("4")),
        ("PTTL k".to_owned(), Answer::Integer(500)),
        (format!("GETEX k PXAT {}", at(0)), value("4")),
        ("EXISTS k new new".to_owned(), Answer::Integer(2)),
        ("MSET a 1 b 22".to_owned(), Answer::Ok),
        ("MGET a k b".to_owned(), Answer::Values(vec![Some("1".into()), None, Some("22".into())])),
        ("STRLEN b".to_owned(), Answer::Integer(2)),
        ("GETRANGE b -1 -1".to_owned(), value("2")),
        ("TYPE b".to_owned(), Answer::Simple("string")),
        ("TYPE k".to_owned(), Answer::Simple("none")),
        ("DEL a a b".to_owned(), Answer::Integer(2)),
        ("GETDEL new".to_owned(), value("3")),
        ("GETDEL new".to_owned(), Answer::Null),
        ("EXPIREAT new 1".to_owned(), Answer::Integer(0)),
    ];
    for (line, expected) in cases {
        assert_eq!(alone.call(&line), expected, "{line}");
    }
    let long = "x".repeat(101);
    let Answer::Error(text) = alone.call(&format!("SET k {long}")) else { panic!("too long") };
    assert!(text.starts_with(b"ERR value is larger"));
    assert_eq!(alone.commands.len(), 0);
}

/// All of them are under way before the first one is decided.
#[test]
fn commands_of_one_node_wait_for_a_key_that_one_is_about_to_change() {
    let mut alone = Alone::new(true);
    let lines = [
        "SET k 1 NX",
        "SET k 2 NX",
        "GET k",
        "SET k 3",
        "GETSET k 4",
        "DEL k",
        "SETNX k 5",
        "GET k",
    ];
    let tokens = lines.map(|line| alone.begin(line));
    alone.run();
    let answers = tokens.map(|token| alone.answers.remove(&token).unwrap());
    let expected = [
        Answer::Ok,
        Answer::Null,
        value("1"),
        Answer::Ok,
        value("3"),
        Answer::Integer(1),
        Answer::Integer(1),
        value("5"),
    ];
    assert_eq!(answers, expected);
}

#[test]
fn many_keys_are_dealt_with_a_few_at_a_time_and_all_are_answered() {
    let mut alone = Alone::new(true);
    let pairs: String = (0..1_000).map(|number| format!(" k{number} {number}")).collect();
    assert_eq!(alone.call(&format!("MSET{pairs}")), Answer::Ok);
    let keys: String = (0..1_000).map(|number| format!(" k{number}")).collect();
    let Answer::Values(values) = alone.call(&format!("MGET{keys}")) else { panic!("no array") };
    let expected = (0..1_000).map(|number| Some(Bytes::from(number.to_string())));
    assert!(values.into_iter().eq(expected));
    assert_eq!(alone.call(&format!("DEL{keys}")), Answer::Integer(1_000));
}

#[test]
fn who_knows_nobody_says_so() {
    let mut alone = Alone::new(false);
    for line in ["GET k", "SET k v", "DEL a b", "MSET a 1 b 2"] {
        let Answer::Error(text) = alone.call(line) else { panic!("{line}") };
        assert!(text.starts_with(b"LOADING"), "{line}");
    }
    assert_eq!(alone.commands.len(), 0);
}

#[test]
fn wait_answers_by_the_connections_writes_or_after_its_time() {
    let mut alone = Alone::new(true);
    let wait = |alone: &mut Alone, replicas, deadline_ns| {
        alone.next += 1;
        let token = PeerToken(alone.next);
        alone.commands.begin_wait((token, CLIENT), replicas, deadline_ns);
        token
    };
    // Nothing was written: keys have two further copies.
    let first = wait(&mut alone, 2, None);
    alone.run();
    assert_eq!(alone.answers.remove(&first), Some(Answer::Integer(2)));
    let set = alone.begin("SET k v");
    let until_ns = alone.now.monotonic_ns + 1;
    let second = wait(&mut alone, 1, Some(until_ns));
    alone.run();
    assert_eq!(alone.answers.remove(&set), Some(Answer::Ok));
    assert_eq!(alone.answers.remove(&second), None);
    assert_eq!(alone.commands.deadline_ns(), Some(until_ns));
    alone.now.monotonic_ns += 1;
    alone.run();
    assert_eq!(alone.answers.remove(&second), Some(Answer::Integer(0)));
    alone.commands.forget(CLIENT);
    let third = wait(&mut alone, 2, None);
    alone.run();
    assert_eq!(alone.answers.remove(&third), Some(Answer::Integer(2)));
}
