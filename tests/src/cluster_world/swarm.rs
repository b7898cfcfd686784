//! [`Mix`]: what one seed does and what goes wrong in it. Each seed draws its own.

use fastrand::Rng;
use kadring::cluster::ClusterSettings;

/// How one run goes.
#[derive(Clone, Debug)]
pub(super) struct Mix {
    pub(super) hosts: usize,
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
    skew_max_ms: u64,
    is_stable: bool,
}

impl Mix {
    pub(super) fn draw(rng: &mut Rng) -> Self {
        let replicas = if rng.u8(..4) == 0 { 5 } else { 3 };
        let is_stable = rng.bool();
        let hosts = rng.usize(replicas..replicas + 4);
        Self {
            hosts,
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
            is_stable,
        }
    }

    /// Whether the replica sets never change: then every acknowledged write is seen by every read.
    pub(super) fn is_stable(&self) -> bool {
        self.is_stable
    }

    /// Views agree from now on.
    pub(super) fn make_stable(&mut self) {
        self.is_stable = true;
    }

    pub(super) fn skew(&self, rng: &mut Rng) -> u64 {
        rng.u64(..self.skew_max_ms)
    }

    pub(super) fn settings(&self) -> ClusterSettings {
        ClusterSettings {
            replicas: self.replicas,
            clock_skew_max_ms: 10_000,
            // Longer than any crash; nobody is removed where sets are not to change.
            down_after_ms: if self.is_stable { 3_600_000 } else { 25_000 },
            gossip_every_ms: 2_000,
            ..ClusterSettings::default()
        }
    }
}
