//! [`Progress`]: how far a run is, on stderr: a bar if that is a terminal, else a line at every
//! twentieth part.

use std::io::{IsTerminal as _, Write as _, stderr};
use std::sync::atomic::{AtomicU64, Ordering};

const WIDTH: u64 = 40;
/// Lines where there is no terminal.
const LINES: u64 = 20;
/// Times that a bar is drawn.
const DRAWN: u64 = 400;

/// How far a run is.
#[derive(Debug)]
pub(super) struct Progress {
    what: String,
    done: AtomicU64,
    all: u64,
    is_terminal: bool,
}

impl Progress {
    /// Nothing is done yet of so much.
    pub(super) fn new(what: &str, all: u64) -> Self {
        let (done, is_terminal) = (AtomicU64::new(0), stderr().is_terminal());
        Self { what: what.to_owned(), done, all, is_terminal }
    }

    /// One more is done.
    pub(super) fn step(&self) {
        let done = 1 + self.done.fetch_add(1, Ordering::Relaxed);
        self.tell(done - 1, done);
    }

    /// So much is done.
    pub(super) fn set(&self, done: u64) {
        self.tell(self.done.swap(done, Ordering::Relaxed), done);
    }

    /// Something else is written to stderr: not into the bar's line.
    pub(super) fn clear(&self) {
        if self.is_terminal {
            eprint!("\r\x1b[K");
        }
    }

    fn tell(&self, before: u64, done: u64) {
        let (what, all) = (&self.what, self.all);
        if self.is_terminal && is_due(before, done, all, DRAWN) {
            eprint!("\r{} {done} of {all} {what}\x1b[K", bar(done, all));
            if done >= all {
                eprintln!();
            }
            // What is not shown is no reason to stop.
            let _ = stderr().flush();
        } else if !self.is_terminal && is_due(before, done, all, LINES) {
            eprintln!("{what}: {done} of {all}");
        }
    }
}

/// Whether one of so many parts has been completed.
fn is_due(before: u64, done: u64, all: u64, parts: u64) -> bool {
    let all = all.max(1);
    done.saturating_mul(parts) / all > before.saturating_mul(parts) / all
}

fn bar(done: u64, all: u64) -> String {
    let filled = (done.saturating_mul(WIDTH) / all.max(1)).min(WIDTH);
    let part = |sign: &str, count: u64| sign.repeat(usize::try_from(count).unwrap_or(0));
    format!("[{}{}]", part("#", filled), part(".", WIDTH - filled))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bar_grows_from_nothing_to_all_and_no_further() {
        for (done, filled) in [(0, 0), (1, 0), (5, 1), (100, 20), (200, 40), (300, 40)] {
            assert_eq!(bar(done, 200).matches('#').count(), filled, "{done}");
            assert_eq!(bar(done, 200).len(), 42);
        }
        assert_eq!(bar(0, 0).len(), 42);
    }

    #[test]
    fn it_is_told_so_often_and_at_the_end() {
        for all in [1, 7, 200, 10_000] {
            let told = (0..all).filter(|before| is_due(*before, before + 1, all, LINES)).count();
            assert_eq!(told as u64, all.min(LINES), "{all}");
            assert!(is_due(all - 1, all, all, LINES));
        }
    }
}
