//! The vocabulary in which a core asks for disk work and hears of its end.
//!
//! A core never calls the kernel. It emits [`DiskRequest`]s and is fed [`DiskCompletion`]s by a
//! driver: the ring, blocking threads, or the simulated disk of the tests.
//!
//! What every driver promises:
//! * requests run in any order and concurrently; order exists only where a core waits for a
//!   completion before it submits the next request;
//! * a [`DiskOperation::Read`] is complete when `len` bytes are read or the file has ended;
//! * a [`DiskOperation::Write`] writes all of its buffer or fails; interrupted calls that wrote
//!   nothing are repeated by the driver, nothing else ever is;
//! * a write with [`Durability::Durable`] completes after the bytes are on stable storage, for
//!   ranges that were written and synced before (an overwrite);
//! * [`DiskOperation::Sync`] covers the writes that completed before it was submitted, and the
//!   file's length; [`DiskOperation::SyncDirectory`] covers creations, links, renames and removals
//!   in it;
//! * memory that a [`DiskOperation::Map`] yields has been read whole and stays readable: an
//!   unreadable sector fails the operation, never a later look at the memory.

use std::fmt;

/// Unit of allocation, alignment and I/O on the log's files, in bytes.
///
/// 4 KiB is the logical block of ext4 and XFS and at least the O_DIRECT alignment of every disk.
pub const BLOCK_SIZE: usize = 4096;

/// An open file, named by the core that opened it; unique among that core's open files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileId(pub u32);

/// Pairs a completion with its request; unique among a core's requests in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

/// A path below the data directory, with `/` between its parts and no `.` or `..` among them.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileName(String);

impl FileName {
    /// Names `path` below the data directory.
    ///
    /// # Panics
    /// If `path` is absolute or has an empty, `.` or `..` part: names are made by the cores, never
    /// from input. The empty path is the data directory itself.
    #[must_use]
    pub fn new(path: impl Into<String>) -> Self {
        let path = path.into();
        let sound = path.is_empty()
            || path.split('/').all(|part| !part.is_empty() && part != "." && part != "..");
        assert!(sound, "file name {path:?} does not stay below the data directory");
        Self(path)
    }

    /// Returns the path, relative to the data directory.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns this directory's entry called `name`.
    #[must_use]
    pub fn join(&self, name: &str) -> Self {
        if self.0.is_empty() { Self::new(name) } else { Self::new(format!("{}/{name}", self.0)) }
    }

    /// Returns the directory that holds this name.
    #[must_use]
    pub fn parent(&self) -> Self {
        self.0.rsplit_once('/').map_or_else(|| Self(String::new()), |(dir, _)| Self(dir.to_owned()))
    }
}

impl fmt::Display for FileName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// How a file is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenMode {
    /// An existing file, for reads only.
    Read,
    /// An existing file, for reads and writes.
    ReadWrite,
    /// A new file, for reads and writes; an existing one of that name is emptied.
    Create,
}

/// When a write counts as complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// When the device or the operating system has taken it.
    Cached,
    /// When it is on stable storage (RWF_DSYNC).
    Durable,
}

/// One piece of disk work.
#[derive(Debug)]
pub enum DiskOperation {
    /// Makes a directory; one that is there already is no error.
    CreateDirectory {
        /// The directory.
        name: FileName,
    },
    /// Lists the files of a directory (not its directories).
    ListDirectory {
        /// The directory.
        name: FileName,
    },
    /// Opens a file.
    Open {
        /// What the core will call it.
        file: FileId,
        /// Which file.
        name: FileName,
        /// How.
        mode: OpenMode,
    },
    /// Closes a file; its id may then be used again.
    Close {
        /// Which file.
        file: FileId,
    },
    /// Reads `len` bytes into `buffer`, which comes back in the completion.
    Read {
        /// From which file.
        file: FileId,
        /// Where, in bytes; a multiple of [`BLOCK_SIZE`].
        offset: u64,
        /// How much; a multiple of [`BLOCK_SIZE`], at most the buffer's capacity.
        len: usize,
        /// Where to; its length becomes the number of bytes read.
        buffer: IoBuffer,
    },
    /// Writes all of `buffer`, which comes back in the completion.
    Write {
        /// To which file.
        file: FileId,
        /// Where, in bytes; a multiple of [`BLOCK_SIZE`].
        offset: u64,
        /// What; its length is a multiple of [`BLOCK_SIZE`].
        buffer: IoBuffer,
        /// When it counts as complete.
        durability: Durability,
    },
    /// Makes completed writes and the length of a file durable.
    Sync {
        /// Which file.
        file: FileId,
    },
    /// Makes the entries of a directory durable.
    SyncDirectory {
        /// Which directory.
        name: FileName,
    },
    /// Renames a file, replacing one that is called `to`.
    Rename {
        /// Its name until now.
        from: FileName,
        /// Its name from now on.
        to: FileName,
    },
    /// Removes a file. Its content stays while it is open, mapped or linked by another name.
    Remove {
        /// Which one.
        name: FileName,
    },
    /// Gives a file a second name (a hard link), in the same directory or another. A name that is
    /// taken is an error; nothing is replaced.
    Link {
        /// The name it has.
        from: FileName,
        /// The name it gets too; durable once its directory is synced.
        to: FileName,
    },
    /// Removes an empty directory; one that is not empty is an error.
    RemoveDirectory {
        /// Which one.
        name: FileName,
    },
    /// Yields the first `len` bytes of a file as memory, in the completion's buffer.
    ///
    /// The memory is the core's own: changing it does not change the file. It outlives the open
    /// file and all of the file's names. Nobody may change the file while it lives. A file of less
    /// than `len` bytes is an error.
    Map {
        /// Which file.
        file: FileId,
        /// How much of it, in bytes; a multiple of [`BLOCK_SIZE`], not 0.
        len: usize,
    },
}

/// One piece of disk work and the name under which its completion returns.
#[derive(Debug)]
pub struct DiskRequest {
    /// Returned in the completion.
    pub id: RequestId,
    /// What to do.
    pub operation: DiskOperation,
}

/// What a completed operation yields.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DiskOutput {
    /// Done; nothing to tell. Reads and writes tell by their buffer.
    Done,
    /// The file is open and this many bytes long.
    Opened {
        /// Length in bytes.
        len: u64,
    },
    /// The files of the directory, in no order: name within the directory, length in bytes.
    Listed(Vec<(String, u64)>),
}

/// Why an operation failed, as far as a core acts on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskErrorKind {
    /// No such file or directory.
    NotFound,
    /// Not allowed to, or a read-only file system.
    PermissionDenied,
    /// No space, or over quota (ENOSPC, EDQUOT).
    NoSpace,
    /// Fewer bytes were written than asked.
    ShortWrite,
    /// Anything else: treat the range as lost (EIO and its like).
    Io,
}

/// A failed operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{kind:?} (os error {code})")]
pub struct DiskError {
    /// What a core acts on.
    pub kind: DiskErrorKind,
    /// The operating system's error number, 0 if there is none.
    pub code: i32,
}

/// The end of one piece of disk work.
#[derive(Debug)]
pub struct DiskCompletion {
    /// The request's id.
    pub id: RequestId,
    /// How it ended.
    pub result: Result<DiskOutput, DiskError>,
    /// The request's buffer, if it had one, or the memory that a [`DiskOperation::Map`] made.
    pub buffer: Option<IoBuffer>,
}

/// Memory that an [`IoBuffer`] owns but the heap does not: part of a driver's arena, or a mapped
/// file. Dropping it returns it to where it came from.
///
/// Both methods yield the same bytes at the same address, every time, for as long as the value
/// lives: drivers hand that address to the kernel. It is a multiple of [`BLOCK_SIZE`], and so is
/// the length, which is not 0.
pub trait BufferMemory: AsRef<[u8]> + AsMut<[u8]> + Send + Sync {}

/// Where buffers come from.
pub trait BufferSource: fmt::Debug {
    /// Yields an empty buffer with room for at least `bytes`. Never fails: a source that has run
    /// out turns to the heap.
    ///
    /// The room may hold what a former user left there; see [`IoBuffer::set_len`].
    fn take(&self, bytes: usize) -> IoBuffer;
}

/// The heap as a source of buffers.
#[derive(Clone, Copy, Debug, Default)]
pub struct HeapBuffers;

impl BufferSource for HeapBuffers {
    fn take(&self, bytes: usize) -> IoBuffer {
        IoBuffer::with_capacity(bytes)
    }
}

enum Memory {
    /// On the heap; the block-aligned room begins at `start`.
    Heap {
        storage: Vec<u8>,
        start: usize,
    },
    Owned(Box<dyn BufferMemory>),
}

/// An owned, block-aligned buffer with room for a whole number of blocks, on the heap or in memory
/// that belongs to someone else until the buffer is dropped.
///
/// Its memory never moves while it lives, so a driver may hand its address to the kernel.
pub struct IoBuffer {
    memory: Memory,
    capacity: usize,
    len: usize,
}

impl IoBuffer {
    /// Makes an empty buffer on the heap with room for `bytes`, rounded up to whole blocks (at
    /// least one).
    #[must_use]
    pub fn with_capacity(bytes: usize) -> Self {
        let capacity = bytes.max(1).next_multiple_of(BLOCK_SIZE);
        let storage = vec![0; capacity + BLOCK_SIZE];
        let start = storage.as_ptr().align_offset(BLOCK_SIZE);
        assert!(start < BLOCK_SIZE, "a byte pointer can always be aligned");
        Self { memory: Memory::Heap { storage, start }, capacity, len: 0 }
    }

    /// Makes an empty buffer whose room is all of `memory`.
    ///
    /// # Panics
    /// If the memory is empty, not aligned or not made of whole blocks.
    #[must_use]
    pub fn from_memory(memory: Box<dyn BufferMemory>) -> Self {
        let bytes = (*memory).as_ref();
        let capacity = bytes.len();
        let whole = capacity > 0 && capacity.is_multiple_of(BLOCK_SIZE);
        let aligned = bytes.as_ptr().align_offset(BLOCK_SIZE) == 0;
        assert!(whole && aligned, "{capacity} bytes of memory are not made of whole blocks");
        Self { memory: Memory::Owned(memory), capacity, len: 0 }
    }

    /// Makes a buffer of `len` zero bytes on the heap, rounded up to whole blocks.
    #[must_use]
    pub fn zeroed(len: usize) -> Self {
        let mut buffer = Self::with_capacity(len);
        buffer.len = buffer.capacity;
        buffer
    }

    /// Number of valid bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no byte is valid.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Number of bytes it has room for.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// The valid bytes.
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        &self.room()[..self.len]
    }

    /// The valid bytes, to change.
    #[must_use]
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        let len = self.len;
        &mut self.spare_mut()[..len]
    }

    /// All of the room, valid or not (never uninitialised), for a driver to read into.
    #[must_use]
    pub fn spare_mut(&mut self) -> &mut [u8] {
        match &mut self.memory {
            Memory::Heap { storage, start } => &mut storage[*start..*start + self.capacity],
            Memory::Owned(memory) => (**memory).as_mut(),
        }
    }

    /// All of the room, to look at; what lies past the valid bytes means nothing.
    fn room(&self) -> &[u8] {
        match &self.memory {
            Memory::Heap { storage, start } => &storage[*start..*start + self.capacity],
            Memory::Owned(memory) => (**memory).as_ref(),
        }
    }

    /// Declares the first `len` bytes valid.
    ///
    /// Bytes that nobody has written since the buffer was taken are zeros on the heap, but another
    /// user's leftovers in memory from a [`BufferSource`]: pad what goes to the disk with
    /// [`IoBuffer::pad_to`].
    ///
    /// # Panics
    /// If `len` exceeds the capacity.
    pub fn set_len(&mut self, len: usize) {
        assert!(len <= self.capacity, "{len} bytes in a buffer of {}", self.capacity);
        self.len = len;
    }

    /// Appends `bytes`.
    ///
    /// # Panics
    /// If they do not fit.
    pub fn extend_from_slice(&mut self, bytes: &[u8]) {
        let end = self.len + bytes.len();
        assert!(end <= self.capacity, "{end} bytes in a buffer of {}", self.capacity);
        let at = self.len;
        self.spare_mut()[at..end].copy_from_slice(bytes);
        self.len = end;
    }

    /// Appends zero bytes until `len` bytes are valid.
    ///
    /// # Panics
    /// If `len` exceeds the capacity or is less than what is valid already.
    pub fn pad_to(&mut self, len: usize) {
        assert!(
            self.len <= len && len <= self.capacity,
            "{len} bytes in a buffer with {} of {}",
            self.len,
            self.capacity
        );
        let at = self.len;
        self.spare_mut()[at..len].fill(0);
        self.len = len;
    }

    /// Moves the valid bytes into a buffer with room for at least `bytes`, on the heap if this one
    /// is too small.
    #[must_use]
    pub fn grown(self, bytes: usize) -> Self {
        if bytes <= self.capacity {
            return self;
        }
        let mut larger = Self::with_capacity(bytes);
        larger.extend_from_slice(self.as_slice());
        larger
    }
}

impl AsRef<[u8]> for IoBuffer {
    fn as_ref(&self) -> &[u8] {
        self.as_slice()
    }
}

impl fmt::Debug for IoBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IoBuffer({} of {} bytes)", self.len, self.capacity)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffer_is_aligned_and_rounded_to_blocks() {
        for bytes in [0, 1, BLOCK_SIZE, BLOCK_SIZE + 1, 1 << 20] {
            let mut buffer = IoBuffer::with_capacity(bytes);
            assert_eq!(buffer.capacity() % BLOCK_SIZE, 0);
            assert!(buffer.capacity() >= bytes.max(1));
            assert_eq!(buffer.spare_mut().as_ptr().align_offset(BLOCK_SIZE), 0);
            assert!(buffer.is_empty());
        }
    }

    #[test]
    fn growing_keeps_the_bytes() {
        let mut buffer = IoBuffer::with_capacity(1);
        buffer.extend_from_slice(b"abc");
        let buffer = buffer.grown(3 * BLOCK_SIZE);
        assert_eq!(buffer.as_slice(), b"abc");
        assert_eq!(buffer.capacity(), 3 * BLOCK_SIZE);
    }

    /// Memory with leftovers in it, which counts how often it was given back.
    struct Lease {
        storage: Vec<u8>,
        start: usize,
        returned: std::sync::Arc<std::sync::atomic::AtomicU32>,
    }

    impl Lease {
        fn new(blocks: usize) -> Self {
            let storage = vec![0xee; (blocks + 1) * BLOCK_SIZE];
            let start = storage.as_ptr().align_offset(BLOCK_SIZE);
            Self { storage, start, returned: std::sync::Arc::default() }
        }

        fn len(&self) -> usize {
            self.storage.len() - BLOCK_SIZE
        }
    }

    impl AsRef<[u8]> for Lease {
        fn as_ref(&self) -> &[u8] {
            &self.storage[self.start..self.start + self.len()]
        }
    }

    impl AsMut<[u8]> for Lease {
        fn as_mut(&mut self) -> &mut [u8] {
            let len = self.len();
            &mut self.storage[self.start..self.start + len]
        }
    }

    impl BufferMemory for Lease {}

    impl Drop for Lease {
        fn drop(&mut self) {
            self.returned.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        }
    }

    #[test]
    fn leased_memory_is_used_in_place_and_given_back() {
        let lease = Lease::new(2);
        let address = lease.as_ref().as_ptr();
        let returned = std::sync::Arc::clone(&lease.returned);
        let mut buffer = IoBuffer::from_memory(Box::new(lease));
        assert!(buffer.is_empty());
        assert_eq!(buffer.capacity(), 2 * BLOCK_SIZE);
        buffer.extend_from_slice(b"abc");
        assert_eq!(buffer.as_slice(), b"abc");
        assert_eq!(buffer.as_slice().as_ptr(), address);
        assert_eq!(buffer.spare_mut().len(), 2 * BLOCK_SIZE);
        buffer.pad_to(BLOCK_SIZE);
        assert!(buffer.as_slice()[3..].iter().all(|byte| *byte == 0), "leftovers are covered");
        let count = || returned.load(std::sync::atomic::Ordering::Relaxed);
        assert_eq!(count(), 0);
        let buffer = buffer.grown(3 * BLOCK_SIZE);
        assert_eq!(count(), 1, "the larger one is on the heap");
        assert_eq!(&buffer.as_slice()[..3], b"abc");
        assert_eq!(buffer.len(), BLOCK_SIZE);
    }

    #[test]
    #[should_panic(expected = "not made of whole blocks")]
    fn leased_memory_must_be_aligned() {
        let mut lease = Lease::new(2);
        lease.start += 8;
        let _ = IoBuffer::from_memory(Box::new(lease));
    }

    #[test]
    #[should_panic(expected = "does not stay below")]
    fn file_name_cannot_climb_out() {
        let _ = FileName::new("a/../b");
    }

    #[test]
    fn file_name_joins_and_parts() {
        let name = FileName::new("shard-00").join("manifest-0");
        assert_eq!(name.as_str(), "shard-00/manifest-0");
        assert_eq!(name.parent().as_str(), "shard-00");
        assert_eq!(name.parent().parent().as_str(), "");
        assert_eq!(FileName::new("").join("LOCK").as_str(), "LOCK");
    }
}
