//! Files with the secret of a key pair: one line, 64 hexadecimal digits or 52 of z-base-32.
//!
//! Nobody but their owner may read them: they are made so, and refused if they are not so.

use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use crate::io::process::random_bytes;
use crate::mainline::item::SigningKey;
use crate::mainline::text;

/// Bytes of a key file at most.
const KEY_FILE_BYTES_MAX: u64 = 256;
/// What the group and all others may do.
const OTHERS: u32 = 0o077;

/// Why a key file cannot be used. Displayed as `what; remedy`.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    /// It cannot be read or made.
    #[error("key file {}: {source}; {}", path.display(), remedy(source))]
    Unusable {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Others may read or change it.
    #[error(
        "key file {} is open to others (mode {mode:o}); chmod 600 it, and think of a new key",
        path.display()
    )]
    Open {
        /// The file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// It does not hold a secret.
    #[error(
        "key file {} holds no secret; give a file whose one line is 64 hexadecimal digits or 52 of \
         z-base-32",
        path.display()
    )]
    Malformed {
        /// The file.
        path: PathBuf,
    },
}

fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::NotFound => "make one with `kadring mainline key FILE --create`",
        io::ErrorKind::AlreadyExists => "leave --create out to use it, or name another file",
        io::ErrorKind::PermissionDenied => "let this user read it",
        _ => "name a readable file",
    }
}

/// Reads the key pair of a file.
///
/// # Errors
/// [`KeyFileError`].
#[expect(clippy::disallowed_types, reason = "a file that the user names, read once")]
pub(super) fn read(path: &Path) -> Result<SigningKey, KeyFileError> {
    let unusable = |source| KeyFileError::Unusable { path: path.to_owned(), source };
    let file = std::fs::File::open(path).map_err(unusable)?;
    // Of the open file: what the path names may change.
    let mode = file.metadata().map_err(unusable)?.mode() & 0o7777;
    if mode & OTHERS != 0 {
        return Err(KeyFileError::Open { path: path.to_owned(), mode });
    }
    let mut line = Vec::new();
    file.take(KEY_FILE_BYTES_MAX).read_to_end(&mut line).map_err(unusable)?;
    let seed = text::decode(line.trim_ascii_end());
    let seed = seed.ok_or_else(|| KeyFileError::Malformed { path: path.to_owned() })?;
    Ok(SigningKey::from_seed(&seed))
}

/// Makes a file with a new key pair; one that is there is left alone.
///
/// # Errors
/// [`KeyFileError`].
pub(super) fn create(path: &Path) -> Result<SigningKey, KeyFileError> {
    let unusable = |source| KeyFileError::Unusable { path: path.to_owned(), source };
    let seed = random_bytes();
    let opened = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    let mut file = opened.map_err(unusable)?;
    file.write_all(format!("{}\n", text::hex(&seed)).as_bytes()).map_err(unusable)?;
    file.sync_all().map_err(unusable)?;
    Ok(SigningKey::from_seed(&seed))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::mainline::zbase32;

    fn directory() -> tempfile::TempDir {
        tempfile::tempdir().unwrap()
    }

    #[test]
    fn new_keys_come_back_and_only_their_owner_reads_them() {
        let directory = directory();
        let path = directory.path().join("key");
        let created = create(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(read(&path).unwrap().public(), created.public());
        let again = create(&path).unwrap_err().to_string();
        assert!(again.contains("leave --create out"), "{again}");
    }

    #[test]
    fn files_that_others_can_read_are_refused() {
        let directory = directory();
        let path = directory.path().join("key");
        create(&path).unwrap();
        for mode in [0o640, 0o604, 0o620, 0o601] {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            let refused = read(&path).unwrap_err();
            assert!(matches!(refused, KeyFileError::Open { mode: m, .. } if m == mode));
        }
    }

    #[test]
    fn both_spellings_are_read_and_nothing_else() {
        let directory = directory();
        let path = directory.path().join("key");
        let seed = [9; 32];
        let public = SigningKey::from_seed(&seed).public();
        create(&path).unwrap();
        for line in [text::hex(&seed), zbase32::encode(&seed)] {
            std::fs::write(&path, format!("{line}\n")).unwrap();
            assert_eq!(read(&path).unwrap().public(), public);
        }
        for line in [String::new(), "ab".repeat(31), "x".repeat(1_000)] {
            std::fs::write(&path, line).unwrap();
            assert!(matches!(read(&path), Err(KeyFileError::Malformed { .. })));
        }
        let missing = read(&directory.path().join("none")).unwrap_err().to_string();
        assert!(missing.contains("--create"), "{missing}");
    }
}
