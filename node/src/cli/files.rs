//! Small text files that an operator names: the configuration and the password.

use std::io::{self, Read as _};
use std::path::Path;

/// Bytes of such a file at most.
pub(super) const TEXT_FILE_BYTES_MAX: u64 = 1 << 20;

/// Reads a text file of at most [`TEXT_FILE_BYTES_MAX`].
///
/// # Errors
/// What the system said, or [`io::ErrorKind::InvalidData`] for a longer file or one that is not
/// UTF-8.
#[expect(clippy::disallowed_types, reason = "read once, before the node and its drivers exist")]
pub(super) fn read_text(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    let file = std::fs::File::open(path)?;
    file.take(TEXT_FILE_BYTES_MAX + 1).read_to_string(&mut text)?;
    if text.len() as u64 > TEXT_FILE_BYTES_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "longer than 1MiB"));
    }
    Ok(text)
}
