//! What happens to hosts and the network by plan, and to keys when holders are lost.

use kadring::cluster::placement::replica_set;
use kadring::kademlia::NodeId;
use wal::record::Key;

use super::MS;
use super::plan::Action;
use super::store::Stop;
use super::world::{Event, World, name_of};

/// What has to wait for ranges to be filled is tried again after that.
const AGAIN_AFTER: u64 = 2_000 * MS;

impl World {
    pub(super) fn act(&mut self, action: Action) -> Result<(), String> {
        match action {
            Action::Start(at) => {
                self.counted.moves += 1;
                self.start(at)?;
            }
            Action::Stop { at, stop, again_ms } => {
                if self.hosts[at].is_up() {
                    self.counted.crashes += 1;
                    self.hosts[at].stop(stop, &mut self.rng);
                    self.after(again_ms * MS, Event::Restart { at });
                }
            }
            Action::Die(dead) => {
                self.forgive(&dead);
                self.counted.moves += dead.len() as u64;
                dead.into_iter().for_each(|at| self.bury(at));
                // Sets change when they are removed.
                self.mix.is_stable = false;
            }
            Action::Wipe(at) if self.is_filled() => {
                self.counted.moves += 1;
                self.hosts[at].stop(Stop::PowerLoss, &mut self.rng);
                self.hosts[at].store.wipe(&mut self.rng);
                self.after(1_000 * MS, Event::Restart { at });
            }
            Action::Replace { gone, new } if self.is_filled() => {
                self.act(Action::Die(vec![gone]))?;
                self.start(new)?;
            }
            Action::Wipe(_) | Action::Replace { .. } => {
                if !self.faults_over {
                    self.after(AGAIN_AFTER, Event::Act(action));
                }
            }
            Action::SpoilBlocks(at) => {
                let Self { hosts, rng, .. } = self;
                hosts[at].store.spoil_block(rng);
            }
            Action::FailWrite(at) => {
                if self.hosts[at].is_up() {
                    self.hosts[at].store.fail_write();
                }
            }
            Action::Cut(side) => {
                self.counted.cuts += 1;
                self.network.cut(side);
            }
            Action::OneWay(pairs) => {
                self.counted.cuts += 1;
                self.network.block(pairs);
            }
            Action::Heal => self.network.heal(),
            Action::Skew { at, ms } => self.hosts[at].skew_ms = ms,
        }
        Ok(())
    }

    /// A host goes for good.
    pub(super) fn bury(&mut self, at: usize) {
        self.hosts[at].stop(Stop::PowerLoss, &mut self.rng);
        self.hosts[at].is_dead = true;
    }

    /// Whether nobody lacks anything, as far as it knows.
    fn is_filled(&self) -> bool {
        let mut cores = self.live().filter_map(|host| host.core.as_ref());
        cores.all(|core| core.pending().is_empty())
    }

    /// Keys of which more holders go than the promise allows.
    fn forgive(&mut self, dead: &[usize]) {
        let Some(core) = self.live().find_map(|host| host.core.as_ref()) else { return };
        let placed = core.members().placed();
        let dead: Vec<NodeId> = dead.iter().map(|at| self.hosts[*at].id).collect();
        for key in 0..self.mix.keys {
            let set = replica_set(&Key::of(&name_of(key)), &placed, self.mix.replicas);
            let lost = set.iter().filter(|id| dead.contains(id)).count();
            if lost > (self.mix.replicas - 1) / 2 {
                self.counted.beyond += u64::from(self.ledger.is_bound(key));
                self.ledger.forgive(key, self.now_ns);
            }
        }
    }
}
