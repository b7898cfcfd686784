//! [`Reachability`]: whether others reach us unasked; until then we say `ro` (BEP 43).
//!
//! Who says `ro` is not taken into tables, and so is asked by few. Now and then we leave it out for
//! a short while, a *trial*: whoever takes us in then tells others of us, and they ask.

use std::net::IpAddr;

use crate::io::Monotonic;

use super::subnet::Subnet;

/// Networks from which queries must have come unasked.
pub const PROOFS_MIN: usize = 3;

/// The first trial begins so long after the start,
pub const TRIAL_AFTER_MS: u64 = 60_000;
/// a trial lasts so long,
pub const TRIAL_MS: u64 = 5 * 60 * 1000;
/// and the next one begins so long after its end.
pub const TRIAL_GAP_MS: u64 = 55 * 60 * 1000;

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
    trial: Trial,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trial {
    /// Nothing has been timed yet.
    Unplanned,
    /// The next one begins then.
    Planned(Monotonic),
    /// One is on until then.
    On(Monotonic),
}

impl Reachability {
    /// Starts with what the operator says.
    #[must_use]
    pub fn new(announced: Announced) -> Self {
        Self { announced, proofs: Vec::new(), trial: Trial::Unplanned }
    }

    /// Tells whether our queries say `ro`. Replies never do: one client discards such.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        match self.announced {
            Announced::Unknown => !self.is_settled() && !matches!(self.trial, Trial::On(_)),
            Announced::Reachable => false,
            Announced::ReadOnly => true,
        }
    }

    /// Tells whether nothing is to be proven any more.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.announced != Announced::Unknown || self.proofs.len() >= PROOFS_MIN
    }

    /// Goes on from an earlier life in which it was settled, at the same address.
    pub fn restore(&mut self) {
        let proven = (0..).map(|net| Subnet::V4([0, 0, net])).take(PROOFS_MIN);
        self.proofs = proven.collect();
    }

    /// Begins or ends a trial.
    pub fn handle_time(&mut self, now: Monotonic) {
        if self.is_settled() {
            return;
        }
        self.trial = match self.trial {
            Trial::Unplanned => Trial::Planned(now.plus_millis(TRIAL_AFTER_MS)),
            Trial::Planned(begin) if begin <= now => Trial::On(now.plus_millis(TRIAL_MS)),
            Trial::On(end) if end <= now => Trial::Planned(now.plus_millis(TRIAL_GAP_MS)),
            as_it_is => as_it_is,
        };
    }

    /// When [`handle_time`](Self::handle_time) has something to do.
    #[must_use]
    pub fn deadline(&self) -> Option<Monotonic> {
        match self.trial {
            _ if self.is_settled() => None,
            Trial::Unplanned => Some(Monotonic(0)),
            Trial::Planned(time) | Trial::On(time) => Some(time),
        }
    }

    /// Takes note of a query from an address that we have not sent to for so long that no NAT can
    /// have kept a hole open for it: the caller knows. Returns true when this settles it.
    pub fn on_unasked_query(&mut self, from: IpAddr) -> bool {
        let subnet = Subnet::of(from);
        if self.is_settled() || self.proofs.contains(&subnet) {
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
    fn trials_come_and_go_until_it_is_settled() {
        let mut reachability = Reachability::new(Announced::Unknown);
        let mut changes = Vec::new();
        let mut was_read_only = true;
        while changes.len() < 4 {
            let now = reachability.deadline().unwrap();
            reachability.handle_time(now);
            if reachability.is_read_only() != was_read_only {
                was_read_only = !was_read_only;
                changes.push(now.0 / 1_000_000);
            }
        }
        let second = TRIAL_AFTER_MS + TRIAL_MS + TRIAL_GAP_MS;
        assert_eq!(changes, [TRIAL_AFTER_MS, TRIAL_AFTER_MS + TRIAL_MS, second, second + TRIAL_MS]);
        reachability.restore();
        assert!(!reachability.is_read_only() && reachability.deadline().is_none());
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
