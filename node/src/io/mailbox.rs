//! A thread's mailbox: messages of other threads, and what ends the wait of its driver.
//!
//! Senders push into a lock-free queue and write to a socket only if the receiver says that it is
//! about to wait, or does already: between busy threads a message costs no system call.
//!
//! ```text
//! receiver: waiting = true, looks into the queue once more, waits    | no order of these four
//! sender:   pushes, takes `waiting`, writes a byte if it was true    | steps loses a message
//! ```

use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::sync::mpsc::{self, Receiver, Sender};

/// The end of a socket that becomes readable when the thread has mail; a driver watches it.
#[derive(Debug)]
pub struct WakeSocket(UnixStream);

impl AsFd for WakeSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[derive(Debug)]
struct Bell {
    waiting: AtomicBool,
    socket: UnixStream,
}

/// The way to a thread.
#[derive(Debug)]
pub struct Outbox<T> {
    queue: Sender<T>,
    bell: Arc<Bell>,
}

impl<T> Clone for Outbox<T> {
    fn clone(&self) -> Self {
        Self { queue: self.queue.clone(), bell: Arc::clone(&self.bell) }
    }
}

impl<T> Outbox<T> {
    /// Leaves a message; one for a thread that has ended is dropped.
    pub fn send(&self, message: T) {
        if self.queue.send(message).is_err() {
            return;
        }
        fence(Ordering::SeqCst);
        if self.bell.waiting.swap(false, Ordering::SeqCst) {
            // A socket that is full wakes its reader as well, and one that is closed has none.
            let _ = (&self.bell.socket).write(&[1]);
        }
    }
}

/// The messages for a thread.
#[derive(Debug)]
pub struct Inbox<T> {
    queue: Receiver<T>,
    next: Option<T>,
    bell: Arc<Bell>,
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
        self.bell.waiting.store(true, Ordering::SeqCst);
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
        self.bell.waiting.store(false, Ordering::SeqCst);
    }
}

/// Makes a mailbox: the way to it, the mail, and what the driver of its thread is to watch.
///
/// # Errors
/// If the kernel gives no socket.
pub fn mailbox<T>() -> io::Result<(Outbox<T>, Inbox<T>, WakeSocket)> {
    let (reader, writer) = UnixStream::pair()?;
    writer.set_nonblocking(true)?;
    let bell = Arc::new(Bell { waiting: AtomicBool::new(false), socket: writer });
    let (sender, queue) = mpsc::channel();
    let outbox = Outbox { queue: sender, bell: Arc::clone(&bell) };
    Ok((outbox, Inbox { queue, next: None, bell }, WakeSocket(reader)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn bell_rings_once_and_only_for_a_waiting_thread() {
        let (outbox, mut inbox, socket) = mailbox().unwrap();
        socket.0.set_nonblocking(true).unwrap();
        let rings = || (&socket.0).read(&mut [0; 8]).ok();
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
                (&socket.0).read_exact(&mut [0]).unwrap();
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
