//! Builds an index from the pages and crowded entries of a checkpoint, which are hostile until
//! checked. Chunks of pages become the arena's without being copied.

use wal::disk::IoBuffer;
use wal::record::Key;

use super::arena::{Arena, CHUNK_LEN, CHUNK_PAGES, PageId};
use super::crowded::Crowded;
use super::directory::Directory;
use super::page::{Checked, PAGE_LEN, PageBytes, PageError, check};
use super::slot::{Prefix, Slot};
use super::table::Index;

/// What is known of a page before all of them are there.
struct Loaded {
    boundary: Prefix,
    last: Prefix,
    page: PageId,
}

/// An index being built.
#[derive(Default)]
pub(crate) struct IndexLoader {
    arena: Arena,
    pages: Vec<Loaded>,
    crowded: Crowded,
    crowded_last: Option<Key>,
    slots: u64,
    live: u64,
}

impl IndexLoader {
    /// Takes over a chunk of 256 pages, in any order; pages of zeros are not in use. A shorter
    /// buffer is a chunk whose other pages are not in use; it needs room for a whole one.
    ///
    /// # Errors
    /// [`PageError`] for the first page that is not sound; the loader is of no use then.
    pub(crate) fn add_chunk(&mut self, mut chunk: IoBuffer) -> Result<(), PageError> {
        let found = chunk.len();
        if !found.is_multiple_of(PAGE_LEN) || found > CHUNK_LEN || chunk.capacity() < CHUNK_LEN {
            return Err(PageError::Length { found });
        }
        chunk.set_len(CHUNK_LEN);
        chunk.as_mut_slice()[found..].fill(0);
        self.add_region(chunk, 0, CHUNK_PAGES)
    }

    /// Takes over a buffer that has `pages` pages from `offset` on, and anything before and after
    /// them, such as a mapped checkpoint. Its memory is given back when no page in it is in use.
    ///
    /// # Errors
    /// As for [`Self::add_chunk`].
    pub(crate) fn add_region(
        &mut self,
        region: IoBuffer,
        offset: usize,
        pages: usize,
    ) -> Result<(), PageError> {
        let error = PageError::Length { found: region.len() };
        let bytes = region.as_slice().get(offset..).unwrap_or_default();
        let bytes = bytes.as_chunks::<PAGE_LEN>().0.get(..pages).ok_or(error)?;
        let sound: Vec<_> = bytes.iter().map(|page| self.check(page)).collect::<Result<_, _>>()?;
        let ids = self.arena.adopt(region, offset, pages, |page| sound[page].is_some());
        let sound = sound.into_iter().flatten();
        let loaded = |(page, (boundary, last))| Loaded { boundary, last, page };
        self.pages.extend(ids.into_iter().zip(sound).map(loaded));
        Ok(())
    }

    fn check(&mut self, bytes: &PageBytes) -> Result<Option<(Prefix, Prefix)>, PageError> {
        let Checked::Sound { boundary, last, live, slots } = check(bytes)? else {
            return Ok(None);
        };
        self.slots += slots;
        self.live += live;
        Ok(Some((boundary, last)))
    }

    /// Adds a crowded entry; they come in key order.
    ///
    /// # Errors
    /// [`PageError::Crowded`] for one out of order.
    pub(crate) fn add_crowded(&mut self, key: Key, slot: Slot) -> Result<(), PageError> {
        if self.crowded_last.is_some_and(|last| last >= key) {
            return Err(PageError::Crowded);
        }
        self.crowded_last = Some(key);
        self.crowded.insert(key, slot);
        self.slots += 1;
        self.live += u64::from(slot.is_live());
        Ok(())
    }

    /// Puts the pages in order.
    ///
    /// # Errors
    /// [`PageError::Boundary`] if they do not make a table.
    pub(crate) fn finish(mut self) -> Result<Index, PageError> {
        self.pages.sort_unstable_by_key(|page| page.boundary);
        let first = self.pages.first().map_or(Prefix::MAX, |page| page.boundary);
        if first != Prefix(0) {
            return Err(PageError::Boundary { boundary: first.0 });
        }
        for pair in self.pages.windows(2) {
            let boundary = pair[1].boundary;
            if pair[0].boundary == boundary || pair[0].last >= boundary {
                return Err(PageError::Boundary { boundary: boundary.0 });
            }
        }
        let sorted: Vec<_> = self.pages.iter().map(|page| (page.boundary, page.page)).collect();
        Ok(Index {
            arena: self.arena,
            directory: Directory::from_sorted(&sorted),
            crowded: self.crowded,
            slots: self.slots,
            live: self.live,
            scratch: Vec::new(),
            cuts: 0,
        })
    }
}

#[cfg(test)]
impl Index {
    /// Builds an index from chunks of pages and crowded entries.
    ///
    /// # Errors
    /// [`PageError`] if they do not make one.
    pub(crate) fn from_pages(
        chunks: impl IntoIterator<Item = IoBuffer>,
        crowded: impl IntoIterator<Item = (Key, Slot)>,
    ) -> Result<Self, PageError> {
        let mut loader = IndexLoader::default();
        chunks.into_iter().try_for_each(|chunk| loader.add_chunk(chunk))?;
        crowded.into_iter().try_for_each(|(key, slot)| loader.add_crowded(key, slot))?;
        loader.finish()
    }
}
