//! What a command line can end with, and which exit code that is.

use std::io;

use super::bench::BenchError;
use super::check::DamageFound;
use super::client::ClientError;
use super::cluster::ClusterCliError;
use super::exit_code::ExitCode;
use super::mainline::MainlineCliError;
use super::run;
use super::snapshot::SnapshotCliError;
use super::transfer::TransferCliError;
use crate::check::CheckError;
use crate::config::ConfigError;
use crate::logging::LogError;
use crate::node::{DirectoryError, RunError};

/// Why a command did not end cleanly. Displayed on one line, as `what; remedy`.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// The command line is wrong, or asked for help or the version.
    #[error(transparent)]
    Arguments(#[from] clap::Error),
    /// The configuration is refused.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Logs cannot be set up.
    #[error("{0}; mend --log")]
    Log(#[from] LogError),
    /// The node did not start, or failed.
    #[error("{0}; {remedy}", remedy = run::remedy(.0))]
    Run(#[from] RunError),
    /// A client command failed.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The data directory cannot be checked.
    #[error("{0}; {remedy}", remedy = super::check::remedy(.0))]
    Check(#[from] CheckError),
    /// The data directory is damaged.
    #[error(transparent)]
    Damage(#[from] DamageFound),
    /// Keys were not exported or imported.
    #[error(transparent)]
    Transfer(#[from] TransferCliError),
    /// A snapshot command failed.
    #[error(transparent)]
    Snapshot(#[from] SnapshotCliError),
    /// A command of `kadring mainline` failed.
    #[error(transparent)]
    Mainline(#[from] MainlineCliError),
    /// A measurement did not come to its end.
    #[error(transparent)]
    Bench(#[from] BenchError),
    /// A local cluster did not start or end as it should.
    #[error(transparent)]
    Cluster(#[from] ClusterCliError),
    /// The result cannot be written to stdout.
    #[error("cannot write to stdout: {0}; free space where it leads, or send it elsewhere")]
    Output(#[source] io::Error),
}

impl CliError {
    /// The exit code that belongs to this end.
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::Arguments(error) if !error.use_stderr() => ExitCode::Clean,
            Self::Arguments(_) | Self::Config(_) => ExitCode::Usage,
            Self::Log(_) | Self::Output(_) => ExitCode::Failure,
            Self::Run(error) => run::exit_code(error),
            Self::Client(error) => error.exit_code(),
            Self::Check(CheckError::Directory(error)) => directory_exit_code(error),
            Self::Check(CheckError::Other(_)) => ExitCode::Failure,
            Self::Damage(_) => ExitCode::DamageFound,
            Self::Transfer(error) => error.exit_code(),
            Self::Snapshot(error) => error.exit_code(),
            Self::Mainline(error) => error.exit_code(),
            Self::Bench(error) => error.exit_code(),
            Self::Cluster(error) => error.exit_code(),
        }
    }
}

/// The exit code of an unusable data directory.
pub(super) fn directory_exit_code(error: &DirectoryError) -> ExitCode {
    match error {
        DirectoryError::Locked { .. } => ExitCode::DirectoryLocked,
        DirectoryError::Unusable { .. } | DirectoryError::NewerFormat { .. } => {
            ExitCode::DirectoryUnusable
        }
    }
}

/// How to mend an unusable data directory.
pub(super) fn directory_remedy(error: &DirectoryError) -> &'static str {
    match error {
        DirectoryError::Locked { .. } => "stop that process or give another --data-dir",
        DirectoryError::NewerFormat { .. } => {
            "run the kadring that wrote it, or give another --data-dir"
        }
        DirectoryError::Unusable { source, .. } => match source.kind() {
            io::ErrorKind::PermissionDenied => {
                "let this user read and write it, or give another --data-dir"
            }
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                "free space there or give another --data-dir"
            }
            io::ErrorKind::ReadOnlyFilesystem => "mount it for writing or give another --data-dir",
            io::ErrorKind::InvalidInput => "restore it or give another --data-dir",
            io::ErrorKind::NotFound => "create it or give another --data-dir",
            _ => "mend it or give another --data-dir",
        },
    }
}
