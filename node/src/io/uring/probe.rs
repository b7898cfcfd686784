//! [`ProbeError`]: why this kernel gives us no ring, and the way out.

use std::io;

use io_uring::{IoUring, Probe, opcode};
use rustix::io::Errno;

/// Why the driver cannot run here. Each message names cause and remedy.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// The administrator has switched io_uring off (EPERM, with the sysctl to show for it).
    #[error(
        "io_uring is switched off (sysctl kernel.io_uring_disabled = {setting}): \
         set it to 0, or run with --io pread"
    )]
    SwitchedOff {
        /// The sysctl's value.
        setting: u8,
    },
    /// A seccomp filter or security module forbids it (EPERM, EACCES).
    #[error(
        "io_uring is forbidden here, likely by the container's seccomp profile or a security \
         module: allow io_uring_setup, io_uring_enter and io_uring_register, or run with --io pread"
    )]
    Forbidden(#[source] io::Error),
    /// The kernel has no io_uring, or a sandbox hides it (ENOSYS).
    #[error(
        "this kernel has no io_uring (or a sandbox hides it): use Linux 6.1 or later, or run \
         with --io pread"
    )]
    Missing(#[source] io::Error),
    /// Not enough memory may be locked for the ring (ENOMEM).
    #[error(
        "not enough lockable memory for io_uring: raise the limit (ulimit -l, LimitMEMLOCK), or \
         run with --io pread"
    )]
    Memory(#[source] io::Error),
    /// The kernel's io_uring is too old.
    #[error(
        "this kernel's io_uring lacks {}: use Linux 6.1 or later, or run with --io pread",
        abilities.join(", ")
    )]
    TooOld {
        /// What it lacks.
        abilities: Vec<&'static str>,
    },
    /// Anything else.
    #[error("cannot set up io_uring: try --io pread")]
    Other(#[source] io::Error),
}

impl ProbeError {
    /// Explains an error of io_uring_setup(2) or io_uring_register(2).
    pub(in crate::io) fn explain(source: io::Error) -> Self {
        match Errno::from_io_error(&source) {
            Some(Errno::PERM | Errno::ACCESS) => switched_off().unwrap_or(Self::Forbidden(source)),
            Some(Errno::NOSYS) => Self::Missing(source),
            Some(Errno::NOMEM) => Self::Memory(source),
            _ => Self::Other(source),
        }
    }
}

fn switched_off() -> Option<ProbeError> {
    let text = std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled").ok()?;
    match text.trim().parse() {
        Ok(0) | Err(_) => None,
        Ok(setting) => Some(ProbeError::SwitchedOff { setting }),
    }
}

/// How much of the kernel the ring uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Abilities {
    /// All that is found there.
    #[default]
    Probed,
    /// What Linux 6.1 has, the oldest that will do.
    Linux6_1,
    /// What the driver cannot do without: not even a set-up flag.
    Fewest,
}

/// The operations without which the driver cannot work.
const OPERATIONS: [(u8, &str); 20] = [
    (opcode::Read::CODE, "READ"),
    (opcode::Write::CODE, "WRITE"),
    (opcode::ReadFixed::CODE, "READ_FIXED"),
    (opcode::WriteFixed::CODE, "WRITE_FIXED"),
    (opcode::Fsync::CODE, "FSYNC"),
    (opcode::OpenAt::CODE, "OPENAT"),
    (opcode::Close::CODE, "CLOSE"),
    (opcode::RenameAt::CODE, "RENAMEAT"),
    (opcode::UnlinkAt::CODE, "UNLINKAT"),
    (opcode::MkDirAt::CODE, "MKDIRAT"),
    (opcode::LinkAt::CODE, "LINKAT"),
    (opcode::Madvise::CODE, "MADVISE"),
    (opcode::AcceptMulti::CODE, "ACCEPT"),
    (opcode::Recv::CODE, "RECV"),
    (opcode::SendMsg::CODE, "SENDMSG"),
    (opcode::Send::CODE, "SEND"),
    (opcode::RecvMsgMulti::CODE, "RECVMSG"),
    (opcode::Connect::CODE, "CONNECT"),
    (opcode::AsyncCancel2::CODE, "ASYNC_CANCEL"),
    (opcode::Timeout::CODE, "TIMEOUT"),
];

/// Asks the kernel whether the ring can do all we need.
pub(super) fn check_abilities(ring: &IoUring) -> Result<(), ProbeError> {
    let mut probe = Probe::new();
    ring.submitter().register_probe(&mut probe).map_err(ProbeError::explain)?;
    let mut lacking: Vec<_> = OPERATIONS
        .into_iter()
        .filter(|(code, _)| !probe.is_supported(*code))
        .map(|(_, name)| name)
        .collect();
    if !ring.params().is_feature_ext_arg() {
        lacking.push("timeouts while waiting (EXT_ARG)");
    }
    if !ring.params().is_feature_nodrop() {
        lacking.push("completions that are never dropped (NODROP)");
    }
    if lacking.is_empty() { Ok(()) } else { Err(ProbeError::TooOld { abilities: lacking }) }
}

/// Whether the kernel can send without a copy. That it can tell what became of such a send is known
/// from the first.
pub(super) fn sends_without_copy(ring: &IoUring) -> bool {
    let mut probe = Probe::new();
    ring.submitter().register_probe(&mut probe).is_ok() && probe.is_supported(opcode::SendZc::CODE)
}

/// Whether the kernel knows messages between rings.
pub(super) fn takes_messages(ring: &IoUring) -> bool {
    let mut probe = Probe::new();
    ring.submitter().register_probe(&mut probe).is_ok()
        && probe.is_supported(opcode::MsgRingData::CODE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_refusal_names_the_way_out() {
        for errno in [Errno::PERM, Errno::ACCESS, Errno::NOSYS, Errno::NOMEM, Errno::MFILE] {
            let message = ProbeError::explain(errno.into()).to_string();
            assert!(message.contains("--io pread"), "{errno}: {message}");
            assert!(!message.contains('\n'), "{errno}: {message}");
        }
        let message = ProbeError::TooOld { abilities: vec!["RECV", "READ"] }.to_string();
        assert!(message.contains("lacks RECV, READ"), "{message}");
    }
}
