//! [`RateLimit`]: how many queries an address, and its network, may send.
//!
//! Two tiers of token buckets in two tables of fixed size: a flood from any number of sources costs
//! the same memory. A bucket that must make room is the fullest of its row: the one that has least
//! to tell. A source over its limit gets no reply at all; replies to our own queries are not
//! limited.

use std::net::IpAddr;

use super::siphash::SipKey;
use super::subnet::{Subnet, machine};

/// Buckets in a row: where a source may have its bucket.
const ROW_LEN: usize = 8;
const NS_PER_SECOND: u64 = 1_000_000_000;
/// A query in the unit of [`Bucket::spent`].
const QUERY: u64 = 1_000;

/// What a source may send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tier {
    /// Queries a second, in the long run.
    pub per_second: u32,
    /// Queries at once.
    pub burst: u32,
}

impl Tier {
    fn room(self) -> u64 {
        u64::from(self.burst) * QUERY
    }
}

/// The limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateLimits {
    /// Of one machine: an IPv4 address or an IPv6 /64.
    pub machine: Tier,
    /// Of a network: an IPv4 /24 or an IPv6 /48.
    pub subnet: Tier,
    /// Rows of 8 sources in each table.
    pub rows: usize,
    /// Whether loopback is not limited: tests and benches.
    pub loopback_exempt: bool,
}

impl Default for RateLimits {
    fn default() -> Self {
        Self {
            machine: Tier { per_second: 100, burst: 300 },
            subnet: Tier { per_second: 400, burst: 1_200 },
            rows: 1_024,
            loopback_exempt: false,
        }
    }
}

/// A source's bucket. An unused slot is a full bucket of source 0.
#[derive(Clone, Copy, Debug, Default)]
struct Bucket {
    source: u64,
    /// Thousandths of queries spent and not earned back.
    spent: u64,
    at_ns: u64,
}

#[derive(Clone, Debug)]
struct Table {
    key: SipKey,
    tier: Tier,
    buckets: Vec<Bucket>,
}

impl Table {
    fn new(key: SipKey, tier: Tier, rows: usize) -> Self {
        Self { key, tier, buckets: vec![Bucket::default(); rows.max(1) * ROW_LEN] }
    }

    fn bucket(&mut self, now_ns: u64, source: &[u8]) -> &mut Bucket {
        // 0 stands for an unused slot.
        let hash = self.key.hash(&[source]).max(1);
        let rows = self.buckets.len() / ROW_LEN;
        let row = usize::try_from(hash % rows as u64).unwrap_or_default() * ROW_LEN;
        let earned = u64::from(self.tier.per_second) * QUERY;
        let row = &mut self.buckets[row..row + ROW_LEN];
        for bucket in row.iter_mut() {
            let passed = now_ns.saturating_sub(bucket.at_ns);
            let back = u128::from(passed) * u128::from(earned) / u128::from(NS_PER_SECOND);
            let back = u64::try_from(back).unwrap_or(u64::MAX);
            if back > 0 {
                bucket.spent = bucket.spent.saturating_sub(back);
                bucket.at_ns = now_ns;
            }
        }
        let known = row.iter().position(|bucket| bucket.source == hash);
        let index = known.unwrap_or_else(|| {
            let fullest = (0..ROW_LEN).min_by_key(|index| row[*index].spent).unwrap_or(0);
            row[fullest] = Bucket { source: hash, spent: 0, at_ns: now_ns };
            fullest
        });
        &mut row[index]
    }

    fn spend(&mut self, now_ns: u64, source: &[u8]) -> bool {
        let room = self.tier.room();
        let bucket = self.bucket(now_ns, source);
        let spent = bucket.spent + QUERY;
        let fits = spent <= room;
        // Who is over the limit does not get deeper into debt by asking on.
        bucket.spent = if fits { spent } else { bucket.spent };
        fits
    }

    fn charge(&mut self, now_ns: u64, source: &[u8], queries: u32) {
        let room = self.tier.room();
        let bucket = self.bucket(now_ns, source);
        bucket.spent = (bucket.spent + u64::from(queries) * QUERY).min(room);
    }
}

/// The buckets of all sources.
#[derive(Clone, Debug)]
pub struct RateLimit {
    limits: RateLimits,
    machines: Table,
    subnets: Table,
}

impl RateLimit {
    /// Starts with full buckets. `seed` is secret, so that nobody can fill a chosen row.
    #[must_use]
    pub fn new(limits: RateLimits, seed: [u8; 16]) -> Self {
        let seed = SipKey(seed);
        Self {
            limits,
            machines: Table::new(seed.derive(1), limits.machine, limits.rows),
            subnets: Table::new(seed.derive(2), limits.subnet, limits.rows),
        }
    }

    /// Takes a query from an address; false: it gets no answer.
    pub fn admit(&mut self, now_ns: u64, from: IpAddr) -> bool {
        if self.is_exempt(from) {
            return true;
        }
        // Only what both admit is spent: a full network does not use up the machine's own, and a
        // machine that floods not what its neighbours have.
        let own = self.machines.bucket(now_ns, &machine(from).to_le_bytes());
        let spent = own.spent + QUERY;
        let admitted =
            spent <= self.limits.machine.room() && self.subnets.spend(now_ns, &subnet_bytes(from));
        own.spent = if admitted { spent } else { own.spent };
        admitted
    }

    /// Counts an answer as so many further queries: long ones to sources that may be forged.
    pub fn charge(&mut self, now_ns: u64, from: IpAddr, queries: u32) {
        if !self.is_exempt(from) {
            self.subnets.charge(now_ns, &subnet_bytes(from), queries);
            self.machines.charge(now_ns, &machine(from).to_le_bytes(), queries);
        }
    }

    fn is_exempt(&self, from: IpAddr) -> bool {
        self.limits.loopback_exempt && from.is_loopback()
    }
}

fn subnet_bytes(ip: IpAddr) -> [u8; 7] {
    let mut bytes = [0; 7];
    match Subnet::of(ip) {
        Subnet::V4(net) => {
            bytes[0] = 4;
            bytes[1..4].copy_from_slice(&net);
        }
        Subnet::V6(net) => {
            bytes[0] = 6;
            bytes[1..].copy_from_slice(&net);
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: RateLimits = RateLimits {
        machine: Tier { per_second: 10, burst: 20 },
        subnet: Tier { per_second: 40, burst: 50 },
        rows: 16,
        loopback_exempt: true,
    };

    fn admitted(limit: &mut RateLimit, now_ns: u64, ip: [u8; 4], count: u32) -> usize {
        (0..count).filter(|_| limit.admit(now_ns, IpAddr::from(ip))).count()
    }

    #[test]
    fn machine_has_a_burst_and_then_its_rate() {
        let mut limit = RateLimit::new(LIMITS, [1; 16]);
        assert_eq!(admitted(&mut limit, 0, [8, 8, 8, 8], 100), 20);
        assert_eq!(admitted(&mut limit, NS_PER_SECOND, [8, 8, 8, 8], 100), 10);
        let per_tenth: usize = (11..=20)
            .map(|tenth| admitted(&mut limit, tenth * NS_PER_SECOND / 10, [8, 8, 8, 8], 9))
            .sum();
        assert_eq!(per_tenth, 10);
    }

    #[test]
    fn network_has_a_limit_of_its_own_and_others_do_not_feel_it() {
        let mut limit = RateLimit::new(LIMITS, [1; 16]);
        let all: usize = (0..100).map(|last| admitted(&mut limit, 0, [8, 8, 8, last], 5)).sum();
        assert_eq!(all, 50);
        assert_eq!(admitted(&mut limit, 0, [8, 8, 9, 1], 5), 5);
    }

    /// A machine that asks on and on over its own limit takes no more than that of its network's.
    #[test]
    fn machine_that_floods_leaves_its_neighbours_their_share() {
        let mut limit = RateLimit::new(LIMITS, [1; 16]);
        assert_eq!(admitted(&mut limit, 0, [8, 8, 8, 8], 10_000), 20);
        assert_eq!(admitted(&mut limit, 0, [8, 8, 8, 9], 10), 10);
    }

    #[test]
    fn charged_answers_use_up_queries() {
        let mut limit = RateLimit::new(LIMITS, [1; 16]);
        assert_eq!(admitted(&mut limit, 0, [8, 8, 8, 8], 1), 1);
        limit.charge(0, IpAddr::from([8, 8, 8, 8]), 15);
        assert_eq!(admitted(&mut limit, 0, [8, 8, 8, 8], 100), 4);
    }

    #[test]
    fn loopback_may_be_exempt() {
        let mut limit = RateLimit::new(LIMITS, [1; 16]);
        assert_eq!(admitted(&mut limit, 0, [127, 0, 0, 1], 1_000), 1_000);
    }

    /// A heavy source keeps its bucket while any number of light ones pass through the table.
    #[test]
    fn flood_of_sources_does_not_give_a_heavy_one_its_burst_back() {
        let mut limit = RateLimit::new(LIMITS, [1; 16]);
        assert_eq!(admitted(&mut limit, 0, [8, 8, 8, 8], 100), 20);
        for source in 0..50_000_u32 {
            let [_, _, c, d] = source.to_be_bytes();
            limit.admit(0, IpAddr::from([9, c, d, 1]));
        }
        assert_eq!(admitted(&mut limit, 0, [8, 8, 8, 8], 100), 0);
        assert_eq!(limit.machines.buckets.len(), 16 * ROW_LEN);
    }
}
