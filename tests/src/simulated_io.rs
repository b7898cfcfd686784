//! [`SimulatedIo`]: the simulated disk behind the node's own seam, with a virtual clock.
//!
//! Disk requests only: there is no simulated network yet.

use std::io;

use kadring::io::{Completion, DiskOwner, Io, Monotonic, ReceiveBuffer, Request, WallClock};

use crate::disk::SimulatedDisk;

/// The wall clock at the start, in ms since 1970.
const START_MS: u64 = 1_700_000_000_000;

/// A driver without a kernel.
#[derive(Debug)]
pub struct SimulatedIo {
    disk: SimulatedDisk,
    now_ns: u64,
}

impl SimulatedIo {
    /// Puts a disk behind the seam.
    #[must_use]
    pub fn new(disk: SimulatedDisk) -> Self {
        Self { disk, now_ns: 0 }
    }

    /// The disk, to look at or to damage.
    pub fn disk_mut(&mut self) -> &mut SimulatedDisk {
        &mut self.disk
    }
}

impl Io for SimulatedIo {
    fn submit(&mut self, request: Request) {
        match request {
            Request::Disk(owner, request) => self.disk.submit(owner.0, request),
            other => panic!("{other:?}: there is no simulated network"),
        }
    }

    /// Completes one request, whichever the disk's seed says; with none in flight, time passes up
    /// to the deadline.
    fn wait(&mut self, deadline: Option<Monotonic>, done: &mut Vec<Completion>) -> io::Result<()> {
        match self.disk.complete_one() {
            Some((owner, completion)) => {
                done.push(Completion::Disk(DiskOwner(owner), completion));
            }
            None => {
                let deadline = deadline.expect("nothing is in flight: this would wait for ever");
                self.now_ns = self.now_ns.max(deadline.0);
            }
        }
        Ok(())
    }

    fn release(&mut self, buffer: ReceiveBuffer) {
        panic!("{buffer:?}: there is no simulated network");
    }

    fn now(&self) -> (Monotonic, WallClock) {
        (Monotonic(self.now_ns), WallClock(START_MS + self.now_ns / 1_000_000))
    }

    fn name(&self) -> &'static str {
        "simulated"
    }
}
