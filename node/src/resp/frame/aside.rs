//! [`Aside`]: arguments that have memory of their own, which can be received into.

use bytes::Bytes;

use super::request::BULK_END_BYTES;
use crate::io::ReceiveRoom;

/// An argument in memory of its own, which is as long as the argument and its line end.
#[derive(Clone, Debug, Default)]
pub struct OwnArgument {
    /// The argument; to keep it is to keep no other memory.
    pub bytes: Bytes,
    /// How many of its bytes were copied here, instead of received.
    pub copied: usize,
}

/// The arguments of one command that are not in the parser's buffer.
#[derive(Debug, Default)]
pub(super) struct Aside {
    /// Complete ones, in their order.
    pub(super) done: Vec<OwnArgument>,
    /// The memory of the one that is not complete, unless it is lent.
    pub(super) open: Option<ReceiveRoom>,
    /// Bytes that were in the memory when it was lent.
    lent: Option<usize>,
    /// Bytes of the complete ones.
    done_bytes: usize,
}

impl Aside {
    pub(super) fn open(&mut self, room: ReceiveRoom) {
        self.open = Some(room);
    }

    /// Whether one is not complete.
    pub(super) const fn is_open(&self) -> bool {
        self.open.is_some() || self.lent.is_some()
    }

    /// Copies what the open one needs of `input`; tells how much that is.
    pub(super) fn feed(&mut self, input: &[u8]) -> usize {
        assert!(self.lent.is_none() || input.is_empty(), "no input comes while memory is lent");
        self.open.as_mut().map_or(0, |room| room.copy(input))
    }

    pub(super) fn lend(&mut self) -> Option<ReceiveRoom> {
        let room = self.open.take()?;
        self.lent = Some(room.filled().len());
        Some(room)
    }

    /// Tells how many bytes have come.
    pub(super) fn take_back(&mut self, room: ReceiveRoom) -> usize {
        let before = self.lent.take().expect("memory was lent");
        let count = room.filled().len().saturating_sub(before);
        self.open = Some(room);
        count
    }

    /// Notes that the open one is complete.
    pub(super) fn close(&mut self) {
        let Some(room) = self.open.take() else { return };
        let copied = room.copied();
        let mut bytes = room.into_bytes();
        self.done_bytes = self.done_bytes.saturating_add(bytes.len());
        bytes.truncate(bytes.len().saturating_sub(BULK_END_BYTES));
        let copied = copied.min(bytes.len());
        self.done.push(OwnArgument { bytes, copied });
    }

    /// Bytes of all of them that have come.
    pub(super) fn bytes(&self) -> usize {
        let open = self.open.as_ref().map_or(0, |room| room.filled().len());
        self.done_bytes.saturating_add(open).saturating_add(self.lent.unwrap_or(0))
    }
}
