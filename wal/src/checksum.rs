//! CRC-32 (IEEE) as the format uses it: plain for values, seeded with a place for headers, and the
//! location of a single damaged byte from the difference of two checksums.
//!
//! A seed ties a header to where it belongs (store, segment, offset), so that stale, foreign or
//! misdirected bytes never validate, nor do zeros.

use crc32fast::Hasher;

/// Where a header belongs; its checksum starts from this.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The store's uuid.
    pub store: [u8; 16],
    /// The segment's id.
    pub segment: u64,
    /// The header's offset in the segment, in bytes.
    pub offset: u64,
}

impl Place {
    /// Returns the same place `offset` bytes into the segment.
    #[must_use]
    pub fn at(self, offset: u64) -> Self {
        Self { offset, ..self }
    }

    fn hasher(&self) -> Hasher {
        // In one piece: a short update costs its overhead more than its bytes.
        let mut bytes = [0; 32];
        bytes[..16].copy_from_slice(&self.store);
        bytes[16..24].copy_from_slice(&self.segment.to_le_bytes());
        bytes[24..].copy_from_slice(&self.offset.to_le_bytes());
        let mut hasher = Hasher::new();
        hasher.update(&bytes);
        hasher
    }
}

/// Returns the CRC-32 of `bytes` alone: values and whole files.
#[must_use]
pub fn plain(bytes: &[u8]) -> u32 {
    crc32fast::hash(bytes)
}

/// Returns the CRC-32 of `first` followed by `rest_len` bytes whose own is `rest`.
#[must_use]
pub fn joined(first: &[u8], rest: u32, rest_len: u64) -> u32 {
    let mut hasher = Hasher::new();
    hasher.update(first);
    hasher.combine(&Hasher::new_with_initial_len(rest, rest_len));
    hasher.finalize()
}

/// Returns the CRC-32 of `len` bytes alone, when `seeded` is that of a place followed by them.
#[must_use]
pub fn unseeded(place: &Place, seeded: u32, len: u64) -> u32 {
    // CRC-32 is linear: the place's part is what it is in front of bytes whose own sum is 0.
    let mut hasher = place.hasher();
    hasher.combine(&Hasher::new_with_initial_len(0, len));
    seeded ^ hasher.finalize()
}

/// Returns the CRC-32 of `first_len` bytes whose own is `first`, followed by `rest`.
#[must_use]
pub fn continued(first: u32, first_len: u64, rest: &[u8]) -> u32 {
    let mut hasher = Hasher::new_with_initial_len(first, first_len);
    hasher.update(rest);
    hasher.finalize()
}

/// The CRC-32 of bytes that come piece by piece.
#[derive(Clone, Debug, Default)]
pub struct RunningChecksum(Hasher);

impl RunningChecksum {
    /// Takes the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// Takes the next `len` bytes, whose own checksum is `sum`.
    pub fn join(&mut self, sum: u32, len: u64) {
        self.0.combine(&Hasher::new_with_initial_len(sum, len));
    }

    /// The checksum of all bytes so far.
    #[must_use]
    pub fn sum(&self) -> u32 {
        self.0.clone().finalize()
    }
}

/// Returns the CRC-32 of a place followed by the `parts`.
#[must_use]
pub fn seeded(place: &Place, parts: &[&[u8]]) -> u32 {
    let mut hasher = place.hasher();
    for part in parts {
        hasher.update(part);
    }
    hasher.finalize()
}

/// A single damaged byte: where it is and what to XOR it with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ByteError {
    /// Position from the start of the checksummed bytes.
    pub position: usize,
    /// Difference to the right value; never 0.
    pub difference: u8,
}

const POLYNOMIAL: u32 = 0xEDB8_8320;

/// Takes a CRC difference back over one zero byte.
fn unshift(mut difference: u32) -> u32 {
    for _ in 0..8 {
        let carry = difference >> 31;
        if carry == 1 {
            difference ^= POLYNOMIAL;
        }
        difference <<= 1;
        difference |= carry;
    }
    difference
}

/// Finds the single byte, among the last `len` checksummed ones, whose change explains why the
/// checksum is `found` and not `expected`; O(`len`).
///
/// CRC-32 is linear: the difference of the checksums depends only on the damaged byte's value and
/// its distance from the end. The answer is a candidate: with random damage a wrong one turns up
/// with probability about `len` x 255 / 2^32, so callers confirm it with a second checksum or by
/// what they know of the content.
#[must_use]
pub fn single_byte_error(expected: u32, found: u32, len: usize) -> Option<ByteError> {
    let mut difference = expected ^ found;
    if difference == 0 {
        return None;
    }
    for from_end in 0..len {
        // A byte error d contributes d, advanced over `from_end` + 1 zero bytes.
        difference = unshift(difference);
        if let Ok(byte) = u8::try_from(difference) {
            return Some(ByteError { position: len - 1 - from_end, difference: byte });
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Advances a CRC difference over one zero byte.
    fn shift(mut difference: u32) -> u32 {
        for _ in 0..8 {
            let carry = difference & 1;
            difference >>= 1;
            if carry == 1 {
                difference ^= POLYNOMIAL;
            }
        }
        difference
    }

    #[test]
    fn shift_and_unshift_are_inverse() {
        for value in [1, 0x80, 0xFF, 0xDEAD_BEEF, POLYNOMIAL, u32::MAX] {
            assert_eq!(unshift(shift(value)), value);
            assert_eq!(shift(unshift(value)), value);
        }
    }

    #[test]
    fn every_single_byte_error_is_located() {
        let place = Place { store: [7; 16], segment: 3, offset: 4096 };
        let original: Vec<u8> = (0..100u8).collect();
        let expected = seeded(&place, &[&original]);
        for position in 0..original.len() {
            for difference in [1u8, 0x80, 0xFF, 0x5A] {
                let mut damaged = original.clone();
                damaged[position] ^= difference;
                let found = seeded(&place, &[&damaged]);
                let error = single_byte_error(expected, found, damaged.len());
                assert_eq!(error, Some(ByteError { position, difference }));
            }
        }
    }

    #[test]
    fn joined_is_the_checksum_of_both() {
        for at in [0, 3, 9] {
            let (first, rest) = b"123456789".split_at(at);
            assert_eq!(joined(first, plain(rest), rest.len() as u64), 0xCBF4_3926);
            assert_eq!(continued(plain(first), first.len() as u64, rest), 0xCBF4_3926);
        }
    }

    #[test]
    fn place_can_be_taken_out_of_a_checksum() {
        let place = Place { store: [7; 16], segment: 3, offset: 4096 };
        for bytes in [&b""[..], b"x", &[0; 5000], &[0xA5; 4000]] {
            let sum = seeded(&place, &[bytes]);
            assert_eq!(unseeded(&place, sum, bytes.len() as u64), plain(bytes), "{}", bytes.len());
        }
    }

    #[test]
    fn place_is_part_of_the_checksum() {
        let place = Place { store: [7; 16], segment: 3, offset: 4096 };
        let sum = seeded(&place, &[b"x"]);
        assert_ne!(sum, seeded(&place.at(8192), &[b"x"]));
        assert_ne!(sum, seeded(&Place { segment: 4, ..place }, &[b"x"]));
        assert_ne!(sum, seeded(&Place { store: [8; 16], ..place }, &[b"x"]));
        assert_eq!(sum, seeded(&place, &[b"", b"x"]));
    }
}
