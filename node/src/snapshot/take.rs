//! [`SnapshotTaker`]: one snapshot over all shards of a running node.
//!
//! ```text
//! order -> .ID.unfinished/ made -> every shard links its segments into its own folder of it
//!       -> catalog written -> renamed to ID/, synced -> order ended
//! ```
//!
//! A snapshot is there once its directory has its name. What a failure left is removed at once,
//! what a crash left by the next start ([`at_rest::remove_unfinished`](super::at_rest)). It does no
//! I/O: its disk requests go out under [`SNAPSHOT_OWNER`].

use storage::SnapshotFile;
use wal::disk::{DiskCompletion, DiskError, DiskErrorKind, DiskOperation, DiskOutput, DiskRequest};
use wal::disk::{Durability, FileId, FileName, IoBuffer, OpenMode};
use wal::procedure::{DiskPort, Procedure};

use super::{
    CATALOG_FILE, Catalog, CatalogFile, SNAPSHOTS_DIRECTORY, SnapshotFacts, unfinished_name,
};
use crate::config::SHARDS_MAX;
use crate::io::DiskOwner;
use crate::keyspace::{Keyspace, ShardIndex};
use crate::node::shard_directory;
use crate::resp::door::{OrderEnd, OrderId};

/// Whose the disk requests of a [`SnapshotTaker`] are: above all shards.
pub const SNAPSHOT_OWNER: DiskOwner = DiskOwner(SHARDS_MAX);
/// The only file it opens, one at a time.
const FILE: FileId = FileId(0);

/// Why no snapshot was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refusal {
    Exists,
    Disk(DiskError),
}

impl From<DiskError> for Refusal {
    fn from(error: DiskError) -> Self {
        Self::Disk(error)
    }
}

impl Refusal {
    /// What the client is told.
    fn text(self, id: &str) -> String {
        match self {
            Self::Exists => format!("ERR there is a snapshot {id} already"),
            Self::Disk(DiskError { kind: DiskErrorKind::NoSpace, .. }) => {
                "DISKFULL no space left for a snapshot; free some and try again".to_owned()
            }
            Self::Disk(error) => format!("IOERR the disk could not take the snapshot: {error}"),
        }
    }
}

/// The snapshot being taken.
#[derive(Debug)]
struct Taking {
    order: OrderId,
    id: String,
    created_ms: u64,
    store: [u8; 16],
    shard_count: ShardIndex,
    /// By shard; `None` as long as the shard is at it.
    shards: Vec<Option<Vec<SnapshotFile>>>,
    refusal: Option<Refusal>,
    /// What is known of it once its catalog is made.
    facts: Option<SnapshotFacts>,
    step: Step,
}

#[derive(Debug)]
enum Step {
    Beginning(Procedure<Result<(), Refusal>>),
    Shards,
    Ending(Procedure<Result<(), DiskError>>),
    Discarding(Procedure<()>),
    /// One that was there goes; nothing is taken.
    Deleting(Procedure<Result<(), DiskError>>),
}

/// Takes snapshots, one at a time.
#[derive(Debug, Default)]
pub struct SnapshotTaker {
    taking: Option<Taking>,
    /// The snapshot that the shards of other threads are to join.
    asked: Option<String>,
}

impl SnapshotTaker {
    /// Begins a snapshot called `id`.
    ///
    /// # Panics
    /// If one is being taken already: the door sees to that.
    pub fn begin(&mut self, keyspace: &Keyspace, order: OrderId, id: String) {
        let shard_count = keyspace.spread().shard_count;
        let name = id.clone();
        let step = Step::Beginning(Procedure::new(|port| begin(port, name, shard_count)));
        self.start(keyspace, order, id, step);
    }

    /// Begins to delete the snapshot called `id`.
    ///
    /// # Panics
    /// If one is being taken or deleted: the door sees to that.
    pub fn delete(&mut self, keyspace: &Keyspace, order: OrderId, id: String) {
        let shard_count = keyspace.spread().shard_count;
        let name = id.clone();
        let step = Step::Deleting(Procedure::new(|port| delete(port, name, shard_count)));
        self.start(keyspace, order, id, step);
    }

    fn start(&mut self, keyspace: &Keyspace, order: OrderId, id: String, step: Step) {
        assert!(self.taking.is_none(), "one snapshot is taken or deleted at a time");
        self.taking = Some(Taking {
            order,
            id,
            created_ms: keyspace.now().clock_ms,
            store: keyspace.store(0).identity().store,
            shard_count: keyspace.spread().shard_count,
            shards: Vec::new(),
            refusal: None,
            facts: None,
            step,
        });
    }

    /// Takes the name of the snapshot that other threads are to make their part of with
    /// [`begin_shards`].
    pub fn poll_asked(&mut self) -> Option<String> {
        self.asked.take()
    }

    /// A shard has linked its segments, or has failed to.
    pub fn handle_shard(
        &mut self,
        shard: ShardIndex,
        result: Result<Vec<SnapshotFile>, DiskError>,
    ) {
        let Some(taking) = &mut self.taking else { return };
        let files = result.unwrap_or_else(|error| {
            taking.refusal.get_or_insert(Refusal::Disk(error));
            Vec::new()
        });
        if let Some(entry) = taking.shards.get_mut(usize::from(shard)) {
            *entry = Some(files);
        }
    }

    /// Takes the end of a disk request.
    pub fn handle_disk(&mut self, completion: DiskCompletion) {
        match self.taking.as_mut().map(|taking| &mut taking.step) {
            Some(Step::Beginning(procedure)) => procedure.handle_disk(completion),
            Some(Step::Ending(procedure)) => procedure.handle_disk(completion),
            Some(Step::Discarding(procedure)) => procedure.handle_disk(completion),
            Some(Step::Deleting(procedure)) => procedure.handle_disk(completion),
            Some(Step::Shards) | None => unreachable!("completion of nothing under way"),
        }
    }

    /// Takes the next disk request to carry out.
    pub fn poll_request(&mut self) -> Option<DiskRequest> {
        match &mut self.taking.as_mut()?.step {
            Step::Beginning(procedure) => procedure.poll_request(),
            Step::Ending(procedure) => procedure.poll_request(),
            Step::Discarding(procedure) => procedure.poll_request(),
            Step::Deleting(procedure) => procedure.poll_request(),
            Step::Shards => None,
        }
    }

    /// Goes on with the snapshot. Returns the order that has ended, and how.
    pub fn advance(&mut self, keyspace: &mut Keyspace) -> Option<(OrderId, OrderEnd)> {
        let taking = self.taking.as_mut()?;
        loop {
            match &mut taking.step {
                Step::Beginning(procedure) => match procedure.take_output()? {
                    Ok(()) => {
                        taking.shards = (0..taking.shard_count).map(|_| None).collect();
                        begin_shards(keyspace, &taking.id);
                        self.asked = Some(taking.id.clone());
                        taking.step = Step::Shards;
                    }
                    Err(Refusal::Exists) => return self.end(Some(Refusal::Exists)),
                    Err(refusal) => taking.discard(refusal),
                },
                Step::Shards if taking.shards.iter().any(Option::is_none) => return None,
                Step::Shards => match taking.refusal {
                    Some(refusal) => taking.discard(refusal),
                    None => taking.finish(),
                },
                Step::Ending(procedure) => match procedure.take_output()? {
                    Ok(()) => return self.end(None),
                    Err(error) => taking.discard(error.into()),
                },
                Step::Deleting(procedure) => {
                    let result = procedure.take_output()?;
                    return self.end_deletion(result);
                }
                Step::Discarding(procedure) => {
                    procedure.take_output()?;
                    let refusal = taking.refusal;
                    return self.end(refusal);
                }
            }
        }
    }

    fn end(&mut self, refusal: Option<Refusal>) -> Option<(OrderId, OrderEnd)> {
        let Taking { order, id, facts, .. } = self.taking.take()?;
        let end = match (refusal, facts) {
            (Some(refusal), _) => OrderEnd::Failed(refusal.text(&id)),
            (None, Some(facts)) => OrderEnd::Taken(facts),
            (None, None) => OrderEnd::Done,
        };
        if refusal.is_none() {
            tracing::info!(id, "snapshot taken");
        }
        Some((order, end))
    }

    fn end_deletion(&mut self, result: Result<(), DiskError>) -> Option<(OrderId, OrderEnd)> {
        let Taking { order, id, .. } = self.taking.take()?;
        let end = match result {
            Ok(()) => {
                tracing::info!(id, "snapshot deleted");
                OrderEnd::Done
            }
            Err(error) if error.kind == DiskErrorKind::NotFound => OrderEnd::Missing,
            Err(error) => OrderEnd::Failed(format!("IOERR the snapshot is still there: {error}")),
        };
        Some((order, end))
    }
}

/// Has the shards of this thread make their part of a snapshot.
pub fn begin_shards(keyspace: &mut Keyspace, id: &str) {
    for shard in keyspace.shards() {
        keyspace.store_mut(shard).snapshot(shard_of(id, shard));
    }
}

impl Taking {
    fn discard(&mut self, refusal: Refusal) {
        self.refusal = Some(refusal);
        let (directory, shard_count) = (unfinished(&self.id), self.shard_count);
        let discarding = Procedure::new(move |port| async move {
            discard(&port, &directory, shard_count).await;
        });
        self.step = Step::Discarding(discarding);
    }

    fn finish(&mut self) {
        let mut files = Vec::new();
        for (shard, linked) in (0..).zip(&mut self.shards) {
            let directory = shard_directory(shard);
            for SnapshotFile { name, len, content } in linked.take().unwrap_or_default() {
                let name = directory.join(&name).as_str().to_owned();
                files.push(CatalogFile { name, len, content });
            }
        }
        let (id, created_ms, store) = (self.id.clone(), self.created_ms, self.store);
        let catalog = Catalog { id, created_ms, store, files };
        self.facts = Some(SnapshotFacts::from(&catalog));
        let catalog = catalog.encode_blocks();
        let id = self.id.clone();
        self.step = Step::Ending(Procedure::new(|port| end(port, id, catalog)));
    }
}

fn snapshots() -> FileName {
    FileName::new(SNAPSHOTS_DIRECTORY)
}

/// Where a snapshot is made.
fn unfinished(id: &str) -> FileName {
    snapshots().join(&unfinished_name(id))
}

fn shard_of(id: &str, shard: ShardIndex) -> FileName {
    unfinished(id).join(shard_directory(shard).as_str())
}

async fn begin(port: DiskPort, id: String, shard_count: ShardIndex) -> Result<(), Refusal> {
    let name = snapshots().join(&id).join(CATALOG_FILE);
    match port.call(DiskOperation::Open { file: FILE, name, mode: OpenMode::Read }).await {
        Ok(_) => {
            port.call(DiskOperation::Close { file: FILE }).await?;
            return Err(Refusal::Exists);
        }
        Err(error) if error.kind == DiskErrorKind::NotFound => {}
        Err(error) => return Err(error.into()),
    }
    // One of that name may have failed and not have been removed whole.
    discard(&port, &unfinished(&id), shard_count).await;
    port.call(DiskOperation::CreateDirectory { name: snapshots() }).await?;
    port.call(DiskOperation::SyncDirectory { name: snapshots().parent() }).await?;
    port.call(DiskOperation::CreateDirectory { name: unfinished(&id) }).await?;
    Ok(())
}

/// Writes the catalog and gives the snapshot its name.
async fn end(port: DiskPort, id: String, catalog: String) -> Result<(), DiskError> {
    let (directory, file) = (unfinished(&id), FILE);
    let name = directory.join(CATALOG_FILE);
    let mut buffer = IoBuffer::with_capacity(catalog.len());
    buffer.extend_from_slice(catalog.as_bytes());
    port.call(DiskOperation::Open { file, name, mode: OpenMode::Create }).await?;
    let durability = Durability::Cached;
    let write = DiskOperation::Write { file, offset: 0, buffer, durability };
    let mut result = port.start(write).await.result.map(|_| ());
    if result.is_ok() {
        result = port.call(DiskOperation::Sync { file }).await.map(|_| ());
    }
    let closed = port.call(DiskOperation::Close { file }).await.map(|_| ());
    result.and(closed)?;
    port.call(DiskOperation::SyncDirectory { name: directory.clone() }).await?;
    port.call(DiskOperation::Rename { from: directory, to: snapshots().join(&id) }).await?;
    port.call(DiskOperation::SyncDirectory { name: snapshots() }).await?;
    Ok(())
}

/// Takes the snapshot its name, then its files. Shards that the store does not have are no part of
/// its snapshots.
async fn delete(port: DiskPort, id: String, shard_count: ShardIndex) -> Result<(), DiskError> {
    let (directory, doomed) = (snapshots().join(&id), unfinished(&id));
    // The name must be free: what an earlier failure left goes first.
    discard(&port, &doomed, shard_count).await;
    port.call(DiskOperation::Rename { from: directory, to: doomed.clone() }).await?;
    port.call(DiskOperation::SyncDirectory { name: snapshots() }).await?;
    // What is left of it, if anything is, goes at the next start.
    discard(&port, &doomed, shard_count).await;
    Ok(())
}

/// Removes what there is of an unfinished snapshot, as far as that is possible.
async fn discard(port: &DiskPort, directory: &FileName, shard_count: ShardIndex) {
    for shard in 0..shard_count {
        let name = directory.join(shard_directory(shard).as_str());
        let listed = port.call(DiskOperation::ListDirectory { name: name.clone() }).await;
        let Ok(DiskOutput::Listed(files)) = listed else { continue };
        for (file, _) in files {
            let _ = port.call(DiskOperation::Remove { name: name.join(&file) }).await;
        }
        let _ = port.call(DiskOperation::RemoveDirectory { name }).await;
    }
    let _ = port.call(DiskOperation::Remove { name: directory.join(CATALOG_FILE) }).await;
    let _ = port.call(DiskOperation::RemoveDirectory { name: directory.clone() }).await;
}
