//! What a node is to other nodes: its mode, its peer door, whom it starts from, and how it serves
//! BitTorrent's DHT.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::Config;

/// The peer door of Mainline mode, unless another is given.
pub const MAINLINE_PEER: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 7400);

/// Public nodes that many programs start from; names are looked up when a node starts.
pub const MAINLINE_ROUTERS: [&str; 4] = [
    "router.bittorrent.com:6881",
    "dht.transmissionbt.com:6881",
    "dht.libtorrent.org:25401",
    "relay.pkarr.org:6881",
];

/// Shortest and longest life of an item that may be configured.
pub const ITEM_TTL_MIN_S: u64 = 60;
/// Longest life of an item that may be configured, and longest that a mirror keeps one: 100 years.
pub const KEEP_MAX_S: u64 = 100 * 365 * 24 * 3600;

const UNITS: [(char, u64); 4] = [('d', 24 * 3600), ('h', 3600), ('m', 60), ('s', 1)];

/// Which network a node belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// A cluster of kadring nodes, or one node by itself.
    Private,
    /// BitTorrent's DHT.
    Mainline,
}

impl Mode {
    /// The word for it in configuration and INFO.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Private => "private",
            Self::Mainline => "mainline",
        }
    }

    /// The mode that the word means.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Private, Self::Mainline].into_iter().find(|mode| mode.name() == name)
    }
}

/// Something that the node finds out by itself unless it is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// The node finds out.
    Auto,
    /// It is so.
    Yes,
    /// It is not.
    No,
}

impl Choice {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Yes => "yes",
            Self::No => "no",
        }
    }

    pub(super) fn from_name(name: &str) -> Option<Self> {
        [Self::Auto, Self::Yes, Self::No].into_iter().find(|choice| choice.name() == name)
    }

    /// What it comes to, where `auto` would.
    #[must_use]
    pub fn or(self, auto: bool) -> bool {
        match self {
            Self::Auto => auto,
            Self::Yes => true,
            Self::No => false,
        }
    }
}

/// Where a node of BitTorrent's DHT is reached by IPv6, beside its peer door.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerV6 {
    /// At the port of the peer door: everywhere if that is open everywhere, on loopback if it is on
    /// 127.0.0.1, else not at all.
    Auto,
    /// Nowhere.
    Off,
    /// Here.
    At(SocketAddr),
}

/// How a node serves BitTorrent's DHT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MainlineConfig {
    /// The second address of the peer door.
    pub peer_v6: PeerV6,
    /// Seconds that an item stays after it was last put, at least a minute.
    pub item_ttl_s: u64,
    /// Seconds for which items are kept and republished after their last put; 0: they are not.
    pub mirror_s: u64,
    /// Whether addresses of this machine and of private networks are as good as others, and free of
    /// caps and rate limits; by itself where the peer door is on loopback.
    pub loopback_exempt: Choice,
    /// Whether others reach this node unasked; until that is proven it asks others not to keep it.
    pub reachable: Choice,
}

impl Default for MainlineConfig {
    fn default() -> Self {
        Self {
            peer_v6: PeerV6::Auto,
            item_ttl_s: 2 * 3600,
            mirror_s: 0,
            loopback_exempt: Choice::Auto,
            reachable: Choice::Auto,
        }
    }
}

impl Config {
    /// The addresses of the peer door in Mainline mode: of IPv4 and of IPv6.
    #[must_use]
    pub fn mainline_addresses(&self) -> [Option<SocketAddr>; 2] {
        let peer = self.cluster.peer.unwrap_or(MAINLINE_PEER);
        if peer.is_ipv6() {
            return [None, Some(peer)];
        }
        let beside = |ip| Some(SocketAddr::new(IpAddr::V6(ip), peer.port()));
        let second = match self.mainline.peer_v6 {
            PeerV6::At(address) => Some(address),
            PeerV6::Off => None,
            // Two sockets would get two different free ports.
            PeerV6::Auto if peer.port() == 0 => None,
            PeerV6::Auto if peer.ip().is_unspecified() => beside(Ipv6Addr::UNSPECIFIED),
            PeerV6::Auto if peer.ip() == Ipv4Addr::LOCALHOST => beside(Ipv6Addr::LOCALHOST),
            PeerV6::Auto => None,
        };
        [Some(peer), second]
    }

    /// Whether the second address of the peer door is named, and so has to be had.
    #[must_use]
    pub fn names_v6(&self) -> bool {
        matches!(self.mainline.peer_v6, PeerV6::At(_))
    }

    /// Whether the peer door of Mainline mode is on loopback.
    #[must_use]
    pub fn is_mainline_local(&self) -> bool {
        self.mainline_addresses().iter().flatten().all(|address| address.ip().is_loopback())
    }

    /// The nodes to start from, as host and port: as given; else the public ones in Mainline mode,
    /// unless the peer door is on loopback, from where they cannot be reached.
    #[must_use]
    pub fn bootstrap_names(&self) -> Vec<String> {
        match &self.bootstrap {
            Some(names) => names.clone(),
            None if self.mode == Mode::Mainline && !self.is_mainline_local() => {
                MAINLINE_ROUTERS.map(str::to_owned).to_vec()
            }
            None => Vec::new(),
        }
    }

    /// The nodes to start from whose addresses are still to be looked up.
    #[must_use]
    pub fn seed_names(&self) -> Vec<String> {
        let is_name = |name: &String| name.parse::<SocketAddr>().is_err();
        self.bootstrap_names().into_iter().filter(is_name).collect()
    }

    /// The nodes to start from whose addresses are known.
    #[must_use]
    pub fn seeds(&self) -> Vec<SocketAddr> {
        self.bootstrap_names().iter().filter_map(|name| name.parse().ok()).collect()
    }
}

/// Reads a list of nodes: `host:port`, with commas between, or `none`.
pub(super) fn parse_bootstrap(text: &str) -> Option<Vec<String>> {
    if text == "none" {
        return Some(Vec::new());
    }
    text.split(',').map(|name| host_and_port(name.trim())).collect()
}

pub(super) fn format_bootstrap(names: &[String]) -> String {
    if names.is_empty() { "none".to_owned() } else { names.join(",") }
}

/// An address, or a host name and port.
fn host_and_port(name: &str) -> Option<String> {
    if let Ok(address) = name.parse::<SocketAddr>() {
        return (address.port() != 0).then(|| address.to_string());
    }
    let (host, port) = name.rsplit_once(':')?;
    let is_host = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'.';
    let fits = (1..=253).contains(&host.len()) && host.bytes().all(is_host);
    let port = port.parse::<u16>().ok().filter(|port| *port != 0)?;
    fits.then(|| format!("{host}:{port}"))
}

/// Reads a time as people write it: `90s`, `30m`, `2h`, `7d`; a bare number counts seconds.
pub(super) fn parse_seconds(text: &str) -> Option<u64> {
    let unit = UNITS.iter().find(|(unit, _)| text.ends_with(*unit));
    let (digits, scale) = match unit {
        Some((unit, scale)) => (text.strip_suffix(*unit)?, *scale),
        None => (text, 1),
    };
    let is_number = digits.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| digits.parse::<u64>().ok()?.checked_mul(scale)).flatten()
}

/// Writes a time with the largest unit that divides it.
pub(super) fn format_seconds(seconds: u64) -> String {
    let unit = UNITS.iter().find(|(_, scale)| seconds != 0 && seconds.is_multiple_of(*scale));
    let (unit, scale) = unit.copied().unwrap_or(('s', 1));
    format!("{}{unit}", seconds / scale)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_come_back_and_odd_ones_are_refused() {
        for (text, seconds) in
            [("0", 0), ("90s", 90), ("30m", 1_800), ("2h", 7_200), ("7d", 604_800)]
        {
            assert_eq!(parse_seconds(text), Some(seconds), "{text}");
            assert_eq!(parse_seconds(&format_seconds(seconds)), Some(seconds));
        }
        for text in ["", "h", "-1s", "1.5h", "2w", "1h30m", "99999999999999999999d"] {
            assert_eq!(parse_seconds(text), None, "{text}");
        }
    }

    #[test]
    fn nodes_to_start_from_are_addresses_or_names() {
        let parse = |text: &str| parse_bootstrap(text);
        assert_eq!(parse("none"), Some(vec![]));
        let several = parse("127.0.0.1:1, [::1]:2,router.example-1.com:6881").unwrap();
        assert_eq!(several, ["127.0.0.1:1", "[::1]:2", "router.example-1.com:6881"]);
        assert_eq!(parse(&format_bootstrap(&several)), Some(several));
        for text in ["", "a", "a:0", "a:b", ":1", "a b:1", "a:1,", "::1:1", "127.0.0.1:0"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    #[test]
    fn second_address_follows_the_first() {
        let addresses = |peer: &str, peer_v6| {
            let mut config = Config::default();
            config.cluster.peer = peer.parse().ok();
            config.mainline.peer_v6 = peer_v6;
            config.mainline_addresses().map(|address| address.map(|one| one.to_string()))
        };
        let found = |v4: Option<&str>, v6: Option<&str>| [v4, v6].map(|one| one.map(str::to_owned));
        let auto = PeerV6::Auto;
        assert_eq!(addresses("0.0.0.0:9", auto), found(Some("0.0.0.0:9"), Some("[::]:9")));
        assert_eq!(addresses("127.0.0.1:9", auto), found(Some("127.0.0.1:9"), Some("[::1]:9")));
        assert_eq!(addresses("127.1.0.1:9", auto), found(Some("127.1.0.1:9"), None));
        assert_eq!(addresses("127.0.0.1:0", auto), found(Some("127.0.0.1:0"), None));
        assert_eq!(addresses("[::]:9", auto), found(None, Some("[::]:9")));
        assert_eq!(addresses("0.0.0.0:9", PeerV6::Off), found(Some("0.0.0.0:9"), None));
        let at = PeerV6::At("[::1]:7".parse().unwrap());
        assert_eq!(addresses("8.8.8.8:9", at), found(Some("8.8.8.8:9"), Some("[::1]:7")));
    }

    /// The id of one family would follow an address of the other.
    #[test]
    fn advertised_address_is_of_a_family_that_there_is() {
        let is_valid = |advertise: &str, peer_v6| {
            let mut config = Config { mode: Mode::Mainline, ..Config::default() };
            config.cluster.peer = "0.0.0.0:9".parse().ok();
            config.cluster.advertise = advertise.parse().ok();
            config.mainline.peer_v6 = peer_v6;
            config.validate().map_err(|error| error.to_string())
        };
        assert_eq!(is_valid("192.0.2.1:9", PeerV6::Off), Ok(()));
        assert_eq!(is_valid("[2001:db8::1]:9", PeerV6::Auto), Ok(()));
        let refused = is_valid("[2001:db8::1]:9", PeerV6::Off).unwrap_err();
        assert!(refused.starts_with("advertise is [2001:db8::1]:9; give an address"), "{refused}");
    }

    /// A node on loopback cannot reach them, and a test must not try.
    #[test]
    fn public_routers_are_for_public_nodes_alone() {
        let names = |mode, peer: &str| {
            let mut config = Config { mode, ..Config::default() };
            config.cluster.peer = peer.parse().ok();
            config.bootstrap_names().len()
        };
        assert_eq!(names(Mode::Mainline, "0.0.0.0:9"), MAINLINE_ROUTERS.len());
        assert_eq!(names(Mode::Mainline, "127.0.0.1:9"), 0);
        assert_eq!(names(Mode::Mainline, ""), 0, "the default is on loopback");
        assert_eq!(names(Mode::Private, "0.0.0.0:9"), 0);
        let config =
            Config { bootstrap: parse_bootstrap("10.0.0.1:5,name.example:6"), ..Config::default() };
        assert_eq!(config.seeds(), ["10.0.0.1:5".parse().unwrap()]);
        assert_eq!(config.seed_names(), ["name.example:6"]);
    }
}
