//! [`Wire`]: what lies between the store and its disk. A planted bug sits here, as far as a store
//! with that bug cannot be told from a sound one behind such a wire.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use fastrand::Rng;
use wal::checksum::Place;
use wal::disk::{
    DiskCompletion, DiskOperation, DiskOutput, DiskRequest, Durability, FileId, FileName, IoBuffer,
    RequestId,
};
use wal::frame::{FRAME_HEADER_LEN, FrameHeader};
use wal::segment;

use super::PlantedBug;
use super::recovery::OWNER;
use crate::disk::{OperationKind, SimulatedDisk};

/// A disk, and a store's way to it.
pub(super) struct Wire {
    pub(super) disk: SimulatedDisk,
    bug: PlantedBug,
    store: [u8; 16],
    rng: Rng,
    names: BTreeMap<FileId, FileName>,
    /// Completions of requests that never reached the disk, or that it has not completed yet.
    ready: VecDeque<DiskCompletion>,
    /// Requests whose completion the store has seen already.
    told: BTreeSet<RequestId>,
    /// What was asked for, in order, if that is to be known.
    pub(super) kinds: Option<Vec<OperationKind>>,
}

impl Wire {
    pub(super) fn new(disk: SimulatedDisk, store: [u8; 16], bug: PlantedBug, rng: Rng) -> Self {
        Self {
            disk,
            bug,
            store,
            rng,
            names: BTreeMap::new(),
            ready: VecDeque::new(),
            told: BTreeSet::new(),
            kinds: None,
        }
    }

    /// Goes on with what a crash has left.
    pub(super) fn restart(&mut self, disk: SimulatedDisk) {
        self.disk = disk;
        self.names.clear();
        self.ready.clear();
        self.told.clear();
    }

    /// Number of requests that have not come back.
    pub(super) fn in_flight(&self) -> usize {
        self.disk.in_flight() + self.ready.len() - self.told.len()
    }

    /// Hands a request to the disk, as far as the bug lets it through.
    pub(super) fn submit(&mut self, mut request: DiskRequest) {
        match &request.operation {
            DiskOperation::Open { file, name, .. } => {
                self.names.insert(*file, name.clone());
            }
            DiskOperation::Rename { from, to } => {
                for name in self.names.values_mut().filter(|name| *name == from) {
                    name.clone_from(to);
                }
            }
            _ => {}
        }
        self.note_kind(&request.operation);
        if self.plant(&mut request) {
            self.disk.submit(OWNER, request);
        }
    }

    /// Notes what was asked for.
    pub(super) fn note_kind(&mut self, operation: &DiskOperation) {
        if let Some(kinds) = &mut self.kinds {
            kinds.push(OperationKind::of(operation));
        }
    }

    /// Takes a completion; which one is up to the disk's seed.
    pub(super) fn complete(&mut self) -> Option<DiskCompletion> {
        if let Some(completion) = self.ready.pop_front() {
            return Some(completion);
        }
        loop {
            let completion = self.disk.complete_one_of(OWNER)?;
            if !self.told.remove(&completion.id) {
                return Some(completion);
            }
        }
    }

    /// Commits the bug; false if the request shall not reach the disk.
    fn plant(&mut self, request: &mut DiskRequest) -> bool {
        let id = request.id;
        let done = DiskCompletion { id, result: Ok(DiskOutput::Done), buffer: None };
        match (self.bug, &mut request.operation) {
            (PlantedBug::IgnoresSyncDirectory, DiskOperation::SyncDirectory { .. })
            | (PlantedBug::IgnoresSync, DiskOperation::Sync { .. }) => {
                self.ready.push_back(done);
                return false;
            }
            (PlantedBug::AcknowledgesCachedWrites, DiskOperation::Write { durability, .. }) => {
                *durability = Durability::Cached;
            }
            (PlantedBug::LosesDurableWrites, DiskOperation::Write { durability, .. })
                if *durability == Durability::Durable && self.rng.u8(..4) == 0 =>
            {
                self.disk.lose_next_write();
            }
            (PlantedBug::AcknowledgesEarly, operation) => {
                if is_frame(operation) {
                    self.told.insert(id);
                    self.ready.push_back(DiskCompletion { buffer: written(operation), ..done });
                } else {
                    self.finish_told();
                }
            }
            (PlantedBug::WatermarkOffByOne, operation) if is_frame(operation) => {
                self.raise_watermark(operation);
            }
            _ => {}
        }
        true
    }

    /// Lets the disk finish what the store believes to be finished: it may be used now.
    fn finish_told(&mut self) {
        while !self.told.is_empty() {
            let Some(completion) = self.disk.complete_one_of(OWNER) else { return };
            if !self.told.remove(&completion.id) {
                self.ready.push_back(completion);
            }
        }
    }

    fn raise_watermark(&self, operation: &mut DiskOperation) {
        let DiskOperation::Write { file, offset, buffer, .. } = operation else { return };
        let name = self.names.get(file).and_then(|name| name.as_str().rsplit('/').next());
        let Some(segment) = name.and_then(segment::parse_file_name) else { return };
        let place = Place { store: self.store, segment, offset: *offset };
        let Some(header) = buffer.as_mut_slice().first_chunk_mut::<FRAME_HEADER_LEN>() else {
            return;
        };
        if let Ok(frame) = FrameHeader::decode(header, &place) {
            let durable_lsn = frame.durable_lsn.plus(1);
            *header = FrameHeader { durable_lsn, ..frame }.encode(&place);
        }
    }
}

/// What a driver gives back of a write: its buffer. This is a copy, as the disk has the buffer yet.
fn written(operation: &DiskOperation) -> Option<IoBuffer> {
    let DiskOperation::Write { buffer, .. } = operation else { return None };
    let mut copy = IoBuffer::with_capacity(buffer.len());
    copy.extend_from_slice(buffer.as_slice());
    Some(copy)
}

fn is_frame(operation: &DiskOperation) -> bool {
    matches!(operation, DiskOperation::Write { durability: Durability::Durable, .. })
}
