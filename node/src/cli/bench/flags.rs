//! The flags of `kadring bench`.

use super::bench_error::BenchError;
use super::connection::Target;
use super::generator::{Pace, Plan};
use super::workload::{Distribution, Verify, Workload};
use std::ffi::OsString;
use std::io;
use std::net::ToSocketAddrs as _;
use std::path::PathBuf;
use std::time::Duration;

/// What operations do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum CommandChoice {
    Get,
    Set,
    Mixed,
}

/// How keys are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum DistributionChoice {
    Uniform,
    Zipf,
}

/// Flags of `kadring bench`.
#[derive(Clone, Debug, clap::Args)]
pub(in super::super) struct BenchFlags {
    /// Address of the server, as host:port
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:7379")]
    pub(super) server: String,
    /// Password of the server; others on this machine can see it here, unlike in
    /// KADRING_REQUIREPASS
    #[arg(long, value_name = "WORD")]
    password: Option<String>,
    /// File whose one line is the password [env: KADRING_REQUIREPASS_FILE]
    #[arg(long, value_name = "FILE", conflicts_with = "password")]
    requirepass_file: Option<OsString>,
    /// What operations do
    #[arg(long, value_enum, default_value_t = CommandChoice::Mixed)]
    command: CommandChoice,
    /// Share of GET in a mixed load, in percent
    #[arg(long, value_name = "N", default_value_t = 50,
        value_parser = clap::value_parser!(u8).range(0..=100))]
    get_percent: u8,
    /// Bytes of a value
    #[arg(long, value_name = "N", default_value_t = 64,
        value_parser = clap::value_parser!(u32).range(1..=(512 << 20)))]
    value_bytes: u32,
    /// Number of the first key
    #[arg(long, value_name = "N", default_value_t = 0,
        value_parser = clap::value_parser!(u64).range(..=10_000_000_000))]
    first_key: u64,
    /// Number of keys
    #[arg(long, value_name = "N", default_value_t = 100_000)]
    keys: u64,
    /// How keys are chosen
    #[arg(long, value_enum, default_value_t = DistributionChoice::Uniform)]
    distribution: DistributionChoice,
    /// Exponent of zipf, below 1: the greater, the fewer keys are asked for most of the time
    #[arg(long, value_name = "X", default_value_t = 0.99)]
    theta: f64,
    /// Operations on a connection at a time
    #[arg(long, value_name = "N", default_value_t = 1)]
    pipeline: usize,
    /// Number of connections
    #[arg(long, value_name = "N", default_value_t = 50)]
    connections: usize,
    /// Threads among which the connections are divided
    #[arg(long, value_name = "N", default_value_t = 1)]
    threads: usize,
    /// Seconds to measure
    #[arg(long, value_name = "S", default_value_t = 10.0)]
    seconds: f64,
    /// Seconds under the same load before that
    #[arg(long, value_name = "S", default_value_t = 1.0)]
    warm_up: f64,
    /// Open loop: so many operations per second are due, and latency counts from then [default:
    /// closed loop, as fast as the server answers]
    #[arg(long, value_name = "N")]
    rate: Option<f64>,
    /// Store every key first
    #[arg(long)]
    pub(super) load: bool,
    /// Compare values read with what was stored
    #[arg(long)]
    verify: bool,
    /// Process of the server on this machine, to show its CPU time per operation
    #[arg(long, value_name = "PID")]
    server_pid: Option<u32>,
    /// Write the result as JSON
    #[arg(long, value_name = "FILE")]
    pub(super) json: Option<PathBuf>,
    /// Draw the latencies as SVG
    #[arg(long, value_name = "FILE")]
    pub(super) svg: Option<PathBuf>,
}

impl BenchFlags {
    /// The value given for the setting `key`.
    pub(in super::super) fn get(&self, key: &str) -> Option<OsString> {
        match key {
            "requirepass_file" => self.requirepass_file.clone(),
            _ => None,
        }
    }

    /// What the flags ask for; `password` comes from elsewhere.
    pub(super) fn plan(&self, password: Option<String>) -> Result<Plan, BenchError> {
        let found = || self.server.clone();
        let mut addresses = self
            .server
            .to_socket_addrs()
            .map_err(|source| BenchError::Address { found: found(), source })?;
        let address = addresses.next().ok_or_else(|| {
            let source = io::Error::other("no address has that name");
            BenchError::Address { found: found(), source }
        })?;
        let password = self.password.clone().or(password);
        let pace = self.rate.map_or(Pace::Closed, Pace::PerSecond);
        Ok(Plan {
            target: Target { address, password },
            workload: self.workload()?,
            pace,
            pipeline: self.pipeline,
            connections: self.connections,
            threads: self.threads,
            warm_up: seconds(self.warm_up)?,
            duration: seconds(self.seconds)?,
            server_pid: self.server_pid,
        })
    }

    fn workload(&self) -> Result<Workload, BenchError> {
        let distribution = match self.distribution {
            DistributionChoice::Uniform => Distribution::Uniform,
            DistributionChoice::Zipf if (0.0..1.0).contains(&self.theta) => {
                Distribution::Zipf { theta: self.theta }
            }
            DistributionChoice::Zipf => {
                return Err(BenchError::Flags { what: "--theta is at least 0 and below 1" });
            }
        };
        let get_percent = match self.command {
            CommandChoice::Get => 100,
            CommandChoice::Set => 0,
            CommandChoice::Mixed => self.get_percent,
        };
        let verify = if self.verify { Verify::Values } else { Verify::Nothing };
        let value_len = self.value_bytes as usize;
        let (key_first, key_count) = (self.first_key, self.keys);
        Ok(Workload { get_percent, value_len, key_first, key_count, distribution, verify })
    }
}

fn seconds(seconds: f64) -> Result<Duration, BenchError> {
    /// More than anybody waits for, and little enough to count with.
    const YEAR: f64 = 365.0 * 86_400.0;
    if !(0.0..=YEAR).contains(&seconds) {
        return Err(BenchError::Flags { what: "--seconds and --warm-up are at least 0" });
    }
    Ok(Duration::from_secs_f64(seconds))
}
