//! [`Outbound`]: what waits to be sent on a link, and in which order it goes.
//!
//! Frames about the link go first, then short frames in their order, then one piece of each large
//! one in turn: a value of many MiB holds up nothing. Values are not copied.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};

use crate::cluster::message::PeerMessage;
use crate::cluster::message::codec::{PARTIAL_COUNT_MAX, encode};
use crate::cluster::message::control::ControlFrame;

/// Longer frames take turns.
const SHORT_BYTES_MAX: usize = 16 * 1024;
/// Parts up to this length are copied together.
const JOINED_LEN_MAX: usize = 2 * 1024;
/// Bytes of short frames in one send.
const SHORT_PER_SEND_BYTES_MAX: usize = 256 * 1024;
/// Bytes after which no further frame goes into a send.
const SEND_BYTES_MAX: usize = 512 * 1024;
/// Large messages that are on their way at the same time.
const LARGE_BEGUN_MAX: usize = 8;
/// Frames about the link that wait.
const CONTROL_COUNT_MAX: usize = 64;
const _: () = assert!(LARGE_BEGUN_MAX <= PARTIAL_COUNT_MAX, "what the receiver takes");

/// A message as it goes out.
#[derive(Debug)]
pub(super) struct Encoded {
    pieces: VecDeque<Vec<Bytes>>,
    /// Of all pieces that are left.
    bytes: usize,
    /// What of it the receiver has to hold while it is unfinished.
    value_len: usize,
}

impl Encoded {
    pub(super) fn new(message: &PeerMessage) -> Self {
        let pieces = encode(message);
        let len =
            |pieces: &VecDeque<Vec<Bytes>>| pieces.iter().flatten().map(Bytes::len).sum::<usize>();
        let bytes = len(&pieces);
        let value_len = if pieces.len() > 1 {
            pieces.iter().filter_map(|piece| piece.get(1)).map(Bytes::len).sum()
        } else {
            0
        };
        Self { pieces, bytes, value_len }
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn is_short(&self) -> bool {
        self.bytes <= SHORT_BYTES_MAX
    }

    fn take_piece(&mut self) -> Vec<Bytes> {
        let piece = self.pieces.pop_front().unwrap_or_default();
        self.bytes -= piece.iter().map(Bytes::len).sum::<usize>();
        piece
    }
}

/// One send.
#[derive(Debug, Default)]
pub(super) struct Batch {
    pub(super) parts: Vec<Bytes>,
    pub(super) bytes: usize,
    /// Messages whose last piece is in it.
    pub(super) finished: usize,
    joined: BytesMut,
}

impl Batch {
    fn push(&mut self, frame: Vec<Bytes>) {
        for part in frame {
            self.bytes += part.len();
            if part.len() <= JOINED_LEN_MAX {
                self.joined.extend_from_slice(&part);
            } else {
                self.end_joined();
                self.parts.push(part);
            }
        }
    }

    fn end_joined(&mut self) {
        if !self.joined.is_empty() {
            self.parts.push(self.joined.split().freeze());
        }
    }
}

/// What waits to be sent on one link.
#[derive(Debug)]
pub(super) struct Outbound {
    control: VecDeque<Vec<Bytes>>,
    short: VecDeque<Encoded>,
    large: VecDeque<Encoded>,
    begun: VecDeque<Encoded>,
    begun_bytes: usize,
    begun_bytes_max: usize,
    waiting_bytes: usize,
    /// The last frame, once it is known.
    last: Option<Vec<Bytes>>,
}

impl Outbound {
    /// Starts empty, for values that are at most so long.
    pub(super) fn new(value_bytes_max: usize) -> Self {
        Self {
            control: VecDeque::new(),
            short: VecDeque::new(),
            large: VecDeque::new(),
            begun: VecDeque::new(),
            begun_bytes: 0,
            begun_bytes_max: value_bytes_max.saturating_mul(2),
            waiting_bytes: 0,
            last: None,
        }
    }

    /// Bytes of messages that wait.
    pub(super) fn waiting_bytes(&self) -> usize {
        self.waiting_bytes
    }

    /// Messages that wait.
    pub(super) fn waiting_count(&self) -> usize {
        self.short.len() + self.large.len() + self.begun.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.control.is_empty() && self.waiting_count() == 0 && self.last.is_none()
    }

    /// Takes a frame about the link; false: there are too many.
    #[must_use]
    pub(super) fn push_control(&mut self, frame: &ControlFrame) -> bool {
        self.control.push_back(frame.encode());
        self.control.len() <= CONTROL_COUNT_MAX
    }

    pub(super) fn push(&mut self, message: Encoded) {
        self.waiting_bytes += message.bytes;
        let queue = if message.is_short() { &mut self.short } else { &mut self.large };
        queue.push_back(message);
    }

    /// Ends with this frame, after what was begun. The rest is given back.
    pub(super) fn finish(&mut self, last: Vec<Bytes>) -> Vec<Encoded> {
        self.last = Some(last);
        self.take_waiting()
    }

    /// Ends with this frame, after all that waits.
    pub(super) fn finish_all(&mut self, last: Vec<Bytes>) {
        self.last = Some(last);
    }

    /// Takes out what is not begun.
    pub(super) fn take_waiting(&mut self) -> Vec<Encoded> {
        let rest: Vec<Encoded> = self.short.drain(..).chain(self.large.drain(..)).collect();
        self.waiting_bytes -= rest.iter().map(Encoded::bytes).sum::<usize>();
        rest
    }

    /// What goes with the next send.
    pub(super) fn next_batch(&mut self) -> Option<Batch> {
        let mut batch = Batch::default();
        self.control.drain(..).for_each(|frame| batch.push(frame));
        while batch.bytes < SHORT_PER_SEND_BYTES_MAX
            && let Some(mut message) = self.short.pop_front()
        {
            self.waiting_bytes -= message.bytes;
            batch.push(message.take_piece());
            batch.finished += 1;
        }
        self.begin_large();
        while batch.bytes < SEND_BYTES_MAX
            && let Some(mut message) = self.begun.pop_front()
        {
            let before = message.bytes;
            batch.push(message.take_piece());
            self.waiting_bytes -= before - message.bytes;
            if message.pieces.is_empty() {
                self.begun_bytes -= message.value_len;
                batch.finished += 1;
                self.begin_large();
            } else {
                self.begun.push_back(message);
            }
        }
        if self.waiting_count() == 0
            && let Some(last) = self.last.take()
        {
            batch.push(last);
        }
        batch.end_joined();
        (!batch.parts.is_empty()).then_some(batch)
    }

    fn begin_large(&mut self) {
        while self.begun.len() < LARGE_BEGUN_MAX
            && let Some(next) = self.large.front()
            && self.begun_bytes + next.value_len <= self.begun_bytes_max
            && let Some(next) = self.large.pop_front()
        {
            self.begun_bytes += next.value_len;
            self.begun.push_back(next);
        }
    }
}
