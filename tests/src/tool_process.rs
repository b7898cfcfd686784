//! Runs a command of `kadring` that stays until it is told to stop, such as `kadring cluster`.

use std::ffi::OsString;
use std::io;
use std::process::ExitStatus;
use std::time::Duration;

use rustix::process::Signal;

use crate::node_process::{Running, command};

/// A command that runs. It is killed when this is dropped.
#[derive(Debug)]
pub struct ToolProcess {
    running: Running,
}

impl ToolProcess {
    /// Starts it with these arguments and a clean environment.
    ///
    /// # Errors
    /// When the process cannot be created.
    pub fn start(arguments: &[OsString], environment: &[(String, String)]) -> io::Result<Self> {
        Ok(Self { running: Running::start(command(&[], arguments, environment))? })
    }

    /// Waits for the next line on its standard output; none once it has closed that, or after
    /// `timeout`.
    #[must_use]
    pub fn line(&self, timeout: Duration) -> Option<String> {
        self.running.lines.recv_timeout(timeout).ok()
    }

    /// Waits until standard error contains `needle`, at most `timeout`.
    #[must_use]
    pub fn wait_for_error(&self, needle: &str, timeout: Duration) -> bool {
        self.running.wait_for_log(&[needle], timeout)
    }

    /// Sends SIGTERM.
    pub fn terminate(&self) {
        self.running.signal(Signal::TERM);
    }

    /// Sends SIGINT, as Ctrl-C on a terminal does.
    pub fn interrupt(&self) {
        self.running.signal(Signal::INT);
    }

    /// Kills it with SIGKILL and reaps it.
    ///
    /// # Errors
    /// When waiting for the process fails.
    pub fn kill9(mut self) -> io::Result<ExitStatus> {
        self.running.kill9()
    }

    /// Waits until it ends: its exit status, and what it wrote to standard error.
    ///
    /// # Errors
    /// When waiting for the process fails, or it is still there after `timeout`.
    pub fn wait_end(mut self, timeout: Duration) -> io::Result<(ExitStatus, String)> {
        let status = self.running.wait_exit(timeout)?;
        let status = status.ok_or_else(|| io::Error::other("the command goes on"))?;
        Ok((status, self.running.stderr_at_end()))
    }
}
