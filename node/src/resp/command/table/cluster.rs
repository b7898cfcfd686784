//! Commands about other nodes: data alone, one entry each.

use super::super::spec::{CommandId, CommandSpec};
use super::{NO_KEYS, ONE_KEY};

pub(super) const WAIT: CommandSpec = CommandSpec {
    id: CommandId::Wait,
    name: "wait",
    arity: 3,
    keys: NO_KEYS,
    flags: &["noscript"],
    categories: &["@slow", "@connection"],
    tips: &["request_policy:all_shards", "response_policy:agg_min"],
    group: "generic",
    since: "3.0.0",
    complexity: "O(1)",
    summary: "Waits until the connection's writes have so many further copies.",
    subcommands: &[],
};

pub(super) const KAD_LOCATE: CommandSpec = CommandSpec {
    id: CommandId::KadLocate,
    name: "kad.locate",
    arity: 2,
    keys: ONE_KEY,
    flags: &["readonly"],
    categories: &["@read", "@slow"],
    tips: &[],
    group: "server",
    since: "0.1.0",
    complexity: "O(N) in the number of nodes",
    summary: "Answers which nodes hold a key.",
    subcommands: &[],
};

pub(super) const KAD_ROUTES: CommandSpec = CommandSpec {
    id: CommandId::KadRoutes,
    name: "kad.routes",
    arity: 1,
    keys: NO_KEYS,
    flags: &["admin"],
    categories: &["@admin", "@slow", "@dangerous"],
    complexity: "O(N) in the number of entries",
    summary: "Answers the routing table.",
    ..KAD_LOCATE
};

pub(super) const KAD_LOOKUP: CommandSpec = CommandSpec {
    id: CommandId::KadLookup,
    name: "kad.lookup",
    arity: 2,
    complexity: "O(log N) messages",
    summary: "Answers the nodes closest to an id, and how they were found.",
    ..KAD_ROUTES
};

pub(super) const KAD_NODES: CommandSpec = CommandSpec {
    id: CommandId::KadNodes,
    name: "kad.nodes",
    complexity: "O(N) in the number of nodes",
    summary: "Answers the members of the cluster.",
    ..KAD_ROUTES
};

pub(super) const KAD_LEAVE: CommandSpec = CommandSpec {
    id: CommandId::KadLeave,
    name: "kad.leave",
    complexity: "O(N) in the number of keys",
    summary: "Hands over what the node holds, and answers when it has left the cluster.",
    ..KAD_ROUTES
};

pub(super) const KAD_FORGET: CommandSpec = CommandSpec {
    id: CommandId::KadForget,
    name: "kad.forget",
    arity: 2,
    complexity: "O(N) in the number of nodes",
    summary: "Removes a node from the cluster that will not come back.",
    ..KAD_ROUTES
};
