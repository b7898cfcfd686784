//! [`ValueChunks`]: memory for keys and values until they are acknowledged.
//!
//! They come and go in order, so small ones share a chunk of memory, which costs no allocation
//! each. A value that may stay for longer has memory of its own: it would keep a whole chunk.

use bytes::{Bytes, BytesMut};

/// Bytes of a chunk.
const CHUNK_LEN: usize = 64 << 10;
/// Longer ones have memory of their own: replies may refer to them instead of copying them.
const SHARED_LEN_MAX: usize = 1280;

/// See the file's documentation.
#[derive(Debug)]
pub(crate) struct ValueChunks {
    chunk: BytesMut,
    /// Whether values stay after they are acknowledged.
    are_kept: bool,
}

impl ValueChunks {
    /// Memory for values that stay (in a cache), or do not.
    pub(crate) fn new(are_kept: bool) -> Self {
        Self { chunk: BytesMut::new(), are_kept }
    }

    /// Copies a user key and a value; tells them and the bytes they take.
    pub(crate) fn copy(&mut self, user_key: &[u8], value: &[u8]) -> (Bytes, Bytes, usize) {
        let len = user_key.len() + value.len();
        let mut both = if self.are_kept || len > SHARED_LEN_MAX {
            let mut own = BytesMut::with_capacity(len);
            own.extend_from_slice(user_key);
            own.extend_from_slice(value);
            own.freeze()
        } else {
            if self.chunk.capacity() < len {
                self.chunk = BytesMut::with_capacity(CHUNK_LEN);
            }
            self.chunk.extend_from_slice(user_key);
            self.chunk.extend_from_slice(value);
            self.chunk.split().freeze()
        };
        (both.split_to(user_key.len()), both, len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_are_what_was_given_whatever_they_share() {
        for are_kept in [false, true] {
            let mut chunks = ValueChunks::new(are_kept);
            let bytes: Vec<u8> = (0..10_000u32).map(|at| at as u8).collect();
            let lens = (0..400).map(|at| at * 37 % 1500);
            let copies: Vec<_> = lens
                .map(|len| (len, chunks.copy(&bytes[len..2 * len], &bytes[..3 * len])))
                .collect();
            for (len, (user_key, value, footprint)) in copies {
                assert_eq!(user_key, bytes[len..2 * len]);
                assert_eq!(value, bytes[..3 * len]);
                assert_eq!(footprint, 4 * len);
            }
        }
    }
}
