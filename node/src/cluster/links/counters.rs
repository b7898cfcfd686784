//! [`LinkCounters`]: what has become of links, for INFO and metrics.

/// Counters since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkCounters {
    /// Connections that came in.
    pub accepted: u64,
    /// Attempts to connect.
    pub attempts: u64,
    /// Those that failed.
    pub attempts_failed: u64,
    /// Links that came up.
    pub up: u64,
    /// Links that broke after they had been up.
    pub broken: u64,
    /// Links that were closed in order: idle, or one too many between two nodes.
    pub closed: u64,
    /// Connections refused because their source had too many, or came too often.
    pub refused_source: u64,
    /// Connections refused because there were too many in all, or the node was stopping.
    pub refused_full: u64,
    /// Handshakes with another protocol version.
    pub refused_version: u64,
    /// Handshakes with another cluster.
    pub refused_cluster: u64,
    /// Handshakes with the own id.
    pub refused_own: u64,
    /// Handshakes where only one side has a secret.
    pub refused_secret: u64,
    /// Handshakes with a wrong proof of the secret: another secret, forged, or replayed.
    pub refused_proof: u64,
    /// Handshakes that were none.
    pub refused_garbage: u64,
    /// Handshakes that took too long.
    pub refused_late: u64,
    /// Times that the other side refused this node.
    pub refused_by_peer: u64,
    /// Links closed because of what came over them after the handshake.
    pub bad_messages: u64,
    /// Links closed because nothing came, or nothing was taken, for too long.
    pub silent: u64,
    /// Messages sent: handed to the driver.
    pub messages_sent: u64,
    /// Messages received.
    pub messages_received: u64,
    /// Bytes handed to the driver.
    pub bytes_sent: u64,
    /// Bytes received.
    pub bytes_received: u64,
    /// Messages that were not sent because there was no link and no way to make one just then.
    pub unsent_no_link: u64,
    /// Messages that were not sent because too many bytes were waiting.
    pub unsent_full: u64,
    /// Messages that waited when their link broke.
    pub unsent_broken: u64,
}
