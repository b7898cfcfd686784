//! [`Scans`]: the segments of a shard, opened to be read.

use std::collections::BTreeMap;

use wal::disk::{BLOCK_SIZE, DiskOperation, DiskOutput, FileId, FileName, IoBuffer, OpenMode};
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
    /// the file's removal. A file of another shard is as good as missing.
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
            if let Some(reason) = self.foreign(file, len, &manifest.identity).await {
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

    /// Why an open file is not of this shard, if it says so itself; what cannot be read or is
    /// damaged says nothing. Frames tell their store and segment, and count nowhere else; the
    /// shard, only the segment's header does.
    async fn foreign(&self, file: FileId, len: u64, identity: &Identity) -> Option<String> {
        if identity.shard_count < 2 || len < SEGMENT_HEADER_LEN {
            return None;
        }
        let buffer = IoBuffer::with_capacity(BLOCK_SIZE);
        let read = DiskOperation::Read { file, offset: 0, len: BLOCK_SIZE, buffer };
        let block = self.port.transfer(read).await.ok()?;
        let found = SegmentHeader::decode(block.as_slice()).ok()?.identity.shard;
        let reason = format!(
            "segment file is of shard {found}, not of shard {}; nothing in it is read",
            identity.shard
        );
        (found != identity.shard).then_some(reason)
    }

    fn note(&mut self, file: FileName, offset: u64, len: u64, reason: String) {
        self.damage.push(DamagedFile { file, offset, len, reason, accepted: false });
    }
}
