//! Every way in which one request of a short trace can fail: EIO, ENOSPC, EDQUOT or a short write
//! at the Nth call, for every N, once or from then on.

use wal::disk::{DiskError, DiskErrorKind};

use super::{Crashes, NthFailure, StoreWorld, Trial};
use crate::disk::OperationKind;
use crate::tally::Tally;

const IO: DiskError = DiskError { kind: DiskErrorKind::Io, code: 5 };
const NO_SPACE: DiskError = DiskError { kind: DiskErrorKind::NoSpace, code: 28 };
const QUOTA: DiskError = DiskError { kind: DiskErrorKind::NoSpace, code: 122 };
const SHORT_WRITE: DiskError = DiskError { kind: DiskErrorKind::ShortWrite, code: 0 };

/// The errors that a request of some kind can end with, beyond those it brings on itself.
#[must_use]
pub(super) fn suitable(kind: OperationKind) -> &'static [DiskError] {
    match kind {
        OperationKind::Write => &[IO, NO_SPACE, QUOTA, SHORT_WRITE],
        OperationKind::Sync
        | OperationKind::SyncDirectory
        | OperationKind::CreateDirectory
        | OperationKind::Rename
        | OperationKind::Link
        | OperationKind::Open => &[IO, NO_SPACE, QUOTA],
        _ => &[IO],
    }
}

/// What the trials of one seed amounted to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ErrorsSummary {
    /// Requests of the trace.
    pub requests: u64,
    /// Runs, each with one failure planned.
    pub runs: u64,
    /// What has gone wrong and what has been done in these.
    pub tally: Tally,
}

/// Runs the trace of a seed once for each request and each way in which that can fail.
///
/// # Errors
/// What the oracle found, with the seed, the failure and the command that repeats it.
pub fn run(
    seed: u64,
    operations: u32,
    only: Option<NthFailure>,
) -> Result<ErrorsSummary, Vec<String>> {
    let trial = Trial { operations, crashes: Crashes::Never, ..Trial::default() };
    let never = NthFailure { nth: u64::MAX, error: IO, sticky: false };
    let mut world = StoreWorld::new(seed, Trial { failure: Some(never), ..trial });
    world.wire.kinds = Some(Vec::new());
    world.live().map_err(|error| vec![format!("without a failure: {error}\nSEED={seed}")])?;
    let kinds = world.wire.kinds.take().unwrap_or_default();
    let mut summary = ErrorsSummary { requests: kinds.len() as u64, ..ErrorsSummary::default() };
    let mut complaints = Vec::new();
    for (nth, kind) in (1..).zip(kinds) {
        for error in suitable(kind) {
            for sticky in [false, true] {
                let failure = NthFailure { nth, error: *error, sticky };
                if only.is_some_and(|only| only != failure) {
                    continue;
                }
                summary.runs += 1;
                let mut world = StoreWorld::new(seed, Trial { failure: Some(failure), ..trial });
                let outcome = world.live();
                summary.tally.merge(&world.summary.tally);
                if let Err(complaint) = outcome {
                    let sticky = if sticky { " --sticky" } else { "" };
                    complaints.push(format!(
                        "{kind:?} fails: {complaint}\nSEED={seed}\n\
                         repeat: cargo run --release -p kadring-tests --bin sim -- errors \
                         --seeds 1 --from {seed} --operations {operations} --nth {nth} \
                         --error {}{sticky}",
                        name_of(*error)
                    ));
                }
            }
        }
    }
    if complaints.is_empty() { Ok(summary) } else { Err(complaints) }
}

/// The errors by the names that the command line knows.
const NAMES: [(&str, DiskError); 4] =
    [("eio", IO), ("enospc", NO_SPACE), ("edquot", QUOTA), ("short", SHORT_WRITE)];

fn name_of(error: DiskError) -> &'static str {
    NAMES.iter().find(|(_, known)| *known == error).map_or("eio", |(name, _)| name)
}

/// The error of that name: `eio`, `enospc`, `edquot` or `short`.
#[must_use]
pub fn named(name: &str) -> Option<DiskError> {
    NAMES.iter().find(|(known, _)| *known == name).map(|(_, error)| *error)
}
