//! Configuration of a node: [`Config`] as plain data, and how it is put together.
//!
//! A setting has one key. `shards` is `--shards` on the command line, `KADRING_SHARDS` in the
//! environment and `shards = 4` in the TOML file named by `--config`. The first that is present
//! wins, in that order; the default is last. An empty variable counts as absent. A relative path is
//! relative to the working directory, wherever it was written.
//!
//! Nothing is clamped: a value out of range is a [`ConfigError`] that names the place it came from.
//! This module reads no environment, command line or file itself; [`Sources`] lends them.

use std::ffi::OsString;
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

mod error;
pub mod network;
mod settings;
pub mod size;
#[cfg(test)]
mod tests;

pub use error::{ConfigError, Origin, Place};
pub use network::{Choice, MainlineConfig, Mode, PeerV6};
pub use settings::{SETTINGS, Setting, YES_OR_NO, flag_name, variable_name};

use crate::cluster::coordinator::Consistency;
use settings::Raw;
use storage::CheckpointOptions;

use crate::io::device::SyncMethod;
use crate::io::uring::Abilities;

/// Shards of a data directory at most (DESIGN 2).
pub const SHARDS_MAX: u16 = 16;
/// Bytes of the smallest segment, with which every store starts.
pub const SEGMENT_BYTES_MIN: u64 = 4 << 20;
/// Bytes of the largest segment.
pub const SEGMENT_BYTES_MAX: u64 = 256 << 20;
/// Largest `value_bytes_max` that may be configured.
pub const VALUE_BYTES_LIMIT: usize = 32 << 20;
/// Room for key, arguments and framing beside a value of the largest size, in the input limit.
pub const COMMAND_OVERHEAD_BYTES: usize = 1 << 20;
/// Bytes of a password at most, as in Redis.
pub const PASSWORD_BYTES_MAX: usize = 512;
/// Copies of each key of a cluster at most.
pub const REPLICAS_MAX: usize = 15;
/// Nodes to join that may be named.
pub const BOOTSTRAP_MAX: usize = 256;
/// Port of the peer door, where a node is to join others and no address of its own is given.
pub const PEER_PORT: u16 = 7400;

/// Everything a node needs to know before it starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Where the node keeps its data; created when absent.
    pub data_dir: PathBuf,
    /// Address of the client door (RESP over TCP); port 0 picks a free one.
    pub client: SocketAddr,
    /// Which network the node belongs to.
    pub mode: Mode,
    /// Nodes to join or to start from, as host and port; `None`: the mode's own, if it has some.
    pub bootstrap: Option<Vec<String>>,
    /// How BitTorrent's DHT is served in Mainline mode.
    pub mainline: MainlineConfig,
    /// Address of the admin door (HTTP); `None` opens none, port 0 picks a free one.
    pub admin: Option<SocketAddr>,
    /// Whether the admin door may be bound where other machines reach it.
    pub admin_public: bool,
    /// Password that clients must give with AUTH or HELLO; `None` asks for none.
    pub requirepass: Option<Password>,
    /// What the node is to other nodes.
    pub cluster: ClusterConfig,
    /// Shards of a new data directory, 1 to 16; `None` is one per core, at most 16. A directory
    /// that exists keeps its own number.
    pub shards: Option<u16>,
    /// Threads that the shards are spread over, no more than shards; `None` is one per core, or one
    /// per shard where those are fewer.
    pub threads: Option<u16>,
    /// Which driver does disk and network work.
    pub io: IoDriver,
    /// How much of the kernel the `uring` driver uses.
    pub uring_abilities: Abilities,
    /// Blocking file threads of the `pread` driver, 1 to 64.
    pub pread_threads: usize,
    /// Memory for disk buffers, registered with the ring where that is allowed; not for `pread`.
    pub io_buffer_bytes: usize,
    /// What a reply to a write promises.
    pub durability: DurabilityMode,
    /// How writes are made durable; `None` is what was measured to be best on this device.
    pub sync_method: Option<SyncMethod>,
    /// Bytes of a full-grown segment: a power of two from 4 MiB to 256 MiB.
    pub segment_bytes: u64,
    /// Bytes of values kept in memory for reading; 0 keeps none.
    pub cache_bytes: usize,
    /// Bytes that the segments of all shards may take on disk; 0 sets no limit.
    pub disk_bytes_max: u64,
    /// Bytes of a shard's log after which its index is written to a checkpoint.
    pub checkpoint_bytes: u64,
    /// Bytes per second that the scrub reads, over all shards; 0 turns it off.
    pub scrub_bytes_per_second: u64,
    /// What clients may take.
    pub limits: ClientLimits,
    /// What is logged and how.
    pub log: LogConfig,
}

/// What a node is to other nodes: nothing, without a peer door and nodes to join.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterConfig {
    /// Address of the peer door; port 0 picks a free one.
    pub peer: Option<SocketAddr>,
    /// Where others reach it, if not there.
    pub advertise: Option<SocketAddr>,
    /// Peer doors of nodes to join; without any, a new node founds a cluster.
    pub bootstrap: Vec<SocketAddr>,
    /// Nodes that hold each key, 1 to 15.
    pub replicas: usize,
    /// A write is refused when fewer than one more of the key's nodes are up.
    pub replicas_to_write_min: usize,
    /// How keys are read that a command does not change.
    pub reads: Consistency,
    /// The file that holds the cluster's secret.
    pub secret_file: Option<PathBuf>,
    /// Milliseconds after which a node that is down is removed.
    pub down_after_ms: u64,
    /// Milliseconds that deletes are remembered for.
    pub tombstone_grace_ms: u64,
    /// Bytes per second that the node is filled and repairs with; 0 is no limit.
    pub repair_bytes_per_second: u64,
}

impl ClusterConfig {
    /// The address of the peer door, if there is to be one.
    #[must_use]
    pub fn door(&self) -> Option<SocketAddr> {
        let default = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), PEER_PORT);
        self.peer.or_else(|| (!self.bootstrap.is_empty()).then_some(default))
    }
}

impl Default for ClusterConfig {
    fn default() -> Self {
        Self {
            peer: None,
            advertise: None,
            bootstrap: Vec::new(),
            replicas: 3,
            replicas_to_write_min: 0,
            reads: Consistency::Majority,
            secret_file: None,
            down_after_ms: 600_000,
            tombstone_grace_ms: 24 * 3_600_000,
            repair_bytes_per_second: 8 << 20,
        }
    }
}

/// Open files that clients may not take at least: the log needs some, and so do peers.
const OPEN_FILES_KEPT_MIN: u64 = 64;

/// Limits of the client door.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientLimits {
    /// Connections at the same time, 1 to 1,000,000.
    pub connections_max: usize,
    /// Bytes of a value at most, 1 to 32 MiB.
    pub value_bytes_max: usize,
    /// Unsent reply bytes of a connection at which no more of its commands are executed.
    pub output_pause_bytes: usize,
    /// Unsent reply bytes of a connection at which it is disconnected; at least
    /// `output_pause_bytes + value_bytes_max`, so that one large reply never does it.
    pub output_bytes_max: usize,
    /// Received but unexecuted bytes kept for a connection; at least `value_bytes_max` + 1 MiB, so
    /// that the largest command fits.
    pub input_bytes_max: usize,
    /// Milliseconds after which a paused client that reads nothing is disconnected; at least 1.
    pub stall_ms: u64,
}

impl ClientLimits {
    /// Lets clients have no more connections than a process with so many `open_files` can do
    /// with: if they took them all, the log could open no segment. Says so where that is fewer.
    pub(crate) fn bound_connections(&mut self, open_files: u64) {
        let kept = (open_files / 4).max(OPEN_FILES_KEPT_MIN);
        let connections = usize::try_from(open_files.saturating_sub(kept)).unwrap_or(usize::MAX);
        if connections < self.connections_max {
            let (asked, allowed) = (self.connections_max, connections.max(1));
            tracing::warn!(
                open_files,
                connections_max = asked,
                allowed,
                "fewer connections than connections_max: raise the hard limit of open files \
                 (ulimit -Hn, LimitNOFILE), or lower connections_max"
            );
            self.connections_max = allowed;
        }
    }
}

/// What is logged and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogConfig {
    /// A level, or levels by module: `info`, `info,kadring::io=debug`.
    pub filter: String,
    /// How a line looks.
    pub format: LogFormat,
}

/// Which implementation of the `Io` seam runs the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IoDriver {
    /// One io_uring per thread for disk and network. Never replaced silently by another driver:
    /// where the kernel forbids it the node does not start.
    Uring,
    /// The same on an ordinary io_uring runtime, tokio-uring: a cross-check, and what to compare
    /// the first with.
    TokioUring,
    /// Blocking file calls on threads and readiness-driven sockets.
    Pread,
}

/// What a reply to a write promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DurabilityMode {
    /// The write is on stable storage.
    Always,
    /// The operating system has the write; it reaches stable storage within about a second.
    Interval,
    /// The operating system has the write, and decides when it reaches stable storage.
    Os,
}

impl DurabilityMode {
    /// The word for it in configuration and INFO.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Always => "always",
            Self::Interval => "interval",
            Self::Os => "os",
        }
    }

    /// The mode that the word means.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Always, Self::Interval, Self::Os].into_iter().find(|mode| mode.name() == name)
    }
}

/// How a log line looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// One readable line per event.
    Text,
    /// One JSON object per event.
    Json,
}

/// A password that does not show itself when the configuration is printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Password(String);

impl Password {
    /// Takes `text` as it is; `None` unless it is one line of 1 to [`PASSWORD_BYTES_MAX`] bytes.
    pub fn new(text: &str) -> Option<Self> {
        let len_fits = (1..=PASSWORD_BYTES_MAX).contains(&text.len());
        (len_fits && !text.contains(['\n', '\r', '\0'])).then(|| Self(text.to_owned()))
    }

    /// Takes the content of a password file: as [`Password::new`], less one line end.
    pub fn from_file_content(content: &str) -> Option<Self> {
        let line = content.strip_suffix('\n').unwrap_or(content);
        Self::new(line.strip_suffix('\r').unwrap_or(line))
    }

    /// The password itself, to be sent to a node.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Whether `given` is the password; takes as long for a wrong one of the same length.
    pub fn matches(&self, given: &[u8]) -> bool {
        let own = self.0.as_bytes();
        own.len() == given.len() && own.iter().zip(given).fold(0, |odd, (a, b)| odd | (a ^ b)) == 0
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password(hidden)")
    }
}

/// Where settings come from; closures, so that tests need no process environment and no files.
pub struct Sources<'a> {
    /// The flag of a key on the command line, if given.
    pub flag: &'a dyn Fn(&str) -> Option<OsString>,
    /// An environment variable by its full name, if set.
    pub variable: &'a dyn Fn(&str) -> Option<OsString>,
    /// The text of a file.
    pub read: &'a dyn Fn(&Path) -> io::Result<String>,
}

impl fmt::Debug for Sources<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sources").finish_non_exhaustive()
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            data_dir: PathBuf::from("./kadring-data"),
            client: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 7379),
            mode: Mode::Private,
            bootstrap: None,
            mainline: MainlineConfig::default(),
            admin: None,
            admin_public: false,
            requirepass: None,
            cluster: ClusterConfig::default(),
            shards: None,
            threads: None,
            io: IoDriver::Uring,
            uring_abilities: Abilities::Probed,
            pread_threads: 4,
            io_buffer_bytes: 64 << 20,
            durability: DurabilityMode::Always,
            sync_method: None,
            segment_bytes: 64 << 20,
            cache_bytes: 256 << 20,
            disk_bytes_max: 0,
            checkpoint_bytes: CheckpointOptions::default().log_bytes_min,
            scrub_bytes_per_second: 8 << 20,
            limits: ClientLimits {
                connections_max: 10_000,
                value_bytes_max: 16 << 20,
                output_pause_bytes: 1 << 20,
                output_bytes_max: 256 << 20,
                input_bytes_max: 64 << 20,
                stall_ms: 60_000,
            },
            log: LogConfig { filter: "info".to_owned(), format: LogFormat::Text },
        }
    }
}

impl Config {
    /// Puts the configuration together from flags, environment, file and defaults, and checks it.
    ///
    /// # Errors
    /// Each [`ConfigError`] says on one line what is wrong, where, and how to mend it.
    pub fn load(sources: &Sources<'_>) -> Result<Self, ConfigError> {
        let layers = Layers::read(sources)?;
        let mut config = Self::default();
        for setting in SETTINGS {
            layers.apply(setting, &mut config)?;
        }
        config.requirepass = layers.requirepass()?;
        config.check(&|key| layers.origin(key))?;
        Ok(config)
    }

    /// Checks the ranges of all settings and how they fit together.
    ///
    /// # Errors
    /// The first [`ConfigError`] found; [`Config::load`] has called this already.
    pub fn validate(&self) -> Result<(), ConfigError> {
        self.check(&|_| Origin::Default)
    }

    /// All settings but the password, by key, as text that the configuration file would accept.
    pub fn entries(&self) -> impl Iterator<Item = (&'static str, String)> {
        SETTINGS.iter().map(|setting| (setting.key, (setting.show)(self)))
    }

    fn check(&self, origin: &dyn Fn(&'static str) -> Origin) -> Result<(), ConfigError> {
        let place = |key| Place { key, origin: origin(key) };
        if let Some(setting) = SETTINGS.iter().find(|setting| !(setting.valid)(self)) {
            return Err(ConfigError::ValueRefused {
                place: place(setting.key),
                found: (setting.show)(self),
                expected: setting.expected,
            });
        }
        let limits = &self.limits;
        let at_least = |key, found: usize, needed: usize, reason| {
            if found >= needed {
                return Ok(());
            }
            let (found, needed) = (found as u64, needed as u64);
            Err(ConfigError::LimitTooSmall { place: place(key), found, needed, reason })
        };
        at_least(
            "output_bytes_max",
            limits.output_bytes_max,
            limits.output_pause_bytes.saturating_add(limits.value_bytes_max),
            "output_pause_bytes + value_bytes_max",
        )?;
        at_least(
            "input_bytes_max",
            limits.input_bytes_max,
            limits.value_bytes_max + COMMAND_OVERHEAD_BYTES,
            "value_bytes_max + 1MiB",
        )?;
        if self.requirepass.is_none() && !self.client.ip().to_canonical().is_loopback() {
            return Err(ConfigError::PasswordMissing { client: self.client });
        }
        if let Some(admin) = self.admin.filter(|admin| !admin.ip().to_canonical().is_loopback())
            && !self.admin_public
        {
            return Err(ConfigError::AdminPublic { admin });
        }
        self.check_cluster(&place)
    }
}

impl Config {
    /// The address of the peer door of a cluster, if there is to be one.
    #[must_use]
    pub fn cluster_door(&self) -> Option<SocketAddr> {
        self.cluster.door().filter(|_| self.mode == Mode::Private)
    }

    /// Checks what concerns other nodes.
    fn check_cluster(&self, place: &dyn Fn(&'static str) -> Place) -> Result<(), ConfigError> {
        let is_mainline = self.mode == Mode::Mainline;
        if let Some(threads @ 2..) = self.threads.filter(|_| is_mainline) {
            return Err(ConfigError::ValueRefused {
                place: place("threads"),
                found: threads.to_string(),
                expected: "1: a node with a peer door has one thread so far",
            });
        }
        if let Some(advertise) = self.cluster.advertise.filter(|_| is_mainline) {
            let mut families = self.mainline_addresses().into_iter().flatten();
            if !families.any(|address| address.is_ipv4() == advertise.is_ipv4()) {
                return Err(ConfigError::ValueRefused {
                    place: place("advertise"),
                    found: advertise.to_string(),
                    expected: "an address of a family that the peer door has, or add peer_v6",
                });
            }
        }
        let Some(peer) = self.cluster_door() else { return Ok(()) };
        if self.cluster.secret_file.is_none() && !peer.ip().to_canonical().is_loopback() {
            return Err(ConfigError::SecretMissing { peer });
        }
        if self.cluster.advertise.is_none() && peer.ip().is_unspecified() {
            return Err(ConfigError::AdvertiseMissing { peer });
        }
        if self.cluster.replicas_to_write_min >= self.cluster.replicas {
            return Err(ConfigError::ValueRefused {
                place: place("min_replicas_to_write"),
                found: self.cluster.replicas_to_write_min.to_string(),
                expected: "a number below replicas",
            });
        }
        match self.threads {
            Some(threads) if threads > 1 => Err(ConfigError::ValueRefused {
                place: place("threads"),
                found: threads.to_string(),
                expected: "1: a node with a peer door has one thread so far",
            }),
            _ => Ok(()),
        }
    }
}

/// Finds the data directory alone, for commands that need no running node and no valid rest.
///
/// # Errors
/// As [`Config::load`], for this setting and the configuration file as a whole.
pub fn data_dir(sources: &Sources<'_>) -> Result<PathBuf, ConfigError> {
    let layers = Layers::read(sources)?;
    let mut config = Config::default();
    for setting in SETTINGS.iter().filter(|setting| setting.key == "data_dir") {
        layers.apply(setting, &mut config)?;
    }
    Ok(config.data_dir)
}

/// Finds the password alone, from flags and environment, for commands that speak to a node.
///
/// # Errors
/// As [`Config::load`], for this setting.
pub fn requirepass(sources: &Sources<'_>) -> Result<Option<Password>, ConfigError> {
    Layers { sources, file: None }.requirepass()
}

/// The sources with the configuration file read.
struct Layers<'a> {
    sources: &'a Sources<'a>,
    file: Option<(PathBuf, toml::Table)>,
}

/// A value before it is understood.
enum Found<'a> {
    Word(OsString),
    File(&'a toml::Value),
}

impl Found<'_> {
    fn raw(&self) -> Raw<'_> {
        match self {
            Self::Word(word) => Raw::Word(word),
            Self::File(value) => Raw::File(value),
        }
    }
}

impl<'a> Layers<'a> {
    fn read(sources: &'a Sources<'a>) -> Result<Self, ConfigError> {
        let mut layers = Self { sources, file: None };
        let Some((origin, found)) = layers.find("config") else {
            return Ok(layers);
        };
        let place = Place { key: "config", origin };
        let raw = found.raw();
        let path = raw.path().ok_or_else(|| refused(&place, &raw, "the path of a file"))?;
        let text = match (sources.read)(&path) {
            Ok(text) => text,
            Err(source) => {
                return Err(ConfigError::FileUnreadable { place, path, source });
            }
        };
        let table = parse_file(&path, &text)?;
        layers.file = Some((path, table));
        Ok(layers)
    }

    /// The value of `key` that wins, with its origin.
    fn find(&self, key: &'static str) -> Option<(Origin, Found<'_>)> {
        [Layer::Flag, Layer::Variable, Layer::File]
            .iter()
            .find_map(|layer| self.find_in(*layer, key))
    }

    fn find_in(&self, layer: Layer, key: &'static str) -> Option<(Origin, Found<'_>)> {
        match layer {
            Layer::Flag => {
                let word = (self.sources.flag)(key)?;
                Some((Origin::Flag, Found::Word(word)))
            }
            Layer::Variable => {
                let word = (self.sources.variable)(&variable_name(key))?;
                (!word.is_empty()).then_some((Origin::Variable, Found::Word(word)))
            }
            Layer::File => {
                let (path, table) = self.file.as_ref()?;
                Some((Origin::File(path.clone()), Found::File(table.get(key)?)))
            }
        }
    }

    fn origin(&self, key: &'static str) -> Origin {
        self.find(key).map_or(Origin::Default, |(origin, _)| origin)
    }

    fn apply(&self, setting: &Setting, config: &mut Config) -> Result<(), ConfigError> {
        let Some((origin, found)) = self.find(setting.key) else {
            return Ok(());
        };
        let (place, raw) = (Place { key: setting.key, origin }, found.raw());
        (setting.apply)(config, &raw).ok_or_else(|| refused(&place, &raw, setting.expected))
    }

    /// The password of the highest layer that gives one, directly or in a file.
    fn requirepass(&self) -> Result<Option<Password>, ConfigError> {
        for layer in [Layer::Flag, Layer::Variable, Layer::File] {
            // A password on the command line would be visible to every user of the machine.
            let direct = match layer {
                Layer::Flag => None,
                Layer::Variable | Layer::File => self.find_in(layer, "requirepass"),
            };
            let file = self.find_in(layer, "requirepass_file");
            let in_place = |key, origin| Place { key, origin };
            match (direct, file) {
                (None, None) => {}
                (Some((first, _)), Some((second, _))) => {
                    let first = in_place("requirepass", first);
                    let second = in_place("requirepass_file", second);
                    return Err(ConfigError::PasswordTwice { first, second });
                }
                (Some((origin, found)), None) => {
                    let place = in_place("requirepass", origin);
                    let password = found.raw().text().and_then(Password::new);
                    return password.map(Some).ok_or(ConfigError::PasswordRefused { place });
                }
                (None, Some((origin, found))) => {
                    let place = in_place("requirepass_file", origin);
                    return self.read_password(place, &found.raw()).map(Some);
                }
            }
        }
        Ok(None)
    }

    fn read_password(&self, place: Place, raw: &Raw<'_>) -> Result<Password, ConfigError> {
        let path = raw.path().ok_or_else(|| refused(&place, raw, "the path of a file"))?;
        match (self.sources.read)(&path) {
            Ok(content) => {
                Password::from_file_content(&content).ok_or(ConfigError::PasswordRefused { place })
            }
            Err(source) => Err(ConfigError::PasswordUnreadable { place, path, source }),
        }
    }
}

#[derive(Clone, Copy)]
enum Layer {
    Flag,
    Variable,
    File,
}

fn refused(place: &Place, raw: &Raw<'_>, expected: &'static str) -> ConfigError {
    ConfigError::ValueRefused { place: place.clone(), found: raw.describe(), expected }
}

fn parse_file(path: &Path, text: &str) -> Result<toml::Table, ConfigError> {
    let table: toml::Table = text.parse().map_err(|error: toml::de::Error| {
        let start = error.span().map_or(0, |span| span.start).min(text.len());
        let line = text.as_bytes()[..start].iter().filter(|byte| **byte == b'\n').count() + 1;
        let reason = error.message().lines().collect::<Vec<_>>().join(", ");
        ConfigError::FileSyntax { path: path.to_owned(), line, reason }
    })?;
    let known = || {
        let ordinary = SETTINGS.iter().map(|setting| setting.key);
        ordinary.chain(["requirepass", "requirepass_file"])
    };
    for key in table.keys() {
        if known().any(|name| name == key) {
            continue;
        }
        let nearest = known().min_by_key(|name| settings::edit_distance(key, name));
        return Err(ConfigError::KeyUnknown {
            path: path.to_owned(),
            key: key.escape_default().to_string(),
            nearest: nearest.unwrap_or("data_dir"),
        });
    }
    Ok(table)
}
