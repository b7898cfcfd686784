//! Waking other threads by messages between rings (MSG_RING), and being woken so.
//!
//! A message is an entry among those that the turn submits anyway: it takes no system call of its
//! own, neither here nor, as the socket's byte need not be read, there. Its only content is that
//! there is mail. Where it cannot be delivered the bell is rung by its socket.

use std::os::fd::{AsRawFd, BorrowedFd};

use io_uring::types::Fd;
use io_uring::{IoUring, opcode, squeue};

use super::op::Op;
use super::ring::Cqe;
use super::{MAIL, UringIo};
use crate::io::mailbox::{Bell, WakeSocket};

/// What the driver knows of bells.
#[derive(Debug)]
pub(super) struct Bells {
    /// Whether rings of this kernel take messages of other threads.
    offered: bool,
    /// Messages that have not been delivered yet.
    under_way: usize,
    /// Messages delivered.
    pub(super) delivered: u64,
}

impl Bells {
    pub(super) const fn new(offered: bool) -> Self {
        Self { offered, under_way: 0, delivered: 0 }
    }

    /// Whether somebody sleeps until the kernel is entered.
    pub(super) const fn is_ringing(&self) -> bool {
        self.under_way > 0
    }

    /// Has others ring at this ring.
    pub(super) fn offer(&self, ring: &IoUring, wake: &WakeSocket) {
        if !self.offered {
            return;
        }
        // SAFETY: the ring is open as long as it is borrowed; the borrowed descriptor ends before.
        let fd = unsafe { BorrowedFd::borrow_raw(ring.as_raw_fd()) };
        match fd.try_clone_to_owned() {
            Ok(ring) => wake.offer_ring(ring),
            Err(error) => tracing::debug!(%error, "other threads ring by the socket"),
        }
    }

    /// Takes the end of a message.
    pub(super) fn handle_rung(&mut self, bell: &Bell, cqe: Cqe) {
        self.under_way -= 1;
        match cqe.outcome() {
            Ok(_) => self.delivered += 1,
            Err(error) => {
                tracing::debug!(%error, "a message to another ring was not delivered");
                bell.ring();
            }
        }
    }
}

impl UringIo {
    pub(super) fn submit_ring(&mut self, bell: Bell) {
        if self.bells.offered && bell.ring_fd().is_some() {
            self.bells.under_way += 1;
            self.start(Op::Ring(bell));
        } else {
            bell.ring();
        }
    }

    /// Other threads that were woken by a message between rings.
    #[must_use]
    pub fn rings_delivered(&self) -> u64 {
        self.bells.delivered
    }
}

/// The entry that rings.
pub(super) fn entry(bell: &Bell) -> squeue::Entry {
    // Without a ring the kernel refuses the descriptor, and the bell is rung by its socket.
    let ring = Fd(bell.ring_fd().unwrap_or(-1));
    opcode::MsgRingData::new(ring, 0, MAIL, None).build()
}
