//! Commands of Mainline mode: data alone, one entry each.

use super::super::spec::{CommandId, CommandSpec};
use super::NO_KEYS;

pub(super) const BEP44_GET: CommandSpec = CommandSpec {
    id: CommandId::Bep44Get,
    name: "kad.bep44.get",
    arity: -2,
    keys: NO_KEYS,
    flags: &["noscript"],
    categories: &["@read", "@slow"],
    tips: &[],
    group: "mainline",
    since: "0.1.0",
    complexity: "O(log(N)) queries in a network of N nodes",
    summary: "Finds an item of BEP 44.",
    subcommands: &[],
};

pub(super) const BEP44_PUT: CommandSpec = CommandSpec {
    id: CommandId::Bep44Put,
    name: "kad.bep44.put",
    arity: 2,
    categories: &["@write", "@slow"],
    summary: "Stores an immutable item at the nodes closest to it.",
    ..BEP44_GET
};

pub(super) const BEP44_PUT_MUTABLE: CommandSpec = CommandSpec {
    id: CommandId::Bep44PutMutable,
    name: "kad.bep44.putmutable",
    arity: -5,
    categories: &["@write", "@slow"],
    summary: "Stores a signed mutable item at the nodes closest to it.",
    ..BEP44_GET
};

pub(super) const GET_PEERS: CommandSpec = CommandSpec {
    id: CommandId::MainlineGetPeers,
    name: "kad.mainline.getpeers",
    arity: 2,
    summary: "Finds peers of a torrent.",
    ..BEP44_GET
};

pub(super) const ANNOUNCE: CommandSpec = CommandSpec {
    id: CommandId::MainlineAnnounce,
    name: "kad.mainline.announce",
    arity: -2,
    categories: &["@write", "@slow"],
    summary: "Announces this machine as a peer of a torrent.",
    ..BEP44_GET
};

pub(super) const SAMPLE: CommandSpec = CommandSpec {
    id: CommandId::MainlineSample,
    name: "kad.mainline.sample",
    arity: 2,
    summary: "Asks the nodes near a target for torrents that they have peers of.",
    ..BEP44_GET
};

pub(super) const PING: CommandSpec = CommandSpec {
    id: CommandId::MainlinePing,
    name: "kad.mainline.ping",
    arity: 2,
    complexity: "O(1)",
    summary: "Asks a node for its id.",
    ..BEP44_GET
};
