//! Translates the kernel's error numbers into what a core acts on.

use rustix::io::Errno;
use wal::disk::{DiskError, DiskErrorKind};

/// How often a driver repeats a disk call that was interrupted (EINTR, EAGAIN) before doing
/// anything; more than this is an error like any other.
pub(crate) const REPEATS_MAX: u16 = 1000;

/// Sorts an error of a disk call.
pub(crate) fn disk_error(errno: Errno) -> DiskError {
    let kind = match errno {
        Errno::NOENT => DiskErrorKind::NotFound,
        Errno::ACCESS | Errno::PERM | Errno::ROFS => DiskErrorKind::PermissionDenied,
        Errno::NOSPC | Errno::DQUOT => DiskErrorKind::NoSpace,
        _ => DiskErrorKind::Io,
    };
    DiskError { kind, code: errno.raw_os_error() }
}

/// Fewer bytes were written than asked.
pub(crate) fn short_write() -> DiskError {
    DiskError { kind: DiskErrorKind::ShortWrite, code: 0 }
}

/// Whether a call may be repeated because it was interrupted before it did anything.
pub(crate) fn is_interruption(errno: Errno) -> bool {
    matches!(errno, Errno::INTR | Errno::AGAIN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_sorted_by_what_a_core_does_about_them() {
        for (errno, kind) in [
            (Errno::NOSPC, DiskErrorKind::NoSpace),
            (Errno::DQUOT, DiskErrorKind::NoSpace),
            (Errno::NOENT, DiskErrorKind::NotFound),
            (Errno::ACCESS, DiskErrorKind::PermissionDenied),
            (Errno::PERM, DiskErrorKind::PermissionDenied),
            (Errno::ROFS, DiskErrorKind::PermissionDenied),
            (Errno::IO, DiskErrorKind::Io),
            (Errno::FBIG, DiskErrorKind::Io),
            (Errno::INTR, DiskErrorKind::Io),
            (Errno::CANCELED, DiskErrorKind::Io),
        ] {
            assert_eq!(disk_error(errno), DiskError { kind, code: errno.raw_os_error() });
        }
        assert_eq!(short_write().kind, DiskErrorKind::ShortWrite);
    }
}
