//! The replies of one connection, in order, each held until what it rests on is durable.

use std::collections::VecDeque;

use bytes::{BufMut, Bytes, BytesMut};
use wal::Lsn;

use super::ledger::{Amounts, Ledger, Path};
use crate::keyspace::{ShardIndex, Wait};
use crate::resp::reply::{Protocol, ReplyWriter};

/// Values from this length on go out from where they are; shorter ones are copied beside their
/// neighbours (DESIGN 3.7).
const SHARED_VALUE_LEN_MIN: usize = 2048;
/// Replies are gathered in one piece of memory up to this many bytes.
const GATHERED_LEN_MAX: usize = 64 << 10;
/// Parts of one send.
const PARTS_MAX: usize = 64;
/// Replies, and parts of them, that an idle queue keeps room for.
pub(super) const IDLE_CAPACITY_MAX: usize = 4;
/// Bytes of one send.
const SEND_LEN_MAX: usize = 1 << 20;

/// One or more replies that go out together.
#[derive(Debug, Default)]
pub(crate) struct Reply {
    waits: Vec<Wait>,
    protocol: Protocol,
    /// Complete parts, before `tail`.
    parts: Vec<Bytes>,
    parts_len: usize,
    tail: BytesMut,
    /// Values in it that the ledger does not know yet.
    values: Amounts,
}

impl Reply {
    pub(crate) fn new(protocol: Protocol) -> Self {
        Self { protocol, ..Self::default() }
    }

    pub(crate) fn writer(&mut self) -> ReplyWriter<'_> {
        ReplyWriter::new(&mut self.tail, self.protocol)
    }

    /// Writes a bulk string, without a copy if it is long.
    pub(crate) fn value(&mut self, value: Bytes) {
        if value.len() < SHARED_VALUE_LEN_MIN {
            self.values.note(value.len(), 1);
            self.writer().bulk(&value);
            return;
        }
        self.values.note(value.len(), 0);
        self.writer().bulk_header(value.len());
        let head = self.tail.split().freeze();
        self.parts_len += head.len() + value.len();
        self.parts.extend([head, value]);
        self.writer().bulk_end();
    }

    /// Holds the reply until `wait` is durable, too.
    pub(crate) fn wait(&mut self, wait: Option<Wait>) {
        let Some(wait) = wait else { return };
        match self.waits.iter_mut().find(|known| known.shard == wait.shard) {
            Some(known) => known.lsn = known.lsn.max(wait.lsn),
            None => self.waits.push(wait),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.parts_len + self.tail.len()
    }

    /// Takes all parts in order.
    pub(crate) fn into_parts(mut self) -> Vec<Bytes> {
        self.parts.extend((!self.tail.is_empty()).then(|| self.tail.freeze()));
        self.parts
    }
}

#[derive(Debug)]
struct Item {
    /// Whether the reply is still being worked out.
    pending: bool,
    replies: u32,
    reply: Reply,
}

/// How far a shard's log is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Durable {
    /// Durable up to here.
    UpTo(Lsn),
    /// Durable up to here, and never further.
    FailedAfter(Lsn),
}

/// The replies of one connection.
#[derive(Debug, Default)]
pub(crate) struct ReplyQueue {
    items: VecDeque<Item>,
    /// Parts of replies that nothing holds back any more.
    ready: VecDeque<Bytes>,
    head: u64,
    len: usize,
    /// Places whose reply is still to come.
    pending: usize,
    ledger: Ledger,
    /// Whether each reply is taken by itself.
    apart: bool,
}

impl ReplyQueue {
    pub(crate) fn new(ledger: &Ledger) -> Self {
        Self { ledger: ledger.clone(), ..Self::default() }
    }

    /// Keeps replies apart from now on, for [`ReplyQueue::take_replies`].
    pub(crate) fn keep_apart(&mut self) {
        self.apart = true;
    }

    /// Number of the first place whose reply has not been taken.
    pub(crate) fn head(&self) -> u64 {
        self.head
    }

    /// Bytes of memory beside the queue itself.
    pub(crate) fn heap_bytes(&self) -> usize {
        let places = self.items.capacity() * size_of::<Item>();
        places + self.ready.capacity() * size_of::<Bytes>() + self.len
    }

    /// Gives memory back that an empty queue has no use for.
    pub(crate) fn rest(&mut self) {
        if self.items.is_empty() && self.items.capacity() > IDLE_CAPACITY_MAX {
            self.items = VecDeque::new();
        }
        if self.ready.is_empty() && self.ready.capacity() > IDLE_CAPACITY_MAX {
            self.ready = VecDeque::new();
        }
    }

    /// Bytes waiting.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Number of places whose reply is still to come.
    pub(crate) fn pending(&self) -> usize {
        self.pending
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.items.is_empty() && self.ready.is_empty()
    }

    /// Appends a reply that rests on `waits`; `write` fills it in.
    pub(crate) fn push(
        &mut self,
        protocol: Protocol,
        wait: Option<Wait>,
        write: impl FnOnce(&mut Reply),
    ) {
        let joins = self.items.back().is_some_and(|item| {
            !self.apart
                && !item.pending
                && item.reply.protocol == protocol
                && item.reply.waits.is_empty() == wait.is_none()
                && item.reply.len() < GATHERED_LEN_MAX
        });
        if !joins {
            let reply = Reply::new(protocol);
            self.items.push_back(Item { pending: false, replies: 0, reply });
        }
        let item = self.items.back_mut().expect("an item was just made sure of");
        let before = item.reply.len();
        item.replies += 1;
        item.reply.wait(wait);
        write(&mut item.reply);
        self.ledger.add(Path::GetCached, &std::mem::take(&mut item.reply.values));
        self.len += item.reply.len() - before;
    }

    /// Appends a complete reply with its own waits.
    pub(crate) fn push_reply(&mut self, mut reply: Reply) {
        self.ledger.add(Path::GetCached, &std::mem::take(&mut reply.values));
        self.len += reply.len();
        self.items.push_back(Item { pending: false, replies: 1, reply });
    }

    /// Keeps the next place for a reply to come; [`ReplyQueue::fill`] takes the number returned.
    pub(crate) fn reserve(&mut self) -> u64 {
        self.pending += 1;
        self.items.push_back(Item { pending: true, replies: 1, reply: Reply::default() });
        self.head + self.items.len() as u64 - 1
    }

    /// Puts a reply where its place was kept.
    pub(crate) fn fill(&mut self, place: u64, mut reply: Reply) {
        self.ledger.add(Path::GetCold, &std::mem::take(&mut reply.values));
        let index = place.checked_sub(self.head).and_then(|index| usize::try_from(index).ok());
        let item = index.and_then(|index| self.items.get_mut(index));
        let item = item.expect("a place stays in the queue until it is filled");
        self.len += reply.len();
        self.pending -= 1;
        (item.pending, item.reply) = (false, reply);
    }

    /// Takes what may go out now, at most a megabyte: a client that takes anything at all is seen
    /// to move. `durable` tells how far a shard is.
    pub(crate) fn take(&mut self, durable: impl Fn(ShardIndex) -> Durable) -> Vec<Bytes> {
        let (mut parts, mut room) = (Vec::new(), SEND_LEN_MAX);
        while room > 0 && parts.len() < PARTS_MAX {
            let Some(mut part) = self.ready.pop_front() else {
                if self.release(&durable) {
                    continue;
                }
                break;
            };
            if part.len() > room {
                self.ready.push_front(part.split_off(room));
            }
            room -= part.len();
            parts.push(part);
        }
        self.len -= SEND_LEN_MAX - room;
        parts
    }

    /// Takes the replies that may go out now, one by one.
    pub(crate) fn take_replies(&mut self, durable: impl Fn(ShardIndex) -> Durable) -> Vec<Reply> {
        let mut replies = Vec::new();
        while let Some(mut reply) = self.take_first(&durable) {
            self.len -= reply.len();
            reply.waits = Vec::new();
            replies.push(reply);
        }
        replies
    }

    /// Moves the first reply to the parts that may go, if it may.
    fn release(&mut self, durable: &impl Fn(ShardIndex) -> Durable) -> bool {
        let Some(reply) = self.take_first(durable) else { return false };
        self.ready.extend(reply.parts);
        self.ready.extend((!reply.tail.is_empty()).then(|| reply.tail.freeze()));
        true
    }

    /// Takes the first reply, if it may go.
    fn take_first(&mut self, durable: &impl Fn(ShardIndex) -> Durable) -> Option<Reply> {
        let item = self.items.front_mut().filter(|item| !item.pending)?;
        let (mut lost, mut held) = (false, false);
        for wait in &item.reply.waits {
            match durable(wait.shard) {
                Durable::UpTo(lsn) => held |= lsn < wait.lsn,
                Durable::FailedAfter(lsn) => lost |= lsn < wait.lsn,
            }
        }
        if lost {
            self.len -= item.reply.len();
            item.reply = unknown_outcome(item.replies);
            self.len += item.reply.len();
        } else if held {
            return None;
        }
        self.head += 1;
        self.items.pop_front().map(|item| item.reply)
    }
}

/// What takes the place of replies whose durability will never be known.
fn unknown_outcome(replies: u32) -> Reply {
    let mut reply = Reply::default();
    for _ in 0..replies {
        reply.tail.put_slice(
            b"-UNKNOWN a disk write failed; whether this command took effect is unknown\r\n",
        );
    }
    reply
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wait(lsn: u64) -> Option<Wait> {
        Some(Wait { shard: 0, lsn: Lsn(lsn) })
    }

    fn sent(queue: &mut ReplyQueue, durable: Durable) -> Vec<u8> {
        queue.take(|_| durable).concat()
    }

    #[test]
    fn reply_is_held_until_its_record_is_durable() {
        let mut queue = ReplyQueue::default();
        queue.push(Protocol::Resp2, None, |reply| reply.writer().pong());
        queue.push(Protocol::Resp2, wait(5), |reply| reply.writer().ok());
        queue.push(Protocol::Resp2, None, |reply| reply.writer().integer(1));
        assert_eq!(sent(&mut queue, Durable::UpTo(Lsn(4))), b"+PONG\r\n");
        assert_eq!(sent(&mut queue, Durable::UpTo(Lsn(4))), b"");
        assert_eq!(sent(&mut queue, Durable::UpTo(Lsn(5))), b"+OK\r\n:1\r\n");
        assert!(queue.is_empty());
        assert_eq!(queue.len, 0);
    }

    #[test]
    fn pending_reply_holds_back_those_behind_it() {
        let mut queue = ReplyQueue::default();
        let place = queue.reserve();
        queue.push(Protocol::Resp2, None, |reply| reply.writer().ok());
        assert_eq!(sent(&mut queue, Durable::UpTo(Lsn(0))), b"");
        let mut reply = Reply::new(Protocol::Resp2);
        reply.value(Bytes::from(vec![b'v'; 3000]));
        assert_eq!(queue.pending(), 1);
        queue.fill(place, reply);
        assert_eq!(queue.pending(), 0);
        let bytes = sent(&mut queue, Durable::UpTo(Lsn(0)));
        assert!(bytes.starts_with(b"$3000\r\nvvv") && bytes.ends_with(b"v\r\n+OK\r\n"));
    }

    #[test]
    fn failed_log_turns_each_held_reply_into_an_error() {
        let mut queue = ReplyQueue::default();
        queue.push(Protocol::Resp2, wait(5), |reply| reply.writer().ok());
        queue.push(Protocol::Resp2, wait(6), |reply| reply.writer().ok());
        let bytes = sent(&mut queue, Durable::FailedAfter(Lsn(4)));
        let text = String::from_utf8(bytes).unwrap();
        assert_eq!(text.matches("-UNKNOWN").count(), 2);
        assert!(!text.contains("+OK"));
    }

    #[test]
    fn huge_value_goes_out_in_pieces() {
        let mut queue = ReplyQueue::default();
        let value = Bytes::from(vec![b'v'; 3 * SEND_LEN_MAX]);
        queue.push(Protocol::Resp2, None, |reply| reply.value(value));
        let mut whole = Vec::new();
        while !queue.is_empty() {
            let piece = sent(&mut queue, Durable::UpTo(Lsn(0)));
            assert!((1..=SEND_LEN_MAX).contains(&piece.len()));
            whole.extend(piece);
        }
        assert_eq!(whole.len(), "$3145728\r\n\r\n".len() + 3 * SEND_LEN_MAX);
        assert_eq!(queue.len(), 0);
    }

    #[test]
    fn long_value_is_not_copied() {
        let mut queue = ReplyQueue::default();
        let value = Bytes::from(vec![b'v'; SHARED_VALUE_LEN_MIN]);
        queue.push(Protocol::Resp2, None, |reply| reply.value(value.clone()));
        let parts = queue.take(|_| Durable::UpTo(Lsn(0)));
        assert!(parts.iter().any(|part| part.as_ptr() == value.as_ptr()));
    }
}
