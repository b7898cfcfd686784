//! Durable writes of whole frames without a log or store: the ceiling of what is appended.

use crate::Latencies;
use crate::Turns;
use crate::disk_bytes::DiskCounters;
use crate::driver::Driver;
use crate::figures::{Measuring, Sample, cpu_of_self};
use crate::raw_rig::RawRig;
use std::error::Error;
use std::path::Path;
use std::time::Instant;
use wal::disk::{BLOCK_SIZE, DiskOperation, Durability, FileId, FileName, IoBuffer};
use wal::group_commit::OpenSegment;
use wal::procedure::Procedure;
use wal::segment::{self, Identity, SEGMENT_HEADER_LEN, SegmentHeader};

/// Whose the prepared segments are.
pub const LOG_IDENTITY: Identity =
    Identity { store: [7; 16], node_id: [1; 20], shard: 0, shard_count: 1 };
/// More than the frames in flight can span, so that a segment is at rest when its turn comes again.
const SEGMENTS: u32 = 4;

/// A driver with segments that are written full of zeros, and used again under new ids when they
/// are full, as a long-lived log does.
#[derive(Debug)]
pub struct LogRig {
    /// The driver.
    pub raw: RawRig,
    segments: Vec<OpenSegment>,
    next_segment: u64,
    counters: DiskCounters,
}

impl LogRig {
    /// Prepares segments of `len` bytes in the data directory at `path`.
    ///
    /// # Errors
    /// The driver's or the disk's.
    pub fn prepare(
        driver: Driver,
        path: &Path,
        direct: bool,
        len: u64,
    ) -> Result<Self, Box<dyn Error>> {
        let mut raw = RawRig::open(driver, path, direct)?;
        let mut segments = Vec::new();
        for index in 0..SEGMENTS {
            let (id, file) = (u64::from(index), FileId(index));
            let header = SegmentHeader { identity: LOG_IDENTITY, id, len };
            raw.run(Procedure::new(move |port| async move {
                segment::prepare(port, FileName::new(""), header, file).await
            }))??;
            segments.push(OpenSegment { id, file, len });
        }
        let counters = DiskCounters::of(path);
        Ok(Self { raw, segments, next_segment: u64::from(SEGMENTS), counters })
    }

    /// The segment that has rested longest, under an id never used before.
    pub fn recycled(&mut self) -> OpenSegment {
        self.segments.rotate_left(1);
        self.next_segment += 1;
        OpenSegment { id: self.next_segment, ..self.segments[0] }
    }

    /// Where its figures of the disk are read.
    #[must_use]
    pub fn counters(&self) -> &DiskCounters {
        &self.counters
    }
}

/// What a log has written since some start.
#[derive(Clone, Copy, Debug, Default)]
pub struct FrameCounts {
    /// Frames.
    pub frames: u64,
    /// Their bytes.
    pub frame_bytes: u64,
    /// Users' records in them; copies that compaction made are none.
    pub records: u64,
    /// Frames under way whenever one was sent, itself included, summed up.
    pub depths: u64,
}

impl FrameCounts {
    /// What came after `earlier`.
    #[must_use]
    pub fn since(self, earlier: Self) -> Self {
        Self {
            frames: self.frames - earlier.frames,
            frame_bytes: self.frame_bytes - earlier.frame_bytes,
            records: self.records - earlier.records,
            depths: self.depths - earlier.depths,
        }
    }

    fn per_frame(&self, sum: u64) -> f64 {
        sum as f64 / self.frames.max(1) as f64
    }

    /// Mean of records in a frame.
    #[must_use]
    pub fn records_per_frame(&self) -> f64 {
        self.per_frame(self.records)
    }

    /// Mean of frames under way.
    #[must_use]
    pub fn depth(&self) -> f64 {
        self.per_frame(self.depths)
    }

    /// The depth as a whole number.
    #[must_use]
    pub fn whole_depth(&self) -> usize {
        self.depth().round().max(1.0) as usize
    }

    /// Mean length of a frame, in whole blocks.
    #[must_use]
    pub fn frame_len(&self) -> usize {
        let blocks = self.per_frame(self.frame_bytes) / BLOCK_SIZE as f64;
        (blocks.round().max(1.0) as usize) * BLOCK_SIZE
    }
}

/// Plain durable writes, of the size and as many at a time as a log's frames were on average.
#[derive(Debug)]
pub struct RawWrites<'a> {
    rig: &'a mut LogRig,
    at: (OpenSegment, u64),
    idle: Vec<(usize, IoBuffer)>,
    started: Vec<Instant>,
    latencies: Latencies,
    per_write: f64,
}

impl<'a> RawWrites<'a> {
    /// Writes as `like` tells.
    #[must_use]
    pub fn like(rig: &'a mut LogRig, like: &FrameCounts) -> Self {
        let at = (rig.recycled(), SEGMENT_HEADER_LEN);
        let (depth, len) = (like.whole_depth(), like.frame_len());
        let idle = (0..depth).map(|slot| (slot, rig.raw.buffer(len))).collect();
        let (started, latencies) = (vec![Instant::now(); depth], Latencies::default());
        Self { rig, at, idle, started, latencies, per_write: like.records_per_frame() }
    }

    fn start(&mut self, slot: usize, buffer: IoBuffer) {
        let (segment, offset) = self.at;
        let end = offset + buffer.len() as u64;
        let fits = end + buffer.len() as u64 <= segment.len;
        self.at = if fits { (segment, end) } else { (self.rig.recycled(), SEGMENT_HEADER_LEN) };
        let (file, durability) = (segment.file, Durability::Durable);
        self.started[slot] = Instant::now();
        let write = DiskOperation::Write { file, offset, buffer, durability };
        self.rig.raw.submit(slot as u64, write);
    }

    /// Waits for at least one write to end.
    fn turn(&mut self) {
        let Self { rig, idle, started, latencies, .. } = self;
        rig.raw.wait(|completion| {
            completion.result.expect("the disk takes what it took before");
            let slot = completion.id.0 as usize;
            latencies.record(started[slot].elapsed(), 1);
            idle.push((slot, completion.buffer.expect("a write returns its buffer")));
        });
    }

    fn run_until(&mut self, end: Instant) {
        while Instant::now() < end {
            while let Some((slot, buffer)) = self.idle.pop() {
                self.start(slot, buffer);
            }
            self.turn();
        }
    }

    /// Measures once. A write counts as the records that a frame held; latencies are of writes.
    #[must_use]
    pub fn measure(mut self, turns: Turns, user_bytes: u64) -> Sample {
        self.run_until(Instant::now() + turns.warm_up);
        self.latencies.clear();
        let counters = self.rig.counters.clone();
        let before = counters.read();
        let measuring = Measuring::start(cpu_of_self());
        self.run_until(Instant::now() + turns.duration);
        let latencies = std::mem::take(&mut self.latencies);
        let records = (latencies.count() as f64 * self.per_write) as u64;
        let sample = measuring.finish(cpu_of_self(), records, latencies);
        let bytes = counters.read().since(before);
        while self.idle.len() < self.started.len() {
            self.turn();
        }
        sample.with_disk(bytes, records * user_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn raw_writes_are_as_long_and_as_many_as_frames_were() {
        let counts = FrameCounts { frames: 10, frame_bytes: 95_000, records: 40, depths: 17 };
        assert_eq!((counts.frame_len(), counts.whole_depth()), (8192, 2));
        let later = FrameCounts { frames: 11, frame_bytes: 99_096, records: 41, depths: 18 };
        let one = later.since(counts);
        assert_eq!((one.frame_len(), one.whole_depth()), (4096, 1));
        assert!((one.records_per_frame() - 1.0).abs() < 1e-9);
        assert_eq!(FrameCounts::default().frame_len(), 4096);
    }
}
