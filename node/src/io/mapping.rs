//! [`Mapping`]: a file as private memory that no later look at it can fault on.
//!
//! Memory mapped from a file is normally read when it is touched, and a sector that cannot be read
//! then kills the process (SIGBUS). Here that cannot happen, because before a mapping is handed
//! out every page of it is in memory for good:
//!
//! | how | what keeps the pages |
//! |---|---|
//! | locked: `mlock2(MLOCK_ONFAULT)`, then `MADV_POPULATE_READ` | the kernel does not take locked pages away; they are shared with the page cache |
//! | copied, where locking is refused (RLIMIT_MEMLOCK): `MADV_POPULATE_WRITE` | breaks copy-on-write at once: the pages are the process's own, none is the file's any more |
//!
//! Populating reports what touching would have died of (EFAULT), and kernels that do not know it
//! (before 5.14) refuse it (EINVAL): both fail the operation, and the caller reads the file into a
//! buffer instead. What remains forbidden is to shorten or change a mapped file. The cores map only
//! files that are never written again, a removed file keeps its content, and the directory's lock
//! and permissions keep others away.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use memmap2::{Advice, MmapMut, MmapOptions};
use rustix::io::Errno;
use rustix::mm::{MlockFlags, mlock_with};
use wal::disk::{BLOCK_SIZE, BufferMemory, IoBuffer};

use super::directory::file_len;

/// Bytes that one call populates at most: the ring's length has 32 bits.
const POPULATE_BYTES_MAX: usize = 1 << 30;

/// A file's memory, on its way to being whole.
pub(crate) struct Mapping {
    memory: MmapMut,
    keeping: Keeping,
    populated: usize,
}

/// What keeps the pages in memory; see the module's documentation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Keeping {
    Locked,
    Copied,
}

/// A call to madvise(2) that a mapping needs next.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Populate {
    /// Where it begins, from the mapping's start.
    pub(crate) offset: usize,
    /// How many bytes.
    pub(crate) len: usize,
    /// The advice, as the kernel numbers it.
    pub(crate) advice: i32,
}

impl Mapping {
    /// Maps the first `len` bytes of a file. Does not read them yet, so it does not block.
    pub(crate) fn new(file: impl AsFd, len: usize) -> Result<Self, Errno> {
        let mut mapping = Self::map(file, len)?;
        // Refused beyond RLIMIT_MEMLOCK, and by kernels and sandboxes that lack it.
        // SAFETY: locking changes no content and no validity of the mapping, which is ours.
        if unsafe { mlock_with(mapping.start().cast(), len, MlockFlags::ONFAULT) }.is_ok() {
            mapping.keeping = Keeping::Locked;
        }
        Ok(mapping)
    }

    fn map(file: impl AsFd, len: usize) -> Result<Self, Errno> {
        if len == 0 || !len.is_multiple_of(BLOCK_SIZE) {
            return Err(Errno::INVAL);
        }
        // The error with which the kernel, too, answers a look past the end.
        if file_len(&file)? < len as u64 {
            return Err(Errno::FAULT);
        }
        let mut options = MmapOptions::new();
        options.len(len);
        // SAFETY: nobody changes or shortens the file while it is mapped, by the contract of
        // `DiskOperation::Map`; our own changes go to pages of our own.
        let mapped = unsafe { options.map_copy(file.as_fd().as_raw_fd()) };
        let memory = mapped.map_err(errno_of)?;
        Ok(Self { memory, keeping: Keeping::Copied, populated: 0 })
    }

    /// Where the memory begins.
    pub(crate) fn start(&mut self) -> *mut u8 {
        self.memory.as_mut_ptr()
    }

    /// What has to be populated next; none, once the memory is whole.
    pub(crate) fn next_populate(&self) -> Option<Populate> {
        let left = self.memory.len() - self.populated;
        let len = left.min(POPULATE_BYTES_MAX);
        (len > 0).then(|| Populate {
            offset: self.populated,
            len,
            advice: advice_of(self.keeping) as i32,
        })
    }

    /// Notes that the last one has worked.
    pub(crate) fn populated(&mut self, populate: Populate) {
        self.populated = populate.offset + populate.len;
    }

    /// Carries out one populating call. Blocks.
    pub(crate) fn populate(&self, populate: Populate) -> Result<(), Errno> {
        let Populate { offset, len, .. } = populate;
        let advice = advice_of(self.keeping);
        self.memory.advise_range(advice, offset, len).map_err(errno_of)
    }

    /// The memory as a buffer, all of it valid.
    ///
    /// # Panics
    /// If it is not whole yet.
    pub(crate) fn into_buffer(self) -> IoBuffer {
        assert_eq!(self.populated, self.memory.len(), "a mapping is handed out whole");
        let len = self.memory.len();
        let mut buffer = IoBuffer::from_memory(Box::new(Mapped(self.memory)));
        buffer.set_len(len);
        buffer
    }
}

fn advice_of(keeping: Keeping) -> Advice {
    match keeping {
        Keeping::Locked => Advice::PopulateRead,
        Keeping::Copied => Advice::PopulateWrite,
    }
}

/// The kernel's error; memmap2 has some of its own, on arguments.
fn errno_of(error: io::Error) -> Errno {
    Errno::from_io_error(&error).unwrap_or(Errno::INVAL)
}

/// A whole mapping; unmapped when dropped.
struct Mapped(MmapMut);

impl AsRef<[u8]> for Mapped {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl AsMut<[u8]> for Mapped {
    fn as_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

impl BufferMemory for Mapped {}

#[cfg(test)]
mod tests {
    #![expect(clippy::disallowed_types, reason = "files to map are made with plain calls")]

    use super::*;

    fn file(blocks: usize) -> std::fs::File {
        let path =
            std::env::temp_dir().join(format!("kadring-map-{}-{blocks}", std::process::id()));
        let bytes: Vec<u8> = (0..blocks * BLOCK_SIZE).map(|i| (i / BLOCK_SIZE) as u8 + 1).collect();
        std::fs::write(&path, bytes).unwrap();
        let file = std::fs::File::open(&path).unwrap();
        std::fs::remove_file(path).unwrap();
        file
    }

    fn whole(mut mapping: Mapping) -> Result<IoBuffer, Errno> {
        while let Some(populate) = mapping.next_populate() {
            mapping.populate(populate)?;
            mapping.populated(populate);
        }
        Ok(mapping.into_buffer())
    }

    /// Bytes of the mapping at `start` that are the file's own (not copied), and locked ones.
    fn smaps(start: usize) -> (u64, u64) {
        let text = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let from = text.lines().skip_while(|line| !line.starts_with(&format!("{start:x}-")));
        let field = |name: &str| {
            let line = from.clone().find(|line| line.starts_with(name)).unwrap();
            line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
        };
        (field("Rss:") - field("Anonymous:"), field("Locked:"))
    }

    /// Both ways of keeping the pages: none is the file's and unlocked.
    #[test]
    fn every_page_is_locked_or_our_own() {
        let blocks = 16;
        let bytes = (blocks * BLOCK_SIZE) as u64;
        for keeping in [Keeping::Locked, Keeping::Copied] {
            let file = file(blocks);
            let mapping = match keeping {
                Keeping::Locked => Mapping::new(&file, blocks * BLOCK_SIZE).unwrap(),
                Keeping::Copied => Mapping::map(&file, blocks * BLOCK_SIZE).unwrap(),
            };
            if mapping.keeping != keeping {
                eprintln!("SKIPPED, nothing was tested: no memory may be locked here");
                continue;
            }
            let buffer = whole(mapping).unwrap();
            let (shared, locked) = smaps(buffer.as_slice().as_ptr() as usize);
            match keeping {
                Keeping::Locked => assert_eq!((shared, locked), (bytes, bytes)),
                Keeping::Copied => assert_eq!(shared, 0),
            }
            let block = |i: usize| buffer.as_slice()[i * BLOCK_SIZE];
            assert!((0..blocks).all(|i| block(i) == i as u8 + 1));
        }
    }

    /// Stands in for a bad sector: both are a SIGBUS to whoever touches the page.
    #[test]
    fn page_that_cannot_be_read_fails_populating() {
        for lock in [true, false] {
            let file = file(4);
            let len = 4 * BLOCK_SIZE;
            let mapping = if lock { Mapping::new(&file, len) } else { Mapping::map(&file, len) };
            let path = format!("/proc/self/fd/{}", file.as_raw_fd());
            let writable = std::fs::OpenOptions::new().write(true).open(path).unwrap();
            writable.set_len(BLOCK_SIZE as u64).unwrap();
            assert_eq!(whole(mapping.unwrap()).unwrap_err(), Errno::FAULT);
        }
    }

    #[test]
    fn more_than_the_file_holds_is_refused() {
        let file = file(2);
        for (len, expected) in [
            (3 * BLOCK_SIZE, Errno::FAULT),
            (0, Errno::INVAL),
            (BLOCK_SIZE + 1, Errno::INVAL),
            (1 << 60, Errno::FAULT),
        ] {
            assert_eq!(Mapping::new(&file, len).err(), Some(expected), "{len}");
        }
    }
}
