//! Clients that people use: redis-cli, redis-benchmark, the Python and the Rust library.

use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use kadring_tests::node_process::{Driver, find_program};

use crate::{TestNode, skipped};

/// What a client library may use of the node: enough for a typical program.
const ENTRIES: [(&str, &str); 3] = [("lang", "rust"), ("empty", ""), ("text", "grün\r\n\0")];

fn run(program: PathBuf, arguments: &[&str], node: &TestNode) -> Output {
    let port = node.node.address().port().to_string();
    let arguments = arguments.iter().map(|argument| argument.replace("PORT", &port));
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).output().unwrap()
}

fn text(output: &Output) -> String {
    let (stdout, stderr) = (&output.stdout, &output.stderr);
    format!("{}{}", String::from_utf8_lossy(stdout), String::from_utf8_lossy(stderr))
}

fn check_redis_cli(node: &TestNode) {
    let Some(program) = find_program("redis-cli") else {
        return skipped("redis-cli", "not in PATH");
    };
    for (arguments, expected) in [
        (&["set", "k", "v"][..], "OK\n"),
        (&["get", "k"], "v\n"),
        (&["--no-raw", "get", "k"], "\"v\"\n"),
        (&["--no-raw", "-3", "get", "none"], "(nil)\n"),
        (&["--no-raw", "incr", "n"], "(integer) 1\n"),
        (&["--no-raw", "keys", "k*"], "1) \"k\"\n"),
        (&["--scan", "--pattern", "k"], "k\n"),
        (&["-3", "ping"], "PONG\n"),
        (&["del", "k", "n"], "2\n"),
    ] {
        let all = [&["-p", "PORT"], arguments].concat();
        let output = run(program.clone(), &all, node);
        assert!(output.status.success(), "{arguments:?}: {}", text(&output));
        assert_eq!(text(&output), expected, "{arguments:?}");
    }
}

fn check_redis_benchmark(node: &TestNode) {
    let Some(program) = find_program("redis-benchmark") else {
        return skipped("redis-benchmark", "not in PATH");
    };
    for extra in [&["-d", "256"][..], &["-d", "3", "-r", "1000"], &["-d", "100000", "-3"]] {
        let count = if extra.contains(&"100000") { "500" } else { "20000" };
        let tests = ["-p", "PORT", "-t", "set,get,incr,mset,ping", "-c", "50", "-P", "16", "-q"];
        let all = [&tests[..], &["-n", count], extra].concat();
        let output = run(program.clone(), &all, node);
        let text = text(&output);
        assert!(output.status.success(), "{extra:?}: {text}");
        let lower = text.to_lowercase();
        assert!(!lower.contains("error") && !lower.contains("warning"), "{extra:?}: {text}");
        assert!(text.contains("GET") && text.contains("requests per second"), "{text}");
    }
}

fn check_python(node: &TestNode) {
    let program = std::env::var_os("KADRING_TEST_PYTHON").map(PathBuf::from);
    let Some(program) = program.or_else(|| find_program("python3")) else {
        return skipped("Python client", "no python3 in PATH");
    };
    let probe = Command::new(&program).args(["-c", "import redis"]).output().unwrap();
    if !probe.status.success() {
        return skipped("Python client", "its package `redis` is not installed");
    }
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/integration/python/client.py");
    for protocol in ["2", "3"] {
        let output = run(program.clone(), &[script, "PORT", protocol], node);
        assert!(output.status.success(), "protocol {protocol}:\n{}", text(&output));
        assert!(text(&output).ends_with("ok\n"), "{}", text(&output));
    }
}

fn check_rust(node: &TestNode, protocol: &str) {
    let url = format!("redis://{}/?protocol={protocol}", node.node.address());
    let mut connection = redis::Client::open(url).unwrap().get_connection().unwrap();
    let connection = &mut connection;
    let ask = |words: &[&str]| {
        let mut command = redis::cmd(words[0]);
        command.arg(&words[1..]);
        command
    };
    for (key, value) in ENTRIES {
        ask(&["SET", key, value]).exec(connection).unwrap();
        let found: Vec<u8> = ask(&["GET", key]).query(connection).unwrap();
        assert_eq!(found, value.as_bytes());
    }
    let none: Option<String> = ask(&["GET", "none"]).query(connection).unwrap();
    assert_eq!(none, None);
    let many: Vec<Option<String>> = ask(&["MGET", "lang", "none"]).query(connection).unwrap();
    assert_eq!(many, [Some("rust".to_owned()), None]);
    let (first, second): (i64, i64) =
        redis::pipe().incr("n", 1).incr("n", 41).query(connection).unwrap();
    assert_eq!((first, second), (1, 42));
    let flag: bool = ask(&["EXPIRE", "lang", "100"]).query(connection).unwrap();
    let ttl: i64 = ask(&["TTL", "lang"]).query(connection).unwrap();
    assert!(flag && (99..=100).contains(&ttl));
    let info: redis::InfoDict = ask(&["INFO"]).query(connection).unwrap();
    assert!(info.get::<u64>("process_id") == Some(node.node.pid().into()));
    let error = ask(&["INCR", "lang"]).exec(connection).unwrap_err();
    assert!(error.to_string().contains("not an integer"), "{error}");
    let mut keys: Vec<String> = redis::cmd("SCAN")
        .cursor_arg(0)
        .clone()
        .iter(connection)
        .unwrap()
        .collect::<Result<_, _>>()
        .unwrap();
    keys.sort();
    assert_eq!(keys, ["empty", "lang", "n", "text"]);
    ask(&["FLUSHALL"]).exec(connection).unwrap();
}

#[test]
fn redis_cli_works() {
    Driver::ALL.into_iter().for_each(|driver| check_redis_cli(&TestNode::start(driver)));
}

#[test]
fn redis_benchmark_runs_without_an_error() {
    Driver::ALL.into_iter().for_each(|driver| check_redis_benchmark(&TestNode::start(driver)));
}

#[test]
fn python_library_works() {
    Driver::ALL.into_iter().for_each(|driver| check_python(&TestNode::start(driver)));
}

#[test]
fn rust_library_works() {
    for driver in Driver::ALL {
        let node = TestNode::start(driver);
        check_rust(&node, "resp2");
        check_rust(&node, "resp3");
    }
}
