//! Integration tests: the real binary on the real kernel, over loopback and a temporary directory.
//!
//! One test binary with a module per subject. The binary under test is built on first use; each
//! test has its own node on a free port and its own data directory below the target directory
//! (not the system's temporary one, which may lie in memory and lack O_DIRECT).

#![expect(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    clippy::unwrap_used,
    reason = "tests look at a real process from outside, and may unwrap"
)]

mod admin;
mod bad_input;
mod bench;
mod byte_flips;
mod clients;
mod cluster;
mod cluster_command;
mod cluster_commands;
mod cluster_intruders;
mod cluster_kills;
mod cluster_many;
mod cluster_rig;
mod cluster_split;
mod crash_loop;
mod export;
mod extent_damage;
mod file_tree;
mod foreign_segments;
mod full_disk;
mod golden;
mod held_records;
mod mainline;
mod mainline_ipv6;
mod mainline_libtorrent;
mod mainline_net;
mod mainline_records;
mod redis_differential;
mod resp;
mod resp_cold;
mod resp_in_place;
mod resp_large;
mod snapshot;
mod startup;
mod store_crash;
mod store_suite;
mod threads;
mod tidy;

use std::io::{self, Write};

use kadring_tests::node_process::{Driver, NodeOptions, NodeProcess};
use kadring_tests::resp_client::RespClient;
use tempfile::TempDir;

/// A running node with its data directory; both go away with it.
struct TestNode {
    // Dropped in this order: first the process, then its files.
    node: NodeProcess,
    directory: TempDir,
}

impl TestNode {
    fn start(driver: Driver) -> Self {
        Self::start_with(driver, &[])
    }

    fn start_with(driver: Driver, variables: &[(&str, &str)]) -> Self {
        let directory = directory();
        let options = NodeOptions::new(&directory.path().join("data"), driver);
        let options = variables
            .iter()
            .fold(options, |options, (name, value)| options.with_variable(name, value));
        let node = NodeProcess::start(options).unwrap_or_else(|error| panic!("{error}"));
        Self { node, directory }
    }

    fn client(&self) -> RespClient {
        RespClient::connect(self.node.address()).unwrap()
    }

    /// SIGKILL, then a start on the same port.
    fn crash_and_restart(self) -> Self {
        let Self { node, directory } = self;
        let options = node.kill9().unwrap();
        let node = NodeProcess::start(options).unwrap_or_else(|error| panic!("{error}"));
        Self { node, directory }
    }

    /// SIGTERM with exit code 0, then a start on the same port.
    fn terminate_and_restart(self) -> Self {
        let Self { node, directory } = self;
        let options = node.options_on_same_port();
        let (status, rest) = node.terminate().unwrap_or_else(|error| panic!("{error}"));
        assert_eq!((status.code(), rest.as_str()), (Some(0), ""));
        let node = NodeProcess::start(options).unwrap_or_else(|error| panic!("{error}"));
        Self { node, directory }
    }
}

fn directory() -> TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

/// Says on standard error that something was not tested, and why; past the test runner's capture,
/// which would swallow it.
fn skipped(what: &str, why: &str) {
    io::stderr().write_all(format!("SKIPPED: {what}: {why}\n").as_bytes()).unwrap();
}
