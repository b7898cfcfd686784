//! Runs of the generator against a small server in the same process.

#![expect(clippy::disallowed_types, reason = "the server has sockets of its own")]

use super::*;
use crate::resp::frame::{Parsed, Parser, ParserLimits};
use std::collections::BTreeMap;
use std::io::Read as _;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

/// How the server answers the command of that number on a connection, if not as a server should.
type Answer = fn(command: u64) -> Option<&'static [u8]>;
type Values = Arc<Mutex<BTreeMap<Vec<u8>, Vec<u8>>>>;

/// Serves connections until they close; its threads end with the process of the tests.
fn serve(answer: Answer) -> (SocketAddr, Values) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let values = Values::default();
    let shared = Arc::clone(&values);
    thread::spawn(move || {
        for stream in listener.incoming() {
            let (stream, values) = (stream.unwrap(), Arc::clone(&shared));
            thread::spawn(move || converse(stream, &values, answer));
        }
    });
    (address, values)
}

fn converse(mut stream: TcpStream, values: &Values, answer: Answer) {
    let mut parser = Parser::new(ParserLimits::default());
    parser.set_authenticated(true);
    let mut buffer = vec![0; 10_000];
    let mut command = 0;
    while let Ok(len @ 1..) = stream.read(&mut buffer) {
        let mut input = &buffer[..len];
        let mut out = Vec::new();
        while let Parsed::Command(arguments) = parser.next(&mut input) {
            let words: Vec<Vec<u8>> = arguments.iter().map(<[u8]>::to_vec).collect();
            let reply = answer(command).map(<[u8]>::to_vec);
            out.extend(reply.unwrap_or_else(|| execute(&words, values)));
            command += 1;
        }
        if stream.write_all(&out).is_err() {
            return;
        }
    }
}

fn execute(words: &[Vec<u8>], values: &Values) -> Vec<u8> {
    let mut values = values.lock().unwrap();
    match words[0].as_slice() {
        b"SET" => {
            values.insert(words[1].clone(), words[2].clone());
            b"+OK\r\n".to_vec()
        }
        b"AUTH" if words[1] != b"secret" => b"-WRONGPASS no\r\n".to_vec(),
        b"AUTH" => b"+OK\r\n".to_vec(),
        _ => match values.get(&words[1]) {
            Some(value) => {
                let head = format!("${}\r\n", value.len());
                [head.as_bytes(), value.as_slice(), b"\r\n"].concat()
            }
            None => b"$-1\r\n".to_vec(),
        },
    }
}

fn plan(address: SocketAddr, value_len: usize) -> Plan {
    let workload = Workload {
        get_percent: 50,
        value_len,
        key_first: 1000,
        key_count: 50,
        distribution: Distribution::Zipf { theta: 0.9 },
        verify: Verify::Values,
    };
    Plan {
        target: Target { address, password: None },
        workload,
        pace: Pace::Closed,
        pipeline: 5,
        connections: 6,
        threads: 2,
        warm_up: Duration::from_millis(5),
        duration: Duration::from_millis(40),
        server_pid: Some(std::process::id()),
    }
}

const PROPER: Answer = |_| None;

/// Where nothing happened in the measured time, as on a machine that is taken, it is made longer.
fn measure_something(plan: &Plan) -> Outcome {
    for factor in [1, 10, 100] {
        let outcome = Plan { duration: plan.duration * factor, ..plan.clone() };
        let outcome = outcome.measure(&mut |_| {}).unwrap();
        if outcome.gets.count() > 0 && outcome.sets.count() > 0 {
            return outcome;
        }
    }
    panic!("nothing was measured");
}

#[test]
fn values_come_back_as_they_were_loaded_in_either_loop() {
    for value_len in [1, 64, 5000, 70_000] {
        let (address, values) = serve(PROPER);
        let plan = plan(address, value_len);
        let loaded = plan.load(&mut |_| {}).unwrap();
        assert_eq!((loaded.counts.operations, values.lock().unwrap().len()), (50, 50));
        assert!(values.lock().unwrap().values().all(|value| value.len() == value_len));
        plan.read_back(&mut |_| {}).unwrap();
        for pace in [Pace::Closed, Pace::PerSecond(2000.0)] {
            let outcome = measure_something(&Plan { pace, ..plan.clone() });
            let Counts { operations, misses, errors, mismatches, unanswered } = outcome.counts;
            assert_eq!(operations, outcome.latencies().count());
            assert_eq!(
                [misses, errors, mismatches, unanswered],
                [0; 4],
                "{:?}",
                outcome.first_error
            );
            assert_eq!(outcome.by_second.iter().sum::<u64>(), operations);
            assert!(outcome.server_cpu.is_some());
        }
    }
}

/// The schedule decides how many there are, however fast they are answered.
#[test]
fn an_open_loop_does_what_is_due_and_no_more() {
    let (address, _) = serve(PROPER);
    let pace = Pace::PerSecond(1000.0);
    let duration = Duration::from_millis(100);
    let plan = Plan { pace, duration, warm_up: Duration::ZERO, ..plan(address, 10) };
    let outcome = plan.measure(&mut |_| {}).unwrap();
    assert_eq!(outcome.counts.operations + outcome.counts.unanswered, 100);
    assert_eq!(outcome.send_lag.count(), 100);
}

#[test]
fn errors_misses_and_strange_values_are_told_apart() {
    let (address, values) = serve(|command| (command % 3 == 0).then_some(b"-ERR busy\r\n"));
    let plan = plan(address, 64);
    let error = plan.load(&mut |_| {}).unwrap_err();
    let BenchError::Load { keys: 50, errors: 1.., text } = error else { panic!("{error}") };
    assert_eq!(text, "ERR busy");
    let only_gets = Workload { get_percent: 100, ..plan.workload };
    values.lock().unwrap().clear();
    let plan = Plan { workload: only_gets, duration: Duration::from_secs(1), ..plan };
    let outcome = plan.measure(&mut |_| {}).unwrap();
    let Counts { operations, misses, errors, .. } = outcome.counts;
    assert!(operations > 0 && operations == misses && errors > 0, "{:?}", outcome.counts);

    let (address, values) = serve(PROPER);
    let plan = Plan { target: Target { address, password: None }, ..plan };
    plan.load(&mut |_| {}).unwrap();
    values.lock().unwrap().values_mut().next().unwrap()[63] ^= 1;
    let error = plan.read_back(&mut |_| {}).unwrap_err();
    assert!(matches!(error, BenchError::Mismatch { count: 1 }), "{error}");
    values.lock().unwrap().clear();
    let error = plan.read_back(&mut |_| {}).unwrap_err();
    assert!(matches!(error, BenchError::Mismatch { count: 50 }), "{error}");
}

#[test]
fn a_password_is_passed_or_refused() {
    let (address, _) = serve(PROPER);
    let with = |password: &str| {
        let target = Target { address, password: Some(password.to_owned()) };
        Plan { target, ..plan(address, 10) }.load(&mut |_| {})
    };
    with("secret").unwrap();
    let error = with("wrong").unwrap_err();
    assert!(matches!(&error, BenchError::Password { text } if text == "WRONGPASS no"), "{error}");
}

#[test]
fn a_server_that_talks_nonsense_or_goes_away_ends_the_run() {
    let (address, _) = serve(|command| (command == 20).then_some(b"*1\r\n"));
    let run = |address| Plan { connections: 2, ..plan(address, 10) }.load(&mut |_| {});
    let error = run(address).unwrap_err();
    let fault = ReplyFault::Kind { found: b'*' };
    assert!(matches!(&error, BenchError::Strange { source } if *source == fault), "{error}");
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let error = run(address).unwrap_err();
    assert!(matches!(error, BenchError::Unreachable { .. }), "{error}");
}

#[test]
fn plans_that_make_no_sense_are_refused() {
    let sound = plan("127.0.0.1:1".parse().unwrap(), 10);
    for wrong in [
        Plan { threads: 0, ..sound.clone() },
        Plan { threads: 7, ..sound.clone() },
        Plan { pipeline: 0, ..sound.clone() },
        Plan { pace: Pace::PerSecond(0.0), ..sound.clone() },
        Plan { pace: Pace::PerSecond(f64::NAN), ..sound.clone() },
        Plan { workload: Workload { key_count: 0, ..sound.workload }, ..sound.clone() },
        Plan { workload: Workload { key_count: 1 << 32, ..sound.workload }, ..sound.clone() },
    ] {
        let error = wrong.measure(&mut |_| {}).unwrap_err();
        assert!(matches!(error, BenchError::Flags { .. }), "{error}");
    }
}
