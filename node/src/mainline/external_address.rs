//! [`ExternalAddress`]: what address others see us at, by vote (BEP 42, "ip").
//!
//! Every reply may carry our address. One node, or one network full of them, must not be able to
//! move us: each /24 has one vote, and only a majority of enough of them decides.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};

use crate::krpc::compact::{self, Family};

use super::martian::{Locals, is_martian};
use super::subnet::Subnet;

/// Votes kept, the latest: older ones are forgotten.
pub const VOTES_MAX: usize = 64;
/// Votes that decide, at least.
pub const VOTES_MIN: usize = 5;

/// Collects votes of one address family.
#[derive(Clone, Debug)]
pub struct ExternalAddress {
    family: Family,
    locals: Locals,
    votes: VecDeque<(Subnet, SocketAddr)>,
    decided: Option<SocketAddr>,
}

impl ExternalAddress {
    /// Knows nothing yet.
    #[must_use]
    pub fn new(family: Family, locals: Locals) -> Self {
        Self { family, locals, votes: VecDeque::new(), decided: None }
    }

    /// The address as decided so far.
    #[must_use]
    pub fn address(&self) -> Option<SocketAddr> {
        self.decided
    }

    /// The state to keep: the address, 6 or 18 bytes, or nothing.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut state = Vec::new();
        if let Some(address) = &self.decided {
            compact::encode_address(address, &mut state);
        }
        state
    }

    /// Goes on from a kept state. What does not fit is ignored: the votes will tell.
    pub fn restore(&mut self, state: &[u8]) {
        self.decided = compact::decode_address(state).filter(|address| self.is_possible(address));
    }

    /// Takes what a node says in a reply to a query of ours. Returns the new address if its IP has
    /// changed: a node id that follows it must be drawn anew.
    pub fn vote(&mut self, voter: IpAddr, claimed: SocketAddr) -> Option<SocketAddr> {
        if !self.is_possible(&claimed) {
            return None;
        }
        let subnet = Subnet::of(voter);
        // On one machine all voters are of one network: there each counts by itself.
        let counts_once = !(voter.is_loopback() && self.locals == Locals::Taken);
        if counts_once {
            self.votes.retain(|(other, _)| *other != subnet);
        }
        self.votes.push_back((subnet, claimed));
        if self.votes.len() > VOTES_MAX {
            self.votes.pop_front();
        }
        let count = self.votes.iter().filter(|(_, vote)| vote.ip() == claimed.ip()).count();
        // Nearly every vote confirms what is decided: no more is to be counted then.
        if count < VOTES_MIN || count * 2 <= self.votes.len() || self.decided == Some(claimed) {
            return None;
        }
        let before = self.decided.replace(SocketAddr::new(claimed.ip(), self.port(claimed)));
        let has_moved = before.is_none_or(|before| before.ip() != claimed.ip());
        self.decided.filter(|_| has_moved)
    }

    /// The port most often seen with the address: it differs by voter behind some NATs.
    fn port(&self, winner: SocketAddr) -> u16 {
        let ports = || self.votes.iter().filter(|(_, vote)| vote.ip() == winner.ip());
        let count = |port: u16| ports().filter(|(_, vote)| vote.port() == port).count();
        let best = ports().max_by_key(|(_, vote)| (count(vote.port()), vote.port()));
        best.map_or_else(|| winner.port(), |(_, vote)| vote.port())
    }

    fn is_possible(&self, address: &SocketAddr) -> bool {
        Family::of(address) == self.family && !is_martian(address, self.locals)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn voter(index: u8) -> IpAddr {
        IpAddr::from([9, 9, index, 1])
    }

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn majority_of_networks_decides_and_one_network_cannot() {
        let mut external = ExternalAddress::new(Family::V4, Locals::Refused);
        for index in 0..50 {
            let liar = IpAddr::from([7, 7, 7, index]);
            assert_eq!(external.vote(liar, address("6.6.6.6:1")), None);
        }
        for index in 0..4 {
            assert_eq!(external.vote(voter(index), address("5.5.5.5:10")), None);
        }
        let found = external.vote(voter(4), address("5.5.5.5:10"));
        assert_eq!(found, Some(address("5.5.5.5:10")));
        assert_eq!(external.vote(voter(5), address("5.5.5.5:11")), None, "no change");
        assert_eq!(external.address(), Some(address("5.5.5.5:10")), "the port most often seen");
    }

    #[test]
    fn move_is_noticed_once_most_say_so() {
        let mut external = ExternalAddress::new(Family::V4, Locals::Refused);
        for index in 0..8 {
            external.vote(voter(index), address("5.5.5.5:10"));
        }
        let moves: Vec<_> =
            (0..8).filter_map(|index| external.vote(voter(index), address("4.4.4.4:9"))).collect();
        assert_eq!(moves, [address("4.4.4.4:9")]);
    }

    #[test]
    fn martians_and_the_other_family_are_no_votes() {
        let mut external = ExternalAddress::new(Family::V4, Locals::Refused);
        for claimed in ["10.0.0.1:1", "224.0.0.1:1", "5.5.5.5:0", "[2a00::1]:1"] {
            for index in 0..20 {
                external.vote(voter(index), address(claimed));
            }
        }
        assert_eq!(external.address(), None);
    }

    #[test]
    fn address_survives_a_restart() {
        let mut external = ExternalAddress::new(Family::V4, Locals::Refused);
        for index in 0..5 {
            external.vote(voter(index), address("5.5.5.5:10"));
        }
        let mut after = ExternalAddress::new(Family::V4, Locals::Refused);
        after.restore(&external.encode());
        assert_eq!(after.address(), Some(address("5.5.5.5:10")));
        after.restore(&[0; 6]);
        assert_eq!(after.address(), None, "0.0.0.0:0 is none");
    }
}
