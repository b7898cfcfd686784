//! Runs the crash loop against the real binary: `crash --kills 50 --io uring`.
//!
//! Prints the seed first, a line every ten kills, a summary last; exits with 1 and the full
//! account when the node broke its promise, and keeps the data directory then.

#![expect(clippy::print_stdout, reason = "the output is what this program is for")]

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use kadring_tests::crash_loop::{CrashOptions, run};
use kadring_tests::node_process::Driver;

/// Kills a node again and again and checks that nothing acknowledged is lost.
#[derive(Debug, Parser)]
#[command(name = "crash")]
struct Arguments {
    /// How often the node is killed.
    #[arg(long, default_value_t = 50)]
    kills: u64,
    /// Decides workload and kill moments; random when not given.
    #[arg(long)]
    seed: Option<u64>,
    /// The node's I/O driver: uring, tokio-uring or pread.
    #[arg(long, default_value_t = Driver::Uring)]
    io: Driver,
    /// Connections that write at once.
    #[arg(long, default_value_t = 16)]
    connections: u32,
    /// Shards of the data directory.
    #[arg(long, default_value_t = 2)]
    shards: u16,
    /// What acknowledgements promise: always, interval or os.
    #[arg(long, default_value = "always")]
    durability: String,
    /// Longest time between readiness and kill, in ms.
    #[arg(long, default_value_t = 500)]
    write_ms_max: u64,
    /// A further argument of the node, for example --node=--cache-bytes=1MiB; may be repeated.
    #[arg(long = "node", value_name = "ARGUMENT")]
    node_arguments: Vec<String>,
    /// Where the data directory goes; beside the program when not given.
    #[arg(long)]
    directory: Option<PathBuf>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let seed = arguments.seed.unwrap_or_else(|| fastrand::u64(..));
    println!(
        "crash --seed {seed} --kills {} --io {} --connections {} --shards {} --write-ms-max {} \
         --durability {}{}",
        arguments.kills,
        arguments.io,
        arguments.connections,
        arguments.shards,
        arguments.write_ms_max,
        arguments.durability,
        arguments.node_arguments.iter().map(|word| format!(" --node={word}")).collect::<String>()
    );
    match crash(&arguments, seed) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn crash(arguments: &Arguments, seed: u64) -> Result<(), Box<dyn std::error::Error>> {
    let parent = match &arguments.directory {
        Some(directory) => directory.clone(),
        // Not the system's temporary directory: that may be in memory, without O_DIRECT.
        None => std::env::current_exe()?.with_file_name(""),
    };
    let directory = tempfile::Builder::new().prefix("crash-").tempdir_in(parent)?;
    let options = CrashOptions {
        kills: arguments.kills,
        seed,
        driver: arguments.io,
        connections: arguments.connections,
        shards: arguments.shards,
        durability: arguments.durability.clone(),
        write_ms_max: arguments.write_ms_max,
        node_arguments: arguments.node_arguments.clone(),
        directory: directory.path().to_owned(),
    };
    match run(&options, &mut |line| println!("{line}")) {
        Ok(summary) => {
            println!("ok: {summary}");
            Ok(())
        }
        Err(violation) => {
            let _kept = directory.keep();
            Err(violation.into())
        }
    }
}
