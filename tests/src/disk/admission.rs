//! What a request must fulfil so that every real driver gives it the same meaning.

use wal::disk::{BLOCK_SIZE, DiskOperation, FileId, FileName, OpenMode, RequestId};

use super::names::InodeId;
use super::{InFlight, OpenFile, SimulatedDisk};

impl SimulatedDisk {
    /// Panics if the request is a bug of its core; yields the open file it works on.
    pub(super) fn admit(
        &self,
        owner: u16,
        id: RequestId,
        operation: &DiskOperation,
    ) -> Option<InodeId> {
        let mut own = self.in_flight.iter().filter(|request| request.owner == owner);
        assert!(own.all(|request| request.id != id), "{id:?} of core {owner} is in flight already");
        self.admit_names(operation);
        match operation {
            DiskOperation::Open { file, .. } => {
                self.admit_open(owner, *file);
                None
            }
            DiskOperation::Close { file } => {
                let open = self.open_file(owner, *file);
                let busy = self.of_file(owner, *file).next();
                assert!(busy.is_none(), "{file:?} of core {owner} is closed while {busy:?}");
                Some(open.inode)
            }
            DiskOperation::Sync { file } => Some(self.open_file(owner, *file).inode),
            DiskOperation::Read { file, offset, len, buffer } => {
                let open = self.open_file(owner, *file);
                assert!(*len <= buffer.capacity(), "{len} bytes into {buffer:?}");
                self.admit_range(open.inode, *offset, *len, Access::Read);
                Some(open.inode)
            }
            DiskOperation::Write { file, offset, buffer, .. } => {
                let open = self.open_file(owner, *file);
                assert!(open.is_writable, "{file:?} of core {owner} is open for reads only");
                self.admit_range(open.inode, *offset, buffer.len(), Access::Write);
                Some(open.inode)
            }
            DiskOperation::Map { file, len } => {
                let open = self.open_file(owner, *file);
                assert!(*len > 0, "{file:?} of core {owner} is mapped over no bytes");
                self.admit_range(open.inode, 0, *len, Access::Read);
                Some(open.inode)
            }
            _ => None,
        }
    }

    fn admit_open(&self, owner: u16, file: FileId) {
        let taken = self.open.contains_key(&(owner, file));
        let opening = self.of_file(owner, file).next();
        assert!(!taken && opening.is_none(), "{file:?} of core {owner} is open already");
    }

    fn open_file(&self, owner: u16, file: FileId) -> OpenFile {
        let open = self.open.get(&(owner, file));
        let open = open.unwrap_or_else(|| panic!("{file:?} of core {owner} is not open"));
        let mut requests = self.of_file(owner, file);
        let closing = requests.any(|other| matches!(other.operation, DiskOperation::Close { .. }));
        assert!(!closing, "{file:?} of core {owner} is being closed");
        *open
    }

    fn of_file(&self, owner: u16, file: FileId) -> impl Iterator<Item = &InFlight> {
        let own = self.in_flight.iter().filter(move |request| request.owner == owner);
        own.filter(move |request| file_of(&request.operation) == Some(file))
    }

    fn admit_range(&self, inode: InodeId, offset: u64, len: usize, access: Access) {
        let aligned = offset.is_multiple_of(BLOCK_SIZE as u64) && len.is_multiple_of(BLOCK_SIZE);
        assert!(aligned, "{access:?} of {len} bytes at {offset} is not made of whole blocks");
        let end = offset.checked_add(len as u64).expect("the range ends within u64");
        for other in self.in_flight.iter().filter(|other| other.inode == Some(inode)) {
            let Some((other_access, other_offset, other_len)) = range_of(&other.operation) else {
                continue;
            };
            let apart = end <= other_offset || other_offset + other_len as u64 <= offset;
            assert!(
                apart || (access == Access::Read && other_access == Access::Read),
                "{access:?} of {len} bytes at {offset} overlaps, without order, {:?} of core {}",
                other.operation,
                other.owner,
            );
        }
    }

    fn admit_names(&self, operation: &DiskOperation) {
        let Some((name, second)) = names_of(operation) else {
            return;
        };
        if let (DiskOperation::Rename { .. }, Some(to)) = (operation, second) {
            assert_eq!(name.parent(), to.parent(), "renaming between directories is not modelled");
        }
        for other in &self.in_flight {
            let Some((other_name, other_second)) = names_of(&other.operation) else {
                continue;
            };
            let shared = [Some(name), second].into_iter().flatten().any(|own| {
                let others = [Some(other_name), other_second];
                let mut others = others.into_iter().flatten();
                others.any(|theirs| {
                    *own == *theirs || own.parent() == *theirs || theirs.parent() == *own
                })
            });
            let only_read = is_opening(operation) && is_opening(&other.operation);
            assert!(
                !shared || only_read,
                "{operation:?} uses, without order, a name of {:?} of core {}",
                other.operation,
                other.owner,
            );
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Access {
    Read,
    Write,
}

/// The file that an operation uses, opens or closes.
fn file_of(operation: &DiskOperation) -> Option<FileId> {
    match operation {
        DiskOperation::Open { file, .. }
        | DiskOperation::Close { file }
        | DiskOperation::Read { file, .. }
        | DiskOperation::Write { file, .. }
        | DiskOperation::Map { file, .. }
        | DiskOperation::Sync { file } => Some(*file),
        _ => None,
    }
}

fn range_of(operation: &DiskOperation) -> Option<(Access, u64, usize)> {
    match operation {
        DiskOperation::Read { offset, len, .. } => Some((Access::Read, *offset, *len)),
        DiskOperation::Map { len, .. } => Some((Access::Read, 0, *len)),
        DiskOperation::Write { offset, buffer, .. } => Some((Access::Write, *offset, buffer.len())),
        _ => None,
    }
}

/// The names whose meaning an operation changes or depends on.
fn names_of(operation: &DiskOperation) -> Option<(&FileName, Option<&FileName>)> {
    match operation {
        DiskOperation::CreateDirectory { name }
        | DiskOperation::Open { name, .. }
        | DiskOperation::RemoveDirectory { name }
        | DiskOperation::Remove { name } => Some((name, None)),
        DiskOperation::Rename { from, to } | DiskOperation::Link { from, to } => {
            Some((from, Some(to)))
        }
        _ => None,
    }
}

/// Whether an operation only looks a name up.
fn is_opening(operation: &DiskOperation) -> bool {
    let DiskOperation::Open { mode, .. } = operation else {
        return false;
    };
    *mode != OpenMode::Create
}
