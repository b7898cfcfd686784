//! What the kernel tells and gives this process besides disk and network.

use std::io;

use rustix::process::{
    Pid, Resource, Rlimit, Signal, getppid, getrlimit, set_parent_process_death_signal, setrlimit,
};

/// The variable by which `kadring cluster` tells a node whose end is the node's own.
pub const PARENT_VARIABLE: &str = "KADRING_PARENT_PID";

/// Has the kernel kill this process when its parent is gone. `parent` is who that should be.
///
/// # Errors
/// If the kernel refuses, or somebody else is the parent already: the process should not go on.
pub fn end_with_parent(parent: &str) -> io::Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    // It may have gone before.
    let is_there = getppid().map(Pid::as_raw_nonzero).is_some_and(|pid| pid.to_string() == parent);
    if is_there { Ok(()) } else { Err(io::Error::other("the process that started it is gone")) }
}

/// Allows as many open files as the administrator permits: every segment and client needs one.
/// Returns how many that is; none, if there is no limit.
pub fn raise_open_files_limit() -> Option<u64> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current != maximum
        && let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })
    {
        tracing::warn!(%error, "cannot raise the limit of open files");
        return current;
    }
    maximum
}

/// Draws random bytes from the kernel.
///
/// # Panics
/// If the kernel has none, which it always has once it has booted.
#[must_use]
pub fn random_bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    let flags = rustix::rand::GetRandomFlags::empty();
    let len = rustix::rand::getrandom(&mut bytes, flags).expect("the kernel has random bytes");
    assert_eq!(len, N, "small draws are whole");
    bytes
}

/// Number of cores this process may use.
#[must_use]
pub fn cores() -> u16 {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    u16::try_from(cores).unwrap_or(u16::MAX)
}

/// Bytes of memory the process has in use; 0 if the kernel does not tell.
#[must_use]
pub fn resident_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: u64 =
        statm.split_whitespace().nth(1).and_then(|pages| pages.parse().ok()).unwrap_or(0);
    pages * rustix::param::page_size() as u64
}
