//! [`Side`]: what a Mainline node is in one family of addresses (BEP 32): a table, an id and an
//! external address of its own.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use fastrand::Rng;

use crate::io::Monotonic;
use crate::kademlia::k_bucket::Health;
use crate::kademlia::node::{LookupOutcome, NodeLimits};
use crate::kademlia::routing_table::CrowdLimits;
use crate::kademlia::{ContactRules, KademliaNode, NodeId, NodeOptions, TableLimits};
use crate::krpc::compact::Family;
use crate::mainline::martian::{Locals, is_martian};
use crate::mainline::node_id_by_ip;
use crate::mainline::reachability::{Announced, Reachability};
use crate::mainline::{ExternalAddress, ServerLimits};

use super::Defences;

/// An address that we have not sent to for so long can reach us only if anybody can: home routers
/// keep holes open for less (RFC 4787 asks for 2 minutes at least, 5 are advised).
pub const CONTACT_MS: u64 = 5 * 60 * 1000;
/// Addresses remembered that we have sent to; beyond, nobody counts as unasked for a while.
pub const CONTACTED_MAX: usize = 4_096;
/// How much of an estimate a later one leaves.
const SIZE_DECAY: f64 = 0.95;

/// One family of a node.
#[derive(Debug)]
pub(super) struct Side {
    pub(super) family: Family,
    pub(super) node: KademliaNode,
    pub(super) external: ExternalAddress,
    pub(super) reachability: Reachability,
    pub(super) has_seeds: bool,
    pub(super) is_ready: bool,
    /// Our address, if the operator has told it.
    advertised: Option<IpAddr>,
    contacted: Contacted,
    size: SizeEstimate,
}

/// What a side is made with.
#[derive(Debug)]
pub(super) struct SideOptions<'a> {
    pub(super) family: Family,
    pub(super) seeds: Vec<SocketAddr>,
    pub(super) advertised: Option<IpAddr>,
    pub(super) announced: Announced,
    pub(super) server: &'a ServerLimits,
    pub(super) defences: Defences,
}

impl Side {
    pub(super) fn new(now: Monotonic, options: SideOptions<'_>, rng: &mut Rng) -> Self {
        let SideOptions { family, seeds, advertised, announced, server, defences } = options;
        let id = match advertised {
            Some(ip) => node_id_by_ip::draw(ip, rng),
            None => NodeId::random(rng),
        };
        let has_seeds = !seeds.is_empty();
        let node = NodeOptions {
            limits: limits(server.rates.loopback_exempt, defences),
            rules: rules(server.locals, defences),
            ..NodeOptions::mainline(id, family, seeds)
        };
        let reachability = Reachability::new(announced);
        let mut node = KademliaNode::new(now, node, rng.fork());
        node.set_read_only(reachability.is_read_only());
        Self {
            family,
            node,
            external: ExternalAddress::new(family, server.locals),
            reachability,
            has_seeds,
            is_ready: false,
            advertised,
            contacted: Contacted::default(),
            size: SizeEstimate::default(),
        }
    }

    /// Takes note of a datagram of ours.
    pub(super) fn on_transmit(&mut self, now: Monotonic, to: &SocketAddr) {
        if !self.reachability.is_settled() {
            self.contacted.add(now, to.ip());
        }
    }

    /// Takes note of a query. Returns true if it settles that others reach us.
    pub(super) fn on_query(&mut self, now: Monotonic, from: &SocketAddr) -> bool {
        if self.reachability.is_settled() || self.contacted.has(now, from.ip()) {
            return false;
        }
        let is_settled = self.reachability.on_unasked_query(from.ip());
        self.node.set_read_only(self.reachability.is_read_only());
        is_settled
    }

    /// Takes a vote on our address. Returns the new id, if it needs one.
    pub(super) fn on_seen_as(
        &mut self,
        now: Monotonic,
        by: IpAddr,
        address: SocketAddr,
        rng: &mut Rng,
    ) -> Option<NodeId> {
        let before = self.external.address();
        let decided = self.external.vote(by, address)?;
        if self.advertised.is_some() {
            // The operator knows better than those who see us through a proxy or another way out.
            return None;
        }
        if before.is_some() {
            self.reachability.on_move();
            self.node.set_read_only(self.reachability.is_read_only());
        }
        if node_id_by_ip::fits(&self.node.own(), decided.ip()) {
            return None;
        }
        let id = node_id_by_ip::draw(decided.ip(), rng);
        self.node.set_own(now, id);
        Some(id)
    }

    /// Draws another id if the one of an earlier life does not fit the address that the operator
    /// has told.
    pub(super) fn follow_advertised(&mut self, now: Monotonic, rng: &mut Rng) {
        if let Some(ip) = self.advertised
            && !node_id_by_ip::fits(&self.node.own(), ip)
        {
            self.node.set_own(now, node_id_by_ip::draw(ip, rng));
        }
    }

    /// Takes what a lookup has found as a sign of how many nodes there are.
    pub(super) fn on_lookup(&mut self, outcome: &LookupOutcome) {
        let wanted = TableLimits::MAINLINE.k;
        if outcome.closest.len() >= wanted
            && let Some(last) = outcome.closest.last()
        {
            self.size.add(wanted, &last.id.distance(&outcome.target).0);
        }
    }

    /// The nodes of the table that are good, questionable and bad.
    pub(super) fn table_health(&self, now: Monotonic) -> [usize; 3] {
        let mut counts = [0; 3];
        for entry in self.node.table().entries() {
            let index = match entry.health(now, TableLimits::MAINLINE.health) {
                Health::Good => 0,
                Health::Questionable => 1,
                Health::Bad => 2,
            };
            counts[index] += 1;
        }
        counts
    }

    /// How many nodes the family's network has, about.
    pub(super) fn network_size(&self) -> Option<f64> {
        self.size.estimate()
    }

    pub(super) fn handle_time(&mut self, now: Monotonic) {
        if self.reachability.deadline().is_some_and(|deadline| deadline <= now) {
            self.reachability.handle_time(now);
            self.node.set_read_only(self.reachability.is_read_only());
        }
        self.node.handle_time(now);
    }

    pub(super) fn deadline(&self) -> Option<Monotonic> {
        [self.node.deadline(), self.reachability.deadline()].into_iter().flatten().min()
    }
}

/// Limits of the table and of lookups.
fn limits(loopback_exempt: bool, defences: Defences) -> NodeLimits {
    let crowd = CrowdLimits { loopback_exempt, ..CrowdLimits::MAINLINE };
    let crowd = defences.table_caps.then_some(crowd);
    let mut limits = NodeLimits::of(TableLimits { crowd, ..TableLimits::MAINLINE });
    limits.lookup.per_subnet = defences.lookup_caps.then_some(1);
    limits.lookup.loopback_exempt = loopback_exempt;
    limits
}

fn rules(locals: Locals, defences: Defences) -> ContactRules {
    ContactRules {
        is_allowed: match locals {
            Locals::Refused => |address| !is_martian(address, Locals::Refused),
            Locals::Taken => |address| !is_martian(address, Locals::Taken),
        },
        is_preferred: match defences.fitting_ids {
            true => |contact| node_id_by_ip::fits(&contact.id, contact.address.ip()),
            false => |_| true,
        },
    }
}

/// Addresses that we have sent to lately, in two generations.
#[derive(Debug, Default)]
struct Contacted {
    current: BTreeSet<IpAddr>,
    last: BTreeSet<IpAddr>,
    turn_at: Monotonic,
    is_full: bool,
}

impl Contacted {
    fn add(&mut self, now: Monotonic, ip: IpAddr) {
        self.turn(now);
        if self.current.len() < CONTACTED_MAX {
            self.current.insert(ip);
        } else {
            self.is_full = true;
        }
    }

    fn has(&mut self, now: Monotonic, ip: IpAddr) -> bool {
        self.turn(now);
        self.is_full || self.current.contains(&ip) || self.last.contains(&ip)
    }

    fn turn(&mut self, now: Monotonic) {
        if now < self.turn_at {
            return;
        }
        self.turn_at = now.plus_millis(CONTACT_MS);
        self.last = std::mem::take(&mut self.current);
        self.is_full = false;
    }
}

/// How many nodes there are, from how close the closest are to targets.
#[derive(Clone, Copy, Debug, Default)]
struct SizeEstimate {
    nodes: f64,
    share: f64,
}

impl SizeEstimate {
    /// So many nodes are within that distance of a target.
    fn add(&mut self, nodes: usize, distance: &[u8; 20]) {
        let mut first = [0; 8];
        first.copy_from_slice(&distance[..8]);
        let share = u64::from_be_bytes(first) as f64 / u64::MAX as f64;
        // The last of n nodes marks the end of a place that has n - 1 others.
        self.nodes = self.nodes * SIZE_DECAY + nodes.saturating_sub(1) as f64;
        self.share = self.share * SIZE_DECAY + share;
    }

    fn estimate(&self) -> Option<f64> {
        (self.share > 0.0).then(|| self.nodes / self.share)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Monotonic {
        Monotonic(0).plus_millis(ms)
    }

    #[test]
    fn contacts_are_remembered_for_a_while_and_a_flood_proves_nothing() {
        let ip = |number: u32| IpAddr::from(number.to_be_bytes());
        let mut contacted = Contacted::default();
        contacted.add(at(1), ip(1));
        assert!(contacted.has(at(CONTACT_MS), ip(1)) && !contacted.has(at(CONTACT_MS), ip(2)));
        assert!(contacted.has(at(CONTACT_MS + 2), ip(1)));
        assert!(!contacted.has(at(2 * CONTACT_MS + 3), ip(1)));
        for number in 0..=4_096 {
            contacted.add(at(2 * CONTACT_MS + 3), ip(number));
        }
        assert!(contacted.has(at(2 * CONTACT_MS + 3), ip(999_999)));
        assert_eq!(contacted.current.len(), CONTACTED_MAX);
    }

    #[test]
    fn size_is_estimated_within_a_third() {
        let mut rng = Rng::with_seed(1);
        let ids: Vec<NodeId> = (0..5_000).map(|_| NodeId::random(&mut rng)).collect();
        let mut size = SizeEstimate::default();
        for _ in 0..40 {
            let target = NodeId::random(&mut rng);
            let mut distances: Vec<_> = ids.iter().map(|id| id.distance(&target)).collect();
            distances.sort_unstable();
            size.add(8, &distances[7].0);
        }
        let estimate = size.estimate().unwrap();
        assert!((3_300.0..6_700.0).contains(&estimate), "{estimate}");
    }
}
