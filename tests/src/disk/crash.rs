//! Power losses and process kills: what of the pending work survives them.
//!
//! Everything is reduced to yes-or-no questions, asked in a fixed order. A power loss answers them
//! from a seed; the enumeration answers them in every possible way.

use std::collections::VecDeque;
use std::sync::Arc;

use fastrand::Rng;

use super::file::{Block, SECTOR_SIZE, SECTORS_PER_BLOCK};
use super::{Faults, InFlight, SimulatedDisk};
use crate::tally::{Occurrence, Tally};
use wal::disk::{BLOCK_SIZE, DiskOperation};

/// Most questions that are answered in every possible way: 4,096 images.
pub const EXHAUSTIVE_QUESTIONS_MAX: usize = 12;

/// Most foreign blocks that may show up as stale content after one power loss.
const STALE_BLOCKS_MAX: usize = 256;

/// How much of the pending work a power loss leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Survival {
    /// All of it.
    All,
    /// Nothing.
    Nothing,
    /// Each piece with this probability, in percent, independently of the others.
    Percent(u8),
    /// Of each write a prefix of its sectors; of each directory a prefix of its changes.
    Prefix,
}

/// The piece of a write that is kept or lost as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CrashUnit {
    /// 512 bytes.
    Sector,
    /// 4 KiB.
    Block,
    /// The whole write.
    Write,
}

/// What the disk writes as a whole: smaller pieces never tear.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum SectorSize {
    /// 512 bytes, as most disks emulate.
    #[default]
    Bytes512,
    /// 4 KiB, native.
    Bytes4096,
}

/// What a lost sector of a pending write holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LostSector {
    /// What was durable before.
    Old,
    /// One lost sector in four holds zeros.
    SometimesZeros,
    /// One lost sector in four holds noise.
    SometimesGarbage,
}

/// What a file shows where its length survived and its content did not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExposedBlock {
    /// Zeros, as file systems with unwritten extents promise.
    Zeros,
    /// Durable blocks of any file of this disk: recycled space.
    Stale,
}

/// The kind of one power loss.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CrashPlan {
    /// What survives of writes and lengths.
    pub contents: Survival,
    /// What survives of creations, renames and removals; `Prefix` keeps their order.
    pub names: Survival,
    /// How writes tear.
    pub unit: CrashUnit,
    /// What lost sectors hold.
    pub lost: LostSector,
    /// What was never written holds.
    pub exposed: ExposedBlock,
}

impl CrashPlan {
    /// Draws a plan; sectors are old or new and never-written space is zeros.
    pub fn draw(rng: &mut Rng) -> Self {
        let survival = |rng: &mut Rng| match rng.u8(..6) {
            0 => Survival::All,
            1 => Survival::Nothing,
            2 => Survival::Prefix,
            _ => Survival::Percent(rng.u8(5..=95)),
        };
        let unit = match rng.u8(..4) {
            0 => CrashUnit::Block,
            1 => CrashUnit::Write,
            _ => CrashUnit::Sector,
        };
        Self {
            contents: survival(rng),
            names: survival(rng),
            unit,
            lost: LostSector::Old,
            exposed: ExposedBlock::Zeros,
        }
    }
}

/// One way through the tree of answers, and the step to the next.
#[derive(Clone, Debug, Default)]
struct AnswerPath {
    answers: Vec<bool>,
    next: usize,
}

impl AnswerPath {
    fn answer(&mut self) -> bool {
        if self.next == self.answers.len() {
            self.answers.push(false);
        }
        self.next += 1;
        self.answers[self.next - 1]
    }

    /// Turns to the next path; false after the last one.
    fn advance(&mut self) -> bool {
        self.next = 0;
        while self.answers.last() == Some(&true) {
            self.answers.pop();
        }
        self.answers.last_mut().map(|last| *last = true).is_some()
    }
}

#[derive(Debug)]
enum Source<'a> {
    Drawn { rng: &'a mut Rng, plan: CrashPlan, stale: Vec<Block> },
    Listed { path: &'a mut AnswerPath, unit: CrashUnit },
}

/// What becomes of one block of a pending write: bit i of a mask stands for sector i.
pub(super) struct BlockFate {
    /// Sectors that hold what was written.
    pub(super) kept: u8,
    /// Sectors that hold neither the old nor the new.
    pub(super) noise: Option<(u8, Block)>,
}

/// Answers the questions of one power loss.
pub(super) struct Choices<'a> {
    source: Source<'a>,
    sector: SectorSize,
    /// Whether the write at hand is kept, where it is kept or lost as a whole.
    write_kept: bool,
    /// How many more sectors of the write at hand are kept, where a prefix is.
    prefix: usize,
    /// What was lost.
    tally: Tally,
    oldest_lost: Option<u64>,
    newest_kept: Option<u64>,
}

/// What becomes of one write, counted by blocks of which something was still open.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct WriteFate {
    kept: usize,
    lost: usize,
    torn: usize,
    garbled: usize,
}

impl WriteFate {
    /// Notes a block with the sectors `open`.
    pub(super) fn note(&mut self, open: u8, fate: &BlockFate) {
        match fate.kept & open {
            _ if open == 0 => return,
            0 => self.lost += 1,
            kept if kept == open => self.kept += 1,
            _ => self.torn += 1,
        }
        self.garbled += usize::from(fate.noise.is_some());
    }
}

impl<'a> Choices<'a> {
    fn new(source: Source<'a>, sector: SectorSize) -> Self {
        Self {
            source,
            sector,
            write_kept: false,
            prefix: 0,
            tally: Tally::default(),
            oldest_lost: None,
            newest_kept: None,
        }
    }

    /// Counts a loss.
    pub(super) fn note(&mut self, what: Occurrence) {
        self.tally.note(what);
    }

    /// Counts what became of the write of that completion number.
    pub(super) fn note_write(&mut self, number: u64, fate: WriteFate) {
        let WriteFate { kept, lost, torn, garbled } = fate;
        if kept + torn > 0 {
            self.newest_kept = self.newest_kept.max(Some(number));
        }
        if lost + torn > 0 {
            self.oldest_lost = Some(self.oldest_lost.map_or(number, |oldest| oldest.min(number)));
        }
        if lost > 0 && kept + torn == 0 {
            self.note(Occurrence::LostWrite);
        }
        if lost > 0 && kept > 0 {
            self.note(Occurrence::TornAt4096);
        }
        if torn > 0 {
            self.note(Occurrence::TornAt512);
        }
        self.tally.add(Occurrence::GarbledSector, garbled as u64);
    }

    /// What was lost, all told.
    fn into_tally(mut self) -> Tally {
        if self.oldest_lost.zip(self.newest_kept).is_some_and(|(lost, kept)| lost < kept) {
            self.note(Occurrence::ReorderedWrite);
        }
        self.tally
    }

    /// Whether a change of a name survives.
    pub(super) fn keeps_name(&mut self) -> bool {
        match &mut self.source {
            Source::Drawn { rng, plan, .. } => survives(rng, plan.names),
            Source::Listed { path, .. } => path.answer(),
        }
    }

    /// Whether a lost change takes all later ones of its directory with it.
    pub(super) fn keeps_name_order(&self) -> bool {
        matches!(&self.source, Source::Drawn { plan, .. } if plan.names == Survival::Prefix)
    }

    /// Whether an extension of a file survives.
    pub(super) fn keeps_len(&mut self) -> bool {
        match &mut self.source {
            Source::Drawn { rng, plan, .. } => survives(rng, plan.contents),
            Source::Listed { path, .. } => path.answer(),
        }
    }

    /// Shortens a surviving extension now and then to a block border within it.
    pub(super) fn torn_len(&mut self, durable: u64, len: u64) -> u64 {
        let Source::Drawn { rng, plan, .. } = &mut self.source else {
            return len;
        };
        let partial = matches!(plan.contents, Survival::Percent(_) | Survival::Prefix);
        if !partial || plan.unit == CrashUnit::Write || rng.u8(..4) != 0 {
            return len;
        }
        let blocks = (len - durable) / BLOCK_SIZE as u64;
        len - rng.u64(..=blocks) * BLOCK_SIZE as u64
    }

    /// Announces the next write, of that many sectors.
    pub(super) fn begin_write(&mut self, sectors: usize) {
        match &mut self.source {
            Source::Drawn { rng, plan, .. } => {
                self.write_kept = survives(rng, plan.contents);
                self.prefix = rng.usize(..=sectors);
                if self.sector == SectorSize::Bytes4096 {
                    self.prefix -= self.prefix % SECTORS_PER_BLOCK;
                }
            }
            Source::Listed { path, unit: CrashUnit::Write } => self.write_kept = path.answer(),
            Source::Listed { .. } => {}
        }
    }

    /// Decides about the sectors in `open` of the next block of the write announced last.
    pub(super) fn fate_of_block(&mut self, open: u8) -> BlockFate {
        let whole = |kept: bool| if kept { open } else { 0 };
        match &mut self.source {
            Source::Listed { path, unit } => {
                let kept = match unit {
                    CrashUnit::Write => whole(self.write_kept),
                    CrashUnit::Block => whole(open != 0 && path.answer()),
                    CrashUnit::Sector => mask_of(|bit| open & bit != 0 && path.answer()),
                };
                BlockFate { kept, noise: None }
            }
            Source::Drawn { rng, plan, .. } => {
                let kept = match (plan.contents, plan.unit) {
                    (Survival::Prefix, _) => {
                        let count = self.prefix.min(SECTORS_PER_BLOCK);
                        self.prefix -= count;
                        open & u8::try_from((1_u16 << count) - 1).expect("at most 8 bits")
                    }
                    (_, CrashUnit::Write) => whole(self.write_kept),
                    (survival, CrashUnit::Block) => whole(survives(rng, survival)),
                    (survival, CrashUnit::Sector) => {
                        mask_of(|bit| open & bit != 0 && survives(rng, survival))
                    }
                };
                BlockFate { kept, noise: noise(rng, plan.lost, open & !kept, self.sector) }
            }
        }
    }

    /// What shows in a block that was never written, unless it is zeros.
    pub(super) fn exposed_block(&mut self) -> Option<Block> {
        match &mut self.source {
            Source::Drawn { rng, stale, .. } => rng.choice(stale.iter()).cloned(),
            Source::Listed { .. } => None,
        }
    }
}

fn survives(rng: &mut Rng, survival: Survival) -> bool {
    match survival {
        Survival::All => true,
        Survival::Nothing => false,
        Survival::Percent(percent) => rng.u8(..100) < percent,
        Survival::Prefix => rng.u8(..4) != 0,
    }
}

fn mask_of(mut sector: impl FnMut(u8) -> bool) -> u8 {
    (0..SECTORS_PER_BLOCK).map(|index| 1 << index).filter(|bit| sector(*bit)).sum()
}

fn noise(rng: &mut Rng, lost: LostSector, sectors: u8, sector: SectorSize) -> Option<(u8, Block)> {
    if lost == LostSector::Old || sectors == 0 {
        return None;
    }
    let mask = match sector {
        SectorSize::Bytes512 => mask_of(|bit| sectors & bit != 0 && rng.u8(..4) == 0),
        SectorSize::Bytes4096 if sectors == u8::MAX && rng.u8(..4) == 0 => u8::MAX,
        SectorSize::Bytes4096 => 0,
    };
    if mask == 0 {
        return None;
    }
    let mut bytes = [0; BLOCK_SIZE];
    if lost == LostSector::SometimesGarbage {
        for sector in bytes.chunks_mut(SECTOR_SIZE) {
            rng.fill(sector);
        }
    }
    Some((mask, Block::new(&bytes)))
}

impl SimulatedDisk {
    /// Cuts the power with a plan drawn from `rng` and returns the disk as the next start finds it.
    ///
    /// Open files, requests in flight and planned failures of requests are gone; unreadable
    /// blocks, the capacity and the counters stay.
    #[must_use]
    pub fn crash(&self, rng: &mut Rng) -> Self {
        let plan = CrashPlan::draw(rng);
        self.crash_with(rng, plan)
    }

    /// Cuts the power according to `plan`; see [`SimulatedDisk::crash`].
    #[must_use]
    pub fn crash_with(&self, rng: &mut Rng, plan: CrashPlan) -> Self {
        let pending = self.with_requests_pending();
        let stale = match plan.exposed {
            ExposedBlock::Zeros => Vec::new(),
            ExposedBlock::Stale => {
                let durable = self.inodes.values().flat_map(|inode| inode.durable_blocks());
                durable.take(STALE_BLOCKS_MAX).cloned().collect()
            }
        };
        let seed = rng.u64(..);
        let plan = match (self.sector, plan.unit) {
            (SectorSize::Bytes4096, CrashUnit::Sector) => {
                CrashPlan { unit: CrashUnit::Block, ..plan }
            }
            _ => plan,
        };
        let source = Source::Drawn { rng, plan, stale };
        let mut disk = pending.resolve(Choices::new(source, self.sector));
        disk.rng = Rng::with_seed(seed);
        disk
    }

    /// Every image that a power loss can leave now, or at most `limit` of them.
    ///
    /// The smallest of sector, block and write is taken as unit for which there are at most
    /// [`EXHAUSTIVE_QUESTIONS_MAX`] questions and `limit` images; where that is not the sector,
    /// or there is none, power losses drawn from a seed fill up the limit.
    #[must_use]
    pub fn crash_images(&self, limit: usize) -> CrashImages {
        let disk = self.with_requests_pending();
        let units = [CrashUnit::Sector, CrashUnit::Block, CrashUnit::Write];
        let mut units = units.into_iter().filter(|unit| self.tears(*unit));
        let unit = units.find(|unit| {
            let questions = disk.questions(*unit);
            questions <= EXHAUSTIVE_QUESTIONS_MAX && 1 << questions <= limit
        });
        let rng = Rng::with_seed(self.rng.get_seed());
        CrashImages {
            disk,
            listing: unit.map(|unit| (unit, AnswerPath::default())),
            unit,
            rng,
            left: limit,
        }
    }

    /// Number of pieces of work, names and sectors, that a power loss may now keep or lose.
    #[must_use]
    pub fn pending_items(&self) -> usize {
        let unit = if self.tears(CrashUnit::Sector) { CrashUnit::Sector } else { CrashUnit::Block };
        self.with_requests_pending().questions(unit)
    }

    fn tears(&self, unit: CrashUnit) -> bool {
        unit != CrashUnit::Sector || self.sector == SectorSize::Bytes512
    }

    /// Kills the process without a power loss: completed work stays in the page cache, as little
    /// durable as before; each request in flight happened, did not, or (writes) tore at 4 KiB.
    #[must_use]
    pub fn process_kill(&self, rng: &mut Rng) -> Self {
        let mut disk = self.without_requests();
        for request in &self.in_flight {
            match rng.u8(..3) {
                0 => {}
                1 => disk.leave_pending(request, |_| true),
                _ => disk.leave_pending(request, |_| rng.bool()),
            }
        }
        disk.rng = Rng::with_seed(rng.u64(..));
        disk.tally.note(Occurrence::ProcessKill);
        disk.drop_unreachable();
        disk
    }

    fn questions(&self, unit: CrashUnit) -> usize {
        let contents: usize = self.inodes.values().map(|inode| inode.questions(unit)).sum();
        contents + self.names.questions()
    }

    fn without_requests(&self) -> Self {
        Self {
            inodes: self.inodes.clone(),
            names: self.names.clone(),
            open: std::collections::BTreeMap::new(),
            in_flight: Vec::new(),
            faults: Faults::default(),
            past_writes: VecDeque::new(),
            tally: Tally::default(),
            sector: self.sector,
            capacity: self.capacity,
            statistics: self.statistics,
            completed: self.completed,
            inodes_made: self.inodes_made,
            rng: self.rng.clone(),
        }
    }

    /// The disk with every request in flight pending: begun, and in doubt.
    fn with_requests_pending(&self) -> Self {
        let mut disk = self.without_requests();
        for request in &self.in_flight {
            disk.leave_pending(request, |_| true);
        }
        disk.drop_unreachable();
        disk
    }

    /// Lets a request happen without anyone hearing of it; of a write only the blocks `landed`.
    fn leave_pending(&mut self, request: &InFlight, landed: impl FnMut(usize) -> bool) {
        if request.changes_nothing() {
            return;
        }
        let number = self.next_number();
        match &request.operation {
            DiskOperation::Write { offset, buffer, .. } => {
                self.land(number, request, *offset, buffer.as_slice(), landed);
            }
            operation => {
                // An operation that would fail has no effect either.
                let _ = self.change_names(number, operation);
            }
        }
    }

    fn resolve(&self, mut choices: Choices<'_>) -> Self {
        choices.note(Occurrence::PowerLoss);
        let names = self.names.after_power_loss(&mut choices);
        let mut disk = Self { names, ..self.without_requests() };
        disk.drop_unreachable();
        for inode in disk.inodes.values_mut() {
            *inode = Arc::new(inode.after_power_loss(&mut choices));
        }
        disk.tally = choices.into_tally();
        disk
    }
}

/// The images that a power loss can leave; see [`SimulatedDisk::crash_images`].
#[derive(Debug)]
pub struct CrashImages {
    disk: SimulatedDisk,
    listing: Option<(CrashUnit, AnswerPath)>,
    unit: Option<CrashUnit>,
    rng: Rng,
    left: usize,
}

impl CrashImages {
    /// The unit for which every image is listed, if there is one.
    #[must_use]
    pub fn exhaustive_unit(&self) -> Option<CrashUnit> {
        self.unit
    }
}

impl Iterator for CrashImages {
    type Item = SimulatedDisk;

    fn next(&mut self) -> Option<SimulatedDisk> {
        self.left = self.left.checked_sub(1)?;
        let Some((unit, path)) = &mut self.listing else {
            return Some(self.disk.crash(&mut self.rng));
        };
        let unit = *unit;
        let source = Source::Listed { path, unit };
        let mut image = self.disk.resolve(Choices::new(source, self.disk.sector));
        image.tally.note(Occurrence::ListedImage);
        if !path.advance() {
            self.listing = None;
            if unit == CrashUnit::Sector || self.disk.sector == SectorSize::Bytes4096 {
                self.left = 0;
            }
        }
        Some(image)
    }
}
