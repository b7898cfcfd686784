//! What the benches share: flags, the description of the machine, latencies, CPU time, bytes on the
//! disk, interleaved repeats, ratios, tables, result files, plots; and the store on any driver.
//!
//! Contestants take turns (A B A B ...), so that a noisy neighbour or a change of clock speed hits
//! them alike. A rate is the median of the repeats. A ratio is taken within each repeat; shown is
//! the median of these, beside it the least and the greatest.

#![expect(clippy::disallowed_methods, reason = "a bench reads the clock")]
#![expect(clippy::print_stdout, reason = "a bench prints its result")]

mod child;
mod closed_loop;
mod cluster_servers;
mod disk_bytes;
mod driver;
mod figures;
mod fio;
mod leader_log;
mod machine;
mod raw_reads;
mod raw_rig;
mod raw_writes;
mod report;
mod servers;
mod store_rig;
mod sweep;
mod threads;
mod workload;

pub use child::{number, run_again};
pub use closed_loop::ClosedLoop;
pub use cluster_servers::{Servers, is_whole, key_count, wait_until};
pub use disk_bytes::{DiskBytes, DiskCounters};
pub use driver::{AnyIo, DRIVERS, Driver, drivers};
pub use figures::{
    DISK_COLUMNS, DiskUse, Measuring, Ratio, SUMMARY_COLUMNS, Sample, Summary, cpu_of_process,
    cpu_of_self, median,
};
pub use fio::{Fio, FioVerb, has_fio};
pub use kadring::cli::bench::{Axis, Latencies, Plot, Series, Zipf};
pub use leader_log::{LeaderLog, SyncBy};
pub use machine::Machine;
pub use raw_reads::{DataFiles, RawReads};
pub use raw_rig::RawRig;
pub use raw_writes::{FrameCounts, LOG_IDENTITY, LogRig, RawWrites};
pub use report::{Report, Table};
pub use servers::{
    Server, ServerFlags, Starter, fill, measure, sum_in_info, uniform, unpin,
    warn_of_busy_generator,
};
pub use store_rig::{Got, OpenTimes, ReadEnd, RigOptions, RigStatus, StoreRig, Wait};
pub use sweep::Sweep;
pub use workload::{Choice, USER_KEY_LEN, VALUE_LEN_MIN, Values, key};

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Flags of every bench.
#[derive(Clone, Debug, clap::Args)]
pub struct Flags {
    /// Only show that it runs, in a few seconds; the figures mean nothing.
    #[arg(long)]
    pub smoke: bool,
    /// Where the data goes, in a temporary directory below it [default: beside the executables].
    #[arg(long, value_name = "D")]
    pub directory: Option<PathBuf>,
    /// How long each contestant is measured at a time [default: the bench's own].
    #[arg(long, value_name = "S")]
    pub seconds: Option<f64>,
    /// How often they take turns [default: the bench's own].
    #[arg(long, value_name = "N")]
    pub repeats: Option<usize>,
    /// Given by `cargo bench`.
    #[arg(long, hide = true)]
    bench: bool,
}

/// How long and how often each contestant is measured.
#[derive(Clone, Copy, Debug)]
pub struct Turns {
    /// Before each measurement.
    pub warm_up: Duration,
    /// Of each measurement.
    pub duration: Duration,
    /// Number of measurements.
    pub repeats: usize,
}

impl Flags {
    /// What the flags say, or 20 ms twice in a smoke run, or the bench's own.
    ///
    /// # Panics
    /// If `--seconds` is no duration.
    #[must_use]
    pub fn turns(&self, seconds: f64, repeats: usize) -> Turns {
        let (seconds, repeats) = if self.smoke { (0.02, 2) } else { (seconds, repeats) };
        let duration = Duration::from_secs_f64(self.seconds.unwrap_or(seconds));
        let repeats = self.repeats.unwrap_or(repeats).max(1);
        Turns { warm_up: duration / 10, duration, repeats }
    }

    /// Makes the temporary directory for the data; dropping it removes it.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn scratch(&self) -> io::Result<tempfile::TempDir> {
        let parent = self.directory.clone().map_or_else(executables, Ok)?;
        tempfile::Builder::new().prefix("kadring-bench-").tempdir_in(parent)
    }
}

/// The directory cargo puts executables into; on the disk of the checkout, unlike `/tmp` at times.
///
/// # Errors
/// If the kernel does not tell where this executable is.
pub fn executables() -> io::Result<PathBuf> {
    let own = std::env::current_exe()?;
    // An executable of a bench lies in `deps` below it.
    let directory = own.parent().and_then(Path::parent);
    Ok(directory.unwrap_or_else(|| Path::new(".")).to_owned())
}

/// Lets `contestants` take turns for `repeats` rounds; `run` measures the one of that index once.
pub fn interleave(
    contestants: usize,
    repeats: usize,
    mut run: impl FnMut(usize) -> Sample,
) -> Vec<Summary> {
    let mut summaries = vec![Summary::default(); contestants];
    for _ in 0..repeats {
        for (index, summary) in summaries.iter_mut().enumerate() {
            summary.add(&run(index));
        }
    }
    summaries
}
