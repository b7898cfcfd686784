//! What was sent and answered, on disk, for looking into a failure.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::PathBuf;
use std::sync::Mutex;

use super::lock;
use crate::ledger::Window;
use crate::resp_client::Reply;
use crate::workload::Request;

/// The record on disk of what was sent and answered.
pub(super) struct Journal {
    directory: PathBuf,
    state: Mutex<(u64, BufWriter<File>)>,
}

impl Journal {
    pub(super) fn create(directory: PathBuf) -> io::Result<Self> {
        let file = File::create(directory.join("journal-0.log"))?;
        Ok(Self { directory, state: Mutex::new((0, BufWriter::new(file))) })
    }

    pub(super) fn line(&self, text: fmt::Arguments<'_>) {
        // A write error comes back at the next flush, which is checked.
        drop(writeln!(lock(&self.state).1, "{text}"));
    }

    pub(super) fn settled(
        &self,
        connection: u32,
        request: &Request,
        reply: Option<&Reply>,
        window: Window,
    ) {
        let reply = reply.map_or_else(|| "no reply".to_owned(), Reply::brief);
        let (sent, received) = (window.sent, window.received);
        let effect = &request.effect;
        self.line(format_args!("{sent} {received} c{connection} {effect:?} -> {reply}"));
    }

    pub(super) fn flush(&self) -> io::Result<()> {
        lock(&self.state).1.flush()
    }

    pub(super) fn roll(&self) -> io::Result<()> {
        let mut state = lock(&self.state);
        state.1.flush()?;
        state.0 += 1;
        let path = |number: u64| self.directory.join(format!("journal-{number}.log"));
        state.1 = BufWriter::new(File::create(path(state.0))?);
        match state.0.checked_sub(2).map(|old| fs::remove_file(path(old))) {
            Some(Err(error)) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}
