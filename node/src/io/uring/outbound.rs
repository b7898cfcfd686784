//! The sending half of a connection: gathered sends, and sends without a copy in the kernel.
//!
//! A task's parts go out in order, one entry after the other. Most go many at a time (SENDMSG, or
//! SEND for the last one). A part of [`ZERO_COPY_LEN_MIN`] or more in memory registered with the
//! ring goes by itself (SEND_ZC), in that the network card reads it where it is; what comes before
//! it is sent with MSG_MORE, so that packets are filled all the same.
//!
//! Sending without a copy costs a second completion, the *notification*, which says when the memory
//! may be reused, and whether the kernel has copied after all. It does so where the receiver is on
//! this machine; then it is a loss. Hence, per connection:
//!
//! ```text
//!  Untried --first large part--> Asked --report: not copied--> Works --report: copied--+
//!                                  |                                                   v
//!                                  +-----report: copied, or the kernel refuses------> Off
//! ```
//!
//! The op of such a send keeps its part until the notification, which may come long after the
//! connection has gone; together they keep at most [`ZERO_COPY_BYTES_MAX`].

use std::io;
use std::os::fd::{AsRawFd, RawFd};

use bytes::Bytes;
use io_uring::types::Fd;
use io_uring::{cqueue, opcode, squeue};
use rustix::io::Errno;
use rustix::net::SendFlags;

use super::UringIo;
use super::network::id;
use super::op::{MSG_WAITALL, Op, SendTask};
use super::ring::Cqe;
use crate::io::disk_error::is_interruption;
use crate::io::slots::SlotKey;
use crate::io::sockets;
use crate::io::{Completion, ConnectionId, SendStatistics};

/// From this length on a part is worth a notification and, for a few pages, no copy.
const ZERO_COPY_LEN_MIN: usize = 32 << 10;
/// Bytes that unfinished sends without a copy may keep in use; above, the kernel copies.
const ZERO_COPY_BYTES_MAX: usize = 16 << 20;

/// IORING_SEND_ZC_REPORT_USAGE: the notification is to say whether the kernel has copied.
const REPORT_USAGE: u16 = 1 << 3;
/// IORING_NOTIF_USAGE_ZC_COPIED: it has.
const COPIED: u32 = 1 << 31;

/// Whether a connection's large parts go out without a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ZeroCopy {
    Untried,
    /// One has gone that way, and its report is not there yet.
    Asked,
    Works,
    Off,
}

/// What is known of a connection's outgoing bytes.
#[derive(Debug)]
pub(super) struct Outbound {
    pub(super) sending: bool,
    zero_copy: ZeroCopy,
}

impl Outbound {
    pub(super) const fn new() -> Self {
        Self { sending: false, zero_copy: ZeroCopy::Untried }
    }

    fn may_try(&self) -> bool {
        matches!(self.zero_copy, ZeroCopy::Untried | ZeroCopy::Works)
    }
}

/// What all connections together have sent and still keep.
#[derive(Debug)]
pub(super) struct Departures {
    /// Whether the kernel sends without a copy, and says what became of it.
    offered: bool,
    /// Bytes that await their notification.
    held_bytes: usize,
    pub(super) statistics: SendStatistics,
}

impl Departures {
    pub(super) fn new(offered: bool) -> Self {
        Self { offered, held_bytes: 0, statistics: SendStatistics::default() }
    }
}

/// A send without a copy, until its notification.
pub(super) struct ZeroCopySend {
    connection: SlotKey,
    socket: RawFd,
    /// The memory that the kernel reads.
    part: Bytes,
    /// The registered buffer in which it lies.
    buffer: u16,
    more: bool,
    /// How much of it was taken; known from the first completion on.
    sent: usize,
    /// The rest of the task, until the first completion.
    task: Option<SendTask>,
}

impl ZeroCopySend {
    /// Notes the first completion.
    fn take_task(&mut self, cqe: Cqe) -> SendTask {
        self.sent = cqe.outcome().unwrap_or(0);
        self.task.take().expect("the first completion comes once")
    }

    /// The connection it went out on.
    pub(super) fn connection(&self) -> SlotKey {
        self.connection
    }

    pub(super) fn entry(&self) -> squeue::Entry {
        let more = if self.more { SendFlags::MORE } else { SendFlags::empty() };
        let flags = (SendFlags::NOSIGNAL | more).bits() | MSG_WAITALL;
        let len = u32::try_from(self.part.len()).expect("a registered buffer is under 4 GiB");
        opcode::SendZc::new(Fd(self.socket), self.part.as_ptr(), len)
            .buf_index(Some(self.buffer))
            .flags(flags.cast_signed())
            .zc_flags(REPORT_USAGE)
            .build()
    }
}

impl UringIo {
    pub(super) fn submit_send(&mut self, id: ConnectionId, parts: Vec<Bytes>) {
        let key = SlotKey::from_bits(id.0);
        let connection = self.network.open(key);
        assert!(!connection.outbound.sending, "two sends at a time on {id:?}");
        connection.outbound.sending = true;
        let task = SendTask::new(key, connection.socket.as_raw_fd(), parts);
        self.go_on_sending(task);
    }

    fn go_on_sending(&mut self, mut task: SendTask) {
        if task.is_done() {
            return self.end_send(task.connection, Ok(()));
        }
        let connection = self.network.connections.get_mut(task.connection);
        let outbound = &mut connection.expect("a connection outlives its send").outbound;
        let departures = &mut self.network.departures;
        let room = ZERO_COPY_BYTES_MAX - departures.held_bytes;
        let may_try = departures.offered && outbound.may_try();
        let registered = |part: &[u8]| {
            let fits = may_try && (ZERO_COPY_LEN_MIN..=room).contains(&part.len());
            if fits { self.arena.index_of(part.as_ptr()) } else { None }
        };
        if let Some((part, buffer)) = task.next_part(registered) {
            departures.held_bytes += part.len();
            if outbound.zero_copy == ZeroCopy::Untried {
                outbound.zero_copy = ZeroCopy::Asked;
            }
            let (connection, socket, more) = (task.connection, task.socket, task.has_more());
            let task = Some(task);
            let send = ZeroCopySend { connection, socket, part, buffer, more, sent: 0, task };
            self.start(Op::SendZeroCopy(send));
        } else {
            task.gather_until(|part| registered(part).is_some());
            self.start(Op::Send(task));
        }
    }

    pub(super) fn handle_send(&mut self, mut task: SendTask, cqe: Cqe) {
        match cqe.outcome() {
            Ok(0) => self.end_send(task.connection, Err(io::ErrorKind::WriteZero.into())),
            Ok(count) => {
                self.network.departures.statistics.copied_bytes += count as u64;
                task.advance(count);
                self.go_on_sending(task);
            }
            Err(errno) if is_interruption(errno) => self.go_on_sending(task),
            Err(errno) => self.end_send(task.connection, Err(errno.into())),
        }
    }

    /// The kernel has taken over what it will; the memory stays until the notification.
    pub(super) fn handle_part_sent(&mut self, key: SlotKey, cqe: Cqe) {
        let Some(Op::SendZeroCopy(send)) = self.ops.get_mut(key) else {
            unreachable!("the caller has seen the op in its slot");
        };
        let task = send.take_task(cqe);
        self.handle_zero_copy_sent(task, cqe);
    }

    /// The last completion: the notification, or the only one, if there is nothing to notify of.
    pub(super) fn handle_zero_copy_end(&mut self, mut send: ZeroCopySend, cqe: Cqe) {
        if cqueue::notif(cqe.flags) {
            self.handle_notification(&send, cqe);
        } else {
            let task = send.take_task(cqe);
            self.handle_notification(&send, cqe);
            self.handle_zero_copy_sent(task, cqe);
        }
    }

    fn handle_zero_copy_sent(&mut self, mut task: SendTask, cqe: Cqe) {
        match cqe.outcome() {
            Ok(0) => return self.end_send(task.connection, Err(io::ErrorKind::WriteZero.into())),
            Ok(count) => task.advance(count),
            Err(errno) if is_interruption(errno) => {}
            Err(errno @ (Errno::INVAL | Errno::OPNOTSUPP | Errno::NOMEM | Errno::NOBUFS)) => {
                // The kernel cannot do it, or not now; it can still copy.
                self.network.departures.offered &= errno != Errno::INVAL;
                self.network.open_outbound(task.connection, |outbound| {
                    outbound.zero_copy = ZeroCopy::Off;
                });
                self.network.departures.statistics.zero_copy_refused += 1;
            }
            Err(errno) => return self.end_send(task.connection, Err(errno.into())),
        }
        self.go_on_sending(task);
    }

    /// The kernel needs the memory no more, and may have said what it did with it.
    fn handle_notification(&mut self, send: &ZeroCopySend, cqe: Cqe) {
        let departures = &mut self.network.departures;
        departures.held_bytes -= send.part.len();
        let reported = cqueue::notif(cqe.flags) && send.sent > 0;
        let copied = cqe.result.cast_unsigned() & COPIED != 0;
        let statistics = &mut departures.statistics;
        match (reported, copied) {
            (true, false) => statistics.zero_copy_bytes += send.sent as u64,
            (true, true) => {
                statistics.copied_bytes += send.sent as u64;
                statistics.zero_copy_in_vain += 1;
            }
            (false, _) => statistics.copied_bytes += send.sent as u64,
        }
        self.network.open_outbound(send.connection, |outbound| {
            outbound.zero_copy = match (outbound.zero_copy, reported) {
                (ZeroCopy::Off, _) => ZeroCopy::Off,
                (_, true) if copied => ZeroCopy::Off,
                (_, true) => ZeroCopy::Works,
                (ZeroCopy::Asked, false) => ZeroCopy::Untried,
                (other, false) => other,
            };
        });
    }

    fn end_send(&mut self, key: SlotKey, result: io::Result<()>) {
        let connection = self.network.connections.get_mut(key);
        let connection = connection.expect("a connection outlives its send");
        connection.outbound.sending = false;
        let closing = connection.closing;
        let result = result.map_err(|error| if closing { sockets::closed_here() } else { error });
        self.ready.push(Completion::Sent { connection: id(key), result });
        self.close_if_idle(key);
    }
}

impl super::network::Network {
    /// Changes what is known of a connection, if there is one still.
    fn open_outbound(&mut self, key: SlotKey, change: impl FnOnce(&mut Outbound)) {
        if let Some(connection) = self.connections.get_mut(key) {
            change(&mut connection.outbound);
        }
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_types, reason = "a plain socket is the other end of what is tested")]
mod tests {
    //! Completions that the kernel rarely gives are made up; what follows does go to the kernel.

    use std::io::Read;
    use std::net::TcpStream;

    use super::*;
    use crate::io::tests::{Scratch, ring_or_excuse};
    use crate::io::uring::UringOptions;
    use crate::io::{Io, ListenerId, Request};

    struct Rig {
        io: UringIo,
        key: SlotKey,
        client: TcpStream,
        _scratch: Scratch,
    }

    impl Rig {
        fn new() -> Option<Self> {
            let scratch = Scratch::new();
            let options =
                UringOptions { handle_signals: false, buffer_bytes: 0, ..UringOptions::default() };
            let mut io = ring_or_excuse(scratch.open(), options)?;
            io.submit(Request::Listen(ListenerId(0), "127.0.0.1:0".parse().unwrap()));
            let (mut done, mut client) = (Vec::new(), None);
            loop {
                io.wait(None, &mut done).unwrap();
                for completion in done.drain(..) {
                    match completion {
                        Completion::Listening(_, address) => {
                            client = Some(TcpStream::connect(address.unwrap()).unwrap());
                        }
                        Completion::Accepted { connection, .. } => {
                            let key = SlotKey::from_bits(connection.0);
                            let client = client.unwrap();
                            return Some(Self { io, key, client, _scratch: scratch });
                        }
                        other => panic!("{other:?}"),
                    }
                }
            }
        }

        /// A task as if it were in the kernel.
        fn task(&mut self, parts: &[&'static str]) -> SendTask {
            let connection = self.io.network.open(self.key);
            connection.outbound.sending = true;
            let socket = connection.socket.as_raw_fd();
            SendTask::new(self.key, socket, parts.iter().map(|part| Bytes::from(*part)).collect())
        }

        fn expect_sent(mut self, expected: &str) {
            let mut done = Vec::new();
            while done.is_empty() {
                self.io.wait(None, &mut done).unwrap();
            }
            assert!(matches!(done[..], [Completion::Sent { result: Ok(()), .. }]), "{done:?}");
            let mut bytes = vec![0; expected.len()];
            self.client.read_exact(&mut bytes).unwrap();
            assert_eq!(bytes, expected.as_bytes());
            assert!(!self.io.network.open(self.key).outbound.sending);
        }
    }

    fn completion(result: i32) -> Cqe {
        Cqe { user_data: 0, result, flags: 0 }
    }

    fn failure(errno: Errno) -> Cqe {
        completion(-errno.raw_os_error())
    }

    #[test]
    fn short_send_goes_on_where_it_ended() {
        for (sent, rest) in [(1, "bcdefghi"), (4, "efghi"), (6, "ghi"), (8, "i")] {
            let Some(mut rig) = Rig::new() else { return };
            let task = rig.task(&["abc", "", "def", "ghi"]);
            rig.io.handle_send(task, completion(sent));
            rig.expect_sent(rest);
        }
    }

    #[test]
    fn interrupted_send_is_repeated() {
        let Some(mut rig) = Rig::new() else { return };
        let task = rig.task(&["abc", "def"]);
        rig.io.handle_send(task, failure(Errno::INTR));
        rig.expect_sent("abcdef");
    }

    /// The first completion is the only one: nothing was taken without a copy, or in part.
    #[test]
    fn refused_or_short_send_without_a_copy_goes_on_with_one() {
        for (cqe, rest, refused) in [
            (failure(Errno::INVAL), "abcdef", 1),
            (failure(Errno::NOMEM), "abcdef", 1),
            (failure(Errno::INTR), "abcdef", 0),
            (completion(2), "cdef", 0),
        ] {
            let Some(mut rig) = Rig::new() else { return };
            let task = rig.task(&["abc", "def"]);
            let (connection, socket, part) = (rig.key, task.socket, Bytes::from_static(b"abc"));
            rig.io.network.departures.held_bytes = part.len();
            let task = Some(task);
            let (buffer, more, sent) = (0, true, 0);
            let send = ZeroCopySend { connection, socket, part, buffer, more, sent, task };
            rig.io.handle_zero_copy_end(send, cqe);
            let departures = &rig.io.network.departures;
            assert_eq!(departures.held_bytes, 0);
            assert_eq!(departures.statistics.zero_copy_refused, refused);
            assert_eq!(departures.offered, cqe.outcome() != Err(Errno::INVAL));
            rig.expect_sent(rest);
        }
    }
}
