//! [`FixedSlabs`]: the arena's slabs as buffers registered in the runtime's ring.
//!
//! The runtime lends a registered buffer to one operation at a time, whole. A slab holds many
//! buffers, though, all of which may be under way at once. So each slab is taken from the registry
//! once, for good: [`InSlab`] names it by a shared handle, and says itself which of its bytes it
//! means.

use std::cell::Cell;
use std::io;
use std::ops::{RangeBounds, RangeFull};
use std::ptr::NonNull;
use std::rc::Rc;
use std::sync::Arc;

use tokio_uring::buf::fixed::{FixedBuf, FixedBufRegistry};
use tokio_uring::buf::{BoundedBuf, BoundedBufMut, IoBuf, IoBufMut, Slice};
use wal::disk::IoBuffer;

use super::buffers::ReadRoom;
use crate::io::BufferStatistics;
use crate::io::uring::arena::Arena;

/// The slabs that the ring knows, if it knows any.
pub(super) struct FixedSlabs {
    arena: Arc<Arena>,
    slabs: Vec<Rc<FixedBuf>>,
    operations: Cell<u64>,
}

impl FixedSlabs {
    /// Registers the slabs. Only within `block_on`.
    ///
    /// # Errors
    /// The kernel's, if it refuses (RLIMIT_MEMLOCK); the arena is plain memory then.
    pub(super) fn register(arena: &Arc<Arena>) -> (Self, io::Result<()>) {
        let slab = |(start, len)| Slab { start, len, _arena: Arc::clone(arena) };
        let registry = FixedBufRegistry::new(arena.slabs().map(slab));
        let mut this = Self { arena: Arc::clone(arena), slabs: Vec::new(), operations: 0.into() };
        let registered = registry.register();
        if registered.is_ok() {
            this.slabs = (0..).map_while(|index| registry.check_out(index)).map(Rc::new).collect();
        }
        arena.set_registered(!this.slabs.is_empty());
        (this, registered)
    }

    /// The address at which the first one lies.
    pub(super) fn anchor(&self) -> Option<usize> {
        if self.slabs.is_empty() { None } else { Some(self.arena.slabs().next()?.0.addr().get()) }
    }

    /// The slab that a buffer lies in, for an operation on it.
    pub(super) fn of(&self, buffer: &IoBuffer) -> Option<Rc<FixedBuf>> {
        let index = self.arena.index_of(buffer.as_slice().as_ptr())?;
        let slab = self.slabs.get(usize::from(index))?;
        self.operations.set(self.operations.get() + 1);
        Some(Rc::clone(slab))
    }

    /// The arena.
    pub(super) fn arena(&self) -> &Arc<Arena> {
        &self.arena
    }

    pub(super) fn statistics(&self) -> BufferStatistics {
        BufferStatistics { operations: self.operations.get(), ..self.arena.statistics() }
    }
}

/// A slab, as the runtime wants to see what it registers.
struct Slab {
    start: NonNull<u8>,
    len: usize,
    /// Owns the memory.
    _arena: Arc<Arena>,
}

// SAFETY: the arena never moves its memory and lives as long as this value.
unsafe impl IoBuf for Slab {
    fn stable_ptr(&self) -> *const u8 {
        self.start.as_ptr()
    }

    fn bytes_init(&self) -> usize {
        // None that the runtime may look at: leases of the arena are.
        0
    }

    fn bytes_total(&self) -> usize {
        self.len
    }
}

// SAFETY: as above. Nobody reads or writes through the address but the kernel, and that only as
// operations on leases say.
unsafe impl IoBufMut for Slab {
    fn stable_mut_ptr(&mut self) -> *mut u8 {
        self.start.as_ptr()
    }

    unsafe fn set_init(&mut self, _len: usize) {}
}

/// Bytes of a buffer in a slab: those a read is to fill, or those to be written.
pub(super) struct InSlab<B> {
    pub(super) bytes: B,
    pub(super) slab: Rc<FixedBuf>,
}

impl<B: IoBuf> BoundedBuf for InSlab<B> {
    type Buf = FixedBuf;
    type Bounds = RangeFull;

    fn slice(self, _range: impl RangeBounds<usize>) -> Slice<FixedBuf> {
        unreachable!("single operations do not slice")
    }

    fn slice_full(self) -> Slice<FixedBuf> {
        unreachable!("single operations do not slice")
    }

    fn get_buf(&self) -> &FixedBuf {
        &self.slab
    }

    fn bounds(&self) -> RangeFull {
        ..
    }

    fn from_buf_bounds(_buf: FixedBuf, _bounds: RangeFull) -> Self {
        unreachable!("single operations do not slice")
    }

    fn stable_ptr(&self) -> *const u8 {
        self.bytes.stable_ptr()
    }

    fn bytes_init(&self) -> usize {
        self.bytes.bytes_init()
    }

    fn bytes_total(&self) -> usize {
        self.bytes.bytes_total()
    }
}

impl BoundedBufMut for InSlab<ReadRoom> {
    type BufMut = FixedBuf;

    fn stable_mut_ptr(&mut self) -> *mut u8 {
        IoBufMut::stable_mut_ptr(&mut self.bytes)
    }

    unsafe fn set_init(&mut self, _len: usize) {
        // As with `ReadRoom`.
    }
}
