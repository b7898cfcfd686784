//! Small changes to bytes, of the kinds that break decoders.

use fastrand::Rng;

/// Numbers at the edges of what a field can hold.
const EDGES: [u64; 10] =
    [0, 1, 0x7F, 0xFF, 0xFFFF, 0x7FFF_FFFF, 0xFFFF_FFFF, 1 << 32, i64::MAX as u64, u64::MAX];

/// Changes the bytes in one place.
pub fn mutate(bytes: &mut Vec<u8>, rng: &mut Rng) {
    if bytes.is_empty() {
        bytes.push(rng.u8(..));
        return;
    }
    let at = rng.usize(..bytes.len());
    // Headers come first: most changes shall hit one.
    let at = if rng.bool() { at % 96 } else { at };
    match rng.u8(..7) {
        0 => bytes[at] ^= 1 << rng.u8(..8),
        1 => bytes[at] = rng.u8(..),
        2 | 3 => {
            let width = [1, 2, 4, 8][rng.usize(..4)];
            let edge = EDGES[rng.usize(..EDGES.len())].wrapping_sub(rng.u64(..3));
            let room = &mut bytes[at - at % width..];
            room.iter_mut().zip(&edge.to_le_bytes()[..width]).for_each(|(byte, new)| *byte = *new);
        }
        4 => bytes.truncate(at),
        5 => {
            let end = bytes.len().min(at + rng.usize(1..=64));
            let copy = bytes[at..end].to_vec();
            let to = rng.usize(..=bytes.len());
            bytes.splice(to..to, copy);
        }
        _ => {
            let end = bytes.len().min(at + rng.usize(1..=64));
            bytes.drain(at..end);
        }
    }
}
