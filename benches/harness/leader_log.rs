//! [`LeaderLog`]: the log an ordinary engine has: a thread per writer, and a leader among them who
//! writes and syncs what all have brought.
//!
//! A writer adds its record to the batch. Who finds nobody writing becomes the leader, takes the
//! batch, writes it, syncs it and wakes the writers in it and one of those who came meanwhile: the
//! next leader. One batch is under way at a time.

use crate::Turns;
use crate::disk_bytes::DiskCounters;
use crate::figures::Sample;
use crate::threads::{self, Phase};
use crate::workload::{Values, header_len};
use rustix::fs::{CWD, Mode, OFlags, fdatasync, ftruncate, openat};
use rustix::io::pwrite;
use std::error::Error;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, MutexGuard};
use wal::disk::{BLOCK_SIZE, IoBuffer};

/// Bytes of the file; writing starts again at its beginning.
const FILE_LEN: u64 = 256 << 20;
/// Most bytes of a batch: as much as a frame of ours.
const BATCH_LEN_MAX: usize = 1 << 20;

/// How a batch is made durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SyncBy {
    /// Appended through the page cache to a growing file, then fdatasync.
    AppendFdatasync,
    /// The same over blocks written before, as in a log that is used again.
    OverwriteFdatasync,
    /// O_DIRECT and O_DSYNC over blocks written before, padded to blocks.
    DirectDsync,
}

/// A log file with its method.
#[derive(Debug)]
pub struct LeaderLog {
    by: SyncBy,
    path: PathBuf,
    file: OwnedFd,
    counters: DiskCounters,
}

#[derive(Debug)]
struct Batches {
    filling: IoBuffer,
    /// The other buffer; none while a batch is under way.
    spare: Option<IoBuffer>,
    number: u64,
    durable: u64,
    offset: u64,
}

struct Shared<'a> {
    log: &'a LeaderLog,
    batches: Mutex<Batches>,
    /// Writers wait at the one of their batch's number, odd or even.
    woken: [Condvar; 2],
    value: &'a [u8],
}

impl LeaderLog {
    /// Makes the file in `directory`.
    ///
    /// # Errors
    /// If the file system refuses.
    pub fn new(by: SyncBy, directory: &Path) -> Result<Self, Box<dyn Error>> {
        let path = directory.join(format!("{by:?}.log"));
        let flags = OFlags::CREATE | OFlags::RDWR | OFlags::CLOEXEC;
        let mode = Mode::RUSR | Mode::WUSR;
        let file = openat(CWD, &path, flags, mode)?;
        if by != SyncBy::AppendFdatasync {
            let zeros = vec![0; 1 << 20];
            for offset in (0..FILE_LEN).step_by(zeros.len()) {
                write_all(&file, &zeros, offset)?;
            }
            fdatasync(&file)?;
        }
        let direct = OFlags::DIRECT | OFlags::DSYNC;
        let file = if by == SyncBy::DirectDsync {
            openat(CWD, &path, flags | direct, mode)?
        } else {
            file
        };
        Ok(Self { by, path, file, counters: DiskCounters::of(directory) })
    }

    /// Measures that many writers once.
    ///
    /// # Errors
    /// If the file cannot be emptied.
    ///
    /// # Panics
    /// If the disk or a thread fails.
    pub fn measure(&self, writers: usize, values: &mut Values, turns: Turns) -> io::Result<Sample> {
        if self.by == SyncBy::AppendFdatasync {
            ftruncate(&self.file, 0)?;
        }
        let user_bytes = values.user_bytes();
        let shared = Shared::new(self, values.of(42));
        let work = |_, phase: &Phase| phase.repeat(|| shared.write_one());
        Ok(threads::measure(writers, turns, &self.counters, user_bytes, work))
    }

    /// Writes a batch and makes it durable; returns where the next goes.
    fn write(&self, batch: &mut IoBuffer, offset: u64) -> io::Result<u64> {
        if self.by == SyncBy::DirectDsync {
            let len = batch.len();
            batch.set_len(len.next_multiple_of(BLOCK_SIZE));
        }
        let len = batch.len() as u64;
        // A growing file begins again as well, only later: the disk is not ours alone.
        let limit = if self.by == SyncBy::AppendFdatasync { 16 * FILE_LEN } else { FILE_LEN };
        let offset = if offset + len > limit { 0 } else { offset };
        write_all(&self.file, batch.as_slice(), offset)?;
        if self.by != SyncBy::DirectDsync {
            fdatasync(&self.file)?;
        }
        Ok(offset + len)
    }
}

impl Drop for LeaderLog {
    fn drop(&mut self) {
        // What is left goes with the temporary directory.
        let _ = std::fs::remove_file(&self.path);
    }
}

impl<'a> Shared<'a> {
    fn new(log: &'a LeaderLog, value: &'a [u8]) -> Self {
        let batches = Batches {
            filling: IoBuffer::with_capacity(BATCH_LEN_MAX),
            spare: Some(IoBuffer::with_capacity(BATCH_LEN_MAX)),
            number: 1,
            durable: 0,
            offset: 0,
        };
        Self { log, batches: Mutex::new(batches), woken: Default::default(), value }
    }

    /// Writes a record and waits until it is durable.
    fn write_one(&self) {
        // A header as long as ours, with a checksum over the value.
        let mut header = [0; 128];
        header[..4].copy_from_slice(&wal::checksum::plain(self.value).to_le_bytes());
        self.append(&header[..header_len(self.value.len())]);
    }

    fn append(&self, header: &[u8]) {
        let mut batches = self.lock();
        let len = header.len() + self.value.len();
        while batches.filling.len() + len > BATCH_LEN_MAX {
            let full = batches.number;
            batches = self.advance(batches, full);
        }
        batches.filling.extend_from_slice(header);
        batches.filling.extend_from_slice(self.value);
        let own = batches.number;
        while batches.durable < own {
            batches = self.advance(batches, own);
        }
    }

    /// Leads the filling batch to the disk; while one is under way, waits for it or the own one.
    fn advance<'b>(
        &'b self,
        mut batches: MutexGuard<'b, Batches>,
        own: u64,
    ) -> MutexGuard<'b, Batches> {
        let Some(empty) = batches.spare.take() else {
            return self.woken[(own % 2) as usize].wait(batches).expect("no writer panics");
        };
        let number = batches.number;
        let mut batch = std::mem::replace(&mut batches.filling, empty);
        batches.number += 1;
        let offset = batches.offset;
        drop(batches);
        let end = self.log.write(&mut batch, offset).expect("the disk takes what it took before");
        batch.set_len(0);
        let mut batches = self.lock();
        batches.offset = end;
        batches.durable = number;
        batches.spare = Some(batch);
        self.woken[(number % 2) as usize].notify_all();
        self.woken[((number + 1) % 2) as usize].notify_one();
        batches
    }

    fn lock(&self) -> MutexGuard<'_, Batches> {
        self.batches.lock().expect("no writer panics")
    }
}

fn write_all(file: &OwnedFd, mut bytes: &[u8], mut offset: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        let written = pwrite(file, bytes, offset)?;
        bytes = &bytes[written..];
        offset += written as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The baseline must not be fast by losing records: each is in the file once, whole, and at
    /// once after its append has returned.
    #[test]
    fn every_appended_record_is_in_the_file() {
        let directory = tempfile::tempdir().unwrap();
        let log = LeaderLog::new(SyncBy::AppendFdatasync, directory.path()).unwrap();
        let value = [0xee; 24];
        let shared = Shared::new(&log, &value);
        std::thread::scope(|scope| {
            for thread in 0..8_u8 {
                let (shared, path) = (&shared, &log.path);
                scope.spawn(move || {
                    for number in 0..50_u8 {
                        let header = [thread, number, 0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff];
                        shared.append(&header);
                        if number % 10 == 0 {
                            let bytes = std::fs::read(path).unwrap();
                            assert!(bytes.chunks_exact(32).any(|record| record[..8] == header));
                        }
                    }
                });
            }
        });
        let bytes = std::fs::read(&log.path).unwrap();
        let mut found: Vec<(u8, u8)> = bytes
            .chunks_exact(32)
            .inspect(|record| assert_eq!(record[8..], value))
            .map(|record| (record[0], record[1]))
            .collect();
        found.sort_unstable();
        let all = (0..8).flat_map(|thread| (0..50).map(move |number| (thread, number)));
        assert_eq!(found, all.collect::<Vec<_>>());
    }
}
