//! The command line: parses it, runs one command, and returns how that ended.
//!
//! Nothing here prints an error or exits: `main` does both. This is the edge of the program, so it
//! reads the process environment and files, and writes to stdout; the node below it does not.

use std::ffi::OsString;
use std::io::{self, IsTerminal as _, Write};

use clap::{Parser, Subcommand};

pub mod bench;
mod check;
mod client;
mod cluster;
mod error;
mod exit_code;
mod files;
mod flags;
mod mainline;
mod network;
mod progress;
mod run;
mod snapshot;
mod table;
#[cfg(test)]
mod tests;
mod transfer;

pub use check::{DamageFound, Finding, Report};
pub use client::ClientError;
pub use cluster::ClusterCliError;
pub use error::CliError;
pub use exit_code::ExitCode;
pub use mainline::{KeyFileError, MainlineCliError};
pub use snapshot::SnapshotCliError;
pub use transfer::TransferCliError;

use crate::config::Sources;
use bench::BenchFlags;
use check::CheckFlags;
use client::{DelFlags, GetFlags, InfoFlags, SetFlags};
use cluster::ClusterFlags;
use flags::RunFlags;
use mainline::MainlineCommand;
use network::{ListFlags, LocateFlags, LookupFlags};
use snapshot::SnapshotCommand;
use transfer::{ExportFlags, ImportFlags};

/// A persistent Kademlia storage node that speaks the Redis protocol.
///
/// Without a command it runs a node: `kadring` is `kadring run`.
#[derive(Debug, Parser)]
#[command(
    name = "kadring",
    version,
    args_conflicts_with_subcommands = true,
    after_help = exit_code::EXIT_CODES_HELP
)]
struct CommandLine {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    run: RunFlags,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a node until SIGTERM or SIGINT; prints one line `ready client=...` when it serves
    #[command(after_help = exit_code::EXIT_CODES_HELP)]
    Run(RunFlags),
    /// Print the value of a key, byte for byte
    Get(GetFlags),
    /// Store a value under a key; returns once it is durable
    Set(SetFlags),
    /// Delete keys; prints how many of them existed
    Del(DelFlags),
    /// Print what the node says about itself
    Info(InfoFlags),
    /// Print which nodes hold a key
    Locate(LocateFlags),
    /// Print the routing table of a node
    Routes(ListFlags),
    /// Have a node look for the nodes closest to an id, and print them
    Lookup(LookupFlags),
    /// Print the members of the cluster
    Nodes(ListFlags),
    /// Run a cluster on this machine until Ctrl-C, to try things on
    Cluster(ClusterFlags),
    /// Check a data directory that no node is using
    Check(CheckFlags),
    /// Take, list, verify, copy, restore and delete snapshots
    #[command(subcommand)]
    Snapshot(SnapshotCommand),
    /// Write all keys of a data directory to a file that Redis takes as well
    Export(ExportFlags),
    /// Store all keys of an export file in a data directory
    Import(ImportFlags),
    /// Find and store items and peers of BitTorrent's DHT, through a running node
    #[command(subcommand)]
    Mainline(MainlineCommand),
    /// Put a server that speaks the Redis protocol under load, and show how fast it answers
    Bench(BenchFlags),
}

/// Runs the command line `args`, program name first, to its end.
///
/// # Errors
/// [`CliError`], which knows its exit code. A reader that closes stdout early is no error.
pub fn run(args: impl IntoIterator<Item = OsString>) -> Result<(), CliError> {
    let line = CommandLine::try_parse_from(args)?;
    let stdout = io::stdout();
    let is_terminal = stdout.is_terminal();
    let mut out = io::BufWriter::new(stdout.lock());
    let result = match line.command.unwrap_or(Command::Run(line.run)) {
        Command::Run(flags) => {
            // The node announces itself on stdout from a place of its own.
            drop(out);
            return run::run(&sources(&|key| flags.get(key)));
        }
        Command::Get(flags) => {
            client::get(&flags, &sources(&|key| flags.node.get(key)), &mut out, is_terminal)
        }
        Command::Set(flags) => client::set(&flags, &sources(&|key| flags.node.get(key)), &mut out),
        Command::Del(flags) => client::del(&flags, &sources(&|key| flags.node.get(key)), &mut out),
        Command::Info(flags) => {
            client::info(&flags, &sources(&|key| flags.node.get(key)), &mut out)
        }
        Command::Locate(flags) => {
            network::locate(&flags, &sources(&|key| flags.list.get(key)), &mut out)
        }
        Command::Routes(flags) => {
            network::routes(&flags, &sources(&|key| flags.get(key)), &mut out)
        }
        Command::Lookup(flags) => {
            network::lookup(&flags, &sources(&|key| flags.list.get(key)), &mut out)
        }
        Command::Nodes(flags) => network::nodes(&flags, &sources(&|key| flags.get(key)), &mut out),
        Command::Cluster(flags) => cluster::run(&flags, &mut out),
        Command::Check(flags) => check::run(&flags, &sources(&|key| flags.get(key)), &mut out),
        Command::Snapshot(command) => {
            snapshot::run(&command, &sources(&|key| command.get(key)), &mut out)
        }
        Command::Export(flags) => {
            transfer::export(&flags, &sources(&|key| flags.directory.get(key)), &mut out)
        }
        Command::Import(flags) => {
            transfer::import(&flags, &sources(&|key| flags.directory.get(key)), &mut out)
        }
        Command::Mainline(command) => {
            let sources = |key: &str| command.get(key);
            mainline::run(&command, &self::sources(&sources), &mut out, is_terminal)
        }
        Command::Bench(flags) => bench::run(&flags, &sources(&|key| flags.get(key)), &mut out),
    };
    finish(result, &mut out)
}

/// Flushes what a command wrote, and forgives a reader that has gone away.
fn finish(result: Result<(), CliError>, out: &mut dyn Write) -> Result<(), CliError> {
    let flushed = out.flush().map_err(CliError::Output);
    match result.and(flushed) {
        Err(CliError::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}

fn sources<'a>(flag: &'a dyn Fn(&str) -> Option<OsString>) -> Sources<'a> {
    Sources { flag, variable: &|name| std::env::var_os(name), read: &files::read_text }
}
