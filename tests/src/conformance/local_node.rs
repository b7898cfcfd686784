//! [`LocalNode`]: our Mainline server with a map for an engine, as a function from datagram to
//! reply.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use bytes::Bytes;
use kadring::kademlia::NodeId;
use kadring::krpc::bencode::{Reader, Writer};
use kadring::mainline::martian::Locals;
use kadring::mainline::rate_limit::RateLimits;
use kadring::mainline::server::Incoming;
use kadring::mainline::{Output, Server, ServerLimits, TokenKeys};
use storage::Now;

use super::runner::find;

const OWN: NodeId = NodeId([0x5A; 20]);

/// A node that knows nobody.
#[derive(Debug)]
pub struct LocalNode {
    server: Server<Vec<u8>>,
    held: BTreeMap<NodeId, Bytes>,
    now: Now,
}

impl Default for LocalNode {
    fn default() -> Self {
        let rates = RateLimits { loopback_exempt: true, ..RateLimits::default() };
        let limits = ServerLimits { locals: Locals::Taken, rates, ..ServerLimits::default() };
        Self::new(limits)
    }
}

impl LocalNode {
    /// A node with these limits.
    #[must_use]
    pub fn new(limits: ServerLimits) -> Self {
        let server = Server::new(OWN, limits, TokenKeys::new([1; 16]), [2; 16]);
        let now = Now { monotonic_ns: 0, clock_ms: 1_700_000_000_000 };
        Self { server, held: BTreeMap::new(), now }
    }

    /// The server, to look at.
    #[must_use]
    pub fn server(&self) -> &Server<Vec<u8>> {
        &self.server
    }

    /// Lets time pass.
    pub fn advance_ms(&mut self, millis: u64) {
        self.now.monotonic_ns += millis * 1_000_000;
        self.now.clock_ms += millis;
        self.server.handle_time(self.now);
    }

    /// Answers a datagram.
    pub fn exchange(&mut self, from: SocketAddr, datagram: &[u8]) -> Option<Vec<u8>> {
        self.send(from, datagram);
        self.settle(from)
    }

    /// Takes a datagram; what follows from it is left for [`settle`](Self::settle).
    pub fn send(&mut self, from: SocketAddr, datagram: &[u8]) {
        let mut reader = Reader::new(datagram);
        let is_whole = reader.value().is_ok() && reader.finish().is_ok();
        let string = |path| find(datagram, path).and_then(|raw| Reader::new(raw).bytes().ok());
        let (Some(b"q"), Some(transaction), Some(method), Some(arguments), true) =
            (string("y"), string("t"), string("q"), find(datagram, "a"), is_whole)
        else {
            return;
        };
        let incoming = Incoming {
            from,
            own: OWN,
            method,
            arguments,
            datagram_len: datagram.len(),
            transaction_len: transaction.len(),
            is_proven: false,
        };
        self.server.handle_query(self.now, &incoming, transaction.to_vec(), &mut |_, _, _, _| {});
    }

    /// Ends the turn and plays the engine; returns the last reply.
    pub fn settle(&mut self, from: SocketAddr) -> Option<Vec<u8>> {
        let mut reply = None;
        self.server.end_turn(self.now);
        while let Some(output) = self.server.poll_output() {
            match output {
                Output::Respond { asker, values } => reply = Some(respond(from, &asker, &values)),
                Output::Refuse { asker, reject } => {
                    reply = Some(refuse(&asker, reject.code(), &reject.to_string()));
                }
                Output::Load { target } => {
                    let record = self.held.get(&target).cloned();
                    self.server.handle_loaded(self.now, target, Ok(record));
                }
                Output::Store { target, record, .. } => {
                    self.held.insert(target, record);
                    self.server.handle_stored(self.now, target, Ok(()));
                }
                Output::StorePeers { .. } => {}
            }
        }
        reply
    }
}

fn respond(to: SocketAddr, transaction: &[u8], values: &[u8]) -> Vec<u8> {
    let (mut reply, mut ip) = (Vec::new(), Vec::new());
    kadring::krpc::compact::encode_address(&to, &mut ip);
    let mut writer = Writer::new(&mut reply);
    writer.dictionary().bytes(b"ip").bytes(&ip).bytes(b"r").value(values);
    writer.bytes(b"t").bytes(transaction).bytes(b"v").bytes(b"KR00");
    writer.bytes(b"y").bytes(b"r").end();
    reply
}

fn refuse(transaction: &[u8], code: i64, text: &str) -> Vec<u8> {
    let mut reply = Vec::new();
    let mut writer = Writer::new(&mut reply);
    writer.dictionary().bytes(b"e").list().integer(code).bytes(text.as_bytes()).end();
    writer.bytes(b"t").bytes(transaction).bytes(b"v").bytes(b"KR00");
    writer.bytes(b"y").bytes(b"e").end();
    reply
}
