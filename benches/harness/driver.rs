//! The drivers a bench can choose from.

use kadring::io::directory::{DataDirectory, DirectoryOptions};
use kadring::io::pread::{PreadIo, PreadOptions};
use kadring::io::tokio_uring::{TokioUringIo, TokioUringOptions};
use kadring::io::uring::{UringIo, UringOptions};
use kadring::io::{BufferStatistics, Completion, Io, Monotonic, ReceiveBuffer, Request, WallClock};
use std::error::Error;
use std::fmt;
use std::io;
use std::path::Path;
use std::rc::Rc;
use wal::disk::BufferSource;

/// A driver by name.
#[derive(Clone, Copy)]
pub struct Driver {
    /// What `--io` calls it.
    pub name: &'static str,
    open: fn(DataDirectory) -> Result<AnyIo, Box<dyn Error>>,
}

/// All of them; a number after `pread` is that of its threads.
pub const DRIVERS: [Driver; 6] = [
    Driver { name: "uring", open: uring },
    Driver { name: "tokio-uring", open: tokio_uring },
    Driver { name: "pread-1", open: |directory| pread(directory, 1) },
    Driver { name: "pread-4", open: |directory| pread(directory, 4) },
    Driver { name: "pread-16", open: |directory| pread(directory, 16) },
    Driver { name: "pread-64", open: |directory| pread(directory, 64) },
];

/// Finds drivers by name, or those of `default` if none is named.
///
/// # Errors
/// If there is none of that name.
pub fn drivers(named: &[String], default: &[&str]) -> Result<Vec<Driver>, String> {
    let default: Vec<String> = default.iter().map(|name| (*name).to_owned()).collect();
    let names = if named.is_empty() { &default } else { named };
    let find = |name: &String| {
        let found = DRIVERS.into_iter().find(|driver| driver.name == name);
        found.ok_or_else(|| {
            let known: Vec<&str> = DRIVERS.iter().map(|driver| driver.name).collect();
            format!("no driver {name}; there are {}", known.join(", "))
        })
    };
    names.iter().map(find).collect()
}

fn uring(directory: DataDirectory) -> Result<AnyIo, Box<dyn Error>> {
    let options = UringOptions { handle_signals: false, ..UringOptions::default() };
    Ok(AnyIo(Box::new(UringIo::new(directory, options)?)))
}

fn tokio_uring(directory: DataDirectory) -> Result<AnyIo, Box<dyn Error>> {
    let options = TokioUringOptions { handle_signals: false, ..TokioUringOptions::default() };
    Ok(AnyIo(Box::new(TokioUringIo::new(directory, options)?)))
}

fn pread(directory: DataDirectory, threads: usize) -> Result<AnyIo, Box<dyn Error>> {
    Ok(AnyIo(Box::new(PreadIo::new(directory, PreadOptions { threads, handle_signals: false })?)))
}

impl Driver {
    /// Opens the data directory at `path`, past the page cache if `direct` and possible.
    ///
    /// # Errors
    /// The directory's or the driver's own.
    pub fn open(&self, path: &Path, direct: bool) -> Result<AnyIo, Box<dyn Error>> {
        let options = DirectoryOptions { direct, ..DirectoryOptions::default() };
        let directory = DataDirectory::open(path, options)?;
        if direct && !directory.direct() {
            println!("NO O_DIRECT on {}: these are figures of the page cache", path.display());
        }
        (self.open)(directory)
    }
}

impl fmt::Debug for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

/// Any driver: contestants of one list are of one type.
pub struct AnyIo(Box<dyn Io>);

impl fmt::Debug for AnyIo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.name())
    }
}

impl Io for AnyIo {
    fn submit(&mut self, request: Request) {
        self.0.submit(request);
    }

    fn wait(&mut self, deadline: Option<Monotonic>, done: &mut Vec<Completion>) -> io::Result<()> {
        self.0.wait(deadline, done)
    }

    fn release(&mut self, buffer: ReceiveBuffer) {
        self.0.release(buffer);
    }

    fn now(&self) -> (Monotonic, WallClock) {
        self.0.now()
    }

    fn name(&self) -> &'static str {
        self.0.name()
    }

    fn buffers(&self) -> Rc<dyn BufferSource> {
        self.0.buffers()
    }

    fn buffer_statistics(&self) -> BufferStatistics {
        self.0.buffer_statistics()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Or the bench would measure heap memory where the node has registered buffers.
    #[test]
    fn any_driver_lends_the_buffers_of_the_one_inside() {
        let directory = tempfile::tempdir().unwrap();
        let uring = &drivers(&["uring".to_owned()], &[]).unwrap()[0];
        let Ok(io) = uring.open(directory.path(), false) else {
            return println!("SKIPPED: this machine allows no ring");
        };
        let buffer = io.buffers().take(1);
        assert_eq!(io.buffer_statistics().taken, 1, "{:?}", io.buffer_statistics());
        drop(buffer);
    }
}
