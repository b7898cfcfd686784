//! `kadring run`: starts a node and says when it is ready.

use std::io::{self, Write as _};
use std::net::SocketAddr;

use sd_notify::NotifyState;

use super::error::{CliError, directory_exit_code, directory_remedy};
use super::exit_code::ExitCode;
use crate::config::{Config, Sources};
use crate::io::process;
use crate::logging;
use crate::node::{self, RunError, RunEvent};
use crate::peer_door::PeerDoorError;

/// Runs a node until it is asked to stop.
///
/// # Errors
/// A refused configuration, or what kept the node from starting or ended it.
pub(super) fn run(sources: &Sources<'_>) -> Result<(), CliError> {
    if let Some(parent) = (sources.variable)(process::PARENT_VARIABLE) {
        let gone = |error| RunError::Other(Box::new(error));
        process::end_with_parent(&parent.to_string_lossy()).map_err(gone)?;
    }
    let config = Config::load(sources)?;
    logging::init(&config.log)?;
    node::run(config, announce)?;
    Ok(())
}

/// Tells whoever started the node: one line on stdout, and the service manager if there is one.
fn announce(event: RunEvent) {
    let state = match event {
        RunEvent::Ready { client, peer, admin, node_id } => {
            let line = ready_line([Some(client), peer, admin], &node_id);
            let mut stdout = io::stdout().lock();
            // Nobody has to listen: a closed stdout does not stop the node.
            if let Err(error) = stdout.write_all(line.as_bytes()).and_then(|()| stdout.flush()) {
                tracing::warn!(%error, "cannot write the readiness line to stdout");
            }
            NotifyState::Ready
        }
        RunEvent::Stopping => NotifyState::Stopping,
    };
    // Succeeds without a service manager, too.
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::warn!(%error, "cannot notify the service manager");
    }
}

/// The readiness line; `-` stands for a door that this node does not have.
fn ready_line(doors: [Option<SocketAddr>; 3], node_id: &[u8; 20]) -> String {
    let word =
        |door: Option<SocketAddr>| door.map_or_else(|| "-".to_owned(), |door| door.to_string());
    let [client, peer, admin] = doors.map(word);
    let node: String = node_id.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("ready client={client} peer={peer} admin={admin} node={node}\n")
}

/// The exit code of a node that did not start or failed.
pub(super) fn exit_code(error: &RunError) -> ExitCode {
    match error {
        RunError::Bind { .. } | RunError::Peer(PeerDoorError::Bind { .. }) => ExitCode::Bind,
        RunError::Peer(PeerDoorError::Secret { .. } | PeerDoorError::SecretUnreadable { .. }) => {
            ExitCode::Usage
        }
        RunError::Peer(PeerDoorError::Driver(_)) => ExitCode::Failure,
        RunError::Directory(error) => directory_exit_code(error),
        RunError::OtherMode { .. } => ExitCode::DirectoryUnusable,
        RunError::ShardCount { .. } | RunError::ThreadCount { .. } | RunError::DiskLimit { .. } => {
            ExitCode::Usage
        }
        RunError::Ring { .. } => ExitCode::RingUnavailable,
        RunError::Thread { .. } | RunError::Other(_) => ExitCode::Failure,
    }
}

/// How to mend what kept a node from starting or ended it.
pub(super) fn remedy(error: &RunError) -> String {
    let text = match error {
        RunError::Bind { door, source, .. } => {
            let what = match source.kind() {
                io::ErrorKind::AddrInUse => "stop the process that uses it or give another",
                io::ErrorKind::AddrNotAvailable => "give an address of this machine with",
                io::ErrorKind::PermissionDenied => "give a port above 1023 with",
                _ => "give another",
            };
            return format!("{what} --{door}");
        }
        RunError::Peer(PeerDoorError::Bind { .. }) => "give another --peer",
        RunError::Peer(PeerDoorError::Secret { .. } | PeerDoorError::SecretUnreadable { .. }) => {
            "name a file of 16 to 4096 bytes that this user can read with --cluster-secret-file"
        }
        RunError::Directory(error) => directory_remedy(error),
        RunError::OtherMode { holds, .. } => {
            return format!("start it with --mode {}, or give another --data-dir", holds.name());
        }
        RunError::ShardCount { .. } => "leave --shards out, or give another --data-dir",
        RunError::ThreadCount { .. } => "lower --threads, or leave it out",
        RunError::DiskLimit { .. } => "raise disk_bytes_max, lower segment_bytes, or set it to 0",
        RunError::Ring { source } => match source.kind() {
            io::ErrorKind::PermissionDenied => {
                "permit it (sysctl kernel.io_uring_disabled=0 and the container's seccomp \
                 profile) or start with --io pread"
            }
            io::ErrorKind::OutOfMemory => {
                "raise the limit of locked memory (ulimit -l) or start with --io pread"
            }
            _ => "run Linux 6.1 or newer, or start with --io pread",
        },
        RunError::Thread { .. } | RunError::Peer(PeerDoorError::Driver(_)) | RunError::Other(_) => {
            "see the log above"
        }
    };
    text.to_owned()
}

#[cfg(test)]
mod tests {
    use super::{exit_code, ready_line, remedy};
    use crate::cli::exit_code::ExitCode;
    use crate::config::Mode;
    use crate::node::{DirectoryError, RunError};
    use std::io;

    #[test]
    fn ready_line_has_one_word_per_door_and_the_node_id_in_hex() {
        let mut node_id = [0xab; 20];
        node_id[0] = 1;
        let door = |port| Some(([127, 0, 0, 1], port).into());
        assert_eq!(
            ready_line([door(7379), None, None], &node_id),
            "ready client=127.0.0.1:7379 peer=- admin=- \
             node=01ababababababababababababababababababab\n"
        );
        let all = ready_line([door(1), door(2), door(3)], &node_id);
        let doors = "ready client=127.0.0.1:1 peer=127.0.0.1:2 admin=127.0.0.1:3 node=01ab";
        assert!(all.starts_with(doors), "{all}");
    }

    #[test]
    fn every_failure_has_its_exit_code_and_remedy() {
        let path = || "/data".into();
        let system = |kind: io::ErrorKind| io::Error::from(kind);
        let address = ([127, 0, 0, 1], 1).into();
        let bind = |door, kind| RunError::Bind { door, address, source: system(kind) };
        let cases = [
            (bind("client", io::ErrorKind::AddrInUse), ExitCode::Bind, "another --client"),
            (bind("admin", io::ErrorKind::AddrNotAvailable), ExitCode::Bind, "with --admin"),
            (
                RunError::Directory(DirectoryError::Locked {
                    path: path(),
                    holder: "process 7".to_owned(),
                }),
                ExitCode::DirectoryLocked,
                "another --data-dir",
            ),
            (
                RunError::Directory(DirectoryError::Unusable {
                    path: path(),
                    source: system(io::ErrorKind::PermissionDenied),
                }),
                ExitCode::DirectoryUnusable,
                "let this user read and write it",
            ),
            (
                RunError::Directory(DirectoryError::NewerFormat {
                    path: path(),
                    found: 9,
                    supported: 0,
                }),
                ExitCode::DirectoryUnusable,
                "run the kadring that wrote it",
            ),
            (
                RunError::Ring { source: system(io::ErrorKind::PermissionDenied) },
                ExitCode::RingUnavailable,
                "--io pread",
            ),
            (
                RunError::OtherMode { path: path(), holds: Mode::Mainline, asked: Mode::Private },
                ExitCode::DirectoryUnusable,
                "--mode mainline, or give another --data-dir",
            ),
            (
                RunError::ShardCount { path: path(), stored: 4, asked: 2 },
                ExitCode::Usage,
                "leave --shards out",
            ),
            (
                RunError::ThreadCount { path: path(), shards: 2, asked: 4 },
                ExitCode::Usage,
                "lower --threads",
            ),
            (RunError::Thread { thread: 1 }, ExitCode::Failure, "see the log"),
            (
                RunError::DiskLimit { given: 1, needed: 2, shards: 1 },
                ExitCode::Usage,
                "raise disk_bytes_max",
            ),
        ];
        for (error, code, words) in cases {
            assert_eq!(exit_code(&error), code, "{error}");
            assert!(remedy(&error).contains(words), "{error}; {}", remedy(&error));
        }
    }
}
