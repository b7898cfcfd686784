//! [`RawRig`]: a driver without a store, whose figures are the ceiling of the store's.

use crate::driver::{AnyIo, Driver};
use kadring::event_loop::run_procedure;
use kadring::io::{Completion, DiskOwner, Io, Request};
use std::error::Error;
use std::path::Path;
use wal::disk::{
    DiskCompletion, DiskError, DiskOperation, DiskOutput, DiskRequest, IoBuffer, RequestId,
};
use wal::procedure::Procedure;

const OWNER: DiskOwner = DiskOwner(0);
/// The operation that [`RawRig::call`] waits for.
const CALL: u64 = u64::MAX;

/// A driver on a data directory.
#[derive(Debug)]
pub struct RawRig {
    io: AnyIo,
    done: Vec<Completion>,
}

impl RawRig {
    /// Opens the data directory at `path`, past the page cache if `direct` and possible.
    ///
    /// # Errors
    /// The directory's or the driver's own.
    pub fn open(driver: Driver, path: &Path, direct: bool) -> Result<Self, Box<dyn Error>> {
        Ok(Self { io: driver.open(path, direct)?, done: Vec::new() })
    }

    /// The driver.
    #[must_use]
    pub fn io(&self) -> &AnyIo {
        &self.io
    }

    /// Starts an operation; its completion has that number.
    pub fn submit(&mut self, number: u64, operation: DiskOperation) {
        let request = DiskRequest { id: RequestId(number), operation };
        self.io.submit(Request::Disk(OWNER, request));
    }

    /// Waits for at least one completion.
    ///
    /// # Panics
    /// If the driver fails.
    pub fn wait(&mut self, mut each: impl FnMut(DiskCompletion)) {
        self.io.wait(None, &mut self.done).expect("the driver works");
        for completion in self.done.drain(..) {
            match completion {
                Completion::Disk(_, completion) => each(completion),
                other => unreachable!("{other:?} without sockets or signals"),
            }
        }
    }

    /// Carries out one operation; nothing else may be under way.
    ///
    /// # Errors
    /// The disk's.
    pub fn call(&mut self, operation: DiskOperation) -> Result<DiskOutput, DiskError> {
        self.submit(CALL, operation);
        let mut result = None;
        while result.is_none() {
            self.wait(|completion| result = Some(completion.result));
        }
        result.expect("it has ended")
    }

    /// Carries out a procedure; nothing else may be under way.
    ///
    /// # Errors
    /// The driver's.
    pub fn run<T>(&mut self, procedure: Procedure<T>) -> std::io::Result<T> {
        Ok(run_procedure(&mut self.io, OWNER, procedure)?.0)
    }

    /// A buffer of `len` bytes, all valid, of the memory the driver likes best.
    #[must_use]
    pub fn buffer(&self, len: usize) -> IoBuffer {
        let mut buffer = self.io.buffers().take(len);
        buffer.set_len(len);
        buffer
    }
}
