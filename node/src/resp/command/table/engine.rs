//! Orders to the storage engine: data alone, one entry each.
//!
//! They are no part of [`COMMANDS`](super::COMMANDS) yet, so that no client can reach them: nobody
//! takes the door's orders. Once somebody does, they belong at its end.

use super::super::spec::{CommandId, CommandSpec};
use super::NO_KEYS;

/// BGSAVE, SAVE, LASTSAVE, KAD.SNAPSHOT and KAD.COMPACT, in the order of [`CommandId`].
pub static ENGINE_COMMANDS: [CommandSpec; 5] = [
    CommandSpec {
        id: CommandId::BgSave,
        name: "bgsave",
        arity: -1,
        keys: NO_KEYS,
        flags: &["admin", "noscript", "no_async_loading"],
        categories: &["@admin", "@slow", "@dangerous"],
        tips: &[],
        group: "server",
        since: "1.0.0",
        complexity: "O(1)",
        summary: "Begins to take a snapshot.",
        subcommands: &[],
    },
    CommandSpec {
        id: CommandId::Save,
        name: "save",
        arity: 1,
        keys: NO_KEYS,
        flags: &["admin", "noscript", "no_async_loading", "no_multi"],
        categories: &["@admin", "@slow", "@dangerous"],
        tips: &[],
        group: "server",
        since: "1.0.0",
        complexity: "O(N) in the number of segments",
        summary: "Takes a snapshot and answers when it is there.",
        subcommands: &[],
    },
    CommandSpec {
        id: CommandId::LastSave,
        name: "lastsave",
        arity: 1,
        keys: NO_KEYS,
        flags: &["loading", "stale", "fast"],
        categories: &["@admin", "@fast", "@dangerous"],
        tips: &["nondeterministic_output"],
        group: "server",
        since: "1.0.0",
        complexity: "O(1)",
        summary: "Answers when the last snapshot was taken, in seconds since 1970.",
        subcommands: &[],
    },
    CommandSpec {
        id: CommandId::KadSnapshot,
        name: "kad.snapshot",
        arity: -2,
        keys: NO_KEYS,
        flags: &[],
        categories: &["@slow"],
        tips: &[],
        group: "server",
        since: "0.1.0",
        complexity: "Depends on the subcommand.",
        summary: "Holds the commands about snapshots.",
        subcommands: SNAPSHOT_SUBCOMMANDS,
    },
    CommandSpec {
        id: CommandId::KadCompact,
        name: "kad.compact",
        arity: 1,
        keys: NO_KEYS,
        flags: &["admin", "noscript"],
        categories: &["@admin", "@slow", "@dangerous"],
        tips: &[],
        group: "server",
        since: "0.1.0",
        complexity: "O(1)",
        summary: "Begins to gather live records, so that dead ones free their space.",
        subcommands: &[],
    },
];

const SNAPSHOT_SUBCOMMANDS: &[CommandSpec] = &[
    snapshot_subcommand(
        (CommandId::SnapshotCreate, "kad.snapshot|create", -2),
        "O(N) in the number of segments",
        "Takes a snapshot and answers its id.",
    ),
    snapshot_subcommand(
        (CommandId::SnapshotList, "kad.snapshot|list", 2),
        "O(N) in the number of snapshots",
        "Lists the snapshots: id, time, files, bytes.",
    ),
    snapshot_subcommand(
        (CommandId::SnapshotVerify, "kad.snapshot|verify", 3),
        "O(N) in the size of the snapshot",
        "Reads a snapshot and compares it with its checksums.",
    ),
    snapshot_subcommand(
        (CommandId::SnapshotDelete, "kad.snapshot|delete", 3),
        "O(N) in the number of segments",
        "Deletes a snapshot.",
    ),
];

const fn snapshot_subcommand(
    (id, name, arity): (CommandId, &'static str, i8),
    complexity: &'static str,
    summary: &'static str,
) -> CommandSpec {
    CommandSpec {
        id,
        name,
        arity,
        keys: NO_KEYS,
        flags: &["admin", "noscript"],
        categories: &["@admin", "@slow", "@dangerous"],
        tips: &[],
        group: "server",
        since: "0.1.0",
        complexity,
        summary,
        subcommands: &[],
    }
}
