//! Reads of the store's own files without the store: by a driver, by threads. For fio see
//! [`Fio`](crate::Fio).

use crate::Latencies;
use crate::Turns;
use crate::disk_bytes::DiskCounters;
use crate::figures::{Measuring, Sample, cpu_of_self};
use crate::raw_rig::RawRig;
use crate::threads;
use rustix::fs::{Advice, CWD, Mode, OFlags, fadvise, openat};
use rustix::io::pread;
use std::error::Error;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use wal::disk::{DiskOperation, FileId, FileName, IoBuffer, OpenMode};

/// Smaller files hold no records.
const FILE_LEN_MIN: u64 = 1 << 20;

/// The files of a store that hold records.
#[derive(Clone, Debug)]
pub struct DataFiles {
    files: Vec<DataFile>,
}

#[derive(Clone, Debug)]
struct DataFile {
    path: PathBuf,
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
        let mut files = Vec::new();
        for entry in std::fs::read_dir(directory)? {
            let entry = entry?;
            let (path, len) = (entry.path(), entry.metadata()?.len());
            if len >= FILE_LEN_MIN {
                files.push(DataFile { path, len });
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

    /// Reads by a driver on this thread, without the store; the rig has the files linked
    /// ([`Self::link_into`]).
    ///
    /// # Panics
    /// If the disk fails.
    pub fn read_by_driver(
        &self,
        rig: &mut RawRig,
        reads: RawReads,
        counters: &DiskCounters,
    ) -> Sample {
        let mut under_way = UnderWay {
            idle: (0..reads.depth).map(|_| Some(rig.buffer(reads.len))).collect(),
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
        sample.with_disk(bytes, count * reads.len as u64)
    }

    /// Gives the files second names in a data directory and opens them there.
    ///
    /// # Errors
    /// If the file system refuses.
    pub fn link_into(&self, rig: &mut RawRig, directory: &Path) -> Result<(), Box<dyn Error>> {
        for (index, file) in (0_u32..).zip(&self.files) {
            let name = format!("{index}.data");
            std::fs::hard_link(&file.path, directory.join(&name))?;
            let (file, name, mode) = (FileId(index), FileName::new(name), OpenMode::Read);
            rig.call(DiskOperation::Open { file, name, mode })?;
        }
        Ok(())
    }

    /// Where the files are.
    #[must_use]
    pub fn paths(&self) -> Vec<PathBuf> {
        self.files.iter().map(|file| file.path.clone()).collect()
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
    fn run(&mut self, files: &DataFiles, rig: &mut RawRig, len: usize, duration: Duration) {
        let end = Instant::now() + duration;
        let mut now = Instant::now();
        while now < end {
            for (place, buffer) in self.idle.iter_mut().enumerate() {
                if let Some(buffer) = buffer.take() {
                    let (file, offset) = files.place(&mut self.random, len);
                    let file = FileId(u32::try_from(file).expect("files are few"));
                    self.started[place] = now;
                    let read = DiskOperation::Read { file, offset, len, buffer };
                    rig.submit(place as u64, read);
                }
            }
            now = self.turn(rig);
        }
    }

    fn turn(&mut self, rig: &mut RawRig) -> Instant {
        let mut now = None;
        rig.wait(|completion| {
            let now = *now.get_or_insert_with(Instant::now);
            completion.result.expect("a segment is read");
            let place = completion.id.0 as usize;
            self.idle[place] = completion.buffer;
            self.latencies.record(now - self.started[place], 1);
        });
        now.unwrap_or_else(Instant::now)
    }
}
