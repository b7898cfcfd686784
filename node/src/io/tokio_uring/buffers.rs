//! [`ReadRoom`], [`WriteBytes`] and [`RoomLeft`]: our memory as the runtime wants to see it.
//!
//! The runtime asks for the address when an operation starts and keeps the value until the kernel
//! has completed it. They hold an [`IoBuffer`] or a [`ReceiveRoom`], whose memory never moves
//! while it lives.

use tokio_uring::buf::{IoBuf, IoBufMut};
use wal::disk::IoBuffer;

use crate::io::ReceiveRoom;

/// The part of a buffer that a read is to fill.
pub(super) struct ReadRoom {
    buffer: IoBuffer,
    from: usize,
    to: usize,
}

impl ReadRoom {
    /// The room from byte `from` up to byte `to`.
    pub(super) fn new(buffer: IoBuffer, from: usize, to: usize) -> Self {
        assert!(from <= to && to <= buffer.capacity(), "{from} to {to} is not within {buffer:?}");
        Self { buffer, from, to }
    }

    /// Gives the buffer back.
    pub(super) fn into_buffer(self) -> IoBuffer {
        self.buffer
    }
}

// SAFETY: the address is that of an IoBuffer's memory, which stays where it is for as long as the
// value lives, wherever that is moved; `from` and `to` lie within it and never change.
unsafe impl IoBuf for ReadRoom {
    fn stable_ptr(&self) -> *const u8 {
        // Only the mutable address reaches all of the room; reads ask for that one.
        self.buffer.as_slice().as_ptr().wrapping_add(self.from)
    }

    fn bytes_init(&self) -> usize {
        0
    }

    fn bytes_total(&self) -> usize {
        self.to - self.from
    }
}

// SAFETY: as above.
unsafe impl IoBufMut for ReadRoom {
    fn stable_mut_ptr(&mut self) -> *mut u8 {
        self.buffer.spare_mut()[self.from..self.to].as_mut_ptr()
    }

    unsafe fn set_init(&mut self, _len: usize) {
        // The room was never uninitialised, and the reader tells the buffer how much is valid.
    }
}

/// The valid bytes of a buffer, to be written.
pub(super) struct WriteBytes(pub(super) IoBuffer);

// SAFETY: the address is that of an IoBuffer's memory, which stays where it is for as long as the
// value lives, wherever that is moved.
unsafe impl IoBuf for WriteBytes {
    fn stable_ptr(&self) -> *const u8 {
        self.0.as_slice().as_ptr()
    }

    fn bytes_init(&self) -> usize {
        self.0.len()
    }

    fn bytes_total(&self) -> usize {
        self.0.len()
    }
}

/// What is left of the room for a connection's bytes, to be received into.
pub(super) struct RoomLeft(pub(super) ReceiveRoom);

// SAFETY: the address is that of the room's memory, which stays where it is for as long as the
// value lives, wherever that is moved; nobody fills it meanwhile, so that it stays the same one.
unsafe impl IoBuf for RoomLeft {
    fn stable_ptr(&self) -> *const u8 {
        self.0.filled().as_ptr().wrapping_add(self.0.filled().len())
    }

    fn bytes_init(&self) -> usize {
        0
    }

    fn bytes_total(&self) -> usize {
        self.0.left()
    }
}

// SAFETY: as above.
unsafe impl IoBufMut for RoomLeft {
    fn stable_mut_ptr(&mut self) -> *mut u8 {
        self.0.spare_mut().as_mut_ptr().cast()
    }

    unsafe fn set_init(&mut self, len: usize) {
        // SAFETY: the runtime promises that so many bytes of what it was given are written.
        unsafe { self.0.advance(len) };
    }
}
