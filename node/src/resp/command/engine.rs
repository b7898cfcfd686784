//! Orders to the storage engine: BGSAVE, SAVE, LASTSAVE, KAD.SNAPSHOT, KAD.COMPACT.

use super::spec::CommandId;
use super::{CommandError, number_of_arguments};
use crate::resp::frame::Arguments;
use crate::snapshot::is_valid_id;

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
    /// KAD.SNAPSHOT LIST.
    ListSnapshots,
    /// KAD.SNAPSHOT DELETE.
    DeleteSnapshot {
        /// Its name.
        id: &'a str,
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
            CommandId::SnapshotList => Ok(Self::ListSnapshots),
            CommandId::SnapshotDelete => snapshot_id(arguments.get(2).unwrap_or_default())
                .map(|id| Self::DeleteSnapshot { id }),
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
    let id = std::str::from_utf8(word).ok().filter(|id| is_valid_id(id));
    id.ok_or(CommandError::SnapshotId)
}
