//! The table of settings: one row gives the flag, the variable, the file key, the help text, how a
//! value is read, what is accepted, and how it is written.

use std::ffi::OsStr;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

use super::network::{
    ITEM_TTL_MIN_S, KEEP_MAX_S, format_bootstrap, format_seconds, parse_bootstrap, parse_seconds,
};
use super::{
    BOOTSTRAP_MAX, Choice, Config, DurabilityMode, IoDriver, LogFormat, Mode, PeerV6, REPLICAS_MAX,
    SEGMENT_BYTES_MAX, SEGMENT_BYTES_MIN, SHARDS_MAX, VALUE_BYTES_LIMIT, size,
};
use crate::cluster::coordinator::Consistency;
use crate::io::device::SyncMethod;
use crate::io::uring::Abilities;
use crate::logging;

/// One row of [`SETTINGS`].
#[derive(Debug)]
pub struct Setting {
    /// Key in the configuration file; the variable is derived from it.
    pub key: &'static str,
    /// Flag without its dashes: the key with `-` for `_`.
    pub flag: &'static str,
    /// What stands for the value in help texts.
    pub value_name: &'static str,
    /// What it is, in one sentence or two.
    pub help: &'static str,
    /// What is accepted, to follow the word "give".
    pub expected: &'static str,
    /// Stores a value; `None` when its type or form is wrong.
    pub(super) apply: fn(&mut Config, &Raw<'_>) -> Option<()>,
    /// Whether the stored value is in its range.
    pub(super) valid: fn(&Config) -> bool,
    /// Writes the stored value so that `apply` accepts it.
    pub(super) show: fn(&Config) -> String,
}

impl Setting {
    /// The default, as it would be written.
    pub fn default_text(&self) -> String {
        (self.show)(&Config::default())
    }
}

/// The flag of a key, without its dashes: `data_dir` is `data-dir`.
pub fn flag_name(key: &str) -> String {
    key.replace('_', "-")
}

/// The environment variable of a key: `data_dir` is `KADRING_DATA_DIR`.
pub fn variable_name(key: &str) -> String {
    format!("KADRING_{}", key.to_ascii_uppercase())
}

/// What stands for the value of a setting that a bare flag turns on.
pub const YES_OR_NO: &str = "yes|no";

/// All settings but the password, in the order in which help shows them.
pub const SETTINGS: &[Setting] = &[
    Setting {
        key: "data_dir",
        flag: "data-dir",
        value_name: "DIR",
        help: "Where the node keeps its data; created when absent",
        expected: "the path of a directory",
        apply: |config, raw| set(&mut config.data_dir, raw.path()),
        valid: |config| !config.data_dir.as_os_str().is_empty(),
        show: |config| config.data_dir.display().to_string(),
    },
    Setting {
        key: "client",
        flag: "client",
        value_name: "ADDR",
        help: "Address of the client door, where Redis clients connect; port 0 picks a free one",
        expected: "an IP address and port such as 127.0.0.1:7379 or [::1]:7379",
        apply: |config, raw| set(&mut config.client, raw.parse()),
        valid: |_| true,
        show: |config| config.client.to_string(),
    },
    Setting {
        key: "mode",
        flag: "mode",
        value_name: "private|mainline",
        help: "Which network the node belongs to: private, its own cluster or none; mainline, \
               BitTorrent's DHT, where it stores items and peers for others",
        expected: "private or mainline",
        apply: |config, raw| set(&mut config.mode, Mode::from_name(raw.text()?)),
        valid: |_| true,
        show: |config| config.mode.name().to_owned(),
    },
    Setting {
        key: "peer",
        flag: "peer",
        value_name: "ADDR",
        help: "Address of the peer door, UDP and TCP, that makes the node one of a cluster; port 0 \
               picks a free one; in Mainline mode UDP alone, and none is 127.0.0.1:7400",
        expected: "an IP address and port such as 127.0.0.1:7400 or [::1]:7400, or none",
        apply: |config, raw| set(&mut config.cluster.peer, raw.optional()),
        valid: |_| true,
        show: |config| show_optional(config.cluster.peer.as_ref()),
    },
    Setting {
        key: "advertise",
        flag: "advertise",
        value_name: "ADDR",
        help: "Where other nodes reach the peer door, if not at its own address; in Mainline mode \
               the node's id follows this IP address, and what others see counts for nothing",
        expected: "an IP address and port such as 192.0.2.1:7400, or none",
        apply: |config, raw| set(&mut config.cluster.advertise, raw.optional()),
        valid: |config| {
            let reachable = |address: SocketAddr| !address.ip().is_unspecified();
            config.cluster.advertise.is_none_or(reachable)
        },
        show: |config| show_optional(config.cluster.advertise.as_ref()),
    },
    Setting {
        key: "peer_v6",
        flag: "peer-v6",
        value_name: "ADDR",
        help: "Second address of the peer door in Mainline mode, for IPv6; auto is the same port \
               on [::] or [::1] where the first is 0.0.0.0 or 127.0.0.1, off is none",
        expected: "an IPv6 address and port such as [::]:7400, auto or off",
        apply: |config, raw| {
            let peer_v6 = match raw.text()? {
                "auto" => PeerV6::Auto,
                "off" => PeerV6::Off,
                _ => PeerV6::At(raw.parse::<std::net::SocketAddrV6>()?.into()),
            };
            set(&mut config.mainline.peer_v6, Some(peer_v6))
        },
        valid: |_| true,
        show: |config| match config.mainline.peer_v6 {
            PeerV6::Auto => "auto".to_owned(),
            PeerV6::Off => "off".to_owned(),
            PeerV6::At(address) => address.to_string(),
        },
    },
    Setting {
        key: "bootstrap",
        flag: "bootstrap",
        value_name: "HOST:PORT",
        help: "Peer doors of nodes to join or to start from, as often as there are some or with \
               commas between; none founds a cluster; auto is that or, in Mainline mode with a \
               peer door that is not on loopback, well-known public nodes; host names in Mainline \
               mode alone",
        expected: "IP addresses and ports such as 127.0.0.1:7400,[::1]:7400, or none; in Mainline \
                   mode also host names",
        apply: |config, raw| {
            let text = raw.list()?;
            let names = if text == "auto" { None } else { Some(parse_bootstrap(&text)?) };
            let addresses = names.iter().flatten().filter_map(|name| name.parse().ok());
            config.cluster.bootstrap = addresses.collect();
            set(&mut config.bootstrap, Some(names))
        },
        valid: |config| {
            let names = config.bootstrap.as_ref().map_or(0, Vec::len);
            let all_known = names == config.cluster.bootstrap.len();
            names <= BOOTSTRAP_MAX && (all_known || config.mode == Mode::Mainline)
        },
        show: |config| {
            let names = config.bootstrap.as_ref();
            names.map_or_else(|| "auto".to_owned(), |names| format_bootstrap(names))
        },
    },
    Setting {
        key: "replicas",
        flag: "replicas",
        value_name: "N",
        help: "Nodes that hold each key of the cluster, 1 to 15; the same on all its nodes",
        expected: "a whole number from 1 to 15",
        apply: |config, raw| set(&mut config.cluster.replicas, raw.number()),
        valid: |config| (1..=REPLICAS_MAX).contains(&config.cluster.replicas),
        show: |config| config.cluster.replicas.to_string(),
    },
    Setting {
        key: "min_replicas_to_write",
        flag: "min-replicas-to-write",
        value_name: "N",
        help: "A write is refused when fewer than one more of the nodes that hold its key are up; \
               0 goes by the majority alone",
        expected: "a whole number from 0 to 14",
        apply: |config, raw| set(&mut config.cluster.replicas_to_write_min, raw.number()),
        valid: |config| config.cluster.replicas_to_write_min < REPLICAS_MAX,
        show: |config| config.cluster.replicas_to_write_min.to_string(),
    },
    Setting {
        key: "read_consistency",
        flag: "read-consistency",
        value_name: "majority|one",
        help: "How many of a key's nodes a read asks: majority, so that it finds every write that \
               was acknowledged; one, the first that answers, or a copy up to a minute old",
        expected: "majority or one",
        apply: |config, raw| {
            let reads = match raw.text()? {
                "majority" => Some(Consistency::Majority),
                "one" => Some(Consistency::One),
                _ => None,
            };
            set(&mut config.cluster.reads, reads)
        },
        valid: |_| true,
        show: |config| match config.cluster.reads {
            Consistency::Majority => "majority".to_owned(),
            Consistency::One => "one".to_owned(),
        },
    },
    Setting {
        key: "cluster_secret_file",
        flag: "cluster-secret-file",
        value_name: "FILE",
        help: "File with what all nodes of the cluster know and nobody else does, 16 bytes or more",
        expected: "the path of a file, or none",
        apply: |config, raw| {
            let path = raw.path()?;
            let is_none = path.as_os_str() == "none";
            set(&mut config.cluster.secret_file, Some((!is_none).then_some(path)))
        },
        valid: |_| true,
        show: |config| {
            let path = config.cluster.secret_file.as_ref();
            path.map_or_else(|| "none".to_owned(), |path| path.display().to_string())
        },
    },
    Setting {
        key: "down_after_ms",
        flag: "down-after-ms",
        value_name: "MS",
        help: "A node that is down for so many milliseconds is removed from the cluster, and \
               others take over what it held",
        expected: "a whole number of milliseconds, 1 or more",
        apply: |config, raw| set(&mut config.cluster.down_after_ms, raw.number()),
        valid: |config| config.cluster.down_after_ms > 0,
        show: |config| config.cluster.down_after_ms.to_string(),
    },
    Setting {
        key: "tombstone_grace_ms",
        flag: "tombstone-grace-ms",
        value_name: "MS",
        help: "Deletes are remembered for so many milliseconds; a node that was away for longer \
               gives up what it held and is filled again",
        expected: "a whole number of milliseconds, 1000 or more",
        apply: |config, raw| set(&mut config.cluster.tombstone_grace_ms, raw.number()),
        valid: |config| config.cluster.tombstone_grace_ms >= 1_000,
        show: |config| config.cluster.tombstone_grace_ms.to_string(),
    },
    Setting {
        key: "repair_bytes_per_second",
        flag: "repair-bytes-per-second",
        value_name: "SIZE",
        help: "How fast a node of a cluster fetches records to be filled and exchanges them to \
               repair; 0 is no limit",
        expected: "a size such as 16MiB, or 0",
        apply: |config, raw| set(&mut config.cluster.repair_bytes_per_second, raw.size()),
        valid: |_| true,
        show: |config| size::format(config.cluster.repair_bytes_per_second),
    },
    Setting {
        key: "admin",
        flag: "admin",
        value_name: "ADDR",
        help: "Address of the admin door, which tells /metrics, /healthz and /readyz over HTTP; \
               none opens none; port 0 picks a free one",
        expected: "an IP address and port such as 127.0.0.1:7480, or none",
        apply: |config, raw| set(&mut config.admin, raw.optional()),
        valid: |_| true,
        show: |config| show_optional(config.admin.as_ref()),
    },
    Setting {
        key: "admin_public",
        flag: "admin-public",
        value_name: YES_OR_NO,
        help: "Whether the admin door may be bound where other machines reach it: it asks for no \
               password",
        expected: "yes or no",
        apply: |config, raw| set(&mut config.admin_public, raw.truth()),
        valid: |_| true,
        show: |config| if config.admin_public { "yes" } else { "no" }.to_owned(),
    },
    Setting {
        key: "item_ttl",
        flag: "item-ttl",
        value_name: "TIME",
        help: "How long an item stays after it was last put, in Mainline mode; at least 1m",
        expected: "a time from 1m to 36500d, such as 2h",
        apply: |config, raw| set(&mut config.mainline.item_ttl_s, raw.seconds()),
        valid: |config| (ITEM_TTL_MIN_S..=KEEP_MAX_S).contains(&config.mainline.item_ttl_s),
        show: |config| format_seconds(config.mainline.item_ttl_s),
    },
    Setting {
        key: "mirror",
        flag: "mirror",
        value_name: "TIME",
        help: "How long items are kept and republished after they were last put, in Mainline mode; \
               off: no longer than item_ttl, and not republished",
        expected: "a time up to 36500d, such as 30d, forever or off",
        apply: |config, raw| {
            let seconds = match raw.text() {
                Some("off") => Some(0),
                Some("forever") => Some(KEEP_MAX_S),
                _ => raw.seconds(),
            };
            set(&mut config.mainline.mirror_s, seconds)
        },
        valid: |config| config.mainline.mirror_s <= KEEP_MAX_S,
        show: |config| match config.mainline.mirror_s {
            0 => "off".to_owned(),
            KEEP_MAX_S => "forever".to_owned(),
            seconds => format_seconds(seconds),
        },
    },
    Setting {
        key: "loopback_exempt",
        flag: "loopback-exempt",
        value_name: "auto|yes|no",
        help: "Whether nodes of this machine and of private networks count as much as others, \
               without caps and rate limits, in Mainline mode: for tests; auto is yes where the \
               peer door is on loopback",
        expected: "auto, yes or no",
        apply: |config, raw| {
            set(&mut config.mainline.loopback_exempt, Choice::from_name(raw.text()?))
        },
        valid: |_| true,
        show: |config| config.mainline.loopback_exempt.name().to_owned(),
    },
    Setting {
        key: "reachable",
        flag: "reachable",
        value_name: "auto|yes|no",
        help: "Whether other nodes reach this one unasked, in Mainline mode; auto asks them not to \
               keep it (BEP 43) until that is proven, or is yes where the peer door is on loopback",
        expected: "auto, yes or no",
        apply: |config, raw| set(&mut config.mainline.reachable, Choice::from_name(raw.text()?)),
        valid: |_| true,
        show: |config| config.mainline.reachable.name().to_owned(),
    },
    Setting {
        key: "shards",
        flag: "shards",
        value_name: "N",
        help: "Shards of a new data directory, 1 to 16; auto is one per core, at most 16",
        expected: "a whole number from 1 to 16, or auto",
        apply: |config, raw| {
            let is_auto = raw.text() == Some("auto");
            set(&mut config.shards, if is_auto { Some(None) } else { raw.number().map(Some) })
        },
        valid: |config| config.shards.is_none_or(|shards| (1..=SHARDS_MAX).contains(&shards)),
        show: |config| config.shards.map_or_else(|| "auto".to_owned(), |shards| shards.to_string()),
    },
    Setting {
        key: "threads",
        flag: "threads",
        value_name: "N",
        help: "Threads that serve clients and own the shards, at most one per shard; auto is one \
               per core where there are as many shards",
        expected: "a whole number from 1 to 16, or auto",
        apply: |config, raw| {
            let is_auto = raw.text() == Some("auto");
            set(&mut config.threads, if is_auto { Some(None) } else { raw.number().map(Some) })
        },
        valid: |config| config.threads.is_none_or(|threads| (1..=SHARDS_MAX).contains(&threads)),
        show: |config| {
            config.threads.map_or_else(|| "auto".to_owned(), |threads| threads.to_string())
        },
    },
    Setting {
        key: "io",
        flag: "io",
        value_name: "uring|tokio-uring|pread",
        help: "Which driver does disk and network work; pread runs where io_uring is forbidden",
        expected: "uring, tokio-uring or pread",
        apply: |config, raw| {
            let driver = match raw.text()? {
                "uring" => IoDriver::Uring,
                "tokio-uring" => IoDriver::TokioUring,
                "pread" => IoDriver::Pread,
                _ => return None,
            };
            set(&mut config.io, Some(driver))
        },
        valid: |_| true,
        show: |config| match config.io {
            IoDriver::Uring => "uring".to_owned(),
            IoDriver::TokioUring => "tokio-uring".to_owned(),
            IoDriver::Pread => "pread".to_owned(),
        },
    },
    Setting {
        key: "uring_abilities",
        flag: "uring-abilities",
        value_name: "auto|6.1|fewest",
        help: "How much of the kernel the uring driver uses: all it has, what Linux 6.1 has, or \
               what it cannot do without",
        expected: "auto, 6.1 or fewest",
        apply: |config, raw| {
            let abilities = match raw.text()? {
                "auto" => Abilities::Probed,
                "6.1" => Abilities::Linux6_1,
                "fewest" => Abilities::Fewest,
                _ => return None,
            };
            set(&mut config.uring_abilities, Some(abilities))
        },
        valid: |_| true,
        show: |config| match config.uring_abilities {
            Abilities::Probed => "auto".into(),
            Abilities::Linux6_1 => "6.1".into(),
            Abilities::Fewest => "fewest".into(),
        },
    },
    Setting {
        key: "pread_threads",
        flag: "pread-threads",
        value_name: "N",
        help: "Blocking file threads of the pread driver, 1 to 64",
        expected: "a whole number from 1 to 64",
        apply: |config, raw| set(&mut config.pread_threads, raw.number()),
        valid: |config| (1..=64).contains(&config.pread_threads),
        show: |config| config.pread_threads.to_string(),
    },
    Setting {
        key: "io_buffer_bytes",
        flag: "io-buffer-bytes",
        value_name: "SIZE",
        help: "Memory for disk buffers of the ring drivers, in steps of 4MiB; 4MiB to 4GiB; what \
               does not fit takes plain memory",
        expected: "a multiple of 4MiB from 4MiB to 4GiB",
        apply: |config, raw| set(&mut config.io_buffer_bytes, raw.size()),
        valid: |config| {
            let bytes = config.io_buffer_bytes;
            (4 << 20..=4 << 30).contains(&bytes) && bytes.is_multiple_of(4 << 20)
        },
        show: |config| size::format(config.io_buffer_bytes as u64),
    },
    Setting {
        key: "durability",
        flag: "durability",
        value_name: "always|interval|os",
        help: "What a reply to a write promises: always, it is on stable storage; interval, it is \
               about to be, in a second or so; os, when the operating system likes",
        expected: "always, interval or os",
        apply: |config, raw| set(&mut config.durability, DurabilityMode::from_name(raw.text()?)),
        valid: |_| true,
        show: |config| config.durability.name().to_owned(),
    },
    Setting {
        key: "sync_method",
        flag: "sync-method",
        value_name: "auto|dsync|sync",
        help: "How writes are made durable: dsync, each by itself; sync, by flushing the device \
               after some; auto, what was faster at the directory's first start",
        expected: "auto, dsync or sync",
        apply: |config, raw| {
            let method = match raw.text()? {
                "auto" => None,
                name => Some(SyncMethod::from_name(name)?),
            };
            set(&mut config.sync_method, Some(method))
        },
        valid: |_| true,
        show: |config| config.sync_method.map_or("auto", SyncMethod::name).to_owned(),
    },
    Setting {
        key: "segment_bytes",
        flag: "segment-bytes",
        value_name: "SIZE",
        help: "Size of a full-grown log segment: a power of two from 4MiB to 256MiB",
        expected: "a power of two from 4MiB to 256MiB, such as 64MiB",
        apply: |config, raw| set(&mut config.segment_bytes, raw.size()),
        valid: |config| {
            let bytes = config.segment_bytes;
            bytes.is_power_of_two() && (SEGMENT_BYTES_MIN..=SEGMENT_BYTES_MAX).contains(&bytes)
        },
        show: |config| size::format(config.segment_bytes),
    },
    Setting {
        key: "cache_bytes",
        flag: "cache-bytes",
        value_name: "SIZE",
        help: "Memory for values that are read often; 0 keeps none",
        expected: "a size such as 256MiB or 1048576",
        apply: |config, raw| set(&mut config.cache_bytes, raw.size()),
        valid: |_| true,
        show: |config| size::format(config.cache_bytes as u64),
    },
    Setting {
        key: "disk_bytes_max",
        flag: "disk-bytes-max",
        value_name: "SIZE",
        help: "Disk space for segments, over all shards; at the limit the node behaves as on a \
               full disk; at least 4 x segment_bytes per shard; 0 sets no limit",
        expected: "a size such as 100GiB, or 0",
        apply: |config, raw| set(&mut config.disk_bytes_max, raw.size()),
        valid: |_| true,
        show: |config| size::format(config.disk_bytes_max),
    },
    Setting {
        key: "checkpoint_bytes",
        flag: "checkpoint-bytes",
        value_name: "SIZE",
        help: "Log of a shard after which its index is written to a checkpoint, but no sooner than \
               after 4 times the index; a start after a kill reads the log since; at least 1MiB",
        expected: "a size of at least 1MiB",
        apply: |config, raw| set(&mut config.checkpoint_bytes, raw.size()),
        valid: |config| config.checkpoint_bytes >= 1 << 20,
        show: |config| size::format(config.checkpoint_bytes),
    },
    Setting {
        key: "scrub_bytes_per_second",
        flag: "scrub-bytes-per-second",
        value_name: "SIZE",
        help: "How fast data at rest is read again to find damage, over all shards; 0 turns it off",
        expected: "a size such as 8MiB, or 0",
        apply: |config, raw| set(&mut config.scrub_bytes_per_second, raw.size()),
        valid: |_| true,
        show: |config| size::format(config.scrub_bytes_per_second),
    },
    Setting {
        key: "connections_max",
        flag: "connections-max",
        value_name: "N",
        help: "Client connections at the same time, 1 to 1000000",
        expected: "a whole number from 1 to 1000000",
        apply: |config, raw| set(&mut config.limits.connections_max, raw.number()),
        valid: |config| (1..=1_000_000).contains(&config.limits.connections_max),
        show: |config| config.limits.connections_max.to_string(),
    },
    Setting {
        key: "value_bytes_max",
        flag: "value-bytes-max",
        value_name: "SIZE",
        help: "Largest value that is stored, 1 to 32MiB",
        expected: "a size from 1 to 32MiB, such as 16MiB",
        apply: |config, raw| set(&mut config.limits.value_bytes_max, raw.size()),
        valid: |config| (1..=VALUE_BYTES_LIMIT).contains(&config.limits.value_bytes_max),
        show: |config| size::format(config.limits.value_bytes_max as u64),
    },
    Setting {
        key: "output_pause_bytes",
        flag: "output-pause-bytes",
        value_name: "SIZE",
        help: "Unsent replies at which a connection's further commands wait",
        expected: "a size of 1 or more, such as 1MiB",
        apply: |config, raw| set(&mut config.limits.output_pause_bytes, raw.size()),
        valid: |config| config.limits.output_pause_bytes > 0,
        show: |config| size::format(config.limits.output_pause_bytes as u64),
    },
    Setting {
        key: "output_bytes_max",
        flag: "output-bytes-max",
        value_name: "SIZE",
        help: "Unsent replies at which a connection is closed; at least output_pause_bytes + \
               value_bytes_max",
        expected: "a size such as 256MiB or 1048576",
        apply: |config, raw| set(&mut config.limits.output_bytes_max, raw.size()),
        valid: |_| true,
        show: |config| size::format(config.limits.output_bytes_max as u64),
    },
    Setting {
        key: "input_bytes_max",
        flag: "input-bytes-max",
        value_name: "SIZE",
        help: "Received bytes kept for a connection whose commands wait; at least \
               value_bytes_max + 1MiB",
        expected: "a size such as 64MiB or 1048576",
        apply: |config, raw| set(&mut config.limits.input_bytes_max, raw.size()),
        valid: |_| true,
        show: |config| size::format(config.limits.input_bytes_max as u64),
    },
    Setting {
        key: "stall_ms",
        flag: "stall-ms",
        value_name: "MS",
        help: "Milliseconds after which a connection that waits and reads nothing is closed",
        expected: "a whole number of milliseconds, 1 or more",
        apply: |config, raw| set(&mut config.limits.stall_ms, raw.number()),
        valid: |config| config.limits.stall_ms > 0,
        show: |config| config.limits.stall_ms.to_string(),
    },
    Setting {
        key: "log",
        flag: "log",
        value_name: "FILTER",
        help: "What is logged to stderr: off, error, warn, info, debug or trace, also by module \
               as in info,kadring::io=debug",
        expected: "off, error, warn, info, debug or trace, also as module=level, with commas \
                   between",
        apply: |config, raw| set(&mut config.log.filter, raw.text().map(str::to_owned)),
        valid: |config| logging::parse_filter(&config.log.filter).is_some(),
        show: |config| config.log.filter.clone(),
    },
    Setting {
        key: "log_format",
        flag: "log-format",
        value_name: "text|json",
        help: "How a log line looks",
        expected: "text or json",
        apply: |config, raw| {
            let format = match raw.text()? {
                "text" => LogFormat::Text,
                "json" => LogFormat::Json,
                _ => return None,
            };
            set(&mut config.log.format, Some(format))
        },
        valid: |_| true,
        show: |config| match config.log.format {
            LogFormat::Text => "text".to_owned(),
            LogFormat::Json => "json".to_owned(),
        },
    },
];

fn show_optional<T: ToString>(value: Option<&T>) -> String {
    value.map_or_else(|| "none".to_owned(), ToString::to_string)
}

fn set<T>(slot: &mut T, value: Option<T>) -> Option<()> {
    *slot = value?;
    Some(())
}

/// A value as found: an untyped word from a flag or variable, or a typed one from the file.
#[derive(Clone, Copy, Debug)]
pub(super) enum Raw<'a> {
    Word(&'a OsStr),
    File(&'a toml::Value),
}

impl<'a> Raw<'a> {
    /// A string.
    pub(super) fn text(&self) -> Option<&'a str> {
        match self {
            Self::Word(word) => word.to_str(),
            Self::File(value) => value.as_str(),
        }
    }

    /// Yes or no; in the file also as TOML has it.
    fn truth(&self) -> Option<bool> {
        if let Self::File(toml::Value::Boolean(truth)) = self {
            return Some(*truth);
        }
        match self.text()? {
            "yes" => Some(true),
            "no" => Some(false),
            _ => None,
        }
    }

    /// A path that is not empty; on the command line it need not be UTF-8.
    pub(super) fn path(&self) -> Option<PathBuf> {
        let path = match self {
            Self::Word(word) => PathBuf::from(word),
            Self::File(value) => PathBuf::from(value.as_str()?),
        };
        (!path.as_os_str().is_empty()).then_some(path)
    }

    /// A string with a form of its own.
    fn parse<T: FromStr>(&self) -> Option<T> {
        self.text()?.parse().ok()
    }

    /// A string with a form of its own, or none.
    fn optional<T: FromStr>(&self) -> Option<Option<T>> {
        if self.text()? == "none" { Some(None) } else { self.parse().map(Some) }
    }

    /// Words with commas between, or an array of them in the file.
    fn list(&self) -> Option<String> {
        if let Self::File(toml::Value::Array(values)) = self {
            let words: Option<Vec<&str>> = values.iter().map(toml::Value::as_str).collect();
            let words = words?;
            return Some(if words.is_empty() { "none".to_owned() } else { words.join(",") });
        }
        self.text().map(str::to_owned)
    }

    /// A whole number: digits, or an integer in the file.
    fn number<T: TryFrom<u64>>(&self) -> Option<T> {
        let number = match self {
            Self::Word(word) => {
                let text = word.to_str()?;
                let digits_only = text.bytes().all(|byte| byte.is_ascii_digit());
                digits_only.then(|| text.parse::<u64>().ok()).flatten()?
            }
            Self::File(value) => u64::try_from(value.as_integer()?).ok()?,
        };
        T::try_from(number).ok()
    }

    /// A size: as [`size::parse`] reads it, or an integer number of bytes in the file.
    fn size<T: TryFrom<u64>>(&self) -> Option<T> {
        let bytes = match self {
            Self::File(toml::Value::Integer(bytes)) => u64::try_from(*bytes).ok()?,
            _ => size::parse(self.text()?)?,
        };
        T::try_from(bytes).ok()
    }

    /// A time as [`parse_seconds`] reads it, or an integer number of seconds in the file.
    fn seconds(&self) -> Option<u64> {
        match self {
            Self::File(toml::Value::Integer(seconds)) => u64::try_from(*seconds).ok(),
            _ => parse_seconds(self.text()?),
        }
    }

    /// The value for an error message, on one line and of bounded length.
    pub(super) fn describe(&self) -> String {
        match self {
            Self::Word(word) => quote(&word.to_string_lossy()),
            Self::File(toml::Value::String(text)) => format!("the string {}", quote(text)),
            Self::File(toml::Value::Integer(number)) => format!("the integer {number}"),
            Self::File(toml::Value::Float(number)) => format!("the float {number}"),
            Self::File(toml::Value::Boolean(truth)) => format!("the boolean {truth}"),
            Self::File(toml::Value::Datetime(time)) => format!("the date {time}"),
            Self::File(toml::Value::Array(_)) => "an array".to_owned(),
            Self::File(toml::Value::Table(_)) => "a table".to_owned(),
        }
    }
}

fn quote(text: &str) -> String {
    let shown: String = text.chars().take(80).collect();
    let more = if shown.len() < text.len() { "..." } else { "" };
    format!("{shown:?}{more}")
}

/// Levenshtein distance in bytes: how many insertions, deletions or changes lead from `a` to `b`.
///
/// Only the first 64 bytes of `a` count, so that a hostile file costs nothing.
pub(super) fn edit_distance(a: &str, b: &str) -> usize {
    let b = b.as_bytes();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, a_byte) in a.bytes().take(64).enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, b_byte) in b.iter().enumerate() {
            let changed = diagonal + usize::from(a_byte != *b_byte);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}
