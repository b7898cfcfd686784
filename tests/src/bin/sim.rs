//! Runs seeds of the simulator: `sim store --seeds 200 --from 0`.
//!
//! Prints one line per hundred seeds and a summary; a seed that fails is printed with the command
//! that repeats it, and the exit code is 1.

#![expect(clippy::print_stdout, reason = "the output is what this program is for")]

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use kadring_tests::store_world::{self, Summary, Trial};

/// Tries many seeds of the simulated world.
#[derive(Debug, Parser)]
#[command(name = "sim")]
struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// One store, with a crash at every disk request.
    Store {
        /// How many seeds.
        #[arg(long, default_value_t = 200)]
        seeds: u64,
        /// The first one.
        #[arg(long, default_value_t = 0)]
        from: u64,
        /// Commands between two starts, at most.
        #[arg(long)]
        operations: Option<u32>,
        /// Goes on after a seed that failed.
        #[arg(long)]
        keep_going: bool,
    },
}

fn main() -> ExitCode {
    let What::Store { seeds, from, operations, keep_going } = Arguments::parse().what;
    let mut trial = Trial::default();
    trial.operations_max = operations.unwrap_or(trial.operations_max);
    let (mut failed, mut total) = (0, Summary::default());
    for seed in from..from.saturating_add(seeds) {
        // A panic ends this program at once; the seed must be known all the same.
        std::panic::set_hook(Box::new(move |panic| {
            eprintln!("{panic}\nSEED={seed}\nrepeat: sim store --seeds 1 --from {seed}");
        }));
        match store_world::run(seed, trial) {
            Ok(summary) => add(&mut total, summary),
            Err(error) => {
                eprintln!("{error}\n");
                failed += 1;
                if !keep_going {
                    return ExitCode::FAILURE;
                }
            }
        }
    }
    println!(
        "{} seeds ok, {failed} failed: {} commands, {} disk requests, {} crashes recovered twice",
        seeds - failed,
        total.operations,
        total.requests,
        total.crashes
    );
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn add(total: &mut Summary, summary: Summary) {
    total.operations += summary.operations;
    total.requests += summary.requests;
    total.crashes += summary.crashes;
    total.generations += summary.generations;
}
