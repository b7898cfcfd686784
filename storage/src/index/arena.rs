//! Where pages live: chunks of 1 MiB, each one I/O buffer, so that a checkpoint's pages can be read
//! straight into place. Growing never moves a page.
//!
//! A cut remembers which pages were in use when it began. [`Arena::page_mut`] is the only way to a
//! page's bytes, and it copies a page that the cut has yet to hand out; so a page that is changed,
//! freed, or freed and used again is handed out as it was.

use std::collections::VecDeque;
use std::ops::Range;

use wal::disk::IoBuffer;

use super::page::{PAGE_LEN, PageBytes};

/// Pages of a chunk.
pub(crate) const CHUNK_PAGES: usize = 256;
/// Bytes of a chunk.
pub(crate) const CHUNK_LEN: usize = CHUNK_PAGES * PAGE_LEN;
/// What allocation adds to a chunk: a block to align it, and the allocator's own header.
const CHUNK_OVERHEAD: u64 = PAGE_LEN as u64;

/// Names a page: chunk x 256 + position.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct PageId(pub(crate) u32);

impl PageId {
    fn new(chunk: usize, position: usize) -> Self {
        Self(u32::try_from(chunk * CHUNK_PAGES + position).expect("16 TiB of pages"))
    }

    fn chunk(self) -> usize {
        self.0 as usize / CHUNK_PAGES
    }

    fn position(self) -> usize {
        self.0 as usize % CHUNK_PAGES
    }
}

/// A bit per page of a chunk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct PageSet([u64; CHUNK_PAGES / 64]);

impl PageSet {
    fn contains(&self, position: usize) -> bool {
        self.0[position / 64] >> (position % 64) & 1 != 0
    }

    fn insert(&mut self, position: usize) {
        self.0[position / 64] |= 1 << (position % 64);
    }

    fn remove(&mut self, position: usize) {
        self.0[position / 64] &= !(1 << (position % 64));
    }

    fn is_empty(&self) -> bool {
        self.0.iter().all(|word| *word == 0)
    }

    fn first(&self) -> Option<usize> {
        let word = self.0.iter().position(|word| *word != 0)?;
        Some(word * 64 + self.0[word].trailing_zeros() as usize)
    }

    fn first_absent(&self) -> Option<usize> {
        Self(self.0.map(|word| !word)).first()
    }
}

#[derive(Debug)]
struct Chunk {
    /// Where its pages are, while they are.
    memory: Option<Memory>,
    /// Pages it has room for.
    pages: usize,
    used: PageSet,
}

#[derive(Clone, Copy, Debug)]
struct Memory {
    region: usize,
    /// Of the chunk's first page in the region.
    offset: usize,
}

/// A buffer that holds one chunk, or all chunks of a mapped checkpoint.
#[derive(Debug)]
struct Region {
    buffer: IoBuffer,
    chunks: Range<usize>,
}

/// What a cut has yet to hand out.
#[derive(Debug)]
struct Cut {
    /// By chunk: pages in use when the cut began, neither copied nor handed out.
    pending: Vec<PageSet>,
    /// No chunk before it has pending pages.
    next_chunk: usize,
    /// Copies of pages changed since.
    copies: VecDeque<Box<PageBytes>>,
    /// What was handed out last.
    current: Option<Box<PageBytes>>,
}

/// The pages of an index.
#[derive(Debug, Default)]
pub(crate) struct Arena {
    chunks: Vec<Chunk>,
    regions: Vec<Option<Region>>,
    /// No chunk before it has a page that is not in use.
    first_open: usize,
    /// Bytes of the regions.
    resident: u64,
    used: u64,
    cut: Option<Cut>,
}

impl Arena {
    /// Takes a page; its bytes are whatever they were.
    pub(crate) fn allocate(&mut self) -> PageId {
        loop {
            let index = self.first_open;
            if index == self.chunks.len() {
                self.chunks.push(Chunk {
                    memory: None,
                    pages: CHUNK_PAGES,
                    used: PageSet::default(),
                });
            }
            let chunk = &mut self.chunks[index];
            if let Some(position) = chunk.used.first_absent().filter(|at| *at < chunk.pages) {
                chunk.used.insert(position);
                if chunk.memory.is_none() {
                    chunk.pages = CHUNK_PAGES;
                    self.attach(IoBuffer::zeroed(CHUNK_LEN), 0, index..index + 1);
                }
                self.used += 1;
                return PageId::new(index, position);
            }
            self.first_open += 1;
        }
    }

    /// Makes a buffer the memory of chunks, from `offset` on.
    fn attach(&mut self, buffer: IoBuffer, offset: usize, chunks: Range<usize>) {
        self.resident += buffer.capacity() as u64 + CHUNK_OVERHEAD;
        let region = self.regions.iter().position(Option::is_none).unwrap_or(self.regions.len());
        if region == self.regions.len() {
            self.regions.push(None);
        }
        for (index, chunk) in self.chunks[chunks.clone()].iter_mut().enumerate() {
            chunk.memory = Some(Memory { region, offset: offset + index * CHUNK_LEN });
        }
        self.regions[region] = Some(Region { buffer, chunks });
    }

    /// Gives a page back.
    pub(crate) fn free(&mut self, id: PageId) {
        let used = &mut self.chunks[id.chunk()].used;
        assert!(used.contains(id.position()), "{id:?} is freed twice");
        used.remove(id.position());
        self.used -= 1;
        self.first_open = self.first_open.min(id.chunk());
    }

    /// Gives every page back; memory stays until [`Self::release`].
    pub(crate) fn free_all(&mut self) {
        self.chunks.iter_mut().for_each(|chunk| chunk.used = PageSet::default());
        self.used = 0;
        self.first_open = 0;
    }

    /// Returns the memory of at most `count` buffers without pages; tells whether one was found.
    pub(crate) fn release(&mut self, count: usize) -> bool {
        let (chunks, cut) = (&mut self.chunks, self.cut.as_ref());
        let is_idle = |chunks: &[Chunk], index: usize| {
            let pending = cut.and_then(|cut| cut.pending.get(index));
            chunks[index].used.is_empty() && pending.is_none_or(PageSet::is_empty)
        };
        let mut released = 0;
        for region in self.regions.iter_mut() {
            if released < count
                && let Some(idle) =
                    region.take_if(|region| region.chunks.clone().all(|at| is_idle(chunks, at)))
            {
                chunks[idle.chunks.clone()].iter_mut().for_each(|chunk| chunk.memory = None);
                self.resident -= idle.buffer.capacity() as u64 + CHUNK_OVERHEAD;
                released += 1;
            }
        }
        released > 0
    }

    /// Takes over a buffer with `pages` pages from `offset` on, of which those are in use for which
    /// `used` answers so; returns these.
    ///
    /// # Panics
    /// If the buffer is shorter: the caller has checked it.
    pub(crate) fn adopt(
        &mut self,
        buffer: IoBuffer,
        offset: usize,
        pages: usize,
        used: impl Fn(usize) -> bool,
    ) -> Vec<PageId> {
        assert!(offset + pages * PAGE_LEN <= buffer.len(), "{pages} pages at {offset}");
        let first = self.chunks.len();
        let mut found = Vec::new();
        for start in (0..pages).step_by(CHUNK_PAGES) {
            let index = self.chunks.len();
            let mut set = PageSet::default();
            let count = CHUNK_PAGES.min(pages - start);
            for position in (0..count).filter(|position| used(start + position)) {
                set.insert(position);
                found.push(PageId::new(index, position));
            }
            self.chunks.push(Chunk { memory: None, pages: count, used: set });
        }
        self.used += found.len() as u64;
        self.attach(buffer, offset, first..self.chunks.len());
        found
    }

    /// Pages in use.
    pub(crate) fn pages(&self) -> u64 {
        self.used
    }

    /// Bytes of memory, copies for a cut included.
    pub(crate) fn bytes(&self) -> u64 {
        self.resident + self.cut_bytes()
    }

    /// The bytes of a page.
    pub(crate) fn page(&self, id: PageId) -> &PageBytes {
        bytes_of(&self.chunks, &self.regions, id)
    }

    /// The bytes of a page, to change.
    pub(crate) fn page_mut(&mut self, id: PageId) -> &mut PageBytes {
        if let Some(cut) = &mut self.cut
            && let Some(pending) = cut.pending.get_mut(id.chunk())
            && pending.contains(id.position())
        {
            pending.remove(id.position());
            cut.copies.push_back(Box::new(*bytes_of(&self.chunks, &self.regions, id)));
        }
        let memory = self.chunks[id.chunk()].memory.expect("a page in use has memory");
        let region = self.regions[memory.region].as_mut().expect("memory lies in a region");
        region.buffer.as_mut_slice()[memory.offset + id.position() * PAGE_LEN..]
            .first_chunk_mut()
            .expect("a page lies within its chunk")
    }

    /// Begins a cut; O(chunks). The one before it is over.
    pub(crate) fn begin_cut(&mut self) {
        let pending = self.chunks.iter().map(|chunk| chunk.used).collect();
        let copies = VecDeque::new();
        self.cut = Some(Cut { pending, next_chunk: 0, copies, current: None });
    }

    /// A page as it was when the cut began, in no order; `None` when all have been handed out.
    pub(crate) fn next_cut_page(&mut self) -> Option<&PageBytes> {
        let cut = self.cut.as_mut()?;
        cut.current = cut.copies.pop_front();
        if cut.current.is_some() {
            return cut.current.as_deref();
        }
        loop {
            let pending = cut.pending.get_mut(cut.next_chunk)?;
            if let Some(position) = pending.first() {
                pending.remove(position);
                let id = PageId::new(cut.next_chunk, position);
                return Some(bytes_of(&self.chunks, &self.regions, id));
            }
            cut.next_chunk += 1;
        }
    }

    /// Ends the cut.
    pub(crate) fn end_cut(&mut self) {
        self.cut = None;
    }

    /// Bytes of pages that were copied and not yet handed out.
    pub(crate) fn cut_bytes(&self) -> u64 {
        self.cut.as_ref().map_or(0, |cut| (cut.copies.len() * PAGE_LEN) as u64)
    }
}

fn bytes_of<'a>(chunks: &[Chunk], regions: &'a [Option<Region>], id: PageId) -> &'a PageBytes {
    let memory = chunks[id.chunk()].memory.expect("a page in use has memory");
    let region = regions[memory.region].as_ref().expect("memory lies in a region");
    region.buffer.as_slice()[memory.offset + id.position() * PAGE_LEN..]
        .first_chunk()
        .expect("a page lies within its chunk")
}
