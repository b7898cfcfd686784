//! What does one durable append cost through the log, on each driver?
//!
//! Unit: appends per second, latency from append to acknowledgement, CPU per append, device bytes
//! per user byte. Expected: a durable 4 KiB write takes a virtual disk about 100 us, so one writer
//! gets below 10,000 appends/s on any driver; 64 writers share frames and get close to 50 times
//! that; with 512 writers the CPU of encoding decides.
//!
//! One thread drives the log over the driver, as a shard does, with closed-loop writers: each
//! appends a record, waits until it is durable, appends the next. Limits are the node's own
//! (`GroupCommitLimits::default()`), frames are built in the driver's registered buffers. The *raw*
//! rows write frames of the size the log had on average in the same repeat, and as many at a time,
//! through the same driver without the log; their rate counts as many appends per write as the log
//! had in a frame. The log must reach 0.9 of that on uring. Segments are written full of zeros
//! before, and used again under new ids when they are full, as a long-lived log would.

#![expect(clippy::disallowed_methods, reason = "a bench reads the clock")]
#![expect(clippy::print_stdout, reason = "a bench prints its result")]

use clap::Parser;
use kadring::io::Io as _;
use kadring_benches::{
    Flags, FrameCounts, LOG_IDENTITY, Latencies, LogRig, Measuring, RawWrites, Report, Sample,
    Summary, Table, Turns, cpu_of_self, drivers, interleave,
};
use serde_json::json;
use std::collections::VecDeque;
use std::error::Error;
use std::time::Instant;
use wal::Lsn;
use wal::group_commit::{AppendError, GroupCommit, GroupCommitLimits};
use wal::record::{Key, Namespace, Record, RecordKind, Version};

const USER_KEY: &[u8] = b"user:00000000042";
const VALUE_LENS: [usize; 2] = [256, 4096];
const WRITERS: [usize; 3] = [1, 64, 512];
const TABLE: Table = Table { name_width: 16, width: 10 };
/// Share of a raw row's rate that the log must reach.
const RAW_SHARE_MIN: f64 = 0.9;

#[derive(Debug, Parser)]
struct Arguments {
    #[command(flatten)]
    flags: Flags,
    /// Drivers to compare.
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    io: Vec<String>,
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

impl Workload {
    fn user_bytes(self) -> u64 {
        (self.value_len + USER_KEY.len()) as u64
    }
}

/// The log and its writers, all of which wait for an acknowledgement between turns.
struct Appender<'a> {
    rig: &'a mut LogRig,
    log: GroupCommit,
    value: Vec<u8>,
    idle: usize,
    waiting: VecDeque<(Lsn, Instant)>,
    latencies: Latencies,
    under_way: usize,
    depths: u64,
}

impl<'a> Appender<'a> {
    fn new(rig: &'a mut LogRig, workload: Workload) -> Self {
        let limits = GroupCommitLimits::default();
        let buffers = rig.raw.io().buffers();
        Self {
            rig,
            log: GroupCommit::new(LOG_IDENTITY.store, limits, Lsn::ZERO, 0).with_buffers(buffers),
            value: (0..workload.value_len).map(|_| fastrand::u8(..)).collect(),
            idle: workload.writers,
            waiting: VecDeque::new(),
            latencies: Latencies::default(),
            under_way: 0,
            depths: 0,
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
        let wall_ms = self.rig.raw.io().now().1.0;
        self.log.submit(wall_ms);
        while let Some(write) = self.log.poll_write() {
            self.rig.raw.submit(write.number, write.operation);
            self.under_way += 1;
            self.depths += self.under_way as u64;
        }
        let Self { log, under_way, .. } = self;
        self.rig.raw.wait(|completion| {
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

    fn counts(&self) -> FrameCounts {
        let counters = self.log.counters();
        FrameCounts {
            frames: counters.frames,
            frame_bytes: counters.frame_bytes,
            records: counters.records,
            depths: self.depths,
        }
    }

    /// Measures once, and tells what the log wrote meanwhile.
    fn measure(mut self, plan: &Plan) -> (Sample, FrameCounts) {
        self.run_until(Instant::now() + plan.turns.warm_up);
        self.latencies.clear();
        let counters = self.rig.counters().clone();
        let (before, frames, durable) = (counters.read(), self.counts(), self.log.durable_lsn());
        let measuring = Measuring::start(cpu_of_self());
        self.run_until(Instant::now() + plan.turns.duration);
        let appends = self.log.durable_lsn().0 - durable.0;
        let latencies = std::mem::take(&mut self.latencies);
        let sample = measuring.finish(cpu_of_self(), appends, latencies);
        let (bytes, frames) = (counters.read().since(before), self.counts().since(frames));
        // A footer of a segment that was left may still be on its way.
        while self.under_way > 0 {
            self.turn();
        }
        let user_bytes = appends * (self.value.len() + USER_KEY.len()) as u64;
        (sample.with_disk(bytes, user_bytes), frames)
    }
}

/// Runs one turn of a driver: through the log, or without it as the log's last turn was.
fn run_one(
    rig: &mut LogRig,
    wrote: &mut FrameCounts,
    plan: &Plan,
    workload: Workload,
    raw: bool,
) -> Sample {
    if raw {
        return RawWrites::like(rig, wrote).measure(plan.turns, workload.user_bytes());
    }
    let (sample, counts) = Appender::new(rig, workload).measure(plan);
    *wrote = counts;
    sample
}

fn print(
    report: &mut Report,
    workload: Workload,
    names: &[String],
    summaries: &[Summary],
    wrote: &[FrameCounts],
) {
    println!("\n{} B, {} writers", workload.value_len, workload.writers);
    let json = json!({ "value_bytes": workload.value_len, "writers": workload.writers });
    report.rows(TABLE, &json, names.iter().map(String::as_str).zip(summaries));
    for ((name, wrote), pair) in names.iter().step_by(2).zip(wrote).zip(summaries.chunks_exact(2)) {
        let (records, depth, len) =
            (wrote.records_per_frame(), wrote.depth(), wrote.frame_bytes / wrote.frames.max(1));
        let ratio = pair[0].ratio_to(&pair[1]);
        println!("{name}: {records:.2} records and {len} B a frame, {depth:.2} frames under way");
        println!("{name} / raw: {ratio}");
        report.push(
            "frames",
            json!({
                "contestant": name,
                "workload": json,
                "records_per_frame": records,
                "bytes_per_frame": len,
                "depth": depth,
                "ratio_to_raw": ratio.json(),
            }),
        );
        if workload.value_len == VALUE_LENS[0] && name == "uring" {
            let demand = format!("0.9 of raw, {} B, {} writers", VALUE_LENS[0], workload.writers);
            report.judge(&demand, ratio.median >= RAW_SHARE_MIN);
        }
    }
    for (index, name) in names.iter().enumerate().step_by(2).skip(1) {
        let ratio = summaries[0].ratio_to(&summaries[index]);
        let cpu = summaries[0].cpu_micros() / summaries[index].cpu_micros();
        println!("uring / {name}: {ratio}, at {cpu:.2} of its CPU per operation");
        report.push(
            "ratios",
            json!({
                "of": "uring",
                "to": name,
                "workload": json,
                "ratio": ratio.json(),
                "cpu_ratio": cpu,
            }),
        );
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let Arguments { flags, io } = Arguments::parse();
    let turns = flags.turns(0.5, 5);
    let plan = Plan { turns, segment_len: if flags.smoke { 4 << 20 } else { 128 << 20 } };
    let scratch = flags.scratch()?;
    let mut report = Report::new("wal_append", &flags, scratch.path())?;
    println!(
        "{} interleaved repeats of {:?}, {} frames in flight, median of the repeats' ratios \
         (min-max)",
        turns.repeats,
        turns.duration,
        GroupCommitLimits::default().frames_in_flight_max
    );
    // Each log is followed by its raw row, so that the two meet the same machine.
    let (mut rigs, mut names) = (Vec::new(), Vec::new());
    for driver in drivers(&io, &["uring", "tokio-uring", "pread-4"])? {
        let path = scratch.path().join(driver.name);
        let rig = LogRig::prepare(driver, &path, true, plan.segment_len)?;
        let registered = rig.raw.io().buffer_statistics().registered;
        println!("{}: {}", driver.name, if registered { "registered buffers" } else { "heap" });
        rigs.push(rig);
        names.extend([driver.name.to_owned(), format!("{} raw", driver.name)]);
    }
    for value_len in VALUE_LENS {
        for writers in WRITERS {
            let workload = Workload { value_len, writers };
            let mut wrote = vec![FrameCounts::default(); rigs.len()];
            let summaries = interleave(names.len(), plan.turns.repeats, |index| {
                let (driver, raw) = (index / 2, index % 2 == 1);
                run_one(&mut rigs[driver], &mut wrote[driver], &plan, workload, raw)
            });
            print(&mut report, workload, &names, &summaries, &wrote);
        }
    }
    report.finish()
}
