//! What the benches share: flags, the line that names the machine, latencies, CPU time, interleaved
//! repeats, ratios and tables.
//!
//! Contestants take turns (A B A B ...), so that a noisy neighbour or a change of clock speed hits
//! them alike. A rate is the median of the repeats. A ratio is the ratio of two medians; beside it
//! stand the least and the greatest ratio within one repeat.

#![expect(clippy::disallowed_methods, reason = "a bench reads the clock")]
#![expect(clippy::print_stdout, reason = "a bench prints its result")]

use hdrhistogram::Histogram;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// Longest latency that is told apart from longer ones.
const LATENCY_MAX: Duration = Duration::from_secs(60);

/// Flags of every bench.
#[derive(Clone, Debug, clap::Args)]
pub struct Flags {
    /// Only show that it runs, in a few seconds; the figures mean nothing.
    #[arg(long)]
    pub smoke: bool,
    /// Where the data goes, in a temporary directory below it [default: beside the executables].
    #[arg(long, value_name = "D")]
    pub directory: Option<PathBuf>,
    /// Given by `cargo bench`.
    #[arg(long, hide = true)]
    bench: bool,
}

impl Flags {
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

/// Describes what the figures depend on: kernel, processor, disk under `directory`, commit.
#[must_use]
pub fn machine_line(directory: &Path) -> String {
    let kernel = rustix::system::uname().release().to_string_lossy().into_owned();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let congestion = read("/proc/sys/net/ipv4/tcp_congestion_control");
    format!(
        "Linux {kernel}, {} ({cores} cores), {}, TCP {}, commit {}",
        processor(),
        file_system(directory),
        congestion.trim(),
        commit()
    )
}

fn read(path: impl AsRef<Path>) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

fn processor() -> String {
    let info = read("/proc/cpuinfo");
    let model = info.lines().find(|line| line.starts_with("model name"));
    let name = model.and_then(|line| line.split_once(':')).map(|(_, name)| name.trim().to_owned());
    name.unwrap_or_else(|| std::env::consts::ARCH.to_owned())
}

/// File system type and device of the mount that holds `directory`.
fn file_system(directory: &Path) -> String {
    let Ok(directory) = directory.canonicalize() else {
        return "unknown disk".to_owned();
    };
    let mounts = read("/proc/self/mountinfo");
    let holds = |line: &&str| line.split(' ').nth(4).is_some_and(|at| directory.starts_with(at));
    let best = mounts.lines().filter(holds).max_by_key(|line| line.split(' ').nth(4).map(str::len));
    let named = best.and_then(|line| line.split_once(" - ")).map(|(_, rest)| rest);
    let mut words = named.unwrap_or("unknown disk").split(' ');
    format!("{} on {}", words.next().unwrap_or("?"), words.next().unwrap_or("?"))
}

fn commit() -> String {
    let git = |arguments: &[&str]| {
        let output = Command::new("git").args(arguments).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let Some(id) = git(&["rev-parse", "--short", "HEAD"]) else {
        return "unknown".to_owned();
    };
    let clean = git(&["status", "--porcelain", "--untracked-files=no"]) == Some(String::new());
    if clean { id } else { format!("{id} with changes") }
}

/// CPU time of this process, all its threads and the kernel's work for them included.
#[must_use]
pub fn cpu_of_self() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// CPU time of another process, all its threads included; in steps of the kernel's tick (10 ms).
///
/// # Panics
/// If there is no such process.
#[must_use]
pub fn cpu_of_process(pid: u32) -> Duration {
    let stat = read(format!("/proc/{pid}/stat"));
    // The name may hold spaces; user and system time are fields 14 and 15, the third follows it.
    let (_, fields) = stat.rsplit_once(") ").expect("the process is running");
    let ticks: u64 = fields.split(' ').skip(11).take(2).filter_map(|f| f.parse::<u64>().ok()).sum();
    Duration::from_secs_f64(ticks as f64 / rustix::param::clock_ticks_per_second() as f64)
}

/// Latencies of many operations.
#[derive(Clone, Debug)]
pub struct Latencies(Histogram<u64>);

impl Default for Latencies {
    fn default() -> Self {
        let max = LATENCY_MAX.as_nanos() as u64;
        Self(Histogram::new_with_bounds(1, max, 3).expect("the bounds are sound"))
    }
}

impl Latencies {
    /// Notes `count` operations that took as long as each other.
    pub fn record(&mut self, latency: Duration, count: u64) {
        self.0.saturating_record_n(latency.as_nanos() as u64, count);
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// The latency in microseconds that `percent` of the operations did not exceed.
    #[must_use]
    pub fn micros(&self, percent: f64) -> f64 {
        self.0.value_at_percentile(percent) as f64 / 1e3
    }

    fn add(&mut self, other: &Self) {
        self.0.add(&other.0).expect("the bounds are the same");
    }
}

/// What is being measured: started at the end of the warm-up, finished with the last operation.
#[derive(Debug)]
pub struct Measuring {
    started: Instant,
    cpu: Duration,
}

impl Measuring {
    /// Starts; `cpu` is the CPU time used so far by what is measured.
    #[must_use]
    pub fn start(cpu: Duration) -> Self {
        Self { started: Instant::now(), cpu }
    }

    /// Ends; `operations` were done since the start.
    #[must_use]
    pub fn finish(self, cpu: Duration, operations: u64, latencies: Latencies) -> Sample {
        let elapsed = self.started.elapsed().as_secs_f64();
        let count = operations as f64;
        let cpu_micros = cpu.saturating_sub(self.cpu).as_secs_f64() * 1e6 / count.max(1.0);
        Sample { rate: count / elapsed, cpu_micros, latencies }
    }
}

/// One repeat of one contestant.
#[derive(Clone, Debug)]
pub struct Sample {
    /// Operations per second.
    pub rate: f64,
    /// Microseconds of CPU per operation.
    pub cpu_micros: f64,
    /// Latencies of its operations.
    pub latencies: Latencies,
}

/// All repeats of one contestant.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    rates: Vec<f64>,
    cpu_micros: Vec<f64>,
    latencies: Latencies,
}

impl Summary {
    fn add(&mut self, sample: &Sample) {
        self.rates.push(sample.rate);
        self.cpu_micros.push(sample.cpu_micros);
        self.latencies.add(&sample.latencies);
    }

    /// Median of operations per second.
    #[must_use]
    pub fn rate(&self) -> f64 {
        median(&self.rates)
    }

    /// How this rate compares with another contestant's in the same repeats.
    ///
    /// # Panics
    /// If one of them has not been measured.
    #[must_use]
    pub fn ratio_to(&self, other: &Self) -> Ratio {
        let each = self.rates.iter().zip(&other.rates).map(|(own, other)| own / other);
        let mut each: Vec<f64> = each.collect();
        each.sort_by(f64::total_cmp);
        let (min, max) = (each.first().copied(), each.last().copied());
        Ratio {
            of_medians: self.rate() / other.rate(),
            min: min.expect("contestants are measured"),
            max: max.expect("contestants are measured"),
        }
    }

    /// Rate, p50, p99 and p99.9 in microseconds, CPU in microseconds: the cells of
    /// [`SUMMARY_COLUMNS`].
    #[must_use]
    pub fn cells(&self) -> [String; 5] {
        let latency = |percent| format!("{:.0}", self.latencies.micros(percent));
        let cpu = format!("{:.2}", median(&self.cpu_micros));
        [format!("{:.0}", self.rate()), latency(50.0), latency(99.0), latency(99.9), cpu]
    }
}

/// Heads of [`Summary::cells`].
pub const SUMMARY_COLUMNS: [&str; 5] = ["ops/s", "p50 us", "p99 us", "p99.9 us", "CPU us/op"];

/// One rate divided by another.
#[derive(Clone, Copy, Debug)]
pub struct Ratio {
    /// Of the medians.
    pub of_medians: f64,
    /// Least within one repeat.
    pub min: f64,
    /// Greatest within one repeat.
    pub max: f64,
}

impl fmt::Display for Ratio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.2} ({:.2}-{:.2})", self.of_medians, self.min, self.max)
    }
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
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

/// Prints rows as they come: the first cell to the left, the others to the right.
#[derive(Clone, Copy, Debug)]
pub struct Table {
    /// Width of the first column.
    pub name_width: usize,
    /// Width of the others.
    pub width: usize,
}

impl Table {
    /// Prints a row.
    pub fn row<'a>(&self, name: &str, cells: impl IntoIterator<Item = &'a str>) {
        let mut line = format!("{name:<width$}", width = self.name_width);
        for cell in cells {
            line.push_str(&format!(" {cell:>width$}", width = self.width));
        }
        println!("{}", line.trim_end());
    }
}
