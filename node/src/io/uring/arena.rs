//! [`Arena`]: memory that the ring knows in advance, lent out as I/O buffers.
//!
//! The kernel pins registered memory once, and not for every request on it. The arena is made of
//! slabs, each registered as one buffer; a lease is some adjacent pages of one slab, so that its
//! place says which registered buffer it belongs to.
//!
//! ```text
//! ArenaBuffers::take --fits--> Lease in an IoBuffer --dropped--> its pages are free again
//!         \---- exhausted, or more than a slab ----> heap (counted)
//! ```
//!
//! Invariants the `unsafe` code here rests on:
//! * a page belongs to one lease at most, or is free ([`Pages`] sees to it), so leases are the only
//!   access to the memory and no two overlap;
//! * the memory never moves and lives as long as the last of driver, sources and leases: each
//!   holds the arena. Buffers may therefore outlive the driver.
//!
//! Whether the kernel took the registration (RLIMIT_MEMLOCK may forbid it) only decides which
//! operations are used: refused, the arena is plain aligned memory.

use std::fmt;
use std::io;
use std::ptr::NonNull;
use std::rc::Rc;
use std::slice;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use io_uring::IoUring;
use memmap2::{Advice, MmapMut, MmapOptions};
use wal::disk::{BLOCK_SIZE, BufferMemory, BufferSource, IoBuffer};

use super::op::Vector;
use super::pages::Pages;
use crate::io::BufferStatistics;

/// Bytes of a slab, and of the largest lease: four frames of a group commit, two huge pages.
const SLAB_BYTES: usize = BLOCK_SIZE << SLAB_ORDER;
const SLAB_ORDER: u8 = 10;
/// Slabs at most: the kernel registers no more buffers.
const SLABS_MAX: usize = 1 << 14;
/// Bytes of a huge page, to which the arena is aligned. Where they are larger, it does without.
const HUGE_PAGE_BYTES: usize = 2 << 20;

/// Memory for buffers, registered with the ring where that is allowed.
pub(in crate::io) struct Arena {
    /// The first slab, within `memory`.
    base: NonNull<u8>,
    slabs: usize,
    pages: Mutex<Pages>,
    registered: AtomicBool,
    taken: AtomicU64,
    fallen_back: AtomicU64,
    /// Owns the memory; touched only through leases.
    _memory: MmapMut,
}

// SAFETY: the memory is plain bytes; pages reach one lease at a time, under the mutex, so no two
// threads have access to the same byte.
unsafe impl Send for Arena {}
// SAFETY: as above; what the arena itself shares is atomic or under the mutex.
unsafe impl Sync for Arena {}

impl Arena {
    /// Makes an arena of `bytes`, rounded up to whole slabs; of none, it has no memory.
    pub(in crate::io) fn new(bytes: usize) -> io::Result<Arc<Self>> {
        let slabs = bytes.div_ceil(SLAB_BYTES).min(SLABS_MAX);
        let room = slabs * SLAB_BYTES + HUGE_PAGE_BYTES;
        let mut memory = MmapOptions::new().len(room).map_anon()?;
        let start = memory.as_ptr().align_offset(HUGE_PAGE_BYTES);
        assert!(start < HUGE_PAGE_BYTES, "a byte pointer can always be aligned");
        if slabs > 0
            && let Err(error) = memory.advise_range(Advice::HugePage, start, slabs * SLAB_BYTES)
        {
            tracing::debug!(%error, "buffers lie in small pages");
        }
        let base = NonNull::from(&mut memory[start..]).cast();
        let count = u32::try_from(slabs).expect("at most 2^14 slabs");
        Ok(Arc::new(Self {
            base,
            slabs,
            pages: Mutex::new(Pages::new(count, SLAB_ORDER)),
            registered: AtomicBool::new(false),
            taken: AtomicU64::new(0),
            fallen_back: AtomicU64::new(0),
            _memory: memory,
        }))
    }

    /// Tells the ring of all slabs, which pins them; if it refuses, says so once and does without.
    ///
    /// From then on the arena has to live until [`Arena::unregister`], or until the ring is gone.
    pub(super) fn register(&self, ring: &IoUring) {
        if self.slabs == 0 {
            return;
        }
        let slab = |index: usize| Vector {
            base: self.base.as_ptr().wrapping_add(index * SLAB_BYTES).cast_const().cast(),
            len: SLAB_BYTES,
        };
        let vectors: Vec<Vector> = (0..self.slabs).map(slab).collect();
        // SAFETY: `Vector` has the layout of the kernel's `struct iovec`, and the vectors live.
        let vectors = unsafe { slice::from_raw_parts(vectors.as_ptr().cast(), vectors.len()) };
        // SAFETY: the slabs are mapped until the arena is dropped, and the driver keeps it until
        // it has unregistered them. The kernel reaches them only as requests on leases say.
        match unsafe { ring.submitter().register_buffers(vectors) } {
            Ok(()) => self.registered.store(true, Ordering::Relaxed),
            Err(error) => tracing::warn!(
                %error,
                bytes = self.slabs * SLAB_BYTES,
                "I/O buffers are not registered with the ring and cost a little more; raise the \
                 limit of locked memory (ulimit -l, LimitMEMLOCK)"
            ),
        }
    }

    /// Ends the ring's knowledge of the slabs. No request on them may be under way.
    pub(super) fn unregister(&self, ring: &IoUring) {
        if self.registered.swap(false, Ordering::Relaxed)
            && let Err(error) = ring.submitter().unregister_buffers()
        {
            tracing::debug!(%error, "buffers were not registered any more");
        }
    }

    /// Start and length of each slab, for a driver that registers them by other means.
    pub(in crate::io) fn slabs(&self) -> impl Iterator<Item = (NonNull<u8>, usize)> {
        let base = self.base;
        // SAFETY: the offset lies within the arena's memory, which is one mapping.
        (0..self.slabs).map(move |index| (unsafe { base.add(index * SLAB_BYTES) }, SLAB_BYTES))
    }

    /// Notes whether slabs registered by other means are so.
    pub(in crate::io) fn set_registered(&self, registered: bool) {
        self.registered.store(registered, Ordering::Relaxed);
    }

    /// The registered buffer that memory at `address` lies in, if it does.
    pub(in crate::io) fn index_of(&self, address: *const u8) -> Option<u16> {
        let offset = address.addr().checked_sub(self.base.addr().get())?;
        let index = offset / SLAB_BYTES;
        let known = index < self.slabs && self.registered.load(Ordering::Relaxed);
        u16::try_from(index).ok().filter(|_| known)
    }

    /// Lends pages with room for `bytes`, if there are as many in a row.
    fn lend(self: &Arc<Self>, bytes: usize) -> Option<Lease> {
        let count = u32::try_from(bytes.max(1).div_ceil(BLOCK_SIZE)).ok()?;
        let first = self.pages().take(count)?;
        Some(Lease { arena: Arc::clone(self), first, count })
    }

    fn pages(&self) -> MutexGuard<'_, Pages> {
        // Nothing that runs under the lock can panic but by a bug in it; then pages are lost.
        self.pages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What has become of the arena and of the buffers taken.
    pub(in crate::io) fn statistics(&self) -> BufferStatistics {
        BufferStatistics {
            arena_bytes: (self.slabs * SLAB_BYTES) as u64,
            arena_bytes_free: u64::from(self.pages().free()) * BLOCK_SIZE as u64,
            registered: self.registered.load(Ordering::Relaxed),
            taken: self.taken.load(Ordering::Relaxed),
            fallen_back: self.fallen_back.load(Ordering::Relaxed),
            operations: 0,
        }
    }
}

impl fmt::Debug for Arena {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Arena({:?})", self.statistics())
    }
}

/// Some adjacent pages of a slab, until it is dropped.
struct Lease {
    arena: Arc<Arena>,
    first: u32,
    count: u32,
}

impl Lease {
    fn start(&self) -> *mut u8 {
        self.arena.base.as_ptr().wrapping_add(self.first as usize * BLOCK_SIZE)
    }

    fn len(&self) -> usize {
        self.count as usize * BLOCK_SIZE
    }
}

impl AsRef<[u8]> for Lease {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: the pages are mapped, initialised (zero at first), and this lease's alone.
        unsafe { slice::from_raw_parts(self.start(), self.len()) }
    }
}

impl AsMut<[u8]> for Lease {
    fn as_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and the lease is borrowed mutably.
        unsafe { slice::from_raw_parts_mut(self.start(), self.len()) }
    }
}

impl BufferMemory for Lease {}

impl Drop for Lease {
    fn drop(&mut self) {
        self.arena.pages().give_back(self.first, self.count);
    }
}

/// The arena as a source of buffers.
#[derive(Clone, Debug)]
pub(in crate::io) struct ArenaBuffers(Arc<Arena>);

impl ArenaBuffers {
    pub(in crate::io) fn new(arena: &Arc<Arena>) -> Rc<Self> {
        Rc::new(Self(Arc::clone(arena)))
    }
}

impl BufferSource for ArenaBuffers {
    fn take(&self, bytes: usize) -> IoBuffer {
        let Self(arena) = self;
        match arena.lend(bytes) {
            Some(lease) => {
                arena.taken.fetch_add(1, Ordering::Relaxed);
                IoBuffer::from_memory(Box::new(lease))
            }
            None => {
                arena.fallen_back.fetch_add(1, Ordering::Relaxed);
                IoBuffer::with_capacity(bytes)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(slabs: usize) -> (Arc<Arena>, Rc<ArenaBuffers>) {
        let arena = Arena::new(slabs * SLAB_BYTES).unwrap();
        let source = ArenaBuffers::new(&arena);
        (arena, source)
    }

    #[test]
    fn buffers_do_not_overlap_and_come_back() {
        let (arena, source) = source(1);
        let mut buffers: Vec<_> = (1..=40).map(|pages| source.take(pages * BLOCK_SIZE)).collect();
        for (index, buffer) in buffers.iter_mut().enumerate() {
            assert_eq!(buffer.capacity(), (index + 1) * BLOCK_SIZE, "no page too many");
            buffer.set_len(buffer.capacity());
            buffer.as_mut_slice().fill(index as u8);
        }
        for (index, buffer) in buffers.iter().enumerate() {
            assert!(buffer.as_slice().iter().all(|byte| *byte == index as u8));
        }
        let free = || arena.statistics().arena_bytes_free;
        assert!(free() < SLAB_BYTES as u64);
        drop(buffers);
        assert_eq!(free(), SLAB_BYTES as u64);
    }

    #[test]
    fn what_does_not_fit_comes_from_the_heap_and_is_counted() {
        let (arena, source) = source(1);
        let whole = source.take(SLAB_BYTES);
        let more = source.take(1);
        let larger = source.take(SLAB_BYTES + 1);
        assert_eq!((whole.capacity(), more.capacity()), (SLAB_BYTES, BLOCK_SIZE));
        assert_eq!(larger.capacity(), SLAB_BYTES + BLOCK_SIZE);
        let statistics = arena.statistics();
        assert_eq!((statistics.taken, statistics.fallen_back), (1, 2));
        drop(whole);
        drop(source.take(1));
        assert_eq!(arena.statistics().taken, 2);
    }

    #[test]
    fn buffer_outlives_source_and_arena() {
        let (arena, source) = source(2);
        let mut buffer = source.take(100);
        drop((arena, source));
        buffer.extend_from_slice(b"kept");
        let thread = std::thread::spawn(move || buffer.as_slice().to_vec());
        assert_eq!(thread.join().unwrap(), b"kept");
    }

    #[test]
    fn arena_without_memory_lends_nothing() {
        let (arena, source) = source(0);
        assert_eq!(source.take(1).capacity(), BLOCK_SIZE);
        assert_eq!(arena.statistics().fallen_back, 1);
        assert_eq!(arena.index_of(arena.base.as_ptr()), None);
    }
}
