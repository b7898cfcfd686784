//! [`Turns`]: what the runtime's tasks and the driver tell each other, and when a turn is over.
//!
//! Each request becomes a task that owns what the kernel was told of and ends by leaving one
//! [`Event`] here. A wait of the driver is one `block_on` of [`Turns::over`]. The runtime hands
//! what its tasks have queued to the kernel only when it parks, and it parks only when no task can
//! run; so a turn must not be over before every new task has run once and the runtime has parked
//! after that. Each poll of [`Turns::over`] but the first comes after a park.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use super::datagrams::DatagramEvent;
use super::disk::Opened;
use super::network::NetworkEvent;
use crate::io::DiskOwner;
use wal::disk::DiskCompletion;

/// What a task has found out.
pub(super) enum Event {
    /// A disk request has ended; it may have opened a file.
    Disk {
        owner: DiskOwner,
        completion: DiskCompletion,
        opened: Option<Opened>,
    },
    /// Something about a socket.
    Network(NetworkEvent),
    /// Something about a UDP socket.
    Datagram(DatagramEvent),
    /// A signal to stop came.
    Terminate,
    Woken,
}

/// When a turn is over.
#[derive(Clone, Copy, Debug)]
pub(super) enum Until {
    /// When the kernel has what was submitted and has been asked once what is done.
    Polled,
    /// When something has happened, or after a time.
    Event(Option<Duration>),
}

/// What tasks leave for the driver, and how far they are.
#[derive(Default)]
pub(super) struct Turns {
    events: RefCell<Vec<Event>>,
    waker: RefCell<Option<Waker>>,
    /// Tasks that have not run yet.
    unstarted: Cell<usize>,
    /// Tasks that have not ended.
    running: Cell<usize>,
    /// Whether the turn is over but for tasks that have not run yet.
    closing: Cell<bool>,
    polled: Cell<bool>,
}

impl Turns {
    /// Makes a task. Only within `block_on`.
    pub(super) fn spawn(self: &Rc<Self>, work: impl Future<Output = ()> + 'static) {
        self.unstarted.set(self.unstarted.get() + 1);
        self.running.set(self.running.get() + 1);
        let running = Running(Rc::clone(self));
        // Detached: the task is known by the event it leaves.
        drop(tokio_uring::spawn(async move {
            running.0.note_started();
            work.await;
            drop(running);
        }));
    }

    /// Leaves an event and has the turn end.
    pub(super) fn push(&self, event: Event) {
        self.events.borrow_mut().push(event);
        self.wake();
    }

    /// Takes what has happened.
    pub(super) fn take_events(&self) -> Vec<Event> {
        self.events.take()
    }

    /// Tasks that have not ended.
    pub(super) fn running(&self) -> usize {
        self.running.get()
    }

    /// Completes when the turn is over.
    pub(super) async fn over(self: &Rc<Self>, until: Until) {
        self.polled.set(false);
        let timeout = match until {
            Until::Polled => {
                let turns = Rc::clone(self);
                // Last in line: it comes back only after all before it have gone to the kernel.
                self.spawn(async move {
                    if let Err(error) = tokio_uring::no_op().await {
                        tracing::warn!(%error, "the ring refuses to do nothing");
                    }
                    turns.polled.set(true);
                    turns.wake();
                });
                None
            }
            Until::Event(timeout) => timeout,
        };
        let mut timer = pin!(timeout.map(tokio::time::sleep));
        let mut elapsed = false;
        poll_fn(|cx| {
            elapsed = elapsed
                || timer.as_mut().as_pin_mut().is_some_and(|timer| timer.poll(cx).is_ready());
            self.poll_over(until, elapsed, cx)
        })
        .await;
    }

    /// Completes when all tasks have ended, or after a time. Answers whether they have.
    pub(super) async fn idle(&self, timeout: Duration) -> bool {
        let mut timer = pin!(tokio::time::sleep(timeout));
        poll_fn(|cx| {
            *self.waker.borrow_mut() = Some(cx.waker().clone());
            if self.running.get() == 0 || timer.as_mut().poll(cx).is_ready() {
                return Poll::Ready(self.running.get() == 0);
            }
            Poll::Pending
        })
        .await
    }

    fn poll_over(&self, until: Until, elapsed: bool, cx: &Context<'_>) -> Poll<()> {
        let over = match until {
            Until::Polled => self.polled.get(),
            Until::Event(_) => elapsed || !self.events.borrow().is_empty(),
        };
        if over && self.unstarted.get() == 0 {
            self.closing.set(false);
            return Poll::Ready(());
        }
        self.closing.set(over);
        *self.waker.borrow_mut() = Some(cx.waker().clone());
        Poll::Pending
    }

    fn note_started(&self) {
        self.unstarted.set(self.unstarted.get() - 1);
        if self.unstarted.get() == 0 && self.closing.get() {
            self.wake();
        }
    }

    /// Has the turn's end looked at again, once for all who ask: each time costs a system call.
    fn wake(&self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

/// A task that has not ended.
struct Running(Rc<Turns>);

impl Drop for Running {
    fn drop(&mut self) {
        let Self(turns) = self;
        turns.running.set(turns.running.get() - 1);
        if turns.running.get() == 0 {
            turns.wake();
        }
    }
}
