//! How many bytes went to and came from the disk: by this process, and on the device by anybody.
//!
//! The process' own figures (`/proc/self/io`) are what ratios are made of: neighbours do not
//! disturb them. They hold what the process asked the block layer for; the file system's journal is
//! not in them, and a buffered write counts as much of the page cache as it makes dirty, which can
//! be a megabyte for a few bytes. The device's figures (`/sys/block/*/stat`) hold everything, the
//! neighbours' traffic too, and stand beside them.

use crate::machine::block_device;
use std::path::{Path, PathBuf};

/// The unit of the device's figures.
const SECTOR_LEN: u64 = 512;

/// Bytes since some start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskBytes {
    /// Read by this process.
    pub process_read: u64,
    /// Written by this process.
    pub process_written: u64,
    /// Read from the device by anybody; 0 if there is no device to ask.
    pub device_read: u64,
    /// Written to the device by anybody; 0 if there is no device to ask.
    pub device_written: u64,
}

impl DiskBytes {
    /// What came after `earlier`.
    #[must_use]
    pub fn since(self, earlier: Self) -> Self {
        Self {
            process_read: self.process_read.saturating_sub(earlier.process_read),
            process_written: self.process_written.saturating_sub(earlier.process_written),
            device_read: self.device_read.saturating_sub(earlier.device_read),
            device_written: self.device_written.saturating_sub(earlier.device_written),
        }
    }
}

/// Where the figures are read.
#[derive(Clone, Debug)]
pub struct DiskCounters {
    device: Option<PathBuf>,
}

impl DiskCounters {
    /// Counts on the device under `directory`.
    #[must_use]
    pub fn of(directory: &Path) -> Self {
        Self { device: block_device(directory).map(|device| device.join("stat")) }
    }

    /// Reads all figures.
    #[must_use]
    pub fn read(&self) -> DiskBytes {
        let own = std::fs::read_to_string("/proc/self/io").unwrap_or_default();
        let device = self.device.as_ref().and_then(|file| std::fs::read_to_string(file).ok());
        parse(&own, &device.unwrap_or_default())
    }
}

fn parse(own: &str, device: &str) -> DiskBytes {
    let line = |name: &str| {
        let found = own.lines().find_map(|line| line.strip_prefix(name));
        found.and_then(|count| count.trim().parse().ok()).unwrap_or(0)
    };
    let sectors = |field: usize| {
        let found = device.split_whitespace().nth(field);
        found.and_then(|count| count.parse::<u64>().ok()).unwrap_or(0) * SECTOR_LEN
    };
    DiskBytes {
        process_read: line("read_bytes:"),
        process_written: line("write_bytes:"),
        device_read: sectors(2),
        device_written: sectors(6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_taken_from_the_right_fields() {
        let own = "rchar: 6\nwchar: 7\nread_bytes: 4096\nwrite_bytes: 8192\ncancelled: 5\n";
        let found = parse(own, " 10 1 3 40 50 2 7 80 0 9 9\n");
        let expected = DiskBytes {
            process_read: 4096,
            process_written: 8192,
            device_read: 3 * 512,
            device_written: 7 * 512,
        };
        assert_eq!(found, expected);
        assert_eq!(found.since(DiskBytes { process_read: 96, ..found }).process_read, 4000);
    }
}
