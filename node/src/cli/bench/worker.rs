//! [`Worker`]: one thread of the generator with its connections, in a loop over epoll.
//!
//! ```text
//! feed: give operations to connections that can take them, send
//!   closed loop: a whole pipeline to each connection that has been answered everything
//!   open loop: what is due, to the next connection with room in its pipeline
//! wait: for replies, room in sockets, the next operation that is due
//! ```

#![expect(clippy::disallowed_methods, reason = "latencies are what this tool is for")]

use super::bench_error::BenchError;
use super::connection::{Connection, Pending, REPLY_TIMEOUT};
use super::cpu::cpu_of_thread;
use super::outcome::{Answered, Tally};
use super::reply::ReplyEvent;
use super::schedule::Schedule;
use super::workload::{Operation, Operations, Requests, Verb};
use rustix::event::{Timespec, epoll};
use rustix::io::Errno;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, timerfd_create, timerfd_settime,
};
use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read as _};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How long after its end an open loop goes on for operations that are still due or unanswered.
const BACKLOG_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a thread waits at a time before it looks whether it should stop.
const LOOK: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };
/// Bytes read at a time.
const BUFFER_BYTES: usize = 256 << 10;
/// Events taken at a time.
const EVENTS: usize = 256;
/// Names the timer among the connections.
const TIMER: u64 = u64::MAX;

/// When operations begin.
#[derive(Debug)]
pub(super) enum Pacing {
    /// As soon as earlier ones are answered.
    Closed,
    /// When they are due.
    Open(Schedule),
}

/// What is measured of all that is done.
#[derive(Clone, Copy, Debug)]
pub(super) struct Times {
    /// Operations are due from here on.
    pub(super) start: Instant,
    /// The measured time.
    pub(super) begin: Instant,
    /// Nothing: until there are no more operations.
    pub(super) end: Option<Instant>,
}

/// What all threads see.
#[derive(Debug, Default)]
pub(super) struct Shared {
    /// Replies so far.
    pub(super) answered: AtomicU64,
    /// A thread has failed.
    pub(super) stop: AtomicBool,
}

/// What is done how by a thread.
#[derive(Debug)]
pub(super) struct Task<'a> {
    pub(super) requests: &'a Requests,
    pub(super) operations: Operations,
    pub(super) pacing: Pacing,
    /// Operations on a connection at a time.
    pub(super) pipeline: usize,
    pub(super) shared: &'a Shared,
}

/// A thread's part; see the module.
#[derive(Debug)]
pub(super) struct Worker<'a> {
    task: Task<'a>,
    connections: Vec<Connection>,
    /// Connections that can take operations.
    ready: VecDeque<usize>,
    epoll: OwnedFd,
    timer: OwnedFd,
    /// Operations without answer.
    under_way: usize,
    buffer: Vec<u8>,
    tally: Tally,
}

/// What a part of a reply means for the operation it belongs to.
enum Verdict {
    Incomplete,
    Done,
    Miss,
    Failed(String),
}

impl<'a> Worker<'a> {
    pub(super) fn new(task: Task<'a>, connections: Vec<Connection>) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags)?;
        epoll::add(&epoll, &timer, epoll::EventData::new_u64(TIMER), epoll::EventFlags::IN)?;
        for (index, connection) in connections.iter().enumerate() {
            let data = epoll::EventData::new_u64(index as u64);
            epoll::add(&epoll, &connection.stream, data, epoll::EventFlags::IN)?;
        }
        Ok(Self {
            task,
            ready: (0..connections.len()).collect(),
            connections,
            epoll,
            timer,
            under_way: 0,
            buffer: vec![0; BUFFER_BYTES],
            tally: Tally::default(),
        })
    }

    /// Goes on until the end, and until everything is answered.
    ///
    /// # Errors
    /// If a connection fails, or nothing is answered any more.
    pub(super) fn run(mut self, times: Times) -> Result<Tally, BenchError> {
        let mut events = Vec::with_capacity(EVENTS);
        let (mut cpu_before, mut cpu_after) = (None, None);
        let mut now = Instant::now();
        let mut last_answer = now;
        loop {
            if now >= times.begin {
                cpu_before.get_or_insert_with(cpu_of_thread);
            }
            if times.end.is_some_and(|end| now >= end) {
                cpu_after.get_or_insert_with(cpu_of_thread);
            }
            let idle = self.under_way == 0;
            let stopped = self.task.shared.stop.load(Ordering::Relaxed);
            let goes_on = !stopped && self.feed(now, times)?;
            if !goes_on && self.under_way == 0 {
                break;
            }
            if self.is_given_up(now, times) {
                self.give_up(now, times);
                break;
            }
            let answered = self.turn(&mut events, times)?;
            now = Instant::now();
            if answered || idle {
                last_answer = now;
            } else if now > last_answer + REPLY_TIMEOUT {
                return Err(io::Error::from(ErrorKind::TimedOut).into());
            }
        }
        let cpu = cpu_after.unwrap_or_else(cpu_of_thread);
        self.tally.cpu = cpu.saturating_sub(cpu_before.unwrap_or(cpu));
        Ok(self.tally)
    }

    fn is_given_up(&self, now: Instant, times: Times) -> bool {
        let open = matches!(self.task.pacing, Pacing::Open(_));
        open && times.end.is_some_and(|end| now > end + BACKLOG_TIMEOUT)
    }

    /// Starts what can start; tells whether there is more to come.
    fn feed(&mut self, now: Instant, times: Times) -> io::Result<bool> {
        match self.task.pacing {
            Pacing::Closed => self.feed_closed(now, times),
            Pacing::Open(_) => self.feed_open(now, times),
        }
    }

    fn feed_closed(&mut self, now: Instant, times: Times) -> io::Result<bool> {
        if times.end.is_some_and(|end| now >= end) {
            return Ok(false);
        }
        while let Some(index) = self.ready.pop_front() {
            let since = Instant::now();
            for _ in 0..self.task.pipeline {
                let Some(operation) = self.task.operations.next() else { break };
                self.start(index, Pending { operation, since, counts: true });
            }
            self.connections[index].ready = false;
            if self.connections[index].pending.is_empty() {
                // There are no more operations, for other connections neither.
                return Ok(false);
            }
            self.send(index)?;
        }
        Ok(true)
    }

    fn feed_open(&mut self, now: Instant, times: Times) -> io::Result<bool> {
        let mut touched = Vec::new();
        let goes_on = loop {
            let Pacing::Open(schedule) = &mut self.task.pacing else { break false };
            let Some(due) = schedule.due() else { break false };
            let due = times.start + due;
            if due > now {
                self.wake_at(due)?;
                break true;
            }
            let Some(index) = self.ready.pop_front() else { break true };
            schedule.advance();
            let Some(operation) = self.task.operations.next() else { break false };
            let counts = due >= times.begin;
            if counts {
                self.tally.send_lag.record(now - due, 1);
            }
            if self.connections[index].outgoing.is_empty() {
                touched.push(index);
            }
            self.start(index, Pending { operation, since: due, counts });
            let connection = &mut self.connections[index];
            connection.ready = connection.pending.len() < self.task.pipeline;
            if connection.ready {
                self.ready.push_back(index);
            }
        };
        for index in touched {
            self.send(index)?;
        }
        Ok(goes_on)
    }

    /// Writes the request of an operation.
    fn start(&mut self, index: usize, pending: Pending) {
        let connection = &mut self.connections[index];
        self.task.requests.encode(pending.operation, connection.outgoing.heads());
        if pending.operation.verb == Verb::Set {
            connection.outgoing.push_tail();
        }
        connection.pending.push_back(pending);
        self.under_way += 1;
    }

    fn send(&mut self, index: usize) -> io::Result<()> {
        let connection = &mut self.connections[index];
        connection.send()?;
        let blocked = !connection.outgoing.is_empty();
        if blocked != connection.writable_wanted {
            connection.writable_wanted = blocked;
            let out = if blocked { epoll::EventFlags::OUT } else { epoll::EventFlags::empty() };
            let data = epoll::EventData::new_u64(index as u64);
            epoll::modify(&self.epoll, &connection.stream, data, epoll::EventFlags::IN | out)?;
        }
        Ok(())
    }

    fn wake_at(&self, due: Instant) -> io::Result<()> {
        // Not zero, which would mean never.
        let wait = due.saturating_duration_since(Instant::now()).max(Duration::from_nanos(1));
        let none = Timespec { tv_sec: 0, tv_nsec: 0 };
        let it_value = Timespec::try_from(wait).unwrap_or(LOOK);
        let value = Itimerspec { it_interval: none, it_value };
        timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &value)?;
        Ok(())
    }

    /// Waits once and does what there is to do; tells whether something was answered.
    fn turn(&mut self, events: &mut Vec<epoll::Event>, times: Times) -> Result<bool, BenchError> {
        events.clear();
        match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(events), Some(&LOOK)) {
            Err(Errno::INTR) => return Ok(false),
            other => other.map(drop).map_err(io::Error::from)?,
        }
        let mut answered = false;
        for event in &*events {
            let (data, flags) = (event.data.u64(), event.flags);
            if data == TIMER {
                // Somebody may have set it anew meanwhile; then there is nothing to read.
                let _ = rustix::io::read(&self.timer, &mut [0; 8]);
                continue;
            }
            let index = data as usize;
            if flags.contains(epoll::EventFlags::OUT) {
                self.send(index)?;
            }
            answered |= self.receive(index, times)?;
        }
        Ok(answered)
    }

    /// Reads once from a connection; tells whether that ended an operation.
    fn receive(&mut self, index: usize, times: Times) -> Result<bool, BenchError> {
        let connection = &mut self.connections[index];
        let len = match connection.stream.read(&mut self.buffer) {
            Ok(0) => return Err(io::Error::from(ErrorKind::UnexpectedEof).into()),
            Ok(len) => len,
            Err(error) if is_for_later(&error) => return Ok(false),
            Err(error) => return Err(error.into()),
        };
        let now = Instant::now();
        let mut input = &self.buffer[..len];
        let is_open = matches!(self.task.pacing, Pacing::Open(_));
        let mut alike = Alike { now, times, is_open, first: None, count: 0 };
        let mut replies = 0;
        loop {
            let event = connection.reader.next(&mut input)?;
            if event == ReplyEvent::More {
                break;
            }
            let Some(pending) = connection.pending.front().copied() else {
                return Err(io::Error::other("a reply that nobody asked for").into());
            };
            match judge(event, pending.operation, self.task.requests, &mut connection.differs) {
                Verdict::Incomplete => continue,
                Verdict::Done => alike.add(pending, &mut self.tally),
                Verdict::Miss => {
                    alike.add(pending, &mut self.tally);
                    self.tally.counts.misses += u64::from(alike.counts(pending));
                }
                Verdict::Failed(text) => self.tally.error(|| text),
            }
            self.tally.counts.mismatches += u64::from(std::mem::take(&mut connection.differs));
            connection.pending.pop_front();
            replies += 1;
        }
        alike.flush(&mut self.tally);
        self.under_way -= replies;
        self.task.shared.answered.fetch_add(replies as u64, Ordering::Relaxed);
        let pending_max = if is_open { self.task.pipeline - 1 } else { 0 };
        if !connection.ready && connection.pending.len() <= pending_max {
            connection.ready = true;
            self.ready.push_back(index);
        }
        Ok(replies > 0)
    }

    /// Notes what was not answered, and what was due and not even sent.
    fn give_up(&mut self, now: Instant, times: Times) {
        let pending = self.connections.iter().flat_map(|connection| &connection.pending);
        for pending in pending.filter(|pending| pending.counts) {
            self.tally.unanswered(pending.operation.verb, now - pending.since);
        }
        let Pacing::Open(schedule) = &mut self.task.pacing else { return };
        while let Some(due) = schedule.due() {
            schedule.advance();
            let due = times.start + due;
            if let Some(operation) = self.task.operations.next().filter(|_| due >= times.begin) {
                self.tally.unanswered(operation.verb, now - due);
            }
        }
    }
}

fn is_for_later(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

/// Answers of one read that are alike are noted at once.
struct Alike {
    now: Instant,
    times: Times,
    is_open: bool,
    first: Option<Pending>,
    count: u64,
}

impl Alike {
    /// Whether an operation that is answered now counts: in a closed loop by the time of its
    /// answer, in an open one by when it was due.
    fn counts(&self, pending: Pending) -> bool {
        let in_time =
            self.now >= self.times.begin && self.times.end.is_none_or(|end| self.now < end);
        pending.counts && (self.is_open || in_time)
    }

    fn add(&mut self, pending: Pending, tally: &mut Tally) {
        let same = self.first.is_some_and(|first| {
            let verbs = first.operation.verb == pending.operation.verb;
            verbs && first.since == pending.since && first.counts == pending.counts
        });
        if !same {
            self.flush(tally);
            self.first = Some(pending);
        }
        self.count += 1;
    }

    fn flush(&mut self, tally: &mut Tally) {
        if let Some(first) = self.first.take().filter(|first| self.counts(*first)) {
            let at = self.now.saturating_duration_since(self.times.begin);
            let latency = self.now.saturating_duration_since(first.since);
            let (verb, count) = (first.operation.verb, self.count);
            tally.answered(Answered { verb, latency, at, count });
        }
        self.count = 0;
    }
}

/// Says what an event means for the operation that waits for it.
fn judge(
    event: ReplyEvent<'_>,
    operation: Operation,
    requests: &Requests,
    differs: &mut bool,
) -> Verdict {
    match (event, operation.verb) {
        (ReplyEvent::Part { offset, bytes }, _) => {
            *differs |= !requests.is_part(operation.key, offset, bytes);
            Verdict::Incomplete
        }
        (ReplyEvent::Value { len }, Verb::Get) => {
            *differs |= !requests.is_len(len);
            Verdict::Done
        }
        (ReplyEvent::Nil, Verb::Get) => Verdict::Miss,
        (ReplyEvent::Status, Verb::Set) => Verdict::Done,
        (ReplyEvent::Error(text), _) => Verdict::Failed(text),
        (other, verb) => Verdict::Failed(format!("{other:?} as a reply to {verb:?}")),
    }
}
