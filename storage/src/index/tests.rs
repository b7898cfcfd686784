//! The compact index against a naive model: a map from prefix to slots, newest first.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use wal::disk::IoBuffer;
use wal::record::Key;

use super::arena::CHUNK_LEN;
use super::load::IndexLoader;
use super::page::{self, GROUP_SLOTS_MAX, PAGE_LEN, PAGE_SLOTS_MAX, PageError, PageMut};
use super::slot::{ExpiryHint, Place, Prefix, SegmentNumber, SizeClass, Slot, SlotKind};
use super::table::Index;
use super::walk::{Cursor, Keep};

/// A repeatable stream of numbers (SplitMix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}

fn key(prefix: u64, rest: u64) -> Key {
    let mut bytes = Prefix(prefix).first_key().0;
    bytes[12..].copy_from_slice(&rest.to_be_bytes());
    Key(bytes)
}

fn uniform_key(random: &mut Random) -> Key {
    key(random.next() >> 24, random.next())
}

/// The slot of the record numbered `serial`; every serial has its own place.
fn slot(serial: u64) -> Slot {
    let segment = SegmentNumber((serial >> 20) as u16);
    Slot {
        place: Place { segment, line: (serial & 0xF_FFFF) as u32 },
        size_class: SizeClass::of(serial % 5000),
        kind: SlotKind::Put,
        damaged: serial.is_multiple_of(7),
        foreign: serial.is_multiple_of(11),
        shadowed: false,
        expiry: ExpiryHint::NEVER,
    }
}

/// What the index should hold.
#[derive(Clone, Debug, Default, PartialEq)]
struct Model {
    paged: BTreeMap<Prefix, Vec<Slot>>,
    crowded: BTreeMap<Key, Slot>,
}

impl Model {
    fn candidates(&self, key: &Key) -> Vec<Slot> {
        let paged = self.paged.get(&Prefix::of(key)).into_iter().flatten();
        self.crowded.get(key).into_iter().chain(paged).copied().collect()
    }

    fn insert(&mut self, key: Key, slot: Slot) -> Option<Slot> {
        let group = self.paged.entry(Prefix::of(&key)).or_default();
        if !self.crowded.contains_key(&key) && group.len() < GROUP_SLOTS_MAX {
            group.insert(0, slot);
            return None;
        }
        self.crowded.insert(key, slot)
    }

    /// The slot that stands for `place`.
    fn slot_mut(&mut self, key: &Key, place: Place) -> Option<&mut Slot> {
        let paged = self.paged.get_mut(&Prefix::of(key)).into_iter().flatten();
        self.crowded.get_mut(key).into_iter().chain(paged).find(|slot| slot.place == place)
    }

    fn remove(&mut self, key: &Key, place: Place) -> Option<Slot> {
        if self.crowded.get(key).is_some_and(|slot| slot.place == place) {
            return self.crowded.remove(key);
        }
        let group = self.paged.get_mut(&Prefix::of(key))?;
        let at = group.iter().position(|slot| slot.place == place)?;
        Some(group.remove(at))
    }

    fn walk(&self, from: Prefix) -> Vec<(Prefix, Slot)> {
        let prefixes: BTreeSet<Prefix> =
            self.crowded.keys().map(Prefix::of).chain(self.paged.keys().copied()).collect();
        let mut slots = Vec::new();
        for prefix in prefixes.range(from..) {
            let last = prefix.next().map_or(Key([255; 20]), Prefix::first_key);
            let crowded = self.crowded.range(prefix.first_key()..=last);
            let crowded = crowded.filter(|(key, _)| Prefix::of(key) == *prefix).map(|(_, s)| s);
            let all = crowded.chain(self.paged.get(prefix).into_iter().flatten());
            slots.extend(all.map(|slot| (*prefix, *slot)));
        }
        slots
    }

    fn sweep(&mut self, visit: &mut dyn FnMut(Prefix, &mut Slot) -> Keep) {
        self.crowded.retain(|key, slot| visit(Prefix::of(key), slot) == Keep::Stay);
        for (prefix, group) in &mut self.paged {
            group.retain_mut(|slot| visit(*prefix, slot) == Keep::Stay);
        }
    }
}

/// Checks what holds of every index, and that it holds what the model does.
#[track_caller]
fn check(index: &Index, model: &Model) {
    let walked: Vec<_> = index.walk(Prefix(0)).collect();
    let expected = model.walk(Prefix(0));
    assert_eq!(walked.len(), expected.len());
    assert!(walked == expected, "the walk differs from the model's");
    assert_eq!(index.len(), walked.len() as u64);
    assert_eq!(index.live_len(), walked.iter().filter(|(_, s)| s.is_live()).count() as u64);
    let mut at = Some(index.directory.find(Prefix(0)));
    let (mut pages, mut last) = (0, None);
    while let Some(position) = at {
        let found = page::check(index.arena.page(index.directory.page(position))).unwrap();
        let page::Checked::Sound { boundary, last: end, .. } = found else { panic!("unused page") };
        assert_eq!(boundary, index.directory.boundary(position));
        assert_eq!(index.directory.find(boundary), position);
        assert!(last.is_none_or(|last| last < boundary));
        last = Some(end);
        pages += 1;
        at = index.directory.next(position);
    }
    assert_eq!(index.pages(), pages);
}

/// Takes the rest of a cut into chunks, as a checkpoint would.
fn rest_of_cut(index: &mut Index, cut: &mut CutSoFar) {
    while cut.step(index) {}
}

#[derive(Default)]
struct CutSoFar {
    pages: Vec<u8>,
    crowded: Vec<(Key, Slot)>,
}

impl CutSoFar {
    fn step(&mut self, index: &mut Index) -> bool {
        if let Some(page) = index.next_cut_page() {
            self.pages.extend_from_slice(page);
            return true;
        }
        let entry = index.next_cut_entry();
        self.crowded.extend(entry);
        entry.is_some()
    }

    fn load(&self) -> Result<Index, PageError> {
        let chunks = self.pages.chunks(CHUNK_LEN).map(|bytes| {
            let mut chunk = IoBuffer::with_capacity(CHUNK_LEN);
            chunk.extend_from_slice(bytes);
            chunk
        });
        Index::from_pages(chunks, self.crowded.iter().copied())
    }
}

/// A run of random operations over keys of a shape, with cuts going on now and then.
struct Run {
    random: Random,
    index: Index,
    model: Model,
    serial: u64,
    /// What has been handed out of the cut under way, and what it must be.
    cut: Option<(CutSoFar, Model)>,
    make_key: fn(&mut Random) -> Key,
}

impl Run {
    fn new(seed: u64, make_key: fn(&mut Random) -> Key) -> Self {
        let (index, model) = (Index::new(), Model::default());
        Self { random: Random(seed), index, model, serial: 0, cut: None, make_key }
    }

    fn step(&mut self, percent_inserts: u64) {
        let key = (self.make_key)(&mut self.random);
        let candidates: Vec<Slot> = self.index.candidates(&key).collect();
        assert_eq!(candidates, self.model.candidates(&key));
        let exact = self.index.candidates(&key).first_is_exact();
        assert_eq!(exact, self.model.crowded.contains_key(&key));
        if self.random.below(100) < percent_inserts {
            self.serial += 1;
            let new = slot(self.serial);
            assert_eq!(self.index.insert(&key, new), self.model.insert(key, new));
        } else if !candidates.is_empty() {
            let some = candidates[self.random.below(candidates.len() as u64) as usize];
            self.change(&key, some);
        } else {
            let absent = Place { segment: SegmentNumber(16_383), line: 1 };
            assert_eq!(self.index.remove(&key, absent), None);
            assert!(!self.index.replace(&key, absent, slot(1)));
        }
    }

    fn change(&mut self, key: &Key, some: Slot) {
        if self.random.below(3) == 0 {
            self.serial += 1;
            let kind = [SlotKind::Put, SlotKind::Touch, SlotKind::Tombstone];
            let kind = kind[self.random.below(3) as usize];
            let shadowed = self.random.below(2) == 0;
            let new = Slot { kind, shadowed, ..slot(self.serial) };
            assert!(self.index.replace(key, some.place, new));
            *self.model.slot_mut(key, some.place).unwrap() = new;
        } else {
            let removed = self.index.remove(key, some.place);
            assert_eq!(removed, Some(some));
            assert_eq!(self.model.remove(key, some.place), removed);
        }
    }

    fn sweep(&mut self) {
        let salt = self.random.next();
        let mut seen = Vec::new();
        let act = |slot: &mut Slot| match (u64::from(slot.place.line) ^ salt) % 4 {
            0 => Keep::Drop,
            1 => {
                slot.shadowed = true;
                Keep::Stay
            }
            _ => Keep::Stay,
        };
        let expected = self.model.walk(Prefix(0));
        let mut cursor = Some(Cursor::default());
        while let Some(from) = cursor {
            let (slots, before) = (1 + self.random.below(700) as usize, seen.len());
            cursor = self.index.sweep(from, slots, &mut |key, slot| {
                seen.push((Prefix::of(key), *slot));
                act(slot)
            });
            assert!(seen.len() - before <= slots + GROUP_SLOTS_MAX);
            assert!(cursor.is_none() || seen.len() > before);
        }
        assert!(seen == expected, "the sweep visits other slots than the walk");
        self.model.sweep(&mut |_, slot| act(slot));
    }

    fn cut_step(&mut self) {
        match &mut self.cut {
            None => {
                self.index.begin_cut();
                self.cut = Some((CutSoFar::default(), self.model.clone()));
            }
            Some((cut, _)) => {
                if !cut.step(&mut self.index) {
                    self.end_cut();
                }
            }
        }
    }

    fn end_cut(&mut self) {
        if let Some((mut cut, before)) = self.cut.take() {
            rest_of_cut(&mut self.index, &mut cut);
            self.index.end_cut();
            assert_eq!(self.index.cut_bytes(), 0);
            check(&cut.load().unwrap(), &before);
        }
    }

    fn clear(&mut self) {
        self.index.clear();
        self.model = Model::default();
        while self.index.release() {}
    }
}

/// Phases of growth and shrinkage, with sweeps, cuts and clears between.
fn run(seed: u64, steps: usize, make_key: fn(&mut Random) -> Key) -> Run {
    let mut run = Run::new(seed, make_key);
    let mut percent = 80;
    for step in 0..steps {
        if step % 997 == 0 {
            percent = [95, 80, 50, 20, 5][run.random.below(5) as usize];
        }
        run.step(percent);
        match run.random.below(20_000) {
            0..400 => run.cut_step(),
            400..404 => run.sweep(),
            404 => run.clear(),
            _ => {}
        }
    }
    run.end_cut();
    check(&run.index, &run.model);
    run
}

#[test]
fn behaves_like_the_model_on_uniform_keys() {
    for seed in 0..4 {
        // Few prefixes far apart, so that keys are met again.
        run(seed, 20_000, |random| key(random.below(4000) * 0x0FFF_FFFB, random.below(2)));
    }
}

#[test]
fn behaves_like_the_model_on_crowded_prefixes() {
    for seed in 0..4 {
        let run = run(seed, 20_000, |random| {
            let near = random.below(40) * random.below(3);
            key(0x77_0000_0000 + near, random.below(25))
        });
        assert!(run.serial > 0);
    }
}

#[test]
fn behaves_like_the_model_at_the_ends_of_the_key_space() {
    run(9, 20_000, |random| {
        let ends = [0, 1, 2, Prefix::MAX.0 - 1, Prefix::MAX.0, random.next() >> 24];
        key(ends[random.below(6) as usize], random.below(4))
    });
}

#[test]
fn any_order_of_operations_equals_the_model() {
    let shapes: [fn(&mut Random) -> Key; 3] = [
        |random| key(random.below(600), random.below(3)),
        |random| key(random.below(2000) << 27, 0),
        |random| key(random.below(3), random.below(60)),
    ];
    let config = ProptestConfig { cases: 48, failure_persistence: None, ..Default::default() };
    proptest!(config, |(seed: u64, steps in 0usize..6000, shape in 0usize..3)| {
        run(seed, steps, shapes[shape]);
    });
}

#[test]
fn walk_starts_at_any_prefix() {
    let run = run(3, 8000, |random| key(random.below(900) << 20, random.below(12)));
    let mut random = Random(1);
    for _ in 0..200 {
        let from = Prefix(random.below(1000) << 20 | random.below(2));
        assert_eq!(run.index.walk(from).collect::<Vec<_>>(), run.model.walk(from));
    }
}

/// 1,000,000 would take the same path; this is enough to split leaves of the directory.
#[test]
fn pages_of_uniform_keys_are_well_filled_at_every_size() {
    let (mut index, mut random) = (Index::new(), Random(5));
    let mut worst = 0.0f64;
    for serial in 0..300_000u64 {
        index.insert(&uniform_key(&mut random), slot(serial));
        if serial > 20_000 && serial % 5000 == 0 {
            worst = worst.max((index.pages() * PAGE_LEN as u64) as f64 / serial as f64);
        }
    }
    // 13 B at a fill of 1; 15.4 at 0.86.
    assert!(worst < 15.4, "{worst} B per key");
    assert_eq!(index.crowded_len(), 0);
    assert_eq!(index.walk(Prefix(0)).count(), 300_000);
}

#[test]
fn memory_is_bounded_while_keys_come_and_go() {
    let (mut index, mut random) = (Index::new(), Random(6));
    let mut live: Vec<(Key, Slot)> = Vec::new();
    const KEYS: usize = 50_000;
    let mut most = 0;
    for serial in 0..1_000_000u64 {
        let (key, slot) = (uniform_key(&mut random), slot(serial));
        index.insert(&key, slot);
        if live.len() < KEYS {
            live.push((key, slot));
            continue;
        }
        let at = random.below(KEYS as u64) as usize;
        let (old, old_slot) = std::mem::replace(&mut live[at], (key, slot));
        assert_eq!(index.remove(&old, old_slot.place), Some(old_slot));
        most = most.max(index.pages());
    }
    let per_key = (most * PAGE_LEN as u64) as f64 / KEYS as f64;
    assert!(per_key < 16.0, "{per_key} B per key");
}

#[test]
fn drained_regions_give_their_pages_back() {
    let (mut index, mut random) = (Index::new(), Random(7));
    let mut keys: Vec<(Key, Slot)> = Vec::new();
    for serial in 0..100_000 {
        let (key, slot) = (uniform_key(&mut random), slot(serial));
        index.insert(&key, slot);
        keys.push((key, slot));
    }
    let full = index.pages();
    // All keys of the lower half, one after the other.
    keys.sort_unstable_by_key(|(key, _)| *key);
    for (key, slot) in &keys[..50_000] {
        assert!(index.remove(key, slot.place).is_some());
    }
    assert!(index.pages() < full * 6 / 10, "{} of {full}", index.pages());
    for (key, slot) in &keys[50_000..] {
        assert!(index.remove(key, slot.place).is_some());
    }
    assert_eq!(index.len(), 0);
    assert!(index.pages() <= 2, "{}", index.pages());
    while index.release() {}
    assert!(index.bytes() < 3 << 20, "{}", index.bytes());
}

#[test]
fn hundred_thousand_keys_of_sixty_equal_bits_are_all_found() {
    let (mut index, mut random) = (Index::new(), Random(8));
    for serial in 0..20_000 {
        index.insert(&uniform_key(&mut random), slot(serial));
    }
    let hostile = |n: u64| key(0x12_3456_789A, n);
    for serial in 0..100_000 {
        index.insert(&hostile(serial), slot(100_000 + serial));
    }
    assert_eq!(index.crowded_len(), 100_000 - 8);
    for serial in 0..100_000 {
        let candidates = index.candidates(&hostile(serial));
        assert!(candidates.len() <= 9);
        let place = slot(100_000 + serial).place;
        assert!(candidates.into_iter().any(|slot| slot.place == place));
    }
    assert!(index.bytes() < 12 << 20, "{}", index.bytes());
    // Overwrites of one key do not grow without limit either.
    let len = index.len();
    for serial in 300_000..310_000 {
        index.insert(&hostile(55_555), slot(serial));
        let newest = index.candidates(&hostile(55_555)).next();
        assert_eq!(newest, Some(slot(serial)));
    }
    assert_eq!(index.len(), len);
}

#[test]
fn cleared_index_is_still_cut_as_it_was() {
    let mut run = Run::new(11, |random| key(random.below(5000) << 24, random.below(3)));
    for _ in 0..10_000 {
        run.step(90);
    }
    run.cut_step();
    run.clear();
    for _ in 0..10_000 {
        run.step(90);
    }
    run.end_cut();
    check(&run.index, &run.model);
}

/// Several chunks, so that some have no page in use any more when memory is released.
#[test]
fn memory_that_a_cut_needs_is_not_released() {
    let (mut index, mut random) = (Index::new(), Random(13));
    (0..200_000).for_each(|serial| {
        index.insert(&uniform_key(&mut random), slot(serial));
    });
    let before: Vec<_> = index.walk(Prefix(0)).collect();
    index.begin_cut();
    index.clear();
    while index.release() {}
    let mut cut = CutSoFar::default();
    rest_of_cut(&mut index, &mut cut);
    assert!(cut.load().unwrap().walk(Prefix(0)).eq(before));
    assert!(index.release(), "what the cut has handed out can go");
}

#[test]
fn released_memory_comes_back_when_needed() {
    let (mut index, mut random) = (Index::new(), Random(12));
    let fill = |index: &mut Index, random: &mut Random| {
        (0..200_000).for_each(|serial| {
            index.insert(&uniform_key(random), slot(serial));
        });
    };
    fill(&mut index, &mut random);
    let full = index.bytes();
    index.clear();
    while index.release() {}
    assert!(index.bytes() < full / 2);
    fill(&mut index, &mut random);
    assert!(index.bytes() < full + full / 5);
    assert_eq!(index.len(), 200_000);
}

/// A sound page of some slots, encoded.
fn sound_page(boundary: u64, prefixes: &[u64]) -> [u8; PAGE_LEN] {
    let mut bytes = [0; PAGE_LEN];
    let slots: Vec<u8> =
        prefixes.iter().flat_map(|prefix| page::encode(Prefix(*prefix), slot(*prefix))).collect();
    PageMut(&mut bytes).fill(Prefix(boundary), &slots);
    bytes
}

fn load(pages: &[[u8; PAGE_LEN]]) -> Result<Index, PageError> {
    CutSoFar { pages: pages.concat(), crowded: Vec::new() }.load()
}

#[test]
fn pages_that_do_not_fit_together_are_refused() {
    let (low, high) = (sound_page(0, &[5, 9]), sound_page(10, &[10, 11]));
    assert_eq!(load(&[high, low]).unwrap().len(), 4);
    assert_eq!(load(&[]).unwrap_err(), PageError::Boundary { boundary: Prefix::MAX.0 });
    assert_eq!(load(&[high]).unwrap_err(), PageError::Boundary { boundary: 10 });
    assert_eq!(load(&[low, low]).unwrap_err(), PageError::Boundary { boundary: 0 });
    let overlap = sound_page(9, &[9]);
    assert_eq!(load(&[low, overlap]).unwrap_err(), PageError::Boundary { boundary: 9 });
    let mut loader = IndexLoader::default();
    let (odd, short) = (IoBuffer::with_capacity(2 * CHUNK_LEN), IoBuffer::with_capacity(PAGE_LEN));
    assert!(loader.add_chunk(short).is_err());
    let mut odd = odd;
    odd.set_len(PAGE_LEN + 1);
    assert_eq!(loader.add_chunk(odd), Err(PageError::Length { found: PAGE_LEN + 1 }));
    assert_eq!(loader.add_crowded(key(1, 2), slot(1)), Ok(()));
    assert_eq!(loader.add_crowded(key(1, 2), slot(1)), Err(PageError::Crowded));
}

#[test]
fn unsound_pages_are_refused() {
    let sound = sound_page(5, &[5, 7, 7, 8]);
    let damaged = |at: usize, byte: u8| {
        let mut bytes = sound;
        bytes[at] = byte;
        page::check(&bytes).unwrap_err()
    };
    assert_eq!(damaged(0, 1), PageError::NotAPage);
    assert_eq!(damaged(4, 1), PageError::NotAPage);
    assert_eq!(damaged(40, 1), PageError::NotAPage);
    assert_eq!(damaged(7, 2), PageError::Count { found: 512 + 4 });
    assert_eq!(damaged(6, 55), PageError::Order { slot: 4 });
    assert_eq!(damaged(8, 6), PageError::Order { slot: 0 });
    assert_eq!(damaged(14, 1), PageError::Boundary { boundary: 5 + (1 << 48) });
    assert_eq!(damaged(64 + 12, 0x18), PageError::Kind { slot: 0 });
    let crowd = sound_page(0, &[3; GROUP_SLOTS_MAX + 1]);
    assert_eq!(page::check(&crowd), Err(PageError::Order { slot: GROUP_SLOTS_MAX }));
}

/// No bytes whatever may panic, in the loader or in what works on the pages it let through.
#[test]
fn hostile_pages_never_panic() {
    let slots: Vec<u64> = (0..PAGE_SLOTS_MAX as u64).map(|n| n / 3).collect();
    let sound = sound_page(0, &slots);
    let config = ProptestConfig { cases: 400, failure_persistence: None, ..Default::default() };
    let flips = prop::collection::vec((0usize..PAGE_LEN, 1u8..), 1..4);
    proptest!(config, |(flips in flips, seed: u64)| {
        let mut bytes = sound;
        for (at, difference) in flips {
            bytes[at] ^= difference;
        }
        if let Ok(mut index) = load(&[bytes]) {
            let mut random = Random(seed);
            for serial in 0..50 {
                let key = key(random.below(120), 0);
                index.candidates(&key).for_each(drop);
                index.insert(&key, slot(serial));
            }
            let len = index.walk(Prefix(0)).count() as u64;
            prop_assert_eq!(len, index.len());
            index.sweep(Prefix(0), usize::MAX, &mut |_, _| Keep::Drop);
            prop_assert_eq!(index.len(), 0);
        }
    });
}

/// Pages of any fill and skew, where the guess is far off.
#[test]
fn every_prefix_is_found_on_any_page() {
    let config = ProptestConfig { cases: 300, failure_persistence: None, ..Default::default() };
    let prefixes = prop::collection::btree_set(100u64..2000, 0..PAGE_SLOTS_MAX);
    proptest!(config, |(prefixes in prefixes, end in 2000u64..1 << 40)| {
        let sorted: Vec<u64> = prefixes.into_iter().collect();
        let bytes = sound_page(100, &sorted);
        for prefix in 100..2000 {
            let found = page::Page(&bytes).lower_bound(Prefix(prefix), &(Prefix(100)..Prefix(end)));
            prop_assert_eq!(found, sorted.partition_point(|other| *other < prefix));
        }
    });
}
