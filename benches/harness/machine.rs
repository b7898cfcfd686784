//! What the figures depend on: kernel, processor, memory, disk, file system, commit, load.

use serde_json::{Map, Value};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The machine, as far as it decides what a bench measures.
#[derive(Clone, Debug)]
pub struct Machine {
    facts: Map<String, Value>,
}

impl Machine {
    /// Looks at this machine and at the disk under `directory`.
    #[must_use]
    pub fn look(directory: &Path) -> Self {
        let mut facts = Map::new();
        let mut note = |name: &str, value: Value| facts.insert(name.to_owned(), value);
        let kernel = rustix::system::uname().release().to_string_lossy().into_owned();
        note("kernel", kernel.into());
        note("processor", processor().into());
        note("cores", std::thread::available_parallelism().map_or(1, usize::from).into());
        note("memory_mib", memory_mib().into());
        let (file_system, source, options) = mount(directory);
        note("file_system", file_system.into());
        note("mount_options", options.into());
        let device = device_of(&source);
        let queue = |name: &str| device.as_ref().map_or_else(String::new, |at| queue(at, name));
        note("disk", source.into());
        note("disk_model", device.as_deref().map_or_else(String::new, model).into());
        note("disk_scheduler", queue("scheduler").into());
        note("disk_write_cache", queue("write_cache").into());
        note("disk_logical_block", queue("logical_block_size").into());
        note("disk_rotational", queue("rotational").into());
        note("tcp", read("/proc/sys/net/ipv4/tcp_congestion_control").trim().into());
        note("load", load().into());
        note("cpu_pressure_percent", cpu_pressure().into());
        note("commit", commit().into());
        Self { facts }
    }

    /// All of it, for a file.
    #[must_use]
    pub fn json(&self) -> Value {
        Value::Object(self.facts.clone())
    }

    /// The main part of it, for a reader.
    #[must_use]
    pub fn line(&self) -> String {
        let fact = |name: &str| {
            let value = self.facts.get(name).unwrap_or(&Value::Null);
            value.as_str().map_or_else(|| value.to_string(), str::to_owned)
        };
        format!(
            "Linux {}, {} ({} cores), {} on {} ({}, {}, {}), TCP {}, load {}, commit {}",
            fact("kernel"),
            fact("processor"),
            fact("cores"),
            fact("file_system"),
            fact("disk"),
            fact("disk_model"),
            fact("disk_scheduler"),
            fact("disk_write_cache"),
            fact("tcp"),
            fact("load"),
            fact("commit")
        )
    }
}

/// Where the kernel tells about the block device under `directory`, if there is one.
#[must_use]
pub(crate) fn block_device(directory: &Path) -> Option<PathBuf> {
    device_of(&mount(directory).1)
}

/// How many threads wanted to run in the last minute: who disturbs.
#[must_use]
pub(crate) fn load() -> String {
    read("/proc/loadavg").split(' ').next().unwrap_or("?").to_owned()
}

/// Share of the last 10 seconds, in percent, in which some thread waited for a processor.
#[must_use]
pub(crate) fn cpu_pressure() -> f64 {
    let text = read("/proc/pressure/cpu");
    let figure = text.split_once("avg10=").and_then(|(_, rest)| rest.split(' ').next());
    figure.and_then(|figure| figure.parse().ok()).unwrap_or(0.0)
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

fn memory_mib() -> u64 {
    let info = read("/proc/meminfo");
    let total = info.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kib = total.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) / 1024
}

/// File system, device and options of the mount that holds `directory`.
fn mount(directory: &Path) -> (String, String, String) {
    let Ok(directory) = directory.canonicalize() else {
        return ("unknown".to_owned(), "unknown disk".to_owned(), String::new());
    };
    let mounts = read("/proc/self/mountinfo");
    let holds = |line: &&str| line.split(' ').nth(4).is_some_and(|at| directory.starts_with(at));
    // Of two mounts at one place the later hides the earlier; the last of equals is taken.
    let best = mounts.lines().filter(holds).max_by_key(|line| line.split(' ').nth(4).map(str::len));
    let (place, rest) = best.and_then(|line| line.split_once(" - ")).unwrap_or_default();
    let options = place.split(' ').nth(5).unwrap_or_default();
    let mut words = rest.split(' ').map(str::to_owned);
    let mut word = || words.next().unwrap_or_else(|| "?".to_owned());
    (word(), word(), options.to_owned())
}

fn device_of(source: &str) -> Option<PathBuf> {
    let device = Path::new(source).canonicalize().ok()?;
    let at = Path::new("/sys/class/block").join(device.file_name()?);
    // Resolved, so that the disk is the parent of a partition.
    device.starts_with("/dev").then(|| at.canonicalize().ok()).flatten()
}

/// A setting of the disk's queue; a partition has its disk's.
fn queue(device: &Path, name: &str) -> String {
    let own = read(device.join("queue").join(name));
    let text = if own.is_empty() { read(device.join("../queue").join(name)) } else { own };
    text.trim().to_owned()
}

fn model(device: &Path) -> String {
    let names = ["device/model", "../device/model", "device/modalias", "../device/modalias"];
    let mut found = names.iter().map(|name| read(device.join(name)).trim().to_owned());
    found.find(|text| !text.is_empty()).unwrap_or_else(|| "unknown model".to_owned())
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
