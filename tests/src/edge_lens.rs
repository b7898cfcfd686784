//! Lengths of keys and values at which something changes: none at all, one byte, and those about
//! whole sectors, blocks and pieces with a checksum, with and without what stands before a value.

use fastrand::Rng;

/// Sector, half a block, block, piece of a value that has a checksum of its own.
const BOUNDARIES: [usize; 4] = [512, 2_048, 4_096, 8_192];
/// Headers and user key before a value are about so long.
const HEADERS_MAX: usize = 200;

/// Draws such a length.
pub fn edge_len(rng: &mut Rng) -> usize {
    match rng.u8(..8) {
        0..3 => 0,
        3 => 1,
        kind => {
            let boundary = BOUNDARIES[rng.usize(..BOUNDARIES.len())];
            let below = if kind < 6 { rng.usize(..HEADERS_MAX) } else { 1 };
            let above = if kind < 6 { 0 } else { rng.usize(..=2) };
            boundary - below + above
        }
    }
}

/// Makes some of the names in a row empty, one byte long, or as long as about a block.
#[must_use]
pub fn edge_name(index: usize, mut name: Vec<u8>) -> Vec<u8> {
    match index {
        0 => name.clear(),
        1 => name.truncate(1),
        2..17 => {
            let boundary = BOUNDARIES[index % 3];
            name.resize(boundary + index / 3 - 3, b'=');
        }
        _ => {}
    }
    name
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_edge_is_drawn() {
        let mut rng = Rng::with_seed(1);
        let drawn: BTreeSet<usize> = (0..4_000).map(|_| edge_len(&mut rng)).collect();
        for boundary in BOUNDARIES {
            assert!((boundary - 1..=boundary + 1).all(|len| drawn.contains(&len)), "{boundary}");
        }
        assert!(drawn.contains(&0) && drawn.contains(&1));
    }

    #[test]
    fn edge_names_differ() {
        let name = |index: usize| edge_name(index, format!("key {index}").into_bytes());
        let names: BTreeSet<Vec<u8>> = (0..40).map(name).collect();
        assert_eq!(names.len(), 40);
        assert!(names.contains(&b""[..]) && names.contains(&b"k"[..]));
        let lens: BTreeSet<usize> = names.iter().map(Vec::len).collect();
        for boundary in &BOUNDARIES[..3] {
            assert!(lens.contains(boundary) && lens.contains(&(boundary + 1)), "{lens:?}");
        }
    }
}
