//! Runs seeds of the simulator, on as many threads as there are cores.
//!
//! ```text
//! sim store --seeds 500 --operations 5000     long traces, crashes at sampled places
//! sim store --seeds 200                       short traces, a crash at every disk request
//! sim store --exhaustive                      every image that a power loss can leave
//! sim cluster --seeds 1000                    a small cluster; each seed draws what goes wrong
//! sim cluster --scenario all --nodes 12 --engine real --json F --svg D
//! sim survival                                what is left after deaths, by copies and repair
//! sim errors --seeds 4                        each request fails in each way
//! sim net --nodes 10000 --dead 10%            a network of nodes, a tenth killed at once
//! sim net --scenario all --nodes 1000 --json net.json --svg plots/
//! sim mainline --nodes 10000 --hostile 20%    Mainline nodes, and liars among them
//! ```
//!
//! A seed that fails is printed with the command that repeats it, and the exit code is 1.

#![expect(clippy::print_stdout, reason = "the output is what this program is for")]

mod cluster;
mod progress;

use std::cell::Cell;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use clap::{Args, Parser, Subcommand};
use kadring_tests::mainline_world::{report as siege_report, siege};
use kadring_tests::net_world::network::Faults;
use kadring_tests::net_world::report;
use kadring_tests::net_world::scenario::{self, GROWING, Outcome, Plan, Scenario};
use kadring_tests::store_world::{self, Crashes, NthFailure, PlantedBug, Summary, Trial, errors};
use kadring_tests::tally::{Occurrence, Tally};
use progress::Progress;

/// Most images in one seed of an exhaustive run, unless told otherwise.
const IMAGES_MAX: u64 = 4_096;

/// So many seeds must meet everything that there is.
const SEEDS_COMPLETE_MIN: u64 = 200;

thread_local! {
    /// The seed that this thread tries: a panic ends the program, and the seed must be known.
    static SEED: Cell<u64> = const { Cell::new(0) };
}

/// Tries many seeds of the simulated world.
#[derive(Debug, Parser)]
#[command(name = "sim")]
struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Args)]
struct Seeds {
    /// How many seeds.
    #[arg(long, default_value_t = 200)]
    seeds: u64,
    /// The first one.
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// Goes on after a seed that failed.
    #[arg(long)]
    keep_going: bool,
    /// Threads, by default one for each core.
    #[arg(long)]
    threads: Option<usize>,
}

/// A network of nodes.
#[derive(Debug, Args)]
struct Net {
    /// What happens: growth, simultaneous, kill, churn, partition or all.
    #[arg(long, default_value = "kill")]
    scenario: String,
    /// Nodes.
    #[arg(long, default_value_t = 1000)]
    nodes: usize,
    /// Share of them that is killed, as 10% or 0.1.
    #[arg(long, default_value = "10%", value_parser = share)]
    dead: f64,
    /// Everything comes from it.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Nodes per bucket, and nodes that a lookup finds.
    #[arg(long, default_value_t = 20)]
    k: usize,
    /// Lookups of each measurement.
    #[arg(long, default_value_t = 1000)]
    lookups: usize,
    /// Share of datagrams that are lost.
    #[arg(long, default_value = "0.5%", value_parser = share)]
    loss: f64,
    /// Share of datagrams that arrive twice.
    #[arg(long, default_value = "0.1%", value_parser = share)]
    duplication: f64,
    /// Share of datagrams that are held up.
    #[arg(long, default_value = "0.5%", value_parser = share)]
    reordering: f64,
    /// Share of pairs of nodes that are connected in one direction only.
    #[arg(long, default_value = "0%", value_parser = share)]
    one_way: f64,
    /// Writes the results to this file.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Draws the results into files in this directory.
    #[arg(long)]
    svg: Option<PathBuf>,
}

/// A network of Mainline nodes, with hostile ones among them.
#[derive(Debug, Args)]
struct Siege {
    /// Nodes, hostile ones included.
    #[arg(long, default_value_t = 1000)]
    nodes: usize,
    /// Share of them that is hostile, as 20% or 0.2.
    #[arg(long, default_value = "20%", value_parser = share)]
    hostile: f64,
    /// Everything comes from it.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Items put, and got again.
    #[arg(long, default_value_t = 200)]
    items: usize,
    /// Items whose targets Sybils gather around; by default one for 500 nodes, 4 at least.
    #[arg(long)]
    victims: Option<usize>,
    /// Networks of the Sybils with any ids.
    #[arg(long, default_value_t = 20)]
    sybil_networks: usize,
    /// Networks of the Sybils whose ids fit their addresses.
    #[arg(long, default_value_t = 4)]
    fitting_networks: usize,
    /// Runs of those whose name has this in it: all, ids, table, lookup, reply, no caps, none.
    #[arg(long)]
    only: Option<String>,
    /// Writes the results to this file.
    #[arg(long)]
    json: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Many Kademlia nodes, and lookups compared with the truth.
    Net(Net),
    /// Many Mainline nodes, some of them hostile: puts and gets with and without each defence.
    Mainline(Siege),
    /// One store, with crashes: at every disk request if the trace is short, else at some.
    Store {
        #[command(flatten)]
        seeds: Seeds,
        /// Commands of a seed.
        #[arg(long, default_value_t = 100)]
        operations: u32,
        /// Tries every image that a power loss can leave where at most 12 pieces are in doubt, and
        /// every second crash during recovery.
        #[arg(long)]
        exhaustive: bool,
        /// Images in one seed of an exhaustive run, about.
        #[arg(long, default_value_t = IMAGES_MAX)]
        images: u64,
        /// Plants a defect in the store, which the oracle must notice: tombstones or segments are
        /// given up early, files recycled that snapshots share, or hot values kept that have
        /// changed. Not in release builds.
        #[arg(long, value_parser = planted)]
        bug: Option<PlantedBug>,
    },
    /// A cluster: real cores, a network that loses and delays, nodes that crash, come and go.
    Cluster(cluster::Cluster),
    /// What is left of what was stored after nodes have died, by copies and repair interval.
    Survival(cluster::Lives),
    /// One store without crashes, as often as it has requests: each fails in each way.
    Errors {
        #[command(flatten)]
        seeds: Seeds,
        /// Commands of a seed.
        #[arg(long, default_value_t = 40)]
        operations: u32,
        /// Only this request fails.
        #[arg(long, requires = "error")]
        nth: Option<u64>,
        /// How: eio, enospc, edquot or short.
        #[arg(long)]
        error: Option<String>,
        /// And all after it.
        #[arg(long)]
        sticky: bool,
    },
}

fn main() -> ExitCode {
    std::panic::set_hook(Box::new(|panic| {
        eprintln!(
            "{panic}\nSEED={0}\nrepeat: the same command with --seeds 1 --from {0}",
            SEED.get()
        );
    }));
    match Arguments::parse().what {
        What::Net(net) => run_net(&net),
        What::Mainline(siege) => run_siege(&siege),
        What::Store { seeds, operations, exhaustive, images, bug } => {
            let mut trial = Trial::of(operations);
            trial.bug = bug.unwrap_or(PlantedBug::Nothing);
            if exhaustive {
                trial.crashes = Crashes::Exhaustive { images_max: images };
            }
            run_stores(&seeds, trial)
        }
        What::Cluster(arguments) => cluster::run_clusters(&arguments),
        What::Survival(arguments) => cluster::run_survival(&arguments),
        What::Errors { seeds, operations, nth, error, sticky } => {
            let error = error.map(|name| errors::named(&name).ok_or(name));
            let error = match error.transpose() {
                Ok(error) => error,
                Err(name) => {
                    eprintln!("no such error: {name}");
                    return ExitCode::from(2);
                }
            };
            let only = nth.zip(error).map(|(nth, error)| NthFailure { nth, error, sticky });
            run_errors(&seeds, operations, only)
        }
    }
}

fn planted(name: &str) -> Result<PlantedBug, String> {
    match name {
        "tombstones" => Ok(PlantedBug::DropsTombstonesEarly),
        "segments" => Ok(PlantedBug::FreesSegmentsEarly),
        "links" => Ok(PlantedBug::RecyclesLinkedFiles),
        "hot" => Ok(PlantedBug::KeepsEmptyHotValues),
        _ => Err("one of tombstones, segments, links, hot".to_owned()),
    }
}

/// Reads `10%` or `0.1`.
fn share(text: &str) -> Result<f64, String> {
    let (number, unit) = match text.strip_suffix('%') {
        Some(number) => (number, 100.0),
        None => (text, 1.0),
    };
    let share = number.parse::<f64>().map_err(|error| error.to_string())? / unit;
    if (0.0..=1.0).contains(&share) { Ok(share) } else { Err("not between 0% and 100%".to_owned()) }
}

fn run_net(net: &Net) -> ExitCode {
    let mut scenarios = Scenario::ALL.to_vec();
    scenarios.retain(|scenario| net.scenario == "all" || scenario.name() == net.scenario);
    if scenarios.is_empty() {
        eprintln!("no such scenario: {}", net.scenario);
        return ExitCode::from(2);
    }
    SEED.set(net.seed);
    let (loss, duplication) = (net.loss, net.duplication);
    let (reordering, one_way) = (net.reordering, net.one_way);
    let faults = Faults { loss, duplication, reordering, one_way };
    let Net { seed, nodes, k, lookups, dead, .. } = *net;
    let plan = Plan { seed, nodes, k, lookups, dead, faults };
    let mut outcomes: Vec<Outcome> = Vec::new();
    for scenario in scenarios {
        let name = scenario.name();
        let bar = Progress::new("nodes", nodes as u64);
        let mut progress = |what: &str, alive: usize| match what {
            GROWING => bar.set(alive as u64),
            _ => {
                bar.clear();
                eprintln!("{name}: {what}, {alive} nodes");
            }
        };
        let outcome = scenario::run(scenario, plan, &mut progress);
        println!("{}", report::table(&outcome));
        outcomes.push(outcome);
    }
    println!("peak memory: {}", peak_memory());
    if let Err(error) = write_net(net, &outcomes) {
        eprintln!("{error}");
        return ExitCode::FAILURE;
    }
    let rows = || outcomes.iter().flat_map(|outcome| &outcome.measurements);
    if rows().all(|row| row.passes()) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn write_net(net: &Net, outcomes: &[Outcome]) -> Result<(), Box<dyn std::error::Error>> {
    if let Some(file) = &net.json {
        std::fs::write(file, format!("{:#}\n", report::json(outcomes)))?;
    }
    if let Some(directory) = &net.svg {
        std::fs::create_dir_all(directory)?;
        for (name, plot) in outcomes.iter().flat_map(report::plots) {
            plot.draw(&directory.join(format!("{name}.svg")))?;
        }
    }
    Ok(())
}

fn run_siege(arguments: &Siege) -> ExitCode {
    let Siege { nodes, hostile, seed, items, .. } = *arguments;
    let Siege { sybil_networks, fitting_networks, .. } = *arguments;
    let usual = siege::Plan::new(seed, nodes);
    let victims = arguments.victims.unwrap_or(usual.victims).clamp(1, items.max(1));
    let plan = siege::Plan { hostile, items, victims, sybil_networks, fitting_networks, ..usual };
    SEED.set(seed);
    let mut guards = siege::Guards::all();
    guards.retain(|(name, _)| arguments.only.as_ref().is_none_or(|only| name.contains(&only[..])));
    if guards.is_empty() {
        eprintln!("no such run");
        return ExitCode::from(2);
    }
    let mut outcomes = Vec::new();
    for (name, guards) in guards {
        let mut progress = |what: &str| eprintln!("{name}: {what}");
        outcomes.push(siege::run(name, guards, plan, &mut progress));
    }
    println!("{}", siege_report::table(&plan, &outcomes));
    println!("peak memory: {}", peak_memory());
    if let Some(file) = &arguments.json
        && let Err(error) =
            std::fs::write(file, format!("{:#}\n", siege_report::json(&plan, &outcomes)))
    {
        eprintln!("{error}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

/// The most memory this process has had, as Linux says it.
fn peak_memory() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.map_or_else(|| "unknown".to_owned(), |text| text.trim().to_owned())
}

fn run_stores(seeds: &Seeds, trial: Trial) -> ExitCode {
    let total = Mutex::new(Summary::default());
    let failed = run_all("seeds", seeds, |seed| {
        let summary = store_world::run(seed, trial).map_err(|error| vec![error])?;
        add(&mut total.lock().unwrap_or_else(std::sync::PoisonError::into_inner), &summary);
        Ok(())
    });
    let total = total.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    println!(
        "{} commands, {} disk requests, {} starts, {} crash images, {} damaged stores",
        total.operations, total.requests, total.generations, total.crashes, total.damaged
    );
    println!("{}", total.tally);
    let lacks = seeds.seeds >= SEEDS_COMPLETE_MIN && trial.bug == PlantedBug::Nothing;
    let lacks = lacks && failed == 0 && has_unmet(&total.tally, trial.crashes);
    match finish(seeds, failed) {
        _ if lacks => ExitCode::FAILURE,
        code => code,
    }
}

/// Says what a run of many seeds should have met and has not: then the world draws it too rarely,
/// and the run proves less than it seems to.
fn has_unmet(tally: &Tally, crashes: Crashes) -> bool {
    let is_exhaustive = matches!(crashes, Crashes::Exhaustive { .. });
    let mut missing = tally.missing();
    missing.retain(|name| *name != Occurrence::ListedImage.name() || is_exhaustive);
    if !missing.is_empty() {
        println!("never met: {}", missing.join(", "));
    }
    !missing.is_empty()
}

fn run_errors(seeds: &Seeds, operations: u32, only: Option<NthFailure>) -> ExitCode {
    let (requests, runs) = (AtomicU64::new(0), AtomicU64::new(0));
    let tally = Mutex::new(Tally::default());
    let failed = run_all("seeds", seeds, |seed| {
        let summary = errors::run(seed, operations, only)?;
        requests.fetch_add(summary.requests, Ordering::Relaxed);
        runs.fetch_add(summary.runs, Ordering::Relaxed);
        tally.lock().unwrap_or_else(std::sync::PoisonError::into_inner).merge(&summary.tally);
        Ok(())
    });
    println!("{} disk requests, {} runs", requests.into_inner(), runs.into_inner());
    println!("{}", tally.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner));
    finish(seeds, failed)
}

fn finish(seeds: &Seeds, failed: u64) -> ExitCode {
    println!("{} seeds from {}, {failed} failed", seeds.seeds, seeds.from);
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Tries all seeds and prints what went wrong; returns how many failed.
fn run_all(what: &str, seeds: &Seeds, run: impl Fn(u64) -> Result<(), Vec<String>> + Sync) -> u64 {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let end = seeds.from.saturating_add(seeds.seeds);
    let (next, failed) = (AtomicU64::new(seeds.from), AtomicU64::new(0));
    let (stop, progress) = (AtomicBool::new(false), Progress::new(what, seeds.seeds));
    thread::scope(|scope| {
        for _ in 0..seeds.threads.unwrap_or(cores) {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= end {
                        break;
                    }
                    SEED.set(seed);
                    let outcome = run(seed);
                    progress.step();
                    let Err(complaints) = outcome else { continue };
                    progress.clear();
                    eprintln!("{}\n", complaints.join("\n\n"));
                    failed.fetch_add(1, Ordering::Relaxed);
                    stop.fetch_or(!seeds.keep_going, Ordering::Relaxed);
                }
            });
        }
    });
    failed.into_inner()
}

fn add(total: &mut Summary, summary: &Summary) {
    total.operations += summary.operations;
    total.requests += summary.requests;
    total.crashes += summary.crashes;
    total.generations += summary.generations;
    total.damaged += summary.damaged;
    total.tally.merge(&summary.tally);
}
