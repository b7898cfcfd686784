//! Why a local cluster did not start or end as it should.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::cli::exit_code::ExitCode;

/// Why `kadring cluster` failed. Displayed as `what; remedy`.
#[derive(Debug, thiserror::Error)]
pub enum ClusterCliError {
    /// More replicas than nodes.
    #[error("{replicas} replicas need as many nodes, and there are {nodes}; lower --replicas")]
    Replicas {
        /// How many were asked for.
        replicas: u16,
        /// How many nodes there are to be.
        nodes: u16,
    },
    /// This program does not know where it is.
    #[error("cannot tell which program this is: {0}; name it with --program")]
    Program(#[source] io::Error),
    /// The directory cannot be made.
    #[error("cannot use directory {}: {source}; give another --dir", path.display())]
    Directory {
        /// The directory, or a file in it.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The kernel has no free ports.
    #[error("cannot find free ports: {0}; stop some programs that use the network")]
    Ports(#[source] io::Error),
    /// Signals cannot be waited for.
    #[error("cannot wait for signals: {0}; try again")]
    Signals(#[source] io::Error),
    /// A node cannot be started.
    #[error("cannot start {}: {source}; give another --program", program.display())]
    Spawn {
        /// The program.
        program: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A node ended before all were ready.
    #[error("{what}; mend that, or give other flags for the nodes behind `--`")]
    EndedEarly {
        /// Which node, how it ended, and the end of its log.
        what: String,
    },
    /// Nodes are not ready in time.
    #[error("nodes {nodes} are not ready after {waited:?}; see their logs with --dir")]
    NotReady {
        /// Their numbers.
        nodes: String,
        /// How long they had.
        waited: Duration,
    },
    /// A node said something else than that it is ready.
    #[error("node {node} said {line:?} where it should say that it is ready; is it kadring?")]
    Strange {
        /// Its number.
        node: usize,
        /// What it said.
        line: String,
    },
    /// Not all nodes have ended as they should.
    #[error("{what}; see their logs with --dir")]
    BadEnd {
        /// Which, and how.
        what: String,
    },
}

impl ClusterCliError {
    /// The exit code that belongs to this end.
    pub(in crate::cli) fn exit_code(&self) -> ExitCode {
        match self {
            Self::Replicas { .. } => ExitCode::Usage,
            _ => ExitCode::Failure,
        }
    }
}
