//! [`Reader`]: a segment's bytes from front to back, a few reads ahead of whoever looks at them.
//!
//! What the disk cannot read counts as zeros and is noted.

use std::collections::VecDeque;

use super::SegmentSource;
use crate::checksum::Place;
use crate::disk::{BLOCK_SIZE, DiskError, DiskOperation, IoBuffer};
use crate::footer::Trailer;
use crate::procedure::{DiskPort, Ticket};
use crate::segment::SEGMENT_HEADER_LEN;

/// Bytes of one read.
const CHUNK_LEN: usize = 1 << 20;
/// Reads under way at a time: a disk that needs depth to be fast has enough to do while the last
/// chunk is looked at.
const READS_MAX: usize = 4;
/// Buffers kept for the next reads: those under way, and two windows.
const SPARES_MAX: usize = READS_MAX + 2;

/// A read under way.
struct Ahead {
    offset: u64,
    len: usize,
    ticket: Ticket,
}

/// Reads one segment. [`Reader::end`] comes last: buffers under way are the driver's until then.
pub(super) struct Reader {
    port: DiskPort,
    pub(super) source: SegmentSource,
    /// The segment's bytes from `start` on.
    window: IoBuffer,
    start: u64,
    /// Reads of what follows the window, one after the other.
    ahead: VecDeque<Ahead>,
    /// Nothing is read ahead from here on.
    limit: u64,
    spares: Vec<IoBuffer>,
    /// Blocks that could not be read.
    pub(super) unreadable: Vec<(u64, u64)>,
}

impl Reader {
    pub(super) fn new(port: DiskPort, source: SegmentSource) -> Self {
        Self {
            port,
            source,
            window: IoBuffer::with_capacity(1),
            start: 0,
            ahead: VecDeque::new(),
            limit: source.cut.unwrap_or(source.len),
            spares: Vec::new(),
            unreadable: Vec::new(),
        }
    }

    /// Says that nothing from `limit` on will be asked for.
    pub(super) fn set_limit(&mut self, limit: u64) {
        self.limit = limit;
    }

    /// Returns `len` bytes at `offset`, fewer only where the file ends. Both in whole blocks.
    pub(super) async fn at(&mut self, offset: u64, len: usize) -> &[u8] {
        let end = offset + len as u64;
        if offset < self.start || end > self.window_end() {
            self.fill(offset, end.min(self.file_end())).await;
        }
        let from = usize::try_from(offset - self.start).expect("the window starts here or before");
        let to = (from + len).min(self.window.len());
        &self.window.as_slice()[from.min(to)..to]
    }

    /// Awaits what is still under way.
    pub(super) async fn end(&mut self) {
        while let Some(Ahead { ticket, .. }) = self.ahead.pop_front() {
            let buffer = ticket.await.buffer;
            buffer.into_iter().for_each(|buffer| self.spare(buffer));
        }
    }

    fn file_end(&self) -> u64 {
        self.source.len.next_multiple_of(BLOCK_SIZE as u64)
    }

    fn window_end(&self) -> u64 {
        self.start + self.window.len() as u64
    }

    /// Makes the window begin at `offset`, or before, and reach `end`.
    async fn fill(&mut self, offset: u64, end: u64) {
        if !(self.start..=self.window_end()).contains(&offset) {
            self.end().await;
            self.window.set_len(0);
            self.start = offset;
        }
        let mut window = self.empty_buffer(1);
        std::mem::swap(&mut window, &mut self.window);
        let kept = usize::try_from(offset - self.start).expect("a segment fits in memory");
        let before = std::mem::replace(&mut self.start, offset);
        let mut at = before + window.len() as u64;
        let mut is_whole = false;
        if kept < window.len() {
            let len = usize::try_from(end.saturating_sub(offset)).expect("a frame fits in memory");
            self.window = self.empty_buffer(len + CHUNK_LEN);
            self.window.extend_from_slice(&window.as_slice()[kept..]);
            is_whole = true;
        }
        self.spare(window);
        while at < end {
            let (wanted, chunk) = self.next_chunk(at, end).await;
            let found = chunk.len();
            at += found as u64;
            if is_whole {
                self.window.extend_from_slice(chunk.as_slice());
                self.spare(chunk);
            } else if at >= end {
                self.window = chunk;
            } else {
                let len = usize::try_from(end - offset).expect("a frame fits in memory");
                self.window = self.empty_buffer(len + CHUNK_LEN);
                self.window.extend_from_slice(chunk.as_slice());
                self.spare(chunk);
                is_whole = true;
            }
            if found < wanted {
                // The file is shorter than it was: nothing that is under way is there.
                return self.end().await;
            }
        }
    }

    /// Takes the chunk at `at`, and has the next ones read meanwhile, at least up to `end`.
    /// Also returns how long it is meant to be.
    async fn next_chunk(&mut self, at: u64, end: u64) -> (usize, IoBuffer) {
        self.read_ahead(at, end);
        let Some(Ahead { offset, len, ticket }) = self.ahead.pop_front() else {
            return (CHUNK_LEN, IoBuffer::with_capacity(1));
        };
        let completion = ticket.await;
        self.read_ahead(at + len as u64, end);
        match (completion.result, completion.buffer) {
            (Ok(_), Some(buffer)) => (len, buffer),
            _ => (len, self.read_by_block(offset, len).await),
        }
    }

    fn read_ahead(&mut self, at: u64, end: u64) {
        let stop = self.limit.next_multiple_of(BLOCK_SIZE as u64).max(end).min(self.file_end());
        while self.ahead.len() < READS_MAX {
            let last = self.ahead.back();
            let offset = last.map_or(at, |last| last.offset + last.len as u64);
            let left = usize::try_from(stop.saturating_sub(offset)).unwrap_or(usize::MAX);
            let len = left.min(CHUNK_LEN);
            if len == 0 {
                return;
            }
            let buffer = self.empty_buffer(len);
            let read = DiskOperation::Read { file: self.source.file, offset, len, buffer };
            self.ahead.push_back(Ahead { offset, len, ticket: self.port.start(read) });
        }
    }

    fn empty_buffer(&mut self, capacity: usize) -> IoBuffer {
        let fits = self.spares.iter().position(|spare| spare.capacity() >= capacity);
        let Some(at) = fits.filter(|_| capacity > 1) else {
            return IoBuffer::with_capacity(capacity);
        };
        let mut buffer = self.spares.swap_remove(at);
        buffer.set_len(0);
        buffer
    }

    fn spare(&mut self, buffer: IoBuffer) {
        if buffer.capacity() >= CHUNK_LEN && self.spares.len() < SPARES_MAX {
            self.spares.push(buffer);
        }
    }

    async fn read_by_block(&mut self, offset: u64, len: usize) -> IoBuffer {
        let mut whole = IoBuffer::with_capacity(len);
        for at in (offset..offset + len as u64).step_by(BLOCK_SIZE) {
            match self.read_block(at).await {
                Ok(block) => whole.extend_from_slice(block.as_slice()),
                Err(_) => {
                    whole.extend_from_slice(&[0; BLOCK_SIZE]);
                    if self.unreadable.last().is_none_or(|(start, len)| start + len < at + 1) {
                        self.unreadable.push((at, BLOCK_SIZE as u64));
                    }
                }
            }
        }
        whole
    }

    /// The trailer in the last block, if there is a valid one.
    pub(super) async fn trailer(&self, segment: &Place) -> Option<Trailer> {
        let last = self.source.len.checked_sub(BLOCK_SIZE as u64)?;
        let whole = last >= SEGMENT_HEADER_LEN && last.is_multiple_of(BLOCK_SIZE as u64);
        let block = if whole { self.read(last, BLOCK_SIZE).await? } else { return None };
        Trailer::decode(block.as_slice(), segment, self.source.len).ok()
    }

    pub(super) async fn read(&self, offset: u64, len: usize) -> Option<IoBuffer> {
        let buffer = IoBuffer::with_capacity(len);
        let read = DiskOperation::Read { file: self.source.file, offset, len, buffer };
        self.port.transfer(read).await.ok().filter(|buffer| buffer.len() == len)
    }

    async fn read_block(&self, offset: u64) -> Result<IoBuffer, DiskError> {
        let buffer = IoBuffer::with_capacity(BLOCK_SIZE);
        let (file, len) = (self.source.file, BLOCK_SIZE);
        self.port.transfer(DiskOperation::Read { file, offset, len, buffer }).await
    }
}
