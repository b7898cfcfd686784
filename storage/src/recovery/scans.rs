//! [`Scans`]: the segments of a shard, opened to be read.

use std::collections::BTreeMap;

use wal::checksum::Place;
use wal::disk::{BLOCK_SIZE, DiskOperation, DiskOutput, FileId, FileName, IoBuffer, OpenMode};
use wal::frame::FrameHeader;
use wal::group_commit::OpenSegment;
use wal::manifest::{Manifest, SegmentEntry};
use wal::procedure::DiskPort;
use wal::segment::{self, Identity, SEGMENT_HEADER_LEN, SegmentHeader};

use super::{DamagedFile, FIRST_SEGMENT_FILE, disk_error, is_absent, suspect};
use crate::error::OpenError;

/// Opens a shard's segments, and notes what is wrong with their files.
pub(super) struct Scans<'a> {
    pub(super) port: &'a DiskPort,
    pub(super) directory: &'a FileName,
    pub(super) mode: OpenMode,
    pub(super) damage: &'a mut Vec<DamagedFile>,
}

/// A segment's file, and how the manifest lists it.
pub(super) type OpenedSegment = (OpenSegment, SegmentEntry);

impl Scans<'_> {
    /// Opens the listed segments and those only found. A file that no manifest lists is no longer,
    /// or not yet, part of the log if it holds no frame; if it holds some, a manifest was lost, or
    /// the file's removal. A file that is not what its name says is as good as missing.
    pub(super) async fn open(
        &mut self,
        manifest: &mut Manifest,
        files: &BTreeMap<u64, u64>,
    ) -> Result<(Vec<OpenedSegment>, u32), OpenError> {
        let unlisted = files
            .iter()
            .filter(|(id, _)| !manifest.segments.iter().any(|segment| segment.id == **id));
        let unlisted = unlisted.map(|(id, len)| SegmentEntry { id: *id, len: *len, cut: None });
        let mut entries: Vec<SegmentEntry> =
            manifest.segments.iter().copied().chain(unlisted).collect();
        entries.sort_unstable_by_key(|entry| entry.id);
        let mut opened = Vec::new();
        let mut file = FileId(FIRST_SEGMENT_FILE);
        for entry in entries {
            let name = segment::file_name(self.directory, entry.id);
            let open = DiskOperation::Open { file, name: name.clone(), mode: self.mode };
            let len = match self.port.call(open).await {
                Ok(DiskOutput::Opened { len }) => len,
                Ok(_) => entry.len,
                Err(error) if is_absent(&error) => {
                    suspect(manifest, entry.id, entry.len);
                    let reason = "segment file is missing".to_owned();
                    self.note(name, 0, entry.len, reason);
                    continue;
                }
                Err(source) => return Err(disk_error("opening", &name, source)),
            };
            if let Some(reason) = self.foreign(file, len, entry.id, &manifest.identity).await {
                let close = DiskOperation::Close { file };
                let closed = self.port.call(close).await;
                closed.map_err(|source| disk_error("closing", &name, source))?;
                suspect(manifest, entry.id, entry.len);
                self.note(name, 0, entry.len, reason);
                continue;
            }
            if len < entry.len {
                let reason = format!("segment file is {} bytes short", entry.len - len);
                self.note(name, len, 0, reason);
            }
            opened.push((OpenSegment { id: entry.id, file, len }, entry));
            file = FileId(file.0 + 1);
        }
        Ok((opened, file.0))
    }

    /// Why an open file is not the segment `id` of this shard, if it says so itself; what cannot
    /// be read or is damaged says nothing. Frames do not tell the shard, so one of another shard
    /// must not be read; they tell the segment, so a stray header before frames of this one is
    /// no more than damaged.
    async fn foreign(
        &self,
        file: FileId,
        len: u64,
        id: u64,
        identity: &Identity,
    ) -> Option<String> {
        if identity.shard_count < 2 {
            // There is no other shard, and frames tell everything else.
            return None;
        }
        let len = len.min(2 * SEGMENT_HEADER_LEN);
        let len = usize::try_from(len).ok()? / BLOCK_SIZE * BLOCK_SIZE;
        if len == 0 {
            return None;
        }
        let buffer = IoBuffer::with_capacity(len);
        let read = DiskOperation::Read { file, offset: 0, len, buffer };
        let blocks = self.port.transfer(read).await.ok()?;
        let (block, rest) = blocks.as_slice().split_at_checked(BLOCK_SIZE)?;
        let header = SegmentHeader::decode(block).ok()?;
        let place = Place { store: identity.store, segment: id, offset: SEGMENT_HEADER_LEN };
        let frame = rest.first_chunk().map(|frame| FrameHeader::decode(frame, &place));
        let has_own_frame = frame.is_some_and(|frame| frame.is_ok());
        let SegmentHeader { identity: found, id: found_id, .. } = header;
        let is_other_segment = found.store != identity.store || found_id != id;
        if is_other_segment && has_own_frame || !is_other_segment && found.shard == identity.shard {
            return None;
        }
        let whose = if found.store == identity.store { "" } else { " of another store" };
        Some(format!(
            "segment file is segment {found_id:016x} of shard {}{whose}, not segment {id:016x} of \
             shard {}; nothing in it is read",
            found.shard, identity.shard
        ))
    }

    fn note(&mut self, file: FileName, offset: u64, len: u64, reason: String) {
        self.damage.push(DamagedFile { file, offset, len, reason, accepted: false });
    }
}
