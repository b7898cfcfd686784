//! Latencies, CPU time, rates, ratios: what one repeat measures and what several amount to.

use crate::disk_bytes::DiskBytes;
use kadring::cli::bench::{Latencies, Outcome};
use serde_json::{Value, json};
use std::fmt;
use std::time::{Duration, Instant};

/// CPU time of this process, all its threads and the kernel's work for them included.
#[must_use]
pub fn cpu_of_self() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// CPU time of another process; see [`kadring::cli::bench::cpu_of_process`].
///
/// # Panics
/// If there is no such process.
#[must_use]
pub fn cpu_of_process(pid: u32) -> Duration {
    kadring::cli::bench::cpu_of_process(pid).expect("the process is running")
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
        Sample { rate: count / elapsed, cpu_micros, latencies, disk: None }
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
    /// What it had to do with the disk, where that was counted.
    pub disk: Option<DiskUse>,
}

impl From<&Outcome> for Sample {
    fn from(outcome: &Outcome) -> Self {
        Self {
            rate: outcome.rate(),
            cpu_micros: outcome.server_cpu_micros().unwrap_or(f64::NAN),
            latencies: outcome.latencies(),
            disk: None,
        }
    }
}

impl Sample {
    /// Adds what went to and came from the disk meanwhile.
    #[must_use]
    pub fn with_disk(mut self, bytes: DiskBytes, user_bytes: u64) -> Self {
        self.disk = Some(DiskUse { bytes, user_bytes });
        self
    }
}

/// Bytes on the disk, and the bytes of keys and values they were for.
#[derive(Clone, Copy, Debug, Default)]
pub struct DiskUse {
    /// On the disk.
    pub bytes: DiskBytes,
    /// Of keys and values read or written.
    pub user_bytes: u64,
}

impl DiskUse {
    fn add(&mut self, other: &Self) {
        self.user_bytes += other.user_bytes;
        self.bytes.process_read += other.bytes.process_read;
        self.bytes.process_written += other.bytes.process_written;
        self.bytes.device_read += other.bytes.device_read;
        self.bytes.device_written += other.bytes.device_written;
    }

    fn per_user_byte(&self, bytes: u64) -> f64 {
        bytes as f64 / self.user_bytes.max(1) as f64
    }

    /// Bytes on the disk per byte of keys and values.
    #[must_use]
    pub fn json(&self) -> Value {
        json!({
            "user_bytes": self.user_bytes,
            "process_written_per_user_byte": self.per_user_byte(self.bytes.process_written),
            "process_read_per_user_byte": self.per_user_byte(self.bytes.process_read),
            "device_written_per_user_byte": self.per_user_byte(self.bytes.device_written),
            "device_read_per_user_byte": self.per_user_byte(self.bytes.device_read),
        })
    }
}

/// All repeats of one contestant.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    rates: Vec<f64>,
    cpu_micros: Vec<f64>,
    latencies: Latencies,
    disk: Option<DiskUse>,
}

impl Summary {
    pub(crate) fn add(&mut self, sample: &Sample) {
        self.rates.push(sample.rate);
        self.cpu_micros.push(sample.cpu_micros);
        self.latencies.add(&sample.latencies);
        if let Some(used) = &sample.disk {
            self.disk.get_or_insert_default().add(used);
        }
    }

    /// All of it, for a file. CPU microseconds per operation are CPU seconds per million.
    #[must_use]
    pub fn json(&self) -> Value {
        json!({
            "ops_per_s": self.rate(),
            "ops_per_s_each": self.rates,
            "latency": self.latencies.json(),
            "cpu_s_per_million": self.cpu_micros(),
            "disk": self.disk.map(|disk| disk.json()),
        })
    }

    /// Latencies of all its operations.
    #[must_use]
    pub fn latencies(&self) -> &Latencies {
        &self.latencies
    }

    /// The latency in microseconds that `percent` of the operations did not exceed.
    #[must_use]
    pub fn micros(&self, percent: f64) -> f64 {
        self.latencies.micros(percent)
    }

    /// Bytes written and read by this process, and written on the device by anybody, per byte of
    /// keys and values: the cells of [`DISK_COLUMNS`].
    #[must_use]
    pub fn disk_cells(&self) -> [String; 3] {
        let cell = |bytes: fn(&DiskBytes) -> u64| {
            let ratio = self.disk.map(|used| used.per_user_byte(bytes(&used.bytes)));
            ratio.map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.2}"))
        };
        [
            cell(|bytes| bytes.process_written),
            cell(|bytes| bytes.process_read),
            cell(|bytes| bytes.device_written),
        ]
    }

    /// Median of operations per second.
    #[must_use]
    pub fn rate(&self) -> f64 {
        median(&self.rates)
    }

    /// Median of microseconds of CPU per operation. Unlike rates, it hardly depends on who else
    /// wants the processors.
    #[must_use]
    pub fn cpu_micros(&self) -> f64 {
        median(&self.cpu_micros)
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
            median: median(&each),
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
        let cpu = format!("{:.2}", self.cpu_micros());
        [format!("{:.0}", self.rate()), latency(50.0), latency(99.0), latency(99.9), cpu]
    }
}

/// Heads of [`Summary::cells`].
pub const SUMMARY_COLUMNS: [&str; 5] = ["ops/s", "p50 us", "p99 us", "p99.9 us", "CPU us/op"];

/// Heads of [`Summary::disk_cells`].
pub const DISK_COLUMNS: [&str; 3] = ["wr/user B", "rd/user B", "dev wr/u B"];

/// One rate divided by another: within one repeat, where both met the same machine.
#[derive(Clone, Copy, Debug)]
pub struct Ratio {
    /// The median of all repeats.
    pub median: f64,
    /// The least.
    pub min: f64,
    /// The greatest.
    pub max: f64,
    /// For comparison, the median of one's rates by the median of the other's.
    pub of_medians: f64,
}

impl Ratio {
    /// All of it, for a file.
    #[must_use]
    pub fn json(&self) -> Value {
        json!({
            "median": self.median,
            "min": self.min,
            "max": self.max,
            "of_medians": self.of_medians,
        })
    }
}

impl fmt::Display for Ratio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.2} ({:.2}-{:.2})", self.median, self.min, self.max)
    }
}

/// The middle of the values; of two, the greater.
#[must_use]
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}
