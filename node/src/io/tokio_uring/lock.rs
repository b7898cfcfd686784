//! [`LockInRing`]: the data directory's lock as a registered file of the runtime's ring.
//!
//! The kernel lets go of a ring's registered files only after the ring's last request. So when the
//! process dies, the lock is freed after its last write has landed, exactly as with the `uring`
//! driver. The runtime offers neither registered files nor its ring's descriptor; but the kernel
//! lists in /proc the buffers registered in each ring, and one of them is ours alone.

use std::ffi::c_void;
use std::fs;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

use rustix::io::Errno;
use rustix::io_uring::{IoringRegisterOp, io_uring_register};

/// The ring in which the lock is registered.
pub(super) struct LockInRing {
    ring: RawFd,
}

impl LockInRing {
    /// Registers `lock` in the ring that has a buffer registered at `anchor`.
    ///
    /// The ring must outlive the value.
    pub(super) fn register(lock: BorrowedFd<'_>, anchor: usize) -> Result<Self, Errno> {
        let this = Self { ring: find_ring(anchor).ok_or(Errno::NOENT)? };
        let files = [lock.as_raw_fd()];
        // SAFETY: the kernel reads one descriptor and keeps no address.
        unsafe {
            io_uring_register(
                this.ring(),
                IoringRegisterOp::RegisterFiles,
                files.as_ptr().cast::<c_void>(),
                1,
            )
        }?;
        Ok(this)
    }

    /// Takes the lock out of the ring, which would otherwise keep it a little past its end.
    pub(super) fn unregister(self) {
        // SAFETY: this request reads no memory.
        let result = unsafe {
            io_uring_register(self.ring(), IoringRegisterOp::UnregisterFiles, std::ptr::null(), 0)
        };
        if let Err(error) = result {
            tracing::warn!(%error, "the lock is freed a little later");
        }
    }

    fn ring(&self) -> BorrowedFd<'_> {
        // SAFETY: the runtime owns the descriptor and, as `register` demands, still lives.
        unsafe { BorrowedFd::borrow_raw(self.ring) }
    }
}

/// The descriptor of the ring that has a buffer at this address.
fn find_ring(anchor: usize) -> Option<RawFd> {
    let buffer = format!(" {anchor:#x}/");
    fs::read_dir("/proc/self/fd").ok()?.flatten().find_map(|entry| {
        // Other threads open and close descriptors meanwhile: what cannot be read is not ours.
        let target = fs::read_link(entry.path()).ok()?;
        if target.to_str() != Some("anon_inode:[io_uring]") {
            return None;
        }
        let number = entry.file_name().to_str()?.to_owned();
        let about = fs::read_to_string(format!("/proc/self/fdinfo/{number}")).ok()?;
        if about.contains(&buffer) { number.parse().ok() } else { None }
    })
}
