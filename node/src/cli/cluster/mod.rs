//! `kadring cluster N`: a cluster on this machine to try things on, for as long as this runs.

use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

mod error;
mod nodes;
mod place;
#[cfg(test)]
mod tests;

pub use error::ClusterCliError;

use nodes::{News, Nodes, Plan, Ready};
use place::Place;

use super::error::CliError;
use super::table;

/// Nodes of a local cluster at most: each is a process with a ring and buffers of its own.
const NODES_MAX: u16 = 200;
/// From the start until all nodes must have said that they are ready.
const READY_TIMEOUT: Duration = Duration::from_secs(120);
/// From SIGTERM until nodes that are still there are killed.
const STOP_TIMEOUT: Duration = Duration::from_secs(20);

/// Flags of `kadring cluster`.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct ClusterFlags {
    /// How many nodes
    #[arg(value_parser = clap::value_parser!(u16).range(1..=i64::from(NODES_MAX)))]
    nodes: u16,
    /// Nodes that hold each key [default: 3, or as many as there are nodes]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    replicas: Option<u16>,
    /// Directory for the nodes' data and logs, which stay there; without it, a temporary one that
    /// goes away with the cluster
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Program to run as a node [default: this one]
    #[arg(long, value_name = "FILE")]
    program: Option<PathBuf>,
    /// Further flags for each node, such as `-- --io pread --shards 1`
    #[arg(last = true, value_name = "FLAGS")]
    node_flags: Vec<OsString>,
}

/// Runs a cluster until SIGINT, SIGTERM or SIGHUP, or until all nodes are gone.
///
/// # Errors
/// What kept the cluster from starting, or which nodes did not end as they should.
pub(super) fn run(flags: &ClusterFlags, out: &mut dyn Write) -> Result<(), CliError> {
    let count = flags.nodes;
    let replicas = flags.replicas.unwrap_or_else(|| count.min(3));
    if replicas > count {
        return Err(ClusterCliError::Replicas { replicas, nodes: count }.into());
    }
    let program = match &flags.program {
        Some(program) => program.clone(),
        None => std::env::current_exe().map_err(ClusterCliError::Program)?,
    };
    let place = Place::new(flags.dir.as_deref())?;
    let plan = Plan {
        program,
        directory: place.path().to_owned(),
        replicas,
        peers: nodes::free_peer_addresses(usize::from(count)).map_err(ClusterCliError::Ports)?,
        node_flags: flags.node_flags.clone(),
    };
    // The nodes go before their directory does, also when something fails.
    let mut nodes = Nodes::start(&plan)?;
    let result = watch(&mut nodes, &place, out);
    let ends = nodes.stop(STOP_TIMEOUT);
    result?;
    ends.map_err(CliError::from)
}

/// Waits until all nodes are ready, says so, and waits until the cluster is to stop.
fn watch(nodes: &mut Nodes, place: &Place, out: &mut dyn Write) -> Result<(), CliError> {
    let Some(ready) = nodes.wait_ready(READY_TIMEOUT)? else { return Ok(()) };
    let text = welcome(&ready, place);
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(CliError::Output)?;
    let mut left = ready.len();
    while left > 0 {
        match nodes.next() {
            News::Stop => return Ok(()),
            News::Line(..) => {}
            News::Ended(index) => {
                left -= 1;
                let text = nodes.describe_end(index);
                tell(&format!("{text}; {left} of {} nodes are left", ready.len()));
            }
        }
    }
    Ok(())
}

/// Says something on stderr, where nobody may listen.
fn tell(text: &str) {
    let _ = writeln!(std::io::stderr(), "kadring: {text}");
}

/// What is printed once the cluster serves.
fn welcome(ready: &[Ready], place: &Place) -> String {
    let rows: Vec<Vec<String>> = (1..)
        .zip(ready)
        .map(|(number, node): (u16, &Ready)| {
            let Ready { client, peer, admin, id } = node;
            vec![number.to_string(), client.clone(), peer.clone(), admin.clone(), id.clone()]
        })
        .collect();
    let titles = ["NODE", "CLIENT", "PEER", "ADMIN", "ID"];
    let mut text = table::aligned(&titles, &[true, false, false, false, false], &rows);
    let first = &ready[0];
    let last = ready.last().unwrap_or(first);
    let port = |address: &str| address.rsplit(':').next().unwrap_or_default().to_owned();
    text.push_str("\nEvery node answers for every key:\n");
    text.push_str(&format!("  redis-cli -p {} set greeting hello\n", port(&first.client)));
    text.push_str(&format!("  redis-cli -p {} get greeting\n", port(&last.client)));
    text.push_str(&format!("  kadring nodes --client {}\n", first.client));
    text.push_str(&format!("  kadring locate greeting --client {}\n", first.client));
    text.push_str(&format!("  curl http://{}/metrics\n", first.admin));
    let kept = if place.is_temporary() { "removed at the end" } else { "kept" };
    text.push_str(&format!("\nData and logs: {} ({kept})\n", place.path().display()));
    text.push_str("Ctrl-C or SIGTERM stops all of them.\n");
    text
}
