//! Sends the golden conformance cases to nodes of BitTorrent's DHT over UDP:
//! `conformance 127.0.0.1:7400 127.0.0.1:6881` compares two of them.
//!
//! Prints a line for each case and a column for each node: `ours` is what kadring answers, `other`
//! another answer that is allowed, `FAILED` one that is not. Failures follow in full, and the exit
//! code is 1. The cases store items: point it at nodes that may keep them.

#![expect(clippy::print_stdout, reason = "the output is what this program is for")]

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use kadring_tests::conformance::udp_node::{UdpNode, Verdict};
use kadring_tests::conformance::{CaseError, all};

/// Sends the golden conformance cases to nodes, and says how each of them answers.
#[derive(Debug, Parser)]
#[command(name = "conformance")]
struct Arguments {
    /// Addresses of the nodes.
    #[arg(required = true)]
    nodes: Vec<SocketAddr>,
    /// Cases whose name has this in it.
    #[arg(long)]
    only: Option<String>,
    /// How long a reply may take, in ms.
    #[arg(long, default_value_t = 2_000)]
    reply_ms_max: u64,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error:?}");
            ExitCode::from(2)
        }
    }
}

/// Tells whether all nodes passed.
fn run(arguments: &Arguments) -> Result<bool, CaseError> {
    let mut cases = all()?;
    cases.retain(|case| arguments.only.as_ref().is_none_or(|only| case.name.contains(&only[..])));
    let reply_time_max = Duration::from_millis(arguments.reply_ms_max.max(1));
    let mut nodes: Vec<UdpNode> =
        arguments.nodes.iter().map(|address| UdpNode::new(*address, reply_time_max)).collect();
    let mut counts = vec![[0_usize; 3]; nodes.len()];
    let mut failures = Vec::new();
    for case in &cases {
        let mut line = format!("{:<48}", case.name);
        for (node, counts) in nodes.iter_mut().zip(&mut counts) {
            let verdict = node.judge(case);
            let (place, word) = match &verdict {
                Verdict::Ours => (0, "ours"),
                Verdict::Other => (1, "other"),
                Verdict::Failed(_) => (2, "FAILED"),
            };
            counts[place] += 1;
            line.push_str(&format!("{word:<8}"));
            if let Verdict::Failed(failure) = verdict {
                failures.push(format!("{}: {failure:?} ({})", node.address(), case.why));
            }
        }
        println!("{}", line.trim_end());
    }
    for (node, [ours, other, failed]) in nodes.iter().zip(counts) {
        println!("{}: {ours} as ours, {other} otherwise, {failed} failed", node.address());
    }
    failures.iter().for_each(|failure| println!("{failure}"));
    Ok(failures.is_empty() && !cases.is_empty())
}
