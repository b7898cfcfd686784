//! [`Mix`]: how a run goes. In the scenario `swarm` each seed draws its own, small and nasty.

use fastrand::Rng;
use kadring::cluster::ClusterSettings;

/// Longer than any run.
const NEVER_MS: u64 = 24 * 3_600_000;

/// What is asked, and what goes wrong meanwhile.
#[derive(Clone, Debug)]
pub(super) struct Mix {
    /// Hosts that are a cluster from the beginning.
    pub(super) hosts: usize,
    /// Most hosts.
    pub(super) hosts_max: usize,
    pub(super) replicas: usize,
    pub(super) keys: u32,
    pub(super) length_s: u64,
    pub(super) command_every_ms: u64,
    pub(super) fault_every_ms: u64,
    pub(super) disk_ms: u64,
    pub(super) loss: f64,
    pub(super) doubled: f64,
    pub(super) slow: f64,
    pub(super) crashes: bool,
    pub(super) cuts: bool,
    pub(super) joins: bool,
    pub(super) leaves: bool,
    /// Nodes that die for good.
    pub(super) deaths: usize,
    /// Share of the commands that are about one key.
    pub(super) heat: f64,
    /// Share of the commands that write; a quarter of these delete.
    pub(super) writes: f64,
    pub(super) skew_max_ms: u64,
    /// A node that is down for so long is removed.
    pub(super) down_after_ms: u64,
    /// How often ranges are compared and looked for.
    pub(super) repair_every_ms: u64,
    pub(super) probe_every_ms: u64,
    pub(super) is_stable: bool,
    /// Nodes join, several at once, and nothing goes wrong.
    pub(super) is_growing: bool,
}

impl Mix {
    /// A cluster of that many hosts whose replica sets stay as they are.
    pub(super) fn calm(hosts: usize) -> Self {
        // Whoever knows more nodes has more to look through.
        let repair_every_ms = 1_000 * (hosts as u64).div_ceil(50);
        Self {
            hosts,
            hosts_max: hosts,
            replicas: 3.min(hosts),
            keys: u32::try_from(5 * hosts).unwrap_or(u32::MAX).clamp(40, 1_000),
            length_s: 60,
            command_every_ms: 10,
            fault_every_ms: u64::MAX / 4_000_000,
            disk_ms: 3,
            loss: 0.01,
            doubled: 0.01,
            slow: 0.01,
            crashes: false,
            cuts: false,
            joins: false,
            leaves: false,
            deaths: 0,
            heat: 0.0,
            writes: 0.5,
            skew_max_ms: 500,
            down_after_ms: NEVER_MS,
            repair_every_ms,
            probe_every_ms: 500,
            is_stable: true,
            is_growing: false,
        }
    }

    pub(super) fn draw(rng: &mut Rng) -> Self {
        let replicas = if rng.u8(..4) == 0 { 5 } else { 3 };
        let kind = rng.u8(..5);
        let (is_stable, is_growing) = (kind < 2, kind == 2);
        let hosts = rng.usize(replicas..replicas + 4);
        let mix = Self {
            hosts_max: hosts + rng.usize(1..4),
            replicas,
            keys: rng.u32(3..40),
            length_s: rng.u64(20..60),
            command_every_ms: rng.u64(10..120),
            fault_every_ms: rng.u64(500..4_000),
            disk_ms: rng.u64(1..12),
            loss: if rng.bool() { rng.f64() * 0.1 } else { 0.0 },
            doubled: if rng.bool() { rng.f64() * 0.1 } else { 0.0 },
            slow: if rng.bool() { rng.f64() * 0.1 } else { 0.0 },
            crashes: rng.u8(..4) > 0,
            cuts: rng.u8(..3) == 0,
            joins: !is_stable && rng.u8(..4) > 0,
            leaves: !is_stable && rng.bool(),
            deaths: if is_stable { 0 } else { rng.usize(..=(replicas - 1) / 2) },
            skew_max_ms: if rng.bool() { rng.u64(1..2_000) } else { 1 },
            writes: 0.6,
            // Longer than any crash; nobody is removed where sets are not to change.
            down_after_ms: if is_stable { NEVER_MS } else { 25_000 },
            is_stable,
            is_growing,
            ..Self::calm(hosts)
        };
        if is_growing { mix.growing(rng) } else { mix }
    }

    fn growing(self, rng: &mut Rng) -> Self {
        Self {
            hosts_max: self.hosts + rng.usize(2..5),
            fault_every_ms: rng.u64(20..200),
            command_every_ms: rng.u64(5..30),
            length_s: 12,
            loss: 0.0,
            doubled: 0.0,
            slow: 0.0,
            crashes: false,
            cuts: false,
            joins: true,
            leaves: false,
            deaths: 0,
            ..self
        }
    }

    /// How long after its acknowledgement a write must be seen by every read. At once where the
    /// replica sets never change; a little later where they only grow, for nodes hear of each other
    /// at different times; nothing is promised while nodes come and go.
    pub(super) fn slack_ns(&self) -> Option<u64> {
        match (self.is_stable, self.is_growing) {
            (true, _) => Some(0),
            (_, true) => Some(300_000_000),
            _ => None,
        }
    }

    pub(super) fn skew(&self, rng: &mut Rng) -> u64 {
        rng.u64(..self.skew_max_ms)
    }

    pub(super) fn settings(&self) -> ClusterSettings {
        let usual = ClusterSettings::default();
        ClusterSettings {
            replicas: self.replicas,
            clock_skew_max_ms: 10_000,
            down_after_ms: self.down_after_ms,
            gossip_every_ms: 4 * self.probe_every_ms,
            probe_every_ms: self.probe_every_ms,
            repair_every_ms: 2 * self.repair_every_ms,
            hand_off_every_ms: self.repair_every_ms,
            ..usual
        }
    }
}
