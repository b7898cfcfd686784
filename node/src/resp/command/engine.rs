//! Orders to the storage engine: BGSAVE, SAVE, LASTSAVE, KAD.SNAPSHOT, KAD.COMPACT.

use super::spec::CommandId;
use super::{CommandError, number_of_arguments};
use crate::resp::frame::Arguments;

/// Longest id of a snapshot, in bytes.
const SNAPSHOT_ID_LEN_MAX: usize = 64;

/// What a client asks of the storage engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EngineCommand<'a> {
    /// KAD.COMPACT.
    Compact,
    /// BGSAVE: a snapshot, answered when it has begun.
    BackgroundSave {
        /// SCHEDULE: if one is being taken, another one after it.
        schedule: bool,
    },
    /// SAVE: a snapshot, answered when it is there.
    Save,
    /// LASTSAVE.
    LastSave,
    /// KAD.SNAPSHOT CREATE: as SAVE, with a name if one is given, and answered by the name.
    CreateSnapshot {
        /// Its name.
        id: Option<&'a str>,
    },
}

impl<'a> EngineCommand<'a> {
    /// Parses the arguments of the command; `None` if it is none of these.
    pub(super) fn parse(
        command: CommandId,
        arguments: &Arguments<'a>,
    ) -> Option<Result<Self, CommandError<'a>>> {
        Some(match command {
            CommandId::KadCompact => Ok(Self::Compact),
            CommandId::BgSave => background_save(arguments),
            CommandId::Save => Ok(Self::Save),
            CommandId::LastSave => Ok(Self::LastSave),
            CommandId::SnapshotCreate => create_snapshot(arguments),
            _ => return None,
        })
    }
}

fn background_save<'a>(arguments: &Arguments<'_>) -> Result<EngineCommand<'a>, CommandError<'a>> {
    match (arguments.get(1), arguments.get(2)) {
        (None, _) => Ok(EngineCommand::BackgroundSave { schedule: false }),
        (Some(word), None) if word.eq_ignore_ascii_case(b"schedule") => {
            Ok(EngineCommand::BackgroundSave { schedule: true })
        }
        _ => Err(CommandError::Syntax),
    }
}

fn create_snapshot<'a>(arguments: &Arguments<'a>) -> Result<EngineCommand<'a>, CommandError<'a>> {
    number_of_arguments(arguments, 2..=3, "kad.snapshot|create")?;
    let id = arguments.get(2).map(snapshot_id).transpose()?;
    Ok(EngineCommand::CreateSnapshot { id })
}

/// Checks that a snapshot may be called so: it is the name of a directory.
fn snapshot_id<'a>(word: &'a [u8]) -> Result<&'a str, CommandError<'a>> {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.".contains(byte);
    let fits = (1..=SNAPSHOT_ID_LEN_MAX).contains(&word.len());
    let is_right = fits && word.iter().all(plain) && word[0] != b'.';
    let id = std::str::from_utf8(word).ok().filter(|_| is_right);
    id.ok_or(CommandError::SnapshotId)
}
