//! [`Pages`]: which pages of an arena are free; a buddy allocator whose users get exact counts.
//!
//! Free pages form *runs*: `2^order` pages that begin at a multiple of that. A run is split in
//! halves until it just fits, and what it has too much is free again at once, so no page is lost to
//! rounding. Pages that come back are merged with their buddies, up to a whole slab. Everything is
//! in tables made at the start: taking and giving back allocate nothing and take
//! `O(log pages of a slab)` steps.

/// No page.
const NONE: u32 = u32::MAX;

/// What is known of a page that begins a free run; nothing, if it begins none.
#[derive(Clone, Copy, Debug)]
struct Head {
    order: Option<u8>,
    previous: u32,
    next: u32,
}

/// The free pages of slabs of equal size.
#[derive(Debug)]
pub(super) struct Pages {
    heads: Vec<Head>,
    /// The first free run of each order; the last order is that of a whole slab.
    first: Vec<u32>,
    free: u32,
}

impl Pages {
    /// Makes `slabs` slabs of `2^slab_order` pages each, all free.
    pub(super) fn new(slabs: u32, slab_order: u8) -> Self {
        let pages = slabs << slab_order;
        let head = Head { order: None, previous: NONE, next: NONE };
        let mut free = Self {
            heads: vec![head; pages as usize],
            first: vec![NONE; usize::from(slab_order) + 1],
            free: 0,
        };
        // The first slab is put in last, and so is taken from first.
        for slab in (0..slabs).rev() {
            free.put(slab << slab_order, slab_order);
        }
        free
    }

    /// How many pages are free.
    pub(super) fn free(&self) -> u32 {
        self.free
    }

    /// Takes `count` adjacent pages of one slab and says which is the first.
    pub(super) fn take(&mut self, count: u32) -> Option<u32> {
        let wanted = order_of(count)?;
        let found = (wanted..).map_while(|order| Some((order, *self.first.get(order)?)));
        let (found, page) = found.into_iter().find(|(_, page)| *page != NONE)?;
        self.unlink(page);
        for order in (wanted..found).rev() {
            let order = u8::try_from(order).expect("a slab has few orders");
            self.put(page + (1 << order), order);
        }
        self.give_back(page + count, (1 << wanted) - count);
        Some(page)
    }

    /// Gives back `count` pages from `page` on; they are pages of one [`Pages::take`].
    pub(super) fn give_back(&mut self, mut page: u32, mut count: u32) {
        while count > 0 {
            // The largest run that may begin here and is no longer than what is left.
            let order = page.trailing_zeros().min(count.ilog2());
            self.merge(page, u8::try_from(order).expect("below 32"));
            page += 1 << order;
            count -= 1 << order;
        }
    }

    /// Puts a run back, joined with its buddy as long as that is free too.
    fn merge(&mut self, mut page: u32, mut order: u8) {
        while usize::from(order) + 1 < self.first.len() {
            let buddy = page ^ (1 << order);
            if self.heads[buddy as usize].order != Some(order) {
                break;
            }
            self.unlink(buddy);
            page &= !(1 << order);
            order += 1;
        }
        self.put(page, order);
    }

    fn put(&mut self, page: u32, order: u8) {
        let next = std::mem::replace(&mut self.first[usize::from(order)], page);
        if next != NONE {
            self.heads[next as usize].previous = page;
        }
        self.heads[page as usize] = Head { order: Some(order), previous: NONE, next };
        self.free += 1 << order;
    }

    fn unlink(&mut self, page: u32) {
        let head = &mut self.heads[page as usize];
        let order = head.order.take().expect("the page begins a free run");
        let (previous, next) = (head.previous, head.next);
        match previous {
            NONE => self.first[usize::from(order)] = next,
            previous => self.heads[previous as usize].next = next,
        }
        if next != NONE {
            self.heads[next as usize].previous = previous;
        }
        self.free -= 1 << order;
    }
}

/// The least order of a run that has room for `count` pages.
fn order_of(count: u32) -> Option<usize> {
    let run = count.checked_next_power_of_two()?;
    usize::try_from(run.trailing_zeros()).ok()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const SLAB_ORDER: u8 = 6;

    /// Random takes and returns against a set of taken pages.
    #[test]
    fn pages_are_never_given_twice_nor_lost() {
        for seed in 0..20 {
            let mut rng = fastrand::Rng::with_seed(seed);
            let mut pages = Pages::new(4, SLAB_ORDER);
            let mut taken: BTreeSet<u32> = BTreeSet::new();
            let mut runs: Vec<(u32, u32)> = Vec::new();
            for _ in 0..2_000 {
                if rng.bool() {
                    let count = if rng.bool() { 1 } else { rng.u32(1..=64) };
                    if let Some(page) = pages.take(count) {
                        assert_eq!(page >> SLAB_ORDER, (page + count - 1) >> SLAB_ORDER);
                        assert!((page..page + count).all(|page| taken.insert(page)), "{seed}");
                        runs.push((page, count));
                    }
                } else if !runs.is_empty() {
                    let (page, count) = runs.swap_remove(rng.usize(..runs.len()));
                    assert!((page..page + count).all(|page| taken.remove(&page)));
                    pages.give_back(page, count);
                }
                assert_eq!(pages.free() as usize, 256 - taken.len(), "seed {seed}");
            }
            for (page, count) in runs {
                pages.give_back(page, count);
            }
            // All merged again: whole slabs can be had.
            assert!((0..4).all(|_| pages.take(64).is_some()), "seed {seed}");
            assert_eq!(pages.take(1), None);
        }
    }

    #[test]
    fn no_page_is_lost_to_rounding() {
        let mut pages = Pages::new(1, SLAB_ORDER);
        assert_eq!(pages.take(33), Some(0));
        assert_eq!(pages.free(), 31);
        let rest: Vec<_> = std::iter::from_fn(|| pages.take(1)).collect();
        assert_eq!(rest.len(), 31);
    }

    #[test]
    fn more_than_a_slab_is_not_to_be_had() {
        let mut pages = Pages::new(2, SLAB_ORDER);
        for count in [65, 128, 1 << 31, u32::MAX] {
            assert_eq!(pages.take(count), None);
        }
        assert_eq!(pages.free(), 128);
    }
}
