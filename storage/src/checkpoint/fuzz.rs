//! Feeds any bytes to the checkpoint decoder; for fuzzers and seeded tests.

use wal::Lsn;
use wal::disk::IoBuffer;

use super::load::load_mapped;
use super::{CheckpointId, format};
use crate::index::slot::Prefix;

/// The checkpoint that fuzzed bytes are taken for.
pub(crate) const FUZZED: CheckpointId =
    CheckpointId { store: [0x5A; 16], shard: 1, shard_count: 4, lsn: Lsn(77) };

/// Decodes `bytes` as they are, and with their checksums made to match, and walks what comes out;
/// tells how many slots that were. It must return, whatever the bytes.
#[must_use]
pub fn fuzz_checkpoint(bytes: &[u8]) -> u64 {
    let mut resealed = bytes.to_vec();
    let sealed = format::reseal(&FUZZED, &mut resealed);
    let again = sealed.map_or(0, |()| slots_of(&resealed));
    slots_of(bytes) + again
}

fn slots_of(bytes: &[u8]) -> u64 {
    let mut file = IoBuffer::with_capacity(bytes.len());
    file.extend_from_slice(bytes);
    let loaded = load_mapped(file, &FUZZED);
    let walked = loaded.map(|checkpoint| checkpoint.index.walk(Prefix(0)).count());
    walked.map_or(0, |count| count as u64)
}
