//! [`Scenario`]: what happens to a cluster, by name; and [`Script`], that in detail for one seed.

use fastrand::Rng;
use kadring::cluster::mutation::Mutation;

use super::store::Stop;
use super::swarm::Mix;

/// What holds the copies of each node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Engine {
    /// A map that knows what is durable.
    #[default]
    Model,
    /// The real engine below the adapter of the real process, on a simulated disk.
    Real {
        /// Shards of each node.
        shards: u16,
    },
}

/// What happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scenario {
    /// Few nodes; each seed draws its own mix of everything.
    Swarm,
    /// From one node to all.
    Growth,
    /// All start at the same moment, each with others as seeds.
    Simultaneous,
    /// A tenth dies at once, for good.
    Kill,
    /// A tenth loses power at once, later all do.
    Blackout,
    /// Nodes go and come back after times with heavy tails.
    Churn,
    /// The network is cut in two, and heals, twice.
    Partition,
    /// Some nodes reach others in one direction only.
    OneWay,
    /// One node after another loses power; disks fail.
    Rolling,
    /// One node's disk is empty all at once, then another's; a third one is replaced.
    Wipe,
    /// Clocks differ by seconds, and jump between two starts.
    Skew,
    /// Nearly everybody asks for one key.
    Hot,
}

impl Scenario {
    /// All of them.
    pub const ALL: [Self; 12] = [
        Self::Swarm,
        Self::Growth,
        Self::Simultaneous,
        Self::Kill,
        Self::Blackout,
        Self::Churn,
        Self::Partition,
        Self::OneWay,
        Self::Rolling,
        Self::Wipe,
        Self::Skew,
        Self::Hot,
    ];

    /// Its name on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Swarm => "swarm",
            Self::Growth => "growth",
            Self::Simultaneous => "simultaneous",
            Self::Kill => "kill",
            Self::Blackout => "blackout",
            Self::Churn => "churn",
            Self::Partition => "partition",
            Self::OneWay => "one-way",
            Self::Rolling => "rolling",
            Self::Wipe => "wipe",
            Self::Skew => "skew",
            Self::Hot => "hot",
        }
    }
}

/// One run but for its seed.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// What happens.
    pub scenario: Scenario,
    /// To so many nodes; the swarm draws their number.
    pub nodes: usize,
    /// What holds their copies.
    pub engine: Engine,
    /// A defect, which the oracles must notice.
    pub mutation: Mutation,
}

impl Default for Plan {
    fn default() -> Self {
        let (engine, mutation) = (Engine::default(), Mutation::Nothing);
        Self { scenario: Scenario::Swarm, nodes: 12, engine, mutation }
    }
}

/// Something that happens.
#[derive(Clone, Debug)]
pub(super) enum Action {
    /// A host starts, if it is not up.
    Start(usize),
    /// A host stops, and starts again after so many ms.
    Stop { at: usize, stop: Stop, again_ms: u64 },
    /// Hosts go for good, with their disks.
    Die(Vec<usize>),
    /// A host loses its disk's content and goes on with an empty one; once nothing is pending.
    Wipe(usize),
    /// A host goes for good and another one comes for it; once nothing is pending.
    Replace { gone: usize, new: usize },
    /// Some blocks of a host's disk cannot be read any more.
    SpoilBlocks(usize),
    /// The next write of a host's disk fails.
    FailWrite(usize),
    /// The network is cut in two.
    Cut(Vec<bool>),
    /// What the first of a pair sends does not reach the second.
    OneWay(Vec<(usize, usize)>),
    /// The network is whole again.
    Heal,
    /// A host's wall clock is set; it is noticed at the next start.
    Skew { at: usize, ms: u64 },
}

/// How the cluster comes to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Founding {
    /// It has been there for long.
    Settled,
    /// By the first host.
    ByFirst,
    /// By all that start.
    Together,
}

/// What happens in one run.
#[derive(Clone, Debug)]
pub(super) struct Script {
    pub(super) mix: Mix,
    /// Machines, those that start later included.
    pub(super) machines: usize,
    pub(super) founding: Founding,
    /// After how many ms what happens.
    pub(super) actions: Vec<(u64, Action)>,
}

const SECOND: u64 = 1_000;

impl Script {
    /// Draws what happens.
    pub(super) fn draw(plan: &Plan, rng: &mut Rng) -> Self {
        if plan.scenario == Scenario::Swarm {
            let mix = Mix::draw(rng);
            let (machines, founding) = (mix.hosts, Founding::Settled);
            return Self { mix, machines, founding, actions: Vec::new() };
        }
        let nodes = plan.nodes.max(4);
        let mut script = Self {
            mix: Mix::calm(nodes),
            machines: nodes,
            founding: Founding::Settled,
            actions: Vec::new(),
        };
        match plan.scenario {
            Scenario::Swarm => {}
            Scenario::Growth => script.growth(rng),
            Scenario::Simultaneous => script.simultaneous(),
            Scenario::Kill => script.kill(rng),
            Scenario::Blackout => script.blackout(rng),
            Scenario::Churn => script.churn(rng),
            Scenario::Partition => script.partition(rng),
            Scenario::OneWay => script.one_way(rng),
            Scenario::Rolling => script.rolling(rng),
            Scenario::Wipe => script.wipe(rng),
            Scenario::Skew => script.skew(rng),
            Scenario::Hot => script.hot(rng),
        }
        script
    }

    fn after(&mut self, ms: u64, action: Action) {
        self.actions.push((ms, action));
    }

    fn shuffled(&self, rng: &mut Rng) -> Vec<usize> {
        let mut all: Vec<usize> = (0..self.machines).collect();
        rng.shuffle(&mut all);
        all
    }

    fn growth(&mut self, rng: &mut Rng) {
        (self.founding, self.mix.is_stable) = (Founding::ByFirst, false);
        let span_ms = 20 * SECOND + 300 * self.machines as u64;
        self.after(0, Action::Start(0));
        for at in 1..self.machines {
            self.after(rng.u64(SECOND..span_ms), Action::Start(at));
        }
        self.mix.length_s = span_ms / SECOND + 30;
    }

    fn simultaneous(&mut self) {
        (self.founding, self.mix.is_stable) = (Founding::Together, false);
        (0..self.machines).for_each(|at| self.after(0, Action::Start(at)));
        self.mix.length_s = 40;
    }

    fn kill(&mut self, rng: &mut Rng) {
        (self.mix.down_after_ms, self.mix.is_stable) = (10 * SECOND, true);
        let mut dead = self.shuffled(rng);
        dead.truncate((self.machines / 10).max(1));
        self.after(15 * SECOND, Action::Die(dead));
    }

    fn blackout(&mut self, rng: &mut Rng) {
        let stop = Stop::PowerLoss;
        for at in self.shuffled(rng).into_iter().take((self.machines / 10).max(1)) {
            let again_ms = rng.u64(5 * SECOND..10 * SECOND);
            self.after(15 * SECOND, Action::Stop { at, stop, again_ms });
        }
        for at in 0..self.machines {
            let again_ms = rng.u64(SECOND..5 * SECOND);
            self.after(35 * SECOND, Action::Stop { at, stop, again_ms });
        }
    }

    fn churn(&mut self, rng: &mut Rng) {
        (self.mix.down_after_ms, self.mix.is_stable) = (20 * SECOND, false);
        self.mix.length_s = 120;
        for at in 0..self.machines {
            let mut now_ms = pareto(rng, 5.0);
            while now_ms < self.mix.length_s * SECOND {
                let stop = if rng.bool() { Stop::PowerLoss } else { Stop::Kill };
                let again_ms = pareto(rng, 2.0);
                self.after(now_ms, Action::Stop { at, stop, again_ms });
                now_ms += again_ms + pareto(rng, 20.0);
            }
        }
    }

    fn partition(&mut self, rng: &mut Rng) {
        let third = self.shuffled(rng)[..self.machines / 3].to_vec();
        let side = (0..self.machines).map(|at| third.contains(&at)).collect();
        self.after(10 * SECOND, Action::Cut(side));
        self.after(30 * SECOND, Action::Heal);
        let side = (0..self.machines).map(|_| rng.bool()).collect();
        self.after(38 * SECOND, Action::Cut(side));
        self.after(52 * SECOND, Action::Heal);
    }

    fn one_way(&mut self, rng: &mut Rng) {
        let all = |at: usize| (0..self.machines).map(move |other| (other, at));
        let mut blocked: Vec<_> = (0..self.machines).flat_map(all).collect();
        blocked.retain(|(from, to)| from != to && rng.u8(..10) == 0);
        let deaf: Vec<_> = all(rng.usize(..self.machines)).collect();
        self.after(10 * SECOND, Action::OneWay(blocked));
        self.after(25 * SECOND, Action::OneWay(deaf));
        self.after(45 * SECOND, Action::Heal);
    }

    fn rolling(&mut self, rng: &mut Rng) {
        let order = self.shuffled(rng);
        let step_ms = (40 * SECOND / self.machines as u64).max(200);
        for (number, at) in order.into_iter().enumerate() {
            let now_ms = 10 * SECOND + number as u64 * step_ms;
            match number {
                // So much is lost at once: no more than one holder of a key.
                0 => self.after(now_ms, Action::SpoilBlocks(at)),
                _ if number % 3 == 0 => self.after(now_ms, Action::FailWrite(at)),
                _ => {}
            }
            let (stop, again_ms) = (Stop::PowerLoss, rng.u64(100..2 * SECOND));
            self.after(now_ms + SECOND, Action::Stop { at, stop, again_ms });
        }
        self.mix.length_s = 20 + step_ms * self.machines as u64 / SECOND;
    }

    fn wipe(&mut self, rng: &mut Rng) {
        self.mix.down_after_ms = 10 * SECOND;
        let order = self.shuffled(rng);
        self.after(15 * SECOND, Action::Wipe(order[0]));
        self.after(35 * SECOND, Action::Wipe(order[1]));
        self.after(60 * SECOND, Action::Replace { gone: order[2], new: self.machines });
        self.machines += 1;
        self.mix.length_s = 90;
    }

    fn skew(&mut self, rng: &mut Rng) {
        self.mix.skew_max_ms = 8 * SECOND;
        for _ in 0..self.machines {
            let at = rng.usize(..self.machines);
            let (now_ms, ms) = (rng.u64(5 * SECOND..55 * SECOND), rng.u64(..8 * SECOND));
            let stop = if rng.bool() { Stop::PowerLoss } else { Stop::Kill };
            self.after(now_ms, Action::Skew { at, ms });
            self.after(now_ms, Action::Stop { at, stop, again_ms: rng.u64(..2 * SECOND) });
        }
    }

    fn hot(&mut self, rng: &mut Rng) {
        (self.mix.heat, self.mix.command_every_ms) = (0.9, 3);
        self.mix.length_s = 40;
        for now_ms in [15 * SECOND, 25 * SECOND] {
            let (at, stop) = (rng.usize(..self.machines), Stop::PowerLoss);
            self.after(now_ms, Action::Stop { at, stop, again_ms: 3 * SECOND });
        }
    }
}

/// Draws a time in ms from a Pareto distribution whose tail has a mean but no variance.
pub(super) fn pareto(rng: &mut Rng, least_s: f64) -> u64 {
    const SHAPE: f64 = 1.5;
    let drawn = least_s * (1.0 - rng.f64()).powf(-1.0 / SHAPE);
    // Nobody stays away for ever.
    (drawn.min(1_000.0 * least_s) * 1_000.0) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_scenario_has_a_name_of_its_own_and_happens_to_machines_that_exist() {
        for scenario in Scenario::ALL {
            let named = Scenario::ALL.iter().filter(|other| other.name() == scenario.name());
            assert_eq!(named.count(), 1);
            let plan = Plan { scenario, ..Plan::default() };
            let script = Script::draw(&plan, &mut Rng::with_seed(1));
            assert!(scenario == Scenario::Hot || script.mix.heat == 0.0);
            for (after_ms, action) in &script.actions {
                assert!(*after_ms < script.mix.length_s * SECOND, "{action:?}");
                let at = match action {
                    Action::Start(at) | Action::Wipe(at) | Action::Stop { at, .. } => *at,
                    Action::Replace { new, .. } => *new,
                    _ => 0,
                };
                assert!(at < script.machines, "{action:?}");
            }
        }
    }

    #[test]
    fn session_times_have_a_heavy_tail() {
        let mut rng = Rng::with_seed(3);
        let mut times: Vec<u64> = (0..10_000).map(|_| pareto(&mut rng, 20.0)).collect();
        times.sort_unstable();
        assert!(times[0] >= 20_000 && times[5_000] < 40_000);
        assert!(times[9_900] > 10 * times[5_000], "{}", times[9_900]);
    }
}
