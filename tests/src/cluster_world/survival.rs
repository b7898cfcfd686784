//! How much of what was stored is still there after nodes have died for good, one after another,
//! and others have come for them: by number of copies, and by how soon repair begins.
//!
//! Lifetimes have a heavy tail. Nobody writes after the beginning. The repair interval is the time
//! after which a silent node counts as lost; ranges are compared ten times as often. Nodes are
//! removed only by nodes that see most others up: where the interval is about as long as a life,
//! more than half of those known may be dead, nobody is removed any more, and nothing can be read.

use std::fmt::Write;

use fastrand::Rng;
use serde_json::{Value, json};

use super::plan::{Action, Founding, Plan, Script, pareto};
use super::swarm::Mix;
use super::world::World;
use super::{MS, SECOND};
use crate::net_world::plot::{Across, Plot, Series};

/// Nothing dies before that.
const LOADED_AFTER: u64 = 10;
/// Points of a curve.
const POINTS: u64 = 40;
/// The mean of the times drawn, over the least one.
const MEAN_OVER_LEAST: f64 = 3.0;

/// What is tried.
#[derive(Clone, Copy, Debug)]
pub struct Trial {
    /// Nodes at any time.
    pub nodes: usize,
    /// Keys stored at the beginning.
    pub keys: u32,
    /// How long nodes come and go, in seconds of virtual time.
    pub length_s: u64,
    /// Mean lifetime of a node in seconds.
    pub lifetime_s: u64,
    /// Copies of each key.
    pub replicas: usize,
    /// When repair begins, in seconds.
    pub interval_s: u64,
}

/// How it went.
#[derive(Clone, Debug, PartialEq)]
pub struct Survival {
    /// Copies of each key.
    pub replicas: usize,
    /// When repair begins, in seconds.
    pub interval_s: u64,
    /// Nodes that died.
    pub deaths: u64,
    /// Share of the keys that are found once all is quiet.
    pub survived: f64,
    /// Share of the keys that nobody can tell about, even then.
    pub refused: f64,
    /// Seconds, and the share of the keys with a copy on a node that is up.
    pub curve: Vec<(f64, f64)>,
}

fn script(trial: &Trial, rng: &mut Rng) -> Script {
    let repair_every_ms = (trial.interval_s * 100).clamp(500, 60_000);
    let mix = Mix {
        replicas: trial.replicas.min(trial.nodes),
        keys: trial.keys,
        length_s: LOADED_AFTER + trial.length_s,
        down_after_ms: trial.interval_s * 1_000,
        repair_every_ms,
        probe_every_ms: 1_000,
        is_stable: false,
        loss: 0.0,
        doubled: 0.0,
        ..Mix::calm(trial.nodes)
    };
    let (mut machines, mut actions) = (trial.nodes, Vec::new());
    let end_ms = mix.length_s * 1_000;
    for slot in 0..trial.nodes {
        let mut at = slot;
        // Each has lived for a while already.
        let mut life_ms = rng.u64(..1_000 * trial.lifetime_s);
        let mut now_ms = LOADED_AFTER * 1_000 + life_ms;
        while now_ms < end_ms {
            actions.push((now_ms, Action::Die(vec![at])));
            actions.push((now_ms, Action::Start(machines)));
            at = machines;
            machines += 1;
            life_ms = pareto(rng, trial.lifetime_s as f64 / MEAN_OVER_LEAST);
            now_ms += life_ms;
        }
    }
    actions.sort_by_key(|(after_ms, _)| *after_ms);
    Script { mix, machines, founding: Founding::Settled, actions }
}

/// Runs one seed.
///
/// # Errors
/// What went wrong.
pub fn run(seed: u64, trial: Trial) -> Result<Survival, String> {
    let mut rng = Rng::with_seed(seed);
    let script = script(&trial, &mut rng);
    let deaths = script.actions.iter().filter(|(_, what)| matches!(what, Action::Die(_))).count();
    let mut world = World::with_script(script, &Plan::default(), rng)?;
    world.begin()?;
    let nodes = world.hosts.len().min(trial.nodes);
    for key in 0..trial.keys {
        let at = world.rng.usize(..nodes);
        world.store_for_ever(at, key)?;
    }
    let (mut curve, end) = (Vec::new(), world.mix.length_s * SECOND);
    for point in 0..=POINTS {
        let at = LOADED_AFTER * SECOND + point * (end - LOADED_AFTER * SECOND) / POINTS;
        world.run_until(at, |_| false)?;
        curve.push(((at / SECOND - LOADED_AFTER) as f64, world.share_alive()));
    }
    world.stop_faults()?;
    // Who died last is removed, and ranges are filled.
    let quiet_ns = 20 * trial.interval_s * SECOND + 60_000 * MS;
    world.run_until(world.now_ns + quiet_ns, |world| world.disagreement().is_none())?;
    let share = |count: u64| count as f64 / f64::from(trial.keys);
    let refused_before = world.counted.refused;
    let survived = share(world.read_once()?);
    let refused = share(world.counted.refused - refused_before);
    let Trial { replicas, interval_s, .. } = trial;
    Ok(Survival { replicas, interval_s, deaths: deaths as u64, survived, refused, curve })
}

/// Means over seeds, for each number of copies and each interval.
#[must_use]
pub fn means(runs: &[Survival]) -> Vec<Survival> {
    let mut found: Vec<Survival> = Vec::new();
    for run in runs {
        let is_same =
            |it: &&Survival| (it.replicas, it.interval_s) == (run.replicas, run.interval_s);
        if found.iter().any(|it| is_same(&it)) {
            continue;
        }
        let same: Vec<&Survival> = runs.iter().filter(is_same).collect();
        let count = same.len() as f64;
        let at = |index: usize| same.iter().map(|it| it.curve[index].1).sum::<f64>() / count;
        let curve = run.curve.iter().enumerate().map(|(index, (x, _))| (*x, at(index))).collect();
        found.push(Survival {
            deaths: same.iter().map(|it| it.deaths).sum::<u64>() / same.len() as u64,
            survived: same.iter().map(|it| it.survived).sum::<f64>() / count,
            refused: same.iter().map(|it| it.refused).sum::<f64>() / count,
            curve,
            ..run.clone()
        });
    }
    found.sort_by_key(|it| (it.replicas, it.interval_s));
    found
}

fn percent(share: f64) -> String {
    format!("{:.2} %", 100.0 * share)
}

/// Writes means as a table: copies down, intervals across.
#[must_use]
pub fn table(trial: &Trial, means: &[Survival]) -> String {
    let mut intervals: Vec<u64> = means.iter().map(|it| it.interval_s).collect();
    intervals.sort_unstable();
    intervals.dedup();
    let deaths = means.iter().map(|it| it.deaths).max().unwrap_or(0);
    let mut text = format!(
        "{} nodes, {} keys, {} s, mean lifetime {} s: about {deaths} deaths\n{:<10}",
        trial.nodes, trial.keys, trial.length_s, trial.lifetime_s, "copies"
    );
    for interval in &intervals {
        let _ = write!(text, "{:>14}", format!("repair {interval} s"));
    }
    let mut replicas = 0;
    for mean in means {
        if mean.replicas != replicas {
            replicas = mean.replicas;
            let _ = write!(text, "\n{replicas:<10}");
        }
        let _ = write!(text, "{:>14}", percent(mean.survived));
    }
    text.push('\n');
    text
}

/// Returns means as JSON.
#[must_use]
pub fn json(trial: &Trial, means: &[Survival]) -> Value {
    let mean = |mean: &Survival| {
        json!({
            "replicas": mean.replicas, "repair_interval_s": mean.interval_s,
            "deaths": mean.deaths, "survived": mean.survived, "refused": mean.refused,
            "curve": mean.curve,
        })
    };
    json!({
        "nodes": trial.nodes, "keys": trial.keys, "length_s": trial.length_s,
        "lifetime_s": trial.lifetime_s, "results": means.iter().map(mean).collect::<Vec<_>>(),
    })
}

/// Returns what is to be drawn: survival against the interval, and over time.
#[must_use]
pub fn plots(trial: &Trial, means: &[Survival]) -> Vec<(String, Plot)> {
    let mut replicas: Vec<usize> = means.iter().map(|it| it.replicas).collect();
    replicas.dedup();
    let mut intervals: Vec<u64> = means.iter().map(|it| it.interval_s).collect();
    intervals.sort_unstable();
    intervals.dedup();
    let of = |replicas: usize| means.iter().filter(move |it| it.replicas == replicas);
    let copies =
        |count: usize| if count == 1 { "1 copy".into() } else { format!("{count} copies") };
    let by_interval = |replicas: &usize| Series {
        name: copies(*replicas),
        points: of(*replicas).map(|it| (it.interval_s as f64, 100.0 * it.survived)).collect(),
    };
    let title = format!("{} nodes that live for {} s on average", trial.nodes, trial.lifetime_s);
    let first = Plot {
        title: format!("Keys left after {} s; {title}", trial.length_s),
        across: "a silent node counts as lost after, seconds".to_owned(),
        axis: Across::Powers(intervals.iter().map(|interval| *interval as f64).collect()),
        up: "% of keys".to_owned(),
        series: replicas.iter().map(by_interval).collect(),
    };
    let mut plots = vec![("survival".to_owned(), first)];
    for replicas in replicas {
        let over_time = |it: &Survival| Series {
            name: format!("lost after {} s", it.interval_s),
            points: it.curve.iter().map(|(x, y)| (*x, 100.0 * y)).collect(),
        };
        let plot = Plot {
            title: format!("Keys with a copy that is up, {}; {title}", copies(replicas)),
            across: "seconds".to_owned(),
            axis: Across::Even,
            up: "% of keys".to_owned(),
            series: of(replicas).map(over_time).collect(),
        };
        plots.push((format!("survival-{replicas}"), plot));
    }
    plots
}
