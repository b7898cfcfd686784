//! Damage at rest, one piece at a time: after a store has come to rest, on copies of its disk; or
//! under a running store, which then ends its seed.
//!
//! Damaged keys answer errors, never wrong bytes; an older value is seen only of a store that says
//! it is suspect. Content that is merely stale, where nothing was ever acknowledged, is no damage
//! and must change nothing.

use fastrand::Rng;
use wal::checksum::Place;
use wal::disk::{BLOCK_SIZE, IoBuffer};
use wal::frame::{self, FRAME_HEADER_LEN, FrameHeader, FrameStamp};
use wal::record::RecordHeader;
use wal::segment;

use super::model::{CrashKind, Moment};
use super::recovery::{Depth, recover};
use super::{Condition, PlantedBug, StoreWorld};
use crate::disk::{SimulatedDisk, WrittenRange};
use crate::tally::Occurrence;

/// Rounds of damage after each rest.
const ROUNDS: usize = 4;

impl StoreWorld {
    /// Damages copies of the disk of a store at rest and looks each over.
    pub(super) fn damage_rounds(&mut self) -> Result<(), String> {
        if !self.ends_with_idle_frame() {
            return Ok(());
        }
        let mut rng = self.crash_rng.fork();
        let plan = self.mix.power_loss(&mut rng);
        // Nothing is pending that matters: this only closes the files.
        let rested = self.wire.disk.clone();
        let writes = self.past_writes();
        for round in 0..ROUNDS {
            let mut copy = rested.clone();
            let what = damage(&mut copy, &writes, self.options.directory.as_str(), &mut rng);
            self.absorb(&mut copy);
            let mut copy = copy.crash_with(&mut rng, plan);
            self.look_over_copy(&mut copy, &mut rng)
                .map_err(|error| format!("damage round {round}, {what}: {error}"))?;
        }
        self.check_stale(&rested, &writes, &mut rng)
            .map_err(|error| format!("stale content: {error}"))
    }

    /// The newest durable writes into files of the store; what only snapshots still have is not.
    fn past_writes(&self) -> Vec<WrittenRange> {
        let mut writes = self.wire.disk.past_writes();
        writes.retain(|write| is_inside(&write.name, self.options.directory.as_str()));
        writes
    }

    /// Whether the newest durable write is a frame without records: then the disk says itself that
    /// everything before is durable, and the loss of any one thing can be seen.
    fn ends_with_idle_frame(&self) -> bool {
        let store = self.options.identity.store;
        let writes = self.past_writes();
        let newest = writes.last();
        newest
            .and_then(|write| frame_at(&self.wire.disk, write, store))
            .is_some_and(|(_, header)| header.record_count == 0)
    }

    /// Damages the disk under the running store: what was written, or the write to come.
    pub(super) fn damage_live(&mut self) {
        self.condition = Condition::Damaged;
        let writes = self.past_writes();
        let mut rng = self.crash_rng.fork();
        let disk = &mut self.wire.disk;
        match (rng.u8(..4), rng.choice(&writes)) {
            (0, _) => {
                let blocks = self.options.segment_bytes / BLOCK_SIZE as u64;
                disk.misdirect_next_write(rng.u64(..blocks) * BLOCK_SIZE as u64);
            }
            (1, _) => disk.lose_next_write(),
            (2, Some(written)) => {
                let files = files_inside(disk, self.options.directory.as_str());
                misdirect(disk, &files, &writes, written, &mut rng);
            }
            (_, Some(written)) => drop(damage_range(disk, written, &mut rng)),
            (_, None) => {}
        }
    }

    /// Opens the damaged disk once more, twice, as the last thing of a seed.
    pub(super) fn look_over(&mut self) -> Result<(), String> {
        self.store = None;
        if !self.ends_with_idle_frame() {
            return Ok(());
        }
        let mut rng = self.crash_rng.fork();
        let plan = self.mix.power_loss(&mut rng);
        let mut disk = self.wire.disk.crash_with(&mut rng, plan);
        self.look_over_copy(&mut disk, &mut rng)
    }

    fn look_over_copy(&mut self, disk: &mut SimulatedDisk, rng: &mut Rng) -> Result<(), String> {
        self.summary.damaged += 1;
        for start in 1..=2 {
            let wall_ms = self.time.wall_ms;
            let found = recover(disk, &self.options, wall_ms, &self.model, Depth::Keys)
                .map_err(|error| format!("start {start}: {error}"))?;
            let moment = Moment { now_ms: found.now_ms, seen_max_ms: self.time.seen_max_ms };
            self.model
                .check_damaged(&found.found, moment, found.report.suspect)
                .map_err(|error| format!("start {start}: {error}\n{:#?}", found.report))?;
            self.absorb(disk);
            let plan = self.mix.power_loss(rng);
            *disk = disk.crash_with(rng, plan);
        }
        Ok(())
    }

    /// Puts an old frame of one segment where another has never been written, as recycled space
    /// may show it: nothing may come of it.
    fn check_stale(
        &self,
        rested: &SimulatedDisk,
        writes: &[WrittenRange],
        rng: &mut Rng,
    ) -> Result<(), String> {
        let store = self.options.identity.store;
        let frames: Vec<_> = writes.iter().filter_map(|w| frame_at(rested, w, store)).collect();
        let Some((place, header)) = rng.choice(&frames) else { return Ok(()) };
        let directory = &self.options.directory;
        let name = segment::file_name(directory, place.segment);
        let start = usize::try_from(place.offset).expect("a small file");
        let bytes = &rested.read_file(name.as_str())[start..start + header.len as usize];
        let own = |(name, _): &(String, u64)| is_inside(name, directory.as_str());
        for (name, _) in rested.files().into_iter().filter(own) {
            let Some(id) = name.rsplit('/').next().and_then(segment::parse_file_name) else {
                continue;
            };
            let content = rested.read_file(&name);
            let blank = content.get(start..start + bytes.len());
            let taken = ends_of_frames(&content[..start.min(content.len())], store, id);
            let reached = taken.into_iter().any(|end| end > place.offset);
            if id == place.segment || reached || !blank.is_some_and(frame::is_blank) {
                continue;
            }
            let mut copy = rested.clone();
            let stale = match self.trial.bug {
                PlantedBug::ChecksumWithoutSegment => sealed_for(id, place, header, bytes),
                _ => bytes.to_vec(),
            };
            copy.overwrite_at_rest(&name, place.offset, &stale);
            self.note(Occurrence::StaleFrame);
            self.compare_with_stale(rested, copy, rng)?;
        }
        Ok(())
    }

    fn compare_with_stale(
        &self,
        rested: &SimulatedDisk,
        copy: SimulatedDisk,
        rng: &mut Rng,
    ) -> Result<(), String> {
        let plan = self.mix.power_loss(rng);
        let open = |disk: &SimulatedDisk, rng: &mut Rng| {
            let mut disk = disk.crash_with(rng, plan);
            let wall_ms = self.time.wall_ms;
            recover(&mut disk, &self.options, wall_ms, &self.model, Depth::Walk)
        };
        let (clean, stale) = (open(rested, rng)?, open(&copy, rng)?);
        let point = self.crash_point(CrashKind::PowerLoss);
        point.judge(&clean)?;
        point.judge(&stale)?;
        if clean.report.frames != stale.report.frames || clean.found != stale.found {
            return Err(format!("{:?} became {:?}", clean.report, stale.report));
        }
        Ok(())
    }
}

/// Where the frames that begin in these first bytes of a segment end.
fn ends_of_frames(bytes: &[u8], store: [u8; 16], segment: u64) -> Vec<u64> {
    let end = |(index, block): (usize, &[u8])| {
        let place = Place { store, segment, offset: (index * BLOCK_SIZE) as u64 };
        let header = FrameHeader::decode(block.first_chunk()?, &place).ok()?;
        Some(place.offset + u64::from(header.len))
    };
    bytes.chunks(BLOCK_SIZE).enumerate().filter_map(end).collect()
}

fn frame_at(
    disk: &SimulatedDisk,
    write: &WrittenRange,
    store: [u8; 16],
) -> Option<(Place, FrameHeader)> {
    let segment = write.name.rsplit('/').next().and_then(segment::parse_file_name)?;
    let place = Place { store, segment, offset: write.offset };
    let start = usize::try_from(write.offset).ok()?;
    let bytes = disk.read_file(&write.name);
    let header = bytes.get(start..)?.first_chunk::<FRAME_HEADER_LEN>()?;
    FrameHeader::decode(header, &place).ok().map(|header| (place, header))
}

/// What a frame looks like in another segment to checksums that do not depend on the segment.
fn sealed_for(segment: u64, place: &Place, header: &FrameHeader, bytes: &[u8]) -> Vec<u8> {
    let mut buffer = IoBuffer::with_capacity(bytes.len());
    buffer.extend_from_slice(&[0; FRAME_HEADER_LEN]);
    let other = Place { segment, ..*place };
    let mut at = FRAME_HEADER_LEN;
    for _ in 0..header.record_count {
        let here = place.at(place.offset + at as u64);
        let Ok(record) = RecordHeader::decode(&bytes[at..], &here) else { break };
        let value = record.value(&bytes[at..]).unwrap_or_default();
        record.record(value).encode(
            &other.at(place.offset + at as u64),
            record.first_lsn,
            &mut buffer,
        );
        at += record.record_len();
    }
    let stamp = FrameStamp {
        first_lsn: header.first_lsn,
        record_count: header.record_count,
        durable_lsn: header.durable_lsn,
        wall_ms: header.wall_ms,
    };
    frame::finish(&mut buffer, &other, &stamp);
    buffer.as_slice().to_vec()
}

fn is_inside(name: &str, directory: &str) -> bool {
    name.strip_prefix(directory).is_some_and(|rest| rest.starts_with('/'))
}

/// Names and lengths of the files in a directory.
fn files_inside(disk: &SimulatedDisk, directory: &str) -> Vec<(String, u64)> {
    let mut files = disk.files();
    files.retain(|(name, _)| is_inside(name, directory));
    files
}

/// Makes it look as if a write had gone elsewhere, or nowhere; says where.
fn misdirect(
    disk: &mut SimulatedDisk,
    files: &[(String, u64)],
    writes: &[WrittenRange],
    written: &WrittenRange,
    rng: &mut Rng,
) -> String {
    // The victim is any place but the end of the log, which says how far it goes; if that is what
    // went elsewhere, there is none.
    let newest = writes.last().expect("there is one");
    let (name, len) = &files[rng.usize(..files.len())];
    let offset = rng.u64(..=*len / BLOCK_SIZE as u64) * BLOCK_SIZE as u64;
    let is_end = (&written.name, written.offset) == (&newest.name, newest.offset);
    let spoils_end = *name == newest.name
        && offset < newest.offset + newest.len as u64
        && newest.offset < offset + written.len as u64;
    let is_lost = rng.u8(..3) == 0;
    let victim =
        (!is_lost && !is_end && !spoils_end && offset < *len).then_some((name.as_str(), offset));
    disk.misdirect_at_rest(written, victim);
    format!("{written:?} went to {victim:?}")
}

/// Damages one thing somewhere in a directory; says what.
fn damage(
    disk: &mut SimulatedDisk,
    writes: &[WrittenRange],
    directory: &str,
    rng: &mut Rng,
) -> String {
    let files = files_inside(disk, directory);
    let frame = rng.choice(writes).cloned();
    match (rng.u8(..6), frame) {
        (0, _) | (_, None) => {
            let (name, len) = &files[rng.usize(..files.len())];
            if *len == 0 {
                return format!("nothing of {name}");
            }
            let offset = rng.u64(..*len);
            disk.flip_byte(name, offset, 1 << rng.u8(..8));
            format!("a bit of {name} at {offset}")
        }
        (1 | 2, Some(written)) => misdirect(disk, &files, writes, &written, rng),
        (_, Some(written)) => damage_range(disk, &written, rng),
    }
}

/// Damages a piece of what was written; says how.
fn damage_range(disk: &mut SimulatedDisk, written: &WrittenRange, rng: &mut Rng) -> String {
    let offset = written.offset + rng.u64(..written.len as u64);
    let name = &written.name;
    match rng.u8(..3) {
        0 => {
            disk.flip_byte(name, offset, rng.u8(1..));
            format!("a byte of {name} at {offset}")
        }
        1 => {
            disk.zero_sector(name, offset);
            format!("a sector of zeros in {name} at {offset}")
        }
        _ => {
            disk.fail_reads(name, offset, 1);
            format!("an unreadable block in {name} at {offset}")
        }
    }
}
