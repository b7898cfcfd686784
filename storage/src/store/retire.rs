//! Segments on their way out: of use to nobody, but not gone.
//!
//! ```text
//! retired -> what replaced it is durable, its last readers are done -> manifest without it
//!         -> shelved, directory synced, kept to become a new segment -> gone: its number is free
//!         -> or closed, removed, directory synced --------------------------^
//! ```

use wal::Lsn;
use wal::disk::{DiskError, DiskOperation, FileId, FileName, RequestId};
use wal::group_commit::OpenSegment;
use wal::manifest::{Manifest, Quarantine, Verdict};
use wal::procedure::Procedure;
use wal::segment;

use super::manifest_keeper::EditId;
use super::{ReadId, Source, Store};
use crate::index::SegmentNumber;
use crate::mutation::{Mutation, is_planted};
use crate::segments::{Segment, SegmentState};

/// After an error of the disk, the manifest is edited again this many nanoseconds later.
const RETRY_AFTER_NS: u64 = 1_000_000_000;

pub(super) struct Retirement {
    number: SegmentNumber,
    id: u64,
    /// When this is durable, nothing rests on the segment.
    replaced_lsn: Lsn,
    /// Jobs before this one may still read it.
    readers_end: ReadId,
    step: Step,
}

enum Step {
    Waiting {
        since_ns: u64,
    },
    Editing(EditId),
    /// The file is shelved, to become another segment.
    Shelving(Procedure<Result<(), DiskError>>),
    Removing(Procedure<Result<(), DiskError>>),
    /// The file could not be removed; the next start does it.
    Stuck,
}

impl Store {
    /// Takes a segment out of use.
    pub(super) fn retire(&mut self, number: SegmentNumber) {
        let Some(segment) = self.catalog.segments.get_mut(number) else { return };
        segment.state = SegmentState::Retiring;
        let retirement = Retirement {
            number,
            id: segment.id,
            replaced_lsn: self.log.last_lsn(),
            readers_end: self.jobs.next_id(),
            step: Step::Waiting { since_ns: 0 },
        };
        self.retirements.push(retirement);
    }

    /// Goes on with segments on their way out.
    pub(super) fn pump_retirements(&mut self) {
        let readers = [self.jobs.oldest(), self.scans.oldest()].into_iter().flatten().min();
        let durable_lsn = self.log.durable_lsn();
        let now_ns = self.now.monotonic_ns;
        self.hasten_retirements();
        let waits = |retirement: &Retirement| matches!(retirement.step, Step::Waiting { .. });
        if self.snapshots.holds_files() || !self.retirements.iter().any(waits) {
            return self.pump_keeper();
        }
        let anchor = self.anchor();
        for retirement in &mut self.retirements {
            let Step::Waiting { since_ns } = retirement.step else { continue };
            let read = readers.is_some_and(|oldest| oldest < retirement.readers_end);
            let read = read
                || self.scrub.is_reading(retirement.id)
                || self.compaction.is_reading_head(retirement.id)
                || self.extents.is_reading(retirement.id);
            let replaced =
                retirement.replaced_lsn <= durable_lsn || is_planted(Mutation::SegmentFreedEarly);
            let logged = anchor.is_some_and(|anchor| anchor != retirement.id);
            if read || !logged || !replaced || since_ns > now_ns {
                continue;
            }
            let segment = self.catalog.segments.get(retirement.number);
            let lsns = segment.and_then(|segment| segment.lsns);
            let id = retirement.id;
            let edit = self.keeper.edit(move |manifest| free(manifest, id, lsns, durable_lsn));
            retirement.step = Step::Editing(edit);
        }
        self.pump_keeper();
    }

    /// Where space is short, does not wait until a log that seldom syncs gets to it: segments are
    /// sealed, and given back, only when what is in them, or what replaced it, is durable.
    fn hasten_retirements(&mut self) {
        if self.supply.is_disk_full() && self.log.durable_lsn() < self.log.last_lsn() {
            self.log.request_sync();
        }
    }

    /// The segment that has to stay, for the log's numbers and times go on there: the active one,
    /// as soon as it has a durable record. Of a log that seldom syncs that may be never: then the
    /// newest one with a durable record that was written since the start (of one found there, all
    /// may be torn), but on a full disk, where a sync is asked for instead.
    fn anchor(&self) -> Option<u64> {
        if self.is_log_anchored() {
            return self.log.active().map(|(open, _)| open.id);
        }
        if self.log.syncs_each_frame() || self.supply.is_disk_full() {
            return None;
        }
        let durable_lsn = self.log.durable_lsn();
        let leaves = |id: u64| {
            let mut others = self.retirements.iter().filter(|retirement| retirement.id == id);
            others.any(|retirement| !matches!(retirement.step, Step::Waiting { .. }))
        };
        let durable = self.catalog.segments.iter().filter_map(|(_, segment)| {
            let (first, _) = segment.lsns.filter(|(first, _)| *first <= durable_lsn)?;
            (!segment.was_found).then_some((first, segment.id))
        });
        durable.filter(|(_, id)| !leaves(*id)).max().map(|(_, id)| id)
    }

    /// Whether the active segment has a durable record.
    fn is_log_anchored(&self) -> bool {
        let active = self.log.active().and_then(|(open, _)| self.catalog.segments.by_id(open.id));
        let first = active.and_then(|segment| segment.lsns).map(|(first, _)| first);
        first.is_some_and(|first| first <= self.log.durable_lsn())
    }

    /// Whether an edit takes a segment out of the manifest right now.
    pub(super) fn is_freeing_segments(&self) -> bool {
        self.retirements.iter().any(|retirement| matches!(retirement.step, Step::Editing(_)))
    }

    /// Whether a segment is on its way out; one whose file could not be removed is not.
    pub(super) fn is_removing_segments(&self) -> bool {
        self.retirements.iter().any(|retirement| !matches!(retirement.step, Step::Stuck))
    }

    /// Whether segments on their way out wait for a record to be written: a delete will do.
    pub(super) fn waits_for_anchor(&self) -> bool {
        self.is_removing_segments() && !self.is_log_anchored() && self.log.pending_bytes() == 0
    }

    /// Whether a segment is on its way out, or may soon be, or its space is being made into a file.
    pub(super) fn is_making_room(&self) -> bool {
        self.compaction.victim.is_some() || self.is_removing_segments() || self.supply.is_filling()
    }

    /// A segment is gone: on a full disk, one that found no room for its copies may find some now.
    pub(super) fn handle_room(&mut self) {
        if self.supply.is_disk_full() {
            self.retry_unfit();
        }
        self.tell_writable();
    }

    /// Takes the end of an edit of the manifest, if it is one of these.
    pub(super) fn handle_retirement_edit(&mut self, id: EditId, result: Result<(), DiskError>) {
        let editing = |step: &Step| matches!(step, Step::Editing(edit) if *edit == id);
        let found = self.retirements.iter().position(|retirement| editing(&retirement.step));
        let Some(index) = found else { return };
        let retirement = &mut self.retirements[index];
        if result.is_err() {
            let since_ns = self.now.monotonic_ns.saturating_add(RETRY_AFTER_NS);
            retirement.step = Step::Waiting { since_ns };
            return;
        }
        let Some(segment) = self.catalog.segments.get(retirement.number) else { return };
        let (id, file, directory) = (segment.id, segment.file, self.directory.clone());
        let step = if self.may_recycle(segment) {
            let shelve = move |port| segment::shelve(port, directory, id);
            Step::Shelving(Procedure::new(shelve))
        } else {
            let name = segment::file_name(&directory, id);
            Step::Removing(removal(file, name, directory))
        };
        self.retirements[index].step = step;
        self.pump_removals();
    }

    /// Whether the file of a segment that the durable manifest does not list may be written again:
    /// no snapshot ever linked it, and nobody reads it.
    fn may_recycle(&self, segment: &Segment) -> bool {
        let linked = self.snapshots.may_be_linked(segment.id);
        segment.len <= self.segment_bytes
            && (!linked || is_planted(Mutation::LinkedFileRecycled))
            && !self.reads.is_reading(segment.id)
            && !self.scrub.is_reading(segment.id)
    }

    /// Hands a segment that was shelved to the supply. False if it is of no use there: then it is
    /// to be removed.
    fn recycle(&mut self, number: SegmentNumber) -> bool {
        let Some(segment) = self.catalog.segments.get(number) else { return true };
        let freed = OpenSegment { id: segment.id, file: segment.file, len: segment.len };
        if self.may_recycle(segment) && self.supply.offer(freed).is_none() {
            self.compaction.counters.segments_recycled += 1;
            return true;
        }
        let name = segment::shelved_name(&self.directory, freed.id);
        let removing = removal(freed.file, name, self.directory.clone());
        let mut retirements = self.retirements.iter_mut();
        if let Some(retirement) = retirements.find(|retirement| retirement.number == number) {
            retirement.step = Step::Removing(removing);
        }
        false
    }

    /// Hands out the requests of removals, and forgets segments that are gone.
    pub(super) fn pump_removals(&mut self) {
        let mut outgoing = Vec::new();
        let (mut gone, mut shelved) = (Vec::new(), Vec::new());
        let mut stuck = false;
        for retirement in &mut self.retirements {
            let (done, procedure) = match &mut retirement.step {
                Step::Shelving(shelving) => (&mut shelved, shelving),
                Step::Removing(removing) => (&mut gone, removing),
                _ => continue,
            };
            while let Some(request) = procedure.poll_request() {
                outgoing.push((retirement.id, request));
            }
            match procedure.take_output() {
                Some(Ok(())) => done.push(retirement.number),
                Some(Err(_)) => {
                    retirement.step = Step::Stuck;
                    stuck = true;
                }
                None => {}
            }
        }
        for (id, request) in outgoing {
            self.submit(Source::Removal(id, request.id), request.operation);
        }
        let shelved_count = shelved.len();
        shelved.retain(|number| self.recycle(*number));
        let refused = shelved.len() < shelved_count;
        gone.append(&mut shelved);
        let news = stuck || !gone.is_empty();
        for number in gone {
            self.retirements.retain(|retirement| retirement.number != number);
            if let Some(segment) = self.catalog.segments.get(number) {
                self.scrub.forget(segment.id);
                self.compaction.counters.segments_freed += 1;
                self.compaction.counters.bytes_freed += segment.len;
                self.snapshots.forget(segment.id);
            }
            self.resolved.forget_segment(number);
            self.catalog.remove_segment(number);
            self.supply.retry_now();
        }
        if news {
            self.handle_room();
        }
        if refused {
            self.pump_removals();
        }
    }

    pub(super) fn handle_removal(
        &mut self,
        id: u64,
        inner: RequestId,
        completion: wal::disk::DiskCompletion,
    ) {
        let found = self.retirements.iter_mut().find(|retirement| retirement.id == id);
        if let Some(Retirement {
            step: Step::Shelving(under_way) | Step::Removing(under_way),
            ..
        }) = found
        {
            under_way.handle_disk(wal::disk::DiskCompletion { id: inner, ..completion });
        }
        self.pump_removals();
    }
}

fn removal(file: FileId, name: FileName, directory: FileName) -> Procedure<Result<(), DiskError>> {
    Procedure::new(move |port| async move {
        port.call(DiskOperation::Close { file }).await?;
        port.call(DiskOperation::Remove { name }).await?;
        port.call(DiskOperation::SyncDirectory { name: directory }).await?;
        Ok(())
    })
}

/// Takes a segment out of the manifest; its records' numbers are not missing, they are gone.
fn free(manifest: &mut Manifest, id: u64, lsns: Option<(Lsn, Lsn)>, durable_lsn: Lsn) {
    manifest.segments.retain(|segment| segment.id != id);
    manifest.durable_lsn = manifest.durable_lsn.max(durable_lsn);
    let Some((first_lsn, last_lsn)) = lsns else { return };
    let range =
        Quarantine { segment: id, offset: 0, len: 0, first_lsn, last_lsn, verdict: Verdict::Freed };
    let is_freed = |range: &Quarantine| range.verdict == Verdict::Freed;
    let (mut freed, mut others): (Vec<_>, Vec<_>) =
        manifest.quarantine.drain(..).partition(is_freed);
    freed.push(range);
    freed.sort_unstable_by_key(|range| range.first_lsn);
    let mut merged: Vec<Quarantine> = Vec::new();
    for next in freed {
        match merged.last_mut() {
            Some(last) if next.first_lsn <= last.last_lsn.next() => {
                last.last_lsn = last.last_lsn.max(next.last_lsn);
            }
            _ => merged.push(next),
        }
    }
    others.extend(merged);
    manifest.quarantine = others;
}

#[cfg(test)]
mod tests {
    use wal::segment::Identity;

    use super::*;

    #[test]
    fn freed_records_that_touch_are_kept_as_one_range() {
        let mut manifest = Manifest {
            identity: Identity { store: [1; 16], node_id: [2; 20], shard: 0, shard_count: 1 },
            sequence: 1,
            next_segment: 7,
            durable_lsn: Lsn::ZERO,
            segments: Vec::new(),
            quarantine: Vec::new(),
            checkpoint: None,
        };
        for (id, (first, last)) in (0..).zip([(1, 10), (21, 30), (41, 50), (11, 20), (31, 35)]) {
            free(&mut manifest, id, Some((Lsn(first), Lsn(last))), Lsn(last));
        }
        let ranges = manifest.quarantine.iter();
        let ranges: Vec<_> = ranges.map(|range| (range.first_lsn.0, range.last_lsn.0)).collect();
        assert_eq!(ranges, [(1, 35), (41, 50)]);
        assert_eq!(manifest.durable_lsn, Lsn(50));
    }
}
