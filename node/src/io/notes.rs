//! Notes in a data directory: short texts beside the store, for people to read too.
//!
//! A note is replaced as a whole, durably: after a crash it is the old one or the new one. What
//! cannot be read as text counts as absent.

use rustix::fs::{self, Mode, OFlags, openat};
use rustix::io::{Errno, pread, pwrite};
use wal::disk::FileName;

use super::directory::DataDirectory;

/// Bytes of a note at most.
pub const NOTE_BYTES_MAX: usize = 4096;

/// Reads a note, if there is one; the rest of a longer one is left out.
#[must_use]
pub fn read(directory: &DataDirectory, name: &str) -> Option<String> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = openat(directory.root(), name, flags, Mode::empty()).ok()?;
    let mut bytes = vec![0; NOTE_BYTES_MAX];
    let len = pread(&file, &mut bytes, 0).ok()?;
    bytes.truncate(len);
    String::from_utf8(bytes).ok()
}

/// Replaces a note.
///
/// # Errors
/// The system's; the old one is there then, or the new one.
pub fn write(directory: &DataDirectory, name: &str, text: &str) -> Result<(), Errno> {
    let new = format!("{name}.new");
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC;
    let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let file = openat(directory.root(), new.as_str(), flags, DataDirectory::file_mode())?;
    let written = pwrite(&file, text.as_bytes(), 0)?;
    if written != text.len() {
        return Err(Errno::NOSPC);
    }
    fs::fsync(&file)?;
    directory.rename(&FileName::new(new.as_str()), &FileName::new(name))?;
    directory.sync_directory(&FileName::new(""))
}
