//! Exit codes of `kadring`, which scripts and service managers may rely on.

/// How a `kadring` process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ExitCode {
    /// Done; for `run`: stopped when asked to, with everything acknowledged on disk.
    Clean = 0,
    /// Failed while running; for `get`: there is no such key.
    Failure = 1,
    /// The command line or the configuration is wrong; nothing was started or touched.
    Usage = 2,
    /// A door cannot be bound: its address is in use, not of this machine, or not permitted.
    Bind = 3,
    /// Another process holds the data directory.
    DirectoryLocked = 4,
    /// The data directory cannot be used: unreadable, no directory, or of a newer format version.
    DirectoryUnusable = 5,
    /// The kernel does not give the node an io_uring.
    RingUnavailable = 6,
    /// `check` found damage, whether or not it repaired it.
    DamageFound = 7,
    /// A client command reached no node, or lost it before the answer came.
    NodeUnreachable = 8,
    /// The node answered a client command with an error.
    NodeRefused = 9,
}

/// The list of codes that ends `kadring --help`.
pub(super) const EXIT_CODES_HELP: &str = "\
Exit codes:
  0  done, or stopped when asked to
  1  failed while running; get: no such key; mainline: nothing found or stored
  2  wrong command line or configuration
  3  cannot bind the address of a door
  4  the data directory is in use by another process
  5  the data directory cannot be used
  6  io_uring is not available
  7  check found damage
  8  no node reached (get, set, del, info, locate, routes, lookup, nodes, mainline, bench)
  9  the node answered an error (the same)

Every option is also a variable (KADRING_SHARDS) and a key of the --config file (shards = 4).
The option wins over the variable, the variable over the file.";

impl From<ExitCode> for std::process::ExitCode {
    fn from(code: ExitCode) -> Self {
        Self::from(code as u8)
    }
}
