//! Where the nodes of a local cluster have their data.

use std::fs::{self, DirBuilder};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use super::error::ClusterCliError;
use crate::io::process;

/// A directory, which goes away with this value if it is a temporary one.
#[derive(Debug)]
pub(super) struct Place {
    path: PathBuf,
    is_temporary: bool,
}

impl Place {
    /// Takes the directory given, made if it is not there, or makes a temporary one.
    ///
    /// # Errors
    /// [`ClusterCliError::Directory`].
    pub(super) fn new(given: Option<&Path>) -> Result<Self, ClusterCliError> {
        let unusable =
            |path: &Path, source| ClusterCliError::Directory { path: path.into(), source };
        if let Some(path) = given {
            fs::create_dir_all(path).map_err(|source| unusable(path, source))?;
            // The nodes run elsewhere than their logs are shown.
            let path = path.canonicalize().map_err(|source| unusable(path, source))?;
            return Ok(Self { path, is_temporary: false });
        }
        let name = u64::from_le_bytes(process::random_bytes());
        let path = std::env::temp_dir().join(format!("kadring-cluster-{name:016x}"));
        // One that is there already is somebody else's.
        DirBuilder::new().mode(0o700).create(&path).map_err(|source| unusable(&path, source))?;
        Ok(Self { path, is_temporary: true })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn is_temporary(&self) -> bool {
        self.is_temporary
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.is_temporary
            && let Err(error) = fs::remove_dir_all(&self.path)
        {
            super::tell(&format!("{} is left: {error}", self.path.display()));
        }
    }
}
