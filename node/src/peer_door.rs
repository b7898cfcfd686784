//! The peer door of a node: its listener and its UDP socket under one number, and the peer side
//! behind it.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use crate::cluster::secret::{ClusterSecret, SecretError};
use crate::cluster::settings::ClusterSettings;
use crate::cluster::side::{ClusterSide, SideOptions};
use crate::config::{ClusterConfig, Config};
use crate::io::{Completion, Io, Monotonic, Request, SocketId, process};
use crate::kademlia::NodeId;
use crate::peer::{PEER_DOOR, PEER_SOCKET_V4, PEER_SOCKET_V6};

/// The longest datagram that is taken: a small value, nodes of two families, and what is around.
const DATAGRAM_LEN_MAX: usize = 4_096;
/// Ports that are tried where any will do: one that is free for TCP may be taken for UDP.
const PORTS_TRIED_MAX: usize = 16;
/// Tombstones stay longer than the grace by that: their versions may be ahead of the clock.
const STAY_MARGIN_MS: u64 = 120_000;

/// Why there is no peer door.
#[derive(Debug, thiserror::Error)]
pub enum PeerDoorError {
    /// Its address cannot be had.
    #[error("cannot open the peer door on {address}: {source}")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The file with the secret cannot be read.
    #[error("cannot read the cluster's secret from {}: {source}", path.display())]
    SecretUnreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file holds no secret.
    #[error("{} holds no secret: {source}", path.display())]
    Secret {
        /// The file.
        path: PathBuf,
        /// Why.
        source: SecretError,
    },
    /// The driver has failed.
    #[error("the driver has failed: {0}")]
    Driver(#[source] io::Error),
}

/// How long the store keeps what has expired.
#[must_use]
pub(crate) fn expired_stay_ms(config: &Config) -> u64 {
    let is_cluster = config.cluster_door().is_some();
    if is_cluster { config.cluster.tombstone_grace_ms.saturating_add(STAY_MARGIN_MS) } else { 0 }
}

/// Reads the cluster's secret, if it has one.
///
/// # Errors
/// [`PeerDoorError`].
pub(crate) fn read_secret(config: &ClusterConfig) -> Result<Option<ClusterSecret>, PeerDoorError> {
    let Some(path) = config.secret_file.clone() else { return Ok(None) };
    let bytes = match std::fs::read(&path) {
        Ok(bytes) => bytes,
        Err(source) => return Err(PeerDoorError::SecretUnreadable { path, source }),
    };
    match ClusterSecret::new(&bytes) {
        Ok(secret) => Ok(Some(secret)),
        Err(source) => Err(PeerDoorError::Secret { path, source }),
    }
}

/// Opens the door. What happens meanwhile is appended to `happened`, for the loop.
///
/// # Errors
/// [`PeerDoorError`].
pub(crate) fn open<I: Io>(
    io: &mut I,
    address: SocketAddr,
    happened: &mut Vec<Completion>,
) -> Result<SocketAddr, PeerDoorError> {
    let socket = if address.is_ipv6() { PEER_SOCKET_V6 } else { PEER_SOCKET_V4 };
    let mut tried = 0;
    loop {
        let bound = listen(io, address, happened)?;
        match bind_udp(io, (socket, bound), happened)? {
            Ok(_) => return Ok(bound),
            Err(error) => {
                tried += 1;
                if address.port() != 0 || tried == PORTS_TRIED_MAX {
                    return Err(PeerDoorError::Bind { address: bound, source: error });
                }
                tracing::debug!(%bound, %error, "the port is taken for UDP; trying another");
                stop_listening(io, happened)?;
            }
        }
    }
}

fn listen<I: Io>(
    io: &mut I,
    address: SocketAddr,
    happened: &mut Vec<Completion>,
) -> Result<SocketAddr, PeerDoorError> {
    io.submit(Request::Listen(PEER_DOOR, address));
    let is_it = |one: &Completion| matches!(one, Completion::Listening(PEER_DOOR, _));
    match wait_for(io, happened, is_it)? {
        Completion::Listening(_, result) => {
            result.map_err(|source| PeerDoorError::Bind { address, source })
        }
        other => unreachable!("{other:?} is not what was waited for"),
    }
}

fn bind_udp<I: Io>(
    io: &mut I,
    (socket, address): (SocketId, SocketAddr),
    happened: &mut Vec<Completion>,
) -> Result<io::Result<SocketAddr>, PeerDoorError> {
    io.submit(Request::BindUdp { socket, address, bytes_max: DATAGRAM_LEN_MAX });
    let is_it = |one: &Completion| matches!(one, Completion::UdpBound(..));
    match wait_for(io, happened, is_it)? {
        Completion::UdpBound(_, result) => Ok(result),
        other => unreachable!("{other:?} is not what was waited for"),
    }
}

fn stop_listening<I: Io>(io: &mut I, happened: &mut Vec<Completion>) -> Result<(), PeerDoorError> {
    io.submit(Request::StopListening(PEER_DOOR));
    let is_it = |one: &Completion| matches!(one, Completion::ListenerClosed(PEER_DOOR));
    wait_for(io, happened, is_it).map(drop)
}

fn wait_for<I: Io>(
    io: &mut I,
    happened: &mut Vec<Completion>,
    is_it: impl Fn(&Completion) -> bool,
) -> Result<Completion, PeerDoorError> {
    loop {
        if let Some(index) = happened.iter().position(&is_it) {
            return Ok(happened.remove(index));
        }
        io.wait(None, happened).map_err(PeerDoorError::Driver)?;
    }
}

/// Makes the peer side of a node of a cluster, whose door is open on `door`.
pub(crate) fn cluster_side(
    now: Monotonic,
    config: &Config,
    node_id: [u8; 20],
    door: SocketAddr,
    secret: Option<ClusterSecret>,
) -> ClusterSide {
    let ClusterConfig { advertise, bootstrap, replicas, replicas_to_write_min, .. } =
        &config.cluster;
    // Nodes with different secrets are of different clusters.
    let cluster = secret.as_ref().map_or_else(NodeId::default, |secret| {
        let code = secret.link.code(&[b"the cluster's id"]);
        NodeId(*code.first_chunk().expect("a code is longer than an id"))
    });
    let settings = ClusterSettings {
        cluster,
        replicas: *replicas,
        replicas_to_write_min: *replicas_to_write_min,
        tombstone_grace_ms: config.cluster.tombstone_grace_ms,
        down_after_ms: config.cluster.down_after_ms,
        repair_bytes_per_second: config.cluster.repair_bytes_per_second,
        ..ClusterSettings::default()
    };
    let options = SideOptions {
        node: NodeId(node_id),
        door,
        address: advertise.unwrap_or(door),
        bootstrap: bootstrap.clone(),
        settings,
        reads: config.cluster.reads,
        secret,
        value_bytes_max: config.limits.value_bytes_max,
        seed: process::random_bytes(),
    };
    ClusterSide::new(now, options)
}
