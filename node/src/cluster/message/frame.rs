//! Frames of a link: RESP arrays of two or three bulk strings. What comes before the payload, the
//! head, is cut out of the stream here; the payload is the reader's.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::as_conversions)]

use std::io::Write;

use bytes::Bytes;

/// Bulk strings of one frame: a verb, its body, and a payload.
pub const BULKS_MAX: usize = 3;
/// Longest bulk string of a frame.
pub const BULK_BYTES_MAX: usize = 512 * 1024;
/// Longest bulk string before the handshake is over.
pub const HANDSHAKE_BULK_BYTES_MAX: usize = 256;
/// Longest line that tells a number, its end included.
const LINE_LEN_MAX: usize = 16;
/// Payloads up to this length are copied behind their heads.
const COPIED_LEN_MAX: usize = 1_024;
/// What a frame has beside its verb, its body and its payload, at most.
const FRAME_LEN_EXPECTED: usize = 48;
const LINE_END: &[u8] = b"\r\n";

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

/// A frame up to its payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Head<'a> {
    pub(super) verb: &'a [u8],
    pub(super) body: &'a [u8],
    /// How long the payload is that follows, if one does; its line end comes after it.
    pub(super) payload_len: Option<usize>,
}

/// What is at the front of some bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Front<'a> {
    /// A whole head, and its length.
    Head(Head<'a>, usize),
    /// The beginning of one; so many bytes belong to it at least that are not there yet.
    Missing(usize),
}

/// Reads the head at the front. It takes no time to speak of to read it again from the start when
/// more has come: bulk strings are passed over by their lengths.
pub(super) fn read_head(bytes: &[u8], bulk_bytes_max: usize) -> Result<Front<'_>, FrameError> {
    let mut rest = Rest { bytes, at: 0 };
    let Some(count) = rest.line(b'*', BULKS_MAX)? else { return Ok(Front::Missing(1)) };
    if count < 2 {
        return Err(FrameError::Length);
    }
    let verb = match rest.bulk(bulk_bytes_max)? {
        Ok(verb) => verb,
        Err(missing) => return Ok(Front::Missing(missing)),
    };
    let body = match rest.bulk(bulk_bytes_max)? {
        Ok(body) => body,
        Err(missing) => return Ok(Front::Missing(missing)),
    };
    let mut payload_len = None;
    if count == BULKS_MAX {
        payload_len = rest.line(b'$', bulk_bytes_max)?;
        if payload_len.is_none() {
            return Ok(Front::Missing(1));
        }
    }
    Ok(Front::Head(Head { verb, body, payload_len }, rest.at))
}

struct Rest<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Rest<'a> {
    /// The number of the line that begins here; none, if it is not whole.
    fn line(&mut self, kind: u8, max: usize) -> Result<Option<usize>, FrameError> {
        let line = self.bytes.get(self.at..).unwrap_or_default();
        let Some((first, rest)) = line.split_first() else { return Ok(None) };
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
        self.at = self.at.saturating_add(len).saturating_add(2);
        Ok(Some(number))
    }

    /// The bulk string that begins here, or how many bytes are missing of it at least.
    fn bulk(&mut self, max: usize) -> Result<Result<&'a [u8], usize>, FrameError> {
        let Some(len) = self.line(b'$', max)? else { return Ok(Err(1)) };
        let end = self.at.saturating_add(len);
        let tail = end.saturating_add(LINE_END.len());
        let (Some(bulk), Some(line_end)) =
            (self.bytes.get(self.at..end), self.bytes.get(end..tail))
        else {
            return Ok(Err(tail.saturating_sub(self.bytes.len())));
        };
        if line_end != LINE_END {
            return Err(unexpected_end(line_end));
        }
        self.at = tail;
        Ok(Ok(bulk))
    }
}

/// What is wrong with the bytes after a payload, which are not its line end.
pub(super) fn unexpected_end(found: &[u8]) -> FrameError {
    let wrong = found.iter().zip(LINE_END).find(|(found, wanted)| found != wanted);
    FrameError::Unexpected { found: wrong.map_or(0, |(found, _)| *found) }
}

/// Writes a frame. A payload that is not short is not copied: it and the line end stand for
/// themselves.
#[must_use]
pub fn encode(verb: &[u8], body: &[u8], payload: Option<Bytes>) -> Vec<Bytes> {
    let short = payload.as_ref().map_or(0, Bytes::len);
    let copied = if short <= COPIED_LEN_MAX { short } else { 0 };
    let lens = [verb.len(), body.len(), copied, FRAME_LEN_EXPECTED];
    let mut head = Vec::with_capacity(lens.into_iter().fold(0, usize::saturating_add));
    head.extend_from_slice(if payload.is_some() { b"*3\r\n" } else { b"*2\r\n" });
    for bulk in [verb, body] {
        begin_bulk(&mut head, bulk.len());
        head.extend_from_slice(bulk);
        head.extend_from_slice(LINE_END);
    }
    let Some(payload) = payload else { return vec![head.into()] };
    begin_bulk(&mut head, payload.len());
    if payload.len() <= COPIED_LEN_MAX {
        head.extend_from_slice(&payload);
        head.extend_from_slice(LINE_END);
        return vec![head.into()];
    }
    vec![head.into(), payload, Bytes::from_static(LINE_END)]
}

fn begin_bulk(head: &mut Vec<u8>, len: usize) {
    write!(head, "${len}\r\n").expect("memory takes what is written");
}
