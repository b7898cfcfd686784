//! [`Network`]: which messages arrive, and when.

use std::collections::BTreeSet;

use fastrand::Rng;

use super::MS;
use super::swarm::Mix;

/// What is between hosts.
#[derive(Debug, Default)]
pub(super) struct Network {
    /// Hosts of one side of a cut.
    cut: Option<Vec<bool>>,
    /// What the first sends does not reach the second.
    one_way: BTreeSet<(usize, usize)>,
    /// Nothing goes wrong any more.
    is_calm: bool,
}

/// What becomes of a message.
pub(super) enum Fate {
    /// It arrives, perhaps several times, after so many ns.
    Arrives(Vec<u64>),
    /// It does not; the sender may notice after so many ns.
    Lost(Option<u64>),
}

impl Network {
    pub(super) fn is_cut(&self) -> bool {
        self.cut.is_some()
    }

    pub(super) fn cut(&mut self, side: Vec<bool>) {
        self.cut = Some(side);
    }

    pub(super) fn block(&mut self, pairs: Vec<(usize, usize)>) {
        self.one_way.extend(pairs);
    }

    pub(super) fn heal(&mut self) {
        self.cut = None;
        self.one_way.clear();
    }

    /// From now on everything arrives.
    pub(super) fn calm(&mut self) {
        self.heal();
        self.is_calm = true;
    }

    /// A host comes during a cut.
    pub(super) fn add_host(&mut self, rng: &mut Rng) {
        if let Some(side) = &mut self.cut {
            side.push(rng.bool());
        }
    }

    /// Whether a message gets from one to the other, if it is not lost by chance.
    pub(super) fn connects(&self, from: usize, to: usize) -> bool {
        let is_cut = self.cut.as_ref().is_some_and(|side| side[from] != side[to]);
        !is_cut && !self.one_way.contains(&(from, to))
    }

    /// Whether a link can be made, which needs both ways.
    pub(super) fn links(&self, one: usize, other: usize) -> bool {
        self.connects(one, other) && self.connects(other, one)
    }

    /// Decides about a message to a host that is up or not.
    pub(super) fn fate(
        &self,
        (from, to): (usize, usize),
        is_up: bool,
        mix: &Mix,
        rng: &mut Rng,
    ) -> Fate {
        let is_lost = !self.is_calm && rng.f64() < mix.loss;
        if !is_up || !self.connects(from, to) || is_lost {
            let is_noticed = rng.bool();
            return Fate::Lost(is_noticed.then(|| rng.u64(1..200) * MS));
        }
        let copies = 1 + usize::from(!self.is_calm && rng.f64() < mix.doubled);
        let delay = |rng: &mut Rng| {
            let is_slow = !self.is_calm && rng.f64() < mix.slow;
            rng.u64(MS / 4..if is_slow { 900 } else { 6 } * MS)
        };
        Fate::Arrives((0..copies).map(|_| delay(rng)).collect())
    }
}
