//! One thread's loop: wait, feed what came to the cores, take what they want done, submit it.
//!
//! A turn never blocks but in [`Io::wait`]. Within a turn the cores are fed until they have nothing
//! more to say; what they want written then goes out together, which is what makes group commit.

use std::io;

use storage::{Event, LogClock};
use wal::procedure::Procedure;

use crate::io::{Completion, DiskOwner, Io, ListenerId, Monotonic, Request};
use crate::keyspace::Keyspace;
use crate::resp::door::{Door, Order, OrderEnd};
use crate::snapshot::take::{SNAPSHOT_OWNER, SnapshotTaker};

/// The listener behind the client door.
pub const CLIENT_DOOR: ListenerId = ListenerId(0);

/// Clients get this long to take their last replies when the node stops, in milliseconds.
const DRAIN_MS: u64 = 5_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Serving,
    /// Clients take their last replies, until this time.
    Draining(Monotonic),
    /// Connections are closed; the log writes its last frame.
    Sealing,
}

/// Runs a procedure to its end. Returns its result, and whether the node was told to stop
/// meanwhile.
///
/// # Errors
/// The driver's.
pub fn run_procedure<I: Io, T>(
    io: &mut I,
    owner: DiskOwner,
    procedure: Procedure<T>,
) -> io::Result<(T, bool)> {
    let (mut outputs, terminated) = run_procedures(io, vec![(owner, procedure)])?;
    Ok((outputs.pop().expect("one procedure has one output"), terminated))
}

/// Runs procedures of different owners side by side to their ends. Returns their results in the
/// same order, and whether the node was told to stop meanwhile.
///
/// # Errors
/// The driver's.
pub fn run_procedures<I: Io, T>(
    io: &mut I,
    procedures: Vec<(DiskOwner, Procedure<T>)>,
) -> io::Result<(Vec<T>, bool)> {
    let mut outputs: Vec<Option<T>> = procedures.iter().map(|_| None).collect();
    let mut running: Vec<(usize, DiskOwner, Procedure<T>)> = Vec::new();
    for (at, (owner, procedure)) in procedures.into_iter().enumerate() {
        running.push((at, owner, procedure));
    }
    let (mut done, mut terminated) = (Vec::new(), false);
    loop {
        running.retain_mut(|(at, owner, procedure)| {
            while let Some(request) = procedure.poll_request() {
                io.submit(Request::Disk(*owner, request));
            }
            outputs[*at] = procedure.take_output();
            outputs[*at].is_none()
        });
        if running.is_empty() {
            return Ok((outputs.into_iter().flatten().collect(), terminated));
        }
        io.wait(None, &mut done)?;
        for completion in done.drain(..) {
            match completion {
                Completion::Disk(owner, completion) => {
                    let of = running.iter_mut().find(|(_, running, _)| *running == owner);
                    let (.., procedure) = of.expect("a completion is of a procedure under way");
                    procedure.handle_disk(completion);
                }
                Completion::Terminate => terminated = true,
                other => unreachable!("{other:?} before the door is open"),
            }
        }
    }
}

/// The loop and what it drives.
#[derive(Debug)]
pub struct EventLoop<I: Io> {
    io: I,
    keyspace: Keyspace,
    door: Door,
    snapshots: SnapshotTaker,
    clock: LogClock,
    phase: Phase,
    listening: bool,
    done: Vec<Completion>,
}

impl<I: Io> EventLoop<I> {
    /// Puts the loop together. The driver listens already; `done` is what has happened since.
    pub fn new(
        io: I,
        keyspace: Keyspace,
        door: Door,
        clock: LogClock,
        done: Vec<Completion>,
    ) -> Self {
        let (snapshots, phase) = (SnapshotTaker::default(), Phase::Serving);
        Self { io, keyspace, door, snapshots, clock, phase, listening: true, done }
    }

    /// Tells the node to stop: answers what was asked, seals the log, returns from [`Self::run`].
    pub fn stop(&mut self) {
        if self.phase == Phase::Serving {
            self.phase = Phase::Draining(self.io.now().0.plus_millis(DRAIN_MS));
            self.io.submit(Request::StopListening(CLIENT_DOOR));
            self.door.drain();
        }
    }

    /// Turns until the node has stopped. `stopping` is called once when it begins to.
    ///
    /// # Errors
    /// The driver's.
    pub fn run(&mut self, mut stopping: impl FnMut()) -> io::Result<()> {
        let mut done = std::mem::take(&mut self.done);
        let mut told = false;
        loop {
            self.read_clock();
            for completion in done.drain(..) {
                self.handle(completion);
            }
            self.turn();
            if self.phase != Phase::Serving && !std::mem::replace(&mut told, true) {
                stopping();
            }
            if self.has_stopped() {
                return Ok(());
            }
            self.io.wait(self.deadline(), &mut done)?;
        }
    }

    fn read_clock(&mut self) {
        let (monotonic, wall) = self.io.now();
        let reading = self.clock.read(wall.0, monotonic.0);
        if let Some(jump_ms) = reading.jump_ms {
            tracing::error!(jump_ms, "the clock jumped ahead; keys expire by it");
        }
        self.keyspace.set_now(reading.now);
    }

    fn handle(&mut self, completion: Completion) {
        let Self { keyspace, door, snapshots, .. } = self;
        match completion {
            Completion::Disk(SNAPSHOT_OWNER, completion) => snapshots.handle_disk(completion),
            Completion::Disk(owner, completion) => keyspace.handle_disk(owner.0, completion),
            Completion::Accepted { connection, peer, listener: _ } => {
                door.handle_accepted(keyspace, connection, peer);
                if self.phase != Phase::Serving {
                    door.drain();
                }
            }
            Completion::Received { connection, result } => {
                if let Some(buffer) = door.handle_received(keyspace, connection, result) {
                    self.io.release(buffer);
                }
            }
            Completion::Sent { connection, result } => {
                door.handle_sent(keyspace, connection, &result);
            }
            Completion::Closed(connection) => door.handle_closed(connection),
            Completion::ListenerClosed(_) => self.listening = false,
            Completion::Listening(_, result) => {
                if let Err(error) = result {
                    tracing::error!(%error, "the client door has closed");
                }
            }
            Completion::Terminate => self.stop(),
            other @ (Completion::Connected { .. }
            | Completion::UdpBound(..)
            | Completion::Datagram { .. }
            | Completion::UdpClosed(_)) => unreachable!("{other:?}: nobody asks for it yet"),
        }
    }

    /// Feeds the cores until they are silent, then hands their requests to the driver.
    fn turn(&mut self) {
        self.door.note_buffers(self.io.buffer_statistics());
        self.door.note_sends(self.io.send_statistics());
        self.door.begin_turn(&mut self.keyspace);
        loop {
            while let Some((shard, event)) = self.keyspace.poll_event() {
                match event {
                    Event::Snapshotted { result } => self.snapshots.handle_shard(shard, result),
                    event => self.door.handle_event(&mut self.keyspace, shard, event),
                }
            }
            self.carry_out_orders();
            self.door.end_turn(&mut self.keyspace);
            self.keyspace.end_turn();
            if !self.submit() {
                break;
            }
        }
        if self.door.wants_shutdown() {
            self.stop();
        }
        self.advance_phase();
    }

    fn carry_out_orders(&mut self) {
        let Self { keyspace, door, snapshots, .. } = self;
        loop {
            while let Some((id, order)) = door.poll_order() {
                match order {
                    Order::Snapshot { id: name } => snapshots.begin(keyspace, id, name),
                    Order::Delete { id: name } => snapshots.delete(keyspace, id, name),
                    Order::Compact => {
                        keyspace.compact();
                        door.handle_order(keyspace, id, OrderEnd::Done);
                    }
                }
            }
            // The end of a snapshot may be what the next order waits for.
            let Some((id, end)) = snapshots.advance(keyspace) else { return };
            door.handle_order(keyspace, id, end);
        }
    }

    /// Returns whether something came up that the cores have not seen yet.
    fn submit(&mut self) -> bool {
        while let Some((shard, request)) = self.keyspace.poll_request() {
            self.io.submit(Request::Disk(DiskOwner(shard), request));
        }
        while let Some(request) = self.snapshots.poll_request() {
            self.io.submit(Request::Disk(SNAPSHOT_OWNER, request));
        }
        while let Some(request) = self.door.poll_request() {
            self.io.submit(request);
        }
        self.keyspace.has_events() || self.door.has_orders()
    }

    fn advance_phase(&mut self) {
        if let Phase::Draining(deadline) = self.phase {
            if self.door.is_empty() {
                self.phase = Phase::Sealing;
                self.keyspace.seal();
            } else if self.io.now().0 >= deadline {
                tracing::warn!("clients have not taken their last replies; closing them");
                self.door.close_all();
                self.phase = Phase::Draining(deadline.plus_millis(DRAIN_MS));
            } else {
                return;
            }
            self.submit();
        } else if self.phase == Phase::Sealing {
            self.keyspace.seal();
            self.submit();
        }
    }

    fn has_stopped(&self) -> bool {
        let failed = self.keyspace.stores().any(|(_, store)| store.failure().is_some());
        self.phase == Phase::Sealing && !self.listening && (self.keyspace.is_quiet() || failed)
    }

    fn deadline(&self) -> Option<Monotonic> {
        let draining = match self.phase {
            Phase::Draining(deadline) => Some(deadline.0),
            Phase::Serving | Phase::Sealing => None,
        };
        let deadlines = [self.keyspace.deadline_ns(), self.door.deadline_ns(), draining];
        deadlines.into_iter().flatten().min().map(Monotonic)
    }
}
