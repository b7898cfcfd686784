//! Frames of a link: RESP arrays of bulk strings, cut out of the stream.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::as_conversions)]

use bytes::{Buf, Bytes, BytesMut};

/// Bulk strings of one frame: a verb, its body, and a payload.
pub const BULKS_MAX: usize = 3;
/// Longest bulk string of a frame.
pub const BULK_BYTES_MAX: usize = 512 * 1024;
/// Longest line that tells a number, its end included.
const LINE_LEN_MAX: usize = 16;

/// Why the bytes of a link cannot be followed; it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Another byte than frames have there.
    #[error("unexpected byte {found:#04x}")]
    Unexpected {
        /// Which.
        found: u8,
    },
    /// No number, or above its limit.
    #[error("bad length")]
    Length,
}

/// Cuts frames out of a stream; holds at most one unfinished frame and what was fed.
#[derive(Debug, Default)]
pub struct FrameReader {
    buffer: BytesMut,
    bulks: Vec<Bytes>,
    wanted: usize,
}

impl FrameReader {
    /// Takes bytes in. Drain [`FrameReader::poll_frame`] before the next ones.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// Bytes held.
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        self.bulks.iter().fold(self.buffer.len(), |sum, bulk| sum.saturating_add(bulk.len()))
    }

    /// The next whole frame.
    ///
    /// # Errors
    /// [`FrameError`]; nothing follows it.
    pub fn poll_frame(&mut self) -> Result<Option<Vec<Bytes>>, FrameError> {
        if self.wanted == 0 {
            let Some((count, len)) = self.line(b'*', BULKS_MAX)? else { return Ok(None) };
            if count == 0 {
                return Err(FrameError::Length);
            }
            self.buffer.advance(len);
            self.wanted = count;
        }
        while self.bulks.len() < self.wanted {
            let Some((bulk_len, line_len)) = self.line(b'$', BULK_BYTES_MAX)? else {
                return Ok(None);
            };
            let end = line_len.saturating_add(bulk_len);
            let Some(tail) = self.buffer.get(end..end.saturating_add(2)) else { return Ok(None) };
            if tail != b"\r\n" {
                return Err(FrameError::Unexpected { found: tail.first().copied().unwrap_or(0) });
            }
            self.buffer.advance(line_len);
            self.bulks.push(self.buffer.split_to(bulk_len).freeze());
            self.buffer.advance(2);
        }
        self.wanted = 0;
        Ok(Some(std::mem::take(&mut self.bulks)))
    }

    /// The number of the line that begins here, and the line's length.
    fn line(&self, kind: u8, max: usize) -> Result<Option<(usize, usize)>, FrameError> {
        let Some((first, rest)) = self.buffer.split_first() else { return Ok(None) };
        if *first != kind {
            return Err(FrameError::Unexpected { found: *first });
        }
        let line = rest.get(..LINE_LEN_MAX).unwrap_or(rest);
        let Some(len) = line.iter().position(|byte| *byte == b'\n') else {
            return if rest.len() >= LINE_LEN_MAX { Err(FrameError::Length) } else { Ok(None) };
        };
        let digits = line.get(..len).and_then(|line| line.strip_suffix(b"\r"));
        let digits = digits.filter(|digits| {
            !digits.is_empty()
                && digits.iter().all(u8::is_ascii_digit)
                && (digits.len() == 1 || !digits.starts_with(b"0"))
        });
        let number = digits.and_then(|digits| std::str::from_utf8(digits).ok()?.parse().ok());
        let number: usize = number.filter(|number| *number <= max).ok_or(FrameError::Length)?;
        Ok(Some((number, len.saturating_add(2))))
    }
}

/// Writes a frame. The payload is not copied: it and the line end stand for themselves.
#[must_use]
pub fn encode(verb: &[u8], body: &[u8], payload: Option<Bytes>) -> Vec<Bytes> {
    let mut head = format!("*{}\r\n", if payload.is_some() { 3 } else { 2 }).into_bytes();
    for bulk in [verb, body] {
        head.extend_from_slice(format!("${}\r\n", bulk.len()).as_bytes());
        head.extend_from_slice(bulk);
        head.extend_from_slice(b"\r\n");
    }
    let Some(payload) = payload else { return vec![head.into()] };
    head.extend_from_slice(format!("${}\r\n", payload.len()).as_bytes());
    vec![head.into(), payload, Bytes::from_static(b"\r\n")]
}
