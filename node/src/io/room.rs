//! [`ReceiveRoom`]: memory that is lent to a driver, to be received into.

use std::fmt;
use std::mem::MaybeUninit;

use bytes::Bytes;

/// Memory for so many bytes, filled from its front.
///
/// What is not filled is neither written nor readable, so that memory which nobody has sent
/// anything for costs addresses alone. The bytes never move: what was received into it stays where
/// the kernel has put it, also in the [`Bytes`] it becomes.
pub struct ReceiveRoom {
    /// Its length is what is filled; there is capacity for `len`.
    memory: Vec<u8>,
    len: usize,
    copied: usize,
}

impl ReceiveRoom {
    /// Makes room for `len` bytes; `None`, if the system gives no memory.
    #[must_use]
    pub fn new(len: usize) -> Option<Self> {
        let mut memory = Vec::new();
        memory.try_reserve_exact(len).ok()?;
        Some(Self { memory, len, copied: 0 })
    }

    /// What has come so far.
    #[must_use]
    pub fn filled(&self) -> &[u8] {
        &self.memory
    }

    /// How many bytes are still to come.
    #[must_use]
    pub fn left(&self) -> usize {
        self.len - self.memory.len()
    }

    /// How many of the bytes were copied here by the node, instead of received.
    #[must_use]
    pub fn copied(&self) -> usize {
        self.copied
    }

    /// Copies as much of `bytes` as there is room for, and tells how much that is.
    pub fn copy(&mut self, bytes: &[u8]) -> usize {
        let count = self.receive(bytes);
        self.copied += count;
        count
    }

    /// As [`ReceiveRoom::copy`], for a driver that is its own kernel: nobody else has copied them.
    pub fn receive(&mut self, bytes: &[u8]) -> usize {
        let count = bytes.len().min(self.left());
        self.memory.extend_from_slice(&bytes[..count]);
        count
    }

    /// Where the kernel is to write.
    pub(super) fn spare_mut(&mut self) -> &mut [MaybeUninit<u8>] {
        let left = self.left();
        &mut self.memory.spare_capacity_mut()[..left]
    }

    /// Notes that the first `count` bytes of [`ReceiveRoom::spare_mut`] have been written.
    ///
    /// # Safety
    /// They have been.
    pub(super) unsafe fn advance(&mut self, count: usize) {
        assert!(count <= self.left(), "the kernel does not write past the room it was given");
        // SAFETY: there is capacity for `left` more bytes, and the caller has had them written.
        unsafe { self.memory.set_len(self.memory.len() + count) };
    }

    /// What has come, where it has come.
    #[must_use]
    pub fn into_bytes(self) -> Bytes {
        Bytes::from(self.memory)
    }
}

impl fmt::Debug for ReceiveRoom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ReceiveRoom({} of {} bytes)", self.memory.len(), self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_stay_where_they_came() {
        let mut room = ReceiveRoom::new(5).unwrap();
        assert_eq!((room.copy(b"ab"), room.left(), room.copied()), (2, 3, 2));
        let address = room.filled().as_ptr();
        assert_eq!(room.spare_mut().len(), 3);
        assert_eq!((room.receive(b"cdef"), room.left(), room.copied()), (3, 0, 2));
        assert_eq!(room.copy(b"g"), 0, "it does not grow");
        let bytes = room.into_bytes();
        assert_eq!(bytes, b"abcde"[..]);
        assert_eq!(bytes.as_ptr(), address);
        assert_eq!(bytes.slice(..3).as_ptr(), address);
    }

    #[test]
    fn memory_that_there_is_not_is_refused() {
        assert!(ReceiveRoom::new(usize::MAX / 4).is_none());
    }
}
