//! [`Ring`]: the submission and completion queues, and the one place that enters the kernel.

use std::collections::VecDeque;
use std::io;
use std::time::Duration;

use io_uring::types::{SubmitArgs, Timespec};
use io_uring::{Builder, IoUring, squeue};
use rustix::io::Errno;

use super::probe::{Abilities, ProbeError, check_abilities};

/// The completion queue's size over the submission queue's: completions of one turn should fit.
const COMPLETIONS_PER_SUBMISSION: u32 = 4;

/// Flag of io_uring_enter(2): run deferred work and post completions.
const ENTER_GETEVENTS: u32 = 1;

/// A completion queue entry, copied out.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cqe {
    pub(super) user_data: u64,
    pub(super) result: i32,
    pub(super) flags: u32,
}

impl Cqe {
    /// The result, or the error the kernel reports as a negative one. The result of a notification
    /// is neither.
    pub(super) fn outcome(self) -> Result<usize, Errno> {
        usize::try_from(self.result).map_err(|_| Errno::from_raw_os_error(-self.result))
    }

    /// Whether this is the last completion of its request.
    pub(super) fn is_last(self) -> bool {
        !io_uring::cqueue::more(self.flags)
    }
}

/// What an entry into the kernel led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Entered {
    /// It returned as asked; there may be completions.
    Done,
    /// The time was over.
    TimedOut,
    /// A signal interrupted it.
    Interrupted,
    /// The kernel cannot take more before completions are drained, or is short of memory.
    Busy,
}

/// The ring and the entries that its submission queue had no room for.
pub(super) struct Ring {
    ring: IoUring,
    backlog: VecDeque<squeue::Entry>,
    refused: Vec<&'static str>,
}

impl Ring {
    /// Makes a ring with every flag this kernel accepts, of those that may be used.
    pub(super) fn new(entries: u32, abilities: Abilities) -> Result<Self, ProbeError> {
        let (ring, refused) = build(entries, abilities)?;
        check_abilities(&ring)?;
        Ok(Self { ring, backlog: VecDeque::new(), refused })
    }

    /// Set-up flags that the kernel refused, or that were not to be used.
    pub(super) fn refused(&self) -> &[&'static str] {
        &self.refused
    }

    /// The ring itself, for registrations.
    pub(super) fn kernel(&self) -> &IoUring {
        &self.ring
    }

    /// Queues an entry for the next [`Ring::enter`].
    ///
    /// # Safety
    /// All memory, addresses and descriptors the entry names stay valid until its last completion
    /// has been drained, and memory it may write to is not used otherwise.
    pub(super) unsafe fn push(&mut self, entry: squeue::Entry) {
        if self.backlog.is_empty() {
            let mut queue = self.ring.submission();
            // SAFETY: the caller promises what the submission queue asks.
            if unsafe { queue.push(&entry) }.is_ok() {
                return;
            }
        }
        self.backlog.push_back(entry);
    }

    /// Takes back the entries the kernel has not been told of.
    pub(super) fn take_backlog(&mut self) -> VecDeque<squeue::Entry> {
        std::mem::take(&mut self.backlog)
    }

    /// Submits everything and waits for a completion, at most `timeout` (for ever, if none; no
    /// time at all only lets work that is done complete).
    pub(super) fn enter(
        &mut self,
        timeout: Option<Duration>,
        drained: &mut Vec<Cqe>,
    ) -> io::Result<Entered> {
        while self.refill() {
            match sort(self.ring.submit().map(drop))? {
                Entered::Done => self.drain(drained),
                other => {
                    self.drain(drained);
                    return Ok(other);
                }
            }
        }
        let timeout = if drained.is_empty() { timeout } else { Some(Duration::ZERO) };
        let entered = match timeout {
            Some(Duration::ZERO) => self.enter_without_waiting(),
            Some(timeout) => {
                let timeout = Timespec::from(timeout);
                let args = SubmitArgs::new().timespec(&timeout);
                self.ring.submitter().submit_with_args(1, &args)
            }
            None => self.ring.submit_and_wait(1),
        };
        let entered = sort(entered.map(drop))?;
        self.drain(drained);
        // Completions that found the queue full wait in the kernel until it is entered again.
        while self.ring.submission().cq_overflow() {
            if sort(self.enter_without_waiting().map(drop))? != Entered::Done {
                break;
            }
            self.drain(drained);
        }
        Ok(entered)
    }

    fn enter_without_waiting(&mut self) -> io::Result<usize> {
        let submissions = self.ring.submission().len();
        let submissions = u32::try_from(submissions).expect("a queue has fewer than 2^32 entries");
        let submitter = self.ring.submitter();
        // SAFETY: without an argument, and with no more submissions than the queue holds, entering
        // touches nothing but what the entries name, and `push` vouches for that.
        unsafe { submitter.enter::<u64>(submissions, 0, ENTER_GETEVENTS, None) }
    }

    /// Moves entries from the backlog into the queue; answers whether some had no room.
    fn refill(&mut self) -> bool {
        let mut queue = self.ring.submission();
        while let Some(entry) = self.backlog.front() {
            // SAFETY: whoever pushed the entry vouched for it until its completion.
            if unsafe { queue.push(entry) }.is_err() {
                return true;
            }
            self.backlog.pop_front();
        }
        false
    }

    fn drain(&mut self, drained: &mut Vec<Cqe>) {
        drained.extend(self.ring.completion().map(|cqe| Cqe {
            user_data: cqe.user_data(),
            result: cqe.result(),
            flags: cqe.flags(),
        }));
    }
}

fn sort(entered: io::Result<()>) -> io::Result<Entered> {
    let Err(error) = entered else {
        return Ok(Entered::Done);
    };
    match Errno::from_io_error(&error) {
        Some(Errno::TIME) => Ok(Entered::TimedOut),
        Some(Errno::INTR) => Ok(Entered::Interrupted),
        Some(Errno::BUSY | Errno::AGAIN | Errno::BADR) => Ok(Entered::Busy),
        _ => Err(error),
    }
}

/// A set-up flag: its name, and how it is set.
type Flag = (&'static str, fn(&mut Builder));

/// Set-up flags, newest first, in the order in which an older kernel makes us drop them.
const FLAGS: [Flag; 5] = [
    ("NO_SQARRAY", |builder| {
        builder.setup_no_sqarray();
    }),
    ("DEFER_TASKRUN", |builder| {
        builder.setup_defer_taskrun();
    }),
    ("SINGLE_ISSUER", |builder| {
        builder.setup_single_issuer();
    }),
    ("COOP_TASKRUN", |builder| {
        builder.setup_coop_taskrun();
    }),
    ("SUBMIT_ALL", |builder| {
        builder.setup_submit_all();
    }),
];

/// How many of these are not to be used: with 6.1, NO_SQARRAY, which is of 6.6.
const fn withheld(abilities: Abilities) -> usize {
    match abilities {
        Abilities::Probed => 0,
        Abilities::Linux6_1 => 1,
        Abilities::Fewest => FLAGS.len(),
    }
}

fn build(entries: u32, abilities: Abilities) -> Result<(IoUring, Vec<&'static str>), ProbeError> {
    let withheld = &FLAGS[..withheld(abilities)];
    let mut refused: Vec<_> = withheld.iter().map(|(name, _)| *name).collect();
    loop {
        let mut builder = IoUring::builder();
        builder.dontfork().setup_clamp().setup_cqsize(entries * COMPLETIONS_PER_SUBMISSION);
        for (_, set) in &FLAGS[refused.len()..] {
            set(&mut builder);
        }
        match builder.build(entries) {
            Ok(ring) => return Ok((ring, refused)),
            Err(error)
                if Errno::from_io_error(&error) == Some(Errno::INVAL)
                    && refused.len() < FLAGS.len() =>
            {
                refused.push(FLAGS[refused.len()].0);
            }
            Err(error) => return Err(ProbeError::explain(error)),
        }
    }
}
