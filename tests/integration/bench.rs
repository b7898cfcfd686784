//! `kadring bench` against a real node: what it writes is what the node saw.

use std::fs;
use std::path::Path;
use std::process::Output;

use kadring_tests::node_process::{Driver, run_to_end};
use kadring_tests::resp_client::Reply;
use serde_json::Value;

use crate::TestNode;

const EXIT_USAGE: i32 = 2;
const EXIT_UNREACHABLE: i32 = 8;
const EXIT_REFUSED: i32 = 9;

/// Runs `kadring bench` with a short load, and these words.
fn bench(address: &str, words: &[&str]) -> Output {
    let short = ["bench", "--server", address, "--seconds", "0.3", "--warm-up", "0.05"];
    run_to_end(&[&short[..], words].concat(), &[]).unwrap()
}

fn read_json(file: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(file).unwrap()).unwrap()
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("{value} is no count"))
}

#[test]
fn a_closed_loop_of_every_command_is_told_in_json_and_drawn() {
    for driver in Driver::ALL {
        let node = TestNode::start(driver);
        let address = node.node.address().to_string();
        let pid = node.node.pid().to_string();
        let (json, svg) =
            (node.directory.path().join("bench.json"), node.directory.path().join("bench.svg"));
        let files = ["--json", json.to_str().unwrap(), "--svg", svg.to_str().unwrap()];
        for (command, gets, sets) in
            [("set", false, true), ("get", true, false), ("mixed", true, true)]
        {
            let words = ["--command", command, "--load", "--verify", "--keys", "300"];
            let shape = ["--value-bytes", "3000", "--pipeline", "8", "--connections", "6"];
            let more = ["--threads", "2", "--distribution", "zipf", "--server-pid", &pid];
            let output = bench(&address, &[&words[..], &shape, &more, &files].concat());
            assert_eq!(output.status.code(), Some(0), "{output:?}");
            let told = String::from_utf8(output.stdout).unwrap();
            assert!(told.contains("loaded 300 keys") && told.contains("p99.9 us"), "{told}");
            let found = read_json(&json);
            let result = &found["result"];
            assert_eq!(number(&result["gets"]["count"]) > 0, gets, "{command}: {result}");
            assert_eq!(number(&result["sets"]["count"]) > 0, sets, "{command}: {result}");
            let sum = number(&result["gets"]["count"]) + number(&result["sets"]["count"]);
            assert_eq!(number(&result["operations"]), sum);
            for none in ["errors", "misses", "mismatches", "unanswered"] {
                assert_eq!(number(&result[none]), 0, "{command}: {result}");
            }
            assert!(result["server_cpu_us_per_op"].as_f64().is_some(), "{result}");
            assert_eq!(found["workload"]["distribution"], "zipf");
            assert_eq!(found["load"]["pipeline"], 8);
            assert!(fs::read_to_string(&svg).unwrap().contains("polyline"));
        }
        // What it stored is there for other clients.
        let stored = node.client().call(&[b"STRLEN", b"user:00000000299"]).unwrap();
        assert_eq!(stored, Reply::Integer(3000));
        assert_eq!(node.client().call(&[b"DBSIZE"]).unwrap(), Reply::Integer(300));
    }
}

#[test]
fn an_open_loop_has_as_many_operations_as_were_due() {
    let node = TestNode::start(Driver::Uring);
    let address = node.node.address().to_string();
    let json = node.directory.path().join("bench.json");
    let words = ["--rate", "1000", "--load", "--keys", "50", "--json", json.to_str().unwrap()];
    let output = bench(&address, &[&words[..], &["--first-key", "7"]].concat());
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let result = &read_json(&json)["result"];
    // 0.3 s at 1,000 per second; those of the warm-up do not count.
    let seen = number(&result["operations"]) + number(&result["unanswered"]);
    assert!((299..=301).contains(&seen), "{result}");
    let absent = node.client().call(&[b"EXISTS", b"user:00000000006", b"user:00000000007"]);
    assert_eq!(absent.unwrap(), Reply::Integer(1));
}

#[test]
fn errors_are_told_and_are_no_operations() {
    let node = TestNode::start_with(Driver::Uring, &[("KADRING_REQUIREPASS", "secret")]);
    let address = node.node.address().to_string();
    let json = node.directory.path().join("bench.json");
    let output = bench(&address, &["--json", json.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(EXIT_REFUSED), "{output:?}");
    let result = &read_json(&json)["result"];
    assert_eq!(number(&result["operations"]), 0);
    assert!(number(&result["errors"]) > 0);
    assert!(result["first_error"].as_str().unwrap().starts_with("NOAUTH"), "{result}");
    let refused = bench(&address, &["--password", "wrong"]);
    assert_eq!(refused.status.code(), Some(EXIT_REFUSED), "{refused:?}");
    let words = ["--password", "secret", "--load", "--keys", "10"];
    let passed = bench(&address, &words);
    assert_eq!(passed.status.code(), Some(0), "{passed:?}");
    let from_variable = ["bench", "--server", &address, "--seconds", "0.1", "--keys", "10"];
    let variables = [("KADRING_REQUIREPASS".to_owned(), "secret".to_owned())];
    let passed = run_to_end(&from_variable, &variables).unwrap();
    assert_eq!(passed.status.code(), Some(0), "{passed:?}");
}

#[test]
fn values_of_somebody_else_are_found_by_verify() {
    let node = TestNode::start(Driver::Uring);
    let address = node.node.address().to_string();
    let reads = ["--command", "get", "--keys", "1", "--value-bytes", "5", "--verify"];
    node.client().call(&[b"SET", b"user:00000000000", b"other"]).unwrap();
    let output = bench(&address, &reads);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("differ from what kadring bench stores"), "{text}");
}

#[test]
fn what_cannot_be_measured_is_refused_with_a_remedy() {
    let nobody = "127.0.0.1:1";
    for (address, words, code) in [
        (nobody, &[][..], EXIT_UNREACHABLE),
        ("nonsense", &[], EXIT_USAGE),
        (nobody, &["--threads", "9", "--connections", "8"], EXIT_USAGE),
        (nobody, &["--pipeline", "0"], EXIT_USAGE),
        (nobody, &["--theta", "1", "--distribution", "zipf"], EXIT_USAGE),
        (nobody, &["--rate", "0"], EXIT_USAGE),
        (nobody, &["--keys", "0"], EXIT_USAGE),
        (nobody, &["--get-percent", "101"], EXIT_USAGE),
        (nobody, &["--warm-up", "-1"], EXIT_USAGE),
    ] {
        let output = bench(address, words);
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{words:?}: {text}");
        assert!(!text.contains("panicked"), "{words:?}: {text}");
    }
}
