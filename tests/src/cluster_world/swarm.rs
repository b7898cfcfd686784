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
    /// Nodes join, several at once, and nothing goes wrong.
    is_growing: bool,
}

impl Mix {
    pub(super) fn draw(rng: &mut Rng) -> Self {
        let replicas = if rng.u8(..4) == 0 { 5 } else { 3 };
        let kind = rng.u8(..5);
        let (is_stable, is_growing) = (kind < 2, kind == 2);
        let hosts = rng.usize(replicas..replicas + 4);
        let mix = Self {
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
            is_growing,
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
