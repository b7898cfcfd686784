//! Orders to the storage engine: data alone, one entry each.

use super::super::spec::{CommandId, CommandSpec};
use super::NO_KEYS;

pub(super) const BACKGROUND_SAVE: CommandSpec = CommandSpec {
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
};

pub(super) const SAVE: CommandSpec = CommandSpec {
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
};

pub(super) const LAST_SAVE: CommandSpec = CommandSpec {
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
};

pub(super) const KAD_SNAPSHOT: CommandSpec = CommandSpec {
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
};

pub(super) const KAD_COMPACT: CommandSpec = CommandSpec {
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
};

const SNAPSHOT_CREATE: CommandSpec = CommandSpec {
    id: CommandId::SnapshotCreate,
    name: "kad.snapshot|create",
    arity: -2,
    keys: NO_KEYS,
    flags: &["admin", "noscript"],
    categories: &["@admin", "@slow", "@dangerous"],
    tips: &[],
    group: "server",
    since: "0.1.0",
    complexity: "O(N) in the number of segments",
    summary: "Takes a snapshot and answers its id.",
    subcommands: &[],
};

const SNAPSHOT_SUBCOMMANDS: &[CommandSpec] = &[
    SNAPSHOT_CREATE,
    CommandSpec {
        id: CommandId::SnapshotList,
        name: "kad.snapshot|list",
        arity: 2,
        complexity: "O(N) in the number of snapshots",
        summary: "Answers the snapshots, the oldest first.",
        ..SNAPSHOT_CREATE
    },
    CommandSpec {
        id: CommandId::SnapshotDelete,
        name: "kad.snapshot|delete",
        arity: 3,
        complexity: "O(N) in the number of segments",
        summary: "Deletes a snapshot.",
        ..SNAPSHOT_CREATE
    },
];
