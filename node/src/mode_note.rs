//! The note in a data directory that tells the mode it was made in: keys of Redis clients and the
//! records of a Mainline node do not mix.

use std::path::Path;

use crate::config::{Mode, SHARDS_MAX};
use crate::io::directory::DataDirectory;
use crate::io::notes;
use crate::node::{RunError, shard_directory};

/// The note's name.
const MODE_FILE: &str = "node.toml";

/// Refuses a directory that was made in another mode, and notes the mode down in one that does not
/// say: a new one, one of before there were such notes, or one restored from a snapshot.
///
/// # Errors
/// [`RunError::OtherMode`].
pub(crate) fn check(asked: Mode, path: &Path, directory: &DataDirectory) -> Result<(), RunError> {
    match notes::read(directory, MODE_FILE).as_deref().map(mode_in) {
        Some(Some(holds)) if holds == asked => {
            if !holds_shards(path) {
                tracing::warn!(
                    "a node was started here before, and the data directory holds no shard: a \
                     new, empty store is made; if there was data, stop the node and restore it"
                );
            }
        }
        Some(Some(holds)) => {
            return Err(RunError::OtherMode { path: path.to_owned(), holds, asked });
        }
        Some(None) => tracing::warn!(file = MODE_FILE, "cannot tell which mode it names"),
        None => {
            let text = format!("# What made this directory.\nmode = \"{}\"\n", asked.name());
            if let Err(error) = notes::write(directory, MODE_FILE, &text) {
                tracing::warn!(%error, file = MODE_FILE, "cannot note down the node's mode");
            }
        }
    }
    Ok(())
}

/// The note is there a moment before the first shard is: who sees it alone has lost the shards,
/// or met a first start that was refused or cut short.
fn holds_shards(path: &Path) -> bool {
    (0..SHARDS_MAX).any(|shard| path.join(shard_directory(shard).to_string()).exists())
}

fn mode_in(note: &str) -> Option<Mode> {
    let table: toml::Table = note.parse().ok()?;
    Mode::from_name(table.get("mode")?.as_str()?)
}
