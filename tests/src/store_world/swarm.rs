//! [`Mix`]: what one seed does and what goes wrong in it. Each seed draws its own, so that seeds
//! differ more than the commands of one seed do.

use std::rc::Rc;

use fastrand::Rng;
use storage::{CheckpointLoader, CheckpointOptions, StoreLimits, StoreOptions};
use wal::disk::{BufferSource, FileName, IoBuffer};
use wal::group_commit::{CommitDurability, GroupCommitLimits, SyncMethod};
use wal::segment::Identity;

use super::model::{KeyLens, KeyPattern};
use crate::disk::{CrashPlan, ExposedBlock, LostSector, SectorSize};
use crate::edge_lens::edge_len;

/// How long values are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ValueSizes {
    /// Up to 200 bytes.
    Small,
    /// Up to 5 KB, now and then up to 40 KB.
    Mixed,
    /// Mixed, with 300 KiB now and then.
    Large,
}

/// How often keys expire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Expiries {
    Never,
    Sometimes,
    Mostly,
}

/// How the wall clock behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WallClock {
    /// It runs.
    Steady,
    /// It is now and then set by seconds, back or forward.
    Steps,
    /// It is now and then set by hours, back or forward, also between two starts.
    Leaps,
}

/// A command of the workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Command {
    Put,
    Remove,
    Touch,
    Clear,
    Get,
    Lookup,
    Scan,
    Compact,
    /// Takes a snapshot, or removes one.
    Snapshot,
    /// Lets the disk run full, or gives it room again.
    FillDisk,
    /// Lets minutes pass in which nobody asks for anything: the scrub has its turn.
    Rest,
}

const COMMANDS: usize = 11;

/// What may go wrong besides crashes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FaultMix {
    /// Requests that fail.
    pub(super) errors: bool,
    /// A disk that fills up.
    pub(super) full_disk: bool,
    /// Damage at rest.
    pub(super) damage: bool,
}

/// The choices of one seed.
#[derive(Clone, Debug)]
pub(super) struct Mix {
    pub(super) options: StoreOptions,
    pub(super) keys: usize,
    pub(super) pattern: KeyPattern,
    pub(super) key_lens: KeyLens,
    weights: [(Command, u32); COMMANDS],
    pub(super) values: ValueSizes,
    pub(super) expiries: Expiries,
    pub(super) wall: WallClock,
    /// Most commands in one turn.
    pub(super) batch_max: u32,
    pub(super) sector: SectorSize,
    exposed: ExposedBlock,
    lost: LostSector,
    pub(super) faults: FaultMix,
}

fn pick<T: Copy>(rng: &mut Rng, choices: &[T]) -> T {
    choices[rng.usize(..choices.len())]
}

impl Mix {
    /// Draws the choices of a seed that carries out about `operations` commands.
    pub(super) fn draw(rng: &mut Rng, operations: u32) -> Self {
        let is_long = operations > 500;
        let key_lens = draw_key_lens(rng);
        let keys = pick(rng, if is_long { &[20, 60, 200, 1_000] } else { &[1, 6, 20, 20, 60] });
        let values = match rng.u8(..8) {
            0 if is_long => ValueSizes::Mixed,
            _ if is_long => ValueSizes::Small,
            0..3 => ValueSizes::Small,
            3..6 => ValueSizes::Mixed,
            _ => ValueSizes::Large,
        };
        let faults = FaultMix {
            errors: rng.u8(..4) == 0,
            full_disk: rng.u8(..4) == 0,
            damage: rng.u8(..3) == 0,
        };
        let lost = [LostSector::Old, LostSector::SometimesZeros, LostSector::SometimesGarbage];
        Self {
            options: draw_options(rng, is_long),
            keys,
            key_lens,
            pattern: pick(
                rng,
                &[
                    KeyPattern::Spread,
                    KeyPattern::Spread,
                    KeyPattern::Prefix40,
                    KeyPattern::Prefix60,
                ],
            ),
            weights: draw_weights(rng, faults),
            values,
            expiries: pick(rng, &[Expiries::Never, Expiries::Sometimes, Expiries::Mostly]),
            wall: pick(rng, &[WallClock::Steady, WallClock::Steps, WallClock::Leaps]),
            batch_max: pick(rng, if is_long { &[6, 20, 60] } else { &[2, 6, 6, 20] }),
            sector: pick(rng, &[SectorSize::Bytes512, SectorSize::Bytes512, SectorSize::Bytes4096]),
            exposed: pick(
                rng,
                &[
                    ExposedBlock::Zeros,
                    ExposedBlock::Zeros,
                    ExposedBlock::Zeros,
                    ExposedBlock::Stale,
                ],
            ),
            lost: pick(rng, &lost),
            faults,
        }
    }

    pub(super) fn command(&self, rng: &mut Rng) -> Command {
        let total: u32 = self.weights.iter().map(|(_, weight)| weight).sum();
        let mut at = rng.u32(..total);
        for (command, weight) in self.weights {
            if at < weight {
                return command;
            }
            at -= weight;
        }
        Command::Put
    }

    /// Where keys lie on edges, many values do.
    pub(super) fn value_len(&self, rng: &mut Rng) -> usize {
        if self.key_lens == KeyLens::Edges && rng.u8(..3) == 0 {
            return edge_len(rng);
        }
        if self.values == ValueSizes::Small {
            return rng.usize(..200);
        }
        match rng.u16(..200) {
            0..10 => 0,
            10..120 => rng.usize(1..200),
            120..165 => rng.usize(200..5_000),
            165..197 => rng.usize(5_000..40_000),
            _ if self.values == ValueSizes::Large => 300 << 10,
            _ => rng.usize(4_000..4_200),
        }
    }

    pub(super) fn expiry_ms(&self, rng: &mut Rng, now_ms: u64) -> u64 {
        let never = match self.expiries {
            Expiries::Never => 100,
            Expiries::Sometimes => 80,
            Expiries::Mostly => 20,
        };
        match rng.u8(..100) {
            percent if percent < never => 0,
            percent if percent % 4 == 0 => now_ms + rng.u64(1_000..100_000),
            percent if percent % 16 == 1 => now_ms + rng.u64(100_000..1_000_000_000),
            // Some of these are over at once.
            _ => now_ms + rng.u64(..200),
        }
    }

    /// Draws the kind of a power loss.
    pub(super) fn power_loss(&self, rng: &mut Rng) -> CrashPlan {
        CrashPlan { lost: self.lost, exposed: self.exposed, ..CrashPlan::draw(rng) }
    }
}

fn draw_weights(rng: &mut Rng, faults: FaultMix) -> [(Command, u32); COMMANDS] {
    let fill = u32::from(faults.full_disk);
    let snapshot = pick(rng, &[0, 1, 1, 3]);
    let rest = pick(rng, &[0, 0, 1]);
    if rng.u8(..3) == 0 {
        return draw_churn(rng, snapshot, fill, rest);
    }
    let usual = [
        (Command::Put, 45),
        (Command::Remove, 12),
        (Command::Touch, 10),
        (Command::Clear, 2),
        (Command::Get, 21),
        (Command::Lookup, 6),
        (Command::Scan, 4),
        (Command::Compact, 1),
        (Command::Snapshot, snapshot),
        (Command::FillDisk, fill),
        (Command::Rest, rest),
    ];
    usual.map(|(command, weight)| match (command, rng.u8(..6)) {
        (Command::Put | Command::Snapshot | Command::FillDisk | Command::Rest, _) => {
            (command, weight)
        }
        (_, 0) => (command, 0),
        (Command::Clear, 1..4) => (command, 0),
        (Command::Clear, _) => (command, 1),
        (_, 1) => (command, weight * 3),
        _ => (command, weight),
    })
}

/// Mostly writes, and compaction by hand, so that most of what is written is dead soon: overwrites,
/// tombstones or new expiries prevail.
fn draw_churn(rng: &mut Rng, snapshot: u32, fill: u32, rest: u32) -> [(Command, u32); COMMANDS] {
    let (puts, removals, touches) = pick(rng, &[(80, 5, 5), (45, 45, 0), (40, 10, 40)]);
    [
        (Command::Put, puts),
        (Command::Remove, removals),
        (Command::Touch, touches),
        (Command::Clear, pick(rng, &[0, 0, 0, 1])),
        (Command::Get, pick(rng, &[0, 6])),
        (Command::Lookup, 2),
        (Command::Scan, 2),
        (Command::Compact, pick(rng, &[1, 4, 12])),
        (Command::Snapshot, snapshot),
        (Command::FillDisk, fill),
        (Command::Rest, rest),
    ]
}

/// Buffers with a former user's bytes in them, as an arena lends them.
#[derive(Debug)]
struct UsedBuffers;

impl BufferSource for UsedBuffers {
    fn take(&self, bytes: usize) -> IoBuffer {
        let mut buffer = IoBuffer::with_capacity(bytes);
        buffer.spare_mut().fill(0xA5);
        buffer
    }
}

/// Drawn aside: what else a seed draws does not depend on it.
fn draw_key_lens(rng: &Rng) -> KeyLens {
    let mut aside = Rng::with_seed(rng.clone().u64(..) ^ 0xED6E);
    if aside.bool() { KeyLens::Edges } else { KeyLens::Usual }
}

/// Drawn aside: what else a seed draws does not depend on it.
fn draw_durability(rng: &Rng) -> CommitDurability {
    let mut aside = Rng::with_seed(rng.clone().u64(..) ^ 0xD00A);
    match aside.u8(..4) {
        0 => CommitDurability::Interval { ms: pick(&mut aside, &[5, 40, 1_000]) },
        1 => CommitDurability::Os,
        _ => CommitDurability::Always,
    }
}

/// Drawn aside, too.
fn draw_extent_bytes_min(rng: &Rng) -> usize {
    let mut aside = Rng::with_seed(rng.clone().u64(..) ^ 0xE87E);
    pick(&mut aside, &[8 << 10, 8 << 10, 20 << 10, 256 << 10])
}

/// Of several shards, segment headers are compared. Their number is drawn aside.
fn draw_identity(rng: &mut Rng) -> Identity {
    let mut aside = Rng::with_seed(rng.clone().u64(..) ^ 0x5AAD);
    let shard_count = pick(&mut aside, &[1, 2]);
    Identity { store: [rng.u8(1..); 16], node_id: [7; 20], shard: 0, shard_count }
}

/// Small segments, frames and caches, so that a short trace meets every limit.
fn draw_options(rng: &mut Rng, is_long: bool) -> StoreOptions {
    // Of their own, so that the other choices of a seed stay as they were.
    let mut checkpoint_rng = rng.clone();
    checkpoint_rng.seed(rng.get_seed() ^ 0x636B_7074);
    // Long traces shall fill dozens of segments, short ones a few.
    let lens: &[u64] = if is_long { &[32, 32, 64, 64, 128] } else { &[32, 64, 64, 128, 256] };
    let segment_bytes = pick(rng, lens) << 10;
    StoreOptions {
        directory: FileName::new("shard-00"),
        identity: draw_identity(rng),
        must_exist: false,
        segment_bytes,
        cache_bytes: pick(rng, &[0, 4 << 10, 64 << 10, 16 << 20]),
        limits: draw_limits(rng, segment_bytes),
        log: GroupCommitLimits {
            frame_bytes_max: pick(rng, &[8 << 10, 32 << 10, 1 << 20]),
            frames_in_flight_max: rng.usize(1..=4),
            pending_bytes_max: pick(rng, &[16 << 10, 128 << 10, 64 << 20]),
            sync_method: pick(rng, &[SyncMethod::Dsync, SyncMethod::SyncPerBatch]),
            durability: draw_durability(rng),
            extent_bytes_min: draw_extent_bytes_min(rng),
        },
        buffers: Rc::new(UsedBuffers),
        checkpoints: draw_checkpoints(&mut checkpoint_rng),
        footers: checkpoint_rng.u8(..4) > 0,
    }
}

/// A quarter of the stores has a limit of its own, half of them are scrubbed.
fn draw_limits(rng: &mut Rng, segment_bytes: u64) -> StoreLimits {
    let segments_min = StoreLimits::DISK_SEGMENTS_MIN;
    let segments = rng.u64(segments_min..6 * segments_min);
    let mut overwriter_rng = rng.clone();
    StoreLimits {
        disk_bytes_max: (rng.u8(..4) == 0).then_some(segments * segment_bytes),
        scrub_bytes_per_second: pick(rng, &[0, 0, 64 << 10, 16 << 20]),
        overwriter_bytes_max: pick(&mut overwriter_rng, &[0, 200, 2_000, 1 << 20]),
        live_segments_min: pick(&mut overwriter_rng, &[0, 0, 0, StoreLimits::LIVE_SEGMENTS_MIN]),
        expired_stay_ms: 0,
    }
}

/// Many, some or hardly any.
fn draw_checkpoints(rng: &mut Rng) -> CheckpointOptions {
    CheckpointOptions {
        log_bytes_min: pick(rng, &[1, 3_000, 20_000, 100_000, 1 << 20]),
        index_bytes_factor: 0,
        loader: pick(rng, &[CheckpointLoader::Direct, CheckpointLoader::Mapped]),
    }
}
