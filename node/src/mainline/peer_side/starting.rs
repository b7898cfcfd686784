//! From a configuration and an open key space to a [`MainlineSide`] that serves: sockets are bound,
//! state and peers of an earlier life are read.
//!
//! It waits for the driver, as the opening of shards does: clients and other nodes come after it.

use std::io;
use std::net::SocketAddr;

use fastrand::Rng;
use storage::Now;

use super::records::{Outcome, Records};
use super::{MainlineSide, Phase};
use crate::config::Config;
use crate::io::process::random_bytes;
use crate::io::{Completion, DiskOwner, Io, Monotonic, Request, SocketId};
use crate::keyspace::Keyspace;
use crate::mainline::martian::Locals;
use crate::mainline::node::mirror::MirrorOptions;
use crate::mainline::node::{Entropy, MainlineNode, MainlineOptions};
use crate::mainline::reachability::Announced;
use crate::mainline::server::ServerLimits;
use crate::peer::{PEER_SOCKET_V4, PEER_SOCKET_V6};

/// The longest datagram that is taken: 20 nodes of IPv6 and an item in one reply, and more.
const PEER_DATAGRAM_BYTES_MAX: usize = 4_096;
/// A start waits so long for peers of an earlier life; the rest comes while the node serves.
const PEERS_WAIT_MS: u64 = 500;

/// Why a Mainline node did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A socket of the peer door cannot be had.
    #[error("cannot bind UDP {address}: {source}")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The driver has failed.
    #[error(transparent)]
    Driver(#[from] io::Error),
}

/// Starts the node. Completions that are for others are added to `happened`.
///
/// # Errors
/// [`StartError`].
pub fn start<I: Io>(
    io: &mut I,
    keyspace: &mut Keyspace,
    config: &Config,
    happened: &mut Vec<Completion>,
) -> Result<MainlineSide, StartError> {
    let mut pump = Pump { io, keyspace, records: Records::default(), happened };
    let sockets = pump.bind_all(config)?;
    let open = sockets.map(|address| address.is_some());
    let address = sockets.into_iter().flatten().next();
    let address = address.expect("binding has failed if no socket is open");
    pump.records.load_state(pump.keyspace);
    let state = pump.state()?;
    let now = pump.keyspace.now();
    let options = MainlineOptions { here: address, ..options(config, open) };
    let mut node = MainlineNode::new(now, options, entropy());
    match state.map(|state| node.restore(now, &state)) {
        None => tracing::info!("a new node of BitTorrent's DHT"),
        Some(Ok(nodes)) => tracing::info!(nodes, "the node's state is back"),
        Some(Err(error)) => tracing::error!(%error, "the node's state is of no use"),
    }
    pump.restore_peers(&mut node)?;
    let records = pump.records;
    let side = MainlineSide {
        node,
        records,
        operations: super::Operations::default(),
        address,
        open,
        requests: std::collections::VecDeque::new(),
        phase: Phase::Serving,
        held: 0,
    };
    Ok(side)
}

/// What the configuration asks of the node.
fn options(config: &Config, sockets: [bool; 2]) -> MainlineOptions {
    let is_local = config.is_mainline_local();
    let mainline = &config.mainline;
    let mut server = ServerLimits::default();
    if mainline.loopback_exempt.or(is_local) {
        server.locals = Locals::Taken;
        server.rates.loopback_exempt = true;
    }
    server.items.ttl_ms = mainline.item_ttl_s.saturating_mul(1_000);
    let announced = match mainline.reachable {
        crate::config::Choice::No => Announced::ReadOnly,
        choice if choice.or(is_local) => Announced::Reachable,
        _ => Announced::Unknown,
    };
    let keep_ms = mainline.mirror_s.saturating_mul(1_000);
    let mirror = (keep_ms > 0).then(|| MirrorOptions { keep_ms, ..MirrorOptions::default() });
    let mut advertised = [None; 2];
    if let Some(address) = config.cluster.advertise {
        advertised[usize::from(address.is_ipv6())] = Some(address.ip());
    }
    MainlineOptions {
        sockets,
        server,
        announced,
        mirror,
        advertised,
        awaits_seeds: !config.seed_names().is_empty(),
        ..MainlineOptions::new(config.seeds())
    }
}

fn entropy() -> Entropy {
    let rng = Rng::with_seed(u64::from_le_bytes(random_bytes()));
    Entropy { tokens: random_bytes(), tables: random_bytes(), rng }
}

/// Drives disk and sockets before the loop does.
struct Pump<'a, I: Io> {
    io: &'a mut I,
    keyspace: &'a mut Keyspace,
    records: Records,
    happened: &'a mut Vec<Completion>,
}

impl<I: Io> Pump<'_, I> {
    /// Binds the sockets of both families; one that nobody has asked for may be missing.
    fn bind_all(&mut self, config: &Config) -> Result<[Option<SocketAddr>; 2], StartError> {
        let [v4, v6] = config.mainline_addresses();
        let v4 = v4.map(|address| self.bind(PEER_SOCKET_V4, address)).transpose()?;
        let v6 = match v6.map(|address| self.bind(PEER_SOCKET_V6, address)).transpose() {
            Err(StartError::Bind { address, source }) if v4.is_some() && !config.names_v6() => {
                tracing::warn!(%address, error = %source, "no socket for IPv6; going on without");
                None
            }
            other => other?,
        };
        Ok([v4, v6])
    }

    fn bind(&mut self, socket: SocketId, address: SocketAddr) -> Result<SocketAddr, StartError> {
        let bytes_max = PEER_DATAGRAM_BYTES_MAX;
        self.io.submit(Request::BindUdp { socket, address, bytes_max });
        loop {
            self.turn(None)?;
            let is_its =
                |one: &Completion| matches!(one, Completion::UdpBound(of, _) if *of == socket);
            let Some(at) = self.happened.iter().position(is_its) else { continue };
            if let Completion::UdpBound(_, result) = self.happened.remove(at) {
                return result.map_err(|source| StartError::Bind { address, source });
            }
        }
    }

    fn state(&mut self) -> Result<Option<bytes::Bytes>, StartError> {
        loop {
            while let Some(outcome) = self.records.poll() {
                if let Outcome::State(state) = outcome {
                    return Ok(state);
                }
            }
            self.turn(None)?;
        }
    }

    fn restore_peers(&mut self, node: &mut MainlineNode) -> Result<(), StartError> {
        let deadline = self.io.now().0.plus_millis(PEERS_WAIT_MS);
        self.records.restore_peers(self.keyspace);
        loop {
            self.tell_events();
            while let Some(outcome) = self.records.poll() {
                match outcome {
                    Outcome::Peers(info_hash, record) => {
                        node.restore_peers(&info_hash, &record);
                    }
                    Outcome::PeersRestored => return Ok(()),
                    _ => {}
                }
            }
            if self.io.now().0 >= deadline {
                tracing::info!("peers of before the start are still being read");
                return Ok(());
            }
            self.turn(Some(deadline))?;
        }
    }

    /// Waits for the driver once.
    fn turn(&mut self, deadline: Option<Monotonic>) -> io::Result<()> {
        let clock_ms = self.keyspace.now().clock_ms;
        self.keyspace.set_now(Now { monotonic_ns: self.io.now().0.0, clock_ms });
        self.keyspace.end_turn();
        while let Some((shard, request)) = self.keyspace.poll_request() {
            self.io.submit(Request::Disk(DiskOwner(shard), request));
        }
        if self.keyspace.has_events() {
            self.tell_events();
            return Ok(());
        }
        let own = self.keyspace.deadline_ns().map(Monotonic);
        let until = own.into_iter().chain(deadline).min();
        let mut done = Vec::new();
        self.io.wait(until, &mut done)?;
        for completion in done {
            match completion {
                Completion::Disk(owner, completion) => {
                    self.keyspace.handle_disk(owner.0, completion);
                }
                other => self.happened.push(other),
            }
        }
        self.tell_events();
        Ok(())
    }

    fn tell_events(&mut self) {
        while let Some((shard, event)) = self.keyspace.poll_event() {
            self.records.handle_event(self.keyspace, shard, &event);
        }
    }
}
