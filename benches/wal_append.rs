//! What does one durable append cost through the log, on each driver?
//!
//! Unit: appends per second, latency from append to acknowledgement, CPU per append, device bytes
//! per user byte. Expected: a durable 4 KiB write takes a virtual disk about 100 us, so one writer
//! gets below 10,000 appends/s on any driver; 64 writers share frames and get close to 50 times
//! that; with 512 writers the CPU of encoding decides.
//!
//! One thread drives the log over the driver, as a shard does, with closed-loop writers: each
//! appends a record, waits until it is durable, appends the next. The *raw* rows write frames of
//! the size the log had on average in the same repeat, and as many at a time (*depth*), through the
//! same driver without the log; their rate counts as many appends per write as the log had in a
//! frame. Segments are written full of zeros before, and used again under new ids when they are
//! full, as a long-lived log would.

#![expect(clippy::disallowed_methods, reason = "a bench reads the clock")]
#![expect(clippy::print_stdout, reason = "a bench prints its result")]

use clap::Parser;
use kadring::event_loop::run_procedure;
use kadring::io::directory::{DataDirectory, DirectoryOptions};
use kadring::io::pread::{PreadIo, PreadOptions};
use kadring::io::tokio_uring::{TokioUringIo, TokioUringOptions};
use kadring::io::uring::{UringIo, UringOptions};
use kadring::io::{Completion, DiskOwner, Io, Request};
use kadring_benches::{
    Flags, Latencies, Measuring, Report, SUMMARY_COLUMNS, Sample, Summary, Table, Turns,
    cpu_of_self, interleave,
};
use serde_json::json;
use std::collections::VecDeque;
use std::error::Error;
use std::path::Path;
use std::time::Instant;
use wal::Lsn;
use wal::disk::{
    BLOCK_SIZE, DiskCompletion, DiskOperation, DiskRequest, Durability, FileId, FileName, IoBuffer,
    RequestId,
};
use wal::group_commit::{AppendError, GroupCommit, GroupCommitLimits, OpenSegment};
use wal::procedure::Procedure;
use wal::record::{Key, Namespace, Record, RecordKind, Version};
use wal::segment::{self, Identity, SEGMENT_HEADER_LEN, SegmentHeader};

const OWNER: DiskOwner = DiskOwner(0);
const IDENTITY: Identity = Identity { store: [7; 16], node_id: [1; 20], shard: 0, shard_count: 1 };
const USER_KEY: &[u8] = b"user:00000000042";
/// More than the frames in flight can span, so that a segment is at rest when its turn comes again.
const SEGMENTS: u32 = 4;
const VALUE_LENS: [usize; 2] = [256, 4096];
const WRITERS: [usize; 3] = [1, 64, 512];
const TABLE: Table = Table { name_width: 16, width: 10 };
/// `tokio-uring` is what an ordinary io_uring runtime makes of the same work.
const DRIVERS: [&str; 3] = ["uring", "tokio-uring", "pread"];

#[derive(Debug, Parser)]
struct Arguments {
    #[command(flatten)]
    flags: Flags,
}

/// How long and on how much.
#[derive(Clone, Copy, Debug)]
struct Plan {
    turns: Turns,
    segment_len: u64,
}

/// One cell of the bench.
#[derive(Clone, Copy, Debug)]
struct Workload {
    value_len: usize,
    writers: usize,
}

/// A driver with its prepared segments.
struct Rig<I> {
    io: I,
    segments: Vec<OpenSegment>,
    next_segment: u64,
    done: Vec<Completion>,
}

impl<I: Io> Rig<I> {
    fn new(mut io: I, len: u64) -> Result<Self, Box<dyn Error>> {
        let mut segments = Vec::new();
        for index in 0..SEGMENTS {
            let (id, file) = (u64::from(index), FileId(index));
            let header = SegmentHeader { identity: IDENTITY, id, len };
            let procedure = Procedure::new(move |port| async move {
                segment::prepare(port, FileName::new(""), header, file).await
            });
            let (result, _) = run_procedure(&mut io, OWNER, procedure)?;
            result?;
            segments.push(OpenSegment { id, file, len });
        }
        Ok(Self { io, segments, next_segment: u64::from(SEGMENTS), done: Vec::new() })
    }

    /// The segment that has rested longest, under an id never used before.
    fn recycled(&mut self) -> OpenSegment {
        self.segments.rotate_left(1);
        self.next_segment += 1;
        OpenSegment { id: self.next_segment, ..self.segments[0] }
    }

    fn submit(&mut self, id: u64, operation: DiskOperation) {
        let request = DiskRequest { id: RequestId(id), operation };
        self.io.submit(Request::Disk(OWNER, request));
    }

    fn wait(&mut self, mut each: impl FnMut(DiskCompletion)) {
        self.io.wait(None, &mut self.done).expect("the driver works");
        for completion in self.done.drain(..) {
            match completion {
                Completion::Disk(_, completion) => each(completion),
                other => unreachable!("{other:?} without sockets or signals"),
            }
        }
    }
}

/// The log and its writers, all of which wait for an acknowledgement between turns.
struct Appender<'a, I> {
    rig: &'a mut Rig<I>,
    log: GroupCommit,
    value: Vec<u8>,
    idle: usize,
    waiting: VecDeque<(Lsn, Instant)>,
    latencies: Latencies,
    under_way: usize,
    wrote: Wrote,
}

impl<'a, I: Io> Appender<'a, I> {
    fn new(rig: &'a mut Rig<I>, workload: Workload) -> Self {
        let limits = GroupCommitLimits::default();
        Self {
            rig,
            log: GroupCommit::new(IDENTITY.store, limits, Lsn::ZERO, 0),
            value: (0..workload.value_len).map(|_| fastrand::u8(..)).collect(),
            idle: workload.writers,
            waiting: VecDeque::new(),
            latencies: Latencies::default(),
            under_way: 0,
            wrote: Wrote::default(),
        }
    }

    fn append_all(&mut self, now: Instant) {
        let record = Record {
            kind: RecordKind::Put,
            namespace: Namespace::PLAIN,
            key: Key::of(USER_KEY),
            hashed: true,
            user_key: USER_KEY,
            version: Version([7; 16]),
            expiry_ms: 0,
            value: &self.value,
        };
        while self.idle > 0 {
            match self.log.append(&record) {
                Ok(appended) => {
                    self.waiting.push_back((appended.lsn, now));
                    self.idle -= 1;
                }
                Err(AppendError::NoSegment { .. }) => self.log.add_segment(self.rig.recycled()),
                Err(AppendError::Congested { .. }) => return,
                Err(AppendError::Failed(error)) => panic!("{error}"),
            }
        }
    }

    /// Sends what can go out, waits for the disk and acknowledges.
    fn turn(&mut self) -> Instant {
        let wall_ms = self.rig.io.now().1.0;
        self.log.submit(wall_ms);
        while let Some(write) = self.log.poll_write() {
            self.rig.submit(write.number, write.operation);
            self.under_way += 1;
            self.wrote.depths += self.under_way as u64;
        }
        let Self { log, under_way, .. } = self;
        self.rig.wait(|completion| {
            *under_way -= 1;
            let result = completion.result.map(drop);
            log.handle_written(completion.id.0, result, completion.buffer);
        });
        let now = Instant::now();
        let durable = self.log.durable_lsn();
        while let Some((_, since)) = self.waiting.pop_front_if(|(lsn, _)| *lsn <= durable) {
            self.latencies.record(now - since, 1);
            self.idle += 1;
        }
        // Files stay open here; the log need not remember which it has left.
        while self.log.poll_left().is_some() {}
        now
    }

    fn run_until(&mut self, end: Instant) {
        let mut now = Instant::now();
        while now < end {
            self.append_all(now);
            now = self.turn();
        }
    }

    /// Measures once, and tells what the log wrote meanwhile.
    fn measure(mut self, plan: &Plan) -> (Sample, Wrote) {
        self.run_until(Instant::now() + plan.turns.warm_up);
        self.latencies.clear();
        self.wrote = Wrote::default();
        let before = self.log.counters();
        let durable = self.log.durable_lsn();
        let measuring = Measuring::start(cpu_of_self());
        self.run_until(Instant::now() + plan.turns.duration);
        let appends = self.log.durable_lsn().0 - durable.0;
        let latencies = std::mem::take(&mut self.latencies);
        let sample = measuring.finish(cpu_of_self(), appends, latencies);
        let after = self.log.counters();
        let wrote = Wrote {
            frames: after.frames - before.frames,
            frame_bytes: after.frame_bytes - before.frame_bytes,
            records: after.records - before.records,
            ..self.wrote
        };
        // A footer of a segment that was left may still be on its way.
        while self.under_way > 0 {
            self.turn();
        }
        (sample, wrote)
    }
}

/// Plain durable writes, `depth` at a time.
struct Raw<'a, I> {
    rig: &'a mut Rig<I>,
    at: (OpenSegment, u64),
    idle: Vec<(usize, IoBuffer)>,
    started: Vec<Instant>,
    latencies: Latencies,
    writes: u64,
}

impl<'a, I: Io> Raw<'a, I> {
    fn new(rig: &'a mut Rig<I>, frame_len: usize, depth: usize) -> Self {
        let at = (rig.recycled(), SEGMENT_HEADER_LEN);
        let idle = (0..depth).map(|slot| (slot, IoBuffer::zeroed(frame_len))).collect();
        let started = vec![Instant::now(); depth];
        Self { rig, at, idle, started, latencies: Latencies::default(), writes: 0 }
    }

    fn start(&mut self, slot: usize, buffer: IoBuffer) {
        let (segment, offset) = self.at;
        let end = offset + buffer.len() as u64;
        let fits = end + buffer.len() as u64 <= segment.len;
        self.at = if fits { (segment, end) } else { (self.rig.recycled(), SEGMENT_HEADER_LEN) };
        let (file, durability) = (segment.file, Durability::Durable);
        self.started[slot] = Instant::now();
        self.rig.submit(slot as u64, DiskOperation::Write { file, offset, buffer, durability });
    }

    /// Waits for at least one write to end.
    fn turn(&mut self) {
        let Self { rig, idle, started, latencies, writes, .. } = self;
        rig.wait(|completion| {
            completion.result.expect("the disk takes what it took before");
            let slot = completion.id.0 as usize;
            latencies.record(started[slot].elapsed(), 1);
            idle.push((slot, completion.buffer.expect("a write returns its buffer")));
            *writes += 1;
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

    fn measure(mut self, plan: &Plan, per_write: f64) -> Sample {
        self.run_until(Instant::now() + plan.turns.warm_up);
        self.latencies.clear();
        let before = self.writes;
        let measuring = Measuring::start(cpu_of_self());
        self.run_until(Instant::now() + plan.turns.duration);
        let appends = ((self.writes - before) as f64 * per_write) as u64;
        let latencies = std::mem::take(&mut self.latencies);
        let sample = measuring.finish(cpu_of_self(), appends, latencies);
        while self.idle.len() < self.started.len() {
            self.turn();
        }
        sample
    }
}

/// What the log wrote in one repeat.
#[derive(Clone, Copy, Debug, Default)]
struct Wrote {
    frames: u64,
    frame_bytes: u64,
    records: u64,
    /// Frames under way whenever one was sent, itself included, summed up.
    depths: u64,
}

impl Wrote {
    fn per_frame(&self, sum: u64) -> f64 {
        sum as f64 / self.frames.max(1) as f64
    }

    fn records_per_frame(&self) -> f64 {
        self.per_frame(self.records)
    }

    fn depth(&self) -> f64 {
        self.per_frame(self.depths)
    }

    fn frame_len(&self) -> usize {
        let blocks = self.per_frame(self.frame_bytes) / BLOCK_SIZE as f64;
        (blocks.round().max(1.0) as usize) * BLOCK_SIZE
    }
}

/// Runs one turn of a driver: through the log, or without it as the log's last turn was.
fn run_one<I: Io>(
    rig: &mut Rig<I>,
    wrote: &mut Wrote,
    plan: &Plan,
    workload: Workload,
    raw: bool,
) -> Sample {
    if raw {
        let depth = wrote.depth().round().max(1.0) as usize;
        return Raw::new(rig, wrote.frame_len(), depth).measure(plan, wrote.records_per_frame());
    }
    let (sample, counters) = Appender::new(rig, workload).measure(plan);
    *wrote = counters;
    sample
}

fn print(
    report: &mut Report,
    workload: Workload,
    summaries: &[Summary],
    wrote: &[Wrote; DRIVERS.len()],
) {
    println!("\n{} B, {} writers", workload.value_len, workload.writers);
    let extra = ["rec/frame", "depth", "dev/user B"];
    TABLE.row("", SUMMARY_COLUMNS.into_iter().chain(extra));
    let raw = DRIVERS.map(|name| format!("{name} raw"));
    for (index, name) in DRIVERS.into_iter().chain(raw.iter().map(String::as_str)).enumerate() {
        let mut cells = summaries[index].cells().to_vec();
        if let Some(wrote) = wrote.get(index) {
            let user_bytes = wrote.records * (workload.value_len + USER_KEY.len()) as u64;
            let device = wrote.frame_bytes as f64 / user_bytes as f64;
            let (records, depth) = (wrote.records_per_frame(), wrote.depth());
            cells.extend([records, depth, device].map(|figure| format!("{figure:.2}")));
        }
        TABLE.row(name, cells.iter().map(String::as_str));
        report.push(
            "rows",
            json!({
                "contestant": name,
                "workload": { "value_bytes": workload.value_len, "writers": workload.writers },
                "result": summaries[index].json(),
                "records_per_frame": wrote.get(index).map(Wrote::records_per_frame),
                "depth": wrote.get(index).map(Wrote::depth),
            }),
        );
    }
    let (log, raw) = summaries.split_at(DRIVERS.len());
    let [uring, runtime, pread] = log else { unreachable!("one row per driver") };
    print!("ratios: uring/pread {}", uring.ratio_to(pread));
    print!("   uring/tokio-uring {}", uring.ratio_to(runtime));
    for ((name, log), raw) in DRIVERS.into_iter().zip(log).zip(raw) {
        print!("   {name} log/raw {}", log.ratio_to(raw));
    }
    println!();
}

fn open(path: &Path) -> Result<DataDirectory, Box<dyn Error>> {
    let directory = DataDirectory::open(path, DirectoryOptions::default())?;
    if !directory.direct() {
        println!("NO O_DIRECT on {}: these are figures of the page cache", path.display());
    }
    Ok(directory)
}

fn main() -> Result<(), Box<dyn Error>> {
    let Arguments { flags } = Arguments::parse();
    let turns = flags.turns(1.0, 5);
    let plan = Plan { turns, segment_len: if flags.smoke { 4 << 20 } else { 128 << 20 } };
    let scratch = flags.scratch()?;
    let mut report = Report::new("wal_append", &flags, scratch.path())?;
    println!(
        "{} interleaved repeats of {:?}, {} frames in flight, ratios of medians (min-max)",
        turns.repeats,
        turns.duration,
        GroupCommitLimits::default().frames_in_flight_max
    );
    let options = UringOptions { handle_signals: false, ..UringOptions::default() };
    let uring = UringIo::new(open(&scratch.path().join("uring"))?, options)?;
    let options = TokioUringOptions { handle_signals: false, ..TokioUringOptions::default() };
    let runtime = TokioUringIo::new(open(&scratch.path().join("tokio-uring"))?, options)?;
    let options = PreadOptions { handle_signals: false, ..PreadOptions::default() };
    let pread = PreadIo::new(open(&scratch.path().join("pread"))?, options)?;
    let mut uring = Rig::new(uring, plan.segment_len)?;
    let mut runtime = Rig::new(runtime, plan.segment_len)?;
    let mut pread = Rig::new(pread, plan.segment_len)?;
    for value_len in VALUE_LENS {
        for writers in WRITERS {
            let workload = Workload { value_len, writers };
            let mut wrote = [Wrote::default(); DRIVERS.len()];
            let summaries = interleave(2 * DRIVERS.len(), plan.turns.repeats, |index| {
                let (driver, raw) = (index % DRIVERS.len(), index >= DRIVERS.len());
                let wrote = &mut wrote[driver];
                match DRIVERS[driver] {
                    "uring" => run_one(&mut uring, wrote, &plan, workload, raw),
                    "tokio-uring" => run_one(&mut runtime, wrote, &plan, workload, raw),
                    _ => run_one(&mut pread, wrote, &plan, workload, raw),
                }
            });
            print(&mut report, workload, &summaries, &wrote);
        }
    }
    report.finish()
}
