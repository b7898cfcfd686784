//! The manifest of an open store. Several procedures change it; their edits are saved one at a
//! time, both copies each, and each procedure hears when its own is durable.

use std::collections::VecDeque;

use wal::disk::{DiskCompletion, DiskError, DiskRequest};
use wal::manifest::{self, Manifest, SaveError};
use wal::procedure::Procedure;

use crate::recovery::MANIFEST_FILES;

/// Names an edit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct EditId(u64);

type Edit = Box<dyn FnOnce(&mut Manifest)>;

/// Keeps the manifest and saves its edits in the order they came.
pub(super) struct ManifestKeeper {
    /// As the whole copy on disk has it.
    manifest: Manifest,
    /// The copy to overwrite first: after a failure the other one is the whole one.
    older_copy: usize,
    next: u64,
    queue: VecDeque<(EditId, Edit)>,
    saving: Option<Saving>,
    done: VecDeque<(EditId, Result<(), DiskError>)>,
}

struct Saving {
    id: EditId,
    edited: Manifest,
    procedure: Procedure<Result<(), SaveError>>,
}

impl ManifestKeeper {
    pub(super) fn new(manifest: Manifest) -> Self {
        Self {
            manifest,
            older_copy: 0,
            next: 0,
            queue: VecDeque::new(),
            saving: None,
            done: VecDeque::new(),
        }
    }

    /// The manifest as it was saved last.
    pub(super) fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Takes the next segment id; it is used up even if nothing comes of it.
    pub(super) fn take_segment_id(&mut self) -> u64 {
        let id = self.manifest.next_segment;
        self.manifest.next_segment += 1;
        id
    }

    /// Queues an edit; [`ManifestKeeper::take_done`] tells its end. An edit that could not be saved
    /// is not made.
    pub(super) fn edit(&mut self, edit: impl FnOnce(&mut Manifest) + 'static) -> EditId {
        let id = EditId(self.next);
        self.next += 1;
        self.queue.push_back((id, Box::new(edit)));
        self.start();
        id
    }

    pub(super) fn take_done(&mut self) -> Option<(EditId, Result<(), DiskError>)> {
        self.done.pop_front()
    }

    pub(super) fn poll_request(&mut self) -> Option<DiskRequest> {
        self.saving.as_mut()?.procedure.poll_request()
    }

    pub(super) fn handle_disk(&mut self, completion: DiskCompletion) {
        let saving = self.saving.as_mut().expect("a completion belongs to the save under way");
        saving.procedure.handle_disk(completion);
        let Some(result) = saving.procedure.take_output() else { return };
        let Some(Saving { id, mut edited, .. }) = self.saving.take() else { return };
        edited.next_segment = edited.next_segment.max(self.manifest.next_segment);
        match result {
            Ok(()) => {
                self.manifest = edited;
                self.done.push_back((id, Ok(())));
            }
            Err(SaveError { copy, source }) => {
                self.older_copy = copy;
                // A sequence number never has two meanings, whichever copy got it.
                self.manifest.sequence = edited.sequence;
                self.done.push_back((id, Err(source)));
            }
        }
        self.start();
    }

    fn start(&mut self) {
        if self.saving.is_some() {
            return;
        }
        let Some((id, edit)) = self.queue.pop_front() else { return };
        let mut edited = self.manifest.clone();
        edited.sequence += 1;
        edit(&mut edited);
        let (older, content) = (self.older_copy, edited.clone());
        let procedure =
            Procedure::new(move |port| manifest::save(port, MANIFEST_FILES, older, content));
        self.saving = Some(Saving { id, edited, procedure });
    }
}
