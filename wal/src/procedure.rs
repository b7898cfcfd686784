//! Long disk procedures (recovery, check, preparing a segment) written as straight-line `async`
//! code and run as sans-I/O state machines.
//!
//! The leaves are [`DiskPort::start`]: they emit a [`DiskRequest`] and yield its
//! [`DiskCompletion`]. [`Procedure`] owns the future and is driven like every other core: take
//! requests with [`Procedure::poll_request`], hand completions to [`Procedure::handle_disk`], until
//! [`Procedure::take_output`] answers. There is no executor, waker or thread behind it.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use crate::disk::{
    DiskCompletion, DiskError, DiskOperation, DiskOutput, DiskRequest, IoBuffer, RequestId,
};

#[derive(Debug, Default)]
struct Exchange {
    next: u64,
    outgoing: VecDeque<DiskRequest>,
    waiting: BTreeSet<RequestId>,
    done: BTreeMap<RequestId, DiskCompletion>,
}

/// The procedure's side of the exchange of requests for completions.
#[derive(Clone, Debug, Default)]
pub struct DiskPort(Rc<RefCell<Exchange>>);

impl DiskPort {
    /// Emits a request at once and returns the future of its completion, so that several can be
    /// under way together.
    pub fn start(&self, operation: DiskOperation) -> Ticket {
        let mut exchange = self.0.borrow_mut();
        let id = RequestId(exchange.next);
        exchange.next += 1;
        exchange.waiting.insert(id);
        exchange.outgoing.push_back(DiskRequest { id, operation });
        Ticket { port: self.clone(), id }
    }

    /// Emits a request that has no buffer and waits for what it yields.
    ///
    /// # Errors
    /// The operation's own.
    pub async fn call(&self, operation: DiskOperation) -> Result<DiskOutput, DiskError> {
        self.start(operation).await.result
    }

    /// Emits a request with a buffer and waits for the buffer's return.
    ///
    /// # Errors
    /// The operation's own; the buffer is dropped then.
    pub async fn transfer(&self, operation: DiskOperation) -> Result<IoBuffer, DiskError> {
        let completion = self.start(operation).await;
        completion.result?;
        Ok(completion.buffer.expect("a driver returns the buffer it was given"))
    }
}

/// A request under way; awaiting it yields its completion.
#[derive(Debug)]
pub struct Ticket {
    port: DiskPort,
    id: RequestId,
}

impl Future for Ticket {
    type Output = DiskCompletion;

    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<DiskCompletion> {
        let found = self.port.0.borrow_mut().done.remove(&self.id);
        found.map_or(Poll::Pending, Poll::Ready)
    }
}

/// Disk work of several futures that make progress together; their results come in the order they
/// were added in.
///
/// Whoever begins it takes every result: a future that is dropped leaves its requests under way.
pub struct InOrder<T>(VecDeque<Progress<T>>);

enum Progress<T> {
    Waiting(Pin<Box<dyn Future<Output = T>>>),
    Done(T),
}

impl<T> Default for InOrder<T> {
    fn default() -> Self {
        Self(VecDeque::new())
    }
}

impl<T> InOrder<T> {
    /// Adds one, which begins when a result is waited for.
    pub fn push(&mut self, future: impl Future<Output = T> + 'static) {
        self.0.push_back(Progress::Waiting(Box::pin(future)));
    }

    /// Results not taken yet.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether every result was taken.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Waits for the next result in order; `None` if there is none to come.
    pub async fn next(&mut self) -> Option<T> {
        std::future::poll_fn(|context| {
            for progress in &mut self.0 {
                if let Progress::Waiting(future) = progress
                    && let Poll::Ready(output) = future.as_mut().poll(context)
                {
                    *progress = Progress::Done(output);
                }
            }
            match self.0.pop_front() {
                None => Poll::Ready(None),
                Some(Progress::Done(output)) => Poll::Ready(Some(output)),
                Some(waiting) => {
                    self.0.push_front(waiting);
                    Poll::Pending
                }
            }
        })
        .await
    }
}

impl<T> std::fmt::Debug for InOrder<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "InOrder({})", self.0.len())
    }
}

/// A procedure under way: a future that only ever waits for disk completions.
pub struct Procedure<T> {
    port: DiskPort,
    state: State<T>,
}

enum State<T> {
    Running(Pin<Box<dyn Future<Output = T>>>),
    Done(T),
    Taken,
}

impl<T> Procedure<T> {
    /// Starts a procedure: `body` gets the port through which all of its disk work goes.
    pub fn new<F>(body: impl FnOnce(DiskPort) -> F) -> Self
    where
        F: Future<Output = T> + 'static,
    {
        let port = DiskPort::default();
        let future: Pin<Box<dyn Future<Output = T>>> = Box::pin(body(port.clone()));
        let mut procedure = Self { port, state: State::Running(future) };
        procedure.advance();
        procedure
    }

    /// Takes the next request to carry out.
    pub fn poll_request(&mut self) -> Option<DiskRequest> {
        self.port.0.borrow_mut().outgoing.pop_front()
    }

    /// Feeds the end of a request and runs on as far as that allows.
    ///
    /// # Panics
    /// If no request with that id is under way: a driver completes each request once.
    pub fn handle_disk(&mut self, completion: DiskCompletion) {
        {
            let mut exchange = self.port.0.borrow_mut();
            let known = exchange.waiting.remove(&completion.id);
            assert!(known, "completion of {:?}, which is not under way", completion.id);
            exchange.done.insert(completion.id, completion);
        }
        self.advance();
    }

    /// Takes the result, once there is one.
    pub fn take_output(&mut self) -> Option<T> {
        match std::mem::replace(&mut self.state, State::Taken) {
            State::Done(output) => Some(output),
            other => {
                self.state = other;
                None
            }
        }
    }

    fn advance(&mut self) {
        if let State::Running(future) = &mut self.state {
            let mut context = Context::from_waker(Waker::noop());
            if let Poll::Ready(output) = future.as_mut().poll(&mut context) {
                self.state = State::Done(output);
            }
        }
    }
}

impl<T> std::fmt::Debug for Procedure<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let state = match self.state {
            State::Running(_) => "running",
            State::Done(_) => "done",
            State::Taken => "taken",
        };
        write!(f, "Procedure({state})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::FileName;

    #[test]
    fn requests_overlap_and_results_return_in_any_order() {
        let mut procedure = Procedure::new(|port| async move {
            let first = port.start(DiskOperation::SyncDirectory { name: FileName::new("a") });
            let second = port.start(DiskOperation::SyncDirectory { name: FileName::new("b") });
            let second = second.await.id;
            (first.await.id, second)
        });
        let ids: Vec<_> = std::iter::from_fn(|| procedure.poll_request()).map(|r| r.id).collect();
        assert_eq!(ids.len(), 2);
        for id in &ids {
            assert!(procedure.take_output().is_none());
            let result = Ok(DiskOutput::Done);
            procedure.handle_disk(DiskCompletion { id: *id, result, buffer: None });
        }
        assert_eq!(procedure.take_output(), Some((ids[0], ids[1])));
        assert_eq!(procedure.take_output(), None);
    }

    #[test]
    fn work_side_by_side_yields_in_its_own_order() {
        let mut procedure = Procedure::new(|port| async move {
            let mut reads = InOrder::default();
            for name in ["a", "b", "c"] {
                let port = port.clone();
                reads.push(async move {
                    let name = FileName::new(name);
                    let first = port.start(DiskOperation::SyncDirectory { name: name.clone() });
                    let first = first.await.id.0;
                    (first, port.start(DiskOperation::SyncDirectory { name }).await.id.0)
                });
            }
            let mut found = Vec::new();
            while let Some(ids) = reads.next().await {
                found.push(ids);
            }
            found
        });
        let mut end = |id| {
            let (id, result) = (RequestId(id), Ok(DiskOutput::Done));
            procedure.handle_disk(DiskCompletion { id, result, buffer: None });
            std::iter::from_fn(|| procedure.poll_request()).count()
        };
        assert_eq!(end(2), 4, "three at once, and the second of the one that has ended");
        assert_eq!([end(3), end(0), end(1), end(4), end(5)], [0, 1, 1, 0, 0]);
        assert_eq!(procedure.take_output(), Some(vec![(0, 4), (1, 5), (2, 3)]));
    }
}
