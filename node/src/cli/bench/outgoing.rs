//! [`Outgoing`]: requests on their way into a socket. Long values are not copied: one tail is
//! shared by all requests.

use std::collections::VecDeque;
use std::io::{self, IoSlice, Write};
use std::sync::Arc;

/// From this length on a tail is shared instead of copied.
const SHARED_LEN_MIN: usize = 1024;
/// Pieces given to one write at most.
const SLICES: usize = 64;

/// Bytes to send: heads, with the tail inserted at the cuts.
#[derive(Debug)]
pub(super) struct Outgoing {
    heads: Vec<u8>,
    /// Where in the heads the tail is inserted.
    cuts: VecDeque<usize>,
    tail: Arc<[u8]>,
    heads_sent: usize,
    /// Of the tail at the first cut.
    tail_sent: usize,
}

impl Outgoing {
    pub(super) fn new(tail: Arc<[u8]>) -> Self {
        let (heads, cuts) = (Vec::new(), VecDeque::new());
        Self { heads, cuts, tail, heads_sent: 0, tail_sent: 0 }
    }

    /// Where the next request is written to.
    pub(super) fn heads(&mut self) -> &mut Vec<u8> {
        &mut self.heads
    }

    /// Puts the tail behind what was written so far.
    pub(super) fn push_tail(&mut self) {
        if self.tail.len() < SHARED_LEN_MIN {
            self.heads.extend_from_slice(&self.tail);
        } else {
            self.cuts.push_back(self.heads.len());
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.heads_sent == self.heads.len() && self.cuts.is_empty()
    }

    /// Writes as much as the socket takes; the rest waits.
    ///
    /// # Errors
    /// What the system said, but for a full socket.
    pub(super) fn write_to(&mut self, socket: &mut impl Write) -> io::Result<()> {
        while !self.is_empty() {
            match self.write_once(socket) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(len) => self.sent(len),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.heads.clear();
        self.heads_sent = 0;
        Ok(())
    }

    fn write_once(&self, socket: &mut impl Write) -> io::Result<usize> {
        if self.cuts.is_empty() {
            return socket.write(&self.heads[self.heads_sent..]);
        }
        let mut slices = [IoSlice::new(&[]); SLICES];
        let (mut count, mut at, mut tail_at) = (0, self.heads_sent, self.tail_sent);
        for cut in self.cuts.iter().take(SLICES / 2) {
            slices[count] = IoSlice::new(&self.heads[at..*cut]);
            slices[count + 1] = IoSlice::new(&self.tail[tail_at..]);
            (count, at, tail_at) = (count + 2, *cut, 0);
        }
        socket.write_vectored(&slices[..count])
    }

    fn sent(&mut self, mut len: usize) {
        while len > 0 {
            let until = self.cuts.front().copied().unwrap_or(self.heads.len());
            let of_heads = len.min(until - self.heads_sent);
            self.heads_sent += of_heads;
            len -= of_heads;
            if len == 0 {
                return;
            }
            let of_tail = len.min(self.tail.len() - self.tail_sent);
            self.tail_sent += of_tail;
            len -= of_tail;
            if self.tail_sent == self.tail.len() {
                self.tail_sent = 0;
                self.cuts.pop_front();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes so many bytes, then is full once.
    struct Socket {
        taken: Vec<u8>,
        step: usize,
        full: bool,
    }

    impl Write for Socket {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.write_vectored(&[IoSlice::new(bytes)])
        }

        fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
            self.full = !self.full;
            if self.full {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            let bytes: Vec<u8> = slices.iter().flat_map(|slice| slice.iter().copied()).collect();
            let len = bytes.len().min(self.step);
            self.taken.extend_from_slice(&bytes[..len]);
            Ok(len)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn all_bytes_arrive_in_order_whatever_the_socket_takes() {
        for tail_len in [2, SHARED_LEN_MIN - 1, SHARED_LEN_MIN, SHARED_LEN_MIN + 5] {
            let tail: Arc<[u8]> = (0..tail_len).map(|at| at as u8).collect();
            for step in [1, 7, 500, 1030, 5000, usize::MAX] {
                let mut outgoing = Outgoing::new(Arc::clone(&tail));
                let mut socket = Socket { taken: Vec::new(), step, full: false };
                let mut expected = Vec::new();
                for request in 0..40_u8 {
                    let head = [request; 3];
                    outgoing.heads().extend_from_slice(&head);
                    expected.extend_from_slice(&head);
                    if request % 3 > 0 {
                        outgoing.push_tail();
                        expected.extend_from_slice(&tail);
                    }
                    // Requests are also added while others are under way.
                    outgoing.write_to(&mut socket).unwrap();
                }
                while !outgoing.is_empty() {
                    outgoing.write_to(&mut socket).unwrap();
                }
                assert!(socket.taken == expected, "tail of {tail_len}, {step} at a time");
            }
        }
    }
}
