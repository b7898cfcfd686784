//! Snapshots taken in mid-run: each is opened later, from the links, as a store of its own, and
//! must hold what the cut held, whatever has become of the store since.
//!
//! ```text
//! command -> under way -> told: files and checksums compared, directory synced -> taken
//!         -> opened on copies of the disk, after crashes too -> removed when others follow
//! ```

use fastrand::Rng;
use storage::{FileContent, SnapshotFile, StoreOptions};
use wal::Lsn;
use wal::checksum;
use wal::disk::{DiskError, DiskErrorKind, DiskOperation, DiskRequest, FileName, RequestId};
use wal::manifest::{self, Manifest};

use super::model::{Cut, Moment};
use super::recovery::{Depth, recover};
use super::{Condition, StoreWorld};
use crate::disk::SimulatedDisk;
use crate::tally::Occurrence;

/// The core whose requests keep the snapshots' directories.
const KEEPER: u16 = 1;
/// Snapshots kept at a time.
const TAKEN_MAX: usize = 2;

/// The snapshots of one world.
#[derive(Debug, Default)]
pub(super) struct Snapshots {
    under_way: Option<UnderWay>,
    taken: Vec<Snapshot>,
    begun: u32,
    requests: u64,
}

#[derive(Debug)]
struct UnderWay {
    directory: FileName,
    /// Everything up to here had been appended when it was asked for.
    floor: Lsn,
}

/// A snapshot that has been told of, and is durable.
#[derive(Debug)]
struct Snapshot {
    directory: FileName,
    cut: Cut,
}

impl Snapshots {
    /// The store is gone, and what it was taking with it.
    pub(super) fn abandon(&mut self) {
        self.under_way = None;
    }

    /// Whether the store owes the end of a snapshot.
    pub(super) fn is_under_way(&self) -> bool {
        self.under_way.is_some()
    }
}

impl StoreWorld {
    /// Takes a snapshot, or removes the oldest if there are enough.
    pub(super) fn snapshot(&mut self) {
        if self.snapshots.under_way.is_some() || self.store().failure().is_some() {
            return;
        }
        if self.snapshots.taken.len() >= TAKEN_MAX {
            self.remove_oldest_snapshot();
            return;
        }
        self.snapshots.begun += 1;
        let directory = FileName::new(format!("snapshot-{:03}", self.snapshots.begun));
        let floor = self.store().last_lsn();
        self.model.pin(Some(floor));
        self.store_mut().snapshot(directory.clone());
        self.snapshots.under_way = Some(UnderWay { directory, floor });
    }

    /// Takes the end of a snapshot.
    pub(super) fn end_snapshot(
        &mut self,
        result: Result<Vec<SnapshotFile>, DiskError>,
    ) -> Result<(), String> {
        let under_way = self.snapshots.under_way.take();
        let UnderWay { directory, floor } = under_way.ok_or("a snapshot that nobody asked for")?;
        let files = match result {
            Ok(files) => files,
            Err(error) => {
                self.model.pin(None);
                self.note(Occurrence::SnapshotFailed);
                let limited = self.is_limited() && matches!(error.kind, DiskErrorKind::NoSpace);
                if self.condition == Condition::Sound && !limited {
                    return Err(format!("a snapshot fails: {error}"));
                }
                return Ok(());
            }
        };
        let cut_lsn = self
            .check_files(&directory, &files)
            .map_err(|error| format!("snapshot {directory}: {error}"))?;
        let last_lsn = self.store().last_lsn();
        if !(floor..=last_lsn).contains(&cut_lsn) {
            return Err(format!(
                "snapshot {directory} is cut at LSN {cut_lsn}, not within {floor}..={last_lsn}"
            ));
        }
        let cut = self.model.cut(cut_lsn);
        self.model.pin(None);
        let root = DiskOperation::SyncDirectory { name: directory.parent() };
        if self.keep(root) {
            self.note(Occurrence::SnapshotTaken);
            self.snapshots.taken.push(Snapshot { directory, cut });
        }
        Ok(())
    }

    /// Compares a snapshot's files with what is told of them; returns its cut.
    fn check_files(&self, directory: &FileName, files: &[SnapshotFile]) -> Result<Lsn, String> {
        for file in files {
            let bytes = self.wire.disk.read_file(directory.join(&file.name).as_str());
            if bytes.len() as u64 != file.len {
                return Err(format!("{file:?} has {} bytes", bytes.len()));
            }
            let FileContent { used, crc32, tail } = file.content;
            let tail = tail.map(|tail| (tail.offset..file.len, tail.crc32));
            for (range, told) in [Some((0..used, crc32)), tail].into_iter().flatten() {
                let start = usize::try_from(range.start).map_err(|error| error.to_string())?;
                let end = usize::try_from(range.end).map_err(|error| error.to_string())?;
                let part = bytes.get(start..end).ok_or_else(|| format!("{file:?} is too short"))?;
                let found = checksum::plain(part);
                if found != told && self.condition == Condition::Sound {
                    return Err(format!("{file:?} has checksum {found:08x} at {start}"));
                }
            }
        }
        let manifest = self.wire.disk.read_file(manifest::file_name(directory, 0).as_str());
        let manifest = Manifest::decode(&manifest).map_err(|error| error.to_string())?;
        Ok(manifest.durable_lsn)
    }

    /// Opens each snapshot as a power loss would leave it now.
    pub(super) fn check_snapshots(&self, rng: &mut Rng) -> Result<(), String> {
        if self.condition == Condition::Damaged {
            return Ok(());
        }
        for index in 0..self.snapshots.taken.len() {
            let plan = self.mix.power_loss(rng);
            let disk = self.wire.disk.crash_with(rng, plan);
            self.check_snapshot(disk, index)?;
        }
        Ok(())
    }

    /// Opens one of the snapshots in an image of the disk, now and then.
    pub(super) fn sample_snapshot(
        &self,
        image: &SimulatedDisk,
        rng: &mut Rng,
    ) -> Result<(), String> {
        let count = self.snapshots.taken.len();
        if count == 0 || rng.u8(..8) > 0 {
            return Ok(());
        }
        self.check_snapshot(image.clone(), rng.usize(..count))
    }

    fn check_snapshot(&self, mut disk: SimulatedDisk, index: usize) -> Result<(), String> {
        let Snapshot { directory, cut } = &self.snapshots.taken[index];
        disk.set_capacity(None);
        let options = StoreOptions {
            directory: directory.clone(),
            must_exist: true,
            limits: storage::StoreLimits::default(),
            ..self.options.clone()
        };
        let wall_ms = self.time.wall_ms;
        let opened = recover(&mut disk, &options, wall_ms, &self.model, Depth::Walk);
        let found = opened.map_err(|error| format!("snapshot {directory}: {error}"))?;
        let moment = Moment { now_ms: found.now_ms, seen_max_ms: self.time.seen_max_ms };
        let states = found.states().and_then(|states| cut.check(&states, moment));
        states.map_err(|error| format!("snapshot {directory}: {error}\n{:?}", found.report))?;
        self.note(Occurrence::SnapshotOpened);
        Ok(())
    }

    fn remove_oldest_snapshot(&mut self) {
        let Snapshot { directory, .. } = self.snapshots.taken.remove(0);
        let inside = format!("{directory}/");
        let files = self.wire.disk.files().into_iter().map(|(name, _)| name);
        let files: Vec<String> = files.filter(|name| name.starts_with(&inside)).collect();
        for name in files {
            self.keep(DiskOperation::Remove { name: FileName::new(&name) });
        }
        if self.keep(DiskOperation::RemoveDirectory { name: directory }) {
            self.note(Occurrence::SnapshotRemoved);
        }
    }

    /// Carries out a request of the keeper at once; tells whether it succeeded.
    fn keep(&mut self, operation: DiskOperation) -> bool {
        self.snapshots.requests += 1;
        let id = RequestId(self.snapshots.requests);
        self.wire.note_kind(&operation);
        self.wire.disk.submit(KEEPER, DiskRequest { id, operation });
        self.wire.disk.complete_one_of(KEEPER).is_some_and(|done| done.result.is_ok())
    }
}
