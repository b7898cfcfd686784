//! What a running node keeps in mind of its snapshots: [`SnapshotFacts`].

use std::collections::BTreeMap;

use wal::segment;

use super::{Catalog, CatalogFile};
use crate::keyspace::ShardIndex;

/// What a node knows of one of its snapshots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotFacts {
    /// Its name.
    pub id: String,
    /// When it was taken, in ms since 1970.
    pub created_ms: u64,
    /// How many files it has.
    pub files: u64,
    /// How many of their bytes mean something.
    pub bytes: u64,
    /// Its segments: shard, id, and bytes of the file.
    segments: Vec<(ShardIndex, u64, u64)>,
    /// Bytes of its other files, which are its own.
    other_bytes: u64,
}

impl SnapshotFacts {
    /// Its segments: shard and id.
    pub(crate) fn segments(&self) -> impl Iterator<Item = (ShardIndex, u64)> {
        self.segments.iter().map(|(shard, id, _)| (*shard, *id))
    }
}

impl From<&Catalog> for SnapshotFacts {
    fn from(catalog: &Catalog) -> Self {
        let (mut segments, mut other_bytes) = (Vec::new(), 0);
        for file in &catalog.files {
            match segment_of(&file.name) {
                Some((shard, id)) => segments.push((shard, id, file.len)),
                None => other_bytes += file.len,
            }
        }
        Self {
            id: catalog.id.clone(),
            created_ms: catalog.created_ms,
            files: catalog.files.len() as u64,
            bytes: catalog.files.iter().map(CatalogFile::bytes).sum(),
            segments,
            other_bytes,
        }
    }
}

/// Reads shard and id from the name of a segment in a snapshot.
fn segment_of(name: &str) -> Option<(ShardIndex, u64)> {
    let (shard, file) = name.strip_prefix("shard-")?.split_once('/')?;
    Some((shard.parse().ok()?, segment::parse_file_name(file)?))
}

/// The disk space of some snapshots together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SnapshotSpace {
    /// Bytes of their files, each counted once.
    pub bytes: u64,
    /// Of these, bytes that the node itself has no use for any more.
    pub bytes_apart: u64,
}

impl SnapshotSpace {
    /// Adds up the files of `snapshots`; `is_in_use` tells of a shard's segment whether the node
    /// has it, too.
    pub fn of(snapshots: &[SnapshotFacts], is_in_use: impl Fn(ShardIndex, u64) -> bool) -> Self {
        let own: u64 = snapshots.iter().map(|snapshot| snapshot.other_bytes).sum();
        let mut space = Self { bytes: own, bytes_apart: own };
        let segments = snapshots.iter().flat_map(|snapshot| &snapshot.segments);
        let segments: BTreeMap<_, _> =
            segments.map(|(shard, id, len)| ((*shard, *id), *len)).collect();
        for ((shard, id), len) in segments {
            space.bytes += len;
            if !is_in_use(shard, id) {
                space.bytes_apart += len;
            }
        }
        space
    }
}

#[cfg(test)]
mod tests {
    use storage::FileContent;

    use super::*;

    #[test]
    fn shared_segments_count_once_and_apart_only_if_the_node_has_them_no_more() {
        let file = |name: &str, len| CatalogFile {
            name: name.to_owned(),
            len,
            content: FileContent { used: len / 2, crc32: 0, tail: None },
        };
        let one = Catalog {
            id: "one".to_owned(),
            created_ms: 1,
            store: [0; 16],
            files: vec![
                file("shard-00/0000000000000001.segment", 1000),
                file("shard-00/0000000000000002.segment", 200),
                file("shard-01/0000000000000002.segment", 30),
                file("shard-01/manifest-0", 4),
            ],
        };
        let facts = SnapshotFacts::from(&one);
        assert_eq!((facts.files, facts.bytes), (4, 617));
        let two = SnapshotFacts { id: "two".to_owned(), ..facts.clone() };
        let space = SnapshotSpace::of(&[facts, two], |shard, id| (shard, id) != (0, 1));
        assert_eq!(space, SnapshotSpace { bytes: 1238, bytes_apart: 1008 });
        assert_eq!(SnapshotSpace::of(&[], |_, _| false), SnapshotSpace::default());
    }
}
