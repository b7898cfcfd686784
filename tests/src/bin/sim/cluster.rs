//! `sim cluster` and `sim survival`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};

use clap::{Args, ValueEnum};
use kadring_tests::cluster_world::survival::{self, Survival, Trial};
use kadring_tests::cluster_world::{self, Engine, Mutation, Outcome, Plan, Scenario, report};
use kadring_tests::net_world::plot::Plot;
use serde_json::Value;

use super::{Seeds, finish, peak_memory, run_all};

/// What holds the copies of each node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum EngineName {
    /// A map that knows what is durable.
    Model,
    /// The real engine on a simulated disk.
    Real,
}

/// A cluster of nodes.
#[derive(Debug, Args)]
pub(super) struct Cluster {
    #[command(flatten)]
    seeds: Seeds,
    /// What happens: swarm, growth, simultaneous, kill, blackout, churn, partition, one-way,
    /// rolling, wipe, skew, hot or all.
    #[arg(long, default_value = "swarm")]
    scenario: String,
    /// Nodes; a swarm draws their number.
    #[arg(long, default_value_t = 12)]
    nodes: usize,
    /// What holds the copies of each node.
    #[arg(long, value_enum, default_value = "model")]
    engine: EngineName,
    /// Shards of each node with the real engine.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=16))]
    shards: u16,
    /// Plants a defect, which the oracles must notice: resurrects, unconfirmed, backwards, early
    /// or lists.
    #[arg(long, value_parser = planted)]
    bug: Option<Mutation>,
    /// Writes the results to this file.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Draws the first seed of each scenario into files in this directory.
    #[arg(long)]
    svg: Option<PathBuf>,
}

/// Deaths, and what survives them.
#[derive(Debug, Args)]
pub(super) struct Lives {
    /// Nodes at any time.
    #[arg(long, default_value_t = 16)]
    nodes: usize,
    /// Keys stored at the beginning.
    #[arg(long, default_value_t = 200)]
    keys: u32,
    /// How long nodes come and go, in seconds of virtual time.
    #[arg(long, default_value_t = 600)]
    length: u64,
    /// Mean lifetime of a node in seconds.
    #[arg(long, default_value_t = 200)]
    lifetime: u64,
    /// Copies of each key, one or more numbers.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 2, 3, 5])]
    replicas: Vec<usize>,
    /// After how many seconds repair begins, one or more numbers.
    #[arg(long, value_delimiter = ',', default_values_t = [5, 15, 45])]
    intervals: Vec<u64>,
    /// Seeds of each.
    #[arg(long, default_value_t = 2)]
    seeds: u64,
    /// The first one.
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// Threads, by default one for each core.
    #[arg(long)]
    threads: Option<usize>,
    /// Writes the results to this file.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Draws the results into files in this directory.
    #[arg(long)]
    svg: Option<PathBuf>,
}

fn planted(name: &str) -> Result<Mutation, String> {
    match name {
        "resurrects" => Ok(Mutation::RepairResurrects),
        "unconfirmed" => Ok(Mutation::DropsUnconfirmed),
        "backwards" => Ok(Mutation::VersionGoesBack),
        "early" => Ok(Mutation::AnswersTooEarly),
        "lists" => Ok(Mutation::ListsFromOne),
        _ => Err("one of resurrects, unconfirmed, backwards, early, lists".to_owned()),
    }
}

pub(super) fn run_clusters(arguments: &Cluster) -> ExitCode {
    let mut scenarios = Scenario::ALL.to_vec();
    let wanted = &arguments.scenario;
    scenarios.retain(|scenario| wanted == "all" || scenario.name() == wanted);
    if scenarios.is_empty() {
        eprintln!("no such scenario: {wanted}");
        return ExitCode::from(2);
    }
    let engine = match arguments.engine {
        EngineName::Model => Engine::Model,
        EngineName::Real => Engine::Real { shards: arguments.shards },
    };
    let (nodes, mutation) = (arguments.nodes, arguments.bug.unwrap_or_default());
    let (mut outcomes, mut failed) = (Vec::new(), 0);
    for scenario in scenarios {
        let plan = Plan { scenario, nodes, engine, mutation };
        let found = Mutex::new(Vec::new());
        failed += run_all(scenario.name(), &arguments.seeds, |seed| {
            let outcome = cluster_world::run(seed, plan).map_err(|error| vec![error]);
            found.lock().unwrap_or_else(PoisonError::into_inner).push(outcome?);
            Ok(())
        });
        let mut found = found.into_inner().unwrap_or_else(PoisonError::into_inner);
        found.sort_by_key(|outcome: &Outcome| outcome.seed);
        outcomes.append(&mut found);
        if failed > 0 && !arguments.seeds.keep_going {
            break;
        }
    }
    println!("{}", report::table(&outcomes));
    println!("peak memory: {}", peak_memory());
    let first = |outcome: &&Outcome| outcome.seed == arguments.seeds.from;
    let plots = outcomes.iter().filter(first).flat_map(report::plots).collect();
    match write(&arguments.json, &report::json(&outcomes), &arguments.svg, plots) {
        Ok(()) => finish(&arguments.seeds, failed),
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

pub(super) fn run_survival(arguments: &Lives) -> ExitCode {
    let Lives { nodes, keys, length: length_s, lifetime: lifetime_s, .. } = *arguments;
    let (replicas, interval_s) = (3, 0);
    let usual = Trial { nodes, keys, length_s, lifetime_s, replicas, interval_s };
    let trials: Vec<Trial> = arguments
        .replicas
        .iter()
        .flat_map(|replicas| arguments.intervals.iter().map(move |interval| (*replicas, *interval)))
        .map(|(replicas, interval_s)| Trial { replicas, interval_s, ..usual })
        .collect();
    if nodes < 2 || keys == 0 || lifetime_s == 0 || arguments.intervals.contains(&0) {
        eprintln!("nodes, keys, lifetimes and intervals must be there");
        return ExitCode::from(2);
    }
    let all = trials.len() as u64 * arguments.seeds;
    // Each run of each trial is a seed of its own here.
    let threads = arguments.threads;
    let seeds = Seeds { seeds: all, from: 0, keep_going: false, threads };
    let runs = Mutex::new(Vec::new());
    let failed = run_all("survival", &seeds, |number| {
        let trial = trials[usize::try_from(number / arguments.seeds).unwrap_or(0)];
        let seed = arguments.from + number % arguments.seeds;
        let run = survival::run(seed, trial).map_err(|error| vec![error])?;
        runs.lock().unwrap_or_else(PoisonError::into_inner).push((number, run));
        Ok(())
    });
    let mut runs = runs.into_inner().unwrap_or_else(PoisonError::into_inner);
    runs.sort_by_key(|(number, _)| *number);
    let runs: Vec<Survival> = runs.into_iter().map(|(_, run)| run).collect();
    let means = survival::means(&runs);
    println!("{}", survival::table(&usual, &means));
    let plots = survival::plots(&usual, &means);
    if let Err(error) =
        write(&arguments.json, &survival::json(&usual, &means), &arguments.svg, plots)
    {
        eprintln!("{error}");
        return ExitCode::FAILURE;
    }
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn write(
    json: &Option<PathBuf>,
    results: &Value,
    svg: &Option<PathBuf>,
    plots: Vec<(String, Plot)>,
) -> Result<(), Box<dyn std::error::Error>> {
    if let Some(file) = json {
        std::fs::write(file, format!("{results:#}\n"))?;
    }
    if let Some(directory) = svg {
        std::fs::create_dir_all(directory)?;
        for (name, plot) in plots {
            plot.draw(&Path::new(directory).join(format!("{name}.svg")))?;
        }
    }
    Ok(())
}
