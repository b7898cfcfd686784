//! The content of one simulated file: what is durable, what the running system sees, and the
//! writes between the two, in 4 KiB blocks that clones share.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

use wal::disk::BLOCK_SIZE;

use super::crash::{Choices, WriteFate};
use crate::tally::Occurrence;

/// Sectors tear as a whole: the unit in which a disk writes atomically.
pub const SECTOR_SIZE: usize = 512;

pub(super) const SECTORS_PER_BLOCK: usize = BLOCK_SIZE / SECTOR_SIZE;
const BLOCK_BYTES: u64 = BLOCK_SIZE as u64;
const ZEROS: &[u8; BLOCK_SIZE] = &[0; BLOCK_SIZE];

/// 4 KiB of content; zeros take no memory, everything else is shared between clones.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Block(Option<Arc<[u8; BLOCK_SIZE]>>);

impl Block {
    /// Copies up to one block of bytes, padded with zeros.
    pub(super) fn new(bytes: &[u8]) -> Self {
        let mut whole = [0; BLOCK_SIZE];
        whole[..bytes.len()].copy_from_slice(bytes);
        Self((&whole != ZEROS).then(|| Arc::new(whole)))
    }

    pub(super) fn as_slice(&self) -> &[u8; BLOCK_SIZE] {
        self.0.as_deref().unwrap_or(ZEROS)
    }

    fn is_zero(&self) -> bool {
        self.0.is_none()
    }

    /// Takes the sectors whose bit is set in `mask` from `other`.
    fn merge(&mut self, other: &Self, mask: u8) {
        if mask == u8::MAX {
            *self = other.clone();
        } else if mask != 0 && !(self.is_zero() && other.is_zero()) {
            let mut bytes = *self.as_slice();
            for sector in (0..SECTORS_PER_BLOCK).filter(|sector| mask & (1 << sector) != 0) {
                let range = sector * SECTOR_SIZE..(sector + 1) * SECTOR_SIZE;
                bytes[range.clone()].copy_from_slice(&other.as_slice()[range]);
            }
            *self = Self::new(&bytes);
        }
    }
}

/// Splits a write's bytes into blocks.
pub(super) fn blocks_of(bytes: &[u8]) -> Arc<[Block]> {
    bytes.chunks(BLOCK_SIZE).map(Block::new).collect()
}

/// Content by block index; a block that is not there is zeros.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Blocks(BTreeMap<u64, Block>);

impl Blocks {
    fn block(&self, index: u64) -> Block {
        self.0.get(&index).cloned().unwrap_or_default()
    }

    fn set(&mut self, index: u64, block: Block) {
        if block.is_zero() {
            self.0.remove(&index);
        } else {
            self.0.insert(index, block);
        }
    }

    fn set_all(&mut self, first: u64, blocks: &[Block]) {
        for (index, block) in (first..).zip(blocks) {
            self.set(index, block.clone());
        }
    }

    fn alter(&mut self, index: u64, change: impl FnOnce(&mut [u8])) {
        let mut bytes = *self.block(index).as_slice();
        change(&mut bytes);
        self.set(index, Block::new(&bytes));
    }

    fn bytes(&self, len: u64) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(len).expect("a simulated file fits in memory")];
        for (index, chunk) in (0..).zip(bytes.chunks_mut(BLOCK_SIZE)) {
            if let Some(block) = self.0.get(&index) {
                chunk.copy_from_slice(&block.as_slice()[..chunk.len()]);
            }
        }
        bytes
    }
}

/// A set of block indices, kept as ranges that neither overlap nor touch.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct BlockRanges(BTreeMap<u64, u64>);

impl BlockRanges {
    fn insert(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        let (mut start, mut end) = (range.start, range.end);
        while let Some((&other, &other_end)) = self.0.range(..=end).next_back() {
            if other_end < start {
                break;
            }
            self.0.remove(&other);
            (start, end) = (start.min(other), end.max(other_end));
        }
        self.0.insert(start, end);
    }

    fn contains(&self, range: &Range<u64>) -> bool {
        let found = self.0.range(..=range.start).next_back();
        range.is_empty() || found.is_some_and(|(_, &end)| end >= range.end)
    }

    fn cut(&mut self, end: u64) {
        self.0.retain(|start, _| *start < end);
        if let Some(mut last) = self.0.last_entry() {
            *last.get_mut() = (*last.get()).min(end);
        }
    }
}

/// A write that reached the operating system and is not known to be on stable storage.
#[derive(Clone, Debug, Hash)]
struct PendingWrite {
    /// Completion number: a later write has a higher one; pieces of one write share it.
    number: u64,
    /// File block of `blocks[0]`.
    first: u64,
    blocks: Arc<[Block]>,
    /// Which of the blocks are still pending.
    used: Range<usize>,
    /// Length the file has at least, once this write counts.
    end: u64,
    /// A sync of it failed: no later sync covers it, as kernels mark such pages clean.
    forsaken: bool,
}

impl PendingWrite {
    fn range(&self) -> Range<u64> {
        self.first + self.used.start as u64..self.first + self.used.end as u64
    }

    fn pending_blocks(&self) -> impl Iterator<Item = (u64, &Block)> {
        self.range().zip(&self.blocks[self.used.clone()])
    }

    /// The pieces of this write outside `range`.
    fn without(self, range: &Range<u64>) -> Vec<Self> {
        let own = self.range();
        if own.is_empty() || range.start >= own.end || range.end <= own.start {
            return vec![self];
        }
        let index = |block: u64| usize::try_from(block - self.first).expect("within the write");
        let outside = [own.start..range.start, range.end..own.end].into_iter();
        let outside = outside.filter(|piece| !piece.is_empty());
        let outside = outside.map(|piece| index(piece.start)..index(piece.end));
        outside.map(|used| Self { used, ..self.clone() }).collect()
    }
}

/// What a write does to the file once the operating system has it.
#[derive(Clone, Debug)]
pub(super) struct Landing {
    /// Completion number.
    pub(super) number: u64,
    /// File block at which `blocks[0]` lands.
    pub(super) first: u64,
    /// What was to be written.
    pub(super) blocks: Arc<[Block]>,
    /// Which of the blocks land, in order; all others keep what they had.
    pub(super) landed: Vec<Range<usize>>,
    /// Length the file has at least.
    pub(super) end: u64,
}

/// One file, whatever its names.
#[derive(Clone, Debug, Default, Hash)]
pub(super) struct Inode {
    running: Blocks,
    running_len: u64,
    durable: Blocks,
    durable_len: u64,
    /// Blocks that were written and made durable: overwriting them needs no new metadata.
    settled: BlockRanges,
    /// In completion order.
    pending: Vec<PendingWrite>,
    /// What the file was before an emptying that is not durable yet.
    before: Option<Arc<Self>>,
    unreadable: BTreeSet<u64>,
}

impl Inode {
    /// A file that holds `bytes`, durable.
    pub(super) fn with_content(bytes: &[u8]) -> Self {
        let mut blocks = Blocks::default();
        blocks.set_all(0, &blocks_of(bytes));
        let len = bytes.len() as u64;
        let mut settled = BlockRanges::default();
        settled.insert(0..len.div_ceil(BLOCK_BYTES));
        Self {
            running: blocks.clone(),
            running_len: len,
            durable: blocks,
            durable_len: len,
            settled,
            ..Self::default()
        }
    }

    /// The empty file that `before` becomes when it is created again.
    pub(super) fn emptied(before: Arc<Self>) -> Self {
        Self { before: Some(before), ..Self::default() }
    }

    pub(super) fn len(&self) -> u64 {
        self.running_len
    }

    pub(super) fn running_bytes(&self) -> Vec<u8> {
        self.running.bytes(self.running_len)
    }

    /// What is left if everything that is not durable is lost.
    pub(super) fn durable_bytes(&self) -> Vec<u8> {
        let durable = self.before.as_ref().map(|before| before.durable_bytes());
        durable.unwrap_or_else(|| self.durable.bytes(self.durable_len))
    }

    /// Whether a durable write there only overwrites, so that it needs no journal commit.
    pub(super) fn is_overwrite(&self, offset: u64, len: usize) -> bool {
        let end = offset + len as u64;
        let range = offset / BLOCK_BYTES..end.div_ceil(BLOCK_BYTES);
        end <= self.durable_len && self.settled.contains(&range)
    }

    /// Copies the running content at `offset` into `room`; `None` if a block cannot be read.
    pub(super) fn read(&self, offset: u64, room: &mut [u8]) -> Option<usize> {
        let end = (offset + room.len() as u64).min(self.running_len);
        let len = usize::try_from(end.saturating_sub(offset)).expect("at most the room");
        let first = offset / BLOCK_BYTES;
        for (index, chunk) in (first..).zip(room[..len].chunks_mut(BLOCK_SIZE)) {
            if self.unreadable.contains(&index) {
                return None;
            }
            chunk.copy_from_slice(&self.running.block(index).as_slice()[..chunk.len()]);
        }
        Some(len)
    }

    /// Lets a write reach the operating system; none of it is durable yet.
    pub(super) fn land(&mut self, landing: &Landing) {
        self.running_len = self.running_len.max(landing.end);
        for used in &landing.landed {
            let write = PendingWrite {
                number: landing.number,
                first: landing.first,
                blocks: Arc::clone(&landing.blocks),
                used: used.clone(),
                end: landing.end,
                forsaken: false,
            };
            for (index, block) in write.pending_blocks() {
                self.running.set(index, block.clone());
                self.unreadable.remove(&index);
            }
            self.pending.push(write);
        }
    }

    /// Makes one write durable, and the length it needs.
    pub(super) fn settle_write(&mut self, number: u64) {
        self.settle(|write| write.number == number);
    }

    /// Makes durable what completed before `covers`.
    pub(super) fn sync(&mut self, covers: u64) {
        self.settle(|write| write.number < covers && !write.forsaken);
    }

    /// A sync failed: what it should have covered stays in doubt until overwritten.
    pub(super) fn fail_sync(&mut self, covers: u64) {
        for write in self.pending.iter_mut().filter(|write| write.number < covers) {
            write.forsaken = true;
        }
    }

    /// A write failed: whatever landed of it stays in doubt until overwritten.
    pub(super) fn fail_write(&mut self, number: u64) {
        for write in self.pending.iter_mut().filter(|write| write.number == number) {
            write.forsaken = true;
        }
    }

    fn settle(&mut self, covered: impl Fn(&PendingWrite) -> bool) {
        self.before = None;
        let pending = std::mem::take(&mut self.pending);
        let (settling, mut rest): (Vec<_>, Vec<_>) = pending.into_iter().partition(covered);
        for write in settling {
            self.durable.set_all(write.range().start, &write.blocks[write.used.clone()]);
            self.durable_len = self.durable_len.max(write.end);
            self.settled.insert(write.range());
            // An older write can no longer come after a newer one that is durable.
            if rest.iter().any(|other| other.number < write.number) {
                let (older, newer): (Vec<_>, Vec<_>) =
                    rest.into_iter().partition(|other| other.number < write.number);
                let older = older.into_iter().flat_map(|other| other.without(&write.range()));
                rest = older.chain(newer).collect();
            }
        }
        self.pending = rest;
    }

    /// Number of yes-or-no questions that a power loss asks about this file, at most.
    pub(super) fn questions(&self, unit: super::CrashUnit) -> usize {
        let contents: usize = match unit {
            super::CrashUnit::Write => self.writes().count(),
            super::CrashUnit::Block => self.pending.iter().map(|write| write.used.len()).sum(),
            super::CrashUnit::Sector => {
                let blocks: usize = self.pending.iter().map(|write| write.used.len()).sum();
                blocks * SECTORS_PER_BLOCK
            }
        };
        let before = self.before.as_ref().map_or(0, |before| 1 + before.questions(unit));
        contents + self.len_candidates().len() + before
    }

    /// The file as a power loss leaves it.
    pub(super) fn after_power_loss(&self, choices: &mut Choices<'_>) -> Self {
        if let Some(before) = &self.before
            && !choices.keeps_name()
        {
            return before.after_power_loss(choices);
        }
        let len = self.surviving_len(choices);
        if len < self.running_len {
            choices.note(Occurrence::LostLength);
        }
        let end = len.div_ceil(BLOCK_BYTES);
        let mut blocks = self.durable.clone();
        let mut decided = BTreeMap::<u64, u8>::new();
        for write in self.writes().rev() {
            let sectors = write.iter().map(|piece| piece.used.len()).sum::<usize>();
            choices.begin_write(sectors * SECTORS_PER_BLOCK);
            let pending = write.iter().flat_map(PendingWrite::pending_blocks);
            let mut whole = WriteFate::default();
            for (index, block) in pending.filter(|(index, _)| *index < end) {
                let done = decided.entry(index).or_default();
                let fate = choices.fate_of_block(!*done);
                whole.note(!*done, &fate);
                let mut content = blocks.block(index);
                content.merge(block, fate.kept);
                if let Some((mask, noise)) = &fate.noise {
                    content.merge(noise, *mask);
                    *done |= mask;
                }
                *done |= fate.kept;
                blocks.set(index, content);
            }
            choices.note_write(write.first().map_or(0, |piece| piece.number), whole);
        }
        for index in self.durable_len.div_ceil(BLOCK_BYTES)..end {
            if decided.get(&index).is_none_or(|mask| *mask == 0)
                && let Some(stale) = choices.exposed_block()
            {
                choices.note(Occurrence::StaleBlock);
                blocks.set(index, stale);
            }
        }
        let mut settled = self.settled.clone();
        for (index, _) in decided.iter().filter(|(_, mask)| **mask == u8::MAX) {
            settled.insert(*index..*index + 1);
        }
        settled.cut(end);
        Self {
            running: blocks.clone(),
            running_len: len,
            durable: blocks,
            durable_len: len,
            settled,
            unreadable: self.unreadable.clone(),
            ..Self::default()
        }
    }

    /// The pending writes, each with all of its pieces, oldest first.
    fn writes(&self) -> impl DoubleEndedIterator<Item = &[PendingWrite]> {
        let writes: Vec<_> = self.pending.chunk_by(|a, b| a.number == b.number).collect();
        writes.into_iter()
    }

    /// Lengths the file may have after a power loss besides the durable one, longest first.
    fn len_candidates(&self) -> Vec<u64> {
        let ends: BTreeSet<u64> = self.pending.iter().map(|write| write.end).collect();
        ends.into_iter().filter(|end| *end > self.durable_len).rev().collect()
    }

    fn surviving_len(&self, choices: &mut Choices<'_>) -> u64 {
        let candidates = self.len_candidates();
        let kept = candidates.into_iter().find(|_| choices.keeps_len());
        kept.map_or(self.durable_len, |len| choices.torn_len(self.durable_len, len))
    }

    /// Changes `len` bytes at rest, in what is durable and in what the running system reads.
    /// `change` gets the place of its bytes within these `len`, and may be called several times.
    pub(super) fn alter(&mut self, offset: u64, len: usize, change: impl Fn(usize, &mut [u8])) {
        let end = offset + len as u64;
        assert!(end <= self.running_len, "offset {end} is past the file's {}", self.running_len);
        for index in offset / BLOCK_BYTES..end.div_ceil(BLOCK_BYTES) {
            let base = index * BLOCK_BYTES;
            let start = usize::try_from(offset.saturating_sub(base)).expect("within a block");
            let stop = usize::try_from((end - base).min(BLOCK_BYTES)).expect("within a block");
            let place = usize::try_from(base.saturating_sub(offset)).expect("within the range");
            self.durable.alter(index, |bytes| change(place, &mut bytes[start..stop]));
            self.running.alter(index, |bytes| change(place, &mut bytes[start..stop]));
        }
    }

    /// Makes the blocks that hold these bytes unreadable until they are written again.
    pub(super) fn spoil(&mut self, offset: u64, len: u64) {
        self.unreadable.extend(offset / BLOCK_BYTES..(offset + len).div_ceil(BLOCK_BYTES));
    }

    /// `count` durable blocks from block `first` on.
    pub(super) fn durable_range(&self, first: u64, count: usize) -> Vec<Block> {
        (first..).take(count).map(|index| self.durable.block(index)).collect()
    }

    /// Durable blocks that are not zeros, for use as stale content elsewhere.
    pub(super) fn durable_blocks(&self) -> impl Iterator<Item = &Block> {
        self.durable.0.values()
    }
}
