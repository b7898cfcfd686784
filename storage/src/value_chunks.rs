//! [`ValueChunks`]: memory for keys and values until they are acknowledged.
//!
//! They come and go in order, so small ones share a chunk of memory, which costs no allocation
//! each. A value that may stay for longer has memory of its own: it would keep a whole chunk.

use bytes::{Bytes, BytesMut};

/// Bytes of a chunk.
const CHUNK_LEN: usize = 64 << 10;
/// Longer ones have memory of their own: replies may refer to them instead of copying them.
const SHARED_LEN_MAX: usize = 1280;

/// Room for a short key and value in one allocation with what counts their users.
struct Inline<const N: usize> {
    bytes: [u8; N],
    len: usize,
}

impl<const N: usize> AsRef<[u8]> for Inline<N> {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

impl<const N: usize> Inline<N> {
    fn of(user_key: &[u8], value: &[u8]) -> Bytes {
        let (mut bytes, len) = ([0; N], user_key.len() + value.len());
        bytes[..user_key.len()].copy_from_slice(user_key);
        bytes[user_key.len()..len].copy_from_slice(value);
        Bytes::from_owner(Self { bytes, len })
    }
}

/// Memory of their own for a key and a value; tells the bytes it takes.
fn own(user_key: &[u8], value: &[u8]) -> (Bytes, usize) {
    let len = user_key.len() + value.len();
    match len {
        ..=64 => (Inline::<64>::of(user_key, value), 64),
        65..=128 => (Inline::<128>::of(user_key, value), 128),
        129..=256 => (Inline::<256>::of(user_key, value), 256),
        _ => {
            let mut own = BytesMut::with_capacity(len);
            own.extend_from_slice(user_key);
            own.extend_from_slice(value);
            (own.freeze(), len)
        }
    }
}

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
        let (mut both, footprint) = if self.are_kept || len > SHARED_LEN_MAX {
            own(user_key, value)
        } else {
            if self.chunk.capacity() < len {
                self.chunk = BytesMut::with_capacity(CHUNK_LEN);
            }
            self.chunk.extend_from_slice(user_key);
            self.chunk.extend_from_slice(value);
            (self.chunk.split().freeze(), len)
        };
        (both.split_to(user_key.len()), both, footprint)
    }

    /// As [`ValueChunks::copy`], but of a long value, which has memory of its own, not even one.
    pub(crate) fn keep(&mut self, user_key: &[u8], value: &Bytes) -> (Bytes, Bytes, usize) {
        let len = user_key.len() + value.len();
        if len <= SHARED_LEN_MAX {
            return self.copy(user_key, value);
        }
        (Bytes::copy_from_slice(user_key), value.clone(), len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_values_are_kept_where_they_are() {
        let mut chunks = ValueChunks::new(false);
        for (len, is_kept) in [(1000, false), (1280, false), (1281, true), (100_000, true)] {
            let value = Bytes::from(vec![7; len - 3]);
            let (user_key, kept, footprint) = chunks.keep(b"key", &value);
            assert_eq!((&user_key[..], &kept, footprint), (&b"key"[..], &value, len));
            assert_eq!(kept.as_ptr() == value.as_ptr(), is_kept, "{len}");
        }
    }

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
                assert!(footprint == 4 * len || are_kept && footprint >= 4 * len);
            }
        }
    }
}
