//! [`BenchError`]: why a measurement did not come to its end.

use super::super::exit_code::ExitCode;
use super::reply::ReplyFault;
use std::io;
use std::path::PathBuf;

/// Why `kadring bench` failed. Displayed as `what; remedy`.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// The address is not of the form `host:port`, or has no number.
    #[error("--server is {found:?}: {source}; give host:port such as 127.0.0.1:7379")]
    Address {
        /// The address as given.
        found: String,
        /// What went wrong.
        #[source]
        source: io::Error,
    },
    /// No connection.
    #[error(
        "no server answers at {address}: {source}; start one or give its address with --server"
    )]
    Unreachable {
        /// The address tried.
        address: String,
        /// What went wrong.
        #[source]
        source: io::Error,
    },
    /// A connection failed.
    #[error("lost the server: {source}; see its log")]
    Lost {
        /// What went wrong.
        #[from]
        source: io::Error,
    },
    /// The server answered something that is no reply.
    #[error("the server sends {source}; is it a RESP server?")]
    Strange {
        /// What came.
        #[from]
        source: ReplyFault,
    },
    /// The server wants a password, or another one.
    #[error("the server refuses the password: {text}; give the right one with --password")]
    Password {
        /// The server's error text.
        text: String,
    },
    /// Flags that do not go together, or too much of something.
    #[error("{what}; see kadring bench --help")]
    Flags {
        /// What is wrong.
        what: &'static str,
    },
    /// The keys could not be stored.
    #[error("of {keys} keys {errors} were not stored: {text}; mend that and run it again")]
    Load {
        /// How many there should be.
        keys: u64,
        /// How many error replies came.
        errors: u64,
        /// The first of them.
        text: String,
    },
    /// Nothing but error replies.
    #[error("the server answered {errors} errors and nothing else: {text}; mend that first")]
    Refused {
        /// How many.
        errors: u64,
        /// The first of them.
        text: String,
    },
    /// Values read are not what was stored.
    #[error("{count} values differ from what kadring bench stores; fill the server with --load")]
    Mismatch {
        /// How many.
        count: u64,
    },
    /// There is no process to tell its CPU time.
    #[error("no process {pid} tells its CPU time; give the server's with --server-pid")]
    Process {
        /// Its number.
        pid: u32,
    },
    /// A result file cannot be written.
    #[error("cannot write {}: {text}; give another place", file.display())]
    File {
        /// The file.
        file: PathBuf,
        /// What went wrong.
        text: String,
    },
}

impl BenchError {
    /// The exit code that belongs to this failure.
    #[must_use]
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::Address { .. } | Self::Flags { .. } | Self::Process { .. } => ExitCode::Usage,
            Self::Unreachable { .. } | Self::Lost { .. } => ExitCode::NodeUnreachable,
            Self::Password { .. }
            | Self::Load { .. }
            | Self::Refused { .. }
            | Self::Strange { .. } => ExitCode::NodeRefused,
            Self::Mismatch { .. } | Self::File { .. } => ExitCode::Failure,
        }
    }
}
