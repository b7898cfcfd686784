//! [`Network`]: how long a datagram takes, and whether it arrives, once, twice or not at all.
//!
//! Nodes lie on a square of 60 ms; a datagram takes the way between them, a last mile on both ends
//! and a delay that is short mostly and long sometimes (lognormal), which reorders some.

use std::f64::consts::TAU;

use fastrand::Rng;

/// Datagrams longer than this are lost, as on a path that lets no fragments through.
pub const DATAGRAM_LEN_MAX: usize = 1_472;
const MS: f64 = 1e6;
const SQUARE_MS: f64 = 60.0;

/// How often what goes wrong; probabilities for each datagram.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Faults {
    /// It is lost.
    pub loss: f64,
    /// It arrives twice.
    pub duplication: f64,
    /// It is held up by up to 200 ms, beyond the usual.
    pub reordering: f64,
    /// A pair of nodes is connected in one direction only.
    pub one_way: f64,
}

impl Faults {
    /// A network in which nothing goes wrong.
    pub const NONE: Self = Self { loss: 0.0, duplication: 0.0, reordering: 0.0, one_way: 0.0 };
    /// The usual.
    pub const USUAL: Self =
        Self { loss: 0.005, duplication: 0.001, reordering: 0.005, one_way: 0.0 };
}

#[derive(Clone, Copy, Debug)]
struct Site {
    x_ms: f32,
    y_ms: f32,
    last_mile_ms: f32,
    /// Only nodes of the same side reach each other.
    side: u8,
}

/// The network between the nodes of a world.
#[derive(Debug)]
pub struct Network {
    rng: Rng,
    sites: Vec<Site>,
    /// What goes wrong.
    pub faults: Faults,
    seed: u64,
}

impl Network {
    /// A network without nodes.
    #[must_use]
    pub fn new(mut rng: Rng, faults: Faults) -> Self {
        let seed = rng.u64(..);
        Self { rng, sites: Vec::new(), faults, seed }
    }

    /// Adds the place of a node.
    pub fn add_place(&mut self) {
        let mut coordinate = || (self.rng.f64() * SQUARE_MS) as f32;
        let (x_ms, y_ms) = (coordinate(), coordinate());
        let last_mile_ms = (2.0 * (0.8 * normal(&mut self.rng)).exp()).min(50.0) as f32;
        self.sites.push(Site { x_ms, y_ms, last_mile_ms, side: 0 });
    }

    /// Puts a node on a side: nodes of different sides do not reach each other.
    pub fn set_side(&mut self, node: usize, side: u8) {
        self.sites[node].side = side;
    }

    /// Returns the side of a node.
    #[must_use]
    pub fn side(&self, node: usize) -> u8 {
        self.sites[node].side
    }

    /// Returns after how many nanoseconds a datagram arrives, and a second time.
    pub fn pass(&mut self, from: usize, to: usize, len: usize) -> [Option<u64>; 2] {
        let (source, sink) = (self.sites[from], self.sites[to]);
        let is_cut = source.side != sink.side || len > DATAGRAM_LEN_MAX;
        if is_cut || self.is_one_way(from, to) || self.rng.f64() < self.faults.loss {
            return [None; 2];
        }
        let first = self.delay(source, sink);
        let twice = self.rng.f64() < self.faults.duplication;
        let second = twice.then(|| self.delay(source, sink));
        [Some(first), second]
    }

    fn delay(&mut self, source: Site, sink: Site) -> u64 {
        let way = (source.x_ms - sink.x_ms).hypot(source.y_ms - sink.y_ms);
        let fixed = f64::from(way + source.last_mile_ms + sink.last_mile_ms);
        let jitter = (0.7 * normal(&mut self.rng)).exp();
        let held = match self.rng.f64() < self.faults.reordering {
            true => self.rng.f64() * 200.0,
            false => 0.0,
        };
        ((0.2 + fixed + jitter + held) * MS) as u64
    }

    /// Whether nothing gets from one to the other: the same for all datagrams of the pair.
    fn is_one_way(&self, from: usize, to: usize) -> bool {
        if self.faults.one_way <= 0.0 {
            return false;
        }
        let pair = (from.min(to) as u64) << 32 | from.max(to) as u64;
        let mut draw = super::generator(self.seed, pair);
        let is_affected = draw.f64() < self.faults.one_way;
        is_affected && draw.bool() == (from < to)
    }
}

/// A draw of the normal distribution.
fn normal(rng: &mut Rng) -> f64 {
    let radius = (-2.0 * (1.0 - rng.f64()).ln()).sqrt();
    radius * (TAU * rng.f64()).cos()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(faults: Faults) -> Network {
        let mut network = Network::new(Rng::with_seed(1), faults);
        for _ in 0..100 {
            network.add_place();
        }
        network
    }

    #[test]
    fn faults_are_as_frequent_as_asked_for() {
        let faults = Faults { loss: 0.1, duplication: 0.05, reordering: 0.1, one_way: 0.0 };
        let mut network = network(faults);
        let passes: Vec<_> = (0..20_000).map(|n| network.pass(n % 100, n % 77, 100)).collect();
        let lost = passes.iter().filter(|pass| pass[0].is_none()).count();
        let twice = passes.iter().filter(|pass| pass[1].is_some()).count();
        assert!((1_800..2_200).contains(&lost), "{lost}");
        assert!((800..1_000).contains(&twice), "{twice}");
        let late = passes.iter().filter(|pass| pass[0].is_some_and(|delay| delay > 150_000_000));
        assert!(late.count() > 200);
    }

    #[test]
    fn sides_are_apart_and_long_datagrams_are_lost() {
        let mut network = network(Faults::NONE);
        network.set_side(3, 1);
        assert_eq!(network.pass(3, 4, 10), [None; 2]);
        assert_eq!(network.pass(4, 3, 10), [None; 2]);
        assert!(network.pass(4, 5, DATAGRAM_LEN_MAX)[0].is_some());
        assert_eq!(network.pass(4, 5, DATAGRAM_LEN_MAX + 1), [None; 2]);
    }

    #[test]
    fn one_way_pairs_reach_each_other_in_one_direction_always() {
        let mut network = network(Faults { one_way: 0.3, ..Faults::NONE });
        let mut affected = 0;
        for from in 0..50 {
            for to in 50..100 {
                let there = network.pass(from, to, 10)[0].is_some();
                let back = network.pass(to, from, 10)[0].is_some();
                assert!(there || back);
                assert_eq!(network.pass(from, to, 10)[0].is_some(), there);
                affected += u32::from(!there || !back);
            }
        }
        assert!((600..900).contains(&affected), "{affected}");
    }
}
