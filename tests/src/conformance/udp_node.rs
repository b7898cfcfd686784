//! [`UdpNode`]: a node at some address, asked over UDP.

#![expect(clippy::disallowed_types, reason = "it talks to a real node over a real socket")]
#![expect(clippy::disallowed_methods, reason = "a reply that does not come is given up")]

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use kadring::krpc::message::{Body, Message};

use super::case::{Case, Condition, Step};
use super::runner::{Failure, run};

/// Longer datagrams are cut.
const DATAGRAM_BYTES_MAX: usize = 4_096;
/// Asked behind a datagram that should get no reply: what came would come before the answer.
const BARRIER: &[u8] = b"d1:ad2:id20:abcdefghij0123456789e1:q4:ping1:t7:barrier1:y1:qe";
/// Addresses of a third byte.
const HOSTS: u16 = 250;

/// What a node made of a case.
#[derive(Clone, Debug)]
pub enum Verdict {
    /// It answers as our nodes do.
    Ours,
    /// It answers otherwise, and may.
    Other,
    /// It must not answer so.
    Failed(Failure),
}

/// A node, and how to ask it.
#[derive(Debug)]
pub struct UdpNode {
    address: SocketAddr,
    reply_time_max: Duration,
    /// Cases so far.
    asked: u16,
}

impl UdpNode {
    /// A node at an address; a reply that takes longer is none.
    #[must_use]
    pub fn new(address: SocketAddr, reply_time_max: Duration) -> Self {
        Self { address, reply_time_max, asked: 0 }
    }

    /// Where it is.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Sends it a case. On loopback each case comes from an address of its own, so that limits for
    /// each address do not show.
    ///
    /// # Panics
    /// If this machine has no socket for it.
    pub fn judge(&mut self, case: &Case) -> Verdict {
        let socket = UdpSocket::bind((self.source(), 0)).expect("a port is free");
        let mut steps = case.steps.iter();
        // The first kind of reply that is allowed is ours: how many steps got another one?
        let mut exchanges = Vec::new();
        let result = run(case, &mut |sent| {
            let reply = steps.next().and_then(|step| self.exchange(&socket, step, sent));
            exchanges.push(reply.clone());
            reply
        });
        if let Err(failure) = result {
            return Verdict::Failed(failure);
        }
        let mut strict = case.clone();
        strict.steps.iter_mut().for_each(|step| step.allowed.truncate(1));
        let mut replies = exchanges.into_iter();
        match run(&strict, &mut |_| replies.next().flatten()) {
            Ok(()) => Verdict::Ours,
            Err(_) => Verdict::Other,
        }
    }

    fn source(&mut self) -> IpAddr {
        self.asked = self.asked.wrapping_add(1);
        let byte = |number: u16| u8::try_from(number).unwrap_or(u8::MAX);
        match self.address.ip() {
            IpAddr::V4(ip) if ip.is_loopback() => {
                let (third, host) = (self.asked / HOSTS % HOSTS, 1 + self.asked % HOSTS);
                IpAddr::V4(Ipv4Addr::new(127, 77, byte(third), byte(host)))
            }
            IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            IpAddr::V6(_) => IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED),
        }
    }

    fn exchange(&self, socket: &UdpSocket, step: &Step, datagram: &[u8]) -> Option<Vec<u8>> {
        let is_silence = |conditions: &Vec<Condition>| conditions.contains(&Condition::Silence);
        socket.send_to(datagram, self.address).ok()?;
        if !step.allowed.first().is_some_and(is_silence) {
            return self.receive(socket);
        }
        socket.send_to(BARRIER, self.address).ok()?;
        let reply = self.receive(socket)?;
        let is_barrier = Message::decode(&reply).is_ok_and(|reply| reply.transaction == b"barrier");
        (!is_barrier).then_some(reply)
    }

    /// The next reply of the node; what it asks by itself is passed over.
    fn receive(&self, socket: &UdpSocket) -> Option<Vec<u8>> {
        let end = Instant::now() + self.reply_time_max;
        let mut buffer = [0; DATAGRAM_BYTES_MAX];
        loop {
            let left = end.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())?;
            socket.set_read_timeout(Some(left)).ok()?;
            let (len, from) = socket.recv_from(&mut buffer).ok()?;
            let datagram = buffer.get(..len)?;
            let is_query = Message::decode(datagram)
                .is_ok_and(|message| matches!(message.body, Body::Query { .. }));
            if from == self.address && !is_query {
                return Some(datagram.to_vec());
            }
        }
    }
}
