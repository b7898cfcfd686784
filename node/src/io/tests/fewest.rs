//! The ring as an old kernel would have it: the suite runs on this one, too.

use std::io;
use std::rc::Rc;

use wal::disk::BufferSource;

use super::{Driver, ring_or_excuse};
use crate::io::directory::DataDirectory;
use crate::io::uring::{Abilities, UringIo, UringOptions};
use crate::io::{
    BufferStatistics, Completion, DatagramStatistics, Io, Monotonic, ReceiveBuffer, Request,
    SendStatistics, WallClock,
};

/// [`UringIo`] with what it cannot do without.
pub(super) struct FewestUringIo(UringIo);

impl Driver for FewestUringIo {
    // Nothing puts it off until the ring is entered.
    const RECEIVES_UNASKED: bool = true;

    fn open(directory: DataDirectory, handle_signals: bool) -> Option<Self> {
        // Nothing is registered either.
        let (buffer_bytes, abilities) = (0, Abilities::Fewest);
        let options =
            UringOptions { handle_signals, buffer_bytes, abilities, ..UringOptions::default() };
        let io = ring_or_excuse(directory, options)?;
        assert_eq!(io.flags_refused().len(), 5, "no set-up flag is used");
        Some(Self(io))
    }

    fn things_held(&self) -> usize {
        self.0.things_held()
    }
}

impl Io for FewestUringIo {
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

    fn datagram_statistics(&self) -> DatagramStatistics {
        self.0.datagram_statistics()
    }

    fn send_statistics(&self) -> SendStatistics {
        self.0.send_statistics()
    }
}
