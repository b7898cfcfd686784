//! Does our own request parser pay against the `redis-protocol` crate?
//!
//! Unit: nanoseconds per command, on one thread, from bytes in memory to arguments. Expected: a
//! command is a handful of short lines, so 20-30 ns for us; the library allocates for each array
//! even where it borrows, so 2-4 times that, and twice as much again where it owns.
//!
//! Rounds of all contestants interleave, so that a change of clock speed hits them alike.

#![expect(clippy::disallowed_methods, reason = "a bench reads the clock")]
#![expect(clippy::print_stdout, reason = "a bench prints its result")]

use clap::Parser as _;
use kadring::resp::command::Command;
use kadring::resp::frame::{Parsed, Parser, ParserLimits};
use kadring_benches::{Flags, Report};
use redis_protocol::resp2::decode::{decode, decode_range};
use redis_protocol::resp2::types::{OwnedFrame, RangeFrame};
use serde_json::json;
use std::error::Error;
use std::hint::black_box;
use std::time::Instant;

/// One way to get through a buffer; returns the bytes of all arguments as a check.
type Contestant = (&'static str, fn(&mut Parser, &[u8]) -> usize);

const CONTESTANTS: [Contestant; 4] = [
    ("kadring", ours),
    ("kadring + typed command", ours_typed),
    ("redis-protocol ranges", library_ranges),
    ("redis-protocol owned", library_owned),
];

fn ours(parser: &mut Parser, bytes: &[u8]) -> usize {
    let mut input = bytes;
    let mut total = 0;
    while let Parsed::Command(arguments) = parser.next(&mut input) {
        total += arguments.iter().map(|argument| black_box(argument).len()).sum::<usize>();
    }
    total
}

fn ours_typed(parser: &mut Parser, bytes: &[u8]) -> usize {
    let mut input = bytes;
    let mut total = 0;
    while let Parsed::Command(arguments) = parser.next(&mut input) {
        total += match Command::parse(&arguments) {
            Ok(Command::Get { key }) => 3 + black_box(key).len(),
            Ok(Command::Set(set)) => 3 + black_box(set.key).len() + black_box(set.value).len(),
            other => panic!("not in the workload: {other:?}"),
        };
    }
    total
}

fn library_ranges(_: &mut Parser, bytes: &[u8]) -> usize {
    let mut rest = bytes;
    let mut total = 0;
    while let Ok(Some((RangeFrame::Array(frames), len))) = decode_range(rest) {
        for frame in &frames {
            let RangeFrame::BulkString((start, end)) = *frame else { panic!("not a bulk string") };
            total += black_box(&rest[start..end]).len();
        }
        rest = &rest[len..];
    }
    total
}

fn library_owned(_: &mut Parser, bytes: &[u8]) -> usize {
    let mut rest = bytes;
    let mut total = 0;
    while let Ok(Some((OwnedFrame::Array(frames), len))) = decode(rest) {
        for frame in &frames {
            let OwnedFrame::BulkString(value) = frame else { panic!("not a bulk string") };
            total += black_box(value).len();
        }
        rest = &rest[len..];
    }
    total
}

fn encode(arguments: &[&[u8]]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", arguments.len()).into_bytes();
    for argument in arguments {
        bytes.extend_from_slice(format!("${}\r\n", argument.len()).as_bytes());
        bytes.extend_from_slice(argument);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes
}

/// How much is measured.
#[derive(Clone, Copy)]
struct Plan {
    rounds: usize,
    commands: usize,
}

/// Runs one workload and prints a line per contestant.
fn run(report: &mut Report, name: &str, arguments: &[&[u8]], pipeline: usize, plan: Plan) {
    let Plan { rounds, commands } = plan;
    let buffer = encode(arguments).repeat(pipeline);
    let expected = arguments.iter().map(|argument| argument.len()).sum::<usize>() * pipeline;
    let passes = commands.div_ceil(pipeline);
    let mut parser = Parser::new(ParserLimits::default());
    parser.set_authenticated(true);
    let mut samples: Vec<Vec<f64>> = vec![Vec::with_capacity(rounds); CONTESTANTS.len()];
    // The first round warms up.
    for round in 0..=rounds {
        for ((_, contestant), samples) in CONTESTANTS.iter().zip(&mut samples) {
            let started = Instant::now();
            for _ in 0..passes {
                assert_eq!(contestant(&mut parser, black_box(&buffer)), expected);
            }
            let nanoseconds = started.elapsed().as_nanos() as f64;
            if round > 0 {
                samples.push(nanoseconds / (passes * pipeline) as f64);
            }
        }
    }
    let mut baseline = None;
    for ((contestant, _), samples) in CONTESTANTS.iter().zip(&mut samples) {
        samples.sort_by(f64::total_cmp);
        let at = |percent: usize| samples[(samples.len() - 1) * percent / 100];
        let ours = *baseline.get_or_insert_with(|| at(50));
        println!(
            "{name:<10} {pipeline:>8}  {contestant:<24} {:>9.1} {:>9.1} {:>8.2}",
            at(50),
            at(99),
            at(50) / ours
        );
        report.push(
            "rows",
            json!({
                "contestant": contestant,
                "workload": { "command": name, "pipeline": pipeline },
                "p50_ns": at(50),
                "p99_ns": at(99),
                "ratio": at(50) / ours,
            }),
        );
    }
}

#[derive(Debug, clap::Parser)]
struct Arguments {
    #[command(flatten)]
    flags: Flags,
}

fn main() -> Result<(), Box<dyn Error>> {
    let Arguments { flags } = Arguments::parse();
    let (rounds, commands) = if flags.smoke { (10, 500) } else { (200, 20_000) };
    let plan = Plan { rounds, commands };
    let mut report = Report::new("resp_parse", &flags, flags.scratch()?.path())?;
    println!(
        "{:<10} {:>8}  {:<24} {:>9} {:>9} {:>8}",
        "command", "pipeline", "parser", "p50 ns", "p99 ns", "ratio"
    );
    let key = b"user:00000000042";
    let (small, large) = (vec![b'v'; 64], vec![b'v'; 4096]);
    for pipeline in [1, 16] {
        run(&mut report, "GET", &[b"GET", key], pipeline, plan);
        run(&mut report, "SET 64 B", &[b"SET", key, &small], pipeline, plan);
        run(&mut report, "SET 4 KiB", &[b"SET", key, &large], pipeline, plan);
    }
    report.finish()
}
