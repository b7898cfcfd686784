//! [`Signals`]: SIGTERM and SIGINT as bytes on a socket that a driver reads.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use rustix::process::Signal;
use signal_hook::SigId;
use signal_hook::low_level::{pipe, unregister};

/// The reading end of the socket; the handlers go when it is dropped.
#[derive(Debug)]
pub(crate) struct Signals {
    reader: UnixStream,
    handlers: Vec<SigId>,
}

impl Signals {
    /// Installs the handlers. Reads on the socket block unless the driver changes that.
    pub(crate) fn install() -> io::Result<Self> {
        let (reader, writer) = UnixStream::pair()?;
        let mut signals = Self { reader, handlers: Vec::new() };
        for signal in [Signal::TERM, Signal::INT] {
            let id = pipe::register(signal.as_raw(), writer.try_clone()?)?;
            signals.handlers.push(id);
        }
        Ok(signals)
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.reader.as_fd()
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        for id in self.handlers.drain(..) {
            unregister(id);
        }
    }
}
