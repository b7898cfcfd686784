//! A thread's mailbox: messages of other threads, and what ends the wait of its driver.
//!
//! Senders push into a lock-free queue and ring only if the receiver says that it is about to wait,
//! or does already: between busy threads a message costs nothing more. A ring rings a ring by a
//! message, together with what it submits anyway; everybody else writes to a socket.
//!
//! ```text
//! receiver: waiting = true, looks into the queue once more, waits    | no order of these four
//! sender:   pushes, takes `waiting`, rings if it was true            | steps loses a message
//! ```

use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, OnceLock};

/// The end of a socket that becomes readable when the thread has mail; a driver watches it.
#[derive(Debug)]
pub struct WakeSocket {
    socket: UnixStream,
    shared: Arc<Shared>,
}

impl WakeSocket {
    /// Has those who can ring by a message to this ring from now on, beside the socket.
    pub(super) fn offer_ring(&self, ring: OwnedFd) {
        // A mailbox is watched once.
        let _ = self.shared.ring.set(ring);
    }
}

impl AsFd for WakeSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[derive(Debug)]
struct Shared {
    waiting: AtomicBool,
    socket: UnixStream,
    /// The receiver's ring, if it takes messages.
    ring: OnceLock<OwnedFd>,
}

/// What ends the wait of a thread that has mail.
#[derive(Debug)]
#[must_use = "the thread sleeps until it is rung"]
pub struct Bell(Arc<Shared>);

impl Bell {
    /// Rings by the socket.
    pub fn ring(&self) {
        // A socket that is full wakes its reader as well, and one that is closed has none.
        let _ = (&self.0.socket).write(&[1]);
    }

    /// The receiver's ring, if it takes messages; open as long as the bell is there.
    pub(super) fn ring_fd(&self) -> Option<RawFd> {
        self.0.ring.get().map(AsRawFd::as_raw_fd)
    }
}

/// The way to a thread.
#[derive(Debug)]
pub struct Outbox<T> {
    queue: Sender<T>,
    shared: Arc<Shared>,
}

impl<T> Clone for Outbox<T> {
    fn clone(&self) -> Self {
        Self { queue: self.queue.clone(), shared: Arc::clone(&self.shared) }
    }
}

impl<T> Outbox<T> {
    /// Leaves a message; one for a thread that has ended is dropped.
    pub fn send(&self, message: T) {
        if let Some(bell) = self.post(message) {
            bell.ring();
        }
    }

    /// As [`Self::send`], but leaves it to the caller to ring, if it has to be.
    pub fn post(&self, message: T) -> Option<Bell> {
        self.queue.send(message).ok()?;
        fence(Ordering::SeqCst);
        let sleeps = self.shared.waiting.swap(false, Ordering::SeqCst);
        sleeps.then(|| Bell(Arc::clone(&self.shared)))
    }
}

/// The messages for a thread.
#[derive(Debug)]
pub struct Inbox<T> {
    queue: Receiver<T>,
    next: Option<T>,
    shared: Arc<Shared>,
}

impl<T> Inbox<T> {
    /// Takes the oldest message.
    pub fn poll(&mut self) -> Option<T> {
        self.next.take().or_else(|| self.queue.try_recv().ok())
    }

    /// Says that the thread is about to wait for its driver. Returns whether it may: if not, there
    /// is mail already.
    #[must_use]
    pub fn begin_wait(&mut self) -> bool {
        self.shared.waiting.store(true, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        if self.next.is_none() {
            self.next = self.queue.try_recv().ok();
        }
        if self.next.is_some() {
            self.end_wait();
        }
        self.next.is_none()
    }

    /// Says that the thread does not wait any more.
    pub fn end_wait(&mut self) {
        self.shared.waiting.store(false, Ordering::SeqCst);
    }
}

/// Makes a mailbox: the way to it, the mail, and what the driver of its thread is to watch.
///
/// # Errors
/// If the kernel gives no socket.
pub fn mailbox<T>() -> io::Result<(Outbox<T>, Inbox<T>, WakeSocket)> {
    let (reader, writer) = UnixStream::pair()?;
    writer.set_nonblocking(true)?;
    let (waiting, ring) = (AtomicBool::new(false), OnceLock::new());
    let shared = Arc::new(Shared { waiting, socket: writer, ring });
    let (sender, queue) = mpsc::channel();
    let outbox = Outbox { queue: sender, shared: Arc::clone(&shared) };
    let socket = WakeSocket { socket: reader, shared: Arc::clone(&shared) };
    Ok((outbox, Inbox { queue, next: None, shared }, socket))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn bell_rings_once_and_only_for_a_waiting_thread() {
        let (outbox, mut inbox, socket) = mailbox().unwrap();
        socket.socket.set_nonblocking(true).unwrap();
        let rings = || (&socket.socket).read(&mut [0; 8]).ok();
        outbox.send(1);
        assert_eq!(rings(), None);
        assert!(!inbox.begin_wait(), "there is mail");
        outbox.send(2);
        assert_eq!(rings(), None);
        assert_eq!([inbox.poll(), inbox.poll(), inbox.poll()], [Some(1), Some(2), None]);
        assert!(inbox.begin_wait());
        outbox.send(3);
        outbox.send(4);
        assert_eq!(rings(), Some(1));
        inbox.end_wait();
        assert_eq!([inbox.poll(), inbox.poll(), inbox.poll()], [Some(3), Some(4), None]);
    }

    #[test]
    fn no_message_is_slept_through() {
        const MESSAGES: u32 = 100_000;
        let (outbox, mut inbox, socket) = mailbox().unwrap();
        let sender = std::thread::spawn(move || (0..MESSAGES).for_each(|n| outbox.send(n)));
        let mut expected = 0;
        while expected < MESSAGES {
            // Blocks for ever if the bell was not rung for what came meanwhile.
            if inbox.begin_wait() {
                (&socket.socket).read_exact(&mut [0]).unwrap();
                inbox.end_wait();
            }
            while let Some(message) = inbox.poll() {
                assert_eq!(message, expected);
                expected += 1;
            }
        }
        sender.join().unwrap();
    }
}
