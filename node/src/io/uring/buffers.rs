//! [`ReceiveBuffers`]: the provided-buffer ring out of which the kernel takes receive memory.
//!
//! A receive names no memory; the kernel picks a buffer when bytes are there, so that idle
//! connections hold none. A buffer is in one of three places: *provided* (the kernel may write to
//! it; we hold the box and do not look), *lent* (moved out to the reader of a completion, without
//! a copy), or handed back and provided again.
//!
//! ```text
//! provided --completion: take--> lent --give_back--> provided
//! ```

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::IoUring;
use io_uring::types::BufRingEntry;

use super::probe::ProbeError;
use crate::io::ReceiveBuffer;
use crate::io::sockets::RECEIVE_BUFFER_BYTES;

/// The buffer group of all connections; each UDP socket has one of its own.
pub(super) const GROUP: u16 = 0;

/// The slot of memory that is not one of the ring's buffers, of which there are fewer.
const DETACHED: u16 = u16::MAX;

/// The kernel asks for a page; larger pages than this are not ours to know.
const RING_ALIGN: usize = 65_536;

/// The buffers and the ring in memory that tells the kernel of them.
pub(super) struct ReceiveBuffers {
    entries: NonNull<BufRingEntry>,
    /// How the ring's memory is freed; nothing, once it is leaked.
    layout: Option<Layout>,
    /// Where the next provided buffer goes; runs on past the ring's size.
    tail: u16,
    mask: u16,
    storage: Vec<Option<Box<[u8]>>>,
    lent: usize,
    group: u16,
    /// The length of each buffer.
    bytes: usize,
}

impl ReceiveBuffers {
    /// Makes `count` buffers (a power of two up to 2^15) and provides them all.
    pub(super) fn register(ring: &IoUring, count: u16) -> Result<Self, ProbeError> {
        Self::register_group(ring, count, GROUP, RECEIVE_BUFFER_BYTES)
    }

    /// Makes `count` buffers (a power of two up to 2^15) of `bytes` each, and provides them all as
    /// `group`.
    pub(super) fn register_group(
        ring: &IoUring,
        count: u16,
        group: u16,
        bytes: usize,
    ) -> Result<Self, ProbeError> {
        assert!(count.is_power_of_two(), "a buffer ring has 2^n entries");
        let layout = Layout::array::<BufRingEntry>(usize::from(count))
            .and_then(|layout| layout.align_to(RING_ALIGN))
            .expect("at most 2^15 entries of 16 bytes");
        // SAFETY: the layout's size is not zero.
        let memory = unsafe { alloc_zeroed(layout) };
        let Some(entries) = NonNull::new(memory.cast::<BufRingEntry>()) else {
            handle_alloc_error(layout);
        };
        let buffer = || Some(vec![0; bytes].into_boxed_slice());
        let storage = std::iter::repeat_with(buffer).take(usize::from(count)).collect();
        let (layout, mask) = (Some(layout), count - 1);
        let mut buffers = Self { entries, layout, tail: 0, mask, storage, lent: 0, group, bytes };
        let address = entries.as_ptr() as u64;
        let submitter = ring.submitter();
        // SAFETY: the memory holds `count` entries and is freed only by this value's drop, before
        // which the owner ends the ring's use of it (`unregister`, or the end of the ring).
        unsafe { submitter.register_buf_ring_with_flags(address, count, group, 0) }.map_err(
            |error| match error.kind() {
                std::io::ErrorKind::InvalidInput => {
                    ProbeError::TooOld { abilities: vec!["provided-buffer rings"] }
                }
                _ => ProbeError::explain(error),
            },
        )?;
        for id in 0..count {
            buffers.provide(id);
        }
        Ok(buffers)
    }

    /// Ends the kernel's use of the buffers.
    pub(super) fn unregister(&self, ring: &IoUring) {
        if let Err(error) = ring.submitter().unregister_buf_ring(self.group) {
            tracing::debug!(%error, "buffer ring was not registered any more");
        }
    }

    /// Leaks all memory, because the kernel cannot be stopped from using it.
    pub(super) fn leak(&mut self) {
        std::mem::forget(std::mem::take(&mut self.storage));
        self.layout = None;
    }

    /// Lends the buffer the kernel has picked and filled with `len` bytes.
    pub(super) fn take(&mut self, id: u16, len: usize) -> ReceiveBuffer {
        let storage = self.storage[usize::from(id)].take().expect("a provided buffer is here");
        self.lent += 1;
        ReceiveBuffer::new(storage, len, id)
    }

    /// Copies what a lent buffer of the ring's holds into memory of its own size, and provides the
    /// buffer again; leaves other memory alone.
    pub(super) fn detach(&mut self, buffer: &mut ReceiveBuffer) {
        if buffer.slot != DETACHED && !buffer.storage.is_empty() {
            let copy = ReceiveBuffer::new((**buffer).into(), buffer.len(), DETACHED);
            self.give_back(std::mem::replace(buffer, copy));
        }
    }

    /// Provides a lent buffer again.
    pub(super) fn give_back(&mut self, buffer: ReceiveBuffer) {
        let (storage, id) = buffer.into_parts();
        if storage.is_empty() || id == DETACHED {
            // The end of a stream came without memory, and other memory is the reader's.
            return;
        }
        assert_eq!(storage.len(), self.bytes, "the buffer is one of this driver's");
        let place = &mut self.storage[usize::from(id)];
        assert!(place.is_none(), "receive buffer {id} was released twice");
        *place = Some(storage);
        self.lent -= 1;
        self.provide(id);
    }

    /// Whether the kernel may have a buffer to pick.
    pub(super) fn has_provided(&self) -> bool {
        self.lent < self.storage.len()
    }

    /// Tells the kernel of the buffer `id`.
    fn provide(&mut self, id: u16) {
        let storage = self.storage[usize::from(id)].as_mut().expect("the buffer is here");
        let address = storage.as_mut_ptr() as u64;
        let index = usize::from(self.tail & self.mask);
        // SAFETY: the mask keeps the index below the number of entries.
        let entry = unsafe { self.entries.add(index) };
        // SAFETY: the entry is zeroed or written memory of ours, and the kernel does not read it
        // before the tail has passed it. There are as many entries as buffers, so it is free.
        let entry = unsafe { &mut *entry.as_ptr() };
        entry.set_addr(address);
        entry.set_len(u32::try_from(self.bytes).expect("some KiB"));
        entry.set_bid(id);
        self.tail = self.tail.wrapping_add(1);
        // SAFETY: the pointer is that of the ring's first entry, which is initialised.
        let tail = unsafe { BufRingEntry::tail(self.entries.as_ptr()) };
        // SAFETY: the tail is 2 aligned bytes that live as long as the ring; we alone write it,
        // and the kernel reads it atomically.
        let tail = unsafe { AtomicU16::from_ptr(tail.cast_mut()) };
        // Release: the kernel sees the entry before it sees the tail.
        tail.store(self.tail, Ordering::Release);
    }
}

impl Drop for ReceiveBuffers {
    fn drop(&mut self) {
        if let Some(layout) = self.layout {
            // SAFETY: allocated with this layout; the owner has ended the kernel's use of it.
            unsafe { dealloc(self.entries.as_ptr().cast(), layout) };
        }
    }
}
