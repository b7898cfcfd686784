//! Shelved files at a start: those of the last life are taken over, and so are its blank segments,
//! so that a start needs no space and a full disk keeps its reserve (ADR 0014).

use wal::disk::{DiskError, DiskOperation, DiskOutput, FileId, FileName, OpenMode};
use wal::group_commit::OpenSegment;
use wal::procedure::DiskPort;
use wal::segment::{self, Identity, SEGMENT_BYTES_MIN, SegmentHeader, Space};

use super::{Loaded, disk_error};
use crate::error::OpenError;
use crate::store::StoreOptions;
use crate::store::pool::{RESERVED_COUNT, SHELVED_COUNT_MAX, Shelved};

/// The shelved files of a store that is being opened.
pub(super) struct Reserve<'a> {
    port: &'a DiskPort,
    directory: &'a FileName,
    segment_bytes: u64,
    pub(super) shelved: Vec<Shelved>,
    pub(super) next_file: u32,
}

impl<'a> Reserve<'a> {
    /// Opens the shelved files that are of use, and removes the others.
    pub(super) async fn open(
        port: &'a DiskPort,
        directory: &'a FileName,
        options: &StoreOptions,
        loaded: &Loaded,
    ) -> Result<Self, OpenError> {
        let (segment_bytes, next_file) = (options.segment_bytes, loaded.next_file);
        let mut reserve = Self { port, directory, segment_bytes, shelved: Vec::new(), next_file };
        let mut files = loaded.shelved.clone();
        // The longest first: they are the ones to keep.
        files.sort_unstable_by_key(|(id, len)| (std::cmp::Reverse(*len), *id));
        for (id, len) in files {
            let name = segment::shelved_name(directory, id);
            if reserve.is_of_use(len) {
                let file = reserve.next_file();
                let mode = OpenMode::ReadWrite;
                let open = DiskOperation::Open { file, name: name.clone(), mode };
                let opened = port.call(open).await.map_err(|e| disk_error("opening", &name, e))?;
                debug_assert!(matches!(opened, DiskOutput::Opened { .. }));
                let segment = OpenSegment { id, file, len };
                reserve.shelved.push(Shelved { segment, space: Space::Reused });
            } else {
                let remove = DiskOperation::Remove { name: name.clone() };
                port.call(remove).await.map_err(|e| disk_error("removing", &name, e))?;
            }
        }
        Ok(reserve)
    }

    fn is_of_use(&self, len: u64) -> bool {
        let shortest = SEGMENT_BYTES_MIN.min(self.segment_bytes);
        (shortest..=self.segment_bytes).contains(&len) && self.shelved.len() < SHELVED_COUNT_MAX
    }

    fn next_file(&mut self) -> FileId {
        let file = FileId(self.next_file);
        self.next_file += 1;
        file
    }

    /// Chooses among blank segments those to shelve; the others are to be `removed`. One that ever
    /// had a frame, were it an idle one, may be linked in a snapshot: it is not written again.
    pub(super) fn choose(
        &self,
        blank: Vec<(OpenSegment, bool)>,
        removed: &mut Vec<OpenSegment>,
    ) -> Vec<OpenSegment> {
        let mut left = SHELVED_COUNT_MAX.saturating_sub(self.shelved.len());
        let mut chosen = Vec::new();
        for (segment, had_frames) in blank {
            if !had_frames && left > 0 && self.is_of_use(segment.len) {
                left -= 1;
                chosen.push(segment);
            } else {
                removed.push(segment);
            }
        }
        chosen
    }

    /// Shelves segments that no manifest lists any more.
    pub(super) async fn shelve(&mut self, blank: &[OpenSegment]) -> Result<(), OpenError> {
        for segment in blank {
            let (port, directory) = (self.port.clone(), self.directory.clone());
            let name = segment::file_name(self.directory, segment.id);
            let shelving = segment::shelve(port, directory, segment.id);
            shelving.await.map_err(|e| disk_error("shelving", &name, e))?;
            self.shelved.push(Shelved { segment: *segment, space: Space::Reused });
        }
        Ok(())
    }

    /// Makes the segment that a start begins with: of a shelved file, if the reserve can spare one,
    /// else of zeros.
    pub(super) async fn first_segment(
        &mut self,
        identity: Identity,
        id: u64,
    ) -> Result<OpenSegment, DiskError> {
        let (port, directory) = (self.port.clone(), self.directory.clone());
        if self.shelved.len() > RESERVED_COUNT {
            let lens = self.shelved.iter().map(|shelved| shelved.segment.len).enumerate();
            let shortest = lens.min_by_key(|(_, len)| *len).map_or(0, |(index, _)| index);
            let Shelved { segment, space } = self.shelved.remove(shortest);
            let OpenSegment { id: from, file, len } = segment;
            let header = SegmentHeader { identity, id, len };
            segment::recycle(port, directory, from, (header, space), file).await?;
            return Ok(OpenSegment { id, file, len });
        }
        let len = SEGMENT_BYTES_MIN.min(self.segment_bytes);
        let file = self.next_file();
        let header = SegmentHeader { identity, id, len };
        segment::prepare(port, directory, header, file).await?;
        Ok(OpenSegment { id, file, len })
    }
}
