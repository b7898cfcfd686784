//! [`Reachability`]: whether others reach us unasked; until then we say `ro` (BEP 43).

use std::net::IpAddr;

use super::subnet::Subnet;

/// Networks from which queries must have come unasked.
pub const PROOFS_MIN: usize = 3;

/// What the operator knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Announced {
    /// Nothing: it must be proven.
    Unknown,
    /// We are reachable: a server, a test net.
    Reachable,
    /// We are not, or do not want to serve.
    ReadOnly,
}

/// Collects proofs.
#[derive(Clone, Debug)]
pub struct Reachability {
    announced: Announced,
    proofs: Vec<Subnet>,
}

impl Reachability {
    /// Starts with what the operator says.
    #[must_use]
    pub fn new(announced: Announced) -> Self {
        Self { announced, proofs: Vec::new() }
    }

    /// Tells whether our queries say `ro`. Replies never do: one client discards such.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        match self.announced {
            Announced::Unknown => self.proofs.len() < PROOFS_MIN,
            Announced::Reachable => false,
            Announced::ReadOnly => true,
        }
    }

    /// Takes note of a query from an address that we have not sent to for so long that no NAT can
    /// have kept a hole open for it: the caller knows. Returns true when this settles it.
    pub fn on_unasked_query(&mut self, from: IpAddr) -> bool {
        let subnet = Subnet::of(from);
        let settled = self.proofs.len() >= PROOFS_MIN;
        if settled || self.proofs.contains(&subnet) {
            return false;
        }
        self.proofs.push(subnet);
        self.proofs.len() == PROOFS_MIN
    }

    /// Our address has changed: what was proven is void.
    pub fn on_move(&mut self) {
        self.proofs.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_is_read_only_until_several_networks_have_reached_it() {
        let mut reachability = Reachability::new(Announced::Unknown);
        for last in 0..100 {
            assert!(!reachability.on_unasked_query(IpAddr::from([8, 8, 8, last])));
        }
        assert!(!reachability.on_unasked_query(IpAddr::from([8, 8, 9, 1])));
        assert!(reachability.is_read_only());
        assert!(reachability.on_unasked_query(IpAddr::from([8, 9, 9, 1])));
        assert!(!reachability.is_read_only());
        reachability.on_move();
        assert!(reachability.is_read_only());
    }

    #[test]
    fn operator_has_the_last_word() {
        assert!(!Reachability::new(Announced::Reachable).is_read_only());
        let mut never = Reachability::new(Announced::ReadOnly);
        for net in 0..9 {
            never.on_unasked_query(IpAddr::from([8, 8, net, 1]));
        }
        assert!(never.is_read_only());
    }
}
