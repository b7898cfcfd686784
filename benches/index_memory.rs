//! How many bytes of memory does the index take per key, at every size, and what does an operation
//! cost?
//!
//! Unit: bytes of resident memory per key, (RSS(N) - RSS(0)) / N, each size in a fresh process;
//! nanoseconds of this thread's CPU time per operation; the longest single operation in
//! microseconds. Expected: 13 B per slot, 310 slots in 4,096 B, pages between 0.86 and 0.97 full
//! (14.4 B on average, 15.4 at worst), 0.06 B of directory. An insertion moves 2 KB and misses the
//! cache three or four times: 300-500 ns at 20 M keys, a lookup 200-300 ns, and up to twice that
//! where each of these misses the TLB too.
//!
//! CPU time instead of wall time, and the longest that is long in two equal runs: the longest
//! operation of a busy machine is otherwise that of its scheduler.
//!
//! `--smoke` only shows that it runs.

#![expect(clippy::print_stdout, reason = "a bench prints its result")]

use clap::Parser;
use kadring_benches::{Flags, Report};
use rustix::time::{ClockId, clock_gettime};
use serde_json::json;
use std::error::Error;
use std::hint::black_box;
use std::io::Write;
use std::process::Command;
use storage::IndexProbe;
use wal::record::Key;

const SIZES: [u64; 5] = [1_000_000, 3_000_000, 10_000_000, 13_000_000, 20_000_000];
const SIZE_SMOKE: u64 = 100_000;
/// Operations whose longest is told.
const KINDS: [&str; 8] = [
    "insert",
    "remove",
    "sweep_1024",
    "begin_cut",
    "cut_page",
    "insert_in_cut",
    "clear",
    "release",
];
/// The bound of the design, in bytes per key.
const BYTES_MAX: f64 = 16.0;
/// The bound of the design on a single operation, in microseconds.
const STEP_MAX_US: f64 = 1_000.0;
const LOOKUPS: u64 = 2_000_000;
/// Operations of the kinds that are only timed for their longest.
const TIMED: u64 = 1_000_000;

#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    flags: Flags,
    /// Measures one size in this process and prints numbers; what a fresh process is started with.
    #[arg(long, hide = true, value_name = "KEYS")]
    memory: Option<u64>,
    /// Times each operation at one size in this process.
    #[arg(long, hide = true, value_name = "KEYS")]
    times: Option<u64>,
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments = Arguments::parse();
    if let Some(keys) = arguments.memory {
        memory(keys);
        return Ok(());
    }
    if let Some(keys) = arguments.times {
        write_times(keys);
        return Ok(());
    }
    let mut report = Report::new("index_memory", &arguments.flags, &std::env::temp_dir())?;
    let sizes: &[u64] = if arguments.flags.smoke { &[SIZE_SMOKE] } else { &SIZES };
    println!(
        "{:>12} {:>10} {:>10} {:>10} {:>10} {:>10}",
        "keys", "B/key", "own B/key", "insert ns", "lookup ns", "miss ns"
    );
    for keys in sizes {
        let row = numbers("--memory", *keys);
        let [rss, own, insert, lookup, miss] = row[..] else { panic!("five numbers: {row:?}") };
        println!("{keys:>12} {rss:>10.2} {own:>10.2} {insert:>10.0} {lookup:>10.0} {miss:>10.0}");
        let row = json!({
            "keys": keys,
            "rss_bytes_per_key": rss,
            "own_bytes_per_key": own,
            "insert_ns": insert,
            "lookup_ns": lookup,
            "miss_ns": miss,
        });
        report.push("rows", row);
        if *keys >= SIZES[0] {
            report.judge(&format!("{keys} keys: at most {BYTES_MAX} B a key"), rss <= BYTES_MAX);
        }
    }
    let keys = sizes[sizes.len() - 1];
    let longest = longest(keys);
    let columns: Vec<String> =
        KINDS.iter().zip(&longest).map(|(name, us)| format!("{name} {us:.0}")).collect();
    println!("longest at {keys} keys, us: {}", columns.join(", "));
    for (name, us) in KINDS.iter().zip(&longest) {
        report.push("longest", json!({ "operation": name, "keys": keys, "us": us }));
    }
    let met = longest.iter().all(|us| *us <= STEP_MAX_US);
    report.judge("no step over 1 ms", met);
    report.finish()
}

/// Runs a mode in a fresh process; what it prints.
fn output(mode: &str, keys: u64) -> Vec<u8> {
    let own = std::env::current_exe().expect("the kernel knows this executable");
    let output = Command::new(own).args([mode, &keys.to_string()]).output().expect("it runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// Runs a mode in a fresh process; the numbers it prints.
fn numbers(mode: &str, keys: u64) -> Vec<f64> {
    let text = String::from_utf8(output(mode, keys)).expect("it prints numbers");
    text.split_whitespace().map(|number| number.parse().expect("a number")).collect()
}

/// The key numbered `serial`: SplitMix64 of it, so that no list of keys is needed.
fn key(serial: u64) -> Key {
    let word = |salt: u64| {
        let mut z = serial.wrapping_add(salt).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    };
    let mut bytes = [0; 20];
    bytes[..8].copy_from_slice(&word(0).to_be_bytes());
    bytes[8..16].copy_from_slice(&word(1 << 40).to_be_bytes());
    Key(bytes)
}

fn rss_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("Linux");
    let pages = statm.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok());
    pages.expect("resident pages") * rustix::param::page_size() as u64
}

/// CPU time of this thread in nanoseconds.
fn cpu_ns() -> u64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec.unsigned_abs() * 1_000_000_000 + time.tv_nsec.unsigned_abs()
}

fn per_operation(count: u64, mut operation: impl FnMut(u64)) -> f64 {
    let start = cpu_ns();
    (0..count).for_each(&mut operation);
    (cpu_ns() - start) as f64 / count as f64
}

fn memory(keys: u64) {
    let mut index = IndexProbe::default();
    let empty = rss_bytes();
    let insert = per_operation(keys, |serial| index.insert(&key(serial), serial));
    let bytes = rss_bytes() - empty;
    assert_eq!(index.slots(), keys, "every insertion adds a slot");
    let mut found = 0;
    let lookup = per_operation(LOOKUPS, |number| {
        let serial = number.wrapping_mul(0x9E37_79B9_7F4A_7C15) % keys;
        found += black_box(index.candidates(&key(serial)));
    });
    assert!(found as u64 >= LOOKUPS, "every key is found");
    let miss = per_operation(LOOKUPS, |number| {
        black_box(index.candidates(&key(keys + 1 + number)));
    });
    let rss = bytes as f64 / keys as f64;
    let own = index.bytes() as f64 / keys as f64;
    println!("{rss:.3} {own:.3} {insert:.1} {lookup:.1} {miss:.1}");
}

/// How long each of `count` operations took, in nanoseconds.
fn times(count: u64, mut operation: impl FnMut(u64)) -> Vec<u32> {
    let mut before = cpu_ns();
    let time = |number| {
        operation(number);
        let after = cpu_ns();
        let elapsed = after - before;
        before = after;
        u32::try_from(elapsed).unwrap_or(u32::MAX)
    };
    (0..count).map(time).collect()
}

/// Times the same operations in two fresh processes; microseconds of the longest by kind.
///
/// What an operation costs, it costs both times; what the machine takes (interrupts, the
/// hypervisor) hits another one the second time. So the lesser of each operation's two times
/// counts; the longest of a single process go to stderr.
fn longest(keys: u64) -> Vec<f64> {
    let mut runs = [output("--times", keys), output("--times", keys)];
    let mut longest = Vec::new();
    for kind in KINDS {
        let [first, second] = runs.each_mut().map(take_times);
        assert_eq!(first.len(), second.len(), "both did the same");
        let pairs = || first.iter().zip(&second);
        let lesser = pairs().map(|(a, b)| *a.min(b)).max().unwrap_or(0);
        let greater = pairs().map(|(a, b)| *a.max(b)).max().unwrap_or(0);
        eprintln!("{} {kind}: {lesser} ns in both runs, {greater} in one", first.len());
        longest.push(f64::from(lesser) / 1000.0);
    }
    longest
}

/// Takes a count and so many times off the front.
fn take_times(bytes: &mut Vec<u8>) -> Vec<u32> {
    let words: Vec<u32> =
        bytes.as_chunks().0.iter().map(|word| u32::from_le_bytes(*word)).collect();
    let count = words[0] as usize;
    bytes.drain(..4 * (count + 1));
    words[1..=count].to_vec()
}

/// Writes all times to stdout.
fn write_times(keys: u64) {
    let mut bytes = Vec::new();
    for times in times_of_all(keys) {
        bytes.extend_from_slice(&(times.len() as u32).to_le_bytes());
        times.iter().for_each(|time| bytes.extend_from_slice(&time.to_le_bytes()));
    }
    std::io::stdout().write_all(&bytes).expect("the parent reads");
}

/// The times of each operation, by kind as in [`KINDS`].
fn times_of_all(keys: u64) -> Vec<Vec<u32>> {
    let mut index = IndexProbe::default();
    let insert = times(keys, |serial| index.insert(&key(serial), serial));
    let timed = TIMED.min(keys / 4);
    let remove = times(timed, |serial| assert!(index.remove(&key(serial), serial)));
    let sweep = times(keys / 1024, |_| index.sweep(1024));
    let begin_cut = times(1, |_| index.begin_cut());
    let insert_in_cut = times(timed / 100, |serial| index.insert(&key(serial), serial));
    let cut_page = times(100, |_| assert!(index.next_cut_page()));
    while index.next_cut_page() {}
    index.end_cut();
    let clear = times(1, |_| index.clear());
    let release = times(keys / 100_000, |_| {
        index.release();
    });
    vec![insert, remove, sweep, begin_cut, cut_page, insert_in_cut, clear, release]
}
