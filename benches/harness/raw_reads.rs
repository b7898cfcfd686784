//! Reads of the store's own files without the store: by a driver, by threads, by fio.

use crate::Turns;
use crate::disk_bytes::DiskCounters;
use crate::figures::{Latencies, Measuring, Sample, cpu_of_self};
use crate::store_rig::{StoreRig, Wait};
use crate::threads;
use rustix::fs::{Advice, CWD, Mode, OFlags, fadvise, openat};
use rustix::io::pread;
use serde_json::Value;
use std::error::Error;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use wal::disk::{DiskOperation, DiskOutput, FileId, FileName, IoBuffer, OpenMode};

/// Smaller files hold no records.
const FILE_LEN_MIN: u64 = 1 << 20;
/// Numbers of operations that open and close files; reads count from 0.
const OPENING: u64 = 1 << 32;

/// The files of a store that hold records.
#[derive(Clone, Debug)]
pub struct DataFiles {
    files: Vec<DataFile>,
}

#[derive(Clone, Debug)]
struct DataFile {
    path: PathBuf,
    name: FileName,
    len: u64,
}

/// What is read, and how.
#[derive(Clone, Copy, Debug)]
pub struct RawReads {
    /// Bytes at a time, at a multiple of them.
    pub len: usize,
    /// Reads at a time.
    pub depth: usize,
    /// Whether to pass the page cache by.
    pub direct: bool,
    /// For how long.
    pub turns: Turns,
}

impl DataFiles {
    /// Lists the files in the store's directory.
    ///
    /// # Errors
    /// If it cannot be listed, or there are none.
    pub fn in_directory(directory: &Path) -> Result<Self, Box<dyn Error>> {
        let folder = directory.file_name().ok_or("the root holds no store")?;
        let folder = FileName::new(folder.to_string_lossy());
        let mut files = Vec::new();
        for entry in std::fs::read_dir(directory)? {
            let entry = entry?;
            let (path, len) = (entry.path(), entry.metadata()?.len());
            if len >= FILE_LEN_MIN {
                let name = folder.join(&entry.file_name().to_string_lossy());
                files.push(DataFile { path, name, len });
            }
        }
        files.sort_by(|a, b| a.path.cmp(&b.path));
        if files.is_empty() { Err("the store has no segments".into()) } else { Ok(Self { files }) }
    }

    /// Takes the files out of the page cache, as far as it gives them up.
    ///
    /// # Errors
    /// If one cannot be opened.
    pub fn evict(&self) -> io::Result<()> {
        for file in &self.files {
            let fd = openat(CWD, &file.path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
            fadvise(&fd, 0, None, Advice::DontNeed)?;
        }
        Ok(())
    }

    /// Draws a file and an offset in it.
    fn place(&self, random: &mut fastrand::Rng, len: usize) -> (usize, u64) {
        let index = random.usize(..self.files.len());
        let blocks = self.files[index].len / len as u64;
        (index, random.u64(..blocks) * len as u64)
    }

    /// Reads by as many threads as the depth says, each with blocking calls.
    ///
    /// # Errors
    /// If a file cannot be opened.
    ///
    /// # Panics
    /// If the disk fails.
    pub fn read_by_threads(&self, reads: RawReads, counters: &DiskCounters) -> io::Result<Sample> {
        let direct = if reads.direct { OFlags::DIRECT } else { OFlags::empty() };
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | direct;
        let open = |file: &DataFile| openat(CWD, &file.path, flags, Mode::empty());
        let fds: Vec<OwnedFd> = self.files.iter().map(open).collect::<Result<_, _>>()?;
        Ok(threads::measure(
            reads.depth,
            reads.turns,
            counters,
            reads.len as u64,
            |index, phase| {
                let mut random = fastrand::Rng::with_seed(index as u64);
                let mut buffer = IoBuffer::zeroed(reads.len);
                phase.repeat(|| {
                    let (file, offset) = self.place(&mut random, reads.len);
                    let read = pread(&fds[file], buffer.as_mut_slice(), offset);
                    assert_eq!(read, Ok(reads.len), "a segment is read whole");
                })
            },
        ))
    }

    /// Reads by the rig's driver on the rig's thread, past the store. Whether past the page cache
    /// is as the rig was opened.
    ///
    /// # Panics
    /// If the disk fails.
    pub fn read_by_driver(
        &self,
        rig: &mut StoreRig,
        reads: RawReads,
        counters: &DiskCounters,
    ) -> Sample {
        for (index, file) in (0_u32..).zip(&self.files) {
            let (file, name) = (FileId(index), file.name.clone());
            call(rig, DiskOperation::Open { file, name, mode: OpenMode::Read });
        }
        let buffer = |_| Some(IoBuffer::with_capacity(reads.len));
        let mut under_way = UnderWay {
            idle: (0..reads.depth).map(buffer).collect(),
            started: vec![Instant::now(); reads.depth],
            random: fastrand::Rng::with_seed(5),
            latencies: Latencies::default(),
        };
        under_way.run(self, rig, reads.len, reads.turns.warm_up);
        under_way.latencies.clear();
        let before = counters.read();
        let measuring = Measuring::start(cpu_of_self());
        under_way.run(self, rig, reads.len, reads.turns.duration);
        let latencies = std::mem::take(&mut under_way.latencies);
        let count = latencies.count();
        let sample = measuring.finish(cpu_of_self(), count, latencies);
        let bytes = counters.read().since(before);
        while under_way.idle.iter().any(Option::is_none) {
            under_way.turn(rig);
        }
        for index in (0_u32..).take(self.files.len()) {
            call(rig, DiskOperation::Close { file: FileId(index) });
        }
        sample.with_disk(bytes, count * reads.len as u64)
    }

    /// Lets fio read with that engine and these further flags.
    ///
    /// # Errors
    /// If fio does not run to its end or says what is not understood.
    pub fn read_by_fio(
        &self,
        reads: RawReads,
        engine: &str,
        flags: &[&str],
    ) -> Result<Sample, Box<dyn Error>> {
        let names: Vec<String> = self
            .files
            .iter()
            .map(|file| file.path.display().to_string().replace(':', "\\:"))
            .collect();
        let output = Command::new("fio")
            .args(["--name=reads", "--readonly", "--rw=randread", "--time_based", "--norandommap"])
            .args(["--file_service_type=random", "--randrepeat=0", "--output-format=json+"])
            .arg(format!("--filename={}", names.join(":")))
            .arg(format!("--ioengine={engine}"))
            .arg(format!("--iodepth={}", reads.depth))
            .arg(format!("--bs={}", reads.len))
            .arg(format!("--direct={}", u8::from(reads.direct)))
            .arg(format!("--ramp_time={}ms", reads.turns.warm_up.as_millis()))
            .arg(format!("--runtime={}ms", reads.turns.duration.as_millis().max(50)))
            .args(flags)
            .output()?;
        if !output.status.success() {
            let text = String::from_utf8_lossy(&output.stderr);
            return Err(format!("fio: {}", text.lines().next().unwrap_or("no word")).into());
        }
        parse_fio(&output.stdout)
    }
}

/// Whether fio is installed, and knows io_uring.
#[must_use]
pub fn has_fio() -> bool {
    let output = Command::new("fio").arg("--enghelp=io_uring").output();
    output.is_ok_and(|output| output.status.success())
}

/// Carries out one operation past the store and waits for it.
fn call(rig: &mut StoreRig, operation: DiskOperation) -> DiskOutput {
    rig.submit_raw(OPENING, operation);
    loop {
        rig.turn(Wait::Completion);
        if let Some(completion) = rig.take_raw().next() {
            return completion.result.expect("the file is there");
        }
    }
}

/// Reads of a driver, each in its place.
struct UnderWay {
    idle: Vec<Option<IoBuffer>>,
    started: Vec<Instant>,
    random: fastrand::Rng,
    latencies: Latencies,
}

impl UnderWay {
    fn run(&mut self, files: &DataFiles, rig: &mut StoreRig, len: usize, duration: Duration) {
        let end = Instant::now() + duration;
        let mut now = Instant::now();
        while now < end {
            for (place, buffer) in self.idle.iter_mut().enumerate() {
                if let Some(buffer) = buffer.take() {
                    let (file, offset) = files.place(&mut self.random, len);
                    let file = FileId(u32::try_from(file).expect("files are few"));
                    self.started[place] = now;
                    let read = DiskOperation::Read { file, offset, len, buffer };
                    rig.submit_raw(place as u64, read);
                }
            }
            now = self.turn(rig);
        }
    }

    fn turn(&mut self, rig: &mut StoreRig) -> Instant {
        rig.turn(Wait::Completion);
        let now = Instant::now();
        for completion in rig.take_raw() {
            completion.result.expect("a segment is read");
            let place = completion.id.0 as usize;
            self.idle[place] = completion.buffer;
            self.latencies.record(now - self.started[place], 1);
        }
        now
    }
}

/// Takes rate, CPU and latencies from what fio says; before its JSON it may print warnings.
fn parse_fio(output: &[u8]) -> Result<Sample, Box<dyn Error>> {
    let start = output.iter().position(|byte| *byte == b'{').ok_or("fio printed no JSON")?;
    let all: Value = serde_json::from_slice(&output[start..])?;
    let job = &all["jobs"][0];
    let read = &job["read"];
    let number = |value: &Value, name: &str| {
        value.as_f64().ok_or_else(|| format!("fio says nothing of {name}"))
    };
    let (rate, count) = (number(&read["iops"], "iops")?, number(&read["total_ios"], "total_ios")?);
    let percent = number(&job["usr_cpu"], "usr_cpu")? + number(&job["sys_cpu"], "sys_cpu")?;
    let millis = number(&read["runtime"], "runtime")?;
    let mut latencies = Latencies::default();
    let bins = read["clat_ns"]["bins"].as_object().ok_or("fio says nothing of latencies")?;
    for (nanos, count) in bins {
        latencies.record(Duration::from_nanos(nanos.parse()?), count.as_u64().unwrap_or(0));
    }
    let cpu_micros = percent / 100.0 * millis * 1e3 / count.max(1.0);
    Ok(Sample { rate, cpu_micros, latencies, disk: None })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fio_is_understood() {
        let text = br#"note: something
            {"jobs": [{"usr_cpu": 10.0, "sys_cpu": 30.0, "read": {"iops": 500.0, "total_ios": 1000,
            "runtime": 2000, "clat_ns": {"bins": {"1000": 900, "9000": 100}}}}]}"#;
        let sample = parse_fio(text).unwrap();
        assert_eq!(sample.latencies.count(), 1000);
        assert!((sample.rate - 500.0).abs() < 1e-9);
        // 40 % of 2 s for 1,000 reads.
        assert!((sample.cpu_micros - 800.0).abs() < 1e-6);
        assert!((sample.latencies.micros(50.0) - 1.0).abs() < 0.01);
        assert!((sample.latencies.micros(99.0) - 9.0).abs() < 0.01);
        parse_fio(b"no").unwrap_err();
        parse_fio(b"{}").unwrap_err();
    }
}
